//! Frames: every type, several variants.

use crate::documents::stream_name;
use crate::{batches, documents, stored};
use felix_protocol::codec::Writer;
use felix_protocol::envelope::{FLAG_ROUTED, FrameType, TLV_TRACEPARENT, write_frame};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::*;
use felix_protocol::ids::*;
use felix_protocol::metadata::Durability;
use felix_protocol::position::{Epoch, Lineage, Offset, OffsetRange, Position};
use felix_protocol::time::Timestamp;
use felix_protocol::version::feature;

const TIME: Timestamp = Timestamp(1_700_000_000_000_000_000);

fn subscribe() -> Subscribe {
    Subscribe {
        stream_name: stream_name("acme/md/quotes"),
        stream: None,
        shard_index: ShardIndex(0),
        start: Start::Earliest,
        policy: SlowPolicy::Block,
        mode: DeliveryMode::Shared,
        credit_bytes: None,
        filter: String::new(),
    }
}

fn shard(index: u64) -> ShardRoute {
    ShardRoute {
        shard: ShardId(900 + index),
        range_start: index << 62,
        core: CoreId(index as u8),
        epoch: Epoch(4),
        lineage: Lineage(3),
    }
}

fn handshake() -> Vec<(&'static str, u32, Frame<'static>)> {
    vec![
        (
            "hello-small",
            1,
            Frame::Hello(Hello {
                version_min: 1,
                version_max: 1,
                features: 0,
                cluster: None,
                client_name: "",
                token: b"",
            }),
        ),
        (
            "hello-full",
            1,
            Frame::Hello(Hello {
                version_min: 1,
                version_max: 9,
                features: u64::MAX,
                cluster: Some(ClusterId(0x1011_1213_1415_1617_1819_1a1b_1c1d_1e1f)),
                client_name: "felix-cli/0.1 \u{e9}",
                token: b"eyJhbGciOiJFZERTQSJ9.e30.c2ln",
            }),
        ),
        (
            "welcome",
            1,
            Frame::Welcome(Welcome {
                version: 1,
                core: CoreId(3),
                core_count: 4,
                features: feature::ALL,
                cluster: ClusterId(1),
                node: NodeId(2),
                session: NodeSession(3),
                routing_version: 4,
                time: TIME,
                channels_max: 256,
                subscriptions_max: 1_024,
                requests_max: 64,
                region: "eu-1".into(),
                principal: "acme/alice".into(),
            }),
        ),
        (
            "error",
            9,
            Frame::Error(ErrorFrame {
                code: ErrorCode::Overloaded,
                retry_after_ms: 250,
                detail: "the core's memory for batches is used up".into(),
            }),
        ),
        (
            "error-unknown-code",
            0,
            Frame::Error(ErrorFrame { code: ErrorCode::Unknown(60_000), retry_after_ms: 0, detail: String::new() }),
        ),
        ("goaway", 0, Frame::Goaway(Goaway { code: ErrorCode::Draining, drain_ms: 10_000, detail: "upgrade".into() })),
        ("get-route", 5, Frame::GetRoute { stream_name: stream_name("acme/md/quotes") }),
        (
            "route",
            5,
            Frame::Route(Route {
                routing_version: 17,
                stream: StreamId(7),
                batch_bytes_max: 1_024_000,
                shards: vec![shard(0)],
            }),
        ),
        (
            "route-four",
            5,
            Frame::Route(Route {
                routing_version: 17,
                stream: StreamId(7),
                batch_bytes_max: 65_536,
                shards: (0..4).map(shard).collect(),
            }),
        ),
        ("route-changed", 0, Frame::RouteChanged { routing_version: 18 }),
    ]
}

fn publishing() -> Vec<(&'static str, u32, Frame<'static>)> {
    let ack = |base_offsets: Vec<Offset>| PublishAck {
        lineage: Lineage(3),
        epoch: Epoch(4),
        durability: Durability::Group,
        through: Sequence(40),
        base_offsets,
    };
    vec![
        (
            "open-channel",
            1,
            Frame::OpenChannel(OpenChannel {
                stream_name: stream_name("acme/md/quotes"),
                stream: None,
                shard_index: ShardIndex(0),
                flags: CHANNEL_ACKS,
                producer: ProducerId(0),
                producer_epoch: ProducerEpoch(0),
            }),
        ),
        (
            "open-channel-producer",
            1,
            Frame::OpenChannel(OpenChannel {
                stream_name: stream_name("acme/md/quotes"),
                stream: Some(StreamId(7)),
                shard_index: ShardIndex(1_023),
                flags: CHANNEL_ACKS | CHANNEL_KEYED,
                producer: ProducerId(77),
                producer_epoch: ProducerEpoch(2),
            }),
        ),
        (
            "channel-opened",
            1,
            Frame::ChannelOpened(ChannelOpened {
                stream: StreamId(7),
                shard: ShardId(900),
                lineage: Lineage(3),
                epoch: Epoch(4),
                next_sequence: Sequence(5),
                batch_bytes_max: 1_024_000,
            }),
        ),
        ("publish", 0, Frame::Publish { body: batches::body("plain").leak() }),
        ("publish-ack", 0, Frame::PublishAck(ack(vec![Offset(1_000), Offset(1_003), Offset(u64::MAX)]))),
        ("publish-ack-none", 0, Frame::PublishAck(ack(vec![]))),
        (
            "publish-refused",
            0,
            Frame::PublishRefused(PublishRefused {
                base_sequence: Sequence(12),
                code: ErrorCode::WrongShard,
                retry_after_ms: 0,
                detail: "record 3".into(),
            }),
        ),
        ("get-producer", 6, Frame::GetProducer),
        ("producer", 6, Frame::Producer { producer: ProducerId(77), epoch: ProducerEpoch(0) }),
    ]
}

fn subscribing() -> Vec<(&'static str, u32, Frame<'static>)> {
    let covered = OffsetRange { from: Offset(1_000), to: Offset(1_003) };
    vec![
        ("subscribe-earliest", 42, Frame::Subscribe(subscribe())),
        (
            "subscribe-latest",
            43,
            Frame::Subscribe(Subscribe {
                start: Start::Latest,
                policy: SlowPolicy::DropOldest,
                mode: DeliveryMode::DatagramOrGap,
                credit_bytes: Some(0),
                ..subscribe()
            }),
        ),
        (
            "subscribe-position",
            44,
            Frame::Subscribe(Subscribe {
                stream: Some(StreamId(7)),
                shard_index: ShardIndex(3),
                start: Start::Position(Position { lineage: Lineage(3), offset: Offset(1_001) }),
                policy: SlowPolicy::Disconnect,
                mode: DeliveryMode::Own,
                credit_bytes: Some(1 << 20),
                filter: "XNAS.*.trade".into(),
                ..subscribe()
            }),
        ),
        (
            "subscribe-time",
            u32::MAX,
            Frame::Subscribe(Subscribe {
                start: Start::Time(TIME),
                mode: DeliveryMode::DatagramOrStream,
                filter: ">".into(),
                ..subscribe()
            }),
        ),
        (
            "subscribed",
            44,
            Frame::Subscribed(Subscribed {
                stream: StreamId(7),
                shard: ShardId(900),
                lineage: Lineage(3),
                epoch: Epoch(4),
                start: Offset(1_001),
                high_watermark: Offset(2_000),
            }),
        ),
        (
            "deliver-batch",
            44,
            Frame::Deliver(Deliver { number: 0, covered, delivery: Delivery::Batch(batches::batch("plain").leak()) }),
        ),
        ("deliver-gap", 44, Frame::Deliver(Deliver { number: 1, covered, delivery: Delivery::Gap })),
        ("deliver-progress", 44, Frame::Deliver(Deliver { number: 2, covered, delivery: Delivery::Progress })),
        ("credit", 44, Frame::Credit { total_bytes: 1 << 21 }),
        ("unsubscribe", 44, Frame::Unsubscribe),
        (
            "subscription-closed",
            44,
            Frame::SubscriptionClosed(SubscriptionClosed {
                code: ErrorCode::SlowConsumer,
                next: Position { lineage: Lineage(3), offset: Offset(1_500) },
                detail: "500 records behind".into(),
            }),
        ),
    ]
}

fn stats() -> Vec<(&'static str, u32, Frame<'static>)> {
    let row = |name: &str| StreamStats {
        name: stream_name(name),
        records_in: 1,
        bytes_in: 2,
        records_out: 3,
        bytes_out: 4,
        subscriptions: 5,
        lag_records_max: 6,
        gap_records: 7,
        retained_bytes: 8,
    };
    vec![
        ("get-stats", 8, Frame::GetStats { after: None }),
        ("get-stats-after", 8, Frame::GetStats { after: Some(stream_name("acme/md/quotes")) }),
        ("stats-none", 8, Frame::Stats(Stats::default())),
        (
            "stats",
            8,
            Frame::Stats(Stats {
                uptime_ms: 9,
                connections: 10,
                streams: vec![row("acme/md/quotes"), row("acme/md/trades")],
                more: true,
            }),
        ),
    ]
}

fn cases() -> Vec<(String, u32, Frame<'static>)> {
    let own = [handshake(), publishing(), subscribing(), stats()].into_iter().flatten();
    own.map(|(name, id, frame)| (name.to_string(), id, frame)).chain(documents::frames()).collect()
}

/// Legal frames that this build does not write: a route, TLVs, optional flags.
fn foreign() -> Vec<(&'static str, Vec<u8>)> {
    let mut routed = Vec::new();
    write_frame(&mut routed, FrameType::Credit, 0, 44, Some((StreamId(7), ShardId(900))), |out| out.put_u64(5));

    let with_tlvs = |routed: bool| {
        let mut tlvs = Vec::new();
        tlvs.put_u16(TLV_TRACEPARENT);
        tlvs.put_bytes16(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        tlvs.put_u16(0x7fff);
        tlvs.put_bytes16(b"");
        let mut out = Vec::new();
        out.put_u32((16 + if routed { 16 } else { 0 } + tlvs.len() + 8) as u32);
        out.put_u8(1);
        out.put_u8(FrameType::Credit as u8);
        out.put_u16(0xff00 | if routed { FLAG_ROUTED } else { 0 });
        out.put_u32(44);
        out.put_u16(tlvs.len() as u16);
        out.put_u16(0);
        if routed {
            out.put_u64(7);
            out.put_u64(900);
        }
        out.put(&tlvs);
        out.put_u64(5);
        out
    };
    vec![("foreign-routed", routed), ("foreign-tlvs", with_tlvs(false)), ("foreign-routed-tlvs", with_tlvs(true))]
}

pub fn names() -> Vec<String> {
    let foreign = foreign().into_iter().map(|(name, _)| name.to_string());
    cases().into_iter().map(|(name, ..)| name).chain(foreign).collect()
}

/// Bytes of a case, for damaged twins.
pub fn bytes(name: &str) -> Vec<u8> {
    let (_, id, frame) = cases().into_iter().find(|(it, ..)| it == name).expect("a case of this name");
    let mut out = Vec::new();
    frame.encode(id, &mut out);
    out
}

#[test]
fn frames_are_read_and_written() {
    for (name, id, frame) in cases() {
        let mut made = Vec::new();
        frame.encode(id, &mut made);
        let stored = stored(&name, &made);
        assert_eq!(made, stored, "{name} is written differently");
        let (envelope, read) = Frame::decode(&stored).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(read, frame, "{name} is read differently");
        assert_eq!((envelope.frame_type, envelope.request_id), (frame.frame_type(), id), "{name}");
        assert_eq!((envelope.flags, envelope.route), (0, None), "{name}");
    }
}

#[test]
fn every_frame_type_has_a_file() {
    let cases = cases();
    for frame_type in FrameType::ALL {
        assert!(cases.iter().any(|(.., frame)| frame.frame_type() == *frame_type), "{frame_type:?}");
    }
}

#[test]
fn foreign_frames_are_read() {
    for (name, made) in foreign() {
        let stored = stored(name, &made);
        assert_eq!(made, stored, "{name}");
        let (envelope, frame) = Frame::decode(&stored).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(frame, Frame::Credit { total_bytes: 5 }, "{name}");
        let route = name.contains("routed").then_some((StreamId(7), ShardId(900)));
        assert_eq!((envelope.request_id, envelope.route), (44, route), "{name}");
    }
}
