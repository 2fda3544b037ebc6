//! **What**: a durable shard on its way out: its readers end, its files go to quarantine.
//!
//! ```text
//! readers closed, job ended -> file closed -> Delete entry durable -> files to quarantine, meta last -> folder removed
//! ```
//!
//! **Invariants**: the entry that says so is durable before the first file moves, so that a start finishes what a crash
//! left; the WAL is let go only when all is done.
//!
//! **Never**: a file removed: quarantine keeps it for its grace time.
//!
//! **See**: `recovery.rs` for the start.

use super::Store;
use super::part::{DiskPart, Work};
use super::slots::Use;
use felix_protocol::ids::ShardId;
use felix_protocol::time::{Now, Time};
use felix_wal::core_wal::AppendError;
use felix_wal::disk::{DiskDone, DiskError, DiskOk, DiskOp, FilePath, Priority, Ticket};
use felix_wal::format::entry::{Entry, EntryBody, Lsn};
use felix_wal::format::names::Name;
use felix_wal::group_commit::Commit;
use felix_wal::index_rebuild::IndexRebuild;
use felix_wal::log::ShardLog;
use felix_wal::queue::Slot;
use std::collections::VecDeque;

#[derive(Debug)]
enum Stage {
    /// Readers end, and the job that runs.
    Quiet,
    Close,
    /// The entry is to be written.
    Entry,
    Durable(Lsn),
    List(Ticket),
    /// The first is being moved.
    Move(Ticket, VecDeque<FilePath>),
    /// The disk refused: from the list again, then.
    Later(Time),
    Folder(Ticket),
    /// Nothing more to do.
    Done,
}

#[derive(Debug)]
pub(crate) struct Leaving {
    pub(crate) log: Box<ShardLog>,
    slot: Slot,
    stage: Stage,
    lsn: Lsn,
    /// It has a file open and writes one.
    rebuild: Option<Box<IndexRebuild>>,
}

/// Files of a shard's folder in the order in which they go: the meta last, so that what is left is never without one.
pub(crate) fn order_of_leaving(shard: ShardId, names: impl Iterator<Item = String>) -> VecDeque<FilePath> {
    let folder = Name::Shard(shard).path();
    let meta = Name::ShardMeta(shard).path();
    let mut paths: Vec<FilePath> = names.map(|name| FilePath(format!("{folder}/{name}"))).collect();
    paths.sort_by_key(|path| *path == meta);
    paths.into()
}

impl Store {
    /// Takes a shard out of service.
    pub(crate) fn begin_leaving(&mut self, shard: ShardId, slot: Slot, part: DiskPart) {
        self.unflushed_bytes -= part.unflushed_bytes;
        if !part.is_idle() {
            self.flushing -= 1;
        }
        self.flush_wanted.retain(|it| *it != shard);
        self.with_files.retain(|it| *it != shard);
        self.retain_wanted.retain(|it| *it != shard);
        self.abandon_compaction(shard, &part.log);
        let rebuild = match part.work {
            Work::Index(_, rebuild) => Some(rebuild),
            _ => None,
        };
        let leaving = Leaving { log: Box::new(part.log), slot, stage: Stage::Quiet, lsn: Lsn(0), rebuild };
        self.leaving.insert(shard, leaving);
        self.close_readers_of(shard);
    }

    /// What can be done now for all that leave.
    pub(crate) fn drive_leaving(&mut self, now: Now) {
        if self.leaving.is_empty() {
            return;
        }
        let ids: Vec<ShardId> = self.leaving.keys().copied().collect();
        for id in ids {
            let Some(mut leaving) = self.leaving.remove(&id) else { continue };
            self.drive_one(now, id, &mut leaving);
            if !matches!(leaving.stage, Stage::Done) {
                self.leaving.insert(id, leaving);
            }
        }
    }

    fn drive_one(&mut self, now: Now, id: ShardId, leaving: &mut Leaving) {
        if matches!(leaving.stage, Stage::Quiet)
            && !leaving.log.is_busy()
            && leaving.rebuild.is_none()
            && !self.history.reads(id)
            && !self.compactor.is_at(id)
        {
            leaving.stage = match leaving.log.close_file(&mut self.queue) {
                Ok(true) => Stage::Close,
                Ok(false) | Err(_) => Stage::Entry,
            };
        }
        if matches!(leaving.stage, Stage::Entry) {
            let entry = Entry::new(id, EntryBody::Delete { lineage: leaving.log.lineage() });
            leaving.stage = match self.wal.append(now.time, &entry, Commit::Each) {
                Ok(lsn) => {
                    leaving.lsn = lsn;
                    Stage::Durable(lsn)
                }
                Err(AppendError::Busy | AppendError::DiskFull | AppendError::RingFull) => Stage::Entry,
                // The files stay where they are; the next start finds a shard that nobody knows.
                Err(_) => self.done_leaving(leaving.slot),
            };
        }
        if let Stage::Durable(lsn) = leaving.stage {
            if self.wal.durable() >= lsn {
                leaving.stage = self.list(id, leaving.slot);
            } else if self.wal.poison().is_some() {
                leaving.stage = self.done_leaving(leaving.slot);
            }
        }
        if let Stage::Later(due) = leaving.stage
            && due <= now.time
        {
            leaving.stage = self.list(id, leaving.slot);
        }
    }

    fn list(&mut self, id: ShardId, slot: Slot) -> Stage {
        let op = DiskOp::List { path: Name::Shard(id).path() };
        Stage::List(self.queue.push(slot, Priority::Background, op))
    }

    /// When a shard that leaves is tried again.
    pub(crate) fn leaving_deadline(&self) -> Option<Time> {
        let later =
            self.leaving.values().filter_map(|it| if let Stage::Later(due) = it.stage { Some(due) } else { None });
        later.min()
    }

    fn done_leaving(&mut self, slot: Slot) -> Stage {
        self.slots.give_back(slot);
        Stage::Done
    }

    /// A completion for a shard that leaves.
    pub(crate) fn on_leaving_done(&mut self, now: Now, id: ShardId, done: DiskDone) {
        let Some(mut leaving) = self.leaving.remove(&id) else { return };
        if let Some(rebuild) = &mut leaving.rebuild {
            if rebuild.handle(done, &leaving.log, &mut self.queue).is_some() {
                leaving.rebuild = None;
            }
        } else if leaving.log.is_busy() {
            if leaving.log.handle(done, &mut self.queue).is_some() && matches!(leaving.stage, Stage::Close) {
                leaving.stage = Stage::Entry;
            }
        } else {
            leaving.stage = match std::mem::replace(&mut leaving.stage, Stage::Done) {
                Stage::List(ticket) if ticket == done.ticket => {
                    let names = match done.result {
                        Ok(DiskOk::Listed(list)) => Some(list.into_iter().map(|it| it.name).collect()),
                        Err(DiskError::NotFound) => Some(Vec::new()),
                        _ => None,
                    };
                    match names {
                        Some(names) => self.move_next(now, id, leaving.slot, order_of_leaving(id, names.into_iter())),
                        None => self.leave_later(now),
                    }
                }
                Stage::Move(ticket, rest) if ticket == done.ticket => match done.result {
                    Ok(_) | Err(DiskError::NotFound) => self.move_next(now, id, leaving.slot, rest),
                    // Until all is moved its entries pin the WAL for all shards of the core.
                    Err(_) => self.leave_later(now),
                },
                Stage::Folder(ticket) if ticket == done.ticket => {
                    let log = &leaving.log;
                    self.wal.flushed(now.time, id, log.lineage(), log.flushed_to(), leaving.lsn);
                    self.done_leaving(leaving.slot)
                }
                other => other,
            };
        }
        if !matches!(leaving.stage, Stage::Done) {
            self.leaving.insert(id, leaving);
        }
    }

    fn leave_later(&self, now: Now) -> Stage {
        Stage::Later(now.time.after_ns(self.settings.full_retry_ns))
    }

    fn move_next(&mut self, now: Now, id: ShardId, slot: Slot, mut rest: VecDeque<FilePath>) -> Stage {
        match rest.pop_front() {
            Some(from) => {
                let to = Name::quarantined(now.wall, &from).path();
                let op = DiskOp::Rename { from, to };
                Stage::Move(self.queue.push(slot, Priority::Background, op), rest)
            }
            None => {
                let op = DiskOp::Remove { path: Name::Shard(id).path() };
                Stage::Folder(self.queue.push(slot, Priority::Background, op))
            }
        }
    }

    /// A shard that was opening and is not wanted any more.
    pub(crate) fn leave_unopened(&mut self, id: ShardId, slot: Slot, log: Option<Box<ShardLog>>) {
        match log {
            Some(log) => {
                debug_assert_eq!(self.slots.get(slot), Use::Shard(id));
                self.leaving.insert(id, Leaving { log, slot, stage: Stage::Quiet, lsn: Lsn(0), rebuild: None });
            }
            None => self.slots.give_back(slot),
        }
    }
}
