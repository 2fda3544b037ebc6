//! **What**: one shard's leader, the path of a publish from top to bottom:
//!
//! ```text
//! on_published -> append -> (replicate: alone) -> advance_high_watermark -> ack, and commit to every attached core
//! ```
//!
//! **Invariants**: `log_start <= high_watermark <= log_end`. Every attached core has a cursor: what it was sent ends
//! there, and a core whose mesh ring was full is resumed from there, so that fullness never loses or reorders.
//!
//! **Never**: work proportional to subscribers: a core gets one copy however many it has.
//!
//! **See**: `append.rs` for the first stage, `fan_out.rs` for the other side of a commit.

use crate::append::{Appended, append};
use crate::batch_pool::{BatchPool, CheckedBatch};
use crate::dedup::Dedup;
use crate::effect::{Ack, AttachRefused, AttachState, ChannelState, Effect, Effects, RESUME_BATCHES_MAX};
use crate::event::{ChannelKey, ShardConfig, SubKey};
use crate::limits::Limits;
use crate::memory_log::MemoryLog;
use crate::store::part::DiskPart;
use crate::store::{EARLY_OFFSETS_MAX, Pending, PendingAck, Store};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::Start;
use felix_protocol::ids::{CoreId, ProducerEpoch, ProducerId};
use felix_protocol::position::Offset;
use felix_protocol::time::{Now, Timestamp};
use felix_wal::queue::Slot;
use std::collections::VecDeque;

/// What a shard counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardCounters {
    /// Records appended.
    pub records_in: u64,
    /// Bytes of batches appended.
    pub bytes_in: u64,
    /// Batches that were retries.
    pub duplicates: u64,
    /// Batches refused.
    pub refused: u64,
    /// Batches that retention let go.
    pub evicted: u64,
}

#[derive(Clone, Copy, Debug)]
struct AttachedCore {
    core: CoreId,
    /// One past what this core was sent.
    sent: Offset,
    /// The mesh to it was full; it waits for room.
    stalled: bool,
}

/// One shard's leader.
#[derive(Debug)]
pub struct Shard {
    pub(crate) config: ShardConfig,
    pub(crate) log: MemoryLog,
    pub(crate) dedup: Dedup,
    pub(crate) chain: u64,
    pub(crate) last_append: Timestamp,
    pub(crate) counters: ShardCounters,
    /// Segments and WAL; None: it is ephemeral.
    pub(crate) part: Option<Box<DiskPart>>,
    /// Whose disk completions are its.
    pub(crate) slot: Slot,
    high_watermark: Offset,
    attached: Vec<AttachedCore>,
    /// Something changed since the last report.
    pub(crate) touched: bool,
    pub(crate) on_touched_list: bool,
    /// When time alone may change it next; it is on the tick list for then.
    pub(crate) tick_at: Option<Timestamp>,
    /// Cores (a bit each) in whose list of stalled shards it is.
    pub(crate) stalled_for: u64,
}

impl Shard {
    /// An empty shard.
    pub fn new(config: ShardConfig) -> Shard {
        Shard {
            config,
            log: MemoryLog::default(),
            dedup: Dedup::default(),
            chain: 0,
            last_append: Timestamp(0),
            counters: ShardCounters::default(),
            part: None,
            slot: Slot(0),
            high_watermark: Offset(0),
            attached: Vec::new(),
            touched: true,
            on_touched_list: false,
            tick_at: None,
            stalled_for: 0,
        }
    }

    /// A durable shard whose segments were opened.
    pub(crate) fn durable(config: ShardConfig, slot: Slot, part: DiskPart, dedup: Dedup) -> Shard {
        let cursor = part.log.cursor();
        Shard {
            log: MemoryLog::starting_at(cursor.next),
            dedup,
            chain: cursor.chain,
            last_append: cursor.time,
            high_watermark: cursor.next,
            part: Some(Box::new(part)),
            slot,
            ..Shard::new(config)
        }
    }

    /// What it is made of.
    pub fn config(&self) -> &ShardConfig {
        &self.config
    }

    /// First offset kept.
    pub fn log_start(&self) -> Offset {
        self.part.as_ref().map_or(self.log.log_start(), |part| part.log.log_start())
    }

    /// First offset in memory.
    pub(crate) fn memory_start(&self) -> Offset {
        self.log.log_start()
    }

    /// One past the last committed offset.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Bytes kept.
    pub fn retained_bytes(&self) -> u64 {
        match &self.part {
            None => self.log.bytes() as u64,
            Some(part) => part.log.stored_bytes() + part.unflushed_bytes as u64,
        }
    }

    /// A failed write or damage: it takes nothing more.
    pub fn is_failed(&self) -> bool {
        self.part.as_ref().is_some_and(|part| part.failed().is_some())
    }

    /// Bytes of batches in memory, whether segments have them or not.
    pub fn memory_bytes(&self) -> usize {
        self.log.bytes() + self.log.held_bytes()
    }

    /// Bytes let go that other cores still hold.
    pub fn held_bytes(&self) -> usize {
        self.log.held_bytes()
    }

    /// Cores that are sent its commits.
    pub fn attached(&self) -> impl Iterator<Item = CoreId> + '_ {
        self.attached.iter().map(|it| it.core)
    }

    /// What it counted.
    pub fn counters(&self) -> &ShardCounters {
        &self.counters
    }

    /// New settings; identity and data stay.
    pub fn on_config(&mut self, config: ShardConfig) {
        let identity = |it: &ShardConfig| (it.shard, it.stream, it.lineage);
        assert_eq!(identity(&config), identity(&self.config), "another incarnation needs another shard");
        assert!(config.epoch >= self.config.epoch, "the leader's epoch never goes back");
        self.config = config;
        self.touched = true;
    }

    /// A channel wants to know where its producer goes on.
    pub fn on_channel_opened(
        &self,
        channel: ChannelKey,
        producer: ProducerId,
        epoch: ProducerEpoch,
        effects: &mut Effects,
    ) {
        let result = match self.dedup.next_sequence(producer, epoch) {
            Some(next_sequence) => Ok(ChannelState {
                stream: self.config.stream,
                shard: self.config.shard,
                lineage: self.config.lineage,
                epoch: self.config.epoch,
                next_sequence,
            }),
            None => Err(ErrorCode::ProducerFenced),
        };
        effects.push(Effect::OpenChannel { channel, result });
    }

    /// A batch arrived. `store` is needed by durable shards.
    #[allow(clippy::too_many_arguments, reason = "the parts of a core that an append touches")]
    pub fn on_published(
        &mut self,
        now: Now,
        channel: ChannelKey,
        batch: CheckedBatch,
        mut store: Option<&mut Store>,
        pool: &mut BatchPool,
        limits: &Limits,
        effects: &mut Effects,
    ) {
        let facts = *batch.facts();
        let appended = match self.part.as_ref().and_then(|part| part.failed()) {
            // Also of what is durable already: after a failure nothing is acknowledged any more.
            Some(code) => {
                pool.put_back(batch);
                Appended::Refused(code)
            }
            None => append(self, now, batch, store.as_deref_mut(), pool, limits),
        };
        let (base_offset, lsn) = match appended {
            Appended::New(base_offset, lsn) => {
                self.retain(now, pool);
                self.touched = true;
                (base_offset, lsn)
            }
            Appended::Duplicate(base_offset) => (base_offset, None),
            Appended::Refused(code) => {
                self.counters.refused += 1;
                effects.push(Effect::Refuse {
                    channel,
                    base_sequence: facts.base_sequence,
                    record_count: facts.record_count,
                    code,
                });
                return;
            }
        };
        let to = Offset(base_offset.0 + u64::from(facts.record_count));
        let mut ack = Some(PendingAck {
            channel,
            base_sequence: facts.base_sequence,
            record_count: facts.record_count,
            base_offset,
        });
        // Alone in its replica set: what is appended is replicated. Who does not wait for the disk is answered now.
        if self.part.as_ref().is_none_or(|part| part.is_early() || to <= part.durable_to) {
            self.advance_high_watermark(to, effects);
            self.ack(ack.take().expect("it is there"), effects);
        }
        // The WAL has its own order: a retry of what is not durable yet waits for all that was appended before it.
        if let (Some(store), Some(_)) = (store, &self.part)
            && (lsn.is_some() || ack.is_some())
        {
            let lsn = lsn.unwrap_or(store.wal.appended());
            store.pending.push_back(Pending { lsn, shard: self.config.shard, to, ack });
        }
    }

    /// The WAL has made everything below `to` durable.
    pub(crate) fn on_durable(&mut self, to: Offset, ack: Option<PendingAck>, effects: &mut Effects) {
        let Some(part) = &mut self.part else { return };
        part.durable_to = part.durable_to.max(to);
        self.advance_high_watermark(to, effects);
        if let Some(ack) = ack {
            self.ack(ack, effects);
        }
    }

    /// From now on batches are shown and answered before they are durable, those that wait first. False: too much waits that
    /// is not durable; not yet.
    pub(crate) fn show_early(&mut self, pending: &mut VecDeque<Pending>, effects: &mut Effects) -> bool {
        let Some(part) = &mut self.part else { return true };
        let end = self.log.log_end();
        if end.0 - part.durable_to.0 > EARLY_OFFSETS_MAX {
            return false;
        }
        part.shows = true;
        self.advance_high_watermark(end, effects);
        let id = self.config.shard;
        for ack in pending.iter_mut().filter(|it| it.shard == id).filter_map(|it| it.ack.take()) {
            self.ack(ack, effects);
        }
        true
    }

    fn ack(&self, ack: PendingAck, effects: &mut Effects) {
        let PendingAck { channel, base_sequence, record_count, base_offset } = ack;
        effects.push(Effect::Ack {
            channel,
            ack: Ack {
                base_sequence,
                record_count,
                base_offset,
                lineage: self.config.lineage,
                epoch: self.config.epoch,
                durability: self.config.durability,
            },
        });
    }

    fn advance_high_watermark(&mut self, to: Offset, effects: &mut Effects) {
        let from = self.high_watermark;
        if to <= from {
            return;
        }
        self.high_watermark = to;
        self.touched = true;
        for attached in self.attached.iter_mut().filter(|it| !it.stalled) {
            debug_assert_eq!(attached.sent, from);
            for batch in self.log.read(from).take_while(|batch| batch.range().from < to) {
                effects.push(Effect::Commit { core: attached.core, shard: self.config.shard, batch: batch.clone() });
            }
            attached.sent = to;
        }
    }

    /// A `Commit` of a batch that begins at `offset` found the mesh full: nothing more goes to that core until it has
    /// room. Later commits of the same turn are refused too and end here. A commit that the cursor never passed is of an
    /// attachment that ended, and ends here for good.
    pub fn on_commit_refused(&mut self, core: CoreId, offset: Offset) {
        if let Some(attached) = self.attached.iter_mut().find(|it| it.core == core && offset < it.sent) {
            attached.sent = offset;
            attached.stalled = true;
        }
    }

    /// What a core's next commit begins with.
    fn commits_from(&self, core: CoreId) -> Offset {
        self.attached.iter().find(|it| it.core == core).map_or(self.high_watermark, |it| it.sent)
    }

    /// The mesh has room: go on from where the core's cursor is. Returns true if it must be called again.
    /// What retention took meanwhile is skipped; the fan-out there sees the jump and applies each subscriber's policy.
    pub fn on_mesh_has_room(&mut self, core: CoreId, effects: &mut Effects) -> bool {
        let Some(attached) = self.attached.iter_mut().find(|it| it.core == core && it.stalled) else { return false };
        attached.stalled = false;
        let high_watermark = self.high_watermark;
        let mut batches = self.log.read(attached.sent).take_while(|batch| batch.range().from < high_watermark);
        for batch in batches.by_ref().take(RESUME_BATCHES_MAX) {
            attached.sent = batch.range().to;
            effects.push(Effect::Commit { core, shard: self.config.shard, batch: batch.clone() });
        }
        if batches.next().is_some() {
            attached.stalled = true;
            return true;
        }
        attached.sent = self.high_watermark;
        false
    }

    /// A core asks for a subscription's start, and from now on for everything committed.
    pub fn on_attached(&mut self, core: CoreId, sub: SubKey, start: Start, effects: &mut Effects) {
        let refused = |code, next| AttachRefused { code, lineage: self.config.lineage, next };
        let start = match start {
            Start::Earliest => Ok(self.log_start()),
            Start::Latest => Ok(self.high_watermark),
            Start::Time(time) => Ok(self.find_time_in_memory(time)),
            Start::Position(at) if at.lineage.0 != 0 && at.lineage != self.config.lineage => {
                Err(refused(ErrorCode::LineageReset, self.log_start()))
            }
            Start::Position(at) if at.offset > self.high_watermark => {
                Err(refused(ErrorCode::OffsetInFuture, self.high_watermark))
            }
            Start::Position(at) => Ok(at.offset),
        };
        let result = start.map(|start| AttachState {
            stream: self.config.stream,
            lineage: self.config.lineage,
            epoch: self.config.epoch,
            start,
            log_start: self.log_start(),
            high_watermark: self.high_watermark,
            commits_from: self.commits_from(core),
        });
        if result.is_ok() && !self.attached.iter().any(|it| it.core == core) {
            self.attached.push(AttachedCore { core, sent: self.high_watermark, stalled: false });
        }
        effects.push(Effect::Attach { core, shard: self.config.shard, sub, result });
    }

    /// First offset in memory appended at or after `time`.
    pub(crate) fn find_time_in_memory(&self, time: Timestamp) -> Offset {
        self.log.find_time(time).min(self.high_watermark)
    }

    /// Memory holds a batch older than `time`, so the first one at or after it is there too.
    pub(crate) fn memory_reaches_back_to(&self, time: Timestamp) -> bool {
        self.log.oldest_time().is_some_and(|oldest| oldest < time)
    }

    /// A core has no subscriber any more.
    pub fn on_detached(&mut self, core: CoreId) {
        self.attached.retain(|it| it.core != core);
    }

    /// Answers a reader of history with what memory holds of it.
    pub fn fetch_from_memory(&self, core: CoreId, sub: SubKey, from: Offset, limits: &Limits, effects: &mut Effects) {
        let mut batches = Vec::new();
        let mut bytes = 0;
        let visible = self.log.read(from).take_while(|batch| batch.range().from < self.high_watermark);
        for batch in visible.take(limits.fetch_batches_max) {
            if bytes > 0 && bytes + batch.bytes().len() > limits.fetch_bytes_max {
                break;
            }
            bytes += batch.bytes().len();
            batches.push(batch.clone());
        }
        effects.push(Effect::Fetch {
            core,
            shard: self.config.shard,
            sub,
            batches,
            high_watermark: self.high_watermark,
        });
    }

    /// The shard is taken away: its subscribers are told.
    pub fn on_removed(&mut self, pool: &mut BatchPool, effects: &mut Effects) {
        for attached in self.attached.drain(..) {
            effects.push(Effect::Gone { core: attached.core, shard: self.config.shard });
        }
        self.log.clear(pool);
    }

    /// Lets go of what is over the bounds and takes memory back.
    pub fn retain(&mut self, now: Now, pool: &mut BatchPool) {
        if self.part.is_some() {
            // Age and size are the segments' business; memory goes when they have it.
            return self.let_flushed_go(pool);
        }
        let older_than = self.config.retention_age_ns.map(|age| now.wall.saturating_sub_ns(age));
        let evicted = self.log.retain(self.config.retention_bytes, older_than, pool);
        self.counters.evicted += evicted as u64;
        self.touched |= evicted > 0;
        self.log.reclaim(pool, 4 + evicted);
    }

    /// Lets go of batches that are in segments and were sent to every core, but for the newest bytes, which readers near
    /// the end want; `EVICT_BATCHES_MAX` at a time, the rest at the next ticks.
    pub(crate) fn let_flushed_go(&mut self, pool: &mut BatchPool) {
        let Some(part) = &self.part else { return };
        let evicted = self.log.evict_below(self.sent_and_flushed(part), part.tail_bytes, pool);
        self.log.reclaim(pool, 4 + evicted);
    }

    fn sent_and_flushed(&self, part: &DiskPart) -> Offset {
        self.attached.iter().map(|it| it.sent).fold(part.log.flushed_to(), Offset::min)
    }

    fn may_let_flushed_go(&self, part: &DiskPart) -> bool {
        self.log.may_evict_below(self.sent_and_flushed(part), part.tail_bytes)
    }

    /// When time alone may change it: its oldest batch ages, or, at the next look, it lets go of more or gets memory
    /// back. None: it is idle.
    pub fn tick_due(&self, now: Now) -> Option<Timestamp> {
        if let Some(part) = &self.part {
            return (self.log.held_bytes() > 0 || self.may_let_flushed_go(part)).then_some(now.wall);
        }
        if self.log.held_bytes() > 0 || self.log.is_over(self.config.retention_bytes) {
            return Some(now.wall);
        }
        let oldest = self.log.oldest_time()?;
        self.config.retention_age_ns.map(|age| oldest.saturating_add_ns(age).saturating_add_ns(1))
    }

    pub(crate) fn is_stalled(&self, core: CoreId) -> bool {
        self.attached.iter().any(|it| it.core == core && it.stalled)
    }

    pub(crate) fn check(&self) {
        self.log.check();
        if let Some(part) = &self.part {
            part.check(self.log.log_end());
            assert!(self.log.log_start() <= part.log.flushed_to(), "memory and segments leave a hole");
            assert!(part.is_early() || self.high_watermark == part.durable_to, "visible before it is durable");
        }
        assert!(self.log_start() <= self.high_watermark && self.high_watermark <= self.log.log_end());
        for attached in &self.attached {
            assert!(attached.sent <= self.high_watermark);
            assert!(attached.stalled || attached.sent == self.high_watermark);
        }
    }
}

#[cfg(test)]
mod tests;
