//! What durable metadata costs on this disk: `durable_cost FOLDER STREAMS` opens the metadata in FOLDER or makes them,
//! adds that many streams, and opens them again. Prints the time of each start, the latency of a proposal and the
//! longest time for which the control thread did nothing else.

use felix_control::authorise::Principal;
use felix_control::node::{ControlNode, Identity, NodeSettings};
use felix_protocol::ids::{ClusterId, NodeId};
use felix_protocol::metadata::{Command, StreamSpec, TenantLimits};
use felix_protocol::names::StreamName;
use felix_protocol::time::Timestamp;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const IDENTITY: Identity = Identity { cluster: ClusterId(1), node: NodeId(2) };

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, streams] = &arguments[..] else { panic!("usage: durable_cost FOLDER STREAMS") };
    let (folder, streams) = (PathBuf::from(folder), streams.parse().expect("a number of streams"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let node = start(&folder).await;
        fill(&node, streams).await;
        node.shutdown().await;
        start(&folder).await.shutdown().await;
    });
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
    println!("{} {what}, us: p50 {} p99 {} max {}", times.len(), at(0.5), at(0.99), at(1.0));
}

async fn start(folder: &Path) -> ControlNode {
    let begin = Instant::now();
    let node = ControlNode::open(folder, IDENTITY, NodeSettings::default()).await.unwrap();
    let (time, entries) = (begin.elapsed(), node.log_next_index() - node.log_first_index());
    println!(
        "start: {time:?} with {} streams, {entries} entries after the snapshot",
        node.read(|it| it.streams().count())
    );
    node
}

async fn fill(node: &ControlNode, streams: usize) {
    let there = node.read(|state| state.streams().count());
    if there == 0 {
        let limits = TenantLimits { streams_max: u32::MAX, shards_max: u32::MAX, retained_bytes_max: u64::MAX };
        run(node, Command::CreateTenant { tenant: "acme".into(), limits }).await;
    }
    let stall = tokio::spawn(async {
        let mut last = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            LONGEST_US.fetch_max(last.elapsed().as_micros() as u64, Ordering::Relaxed);
            last = Instant::now();
        }
    });
    let mut times = Vec::with_capacity(streams);
    for at in there..there + streams {
        times.push(run(node, create(at)).await);
    }
    report("proposals", times);
    stall.abort();
    println!("longest stall of the thread: {} us", LONGEST_US.load(Ordering::Relaxed));
}

static LONGEST_US: AtomicU64 = AtomicU64::new(0);
