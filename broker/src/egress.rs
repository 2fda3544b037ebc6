//! **What**: copies of large batches that a core lends to its QUIC connections: one per core and batch, not one per
//! subscriber. Small batches are cheaper to copy into each packet's stream buffer.
//!
//! ```text
//! SharedBatch (owner's memory) --first subscriber--> egress buffer --Arc--> quiche of every subscriber, until acked
//!                                                        ^----------- reused when the last one let go ----'
//! ```
//!
//! **Invariants**: what connections hold for retransmission is this core's memory, within `bytes_max`, and never the
//! owner's: a subscriber that stops acknowledging cannot make the owner refuse appends. Beyond the bound deliveries are
//! copied as small ones are.
//!
//! **Never**: an egress buffer written while anybody else holds it; a batch found by its address alone (an entry keeps a
//! handle of its batch, so the address cannot belong to another one).
//!
//! **See**: `delivery.rs`.

use felix_quic::LentBytes;
use felix_shard::batch_pool::SharedBatch;
use std::collections::VecDeque;
use std::sync::Arc;

/// Batches from this size on are lent. Below, the copy (some 50 ns for 4 KiB in cache) is cheaper than the bookkeeping.
pub const LEND_BYTES_MIN: usize = 4 << 10;
/// Batches whose copy is known: what the subscribers of a turn have in common.
const RECENT_MAX: usize = 16;
/// Returned buffers looked at per lend.
const LOOKS: usize = 4;

#[derive(Debug)]
struct Recent {
    batch: SharedBatch,
    copy: Arc<Vec<u8>>,
}

/// The lent copies of one core.
#[derive(Debug)]
pub struct Egress {
    recent: VecDeque<Recent>,
    /// Copies that may still be held, oldest first.
    lent: VecDeque<Arc<Vec<u8>>>,
    /// Capacity of all copies.
    bytes: usize,
    bytes_max: usize,
}

impl Egress {
    /// More than half of what may be lent is.
    pub fn is_half_used(&self) -> bool {
        self.bytes > self.bytes_max / 2
    }

    /// An empty one that copies at most `bytes_max` at a time.
    pub fn new(bytes_max: usize) -> Egress {
        Egress { recent: VecDeque::new(), lent: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Bytes of all copies, held or not.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A handle for one more subscriber of a batch; None: too small to lend, or no room.
    pub fn lend(&mut self, batch: &SharedBatch) -> Option<LentBytes> {
        if batch.bytes().len() < LEND_BYTES_MIN {
            return None;
        }
        if let Some(known) = self.recent.iter().rev().find(|it| it.batch.is_same(batch)) {
            return Some(known.copy.clone());
        }
        let copy = self.copy(batch.bytes())?;
        if self.recent.len() == RECENT_MAX
            && let Some(oldest) = self.recent.pop_front()
        {
            self.lent.push_back(oldest.copy);
        }
        self.recent.push_back(Recent { batch: batch.clone(), copy: copy.clone() });
        Some(copy)
    }

    fn copy(&mut self, bytes: &[u8]) -> Option<Arc<Vec<u8>>> {
        for _ in 0..LOOKS.min(self.lent.len()) {
            let Some(mut copy) = self.lent.pop_front() else { break };
            let Some(buffer) = Arc::get_mut(&mut copy) else {
                // A connection that is slow to acknowledge: it must not hide those behind it.
                self.lent.push_back(copy);
                continue;
            };
            self.bytes -= buffer.capacity();
            if self.bytes + bytes.len() > self.bytes_max {
                continue;
            }
            buffer.clear();
            buffer.extend_from_slice(bytes);
            self.bytes += buffer.capacity();
            return Some(copy);
        }
        if self.bytes + bytes.len() > self.bytes_max {
            return None;
        }
        self.bytes += bytes.len();
        Some(Arc::new(bytes.to_vec()))
    }

    /// Lets go of what nobody holds; for an idle moment.
    pub fn trim(&mut self) {
        self.lent.extend(self.recent.drain(..).map(|it| it.copy));
        let bytes = &mut self.bytes;
        self.lent.retain(|copy| {
            let held = Arc::strong_count(copy) > 1;
            if !held {
                *bytes -= copy.capacity();
            }
            held
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use felix_protocol::batch::{BatchKind, StampedHeader};
    use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
    use felix_protocol::ids::{ShardId, StreamId};
    use felix_protocol::position::{Epoch, Lineage, Offset};
    use felix_protocol::time::Timestamp;
    use felix_shard::batch_pool::{BatchPool, CheckedBatch};

    fn batch(pool: &mut BatchPool, fill: u8, bytes: usize) -> SharedBatch {
        let mut builder = BatchBuilder::new();
        builder.push(&RecordToPublish { value: &vec![fill; bytes], ..Default::default() }).unwrap();
        let mut body = Vec::new();
        builder.finish(ProducerStamp::default(), &mut body);
        let checked = CheckedBatch::check(pool, &body, 1 << 20, None).unwrap();
        let header = StampedHeader {
            batch_bytes: checked.batch_bytes() as u32,
            kind: BatchKind::Data,
            flags: 0,
            offset_count: 1,
            stream: StreamId(1),
            shard: ShardId(1),
            epoch: Epoch(1),
            lineage: Lineage(1),
            tlv_bytes: 0,
            base_offset: Offset(0),
            append_time: Timestamp(1),
            durable_end: Offset(0),
            chain: 0,
        };
        checked.stamp(header)
    }

    #[test]
    fn subscribers_share_a_copy_and_a_returned_one_is_used_again() {
        let mut pool = BatchPool::new(1 << 20);
        let mut egress = Egress::new(1 << 20);
        let first = batch(&mut pool, 1, 5_000);
        let (one, other) = (egress.lend(&first).unwrap(), egress.lend(&first).unwrap());
        assert!(Arc::ptr_eq(&one, &other));
        assert_eq!((*one).as_ref(), first.bytes());
        assert!(egress.lend(&batch(&mut pool, 1, 100)).is_none(), "small ones are copied");
        drop((one, other));
        let held = egress.bytes();
        for fill in 0..100 {
            let next = batch(&mut pool, fill, 5_000);
            assert_eq!((*egress.lend(&next).unwrap()).as_ref(), next.bytes());
        }
        assert!(egress.bytes() <= held * (RECENT_MAX + 2), "{} bytes", egress.bytes());
        egress.trim();
        assert_eq!(egress.bytes(), 0);
    }

    #[test]
    fn what_is_held_is_bounded() {
        let mut pool = BatchPool::new(1 << 20);
        let mut egress = Egress::new(20_000);
        let held: Vec<_> = (0..10).filter_map(|fill| egress.lend(&batch(&mut pool, fill, 5_000))).collect();
        assert_eq!(held.len(), 3);
        egress.trim();
        assert_eq!(egress.lent.len(), 3, "held ones stay counted");
        drop(held);
        egress.trim();
        assert_eq!(egress.bytes(), 0);
    }
}
