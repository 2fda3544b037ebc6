//! A process that proposes and says what was acknowledged, killed at moments it cannot know: every line it got out is
//! true after the restart.

mod folders;

use felix_control::authorise::Principal;
use felix_control::node::{ControlNode, NodeSettings};
use felix_control::state::State;
use felix_protocol::metadata::{Command, StreamSpec};
use felix_protocol::names::StreamName;
use felix_protocol::time::Timestamp;
use folders::{TempFolder, identity, on_runtime, reopened};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

const FOLDER: &str = "FELIX_KILLED_FOLDER";
const KILLS: usize = 20;
const SETTINGS: NodeSettings =
    NodeSettings { watch_changes_max: 64, snapshot_after_bytes: Some(4_000), durable_streams: false };

/// Streams come and go, so that snapshots stay small and every kind of change is cut off once.
fn command(at: u64) -> Command {
    let name = StreamName::parse(&format!("t/n/s{}", at / 2 % 50)).unwrap();
    match at % 2 {
        0 => Command::CreateStream { name, spec: StreamSpec::default(), create_parents: true },
        _ => Command::DeleteStream { name },
    }
}

/// The child. Not a test by itself: the one below starts it.
#[test]
#[ignore = "started by the test below"]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    on_runtime(async {
        let node = ControlNode::open(Path::new(&folder), identity(), SETTINGS).await.unwrap();
        loop {
            let at = node.read(State::version);
            let done = node.propose(Timestamp(at), &Principal::admin(), u128::from(at) + 1, command(at)).await.unwrap();
            done.outcome.unwrap();
            // One write of a few bytes: a pipe takes it whole or not at all.
            std::io::stderr().write_all(format!("acked {}\n", done.version).as_bytes()).unwrap();
        }
    });
}

#[test]
fn what_a_killed_process_acknowledged_is_there() {
    let folder = TempFolder::new("killed");
    let mut acked = 0;
    // Children that died since `acked` was known: each may have done one more without a word.
    let mut silent = 0;
    // A fixed seed: the moments are spread, and the same in each run as far as the machine allows.
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for kill in 0..KILLS {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Killed after some acknowledgements and a moment more; now and then before the first.
        let count = if kill % 5 == 4 { 0 } else { 1 + random % 60 };
        let mut last = acked;
        let mut take = |line: String| {
            let version = line.strip_prefix("acked ").unwrap_or_else(|| panic!("{line}")).parse::<u64>().unwrap();
            assert!((last + 1..=last + 1 + silent).contains(&version), "{version} after {last}, {silent} unknown");
            (silent, last) = (0, version);
        };
        for _ in 0..count {
            take(lines.next().expect("the child lives until it is killed").unwrap());
        }
        std::thread::sleep(std::time::Duration::from_micros(random % 20_000));
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still got out counts too.
        lines.map_while(Result::ok).for_each(take);
        acked = last;
        silent += 1;
        if kill % 4 == 3 {
            let version = reopened(folder.path(), |node| {
                node.read(|state| {
                    state.check_invariants().unwrap();
                    state.version()
                })
            });
            let version = version.unwrap_or_else(|error| panic!("kill {kill}: {error}"));
            assert!(version >= acked, "{acked} were acknowledged, {version} are there");
            assert!(version <= acked + silent, "{acked} were acknowledged, {silent} unknown, {version} are there");
            (acked, silent) = (version, 0);
        }
    }
    assert!(acked > 50, "{acked} acknowledged in {KILLS} lives");
}
