//! **What**: a segment file: a header block, then dense chunks; a chunk is what one write-behind flush made of whole
//! batches.
//!
//! ```text
//! segment = file header (4,096 bytes) | chunk | chunk | ... | zeros up to the reserved size
//! chunk   = header (128 bytes) | stored batches back to back | zeros up to the next multiple of 4,096
//!
//!  0 u32 magic "FxCk"                       48 u64 first epoch
//!  4 u32 header_crc   CRC32C of 0..4, 8..128 56 u64 last epoch
//!  8 u32 payload_bytes                      64 u64 first append time
//! 12 u32 payload_crc                        72 u64 last append time
//! 16 u16 version 1                          80 u64 chain before the first batch
//! 18 u16 flags  1: sealed, 2: compacted     88 u64 chain after the last batch
//! 20 u32 batch_count                        96 u64 shard
//! 24 u32 lineage                           104 u64 place: byte of the file where it begins
//! 28 u32 tag: checksum of the file header  112 u64 0
//! 32 u64 first offset                      120 u64 0
//! 40 u64 end offset
//! ```
//!
//! **Invariants**: chunks of a segment cover its offsets without a hole, and the chain leads from one to the next. Shard,
//! lineage, file tag and place are in every chunk, so one that was written to a wrong place or file does not pass.
//! Batches of a compacted chunk may leave offsets out, but only inside the range of the chunk.
//!
//! **Never**: a chunk over `CHUNK_BYTES_MAX`; it is the unit a reader holds in memory.
//!
//! **See**: `stored.rs` for the batches, `log.rs` for who writes, `read.rs` for who reads.

use super::stored::{STORED_BYTES_MAX, StoredBatch, StoredError};
use crate::disk::BLOCK_BYTES;
use felix_protocol::batch::StampedHeader;
use felix_protocol::codec::{Reader, Writer};
use felix_protocol::ids::ShardId;
use felix_protocol::position::{Epoch, Lineage, Offset, OffsetRange};
use felix_protocol::time::Timestamp;
use std::fmt;

const CHUNK_MAGIC: u32 = u32::from_le_bytes(*b"FxCk");
const CHUNK_VERSION: u16 = 1;
const FLAG_SEALED: u16 = 1 << 0;
const FLAG_COMPACTED: u16 = 1 << 1;
/// Bytes of a chunk header.
pub const CHUNK_HEADER_BYTES: usize = 128;
/// Payload at which a chunk takes no further batch.
pub const CHUNK_PAYLOAD_TARGET_MAX: usize = 512 << 10;
/// Largest chunk: what fits below the target, and one batch more.
pub const CHUNK_BYTES_MAX: usize =
    (CHUNK_HEADER_BYTES + CHUNK_PAYLOAD_TARGET_MAX + STORED_BYTES_MAX).next_multiple_of(BLOCK_BYTES);
/// Where the first chunk of a segment begins.
pub const FIRST_CHUNK_AT: u64 = BLOCK_BYTES as u64;

const _: () = assert!(CHUNK_BYTES_MAX <= 2 << 20, "a reader holds a chunk in memory");

/// Order of stored batches, checked wherever they are written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogCursor {
    /// Log.
    pub shard: ShardId,
    /// Incarnation.
    pub lineage: Lineage,
    /// The next offset.
    pub next: Offset,
    /// Chain of the batch before.
    pub chain: u64,
    /// Epoch of the batch before.
    pub epoch: Epoch,
    /// Append time of the batch before.
    pub time: Timestamp,
}

/// Why a batch does not continue a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderError {
    /// Of another shard.
    Shard(ShardId),
    /// Of another lineage.
    Lineage(Lineage),
    /// Another offset.
    Offset {
        /// The next offset.
        expected: Offset,
        /// The batch's.
        found: Offset,
    },
    /// It covers no offset, or more than its chunk.
    Range(OffsetRange),
    /// An older epoch.
    Epoch {
        /// Of the batch before.
        before: Epoch,
        /// The batch's.
        found: Epoch,
    },
    /// An earlier append time.
    Time {
        /// Of the batch before.
        before: Timestamp,
        /// The batch's.
        found: Timestamp,
    },
    /// The chain does not follow from the batch before.
    Chain {
        /// What follows from the batch before.
        expected: u64,
        /// The batch's.
        found: u64,
    },
    /// A batch from which records were taken out, in a chunk that is not compacted.
    Derived,
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OrderError::Shard(found) => write!(f, "it belongs to shard {found}"),
            OrderError::Lineage(found) => write!(f, "it belongs to lineage {}", found.0),
            OrderError::Offset { expected, found } => write!(f, "offset {found} where {expected} follows"),
            OrderError::Range(range) => write!(f, "offsets {}..{} do not fit here", range.from, range.to),
            OrderError::Epoch { before, found } => write!(f, "epoch {} after epoch {}", found.0, before.0),
            OrderError::Time { before, found } => write!(f, "append time {} after {}", found.0, before.0),
            OrderError::Chain { expected, found } => write!(f, "chain {found:#018x} where {expected:#018x} follows"),
            OrderError::Derived => f.write_str("records were taken out of it"),
        }
    }
}

impl std::error::Error for OrderError {}

impl LogCursor {
    /// Checks that a batch follows, and steps over it. `compacted`: offsets may be left out, and a batch from which
    /// records were taken carries the chain it had before.
    pub fn advance(&mut self, header: &StampedHeader, body_crc: u32, compacted: bool) -> Result<(), OrderError> {
        if header.shard != self.shard {
            return Err(OrderError::Shard(header.shard));
        }
        if header.lineage != self.lineage {
            return Err(OrderError::Lineage(header.lineage));
        }
        let range = header.range();
        if range.from < self.next || !compacted && range.from != self.next {
            return Err(OrderError::Offset { expected: self.next, found: range.from });
        }
        if range.count() == 0 {
            return Err(OrderError::Range(range));
        }
        if header.epoch < self.epoch {
            return Err(OrderError::Epoch { before: self.epoch, found: header.epoch });
        }
        if header.append_time < self.time {
            return Err(OrderError::Time { before: self.time, found: header.append_time });
        }
        if header.is_derived() && !compacted {
            return Err(OrderError::Derived);
        }
        if !header.is_derived() && range.from == self.next {
            let mut linked = *header;
            linked.link(self.chain, body_crc);
            if linked.chain != header.chain {
                return Err(OrderError::Chain { expected: linked.chain, found: header.chain });
            }
        }
        self.next = range.to;
        self.chain = header.chain;
        self.epoch = header.epoch;
        self.time = header.append_time;
        Ok(())
    }
}

/// Header of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Bytes of stored batches.
    pub payload_bytes: u32,
    /// Their CRC32C.
    pub payload_crc: u32,
    /// The batches are sealed at rest.
    pub sealed: bool,
    /// Compaction made it.
    pub compacted: bool,
    /// Number of batches.
    pub batch_count: u32,
    /// Log.
    pub shard: ShardId,
    /// Incarnation.
    pub lineage: Lineage,
    /// Of the file: `file_tag` of its header block.
    pub tag: u32,
    /// Byte of the file where it begins.
    pub place: u64,
    /// Offsets.
    pub range: OffsetRange,
    /// Of the first and the last batch.
    pub epochs: (Epoch, Epoch),
    /// Of the first and the last batch.
    pub times: (Timestamp, Timestamp),
    /// Chain before the first batch.
    pub chain_in: u64,
    /// Chain after the last batch.
    pub chain_out: u64,
}

/// Why a chunk was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkError {
    /// Zeros: nothing was ever written here.
    Empty,
    /// Fewer bytes than announced.
    Truncated,
    /// Not a chunk.
    Magic(u32),
    /// The header's checksum does not fit.
    HeaderChecksum {
        /// Stored.
        expected: u32,
        /// Of the bytes.
        found: u32,
    },
    /// A version this build does not read.
    Version(u16),
    /// A field out of range; the text names it.
    Field(&'static str),
    /// It belongs elsewhere: another shard, lineage, file or place.
    Elsewhere {
        /// Which of them.
        what: &'static str,
        /// Wanted.
        expected: u64,
        /// Stored.
        found: u64,
    },
    /// The checksum of the batches does not fit.
    PayloadChecksum {
        /// Stored.
        expected: u32,
        /// Of the bytes.
        found: u32,
    },
    /// Bytes after the payload that are not zero.
    Padding,
    /// A batch of it is bad.
    Stored {
        /// Where it begins in the payload.
        at: u32,
        /// Why.
        error: StoredError,
    },
    /// A batch of it does not follow.
    Order {
        /// Where it begins in the payload.
        at: u32,
        /// Why.
        error: OrderError,
    },
    /// The batches end elsewhere than the header says; the text names what differs.
    Summary(&'static str),
}

impl fmt::Display for ChunkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChunkError::Empty => f.write_str("nothing was written here"),
            ChunkError::Truncated => f.write_str("the file ends before the chunk does"),
            ChunkError::Magic(found) => write!(f, "magic number {found:#010x} is not a chunk's"),
            ChunkError::HeaderChecksum { expected, found } => {
                write!(f, "chunk header checksum {expected:#010x}, its bytes give {found:#010x}")
            }
            ChunkError::Version(found) => write!(f, "chunk version {found} is not known"),
            ChunkError::Field(field) => write!(f, "chunk field {field} is out of range"),
            ChunkError::Elsewhere { what, expected, found } => {
                write!(f, "the chunk says {what} {found}, this is {what} {expected}")
            }
            ChunkError::PayloadChecksum { expected, found } => {
                write!(f, "chunk checksum {expected:#010x}, its bytes give {found:#010x}")
            }
            ChunkError::Padding => f.write_str("bytes after the chunk's batches are not zero"),
            ChunkError::Stored { at, error } => write!(f, "batch at byte {at} of the chunk: {error}"),
            ChunkError::Order { at, error } => write!(f, "batch at byte {at} of the chunk: {error}"),
            ChunkError::Summary(what) => write!(f, "{what} of the batches differs from the chunk header"),
        }
    }
}

impl std::error::Error for ChunkError {}

/// Which chunk is wanted where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkPlace {
    /// Log.
    pub shard: ShardId,
    /// Incarnation.
    pub lineage: Lineage,
    /// Of the file: `file_tag` of its header block.
    pub tag: u32,
    /// Byte of the file.
    pub at: u64,
}

impl ChunkHeader {
    /// Bytes in the file, padding included.
    pub fn stored_bytes(&self) -> usize {
        (CHUNK_HEADER_BYTES + self.payload_bytes as usize).next_multiple_of(BLOCK_BYTES)
    }

    /// The 128 bytes.
    pub fn encode(&self) -> [u8; CHUNK_HEADER_BYTES] {
        let mut out = [0; CHUNK_HEADER_BYTES];
        let mut writer = SliceWriter { out: &mut out, at: 0 };
        writer.put_u32(CHUNK_MAGIC);
        writer.put_u32(0);
        writer.put_u32(self.payload_bytes);
        writer.put_u32(self.payload_crc);
        writer.put_u16(CHUNK_VERSION);
        writer.put_u16((u16::from(self.sealed) * FLAG_SEALED) | (u16::from(self.compacted) * FLAG_COMPACTED));
        writer.put_u32(self.batch_count);
        writer.put_u32(self.lineage.0);
        writer.put_u32(self.tag);
        for word in [
            self.range.from.0,
            self.range.to.0,
            self.epochs.0.0,
            self.epochs.1.0,
            self.times.0.0,
            self.times.1.0,
            self.chain_in,
            self.chain_out,
            self.shard.0,
            self.place,
        ] {
            writer.put_u64(word);
        }
        let crc = header_crc(&out);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads and checks a header.
    pub fn decode(bytes: &[u8]) -> Result<ChunkHeader, ChunkError> {
        let head: &[u8; CHUNK_HEADER_BYTES] = bytes.first_chunk().ok_or(ChunkError::Truncated)?;
        let mut reader = Reader::new(head);
        let mut words = || -> Result<(ChunkHeader, u32, u32, u16, u16, u64), felix_protocol::codec::DecodeError> {
            let (magic, crc) = (reader.u32()?, reader.u32()?);
            let (payload_bytes, payload_crc) = (reader.u32()?, reader.u32()?);
            let (version, flags) = (reader.u16()?, reader.u16()?);
            let (batch_count, lineage, tag) = (reader.u32()?, Lineage(reader.u32()?), reader.u32()?);
            let range = OffsetRange { from: Offset(reader.u64()?), to: Offset(reader.u64()?) };
            let epochs = (Epoch(reader.u64()?), Epoch(reader.u64()?));
            let times = (Timestamp(reader.u64()?), Timestamp(reader.u64()?));
            let (chain_in, chain_out) = (reader.u64()?, reader.u64()?);
            let (shard, place) = (ShardId(reader.u64()?), reader.u64()?);
            let reserved = reader.u64()? | reader.u64()?;
            let header = ChunkHeader {
                payload_bytes,
                payload_crc,
                sealed: flags & FLAG_SEALED != 0,
                compacted: flags & FLAG_COMPACTED != 0,
                batch_count,
                shard,
                lineage,
                tag,
                place,
                range,
                epochs,
                times,
                chain_in,
                chain_out,
            };
            Ok((header, magic, crc, version, flags, reserved))
        };
        let (header, magic, expected, version, flags, reserved) = words().map_err(|_| ChunkError::Truncated)?;
        if head.iter().all(|byte| *byte == 0) {
            return Err(ChunkError::Empty);
        }
        if magic != CHUNK_MAGIC {
            return Err(ChunkError::Magic(magic));
        }
        let found = header_crc(head);
        if found != expected {
            return Err(ChunkError::HeaderChecksum { expected, found });
        }
        if version != CHUNK_VERSION {
            return Err(ChunkError::Version(version));
        }
        for (fits, field) in [
            (flags & !(FLAG_SEALED | FLAG_COMPACTED) == 0, "flags"),
            (reserved == 0, "reserved"),
            (header.payload_bytes as usize <= CHUNK_BYTES_MAX - CHUNK_HEADER_BYTES, "payload_bytes"),
            (header.range.from < header.range.to, "offsets"),
            (header.epochs.0 <= header.epochs.1, "epochs"),
            (header.times.0 <= header.times.1, "append times"),
            (header.compacted || header.batch_count > 0, "batch_count"),
        ] {
            if !fits {
                return Err(ChunkError::Field(field));
            }
        }
        Ok(header)
    }

    /// Reads a header and checks that it belongs where it was found.
    pub fn decode_at(bytes: &[u8], place: ChunkPlace) -> Result<ChunkHeader, ChunkError> {
        let header = ChunkHeader::decode(bytes)?;
        for (what, expected, found) in [
            ("shard", place.shard.0, header.shard.0),
            ("lineage", u64::from(place.lineage.0), u64::from(header.lineage.0)),
            ("file tag", u64::from(place.tag), u64::from(header.tag)),
            ("place", place.at, header.place),
        ] {
            if expected != found {
                return Err(ChunkError::Elsewhere { what, expected, found });
            }
        }
        Ok(header)
    }

    /// The cursor in front of its first batch.
    pub fn cursor(&self) -> LogCursor {
        LogCursor {
            shard: self.shard,
            lineage: self.lineage,
            next: self.range.from,
            chain: self.chain_in,
            epoch: self.epochs.0,
            time: self.times.0,
        }
    }

    /// Checks a whole chunk, `stored_bytes()` long: checksum, padding, every batch, their order, and that they end as
    /// the header says. Returns the payload.
    pub fn check<'a>(&self, chunk: &'a [u8]) -> Result<&'a [u8], ChunkError> {
        if chunk.len() != self.stored_bytes() {
            return Err(ChunkError::Truncated);
        }
        let (payload, padding) = chunk[CHUNK_HEADER_BYTES..].split_at(self.payload_bytes as usize);
        let found = crc32c::crc32c(payload);
        if found != self.payload_crc {
            return Err(ChunkError::PayloadChecksum { expected: self.payload_crc, found });
        }
        if padding.iter().any(|byte| *byte != 0) {
            return Err(ChunkError::Padding);
        }
        let mut cursor = self.cursor();
        let mut rest = payload;
        let mut count = 0;
        while !rest.is_empty() {
            let at = (payload.len() - rest.len()) as u32;
            let (batch, tail) =
                StoredBatch::split_first(rest, self.sealed).map_err(|error| ChunkError::Stored { at, error })?;
            cursor
                .advance(&batch.header, batch.body_crc, self.compacted)
                .map_err(|error| ChunkError::Order { at, error })?;
            count += 1;
            rest = tail;
        }
        let exact = !self.compacted;
        for (fits, what) in [
            (count == self.batch_count, "count"),
            (cursor.next == self.range.to || !exact && cursor.next < self.range.to, "end offset"),
            (cursor.epoch == self.epochs.1 || !exact && cursor.epoch < self.epochs.1, "last epoch"),
            (cursor.time == self.times.1 || !exact && cursor.time < self.times.1, "last append time"),
            (cursor.chain == self.chain_out || !exact, "chain"),
        ] {
            if !fits {
                return Err(ChunkError::Summary(what));
            }
        }
        Ok(payload)
    }
}

/// Checksum of a segment's header block, repeated in each of its chunks.
pub fn file_tag(header_block: &[u8]) -> u32 {
    crc32c::crc32c(header_block)
}

fn header_crc(bytes: &[u8; CHUNK_HEADER_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..4]), &bytes[8..])
}

/// Writes fields into a slice that has room for them.
pub(super) struct SliceWriter<'a> {
    pub(super) out: &'a mut [u8],
    pub(super) at: usize,
}

impl Writer for SliceWriter<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}
