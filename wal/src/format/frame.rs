//! **What**: the frame around every stored rkyv type: what it is, which version, how long, and whether it is whole.
//!
//! ```text
//!  0 u32 magic "FxFr"    8 u32 payload_bytes
//!  4 u16 version        12 u32 CRC32C of 0..12 and the payload
//!  6 u16 type           16 payload
//! ```
//!
//! **Invariants**: validation by rkyv is about memory safety; integrity comes from the checksum, which is checked first.
//! A stored type is frozen: a change adds a version and a converter.
//!
//! **Never**: rkyv bytes on a disk without this frame.
//!
//! **See**: `index.rs`, `meta.rs`.

use felix_protocol::codec::{Reader, Writer};
use rkyv::util::AlignedVec;
use std::fmt;

const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"FxFr");
/// Bytes in front of the payload.
pub const FRAME_HEADER_BYTES: usize = 16;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FrameKind {
    /// Sparse index of a segment.
    Index = 1,
    /// Meta of a shard.
    Meta = 2,
    /// Producers of a shard.
    Producers = 3,
}

/// Why a frame was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// It ends early or has bytes left over.
    Length {
        /// Bytes announced, frame header included.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// Not a frame.
    Magic(u32),
    /// The checksum does not fit.
    Checksum {
        /// Stored.
        expected: u32,
        /// Of the bytes.
        found: u32,
    },
    /// A frame of another kind.
    Kind {
        /// Wanted.
        expected: u16,
        /// Stored.
        found: u16,
    },
    /// A version this build does not read.
    Version(u16),
    /// The payload is whole but is not what it says; the text names the part.
    Content(&'static str),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::Length { expected, found } => write!(f, "{found} bytes instead of {expected}"),
            FrameError::Magic(found) => write!(f, "magic number {found:#010x} is not ours"),
            FrameError::Checksum { expected, found } => {
                write!(f, "checksum {expected:#010x}, its bytes give {found:#010x}")
            }
            FrameError::Kind { expected, found } => write!(f, "kind {found} where {expected} belongs"),
            FrameError::Version(found) => write!(f, "version {found} is not known"),
            FrameError::Content(what) => write!(f, "{what} makes no sense"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Puts a payload in a frame.
pub fn put_frame(kind: FrameKind, version: u16, payload: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.put_u32(FRAME_MAGIC);
    out.put_u16(version);
    out.put_u16(kind as u16);
    out.put_u32(u32::try_from(payload.len()).expect("framed types are far below 4 GiB"));
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out[start..]), payload);
    out.put_u32(crc);
    out.put(payload);
}

/// Takes a payload out of a frame that fills `bytes` exactly; returns the version and an aligned copy for rkyv.
pub fn take_frame(kind: FrameKind, bytes: &[u8]) -> Result<(u16, AlignedVec), FrameError> {
    let found = bytes.len() as u64;
    let short = FrameError::Length { expected: FRAME_HEADER_BYTES as u64, found };
    let (head, payload) = bytes.split_at_checked(FRAME_HEADER_BYTES).ok_or(short)?;
    let mut reader = Reader::new(head);
    let mut fields = || Ok((reader.u32()?, reader.u16()?, reader.u16()?, reader.u32()?, reader.u32()?));
    let (magic, version, stored_kind, payload_bytes, expected) =
        fields().map_err(|_: felix_protocol::codec::DecodeError| short)?;
    if magic != FRAME_MAGIC {
        return Err(FrameError::Magic(magic));
    }
    let whole = u64::from(payload_bytes) + FRAME_HEADER_BYTES as u64;
    if whole != found {
        return Err(FrameError::Length { expected: whole, found });
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..12]), payload);
    if crc != expected {
        return Err(FrameError::Checksum { expected, found: crc });
    }
    if stored_kind != kind as u16 {
        return Err(FrameError::Kind { expected: kind as u16, found: stored_kind });
    }
    let mut aligned = AlignedVec::with_capacity(payload.len());
    aligned.extend_from_slice(payload);
    Ok((version, aligned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_flip_and_every_cut_is_found() {
        let mut bytes = Vec::new();
        put_frame(FrameKind::Meta, 1, b"some payload", &mut bytes);
        assert_eq!(take_frame(FrameKind::Meta, &bytes).unwrap().1.as_slice(), b"some payload");
        assert_eq!(take_frame(FrameKind::Index, &bytes).unwrap_err(), FrameError::Kind { expected: 1, found: 2 });
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(take_frame(FrameKind::Meta, &bad).is_err(), "bit {bit}");
        }
        for end in 0..bytes.len() {
            assert!(take_frame(FrameKind::Meta, &bytes[..end]).is_err(), "cut at {end}");
        }
    }
}
