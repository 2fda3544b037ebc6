//! **What**: the whole state of a client, sans-IO: connections, requests, publishers, subscribers. The simulator drives
//! it with real encoded frames and a clock of its own; `poll_client.rs` with sockets.
//!
//! ```text
//!   in    on_connected, on_stream_bytes, on_datagram, on_closed ...    per connection
//!         request, add_publisher, pump, add_subscriber, on_consumed    the application
//!         turn(now)                                                    once after all of them
//!   out   poll_effect   connections to make                poll_event   answers, items, ends
//!         session_output(conn)   bytes to send             next_deadline
//! ```
//!
//! **Invariants**: a connection key is used once. Whatever happens to connections, a request, record or subscription
//! ends only with an outcome: an answer, a typed error, or its deadline. Time only comes as an argument.
//!
//! **Never**: a clock, a socket, a thread, a lock but those in ack cells.
//!
//! **See**: `engine/connections.rs`, `requests.rs`, `publishing.rs`, `subscribing.rs`: a part each.

mod connections;
mod publishing;
mod requests;
mod subscribing;
#[cfg(test)]
mod tests;

use crate::error::{RequestError, SubscribeError};
use crate::item::Item;
use crate::random::Jitter;
use crate::session::{Answer, Identity, Output};
use connections::{Conn, STREAM_LIMIT_NS, Slot};
pub use connections::{Lost, SteerTo};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{Route, Welcome};
use felix_protocol::names::StreamName;
use felix_protocol::position::Position;
use felix_protocol::time::{Now, Time};
use publishing::PublisherState;
pub use requests::Ask;
use requests::{Request, RouteState};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use subscribing::SubscriberState;

/// A connection of this client, used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnKey(pub u32);

/// A publisher of this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublisherId(pub u32);

/// A subscriber of this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriberId(pub u32);

/// Settings of the engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Who says Hello.
    pub identity: Identity,
    /// Connections that subscriptions are spread over, at least 1.
    pub connections: usize,
    /// Bytes of deliveries a subscriber holds unread.
    pub receive_buffer_bytes: usize,
    /// Time a request may take, nanoseconds.
    pub request_timeout_ns: u64,
    /// Seed of the jitter, and of idempotency keys: draw it at random outside tests.
    pub seed: u64,
}

/// What the owner must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make a connection.
    Connect {
        /// Its key.
        conn: ConnKey,
        /// Core to land on; None: any.
        steer: Option<SteerTo>,
        /// Failures in a row, to try another address.
        attempt: u32,
    },
}

/// What the application must be told.
#[derive(Debug)]
pub enum Event {
    /// A connection is ready for the first time or again.
    Ready(Welcome),
    /// A connection ended or could not be made; the engine makes another one if it needs it.
    Lost {
        /// It had been ready.
        was_ready: bool,
        /// Why.
        why: Lost,
    },
    /// A request has its result.
    Replied {
        /// As given to `request`.
        token: u64,
        /// The answer.
        result: Result<Answer, RequestError>,
    },
    /// A new route for a publisher's stream.
    Rerouted {
        /// Which.
        publisher: PublisherId,
        /// The route.
        route: Arc<Route>,
    },
    /// An item for a subscriber. Tell with `on_consumed` when it is consumed.
    Item {
        /// Which.
        subscriber: SubscriberId,
        /// Index of its shard among those it reads.
        lane: u32,
        /// Bytes it costs of the window.
        cost: u64,
        /// The item.
        item: Item,
    },
    /// Every shard of a subscriber is live for the first time.
    Live {
        /// Which.
        subscriber: SubscriberId,
        /// Where each of its shards ended then.
        committed: Vec<Position>,
    },
    /// A subscriber ended.
    Ended {
        /// Which.
        subscriber: SubscriberId,
        /// Why.
        error: SubscribeError,
    },
}

/// The state of a client.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    jitter: Jitter,
    now: Now,
    slots: Vec<Slot>,
    conns: BTreeMap<ConnKey, Conn>,
    next_conn: u32,
    requests: BTreeMap<u64, Request>,
    next_request: u64,
    routes: HashMap<StreamName, RouteState>,
    publishers: BTreeMap<PublisherId, PublisherState>,
    next_publisher: u32,
    subscribers: BTreeMap<SubscriberId, SubscriberState>,
    next_subscriber: u32,
    effects: VecDeque<Effect>,
    events: VecDeque<Event>,
    /// Nothing is due before this time.
    timer: Time,
    /// Something changed that `turn` must look at.
    changed: bool,
    down: bool,
}

impl Engine {
    /// A client that will connect at the first `turn`.
    pub fn new(config: EngineConfig) -> Engine {
        let connections = config.connections.max(1);
        Engine {
            jitter: Jitter::new(config.seed),
            now: Now::default(),
            slots: (0..connections).map(|index| Slot::shared(index == 0)).collect(),
            conns: BTreeMap::new(),
            next_conn: 1,
            requests: BTreeMap::new(),
            next_request: 1,
            routes: HashMap::new(),
            publishers: BTreeMap::new(),
            next_publisher: 1,
            subscribers: BTreeMap::new(),
            next_subscriber: 1,
            effects: VecDeque::new(),
            events: VecDeque::new(),
            timer: Time(0),
            changed: true,
            down: false,
            config,
        }
    }

    /// Does what is due and what the inputs before it made possible. Call after inputs, and at `next_deadline`.
    pub fn turn(&mut self, now: Now) {
        self.now = now;
        if !self.changed && now.time < self.timer || self.down {
            return;
        }
        self.changed = false;
        self.timer = Time(u64::MAX);
        self.turn_connections();
        self.turn_requests();
        self.turn_publishers();
        self.turn_subscribers();
        self.turn_draining();
    }

    /// When `turn` should be called at the latest. None: only an input can change anything.
    pub fn next_deadline(&self) -> Option<Time> {
        if self.changed { Some(self.now.time) } else { (self.timer.0 != u64::MAX).then_some(self.timer) }
    }

    fn arm(&mut self, at: Time) {
        if at < self.timer {
            self.timer = at;
        }
    }

    /// The next connection to make.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The next thing to tell the application.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next bytes to send on a connection, or what else to do with it. After a `Send`, call `on_sent`.
    pub fn session_output(&mut self, conn: ConnKey) -> Option<Output<'_>> {
        self.conns.get_mut(&conn)?.session.poll_output()
    }

    /// QUIC took `count` bytes of the last `Send`; fewer than offered: call `on_stream_writable` when it takes more.
    pub fn on_sent(&mut self, conn: ConnKey, stream: u64, count: usize) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.session.on_sent(stream, count);
        }
    }

    /// QUIC does not know that stream any more: what waits for it is dropped.
    pub fn on_stream_gone(&mut self, conn: ConnKey, stream: u64) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.session.forget_stream(stream);
        }
    }

    /// QUIC may not open that stream yet.
    pub fn on_stream_limit(&mut self, conn: ConnKey, stream: u64) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.session.on_stream_limit(stream);
            conn.limited = true;
            // Nothing tells when it is lifted.
            self.arm(self.now.time.after_ns(STREAM_LIMIT_NS));
        }
    }

    /// Before `shut_down`: lets what was published without acknowledgements go out. Drive until `is_finished`.
    pub fn finish(&mut self) {
        for publisher in self.publishers.values_mut() {
            publisher.finish();
        }
        self.changed = true;
    }

    /// Whether nothing that nobody acknowledges is still on its way to a broker that is there.
    pub fn is_finished(&self) -> bool {
        let connected = self.conns.values().any(|it| it.session.is_ready());
        !connected
            || self.publishers.values().all(|it| it.wants_acks())
                && self.conns.values().all(|it| !it.session.is_ready() || it.session.is_quiet())
    }

    /// Ends everything: each request, record and subscription gets its outcome, each connection its close.
    pub fn shut_down(&mut self) {
        self.down = true;
        self.shut_requests();
        self.shut_publishers();
        for id in self.subscribers.keys().copied().collect::<Vec<_>>() {
            self.events.push_back(Event::Ended { subscriber: id, error: SubscribeError::Closed });
        }
        self.subscribers.clear();
        for conn in self.conns.values_mut() {
            conn.session.shut(ErrorCode::NoError);
        }
    }
}
