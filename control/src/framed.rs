//! **What**: the frame around every byte sequence of the control plane that is stored or sent.
//!
//! ```text
//!  0 u32 magic     "FLXC"
//!  4 u8  version   of the body, per type
//!  5 u8  type      1 entry, 2 watch delta, 3 watch snapshot, 4 state snapshot, 5 to 9 raft (`raft_frames.rs`),
//!                 10 state snapshot with later settings, 11 state snapshot with made shards
//!  6 u16 reserved  0
//!  8 u32 length    whole frame, this header included
//! 12 u32 CRC32C    of bytes 0..12 and of the body
//! 16 body
//! ```
//!
//! **Invariants**: a frame that opens is whole: no single bit of it differs from what was sealed.
//!
//! **Never**: a read of a body before its length and checksum are proven.
//!
//! **See**: `command.rs`, `watch.rs`, `snapshot.rs`, which own the bodies.

use crate::limits::{ENTRY_BYTES_MAX, FRAME_BYTES_MAX, HEAD_BYTES_MAX, RAFT_ENTRY_BYTES_MAX};
use felix_protocol::codec::{DecodeError, Reader, Writer};

/// First bytes of every frame: "FLXC".
pub const MAGIC: u32 = u32::from_le_bytes(*b"FLXC");
/// Bytes in front of a body.
pub const HEADER_BYTES: usize = 16;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// An entry of the metadata log.
    Entry = 1,
    /// Changes from one version to a later one.
    Delta = 2,
    /// The whole table of a watch.
    WatchSnapshot = 3,
    /// The whole state, rkyv.
    StateSnapshot = 4,
    /// An entry of the raft log.
    RaftEntry = 5,
    /// What the raft log knows besides its entries.
    LogHead = 6,
    /// Whose metadata folder it is.
    Identity = 7,
    /// How far the raft log is on disk.
    Synced = 8,
    /// A snapshot file: what raft needs, and the state.
    SnapshotFile = 9,
    /// The whole state, rkyv, with the settings of streams that `StateSnapshot` has no place for.
    StateSnapshot2 = 10,
    /// The whole state, rkyv, with the shards whose files were made.
    StateSnapshot3 = 11,
}

impl FrameKind {
    /// Version of the body that this build writes, and the only one it reads.
    pub const fn version(self) -> u8 {
        1
    }

    /// Largest frame of this kind.
    pub const fn bytes_max(self) -> usize {
        match self {
            FrameKind::Entry => ENTRY_BYTES_MAX,
            FrameKind::RaftEntry => RAFT_ENTRY_BYTES_MAX,
            FrameKind::LogHead | FrameKind::Identity | FrameKind::Synced => HEAD_BYTES_MAX,
            FrameKind::Delta
            | FrameKind::WatchSnapshot
            | FrameKind::StateSnapshot
            | FrameKind::StateSnapshot2
            | FrameKind::StateSnapshot3
            | FrameKind::SnapshotFile => FRAME_BYTES_MAX,
        }
    }
}

/// Why a frame was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Fewer bytes than a header.
    Truncated {
        /// Bytes found.
        found: usize,
    },
    /// Not a frame of the control plane.
    BadMagic {
        /// What stands there.
        found: u32,
    },
    /// A version of the body that this build does not read.
    UnknownVersion {
        /// Version found.
        found: u8,
    },
    /// A frame of another kind.
    WrongKind {
        /// Type wanted.
        expected: FrameKind,
        /// Type found.
        found: u8,
    },
    /// The reserved field is not zero.
    ReservedBits {
        /// What stands there.
        found: u16,
    },
    /// The announced length is not that of the bytes given.
    BadLength {
        /// Bytes announced.
        announced: usize,
        /// Bytes given.
        found: usize,
    },
    /// More bytes than the kind allows.
    TooLarge {
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The bytes are not those that were sealed.
    BadChecksum {
        /// Checksum in the header.
        expected: u32,
        /// Checksum of the bytes.
        found: u32,
    },
    /// The frame is whole, but its body breaks the format.
    Body(DecodeError),
}

impl From<DecodeError> for FrameError {
    fn from(error: DecodeError) -> FrameError {
        FrameError::Body(error)
    }
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FrameError::Truncated { found } => write!(f, "{found} bytes are no frame, {HEADER_BYTES} is the least"),
            FrameError::BadMagic { found } => write!(f, "magic is {found:#010x}, expected {MAGIC:#010x}"),
            FrameError::UnknownVersion { found } => write!(f, "version {found} is not read by this build"),
            FrameError::WrongKind { expected, found } => write!(f, "type is {found}, expected {}", *expected as u8),
            FrameError::ReservedBits { found } => write!(f, "reserved field is {found:#06x}, expected 0"),
            FrameError::BadLength { announced, found } => write!(f, "{announced} bytes announced, {found} found"),
            FrameError::TooLarge { found, max } => write!(f, "{found} bytes, at most {max} are allowed"),
            FrameError::BadChecksum { expected, found } => {
                write!(f, "checksum is {found:#010x}, expected {expected:#010x}")
            }
            FrameError::Body(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for FrameError {}

/// Makes a frame of a body that `fill` appends. Refused only if the body is larger than the kind allows.
pub fn seal(kind: FrameKind, fill: impl FnOnce(&mut Vec<u8>)) -> Result<Vec<u8>, FrameError> {
    let mut out = Vec::with_capacity(256);
    out.put_u32(MAGIC);
    out.put_u8(kind.version());
    out.put_u8(kind as u8);
    out.put_u16(0);
    out.put_u64(0);
    fill(&mut out);
    let length = out.len();
    if length > kind.bytes_max() {
        return Err(FrameError::TooLarge { found: length, max: kind.bytes_max() });
    }
    out[8..12].copy_from_slice(&(length as u32).to_le_bytes());
    let checksum = checksum(&out);
    out[12..16].copy_from_slice(&checksum.to_le_bytes());
    Ok(out)
}

/// The body of a frame, which must fill `bytes` exactly.
pub fn open(kind: FrameKind, bytes: &[u8]) -> Result<&[u8], FrameError> {
    let found = bytes.len();
    if found < HEADER_BYTES {
        return Err(FrameError::Truncated { found });
    }
    if found > kind.bytes_max() {
        return Err(FrameError::TooLarge { found, max: kind.bytes_max() });
    }
    let mut reader = Reader::new(bytes);
    let magic = reader.u32()?;
    if magic != MAGIC {
        return Err(FrameError::BadMagic { found: magic });
    }
    let version = reader.u8()?;
    let number = reader.u8()?;
    if number != kind as u8 {
        return Err(FrameError::WrongKind { expected: kind, found: number });
    }
    if version != kind.version() {
        return Err(FrameError::UnknownVersion { found: version });
    }
    let reserved = reader.u16()?;
    if reserved != 0 {
        return Err(FrameError::ReservedBits { found: reserved });
    }
    let announced = reader.u32()? as usize;
    if announced != found {
        return Err(FrameError::BadLength { announced, found });
    }
    let expected = reader.u32()?;
    let computed = checksum(bytes);
    if computed != expected {
        return Err(FrameError::BadChecksum { expected, found: computed });
    }
    Ok(reader.rest())
}

/// CRC32C of a frame without its checksum field. `frame` holds at least a header.
fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..12]), &frame[HEADER_BYTES..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_opens_only_whole() {
        let frame = seal(FrameKind::Delta, |out| out.put(b"body")).unwrap();
        assert_eq!(open(FrameKind::Delta, &frame), Ok(&b"body"[..]));
        assert_eq!(open(FrameKind::Entry, &frame), Err(FrameError::WrongKind { expected: FrameKind::Entry, found: 2 }));
        assert_eq!(open(FrameKind::Delta, &frame[..15]), Err(FrameError::Truncated { found: 15 }));
        assert_eq!(open(FrameKind::Delta, &frame[..19]), Err(FrameError::BadLength { announced: 20, found: 19 }));
        for at in 0..frame.len() * 8 {
            let mut twin = frame.clone();
            twin[at / 8] ^= 1 << (at % 8);
            assert!(open(FrameKind::Delta, &twin).is_err(), "bit {at}");
        }
    }

    #[test]
    fn a_kind_bounds_its_frames() {
        let found = ENTRY_BYTES_MAX + 1;
        let error = FrameError::TooLarge { found, max: ENTRY_BYTES_MAX };
        let sealed = seal(FrameKind::Entry, |out| out.resize(found, 0));
        assert_eq!(sealed, Err(error));
        assert_eq!(open(FrameKind::Entry, &vec![0; found]), Err(error));
    }
}
