//! **What**: the log of an ephemeral shard: a ring of batches bounded by bytes and age.
//!
//! ```text
//!   let go, still held elsewhere      log                         next append
//!   [ held ... ]                      [ log_start ...... log_end )
//! ```
//!
//! **Invariants**: batches are contiguous: each begins where the one before ends. `bytes` is the sum of the log's
//! batches, `held_bytes` of those let go but held by other cores.
//!
//! **Never**: letting go of the newest batch because of its size: one batch is always kept until it ages.
//!
//! **See**: `append.rs` (the writer), `tail.rs` (the per-core window on its end).

use crate::batch_pool::{BatchPool, SharedBatch};
use felix_protocol::position::Offset;
use felix_protocol::time::Timestamp;
use std::collections::VecDeque;

/// The log of one ephemeral shard.
#[derive(Debug, Default)]
pub struct MemoryLog {
    batches: VecDeque<SharedBatch>,
    bytes: usize,
    log_end: Offset,
    held: VecDeque<SharedBatch>,
    held_bytes: usize,
}

impl MemoryLog {
    /// First offset kept.
    pub fn log_start(&self) -> Offset {
        self.batches.front().map_or(self.log_end, |batch| batch.range().from)
    }

    /// One past the last offset.
    pub fn log_end(&self) -> Offset {
        self.log_end
    }

    /// Bytes of the batches kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes let go but still held by readers.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Batches kept.
    pub fn batch_count(&self) -> usize {
        self.batches.len()
    }

    /// Appends a batch that begins at the log's end.
    pub fn append(&mut self, batch: SharedBatch) {
        assert_eq!(batch.range().from, self.log_end, "an append must continue the log");
        self.log_end = batch.range().to;
        self.bytes += batch.bytes().len();
        self.batches.push_back(batch);
    }

    /// Lets go of what is over the bounds, oldest first. Returns the number of batches let go.
    pub fn retain(&mut self, bytes_max: u64, older_than: Option<Timestamp>, pool: &mut BatchPool) -> usize {
        let mut count = 0;
        while let Some(oldest) = self.batches.front() {
            let over_bytes = self.bytes as u64 > bytes_max && self.batches.len() > 1;
            let over_age = older_than.is_some_and(|limit| oldest.header().append_time < limit);
            if !over_bytes && !over_age {
                break;
            }
            let oldest = self.batches.pop_front().expect("front was just seen");
            self.bytes -= oldest.bytes().len();
            self.let_go(oldest, pool);
            count += 1;
        }
        count
    }

    fn let_go(&mut self, batch: SharedBatch, pool: &mut BatchPool) {
        if let Err(batch) = pool.recycle(batch) {
            self.held_bytes += batch.bytes().len();
            self.held.push_back(batch);
        }
    }

    /// Takes back what readers let go meanwhile. Looks at `budget` batches at most: readers hold a window at the end,
    /// so the oldest come free first and a batch that is still held ends the look.
    pub fn reclaim(&mut self, pool: &mut BatchPool, budget: usize) {
        for _ in 0..budget {
            let Some(batch) = self.held.pop_front() else { break };
            let bytes = batch.bytes().len();
            match pool.recycle(batch) {
                Ok(()) => self.held_bytes -= bytes,
                Err(batch) => {
                    // One reader that holds an old batch must not hide those behind it for ever: rotate.
                    self.held.push_back(batch);
                    break;
                }
            }
        }
    }

    /// Index of the batch that covers `offset`, or the first one after it. None at or past the end.
    fn find(&self, offset: Offset) -> Option<usize> {
        let index = self.batches.partition_point(|batch| batch.range().to <= offset);
        (index < self.batches.len()).then_some(index)
    }

    /// First offset appended at or after `time`; the log's end if there is none.
    pub fn find_time(&self, time: Timestamp) -> Offset {
        let index = self.batches.partition_point(|batch| batch.header().append_time < time);
        self.batches.get(index).map_or(self.log_end, |batch| batch.range().from)
    }

    /// Batches from the one that covers `offset` (or the first after it) to the end.
    pub fn read(&self, offset: Offset) -> impl Iterator<Item = &SharedBatch> {
        let from = self.find(offset).unwrap_or(self.batches.len());
        self.batches.range(from..)
    }

    /// Append time of the oldest batch.
    pub fn oldest_time(&self) -> Option<Timestamp> {
        self.batches.front().map(|batch| batch.header().append_time)
    }

    /// Lets go of everything.
    pub fn clear(&mut self, pool: &mut BatchPool) {
        while let Some(batch) = self.batches.pop_front() {
            self.let_go(batch, pool);
        }
        self.bytes = 0;
    }

    pub(crate) fn check(&self) {
        let mut bytes = 0;
        let mut end = self.log_start();
        for batch in &self.batches {
            assert_eq!(batch.range().from, end, "the log has a hole");
            end = batch.range().to;
            bytes += batch.bytes().len();
        }
        assert_eq!(end, self.log_end);
        assert_eq!(bytes, self.bytes);
        assert_eq!(self.held.iter().map(|batch| batch.bytes().len()).sum::<usize>(), self.held_bytes);
    }
}
