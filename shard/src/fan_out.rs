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
//! **See**: `next.rs`, `tail.rs`, `subscription.rs`; `broker/src/delivery.rs`, which asks `next`.

use crate::batch_pool::SharedBatch;
use crate::by_id::ById;
use crate::effect::{AttachRefused, AttachState};
use crate::event::SubKey;
use crate::filter::Deriver;
use crate::limits::Limits;
use crate::next::{Place, Scene, Step, step};
use crate::subscription::{Phase, SubSpec, Subscription};
use crate::tail::{Pushed, Tail, TailCounters};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::Start;
use felix_protocol::ids::ShardId;
use felix_protocol::pattern::Pattern;
use felix_protocol::position::{Offset, OffsetRange};
use felix_protocol::time::{Now, Timestamp};
use std::collections::{HashMap, VecDeque};

/// Subscribers that one report looks at in search of the slowest of a shard; the next report goes on from there.
const SLOWEST_SCAN_MAX: usize = 1_024;

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
    /// Commits for a shard without subscribers (late ones after a detach), or sent twice.
    pub stray_commits: u64,
    /// Commits after a hole: the owner's log moved on while the mesh from it was full.
    pub jumps: u64,
    /// Fetched histories dropped because all together were over their bound.
    pub histories_dropped: u64,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    sub: Option<Subscription>,
}

/// A shard's tail; the slot is kept until its end is reported.
#[derive(Debug)]
struct TailSlot {
    shard: ShardId,
    tail: Option<Tail>,
    counters: TailCounters,
    touched: bool,
}

/// The subscribers of one core.
#[derive(Debug)]
pub struct FanOut {
    tails: Vec<TailSlot>,
    tail_of: HashMap<ShardId, u32, ById>,
    free_tails: Vec<u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    scheduled: VecDeque<SubKey>,
    requests: VecDeque<Request>,
    limits: Limits,
    /// Filters batches; counts how often.
    pub deriver: Deriver,
    /// A batch for the delivery under way only.
    single: Option<SharedBatch>,
    /// Fetches whose history may still be held, oldest first: subscriber and its count of fetches.
    fetched: VecDeque<(SubKey, u64)>,
    history_bytes: usize,
    touched: Vec<u32>,
    /// What they came to.
    pub counters: FanOutCounters,
    count: usize,
}

impl FanOut {
    /// Nobody yet.
    pub fn new(limits: Limits) -> FanOut {
        FanOut {
            tails: Vec::new(),
            tail_of: HashMap::default(),
            free_tails: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            scheduled: VecDeque::new(),
            requests: VecDeque::new(),
            limits,
            deriver: Deriver::new(limits.derived_pool_bytes_max),
            single: None,
            fetched: VecDeque::new(),
            history_bytes: 0,
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

    /// The next request to an owner. Requests to one owner must reach it in this order.
    pub fn take_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// The next subscriber with something to send.
    pub fn take_scheduled(&mut self) -> Option<SubKey> {
        // A delivery that was the last for long must not hold the owner's memory for as long.
        if let Some(last) = self.single.take() {
            self.deriver.take_back_batch(last);
        }
        self.scheduled.pop_front()
    }

    /// Whether a subscription with this filter may start (`Limits::filters_max`).
    pub fn has_room_for(&self, shard: ShardId, filter: &Option<Pattern>) -> bool {
        let tail = self.tail_of.get(&shard).and_then(|index| self.tails[*index as usize].tail.as_ref());
        tail.is_none_or(|tail| tail.has_room_for(filter, &self.limits))
    }

    /// Starts a subscription.
    pub fn subscribe(&mut self, spec: &SubSpec) -> SubKey {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let key = SubKey { slot, generation: self.slots[slot as usize].generation };
        let index = self.tail_slot(spec.shard);
        let TailSlot { tail, counters, .. } = &mut self.tails[index as usize];
        let tail = tail.get_or_insert_with(|| {
            *counters = TailCounters::default();
            Tail::new()
        });
        let (group, member) = tail.join(&spec.filter, key);
        self.slots[slot as usize].sub = Some(Subscription::new(spec, index, group, member));
        self.count += 1;
        self.requests.push_back(Request::Attach { shard: spec.shard, sub: key, start: spec.start });
        self.touch(index);
        key
    }

    /// The slot of a shard's tail, with or without one.
    fn tail_slot(&mut self, shard: ShardId) -> u32 {
        if let Some(index) = self.tail_of.get(&shard) {
            return *index;
        }
        let slot = TailSlot { shard, tail: None, counters: TailCounters::default(), touched: false };
        let index = match self.free_tails.pop() {
            Some(free) => {
                self.tails[free as usize] = slot;
                free
            }
            None => {
                self.tails.push(slot);
                self.tails.len() as u32 - 1
            }
        };
        self.tail_of.insert(shard, index);
        index
    }

    /// Ends a subscription. Returns it as it stood; None if it was ended before.
    pub fn unsubscribe(&mut self, key: SubKey) -> Option<Subscription> {
        let sub = self.take_out(key)?;
        let slot = &mut self.tails[sub.tail as usize];
        let tail = slot.tail.as_mut().expect("a subscriber's tail lives");
        if let Some(moved) = tail.leave(sub.group, sub.member, &mut self.deriver) {
            self.slots[moved.slot as usize].sub.as_mut().expect("a member lives").member = sub.member;
        }
        if tail.subscribers == 0 {
            slot.tail = None;
            self.requests.push_back(Request::Detach { shard: sub.shard });
        }
        self.touch(sub.tail);
        Some(sub)
    }

    /// Empties a subscription's slot for the next one.
    fn take_out(&mut self, key: SubKey) -> Option<Subscription> {
        self.get(key)?;
        let slot = &mut self.slots[key.slot as usize];
        let sub = slot.sub.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.slot);
        self.count -= 1;
        self.history_bytes -= sub.history_bytes();
        Some(sub)
    }

    /// The owner answered an Attach. Returns what the session must be told; None if the subscription is gone.
    pub fn on_attach(
        &mut self,
        key: SubKey,
        result: Result<AttachState, AttachRefused>,
    ) -> Option<Result<AttachState, AttachRefused>> {
        let index = self.get(key)?.tail;
        if let Ok(state) = &result {
            let tail = self.tails[index as usize].tail.as_mut().expect("a subscriber's tail lives");
            tail.attach(state.commits_from);
            let sub = self.get_mut(key).expect("just seen");
            sub.phase = Phase::Running;
            sub.lineage = state.lineage;
            sub.told = state.start;
            sub.cursor = state.start;
            sub.promised = state.high_watermark;
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
        let tail = self.tail_of.get(&shard).and_then(|index| self.tails[*index as usize].tail.as_mut());
        let Some(tail) = tail.filter(|tail| tail.attached) else {
            self.counters.stray_commits += 1;
            return;
        };
        let offsets = batch.range().count();
        let pushed = tail.push(batch, &self.limits, &mut self.deriver);
        match pushed {
            Pushed::Next => {}
            Pushed::Jump => self.counters.jumps += 1,
            Pushed::Known => {
                self.counters.stray_commits += 1;
                return;
            }
        }
        for group in tail.groups_mut() {
            group.quiet += offsets;
            let matters = Tail::newest_matches(group) || pushed == Pushed::Jump;
            if !matters && group.quiet < self.limits.progress_offsets {
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
        let Some(sub) = self.get_mut(key).filter(|sub| sub.fetching) else { return };
        sub.fetching = false;
        if batches.is_empty() && sub.cursor < high_watermark {
            sub.lost_to = Some(high_watermark);
        }
        sub.set_history(batches);
        sub.fetched += 1;
        let (fetched, bytes) = (sub.fetched, sub.history_bytes());
        self.history_bytes += bytes;
        self.fetched.push_back((key, fetched));
        self.bound_history();
        self.schedule(key);
    }

    /// Drops the oldest histories while all together are over the bound, but never the newest. Who lost it is scheduled
    /// or waits for credit, and fetches again when it goes on.
    fn bound_history(&mut self) {
        let FanOut { slots, fetched, .. } = self;
        let holds = |it: &(SubKey, u64)| {
            let slot = &slots[it.0.slot as usize];
            slot.generation == it.0.generation
                && slot.sub.as_ref().is_some_and(|sub| sub.fetched == it.1 && sub.history_bytes() > 0)
        };
        while fetched.front().is_some_and(|oldest| !holds(oldest)) {
            fetched.pop_front();
        }
        if fetched.len() > 2 * self.count + 16 {
            fetched.retain(holds);
        }
        while self.history_bytes > self.limits.history_bytes_max && self.fetched.len() > 1 {
            let Some((key, fetched)) = self.fetched.pop_front() else { return };
            if let Some(sub) = self.get_mut(key).filter(|sub| sub.fetched == fetched) {
                let bytes = sub.history_bytes();
                sub.set_history(Vec::new());
                self.history_bytes -= bytes;
                self.counters.histories_dropped += u64::from(bytes > 0);
            }
        }
    }

    /// A shard is gone: all its subscribers end. They are given to `closed`, which must not call back.
    pub fn on_gone(&mut self, shard: ShardId, mut closed: impl FnMut(SubKey, Subscription)) {
        let Some(index) = self.tail_of.get(&shard).copied() else { return };
        let Some(mut tail) = self.tails[index as usize].tail.take() else { return };
        for key in tail.groups_mut().flat_map(|group| group.members.drain(..)) {
            let sub = self.take_out(key).expect("a member lives");
            closed(key, sub);
        }
        // An Attach under way may have reached the shard's next incarnation, which would send commits to nobody.
        self.requests.push_back(Request::Detach { shard });
        self.touch(index);
    }

    /// The client granted more bytes.
    pub fn on_credit(&mut self, key: SubKey, total_bytes: u64) {
        if self.get_mut(key).is_some_and(|sub| sub.grant(total_bytes)) {
            self.schedule(key);
        }
    }

    /// A frame of this size went out for a subscription over a stream.
    pub fn charge(&mut self, key: SubKey, frame_bytes: usize) {
        if let Some(sub) = self.get_mut(key) {
            sub.charge(frame_bytes);
        }
    }

    /// What a scheduled subscriber gets next. After `Wait` or `Closed` it is not scheduled any more.
    pub fn next(&mut self, now: Now, key: SubKey) -> Next<'_> {
        let FanOut { tails, slots, requests, deriver, single, counters, limits, .. } = self;
        let slot = slots.get_mut(key.slot as usize).filter(|slot| slot.generation == key.generation);
        let Some(sub) = slot.and_then(|slot| slot.sub.as_mut()) else { return Next::Wait };
        let TailSlot { tail, counters: tail_counters, touched, .. } = &mut tails[sub.tail as usize];
        let tail = tail.as_mut().expect("a subscriber's tail lives");
        let held = sub.history_bytes();
        let step = step(sub, Scene { tail, deriver, single, limits, wall: now.wall });
        self.history_bytes -= held - sub.history_bytes();
        if !*touched && !matches!(step, Step::Wait) {
            *touched = true;
            self.touched.push(sub.tail);
        }
        match step {
            Step::Deliver(place, number, covered) => {
                let batch = match place {
                    Place::Single => single.as_ref().expect("step made it"),
                    Place::Ring(index) => tail.filtered(sub.group, index),
                };
                counters.deliveries += 1;
                tail_counters.records_out += u64::from(batch.record_count());
                tail_counters.bytes_out += batch.bytes().len() as u64;
                Next::Batch { number, covered, batch }
            }
            Step::Gap(number, covered) => {
                counters.gaps += 1;
                tail_counters.gap_records += covered.count();
                Next::Gap { number, covered }
            }
            Step::Progress(number, covered) => Next::Progress { number, covered },
            Step::Closed(code) => {
                counters.disconnects += 1;
                sub.scheduled = false;
                Next::Closed(code)
            }
            Step::Fetch(from) => {
                counters.fetches += 1;
                requests.push_back(Request::Fetch { shard: sub.shard, sub: key, from });
                sub.scheduled = false;
                Next::Wait
            }
            Step::Wait => {
                sub.scheduled = false;
                Next::Wait
            }
        }
    }

    fn touch(&mut self, index: u32) {
        let slot = &mut self.tails[index as usize];
        if !slot.touched {
            slot.touched = true;
            self.touched.push(index);
        }
    }

    /// Some shard's subscribers or deliveries changed since the last report.
    pub fn has_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Shards whose subscribers or deliveries changed since they were last taken: subscribers now, counters and the
    /// cursor of the slowest. A shard without subscribers is told once, with None. With very many subscribers the
    /// slowest is found over several reports.
    pub fn take_touched(&mut self, mut report: impl FnMut(ShardId, Option<(u32, TailCounters, Offset)>)) {
        let FanOut { tails, slots, touched, tail_of, free_tails, .. } = self;
        let cursor = |key: SubKey| {
            let sub = slots[key.slot as usize].sub.as_ref()?;
            (sub.phase == Phase::Running).then_some(sub.cursor)
        };
        touched.retain(|index| {
            let slot = &mut tails[*index as usize];
            let Some(tail) = &mut slot.tail else {
                report(slot.shard, None);
                slot.touched = false;
                tail_of.remove(&slot.shard);
                free_tails.push(*index);
                return false;
            };
            let (slowest, done) = tail.scan_slowest(SLOWEST_SCAN_MAX, cursor);
            report(slot.shard, Some((tail.subscribers, slot.counters, slowest.unwrap_or(tail.end()))));
            slot.touched = !done;
            !done
        });
    }

    /// Lets go of tail batches older than a stream's age bound.
    pub fn expire(&mut self, shard: ShardId, older_than: Timestamp) {
        let Some(index) = self.tail_of.get(&shard) else { return };
        if let Some(tail) = &mut self.tails[*index as usize].tail {
            tail.expire(older_than, &mut self.deriver);
        }
    }

    /// Checks every invariant; for tests.
    pub fn check(&self) {
        for (index, slot) in self.tails.iter().enumerate() {
            let listed = self.touched.iter().filter(|it| **it as usize == index).count();
            assert_eq!(listed, usize::from(slot.touched), "touched once or not at all");
            if let Some(tail) = &slot.tail {
                tail.check();
                assert_eq!(self.tail_of.get(&slot.shard), Some(&(index as u32)));
            }
        }
        let (mut count, mut history_bytes) = (0, 0);
        for (slot, sub) in self.slots.iter().enumerate().filter_map(|(at, slot)| Some((at, slot.sub.as_ref()?))) {
            sub.check();
            count += 1;
            history_bytes += sub.history_bytes();
            let tail = self.tails[sub.tail as usize].tail.as_ref().expect("a subscriber's tail lives");
            let key = tail.group(sub.group).members[sub.member as usize];
            assert_eq!(key, SubKey { slot: slot as u32, generation: self.slots[slot].generation });
            // Who sleeps is woken: by its fetch, by credit, or it has seen all there is for it.
            let sleeps = !sub.scheduled && sub.phase == Phase::Running && sub.has_credit() && !sub.fetching;
            assert!(!sleeps || (sub.history().is_none() && sub.lost_to.is_none()), "history and nobody to take it");
        }
        assert_eq!((count, history_bytes), (self.count, self.history_bytes));
        assert_eq!(self.count + self.free.len(), self.slots.len());
    }
}

#[cfg(test)]
mod tests;
