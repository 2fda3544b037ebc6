//! One core with its WAL on a disk in memory: random work, and a crash in a copy of the world after every step of the disk.

use std::collections::{BTreeMap, VecDeque};

use felix_protocol::ids::{ClusterId, CoreId, NodeId, NodeSession, ShardId, StreamId};
use felix_protocol::position::{Epoch, Lineage, Offset};
use felix_protocol::time::Time;
use felix_wal::core_wal::{AppendError, CoreWal, CoreWalSettings};
use felix_wal::disk::{DiskDone, DiskError, DiskRequest};
use felix_wal::format::entry::{Append, Entry, EntryBody, Lsn, SealedBy};
use felix_wal::format::header::{Identity, Region};
use felix_wal::format::names::WalId;
use felix_wal::group_commit::Commit;
use felix_wal::judge::WalEnd;
use felix_wal::mem_disk::{Chance, EIO, Fault, MemDisk, MemDiskOptions, OpKind};
use felix_wal::recover::{Recovery, Report};

use crate::bugs::{Bug, Proxy};

pub const SALT: u128 = 0x5a17;
const SHARDS: u64 = 6;
const LINEAGE: Lineage = Lineage(1);

pub fn identity() -> Identity {
    Identity { cluster: ClusterId(1), node: NodeId(2), region: Region::new("eu").unwrap() }
}

pub fn wal_id(session: u64) -> WalId {
    WalId { session: NodeSession(session), core: CoreId(0) }
}

/// What the caller of the WAL knows about one entry of a shard.
struct Logical {
    /// Encoded, as no copy.
    bytes: Vec<u8>,
    /// Its last appearance in the WAL.
    lsn: Lsn,
    /// Its first appearance, which is what was acked.
    first_lsn: Lsn,
    /// An interval must have been synced by then.
    sync_by: Option<Time>,
}

#[derive(Default)]
struct ShardModel {
    log: Vec<Logical>,
    /// Entries that are in segments, with meta durable.
    flushed: usize,
    /// What the caller (wrongly, with `RecycleTooEarly`) said.
    claimed: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub trace: u64,
    pub crashes: u64,
    pub entries: u64,
    pub durable: u64,
    pub groups: u64,
    pub reuses: u64,
    pub refused_full: u64,
    pub copies: u64,
    pub ends: BTreeMap<&'static str, u64>,
}

pub struct World {
    seed: u64,
    bug: Bug,
    chance: Chance,
    pub proxy: Proxy,
    wal: CoreWal,
    now: Time,
    shards: BTreeMap<ShardId, ShardModel>,
    acked: Lsn,
    poisoned_at: Option<Lsn>,
    pub stats: Stats,
    requests: Vec<DiskRequest>,
}

/// Bytes that depend on everything.
fn payload(seed: u64, bytes: usize) -> Vec<u8> {
    let mut chance = Chance::new(seed);
    (0..bytes.div_ceil(8)).flat_map(|_| chance.bits().to_le_bytes()).take(bytes).collect()
}

fn settings(chance: &mut Chance) -> CoreWalSettings {
    let mut settings = CoreWalSettings::small();
    if chance.coin() {
        settings.file_bytes = 32 << 10;
        settings.group_bytes_max = 8 << 10;
        settings.reserve_bytes = 8 << 10;
    }
    settings.files_max = 4;
    settings.files_wanted = 2;
    settings
}

impl World {
    pub fn new(seed: u64, bug: Bug) -> World {
        let mut chance = Chance::new(seed);
        let options = MemDiskOptions {
            reorder: true,
            slow_per_mille: chance.below(4) * 60,
            tears_sectors: chance.coin(),
            garbles: chance.coin(),
            bytes_max: None,
        };
        let mut disk = MemDisk::with_options(chance.bits(), options);
        let settings = settings(&mut chance);
        match chance.below(8) {
            0 => disk.plan_fault(OpKind::Sync, 1 + chance.below(30), Fault::Error(DiskError::Io { errno: EIO })),
            1 => disk.plan_fault(OpKind::Write, 1 + chance.below(30), Fault::Error(DiskError::Io { errno: EIO })),
            2 => disk.options.bytes_max = Some(settings.file_bytes * (1 + chance.below(2))),
            _ => {}
        }
        if bug == Bug::RetryFailedSync {
            disk.plan_fault(OpKind::Sync, 2 + chance.below(6), Fault::Error(DiskError::Io { errno: EIO }));
        }
        World {
            seed,
            bug,
            chance,
            proxy: Proxy::new(disk, bug),
            wal: CoreWal::new(settings, identity(), wal_id(1), SALT, 0),
            now: Time(1),
            shards: (1..=SHARDS).map(|shard| (ShardId(shard), ShardModel::default())).collect(),
            acked: Lsn(0),
            poisoned_at: None,
            stats: Stats::default(),
            requests: Vec::new(),
        }
    }

    fn commit(&mut self) -> Commit {
        match self.chance.below(10) {
            0..=2 => Commit::Each,
            3..=6 => Commit::Group,
            7..=8 => Commit::Interval { ms: 1 + self.chance.below(20) as u32 },
            _ => Commit::None,
        }
    }

    fn append_one(&mut self) {
        let shard = ShardId(1 + self.chance.below(SHARDS));
        let index = self.shards[&shard].log.len() as u64;
        let bytes = match self.chance.below(20) {
            0 => 5_000,
            1..=4 => 500 + self.chance.below(2_500) as usize,
            _ => 1 + self.chance.below(200) as usize,
        };
        let batch = payload(self.seed ^ shard.0 << 32 ^ index, bytes);
        let sealed_by = self.chance.coin().then_some(SealedBy { salt_id: 3, counter: index });
        let commit = self.commit();
        let epoch = Epoch(index);
        let offset = Offset(index);
        let body = match self.chance.below(12) {
            0 => EntryBody::Truncate { lineage: LINEAGE, epoch, to: offset },
            1 => EntryBody::Promise { lineage: LINEAGE, epoch },
            2 => EntryBody::EpochStart { lineage: LINEAGE, epoch, start: offset },
            3 => EntryBody::Create { stream: StreamId(shard.0), lineage: LINEAGE, epoch, settings: &batch[..1] },
            _ => EntryBody::Append(Append {
                stream: StreamId(shard.0),
                lineage: LINEAGE,
                offset_count: 1,
                epoch,
                base_offset: offset,
                sealed_by,
                batch: &batch,
            }),
        };
        let entry = Entry::new(shard, body);
        match self.wal.append(self.now, &entry, commit) {
            Ok(lsn) => {
                let mut bytes = Vec::new();
                entry.encode(&mut bytes);
                let always = !matches!(body, EntryBody::Append(_));
                let sync_by = match commit {
                    Commit::Interval { ms } if !always => Some(self.now.after_ns(u64::from(ms) * 1_000_000)),
                    _ => None,
                };
                self.stats.entries += 1;
                let logical = Logical { bytes, lsn, first_lsn: lsn, sync_by };
                self.shards.get_mut(&shard).unwrap().log.push(logical);
            }
            Err(AppendError::DiskFull | AppendError::RingFull) => self.stats.refused_full += 1,
            Err(AppendError::Busy | AppendError::Poisoned(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }

    /// A shard's entries go to its segments, or are copied forward.
    fn flush_one(&mut self) {
        let pinned: Vec<ShardId> = self.wal.pins().map(|(shard, _)| shard).collect();
        let mut pinned = pinned;
        pinned.sort();
        let shard = match pinned.len() {
            0 => ShardId(1 + self.chance.below(SHARDS)),
            count => pinned[self.chance.below(count as u64) as usize],
        };
        let model = self.shards.get_mut(&shard).unwrap();
        let from = model.claimed;
        if from == model.log.len() {
            return;
        }
        if self.chance.below(3) == 0 {
            return self.copy_forward(shard);
        }
        let through =
            model.log[from + self.chance.below((model.log.len() - from) as u64) as usize..].first().unwrap().lsn;
        let count = model.log.iter().take_while(|logical| logical.lsn <= through).count();
        model.claimed = model.claimed.max(count);
        // Copies of an attempt that failed may stand behind the last entry.
        let through = if model.claimed == model.log.len() { self.wal.appended() } else { through };
        if self.bug != Bug::RecycleTooEarly {
            model.flushed = model.claimed;
        }
        self.wal.flushed(self.now, shard, LINEAGE, Offset(count as u64), through);
    }

    fn copy_forward(&mut self, shard: ShardId) {
        let model = self.shards.get_mut(&shard).unwrap();
        let through = self.wal.appended();
        let mut copies = Vec::new();
        for logical in &model.log[model.claimed..] {
            let (entry, _) = Entry::decode(&logical.bytes).unwrap();
            let copy = Entry { copied_from: Some(logical.lsn), ..entry };
            match self.wal.append(self.now, &copy, Commit::None) {
                Ok(lsn) => copies.push(lsn),
                // The copies that were made stay without effect: their originals still count.
                Err(_) => return,
            }
            self.stats.copies += 1;
        }
        if self.bug == Bug::CopyNotDurable {
            // The pins go at once, and so does the room of the originals.
            self.wal.flushed(self.now, shard, LINEAGE, Offset(0), through);
        } else if self.wal.superseded(self.now, shard, LINEAGE, Offset(0), through).is_err() {
            return;
        }
        model.log[model.claimed..].iter_mut().zip(copies).for_each(|(logical, lsn)| logical.lsn = lsn);
    }

    fn on_done(&mut self, done: DiskDone) -> Result<(), String> {
        self.wal.on_done(self.now, done);
        let durable = self.wal.durable();
        if durable < self.acked {
            return Err(format!("durable went back from {} to {durable}", self.acked));
        }
        if let Some(at) = self.poisoned_at
            && durable > at
        {
            return Err(format!("durable rose to {durable} after the WAL was poisoned at {at}"));
        }
        if self.wal.poison().is_some() && self.poisoned_at.is_none() {
            self.poisoned_at = Some(durable);
        }
        self.acked = durable;
        Ok(())
    }

    fn pass_time(&mut self) {
        let ns = match self.chance.below(20) {
            0 => 200_000_000,
            1..=2 => 3_000_000,
            _ => self.chance.below(300_000),
        };
        self.now = self.now.after_ns(ns);
    }

    fn plan(&mut self) -> Result<(), String> {
        let mut requests = std::mem::take(&mut self.requests);
        self.wal.plan(self.now, &mut requests);
        let count = requests.len();
        for request in requests.drain(..) {
            self.proxy.submit(request);
            self.crash_here()?;
        }
        self.requests = requests;
        if count == 0 && self.proxy.under_way() == 0 && self.wal.poison().is_none() {
            self.check_intervals()?;
        }
        Ok(())
    }

    /// Nothing is under way and nothing is to be done: no interval may be late.
    fn check_intervals(&self) -> Result<(), String> {
        for model in self.shards.values() {
            for logical in &model.log {
                if logical.sync_by.is_some_and(|by| by <= self.now) && logical.first_lsn > self.acked {
                    return Err(format!("interval entry {} is late", logical.first_lsn));
                }
            }
        }
        Ok(())
    }

    /// Random work, then a pause or a shutdown, with a crash in a copy at every step of the disk.
    pub fn run(&mut self, steps: u64) -> Result<(), String> {
        let will_shut_down = self.chance.coin();
        for step in 0..steps {
            if self.chance.below(4) > 0 {
                for _ in 0..self.chance.below(4) {
                    self.append_one();
                }
            }
            let flushes = if self.wal.wants_flush() { 4 } else { self.chance.below(3) / 2 };
            (0..flushes).for_each(|_| self.flush_one());
            if step == steps / 2 && self.proxy.disk.options.bytes_max.take().is_some() {
                self.wal.space_returned();
            }
            self.plan()?;
            for _ in 0..self.chance.below(6) {
                if let Some(done) = self.proxy.wait() {
                    self.on_done(done)?;
                    self.crash_here()?;
                }
            }
            self.pass_time();
        }
        if will_shut_down {
            self.wal.shutdown();
        }
        self.settle()?;
        if will_shut_down && self.wal.poison().is_none() {
            if !self.wal.is_closed() {
                return Err("it was shut down and is not closed".to_string());
            }
            let (report, _) = recover(&mut self.proxy.disk.clone())?;
            if report.wals[0].end != WalEnd::Clean || self.acked != self.wal.durable() {
                return Err(format!("a clean shutdown ends as {:?}", report.wals[0].end));
            }
            self.crash_here()?;
        }
        self.stats.trace = self.proxy.disk.trace();
        self.stats.durable = self.acked.0;
        self.stats.groups = self.proxy.disk.count(OpKind::Write);
        for path in self.proxy.disk.paths() {
            let content = self.proxy.disk.content(&path).unwrap();
            let generations = crate::bugs::groups(&content).into_iter().map(|(_, header)| header.generation);
            self.stats.reuses += u64::from(generations.max().unwrap_or(0));
        }
        Ok(())
    }

    /// Lets everything finish; time jumps to the deadlines.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..200 {
            self.plan()?;
            if let Some(done) = self.proxy.wait() {
                self.on_done(done)?;
                self.crash_here()?;
            } else if let Some(deadline) = self.wal.next_deadline() {
                if deadline <= self.now {
                    // Only the making of a file that nobody needs now may be due without an effect.
                    return Ok(());
                }
                self.now = deadline;
            } else {
                return Ok(());
            }
        }
        Err("it does not come to rest".to_string())
    }

    fn crash_here(&mut self) -> Result<(), String> {
        self.stats.crashes += 1;
        let mut disk = self.proxy.crashed(self.chance.bits());
        match self.bug {
            Bug::IgnoreGeneration => crate::bugs::forget_generations(&mut disk),
            Bug::IgnoreCrc => crate::bugs::damage_and_fit_checksum(&mut disk, &mut self.chance),
            Bug::DamageAsTorn => crate::bugs::damage(&mut disk, &mut self.chance),
            _ => {}
        }
        let (report, mut entries) = recover(&mut disk)?;
        if self.bug == Bug::DamageAsTorn {
            if let Some(cut) =
                report.wals.iter().flat_map(|wal| &wal.damage).filter_map(|damage| damage.first_lsn).min()
            {
                entries.retain(|(lsn, _)| *lsn < cut);
            }
        } else if report.wals.iter().any(|wal| wal.is_damaged()) {
            return Err(format!("a crash looks like damage: {report:?}"));
        }
        for wal in &report.wals {
            let end = match wal.end {
                WalEnd::Empty => "empty",
                WalEnd::Clean => "clean",
                WalEnd::Sealed => "sealed",
                WalEnd::Unsealed => "unsealed",
                WalEnd::TornOrDamaged { .. } => "torn",
            };
            *self.stats.ends.entry(end).or_default() += 1;
        }
        self.check(&entries)
    }

    /// Compares what was recovered with what the caller knows.
    pub fn check(&self, entries: &[(Lsn, Vec<u8>)]) -> Result<(), String> {
        let mut last = Lsn(0);
        let mut found: BTreeMap<ShardId, VecDeque<&[u8]>> = BTreeMap::new();
        for (lsn, bytes) in entries {
            if *lsn <= last {
                return Err(format!("entry {lsn} after {last}"));
            }
            last = *lsn;
            let (entry, _) = Entry::decode(bytes).map_err(|error| error.to_string())?;
            found.entry(entry.shard).or_default().push_back(bytes);
        }
        for (shard, model) in &self.shards {
            let mut found = found.remove(shard).unwrap_or_default();
            // The meta file says up to where entries are included; older ones that still lie in the WAL are passed over.
            let included = model.log[..model.flushed].iter().map(|logical| &logical.bytes[..]).collect::<Vec<_>>();
            while found.front().is_some_and(|bytes| included.contains(bytes)) {
                found.pop_front();
            }
            let mut expected = model.log[model.flushed..].iter();
            for bytes in &found {
                let logical = expected.next().ok_or_else(|| format!("shard {shard}: an entry that never was"))?;
                if logical.bytes != *bytes {
                    return Err(format!("shard {shard}: other bytes than entry {} has", logical.first_lsn));
                }
            }
            for logical in expected {
                if logical.first_lsn <= self.acked {
                    return Err(format!("shard {shard}: entry {} was acked and is lost", logical.first_lsn));
                }
                if logical.lsn < last {
                    return Err(format!("shard {shard}: entry {} is missing before {last}", logical.lsn));
                }
            }
        }
        Ok(())
    }
}

/// Number and bytes of the entries that count.
pub type Recovered = Vec<(Lsn, Vec<u8>)>;

/// Recovers and gives every entry that counts, as it would stand if it were no copy.
pub fn recover(disk: &mut MemDisk) -> Result<(Report, Recovered), String> {
    let mut entries = Vec::new();
    let report = Recovery::new(identity(), 9, 64 << 10)
        .run(disk, |position, entry| {
            let mut bytes = Vec::new();
            Entry { copied_from: None, ..*entry }.encode(&mut bytes);
            entries.push((position.lsn, bytes));
        })
        .map_err(|error| format!("recovery refused: {error}"))?;
    Ok((report, entries))
}
