//! **What**: the end of one shard's log as one core holds it: a short ring of shared batches, and for each key filter
//! in use what the filter leaves of each.
//!
//! **Invariants**: the ring is contiguous from `start` to `end`; `end` is what the owner has sent; every group's
//! outcomes are as many as the ring's batches, so a filter is matched at most once per batch and core: at the commit,
//! or for batches older than the group, when a subscriber first gets there.
//!
//! **Never**: a jump that is hidden: if the owner skipped (its log moved on while the mesh was full), the ring starts
//! anew behind the hole and every subscriber before it falls under its policy. A policy against a subscriber that was
//! only idle: what left the ring without a match for its filter cost it nothing (`passed`).
//!
//! **See**: `next.rs`.

use crate::batch_pool::SharedBatch;
use crate::event::SubKey;
use crate::filter::{Deriver, Kept};
use crate::limits::Limits;
use felix_protocol::pattern::Pattern;
use felix_protocol::position::Offset;
use felix_protocol::time::Timestamp;
use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};

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
    /// Outcome per batch of the ring, None until it is asked for; empty and unused without a pattern.
    kept: VecDeque<Option<Kept>>,
    pub members: Vec<SubKey>,
    /// Offsets since the members last had a reason to run.
    pub quiet: u64,
    /// From here to the ring's start nothing matched.
    empty_from: Offset,
}

/// `Limits::filters_max` counts with it.
const _: () = assert!(size_of::<Option<Kept>>() <= 16);

/// What became of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It continues the ring.
    Next,
    /// There is a hole before it: the owner's log moved on while the mesh was full.
    Jump,
    /// It is here already: the owner sends a batch again if it could not know that an earlier attachment had got it.
    Known,
}

/// A walk over all subscribers in search of the slowest, a piece at a time.
#[derive(Debug, Default)]
struct SlowestScan {
    group: usize,
    member: usize,
    lowest: Option<Offset>,
    /// Result of the last whole walk.
    known: Option<Offset>,
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
    free_groups: Vec<u32>,
    by_pattern: HashMap<Option<Pattern>, u32>,
    pub subscribers: u32,
    /// The owner has answered at least one Attach.
    pub attached: bool,
    scan: SlowestScan,
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
            free_groups: Vec::new(),
            by_pattern: HashMap::new(),
            subscribers: 0,
            attached: false,
            scan: SlowestScan::default(),
        }
    }

    /// The owner said where its commits will go on.
    pub fn attach(&mut self, commits_from: Offset) {
        if !self.attached {
            self.attached = true;
            self.restart(commits_from);
        }
    }

    pub fn start(&self) -> Offset {
        self.start
    }

    pub fn end(&self) -> Offset {
        self.end
    }

    /// Adds a committed batch and matches it with every group.
    pub fn push(&mut self, batch: SharedBatch, limits: &Limits, deriver: &mut Deriver) -> Pushed {
        let range = batch.range();
        let pushed = match range.from.cmp(&self.end) {
            Ordering::Less => return Pushed::Known,
            Ordering::Equal => Pushed::Next,
            Ordering::Greater => {
                while self.pop_front(deriver) {}
                self.restart(range.from);
                Pushed::Jump
            }
        };
        for group in self.groups.iter_mut().flatten() {
            if let Some(pattern) = &group.pattern {
                group.kept.push_back(Some(deriver.by_pattern(&batch, pattern)));
            }
        }
        self.bytes += batch.bytes().len();
        self.end = range.to;
        self.ring.push_back(batch);
        while self.ring.len() > limits.tail_batches_max || (self.bytes > limits.tail_bytes_max && self.ring.len() > 1) {
            self.pop_front(deriver);
        }
        pushed
    }

    /// Goes on at an offset with an empty ring; nothing is known of what lies before it.
    fn restart(&mut self, from: Offset) {
        self.start = from;
        self.end = from;
        for group in self.groups.iter_mut().flatten() {
            group.empty_from = from;
        }
    }

    fn pop_front(&mut self, deriver: &mut Deriver) -> bool {
        let Some(batch) = self.ring.pop_front() else { return false };
        self.bytes -= batch.bytes().len();
        self.start = batch.range().to;
        self.base += 1;
        for group in self.groups.iter_mut().flatten() {
            match group.kept.pop_front() {
                Some(Some(Kept::Nothing)) => {}
                kept => {
                    group.empty_from = self.start;
                    deriver.take_back(kept.flatten().unwrap_or(Kept::Whole));
                }
            }
        }
        true
    }

    /// Lets go of batches older than the stream's age bound.
    pub fn expire(&mut self, older_than: Timestamp, deriver: &mut Deriver) {
        while self.ring.front().is_some_and(|batch| batch.header().append_time < older_than) {
            self.pop_front(deriver);
        }
    }

    /// Where a cursor before the ring may go on because all it missed was empty for its filter; None if it missed some.
    pub fn passed(&self, group: u32, cursor: Offset) -> Option<Offset> {
        (self.group(group).empty_from <= cursor).then_some(self.start)
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

    /// Sees to it that `kept` knows the outcome for the batch at an absolute index.
    pub fn look(&mut self, group: u32, index: u64, deriver: &mut Deriver) {
        let at = (index - self.base) as usize;
        let group = self.groups[group as usize].as_mut().expect("a subscriber's group lives");
        if let Some(pattern) = &group.pattern
            && group.kept[at].is_none()
        {
            group.kept[at] = Some(deriver.by_pattern(&self.ring[at], pattern));
        }
    }

    /// What a group's filter leaves of the batch at an absolute index that was looked at.
    pub fn kept(&self, group: u32, index: u64) -> &Kept {
        let group = self.group(group);
        match group.pattern {
            None => &Kept::Whole,
            Some(_) => group.kept[(index - self.base) as usize].as_ref().expect("it was looked at"),
        }
    }

    /// The batch at an absolute index as a group's filter leaves it.
    pub fn filtered(&self, group: u32, index: u64) -> &SharedBatch {
        match self.kept(group, index) {
            Kept::Part(part) => part,
            _ => self.batch(index),
        }
    }

    pub fn group(&self, group: u32) -> &Group {
        self.groups[group as usize].as_ref().expect("a subscriber's group lives")
    }

    pub fn groups_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.groups.iter_mut().flatten()
    }

    /// Whether a group keeps something of the newest batch.
    pub fn newest_matches(group: &Group) -> bool {
        group.pattern.is_none() || !matches!(group.kept.back(), Some(Some(Kept::Nothing)))
    }

    /// Whether one more subscriber with this filter may join: each different one costs memory and time at every commit.
    pub fn has_room_for(&self, pattern: &Option<Pattern>, limits: &Limits) -> bool {
        let filters = self.by_pattern.len() - usize::from(self.by_pattern.contains_key(&None));
        pattern.is_none() || filters < limits.filters_max || self.by_pattern.contains_key(pattern)
    }

    /// Adds a subscriber to the group of its filter. Returns group and place in it.
    pub fn join(&mut self, pattern: &Option<Pattern>, key: SubKey) -> (u32, u32) {
        self.subscribers += 1;
        let index = match self.by_pattern.get(pattern) {
            Some(found) => *found,
            None => self.add_group(pattern.clone()),
        };
        let members = &mut self.groups[index as usize].as_mut().expect("just found or made").members;
        members.push(key);
        (index, members.len() as u32 - 1)
    }

    fn add_group(&mut self, pattern: Option<Pattern>) -> u32 {
        let kept = if pattern.is_some() { self.ring.iter().map(|_| None).collect() } else { VecDeque::new() };
        let index = self.free_groups.pop().unwrap_or_else(|| {
            self.groups.push(None);
            self.groups.len() as u32 - 1
        });
        self.by_pattern.insert(pattern.clone(), index);
        self.groups[index as usize] =
            Some(Group { pattern, kept, members: Vec::new(), quiet: 0, empty_from: self.start });
        index
    }

    /// Takes a subscriber out. Returns the one that moved into its place, if any.
    pub fn leave(&mut self, group: u32, member: u32, deriver: &mut Deriver) -> Option<SubKey> {
        self.subscribers -= 1;
        let slot = &mut self.groups[group as usize];
        let members = &mut slot.as_mut().expect("a subscriber's group lives").members;
        members.swap_remove(member as usize);
        let moved = members.get(member as usize).copied();
        if members.is_empty()
            && let Some(mut left) = slot.take()
        {
            self.by_pattern.remove(&left.pattern);
            self.free_groups.push(group);
            left.kept.drain(..).flatten().for_each(|kept| deriver.take_back(kept));
        }
        moved
    }

    /// Goes on with the search for the slowest subscriber, `budget` steps further at most. Returns the slowest known and
    /// whether the walk came to its end; with fewer subscribers than the budget it always does.
    pub fn scan_slowest(
        &mut self,
        mut budget: usize,
        cursor: impl Fn(SubKey) -> Option<Offset>,
    ) -> (Option<Offset>, bool) {
        let scan = &mut self.scan;
        while let Some(group) = self.groups.get(scan.group) {
            let members = group.as_ref().map_or(&[][..], |group| &group.members);
            for key in members.iter().skip(scan.member) {
                if budget == 0 {
                    let soonest = scan.known.into_iter().chain(scan.lowest).min();
                    return (soonest, false);
                }
                budget -= 1;
                scan.member += 1;
                scan.lowest = cursor(*key).into_iter().chain(scan.lowest).min();
            }
            scan.group += 1;
            scan.member = 0;
        }
        *scan = SlowestScan { known: scan.lowest, ..SlowestScan::default() };
        (scan.known, true)
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
        for (index, group) in self.groups.iter().enumerate() {
            let Some(group) = group else {
                assert!(self.free_groups.contains(&(index as u32)));
                continue;
            };
            assert!(group.pattern.is_none() || group.kept.len() == self.ring.len());
            assert!(group.empty_from <= self.start && !group.members.is_empty());
            assert_eq!(self.by_pattern.get(&group.pattern), Some(&(index as u32)));
            members += group.members.len();
        }
        assert_eq!(members, self.subscribers as usize);
    }
}
