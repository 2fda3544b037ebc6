//! **What**: the control stream of a session: Hello, routes, subscriptions, credit, admin, stats.
//!
//! **Invariants**: each request is answered exactly once, by its reply or a typed error with its number. Requests that
//! wait for the control thread are bounded per connection; while too many replies, or ends of subscriptions on their
//! streams, are unsent, no request is read.
//!
//! **Never**: an answer before Hello.
//!
//! **See**: `session.rs`, `control_thread.rs`.

use crate::core::{Core, PRODUCERS_LOW};
use crate::links::{LinkError, Links};
use crate::message::ToControl;
use crate::session::{CONTROL_STREAM, DeliveryStream, SessionState, SessionSub};
use felix_control::authorise::{Target, Verb};
use felix_protocol::envelope::split_frame;
use felix_protocol::error_code::{Class, ErrorCode};
use felix_protocol::frame::{
    Admin, DeliveryMode, ErrorFrame, Frame, Hello, Subscribe, Subscribed, SubscriptionClosed, Welcome,
};
use felix_protocol::ids::{ProducerEpoch, ProducerId, SubscriptionId};
use felix_protocol::metadata::Reply;
use felix_protocol::names::StreamName;
use felix_protocol::pattern::Pattern;
use felix_protocol::position::{Offset, Position};
use felix_protocol::time::Now;
use felix_protocol::version::{WireVersion, feature};
use felix_shard::effect::{AttachRefused, AttachState};
use felix_shard::event::{ConnKey, SubKey};
use felix_shard::subscription::SubSpec;

/// Refusal of a request.
struct Refusal(ErrorCode, String);

impl Core {
    /// Reads the control stream until it is empty or a bound is hit.
    pub(crate) fn read_control(&mut self, now: Now, conn: ConnKey, links: &mut impl Links) {
        let mut scratch = std::mem::take(&mut self.read_scratch);
        self.read_control_with(now, conn, links, &mut scratch);
        self.read_scratch = scratch;
    }

    fn read_control_with(&mut self, now: Now, conn: ConnKey, links: &mut impl Links, scratch: &mut [u8]) {
        loop {
            // Kept frames first; each may end the session or hit a bound.
            loop {
                let admission = self.config.admission;
                let Some(session) = self.sessions.get(conn) else { return };
                if session.control_out.waiting() > admission.control_out_bytes_max
                    || session.closing_bytes > admission.control_out_bytes_max
                    || session.requests >= admission.requests_max
                {
                    session.control_stalled = true;
                    return;
                }
                session.control_stalled = false;
                let mut input = std::mem::take(&mut session.control_in);
                let outcome = match input.next_frame() {
                    Ok(Some(frame)) => {
                        self.on_control_frame(now, conn, frame, links);
                        true
                    }
                    Ok(None) => false,
                    Err(error) => {
                        return self.fail_session(conn, error.code(), &error.to_string(), links);
                    }
                };
                let Some(session) = self.sessions.get(conn) else { return };
                session.control_in = input;
                if !outcome {
                    break;
                }
            }
            let Some(session) = self.sessions.get(conn) else { return };
            if session.control_ended {
                if session.control_in.buffered() > 0 {
                    let detail = "the control stream ended inside a frame";
                    return self.fail_session(conn, ErrorCode::MalformedFrame, detail, links);
                }
                links.close(conn, ErrorCode::NoError.number(), "");
                return self.on_closed(conn);
            }
            match links.stream_recv(conn, CONTROL_STREAM, scratch) {
                Ok(read) => {
                    let Some(session) = self.sessions.get(conn) else { return };
                    session.control_in.push(&scratch[..read.bytes]);
                    session.control_ended = read.fin;
                }
                Err(LinkError::WouldBlock) => {
                    if let Some(session) = self.sessions.get(conn) {
                        session.control_in.shrink();
                    }
                    return;
                }
                Err(_) => return,
            }
        }
    }

    fn on_control_frame(&mut self, now: Now, conn: ConnKey, frame: &[u8], links: &mut impl Links) {
        self.counters.frames_in += 1;
        let (envelope, frame) = match Frame::decode(frame) {
            Ok(decoded) => decoded,
            // An argument that is wrong spoils its request, not the connection.
            Err(error) if error.code().class() == Class::Reject && self.is_ready(conn) => {
                let request_id = split_frame(frame).map_or(0, |(envelope, _)| envelope.request_id);
                if request_id == 0 {
                    return self.fail_unnumbered(conn, links);
                }
                return self.refuse(conn, request_id, error.code(), error.to_string());
            }
            Err(error) => return self.fail_session(conn, error.code(), &error.to_string(), links),
        };
        let Some(session) = self.sessions.get(conn) else { return };
        let request_id = envelope.request_id;
        match (session.state, frame) {
            (SessionState::AwaitHello { .. }, Frame::Hello(hello)) => self.on_hello(now, conn, &hello, links),
            (SessionState::AwaitHello { .. }, _) => {
                self.fail_session(conn, ErrorCode::HandshakeRequired, "the first frame must be Hello", links);
            }
            (
                _,
                Frame::GetRoute { .. }
                | Frame::GetProducer
                | Frame::Subscribe(_)
                | Frame::Unsubscribe
                | Frame::Admin(_)
                | Frame::GetStats { .. },
            ) if request_id == 0 => self.fail_unnumbered(conn, links),
            (_, Frame::GetRoute { stream_name }) => self.on_get_route(conn, request_id, &stream_name),
            (_, Frame::GetProducer) => self.on_get_producer(conn, request_id, links),
            (_, Frame::Subscribe(subscribe)) => {
                if let Err(Refusal(code, detail)) = self.on_subscribe(conn, request_id, &subscribe, links) {
                    self.refuse(conn, request_id, code, detail);
                }
            }
            (_, Frame::Credit { total_bytes }) => {
                if let Some(sub) = session.subs.get(&SubscriptionId(request_id)) {
                    let key = sub.key;
                    self.fan_out.on_credit(key, total_bytes);
                }
                // Credit for a subscription that just ended crosses its SubscriptionClosed: not an error.
            }
            (_, Frame::Unsubscribe) => match session.subs.get(&SubscriptionId(request_id)).copied() {
                Some(sub) => self.close_subscription(conn, sub.key, ErrorCode::NoError, ""),
                None => self.refuse(
                    conn,
                    request_id,
                    ErrorCode::UnknownSubscription,
                    "there is no such subscription on this connection".to_string(),
                ),
            },
            (_, Frame::Admin(admin)) => self.on_admin(conn, request_id, admin, links),
            (_, Frame::GetStats { after }) => {
                session.requests += 1;
                self.send_control(ToControl::Stats { conn, request_id, after }, links);
            }
            (_, Frame::Publish { .. }) => {
                self.fail_session(conn, ErrorCode::NoChannel, "Publish belongs on a channel, not here", links);
            }
            (_, _) => self.fail_session(conn, ErrorCode::UnexpectedFrame, "this frame is not for a broker", links),
        }
    }

    /// An answer under number 0 would say that the connection is being closed; so it is.
    fn fail_unnumbered(&mut self, conn: ConnKey, links: &mut impl Links) {
        self.fail_session(conn, ErrorCode::MalformedFrame, "a request needs a number other than 0", links);
    }

    fn on_hello(&mut self, now: Now, conn: ConnKey, hello: &Hello<'_>, links: &mut impl Links) {
        let Some(version) = WireVersion::negotiate(hello.version_min, hello.version_max) else {
            let detail = format!(
                "you speak wire versions {} to {}, this broker {} to {}",
                hello.version_min,
                hello.version_max,
                WireVersion::LOWEST.0,
                WireVersion::HIGHEST.0
            );
            return self.fail_session(conn, ErrorCode::UnsupportedVersion, &detail, links);
        };
        let identity = &self.config.identity;
        if hello.cluster.is_some_and(|cluster| cluster != identity.cluster) {
            return self.fail_session(conn, ErrorCode::WrongCluster, "you expect another cluster", links);
        }
        let routing_version = self.routes.version();
        let admission = self.config.admission;
        let Some(session) = self.sessions.get(conn) else { return };
        if session.principal.is_none() {
            let detail = match hello.token.is_empty() {
                true => "show a client certificate",
                false => "tokens are not accepted by this version; show a client certificate",
            };
            return self.fail_session(conn, ErrorCode::Unauthenticated, detail, links);
        }
        let draining = self.is_draining();
        let identity = &self.config.identity;
        let welcome = Welcome {
            version: version.0,
            core: self.config.me,
            core_count: self.config.core_count,
            features: hello.features & feature::ALL,
            cluster: identity.cluster,
            node: identity.node,
            session: identity.session,
            routing_version,
            time: now.wall,
            channels_max: admission.channels_max,
            subscriptions_max: admission.subscriptions_max,
            requests_max: admission.requests_max,
            region: identity.region.clone(),
            principal: String::new(),
        };
        self.counters.sessions_opened += 1;
        let Some(session) = self.sessions.get(conn) else { return };
        let Some(principal) = session.principal.clone() else { return };
        session.features = hello.features & feature::ALL;
        session.state = if draining { SessionState::Draining } else { SessionState::Ready };
        let welcome = Welcome { principal: principal.as_str().to_string(), ..welcome };
        Frame::Welcome(welcome).encode(0, session.control_out.buffer());
        // Channels that arrived before Hello are read now.
        let mut early: Vec<u64> = session.channels.keys().copied().collect();
        early.sort_unstable();
        self.stalled.extend(early.into_iter().map(|stream| (conn, stream)));
        self.queue_control(conn);
    }

    fn reply(&mut self, conn: ConnKey, request_id: u32, frame: &Frame<'_>) {
        let Some(session) = self.sessions.get(conn) else { return };
        frame.encode(request_id, session.control_out.buffer());
        self.queue_control(conn);
    }

    fn refuse(&mut self, conn: ConnKey, request_id: u32, code: ErrorCode, detail: String) {
        match code {
            ErrorCode::PermissionDenied => self.counters.permissions_denied += 1,
            _ => self.counters.requests_refused += 1,
        }
        self.reply(conn, request_id, &Frame::Error(ErrorFrame { code, retry_after_ms: 0, detail }));
    }

    fn on_get_route(&mut self, conn: ConnKey, request_id: u32, name: &StreamName) {
        // Whoever may neither publish nor subscribe learns nothing, not even that the stream exists.
        let allowed = self.may(conn, Verb::Publish, Target::Stream(name))
            || self.may(conn, Verb::Subscribe, Target::Stream(name));
        if !allowed {
            let detail = format!("neither publish nor subscribe on {name} is granted to you");
            return self.refuse(conn, request_id, ErrorCode::PermissionDenied, detail);
        }
        match self.routes.route_frame(name) {
            Some(route) => self.reply(conn, request_id, &Frame::Route(route)),
            None => {
                let detail = format!("there is no stream {name}; create it first");
                self.refuse(conn, request_id, ErrorCode::NotFound, detail);
            }
        }
    }

    fn on_get_producer(&mut self, conn: ConnKey, request_id: u32, links: &mut impl Links) {
        match self.producer_ids.next() {
            Some(id) => {
                let producer = Frame::Producer { producer: ProducerId(id), epoch: ProducerEpoch(1) };
                self.reply(conn, request_id, &producer);
            }
            None => {
                if let Some(session) = self.sessions.get(conn) {
                    session.requests += 1;
                    self.producer_waiting.push_back((conn, request_id));
                }
            }
        }
        if self.producer_ids.end - self.producer_ids.start < PRODUCERS_LOW && !self.producers_requested {
            self.producers_requested = true;
            self.send_control(ToControl::NeedProducers, links);
        }
    }

    pub(crate) fn on_producers(&mut self, first: u64, count: u64) {
        self.producers_requested = false;
        // A block is big; what is left of the old one is dropped, ids are plenty and never reused.
        self.producer_ids = first..first.saturating_add(count);
        while let Some((conn, request_id)) = self.producer_waiting.pop_front() {
            let Some(id) = self.producer_ids.next() else {
                self.producer_waiting.push_front((conn, request_id));
                return;
            };
            let producer = Frame::Producer { producer: ProducerId(id), epoch: ProducerEpoch(1) };
            self.finish_request(conn, request_id, &producer);
        }
    }

    /// No block comes: whoever waits is told, and who asks next asks for one again.
    pub(crate) fn on_no_producers(&mut self, code: ErrorCode, detail: &str) {
        self.producers_requested = false;
        for (conn, request_id) in std::mem::take(&mut self.producer_waiting) {
            let error = ErrorFrame { code, retry_after_ms: 0, detail: detail.to_string() };
            self.finish_request(conn, request_id, &Frame::Error(error));
        }
    }

    fn on_subscribe(
        &mut self,
        conn: ConnKey,
        request_id: u32,
        it: &Subscribe,
        links: &mut impl Links,
    ) -> Result<(), Refusal> {
        let name = &it.stream_name;
        if !self.may(conn, Verb::Subscribe, Target::Stream(name)) {
            return Err(Refusal(ErrorCode::PermissionDenied, format!("subscribe on {name} is not granted to you")));
        }
        let route = self
            .stream_route(name)
            .ok_or_else(|| Refusal(ErrorCode::NotFound, format!("there is no stream {name}; create it first")))?;
        if it.stream.is_some_and(|id| id != route.info.id) {
            return Err(Refusal(ErrorCode::StreamGone, format!("stream {name} was made anew; ask for its route")));
        }
        let place = route
            .shards
            .get(it.shard_index.0 as usize)
            .ok_or_else(|| Refusal(ErrorCode::NotFound, format!("{name} has {} shard(s)", route.shards.len())))?;
        let filter = match it.filter.as_str() {
            "" => None,
            text => Some(Pattern::parse(text).map_err(|error| Refusal(ErrorCode::InvalidPattern, error.to_string()))?),
        };
        let admission = self.config.admission;
        let datagrams = matches!(it.mode, DeliveryMode::DatagramOrStream | DeliveryMode::DatagramOrGap);
        if datagrams && self.sessions.get(conn).is_none_or(|session| session.features & feature::DATAGRAM == 0) {
            let detail = "this connection did not agree on datagrams in Hello".to_string();
            return Err(Refusal(ErrorCode::NotSupported, detail));
        }
        let core_full = self.fan_out.count() >= admission.core_subscriptions_max;
        let id = SubscriptionId(request_id);
        let session = self.sessions.get(conn).ok_or(Refusal(ErrorCode::Internal, String::new()))?;
        if session.subs.contains_key(&id) {
            let detail = format!("subscription {request_id} is in use; choose another number");
            return Err(Refusal(ErrorCode::SubscriptionInUse, detail));
        }
        if core_full || session.subs.len() >= admission.subscriptions_max as usize {
            let detail = format!("at most {} subscriptions per connection", admission.subscriptions_max);
            return Err(Refusal(ErrorCode::TooMany, detail));
        }
        if !self.fan_out.has_room_for(place.shard, &filter) {
            let max = self.config.shard_limits.filters_max;
            let detail = format!(
                "this core has {max} different filters on the shard; subscribe with one that others use or a wider one, \
                 or on another connection: another core has its own"
            );
            return Err(Refusal(ErrorCode::TooMany, detail));
        }
        let stream = match (it.mode, session.shared) {
            (DeliveryMode::Own, _) | (_, None) => {
                let opened = links.open_uni(conn).map_err(|_| {
                    Refusal(ErrorCode::TooMany, "you allow no further unidirectional stream".to_string())
                })?;
                let own = (it.mode == DeliveryMode::Own).then_some(id);
                session.delivery.insert(DeliveryStream::new(opened, own));
                if own.is_none() {
                    session.shared = Some(opened);
                }
                opened
            }
            (_, Some(shared)) => shared,
        };
        let spec = SubSpec {
            conn,
            id,
            shard: place.shard,
            start: it.start,
            filter,
            policy: it.policy,
            mode: it.mode,
            credit_bytes: it.credit_bytes,
        };
        let key = self.fan_out.subscribe(&spec);
        session.subs.insert(id, SessionSub { key, stream });
        Ok(())
    }

    /// The owner resolved a subscription's start, or refused it.
    pub(crate) fn on_attach_answer(&mut self, key: SubKey, result: Result<AttachState, AttachRefused>) {
        let Some((conn, id)) = self.session_of(key) else { return };
        match self.fan_out.on_attach(key, result) {
            Some(Ok(state)) => {
                let shard = self.fan_out.get(key).map(|sub| sub.shard).unwrap_or_default();
                let subscribed = Subscribed {
                    stream: state.stream,
                    shard,
                    lineage: state.lineage,
                    epoch: state.epoch,
                    start: state.start,
                    high_watermark: state.high_watermark,
                };
                self.reply(conn, id.0, &Frame::Subscribed(subscribed));
            }
            Some(Err(refused)) => {
                self.fan_out.unsubscribe(key);
                self.forget_subscription(conn, id);
                let detail = match refused.code {
                    ErrorCode::LineageReset => format!(
                        "the data of that position is gone; lineage {} begins at offset {}",
                        refused.lineage.0, refused.next
                    ),
                    ErrorCode::OffsetInFuture => format!("the log ends at offset {}", refused.next),
                    ErrorCode::StorageFailed => {
                        "the shard did not open, or its storage failed; see the broker's log".to_string()
                    }
                    _ => "the stream was deleted or moved; ask for its route".to_string(),
                };
                self.refuse(conn, id.0, refused.code, detail);
            }
            None => {}
        }
    }

    /// Takes a subscription off its session; its own stream is ended once what is on it is sent.
    pub(crate) fn forget_subscription(&mut self, conn: ConnKey, id: SubscriptionId) {
        let Some(session) = self.sessions.get(conn) else { return };
        let Some(sub) = session.subs.remove(&id) else { return };
        if session.subs.is_empty() {
            session.subs.shrink_to_fit();
        }
        if let Some(delivery) = session.delivery.get_mut(sub.stream)
            && !delivery.queued
        {
            delivery.queued = true;
            self.delivery_queue.push_back((conn, sub.stream));
        }
    }

    /// Ends a subscription and tells its client on its delivery stream, behind what was sent before.
    pub(crate) fn close_subscription(&mut self, conn: ConnKey, key: SubKey, code: ErrorCode, detail: &str) {
        let Some(sub) = self.fan_out.unsubscribe(key) else { return };
        let next = Position { lineage: sub.lineage, offset: sub.told };
        self.tell_closed(conn, sub.id, code, next, detail);
    }

    fn tell_closed(&mut self, conn: ConnKey, id: SubscriptionId, code: ErrorCode, next: Position, detail: &str) {
        let Some(session) = self.sessions.get(conn) else { return };
        let Some(sub) = session.subs.get(&id).copied() else { return };
        let frame = Frame::SubscriptionClosed(SubscriptionClosed { code, next, detail: detail.to_string() });
        if let Some(delivery) = session.delivery.get_mut(sub.stream) {
            // On the shared stream an ended one says Wait when its turn comes; a search for each of many would not end.
            if delivery.own.is_some() {
                delivery.ready.clear();
            }
            let waited = delivery.out.waiting();
            frame.encode(id.0, delivery.out.buffer());
            let bytes = delivery.out.waiting() - waited;
            delivery.closing_bytes += bytes;
            session.closing_bytes += bytes;
        }
        self.forget_subscription(conn, id);
    }

    /// A shard is gone: its subscribers on this core end.
    pub(crate) fn on_shard_gone(&mut self, shard: felix_protocol::ids::ShardId) {
        let mut ended = Vec::new();
        self.fan_out.on_gone(shard, |_, sub| {
            ended.push((sub.conn, sub.id, Position { lineage: sub.lineage, offset: sub.told }));
        });
        for (conn, id, next) in ended {
            self.tell_closed(conn, id, ErrorCode::StreamGone, next, "the stream was deleted or moved");
        }
    }

    /// A server-opened stream was refused by the client: its subscriptions end.
    pub(crate) fn drop_delivery_stream(&mut self, conn: ConnKey, stream: u64) {
        let Some(session) = self.sessions.get(conn) else { return };
        let Some(dropped) = session.delivery.remove(stream) else { return };
        if session.shared == Some(stream) {
            session.shared = None;
        }
        session.closing_bytes -= dropped.closing_bytes;
        if session.control_stalled {
            self.stalled.push_back((conn, CONTROL_STREAM));
        }
        let is_on_it = |sub: &SessionSub| sub.stream == stream;
        let mut ended: Vec<(SubscriptionId, SubKey)> = match dropped.own {
            Some(id) => {
                session.subs.get(&id).filter(|sub| is_on_it(sub)).map(|sub| (id, sub.key)).into_iter().collect()
            }
            None => session.subs.iter().filter(|(_, sub)| is_on_it(sub)).map(|(id, sub)| (*id, sub.key)).collect(),
        };
        ended.sort_unstable_by_key(|(id, _)| *id);
        for (id, key) in ended {
            self.fan_out.unsubscribe(key);
            self.forget_subscription(conn, id);
        }
    }

    fn on_admin(&mut self, conn: ConnKey, request_id: u32, admin: Admin, links: &mut impl Links) {
        let Some(session) = self.sessions.get(conn) else { return };
        let Some(principal) = session.principal.clone() else { return };
        if !self.config.roles.allowed(&principal, Verb::Admin, Target::of_command(&admin.command)) {
            let detail = "admin on this tenant is not granted to you".to_string();
            return self.refuse(conn, request_id, ErrorCode::PermissionDenied, detail);
        }
        if let Some(session) = self.sessions.get(conn) {
            session.requests += 1;
        }
        let Admin { idempotency_key, command } = admin;
        self.send_control(ToControl::Admin { conn, request_id, principal, idempotency_key, command }, links);
    }

    pub(crate) fn on_admin_reply(
        &mut self,
        conn: ConnKey,
        request_id: u32,
        result: Result<Reply, (ErrorCode, String)>,
    ) {
        match result {
            Ok(reply) => self.finish_request(conn, request_id, &Frame::AdminReply(reply)),
            Err((code, detail)) => {
                self.finish_request(conn, request_id, &Frame::Error(ErrorFrame { code, retry_after_ms: 0, detail }));
            }
        }
    }

    /// The answer to a request that was on its way to the control thread.
    pub(crate) fn finish_request(&mut self, conn: ConnKey, request_id: u32, frame: &Frame<'_>) {
        let Some(session) = self.sessions.get(conn) else { return };
        session.requests = session.requests.saturating_sub(1);
        if session.control_stalled {
            self.stalled.push_back((conn, CONTROL_STREAM));
        }
        self.reply(conn, request_id, frame);
    }

    fn is_ready(&mut self, conn: ConnKey) -> bool {
        self.sessions.get(conn).is_some_and(|session| !matches!(session.state, SessionState::AwaitHello { .. }))
    }

    /// Offset a closed subscription goes on with, for tests.
    pub fn told(&self, key: SubKey) -> Option<Offset> {
        self.fan_out.get(key).map(|sub| sub.told)
    }
}

#[cfg(test)]
mod tests;
