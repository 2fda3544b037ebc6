//! **What**: `felix-bench`: measures a broker from outside, beside the floor that the same machine gives in the same run.
//!
//! ```text
//! latency      one publisher, one subscriber, open loop at a fixed rate
//! fanout       one publisher, N subscribers: open loop at fixed rates, max without loss, or lockstep (cost per delivery)
//! peers        the same for Felix, NATS, Redis and Mosquitto in turn, with ratios
//! floors       what machine and libraries give: UDP, bare QUIC, AES-GCM, disk, memcpy
//! sweep        rate up until p99 breaks a bound: the knee
//! slow         one subscriber that hardly reads, among many
//! connections  memory per idle connection, first record of a new subscriber among them, reconnect storm
//! soak         many records through, none lost or reordered, memory looked at
//! compare      two builds of the broker in turn
//! durable      ack latency and acks per second of every durability, beside the disk, JetStream and Redis Streams
//! replay       history read from the beginning, beside disk and relay; the tail of another stream meanwhile
//! check        cost beside the bare relay against the ratios in bench/baselines
//! results      tables and plots from JSON lines
//! floor, role  serve as the bare relay, drive some of the clients (started by the others)
//! ```
//!
//! **Invariants**: server and clients are different processes on different CPUs; all systems get the same loop, payload
//! and rates on the client's side. Latency counts from the intended send time.
//!
//! **Never**: an assertion on a time.
//!
//! **See**: `load.rs` (the loop), `party.rs` (the clients), `servers.rs` (who is measured), `floors/` (what is possible).

mod acks;
mod cell;
mod check;
mod compare;
mod connections;
mod durable;
mod floors;
mod grid;
mod ground;
mod lean;
mod load;
mod machine;
mod party;
mod peers;
mod plot;
mod quic_party;
mod replay;
mod report;
mod results;
mod roles;
mod series;
mod servers;
mod slow;
mod soak;
mod storm;
mod sweep;
mod wire;

use crate::grid::{Grid, LoadName};
use crate::party::System;
use crate::sweep::Sweep;
use clap::{Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Any failure ends the run with a sentence.
type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
#[command(name = "felix-bench", version, about = "Measures a Felix broker beside the floor of the machine")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// How the serving process waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wait {
    Busy,
    Hybrid,
    Park,
}

impl Wait {
    fn name(self) -> &'static str {
        match self {
            Wait::Busy => "busy",
            Wait::Hybrid => "hybrid",
            Wait::Park => "park",
        }
    }

    /// How long a server polls after its last work before it sleeps.
    fn spin(self) -> Duration {
        match self {
            Wait::Busy => Duration::MAX,
            // The broker's default.
            Wait::Hybrid => Duration::from_micros(50),
            Wait::Park => Duration::ZERO,
        }
    }
}

/// Systems of `peers`: Felix beside each.
const PEERS: &[System] = &[System::Felix, System::NatsTls, System::Nats, System::RedisTls, System::MosquittoTls];
/// Loads of `peers`.
const PEER_LOADS: &[LoadName] = &[LoadName::Rate(1_000), LoadName::Rate(5_000)];

#[derive(clap::Args, Clone, Debug)]
struct Common {
    /// The broker binary.
    #[arg(long, default_value = "target/release/felix-broker")]
    broker: PathBuf,
    /// Rounds: each runs once per round, in turn; medians are reported.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Bytes of a record's value.
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// How the serving process waits.
    #[arg(long, value_enum, default_value_t = Wait::Busy)]
    wait: Wait,
    /// Largest UDP payload; path MTU discovery goes up to it.
    #[arg(long, default_value_t = 1_452)]
    udp_payload: usize,
    /// Seconds of load per run.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Cores of the broker, on CPUs 0, 1, ... (the clients are on CPU 1).
    #[arg(long, default_value_t = 1)]
    cores: usize,
    /// All cores of the broker on CPU 0, where no client is: what a core more costs, not what it gives.
    #[arg(long)]
    one_cpu: bool,
    /// Processes that share the subscribers, beside one for the publisher; 0: one process with all clients.
    #[arg(long, default_value_t = 0)]
    processes: usize,
    /// File that JSON lines are appended to.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Publish to subscriber, one of each, open loop; the bare relay in turn.
    Latency {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        grid: Grid,
    },
    /// One publisher, many subscribers; the bare relay in turn.
    Fanout {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        grid: Grid,
    },
    /// Felix, NATS, Redis and Mosquitto in turn.
    Peers {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        grid: Grid,
    },
    /// What machine and libraries give.
    Floors {
        #[command(flatten)]
        common: Common,
        /// A folder on the disk that matters.
        #[arg(long, default_value = ".felix")]
        data: PathBuf,
        /// Leave the bare QUIC relay out.
        #[arg(long)]
        no_relay: bool,
    },
    /// Rate up until p99 breaks a bound.
    Sweep {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        sweep: Sweep,
    },
    /// One slow subscriber among many; the same without it in turn.
    Slow {
        #[command(flatten)]
        common: Common,
        /// Systems, one after the other.
        #[arg(long, value_enum, value_delimiter = ',', default_value = "felix")]
        systems: Vec<System>,
        /// Subscribers, the slow one included.
        #[arg(long, default_value_t = 100)]
        subscribers: usize,
        /// Records per second.
        #[arg(long, default_value_t = 1_000)]
        rate: u64,
        /// What the slow one reads, as a share of the rate.
        #[arg(long, default_value_t = 0.01)]
        share: f64,
    },
    /// Two builds of the broker in turn: --broker is the new one.
    Compare {
        #[command(flatten)]
        common: Common,
        /// The broker binary to compare with.
        base: PathBuf,
    },
    /// Cost beside the bare relay against a baseline; fails if it is worse than the slack allows.
    Check {
        #[command(flatten)]
        common: Common,
        /// The baseline.
        #[arg(long, default_value = "bench/baselines/ratios.json")]
        baseline: PathBuf,
        /// Write what was measured into it.
        #[arg(long)]
        write: bool,
    },
    /// Tables and plots from JSON lines.
    Results {
        /// The lines.
        file: PathBuf,
        /// The page.
        #[arg(long, default_value = "bench/RESULTS.md")]
        page: PathBuf,
        /// Folder of the plots, beside the page.
        #[arg(long, default_value = "bench/plots")]
        plots: PathBuf,
    },
    /// Memory of idle connections, then a reconnect storm.
    Connections {
        #[command(flatten)]
        common: Common,
        /// Idle connections.
        #[arg(long, default_value_t = 10_000)]
        count: usize,
    },
    /// Many records, none lost or reordered.
    Soak {
        #[command(flatten)]
        common: Common,
        /// Records.
        #[arg(long, default_value_t = 10_000_000)]
        records: u64,
        /// Records per batch.
        #[arg(long, default_value_t = 64)]
        batch: u64,
        /// Minutes, in place of a number of records.
        #[arg(long)]
        minutes: Option<u64>,
    },
    /// What an acknowledged record costs: every durability of Felix, the disk alone, JetStream, Redis Streams in turn.
    Durable {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: durable::DurableArgs,
    },
    /// History of a durable stream read back, beside the disk, the bare relay and the tail of another stream.
    Replay {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: replay::ReplayArgs,
    },
    /// CPU of an idle broker.
    Idle {
        #[command(flatten)]
        common: Common,
    },
    /// Drives some of the clients of a run.
    #[command(hide = true)]
    Role {
        /// Which, as JSON.
        part: String,
    },
    /// Serves as the bare quiche relay.
    #[command(hide = true)]
    Floor {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        pki: PathBuf,
        #[arg(long, value_enum)]
        wait: Wait,
        #[arg(long)]
        cpu: usize,
        #[arg(long)]
        udp_payload: usize,
        /// File that tells how long it really worked, ns.
        #[arg(long)]
        report: PathBuf,
    },
}

fn main() -> Result<(), Error> {
    match Cli::parse().command {
        Command::Latency { common, grid } => {
            grid::run(&common, &grid.or(&[System::Felix, System::Floor], &[1], &[LoadName::Rate(2_000)], &[1]))
        }
        Command::Fanout { common, grid } => {
            grid::run(&common, &grid.or(&[System::Felix, System::Floor], &[100], &[LoadName::Lockstep], &[1, 8]))
        }
        Command::Peers { common, grid } => grid::run(&common, &grid.or(PEERS, &[1, 10, 100], PEER_LOADS, &[1])),
        Command::Role { part } => roles::serve(&part),
        Command::Connections { common, count } => connections::run(&common, count),
        Command::Soak { common, records, batch, minutes } => soak::run(&common, records, batch.max(1), minutes),
        Command::Floors { common, data, no_relay } => ground::run(&common, &data, !no_relay),
        Command::Sweep { common, sweep } => sweep::run(&common, &sweep),
        Command::Slow { common, systems, subscribers, rate, share } => {
            slow::run(&common, &systems, subscribers, rate, share)
        }
        Command::Compare { common, base } => compare::run(&common, &base),
        Command::Check { common, baseline, write } => check::run(&common, &baseline, write),
        Command::Durable { common, args } => durable::run(&common, &args),
        Command::Replay { common, args } => replay::run(&common, &args),
        Command::Results { file, page, plots } => results::run(&file, &page, &plots),
        Command::Idle { common } => machine::idle(&common),
        Command::Floor { listen, pki, wait, cpu, udp_payload, report } => {
            machine::pin(cpu)?;
            floors::relay::serve(listen, &pki, wait.spin(), udp_payload, &report)
        }
    }
}
