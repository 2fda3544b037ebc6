//! **What**: write-behind: which shard is flushed when, retention, and what the end of a job means.
//!
//! ```text
//! wanted: a shard over flush_bytes | a shard that pins the oldest WAL file | the largest, when memory is short
//! producers file (if much was flushed since the last) -> chunks, meta -> FlushedTo -> memory and WAL let go
//! ```
//!
//! **Invariants**: only batches that the WAL made durable are flushed. At most `flushes_max` jobs run at once, so that
//! commits find the device free.
//!
//! **Never**: a second try of a job that failed for another reason than a full disk.
//!
//! **See**: `felix_wal::log`.

use super::compact::Switched;
use super::part::{Checkpoint, Work};
use super::{Alarm, Store};
use crate::batch_pool::BatchPool;
use crate::shard::Shard;
use felix_protocol::position::Offset;
use felix_protocol::time::Now;
use felix_wal::chunk_builder::BuildError;
use felix_wal::disk::{DiskDone, DiskError, DiskOp, Priority};
use felix_wal::format::entry::{Lsn, WalPosition};
use felix_wal::format::producers::{PRODUCERS_BYTES_MAX, Producers};
use felix_wal::index_rebuild::{IndexRebuild, RebuildError};
use felix_wal::log::{Ended, Job, JobError, LogEvent, LogSettings, MetaChange};
use felix_wal::retain::{FloorRule, RetainPolicy, RetainScan};

/// Parts of its retention that a shard's segments have at least.
const SEGMENTS_PER_RETENTION: u64 = 8;
/// Smallest segment that a small retention leads to.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;

impl Store {
    fn log_settings(&self, retention_bytes: u64) -> LogSettings {
        let parts = (retention_bytes / SEGMENTS_PER_RETENTION).max(SEGMENT_BYTES_MIN);
        LogSettings { segment_bytes: self.settings.log.segment_bytes.min(parts), ..self.settings.log }
    }

    /// Begins a flush of this shard if there is something to flush.
    pub(crate) fn flush(&mut self, now: Now, shard: &mut Shard) {
        let Some(part) = &mut shard.part else { return };
        if !part.can_flush() {
            return;
        }
        // The file is written again when four times its size was flushed: that bounds both writing it and reading behind it.
        let due_after = (4 * part.producers_bytes as u64).max(self.settings.checkpoint_bytes_min);
        let is_due = !part.checkpoint.has_file || part.since_checkpoint >= due_after;
        let none_needed = needs_no_producers(shard);
        if !is_due || none_needed || !self.write_producers(shard) {
            self.flush_segments(now, shard, None, none_needed);
        }
    }

    /// Writes what the shard remembers of producers; what was to be done follows. False: it is too much for a file.
    pub(crate) fn write_producers(&mut self, shard: &mut Shard) -> bool {
        let Some(part) = &mut shard.part else { return false };
        let through = part.durable_to;
        let producers = shard.dedup.snapshot(shard.config.lineage, through);
        let bytes = producers.encode(&self.maker, shard.config.stream, shard.config.shard);
        if bytes.len() > PRODUCERS_BYTES_MAX {
            return false;
        }
        let checkpoint = Checkpoint { through, has_file: true, ..part.checkpoint };
        let size = bytes.len();
        let op = DiskOp::Replace { path: Producers::path(shard.config.shard), bytes };
        let ticket = self.queue.push(shard.slot, Priority::Background, op);
        part.work = Work::Producers { ticket, checkpoint, bytes: size };
        self.flushing += 1;
        true
    }

    /// The meta says how far the producers file is.
    pub(crate) fn save_checkpoint(&mut self, shard: &mut Shard, checkpoint: Checkpoint) {
        let Some(part) = &mut shard.part else { return };
        let change = MetaChange { settings: Some(checkpoint.encode()), ..MetaChange::default() };
        if part.log.save(&change, &mut self.queue).is_ok() {
            part.work = Work::Save(checkpoint);
            self.flushing += 1;
        }
    }

    /// `checkpoint`: was written just now. `none_needed`: there are no producers, so nothing need be read again.
    fn flush_segments(&mut self, now: Now, shard: &mut Shard, checkpoint: Option<Checkpoint>, none_needed: bool) {
        let Some(part) = &mut shard.part else { return };
        self.builder.begin(part.log.cursor());
        let mut bytes = 0;
        for batch in shard.log.read(part.log.flushed_to()) {
            if batch.range().to > part.durable_to {
                break;
            }
            let pushed = match part.sealed_for {
                None => self.builder.push(batch.bytes(), false),
                // With nonces of its own: what the WAL holds is not kept.
                Some(tenant) => match self.keys.seal_appended(tenant, batch.bytes()) {
                    Ok(sealed) => self.builder.push(sealed, true),
                    Err(error) => {
                        let why = format!("it cannot be sealed at rest: {error}");
                        part.wal_failed = true;
                        self.alarm(Alarm::ShardFailed { shard: shard.config.shard, why });
                        return;
                    }
                },
            };
            match pushed {
                Ok(()) => bytes += batch.bytes().len(),
                Err(BuildError::Full) => break,
                Err(error) => {
                    // Bytes in memory changed, or our own order is broken: better no further word than a wrong one.
                    let why = format!("a batch at {} is not what was appended: {error}", batch.range().from);
                    part.log.mark_damaged(batch.range());
                    self.alarm(Alarm::ShardFailed { shard: shard.config.shard, why });
                    return;
                }
            }
        }
        let Some(end) = self.builder.cursor().filter(|_| !self.builder.is_empty()).map(|it| it.next) else { return };
        let included = part.entries.iter().take_while(|(to, ..)| *to <= end).last();
        let Some(through) = included.map(|(_, lsn, _)| *lsn) else { return };
        let checkpoint = match none_needed {
            true => Some(Checkpoint { through: end, has_file: false, ..part.checkpoint }),
            false => checkpoint,
        };
        let change = MetaChange {
            included: Some(WalPosition { wal: self.wal.id(), lsn: through }),
            settings: checkpoint.map(Checkpoint::encode),
            ..MetaChange::default()
        };
        let settings = self.log_settings(shard.config.retention_bytes);
        let part = shard.part.as_mut().expect("just seen");
        match part.log.flush(&mut self.builder, &change, &settings, now.wall, &mut self.queue) {
            Ok(()) => {
                part.work = Work::Flush { through, bytes, checkpoint };
                self.flushing += 1;
            }
            // Strays are in the way: they go first.
            Err(JobError::NotClean) => {
                if part.log.clean(now.wall, &mut self.queue) == Ok(true) {
                    part.work = Work::Clean;
                    self.flushing += 1;
                }
            }
            Err(error) => {
                let why = format!("a flush was not begun: {error}");
                self.alarm(Alarm::ShardFailed { shard: shard.config.shard, why });
            }
        }
    }

    /// A completion for an open shard.
    pub(crate) fn on_shard_done(&mut self, now: Now, shard: &mut Shard, done: DiskDone, pool: &mut BatchPool) {
        let Some(part) = &mut shard.part else { return };
        match &mut part.work {
            Work::Producers { ticket, checkpoint, bytes } if *ticket == done.ticket => {
                let (checkpoint, bytes) = (*checkpoint, *bytes);
                part.work = Work::Idle;
                self.flushing -= 1;
                match done.result {
                    Ok(_) => {
                        part.producers_bytes = bytes;
                        part.since_checkpoint = 0;
                        match part.can_flush() {
                            true => self.flush_segments(now, shard, Some(checkpoint), false),
                            false => self.save_checkpoint(shard, checkpoint),
                        }
                    }
                    Err(error) if error.passes() => self.wait_for_room(now, shard, &error),
                    Err(error) => {
                        let why = format!("the producers file was not written: {error}");
                        part.wal_failed = true;
                        self.alarm(Alarm::ShardFailed { shard: shard.config.shard, why });
                    }
                }
                return;
            }
            Work::Scan(scan) => {
                scan.handle(done, &part.log);
                self.go_on_retaining(now, shard);
                return;
            }
            Work::Index(base, rebuild) => {
                let base = *base;
                if let Some(result) = rebuild.handle(done, &part.log, &mut self.queue) {
                    self.on_index(shard, base, result);
                }
                return;
            }
            _ => {}
        }
        let Some(event) = part.log.handle(done, &mut self.queue) else { return };
        self.on_job_ended(now, shard, event, pool);
    }

    fn on_job_ended(&mut self, now: Now, shard: &mut Shard, event: LogEvent, pool: &mut BatchPool) {
        let Some(part) = &mut shard.part else { return };
        let work = std::mem::replace(&mut part.work, Work::Idle);
        self.flushing -= 1;
        if let Some(buffer) = event.buffer {
            self.builder.reuse(buffer);
        }
        if matches!(work, Work::Switch) {
            let outcome = match &event.ended {
                Ended::Done => Switched::Counts,
                Ended::Full(_) => Switched::Full,
                Ended::Poisoned(_) => Switched::Failed,
            };
            self.on_switched(now, shard.config.shard, outcome);
        }
        match (&event.ended, work) {
            (Ended::Done, Work::Flush { through, bytes, checkpoint }) => {
                self.on_flushed(now, shard, through, bytes, checkpoint, pool);
            }
            (Ended::Done, Work::Retain { segments }) => {
                self.counters.retained_segments += segments as u64;
                shard.touched = true;
                self.want_retention(shard);
            }
            (Ended::Done, Work::Save(checkpoint)) => {
                part.checkpoint = checkpoint;
                self.want_retention(shard);
            }
            (Ended::Done, Work::Switch) => {
                shard.touched = true;
                self.want_retention(shard);
            }
            (Ended::Done, _) => self.want_retention(shard),
            (Ended::Full(error), work) => {
                if matches!(work, Work::Clean) {
                    self.compactor.wait_for_room(now.time.after_ns(self.settings.full_retry_ns));
                }
                self.wait_for_room(now, shard, &error.error);
            }
            (Ended::Poisoned(error), _) => {
                let why = format!("{:?} of its segments failed: {error:?}", event.job);
                self.alarm(Alarm::ShardFailed { shard: shard.config.shard, why });
            }
        }
        debug_assert!(event.job != Job::Truncate, "nobody cuts");
        self.go_on_compacting(shard);
    }

    fn on_flushed(
        &mut self,
        now: Now,
        shard: &mut Shard,
        through: Lsn,
        bytes: usize,
        checkpoint: Option<Checkpoint>,
        pool: &mut BatchPool,
    ) {
        let Some(part) = &mut shard.part else { return };
        let flushed_to = part.log.flushed_to();
        self.wal.flushed(now.time, shard.config.shard, shard.config.lineage, flushed_to, through);
        self.unflushed_bytes -= part.on_flushed();
        part.since_checkpoint += bytes as u64;
        part.checkpoint = checkpoint.unwrap_or(part.checkpoint);
        self.counters.flushes += 1;
        self.counters.flushed_bytes += bytes as u64;
        self.room.on_flushed(bytes);
        if part.unflushed_bytes >= self.settings.flush_bytes && !part.flush_listed {
            part.flush_listed = true;
            self.flush_wanted.push_back(shard.config.shard);
        }
        if !part.file_listed {
            part.file_listed = true;
            self.with_files.push_back(shard.config.shard);
        }
        shard.let_flushed_go(pool);
        shard.touched = true;
        self.want_retention(shard);
    }

    fn wait_for_room(&mut self, now: Now, shard: &mut Shard, error: &DiskError) {
        self.flush_after = now.time.after_ns(self.settings.full_retry_ns);
        if *error == DiskError::Full {
            self.room.on_full();
            self.next_sweep = now.time;
        }
        if let Some(part) = shard.part.as_mut().filter(|it| !it.flush_listed) {
            part.flush_listed = true;
            self.flush_wanted.push_back(shard.config.shard);
        }
    }

    /// Lists a shard for a look at its retention, if it keeps more than it should.
    pub(crate) fn want_retention(&mut self, shard: &mut Shard) {
        let Some(part) = &mut shard.part else { return };
        let over = part.log.stored_bytes() > shard.config.retention_bytes && !part.log.segments().is_empty();
        if over && !part.retain_listed {
            part.retain_listed = true;
            self.retain_wanted.push_back(shard.config.shard);
        }
    }

    /// Begins to look for what a shard keeps too long or too much of.
    pub(crate) fn begin_retention(&mut self, now: Now, shard: &mut Shard) {
        let Some(part) = &mut shard.part else { return };
        if !part.is_idle() || part.failed().is_some() {
            return;
        }
        let none_needed = needs_no_producers(shard);
        let Some(part) = &mut shard.part else { return };
        // The open segment keeps what is in it; if it is old enough that all of it could soon go, it is sealed.
        if let (Some(age), Some(since)) = (shard.config.retention_age_ns, part.log.open_since())
            && now.wall.saturating_sub_ns(age / SEGMENTS_PER_RETENTION) > since
            && part.log.roll(&mut self.queue) == Ok(true)
        {
            part.work = Work::Roll;
            self.flushing += 1;
            return;
        }
        let policy = RetainPolicy {
            age_ns: shard.config.retention_age_ns,
            bytes: Some(shard.config.retention_bytes),
            // What the producers file does not know yet is only in the batches.
            floor: (!none_needed).then_some(part.checkpoint.through),
            floor_rule: FloorRule::Keep,
        };
        part.work = Work::Scan(RetainScan::new(shard.slot, policy, now.wall));
        self.flushing += 1;
        self.go_on_retaining(now, shard);
    }

    fn go_on_retaining(&mut self, now: Now, shard: &mut Shard) {
        let Some(part) = &mut shard.part else { return };
        let Work::Scan(scan) = &mut part.work else { return };
        let Some(plan) = scan.poll(&part.log, &mut self.queue) else { return };
        if plan.held_bytes > 0 && plan.log_start <= part.log.log_start() {
            // Retention waits for the producers file: bring it up to date, then look again.
            part.work = Work::Idle;
            self.flushing -= 1;
            if part.checkpoint.through < part.durable_to {
                self.write_producers(shard);
            }
            return;
        }
        match part.log.retain(&plan, now.wall, &mut self.queue) {
            Ok(true) => part.work = Work::Retain { segments: plan.segments },
            Ok(false) => {
                part.index_tried.retain(|base| *base >= part.log.log_start());
                let is_new = |base: &Offset| !part.index_tried.contains(base);
                let missed = part.bad_index.take().filter(is_new);
                let unknown = plan.unknown_age.filter(is_new).or(missed);
                let rebuild = unknown.and_then(|base| {
                    let rebuild = IndexRebuild::new(shard.slot, &part.log, base, &mut self.queue)?;
                    Some(Work::Index(base, Box::new(rebuild)))
                });
                match rebuild {
                    Some(rebuild) => part.work = rebuild,
                    None => self.end_retaining(shard),
                }
            }
            Err(_) => self.end_retaining(shard),
        }
    }

    /// A reader misses an index: who looks for what is too old makes it again.
    pub(crate) fn want_index(&mut self, shard: &mut Shard, base: Offset) {
        let Some(part) = shard.part.as_mut().filter(|it| !it.index_tried.contains(&base)) else { return };
        part.bad_index = Some(base);
        if !part.retain_listed {
            part.retain_listed = true;
            self.retain_wanted.push_back(shard.config.shard);
        }
    }

    fn end_retaining(&mut self, shard: &mut Shard) {
        let Some(part) = &mut shard.part else { return };
        part.work = Work::Idle;
        self.flushing -= 1;
    }

    /// A segment has its index again, and the search by age goes on; or it has not.
    fn on_index(&mut self, shard: &mut Shard, base: Offset, result: Result<(), RebuildError>) {
        self.end_retaining(shard);
        let Some(part) = &mut shard.part else { return };
        // The next look at what is too old tries that again.
        let may_pass = match &result {
            Err(RebuildError::Gone) => true,
            Err(RebuildError::Disk(error)) => error.passes(),
            _ => false,
        };
        if !may_pass {
            part.index_tried.push(base);
        }
        match result {
            Ok(()) if !part.retain_listed => {
                part.retain_listed = true;
                self.retain_wanted.push_back(shard.config.shard);
            }
            Ok(()) => {}
            Err(_) if may_pass => {}
            Err(error) => {
                let what = format!(
                    "the segment at offset {base} has no index, and none can be made: {error}; it is read from its front, and \
                     retention by age keeps it with all behind it"
                );
                self.alarm(Alarm::Note { shard: shard.config.shard, what });
            }
        }
        self.go_on_compacting(shard);
    }
}

/// There are no producers and there is no file that says otherwise.
pub(crate) fn needs_no_producers(shard: &Shard) -> bool {
    shard.dedup.producer_count() == 0 && shard.part.as_ref().is_none_or(|part| !part.checkpoint.has_file)
}
