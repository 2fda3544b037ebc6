//! **What**: what openraft is told about us: ids, the entry, its answer, the snapshot's bytes.
//!
//! **Invariants**: the data of an entry are the frame that `command.rs` makes; nothing else changes metadata.
//!
//! **Never**: serde: the bytes on disk are ours (`raft_frames.rs`).
//!
//! **See**: `node.rs`, which puts the parts together.

use crate::state::Applied;
use std::io::Cursor;

/// A member as other members find it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Address of its control port; empty for the embedded single member, which nobody calls.
    pub address: String,
}

/// An entry of the metadata log as its frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryBytes(pub Vec<u8>);

/// What applying an entry gave: nothing for entries that only raft needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response(pub Option<Applied>);

openraft::declare_raft_types!(
    /// The types of the metadata's raft group. A node id is `felix_protocol::ids::NodeId` as a number.
    pub RaftTypes:
        D = EntryBytes,
        R = Response,
        NodeId = u128,
        Node = Peer,
        Entry = openraft::Entry<RaftTypes>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = openraft::TokioRuntime,
);

/// Position of an entry and the leader that made it.
pub type LogId = openraft::LogId<u128>;
/// Term, candidate, and whether a quorum granted it.
pub type Vote = openraft::Vote<u128>;
/// Who votes.
pub type Membership = openraft::Membership<u128, Peer>;
/// A membership and the entry that made it.
pub type StoredMembership = openraft::StoredMembership<u128, Peer>;
/// An entry of the raft log.
pub type RaftEntry = openraft::Entry<RaftTypes>;
/// What a storage tells openraft when it cannot go on. It stops the member.
pub type StorageError = openraft::StorageError<u128>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::SnapshotMeta<u128, Peer>;
