//! **What**: one cell of a table: one system, one load, one run; started, warmed up, measured, ended.
//!
//! ```text
//! start server -> connect -> settle -> warm-up -> settle -> [cpu, ticks] load until all arrived [cpu, ticks] -> settle -> work
//! ```
//!
//! **Invariants**: the same steps for every system. A run with steal over 2 % is void.
//!
//! **Never**: a row without the facts that it depends on: packet size, records per flush, the clients' share of their CPU.
//!
//! **See**: `series.rs` (runs in turn), `load.rs`.

use crate::load::{Load, Phase, Tally};
use crate::machine::{Ticks, cpu_ns, now_ns, rss_bytes};
use crate::party::System;
use crate::roles::{Crew, Part};
use crate::servers::{Server, WORK_IS_TOLD_AFTER};
use crate::{Common, Error};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// Share of CPU time that the hypervisor may take, percent.
pub const STEAL_MAX_PERCENT: f64 = 2.0;
/// CPU time that others may use in a comparison, percent of all CPUs.
pub const OTHERS_MAX_PERCENT: f64 = 10.0;
/// Load before the measured one.
const WARM_UP: Duration = Duration::from_millis(500);
/// First part of the measured load that is not in the histograms: the server was idle before.
const LEAD_IN: Duration = Duration::from_millis(200);

/// What is run.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Who.
    pub system: System,
    /// Subscribers.
    pub subscribers: usize,
    /// How records are offered.
    pub load: Load,
    /// Records per publish.
    pub batch: u64,
    /// The last subscriber reads only this share of the rate.
    pub throttle: Option<f64>,
}

/// What one run gave: one line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The system.
    pub system: System,
    /// Label of the build, where two of one system are compared.
    pub build: String,
    /// Subscribers.
    pub subscribers: usize,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Open loop: records per second. None: as many as the window lets through.
    pub rate: Option<u64>,
    /// Closed loop: records under way.
    pub in_flight: Option<u64>,
    /// Records per publish.
    pub batch: u64,
    /// How broker and floor wait. Peers sleep in the kernel.
    pub wait: String,
    /// Cores of the broker.
    pub cores: usize,
    /// Client processes beside the publisher's; 0: all clients in one.
    pub processes: usize,
    /// Largest UDP payload that was allowed. TCP takes what the path carries.
    pub udp_payload: usize,
    /// Largest packet payload on the path: UDP payload or TCP segment.
    pub path_mtu: usize,
    /// Median, microseconds.
    pub p50_us: f64,
    /// Microseconds.
    pub p99_us: f64,
    /// Microseconds.
    pub p999_us: f64,
    /// Microseconds.
    pub max_us: f64,
    /// Records published.
    pub sent: u64,
    /// Records that arrived.
    pub deliveries: u64,
    /// Records that did not.
    pub lost: u64,
    /// From the first publish to the last arrival.
    pub deliveries_per_s: f64,
    /// CPU time of the serving process.
    pub cpu_ns_per_delivery: f64,
    /// The part of it that was not polling for nothing, where the server tells it.
    pub work_ns_per_delivery: Option<f64>,
    /// Records that the publisher gave to its transport at once.
    pub records_per_flush: f64,
    /// Time in which the clients had something to do: near 100 the clients are the limit, not the server.
    pub client_busy_percent: f64,
    /// Taken by the hypervisor.
    pub steal_percent: f64,
    /// CPU time of all CPUs that neither server nor clients used: what else ran on this machine.
    pub others_percent: f64,
    /// Memory of the serving process at the end.
    pub server_rss_mib: f64,
    /// Records that a throttled subscriber got.
    pub throttled_deliveries: u64,
    /// The server's settings.
    pub settings: String,
    /// (quantile, microseconds).
    pub percentiles: Vec<(f64, f64)>,
    /// (seconds, p50, p99, max in microseconds) by intended send time.
    pub timeline: Vec<(f64, f64, f64, f64)>,
}

impl Row {
    /// The hypervisor took too much for this run to say anything.
    pub fn is_void(&self) -> bool {
        self.steal_percent > STEAL_MAX_PERCENT
    }

    /// Others used so much of the machine that a comparison says nothing.
    pub fn is_crowded(&self) -> bool {
        self.others_percent > OTHERS_MAX_PERCENT
    }

    /// CPU of the server per delivery that can be compared: a server that polls for ever tells its work.
    pub fn cost_ns(&self) -> f64 {
        match self.work_ns_per_delivery {
            Some(work) if self.wait == "busy" => work,
            _ => self.cpu_ns_per_delivery,
        }
    }

    /// One line for the terminal.
    pub fn line(&self) -> String {
        let lost = if self.lost > 0 { format!("  LOST {}", self.lost) } else { String::new() };
        let void = match (self.is_void(), self.is_crowded()) {
            (true, _) => "  VOID (steal)",
            (_, true) => "  VOID (others)",
            _ => "",
        };
        format!(
            "{:<13} {:>4} subs {:>5} B {:>9} p50 {:>8.1} p99 {:>8.1} p99.9 {:>8.1} us  {:>9.0}/s  cost {:>6.0} ns  \
             clients {:>3.0} %  others {:.0} %  steal {:.1} %{lost}{void}",
            format!("{}{}", self.system.name(), self.build),
            self.subscribers,
            self.value_bytes,
            self.load_name(),
            self.p50_us,
            self.p99_us,
            self.p999_us,
            self.deliveries_per_s,
            self.cost_ns(),
            self.client_busy_percent,
            self.others_percent,
            self.steal_percent,
        )
    }

    /// The load in a word.
    pub fn load_name(&self) -> String {
        match (self.rate, self.in_flight) {
            (Some(rate), _) => format!("{rate}/s"),
            (None, Some(window)) if window == self.batch => format!("lock x{}", self.batch),
            _ => "max".to_string(),
        }
    }
}

/// Runs one cell.
pub fn run(common: &Common, cell: &Cell, pki: &Path) -> Result<Row, Error> {
    let server = Server::start(cell.system, common, pki)?;
    measure(common, cell, &server).map_err(|error| format!("{}: {error}", cell.system.name()).into())
}

/// Runs one cell against a server that runs.
pub fn measure(common: &Common, cell: &Cell, server: &Server) -> Result<Row, Error> {
    let part = Part {
        target: server.target.clone(),
        publisher: true,
        subscribers: cell.subscribers,
        value_bytes: common.value_bytes,
        udp_payload: common.udp_payload,
    };
    let mut crew = Crew::connect(&part, common.processes)?;
    crew.settle(Duration::from_millis(400))?;
    let counted = cell.subscribers as u64 - u64::from(cell.throttle.is_some());
    if let (Some(share), Load::Rate(rate)) = (cell.throttle, cell.load) {
        crew.throttle_last((share * rate as f64 * common.value_bytes as f64) as u64)?;
    }
    let mut phase = Phase {
        start_ns: now_ns() + START_AHEAD_NS,
        length: WARM_UP,
        load: cell.load,
        batch: cell.batch,
        lead_in: Duration::ZERO,
    };
    let warm = crew.run(&phase)?;
    if warm.deliveries == 0 {
        return Err("nothing arrived in the warm-up".into());
    }
    crew.settle(WORK_IS_TOLD_AFTER)?;

    let work_before = server.work_ns()?;
    let cpu_before = cpu_ns(server.pid())?;
    let clients_before = crew.cpu_ns()?;
    let ticks_before = Ticks::now();
    phase.start_ns = now_ns() + START_AHEAD_NS;
    phase.length = Duration::from_secs(common.seconds).max(Duration::from_millis(500));
    phase.lead_in = LEAD_IN;
    let tally = crew.run(&phase)?;
    let cpu = cpu_ns(server.pid())? - cpu_before;
    let clients_cpu = crew.cpu_ns()? - clients_before;
    let ticks = Ticks::now();
    let rss = rss_bytes(server.pid())?;
    crew.settle(WORK_IS_TOLD_AFTER)?;
    let work = match (server.work_ns()?, work_before) {
        (Some(after), Some(before)) => Some(after - before),
        _ => None,
    };

    let deliveries = tally.deliveries.max(1) as f64;
    let us = |q: f64| tally.latency.value_at_quantile(q) as f64 / 1e3;
    Ok(Row {
        system: cell.system,
        build: String::new(),
        subscribers: cell.subscribers,
        value_bytes: common.value_bytes,
        rate: if let Load::Rate(rate) = cell.load { Some(rate) } else { None },
        in_flight: if let Load::InFlight(window) = cell.load { Some(window) } else { None },
        batch: cell.batch,
        wait: common.wait.name().to_string(),
        cores: common.cores,
        processes: common.processes,
        udp_payload: common.udp_payload,
        path_mtu: crew.path_mtu(),
        p50_us: us(0.5),
        p99_us: us(0.99),
        p999_us: us(0.999),
        max_us: tally.latency.max() as f64 / 1e3,
        sent: tally.sent,
        deliveries: tally.deliveries,
        lost: (tally.sent * counted).saturating_sub(tally.deliveries),
        deliveries_per_s: tally.deliveries as f64 / (tally.wall_ns.max(1) as f64 / 1e9),
        cpu_ns_per_delivery: cpu as f64 / deliveries,
        work_ns_per_delivery: work.map(|work| work as f64 / deliveries),
        records_per_flush: tally.sent as f64 / tally.flushes.max(1) as f64,
        client_busy_percent: tally.busy_ns as f64 / tally.wall_ns.max(1) as f64 * 100.0,
        steal_percent: ticks.steal_percent(ticks_before),
        others_percent: ticks.others_percent(ticks_before, cpu + clients_cpu),
        server_rss_mib: rss as f64 / (1 << 20) as f64,
        throttled_deliveries: tally.throttled_deliveries,
        settings: server.settings.clone(),
        percentiles: percentiles(&tally.latency),
        timeline: timeline(&tally, phase.length),
    })
}

/// Time for the client processes to be told of a start.
const START_AHEAD_NS: u64 = 20_000_000;

/// The curve from the median to the maximum, in steps of equal width on the axis 1 / (1 - q).
fn percentiles(latency: &Histogram<u64>) -> Vec<(f64, f64)> {
    let steps = (0..=50).map(|step| 1.0 - 10f64.powf(-f64::from(step) / 10.0));
    // A quantile that the number of records does not carry would only repeat the maximum.
    let carried = steps.take_while(|q| (1.0 - q) * latency.len() as f64 >= 1.0);
    carried.map(|q| (q, latency.value_at_quantile(q) as f64 / 1e3)).collect()
}

fn timeline(tally: &Tally, length: Duration) -> Vec<(f64, f64, f64, f64)> {
    let width = length.as_secs_f64() / tally.slices.len() as f64;
    let us = |value: u64| value as f64 / 1e3;
    let filled = tally.slices.iter().enumerate().filter(|(_, slice)| !slice.is_empty());
    filled
        .map(|(at, slice)| {
            let at_quantile = |q| us(slice.value_at_quantile(q));
            ((at as f64 + 0.5) * width, at_quantile(0.5), at_quantile(0.99), us(slice.max()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_ends_where_the_records_end() {
        let mut latency = Histogram::<u64>::new_with_bounds(1, 1_000_000, 3).unwrap();
        (1..=1_000).for_each(|value| latency.saturating_record(value));
        let curve = percentiles(&latency);
        assert_eq!(curve.first().unwrap().0, 0.0);
        let (last, us) = *curve.last().unwrap();
        assert!(last <= 0.999 && last > 0.99, "{last}");
        assert!((us - 1.0).abs() < 0.01, "{us}");
        assert!(curve.windows(2).all(|pair| pair[0].1 <= pair[1].1));
    }
}
