//! **What**: makes the index of a sealed segment again from its chunk headers.
//!
//! **Invariants**: reads headers only, a look at a time; what it cannot follow to the end of the segment it does not index.
//!
//! **Never**: a change to a segment.
//!
//! **See**: `format/index.rs`, `read.rs` which asks for it by `take_bad_index`.

use crate::disk::{BLOCK_BYTES, DiskDone, DiskError, DiskOk, DiskOp, FileKey, Priority, Ticket};
use crate::format::header::{FileHeader, HeaderError};
use crate::format::index::{IndexEntry, SegmentIndex, SparseIndex};
use crate::format::segment::{ChunkError, ChunkHeader, ChunkPlace, FIRST_CHUNK_AT, file_tag};
use crate::log::{ShardLog, index_file};
use crate::queue::{DiskQueue, Slot};
use felix_protocol::position::{Offset, OffsetRange};
use std::fmt;

/// Bytes per look at chunk headers.
const LOOK_BYTES: usize = 16 * BLOCK_BYTES;

/// Why there is no new index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebuildError {
    /// The segment is gone from the log.
    Gone,
    /// Its header.
    Header(HeaderError),
    /// A chunk.
    Chunk {
        /// Byte of the file.
        at: u64,
        /// What is wrong.
        error: ChunkError,
    },
    /// A chunk does not follow from the one before.
    Order {
        /// Byte of the file.
        at: u64,
    },
    /// The disk.
    Disk(DiskError),
}

impl fmt::Display for RebuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RebuildError::Gone => f.write_str("the segment is gone"),
            RebuildError::Header(error) => error.fmt(f),
            RebuildError::Chunk { at, error } => write!(f, "byte {at}: {error}"),
            RebuildError::Order { at } => write!(f, "byte {at}: the chunk does not follow from the one before"),
            RebuildError::Disk(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RebuildError {}

#[derive(Debug)]
enum Stage {
    Open(Ticket),
    Header(Ticket),
    Look(Ticket),
    Close(Ticket),
    Write(Ticket),
}

/// A rebuild on its way.
#[derive(Debug)]
pub struct IndexRebuild {
    slot: Slot,
    stage: Stage,
    file: FileKey,
    base: Offset,
    end: Offset,
    tag: u32,
    place: u64,
    first: Option<ChunkHeader>,
    last: Option<ChunkHeader>,
    sparse: SparseIndex,
    error: Option<RebuildError>,
}

impl IndexRebuild {
    /// Begins with the sealed segment that begins at `base`. None: there is none.
    pub fn new(slot: Slot, log: &ShardLog, base: Offset, queue: &mut DiskQueue) -> Option<IndexRebuild> {
        let at = log.segments().iter().position(|it| it.base == base)?;
        let file = queue.file_key(slot);
        let op = DiskOp::Open { path: log.segment_path(base), file };
        Some(IndexRebuild {
            slot,
            stage: Stage::Open(queue.push(slot, Priority::Background, op)),
            file,
            base,
            end: log.end_of_segments(at + 1),
            tag: 0,
            place: FIRST_CHUNK_AT,
            first: None,
            last: None,
            sparse: SparseIndex::default(),
            error: None,
        })
    }

    /// Takes a completion. Some: it has ended, and its file is closed.
    pub fn handle(
        &mut self,
        done: DiskDone,
        log: &ShardLog,
        queue: &mut DiskQueue,
    ) -> Option<Result<(), RebuildError>> {
        let (Stage::Open(mine) | Stage::Header(mine) | Stage::Look(mine) | Stage::Close(mine) | Stage::Write(mine)) =
            &self.stage;
        if *mine != done.ticket {
            return None;
        }
        let (slot, file) = (self.slot, self.file);
        let mut plan = |op| queue.push(slot, Priority::Background, op);
        match (&self.stage, done.result) {
            (Stage::Open(_), Ok(_)) => {
                self.stage = Stage::Header(plan(DiskOp::Read { file, at: 0, bytes: BLOCK_BYTES }));
            }
            (Stage::Open(_), Err(error)) => return Some(Err(RebuildError::Disk(error))),
            (Stage::Header(_), Ok(DiskOk::Bytes(bytes))) => {
                match FileHeader::expect(&bytes, &log.maker.identity, &log.segment_owner(self.base)) {
                    Ok(_) => {
                        self.tag = file_tag(&bytes);
                        self.stage = Stage::Look(plan(DiskOp::Read { file, at: self.place, bytes: LOOK_BYTES }));
                    }
                    Err(error) => {
                        self.error = Some(RebuildError::Header(error));
                        self.stage = Stage::Close(plan(DiskOp::Close { file }));
                    }
                }
            }
            (Stage::Look(_), Ok(DiskOk::Bytes(bytes))) => match self.look(&bytes, log) {
                Ok(false) => {
                    self.stage = Stage::Look(plan(DiskOp::Read { file, at: self.place, bytes: LOOK_BYTES }));
                }
                result => {
                    self.error = result.err();
                    self.stage = Stage::Close(plan(DiskOp::Close { file }));
                }
            },
            (Stage::Header(_) | Stage::Look(_), result) => {
                self.error = Some(RebuildError::Disk(result.err().unwrap_or(DiskError::NotFound)));
                self.stage = Stage::Close(plan(DiskOp::Close { file }));
            }
            (Stage::Close(_), _) => {
                let still = log.segments().iter().position(|it| it.base == self.base);
                let same = still.is_some_and(|at| log.end_of_segments(at + 1) == self.end);
                if let Some(error) = self.error.take() {
                    return Some(Err(error));
                }
                let (Some(first), Some(last), true) = (&self.first, &self.last, same && !log.is_moving()) else {
                    return Some(Err(RebuildError::Gone));
                };
                let index = SegmentIndex {
                    shard: log.shard(),
                    lineage: log.lineage(),
                    tag: self.tag,
                    range: OffsetRange { from: self.base, to: last.range.to },
                    time_first: first.times.0,
                    time_last: last.times.1,
                    used_bytes: self.place,
                    chain_in: first.chain_in,
                    chain_out: last.chain_out,
                    sparse: std::mem::take(&mut self.sparse),
                };
                let path = log.index_path(self.base);
                let bytes = index_file(&log.maker, &log.meta, self.base, &index);
                self.stage = Stage::Write(plan(DiskOp::Replace { path, bytes }));
            }
            (Stage::Write(_), result) => return Some(result.map(|_| ()).map_err(RebuildError::Disk)),
        }
        None
    }

    /// Follows chunk headers through some bytes. True: the end of the segment was reached.
    fn look(&mut self, bytes: &[u8], log: &ShardLog) -> Result<bool, RebuildError> {
        let start = self.place;
        loop {
            let at = self.place;
            let rest = &bytes[((at - start) as usize).min(bytes.len())..];
            if rest.is_empty() && at > start {
                return Ok(false);
            }
            let place = ChunkPlace { shard: log.shard(), lineage: log.lineage(), tag: self.tag, at };
            let chunk = ChunkHeader::decode_at(rest, place).map_err(|error| RebuildError::Chunk { at, error })?;
            let follows = match &self.last {
                None => chunk.range.from == self.base,
                Some(last) => chunk.range.from == last.range.to && chunk.chain_in == last.chain_out,
            };
            if !follows {
                return Err(RebuildError::Order { at });
            }
            self.sparse.add(IndexEntry { offset: chunk.range.from, time: chunk.times.0, place: at });
            self.place += chunk.stored_bytes() as u64;
            self.first.get_or_insert(chunk);
            let ended = chunk.range.to >= self.end;
            self.last = Some(chunk);
            if ended {
                return Ok(true);
            }
        }
    }
}
