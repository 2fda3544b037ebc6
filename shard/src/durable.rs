//! **What**: the durable side of a core's shards: disk completions in, what the disk is to do out.
//!
//! ```text
//! on_disk_done: WAL -> acks and commits | a shard's job | a reader | an opening or leaving shard
//! plan_disk (end of every turn): flushes, retention, leaving shards, the WAL's write and sync, all requests
//! ```
//!
//! **Invariants**: nothing is durable, acknowledged or given from segments but by a completion that came through here.
//!
//! **Never**: work per shard without an event of it, but for the look at what is too old, at its interval.
//!
//! **See**: `store.rs` for what is kept, `shard.rs` for the path of a publish.

use crate::effect::{AttachRefused, Effect, Effects};
use crate::event::{Event, ShardConfig};
use crate::shard::Shard;
use crate::store::history::{Wanted, Wish};
use crate::store::opening::Stage;
use crate::store::part::{Checkpoint, DiskPart, Work};
use crate::store::slots::Use;
use crate::store::{Alarm, Pending, Store};
use crate::table::Shards;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::ids::ShardId;
use felix_protocol::position::{Lineage, Offset};
use felix_protocol::time::{Now, Time};
use felix_wal::disk::{DiskDone, DiskRequest};
use felix_wal::quarantine::QuarantineSweep;
use felix_wal::queue::Slot;

/// Time between two looks into quarantine.
const SWEEP_INTERVAL_NS: u64 = 30_000_000_000;
/// The same while space is short.
const SWEEP_SHORT_NS: u64 = 1_000_000_000;

impl Shards {
    /// Gives this core storage. Without it durable shards are refused.
    pub fn set_store(&mut self, store: Store) {
        self.store = Some(Box::new(store));
    }

    /// The storage, if there is one.
    pub fn store(&self) -> Option<&Store> {
        self.store.as_deref()
    }

    /// The same, to change it.
    pub fn store_mut(&mut self) -> Option<&mut Store> {
        self.store.as_deref_mut()
    }

    /// Takes the oldest alarm of the storage.
    pub fn take_alarm(&mut self) -> Option<Alarm> {
        self.store.as_deref_mut().and_then(Store::take_alarm)
    }

    /// More is gathered for the disk than it takes: what is published to this shard should wait where it comes from.
    pub fn is_intake_paused(&self, shard: ShardId) -> bool {
        self.store.as_deref().is_some_and(Store::is_busy)
            && self.shards.get(&shard).is_some_and(|it| it.part.is_some() && !it.is_failed())
    }

    /// A durable shard came, or its settings changed.
    pub(crate) fn put_durable(&mut self, config: ShardConfig) {
        let Some(store) = self.store.as_deref_mut() else { return };
        match store.opening.get_mut(&config.shard) {
            Some(opening) => opening.config = config,
            None => store.begin_open(config),
        }
    }

    /// The shard an event is for is still opening: the event waits, or is answered if nothing will come of it.
    pub(crate) fn keep_for_opening(&mut self, event: Event, effects: &mut Effects) -> Option<Event> {
        let Some(store) = self.store.as_deref_mut().filter(|it| !it.opening.is_empty()) else { return Some(event) };
        let id = match &event {
            Event::ChannelOpened { shard, .. }
            | Event::Published { shard, .. }
            | Event::Attached { shard, .. }
            | Event::Detached { shard, .. }
            | Event::Fetched { shard, .. } => *shard,
            Event::ShardPut(_) | Event::ShardRemoved { .. } | Event::MeshHasRoom { .. } | Event::Ticked => {
                return Some(event);
            }
        };
        let Some(opening) = store.opening.get_mut(&id) else { return Some(event) };
        if !opening.is_settled() {
            opening.waiting.push(event);
            return None;
        }
        refuse(event, opening.refusal(), effects)
    }

    /// A durable shard is taken away. True: it was one.
    pub(crate) fn remove_durable(&mut self, id: ShardId) -> bool {
        let Some(store) = self.store.as_deref_mut() else { return false };
        let Some(opening) = store.opening.get_mut(&id) else { return false };
        opening.is_removed = true;
        if opening.is_settled() {
            // Its files stay as they are, for whoever wants to know what was wrong with them.
            if let Some(opening) = store.opening.remove(&id) {
                store.slots.give_back(opening.slot);
            }
        }
        true
    }

    /// A completion of one of this core's requests.
    pub fn on_disk_done(&mut self, now: Now, done: DiskDone, effects: &mut Effects) {
        let Shards { shards, store, pool, limits, .. } = self;
        let Some(store) = store.as_deref_mut() else { return };
        let slot = Slot(done.ticket.owner());
        match store.slots.get(slot) {
            Use::Wal => {
                store.wal.on_done(now.time, done);
                self.advance(effects);
            }
            Use::Shard(id) if store.opening.contains_key(&id) => {
                store.on_opening_done(now, id, done, limits);
                self.finish_openings(now, effects);
            }
            Use::Shard(id) if store.leaving.contains_key(&id) => store.on_leaving_done(now, id, done),
            Use::Shard(id) => {
                if let Some(shard) = shards.get_mut(&id) {
                    store.on_shard_done(now, shard, done, pool);
                    store.poll_readers_of(now, shard, pool, limits, effects);
                    store.poll_compaction(now, shard);
                    self.after(now, id);
                }
            }
            Use::Compaction(id) if store.leaving.contains_key(&id) => store.on_abandoned_done(id, done),
            Use::Compaction(id) => {
                if let Some(shard) = shards.get_mut(&id) {
                    store.on_compaction_done(now, shard, done);
                    self.after(now, id);
                }
            }
            Use::Reader(index) => match store.history.shard_of(index) {
                Some(id) if store.leaving.contains_key(&id) => store.on_leaving_reader_done(index, done),
                Some(id) => {
                    if let Some(shard) = shards.get_mut(&id) {
                        store.on_reader_done(now, index, done, shard, pool, limits, effects);
                    }
                }
                None => {}
            },
            Use::Sweep => {
                let ended = store.sweep.as_mut().and_then(|(_, sweep)| sweep.handle(done, &mut store.queue));
                if let Some(ended) = ended {
                    if let Some((slot, _)) = store.sweep.take() {
                        store.slots.give_back(slot);
                    }
                    if let Ok(report) = ended {
                        store.counters.swept_files += report.removed.len() as u64;
                        if !report.removed.is_empty() {
                            store.wal.space_returned();
                            store.flush_after = now.time;
                        }
                    }
                }
            }
            Use::Free => debug_assert!(false, "a completion for nobody"),
        }
    }

    /// Acks and commits what the WAL has made durable, or refuses all that waits if it failed.
    fn advance(&mut self, effects: &mut Effects) {
        let Shards { shards, store, .. } = self;
        let Some(store) = store.as_deref_mut() else { return };
        let durable = store.wal.durable();
        while let Some(Pending { shard, to, ack, .. }) = store.pending.pop_front_if(|it| it.lsn <= durable) {
            match shards.get_mut(&shard) {
                Some(shard) => shard.on_durable(to, ack, effects),
                None => {
                    if let Some(ack) = ack {
                        effects.push(ack.refused(ErrorCode::StreamGone));
                    }
                }
            }
        }
        if store.tell_poison() {
            for ack in std::mem::take(&mut store.pending).into_iter().filter_map(|it| it.ack) {
                effects.push(ack.refused(ErrorCode::StorageFailed));
            }
            for part in shards.values_mut().filter_map(|it| it.part.as_mut()) {
                part.wal_failed = true;
            }
        }
    }

    fn finish_openings(&mut self, now: Now, effects: &mut Effects) {
        let Some(store) = self.store.as_deref_mut() else { return };
        // With a full disk there may be no WAL file; reads need none.
        let wal_there = store.wal.is_ready() || store.wal.is_full() || store.wal.poison().is_some();
        if !wal_there {
            return;
        }
        for id in std::mem::take(&mut store.opened) {
            self.finish_opening(now, id, effects);
        }
    }

    fn finish_opening(&mut self, now: Now, id: ShardId, effects: &mut Effects) {
        let Some(store) = self.store.as_deref_mut() else { return };
        let Some(mut opening) = store.opening.remove(&id) else { return };
        if !opening.is_ready() && !opening.is_settled() {
            // It was to be tried again, and is, since it came onto the list.
            store.opening.insert(id, opening);
            return;
        }
        let waiting = std::mem::take(&mut opening.waiting);
        match opening.stage {
            Stage::Ready { log, .. } if opening.is_removed => store.leave_unopened(id, opening.slot, Some(log)),
            Stage::Ready { log, checkpoint, dedup } => {
                let mut part = DiskPart::new(*log, &opening.config, checkpoint, store.settings.tail_bytes);
                part.wal_failed = store.wal.poison().is_some();
                if !opening.config.made {
                    store.made.push(id);
                }
                let mut shard = Shard::durable(opening.config, opening.slot, part, dedup);
                store.want_retention(&mut shard);
                store.want_compaction(&mut shard);
                self.shards.insert(id, shard);
                self.after(now, id);
            }
            _ if opening.is_removed => store.slots.give_back(opening.slot),
            stage => {
                // It stays as one that failed, so that whoever comes is told.
                opening.stage = if let Stage::Later(_) = stage { stage } else { Stage::Failed };
                store.opening.insert(id, opening);
            }
        }
        for event in waiting {
            self.handle(now, event, effects);
        }
    }

    /// What the disk is to do now; at the end of every turn, after all its events and completions.
    pub fn plan_disk(&mut self, now: Now, effects: &mut Effects, out: &mut Vec<DiskRequest>) {
        if !self.store.as_deref().is_some_and(|it| it.started) {
            return;
        }
        self.finish_openings(now, effects);
        if let Some(store) = self.store.as_deref_mut() {
            for (core, shard, sub) in store.unanswered.drain(..) {
                let result = Err(AttachRefused { code: ErrorCode::StreamGone, lineage: Lineage(0), next: Offset(0) });
                effects.push(Effect::Attach { core, shard, sub, result });
            }
            store.go_on_opening(now);
        }
        self.begin_early(now, effects);
        self.compact(now);
        self.begin_flushes(now);
        self.begin_retentions(now);
        self.close_files();
        self.serve_wishes(now, effects);
        let Some(store) = self.store.as_deref_mut() else { return };
        store.close_idle_readers(now);
        store.drive_leaving(now);
        store.begin_sweep(now);
        // The WAL first: somebody waits for its writes.
        store.plan_wal(now.time, out);
        out.extend(store.queue.drain());
        store.tell_full();
    }

    /// Metas say that their shards show batches early, before they do. Then all that waited is answered first.
    fn begin_early(&mut self, now: Now, effects: &mut Effects) {
        let Shards { shards, store, .. } = self;
        let Some(store) = store.as_deref_mut() else { return };
        let mut wanted = std::mem::take(&mut store.early_wanted);
        wanted.retain(|id| {
            let Some(shard) = shards.get_mut(id) else { return false };
            let Some(part) = shard.part.as_ref() else { return false };
            if part.failed().is_some() {
                return false;
            }
            if part.checkpoint.shows_early {
                return !shard.show_early(&mut store.pending, effects);
            }
            if part.is_idle() && now.time >= store.flush_after {
                let checkpoint = Checkpoint { shows_early: true, ..part.checkpoint };
                store.save_checkpoint(shard, checkpoint);
            }
            // Until it is saved, or again if a full disk kept it from being.
            true
        });
        store.early_wanted = wanted;
    }

    fn begin_flushes(&mut self, now: Now) {
        let Shards { shards, store, .. } = self;
        let Some(store) = store.as_deref_mut() else { return };
        if store.flush_wanted.is_empty() && store.flushing == 0 {
            store.room.on_nothing_waits();
        }
        if store.wal.poison().is_some() || now.time < store.flush_after {
            return;
        }
        let mut listed = store.flush_wanted.len();
        while store.flushing < store.settings.flushes_max && listed > 0 {
            listed -= 1;
            let Some(id) = store.flush_wanted.pop_front() else { break };
            let Some(shard) = shards.get_mut(&id) else { continue };
            let Some(part) = &mut shard.part else { continue };
            if part.can_flush() {
                part.flush_listed = false;
                store.flush(now, shard);
            } else if part.takes_flushes() && part.unflushed_bytes > 0 {
                // A job runs, or the WAL is not as far yet.
                store.flush_wanted.push_back(id);
            } else {
                part.flush_listed = false;
            }
        }
        let short = store.unflushed_bytes * 2 > store.settings.unflushed_bytes_max;
        if !(store.wal.wants_flush() || short) {
            return;
        }
        while store.flushing < store.settings.flushes_max {
            // Those that pin the oldest file of the WAL, but for who cannot: a job runs, or the shard failed.
            let can =
                |id: &ShardId| shards.get(id).and_then(|it| it.part.as_ref()).is_some_and(|part| part.can_flush());
            // If memory is short, also the largest, wherever in the WAL it begins: those before it may never get further.
            let largest = || {
                let parts = shards.iter().filter_map(|(id, it)| Some((it.part.as_ref()?, *id)));
                let able = parts.filter(|(part, _)| part.can_flush()).max_by_key(|(part, _)| part.unflushed_bytes);
                able.map(|(_, id)| id)
            };
            let id = store.wal.pins().map(|(id, _)| id).find(can).or_else(|| if short { largest() } else { None });
            let Some(id) = id else { return };
            let before = store.flushing;
            if let Some(shard) = shards.get_mut(&id) {
                store.flush(now, shard);
            }
            if store.flushing == before {
                // It failed just now, and was told; the next turn finds another.
                return;
            }
        }
    }

    /// Before flushes: a switch needs the log for itself, and a shard that is written to without a pause always has a flush
    /// that waits.
    fn compact(&mut self, now: Now) {
        let Shards { shards, store, .. } = self;
        let Some(store) = store.as_deref_mut() else { return };
        if let Some(id) = store.compaction_to_drive(now)
            && let Some(shard) = shards.get_mut(&id)
        {
            store.drive_compaction(now, shard);
            self.after(now, id);
            return;
        }
        let mut listed = store.compact_wanted.len();
        while listed > 0 && store.may_compact(now) {
            listed -= 1;
            let Some(id) = store.compact_wanted.pop_front() else { break };
            let Some(shard) = shards.get_mut(&id) else { continue };
            let Some(part) = &mut shard.part else { continue };
            part.compact_listed = false;
            if !store.begin_compaction(now, shard) {
                store.want_compaction(shard);
            }
        }
    }

    /// A descriptor for each shard that was ever flushed would be too many.
    fn close_files(&mut self) {
        let Shards { shards, store, .. } = self;
        let Some(store) = store.as_deref_mut() else { return };
        let mut over = store.with_files.len().saturating_sub(store.settings.files_max);
        while over > 0
            && let Some(id) = store.with_files.pop_front()
        {
            over -= 1;
            let Some(part) = shards.get_mut(&id).and_then(|it| it.part.as_mut()) else { continue };
            if !part.is_idle() {
                store.with_files.push_back(id);
                continue;
            }
            part.file_listed = false;
            if part.log.close_file(&mut store.queue) == Ok(true) {
                part.work = Work::CloseFile;
                store.flushing += 1;
            }
        }
    }

    fn begin_retentions(&mut self, now: Now) {
        let Shards { shards, store, has_aging, .. } = self;
        let Some(store) = store.as_deref_mut() else { return };
        if now.time >= store.next_retention {
            store.next_retention = now.time.after_ns(store.settings.retention_interval_ns);
            let aging = if *has_aging { Some(shards.values_mut()) } else { None };
            for shard in aging.into_iter().flatten() {
                let aged = shard.config.retention_age_ns.is_some();
                let Some(part) = shard.part.as_mut() else { continue };
                let has_data = !part.log.segments().is_empty() || part.log.open_since().is_some();
                if aged && has_data && !part.retain_listed {
                    part.retain_listed = true;
                    store.retain_wanted.push_back(shard.config.shard);
                }
            }
        }
        let mut listed = store.retain_wanted.len();
        while store.flushing < store.settings.flushes_max && listed > 0 {
            listed -= 1;
            let Some(id) = store.retain_wanted.pop_front() else { break };
            let Some(shard) = shards.get_mut(&id) else { continue };
            let Some(part) = &mut shard.part else { continue };
            if part.is_idle() {
                part.retain_listed = false;
                store.begin_retention(now, shard);
            } else {
                store.retain_wanted.push_back(id);
            }
        }
    }

    fn serve_wishes(&mut self, now: Now, effects: &mut Effects) {
        let Shards { shards, store, pool, limits, .. } = self;
        let Some(store) = store.as_deref_mut() else { return };
        while let Some(wanted) = store.next_wish(now) {
            if let Some(shard) = shards.get_mut(&wanted.shard) {
                store.begin_reader(now, shard, wanted, pool, limits, effects);
            }
        }
    }

    /// History that memory does not have.
    pub(crate) fn want_history(&mut self, now: Now, wanted: Wanted, effects: &mut Effects) {
        let Shards { shards, store, pool, limits, .. } = self;
        if let (Some(shard), Some(store)) = (shards.get_mut(&wanted.shard), store.as_deref_mut()) {
            store.want(now, shard, wanted, pool, limits, effects);
        }
    }

    /// Room on the disk, see `Store::set_room` and `Store::set_space_is_short`.
    pub fn on_space(&mut self, room: u64, is_short: bool) {
        if let Some(store) = self.store.as_deref_mut() {
            store.set_room(room);
            store.set_space_is_short(is_short);
        }
    }

    /// When `plan_disk` wants to run though nothing happens.
    pub fn disk_deadline(&self, now: Time) -> Option<Time> {
        let store = self.store.as_deref().filter(|it| it.started)?;
        let idle = store.history.next_deadline(now, store.settings.reader_idle_ns);
        let ages = self.has_aging.then_some(store.next_retention);
        // A time that has passed is no reason to come back: what is wanted then waits for a completion.
        let waits = !store.flush_wanted.is_empty() || !store.early_wanted.is_empty();
        let full = (waits && store.flush_after > now).then_some(store.flush_after);
        let sweep = store.settings.sweeps.then_some(store.next_sweep);
        let wanted = !store.compact_wanted.is_empty();
        let compaction = store.compactor.next_deadline(wanted).filter(|_| !store.closing);
        let later = store.open_later.front().map(|(due, _)| *due);
        let leaving = store.leaving_deadline();
        [store.wal.next_deadline(), idle, ages, full, sweep, compaction, later, leaving].into_iter().flatten().min()
    }

    /// Writes what is gathered, syncs and seals. `Store::is_closed` says when that is done; `plan_disk` and
    /// `on_disk_done` go on until then.
    pub fn shut_down_disk(&mut self) {
        if let Some(store) = self.store.as_deref_mut() {
            store.closing = true;
            store.wal.shutdown();
        }
    }
}

impl Store {
    fn begin_sweep(&mut self, now: Now) {
        if !self.settings.sweeps || self.sweep.is_some() || now.time < self.next_sweep {
            return;
        }
        let (every, grace) = match self.space_is_short || now.time < self.flush_after {
            true => (SWEEP_SHORT_NS, 0),
            false => (SWEEP_INTERVAL_NS.min(self.settings.quarantine_grace_ns), self.settings.quarantine_grace_ns),
        };
        self.next_sweep = now.time.after_ns(every);
        let slot = self.slots.take(Use::Sweep);
        let sweep = QuarantineSweep::new(slot, now.wall, grace, &mut self.queue);
        self.sweep = Some((slot, sweep));
    }
}

/// Answers an event of a shard that did not open.
fn refuse(event: Event, code: ErrorCode, effects: &mut Effects) -> Option<Event> {
    match event {
        Event::ChannelOpened { channel, .. } => {
            effects.push(Effect::OpenChannel { channel, result: Err(code) });
        }
        Event::Attached { core, shard, sub, .. } => {
            let result = Err(AttachRefused { code, lineage: Lineage(0), next: Offset(0) });
            effects.push(Effect::Attach { core, shard, sub, result });
        }
        other => return Some(other),
    }
    None
}

/// Whether a wish is for history: memory does not hold it.
pub(crate) fn history_wish(shard: &Shard, wish: Wish) -> bool {
    shard.part.is_some()
        && match wish {
            Wish::Batches(from) => from < shard.memory_start() && shard.log_start() < shard.memory_start(),
            Wish::Start(time) => shard.log_start() < shard.memory_start() && !shard.memory_reaches_back_to(time),
        }
}
