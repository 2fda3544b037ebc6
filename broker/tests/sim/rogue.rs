//! Clients that break the protocol, each in its own way. Each must be answered as PROTOCOL.md says, and the others must
//! not notice.

use crate::client::{Ctx, send};
use crate::plan::MS;
use crate::sim::Ev;
use felix_control::authorise::Principal;
use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::error_code::ErrorCode as E;
use felix_protocol::frame::*;
use felix_protocol::frame_stream::FrameStream;
use felix_protocol::ids::{ClusterId, ProducerEpoch, ProducerId, Sequence, ShardIndex};
use felix_protocol::names::StreamName;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Silent,
    Garbage,
    BeforeHello,
    SecondHello,
    PublishOnControl,
    ControlCut,
    ControlEnds,
    ControlEndsWithFrame,
    PublishFirst,
    ChannelGarbage,
    ChannelCut,
    UniStream,
    SendsDatagram,
    WrongCluster,
    WrongVersion,
    Nobody,
    NotGranted,
    OtherProducer,
    /// Subscribes and unsubscribes for ever and reads nothing.
    Hoards,
    /// Asks and asks and reads nothing.
    AsksAndNeverReads,
    TooManyChannels,
    DatagramsNotAgreed,
    StopsDeliveries,
    BadName,
    OwnStreamsRefused,
}

const WAYS: &[Way] = &[
    Way::Silent,
    Way::Garbage,
    Way::BeforeHello,
    Way::SecondHello,
    Way::PublishOnControl,
    Way::ControlCut,
    Way::ControlEnds,
    Way::ControlEndsWithFrame,
    Way::PublishFirst,
    Way::ChannelGarbage,
    Way::ChannelCut,
    Way::UniStream,
    Way::SendsDatagram,
    Way::WrongCluster,
    Way::WrongVersion,
    Way::Nobody,
    Way::NotGranted,
    Way::OtherProducer,
    Way::Hoards,
    Way::AsksAndNeverReads,
    Way::TooManyChannels,
    Way::DatagramsNotAgreed,
    Way::StopsDeliveries,
    Way::BadName,
    Way::OwnStreamsRefused,
];

/// Channels that `TooManyChannels` opens; the plan allows fewer.
const CHANNELS: u64 = 16;

pub struct Rogue {
    pub id: usize,
    way: Way,
    pub conn: Option<usize>,
    deadline: u64,
    readers: BTreeMap<u64, FrameStream>,
    /// Streams on which a frame, an end or a reset came.
    heard: BTreeSet<u64>,
    /// Streams that the broker opened and ended.
    ended: BTreeSet<u64>,
    errors: Vec<(u32, E)>,
    refusals: Vec<E>,
    turns: u32,
    greeted: bool,
}

impl Rogue {
    pub fn new(ctx: &mut Ctx<'_>, id: usize) -> Rogue {
        ctx.sim.at(MS, Ev::Client(id));
        Rogue {
            id,
            way: Way::Silent,
            conn: None,
            deadline: 0,
            readers: BTreeMap::new(),
            heard: BTreeSet::new(),
            ended: BTreeSet::new(),
            errors: Vec::new(),
            refusals: Vec::new(),
            turns: 0,
            greeted: false,
        }
    }

    pub fn principal(&self) -> Option<Principal> {
        match self.way {
            Way::Nobody => None,
            Way::NotGranted => Some(Principal::named("stranger").expect("a name")),
            _ => Some(Principal::admin()),
        }
    }

    pub fn act(&mut self, ctx: &mut Ctx<'_>) {
        match self.conn {
            None if !ctx.sim.healed => {
                self.way = ctx.sim.rng.pick(WAYS);
                let core = ctx.sim.rng.below(ctx.sim.plan.cores as u64) as usize;
                let net = ctx.sim.plan.net(&mut ctx.sim.rng);
                let conn = ctx.sim.connect(self.id, core, net);
                ctx.sim.client_open(conn);
                self.conn = Some(conn);
                self.deadline = ctx.sim.now + 150 * MS;
                self.readers.clear();
                self.heard.clear();
                self.ended.clear();
                self.errors.clear();
                self.refusals.clear();
                self.turns = 0;
                self.greeted = false;
            }
            None => {}
            Some(conn) => {
                self.turns += u32::from(self.greeted);
                if self.greeted {
                    self.go_on(ctx, conn);
                }
                if ctx.sim.now >= self.deadline {
                    // What follows on a channel that was refused is not read: it closes nothing.
                    let refused = self.errors.iter().any(|it| matches!(it.1, E::NotFound | E::StreamGone));
                    let lives = self.closes().is_empty() || refused;
                    ctx.model.expect(lives, || format!("rogue {:?} on conn {conn} was not closed", self.way));
                    self.check_answers(ctx);
                    ctx.sim.client_end(conn, true);
                    self.conn = None;
                }
            }
        }
        let pause = ctx.sim.rng.range(MS / 2, 4 * MS);
        ctx.sim.at(pause, Ev::Client(self.id));
    }

    fn stream_name(&self, ctx: &Ctx<'_>) -> StreamName {
        StreamName::parse(&ctx.sim.plan.streams[0].name).expect("our own name")
    }

    fn subscribe(&self, ctx: &mut Ctx<'_>, conn: usize, id: u32, mode: DeliveryMode, start: Start) {
        let subscribe = Subscribe {
            stream_name: self.stream_name(ctx),
            stream: None,
            shard_index: ShardIndex(0),
            start,
            policy: SlowPolicy::Block,
            mode,
            credit_bytes: None,
            filter: String::new(),
        };
        send(ctx, conn, 0, id, Frame::Subscribe(subscribe));
    }

    fn open(&self, ctx: &mut Ctx<'_>, conn: usize) -> u64 {
        let stream = ctx.sim.client_open(conn);
        let open = OpenChannel {
            stream_name: self.stream_name(ctx),
            stream: None,
            shard_index: ShardIndex(0),
            flags: CHANNEL_ACKS,
            producer: ProducerId(0),
            producer_epoch: ProducerEpoch(0),
        };
        send(ctx, conn, stream, 0, Frame::OpenChannel(open));
        stream
    }

    pub fn on_connected(&mut self, ctx: &mut Ctx<'_>, conn: usize) {
        if self.conn != Some(conn) {
            return;
        }
        self.greeted = true;
        let mut hello =
            Hello { version_min: 1, version_max: 1, features: 0, cluster: None, client_name: "rogue", token: &[] };
        match self.way {
            Way::Silent => return,
            Way::BeforeHello => return send(ctx, conn, 0, 1, Frame::GetProducer),
            Way::Garbage => {
                let bytes: Vec<u8> = (0..200).map(|_| ctx.sim.rng.next() as u8).collect();
                return ctx.sim.client_send(conn, 0, &bytes, false);
            }
            Way::WrongCluster => hello.cluster = Some(ClusterId(99)),
            Way::WrongVersion => (hello.version_min, hello.version_max) = (7, 9),
            Way::TooManyChannels if ctx.sim.rng.chance(500) => {
                (0..CHANNELS).for_each(|_| {
                    self.open(ctx, conn);
                });
            }
            _ => {}
        }
        send(ctx, conn, 0, 0, Frame::Hello(hello.clone()));
        match self.way {
            Way::SecondHello => send(ctx, conn, 0, 0, Frame::Hello(hello)),
            Way::PublishOnControl => send(ctx, conn, 0, 0, Frame::Publish { body: &[1, 2, 3] }),
            Way::ControlCut => ctx.sim.client_send(conn, 0, &[40, 0, 0, 0, 1, 10, 0], true),
            Way::ControlEnds => ctx.sim.client_send(conn, 0, &[], true),
            Way::ControlEndsWithFrame => {
                let mut bytes = Vec::new();
                Frame::GetStats { after: None }.encode(5, &mut bytes);
                ctx.sim.client_send(conn, 0, &bytes, true);
            }
            Way::PublishFirst => {
                let stream = ctx.sim.client_open(conn);
                send(ctx, conn, stream, 0, Frame::Publish { body: &[0; 70] });
            }
            Way::ChannelGarbage => {
                let stream = self.open(ctx, conn);
                let bytes: Vec<u8> = (0..100).map(|_| ctx.sim.rng.next() as u8).collect();
                ctx.sim.client_send(conn, stream, &bytes, false);
            }
            Way::ChannelCut => {
                let stream = self.open(ctx, conn);
                ctx.sim.client_send(conn, stream, &[99, 0, 0, 0, 1, 22, 0], true);
            }
            Way::UniStream => ctx.sim.client_send(conn, 2, &[1], false),
            Way::SendsDatagram => ctx.sim.at(MS, Ev::UpDatagram { conn }),
            Way::NotGranted => {
                self.subscribe(ctx, conn, 3, DeliveryMode::Shared, Start::Earliest);
                self.open(ctx, conn);
            }
            Way::OtherProducer => {
                let stream = self.open(ctx, conn);
                let mut builder = BatchBuilder::new();
                builder.push(&RecordToPublish { value: b"not mine", ..RecordToPublish::default() }).expect("small");
                let mut body = Vec::new();
                let producer = ProducerId(1 + ctx.sim.rng.below(1 << 33));
                let stamp = ProducerStamp { producer, epoch: ProducerEpoch(9), base_sequence: Sequence(0) };
                builder.finish(stamp, &mut body);
                send(ctx, conn, stream, 0, Frame::Publish { body: &body });
            }
            Way::TooManyChannels if ctx.sim.conns[conn].next_bidi < 40 => {
                (0..CHANNELS).for_each(|_| {
                    self.open(ctx, conn);
                });
            }
            Way::DatagramsNotAgreed => {
                self.subscribe(ctx, conn, 3, DeliveryMode::DatagramOrStream, Start::Earliest);
            }
            Way::StopsDeliveries => self.subscribe(ctx, conn, 3, DeliveryMode::Shared, Start::Earliest),
            Way::BadName => {
                // GetRoute of a name with a capital in its tenant: refused, and the connection lives.
                let mut bytes = Vec::new();
                Frame::GetRoute { stream_name: self.stream_name(ctx) }.encode(8, &mut bytes);
                bytes[18] = b'T';
                ctx.sim.client_send(conn, 0, &bytes, false);
            }
            _ => {}
        }
    }

    fn go_on(&mut self, ctx: &mut Ctx<'_>, conn: usize) {
        match self.way {
            Way::Hoards if self.turns < 200 => {
                for at in 0..20 {
                    let mode = ctx.sim.rng.pick(&[DeliveryMode::Shared, DeliveryMode::Own]);
                    let id = self.turns * 20 + at;
                    self.subscribe(ctx, conn, id, mode, Start::Latest);
                    send(ctx, conn, 0, id, Frame::Unsubscribe);
                }
            }
            Way::AsksAndNeverReads if self.turns < 200 => {
                for at in 0..20 {
                    let stream_name = self.stream_name(ctx);
                    send(ctx, conn, 0, self.turns * 20 + at, Frame::GetRoute { stream_name });
                }
            }
            Way::OwnStreamsRefused if self.turns < 30 => {
                for at in 0..2 {
                    let start = Start::Position(felix_protocol::position::Position {
                        lineage: felix_protocol::position::Lineage(0),
                        offset: felix_protocol::position::Offset(1 << 41),
                    });
                    self.subscribe(ctx, conn, self.turns * 20 + at, DeliveryMode::Own, start);
                }
            }
            Way::StopsDeliveries if self.turns == 3 => {
                let after = ctx.sim.conns[conn].net.delay;
                ctx.sim.at(after, Ev::Stop { conn, stream: 3, up: false });
            }
            _ => {}
        }
    }

    /// Codes of which one must close the connection; none: it must live.
    fn closes(&self) -> &'static [E] {
        match self.way {
            Way::Silent | Way::BeforeHello => &[E::HandshakeRequired],
            Way::Garbage | Way::ChannelGarbage => &[
                E::MalformedFrame,
                E::FrameTooLarge,
                E::UnsupportedVersion,
                E::UnknownMandatoryField,
                E::UnexpectedFrame,
                E::HandshakeRequired,
            ],
            Way::SecondHello | Way::UniStream | Way::SendsDatagram => &[E::UnexpectedFrame],
            Way::PublishOnControl | Way::PublishFirst => &[E::NoChannel],
            Way::ControlCut | Way::ChannelCut => &[E::MalformedFrame],
            Way::ControlEnds | Way::ControlEndsWithFrame => &[E::NoError],
            Way::WrongCluster => &[E::WrongCluster],
            Way::WrongVersion => &[E::UnsupportedVersion],
            Way::Nobody => &[E::Unauthenticated],
            _ => &[],
        }
    }

    fn check_answers(&mut self, ctx: &mut Ctx<'_>) {
        let way = self.way;
        let (errors, refusals) = (self.errors.clone(), self.refusals.clone());
        let has = |code| errors.iter().any(|it| it.1 == code);
        // Streams are made by client 0 over the wire: a rogue may be too early for them.
        let early = has(E::NotFound) || has(E::StreamGone);
        let right = match way {
            Way::NotGranted => errors.iter().filter(|it| it.1 == E::PermissionDenied).count() == 2,
            Way::OtherProducer => early || refusals == [E::InvalidBatch],
            Way::DatagramsNotAgreed => early || has(E::NotSupported),
            Way::BadName => has(E::InvalidName),
            // Each channel is answered or reset.
            Way::TooManyChannels => (1..=CHANNELS).all(|at| self.heard.contains(&(4 * at))),
            _ => true,
        };
        ctx.model.expect(right, || {
            format!("rogue {way:?}: errors {errors:?}, refusals {refusals:?}, heard {:?}", self.heard)
        });
        if way == Way::OwnStreamsRefused && !errors.is_empty() {
            let (refused, ended) = (errors.len(), self.ended.len());
            let enough = ended + 3 >= refused.min(ctx.sim.conns[self.conn.unwrap_or(0)].net.uni_max as usize) || early;
            ctx.model.expect(enough, || format!("{refused} own subscriptions were refused, {ended} streams ended"));
        }
    }

    pub fn on_closed(&mut self, ctx: &mut Ctx<'_>, conn: usize, code: Option<u16>) {
        if self.conn != Some(conn) {
            return;
        }
        let code = E::from_number(code.unwrap_or(0));
        let right = self.closes().contains(&code);
        ctx.model.expect(right, || format!("rogue {:?} on conn {conn} was closed with {code}", self.way));
        ctx.sim.cover.rogues_closed += 1;
        ctx.sim.cover.hello_timeouts += u64::from(self.way == Way::Silent);
        ctx.sim.client_end(conn, true);
        self.conn = None;
    }

    pub fn read(&mut self, ctx: &mut Ctx<'_>, conn: usize, stream: u64) {
        if self.conn != Some(conn) || (self.way == Way::Hoards && stream != 0) || self.way == Way::AsksAndNeverReads {
            return;
        }
        while let Some((bytes, fin)) = ctx.sim.client_read(conn, stream) {
            self.heard.insert(stream);
            let reader = self.readers.entry(stream).or_default();
            reader.push(&bytes);
            while let Ok(Some(frame)) = reader.next_frame() {
                match Frame::decode(frame) {
                    Ok((envelope, Frame::Error(error))) => self.errors.push((envelope.request_id, error.code)),
                    Ok((_, Frame::PublishRefused(refused))) => self.refusals.push(refused.code),
                    Ok(_) => {}
                    Err(error) => return ctx.model.fail(|| format!("rogue {}: a bad frame: {error}", self.id)),
                }
            }
            if fin {
                self.ended.insert(stream);
            }
        }
    }

    pub fn on_end(&mut self, stream: u64) {
        self.heard.insert(stream);
    }
}
