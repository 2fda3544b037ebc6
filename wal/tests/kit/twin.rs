//! Broken twins: each does one thing wrong between planner and disk. A simulation that does not find them proves nothing.

use felix_wal::disk::{BLOCK_BYTES, Disk, DiskDone, DiskOk, DiskOp, DiskRequest, FileKey, FilePath, Ticket};
use felix_wal::mem_disk::{Chance, MemDisk};
use std::collections::{BTreeSet, VecDeque};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A flush is told durable without a sync.
    SyncSkipped,
    /// The meta is durable before the chunk is even written.
    MetaFirst,
    /// A chunk lands one block too early, on acknowledged data.
    OneBlockEarly,
    /// A bit flips between the check and the write.
    FlippedWrite,
    /// The meta is not replaced, and success is told.
    MetaKept,
    /// A segment is removed where it should go to quarantine.
    Removed,
    /// The result of a compaction never gets its name.
    SwitchHalf,
    /// A compaction counts before its file is durable.
    SwitchUnsynced,
    /// Only the first block of a write is written, and success is told.
    ShortWrite,
    /// A read comes from another place.
    ReadElsewhere,
    /// Quarantine takes the segment behind the one that was meant.
    WrongOneTaken,
}

pub const BUGS: [Bug; 11] = [
    Bug::SyncSkipped,
    Bug::MetaFirst,
    Bug::OneBlockEarly,
    Bug::FlippedWrite,
    Bug::MetaKept,
    Bug::Removed,
    Bug::SwitchHalf,
    Bug::SwitchUnsynced,
    Bug::ShortWrite,
    Bug::ReadElsewhere,
    Bug::WrongOneTaken,
];

pub struct Twin {
    pub bug: Bug,
    pub faked: VecDeque<DiskDone>,
    chance: Chance,
    held: Vec<DiskRequest>,
    swallowed: BTreeSet<Ticket>,
    temporary: BTreeSet<FileKey>,
}

impl Twin {
    pub fn new(bug: Bug, seed: u64) -> Twin {
        Twin {
            bug,
            faked: VecDeque::new(),
            chance: Chance::new(seed),
            held: Vec::new(),
            swallowed: BTreeSet::new(),
            temporary: BTreeSet::new(),
        }
    }

    /// Nothing is on its way any more.
    pub fn crash(&mut self) {
        self.faked.clear();
        self.held.clear();
        self.swallowed.clear();
    }

    pub fn swallows(&mut self, done: &DiskDone) -> bool {
        self.swallowed.remove(&done.ticket)
    }

    fn fake(&mut self, ticket: Ticket, ok: DiskOk) {
        self.faked.push_back(DiskDone { ticket, result: Ok(ok) });
    }

    pub fn change(&mut self, mut request: DiskRequest, disk: &mut MemDisk) -> Option<DiskRequest> {
        let ticket = request.ticket;
        if let DiskOp::Create { path, file, .. } = &request.op
            && path.0.ends_with(".tmp")
        {
            self.temporary.insert(*file);
        }
        match (self.bug, &mut request.op) {
            (Bug::SyncSkipped, DiskOp::Sync { .. }) => {
                self.fake(ticket, DiskOk::Done);
                return None;
            }
            (Bug::SwitchUnsynced, DiskOp::Sync { file }) if self.temporary.contains(file) => {
                self.fake(ticket, DiskOk::Done);
                return None;
            }
            (Bug::MetaFirst, DiskOp::Write { bytes, .. }) => {
                self.fake(ticket, DiskOk::Written(bytes.clone()));
                self.held.push(request);
                return None;
            }
            (Bug::MetaFirst, DiskOp::Replace { .. } | DiskOp::Close { .. }) => {
                let op = request.op.clone();
                if matches!(op, DiskOp::Replace { .. }) {
                    disk.submit(request);
                }
                for held in self.held.drain(..) {
                    self.swallowed.insert(held.ticket);
                    disk.submit(held);
                }
                if matches!(op, DiskOp::Replace { .. }) {
                    return None;
                }
                // Wait for the writes before the file is closed.
                while disk.under_way() > 0 {
                    if let Some(done) = disk.wait()
                        && !self.swallowed.remove(&done.ticket)
                    {
                        self.faked.push_back(done);
                    }
                }
                return Some(DiskRequest { ticket, priority: Default::default(), op });
            }
            (Bug::OneBlockEarly, DiskOp::Write { at, .. }) if *at > BLOCK_BYTES as u64 => {
                *at -= BLOCK_BYTES as u64;
            }
            (Bug::FlippedWrite, DiskOp::Write { bytes, .. }) if self.chance.one_in_thousand(100) => {
                let bit = self.chance.below(bytes.len() as u64 * 8);
                bytes[bit as usize / 8] ^= 1 << (bit % 8);
            }
            (Bug::MetaKept, DiskOp::Replace { path, .. }) if path.0.ends_with("/meta") && self.chance.coin() => {
                self.fake(ticket, DiskOk::Done);
                return None;
            }
            (Bug::Removed, DiskOp::Rename { from, to }) if to.0.starts_with("quarantine/") => {
                request.op = DiskOp::Remove { path: from.clone() };
            }
            (Bug::SwitchHalf, DiskOp::Rename { from, .. }) if from.0.ends_with(".tmp") => {
                self.fake(ticket, DiskOk::Done);
                return None;
            }
            (Bug::ShortWrite, DiskOp::Write { at, bytes, .. }) if *at > 0 && bytes.len() > BLOCK_BYTES => {
                bytes.truncate(BLOCK_BYTES);
            }
            (Bug::ReadElsewhere, DiskOp::Read { at, .. }) if self.chance.one_in_thousand(50) => {
                *at += BLOCK_BYTES as u64;
            }
            (Bug::WrongOneTaken, DiskOp::Rename { from, to }) if to.0.starts_with("quarantine/") => {
                let folder = from.0.rsplit_once('/').map_or("", |it| it.0).to_string();
                let behind = disk
                    .paths()
                    .into_iter()
                    .filter(|path| path.0.starts_with(&folder) && path.0.ends_with(".seg") && *path > *from);
                if from.0.ends_with(".seg")
                    && let Some(other) = behind.min()
                {
                    *from = FilePath(other.0);
                }
            }
            _ => {}
        }
        Some(request)
    }
}
