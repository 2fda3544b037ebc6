//! **What**: every frame of wire version 1, one enum. Layouts: PROTOCOL.md, field by field in the order of the structs
//! here.
//!
//! **Invariants**: `decode(encode(x)) == x`; borrowed bytes are never copied.
//!
//! **Never**: a frame whose meaning depends on the transport that carried it.
//!
//! **See**: `frame_codec.rs` for the bytes of a body, `envelope.rs` for what surrounds it, `metadata.rs` for admin
//! documents.

use crate::envelope::FrameType;
use crate::error_code::ErrorCode;
use crate::ids::*;
use crate::limits::ENVELOPE_BYTES;
use crate::metadata::{Command, Durability, Reply};
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
    /// One past the highest sequence answered so far. A refusal may overtake acks, so match by `base_offsets`.
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
