//! **What**: the sparse index of a sealed segment: from offset or append time to a chunk to begin at.
//!
//! **Invariants**: places and offsets rise strictly, times never fall. An index only says where to begin: a reader checks
//! what it finds there, so a wrong index costs time or an error, never wrong data.
//!
//! **Never**: the only copy of anything: it is made again from the chunk headers.
//!
//! **See**: `frame.rs` around it, `log.rs` which keeps the same for an open segment.

use super::frame::{FrameError, FrameKind, put_frame, take_frame};
use super::segment::FIRST_CHUNK_AT;
use crate::disk::BLOCK_BYTES;
use felix_protocol::ids::ShardId;
use felix_protocol::position::{Lineage, Offset, OffsetRange};
use felix_protocol::time::Timestamp;

const INDEX_VERSION: u16 = 1;
/// Entries of an index: 24 bytes each in memory while a segment is open, within the 2 KiB of an idle shard.
pub const INDEX_ENTRIES_MAX: usize = 48;
/// Largest index file.
pub const INDEX_BYTES_MAX: usize = 8 << 10;

const _: () = assert!(INDEX_ENTRIES_MAX * 24 + 256 <= INDEX_BYTES_MAX);

/// A chunk to begin at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Its first offset.
    pub offset: Offset,
    /// Its first append time.
    pub time: Timestamp,
    /// Byte of the file where it begins.
    pub place: u64,
}

/// Entries at growing distance: when there are too many, every second one goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SparseIndex {
    entries: Vec<IndexEntry>,
    spacing_bytes: u64,
}

impl SparseIndex {
    /// Adds a chunk behind the others, if it is far enough from the last entry.
    pub fn add(&mut self, entry: IndexEntry) {
        if self.entries.last().is_some_and(|last| entry.place < last.place + self.spacing_bytes.max(1)) {
            return;
        }
        if self.entries.len() == INDEX_ENTRIES_MAX {
            let mut number = 0;
            self.entries.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            let span = self.entries.last().map_or(0, |last| last.place) / (INDEX_ENTRIES_MAX as u64 / 2);
            self.spacing_bytes = span.max(2 * self.spacing_bytes);
        }
        self.entries.push(entry);
    }

    /// The entries in order.
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// Where to begin for an offset.
    pub fn place_of(&self, offset: Offset) -> u64 {
        let after = self.entries.partition_point(|entry| entry.offset <= offset);
        after.checked_sub(1).map_or(FIRST_CHUNK_AT, |at| self.entries[at].place)
    }

    /// Where to begin for the first batch appended at `time` or later.
    pub fn place_of_time(&self, time: Timestamp) -> u64 {
        let after = self.entries.partition_point(|entry| entry.time < time);
        after.checked_sub(1).map_or(FIRST_CHUNK_AT, |at| self.entries[at].place)
    }

    /// Frees what was reserved ahead.
    pub fn shrink(&mut self) {
        self.entries.shrink_to_fit();
    }
}

/// Index file of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentIndex {
    /// Log.
    pub shard: ShardId,
    /// Incarnation.
    pub lineage: Lineage,
    /// Tag of the segment file.
    pub tag: u32,
    /// Offsets of the segment when it was sealed.
    pub range: OffsetRange,
    /// Append time of its first batch.
    pub time_first: Timestamp,
    /// Append time of its last batch.
    pub time_last: Timestamp,
    /// Bytes of the segment that hold header and chunks.
    pub used_bytes: u64,
    /// Chain before its first batch.
    pub chain_in: u64,
    /// Chain after its last batch.
    pub chain_out: u64,
    /// Where to begin.
    pub sparse: SparseIndex,
}

/// The frozen form, version 1.
mod v1 {
    #![allow(missing_docs)]
    use rkyv::{Archive, Deserialize, Serialize};

    #[derive(Archive, Serialize, Deserialize)]
    pub struct Entry {
        pub offset: u64,
        pub time: u64,
        pub place: u64,
    }

    #[derive(Archive, Serialize, Deserialize)]
    pub struct Index {
        pub shard: u64,
        pub lineage: u32,
        pub tag: u32,
        pub from: u64,
        pub to: u64,
        pub time_first: u64,
        pub time_last: u64,
        pub used_bytes: u64,
        pub chain_in: u64,
        pub chain_out: u64,
        pub spacing_bytes: u64,
        pub entries: Vec<Entry>,
    }
}

impl SegmentIndex {
    /// The bytes of an index file.
    pub fn encode(&self) -> Vec<u8> {
        let stored = v1::Index {
            shard: self.shard.0,
            lineage: self.lineage.0,
            tag: self.tag,
            from: self.range.from.0,
            to: self.range.to.0,
            time_first: self.time_first.0,
            time_last: self.time_last.0,
            used_bytes: self.used_bytes,
            chain_in: self.chain_in,
            chain_out: self.chain_out,
            spacing_bytes: self.sparse.spacing_bytes,
            entries: self
                .sparse
                .entries
                .iter()
                .map(|entry| v1::Entry { offset: entry.offset.0, time: entry.time.0, place: entry.place })
                .collect(),
        };
        let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(&stored).expect("writing to memory cannot fail");
        let mut out = Vec::with_capacity(bytes.len() + super::frame::FRAME_HEADER_BYTES);
        put_frame(FrameKind::Index, INDEX_VERSION, &bytes, &mut out);
        out
    }

    /// Reads and checks an index file.
    pub fn decode(bytes: &[u8]) -> Result<SegmentIndex, FrameError> {
        let (version, payload) = take_frame(FrameKind::Index, bytes)?;
        if version != INDEX_VERSION {
            return Err(FrameError::Version(version));
        }
        let stored = rkyv::from_bytes::<v1::Index, rkyv::rancor::Error>(&payload)
            .map_err(|_| FrameError::Content("the index"))?;
        let entries: Vec<IndexEntry> = stored
            .entries
            .iter()
            .map(|entry| IndexEntry { offset: Offset(entry.offset), time: Timestamp(entry.time), place: entry.place })
            .collect();
        let range = OffsetRange { from: Offset(stored.from), to: Offset(stored.to) };
        let rising = entries.windows(2).all(|pair| {
            pair[0].offset < pair[1].offset && pair[0].time <= pair[1].time && pair[0].place < pair[1].place
        });
        let inside = entries.iter().all(|entry| {
            (range.from..range.to).contains(&entry.offset)
                && entry.place >= FIRST_CHUNK_AT
                && entry.place < stored.used_bytes
                && entry.place % BLOCK_BYTES as u64 == 0
        });
        for (fits, what) in [
            (range.from < range.to, "the offset range of the index"),
            (stored.time_first <= stored.time_last, "the time range of the index"),
            (stored.used_bytes % BLOCK_BYTES as u64 == 0, "the size in the index"),
            (entries.len() <= INDEX_ENTRIES_MAX, "the number of index entries"),
            (rising && inside, "the order of index entries"),
        ] {
            if !fits {
                return Err(FrameError::Content(what));
            }
        }
        Ok(SegmentIndex {
            shard: ShardId(stored.shard),
            lineage: Lineage(stored.lineage),
            tag: stored.tag,
            range,
            time_first: Timestamp(stored.time_first),
            time_last: Timestamp(stored.time_last),
            used_bytes: stored.used_bytes,
            chain_in: stored.chain_in,
            chain_out: stored.chain_out,
            sparse: SparseIndex { entries, spacing_bytes: stored.spacing_bytes },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(number: u64) -> IndexEntry {
        IndexEntry { offset: Offset(number * 10), time: Timestamp(number / 2), place: FIRST_CHUNK_AT * (number + 1) }
    }

    #[test]
    fn it_stays_small_and_evenly_spaced() {
        let mut sparse = SparseIndex::default();
        for number in 0..16_384 {
            sparse.add(entry(number));
        }
        assert!(sparse.entries().len() <= INDEX_ENTRIES_MAX);
        assert!(sparse.entries().len() >= INDEX_ENTRIES_MAX / 2, "{}", sparse.entries().len());
        assert_eq!(sparse.entries()[0], entry(0));
        // A seek reads at most this much before it is where it wants to be (64 MiB / 24 entries).
        let widest = sparse.entries().windows(2).map(|pair| pair[1].place - pair[0].place).max().unwrap();
        assert!(widest <= 4 << 20, "{widest}");
    }

    proptest! {
        #[test]
        fn a_seek_begins_at_or_before_what_is_wanted(count in 1u64..300, wanted in 0u64..3_100, time in 0u64..200) {
            let mut sparse = SparseIndex::default();
            (0..count).for_each(|number| sparse.add(entry(number)));
            let place = sparse.place_of(Offset(wanted));
            let begin = (0..count).map(entry).find(|it| it.place == place).unwrap();
            prop_assert!(begin.offset.0 <= wanted);
            let place = sparse.place_of_time(Timestamp(time));
            let begin = (0..count).map(entry).find(|it| it.place == place).unwrap();
            // Every chunk before it is older than the wanted time.
            prop_assert!(begin == entry(0) || begin.time.0 < time);
        }

        #[test]
        fn it_round_trips_and_refuses_every_bit_flip(count in 0u64..80, bit in any::<proptest::sample::Index>()) {
            let mut sparse = SparseIndex::default();
            (0..count).for_each(|number| sparse.add(entry(number)));
            let index = SegmentIndex {
                shard: ShardId(3),
                lineage: Lineage(1),
                tag: 4,
                range: OffsetRange { from: Offset(0), to: Offset(10_000) },
                time_first: Timestamp(1),
                time_last: Timestamp(99),
                used_bytes: 1 << 20,
                chain_in: 5,
                chain_out: 6,
                sparse,
            };
            let mut bytes = index.encode();
            prop_assert!(bytes.len() <= INDEX_BYTES_MAX);
            prop_assert_eq!(SegmentIndex::decode(&bytes), Ok(index));
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(SegmentIndex::decode(&bytes).is_err());
        }
    }
}
