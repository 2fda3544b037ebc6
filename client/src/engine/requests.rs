//! **What**: requests and their answers, over whatever connection there is; and the routes learned from them.
//!
//! **Invariants**: every request ends once: answer, refusal or deadline. It is sent again after a lost connection: reads
//! change nothing, and writes carry an idempotency key drawn once. What is in flight stays below the broker's limit.
//!
//! **Never**: a request of the application answered from a cache.
//!
//! **See**: `engine/connections.rs` for where they go.

use super::{ConnKey, Engine, Event, PublisherId};
use crate::error::RequestError;
use crate::session::Answer;
use felix_protocol::error_code::{Class, ErrorCode};
use felix_protocol::frame::{Admin, ErrorFrame, Frame, Route};
use felix_protocol::ids::{ProducerEpoch, ProducerId};
use felix_protocol::metadata::Command;
use felix_protocol::names::StreamName;
use felix_protocol::time::Time;
use std::sync::Arc;
use std::time::Duration;

/// Wait before a route or producer is asked for again.
const RETRY_NS: u64 = 50_000_000;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Where the shards of a stream live.
    Route(StreamName),
    /// A producer id.
    Producer,
    /// A metadata command.
    Admin(Command),
    /// Counters, of streams after this one.
    Stats(Option<StreamName>),
}

/// Who asked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asker {
    Application(u64),
    Routes(StreamName),
    Publisher(PublisherId),
}

/// A request without its answer.
#[derive(Debug)]
pub(super) struct Request {
    asker: Asker,
    ask: Ask,
    /// Drawn once, so that a repeat has no second effect.
    idempotency_key: u128,
    started: Time,
    deadline: Time,
    sent_on: Option<ConnKey>,
    ever_sent: bool,
}

impl Request {
    fn outcome_unknown(&self) -> bool {
        self.ever_sent && matches!(&self.ask, Ask::Admin(command) if command.is_write())
    }
}

/// What is known of a stream's route.
#[derive(Debug, Default)]
pub(super) struct RouteState {
    route: Option<Arc<Route>>,
    asking: bool,
    stale: bool,
    not_before: Time,
}

impl Engine {
    /// Asks the broker. The result comes as `Event::Replied` with this token, at the latest at the deadline.
    pub fn request(&mut self, token: u64, ask: Ask, deadline: Time) {
        self.ask(Asker::Application(token), ask, deadline);
    }

    fn ask(&mut self, asker: Asker, ask: Ask, deadline: Time) {
        let idempotency_key = match &ask {
            Ask::Admin(command) if command.is_write() => self.jitter.next_key(),
            _ => 0,
        };
        let request =
            Request { asker, ask, idempotency_key, started: self.now.time, deadline, sent_on: None, ever_sent: false };
        self.requests.insert(self.next_request, request);
        self.next_request += 1;
        self.changed = true;
        self.arm(deadline);
    }

    /// Asks for a producer id.
    pub(super) fn ask_producer(&mut self, publisher: PublisherId) {
        let deadline = self.now.time.after_ns(self.config.request_timeout_ns);
        self.ask(Asker::Publisher(publisher), Ask::Producer, deadline);
    }

    pub(super) fn turn_requests(&mut self) {
        self.refresh_routes();
        let now = self.now.time;
        let due: Vec<u64> = self.requests.iter().filter(|(_, it)| it.deadline <= now).map(|it| *it.0).collect();
        for id in due {
            if let Some(request) = self.requests.remove(&id) {
                let after = Duration::from_nanos(now.since(request.started));
                let outcome_unknown = request.outcome_unknown();
                self.conclude(request, Err(RequestError::TimedOut { outcome_unknown, after }));
            }
        }
        if let Some(next) = self.requests.values().map(|it| it.deadline).min() {
            self.arm(next);
        }
        self.send_requests();
    }

    fn send_requests(&mut self) {
        let Some(key) = self.primary() else { return };
        let Some(conn) = self.conns.get_mut(&key) else { return };
        let max = conn.welcome.as_ref().map_or(1, |it| it.requests_max.max(1) as usize);
        for (id, request) in self.requests.iter_mut().filter(|(_, it)| it.sent_on.is_none()) {
            if conn.session.open_requests() >= max {
                return;
            }
            let sent = match &request.ask {
                Ask::Route(stream_name) => conn.session.request(&Frame::GetRoute { stream_name: stream_name.clone() }),
                Ask::Producer => conn.session.request(&Frame::GetProducer),
                Ask::Admin(command) => conn.session.request(&Frame::Admin(Admin {
                    idempotency_key: request.idempotency_key,
                    command: command.clone(),
                })),
                Ask::Stats(after) => conn.session.request(&Frame::GetStats { after: after.clone() }),
            };
            let Some(wire_id) = sent else { return };
            conn.requests.insert(wire_id, *id);
            request.sent_on = Some(key);
            request.ever_sent = true;
        }
    }

    pub(super) fn request_lost(&mut self, id: u64) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.sent_on = None;
        }
    }

    pub(super) fn on_answered(&mut self, key: ConnKey, wire_id: u32, result: Result<Answer, ErrorFrame>) {
        let id = self.conns.get_mut(&key).and_then(|it| it.requests.remove(&wire_id));
        // None: its deadline passed.
        let Some(request) = id.and_then(|it| self.requests.remove(&it)) else { return };
        let result = result.map_err(|error| RequestError::Refused {
            code: error.code,
            detail: error.detail,
            retry_after_ms: error.retry_after_ms,
        });
        self.conclude(request, result);
    }

    fn conclude(&mut self, request: Request, result: Result<Answer, RequestError>) {
        match request.asker {
            Asker::Application(token) => {
                if let Ok(Answer::Route(route)) = &result
                    && let Ask::Route(name) = &request.ask
                {
                    self.learn_route(name.clone(), route.clone());
                }
                self.events.push_back(Event::Replied { token, result });
            }
            Asker::Routes(name) => self.on_route_answer(name, result),
            Asker::Publisher(publisher) => {
                let answer: Result<(ProducerId, ProducerEpoch), Option<(ErrorCode, String)>> = match result {
                    Ok(Answer::Producer { producer, epoch }) => Ok((producer, epoch)),
                    Err(RequestError::Refused { code, detail, .. }) if code.class() == Class::Reject => {
                        Err(Some((code, detail)))
                    }
                    _ => Err(None),
                };
                self.on_producer(publisher, answer, self.now.time.after_ns(RETRY_NS));
            }
        }
    }

    pub(super) fn shut_requests(&mut self) {
        for (_, request) in std::mem::take(&mut self.requests) {
            if let Asker::Application(token) = request.asker {
                let result = Err(RequestError::Disconnected { outcome_unknown: request.outcome_unknown() });
                self.events.push_back(Event::Replied { token, result });
            }
        }
    }

    // ---- routes -------------------------------------------------------------------------------------------------

    /// The route of a stream as last heard.
    pub(super) fn route(&self, name: &StreamName) -> Option<Arc<Route>> {
        self.routes.get(name).and_then(|it| it.route.clone())
    }

    /// A route that a handle was made from.
    pub(super) fn keep_route(&mut self, name: &StreamName, route: &Arc<Route>) {
        let state = self.routes.entry(name.clone()).or_default();
        if state.route.as_ref().is_none_or(|it| it.routing_version <= route.routing_version) {
            state.route = Some(route.clone());
        }
    }

    /// Asks again for the route of a stream.
    pub(super) fn refresh_route(&mut self, name: &StreamName) {
        if let Some(state) = self.routes.get_mut(name) {
            state.stale = true;
            self.changed = true;
        }
    }

    pub(super) fn on_route_changed(&mut self, routing_version: u64) {
        for state in self.routes.values_mut() {
            state.stale |= state.route.as_ref().is_none_or(|it| it.routing_version < routing_version);
        }
        self.changed = true;
    }

    fn refresh_routes(&mut self) {
        let now = self.now.time;
        let used = |name: &StreamName| {
            self.publishers.values().any(|it| it.stream_name() == name)
                || self.subscribers.values().any(|it| it.stream_name() == name)
        };
        self.routes.retain(|name, _| used(name));
        let mut wanted = Vec::new();
        let mut next = Time(u64::MAX);
        for (name, state) in self.routes.iter_mut().filter(|(_, it)| it.stale && !it.asking) {
            if state.not_before <= now {
                state.asking = true;
                state.stale = false;
                wanted.push(name.clone());
            } else {
                next = Time(next.0.min(state.not_before.0));
            }
        }
        self.arm(next);
        // A map has no order of its own, and the simulator wants the same run twice.
        wanted.sort();
        let deadline = now.after_ns(self.config.request_timeout_ns);
        for name in wanted {
            self.ask(Asker::Routes(name.clone()), Ask::Route(name), deadline);
        }
    }

    fn on_route_answer(&mut self, name: StreamName, result: Result<Answer, RequestError>) {
        let retry_at = self.now.time.after_ns(RETRY_NS);
        let Some(state) = self.routes.get_mut(&name) else { return };
        state.asking = false;
        state.not_before = retry_at;
        match result {
            Ok(Answer::Route(route)) => self.learn_route(name, route),
            // Gone: channels and subscriptions hear that themselves when they open.
            Err(RequestError::Refused { code, .. }) if code.class() == Class::Reject => state.route = None,
            _ => state.stale = true,
        }
        self.changed = true;
    }

    fn learn_route(&mut self, name: StreamName, route: Route) {
        let route = Arc::new(route);
        if let Some(state) = self.routes.get_mut(&name) {
            state.route = Some(route.clone());
        }
        self.on_route_learned(&name, &route);
    }
}
