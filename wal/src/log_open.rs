//! **What**: opens a shard's log: meta, listing, and the unsealed segment from the last known chunk on.
//!
//! ```text
//! load meta -> list folder -> [finish a compaction switch] -> open segment: header, chunk by chunk to the end in the meta,
//! the last chunk whole -> what lies behind it
//! ```
//!
//! **Invariants**: the cost is that of the unsealed segment's chunk headers, not of history. What lies beyond the end in the
//! meta was never acknowledged: the WAL has it, so it is passed over and reported, and the next flush writes there. Bad
//! bytes below that end are damage: the log opens, serves the rest, and takes what was
//! acknowledged before behind its end.
//!
//! **Never**: a file removed; what belongs to nothing is a stray, for quarantine. A shard opened without its meta.
//!
//! **See**: `log.rs`, `format/meta.rs`.

use crate::disk::{BLOCK_BYTES, DiskDone, DiskError, DiskOk, DiskOp, FileKey, FilePath, Listed, Priority, Ticket};
use crate::format::frame::FrameError;
use crate::format::header::{FileHeader, HeaderError, Owner};
use crate::format::index::{IndexEntry, SparseIndex};
use crate::format::meta::{META_BYTES_MAX, ShardMeta};
use crate::format::names::{Name, SegmentId};
use crate::format::segment::{ChunkError, ChunkHeader, ChunkPlace, FIRST_CHUNK_AT, file_tag};
use crate::listing::{self, segment_path};
use crate::log::{Maker, OpenState, SegmentRef, ShardLog, meta_file};
use crate::queue::{DiskQueue, Slot};
use felix_protocol::ids::{ShardId, StreamId};
use felix_protocol::metadata::Durability;
use felix_protocol::position::{Lineage, Offset, OffsetRange};
use felix_protocol::time::Timestamp;
use std::fmt;

/// Bytes read per look at chunk headers: what several small chunks fit in.
const LOOK_BYTES: usize = 16 * BLOCK_BYTES;

/// What a shard is, for its first meta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardSpec {
    /// Stream it is made for.
    pub stream: StreamId,
    /// Shard.
    pub shard: ShardId,
    /// Incarnation of its data, never used before.
    pub lineage: Lineage,
    /// How it is stored.
    pub durability: Durability,
}

/// Why a log did not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// It has no meta: it was never made, or somebody removed it. Nothing is touched.
    NoMeta {
        /// Segment files that lie there all the same.
        segments: usize,
    },
    /// The meta is of another cluster, region, node or shard, or its header is damaged.
    MetaHeader(HeaderError),
    /// The meta is damaged.
    Meta(FrameError),
    /// More was flushed than the meta knows, by the WAL or by the segments that lie there: it is an old copy.
    MetaOlder {
        /// In the meta.
        flushed_to: Offset,
        /// By the WAL or a segment.
        expected: Offset,
    },
    /// A shard to be made is there already, in this lineage or a later one.
    Exists(Lineage),
    /// The disk failed.
    Disk(DiskError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::NoMeta { segments } => write!(f, "the shard has no meta, but {segments} segment file(s)"),
            OpenError::MetaHeader(error) => write!(f, "shard meta: {error}"),
            OpenError::Meta(error) => write!(f, "shard meta: {error}"),
            OpenError::MetaOlder { flushed_to, expected } => {
                write!(
                    f,
                    "the shard meta ends at {flushed_to}, the log was flushed up to {expected}: it is an old copy"
                )
            }
            OpenError::Exists(lineage) => write!(f, "the shard is there already, in lineage {}", lineage.0),
            OpenError::Disk(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {}

/// What lies behind the last known chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    Clean,
    /// Whole chunks of a flush whose meta did not become durable.
    Unacknowledged {
        /// Byte of the file.
        at: u64,
        /// Offsets of the first such chunk.
        range: OffsetRange,
    },
    /// A part of a chunk.
    Torn {
        /// Byte of the file.
        at: u64,
        /// What is wrong with it.
        error: ChunkError,
    },
}

/// Damage found while opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenDamage {
    /// File.
    pub path: FilePath,
    /// Byte of the file.
    pub at: u64,
    /// Offsets that are lost or in doubt.
    pub range: OffsetRange,
    /// What is wrong.
    pub cause: DamageCause,
}

/// What is wrong with a damaged segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageCause {
    /// Its header.
    Header(HeaderError),
    /// A chunk.
    Chunk(ChunkError),
    /// A chunk does not continue the one before, or the last does not end as the meta says.
    Order,
    /// The file is not there.
    NoFile,
    /// It cannot be read.
    Disk(DiskError),
}

/// What opening found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenReport {
    /// Behind the last known chunk.
    pub tail: Tail,
    /// Files that belong to nothing: `ShardLog::clean` moves them to quarantine.
    pub strays: Vec<FilePath>,
    /// Names that are not ours; they are left alone.
    pub foreign: Vec<String>,
    /// The log is read-only with a hole.
    pub damage: Option<OpenDamage>,
    /// Bytes read.
    pub bytes_read: u64,
}

#[derive(Debug)]
enum Stage {
    /// Is a meta there, are segments there, then the first meta.
    ProbeMeta(Ticket, ShardSpec),
    ProbeList(Ticket, ShardSpec),
    Create(Ticket),
    Meta(Ticket),
    List(Ticket),
    /// Renames that a compaction switch still needs.
    Switch(Ticket, Vec<DiskOp>),
    Open(Ticket),
    Header(Ticket),
    Look(Ticket),
    Whole(Ticket),
    Tail(Ticket),
    TailWhole(Ticket),
    Close(Ticket),
    Done,
}

/// A log on its way to be opened.
#[derive(Debug)]
pub struct Opening {
    slot: Slot,
    maker: Maker,
    shard: ShardId,
    now: Timestamp,
    flushed_expected: Offset,
    stage: Stage,
    meta: Option<ShardMeta>,
    file: Option<FileKey>,
    segments: Vec<SegmentRef>,
    open: Option<Box<OpenState>>,
    place: u64,
    last: Option<ChunkHeader>,
    report: OpenReport,
}

/// A log that was opened.
pub type Opened = Result<(ShardLog, OpenReport), OpenError>;

impl Opening {
    fn new(
        slot: Slot,
        maker: Maker,
        shard: ShardId,
        now: Timestamp,
        flushed_expected: Offset,
        stage: Stage,
    ) -> Opening {
        Opening {
            slot,
            maker,
            shard,
            now,
            flushed_expected,
            stage,
            meta: None,
            file: None,
            segments: Vec::new(),
            open: None,
            place: FIRST_CHUNK_AT,
            last: None,
            report: OpenReport {
                tail: Tail::Clean,
                strays: Vec::new(),
                foreign: Vec::new(),
                damage: None,
                bytes_read: 0,
            },
        }
    }

    /// Makes a shard that does not exist yet, or one anew in a higher lineage: files of earlier ones become strays of the
    /// next start. Data of this lineage that lies there without its meta is not overwritten.
    pub fn create(slot: Slot, maker: Maker, spec: ShardSpec, queue: &mut DiskQueue) -> Opening {
        let op = DiskOp::Load { path: Name::ShardMeta(spec.shard).path(), bytes_max: META_BYTES_MAX };
        let stage = Stage::ProbeMeta(queue.push(slot, Priority::Background, op), spec);
        Opening::new(slot, maker, spec.shard, Timestamp(0), Offset(0), stage)
    }

    /// Opens a shard. `flushed_expected`: what the WAL says was flushed, 0 if it does not say.
    pub fn open(
        slot: Slot,
        maker: Maker,
        shard: ShardId,
        now: Timestamp,
        flushed_expected: Offset,
        queue: &mut DiskQueue,
    ) -> Opening {
        let op = DiskOp::Load { path: Name::ShardMeta(shard).path(), bytes_max: META_BYTES_MAX };
        let stage = Stage::Meta(queue.push(slot, Priority::Background, op));
        Opening::new(slot, maker, shard, now, flushed_expected, stage)
    }

    /// Takes a completion. None: it goes on.
    pub fn handle(&mut self, done: DiskDone, queue: &mut DiskQueue) -> Option<Opened> {
        let (Stage::ProbeMeta(mine, _)
        | Stage::ProbeList(mine, _)
        | Stage::Create(mine)
        | Stage::Meta(mine)
        | Stage::List(mine)
        | Stage::Switch(mine, _)
        | Stage::Open(mine)
        | Stage::Header(mine)
        | Stage::Look(mine)
        | Stage::Whole(mine)
        | Stage::Tail(mine)
        | Stage::TailWhole(mine)
        | Stage::Close(mine)) = &self.stage
        else {
            return None;
        };
        if *mine != done.ticket {
            return None;
        }
        match self.step(done.result, queue) {
            Ok(None) => None,
            Ok(Some(())) => Some(Ok(self.finish())),
            Err(error) => {
                self.stage = Stage::Done;
                Some(Err(error))
            }
        }
    }

    fn plan(&mut self, op: DiskOp, queue: &mut DiskQueue) -> Ticket {
        queue.push(self.slot, Priority::Background, op)
    }

    fn step(&mut self, result: Result<DiskOk, DiskError>, queue: &mut DiskQueue) -> Result<Option<()>, OpenError> {
        let stage = std::mem::replace(&mut self.stage, Stage::Done);
        match (stage, result) {
            (Stage::ProbeMeta(_, spec), Err(DiskError::NotFound)) => {
                let op = DiskOp::List { path: Name::Shard(self.shard).path() };
                self.stage = Stage::ProbeList(self.plan(op, queue), spec);
                Ok(None)
            }
            (Stage::ProbeMeta(_, spec), Ok(DiskOk::Bytes(bytes))) => {
                let held = self.read_meta(&bytes)?;
                if held.lineage >= spec.lineage {
                    return Err(OpenError::Exists(held.lineage));
                }
                self.write_first(spec, queue);
                Ok(None)
            }
            (Stage::ProbeList(_, spec), Ok(DiskOk::Listed(list))) => {
                match listing::segment_count(self.shard, spec.lineage, &list) {
                    0 => self.write_first(spec, queue),
                    segments => return Err(OpenError::NoMeta { segments }),
                }
                Ok(None)
            }
            (Stage::Create(_), Ok(_)) => Ok(Some(())),
            (Stage::Meta(_), Ok(DiskOk::Bytes(bytes))) => {
                self.meta = Some(self.read_meta(&bytes)?);
                self.list(queue);
                Ok(None)
            }
            (Stage::Meta(_), Err(DiskError::NotFound)) => {
                self.list(queue);
                Ok(None)
            }
            (Stage::List(_), Ok(DiskOk::Listed(list))) => self.on_list(list, queue),
            (Stage::Switch(_, rest), result) => {
                match result {
                    // An earlier start came this far.
                    Ok(_) | Err(DiskError::NotFound) => {}
                    Err(error) => return Err(OpenError::Disk(error)),
                }
                self.switch(rest, queue);
                if matches!(self.stage, Stage::Done) { Ok(Some(())) } else { Ok(None) }
            }
            (Stage::Open(_), Ok(DiskOk::Opened { bytes })) => {
                if let Some(open) = &mut self.open {
                    open.size = bytes;
                }
                let file = self.file.expect("it was opened");
                let op = DiskOp::Read { file, at: 0, bytes: BLOCK_BYTES };
                self.stage = Stage::Header(self.plan(op, queue));
                Ok(None)
            }
            (Stage::Open(_), Err(error)) => {
                self.file = None;
                let cause = if error == DiskError::NotFound { DamageCause::NoFile } else { DamageCause::Disk(error) };
                self.damaged(cause, 0);
                Ok(Some(()))
            }
            (Stage::Header(_), Ok(DiskOk::Bytes(bytes))) => self.on_header(&bytes, queue),
            (Stage::Look(_), Ok(DiskOk::Bytes(bytes))) => self.on_look(&bytes, queue),
            (Stage::Whole(_), Ok(DiskOk::Bytes(bytes))) => self.on_whole(&bytes, queue),
            (Stage::Tail(_), Ok(DiskOk::Bytes(bytes))) => self.on_tail(&bytes, queue),
            (Stage::TailWhole(_), Ok(DiskOk::Bytes(bytes))) => {
                self.report.bytes_read += bytes.len() as u64;
                let at = self.place;
                self.report.tail = match self.decode(&bytes, at).and_then(|chunk| {
                    chunk.check(bytes.get(..chunk.stored_bytes()).unwrap_or(&[])).map(|_| chunk.range)
                }) {
                    Ok(range) => Tail::Unacknowledged { at, range },
                    Err(error) => Tail::Torn { at, error },
                };
                self.close(queue)
            }
            // Behind the last known chunk nothing is expected, so an error there is no damage.
            (Stage::Tail(_) | Stage::TailWhole(_), Err(_)) => {
                self.report.tail = Tail::Torn { at: self.place, error: ChunkError::Truncated };
                self.close(queue)
            }
            (Stage::Header(_) | Stage::Look(_) | Stage::Whole(_), Err(error)) => {
                let at = self.place;
                self.damaged(DamageCause::Disk(error), at);
                self.close(queue)
            }
            (Stage::Close(_), _) => {
                self.file = None;
                Ok(Some(()))
            }
            (_, Err(error)) => Err(OpenError::Disk(error)),
            (_, Ok(_)) => Err(OpenError::Disk(DiskError::NotFound)),
        }
    }

    fn read_meta(&self, bytes: &[u8]) -> Result<ShardMeta, OpenError> {
        let header = FileHeader::decode(bytes).map_err(OpenError::MetaHeader)?;
        let stream = match header.owner {
            Owner::Meta { stream, .. } => stream,
            _ => StreamId(0),
        };
        FileHeader::expect(bytes, &self.maker.identity, &Owner::Meta { stream, shard: self.shard })
            .map_err(OpenError::MetaHeader)?;
        let meta = ShardMeta::decode(&bytes[BLOCK_BYTES..]).map_err(OpenError::Meta)?;
        if meta.shard != self.shard || meta.stream != stream {
            return Err(OpenError::Meta(FrameError::Content("the shard in the meta")));
        }
        if meta.flushed_to < self.flushed_expected {
            return Err(OpenError::MetaOlder { flushed_to: meta.flushed_to, expected: self.flushed_expected });
        }
        Ok(meta)
    }

    fn write_first(&mut self, spec: ShardSpec, queue: &mut DiskQueue) {
        let meta = ShardMeta::new(spec.stream, spec.shard, spec.lineage, spec.durability);
        let op = DiskOp::Replace { path: Name::ShardMeta(spec.shard).path(), bytes: meta_file(&self.maker, &meta) };
        self.stage = Stage::Create(self.plan(op, queue));
        self.meta = Some(meta);
    }

    fn list(&mut self, queue: &mut DiskQueue) {
        let op = DiskOp::List { path: Name::Shard(self.shard).path() };
        self.stage = Stage::List(self.plan(op, queue));
    }

    /// Sorts out what lies in the folder; plans what a switch still needs.
    fn on_list(&mut self, list: Vec<Listed>, queue: &mut DiskQueue) -> Result<Option<()>, OpenError> {
        let Some(meta) = &self.meta else {
            return Err(OpenError::NoMeta { segments: listing::segment_count(self.shard, Lineage(0), &list) });
        };
        let sorted = listing::sort(meta, list);
        if let Some(expected) = sorted.beyond_meta {
            return Err(OpenError::MetaOlder { flushed_to: meta.flushed_to, expected });
        }
        let mut steps: Vec<DiskOp> = sorted.replaced.iter().map(|path| self.quarantine(path)).collect();
        steps.extend(sorted.finished.map(|(from, to)| DiskOp::Rename { from, to }));
        self.segments = sorted.segments;
        self.report.strays = sorted.strays;
        self.report.foreign = sorted.foreign;
        self.switch(steps, queue);
        if matches!(self.stage, Stage::Done) { Ok(Some(())) } else { Ok(None) }
    }

    fn quarantine(&self, path: &FilePath) -> DiskOp {
        DiskOp::Rename { from: path.clone(), to: Name::quarantined(self.now, path).path() }
    }

    /// Renames, then on to the open segment. Without one the stage stays `Done`.
    fn switch(&mut self, mut steps: Vec<DiskOp>, queue: &mut DiskQueue) {
        if !steps.is_empty() {
            let op = steps.remove(0);
            let ticket = self.plan(op, queue);
            self.stage = Stage::Switch(ticket, steps);
            return;
        }
        let meta = self.meta.as_ref().expect("it was read");
        let Some(open) = meta.open else {
            self.stage = Stage::Done;
            return;
        };
        let path = segment_path(meta, open.base);
        let time = meta.time;
        self.segments.retain(|it| it.base != open.base);
        self.open = Some(Box::new(OpenState {
            base: open.base,
            tag: 0,
            used_bytes: open.used_bytes,
            size: 0,
            file: None,
            time_first: time,
            chain_in: 0,
            sparse: SparseIndex::default(),
        }));
        let file = queue.file_key(self.slot);
        self.file = Some(file);
        self.stage = Stage::Open(self.plan(DiskOp::Open { path, file }, queue));
    }

    fn on_header(&mut self, bytes: &[u8], queue: &mut DiskQueue) -> Result<Option<()>, OpenError> {
        self.report.bytes_read += bytes.len() as u64;
        let meta = self.meta.as_ref().expect("it was read");
        let base = self.open.as_ref().map_or(Offset(0), |open| open.base);
        let segment = SegmentId { lineage: meta.lineage, base_offset: base };
        let owner = Owner::Segment { stream: meta.stream, shard: meta.shard, segment };
        if let Err(error) = FileHeader::expect(bytes, &self.maker.identity, &owner) {
            self.damaged(DamageCause::Header(error), 0);
            return self.close(queue);
        }
        if let Some(open) = &mut self.open {
            open.tag = file_tag(bytes);
        }
        self.look(queue);
        Ok(None)
    }

    fn look(&mut self, queue: &mut DiskQueue) {
        let left = (self.used_bytes() - self.place).min(LOOK_BYTES as u64);
        let file = self.file.expect("it is open");
        let op = DiskOp::Read { file, at: self.place, bytes: left as usize };
        self.stage = Stage::Look(self.plan(op, queue));
    }

    fn used_bytes(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.used_bytes)
    }

    fn decode(&self, bytes: &[u8], at: u64) -> Result<ChunkHeader, ChunkError> {
        let meta = self.meta.as_ref().expect("it was read");
        let tag = self.open.as_ref().map_or(0, |open| open.tag);
        ChunkHeader::decode_at(bytes, ChunkPlace { shard: meta.shard, lineage: meta.lineage, tag, at })
    }

    /// Chunk headers below the known end: each must follow from the one before.
    fn on_look(&mut self, bytes: &[u8], queue: &mut DiskQueue) -> Result<Option<()>, OpenError> {
        self.report.bytes_read += bytes.len() as u64;
        let start = self.place;
        let used_bytes = self.used_bytes();
        loop {
            let rest = &bytes[((self.place - start) as usize).min(bytes.len())..];
            if rest.is_empty() && self.place > start {
                self.look(queue);
                return Ok(None);
            }
            let chunk = match self.decode(rest, self.place) {
                Ok(chunk) => chunk,
                Err(error) => {
                    let at = self.place;
                    self.damaged(DamageCause::Chunk(error), at);
                    return self.close(queue);
                }
            };
            let open = self.open.as_mut().expect("the stage has a segment");
            let follows = match &self.last {
                None => chunk.range.from == open.base,
                Some(last) => chunk.range.from == last.range.to && chunk.chain_in == last.chain_out,
            };
            let end = self.place + chunk.stored_bytes() as u64;
            if !follows || end > used_bytes {
                let at = self.place;
                self.damaged(DamageCause::Order, at);
                return self.close(queue);
            }
            if self.last.is_none() {
                open.time_first = chunk.times.0;
                open.chain_in = chunk.chain_in;
            }
            open.sparse.add(IndexEntry { offset: chunk.range.from, time: chunk.times.0, place: self.place });
            if end == used_bytes {
                let file = self.file.expect("it is open");
                let op = DiskOp::Read { file, at: self.place, bytes: chunk.stored_bytes() };
                self.stage = Stage::Whole(self.plan(op, queue));
                return Ok(None);
            }
            self.last = Some(chunk);
            self.place = end;
        }
    }

    /// The last known chunk: whole, and the log ends with it.
    fn on_whole(&mut self, bytes: &[u8], queue: &mut DiskQueue) -> Result<Option<()>, OpenError> {
        self.report.bytes_read += bytes.len() as u64;
        let at = self.place;
        let checked = self.decode(bytes, at).and_then(|chunk| chunk.check(bytes).map(|_| chunk));
        let meta = self.meta.as_ref().expect("it was read");
        match checked {
            Err(error) => {
                self.damaged(DamageCause::Chunk(error), at);
                self.close(queue)
            }
            Ok(chunk) if chunk.range.to != meta.flushed_to || chunk.chain_out != meta.chain => {
                self.damaged(DamageCause::Order, at);
                self.close(queue)
            }
            Ok(chunk) => {
                self.place += chunk.stored_bytes() as u64;
                self.last = Some(chunk);
                let size = self.open.as_ref().map_or(0, |open| open.size);
                if self.place + BLOCK_BYTES as u64 > size {
                    return self.close(queue);
                }
                let file = self.file.expect("it is open");
                let op = DiskOp::Read { file, at: self.place, bytes: BLOCK_BYTES };
                self.stage = Stage::Tail(self.plan(op, queue));
                Ok(None)
            }
        }
    }

    /// What lies behind the known end.
    fn on_tail(&mut self, bytes: &[u8], queue: &mut DiskQueue) -> Result<Option<()>, OpenError> {
        self.report.bytes_read += bytes.len() as u64;
        let at = self.place;
        match self.decode(bytes, at) {
            Err(ChunkError::Empty) if bytes.iter().all(|byte| *byte == 0) => self.close(queue),
            Err(error) => {
                self.report.tail = Tail::Torn { at, error };
                self.close(queue)
            }
            Ok(chunk) => {
                let file = self.file.expect("it is open");
                let op = DiskOp::Read { file, at, bytes: chunk.stored_bytes() };
                self.stage = Stage::TailWhole(self.plan(op, queue));
                Ok(None)
            }
        }
    }

    fn close(&mut self, queue: &mut DiskQueue) -> Result<Option<()>, OpenError> {
        let file = self.file.expect("it is open");
        self.stage = Stage::Close(self.plan(DiskOp::Close { file }, queue));
        Ok(None)
    }

    fn damaged(&mut self, cause: DamageCause, at: u64) {
        let meta = self.meta.as_ref().expect("it was read");
        let base = self.open.as_ref().map_or(Offset(0), |open| open.base);
        let from = self.last.as_ref().map_or(base, |last| last.range.to);
        let path = segment_path(meta, base);
        self.report.damage = Some(OpenDamage { path, at, range: OffsetRange { from, to: meta.flushed_to }, cause });
    }

    fn finish(&mut self) -> (ShardLog, OpenReport) {
        self.stage = Stage::Done;
        let meta = self.meta.take().expect("it was read or made");
        let mut report = self.report.clone();
        // A hole in front: segments that the log start needs are gone.
        let first = self.segments.first().map(|it| it.base).or(self.open.as_ref().map(|open| open.base));
        let first = first.unwrap_or(meta.flushed_to);
        let hole = OffsetRange { from: meta.log_start, to: first };
        let is_given_up = meta.gaps.iter().any(|gap| gap.from <= hole.from && gap.to >= hole.to);
        let hole = (hole.from < hole.to && !is_given_up).then_some(hole);
        if let Some(range) = hole
            && report.damage.is_none()
        {
            let path = segment_path(&meta, meta.log_start);
            report.damage = Some(OpenDamage { path, at: 0, range, cause: DamageCause::NoFile });
        }
        let segments = std::mem::take(&mut self.segments);
        let mut log =
            ShardLog::from_parts(self.slot, self.maker, meta, segments, self.open.take(), report.strays.clone());
        let damage = report.damage.as_ref().map(|damage| damage.range);
        damage.into_iter().chain(hole).for_each(|range| log.mark_damaged(range));
        (log, report)
    }
}
