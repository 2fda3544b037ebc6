//! **What**: one core of the broker, sans I/O: sessions, the shards it leads, the fan-out to its subscribers, its copy
//! of the routing table. The real loop and the simulator both drive it.
//!
//! ```text
//! stream bytes --session--> frames --route--> own shards | mesh to the owner
//! mesh messages ------------------------------> own shards, fan-out, channels
//! shards' effects --> acks to channels, commits to cores
//! end_turn: effects and requests until none is left, then deliveries, acks, control replies, outboxes
//! ```
//!
//! **Invariants**: nothing here blocks or waits; what cannot be sent is kept within a bound and its source is not read.
//! Messages to one member leave in order (outbox before ring). Same events in the same order give the same effects.
//!
//! **Never**: a clock (`Now` is an argument), a lock, work per idle session or shard.
//!
//! **See**: `requests.rs`, `publish.rs`, `delivery.rs` for the three kinds of work; `core_loop.rs` for who calls this.

mod invariants;
mod keys;

use crate::admission::{Admission, CoreCounters};
use crate::egress::Egress;
use crate::links::{LinkError, Links};
use crate::message::{CoreReport, FromControl, MeshMessage, ShardReport, TailReport, ToControl};
use crate::route::{Owned, RouteTable};
use crate::session::{CONTROL_STREAM, Session, SessionState, Sessions};
use felix_control::authorise::{Principal, Roles, Target, Verb};
use felix_control::watch::Change;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{Frame, Goaway};
use felix_protocol::ids::{ClusterId, CoreId, NodeId, NodeSession};
use felix_protocol::metadata::ShardStatus;
use felix_protocol::time::{Now, Time};
use felix_shard::effect::{Effect, Effects};
use felix_shard::event::{ChannelKey, ConnKey, Event, SubKey};
use felix_shard::fan_out::{FanOut, Request};
use felix_shard::store::{Alarm, Store};
use felix_shard::table::Shards;
use felix_wal::disk::{DiskDone, DiskRequest};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// Who this broker is; in every Welcome.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// This start of the process.
    pub session: NodeSession,
    /// Region of the cluster.
    pub region: String,
}

/// What a core is made of.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// This core.
    pub me: CoreId,
    /// Cores of the broker. Member `core_count` of the mesh is the control thread.
    pub core_count: u8,
    /// Who this broker is.
    pub identity: Identity,
    /// Bounds of sessions.
    pub admission: Admission,
    /// Bounds of shards and tails.
    pub shard_limits: felix_shard::limits::Limits,
    /// Who may do what.
    pub roles: Arc<Roles>,
}

/// One core.
#[derive(Debug)]
pub struct Core {
    pub(crate) config: CoreConfig,
    pub(crate) sessions: Sessions,
    pub(crate) shards: Shards,
    pub(crate) fan_out: FanOut,
    pub(crate) routes: RouteTable,
    pub(crate) effects: Effects,
    /// What it counted.
    pub counters: CoreCounters,
    /// Messages that found a ring full, per member, in order.
    outboxes: Vec<VecDeque<MeshMessage>>,
    /// Messages that were decided by newer routes than ours, in order.
    deferred: VecDeque<(usize, MeshMessage)>,
    /// A commit to this core found its ring full; no other may overtake it.
    full: Vec<bool>,
    /// Batches forwarded to each core and not answered.
    pub(crate) forwarded: Vec<u32>,
    /// Channels not read to their end because of a bound.
    pub(crate) stalled: VecDeque<(ConnKey, u64)>,
    /// Those of a pass over the stalled ones that got their share, and those that may go on with it (`retry_stalled`).
    pub(crate) fed: VecDeque<(ConnKey, u64)>,
    pub(crate) cut: VecDeque<(ConnKey, u64)>,
    /// Batches that the channel being read may still hand on before others get their turn.
    pub(crate) share: u32,
    /// Channels with acks to send.
    pub(crate) ack_queue: Vec<(ConnKey, u64)>,
    /// Delivery streams with something to send.
    pub(crate) delivery_queue: VecDeque<(ConnKey, u64)>,
    /// Sessions with datagrams to send.
    pub(crate) datagram_queue: VecDeque<ConnKey>,
    /// Sessions with control frames to send.
    control_queue: Vec<ConnKey>,
    /// Sessions that must say Hello, oldest first.
    hello_queue: VecDeque<(Time, ConnKey)>,
    /// Ids for producers that were not given away.
    pub(crate) producer_ids: std::ops::Range<u64>,
    /// Requests for a producer id that wait for a block.
    pub(crate) producer_waiting: VecDeque<(ConnKey, u32)>,
    pub(crate) producers_requested: bool,
    next_report: Time,
    reported_sessions: usize,
    /// The control thread wants a report now, and what it is to carry.
    report_asked: bool,
    report_ticket: u64,
    draining: bool,
    stopped: bool,
    /// Batches lent to the transport.
    pub(crate) egress: Egress,
    /// What the disk is to do; the loop takes it after every turn.
    disk_requests: Vec<DiskRequest>,
    /// Scratch for one read and one write; lent to the work that needs it.
    pub(crate) read_scratch: Vec<u8>,
    pub(crate) write_scratch: Vec<u8>,
}

/// Bytes read from a stream in one go.
const READ_BYTES: usize = 64 << 10;
/// Producer ids left when the next block is asked for.
pub(crate) const PRODUCERS_LOW: u64 = 64;

impl Core {
    /// A core without sessions or shards.
    pub fn new(config: CoreConfig) -> Core {
        let members = usize::from(config.core_count) + 1;
        Core {
            sessions: Sessions::default(),
            shards: Shards::new(config.shard_limits),
            fan_out: FanOut::new(config.shard_limits),
            routes: RouteTable::default(),
            effects: Effects::default(),
            counters: CoreCounters::default(),
            outboxes: (0..members).map(|_| VecDeque::new()).collect(),
            deferred: VecDeque::new(),
            full: vec![false; members],
            forwarded: vec![0; members],
            stalled: VecDeque::new(),
            fed: VecDeque::new(),
            cut: VecDeque::new(),
            share: 0,
            ack_queue: Vec::new(),
            delivery_queue: VecDeque::new(),
            datagram_queue: VecDeque::new(),
            control_queue: Vec::new(),
            hello_queue: VecDeque::new(),
            producer_ids: 0..0,
            producer_waiting: VecDeque::new(),
            producers_requested: false,
            next_report: Time(0),
            reported_sessions: 0,
            report_asked: false,
            report_ticket: 0,
            draining: false,
            stopped: false,
            egress: Egress::new(config.admission.egress_bytes_max),
            disk_requests: Vec::new(),
            read_scratch: vec![0; READ_BYTES],
            write_scratch: Vec::new(),
            config,
        }
    }

    /// Gives the core storage; without it durable shards are kept in memory only.
    pub fn set_store(&mut self, store: Store) {
        self.shards.set_store(store);
    }

    /// Its storage.
    pub fn store(&self) -> Option<&Store> {
        self.shards.store()
    }

    /// A disk request has completed.
    pub fn on_disk(&mut self, now: Now, done: DiskDone) {
        self.shards.on_disk_done(now, done, &mut self.effects);
    }

    /// What the disk is to do now.
    pub fn take_disk_requests(&mut self) -> std::vec::Drain<'_, DiskRequest> {
        self.disk_requests.drain(..)
    }

    /// Something about storage that people must know.
    pub fn take_alarm(&mut self) -> Option<Alarm> {
        self.shards.take_alarm()
    }

    /// Writes and seals what is gathered; `is_disk_closed` tells when that is done.
    pub fn shut_down_disk(&mut self) {
        self.shards.shut_down_disk();
    }

    /// Nothing more has to be written.
    pub fn is_disk_closed(&self) -> bool {
        self.shards.store().is_none_or(Store::is_closed)
    }

    /// Connections now.
    pub fn session_count(&self) -> usize {
        self.sessions.count()
    }

    /// Subscriptions now.
    pub fn subscription_count(&self) -> usize {
        self.fan_out.count()
    }

    /// Shards led here.
    pub fn shard_count(&self) -> usize {
        self.shards.count()
    }

    /// What the fan-out counted.
    pub fn fan_out_counters(&self) -> felix_shard::fan_out::FanOutCounters {
        self.fan_out.counters
    }

    /// Messages waiting in outboxes.
    pub fn outbox_len(&self) -> usize {
        self.outboxes.iter().map(VecDeque::len).sum()
    }

    /// The control thread said stop: the loop may end once everything is sent.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// New connections are to be refused.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// A handshake is complete.
    pub fn on_connected(&mut self, now: Now, conn: ConnKey, principal: Option<Arc<Principal>>) {
        let deadline = now.time.after_ns(self.config.admission.hello_timeout_ns);
        if let Some(old) = self.sessions.insert(Session::new(conn, principal, deadline)) {
            self.end_session(*old);
        }
        self.hello_queue.push_back((deadline, conn));
    }

    /// A connection is over.
    pub fn on_closed(&mut self, conn: ConnKey) {
        if let Some(session) = self.sessions.remove(conn) {
            self.end_session(*session);
        }
    }

    fn end_session(&mut self, session: Session) {
        if session.requests > 0 {
            self.producer_waiting.retain(|(conn, _)| *conn != session.conn);
        }
        // In order of their numbers: the order of a hash map would not be the same in the next run.
        let mut subs: Vec<_> = session.subs.into_iter().collect();
        subs.sort_unstable_by_key(|(id, _)| *id);
        for (_, sub) in subs {
            self.fan_out.unsubscribe(sub.key);
        }
        for channel in session.channels.into_values() {
            if let Some(batch) = channel.waiting {
                self.shards.pool.put_back(batch);
            }
        }
    }

    /// Bytes wait on a stream.
    pub fn on_readable(&mut self, now: Now, conn: ConnKey, stream: u64, links: &mut impl Links) {
        match stream & 0b11 {
            0b00 if stream == CONTROL_STREAM => self.read_control(now, conn, links),
            0b00 => self.read_channel(now, conn, stream, u32::MAX, links),
            _ => {
                self.fail_session(conn, ErrorCode::UnexpectedFrame, "a client opens bidirectional streams only", links)
            }
        }
    }

    /// A stream takes bytes again.
    pub fn on_writable(&mut self, conn: ConnKey, stream: u64) {
        let Some(session) = self.sessions.get(conn) else { return };
        if stream == CONTROL_STREAM {
            self.queue_control(conn);
        } else if stream & 0b10 == 0 {
            self.queue_acks(conn, stream);
        } else if let Some(delivery) = session.delivery.get_mut(stream) {
            delivery.blocked = false;
            if !delivery.queued {
                delivery.queued = true;
                self.delivery_queue.push_back((conn, stream));
            }
        }
    }

    /// The peer ended a stream of ours or its own side of one.
    pub fn on_stream_ended(&mut self, conn: ConnKey, stream: u64, links: &mut impl Links) {
        if stream == CONTROL_STREAM {
            links.close(conn, ErrorCode::NoError.number(), "the control stream ended");
            self.on_closed(conn);
        } else if stream & 0b10 == 0 {
            self.abandon_channel(conn, stream, links);
        } else {
            self.drop_delivery_stream(conn, stream);
        }
    }

    /// A datagram from a client: version 1 has none in this direction.
    pub fn on_datagram(&mut self, conn: ConnKey, links: &mut impl Links) {
        self.fail_session(conn, ErrorCode::UnexpectedFrame, "clients send no datagrams", links);
    }

    /// A message of another member (`Datagram` is the loop's business and does not come here).
    pub fn on_mesh(&mut self, now: Now, from: usize, message: MeshMessage) {
        // What was decided by newer routes than ours waits for them, and what is behind it keeps its order. The control
        // thread's own messages never wait: they bring the routes.
        let is_ahead = match &message {
            MeshMessage::OpenChannel { routing_version, .. } | MeshMessage::Attach { routing_version, .. } => {
                *routing_version > self.routes.version()
            }
            _ => false,
        };
        let is_control = from == usize::from(self.config.core_count);
        if !is_control && (is_ahead || self.deferred.iter().any(|(other, _)| *other == from)) {
            self.deferred.push_back((from, message));
            return;
        }
        self.take_mesh(now, from, message);
    }

    fn retry_deferred(&mut self, now: Now) {
        for (from, message) in std::mem::take(&mut self.deferred) {
            self.on_mesh(now, from, message);
        }
    }

    fn take_mesh(&mut self, now: Now, from: usize, message: MeshMessage) {
        let core = CoreId(from as u8);
        let event = match message {
            MeshMessage::OpenChannel { shard, channel, producer, producer_epoch, .. } => {
                Event::ChannelOpened { shard, channel, producer, producer_epoch }
            }
            MeshMessage::Publish { shard, channel, batch } => Event::Published { shard, channel, batch },
            MeshMessage::Attach { shard, sub, start, .. } => Event::Attached { shard, core, sub, start },
            MeshMessage::Detach { shard } => Event::Detached { shard, core },
            MeshMessage::Fetch { shard, sub, from } => Event::Fetched { shard, core, sub, from },
            MeshMessage::ChannelOpened { channel, result } => return self.on_channel_opened(channel, result),
            MeshMessage::Ack { channel, ack } => {
                self.forwarded[from] = self.forwarded[from].saturating_sub(1);
                return self.on_ack(channel, &ack);
            }
            MeshMessage::Refuse { channel, base_sequence, record_count, code } => {
                self.forwarded[from] = self.forwarded[from].saturating_sub(1);
                return self.on_refuse(channel, base_sequence, record_count, code);
            }
            MeshMessage::Attached { sub, result } => return self.on_attach_answer(sub, result),
            MeshMessage::Commit { shard, batch } => return self.fan_out.on_commit(shard, batch),
            MeshMessage::Fetched { sub, batches, high_watermark } => {
                return self.fan_out.on_fetch(sub, batches, high_watermark);
            }
            MeshMessage::Gone { shard } => return self.on_shard_gone(shard),
            MeshMessage::FromControl(message) => return self.on_control(now, *message),
            MeshMessage::Datagram { .. } | MeshMessage::ToControl(_) => return,
        };
        self.shards.handle(now, event, &mut self.effects);
    }

    fn on_control(&mut self, now: Now, message: FromControl) {
        match message {
            FromControl::Table(table) => {
                let changes = self.routes.changes_to(&table);
                self.on_changes(now, table.routing_version, &changes);
            }
            FromControl::Changes { routing_version, changes } => self.on_changes(now, routing_version, &changes),
            FromControl::Keys { keyring, tenant } => self.on_keys(&keyring, tenant.as_deref()),
            FromControl::AdminReply { conn, request_id, result } => self.on_admin_reply(conn, request_id, result),
            FromControl::StatsReply { conn, request_id, stats } => {
                self.finish_request(conn, request_id, &Frame::Stats(stats));
            }
            FromControl::Producers { first, count } => self.on_producers(first, count),
            FromControl::NoProducers { code, detail } => self.on_no_producers(code, &detail),
            FromControl::Drain { drain_ms } => self.drain(drain_ms),
            FromControl::ReportNow { ticket } => {
                self.report_ticket = ticket;
                self.report_asked = true;
            }
            FromControl::Space { room, is_short } => self.shards.on_space(room, is_short),
            FromControl::ReloadTls(_) => {}
            FromControl::Stop => self.stopped = true,
        }
    }

    fn on_changes(&mut self, now: Now, routing_version: u64, changes: &[Change]) {
        let is_same = routing_version == self.routes.version();
        let Core { routes, shards, effects, config, .. } = self;
        routes.apply(routing_version, changes, config.me, |owned| {
            let event = match owned {
                Owned::Put(config) => Event::ShardPut(config),
                Owned::Removed(shard) => Event::ShardRemoved { shard },
            };
            shards.handle(now, event, effects);
        });
        // A setting, or that a shard has files now, is nothing that clients route by.
        if !is_same {
            self.tell_route_changed(routing_version);
        }
        self.retry_deferred(now);
    }

    fn drain(&mut self, drain_ms: u32) {
        self.draining = true;
        for conn in self.sessions.keys() {
            let Some(session) = self.sessions.get(conn) else { continue };
            if session.state == SessionState::Ready {
                session.state = SessionState::Draining;
                let goaway = Goaway {
                    code: ErrorCode::Draining,
                    drain_ms,
                    detail: "this broker shuts down; finish what is in flight and reconnect".to_string(),
                };
                Frame::Goaway(goaway).encode(0, session.control_out.buffer());
                self.queue_control(conn);
            }
        }
    }

    /// Everything that follows from the events of a turn. Returns whether it must run again at once.
    pub fn end_turn(&mut self, now: Now, links: &mut impl Links) -> bool {
        self.flush_outboxes(now, links);
        self.retry_stalled(now, links);
        self.close_late_hellos(now, links);
        if self.shards.next_tick().is_some_and(|due| due <= now.wall) {
            self.shards.handle(now, Event::Ticked, &mut self.effects);
        }
        self.settle(now, links);
        self.deliver(now, links);
        // Deliveries may ask for history or leave a tail; an answer of this very core schedules them again.
        self.settle(now, links);
        self.shards.plan_disk(now, &mut self.effects, &mut self.disk_requests);
        self.settle(now, links);
        let more = self.has_deliveries();
        let freed = self.flush_acks(links);
        self.flush_control(links);
        if now.time >= self.next_report || self.report_asked || self.has_made() {
            self.report(now, links);
        }
        more || freed
    }

    /// When `end_turn` wants to run again though nothing happens.
    pub fn next_deadline(&self, now: Now) -> Option<Time> {
        let hello = self.hello_queue.front().map(|(deadline, _)| *deadline);
        let report = self.is_report_due().then_some(self.next_report.max(now.time));
        // Ages are wall-clock times; a millisecond late is not late, and never early.
        let tick =
            self.shards.next_tick().map(|due| now.time.after_ns(due.0.saturating_sub(now.wall.0).max(1_000_000)));
        let blocked =
            (self.outbox_len() > 0 || self.shards.stalled_cores().next().is_some() || !self.stalled.is_empty())
                .then(|| now.time.after_ns(200_000));
        [hello, report, tick, blocked, self.shards.disk_deadline(now.time)].into_iter().flatten().min()
    }

    /// Told at once: until the metadata know of a shard's files, nobody notices that they are taken away.
    fn has_made(&self) -> bool {
        self.shards.store().is_some_and(Store::has_made)
    }

    fn is_report_due(&self) -> bool {
        self.report_asked
            || self.has_made()
            || self.shards.has_touched()
            || self.fan_out.has_touched()
            || self.sessions.count() != self.reported_sessions
    }

    fn settle(&mut self, now: Now, links: &mut impl Links) {
        loop {
            let mut effects = std::mem::take(&mut self.effects);
            for effect in effects.drain() {
                self.execute(effect, links);
            }
            // Keep the memory; what executing added goes behind it.
            if self.effects.is_empty() {
                self.effects = effects;
            }
            let Some(request) = self.fan_out.take_request() else {
                if self.effects.is_empty() {
                    return;
                }
                continue;
            };
            self.forward_request(now, request, links);
        }
    }

    fn forward_request(&mut self, now: Now, request: Request, links: &mut impl Links) {
        let me = self.config.me;
        let shard = match request {
            Request::Attach { shard, .. } | Request::Detach { shard } | Request::Fetch { shard, .. } => shard,
        };
        let owner = self.routes.owner(shard);
        if owner.is_none_or(|owner| owner == me) {
            let event = match request {
                Request::Attach { shard, sub, start } => Event::Attached { shard, core: me, sub, start },
                Request::Detach { shard } => Event::Detached { shard, core: me },
                Request::Fetch { shard, sub, from } => Event::Fetched { shard, core: me, sub, from },
            };
            self.shards.handle(now, event, &mut self.effects);
        } else if let Some(owner) = owner {
            let message = match request {
                Request::Attach { shard, sub, start } => {
                    MeshMessage::Attach { routing_version: self.routes.version(), shard, sub, start }
                }
                Request::Detach { shard } => MeshMessage::Detach { shard },
                Request::Fetch { shard, sub, from } => MeshMessage::Fetch { shard, sub, from },
            };
            self.send(usize::from(owner.0), message, links);
        }
    }

    fn execute(&mut self, effect: Effect, links: &mut impl Links) {
        let me = self.config.me;
        match effect {
            Effect::OpenChannel { channel, result } if channel.core == me => self.on_channel_opened(channel, result),
            Effect::OpenChannel { channel, result } => {
                self.send(usize::from(channel.core.0), MeshMessage::ChannelOpened { channel, result }, links);
            }
            Effect::Ack { channel, ack } if channel.core == me => self.on_ack(channel, &ack),
            Effect::Ack { channel, ack } => {
                self.send(usize::from(channel.core.0), MeshMessage::Ack { channel, ack }, links);
            }
            Effect::Refuse { channel, base_sequence, record_count, code } if channel.core == me => {
                self.on_refuse(channel, base_sequence, record_count, code);
            }
            Effect::Refuse { channel, base_sequence, record_count, code } => {
                let message = MeshMessage::Refuse { channel, base_sequence, record_count, code };
                self.send(usize::from(channel.core.0), message, links);
            }
            Effect::Commit { core, shard, batch } if core == me => self.fan_out.on_commit(shard, batch),
            Effect::Commit { core, shard, batch } => self.send_commit(core, shard, batch, links),
            Effect::Attach { core, sub, result, .. } if core == me => self.on_attach_answer(sub, result),
            Effect::Attach { core, sub, result, .. } => {
                self.send(usize::from(core.0), MeshMessage::Attached { sub, result }, links);
            }
            Effect::Fetch { core, sub, batches, high_watermark, .. } if core == me => {
                self.fan_out.on_fetch(sub, batches, high_watermark);
            }
            Effect::Fetch { core, sub, batches, high_watermark, .. } => {
                self.send(usize::from(core.0), MeshMessage::Fetched { sub, batches, high_watermark }, links);
            }
            Effect::Gone { core, shard } if core == me => self.on_shard_gone(shard),
            Effect::Gone { core, shard } => self.send(usize::from(core.0), MeshMessage::Gone { shard }, links),
        }
    }

    fn send_commit(
        &mut self,
        core: CoreId,
        shard: felix_protocol::ids::ShardId,
        batch: felix_shard::batch_pool::SharedBatch,
        links: &mut impl Links,
    ) {
        let to = usize::from(core.0);
        let from = batch.range().from;
        if !self.full[to]
            && self.outboxes[to].is_empty()
            && links.mesh_send(to, MeshMessage::Commit { shard, batch }).is_ok()
        {
            return;
        }
        // Also when only the outbox stands in the way: `flush_outboxes` resumes those that are marked.
        self.full[to] = true;
        self.counters.commits_stalled += 1;
        self.shards.commit_refused(core, shard, from);
    }

    /// Sends to a member, or keeps the message in order. Bounded by what may be asked of this core: one answer per
    /// forwarded batch (`forwarded_max`), per subscription and per channel.
    pub(crate) fn send(&mut self, to: usize, message: MeshMessage, links: &mut impl Links) {
        if self.outboxes[to].is_empty() {
            if let Err(message) = links.mesh_send(to, message) {
                self.outboxes[to].push_back(message);
            }
        } else {
            self.outboxes[to].push_back(message);
        }
    }

    pub(crate) fn send_control(&mut self, message: ToControl, links: &mut impl Links) {
        self.send(usize::from(self.config.core_count), MeshMessage::ToControl(Box::new(message)), links);
    }

    pub(crate) fn outbox_waits(&self, to: usize) -> bool {
        !self.outboxes[to].is_empty()
    }

    fn flush_outboxes(&mut self, now: Now, links: &mut impl Links) {
        for to in 0..self.outboxes.len() {
            while let Some(message) = self.outboxes[to].pop_front() {
                if let Err(message) = links.mesh_send(to, message) {
                    self.outboxes[to].push_front(message);
                    break;
                }
            }
        }
        if !self.full.contains(&true) {
            return;
        }
        for to in 0..self.full.len() {
            if !self.full[to] || !self.outboxes[to].is_empty() {
                continue;
            }
            self.full[to] = false;
            // Until the ring is full again or nothing is left; each round is bounded.
            while !self.full[to] && self.shards.is_stalled(CoreId(to as u8)) {
                self.shards.handle(now, Event::MeshHasRoom { core: CoreId(to as u8) }, &mut self.effects);
                self.settle(now, links);
            }
        }
    }

    fn close_late_hellos(&mut self, now: Now, links: &mut impl Links) {
        while let Some(&(deadline, conn)) = self.hello_queue.front() {
            let waits = self
                .sessions
                .get(conn)
                .is_some_and(|it| matches!(it.state, SessionState::AwaitHello { deadline: own } if own == deadline));
            if waits && deadline > now.time {
                return;
            }
            self.hello_queue.pop_front();
            if waits {
                self.counters.hello_timeouts += 1;
                self.fail_session(conn, ErrorCode::HandshakeRequired, "no Hello came in time", links);
            }
        }
    }

    /// Closes a connection with a typed error.
    pub(crate) fn fail_session(&mut self, conn: ConnKey, code: ErrorCode, detail: &str, links: &mut impl Links) {
        self.counters.protocol_errors += 1;
        links.close(conn, code.number(), detail);
        self.on_closed(conn);
    }

    pub(crate) fn queue_control(&mut self, conn: ConnKey) {
        self.control_queue.push(conn);
    }

    fn flush_control(&mut self, links: &mut impl Links) {
        let mut queue = std::mem::take(&mut self.control_queue);
        for conn in queue.drain(..) {
            let Some(session) = self.sessions.get(conn) else { continue };
            match session.control_out.flush(conn, CONTROL_STREAM, links) {
                Ok(_) if session.control_stalled => self.stalled.push_back((conn, CONTROL_STREAM)),
                Ok(_) | Err(LinkError::WouldBlock) => {}
                Err(_) => self.on_closed_stream(conn, links),
            }
        }
        if self.control_queue.is_empty() {
            self.control_queue = queue;
        }
    }

    fn on_closed_stream(&mut self, conn: ConnKey, links: &mut impl Links) {
        links.close(conn, ErrorCode::NoError.number(), "the control stream ended");
        self.on_closed(conn);
    }

    fn report(&mut self, now: Now, links: &mut impl Links) {
        self.next_report = now.time.after_ns(self.config.admission.report_interval_ns);
        if !self.is_report_due() {
            return;
        }
        self.report_asked = false;
        self.egress.trim();
        self.reported_sessions = self.sessions.count();
        let me = self.config.me;
        let mut report = CoreReport {
            ticket: self.report_ticket,
            connections: self.sessions.count() as u32,
            opening: self.shards.store().map_or(0, |store| store.opening_count() as u32),
            made: self.shards.store_mut().map(Store::take_made).unwrap_or_default(),
            storage_failure: self.shards.store().and_then(|store| store.wal().poison()).map(|it| it.to_string()),
            ..CoreReport::default()
        };
        let Core { shards, fan_out, routes, .. } = self;
        shards.take_touched(|shard| {
            let config = shard.config();
            report.shards.push(ShardReport {
                status: ShardStatus {
                    index: config.index,
                    shard: config.shard,
                    core: me,
                    lineage: config.lineage,
                    epoch: config.epoch,
                    log_start: shard.log_start(),
                    high_watermark: shard.high_watermark(),
                    retained_bytes: shard.retained_bytes(),
                },
                records_in: shard.counters().records_in,
                bytes_in: shard.counters().bytes_in,
            });
        });
        fan_out.take_touched(|shard, tail| {
            let (subscriptions, counters, slowest) = match tail {
                Some((subscriptions, counters, slowest)) => (subscriptions, counters, Some(slowest)),
                None => (0, Default::default(), None),
            };
            report.tails.push(TailReport {
                shard,
                core: me,
                subscriptions,
                records_out: counters.records_out,
                bytes_out: counters.bytes_out,
                gap_records: counters.gap_records,
                slowest,
            });
        });
        // Tails of streams that keep by age forget at the same pace.
        for row in &report.tails {
            if let Some(age) = routes.stream_of(row.shard).and_then(|it| it.info.spec.retention_age_ms) {
                fan_out.expire(row.shard, now.wall.saturating_sub_ns(age.saturating_mul(1_000_000)));
            }
        }
        self.send_control(ToControl::Report(report), links);
    }

    fn tell_route_changed(&mut self, routing_version: u64) {
        // Told to sessions that publish: only they hold routes.
        for conn in self.sessions.keys() {
            let Some(session) = self.sessions.get(conn) else { continue };
            if !session.channels.is_empty() {
                Frame::RouteChanged { routing_version }.encode(0, session.control_out.buffer());
                self.queue_control(conn);
            }
        }
    }

    /// Whether the principal of a connection may do this.
    pub(crate) fn may(&mut self, conn: ConnKey, verb: Verb, target: Target<'_>) -> bool {
        let principal = self.sessions.get(conn).and_then(|session| session.principal.clone());
        principal.is_some_and(|principal| self.config.roles.allowed(&principal, verb, target))
    }

    /// Who a key of this core is, for messages.
    pub(crate) fn channel_key(&self, conn: ConnKey, stream: u64) -> ChannelKey {
        ChannelKey { core: self.config.me, conn, stream }
    }

    /// The stream of a subscription's session that its deliveries go on, if both still live.
    pub(crate) fn session_of(&mut self, key: SubKey) -> Option<(ConnKey, felix_protocol::ids::SubscriptionId)> {
        self.fan_out.get(key).map(|sub| (sub.conn, sub.id))
    }

    /// A stream by name.
    pub(crate) fn stream_route(
        &self,
        name: &felix_protocol::names::StreamName,
    ) -> Option<Rc<crate::route::StreamRoute>> {
        self.routes.stream(name).cloned()
    }
}
