//! **What**: the file that a compaction writes, and its switch into the log.
//!
//! ```text
//! create <segment>.seg.tmp | write ... | sync | close      nothing of the log knows it
//! meta with `switch`       | commit
//! sources to quarantine, <segment>.seg.tmp to its name, its index
//! ```
//!
//! **Invariants**: the meta names the range only when the file is complete and durable. From then on a start finishes the
//! renames: while the temporary file is there, what bears a name in the range is a source; without it, the first one is the
//! result.
//!
//! **Never**: a source removed; it goes to quarantine after the switch counts.
//!
//! **See**: `compact.rs`, `log_open.rs` for the rest of a switch after a crash.

use crate::chunk_builder::ChunkBuilder;
use crate::compact::CompactError;
use crate::disk::{BLOCK_BYTES, DiskDone, DiskError, DiskOp, FileKey, FilePath, Priority, Ticket};
use crate::format::header::FileHeader;
use crate::format::index::{IndexEntry, SegmentIndex, SparseIndex};
use crate::format::meta::ShardMeta;
use crate::format::names::Name;
use crate::format::segment::{FIRST_CHUNK_AT, LogCursor, file_tag};
use crate::log::{Job, JobError, SegmentRef, ShardLog, index_file};
use crate::queue::{DiskQueue, Slot};
use crate::script::{Next, OpenChange, Script, SegmentsChange, Step};
use felix_protocol::position::{Offset, OffsetRange};
use felix_protocol::time::Timestamp;
use std::collections::VecDeque;

/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 1 << 20;

/// A finished file that waits for its switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactedSegment {
    /// Offsets it covers.
    pub range: OffsetRange,
    /// Its bytes.
    pub bytes: u64,
    /// Segments it replaces, as they were when it was made.
    pub sources: Vec<SegmentRef>,
    /// Everything below is compacted once it counts.
    pub compacted_to: Offset,
    index: SegmentIndex,
}

/// A file being written.
#[derive(Debug)]
pub(crate) struct Output {
    slot: Slot,
    builder: ChunkBuilder,
    header: Vec<u8>,
    path: FilePath,
    file: Option<FileKey>,
    begun: bool,
    tag: u32,
    used_bytes: u64,
    index: SegmentIndex,
    ops: VecDeque<DiskOp>,
    under_way: Option<Ticket>,
    error: Option<DiskError>,
    undoing: bool,
    /// The operation under way creates the file, or closes it; it was closed.
    creating: bool,
    closing: bool,
    closed: bool,
}

impl Output {
    pub(crate) fn new(slot: Slot, log: &ShardLog, range: OffsetRange, now: Timestamp) -> Output {
        let base = range.from;
        let mut header = Vec::with_capacity(BLOCK_BYTES);
        let owner = log.segment_owner(base);
        // Another tag than its sources have, so that an index or a chunk of theirs never passes for one of this file.
        let salt = u128::from(now.0) << 64 | u128::from(range.to.0);
        FileHeader { identity: log.maker.identity, session: log.maker.session, salt, owner }.encode(&mut header);
        let tag = file_tag(&header);
        Output {
            slot,
            builder: ChunkBuilder::new(),
            header,
            path: Name::Temporary(log.segment_path(base)).path(),
            file: None,
            begun: false,
            tag,
            used_bytes: FIRST_CHUNK_AT,
            index: SegmentIndex {
                shard: log.shard(),
                lineage: log.lineage(),
                tag,
                range: OffsetRange { from: base, to: base },
                time_first: Timestamp(0),
                time_last: Timestamp(0),
                used_bytes: 0,
                chain_in: 0,
                chain_out: 0,
                sparse: SparseIndex::default(),
            },
            ops: VecDeque::new(),
            under_way: None,
            error: None,
            undoing: false,
            creating: false,
            closing: false,
            closed: false,
        }
    }

    /// Begins at a cursor; once.
    pub(crate) fn begin(&mut self, cursor: LogCursor) {
        if !std::mem::replace(&mut self.begun, true) {
            self.builder.begin_compacted(cursor);
            self.index.time_first = cursor.time;
            self.index.chain_in = cursor.chain;
        }
    }

    pub(crate) fn cursor(&self) -> Option<LogCursor> {
        self.builder.cursor()
    }

    pub(crate) fn push(&mut self, batch: &[u8], sealed: bool) -> Result<(), CompactError> {
        self.builder.push(batch, sealed).map_err(CompactError::Build)
    }

    pub(crate) fn cover(&mut self, cursor: LogCursor, sealed: bool) {
        self.builder.cover(cursor, sealed);
    }

    pub(crate) fn write_if_full(&mut self, queue: &mut DiskQueue) {
        if self.builder.bytes() >= WRITE_BYTES {
            self.write(queue);
        }
    }

    fn write(&mut self, queue: &mut DiskQueue) {
        let Some(cursor) = self.builder.cursor().filter(|_| !self.builder.is_empty()) else { return };
        for (at, chunk) in self.builder.chunks() {
            let place = self.used_bytes + at;
            self.index.sparse.add(IndexEntry { offset: chunk.range.from, time: chunk.times.0, place });
        }
        let bytes = self.builder.finish(self.tag, self.used_bytes);
        self.builder.begin_compacted(cursor);
        let at = self.used_bytes;
        self.used_bytes += bytes.len() as u64;
        match self.file {
            Some(file) => self.ops.push_back(DiskOp::Extend { file, bytes: self.used_bytes }),
            None => {
                let file = queue.file_key(self.slot);
                self.file = Some(file);
                let path = self.path.clone();
                self.ops.push_back(DiskOp::Create { path, file, bytes: self.used_bytes, zeroed: false });
                self.ops.push_back(DiskOp::Write { file, at: 0, bytes: std::mem::take(&mut self.header) });
            }
        }
        if let Some(file) = self.file {
            self.ops.push_back(DiskOp::Write { file, at, bytes });
        }
        self.go_on(queue);
    }

    fn go_on(&mut self, queue: &mut DiskQueue) {
        if self.under_way.is_none()
            && let Some(op) = self.ops.pop_front()
        {
            self.creating = matches!(op, DiskOp::Create { .. });
            self.closing = matches!(op, DiskOp::Close { .. });
            self.under_way = Some(queue.push(self.slot, Priority::Background, op));
        }
    }

    /// Writes the rest, syncs and closes.
    pub(crate) fn finish(&mut self, queue: &mut DiskQueue) {
        if let Some(cursor) = self.builder.cursor() {
            self.index.range.to = cursor.next;
            self.index.time_last = cursor.time;
            self.index.chain_out = cursor.chain;
        }
        self.write(queue);
        if let Some(file) = self.file {
            self.ops.push_back(DiskOp::Sync { file });
            self.ops.push_back(DiskOp::Close { file });
        }
        self.index.used_bytes = self.used_bytes;
        self.go_on(queue);
    }

    /// Closes and removes the file: nothing knows it.
    pub(crate) fn undo(&mut self, queue: &mut DiskQueue) {
        self.undoing = true;
        self.ops.clear();
        if let Some(file) = self.file {
            let closes = self.closing && self.under_way.is_some();
            if !self.closed && !closes {
                self.ops.push_back(DiskOp::Close { file });
            }
            self.ops.push_back(DiskOp::Remove { path: self.path.clone() });
        }
        self.go_on(queue);
    }

    pub(crate) fn is_waiting_for(&self, ticket: Ticket) -> bool {
        self.under_way == Some(ticket)
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.under_way.is_some()
    }

    pub(crate) fn handle(&mut self, done: DiskDone, queue: &mut DiskQueue) {
        self.under_way = None;
        self.closed |= std::mem::take(&mut self.closing);
        match done.result {
            Ok(_) => {}
            // There is no file to undo.
            Err(_) if self.undoing && self.creating => self.ops.clear(),
            // What cannot be undone is a stray of the next start.
            Err(_) if self.undoing => {}
            Err(error) => {
                if self.creating {
                    // There is no file.
                    self.file = None;
                }
                self.ops.clear();
                self.error = Some(error);
            }
        }
        self.go_on(queue);
    }

    pub(crate) fn take_error(&mut self) -> Option<DiskError> {
        self.error.take()
    }

    pub(crate) fn finished(&self, range: OffsetRange, sources: &[SegmentRef], to: Offset) -> CompactedSegment {
        CompactedSegment {
            range,
            bytes: self.used_bytes,
            sources: sources.to_vec(),
            compacted_to: to,
            index: self.index.clone(),
        }
    }
}

/// How much of a log a compaction came past, and how much waits for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactShare {
    /// Bytes of segments that are compacted.
    pub compacted_bytes: u64,
    /// Bytes of sealed segments that are not, or not whole.
    pub new_bytes: u64,
}

impl ShardLog {
    /// What a compaction up to `limit` would find.
    pub fn compact_share(&self, limit: Offset) -> CompactShare {
        let mut share = CompactShare::default();
        for (at, segment) in self.segments.iter().enumerate().filter(|(_, it)| it.base >= self.meta.log_start) {
            let end = self.end_of_segments(at + 1);
            if end > limit {
                break;
            }
            let bytes = if end <= self.meta.compacted_to { &mut share.compacted_bytes } else { &mut share.new_bytes };
            *bytes += segment.bytes;
        }
        share
    }

    /// Puts a compacted segment in the place of its sources.
    pub fn switch(
        &mut self,
        finished: &CompactedSegment,
        now: Timestamp,
        queue: &mut DiskQueue,
    ) -> Result<(), JobError> {
        self.may_begin()?;
        if !self.strays.is_empty() {
            return Err(JobError::NotClean);
        }
        let range = finished.range;
        let from = self.segments.partition_point(|it| it.base < range.from);
        let end = from + finished.sources.len();
        let same = self.segments.get(from..end) == Some(&finished.sources[..]);
        if !same || self.end_of_segments(end) != range.to || self.meta.log_start > range.from {
            return Err(JobError::Outdated);
        }
        let mut meta = self.next_meta();
        meta.switch = Some(range);
        meta.compacted_to = meta.compacted_to.max(finished.compacted_to);
        let mut steps = VecDeque::from([self.meta_step(&meta), Step::Commit]);
        for source in &finished.sources {
            steps.push_back(Step::Quarantine(self.segment_path(source.base)));
            steps.push_back(Step::Quarantine(self.index_path(source.base)));
        }
        let to = self.segment_path(range.from);
        let from = Name::Temporary(to.clone()).path();
        steps.push_back(Step::Op(from.clone(), DiskOp::Rename { from, to }));
        let path = self.index_path(range.from);
        let bytes = index_file(&self.maker, &self.meta, range.from, &finished.index);
        steps.push_back(Step::Op(path.clone(), DiskOp::Replace { path, bytes }));
        // The next compaction uses the temporary name again: before that, no meta may speak of this switch.
        let done = ShardMeta { switch: None, ..meta.clone() };
        steps.push_back(self.meta_step(&done));
        steps.push_back(Step::Commit);
        let merged = SegmentRef { base: range.from, bytes: finished.bytes };
        let next = Next { meta, segments: SegmentsChange::Merge(merged, range.to), open: OpenChange::Same };
        let mut script = Script::new(steps, Some(next), Priority::Background, now);
        script.strict = true;
        script.then = Some(Box::new(Next { meta: done, segments: SegmentsChange::None, open: OpenChange::Same }));
        self.begin(Job::Switch, script, queue);
        Ok(())
    }

    /// Writes down how far a compaction came that found less to do than it read. False: it is known.
    pub fn note_compacted(&mut self, to: Offset, queue: &mut DiskQueue) -> Result<bool, JobError> {
        self.may_begin()?;
        let range = OffsetRange { from: self.meta.compacted_to, to: self.meta.flushed_to };
        if to > range.to {
            return Err(JobError::OutOfRange { offset: to, range });
        }
        if to <= range.from {
            return Ok(false);
        }
        let mut meta = self.next_meta();
        meta.compacted_to = to;
        let steps = VecDeque::from([self.meta_step(&meta), Step::Commit]);
        let next = Next { meta, segments: SegmentsChange::None, open: OpenChange::Same };
        let script = Script::new(steps, Some(next), Priority::Background, self.meta.time);
        self.begin(Job::Save, script, queue);
        Ok(true)
    }
}
