//! **What**: readers of history: subscribers that are behind what memory holds are served from segments.
//!
//! ```text
//! Fetch below the memory's start -> a reader of the subscription's own, which stays where it is for the next Fetch
//! reader at the end of the segments -> memory goes on from there, so nothing is between the two
//! Start::Time before the memory's start -> a reader that seeks; its first batch is the start
//! ```
//!
//! **Invariants**: memory begins at or below the end of the segments, so the hand-over has neither gap nor overlap. Every
//! wish is answered once. At most `readers_max` readers wait or wander; who comes later waits in `wishes`, one per
//! subscription.
//!
//! **Never**: damaged bytes given. What is damaged is left out, told as a gap by the offsets that follow, and the shard is
//! read-only from then on.
//!
//! **See**: `felix_wal::read`.

use super::slots::Use;
use super::{Alarm, Store, push_alarm};
use crate::batch_pool::{BatchPool, SharedBatch};
use crate::effect::{Effect, Effects};
use crate::event::SubKey;
use crate::limits::Limits;
use crate::shard::Shard;
use felix_protocol::frame::Start;
use felix_protocol::ids::{CoreId, ShardId};
use felix_protocol::position::{Offset, Position};
use felix_protocol::time::{Now, Time, Timestamp};
use felix_wal::queue::Slot;
use felix_wal::read::{ReadFault, ReadFrom, ReadState, Reader};
use std::collections::VecDeque;

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Batches from this offset on.
    Batches(Offset),
    /// A start: the first batch of this time or later.
    Start(Timestamp),
}

/// Who waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) shard: ShardId,
    pub(crate) core: CoreId,
    pub(crate) sub: SubKey,
    pub(crate) wish: Wish,
}

#[derive(Debug)]
struct HistoryReader {
    slot: Slot,
    shard: ShardId,
    reader: Reader,
    core: CoreId,
    sub: SubKey,
    wish: Option<Wish>,
    used_at: Time,
    closing: bool,
}

/// All readers of a core.
#[derive(Debug, Default)]
pub(crate) struct History {
    readers: Vec<Option<HistoryReader>>,
    wishes: VecDeque<Wanted>,
    /// The system was short of something: none begins before.
    not_before: Time,
}

impl History {
    pub(crate) fn reads(&self, shard: ShardId) -> bool {
        self.readers.iter().flatten().any(|it| it.shard == shard)
    }

    fn live_count(&self) -> usize {
        self.readers.iter().flatten().filter(|it| !it.closing).count()
    }

    pub(crate) fn shard_of(&self, index: usize) -> Option<ShardId> {
        self.readers.get(index)?.as_ref().map(|it| it.shard)
    }

    /// When an idle reader is due to be closed, or one may begin again.
    pub(crate) fn next_deadline(&self, now: Time, idle_ns: u64) -> Option<Time> {
        let idle = self.readers.iter().flatten().filter(|it| it.wish.is_none() && !it.closing);
        let idle = idle.map(|it| it.used_at.after_ns(idle_ns)).min();
        let later = (!self.wishes.is_empty() && self.not_before > now).then_some(self.not_before);
        idle.into_iter().chain(later).min()
    }
}

impl Store {
    fn close_reader(&mut self, index: usize) {
        let Some(it) = &mut self.history.readers[index] else { return };
        it.closing = true;
        it.reader.close(&mut self.queue);
        self.free_reader(index);
    }

    /// Frees a reader's slot once nothing of it is under way.
    fn free_reader(&mut self, index: usize) {
        if let Some(it) = &self.history.readers[index]
            && it.closing
            && it.reader.is_closed()
        {
            self.slots.give_back(it.slot);
            self.history.readers[index] = None;
        }
    }

    pub(crate) fn close_readers_of(&mut self, shard: ShardId) {
        let starts = |it: &Wanted| matches!(it.wish, Wish::Start(_)).then_some((it.core, it.sub));
        let waits = self.history.wishes.iter().filter(|it| it.shard == shard).filter_map(starts);
        let asked = self.history.readers.iter().flatten().filter(|it| it.shard == shard && !it.closing);
        let asked = asked.filter(|it| matches!(it.wish, Some(Wish::Start(_)))).map(|it| (it.core, it.sub));
        self.unanswered.extend(waits.chain(asked).map(|(core, sub)| (core, shard, sub)));
        self.history.wishes.retain(|it| it.shard != shard);
        for index in 0..self.history.readers.len() {
            if self.history.readers[index].as_ref().is_some_and(|it| it.shard == shard) {
                self.close_reader(index);
            }
        }
    }

    /// Closes readers that nobody used for a while, so that a subscriber that left costs nothing for long.
    pub(crate) fn close_idle_readers(&mut self, now: Now) {
        let idle_ns = self.settings.reader_idle_ns;
        if self.history.next_deadline(now.time, idle_ns).is_none_or(|due| due > now.time) {
            return;
        }
        for index in 0..self.history.readers.len() {
            let is_idle = self.history.readers[index]
                .as_ref()
                .is_some_and(|it| it.wish.is_none() && !it.closing && it.used_at.after_ns(idle_ns) <= now.time);
            if is_idle {
                self.close_reader(index);
            }
        }
    }

    /// Makes a place for one more reader, at the cost of the one that was left alone for longest. False: all are at work.
    fn make_place(&mut self) -> bool {
        if self.history.live_count() < self.settings.readers_max {
            return true;
        }
        let idle = self.history.readers.iter().enumerate().filter_map(|(index, it)| {
            let it = it.as_ref().filter(|it| it.wish.is_none() && !it.closing)?;
            Some((it.used_at, index))
        });
        let Some((_, index)) = idle.min() else { return false };
        self.close_reader(index);
        true
    }

    /// The wish that waited longest, if a reader can begin for it now.
    pub(crate) fn next_wish(&mut self, now: Now) -> Option<Wanted> {
        if self.history.wishes.is_empty() || now.time < self.history.not_before || !self.make_place() {
            return None;
        }
        self.history.wishes.pop_front()
    }

    /// Somebody wants what only segments have. Who has no reader yet waits behind those that wait.
    pub(crate) fn want(
        &mut self,
        now: Now,
        shard: &mut Shard,
        wanted: Wanted,
        pool: &mut BatchPool,
        limits: &Limits,
        effects: &mut Effects,
    ) {
        let mine = self.history.readers.iter().position(|it| {
            it.as_ref()
                .is_some_and(|it| (it.shard, it.core, it.sub) == (wanted.shard, wanted.core, wanted.sub) && !it.closing)
        });
        if let Some(index) = mine {
            let it = self.history.readers[index].as_mut().expect("just found");
            if Wish::Batches(it.reader.position()) == wanted.wish {
                it.wish = Some(wanted.wish);
                it.used_at = now.time;
                return self.drive_reader(now, index, shard, pool, limits, effects);
            }
            self.close_reader(index);
        }
        if !self.history.wishes.is_empty() || now.time < self.history.not_before || !self.make_place() {
            return self.history.wishes.push_back(wanted);
        }
        self.begin_reader(now, shard, wanted, pool, limits, effects);
    }

    /// A reader for a wish, of which there is none yet, in a place that was made.
    pub(crate) fn begin_reader(
        &mut self,
        now: Now,
        shard: &mut Shard,
        wanted: Wanted,
        pool: &mut BatchPool,
        limits: &Limits,
        effects: &mut Effects,
    ) {
        let index = match self.history.readers.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.history.readers.push(None);
                self.history.readers.len() - 1
            }
        };
        let slot = self.slots.take(Use::Reader(index));
        let from = match wanted.wish {
            Wish::Batches(offset) => ReadFrom::Offset(offset.max(shard.log_start())),
            Wish::Start(time) => ReadFrom::Time(time),
        };
        let reader = Reader::new(slot, from, self.settings.read);
        let Wanted { shard: id, core, sub, wish } = wanted;
        let it =
            HistoryReader { slot, shard: id, reader, core, sub, wish: Some(wish), used_at: now.time, closing: false };
        self.history.readers[index] = Some(it);
        self.drive_reader(now, index, shard, pool, limits, effects);
    }

    /// A completion for a reader.
    #[allow(clippy::too_many_arguments, reason = "the parts of a core that reading touches")]
    pub(crate) fn on_reader_done(
        &mut self,
        now: Now,
        index: usize,
        done: felix_wal::disk::DiskDone,
        shard: &mut Shard,
        pool: &mut BatchPool,
        limits: &Limits,
        effects: &mut Effects,
    ) {
        let Some(part) = &shard.part else { return };
        let Some(it) = self.history.readers.get_mut(index).and_then(Option::as_mut) else { return };
        it.reader.handle(done, &part.log, &mut self.queue);
        if let Some(base) = it.reader.take_bad_index() {
            self.want_index(shard, base);
        }
        let Some(it) = self.history.readers.get_mut(index).and_then(Option::as_mut) else { return };
        if it.closing {
            self.free_reader(index);
        } else if it.wish.is_some() {
            self.drive_reader(now, index, shard, pool, limits, effects);
        }
    }

    /// The same for a shard that leaves: its readers only end.
    pub(crate) fn on_leaving_reader_done(&mut self, index: usize, done: felix_wal::disk::DiskDone) {
        let Some(it) = self.history.readers.get_mut(index).and_then(Option::as_mut) else { return };
        let Some(leaving) = self.leaving.get(&it.shard) else { return };
        it.reader.handle(done, &leaving.log, &mut self.queue);
        self.free_reader(index);
    }

    /// A job of a log ended, or came further: who waits for files that were moved goes on. No completion of theirs would
    /// say so.
    pub(crate) fn poll_readers_of(
        &mut self,
        now: Now,
        shard: &mut Shard,
        pool: &mut BatchPool,
        limits: &Limits,
        effects: &mut Effects,
    ) {
        for index in 0..self.history.readers.len() {
            let waits = |it: &HistoryReader| it.shard == shard.config.shard && it.wish.is_some() && !it.closing;
            if self.history.readers[index].as_ref().is_some_and(waits) {
                self.drive_reader(now, index, shard, pool, limits, effects);
            }
        }
    }

    fn drive_reader(
        &mut self,
        now: Now,
        index: usize,
        shard: &mut Shard,
        pool: &mut BatchPool,
        limits: &Limits,
        effects: &mut Effects,
    ) {
        let Some(it) = self.history.readers[index].as_mut() else { return };
        let (core, sub) = (it.core, it.sub);
        let Some(wish) = it.wish else { return };
        let Some(part) = &mut shard.part else { return };
        let mut batches: Vec<SharedBatch> = Vec::new();
        let mut bytes = 0;
        let failed = loop {
            match it.reader.poll(&part.log, &mut self.queue) {
                ReadState::Ready => {
                    let Some(stored) = it.reader.next_batch() else { continue };
                    if let Wish::Start(_) = wish {
                        let at = Position { lineage: shard.config.lineage, offset: stored.header.base_offset };
                        it.wish = None;
                        return shard.on_attached(core, sub, Start::Position(at), effects);
                    }
                    // Its checksums were checked. A body that a newer build wrote is passed over like one that expired.
                    // One whose key was destroyed is a gap: that is what destroying keys is for.
                    let clear = match self.keys.open(part.sealed_for, &stored) {
                        Ok(clear) => clear,
                        Err(why) => {
                            let (from, envelope) = (stored.header.base_offset, stored.sealed);
                            let (shard, key_id) = (shard.config.shard, envelope.map_or(0, |it| it.key_id));
                            if self.keys.is_news(shard, key_id) {
                                push_alarm(&mut self.alarms, Alarm::Unopened { shard, from, key_id, why });
                            }
                            continue;
                        }
                    };
                    let Some(batch) = pool.share_stored(clear) else { continue };
                    bytes += batch.bytes().len();
                    batches.push(batch);
                    if bytes >= limits.fetch_bytes_max || batches.len() >= limits.fetch_batches_max {
                        break None;
                    }
                }
                ReadState::Waiting if batches.is_empty() => return,
                ReadState::Waiting | ReadState::AtEnd => break None,
                ReadState::Failed(_) if !batches.is_empty() => break None,
                ReadState::Failed(error) => break Some(error),
            }
        };
        if let Some(error) = failed {
            if matches!(&error.fault, ReadFault::Disk(error) if error.passes()) {
                // Nothing is wrong with the data: the same again in a while.
                self.history.not_before = now.time.after_ns(self.settings.full_retry_ns);
                self.close_reader(index);
                self.history.wishes.push_back(Wanted { shard: shard.config.shard, core, sub, wish });
                return;
            }
            let from = match &error.fault {
                ReadFault::Expired { log_start } => *log_start,
                ReadFault::Gap(range) | ReadFault::Damaged(range) => range.to,
                ReadFault::Beyond { flushed_to } => *flushed_to,
                _ => {
                    let range = error
                        .damaged()
                        .unwrap_or(felix_protocol::position::OffsetRange { from: error.next, to: error.good_from });
                    part.log.mark_damaged(range);
                    let why = error.to_string();
                    self.history_alarm(shard.config.shard, range, why);
                    range.to
                }
            };
            // Further at every try, and never beyond what memory goes on with.
            let part = shard.part.as_ref().expect("just seen");
            let from = if from > error.next { from } else { part.log.flushed_to() };
            let from = from.min(part.log.flushed_to());
            self.close_reader(index);
            if let Wish::Start(_) = wish {
                // What is behind the damage may be older than was asked for; a start is answered all the same.
                let at = Position { lineage: shard.config.lineage, offset: from };
                return shard.on_attached(core, sub, Start::Position(at), effects);
            }
            let wish = Wish::Batches(from);
            return match wish {
                Wish::Batches(offset) if offset >= shard.memory_start() => {
                    self.answer_from_memory(shard, core, sub, offset, limits, effects);
                }
                _ => {
                    self.want(now, shard, Wanted { shard: shard.config.shard, core, sub, wish }, pool, limits, effects)
                }
            };
        }
        it.wish = None;
        it.used_at = now.time;
        if batches.is_empty() {
            // At the end of the segments: memory goes on from there.
            let at = it.reader.position();
            return match wish {
                Wish::Batches(from) => self.answer_from_memory(shard, core, sub, at.max(from), limits, effects),
                Wish::Start(time) => {
                    let offset = shard.find_time_in_memory(time);
                    let start = Start::Position(Position { lineage: shard.config.lineage, offset });
                    shard.on_attached(core, sub, start, effects);
                }
            };
        }
        self.counters.history_batches += batches.len() as u64;
        self.counters.history_bytes += bytes as u64;
        let high_watermark = shard.high_watermark();
        effects.push(Effect::Fetch { core, shard: shard.config.shard, sub, batches, high_watermark });
    }

    fn answer_from_memory(
        &mut self,
        shard: &Shard,
        core: CoreId,
        sub: SubKey,
        from: Offset,
        limits: &Limits,
        effects: &mut Effects,
    ) {
        shard.fetch_from_memory(core, sub, from, limits, effects);
    }

    fn history_alarm(&mut self, shard: ShardId, range: felix_protocol::position::OffsetRange, why: String) {
        self.alarm(Alarm::ShardDamaged { shard, range, why });
    }
}
