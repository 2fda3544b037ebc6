//! **What**: what a durable shard has beside its memory: its segments, and how far the disk is.
//!
//! ```text
//! log_start ... flushed_to (segments) ... durable_to (WAL, synced) ... log_end (memory)
//! ```
//!
//! **Invariants**: `flushed_to <= durable_to <= log_end`. `entries` are the WAL entries of the batches from `flushed_to` on,
//! in order.
//!
//! **Never**: a batch out of memory that is not in segments.
//!
//! **See**: `flush.rs`, `../shard.rs`.

use super::commit_of;
use crate::event::{ShardConfig, TenantKeys};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::position::Offset;
use felix_wal::disk::Ticket;
use felix_wal::format::entry::Lsn;
use felix_wal::group_commit::Commit;
use felix_wal::index_rebuild::IndexRebuild;
use felix_wal::log::{Health, ShardLog};
use felix_wal::retain::RetainScan;
use std::collections::VecDeque;

/// What the meta's settings say of the producers file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// The batches below need not be read for it.
    pub(crate) through: Offset,
    /// There is a file; without one there were no producers.
    pub(crate) has_file: bool,
    /// Batches were acknowledged or shown before they were synced: after a stop that was not clean some may be missing
    /// whose offsets somebody knows.
    pub(crate) shows_early: bool,
}

const CHECKPOINT_VERSION: u8 = 1;
const CHECKPOINT_BYTES: usize = 10;

impl Checkpoint {
    pub(crate) fn encode(self) -> Box<[u8]> {
        let mut out = Vec::with_capacity(CHECKPOINT_BYTES);
        out.extend([CHECKPOINT_VERSION, u8::from(self.has_file) | u8::from(self.shows_early) << 1]);
        out.extend(self.through.0.to_le_bytes());
        out.into()
    }

    /// None: not ours, or of a newer build.
    pub(crate) fn decode(settings: &[u8]) -> Option<Checkpoint> {
        if settings.is_empty() {
            return Some(Checkpoint::default());
        }
        let (head, through) = settings.split_at_checked(2)?;
        let through = Offset(u64::from_le_bytes(through.try_into().ok()?));
        match head {
            [CHECKPOINT_VERSION, flags @ 0..=3] => {
                Some(Checkpoint { through, has_file: flags & 1 != 0, shows_early: flags & 2 != 0 })
            }
            _ => None,
        }
    }
}

/// What is being done to the segments.
#[derive(Debug)]
pub(crate) enum Work {
    Idle,
    /// The producers file is written; the flush follows.
    Producers {
        ticket: Ticket,
        checkpoint: Checkpoint,
        bytes: usize,
    },
    Flush {
        through: Lsn,
        bytes: usize,
        checkpoint: Option<Checkpoint>,
    },
    /// Looking for what is too old or too much.
    Scan(RetainScan),
    /// Making the index of the segment that begins here again: without it nobody knows how old the segment is, and it is read
    /// from its front.
    Index(Offset, Box<IndexRebuild>),
    Retain {
        segments: usize,
    },
    Roll,
    /// The meta alone is written.
    Save(Checkpoint),
    Clean,
    /// A compacted segment takes the place of its sources.
    Switch,
    /// The meta says how far compaction came.
    Note,
    /// The open segment's file is closed until the next flush.
    CloseFile,
}

/// The durable part of a shard.
#[derive(Debug)]
pub(crate) struct DiskPart {
    pub(crate) log: ShardLog,
    pub(crate) commit: Commit,
    pub(crate) sealed_for: Option<TenantKeys>,
    /// Acks and readers need not wait for the disk (`interval`, `none`), once the meta says that they do not.
    pub(crate) may_be_early: bool,
    /// The meta is to say so.
    pub(crate) early_listed: bool,
    /// It does, and what waited for the disk before was answered: acks of a channel come in its order.
    pub(crate) shows: bool,
    pub(crate) entries: VecDeque<(Offset, Lsn, usize)>,
    pub(crate) unflushed_bytes: usize,
    /// Bytes of its newest batches that stay in memory though segments have them.
    pub(crate) tail_bytes: usize,
    pub(crate) durable_to: Offset,
    pub(crate) flush_listed: bool,
    /// It is among those whose files are open.
    pub(crate) file_listed: bool,
    pub(crate) retain_listed: bool,
    /// A reader found the segment that begins here without its index.
    pub(crate) bad_index: Option<Offset>,
    /// The index of the segment that begins here was made again, or cannot be: nothing is gained by another try.
    pub(crate) index_tried: Vec<Offset>,
    pub(crate) compact_listed: bool,
    /// How far the last compaction came, until the meta says so.
    pub(crate) compact_note: Option<Offset>,
    /// With this generation of keys it cannot be compacted.
    pub(crate) not_compacted_with: Option<u64>,
    pub(crate) work: Work,
    pub(crate) checkpoint: Checkpoint,
    /// Bytes of the producers file when it was last written, and bytes flushed since then.
    pub(crate) producers_bytes: usize,
    pub(crate) since_checkpoint: u64,
    /// The WAL of the core failed.
    pub(crate) wal_failed: bool,
}

impl DiskPart {
    pub(crate) fn new(log: ShardLog, config: &ShardConfig, checkpoint: Checkpoint, tail_bytes: usize) -> DiskPart {
        let commit = commit_of(config);
        DiskPart {
            durable_to: log.flushed_to(),
            log,
            commit,
            sealed_for: config.sealed_for,
            may_be_early: matches!(commit, Commit::Interval { .. } | Commit::None),
            early_listed: false,
            shows: checkpoint.shows_early,
            entries: VecDeque::new(),
            unflushed_bytes: 0,
            tail_bytes,
            flush_listed: false,
            file_listed: false,
            retain_listed: false,
            bad_index: None,
            index_tried: Vec::new(),
            compact_listed: false,
            compact_note: None,
            not_compacted_with: None,
            work: Work::Idle,
            checkpoint,
            producers_bytes: 0,
            since_checkpoint: 0,
            wal_failed: false,
        }
    }

    /// Acks and readers do not wait for the disk.
    pub(crate) fn is_early(&self) -> bool {
        self.may_be_early && self.shows
    }

    /// Why it takes no batch.
    pub(crate) fn failed(&self) -> Option<ErrorCode> {
        let well = matches!(self.log.health(), Health::Well) && !self.wal_failed;
        (!well).then_some(ErrorCode::StorageFailed)
    }

    pub(crate) fn on_appended(&mut self, to: Offset, lsn: Lsn, bytes: usize) {
        self.entries.push_back((to, lsn, bytes));
        self.unflushed_bytes += bytes;
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.work, Work::Idle) && !self.log.is_busy()
    }

    /// Its segments take what was acknowledged, also with damage below: what is only in the WAL pins it for all shards.
    pub(crate) fn takes_flushes(&self) -> bool {
        !self.wal_failed && self.log.takes_flushes()
    }

    /// There is something to flush that the WAL has made durable.
    pub(crate) fn can_flush(&self) -> bool {
        self.is_idle() && self.takes_flushes() && self.log.flushed_to() < self.durable_to
    }

    /// Forgets the entries that are in segments. Returns their bytes.
    pub(crate) fn on_flushed(&mut self) -> usize {
        let flushed_to = self.log.flushed_to();
        let mut bytes = 0;
        while self.entries.front().is_some_and(|(to, ..)| *to <= flushed_to) {
            bytes += self.entries.pop_front().map_or(0, |(.., bytes)| bytes);
        }
        self.unflushed_bytes -= bytes;
        bytes
    }

    pub(crate) fn check(&self, log_end: Offset) {
        assert!(self.log.flushed_to() <= self.durable_to, "flushed before it was durable");
        assert!(self.durable_to <= log_end, "durable beyond the end");
        assert_eq!(self.entries.iter().map(|(.., bytes)| bytes).sum::<usize>(), self.unflushed_bytes);
        assert!(self.entries.front().is_none_or(|(to, ..)| *to > self.log.flushed_to()), "a flushed entry is kept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_read_as_it_was_written_and_nothing_else_is() {
        for it in [Checkpoint::default(), Checkpoint { through: Offset(u64::MAX), has_file: true, shows_early: true }] {
            let bytes = it.encode();
            assert_eq!(Checkpoint::decode(&bytes), Some(it));
            for end in 1..bytes.len() {
                assert_eq!(Checkpoint::decode(&bytes[..end]), None);
            }
            assert_eq!(Checkpoint::decode(&[&bytes[..], &[0]].concat()), None);
        }
        assert_eq!(Checkpoint::decode(&[]), Some(Checkpoint::default()));
        assert_eq!(Checkpoint::decode(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None, "of a newer build");
        assert_eq!(Checkpoint::decode(&[1, 4, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
