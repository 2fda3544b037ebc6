//! **What**: cells in turn (A B A B ...), and what they say together: medians, spread, ratios with their spread.
//!
//! **Invariants**: what is compared runs in turn, so that the machine's mood falls on all. Void runs are run again, at
//! most twice; if they stay void they are reported and not counted. Ratios are made per round, then their median is taken.
//!
//! **Never**: a ratio of medians of different rounds; a mean.
//!
//! **See**: `cell.rs`, `report.rs`.

use crate::cell::{self, Cell, OTHERS_MAX_PERCENT, Row};
use crate::load::Load;
use crate::machine::median;
use crate::party::System;
use crate::report::Report;
use crate::{Common, Error};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Spread of one and the same above which a comparison is void, percent.
pub const SPREAD_MAX_PERCENT: f64 = 10.0;
/// Further runs in place of one that was void.
const RETRIES: usize = 2;

/// One of those that run in turn.
#[derive(Clone, Debug)]
pub struct Contender {
    /// The system.
    pub system: System,
    /// Label, where two builds of one system are compared.
    pub build: String,
    /// The broker's binary, where it is not that of the command line.
    pub broker: Option<PathBuf>,
}

impl Contender {
    /// A system as it is.
    pub fn new(system: System) -> Contender {
        Contender { system, build: String::new(), broker: None }
    }

    /// For tables.
    pub fn name(&self) -> String {
        format!("{}{}", self.system.name(), self.build)
    }
}

/// What all contenders do.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// Subscribers.
    pub subscribers: usize,
    /// How records are offered.
    pub load: Load,
    /// Records per publish.
    pub batch: u64,
    /// The last subscriber reads only this share.
    pub throttle: Option<f64>,
}

/// A number over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

impl Spread {
    /// Of a list; NaN if it is empty.
    pub fn of(values: &[f64]) -> Spread {
        Spread {
            median: median(values),
            min: values.iter().copied().fold(f64::NAN, f64::min),
            max: values.iter().copied().fold(f64::NAN, f64::max),
        }
    }

    /// Distance of the ends in percent of the middle.
    pub fn percent(self) -> f64 {
        (self.max - self.min) / self.median * 100.0
    }
}

/// What a contender gave over all rounds, and the first contender beside it: one line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Who.
    pub name: String,
    /// Facts of the last run: subscribers, load, packet size, settings.
    pub last: Row,
    /// Rounds that counted.
    pub rounds: usize,
    /// Microseconds.
    pub p50_us: Spread,
    /// Microseconds.
    pub p99_us: Spread,
    /// Microseconds.
    pub p999_us: Spread,
    /// Deliveries per second.
    pub rate: Spread,
    /// CPU of the server per delivery, ns.
    pub cost_ns: Spread,
    /// Records lost over all rounds.
    pub lost: u64,
    /// The first contender divided by this one, round by round; below 1 the first is better, above 1 for the rate.
    pub ratio_p50: Spread,
    /// As above.
    pub ratio_p99: Spread,
    /// As above.
    pub ratio_p999: Spread,
    /// As above.
    pub ratio_rate: Spread,
    /// As above.
    pub ratio_cost: Spread,
    /// CPU time that neither server nor clients used, percent of all CPUs.
    pub others_percent: Spread,
    /// The same thing differed too much from round to round, others used the machine, or too few rounds counted.
    pub void: bool,
}

/// Runs all contenders in turn, `common.runs` rounds.
pub fn run(
    common: &Common,
    task: &Task,
    contenders: &[Contender],
    pki: &Path,
    report: &mut Report,
) -> Result<Vec<Summary>, Error> {
    let mut rows: Vec<Vec<Option<Row>>> = vec![Vec::new(); contenders.len()];
    for _ in 0..common.runs {
        for (contender, rows) in contenders.iter().zip(&mut rows) {
            rows.push(one(common, task, contender, pki, report)?);
        }
    }
    let kept: Vec<_> = contenders.iter().zip(&rows).filter(|(_, rows)| rows.iter().any(Option::is_some)).collect();
    let summaries: Vec<Summary> =
        kept.iter().filter_map(|(contender, each)| summarise(&contender.name(), &rows[0], each)).collect();
    if rows[0].iter().all(Option::is_none) {
        report.say("every run of the first was void: there are no ratios");
    }
    report.summaries(task, &summaries)?;
    Ok(summaries)
}

/// One round of one contender; `None` if it stayed void.
pub fn one(
    common: &Common,
    task: &Task,
    contender: &Contender,
    pki: &Path,
    report: &mut Report,
) -> Result<Option<Row>, Error> {
    let broker = contender.broker.clone().unwrap_or_else(|| common.broker.clone());
    let common = Common { broker, ..common.clone() };
    let Task { subscribers, load, batch, throttle } = *task;
    let cell = Cell { system: contender.system, subscribers, load, batch, throttle };
    report.begin(&contender.name(), task);
    for _ in 0..=RETRIES {
        let mut row = cell::run(&common, &cell, pki)?;
        row.build.clone_from(&contender.build);
        report.row(&row)?;
        if !row.is_void() {
            report.done();
            return Ok(Some(row));
        }
    }
    report.done();
    Ok(None)
}

/// `None` if no round of it counted.
fn summarise(name: &str, first: &[Option<Row>], rows: &[Option<Row>]) -> Option<Summary> {
    let counted: Vec<&Row> = rows.iter().flatten().collect();
    let of = |what: fn(&Row) -> f64| Spread::of(&counted.iter().map(|row| what(row)).collect::<Vec<_>>());
    let ratio = |what: fn(&Row) -> f64| {
        let pairs = first.iter().zip(rows).filter_map(|(a, b)| Some((a.as_ref()?, b.as_ref()?)));
        Spread::of(&pairs.map(|(a, b)| what(a) / what(b)).collect::<Vec<_>>())
    };
    let (p50_us, cost_ns) = (of(|row| row.p50_us), of(Row::cost_ns));
    // What is judged is what the load measures: latency at a rate, cost and throughput otherwise.
    let judged = if counted.first()?.rate.is_some() { p50_us } else { cost_ns };
    let others_percent = of(|row| row.others_percent);
    let is_crowded = others_percent.median > OTHERS_MAX_PERCENT;
    Some(Summary {
        name: name.to_string(),
        last: Row { timeline: Vec::new(), percentiles: Vec::new(), ..(*counted.last()?).clone() },
        rounds: counted.len(),
        p50_us,
        p99_us: of(|row| row.p99_us),
        p999_us: of(|row| row.p999_us),
        rate: of(|row| row.deliveries_per_s),
        cost_ns,
        lost: counted.iter().map(|row| row.lost).sum(),
        ratio_p50: ratio(|row| row.p50_us),
        ratio_p99: ratio(|row| row.p99_us),
        ratio_p999: ratio(|row| row.p999_us),
        ratio_rate: ratio(|row| row.deliveries_per_s),
        ratio_cost: ratio(Row::cost_ns),
        others_percent,
        void: is_crowded || judged.percent() > SPREAD_MAX_PERCENT || counted.len() * 2 < rows.len(),
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A row with this median and cost.
    pub fn row(p50_us: f64, cost: f64) -> Row {
        let text = format!(
            r#"{{"system":"felix","build":"","subscribers":1,"value_bytes":256,"rate":1000,"in_flight":null,"batch":1,
            "wait":"busy","cores":1,"processes":0,"udp_payload":1452,"path_mtu":1452,"p50_us":{p50_us},"p99_us":{},"p999_us":90.0,
            "max_us":99.0,"sent":10,"deliveries":10,"lost":0,"deliveries_per_s":1000.0,"cpu_ns_per_delivery":1.0,
            "work_ns_per_delivery":{cost},"records_per_flush":1.0,"client_busy_percent":5.0,"steal_percent":0.0,"others_percent":0.0,
            "server_rss_mib":10.0,"throttled_deliveries":0,"settings":"","percentiles":[[0.0,1.0],[0.9,{p50_us}]],
            "timeline":[[0.5,1.0,2.0,3.0],[1.5,1.0,2.0,3.0]]}}"#,
            p50_us * 2.0
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn ratios_are_made_per_round() {
        // The machine was twice as slow in the second round, for both.
        let first = [Some(row(10.0, 5.0)), Some(row(20.0, 5.0)), None];
        let second = [Some(row(20.0, 10.0)), Some(row(40.0, 10.0)), Some(row(1.0, 1.0))];
        let summary = summarise("b", &first, &second).unwrap();
        assert_eq!(summary.ratio_p50, Spread { median: 0.5, min: 0.5, max: 0.5 });
        assert_eq!(summary.ratio_cost.median, 0.5);
        assert_eq!(summary.rounds, 3);
        assert!(summary.void, "the same thing gave 1, 20 and 40 us");
        assert!(summarise("c", &first, &[None, None, None]).is_none());
    }

    #[test]
    fn a_steady_series_counts_and_one_of_mostly_void_rounds_does_not() {
        let steady = [Some(row(10.0, 5.0)), Some(row(10.5, 5.0)), Some(row(10.2, 5.0))];
        assert!(!summarise("a", &steady, &steady).unwrap().void);
        let few = [Some(row(10.0, 5.0)), None, None];
        assert!(summarise("a", &steady, &few).unwrap().void);
        let crowded = steady.clone().map(|row| row.map(|row| Row { others_percent: 30.0, ..row }));
        assert!(summarise("a", &steady, &crowded).unwrap().void);
    }
}
