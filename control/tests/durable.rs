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
const EAGER: NodeSettings = NodeSettings { watch_changes_max: 4_096, snapshot_after_bytes: Some(1_000) };

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
