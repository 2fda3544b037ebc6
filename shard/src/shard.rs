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
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::Start;
use felix_protocol::ids::{CoreId, ProducerEpoch, ProducerId, Sequence};
use felix_protocol::position::Offset;
use felix_protocol::time::{Now, Timestamp};

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
            high_watermark: Offset(0),
            attached: Vec::new(),
            touched: true,
            on_touched_list: false,
            tick_at: None,
            stalled_for: 0,
        }
    }

    /// What it is made of.
    pub fn config(&self) -> &ShardConfig {
        &self.config
    }

    /// First offset kept.
    pub fn log_start(&self) -> Offset {
        self.log.log_start()
    }

    /// One past the last committed offset.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Bytes kept.
    pub fn retained_bytes(&self) -> usize {
        self.log.bytes()
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

    /// A batch arrived.
    pub fn on_published(
        &mut self,
        now: Now,
        channel: ChannelKey,
        batch: CheckedBatch,
        pool: &mut BatchPool,
        limits: &Limits,
        effects: &mut Effects,
    ) {
        let facts = *batch.facts();
        match append(self, now, batch, pool, limits) {
            Appended::New(base_offset) => {
                // Alone in its replica set: what is appended is replicated, and an ephemeral stream has nothing to sync.
                self.advance_high_watermark(effects);
                self.ack(channel, facts.base_sequence, facts.record_count, base_offset, effects);
                self.retain(now, pool);
                self.touched = true;
            }
            Appended::Duplicate(base_offset) => {
                self.ack(channel, facts.base_sequence, facts.record_count, base_offset, effects);
            }
            Appended::Refused(code) => {
                self.counters.refused += 1;
                effects.push(Effect::Refuse {
                    channel,
                    base_sequence: facts.base_sequence,
                    record_count: facts.record_count,
                    code,
                });
            }
        }
    }

    fn ack(
        &self,
        channel: ChannelKey,
        base_sequence: Sequence,
        record_count: u32,
        base_offset: Offset,
        effects: &mut Effects,
    ) {
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

    fn advance_high_watermark(&mut self, effects: &mut Effects) {
        let from = self.high_watermark;
        self.high_watermark = self.log.log_end();
        for attached in self.attached.iter_mut().filter(|it| !it.stalled) {
            debug_assert_eq!(attached.sent, from);
            for batch in self.log.read(from) {
                effects.push(Effect::Commit { core: attached.core, shard: self.config.shard, batch: batch.clone() });
            }
            attached.sent = self.high_watermark;
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
        let mut batches = self.log.read(attached.sent);
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
            Start::Time(time) => Ok(self.log.find_time(time)),
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

    /// A core has no subscriber any more.
    pub fn on_detached(&mut self, core: CoreId) {
        self.attached.retain(|it| it.core != core);
    }

    /// A subscription reads history.
    pub fn on_fetched(&self, core: CoreId, sub: SubKey, from: Offset, limits: &Limits, effects: &mut Effects) {
        let mut batches = Vec::new();
        let mut bytes = 0;
        for batch in self.log.read(from).take(limits.fetch_batches_max) {
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
        let older_than = self.config.retention_age_ns.map(|age| now.wall.saturating_sub_ns(age));
        let evicted = self.log.retain(self.config.retention_bytes, older_than, pool);
        self.counters.evicted += evicted as u64;
        self.touched |= evicted > 0;
        self.log.reclaim(pool, 4 + evicted);
    }

    /// When time alone may change it: its oldest batch ages, or, at the next look, it lets go of more or gets memory
    /// back. None: it is idle.
    pub fn tick_due(&self, now: Now) -> Option<Timestamp> {
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
        assert!(self.log.log_start() <= self.high_watermark && self.high_watermark <= self.log.log_end());
        for attached in &self.attached {
            assert!(attached.sent <= self.high_watermark);
            assert!(attached.stalled || attached.sent == self.high_watermark);
        }
    }
}

#[cfg(test)]
mod tests;
