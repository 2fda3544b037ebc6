//! **What**: `latency`, `fanout` and `peers`: every combination of subscribers, sizes and loads, all systems in turn.
//!
//! **Invariants**: with `max` the window is the same number of bytes for every system and size, well inside what any of
//! them buffers: nothing is dropped, and a record that is missing is reported.
//!
//! **Never**: a system that gets another load than the others.
//!
//! **See**: `series.rs`.

use crate::load::Load;
use crate::machine::{pin, raise_open_files};
use crate::party::System;
use crate::report::Report;
use crate::series::{self, Contender, Task};
use crate::servers::{CLIENT_CPU, certificates};
use crate::{Common, Error};
use std::str::FromStr;

/// Bytes under way with `max`.
const WINDOW_BYTES: u64 = 128 << 10;

/// A load as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadName {
    /// The next batch when every subscriber has the last one.
    Lockstep,
    /// As fast as a window of records lets it.
    Max,
    /// Records per second, open loop.
    Rate(u64),
}

impl FromStr for LoadName {
    type Err = String;

    fn from_str(text: &str) -> Result<LoadName, String> {
        match text {
            "lockstep" => Ok(LoadName::Lockstep),
            "max" => Ok(LoadName::Max),
            _ => match text.trim_end_matches("/s").parse() {
                Ok(rate) if rate > 0 => Ok(LoadName::Rate(rate)),
                _ => Err(format!("`{text}` is neither lockstep, max nor a number of records per second")),
            },
        }
    }
}

impl LoadName {
    /// The load for values of this size.
    pub fn load(self, value_bytes: usize, batch: u64) -> Load {
        match self {
            LoadName::Rate(rate) => Load::Rate(rate),
            LoadName::Lockstep => Load::InFlight(batch),
            LoadName::Max => Load::InFlight((WINDOW_BYTES / value_bytes.max(16) as u64).max(2 * batch)),
        }
    }
}

/// What is combined.
#[derive(Clone, Debug, clap::Args)]
pub struct Grid {
    /// Systems, in the order of their turns; the first is set beside the others.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub systems: Vec<System>,
    /// Subscribers.
    #[arg(long, value_delimiter = ',')]
    pub subscribers: Vec<usize>,
    /// Bytes of a value; in place of --value-bytes.
    #[arg(long, value_delimiter = ',')]
    pub sizes: Vec<usize>,
    /// Loads: records per second (open loop), `max` (lossless, bounded window) or `lockstep`.
    #[arg(long, value_delimiter = ',')]
    pub rate: Vec<LoadName>,
    /// Records per publish, and with `max` and `lockstep` per flush.
    #[arg(long, value_delimiter = ',')]
    pub batch: Vec<u64>,
}

impl Grid {
    /// Fills in what the command line left open.
    pub fn or(mut self, systems: &[System], subscribers: &[usize], rate: &[LoadName], batch: &[u64]) -> Grid {
        let fill = |list: &mut Vec<usize>, with: &[usize]| {
            if list.is_empty() {
                list.extend_from_slice(with);
            }
        };
        fill(&mut self.subscribers, subscribers);
        if self.systems.is_empty() {
            self.systems.extend_from_slice(systems);
        }
        if self.batch.is_empty() {
            // The default batches belong to the default loads.
            self.batch.extend_from_slice(if self.rate.is_empty() { batch } else { &[1] });
        }
        if self.rate.is_empty() {
            self.rate.extend_from_slice(rate);
        }
        self
    }

    fn sizes(&self, common: &Common) -> Vec<usize> {
        if self.sizes.is_empty() { vec![common.value_bytes] } else { self.sizes.clone() }
    }
}

/// Measures and prints.
pub fn run(common: &Common, grid: &Grid) -> Result<(), Error> {
    if let Some(bad) = grid.subscribers.iter().find(|count| **count == 0) {
        return Err(format!("{bad} subscribers").into());
    }
    pin(CLIENT_CPU)?;
    raise_open_files();
    let sizes = grid.sizes(common);
    let tasks = grid.subscribers.len() * sizes.len() * grid.rate.len() * grid.batch.len();
    let mut report = Report::of(common, tasks * grid.systems.len() * common.runs)?;
    let keeper = certificates(common)?;
    let contenders: Vec<Contender> = grid.systems.iter().map(|system| Contender::new(*system)).collect();
    for &subscribers in &grid.subscribers {
        for &value_bytes in &sizes {
            let common = Common { value_bytes, ..common.clone() };
            for &rate in &grid.rate {
                for &batch in &grid.batch {
                    let load = rate.load(value_bytes, batch);
                    let task = Task { subscribers, load, batch: batch.max(1), throttle: None };
                    series::run(&common, &task, &contenders, &keeper.target.pki, &mut report)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_have_names() {
        assert_eq!("5000/s".parse(), Ok(LoadName::Rate(5_000)));
        assert_eq!("max".parse(), Ok(LoadName::Max));
        assert!("0".parse::<LoadName>().is_err());
        assert!("fast".parse::<LoadName>().is_err());
        assert_eq!(LoadName::Lockstep.load(256, 8), Load::InFlight(8));
        assert_eq!(LoadName::Max.load(1_024, 1), Load::InFlight(128));
        assert_eq!(LoadName::Max.load(64 << 10, 8), Load::InFlight(16));
    }
}
