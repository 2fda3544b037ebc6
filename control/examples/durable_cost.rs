//! What durable metadata costs on this disk: `durable_cost FOLDER [STREAMS]`. The folder must not exist. Prints the
//! latency of proposals with and without a large state behind them, the stall of a snapshot, and the time of a start.

use felix_control::authorise::Principal;
use felix_control::node::{ControlNode, Identity, NodeSettings};
use felix_control::state::State;
use felix_protocol::ids::{ClusterId, NodeId};
use felix_protocol::metadata::{Command, StreamSpec, TenantLimits};
use felix_protocol::names::StreamName;
use felix_protocol::time::Timestamp;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const IDENTITY: Identity = Identity { cluster: ClusterId(1), node: NodeId(2) };
const WARM: usize = 2_000;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().expect("usage: durable_cost FOLDER [STREAMS]"));
    let streams = arguments.next().map_or(100_000, |text| text.parse().expect("a number of streams"));
    assert!(!folder.exists(), "{} exists", folder.display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(fill(&folder, streams));
    runtime.block_on(start(&folder, streams));
    runtime.block_on(start(&folder, streams));
}

async fn run(node: &ControlNode, command: Command) -> Duration {
    let begin = Instant::now();
    let done = node.propose(Timestamp(1), &Principal::admin(), 0, command).await.unwrap();
    done.outcome.unwrap();
    begin.elapsed()
}

fn create(at: usize) -> Command {
    let name = StreamName::parse(&format!("acme/md/stream-{at:06}")).unwrap();
    Command::CreateStream { name, spec: StreamSpec::default(), create_parents: true }
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_micros();
    println!("{what}: {} proposals, us: p50 {} p99 {} max {}", times.len(), at(0.5), at(0.99), at(1.0));
}

async fn fill(folder: &Path, streams: usize) {
    let begin = Instant::now();
    let node = ControlNode::open(folder, IDENTITY, NodeSettings::default()).await.unwrap();
    println!("first start: {:?}", begin.elapsed());
    let limits = TenantLimits { streams_max: u32::MAX, shards_max: u32::MAX, retained_bytes_max: u64::MAX };
    run(&node, Command::CreateTenant { tenant: "acme".into(), limits }).await;
    // The longest time for which the control thread did nothing else.
    let stall = tokio::spawn(async {
        let mut longest = Duration::ZERO;
        let mut last = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            longest = longest.max(last.elapsed());
            last = Instant::now();
            LONGEST.store(longest.as_micros() as u64, std::sync::atomic::Ordering::Relaxed);
        }
    });
    let begin = Instant::now();
    let mut times = Vec::with_capacity(streams);
    for at in 0..streams {
        times.push(run(&node, create(at)).await);
    }
    println!("{streams} streams made in {:?}", begin.elapsed());
    report("empty state", times[..WARM.min(streams)].to_vec());
    report("full state", times[streams - WARM.min(streams)..].to_vec());
    report("all", times);
    stall.abort();
    println!("longest stall of the thread: {} us", LONGEST.load(std::sync::atomic::Ordering::Relaxed));
    node.shutdown().await;
}

static LONGEST: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

async fn start(folder: &Path, streams: usize) {
    let begin = Instant::now();
    let node = ControlNode::open(folder, IDENTITY, NodeSettings::default()).await.unwrap();
    let (first, next) = (node.log_first_index(), node.log_next_index());
    println!("start: {:?}, snapshot and {} entries", begin.elapsed(), next - first);
    assert_eq!(node.read(State::version), streams as u64 + 1);
    node.shutdown().await;
}
