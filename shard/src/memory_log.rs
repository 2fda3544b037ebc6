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
    /// Where the next look behind the oldest held batch falls, modulo their number.
    probe: u32,
}

/// Batches that one look at retention lets go: a burst that ages at once must not stop the core for its whole length.
pub const EVICT_BATCHES_MAX: usize = 1_024;

impl MemoryLog {
    /// An empty log that goes on at this offset.
    pub fn starting_at(offset: Offset) -> MemoryLog {
        MemoryLog { log_end: offset, ..MemoryLog::default() }
    }

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

    /// More is kept than this many bytes, and it could be let go.
    pub fn is_over(&self, bytes_max: u64) -> bool {
        self.bytes as u64 > bytes_max && self.batches.len() > 1
    }

    /// Lets go of what is over the bounds, oldest first, `EVICT_BATCHES_MAX` at most. Returns the number of batches let
    /// go.
    pub fn retain(&mut self, bytes_max: u64, older_than: Option<Timestamp>, pool: &mut BatchPool) -> usize {
        let mut count = 0;
        while let Some(oldest) = self.batches.front() {
            let over_age = older_than.is_some_and(|limit| oldest.header().append_time < limit);
            if count == EVICT_BATCHES_MAX || !(over_age || self.is_over(bytes_max)) {
                break;
            }
            let oldest = self.batches.pop_front().expect("front was just seen");
            self.bytes -= oldest.bytes().len();
            self.let_go(oldest, pool);
            count += 1;
        }
        count
    }

    /// Lets go of batches that end at or below `floor`, oldest first, as long as more than `keep_bytes` are left. Returns
    /// their number, `EVICT_BATCHES_MAX` at most.
    pub fn evict_below(&mut self, floor: Offset, keep_bytes: usize, pool: &mut BatchPool) -> usize {
        let mut count = 0;
        while count < EVICT_BATCHES_MAX
            && self.bytes > keep_bytes
            && let Some(oldest) = self.batches.pop_front_if(|oldest| oldest.range().to <= floor)
        {
            self.bytes -= oldest.bytes().len();
            self.let_go(oldest, pool);
            count += 1;
        }
        count
    }

    /// `evict_below` would let go of one.
    pub fn may_evict_below(&self, floor: Offset, keep_bytes: usize) -> bool {
        self.bytes > keep_bytes && self.batches.front().is_some_and(|oldest| oldest.range().to <= floor)
    }

    fn let_go(&mut self, batch: SharedBatch, pool: &mut BatchPool) {
        if let Err(batch) = pool.recycle(batch) {
            self.held_bytes += batch.bytes().len();
            self.held.push_back(batch);
        }
    }

    /// Takes back what readers let go meanwhile; `budget` batches at most. Readers hold windows at the end, so the
    /// oldest come free first, and an oldest that is still held ends the look. Unless one behind it is free: then a
    /// straggler reads the oldest, and it goes to the back so that it hides nobody.
    pub fn reclaim(&mut self, pool: &mut BatchPool, budget: usize) {
        for _ in 0..budget {
            let Some(oldest) = self.held.pop_front() else { break };
            let bytes = oldest.bytes().len();
            let Err(oldest) = pool.recycle(oldest) else {
                self.held_bytes -= bytes;
                continue;
            };
            // Golden-ratio steps visit all of a queue that moves on by one per append; steps of one would run with it.
            self.probe = self.probe.wrapping_add(0x9e37_79b9);
            match self.held.get(self.probe as usize % self.held.len().max(1)) {
                Some(other) if other.is_unique() => self.held.push_back(oldest),
                _ => {
                    self.held.push_front(oldest);
                    break;
                }
            }
        }
    }

    /// Index of the batch that covers `offset`, or the first one after it. None at or past the end.
    fn find(&self, offset: Offset) -> Option<usize> {
        // Commits read the newest: no search through a log of cold headers for that.
        if self.batches.back().is_some_and(|newest| newest.range().from <= offset) {
            return (offset < self.log_end).then(|| self.batches.len() - 1);
        }
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

#[cfg(test)]
mod tests;
