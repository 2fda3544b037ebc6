//! **What**: finds the segment to begin at for an append time: a binary search by the first chunk of each segment.
//!
//! **Invariants**: the answer is a segment before which everything is older. What cannot be read, or is not what it should
//! be, counts as too new: the search ends earlier, and reading on from there meets it.
//!
//! **Never**: an answer behind a segment that was not seen to begin before the time.
//!
//! **See**: `read.rs`, its only user.

use crate::disk::{BLOCK_BYTES, DiskDone, DiskOk, DiskOp, FileKey, Priority, Ticket};
use crate::format::segment::{ChunkHeader, FIRST_CHUNK_AT};
use crate::log::ShardLog;
use crate::queue::{DiskQueue, Slot};
use felix_protocol::position::Offset;
use felix_protocol::time::Timestamp;

#[derive(Debug)]
enum Step {
    Choose,
    Open(Ticket),
    Read(Ticket),
    Close(Ticket),
}

/// A search on its way: the answer is among the segments that begin at `bases[lo..hi]`.
#[derive(Debug)]
pub(crate) struct TimeSeek {
    slot: Slot,
    time: Timestamp,
    bases: Vec<Offset>,
    lo: usize,
    hi: usize,
    step: Step,
    file: Option<FileKey>,
}

impl TimeSeek {
    /// Begins a search. None: there is nothing to choose from.
    pub(crate) fn new(slot: Slot, time: Timestamp, log: &ShardLog) -> Option<TimeSeek> {
        let bases: Vec<Offset> = log.segments.iter().map(|it| it.base).collect();
        let hi = bases.len();
        (hi > 1).then_some(TimeSeek { slot, time, bases, lo: 0, hi, step: Step::Choose, file: None })
    }

    /// Nothing of it is under way.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.step, Step::Choose)
    }

    fn middle(&self) -> usize {
        self.lo + (self.hi - self.lo) / 2
    }

    /// Plans the next look. Some: begin here.
    pub(crate) fn poll(&mut self, log: &ShardLog, priority: Priority, queue: &mut DiskQueue) -> Option<Offset> {
        if !self.is_idle() {
            return None;
        }
        if self.hi - self.lo <= 1 {
            return Some(self.bases[self.lo]);
        }
        let file = queue.file_key(self.slot);
        self.file = Some(file);
        let path = log.segment_path(self.bases[self.middle()]);
        self.step = Step::Open(queue.push(self.slot, priority, DiskOp::Open { path, file }));
        None
    }

    /// Takes a completion.
    pub(crate) fn handle(&mut self, done: DiskDone, log: &ShardLog, priority: Priority, queue: &mut DiskQueue) {
        let (Step::Open(mine) | Step::Read(mine) | Step::Close(mine)) = &self.step else { return };
        if *mine != done.ticket {
            return;
        }
        let middle = self.middle();
        let Some(file) = self.file else { return };
        let op = match (&self.step, done.result) {
            (Step::Open(_), Ok(_)) => DiskOp::Read { file, at: FIRST_CHUNK_AT, bytes: BLOCK_BYTES },
            (Step::Open(_), Err(_)) => {
                self.file = None;
                self.step = Step::Choose;
                // Retention took it: what is left begins behind it.
                let expired = self.bases[middle] < log.log_start();
                *(if expired { &mut self.lo } else { &mut self.hi }) = middle;
                return;
            }
            (Step::Read(_), result) => {
                let older = matches!(result, Ok(DiskOk::Bytes(bytes)) if self.begins_before(&bytes, middle, log));
                *(if older { &mut self.lo } else { &mut self.hi }) = middle;
                DiskOp::Close { file }
            }
            (Step::Close(_) | Step::Choose, _) => {
                self.file = None;
                self.step = Step::Choose;
                return;
            }
        };
        let is_read = matches!(op, DiskOp::Read { .. });
        let ticket = queue.push(self.slot, priority, op);
        self.step = if is_read { Step::Read(ticket) } else { Step::Close(ticket) };
    }

    fn begins_before(&self, bytes: &[u8], middle: usize, log: &ShardLog) -> bool {
        ChunkHeader::decode(bytes).is_ok_and(|chunk| {
            chunk.shard == log.shard()
                && chunk.lineage == log.lineage()
                && chunk.place == FIRST_CHUNK_AT
                && chunk.range.from == self.bases[middle]
                && chunk.times.0 < self.time
        })
    }
}
