//! **What**: one shard's subscription: where it is, what it may still be sent, and the checks of every delivery.
//!
//! ```text
//!   Idle --Subscribe--> Starting --Subscribed--> Live --lost, closed--> Waiting --> Idle ... --refused--> Ended
//!
//!   credit:  granted = window + consumed - received before this start or as a datagram;   what comes on streams may
//!            pass it by one frame
//! ```
//!
//! **Invariants**: on a reliable stream delivery numbers have no hole and covered ranges touch; what was handed out ends
//! at `next`, and a new start asks for exactly that. As datagrams a hole is told as a gap, and a late one is dropped.
//! Bytes held for the reader stay below the window and one frame; as datagrams, which nobody pays for, those that find
//! the window full are dropped.
//!
//! **Never**: a batch of another stream, shard, lineage or kind.
//!
//! **See**: `engine/subscribing.rs`, which drives; `item.rs` for what comes out.

use crate::config::{OnReset, SubscribeOptions};
use crate::engine::ConnKey;
use crate::error::SubscribeError;
use crate::item::{BatchFacts, DeliveredBatch, Item};
use crate::session::{Content, Delivered};
use crate::violation::Violation;
use felix_protocol::batch::BatchKind;
use felix_protocol::batch_view::{BODY_FLAG_TTL, BatchView};
use felix_protocol::error_code::{Class, ErrorCode};
use felix_protocol::frame::{Start, Subscribe, Subscribed};
use felix_protocol::ids::{ShardId, ShardIndex, StreamId};
use felix_protocol::limits::FRAME_BYTES_MAX;
use felix_protocol::names::StreamName;
use felix_protocol::position::{OffsetRange, Position};
use felix_protocol::time::Time;

/// Smallest window.
pub(crate) const WINDOW_BYTES_MIN: usize = 2 * FRAME_BYTES_MAX;

/// Where a subscription stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Idle,
    Waiting(Time),
    Starting { conn: ConnKey, id: u32 },
    Live { conn: ConnKey, id: u32 },
    Ended,
}

/// What to do after a subscription ended on its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start again; ask for the route first if `reroute`.
    Again { reroute: bool },
    /// It is over.
    End(SubscribeError),
}

/// Why a start does not ask for `next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rewind {
    No,
    /// Retention took what comes next.
    TooOld,
    /// The data was replaced.
    Reset,
}

/// An item and the bytes it costs of the window until it is consumed.
pub(crate) type Priced = (Item, u64);

/// One shard's subscription.
#[derive(Debug)]
pub(crate) struct Subscription {
    stream_name: StreamName,
    pub(crate) shard: ShardIndex,
    options: SubscribeOptions,
    window: u64,
    pub(crate) phase: Phase,
    /// Next record; None until the first start is confirmed.
    next: Option<Position>,
    /// Start from the earliest record, because `next` is gone.
    rewind: Rewind,
    source: Option<(StreamId, ShardId)>,
    number: u64,
    /// Bytes received in all, and those that credit does not count: before this start, or as datagrams.
    received: u64,
    uncounted: u64,
    consumed: u64,
    granted: u64,
    /// Deliveries that came before `Subscribed`.
    early: Vec<Delivered>,
    clock_offset_ns: i64,
}

impl Subscription {
    pub(crate) fn new(
        stream_name: StreamName,
        shard: ShardIndex,
        options: SubscribeOptions,
        window_bytes: usize,
    ) -> Subscription {
        let next = match options.start {
            Start::Position(at) if at.lineage.0 != 0 => Some(at),
            _ => None,
        };
        Subscription {
            stream_name,
            shard,
            options,
            // A frame of the largest size must always fit, also while a part of the window is not granted again yet.
            window: window_bytes.max(WINDOW_BYTES_MIN) as u64,
            phase: Phase::Idle,
            next,
            rewind: Rewind::No,
            source: None,
            number: 0,
            received: 0,
            uncounted: 0,
            consumed: 0,
            granted: 0,
            early: Vec::new(),
            clock_offset_ns: 0,
        }
    }

    /// Connection and id on it.
    pub(crate) fn place(&self) -> Option<(ConnKey, u32)> {
        match self.phase {
            Phase::Starting { conn, id } | Phase::Live { conn, id } => Some((conn, id)),
            _ => None,
        }
    }

    fn start(&self) -> Start {
        match self.next {
            Some(_) if self.rewind != Rewind::No => Start::Earliest,
            Some(next) => Start::Position(next),
            None => self.options.start,
        }
    }

    fn credit_now(&self) -> u64 {
        (self.window + self.consumed).saturating_sub(self.uncounted)
    }

    /// The frame that starts it (again).
    pub(crate) fn subscribe(&mut self) -> Subscribe {
        self.number = 0;
        self.uncounted = self.received;
        self.early.clear();
        self.granted = self.credit_now();
        Subscribe {
            stream_name: self.stream_name.clone(),
            stream: self.source.map(|it| it.0),
            shard_index: self.shard,
            start: self.start(),
            policy: self.options.policy,
            mode: self.options.mode,
            credit_bytes: Some(self.granted),
            filter: self.options.filter.clone().unwrap_or_default(),
        }
    }

    /// It was sent.
    pub(crate) fn starting(&mut self, conn: ConnKey, id: u32, clock_offset_ns: i64) {
        self.phase = Phase::Starting { conn, id };
        self.clock_offset_ns = clock_offset_ns;
    }

    /// The broker confirmed.
    pub(crate) fn on_subscribed(&mut self, subscribed: &Subscribed, out: &mut Vec<Priced>) -> Result<(), Violation> {
        let Phase::Starting { conn, id } = self.phase else { return Ok(()) };
        let start = Position { lineage: subscribed.lineage, offset: subscribed.start };
        match (self.next, self.start()) {
            (Some(old), _) if self.rewind == Rewind::Reset => {
                out.push((Item::Reset { shard: self.shard, old, new: start }, 0));
            }
            (Some(old), _) => {
                if old.lineage != start.lineage {
                    return Err(Violation::ForeignBatch);
                }
                self.skip_to(old, start, out)?;
            }
            (None, Start::Position(asked)) => {
                self.skip_to(Position { lineage: start.lineage, offset: asked.offset }, start, out)?;
            }
            (None, _) => {}
        }
        self.next = Some(start);
        self.rewind = Rewind::No;
        self.source = Some((subscribed.stream, subscribed.shard));
        self.phase = Phase::Live { conn, id };
        for delivered in std::mem::take(&mut self.early) {
            self.take(delivered, out)?;
        }
        Ok(())
    }

    fn skip_to(&self, from: Position, start: Position, out: &mut Vec<Priced>) -> Result<(), Violation> {
        if start.offset < from.offset {
            return Err(Violation::WrongStart { asked: from.offset.0, found: start.offset.0 });
        }
        if start.offset > from.offset {
            let covered = OffsetRange { from: from.offset, to: start.offset };
            out.push((Item::Gap { shard: self.shard, lineage: start.lineage, covered }, 0));
        }
        Ok(())
    }

    /// A delivery came.
    pub(crate) fn on_delivered(&mut self, delivered: Delivered, out: &mut Vec<Priced>) -> Result<(), Violation> {
        let bytes = delivered.frame_bytes as u64;
        self.received += bytes;
        if delivered.datagram {
            self.uncounted += bytes;
            if self.received - self.consumed > self.window {
                // The reader is too slow; the next one that comes through shows the hole.
                self.consumed += bytes;
                return Ok(());
            }
        }
        let received = self.received - self.uncounted;
        if received > self.granted + FRAME_BYTES_MAX as u64 {
            return Err(Violation::CreditExceeded { granted: self.granted, received });
        }
        match self.phase {
            Phase::Starting { .. } => {
                self.early.push(delivered);
                Ok(())
            }
            Phase::Live { .. } => self.take(delivered, out),
            _ => {
                self.consumed += bytes;
                Ok(())
            }
        }
    }

    fn take(&mut self, delivered: Delivered, out: &mut Vec<Priced>) -> Result<(), Violation> {
        let Some(next) = self.next else { return Ok(()) };
        let cost = delivered.frame_bytes as u64;
        let covered = delivered.covered;
        let lossy = matches!(
            self.options.mode,
            felix_protocol::frame::DeliveryMode::DatagramOrStream | felix_protocol::frame::DeliveryMode::DatagramOrGap
        );
        if delivered.datagram && !lossy {
            return Err(Violation::UnexpectedFrame(felix_protocol::envelope::FrameType::Deliver));
        }
        if lossy && (delivered.number < self.number || covered.from < next.offset) {
            // Overtaken on the way; its offsets were told as a gap.
            self.consumed += cost;
            return Ok(());
        }
        if delivered.number != self.number && !lossy {
            return Err(Violation::DeliveryHole { expected: self.number, found: delivered.number });
        }
        let hole = covered.from != next.offset;
        if hole && (!lossy || delivered.number == self.number) {
            return Err(Violation::OffsetHole { expected: next.offset.0, found: covered.from.0 });
        }
        let content = match delivered.content {
            Content::Batch { frame, start } => Item::Records(self.check(frame, start, covered, next)?),
            Content::Gap => Item::Gap { shard: self.shard, lineage: next.lineage, covered },
            Content::Progress => {
                Item::Progress { shard: self.shard, to: Position { lineage: next.lineage, offset: covered.to } }
            }
        };
        if hole {
            let covered = OffsetRange { from: next.offset, to: covered.from };
            out.push((Item::Gap { shard: self.shard, lineage: next.lineage, covered }, 0));
        }
        self.number = delivered.number.saturating_add(1);
        self.next = Some(Position { lineage: next.lineage, offset: covered.to });
        out.push((content, cost));
        Ok(())
    }

    fn check(
        &self,
        frame: Vec<u8>,
        start: usize,
        covered: OffsetRange,
        next: Position,
    ) -> Result<DeliveredBatch, Violation> {
        let batch = BatchView::parse(frame.get(start..).unwrap_or_default()).map_err(Violation::BadBatch)?;
        batch.check().map_err(Violation::BadBatch)?;
        let header = batch.header;
        let range = header.range();
        let ours = self.source == Some((header.stream, header.shard))
            && header.lineage == next.lineage
            && header.kind == BatchKind::Data
            && range.from < covered.to
            && range.to > covered.from
            && range.to <= covered.to;
        if !ours {
            return Err(Violation::ForeignBatch);
        }
        let has_ttl = batch.body.flags & BODY_FLAG_TTL != 0;
        let facts = BatchFacts { header, shard: self.shard, covered, clock_offset_ns: self.clock_offset_ns, has_ttl };
        Ok(DeliveredBatch::new(frame, start, facts))
    }

    /// The reader consumed bytes.
    pub(crate) fn on_consumed(&mut self, bytes: u64) {
        self.consumed = (self.consumed + bytes).min(self.received);
    }

    /// The new total to grant, if it is worth a frame. To be asked when bytes were consumed and when it became live.
    pub(crate) fn more_credit(&mut self) -> Option<u64> {
        let Phase::Live { .. } = self.phase else { return None };
        let total = self.credit_now();
        // A quarter of the window per frame keeps credits rare and the broker busy.
        if total < self.granted + self.window / 4 {
            return None;
        }
        self.granted = total;
        Some(total)
    }

    /// Its connection or stream is gone.
    pub(crate) fn on_lost(&mut self) {
        if self.place().is_some() {
            self.drop_early();
            self.phase = Phase::Idle;
        }
    }

    fn drop_early(&mut self) {
        self.consumed += self.early.drain(..).map(|it| it.frame_bytes as u64).sum::<u64>();
    }

    /// The broker would not start it, or ended it.
    pub(crate) fn on_ended(&mut self, code: ErrorCode, detail: &str) -> Verdict {
        self.on_lost();
        let verdict = self.verdict(code, detail);
        if let Verdict::End(_) = verdict {
            self.phase = Phase::Ended;
        }
        verdict
    }

    fn verdict(&mut self, code: ErrorCode, detail: &str) -> Verdict {
        let refused = |shard| Verdict::End(SubscribeError::Refused { shard, code, detail: detail.to_string() });
        match code {
            // A stream that is gone for good is NotFound at the next try; one made anew begins a new incarnation.
            ErrorCode::LineageReset | ErrorCode::StreamGone => match self.next {
                Some(old)
                    if self.options.on_reset == OnReset::Stop
                        && (code == ErrorCode::LineageReset || self.source.is_some()) =>
                {
                    Verdict::End(SubscribeError::Reset { shard: self.shard, old })
                }
                Some(_) if self.rewind == Rewind::Reset && code == ErrorCode::LineageReset => refused(self.shard),
                next => {
                    self.rewind = if next.is_some() { Rewind::Reset } else { Rewind::No };
                    self.source = None;
                    Verdict::Again { reroute: code == ErrorCode::StreamGone }
                }
            },
            // Retention took what comes next: go on at the oldest record, and tell the gap.
            ErrorCode::OffsetTooOld if self.source.is_some() && self.rewind == Rewind::No => {
                self.rewind = Rewind::TooOld;
                Verdict::Again { reroute: false }
            }
            code => match code.class() {
                Class::Retry => Verdict::Again { reroute: false },
                Class::Redirect => Verdict::Again { reroute: true },
                Class::Reject | Class::Fatal => refused(self.shard),
            },
        }
    }
}
