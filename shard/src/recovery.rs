//! **What**: what a start does before any core runs: everything that the WALs of earlier starts hold goes into the segments
//! of its shards, and the WALs go.
//!
//! ```text
//! scan all WALs -> judge -> replay: entry -> its shard's chunks -> segments, meta -> every WAL retired
//! ```
//!
//! A WAL with entries of a shard that has no files here stays: who knows the metadata tells whether that shard was deleted
//! (`set_aside`) or somebody took its files. Then the WAL waits for them; replaying it again changes nothing else.
//!
//! **Invariants**: a WAL is retired only when everything that counts in it is durable in segments and metas. A crash in
//! between is a start again: what is in segments is told by the metas. Memory is bounded by `HELD_BYTES_MAX`.
//!
//! **Never**: a WAL that is damaged retired or served by halves without somebody's decision: the start is refused, and says
//! which shards and what to do.
//!
//! **See**: `felix_wal::recover`, `felix_wal::retire`; `store/leaving.rs`, whose unfinished work ends here.

use crate::store::leaving::order_of_leaving;
use felix_protocol::ids::ShardId;
use felix_protocol::position::Offset;
use felix_protocol::time::Timestamp;
use felix_wal::chunk_builder::{BuildError, ChunkBuilder};
use felix_wal::disk::{Disk, DiskDone, DiskError, DiskOk, DiskOp, DiskRequest, FilePath};
use felix_wal::format::entry::{Append, Entry, EntryBody, WalPosition};
use felix_wal::format::names::{Name, WalId};
use felix_wal::judge::{Damage, WalEnd, WalReport};
use felix_wal::log::{Ended, Health, JobError, LogEvent, LogSettings, Maker, MetaChange, ShardLog};
use felix_wal::log_open::{OpenError, Opening};
use felix_wal::queue::{DiskQueue, Slot};
use felix_wal::recover::{Progress, RecoverError, Recovery};
use felix_wal::repair::LOST_OFFSETS;
use felix_wal::retire::Retire;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Bytes of chunks held for all shards before the largest are flushed.
const HELD_BYTES_MAX: usize = 128 << 20;
/// Bytes read at a time.
const PIECE_BYTES: usize = 1 << 20;
const WAL_SLOT: u32 = u32::MAX - 1;
const RETIRE_SLOT: u32 = u32::MAX - 2;

/// What to do with a WAL that lost data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDamage {
    /// Refuse the start.
    #[default]
    Refuse,
    /// Keep what is whole, up to the first hole of each shard; the WALs go to quarantine, and every shard leaves offsets out.
    AcceptLoss,
}

/// What a start found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// WALs that were there.
    pub wals: usize,
    /// Batches put into segments.
    pub batches: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Shards that they belong to.
    pub shards: usize,
    /// Shards whose deletion was finished.
    pub deleted: Vec<ShardId>,
    /// Damaged WALs that were kept in quarantine, with what was lost, as text.
    pub accepted: Vec<String>,
    /// Something was there, and all of it ended with a clean seal: nothing that was shown early is missing.
    pub was_clean: bool,
    /// Entries of shards that have no files here.
    pub orphans: BTreeMap<ShardId, u64>,
    /// WALs that were not retired because of them, each with the shards it waits for.
    pub waiting: Vec<(WalReport, BTreeSet<ShardId>)>,
}

/// Why a start is refused. Nothing that counts was changed.
#[derive(Debug)]
pub enum RecoveryError {
    /// The WALs cannot be read.
    Recover(RecoverError),
    /// Durable data is missing.
    Damaged {
        /// Which WAL.
        wal: WalId,
        /// What is missing, as text.
        what: Vec<String>,
    },
    /// A shard's log does not open.
    Open {
        /// Which.
        shard: ShardId,
        /// Why.
        error: OpenError,
    },
    /// The WAL does not continue the segments.
    Hole {
        /// Which shard.
        shard: ShardId,
        /// End of the segments.
        expected: Offset,
        /// Offset that the WAL goes on with.
        found: Offset,
    },
    /// An entry that this build never writes.
    Unexpected {
        /// Which shard.
        shard: ShardId,
        /// What it is.
        what: &'static str,
    },
    /// A batch in the WAL is not what it says.
    Batch {
        /// Which shard.
        shard: ShardId,
        /// Why.
        error: BuildError,
    },
    /// The log did not take the batches.
    Job {
        /// Which shard.
        shard: ShardId,
        /// Why.
        error: JobError,
    },
    /// Writing the segments failed.
    Write {
        /// Which shard.
        shard: ShardId,
        /// How.
        ended: Ended,
    },
    /// The disk failed.
    Disk {
        /// Where.
        path: FilePath,
        /// How.
        error: DiskError,
    },
}

impl RecoveryError {
    /// There was no room on the disk: with more the start may go on.
    pub fn is_full(&self) -> bool {
        matches!(
            self,
            RecoveryError::Write { ended: Ended::Full(_), .. }
                | RecoveryError::Disk { error: DiskError::Full, .. }
                | RecoveryError::Recover(RecoverError::Disk { error: DiskError::Full, .. })
        )
    }
}

impl fmt::Display for RecoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoveryError::Recover(error) => write!(f, "the write-ahead log cannot be read: {error}"),
            RecoveryError::Damaged { wal, what } => write!(
                f,
                "the write-ahead log {wal} lost acknowledged data: {}; restore the data folder, or start once with \
                 --accept-wal-loss to go on without it (the log is kept in quarantine)",
                what.join("; ")
            ),
            RecoveryError::Open { shard, error } => write!(
                f,
                "shard {shard} does not open, and the write-ahead log holds data for it: {error}; run `felix-broker check`"
            ),
            RecoveryError::Hole { shard, expected, found } => write!(
                f,
                "shard {shard} ends at offset {expected}, its write-ahead log goes on at {found}: acknowledged data is \
                 missing; run `felix-broker check`, or start once with --accept-wal-loss to go on without what does not fit"
            ),
            RecoveryError::Unexpected { shard, what } => write!(
                f,
                "the write-ahead log holds an entry ({what}) of shard {shard} that this version never writes; start the \
                 version that wrote it"
            ),
            RecoveryError::Batch { shard, error } => {
                write!(f, "shard {shard}, a batch in the write-ahead log: {error}")
            }
            RecoveryError::Job { shard, error } => write!(f, "shard {shard}: {error}; run `felix-broker check`"),
            RecoveryError::Write { shard, ended: Ended::Full(_) } => {
                write!(f, "the disk is full: recovery could not write the segments of shard {shard}; free some space")
            }
            RecoveryError::Write { shard, ended } => write!(f, "the segments of shard {shard}: {ended:?}"),
            RecoveryError::Disk { path, error } => write!(f, "{path}: {error}"),
        }
    }
}

impl std::error::Error for RecoveryError {}

/// A shard that has entries.
struct Replayed {
    log: ShardLog,
    builder: ChunkBuilder,
    /// The last entry in the builder or before it.
    last: WalPosition,
    /// What came behind a hole counts no more.
    is_cut: bool,
}

struct Work<'a> {
    disk: &'a mut dyn Disk,
    queue: DiskQueue,
    maker: Maker,
    settings: LogSettings,
    now: Timestamp,
    on_damage: OnDamage,
    next_slot: u32,
    shards: BTreeMap<ShardId, Replayed>,
    deleted: BTreeSet<ShardId>,
    /// Where the entries of `report.orphans` are.
    orphans_in: BTreeMap<WalId, BTreeSet<ShardId>>,
    report: RecoveryReport,
}

/// Brings a data folder to the state in which only segments count. Nothing else may use the disk meanwhile.
pub fn recover(
    disk: &mut dyn Disk,
    maker: Maker,
    settings: LogSettings,
    now: Timestamp,
    on_damage: OnDamage,
    progress: &mut dyn FnMut(Progress),
) -> Result<RecoveryReport, RecoveryError> {
    Work::new(disk, maker, settings, now, on_damage).run(progress)
}

/// Puts the WALs into quarantine that wait for none of the shards whose files were `made`: what they hold is of shards that
/// were deleted, or that nobody was told of. Of the others the report is left. Nothing else may use the disk meanwhile.
pub fn set_aside(
    disk: &mut dyn Disk,
    maker: Maker,
    now: Timestamp,
    report: &mut RecoveryReport,
    made: impl Fn(ShardId) -> bool,
) -> Result<(), RecoveryError> {
    let mut work = Work::new(disk, maker, LogSettings::default(), now, OnDamage::Refuse);
    for (wal, mut shards) in std::mem::take(&mut report.waiting) {
        shards.retain(|shard| made(*shard));
        if shards.is_empty() {
            work.retire(Retire::quarantine(&wal, now, RETIRE_SLOT))?;
        } else {
            report.waiting.push((wal, shards));
        }
    }
    Ok(())
}

/// After a loss of acknowledged data: every shard goes on so far behind its end that no offset is given again that somebody
/// may have been told (DECISIONS 9); readers meet what is left out as a gap. A shard that does not open gives no offsets. Returns the number of shards. Nothing else may use the disk meanwhile.
pub fn leave_out_lost(disk: &mut dyn Disk, maker: Maker, now: Timestamp) -> Result<usize, RecoveryError> {
    let failed = |path: &FilePath| {
        let path = path.clone();
        move |error| RecoveryError::Disk { path, error }
    };
    let folder = Name::Shards.path();
    let DiskOk::Listed(list) = disk.call(DiskOp::List { path: folder.clone() }).map_err(failed(&folder))? else {
        return Ok(0);
    };
    let mut work = Work::new(disk, maker, LogSettings::default(), now, OnDamage::AcceptLoss);
    let mut count = 0;
    for entry in list {
        let Some(Name::Shard(id)) = Name::parse(&FilePath(format!("{folder}/{}", entry.name))) else { continue };
        let Ok(log) = work.open(id) else { continue };
        let Some(to) = log.flushed_to().checked_add(LOST_OFFSETS) else { continue };
        if !log.takes_flushes() {
            continue;
        }
        let last = log.meta().included;
        work.shards.insert(id, Replayed { log, builder: ChunkBuilder::new(), last, is_cut: true });
        let shard = work.shards.get_mut(&id).expect("just put in");
        shard.log.skip(to, work.now, &mut work.queue).map_err(|error| RecoveryError::Job { shard: id, error })?;
        work.finish(id)?;
        work.close(id)?;
        count += 1;
    }
    Ok(count)
}

fn describe_damage(damage: &Damage) -> String {
    let mut shards: Vec<String> = damage.suspects.shards.iter().map(|shard| format!("shard {shard}")).collect();
    if damage.suspects.more {
        shards.push("possibly other shards of its core".to_string());
    }
    let shards = shards.join(", ");
    let entries = match (damage.first_lsn, damage.next_lsn) {
        (Some(first), Some(next)) => format!(", entries {first}..{next}"),
        _ => String::new(),
    };
    format!("groups {}..={}{entries}, of {shards}", damage.from.0, damage.to.0)
}

fn describe(report: &WalReport) -> Vec<String> {
    let mut what: Vec<String> = report.damage.iter().map(describe_damage).collect();
    if report.unreadable {
        what.push("none of its files has a readable header".to_string());
    }
    what
}

impl<'a> Work<'a> {
    fn new(
        disk: &'a mut dyn Disk,
        maker: Maker,
        settings: LogSettings,
        now: Timestamp,
        on_damage: OnDamage,
    ) -> Work<'a> {
        Work {
            disk,
            queue: DiskQueue::new(),
            maker,
            settings,
            now,
            on_damage,
            next_slot: 0,
            shards: BTreeMap::new(),
            deleted: BTreeSet::new(),
            orphans_in: BTreeMap::new(),
            report: RecoveryReport::default(),
        }
    }

    fn run(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<RecoveryReport, RecoveryError> {
        let mut recovery = Recovery::new(self.maker.identity, WAL_SLOT, PIECE_BYTES);
        let mut requests: Vec<DiskRequest> = Vec::new();
        let mut judged = false;
        while !recovery.is_done() {
            recovery.plan(&mut requests);
            requests.drain(..).for_each(|request| self.disk.submit(request));
            if !judged && let Some(report) = recovery.report() {
                judged = true;
                for wal in report.wals.iter().filter(|wal| wal.is_damaged()) {
                    let what = describe(wal);
                    if self.on_damage == OnDamage::Refuse {
                        return Err(RecoveryError::Damaged { wal: wal.wal, what });
                    }
                    self.report.accepted.push(format!("{}: {}", wal.wal, what.join("; ")));
                }
            }
            if let Some(group) = recovery.group() {
                // The recovery has nothing under way while it offers a group, so the disk is free for the segments.
                for (position, entry) in group.entries() {
                    self.replay(position, &entry)?;
                }
            } else if let Some(done) = self.disk.wait() {
                recovery.on_done(done);
                progress(recovery.progress());
            }
        }
        if let Some(error) = recovery.error() {
            return Err(RecoveryError::Recover(error.clone()));
        }
        let found = recovery.report().cloned().unwrap_or_default();
        let ids: Vec<ShardId> = self.shards.keys().copied().collect();
        for id in ids {
            self.flush(id)?;
            self.close(id)?;
        }
        for id in self.deleted.clone() {
            self.remove(id)?;
        }
        if !self.report.accepted.is_empty() {
            // Before the WAL that tells of the loss goes: a start after a crash here must know of it.
            leave_out_lost(self.disk, self.maker, self.now)?;
        }
        for (wal, numbers) in &found.retired {
            self.retire(Retire::rest(*wal, numbers, RETIRE_SLOT))?;
        }
        // An empty one is of a start that ended before it came to serve, and says nothing of the one before.
        let is_clean = |wal: &WalReport| wal.end == WalEnd::Clean;
        self.report.was_clean = !found.wals.is_empty() && found.wals.iter().all(is_clean);
        // Who was not clean goes last: a crash in between must not make the next start believe that all were.
        for wal in found.wals.iter().filter(|wal| is_clean(wal)).chain(found.wals.iter().filter(|wal| !is_clean(wal))) {
            // Whatever was left out because it does not fit is kept, with all else.
            let all_used = self.report.accepted.is_empty();
            if all_used && let Some(orphans) = self.orphans_in.remove(&wal.wal).filter(|it| !it.is_empty()) {
                self.report.waiting.push((wal.clone(), orphans));
                continue;
            }
            let whole = all_used.then(|| Retire::remove(wal, RETIRE_SLOT)).flatten();
            let retire = whole.unwrap_or_else(|| Retire::quarantine(wal, self.now, RETIRE_SLOT));
            self.retire(retire)?;
        }
        self.report.wals = found.wals.len();
        self.report.shards = self.shards.len();
        Ok(std::mem::take(&mut self.report))
    }

    fn next(&mut self) -> DiskDone {
        self.queue.drain().for_each(|request| self.disk.submit(request));
        self.disk.wait().expect("a request is under way")
    }

    fn replay(&mut self, position: WalPosition, entry: &Entry<'_>) -> Result<(), RecoveryError> {
        let id = entry.shard;
        let unexpected = |what| Err(RecoveryError::Unexpected { shard: id, what });
        match &entry.body {
            EntryBody::Append(append) => self.append(id, position, append),
            EntryBody::Delete { .. } => {
                self.deleted.insert(id);
                self.shards.remove(&id);
                self.report.orphans.remove(&id);
                for orphans in self.orphans_in.values_mut() {
                    orphans.remove(&id);
                }
                Ok(())
            }
            EntryBody::Truncate { .. } => unexpected("a truncation"),
            EntryBody::Promise { .. } => unexpected("a promise"),
            EntryBody::EpochStart { .. } => unexpected("an epoch start"),
            EntryBody::Create { .. } => unexpected("a creation"),
            EntryBody::FlushedTo { .. } | EntryBody::Rehome { .. } | EntryBody::Seal { .. } => Ok(()),
        }
    }

    fn append(&mut self, id: ShardId, position: WalPosition, append: &Append<'_>) -> Result<(), RecoveryError> {
        if self.deleted.contains(&id) {
            return Ok(());
        }
        if !self.shards.contains_key(&id) {
            match self.open(id) {
                Ok(log) => {
                    let mut builder = ChunkBuilder::new();
                    builder.begin(log.cursor());
                    let last = log.meta().included;
                    self.shards.insert(id, Replayed { log, builder, last, is_cut: false });
                }
                // Nobody can have been acknowledged before the meta was there, so this is a shard whose deletion a crash
                // kept from being told, or whose folder somebody took. It is reported.
                Err(OpenError::NoMeta { segments: 0 }) => {
                    *self.report.orphans.entry(id).or_default() += 1;
                    self.orphans_in.entry(position.wal).or_default().insert(id);
                    return Ok(());
                }
                Err(error) => return Err(RecoveryError::Open { shard: id, error }),
            }
        }
        let shard = self.shards.get_mut(&id).expect("it was opened");
        if shard.is_cut || is_included(position, shard.log.meta().included) || append.lineage != shard.log.lineage() {
            return Ok(());
        }
        let next = shard.builder.cursor().map_or(shard.log.flushed_to(), |cursor| cursor.next);
        // What the meta includes was passed by above, so anything but the next batch means that something is missing.
        if append.base_offset != next {
            let error = RecoveryError::Hole { shard: id, expected: next, found: append.base_offset };
            return self.give_up(id, next, error);
        }
        let sealed = append.sealed_by.is_some();
        let mut pushed = shard.builder.push(append.batch, sealed);
        if pushed == Err(BuildError::Full) {
            self.flush(id)?;
            let shard = self.shards.get_mut(&id).expect("it was opened");
            pushed = shard.builder.push(append.batch, sealed);
        }
        if let Err(error) = pushed {
            return self.give_up(id, next, RecoveryError::Batch { shard: id, error });
        }
        self.shards.get_mut(&id).expect("it was opened").last = position;
        self.report.batches += 1;
        self.report.bytes += append.batch.len() as u64;
        self.bound()
    }

    /// Nothing more of this shard fits. Who accepts that goes on without the rest.
    fn give_up(&mut self, id: ShardId, next: Offset, error: RecoveryError) -> Result<(), RecoveryError> {
        if self.on_damage == OnDamage::Refuse {
            return Err(error);
        }
        self.shards.get_mut(&id).expect("it was opened").is_cut = true;
        self.report.accepted.push(format!("shard {id}: what was behind offset {next}"));
        Ok(())
    }

    /// Flushes the largest when all together hold too much.
    fn bound(&mut self) -> Result<(), RecoveryError> {
        // A sum per batch is too much with very many shards; every 64th will do, since a batch is at most 2 MiB.
        if !self.report.batches.is_multiple_of(64) {
            return Ok(());
        }
        let held: usize = self.shards.values().map(|it| it.builder.bytes()).sum();
        if held > HELD_BYTES_MAX
            && let Some(id) = self.shards.iter().max_by_key(|(_, it)| it.builder.bytes()).map(|(id, _)| *id)
        {
            self.flush(id)?;
            // A descriptor each would be too many with very many shards.
            self.close(id)?;
        }
        Ok(())
    }

    fn open(&mut self, id: ShardId) -> Result<ShardLog, OpenError> {
        self.next_slot += 1;
        let slot = Slot(self.next_slot);
        let mut opening = Opening::open(slot, self.maker, id, self.now, Offset(0), &mut self.queue);
        loop {
            let done = self.next();
            if let Some(opened) = opening.handle(done, &mut self.queue) {
                return opened.map(|(log, _)| log);
            }
        }
    }

    fn finish(&mut self, id: ShardId) -> Result<LogEvent, RecoveryError> {
        loop {
            let done = self.next();
            let shard = self.shards.get_mut(&id).expect("its job runs");
            if let Some(event) = shard.log.handle(done, &mut self.queue) {
                return match event.ended {
                    Ended::Done => Ok(event),
                    ended => Err(RecoveryError::Write { shard: id, ended }),
                };
            }
        }
    }

    fn flush(&mut self, id: ShardId) -> Result<(), RecoveryError> {
        let Some(shard) = self.shards.get_mut(&id) else { return Ok(()) };
        let job = |error| RecoveryError::Job { shard: id, error };
        if !shard.builder.is_empty() {
            // A damaged log keeps its strays for whoever repairs it.
            if *shard.log.health() == Health::Well && shard.log.clean(self.now, &mut self.queue).map_err(job)? {
                self.finish(id)?;
            }
            let shard = self.shards.get_mut(&id).expect("just seen");
            let change = MetaChange::included(shard.last);
            shard.log.flush(&mut shard.builder, &change, &self.settings, self.now, &mut self.queue).map_err(job)?;
            let event = self.finish(id)?;
            let shard = self.shards.get_mut(&id).expect("just seen");
            event.buffer.into_iter().for_each(|buffer| shard.builder.reuse(buffer));
        }
        let shard = self.shards.get_mut(&id).expect("just seen");
        shard.builder.begin(shard.log.cursor());
        Ok(())
    }

    fn close(&mut self, id: ShardId) -> Result<(), RecoveryError> {
        let Some(shard) = self.shards.get_mut(&id) else { return Ok(()) };
        if shard.log.close_file(&mut self.queue).map_err(|error| RecoveryError::Job { shard: id, error })? {
            self.finish(id)?;
        }
        Ok(())
    }

    /// Ends what `leaving.rs` began.
    fn remove(&mut self, id: ShardId) -> Result<(), RecoveryError> {
        let folder = Name::Shard(id).path();
        let failed = |path: &FilePath| {
            let path = path.clone();
            move |error| RecoveryError::Disk { path, error }
        };
        let listed = self.disk.call(DiskOp::List { path: folder.clone() }).map_err(failed(&folder))?;
        let DiskOk::Listed(list) = listed else { return Ok(()) };
        if list.is_empty() {
            return match self.disk.call(DiskOp::Remove { path: folder.clone() }) {
                Ok(_) | Err(DiskError::NotFound) => Ok(()),
                Err(error) => Err(RecoveryError::Disk { path: folder, error }),
            };
        }
        for from in order_of_leaving(id, list.into_iter().map(|it| it.name)) {
            let to = Name::quarantined(self.now, &from).path();
            self.disk.call(DiskOp::Rename { from: from.clone(), to }).map_err(failed(&from))?;
        }
        self.disk.call(DiskOp::Remove { path: folder.clone() }).map_err(failed(&folder))?;
        self.report.deleted.push(id);
        Ok(())
    }

    fn retire(&mut self, mut retire: Retire) -> Result<(), RecoveryError> {
        let mut requests = Vec::new();
        while !retire.is_done() {
            retire.plan(&mut requests);
            requests.drain(..).for_each(|request| self.disk.submit(request));
            if let Some((path, error)) = retire.failed() {
                return Err(RecoveryError::Disk { path: path.clone(), error });
            }
            if let Some(done) = self.disk.wait() {
                retire.on_done(done);
            }
        }
        Ok(())
    }
}

/// The meta includes this entry: it is of the same WAL and not behind, or of an earlier start of the node.
fn is_included(position: WalPosition, included: WalPosition) -> bool {
    if position.wal == included.wal {
        return position.lsn <= included.lsn;
    }
    position.wal.session < included.wal.session
}
