//! **What**: one publish channel: the batches of one (publisher, shard) from sealing to their outcome.
//!
//! ```text
//!   Closed --open--> Opening --ChannelOpened--> Open --refusal--> Open, paused --all answered--> Open
//!     ^                 |                        |
//!     +---- Waiting <---+---- lost, failed ------+
//!
//!   queue, by sequence:  [sent][sent][sent] | [to send again] ...      new batches come from the intake
//! ```
//!
//! **Invariants**: a batch that may be in the log keeps its bytes and its sequence; it is only sent again as it was.
//! Bytes change only for a batch that is certainly not in the log: refused when first sent, or above the sequence that
//! the broker expects next. After a refusal nothing is sent until every batch in flight is answered; then the rest is
//! numbered anew from what the log holds, and so keeps its order.
//!
//! **Never**: resending a batch without a producer once it may have arrived: its outcome is unknown.
//!
//! **See**: `shard/src/dedup.rs` for the other side, `engine/publishing.rs`, which drives.

mod batch;

use crate::ack::Acked;
use crate::config::PublisherOptions;
use crate::engine::ConnKey;
use crate::error::{PublishError, UnknownReason};
use crate::intake::{Outcome, Pending, Tally};
use crate::violation::Violation;
use batch::Batch;
pub(crate) use batch::Sealer;
use felix_protocol::envelope::FrameType;
use felix_protocol::error_code::{Class, ErrorCode};
use felix_protocol::frame::{ChannelOpened, PublishAck, PublishRefused};
use felix_protocol::ids::{ProducerEpoch, ProducerId, ShardId, ShardIndex};
use felix_protocol::position::{Lineage, Position};
use felix_protocol::time::Time;
use std::collections::VecDeque;
use std::sync::Arc;

/// Batches in flight on a channel: half of what a shard remembers for duplicates, so that a resend is recognised.
const IN_FLIGHT_BATCHES_MAX: usize = 512;
/// Wait after a refusal that names no time.
const REFUSAL_WAIT_NS: u64 = 10_000_000;

/// Where a channel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Closed,
    /// Closed, and not to be opened before this time.
    Waiting(Time),
    Opening {
        conn: ConnKey,
        stream: u64,
    },
    Open {
        conn: ConnKey,
        stream: u64,
    },
}

/// What the owner must do after an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct After {
    /// Ask for the route again.
    pub reroute: bool,
    /// The stream has another id now, or none.
    pub forget_stream: bool,
}

/// One channel.
#[derive(Debug)]
pub(crate) struct Channel {
    shard: ShardIndex,
    idempotent: bool,
    acks: bool,
    pub(crate) phase: Phase,
    queue: VecDeque<Batch>,
    /// Batches in `queue` that wait for an answer on the current stream.
    in_flight: usize,
    /// Producer of this channel; None: to be fetched.
    pub(crate) producer: Option<(ProducerId, ProducerEpoch)>,
    /// Log this channel last wrote to.
    log: Option<(Lineage, ShardId)>,
    /// Next sequence the log expects, as far as answers said.
    expected: u64,
    /// Sequence of the next new batch.
    next_sequence: u64,
    /// A refusal came: nothing is sent until all is answered and this time has come.
    paused: Option<Time>,
    /// Open a new stream once all is answered.
    reopen: bool,
    /// A producer id that is of no more use.
    pub(crate) burned: Option<(ProducerId, ProducerEpoch)>,
}

impl Channel {
    pub(crate) fn new(shard: ShardIndex, options: &PublisherOptions) -> Channel {
        Channel {
            shard,
            idempotent: options.idempotent && options.acks,
            acks: options.acks,
            phase: Phase::Closed,
            queue: VecDeque::new(),
            in_flight: 0,
            producer: None,
            log: None,
            expected: 0,
            next_sequence: 0,
            paused: None,
            reopen: false,
            burned: None,
        }
    }

    /// Whether a producer id is needed before it can be opened.
    pub(crate) fn needs_producer(&self) -> bool {
        self.idempotent && self.producer.is_none()
    }

    /// Whether no batch waits for its outcome; places may be left.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.iter().all(|it| it.abandoned)
    }

    /// Connection and stream of an open channel.
    pub(crate) fn place(&self) -> Option<(ConnKey, u64)> {
        match self.phase {
            Phase::Opening { conn, stream } | Phase::Open { conn, stream } => Some((conn, stream)),
            Phase::Closed | Phase::Waiting(_) => None,
        }
    }

    /// The next time at which something is due without an event.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let phase = match self.phase {
            Phase::Waiting(until) => Some(until),
            Phase::Open { .. } if self.in_flight == 0 => self.paused,
            _ => None,
        };
        let batch = self.queue.iter().find(|it| !it.abandoned).map(|it| it.deadline);
        [phase, batch].into_iter().flatten().min()
    }

    /// It is asked for. What the stream before it was to be left for is done.
    pub(crate) fn opening(&mut self, conn: ConnKey, stream: u64) {
        self.phase = Phase::Opening { conn, stream };
        self.paused = None;
        self.reopen = false;
    }

    /// The stream is open. A connection that began to go away meanwhile is left at once.
    pub(crate) fn on_opened(&mut self, opened: &ChannelOpened, tally: &mut Tally) -> Result<(), Violation> {
        let Phase::Opening { conn, stream } = self.phase else { return Ok(()) };
        let next = opened.next_sequence.0;
        let log = (opened.lineage, opened.shard);
        if self.idempotent {
            if self.log.is_none_or(|known| known != log) {
                // Another log than before: nothing of ours can be in it.
                if next != 0 {
                    return self.forget_producer(tally);
                }
                self.settle_abandoned();
                self.queue.iter_mut().for_each(|it| it.maybe = false);
            } else if next < self.expected {
                // It forgot this producer or lost data: what it may hold of ours cannot be known.
                self.fail_unanswered(UnknownReason::ProducerForgotten, tally);
            } else {
                let known_end = self.queue.iter().any(|it| it.maybe && it.end() == next);
                if next > self.expected && !known_end {
                    return Err(Violation::BadSequence { next });
                }
                // What is below `next` is in the log, and is sent again only to learn where.
                self.queue.retain(|it| !it.abandoned);
            }
        }
        self.log = Some(log);
        self.expected = next;
        self.renumber(next);
        self.phase = Phase::Open { conn, stream };
        Ok(())
    }

    /// Numbers what is not in the log anew from `next`; what is in the log goes first, as it was.
    fn renumber(&mut self, next: u64) {
        let in_log = |it: &Batch| it.maybe && it.end() <= next;
        let (done, rest): (Vec<Batch>, Vec<Batch>) = self.queue.drain(..).partition(in_log);
        self.queue.extend(done);
        let mut sequence = next;
        for mut batch in rest {
            batch.stamp(self.producer, sequence);
            sequence = batch.end();
            self.queue.push_back(batch);
        }
        self.next_sequence = sequence;
    }

    /// Somebody else uses our producer, or the broker forgot it: take another one.
    fn forget_producer(&mut self, tally: &mut Tally) -> Result<(), Violation> {
        self.fail_unanswered(UnknownReason::ProducerForgotten, tally);
        self.burn();
        self.log = None;
        self.expected = 0;
        self.phase = Phase::Closed;
        Ok(())
    }

    fn burn(&mut self) {
        // A second refusal finds none, and the first one's is burned all the same.
        if let Some(producer) = self.producer.take() {
            self.burned = Some(producer);
        }
    }

    /// The connection is going away: finish what is in flight, then open elsewhere.
    pub(crate) fn move_away(&mut self, now: Time) {
        self.reopen = true;
        self.paused.get_or_insert(now);
    }

    /// The next frame to send, if there is one to send again. None: new batches may be sealed if `has_room`.
    pub(crate) fn next_resend(&mut self, now: Time) -> Option<Arc<Vec<u8>>> {
        if !matches!(self.phase, Phase::Open { .. }) {
            return None;
        }
        if let Some(until) = self.paused {
            if self.in_flight > 0 || now < until || self.reopen {
                return None;
            }
            self.paused = None;
            // A refusal uses up numbers of an anonymous channel, and none of a producer.
            self.renumber(if self.idempotent { self.expected } else { self.next_sequence });
        }
        if self.in_flight == self.queue.len() {
            return None;
        }
        let batch = self.queue.iter_mut().find(|it| !it.sent && !it.abandoned)?;
        batch.sent = true;
        batch.maybe = true;
        self.in_flight += 1;
        Some(batch.frame.clone())
    }

    /// Whether a new batch may be sealed and sent now.
    pub(crate) fn has_room(&self) -> bool {
        matches!(self.phase, Phase::Open { .. })
            && self.paused.is_none()
            && !self.reopen
            && self.in_flight == self.queue.len()
            && self.in_flight < IN_FLIGHT_BATCHES_MAX
    }

    /// Whether all is answered and a new stream is wanted.
    pub(crate) fn wants_reopen(&self) -> bool {
        self.reopen && self.in_flight == 0 && matches!(self.phase, Phase::Open { .. })
    }

    /// Seals what waited into a batch that is sent at once.
    pub(crate) fn seal(
        &mut self,
        mut pending: Pending,
        deadline_ns: u64,
        sealer: &mut Sealer,
        tally: &mut Tally,
    ) -> (Arc<Vec<u8>>, felix_protocol::batch_builder::BatchBuilder) {
        let count = pending.builder.record_count();
        let frame = sealer.seal(&mut pending.builder, self.producer, self.next_sequence);
        let base = self.next_sequence;
        self.next_sequence += u64::from(count);
        if !self.acks {
            // Fire and forget: the outcome is that it was sent.
            tally.settle(pending.generation, u64::from(count), pending.charge, Outcome::Sent);
            for (_, ticket) in pending.tickets {
                ticket.complete(Err(PublishError::UnknownOutcome { reason: UnknownReason::Deadline }));
            }
            return (frame, pending.builder);
        }
        self.queue.push_back(Batch {
            base,
            count,
            frame: frame.clone(),
            deadline: pending.since.after_ns(deadline_ns),
            charge: pending.charge,
            generation: pending.generation,
            tickets: pending.tickets,
            sent: true,
            maybe: true,
            abandoned: false,
            refusal: None,
        });
        self.in_flight += 1;
        (frame, pending.builder)
    }

    /// Batches were appended.
    pub(crate) fn on_ack(&mut self, ack: &PublishAck, tally: &mut Tally) -> Result<(), Violation> {
        if !self.acks {
            return Err(Violation::UnexpectedFrame(FrameType::PublishAck));
        }
        // Offsets answer the oldest unanswered batches; a refusal may have overtaken them, so that the sequence in the
        // frame says less.
        if ack.base_offsets.len() > self.in_flight {
            return Err(Violation::AckMismatch { batches: self.in_flight, offsets: ack.base_offsets.len() });
        }
        let mut waiting = Vec::new();
        let mut offsets = ack.base_offsets.iter();
        while let Some(batch) = self.queue.pop_front() {
            if !batch.sent {
                waiting.push(batch);
                continue;
            }
            let Some(base_offset) = offsets.next() else {
                self.queue.push_front(batch);
                break;
            };
            self.in_flight -= 1;
            self.expected = self.expected.max(batch.end());
            batch.succeed(tally, |index| {
                let offset = base_offset.checked_add(u64::from(index)).unwrap_or(*base_offset);
                Acked {
                    shard: self.shard,
                    position: Position { lineage: ack.lineage, offset },
                    epoch: ack.epoch,
                    durability: ack.durability,
                }
            });
        }
        for batch in waiting.into_iter().rev() {
            self.queue.push_front(batch);
        }
        Ok(())
    }

    /// A batch was refused: it is not in the log, unless the disk failed or it was there before it was sent again.
    pub(crate) fn on_refused(
        &mut self,
        now: Time,
        refused: &PublishRefused,
        tally: &mut Tally,
    ) -> Result<After, Violation> {
        if !self.acks {
            // Nobody waits for it.
            return Ok(After::default());
        }
        let base_sequence = refused.base_sequence.0;
        let at = self.queue.iter().position(|it| it.sent && it.base == base_sequence);
        let Some(at) = at else { return Err(Violation::UnknownBatch { base_sequence }) };
        self.in_flight -= 1;
        // The broker's number was behind it when it was sent again: whatever is wrong with the resend, it is there.
        let in_log = self.idempotent && self.queue[at].end() <= self.expected;
        let again = match refused.code {
            ErrorCode::SequenceGap if self.idempotent => {
                // A hole we know of closes when the rest is numbered anew; any other needs the broker's number.
                self.reopen |= self.paused.is_none();
                true
            }
            ErrorCode::UnknownProducer if self.idempotent => {
                self.reopen = true;
                true
            }
            ErrorCode::ProducerFenced if self.idempotent => {
                self.reopen = true;
                self.burn();
                true
            }
            ErrorCode::DuplicateMismatch if self.idempotent => {
                // Its number and ours differ; if not because it forgot, somebody else counts under our producer.
                self.reopen = true;
                if !in_log {
                    self.burn();
                }
                false
            }
            code => match code.class() {
                Class::Retry => true,
                Class::Redirect => {
                    self.reopen = true;
                    true
                }
                Class::Reject | Class::Fatal => false,
            },
        };
        let wait_ns = match (again, refused.retry_after_ms) {
            (true, 0) if refused.code.class() == Class::Retry => REFUSAL_WAIT_NS,
            (true, ms) => u64::from(ms) * 1_000_000,
            (false, _) => 0,
        };
        if again || self.idempotent {
            let until = now.after_ns(wait_ns);
            self.paused = Some(self.paused.map_or(until, |it| it.max(until)));
        }
        if again && !self.queue[at].abandoned {
            let batch = &mut self.queue[at];
            batch.sent = false;
            batch.maybe = in_log;
            batch.refusal = Some((refused.code, refused.detail.clone()));
        } else if self.idempotent && refused.code == ErrorCode::StorageFailed {
            // A restart may find it in the log after all: its place stays until the broker's next sequence tells.
            let batch = &mut self.queue[at];
            batch.abandon(tally, &PublishError::UnknownOutcome { reason: UnknownReason::StorageFailed });
            batch.sent = false;
            self.reopen = true;
        } else if let Some(batch) = self.queue.remove(at) {
            let error = match refused.code {
                ErrorCode::StorageFailed => PublishError::UnknownOutcome { reason: UnknownReason::StorageFailed },
                _ if in_log => PublishError::UnknownOutcome { reason: UnknownReason::ProducerForgotten },
                code => PublishError::Rejected { code, detail: refused.detail.clone() },
            };
            batch.fail(tally, &error);
        }
        Ok(After {
            reroute: refused.code.class() == Class::Redirect,
            forget_stream: refused.code == ErrorCode::StreamGone,
        })
    }

    /// The stream or its connection is gone without an answer to what was in flight.
    pub(crate) fn on_lost(&mut self, tally: &mut Tally) {
        self.phase = Phase::Closed;
        self.paused = None;
        self.reopen = false;
        self.in_flight = 0;
        self.queue.iter_mut().for_each(|it| it.sent = false);
        if !self.idempotent {
            self.fail_unanswered(UnknownReason::ConnectionLost, tally);
        }
    }

    /// The broker would not open the channel, or closed it: `Ok` if it may be tried again.
    pub(crate) fn on_failed(
        &mut self,
        code: ErrorCode,
        detail: &str,
        tally: &mut Tally,
    ) -> Result<After, PublishError> {
        self.on_lost(tally);
        match code {
            ErrorCode::ProducerFenced | ErrorCode::UnknownProducer if self.idempotent => {
                let _ = self.forget_producer(tally);
                return Ok(After::default());
            }
            _ => {}
        }
        match code.class() {
            Class::Retry | Class::Fatal => Ok(After::default()),
            Class::Redirect => Ok(After { reroute: true, forget_stream: code == ErrorCode::StreamGone }),
            Class::Reject => {
                let error = PublishError::Rejected { code, detail: detail.to_string() };
                let unknown = PublishError::UnknownOutcome { reason: UnknownReason::ConnectionLost };
                for batch in &mut self.queue {
                    batch.abandon(tally, if batch.maybe { &unknown } else { &error });
                }
                // What may be in the log keeps its place: a shard that is served again may have it.
                self.queue.retain(|it| it.maybe);
                Err(error)
            }
        }
    }

    /// Deadlines.
    pub(crate) fn expire(&mut self, now: Time, tally: &mut Tally) {
        while let Some(at) = self.queue.iter().position(|it| !it.abandoned) {
            if self.queue[at].deadline > now {
                return;
            }
            if self.queue[at].maybe {
                // It stays as a place holder: its answer, or the broker's next sequence, is still to be matched.
                self.queue[at].abandon(tally, &PublishError::UnknownOutcome { reason: UnknownReason::Deadline });
                if !self.queue[at].sent && matches!(self.phase, Phase::Open { .. }) {
                    // It will not be sent again, and only a new start tells whether its sequence is a hole.
                    self.reopen = true;
                    self.paused = Some(now);
                }
            } else if let Some(batch) = self.queue.remove(at) {
                let error = match &batch.refusal {
                    Some((code, detail)) => PublishError::Rejected { code: *code, detail: detail.clone() },
                    None => PublishError::Expired,
                };
                batch.fail(tally, &error);
                if self.idempotent && self.paused.is_none() && matches!(self.phase, Phase::Open { .. }) {
                    // Its sequence is a hole now.
                    self.paused = Some(now);
                }
            }
        }
    }

    /// The client is closed: everything has its outcome now.
    pub(crate) fn on_shutdown(&mut self, tally: &mut Tally) {
        self.on_lost(tally);
        for batch in self.queue.drain(..) {
            let error = match batch.maybe {
                true => PublishError::UnknownOutcome { reason: UnknownReason::Closed },
                false => PublishError::Expired,
            };
            batch.fail(tally, &error);
        }
    }

    fn settle_abandoned(&mut self) {
        self.queue.retain(|it| !it.abandoned);
    }

    fn fail_unanswered(&mut self, reason: UnknownReason, tally: &mut Tally) {
        let error = PublishError::UnknownOutcome { reason };
        for batch in std::mem::take(&mut self.queue) {
            if batch.maybe {
                batch.fail(tally, &error);
            } else {
                self.queue.push_back(batch);
            }
        }
    }
}
