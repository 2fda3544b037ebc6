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

use felix_protocol::batch::{BatchKind, StampedHeader};
use felix_protocol::batch_view::{BODY_FLAG_TTL, BatchError, BodyView};
use felix_protocol::ids::{ProducerEpoch, ProducerId, Sequence};
use felix_protocol::limits::STAMPED_HEADER_BYTES;
use felix_protocol::position::OffsetRange;
use felix_protocol::routing::key_hash;
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
    /// A record has a TTL.
    pub has_ttl: bool,
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
    /// A record without a key on a channel that promised keys would decide.
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
        let facts = BodyFacts {
            record_count: view.record_count,
            producer: view.producer,
            producer_epoch: view.producer_epoch,
            base_sequence: view.base_sequence,
            crc: view.crc,
            has_ttl: view.flags & BODY_FLAG_TTL != 0,
        };
        let mut inner = pool.take();
        let unique = Arc::get_mut(&mut inner).expect("the pool hands out unique buffers");
        unique.bytes.clear();
        unique.bytes.reserve(STAMPED_HEADER_BYTES + body.len());
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
        let unique = Arc::get_mut(&mut self.inner).expect("a checked batch has one holder");
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

    /// A record has a TTL.
    pub fn has_ttl(&self) -> bool {
        self.inner.facts.has_ttl
    }

    /// Makes a batch from bytes this core derived. `record_count`: records that are left.
    pub fn from_derived(bytes: Vec<u8>, header: StampedHeader, record_count: u32, has_ttl: bool) -> SharedBatch {
        assert!(header.is_derived() && header.kind == BatchKind::Data);
        let facts = BodyFacts { record_count, has_ttl, ..BodyFacts::default() };
        SharedBatch { inner: Arc::new(Inner { bytes, header, facts }) }
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

/// Buffers of one core waiting for reuse.
#[derive(Debug)]
pub struct BatchPool {
    free: Vec<Arc<Inner>>,
    free_bytes: usize,
    bytes_max: usize,
    /// Buffers that had to be allocated.
    pub allocated: u64,
}

/// A larger buffer is given back to the allocator: keeping it would let a few huge batches own the pool.
const POOLED_BUFFER_BYTES_MAX: usize = 256 << 10;

impl BatchPool {
    /// A pool that keeps at most `bytes_max` of idle buffers.
    pub fn new(bytes_max: usize) -> BatchPool {
        BatchPool { free: Vec::new(), free_bytes: 0, bytes_max, allocated: 0 }
    }

    fn take(&mut self) -> Arc<Inner> {
        match self.free.pop() {
            Some(inner) => {
                self.free_bytes -= inner.bytes.capacity();
                inner
            }
            None => {
                self.allocated += 1;
                Arc::new(Inner { bytes: Vec::new(), header: blank_header(), facts: BodyFacts::default() })
            }
        }
    }

    /// Takes back a batch if nobody else holds it; gives it back otherwise.
    pub fn recycle(&mut self, mut batch: SharedBatch) -> Result<(), SharedBatch> {
        if Arc::get_mut(&mut batch.inner).is_none() {
            return Err(batch);
        }
        let capacity = batch.inner.bytes.capacity();
        if capacity <= POOLED_BUFFER_BYTES_MAX && self.free_bytes + capacity <= self.bytes_max {
            self.free_bytes += capacity;
            self.free.push(batch.inner);
        }
        Ok(())
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
