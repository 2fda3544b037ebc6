//! **What**: the header block that every file of a data folder begins with: whose file it is and what it belongs to.
//!
//! ```text
//!  0 8 bytes magic     "FELIXDSK"         72 u64 shard          0: none
//!  8 u16 version       1                  80 u64 stream         0: none
//! 10 u16 kind                             88 u64 base_offset
//! 12 u32 header_crc    CRC32C of 0..12    96 u64 wal_session    0: none
//!                      and 16..4096      104 u32 lineage
//! 16 u128 cluster                        108 u32 number         of a WAL file
//! 32 u128 node                           112 u8  wal_core
//! 48 u64 session       that made it      113 u8  region_bytes
//! 56 u128 salt         random; of a WAL  114 region, at most 63 bytes
//!                      or sealed file    177 zeros to 4096
//! ```
//!
//! **Invariants**: written once, before anything else in the file, and never again. A mismatch is an error, never adapted.
//!
//! **Never**: a field that changes during the life of a file.
//!
//! **See**: `names.rs`: the name says the same as the header.

use std::fmt;

use felix_protocol::codec::{Reader, Writer};
use felix_protocol::ids::{ClusterId, CoreId, NodeId, NodeSession, ShardId, StreamId};
use felix_protocol::limits::LABEL_BYTES_MAX;
use felix_protocol::position::{Lineage, Offset};

use super::names::{SegmentId, WalId};
use crate::disk::BLOCK_BYTES;

/// Bytes of the header block.
pub const HEADER_BYTES: usize = BLOCK_BYTES;
/// Version of the header block.
pub const HEADER_VERSION: u16 = 1;

const MAGIC: &[u8; 8] = b"FELIXDSK";
const CRC_AT: usize = 12;
const REGION_AT: usize = 114;
const USED_BYTES: usize = REGION_AT + LABEL_BYTES_MAX;
const _: () = assert!(USED_BYTES <= HEADER_BYTES);

/// A region's name, an RFC 1123 label.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Region {
    bytes: [u8; LABEL_BYTES_MAX],
    count: u8,
}

impl Region {
    /// From text; None if it is not a label.
    pub fn new(text: &str) -> Option<Region> {
        let label = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let good = !text.is_empty()
            && text.len() <= LABEL_BYTES_MAX
            && text.bytes().all(label)
            && !text.starts_with('-')
            && !text.ends_with('-');
        good.then(|| {
            let mut bytes = [0; LABEL_BYTES_MAX];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            Region { bytes, count: text.len() as u8 }
        })
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.count)]).expect("labels are ASCII")
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whose data folder it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Cluster.
    pub cluster: ClusterId,
    /// Node.
    pub node: NodeId,
    /// Region: data of one never opens in another.
    pub region: Region,
}

/// What a file is and what it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The format file of the folder.
    Folder,
    /// A file of a core WAL.
    Wal {
        /// Which WAL.
        wal: WalId,
        /// Which file of it.
        number: u32,
    },
    /// A segment of a shard.
    Segment {
        /// Stream it was made for.
        stream: StreamId,
        /// Shard.
        shard: ShardId,
        /// Lineage and first offset.
        segment: SegmentId,
    },
    /// The index of a segment.
    Index {
        /// Stream it was made for.
        stream: StreamId,
        /// Shard.
        shard: ShardId,
        /// Lineage and first offset.
        segment: SegmentId,
    },
    /// A shard's meta file.
    Meta {
        /// Stream it was made for.
        stream: StreamId,
        /// Shard.
        shard: ShardId,
    },
    /// The keyring of the node.
    Keyring,
    /// What a shard remembers of its producers.
    Producers {
        /// Stream it was made for.
        stream: StreamId,
        /// Shard.
        shard: ShardId,
    },
}

impl Owner {
    fn kind(&self) -> u16 {
        match self {
            Owner::Folder => 1,
            Owner::Wal { .. } => 2,
            Owner::Segment { .. } => 3,
            Owner::Index { .. } => 4,
            Owner::Meta { .. } => 5,
            Owner::Keyring => 6,
            // 7 stays unknown: a golden file of version 1 says so.
            Owner::Producers { .. } => 8,
        }
    }
}

/// The header of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// Whose it is.
    pub identity: Identity,
    /// Start of the node that made it.
    pub session: NodeSession,
    /// Random. All files of a WAL have the same, which seeds its checksums; salt of encryption at rest. 0: none needed.
    pub salt: u128,
    /// What it belongs to.
    pub owner: Owner,
}

/// Why a header was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Shorter than a header.
    Truncated,
    /// All zeros: the file was made and its header never written.
    Blank,
    /// Not one of our files.
    BadMagic,
    /// The checksum does not fit.
    Checksum {
        /// As stored.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// A version this build does not know.
    UnknownVersion(u16),
    /// A kind of file this build does not know.
    UnknownKind(u16),
    /// A field outside its range; the text names it.
    BadField(&'static str),
    /// Of another cluster.
    OtherCluster {
        /// Ours.
        expected: ClusterId,
        /// The file's.
        found: ClusterId,
    },
    /// Of another region than ours.
    OtherRegion(Region),
    /// Of another node.
    OtherNode {
        /// Ours.
        expected: NodeId,
        /// The file's.
        found: NodeId,
    },
    /// The file belongs to something else than its name says.
    OtherOwner {
        /// By its name.
        expected: Owner,
        /// By its header.
        found: Owner,
    },
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderError::Truncated => f.write_str("the file is shorter than its header"),
            HeaderError::Blank => f.write_str("the header was never written"),
            HeaderError::BadMagic => f.write_str("not a Felix file"),
            HeaderError::Checksum { expected, found } => {
                write!(f, "the header's checksum is {found:#010x}, {expected:#010x} is stored")
            }
            HeaderError::UnknownVersion(version) => write!(f, "header version {version} is not known"),
            HeaderError::UnknownKind(kind) => write!(f, "file kind {kind} is not known"),
            HeaderError::BadField(field) => write!(f, "header field {field} is out of range"),
            HeaderError::OtherCluster { expected, found } => {
                write!(f, "the file is of cluster {:032x}, this is {:032x}", found.0, expected.0)
            }
            HeaderError::OtherRegion(found) => write!(f, "the file is of region {found}"),
            HeaderError::OtherNode { expected, found } => {
                write!(f, "the file is of node {:032x}, this is {:032x}", found.0, expected.0)
            }
            HeaderError::OtherOwner { expected, found } => {
                write!(f, "the file belongs to {found:?}, its name says {expected:?}")
            }
        }
    }
}

impl std::error::Error for HeaderError {}

fn header_crc(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..CRC_AT]), &block[CRC_AT + 4..HEADER_BYTES])
}

#[derive(Default)]
struct Fields {
    shard: ShardId,
    stream: StreamId,
    base_offset: Offset,
    wal: WalId,
    lineage: Lineage,
    number: u32,
}

impl FileHeader {
    /// The header block, appended to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut fields = Fields::default();
        match self.owner {
            Owner::Folder | Owner::Keyring => {}
            Owner::Wal { wal, number } => fields = Fields { wal, number, ..fields },
            Owner::Segment { stream, shard, segment } | Owner::Index { stream, shard, segment } => {
                fields = Fields { stream, shard, lineage: segment.lineage, base_offset: segment.base_offset, ..fields };
            }
            Owner::Meta { stream, shard } | Owner::Producers { stream, shard } => {
                fields = Fields { stream, shard, ..fields };
            }
        }
        let start = out.len();
        out.put(MAGIC);
        out.put_u16(HEADER_VERSION);
        out.put_u16(self.owner.kind());
        out.put_u32(0);
        out.put_u128(self.identity.cluster.0);
        out.put_u128(self.identity.node.0);
        out.put_u64(self.session.0);
        out.put_u128(self.salt);
        out.put_u64(fields.shard.0);
        out.put_u64(fields.stream.0);
        out.put_u64(fields.base_offset.0);
        out.put_u64(fields.wal.session.0);
        out.put_u32(fields.lineage.0);
        out.put_u32(fields.number);
        out.put_u8(fields.wal.core.0);
        out.put_u8(self.identity.region.count);
        out.put(&self.identity.region.bytes);
        debug_assert_eq!(out.len() - start, USED_BYTES);
        out.resize(start + HEADER_BYTES, 0);
        let crc = header_crc(&out[start..]);
        out[start + CRC_AT..start + CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads the header at the start of `bytes`; the checksum is checked before any field is believed.
    pub fn decode(bytes: &[u8]) -> Result<FileHeader, HeaderError> {
        let block = bytes.get(..HEADER_BYTES).ok_or(HeaderError::Truncated)?;
        if !block.starts_with(MAGIC) {
            let blank = block.iter().all(|byte| *byte == 0);
            return Err(if blank { HeaderError::Blank } else { HeaderError::BadMagic });
        }
        let expected = u32::from_le_bytes([block[12], block[13], block[14], block[15]]);
        let found = header_crc(block);
        if expected != found {
            return Err(HeaderError::Checksum { expected, found });
        }
        let short = |_| HeaderError::Truncated;
        let mut reader = Reader::new(&block[MAGIC.len()..]);
        let version = reader.u16().map_err(short)?;
        if version != HEADER_VERSION {
            return Err(HeaderError::UnknownVersion(version));
        }
        let kind = reader.u16().map_err(short)?;
        reader.u32().map_err(short)?;
        let cluster = ClusterId(reader.u128().map_err(short)?);
        let node = NodeId(reader.u128().map_err(short)?);
        let session = NodeSession(reader.u64().map_err(short)?);
        let salt = reader.u128().map_err(short)?;
        let shard = ShardId(reader.u64().map_err(short)?);
        let stream = StreamId(reader.u64().map_err(short)?);
        let base_offset = Offset(reader.u64().map_err(short)?);
        let wal_session = NodeSession(reader.u64().map_err(short)?);
        let lineage = Lineage(reader.u32().map_err(short)?);
        let number = reader.u32().map_err(short)?;
        let core = CoreId(reader.u8().map_err(short)?);
        let region_bytes = usize::from(reader.u8().map_err(short)?);
        let region = reader
            .bytes(LABEL_BYTES_MAX)
            .ok()
            .and_then(|bytes| bytes.get(..region_bytes))
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .and_then(Region::new)
            .ok_or(HeaderError::BadField("region"))?;
        let segment = SegmentId { lineage, base_offset };
        let owner = match kind {
            1 => Owner::Folder,
            2 => Owner::Wal { wal: WalId { session: wal_session, core }, number },
            3 => Owner::Segment { stream, shard, segment },
            4 => Owner::Index { stream, shard, segment },
            5 => Owner::Meta { stream, shard },
            6 => Owner::Keyring,
            8 => Owner::Producers { stream, shard },
            _ => return Err(HeaderError::UnknownKind(kind)),
        };
        let header = FileHeader { identity: Identity { cluster, node, region }, session, salt, owner };
        // One form only: fields that this kind does not use, and the rest of the block, are zero.
        let mut again = Vec::with_capacity(HEADER_BYTES);
        header.encode(&mut again);
        if again != block {
            return Err(HeaderError::BadField("unused"));
        }
        Ok(header)
    }

    /// Reads a header and compares it with what the file must be.
    pub fn expect(bytes: &[u8], identity: &Identity, owner: &Owner) -> Result<FileHeader, HeaderError> {
        let header = FileHeader::decode(bytes)?;
        let (ours, found) = (identity, &header.identity);
        if ours.cluster != found.cluster {
            return Err(HeaderError::OtherCluster { expected: ours.cluster, found: found.cluster });
        }
        if ours.region != found.region {
            return Err(HeaderError::OtherRegion(found.region));
        }
        if ours.node != found.node {
            return Err(HeaderError::OtherNode { expected: ours.node, found: found.node });
        }
        if header.owner != *owner {
            return Err(HeaderError::OtherOwner { expected: *owner, found: header.owner });
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests;
