//! A shard's log on a disk in memory, driven to the end of each job, and batches to put in it.
#![allow(dead_code)]

pub mod twin;

use felix_protocol::batch::{BatchKind, StampedHeader};
use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::batch_view::BatchView;
use felix_protocol::ids::{ClusterId, NodeId, NodeSession, ShardId, StreamId};
use felix_protocol::metadata::Durability;
use felix_protocol::position::{Epoch, Lineage, Offset};
use felix_protocol::time::Timestamp;
use felix_wal::chunk_builder::{BuildError, ChunkBuilder};
use felix_wal::disk::{Disk, DiskDone, DiskOp};
use felix_wal::format::header::{Identity, Region};
use felix_wal::log::{JobError, LogEvent, LogSettings, Maker, MetaChange, ShardLog};
use felix_wal::log_open::{OpenError, OpenReport, Opening, ShardSpec};
use felix_wal::mem_disk::MemDisk;
use felix_wal::queue::{DiskQueue, Slot};
use felix_wal::read::{ReadError, ReadFrom, ReadSettings, ReadState, Reader};

pub const SPEC: ShardSpec =
    ShardSpec { stream: StreamId(7), shard: ShardId(9), lineage: Lineage(1), durability: Durability::Group };
/// Small, so that a test sees many segments.
pub const SETTINGS: LogSettings =
    LogSettings { segment_bytes: 48 << 10, extent_bytes_first: 16 << 10, extent_bytes_max: 16 << 10 };
pub const READ: ReadSettings = ReadSettings { window_bytes: 8 << 10, windows_max: 3 };
/// When files go to quarantine, in tests that do not say.
pub const NOW: Timestamp = Timestamp(1);
pub const LOG: Slot = Slot(1);
pub const READER: Slot = Slot(2);

pub fn maker() -> Maker {
    Maker {
        identity: Identity { cluster: ClusterId(11), node: NodeId(12), region: Region::new("eu-west").unwrap() },
        session: NodeSession(1),
    }
}

/// A record of a test: key, value, whether it deletes the key.
pub type Rec = (Option<Vec<u8>>, Vec<u8>, bool);

/// Appends stamped batches as a shard does.
#[derive(Clone, Debug)]
pub struct Stamper {
    pub next: Offset,
    pub chain: u64,
    pub epoch: Epoch,
    pub time: Timestamp,
}

impl Default for Stamper {
    fn default() -> Stamper {
        Stamper { next: Offset(0), chain: 0, epoch: Epoch(1), time: Timestamp(1_000) }
    }
}

impl Stamper {
    pub fn batch(&mut self, records: &[Rec]) -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        for (key, value, tombstone) in records {
            builder
                .push(&RecordToPublish { key: key.as_deref(), value, tombstone: *tombstone, ..Default::default() })
                .unwrap();
        }
        let mut body = Vec::new();
        builder.finish(ProducerStamp::default(), &mut body);
        let mut header = StampedHeader {
            batch_bytes: (80 + body.len()) as u32,
            kind: BatchKind::Data,
            flags: 0,
            offset_count: records.len() as u32,
            stream: SPEC.stream,
            shard: SPEC.shard,
            epoch: self.epoch,
            lineage: SPEC.lineage,
            tlv_bytes: 0,
            base_offset: self.next,
            append_time: self.time,
            durable_end: Offset(0),
            chain: 0,
        };
        header.link(self.chain, u32::from_le_bytes(body[..4].try_into().unwrap()));
        self.chain = header.chain;
        self.next = header.range().to;
        [&header.encode()[..], &body].concat()
    }
}

/// Offset, append time and record of everything in a clear batch.
pub fn records(batch: &[u8]) -> Vec<(u64, Rec)> {
    let view = BatchView::parse(batch).unwrap();
    view.check().unwrap();
    view.body
        .records(view.body.values)
        .map(|record| {
            let record = record.unwrap();
            let offset = view.header.base_offset.0 + u64::from(record.offset_delta);
            (offset, (record.key.map(<[u8]>::to_vec), record.value.to_vec(), record.tombstone))
        })
        .collect()
}

/// Runs what was planned until the disk is idle, or `steps` completions came. Completions go to `take`.
pub fn run(disk: &mut MemDisk, queue: &mut DiskQueue, mut take: impl FnMut(DiskDone, &mut DiskQueue)) {
    loop {
        for request in queue.drain() {
            disk.submit(request);
        }
        match disk.wait() {
            Some(done) => take(done, queue),
            None => return,
        }
    }
}

pub struct World {
    pub disk: MemDisk,
    pub queue: DiskQueue,
    pub builder: ChunkBuilder,
    pub settings: LogSettings,
    /// Completions until the power fails.
    pub crash_in: Option<u64>,
    /// A wrong executor or planner, for the tests of the tests.
    pub twin: Option<twin::Twin>,
    /// Removals outside quarantine since it was last emptied.
    pub removed: Vec<String>,
}

/// Stored batches, where the reader stands, and the error that ended it.
pub type Read = (Vec<Vec<u8>>, Offset, Option<ReadError>);

/// The power failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Crashed;

impl World {
    pub fn new(disk: MemDisk) -> World {
        World {
            disk,
            queue: DiskQueue::new(),
            builder: ChunkBuilder::new(),
            settings: SETTINGS,
            crash_in: None,
            twin: None,
            removed: Vec::new(),
        }
    }

    /// The next completion. None: nothing is under way.
    pub fn next(&mut self) -> Result<Option<DiskDone>, Crashed> {
        for request in self.queue.drain() {
            let request = match &mut self.twin {
                Some(twin) => twin.change(request, &mut self.disk),
                None => Some(request),
            };
            let Some(request) = request else { continue };
            if let DiskOp::Remove { path } = &request.op
                && !path.0.starts_with("quarantine/")
                && !path.0.ends_with(".tmp")
            {
                self.removed.push(path.0.clone());
            }
            self.disk.submit(request);
        }
        if let Some(done) = self.twin.as_mut().and_then(|twin| twin.faked.pop_front()) {
            return Ok(Some(done));
        }
        if self.disk.under_way() > 0
            && let Some(left) = &mut self.crash_in
        {
            if *left == 0 {
                self.crash_in = None;
                self.disk.crash();
                return Err(Crashed);
            }
            *left -= 1;
        }
        loop {
            let done = self.disk.wait();
            if let (Some(done), Some(twin)) = (&done, &mut self.twin)
                && twin.swallows(done)
            {
                continue;
            }
            return Ok(done);
        }
    }

    pub fn create(&mut self) -> Result<ShardLog, Crashed> {
        let mut opening = Opening::create(LOG, maker(), SPEC, &mut self.queue);
        loop {
            let done = self.next()?.expect("a request is under way");
            if let Some(opened) = opening.handle(done, &mut self.queue) {
                return Ok(opened.expect("it is new").0);
            }
        }
    }

    pub fn open(&mut self, now: u64) -> Result<Result<(ShardLog, OpenReport), OpenError>, Crashed> {
        let mut opening = Opening::open(LOG, maker(), SPEC.shard, Timestamp(now), Offset(0), &mut self.queue);
        loop {
            let done = self.next()?.expect("a request is under way");
            if let Some(opened) = opening.handle(done, &mut self.queue) {
                return Ok(opened);
            }
        }
    }

    /// Waits for the job of a log.
    pub fn finish(&mut self, log: &mut ShardLog) -> Result<LogEvent, Crashed> {
        loop {
            let done = self.next()?.expect("a request is under way");
            if let Some(event) = log.handle(done, &mut self.queue) {
                return Ok(event);
            }
        }
    }

    pub fn flush(&mut self, log: &mut ShardLog, batches: &[Vec<u8>]) -> Result<LogEvent, Crashed> {
        self.flush_stored(log, batches, false).map(|event| event.unwrap())
    }

    pub fn flush_stored(
        &mut self,
        log: &mut ShardLog,
        batches: &[Vec<u8>],
        sealed: bool,
    ) -> Result<Result<LogEvent, JobError>, Crashed> {
        self.builder.begin(log.cursor());
        for batch in batches {
            match self.builder.push(batch, sealed) {
                Ok(()) => {}
                Err(BuildError::Full) => break,
                Err(error) => panic!("{error}"),
            }
        }
        if let Err(error) = log.flush(&mut self.builder, &MetaChange::default(), &self.settings, NOW, &mut self.queue) {
            return Ok(Err(error));
        }
        let mut event = self.finish(log)?;
        if let Some(buffer) = event.buffer.take() {
            self.builder.reuse(buffer);
        }
        Ok(Ok(event))
    }

    /// Everything from a place on, as stored; the error that ended it, if any.
    pub fn read(&mut self, log: &ShardLog, from: ReadFrom) -> Result<Read, Crashed> {
        let mut reader = Reader::new(READER, from, READ);
        let mut out = Vec::new();
        let error = loop {
            match reader.poll(log, &mut self.queue) {
                ReadState::Ready => out.push(reader.next_batch().expect("it is ready").bytes.to_vec()),
                ReadState::Waiting => {
                    let done = self.next()?.expect("a reader waits for something");
                    reader.handle(done, log, &mut self.queue);
                }
                ReadState::AtEnd => break None,
                ReadState::Failed(error) => break Some(*error),
            }
        };
        let position = reader.position();
        reader.close(&mut self.queue);
        while !reader.is_closed() {
            let done = self.next()?.expect("closing waits for something");
            reader.handle(done, log, &mut self.queue);
        }
        Ok((out, position, error))
    }
}
