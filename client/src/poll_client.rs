//! **What**: the driver: sockets, clock and handles around the engine. Runs on the caller's thread; `client.rs` gives it
//! a thread of its own.
//!
//! ```text
//!   poll():  commands -> receive -> engine.turn -> pump intakes -> engine.turn -> events to handles -> send
//! ```
//!
//! **Invariants**: `poll` never sleeps and does bounded work; `wait` sleeps at most as long as asked and not beyond the
//! next deadline. A lost wake-up is impossible (see `shared.rs`).
//!
//! **Never**: a handle's lock held over a system call.
//!
//! **See**: `engine.rs` for every decision, `link.rs` for sockets.

mod setup;

use crate::calls::{self, Caller};
use crate::config::{ClientConfig, PublisherOptions, SubscribeOptions};
use crate::engine::{ConnKey, Effect, Engine, Event, Lost, PublisherId, SteerTo, SubscriberId};
use crate::error::{ConnectError, FlushError, RequestError, SubscribeError};
use crate::inbox::Inbox;
use crate::intake::FlushReport;
use crate::link::{Link, Scratch};
use crate::publisher::{Outbox, Publisher};
use crate::session::Answer;
use crate::shared::{Command, Live, OneShot, Shared};
use crate::subscriber::Subscriber;
use felix_protocol::frame::{Route, Stats, Welcome};
use felix_protocol::metadata::{Command as AdminCommand, Reply};
use felix_protocol::names::StreamName;
use felix_quic::{Connector, CoreSlot};
use mio::{Events, Interest, Poll, Token};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Token of the waker; connections use their key.
const WAKER: Token = Token(0);
/// Sleep without any deadline at most so long: a bound on what a mistake in a deadline can cost.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// Time a close waits for a broker to take what was published without acknowledgements.
const LINGER_MAX: Duration = Duration::from_secs(1);
/// What a `poll` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollResult {
    /// Something came, went or changed.
    pub progressed: bool,
    /// The bound on work was reached: call again before sleeping.
    pub more: bool,
}

struct PublisherEntry {
    id: PublisherId,
    outbox: Arc<Outbox>,
    /// Records wait that the channel could not take.
    waiting: bool,
}

struct SubscriberEntry {
    inbox: Arc<Inbox>,
    live: Option<Live>,
}

/// A client without a thread: nothing happens but in `poll` and `wait`. Its handles must be used without blocking
/// (`try_send`, `try_next`), or from other threads.
pub struct PollClient {
    shared: Arc<Shared>,
    engine: Engine,
    connector: Connector,
    server_name: String,
    addresses: Vec<SocketAddr>,
    links: BTreeMap<ConnKey, Link>,
    /// Links whose connection is over and whose close is still to be sent.
    dying: Vec<Link>,
    poll: Poll,
    events: Events,
    scratch: Scratch,
    publishers: Vec<PublisherEntry>,
    subscribers: BTreeMap<SubscriberId, SubscriberEntry>,
    replies: BTreeMap<u64, Arc<OneShot<Result<Answer, RequestError>>>>,
    next_token: u64,
    last_lost: Option<Lost>,
    more: bool,
}

impl PollClient {
    /// Connects; waits for the broker's Welcome, at most the request timeout.
    pub fn connect(config: ClientConfig) -> Result<PollClient, ConnectError> {
        let deadline = Instant::now() + config.request_timeout;
        let mut client = PollClient::new(&config)?;
        loop {
            let result = client.poll();
            if client.welcome().is_some() {
                return Ok(client);
            }
            if let Some(error) = client.final_error(&config) {
                return Err(error);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(match client.last_lost.take() {
                    Some(Lost::Refused(code, detail)) => ConnectError::Refused { code, detail },
                    Some(Lost::Unreachable) => ConnectError::Unreachable { server: config.server },
                    _ => ConnectError::TimedOut { server: config.server, after: config.request_timeout },
                });
            }
            if !result.progressed && !result.more {
                client.sleep(left);
            }
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    // ---- driving ------------------------------------------------------------------------------------------------

    /// Does what can be done now. Never sleeps.
    pub fn poll(&mut self) -> PollResult {
        for link in self.links.values_mut() {
            // Without asking the kernel which socket has something, each is tried.
            link.readable = true;
        }
        self.step()
    }

    fn step(&mut self) -> PollResult {
        let mut result = PollResult::default();
        if self.shared.take_attention() {
            result.progressed = true;
            self.take_commands();
        }
        let at = Instant::now();
        let now = self.shared.now();
        for link in self.links.values_mut() {
            let turn = link.receive(at, now, &mut self.scratch, &mut self.engine);
            result.progressed |= turn.progressed;
            result.more |= turn.more;
        }
        self.bury();
        self.report_consumed();
        self.engine.turn(now);
        result.progressed |= self.pump();
        // Pumping may have asked for a connection, a channel or a producer.
        self.engine.turn(now);
        result.progressed |= self.take_effects();
        result.progressed |= self.take_events();
        for link in self.links.values_mut() {
            let turn = link.send(at, now, &mut self.scratch, &mut self.engine);
            result.progressed |= turn.progressed;
            result.more |= turn.more;
        }
        self.bury();
        self.more = result.more;
        result
    }

    /// When `poll` should be called at the latest. None: only a datagram or a handle can change anything.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        let engine = self.engine.next_deadline().map(|it| self.shared.instant(it));
        let links = self.links.values_mut().filter_map(Link::next_timeout).min();
        [engine, links].into_iter().flatten().min()
    }

    /// Sleeps until something happens, at most `timeout`, then polls.
    pub fn wait(&mut self, timeout: Duration) -> PollResult {
        self.sleep(timeout);
        self.step()
    }

    fn sleep(&mut self, timeout: Duration) {
        if self.more {
            return;
        }
        let deadline = self.next_deadline();
        let left = deadline.map_or(SLEEP_MAX, |it| it.saturating_duration_since(Instant::now()));
        let timeout = timeout.min(left).min(SLEEP_MAX);
        self.shared.set_sleeping(true);
        let busy = self.shared.has_attention()
            || self.publishers.iter().any(|it| it.outbox.is_dirty())
            || self.subscribers.values().any(|it| it.inbox.is_dirty());
        let timeout = if busy { Duration::ZERO } else { timeout };
        // An interrupted sleep is a short sleep.
        let _ = self.poll.poll(&mut self.events, Some(timeout));
        self.shared.set_sleeping(false);
        for event in &self.events {
            if event.token() != WAKER
                && let Some(link) = self.links.get_mut(&ConnKey(event.token().0 as u32))
            {
                link.readable = true;
            }
        }
    }

    fn take_commands(&mut self) {
        while let Some(command) = self.shared.take_command() {
            match command {
                Command::Request { ask, deadline, reply } => {
                    let token = self.next_token;
                    self.next_token += 1;
                    self.replies.insert(token, reply);
                    self.engine.request(token, ask, deadline);
                }
                Command::AddPublisher { name, route, options, outbox } => {
                    let id = self.engine.add_publisher(&name, &route, options);
                    self.publishers.push(PublisherEntry { id, outbox, waiting: true });
                }
                Command::AddSubscriber { name, route, options, inbox, live } => {
                    let id = self.engine.add_subscriber(&name, &route, &options);
                    self.subscribers.insert(id, SubscriberEntry { inbox, live: Some(live) });
                }
            }
        }
        for entry in self.publishers.iter().filter(|it| it.outbox.is_dropped()) {
            self.engine.close_publisher(entry.id);
        }
        let engine = &mut self.engine;
        self.subscribers.retain(|id, entry| {
            let stays = !entry.inbox.is_dropped();
            if !stays {
                engine.close_subscriber(*id);
            }
            stays
        });
    }

    fn report_consumed(&mut self) {
        for (id, entry) in &self.subscribers {
            for (lane, bytes) in entry.inbox.take_consumed() {
                self.engine.on_consumed(*id, lane, bytes);
            }
        }
    }

    fn pump(&mut self) -> bool {
        let mut progressed = false;
        for entry in &mut self.publishers {
            let dirty = entry.outbox.take_dirty();
            progressed |= dirty;
            if dirty || entry.waiting || self.engine.has_work(entry.id) {
                let now = self.shared.now();
                entry.waiting = entry.outbox.drive(|intake| self.engine.pump(now, entry.id, intake));
            }
        }
        let engine = &self.engine;
        self.publishers.retain(|entry| engine.has_publisher(entry.id));
        progressed
    }

    fn take_effects(&mut self) -> bool {
        let mut progressed = false;
        while let Some(Effect::Connect { conn, steer, attempt }) = self.engine.poll_effect() {
            progressed = true;
            let address = self.addresses[attempt as usize % self.addresses.len()];
            let steer = steer.map(|SteerTo { core, core_count }| CoreSlot { index: core.0, count: core_count });
            let opened = Link::open(conn, &mut self.connector, &self.server_name, address, steer);
            let registered = opened.and_then(|mut link| {
                let interest = Interest::READABLE | Interest::WRITABLE;
                self.poll
                    .registry()
                    .register(&mut link.socket, Token(conn.0 as usize), interest)
                    .map_err(|error| error.kind())?;
                Ok(link)
            });
            match registered {
                Ok(link) => {
                    self.links.insert(conn, link);
                }
                Err(_) => self.engine.on_closed(self.shared.now(), conn, Lost::Unreachable),
            }
        }
        progressed
    }

    fn take_events(&mut self) -> bool {
        let mut progressed = false;
        while let Some(event) = self.engine.poll_event() {
            progressed = true;
            match event {
                Event::Ready(welcome) => self.shared.set_welcome(welcome),
                Event::Lost { why, .. } => self.last_lost = Some(why),
                Event::Replied { token, result } => {
                    if let Some(reply) = self.replies.remove(&token) {
                        reply.set(result);
                    }
                }
                Event::Rerouted { publisher, route } => {
                    if let Some(entry) = self.publishers.iter().find(|it| it.id == publisher) {
                        let starts = calls::starts(&route);
                        entry.outbox.drive(|intake| intake.reroute(starts, route.batch_bytes_max as usize));
                    }
                }
                Event::Item { subscriber, lane, cost, item } => {
                    if let Some(entry) = self.subscribers.get(&subscriber) {
                        entry.inbox.push(lane, cost, item);
                    }
                }
                Event::Live { subscriber, committed } => {
                    if let Some(entry) = self.subscribers.get_mut(&subscriber)
                        && let Some(live) = entry.live.take()
                    {
                        entry.inbox.began(committed);
                        live.set(Ok(()));
                    }
                }
                Event::Ended { subscriber, error } => {
                    if let Some(entry) = self.subscribers.remove(&subscriber) {
                        if let Some(live) = entry.live {
                            live.set(Err(error.clone()));
                        }
                        entry.inbox.finish(error);
                    }
                }
            }
        }
        progressed
    }

    /// Takes away links whose connection is over; a close of ours is still to be sent.
    fn bury(&mut self) {
        let now = self.shared.now();
        let over: Vec<(ConnKey, Lost)> =
            self.links.iter_mut().filter_map(|(key, link)| link.take_lost().map(|lost| (*key, lost))).collect();
        for (key, lost) in over {
            if let Some(mut link) = self.links.remove(&key) {
                let _ = self.poll.registry().deregister(&mut link.socket);
                self.engine.on_closed(now, key, lost);
                self.dying.push(link);
            }
        }
        let at = Instant::now();
        for mut link in self.dying.drain(..) {
            link.send_close(at, &mut self.scratch);
        }
    }

    /// Ends everything in order; handles get their outcomes.
    pub(crate) fn shut_down(&mut self) {
        self.shared.stop();
        self.take_commands();
        self.linger();
        self.engine.shut_down();
        for entry in std::mem::take(&mut self.publishers) {
            entry.outbox.drive(|intake| self.engine.drain_intake(entry.id, intake));
        }
        self.take_events();
        let (at, now) = (Instant::now(), self.shared.now());
        for link in self.links.values_mut() {
            link.send(at, now, &mut self.scratch, &mut self.engine);
        }
        self.links.clear();
        for (_, entry) in std::mem::take(&mut self.subscribers) {
            entry.inbox.finish(SubscribeError::Closed);
        }
    }

    /// What was published without acknowledgements is only known to have arrived when the broker ends the channel.
    fn linger(&mut self) {
        self.engine.finish();
        let until = Instant::now() + LINGER_MAX;
        while !self.engine.is_finished() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            if !self.poll().progressed {
                self.sleep(left);
            }
        }
    }

    // ---- calls, which drive until they are answered ----------------------------------------------------------------

    /// The broker's greeting.
    pub fn welcome(&self) -> Option<Welcome> {
        self.shared.welcome()
    }

    /// A metadata command.
    pub fn admin(&mut self, command: AdminCommand) -> Result<Reply, RequestError> {
        calls::admin(self, command)
    }

    /// A page of counters.
    pub fn stats(&mut self, after: Option<StreamName>) -> Result<Stats, RequestError> {
        calls::stats(self, after)
    }

    /// Where the shards of a stream live.
    pub fn route(&mut self, name: &StreamName) -> Result<Route, RequestError> {
        calls::route(self, name).map(|it| (*it).clone())
    }

    /// A publisher. Use `try_send` and `try_send_acked` with it.
    pub fn publisher(&mut self, name: &StreamName, options: PublisherOptions) -> Result<Publisher, RequestError> {
        calls::publisher(self, name, options)
    }

    /// A subscriber, live when this returns. Use `try_next` with it.
    pub fn subscribe(&mut self, name: &StreamName, options: SubscribeOptions) -> Result<Subscriber, RequestError> {
        calls::subscribe(self, name, options)
    }

    /// Drives until every record taken before has its outcome, at most `timeout`.
    pub fn flush(&mut self, publisher: &Publisher, timeout: Duration) -> Result<FlushReport, FlushError> {
        let deadline = Instant::now() + timeout;
        let generation = publisher.outbox().begin_flush();
        loop {
            let result = self.poll();
            if let Some(report) = publisher.outbox().try_flush(generation)? {
                return Ok(report);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(FlushError::TimedOut { records: publisher.outbox().unflushed(generation) });
            }
            if !result.progressed {
                self.sleep(left);
            }
        }
    }

    /// Ends everything; records without outcome get one now.
    pub fn close(mut self) {
        self.shut_down();
    }
}

impl Drop for PollClient {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl std::fmt::Debug for PollClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PollClient").field("connections", &self.links.len()).finish_non_exhaustive()
    }
}

impl Caller for &mut PollClient {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn complete<T>(&mut self, cell: &OneShot<T>, deadline: Instant) -> Option<T> {
        loop {
            let result = self.poll();
            if let Some(value) = cell.try_take() {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            if !result.progressed {
                self.sleep(left);
            }
        }
    }
}
