//! **What**: `slow`: one subscriber that reads a hundredth of what is sent, among many: do the others notice?
//!
//! **Invariants**: the same number of subscribers counts with and without it; both in turn.
//!
//! **Never**: the slow one's own latency in a histogram.
//!
//! **See**: `load.rs` (`Throttle`).

use crate::load::Load;
use crate::machine::{pin, raise_open_files};
use crate::party::System;
use crate::report::Report;
use crate::series::{self, Contender, Spread, Task};
use crate::servers::{CLIENT_CPU, certificates};
use crate::{Common, Error};
use serde_json::json;

/// Measures and prints.
pub fn run(common: &Common, systems: &[System], subscribers: usize, rate: u64, share: f64) -> Result<(), Error> {
    if subscribers < 2 || rate == 0 || common.processes > 0 {
        return Err("`slow` needs two subscribers, a rate, and all clients in one process".into());
    }
    pin(CLIENT_CPU)?;
    raise_open_files();
    let mut report = Report::of(common, systems.len() * common.runs * 2)?;
    let keeper = certificates(common)?;
    for &system in systems {
        let contender = Contender::new(system);
        let without = Task { subscribers: subscribers - 1, load: Load::Rate(rate), batch: 1, throttle: None };
        let with = Task { subscribers, throttle: Some(share), ..without };
        let (mut ratios, mut slow_got, mut lost) = (Vec::new(), 0, 0);
        for _ in 0..common.runs {
            let pki = &keeper.target.pki;
            let alone = series::one(common, &without, &contender, pki, &mut report)?;
            let beside = series::one(common, &with, &contender, pki, &mut report)?;
            if let (Some(alone), Some(beside)) = (alone, beside)
                && !alone.is_crowded()
                && !beside.is_crowded()
            {
                ratios.push(beside.p99_us / alone.p99_us);
                slow_got += beside.throttled_deliveries;
                lost += beside.lost;
            }
        }
        if ratios.is_empty() {
            report.say(&format!("{}: every round was void", system.name()));
            continue;
        }
        let ratio = Spread::of(&ratios);
        report.say(&format!(
            "{}: {} subscribers at {rate}/s beside one that reads {:.0} %: their p99 is {:.2} [{:.2}..{:.2}] times that \
             without it; they lost {lost}, the slow one got {slow_got}",
            system.name(),
            subscribers - 1,
            share * 100.0,
            ratio.median,
            ratio.min,
            ratio.max,
        ));
        report.json(
            "slow",
            &json!({
                "system": system.name(), "subscribers": subscribers, "rate": rate, "share": share, "ratio_p99": ratio,
                "lost": lost, "rounds": ratios.len(), "value_bytes": common.value_bytes, "wait": common.wait.name(),
            }),
        )?;
    }
    Ok(())
}
