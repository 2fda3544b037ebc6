//! **What**: what a person may decide about a damaged shard, carried out offline: cut the end, give a segment up, make an
//! index again.
//!
//! **Invariants**: one explicit choice, one effect, all of it in the report. The meta says what was given up before a file is
//! moved; files go to quarantine, never away. Readers meet a gap as a gap.
//!
//! **Never**: a choice made here.
//!
//! **See**: `check.rs` for findings; a replica repairs by fetching, which needs none of this.

use crate::disk::{Disk, DiskDone, DiskError, DiskOp, FilePath};
use crate::format::entry::WalPosition;
use crate::format::meta::{GAPS_MAX, OpenSegment, ShardMeta};
use crate::format::names::Name;
use crate::index_rebuild::{IndexRebuild, RebuildError};
use crate::log::{Ended, Health, JobError, LogEvent, Maker, MetaChange, ShardLog, meta_file};
use crate::log_open::{OpenError, Opening};
use crate::queue::{DiskQueue, Slot};
use crate::read::{ReadError, ReadFault, ReadFrom, ReadSettings, ReadState, Reader};
use crate::truncate::{CutError, CutPoint, FindCut};
use felix_protocol::ids::ShardId;
use felix_protocol::position::{Offset, OffsetRange};
use felix_protocol::time::Timestamp;
use std::fmt;

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Give up everything from the first damage on, also what the WAL still holds of the shard. The log goes on
    /// `LOST_OFFSETS` behind its old end.
    TruncateAtDamage,
    /// Give up the offsets of the segment that begins here; the log goes on behind it with a gap.
    QuarantineSegment(Offset),
    /// Make the index of the segment that begins here again.
    RebuildIndex(Offset),
}

/// Offsets left out behind the end of a shard that goes on without some of its records: more than any WAL ring holds.
pub const LOST_OFFSETS: u64 = 1 << 32;

/// What the WALs hold of a shard, as a start would replay it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InWal {
    /// Its last entry.
    pub last: WalPosition,
    /// One past the last offset.
    pub end: Offset,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairReport {
    /// The decision.
    pub choice: Choice,
    /// Offsets that were given up.
    pub given_up: Option<OffsetRange>,
    /// Where the log goes on, if offsets were left out for that.
    pub goes_on_at: Option<Offset>,
    /// Files moved to quarantine.
    pub quarantined: Vec<FilePath>,
}

/// Why nothing was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepairError {
    /// The shard does not open at all.
    Open(OpenError),
    /// There is no damage to cut at.
    NothingDamaged,
    /// No segment begins there.
    NoSegment(Offset),
    /// The index cannot be made.
    Rebuild(RebuildError),
    /// No place to cut was found.
    Cut(CutError),
    /// The log did not take the job.
    Job(JobError),
    /// The job failed.
    Ended(Ended),
    /// More gaps than a meta holds.
    TooManyGaps,
    /// The disk failed.
    Disk(DiskError),
}

impl fmt::Display for RepairError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RepairError::Open(error) => error.fmt(f),
            RepairError::NothingDamaged => f.write_str("nothing of the shard is damaged"),
            RepairError::NoSegment(base) => write!(f, "no segment begins at {base}"),
            RepairError::Rebuild(error) => error.fmt(f),
            RepairError::Cut(error) => error.fmt(f),
            RepairError::Job(error) => error.fmt(f),
            RepairError::Ended(ended) => write!(f, "{ended:?}"),
            RepairError::TooManyGaps => write!(f, "more than {GAPS_MAX} gaps"),
            RepairError::Disk(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RepairError {}

const LOG: Slot = Slot(u32::MAX - 1);
const OTHER: Slot = Slot(u32::MAX - 2);

/// Carries one decision out. `in_wal` is what the next start would replay; a cut gives it up too. Nothing else may use the disk
/// meanwhile.
pub fn repair(
    disk: &mut dyn Disk,
    maker: Maker,
    shard: ShardId,
    choice: Choice,
    in_wal: Option<InWal>,
    now: Timestamp,
) -> Result<RepairReport, RepairError> {
    let mut work = Work { disk, queue: DiskQueue::new() };
    let log = work.open(maker, shard, now)?;
    match choice {
        Choice::TruncateAtDamage => work.truncate(log, choice, in_wal, now),
        Choice::QuarantineSegment(base) => work.quarantine(&log, choice, base, now),
        Choice::RebuildIndex(base) => work.rebuild(&log, choice, base),
    }
}

struct Work<'a> {
    disk: &'a mut dyn Disk,
    queue: DiskQueue,
}

impl Work<'_> {
    fn next(&mut self) -> Result<DiskDone, RepairError> {
        for request in self.queue.drain() {
            self.disk.submit(request);
        }
        self.disk.wait().ok_or(RepairError::Disk(DiskError::NotFound))
    }

    fn open(&mut self, maker: Maker, shard: ShardId, now: Timestamp) -> Result<ShardLog, RepairError> {
        let mut opening = Opening::open(LOG, maker, shard, now, Offset(0), &mut self.queue);
        loop {
            let done = self.next()?;
            if let Some(opened) = opening.handle(done, &mut self.queue) {
                return opened.map(|(log, _)| log).map_err(RepairError::Open);
            }
        }
    }

    fn finish(&mut self, log: &mut ShardLog) -> Result<LogEvent, RepairError> {
        loop {
            let done = self.next()?;
            if let Some(event) = log.handle(done, &mut self.queue) {
                return match event.ended {
                    Ended::Done => Ok(event),
                    ended => Err(RepairError::Ended(ended)),
                };
            }
        }
    }

    /// Where the first damage is: reads everything.
    fn first_damage(&mut self, log: &ShardLog) -> Result<Option<Offset>, RepairError> {
        let mut from = log.log_start();
        loop {
            match self.first_fault(log, from)? {
                None => return Ok(None),
                // What was given up before is no damage now.
                Some(ReadError { fault: ReadFault::Gap(gap), .. }) => from = gap.to,
                Some(error) => return Ok(Some(error.next)),
            }
        }
    }

    fn first_fault(&mut self, log: &ShardLog, from: Offset) -> Result<Option<ReadError>, RepairError> {
        let mut reader = Reader::new(OTHER, ReadFrom::Offset(from), ReadSettings::default());
        let found = loop {
            match reader.poll(log, &mut self.queue) {
                ReadState::Ready => drop(reader.next_batch()),
                ReadState::Waiting => {
                    let done = self.next()?;
                    reader.handle(done, log, &mut self.queue);
                }
                ReadState::AtEnd => break None,
                ReadState::Failed(error) => break Some(*error),
            }
        };
        reader.close(&mut self.queue);
        while !reader.is_closed() {
            let done = self.next()?;
            reader.handle(done, log, &mut self.queue);
        }
        Ok(found)
    }

    fn truncate(
        &mut self,
        mut log: ShardLog,
        choice: Choice,
        in_wal: Option<InWal>,
        now: Timestamp,
    ) -> Result<RepairReport, RepairError> {
        let to = self.first_damage(&log)?.ok_or(RepairError::NothingDamaged)?;
        let end = in_wal.map_or(log.flushed_to(), |it| it.end.max(log.flushed_to()));
        let go_on_at = Offset(end.0.saturating_add(LOST_OFFSETS));
        // What was read up to `to` is whole: the cut looks only there.
        log.health = Health::Well;
        let point = self.find(&log, to)?;
        log.meta.compacted_to = log.meta.compacted_to.min(to);
        // The WAL's entries are behind the damage: a start passes over them.
        let change = MetaChange { included: in_wal.map(|it| it.last), ..MetaChange::default() };
        log.cut_and_go_on_at(point, go_on_at, &change, now, &mut self.queue).map_err(RepairError::Job)?;
        let event = self.finish(&mut log)?;
        let given_up = Some(OffsetRange { from: to, to: end });
        Ok(RepairReport { choice, given_up, goes_on_at: Some(go_on_at), quarantined: event.quarantined })
    }

    fn find(&mut self, log: &ShardLog, to: Offset) -> Result<CutPoint, RepairError> {
        if to == log.log_start() {
            // Nothing is left: the chain begins anew behind an empty log.
            return Ok(CutPoint { to, chain: 0, time: Timestamp(0) });
        }
        let mut find = FindCut::new(OTHER, log, to).map_err(RepairError::Job)?;
        let found = loop {
            if let Some(found) = find.poll(log, &mut self.queue) {
                break found;
            }
            let done = self.next()?;
            find.handle(done, log, &mut self.queue);
        };
        find.close(&mut self.queue);
        while !find.is_closed() {
            let done = self.next()?;
            find.handle(done, log, &mut self.queue);
        }
        found.map_err(RepairError::Cut)
    }

    fn quarantine(
        &mut self,
        log: &ShardLog,
        choice: Choice,
        base: Offset,
        now: Timestamp,
    ) -> Result<RepairReport, RepairError> {
        let open = log.open.as_ref().filter(|open| open.base == base);
        let sealed = log.segments().iter().position(|it| it.base == base);
        let range = match (open, sealed) {
            (Some(_), _) => OffsetRange { from: base, to: log.flushed_to() },
            (None, Some(at)) => OffsetRange { from: base, to: log.end_of_segments(at + 1) },
            (None, None) => return Err(RepairError::NoSegment(base)),
        };
        let given_up = OffsetRange { from: range.from.max(log.log_start()), to: range.to };
        let mut meta: ShardMeta = log.meta().clone();
        if given_up.from < given_up.to {
            meta.gaps.push(given_up);
            meta.gaps.sort_by_key(|gap| gap.from);
            meta.gaps.dedup_by(|gap, before| {
                let touches = before.to == gap.from;
                if touches {
                    before.to = gap.to;
                }
                touches
            });
        }
        if meta.gaps.len() > GAPS_MAX {
            return Err(RepairError::TooManyGaps);
        }
        meta.open = meta.open.filter(|open: &OpenSegment| open.base != base);
        let path = Name::ShardMeta(meta.shard).path();
        let bytes = meta_file(&log.maker, &meta);
        self.disk.call(DiskOp::Replace { path, bytes }).map_err(RepairError::Disk)?;
        let mut quarantined = Vec::new();
        for from in [log.segment_path(base), log.index_path(base)] {
            let to = Name::quarantined(now, &from).path();
            match self.disk.call(DiskOp::Rename { from: from.clone(), to }) {
                Ok(_) => quarantined.push(from),
                Err(DiskError::NotFound) => {}
                Err(error) => return Err(RepairError::Disk(error)),
            }
        }
        Ok(RepairReport { choice, given_up: Some(given_up), goes_on_at: None, quarantined })
    }

    fn rebuild(&mut self, log: &ShardLog, choice: Choice, base: Offset) -> Result<RepairReport, RepairError> {
        let mut rebuild = IndexRebuild::new(OTHER, log, base, &mut self.queue).ok_or(RepairError::NoSegment(base))?;
        loop {
            let done = self.next()?;
            if let Some(result) = rebuild.handle(done, log, &mut self.queue) {
                result.map_err(RepairError::Rebuild)?;
                return Ok(RepairReport { choice, given_up: None, goes_on_at: None, quarantined: Vec::new() });
            }
        }
    }
}
