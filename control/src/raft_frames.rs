//! **What**: the bytes of the raft log and its folder, each in a frame of `framed.rs`.
//!
//! ```text
//! entry (type 5)     u64 index | u64 term | u128 node | u8 kind | data | TLVs
//!                    kind 0: nothing    1: u16 bytes, frame of type 1    2: membership
//! log head (type 6)  u64 writes | u8 flags, u64 term, u128 node (vote) | log id? committed | log id? purged |
//!                    log id? last | TLVs          flags: bit 0 there is a vote, bit 1 it is granted
//! identity (type 7)  u128 cluster | u128 node | TLVs
//! synced (type 8)    u64 writes | TLVs
//! snapshot (type 9)  u32 bytes, part of raft: log id? last | log id? of membership | membership | TLVs
//!                    frame of type 4 to the end
//! log id?  = u8 there is one | u64 index | u64 term | u128 node      zeros if there is none
//! membership = u8 count of voter sets, each u16 count, u128 nodes | u16 count of nodes, each u128 node, text address
//! ```
//!
//! **Invariants**: these bytes outlive versions, so the layout is frozen and pinned by golden files; whatever decodes
//! is a value that openraft can hold.
//!
//! **Never**: rkyv, serde; trust in a count.
//!
//! **See**: `raft_log.rs`, `raft_state.rs`, `raft_folder.rs`, which store them.

use crate::framed::{FrameError, FrameKind, open, seal};
use crate::limits::{ADDRESS_BYTES_MAX, ENTRY_BYTES_MAX, MEMBERS_MAX};
use crate::raft_types::{EntryBytes, LogId, Membership, Peer, RaftEntry, StoredMembership, Vote};
use felix_protocol::codec::{DecodeError, Reader, Writer};
use felix_protocol::envelope::check_tlvs;
use felix_protocol::ids::{ClusterId, NodeId};
use openraft::{EntryPayload, LeaderId};
use std::collections::{BTreeMap, BTreeSet};

/// Who a metadata folder belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

impl Identity {
    /// The frame.
    pub fn encode(&self) -> Vec<u8> {
        sealed(FrameKind::Identity, |out| {
            out.put_u128(self.cluster.0);
            out.put_u128(self.node.0);
        })
    }

    /// Reads a frame.
    pub fn decode(frame: &[u8]) -> Result<Identity, FrameError> {
        let mut reader = Reader::new(open(FrameKind::Identity, frame)?);
        let identity = Identity { cluster: ClusterId(reader.u128()?), node: NodeId(reader.u128()?) };
        check_tlvs(reader.rest())?;
        Ok(identity)
    }
}

/// How far the log was written and synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    /// [`LogHead::writes`] of that write.
    pub writes: u64,
}

impl Synced {
    /// The frame; always of the same length.
    pub fn encode(&self) -> Vec<u8> {
        sealed(FrameKind::Synced, |out| out.put_u64(self.writes))
    }

    /// Reads a frame.
    pub fn decode(frame: &[u8]) -> Result<Synced, FrameError> {
        let mut reader = Reader::new(open(FrameKind::Synced, frame)?);
        let synced = Synced { writes: reader.u64()? };
        check_tlvs(reader.rest())?;
        Ok(synced)
    }
}

/// Everything about the log that is not an entry. Each write to the log carries all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogHead {
    /// Writes to this log so far, this one included.
    pub writes: u64,
    /// The vote.
    pub vote: Option<Vote>,
    /// Last entry known to be committed when this was written.
    pub committed: Option<LogId>,
    /// Last entry that was removed because a snapshot covers it.
    pub purged: Option<LogId>,
    /// Last entry, or `purged` if there is none after it. Entries beyond it are cut off.
    pub last: Option<LogId>,
}

impl LogHead {
    /// Index of the next entry.
    pub fn next_index(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }

    /// Index of the first entry that is not removed.
    pub fn first_index(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    /// The frame.
    pub fn encode(&self) -> Vec<u8> {
        sealed(FrameKind::LogHead, |out| {
            out.put_u64(self.writes);
            let vote = self.vote.unwrap_or_default();
            out.put_u8(u8::from(self.vote.is_some()) | u8::from(vote.committed) << 1);
            out.put_u64(vote.leader_id.term);
            out.put_u128(vote.leader_id.node_id);
            put_log_id(out, self.committed);
            put_log_id(out, self.purged);
            put_log_id(out, self.last);
        })
    }

    /// Reads a frame.
    pub fn decode(frame: &[u8]) -> Result<LogHead, FrameError> {
        let mut reader = Reader::new(open(FrameKind::LogHead, frame)?);
        let writes = reader.u64()?;
        let flags = reader.u8()?;
        let vote = Vote { leader_id: LeaderId::new(reader.u64()?, reader.u128()?), committed: flags & 2 != 0 };
        let vote = match flags {
            0 if vote == Vote::default() => None,
            1 | 3 => Some(vote),
            _ => return Err(DecodeError::BadField("vote").into()),
        };
        let committed = read_log_id(&mut reader)?;
        let purged = read_log_id(&mut reader)?;
        let last = read_log_id(&mut reader)?;
        check_tlvs(reader.rest())?;
        if purged > last || committed > last {
            return Err(DecodeError::BadField("order of log ids").into());
        }
        Ok(LogHead { writes, vote, committed, purged, last })
    }
}

const NOTHING: u8 = 0;
const COMMAND: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// An entry of the raft log as a frame. Refused only if a membership is over its limits.
pub fn encode_entry(entry: &RaftEntry) -> Result<Vec<u8>, FrameError> {
    if let EntryPayload::Membership(membership) = &entry.payload {
        check_membership(membership)?;
    }
    seal(FrameKind::RaftEntry, |out| {
        put_id(out, &entry.log_id);
        match &entry.payload {
            EntryPayload::Blank => out.put_u8(NOTHING),
            EntryPayload::Normal(EntryBytes(frame)) => {
                out.put_u8(COMMAND);
                out.put_bytes16(frame);
            }
            EntryPayload::Membership(membership) => {
                out.put_u8(MEMBERSHIP);
                put_membership(out, membership);
            }
        }
    })
}

/// Reads a frame of the raft log. The command inside is read when it is applied.
pub fn decode_entry(frame: &[u8]) -> Result<RaftEntry, FrameError> {
    let mut reader = Reader::new(open(FrameKind::RaftEntry, frame)?);
    let log_id = read_id(&mut reader)?;
    let payload = match reader.u8()? {
        NOTHING => EntryPayload::Blank,
        COMMAND => EntryPayload::Normal(EntryBytes(reader.bytes16(ENTRY_BYTES_MAX)?.to_vec())),
        MEMBERSHIP => EntryPayload::Membership(read_membership(&mut reader)?),
        _ => return Err(DecodeError::BadField("kind of entry").into()),
    };
    check_tlvs(reader.rest())?;
    Ok(RaftEntry { log_id, payload })
}

/// What a snapshot file says besides the state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotHead {
    /// Last entry that the state includes.
    pub last: Option<LogId>,
    /// The members as of that entry.
    pub membership: StoredMembership,
}

/// A snapshot file: `state` is a frame of type 4.
pub fn encode_snapshot(head: &SnapshotHead, state: &[u8]) -> Result<Vec<u8>, FrameError> {
    check_membership(head.membership.membership())?;
    let mut part = Vec::with_capacity(128);
    put_log_id(&mut part, head.last);
    put_log_id(&mut part, *head.membership.log_id());
    put_membership(&mut part, head.membership.membership());
    seal(FrameKind::SnapshotFile, |out| {
        out.put_u32(part.len() as u32);
        out.put(&part);
        out.put(state);
    })
}

/// Splits a snapshot file into what raft needs and the frame of the state, which is not looked into.
pub fn decode_snapshot(frame: &[u8]) -> Result<(SnapshotHead, &[u8]), FrameError> {
    let mut reader = Reader::new(open(FrameKind::SnapshotFile, frame)?);
    let bytes = reader.u32()? as usize;
    let mut part = Reader::new(reader.bytes(bytes)?);
    let last = read_log_id(&mut part)?;
    let log_id = read_log_id(&mut part)?;
    let membership = StoredMembership::new(log_id, read_membership(&mut part)?);
    check_tlvs(part.rest())?;
    Ok((SnapshotHead { last, membership }, reader.rest()))
}

/// A frame of a kind whose bodies are far below its limit.
fn sealed(kind: FrameKind, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    seal(kind, fill).expect("a body of fixed size fits its kind")
}

fn put_id(out: &mut Vec<u8>, id: &LogId) {
    out.put_u64(id.index);
    out.put_u64(id.leader_id.term);
    out.put_u128(id.leader_id.node_id);
}

fn read_id(reader: &mut Reader<'_>) -> Result<LogId, DecodeError> {
    let index = reader.u64()?;
    if index == u64::MAX {
        return Err(DecodeError::BadField("index"));
    }
    Ok(LogId::new(LeaderId::new(reader.u64()?, reader.u128()?), index))
}

fn put_log_id(out: &mut Vec<u8>, id: Option<LogId>) {
    out.put_u8(id.is_some().into());
    put_id(out, &id.unwrap_or_default());
}

fn read_log_id(reader: &mut Reader<'_>) -> Result<Option<LogId>, DecodeError> {
    match (reader.u8()?, read_id(reader)?) {
        (0, id) if id == LogId::default() => Ok(None),
        (1, id) => Ok(Some(id)),
        _ => Err(DecodeError::BadField("log id")),
    }
}

fn check_membership(membership: &Membership) -> Result<(), DecodeError> {
    let found = membership.nodes().count();
    if found > MEMBERS_MAX {
        return Err(DecodeError::TooLarge { bytes: found as u64, max: MEMBERS_MAX as u64 });
    }
    if membership.get_joint_config().len() > 2 {
        return Err(DecodeError::BadField("count of voter sets"));
    }
    let longest = membership.nodes().map(|(_, peer)| peer.address.len()).max().unwrap_or(0);
    if longest > ADDRESS_BYTES_MAX {
        return Err(DecodeError::TooLarge { bytes: longest as u64, max: ADDRESS_BYTES_MAX as u64 });
    }
    Ok(())
}

fn put_membership(out: &mut Vec<u8>, membership: &Membership) {
    let sets = membership.get_joint_config();
    out.put_u8(sets.len() as u8);
    for set in sets {
        out.put_u16(set.len() as u16);
        for node in set {
            out.put_u128(*node);
        }
    }
    out.put_u16(membership.nodes().count() as u16);
    for (node, peer) in membership.nodes() {
        out.put_u128(*node);
        out.put_bytes16(peer.address.as_bytes());
    }
}

fn read_membership(reader: &mut Reader<'_>) -> Result<Membership, DecodeError> {
    let too_many = |count: u16| DecodeError::TooLarge { bytes: count.into(), max: MEMBERS_MAX as u64 };
    let mut sets = Vec::new();
    for _ in 0..reader.u8()? {
        let count = reader.u16()?;
        if usize::from(count) > MEMBERS_MAX {
            return Err(too_many(count));
        }
        let mut set = BTreeSet::new();
        for _ in 0..count {
            set.insert(reader.u128()?);
        }
        if set.is_empty() || set.len() != usize::from(count) {
            return Err(DecodeError::BadField("voter set"));
        }
        sets.push(set);
    }
    let count = reader.u16()?;
    if usize::from(count) > MEMBERS_MAX {
        return Err(too_many(count));
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..count {
        let node = reader.u128()?;
        nodes.insert(node, Peer { address: reader.text16(ADDRESS_BYTES_MAX)?.to_string() });
    }
    if nodes.len() != usize::from(count) || sets.iter().flatten().any(|node| !nodes.contains_key(node)) {
        return Err(DecodeError::BadField("nodes"));
    }
    let membership = Membership::new(sets, nodes);
    check_membership(&membership)?;
    Ok(membership)
}

#[cfg(test)]
mod tests;
