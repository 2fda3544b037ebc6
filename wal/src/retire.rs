//! **What**: takes a WAL out of service after everything that counts in it is elsewhere: rename the folder, then remove what
//! is in it; or keep it in quarantine.
//!
//! **Invariants**: the rename is one step and durable, so that no later start finds half of a WAL and takes the rest for
//! damage. What a crash leaves is a retired folder, which recovery reports and `Retire::rest` removes.
//!
//! **Never**: a removal from a folder that still counts; a removal of a damaged WAL, which goes to quarantine.
//!
//! **See**: `recover.rs`, which says which WALs there are.

use std::collections::VecDeque;

use felix_protocol::time::Timestamp;

use crate::disk::{DiskDone, DiskError, DiskOp, DiskRequest, FilePath, Priority, Ticket};
use crate::format::names::{Name, WalId};
use crate::judge::WalReport;

/// The steps, one after the other.
#[derive(Debug)]
pub struct Retire {
    owner: u32,
    steps: VecDeque<DiskOp>,
    under_way: Option<Ticket>,
    count: u32,
    failed: Option<(FilePath, DiskError)>,
}

fn path_of(op: &DiskOp) -> FilePath {
    match op {
        DiskOp::Rename { from, .. } => from.clone(),
        DiskOp::Remove { path } => path.clone(),
        _ => FilePath(String::new()),
    }
}

impl Retire {
    fn new(owner: u32, steps: impl IntoIterator<Item = DiskOp>) -> Retire {
        Retire { owner, steps: steps.into_iter().collect(), under_way: None, count: 0, failed: None }
    }

    /// Everything that counts in it is in segments with durable meta, or in another WAL with a durable Rehome. A damaged WAL
    /// is refused: None.
    pub fn remove(report: &WalReport, owner: u32) -> Option<Retire> {
        if report.is_damaged() {
            return None;
        }
        let rename = DiskOp::Rename { from: Name::Wal(report.wal).path(), to: Name::RetiredWal(report.wal).path() };
        let numbers: Vec<u32> = report.files.iter().map(|(number, _)| *number).collect();
        let rest = Retire::rest(report.wal, &numbers, owner);
        Some(Retire::new(owner, [rename].into_iter().chain(rest.steps)))
    }

    /// Removes what is left of a WAL that was retired before.
    pub fn rest(wal: WalId, numbers: &[u32], owner: u32) -> Retire {
        let files = numbers.iter().map(|number| Name::RetiredWalFile(wal, *number));
        let all = files.chain([Name::RetiredWal(wal)]);
        Retire::new(owner, all.map(|name| DiskOp::Remove { path: name.path() }))
    }

    /// Keeps it where nothing reads it.
    pub fn quarantine(report: &WalReport, time: Timestamp, owner: u32) -> Retire {
        let from = Name::Wal(report.wal).path();
        let to = Name::quarantined(time, &from).path();
        Retire::new(owner, [DiskOp::Rename { from, to }])
    }

    /// The next step.
    pub fn plan(&mut self, out: &mut Vec<DiskRequest>) {
        if self.under_way.is_some() || self.failed.is_some() {
            return;
        }
        let Some(op) = self.steps.front().cloned() else { return };
        self.count = self.count.wrapping_add(1);
        let ticket = Ticket::new(self.owner, self.count);
        self.under_way = Some(ticket);
        out.push(DiskRequest { ticket, priority: Priority::Background, op });
    }

    /// A completion.
    pub fn on_done(&mut self, done: DiskDone) {
        if self.under_way != Some(done.ticket) {
            return;
        }
        self.under_way = None;
        let Some(step) = self.steps.pop_front() else { return };
        match (&step, done.result) {
            (_, Ok(_)) => {}
            // Gone already is what was wanted.
            (DiskOp::Remove { .. }, Err(DiskError::NotFound)) => {}
            (_, Err(error)) => self.failed = Some((path_of(&step), error)),
        }
    }

    /// Nothing is left to be done.
    pub fn is_done(&self) -> bool {
        self.steps.is_empty() && self.under_way.is_none()
    }

    /// What could not be done; it stops there, and the next start goes on.
    pub fn failed(&self) -> Option<(&FilePath, DiskError)> {
        self.failed.as_ref().map(|(path, error)| (path, *error))
    }
}
