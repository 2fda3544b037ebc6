//! The durable member over real files: restarts, crashes at any point, damage.

mod folders;

use felix_control::authorise::Principal;
use felix_control::command::Internal;
use felix_control::member::{Member, MemberSettings};
use felix_control::node::{ControlNode, NodeSettings, ProposeError};
use felix_control::raft_folder::OpenError;
use felix_control::snapshot;
use felix_control::state::{Applied, State};
use felix_control::watch::Change;
use felix_protocol::ids::{CoreId, NodeId, NodeSession};
use felix_protocol::metadata::{Command, StreamChanges, StreamSpec};
use felix_protocol::names::StreamName;
use felix_protocol::time::Timestamp;
use folders::{TempFolder, copy_folder, identity, on_runtime, reopened};
use std::path::Path;

fn name(at: usize) -> StreamName {
    StreamName::parse(&format!("t/n/s{at}")).unwrap()
}

fn create(at: usize) -> Command {
    Command::CreateStream { name: name(at), spec: StreamSpec::default(), create_parents: true }
}

fn delete(at: usize) -> Command {
    Command::DeleteStream { name: name(at) }
}

fn alter(at: usize) -> Command {
    let changes = StreamChanges { retention_bytes: Some(1 << 20), ..StreamChanges::default() };
    Command::AlterStream { name: name(at), changes, if_version: None }
}

async fn propose(node: &ControlNode, key: u128, command: Command) -> Applied {
    node.propose(Timestamp(key as u64), &Principal::admin(), key, command).await.unwrap()
}

fn bytes(node: &ControlNode) -> Vec<u8> {
    node.read(|state| snapshot::encode(state).unwrap())
}

async fn open(folder: &Path) -> ControlNode {
    ControlNode::open(folder, identity(), NodeSettings::default()).await.unwrap()
}

/// Snapshots all the time.
const EAGER: NodeSettings =
    NodeSettings { watch_changes_max: 4_096, snapshot_after_bytes: Some(1_000), durable_streams: false };

#[test]
fn what_was_committed_is_there_after_a_restart() {
    let folder = TempFolder::new("restart");
    on_runtime(async {
        let node = open(folder.path()).await;
        for at in 0..5 {
            propose(&node, at as u128 + 1, create(at)).await.outcome.unwrap();
        }
        propose(&node, 10, alter(1)).await.outcome.unwrap();
        propose(&node, 11, delete(2)).await.outcome.unwrap();
        propose(&node, 12, delete(2)).await.outcome.unwrap_err();
        let before = bytes(&node);
        node.shutdown().await;
        let node = open(folder.path()).await;
        assert_eq!(bytes(&node), before);
        // A repeat is a repeat after a restart too.
        let repeat = propose(&node, 10, alter(1)).await;
        assert_eq!((repeat.version, repeat.changes), (6, vec![]));
        node.shutdown().await;
    });
}

/// Ephemeral streams lose their data with each start and take a new lineage; ids and lineages go on where they were.
#[test]
fn a_start_gives_new_lineages_but_never_an_old_number() {
    let folder = TempFolder::new("lineage");
    let mut lineages = Vec::new();
    let mut firsts = Vec::new();
    for session in 1..=3 {
        on_runtime(async {
            let node = open(folder.path()).await;
            let start = Internal::StartNode { node: NodeId(0xa1), session: NodeSession(session) };
            let started = node.propose_internal(Timestamp(session), start.clone()).await.unwrap();
            started.outcome.unwrap();
            let block = Internal::AllocateProducers { core: CoreId(0), count: 10 };
            let block = node.propose_internal(Timestamp(session), block).await.unwrap().producers.unwrap();
            firsts.push(block.first.0);
            propose(&node, session.into(), create(session as usize)).await.outcome.unwrap();
            lineages.push(node.read(|state| state.streams().map(|it| it.shards[0].lineage.0).collect::<Vec<_>>()));
            // The same start again is refused: it was committed.
            let again = node.propose_internal(Timestamp(session), start).await.unwrap();
            again.outcome.unwrap_err();
            node.shutdown().await;
        });
    }
    assert_eq!(firsts, [1, 11, 21]);
    assert_eq!(lineages, [vec![1], vec![2, 3], vec![4, 4, 5]]);
}

/// A node and a member in memory, given the same, hold the same; through restarts and snapshots too.
#[test]
fn a_node_is_what_its_commands_make_it() {
    let folder = TempFolder::new("equal");
    let mut member = Member::new(MemberSettings::default());
    let mut outcomes = Vec::new();
    for start in 0..4u64 {
        on_runtime(async {
            let settings = if start % 2 == 0 { NodeSettings::default() } else { EAGER };
            let node = ControlNode::open(folder.path(), identity(), settings).await.unwrap();
            assert_eq!(bytes(&node), snapshot::encode(member.state()).unwrap(), "after start {start}");
            for step in 0..40u64 {
                let key = start * 100 + step;
                let command = match step % 5 {
                    0..3 => create(step as usize),
                    3 => alter(step as usize - 1),
                    _ => delete(step as usize - 3),
                };
                let (now, principal) = (Timestamp(key), Principal::admin());
                let expected = member.propose(now, &principal, key.into(), command.clone());
                let got = node.propose(now, &principal, key.into(), command).await.unwrap();
                assert_eq!(got, expected);
                outcomes.push(got.outcome.is_ok());
            }
            node.shutdown().await;
        });
    }
    assert!(outcomes.contains(&true) && outcomes.contains(&false));
    assert_eq!(reopened(folder.path(), bytes).unwrap(), snapshot::encode(member.state()).unwrap());
}

#[test]
fn a_snapshot_replaces_the_log_before_it() {
    let folder = TempFolder::new("snapshot");
    let before = on_runtime(async {
        let node = ControlNode::open(folder.path(), identity(), EAGER).await.unwrap();
        let mut at = 0;
        while node.log_first_index() == 0 || at < 60 {
            propose(&node, 0, create(at)).await.outcome.unwrap();
            at += 1;
            assert!(at < 100_000, "no snapshot and purge");
        }
        assert!(node.snapshot_index().is_some_and(|index| index + 1 >= node.log_first_index()));
        let before = bytes(&node);
        node.shutdown().await;
        before
    });
    assert_eq!(reopened(folder.path(), bytes).unwrap(), before);
    let mut snapshots: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|item| item.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snapshot-"))
        .collect();
    snapshots.sort();
    assert!((1..=2).contains(&snapshots.len()), "{snapshots:?}");
    let newest = snapshots.last().unwrap();
    let whole = std::fs::read(newest).unwrap();

    // A snapshot with any damage is an error that names it; the one before does not take its place unasked.
    for at in [0, 5, 17, 40, whole.len() / 2, whole.len() - 1] {
        let mut bad = whole.clone();
        bad[at] ^= 4;
        std::fs::write(newest, &bad).unwrap();
        let error = reopened(folder.path(), |_| ()).unwrap_err();
        assert!(matches!(&error, OpenError::Damaged { path, .. } if path == newest), "byte {at}: {error}");
    }
    for length in [0, 15, whole.len() - 1] {
        std::fs::write(newest, &whole[..length]).unwrap();
        assert!(matches!(reopened(folder.path(), |_| ()), Err(OpenError::Damaged { .. })));
    }
    // None at all is not an empty cluster either: the log does not begin at its beginning.
    for path in &snapshots {
        std::fs::remove_file(path).unwrap();
    }
    let error = reopened(folder.path(), |_| ()).unwrap_err().to_string();
    assert!(error.contains("but there is no snapshot"), "{error}");
    std::fs::write(newest, &whole).unwrap();
    assert_eq!(reopened(folder.path(), bytes).unwrap(), before);
}

/// The log is well, so metadata go on: somebody may have to delete a stream to make room.
#[test]
fn a_snapshot_that_finds_no_room_stops_nothing() {
    let folder = TempFolder::new("no-room");
    let obstacle = |index: usize| folder.path().join(format!("snapshot-{index:020}.tmp"));
    let before = on_runtime(async {
        let node = ControlNode::open(folder.path(), identity(), EAGER).await.unwrap();
        (0..300).for_each(|index| std::fs::create_dir(obstacle(index)).unwrap());
        for at in 0..100 {
            propose(&node, 0, create(at)).await.outcome.unwrap();
            // What is done meanwhile ends before the next entry.
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert_eq!((node.failure(), node.snapshot_index(), node.log_first_index()), (None, None, 0));
        let why = node.snapshot_failure().unwrap();
        assert!(why.contains("snapshot-") && why.contains("cannot use"), "{why}");
        (0..300).for_each(|index| std::fs::remove_dir(obstacle(index)).unwrap());
        let mut at = 100;
        while node.log_first_index() == 0 {
            propose(&node, 0, create(at)).await.outcome.unwrap();
            at += 1;
            assert!(at < 100_000, "no snapshot and purge");
        }
        assert_eq!(node.snapshot_failure(), None);
        let before = bytes(&node);
        node.shutdown().await;
        before
    });
    assert_eq!(reopened(folder.path(), bytes).unwrap(), before);
}

/// The new one is whole and in place: it counts.
#[test]
fn an_old_snapshot_that_cannot_be_removed_stops_nothing() {
    let folder = TempFolder::new("old-stays");
    let before = on_runtime(async {
        let node = ControlNode::open(folder.path(), identity(), EAGER).await.unwrap();
        std::fs::create_dir(folder.path().join(format!("snapshot-{:020}", 0))).unwrap();
        let mut at = 0;
        while node.snapshot_failure().is_none() || at < 60 {
            propose(&node, 0, create(at)).await.outcome.unwrap();
            at += 1;
            assert!(at < 100_000, "nothing was to be removed");
        }
        assert_eq!(node.failure(), None);
        assert!(node.log_first_index() > 0 && node.snapshot_index().is_some());
        let before = bytes(&node);
        node.shutdown().await;
        before
    });
    assert_eq!(reopened(folder.path(), bytes).unwrap(), before);
}

/// The folder as it is after each acknowledgement, without any goodbye: a crash there loses nothing. Without snapshots,
/// and with one after every entry.
#[test]
fn a_crash_after_any_acknowledgement_loses_nothing() {
    for snapshot_after_bytes in [None, Some(1)] {
        let settings = NodeSettings { snapshot_after_bytes, ..NodeSettings::default() };
        let (folder, copies) = (TempFolder::new("crash"), TempFolder::new("copies"));
        let copy = |step: usize| copies.path().join(step.to_string());
        let expected = on_runtime(async {
            let node = ControlNode::open(folder.path(), identity(), settings).await.unwrap();
            let mut expected = Vec::new();
            for step in 0..12 {
                let command = match step % 4 {
                    0 | 1 => create(step),
                    2 => alter(step - 1),
                    _ => delete(step - 2),
                };
                propose(&node, step as u128 + 1, command).await.outcome.unwrap();
                // Files that just change would not be copied as they are at one moment.
                while snapshot_after_bytes.is_some() && node.log_first_index() < node.log_next_index() {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
                copy_folder(folder.path(), &copy(step));
                expected.push(bytes(&node));
            }
            // No shutdown: the runtime is dropped with everything on it.
            expected
        });
        for (step, expected) in expected.iter().enumerate() {
            let found = reopened(&copy(step), bytes).unwrap();
            assert!(found == *expected, "{snapshot_after_bytes:?}: step {step}");
        }
    }
}

#[test]
fn a_dropped_node_opens_again_with_everything() {
    let folder = TempFolder::new("dropped");
    let before = on_runtime(async {
        let node = open(folder.path()).await;
        propose(&node, 1, create(1)).await.outcome.unwrap();
        bytes(&node)
    });
    // The log's thread closes its files on its own; until then they are in use.
    loop {
        match reopened(folder.path(), bytes) {
            Ok(found) => break assert_eq!(found, before),
            Err(OpenError::InUse { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_folder_of_another_node_or_cluster_is_refused() {
    let folder = TempFolder::new("foreign");
    reopened(folder.path(), |_| ()).unwrap();
    on_runtime(async {
        let mut other = identity();
        other.node = NodeId(0xb2);
        let error = ControlNode::open(folder.path(), other, NodeSettings::default()).await.unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    });
}

#[test]
fn what_could_never_be_an_entry_leaves_no_trace() {
    let folder = TempFolder::new("unlogged");
    on_runtime(async {
        let node = open(folder.path()).await;
        propose(&node, 0, create(1)).await.outcome.unwrap();
        let refused = propose(&node, 0, Command::ListTenants { after: None }).await;
        refused.outcome.unwrap_err();
        assert_eq!((refused.version, node.read(State::version)), (1, 1));
        node.shutdown().await;
    });
}

/// As a control thread does it: many proposals at once, changes told by version, answers after them.
#[test]
fn changes_come_before_answers() {
    let folder = TempFolder::new("watch");
    on_runtime(async {
        let node = open(folder.path()).await;
        let mut version = node.version();
        let mut seen = *version.borrow_and_update();
        let mut told = Vec::new();
        let mut tasks = tokio::task::JoinSet::new();
        for at in 0..50 {
            tasks.spawn(node.propose(Timestamp(1), &Principal::admin(), 0, create(at)));
        }
        while let Some(answer) = tasks.join_next().await {
            let answer = answer.unwrap().unwrap();
            let felix_control::member::Watch::Deltas(deltas) = node.changes_since(seen) else { panic!("kept") };
            for delta in deltas {
                assert_eq!(delta.from_version, seen);
                seen = delta.to_version;
                told.extend(delta.changes);
            }
            assert!(answer.version <= seen, "the changes of an answered command were told");
            for change in &answer.changes {
                assert!(told.contains(change));
            }
        }
        assert_eq!((seen, told.len(), *version.borrow_and_update()), (50, 50, 50));
        assert!(told.iter().all(|change| matches!(change, Change::StreamPut { .. })));
        node.shutdown().await;
    });
}

#[test]
fn proposals_are_bounded_and_a_stopped_node_says_so() {
    let folder = TempFolder::new("bounded");
    on_runtime(async {
        let node = open(folder.path()).await;
        let waiting: Vec<_> = (0..felix_control::limits::PROPOSALS_MAX)
            .map(|at| node.propose(Timestamp(1), &Principal::admin(), 0, create(at)))
            .collect();
        let busy = node.propose(Timestamp(1), &Principal::admin(), 0, delete(1)).await;
        assert!(matches!(busy, Err(ProposeError::Busy { .. })), "{busy:?}");
        drop(waiting);
        propose(&node, 0, create(1)).await.outcome.unwrap();
        assert_eq!(node.failure(), None);
        let late = node.propose(Timestamp(1), &Principal::admin(), 0, create(2));
        node.shutdown().await;
        let late = late.await;
        assert!(matches!(late, Err(ProposeError::Stopped { .. })), "{late:?}");
    });
    assert_eq!(reopened(folder.path(), |node| node.read(State::version)).unwrap(), 1);
}
