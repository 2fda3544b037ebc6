//! **What**: the command line of `felix-broker`.
//!
//! **Invariants**: every option has a default that works on one machine; names carry their unit.
//!
//! **Never**: an option that nothing reads.
//!
//! **See**: `boot.rs`, which turns it into a running broker.

use crate::io::wait::WaitMode;
use crate::tools::args;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The Felix broker.
#[derive(Debug, Parser)]
#[command(name = "felix-broker", version, about, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs a single-node broker for development: makes its own certificates and a context file for clients.
    #[command(after_help = DEV_HELP)]
    Dev(DevArgs),
    /// Checks whether this machine can run a broker, and says what to change if not.
    SelfCheck(CheckArgs),
    /// Verifies the data folder of a stopped broker, byte by byte.
    #[command(after_help = args::CHECK_HELP)]
    Check(args::CheckArgs),
    /// Shows what is in a segment, a meta or the WALs of a data folder.
    #[command(after_help = args::DUMP_HELP)]
    Dump(args::DumpArgs),
    /// Lists, rotates and destroys the keys that streams are sealed with at rest; also beside a running broker.
    #[command(after_help = args::KEYRING_HELP)]
    Keyring(args::KeyringArgs),
    /// Carries out a decision about damage in a data folder; a dry run without --i-understand.
    #[command(after_help = args::REPAIR_HELP)]
    Repair(args::RepairArgs),
    /// Makes a data folder from what `felix backup` saved.
    #[command(after_help = args::RESTORE_HELP)]
    Restore(args::RestoreArgs),
}

const DEV_HELP: &str = "Examples:
  felix-broker dev
  felix-broker dev --data /var/lib/felix --listen 0.0.0.0:4433 --http 127.0.0.1:8080 --cores 4
  felix-broker dev --cores 1 --cpus 0 --wait busy      lowest latency: owns CPU 0

The broker is ready when GET http://HTTP/readyz answers 200; DATA/context.toml is written before that.
Clients use it with:  felix --context DATA/context.toml ...  or  FELIX_CONTEXT=DATA/context.toml
Signals: SIGTERM drains and stops, SIGHUP reads the certificate files and the keyring again.";

/// Options of `dev`.
#[derive(Clone, Debug, Args)]
pub struct DevArgs {
    /// Data folder: identity, keys, development certificates, context.toml.
    #[arg(long, value_name = "DIR", default_value = ".felix")]
    pub data: PathBuf,
    /// The keyring: keys of streams that are sealed at rest. Default: DATA/secrets/keyring, made at the first start.
    #[arg(long, value_name = "FILE")]
    pub keyring: Option<PathBuf>,
    /// UDP address for clients (QUIC). Port 0: the system chooses.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4433")]
    pub listen: SocketAddr,
    /// TCP address for /metrics, /healthz and /readyz. Keep it on loopback: it has no authentication.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub http: SocketAddr,
    /// Cores to run. Default: one per CPU this process may use.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub cores: Option<u8>,
    /// CPUs to pin the cores to, in order. Default: the CPUs this process may use, if there are enough.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cpus: Option<Vec<usize>>,
    /// How an idle core waits.
    #[arg(long, value_enum, default_value_t = Wait::Hybrid)]
    pub wait: Wait,
    /// With --wait hybrid: microseconds a core polls after its last work before it parks.
    #[arg(long, value_name = "US", default_value_t = 50)]
    pub spin_us: u64,
    /// Do not steer packets to cores in the kernel; packets that land wrong go through the mesh. For tests.
    #[arg(long)]
    pub no_steering: bool,
    /// Largest UDP payload to send; path MTU discovery finds what the path carries up to this.
    #[arg(long, value_name = "BYTES", default_value_t = 16_383)]
    pub udp_payload_max: usize,
    /// Connections of one core.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub connections_max: usize,
    /// Handshakes in flight on one core beyond which new clients must prove their address first (QUIC Retry).
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub retry_above: usize,
    /// Start although a write-ahead log lost acknowledged data: keep what is whole, and the log in quarantine.
    #[arg(long)]
    pub accept_wal_loss: bool,
    /// Milliseconds that clients get to go away after SIGTERM.
    #[arg(long, value_name = "MS", default_value_t = 5_000)]
    pub drain_ms: u64,
}

/// Options of `self-check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Cores the broker would run.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub cores: Option<u8>,
}

/// How an idle core waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wait {
    /// Never sleeps: lowest latency, owns its CPU.
    Busy,
    /// Polls for a while, then sleeps.
    Hybrid,
    /// Sleeps at once: for small machines and tests.
    Park,
}

impl From<Wait> for WaitMode {
    fn from(wait: Wait) -> WaitMode {
        match wait {
            Wait::Busy => WaitMode::Busy,
            Wait::Hybrid => WaitMode::Hybrid,
            Wait::Park => WaitMode::Park,
        }
    }
}
