//! Values of every type, at random.

use felix_protocol::batch::Compression;
use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::*;
use felix_protocol::ids::*;
use felix_protocol::limits::*;
use felix_protocol::metadata::*;
use felix_protocol::names::{NamespaceName, StreamName};
use felix_protocol::position::{Epoch, Lineage, Offset, OffsetRange, Position};
use felix_protocol::time::Timestamp;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

pub fn label() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?"
}

pub fn namespace_name() -> impl Strategy<Value = NamespaceName> {
    (label(), label()).prop_map(|(tenant, namespace)| NamespaceName::new(&tenant, &namespace).unwrap())
}

pub fn stream_name() -> impl Strategy<Value = StreamName> {
    (label(), label(), "[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
        .prop_map(|(tenant, namespace, stream)| StreamName::new(&tenant, &namespace, &stream).unwrap())
}

fn bytes(max: usize) -> impl Strategy<Value = &'static [u8]> {
    vec(any::<u8>(), 0..max).prop_map(|bytes| &*bytes.leak())
}

fn text(max_chars: usize) -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..max_chars).prop_map(|chars| chars.into_iter().collect())
}

/// Known codes and numbers without a name.
fn code() -> impl Strategy<Value = ErrorCode> {
    any::<u16>().prop_map(ErrorCode::from_number)
}

fn durability() -> impl Strategy<Value = Durability> {
    (0u8..5).prop_map(|number| Durability::from_number(number).unwrap())
}

fn id() -> impl Strategy<Value = u64> {
    prop_oneof![1..100u64, any::<u64>().prop_map(|it| it.max(1))]
}

fn handshake() -> impl Strategy<Value = Frame<'static>> {
    let hello = (any::<(u8, u8, u64)>(), option::of(1..u128::MAX), text(32), bytes(300)).prop_map(
        |((version_min, version_max, features), cluster, name, token)| {
            Frame::Hello(Hello {
                version_min,
                version_max,
                features,
                cluster: cluster.map(ClusterId),
                client_name: name.leak(),
                token,
            })
        },
    );
    let welcome = (1..=CORES_MAX, any::<(u8, u64, u128, u128, u64, u64, u64)>(), any::<[u32; 3]>(), text(15), text(80))
        .prop_map(|(core_count, (core, features, cluster, node, session, routing_version, time), max, region, who)| {
            Frame::Welcome(Welcome {
                version: 1,
                core: CoreId(core % core_count),
                core_count,
                features,
                cluster: ClusterId(cluster),
                node: NodeId(node),
                session: NodeSession(session),
                routing_version,
                time: Timestamp(time),
                channels_max: max[0],
                subscriptions_max: max[1],
                requests_max: max[2],
                region,
                principal: who,
            })
        });
    let error = (code(), any::<u32>(), text(200))
        .prop_map(|(code, retry_after_ms, detail)| Frame::Error(ErrorFrame { code, retry_after_ms, detail }));
    let goaway = (code(), any::<u32>(), text(200))
        .prop_map(|(code, drain_ms, detail)| Frame::Goaway(Goaway { code, drain_ms, detail }));
    let route = (any::<(u64, u64, u32)>(), vec(any::<(u64, u64, u8, u64, u32)>(), 1..40)).prop_map(
        |((routing_version, stream, batch_bytes_max), mut rows)| {
            rows.sort_by_key(|row| row.1);
            rows.dedup_by_key(|row| row.1);
            rows[0].1 = 0;
            let shards = rows.into_iter().map(|(shard, range_start, core, epoch, lineage)| ShardRoute {
                shard: ShardId(shard),
                range_start,
                core: CoreId(core),
                epoch: Epoch(epoch),
                lineage: Lineage(lineage),
            });
            Frame::Route(Route { routing_version, stream: StreamId(stream), batch_bytes_max, shards: shards.collect() })
        },
    );
    prop_oneof![
        hello,
        welcome,
        error,
        goaway,
        route,
        stream_name().prop_map(|stream_name| Frame::GetRoute { stream_name }),
        any::<u64>().prop_map(|routing_version| Frame::RouteChanged { routing_version }),
    ]
}

fn publishing() -> impl Strategy<Value = Frame<'static>> {
    let open = (stream_name(), option::of(id()), any::<(u32, u64, u32)>(), 0u8..4).prop_map(
        |(stream_name, stream, (shard, producer, epoch), flags)| {
            Frame::OpenChannel(OpenChannel {
                stream_name,
                stream: stream.map(StreamId),
                shard_index: ShardIndex(shard),
                flags,
                producer: ProducerId(producer),
                producer_epoch: ProducerEpoch(epoch),
            })
        },
    );
    let opened = any::<(u64, u64, u32, u64, u64, u32)>().prop_map(|(stream, shard, lineage, epoch, next, max)| {
        Frame::ChannelOpened(ChannelOpened {
            stream: StreamId(stream),
            shard: ShardId(shard),
            lineage: Lineage(lineage),
            epoch: Epoch(epoch),
            next_sequence: Sequence(next),
            batch_bytes_max: max,
        })
    });
    let ack = (any::<(u32, u64, u64)>(), durability(), vec(any::<u64>(), 0..40)).prop_map(
        |((lineage, epoch, through), durability, offsets)| {
            Frame::PublishAck(PublishAck {
                lineage: Lineage(lineage),
                epoch: Epoch(epoch),
                durability,
                through: Sequence(through),
                base_offsets: offsets.into_iter().map(Offset).collect(),
            })
        },
    );
    let refused = (any::<(u64, u32)>(), code(), text(100)).prop_map(|((base, retry_after_ms), code, detail)| {
        Frame::PublishRefused(PublishRefused { base_sequence: Sequence(base), code, retry_after_ms, detail })
    });
    prop_oneof![
        open,
        opened,
        ack,
        refused,
        bytes(400).prop_map(|body| Frame::Publish { body }),
        Just(Frame::GetProducer),
        any::<(u64, u32)>().prop_map(|(producer, epoch)| Frame::Producer {
            producer: ProducerId(producer),
            epoch: ProducerEpoch(epoch)
        }),
    ]
}

fn start() -> impl Strategy<Value = Start> {
    prop_oneof![
        Just(Start::Earliest),
        Just(Start::Latest),
        any::<(u32, u64)>().prop_map(|(lineage, offset)| Start::Position(Position {
            lineage: Lineage(lineage),
            offset: Offset(offset)
        })),
        any::<u64>().prop_map(|time| Start::Time(Timestamp(time))),
    ]
}

fn subscribing() -> impl Strategy<Value = Frame<'static>> {
    let subscribe = (
        (stream_name(), option::of(id()), any::<u32>(), start()),
        (
            prop::sample::select(&[SlowPolicy::Block, SlowPolicy::DropOldest, SlowPolicy::Disconnect][..]),
            prop::sample::select(
                &[DeliveryMode::Shared, DeliveryMode::Own, DeliveryMode::DatagramOrStream, DeliveryMode::DatagramOrGap]
                    [..],
            ),
            option::of(any::<u64>()),
            text(60),
        ),
    )
        .prop_map(|((stream_name, stream, shard, start), (policy, mode, credit_bytes, filter))| {
            Frame::Subscribe(Subscribe {
                stream_name,
                stream: stream.map(StreamId),
                shard_index: ShardIndex(shard),
                start,
                policy,
                mode,
                credit_bytes,
                filter,
            })
        });
    let subscribed = any::<(u64, u64, u32, u64, u64, u64)>().prop_map(|(stream, shard, lineage, epoch, start, end)| {
        Frame::Subscribed(Subscribed {
            stream: StreamId(stream),
            shard: ShardId(shard),
            lineage: Lineage(lineage),
            epoch: Epoch(epoch),
            start: Offset(start),
            high_watermark: Offset(end),
        })
    });
    let delivery = prop_oneof![bytes(400).prop_map(Delivery::Batch), Just(Delivery::Gap), Just(Delivery::Progress)];
    let deliver = (any::<(u64, u64, u64)>(), delivery).prop_map(|((number, a, b), delivery)| {
        let covered = OffsetRange { from: Offset(a.min(b)), to: Offset(a.max(b)) };
        Frame::Deliver(Deliver { number, covered, delivery })
    });
    let closed = (code(), any::<(u32, u64)>(), text(100)).prop_map(|(code, (lineage, offset), detail)| {
        let next = Position { lineage: Lineage(lineage), offset: Offset(offset) };
        Frame::SubscriptionClosed(SubscriptionClosed { code, next, detail })
    });
    prop_oneof![
        subscribe,
        subscribed,
        deliver,
        closed,
        any::<u64>().prop_map(|total_bytes| Frame::Credit { total_bytes }),
        Just(Frame::Unsubscribe),
    ]
}

fn limits() -> impl Strategy<Value = TenantLimits> {
    any::<(u32, u32, u64)>().prop_map(|(streams_max, shards_max, retained_bytes_max)| TenantLimits {
        streams_max,
        shards_max,
        retained_bytes_max,
    })
}

fn spec() -> impl Strategy<Value = StreamSpec> {
    (1..=SHARDS_MAX, durability(), any::<(u64, Option<u64>, u32)>(), any::<(u32, bool, u64, bool)>()).prop_map(
        |(
            shards,
            durability,
            (retention_bytes, retention_age_ms, batch_bytes_max),
            (interval_ms, compact, tombstone_grace_ms, encrypt),
        )| StreamSpec {
            shards,
            durability,
            retention_bytes,
            retention_age_ms,
            batch_bytes_max,
            interval_ms,
            compact,
            tombstone_grace_ms,
            encrypt,
        },
    )
}

pub fn command() -> impl Strategy<Value = Command> {
    let changes = any::<(Option<u64>, Option<Option<u64>>, Option<u32>)>().prop_map(
        |(retention_bytes, retention_age_ms, batch_bytes_max)| StreamChanges {
            retention_bytes,
            retention_age_ms,
            batch_bytes_max,
        },
    );
    prop_oneof![
        (label(), limits()).prop_map(|(tenant, limits)| Command::CreateTenant { tenant, limits }),
        label().prop_map(|tenant| Command::DeleteTenant { tenant }),
        option::of(label()).prop_map(|after| Command::ListTenants { after }),
        namespace_name().prop_map(|name| Command::CreateNamespace { name }),
        namespace_name().prop_map(|name| Command::DeleteNamespace { name }),
        (label(), option::of(label())).prop_map(|(tenant, after)| Command::ListNamespaces { tenant, after }),
        (stream_name(), spec(), any::<bool>()).prop_map(|(name, spec, create_parents)| Command::CreateStream {
            name,
            spec,
            create_parents
        }),
        (stream_name(), changes, option::of(any::<u64>()))
            .prop_map(|(name, changes, if_version)| Command::AlterStream { name, changes, if_version }),
        stream_name().prop_map(|name| Command::DeleteStream { name }),
        stream_name().prop_map(|name| Command::DescribeStream { name }),
        (option::of(label()), option::of(label()), option::of(stream_name()))
            .prop_map(|(tenant, namespace, after)| Command::ListStreams { tenant, namespace, after }),
    ]
}

fn info() -> impl Strategy<Value = StreamInfo> {
    (stream_name(), spec(), any::<(u64, u64, u64)>()).prop_map(|(name, spec, (id, version, created))| StreamInfo {
        id: StreamId(id),
        name,
        spec,
        version,
        created: Timestamp(created),
    })
}

pub fn reply() -> impl Strategy<Value = Reply> {
    let status = any::<(u32, u64, u8, u32, u64, u64, u64, u64)>().prop_map(
        |(index, shard, core, lineage, epoch, log_start, high_watermark, retained_bytes)| ShardStatus {
            index: ShardIndex(index),
            shard: ShardId(shard),
            core: CoreId(core),
            lineage: Lineage(lineage),
            epoch: Epoch(epoch),
            log_start: Offset(log_start),
            high_watermark: Offset(high_watermark),
            retained_bytes,
        },
    );
    let tenant =
        (label(), limits(), any::<u32>()).prop_map(|(name, limits, streams)| TenantInfo { name, limits, streams });
    prop_oneof![
        any::<u64>().prop_map(|version| Reply::Done { version }),
        (any::<u64>(), info()).prop_map(|(version, stream)| Reply::StreamDone { version, stream }),
        (info(), vec(status, 0..20)).prop_map(|(stream, shards)| Reply::Stream { stream, shards }),
        (vec(info(), 0..8), any::<bool>()).prop_map(|(streams, more)| Reply::Streams { streams, more }),
        (vec(namespace_name(), 0..8), any::<bool>()).prop_map(|(names, more)| Reply::Namespaces { names, more }),
        (vec(tenant, 0..8), any::<bool>()).prop_map(|(tenants, more)| Reply::Tenants { tenants, more }),
    ]
}

fn admin() -> impl Strategy<Value = Frame<'static>> {
    let row = (stream_name(), any::<[u64; 7]>(), any::<u32>()).prop_map(|(name, n, subscriptions)| StreamStats {
        name,
        records_in: n[0],
        bytes_in: n[1],
        records_out: n[2],
        bytes_out: n[3],
        subscriptions,
        lag_records_max: n[4],
        gap_records: n[5],
        retained_bytes: n[6],
    });
    prop_oneof![
        (any::<u128>(), command())
            .prop_map(|(idempotency_key, command)| Frame::Admin(Admin { idempotency_key, command })),
        reply().prop_map(Frame::AdminReply),
        option::of(stream_name()).prop_map(|after| Frame::GetStats { after }),
        (any::<(u64, u32, bool)>(), vec(row, 0..10)).prop_map(|((uptime_ms, connections, more), streams)| {
            Frame::Stats(Stats { uptime_ms, connections, streams, more })
        }),
    ]
}

/// Any frame.
pub fn frame() -> impl Strategy<Value = Frame<'static>> {
    prop_oneof![handshake(), publishing(), subscribing(), admin()]
}

/// A record that owns its parts.
#[derive(Clone, Debug)]
pub struct OwnedRecord {
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub ttl_ms: Option<u64>,
    pub tombstone: bool,
    pub time: Timestamp,
}

pub fn record() -> impl Strategy<Value = OwnedRecord> {
    let kind = prop_oneof![4 => Just(false), 1 => Just(true)];
    let ttl = prop_oneof![2 => Just(None), 1 => (1..=TTL_MS_MAX).prop_map(Some)];
    let key = option::of(vec(any::<u8>(), 0..12));
    let parts = (key, vec(any::<u8>(), 0..40), vec((text(4), vec(any::<u8>(), 0..10)), 0..3), ttl, kind, any::<u64>());
    parts.prop_map(|(key, value, headers, ttl_ms, tombstone, time)| {
        let tombstone = tombstone && key.is_some();
        let value = if tombstone { Vec::new() } else { value };
        OwnedRecord { key, value, headers, ttl_ms, tombstone, time: Timestamp(time) }
    })
}

/// A body of these records, plain or with an opaque "compressed" values section.
pub fn build(records: &[OwnedRecord], stamp: ProducerStamp, compression: Compression) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for record in records {
        let headers: Vec<(&str, &[u8])> = record.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        builder
            .push(&RecordToPublish {
                key: record.key.as_deref(),
                value: &record.value,
                headers: &headers,
                ttl_ms: record.ttl_ms,
                tombstone: record.tombstone,
                time: record.time,
            })
            .unwrap();
    }
    let mut out = Vec::new();
    // Opaque: nothing here may look into it.
    let stored: Vec<u8> = builder.values().iter().step_by(2).map(|byte| byte.wrapping_add(1)).collect();
    builder.finish_with(stamp, compression, &stored, &mut out);
    out
}
