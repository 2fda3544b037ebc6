//! **What**: `felix top`: what every stream does, once per interval.
//!
//! ```text
//! stats --> sample, one interval later another --> rates --> rows --> table, redrawn on a terminal
//! ```
//!
//! **Invariants**: rates are differences of two samples by the broker's own clock, so a slow request does not show as
//! a slow stream; a broker that started anew begins from zero.
//!
//! **Never**: a negative rate.
//!
//! **See**: `felix_protocol::frame::Stats`.

use crate::cli::Globals;
use crate::failure::{Exit, Failure};
use crate::link::connect;
use crate::output::Out;
use crate::signals::Signals;
use crate::table::Table;
use crate::text::{now, show_time, show_time_short};
use crate::units::{parse_positive_duration, show_duration, show_rate, show_size};
use clap::{Args, ValueEnum};
use felix_client::protocol::frame::StreamStats;
use felix_client::{Client, Stats};
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

/// Clears what follows the cursor on its line.
const CLEAR_LINE: &str = "\x1b[K";
/// Clears the screen below the cursor.
const CLEAR_BELOW: &str = "\x1b[J";
/// Puts the cursor to the upper left.
const HOME: &str = "\x1b[H";

/// Options of `top`.
#[derive(Args, Debug)]
#[command(after_help = "\
IN/S and OUT/S are records per second, MB/S are millions of bytes of batches.
LAG is how many records the slowest subscription is behind, GAPS how many were
missed since the broker started. On a terminal the table is redrawn, else one
table per interval follows the other. Ctrl-C ends it.

Examples:
  felix top
  felix top --interval 5s --sort lag
  felix top --once --json")]
pub struct TopArgs {
    /// Time between two tables
    #[arg(long, value_name = "SPAN", value_parser = parse_positive_duration, default_value = "1s")]
    interval: Duration,
    /// One table (over one interval), then end
    #[arg(long)]
    once: bool,
    /// What to sort by; names rise, numbers fall
    #[arg(long, value_enum, value_name = "COLUMN", default_value = "name")]
    sort: Sort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    Name,
    In,
    Out,
    Bytes,
    Subscriptions,
    Lag,
    Gaps,
    Retained,
}

/// One stream over one interval.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    stream: String,
    records_in_per_s: f64,
    records_out_per_s: f64,
    bytes_in_per_s: f64,
    bytes_out_per_s: f64,
    records_in: u64,
    records_out: u64,
    subscriptions: u32,
    lag_records_max: u64,
    gap_records: u64,
    retained_bytes: u64,
}

/// One interval.
#[derive(Serialize)]
struct Shown<'a> {
    time: String,
    uptime_ms: u64,
    connections: u32,
    streams: &'a [Row],
}

/// All pages of the statistics.
fn sample(client: &Client) -> Result<Stats, Failure> {
    let mut all = client.stats(None)?;
    while all.more {
        let Some(last) = all.streams.last().map(|it| it.name.clone()) else { break };
        let page = client.stats(Some(last))?;
        all.more = page.more && !page.streams.is_empty();
        all.streams.extend(page.streams);
    }
    Ok(all)
}

/// What happened between two samples.
fn rows(before: &Stats, after: &Stats, sort: Sort) -> Vec<Row> {
    let restarted = after.uptime_ms < before.uptime_ms;
    let elapsed_ms = if restarted { after.uptime_ms } else { after.uptime_ms - before.uptime_ms };
    let seconds = elapsed_ms.max(1) as f64 / 1e3;
    let known: HashMap<_, &StreamStats> = match restarted {
        true => HashMap::new(),
        false => before.streams.iter().map(|it| (&it.name, it)).collect(),
    };
    let row = |it: &StreamStats| {
        let before = known.get(&it.name);
        let rate = |count: fn(&StreamStats) -> u64| {
            let rate = count(it).saturating_sub(before.map_or(0, |it| count(it))) as f64 / seconds;
            (rate * 10.0).round() / 10.0
        };
        Row {
            stream: it.name.to_string(),
            records_in_per_s: rate(|it| it.records_in),
            records_out_per_s: rate(|it| it.records_out),
            bytes_in_per_s: rate(|it| it.bytes_in),
            bytes_out_per_s: rate(|it| it.bytes_out),
            records_in: it.records_in,
            records_out: it.records_out,
            subscriptions: it.subscriptions,
            lag_records_max: it.lag_records_max,
            gap_records: it.gap_records,
            retained_bytes: it.retained_bytes,
        }
    };
    let mut rows: Vec<Row> = after.streams.iter().map(row).collect();
    // Sorting is stable and streams come by name, so equal numbers stay in order of name.
    let by_rate = |rows: &mut Vec<Row>, key: fn(&Row) -> f64| rows.sort_by(|a, b| key(b).total_cmp(&key(a)));
    match sort {
        Sort::Name => rows.sort_by(|a, b| a.stream.cmp(&b.stream)),
        Sort::In => by_rate(&mut rows, |it| it.records_in_per_s),
        Sort::Out => by_rate(&mut rows, |it| it.records_out_per_s),
        Sort::Bytes => by_rate(&mut rows, |it| it.bytes_in_per_s + it.bytes_out_per_s),
        Sort::Subscriptions => rows.sort_by_key(|it| Reverse(it.subscriptions)),
        Sort::Lag => rows.sort_by_key(|it| Reverse(it.lag_records_max)),
        Sort::Gaps => rows.sort_by_key(|it| Reverse(it.gap_records)),
        Sort::Retained => rows.sort_by_key(|it| Reverse(it.retained_bytes)),
    }
    rows
}

fn text(title: &str, rows: &[Row]) -> String {
    let head = ["STREAM", ">IN/S", ">OUT/S", ">IN MB/S", ">OUT MB/S", ">SUBS", ">LAG", ">GAPS", ">RETAINED"];
    let mut table = Table::new(&head);
    for row in rows {
        table.row(vec![
            row.stream.clone(),
            show_rate(row.records_in_per_s),
            show_rate(row.records_out_per_s),
            format!("{:.2}", row.bytes_in_per_s / 1e6),
            format!("{:.2}", row.bytes_out_per_s / 1e6),
            row.subscriptions.to_string(),
            row.lag_records_max.to_string(),
            row.gap_records.to_string(),
            show_size(row.retained_bytes),
        ]);
    }
    format!("{title}\n\n{}", table.show())
}

fn title(stats: &Stats) -> String {
    let uptime = show_duration(Duration::from_secs(stats.uptime_ms / 1_000));
    let (connections, streams) = (stats.connections, stats.streams.len());
    format!("{}  up {uptime}, {connections} connections, {streams} streams", show_time_short(now()))
}

/// A screen that overwrites the one before: cut to what the terminal shows.
fn screen(text: &str, columns: usize, lines: usize) -> String {
    let mut screen = String::from(HOME);
    let count = text.lines().count();
    let shown = if count > lines { lines.saturating_sub(1) } else { count };
    for (number, line) in text.lines().take(shown).enumerate() {
        if number > 0 {
            screen += "\r\n";
        }
        screen.extend(line.chars().take(columns));
        screen += CLEAR_LINE;
    }
    if shown < count {
        screen += &format!("\r\n... {} more{CLEAR_LINE}", count - shown);
    }
    screen += CLEAR_BELOW;
    screen
}

/// Shows tables until someone has seen enough.
pub fn run(globals: &Globals, args: &TopArgs, out: &mut Out) -> Result<Exit, Failure> {
    let signals = Signals::install()?;
    let client = connect(globals)?;
    let redraw = !out.json() && !args.once && std::io::stdout().is_terminal();
    let mut before = sample(&client)?;
    if redraw {
        out.bytes(format!("{HOME}{CLEAR_BELOW}{}\r\n", title(&before)).as_bytes())?;
        out.flush()?;
    }
    loop {
        if signals.sleep(args.interval) {
            break;
        }
        let after = sample(&client)?;
        let rows = rows(&before, &after, args.sort);
        if out.json() {
            let (uptime_ms, connections) = (after.uptime_ms, after.connections);
            out.value(&Shown { time: show_time(now()), uptime_ms, connections, streams: &rows })?;
        } else if redraw {
            let size = terminal_size::terminal_size().map_or((80, 24), |(width, height)| (width.0, height.0));
            out.bytes(screen(&text(&title(&after), &rows), size.0.into(), size.1.into()).as_bytes())?;
        } else {
            let end = if args.once { "" } else { "\n" };
            out.bytes((text(&title(&after), &rows) + end).as_bytes())?;
        }
        out.flush()?;
        if args.once {
            return Ok(Exit::Success);
        }
        before = after;
    }
    if redraw {
        out.bytes(b"\r\n")?;
    }
    Ok(if args.once { Exit::Interrupted } else { Exit::Success })
}

#[cfg(test)]
mod tests {
    use super::*;
    use felix_client::protocol::names::StreamName;

    fn stats(uptime_ms: u64, streams: &[(&str, u64, u64)]) -> Stats {
        let stream = |&(name, records_in, lag): &(&str, u64, u64)| StreamStats {
            name: StreamName::parse(name).unwrap(),
            records_in,
            bytes_in: records_in * 1_000,
            records_out: records_in * 2,
            bytes_out: records_in * 2_000,
            subscriptions: 2,
            lag_records_max: lag,
            gap_records: 0,
            retained_bytes: 1 << 20,
        };
        Stats { uptime_ms, connections: 3, streams: streams.iter().map(stream).collect(), more: false }
    }

    fn rates(rows: &[Row]) -> Vec<(&str, f64)> {
        rows.iter().map(|row| (row.stream.as_str(), row.records_in_per_s)).collect()
    }

    #[test]
    fn rates_by_the_brokers_clock() {
        let before = stats(10_000, &[("a/b/c", 100, 0), ("a/b/gone", 5, 0)]);
        let after = stats(12_000, &[("a/b/c", 300, 0), ("a/b/new", 50, 0)]);
        let found = rows(&before, &after, Sort::Name);
        assert_eq!(rates(&found), [("a/b/c", 100.0), ("a/b/new", 25.0)]);
        assert_eq!((found[0].records_out_per_s, found[0].bytes_in_per_s), (200.0, 100_000.0));
    }

    #[test]
    fn a_broker_that_started_anew_begins_from_zero() {
        let found = rows(&stats(10_000, &[("a/b/c", 100, 0)]), &stats(500, &[("a/b/c", 20, 0)]), Sort::Name);
        assert_eq!(rates(&found), [("a/b/c", 40.0)]);
        let found = rows(&stats(10_000, &[("a/b/c", 100, 0)]), &stats(10_000, &[("a/b/c", 90, 0)]), Sort::Name);
        assert_eq!(rates(&found), [("a/b/c", 0.0)], "a stream made anew under its name");
    }

    #[test]
    fn orders() {
        let before = stats(0, &[]);
        let after = stats(1_000, &[("a/b/c", 10, 7), ("a/b/d", 30, 7), ("a/b/e", 20, 9)]);
        let order = |sort| {
            let names = rows(&before, &after, sort).into_iter().map(|row| row.stream.replace("a/b/", ""));
            names.collect::<Vec<_>>().concat()
        };
        assert_eq!(order(Sort::Name), "cde");
        assert_eq!(order(Sort::In), "dec");
        assert_eq!(order(Sort::Bytes), "dec");
        assert_eq!(order(Sort::Lag), "ecd", "equal ones by name");
    }

    #[test]
    fn tables_and_screens() {
        let found = rows(&stats(0, &[]), &stats(1_000, &[("a/b/c", 10, 7)]), Sort::Name);
        let text = text("title", &found);
        let expected = "\
title

STREAM  IN/S  OUT/S  IN MB/S  OUT MB/S  SUBS  LAG  GAPS  RETAINED
a/b/c     10     20     0.01      0.02     2    7     0     1 MiB
";
        assert_eq!(text, expected);
        assert_eq!(screen("abc\nd\n", 2, 2), "\x1b[Hab\x1b[K\r\nd\x1b[K\x1b[J");
        assert_eq!(screen("a\nb\nc\n", 9, 2), "\x1b[Ha\x1b[K\r\n... 2 more\x1b[K\x1b[J");
    }
}
