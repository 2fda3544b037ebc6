//! **What**: one subscriber: a cursor and a filter reference, never a queue of copies.
//!
//! ```text
//!            told            cursor                 tail.start            tail.end
//!  delivered  |  looked at,   |  history (fetched)   |  tail ring           |
//!  ...........|  no match     |......................|......................|
//! ```
//!
//! **Invariants**: `told <= cursor`. Each delivery covers `[told, x)` and moves `told` to `x`; delivery numbers have
//! no hole. History is bounded by one Fetch.
//!
//! **Never**: losing an offset without a Gap that covers it.
//!
//! **See**: `next.rs`, which moves the cursor.

use crate::batch_pool::SharedBatch;
use crate::event::ConnKey;
use felix_protocol::frame::{DeliveryMode, SlowPolicy, Start};
use felix_protocol::ids::{ShardId, SubscriptionId};
use felix_protocol::pattern::Pattern;
use felix_protocol::position::{Lineage, Offset, OffsetRange};
use std::collections::VecDeque;

/// What a subscriber asks for.
#[derive(Clone, Debug)]
pub struct SubSpec {
    /// Its connection.
    pub conn: ConnKey,
    /// Its number there.
    pub id: SubscriptionId,
    /// Shard to read.
    pub shard: ShardId,
    /// Where to begin.
    pub start: Start,
    /// Keys wanted; None: all.
    pub filter: Option<Pattern>,
    /// When too slow.
    pub policy: SlowPolicy,
    /// How deliveries travel.
    pub mode: DeliveryMode,
    /// Bytes granted; None: no credit accounting.
    pub credit_bytes: Option<u64>,
}

/// Where a subscription stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The owner was asked for the start.
    Starting,
    /// It runs.
    Running,
}

/// One subscriber's state.
#[derive(Debug)]
pub struct Subscription {
    /// Its connection.
    pub conn: ConnKey,
    /// Its number there.
    pub id: SubscriptionId,
    /// Shard it reads.
    pub shard: ShardId,
    /// When too slow.
    pub policy: SlowPolicy,
    /// How deliveries travel.
    pub mode: DeliveryMode,
    /// Incarnation of the data it reads.
    pub lineage: Lineage,
    /// Everything below is told.
    pub told: Offset,
    pub(crate) phase: Phase,
    pub(crate) cursor: Offset,
    /// Slot of its tail in the fan-out.
    pub(crate) tail: u32,
    pub(crate) group: u32,
    /// Place in the group's list of subscribers.
    pub(crate) member: u32,
    /// Absolute index in the tail ring where the cursor was last found.
    pub(crate) hint: u64,
    /// It was at the tail once: from now on the slow policy counts.
    pub(crate) live: bool,
    pub(crate) fetching: bool,
    history: VecDeque<SharedBatch>,
    history_bytes: usize,
    /// Fetches answered.
    pub(crate) fetched: u64,
    /// Offsets below this are gone.
    pub(crate) lost_to: Option<Offset>,
    /// Everything below was committed when it began: it is told of it however little there is for it.
    pub(crate) promised: Offset,
    /// It is on a list of subscribers with something to send.
    pub(crate) scheduled: bool,
    next_number: u64,
    credit_total: Option<u64>,
    sent_bytes: u64,
}

impl Subscription {
    pub(crate) fn new(spec: &SubSpec, tail: u32, group: u32, member: u32) -> Subscription {
        Subscription {
            conn: spec.conn,
            id: spec.id,
            shard: spec.shard,
            policy: spec.policy,
            mode: spec.mode,
            lineage: Lineage(0),
            told: Offset(0),
            phase: Phase::Starting,
            cursor: Offset(0),
            tail,
            group,
            member,
            hint: 0,
            live: false,
            fetching: false,
            history: VecDeque::new(),
            history_bytes: 0,
            fetched: 0,
            lost_to: None,
            promised: Offset(0),
            scheduled: false,
            next_number: 0,
            credit_total: spec.credit_bytes,
            sent_bytes: 0,
        }
    }

    /// Bytes of frames it was sent over streams.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Next batch of fetched history.
    pub(crate) fn history(&self) -> Option<&SharedBatch> {
        self.history.front()
    }

    /// Takes the next batch of fetched history out.
    pub(crate) fn pop_history(&mut self) -> Option<SharedBatch> {
        let batch = self.history.pop_front()?;
        self.history_bytes -= batch.bytes().len();
        Some(batch)
    }

    /// Replaces the history by what was fetched.
    pub(crate) fn set_history(&mut self, batches: Vec<SharedBatch>) {
        self.history_bytes = batches.iter().map(|batch| batch.bytes().len()).sum();
        self.history = batches.into();
    }

    /// Bytes of fetched history.
    pub(crate) fn history_bytes(&self) -> usize {
        self.history_bytes
    }

    /// It may be sent something.
    pub(crate) fn has_credit(&self) -> bool {
        self.credit_total.is_none_or(|total| self.sent_bytes < total)
    }

    /// Takes a cumulative grant; a lower one than before changes nothing. Returns whether it was waiting for it.
    pub(crate) fn grant(&mut self, total_bytes: u64) -> bool {
        let waited = !self.has_credit();
        if let Some(total) = &mut self.credit_total {
            *total = total_bytes.max(*total);
        }
        waited && self.has_credit()
    }

    /// A frame of this size was given to the transport.
    pub(crate) fn charge(&mut self, frame_bytes: usize) {
        self.sent_bytes += frame_bytes as u64;
    }

    /// Tells everything up to `to`: number and range of the delivery.
    pub(crate) fn tell(&mut self, to: Offset) -> (u64, OffsetRange) {
        assert!(self.told < to, "a delivery must move forward: {} to {to}", self.told);
        let covered = OffsetRange { from: self.told, to };
        self.told = to;
        self.cursor = self.cursor.max(to);
        let number = self.next_number;
        self.next_number += 1;
        (number, covered)
    }

    pub(crate) fn check(&self) {
        assert!(self.told <= self.cursor, "told {} is past the cursor {}", self.told, self.cursor);
        assert!(self.history.is_empty() || !self.fetching, "history is bounded by one fetch");
        assert_eq!(self.history.iter().map(|batch| batch.bytes().len()).sum::<usize>(), self.history_bytes);
    }
}
