//! **What**: positions in a log. `log_start <= high_watermark <= log_end`, all exclusive ends.
//!
//! **Invariants**: an offset means something only within a lineage; a position of another lineage is never answered
//! with data (DECISIONS 9). No value of these types is a sentinel.
//!
//! **Never**: arithmetic that wraps.
//!
//! **See**: `batch.rs`, which stores them.

use std::fmt;

/// Number of a record in a shard's log. The first record of a lineage has offset 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset `count` records later. None past the end of the number range.
    pub fn checked_add(self, count: u64) -> Option<Offset> {
        self.0.checked_add(count).map(Offset)
    }

    /// Records from `earlier` to this offset; zero if it is not earlier.
    pub fn since(self, earlier: Offset) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Incarnation of a shard's data. A start without the former data takes a new one; never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lineage(pub u32);

/// Leader generation of a shard; fences older leaders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// A place in a shard's log that a client may keep: offset within a lineage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// Incarnation of the data.
    pub lineage: Lineage,
    /// Next record to read.
    pub offset: Offset,
}

/// Offsets from `from` (inclusive) to `to` (exclusive).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OffsetRange {
    /// First offset.
    pub from: Offset,
    /// One past the last offset.
    pub to: Offset,
}

impl OffsetRange {
    /// Number of offsets covered.
    pub fn count(self) -> u64 {
        self.to.since(self.from)
    }
}
