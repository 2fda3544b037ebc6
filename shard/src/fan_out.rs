//! **What**: committed batches to the subscribers of one core. A batch comes once per core; subscribers are cursors.
//!
//! ```text
//! subscribe -> Request::Attach -> on_attach -> running
//! on_commit -> tail ring, subscribers with something to send are scheduled -> the session asks `next` until Wait
//! cursor before the ring -> policy, or Request::Fetch -> on_fetch -> history -> ring again
//! ```
//!
//! **Invariants**: a scheduled subscriber is on exactly one list (here or at its session) until `next` said Wait or
//! Closed, so no wake-up is lost and none is doubled. Work per commit is proportional to the subscribers it reaches.
//!
//! **Never**: blocking a tail because of one subscriber.
//!
//! **See**: `tail.rs`, `subscription.rs`; `broker/src/delivery.rs`, which asks `next`.

use crate::batch_pool::SharedBatch;
use crate::effect::{AttachRefused, AttachState};
use crate::event::SubKey;
use crate::filter::{Kept, by_pattern, unexpired};
use crate::limits::Limits;
use crate::subscription::{Phase, SubSpec, Subscription};
use crate::tail::{Tail, TailCounters};
use felix_protocol::derive::DeriveScratch;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{SlowPolicy, Start};
use felix_protocol::ids::ShardId;
use felix_protocol::position::{Offset, OffsetRange};
use felix_protocol::time::{Now, Timestamp};
use std::collections::{HashMap, VecDeque};

/// What the fan-out wants from the core that owns a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Resolve a start, and send commits from now on.
    Attach {
        /// Which shard.
        shard: ShardId,
        /// For which subscription.
        sub: SubKey,
        /// Where it wants to begin.
        start: Start,
    },
    /// No subscriber is left.
    Detach {
        /// Which shard.
        shard: ShardId,
    },
    /// Read history.
    Fetch {
        /// Which shard.
        shard: ShardId,
        /// For which subscription.
        sub: SubKey,
        /// First offset wanted.
        from: Offset,
    },
}

/// What a subscriber gets next.
#[derive(Debug)]
pub enum Next<'a> {
    /// A batch.
    Batch {
        /// Delivery number.
        number: u64,
        /// Offsets told with it.
        covered: OffsetRange,
        /// The batch.
        batch: &'a SharedBatch,
    },
    /// Offsets that are lost to it.
    Gap {
        /// Delivery number.
        number: u64,
        /// Offsets lost.
        covered: OffsetRange,
    },
    /// Offsets that hold nothing for its filter.
    Progress {
        /// Delivery number.
        number: u64,
        /// Offsets passed.
        covered: OffsetRange,
    },
    /// Nothing now; it will be scheduled again.
    Wait,
    /// It ended; unsubscribe it.
    Closed(ErrorCode),
}

/// What the subscribers of a core came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FanOutCounters {
    /// Batches delivered.
    pub deliveries: u64,
    /// Gap notices.
    pub gaps: u64,
    /// Subscriptions closed by policy.
    pub disconnects: u64,
    /// Fetches of history.
    pub fetches: u64,
    /// Commits for a shard without subscribers (late ones after a detach).
    pub stray_commits: u64,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    sub: Option<Subscription>,
}

/// The subscribers of one core.
#[derive(Debug)]
pub struct FanOut {
    tails: HashMap<ShardId, Tail>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    scheduled: VecDeque<SubKey>,
    requests: VecDeque<Request>,
    limits: Limits,
    scratch: DeriveScratch,
    /// A batch derived for the delivery under way.
    derived: Option<SharedBatch>,
    touched: Vec<ShardId>,
    /// What they came to.
    pub counters: FanOutCounters,
    count: usize,
}

impl FanOut {
    /// Nobody yet.
    pub fn new(limits: Limits) -> FanOut {
        FanOut {
            tails: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            scheduled: VecDeque::new(),
            requests: VecDeque::new(),
            limits,
            scratch: DeriveScratch::default(),
            derived: None,
            touched: Vec::new(),
            counters: FanOutCounters::default(),
            count: 0,
        }
    }

    /// Subscriptions now.
    pub fn count(&self) -> usize {
        self.count
    }

    /// One subscription.
    pub fn get(&self, key: SubKey) -> Option<&Subscription> {
        let slot = self.slots.get(key.slot as usize)?;
        slot.sub.as_ref().filter(|_| slot.generation == key.generation)
    }

    fn get_mut(&mut self, key: SubKey) -> Option<&mut Subscription> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        slot.sub.as_mut().filter(|_| slot.generation == key.generation)
    }

    /// The next request to an owner. The caller sends it or gives it back with `requeue`.
    pub fn take_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// The next subscriber with something to send.
    pub fn take_scheduled(&mut self) -> Option<SubKey> {
        self.scheduled.pop_front()
    }

    /// Starts a subscription.
    pub fn subscribe(&mut self, spec: &SubSpec) -> SubKey {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let key = SubKey { slot, generation: self.slots[slot as usize].generation };
        let tail = self.tails.entry(spec.shard).or_insert_with(Tail::new);
        let (group, member) = tail.join(&spec.filter, key, &mut self.scratch);
        self.slots[slot as usize].sub = Some(Subscription::new(spec, group, member));
        self.count += 1;
        self.requests.push_back(Request::Attach { shard: spec.shard, sub: key, start: spec.start });
        self.touch(spec.shard);
        key
    }

    /// Ends a subscription. Returns it as it stood; None if it was ended before.
    pub fn unsubscribe(&mut self, key: SubKey) -> Option<Subscription> {
        self.get(key)?;
        let slot = &mut self.slots[key.slot as usize];
        let sub = slot.sub.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.slot);
        self.count -= 1;
        if let Some(tail) = self.tails.get_mut(&sub.shard) {
            if let Some(moved) = tail.leave(sub.group, sub.member)
                && let Some(other) = self.slots[moved.slot as usize].sub.as_mut()
            {
                other.member = sub.member;
            }
            if tail.subscribers == 0 {
                self.tails.remove(&sub.shard);
                self.requests.push_back(Request::Detach { shard: sub.shard });
            }
        }
        self.touch(sub.shard);
        Some(sub)
    }

    /// The owner answered an Attach. Returns what the session must be told; None if the subscription is gone.
    pub fn on_attach(
        &mut self,
        key: SubKey,
        result: Result<AttachState, AttachRefused>,
    ) -> Option<Result<AttachState, AttachRefused>> {
        let shard = self.get(key)?.shard;
        if let Ok(state) = &result {
            let tail = self.tails.get_mut(&shard).expect("a subscriber's tail lives");
            tail.attach(state.high_watermark);
            let sub = self.get_mut(key).expect("just seen");
            sub.phase = Phase::Running;
            sub.lineage = state.lineage;
            sub.told = state.start;
            sub.cursor = state.start;
            self.schedule(key);
        }
        Some(result)
    }

    fn schedule(&mut self, key: SubKey) {
        if let Some(sub) = self.get_mut(key)
            && !sub.scheduled
        {
            sub.scheduled = true;
            self.scheduled.push_back(key);
        }
    }

    /// A committed batch came from the owner.
    pub fn on_commit(&mut self, shard: ShardId, batch: SharedBatch) {
        let Some(tail) = self.tails.get_mut(&shard).filter(|tail| tail.attached) else {
            self.counters.stray_commits += 1;
            return;
        };
        let offsets = batch.range().count();
        tail.push(batch, &self.limits, &mut self.scratch);
        for group in tail.groups_mut() {
            group.quiet += offsets;
            if matches!(Tail::newest_kept(group), Kept::Nothing) && group.quiet < self.limits.progress_offsets {
                continue;
            }
            group.quiet = 0;
            for key in &group.members {
                let sub = self.slots[key.slot as usize].sub.as_mut().expect("a member lives");
                if !sub.scheduled && sub.phase == Phase::Running && sub.has_credit() {
                    sub.scheduled = true;
                    self.scheduled.push_back(*key);
                }
            }
        }
    }

    /// History came from the owner.
    pub fn on_fetch(&mut self, key: SubKey, batches: Vec<SharedBatch>, high_watermark: Offset) {
        let Some(sub) = self.get_mut(key) else { return };
        sub.fetching = false;
        if batches.is_empty() && sub.cursor < high_watermark {
            sub.lost_to = Some(high_watermark);
        }
        sub.history.extend(batches);
        self.schedule(key);
    }

    /// A shard is gone: all its subscribers end. They are given to `closed`, which must not call back.
    pub fn on_gone(&mut self, shard: ShardId, mut closed: impl FnMut(SubKey, Subscription)) {
        let Some(mut tail) = self.tails.remove(&shard) else { return };
        let keys: Vec<SubKey> = tail.groups_mut().flat_map(|group| group.members.iter().copied()).collect();
        for key in keys {
            let slot = &mut self.slots[key.slot as usize];
            if let Some(sub) = slot.sub.take() {
                slot.generation = slot.generation.wrapping_add(1);
                self.free.push(key.slot);
                self.count -= 1;
                closed(key, sub);
            }
        }
        self.touch(shard);
    }

    /// The client granted more bytes.
    pub fn on_credit(&mut self, key: SubKey, total_bytes: u64) {
        if self.get_mut(key).is_some_and(|sub| sub.grant(total_bytes)) {
            self.schedule(key);
        }
    }

    /// A frame of this size went out for a subscription.
    pub fn charge(&mut self, key: SubKey, frame_bytes: usize) {
        if let Some(sub) = self.get_mut(key) {
            sub.charge(frame_bytes);
        }
    }

    /// What a scheduled subscriber gets next. After `Wait` or `Closed` it is not scheduled any more.
    pub fn next(&mut self, now: Now, key: SubKey) -> Next<'_> {
        let (place, number, covered) = match self.step(now, key) {
            Step::Deliver(place, number, covered) => (place, number, covered),
            Step::Gap(number, covered) => return Next::Gap { number, covered },
            Step::Progress(number, covered) => return Next::Progress { number, covered },
            Step::Wait => {
                if let Some(sub) = self.get_mut(key) {
                    sub.scheduled = false;
                }
                return Next::Wait;
            }
            Step::Closed(code) => {
                if let Some(sub) = self.get_mut(key) {
                    sub.scheduled = false;
                }
                return Next::Closed(code);
            }
        };
        let sub = self.slots[key.slot as usize].sub.as_ref().expect("it was just stepped");
        let tail = self.tails.get_mut(&sub.shard).expect("a subscriber's tail lives");
        // The borrow of the batch below is of `tail` or `derived`; counters first.
        let (records, bytes) = {
            let batch = match place {
                Place::Derived => self.derived.as_ref().expect("step made it"),
                Place::Ring(index) => ring_batch(tail, sub.group, index),
            };
            (batch.record_count(), batch.bytes().len())
        };
        tail.counters.records_out += u64::from(records);
        tail.counters.bytes_out += bytes as u64;
        if !tail.touched {
            tail.touched = true;
            self.touched.push(sub.shard);
        }
        self.counters.deliveries += 1;
        let batch = match place {
            Place::Derived => self.derived.as_ref().expect("step made it"),
            Place::Ring(index) => ring_batch(tail, sub.group, index),
        };
        Next::Batch { number, covered, batch }
    }

    fn step(&mut self, now: Now, key: SubKey) -> Step {
        let FanOut { tails, slots, requests, scratch, derived, counters, limits, .. } = self;
        let Some(slot) = slots.get_mut(key.slot as usize).filter(|slot| slot.generation == key.generation) else {
            return Step::Wait;
        };
        let Some(sub) = slot.sub.as_mut() else { return Step::Wait };
        if sub.phase == Phase::Starting || !sub.has_credit() {
            return Step::Wait;
        }
        let tail = tails.get_mut(&sub.shard).expect("a subscriber's tail lives");
        let mut gap = |sub: &mut Subscription, tail: &mut Tail, to: Offset| {
            if sub.told < sub.cursor {
                // What was looked at and did not match is not lost: tell it apart from the gap.
                let (number, covered) = sub.tell(sub.cursor);
                return Step::Progress(number, covered);
            }
            let (number, covered) = sub.tell(to);
            counters.gaps += 1;
            tail.counters.gap_records += covered.count();
            Step::Gap(number, covered)
        };
        loop {
            if let Some(lost_to) = sub.lost_to {
                if sub.cursor < lost_to {
                    let step = gap(sub, tail, lost_to);
                    if matches!(step, Step::Gap(..)) {
                        sub.lost_to = None;
                    }
                    return step;
                }
                sub.lost_to = None;
            }
            if let Some(batch) = sub.history.front() {
                let range = batch.range();
                if range.to <= sub.cursor {
                    sub.history.pop_front();
                    continue;
                }
                if range.from > sub.cursor {
                    let to = range.from;
                    return gap(sub, tail, to);
                }
                let batch = sub.history.pop_front().expect("front was just seen");
                let kept = match &tail.group(sub.group).pattern {
                    None => Kept::Whole,
                    Some(pattern) => by_pattern(&batch, pattern, scratch),
                };
                sub.cursor = range.to;
                match take_unexpired(kept, &batch, now.wall, scratch) {
                    Some(kept) => {
                        *derived = Some(kept);
                        let (number, covered) = sub.tell(range.to);
                        return Step::Deliver(Place::Derived, number, covered);
                    }
                    None => continue,
                }
            }
            if sub.cursor >= tail.end() {
                sub.live = true;
                if sub.cursor.since(sub.told) >= limits.progress_offsets {
                    let (number, covered) = sub.tell(sub.cursor);
                    return Step::Progress(number, covered);
                }
                return Step::Wait;
            }
            if sub.cursor < tail.start() {
                let behind = sub.live;
                match sub.policy {
                    SlowPolicy::DropOldest if behind => {
                        let to = tail.start();
                        return gap(sub, tail, to);
                    }
                    SlowPolicy::Disconnect if behind => {
                        counters.disconnects += 1;
                        return Step::Closed(ErrorCode::SlowConsumer);
                    }
                    _ => {}
                }
                if !sub.fetching {
                    sub.fetching = true;
                    counters.fetches += 1;
                    requests.push_back(Request::Fetch { shard: sub.shard, sub: key, from: sub.cursor });
                }
                return Step::Wait;
            }
            let index = tail.find(sub.cursor, sub.hint);
            sub.hint = index + 1;
            let batch = tail.batch(index);
            let to = batch.range().to;
            let kept = tail.kept(sub.group, index);
            sub.cursor = to;
            let expires = match kept {
                Kept::Nothing => continue,
                Kept::Whole => batch.has_ttl(),
                Kept::Part(part) => part.has_ttl(),
            };
            if expires {
                match take_unexpired(kept.clone(), batch, now.wall, scratch) {
                    Some(kept) => *derived = Some(kept),
                    None => continue,
                }
                let (number, covered) = sub.tell(to);
                return Step::Deliver(Place::Derived, number, covered);
            }
            let (number, covered) = sub.tell(to);
            return Step::Deliver(Place::Ring(index), number, covered);
        }
    }

    fn touch(&mut self, shard: ShardId) {
        match self.tails.get_mut(&shard) {
            Some(tail) if tail.touched && self.touched.contains(&shard) => {}
            Some(tail) => {
                tail.touched = true;
                self.touched.push(shard);
            }
            None => self.touched.push(shard),
        }
    }

    /// Shards whose subscribers or deliveries changed since they were last taken: subscribers now and counters.
    /// A shard without subscribers is told once, with None.
    pub fn take_touched(&mut self, mut report: impl FnMut(ShardId, Option<(u32, TailCounters, Offset)>)) {
        let mut touched = std::mem::take(&mut self.touched);
        for shard in touched.drain(..) {
            match self.tails.get_mut(&shard) {
                Some(tail) => {
                    tail.touched = false;
                    let slowest = tail
                        .groups_mut()
                        .flat_map(|group| group.members.iter())
                        .filter_map(|key| self.slots[key.slot as usize].sub.as_ref())
                        .filter(|sub| sub.phase == Phase::Running)
                        .map(|sub| sub.cursor)
                        .min();
                    let end = tail.end();
                    report(shard, Some((tail.subscribers, tail.counters, slowest.unwrap_or(end))));
                }
                None => report(shard, None),
            }
        }
        self.touched = touched;
    }

    /// Lets go of tail batches older than a stream's age bound.
    pub fn expire(&mut self, shard: ShardId, older_than: Timestamp) {
        if let Some(tail) = self.tails.get_mut(&shard) {
            tail.expire(older_than);
        }
    }

    /// Checks every invariant; for tests.
    pub fn check(&self) {
        for tail in self.tails.values() {
            tail.check();
        }
        let mut count = 0;
        for sub in self.slots.iter().filter_map(|slot| slot.sub.as_ref()) {
            sub.check();
            count += 1;
        }
        assert_eq!(count, self.count);
    }
}

/// Where the batch of a delivery lies.
#[derive(Clone, Copy)]
enum Place {
    Ring(u64),
    Derived,
}

enum Step {
    Deliver(Place, u64, OffsetRange),
    Gap(u64, OffsetRange),
    Progress(u64, OffsetRange),
    Wait,
    Closed(ErrorCode),
}

fn ring_batch(tail: &Tail, group: u32, index: u64) -> &SharedBatch {
    match tail.kept(group, index) {
        Kept::Part(part) => part,
        _ => tail.batch(index),
    }
}

/// What is left of `batch` after the filter kept `kept` and expired records went; None: nothing.
fn take_unexpired(
    kept: Kept,
    batch: &SharedBatch,
    now: Timestamp,
    scratch: &mut DeriveScratch,
) -> Option<SharedBatch> {
    let whole = match kept {
        Kept::Nothing => return None,
        Kept::Whole => batch.clone(),
        Kept::Part(part) => part,
    };
    match unexpired(&whole, now, scratch) {
        Kept::Whole => Some(whole),
        Kept::Nothing => None,
        Kept::Part(part) => Some(part),
    }
}
