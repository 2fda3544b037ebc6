//! **What**: the end of one shard's log as one core holds it: a short ring of shared batches, and for each key filter
//! in use what the filter leaves of each.
//!
//! **Invariants**: the ring is contiguous from `start` to `end`; `end` is what the owner has sent; every group's
//! outcomes are as many as the ring's batches, so a filter is matched once per batch and core.
//!
//! **Never**: a jump that is hidden: if the owner skipped (its log moved on while the mesh was full), the ring starts
//! anew behind the hole and every subscriber before it falls under its policy.
//!
//! **See**: `fan_out.rs`.

use crate::batch_pool::SharedBatch;
use crate::event::SubKey;
use crate::filter::{Kept, by_pattern};
use crate::limits::Limits;
use felix_protocol::derive::DeriveScratch;
use felix_protocol::pattern::Pattern;
use felix_protocol::position::Offset;
use felix_protocol::time::Timestamp;
use std::collections::VecDeque;

/// What the deliveries of a shard on this core came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TailCounters {
    /// Records delivered.
    pub records_out: u64,
    /// Bytes of batches delivered.
    pub bytes_out: u64,
    /// Offsets told as gaps.
    pub gap_records: u64,
}

/// Subscribers that share a filter.
#[derive(Debug)]
pub(crate) struct Group {
    pub pattern: Option<Pattern>,
    /// Outcome per batch of the ring; empty and unused without a pattern.
    kept: VecDeque<Kept>,
    pub members: Vec<SubKey>,
    /// Offsets since the members last had a reason to run.
    pub quiet: u64,
}

#[derive(Debug)]
pub(crate) struct Tail {
    ring: VecDeque<SharedBatch>,
    /// Absolute index of the ring's first batch.
    base: u64,
    start: Offset,
    end: Offset,
    bytes: usize,
    groups: Vec<Option<Group>>,
    pub subscribers: u32,
    /// The owner has answered at least one Attach.
    pub attached: bool,
    pub counters: TailCounters,
    pub touched: bool,
}

impl Tail {
    pub fn new() -> Tail {
        Tail {
            ring: VecDeque::new(),
            base: 0,
            start: Offset(0),
            end: Offset(0),
            bytes: 0,
            groups: Vec::new(),
            subscribers: 0,
            attached: false,
            counters: TailCounters::default(),
            touched: true,
        }
    }

    /// The owner said where its commits will go on.
    pub fn attach(&mut self, high_watermark: Offset) {
        if !self.attached {
            self.attached = true;
            self.start = high_watermark;
            self.end = high_watermark;
        }
    }

    pub fn start(&self) -> Offset {
        self.start
    }

    pub fn end(&self) -> Offset {
        self.end
    }

    /// Adds a committed batch. Groups are matched here, once.
    pub fn push(&mut self, batch: SharedBatch, limits: &Limits, scratch: &mut DeriveScratch) {
        let range = batch.range();
        if range.from != self.end {
            self.reset(range.from);
        }
        for group in self.groups.iter_mut().flatten() {
            if let Some(pattern) = &group.pattern {
                group.kept.push_back(by_pattern(&batch, pattern, scratch));
            }
        }
        self.bytes += batch.bytes().len();
        self.end = range.to;
        self.ring.push_back(batch);
        while self.ring.len() > limits.tail_batches_max || (self.bytes > limits.tail_bytes_max && self.ring.len() > 1) {
            self.pop_front();
        }
    }

    fn reset(&mut self, from: Offset) {
        while !self.ring.is_empty() {
            self.pop_front();
        }
        self.start = from;
        self.end = from;
    }

    fn pop_front(&mut self) {
        let Some(batch) = self.ring.pop_front() else { return };
        self.bytes -= batch.bytes().len();
        self.start = batch.range().to;
        self.base += 1;
        for group in self.groups.iter_mut().flatten() {
            group.kept.pop_front();
        }
    }

    /// Lets go of batches older than the stream's age bound.
    pub fn expire(&mut self, older_than: Timestamp) {
        while self.ring.front().is_some_and(|batch| batch.header().append_time < older_than) {
            self.pop_front();
        }
    }

    /// Absolute index of the batch that covers `offset`, which must lie in `[start, end)`. `hint`: where it was last.
    pub fn find(&self, offset: Offset, hint: u64) -> u64 {
        debug_assert!(self.start <= offset && offset < self.end);
        if let Some(at) = hint.checked_sub(self.base)
            && let Some(batch) = self.ring.get(at as usize)
            && batch.range().from <= offset
            && offset < batch.range().to
        {
            return hint;
        }
        self.base + self.ring.partition_point(|batch| batch.range().to <= offset) as u64
    }

    /// The batch at an absolute index.
    pub fn batch(&self, index: u64) -> &SharedBatch {
        &self.ring[(index - self.base) as usize]
    }

    /// What a group's filter leaves of the batch at an absolute index.
    pub fn kept(&self, group: u32, index: u64) -> &Kept {
        let group = self.groups[group as usize].as_ref().expect("a subscriber's group lives");
        match group.pattern {
            None => &Kept::Whole,
            Some(_) => &group.kept[(index - self.base) as usize],
        }
    }

    pub fn group(&self, group: u32) -> &Group {
        self.groups[group as usize].as_ref().expect("a subscriber's group lives")
    }

    pub fn groups_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.groups.iter_mut().flatten()
    }

    /// What each group keeps of the newest batch.
    pub fn newest_kept(group: &Group) -> &Kept {
        match group.pattern {
            None => &Kept::Whole,
            Some(_) => group.kept.back().unwrap_or(&Kept::Nothing),
        }
    }

    /// Adds a subscriber to the group of its filter. Returns group and place in it.
    pub fn join(&mut self, pattern: &Option<Pattern>, key: SubKey, scratch: &mut DeriveScratch) -> (u32, u32) {
        self.subscribers += 1;
        self.touched = true;
        let found = self.groups.iter().position(|it| it.as_ref().is_some_and(|group| group.pattern == *pattern));
        let index = found.unwrap_or_else(|| {
            let kept = match pattern {
                None => VecDeque::new(),
                Some(pattern) => self.ring.iter().map(|batch| by_pattern(batch, pattern, scratch)).collect(),
            };
            let group = Group { pattern: pattern.clone(), kept, members: Vec::new(), quiet: 0 };
            match self.groups.iter().position(Option::is_none) {
                Some(free) => {
                    self.groups[free] = Some(group);
                    free
                }
                None => {
                    self.groups.push(Some(group));
                    self.groups.len() - 1
                }
            }
        });
        let members = &mut self.groups[index].as_mut().expect("just found or made").members;
        members.push(key);
        (index as u32, members.len() as u32 - 1)
    }

    /// Takes a subscriber out. Returns the one that moved into its place, if any.
    pub fn leave(&mut self, group: u32, member: u32) -> Option<SubKey> {
        self.subscribers -= 1;
        self.touched = true;
        let slot = &mut self.groups[group as usize];
        let members = &mut slot.as_mut().expect("a subscriber's group lives").members;
        members.swap_remove(member as usize);
        let moved = members.get(member as usize).copied();
        if members.is_empty() {
            *slot = None;
        }
        moved
    }

    pub fn check(&self) {
        let mut at = self.start;
        for batch in &self.ring {
            assert_eq!(batch.range().from, at, "the tail has a hole");
            at = batch.range().to;
        }
        assert_eq!(at, self.end);
        assert_eq!(self.ring.iter().map(|batch| batch.bytes().len()).sum::<usize>(), self.bytes);
        let mut members = 0;
        for group in self.groups.iter().flatten() {
            assert!(group.pattern.is_none() || group.kept.len() == self.ring.len());
            members += group.members.len();
        }
        assert_eq!(members, self.subscribers as usize);
    }
}
