//! **What**: how a broker can break the protocol, as seen by a client.
//!
//! **Invariants**: every check of received bytes ends in one of these or in data.
//!
//! **Never**: text to match on.
//!
//! **See**: `session.rs` (frames), `subscription.rs` (deliveries), `channel.rs` (acks).

use felix_protocol::batch_view::BatchError;
use felix_protocol::codec::DecodeError;
use felix_protocol::envelope::FrameType;
use felix_protocol::error_code::ErrorCode;
use std::fmt;

/// What a broker did that the protocol does not allow. The connection that carried it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Bytes that are not a frame.
    Malformed(DecodeError),
    /// A frame that is not allowed on this stream or now.
    UnexpectedFrame(FrameType),
    /// A reply to a request nobody made, or of another kind than was asked for.
    WrongReply {
        /// The request id found.
        request_id: u32,
    },
    /// Bytes on a QUIC stream that carries nothing in this direction.
    UnexpectedStream {
        /// QUIC stream id.
        stream: u64,
    },
    /// The control stream ended.
    ControlStreamEnded,
    /// A stream ended inside a frame.
    StreamEndedInFrame {
        /// QUIC stream id.
        stream: u64,
    },
    /// Unfinished frames hold more memory than a client gives a broker.
    TooMuchUnfinished {
        /// Bytes held.
        bytes: usize,
    },
    /// An ack of more batches than are in flight.
    AckMismatch {
        /// Batches in flight.
        batches: usize,
        /// Offsets in the ack.
        offsets: usize,
    },
    /// A refusal of a batch that is not in flight.
    UnknownBatch {
        /// Base sequence in it.
        base_sequence: u64,
    },
    /// A channel's sequence that cannot be: inside a batch or beyond all that was sent.
    BadSequence {
        /// Sequence the broker expects next.
        next: u64,
    },
    /// A delivery for a subscription nobody made.
    UnknownSubscription {
        /// The subscription id found.
        subscription: u32,
    },
    /// A delivery number is missing on a reliable stream.
    DeliveryHole {
        /// Number expected.
        expected: u64,
        /// Number found.
        found: u64,
    },
    /// Offsets are missing or repeated between two deliveries.
    OffsetHole {
        /// Offset expected.
        expected: u64,
        /// Offset found.
        found: u64,
    },
    /// A delivered batch is damaged or breaks the format.
    BadBatch(BatchError),
    /// A delivered batch belongs to another stream, shard or incarnation, or is not for readers.
    ForeignBatch,
    /// More bytes than credit.
    CreditExceeded {
        /// Bytes granted.
        granted: u64,
        /// Bytes received.
        received: u64,
    },
    /// A subscription that began elsewhere than asked.
    WrongStart {
        /// Offset asked for.
        asked: u64,
        /// Offset found.
        found: u64,
    },
    /// A values section that does not decompress to the size announced.
    BadCompression,
}

impl Violation {
    /// Code to close the connection with.
    pub fn code(&self) -> ErrorCode {
        match self {
            Violation::Malformed(DecodeError::TooLarge { .. }) => ErrorCode::FrameTooLarge,
            Violation::Malformed(DecodeError::UnknownVersion(_)) => ErrorCode::UnsupportedVersion,
            Violation::Malformed(DecodeError::UnknownMandatoryTlv(_) | DecodeError::UnknownMandatoryFlag(_)) => {
                ErrorCode::UnknownMandatoryField
            }
            Violation::Malformed(_) | Violation::StreamEndedInFrame { .. } => ErrorCode::MalformedFrame,
            Violation::BadBatch(_) | Violation::BadCompression => ErrorCode::CorruptBatch,
            Violation::CreditExceeded { .. } | Violation::TooMuchUnfinished { .. } => ErrorCode::CreditExceeded,
            _ => ErrorCode::UnexpectedFrame,
        }
    }
}

impl From<DecodeError> for Violation {
    fn from(error: DecodeError) -> Violation {
        Violation::Malformed(error)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Malformed(error) => write!(f, "the broker sent bytes that are not a frame: {error}"),
            Violation::UnexpectedFrame(found) => write!(f, "the broker sent a {found:?} frame where none is allowed"),
            Violation::WrongReply { request_id } => write!(f, "the broker answered request {request_id} wrongly"),
            Violation::UnexpectedStream { stream } => write!(f, "the broker sent bytes on QUIC stream {stream}"),
            Violation::ControlStreamEnded => f.write_str("the broker ended the control stream"),
            Violation::StreamEndedInFrame { stream } => write!(f, "QUIC stream {stream} ended inside a frame"),
            Violation::TooMuchUnfinished { bytes } => {
                write!(f, "the broker left {bytes} bytes of unfinished frames with us")
            }
            Violation::AckMismatch { batches, offsets } => {
                write!(f, "the broker acknowledged {offsets} batches, {batches} are in flight")
            }
            Violation::UnknownBatch { base_sequence } => {
                write!(f, "the broker refused a batch that is not in flight (sequence {base_sequence})")
            }
            Violation::BadSequence { next } => write!(f, "the broker expects the impossible sequence {next}"),
            Violation::UnknownSubscription { subscription } => {
                write!(f, "the broker delivered for subscription {subscription}, which does not exist")
            }
            Violation::DeliveryHole { expected, found } => {
                write!(f, "delivery {expected} was expected, {found} came: something was lost")
            }
            Violation::OffsetHole { expected, found } => {
                write!(f, "a delivery from offset {expected} was expected, one from {found} came")
            }
            Violation::BadBatch(error) => write!(f, "a delivered batch is damaged: {error}"),
            Violation::ForeignBatch => f.write_str("a delivered batch belongs to another stream, shard or lineage"),
            Violation::CreditExceeded { granted, received } => {
                write!(f, "the broker sent {received} bytes with credit for {granted}")
            }
            Violation::WrongStart { asked, found } => {
                write!(f, "a subscription from offset {asked} began at {found}")
            }
            Violation::BadCompression => f.write_str("a delivered batch does not decompress to its announced size"),
        }
    }
}

impl std::error::Error for Violation {}
