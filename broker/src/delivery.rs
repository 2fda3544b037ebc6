//! **What**: the fan-out side of a core: asks the fan-out for what each scheduled subscriber gets next and writes it.
//!
//! ```text
//! scheduled subscriber -> its delivery stream's ready list -> next(), prefix + small batches in one scratch
//!   -> one stream_send per stream and turn -> what flow control cut stays in the stream's buffer
//! a large batch is lent to the transport instead (`egress.rs`): one copy per core
//! ```
//!
//! **Invariants**: subscriptions of one stream take turns. A stream whose send was short is left alone until the
//! transport says it has room. A subscriber stays on a ready list until `next` says Wait or Closed.
//!
//! **Never**: a send per subscriber and batch when one per stream will do; memory per subscriber, but the rest of a
//! frame that flow control cut, and that of a large batch stays the copy that all share.
//!
//! **See**: `felix_shard::fan_out`.

use crate::core::Core;
use crate::egress::Egress;
use crate::links::{LinkError, Links};
use crate::session::{CONTROL_STREAM, DeliveryStream};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{DELIVER_PREFIX_BYTES, Deliver, Delivery, DeliveryMode, Frame, deliver_prefix};
use felix_protocol::ids::SubscriptionId;
use felix_protocol::time::Now;
use felix_quic::LentBytes;
use felix_shard::event::{ConnKey, SubKey};
use felix_shard::fan_out::{FanOut, Next};

/// What came of one step of a subscriber.
enum Stepped {
    /// A frame of `bytes` is at the end of the scratch; of a lent batch only what comes before it. To be charged if it
    /// goes over a stream.
    Frame { bytes: usize, is_batch: bool, lent: Option<LentBytes> },
    /// Nothing now.
    Wait,
    /// It ended.
    Closed(ErrorCode),
}

/// Appends the next frame of a subscriber to `out`. With `egress` a large batch is lent instead.
fn step(
    fan_out: &mut FanOut,
    egress: Option<&mut Egress>,
    now: Now,
    key: SubKey,
    id: SubscriptionId,
    out: &mut Vec<u8>,
) -> Stepped {
    let start = out.len();
    let (number, covered, delivery) = match fan_out.next(now, key) {
        Next::Batch { number, covered, batch } => {
            out.extend_from_slice(&deliver_prefix(id, number, covered, batch.bytes().len()));
            let bytes = DELIVER_PREFIX_BYTES + batch.bytes().len();
            let lent = egress.and_then(|egress| egress.lend(batch));
            if lent.is_none() {
                out.extend_from_slice(batch.bytes());
            }
            return Stepped::Frame { bytes, is_batch: true, lent };
        }
        Next::Gap { number, covered } => (number, covered, Delivery::Gap),
        Next::Progress { number, covered } => (number, covered, Delivery::Progress),
        Next::Wait => return Stepped::Wait,
        Next::Closed(code) => return Stepped::Closed(code),
    };
    Frame::Deliver(Deliver { number, covered, delivery }).encode(id.0, out);
    Stepped::Frame { bytes: out.len() - start, is_batch: false, lent: None }
}

/// Where a turn's writes to one delivery stream go.
struct Writer<'a> {
    delivery: &'a mut DeliveryStream,
    conn: ConnKey,
    written: usize,
}

impl Writer<'_> {
    /// Sends `bytes`, and `lent` behind them. After a short send the rest is kept, of `lent` the bytes if `copies`.
    fn put(
        &mut self,
        bytes: &[u8],
        lent: Option<&LentBytes>,
        copies: bool,
        links: &mut impl Links,
    ) -> Result<(), LinkError> {
        let (conn, stream) = (self.conn, self.delivery.stream);
        self.written += bytes.len();
        if !bytes.is_empty() {
            let sent = links.stream_send(conn, stream, bytes, false)?;
            if sent < bytes.len() {
                self.delivery.out.keep(&bytes[sent..]);
                self.delivery.blocked = true;
            }
        }
        let Some(lent) = lent else { return Ok(()) };
        let batch = (**lent).as_ref();
        self.written += batch.len();
        let sent = if self.delivery.blocked { 0 } else { links.stream_lend(conn, stream, lent.clone())? };
        if sent < batch.len() {
            match copies {
                true => self.delivery.out.keep(&batch[sent..]),
                false => self.delivery.out.keep_lent(lent, sent),
            }
            self.delivery.blocked = true;
        }
        Ok(())
    }
}

impl Core {
    /// Writes deliveries within the turn's budget.
    pub(crate) fn deliver(&mut self, now: Now, links: &mut impl Links) {
        self.dispatch_scheduled();
        let mut budget = self.config.admission.deliveries_per_turn;
        let mut scratch = std::mem::take(&mut self.write_scratch);
        for _ in 0..self.delivery_queue.len() {
            let Some((conn, stream)) = self.delivery_queue.pop_front() else { break };
            if budget == 0 {
                self.delivery_queue.push_front((conn, stream));
                break;
            }
            self.write_stream(now, conn, stream, &mut budget, &mut scratch, links);
        }
        for _ in 0..self.datagram_queue.len() {
            let Some(conn) = self.datagram_queue.pop_front() else { break };
            self.write_datagrams(now, conn, &mut budget, &mut scratch, links);
        }
        self.write_scratch = scratch;
    }

    /// Whether deliveries are left that could go at once.
    pub(crate) fn has_deliveries(&mut self) -> bool {
        self.dispatch_scheduled();
        !self.delivery_queue.is_empty() || !self.datagram_queue.is_empty()
    }

    /// Puts every scheduled subscriber on the ready list of its stream.
    fn dispatch_scheduled(&mut self) {
        let Core { fan_out, sessions, delivery_queue, datagram_queue, .. } = self;
        while let Some(key) = fan_out.take_scheduled() {
            let Some(sub) = fan_out.get(key) else { continue };
            let (conn, id, mode) = (sub.conn, sub.id, sub.mode);
            let Some(session) = sessions.get(conn) else { continue };
            let stream = match mode {
                DeliveryMode::DatagramOrStream | DeliveryMode::DatagramOrGap => {
                    session.datagrams.push_back((key, id));
                    if !session.datagrams_queued {
                        session.datagrams_queued = true;
                        datagram_queue.push_back(conn);
                    }
                    continue;
                }
                DeliveryMode::Shared => session.shared,
                DeliveryMode::Own => session.subs.get(&id).map(|it| it.stream),
            };
            let Some(delivery) = stream.and_then(|stream| session.delivery.get_mut(stream)) else { continue };
            delivery.ready.push_back((key, id));
            if !delivery.queued && !delivery.blocked {
                delivery.queued = true;
                delivery_queue.push_back((conn, delivery.stream));
            }
        }
    }

    fn write_stream(
        &mut self,
        now: Now,
        conn: ConnKey,
        stream: u64,
        budget: &mut usize,
        scratch: &mut Vec<u8>,
        links: &mut impl Links,
    ) {
        let Core { fan_out, sessions, counters, config, egress, stalled, .. } = self;
        let Some(session) = sessions.get(conn) else { return };
        let Some(delivery) = session.delivery.get_mut(stream) else { return };
        delivery.queued = false;
        let waited = if delivery.closing_bytes > 0 { delivery.out.waiting() } else { 0 };
        let flushed = delivery.out.flush(conn, stream, links);
        if delivery.closing_bytes > 0 {
            // All that went counts: a bound, not an account.
            let sent = delivery.closing_bytes.min(waited - delivery.out.waiting());
            delivery.closing_bytes -= sent;
            session.closing_bytes -= sent;
            if session.control_stalled && sent > 0 {
                stalled.push_back((conn, CONTROL_STREAM));
            }
        }
        match flushed {
            // After a send that was not short no room is announced, whatever was said before.
            Ok(true) => delivery.blocked = false,
            Ok(false) => {
                delivery.blocked = true;
                return;
            }
            Err(error) => return self.on_delivery_error(conn, stream, error),
        }
        if delivery.ready.is_empty() {
            return self.end_own_stream(conn, stream, links);
        }
        // Without room no frame is made: a client may have very many streams that it does not read.
        let room = links.stream_capacity(conn, stream);
        if room == 0 {
            match links.stream_wait(conn, stream) {
                Ok(true) => {}
                Ok(false) => {
                    delivery.blocked = true;
                    return;
                }
                Err(error) => return self.on_delivery_error(conn, stream, error),
            }
        }
        let room = room.clamp(1, config.admission.write_bytes_max);
        scratch.clear();
        let mut closed = None;
        let mut writer = Writer { delivery, conn, written: 0 };
        let mut sent = Ok(());
        while writer.written + scratch.len() < room && *budget > 0 && !writer.delivery.blocked {
            let Some((key, id)) = writer.delivery.ready.front().copied() else { break };
            match step(fan_out, Some(egress), now, key, id, scratch) {
                Stepped::Frame { bytes, is_batch, lent } => {
                    fan_out.charge(key, bytes);
                    *budget -= 1;
                    counters.deliveries += u64::from(is_batch);
                    if writer.delivery.ready.len() > 1 {
                        writer.delivery.ready.rotate_left(1);
                    }
                    if lent.is_some() {
                        // Who does not read must not take from others what is lent.
                        sent = writer.put(scratch, lent.as_ref(), egress.is_half_used(), links);
                        scratch.clear();
                        if sent.is_err() {
                            break;
                        }
                    }
                }
                Stepped::Wait => {
                    writer.delivery.ready.pop_front();
                }
                Stepped::Closed(code) => {
                    writer.delivery.ready.pop_front();
                    closed = Some((key, code));
                    break;
                }
            }
        }
        match sent.and_then(|()| writer.put(scratch, None, false, links)) {
            Ok(()) => {
                if !delivery.blocked && !delivery.ready.is_empty() && closed.is_none() {
                    delivery.queued = true;
                    self.delivery_queue.push_back((conn, stream));
                }
            }
            Err(error) => return self.on_delivery_error(conn, stream, error),
        }
        if let Some((key, code)) = closed {
            self.close_subscription(conn, key, code, "the subscriber was too slow for policy disconnect");
        }
    }

    /// Memory that a session's unsent deliveries take, for tests.
    pub fn delivery_bytes_kept(&mut self, conn: ConnKey) -> usize {
        self.sessions.get(conn).map_or(0, |it| it.delivery.iter().map(|stream| stream.out.own_bytes()).sum())
    }

    fn on_delivery_error(&mut self, conn: ConnKey, stream: u64, error: LinkError) {
        match error {
            // The endpoint tells that the connection is over in its own event.
            LinkError::Closed | LinkError::WouldBlock => {}
            _ => self.drop_delivery_stream(conn, stream),
        }
    }

    /// A stream of its own whose subscription ended is finished once all is sent.
    fn end_own_stream(&mut self, conn: ConnKey, stream: u64, links: &mut impl Links) {
        let Some(session) = self.sessions.get(conn) else { return };
        let own = session.delivery.get_mut(stream).and_then(|it| it.own);
        if own.is_some_and(|id| session.subs.get(&id).is_none_or(|sub| sub.stream != stream)) {
            session.delivery.remove(stream);
            let _ = links.stream_send(conn, stream, &[], true);
        }
    }

    fn write_datagrams(
        &mut self,
        now: Now,
        conn: ConnKey,
        budget: &mut usize,
        scratch: &mut Vec<u8>,
        links: &mut impl Links,
    ) {
        let Core { fan_out, sessions, counters, delivery_queue, .. } = self;
        let Some(session) = sessions.get(conn) else { return };
        session.datagrams_queued = false;
        let mut closed = Vec::new();
        while *budget > 0 {
            let Some((key, id)) = session.datagrams.front().copied() else { break };
            scratch.clear();
            match step(fan_out, None, now, key, id, scratch) {
                Stepped::Frame { bytes, is_batch, .. } => {
                    *budget -= 1;
                    // Datagrams use no credit: neither side could know what was lost on the way, and what was charged
                    // for it would never come back.
                    match links.datagram_send(conn, scratch) {
                        Ok(()) => counters.deliveries += u64::from(is_batch),
                        Err(LinkError::TooLarge) => {
                            let mode = fan_out.get(key).map(|sub| sub.mode);
                            if mode == Some(DeliveryMode::DatagramOrGap) {
                                as_gap(scratch);
                                let _ = links.datagram_send(conn, scratch);
                            } else if let Some(stream) = session.shared
                                && let Some(delivery) = session.delivery.get_mut(stream)
                            {
                                if spill(delivery, scratch, counters) {
                                    fan_out.charge(key, bytes);
                                }
                                if !delivery.queued && !delivery.blocked {
                                    delivery.queued = true;
                                    delivery_queue.push_back((conn, stream));
                                }
                            }
                        }
                        // A full queue means a gap: the delivery number is used up (DECISIONS 22).
                        Err(_) => counters.datagrams_dropped += 1,
                    }
                    session.datagrams.rotate_left(1);
                }
                Stepped::Wait => {
                    session.datagrams.pop_front();
                }
                Stepped::Closed(code) => {
                    session.datagrams.pop_front();
                    closed.push((key, code));
                }
            }
        }
        if !session.datagrams.is_empty() {
            session.datagrams_queued = true;
            self.datagram_queue.push_back(conn);
        }
        for (key, code) in closed {
            self.close_subscription(conn, key, code, "the subscriber was too slow for policy disconnect");
        }
    }
}

/// Unsent bytes of the shared stream beyond which a large record of an at-most-once subscription is dropped.
const SPILL_BYTES_MAX: usize = 1 << 20;

/// Puts a frame on the shared stream; false: it was dropped.
fn spill(delivery: &mut DeliveryStream, frame: &[u8], counters: &mut crate::admission::CoreCounters) -> bool {
    let has_room = delivery.out.waiting() + frame.len() <= SPILL_BYTES_MAX;
    if has_room {
        delivery.out.keep(frame);
        counters.deliveries += 1;
    } else {
        counters.datagrams_dropped += 1;
    }
    has_room
}

/// Turns the Deliver frame in `frame` into a gap notice of the same number and range.
fn as_gap(frame: &mut Vec<u8>) {
    frame.truncate(DELIVER_PREFIX_BYTES);
    let length = (DELIVER_PREFIX_BYTES as u32).to_le_bytes();
    frame[..4].copy_from_slice(&length);
    frame[16..20].copy_from_slice(&1u32.to_le_bytes());
}
