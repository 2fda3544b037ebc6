//! **What**: a durable shard on its way in: its log is opened or made, what it remembers of producers is read, and what
//! happened to it meanwhile waits.
//!
//! ```text
//! open (or make) -> clean -> producers file -> batches behind it -> wait for the WAL -> open        failed: told to who asks
//!   ^--- the disk was full: later
//! ```
//!
//! What is open and not known as made is told (`Store::take_made`): its meta and its folder are durable by then.
//!
//! **Invariants**: events of an opening shard are kept in order and handled when it is open. Before that nobody can have
//! published to it, so only openings of channels and subscriptions wait, which their sessions bound.
//!
//! **Never**: a shard made in the place of one that has data: `Opening` refuses that; one made where the metadata know that
//! there were files.
//!
//! **See**: `felix_wal::log_open`.

use super::part::Checkpoint;
use super::slots::Use;
use super::{Alarm, EARLY_OFFSETS_MAX, Store};
use crate::batch_pool::BodyFacts;
use crate::dedup::Dedup;
use crate::event::{Event, ShardConfig};
use crate::limits::Limits;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::ids::ShardId;
use felix_protocol::position::{Offset, OffsetRange};
use felix_protocol::time::{Now, Time};
use felix_wal::disk::{DiskDone, DiskError, DiskOk, DiskOp, Priority, Ticket};
use felix_wal::format::names::Name;
use felix_wal::format::producers::{PRODUCERS_BYTES_MAX, Producers};
use felix_wal::log::{Ended, LogEvent, ShardLog};
use felix_wal::log_open::{OpenError, OpenReport, Opening, ShardSpec};
use felix_wal::queue::Slot;
use felix_wal::read::{ReadFault, ReadFrom, ReadSettings, ReadState, Reader};

/// A scan that catches producers up reads little, so small windows do.
const SCAN: ReadSettings = ReadSettings { window_bytes: 128 << 10, windows_max: 2 };

#[derive(Debug)]
pub(crate) enum Stage {
    /// Others are opened first.
    Queued,
    Open(Box<Opening>),
    Clean(Box<ShardLog>),
    /// Offsets that a crash may have taken are left out.
    Skip(Box<ShardLog>),
    Producers {
        log: Box<ShardLog>,
        checkpoint: Checkpoint,
        ticket: Ticket,
    },
    Scan {
        log: Box<ShardLog>,
        checkpoint: Checkpoint,
        reader: Box<Reader>,
        slot: Slot,
        dedup: Dedup,
    },
    /// All is known; waits for the WAL's first file.
    Ready {
        log: Box<ShardLog>,
        checkpoint: Checkpoint,
        dedup: Dedup,
    },
    Failed,
    /// The disk was full, or the system short of something: tried again then.
    Later(Time),
    /// In between.
    Moving,
}

#[derive(Debug)]
pub(crate) struct OpeningShard {
    pub(crate) slot: Slot,
    pub(crate) config: ShardConfig,
    /// It was told that it has to wait.
    pub(crate) is_late: bool,
    /// It was taken away meanwhile.
    pub(crate) is_removed: bool,
    pub(crate) waiting: Vec<Event>,
    pub(crate) stage: Stage,
}

impl OpeningShard {
    /// It failed, for good or for now: who comes is told.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.stage, Stage::Failed | Stage::Later(_))
    }

    /// What to tell.
    pub(crate) fn refusal(&self) -> ErrorCode {
        match self.stage {
            Stage::Later(_) => ErrorCode::DiskFull,
            _ => ErrorCode::StorageFailed,
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready { .. })
    }
}

/// What to say of a shard whose files were there once.
fn gone(config: &ShardConfig, segments: usize) -> String {
    let shard = config.shard;
    let what = match segments {
        0 => "its files were made once and are gone".to_string(),
        _ => format!("its meta was made once and is gone, while {segments} segment file(s) are there"),
    };
    format!(
        "{what}; nothing was touched: stop the broker, put the folder {} of its data folder back as it was and start, or \
         restore a backup, or delete the stream to give up its data",
        Name::Shard(shard).path()
    )
}

impl Store {
    pub(crate) fn begin_open(&mut self, config: ShardConfig) {
        self.started = true;
        let slot = self.slots.take(Use::Shard(config.shard));
        let shard =
            OpeningShard { slot, config, is_late: false, is_removed: false, waiting: Vec::new(), stage: Stage::Queued };
        self.open_queue.push_back(config.shard);
        self.opening.insert(config.shard, shard);
    }

    /// Begins to open as many as may be under way.
    pub(crate) fn go_on_opening(&mut self, now: Now) {
        while let Some((due, id)) = self.open_later.front().copied().filter(|(due, _)| *due <= now.time) {
            self.open_later.pop_front();
            // Or it was taken away, or put again, meanwhile.
            if let Some(shard) =
                self.opening.get_mut(&id).filter(|it| matches!(it.stage, Stage::Later(at) if at == due))
            {
                shard.stage = Stage::Queued;
                self.open_queue.push_back(id);
            }
        }
        while self.opening_now < self.settings.openings_max
            && let Some(id) = self.open_queue.pop_front()
        {
            let Some(shard) = self.opening.get_mut(&id) else { continue };
            let opening = Opening::open(shard.slot, self.maker, id, now.wall, Offset(0), &mut self.queue);
            shard.stage = Stage::Open(Box::new(opening));
            self.opening_now += 1;
        }
    }

    /// A completion for an opening shard.
    pub(crate) fn on_opening_done(&mut self, now: Now, id: ShardId, done: DiskDone, limits: &Limits) {
        let Some(mut shard) = self.opening.remove(&id) else { return };
        let stage = std::mem::replace(&mut shard.stage, Stage::Moving);
        shard.stage = self.step(now, &shard, stage, done, limits);
        if let Stage::Later(due) = &mut shard.stage {
            *due = now.time.after_ns(self.settings.full_retry_ns);
            shard.is_late = true;
            self.open_later.push_back((*due, id));
        }
        if shard.is_ready() || shard.is_settled() {
            self.opening_now -= 1;
            self.opened.push(id);
        }
        self.opening.insert(id, shard);
    }

    fn step(&mut self, now: Now, shard: &OpeningShard, stage: Stage, done: DiskDone, limits: &Limits) -> Stage {
        match stage {
            Stage::Open(mut opening) => match opening.handle(done, &mut self.queue) {
                None => Stage::Open(opening),
                Some(opened) => self.opened(now, shard, opened, limits),
            },
            Stage::Clean(mut log) => match log.handle(done, &mut self.queue) {
                None => Stage::Clean(log),
                // What could not be moved away stays a stray; the log says itself what it does not take because of it.
                Some(event) => {
                    if let Ended::Poisoned(error) = event.ended {
                        let why = format!("{:?} of its segments failed: {error:?}", event.job);
                        self.alarm(Alarm::ShardFailed { shard: shard.config.shard, why });
                    }
                    self.prepare(now, shard, log, limits)
                }
            },
            Stage::Skip(mut log) => match log.handle(done, &mut self.queue) {
                None => Stage::Skip(log),
                Some(event) if event.ended == Ended::Done => self.load_producers(shard, log, limits),
                Some(LogEvent { ended: Ended::Full(error), .. }) => self.open_later(shard, &error.error),
                Some(event) => {
                    self.fail_open(&shard.config, format!("offsets could not be left out: {:?}", event.ended))
                }
            },
            Stage::Producers { log, checkpoint, ticket } if ticket == done.ticket => {
                let read = match done.result {
                    Ok(DiskOk::Bytes(bytes)) => {
                        Producers::decode(&bytes, &self.maker, shard.config.stream, shard.config.shard)
                            .map_err(|error| error.to_string())
                    }
                    Ok(_) => Err("the disk answered something else".to_string()),
                    Err(error) => Err(format!("producers: {error}")),
                };
                match read {
                    Ok(producers) if producers.lineage == shard.config.lineage => {
                        // Newer than the meta, if a crash came between the two.
                        let through = producers.through.min(log.flushed_to());
                        let dedup = Dedup::restore(producers);
                        self.scan(shard, log, Checkpoint { through, ..checkpoint }, dedup, limits)
                    }
                    // Without it a retry could be appended twice. All there is to know is in the batches, so read them.
                    other => {
                        let why = other.err().unwrap_or_else(|| "producers: of another lineage".to_string());
                        let what = format!("{why}; the whole log is read instead");
                        self.alarm(Alarm::Note { shard: shard.config.shard, what });
                        let checkpoint = Checkpoint { through: log.log_start(), has_file: false, ..checkpoint };
                        self.scan(shard, log, checkpoint, Dedup::default(), limits)
                    }
                }
            }
            Stage::Scan { log, checkpoint, mut reader, slot, dedup } => {
                reader.handle(done, &log, &mut self.queue);
                self.go_on_scanning(shard, log, checkpoint, reader, slot, dedup, limits)
            }
            other => other,
        }
    }

    fn opened(
        &mut self,
        now: Now,
        shard: &OpeningShard,
        opened: Result<(ShardLog, OpenReport), OpenError>,
        limits: &Limits,
    ) -> Stage {
        let config = &shard.config;
        let spec = ShardSpec {
            stream: config.stream,
            shard: config.shard,
            lineage: config.lineage,
            durability: config.durability,
        };
        let (mut log, report) = match opened {
            Ok((log, report)) if log.lineage() == config.lineage && log.meta().stream == config.stream => (log, report),
            Err(OpenError::NoMeta { segments }) if config.made => {
                return self.fail_open(config, gone(config, segments));
            }
            Err(OpenError::NoMeta { segments: 0 }) => {
                return Stage::Open(Box::new(Opening::create(shard.slot, self.maker, spec, &mut self.queue)));
            }
            // Data of an earlier incarnation; the files become strays of the new one.
            Ok((log, _)) if log.lineage() < config.lineage => {
                return Stage::Open(Box::new(Opening::create(shard.slot, self.maker, spec, &mut self.queue)));
            }
            Ok((log, _)) => {
                let found = (log.lineage().0, log.meta().stream.0);
                let expected = (config.lineage.0, config.stream.0);
                return self.fail_open(config, format!("lineage and stream are {found:?}, metadata says {expected:?}"));
            }
            Err(OpenError::Disk(error)) if error.passes() => return self.open_later(shard, &error),
            Err(error) => return self.fail_open(config, error.to_string()),
        };
        if let Some(damage) = &report.damage {
            let why = format!("{} at byte {}: {:?}", damage.path, damage.at, damage.cause);
            self.alarm(Alarm::ShardDamaged { shard: config.shard, range: damage.range, why });
        }
        match log.clean(now.wall, &mut self.queue) {
            Ok(true) => Stage::Clean(Box::new(log)),
            // A damaged log is not cleaned; its strays wait for a repair.
            Ok(false) | Err(_) => self.prepare(now, shard, Box::new(log), limits),
        }
    }

    /// Nothing is wrong with the shard.
    fn open_later(&mut self, shard: &OpeningShard, error: &DiskError) -> Stage {
        if !shard.is_late {
            let what = format!("it cannot be opened now and is tried again until it can: {error}");
            self.alarm(Alarm::Note { shard: shard.config.shard, what });
        }
        // When is set where it is put away.
        Stage::Later(Time(0))
    }

    fn fail_open(&mut self, config: &ShardConfig, why: String) -> Stage {
        self.alarm(Alarm::ShardFailed { shard: config.shard, why });
        Stage::Failed
    }

    fn prepare(&mut self, now: Now, shard: &OpeningShard, mut log: Box<ShardLog>, limits: &Limits) -> Stage {
        let shows_early = Checkpoint::decode(&log.meta().settings).is_some_and(|it| it.shows_early);
        if !(self.after_crash && shows_early && log.takes_flushes()) {
            return self.load_producers(shard, log, limits);
        }
        let end = log.flushed_to();
        let Some(to) = end.checked_add(EARLY_OFFSETS_MAX) else { return self.load_producers(shard, log, limits) };
        match log.skip(to, now.wall, &mut self.queue) {
            Ok(()) => {
                let what = format!(
                    "the stop was not clean and the stream does not sync before it acknowledges: records behind offset \
                     {end} may be lost; offsets {end}..{to} are left out, so that none is given twice"
                );
                self.alarm(Alarm::Note { shard: shard.config.shard, what });
                Stage::Skip(log)
            }
            Err(error) => self.fail_open(&shard.config, format!("offsets could not be left out: {error}")),
        }
    }

    fn load_producers(&mut self, shard: &OpeningShard, log: Box<ShardLog>, limits: &Limits) -> Stage {
        let Some(checkpoint) = Checkpoint::decode(&log.meta().settings) else {
            return self.fail_open(&shard.config, "the meta holds settings of a newer build".to_string());
        };
        if !checkpoint.has_file {
            return self.scan(shard, log, checkpoint, Dedup::default(), limits);
        }
        let op = DiskOp::Load { path: Producers::path(shard.config.shard), bytes_max: PRODUCERS_BYTES_MAX };
        let ticket = self.queue.push(shard.slot, Priority::Background, op);
        Stage::Producers { log, checkpoint, ticket }
    }

    /// Reads the batches that the producers file does not know.
    fn scan(
        &mut self,
        shard: &OpeningShard,
        log: Box<ShardLog>,
        checkpoint: Checkpoint,
        dedup: Dedup,
        limits: &Limits,
    ) -> Stage {
        let from = checkpoint.through.max(log.log_start());
        if from >= log.flushed_to() {
            return Stage::Ready { log, checkpoint, dedup };
        }
        let slot = self.slots.take(Use::Shard(shard.config.shard));
        let reader = Box::new(Reader::new(slot, ReadFrom::Offset(from), SCAN));
        self.go_on_scanning(shard, log, checkpoint, reader, slot, dedup, limits)
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one stage")]
    fn go_on_scanning(
        &mut self,
        shard: &OpeningShard,
        mut log: Box<ShardLog>,
        checkpoint: Checkpoint,
        mut reader: Box<Reader>,
        slot: Slot,
        mut dedup: Dedup,
        limits: &Limits,
    ) -> Stage {
        loop {
            if reader.is_closed() {
                self.slots.give_back(slot);
                return Stage::Ready { log, checkpoint, dedup };
            }
            match reader.poll(&log, &mut self.queue) {
                ReadState::Ready => {
                    let Some(batch) = reader.next_batch() else { continue };
                    // Who has no key for it cannot tell its producers; they must begin anew, which is told.
                    let facts = self.keys.open(shard.config.sealed_for, &batch).ok().and_then(BodyFacts::of_stored);
                    if let Some(facts) = facts {
                        dedup.remember(&facts, batch.header.base_offset, batch.header.append_time, limits);
                    }
                }
                ReadState::AtEnd => reader.close(&mut self.queue),
                ReadState::Failed(error) if matches!(error.fault, ReadFault::Gap(_)) && reader.is_settled() => {
                    // Nothing of producers is in a gap: go on behind it.
                    let ReadFault::Gap(range) = error.fault else { continue };
                    *reader = Reader::new(slot, ReadFrom::Offset(range.to), SCAN);
                }
                ReadState::Failed(error) if matches!(error.fault, ReadFault::Gap(_)) => {
                    return Stage::Scan { log, checkpoint, reader, slot, dedup };
                }
                ReadState::Failed(error) => {
                    let passes = matches!(&error.fault, ReadFault::Disk(error) if error.passes());
                    reader.close(&mut self.queue);
                    if let ReadFault::Disk(error) = &error.fault
                        && passes
                        && reader.is_closed()
                    {
                        self.slots.give_back(slot);
                        return self.open_later(shard, error);
                    }
                    // In the middle of a file what was begun must end first; until the next start it counts as damaged.
                    let unread = OffsetRange { from: error.next, to: error.good_from };
                    if let Some(range) = error.damaged().or(passes.then_some(unread)) {
                        log.mark_damaged(range);
                        let why = error.to_string();
                        self.alarm(Alarm::ShardDamaged { shard: shard.config.shard, range, why });
                    }
                    // A damaged shard takes no batch, so nothing is appended twice.
                    if !reader.is_closed() {
                        return Stage::Scan { log, checkpoint, reader, slot, dedup };
                    }
                }
                ReadState::Waiting => return Stage::Scan { log, checkpoint, reader, slot, dedup },
            }
        }
    }
}
