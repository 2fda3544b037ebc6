//! **What**: a shard's meta: what its segment files mean. Replaced as a whole, after the data it speaks of is durable.
//!
//! **Invariants**: `log_start <= flushed_to`; epochs rise with their starts; gaps and cuts lie below `flushed_to`. What lies
//! in segments beyond `flushed_to` does not belong to the log, whatever it looks like.
//!
//! **Never**: a guess when it is damaged: without its meta a shard does not open, and nothing of it is removed.
//!
//! **See**: `frame.rs` around it, `header.rs` in front of it, `log_open.rs` which reads it.

use super::entry::{Lsn, WalPosition};
use super::frame::{FRAME_HEADER_BYTES, FrameError, FrameKind, put_frame, take_frame};
use super::names::WalId;
use super::segment::{FIRST_CHUNK_AT, LogCursor};
use crate::disk::BLOCK_BYTES;
use felix_protocol::ids::{CoreId, NodeSession, ShardId, StreamId};
use felix_protocol::limits::SETTINGS_BYTES_MAX;
use felix_protocol::metadata::Durability;
use felix_protocol::position::{Epoch, Lineage, Offset, OffsetRange};
use felix_protocol::time::Timestamp;

const META_VERSION: u16 = 1;
/// Largest meta file: a million epochs.
pub const META_BYTES_MAX: usize = 16 << 20;
/// Cuts that are remembered, for people.
pub const CUTS_MAX: usize = 16;
/// Gaps that repairs may leave; each is a decision of a person.
pub const GAPS_MAX: usize = 4_096;

/// First offset of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: Epoch,
    /// Its first offset.
    pub start: Offset,
}

/// A truncation that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// New end of the log.
    pub to: Offset,
    /// `flushed_to` before.
    pub end_before: Offset,
}

/// The segment that flushes go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenSegment {
    /// Its first offset.
    pub base: Offset,
    /// Bytes of header and chunks.
    pub used_bytes: u64,
}

/// Meta of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMeta {
    /// Stream that the shard was made for.
    pub stream: StreamId,
    /// Shard.
    pub shard: ShardId,
    /// Incarnation of the data.
    pub lineage: Lineage,
    /// How the stream is stored.
    pub durability: Durability,
    /// First offset that may be read.
    pub log_start: Offset,
    /// End of what is durable in segments.
    pub flushed_to: Offset,
    /// Chain of the batch before `flushed_to`.
    pub chain: u64,
    /// Append time of that batch.
    pub time: Timestamp,
    /// Where flushes go; None: the next flush makes a segment.
    pub open: Option<OpenSegment>,
    /// Epoch index: every epoch with offsets at or after `log_start`, and the one before.
    pub epochs: Vec<EpochStart>,
    /// The last truncations.
    pub cuts: Vec<Cut>,
    /// Segments that begin here or later were cut off and wait for quarantine.
    pub void_from: Option<Offset>,
    /// A compacted segment, finished under its temporary name, that replaces all segments of this range.
    pub switch: Option<OffsetRange>,
    /// Ranges given up by a repair: read as gaps, never as data.
    pub gaps: Vec<OffsetRange>,
    /// Compaction has seen everything below.
    pub compacted_to: Offset,
    /// The last WAL entry whose effect is in here and in the segments; earlier ones are skipped at recovery.
    pub included: WalPosition,
    /// Nothing of an older epoch is accepted.
    pub promised: Epoch,
    /// Settings of the stream, as metadata encodes them.
    pub settings: Box<[u8]>,
}

/// The frozen form, version 1.
mod v1 {
    #![allow(missing_docs)]
    use rkyv::{Archive, Deserialize, Serialize};

    #[derive(Archive, Serialize, Deserialize)]
    pub struct Pair {
        pub first: u64,
        pub second: u64,
    }

    #[derive(Archive, Serialize, Deserialize)]
    pub struct Meta {
        pub stream: u64,
        pub shard: u64,
        pub lineage: u32,
        pub durability: u8,
        pub log_start: u64,
        pub flushed_to: u64,
        pub chain: u64,
        pub time: u64,
        /// Base and used bytes.
        pub open: Option<Pair>,
        /// Epoch and start.
        pub epochs: Vec<Pair>,
        /// New end and end before.
        pub cuts: Vec<Pair>,
        pub void_from: Option<u64>,
        /// From and to.
        pub switch: Option<Pair>,
        /// From and to.
        pub gaps: Vec<Pair>,
        pub compacted_to: u64,
        pub wal_session: u64,
        pub wal_core: u8,
        pub wal_lsn: u64,
        pub promised: u64,
        pub settings: Vec<u8>,
    }
}

fn pair(first: u64, second: u64) -> v1::Pair {
    v1::Pair { first, second }
}

fn range(pair: &v1::Pair) -> OffsetRange {
    OffsetRange { from: Offset(pair.first), to: Offset(pair.second) }
}

impl ShardMeta {
    /// Meta of a shard without data.
    pub fn new(stream: StreamId, shard: ShardId, lineage: Lineage, durability: Durability) -> ShardMeta {
        ShardMeta {
            stream,
            shard,
            lineage,
            durability,
            log_start: Offset(0),
            flushed_to: Offset(0),
            chain: 0,
            time: Timestamp(0),
            open: None,
            epochs: Vec::new(),
            cuts: Vec::new(),
            void_from: None,
            switch: None,
            gaps: Vec::new(),
            compacted_to: Offset(0),
            included: WalPosition::default(),
            promised: Epoch(0),
            settings: Box::default(),
        }
    }

    /// What must follow.
    pub fn cursor(&self) -> LogCursor {
        LogCursor {
            shard: self.shard,
            lineage: self.lineage,
            next: self.flushed_to,
            chain: self.chain,
            epoch: self.epochs.last().map_or(Epoch(0), |last| last.epoch),
            time: self.time,
        }
    }

    /// The framed bytes; a meta file has a header block in front.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let ranges = |list: &[OffsetRange]| list.iter().map(|it| pair(it.from.0, it.to.0)).collect();
        let stored = v1::Meta {
            stream: self.stream.0,
            shard: self.shard.0,
            lineage: self.lineage.0,
            durability: self.durability as u8,
            log_start: self.log_start.0,
            flushed_to: self.flushed_to.0,
            chain: self.chain,
            time: self.time.0,
            open: self.open.map(|open| pair(open.base.0, open.used_bytes)),
            epochs: self.epochs.iter().map(|it| pair(it.epoch.0, it.start.0)).collect(),
            cuts: self.cuts.iter().map(|it| pair(it.to.0, it.end_before.0)).collect(),
            void_from: self.void_from.map(|offset| offset.0),
            switch: self.switch.map(|it| pair(it.from.0, it.to.0)),
            gaps: ranges(&self.gaps),
            compacted_to: self.compacted_to.0,
            wal_session: self.included.wal.session.0,
            wal_core: self.included.wal.core.0,
            wal_lsn: self.included.lsn.0,
            promised: self.promised.0,
            settings: self.settings.to_vec(),
        };
        let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(&stored).expect("writing to memory cannot fail");
        out.reserve(bytes.len() + FRAME_HEADER_BYTES);
        put_frame(FrameKind::Meta, META_VERSION, &bytes, out);
    }

    /// Reads and checks the framed bytes.
    pub fn decode(bytes: &[u8]) -> Result<ShardMeta, FrameError> {
        let (version, payload) = take_frame(FrameKind::Meta, bytes)?;
        if version != META_VERSION {
            return Err(FrameError::Version(version));
        }
        let stored = rkyv::from_bytes::<v1::Meta, rkyv::rancor::Error>(&payload)
            .map_err(|_| FrameError::Content("the shard meta"))?;
        let meta = ShardMeta {
            stream: StreamId(stored.stream),
            shard: ShardId(stored.shard),
            lineage: Lineage(stored.lineage),
            durability: Durability::from_number(stored.durability).ok_or(FrameError::Content("the durability"))?,
            log_start: Offset(stored.log_start),
            flushed_to: Offset(stored.flushed_to),
            chain: stored.chain,
            time: Timestamp(stored.time),
            open: stored.open.map(|it| OpenSegment { base: Offset(it.first), used_bytes: it.second }),
            epochs: stored
                .epochs
                .iter()
                .map(|it| EpochStart { epoch: Epoch(it.first), start: Offset(it.second) })
                .collect(),
            cuts: stored.cuts.iter().map(|it| Cut { to: Offset(it.first), end_before: Offset(it.second) }).collect(),
            void_from: stored.void_from.map(Offset),
            switch: stored.switch.as_ref().map(range),
            gaps: stored.gaps.iter().map(range).collect(),
            compacted_to: Offset(stored.compacted_to),
            included: WalPosition {
                wal: WalId { session: NodeSession(stored.wal_session), core: CoreId(stored.wal_core) },
                lsn: Lsn(stored.wal_lsn),
            },
            promised: Epoch(stored.promised),
            settings: stored.settings.into(),
        };
        match meta.fault() {
            Some(what) => Err(FrameError::Content(what)),
            None => Ok(meta),
        }
    }

    /// What does not hold of what must.
    pub fn fault(&self) -> Option<&'static str> {
        let end = self.flushed_to;
        let block = BLOCK_BYTES as u64;
        let open_fits = self.open.is_none_or(|open| {
            open.base < end && open.used_bytes > FIRST_CHUNK_AT && open.used_bytes.is_multiple_of(block)
        });
        let epochs_rise =
            self.epochs.windows(2).all(|pair| pair[0].epoch < pair[1].epoch && pair[0].start <= pair[1].start);
        let inside = |range: &OffsetRange| range.from < range.to && range.to <= end;
        [
            (self.log_start <= end, "the log start"),
            (open_fits, "the open segment"),
            (epochs_rise && self.epochs.last().is_none_or(|last| last.start <= end), "the epoch index"),
            (self.cuts.len() <= CUTS_MAX && self.cuts.iter().all(|cut| cut.to <= cut.end_before), "a cut"),
            (self.void_from.is_none_or(|from| from <= end), "the void part"),
            (self.switch.as_ref().is_none_or(inside), "the compaction switch"),
            (self.gaps.len() <= GAPS_MAX && self.gaps.iter().all(inside), "a gap"),
            (self.gaps.windows(2).all(|pair| pair[0].to <= pair[1].from), "the order of gaps"),
            (self.compacted_to <= end, "the compacted part"),
            (self.settings.len() <= SETTINGS_BYTES_MAX, "the settings"),
        ]
        .into_iter()
        .find_map(|(holds, what)| (!holds).then_some(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn meta() -> ShardMeta {
        ShardMeta {
            log_start: Offset(10),
            flushed_to: Offset(100),
            chain: 7,
            time: Timestamp(8),
            open: Some(OpenSegment { base: Offset(50), used_bytes: 8_192 }),
            epochs: vec![
                EpochStart { epoch: Epoch(1), start: Offset(0) },
                EpochStart { epoch: Epoch(4), start: Offset(60) },
            ],
            cuts: vec![Cut { to: Offset(60), end_before: Offset(70) }],
            void_from: Some(Offset(90)),
            switch: Some(OffsetRange { from: Offset(10), to: Offset(50) }),
            gaps: vec![OffsetRange { from: Offset(20), to: Offset(30) }],
            compacted_to: Offset(40),
            included: WalPosition { wal: WalId { session: NodeSession(3), core: CoreId(1) }, lsn: Lsn(77) },
            promised: Epoch(5),
            settings: Box::from(*b"settings"),
            ..ShardMeta::new(StreamId(1), ShardId(2), Lineage(3), Durability::Group)
        }
    }

    #[test]
    fn what_does_not_hold_is_refused() {
        assert_eq!(meta().fault(), None);
        type Change = fn(&mut ShardMeta);
        let changes: [(&str, Change); 11] = [
            ("the log start", |it| it.log_start = Offset(101)),
            ("the open segment", |it| it.open = Some(OpenSegment { base: Offset(50), used_bytes: 5_000 })),
            ("the open segment", |it| it.open = Some(OpenSegment { base: Offset(100), used_bytes: 8_192 })),
            ("the epoch index", |it| it.epochs.reverse()),
            ("a cut", |it| it.cuts[0].to = Offset(71)),
            ("the void part", |it| it.void_from = Some(Offset(101))),
            ("the compaction switch", |it| it.switch = Some(OffsetRange { from: Offset(5), to: Offset(5) })),
            ("a gap", |it| it.gaps[0].to = Offset(101)),
            ("the order of gaps", |it| it.gaps.push(OffsetRange { from: Offset(25), to: Offset(40) })),
            ("the compacted part", |it| it.compacted_to = Offset(101)),
            ("the settings", |it| it.settings = vec![0; SETTINGS_BYTES_MAX + 1].into()),
        ];
        for (what, change) in changes {
            let mut bad = meta();
            change(&mut bad);
            let mut bytes = Vec::new();
            bad.encode(&mut bytes);
            assert_eq!(ShardMeta::decode(&bytes), Err(FrameError::Content(what)));
        }
    }

    proptest! {
        #[test]
        fn it_round_trips_and_refuses_every_bit_flip(bit in any::<proptest::sample::Index>(), epochs in 0u64..40) {
            let mut meta = meta();
            meta.epochs = (0..epochs).map(|it| EpochStart { epoch: Epoch(it), start: Offset(it * 2) }).collect();
            let mut bytes = Vec::new();
            meta.encode(&mut bytes);
            prop_assert_eq!(ShardMeta::decode(&bytes), Ok(meta));
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(ShardMeta::decode(&bytes).is_err());
        }
    }
}
