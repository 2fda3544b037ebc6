//! **What**: the envelope around every frame.
//!
//! ```text
//!  0 u32 frame_bytes   whole frame, this field included
//!  4 u8  version
//!  5 u8  type
//!  6 u16 flags         bits 0-7 mandatory (unknown: refused), bits 8-15 optional (unknown: ignored)
//!  8 u32 request_id    request, or subscription for Deliver, Credit, Unsubscribe, SubscriptionClosed
//! 12 u16 tlv_bytes
//! 14 u16 reserved      0
//! 16 [u64 stream_id, u64 shard_id]   if flag ROUTED
//!    [TLVs]                          tlv_bytes
//!    body
//! TLV: u16 type (bit 15: mandatory), u16 length, value
//! ```
//!
//! **Invariants**: `frame_bytes` is within the limit of the type before a single byte of the rest is buffered.
//!
//! **Never**: skipping something mandatory.
//!
//! **See**: `frame_stream.rs` (bytes of a QUIC stream to frames), `frame.rs` (bodies).

use crate::codec::{DecodeError, Reader, Writer};
use crate::ids::{ShardId, StreamId};
use crate::limits::{CONTROL_FRAME_BYTES_MAX, ENVELOPE_BYTES, FRAME_BYTES_MAX, ROUTE_BYTES, TLV_BYTES_MAX};
use crate::version::WireVersion;

/// Flag: stream id and shard id follow the fixed part.
pub const FLAG_ROUTED: u16 = 1 << 0;
/// Mandatory flags this build knows.
const MANDATORY_KNOWN: u16 = FLAG_ROUTED;
const MANDATORY_MASK: u16 = 0x00ff;
/// Bit of a TLV type that makes it mandatory.
pub const TLV_MANDATORY: u16 = 1 << 15;
/// TLV: W3C trace context, `traceparent` as text. Optional.
pub const TLV_TRACEPARENT: u16 = 0x0001;

macro_rules! frame_types {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        /// What a frame is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum FrameType { $($(#[$doc])* $name = $number,)* }

        impl FrameType {
            /// Every type of this version.
            pub const ALL: &[FrameType] = &[$(FrameType::$name),*];

            /// The type of a number.
            pub fn from_number(number: u8) -> Result<FrameType, DecodeError> {
                match number { $($number => Ok(FrameType::$name),)* other => Err(DecodeError::UnknownFrameType(other)) }
            }
        }
    };
}

frame_types! {
    /// Client: first frame on the control stream.
    Hello = 1;
    /// Broker: answer to Hello.
    Welcome = 2;
    /// Broker: typed refusal of a request, channel or connection.
    Error = 3;
    /// Broker: it is going away; finish and reconnect.
    Goaway = 4;
    /// Client: where do the shards of a stream live?
    GetRoute = 10;
    /// Broker: the route.
    Route = 11;
    /// Broker: the routing version moved on.
    RouteChanged = 12;
    /// Client: first frame on a publish channel.
    OpenChannel = 20;
    /// Broker: the channel is open.
    ChannelOpened = 21;
    /// Client: one batch.
    Publish = 22;
    /// Broker: batches appended, in channel order.
    PublishAck = 23;
    /// Broker: a batch refused.
    PublishRefused = 24;
    /// Client: give me a producer id.
    GetProducer = 25;
    /// Broker: the producer id.
    Producer = 26;
    /// Client: start a subscription.
    Subscribe = 30;
    /// Broker: the subscription is live.
    Subscribed = 31;
    /// Broker: one batch, a gap, or progress.
    Deliver = 32;
    /// Client: more bytes for a subscription.
    Credit = 33;
    /// Client: end a subscription.
    Unsubscribe = 34;
    /// Broker: a subscription ended.
    SubscriptionClosed = 35;
    /// Client: a metadata command.
    Admin = 40;
    /// Broker: its result.
    AdminReply = 41;
    /// Client: counters, please.
    GetStats = 42;
    /// Broker: counters.
    Stats = 43;
}

impl FrameType {
    /// Largest frame of this type.
    pub fn bytes_max(self) -> usize {
        match self {
            FrameType::Publish | FrameType::Deliver => FRAME_BYTES_MAX,
            _ => CONTROL_FRAME_BYTES_MAX,
        }
    }
}

/// The decoded envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// What follows.
    pub frame_type: FrameType,
    /// All flag bits as received.
    pub flags: u16,
    /// Request or subscription.
    pub request_id: u32,
    /// Stream and shard, if ROUTED.
    pub route: Option<(StreamId, ShardId)>,
}

/// Length of the frame that begins with these bytes, checked against its type's limit. None: fewer than 16 bytes yet.
/// Version and type are checked here too, so that a stranger is refused at its first bytes.
pub fn frame_length(bytes: &[u8]) -> Result<Option<usize>, DecodeError> {
    let Some(head) = bytes.first_chunk::<ENVELOPE_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if head[4] < WireVersion::LOWEST.0 || head[4] > WireVersion::HIGHEST.0 {
        return Err(DecodeError::UnknownVersion(head[4]));
    }
    let max = FrameType::from_number(head[5])?.bytes_max();
    if length > max {
        return Err(DecodeError::TooLarge { bytes: length as u64, max: max as u64 });
    }
    if length < ENVELOPE_BYTES {
        return Err(DecodeError::BadField("frame_bytes"));
    }
    Ok(Some(length))
}

/// Splits one whole frame into envelope and body.
pub fn split_frame(frame: &[u8]) -> Result<(Envelope, &[u8]), DecodeError> {
    match frame_length(frame)? {
        Some(length) if length == frame.len() => {}
        Some(length) if length < frame.len() => return Err(DecodeError::TrailingBytes),
        _ => return Err(DecodeError::Truncated),
    }
    let mut reader = Reader::new(frame);
    reader.bytes(5)?;
    let frame_type = FrameType::from_number(reader.u8()?)?;
    let flags = reader.u16()?;
    let request_id = reader.u32()?;
    let tlv_bytes = usize::from(reader.u16()?);
    if reader.u16()? != 0 {
        return Err(DecodeError::BadField("reserved"));
    }
    if flags & MANDATORY_MASK & !MANDATORY_KNOWN != 0 {
        return Err(DecodeError::UnknownMandatoryFlag(flags));
    }
    let route = if flags & FLAG_ROUTED != 0 { Some((StreamId(reader.u64()?), ShardId(reader.u64()?))) } else { None };
    if tlv_bytes > TLV_BYTES_MAX {
        return Err(DecodeError::TooLarge { bytes: tlv_bytes as u64, max: TLV_BYTES_MAX as u64 });
    }
    check_tlvs(reader.bytes(tlv_bytes)?)?;
    Ok((Envelope { frame_type, flags, request_id, route }, reader.rest()))
}

/// Walks TLVs: all whole, no unknown mandatory one.
pub fn check_tlvs(bytes: &[u8]) -> Result<(), DecodeError> {
    for item in Tlvs(bytes) {
        let (kind, _) = item?;
        if kind & TLV_MANDATORY != 0 {
            // Version 1 has no mandatory TLV of its own.
            return Err(DecodeError::UnknownMandatoryTlv(kind));
        }
    }
    Ok(())
}

/// Iterator over the TLVs in a slice; ends after the first error.
#[derive(Clone, Debug)]
pub struct Tlvs<'a>(pub &'a [u8]);

impl<'a> Iterator for Tlvs<'a> {
    type Item = Result<(u16, &'a [u8]), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut reader = Reader::new(self.0);
        let item = (|| Ok((reader.u16()?, reader.bytes16(TLV_BYTES_MAX)?)))();
        self.0 = if item.is_ok() { reader.rest() } else { &[] };
        Some(item)
    }
}

/// Writes an envelope without TLVs, runs `body`, then fills in the length. The frame is appended to `out`.
pub fn write_frame(
    out: &mut Vec<u8>,
    frame_type: FrameType,
    flags: u16,
    request_id: u32,
    route: Option<(StreamId, ShardId)>,
    body: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    let flags = if route.is_some() { flags | FLAG_ROUTED } else { flags & !FLAG_ROUTED };
    out.put_u32(0);
    out.put_u8(WireVersion::HIGHEST.0);
    out.put_u8(frame_type as u8);
    out.put_u16(flags);
    out.put_u32(request_id);
    out.put_u32(0);
    if let Some((stream, shard)) = route {
        out.put_u64(stream.0);
        out.put_u64(shard.0);
    }
    body(out);
    let length = out.len() - start;
    assert!(length <= frame_type.bytes_max(), "our own frame is over its limit: {length}");
    out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
}

const _: () = assert!(ROUTE_BYTES == 16);
