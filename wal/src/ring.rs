//! **What**: the files of a core WAL in the order of their reuse, and who needs them.
//!
//! ```text
//! held (oldest first) ........ current | released: needed by nobody, but the disk does not say so yet | spares: prepared
//!    ^ pins say why it is held   ^ written to                                                              ^ next current
//! ```
//!
//! **Invariants**: files are released oldest first, so what must still be on disk is one range of groups, and every group
//! states its start (`first_needed`). A released file is overwritten only after a durable group has stated that it is not
//! needed: else a crash in the middle of the overwrite would look like damage.
//!
//! **Never**: a file with a pin in it is released; the current file is.
//!
//! **See**: `core_wal.rs`.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;

use felix_protocol::ids::ShardId;

use crate::disk::FileKey;
use crate::format::entry::Lsn;
use crate::format::group::GroupSequence;
use crate::format::header::HEADER_BYTES;

/// A file of the ring.
#[derive(Debug)]
pub(crate) struct WalFile {
    pub(crate) number: u32,
    pub(crate) key: FileKey,
    pub(crate) generation: u32,
    /// Where the next group goes.
    pub(crate) end: u64,
    first_sequence: GroupSequence,
    last_sequence: GroupSequence,
    /// Last entry of each shard that is not elsewhere yet.
    /// Ids come from metadata, so nobody can choose them to collide; an order that no chance decides lets a seed repeat a run.
    pins: HashMap<ShardId, Lsn, BuildHasherDefault<DefaultHasher>>,
}

impl WalFile {
    pub(crate) fn new(number: u32, key: FileKey) -> WalFile {
        WalFile {
            number,
            key,
            generation: 0,
            end: HEADER_BYTES as u64,
            first_sequence: GroupSequence(0),
            last_sequence: GroupSequence(0),
            pins: HashMap::default(),
        }
    }
}

/// All files.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    held: VecDeque<WalFile>,
    released: VecDeque<WalFile>,
    spares: VecDeque<WalFile>,
}

impl Ring {
    pub(crate) fn add_spare(&mut self, file: WalFile) {
        self.spares.push_back(file);
    }

    pub(crate) fn spare_count(&self) -> usize {
        self.spares.len()
    }

    pub(crate) fn released_count(&self) -> usize {
        self.released.len()
    }

    /// Files with groups that are needed, the current one included.
    pub(crate) fn held_count(&self) -> usize {
        self.held.len()
    }

    pub(crate) fn file_count(&self) -> usize {
        self.held.len() + self.released.len() + self.spares.len()
    }

    pub(crate) fn current(&self) -> Option<&WalFile> {
        self.held.back()
    }

    /// Makes a spare the current file. False: there is none.
    pub(crate) fn roll(&mut self) -> bool {
        match self.spares.pop_front() {
            Some(file) => {
                self.held.push_back(file);
                true
            }
            None => false,
        }
    }

    /// Places a group at the end of the current file: where it goes.
    pub(crate) fn place(&mut self, sequence: GroupSequence, bytes: u64, pins: &[(ShardId, Lsn)]) -> u64 {
        let file = self.held.back_mut().expect("there is a current file");
        let at = file.end;
        file.end += bytes;
        if file.first_sequence.0 == 0 {
            file.first_sequence = sequence;
        }
        file.last_sequence = sequence;
        for (shard, lsn) in pins {
            file.pins.insert(*shard, *lsn);
        }
        at
    }

    /// First group that must be there, if `next` is the one to be written.
    pub(crate) fn first_needed(&self, next: GroupSequence) -> GroupSequence {
        match self.held.front() {
            Some(file) if file.first_sequence.0 > 0 => file.first_sequence,
            _ => next,
        }
    }

    /// Entries of a shard up to `through` are elsewhere now.
    pub(crate) fn unpin(&mut self, shard: ShardId, through: Lsn) {
        for file in &mut self.held {
            if let Some(last) = file.pins.get(&shard) {
                if *last > through {
                    return;
                }
                file.pins.remove(&shard);
            }
        }
    }

    /// Releases what nobody needs. Its groups may even be unsynced: what is durable is a prefix, so they are by the time a
    /// group that states the release is.
    pub(crate) fn release(&mut self) {
        while self.held.len() > 1 && self.held[0].pins.is_empty() {
            let file = self.held.pop_front().expect("there is one");
            self.released.push_back(file);
        }
    }

    /// A durable group stated that nothing before `first_needed` is needed: what was released can be overwritten.
    pub(crate) fn reuse(&mut self, first_needed: GroupSequence) {
        while self.released.front().is_some_and(|file| file.last_sequence < first_needed) {
            let mut file = self.released.pop_front().expect("there is one");
            file.generation += 1;
            file.end = HEADER_BYTES as u64;
            file.first_sequence = GroupSequence(0);
            file.last_sequence = GroupSequence(0);
            self.spares.push_back(file);
        }
    }

    /// Who holds the oldest file, if it is not the current one.
    pub(crate) fn pins(&self) -> impl Iterator<Item = (ShardId, Lsn)> + '_ {
        let oldest = if self.held.len() > 1 { self.held.front() } else { None };
        oldest.into_iter().flat_map(|file| file.pins.iter().map(|(shard, lsn)| (*shard, *lsn)))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = FileKey> + '_ {
        self.held.iter().chain(&self.released).chain(&self.spares).map(|file| file.key)
    }
}
