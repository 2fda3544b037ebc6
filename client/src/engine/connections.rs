//! **What**: the connections of a client: which are wanted, when to try again, what comes in on them.
//!
//! ```text
//!   slot 0            requests, subscriptions        any core
//!   slots 1..n        subscriptions (option)         any core
//!   slots n..n+4      publish, one per owner core    steered by the Initial's connection id
//!
//!   no connection --due--> connecting --Welcome--> ready --Goaway--> draining (the slot connects anew at once)
//! ```
//!
//! **Invariants**: a slot has at most one connection that is not draining. A lost connection is forgotten in one place
//! (`on_closed`), where everything that was on it learns of it.
//!
//! **Never**: a retry without a wait, except once after a stateless reset or Goaway of a connection that worked.
//!
//! **See**: `session.rs`, `backoff.rs`.

use super::{ConnKey, Effect, Engine, Event, PublisherId, SubscriberId};
use crate::backoff::Backoff;
use crate::session::{End, Session, SessionEvent};
use crate::violation::Violation;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::Welcome;
use felix_protocol::ids::CoreId;
use felix_protocol::time::{Now, Time};
use std::collections::BTreeMap;

/// Connections that are made for publishing (DECISIONS 19); beyond them the broker's mesh forwards.
const PUBLISH_CONNECTIONS_MAX: usize = 4;
/// Time a broker may leave between connection and Welcome.
const GREETING_NS: u64 = 10_000_000_000;
/// Wait before a stream limit is tried again.
pub(super) const STREAM_LIMIT_NS: u64 = 5_000_000;

/// A core to land on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SteerTo {
    /// Which.
    pub core: CoreId,
    /// Of how many.
    pub core_count: u8,
}

/// Why a connection is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// We closed it.
    Closed,
    /// The broker does not know it any more: it restarted.
    Reset,
    /// Nothing was heard.
    Silent,
    /// Nobody listens there.
    Unreachable,
    /// The TLS handshake failed.
    Tls(Option<u8>),
    /// The broker's endpoint turned it away.
    TurnedAway,
    /// A QUIC transport error (RFC 9000 section 20.1).
    Transport(u64),
    /// The broker closed it with this code, or refused it.
    Refused(ErrorCode, String),
    /// The broker broke the protocol.
    Violation(Violation),
}

/// A place for a connection.
#[derive(Debug)]
pub(super) struct Slot {
    /// Owner core it is for; None: any.
    core: Option<CoreId>,
    wanted: bool,
    pub(super) conn: Option<ConnKey>,
    backoff: Backoff,
    not_before: Time,
}

impl Slot {
    pub(super) fn shared(wanted: bool) -> Slot {
        Slot { core: None, wanted, conn: None, backoff: Backoff::default(), not_before: Time(0) }
    }
}

/// A connection and what is on it.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) session: Session,
    slot: usize,
    pub(super) welcome: Option<Welcome>,
    /// Broker's clock less ours.
    pub(super) clock_offset_ns: i64,
    greeting_until: Time,
    draining: Option<Time>,
    end: Option<End>,
    /// A stream could not be opened for the peer's limit.
    pub(super) limited: bool,
    pub(super) requests: BTreeMap<u32, u64>,
    pub(super) channels: BTreeMap<u64, (PublisherId, usize)>,
    pub(super) subscriptions: BTreeMap<u32, (SubscriberId, usize)>,
}

impl Conn {
    pub(super) fn is_usable(&self) -> bool {
        self.session.is_ready() && self.draining.is_none()
    }
}

impl Engine {
    // ---- inputs -------------------------------------------------------------------------------------------------

    /// The QUIC handshake of a connection is complete.
    pub fn on_connected(&mut self, now: Now, conn: ConnKey) {
        self.now = now;
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.session.on_connected();
            conn.greeting_until = now.time.after_ns(GREETING_NS);
            self.changed = true;
        }
    }

    /// Bytes came on a QUIC stream.
    pub fn on_stream_bytes(&mut self, now: Now, conn: ConnKey, stream: u64, bytes: &[u8], fin: bool) {
        self.now = now;
        if let Some(it) = self.conns.get_mut(&conn) {
            it.session.on_stream_bytes(stream, bytes, fin);
            self.take_session_events(conn);
        }
    }

    /// A DATAGRAM came.
    pub fn on_datagram(&mut self, now: Now, conn: ConnKey, bytes: &[u8]) {
        self.now = now;
        if let Some(it) = self.conns.get_mut(&conn) {
            it.session.on_datagram(bytes);
            self.take_session_events(conn);
        }
    }

    /// A QUIC stream takes bytes again.
    pub fn on_stream_writable(&mut self, conn: ConnKey, stream: u64) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.session.on_stream_writable(stream);
            self.changed = true;
        }
    }

    /// The broker reset a QUIC stream or stopped reading it.
    pub fn on_stream_failed(&mut self, now: Now, conn: ConnKey, stream: u64) {
        self.now = now;
        if let Some(it) = self.conns.get_mut(&conn) {
            it.session.on_stream_failed(stream);
            self.take_session_events(conn);
        }
    }

    /// A connection is over, or was never made.
    pub fn on_closed(&mut self, now: Now, key: ConnKey, why: Lost) {
        self.now = now;
        self.changed = true;
        let Some(mut conn) = self.conns.remove(&key) else { return };
        conn.session.on_closed();
        let was_ready = conn.welcome.is_some();
        let was_draining = conn.draining.is_some();
        // What the session found is more to the point than the close that followed from it.
        let why = match conn.end.take() {
            Some(End::Refused(error)) => Lost::Refused(error.code, error.detail),
            Some(End::Violation(violation)) => Lost::Violation(violation),
            None => why,
        };
        let at_once = was_ready && (why == Lost::Reset || was_draining);
        if let Some(slot) = self.slots.get_mut(conn.slot)
            && slot.conn == Some(key)
        {
            slot.conn = None;
            let wait = if at_once { 0 } else { slot.backoff.failed(&mut self.jitter) };
            slot.not_before = now.time.after_ns(wait);
        }
        for (_, request) in std::mem::take(&mut conn.requests) {
            self.request_lost(request);
        }
        for (_, (publisher, shard)) in std::mem::take(&mut conn.channels) {
            self.channel_lost(publisher, shard);
        }
        for (_, (subscriber, lane)) in std::mem::take(&mut conn.subscriptions) {
            self.subscription_lost(subscriber, lane);
        }
        self.events.push_back(Event::Lost { was_ready, why });
    }

    fn take_session_events(&mut self, key: ConnKey) {
        self.changed = true;
        while let Some(event) = self.conns.get_mut(&key).and_then(|it| it.session.poll_event()) {
            self.on_session_event(key, event);
        }
    }

    fn on_session_event(&mut self, key: ConnKey, event: SessionEvent) {
        match event {
            SessionEvent::Ready(welcome) => self.on_ready(key, welcome),
            SessionEvent::Answered { request, result } => self.on_answered(key, request, result),
            SessionEvent::ChannelOpened { stream, opened } => self.on_channel_opened(key, stream, &opened),
            SessionEvent::Acked { stream, ack } => self.on_acked(key, stream, &ack),
            SessionEvent::Refused { stream, refused } => self.on_refused(key, stream, &refused),
            SessionEvent::ChannelFailed { stream, error } => self.on_channel_failed(key, stream, error),
            SessionEvent::Subscribed { subscription, subscribed } => self.on_subscribed(key, subscription, &subscribed),
            SessionEvent::SubscribeRefused { subscription, error } => {
                self.on_subscription_ended(key, subscription, error.code, error.retry_after_ms, &error.detail);
            }
            SessionEvent::SubscriptionClosed { subscription, closed } => {
                self.on_subscription_ended(key, subscription, closed.code, 0, &closed.detail);
            }
            SessionEvent::SubscriptionLost { subscription } => {
                self.on_subscription_ended(key, subscription, ErrorCode::Internal, 0, "its QUIC stream was reset");
            }
            SessionEvent::Delivered { subscription, delivered } => self.on_delivered(key, subscription, delivered),
            SessionEvent::RouteChanged { routing_version } => self.on_route_changed(routing_version),
            SessionEvent::Goaway(goaway) => self.on_goaway(key, goaway.drain_ms),
            SessionEvent::Over(end) => {
                if let Some(conn) = self.conns.get_mut(&key) {
                    conn.end = Some(end);
                }
            }
        }
    }

    /// Closes a connection whose content broke the protocol above the level of frames.
    pub(super) fn fail_session(&mut self, key: ConnKey, violation: Violation) {
        if let Some(conn) = self.conns.get_mut(&key) {
            conn.session.fail(violation);
            self.changed = true;
        }
    }

    fn on_ready(&mut self, key: ConnKey, welcome: Welcome) {
        let wall = self.now.wall.0 as i64;
        let Some(conn) = self.conns.get_mut(&key) else { return };
        conn.clock_offset_ns = (welcome.time.0 as i64).wrapping_sub(wall);
        conn.welcome = Some(welcome.clone());
        let index = conn.slot;
        if let Some(slot) = self.slots.get_mut(index) {
            slot.backoff.succeeded();
        }
        // From now on only this cluster will do: a client must not move its producers to another one unnoticed.
        self.config.identity.cluster.get_or_insert(welcome.cluster);
        self.on_route_changed(welcome.routing_version);
        // Subscriptions of a draining predecessor move as soon as there is somewhere to go.
        let draining: Vec<ConnKey> =
            self.conns.iter().filter(|(_, it)| it.slot == index && it.draining.is_some()).map(|it| *it.0).collect();
        for old in draining {
            self.move_subscriptions(old);
        }
        self.events.push_back(Event::Ready(welcome));
    }

    fn on_goaway(&mut self, key: ConnKey, drain_ms: u32) {
        let until = self.now.time.after_ns(u64::from(drain_ms) * 1_000_000);
        let Some(conn) = self.conns.get_mut(&key) else { return };
        if conn.draining.is_some() {
            return;
        }
        conn.draining = Some(until);
        let index = conn.slot;
        let channels: Vec<_> = conn.channels.values().copied().collect();
        if let Some(slot) = self.slots.get_mut(index)
            && slot.conn == Some(key)
        {
            slot.conn = None;
            slot.not_before = self.now.time;
        }
        for (publisher, shard) in channels {
            self.channel_moves(publisher, shard);
        }
        self.arm(until);
    }

    // ---- turns --------------------------------------------------------------------------------------------------

    pub(super) fn turn_connections(&mut self) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if !slot.wanted || slot.conn.is_some() {
                continue;
            }
            if slot.not_before > self.now.time {
                let at = slot.not_before;
                self.arm(at);
                continue;
            }
            self.connect(index);
        }
        let now = self.now.time;
        let mut next = Time(u64::MAX);
        for conn in self.conns.values_mut() {
            if conn.welcome.is_none() {
                if conn.greeting_until <= now {
                    conn.session.fail(Violation::ControlStreamEnded);
                } else {
                    next = Time(next.0.min(conn.greeting_until.0));
                }
            }
            if conn.limited {
                conn.limited = false;
                conn.session.retry_blocked();
            }
        }
        self.arm(next);
    }

    fn connect(&mut self, index: usize) {
        let key = ConnKey(self.next_conn);
        self.next_conn += 1;
        let steer = match (self.slots[index].core, self.core_count()) {
            (Some(core), Some(core_count)) if core.0 < core_count => Some(SteerTo { core, core_count }),
            _ => None,
        };
        let attempt = self.slots[index].backoff.failures();
        self.slots[index].conn = Some(key);
        self.conns.insert(
            key,
            Conn {
                session: Session::new(self.config.identity.clone()),
                slot: index,
                welcome: None,
                clock_offset_ns: 0,
                // The QUIC handshake has a timeout of its own; this one begins when it is complete.
                greeting_until: self.now.time.after_ns(2 * GREETING_NS),
                draining: None,
                end: None,
                limited: false,
                requests: BTreeMap::new(),
                channels: BTreeMap::new(),
                subscriptions: BTreeMap::new(),
            },
        );
        self.effects.push_back(Effect::Connect { conn: key, steer, attempt });
    }

    /// Closes draining connections that nothing needs any more.
    pub(super) fn turn_draining(&mut self) {
        let now = self.now.time;
        let mut next = Time(u64::MAX);
        for conn in self.conns.values_mut() {
            let Some(until) = conn.draining else { continue };
            let idle = conn.requests.is_empty()
                && conn.channels.is_empty()
                && conn.subscriptions.is_empty()
                && conn.session.is_quiet();
            if idle || until <= now {
                conn.session.shut(ErrorCode::NoError);
            } else {
                next = Time(next.0.min(until.0));
            }
        }
        self.arm(next);
    }

    // ---- choices ------------------------------------------------------------------------------------------------

    fn core_count(&self) -> Option<u8> {
        self.conns.values().find_map(|it| it.welcome.as_ref()).map(|it| it.core_count)
    }

    /// The connection for requests, if it is ready.
    pub(super) fn primary(&self) -> Option<ConnKey> {
        let usable = |key: &ConnKey| self.conns.get(key).is_some_and(Conn::is_usable);
        self.slots[0].conn.filter(usable)
    }

    /// The connection for subscriptions of this lane, if it is ready.
    pub(super) fn for_subscription(&mut self, lane: usize) -> Option<ConnKey> {
        let index = lane % self.config.connections.max(1);
        self.changed |= !std::mem::replace(&mut self.slots[index].wanted, true);
        let key = self.slots[index].conn?;
        self.conns.get(&key)?.is_usable().then_some(key)
    }

    /// The connection to publish to a shard that this core owns. None: one is being made.
    pub(super) fn for_core(&mut self, core: CoreId) -> Option<ConnKey> {
        let usable: Vec<(ConnKey, CoreId, u8)> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.is_usable())
            .filter_map(|(key, conn)| conn.welcome.as_ref().map(|it| (*key, it.core, it.core_count)))
            .collect();
        if let Some(found) = usable.iter().find(|it| it.1 == core) {
            return Some(found.0);
        }
        let core_count = self.core_count()?;
        let first = self.config.connections.max(1);
        let any = || usable.get(usize::from(core.0) % usable.len().max(1)).map(|it| it.0);
        if core_count == 1 || core.0 >= core_count {
            return any();
        }
        match self.slots[first..].iter().find(|it| it.core == Some(core)) {
            Some(slot) => match slot.conn.and_then(|key| self.conns.get(&key).map(|it| (key, it.is_usable()))) {
                // It landed elsewhere, because something on the way does not steer: the mesh forwards.
                Some((key, true)) => Some(key),
                // While the first try runs, wait for it; after a failure anything is better.
                _ if slot.backoff.failures() == 0 => None,
                _ => any(),
            },
            None if self.slots.len() - first < PUBLISH_CONNECTIONS_MAX => {
                self.slots.push(Slot { core: Some(core), ..Slot::shared(true) });
                self.changed = true;
                None
            }
            None => any(),
        }
    }
}
