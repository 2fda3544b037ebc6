//! **What**: packs batches of one shard into chunks, ready to be written in one piece.
//!
//! **Invariants**: every batch is checked once more before it becomes durable: its checksums, that it continues the log,
//! its chain. What was damaged in memory is refused here, never written.
//!
//! **Never**: an allocation per batch in the steady state: one builder per core, its buffer comes back after each flush.
//!
//! **See**: `format/segment.rs` for the bytes, `log.rs` for `flush`, `compact.rs`.

use crate::disk::BLOCK_BYTES;
use crate::format::segment::{
    CHUNK_BYTES_MAX, CHUNK_HEADER_BYTES, CHUNK_PAYLOAD_TARGET_MAX, ChunkHeader, LogCursor, OrderError,
};
use crate::format::stored::{STORED_BYTES_MAX, StoredBatch, StoredError};
use felix_protocol::position::{Epoch, Offset, OffsetRange};
use felix_protocol::time::Timestamp;
use std::fmt;

/// Bytes after which a builder takes no further batch: one flush is one write.
pub const FLUSH_BYTES_MAX: usize = 8 << 20;

const _: () = assert!(FLUSH_BYTES_MAX >= 2 * CHUNK_BYTES_MAX);

/// Why a batch was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// The builder has enough: flush it, then go on.
    Full,
    /// `begin` was not called.
    NotBegun,
    /// The batch is damaged.
    Stored(StoredError),
    /// More bytes than one batch.
    TrailingBytes,
    /// It does not continue the log.
    Order(OrderError),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::Full => f.write_str("the flush is full"),
            BuildError::NotBegun => f.write_str("the flush was not begun"),
            BuildError::Stored(error) => error.fmt(f),
            BuildError::TrailingBytes => f.write_str("bytes follow the batch"),
            BuildError::Order(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BuildError {}

/// Epochs that began in a flush, beside the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochBegin {
    /// The epoch.
    pub epoch: Epoch,
    /// Its first offset.
    pub start: Offset,
}

/// Batches on their way to a segment.
#[derive(Debug, Default)]
pub struct ChunkBuilder {
    bytes: Vec<u8>,
    chunks: Vec<(usize, ChunkHeader)>,
    epochs: Vec<EpochBegin>,
    cursor: Option<LogCursor>,
    compacted: bool,
    open: bool,
}

impl ChunkBuilder {
    /// An empty one; allocates nothing.
    pub fn new() -> ChunkBuilder {
        ChunkBuilder::default()
    }

    /// Starts anew at the end of a log, with what `ShardLog::cursor` says.
    pub fn begin(&mut self, cursor: LogCursor) {
        self.bytes.clear();
        self.chunks.clear();
        self.epochs.clear();
        self.cursor = Some(cursor);
        self.compacted = false;
        self.open = false;
    }

    /// Starts anew for compacted chunks.
    pub(crate) fn begin_compacted(&mut self, cursor: LogCursor) {
        self.begin(cursor);
        self.compacted = true;
    }

    /// Starts anew at the end of a log for batches of a backup of it: offsets may be left out, and batches from which
    /// compaction took records may come. What follows directly is checked as ever.
    pub fn begin_restored(&mut self, cursor: LogCursor) {
        self.begin_compacted(cursor);
    }

    /// After `begin_restored`: offsets up to `to` are covered without batches. Nothing happens if they are already.
    pub fn skip(&mut self, to: Offset) {
        if let Some(cursor) = self.cursor.filter(|cursor| cursor.next < to) {
            self.cover(LogCursor { next: to, ..cursor }, false);
        }
    }

    /// Takes the next batch, clear or `sealed` at rest.
    pub fn push(&mut self, batch: &[u8], sealed: bool) -> Result<(), BuildError> {
        let mut cursor = self.cursor.ok_or(BuildError::NotBegun)?;
        if self.bytes.len() + CHUNK_HEADER_BYTES + STORED_BYTES_MAX + BLOCK_BYTES > FLUSH_BYTES_MAX {
            return Err(BuildError::Full);
        }
        let (stored, rest) = StoredBatch::split_first(batch, sealed).map_err(BuildError::Stored)?;
        if !rest.is_empty() {
            return Err(BuildError::TrailingBytes);
        }
        let before = cursor;
        cursor.advance(&stored.header, stored.body_crc, self.compacted).map_err(BuildError::Order)?;
        let fits = self.chunks.last().is_some_and(|(_, chunk)| {
            self.open && chunk.sealed == sealed && (chunk.payload_bytes as usize) < CHUNK_PAYLOAD_TARGET_MAX
        });
        if !fits {
            self.close_chunk();
            self.open_chunk(before, sealed);
        }
        let (_, chunk) = self.chunks.last_mut().expect("a chunk is open");
        if chunk.batch_count == 0 {
            chunk.epochs.0 = stored.header.epoch;
            chunk.times.0 = stored.header.append_time;
        }
        chunk.payload_bytes += batch.len() as u32;
        chunk.payload_crc = crc32c::crc32c_append(chunk.payload_crc, batch);
        chunk.batch_count += 1;
        chunk.range.to = cursor.next;
        chunk.epochs.1 = cursor.epoch;
        chunk.times.1 = cursor.time;
        chunk.chain_out = cursor.chain;
        self.bytes.extend_from_slice(batch);
        if before.epoch != cursor.epoch || self.epochs.is_empty() {
            self.epochs.push(EpochBegin { epoch: cursor.epoch, start: stored.header.base_offset });
        }
        self.cursor = Some(cursor);
        Ok(())
    }

    /// Compaction: the offsets up to `cursor.next` are covered, with or without batches, and the chain goes on as there.
    pub(crate) fn cover(&mut self, cursor: LogCursor, sealed: bool) {
        assert!(self.compacted, "only compaction leaves offsets out");
        let before = self.cursor.expect("begin was called");
        if cursor.next <= before.next && cursor.chain == before.chain {
            return;
        }
        if !self.open {
            self.open_chunk(before, sealed);
        }
        let (_, chunk) = self.chunks.last_mut().expect("a chunk is open");
        if chunk.batch_count == 0 && chunk.range.from == chunk.range.to {
            chunk.epochs.0 = chunk.epochs.0.max(before.epoch);
        }
        chunk.range.to = cursor.next;
        chunk.epochs.1 = cursor.epoch;
        chunk.times.1 = cursor.time;
        chunk.chain_out = cursor.chain;
        self.cursor = Some(cursor);
    }

    fn open_chunk(&mut self, before: LogCursor, sealed: bool) {
        self.chunks.push((
            self.bytes.len(),
            ChunkHeader {
                payload_bytes: 0,
                payload_crc: 0,
                sealed,
                compacted: self.compacted,
                batch_count: 0,
                shard: before.shard,
                lineage: before.lineage,
                tag: 0,
                place: 0,
                range: OffsetRange { from: before.next, to: before.next },
                epochs: (before.epoch, before.epoch),
                times: (before.time, before.time),
                chain_in: before.chain,
                chain_out: before.chain,
            },
        ));
        self.bytes.resize(self.bytes.len() + CHUNK_HEADER_BYTES, 0);
        self.open = true;
    }

    fn close_chunk(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        self.open = false;
    }

    /// Nothing was taken.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes to write if it were flushed now.
    pub fn bytes(&self) -> usize {
        self.bytes.len().next_multiple_of(BLOCK_BYTES)
    }

    /// Where the log ends after it. None: `begin` was not called.
    pub fn cursor(&self) -> Option<LogCursor> {
        self.cursor
    }

    /// Append time of its first batch.
    pub(crate) fn first_time(&self) -> Option<Timestamp> {
        self.chunks.first().map(|(_, chunk)| chunk.times.0)
    }

    pub(crate) fn epochs(&self) -> &[EpochBegin] {
        &self.epochs
    }

    /// The chunk headers so far; place and tag are not set yet.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (u64, &ChunkHeader)> {
        self.chunks.iter().map(|(at, chunk)| (*at as u64, chunk))
    }

    /// Finishes the headers for a place in a segment, and takes the bytes.
    pub(crate) fn finish(&mut self, tag: u32, place: u64) -> Vec<u8> {
        self.close_chunk();
        for (at, chunk) in &mut self.chunks {
            chunk.tag = tag;
            chunk.place = place + *at as u64;
            self.bytes[*at..*at + CHUNK_HEADER_BYTES].copy_from_slice(&chunk.encode());
        }
        self.chunks.clear();
        self.epochs.clear();
        self.cursor = None;
        std::mem::take(&mut self.bytes)
    }

    /// Gives a buffer back for the next flush.
    pub fn reuse(&mut self, mut buffer: Vec<u8>) {
        if self.bytes.capacity() < buffer.capacity() {
            buffer.clear();
            if self.bytes.is_empty() {
                self.bytes = buffer;
            }
        }
    }
}
