//! **What**: compaction by key: rewrites sealed segments without the records that a later one of the same key replaced.
//!
//! ```text
//! map the new part -> group of segments: anything to drop? -> rewrite into a temporary file -> sync -> switch -> next group
//!                                         no: next group                     the log's job, see `ShardLog::switch`
//! ```
//!
//! **Invariants**: offsets, times and epochs of what stays are unchanged; batches lose records as DERIVED batches, whole
//! ranges stay covered by their chunk, and the chain leads in and out as before. A tombstone goes only after its grace
//! time, and only when everything older of its key is gone, durably. Sources stay until the new file counts.
//!
//! **Never**: more than the granted bytes read per step; a record of kind other than data touched.
//!
//! **See**: `compact_map.rs`, `compact_output.rs`, `felix_protocol::derive`.

use crate::at_rest::{AtRest, AtRestError};
use crate::chunk_builder::BuildError;
use crate::compact_map::LatestMap;
use crate::compact_output::Output;
use crate::disk::{DiskDone, DiskError};
use crate::format::segment::LogCursor;
use crate::format::stored::StoredBatch;
use crate::listing;
use crate::log::{SegmentRef, ShardLog};
use crate::queue::{DiskQueue, Slot};
use crate::read::{ReadError, ReadFault, ReadFrom, ReadSettings, ReadState, Reader};
use felix_protocol::batch::BatchKind;
use felix_protocol::batch_view::{BatchError, BatchView, Entry, RECORD_SKIPPED, RECORD_TOMBSTONE};
use felix_protocol::derive::{DeriveScratch, Derived, derive};
use felix_protocol::position::{Offset, OffsetRange};
use felix_protocol::time::Timestamp;
use std::fmt;

pub use crate::compact_output::{CompactShare, CompactedSegment};

/// Bounds of a compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactSettings {
    /// Memory of the map of latest offsets.
    pub map_bytes_max: usize,
    /// How long a tombstone stays after its append.
    pub tombstone_grace_ns: u64,
    /// Source bytes that become one segment.
    pub group_bytes_max: u64,
}

impl Default for CompactSettings {
    fn default() -> CompactSettings {
        CompactSettings {
            map_bytes_max: 64 << 20,
            tombstone_grace_ns: 24 * 3_600 * 1_000_000_000,
            group_bytes_max: 64 << 20,
        }
    }
}

/// Why a compaction ended early. Nothing of the log has changed beyond the switches it told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompactError {
    /// Reading a source.
    Read(Box<ReadError>),
    /// Writing the new segment.
    Disk(DiskError),
    /// A batch that cannot be read.
    Batch(BatchError),
    /// A sealed batch that cannot be opened, or sealed again.
    AtRest(AtRestError),
    /// A batch that does not fit behind the one before.
    Build(BuildError),
    /// The log is sealed at rest and no keys were given.
    NeedsKeys,
    /// The segments have changed meanwhile.
    Outdated,
}

impl fmt::Display for CompactError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CompactError::Read(error) => error.fmt(f),
            CompactError::Disk(error) => error.fmt(f),
            CompactError::Batch(error) => error.fmt(f),
            CompactError::AtRest(error) => error.fmt(f),
            CompactError::Build(error) => error.fmt(f),
            CompactError::NeedsKeys => f.write_str("the log is sealed at rest and no keys were given"),
            CompactError::Outdated => f.write_str("the segments have changed meanwhile"),
        }
    }
}

impl std::error::Error for CompactError {}

/// What a compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactReport {
    /// Records taken out.
    pub dropped: u64,
    /// Tombstones among them.
    pub tombstones: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Segments that were replaced.
    pub segments_replaced: u64,
    /// Everything below is compacted: for `ShardLog::note_compacted`.
    pub compacted_to: Offset,
}

/// What a compaction wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompactState {
    /// Completions are awaited.
    Working,
    /// The granted bytes are used up: `grant` more when it suits.
    Paused,
    /// Give this to `ShardLog::switch`, and tell `switched` what came of it.
    Switch(Box<CompactedSegment>),
    /// It has ended.
    Done(CompactReport),
    /// It has ended early.
    Failed(CompactError),
}

#[derive(Debug)]
enum Stage {
    Map,
    Choose,
    /// Is there anything to drop?
    Probe,
    Rewrite,
    /// Batches are in; the file is finished.
    Finish,
    Switch(Box<CompactedSegment>),
    /// The reader closes, then `After`.
    Leave(After),
    /// The temporary file goes.
    Undo,
    Done,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Choose,
    /// Mapping goes on here, behind a gap.
    Map(Offset),
    Rewrite,
    Finish,
    Undo,
    Failed,
}

/// A compaction on its way. One per log at a time; flushes go on beside it.
#[derive(Debug)]
pub struct Compaction {
    slot: Slot,
    settings: CompactSettings,
    read: ReadSettings,
    now: Timestamp,
    stage: Stage,
    reader: Option<Reader>,
    output: Option<Output>,
    map: LatestMap,
    map_end: Offset,
    /// End of what may be compacted.
    limit: Offset,
    sweeps: bool,
    group: OffsetRange,
    sources: Vec<SegmentRef>,
    last: Option<(LogCursor, bool)>,
    granted: u64,
    report: CompactReport,
    error: Option<CompactError>,
    item: Vec<u8>,
    clear: Vec<u8>,
    derived: Vec<u8>,
    sealed_again: Vec<u8>,
    scratch: DeriveScratch,
}

impl Compaction {
    /// Begins a pass over the sealed segments that end at or below `limit`, the high watermark. None: nothing is new.
    pub fn new(
        slot: Slot,
        log: &ShardLog,
        limit: Offset,
        now: Timestamp,
        settings: CompactSettings,
        read: ReadSettings,
    ) -> Option<Compaction> {
        let segments = log.segments();
        let whole = (0..segments.len()).rev().find(|at| log.end_of_segments(at + 1) <= limit)? + 1;
        let limit = log.end_of_segments(whole);
        let first = segments.iter().map(|it| it.base).find(|base| *base >= log.log_start())?;
        if first >= limit || log.meta.compacted_to >= limit {
            return None;
        }
        let from = listing::over_gaps(&log.meta, log.meta.compacted_to.max(first));
        Some(Compaction {
            slot,
            settings,
            read,
            now,
            stage: Stage::Map,
            reader: Some(Reader::new(slot, ReadFrom::Offset(from), read)),
            output: None,
            map: LatestMap::default(),
            map_end: limit,
            limit,
            // A segment that is cut by the log start is not rewritten; what it holds may be older than a tombstone.
            sweeps: segments[0].base >= log.log_start(),
            group: OffsetRange { from: first, to: first },
            sources: Vec::new(),
            last: None,
            granted: 0,
            report: CompactReport::default(),
            error: None,
            item: Vec::new(),
            clear: Vec::new(),
            derived: Vec::new(),
            sealed_again: Vec::new(),
            scratch: DeriveScratch::default(),
        })
    }

    /// Allows so many more bytes to be read.
    pub fn grant(&mut self, bytes: u64) {
        self.granted = self.granted.saturating_add(bytes);
    }

    /// Takes a completion of its slot.
    pub fn handle(&mut self, done: DiskDone, log: &ShardLog, queue: &mut DiskQueue) {
        if let Some(output) = &mut self.output
            && output.is_waiting_for(done.ticket)
        {
            output.handle(done, queue);
        } else if let Some(reader) = &mut self.reader {
            reader.handle(done, log, queue);
        }
    }

    /// The switch counts, or the log refused it.
    pub fn switched(&mut self, result: Result<(), CompactError>) {
        if !matches!(self.stage, Stage::Switch(_)) {
            return;
        }
        self.output = None;
        match result {
            Ok(()) => {
                self.report.segments_replaced += self.sources.len() as u64;
                self.advance_compacted();
                self.stage = Stage::Choose;
            }
            Err(error) => {
                self.error = Some(error);
                self.stage = Stage::Failed;
            }
        }
    }

    /// The log did not begin the switch: the new file goes again. Poll until it has ended.
    pub fn refused(&mut self) {
        if matches!(self.stage, Stage::Switch(_)) {
            self.error.get_or_insert(CompactError::Outdated);
            self.stage = Stage::Leave(After::Undo);
        }
    }

    /// Gives the pass up. Poll until it has ended.
    pub fn cancel(&mut self, queue: &mut DiskQueue) {
        if !matches!(self.stage, Stage::Done | Stage::Failed | Stage::Switch(_)) {
            self.fail(CompactError::Outdated, queue);
        }
    }

    fn advance_compacted(&mut self) {
        self.report.compacted_to = self.report.compacted_to.max(self.group.to.min(self.map_end));
    }

    /// Goes on. `keys` if the log is sealed at rest.
    pub fn poll(&mut self, log: &ShardLog, queue: &mut DiskQueue, mut keys: Option<AtRest<'_>>) -> CompactState {
        loop {
            if let Some(error) = self.output.as_mut().and_then(Output::take_error) {
                self.fail(CompactError::Disk(error), queue);
            }
            match &self.stage {
                Stage::Map | Stage::Probe | Stage::Rewrite => {
                    if self.output.as_ref().is_some_and(Output::is_busy) {
                        return CompactState::Working;
                    }
                    if self.report.bytes_read >= self.granted {
                        return CompactState::Paused;
                    }
                    match self.read_on(log, queue, keys.as_mut()) {
                        Ok(true) => {}
                        Ok(false) => return CompactState::Working,
                        Err(error) => self.fail(error, queue),
                    }
                }
                Stage::Choose => {
                    if !self.choose(log) {
                        self.stage = Stage::Done;
                    }
                }
                Stage::Leave(after) => {
                    let after = *after;
                    if let Some(reader) = &mut self.reader
                        && !reader.is_closed()
                    {
                        return CompactState::Working;
                    }
                    self.reader = None;
                    self.stage = match after {
                        After::Choose => Stage::Choose,
                        After::Map(from) => {
                            self.reader = Some(Reader::new(self.slot, ReadFrom::Offset(from), self.read));
                            Stage::Map
                        }
                        After::Rewrite => {
                            self.begin_rewrite(log);
                            Stage::Rewrite
                        }
                        After::Finish => {
                            if let Some(output) = &mut self.output {
                                output.finish(queue);
                            }
                            Stage::Finish
                        }
                        After::Undo => {
                            if let Some(output) = &mut self.output {
                                output.undo(queue);
                            }
                            Stage::Undo
                        }
                        After::Failed => Stage::Failed,
                    };
                }
                Stage::Finish => {
                    let Some(output) = &mut self.output else { return CompactState::Working };
                    if output.is_busy() {
                        return CompactState::Working;
                    }
                    let finished = output.finished(self.group, &self.sources, self.group.to.min(self.map_end));
                    self.stage = Stage::Switch(Box::new(finished));
                }
                Stage::Switch(finished) => return CompactState::Switch(finished.clone()),
                Stage::Undo => {
                    if self.output.as_ref().is_some_and(Output::is_busy) {
                        return CompactState::Working;
                    }
                    self.output = None;
                    self.stage = Stage::Failed;
                }
                Stage::Done => return CompactState::Done(self.report),
                Stage::Failed => {
                    return CompactState::Failed(self.error.clone().unwrap_or(CompactError::Outdated));
                }
            }
        }
    }

    fn fail(&mut self, error: CompactError, queue: &mut DiskQueue) {
        self.error.get_or_insert(error);
        let after = if self.output.is_some() { After::Undo } else { After::Failed };
        self.leave(after, queue);
    }

    fn leave(&mut self, after: After, queue: &mut DiskQueue) {
        if let Some(reader) = &mut self.reader {
            reader.close(queue);
        }
        self.stage = Stage::Leave(after);
    }

    /// The next group of segments, in order. False: there is none.
    fn choose(&mut self, log: &ShardLog) -> bool {
        let from = self.group.to;
        // A switch that no meta has ended yet still owns the temporary name.
        if from >= self.map_end || from >= self.limit || log.meta.switch.is_some() {
            return false;
        }
        let from = listing::over_gaps(&log.meta, from);
        let segments = log.segments();
        let Some(start) = segments.iter().position(|it| it.base == from) else { return false };
        let mut bytes = 0;
        let mut count = 0;
        let mut next = from;
        for (at, segment) in segments.iter().enumerate().skip(start) {
            bytes += segment.bytes;
            let end = log.end_of_segments(at + 1);
            // What lies on both sides of a gap stays apart: a chunk covers its range, and a gap is to be seen.
            let apart = segment.base != next;
            if count > 0 && (apart || bytes > self.settings.group_bytes_max) || end > self.limit {
                break;
            }
            count += 1;
            next = end;
        }
        if count == 0 {
            return false;
        }
        self.sources = segments[start..start + count].to_vec();
        self.group = OffsetRange { from, to: log.end_of_segments(start + count) };
        if count > 1 {
            self.begin_rewrite(log);
            self.stage = Stage::Rewrite;
        } else {
            self.reader = Some(Reader::new(self.slot, ReadFrom::Offset(from), self.read));
            self.stage = Stage::Probe;
        }
        true
    }

    fn begin_rewrite(&mut self, log: &ShardLog) {
        self.reader = Some(Reader::new(self.slot, ReadFrom::Offset(self.group.from), self.read));
        self.output = Some(Output::new(self.slot, log, self.group, self.now));
        self.last = None;
    }

    /// Reads one batch, or sees the end. False: completions are awaited.
    fn read_on(
        &mut self,
        log: &ShardLog,
        queue: &mut DiskQueue,
        keys: Option<&mut AtRest<'_>>,
    ) -> Result<bool, CompactError> {
        let Some(reader) = &mut self.reader else { return Ok(false) };
        let end = if matches!(self.stage, Stage::Map) { self.limit } else { self.group.to };
        match reader.poll(log, queue) {
            // A range ends where a segment does, whose file is closed first: so this sees the reader exactly at the end. Later it
            // may be past segments that are empty, and then the chain it knows is that of another place.
            ReadState::Waiting if reader.position() < end => return Ok(false),
            ReadState::Failed(error) => match error.fault {
                // A map goes over the whole log; a group ends where a gap begins.
                ReadFault::Gap(_) if matches!(self.stage, Stage::Map) => {
                    let to = listing::over_gaps(&log.meta, error.next);
                    let after = if to < end { After::Map(to) } else { After::Choose };
                    self.leave(after, queue);
                    return Ok(true);
                }
                _ => return Err(CompactError::Read(error)),
            },
            ReadState::AtEnd => {
                self.at_end(queue)?;
                return Ok(true);
            }
            ReadState::Waiting | ReadState::Ready => {}
        }
        // Polling may have passed over the rest of the range, what compaction took out before.
        if reader.position() >= end {
            self.at_end(queue)?;
            return Ok(true);
        }
        let Some(stored) = reader.next_batch() else { return Ok(true) };
        self.report.bytes_read += stored.bytes.len() as u64;
        let is_sealed = stored.sealed.is_some();
        let mut item = std::mem::take(&mut self.item);
        item.clear();
        item.extend_from_slice(stored.bytes);
        let mut clear = std::mem::take(&mut self.clear);
        let result = self.on_batch(&item, is_sealed, &mut clear, queue, keys);
        (self.item, self.clear) = (item, clear);
        result.map(|()| true)
    }

    fn on_batch(
        &mut self,
        item: &[u8],
        is_sealed: bool,
        opened: &mut Vec<u8>,
        queue: &mut DiskQueue,
        mut keys: Option<&mut AtRest<'_>>,
    ) -> Result<(), CompactError> {
        let view = if is_sealed {
            let (stored, _) =
                StoredBatch::split_checked(item, true).map_err(|_| CompactError::Batch(BatchError::LengthMismatch))?;
            let keys = keys.as_mut().ok_or(CompactError::NeedsKeys)?;
            opened.clear();
            keys.opener.open(&stored, opened).map_err(CompactError::AtRest)?;
            BatchView::parse(opened)
        } else {
            BatchView::parse(item)
        }
        .map_err(CompactError::Batch)?;
        let is_data = view.header.kind == BatchKind::Data;
        match self.stage {
            Stage::Map if is_data => {
                if self.map.bytes() >= self.settings.map_bytes_max.max(1) {
                    self.map_end = view.header.base_offset;
                    self.leave(After::Choose, queue);
                    return Ok(());
                }
                // A batch is noted whole: nothing at or beyond `map_end` is ever a reason to drop a record.
                for entry in view.body.entries() {
                    let entry = entry.map_err(CompactError::Batch)?;
                    let offset = view.header.base_offset.0 + u64::from(entry.offset_delta);
                    if let Some(key) = entry.key.filter(|_| entry.flags & RECORD_SKIPPED == 0) {
                        self.map.note(key, offset);
                    }
                }
                Ok(())
            }
            Stage::Probe if is_data => {
                for entry in view.body.entries() {
                    let entry = entry.map_err(CompactError::Batch)?;
                    if entry.flags & RECORD_SKIPPED == 0 && self.verdict(&view, &entry).is_some() {
                        self.leave(After::Rewrite, queue);
                        break;
                    }
                }
                Ok(())
            }
            Stage::Rewrite => self.rewrite(item, is_sealed, is_data, &view, queue, keys),
            _ => Ok(()),
        }
    }

    /// Whether a record goes. None: it stays.
    fn verdict(&self, view: &BatchView<'_>, entry: &Entry<'_>) -> Option<Verdict> {
        let key = entry.key?;
        let offset = view.header.base_offset.0 + u64::from(entry.offset_delta);
        if self.map.is_outdated(key, offset) {
            return Some(Verdict::Outdated);
        }
        let old = view.header.append_time.saturating_add_ns(self.settings.tombstone_grace_ns) < self.now;
        let swept = entry.flags & RECORD_TOMBSTONE != 0 && self.sweeps && old && Offset(offset) < self.map_end;
        swept.then_some(Verdict::Tombstone)
    }

    fn rewrite(
        &mut self,
        item: &[u8],
        is_sealed: bool,
        is_data: bool,
        view: &BatchView<'_>,
        queue: &mut DiskQueue,
        keys: Option<&mut AtRest<'_>>,
    ) -> Result<(), CompactError> {
        self.begin_output()?;
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut derived = std::mem::take(&mut self.derived);
        derived.clear();
        let (mut dropped, mut tombstones) = (0, 0);
        let outcome = if is_data {
            let keep = |entry: &Entry<'_>| match self.verdict(view, entry) {
                None => true,
                Some(verdict) => {
                    dropped += 1;
                    tombstones += u64::from(verdict == Verdict::Tombstone);
                    false
                }
            };
            derive(view, keep, &mut scratch, &mut derived)
        } else {
            Ok(Derived::All)
        };
        self.scratch = scratch;
        self.report.dropped += dropped;
        self.report.tombstones += tombstones;
        let header = &view.header;
        let cursor = LogCursor {
            shard: header.shard,
            lineage: header.lineage,
            next: header.range().to,
            chain: header.chain,
            epoch: header.epoch,
            time: header.append_time,
        };
        let output = self.output.as_mut().ok_or(CompactError::Outdated)?;
        match outcome.map_err(CompactError::Batch)? {
            Derived::All => output.push(item, is_sealed)?,
            Derived::Nothing => output.cover(cursor, is_sealed),
            Derived::Some if !is_sealed => output.push(&derived, false)?,
            Derived::Some => {
                let keys = keys.ok_or(CompactError::NeedsKeys)?;
                self.sealed_again.clear();
                keys.sealer.seal(&derived, &mut self.sealed_again).map_err(CompactError::AtRest)?;
                output.push(&self.sealed_again, true)?;
            }
        }
        self.derived = derived;
        self.last = Some((cursor, is_sealed));
        output.write_if_full(queue);
        Ok(())
    }

    /// The output begins where the first chunk of the group does.
    fn begin_output(&mut self) -> Result<(), CompactError> {
        let first = self.reader.as_ref().and_then(Reader::first_chunk).ok_or(CompactError::Outdated)?;
        if first.range.from != self.group.from {
            return Err(CompactError::Outdated);
        }
        if let Some(output) = &mut self.output {
            output.begin(first.cursor());
        }
        Ok(())
    }

    fn at_end(&mut self, queue: &mut DiskQueue) -> Result<(), CompactError> {
        match self.stage {
            Stage::Map => self.leave(After::Choose, queue),
            Stage::Probe => {
                self.advance_compacted();
                self.leave(After::Choose, queue);
            }
            Stage::Rewrite => {
                self.begin_output()?;
                let reader = self.reader.as_ref().ok_or(CompactError::Outdated)?;
                let chain = reader.chain_at_position().ok_or(CompactError::Outdated)?;
                let (output, to) = (self.output.as_mut().ok_or(CompactError::Outdated)?, self.group.to);
                let (cursor, is_sealed) = match self.last {
                    Some(last) => last,
                    None => (output.cursor().ok_or(CompactError::Outdated)?, false),
                };
                output.cover(LogCursor { next: to, chain, ..cursor }, is_sealed);
                self.leave(After::Finish, queue);
            }
            _ => {}
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Outdated,
    Tombstone,
}
