//! **What**: what a log may forget: by age and size as whole sealed segments, never past a floor without saying so.
//!
//! **Invariants**: the log start moves first, durably; then files go to quarantine; only from there, after a grace time,
//! are they removed. A segment without a readable index has no age and stays.
//!
//! **Never**: a file removed because nothing is known about it.
//!
//! **See**: `log.rs` for jobs, `quarantine.rs` for the end of files, `index_rebuild.rs` for missing indexes.

use crate::disk::{BLOCK_BYTES, DiskDone, DiskOk, DiskOp, Priority, Ticket};
use crate::format::header::{FileHeader, Owner};
use crate::format::index::{INDEX_BYTES_MAX, SegmentIndex};
use crate::format::meta::ShardMeta;
use crate::format::names::SegmentId;
use crate::listing;
use crate::log::{Job, JobError, ShardLog};
use crate::queue::{DiskQueue, Slot};
use crate::script::{Next, OpenChange, Script, SegmentsChange, Step};
use felix_protocol::position::{Offset, OffsetRange};
use felix_protocol::time::Timestamp;
use std::collections::VecDeque;

/// Segments that one job takes at most: bounds its time.
pub const RETAIN_SEGMENTS_MAX: usize = 64;

/// What to do when retention wants what somebody still needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FloorRule {
    /// The data stays; the plan says how much is held.
    #[default]
    Keep,
    /// The data goes; the plan says what was lost to whom it concerns.
    Expire,
}

/// What may be forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetainPolicy {
    /// Oldest age of a segment's last batch; None: any.
    pub age_ns: Option<u64>,
    /// Largest size of all segments; None: any.
    pub bytes: Option<u64>,
    /// Oldest cursor, lease or checkpoint.
    pub floor: Option<Offset>,
    /// What the floor is worth.
    pub floor_rule: FloorRule,
}

/// What retention will do, and what not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetainPlan {
    /// The log start from then on.
    pub log_start: Offset,
    /// Segments that go.
    pub segments: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that age or size would take, held by the floor.
    pub held_bytes: u64,
    /// Offsets from the floor on that go all the same.
    pub expired: Option<OffsetRange>,
    /// A segment without a readable index stopped the search by age.
    pub unknown_age: Option<Offset>,
    /// There is more to forget: ask again.
    pub more: bool,
}

/// Looks for what may be forgotten; reads the indexes of the oldest segments, one by one.
#[derive(Debug)]
pub struct RetainScan {
    slot: Slot,
    policy: RetainPolicy,
    now: Timestamp,
    expired_by_age: usize,
    unknown_age: Option<Offset>,
    under_way: Option<(Ticket, Offset)>,
    aged: bool,
}

impl RetainScan {
    /// Begins a search.
    pub fn new(slot: Slot, policy: RetainPolicy, now: Timestamp) -> RetainScan {
        let aged = policy.age_ns.is_none();
        RetainScan { slot, policy, now, expired_by_age: 0, unknown_age: None, under_way: None, aged }
    }

    /// Plans reads. Some: what to do; give it to `ShardLog::retain`.
    pub fn poll(&mut self, log: &ShardLog, queue: &mut DiskQueue) -> Option<RetainPlan> {
        if self.under_way.is_some() {
            return None;
        }
        if !self.aged
            && self.expired_by_age < RETAIN_SEGMENTS_MAX
            && let Some(segment) = log.segments().get(self.expired_by_age)
        {
            let path = log.index_path(segment.base);
            let op = DiskOp::Load { path, bytes_max: INDEX_BYTES_MAX + BLOCK_BYTES };
            self.under_way = Some((queue.push(self.slot, Priority::Background, op), segment.base));
            return None;
        }
        Some(self.plan(log))
    }

    /// Takes a completion of its slot.
    pub fn handle(&mut self, done: DiskDone, log: &ShardLog) {
        let Some((_, base)) = self.under_way.take_if(|(ticket, _)| *ticket == done.ticket) else { return };
        let index = match &done.result {
            Ok(DiskOk::Bytes(bytes)) => index_of_segment(bytes, log, base),
            _ => None,
        };
        // An index from before the segment grew says too little.
        let end = log.end_of_segments(self.expired_by_age + 1);
        let index = index.filter(|it| it.range.to >= end);
        let before = self.now.saturating_sub_ns(self.policy.age_ns.unwrap_or(u64::MAX));
        match index {
            Some(index) if index.time_last < before => self.expired_by_age += 1,
            Some(_) => self.aged = true,
            None => {
                self.unknown_age = Some(base);
                self.aged = true;
            }
        }
    }

    fn plan(&self, log: &ShardLog) -> RetainPlan {
        let segments = log.segments();
        let mut count = self.expired_by_age.min(segments.len());
        if let Some(bytes_max) = self.policy.bytes {
            let mut left = log.stored_bytes() - segments[..count].iter().map(|it| it.bytes).sum::<u64>();
            while left > bytes_max && count < segments.len() {
                left -= segments[count].bytes;
                count += 1;
            }
        }
        let wanted = count;
        let floor = self.policy.floor.unwrap_or(log.flushed_to());
        let end_of = |count: usize| log.end_of_segments(count);
        if self.policy.floor_rule == FloorRule::Keep {
            while count > 0 && end_of(count) > floor {
                count -= 1;
            }
        }
        let held_bytes = segments[count..wanted].iter().map(|it| it.bytes).sum();
        let more = count > RETAIN_SEGMENTS_MAX;
        count = count.min(RETAIN_SEGMENTS_MAX);
        let log_start = end_of(count).max(log.log_start());
        RetainPlan {
            log_start,
            segments: count,
            bytes: segments[..count].iter().map(|it| it.bytes).sum(),
            held_bytes,
            expired: (log_start > floor).then_some(OffsetRange { from: floor, to: log_start }),
            unknown_age: self.unknown_age,
            more,
        }
    }
}

fn index_of_segment(bytes: &[u8], log: &ShardLog, base: Offset) -> Option<SegmentIndex> {
    let segment = SegmentId { lineage: log.lineage(), base_offset: base };
    let owner = Owner::Index { stream: log.meta.stream, shard: log.shard(), segment };
    FileHeader::expect(bytes, &log.maker.identity, &owner).ok()?;
    SegmentIndex::decode(bytes.get(BLOCK_BYTES..)?).ok().filter(|it| it.shard == log.shard() && it.range.from == base)
}

impl ShardLog {
    /// Where the first `count` sealed segments end.
    pub(crate) fn end_of_segments(&self, count: usize) -> Offset {
        match count {
            0 => self.meta.log_start,
            _ => {
                let open = self.open.as_ref().map(|it| it.base);
                let next = self.segments.get(count).map(|it| it.base).or(open).unwrap_or(self.meta.flushed_to);
                let base = self.segments.get(count - 1).map_or(next, |it| it.base);
                listing::end_before_gap(&self.meta, base, next)
            }
        }
    }

    /// Carries a retention plan out. False: there is nothing to do.
    pub fn retain(&mut self, plan: &RetainPlan, now: Timestamp, queue: &mut DiskQueue) -> Result<bool, JobError> {
        self.set_log_start(plan.log_start, now, queue)
    }

    /// Moves the log start, also into a segment; whole segments before it go to quarantine. False: nothing to do.
    pub fn set_log_start(&mut self, to: Offset, now: Timestamp, queue: &mut DiskQueue) -> Result<bool, JobError> {
        self.may_begin()?;
        let range = OffsetRange { from: self.meta.log_start, to: self.meta.flushed_to };
        if to < range.from || to > range.to {
            return Err(JobError::OutOfRange { offset: to, range });
        }
        let whole = (1..=self.segments.len().min(RETAIN_SEGMENTS_MAX)).rev().find(|n| self.end_of_segments(*n) <= to);
        let count = whole.unwrap_or(0);
        if to == range.from && count == 0 {
            return Ok(false);
        }
        let mut meta = self.next_meta();
        meta.log_start = to;
        // The epoch that the log start lies in stays.
        let first = meta.epochs.partition_point(|it| it.start <= to).saturating_sub(1);
        meta.epochs.drain(..first);
        meta.gaps.retain(|gap| gap.to > to);
        let mut steps = VecDeque::from([self.meta_step(&meta), Step::Commit]);
        for segment in &self.segments[..count] {
            steps.push_back(Step::Quarantine(self.segment_path(segment.base)));
            steps.push_back(Step::Quarantine(self.index_path(segment.base)));
        }
        let next = Next { meta, segments: SegmentsChange::DropFront(count), open: OpenChange::Same };
        self.begin(Job::Retain, Script::new(steps, Some(next), Priority::Background, now), queue);
        Ok(true)
    }

    /// Moves files that belong to nothing to quarantine: what a crash left behind, or what could not be moved before. And ends a
    /// switch whose end no meta tells: a start finishes its renames, and until then no compaction goes on. False: there is
    /// nothing of that.
    pub fn clean(&mut self, now: Timestamp, queue: &mut DiskQueue) -> Result<bool, JobError> {
        self.may_begin()?;
        let mut steps = VecDeque::new();
        let mut next = None;
        if self.meta.switch.is_some() {
            // What is a stray is none of its files: a rename of a switch that failed has poisoned the log.
            let meta = ShardMeta { switch: None, ..self.next_meta() };
            steps.extend([self.meta_step(&meta), Step::Commit]);
            next = Some(Next { meta, segments: SegmentsChange::None, open: OpenChange::Same });
        }
        let strays = self.strays.iter().take(2 * RETAIN_SEGMENTS_MAX);
        steps.extend(strays.map(|path| Step::Quarantine(path.clone())));
        if steps.is_empty() {
            return Ok(false);
        }
        self.begin(Job::Clean, Script::new(steps, next, Priority::Background, now), queue);
        Ok(true)
    }
}
