//! **What**: subscribers: one subscription per shard, started where it was after every loss, merged into one stream of
//! items.
//!
//! **Invariants**: a subscription that cannot go on ends its whole subscriber, with the reason; one that can is started
//! again without the application noticing more than a pause.
//!
//! **Never**: an item out of order within its shard.
//!
//! **See**: `subscription.rs` for the checks, `subscriber.rs` for the handle.

use super::{ConnKey, Engine, Event, SubscriberId};
use crate::backoff::Backoff;
use crate::config::{Shards, SubscribeOptions};
use crate::error::SubscribeError;
use crate::session::Delivered;
use crate::subscription::{Phase, Priced, Subscription, Verdict};
use crate::violation::Violation;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{Route, Subscribed};
use felix_protocol::ids::ShardIndex;
use felix_protocol::names::StreamName;
use felix_protocol::position::Position;
use std::sync::Arc;

#[derive(Debug)]
struct Lane {
    subscription: Subscription,
    backoff: Backoff,
    /// Where the shard ended when it was confirmed first.
    committed: Option<Position>,
}

/// A subscriber.
#[derive(Debug)]
pub(super) struct SubscriberState {
    name: StreamName,
    lanes: Vec<Lane>,
}

impl SubscriberState {
    pub(super) fn stream_name(&self) -> &StreamName {
        &self.name
    }
}

impl Engine {
    /// A subscriber of a stream whose route is known. Its lanes are the shards in order.
    pub fn add_subscriber(
        &mut self,
        name: &StreamName,
        route: &Arc<Route>,
        options: &SubscribeOptions,
    ) -> SubscriberId {
        let id = SubscriberId(self.next_subscriber);
        self.next_subscriber += 1;
        self.keep_route(name, route);
        let shards: Vec<u32> = match options.shards {
            Shards::All => (0..route.shards.len() as u32).collect(),
            Shards::One(index) => vec![index],
        };
        let window = self.config.receive_buffer_bytes / shards.len().max(1);
        let lane = |index| Lane {
            subscription: Subscription::new(name.clone(), ShardIndex(index), options.clone(), window),
            backoff: Backoff::default(),
            committed: None,
        };
        let lanes = shards.into_iter().map(lane).collect();
        self.subscribers.insert(id, SubscriberState { name: name.clone(), lanes });
        self.changed = true;
        id
    }

    /// Ends a subscriber. Nothing more comes from it.
    pub fn close_subscriber(&mut self, id: SubscriberId) {
        let Some(subscriber) = self.subscribers.remove(&id) else { return };
        for lane in &subscriber.lanes {
            self.unsubscribe(&lane.subscription);
        }
        self.changed = true;
    }

    fn unsubscribe(&mut self, subscription: &Subscription) {
        if let Some((conn, wire_id)) = subscription.place()
            && let Some(conn) = self.conns.get_mut(&conn)
        {
            conn.session.unsubscribe(wire_id);
            conn.subscriptions.remove(&wire_id);
        }
    }

    /// The application consumed bytes of a lane (as priced by `Event::Item`).
    pub fn on_consumed(&mut self, id: SubscriberId, lane: u32, bytes: u64) {
        let lane_index = lane as usize;
        let Some(lane) = self.subscribers.get_mut(&id).and_then(|it| it.lanes.get_mut(lane_index)) else { return };
        lane.subscription.on_consumed(bytes);
        self.grant(id, lane_index);
    }

    /// Sends a credit if it is worth a frame.
    fn grant(&mut self, id: SubscriberId, index: usize) {
        let Some(lane) = self.subscribers.get_mut(&id).and_then(|it| it.lanes.get_mut(index)) else { return };
        if let Some(total) = lane.subscription.more_credit()
            && let Some((conn, wire_id)) = lane.subscription.place()
            && let Some(conn) = self.conns.get_mut(&conn)
        {
            conn.session.credit(wire_id, total);
        }
    }

    pub(super) fn turn_subscribers(&mut self) {
        let now = self.now.time;
        for id in self.subscribers.keys().copied().collect::<Vec<_>>() {
            let Some(mut subscriber) = self.subscribers.remove(&id) else { continue };
            for (index, lane) in subscriber.lanes.iter_mut().enumerate() {
                match lane.subscription.phase {
                    Phase::Waiting(until) if until > now => self.arm(until),
                    Phase::Idle | Phase::Waiting(_) => self.start(id, index, &mut lane.subscription),
                    Phase::Starting { .. } | Phase::Live { .. } | Phase::Ended => {}
                }
            }
            self.subscribers.insert(id, subscriber);
        }
    }

    fn start(&mut self, id: SubscriberId, index: usize, subscription: &mut Subscription) {
        let Some(key) = self.for_subscription(index) else { return };
        let Some(conn) = self.conns.get_mut(&key) else { return };
        let frame = subscription.subscribe();
        let Some(wire_id) = conn.session.subscribe(&frame) else { return };
        conn.subscriptions.insert(wire_id, (id, index));
        subscription.starting(key, wire_id, conn.clock_offset_ns);
    }

    // ---- what comes in ------------------------------------------------------------------------------------------

    fn place_of(&self, key: ConnKey, wire_id: u32) -> Option<(SubscriberId, usize)> {
        self.conns.get(&key)?.subscriptions.get(&wire_id).copied()
    }

    fn on_subscription(
        &mut self,
        key: ConnKey,
        wire_id: u32,
        act: impl FnOnce(&mut Lane, &mut Vec<Priced>) -> Result<(), Violation>,
    ) {
        let Some((id, index)) = self.place_of(key, wire_id) else { return };
        let Some(lane) = self.subscribers.get_mut(&id).and_then(|it| it.lanes.get_mut(index)) else { return };
        let mut items = Vec::new();
        let result = act(lane, &mut items);
        for (item, cost) in items {
            self.events.push_back(Event::Item { subscriber: id, lane: index as u32, cost, item });
        }
        if let Err(violation) = result {
            self.end_subscriber(id, SubscribeError::Protocol(violation));
            self.fail_session(key, violation);
        }
    }

    pub(super) fn on_subscribed(&mut self, key: ConnKey, wire_id: u32, subscribed: &Subscribed) {
        let place = self.place_of(key, wire_id);
        let mut first = false;
        self.on_subscription(key, wire_id, |lane, items| {
            lane.backoff.succeeded();
            first = lane.committed.is_none();
            let end = Position { lineage: subscribed.lineage, offset: subscribed.high_watermark };
            lane.committed.get_or_insert(end);
            lane.subscription.on_subscribed(subscribed, items)
        });
        let Some((id, index)) = place else { return };
        if first
            && let Some(subscriber) = self.subscribers.get(&id)
            && let Some(committed) = subscriber.lanes.iter().map(|lane| lane.committed).collect()
        {
            self.events.push_back(Event::Live { subscriber: id, committed });
        }
        // What was consumed since it asked: nothing else may ever be.
        self.grant(id, index);
    }

    pub(super) fn on_delivered(&mut self, key: ConnKey, wire_id: u32, delivered: Delivered) {
        let mut was_dropped = false;
        self.on_subscription(key, wire_id, |lane, items| {
            let result = lane.subscription.on_delivered(delivered, items);
            was_dropped = items.is_empty();
            result
        });
        // The application will not consume it.
        if was_dropped && let Some((id, index)) = self.place_of(key, wire_id) {
            self.grant(id, index);
        }
    }

    pub(super) fn on_subscription_ended(
        &mut self,
        key: ConnKey,
        wire_id: u32,
        code: ErrorCode,
        retry_after_ms: u32,
        detail: &str,
    ) {
        let place = self.conns.get_mut(&key).and_then(|it| it.subscriptions.remove(&wire_id));
        let Some((id, index)) = place else { return };
        let now = self.now.time;
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return };
        let Some(lane) = subscriber.lanes.get_mut(index) else { return };
        match lane.subscription.on_ended(code, detail) {
            Verdict::Again { reroute } => {
                let wait = lane.backoff.failed(&mut self.jitter).max(u64::from(retry_after_ms) * 1_000_000);
                lane.subscription.phase = Phase::Waiting(now.after_ns(wait));
                if reroute {
                    let name = subscriber.name.clone();
                    self.refresh_route(&name);
                }
                self.changed = true;
            }
            Verdict::End(error) => self.end_subscriber(id, error),
        }
    }

    fn end_subscriber(&mut self, id: SubscriberId, error: SubscribeError) {
        if self.subscribers.contains_key(&id) {
            self.close_subscriber(id);
            self.events.push_back(Event::Ended { subscriber: id, error });
        }
    }

    pub(super) fn subscription_lost(&mut self, id: SubscriberId, index: usize) {
        if let Some(lane) = self.subscribers.get_mut(&id).and_then(|it| it.lanes.get_mut(index)) {
            lane.subscription.on_lost();
        }
    }

    /// Leaves a connection that is going away; the next turn starts the subscriptions elsewhere.
    pub(super) fn move_subscriptions(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(&key) else { return };
        let moving: Vec<(u32, (SubscriberId, usize))> = std::mem::take(&mut conn.subscriptions).into_iter().collect();
        for (wire_id, (id, index)) in moving {
            if let Some(conn) = self.conns.get_mut(&key) {
                conn.session.unsubscribe(wire_id);
            }
            self.subscription_lost(id, index);
        }
        self.changed = true;
    }
}
