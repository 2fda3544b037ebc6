//! **What**: an engine, a clock, and a fake broker that keeps every frame it was sent and answers when told to.

use crate::ack::{AckCell, AckFuture};
use crate::config::{PublisherOptions, SubscribeOptions};
use crate::engine::{ConnKey, Effect, Engine, EngineConfig, Event, Lost, PublisherId, SteerTo, SubscriberId};
use crate::intake::Intake;
use crate::session::{CONTROL_STREAM, Identity, Output};
use felix_protocol::batch::{BatchKind, StampedHeader};
use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::batch_view::BodyView;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::*;
use felix_protocol::frame_stream::FrameStream;
use felix_protocol::ids::*;
use felix_protocol::limits::STAMPED_HEADER_BYTES;
use felix_protocol::metadata::Durability;
use felix_protocol::names::StreamName;
use felix_protocol::position::{Epoch, Lineage, Offset, OffsetRange};
use felix_protocol::routing::even_range_start;
use felix_protocol::time::{Now, Time, Timestamp};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Wall clock of the tests; the broker's is a second ahead.
pub const WALL: u64 = 1_700_000_000_000_000_000;
pub const SECOND: u64 = 1_000_000_000;
pub const MS: u64 = 1_000_000;
pub const STREAM: StreamId = StreamId(7);
pub const SHARD: u64 = 40;

/// A frame that the broker received.
#[derive(Clone, Debug)]
pub struct Got {
    pub conn: ConnKey,
    pub stream: u64,
    pub bytes: Vec<u8>,
}

impl Got {
    pub fn id(&self) -> u32 {
        Frame::decode(&self.bytes).unwrap().0.request_id
    }

    pub fn frame(&self) -> Frame<'_> {
        Frame::decode(&self.bytes).unwrap().1
    }

    /// Of a Publish: sequence and number of records.
    pub fn batch(&self) -> (u64, u32) {
        let Frame::Publish { body } = self.frame() else { panic!("{:?}", self.frame()) };
        let view = BodyView::parse(body).unwrap();
        view.check_publish().unwrap();
        (view.base_sequence.0, view.record_count)
    }

    pub fn values(&self) -> Vec<String> {
        let Frame::Publish { body } = self.frame() else { panic!("{:?}", self.frame()) };
        let view = BodyView::parse(body).unwrap();
        view.records(view.values).map(|it| String::from_utf8(it.unwrap().value.to_vec()).unwrap()).collect()
    }
}

pub struct World {
    pub engine: Engine,
    pub now: u64,
    pub connects: Vec<(ConnKey, Option<SteerTo>)>,
    pub events: Vec<Event>,
    pub closes: Vec<(ConnKey, ErrorCode)>,
    pub fins: Vec<(ConnKey, u64)>,
    got: VecDeque<Got>,
    readers: BTreeMap<(ConnKey, u64), FrameStream>,
    pub cores: u8,
}

pub fn name() -> StreamName {
    StreamName::parse("acme/md/quotes").unwrap()
}

pub fn welcome(core: u8, cores: u8) -> Welcome {
    Welcome {
        version: 1,
        core: CoreId(core),
        core_count: cores,
        features: 7,
        cluster: ClusterId(1),
        node: NodeId(2),
        session: NodeSession(3),
        routing_version: 1,
        time: Timestamp(WALL + SECOND),
        channels_max: 100,
        subscriptions_max: 100,
        requests_max: 4,
        region: "eu".into(),
        principal: "test".into(),
    }
}

pub fn route(shards: u32) -> Route {
    Route {
        routing_version: 1,
        stream: STREAM,
        batch_bytes_max: 1 << 20,
        shards: (0..shards)
            .map(|index| ShardRoute {
                shard: ShardId(SHARD + u64::from(index)),
                range_start: even_range_start(ShardIndex(index), shards),
                core: CoreId(index as u8),
                epoch: Epoch(1),
                lineage: Lineage(1),
            })
            .collect(),
    }
}

pub fn opened(next: u64, lineage: u32) -> Frame<'static> {
    Frame::ChannelOpened(ChannelOpened {
        stream: STREAM,
        shard: ShardId(SHARD),
        lineage: Lineage(lineage),
        epoch: Epoch(1),
        next_sequence: Sequence(next),
        batch_bytes_max: 1 << 20,
    })
}

pub fn ack(through: u64, offsets: &[u64]) -> Frame<'static> {
    Frame::PublishAck(PublishAck {
        lineage: Lineage(1),
        epoch: Epoch(1),
        durability: Durability::Group,
        through: Sequence(through),
        base_offsets: offsets.iter().map(|it| Offset(*it)).collect(),
    })
}

pub fn refused(base: u64, code: ErrorCode) -> Frame<'static> {
    Frame::PublishRefused(PublishRefused {
        base_sequence: Sequence(base),
        code,
        retry_after_ms: 0,
        detail: "no".into(),
    })
}

pub fn error(code: ErrorCode) -> Frame<'static> {
    Frame::Error(ErrorFrame { code, retry_after_ms: 0, detail: "no".into() })
}

pub fn subscribed(start: u64, lineage: u32) -> Frame<'static> {
    Frame::Subscribed(Subscribed {
        stream: STREAM,
        shard: ShardId(SHARD),
        lineage: Lineage(lineage),
        epoch: Epoch(1),
        start: Offset(start),
        high_watermark: Offset(start),
    })
}

/// A stamped batch of these values at an offset.
pub fn batch(base: u64, lineage: u32, values: &[&str]) -> Vec<u8> {
    let records: Vec<_> =
        values.iter().map(|it| RecordToPublish { value: it.as_bytes(), ..Default::default() }).collect();
    stamped(base, lineage, &records)
}

pub fn stamped(base: u64, lineage: u32, records: &[RecordToPublish<'_>]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for record in records {
        builder.push(record).unwrap();
    }
    let mut body = Vec::new();
    builder.finish(ProducerStamp::default(), &mut body);
    let header = StampedHeader {
        batch_bytes: (STAMPED_HEADER_BYTES + body.len()) as u32,
        kind: BatchKind::Data,
        flags: 0,
        offset_count: records.len() as u32,
        stream: STREAM,
        shard: ShardId(SHARD),
        epoch: Epoch(1),
        lineage: Lineage(lineage),
        tlv_bytes: 0,
        base_offset: Offset(base),
        append_time: Timestamp(WALL + SECOND),
        durable_end: Offset(0),
        chain: 0,
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend(body);
    bytes
}

pub fn range(from: u64, to: u64) -> OffsetRange {
    OffsetRange { from: Offset(from), to: Offset(to) }
}

pub fn deliver(number: u64, from: u64, to: u64, delivery: Delivery<'_>) -> Frame<'_> {
    Frame::Deliver(Deliver { number, covered: range(from, to), delivery })
}

impl World {
    /// An engine that has not connected.
    pub fn new(connections: usize, cores: u8) -> World {
        let engine = Engine::new(EngineConfig {
            identity: Identity { client_name: "test".into(), token: b"token".to_vec(), cluster: None },
            connections,
            receive_buffer_bytes: 4 << 20,
            request_timeout_ns: 5 * SECOND,
            seed: 1,
        });
        World {
            engine,
            now: SECOND,
            connects: Vec::new(),
            events: Vec::new(),
            closes: Vec::new(),
            fins: Vec::new(),
            got: VecDeque::new(),
            readers: BTreeMap::new(),
            cores,
        }
    }

    /// An engine whose first connection is ready, on core 0.
    pub fn ready(cores: u8) -> (World, ConnKey) {
        let mut world = World::new(1, cores);
        let conn = world.accept(0);
        (world, conn)
    }

    pub fn clock(&self) -> Now {
        Now { time: Time(self.now), wall: Timestamp(WALL + self.now - SECOND) }
    }

    /// Accepts the oldest waiting connection on a core and greets.
    pub fn accept(&mut self, core: u8) -> ConnKey {
        self.run();
        assert!(!self.connects.is_empty(), "no connection is wanted");
        let (conn, _) = self.connects.remove(0);
        self.engine.on_connected(self.clock(), conn);
        self.run();
        let hello = self.take();
        assert!(matches!(hello.frame(), Frame::Hello(_)), "{:?}", hello.frame());
        let welcome = welcome(core, self.cores);
        self.say(conn, CONTROL_STREAM, 0, &Frame::Welcome(welcome));
        conn
    }

    /// Lets time pass and everything happen.
    pub fn pass(&mut self, ns: u64) {
        self.now += ns;
        self.run();
    }

    pub fn run(&mut self) {
        let now = self.clock();
        self.engine.turn(now);
        while let Some(Effect::Connect { conn, steer, .. }) = self.engine.poll_effect() {
            self.connects.push((conn, steer));
        }
        while let Some(event) = self.engine.poll_event() {
            self.events.push(event);
        }
        let keys: Vec<ConnKey> = (1..self.engine.next_conn).map(ConnKey).collect();
        for conn in keys {
            self.drain(conn);
        }
    }

    fn drain(&mut self, conn: ConnKey) {
        loop {
            let Some(output) = self.engine.session_output(conn) else { return };
            match output {
                Output::Send { stream, bytes, fin } => {
                    let count = bytes.len();
                    let reader = self.readers.entry((conn, stream)).or_default();
                    reader.push(bytes);
                    while let Some(frame) = reader.next_frame().unwrap() {
                        self.got.push_back(Got { conn, stream, bytes: frame.to_vec() });
                    }
                    if fin {
                        self.fins.push((conn, stream));
                    }
                    self.engine.on_sent(conn, stream, count);
                }
                Output::Abandon { .. } => {}
                Output::Close { code } => self.closes.push((conn, code)),
            }
        }
    }

    /// The oldest frame that was not looked at.
    pub fn take(&mut self) -> Got {
        self.got.pop_front().expect("a frame was expected")
    }

    /// Whether a frame waits to be looked at.
    pub fn got_len(&self) -> bool {
        !self.got.is_empty()
    }

    pub fn nothing(&mut self) {
        self.run();
        let got: Vec<_> = self.got.iter().map(|it| format!("{:?}", it.frame())).collect();
        assert!(got.is_empty(), "{got:?}");
    }

    /// The broker says something on a stream.
    pub fn say(&mut self, conn: ConnKey, stream: u64, id: u32, frame: &Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(id, &mut bytes);
        self.say_bytes(conn, stream, &bytes);
    }

    pub fn say_bytes(&mut self, conn: ConnKey, stream: u64, bytes: &[u8]) {
        let now = self.clock();
        self.engine.on_stream_bytes(now, conn, stream, bytes, false);
        self.run();
    }

    pub fn say_datagram(&mut self, conn: ConnKey, id: u32, frame: &Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(id, &mut bytes);
        let now = self.clock();
        self.engine.on_datagram(now, conn, &bytes);
        self.run();
    }

    /// The connection ends.
    pub fn lose(&mut self, conn: ConnKey, why: Lost) {
        let now = self.clock();
        self.engine.on_closed(now, conn, why);
        self.run();
    }

    pub fn lost(&self) -> Vec<&Lost> {
        self.events.iter().filter_map(|it| if let Event::Lost { why, .. } = it { Some(why) } else { None }).collect()
    }
}

/// A publisher of the world's engine, with its intake.
pub struct Pub {
    pub id: PublisherId,
    pub intake: Intake,
}

impl Pub {
    pub fn new(world: &mut World, shards: u32, options: PublisherOptions) -> Pub {
        let route = Arc::new(route(shards));
        let starts = route.shards.iter().map(|it| it.range_start).collect();
        let id = world.engine.add_publisher(&name(), &route, options);
        Pub { id, intake: Intake::new(starts, None, options.in_flight_bytes_max, 1 << 20) }
    }

    /// Takes a record and lets the driver run.
    pub fn send(&mut self, world: &mut World, value: &str) -> AckFuture {
        self.send_record(world, &RecordToPublish { value: value.as_bytes(), ..Default::default() })
    }

    pub fn send_record(&mut self, world: &mut World, record: &RecordToPublish<'_>) -> AckFuture {
        let cell = Arc::new(AckCell::default());
        self.intake.push_with(Time(world.now), record, Some(cell.clone())).unwrap();
        self.pump(world);
        AckFuture { cell }
    }

    pub fn pump(&mut self, world: &mut World) {
        for _ in 0..3 {
            let now = world.clock();
            world.engine.turn(now);
            world.engine.pump(now, self.id, &mut self.intake);
            world.run();
        }
    }

    /// Lets time pass for both.
    pub fn pass(&mut self, world: &mut World, ns: u64) {
        world.pass(ns);
        self.pump(world);
    }

    /// Answers GetProducer and opens the channel that is asked for; its place.
    pub fn open(&mut self, world: &mut World, next: u64, lineage: u32) -> (ConnKey, u64) {
        self.pump(world);
        let got = world.take();
        let got = match got.frame() {
            Frame::GetProducer => {
                let producer = Frame::Producer { producer: ProducerId(9), epoch: ProducerEpoch(1) };
                world.say(got.conn, CONTROL_STREAM, got.id(), &producer);
                self.pump(world);
                world.take()
            }
            _ => got,
        };
        assert!(matches!(got.frame(), Frame::OpenChannel(_)), "{:?}", got.frame());
        world.say(got.conn, got.stream, 0, &opened(next, lineage));
        self.pump(world);
        (got.conn, got.stream)
    }
}

/// A subscriber of the world's engine.
pub fn subscribe(world: &mut World, options: &SubscribeOptions) -> SubscriberId {
    let id = world.engine.add_subscriber(&name(), &Arc::new(route(1)), options);
    world.run();
    id
}
