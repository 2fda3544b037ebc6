//! **What**: `check`: cost per delivery beside the bare relay, against the ratios in `bench/baselines/ratios.json`.
//!
//! **Invariants**: only ratios of two things measured in turn on this machine are judged, with slack; a run that was void
//! judges nothing and says so.
//!
//! **Never**: an absolute time judged.
//!
//! **See**: `tests/baselines.rs` (instructions and allocations, in CI), `series.rs`.

use crate::grid::LoadName;
use crate::machine::{median, pin};
use crate::party::System;
use crate::report::Report;
use crate::series::{self, Contender, Task};
use crate::servers::{CLIENT_CPU, certificates};
use crate::{Common, Error, Wait};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct Baseline {
    /// How much worse a ratio may be, percent.
    slack_percent: f64,
    /// Felix / bare relay.
    ratios: Vec<Ratio>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Ratio {
    subscribers: usize,
    records_per_flush: u64,
    cost: f64,
}

/// Measures and judges, or writes what it measured.
pub fn run(common: &Common, file: &Path, write: bool) -> Result<(), Error> {
    pin(CLIENT_CPU)?;
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let mut baseline: Baseline = serde_json::from_str(&text)?;
    let common = Common { wait: Wait::Busy, ..common.clone() };
    let mut report = Report::of(&common, baseline.ratios.len() * 2 * common.runs)?;
    let keeper = certificates(&common)?;
    let contenders = [Contender::new(System::Felix), Contender::new(System::Floor)];
    let mut worse = Vec::new();
    for ratio in &mut baseline.ratios {
        let batch = ratio.records_per_flush;
        let load = LoadName::Lockstep.load(common.value_bytes, batch);
        let task = Task { subscribers: ratio.subscribers, load, batch, throttle: None };
        let mut found = Vec::new();
        for _ in 0..common.runs {
            let pki = &keeper.target.pki;
            let felix = series::one(&common, &task, &contenders[0], pki, &mut report)?;
            let floor = series::one(&common, &task, &contenders[1], pki, &mut report)?;
            let both = felix.zip(floor).filter(|(felix, floor)| !felix.is_crowded() && !floor.is_crowded());
            found.extend(both.map(|(felix, floor)| felix.cost_ns() / floor.cost_ns()));
        }
        if found.len() * 2 <= common.runs {
            report.say("too many rounds were void: nothing is judged");
            continue;
        }
        let now = median(&found);
        let line = format!(
            "{} subscribers, {batch} record(s) per flush: cost Felix / bare relay {now:.2}, baseline {:.2}",
            ratio.subscribers, ratio.cost
        );
        report.say(&line);
        if write {
            ratio.cost = (now * 100.0).round() / 100.0;
        } else if now > ratio.cost * (1.0 + baseline.slack_percent / 100.0) {
            worse.push(line);
        }
    }
    if write {
        std::fs::write(file, serde_json::to_string_pretty(&baseline)? + "\n")?;
    }
    if worse.is_empty() {
        Ok(())
    } else {
        Err(format!("worse by more than {} %:\n{}", baseline.slack_percent, worse.join("\n")).into())
    }
}
