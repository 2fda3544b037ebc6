//! **What**: gathers entries into groups, and decides when a group is written and when a sync is due.
//!
//! ```text
//! class       its group is written                          a sync is due
//! each        in this turn, if no write is under way        at once
//! group       in this turn; while a sync is under way it    at once
//!             may wait for it, up to the longest delay
//! interval    with the next other write, or at its deadline at its deadline
//! none        with the next other write, or soon            never on its account
//! ```
//!
//! **Invariants**: entries keep their order: groups are written in the order gathered, one at a time. Buffers come back and
//! are used again, so gathering allocates nothing once they have grown.
//!
//! **Never**: a wait of `each`; a wait of `group` when no sync is under way, since then nothing would be gained.
//!
//! **See**: `core_wal.rs`, which asks after every turn.

use std::collections::VecDeque;

use felix_protocol::ids::ShardId;
use felix_protocol::time::Time;

use crate::format::entry::{ENTRY_PREFIX_BYTES, Entry, EntryBody, Lsn};
use crate::format::group::{GROUP_HEADER_BYTES, group_bytes};

/// When an entry must be durable, and how long that may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// Durable as soon as the disk can.
    Each,
    /// Durable with others that come meanwhile.
    Group,
    /// A sync begins within so many milliseconds; a crash may lose what is younger.
    Interval {
        /// The window.
        ms: u32,
    },
    /// Durable whenever it happens.
    None,
}

/// Buffers that are kept for reuse.
const SPARES_MAX: usize = 8;

/// Entries gathered for one write.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// Room for the header, then the entries.
    pub(crate) buffer: Vec<u8>,
    pub(crate) entry_count: u32,
    pub(crate) first_lsn: Lsn,
    pub(crate) index_crc: u32,
    /// Shards that need the file this group will lie in, with the entry.
    pub(crate) pins: Vec<(ShardId, Lsn)>,
    /// An `each` is inside.
    at_once: bool,
    /// Longest delay of a `group` inside.
    group_by: Option<Time>,
    /// Deadline of an `interval` or `none` inside.
    late_by: Option<Time>,
    /// When a sync is due on account of what is inside.
    pub(crate) sync_by: Option<Time>,
    /// It is a seal and nothing else.
    pub(crate) is_seal: bool,
}

fn earlier(one: Option<Time>, other: Time) -> Option<Time> {
    Some(one.map_or(other, |one| one.min(other)))
}

impl Group {
    fn clear(&mut self) {
        self.buffer.clear();
        self.buffer.resize(GROUP_HEADER_BYTES, 0);
        self.pins.clear();
        self.entry_count = 0;
        self.index_crc = 0;
        self.at_once = false;
        self.group_by = None;
        self.late_by = None;
        self.sync_by = None;
        self.is_seal = false;
    }

    pub(crate) fn payload_bytes(&self) -> usize {
        self.buffer.len() - GROUP_HEADER_BYTES
    }

    pub(crate) fn last_lsn(&self) -> Lsn {
        Lsn(self.first_lsn.0 + u64::from(self.entry_count) - 1)
    }

    /// When it is to be written; None: not before something else happens.
    fn due(&self, sync_under_way: bool) -> Option<Time> {
        if self.at_once || (self.group_by.is_some() && !sync_under_way) {
            return Some(Time(0));
        }
        match (self.group_by, self.late_by) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }
}

/// Delays, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delays {
    pub(crate) group_ns: u64,
    pub(crate) lazy_ns: u64,
}

/// Groups between append and write.
#[derive(Debug)]
pub(crate) struct GroupCommit {
    open: Group,
    full: VecDeque<Group>,
    spares: Vec<Group>,
    group_bytes_max: usize,
    delays: Delays,
    /// Bytes on disk of the groups in `full`.
    full_bytes: u64,
}

impl GroupCommit {
    pub(crate) fn new(group_bytes_max: usize, delays: Delays) -> GroupCommit {
        let mut open = Group::default();
        open.clear();
        let full = VecDeque::with_capacity(SPARES_MAX);
        GroupCommit { open, full, spares: Vec::with_capacity(SPARES_MAX), group_bytes_max, delays, full_bytes: 0 }
    }

    /// Bytes on disk of everything gathered.
    pub(crate) fn gathered_bytes(&self) -> u64 {
        self.full_bytes + if self.open.entry_count == 0 { 0 } else { group_bytes(self.open.payload_bytes()) as u64 }
    }

    /// The same with one more entry.
    pub(crate) fn gathered_bytes_with(&self, entry_bytes: usize) -> u64 {
        let payload = self.open.payload_bytes();
        if self.open.entry_count > 0 && self.overflows(entry_bytes) {
            return self.full_bytes + group_bytes(payload) as u64 + group_bytes(entry_bytes) as u64;
        }
        self.full_bytes + group_bytes(payload + entry_bytes) as u64
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.entry_count == 0 && self.full.is_empty()
    }

    fn overflows(&self, entry_bytes: usize) -> bool {
        group_bytes(self.open.payload_bytes() + entry_bytes) > self.group_bytes_max
    }

    /// Takes an entry. It fits a group of its own, which the caller has checked.
    pub(crate) fn append(&mut self, now: Time, lsn: Lsn, entry: &Entry<'_>, commit: Commit) {
        if self.open.entry_count > 0 && (self.overflows(entry.bytes()) || self.open.is_seal) {
            self.close_open();
        }
        let group = &mut self.open;
        if group.entry_count == 0 {
            group.first_lsn = lsn;
            group.is_seal = matches!(entry.body, EntryBody::Seal { .. });
        }
        group.entry_count += 1;
        let start = group.buffer.len();
        entry.encode(&mut group.buffer);
        let prefix = &group.buffer[start..start + ENTRY_PREFIX_BYTES];
        group.index_crc = crc32c::crc32c_append(group.index_crc, prefix);
        // A FlushedTo or a seal tells about others and is itself needed by nobody.
        if !matches!(entry.body, EntryBody::FlushedTo { .. } | EntryBody::Seal { .. }) {
            match group.pins.last_mut() {
                Some(last) if last.0 == entry.shard => last.1 = lsn,
                _ => group.pins.push((entry.shard, lsn)),
            }
        }
        match commit {
            Commit::Each => {
                group.at_once = true;
                group.sync_by = Some(Time(0));
            }
            Commit::Group => {
                group.group_by = earlier(group.group_by, now.after_ns(self.delays.group_ns));
                group.sync_by = Some(Time(0));
            }
            Commit::Interval { ms } => {
                let by = now.after_ns(u64::from(ms) * 1_000_000);
                group.late_by = earlier(group.late_by, by);
                group.sync_by = earlier(group.sync_by, by);
            }
            Commit::None => group.late_by = earlier(group.late_by, now.after_ns(self.delays.lazy_ns)),
        }
    }

    /// Everything gathered is to be written and synced now.
    pub(crate) fn hurry(&mut self) {
        if self.open.entry_count > 0 {
            self.open.at_once = true;
            self.open.sync_by = Some(Time(0));
        }
    }

    fn close_open(&mut self) {
        let mut next = self.spares.pop().unwrap_or_default();
        next.clear();
        let group = std::mem::replace(&mut self.open, next);
        self.full_bytes += group_bytes(group.payload_bytes()) as u64;
        self.full.push_back(group);
    }

    /// When the next group is to be written.
    pub(crate) fn due(&self, sync_under_way: bool) -> Option<Time> {
        if !self.full.is_empty() {
            return Some(Time(0));
        }
        (self.open.entry_count > 0).then(|| self.open.due(sync_under_way)).flatten()
    }

    /// Bytes on disk of the next group to be written.
    pub(crate) fn next_bytes(&self) -> usize {
        group_bytes(self.full.front().unwrap_or(&self.open).payload_bytes())
    }

    /// The next group to be written.
    pub(crate) fn take(&mut self) -> Option<Group> {
        if self.full.is_empty() {
            if self.open.entry_count == 0 {
                return None;
            }
            self.close_open();
        }
        let group = self.full.pop_front()?;
        self.full_bytes -= group_bytes(group.payload_bytes()) as u64;
        Some(group)
    }

    /// A group whose write has completed, for reuse.
    pub(crate) fn give_back(&mut self, group: Group) {
        if self.spares.len() < SPARES_MAX {
            self.spares.push(group);
        }
    }
}
