//! **What**: reads what the core WALs of earlier starts hold: what is whole, what is torn, what is damaged, and the entries
//! that count, in order.
//!
//! ```text
//! list -> headers (whose? which seed?) -> scan every file once -> judge each WAL -> replay, group by group
//!
//!  needed_from          synced                 end
//!      |--- must be there ---|--- may be there ---|   bad or missing: torn or damaged      (later groups: dropped)
//!          missing: DAMAGED      no hole by definition
//! ```
//!
//! How a start uses it: `plan`, submit, `on_done`, and take each `group` before the next `plan`. `report` is complete before
//! the first group comes.
//!
//! **Invariants**: what a valid group states as durable must be there; what is missing of it is reported with its place and
//! never cut. Only an end that is sealed counts as whole. Stale groups of a reused file have lower sequences than what is
//! needed, and are passed by. Memory is bounded by one group and some numbers per file and shard.
//!
//! **Never**: a write. An entry that is not understood is a refusal, not a skip.
//!
//! **See**: `judge.rs` (the verdict), `retire.rs` (what becomes of the WALs after), `window.rs`.

use std::fmt;

use crate::disk::{
    BLOCK_BYTES, Disk, DiskDone, DiskError, DiskOk, DiskOp, DiskRequest, FileKey, FilePath, Priority, Ticket,
};
use crate::format::entry::{Entries, Entry, EntryBody, EntryError, WalPosition};
use crate::format::group::{GroupError, GroupHeader, GroupSeed, GroupSequence};
use crate::format::header::{FileHeader, HEADER_BYTES, HeaderError, Identity, Owner};
use crate::format::names::{Name, WalId};
use crate::judge::{BadSpot, Note, Place, Resolver, Run, Sealing, Suspects, WalReport, WalScan, judge};
use crate::window::Window;

/// Names that are reported one by one.
const FOREIGN_MAX: usize = 64;

/// Why recovery stopped. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoverError {
    /// A listing, an open or a read failed.
    Disk {
        /// Where.
        path: FilePath,
        /// How.
        error: DiskError,
    },
    /// A file is not ours, or newer than this build.
    Header {
        /// Which file.
        path: FilePath,
        /// Why.
        error: HeaderError,
    },
    /// A whole group that this build does not understand.
    Group {
        /// Which file.
        path: FilePath,
        /// Where in it.
        at: u64,
        /// Why.
        error: GroupError,
    },
    /// An entry of a whole group that this build does not understand.
    Entry {
        /// Which file.
        path: FilePath,
        /// Where the group is.
        at: u64,
        /// Why.
        error: EntryError,
    },
    /// A group that was whole a moment ago is not any more.
    Changed {
        /// Which file.
        path: FilePath,
        /// Where in it.
        at: u64,
    },
}

impl fmt::Display for RecoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoverError::Disk { path, error } => write!(f, "{path}: {error}"),
            RecoverError::Header { path, error } => write!(f, "{path}: {error}"),
            RecoverError::Group { path, at, error } => write!(f, "{path} at {at}: {error}"),
            RecoverError::Entry { path, at, error } => write!(f, "{path} at {at}: {error}"),
            RecoverError::Changed { path, at } => write!(f, "{path} at {at}: changed while it was read"),
        }
    }
}

impl std::error::Error for RecoverError {}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The WALs, oldest first.
    pub wals: Vec<WalReport>,
    /// Folders of WALs that were retired before and not yet removed, with their files.
    pub retired: Vec<(WalId, Vec<u32>)>,
    /// What lies in the WAL folder and is not ours; left alone. At most some of them.
    pub foreign: Vec<FilePath>,
    /// Blocks that could not be read.
    pub unreadable_blocks: u64,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read.
    pub done: u64,
    /// Bytes to read; grows when replay begins.
    pub total: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    ListWals,
    ListFiles,
    Headers,
    Scan,
    Replay,
    Done,
    Failed,
}

/// A folder of the WAL folder, before its files are listed.
#[derive(Debug)]
struct Folder {
    wal: WalId,
    retired: bool,
}

/// Recovery of all core WALs of a data folder.
#[derive(Debug)]
pub struct Recovery {
    identity: Identity,
    owner: u32,
    stage: Stage,
    ticket: u32,
    under_way: Option<Ticket>,
    window: Window,
    folders: Vec<Folder>,
    scans: Vec<WalScan>,
    report: Report,
    resolver: Resolver,
    /// Where the work is: WAL, file or run, byte.
    wal_at: usize,
    item_at: usize,
    at: u64,
    next_sequence: GroupSequence,
    ready: Option<GroupHeader>,
    error: Option<RecoverError>,
    total: u64,
}

impl Recovery {
    /// Of the data folder of this identity. `owner` is in its tickets and file keys; `piece_bytes` (a multiple of
    /// `BLOCK_BYTES`) are read at a time.
    pub fn new(identity: Identity, owner: u32, piece_bytes: usize) -> Recovery {
        Recovery {
            identity,
            owner,
            stage: Stage::ListWals,
            ticket: 0,
            under_way: None,
            window: Window::new(FileKey::new(owner, 0), piece_bytes),
            folders: Vec::new(),
            scans: Vec::new(),
            report: Report::default(),
            resolver: Resolver::default(),
            wal_at: 0,
            item_at: 0,
            at: 0,
            next_sequence: GroupSequence(0),
            ready: None,
            error: None,
            total: 0,
        }
    }

    /// To the end, with nothing else on the disk's mind. For offline tools and tests.
    pub fn run(
        &mut self,
        disk: &mut dyn Disk,
        mut each: impl FnMut(WalPosition, &Entry<'_>),
    ) -> Result<Report, RecoverError> {
        let mut requests = Vec::new();
        while !self.is_done() {
            self.plan(&mut requests);
            requests.drain(..).for_each(|request| disk.submit(request));
            if let Some(group) = self.group() {
                group.entries().for_each(|(position, entry)| each(position, &entry));
            } else if let Some(done) = disk.wait() {
                self.on_done(done);
            }
        }
        match &self.error {
            Some(error) => Err(error.clone()),
            None => Ok(self.report.clone()),
        }
    }

    /// Nothing more comes: all was replayed, or `error` says why not.
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done | Stage::Failed)
    }

    /// Why it stopped.
    pub fn error(&self) -> Option<&RecoverError> {
        self.error.as_ref()
    }

    /// What was found. None before every file was scanned.
    pub fn report(&self) -> Option<&Report> {
        matches!(self.stage, Stage::Replay | Stage::Done).then_some(&self.report)
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        Progress { done: self.window.read_bytes().min(self.total), total: self.total }
    }

    /// The next request, if there is one. A group that is ready and was not taken is passed over.
    pub fn plan(&mut self, out: &mut Vec<DiskRequest>) {
        if self.under_way.is_some() || self.is_done() {
            return;
        }
        if let Some(group) = self.ready.take() {
            self.at += group.bytes() as u64;
        }
        let Some(op) = self.next_op() else { return };
        self.ticket = self.ticket.wrapping_add(1);
        let ticket = Ticket::new(self.owner, self.ticket);
        self.under_way = Some(ticket);
        out.push(DiskRequest { ticket, priority: Priority::Commit, op });
    }

    /// A completion.
    pub fn on_done(&mut self, done: DiskDone) {
        if self.under_way != Some(done.ticket) {
            return;
        }
        self.under_way = None;
        match self.stage {
            Stage::ListWals | Stage::ListFiles => {
                let path = self.listed_path();
                match done.result {
                    Ok(DiskOk::Listed(entries)) => self.on_listed(path, entries),
                    Ok(_) => self.fail(RecoverError::Disk { path, error: DiskError::Io { errno: 0 } }),
                    Err(error) => self.fail(RecoverError::Disk { path, error }),
                }
            }
            _ => {
                if let Err(error) = self.window.on_done(done.result) {
                    let path = self.path();
                    self.fail(RecoverError::Disk { path, error });
                }
            }
        }
    }

    /// The group that is ready, if there is one. What it does not take is gone with the next `plan`.
    pub fn group(&mut self) -> Option<ReplayGroup<'_>> {
        let header = self.ready.take()?;
        let scan = &self.scans[self.wal_at];
        let at = self.at;
        self.at += header.bytes() as u64;
        let payload = header.payload(scan.seed, self.window.get(at, header.bytes())).ok()?;
        Some(ReplayGroup { header, payload, resolver: &self.resolver })
    }

    fn fail(&mut self, error: RecoverError) {
        self.stage = Stage::Failed;
        self.error = Some(error);
    }

    fn next_op(&mut self) -> Option<DiskOp> {
        loop {
            if let Some(op) = self.window.op() {
                return Some(op);
            }
            match self.stage {
                Stage::ListWals => return Some(DiskOp::List { path: self.listed_path() }),
                Stage::ListFiles if self.wal_at < self.folders.len() => {
                    return Some(DiskOp::List { path: self.listed_path() });
                }
                Stage::ListFiles => self.enter(Stage::Headers),
                Stage::Headers => self.read_header(),
                Stage::Scan => self.scan(),
                Stage::Replay => {
                    self.replay();
                    if self.ready.is_some() {
                        return None;
                    }
                }
                Stage::Done | Stage::Failed => return None,
            }
        }
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.wal_at = 0;
        self.item_at = 0;
        self.at = HEADER_BYTES as u64;
        self.next_sequence = GroupSequence(0);
    }

    fn listed_path(&self) -> FilePath {
        match (self.stage, self.folders.get(self.wal_at)) {
            (Stage::ListFiles, Some(Folder { wal, retired: false })) => Name::Wal(*wal).path(),
            (Stage::ListFiles, Some(Folder { wal, retired: true })) => Name::RetiredWal(*wal).path(),
            _ => Name::Wals.path(),
        }
    }

    fn on_listed(&mut self, path: FilePath, entries: Vec<crate::disk::Listed>) {
        let mut files = Vec::new();
        for entry in entries {
            let path = FilePath(format!("{path}/{}", entry.name));
            match Name::parse(&path) {
                Some(Name::Wal(wal)) if entry.is_folder => self.folders.push(Folder { wal, retired: false }),
                Some(Name::RetiredWal(wal)) if entry.is_folder => self.folders.push(Folder { wal, retired: true }),
                Some(Name::WalFile(_, number) | Name::RetiredWalFile(_, number)) if !entry.is_folder => {
                    files.push((number, entry.bytes));
                }
                _ if self.report.foreign.len() < FOREIGN_MAX => self.report.foreign.push(path),
                _ => {}
            }
        }
        if self.stage == Stage::ListWals {
            self.folders.sort_by_key(|folder| (folder.wal, folder.retired));
            return self.enter(Stage::ListFiles);
        }
        let Folder { wal, retired } = self.folders[self.wal_at];
        if retired {
            self.report.retired.push((wal, files.iter().map(|(number, _)| *number).collect()));
        } else {
            self.total += files.iter().map(|(_, bytes)| bytes + HEADER_BYTES as u64).sum::<u64>();
            self.scans.push(WalScan::new(wal, files));
        }
        self.wal_at += 1;
    }

    /// The file that is worked on.
    fn path(&self) -> FilePath {
        let Some(scan) = self.scans.get(self.wal_at) else { return Name::Wals.path() };
        let number = match self.stage {
            Stage::Replay => scan.runs.get(self.item_at).map(|run| run.number),
            _ => scan.files.get(self.item_at).map(|(number, _)| *number),
        };
        number.map_or(Name::Wal(scan.wal).path(), |number| Name::WalFile(scan.wal, number).path())
    }

    /// Opens the current file; true once it is open.
    fn opened(&mut self) -> bool {
        if self.window.is_closed() {
            let path = self.path();
            self.window.open(path);
        }
        self.window.is_open()
    }

    fn next_item(&mut self) {
        self.window.close();
        self.item_at += 1;
        self.at = HEADER_BYTES as u64;
    }

    /// Moves on to the next WAL that has items left; false: there is none.
    fn has_item(&mut self, count: impl Fn(&WalScan) -> usize) -> bool {
        while let Some(scan) = self.scans.get(self.wal_at) {
            if self.item_at < count(scan) {
                return true;
            }
            self.wal_at += 1;
            self.item_at = 0;
        }
        false
    }

    fn read_header(&mut self) {
        if !self.has_item(|scan| scan.files.len()) {
            return self.enter(Stage::Scan);
        }
        if !self.opened() || !self.window.need(0, HEADER_BYTES) {
            return;
        }
        let scan = &mut self.scans[self.wal_at];
        let owner = Owner::Wal { wal: scan.wal, number: scan.files[self.item_at].0 };
        match FileHeader::expect(self.window.get(0, HEADER_BYTES), &self.identity, &owner) {
            Ok(header) => {
                let seed = GroupSeed::of(header.salt);
                if *scan.found_seed.get_or_insert(seed) != seed {
                    scan.bad_headers += 1;
                }
            }
            // A crash while the file was made; nothing was ever in it.
            Err(HeaderError::Blank | HeaderError::Truncated) => scan.blank_headers += 1,
            Err(HeaderError::Checksum { .. } | HeaderError::BadMagic) => scan.bad_headers += 1,
            Err(error) => {
                let path = self.path();
                return self.fail(RecoverError::Header { path, error });
            }
        }
        self.next_item();
    }

    fn scan(&mut self) {
        if !self.has_item(|scan| scan.files.len()) {
            self.report.unreadable_blocks = self.window.unreadable();
            for scan in &mut self.scans {
                self.report.wals.push(judge(scan, &mut self.resolver));
                self.total += scan.runs.iter().map(|run| run.end - run.at).sum::<u64>();
            }
            return self.enter(Stage::Replay);
        }
        let scan = &mut self.scans[self.wal_at];
        scan.seed = scan.found_seed.unwrap_or_default();
        let seed = scan.seed;
        if !self.opened() {
            return;
        }
        if self.at >= self.window.size() {
            return self.next_item();
        }
        if !self.window.need(self.at, BLOCK_BYTES) {
            return;
        }
        let scan = &mut self.scans[self.wal_at];
        let (wal, number) = (scan.wal, scan.files[self.item_at].0);
        if scan.found_seed.is_none() {
            // Without any readable header nothing of this WAL can be told from noise; but a crash while the first file was
            // made leaves nothing behind the header.
            if self.window.get(self.at, BLOCK_BYTES).iter().any(|byte| *byte != 0) {
                scan.has_noise = true;
                return self.next_item();
            }
            self.at += BLOCK_BYTES as u64;
            return;
        }
        match GroupHeader::decode(seed, self.window.get(self.at, BLOCK_BYTES)) {
            Ok(header) => {
                let expected = (wal, number, self.at / BLOCK_BYTES as u64);
                if (header.wal, header.number, u64::from(header.block)) != expected {
                    return self.bad_spot(number, None);
                }
                if !self.window.need(self.at, header.bytes()) {
                    return;
                }
                self.scan_group(seed, header);
            }
            // The checksum fits, so it is not damage.
            Err(error @ GroupError::UnknownVersion(_)) => {
                let (path, at) = (self.path(), self.at);
                self.fail(RecoverError::Group { path, at, error });
            }
            Err(GroupError::Blank | GroupError::BadMagic) => self.at += BLOCK_BYTES as u64,
            Err(_) => self.bad_spot(number, None),
        }
    }

    /// A group whose header is bad or whose bytes are.
    fn bad_spot(&mut self, number: u32, group: Option<(GroupSequence, Suspects)>) {
        let place = Place { number, at: self.at };
        self.scans[self.wal_at].add_bad(BadSpot { place, group });
        // By one block only: what is bad may hide what is good.
        self.at += BLOCK_BYTES as u64;
    }

    fn scan_group(&mut self, seed: GroupSeed, header: GroupHeader) {
        let bytes = self.window.get(self.at, header.bytes());
        let payload = match header.payload(seed, bytes) {
            Ok(payload) => payload,
            Err(_) => {
                let suspects = Suspects::of(&header, bytes);
                return self.bad_spot(header.number, Some((header.sequence, suspects)));
            }
        };
        let scan = &mut self.scans[self.wal_at];
        let mut sealing = Sealing::None;
        for item in Entries::new(payload, header.entry_count, header.first_lsn) {
            let (_, entry) = match item {
                Ok(item) => item,
                Err(error) => {
                    let (path, at) = (self.path(), self.at);
                    return self.fail(RecoverError::Entry { path, at, error });
                }
            };
            let note = match entry.body {
                EntryBody::FlushedTo { through, copied: false, .. } => Some(Note::Flushed(through)),
                EntryBody::FlushedTo { through, copied: true, .. } => Some(Note::Superseded(through)),
                EntryBody::Rehome { incarnation, from, .. } => Some(Note::Rehomed { incarnation, from }),
                _ => None,
            };
            if let Some(note) = note {
                scan.add_note(header.sequence, entry.shard, note, &mut self.resolver);
            }
            sealing = match entry.body {
                EntryBody::Seal { synced_through, clean } => {
                    scan.synced = scan.synced.max(synced_through);
                    if clean { Sealing::Clean } else { Sealing::Idle }
                }
                _ => Sealing::None,
            };
        }
        scan.synced = scan.synced.max(header.synced_through);
        scan.add_group(Run::of(&header, self.at, sealing));
        self.at += header.bytes() as u64;
        if sealing == Sealing::Clean {
            // Nothing was written after it.
            self.next_item();
        }
    }

    fn replay(&mut self) {
        let before = self.wal_at;
        if !self.has_item(|scan| scan.runs.len()) {
            self.stage = Stage::Done;
            return;
        }
        if self.wal_at != before {
            self.next_sequence = GroupSequence(0);
        }
        let run = self.scans[self.wal_at].runs[self.item_at];
        let seed = self.scans[self.wal_at].seed;
        if !self.opened() {
            return;
        }
        if self.at < run.at {
            self.at = run.at;
        }
        if self.at >= run.end {
            return self.next_item();
        }
        if !self.window.need(self.at, BLOCK_BYTES) {
            return;
        }
        let Ok(header) = GroupHeader::decode(seed, self.window.get(self.at, BLOCK_BYTES)) else {
            return self.changed();
        };
        if !self.window.need(self.at, header.bytes()) {
            return;
        }
        if header.payload(seed, self.window.get(self.at, header.bytes())).is_err() {
            return self.changed();
        }
        let verdict = &self.report.wals[self.wal_at];
        let counts = header.sequence >= verdict.needed_from
            && header.sequence <= verdict.end_sequence
            && header.sequence >= self.next_sequence;
        if counts {
            self.next_sequence = GroupSequence(header.sequence.0.saturating_add(1));
            self.ready = Some(header);
        } else {
            self.at += header.bytes() as u64;
        }
    }

    fn changed(&mut self) {
        let (path, at) = (self.path(), self.at);
        self.fail(RecoverError::Changed { path, at });
    }
}

/// A group being replayed.
#[derive(Debug)]
pub struct ReplayGroup<'a> {
    /// Its header.
    pub header: GroupHeader,
    payload: &'a [u8],
    resolver: &'a Resolver,
}

impl ReplayGroup<'_> {
    /// The entries that count, in order: not those that are flushed, copied elsewhere or of a shard that moved away. What
    /// only concerns the WAL itself (FlushedTo, Rehome, Seal) is not among them.
    pub fn entries(&self) -> impl Iterator<Item = (WalPosition, Entry<'_>)> {
        let wal = self.header.wal;
        // They were all read during the scan, and the checksum still fits.
        Entries::new(self.payload, self.header.entry_count, self.header.first_lsn)
            .map_while(Result::ok)
            .filter(move |(lsn, entry)| self.resolver.counts(wal, *lsn, entry))
            .map(move |(lsn, entry)| (WalPosition { wal, lsn }, entry))
    }
}

#[cfg(test)]
mod tests;
