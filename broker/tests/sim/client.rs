//! A well-behaved client: one connection at a time, its publishers and subscribers, stalls, deaths, reconnects.

use crate::admin::AdminScript;
use crate::model::Model;
use crate::plan::{MS, US};
use crate::publisher::Publisher;
use crate::sim::{Ev, Sim};
use crate::subscriber::{State, Sub};
use crate::view::Via;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{Frame, Hello};
use felix_protocol::frame_stream::FrameStream;
use felix_protocol::version::feature;
use std::collections::BTreeMap;

/// What a client may touch.
pub struct Ctx<'a> {
    pub sim: &'a mut Sim,
    pub model: &'a mut Model,
}

/// Sends a frame of a client.
pub fn send(ctx: &mut Ctx<'_>, conn: usize, stream: u64, request_id: u32, mut frame: Frame<'_>) {
    ctx.sim.faults.on_client_frame(&mut frame);
    let now = ctx.sim.now;
    ctx.sim.trace.line(now, || format!("conn {conn} stream {stream} -> {}", text(&frame)));
    let mut bytes = Vec::new();
    frame.encode(request_id, &mut bytes);
    ctx.sim.client_send(conn, stream, &bytes, false);
}

pub fn text(frame: &Frame<'_>) -> String {
    match frame {
        Frame::Publish { body } => format!("Publish of {} bytes, crc {:?}", body.len(), body.get(..4)),
        Frame::Deliver(it) => {
            let kind = format!("{:?}", it.delivery);
            format!("Deliver {} {:?} {}", it.number, it.covered, kind.chars().take(8).collect::<String>())
        }
        other => {
            let mut text = format!("{other:?}");
            text.truncate(220);
            text
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Down {
        until: u64,
    },
    Greeting,
    Ready,
    /// It has gone for good.
    Left,
}

/// What a request was.
#[derive(Debug)]
enum Ask {
    Producer(usize),
    Sub(usize),
    Other,
}

pub struct Client {
    pub id: usize,
    pub phase: Phase,
    pub conn: Option<usize>,
    asks: BTreeMap<u32, Ask>,
    next_id: u32,
    pub pubs: Vec<Publisher>,
    pub subs: Vec<Sub>,
    pub admin: Option<AdminScript>,
    readers: BTreeMap<u64, FrameStream>,
    features: u64,
    think: u64,
}

impl Client {
    pub fn new(ctx: &mut Ctx<'_>, id: usize, pubs: u64, subs: u64) -> Client {
        let late = ctx.sim.rng.below(ctx.sim.plan.chaos / 3);
        let features = if ctx.sim.rng.chance(900) { feature::ALL } else { feature::ALL & !feature::DATAGRAM };
        let mut client = Client {
            id,
            phase: Phase::Down { until: if id < 2 { 0 } else { late } },
            conn: None,
            asks: BTreeMap::new(),
            next_id: ctx.sim.rng.range(1, 5) as u32,
            pubs: Vec::new(),
            subs: Vec::new(),
            admin: None,
            readers: BTreeMap::new(),
            features,
            think: if ctx.sim.plan.big { 4 * MS } else { ctx.sim.rng.range(200 * US, 3 * MS) },
        };
        for at in 0..pubs {
            let publisher = Publisher::new(ctx, format!("client {id} publisher {at}"));
            client.pubs.push(publisher);
        }
        for at in 0..subs {
            let mut sub = Sub::new(ctx, format!("client {id} subscriber {at}"));
            if features & feature::DATAGRAM == 0 && !sub.is_reliable() {
                sub.mode = felix_protocol::frame::DeliveryMode::Shared;
            }
            client.subs.push(sub);
        }
        let first = ctx.sim.rng.range(1, MS);
        ctx.sim.at(first, Ev::Client(id));
        client
    }

    fn connect(&mut self, ctx: &mut Ctx<'_>) {
        let cores = ctx.sim.plan.cores as u64;
        let core = ctx.sim.rng.below(cores) as usize;
        let net = ctx.sim.plan.net(&mut ctx.sim.rng);
        let conn = ctx.sim.connect(self.id, core, net);
        self.conn = Some(conn);
        self.phase = Phase::Greeting;
        let stream = ctx.sim.client_open(conn);
        assert_eq!(stream, 0);
    }

    /// The handshake is complete.
    pub fn on_connected(&mut self, ctx: &mut Ctx<'_>, conn: usize) {
        if self.conn != Some(conn) {
            return;
        }
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            features: self.features,
            cluster: None,
            client_name: "sim",
            token: &[],
        };
        send(ctx, conn, 0, 0, Frame::Hello(hello));
        if ctx.sim.rng.chance(300) {
            for publisher in &mut self.pubs {
                publisher.act(ctx, conn, true);
            }
        }
    }

    /// The connection is over, or given up. `late`: the broker does not hear of it soon.
    fn lose(&mut self, ctx: &mut Ctx<'_>, late: bool) {
        if let Some(conn) = self.conn.take() {
            ctx.sim.client_end(conn, !late);
        }
        self.asks.clear();
        self.readers.clear();
        for publisher in &mut self.pubs {
            publisher.on_lost(ctx);
        }
        for sub in &mut self.subs {
            sub.on_lost(ctx);
        }
        if let Some(admin) = &mut self.admin {
            admin.on_lost();
        }
        let pause = ctx.sim.rng.below(3 * MS);
        self.phase = Phase::Down { until: ctx.sim.now + pause };
    }

    /// The broker or the network ended the connection.
    pub fn on_closed(&mut self, ctx: &mut Ctx<'_>, conn: usize, code: Option<u16>) {
        if self.conn != Some(conn) || self.phase == Phase::Left {
            return;
        }
        let name = code.map(ErrorCode::from_number);
        ctx.model.fail(|| format!("client {}: the broker closed conn {conn} with {name:?}", self.id));
        self.lose(ctx, false);
    }

    /// A step of its own will.
    pub fn act(&mut self, ctx: &mut Ctx<'_>) {
        match self.phase {
            Phase::Left => return,
            Phase::Down { until } if ctx.sim.now >= until => {
                ctx.sim.cover.reconnects += u64::from(self.next_id > 6);
                self.connect(ctx);
            }
            Phase::Ready => self.act_ready(ctx),
            _ => {}
        }
        let pause = ctx.sim.rng.range(self.think / 4, self.think);
        ctx.sim.at(pause, Ev::Client(self.id));
    }

    fn act_ready(&mut self, ctx: &mut Ctx<'_>) {
        let Some(conn) = self.conn else { return };
        let chaos = !ctx.sim.healed;
        if chaos && self.id > 0 && ctx.sim.rng.chance(ctx.sim.plan.deaths) {
            let late = ctx.sim.rng.chance(500);
            match late {
                true => ctx.sim.cover.deaths_seen_late += 1,
                false => ctx.sim.cover.deaths_seen_soon += 1,
            }
            return self.lose(ctx, late);
        }
        if chaos && self.id > 0 && ctx.sim.rng.chance(20) && !ctx.sim.conns[conn].stalled {
            ctx.sim.conns[conn].stalled = true;
            ctx.sim.cover.stalls_of_clients += 1;
            let long = ctx.sim.rng.chance(200);
            let time = ctx.sim.rng.range(MS, if long { 60 * MS } else { 8 * MS });
            ctx.sim.at(time, Ev::Unstall(conn));
        }
        for at in 0..self.pubs.len() {
            if self.pubs[at].wants_id() {
                self.pubs[at].asked = true;
                let id = self.ask(Ask::Producer(at));
                send(ctx, conn, 0, id, Frame::GetProducer);
            }
            self.pubs[at].act(ctx, conn, false);
        }
        for at in 0..self.subs.len() {
            let id = self.next_id;
            if self.subs[at].act(ctx, conn, id) {
                self.ask(Ask::Sub(at));
            }
            self.subs[at].grant(ctx, conn);
        }
        if let Some(admin) = &mut self.admin
            && let Some(frame) = admin.next(ctx)
        {
            let id = self.ask(Ask::Other);
            send(ctx, conn, 0, id, frame);
        }
    }

    fn ask(&mut self, what: Ask) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        self.asks.insert(id, what);
        id
    }

    /// Everything that may be read from a stream is read.
    pub fn read(&mut self, ctx: &mut Ctx<'_>, conn: usize, stream: u64) {
        if self.conn != Some(conn) || ctx.sim.conns[conn].stalled {
            return;
        }
        while let Some((bytes, fin)) = ctx.sim.client_read(conn, stream) {
            let reader = self.readers.entry(stream).or_default();
            reader.push(&bytes);
            let mut frames = Vec::new();
            loop {
                match reader.next_frame() {
                    Ok(Some(frame)) => frames.push(frame.to_vec()),
                    Ok(None) => break,
                    Err(error) => return ctx.model.fail(|| format!("client {}: not a frame: {error}", self.id)),
                }
            }
            for frame in frames {
                for frame in ctx.sim.faults.on_broker_frame(conn, &frame, &mut ctx.sim.rng) {
                    self.on_frame(ctx, conn, stream, &frame);
                }
            }
            if fin {
                self.on_end(ctx, stream, false);
            }
        }
    }

    /// The broker ended a stream.
    pub fn on_end(&mut self, ctx: &mut Ctx<'_>, stream: u64, reset: bool) {
        if let Some(at) = self.channel(stream) {
            self.pubs[at].on_end(ctx, reset);
        }
        let cut = self.readers.remove(&stream).is_some_and(|it| it.buffered() > 0);
        ctx.model.expect(!cut || reset, || format!("client {}: stream {stream} ended inside a frame", self.id));
    }

    fn channel(&self, stream: u64) -> Option<usize> {
        self.pubs.iter().position(|it| it.stream_of_channel() == Some(stream))
    }

    pub fn on_frame(&mut self, ctx: &mut Ctx<'_>, conn: usize, stream: u64, bytes: &[u8]) {
        ctx.sim.trace.note(u64::from(crc(bytes)));
        let (envelope, frame) = match Frame::decode(bytes) {
            Ok(decoded) => decoded,
            Err(error) => return ctx.model.fail(|| format!("client {}: a bad frame: {error}", self.id)),
        };
        let now = ctx.sim.now;
        let client = self.id;
        ctx.sim.trace.line(now, || {
            format!("client {client} conn {conn} stream {stream} id {} <- {}", envelope.request_id, text(&frame))
        });
        match stream & 0b11 {
            0b00 if stream == 0 => self.on_control(ctx, conn, envelope.request_id, frame),
            0b00 => {
                if let Some(at) = self.channel(stream) {
                    self.pubs[at].on_frame(ctx, conn, frame);
                }
            }
            _ => self.on_delivery(ctx, conn, envelope.request_id, frame, (bytes, Via::Stream)),
        }
    }

    pub fn on_datagram(&mut self, ctx: &mut Ctx<'_>, conn: usize, bytes: &[u8]) {
        if self.conn != Some(conn) {
            return;
        }
        if self.features & feature::DATAGRAM == 0 {
            return ctx.model.fail(|| format!("client {}: a datagram that nobody agreed on", self.id));
        }
        for frame in ctx.sim.faults.on_broker_frame(conn, bytes, &mut ctx.sim.rng) {
            if let Ok((envelope, frame @ Frame::Deliver(_))) = Frame::decode(&frame) {
                self.on_delivery(ctx, conn, envelope.request_id, frame, (bytes, Via::Datagram));
            } else {
                ctx.model.fail(|| format!("client {}: a datagram that is no delivery", self.id));
            }
        }
    }

    fn on_delivery(&mut self, ctx: &mut Ctx<'_>, conn: usize, id: u32, frame: Frame<'_>, bytes: (&[u8], Via)) {
        let Some(at) = self.subs.iter().position(|it| it.id == id && it.state != State::Idle) else {
            // Datagrams may come after the end of their subscription; nothing else may.
            let late = matches!(frame, Frame::Deliver(_)) && self.subs.iter().any(|it| !it.is_reliable());
            return ctx.model.expect(late, || format!("client {}: nobody has subscription {id}: {frame:?}", self.id));
        };
        let ends = matches!(frame, Frame::SubscriptionClosed(_));
        self.subs[at].on_frame(ctx, conn, frame, bytes);
        if ends && self.subs[at].state == State::Idle {
            self.asks.remove(&id);
        }
    }

    fn on_control(&mut self, ctx: &mut Ctx<'_>, conn: usize, id: u32, frame: Frame<'_>) {
        match frame {
            Frame::Welcome(welcome) if self.phase == Phase::Greeting => {
                self.phase = Phase::Ready;
                let right = usize::from(welcome.core.0) == ctx.sim.conns[conn].core;
                ctx.model.expect(right, || format!("client {}: welcomed by {welcome:?}", self.id));
            }
            Frame::RouteChanged { .. } | Frame::Goaway(_) => {}
            Frame::Error(error) => match self.asks.get(&id) {
                Some(Ask::Sub(at)) => {
                    let at = *at;
                    let current = self.subs[at].id == id && self.subs[at].state != State::Idle;
                    if error.code != ErrorCode::UnknownSubscription {
                        self.asks.remove(&id);
                    }
                    if current {
                        self.subs[at].on_error(ctx, error.code);
                    }
                }
                Some(Ask::Other) => {
                    self.asks.remove(&id);
                    if let Some(admin) = &mut self.admin {
                        admin.on_error(ctx, error.code, &error.detail);
                    }
                }
                _ if error.code == ErrorCode::UnknownSubscription => {}
                other => ctx.model.fail(|| format!("client {}: {error:?} for {id}, {other:?}", self.id)),
            },
            Frame::Subscribed(it) => match self.asks.get(&id) {
                Some(Ask::Sub(at)) if self.subs[*at].id == id => self.subs[*at].on_subscribed(ctx, conn, &it),
                other => ctx.model.fail(|| format!("client {}: Subscribed for {id}, {other:?}", self.id)),
            },
            Frame::Producer { producer, .. } => match self.asks.remove(&id) {
                Some(Ask::Producer(at)) => {
                    let fresh = ctx.model.producers.insert(producer.0);
                    ctx.model.expect(fresh, || format!("producer {producer} was given twice"));
                    self.pubs[at].producer = Some(producer.0);
                }
                other => ctx.model.fail(|| format!("client {}: Producer for {id}, {other:?}", self.id)),
            },
            frame @ (Frame::AdminReply(_) | Frame::Stats(_) | Frame::Route(_)) => match self.asks.remove(&id) {
                Some(Ask::Other) => {
                    if let Some(admin) = &mut self.admin {
                        admin.on_reply(ctx, &frame);
                    }
                }
                other => ctx.model.fail(|| format!("client {}: a reply for {id}, {other:?}", self.id)),
            },
            other => ctx.model.fail(|| format!("client {}: {other:?} on the control stream", self.id)),
        }
    }

    /// The first thing it still waits for, once healed. `log`: start and end of the log that a view reads.
    pub fn owes(&self, ctx: &Ctx<'_>, log: impl Fn(usize) -> Option<(u64, u64)>) -> Option<String> {
        if self.phase != Phase::Ready {
            return Some(format!("client {} is {:?} on conn {:?}", self.id, self.phase, self.conn));
        }
        if let Some(publisher) = self.pubs.iter().find(|it| !it.done) {
            return Some(publisher.owes());
        }
        for sub in &self.subs {
            let Some(view) = sub.view.filter(|_| sub.state == State::Live) else {
                return Some(format!("{} is {:?} on conn {:?}", sub.name, sub.state, self.conn));
            };
            let Some((start, end)) = log(view) else {
                return Some(format!("{} reads a shard that is gone", sub.name));
            };
            let v = &ctx.model.views[view];
            if v.is_reliable()
                && let Some(owed) = ctx.model.owed(view, start, end)
            {
                return Some(format!("{} was told up to {}, owed is {owed}, the end is {end}", v.name, v.told));
            }
        }
        match &self.admin {
            Some(admin) if !admin.is_done() => Some(format!("the administrator waits for {admin:?}")),
            _ => None,
        }
    }

    /// Goes for good; half of them say so first.
    pub fn leave(&mut self, ctx: &mut Ctx<'_>) {
        if let Some(conn) = self.conn {
            if ctx.sim.rng.chance(500) && self.phase == Phase::Ready {
                for sub in &mut self.subs {
                    if sub.state == State::Live {
                        sub.end(ctx, conn);
                    }
                }
                ctx.sim.client_send(conn, 0, &[], true);
            }
            ctx.sim.client_end(conn, true);
        }
        self.phase = Phase::Left;
    }
}

pub fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
