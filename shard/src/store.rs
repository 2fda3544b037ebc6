//! **What**: the storage of one core's durable shards: its WAL, the queue of disk requests, who waits for which sync, the
//! readers of history, the shards on their way in and out.
//!
//! ```text
//! append -> WAL entry, pending ack -> [write, sync] -> on_durable: high watermark, commits, acks
//!        -> write-behind (flush.rs): segment, meta -> WAL file free     history (history.rs): segments -> batches
//! ```
//!
//! **Invariants**: an ack of `each` and `group` is made only when the WAL says that its entry is durable. `pending` is in
//! the order of entries. What is in memory and not in segments stays in memory, within `unflushed_bytes_max`. A slot names
//! one planner for as long as something of it is under way.
//!
//! **Never**: an ack after a failed write or sync of this core's WAL. A clock, a file.
//!
//! **See**: `durable.rs`, which drives it; `felix_wal`'s DESIGN.md for the order of things on disk.

pub(crate) mod compact;
pub(crate) mod flush;
pub(crate) mod history;
pub(crate) mod keys;
pub(crate) mod leaving;
pub(crate) mod opening;
pub(crate) mod part;
pub(crate) mod room;
pub(crate) mod slots;

use crate::batch_pool::SharedBatch;
use crate::effect::Effect;
use crate::event::{ChannelKey, ShardConfig, SubKey, TenantKeys};
use compact::Compactor;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::ids::{CoreId, Sequence, ShardId};
use felix_protocol::metadata::Durability;
use felix_protocol::position::{Offset, OffsetRange};
use felix_protocol::time::{Now, Time};
use felix_wal::at_rest::{AtRestError, AtRestScope, DataKey};
use felix_wal::chunk_builder::ChunkBuilder;
use felix_wal::compact::CompactSettings;
use felix_wal::core_wal::{AppendError, CoreWal, CoreWalSettings, Poison};
use felix_wal::disk::DiskRequest;
use felix_wal::format::entry::{Append, Entry, EntryBody, Lsn};
use felix_wal::format::names::WalId;
use felix_wal::group_commit::Commit;
use felix_wal::log::{LogSettings, Maker};
use felix_wal::quarantine::QuarantineSweep;
use felix_wal::queue::{DiskQueue, Slot};
use felix_wal::read::ReadSettings;
use history::History;
use keys::Keys;
use leaving::Leaving;
use opening::OpeningShard;
use part::DiskPart;
use room::Room;
use slots::{Slots, Use};
use std::collections::{BTreeMap, VecDeque};

/// Bounds and sizes of a core's storage.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// The WAL's.
    pub wal: CoreWalSettings,
    /// Sizes of segments; a shard with a small retention has smaller ones.
    pub log: LogSettings,
    /// Unflushed bytes of a shard beyond which it is flushed.
    pub flush_bytes: usize,
    /// Bytes flushed before the producers file is written again, at least: what a start reads of a shard to catch up.
    pub checkpoint_bytes_min: u64,
    /// Unflushed bytes of all shards beyond which appends are refused for now.
    pub unflushed_bytes_max: usize,
    /// Shards that are opened at once: each has a request or two under way.
    pub openings_max: usize,
    /// Flushes under way at once.
    pub flushes_max: usize,
    /// Bytes of the newest batches that a shard keeps in memory after they are in segments.
    pub tail_bytes: usize,
    /// Readers of history at once; who comes later waits for one of them.
    pub readers_max: usize,
    /// Shards whose open segment stays open between flushes; beyond them the one that was opened first is closed.
    pub files_max: usize,
    /// Read-ahead of one reader.
    pub read: ReadSettings,
    /// A reader that nobody used for so long is closed.
    pub reader_idle_ns: u64,
    /// After a full disk: when a flush is tried again.
    pub full_retry_ns: u64,
    /// Time between two looks at what is too old.
    pub retention_interval_ns: u64,
    /// Bounds of a compaction; its tombstone grace is the shard's.
    pub compact: CompactSettings,
    /// Read-ahead of a compaction.
    pub compact_read: ReadSettings,
    /// Bytes that compaction reads in a second at most, of all shards of the core together.
    pub compact_bytes_per_second: u64,
    /// How long files stay in quarantine.
    pub quarantine_grace_ns: u64,
    /// This core removes what was in quarantine long enough: one of a node's.
    pub sweeps: bool,
}

impl Default for StoreSettings {
    fn default() -> StoreSettings {
        StoreSettings {
            wal: CoreWalSettings::default(),
            log: LogSettings::default(),
            // Just below what one flush takes: each costs a few syncs of the file system's journal, which commits feel.
            flush_bytes: 7 << 20,
            checkpoint_bytes_min: 16 << 20,
            unflushed_bytes_max: 512 << 20,
            openings_max: 64,
            flushes_max: 2,
            tail_bytes: 1 << 20,
            readers_max: 32,
            files_max: 256,
            read: ReadSettings::default(),
            reader_idle_ns: 5_000_000_000,
            full_retry_ns: 1_000_000_000,
            retention_interval_ns: 1_000_000_000,
            compact: CompactSettings::default(),
            compact_read: ReadSettings { window_bytes: 256 << 10, windows_max: 2 },
            compact_bytes_per_second: 32 << 20,
            quarantine_grace_ns: 600_000_000_000,
            sweeps: true,
        }
    }
}

impl StoreSettings {
    /// Small files and budgets for tests: everything that takes long in life happens often.
    pub fn small() -> StoreSettings {
        StoreSettings {
            wal: CoreWalSettings::small(),
            log: LogSettings { segment_bytes: 32 << 10, extent_bytes_first: 8 << 10, extent_bytes_max: 16 << 10 },
            flush_bytes: 4 << 10,
            checkpoint_bytes_min: 6 << 10,
            unflushed_bytes_max: 1 << 20,
            openings_max: 2,
            tail_bytes: 2 << 10,
            readers_max: 3,
            files_max: 2,
            read: ReadSettings { window_bytes: 8 << 10, windows_max: 2 },
            reader_idle_ns: 50_000_000,
            full_retry_ns: 10_000_000,
            retention_interval_ns: 20_000_000,
            compact: CompactSettings {
                map_bytes_max: 1 << 10,
                group_bytes_max: 64 << 10,
                ..CompactSettings::default()
            },
            compact_read: ReadSettings { window_bytes: 8 << 10, windows_max: 2 },
            compact_bytes_per_second: 4 << 20,
            quarantine_grace_ns: 1_000_000_000,
            ..StoreSettings::default()
        }
    }
}

/// What a store counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounters {
    /// Entries of batches given to the WAL.
    pub entries: u64,
    /// Flushes that ended well.
    pub flushes: u64,
    /// Bytes of batches flushed.
    pub flushed_bytes: u64,
    /// Batches read from segments for subscribers.
    pub history_batches: u64,
    /// Bytes of those.
    pub history_bytes: u64,
    /// Batches refused because the WAL or the memory for it had no room for the moment.
    pub refused_busy: u64,
    /// Batches refused because the disk is full.
    pub refused_full: u64,
    /// Batches refused because storage failed.
    pub refused_failed: u64,
    /// Segments that retention took.
    pub retained_segments: u64,
    /// Compactions that came to their end.
    pub compactions: u64,
    /// Compactions that did not.
    pub compactions_failed: u64,
    /// Records that compaction took out.
    pub compacted_records: u64,
    /// Tombstones among them.
    pub compacted_tombstones: u64,
    /// Segments that compaction replaced.
    pub compacted_segments: u64,
    /// Files removed from quarantine.
    pub swept_files: u64,
}

/// Something that people must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// The WAL of this core takes nothing any more.
    WalPoisoned(Poison),
    /// A shard takes nothing any more; what is readable stays so.
    ShardFailed {
        /// Which.
        shard: ShardId,
        /// Why.
        why: String,
    },
    /// Offsets of a shard are damaged; it is read-only, and they are told as a gap.
    ShardDamaged {
        /// Which.
        shard: ShardId,
        /// Which offsets.
        range: OffsetRange,
        /// What was found.
        why: String,
    },
    /// The disk is full: publishers are refused until there is room.
    DiskFull,
    /// There is room again.
    DiskFreed,
    /// Records are sealed with a key that is not here, or that does not fit; they are told as a gap.
    Unopened {
        /// Which shard.
        shard: ShardId,
        /// First offset that was met.
        from: Offset,
        /// Number of the tenant's data key.
        key_id: u32,
        /// Why it did not open.
        why: AtRestError,
    },
    /// Something harmless that an operator may want to look at.
    Note {
        /// Which shard.
        shard: ShardId,
        /// What.
        what: String,
    },
}

/// Offsets that are acknowledged or shown and not synced, at most; after a crash a shard goes on behind them.
pub(crate) const EARLY_OFFSETS_MAX: u64 = 1 << 20;

/// Alarms kept until somebody takes them; beyond it the oldest go, since the newest say what is now.
const ALARMS_MAX: usize = 256;

/// An ack that waits for its entry to be durable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) lsn: Lsn,
    pub(crate) shard: ShardId,
    /// The shard's log is durable up to here once the entry is.
    pub(crate) to: Offset,
    pub(crate) ack: Option<PendingAck>,
}

/// Whom to tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingAck {
    pub(crate) channel: ChannelKey,
    pub(crate) base_sequence: Sequence,
    pub(crate) record_count: u32,
    pub(crate) base_offset: Offset,
}

impl PendingAck {
    pub(crate) fn refused(&self, code: ErrorCode) -> Effect {
        let PendingAck { channel, base_sequence, record_count, .. } = *self;
        Effect::Refuse { channel, base_sequence, record_count, code }
    }
}

/// The storage of one core's durable shards.
#[derive(Debug)]
pub struct Store {
    pub(crate) settings: StoreSettings,
    pub(crate) maker: Maker,
    pub(crate) wal: CoreWal,
    pub(crate) queue: DiskQueue,
    pub(crate) slots: Slots,
    pub(crate) builder: ChunkBuilder,
    pub(crate) keys: Keys,
    pub(crate) pending: VecDeque<Pending>,
    pub(crate) unflushed_bytes: usize,
    /// Flushes and other jobs of logs under way.
    pub(crate) flushing: usize,
    /// Shards over `flush_bytes`, each once.
    pub(crate) flush_wanted: VecDeque<ShardId>,
    /// No flush before this: the disk was full.
    pub(crate) flush_after: Time,
    /// Shards whose meta is to say that acks and readers do not wait for the disk.
    pub(crate) early_wanted: Vec<ShardId>,
    /// An earlier start did not end as it should: what was shown before it was synced may be missing.
    pub(crate) after_crash: bool,
    pub(crate) opening: BTreeMap<ShardId, OpeningShard>,
    /// Bytes of WAL files that `room` knows of.
    pub(crate) grown_told: u64,
    /// Starts of subscriptions that a shard which left did not answer.
    pub(crate) unanswered: Vec<(CoreId, ShardId, SubKey)>,
    /// Shards whose segment files were opened, oldest first.
    pub(crate) with_files: VecDeque<ShardId>,
    pub(crate) open_queue: VecDeque<ShardId>,
    /// To be tried again, in the order of their times.
    pub(crate) open_later: VecDeque<(Time, ShardId)>,
    /// Of those in `opening`: under way.
    pub(crate) opening_now: usize,
    /// Shards that have opened, or failed to, and were not taken over yet.
    pub(crate) opened: Vec<ShardId>,
    /// Shards that opened and that the metadata do not know as made; each once, until they are taken.
    pub(crate) made: Vec<ShardId>,
    pub(crate) leaving: BTreeMap<ShardId, Leaving>,
    pub(crate) history: History,
    /// Shards whose retention is to be looked at, each once.
    pub(crate) retain_wanted: VecDeque<ShardId>,
    pub(crate) next_retention: Time,
    /// Shards of which enough is new for a compaction, each once.
    pub(crate) compact_wanted: VecDeque<ShardId>,
    pub(crate) compactor: Compactor,
    pub(crate) sweep: Option<(Slot, QuarantineSweep)>,
    pub(crate) next_sweep: Time,
    /// Free space is short: quarantine is emptied at once.
    pub(crate) space_is_short: bool,
    pub(crate) room: Room,
    /// Some durable shard came: the WAL is needed.
    pub(crate) started: bool,
    pub(crate) closing: bool,
    poison_told: bool,
    full_told: bool,
    alarms: VecDeque<Alarm>,
    /// What it counted.
    pub counters: StoreCounters,
}

fn push_alarm(alarms: &mut VecDeque<Alarm>, alarm: Alarm) {
    if alarms.len() == ALARMS_MAX {
        alarms.pop_front();
    }
    alarms.push_back(alarm);
}

/// When an entry of a shard must be durable.
pub(crate) fn commit_of(config: &ShardConfig) -> Commit {
    match config.durability {
        Durability::Each => Commit::Each,
        Durability::Interval => Commit::Interval { ms: config.sync_interval_ms.max(1) },
        Durability::None => Commit::None,
        Durability::Group | Durability::Ephemeral => Commit::Group,
    }
}

impl Store {
    /// The storage of a core in this start of the node. `salt` is random.
    pub fn new(settings: StoreSettings, maker: Maker, core: CoreId, salt: u128) -> Store {
        let mut slots = Slots::default();
        let slot = slots.take(Use::Wal);
        let id = WalId { session: maker.session, core };
        Store {
            wal: CoreWal::new(settings.wal.clone(), maker.identity, id, salt, slot.0),
            settings,
            maker,
            queue: DiskQueue::new(),
            slots,
            builder: ChunkBuilder::new(),
            keys: Keys::new(salt),
            pending: VecDeque::new(),
            unflushed_bytes: 0,
            flushing: 0,
            flush_wanted: VecDeque::new(),
            flush_after: Time(0),
            early_wanted: Vec::new(),
            after_crash: false,
            opening: BTreeMap::new(),
            grown_told: 0,
            unanswered: Vec::new(),
            with_files: VecDeque::new(),
            open_queue: VecDeque::new(),
            open_later: VecDeque::new(),
            opening_now: 0,
            opened: Vec::new(),
            made: Vec::new(),
            leaving: BTreeMap::new(),
            history: History::default(),
            retain_wanted: VecDeque::new(),
            next_retention: Time(0),
            compact_wanted: VecDeque::new(),
            compactor: Compactor::default(),
            sweep: None,
            next_sweep: Time(0),
            space_is_short: false,
            room: Room::unknown(),
            started: false,
            closing: false,
            poison_told: false,
            full_told: false,
            alarms: VecDeque::new(),
            counters: StoreCounters::default(),
        }
    }

    /// All data keys of a tenant that exist, the one to seal with last. Before the shards that need them.
    pub fn set_keys(&mut self, tenant: TenantKeys, scope: AtRestScope, keys: Vec<DataKey>) {
        self.keys.set(tenant, scope, keys);
    }

    /// Recovery found that a WAL does not end with a clean seal.
    pub fn set_after_crash(&mut self, after_crash: bool) {
        self.after_crash = after_crash;
    }

    /// Shards that are not open yet.
    pub fn opening_count(&self) -> usize {
        self.opening.values().filter(|it| !it.is_settled()).count()
    }

    /// Shards to be noted as made: their files are durable. Each is given once.
    pub fn take_made(&mut self) -> Vec<ShardId> {
        std::mem::take(&mut self.made)
    }

    /// There are such.
    pub fn has_made(&self) -> bool {
        !self.made.is_empty()
    }

    /// Bytes that are in memory and not in segments yet.
    pub fn unflushed_bytes(&self) -> usize {
        self.unflushed_bytes
    }

    /// The WAL.
    pub fn wal(&self) -> &CoreWal {
        &self.wal
    }

    /// Takes the oldest alarm.
    pub fn take_alarm(&mut self) -> Option<Alarm> {
        self.alarms.pop_front()
    }

    /// Free space is short, or is not any more: old files leave quarantine at once.
    pub fn set_space_is_short(&mut self, short: bool) {
        if short && !self.space_is_short {
            self.next_sweep = Time(0);
        }
        self.space_is_short = short;
    }

    /// Bytes that this core may still put on the disk; beyond them publishers are refused with DiskFull before the disk is
    /// full. `u64::MAX` while nobody looked.
    pub fn set_room(&mut self, bytes: u64) {
        self.room.told(bytes, self.unflushed_bytes);
    }

    /// A job found no room, or less is left than what is to be flushed: nothing is taken.
    pub fn is_out_of_room(&self) -> bool {
        self.room.refuses()
    }

    /// Publishers are refused for lack of room, or soon will be.
    pub fn is_full(&self) -> bool {
        self.wal.is_full() || self.room.refuses()
    }

    /// Intake should pause: what is gathered for the disk is half of what may be.
    pub fn is_busy(&self) -> bool {
        // Who is refused must not wait for it.
        self.started
            && !self.room.refuses()
            && (self.wal.gathered_bytes() * 2 > self.settings.wal.gather_bytes_max
                || self.unflushed_bytes * 8 > self.settings.unflushed_bytes_max * 7)
    }

    /// There is room for another file of the WAL beside what is to be flushed.
    pub(crate) fn may_wal_grow(&self) -> bool {
        self.room.may_grow(self.unflushed_bytes, self.settings.wal.file_bytes)
    }

    /// What the WAL has to do now.
    pub(crate) fn plan_wal(&mut self, now: Time, out: &mut Vec<DiskRequest>) {
        self.wal.set_may_grow(self.may_wal_grow());
        self.wal.plan(now, out);
        // Those that were made since; the completions came before.
        let grown = self.wal.grown_bytes();
        self.room.on_grown(grown - std::mem::replace(&mut self.grown_told, grown));
    }

    pub(crate) fn alarm(&mut self, alarm: Alarm) {
        push_alarm(&mut self.alarms, alarm);
    }

    /// Gives a stamped batch to the WAL. On success its bytes stay in memory until they are in segments.
    pub(crate) fn append(&mut self, now: Now, part: &mut DiskPart, batch: &SharedBatch) -> Result<Lsn, ErrorCode> {
        let bytes = batch.bytes().len();
        if part.is_early() && batch.range().to.0 - part.durable_to.0 >= EARLY_OFFSETS_MAX {
            self.counters.refused_busy += 1;
            return Err(ErrorCode::Overloaded);
        }
        // Before it is too late: the WAL would take what no segment has room for.
        if !self.room.takes(self.unflushed_bytes, bytes) {
            self.counters.refused_full += 1;
            return Err(ErrorCode::DiskFull);
        }
        if self.unflushed_bytes + bytes > self.settings.unflushed_bytes_max {
            self.counters.refused_busy += 1;
            return Err(ErrorCode::Overloaded);
        }
        let header = batch.header();
        let (sealed_by, stored) = match part.sealed_for {
            None => (None, batch.bytes()),
            Some(tenant) => match self.keys.seal(tenant, batch.bytes()) {
                Ok((by, sealed)) => (Some(by), sealed),
                // Never in clear instead.
                Err(_) => {
                    self.counters.refused_failed += 1;
                    return Err(ErrorCode::StorageFailed);
                }
            },
        };
        let body = EntryBody::Append(Append {
            stream: header.stream,
            lineage: header.lineage,
            offset_count: header.offset_count,
            epoch: header.epoch,
            base_offset: header.base_offset,
            sealed_by,
            batch: stored,
        });
        // Half of what may be unsynced is: nobody else may ever ask for a sync.
        let commit = match part.is_early() && batch.range().to.0 - part.durable_to.0 >= EARLY_OFFSETS_MAX / 2 {
            true => Commit::Group,
            false => part.commit,
        };
        let lsn = self.wal.append(now.time, &Entry::new(header.shard, body), commit).map_err(|error| {
            let (count, code) = match error {
                AppendError::Busy | AppendError::RingFull => (&mut self.counters.refused_busy, ErrorCode::Overloaded),
                AppendError::DiskFull => (&mut self.counters.refused_full, ErrorCode::DiskFull),
                AppendError::TooLarge { .. } => (&mut self.counters.refused_failed, ErrorCode::InvalidBatch),
                AppendError::Poisoned(_) => (&mut self.counters.refused_failed, ErrorCode::StorageFailed),
                AppendError::Closing => (&mut self.counters.refused_failed, ErrorCode::Draining),
            };
            *count += 1;
            code
        })?;
        if part.may_be_early && !part.checkpoint.shows_early && !part.early_listed {
            part.early_listed = true;
            self.early_wanted.push(header.shard);
        }
        self.counters.entries += 1;
        self.unflushed_bytes += bytes;
        part.on_appended(batch.range().to, lsn, bytes);
        if part.unflushed_bytes >= self.settings.flush_bytes && !part.flush_listed {
            part.flush_listed = true;
            self.flush_wanted.push_back(header.shard);
        }
        Ok(lsn)
    }

    /// Tells once that the WAL failed. True: it was just found out.
    pub(crate) fn tell_poison(&mut self) -> bool {
        match self.wal.poison() {
            Some(poison) if !self.poison_told => {
                self.poison_told = true;
                self.alarm(Alarm::WalPoisoned(poison));
                true
            }
            _ => false,
        }
    }

    pub(crate) fn tell_full(&mut self) {
        let full = self.is_full();
        if full != self.full_told {
            self.full_told = full;
            self.alarm(if full { Alarm::DiskFull } else { Alarm::DiskFreed });
        }
    }

    /// Everything that this core's durable shards wrote is on disk and sealed, or cannot be any more.
    pub fn is_closed(&self) -> bool {
        if !self.started || self.wal.poison().is_some() {
            return true;
        }
        self.closing && self.wal.is_closed() && self.flushing == 0
    }
}
