//! **What**: publishers: takes records from the intake, opens channels on the owner's connection, routes answers.
//!
//! ```text
//!   intake lane --take--> channel.seal --> session.publish --> ack --> tally --settle--> intake
//! ```
//!
//! **Invariants**: a lane is taken only when its channel can send, so that whatever waits meanwhile becomes one batch.
//! QUIC's own queue stays short: at most `SEND_AHEAD_BYTES` and one batch per channel.
//!
//! **Never**: a record without outcome beyond its deadline.
//!
//! **See**: `channel.rs` for what a batch can meet, `intake.rs` for where it waited.

use super::{ConnKey, Engine, Event, PublisherId};
use crate::backoff::Backoff;
use crate::channel::{After, Channel, Phase, Sealer};
use crate::config::{PublisherOptions, ShardTarget};
use crate::error::PublishError;
use crate::intake::{Intake, Outcome, Pending, Tally};
use crate::violation::Violation;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{
    CHANNEL_ACKS, CHANNEL_KEYED, ChannelOpened, ErrorFrame, OpenChannel, PublishAck, PublishRefused, Route,
};
use felix_protocol::ids::{ProducerEpoch, ProducerId, ShardIndex, StreamId};
use felix_protocol::names::StreamName;
use felix_protocol::time::{Now, Time};
use std::sync::Arc;

/// Bytes of a channel that may wait for QUIC: enough to fill a window, little enough to batch well behind it.
const SEND_AHEAD_BYTES: usize = 256 << 10;
/// How often lanes are searched for records past their deadline.
const EXPIRY_STEP_NS: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Producer {
    None,
    Asking,
    Have(ProducerId, ProducerEpoch),
    NotBefore(Time),
}

#[derive(Debug)]
struct Lane {
    channel: Channel,
    backoff: Backoff,
    /// The broker would not open the channel: what waited then fails with this, and nothing that came later.
    refusal: Option<(Time, PublishError)>,
}

impl Lane {
    fn new(index: usize, options: &PublisherOptions) -> Lane {
        let channel = Channel::new(ShardIndex(index as u32), options);
        Lane { channel, backoff: Backoff::default(), refusal: None }
    }
}

/// A publisher.
#[derive(Debug)]
pub(super) struct PublisherState {
    name: StreamName,
    options: PublisherOptions,
    stream: Option<StreamId>,
    lanes: Vec<Lane>,
    producer: Producer,
    /// What came to its outcome and is not settled with the intake yet.
    tally: Tally,
    sealer: Sealer,
    expiry_at: Time,
    closing: bool,
    /// The broker gave no producer: what waited then, in lanes that need one, fails with this.
    refusal: Option<(Time, PublishError)>,
}

impl PublisherState {
    pub(super) fn stream_name(&self) -> &StreamName {
        &self.name
    }

    pub(super) fn wants_acks(&self) -> bool {
        self.options.acks
    }

    /// Ends after what waits is sent, if nobody waits for answers.
    pub(super) fn finish(&mut self) {
        self.closing |= !self.options.acks;
    }
}

impl Engine {
    /// A publisher for a stream whose route is known.
    pub fn add_publisher(&mut self, name: &StreamName, route: &Arc<Route>, options: PublisherOptions) -> PublisherId {
        let id = PublisherId(self.next_publisher);
        self.next_publisher += 1;
        self.keep_route(name, route);
        let shards = match options.target {
            ShardTarget::ByKey => route.shards.len(),
            ShardTarget::Shard(index) => route.shards.len().max(index as usize + 1),
        };
        self.publishers.insert(
            id,
            PublisherState {
                name: name.clone(),
                stream: Some(route.stream),
                lanes: (0..shards).map(|index| Lane::new(index, &options)).collect(),
                producer: Producer::None,
                tally: Tally::default(),
                sealer: Sealer::new(options.compression),
                expiry_at: Time(0),
                closing: false,
                refusal: None,
                options,
            },
        );
        self.changed = true;
        id
    }

    /// Lets a publisher end once everything it took has its outcome.
    pub fn close_publisher(&mut self, id: PublisherId) {
        if let Some(publisher) = self.publishers.get_mut(&id) {
            publisher.closing = true;
            self.changed = true;
        }
    }

    /// Whether a publisher has outcomes to settle or batches to send again: `pump` it also if nothing new waits.
    pub fn has_work(&self, id: PublisherId) -> bool {
        self.publishers.get(&id).is_some_and(|it| !it.tally.is_empty() || it.closing)
    }

    /// Whether a publisher has not ended.
    pub fn has_publisher(&self, id: PublisherId) -> bool {
        self.publishers.contains_key(&id)
    }

    /// Moves what waits in the intake as far as it can go, and settles outcomes with it.
    pub fn pump(&mut self, now: Now, id: PublisherId, intake: &mut Intake) {
        self.now = now;
        let Some(mut publisher) = self.publishers.remove(&id) else {
            intake.close();
            return;
        };
        // One lane after the other: an intake of many shards is searched once, not per batch.
        let waiting: Vec<usize> = intake.waiting_lanes().collect();
        let no_producer = publisher.refusal.take();
        for lane in waiting {
            // First, so that what came after the refusal is not held for it.
            fail_refused(&mut publisher, lane, no_producer.as_ref(), intake);
            self.pump_lane(id, &mut publisher, lane, Some(intake));
        }
        self.expire_waiting(&mut publisher, intake);
        intake.settle(&mut publisher.tally);
        let done =
            publisher.closing && !intake.has_waiting() && publisher.lanes.iter().all(|lane| lane.channel.is_idle());
        if done {
            for lane in &publisher.lanes {
                self.leave(&lane.channel);
            }
            intake.close();
            self.changed = true;
            return;
        }
        self.publishers.insert(id, publisher);
    }

    fn expire_waiting(&mut self, publisher: &mut PublisherState, intake: &mut Intake) {
        let now = self.now.time;
        let deadline_ns = publisher.options.deadline.as_nanos().min(u128::from(u64::MAX)) as u64;
        if intake.has_waiting()
            && now >= publisher.expiry_at
            && let Some(limit) = now.0.checked_sub(deadline_ns).map(Time)
        {
            publisher.expiry_at = now.after_ns(EXPIRY_STEP_NS);
            for lane in intake.waiting_lanes().collect::<Vec<_>>() {
                while let Some(pending) = intake.take_older(lane, limit) {
                    fail(&mut publisher.tally, pending, &PublishError::Expired);
                }
            }
        }
        self.arm_oldest(intake, deadline_ns);
    }

    fn arm_oldest(&mut self, intake: &Intake, deadline_ns: u64) {
        if let Some(oldest) = intake.oldest() {
            self.arm(oldest.after_ns(deadline_ns));
        }
    }

    /// Resends, deadlines and reopenings of channels, for which no record needs to wait.
    pub(super) fn turn_publishers(&mut self) {
        let now = self.now.time;
        for id in self.publishers.keys().copied().collect::<Vec<_>>() {
            let Some(mut publisher) = self.publishers.remove(&id) else { continue };
            for index in 0..publisher.lanes.len() {
                if publisher.lanes[index].channel.is_idle() && publisher.lanes[index].channel.place().is_none() {
                    continue;
                }
                let PublisherState { lanes, tally, .. } = &mut publisher;
                lanes[index].channel.expire(now, tally);
                self.pump_lane(id, &mut publisher, index, None);
                if let Some(at) = publisher.lanes[index].channel.deadline() {
                    self.arm(at);
                }
            }
            self.publishers.insert(id, publisher);
        }
    }

    fn pump_lane(
        &mut self,
        id: PublisherId,
        publisher: &mut PublisherState,
        index: usize,
        mut intake: Option<&mut Intake>,
    ) {
        let now = self.now.time;
        while publisher.lanes.len() <= index {
            publisher.lanes.push(Lane::new(publisher.lanes.len(), &publisher.options));
        }
        let deadline_ns = publisher.options.deadline.as_nanos().min(u128::from(u64::MAX)) as u64;
        loop {
            let lane = &mut publisher.lanes[index];
            match lane.channel.phase {
                Phase::Opening { .. } => return,
                Phase::Waiting(until) if until > now => return self.arm(until),
                Phase::Waiting(_) => lane.channel.phase = Phase::Closed,
                Phase::Closed => {
                    if intake.is_none() && lane.channel.is_idle() || !self.open(id, publisher, index) {
                        return;
                    }
                }
                Phase::Open { conn, stream } => {
                    if lane.channel.wants_reopen() {
                        self.leave(&lane.channel);
                        lane.channel.phase = Phase::Closed;
                        continue;
                    }
                    let Some(session) = self.conns.get_mut(&conn).map(|it| &mut it.session) else { return };
                    if session.unsent_bytes(stream) >= SEND_AHEAD_BYTES {
                        return;
                    }
                    if let Some(frame) = lane.channel.next_resend(now) {
                        session.publish(stream, frame);
                        continue;
                    }
                    let Some(intake) = intake.as_deref_mut() else { return };
                    if !lane.channel.has_room() {
                        return;
                    }
                    let Some(pending) = intake.take(index) else { return };
                    if pending.since.after_ns(deadline_ns) <= now {
                        fail(&mut publisher.tally, pending, &PublishError::Expired);
                        continue;
                    }
                    let PublisherState { sealer, tally, .. } = publisher;
                    let (frame, builder) = publisher.lanes[index].channel.seal(pending, deadline_ns, sealer, tally);
                    session.publish(stream, frame);
                    intake.recycle(builder);
                    if let Some(at) = publisher.lanes[index].channel.deadline() {
                        self.arm(at);
                    }
                }
            }
        }
    }

    /// Opens a channel if everything it needs is there.
    fn open(&mut self, id: PublisherId, publisher: &mut PublisherState, index: usize) -> bool {
        let channel = &mut publisher.lanes[index].channel;
        if let (Some(burned), Producer::Have(producer, epoch)) = (channel.burned, publisher.producer)
            && burned == (producer, epoch)
        {
            publisher.producer = Producer::None;
        }
        if channel.needs_producer() {
            match publisher.producer {
                Producer::Have(producer, epoch) => channel.producer = Some((producer, epoch)),
                Producer::Asking => return false,
                Producer::NotBefore(at) if at > self.now.time => {
                    self.arm(at);
                    return false;
                }
                Producer::None | Producer::NotBefore(_) => {
                    publisher.producer = Producer::Asking;
                    self.ask_producer(id);
                    return false;
                }
            }
        }
        let core =
            self.route(&publisher.name).and_then(|route| route.shards.get(index).map(|it| it.core)).unwrap_or_default();
        let Some(key) = self.for_core(core) else { return false };
        let Some(conn) = self.conns.get_mut(&key) else { return false };
        let limit = conn.welcome.as_ref().map_or(1, |it| it.channels_max as usize);
        if conn.session.channel_count() >= limit.max(1) {
            // The broker says how many it serves; a channel that ends makes room.
            let wait = publisher.lanes[index].backoff.failed(&mut self.jitter);
            publisher.lanes[index].channel.phase = Phase::Waiting(self.now.time.after_ns(wait));
            return true;
        }
        let keyed = publisher.options.target == ShardTarget::ByKey;
        let mut flags = 0;
        if publisher.options.acks {
            flags |= CHANNEL_ACKS;
        }
        if keyed {
            flags |= CHANNEL_KEYED;
        }
        let (producer, producer_epoch) = channel.producer.unwrap_or_default();
        let opened = conn.session.open_channel(&OpenChannel {
            stream_name: publisher.name.clone(),
            stream: publisher.stream,
            shard_index: ShardIndex(index as u32),
            flags,
            producer,
            producer_epoch,
        });
        let Some(stream) = opened else { return false };
        conn.channels.insert(stream, (id, index));
        channel.opening(key, stream);
        true
    }

    /// Closes a channel's QUIC stream in order.
    fn leave(&mut self, channel: &Channel) {
        if let Some((conn, stream)) = channel.place()
            && let Some(conn) = self.conns.get_mut(&conn)
        {
            conn.session.close_channel(stream);
            conn.channels.remove(&stream);
        }
    }

    // ---- answers ------------------------------------------------------------------------------------------------

    fn on_channel(
        &mut self,
        key: ConnKey,
        stream: u64,
        act: impl FnOnce(&mut Lane, &mut Tally) -> Result<After, Violation>,
    ) {
        let Some(place) = self.conns.get(&key).and_then(|it| it.channels.get(&stream)).copied() else { return };
        let Some(publisher) = self.publishers.get_mut(&place.0) else { return };
        let PublisherState { lanes, tally, .. } = publisher;
        let Some(lane) = lanes.get_mut(place.1) else { return };
        match act(lane, tally) {
            Ok(after) => self.after(place.0, after),
            Err(violation) => self.fail_session(key, violation),
        }
    }

    fn after(&mut self, id: PublisherId, after: After) {
        let Some(publisher) = self.publishers.get_mut(&id) else { return };
        if after.forget_stream {
            publisher.stream = None;
        }
        if after.reroute {
            let name = publisher.name.clone();
            self.refresh_route(&name);
        }
    }

    pub(super) fn on_channel_opened(&mut self, key: ConnKey, stream: u64, opened: &ChannelOpened) {
        self.on_channel(key, stream, |lane, tally| {
            lane.channel.on_opened(opened, tally)?;
            lane.backoff.succeeded();
            Ok(After::default())
        });
        // The channel may have found that it needs another producer: then this stream is of no use.
        let Some(conn) = self.conns.get_mut(&key) else { return };
        if let Some((publisher, index)) = conn.channels.get(&stream).copied()
            && let Some(publisher) = self.publishers.get_mut(&publisher)
        {
            publisher.stream.get_or_insert(opened.stream);
            if publisher.lanes.get(index).is_some_and(|it| it.channel.phase == Phase::Closed) {
                conn.session.close_channel(stream);
                conn.channels.remove(&stream);
            }
        }
    }

    pub(super) fn on_acked(&mut self, key: ConnKey, stream: u64, ack: &PublishAck) {
        self.on_channel(key, stream, |lane, tally| lane.channel.on_ack(ack, tally).map(|()| After::default()));
    }

    pub(super) fn on_refused(&mut self, key: ConnKey, stream: u64, refused: &PublishRefused) {
        let now = self.now.time;
        self.on_channel(key, stream, |lane, tally| lane.channel.on_refused(now, refused, tally));
    }

    pub(super) fn on_channel_failed(&mut self, key: ConnKey, stream: u64, error: Option<ErrorFrame>) {
        let place = self.conns.get_mut(&key).and_then(|it| it.channels.remove(&stream));
        let Some((id, index)) = place else { return };
        let Some(publisher) = self.publishers.get_mut(&id) else { return };
        let PublisherState { lanes, tally, .. } = publisher;
        let Some(lane) = lanes.get_mut(index) else { return };
        let (code, detail, retry_ms) = match &error {
            Some(error) => (error.code, error.detail.as_str(), error.retry_after_ms),
            // Reset without a word: like a connection loss.
            None => (ErrorCode::Internal, "", 0),
        };
        let result = lane.channel.on_failed(code, detail, tally);
        let wait = lane.backoff.failed(&mut self.jitter).max(u64::from(retry_ms) * 1_000_000);
        let until = self.now.time.after_ns(wait);
        lane.channel.phase = Phase::Waiting(until);
        match result {
            Ok(after) => {
                self.arm(until);
                self.after(id, after);
            }
            Err(refusal) => lane.refusal = Some((self.now.time, refusal)),
        }
    }

    pub(super) fn channel_lost(&mut self, id: PublisherId, index: usize) {
        if let Some(publisher) = self.publishers.get_mut(&id)
            && let PublisherState { lanes, tally, .. } = publisher
            && let Some(lane) = lanes.get_mut(index)
        {
            lane.channel.on_lost(tally);
        }
    }

    pub(super) fn channel_moves(&mut self, id: PublisherId, index: usize) {
        let now = self.now.time;
        if let Some(lane) = self.publishers.get_mut(&id).and_then(|it| it.lanes.get_mut(index)) {
            lane.channel.move_away(now);
        }
    }

    pub(super) fn on_producer(
        &mut self,
        id: PublisherId,
        answer: Result<(ProducerId, ProducerEpoch), Option<(ErrorCode, String)>>,
        retry_at: Time,
    ) {
        let Some(publisher) = self.publishers.get_mut(&id) else { return };
        publisher.producer = match answer {
            Ok((producer, epoch)) => Producer::Have(producer, epoch),
            Err(refusal) => {
                let error = refusal.map(|(code, detail)| PublishError::Rejected { code, detail });
                publisher.refusal = error.map(|it| (self.now.time, it));
                Producer::NotBefore(retry_at)
            }
        };
        self.changed = true;
        self.arm(retry_at);
    }

    pub(super) fn on_route_learned(&mut self, name: &StreamName, route: &Arc<Route>) {
        for (id, publisher) in self.publishers.iter_mut().filter(|(_, it)| it.name == *name) {
            if publisher.stream.is_none_or(|it| it != route.stream) {
                publisher.stream = Some(route.stream);
            }
            // What waited for a better route may go at once.
            for lane in &mut publisher.lanes {
                if let Phase::Waiting(_) = lane.channel.phase {
                    lane.channel.phase = Phase::Waiting(self.now.time);
                }
            }
            self.events.push_back(Event::Rerouted { publisher: *id, route: route.clone() });
        }
        self.changed = true;
    }

    pub(super) fn shut_publishers(&mut self) {
        for publisher in self.publishers.values_mut() {
            let PublisherState { lanes, tally, .. } = publisher;
            for lane in lanes {
                lane.channel.on_shutdown(tally);
            }
        }
    }

    /// After `shut_down`: fails what still waits in an intake and settles it.
    pub fn drain_intake(&mut self, id: PublisherId, intake: &mut Intake) {
        intake.close();
        let Some(mut publisher) = self.publishers.remove(&id) else { return };
        for lane in intake.waiting_lanes().collect::<Vec<_>>() {
            while let Some(pending) = intake.take(lane) {
                fail(&mut publisher.tally, pending, &PublishError::Expired);
            }
        }
        intake.settle(&mut publisher.tally);
    }
}

/// Fails what waited in a lane when the broker refused its channel, or the producer it needs.
fn fail_refused(
    publisher: &mut PublisherState,
    index: usize,
    no_producer: Option<&(Time, PublishError)>,
    intake: &mut Intake,
) {
    let PublisherState { lanes, tally, .. } = publisher;
    let Some(lane) = lanes.get_mut(index) else { return };
    let no_producer = no_producer.filter(|_| lane.channel.needs_producer());
    for (at, error) in lane.refusal.take().iter().chain(no_producer) {
        while let Some(pending) = intake.take_older(index, *at) {
            fail(tally, pending, error);
        }
    }
}

fn fail(tally: &mut Tally, pending: Pending, error: &PublishError) {
    let records = u64::from(pending.builder.record_count());
    tally.settle(pending.generation, records, pending.charge, Outcome::Failed(error));
    for (_, ticket) in pending.tickets {
        ticket.complete(Err(error.clone()));
    }
}
