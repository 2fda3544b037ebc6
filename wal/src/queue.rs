//! **What**: where the planners of one core put their disk requests, and who gives tickets and file keys.
//!
//! **Invariants**: a ticket names its planner by a slot of the caller, so a completion finds its planner without a map.
//! Planners that share an executor have slots of their own; the core WAL has one too.
//!
//! **Never**: a ticket that two requests under way share: the number of a ticket wraps only after 2^32 requests.
//!
//! **See**: `disk.rs` for the requests, `log.rs` and `read.rs` for the planners.

use crate::disk::{DiskOp, DiskRequest, FileKey, Priority, Ticket};

/// Number by which a caller finds the planner of a completion: `Ticket::owner`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// Requests waiting to be submitted; one per core.
#[derive(Debug, Default)]
pub struct DiskQueue {
    requests: Vec<DiskRequest>,
    next: u32,
}

impl DiskQueue {
    /// An empty one.
    pub fn new() -> DiskQueue {
        DiskQueue::default()
    }

    fn number(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    /// Adds a request.
    pub fn push(&mut self, slot: Slot, priority: Priority, op: DiskOp) -> Ticket {
        let ticket = Ticket::new(slot.0, self.number());
        self.requests.push(DiskRequest { ticket, priority, op });
        ticket
    }

    /// A key for a file to open.
    pub fn file_key(&mut self, slot: Slot) -> FileKey {
        FileKey::new(slot.0, self.number())
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Hands the requests over, oldest first.
    pub fn drain(&mut self) -> std::vec::Drain<'_, DiskRequest> {
        self.requests.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_names_its_slot() {
        let mut queue = DiskQueue::new();
        for slot in [0, 1, u32::MAX] {
            let op = DiskOp::Close { file: queue.file_key(Slot(slot)) };
            assert_eq!(queue.push(Slot(slot), Priority::Background, op).owner(), slot);
        }
        let tickets: std::collections::BTreeSet<_> = queue.drain().map(|request| request.ticket).collect();
        assert_eq!(tickets.len(), 3);
    }
}
