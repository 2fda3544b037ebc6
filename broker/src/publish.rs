//! **What**: the publish side of a core: reads channels, checks batches, routes them, returns acks.
//!
//! **Invariants**: a channel is read only while it has no waiting batch, its acks are not piling up and its owner is not
//! owed too much; otherwise it is on the stalled list and QUIC flow control holds the producer. Stalled channels take
//! turns, however much one of them has to say.
//!
//! **Never**: reading past a batch that could not be handed on.
//!
//! **See**: `channel.rs`, `felix_shard::shard`.

use crate::channel::{Channel, ChannelPhase};
use crate::core::Core;
use crate::links::{LinkError, Links};
use crate::message::MeshMessage;
use crate::session::{CONTROL_STREAM, SessionState};
use felix_control::authorise::{Target, Verb};
use felix_protocol::codec::DecodeError;
use felix_protocol::error_code::{Class, ErrorCode};
use felix_protocol::frame::{CHANNEL_ACKS, CHANNEL_KEYED, ChannelOpened, Frame, OpenChannel};
use felix_protocol::frame_stream::split_first_frame;
use felix_protocol::ids::Sequence;
use felix_protocol::time::Now;
use felix_shard::batch_pool::{CheckError, CheckedBatch};
use felix_shard::effect::{Ack, ChannelState};
use felix_shard::event::{ChannelKey, ConnKey, Event};

/// Batches that a stalled channel may hand on before the next one is read.
const SHARE_BATCHES: u32 = 64;

/// Why reading a channel ended.
enum Stop {
    /// Nothing more is there.
    Drained,
    /// A bound of others (mesh, owner); it is retried.
    Stalled,
    /// Its own unsent acks, or the owner's answer to its opening: `flush_acks` lets it go on.
    Held,
    /// The channel or the connection is gone.
    Gone,
}

impl Core {
    /// Reads a channel until it is empty or a bound is hit, or `share` batches were handed on.
    pub(crate) fn read_channel(&mut self, now: Now, conn: ConnKey, stream: u64, share: u32, links: &mut impl Links) {
        self.share = share;
        let channels_max = self.config.admission.channels_max as usize;
        let Some(session) = self.sessions.get(conn) else { return };
        if !session.channels.contains_key(&stream) {
            if session.channels.len() >= channels_max {
                self.counters.requests_refused += 1;
                links.stop_reading(conn, stream, ErrorCode::TooMany.number());
                links.reset(conn, stream, ErrorCode::TooMany.number());
                return;
            }
            session.channels.insert(stream, Box::default());
        }
        if let (SessionState::AwaitHello { .. }, Some(channel)) = (session.state, session.channels.get_mut(&stream)) {
            // Streams are not ordered among each other: a channel may arrive before Hello. It waits.
            channel.readable = true;
            return;
        }
        if session.channels.get(&stream).is_some_and(|it| it.stalled) {
            // It is read when its turn on the list comes: news of more bytes must not take it past the others.
            return;
        }
        let mut scratch = std::mem::take(&mut self.read_scratch);
        let stop = self.read_channel_with(now, conn, stream, links, &mut scratch);
        self.read_scratch = scratch;
        let Some(channel) = self.sessions.get(conn).and_then(|it| it.channels.get_mut(&stream)) else { return };
        match stop {
            Stop::Stalled if !channel.stalled => {
                channel.stalled = true;
                self.counters.channel_stalls += u64::from(self.share > 0);
                self.stalled.push_back((conn, stream));
            }
            // Not polled: a client that does not read its acks must not keep the core awake.
            Stop::Held => {
                channel.held = true;
                self.counters.channel_stalls += 1;
            }
            _ => {}
        }
    }

    fn read_channel_with(
        &mut self,
        now: Now,
        conn: ConnKey,
        stream: u64,
        links: &mut impl Links,
        scratch: &mut [u8],
    ) -> Stop {
        loop {
            // Frames that were kept when a bound was hit come first.
            match self.take_kept_frames(now, conn, stream, links) {
                Stop::Drained => {}
                other => return other,
            }
            let Some(channel) = self.channel(conn, stream) else { return Stop::Gone };
            if channel.ended {
                self.finish_channel(conn, stream, links);
                return Stop::Drained;
            }
            let read = match links.stream_recv(conn, stream, scratch) {
                Ok(read) => read,
                Err(LinkError::WouldBlock) => {
                    if let Some(channel) = self.channel(conn, stream) {
                        channel.readable = false;
                        channel.input.shrink();
                    }
                    return Stop::Drained;
                }
                Err(_) => {
                    self.abandon_channel(conn, stream, links);
                    return Stop::Gone;
                }
            };
            let mut rest = &scratch[..read.bytes];
            let Some(channel) = self.channel(conn, stream) else { return Stop::Gone };
            channel.ended |= read.fin;
            if channel.phase == ChannelPhase::Failed {
                continue;
            }
            if channel.input.buffered() > 0 {
                channel.input.push(rest);
                rest = &[];
            }
            // Whole frames are handled where they lie; only an unfinished tail is copied.
            loop {
                match split_first_frame(rest) {
                    Ok(Some((frame, after))) => {
                        rest = after;
                        match self.on_channel_frame(now, conn, stream, frame, links) {
                            Stop::Drained => {}
                            stop => {
                                if let Some(channel) = self.channel(conn, stream) {
                                    channel.input.push(rest);
                                }
                                return stop;
                            }
                        }
                    }
                    Ok(None) => {
                        if !rest.is_empty()
                            && let Some(channel) = self.channel(conn, stream)
                        {
                            channel.input.push(rest);
                        }
                        break;
                    }
                    Err(error) => {
                        self.on_malformed(conn, &error, links);
                        return Stop::Gone;
                    }
                }
            }
        }
    }

    /// Handles whole frames that were kept; they are moved out one at a time.
    fn take_kept_frames(&mut self, now: Now, conn: ConnKey, stream: u64, links: &mut impl Links) -> Stop {
        if let Some(stop) = self.retry_waiting(now, conn, stream, links) {
            return stop;
        }
        loop {
            let Some(channel) = self.channel(conn, stream) else { return Stop::Gone };
            if channel.input.buffered() == 0 {
                return Stop::Drained;
            }
            // The reassembly buffer is taken out while its frame is handled, so that handling may use the session.
            let mut input = std::mem::take(&mut channel.input);
            let outcome = match input.next_frame() {
                Ok(Some(frame)) => Some(self.on_channel_frame(now, conn, stream, frame, links)),
                Ok(None) => None,
                Err(error) => {
                    self.on_malformed(conn, &error, links);
                    return Stop::Gone;
                }
            };
            if let Some(channel) = self.channel(conn, stream)
                && channel.phase != ChannelPhase::Failed
            {
                channel.input = input;
            }
            match outcome {
                None => return Stop::Drained,
                Some(Stop::Drained) => {}
                Some(stop) => return stop,
            }
        }
    }

    /// Hands on the batch that waits. None: none waits any more and the channel may be read.
    fn retry_waiting(&mut self, now: Now, conn: ConnKey, stream: u64, links: &mut impl Links) -> Option<Stop> {
        let ack_out_bytes_max = self.config.admission.ack_out_bytes_max;
        let Some(channel) = self.channel(conn, stream) else { return Some(Stop::Gone) };
        if channel.out.waiting() > ack_out_bytes_max || channel.phase == ChannelPhase::Opening {
            return Some(Stop::Held);
        }
        match channel.waiting.take() {
            None => None,
            Some(batch) => match self.hand_on(now, conn, stream, batch, links) {
                Stop::Drained => None,
                stop => Some(stop),
            },
        }
    }

    fn channel(&mut self, conn: ConnKey, stream: u64) -> Option<&mut Channel> {
        self.sessions.get(conn)?.channels.get_mut(&stream).map(|it| &mut **it)
    }

    fn on_malformed(&mut self, conn: ConnKey, error: &DecodeError, links: &mut impl Links) {
        self.fail_session(conn, error.code(), &error.to_string(), links);
    }

    fn on_channel_frame(&mut self, now: Now, conn: ConnKey, stream: u64, frame: &[u8], links: &mut impl Links) -> Stop {
        self.counters.frames_in += 1;
        let decoded = match Frame::decode(frame) {
            Ok((_, decoded)) => decoded,
            // A name that breaks the grammar ends its channel, not the connection.
            Err(error) if error.code().class() == Class::Reject => {
                self.fail_channel(conn, stream, error.code(), error.to_string(), links);
                return Stop::Drained;
            }
            Err(error) => {
                self.on_malformed(conn, &error, links);
                return Stop::Gone;
            }
        };
        let Some(channel) = self.channel(conn, stream) else { return Stop::Gone };
        match (channel.phase, decoded) {
            (ChannelPhase::Failed, _) => Stop::Drained,
            (ChannelPhase::AwaitOpen, Frame::OpenChannel(open)) => {
                self.open_channel(now, conn, stream, &open, links);
                // Batches sent right behind it wait for the answer.
                match self.channel(conn, stream).map(|it| it.phase) {
                    Some(ChannelPhase::Opening) => Stop::Held,
                    Some(_) => Stop::Drained,
                    None => Stop::Gone,
                }
            }
            (ChannelPhase::Open, Frame::Publish { body }) => self.on_publish(now, conn, stream, body, links),
            (ChannelPhase::AwaitOpen, Frame::Publish { .. }) => {
                self.fail_session(conn, ErrorCode::NoChannel, "Publish before OpenChannel", links);
                Stop::Gone
            }
            _ => {
                self.fail_session(conn, ErrorCode::UnexpectedFrame, "only Publish may follow OpenChannel", links);
                Stop::Gone
            }
        }
    }

    fn open_channel(&mut self, now: Now, conn: ConnKey, stream: u64, open: &OpenChannel, links: &mut impl Links) {
        if !self.may(conn, Verb::Publish, Target::Stream(&open.stream_name)) {
            self.counters.permissions_denied += 1;
            let detail = format!("publish on {} is not granted to you", open.stream_name);
            return self.fail_channel(conn, stream, ErrorCode::PermissionDenied, detail, links);
        }
        let Some(route) = self.stream_route(&open.stream_name) else {
            let detail = format!("there is no stream {}; create it first", open.stream_name);
            return self.fail_channel(conn, stream, ErrorCode::NotFound, detail, links);
        };
        if open.stream.is_some_and(|id| id != route.info.id) {
            let detail = format!("stream {} was made anew; ask for its route", open.stream_name);
            return self.fail_channel(conn, stream, ErrorCode::StreamGone, detail, links);
        }
        let Some(place) = route.shards.get(open.shard_index.0 as usize) else {
            let detail = format!("{} has {} shard(s)", open.stream_name, route.shards.len());
            return self.fail_channel(conn, stream, ErrorCode::NotFound, detail, links);
        };
        let (shard, owner) = (place.shard, place.core);
        let me = self.config.me;
        let key = self.channel_key(conn, stream);
        let Some(channel) = self.channel(conn, stream) else { return };
        channel.phase = ChannelPhase::Opening;
        channel.shard = shard;
        channel.owner = owner;
        channel.wants_acks = open.flags & CHANNEL_ACKS != 0;
        channel.producer = (open.producer, open.producer_epoch);
        channel.keyed = (open.flags & CHANNEL_KEYED != 0).then(|| route.hash_range(open.shard_index));
        channel.batch_bytes_max = route.info.spec.batch_bytes_max as usize;
        let (producer, producer_epoch) = (open.producer, open.producer_epoch);
        if owner == me {
            let event = Event::ChannelOpened { shard, channel: key, producer, producer_epoch };
            self.shards.handle(now, event, &mut self.effects);
        } else {
            let message = MeshMessage::OpenChannel {
                routing_version: self.routes.version(),
                shard,
                channel: key,
                producer,
                producer_epoch,
            };
            self.send(usize::from(owner.0), message, links);
        }
    }

    /// The owner answered an OpenChannel.
    pub(crate) fn on_channel_opened(&mut self, key: ChannelKey, result: Result<ChannelState, ErrorCode>) {
        let Some(channel) = self.channel(key.conn, key.stream) else { return };
        if channel.phase != ChannelPhase::Opening {
            return;
        }
        match result {
            Ok(state) => {
                channel.phase = ChannelPhase::Open;
                let opened = ChannelOpened {
                    stream: state.stream,
                    shard: state.shard,
                    lineage: state.lineage,
                    epoch: state.epoch,
                    next_sequence: state.next_sequence,
                    batch_bytes_max: channel.batch_bytes_max as u32,
                };
                Frame::ChannelOpened(opened).encode(0, channel.out.buffer());
            }
            Err(code) => channel.fail(code, channel_refusal(code).to_string()),
        }
        self.queue_acks(key.conn, key.stream);
    }

    fn on_publish(&mut self, now: Now, conn: ConnKey, stream: u64, body: &[u8], links: &mut impl Links) -> Stop {
        self.counters.batches_in += 1;
        let Core { sessions, shards, .. } = self;
        let Some(channel) = sessions.get(conn).and_then(|it| it.channels.get_mut(&stream)) else { return Stop::Gone };
        let checked = CheckedBatch::check(&mut shards.pool, body, channel.batch_bytes_max, channel.keyed);
        let refused = match checked {
            Ok(batch) if channel.producer == (batch.facts().producer, batch.facts().producer_epoch) => Ok(batch),
            Ok(batch) => {
                // Who holds a channel must not speak for another producer: its sequence would be moved or fenced.
                shards.pool.put_back(batch);
                Err((ErrorCode::InvalidBatch, "the batch names another producer than its channel".to_string()))
            }
            Err(error) => Err(refusal(&error)),
        };
        match refused {
            Ok(batch) => self.hand_on(now, conn, stream, batch, links),
            Err((code, detail)) => {
                channel.write_refusal(claimed_sequence(body), code, &detail);
                self.counters.batches_refused += 1;
                self.queue_acks(conn, stream);
                Stop::Drained
            }
        }
    }

    fn hand_on(&mut self, now: Now, conn: ConnKey, stream: u64, batch: CheckedBatch, links: &mut impl Links) -> Stop {
        let me = self.config.me;
        let share = self.share;
        let key = self.channel_key(conn, stream);
        let Some(channel) = self.channel(conn, stream) else {
            self.shards.pool.put_back(batch);
            return Stop::Gone;
        };
        let (shard, owner) = (channel.shard, channel.owner);
        if share == 0 {
            channel.waiting = Some(batch);
            return Stop::Stalled;
        }
        if owner == me {
            if self.shards.is_intake_paused(shard) {
                if let Some(channel) = self.channel(conn, stream) {
                    channel.waiting = Some(batch);
                }
                return Stop::Stalled;
            }
            let Some(channel) = self.channel(conn, stream) else { return Stop::Gone };
            channel.unanswered += 1;
            let unsent = channel.out.waiting();
            self.share -= 1;
            self.shards.handle(now, Event::Published { shard, channel: key, batch }, &mut self.effects);
            return if unsent > self.config.admission.ack_out_bytes_max { Stop::Held } else { Stop::Drained };
        }
        let to = usize::from(owner.0);
        if self.forwarded[to] >= self.config.admission.forwarded_max || self.outbox_waits(to) {
            if let Some(channel) = self.channel(conn, stream) {
                channel.waiting = Some(batch);
            }
            return Stop::Stalled;
        }
        match links.mesh_send(to, MeshMessage::Publish { shard, channel: key, batch }) {
            Ok(()) => {
                self.share -= 1;
                self.forwarded[to] += 1;
                self.counters.batches_forwarded += 1;
                if let Some(channel) = self.channel(conn, stream) {
                    channel.unanswered += 1;
                }
                Stop::Drained
            }
            Err(MeshMessage::Publish { batch, .. }) => {
                if let Some(channel) = self.channel(conn, stream) {
                    channel.waiting = Some(batch);
                }
                Stop::Stalled
            }
            Err(_) => Stop::Gone,
        }
    }

    /// A batch is appended.
    pub(crate) fn on_ack(&mut self, key: ChannelKey, ack: &Ack) {
        let Some(channel) = self.channel(key.conn, key.stream) else { return };
        channel.unanswered = channel.unanswered.saturating_sub(1);
        channel.on_ack(ack);
        if (channel.wants_acks || channel.finished) && !channel.queued {
            channel.queued = true;
            self.ack_queue.push((key.conn, key.stream));
        }
    }

    /// A batch is refused by its shard.
    pub(crate) fn on_refuse(&mut self, key: ChannelKey, base_sequence: Sequence, record_count: u32, code: ErrorCode) {
        self.counters.batches_refused += 1;
        let Some(channel) = self.channel(key.conn, key.stream) else { return };
        channel.unanswered = channel.unanswered.saturating_sub(1);
        channel.on_refused(base_sequence, record_count, code, shard_refusal(code));
        self.queue_acks(key.conn, key.stream);
    }

    pub(crate) fn queue_acks(&mut self, conn: ConnKey, stream: u64) {
        if let Some(channel) = self.channel(conn, stream)
            && !channel.queued
        {
            channel.queued = true;
            self.ack_queue.push((conn, stream));
        }
    }

    /// Sends gathered acks. Returns whether a channel that was held may be read again.
    pub(crate) fn flush_acks(&mut self, links: &mut impl Links) -> bool {
        let ack_out_bytes_max = self.config.admission.ack_out_bytes_max;
        let mut freed = false;
        let mut queue = std::mem::take(&mut self.ack_queue);
        for (conn, stream) in queue.drain(..) {
            let Some(channel) = self.channel(conn, stream) else { continue };
            channel.queued = false;
            channel.write_acks();
            match channel.out.flush(conn, stream, links) {
                Ok(true) if channel.phase == ChannelPhase::Failed => {
                    // The typed error is out: end both directions of the stream.
                    let _ = links.stream_send(conn, stream, &[], true);
                    links.stop_reading(conn, stream, ErrorCode::NoError.number());
                    self.drop_channel(conn, stream);
                }
                Ok(true) if channel.finished && channel.unanswered == 0 => {
                    let _ = links.stream_send(conn, stream, &[], true);
                    self.drop_channel(conn, stream);
                }
                Ok(_) | Err(LinkError::WouldBlock) => {
                    let may_go_on =
                        channel.out.waiting() <= ack_out_bytes_max && channel.phase != ChannelPhase::Opening;
                    if channel.held && may_go_on {
                        channel.held = false;
                        channel.stalled = true;
                        freed = true;
                        self.stalled.push_back((conn, stream));
                    }
                }
                Err(_) => self.abandon_channel(conn, stream, links),
            }
        }
        if self.ack_queue.is_empty() {
            self.ack_queue = queue;
        }
        freed
    }

    /// Reads again what a bound stopped. What comes free may be less than one channel wants, so who got nothing goes
    /// before who got something in the next pass, and in this one all get a share before anyone gets more.
    pub(crate) fn retry_stalled(&mut self, now: Now, links: &mut impl Links) {
        for _ in 0..self.stalled.len() {
            let Some((conn, stream)) = self.stalled.pop_front() else { break };
            if stream == CONTROL_STREAM {
                self.read_control(now, conn, links);
            } else {
                self.read_share(now, conn, stream, links);
            }
        }
        while let Some((conn, stream)) = self.cut.pop_front() {
            self.read_share(now, conn, stream, links);
        }
        self.stalled.append(&mut self.fed);
    }

    /// Lets a stalled channel hand on its share. If it is stalled again it goes on the list that says why.
    fn read_share(&mut self, now: Now, conn: ConnKey, stream: u64, links: &mut impl Links) {
        let Some(channel) = self.channel(conn, stream) else { return };
        channel.stalled = false;
        self.read_channel(now, conn, stream, SHARE_BATCHES, links);
        let left = self.share;
        if left < SHARE_BATCHES && self.channel(conn, stream).is_some_and(|it| it.stalled) {
            // `read_channel` has put it behind those that got nothing.
            let list = if left == 0 { &mut self.cut } else { &mut self.fed };
            list.extend(self.stalled.pop_back());
        }
    }

    fn fail_channel(&mut self, conn: ConnKey, stream: u64, code: ErrorCode, detail: String, _links: &mut impl Links) {
        if let Some(channel) = self.channel(conn, stream) {
            channel.fail(code, detail);
            self.queue_acks(conn, stream);
        }
    }

    /// The producer ended its side: what is owed is still sent.
    fn finish_channel(&mut self, conn: ConnKey, stream: u64, links: &mut impl Links) {
        let Some(channel) = self.channel(conn, stream) else { return };
        if channel.input.buffered() > 0 {
            return self.fail_session(conn, ErrorCode::MalformedFrame, "a channel ended inside a frame", links);
        }
        channel.readable = false;
        channel.finished = true;
        self.queue_acks(conn, stream);
    }

    /// The client reset or stopped a channel: our side of the stream ends too, else the transport keeps it for the life
    /// of the connection and the client's stream credit never comes back.
    pub(crate) fn abandon_channel(&mut self, conn: ConnKey, stream: u64, links: &mut impl Links) {
        self.drop_channel(conn, stream);
        links.reset(conn, stream, ErrorCode::NoError.number());
        links.stop_reading(conn, stream, ErrorCode::NoError.number());
    }

    pub(crate) fn drop_channel(&mut self, conn: ConnKey, stream: u64) {
        if let Some(channel) = self.sessions.get(conn).and_then(|it| it.channels.remove(&stream))
            && let Some(batch) = channel.waiting
        {
            self.shards.pool.put_back(batch);
        }
    }
}

/// Sequence that a refused body claims to have, as far as its bytes go.
fn claimed_sequence(body: &[u8]) -> Sequence {
    Sequence(body.get(40..48).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes))
}

fn refusal(error: &CheckError) -> (ErrorCode, String) {
    match error {
        CheckError::Batch(error) => (error.code(), error.to_string()),
        CheckError::WrongShard { record } => {
            (ErrorCode::WrongShard, format!("the key of record {record} belongs to another shard; refresh the route"))
        }
        CheckError::TooLarge { bytes, max } => {
            (ErrorCode::InvalidBatch, format!("the batch has {bytes} bytes, the stream allows {max}"))
        }
    }
}

fn channel_refusal(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::ProducerFenced => "a newer incarnation of this producer has published; take a new producer id",
        ErrorCode::StreamGone => "the stream was deleted or moved; ask for its route",
        ErrorCode::StorageFailed => "the shard's storage did not open; see the broker's log",
        _ => "the shard refused the channel",
    }
}

fn shard_refusal(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::UnknownProducer => "the producer is not known any more; take a new producer id",
        ErrorCode::ProducerFenced => "a newer incarnation of this producer has published",
        ErrorCode::SequenceGap => "a batch before this one is missing; resend from the first unacknowledged one",
        ErrorCode::DuplicateMismatch => "this sequence was published before with other bytes",
        ErrorCode::TooMany => "the shard remembers too many producers; retry later or publish without a producer id",
        ErrorCode::Overloaded => "readers hold too much memory, or the disk is behind; retry",
        ErrorCode::StorageFailed => {
            "a write or sync failed, or the shard is damaged: it takes nothing more; see the broker's log"
        }
        ErrorCode::DiskFull => "the disk is full; free some space or lower a retention, then retry",
        ErrorCode::StreamGone => "the stream was deleted or moved; ask for its route",
        _ => "the shard refused the batch",
    }
}
