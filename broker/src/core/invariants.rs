//! **What**: what must always hold of a core, and what must hold once nobody asks anything of it any more. For tests and
//! simulation.
//!
//! **Invariants**: these.
//!
//! **Never**: a check that repairs.
//!
//! **See**: `felix_shard::invariants`, `admission.rs` for the bounds.

use super::Core;
use felix_protocol::ids::{CoreId, ShardId};
use felix_shard::shard::Shard;
use std::collections::VecDeque;

impl Core {
    /// Panics with the invariant that is broken.
    pub fn check(&self) {
        felix_shard::invariants::check(&self.shards, &self.fan_out);
        for (to, full) in self.full.iter().enumerate().take(usize::from(self.config.core_count)) {
            assert!(*full || !self.shards.is_stalled(CoreId(to as u8)), "a stalled commit that nobody resumes");
        }
    }

    /// A shard that this core leads.
    pub fn shard(&self, shard: ShardId) -> Option<&Shard> {
        self.shards.get(shard)
    }

    /// The first thing that is not as it was before the first client came; None: all is back.
    pub fn unrest(&self) -> Option<String> {
        let counts = [
            ("sessions", self.sessions.count()),
            ("subscriptions", self.fan_out.count()),
            ("messages in outboxes", self.outboxes.iter().map(VecDeque::len).sum()),
            ("full rings", self.full.iter().filter(|it| **it).count()),
            ("forwarded batches", self.forwarded.iter().map(|it| *it as usize).sum()),
            ("stalled channels", self.stalled.len()),
            ("channels with acks", self.ack_queue.len()),
            ("delivery streams", self.delivery_queue.len()),
            ("sessions with datagrams", self.datagram_queue.len()),
            ("sessions with control frames", self.control_queue.len()),
            ("requests for producer ids", self.producer_waiting.len()),
            ("sessions that must say Hello", self.hello_queue.len()),
        ];
        counts.iter().find(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}"))
    }
}
