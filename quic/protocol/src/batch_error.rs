//! **What**: why a batch was refused, and what its producer is told.
//!
//! **Invariants**: every variant carries the facts; a checksum error is CorruptBatch, everything else InvalidBatch.
//!
//! **Never**: text to match on.
//!
//! **See**: `batch_view.rs`, which finds these.

use crate::codec::DecodeError;
use crate::error_code::ErrorCode;

/// Why a batch was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchError {
    /// Fewer bytes than announced.
    Truncated,
    /// More bytes than announced, or lengths that do not add up.
    LengthMismatch,
    /// A newer or unknown format.
    UnknownFormat(u8),
    /// A field out of range.
    BadField(&'static str),
    /// The stamped header is damaged.
    HeaderChecksum {
        /// Checksum stored.
        expected: u32,
        /// Checksum of the bytes.
        found: u32,
    },
    /// The body is damaged.
    BodyChecksum {
        /// Checksum stored.
        expected: u32,
        /// Checksum of the bytes.
        found: u32,
    },
    /// The stamped TLVs are damaged.
    TlvChecksum {
        /// Checksum stored.
        expected: u32,
        /// Checksum of the bytes.
        found: u32,
    },
    /// Over a limit.
    TooLarge {
        /// Which one.
        what: &'static str,
        /// Found.
        found: u64,
        /// Allowed.
        max: u64,
    },
    /// A batch without records.
    Empty,
}

impl std::fmt::Display for BatchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BatchError::Truncated => f.write_str("the batch ends before its announced length"),
            BatchError::LengthMismatch => f.write_str("the lengths in the batch do not add up"),
            BatchError::UnknownFormat(found) => write!(f, "batch format {found} is not known"),
            BatchError::BadField(field) => write!(f, "batch field {field} is out of range"),
            BatchError::HeaderChecksum { expected, found } => {
                write!(f, "batch header checksum {expected:#010x}, its bytes give {found:#010x}")
            }
            BatchError::BodyChecksum { expected, found } => {
                write!(f, "batch body checksum {expected:#010x}, its bytes give {found:#010x}")
            }
            BatchError::TlvChecksum { expected, found } => {
                write!(f, "batch TLV checksum {expected:#010x}, its bytes give {found:#010x}")
            }
            BatchError::TooLarge { what, found, max } => write!(f, "{what} is {found}, at most {max} is allowed"),
            BatchError::Empty => f.write_str("a batch needs at least one record"),
        }
    }
}

impl std::error::Error for BatchError {}

impl BatchError {
    /// What a producer is told.
    pub fn code(self) -> ErrorCode {
        match self {
            BatchError::HeaderChecksum { .. } | BatchError::BodyChecksum { .. } | BatchError::TlvChecksum { .. } => {
                ErrorCode::CorruptBatch
            }
            _ => ErrorCode::InvalidBatch,
        }
    }
}

impl From<DecodeError> for BatchError {
    fn from(error: DecodeError) -> BatchError {
        match error {
            DecodeError::Truncated => BatchError::Truncated,
            DecodeError::BadField(field) => BatchError::BadField(field),
            DecodeError::TooLarge { bytes, max } => BatchError::TooLarge { what: "tlv", found: bytes, max },
            DecodeError::UnknownMandatoryTlv(_) => BatchError::BadField("mandatory tlv"),
            _ => BatchError::LengthMismatch,
        }
    }
}
