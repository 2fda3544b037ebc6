//! **What**: the memory of batches: a checked body waiting for its stamp, and the immutable shared batch after it.
//!
//! ```text
//! bytes from a channel --check--> CheckedBatch (unique) --stamp--> SharedBatch (immutable, counted)
//!                                      ^                                |
//!                                      +---- BatchPool <---- last holder but the owner let go
//! ```
//!
//! **Invariants**: only a body that passed `check_publish` becomes a batch. Bytes of a `SharedBatch` never change.
//! The owner keeps a handle until every other holder let go, so memory is freed and reused on the owner's core only,
//! and stays charged to it (DECISIONS 24).
//!
//! **Never**: an allocation per append in steady state: buffers that retention lets go are used again.
//!
//! **See**: `memory_log.rs`, which owns them.

use crate::filter::{shorter, ttl_ns};
use felix_protocol::batch::{BatchKind, StampedHeader};
use felix_protocol::batch_view::{BODY_FLAG_TTL, BatchError, BatchView, BodyView};
use felix_protocol::ids::{ProducerEpoch, ProducerId, Sequence};
use felix_protocol::limits::STAMPED_HEADER_BYTES;
use felix_protocol::position::OffsetRange;
use felix_protocol::routing::key_hash;
use felix_protocol::time::Timestamp;
use std::sync::Arc;

/// What a shard must know of a body to append it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BodyFacts {
    /// Records in it.
    pub record_count: u32,
    /// Producer, 0 if anonymous.
    pub producer: ProducerId,
    /// Its incarnation.
    pub producer_epoch: ProducerEpoch,
    /// Sequence of its first record.
    pub base_sequence: Sequence,
    /// Checksum of the body.
    pub crc: u32,
    /// Shortest TTL of its records; None if no record has one.
    pub ttl_ms_min: Option<u64>,
}

impl BodyFacts {
    /// The facts of a batch as it is stored, whose checksums were checked. None: this build cannot read its body.
    pub fn of_stored(batch: &[u8]) -> Option<BodyFacts> {
        let view = BatchView::parse(batch).ok()?.body;
        let mut ttl_ms_min = None;
        if view.flags & BODY_FLAG_TTL != 0 {
            for entry in view.entries() {
                ttl_ms_min = shorter(ttl_ms_min, entry.ok()?.ttl_ms);
            }
        }
        Some(BodyFacts {
            record_count: view.record_count,
            producer: view.producer,
            producer_epoch: view.producer_epoch,
            base_sequence: view.base_sequence,
            crc: view.crc,
            ttl_ms_min,
        })
    }
}

#[derive(Debug)]
struct Inner {
    bytes: Vec<u8>,
    header: StampedHeader,
    facts: BodyFacts,
}

/// A body that was checked, with room in front for the stamp. Owned by one holder.
#[derive(Debug)]
pub struct CheckedBatch {
    inner: Arc<Inner>,
}

/// Why a body was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckError {
    /// It breaks the format.
    Batch(BatchError),
    /// A record's key is outside the shard's hash range.
    WrongShard {
        /// Index of the record in the batch.
        record: u32,
    },
    /// It is larger than the stream allows.
    TooLarge {
        /// Bytes of the body.
        bytes: usize,
        /// Bytes the stream allows.
        max: usize,
    },
}

/// Range of key hashes, inclusive at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashRange {
    /// First hash.
    pub first: u64,
    /// Last hash.
    pub last: u64,
}

impl CheckedBatch {
    /// Checks a body as it came from a producer and copies it into a buffer of the pool.
    /// `keyed`: every key must hash into this range (records without a key go anywhere).
    pub fn check(
        pool: &mut BatchPool,
        body: &[u8],
        bytes_max: usize,
        keyed: Option<HashRange>,
    ) -> Result<CheckedBatch, CheckError> {
        if body.len() > bytes_max {
            return Err(CheckError::TooLarge { bytes: body.len(), max: bytes_max });
        }
        let view = BodyView::parse(body).map_err(CheckError::Batch)?;
        view.check_publish().map_err(CheckError::Batch)?;
        if let Some(range) = keyed
            && (range.first, range.last) != (0, u64::MAX)
        {
            for (record, entry) in view.entries().enumerate() {
                let entry = entry.map_err(CheckError::Batch)?;
                if let Some(key) = entry.key
                    && !(range.first..=range.last).contains(&key_hash(key))
                {
                    return Err(CheckError::WrongShard { record: record as u32 });
                }
            }
        }
        let mut ttl_ms_min = None;
        if view.flags & BODY_FLAG_TTL != 0 {
            for entry in view.entries() {
                ttl_ms_min = shorter(ttl_ms_min, entry.map_err(CheckError::Batch)?.ttl_ms);
            }
        }
        let facts = BodyFacts {
            record_count: view.record_count,
            producer: view.producer,
            producer_epoch: view.producer_epoch,
            base_sequence: view.base_sequence,
            crc: view.crc,
            ttl_ms_min,
        };
        let mut inner = pool.take(STAMPED_HEADER_BYTES + body.len());
        let unique = unique(&mut inner);
        unique.bytes.extend_from_slice(&[0; STAMPED_HEADER_BYTES]);
        unique.bytes.extend_from_slice(body);
        unique.facts = facts;
        Ok(CheckedBatch { inner })
    }

    /// What the shard must know.
    pub fn facts(&self) -> &BodyFacts {
        &self.inner.facts
    }

    /// Bytes of the whole batch once stamped.
    pub fn batch_bytes(&self) -> usize {
        self.inner.bytes.len()
    }

    /// Writes the stamp; from here on the bytes are immutable.
    pub fn stamp(mut self, header: StampedHeader) -> SharedBatch {
        let unique = unique(&mut self.inner);
        assert_eq!(header.batch_bytes as usize, unique.bytes.len(), "the stamp tells another size than the bytes have");
        assert_eq!(header.offset_count, unique.facts.record_count, "the stamp covers other records than the body has");
        unique.bytes[..STAMPED_HEADER_BYTES].copy_from_slice(&header.encode());
        unique.header = header;
        SharedBatch { inner: self.inner }
    }
}

/// An immutable batch, shared by reference count.
#[derive(Clone, Debug)]
pub struct SharedBatch {
    inner: Arc<Inner>,
}

impl SharedBatch {
    /// All bytes: stamped header, body, stamped TLVs.
    pub fn bytes(&self) -> &[u8] {
        &self.inner.bytes
    }

    /// The stamped header.
    pub fn header(&self) -> &StampedHeader {
        &self.inner.header
    }

    /// Offsets covered.
    pub fn range(&self) -> OffsetRange {
        self.inner.header.range()
    }

    /// Records in it.
    pub fn record_count(&self) -> u32 {
        self.inner.facts.record_count
    }

    /// When the first of its records expires; None if none ever does.
    pub fn first_expiry(&self) -> Option<Timestamp> {
        let ttl_ms = self.inner.facts.ttl_ms_min?;
        Some(self.inner.header.append_time.saturating_add_ns(ttl_ns(ttl_ms)))
    }

    /// Whether both are handles of one batch.
    pub fn is_same(&self, other: &SharedBatch) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Whether this handle is the only one.
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.inner) == 1
    }
}

fn blank_header() -> StampedHeader {
    StampedHeader {
        batch_bytes: 0,
        kind: BatchKind::Data,
        flags: 0,
        offset_count: 0,
        stream: Default::default(),
        shard: Default::default(),
        epoch: Default::default(),
        lineage: Default::default(),
        tlv_bytes: 0,
        base_offset: Default::default(),
        append_time: Default::default(),
        durable_end: Default::default(),
        chain: 0,
    }
}

fn unique(inner: &mut Arc<Inner>) -> &mut Inner {
    Arc::get_mut(inner).expect("a batch that is not shared yet has one holder")
}

/// Buffers of one core waiting for reuse, by size: a class holds buffers of at least `256 << class` bytes. A batch gets a
/// buffer of its class, so memory is at most twice the bytes; with one list for all sizes every buffer would grow to
/// the largest batch it ever carried.
#[derive(Debug)]
pub struct BatchPool {
    free: [Vec<Arc<Inner>>; CLASSES],
    free_bytes: usize,
    bytes_max: usize,
    /// Buffers that had to be allocated.
    pub allocated: u64,
}

const CLASS_BITS_MIN: u32 = 8;
/// A larger buffer is given back to the allocator: keeping it would let a few huge batches own the pool.
const CLASS_BITS_MAX: u32 = 18;
const CLASSES: usize = (CLASS_BITS_MAX - CLASS_BITS_MIN + 1) as usize;

/// Class whose buffers hold this many bytes; None: not pooled.
fn class_for(bytes: usize) -> Option<usize> {
    let bits = bytes.next_power_of_two().trailing_zeros().max(CLASS_BITS_MIN);
    (bits <= CLASS_BITS_MAX).then(|| (bits - CLASS_BITS_MIN) as usize)
}

/// Class that a buffer belongs to; None: not pooled.
fn class_of(capacity: usize) -> Option<usize> {
    let bits = capacity.checked_ilog2()?;
    (CLASS_BITS_MIN..=CLASS_BITS_MAX).contains(&bits).then(|| (bits - CLASS_BITS_MIN) as usize)
}

/// What an idle buffer costs.
fn cost(inner: &Inner) -> usize {
    inner.bytes.capacity() + size_of::<Inner>()
}

impl BatchPool {
    /// A pool that keeps at most `bytes_max` of idle buffers.
    pub fn new(bytes_max: usize) -> BatchPool {
        BatchPool { free: Default::default(), free_bytes: 0, bytes_max, allocated: 0 }
    }

    /// An empty buffer with room for `bytes`.
    fn take(&mut self, bytes: usize) -> Arc<Inner> {
        let class = class_for(bytes);
        if let Some(mut inner) = class.and_then(|class| self.free[class].pop()) {
            self.free_bytes -= cost(&inner);
            unique(&mut inner).bytes.clear();
            return inner;
        }
        self.allocated += 1;
        let capacity = class.map_or(bytes, |class| 1 << (class as u32 + CLASS_BITS_MIN));
        Arc::new(Inner { bytes: Vec::with_capacity(capacity), header: blank_header(), facts: BodyFacts::default() })
    }

    /// Makes a batch from bytes that were derived. `record_count` and `ttl_ms_min` are of the records left.
    pub(crate) fn share_derived(
        &mut self,
        bytes: &[u8],
        header: StampedHeader,
        record_count: u32,
        ttl_ms_min: Option<u64>,
    ) -> SharedBatch {
        assert!(header.is_derived() && header.kind == BatchKind::Data);
        let mut inner = self.take(bytes.len());
        let it = unique(&mut inner);
        it.bytes.extend_from_slice(bytes);
        it.header = header;
        it.facts = BodyFacts { record_count, ttl_ms_min, ..BodyFacts::default() };
        SharedBatch { inner }
    }

    /// Makes a batch from bytes as they are stored. None: this build cannot read them.
    pub fn share_stored(&mut self, bytes: &[u8]) -> Option<SharedBatch> {
        let header = StampedHeader::decode(bytes).ok()?;
        let facts = BodyFacts::of_stored(bytes)?;
        let mut inner = self.take(bytes.len());
        let it = unique(&mut inner);
        it.bytes.extend_from_slice(bytes);
        it.header = header;
        it.facts = facts;
        Some(SharedBatch { inner })
    }

    /// Takes back a batch if nobody else holds it; gives it back otherwise.
    pub fn recycle(&mut self, mut batch: SharedBatch) -> Result<(), SharedBatch> {
        if Arc::get_mut(&mut batch.inner).is_none() {
            return Err(batch);
        }
        let cost = cost(&batch.inner);
        if let Some(class) = class_of(batch.inner.bytes.capacity())
            && self.make_room(cost, class)
        {
            self.free_bytes += cost;
            self.free[class].push(batch.inner);
        }
        Ok(())
    }

    /// Lets go of idle buffers of other sizes, largest first, so that sizes used in the past do not own the pool.
    fn make_room(&mut self, bytes: usize, class: usize) -> bool {
        while self.free_bytes + bytes > self.bytes_max {
            let other = (0..CLASSES).rev().find(|it| *it != class && !self.free[*it].is_empty());
            let Some(dropped) = other.and_then(|it| self.free[it].pop()) else { return false };
            self.free_bytes -= cost(&dropped);
        }
        true
    }

    /// Takes back a body that was never stamped.
    pub fn put_back(&mut self, batch: CheckedBatch) {
        let _ = self.recycle(SharedBatch { inner: batch.inner });
    }

    /// Idle bytes.
    pub fn idle_bytes(&self) -> usize {
        self.free_bytes
    }
}

#[cfg(test)]
mod tests;
