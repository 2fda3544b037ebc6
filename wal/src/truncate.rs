//! **What**: cuts the end of a log off: finds the boundary, makes the new end durable in the meta, then moves whole
//! segments behind it to quarantine.
//!
//! **Invariants**: a cut is logical: it counts when the meta is durable, before any file is touched. It falls between two
//! batches. The next flush begins a new segment at the cut, so cut-off bytes are never overwritten in place.
//!
//! **Never**: a cut below what compaction has rewritten or retention removed, or through a batch.
//!
//! **See**: `log.rs` for jobs, REPLICATION rules for who may ask for a cut.

use crate::disk::{DiskDone, DiskOp, Priority};
use crate::format::meta::{CUTS_MAX, Cut, GAPS_MAX, ShardMeta};
use crate::log::{Job, JobError, MetaChange, SegmentRef, ShardLog};
use crate::queue::{DiskQueue, Slot};
use crate::read::{ReadError, ReadFrom, ReadSettings, ReadState, Reader};
use crate::script::{Next, OpenChange, Script, SegmentsChange, Step};
use felix_protocol::position::{Offset, OffsetRange};
use felix_protocol::time::Timestamp;
use std::collections::VecDeque;
use std::fmt;

/// Why no boundary was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutError {
    /// The offset lies within a batch.
    InsideBatch(OffsetRange),
    /// Compaction took out what ends at the offset; nobody knows the chain there any more.
    Compacted(Offset),
    /// Reading failed: nothing is cut.
    Read(Box<ReadError>),
}

impl fmt::Display for CutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CutError::InsideBatch(range) => write!(f, "the cut falls into the batch {}..{}", range.from, range.to),
            CutError::Compacted(to) => write!(f, "compaction took out what ends at {to}"),
            CutError::Read(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CutError {}

/// A place between two batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutPoint {
    /// End of the log after the cut.
    pub to: Offset,
    /// Chain of the batch before.
    pub chain: u64,
    /// Append time of the batch before.
    pub time: Timestamp,
}

/// Looks for the batch before a cut.
#[derive(Debug)]
pub struct FindCut {
    reader: Reader,
    to: Offset,
}

impl FindCut {
    /// Begins the search. The slot must be free.
    pub fn new(slot: Slot, log: &ShardLog, to: Offset) -> Result<FindCut, JobError> {
        log.check_cut(to)?;
        let from = to.0.checked_sub(1).map_or(to, Offset).max(log.log_start());
        let settings = ReadSettings { windows_max: 1, ..Default::default() };
        Ok(FindCut { reader: Reader::new(slot, ReadFrom::Offset(from), settings), to })
    }

    /// Plans reads. Some: the search has ended; close it before the cut.
    pub fn poll(&mut self, log: &ShardLog, queue: &mut DiskQueue) -> Option<Result<CutPoint, CutError>> {
        let to = self.to;
        if to == Offset(0) {
            return Some(Ok(CutPoint { to, chain: 0, time: Timestamp(0) }));
        }
        match self.reader.poll(log, queue) {
            ReadState::Waiting => None,
            ReadState::Failed(error) => Some(Err(CutError::Read(error))),
            // The end of the log: nothing is cut.
            ReadState::AtEnd => {
                let end = log.cursor();
                Some(Ok(CutPoint { to: end.next, chain: end.chain, time: end.time }))
            }
            ReadState::Ready => {
                let (before, chain) = self.reader.before()?;
                let header = self.reader.next_batch()?.header;
                let range = header.range();
                Some(if range.to == to {
                    Ok(CutPoint { to, chain: header.chain, time: header.append_time })
                } else if range.from == to && before == to {
                    // The log start is the boundary: the batch before is gone, its chain is known.
                    Ok(CutPoint { to, chain, time: Timestamp(0) })
                } else if range.from >= to {
                    Err(CutError::Compacted(to))
                } else {
                    Err(CutError::InsideBatch(range))
                })
            }
        }
    }

    /// Takes a completion of its slot.
    pub fn handle(&mut self, done: DiskDone, log: &ShardLog, queue: &mut DiskQueue) {
        self.reader.handle(done, log, queue);
    }

    /// Closes its file.
    pub fn close(&mut self, queue: &mut DiskQueue) {
        self.reader.close(queue);
    }

    /// Nothing of it is under way.
    pub fn is_closed(&self) -> bool {
        self.reader.is_closed()
    }
}

/// Offsets from the end of the log to `to` become a gap.
pub(crate) fn leave_out(meta: &mut ShardMeta, to: Offset) -> Result<(), JobError> {
    let range = OffsetRange { from: meta.flushed_to, to };
    if range.to <= range.from {
        let range = OffsetRange { from: range.from, to: Offset(u64::MAX) };
        return Err(JobError::OutOfRange { offset: to, range });
    }
    let is_full = meta.gaps.len() >= GAPS_MAX;
    match meta.gaps.last_mut().filter(|last| last.to == range.from) {
        Some(last) => last.to = to,
        None if is_full => return Err(JobError::TooManyGaps),
        None => meta.gaps.push(range),
    }
    meta.flushed_to = to;
    Ok(())
}

impl ShardLog {
    fn check_cut(&self, to: Offset) -> Result<(), JobError> {
        let range = OffsetRange { from: self.meta.log_start.max(self.meta.compacted_to), to: self.meta.flushed_to };
        if to < range.from || to > range.to {
            return Err(JobError::OutOfRange { offset: to, range });
        }
        Ok(())
    }

    /// Cuts the log. `now` names the quarantine. Readers beyond the cut are to be closed by their owners first.
    pub fn cut(
        &mut self,
        point: CutPoint,
        change: &MetaChange,
        now: Timestamp,
        queue: &mut DiskQueue,
    ) -> Result<(), JobError> {
        self.cut_to(point, None, change, now, queue)
    }

    /// Cuts what somebody was told of: the log goes on at `go_on_at`, and readers meet the offsets before it as a gap, so that
    /// none is given twice (DECISIONS 9).
    pub fn cut_and_go_on_at(
        &mut self,
        point: CutPoint,
        go_on_at: Offset,
        change: &MetaChange,
        now: Timestamp,
        queue: &mut DiskQueue,
    ) -> Result<(), JobError> {
        self.cut_to(point, Some(go_on_at), change, now, queue)
    }

    fn cut_to(
        &mut self,
        point: CutPoint,
        go_on_at: Option<Offset>,
        change: &MetaChange,
        now: Timestamp,
        queue: &mut DiskQueue,
    ) -> Result<(), JobError> {
        self.may_begin()?;
        change.check()?;
        self.check_cut(point.to)?;
        let to = point.to;
        let mut meta = self.next_meta();
        if meta.cuts.len() == CUTS_MAX {
            meta.cuts.remove(0);
        }
        meta.cuts.push(Cut { to, end_before: meta.flushed_to });
        meta.flushed_to = to;
        meta.chain = point.chain;
        meta.time = point.time;
        meta.open = None;
        meta.void_from = Some(meta.void_from.map_or(to, |held| held.min(to)));
        meta.epochs.retain(|it| it.start < to);
        meta.gaps.retain(|gap| gap.from < to);
        for gap in &mut meta.gaps {
            gap.to = gap.to.min(to);
        }
        meta.switch = meta.switch.filter(|range| range.to <= to);
        if let Some(go_on_at) = go_on_at {
            leave_out(&mut meta, go_on_at)?;
        }
        change.apply(&mut meta);
        let mut steps = VecDeque::from([self.meta_step(&meta), Step::Commit]);
        let mut sealed = None;
        if let Some(open) = &self.open {
            let path = self.segment_path(open.base);
            if let Some(file) = open.file {
                steps.push_back(Step::Op(path, DiskOp::Close { file }));
            }
            sealed = Some(SegmentRef { base: open.base, bytes: open.size });
        }
        let void = self.segments.iter().map(|it| it.base).chain(self.open.as_ref().map(|it| it.base));
        for base in void.filter(|base| *base >= to) {
            steps.push_back(Step::Quarantine(self.segment_path(base)));
            steps.push_back(Step::Quarantine(self.index_path(base)));
        }
        let next = Next { meta, segments: SegmentsChange::Cut(sealed), open: OpenChange::To(None) };
        self.begin(Job::Truncate, Script::new(steps, Some(next), Priority::Commit, now), queue);
        Ok(())
    }
}
