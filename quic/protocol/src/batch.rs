//! **What**: the record batch, format 1: the same bytes on the wire, in memory and on disk.
//!
//! ```text
//! batch = stamped header (80 bytes, the broker's) | body (the producer's, never re-encoded) | [stamped TLV section]
//! stamped TLV section = u32 CRC32C of the TLVs | TLVs         absent if there are none
//!
//! stamped header                         body
//!  0 u32 batch_bytes   all of it          0 u32 body_crc     CRC32C of bytes 4..body_bytes
//!  4 u8  format        1                  4 u32 body_bytes   header, TLVs, index, values
//!  5 u8  kind                             8 u8  format       1
//!  6 u16 flags                            9 u8  compression  of the values section
//!  8 u32 header_crc    CRC32C of         10 u16 flags
//!                      0..8 and 12..80   12 u32 record_count
//! 12 u32 offset_count  offsets covered   16 u32 index_bytes
//! 16 u64 stream_id                       20 u32 values_bytes      as stored
//! 24 u64 shard_id                        24 u32 values_bytes_raw  decompressed
//! 32 u64 epoch                           28 u32 producer_epoch
//! 40 u32 lineage                         32 u64 producer_id       0: anonymous
//! 44 u32 tlv_bytes     stamped section   40 u64 base_sequence
//! 48 u64 base_offset                     48 u64 base_time         producer's clock, ns since 1970
//! 56 u64 append_time   ns since 1970     56 u32 key_id            0: not encrypted
//! 64 u64 durable_end   at write          60 u32 tlv_bytes         before the index
//! 72 u64 chain                           64 TLVs | index section | values section
//!
//! index section, per record:  u8 flags | varint offset_delta | varint time_delta_ns
//!   | [varint key_bytes, key] | [varint ttl_ms] | [varint headers_bytes] | varint value_bytes
//! values section, per record: headers | value        headers: (varint n, name, varint v, value)*
//! ```
//!
//! **Invariants**: the index section is never compressed nor encrypted, so a broker filters, expires and compacts
//! without opening a value (DECISIONS 1). Offset deltas rise strictly; only a DERIVED batch has holes.
//!
//! **Never**: a stamp on a body that was not checked.
//!
//! **See**: `batch_builder.rs` (makes a body), `batch_view.rs` (checks and reads), `derive.rs` (filters).

use crate::batch_view::BatchError;
use crate::codec::{Reader, Writer};
use crate::ids::{ShardId, StreamId};
use crate::limits::{STAMPED_HEADER_BYTES, STAMPED_TLV_CRC_BYTES};
use crate::position::{Epoch, Lineage, Offset, OffsetRange};
use crate::time::Timestamp;

/// Version of the batch format.
pub const BATCH_FORMAT: u8 = 1;

/// Flag of the stamped header: filtering or compaction took records out; checksums are fresh, the range is the original.
pub const BATCH_FLAG_DERIVED: u16 = 1 << 0;
const BATCH_FLAGS_KNOWN: u16 = BATCH_FLAG_DERIVED;

/// Stamped TLV reserved for bridges: region, cluster, stream and offset that a batch came from.
pub const STAMPED_TLV_ORIGIN: u16 = 0x0010;
/// Stamped TLV reserved for bridges: hop count.
pub const STAMPED_TLV_HOPS: u16 = 0x0011;
/// Stamped TLV reserved for audit streams: SHA-256 chain.
pub const STAMPED_TLV_SHA256: u16 = 0x0012;

/// What a batch is for. Only `Data` is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BatchKind {
    /// Records of users.
    Data = 0,
    /// Leases, acks, cursors, producers, checkpoints.
    State = 1,
    /// First batch of a leader's epoch.
    EpochStart = 2,
    /// Staged part of a transaction.
    Prepare = 3,
    /// End of a transaction: its records follow.
    Commit = 4,
    /// End of a transaction: nothing follows.
    Abort = 5,
    /// Offsets whose tombstones were swept.
    TombstoneSweep = 6,
}

impl BatchKind {
    /// The kind of a number.
    pub fn from_number(number: u8) -> Option<BatchKind> {
        use BatchKind::*;
        [Data, State, EpochStart, Prepare, Commit, Abort, TombstoneSweep].into_iter().find(|kind| *kind as u8 == number)
    }
}

/// How the values section is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Compression {
    /// As it is.
    #[default]
    None = 0,
    /// LZ4 block.
    Lz4 = 1,
    /// Zstandard frame.
    Zstd = 2,
}

impl Compression {
    /// The compression of a number.
    pub fn from_number(number: u8) -> Option<Compression> {
        [Compression::None, Compression::Lz4, Compression::Zstd].into_iter().find(|it| *it as u8 == number)
    }
}

/// The broker's header of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StampedHeader {
    /// Bytes of the whole batch.
    pub batch_bytes: u32,
    /// What it is for.
    pub kind: BatchKind,
    /// `BATCH_FLAG_*`.
    pub flags: u16,
    /// Offsets covered, records taken out included.
    pub offset_count: u32,
    /// Stream the records belong to.
    pub stream: StreamId,
    /// Log they are in.
    pub shard: ShardId,
    /// Leader generation that appended them.
    pub epoch: Epoch,
    /// Incarnation of the data.
    pub lineage: Lineage,
    /// Bytes of the stamped TLV section after the body, its checksum included; 0: no section.
    pub tlv_bytes: u32,
    /// Offset of the first record.
    pub base_offset: Offset,
    /// When the leader appended; never runs backwards in a shard.
    pub append_time: Timestamp,
    /// The leader's durable end at that time.
    pub durable_end: Offset,
    /// Hash of the batch before, this header and the body's checksum: finds damage, does not stop an attacker.
    pub chain: u64,
}

impl StampedHeader {
    /// Offsets this batch covers.
    pub fn range(&self) -> OffsetRange {
        OffsetRange { from: self.base_offset, to: Offset(self.base_offset.0 + u64::from(self.offset_count)) }
    }

    /// Whether records were taken out after the append.
    pub fn is_derived(&self) -> bool {
        self.flags & BATCH_FLAG_DERIVED != 0
    }

    /// Sets the chain from the chain of the batch before and this body's checksum (XXH3-64, seeded by the chain before).
    pub fn link(&mut self, chain_before: u64, body_crc: u32) {
        self.chain = 0;
        let mut bytes = [0u8; STAMPED_HEADER_BYTES + 4];
        bytes[..STAMPED_HEADER_BYTES].copy_from_slice(&self.encode_with_crc(0));
        bytes[STAMPED_HEADER_BYTES..].copy_from_slice(&body_crc.to_le_bytes());
        self.chain = xxhash_rust::xxh3::xxh3_64_with_seed(&bytes, chain_before);
    }

    /// The 80 bytes, checksum included.
    pub fn encode(&self) -> [u8; STAMPED_HEADER_BYTES] {
        let mut bytes = self.encode_with_crc(0);
        let crc = header_crc(&bytes);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn encode_with_crc(&self, crc: u32) -> [u8; STAMPED_HEADER_BYTES] {
        let mut out = [0u8; STAMPED_HEADER_BYTES];
        let mut cursor = FixedWriter { out: &mut out, at: 0 };
        cursor.put_u32(self.batch_bytes);
        cursor.put_u8(BATCH_FORMAT);
        cursor.put_u8(self.kind as u8);
        cursor.put_u16(self.flags);
        cursor.put_u32(crc);
        cursor.put_u32(self.offset_count);
        cursor.put_u64(self.stream.0);
        cursor.put_u64(self.shard.0);
        cursor.put_u64(self.epoch.0);
        cursor.put_u32(self.lineage.0);
        cursor.put_u32(self.tlv_bytes);
        cursor.put_u64(self.base_offset.0);
        cursor.put_u64(self.append_time.0);
        cursor.put_u64(self.durable_end.0);
        cursor.put_u64(self.chain);
        debug_assert_eq!(cursor.at, STAMPED_HEADER_BYTES);
        out
    }

    /// Reads and checks a header; the checksum is checked before any field is believed.
    pub fn decode(bytes: &[u8]) -> Result<StampedHeader, BatchError> {
        let head: &[u8; STAMPED_HEADER_BYTES] = bytes.first_chunk().ok_or(BatchError::Truncated)?;
        let expected = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        let found = header_crc(head);
        if expected != found {
            return Err(BatchError::HeaderChecksum { expected, found });
        }
        let mut reader = Reader::new(head);
        let batch_bytes = reader.u32()?;
        let format = reader.u8()?;
        if format != BATCH_FORMAT {
            return Err(BatchError::UnknownFormat(format));
        }
        let kind = BatchKind::from_number(reader.u8()?).ok_or(BatchError::BadField("kind"))?;
        let flags = reader.u16()?;
        if flags & !BATCH_FLAGS_KNOWN != 0 {
            return Err(BatchError::BadField("flags"));
        }
        reader.u32()?;
        let header = StampedHeader {
            batch_bytes,
            kind,
            flags,
            offset_count: reader.u32()?,
            stream: StreamId(reader.u64()?),
            shard: ShardId(reader.u64()?),
            epoch: Epoch(reader.u64()?),
            lineage: Lineage(reader.u32()?),
            tlv_bytes: reader.u32()?,
            base_offset: Offset(reader.u64()?),
            append_time: Timestamp(reader.u64()?),
            durable_end: Offset(reader.u64()?),
            chain: reader.u64()?,
        };
        if header.base_offset.checked_add(u64::from(header.offset_count)).is_none() {
            return Err(BatchError::BadField("base_offset"));
        }
        Ok(header)
    }
}

/// Appends a stamped TLV section: checksum, then the TLVs. Nothing if there are none. Returns the `tlv_bytes` to stamp.
pub fn put_stamped_tlvs(out: &mut Vec<u8>, tlvs: &[u8]) -> u32 {
    if tlvs.is_empty() {
        return 0;
    }
    out.put_u32(crc32c::crc32c(tlvs));
    out.put(tlvs);
    (STAMPED_TLV_CRC_BYTES + tlvs.len()) as u32
}

fn header_crc(bytes: &[u8; STAMPED_HEADER_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), &bytes[12..])
}

struct FixedWriter<'a> {
    out: &'a mut [u8; STAMPED_HEADER_BYTES],
    at: usize,
}

impl Writer for FixedWriter<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn header() -> StampedHeader {
        StampedHeader {
            batch_bytes: 200,
            kind: BatchKind::Data,
            flags: 0,
            offset_count: 3,
            stream: StreamId(7),
            shard: ShardId(9),
            epoch: Epoch(2),
            lineage: Lineage(1),
            tlv_bytes: 0,
            base_offset: Offset(1_000),
            append_time: Timestamp(1_700_000_000_000_000_000),
            durable_end: Offset(900),
            chain: 0x1122_3344_5566_7788,
        }
    }

    #[test]
    fn header_round_trips_and_every_bit_flip_is_found() {
        let bytes = header().encode();
        assert_eq!(StampedHeader::decode(&bytes), Ok(header()));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(StampedHeader::decode(&bad), Err(BatchError::HeaderChecksum { .. })), "bit {bit}");
        }
    }

    #[test]
    fn chain_depends_on_everything() {
        let mut base = header();
        base.link(5, 6);
        let mut other = header();
        other.link(5, 7);
        assert_ne!(base.chain, other.chain);
        other.link(4, 6);
        assert_ne!(base.chain, other.chain);
        other.base_offset = Offset(1_001);
        other.link(5, 6);
        assert_ne!(base.chain, other.chain);
        other.base_offset = Offset(1_000);
        other.link(5, 6);
        assert_eq!(base.chain, other.chain, "the chain does not depend on the chain field itself");
    }
}
