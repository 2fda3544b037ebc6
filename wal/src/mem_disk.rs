//! **What**: an executor of `disk.rs` in memory, with the faults that disks have. For tests and simulation.
//!
//! **Invariants**: chance comes from the seed alone: one seed, one run. It promises no more than `disk.rs` does: a write is
//! durable only by a sync submitted after its completion, whatever is younger survives a crash by chance, block by block.
//!
//! **Never**: kindness to planners. An unaligned request, a write beyond the size, two requests with one ticket or a close
//! with requests under way panics, since a real disk would answer with silent loss.
//!
//! **See**: `disk.rs` for the promises, `tests/conformance` for the suite that both executors pass.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::disk::{
    BLOCK_BYTES, Disk, DiskDone, DiskError, DiskOk, DiskOp, DiskRequest, FileKey, FilePath, Listed, REPLACE_BYTES_MAX,
    Ticket,
};
use crate::mem_file::MemFile;

/// errno of a failing device.
pub const EIO: i32 = 5;
/// errno of a folder that is not empty.
const ENOTEMPTY: i32 = 39;

/// A seeded source of chance (SplitMix64).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// True in `per_mille` of 1,000 cases.
    pub fn one_in_thousand(&mut self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }

    /// True in half of the cases.
    pub fn coin(&mut self) -> bool {
        self.bits() & 1 == 1
    }
}

/// How the disk behaves.
#[derive(Clone, Debug, Default)]
pub struct MemDiskOptions {
    /// Requests complete in any order, not in that of submission.
    pub reorder: bool,
    /// So many of 1,000 requests are overtaken by several others. Needs `reorder`.
    pub slow_per_mille: u64,
    /// A crash tears blocks at 512 bytes too, as disks with small sectors do.
    pub tears_sectors: bool,
    /// A block whose write was under way when power failed may be left with noise.
    pub garbles: bool,
    /// Bytes that all files together may have; beyond: `DiskError::Full`.
    pub bytes_max: Option<u64>,
}

/// Kinds of operations, to aim faults and to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum OpKind {
    Create,
    Open,
    Extend,
    Write,
    Sync,
    Read,
    Close,
    Replace,
    Load,
    Rename,
    Remove,
    List,
}

impl OpKind {
    /// The kind of an operation.
    pub fn of(op: &DiskOp) -> OpKind {
        match op {
            DiskOp::Create { .. } => OpKind::Create,
            DiskOp::Open { .. } => OpKind::Open,
            DiskOp::Extend { .. } => OpKind::Extend,
            DiskOp::Write { .. } => OpKind::Write,
            DiskOp::Sync { .. } | DiskOp::SyncAfter { .. } => OpKind::Sync,
            DiskOp::Read { .. } => OpKind::Read,
            DiskOp::Close { .. } => OpKind::Close,
            DiskOp::Replace { .. } => OpKind::Replace,
            DiskOp::Load { .. } => OpKind::Load,
            DiskOp::Rename { .. } => OpKind::Rename,
            DiskOp::Remove { .. } => OpKind::Remove,
            DiskOp::List { .. } => OpKind::List,
        }
    }
}

/// What goes wrong with one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails. A failed write may have reached the disk in part. After a failed sync the writes that it covered are
    /// durable by chance and no longer count as unsynced: the next sync succeeds although they may be gone.
    Error(DiskError),
    /// It reports success and has done nothing (write, sync).
    Lost,
    /// A write lands so many blocks away in the same file; as far as the file reaches.
    Misdirected {
        /// Distance in blocks.
        blocks: i64,
    },
    /// A read or write in which one bit is wrong; taken modulo the length.
    FlippedBit {
        /// Which bit.
        bit: u64,
    },
}

#[derive(Clone, Debug)]
struct Planned {
    kind: OpKind,
    skip: u64,
    fault: Fault,
}

#[derive(Clone, Debug)]
struct UnderWay {
    request: DiskRequest,
    /// For a sync: writes up to this number had completed when it was submitted.
    covers: u64,
    /// For a `SyncAfter`: what became of its write.
    after: After,
    /// Completions of others that go before.
    delay: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// No write, or it is still under way.
    Nothing,
    /// It was the write of this number.
    Write(u64),
    /// It failed.
    Failed(DiskError),
}

/// A disk in memory.
#[derive(Clone, Debug)]
pub struct MemDisk {
    /// How it behaves; may be changed at any time.
    pub options: MemDiskOptions,
    chance: Chance,
    names: BTreeMap<String, u64>,
    folders: BTreeSet<String>,
    files: BTreeMap<u64, MemFile>,
    open: BTreeMap<FileKey, u64>,
    under_way: VecDeque<UnderWay>,
    planned: Vec<Planned>,
    counts: BTreeMap<OpKind, u64>,
    next_file: u64,
    written: u64,
    trace: u64,
}

impl MemDisk {
    /// An empty disk that answers in order.
    pub fn new(seed: u64) -> MemDisk {
        MemDisk::with_options(seed, MemDiskOptions::default())
    }

    /// An empty disk.
    pub fn with_options(seed: u64, options: MemDiskOptions) -> MemDisk {
        MemDisk {
            options,
            chance: Chance::new(seed),
            names: BTreeMap::new(),
            folders: BTreeSet::new(),
            files: BTreeMap::new(),
            open: BTreeMap::new(),
            under_way: VecDeque::new(),
            planned: Vec::new(),
            counts: BTreeMap::new(),
            next_file: 0,
            written: 0,
            trace: 0,
        }
    }

    /// Other chance from here on: many endings of one beginning.
    pub fn reseed(&mut self, seed: u64) {
        self.chance = Chance::new(seed);
    }

    /// The operation of this kind after `skip` others of its kind goes wrong.
    pub fn plan_fault(&mut self, kind: OpKind, skip: u64, fault: Fault) {
        self.planned.push(Planned { kind, skip, fault });
    }

    /// Operations of a kind carried out so far.
    pub fn count(&self, kind: OpKind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// Whether a request is under way.
    pub fn is_under_way(&self, ticket: Ticket) -> bool {
        self.under_way.iter().any(|other| other.request.ticket == ticket)
    }

    /// Requests under way.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// A hash of everything that was done, in order: equal for equal runs.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    /// Paths of all files, sorted.
    pub fn paths(&self) -> Vec<FilePath> {
        self.names.keys().cloned().map(FilePath).collect()
    }

    /// What a file holds now, synced or not.
    pub fn content(&self, path: &FilePath) -> Option<Vec<u8>> {
        self.file(path).map(MemFile::content)
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        self.names.values().map(|id| self.files[id].bytes()).sum()
    }

    /// Damage at rest: one bit of a file. False if the file or the bit does not exist.
    pub fn flip_bit(&mut self, path: &FilePath, bit: u64) -> bool {
        self.file_mut(path).is_some_and(|file| file.flip_bit(bit))
    }

    /// Damage at rest: other bytes in a file, which may cross blocks. False if the range does not exist.
    pub fn overwrite(&mut self, path: &FilePath, at: u64, bytes: &[u8]) -> bool {
        self.file_mut(path).is_some_and(|file| file.overwrite(at, bytes))
    }

    /// Damage at rest: a file that lost its end.
    pub fn cut(&mut self, path: &FilePath, bytes: u64) {
        if let Some(file) = self.file_mut(path) {
            file.cut(bytes);
        }
    }

    /// Damage at rest: a block that can no longer be read.
    pub fn break_block(&mut self, path: &FilePath, at: u64) {
        if let Some(file) = self.file_mut(path) {
            file.unreadable.insert(at / BLOCK_BYTES as u64);
        }
    }

    /// Power fails: requests under way happened, in part or not at all; unsynced blocks survive by chance; nothing is open.
    pub fn crash(&mut self) {
        self.note(b"crash");
        let mut under_way = std::mem::take(&mut self.under_way);
        while !under_way.is_empty() {
            let at = self.chance.below(under_way.len() as u64) as usize;
            let item = under_way.remove(at).expect("it is inside");
            self.crash_under_way(item);
        }
        // Few survivors, many or all: equal odds for each block alone would hardly ever show the extremes.
        let survives = [0, 100, 500, 900, 1_000][self.chance.below(5) as usize];
        for file in self.files.values_mut() {
            file.crash(&mut self.chance, survives, self.options.tears_sectors);
        }
        self.open.clear();
        self.drop_nameless();
    }

    /// The process ends and the machine goes on: what was written stays, requests under way happened or not.
    pub fn kill(&mut self) {
        self.note(b"kill");
        for item in std::mem::take(&mut self.under_way) {
            if self.chance.coin() {
                self.execute(item);
            }
        }
        self.open.clear();
        self.drop_nameless();
    }

    fn crash_under_way(&mut self, item: UnderWay) {
        match item.request.op {
            DiskOp::Write { file, at, bytes } => {
                let id = self.open[&file];
                for (index, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
                    if self.chance.coin() {
                        self.written += 1;
                        let at = at + (index * BLOCK_BYTES) as u64;
                        let noise: Vec<u8>;
                        let mut block = block;
                        if self.options.garbles && self.chance.coin() {
                            noise = (0..BLOCK_BYTES / 8).flat_map(|_| self.chance.bits().to_le_bytes()).collect();
                            block = &noise;
                        }
                        self.files.get_mut(&id).expect("it is open").write(at, block, self.written);
                    }
                }
            }
            // A file whose zeros were still being written.
            DiskOp::Create { path, file, bytes, zeroed } if self.chance.coin() => {
                let blocks = self.chance.below(bytes / BLOCK_BYTES as u64 + 1);
                let _ = self.create(&path, file, blocks * BLOCK_BYTES as u64, zeroed);
            }
            DiskOp::Create { .. } | DiskOp::Read { .. } | DiskOp::Load { .. } | DiskOp::List { .. } => {}
            _ if self.chance.coin() => {
                self.execute(item);
            }
            _ => {}
        }
    }

    fn file(&self, path: &FilePath) -> Option<&MemFile> {
        self.names.get(&path.0).map(|id| &self.files[id])
    }

    fn file_mut(&mut self, path: &FilePath) -> Option<&mut MemFile> {
        self.names.get(&path.0).and_then(|id| self.files.get_mut(id))
    }

    fn drop_nameless(&mut self) {
        let named: BTreeSet<u64> = self.names.values().chain(self.open.values()).copied().collect();
        self.files.retain(|id, _| named.contains(id));
    }

    fn opened(&mut self, file: FileKey) -> &mut MemFile {
        let id = self.open.get(&file).unwrap_or_else(|| panic!("{file:?} is not open"));
        self.files.get_mut(id).expect("open files exist")
    }

    fn note(&mut self, bytes: &[u8]) {
        self.trace = xxhash_rust::xxh3::xxh3_64_with_seed(bytes, self.trace);
    }

    fn fault_of(&mut self, kind: OpKind) -> Option<Fault> {
        let mut hit = None;
        for (at, planned) in self.planned.iter_mut().enumerate().filter(|(_, planned)| planned.kind == kind) {
            match planned.skip.checked_sub(1) {
                Some(left) => planned.skip = left,
                None if hit.is_none() => hit = Some(at),
                None => {}
            }
        }
        hit.map(|at| self.planned.remove(at).fault)
    }

    fn make_folders(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.folders.insert(path[..at].to_string());
        }
    }

    fn exists(&self, path: &FilePath) -> bool {
        self.names.contains_key(&path.0) || self.folders.contains(&path.0)
    }

    fn fits(&self, more: u64) -> Result<(), DiskError> {
        match self.options.bytes_max {
            Some(max) if self.used() + more > max => Err(DiskError::Full),
            _ => Ok(()),
        }
    }

    fn create(&mut self, path: &FilePath, key: FileKey, bytes: u64, _zeroed: bool) -> Result<DiskOk, DiskError> {
        if self.exists(path) {
            return Err(DiskError::Exists);
        }
        self.fits(bytes)?;
        self.make_folders(&path.0);
        self.next_file += 1;
        self.names.insert(path.0.clone(), self.next_file);
        self.files.insert(self.next_file, MemFile::new(bytes));
        self.open_as(key, self.next_file);
        Ok(DiskOk::Done)
    }

    fn open_as(&mut self, key: FileKey, id: u64) {
        assert!(self.open.insert(key, id).is_none(), "{key:?} is open already");
    }

    fn replace(&mut self, path: &FilePath, bytes: &[u8]) -> Result<DiskOk, DiskError> {
        if self.folders.contains(&path.0) {
            return Err(DiskError::Exists);
        }
        self.fits(bytes.len() as u64)?;
        self.make_folders(&path.0);
        self.next_file += 1;
        self.files.insert(self.next_file, MemFile::with_content(bytes));
        self.names.insert(path.0.clone(), self.next_file);
        self.drop_nameless();
        Ok(DiskOk::Done)
    }

    fn rename(&mut self, from: &FilePath, to: &FilePath) -> Result<DiskOk, DiskError> {
        if self.exists(to) {
            return Err(DiskError::Exists);
        }
        if let Some(id) = self.names.remove(&from.0) {
            self.make_folders(&to.0);
            self.names.insert(to.0.clone(), id);
            return Ok(DiskOk::Done);
        }
        if !self.folders.remove(&from.0) {
            return Err(DiskError::NotFound);
        }
        self.make_folders(&to.0);
        self.folders.insert(to.0.clone());
        let inside = format!("{}/", from.0);
        let moved = |name: &String| name.strip_prefix(&inside).map(|rest| format!("{}/{rest}", to.0));
        self.folders = self.folders.iter().map(|name| moved(name).unwrap_or_else(|| name.clone())).collect();
        let names = std::mem::take(&mut self.names);
        self.names = names.into_iter().map(|(name, id)| (moved(&name).unwrap_or(name), id)).collect();
        Ok(DiskOk::Done)
    }

    fn remove(&mut self, path: &FilePath) -> Result<DiskOk, DiskError> {
        if self.names.remove(&path.0).is_some() {
            self.drop_nameless();
            return Ok(DiskOk::Done);
        }
        if !self.folders.contains(&path.0) {
            return Err(DiskError::NotFound);
        }
        if !self.list(path).is_empty() {
            return Err(DiskError::Io { errno: ENOTEMPTY });
        }
        self.folders.remove(&path.0);
        Ok(DiskOk::Done)
    }

    fn list(&self, path: &FilePath) -> Vec<Listed> {
        let inside = if path.0.is_empty() { String::new() } else { format!("{}/", path.0) };
        let direct =
            |name: &str| name.strip_prefix(inside.as_str()).filter(|rest| !rest.contains('/')).map(str::to_string);
        let files = self.names.iter().filter_map(|(name, id)| {
            direct(name).map(|name| Listed { name, bytes: self.files[id].bytes(), is_folder: false })
        });
        let folders =
            self.folders.iter().filter_map(|name| direct(name).map(|name| Listed { name, bytes: 0, is_folder: true }));
        let mut all: Vec<Listed> = files.chain(folders).collect();
        all.sort();
        all
    }

    fn write(&mut self, file: FileKey, at: u64, mut bytes: Vec<u8>, fault: Option<Fault>) -> Result<DiskOk, DiskError> {
        let size = self.opened(file).bytes();
        assert!(at + bytes.len() as u64 <= size, "a write to {at}..{} of {size} bytes", at + bytes.len() as u64);
        let mut to = at;
        match fault {
            Some(Fault::Error(error)) => {
                for (index, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
                    if self.chance.coin() {
                        self.written += 1;
                        let written = self.written;
                        self.opened(file).write(at + (index * BLOCK_BYTES) as u64, block, written);
                    }
                }
                return Err(error);
            }
            Some(Fault::Lost) => return Ok(DiskOk::Written(bytes)),
            Some(Fault::Misdirected { blocks }) => {
                let room = size - bytes.len() as u64;
                to = at.saturating_add_signed(blocks * BLOCK_BYTES as i64).min(room);
            }
            Some(Fault::FlippedBit { bit }) => {
                let bit = bit as usize % (bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            None => {}
        }
        self.written += 1;
        let written = self.written;
        self.opened(file).write(to, &bytes, written);
        Ok(DiskOk::Written(bytes))
    }

    /// Not while the write of a `SyncAfter` is under way.
    fn may_run(&self, at: usize) -> bool {
        match self.under_way[at].request.op {
            DiskOp::SyncAfter { write, .. } => !self.is_under_way(write),
            _ => true,
        }
    }

    fn sync(
        &mut self,
        file: FileKey,
        covers: u64,
        own: Option<u64>,
        fault: Option<Fault>,
    ) -> Result<DiskOk, DiskError> {
        match fault {
            Some(Fault::Error(error)) => {
                let mut chance = self.chance.clone();
                self.opened(file).sync_failed(covers, own, &mut chance);
                self.chance = chance;
                Err(error)
            }
            Some(Fault::Lost) => Ok(DiskOk::Done),
            _ => {
                self.opened(file).sync(covers, own);
                Ok(DiskOk::Done)
            }
        }
    }

    fn read(&mut self, file: FileKey, at: u64, bytes: usize, fault: Option<Fault>) -> Result<DiskOk, DiskError> {
        let mut found = self.opened(file).read(at, bytes).ok_or(DiskError::Io { errno: EIO })?;
        if let Some(Fault::FlippedBit { bit }) = fault
            && !found.is_empty()
        {
            let bit = bit as usize % (found.len() * 8);
            found[bit / 8] ^= 1 << (bit % 8);
        }
        Ok(DiskOk::Bytes(found))
    }

    fn execute(&mut self, item: UnderWay) -> DiskDone {
        let UnderWay { request: DiskRequest { ticket, op, .. }, covers, after, .. } = item;
        if let After::Failed(error) = after {
            return DiskDone { ticket, result: Err(error) };
        }
        let own = match after {
            After::Write(number) => Some(number),
            After::Nothing | After::Failed(_) => None,
        };
        let kind = OpKind::of(&op);
        *self.counts.entry(kind).or_default() += 1;
        let fault = self.fault_of(kind);
        let result = match (op, fault) {
            (DiskOp::Write { file, at, bytes }, fault) => self.write(file, at, bytes, fault),
            (DiskOp::Sync { file } | DiskOp::SyncAfter { file, .. }, fault) => self.sync(file, covers, own, fault),
            (_, Some(Fault::Error(error))) => Err(error),
            (DiskOp::Read { file, at, bytes }, fault) => self.read(file, at, bytes, fault),
            (DiskOp::Create { path, file, bytes, zeroed }, _) => self.create(&path, file, bytes, zeroed),
            (DiskOp::Open { path, file }, _) => match self.names.get(&path.0) {
                Some(&id) => {
                    self.open_as(file, id);
                    Ok(DiskOk::Opened { bytes: self.files[&id].bytes() })
                }
                None => Err(DiskError::NotFound),
            },
            (DiskOp::Extend { file, bytes }, _) => {
                let size = self.opened(file).bytes();
                assert!(bytes >= size, "{bytes} bytes is less than {size}");
                self.fits(bytes - size).map(|()| {
                    self.written += 1;
                    let written = self.written;
                    self.opened(file).extend(bytes, written);
                    DiskOk::Done
                })
            }
            (DiskOp::Close { file }, _) => {
                assert!(self.open.remove(&file).is_some(), "{file:?} is not open");
                self.drop_nameless();
                Ok(DiskOk::Done)
            }
            (DiskOp::Replace { path, bytes }, _) => self.replace(&path, &bytes),
            (DiskOp::Load { path, bytes_max }, _) => match self.file(&path) {
                None => Err(DiskError::NotFound),
                Some(file) if file.bytes() > bytes_max as u64 => Err(DiskError::TooLarge { bytes: file.bytes() }),
                Some(file) => file.read(0, bytes_max).map(DiskOk::Bytes).ok_or(DiskError::Io { errno: EIO }),
            },
            (DiskOp::Rename { from, to }, _) => self.rename(&from, &to),
            (DiskOp::Remove { path }, _) => self.remove(&path),
            (DiskOp::List { path }, _) => Ok(DiskOk::Listed(self.list(&path))),
        };
        DiskDone { ticket, result }
    }
}

/// The file a request needs to be open.
fn needs(op: &DiskOp) -> Option<FileKey> {
    match op {
        DiskOp::Extend { file, .. }
        | DiskOp::Write { file, .. }
        | DiskOp::Sync { file }
        | DiskOp::SyncAfter { file, .. }
        | DiskOp::Read { file, .. }
        | DiskOp::Close { file } => Some(*file),
        _ => None,
    }
}

fn check_request(op: &DiskOp) {
    let aligned = |number: u64| assert!(number.is_multiple_of(BLOCK_BYTES as u64), "{number} is not aligned: {op:?}");
    match op {
        DiskOp::Create { bytes, .. } | DiskOp::Extend { bytes, .. } => aligned(*bytes),
        DiskOp::Write { at, bytes, .. } => {
            aligned(*at);
            aligned(bytes.len() as u64);
            assert!(!bytes.is_empty(), "an empty write");
        }
        DiskOp::Read { at, bytes, .. } => {
            aligned(*at);
            aligned(*bytes as u64);
            assert!(*bytes > 0, "an empty read");
        }
        DiskOp::Replace { bytes, .. } => assert!(bytes.len() <= REPLACE_BYTES_MAX, "a Replace of {}", bytes.len()),
        _ => {}
    }
    let (one, two) = match op {
        DiskOp::Create { path, .. }
        | DiskOp::Open { path, .. }
        | DiskOp::Replace { path, .. }
        | DiskOp::Load { path, .. }
        | DiskOp::Remove { path }
        | DiskOp::List { path } => (Some(path), None),
        DiskOp::Rename { from, to } => (Some(from), Some(to)),
        _ => (None, None),
    };
    for path in one.into_iter().chain(two) {
        let root_listed = path.0.is_empty() && matches!(op, DiskOp::List { .. });
        let good = path.0.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        assert!(good || root_listed, "a bad path: {:?}", path.0);
    }
}

impl Disk for MemDisk {
    fn submit(&mut self, request: DiskRequest) {
        check_request(&request.op);
        assert!(!self.is_under_way(request.ticket), "{:?} is under way already", request.ticket);
        if let Some(file) = needs(&request.op) {
            assert!(self.open.contains_key(&file), "{file:?} is not open");
            let closing = |op: &DiskOp| matches!(op, DiskOp::Close { .. });
            let busy = |other: &&UnderWay| needs(&other.request.op) == Some(file);
            let conflict =
                self.under_way.iter().filter(busy).any(|other| closing(&request.op) || closing(&other.request.op));
            assert!(!conflict, "{file:?} is closed with requests under way");
        }
        if let DiskOp::SyncAfter { file, write } = request.op {
            let last = self.under_way.back().map(|other| (other.request.ticket, needs(&other.request.op)));
            assert_eq!(last, Some((write, Some(file))), "a SyncAfter is the request right behind its write");
        }
        self.note(&request.ticket.0.to_le_bytes());
        match &request.op {
            DiskOp::Write { file, at, bytes } => {
                self.note(&file.0.to_le_bytes());
                self.note(&at.to_le_bytes());
                self.note(bytes);
            }
            // Debug text of an operation is the same in every run, and so is its hash.
            op => self.note(format!("{op:?}").as_bytes()),
        }
        let slow = self.options.reorder && self.chance.one_in_thousand(self.options.slow_per_mille);
        let delay = if slow { 2 + self.chance.below(16) } else { 0 };
        self.under_way.push_back(UnderWay { request, covers: self.written, after: After::Nothing, delay });
    }

    fn wait(&mut self) -> Option<DiskDone> {
        if self.under_way.is_empty() {
            return None;
        }
        let mut at = 0;
        if self.options.reorder {
            let may: Vec<usize> = (0..self.under_way.len()).filter(|&at| self.may_run(at)).collect();
            let ready: Vec<usize> = may.iter().copied().filter(|&at| self.under_way[at].delay == 0).collect();
            at = match ready.len() {
                0 => may[self.chance.below(may.len() as u64) as usize],
                count => ready[self.chance.below(count as u64) as usize],
            };
        }
        let item = self.under_way.remove(at).expect("it is inside");
        for other in &mut self.under_way {
            other.delay = other.delay.saturating_sub(1);
        }
        let is_write = matches!(item.request.op, DiskOp::Write { .. });
        let done = self.execute(item);
        if is_write {
            let after = done.result.as_ref().map_or_else(|error| After::Failed(*error), |_| After::Write(self.written));
            let waits = |other: &&mut UnderWay| matches!(other.request.op, DiskOp::SyncAfter { write, .. } if write == done.ticket);
            if let Some(sync) = self.under_way.iter_mut().find(waits) {
                sync.after = after;
            }
        }
        self.note(&done.ticket.0.to_le_bytes());
        self.note(&[u8::from(done.result.is_ok())]);
        Some(done)
    }
}

#[cfg(test)]
mod tests;
