//! The server endpoint of one core: datagrams to connections, by id.
//!
//! **What.** The id map, the timers, and the two lists that make a turn cheap: `touched` (connections
//! whose events are not taken yet) and `dirty` (connections that may have something to send).
//!
//! ```text
//!   turn of the core's loop:   on_datagram*  on_timeout  poll_event* (and calls)  poll_transmit*
//! ```
//!
//! **Invariants.** Nothing is sent before `poll_transmit`, so an acknowledgement rides with what the
//! application writes in the same turn. Per datagram: at most one map lookup, none in a run for one
//! connection. Every live id of the map leads to a live slot. A timer fires early rather than late:
//! it is moved when a deadline comes closer, and asks again when it fires.
//!
//! **Never.** A walk over all connections (but `close_all`).
//!
//! **See** `accept.rs` for ids nobody knows, `calls.rs` for what the application calls, `connection.rs`
//! for one connection.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::admission::{Source, Sources};
use crate::conn_id::{self, Cid, ConnId, CoreSlot, Head, Route};
use crate::connection::{Attention, ConnStats, Connection, Habits, Phase};
use crate::counters::Counters;
use crate::error::ConfigError;
use crate::event::{CONNECTION_REFUSED, CloseReason, Event, Transmit};
use crate::heap::TimerHeap;
use crate::secrets::{EndpointSecrets, Entropy};
use crate::settings::EndpointConfig;
use crate::slots::Slots;
use crate::stateless::{Answers, Path};
use crate::tls::ServerTls;
use crate::token::RetryTokens;
use crate::train::{self, Carried};

/// How long packets of an id that is no longer in use are still recognised: late ones must neither
/// open a connection nor draw a stateless reset, which would close a healthy one.
const RETIRED_ID_KEPT: Duration = Duration::from_secs(10);
/// Such ids kept at most; a peer that retires faster loses the oldest early.
const RETIRED_IDS_MAX: usize = 16_384;

/// A connection and what the endpoint keeps beside it.
pub(crate) struct Served {
    pub(crate) connection: Connection,
    /// The id that the client made up for its first packets, while it is in the map.
    pub(crate) first_id: Option<Cid>,
    /// Set once the connection counts for its source.
    pub(crate) source: Option<Source>,
    /// Whether its owner was told of it.
    pub(crate) opened: bool,
    pub(crate) dirty: bool,
    pub(crate) touched: bool,
}

/// What a connection id leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Live(ConnId),
    Retired,
}

/// The QUIC server of one core.
pub struct Endpoint {
    pub(crate) config: EndpointConfig,
    pub(crate) core: CoreSlot,
    pub(crate) secrets: EndpointSecrets,
    pub(crate) entropy: Entropy,
    pub(crate) tokens: RetryTokens,
    pub(crate) quic: quiche::Config,
    pub(crate) served: Slots<Served>,
    pub(crate) ids: HashMap<Cid, Target>,
    pub(crate) answers: Answers,
    pub(crate) sources: Sources,
    pub(crate) counters: Counters,
    pub(crate) draining: bool,
    last_hit: Option<(Cid, ConnId)>,
    retired: VecDeque<(Instant, Cid, Target)>,
    timers: TimerHeap,
    dirty: VecDeque<ConnId>,
    touched: VecDeque<ConnId>,
    events: VecDeque<Event>,
    carried: Carried,
    now: Instant,
}

impl Endpoint {
    /// An endpoint for one core. `secrets` is shared by all cores of the node and persisted.
    pub fn new(
        config: EndpointConfig,
        tls: &ServerTls,
        core: CoreSlot,
        secrets: EndpointSecrets,
        now: Instant,
    ) -> Result<Endpoint, ConfigError> {
        config.validate()?;
        let core = core.validate()?;
        let entropy = Entropy::new();
        let tokens = RetryTokens::new(&entropy, now, config.retry_token_lifetime).map_err(|_| ConfigError::Entropy)?;
        Ok(Endpoint {
            core,
            secrets,
            entropy,
            tokens,
            quic: config.transport.to_quiche(tls.to_boring()?)?,
            served: Slots::new(),
            ids: HashMap::new(),
            answers: Answers::new(config.answers_max, config.resets_per_second, now),
            sources: Sources::new(config.connections_per_source_max),
            counters: Counters::default(),
            draining: false,
            last_hit: None,
            retired: VecDeque::new(),
            timers: TimerHeap::default(),
            dirty: VecDeque::new(),
            touched: VecDeque::new(),
            events: VecDeque::new(),
            carried: Carried::default(),
            now,
            config,
        })
    }

    /// Which core a datagram belongs to: the same rule as the packet filter on the sockets.
    pub fn route(&self, datagram: &[u8]) -> Route {
        conn_id::route(self.core, datagram)
    }

    /// Takes one UDP datagram (it is decrypted in place). Never fails: a counter says why it was dropped.
    pub fn on_datagram(&mut self, now: Instant, datagram: &mut [u8], from: SocketAddr, to: SocketAddr) {
        self.now = now;
        self.counters.datagrams_in += 1;
        self.counters.bytes_in += datagram.len() as u64;
        let path = Path { peer: from, local: to };
        let id = match Head::parse(datagram) {
            Some(Head::Short { dcid } | Head::Long { dcid, .. }) => Cid::new(dcid),
            None => {
                self.counters.dropped_junk += 1;
                return;
            }
        };
        // An id longer than version 1 allows is nobody's, but may ask for version negotiation.
        match id.and_then(|id| self.look_up(id)) {
            Some(Target::Live(conn)) => self.deliver(now, conn, datagram, path),
            Some(Target::Retired) => self.counters.dropped_retired_id += 1,
            None => self.on_unknown(now, datagram, path),
        }
    }

    fn look_up(&mut self, id: Cid) -> Option<Target> {
        if let Some((last, conn)) = self.last_hit
            && last == id
        {
            return Some(Target::Live(conn));
        }
        let target = self.ids.get(&id).copied();
        if let Some(Target::Live(conn)) = target {
            self.last_hit = Some((id, conn));
        }
        target
    }

    pub(crate) fn deliver(&mut self, now: Instant, conn: ConnId, datagram: &mut [u8], path: Path) {
        let Some(served) = self.served.get_mut(conn) else { return };
        let attention = served.connection.heard(now, datagram, path);
        self.touch(conn);
        self.attend(conn, attention);
    }

    pub(crate) fn attend(&mut self, conn: ConnId, attention: Attention) {
        match attention {
            Attention::Send => self.soil(conn),
            Attention::Later => self.rearm(conn),
        }
    }

    /// Puts a connection on the dirty list.
    pub(crate) fn soil(&mut self, conn: ConnId) {
        if let Some(served) = self.served.get_mut(conn)
            && !served.dirty
        {
            served.dirty = true;
            self.dirty.push_back(conn);
        }
    }

    /// Puts a connection on the list of those whose events are not taken.
    pub(crate) fn touch(&mut self, conn: ConnId) {
        if let Some(served) = self.served.get_mut(conn)
            && !served.touched
        {
            served.touched = true;
            self.touched.push_back(conn);
        }
    }

    fn rearm(&mut self, conn: ConnId) {
        let Some(served) = self.served.get_mut(conn) else { return };
        match (served.connection.deadline(), self.timers.deadline(conn.slot)) {
            (None, _) => self.timers.clear(conn.slot),
            (Some(deadline), Some(armed)) if armed <= deadline => {}
            (Some(deadline), _) => self.timers.set(conn.slot, deadline),
        }
    }

    /// The next thing that happened. Call until `None` in every turn, before `poll_transmit`.
    pub fn poll_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let conn = self.touched.pop_front()?;
            self.collect(conn);
        }
    }

    fn collect(&mut self, conn: ConnId) {
        let Some(served) = self.served.get_mut(conn) else { return };
        served.touched = false;
        if served.connection.opens() {
            self.on_open(conn);
        }
        let Some(served) = self.served.get_mut(conn) else { return };
        if served.connection.phase() == Phase::Open {
            self.counters.migrations += served.connection.take_path_events().peer_moved;
            served.connection.collect(conn, &mut self.events);
            self.renew_ids(conn);
        }
        self.on_end(conn);
    }

    fn on_open(&mut self, conn: ConnId) {
        self.counters.handshakes_in_flight -= 1;
        let Some(served) = self.served.get_mut(conn) else { return };
        let source = Source::of(served.connection.peer().ip());
        if served.source.is_none() {
            if !self.sources.add(source) {
                // Nobody was told of it, so nobody is told of its end.
                self.counters.refused_source_max += 1;
                served.connection.close_transport(CONNECTION_REFUSED);
                let _ = served.connection.ends();
                return;
            }
            served.source = Some(source);
        }
        served.opened = true;
        self.counters.connected_total += 1;
        self.events.push_back(served.connection.connected(conn));
        if let Some(first) = served.first_id.take() {
            self.keep_retired(first, Target::Live(conn));
        }
    }

    /// Takes back the ids that the peer retired and issues new ones.
    fn renew_ids(&mut self, conn: ConnId) {
        let Some(served) = self.served.get_mut(conn) else { return };
        let quic = &mut served.connection.quic;
        let mut given_back = Vec::new();
        while let Some(retired) = quic.retired_scid_next() {
            given_back.extend(Cid::new(&retired));
        }
        let mut issued = false;
        // Not on a connection that ends: quiche would keep them for nothing.
        while served.connection.end().is_none() && served.connection.quic.scids_left() > 0 {
            let Ok(id) = Cid::generate(self.core, &self.entropy) else { break };
            let token = u128::from_be_bytes(self.secrets.reset_token(id.as_slice()));
            if served.connection.quic.new_scid(&id.to_quiche(), token, false).is_err() {
                break;
            }
            self.ids.insert(id, Target::Live(conn));
            self.counters.ids_issued += 1;
            issued = true;
        }
        for id in given_back {
            self.counters.ids_retired += 1;
            self.last_hit = None;
            self.ids.insert(id, Target::Retired);
            self.keep_retired(id, Target::Retired);
        }
        if issued {
            self.soil(conn);
        }
    }

    /// Remembers an id for a while, then removes it from the map if it still leads to `target`.
    fn keep_retired(&mut self, id: Cid, target: Target) {
        self.retired.push_back((self.now + RETIRED_ID_KEPT, id, target));
        self.forget_retired();
    }

    fn forget_retired(&mut self) {
        while let Some(&(until, id, target)) = self.retired.front() {
            if until > self.now && self.retired.len() <= RETIRED_IDS_MAX {
                break;
            }
            self.retired.pop_front();
            self.unmap(id, target);
        }
    }

    fn unmap(&mut self, id: Cid, target: Target) {
        if self.ids.get(&id) == Some(&target) {
            self.ids.remove(&id);
            if self.last_hit.is_some_and(|(last, _)| last == id) {
                self.last_hit = None;
            }
        }
    }

    fn on_end(&mut self, conn: ConnId) {
        let Some(served) = self.served.get_mut(conn) else { return };
        let was_open = served.connection.phase() == Phase::Open;
        if let Some(reason) = served.connection.ends() {
            match reason {
                CloseReason::LocalTransport { .. } if was_open => self.counters.protocol_errors += 1,
                CloseReason::IdleTimeout if was_open => self.counters.idle_timeouts += 1,
                CloseReason::HandshakeTimeout | CloseReason::IdleTimeout => self.counters.handshakes_timed_out += 1,
                _ if !was_open => self.counters.handshakes_failed += 1,
                _ => {}
            }
            if was_open {
                self.counters.closed_total += 1;
                self.events.push_back(Event::Closed { conn, reason });
            } else {
                self.counters.handshakes_in_flight -= 1;
            }
        }
        if self.served.get(conn).is_some_and(|served| served.connection.is_gone()) {
            self.remove(conn);
        } else {
            self.rearm(conn);
        }
    }

    fn remove(&mut self, conn: ConnId) {
        let Some(served) = self.served.remove(conn) else { return };
        self.timers.clear(conn.slot);
        self.carried.forget(conn);
        self.last_hit = None;
        let own = served.connection.quic.source_ids().filter_map(|id| Cid::new(id));
        for id in own.chain(served.first_id) {
            if self.ids.get(&id) == Some(&Target::Live(conn)) {
                self.ids.remove(&id);
            }
        }
        if let Some(source) = served.source {
            self.sources.remove(source);
        }
        self.counters.connections = self.served.len() as u64;
    }

    /// Removes a new connection that its first datagram already killed.
    pub(crate) fn drop_stillborn(&mut self, conn: ConnId) {
        if self.served.get(conn).is_some_and(|served| served.connection.is_gone()) {
            self.on_end(conn);
        }
    }

    /// The next bytes to send. `out` must hold `max_udp_payload_bytes`; 65,507 lets every train fit.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut [u8]) -> Option<Transmit> {
        self.now = now;
        if let Some(answer) = self.answers.pop_into(out) {
            self.counters.packets_out += 1;
            self.counters.bytes_out += answer.bytes as u64;
            return Some(answer);
        }
        while let Some(conn) = self.dirty.pop_front() {
            let Some(served) = self.served.get_mut(conn) else { continue };
            let packet_bytes_max = self.config.transport.max_udp_payload_bytes;
            let train = train::build(conn, &mut served.connection, &mut self.carried, out, packet_bytes_max);
            self.counters.send_failed += u64::from(train.failed);
            if self.carried.is_of(conn) {
                self.dirty.push_front(conn);
            } else if !train.drained {
                self.dirty.push_back(conn);
            } else {
                self.on_flushed(conn);
            }
            if let Some(transmit) = train.transmit {
                self.counters.packets_out += train.packets as u64;
                self.counters.bytes_out += transmit.bytes as u64;
                self.counters.trains_out += u64::from(train.packets > 1);
                return Some(transmit);
            }
        }
        None
    }

    fn on_flushed(&mut self, conn: ConnId) {
        let Some(served) = self.served.get_mut(conn) else { return };
        served.dirty = false;
        served.connection.flushed();
        let ended = served.connection.end().is_some();
        let told = served.connection.phase() == Phase::Over;
        let never_opened = !served.opened;
        if ended && !told {
            self.touch(conn);
        }
        if ended && told && never_opened {
            // Its close is out; a handshake that failed gets no draining period.
            self.remove(conn);
        } else {
            self.rearm(conn);
        }
    }

    /// When `on_timeout` should be called, if no datagram comes before.
    pub fn next_timeout(&mut self) -> Option<Instant> {
        self.timers.first().map(|(deadline, _)| deadline)
    }

    /// Handles every deadline up to `now`.
    pub fn on_timeout(&mut self, now: Instant) {
        self.now = now;
        self.forget_retired();
        while let Some((deadline, slot)) = self.timers.first() {
            if deadline > now {
                break;
            }
            self.timers.clear(slot);
            let Some((conn, served)) = self.served.at_mut(slot) else { continue };
            match served.connection.on_timeout(now) {
                Attention::Send => {
                    self.soil(conn);
                    self.touch(conn);
                }
                Attention::Later => self.rearm(conn),
            }
        }
    }

    /// Refuses every new handshake from now on (CONNECTION_REFUSED), to drain.
    pub fn stop_accepting(&mut self) {
        self.draining = true;
    }

    /// Uses another identity and trust for new handshakes; connections are untouched.
    pub fn reload_tls(&mut self, tls: &ServerTls) -> Result<(), ConfigError> {
        self.quic = self.config.transport.to_quiche(tls.to_boring()?)?;
        Ok(())
    }

    /// Counts since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections that hold a slot, handshakes and closing ones included.
    pub fn connection_count(&self) -> usize {
        self.served.len()
    }

    /// Connection ids in the map, retired ones included.
    pub fn id_count(&self) -> usize {
        self.ids.len()
    }

    /// Figures of a connection.
    pub fn conn_stats(&self, conn: ConnId) -> Option<ConnStats> {
        self.served.get(conn).map(|served| served.connection.stats())
    }

    pub(crate) fn habits(&self) -> Habits {
        Habits {
            handshake_timeout: self.config.transport.handshake_timeout,
            keep_alive: None,
            ack_delay: self.config.transport.ack_delay,
        }
    }
}
