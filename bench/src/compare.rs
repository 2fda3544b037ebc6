//! **What**: `compare BASE`: two builds of the broker in turn, ratios new / base with a confidence interval.
//!
//! **Invariants**: the interval is the bootstrap's 95 % of the median of the per-round ratios, from a fixed seed: the same
//! rounds give the same interval. "No difference seen" is the answer when 1 lies inside.
//!
//! **Never**: a verdict from one round.
//!
//! **See**: `series.rs`.

use crate::cell::Row;
use crate::grid::LoadName;
use crate::load::Load;
use crate::machine::{median, pin};
use crate::party::System;
use crate::report::Report;
use crate::series::{self, Contender, Task};
use crate::servers::{CLIENT_CPU, certificates};
use crate::{Common, Error, Wait};
use serde_json::json;
use std::path::Path;

/// A number of a row, and its name.
type Judged = (&'static str, fn(&Row) -> f64);

/// Fewest rounds that an interval can be made of.
const ROUNDS_MIN: usize = 4;

/// What is compared: name, subscribers, load, records per publish, wait.
const TASKS: &[(&str, usize, LoadName, u64, Wait)] = &[
    ("latency, 1 subscriber", 1, LoadName::Rate(2_000), 1, Wait::Busy),
    ("latency, 100 subscribers", 100, LoadName::Rate(1_000), 1, Wait::Hybrid),
    ("cost, 100 subscribers, 1 record per flush", 100, LoadName::Lockstep, 1, Wait::Busy),
    ("cost, 100 subscribers, 8 records per flush", 100, LoadName::Lockstep, 8, Wait::Busy),
    ("throughput, 10 subscribers", 10, LoadName::Max, 16, Wait::Hybrid),
];

/// Measures and prints. `base` is the other broker binary; `common.broker` is the new one.
pub fn run(common: &Common, base: &Path) -> Result<(), Error> {
    if common.runs < ROUNDS_MIN {
        return Err(format!("{} rounds are too few for an interval; at least {ROUNDS_MIN}", common.runs).into());
    }
    if !base.is_file() {
        return Err(format!("{} is no file; `make bench-compare BASE=revision` builds one", base.display()).into());
    }
    pin(CLIENT_CPU)?;
    let mut report = Report::of(common, TASKS.len() * common.runs * 2)?;
    let keeper = certificates(common)?;
    let build = |label: &str, path: &Path| Contender {
        system: System::Felix,
        build: label.to_string(),
        broker: Some(path.to_path_buf()),
    };
    let contenders = [build("-new", &common.broker), build("-base", base)];
    let mut verdicts = Vec::new();
    for (name, subscribers, load, batch, wait) in TASKS {
        let common = Common { wait: *wait, ..common.clone() };
        let load = load.load(common.value_bytes, *batch);
        let task = Task { subscribers: *subscribers, load, batch: *batch, throttle: None };
        let mut rounds = Vec::new();
        for round in 0..common.runs {
            // Who begins changes from round to round.
            let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
            let mut rows = [None, None];
            for which in order {
                rows[which] = series::one(&common, &task, &contenders[which], &keeper.target.pki, &mut report)?;
            }
            if let [Some(new), Some(base)] = rows
                && !new.is_crowded()
                && !base.is_crowded()
            {
                rounds.push((new, base));
            }
        }
        let judged: &[Judged] = match load {
            Load::Rate(_) => &[("p50", |row| row.p50_us), ("p99", |row| row.p99_us)],
            Load::InFlight(_) => &[("cost", Row::cost_ns)],
        };
        for (what, number) in judged {
            let ratios: Vec<f64> = rounds.iter().map(|(new, base)| number(new) / number(base)).collect();
            let Some((low, high)) = interval(&ratios) else {
                report.say(&format!("{name}: too many rounds were void"));
                continue;
            };
            let middle = median(&ratios);
            let verdict = if low > 1.0 {
                "worse"
            } else if high < 1.0 {
                "better"
            } else {
                "no difference seen"
            };
            verdicts.push(format!("{name}: {what} new / base {middle:.3} [{low:.3}..{high:.3}]  {verdict}"));
            report.json(
                "compare",
                &json!({
                    "task": name, "what": what, "ratio": middle, "low": low, "high": high, "rounds": ratios.len(),
                    "verdict": verdict,
                }),
            )?;
        }
    }
    report.say("");
    verdicts.iter().for_each(|line| report.say(line));
    Ok(())
}

/// The bootstrap's 95 % interval of the median. `None`: too few.
fn interval(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < ROUNDS_MIN {
        return None;
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut medians: Vec<f64> = (0..2_000)
        .map(|_| {
            let drawn: Vec<f64> = values
                .iter()
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    values[(state % values.len() as u64) as usize]
                })
                .collect();
            median(&drawn)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    Some((medians[50], medians[1_949]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_narrow_where_rounds_agree_and_holds_one_where_they_do_not() {
        let (low, high) = interval(&[0.90, 0.91, 0.92, 0.90, 0.91, 0.92]).unwrap();
        assert!(low >= 0.90 && high <= 0.92 && low < high, "{low}..{high}");
        let (low, high) = interval(&[0.7, 1.3, 0.9, 1.2, 1.1, 0.8]).unwrap();
        assert!(low < 1.0 && high > 1.0, "{low}..{high}");
        assert_eq!(interval(&[0.7, 1.3, 0.9, 1.2, 1.1, 0.8]), interval(&[0.7, 1.3, 0.9, 1.2, 1.1, 0.8]));
        assert!(interval(&[1.0, 1.0, 1.0]).is_none());
    }
}
