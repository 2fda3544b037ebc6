//! **What**: where the planners of one core put their disk requests, and who gives tickets and file keys.
//!
//! **Invariants**: a ticket or file key of this half of the crate has its top bit set, so it never meets one of the core
//! WAL. A ticket names its slot, a number of the caller, so a completion finds its planner without a map.
//!
//! **Never**: a ticket that two requests under way share: the counter wraps only after 2^39 requests.
//!
//! **See**: `disk.rs` for the requests, `log.rs` and `read.rs` for the planners.

use crate::disk::{DiskOp, DiskRequest, FileKey, Priority, Ticket};

const OURS: u64 = 1 << 63;
const SLOT_SHIFT: u32 = 39;
/// Owners that can be told apart.
pub const SLOTS_MAX: u32 = 1 << (63 - SLOT_SHIFT);

/// Number by which a caller finds the planner of a completion, below `SLOTS_MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// Requests waiting to be submitted.
#[derive(Debug, Default)]
pub struct DiskQueue {
    requests: Vec<DiskRequest>,
    next_ticket: u64,
    next_file: u64,
}

impl DiskQueue {
    /// An empty one; one per core.
    pub fn new() -> DiskQueue {
        DiskQueue::default()
    }

    /// Adds a request.
    pub fn push(&mut self, slot: Slot, priority: Priority, op: DiskOp) -> Ticket {
        assert!(slot.0 < SLOTS_MAX, "slot {} is out of range", slot.0);
        let number = self.next_ticket & ((1 << SLOT_SHIFT) - 1);
        self.next_ticket += 1;
        let ticket = Ticket(OURS | u64::from(slot.0) << SLOT_SHIFT | number);
        self.requests.push(DiskRequest { ticket, priority, op });
        ticket
    }

    /// A key for a file to open.
    pub fn file_key(&mut self) -> FileKey {
        self.next_file += 1;
        FileKey(OURS | self.next_file)
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Hands the requests over, oldest first.
    pub fn drain(&mut self) -> std::vec::Drain<'_, DiskRequest> {
        self.requests.drain(..)
    }

    /// Who made the request of a ticket. None: not from a `DiskQueue`.
    pub fn slot(ticket: Ticket) -> Option<Slot> {
        (ticket.0 & OURS != 0).then_some(Slot((ticket.0 >> SLOT_SHIFT) as u32 & (SLOTS_MAX - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_names_its_owner() {
        let mut queue = DiskQueue::new();
        for slot in [0, 1, SLOTS_MAX - 1] {
            let op = DiskOp::Close { file: queue.file_key() };
            let ticket = queue.push(Slot(slot), Priority::Background, op);
            assert_eq!(DiskQueue::slot(ticket), Some(Slot(slot)));
        }
        let tickets: std::collections::BTreeSet<_> = queue.drain().map(|request| request.ticket).collect();
        assert_eq!(tickets.len(), 3);
        assert_eq!(DiskQueue::slot(Ticket(7)), None, "of the core WAL");
    }
}
