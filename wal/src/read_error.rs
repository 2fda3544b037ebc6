//! **What**: why reading ended before the end of the log, and exactly where.
//!
//! **Invariants**: an error names the file, the byte and the offset; what was given before it is good.
//!
//! **Never**: an error that stands for the end of the log.
//!
//! **See**: `read.rs`.

use crate::disk::{DiskError, FilePath};
use crate::format::header::HeaderError;
use crate::format::segment::ChunkError;
use felix_protocol::position::{Offset, OffsetRange};
use std::fmt;

/// What stood in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadFault {
    /// The offset was removed by retention.
    Expired {
        /// First offset there is.
        log_start: Offset,
    },
    /// The offset is not in segments yet.
    Beyond {
        /// End of what is.
        flushed_to: Offset,
    },
    /// A range that is known to be damaged.
    Damaged(OffsetRange),
    /// A range that was given up by a repair.
    Gap(OffsetRange),
    /// Offsets that should be here are not.
    Missing(OffsetRange),
    /// The chunk does not continue what came before: offset and chain.
    Broken {
        /// What follows.
        expected: (Offset, u64),
        /// What is there.
        found: (Offset, u64),
    },
    /// A file header.
    Header(HeaderError),
    /// A chunk.
    Chunk(ChunkError),
    /// The disk.
    Disk(DiskError),
}

/// Why reading ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadError {
    /// File; empty if none was open.
    pub path: FilePath,
    /// Byte of the file.
    pub at: u64,
    /// Offset that was wanted.
    pub next: Offset,
    /// From here on there may be good data again.
    pub good_from: Offset,
    /// What stood in the way.
    pub fault: ReadFault,
}

impl ReadError {
    /// It is damage of what must be there: the log should be marked. Positions and busy disks are not.
    pub fn damaged(&self) -> Option<OffsetRange> {
        match &self.fault {
            ReadFault::Disk(error) if error.passes() => None,
            ReadFault::Missing(range) => Some(*range),
            ReadFault::Broken { .. } | ReadFault::Header(_) | ReadFault::Chunk(_) | ReadFault::Disk(_) => {
                Some(OffsetRange { from: self.next, to: self.good_from })
            }
            ReadFault::Expired { .. } | ReadFault::Beyond { .. } | ReadFault::Damaged(_) | ReadFault::Gap(_) => None,
        }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offset {}", self.next)?;
        if !self.path.0.is_empty() {
            write!(f, " ({} at byte {})", self.path, self.at)?;
        }
        match &self.fault {
            ReadFault::Expired { log_start } => write!(f, ": the log begins at {log_start}"),
            ReadFault::Beyond { flushed_to } => write!(f, ": segments end at {flushed_to}"),
            ReadFault::Damaged(range) => write!(f, ": {}..{} is damaged", range.from, range.to),
            ReadFault::Gap(range) => write!(f, ": {}..{} was given up by a repair", range.from, range.to),
            ReadFault::Missing(range) => write!(f, ": {}..{} is not there", range.from, range.to),
            ReadFault::Broken { expected, found } => write!(
                f,
                ": a chunk begins at {} with chain {:#018x}, {} with {:#018x} follows",
                found.0, found.1, expected.0, expected.1
            ),
            ReadFault::Header(error) => write!(f, ": {error}"),
            ReadFault::Chunk(error) => write!(f, ": {error}"),
            ReadFault::Disk(error) => write!(f, ": {error}"),
        }
    }
}

impl std::error::Error for ReadError {}
