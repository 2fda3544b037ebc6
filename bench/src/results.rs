//! **What**: `results FILE`: tables in Markdown and plots, from the JSON lines of runs.
//!
//! **Invariants**: nothing is measured here: the same file gives the same page. Void rows are named, not hidden.
//!
//! **Never**: a number without the command, packet size and clients' share that it depends on.
//!
//! **See**: `report.rs` (who wrote the lines), `plot.rs`.

use crate::Error;
use crate::cell::Row;
use crate::durable::{DurableSummary, maybe_ratio};
use crate::plot::{Axis, Line, Plot, load_font};
use crate::report::ratio;
use crate::series::Summary;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

/// What a task is called in headings and file names; tasks that agree in it stand in one table.
type Key = (usize, usize, String, u64, String, usize, usize);

fn key(row: &Row) -> Key {
    let load = row.load_name();
    (row.subscribers, row.value_bytes, load, row.batch, row.wait.clone(), row.cores, row.udp_payload)
}

/// Reads lines, writes the page and the plots.
pub fn run(file: &Path, page: &Path, plots: &Path) -> Result<(), Error> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let of = |bench: &str| lines.iter().filter(|line| line["bench"] == bench).cloned().collect::<Vec<Value>>();
    let rows = of("cell").into_iter().map(serde_json::from_value).collect::<Result<Vec<Row>, _>>()?;
    let summaries = of("summary").into_iter().map(serde_json::from_value).collect::<Result<Vec<Summary>, _>>()?;
    std::fs::create_dir_all(plots)?;
    load_font()?;
    let drawn = draw(&rows, plots)?;

    let mut out = String::from(HEAD);
    for machine in of("machine") {
        let fact = |name: &str| machine[name].as_str().unwrap_or("-").to_string();
        writeln!(
            out,
            "Machine: {}, {} CPUs, Linux {}. NATS {}, Redis {}, Mosquitto {}.\n",
            fact("cpu"),
            machine["logical_cpus"],
            fact("kernel"),
            fact("nats"),
            fact("redis"),
            fact("mosquitto")
        )?;
    }
    floors(&mut out, &lines)?;
    tables(&mut out, &summaries)?;
    durable(&mut out, &of("durable-summary"))?;
    others(&mut out, &lines)?;
    settings(&mut out, &rows)?;
    let void = rows.iter().filter(|row| row.is_void()).count();
    writeln!(out, "{void} of {} runs were void because of steal; they were run again.\n", rows.len())?;
    if !drawn.is_empty() {
        writeln!(out, "## Plots\n")?;
        let folder = plots.file_name().map(|name| name.to_string_lossy().to_string()).unwrap_or_default();
        for (name, title) in drawn {
            writeln!(out, "![{title}]({folder}/{name}.svg)\n")?;
        }
    }
    std::fs::write(page, out)?;
    println!("{} and {}", page.display(), plots.display());
    Ok(())
}

const HEAD: &str = "# Results\n
Written by `make bench` from the JSON lines of `felix-bench`. One server on CPU 0, all clients on CPU 1, one loop for all
systems; latency is open loop, from the intended send time to the arrival at a subscriber. Ratios are Felix / other, made
per round, median [lowest..highest]: below 1 Felix is better. `cost` is CPU time of the server per delivery. `clients` is
the clients' share of their CPU: near 100 % they, not the server, are the limit of what was reached. VOID: the same thing
differed by more than 10 % from round to round, or others used more than 10 % of the CPUs; such a line says nothing.\n\n";

fn floors(out: &mut String, lines: &[Value]) -> Result<(), Error> {
    let number = |value: &Value| value.as_f64().map_or("-".to_string(), |value| format!("{value:.1}"));
    let mut list = String::new();
    for line in lines {
        match line["bench"].as_str().unwrap_or("") {
            "floor-udp" => writeln!(
                list,
                "- UDP ping-pong, {} B, {}: round trip p50 {} us, p99 {} us",
                line["bytes"],
                line["wait"].as_str().unwrap_or(""),
                number(&line["p50_us"]),
                number(&line["p99_us"])
            )?,
            "floor-aes" => writeln!(list, "- AES-128-GCM, {} B: {} ns", line["bytes"], number(&line["ns"]))?,
            "floor-memcpy" => writeln!(
                list,
                "- memcpy, {} B from {}: {} ns",
                line["bytes"],
                line["from"].as_str().unwrap_or(""),
                number(&line["ns"])
            )?,
            "floor-disk" => writeln!(
                list,
                "- 4 KiB O_DIRECT write p50 {} us, with fdatasync p50 {} us, p99 {} us",
                number(&line["write_p50_us"]),
                number(&line["sync_p50_us"]),
                number(&line["sync_p99_us"])
            )?,
            _ => {}
        }
    }
    if !list.is_empty() {
        writeln!(out, "## Floors\n\n{list}")?;
    }
    Ok(())
}

fn tables(out: &mut String, summaries: &[Summary]) -> Result<(), Error> {
    let mut groups: BTreeMap<Key, Vec<&Summary>> = BTreeMap::new();
    for summary in summaries {
        groups.entry(key(&summary.last)).or_default().push(summary);
    }
    if !groups.is_empty() {
        writeln!(out, "## Fan-out\n")?;
    }
    for ((subscribers, value_bytes, load, batch, wait, cores, udp_payload), group) in groups {
        writeln!(
            out,
            "### {subscribers} subscriber(s), {value_bytes} B, {load}, {batch} record(s) per publish, wait {wait}, {cores} core(s), UDP payload up to {udp_payload} B\n"
        )?;
        writeln!(
            out,
            "| system | p50 us | p99 us | p99.9 us | deliveries/s | cost ns | clients | packet | ratio p50 | ratio p99 | ratio p99.9 | ratio cost | |"
        )?;
        writeln!(out, "|---|---|---|---|---|---|---|---|---|---|---|---|---|")?;
        for it in group {
            let mut note = Vec::new();
            if it.lost > 0 {
                note.push(format!("lost {}", it.lost));
            }
            if it.void {
                note.push("VOID".to_string());
            }
            writeln!(
                out,
                "| {} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {:.0} % | {} | {} | {} | {} | {} | {} |",
                it.name,
                it.p50_us.median,
                it.p99_us.median,
                it.p999_us.median,
                it.rate.median,
                it.cost_ns.median,
                it.last.client_busy_percent,
                it.last.path_mtu,
                ratio(it.ratio_p50),
                ratio(it.ratio_p99),
                ratio(it.ratio_p999),
                ratio(it.ratio_cost),
                note.join(", ")
            )?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Acknowledged records: a table per load and size.
fn durable(out: &mut String, lines: &[Value]) -> Result<(), Error> {
    let summaries = lines.iter().cloned().map(serde_json::from_value).collect::<Result<Vec<DurableSummary>, _>>()?;
    // Runs of one load stand together as they were written.
    let mut tables: Vec<Vec<&DurableSummary>> = Vec::new();
    for it in &summaries {
        let new = tables.last().and_then(|table| table.first()).is_none_or(|first| {
            let same = |a: &DurableSummary, b: &DurableSummary| {
                let load = |it: &DurableSummary| (it.last.in_flight, it.last.rate, it.last.value_bytes);
                load(a) == load(b)
            };
            !same(first, it)
                || tables.last().is_some_and(|table| {
                    table.iter().any(|other| other.last.system == it.last.system && other.last.wait == it.last.wait)
                })
        });
        if new {
            tables.push(Vec::new());
        }
        tables.last_mut().into_iter().for_each(|table| table.push(it));
    }
    if !tables.is_empty() {
        writeln!(
            out,
            "## Acknowledged records\n\nLatency from the intended send time to the ack. `disk-floor` is an O_DIRECT write and \
             fdatasync of as many records as are in flight, at the pace of the table: a disk that rested in between takes \
             longer. Ratios are this / first line.\n"
        )?;
    }
    for table in tables {
        let last = &table.last().ok_or("an empty table")?.last;
        let load = last.rate.map_or_else(|| "as fast as it goes".to_string(), |rate| format!("{rate} records/s"));
        writeln!(out, "### {} B, {load}, {} in flight\n", last.value_bytes, last.in_flight)?;
        writeln!(
            out,
            "| system | wait | p50 us | p99 us | p99.9 us | acks/s | cost ns | ratio p50 | ratio p99 | ratio acks/s | |"
        )?;
        writeln!(out, "|---|---|---|---|---|---|---|---|---|---|---|")?;
        for it in table {
            writeln!(
                out,
                "| {} | {} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {} | {} | {} | {} |",
                it.last.system,
                it.last.wait,
                it.p50_us.median,
                it.p99_us.median,
                it.p999_us.median,
                it.acks_per_s.median,
                it.cost_ns.median,
                maybe_ratio(it.ratio_p50),
                maybe_ratio(it.ratio_p99),
                maybe_ratio(it.ratio_rate),
                if it.void { "VOID" } else { "" }
            )?;
        }
        writeln!(out)?;
    }
    let all: BTreeSet<(&str, &str)> = summaries.iter().map(|it| (&*it.last.system, &*it.last.settings)).collect();
    for (name, settings) in all {
        writeln!(out, "- {name}: {settings}")?;
    }
    if !summaries.is_empty() {
        writeln!(out)?;
    }
    Ok(())
}

fn others(out: &mut String, lines: &[Value]) -> Result<(), Error> {
    let mut list = String::new();
    for line in lines {
        let text = |name: &str| match &line[name] {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.as_f64().map_or(String::new(), |number| format!("{number:.2}")),
            _ => "-".to_string(),
        };
        match line["bench"].as_str().unwrap_or("") {
            "knee" => writeln!(
                list,
                "- Knee: {} holds p99 <= {} us up to {} records/s to {} subscribers (clients busy {} %)",
                text("system"),
                line["bound_us"],
                line["rate"],
                line["subscribers"],
                text("client_busy_percent")
            )?,
            "slow" => writeln!(
                list,
                "- Slow subscriber: {}, {} subscribers at {}/s, one of them reading {}: p99 of the others is {:.2} times that without it",
                text("system"),
                line["subscribers"],
                line["rate"],
                line["share"],
                line["ratio_p99"]["median"].as_f64().unwrap_or(f64::NAN)
            )?,
            "connections" => writeln!(
                list,
                "- {} idle connections: Felix {} B each, bare quiche {} B each",
                line["count"], line["felix_bytes"], line["floor_bytes"]
            )?,
            "storm" => writeln!(
                list,
                "- Reconnect storm: {} clients back after {} s, p50 {} ms, p99 {} ms, {} us of broker CPU each",
                line["count"],
                text("seconds"),
                text("p50_ms"),
                text("p99_ms"),
                text("cpu_us")
            )?,
            "soak" => writeln!(
                list,
                "- Soak: {} records, none lost or reordered, {} records/s, broker memory {} to {} MiB",
                line["records"],
                text("records_per_s"),
                line["rss_mib_min"],
                line["rss_mib_max"]
            )?,
            "replay-summary" => writeln!(
                list,
                "- Replay of {} GiB, {}: {:.0} MB/s; disk {} MB/s one read at a time, {} MB/s four at a time, bare relay {} MB/s; \
                 p99 of another stream's tail is {:.2} times that without{}",
                line["gib"],
                text("system"),
                line["replay_mb_per_s"]["median"].as_f64().unwrap_or(f64::NAN),
                text("disk_mb_per_s"),
                text("disk_many_mb_per_s"),
                text("relay_mb_per_s"),
                line["ratio_tail_p99"]["median"].as_f64().unwrap_or(f64::NAN),
                if line["void"] == true { " VOID" } else { "" }
            )?,
            "idle" => writeln!(list, "- Idle broker, {}: {} % of a CPU", text("wait"), text("cpu_percent"))?,
            _ => {}
        }
    }
    if !list.is_empty() {
        writeln!(out, "## More\n\n{list}")?;
    }
    Ok(())
}

fn settings(out: &mut String, rows: &[Row]) -> Result<(), Error> {
    let all: BTreeMap<&str, &str> = rows.iter().map(|row| (row.system.name(), row.settings.as_str())).collect();
    if !all.is_empty() {
        writeln!(out, "## Settings\n")?;
        for (name, settings) in all {
            writeln!(out, "- {name}: {settings}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Points by the name of their line.
type Curves = BTreeMap<String, Vec<(f64, f64)>>;

/// Draws what the rows give; returns file names and titles.
fn draw(rows: &[Row], plots: &Path) -> Result<Vec<(String, String)>, Error> {
    let mut drawn = Vec::new();
    let mut save = |name: String, plot: Plot| -> Result<(), Error> {
        if plot.lines.iter().any(|line| line.points.len() > 1) {
            plot.draw(plots, &name)?;
            drawn.push((name, plot.title));
        }
        Ok(())
    };
    let open = rows.iter().filter(|row| row.rate.is_some() && !row.is_void());
    let mut groups: BTreeMap<Key, BTreeMap<String, Vec<&Row>>> = BTreeMap::new();
    for row in open.clone() {
        let name = format!("{}{}", row.system.name(), row.build);
        groups.entry(key(row)).or_default().entry(name).or_default().push(row);
    }
    for ((subscribers, value_bytes, load, _, wait, cores, udp_payload), mut group) in groups {
        let rate = load.trim_end_matches("/s");
        let name = format!("{subscribers}x{value_bytes}b-{rate}-{wait}-{cores}c-{udp_payload}");
        let title = format!("{subscribers} subscriber(s), {value_bytes} B, {load}, {wait}");
        // One alone is a point of a sweep; it stands in the plot of throughput.
        if group.len() < 2 {
            continue;
        }
        // Of several rounds the one with the middle median stands for all.
        let middle: Vec<(&String, &Row)> = group
            .iter_mut()
            .filter_map(|(name, rows)| {
                rows.sort_by(|a, b| a.p50_us.total_cmp(&b.p50_us));
                Some((name, *rows.get(rows.len() / 2)?))
            })
            .collect();
        let lines = |points: fn(&Row) -> Vec<(f64, f64)>| {
            middle.iter().map(|(name, row)| Line { name: (*name).clone(), points: points(row) }).collect()
        };
        let title_of = |what: &str| format!("{what}: {title}");
        let lines_of = lines(|row| row.percentiles.clone());
        let plot = Plot { title: title_of("Latency by percentile"), x: Axis::Nines, lines: lines_of };
        save(format!("percentiles-{name}"), plot)?;
        let lines_of = lines(|row| row.timeline.iter().map(|slice| (slice.0, slice.2)).collect());
        save(format!("time-{name}"), Plot { title: title_of("p99 over time"), x: Axis::Seconds, lines: lines_of })?;
    }
    let mut sweeps: BTreeMap<(usize, usize, String), Curves> = BTreeMap::new();
    for row in open {
        let group = sweeps.entry((row.subscribers, row.value_bytes, row.wait.clone())).or_default();
        group.entry(row.system.name().to_string()).or_default().push((row.deliveries_per_s, row.p99_us));
    }
    for ((subscribers, value_bytes, wait), group) in sweeps {
        let lines: Vec<Line> = group
            .into_iter()
            .map(|(name, mut points)| {
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                Line { name, points }
            })
            .collect();
        let title = format!("Throughput against p99: {subscribers} subscriber(s), {value_bytes} B, {wait}");
        save(format!("throughput-{subscribers}x{value_bytes}b-{wait}"), Plot { title, x: Axis::Rate, lines })?;
    }
    Ok(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::tests::row as durable_row;
    use crate::durable::{DurableRow, summarise};
    use crate::party::System;
    use crate::series::tests::row;

    #[test]
    fn lines_become_a_page_and_plots() {
        let folder = std::env::temp_dir().join(format!("felix-bench-results-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("lines.jsonl");
        let mut text = String::new();
        for system in [System::Felix, System::Floor] {
            for (p50, rate) in [(10.0, 1_000), (20.0, 5_000)] {
                let row = Row { system, rate: Some(rate), deliveries_per_s: rate as f64, ..row(p50, 5.0) };
                let mut value = serde_json::to_value(&row).unwrap();
                value["bench"] = "cell".into();
                writeln!(text, "{value}").unwrap();
            }
        }
        for (system, rate, in_flight) in [
            ("disk-floor", Some(200), 1),
            ("felix-each", Some(200), 1),
            ("disk-floor", None, 1),
            ("felix-each", None, 64),
        ] {
            let row = DurableRow { system: system.into(), rate, in_flight, ..durable_row(77.0, 0.0) };
            let summary = summarise(&[Some(row.clone())], &[Some(row)]).unwrap();
            let mut value = serde_json::to_value(&summary).unwrap();
            value["bench"] = "durable-summary".into();
            writeln!(text, "{value}").unwrap();
        }
        let spread = serde_json::json!({"median": 321.0, "min": 1.0, "max": 2.0});
        let replay = serde_json::json!({
            "bench": "replay-summary", "gib": 4, "system": "felix-group", "replay_mb_per_s": spread,
            "ratio_tail_p99": spread, "disk_mb_per_s": 800.5, "disk_many_mb_per_s": 900, "relay_mb_per_s": 500, "void": false,
        });
        writeln!(text, "{replay}").unwrap();
        writeln!(text, r#"{{"bench":"knee","system":"felix","bound_us":1000,"rate":77,"subscribers":10}}"#).unwrap();
        std::fs::write(&file, text).unwrap();
        if load_font().is_err() {
            println!("skipped: the font of the plots is not installed");
            return;
        }
        run(&file, &folder.join("R.md"), &folder.join("plots")).unwrap();
        let page = std::fs::read_to_string(folder.join("R.md")).unwrap();
        assert!(page.contains("up to 77 records/s"), "{page}");
        for expected in [
            "### 1024 B, 200 records/s, 1 in flight",
            "### 1024 B, as fast as it goes, 1 in flight",
            "### 1024 B, as fast as it goes, 64 in flight",
            "| felix-each | - | 77.0 |",
            "Replay of 4 GiB, felix-group: 321 MB/s; disk 800.50 MB/s",
        ] {
            assert!(page.contains(expected), "{expected} is not in {page}");
        }
        assert_eq!(page.matches("| disk-floor |").count(), 2, "{page}");
        for name in ["percentiles-1x256b-1000-busy-1c-1452", "time-1x256b-1000-busy-1c-1452", "throughput-1x256b-busy"]
        {
            assert!(page.contains(name), "{name} is not in {page}");
            let svg = std::fs::read_to_string(folder.join("plots").join(format!("{name}.svg"))).unwrap();
            assert!(svg.contains("<polyline") && svg.contains("felix"), "{name}");
            let png = std::fs::read(folder.join("plots").join(format!("{name}.png"))).unwrap();
            assert!(png.starts_with(b"\x89PNG"));
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
