//! **What**: the segments of one shard: where its durable history lies, and the flush that adds to it.
//!
//! ```text
//!            log_start                 base of the open segment    flushed_to            log_end
//!  ...gone...|---- sealed segments ----|------ open segment -------|---- memory and WAL ----|
//!            ^ reads begin here                                    ^ durable here; the WAL before it may go
//! ```
//!
//! **Invariants**: `log_start <= flushed_to <= log_end`; `log_end` is the shard's, this file knows the first two. A flush is
//! write, sync, meta, in this order; `flushed_to` moves when the meta is durable. One job at a time. Data in memory is the
//! shard's: nothing here grows with batches, only with segments (16 bytes each) and a bounded sparse index.
//!
//! **Never**: a write or sync tried again after it failed: the log is poisoned. Bytes below `flushed_to` rewritten.
//!
//! **See**: `script.rs` for how a job runs, `log_open.rs`, `read.rs`, `truncate.rs`, `retain.rs`, `compact.rs`.

use crate::chunk_builder::ChunkBuilder;
use crate::damaged::DamagedRanges;
use crate::disk::{BLOCK_BYTES, DiskDone, DiskOp, FileKey, FilePath, Priority};
use crate::format::header::{FileHeader, Identity, Owner};
use crate::format::index::{IndexEntry, SegmentIndex, SparseIndex};
use crate::format::meta::{EpochStart, OpenSegment, ShardMeta};
use crate::format::names::{Name, SegmentId};
use crate::format::segment::{FIRST_CHUNK_AT, LogCursor, file_tag};
pub use crate::job::{Ended, Job, JobError, LogEvent, MetaChange};
use crate::queue::{DiskQueue, Slot};
use crate::script::{Next, OpenChange, Progress, Script, SegmentsChange, Step, StepError};
use crate::truncate::leave_out;
use felix_protocol::ids::{NodeSession, ShardId};
use felix_protocol::position::{Lineage, Offset, OffsetRange};
use felix_protocol::time::Timestamp;
use std::collections::VecDeque;

/// Sizes of segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// A segment of this size takes no further flush.
    pub segment_bytes: u64,
    /// First reservation of a segment (DECISIONS 7).
    pub extent_bytes_first: u64,
    /// Largest further reservation.
    pub extent_bytes_max: u64,
}

impl Default for LogSettings {
    fn default() -> LogSettings {
        LogSettings { segment_bytes: 64 << 20, extent_bytes_first: 256 << 10, extent_bytes_max: 8 << 20 }
    }
}

/// Who makes files: goes into every header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maker {
    /// Whose data folder it is.
    pub identity: Identity,
    /// This start of the node.
    pub session: NodeSession,
}

/// A sealed segment; it ends where the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRef {
    /// Its first offset.
    pub base: Offset,
    /// Size of its file.
    pub bytes: u64,
}

/// The segment that flushes go to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OpenState {
    pub(crate) base: Offset,
    pub(crate) tag: u32,
    pub(crate) used_bytes: u64,
    pub(crate) size: u64,
    pub(crate) file: Option<FileKey>,
    pub(crate) time_first: Timestamp,
    pub(crate) chain_in: u64,
    pub(crate) sparse: SparseIndex,
}

/// What a log may still do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Everything.
    Well,
    /// Reads outside the damaged places, which lie in this range; nothing is cut or removed. What the WAL acknowledged before may
    /// still be flushed.
    Damaged(OffsetRange),
    /// Reads of what was durable; a write or sync failed.
    Poisoned(StepError),
}

/// The segments of one shard.
#[derive(Debug)]
pub struct ShardLog {
    pub(crate) slot: Slot,
    pub(crate) maker: Maker,
    pub(crate) meta: ShardMeta,
    pub(crate) segments: Vec<SegmentRef>,
    pub(crate) open: Option<Box<OpenState>>,
    pub(crate) health: Health,
    pub(crate) damaged: DamagedRanges,
    /// Files that belong to nothing any more and wait for quarantine.
    pub(crate) strays: Vec<FilePath>,
    job: Option<(Job, Box<Script>)>,
}

impl ShardLog {
    pub(crate) fn from_parts(
        slot: Slot,
        maker: Maker,
        meta: ShardMeta,
        segments: Vec<SegmentRef>,
        open: Option<Box<OpenState>>,
        strays: Vec<FilePath>,
    ) -> ShardLog {
        let (health, damaged) = (Health::Well, DamagedRanges::default());
        ShardLog { slot, maker, meta, segments, open, health, damaged, strays, job: None }
    }

    /// Log.
    pub fn shard(&self) -> ShardId {
        self.meta.shard
    }

    /// Incarnation.
    pub fn lineage(&self) -> Lineage {
        self.meta.lineage
    }

    /// First offset that may be read.
    pub fn log_start(&self) -> Offset {
        self.meta.log_start
    }

    /// End of what is durable in segments.
    pub fn flushed_to(&self) -> Offset {
        self.meta.flushed_to
    }

    /// What the next flush must begin with.
    pub fn cursor(&self) -> LogCursor {
        self.meta.cursor()
    }

    /// The meta as it is durable.
    pub fn meta(&self) -> &ShardMeta {
        &self.meta
    }

    /// What it may still do.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// A job runs.
    pub fn is_busy(&self) -> bool {
        self.job.is_some()
    }

    /// Files are being moved: a reader waits before it opens one.
    pub(crate) fn is_moving(&self) -> bool {
        self.job.as_ref().is_some_and(|(job, script)| *job == Job::Switch && !script.is_uncommitted())
    }

    /// Sealed segments, in order.
    pub fn segments(&self) -> &[SegmentRef] {
        &self.segments
    }

    /// Bytes of all segment files.
    pub fn stored_bytes(&self) -> u64 {
        self.segments.iter().map(|it| it.bytes).sum::<u64>() + self.open.as_ref().map_or(0, |it| it.size)
    }

    /// Append time of the first batch of the segment that flushes go to; None: there is no such segment.
    pub fn open_since(&self) -> Option<Timestamp> {
        self.open.as_ref().map(|it| it.time_first)
    }

    /// Bytes of memory it holds, itself included, while no job runs.
    pub fn held_bytes(&self) -> usize {
        size_of::<ShardLog>()
            + self.segments.capacity() * size_of::<SegmentRef>()
            + self.meta.settings.len()
            + self.meta.epochs.capacity() * size_of::<EpochStart>()
            + self.damaged.held_bytes()
            + self.open.as_ref().map_or(0, |it| size_of::<OpenState>() + size_of_val(it.sparse.entries()))
    }

    /// Reads found this range damaged: nothing of it is served from now on, nothing is cut or removed any more.
    pub fn mark_damaged(&mut self, range: OffsetRange) {
        self.damaged.add(range);
        if let Some(outline) = self.damaged.outline().filter(|_| !matches!(self.health, Health::Poisoned(_))) {
            self.health = Health::Damaged(outline);
        }
    }

    pub(crate) fn segment_path(&self, base: Offset) -> FilePath {
        crate::listing::segment_path(&self.meta, base)
    }

    pub(crate) fn index_path(&self, base: Offset) -> FilePath {
        crate::listing::index_path(&self.meta, base)
    }

    /// Owner of a segment's header.
    pub(crate) fn segment_owner(&self, base: Offset) -> Owner {
        Owner::Segment {
            stream: self.meta.stream,
            shard: self.meta.shard,
            segment: SegmentId { lineage: self.meta.lineage, base_offset: base },
        }
    }

    pub(crate) fn may_begin(&self) -> Result<(), JobError> {
        match &self.health {
            Health::Damaged(range) => return Err(JobError::Damaged(*range)),
            Health::Poisoned(error) => return Err(JobError::Poisoned(error.clone())),
            Health::Well => {}
        }
        if self.job.is_some() { Err(JobError::Busy) } else { Ok(()) }
    }

    /// As `may_begin`, for what only goes behind the end: damage below it does not keep that from being written, and what was
    /// acknowledged must get out of the WAL.
    pub(crate) fn may_go_on(&self) -> Result<(), JobError> {
        match self.takes_flushes() {
            true if self.job.is_some() => Err(JobError::Busy),
            true => Ok(()),
            false => self.may_begin(),
        }
    }

    /// Whether batches that were acknowledged can still be flushed. A damaged log takes them, into a segment of its own.
    pub fn takes_flushes(&self) -> bool {
        match &self.health {
            Health::Well => true,
            Health::Damaged(range) => range.to <= self.meta.flushed_to,
            Health::Poisoned(_) => false,
        }
    }

    /// The segment that flushes go to is damaged: nothing is appended to it and it gets no index, which would say that it is
    /// whole.
    fn is_open_damaged(&self, open: &OpenState) -> bool {
        matches!(&self.health, Health::Damaged(range) if range.to > open.base)
    }

    /// Moves away what the meta does not count and what would be part of the log, or be met by a new segment, once the log is
    /// longer: files of a flush that never counted, or behind a cut. A damaged log is not cleaned, but flushed.
    fn make_way(&self, meta: &mut ShardMeta, steps: &mut VecDeque<Step>) {
        let from = meta.void_from.take().map_or(meta.flushed_to, |from| from.min(meta.flushed_to));
        let is_in_the_way = |path: &FilePath| match Name::parse(path) {
            Some(Name::Segment(_, it) | Name::Index(_, it)) => it.lineage == meta.lineage && it.base_offset >= from,
            _ => false,
        };
        let in_the_way = self.strays.iter().filter(|path| is_in_the_way(path));
        steps.extend(in_the_way.map(|path| Step::Quarantine(path.clone())));
    }

    /// The meta to change for the next commit. What was to be moved away is, unless strays are left.
    pub(crate) fn next_meta(&self) -> ShardMeta {
        let mut meta = self.meta.clone();
        if self.strays.is_empty() {
            meta.void_from = None;
            meta.switch = None;
        }
        meta
    }

    /// Begins a job. The first step is planned at once.
    pub(crate) fn begin(&mut self, job: Job, mut script: Script, queue: &mut DiskQueue) {
        let progress = script.go_on(self.slot, queue);
        assert!(matches!(progress, Progress::Waiting), "a job has at least one operation before its commit");
        self.job = Some((job, Box::new(script)));
    }

    /// The step that makes a new meta durable.
    pub(crate) fn meta_step(&self, meta: &ShardMeta) -> Step {
        assert_eq!(meta.fault(), None, "a meta that its own reader would refuse");
        Step::Op(
            Name::ShardMeta(meta.shard).path(),
            DiskOp::Replace { path: Name::ShardMeta(meta.shard).path(), bytes: meta_file(&self.maker, meta) },
        )
    }

    /// Writes what a builder holds behind the log: write, sync, meta. The builder must have begun at `cursor()`. The event
    /// tells when it is durable, and gives the buffer back.
    pub fn flush(
        &mut self,
        builder: &mut ChunkBuilder,
        change: &MetaChange,
        settings: &LogSettings,
        now: Timestamp,
        queue: &mut DiskQueue,
    ) -> Result<(), JobError> {
        self.may_go_on()?;
        change.check()?;
        let expected = self.cursor();
        let end = builder.cursor().ok_or(JobError::NothingToFlush)?;
        let (_, first) = builder.chunks().next().ok_or(JobError::NothingToFlush)?;
        if first.shard != expected.shard
            || first.lineage != expected.lineage
            || first.range.from != expected.next
            || first.chain_in != expected.chain
        {
            return Err(JobError::Elsewhere { expected });
        }
        // Who may clean does that first, without a look at names.
        let needs_clean = self.health == Health::Well && (self.meta.void_from.is_some() || self.open.is_none());
        if needs_clean && !self.strays.is_empty() {
            return Err(JobError::NotClean);
        }
        let mut meta = self.next_meta();
        let mut steps = VecDeque::with_capacity(8);
        self.make_way(&mut meta, &mut steps);
        for begun in builder.epochs() {
            if meta.epochs.last().is_none_or(|last| last.epoch < begun.epoch) {
                meta.epochs.push(EpochStart { epoch: begun.epoch, start: begun.start });
            }
        }
        meta.flushed_to = end.next;
        meta.chain = end.chain;
        meta.time = end.time;
        change.apply(&mut meta);
        let time_first = builder.first_time().unwrap_or_default();
        let bytes = builder.bytes() as u64;
        let mut segments = SegmentsChange::None;
        let mut opened_bytes_min = 0;
        let stays = self.open.as_ref().filter(|open| open.used_bytes < settings.segment_bytes);
        let stays = stays.filter(|open| !self.is_open_damaged(open));
        let open_change = if let Some(open) = stays {
            let path = self.segment_path(open.base);
            let file = open.file.unwrap_or_else(|| queue.file_key(self.slot));
            if open.file.is_none() {
                opened_bytes_min = open.used_bytes;
                steps.push_back(Step::Op(path.clone(), DiskOp::Open { path: path.clone(), file }));
            }
            let used_bytes = open.used_bytes + bytes;
            let mut size = open.size;
            if used_bytes > size {
                size = grown(size, used_bytes, settings);
                steps.push_back(Step::Op(path.clone(), DiskOp::Extend { file, bytes: size }));
            }
            let entries = index_entries(builder, open.used_bytes);
            let payload = builder.finish(open.tag, open.used_bytes);
            steps.push_back(Step::Op(path.clone(), DiskOp::Write { file, at: open.used_bytes, bytes: payload }));
            steps.push_back(Step::Op(path, DiskOp::Sync { file }));
            meta.open = Some(OpenSegment { base: open.base, used_bytes });
            OpenChange::Grown { used_bytes, size, entries }
        } else {
            if let Some(open) = &self.open {
                self.seal_steps(open, &mut steps);
                segments = SegmentsChange::Push(SegmentRef { base: open.base, bytes: open.size });
            }
            let base = expected.next;
            let path = self.segment_path(base);
            let file = queue.file_key(self.slot);
            let mut header = Vec::with_capacity(BLOCK_BYTES);
            let owner = self.segment_owner(base);
            // A cut and another flush give another file of this name: its tag tells it from the first one and its index.
            let salt = u128::from(end.chain) << 64 | u128::from(end.time.0);
            FileHeader { identity: self.maker.identity, session: self.maker.session, salt, owner }.encode(&mut header);
            let tag = file_tag(&header);
            let used_bytes = FIRST_CHUNK_AT + bytes;
            let size = used_bytes.max(settings.extent_bytes_first.next_multiple_of(BLOCK_BYTES as u64));
            let mut sparse = SparseIndex::default();
            index_entries(builder, FIRST_CHUNK_AT).into_iter().for_each(|entry| sparse.add(entry));
            let payload = builder.finish(tag, FIRST_CHUNK_AT);
            for op in [
                DiskOp::Create { path: path.clone(), file, bytes: size, zeroed: false },
                DiskOp::Write { file, at: 0, bytes: header },
                DiskOp::Write { file, at: FIRST_CHUNK_AT, bytes: payload },
                DiskOp::Sync { file },
            ] {
                steps.push_back(Step::Op(path.clone(), op));
            }
            meta.open = Some(OpenSegment { base, used_bytes });
            OpenChange::To(Some(Box::new(OpenState {
                base,
                tag,
                used_bytes,
                size,
                file: Some(file),
                time_first,
                chain_in: expected.chain,
                sparse,
            })))
        };
        steps.push_back(self.meta_step(&meta));
        steps.push_back(Step::Commit);
        let next = Next { meta, segments, open: open_change };
        let mut script = Script::new(steps, Some(next), Priority::Background, now);
        script.opened_bytes_min = opened_bytes_min;
        self.begin(Job::Flush, script, queue);
        Ok(())
    }

    /// The index of an open segment, as it is written when it is sealed.
    pub(crate) fn open_index(&self, open: &OpenState) -> SegmentIndex {
        SegmentIndex {
            shard: self.meta.shard,
            lineage: self.meta.lineage,
            tag: open.tag,
            range: OffsetRange { from: open.base, to: self.meta.flushed_to },
            time_first: open.time_first,
            time_last: self.meta.time,
            used_bytes: open.used_bytes,
            chain_in: open.chain_in,
            chain_out: self.meta.chain,
            sparse: open.sparse.clone(),
        }
    }

    fn seal_steps(&self, open: &OpenState, steps: &mut VecDeque<Step>) {
        if !self.is_open_damaged(open) {
            let path = self.index_path(open.base);
            let bytes = index_file(&self.maker, &self.meta, open.base, &self.open_index(open));
            steps.push_back(Step::Op(path.clone(), DiskOp::Replace { path, bytes }));
        }
        if let Some(file) = open.file {
            steps.push_back(Step::Op(self.segment_path(open.base), DiskOp::Close { file }));
        }
    }

    /// Seals the open segment, so that retention and compaction may take it. False: there is none.
    pub fn roll(&mut self, queue: &mut DiskQueue) -> Result<bool, JobError> {
        self.may_begin()?;
        let Some(open) = &self.open else { return Ok(false) };
        let mut steps = VecDeque::new();
        self.seal_steps(open, &mut steps);
        let mut meta = self.next_meta();
        meta.open = None;
        steps.push_back(self.meta_step(&meta));
        steps.push_back(Step::Commit);
        let segments = SegmentsChange::Push(SegmentRef { base: open.base, bytes: open.size });
        let next = Next { meta, segments, open: OpenChange::To(None) };
        let script = Script::new(steps, Some(next), Priority::Background, self.meta.time);
        self.begin(Job::Roll, script, queue);
        Ok(true)
    }

    /// Goes on at `to`: the offsets before it, from the end on, are read as a gap and never given to a batch. After a stop that
    /// may have taken batches whose offsets somebody was told (DECISIONS 9).
    pub fn skip(&mut self, to: Offset, now: Timestamp, queue: &mut DiskQueue) -> Result<(), JobError> {
        self.may_go_on()?;
        let mut meta = self.next_meta();
        meta.open = None;
        let mut steps = VecDeque::new();
        self.make_way(&mut meta, &mut steps);
        leave_out(&mut meta, to)?;
        let mut segments = SegmentsChange::None;
        if let Some(open) = &self.open {
            self.seal_steps(open, &mut steps);
            segments = SegmentsChange::Push(SegmentRef { base: open.base, bytes: open.size });
        }
        steps.push_back(self.meta_step(&meta));
        steps.push_back(Step::Commit);
        let next = Next { meta, segments, open: OpenChange::To(None) };
        self.begin(Job::Skip, Script::new(steps, Some(next), Priority::Background, now), queue);
        Ok(())
    }

    /// Writes the meta alone: a promise or settings, so that the WAL file that holds them may go.
    pub fn save(&mut self, change: &MetaChange, queue: &mut DiskQueue) -> Result<(), JobError> {
        self.may_begin()?;
        change.check()?;
        let mut meta = self.next_meta();
        change.apply(&mut meta);
        let steps = VecDeque::from([self.meta_step(&meta), Step::Commit]);
        let next = Next { meta, segments: SegmentsChange::None, open: OpenChange::Same };
        let script = Script::new(steps, Some(next), Priority::Commit, self.meta.time);
        self.begin(Job::Save, script, queue);
        Ok(())
    }

    /// Closes the file of the open segment, of a shard that is idle or goes away. False: it is closed.
    pub fn close_file(&mut self, queue: &mut DiskQueue) -> Result<bool, JobError> {
        if self.job.is_some() {
            return Err(JobError::Busy);
        }
        let Some(file) = self.open.as_ref().and_then(|open| open.file) else { return Ok(false) };
        let path = self.segment_path(self.open.as_ref().map_or(Offset(0), |open| open.base));
        let steps = VecDeque::from([Step::Op(path, DiskOp::Close { file })]);
        self.begin(Job::CloseFile, Script::new(steps, None, Priority::Background, self.meta.time), queue);
        Ok(true)
    }

    /// Takes a completion. None: it was not of this log, or the job goes on.
    pub fn handle(&mut self, done: DiskDone, queue: &mut DiskQueue) -> Option<LogEvent> {
        let (_, script) = self.job.as_mut().filter(|(_, script)| script.is_waiting_for(done.ticket))?;
        let mut progress = script.on_done(self.slot, done, queue);
        let ended = loop {
            self.settle_handles();
            match progress {
                Progress::Waiting => return None,
                Progress::Commit(next) => {
                    self.apply(*next);
                    let (_, script) = self.job.as_mut()?;
                    progress = script.go_on(self.slot, queue);
                }
                Progress::Finished => break Ended::Done,
                Progress::Undone(error) => break Ended::Full(error),
                Progress::Poisoned(error) => {
                    self.health = Health::Poisoned(error.clone());
                    break Ended::Poisoned(error);
                }
            }
        };
        let (job, script) = self.job.take()?;
        let Script { buffer, quarantined, absent, leftovers, .. } = *script;
        self.strays.retain(|stray| !quarantined.contains(stray) && !absent.contains(stray));
        for left in &leftovers {
            if !self.strays.contains(&left.path) && left.step == crate::script::StepKind::Rename {
                self.strays.push(left.path.clone());
            }
        }
        Some(LogEvent { job, ended, flushed_to: self.meta.flushed_to, buffer, quarantined, leftovers })
    }

    /// What became of file handles holds whatever becomes of the job.
    fn settle_handles(&mut self) {
        let (Some((_, script)), Some(open)) = (&mut self.job, &mut self.open) else { return };
        for (file, opened) in &script.handles {
            match (opened, open.file) {
                (false, Some(held)) if held == *file => open.file = None,
                (true, None) if script.opened_bytes_min > 0 => open.file = Some(*file),
                _ => {}
            }
        }
        if script.opened_bytes_min > 0 {
            script.handles.clear();
        }
        if let Some(size) = script.extended.take() {
            open.size = open.size.max(size);
        }
    }

    fn apply(&mut self, next: Next) {
        let Next { meta, segments, open } = next;
        match segments {
            SegmentsChange::None => {}
            SegmentsChange::Push(sealed) => self.segments.push(sealed),
            SegmentsChange::Cut(sealed) => {
                self.segments.extend(sealed);
                self.segments.retain(|segment| segment.base < meta.flushed_to);
            }
            SegmentsChange::DropFront(count) => {
                self.segments.drain(..count.min(self.segments.len()));
            }
            SegmentsChange::Merge(merged, to) => {
                let from = self.segments.partition_point(|it| it.base < merged.base);
                let end = self.segments.partition_point(|it| it.base < to);
                self.segments.splice(from..end, [merged]);
            }
        }
        match open {
            OpenChange::Same => {}
            OpenChange::Grown { used_bytes, size, entries } => {
                if let Some(open) = &mut self.open {
                    open.used_bytes = used_bytes;
                    open.size = size;
                    entries.into_iter().for_each(|entry| open.sparse.add(entry));
                    open.sparse.shrink();
                }
            }
            OpenChange::To(open) => self.open = open,
        }
        self.meta = meta;
        crate::invariants::check(self);
    }
}

/// A meta file: header block and frame.
pub(crate) fn meta_file(maker: &Maker, meta: &ShardMeta) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK_BYTES + 512);
    let owner = Owner::Meta { stream: meta.stream, shard: meta.shard };
    FileHeader { identity: maker.identity, session: maker.session, salt: 0, owner }.encode(&mut bytes);
    meta.encode(&mut bytes);
    bytes
}

/// An index file: header block and frame.
pub(crate) fn index_file(maker: &Maker, meta: &ShardMeta, base: Offset, index: &SegmentIndex) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2 * BLOCK_BYTES);
    let segment = SegmentId { lineage: meta.lineage, base_offset: base };
    let owner = Owner::Index { stream: meta.stream, shard: meta.shard, segment };
    FileHeader { identity: maker.identity, session: maker.session, salt: 0, owner }.encode(&mut bytes);
    bytes.extend_from_slice(&index.encode());
    bytes
}

fn index_entries(builder: &ChunkBuilder, place: u64) -> Vec<IndexEntry> {
    builder
        .chunks()
        .map(|(at, chunk)| IndexEntry { offset: chunk.range.from, time: chunk.times.0, place: place + at })
        .collect()
}

/// The next size of a segment file: twice what it has, in steps of at most `extent_bytes_max`.
fn grown(size: u64, needed: u64, settings: &LogSettings) -> u64 {
    let step = size.clamp(BLOCK_BYTES as u64, settings.extent_bytes_max.max(BLOCK_BYTES as u64));
    let wanted = (size + step).min(settings.segment_bytes.max(needed)).max(needed);
    wanted.next_multiple_of(BLOCK_BYTES as u64)
}
