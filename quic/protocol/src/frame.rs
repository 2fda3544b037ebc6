//! **What**: every frame of wire version 1, one enum, with its body codec. Layouts: PROTOCOL.md, field by field in the
//! order of the structs here.
//!
//! **Invariants**: `decode(encode(x)) == x`; a body with bytes left over is refused; borrowed bytes are never copied.
//!
//! **Never**: a frame whose meaning depends on the transport that carried it.
//!
//! **See**: `envelope.rs` for what surrounds a body, `metadata.rs` for admin documents.

use crate::codec::{DecodeError, Reader, Writer};
use crate::envelope::{Envelope, FrameType, split_frame, write_frame};
use crate::error_code::ErrorCode;
use crate::ids::*;
use crate::limits::*;
use crate::metadata::{Command, Durability, Reply, put_name, read_stream_name};
use crate::names::StreamName;
use crate::position::{Epoch, Lineage, Offset, OffsetRange, Position};
use crate::time::Timestamp;

/// First frame of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Lowest wire version the client speaks.
    pub version_min: u8,
    /// Highest wire version the client speaks.
    pub version_max: u8,
    /// `version::feature` bits.
    pub features: u64,
    /// Cluster the client expects; None: any.
    pub cluster: Option<ClusterId>,
    /// For logs and metrics.
    pub client_name: &'a str,
    /// Bearer token; empty: the certificate speaks for the client.
    pub token: &'a [u8],
}

/// Answer to Hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Wire version chosen.
    pub version: u8,
    /// Core that owns this connection.
    pub core: CoreId,
    /// Cores of this broker. A connection id whose first byte is `core + k * core_count` leads to `core`.
    pub core_count: u8,
    /// Features both have.
    pub features: u64,
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Start of the node's process.
    pub session: NodeSession,
    /// Version of the routing table.
    pub routing_version: u64,
    /// Broker's clock.
    pub time: Timestamp,
    /// Publish channels a connection may have.
    pub channels_max: u32,
    /// Subscriptions a connection may have.
    pub subscriptions_max: u32,
    /// Requests a connection may have under way.
    pub requests_max: u32,
    /// Region of the cluster.
    pub region: String,
    /// Who the client is.
    pub principal: String,
}

/// A typed refusal. The envelope's request id says of what; 0 on a channel or connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorFrame {
    /// What was wrong.
    pub code: ErrorCode,
    /// When to try again, for class Retry; 0: at will.
    pub retry_after_ms: u32,
    /// For people: what was wrong and what to do.
    pub detail: String,
}

/// The broker is going away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goaway {
    /// Why.
    pub code: ErrorCode,
    /// Time left until the broker closes the connection.
    pub drain_ms: u32,
    /// For people.
    pub detail: String,
}

/// One shard in a [`Route`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardRoute {
    /// Log id.
    pub shard: ShardId,
    /// First key hash of its range.
    pub range_start: u64,
    /// Core that owns it.
    pub core: CoreId,
    /// Leader generation.
    pub epoch: Epoch,
    /// Incarnation of its data.
    pub lineage: Lineage,
}

/// Where the shards of a stream live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Version of the routing table this was read from.
    pub routing_version: u64,
    /// The stream.
    pub stream: StreamId,
    /// Settings a producer must obey.
    pub batch_bytes_max: u32,
    /// By shard index; `range_start` rises from 0.
    pub shards: Vec<ShardRoute>,
}

/// Channel flag: the client wants PublishAck frames.
pub const CHANNEL_ACKS: u8 = 1 << 0;
/// Channel flag: every key must belong to this shard's range; a record that does not is refused with WrongShard.
pub const CHANNEL_KEYED: u8 = 1 << 1;

/// First frame on a client's bidirectional stream that is a publish channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenChannel {
    /// Stream to publish to.
    pub stream_name: StreamName,
    /// Its id if the client knows it already: a stream made anew under the name is refused with StreamGone.
    pub stream: Option<StreamId>,
    /// Shard of it.
    pub shard_index: ShardIndex,
    /// `CHANNEL_*`.
    pub flags: u8,
    /// Producer, 0 for none.
    pub producer: ProducerId,
    /// Its incarnation.
    pub producer_epoch: ProducerEpoch,
}

/// The channel is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelOpened {
    /// The stream.
    pub stream: StreamId,
    /// The shard.
    pub shard: ShardId,
    /// Incarnation of the data.
    pub lineage: Lineage,
    /// Leader generation.
    pub epoch: Epoch,
    /// Next sequence the broker expects of this producer here; 0 for a new one.
    pub next_sequence: Sequence,
    /// Largest batch body.
    pub batch_bytes_max: u32,
}

/// Batches appended, in the order they were published on this channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishAck {
    /// Incarnation of the data.
    pub lineage: Lineage,
    /// Leader generation that appended.
    pub epoch: Epoch,
    /// What these acks are worth.
    pub durability: Durability,
    /// All sequences below this are appended or were refused.
    pub through: Sequence,
    /// Base offset of each batch, oldest first; a retry gets the offset of the first try.
    pub base_offsets: Vec<Offset>,
}

/// A batch refused; the channel stays open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishRefused {
    /// Base sequence of the batch.
    pub base_sequence: Sequence,
    /// Why.
    pub code: ErrorCode,
    /// When to try again, for class Retry.
    pub retry_after_ms: u32,
    /// For people.
    pub detail: String,
}

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Oldest record kept.
    Earliest,
    /// Only records appended after the subscription is live.
    Latest,
    /// A position the client kept. Lineage 0: any lineage, offset as is.
    Position(Position),
    /// First record appended at or after this time.
    Time(Timestamp),
}

/// What happens when a subscriber falls out of the memory that holds the tail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SlowPolicy {
    /// The subscriber's own pace; records that retention takes meanwhile are told as a gap.
    #[default]
    Block = 0,
    /// Jump to the oldest record still in the tail, with a gap notice.
    DropOldest = 1,
    /// Close the subscription with SlowConsumer.
    Disconnect = 2,
}

/// How deliveries travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DeliveryMode {
    /// On one server-opened stream per connection, shared by its subscriptions.
    #[default]
    Shared = 0,
    /// On a server-opened stream of its own.
    Own = 1,
    /// In DATAGRAM frames, at most once; a batch over the datagram limit goes on the shared stream.
    DatagramOrStream = 2,
    /// In DATAGRAM frames, at most once; a batch over the datagram limit is told as a gap.
    DatagramOrGap = 3,
}

/// Starts a subscription; the envelope's request id is the subscription id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// Stream to read.
    pub stream_name: StreamName,
    /// Its id if the client knows it already.
    pub stream: Option<StreamId>,
    /// Shard of it.
    pub shard_index: ShardIndex,
    /// Where to begin.
    pub start: Start,
    /// When too slow.
    pub policy: SlowPolicy,
    /// How deliveries travel.
    pub mode: DeliveryMode,
    /// Bytes the broker may send before more Credit; None: flow control only.
    pub credit_bytes: Option<u64>,
    /// Key filter; empty: everything.
    pub filter: String,
}

/// The subscription is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribed {
    /// The stream.
    pub stream: StreamId,
    /// The shard.
    pub shard: ShardId,
    /// Incarnation of the data; fixed for the life of the subscription.
    pub lineage: Lineage,
    /// Leader generation.
    pub epoch: Epoch,
    /// First offset that will be covered.
    pub start: Offset,
    /// One past the last committed offset now.
    pub high_watermark: Offset,
}

/// What a delivery carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery<'a> {
    /// One batch: stamped header, body, stamped TLVs.
    Batch(&'a [u8]),
    /// The offsets covered were not delivered: the subscriber was too slow or a record too large for a datagram.
    Gap,
    /// The offsets covered hold nothing for this subscription's filter.
    Progress,
}

/// One delivery; the envelope's request id is the subscription id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deliver<'a> {
    /// Counts from 0 per subscription; a missing number is a loss.
    pub number: u64,
    /// Offsets this covers; `to` is the progress of the subscription.
    pub covered: OffsetRange,
    /// What it carries.
    pub delivery: Delivery<'a>,
}

/// A subscription ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionClosed {
    /// Why.
    pub code: ErrorCode,
    /// Where to go on.
    pub next: Position,
    /// For people.
    pub detail: String,
}

/// A metadata request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Repeating a write with the same key has no second effect; 0 for reads.
    pub idempotency_key: u128,
    /// What to do.
    pub command: Command,
}

/// Counters of one stream, summed over cores, since the broker started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamStats {
    /// The stream.
    pub name: StreamName,
    /// Records appended.
    pub records_in: u64,
    /// Bytes of batches appended.
    pub bytes_in: u64,
    /// Records delivered.
    pub records_out: u64,
    /// Bytes of batches delivered.
    pub bytes_out: u64,
    /// Live subscriptions.
    pub subscriptions: u32,
    /// Records the slowest subscription is behind.
    pub lag_records_max: u64,
    /// Offsets told as gaps.
    pub gap_records: u64,
    /// Bytes kept.
    pub retained_bytes: u64,
}

/// Counters of the broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Time since the broker started.
    pub uptime_ms: u64,
    /// Connections now.
    pub connections: u32,
    /// Streams in order of name, one page.
    pub streams: Vec<StreamStats>,
    /// Ask again after the last one.
    pub more: bool,
}

/// Every frame.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is documented at its frame type and struct")]
pub enum Frame<'a> {
    Hello(Hello<'a>),
    Welcome(Welcome),
    Error(ErrorFrame),
    Goaway(Goaway),
    GetRoute { stream_name: StreamName },
    Route(Route),
    RouteChanged { routing_version: u64 },
    OpenChannel(OpenChannel),
    ChannelOpened(ChannelOpened),
    Publish { body: &'a [u8] },
    PublishAck(PublishAck),
    PublishRefused(PublishRefused),
    GetProducer,
    Producer { producer: ProducerId, epoch: ProducerEpoch },
    Subscribe(Subscribe),
    Subscribed(Subscribed),
    Deliver(Deliver<'a>),
    Credit { total_bytes: u64 },
    Unsubscribe,
    SubscriptionClosed(SubscriptionClosed),
    Admin(Admin),
    AdminReply(Reply),
    GetStats { after: Option<StreamName> },
    Stats(Stats),
}

/// Bytes of a Deliver body in front of the batch.
pub const DELIVER_HEADER_BYTES: usize = 28;
/// Bytes of a Deliver frame in front of the batch.
pub const DELIVER_PREFIX_BYTES: usize = ENVELOPE_BYTES + DELIVER_HEADER_BYTES;

/// The bytes in front of a batch in a Deliver frame, made without allocation: the hot path of fan-out writes these
/// and then the shared batch.
pub fn deliver_prefix(
    subscription: SubscriptionId,
    number: u64,
    covered: OffsetRange,
    batch_bytes: usize,
) -> [u8; DELIVER_PREFIX_BYTES] {
    let mut out = [0u8; DELIVER_PREFIX_BYTES];
    let length = (DELIVER_PREFIX_BYTES + batch_bytes) as u32;
    out[0..4].copy_from_slice(&length.to_le_bytes());
    out[4] = crate::version::WireVersion::HIGHEST.0;
    out[5] = FrameType::Deliver as u8;
    out[8..12].copy_from_slice(&subscription.0.to_le_bytes());
    out[20..28].copy_from_slice(&number.to_le_bytes());
    out[28..36].copy_from_slice(&covered.from.0.to_le_bytes());
    out[36..44].copy_from_slice(&covered.to.0.to_le_bytes());
    out
}

impl<'a> Frame<'a> {
    /// The frame's type.
    pub fn frame_type(&self) -> FrameType {
        match self {
            Frame::Hello(_) => FrameType::Hello,
            Frame::Welcome(_) => FrameType::Welcome,
            Frame::Error(_) => FrameType::Error,
            Frame::Goaway(_) => FrameType::Goaway,
            Frame::GetRoute { .. } => FrameType::GetRoute,
            Frame::Route(_) => FrameType::Route,
            Frame::RouteChanged { .. } => FrameType::RouteChanged,
            Frame::OpenChannel(_) => FrameType::OpenChannel,
            Frame::ChannelOpened(_) => FrameType::ChannelOpened,
            Frame::Publish { .. } => FrameType::Publish,
            Frame::PublishAck(_) => FrameType::PublishAck,
            Frame::PublishRefused(_) => FrameType::PublishRefused,
            Frame::GetProducer => FrameType::GetProducer,
            Frame::Producer { .. } => FrameType::Producer,
            Frame::Subscribe(_) => FrameType::Subscribe,
            Frame::Subscribed(_) => FrameType::Subscribed,
            Frame::Deliver(_) => FrameType::Deliver,
            Frame::Credit { .. } => FrameType::Credit,
            Frame::Unsubscribe => FrameType::Unsubscribe,
            Frame::SubscriptionClosed(_) => FrameType::SubscriptionClosed,
            Frame::Admin(_) => FrameType::Admin,
            Frame::AdminReply(_) => FrameType::AdminReply,
            Frame::GetStats { .. } => FrameType::GetStats,
            Frame::Stats(_) => FrameType::Stats,
        }
    }

    /// Appends the whole frame, envelope included, unrouted and without TLVs.
    pub fn encode(&self, request_id: u32, out: &mut Vec<u8>) {
        write_frame(out, self.frame_type(), 0, request_id, None, |out| self.encode_body(out));
    }

    /// Appends the body.
    pub fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Frame::Hello(it) => {
                out.put_u8(it.version_min);
                out.put_u8(it.version_max);
                out.put_u16(0);
                out.put_u64(it.features);
                out.put_u128(it.cluster.map_or(0, |id| id.0));
                out.put_bytes16(it.client_name.as_bytes());
                out.put_bytes16(it.token);
            }
            Frame::Welcome(it) => {
                out.put_u8(it.version);
                out.put_u8(it.core.0);
                out.put_u8(it.core_count);
                out.put_u8(0);
                out.put_u64(it.features);
                out.put_u128(it.cluster.0);
                out.put_u128(it.node.0);
                out.put_u64(it.session.0);
                out.put_u64(it.routing_version);
                out.put_u64(it.time.0);
                out.put_u32(it.channels_max);
                out.put_u32(it.subscriptions_max);
                out.put_u32(it.requests_max);
                out.put_bytes16(it.region.as_bytes());
                out.put_bytes16(it.principal.as_bytes());
            }
            Frame::Error(it) => {
                out.put_u16(it.code.number());
                out.put_u32(it.retry_after_ms);
                put_detail(out, &it.detail);
            }
            Frame::Goaway(it) => {
                out.put_u16(it.code.number());
                out.put_u32(it.drain_ms);
                put_detail(out, &it.detail);
            }
            Frame::GetRoute { stream_name } => put_name(out, stream_name),
            Frame::Route(it) => {
                out.put_u64(it.routing_version);
                out.put_u64(it.stream.0);
                out.put_u32(it.batch_bytes_max);
                out.put_u32(it.shards.len() as u32);
                for shard in &it.shards {
                    out.put_u64(shard.shard.0);
                    out.put_u64(shard.range_start);
                    out.put_u8(shard.core.0);
                    out.put_u64(shard.epoch.0);
                    out.put_u32(shard.lineage.0);
                }
            }
            Frame::RouteChanged { routing_version } => out.put_u64(*routing_version),
            Frame::OpenChannel(it) => {
                put_name(out, &it.stream_name);
                out.put_u64(it.stream.map_or(0, |id| id.0));
                out.put_u32(it.shard_index.0);
                out.put_u8(it.flags);
                out.put_u64(it.producer.0);
                out.put_u32(it.producer_epoch.0);
            }
            Frame::ChannelOpened(it) => {
                out.put_u64(it.stream.0);
                out.put_u64(it.shard.0);
                out.put_u32(it.lineage.0);
                out.put_u64(it.epoch.0);
                out.put_u64(it.next_sequence.0);
                out.put_u32(it.batch_bytes_max);
            }
            Frame::Publish { body } => out.put(body),
            Frame::PublishAck(it) => {
                out.put_u32(it.lineage.0);
                out.put_u64(it.epoch.0);
                out.put_u8(it.durability as u8);
                out.put_u64(it.through.0);
                out.put_u16(it.base_offsets.len() as u16);
                for offset in &it.base_offsets {
                    out.put_u64(offset.0);
                }
            }
            Frame::PublishRefused(it) => {
                out.put_u64(it.base_sequence.0);
                out.put_u16(it.code.number());
                out.put_u32(it.retry_after_ms);
                put_detail(out, &it.detail);
            }
            Frame::GetProducer | Frame::Unsubscribe => {}
            Frame::Producer { producer, epoch } => {
                out.put_u64(producer.0);
                out.put_u32(epoch.0);
            }
            Frame::Subscribe(it) => {
                put_name(out, &it.stream_name);
                out.put_u64(it.stream.map_or(0, |id| id.0));
                out.put_u32(it.shard_index.0);
                let (kind, lineage, value) = match it.start {
                    Start::Earliest => (0, 0, 0),
                    Start::Latest => (1, 0, 0),
                    Start::Position(at) => (2, at.lineage.0, at.offset.0),
                    Start::Time(time) => (3, 0, time.0),
                };
                out.put_u8(kind);
                out.put_u32(lineage);
                out.put_u64(value);
                out.put_u8(it.policy as u8);
                out.put_u8(it.mode as u8);
                out.put_u8(u8::from(it.credit_bytes.is_some()));
                out.put_u64(it.credit_bytes.unwrap_or(0));
                out.put_bytes16(it.filter.as_bytes());
            }
            Frame::Subscribed(it) => {
                out.put_u64(it.stream.0);
                out.put_u64(it.shard.0);
                out.put_u32(it.lineage.0);
                out.put_u64(it.epoch.0);
                out.put_u64(it.start.0);
                out.put_u64(it.high_watermark.0);
            }
            Frame::Deliver(it) => {
                out.put_u32(match it.delivery {
                    Delivery::Batch(_) => 0,
                    Delivery::Gap => 1,
                    Delivery::Progress => 2,
                });
                out.put_u64(it.number);
                out.put_u64(it.covered.from.0);
                out.put_u64(it.covered.to.0);
                if let Delivery::Batch(batch) = it.delivery {
                    out.put(batch);
                }
            }
            Frame::Credit { total_bytes } => out.put_u64(*total_bytes),
            Frame::SubscriptionClosed(it) => {
                out.put_u16(it.code.number());
                out.put_u32(it.next.lineage.0);
                out.put_u64(it.next.offset.0);
                put_detail(out, &it.detail);
            }
            Frame::Admin(it) => {
                out.put_u128(it.idempotency_key);
                it.command.encode(out);
            }
            Frame::AdminReply(reply) => reply.encode(out),
            Frame::GetStats { after } => match after {
                None => out.put_u16(0),
                Some(name) => put_name(out, name),
            },
            Frame::Stats(it) => {
                out.put_u64(it.uptime_ms);
                out.put_u32(it.connections);
                out.put_u8(u8::from(it.more));
                out.put_u32(it.streams.len() as u32);
                for row in &it.streams {
                    put_name(out, &row.name);
                    for value in [row.records_in, row.bytes_in, row.records_out, row.bytes_out] {
                        out.put_u64(value);
                    }
                    out.put_u32(row.subscriptions);
                    for value in [row.lag_records_max, row.gap_records, row.retained_bytes] {
                        out.put_u64(value);
                    }
                }
            }
        }
    }

    /// Reads one whole frame (envelope included).
    pub fn decode(frame: &'a [u8]) -> Result<(Envelope, Frame<'a>), DecodeError> {
        let (envelope, body) = split_frame(frame)?;
        Ok((envelope, Frame::decode_body(envelope.frame_type, body)?))
    }

    /// Reads a body.
    pub fn decode_body(frame_type: FrameType, body: &'a [u8]) -> Result<Frame<'a>, DecodeError> {
        let mut reader = Reader::new(body);
        let r = &mut reader;
        let frame = match frame_type {
            FrameType::Hello => {
                let (version_min, version_max) = (r.u8()?, r.u8()?);
                zero(r.u16()?.into())?;
                let features = r.u64()?;
                let cluster = r.u128()?;
                Frame::Hello(Hello {
                    version_min,
                    version_max,
                    features,
                    cluster: (cluster != 0).then_some(ClusterId(cluster)),
                    client_name: r.text16(CLIENT_NAME_BYTES_MAX)?,
                    token: r.bytes16(TOKEN_BYTES_MAX)?,
                })
            }
            FrameType::Welcome => {
                let (version, core, core_count) = (r.u8()?, CoreId(r.u8()?), r.u8()?);
                zero(r.u8()?.into())?;
                if core_count == 0 || core_count > CORES_MAX || core.0 >= core_count {
                    return Err(DecodeError::BadField("core_count"));
                }
                Frame::Welcome(Welcome {
                    version,
                    core,
                    core_count,
                    features: r.u64()?,
                    cluster: ClusterId(r.u128()?),
                    node: NodeId(r.u128()?),
                    session: NodeSession(r.u64()?),
                    routing_version: r.u64()?,
                    time: Timestamp(r.u64()?),
                    channels_max: r.u32()?,
                    subscriptions_max: r.u32()?,
                    requests_max: r.u32()?,
                    region: r.text16(LABEL_BYTES_MAX)?.to_string(),
                    principal: r.text16(DETAIL_BYTES_MAX)?.to_string(),
                })
            }
            FrameType::Error => Frame::Error(ErrorFrame {
                code: ErrorCode::from_number(r.u16()?),
                retry_after_ms: r.u32()?,
                detail: detail(r)?,
            }),
            FrameType::Goaway => Frame::Goaway(Goaway {
                code: ErrorCode::from_number(r.u16()?),
                drain_ms: r.u32()?,
                detail: detail(r)?,
            }),
            FrameType::GetRoute => Frame::GetRoute { stream_name: read_stream_name(r)? },
            FrameType::Route => {
                let (routing_version, stream, batch_bytes_max) = (r.u64()?, StreamId(r.u64()?), r.u32()?);
                let count = r.u32()?;
                if count == 0 || count > SHARDS_MAX {
                    return Err(DecodeError::BadField("shards"));
                }
                let mut shards: Vec<ShardRoute> = Vec::new();
                for _ in 0..count {
                    let shard = ShardRoute {
                        shard: ShardId(r.u64()?),
                        range_start: r.u64()?,
                        core: CoreId(r.u8()?),
                        epoch: Epoch(r.u64()?),
                        lineage: Lineage(r.u32()?),
                    };
                    let rises = match shards.last() {
                        None => shard.range_start == 0,
                        Some(last) => last.range_start < shard.range_start,
                    };
                    if !rises {
                        return Err(DecodeError::BadField("range_start"));
                    }
                    shards.push(shard);
                }
                Frame::Route(Route { routing_version, stream, batch_bytes_max, shards })
            }
            FrameType::RouteChanged => Frame::RouteChanged { routing_version: r.u64()? },
            FrameType::OpenChannel => Frame::OpenChannel(OpenChannel {
                stream_name: read_stream_name(r)?,
                stream: optional_id(r.u64()?),
                shard_index: ShardIndex(r.u32()?),
                flags: match r.u8()? {
                    flags if flags & !(CHANNEL_ACKS | CHANNEL_KEYED) == 0 => flags,
                    _ => return Err(DecodeError::BadField("channel flags")),
                },
                producer: ProducerId(r.u64()?),
                producer_epoch: ProducerEpoch(r.u32()?),
            }),
            FrameType::ChannelOpened => Frame::ChannelOpened(ChannelOpened {
                stream: StreamId(r.u64()?),
                shard: ShardId(r.u64()?),
                lineage: Lineage(r.u32()?),
                epoch: Epoch(r.u64()?),
                next_sequence: Sequence(r.u64()?),
                batch_bytes_max: r.u32()?,
            }),
            FrameType::Publish => Frame::Publish { body: r.bytes(body.len())? },
            FrameType::PublishAck => {
                let (lineage, epoch) = (Lineage(r.u32()?), Epoch(r.u64()?));
                let durability = Durability::from_number(r.u8()?).ok_or(DecodeError::BadField("durability"))?;
                let through = Sequence(r.u64()?);
                let count = usize::from(r.u16()?);
                if count > ACKS_PER_FRAME_MAX {
                    return Err(DecodeError::BadField("ack count"));
                }
                let base_offsets = (0..count).map(|_| r.u64().map(Offset)).collect::<Result<_, _>>()?;
                Frame::PublishAck(PublishAck { lineage, epoch, durability, through, base_offsets })
            }
            FrameType::PublishRefused => Frame::PublishRefused(PublishRefused {
                base_sequence: Sequence(r.u64()?),
                code: ErrorCode::from_number(r.u16()?),
                retry_after_ms: r.u32()?,
                detail: detail(r)?,
            }),
            FrameType::GetProducer => Frame::GetProducer,
            FrameType::Producer => {
                Frame::Producer { producer: ProducerId(r.u64()?), epoch: ProducerEpoch(r.u32()?) }
            }
            FrameType::Subscribe => {
                let stream_name = read_stream_name(r)?;
                let stream = optional_id(r.u64()?);
                let shard_index = ShardIndex(r.u32()?);
                let (kind, lineage, value) = (r.u8()?, Lineage(r.u32()?), r.u64()?);
                let start = match kind {
                    0 => Start::Earliest,
                    1 => Start::Latest,
                    2 => Start::Position(Position { lineage, offset: Offset(value) }),
                    3 => Start::Time(Timestamp(value)),
                    _ => return Err(DecodeError::BadField("start")),
                };
                if kind != 2 && lineage.0 != 0 || kind < 2 && value != 0 {
                    return Err(DecodeError::BadField("start"));
                }
                let policy = match r.u8()? {
                    0 => SlowPolicy::Block,
                    1 => SlowPolicy::DropOldest,
                    2 => SlowPolicy::Disconnect,
                    _ => return Err(DecodeError::BadField("policy")),
                };
                let mode = match r.u8()? {
                    0 => DeliveryMode::Shared,
                    1 => DeliveryMode::Own,
                    2 => DeliveryMode::DatagramOrStream,
                    3 => DeliveryMode::DatagramOrGap,
                    _ => return Err(DecodeError::BadField("mode")),
                };
                let credit_bytes = match (r.u8()?, r.u64()?) {
                    (0, 0) => None,
                    (1, bytes) => Some(bytes),
                    _ => return Err(DecodeError::BadField("credit")),
                };
                let filter = r.text16(PATTERN_BYTES_MAX)?.to_string();
                Frame::Subscribe(Subscribe {
                    stream_name,
                    stream,
                    shard_index,
                    start,
                    policy,
                    mode,
                    credit_bytes,
                    filter,
                })
            }
            FrameType::Subscribed => Frame::Subscribed(Subscribed {
                stream: StreamId(r.u64()?),
                shard: ShardId(r.u64()?),
                lineage: Lineage(r.u32()?),
                epoch: Epoch(r.u64()?),
                start: Offset(r.u64()?),
                high_watermark: Offset(r.u64()?),
            }),
            FrameType::Deliver => {
                let kind = r.u32()?;
                let number = r.u64()?;
                let covered = OffsetRange { from: Offset(r.u64()?), to: Offset(r.u64()?) };
                if covered.from > covered.to {
                    return Err(DecodeError::BadField("covered"));
                }
                let delivery = match kind {
                    0 => Delivery::Batch(r.bytes(r.rest().len())?),
                    1 => Delivery::Gap,
                    2 => Delivery::Progress,
                    _ => return Err(DecodeError::BadField("delivery kind")),
                };
                Frame::Deliver(Deliver { number, covered, delivery })
            }
            FrameType::Credit => Frame::Credit { total_bytes: r.u64()? },
            FrameType::Unsubscribe => Frame::Unsubscribe,
            FrameType::SubscriptionClosed => Frame::SubscriptionClosed(SubscriptionClosed {
                code: ErrorCode::from_number(r.u16()?),
                next: Position { lineage: Lineage(r.u32()?), offset: Offset(r.u64()?) },
                detail: detail(r)?,
            }),
            FrameType::Admin => Frame::Admin(Admin { idempotency_key: r.u128()?, command: Command::decode(r)? }),
            FrameType::AdminReply => Frame::AdminReply(Reply::decode(r)?),
            FrameType::GetStats => Frame::GetStats {
                after: match r.text16(512)? {
                    "" => None,
                    text => Some(StreamName::parse(text).map_err(|_| DecodeError::BadField("stream name"))?),
                },
            },
            FrameType::Stats => {
                let (uptime_ms, connections, more) = (r.u64()?, r.u32()?, r.u8()? != 0);
                let count = r.u32()?;
                if count > LIST_PAGE_MAX {
                    return Err(DecodeError::BadField("stream count"));
                }
                let mut streams = Vec::new();
                for _ in 0..count {
                    streams.push(StreamStats {
                        name: read_stream_name(r)?,
                        records_in: r.u64()?,
                        bytes_in: r.u64()?,
                        records_out: r.u64()?,
                        bytes_out: r.u64()?,
                        subscriptions: r.u32()?,
                        lag_records_max: r.u64()?,
                        gap_records: r.u64()?,
                        retained_bytes: r.u64()?,
                    });
                }
                Frame::Stats(Stats { uptime_ms, connections, streams, more })
            }
        };
        reader.finish()?;
        Ok(frame)
    }
}

fn zero(value: u64) -> Result<(), DecodeError> {
    if value == 0 { Ok(()) } else { Err(DecodeError::BadField("reserved")) }
}

fn optional_id(value: u64) -> Option<StreamId> {
    (value != 0).then_some(StreamId(value))
}

fn put_detail(out: &mut Vec<u8>, text: &str) {
    // A text that is too long is cut at a character, not refused: it is for people.
    let mut end = text.len().min(DETAIL_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.put_bytes16(&text.as_bytes()[..end]);
}

fn detail(reader: &mut Reader<'_>) -> Result<String, DecodeError> {
    Ok(reader.text16(DETAIL_BYTES_MAX)?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliver_prefix_is_the_encoded_frame() {
        let batch = [7u8; 100];
        let covered = OffsetRange { from: Offset(5), to: Offset(9) };
        let mut encoded = Vec::new();
        Frame::Deliver(Deliver { number: 3, covered, delivery: Delivery::Batch(&batch) }).encode(42, &mut encoded);
        let prefix = deliver_prefix(SubscriptionId(42), 3, covered, batch.len());
        assert_eq!(encoded[..DELIVER_PREFIX_BYTES], prefix);
        assert_eq!(encoded[DELIVER_PREFIX_BYTES..], batch);
    }
}
