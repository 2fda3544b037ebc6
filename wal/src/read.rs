//! **What**: reads a shard's segments from an offset or a time on: windows read ahead, chunks checked whole, batches given
//! in order.
//!
//! ```text
//! seek (time only) -> open -> header -> [index] -> stream windows -> chunk checked -> batches ... -> close -> next segment
//! ```
//!
//! **Invariants**: a batch is given only if its chunk's and its own checksums fit, and it follows the one before by
//! offset and chain. What compaction took out is passed over; anything else that is missing is an error with its place.
//! Bytes in flight and held stay within `ReadSettings`.
//!
//! **Never**: a byte given that was not checked, an offset passed over silently.
//!
//! **See**: `read_error.rs`, `stream.rs` for the windows, `log.rs` for the positions.

use crate::disk::{BLOCK_BYTES, DiskDone, DiskError, DiskOk, DiskOp, FileKey, FilePath, Priority, Ticket};
use crate::format::header::{FileHeader, Owner};
use crate::format::index::{INDEX_BYTES_MAX, SegmentIndex};
use crate::format::names::SegmentId;
use crate::format::segment::{CHUNK_HEADER_BYTES, ChunkError, ChunkHeader, ChunkPlace, FIRST_CHUNK_AT, file_tag};
use crate::format::stored::{Envelope, StoredBatch};
use crate::listing;
use crate::log::ShardLog;
use crate::queue::{DiskQueue, Slot};
use crate::stream::Stream;
use crate::time_seek::TimeSeek;
use felix_protocol::batch::StampedHeader;
use felix_protocol::position::{Offset, OffsetRange};
use felix_protocol::time::Timestamp;

pub use crate::read_error::{ReadError, ReadFault};

/// Bounds of one reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadSettings {
    /// Bytes of one read, a multiple of `BLOCK_BYTES`.
    pub window_bytes: usize,
    /// Reads under way at once. A reader holds these and one chunk.
    pub windows_max: usize,
}

impl Default for ReadSettings {
    fn default() -> ReadSettings {
        // One at a time leaves the disk idle in between (STACK 2b). To a subscriber this gives what four of 512 KiB give (752 and
        // 735 MB/s, medians of four in turn), with a quarter of the memory, and a commit waits for less.
        ReadSettings { window_bytes: 256 << 10, windows_max: 2 }
    }
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFrom {
    /// At the batch that holds this offset.
    Offset(Offset),
    /// At the first batch appended at this time or later.
    Time(Timestamp),
}

/// What a reader has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadState {
    /// `next_batch` gives one.
    Ready,
    /// Completions are awaited, or files of the log are being moved: poll again after the next completion.
    Waiting,
    /// Everything up to `flushed_to` was given; what follows is in memory.
    AtEnd,
    /// It ends here.
    Failed(Box<ReadError>),
}

#[derive(Debug)]
enum Stage {
    /// Choose a segment.
    Locate,
    /// Looking for the segment of a time.
    Seek(TimeSeek),
    Open(Ticket),
    Header(Ticket),
    Index(Ticket),
    Chunks,
    /// Reads are under way that nobody wants.
    Drain,
    Close(Ticket),
}

/// Place of a segment that is read.
#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    base: Offset,
    /// It ends here, unless it is the open one and grows.
    end: Offset,
    is_open: bool,
    tag: u32,
}

/// A batch within a checked chunk.
#[derive(Clone, Copy, Debug)]
struct Current {
    chunk: ChunkHeader,
    /// Where it begins in the payload.
    at: usize,
    /// Where the last thing before it that is known ends, and its chain there.
    before: (Offset, u64),
    bytes: usize,
    header: StampedHeader,
    body_crc: u32,
    sealed: Option<Envelope>,
}

/// A position in a log's segments that moves. After a truncation, readers beyond the cut are to be closed by their owner.
#[derive(Debug)]
pub struct Reader {
    slot: Slot,
    settings: ReadSettings,
    priority: Priority,
    next: Offset,
    time: Option<Timestamp>,
    /// The segment of the time was not looked for yet.
    seeks: bool,
    stage: Stage,
    file: Option<FileKey>,
    segment: Segment,
    stream: Stream,
    place: u64,
    /// The place came from an index: if nothing fits there, begin at the first chunk.
    from_index: bool,
    /// Offset and chain at which the next chunk must begin.
    expected: Option<(Offset, u64)>,
    /// The first chunk that it met.
    first_chunk: Option<ChunkHeader>,
    /// A checked chunk at the head of the stream, and the batch of it that comes next.
    chunk: Option<Current>,
    failed: Option<Box<ReadError>>,
    closing: bool,
    /// An index that did not fit; the log can make a new one.
    bad_index: Option<Offset>,
}

impl Reader {
    /// A reader that has planned nothing yet. Its slot must be its own: completions find it by that.
    pub fn new(slot: Slot, from: ReadFrom, settings: ReadSettings) -> Reader {
        assert!(settings.window_bytes > 0 && settings.window_bytes.is_multiple_of(BLOCK_BYTES));
        let (next, time) = match from {
            ReadFrom::Offset(offset) => (offset, None),
            ReadFrom::Time(time) => (Offset(0), Some(time)),
        };
        Reader {
            slot,
            settings,
            priority: Priority::History,
            next,
            time,
            seeks: time.is_some(),
            stage: Stage::Locate,
            file: None,
            segment: Segment::default(),
            stream: Stream::default(),
            place: FIRST_CHUNK_AT,
            from_index: false,
            expected: None,
            first_chunk: None,
            chunk: None,
            failed: None,
            closing: false,
            bad_index: None,
        }
    }

    /// The next offset: everything before it, from the start on, was given, or taken out by compaction.
    pub fn position(&self) -> Offset {
        self.next
    }

    /// What is known to end before the batch that `next_batch` gives next, and its chain there.
    pub(crate) fn before(&self) -> Option<(Offset, u64)> {
        self.chunk.map(|it| it.before)
    }

    /// The first chunk that it met.
    pub(crate) fn first_chunk(&self) -> Option<&ChunkHeader> {
        self.first_chunk.as_ref()
    }

    /// Chain at `position()`, if something was read up to there.
    pub(crate) fn chain_at_position(&self) -> Option<u64> {
        self.expected.filter(|(offset, _)| *offset == self.next).map(|(_, chain)| chain)
    }

    /// A segment whose index is missing or bad, for `IndexRebuild`; told once.
    pub fn take_bad_index(&mut self) -> Option<Offset> {
        self.bad_index.take()
    }

    /// Ends the reading: its file is closed when what is under way came back.
    pub fn close(&mut self, queue: &mut DiskQueue) {
        self.closing = true;
        self.chunk = None;
        if matches!(&self.stage, Stage::Seek(seek) if seek.is_idle()) {
            self.stage = Stage::Locate;
        }
        self.leave(queue);
    }

    /// Nothing of it is under way and no file is open.
    pub fn is_settled(&self) -> bool {
        matches!(self.stage, Stage::Locate) && self.file.is_none()
    }

    /// It was closed and nothing of it is under way.
    pub fn is_closed(&self) -> bool {
        self.closing && matches!(self.stage, Stage::Locate) && self.file.is_none()
    }

    /// Plans what is to be read, and tells whether a batch is there.
    pub fn poll(&mut self, log: &ShardLog, queue: &mut DiskQueue) -> ReadState {
        if let Some(error) = &self.failed {
            return ReadState::Failed(error.clone());
        }
        if self.closing {
            return ReadState::Waiting;
        }
        match self.advance(log, queue) {
            Ok(state) => state,
            Err(error) => {
                self.failed = Some(error.clone());
                self.chunk = None;
                self.leave(queue);
                ReadState::Failed(error)
            }
        }
    }

    fn advance(&mut self, log: &ShardLog, queue: &mut DiskQueue) -> Result<ReadState, Box<ReadError>> {
        loop {
            match &mut self.stage {
                Stage::Locate if log.is_moving() => return Ok(ReadState::Waiting),
                Stage::Locate => match self.locate(log, queue)? {
                    Some(state) => return Ok(state),
                    None => continue,
                },
                Stage::Seek(seek) => match seek.poll(log, self.priority, queue) {
                    Some(base) => {
                        self.next = self.next.max(base);
                        self.stage = Stage::Locate;
                    }
                    None => return Ok(ReadState::Waiting),
                },
                Stage::Open(_) | Stage::Header(_) | Stage::Index(_) | Stage::Close(_) => {
                    return Ok(ReadState::Waiting);
                }
                Stage::Drain => {
                    self.leave(queue);
                    return Ok(ReadState::Waiting);
                }
                Stage::Chunks => {
                    if self.chunk.is_some() {
                        return Ok(ReadState::Ready);
                    }
                    if let Some(state) = self.chunks(log, queue)? {
                        return Ok(state);
                    }
                }
            }
        }
    }

    /// Chooses the segment that holds `next`.
    fn locate(&mut self, log: &ShardLog, queue: &mut DiskQueue) -> Result<Option<ReadState>, Box<ReadError>> {
        if let Some(time) = self.time.filter(|_| std::mem::take(&mut self.seeks)) {
            self.next = log.log_start();
            if let Some(seek) = TimeSeek::new(self.slot, time, log) {
                self.stage = Stage::Seek(seek);
                return Ok(None);
            }
        }
        let (start, end) = (log.log_start(), log.flushed_to());
        if self.time.is_some() {
            // Who looks for a time begins with what there is.
            self.next = self.next.max(start);
            while let Some(gap) = log.meta.gaps.iter().find(|gap| (gap.from..gap.to).contains(&self.next)) {
                self.next = gap.to;
            }
            self.expected = self.expected.filter(|(offset, _)| *offset == self.next);
        }
        if self.next < start {
            return Err(self.fault(log, ReadFault::Expired { log_start: start }));
        }
        if self.next > end {
            return Err(self.fault(log, ReadFault::Beyond { flushed_to: end }));
        }
        if self.next == end {
            return Ok(Some(ReadState::AtEnd));
        }
        self.check_range(log)?;
        let count = log.segments.partition_point(|it| it.base <= self.next);
        let open = log.open.as_ref().filter(|open| open.base <= self.next);
        let (base, is_open) = match (open, count.checked_sub(1)) {
            (Some(open), _) => (open.base, true),
            (None, Some(at)) => (log.segments[at].base, false),
            (None, None) => return Err(self.missing(log)),
        };
        let after = log.segments.get(count).map(|it| it.base).or(log.open.as_ref().map(|it| it.base));
        let segment_end = if is_open { end } else { listing::end_before_gap(&log.meta, base, after.unwrap_or(end)) };
        if base != self.next {
            // Compaction has made one segment of the one that ended here and what follows: its chunks begin elsewhere.
            self.expected = None;
        }
        self.segment = Segment { base, end: segment_end, is_open, tag: 0 };
        let path = log.segment_path(base);
        let file = queue.file_key(self.slot);
        self.file = Some(file);
        self.stage = Stage::Open(queue.push(self.slot, self.priority, DiskOp::Open { path, file }));
        Ok(Some(ReadState::Waiting))
    }

    fn check_range(&self, log: &ShardLog) -> Result<(), Box<ReadError>> {
        if let Some(range) = log.damaged.at(self.next) {
            return Err(self.fault(log, ReadFault::Damaged(range)));
        }
        if let Some(gap) = log.meta.gaps.iter().find(|gap| (gap.from..gap.to).contains(&self.next)) {
            return Err(self.fault(log, ReadFault::Gap(*gap)));
        }
        Ok(())
    }

    /// Takes a completion of this reader's slot. The next `poll` acts on it.
    pub fn handle(&mut self, done: DiskDone, log: &ShardLog, queue: &mut DiskQueue) {
        let ticket = done.ticket;
        match &mut self.stage {
            Stage::Seek(seek) => {
                seek.handle(done, log, self.priority, queue);
                if self.closing && seek.is_idle() {
                    self.stage = Stage::Locate;
                }
            }
            Stage::Open(mine) if *mine == ticket => match done.result {
                Ok(DiskOk::Opened { bytes }) => {
                    self.stream.begin(bytes);
                    let file = self.file.expect("it was opened");
                    let op = DiskOp::Read { file, at: 0, bytes: BLOCK_BYTES };
                    self.stage = Stage::Header(queue.push(self.slot, self.priority, op));
                }
                result => {
                    self.file = None;
                    self.stage = Stage::Locate;
                    let error = result.err().unwrap_or(DiskError::NotFound);
                    // Retention or compaction may have moved it since; `locate` looks again then.
                    let gone = error == DiskError::NotFound && !self.is_still_there(log);
                    if !gone && !self.closing {
                        self.fail(log, 0, ReadFault::Disk(error));
                    }
                }
            },
            Stage::Header(mine) if *mine == ticket => self.on_header(done, log, queue),
            Stage::Index(mine) if *mine == ticket => {
                let index = match done.result {
                    Ok(DiskOk::Bytes(bytes)) => read_index(&bytes, log, self.segment.base, self.segment.tag).ok(),
                    _ => None,
                };
                // One from before the segment grew: a crash came between sealing it and saying so.
                let index = index.filter(|it| it.range.to >= self.segment.end);
                match index {
                    Some(index) => {
                        self.place = match self.time {
                            Some(time) => index.sparse.place_of_time(time).max(index.sparse.place_of(self.next)),
                            None => index.sparse.place_of(self.next),
                        };
                        self.from_index = self.place != FIRST_CHUNK_AT;
                        self.stream.limit(index.used_bytes);
                    }
                    None => {
                        self.bad_index = Some(self.segment.base);
                        self.place = FIRST_CHUNK_AT;
                        self.from_index = false;
                    }
                }
                self.start_chunks(queue);
            }
            Stage::Close(mine) if *mine == ticket => {
                self.file = None;
                self.stage = Stage::Locate;
            }
            Stage::Chunks | Stage::Drain => {
                let failed = self.stream.handle(done).err().filter(|_| matches!(self.stage, Stage::Chunks));
                if let Some((at, error)) = failed {
                    self.fail(log, at, ReadFault::Disk(error));
                }
                if failed.is_some() || matches!(self.stage, Stage::Drain) {
                    self.leave(queue);
                }
            }
            _ => {}
        }
    }

    fn is_still_there(&self, log: &ShardLog) -> bool {
        let held = log.segments.iter().any(|it| it.base == self.segment.base)
            || log.open.as_ref().is_some_and(|it| it.base == self.segment.base);
        held && self.next >= log.log_start() && !log.is_moving()
    }

    fn on_header(&mut self, done: DiskDone, log: &ShardLog, queue: &mut DiskQueue) {
        let bytes = match done.result {
            Ok(DiskOk::Bytes(bytes)) => bytes,
            other => {
                self.fail(log, 0, ReadFault::Disk(other.err().unwrap_or(DiskError::NotFound)));
                self.stage = Stage::Chunks;
                return self.leave(queue);
            }
        };
        if let Err(error) = FileHeader::expect(&bytes, &log.maker.identity, &log.segment_owner(self.segment.base)) {
            self.fail(log, 0, ReadFault::Header(error));
            self.stage = Stage::Chunks;
            return self.leave(queue);
        }
        self.segment.tag = file_tag(&bytes);
        self.from_index = false;
        self.place = FIRST_CHUNK_AT;
        match log.open.as_ref().filter(|open| self.segment.is_open && open.base == self.segment.base) {
            Some(open) => {
                self.place = match self.time {
                    Some(time) => open.sparse.place_of_time(time).max(open.sparse.place_of(self.next)),
                    None => open.sparse.place_of(self.next),
                };
                self.from_index = self.place != FIRST_CHUNK_AT;
                self.stream.limit(open.used_bytes);
                self.start_chunks(queue);
            }
            None if self.next == self.segment.base && self.time.is_none() => self.start_chunks(queue),
            None => {
                let op =
                    DiskOp::Load { path: log.index_path(self.segment.base), bytes_max: INDEX_BYTES_MAX + BLOCK_BYTES };
                self.stage = Stage::Index(queue.push(self.slot, self.priority, op));
            }
        }
    }

    fn start_chunks(&mut self, queue: &mut DiskQueue) {
        self.stream.seek(self.place);
        self.stage = Stage::Chunks;
        if self.from_index {
            // It may lead past what came before, in time.
            self.expected = None;
        }
        if self.closing {
            self.leave(queue);
        }
    }

    /// Reads on and looks for a chunk with something wanted. None: look at the stage again.
    fn chunks(&mut self, log: &ShardLog, queue: &mut DiskQueue) -> Result<Option<ReadState>, Box<ReadError>> {
        loop {
            if self.segment.is_open {
                // It grows.
                if let Some(open) = log.open.as_ref().filter(|open| open.base == self.segment.base) {
                    self.stream.grow(open.used_bytes);
                    self.segment.end = log.flushed_to();
                } else {
                    // It was sealed, merged or cut while nobody asked: what is known of its end is old.
                    self.expected = self.expected.filter(|(offset, _)| *offset == self.next);
                    self.leave(queue);
                    return Ok(None);
                }
            }
            if self.next >= self.segment.end {
                self.expected = self.expected.filter(|(offset, _)| *offset == self.next);
                if self.segment.is_open && self.next == log.flushed_to() {
                    return Ok(Some(ReadState::AtEnd));
                }
                self.leave(queue);
                return Ok(None);
            }
            self.check_range(log)?;
            let file = self.file.expect("the stage has a file");
            self.stream.plan(self.slot, self.priority, file, &self.settings, queue);
            let place = self.stream.place();
            let head = self.stream.head();
            if head.len() < CHUNK_HEADER_BYTES {
                if self.stream.is_waiting() {
                    return Ok(Some(ReadState::Waiting));
                }
                if self.restart() {
                    continue;
                }
                return Err(self.fault_at(log, place, ReadFault::Chunk(ChunkError::Truncated)));
            }
            let wanted = ChunkPlace { shard: log.shard(), lineage: log.lineage(), tag: self.segment.tag, at: place };
            let chunk = match ChunkHeader::decode_at(head, wanted) {
                Ok(chunk) => chunk,
                Err(error) => {
                    if self.restart() {
                        continue;
                    }
                    return Err(self.fault_at(log, place, ReadFault::Chunk(error)));
                }
            };
            self.first_chunk.get_or_insert(chunk);
            // An index by time leads to a chunk before which everything is older.
            let all_older = self.time.is_some_and(|time| chunk.times.0 < time);
            if self.from_index && all_older {
                self.next = self.next.max(chunk.range.from);
            }
            if chunk.range.from > self.next {
                if self.restart() {
                    continue;
                }
                let to = chunk.range.from;
                return Err(self.fault_at(log, place, ReadFault::Missing(OffsetRange { from: self.next, to })));
            }
            if let Some((offset, chain)) = self.expected
                && (chunk.range.from != offset || chunk.chain_in != chain)
            {
                let found = (chunk.range.from, chunk.chain_in);
                return Err(self.fault_at(log, place, ReadFault::Broken { expected: (offset, chain), found }));
            }
            // The last one must end as the meta says: a write that was lost may leave an older chunk in its place.
            let end = log.cursor();
            let is_last = chunk.range.to == end.next && self.segment.end == end.next;
            if is_last && chunk.chain_out != end.chain {
                let (expected, found) = ((end.next, end.chain), (chunk.range.to, chunk.chain_out));
                return Err(self.fault_at(log, place, ReadFault::Broken { expected, found }));
            }
            let too_old = self.time.is_some_and(|time| chunk.times.1 < time);
            if chunk.range.to <= self.next || too_old && chunk.range.to <= self.segment.end {
                self.next = self.next.max(chunk.range.to);
                self.expected = Some((chunk.range.to, chunk.chain_out));
                self.from_index = false;
                self.stream.skip(chunk.stored_bytes());
                continue;
            }
            if head.len() < chunk.stored_bytes() {
                if self.stream.is_waiting() {
                    return Ok(Some(ReadState::Waiting));
                }
                return Err(self.fault_at(log, place, ReadFault::Chunk(ChunkError::Truncated)));
            }
            if let Err(error) = chunk.check(&head[..chunk.stored_bytes()]) {
                let good_from = chunk.range.to.min(self.segment.end);
                let fault = self.fault_at(log, place, ReadFault::Chunk(error));
                return Err(Box::new(ReadError { good_from, ..*fault }));
            }
            self.from_index = false;
            if self.find_batch(chunk, 0, (chunk.range.from, chunk.chain_in)) {
                return Ok(None);
            }
        }
    }

    /// An index led here: begin at the first chunk instead.
    fn restart(&mut self) -> bool {
        if !self.from_index {
            return false;
        }
        self.from_index = false;
        self.bad_index = (!self.segment.is_open).then_some(self.segment.base);
        self.expected = None;
        self.stream.seek(FIRST_CHUNK_AT);
        true
    }

    /// Looks from byte `at` of a checked chunk for a batch that is wanted. False: there is none, the chunk is done with.
    fn find_batch(&mut self, chunk: ChunkHeader, mut at: usize, mut before: (Offset, u64)) -> bool {
        let payload_bytes = chunk.payload_bytes as usize;
        self.chunk = None;
        loop {
            let rest = &self.stream.head()[CHUNK_HEADER_BYTES + at..CHUNK_HEADER_BYTES + payload_bytes];
            // The chunk was checked whole, so this ends at its end and nowhere before.
            let Ok((batch, _)) = StoredBatch::split_checked(rest, chunk.sealed) else { break };
            let range = batch.header.range();
            if range.from >= self.segment.end {
                break;
            }
            let too_old = self.time.is_some_and(|time| batch.header.append_time < time);
            let StoredBatch { header, body_crc, sealed, bytes } = batch;
            if range.to > self.next && !too_old {
                self.chunk = Some(Current { chunk, at, before, bytes: bytes.len(), header, body_crc, sealed });
                return true;
            }
            at += bytes.len();
            before = (range.to, header.chain);
            self.next = self.next.max(range.to);
            self.expected = Some((range.to, header.chain));
        }
        if chunk.range.to <= self.segment.end {
            self.next = self.next.max(chunk.range.to);
            self.expected = Some((chunk.range.to, chunk.chain_out));
        } else {
            self.next = self.next.max(self.segment.end);
        }
        self.stream.skip(chunk.stored_bytes());
        false
    }

    /// The next batch. None: poll first.
    pub fn next_batch(&mut self) -> Option<StoredBatch<'_>> {
        let Current { chunk, at, bytes, header, body_crc, sealed, .. } = self.chunk?;
        self.time = None;
        self.next = header.range().to;
        self.expected = Some((self.next, header.chain));
        let held = self.stream.head_position();
        self.find_batch(chunk, at + bytes, (self.next, header.chain));
        // If that was the last one, the chunk was stepped over: its bytes stay until the next poll.
        let start = CHUNK_HEADER_BYTES + at;
        let bytes = self.stream.bytes_from(held, start, start + bytes);
        Some(StoredBatch { header, body_crc, sealed, bytes })
    }

    /// Gives the file up, when nothing is under way on it.
    fn leave(&mut self, queue: &mut DiskQueue) {
        if !matches!(self.stage, Stage::Chunks | Stage::Drain) {
            // A completion is awaited, which leads back here, or there is no file.
            return;
        }
        self.stream.stop();
        self.stage = match self.file {
            _ if self.stream.is_waiting() => Stage::Drain,
            Some(file) => Stage::Close(queue.push(self.slot, self.priority, DiskOp::Close { file })),
            None => Stage::Locate,
        };
    }

    fn fail(&mut self, log: &ShardLog, at: u64, fault: ReadFault) {
        self.failed = Some(self.fault_at(log, at, fault));
        self.chunk = None;
    }

    fn missing(&self, log: &ShardLog) -> Box<ReadError> {
        let to = log
            .segments
            .iter()
            .map(|it| it.base)
            .chain(log.open.as_ref().map(|it| it.base))
            .find(|base| *base > self.next);
        self.fault(log, ReadFault::Missing(OffsetRange { from: self.next, to: to.unwrap_or(log.flushed_to()) }))
    }

    fn fault(&self, log: &ShardLog, fault: ReadFault) -> Box<ReadError> {
        self.fault_at(log, 0, fault)
    }

    fn fault_at(&self, log: &ShardLog, at: u64, fault: ReadFault) -> Box<ReadError> {
        let path = match self.file {
            Some(_) => log.segment_path(self.segment.base),
            None => FilePath(String::new()),
        };
        Box::new(ReadError { path, at, next: self.next, good_from: self.segment.end.max(self.next), fault })
    }
}

/// Reads an index file and checks that it belongs to a segment.
pub(crate) fn read_index(bytes: &[u8], log: &ShardLog, base: Offset, tag: u32) -> Result<SegmentIndex, &'static str> {
    let segment = SegmentId { lineage: log.lineage(), base_offset: base };
    let owner = Owner::Index { stream: log.meta.stream, shard: log.shard(), segment };
    FileHeader::expect(bytes, &log.maker.identity, &owner).map_err(|_| "header")?;
    let index = SegmentIndex::decode(&bytes[BLOCK_BYTES..]).map_err(|_| "content")?;
    let fits =
        index.shard == log.shard() && index.lineage == log.lineage() && index.tag == tag && index.range.from == base;
    if fits { Ok(index) } else { Err("another segment") }
}
