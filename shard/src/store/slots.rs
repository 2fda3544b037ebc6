//! **What**: which planner a disk completion is for: a slab of slots, whose number is in every ticket.
//!
//! **Invariants**: a slot is given again only after its planner said that nothing of it is under way.
//!
//! **Never**: a search per completion.
//!
//! **See**: `felix_wal::queue`.

use felix_protocol::ids::ShardId;
use felix_wal::queue::Slot;

/// Whose a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Free,
    Wal,
    /// The log of a shard, wherever it is: opening, open, leaving.
    Shard(ShardId),
    /// A reader of history, by its index.
    Reader(usize),
    /// The compaction of a shard.
    Compaction(ShardId),
    Sweep,
}

#[derive(Debug, Default)]
pub(crate) struct Slots {
    uses: Vec<Use>,
    free: Vec<u32>,
}

impl Slots {
    pub(crate) fn take(&mut self, it: Use) -> Slot {
        match self.free.pop() {
            Some(slot) => {
                self.uses[slot as usize] = it;
                Slot(slot)
            }
            None => {
                self.uses.push(it);
                Slot(self.uses.len() as u32 - 1)
            }
        }
    }

    pub(crate) fn give_back(&mut self, slot: Slot) {
        debug_assert_ne!(self.get(slot), Use::Free);
        self.uses[slot.0 as usize] = Use::Free;
        self.free.push(slot.0);
    }

    pub(crate) fn get(&self, slot: Slot) -> Use {
        self.uses.get(slot.0 as usize).copied().unwrap_or(Use::Free)
    }
}
