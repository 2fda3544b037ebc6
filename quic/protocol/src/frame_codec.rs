//! **What**: the bodies of frames as bytes, field by field in the order of PROTOCOL.md.
//!
//! **Invariants**: `decode(encode(x)) == x`; a body with bytes left over is refused; borrowed bytes are never copied;
//! no vector is reserved by an announced count.
//!
//! **Never**: a field that is written and not read, or read in another order.
//!
//! **See**: `frame.rs` for what the fields mean, `metadata_codec.rs` for admin documents.

use crate::codec::{DecodeError, Reader, Writer};
use crate::envelope::{Envelope, FrameType, split_frame, write_frame};
use crate::error_code::ErrorCode;
use crate::frame::*;
use crate::ids::*;
use crate::limits::*;
use crate::metadata::{Command, Durability, Reply, put_name, read_stream_name};
use crate::metadata_codec::read_bool;
use crate::names::StreamName;
use crate::position::{Epoch, Lineage, Offset, OffsetRange, Position};
use crate::time::Timestamp;

impl<'a> Frame<'a> {
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
                assert!(it.base_offsets.len() <= ACKS_PER_FRAME_MAX, "our own ack covers too many batches");
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
            FrameType::Goaway => {
                Frame::Goaway(Goaway { code: ErrorCode::from_number(r.u16()?), drain_ms: r.u32()?, detail: detail(r)? })
            }
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
            FrameType::OpenChannel => {
                let open = OpenChannel {
                    stream_name: read_stream_name(r)?,
                    stream: optional_id(r.u64()?),
                    shard_index: ShardIndex(r.u32()?),
                    flags: match r.u8()? {
                        flags if flags & !(CHANNEL_ACKS | CHANNEL_KEYED) == 0 => flags,
                        _ => return Err(DecodeError::BadField("channel flags")),
                    },
                    producer: ProducerId(r.u64()?),
                    producer_epoch: ProducerEpoch(r.u32()?),
                };
                if open.producer == ProducerId(0) && open.producer_epoch != ProducerEpoch(0) {
                    return Err(DecodeError::BadField("producer epoch of an anonymous channel"));
                }
                Frame::OpenChannel(open)
            }
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
            FrameType::Producer => Frame::Producer { producer: ProducerId(r.u64()?), epoch: ProducerEpoch(r.u32()?) },
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
                after: match r.text16(NAME_BYTES_MAX)? {
                    "" => None,
                    text => Some(StreamName::parse(text).map_err(DecodeError::BadName)?),
                },
            },
            FrameType::Stats => {
                let (uptime_ms, connections, more) = (r.u64()?, r.u32()?, read_bool(r)?);
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
