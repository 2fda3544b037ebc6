//! **What**: the decision what one subscriber gets next: from fetched history, from its core's tail, by its policy, or
//! nothing now.
//!
//! ```text
//!   cursor in fetched history                  deliver from there; a hole in it is a gap
//!   cursor at the tail's end                   wait (with a Progress first if much did not match, or if the subscriber
//!                                              was not told yet of all that was committed when it began)
//!   cursor before the ring, nothing missed     go on at the ring's start
//!   cursor before the ring, caught up once     drop-oldest: gap to the ring's start; disconnect: closed; block: fetch
//!   cursor before the ring, not caught up yet  fetch
//!   cursor in the ring                         deliver from there
//! ```
//!
//! **Invariants**: each call tells at most one delivery and moves `told` to its end; what is skipped without a
//! delivery did not match the filter or had expired. Wait is answered only if something will schedule it again: a
//! commit, credit, or the answer to a fetch.
//!
//! **Never**: a Gap over offsets that were looked at: they are told as Progress first.
//!
//! **See**: `subscription.rs` for the state, `fan_out.rs` for who calls.

use crate::batch_pool::SharedBatch;
use crate::filter::{Deriver, Kept};
use crate::limits::Limits;
use crate::subscription::{Phase, Subscription};
use crate::tail::Tail;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::SlowPolicy;
use felix_protocol::position::{Offset, OffsetRange};
use felix_protocol::time::Timestamp;

/// Where the batch of a delivery lies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// In the tail ring, at this absolute index, as the subscriber's filter leaves it.
    Ring(u64),
    /// In `Scene::single`.
    Single,
}

/// The decision.
#[derive(Debug)]
pub(crate) enum Step {
    Deliver(Place, u64, OffsetRange),
    Gap(u64, OffsetRange),
    Progress(u64, OffsetRange),
    Wait,
    Fetch(Offset),
    Closed(ErrorCode),
}

/// What the decision is made from beside the subscription.
pub(crate) struct Scene<'a> {
    pub tail: &'a mut Tail,
    pub deriver: &'a mut Deriver,
    /// Holds a batch that is for this delivery only.
    pub single: &'a mut Option<SharedBatch>,
    pub limits: &'a Limits,
    pub wall: Timestamp,
}

/// What the subscriber gets next.
pub(crate) fn step(sub: &mut Subscription, scene: Scene<'_>) -> Step {
    let Scene { tail, deriver, single, limits, wall } = scene;
    if let Some(last) = single.take() {
        deriver.take_back_batch(last);
    }
    if sub.phase == Phase::Starting || !sub.has_credit() {
        return Step::Wait;
    }
    loop {
        if let Some(lost_to) = sub.lost_to {
            if sub.cursor < lost_to {
                return gap(sub, lost_to);
            }
            sub.lost_to = None;
        }
        if let Some(batch) = sub.history() {
            let range = batch.range();
            assert!(sub.cursor < range.to, "history was fetched from the cursor, which only history moves");
            if range.from > sub.cursor {
                return gap(sub, range.from);
            }
            let batch = sub.pop_history().expect("it was just seen");
            let kept = match &tail.group(sub.group).pattern {
                None => Kept::Whole,
                Some(pattern) => deriver.by_pattern(&batch, pattern),
            };
            sub.cursor = range.to;
            match unexpired(kept, &batch, wall, deriver) {
                Some(left) => {
                    *single = Some(left);
                    let (number, covered) = sub.tell(range.to);
                    return Step::Deliver(Place::Single, number, covered);
                }
                None => continue,
            }
        }
        if sub.cursor >= tail.end() {
            sub.live = true;
            // Who reads up to an end that it knows must hear of it, also if what lies in front of it had expired.
            let is_owed = sub.told < sub.promised.min(sub.cursor);
            return progress(sub, if is_owed { 1 } else { limits.progress_offsets }).unwrap_or(Step::Wait);
        }
        if sub.cursor < tail.start() {
            if let Some(start) = tail.passed(sub.group, sub.cursor) {
                sub.cursor = start;
                continue;
            }
            return match sub.policy {
                SlowPolicy::DropOldest if sub.live => gap(sub, tail.start()),
                SlowPolicy::Disconnect if sub.live => Step::Closed(ErrorCode::SlowConsumer),
                _ if sub.fetching => Step::Wait,
                _ => progress(sub, limits.progress_offsets).unwrap_or_else(|| {
                    sub.fetching = true;
                    Step::Fetch(sub.cursor)
                }),
            };
        }
        let index = tail.find(sub.cursor, sub.hint);
        sub.hint = index + 1;
        tail.look(sub.group, index, deriver);
        let batch = tail.batch(index);
        let to = batch.range().to;
        sub.cursor = to;
        let whole = match tail.kept(sub.group, index) {
            Kept::Nothing => continue,
            Kept::Whole => batch,
            Kept::Part(part) => part,
        };
        let place = match deriver.unexpired(whole, wall) {
            Kept::Nothing => continue,
            Kept::Whole => Place::Ring(index),
            Kept::Part(left) => {
                *single = Some(left);
                Place::Single
            }
        };
        let (number, covered) = sub.tell(to);
        return Step::Deliver(place, number, covered);
    }
}

/// Tells what was looked at and did not match or had expired, if it is as much as that.
fn progress(sub: &mut Subscription, offsets_min: u64) -> Option<Step> {
    (sub.cursor.since(sub.told) >= offsets_min).then(|| {
        let (number, covered) = sub.tell(sub.cursor);
        Step::Progress(number, covered)
    })
}

fn gap(sub: &mut Subscription, to: Offset) -> Step {
    if sub.told < sub.cursor {
        // What was looked at and did not match is not lost: tell it apart from the gap.
        let (number, covered) = sub.tell(sub.cursor);
        return Step::Progress(number, covered);
    }
    let (number, covered) = sub.tell(to);
    Step::Gap(number, covered)
}

/// What is left of `batch` after the filter kept `kept` and expired records went; None: nothing.
fn unexpired(kept: Kept, batch: &SharedBatch, wall: Timestamp, deriver: &mut Deriver) -> Option<SharedBatch> {
    let filtered = match kept {
        Kept::Nothing => return None,
        Kept::Whole => batch.clone(),
        Kept::Part(part) => part,
    };
    match deriver.unexpired(&filtered, wall) {
        Kept::Whole => Some(filtered),
        left => {
            deriver.take_back_batch(filtered);
            match left {
                Kept::Part(part) => Some(part),
                _ => None,
            }
        }
    }
}
