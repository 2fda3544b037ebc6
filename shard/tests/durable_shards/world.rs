//! **What**: one core with storage, its publishers and readers, and the disk that is taken from under them.
//!
//! **Invariants** checked after every start, for every shard:
//! - `each`, `group`: every acknowledged batch is at its offset with its bytes, unless retention took it;
//! - nothing is given to a reader that a later start does not have (`each`, `group`);
//! - offsets are contiguous from the log start, every record is one that was published, none twice per producer;
//! - a retry of what was acknowledged is answered with the same offset;
//! - retention takes no more than it may; a deleted shard is gone;
//! - files that were told to be made are there after every crash: a shard that is known to be made opens;
//! - compaction: of each key what was last is there, or nothing of it, if that was a tombstone whose grace is over; what has
//!   no key is there.
//!
//! **Never**: a check that knows how storage works.

use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::batch_view::BatchView;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{DELIVER_PREFIX_BYTES, DeliveryMode, SlowPolicy, Start};
use felix_protocol::ids::*;
use felix_protocol::metadata::Durability;
use felix_protocol::position::{Epoch, Lineage, Offset, Position};
use felix_protocol::time::{Now, Time, Timestamp};
use felix_shard::batch_pool::CheckedBatch;
use felix_shard::effect::{Effect, Effects};
use felix_shard::event::{ChannelKey, ConnKey, Event, ShardConfig, SubKey, TenantKeys};
use felix_shard::fan_out::{FanOut, Next, Request};
use felix_shard::invariants;
use felix_shard::limits::Limits;
use felix_shard::recovery::{self, OnDamage};
use felix_shard::store::{Alarm, Store, StoreSettings};
use felix_shard::subscription::SubSpec;
use felix_shard::table::Shards;
use felix_wal::at_rest::{AtRestScope, DataKey};
use felix_wal::disk::{Disk, DiskDone, DiskError, DiskRequest};
use felix_wal::format::header::{Identity, Region};
use felix_wal::log::Maker;
use felix_wal::mem_disk::{Chance, EIO, Fault, MemDisk, MemDiskOptions, OpKind};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const MS: u64 = 1_000_000;
const ME: CoreId = CoreId(0);
const SHARDS: u64 = 8;
/// Shards from this one on are compacted: of one with keys at rest, and of two without, of which one may lose records.
const FIRST_COMPACTED: u64 = 5;
/// Keys of a compacted shard.
const KEYS: u64 = 6;
const GRACE_NS: u64 = 150 * MS;
const STEPS: u64 = 500;
const STARTS: u64 = 4;
/// In every value of a shard that is sealed at rest: no file may hold it.
const CANARY: &str = "CANARY";
const TENANT: TenantKeys = TenantKeys(3);

/// What happens to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Crash,
    Kill,
    Errors,
    Full,
}

/// What was seen over all seeds, so that a run that tests nothing is noticed.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub acks: u64,
    pub refused: u64,
    pub refused_full: u64,
    pub refused_room: u64,
    pub refused_failed: u64,
    pub duplicates: u64,
    pub flushes: u64,
    pub history: u64,
    pub retained: u64,
    pub deleted: u64,
    pub recovered: u64,
    pub broken_recoveries: u64,
    pub time_starts: u64,
    pub lost_early: u64,
    pub poisoned: u64,
    pub swept: u64,
    pub delivered: u64,
    pub gaps: u64,
    pub skipped: u64,
    pub compactions: u64,
    pub compacted: u64,
    pub tombstones: u64,
    pub switched: u64,
    pub made: u64,
    /// Of all that the disk was asked and answered, in order.
    pub trace: u64,
}

impl Seen {
    pub fn add(&mut self, other: &Seen) {
        self.acks += other.acks;
        self.refused += other.refused;
        self.refused_full += other.refused_full;
        self.refused_room += other.refused_room;
        self.refused_failed += other.refused_failed;
        self.duplicates += other.duplicates;
        self.flushes += other.flushes;
        self.history += other.history;
        self.retained += other.retained;
        self.deleted += other.deleted;
        self.recovered += other.recovered;
        self.broken_recoveries += other.broken_recoveries;
        self.time_starts += other.time_starts;
        self.lost_early += other.lost_early;
        self.poisoned += other.poisoned;
        self.swept += other.swept;
        self.delivered += other.delivered;
        self.gaps += other.gaps;
        self.skipped += other.skipped;
        self.compactions += other.compactions;
        self.compacted += other.compacted;
        self.tombstones += other.tombstones;
        self.switched += other.switched;
        self.made += other.made;
        self.trace ^= other.trace;
    }

    pub fn check(&self, trouble: Trouble) {
        for (count, what) in [
            (self.acks, "acks"),
            (self.flushes, "flushes"),
            (self.history, "history"),
            (self.retained, "retention"),
            (self.recovered, "recovered batches"),
            (self.duplicates, "retries"),
            (self.delivered, "deliveries"),
            (self.deleted, "deletions"),
            (self.time_starts, "starts by time"),
            (self.compactions, "compactions"),
            (self.compacted, "compacted records"),
            (self.tombstones, "tombstones taken out"),
            (self.switched, "segments compacted"),
            (self.made, "made shards"),
        ] {
            assert!(count > 0, "no {what} in any seed");
        }
        match trouble {
            Trouble::Crash => assert!(self.broken_recoveries > 0 && self.lost_early > 0 && self.skipped > 0),
            Trouble::Kill => {}
            Trouble::Errors => assert!(self.poisoned > 0 && self.refused_failed > 0),
            Trouble::Full => assert!(self.refused_full > 0 && self.refused_room > 0),
        }
    }
}

/// What was said of a record when it was published; its text is its name.
#[derive(Clone, Debug)]
struct Fact {
    key: Option<String>,
    tombstone: bool,
    sent: Timestamp,
}

/// The text of a record that was read: key, and value or, of a tombstone, the producer's time, which is different for each.
fn text_of(record: &felix_protocol::batch_view::Record<'_, '_>) -> String {
    let value = std::str::from_utf8(record.value).unwrap();
    match (record.key.map(|key| std::str::from_utf8(key).unwrap()), record.tombstone) {
        (None, _) => value.to_string(),
        (Some(key), false) => format!("{key}={value}"),
        (Some(key), true) => format!("{key} gone at {}", record.time.0),
    }
}

/// A batch that was published.
#[derive(Clone, Debug)]
struct Sent {
    stamp: ProducerStamp,
    records: Vec<String>,
    body: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
struct Producer {
    id: u64,
    next: u64,
    /// What was sent and not answered, and the last that were, for retries.
    recent: VecDeque<(Sent, Option<u64>)>,
}

struct ShardModel {
    config: ShardConfig,
    deleted: bool,
    /// Acknowledged batches of a durability that counts: offset, records.
    acked: BTreeMap<u64, Vec<String>>,
    /// Everything ever published.
    published: BTreeMap<String, Fact>,
    /// What of it was never acknowledged: it may be there or not.
    unacked: BTreeSet<String>,
    /// End of what any reader was given (`each`, `group`).
    shown_to: u64,
    producers: Vec<Producer>,
    /// Waiting for an answer: sequence on the channel, what was sent.
    in_flight: Vec<(u64, u64, Sent)>,
    next_anonymous: u64,
    /// Content by offset as readers saw it in this life.
    shown: BTreeMap<u64, String>,
    log_start: u64,
}

/// A subscriber and what it has seen.
struct Reader {
    key: SubKey,
    shard: usize,
    next: Option<u64>,
    ended: bool,
    /// Bytes it took, if it takes only what it granted: it rests for long in between, anywhere in a file.
    taken: Option<u64>,
}

struct Life {
    shards: Shards,
    fan_out: FanOut,
    effects: Effects,
    readers: Vec<Reader>,
    channels: u64,
}

pub struct World {
    chance: Chance,
    trouble: Trouble,
    disk: MemDisk,
    now: Now,
    session: u64,
    was_clean: bool,
    models: Vec<ShardModel>,
    seen: Seen,
    talks: bool,
    next_value: u64,
    next_producer: u64,
}

/// A disk that fails for good after so many requests: the process died in the middle.
struct Dying<'a> {
    disk: &'a mut MemDisk,
    left: u64,
    refused: VecDeque<DiskRequest>,
}

impl Disk for Dying<'_> {
    fn submit(&mut self, request: DiskRequest) {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                self.disk.submit(request);
            }
            None => self.refused.push_back(request),
        }
    }

    fn wait(&mut self) -> Option<DiskDone> {
        let refused =
            |request: DiskRequest| DiskDone { ticket: request.ticket, result: Err(DiskError::Io { errno: EIO }) };
        self.disk.wait().or_else(|| self.refused.pop_front().map(refused))
    }
}

fn durability(index: u64) -> Durability {
    use Durability::{Each, Group, Interval, None};
    [Group, Each, Group, Interval, None, Each, Group, Interval][index as usize % 8]
}

impl ShardModel {
    fn key_of(&self, text: &str) -> Option<&str> {
        self.published.get(text).and_then(|it| it.key.as_deref())
    }

    /// Acknowledged records by offset.
    fn acked_records(&self) -> impl Iterator<Item = (u64, &String)> {
        self.acked.iter().flat_map(|(base, records)| (*base..).zip(records))
    }

    /// Its grace is over.
    fn is_expired(&self, text: &str, now: Now) -> bool {
        let fact = &self.published[text];
        fact.tombstone && fact.sent.saturating_add_ns(self.config.tombstone_grace_ns) < now.wall
    }

    /// A tombstone of this key may have been appended though nobody was told.
    fn may_be_deleted(&self, key: &str, now: Now) -> bool {
        self.unacked.iter().any(|it| self.key_of(it) == Some(key) && self.is_expired(it, now))
    }

    /// Compaction may have taken this record, going by what else is known.
    fn may_be_compacted(&self, offset: u64, text: &str, now: Now) -> bool {
        let Some(key) = self.key_of(text).filter(|_| self.config.compact) else { return false };
        let same = |it: &str| self.key_of(it) == Some(key);
        self.is_expired(text, now)
            || self.acked_records().any(|(at, it)| at > offset && same(it))
            || self.shown.range(offset + 1..).any(|(_, it)| same(it))
            || self.unacked.iter().any(|it| same(it))
    }

    /// What is there says of every key the same as all that is known.
    fn check_compacted(&self, content: &BTreeMap<u64, String>, log_start: u64, now: Now) {
        let mut known: BTreeMap<u64, &String> = self.acked_records().filter(|(at, _)| *at >= log_start).collect();
        known.extend(content.iter().map(|(at, text)| (*at, text)));
        let mut last: BTreeMap<&str, (u64, &String)> = BTreeMap::new();
        for (at, text) in known {
            match self.key_of(text) {
                Some(key) => drop(last.insert(key, (at, text))),
                None => assert_eq!(content.get(&at), Some(text), "offset {at} has no key and is gone"),
            }
        }
        for (key, (at, text)) in last {
            match content.get(&at) {
                Some(found) => assert_eq!(found, text, "offset {at} changed"),
                None => {
                    let swept = self.is_expired(text, now) || self.may_be_deleted(key, now);
                    assert!(swept, "offset {at}, {text}, was the last of its key and is gone");
                    let older = content.iter().find(|(_, it)| self.key_of(it) == Some(key));
                    assert!(older.is_none(), "{key} was deleted at {at}, and {older:?} is there");
                }
            }
        }
    }
}

fn is_early(durability: Durability) -> bool {
    matches!(durability, Durability::Interval | Durability::None)
}

impl World {
    pub fn new(seed: u64, trouble: Trouble, talks: bool) -> World {
        let mut chance = Chance::new(seed ^ 0xd15c);
        let options = MemDiskOptions {
            reorder: chance.coin(),
            slow_per_mille: if chance.coin() { 100 } else { 0 },
            tears_sectors: chance.coin(),
            garbles: chance.coin(),
            bytes_max: None,
        };
        let models = (0..SHARDS)
            .map(|index| ShardModel {
                config: ShardConfig {
                    shard: ShardId(index + 1),
                    stream: StreamId(index + 1),
                    index: ShardIndex(0),
                    lineage: Lineage(1),
                    epoch: Epoch(1),
                    durability: durability(index),
                    made: false,
                    sync_interval_ms: 20,
                    sealed_for: (index % 2 == 0).then_some(TENANT),
                    compact: index >= FIRST_COMPACTED,
                    tombstone_grace_ns: GRACE_NS,
                    retention_bytes: if chance.coin() { 1 << 30 } else { 64 << 10 },
                    retention_age_ns: chance.one_in_thousand(300).then_some(2_000 * MS),
                },
                deleted: false,
                acked: BTreeMap::new(),
                published: BTreeMap::new(),
                unacked: BTreeSet::new(),
                shown_to: 0,
                producers: Vec::new(),
                in_flight: Vec::new(),
                next_anonymous: 0,
                shown: BTreeMap::new(),
                log_start: 0,
            })
            .collect();
        World {
            disk: MemDisk::with_options(seed, options),
            chance,
            trouble,
            now: Now { time: Time(MS), wall: Timestamp(1_000_000 * MS) },
            session: 0,
            was_clean: false,
            models,
            seen: Seen::default(),
            talks,
            next_value: 0,
            next_producer: 1,
        }
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.talks {
            println!("{:>8} {}", self.now.time.0 / 1_000, text());
        }
    }

    fn maker(&self) -> Maker {
        let identity = Identity { cluster: ClusterId(1), node: NodeId(2), region: Region::new("eu").unwrap() };
        Maker { identity, session: NodeSession(self.session) }
    }

    pub fn run(mut self) -> Seen {
        for start in 0..STARTS {
            let mut life = self.start();
            self.verify(&mut life);
            let dies_at = self.chance.below(STEPS);
            if start + 1 < STARTS {
                self.plan_trouble();
            }
            for step in 0..STEPS {
                if start + 1 < STARTS && step == dies_at && self.trouble != Trouble::Errors {
                    break;
                }
                self.step(&mut life);
            }
            if self.trouble == Trouble::Full {
                self.disk.options.bytes_max = None;
            }
            if let Some(store) = life.shards.store() {
                self.seen.flushes += store.counters.flushes;
                self.seen.history += store.counters.history_batches;
                self.seen.retained += store.counters.retained_segments;
                self.seen.swept += store.counters.swept_files;
                self.seen.compactions += store.counters.compactions;
                self.seen.compacted += store.counters.compacted_records;
                self.seen.tombstones += store.counters.compacted_tombstones;
                self.seen.switched += store.counters.compacted_segments;
                self.seen.poisoned += u64::from(store.wal().poison().is_some());
            }
            match self.chance.below(4) {
                0 if self.trouble != Trouble::Errors => self.stop(life),
                1 => self.disk.kill(),
                _ if self.trouble == Trouble::Kill => self.disk.kill(),
                _ => self.disk.crash(),
            }
            for model in &mut self.models {
                model.in_flight.clear();
            }
        }
        let mut life = self.start();
        self.verify(&mut life);
        for path in self.disk.paths() {
            let content = self.disk.content(&path).unwrap_or_default();
            let leak = content.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
            assert!(!leak, "{path} holds plaintext of a sealed stream");
        }
        self.seen.trace = self.disk.trace();
        self.seen
    }

    fn plan_trouble(&mut self) {
        match self.trouble {
            Trouble::Errors => {
                let kind =
                    [OpKind::Write, OpKind::Sync, OpKind::Replace, OpKind::Create][self.chance.below(4) as usize];
                let skip = self.chance.below(120);
                self.disk.plan_fault(kind, skip, Fault::Error(DiskError::Io { errno: EIO }));
                self.say(|| format!("the {skip}th {kind:?} from now on will fail"));
            }
            Trouble::Full => {
                let room = self.chance.below(300 << 10);
                self.disk.options.bytes_max = Some(self.disk.used() + room);
                self.say(|| format!("{room} bytes are left"));
            }
            Trouble::Crash | Trouble::Kill => {}
        }
    }

    /// A start; with errors planned it may take several.
    fn start(&mut self) -> Life {
        for _ in 0..5 {
            let life = self.try_start();
            let mut ids = self.models.iter().filter(|it| !it.deleted).map(|it| it.config.shard);
            if ids.all(|id| life.shards.get(id).is_some_and(|it| !it.is_failed())) {
                return life;
            }
            assert_eq!(self.trouble, Trouble::Errors, "a shard did not open");
            self.disk.crash();
        }
        panic!("the shards never opened");
    }

    /// Recovery, perhaps with deaths in the middle, then a core with all its shards open.
    fn try_start(&mut self) -> Life {
        loop {
            self.session += 1;
            let maker = self.maker();
            let log = StoreSettings::small().log;
            let dies = self.trouble == Trouble::Crash && self.chance.one_in_thousand(400);
            let left = if dies { self.chance.below(60) } else { u64::MAX };
            let mut disk = Dying { disk: &mut self.disk, left, refused: VecDeque::new() };
            let recovered = recovery::recover(&mut disk, maker, log, self.now.wall, OnDamage::Refuse, &mut |_| {});
            let died = disk.left == 0;
            match recovered {
                Ok(report) => {
                    self.was_clean = report.was_clean;
                    self.say(|| format!("start {}: {report:?}", self.session));
                    self.seen.recovered += report.batches;
                    self.seen.deleted += report.deleted.len() as u64;
                    assert!(report.orphans.is_empty(), "{report:?}");
                    break;
                }
                Err(error) if died => {
                    self.say(|| format!("start {} died: {error}", self.session));
                    self.seen.broken_recoveries += 1;
                    self.disk.crash();
                }
                Err(_) if self.trouble == Trouble::Errors => self.disk.crash(),
                Err(error) => panic!("a start was refused: {error}"),
            }
        }
        let mut life = Life {
            shards: Shards::new(Limits { fetch_bytes_max: 4 << 10, fetch_batches_max: 5, ..Limits::default() }),
            fan_out: FanOut::new(Limits { tail_batches_max: 8, tail_bytes_max: 4 << 10, ..Limits::default() }),
            effects: Effects::default(),
            readers: Vec::new(),
            channels: 0,
        };
        let salt = u128::from(self.chance.bits()) << 64 | 1;
        let mut store = Store::new(StoreSettings::small(), self.maker(), ME, salt);
        store.set_after_crash(!self.was_clean);
        store.set_keys(TENANT, AtRestScope::new("eu", "acme"), vec![DataKey::new(1, [7; 32])]);
        life.shards.set_store(store);
        for index in 0..self.models.len() {
            let model = &mut self.models[index];
            if !model.deleted {
                model.config.epoch = Epoch(self.session);
                life.shards.handle(self.now, Event::ShardPut(model.config), &mut life.effects);
            }
        }
        for _ in 0..20_000 {
            if life.shards.store().is_some_and(|it| it.opening_count() == 0) {
                return life;
            }
            self.turn(&mut life);
            self.complete(&mut life, 1);
        }
        panic!("the shards did not open");
    }

    /// A clean stop: everything gathered is written and sealed.
    fn stop(&mut self, mut life: Life) {
        self.say(|| "stop".into());
        life.shards.shut_down_disk();
        for _ in 0..20_000 {
            if life.shards.store().is_none_or(Store::is_closed) {
                break;
            }
            self.turn(&mut life);
            self.complete(&mut life, 1);
        }
        assert!(life.shards.store().is_none_or(Store::is_closed), "the stop did not end");
        while let Some(done) = self.disk.wait() {
            life.shards.on_disk_done(self.now, done, &mut life.effects);
        }
        self.execute(&mut life);
        self.disk.kill();
    }

    fn step(&mut self, life: &mut Life) {
        match self.chance.below(100) {
            0..40 => self.publish(life),
            40..45 => self.retry(life),
            45..50 => self.subscribe(life),
            50..53 if !life.readers.is_empty() => {
                let at = self.chance.below(life.readers.len() as u64) as usize;
                let reader = life.readers.swap_remove(at);
                life.fan_out.unsubscribe(reader.key);
            }
            53..60 => {
                let by = self.chance.below(20 * MS);
                self.now.time.0 += by;
                self.now.wall.0 += by;
            }
            60..61 if self.chance.one_in_thousand(100) => {
                self.now.time.0 += 3_000 * MS;
                self.now.wall.0 += 3_000 * MS;
            }
            61..62 if self.chance.one_in_thousand(150) => self.delete(life),
            62..63 if self.trouble == Trouble::Full => {
                self.disk.options.bytes_max = match self.chance.coin() {
                    true => None,
                    false => Some(self.disk.used() + self.chance.below(300 << 10)),
                };
            }
            _ => {
                let count = 1 + self.chance.below(6);
                self.complete(life, count);
            }
        }
        self.turn(life);
        self.read(life);
    }

    fn turn(&mut self, life: &mut Life) {
        self.now.time.0 += 50_000;
        self.now.wall.0 += 50_000;
        if life.shards.next_tick().is_some_and(|due| due <= self.now.wall) {
            life.shards.handle(self.now, Event::Ticked, &mut life.effects);
        }
        self.execute(life);
        let mut requests = Vec::new();
        life.shards.plan_disk(self.now, &mut life.effects, &mut requests);
        for request in requests {
            // The model of `Full` counts what files have; a WAL file that is written in place needs no more.
            self.disk.submit(request);
        }
        self.execute(life);
        // The metadata may know it before anything else happens, a crash included.
        for id in life.shards.store_mut().map(Store::take_made).unwrap_or_default() {
            let model = self.models.iter_mut().find(|it| it.config.shard == id).expect("it is of the model");
            assert!(!model.config.made, "shard {id} was told twice");
            model.config.made = true;
            self.seen.made += 1;
        }
        while let Some(alarm) = life.shards.take_alarm() {
            self.say(|| format!("alarm: {alarm:?}"));
            if self.trouble != Trouble::Errors {
                let skipped = matches!(&alarm, Alarm::Note { what, .. } if what.contains("left out"));
                self.seen.skipped += u64::from(skipped);
                let harmless = skipped || matches!(alarm, Alarm::DiskFull | Alarm::DiskFreed);
                assert!(harmless, "{alarm:?}");
            }
        }
    }

    fn complete(&mut self, life: &mut Life, count: u64) {
        for _ in 0..count {
            let Some(done) = self.disk.wait() else { break };
            life.shards.on_disk_done(self.now, done, &mut life.effects);
            self.execute(life);
        }
    }

    fn live_shard(&mut self) -> Option<usize> {
        let live: Vec<usize> = (0..self.models.len()).filter(|at| !self.models[*at].deleted).collect();
        (!live.is_empty()).then(|| live[self.chance.below(live.len() as u64) as usize])
    }

    fn publish(&mut self, life: &mut Life) {
        // Compaction needs more than others have to do.
        let compacted = FIRST_COMPACTED + self.chance.below(SHARDS - FIRST_COMPACTED);
        let at = match self.chance.coin() && !self.models[compacted as usize].deleted {
            true => compacted as usize,
            false => match self.live_shard() {
                Some(at) => at,
                None => return,
            },
        };
        let count = 1 + self.chance.below(4);
        let size = [8, 60, 900][self.chance.below(3) as usize];
        let mark = if self.models[at].config.sealed_for.is_some() { CANARY } else { "" };
        let mut builder = BatchBuilder::new();
        let mut records = Vec::new();
        for _ in 0..count {
            self.next_value += 1;
            let keyed = self.models[at].config.compact && self.chance.below(8) > 0;
            let key = keyed.then(|| format!("{mark}k{}", self.chance.below(KEYS)));
            let tombstone = keyed && self.chance.below(5) == 0;
            let value = if tombstone { String::new() } else { format!("{mark}{:0size$}", self.next_value) };
            let time = Timestamp(self.next_value);
            let (key_bytes, value_bytes) = (key.as_ref().map(|it| it.as_bytes()), value.as_bytes());
            let record = RecordToPublish { key: key_bytes, value: value_bytes, tombstone, time, ..Default::default() };
            builder.push(&record).unwrap();
            let text = match (&key, tombstone) {
                (None, _) => value,
                (Some(key), false) => format!("{key}={value}"),
                (Some(key), true) => format!("{key} gone at {}", time.0),
            };
            let fact = Fact { key, tombstone, sent: self.now.wall };
            self.models[at].published.insert(text.clone(), fact);
            self.models[at].unacked.insert(text.clone());
            records.push(text);
        }
        let mut stamp = ProducerStamp::default();
        let model = &mut self.models[at];
        if self.chance.coin() {
            if model.producers.len() < 2 {
                model.producers.push(Producer { id: self.next_producer, ..Producer::default() });
                self.next_producer += 1;
            }
            let who = self.chance.below(model.producers.len() as u64) as usize;
            let producer = &mut model.producers[who];
            // A producer whose last batch was refused or lost goes on with a new id: what it may retry is tested apart.
            if producer.recent.iter().any(|(_, offset)| offset.is_none())
                && !model.in_flight.iter().any(|(_, _, sent)| sent.stamp.producer.0 == producer.id)
            {
                *producer = Producer { id: self.next_producer, ..Producer::default() };
                self.next_producer += 1;
            }
            stamp = ProducerStamp {
                producer: ProducerId(producer.id),
                epoch: ProducerEpoch(0),
                base_sequence: Sequence(producer.next),
            };
        } else {
            stamp.base_sequence = Sequence(model.next_anonymous);
            model.next_anonymous += count;
        }
        let mut body = Vec::new();
        builder.finish(stamp, &mut body);
        let sent = Sent { stamp, records, body };
        if stamp.producer.0 != 0 {
            let producer = model.producers.iter_mut().find(|it| it.id == stamp.producer.0).unwrap();
            producer.next += count;
            producer.recent.push_back((sent.clone(), None));
            if producer.recent.len() > 6 {
                producer.recent.pop_front();
            }
        }
        self.send(life, at, sent);
    }

    fn send(&mut self, life: &mut Life, at: usize, sent: Sent) {
        life.channels += 1;
        let channel = ChannelKey { core: ME, conn: ConnKey(at as u64), stream: life.channels };
        let batch = CheckedBatch::check(&mut life.shards.pool, &sent.body, 1 << 20, None).unwrap();
        let shard = self.models[at].config.shard;
        self.models[at].in_flight.push((life.channels, 0, sent));
        let store = life.shards.store().expect("it has one");
        let (is_out, entries) = (store.is_out_of_room(), store.counters.entries);
        life.shards.handle(self.now, Event::Published { shard, channel, batch }, &mut life.effects);
        if is_out {
            // What no segment has room for must not fill the log.
            assert_eq!(life.shards.store().map(|it| it.counters.entries), Some(entries), "taken without room");
            self.seen.refused_room += 1;
        }
        self.execute(life);
    }

    /// Sends again what was acknowledged: it must be answered with the same offset.
    fn retry(&mut self, life: &mut Life) {
        let Some(at) = self.live_shard() else { return };
        let model = &self.models[at];
        let known: Vec<Sent> = model
            .producers
            .iter()
            .flat_map(|it| it.recent.iter())
            .filter(|(_, offset)| offset.is_some())
            .map(|(sent, _)| sent.clone())
            .collect();
        if known.is_empty() {
            return;
        }
        let sent = known[self.chance.below(known.len() as u64) as usize].clone();
        self.seen.duplicates += 1;
        self.send(life, at, sent);
    }

    fn subscribe(&mut self, life: &mut Life) {
        let Some(at) = self.live_shard() else { return };
        if life.readers.len() > 8 {
            return;
        }
        let model = &self.models[at];
        let start = match self.chance.below(4) {
            0 => Start::Earliest,
            1 => Start::Latest,
            2 => {
                self.seen.time_starts += 1;
                Start::Time(Timestamp(self.now.wall.0.saturating_sub(self.chance.below(200 * MS))))
            }
            _ => {
                let offset = Offset(self.chance.below(model.shown_to + 1));
                Start::Position(Position { lineage: Lineage(0), offset })
            }
        };
        let taken = self.chance.coin().then_some(0);
        let spec = SubSpec {
            conn: ConnKey(1),
            id: SubscriptionId(1),
            shard: model.config.shard,
            start,
            filter: None,
            policy: SlowPolicy::Block,
            mode: DeliveryMode::Shared,
            credit_bytes: taken.map(|_: u64| 1 + self.chance.below(3_000)),
        };
        let key = life.fan_out.subscribe(&spec);
        life.readers.push(Reader { key, shard: at, next: None, ended: false, taken });
        self.execute(life);
    }

    fn delete(&mut self, life: &mut Life) {
        if self.models.iter().filter(|it| !it.deleted).count() < 4 {
            return;
        }
        let Some(at) = self.live_shard() else { return };
        self.say(|| format!("delete shard {}", at + 1));
        self.seen.deleted += 1;
        self.models[at].deleted = true;
        let shard = self.models[at].config.shard;
        life.shards.handle(self.now, Event::ShardRemoved { shard }, &mut life.effects);
        self.execute(life);
    }

    fn execute(&mut self, life: &mut Life) {
        loop {
            let effects: Vec<Effect> = life.effects.drain().collect();
            for effect in effects {
                self.effect(life, effect);
            }
            let Some(request) = life.fan_out.take_request() else {
                if life.effects.is_empty() {
                    break;
                }
                continue;
            };
            let event = match request {
                Request::Attach { shard, sub, start } => Event::Attached { shard, core: ME, sub, start },
                Request::Detach { shard } => Event::Detached { shard, core: ME },
                Request::Fetch { shard, sub, from } => Event::Fetched { shard, core: ME, sub, from },
            };
            life.shards.handle(self.now, event, &mut life.effects);
        }
        invariants::check(&life.shards, &life.fan_out);
    }

    fn effect(&mut self, life: &mut Life, effect: Effect) {
        match effect {
            Effect::Ack { channel, ack } => {
                self.seen.acks += 1;
                let model = &mut self.models[channel.conn.0 as usize];
                let at = model.in_flight.iter().position(|it| it.0 == channel.stream).expect("an ack for nobody");
                let (_, _, sent) = model.in_flight.swap_remove(at);
                assert_eq!(ack.record_count as usize, sent.records.len());
                if self.trouble == Trouble::Errors {
                    let poisoned = life.shards.store().is_some_and(|it| it.wal().poison().is_some());
                    assert!(!poisoned || is_early(ack.durability), "an ack after the WAL failed");
                }
                let offset = ack.base_offset.0;
                for text in &sent.records {
                    model.unacked.remove(text);
                }
                if !is_early(model.config.durability)
                    && let Some(before) = model.acked.insert(offset, sent.records.clone())
                {
                    assert_eq!(before, sent.records, "two batches at offset {offset}");
                }
                if let Some(producer) = model.producers.iter_mut().find(|it| it.id == sent.stamp.producer.0)
                    && let Some((_, known)) =
                        producer.recent.iter_mut().find(|(it, _)| it.stamp.base_sequence == sent.stamp.base_sequence)
                {
                    // Without a sync before the ack a crash may have taken what was acknowledged.
                    if let Some(before) = known.filter(|_| !is_early(model.config.durability)) {
                        assert_eq!(before, offset, "a retry was appended again");
                    }
                    *known = Some(offset);
                }
            }
            Effect::Refuse { channel, code, .. } => {
                self.seen.refused += 1;
                self.seen.refused_full += u64::from(code == ErrorCode::DiskFull);
                self.seen.refused_failed += u64::from(code == ErrorCode::StorageFailed);
                let model = &mut self.models[channel.conn.0 as usize];
                let at = model.in_flight.iter().position(|it| it.0 == channel.stream).expect("a refusal for nobody");
                let (_, _, sent) = model.in_flight.swap_remove(at);
                let expected = match code {
                    ErrorCode::Overloaded | ErrorCode::DiskFull | ErrorCode::StorageFailed => true,
                    ErrorCode::StreamGone => model.deleted,
                    // What was refused before it leaves a hole; what a crash took is not known any more.
                    ErrorCode::SequenceGap | ErrorCode::UnknownProducer => true,
                    _ => false,
                };
                assert!(expected, "refused: {code}");
                if let Some(producer) = model.producers.iter_mut().find(|it| it.id == sent.stamp.producer.0)
                    && let Some((_, Some(offset))) =
                        producer.recent.iter().find(|(it, _)| it.stamp.base_sequence == sent.stamp.base_sequence)
                    && !is_early(model.config.durability)
                {
                    let fair = matches!(code, ErrorCode::StorageFailed | ErrorCode::StreamGone);
                    assert!(fair, "a retry of what is at offset {offset} was refused: {code}");
                }
            }
            Effect::Commit { shard, batch, .. } => {
                self.show(shard, batch.bytes());
                life.fan_out.on_commit(shard, batch);
            }
            Effect::Attach { sub, result, .. } => {
                life.fan_out.on_attach(sub, result);
            }
            Effect::Fetch { sub, batches, high_watermark, shard, .. } => {
                for batch in &batches {
                    self.show(shard, batch.bytes());
                }
                life.fan_out.on_fetch(sub, batches, high_watermark);
            }
            Effect::Gone { shard, .. } => {
                life.fan_out.on_gone(shard, |_, _| {});
                let readers = &mut life.readers;
                readers.iter_mut().filter(|it| ShardId(it.shard as u64 + 1) == shard).for_each(|it| it.ended = true);
            }
            Effect::OpenChannel { .. } => {}
        }
    }

    /// Somebody was given these bytes.
    fn show(&mut self, shard: ShardId, bytes: &[u8]) {
        let model = &mut self.models[shard.0 as usize - 1];
        let view = BatchView::parse(bytes).unwrap();
        view.check().unwrap();
        let base = view.header.base_offset.0;
        let values = view.body.values;
        for record in view.body.records(values) {
            let record = record.unwrap();
            let value = text_of(&record);
            let offset = base + u64::from(record.offset_delta);
            assert!(model.published.contains_key(&value), "offset {offset} of {shard}: nobody published {value}");
            if let Some(before) = model.shown.insert(offset, value.clone()) {
                assert_eq!(before, value, "offset {offset} of {shard} changed");
            }
        }
        model.shown_to = model.shown_to.max(view.header.range().to.0);
    }

    /// Every subscriber takes what there is; what it covers has no hole but what retention took.
    fn read(&mut self, life: &mut Life) {
        while life.fan_out.take_scheduled().is_some() {}
        for at in 0..life.readers.len() {
            if let Reader { key, taken: Some(taken), .. } = life.readers[at]
                && self.chance.one_in_thousand(40)
            {
                life.fan_out.on_credit(key, taken + self.chance.below(6_000));
            }
            for _ in 0..8 {
                let Reader { key, shard, next, ended, .. } = life.readers[at];
                if ended {
                    break;
                }
                let (covered, bytes) = match life.fan_out.next(self.now, key) {
                    Next::Wait => break,
                    Next::Closed(code) => panic!("closed: {code}"),
                    Next::Gap { covered, .. } => {
                        self.seen.gaps += 1;
                        let start = life.shards.get(self.models[shard].config.shard).unwrap().log_start();
                        let early = is_early(self.models[shard].config.durability);
                        let failed = early || life.shards.get(self.models[shard].config.shard).unwrap().is_failed();
                        let model = &self.models[shard];
                        let lost = model.acked_records().find(|(at, it)| {
                            let inside = *at >= covered.from.0.max(start.0) && *at < covered.to.0;
                            inside && !model.may_be_compacted(*at, it, self.now)
                        });
                        let compacted = model.config.compact && lost.is_none();
                        assert!(
                            covered.to <= start || failed || compacted,
                            "a gap {covered:?} that retention did not make: {start}, {lost:?}"
                        );
                        (covered, 0)
                    }
                    Next::Progress { covered, .. } => (covered, 0),
                    Next::Batch { covered, batch, .. } => {
                        self.seen.delivered += 1;
                        (covered, batch.bytes().len())
                    }
                };
                life.fan_out.charge(key, DELIVER_PREFIX_BYTES + bytes);
                if let Some(taken) = &mut life.readers[at].taken {
                    *taken += (DELIVER_PREFIX_BYTES + bytes) as u64;
                }
                if let Some(next) = next {
                    assert_eq!(covered.from.0, next, "a subscriber missed something");
                }
                life.readers[at].next = Some(covered.to.0);
            }
        }
        self.execute(life);
    }

    /// After a start: reads every shard from its beginning and compares.
    fn verify(&mut self, life: &mut Life) {
        for at in 0..self.models.len() {
            let id = self.models[at].config.shard;
            if self.models[at].deleted {
                continue;
            }
            let Some(shard) = life.shards.get(id) else { panic!("shard {id} did not open") };
            let (log_start, end) = (shard.log_start().0, shard.high_watermark().0);
            let early = is_early(self.models[at].config.durability);
            // Compaction may take out a tombstone between what a reader was given before and after it (its grace is over), as
            // from any reader that is so slow: what is compared is read with no switch in between.
            let content = loop {
                let renames = self.disk.count(OpKind::Rename);
                let content = self.read_all(life, at, log_start, end);
                if !self.models[at].config.compact || self.disk.count(OpKind::Rename) == renames {
                    break content;
                }
            };
            // Retention goes on meanwhile.
            let log_start = life.shards.get(id).map_or(0, |it| it.log_start().0);
            let model = &mut self.models[at];
            assert!(log_start >= model.log_start, "the log start went back");
            model.log_start = log_start;
            let mut once = BTreeSet::new();
            for (offset, value) in &content {
                assert!(model.published.contains_key(value), "offset {offset}: nobody published {value}");
                assert!(once.insert(value.clone()), "{value} is there twice");
                // Also of a stream that may lose records: an offset that was shown never holds another one.
                let before = model.shown.get(offset);
                assert!(before.is_none_or(|it| it == value), "offset {offset} was {before:?}, now {value}");
            }
            assert!(end >= model.shown_to, "shard {id} ends at {end}, readers saw {}", model.shown_to);
            if model.config.compact {
                model.check_compacted(&content, log_start, self.now);
            }
            for (base, records) in model.acked.iter().filter(|_| !model.config.compact) {
                for (index, record) in records.iter().enumerate() {
                    let offset = base + index as u64;
                    if offset >= log_start {
                        assert_eq!(
                            content.get(&offset),
                            Some(record),
                            "offset {offset} of shard {id} was acknowledged"
                        );
                    }
                }
            }
            if early {
                let kept = model.producers.iter().flat_map(|it| &it.recent).filter_map(|(_, offset)| *offset);
                let lost = kept.filter(|offset| *offset >= log_start && !content.contains_key(offset));
                self.seen.lost_early += lost.count() as u64;
                // What a crash took may be sent again under its number: the producers begin anew.
                model.producers.clear();
            }
            if model.config.retention_bytes > 1 << 20 && model.config.retention_age_ns.is_none() {
                assert_eq!(log_start, 0, "retention took what it must not");
            }
        }
    }

    fn read_all(&mut self, life: &mut Life, at: usize, from: u64, to: u64) -> BTreeMap<u64, String> {
        let shard = self.models[at].config.shard;
        let sub = SubKey { slot: 1_000 + at as u32, generation: 1 };
        let mut content = BTreeMap::new();
        let mut next = from;
        let mut rounds = 0;
        let mut asked = false;
        while next < to {
            rounds += 1;
            assert!(rounds < 50_000, "reading shard {shard} stopped at {next} of {to}");
            if !asked {
                asked = true;
                let event = Event::Fetched { shard, core: ME, sub, from: Offset(next) };
                life.shards.handle(self.now, event, &mut life.effects);
            }
            for effect in life.effects.drain().collect::<Vec<_>>() {
                let Effect::Fetch { sub: whose, batches, .. } = effect else { continue };
                assert_eq!(whose, sub);
                asked = false;
                let loose = self.models[at].config.compact || is_early(self.models[at].config.durability);
                // Or retention took all of it meanwhile.
                let loose = loose || life.shards.get(shard).is_some_and(|it| it.log_start().0 >= to);
                assert!(loose || !batches.is_empty(), "nothing at {next} of {to} in shard {shard}");
                if batches.is_empty() {
                    // Left out after a crash or compacted away up to the end; what must not have been is missing to the caller.
                    next = to;
                }
                for batch in batches {
                    let view = BatchView::parse(batch.bytes()).unwrap();
                    view.check().unwrap();
                    let range = view.header.range();
                    let log_start = life.shards.get(ShardId(at as u64 + 1)).unwrap().log_start().0;
                    let goes_on = (loose || range.from.0 <= next.max(log_start)) && next < range.to.0;
                    assert!(goes_on, "{range:?} does not continue at {next}, the log starts at {log_start}");
                    let values = view.body.values;
                    for record in view.body.records(values) {
                        let record = record.unwrap();
                        content.insert(range.from.0 + u64::from(record.offset_delta), text_of(&record));
                    }
                    next = range.to.0;
                }
            }
            if asked {
                let mut requests = Vec::new();
                life.shards.plan_disk(self.now, &mut life.effects, &mut requests);
                requests.into_iter().for_each(|request| self.disk.submit(request));
                self.now.time.0 += 1_000;
                if let Some(done) = self.disk.wait() {
                    life.shards.on_disk_done(self.now, done, &mut life.effects);
                }
            }
        }
        content
    }
}
