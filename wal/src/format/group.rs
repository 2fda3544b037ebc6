//! **What**: a WAL group: the entries of one write, and the unit of "torn".
//!
//! ```text
//!  0 u32 magic        "FLXG"               40 u64 sequence        of the group in this WAL, from 1
//!  4 u16 version      1                    48 u64 first_lsn       number of its first entry
//!  6 u16 flags        0                    56 u32 entry_count
//!  8 u32 header_crc   of 0..8 and 12..88   60 u32 payload_bytes   entries, without padding
//! 12 u32 body_crc     of 88..end           64 u64 synced_through  groups up to it are durable; 0: none
//! 16 u64 wal session                       72 u64 first_needed    first group of the oldest file still needed
//! 24 u8  wal core, 3 bytes zero
//! 28 u32 file number                       80 u32 index_crc       of the prefixes of all entries
//! 32 u32 generation   of the file's reuse  84 u32 0
//! 36 u32 block        where in the file    88 entries, then zeros to a multiple of 4096
//! ```
//!
//! **Invariants**: starts on a block and fills whole blocks, so that no later write touches a block of it. Sequences of a
//! WAL rise by one. The place (file, generation, block) is inside, so that stale and misdirected groups are told apart from
//! good ones. Both checksums together cover every byte, padding included.
//!
//! Both checksums start from a seed that comes from the WAL's random salt (in the file header): bytes of a client that look
//! like a group, found while looking behind damage, do not pass for one.
//!
//! **Never**: a length believed before `header_crc` fits.
//!
//! **See**: `entry.rs` (what is inside), `recover.rs` (what a bad group means).

use std::fmt;

use felix_protocol::codec::{Reader, Writer};
use felix_protocol::ids::{CoreId, NodeSession};

use super::entry::Lsn;
use super::names::WalId;
use crate::disk::BLOCK_BYTES;

/// Bytes of a group before its entries.
pub const GROUP_HEADER_BYTES: usize = 88;
/// Largest group, header and padding included. One entry of the largest size fits.
pub const GROUP_BYTES_MAX: usize = 16 << 20;
/// Version of the group format.
pub const GROUP_VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"FLXG";
const HEADER_CRC_AT: usize = 8;
const BODY_CRC_AT: usize = 12;

/// Number of a group within its WAL, from 1 upward; 0 stands for "none yet" where a group states what came before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupSequence(pub u64);

impl fmt::Display for GroupSequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The header of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupHeader {
    /// Whose group.
    pub wal: WalId,
    /// File of the WAL.
    pub number: u32,
    /// How often the file has been reused.
    pub generation: u32,
    /// First block within the file.
    pub block: u32,
    /// Which group.
    pub sequence: GroupSequence,
    /// Number of the first entry; the others follow by one.
    pub first_lsn: Lsn,
    /// Entries.
    pub entry_count: u32,
    /// Bytes of the entries.
    pub payload_bytes: u32,
    /// Groups up to this one were durable when this one was made. Below `sequence`.
    pub synced_through: GroupSequence,
    /// Groups from this one on must still be there. At most `sequence`.
    pub first_needed: GroupSequence,
    /// Checksum of the prefixes of all entries: says whose a group was although its batches are damaged.
    pub index_crc: u32,
}

/// Why bytes are not a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupError {
    /// The bytes end before the group does.
    Truncated,
    /// Nothing was ever written here.
    Blank,
    /// No group begins here.
    BadMagic,
    /// The header's checksum does not fit.
    HeaderChecksum {
        /// As stored.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// The checksum of entries and padding does not fit.
    BodyChecksum {
        /// As stored.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// A version this build does not know.
    UnknownVersion(u16),
    /// A field outside its range; the text names it.
    BadField(&'static str),
}

impl fmt::Display for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GroupError::Truncated => f.write_str("the bytes end before the group does"),
            GroupError::Blank => f.write_str("nothing was written here"),
            GroupError::BadMagic => f.write_str("no group begins here"),
            GroupError::HeaderChecksum { expected, found } => {
                write!(f, "the group header's checksum is {found:#010x}, {expected:#010x} is stored")
            }
            GroupError::BodyChecksum { expected, found } => {
                write!(f, "the group's checksum is {found:#010x}, {expected:#010x} is stored")
            }
            GroupError::UnknownVersion(version) => write!(f, "group version {version} is not known"),
            GroupError::BadField(field) => write!(f, "group field {field} is out of range"),
        }
    }
}

impl std::error::Error for GroupError {}

/// Bytes on disk of a group with so many bytes of entries.
pub fn group_bytes(payload_bytes: usize) -> usize {
    (GROUP_HEADER_BYTES + payload_bytes).next_multiple_of(BLOCK_BYTES)
}

/// Where the checksums of a WAL's groups start from: the salt's four words, lowest first, each after a turn left by 7 bits of
/// what is there, joined by XOR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupSeed(u32);

impl GroupSeed {
    /// From the salt in the headers of the WAL's files.
    pub fn of(salt: u128) -> GroupSeed {
        let words = [salt as u32, (salt >> 32) as u32, (salt >> 64) as u32, (salt >> 96) as u32];
        GroupSeed(words.into_iter().fold(0, |seed, word| seed.rotate_left(7) ^ word))
    }
}

fn header_crc(seed: GroupSeed, header: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(seed.0, &header[..HEADER_CRC_AT]);
    crc32c::crc32c_append(crc, &header[BODY_CRC_AT..GROUP_HEADER_BYTES])
}

fn put_u32_at(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Fills a fixed header without allocating.
struct Fixed<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer for Fixed<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}

impl GroupHeader {
    /// Bytes on disk.
    pub fn bytes(&self) -> usize {
        group_bytes(self.payload_bytes as usize)
    }

    /// Completes a group: `buffer` holds room for the header and then the entries. Pads, and sets both checksums.
    pub fn finish(&self, seed: GroupSeed, buffer: &mut Vec<u8>) {
        assert_eq!(buffer.len(), GROUP_HEADER_BYTES + self.payload_bytes as usize, "payload_bytes is what is there");
        assert!(self.synced_through < self.sequence && self.first_needed <= self.sequence, "{self:?}");
        buffer.resize(self.bytes(), 0);
        let body_crc = crc32c::crc32c_append(seed.0, &buffer[GROUP_HEADER_BYTES..]);
        let mut out = Fixed { out: buffer, at: 0 };
        out.put(&MAGIC);
        out.put_u16(GROUP_VERSION);
        out.put_u16(0);
        out.put_u32(0);
        out.put_u32(body_crc);
        out.put_u64(self.wal.session.0);
        out.put_u8(self.wal.core.0);
        out.put(&[0; 3]);
        out.put_u32(self.number);
        out.put_u32(self.generation);
        out.put_u32(self.block);
        out.put_u64(self.sequence.0);
        out.put_u64(self.first_lsn.0);
        out.put_u32(self.entry_count);
        out.put_u32(self.payload_bytes);
        out.put_u64(self.synced_through.0);
        out.put_u64(self.first_needed.0);
        out.put_u32(self.index_crc);
        out.put_u32(0);
        debug_assert_eq!(out.at, GROUP_HEADER_BYTES);
        let crc = header_crc(seed, buffer);
        put_u32_at(buffer, HEADER_CRC_AT, crc);
    }

    /// Reads the header of the group that begins at `bytes`; its checksum is checked before any field is believed.
    pub fn decode(seed: GroupSeed, bytes: &[u8]) -> Result<GroupHeader, GroupError> {
        let header = bytes.get(..GROUP_HEADER_BYTES).ok_or(GroupError::Truncated)?;
        if header[..4] != MAGIC {
            let blank = header.iter().all(|byte| *byte == 0);
            return Err(if blank { GroupError::Blank } else { GroupError::BadMagic });
        }
        let expected = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        let found = header_crc(seed, header);
        if expected != found {
            return Err(GroupError::HeaderChecksum { expected, found });
        }
        GroupHeader::fields(&header[MAGIC.len()..]).map_err(|error| error.unwrap_or(GroupError::Truncated))
    }

    fn fields(bytes: &[u8]) -> Result<GroupHeader, Option<GroupError>> {
        let mut reader = Reader::new(bytes);
        let short = |_| None;
        let version = reader.u16().map_err(short)?;
        if version != GROUP_VERSION {
            return Err(Some(GroupError::UnknownVersion(version)));
        }
        let flags = reader.u16().map_err(short)?;
        reader.u64().map_err(short)?;
        let session = NodeSession(reader.u64().map_err(short)?);
        let core = reader.u32().map_err(short)?;
        let header = GroupHeader {
            wal: WalId { session, core: CoreId(core as u8) },
            number: reader.u32().map_err(short)?,
            generation: reader.u32().map_err(short)?,
            block: reader.u32().map_err(short)?,
            sequence: GroupSequence(reader.u64().map_err(short)?),
            first_lsn: Lsn(reader.u64().map_err(short)?),
            entry_count: reader.u32().map_err(short)?,
            payload_bytes: reader.u32().map_err(short)?,
            synced_through: GroupSequence(reader.u64().map_err(short)?),
            first_needed: GroupSequence(reader.u64().map_err(short)?),
            index_crc: reader.u32().map_err(short)?,
        };
        let reserved = reader.u32().map_err(short)?;
        let bad = |field| Err(Some(GroupError::BadField(field)));
        if flags != 0 || reserved != 0 {
            return bad("flags");
        }
        if core > 0xff {
            return bad("core");
        }
        if header.block == 0 {
            return bad("block");
        }
        if header.payload_bytes as usize > GROUP_BYTES_MAX - GROUP_HEADER_BYTES {
            return bad("payload_bytes");
        }
        if header.synced_through >= header.sequence {
            return bad("synced_through");
        }
        if header.first_needed > header.sequence || header.first_needed.0 == 0 {
            return bad("first_needed");
        }
        if header.first_lsn.0 == 0 || header.first_lsn.0.checked_add(u64::from(header.entry_count)).is_none() {
            return bad("first_lsn");
        }
        Ok(header)
    }

    /// The entries of the group that begins at `bytes`, after a check of everything that its header did not cover.
    pub fn payload<'a>(&self, seed: GroupSeed, bytes: &'a [u8]) -> Result<&'a [u8], GroupError> {
        let group = bytes.get(..self.bytes()).ok_or(GroupError::Truncated)?;
        let expected = u32::from_le_bytes([group[12], group[13], group[14], group[15]]);
        let found = crc32c::crc32c_append(seed.0, &group[GROUP_HEADER_BYTES..]);
        if expected != found {
            return Err(GroupError::BodyChecksum { expected, found });
        }
        let (payload, padding) = group[GROUP_HEADER_BYTES..].split_at(self.payload_bytes as usize);
        // One form only.
        if padding.iter().any(|byte| *byte != 0) {
            return Err(GroupError::BadField("padding"));
        }
        Ok(payload)
    }
}
