//! **What**: applies a key filter, or the expiry of records, to a shared batch.
//!
//! **Invariants**: a batch of which all records stay is passed on as it is, without a copy. Records without a key
//! match no filter. Buffers of derived batches are used again, so a filter allocates nothing in steady state.
//!
//! **Never**: once per subscriber for a filter: `tail.rs` keeps the outcome for all subscribers that share it.
//!
//! **See**: `felix_protocol::derive`, which makes the bytes.

use crate::batch_pool::{BatchPool, SharedBatch};
use felix_protocol::batch::StampedHeader;
use felix_protocol::batch_view::{BatchView, Entry};
use felix_protocol::derive::{DeriveScratch, Derived, derive};
use felix_protocol::pattern::Pattern;
use felix_protocol::time::Timestamp;

/// What is left of a batch.
#[derive(Clone, Debug)]
pub enum Kept {
    /// All of it.
    Whole,
    /// Nothing.
    Nothing,
    /// Some records, in a batch of their own.
    Part(SharedBatch),
}

/// Makes batches with some of the records of others; owns the memory for it.
#[derive(Debug)]
pub struct Deriver {
    scratch: DeriveScratch,
    bytes: Vec<u8>,
    pool: BatchPool,
    /// Batches that a filter was matched against.
    pub matched: u64,
}

impl Deriver {
    /// One that keeps at most `pool_bytes_max` of idle buffers.
    pub fn new(pool_bytes_max: usize) -> Deriver {
        Deriver {
            scratch: DeriveScratch::default(),
            bytes: Vec::new(),
            pool: BatchPool::new(pool_bytes_max),
            matched: 0,
        }
    }

    /// The records of a batch whose keys match.
    pub fn by_pattern(&mut self, batch: &SharedBatch, pattern: &Pattern) -> Kept {
        self.matched += 1;
        self.keep(batch, |entry| entry.key.is_some_and(|key| pattern.matches(key)))
    }

    /// The records of a batch that have not expired at `now` (append time + TTL).
    pub fn unexpired(&mut self, batch: &SharedBatch, now: Timestamp) -> Kept {
        // Most batches are delivered long before anything in them expires: no look at the records then.
        if batch.first_expiry().is_none_or(|first| first > now) {
            return Kept::Whole;
        }
        let appended = batch.header().append_time;
        self.keep(batch, |entry| entry.ttl_ms.is_none_or(|ttl| appended.saturating_add_ns(ttl_ns(ttl)) > now))
    }

    /// Takes back what was derived here, if nobody else holds it.
    pub fn take_back(&mut self, kept: Kept) {
        if let Kept::Part(part) = kept {
            self.take_back_batch(part);
        }
    }

    /// The same for a bare batch. A batch of the owner is only let go: its memory is the owner's.
    pub fn take_back_batch(&mut self, batch: SharedBatch) {
        if batch.header().is_derived() {
            let _ = self.pool.recycle(batch);
        }
    }

    fn keep(&mut self, batch: &SharedBatch, mut stays: impl FnMut(&Entry<'_>) -> bool) -> Kept {
        const CHECKED: &str = "a batch in memory was checked before its stamp";
        let view = BatchView::parse(batch.bytes()).expect(CHECKED);
        let mut kept = 0;
        let mut ttl_ms_min = None;
        self.bytes.clear();
        let derived = derive(
            &view,
            |entry| {
                let it = stays(entry);
                if it {
                    kept += 1;
                    ttl_ms_min = shorter(ttl_ms_min, entry.ttl_ms);
                }
                it
            },
            &mut self.scratch,
            &mut self.bytes,
        )
        .expect(CHECKED);
        match derived {
            Derived::All => Kept::Whole,
            Derived::Nothing => Kept::Nothing,
            Derived::Some => {
                let header = StampedHeader::decode(&self.bytes).expect("we just made it");
                Kept::Part(self.pool.share_derived(&self.bytes, header, kept, ttl_ms_min))
            }
        }
    }
}

/// A TTL in nanoseconds.
pub(crate) fn ttl_ns(ttl_ms: u64) -> u64 {
    ttl_ms.saturating_mul(1_000_000)
}

/// The shorter of two TTLs, where None never ends.
pub(crate) fn shorter(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
