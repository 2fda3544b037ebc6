//! **What**: verifies a data folder offline, byte by byte: metas, segments, indexes, WALs; a list of findings with place and
//! consequence.
//!
//! **Invariants**: changes nothing. Every chunk and every batch is checked, every chain followed from segment to segment.
//! What is good is not in the list.
//!
//! **Never**: an end at the first finding: the whole folder is looked at.
//!
//! **See**: `repair.rs` for what may be done about a finding, `dump.rs` for what is in a segment.

use crate::disk::{BLOCK_BYTES, Disk, DiskError, DiskOk, DiskOp, FileKey, FilePath};
use crate::format::frame::FrameError;
use crate::format::header::{FileHeader, HeaderError, Identity, Owner};
use crate::format::index::{INDEX_BYTES_MAX, SegmentIndex};
use crate::format::meta::{META_BYTES_MAX, ShardMeta};
use crate::format::names::{Name, SegmentId};
use crate::format::segment::{CHUNK_BYTES_MAX, ChunkError, ChunkHeader, ChunkPlace, FIRST_CHUNK_AT, file_tag};
use crate::listing::{self, index_path, segment_path};
use crate::recover::{RecoverError, Recovery, Report as WalFindings};
use felix_protocol::ids::{ShardId, StreamId};
use felix_protocol::position::{Lineage, Offset, OffsetRange};
use std::collections::BTreeMap;
use std::fmt;

/// Bytes that the check of WALs reads at a time.
const WAL_PIECE_BYTES: usize = 1 << 20;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A shard without meta, with so many segment files.
    NoMeta(usize),
    /// A file header.
    Header(HeaderError),
    /// A meta.
    Meta(FrameError),
    /// A meta that does not know of a segment that begins here: an old copy.
    MetaOlder(Offset),
    /// A chunk.
    Chunk(ChunkError),
    /// A chunk does not continue the one before.
    Order {
        /// Offset and chain that follow.
        expected: (Offset, u64),
        /// What is there.
        found: (Offset, u64),
    },
    /// Offsets that should be there are not.
    Missing,
    /// Bytes behind the end of the log that are no whole chunk: a write that a crash cut off.
    TornTail(ChunkError),
    /// Whole chunks behind the end of the log: a flush whose meta a crash kept from counting.
    UnacknowledgedTail,
    /// An index is not there.
    NoIndex,
    /// An index is damaged.
    Index(FrameError),
    /// An index speaks of something else than its segment.
    IndexDiffers,
    /// A compaction's result waits for its name: a start ends that.
    UnfinishedSwitch,
    /// A file that belongs to nothing.
    Stray,
    /// A name that is not ours.
    Foreign,
    /// Offsets that an earlier repair gave up.
    Gap,
    /// The disk failed.
    Disk(DiskError),
    /// A WAL cannot be read.
    Wal(RecoverError),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::NoMeta(segments) => write!(f, "no meta, but {segments} segment file(s)"),
            What::Header(error) => error.fmt(f),
            What::Meta(error) => write!(f, "meta: {error}"),
            What::MetaOlder(base) => write!(f, "the meta does not know the segment at {base}: it is an old copy"),
            What::Chunk(error) => error.fmt(f),
            What::Order { expected, found } => write!(
                f,
                "offset {} with chain {:#018x} where {} with {:#018x} follows",
                found.0, found.1, expected.0, expected.1
            ),
            What::Missing => f.write_str("offsets are not there"),
            What::TornTail(error) => write!(f, "behind the end of the log: {error}"),
            What::UnacknowledgedTail => f.write_str("whole chunks behind the end of the log"),
            What::NoIndex => f.write_str("no index"),
            What::Index(error) => write!(f, "index: {error}"),
            What::IndexDiffers => f.write_str("the index does not fit its segment"),
            What::UnfinishedSwitch => f.write_str("a compacted segment waits for its name"),
            What::Stray => f.write_str("a file that belongs to nothing"),
            What::Foreign => f.write_str("a name that is not ours"),
            What::Gap => f.write_str("offsets that a repair gave up, or that were left out after a loss"),
            What::Disk(error) => error.fmt(f),
            What::Wal(error) => error.fmt(f),
        }
    }
}

/// What a finding means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Consequence {
    /// Nothing is lost or slower.
    None,
    /// Space that a start or retention frees.
    Space,
    /// Seeks are slower until the index is made again.
    Slower,
    /// These offsets are answered with an error.
    Unreadable,
    /// The shard does not open.
    Closed,
    /// A core's WAL does not replay: the node does not start without a decision.
    NoStart,
}

impl fmt::Display for Consequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Consequence::None => "harmless",
            Consequence::Space => "wastes space",
            Consequence::Slower => "slower seeks",
            Consequence::Unreadable => "unreadable offsets",
            Consequence::Closed => "the shard does not open",
            Consequence::NoStart => "the node does not start",
        })
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// File.
    pub path: FilePath,
    /// Byte of the file.
    pub at: u64,
    /// Shard, if it is one's.
    pub shard: Option<ShardId>,
    /// Offsets it concerns.
    pub range: Option<OffsetRange>,
    /// What it is.
    pub what: What,
    /// What it means.
    pub consequence: Consequence,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: {} ({}", self.path, self.at, self.what, self.consequence)?;
        if let Some(range) = &self.range {
            write!(f, ", offsets {}..{}", range.from, range.to)?;
        }
        f.write_str(")")
    }
}

/// Everything about a data folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// Shards looked at.
    pub shards: u64,
    /// Segments looked at.
    pub segments: u64,
    /// Batches that were checked and are good.
    pub batches: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What recovery says about the WALs.
    pub wals: WalFindings,
}

impl CheckReport {
    /// The worst consequence.
    pub fn worst(&self) -> Consequence {
        self.findings.iter().map(|it| it.consequence).max().unwrap_or(Consequence::None)
    }
}

/// Verifies a data folder. Nothing else may use the disk meanwhile.
pub fn check(disk: &mut dyn Disk, identity: &Identity) -> CheckReport {
    let mut check = Check { disk, identity: *identity, report: CheckReport::default() };
    for (name, _) in check.list(&Name::Shards.path()) {
        match Name::parse(&FilePath(format!("{}/{name}", Name::Shards))) {
            Some(Name::Shard(shard)) => check.shard(shard),
            _ => check.foreign(&Name::Shards.path(), &name),
        }
    }
    check.wals();
    check.report
}

/// A sealed or open segment as the check goes through it.
struct Part {
    base: Offset,
    end: Offset,
    path: FilePath,
    /// Bytes that count; the rest of an open segment is its tail.
    used_bytes: Option<u64>,
}

struct Check<'a> {
    disk: &'a mut dyn Disk,
    identity: Identity,
    report: CheckReport,
}

/// Handle of the check; nothing else is open.
const FILE: FileKey = FileKey(u64::MAX);

impl Check<'_> {
    fn find(&mut self, path: &FilePath, at: u64, shard: Option<ShardId>, what: What, consequence: Consequence) {
        self.find_range(path, at, shard, None, what, consequence);
    }

    fn find_range(
        &mut self,
        path: &FilePath,
        at: u64,
        shard: Option<ShardId>,
        range: Option<OffsetRange>,
        what: What,
        consequence: Consequence,
    ) {
        self.report.findings.push(Finding { path: path.clone(), at, shard, range, what, consequence });
    }

    fn list(&mut self, path: &FilePath) -> Vec<(String, u64)> {
        match self.disk.call(DiskOp::List { path: path.clone() }) {
            Ok(DiskOk::Listed(list)) => list.into_iter().map(|it| (it.name, it.bytes)).collect(),
            result => {
                let error = result.err().unwrap_or(DiskError::NotFound);
                self.find(path, 0, None, What::Disk(error), Consequence::NoStart);
                Vec::new()
            }
        }
    }

    fn foreign(&mut self, folder: &FilePath, name: &str) {
        self.find(&FilePath(format!("{folder}/{name}")), 0, None, What::Foreign, Consequence::None);
    }

    fn load(&mut self, path: &FilePath, bytes_max: usize) -> Result<Vec<u8>, DiskError> {
        match self.disk.call(DiskOp::Load { path: path.clone(), bytes_max })? {
            DiskOk::Bytes(bytes) => {
                self.report.bytes += bytes.len() as u64;
                Ok(bytes)
            }
            _ => Err(DiskError::NotFound),
        }
    }

    fn read(&mut self, at: u64, bytes: usize) -> Result<Vec<u8>, DiskError> {
        match self.disk.call(DiskOp::Read { file: FILE, at, bytes })? {
            DiskOk::Bytes(bytes) => {
                self.report.bytes += bytes.len() as u64;
                Ok(bytes)
            }
            _ => Err(DiskError::NotFound),
        }
    }

    fn shard(&mut self, shard: ShardId) {
        self.report.shards += 1;
        let folder = Name::Shard(shard).path();
        let list = match self.disk.call(DiskOp::List { path: folder.clone() }) {
            Ok(DiskOk::Listed(list)) => list,
            result => {
                let error = result.err().unwrap_or(DiskError::NotFound);
                return self.find(&folder, 0, Some(shard), What::Disk(error), Consequence::Closed);
            }
        };
        let path = Name::ShardMeta(shard).path();
        let meta = match self.load(&path, META_BYTES_MAX) {
            Ok(bytes) => self.meta(&bytes, shard),
            Err(DiskError::NotFound) => Err(What::NoMeta(listing::segment_count(shard, Lineage(0), &list))),
            Err(error) => Err(What::Disk(error)),
        };
        let meta = match meta {
            Ok(meta) => meta,
            Err(what) => return self.find(&path, 0, Some(shard), what, Consequence::Closed),
        };
        let sorted = listing::sort(&meta, list);
        if let Some(base) = sorted.beyond_meta {
            return self.find(&path, 0, Some(shard), What::MetaOlder(base), Consequence::Closed);
        }
        for stray in &sorted.strays {
            self.find(stray, 0, Some(shard), What::Stray, Consequence::Space);
        }
        for name in &sorted.foreign {
            self.foreign(&folder, name);
        }
        if sorted.finished.is_some() || !sorted.replaced.is_empty() {
            self.find_range(&path, 0, Some(shard), meta.switch, What::UnfinishedSwitch, Consequence::None);
        }
        for gap in &meta.gaps {
            self.find_range(&path, 0, Some(shard), Some(*gap), What::Gap, Consequence::Unreadable);
        }
        let mut parts: Vec<Part> = Vec::new();
        let bases: Vec<Offset> = sorted.segments.iter().map(|it| it.base).collect();
        for (at, base) in bases.iter().enumerate() {
            let end = bases.get(at + 1).copied().unwrap_or(meta.flushed_to);
            let end = listing::end_before_gap(&meta, *base, end);
            let temporary = sorted.finished.as_ref().filter(|_| meta.switch.is_some_and(|range| range.from == *base));
            let path = temporary.map_or_else(|| segment_path(&meta, *base), |(path, _)| path.clone());
            let used_bytes = meta.open.filter(|open| open.base == *base).map(|open| open.used_bytes);
            parts.push(Part { base: *base, end, path, used_bytes });
        }
        self.coverage(&meta, &parts);
        let mut chain = None;
        for part in &parts {
            chain = self.segment(&meta, part, chain);
        }
    }

    fn meta(&mut self, bytes: &[u8], shard: ShardId) -> Result<ShardMeta, What> {
        let header = FileHeader::decode(bytes).map_err(What::Header)?;
        let stream = match header.owner {
            Owner::Meta { stream, .. } => stream,
            _ => StreamId(0),
        };
        FileHeader::expect(bytes, &self.identity, &Owner::Meta { stream, shard }).map_err(What::Header)?;
        let meta = ShardMeta::decode(&bytes[BLOCK_BYTES..]).map_err(What::Meta)?;
        let fits = meta.shard == shard && meta.stream == stream;
        fits.then_some(meta).ok_or(What::Meta(FrameError::Content("the shard in the meta")))
    }

    /// A segment in front, or the open one, that is not there.
    fn coverage(&mut self, meta: &ShardMeta, parts: &[Part]) {
        let first = parts.first().map_or(meta.flushed_to, |part| part.base);
        let mut missing = Vec::new();
        if first > meta.log_start {
            missing.push((segment_path(meta, meta.log_start), OffsetRange { from: meta.log_start, to: first }));
        }
        if let Some(open) = meta.open
            && !parts.iter().any(|part| part.base == open.base)
        {
            missing.push((segment_path(meta, open.base), OffsetRange { from: open.base, to: meta.flushed_to }));
        }
        for (path, range) in missing {
            if !meta.gaps.iter().any(|gap| gap.from <= range.from && gap.to >= range.to) {
                self.find_range(&path, 0, Some(meta.shard), Some(range), What::Missing, Consequence::Unreadable);
            }
        }
    }

    /// Goes through a segment. Returns offset and chain at its end, if they are known.
    fn segment(&mut self, meta: &ShardMeta, part: &Part, before: Option<(Offset, u64)>) -> Option<(Offset, u64)> {
        self.report.segments += 1;
        let (shard, path) = (Some(meta.shard), &part.path);
        let whole = OffsetRange { from: part.base, to: part.end };
        let file_bytes = match self.disk.call(DiskOp::Open { path: path.clone(), file: FILE }) {
            Ok(DiskOk::Opened { bytes }) => bytes,
            result => {
                let what = What::Disk(result.err().unwrap_or(DiskError::NotFound));
                self.find_range(path, 0, shard, Some(whole), what, Consequence::Unreadable);
                return None;
            }
        };
        let result = self.chunks(meta, part, before, file_bytes);
        let _ = self.disk.call(DiskOp::Close { file: FILE });
        match result {
            Ok(seen) => {
                if part.used_bytes.is_none() {
                    self.index(meta, part, &seen);
                }
                Some(seen.end)
            }
            Err(stop) => {
                let (at, from, what) = *stop;
                let range = OffsetRange { from, to: part.end };
                self.find_range(path, at, shard, Some(range), what, Consequence::Unreadable);
                None
            }
        }
    }

    fn chunks(
        &mut self,
        meta: &ShardMeta,
        part: &Part,
        before: Option<(Offset, u64)>,
        file_bytes: u64,
    ) -> Result<Seen, Box<(u64, Offset, What)>> {
        let head = self.read(0, BLOCK_BYTES).map_err(|error| Box::new((0, part.base, What::Disk(error))))?;
        let segment = SegmentId { lineage: meta.lineage, base_offset: part.base };
        let owner = Owner::Segment { stream: meta.stream, shard: meta.shard, segment };
        FileHeader::expect(&head, &self.identity, &owner)
            .map_err(|error| Box::new((0, part.base, What::Header(error))))?;
        let mut seen = Seen { tag: file_tag(&head), places: BTreeMap::new(), end: (part.base, 0), at: FIRST_CHUNK_AT };
        let mut expected = before.filter(|(offset, _)| *offset == part.base);
        let mut next = part.base;
        while next < part.end {
            let at = seen.at;
            let failed = |what| Box::new((at, next, what));
            let block = self.read(at, BLOCK_BYTES).map_err(|error| failed(What::Disk(error)))?;
            let place = ChunkPlace { shard: meta.shard, lineage: meta.lineage, tag: seen.tag, at };
            let chunk = ChunkHeader::decode_at(&block, place).map_err(|error| failed(What::Chunk(error)))?;
            let found = (chunk.range.from, chunk.chain_in);
            let (offset, chain) = expected.unwrap_or((next, chunk.chain_in));
            if found != (offset, chain) {
                return Err(failed(What::Order { expected: (offset, chain), found }));
            }
            let bytes = self.read(at, chunk.stored_bytes()).map_err(|error| failed(What::Disk(error)))?;
            match chunk.check(&bytes) {
                Ok(_) => self.report.batches += u64::from(chunk.batch_count),
                // Only this chunk: its header still leads to the next.
                Err(error) => self.find_range(
                    &part.path,
                    at,
                    Some(meta.shard),
                    Some(OffsetRange { from: chunk.range.from, to: chunk.range.to.min(part.end) }),
                    What::Chunk(error),
                    Consequence::Unreadable,
                ),
            }
            seen.places.insert(at, chunk.range.from);
            seen.at += chunk.stored_bytes() as u64;
            next = chunk.range.to;
            expected = Some((chunk.range.to, chunk.chain_out));
            seen.end = (chunk.range.to, chunk.chain_out);
        }
        if let Some(used_bytes) = part.used_bytes {
            if seen.at != used_bytes || seen.end != (meta.flushed_to, meta.chain) {
                let expected = (meta.flushed_to, meta.chain);
                return Err(Box::new((seen.at, part.base, What::Order { expected, found: seen.end })));
            }
            self.tail(meta, part, seen.tag, used_bytes, file_bytes);
        }
        Ok(seen)
    }

    fn tail(&mut self, meta: &ShardMeta, part: &Part, tag: u32, at: u64, file_bytes: u64) {
        if at >= file_bytes {
            return;
        }
        let Ok(bytes) = self.read(at, CHUNK_BYTES_MAX.min((file_bytes - at) as usize).next_multiple_of(BLOCK_BYTES))
        else {
            return;
        };
        let place = ChunkPlace { shard: meta.shard, lineage: meta.lineage, tag, at };
        let chunk = ChunkHeader::decode_at(&bytes, place);
        let what = match chunk.and_then(|it| it.check(bytes.get(..it.stored_bytes()).unwrap_or(&[])).map(|_| ())) {
            Ok(()) => What::UnacknowledgedTail,
            Err(ChunkError::Empty) if bytes.iter().all(|byte| *byte == 0) => return,
            Err(error) => What::TornTail(error),
        };
        self.find(&part.path, at, Some(meta.shard), what, Consequence::None);
    }

    fn index(&mut self, meta: &ShardMeta, part: &Part, seen: &Seen) {
        let path = index_path(meta, part.base);
        let shard = Some(meta.shard);
        let bytes = match self.load(&path, INDEX_BYTES_MAX + BLOCK_BYTES) {
            Ok(bytes) => bytes,
            Err(DiskError::NotFound) => return self.find(&path, 0, shard, What::NoIndex, Consequence::Slower),
            Err(error) => return self.find(&path, 0, shard, What::Disk(error), Consequence::Slower),
        };
        let segment = SegmentId { lineage: meta.lineage, base_offset: part.base };
        let owner = Owner::Index { stream: meta.stream, shard: meta.shard, segment };
        if let Err(error) = FileHeader::expect(&bytes, &self.identity, &owner) {
            return self.find(&path, 0, shard, What::Header(error), Consequence::Slower);
        }
        let index = match SegmentIndex::decode(&bytes[BLOCK_BYTES..]) {
            Ok(index) => index,
            Err(error) => return self.find(&path, BLOCK_BYTES as u64, shard, What::Index(error), Consequence::Slower),
        };
        let inside = index.sparse.entries().iter().filter(|it| it.place < seen.at);
        let fits = index.tag == seen.tag
            && index.range.to >= part.end
            && index.used_bytes >= seen.at
            && inside.clone().all(|it| seen.places.get(&it.place) == Some(&it.offset));
        if !fits {
            self.find(&path, BLOCK_BYTES as u64, shard, What::IndexDiffers, Consequence::Slower);
        }
    }

    fn wals(&mut self) {
        let mut recovery = Recovery::new(self.identity, u32::MAX, WAL_PIECE_BYTES);
        match recovery.run(self.disk, |_, _| {}) {
            Ok(report) => {
                for path in &report.foreign {
                    self.report.findings.push(Finding {
                        path: path.clone(),
                        at: 0,
                        shard: None,
                        range: None,
                        what: What::Foreign,
                        consequence: Consequence::None,
                    });
                }
                self.report.wals = report;
            }
            Err(error) => self.find(&Name::Wals.path(), 0, None, What::Wal(error), Consequence::NoStart),
        }
    }
}

/// What going through a segment showed.
struct Seen {
    tag: u32,
    places: BTreeMap<u64, Offset>,
    end: (Offset, u64),
    at: u64,
}
