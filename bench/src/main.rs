//! **What**: `felix-bench`: measures a broker from outside, beside the floor that the same machine gives in the same run.
//!
//! ```text
//! latency      one publisher, one subscriber, fixed rate: the broker, then a bare quiche relay, in turn
//! fanout       one publisher, N subscribers, in lockstep: CPU of the serving process per delivery, both in turn
//! connections  memory per idle connection, both; time to the first record of a new subscriber among them
//! soak         many records through, none lost or reordered
//! floor        serves as the bare relay (started by the others)
//! ```
//!
//! **Invariants**: server and clients are different processes on different CPUs; broker and floor get the same client,
//! payload, sockets and waiting. Latency counts from the intended send time.
//!
//! **Never**: an assertion on a time.
//!
//! **See**: `lean.rs` (the client), `floors/relay.rs` (the floor), `servers.rs` (who is measured).

mod connections;
mod fanout;
mod floors;
mod latency;
mod lean;
mod machine;
mod servers;
mod soak;
mod wire;

use clap::{Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;

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
}

#[derive(clap::Args, Clone, Debug)]
struct Common {
    /// The broker binary.
    #[arg(long, default_value = "target/release/felix-broker")]
    broker: PathBuf,
    /// Runs of each, in turn; medians are reported.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Bytes of a record's value.
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// How the serving process waits.
    #[arg(long, value_enum, default_value_t = Wait::Busy)]
    wait: Wait,
    /// Largest UDP payload.
    #[arg(long, default_value_t = 1_452)]
    udp_payload: usize,
}

#[derive(Subcommand)]
enum Command {
    /// Publish to subscriber, one of each.
    Latency {
        #[command(flatten)]
        common: Common,
        /// Records per second.
        #[arg(long, default_value_t = 2_000)]
        rate: u64,
        /// Seconds per run.
        #[arg(long, default_value_t = 3)]
        seconds: u64,
    },
    /// CPU of the serving process per delivery to many subscribers.
    Fanout {
        #[command(flatten)]
        common: Common,
        /// Subscribers.
        #[arg(long, default_value_t = 100)]
        subscribers: usize,
        /// Records per flush.
        #[arg(long, value_delimiter = ',', default_value = "1,8")]
        records: Vec<usize>,
        /// Rounds per run.
        #[arg(long, default_value_t = 2_000)]
        rounds: u64,
    },
    /// Memory of idle connections.
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
    },
    /// CPU of an idle broker.
    Idle {
        #[command(flatten)]
        common: Common,
        /// Seconds.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
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
        Command::Latency { common, rate, seconds } => latency::run(&common, rate, seconds),
        Command::Fanout { common, subscribers, records, rounds } => fanout::run(&common, subscribers, &records, rounds),
        Command::Connections { common, count } => connections::run(&common, count),
        Command::Soak { common, records, batch } => soak::run(&common, records, batch),
        Command::Idle { common, seconds } => machine::idle(&common, seconds),
        Command::Floor { listen, pki, wait, cpu, udp_payload, report } => {
            machine::pin(cpu)?;
            floors::relay::serve(listen, &pki, wait == Wait::Busy, udp_payload, &report)
        }
    }
}
