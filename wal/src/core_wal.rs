//! **What**: the WAL of one core: one write and one sync make entries of all its shards durable.
//!
//! ```text
//! append -> gathered -> [write -> written -> sync] -> durable          sequences: synced <= written < next
//! ```
//!
//! How a loop uses it: `append` during the turn and keep the `Lsn`; `plan` at the end of the turn and submit what it asks
//! for; `on_done` for each completion, then answer everything up to `durable`. `next_deadline` says when to come back.
//!
//! **Invariants**: one group write and one sync are under way at most. A group is submitted after the write of the one
//! before has completed. `durable` rises only by a sync that began after the group's write had completed: it was submitted
//! after that, or with the write as a `SyncAfter`. Every group starts on a block of its own. Nothing depends on how many shards there are.
//!
//! **Never**: a second try of a failed write or sync: the WAL is poisoned, for good. An ack after that.
//!
//! **See**: `group_commit.rs` (when), `ring.rs` (where), `prepare.rs` (files ahead), `recover.rs` (the other end).

use std::collections::VecDeque;
use std::fmt;

use felix_protocol::ids::ShardId;
use felix_protocol::position::{Lineage, Offset};
use felix_protocol::time::Time;

use crate::disk::{BLOCK_BYTES, DiskDone, DiskError, DiskOk, DiskOp, DiskRequest, FileKey, Priority, Ticket};
use crate::format::entry::{ENTRY_BYTES_MAX, Entry, EntryBody, Lsn};
use crate::format::group::{GROUP_BYTES_MAX, GROUP_HEADER_BYTES, GroupHeader, GroupSeed, GroupSequence, group_bytes};
use crate::format::header::{HEADER_BYTES, Identity};
use crate::format::names::WalId;
use crate::group_commit::{Commit, Delays, Group, GroupCommit};
use crate::prepare::{Prepare, Prepared};
use crate::ring::Ring;

/// Sizes and delays.
#[derive(Clone, Debug)]
pub struct CoreWalSettings {
    /// Bytes of a file, a multiple of `BLOCK_BYTES`.
    pub file_bytes: u64,
    /// Files before appends are refused because of shards that pin the oldest.
    pub files_max: usize,
    /// Files that hold needed groups beyond which `wants_flush` says so.
    pub files_wanted: usize,
    /// Largest group, header and padding included; an entry must fit one.
    pub group_bytes_max: usize,
    /// Bytes gathered and not yet written beyond which appends are refused for now.
    pub gather_bytes_max: u64,
    /// Room at the end of the last file that only truncations, promises and the like, and the seal may use.
    pub reserve_bytes: u64,
    /// Longest wait of `Commit::Group` for a sync under way.
    pub group_delay_ns: u64,
    /// When `Commit::None` is written, if nothing else is.
    pub lazy_ns: u64,
    /// Pause after which a seal is written.
    pub seal_after_ns: u64,
    /// After a full disk: when to try again.
    pub full_retry_ns: u64,
}

impl Default for CoreWalSettings {
    fn default() -> CoreWalSettings {
        CoreWalSettings {
            file_bytes: 64 << 20,
            files_max: 16,
            files_wanted: 4,
            group_bytes_max: 4 << 20,
            gather_bytes_max: 16 << 20,
            reserve_bytes: 8 << 20,
            group_delay_ns: 1_000_000,
            lazy_ns: 100_000_000,
            seal_after_ns: 1_000_000,
            full_retry_ns: 1_000_000_000,
        }
    }
}

impl CoreWalSettings {
    /// Small files for tests: many rolls with little data.
    pub fn small() -> CoreWalSettings {
        CoreWalSettings {
            file_bytes: 64 << 10,
            files_max: 8,
            files_wanted: 3,
            group_bytes_max: 16 << 10,
            gather_bytes_max: 48 << 10,
            reserve_bytes: 12 << 10,
            ..CoreWalSettings::default()
        }
    }

    fn usable(&self) -> u64 {
        self.file_bytes - HEADER_BYTES as u64
    }

    fn check(&self) {
        let block = BLOCK_BYTES as u64;
        assert!(self.file_bytes.is_multiple_of(block), "{self:?}");
        assert!(
            self.group_bytes_max.is_multiple_of(BLOCK_BYTES) && self.group_bytes_max <= GROUP_BYTES_MAX,
            "{self:?}"
        );
        // A roll wastes at most a group; what is left must hold the reserve and a group.
        assert!(2 * self.group_bytes_max as u64 + self.reserve_bytes <= self.usable(), "{self:?}");
        assert!(self.reserve_bytes >= 2 * block && self.files_max >= 2, "{self:?}");
    }
}

/// What failed when the WAL was poisoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoisonedBy {
    /// The write of a group.
    Write,
    /// A sync.
    Sync,
    /// The making of a file.
    Prepare,
}

/// Why a WAL takes nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poison {
    /// What failed.
    pub by: PoisonedBy,
    /// How.
    pub error: DiskError,
}

impl fmt::Display for Poison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.by {
            PoisonedBy::Write => "a write",
            PoisonedBy::Sync => "a sync",
            PoisonedBy::Prepare => "the making of a file",
        };
        write!(f, "{what} of the WAL failed: {}", self.error)
    }
}

/// Why an entry was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// Too much waits for the disk; again after a completion.
    Busy,
    /// The disk is full; again when space is freed.
    DiskFull,
    /// Shards pin the oldest file; again when they have flushed (`pins`).
    RingFull,
    /// Larger than a group may be.
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The WAL takes nothing any more.
    Poisoned(Poison),
    /// The WAL is shutting down.
    Closing,
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AppendError::Busy => f.write_str("too much waits for the disk"),
            AppendError::DiskFull => f.write_str("the disk is full"),
            AppendError::RingFull => f.write_str("the WAL is full of entries that are not flushed"),
            AppendError::TooLarge { bytes, max } => write!(f, "an entry of {bytes} bytes, at most {max} are allowed"),
            AppendError::Poisoned(poison) => poison.fmt(f),
            AppendError::Closing => f.write_str("the WAL is shutting down"),
        }
    }
}

impl std::error::Error for AppendError {}

/// Groups of one file that were written and are not durable.
#[derive(Clone, Copy, Debug)]
struct Written {
    key: FileKey,
    last: Mark,
    sync_by: Option<Time>,
}

/// How far a group reaches.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    sequence: GroupSequence,
    lsn: Lsn,
    first_needed: GroupSequence,
}

#[derive(Debug)]
struct WriteUnderWay {
    ticket: Ticket,
    group: Group,
    key: FileKey,
    mark: Mark,
}

#[derive(Debug)]
struct SyncUnderWay {
    ticket: Ticket,
    key: FileKey,
    covers: Mark,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    Draining,
    Sealing,
    Closed,
}

/// The WAL of one core.
#[derive(Debug)]
pub struct CoreWal {
    settings: CoreWalSettings,
    wal: WalId,
    seed: GroupSeed,
    owner: u32,
    gather: GroupCommit,
    ring: Ring,
    prepare: Prepare,
    write: Option<WriteUnderWay>,
    sync: Option<SyncUnderWay>,
    written: VecDeque<Written>,
    next_lsn: u64,
    next_sequence: u64,
    next_ticket: u32,
    durable: Mark,
    /// Pins that go once an entry is durable: originals of copies, and what was flushed after them.
    superseded: VecDeque<(Lsn, ShardId, Lsn)>,
    /// The last group written is a seal, or nothing was written.
    sealed: bool,
    idle_since: Time,
    closing: Closing,
    poison: Option<Poison>,
    may_grow: bool,
    grown_bytes: u64,
}

impl CoreWal {
    /// A WAL that does not exist yet. `wal` was never used before, `salt` is random; `owner` is in its tickets and file keys.
    pub fn new(settings: CoreWalSettings, identity: Identity, wal: WalId, salt: u128, owner: u32) -> CoreWal {
        settings.check();
        let delays = Delays { group_ns: settings.group_delay_ns, lazy_ns: settings.lazy_ns };
        CoreWal {
            gather: GroupCommit::new(settings.group_bytes_max, delays),
            ring: Ring::default(),
            prepare: Prepare::new(identity, wal, salt, owner, settings.file_bytes),
            settings,
            wal,
            seed: GroupSeed::of(salt),
            owner,
            write: None,
            sync: None,
            written: VecDeque::with_capacity(4),
            next_lsn: 1,
            next_sequence: 1,
            next_ticket: 0,
            durable: Mark::default(),
            superseded: VecDeque::new(),
            sealed: true,
            idle_since: Time(0),
            closing: Closing::No,
            poison: None,
            may_grow: true,
            grown_bytes: 0,
        }
    }

    /// Which WAL.
    pub fn id(&self) -> WalId {
        self.wal
    }

    /// Entries up to this one are durable.
    pub fn durable(&self) -> Lsn {
        self.durable.lsn
    }

    /// The last entry that was taken.
    pub fn appended(&self) -> Lsn {
        Lsn(self.next_lsn - 1)
    }

    /// Why it takes nothing any more.
    pub fn poison(&self) -> Option<Poison> {
        self.poison
    }

    /// The first file is there.
    pub fn is_ready(&self) -> bool {
        self.ring.held_count() + self.ring.spare_count() > 0
    }

    /// The disk is full: only the reserve is left for those that may use it.
    pub fn is_full(&self) -> bool {
        self.prepare.is_full() && self.ring.spare_count() == 0
    }

    /// Everything is on disk and sealed, and no file is open.
    pub fn is_closed(&self) -> bool {
        self.closing == Closing::Closed && self.prepare.is_quiet()
    }

    /// More files are held than wanted: the shards in `pins` should flush or be copied forward.
    pub fn wants_flush(&self) -> bool {
        self.ring.held_count() > self.settings.files_wanted
    }

    /// Files that hold needed groups.
    pub fn files_held(&self) -> usize {
        self.ring.held_count()
    }

    /// Whether there is room for another file: without it appends are refused as by a full disk once the files that are there
    /// hold no more. The first file is made all the same.
    pub fn set_may_grow(&mut self, may: bool) {
        self.may_grow = may;
    }

    /// Bytes of files that were made so far.
    pub fn grown_bytes(&self) -> u64 {
        self.grown_bytes
    }

    /// Shards that pin the oldest file, each with its last entry in there.
    pub fn pins(&self) -> impl Iterator<Item = (ShardId, Lsn)> + '_ {
        self.ring.pins()
    }

    /// Bytes gathered and not yet written.
    pub fn gathered_bytes(&self) -> u64 {
        self.gather.gathered_bytes()
    }

    /// Takes an entry. Everything but appends and FlushedTo is durable as soon as the disk can, whatever `commit` says.
    pub fn append(&mut self, now: Time, entry: &Entry<'_>, commit: Commit) -> Result<Lsn, AppendError> {
        if let Some(poison) = self.poison {
            return Err(AppendError::Poisoned(poison));
        }
        if self.closing != Closing::No {
            return Err(AppendError::Closing);
        }
        let bytes = entry.bytes();
        let max = ENTRY_BYTES_MAX.min(self.settings.group_bytes_max - GROUP_HEADER_BYTES);
        if bytes > max {
            return Err(AppendError::TooLarge { bytes, max });
        }
        let is_append = matches!(entry.body, EntryBody::Append(_));
        let may_use_reserve = !is_append || entry.copied_from.is_some();
        // The last block is for the seal that states what is not needed any more: without it a full ring would stay full.
        let reserve = if may_use_reserve { BLOCK_BYTES as u64 } else { self.settings.reserve_bytes };
        let wanted = self.gather.gathered_bytes_with(bytes);
        if wanted + reserve > self.room() {
            return Err(self.no_room());
        }
        // What may use the reserve is small and must not wait behind what is large.
        let patience = if may_use_reserve { 2 } else { 1 };
        if wanted > patience * self.settings.gather_bytes_max {
            return Err(AppendError::Busy);
        }
        let commit = match entry.body {
            EntryBody::Append(_) | EntryBody::FlushedTo { .. } => commit,
            _ => Commit::Each,
        };
        Ok(self.take(now, entry, commit))
    }

    fn take(&mut self, now: Time, entry: &Entry<'_>, commit: Commit) -> Lsn {
        let lsn = Lsn(self.next_lsn);
        self.next_lsn += 1;
        self.gather.append(now, lsn, entry, commit);
        lsn
    }

    /// Bytes that surely find a place, whatever is gathered: files that are there, less what a roll may waste.
    fn room(&self) -> u64 {
        let current = self.ring.current().map_or(0, |file| self.settings.file_bytes - file.end);
        let spare = self.settings.usable() - self.settings.group_bytes_max as u64;
        current.min(self.settings.usable()) + self.ring.spare_count() as u64 * spare
    }

    fn no_room(&self) -> AppendError {
        if self.prepare.is_full() || !self.may_grow {
            AppendError::DiskFull
        } else if self.may_prepare() {
            AppendError::Busy
        } else {
            AppendError::RingFull
        }
    }

    /// The shard's entries up to `through` are in its segments, and its meta file that says so is durable.
    pub fn flushed(&mut self, now: Time, shard: ShardId, lineage: Lineage, offset: Offset, through: Lsn) {
        if self.poison.is_some() {
            return;
        }
        // The entry spares recovery work; without room for it, the meta file says the same.
        let entry = Entry::new(shard, EntryBody::FlushedTo { lineage, offset, through, copied: false });
        let recorded = self.append(now, &entry, Commit::None);
        if self.superseded.iter().any(|(_, other, _)| *other == shard) {
            // `through` may be the number of a copy: originals of other copies are below it, and needed until those are
            // durable. So this waits its turn behind them.
            if let Ok(lsn) = recorded {
                self.superseded.push_back((lsn, shard, through));
            }
            return;
        }
        self.ring.unpin(shard, through);
        self.ring.release();
    }

    /// What matters of the shard's entries up to `through` was appended again, as copies, and nothing of the shard came in
    /// between: `through` is what `appended` said before the first copy. The originals are let go once that is durable.
    /// Copies of an attempt that ended before this call have no effect. Not while a flush of the shard is under way: what it
    /// covers is told in numbers of the originals.
    pub fn superseded(
        &mut self,
        now: Time,
        shard: ShardId,
        lineage: Lineage,
        offset: Offset,
        through: Lsn,
    ) -> Result<Lsn, AppendError> {
        let entry = Entry::new(shard, EntryBody::FlushedTo { lineage, offset, through, copied: true });
        let lsn = self.append(now, &entry, Commit::Each)?;
        self.superseded.push_back((lsn, shard, through));
        Ok(lsn)
    }

    /// Space was freed: try again at once.
    pub fn space_returned(&mut self) {
        self.prepare.retry();
    }

    /// Writes what is gathered, syncs, seals and closes; `is_closed` says when that is done.
    pub fn shutdown(&mut self) {
        if self.closing == Closing::No {
            self.closing = Closing::Draining;
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket = self.next_ticket.wrapping_add(1) & !Prepare::TICKET_BIT;
        Ticket::new(self.owner, self.next_ticket)
    }

    fn may_prepare(&self) -> bool {
        let total = self.ring.file_count();
        if total > 0 && !self.may_grow {
            return false;
        }
        let stuck = self.ring.released_count() > 0
            && self.ring.current().is_none_or(|file| self.settings.file_bytes - file.end < self.settings.reserve_bytes);
        total < self.settings.files_max || (stuck && total == self.settings.files_max)
    }

    fn wants_file(&self) -> bool {
        self.ring.spare_count() == 0 && self.may_prepare() && self.closing == Closing::No
    }

    /// What is to be done now. At the end of every turn, after all appends and completions of the turn.
    pub fn plan(&mut self, now: Time, out: &mut Vec<DiskRequest>) {
        if self.poison.is_some() || self.closing == Closing::Closed {
            return;
        }
        if self.wants_file() {
            self.prepare.start(now);
        }
        self.prepare.plan(out);
        self.seal_if_idle(now);
        // The sync first: it covers what completed, and the next group may be written meanwhile.
        self.plan_sync(now, out);
        self.plan_write(now, out);
        self.close_if_drained(now, out);
    }

    fn plan_sync(&mut self, now: Time, out: &mut Vec<DiskRequest>) {
        let due = self.written.iter().any(|written| written.sync_by.is_some_and(|by| by <= now));
        if self.sync.is_some() || !due {
            return;
        }
        // In order of files: what is durable must be a prefix.
        let ticket = self.ticket();
        let Some(oldest) = self.written.front_mut() else { return };
        oldest.sync_by = None;
        let (key, covers) = (oldest.key, oldest.last);
        self.sync = Some(SyncUnderWay { ticket, key, covers });
        out.push(DiskRequest { ticket, priority: Priority::Commit, op: DiskOp::Sync { file: key } });
    }

    fn plan_write(&mut self, now: Time, out: &mut Vec<DiskRequest>) {
        let due = self.gather.due(self.sync.is_some()).is_some_and(|by| by <= now);
        if self.write.is_some() || !due || !self.make_place(now) {
            return;
        }
        let Some(mut group) = self.gather.take() else { return };
        let sequence = GroupSequence(self.next_sequence);
        self.next_sequence += 1;
        let bytes = group_bytes(group.payload_bytes()) as u64;
        let first_needed = self.ring.first_needed(sequence);
        let at = self.ring.place(sequence, bytes, &group.pins);
        let file = self.ring.current().expect("a place was made");
        let key = file.key;
        let header = GroupHeader {
            wal: self.wal,
            number: file.number,
            generation: file.generation,
            block: (at / BLOCK_BYTES as u64) as u32,
            sequence,
            first_lsn: group.first_lsn,
            entry_count: group.entry_count,
            payload_bytes: group.payload_bytes() as u32,
            synced_through: self.durable.sequence,
            first_needed,
            index_crc: group.index_crc,
        };
        header.finish(self.seed, &mut group.buffer);
        self.sealed = group.is_seal;
        if self.ring.released_count() > 0 {
            // A released file waits for a durable group that states it.
            let by = now.after_ns(self.settings.lazy_ns);
            group.sync_by = Some(group.sync_by.map_or(by, |other| other.min(by)));
        }
        let ticket = self.ticket();
        let mark = Mark { sequence, lsn: group.last_lsn(), first_needed };
        let bytes = std::mem::take(&mut group.buffer);
        let sync_is_due = group.sync_by.is_some_and(|by| by <= now);
        self.write = Some(WriteUnderWay { ticket, group, key, mark });
        out.push(DiskRequest { ticket, priority: Priority::Commit, op: DiskOp::Write { file: key, at, bytes } });
        if sync_is_due {
            self.plan_sync_after(key, mark, ticket, out);
        }
    }

    /// The sync of a write that was just planned, if it may be the next one: what is durable must be a prefix.
    fn plan_sync_after(&mut self, key: FileKey, covers: Mark, write: Ticket, out: &mut Vec<DiskRequest>) {
        if self.sync.is_some() || self.written.iter().any(|written| written.key != key) {
            return;
        }
        if let Some(written) = self.written.front_mut() {
            // It covers these as well: they are in the same file, and completed.
            written.sync_by = None;
        }
        let ticket = self.ticket();
        self.sync = Some(SyncUnderWay { ticket, key, covers });
        out.push(DiskRequest { ticket, priority: Priority::Commit, op: DiskOp::SyncAfter { file: key, write } });
    }

    /// Makes sure that the next group fits the current file.
    fn make_place(&mut self, now: Time) -> bool {
        let bytes = self.gather.next_bytes() as u64;
        if self.ring.current().is_some_and(|file| file.end + bytes <= self.settings.file_bytes) {
            return true;
        }
        let before = self.ring.current().map(|file| file.key);
        if !self.ring.roll() {
            return false;
        }
        // What was left unsynced in the file before must not hold up its reuse, nor the prefix of what is durable.
        if let Some(written) = self.written.iter_mut().find(|written| Some(written.key) == before) {
            written.sync_by = Some(now);
        }
        true
    }

    fn is_idle(&self) -> bool {
        self.gather.is_empty() && self.write.is_none() && self.sync.is_none()
    }

    fn seal_if_idle(&mut self, now: Time) {
        // Files that were released wait for a group that says so.
        let states = self.ring.released_count() > 0;
        if self.sealed && !states || self.closing != Closing::No || !self.is_idle() || now < self.seal_at() {
            return;
        }
        if let Some(written) = self.written.front_mut() {
            // First what nobody was in a hurry for; the seal follows.
            written.sync_by = Some(now);
            return;
        }
        let entry = self.seal(false);
        let reserve = if states { 0 } else { self.settings.reserve_bytes };
        if self.gather.gathered_bytes_with(entry.bytes()) + reserve <= self.room() {
            self.take(now, &entry, Commit::Each);
        } else {
            // No room to say it: the end stays unsealed.
            self.sealed = true;
        }
    }

    fn seal_at(&self) -> Time {
        self.idle_since.after_ns(self.settings.seal_after_ns)
    }

    fn seal(&self, clean: bool) -> Entry<'static> {
        Entry::new(ShardId(0), EntryBody::Seal { synced_through: self.durable.sequence, clean })
    }

    fn close_if_drained(&mut self, now: Time, out: &mut Vec<DiskRequest>) {
        match self.closing {
            Closing::No | Closing::Closed => return,
            Closing::Draining | Closing::Sealing => {}
        }
        self.gather.hurry();
        if let Some(written) = self.written.back_mut() {
            written.sync_by = Some(now);
        }
        if !self.is_idle() || !self.written.is_empty() {
            self.plan_sync(now, out);
            self.plan_write(now, out);
            return;
        }
        if self.closing == Closing::Draining {
            self.closing = Closing::Sealing;
            let entry = self.seal(true);
            if self.gather.gathered_bytes_with(entry.bytes()) <= self.room() {
                self.take(now, &entry, Commit::Each);
                self.plan_write(now, out);
                return;
            }
        }
        if !self.prepare.is_quiet() {
            return;
        }
        self.closing = Closing::Closed;
        let keys: Vec<FileKey> = self.ring.keys().collect();
        for file in keys {
            let ticket = self.ticket();
            out.push(DiskRequest { ticket, priority: Priority::Background, op: DiskOp::Close { file } });
        }
    }

    /// A completion of one of its requests.
    pub fn on_done(&mut self, now: Time, done: DiskDone) {
        if Prepare::is_for(done.ticket) {
            match self.prepare.on_done(now, self.settings.full_retry_ns, done.result) {
                Prepared::Nothing => {}
                Prepared::File(file) => {
                    self.grown_bytes += self.settings.file_bytes;
                    self.ring.add_spare(file);
                    if self.ring.current().is_none() {
                        self.ring.roll();
                    }
                }
                Prepared::Failed(error) => self.poisoned(PoisonedBy::Prepare, error),
            }
            return;
        }
        if self.write.as_ref().is_some_and(|write| write.ticket == done.ticket) {
            let write = self.write.take().expect("it is there");
            match done.result {
                Ok(DiskOk::Written(buffer)) => self.on_written(write, buffer),
                Ok(_) => self.poisoned(PoisonedBy::Write, DiskError::Io { errno: 0 }),
                Err(error) => self.poisoned(PoisonedBy::Write, error),
            }
        } else if self.sync.as_ref().is_some_and(|sync| sync.ticket == done.ticket) {
            let sync = self.sync.take().expect("it is there");
            match done.result {
                Ok(_) => self.on_synced(sync),
                Err(error) => self.poisoned(PoisonedBy::Sync, error),
            }
        }
        self.idle_since = now;
    }

    fn poisoned(&mut self, by: PoisonedBy, error: DiskError) {
        // The first failure is the reason; those after it are its echo.
        self.poison.get_or_insert(Poison { by, error });
    }

    fn on_written(&mut self, write: WriteUnderWay, buffer: Vec<u8>) {
        let WriteUnderWay { mut group, key, mark, .. } = write;
        group.buffer = buffer;
        let is_covered = self.sync.as_ref().is_some_and(|sync| sync.covers.sequence >= mark.sequence);
        let sync_by = group.sync_by.filter(|_| !is_covered);
        self.gather.give_back(group);
        match self.written.back_mut() {
            Some(last) if last.key == key => {
                last.last = mark;
                last.sync_by = match (last.sync_by, sync_by) {
                    (Some(one), Some(other)) => Some(one.min(other)),
                    (one, other) => one.or(other),
                };
            }
            before => {
                // The file before is complete; it is synced now, so that it can be reused one day.
                if let Some(before) = before {
                    before.sync_by = Some(Time(0));
                }
                self.written.push_back(Written { key, last: mark, sync_by });
            }
        }
    }

    fn on_synced(&mut self, sync: SyncUnderWay) {
        if self.poison.is_some() {
            return;
        }
        let SyncUnderWay { key, covers, .. } = sync;
        assert!(covers.sequence > self.durable.sequence, "{covers:?} after {:?}", self.durable);
        let oldest = self.written.front().expect("it was written");
        assert_eq!(oldest.key, key, "files are synced in order");
        if oldest.last.sequence == covers.sequence {
            self.written.pop_front();
        }
        self.durable = covers;
        while let Some((lsn, shard, through)) = self.superseded.front().copied()
            && lsn <= covers.lsn
        {
            self.superseded.pop_front();
            self.ring.unpin(shard, through);
        }
        self.ring.release();
        self.ring.reuse(covers.first_needed);
    }

    /// When `plan` has something to do although nothing happens before. None: nothing.
    pub fn next_deadline(&self) -> Option<Time> {
        if self.poison.is_some() || self.closing != Closing::No {
            return None;
        }
        // If no file is wanted any more, a time that has passed would be a reason to come back for ever.
        let mut next: Option<Time> = self.prepare.retry_at().filter(|_| self.wants_file());
        let mut add = |by: Option<Time>| {
            next = match (next, by) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        };
        if self.write.is_none() {
            add(self.gather.due(self.sync.is_some()));
        }
        if self.sync.is_none() {
            self.written.iter().for_each(|written| add(written.sync_by));
        }
        let states = self.ring.released_count() > 0 && self.room() >= BLOCK_BYTES as u64;
        if (!self.sealed || states) && self.is_idle() {
            add(Some(self.seal_at()));
        }
        next
    }
}

#[cfg(test)]
mod tests;
