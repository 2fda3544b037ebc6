//! **What**: removes what lies in quarantine longer than a grace time.
//!
//! **Invariants**: only names that our own quarantine gave are removed; when a file was put there is in its name.
//!
//! **Never**: a file removed from anywhere else.
//!
//! **See**: `format/names.rs` for the names, `retain.rs` and `truncate.rs` for what is put there.

use crate::disk::{DiskDone, DiskError, DiskOk, DiskOp, FilePath, Listed, Priority, Ticket};
use crate::format::names::Name;
use crate::queue::{DiskQueue, Slot};
use felix_protocol::time::Timestamp;

/// What a sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Removed.
    pub removed: Vec<FilePath>,
    /// Bytes of those.
    pub bytes_removed: u64,
    /// Not old enough.
    pub waiting: usize,
    /// Not ours, or a folder.
    pub foreign: Vec<String>,
    /// Could not be removed.
    pub failed: Vec<(FilePath, DiskError)>,
}

#[derive(Debug)]
enum Stage {
    List(Ticket),
    Remove(Ticket, FilePath, u64),
}

/// A sweep through the quarantine of a data folder.
#[derive(Debug)]
pub struct QuarantineSweep {
    slot: Slot,
    stage: Stage,
    before: Timestamp,
    remove: Vec<(FilePath, u64)>,
    report: SweepReport,
}

impl QuarantineSweep {
    /// Begins a sweep: what was put there more than `grace_ns` before `now` goes.
    pub fn new(slot: Slot, now: Timestamp, grace_ns: u64, queue: &mut DiskQueue) -> QuarantineSweep {
        let op = DiskOp::List { path: Name::Quarantine.path() };
        let stage = Stage::List(queue.push(slot, Priority::Background, op));
        let before = now.saturating_sub_ns(grace_ns);
        QuarantineSweep { slot, stage, before, remove: Vec::new(), report: SweepReport::default() }
    }

    /// Takes a completion. Some: the sweep has ended.
    pub fn handle(&mut self, done: DiskDone, queue: &mut DiskQueue) -> Option<Result<SweepReport, DiskError>> {
        let (Stage::List(mine) | Stage::Remove(mine, ..)) = &self.stage;
        if *mine != done.ticket {
            return None;
        }
        match (&self.stage, done.result) {
            (Stage::List(_), Ok(DiskOk::Listed(list))) => self.sort(list),
            (Stage::List(_), result) => return Some(Err(result.err().unwrap_or(DiskError::NotFound))),
            (Stage::Remove(_, path, bytes), Ok(_)) => {
                self.report.removed.push(path.clone());
                self.report.bytes_removed += bytes;
            }
            (Stage::Remove(_, path, _), Err(error)) => self.report.failed.push((path.clone(), error)),
        }
        let Some((path, bytes)) = self.remove.pop() else {
            return Some(Ok(std::mem::take(&mut self.report)));
        };
        let op = DiskOp::Remove { path: path.clone() };
        self.stage = Stage::Remove(queue.push(self.slot, Priority::Background, op), path, bytes);
        None
    }

    fn sort(&mut self, list: Vec<Listed>) {
        for entry in list {
            let path = FilePath(format!("{}/{}", Name::Quarantine, entry.name));
            // The result of a compaction that was given up keeps the ending of its temporary name.
            let name = match Name::parse(&path) {
                Some(Name::Temporary(meant)) => Name::parse(&meant),
                name => name,
            };
            match name {
                Some(Name::Quarantined(time, _)) if !entry.is_folder => {
                    if time < self.before {
                        self.remove.push((path, entry.bytes));
                    } else {
                        self.report.waiting += 1;
                    }
                }
                _ => self.report.foreign.push(entry.name),
            }
        }
    }
}
