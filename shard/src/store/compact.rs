//! **What**: compaction by key in the running store: which shard's segments are rewritten when, how fast, and what the end
//! of a pass means.
//!
//! ```text
//! wanted: the new part of the sealed segments is half of the compacted part or more
//! producers file (if it is behind) -> pass: map, rewrite ... -> switch (a job of the log) -> ... -> meta says how far
//! ```
//!
//! **Invariants**: one pass at a time, so that its map is the only one in memory. A pass reads `compact_bytes_per_second` at
//! most, in slices. It ends where the producers file ends: of what is taken out nothing else says who sent it. A switch
//! waits until no other job of the log runs.
//!
//! **Never**: a segment that is not sealed, or that the high watermark does not cover. A second try of what cannot be read
//! or opened: that would read the same bytes for ever.
//!
//! **See**: `felix_wal::compact`.

use super::flush::needs_no_producers;
use super::part::Work;
use super::slots::Use;
use super::{Alarm, Store};
use crate::shard::Shard;
use felix_protocol::ids::ShardId;
use felix_protocol::time::{Now, Time};
use felix_wal::compact::{CompactError, CompactReport, CompactShare, CompactState, Compaction};
use felix_wal::disk::DiskDone;
use felix_wal::log::ShardLog;
use felix_wal::queue::Slot;
use felix_wal::read::ReadFault;

/// Slices of a second in which a pass reads: short enough that nothing on the core waits long for the work of one.
const SLICES_PER_SECOND: u64 = 100;

/// What a pass waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    Disk,
    /// Its next slice.
    Slice,
    /// The log has time for the switch.
    Log,
    /// The switch counts.
    Switch,
}

/// The pass of a core.
#[derive(Debug)]
struct Compacting {
    shard: ShardId,
    slot: Slot,
    pass: Compaction,
    waits: Waits,
}

/// Compaction of a core's shards.
#[derive(Debug, Default)]
pub(crate) struct Compactor {
    running: Option<Compacting>,
    next_slice: Time,
    /// Nothing is begun before this: the disk was full, or something was in the way of the last pass. Zero: now.
    after: Time,
}

impl Compactor {
    /// A pass reads or writes this shard's files.
    pub(crate) fn is_at(&self, shard: ShardId) -> bool {
        self.running.as_ref().is_some_and(|it| it.shard == shard)
    }

    /// Nothing is begun before this.
    pub(crate) fn wait_for_room(&mut self, until: Time) {
        self.after = until;
    }

    /// When it wants to go on though nothing happens. `wanted`: shards wait for a pass.
    pub(crate) fn next_deadline(&self, wanted: bool) -> Option<Time> {
        let after = (self.after > Time(0)).then_some(self.after);
        match self.running.as_ref().map(|it| it.waits) {
            Some(Waits::Slice) => Some(self.next_slice),
            Some(Waits::Log) => after,
            Some(Waits::Disk | Waits::Switch) => None,
            None => after.filter(|_| wanted),
        }
    }
}

/// The new part of a log is worth a pass: what is read for it is at most three times what is new.
fn is_worth_it(share: CompactShare) -> bool {
    share.new_bytes > 0 && share.new_bytes * 2 >= share.compacted_bytes
}

impl Store {
    /// Lists a shard for a pass, if enough of it is new.
    pub(crate) fn want_compaction(&mut self, shard: &mut Shard) {
        let high_watermark = shard.high_watermark();
        let Some(part) = shard.part.as_mut().filter(|_| shard.config.compact) else { return };
        let given_up = part.not_compacted_with == Some(self.keys.generation());
        if part.compact_listed || given_up || self.compactor.is_at(shard.config.shard) {
            return;
        }
        if is_worth_it(part.log.compact_share(high_watermark)) {
            part.compact_listed = true;
            self.compact_wanted.push_back(shard.config.shard);
        }
    }

    /// A pass of this core may begin.
    pub(crate) fn may_compact(&mut self, now: Now) -> bool {
        let may = self.compactor.running.is_none() && !self.closing && now.time >= self.compactor.after;
        if may {
            self.compactor.after = Time(0);
        }
        may
    }

    /// Begins a pass, or brings the producers file up to date before one. False: the shard is to be asked again.
    pub(crate) fn begin_compaction(&mut self, now: Now, shard: &mut Shard) -> bool {
        let (high_watermark, none_needed) = (shard.high_watermark(), needs_no_producers(shard));
        let Some(part) = &mut shard.part else { return true };
        if part.failed().is_some() || !is_worth_it(part.log.compact_share(high_watermark)) {
            return true;
        }
        // A switch that no meta has ended owns the name that a pass writes to: a full disk kept it from its end.
        if part.log.meta().switch.is_some() {
            if part.is_idle() && part.log.clean(now.wall, &mut self.queue) == Ok(true) {
                part.work = Work::Clean;
                self.flushing += 1;
                return true;
            }
            return false;
        }
        let limit = if none_needed { high_watermark } else { high_watermark.min(part.checkpoint.through) };
        if !is_worth_it(part.log.compact_share(limit)) {
            // When the meta knows of the file, the shard is looked at again.
            return part.is_idle() && {
                self.write_producers(shard);
                true
            };
        }
        let settings = felix_wal::compact::CompactSettings {
            tombstone_grace_ns: shard.config.tombstone_grace_ns,
            ..self.settings.compact
        };
        let slot = self.slots.take(Use::Compaction(shard.config.shard));
        match Compaction::new(slot, &part.log, limit, now.wall, settings, self.settings.compact_read) {
            Some(pass) => {
                let id = shard.config.shard;
                self.compactor.running = Some(Compacting { shard: id, slot, pass, waits: Waits::Disk });
                self.drive_compaction(now, shard);
            }
            None => self.slots.give_back(slot),
        }
        true
    }

    /// The shard whose pass could go on now.
    pub(crate) fn compaction_to_drive(&self, now: Now) -> Option<ShardId> {
        let it = self.compactor.running.as_ref()?;
        let goes_on = match it.waits {
            Waits::Disk | Waits::Switch => false,
            Waits::Slice => now.time >= self.compactor.next_slice,
            Waits::Log => now.time >= self.compactor.after,
        };
        (goes_on && !self.closing).then_some(it.shard)
    }

    /// A completion for the pass of an open shard.
    pub(crate) fn on_compaction_done(&mut self, now: Now, shard: &mut Shard, done: DiskDone) {
        let Some(part) = &shard.part else { return };
        let Some(it) = self.compactor.running.as_mut().filter(|it| it.shard == shard.config.shard) else { return };
        it.pass.handle(done, &part.log, &mut self.queue);
        if it.waits == Waits::Disk && !self.closing {
            self.drive_compaction(now, shard);
        }
    }

    /// A job of the log ended, or came further: a pass that waited for files that were moved goes on.
    pub(crate) fn poll_compaction(&mut self, now: Now, shard: &mut Shard) {
        let waits = |it: &Compacting| it.shard == shard.config.shard && it.waits == Waits::Disk;
        if self.compactor.running.as_ref().is_some_and(waits) && !self.closing {
            self.drive_compaction(now, shard);
        }
    }

    /// Goes on with the pass as far as it comes.
    pub(crate) fn drive_compaction(&mut self, now: Now, shard: &mut Shard) {
        let Some(part) = &mut shard.part else { return };
        let Some(it) = self.compactor.running.as_mut().filter(|it| it.shard == shard.config.shard) else { return };
        if it.waits == Waits::Log && !part.is_idle() {
            return;
        }
        self.compactor.after = Time(0);
        let failed = loop {
            let keys = part.sealed_for.and_then(|tenant| self.keys.at_rest(tenant));
            match it.pass.poll(&part.log, &mut self.queue, keys) {
                CompactState::Working => {
                    it.waits = Waits::Disk;
                    return;
                }
                CompactState::Paused if now.time < self.compactor.next_slice => {
                    it.waits = Waits::Slice;
                    return;
                }
                CompactState::Paused => {
                    self.compactor.next_slice = now.time.after_ns(1_000_000_000 / SLICES_PER_SECOND);
                    it.pass.grant((self.settings.compact_bytes_per_second / SLICES_PER_SECOND).max(1));
                }
                CompactState::Switch(finished) => {
                    it.waits = Waits::Log;
                    if !part.is_idle() {
                        return;
                    }
                    match part.log.switch(&finished, now.wall, &mut self.queue) {
                        Ok(()) => {
                            it.waits = Waits::Switch;
                            part.work = Work::Switch;
                            self.flushing += 1;
                            return;
                        }
                        // Retention was faster, strays are in the way, or the log takes nothing any more.
                        Err(_) => it.pass.refused(),
                    }
                }
                CompactState::Done(report) => break Ok(report),
                CompactState::Failed(error) => break Err(error),
            }
        };
        let slot = it.slot;
        self.compactor.running = None;
        self.slots.give_back(slot);
        match failed {
            Ok(report) => self.on_compacted(shard, report),
            Err(error) => self.on_not_compacted(now, shard, &error),
        }
    }

    fn on_compacted(&mut self, shard: &mut Shard, report: CompactReport) {
        self.counters.compactions += 1;
        self.counters.compacted_records += report.dropped;
        self.counters.compacted_tombstones += report.tombstones;
        self.counters.compacted_segments += report.segments_replaced;
        let Some(part) = &mut shard.part else { return };
        part.compact_note = Some(report.compacted_to);
        self.go_on_compacting(shard);
    }

    /// Whenever the log has nothing to do: the meta says how far a pass came, also where it found nothing to take out, or
    /// another pass is due.
    pub(crate) fn go_on_compacting(&mut self, shard: &mut Shard) {
        let Some(part) = &mut shard.part else { return };
        if part.compact_note.is_some() && !part.is_idle() {
            return;
        }
        // What cannot be written down is found again by the next pass.
        if let Some(to) = part.compact_note.take()
            && part.log.note_compacted(to, &mut self.queue) == Ok(true)
        {
            part.work = Work::Note;
            self.flushing += 1;
            return;
        }
        self.want_compaction(shard);
    }

    fn on_not_compacted(&mut self, now: Now, shard: &mut Shard, error: &CompactError) {
        self.counters.compactions_failed += 1;
        self.compactor.after = now.time.after_ns(self.settings.full_retry_ns);
        let Some(part) = &mut shard.part else { return };
        let passes = match error {
            CompactError::Outdated => true,
            CompactError::Disk(error) => error.passes(),
            CompactError::Read(error) => match &error.fault {
                ReadFault::Disk(error) => error.passes(),
                fault => matches!(fault, ReadFault::Expired { .. }),
            },
            _ => false,
        };
        if passes {
            return self.want_compaction(shard);
        }
        part.not_compacted_with = Some(self.keys.generation());
        let id = shard.config.shard;
        if let CompactError::Read(error) = error
            && let Some(range) = error.damaged()
        {
            part.log.mark_damaged(range);
            return self.alarm(Alarm::ShardDamaged { shard: id, range, why: error.to_string() });
        }
        let what = format!("the shard is not compacted any more until the next start or other keys: {error}");
        self.alarm(Alarm::Note { shard: id, what });
    }

    /// The switch of a pass ended.
    pub(crate) fn on_switched(&mut self, now: Now, shard: ShardId, outcome: Switched) {
        let Some(it) = self.compactor.running.as_mut().filter(|it| it.shard == shard) else { return };
        it.waits = Waits::Log;
        match outcome {
            Switched::Counts => it.pass.switched(Ok(())),
            // Nothing has changed: it is tried again when there is room.
            Switched::Full => self.compactor.after = now.time.after_ns(self.settings.full_retry_ns),
            Switched::Failed => it.pass.switched(Err(CompactError::Outdated)),
        }
    }

    /// The shard leaves: its pass ends.
    pub(crate) fn abandon_compaction(&mut self, shard: ShardId, log: &ShardLog) {
        self.compact_wanted.retain(|it| *it != shard);
        let Some(it) = self.compactor.running.as_mut().filter(|it| it.shard == shard) else { return };
        // A switch that runs is the log's; what it leaves goes with all the other files.
        it.pass.switched(Err(CompactError::Outdated));
        it.waits = Waits::Disk;
        it.pass.cancel(&mut self.queue);
        self.end_abandoned(log);
    }

    /// A completion for the pass of a shard that leaves.
    pub(crate) fn on_abandoned_done(&mut self, shard: ShardId, done: DiskDone) {
        let Some(leaving) = self.leaving.remove(&shard) else { return };
        if let Some(it) = &mut self.compactor.running {
            it.pass.handle(done, &leaving.log, &mut self.queue);
        }
        self.end_abandoned(&leaving.log);
        self.leaving.insert(shard, leaving);
    }

    fn end_abandoned(&mut self, log: &ShardLog) {
        let Some(it) = &mut self.compactor.running else { return };
        if matches!(it.pass.poll(log, &mut self.queue, None), CompactState::Failed(_) | CompactState::Done(_)) {
            self.slots.give_back(it.slot);
            self.compactor.running = None;
        }
    }
}

/// What became of a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switched {
    Counts,
    Full,
    Failed,
}
