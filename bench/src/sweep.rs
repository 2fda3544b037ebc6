//! **What**: `sweep`: the rate goes up until p99 breaks a bound, records are lost or the server falls behind: the knee.
//!
//! **Invariants**: a point counts as held when its median p99 over the rounds holds. Between the last that held and the
//! first that did not the rate is halved into a few times.
//!
//! **Never**: a knee called the server's when the clients were the limit: their share of CPU stands beside it.
//!
//! **See**: `series.rs`.

use crate::cell::Row;
use crate::load::Load;
use crate::machine::{median, pin, raise_open_files};
use crate::party::System;
use crate::report::Report;
use crate::series::{self, Contender, Task};
use crate::servers::{CLIENT_CPU, certificates};
use crate::{Common, Error};
use serde_json::json;

/// Options of a sweep.
#[derive(Clone, Debug, clap::Args)]
pub struct Sweep {
    /// Systems, one after the other.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "felix")]
    pub systems: Vec<System>,
    /// Subscribers.
    #[arg(long, default_value_t = 10)]
    pub subscribers: usize,
    /// p99 that must hold, microseconds.
    #[arg(long, default_value_t = 1_000.0)]
    pub bound_us: f64,
    /// First rate, records per second.
    #[arg(long, default_value_t = 1_000)]
    pub from: u64,
    /// Factor from one rate to the next.
    #[arg(long, default_value_t = 1.5)]
    pub factor: f64,
    /// Highest rate.
    #[arg(long, default_value_t = 2_000_000)]
    pub to: u64,
}

/// Halvings between the last rate that held and the first that did not.
const HALVINGS: usize = 3;
/// Deliveries per second, as a share of those offered, below which the server falls behind.
const KEEPS_UP: f64 = 0.95;

/// Measures and prints.
pub fn run(common: &Common, sweep: &Sweep) -> Result<(), Error> {
    if sweep.factor.is_nan() || sweep.factor <= 1.0 || sweep.from == 0 || sweep.subscribers == 0 {
        return Err("a sweep needs subscribers, a first rate and a factor above 1".into());
    }
    pin(CLIENT_CPU)?;
    raise_open_files();
    let steps = ((sweep.to as f64 / sweep.from as f64).ln() / sweep.factor.ln()).ceil().max(1.0) as usize + HALVINGS;
    let mut report = Report::of(common, steps * sweep.systems.len() * common.runs)?;
    let keeper = certificates(common)?;
    for &system in &sweep.systems {
        let contender = Contender::new(system);
        let mut holds = |rate: u64| -> Result<Option<Row>, Error> {
            let task = Task { subscribers: sweep.subscribers, load: Load::Rate(rate), batch: 1, throttle: None };
            let mut rows = Vec::new();
            for _ in 0..common.runs {
                rows.extend(series::one(common, &task, &contender, &keeper.target.pki, &mut report)?);
            }
            let of = |what: fn(&Row) -> f64| median(&rows.iter().map(what).collect::<Vec<_>>());
            let p99 = of(|row| row.p99_us);
            let lost = rows.iter().any(|row| row.lost > 0);
            let keeps_up = of(|row| row.deliveries_per_s) >= KEEPS_UP * rate as f64 * sweep.subscribers as f64;
            let row = rows.pop().map(|row| Row { p99_us: p99, ..row });
            Ok(row.filter(|_| p99 <= sweep.bound_us && !lost && keeps_up))
        };
        let knee = find(sweep, &mut holds)?;
        match knee {
            Some((rate, row)) => {
                report.say(&format!(
                    "{}: {rate} records/s to {} subscribers hold p99 <= {} us (p99 {:.0} us, cost {:.0} ns per \
                     delivery, clients busy {:.0} %)",
                    system.name(),
                    sweep.subscribers,
                    sweep.bound_us,
                    row.p99_us,
                    row.cost_ns(),
                    row.client_busy_percent
                ));
                report.json(
                    "knee",
                    &json!({
                        "system": system.name(), "subscribers": sweep.subscribers, "value_bytes": common.value_bytes,
                        "bound_us": sweep.bound_us, "rate": rate, "p99_us": row.p99_us, "wait": common.wait.name(),
                        "client_busy_percent": row.client_busy_percent, "path_mtu": row.path_mtu,
                    }),
                )?;
            }
            None => report.say(&format!("{}: not even {} records/s hold", system.name(), sweep.from)),
        }
    }
    Ok(())
}

/// The highest rate that held, and what it gave.
fn find<T>(sweep: &Sweep, holds: &mut impl FnMut(u64) -> Result<Option<T>, Error>) -> Result<Option<(u64, T)>, Error> {
    let (mut rate, mut best) = (sweep.from, None);
    let broken = loop {
        match holds(rate)? {
            Some(row) => best = Some((rate, row)),
            None => break rate,
        }
        let next = ((rate as f64 * sweep.factor) as u64).max(rate + 1);
        if next > sweep.to {
            return Ok(best);
        }
        rate = next;
    };
    let Some((mut held, _)) = best else { return Ok(None) };
    let mut broken = broken;
    for _ in 0..HALVINGS {
        let middle = held + (broken - held) / 2;
        if middle == held {
            break;
        }
        match holds(middle)? {
            Some(row) => (held, best) = (middle, Some((middle, row))),
            None => broken = middle,
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knee(real: u64) -> (Option<u64>, Vec<u64>) {
        let sweep = Sweep { systems: vec![], subscribers: 1, bound_us: 1.0, from: 100, factor: 2.0, to: 10_000 };
        let mut asked = Vec::new();
        let found = find(&sweep, &mut |rate| {
            asked.push(rate);
            Ok(if rate <= real { Some(()) } else { None })
        });
        (found.unwrap().map(|(rate, ())| rate), asked)
    }

    #[test]
    fn the_knee_is_found_between_two_steps() {
        let (found, asked) = knee(700);
        assert_eq!(asked, [100, 200, 400, 800, 600, 700, 750]);
        assert_eq!(found, Some(700));
    }

    #[test]
    fn nothing_and_everything_hold() {
        assert_eq!(knee(99).0, None);
        assert_eq!(knee(1_000_000).0, Some(6_400));
    }
}
