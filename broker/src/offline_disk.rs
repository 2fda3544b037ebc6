//! **What**: the disk vocabulary over plain files and std, for offline tools: no ring, no helper thread, no O_DIRECT, so that
//! it runs on any machine that can read the files.
//!
//! **Invariants**: one operation at a time, in the order of submission. `ReadOnly` refuses every operation that writes with
//! EROFS, before it looks at anything. What a completion calls durable is synced, folders included.
//!
//! **Never**: a path that leaves the data folder; a wait on something that is no file (a pipe or device under a file's name
//! is an error); a panic for what lies in the folder.
//!
//! **See**: `tools.rs`, `io/disk.rs` (the executor of a running broker), `wal/tests/conformance`.

use felix_wal::disk::{
    BLOCK_BYTES, Disk, DiskDone, DiskError, DiskOk, DiskOp, DiskRequest, FileKey, FilePath, Listed, REPLACE_BYTES_MAX,
    TEMPORARY_SUFFIX, Ticket,
};
use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of one step of a zero-fill.
const ZERO_STEP_BYTES: usize = 1 << 20;

/// What may be done to the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing but reading.
    ReadOnly,
    /// Everything.
    ReadWrite,
}

/// A data folder as a disk.
#[derive(Debug)]
pub struct OfflineDisk {
    root: PathBuf,
    access: Access,
    files: HashMap<FileKey, File>,
    requests: VecDeque<DiskRequest>,
    /// The last write that failed.
    failed_write: Option<Ticket>,
}

/// What an error of the system means to a planner.
pub fn disk_error(error: &io::Error) -> DiskError {
    match error.raw_os_error().unwrap_or(libc::EIO) {
        libc::ENOSPC | libc::EDQUOT => DiskError::Full,
        libc::ENOENT => DiskError::NotFound,
        libc::EEXIST => DiskError::Exists,
        errno @ (libc::EMFILE | libc::ENFILE | libc::ENOMEM) => DiskError::Short { errno },
        errno => DiskError::Io { errno },
    }
}

fn os(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// The operation changes something on the disk.
pub fn writes(op: &DiskOp) -> bool {
    match op {
        DiskOp::Create { .. }
        | DiskOp::Extend { .. }
        | DiskOp::Write { .. }
        | DiskOp::Sync { .. }
        | DiskOp::SyncAfter { .. }
        | DiskOp::Replace { .. }
        | DiskOp::Rename { .. }
        | DiskOp::Remove { .. } => true,
        DiskOp::Open { .. }
        | DiskOp::Read { .. }
        | DiskOp::Close { .. }
        | DiskOp::Load { .. }
        | DiskOp::List { .. } => false,
    }
}

impl OfflineDisk {
    /// A folder that exists. Nothing is opened yet.
    pub fn new(root: &Path, access: Access) -> OfflineDisk {
        OfflineDisk {
            root: root.to_path_buf(),
            access,
            files: HashMap::new(),
            requests: VecDeque::new(),
            failed_write: None,
        }
    }

    fn perform(&mut self, op: DiskOp) -> Result<DiskOk, DiskError> {
        if self.access == Access::ReadOnly && writes(&op) {
            return Err(DiskError::Io { errno: libc::EROFS });
        }
        if let DiskOp::Load { path, bytes_max } = &op {
            return self.load(path, *bytes_max);
        }
        self.perform_io(op).map_err(|error| disk_error(&error))
    }

    fn perform_io(&mut self, op: DiskOp) -> io::Result<DiskOk> {
        match op {
            DiskOp::Create { path, file, bytes, zeroed } => {
                let path = self.resolve(&path)?;
                let parent = self.make_parent(&path)?;
                let open = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
                if let Err(error) = fill(&open, bytes, zeroed).and_then(|()| sync_folder(&parent)) {
                    // It was made here a moment ago.
                    let _ = fs::remove_file(&path);
                    return Err(error);
                }
                self.files.insert(file, open);
            }
            DiskOp::Open { path, file } => {
                let open = self.open(&path, self.access == Access::ReadWrite)?;
                let bytes = open.metadata()?.len();
                self.files.insert(file, open);
                return Ok(DiskOk::Opened { bytes });
            }
            DiskOp::Extend { file, bytes } => {
                let file = self.file(file)?;
                if file.metadata()?.len() < bytes {
                    file.set_len(bytes)?;
                }
            }
            DiskOp::Write { file, at, bytes } => {
                let file = self.file(file)?;
                let end = at.checked_add(bytes.len() as u64).ok_or_else(|| os(libc::EINVAL))?;
                if !aligned(at, bytes.len()) || end > file.metadata()?.len() {
                    return Err(os(libc::EINVAL));
                }
                file.write_all_at(&bytes, at)?;
                return Ok(DiskOk::Written(bytes));
            }
            DiskOp::Sync { file } => self.file(file)?.sync_data()?,
            DiskOp::SyncAfter { file, write } => {
                if self.failed_write == Some(write) {
                    return Err(os(libc::ECANCELED));
                }
                self.file(file)?.sync_data()?;
            }
            DiskOp::Read { file, at, bytes } => return self.read(file, at, bytes).map(DiskOk::Bytes),
            DiskOp::Close { file } => drop(self.files.remove(&file).ok_or_else(|| os(libc::EBADF))?),
            DiskOp::Replace { path, bytes } => self.replace(&path, &bytes)?,
            DiskOp::Rename { from, to } => self.rename(&from, &to)?,
            DiskOp::Remove { path } => {
                let path = self.resolve(&path)?;
                match fs::symlink_metadata(&path)?.is_dir() {
                    // POSIX allows EEXIST for a folder that is not empty.
                    true => fs::remove_dir(&path).map_err(|error| match error.raw_os_error() {
                        Some(libc::EEXIST) => os(libc::ENOTEMPTY),
                        _ => error,
                    })?,
                    false => fs::remove_file(&path)?,
                }
                sync_folder(parent(&path)?)?;
            }
            DiskOp::List { path } => return self.list(&path).map(DiskOk::Listed),
            DiskOp::Load { .. } => return Err(os(libc::EINVAL)),
        }
        Ok(DiskOk::Done)
    }

    fn file(&self, key: FileKey) -> io::Result<&File> {
        self.files.get(&key).ok_or_else(|| os(libc::EBADF))
    }

    fn open(&self, path: &FilePath, write: bool) -> io::Result<File> {
        // Without O_NONBLOCK the open of a pipe would wait for its other end.
        let file =
            OpenOptions::new().read(true).write(write).custom_flags(libc::O_NONBLOCK).open(self.resolve(path)?)?;
        let facts = file.metadata()?;
        match facts.is_file() {
            true => Ok(file),
            false => Err(os(if facts.is_dir() { libc::EISDIR } else { libc::EINVAL })),
        }
    }

    /// Shorter than asked for only at the end of the file.
    fn read(&self, key: FileKey, at: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let file = self.file(key)?;
        if !aligned(at, bytes) {
            return Err(os(libc::EINVAL));
        }
        // The size first: what is asked for may be much more than there is.
        let left = file.metadata()?.len().saturating_sub(at);
        let mut out = vec![0; bytes.min(usize::try_from(left).unwrap_or(bytes))];
        let mut filled = 0;
        while filled < out.len() {
            match file.read_at(&mut out[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        out.truncate(filled);
        Ok(out)
    }

    fn load(&self, path: &FilePath, bytes_max: usize) -> Result<DiskOk, DiskError> {
        let file = self.open(path, false).map_err(|error| disk_error(&error))?;
        let bytes = file.metadata().map_err(|error| disk_error(&error))?.len();
        if bytes > bytes_max as u64 {
            return Err(DiskError::TooLarge { bytes });
        }
        let mut content = Vec::with_capacity(bytes as usize);
        file.take(bytes_max as u64).read_to_end(&mut content).map_err(|error| disk_error(&error))?;
        Ok(DiskOk::Bytes(content))
    }

    fn replace(&self, path: &FilePath, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > REPLACE_BYTES_MAX {
            return Err(os(libc::EFBIG));
        }
        let path = self.resolve(path)?;
        let parent = self.make_parent(&path)?;
        let mut temporary = path.clone().into_os_string();
        temporary.push(TEMPORARY_SUFFIX);
        let temporary = PathBuf::from(temporary);
        let replaced = File::create(&temporary).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        });
        if let Err(error) = replaced {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        sync_folder(&parent)
    }

    fn rename(&self, from: &FilePath, to: &FilePath) -> io::Result<()> {
        let (from, to) = (self.resolve(from)?, self.resolve(to)?);
        fs::symlink_metadata(&from)?;
        let target = self.make_parent(&to)?;
        // Whoever opens this disk for writing holds the folder's lock: looking first is as good as RENAME_NOREPLACE.
        match fs::symlink_metadata(&to) {
            Ok(_) => return Err(os(libc::EEXIST)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(&from, &to)?,
            Err(error) => return Err(error),
        }
        sync_folder(&target)?;
        sync_folder(parent(&from)?)
    }

    fn list(&self, path: &FilePath) -> io::Result<Vec<Listed>> {
        let path = if path.0.is_empty() { self.root.clone() } else { self.resolve(path)? };
        let entries = match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let facts = entry.metadata()?;
            let is_folder = facts.is_dir();
            let bytes = if is_folder { 0 } else { facts.len() };
            found.push(Listed { name: entry.file_name().to_string_lossy().into_owned(), bytes, is_folder });
        }
        found.sort_unstable();
        Ok(found)
    }

    fn resolve(&self, path: &FilePath) -> io::Result<PathBuf> {
        match is_inside(path) {
            true => Ok(self.root.join(&path.0)),
            false => Err(os(libc::EINVAL)),
        }
    }

    /// Makes the folders above `path`, durably, and returns the nearest.
    fn make_parent(&self, path: &Path) -> io::Result<PathBuf> {
        let folder = parent(path)?;
        if folder != self.root && !folder.is_dir() {
            let above = self.make_parent(folder)?;
            match fs::create_dir(folder) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
            sync_folder(&above)?;
        }
        Ok(folder.to_path_buf())
    }
}

impl Disk for OfflineDisk {
    fn submit(&mut self, request: DiskRequest) {
        self.requests.push_back(request);
    }

    fn wait(&mut self) -> Option<DiskDone> {
        let DiskRequest { ticket, op, .. } = self.requests.pop_front()?;
        let is_write = matches!(op, DiskOp::Write { .. });
        let result = self.perform(op);
        if is_write && result.is_err() {
            self.failed_write = Some(ticket);
        }
        Some(DiskDone { ticket, result })
    }
}

/// `path` is `/`-separated, relative, and leads nowhere but down.
pub fn is_inside(path: &FilePath) -> bool {
    path.0.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\0'))
}

fn aligned(at: u64, bytes: usize) -> bool {
    at.is_multiple_of(BLOCK_BYTES as u64) && bytes.is_multiple_of(BLOCK_BYTES)
}

fn fill(file: &File, bytes: u64, zeroed: bool) -> io::Result<()> {
    if zeroed {
        let zeros = vec![0; ZERO_STEP_BYTES.min(usize::try_from(bytes).unwrap_or(ZERO_STEP_BYTES))];
        let mut at = 0;
        while at < bytes {
            let step = zeros.len().min((bytes - at) as usize);
            file.write_all_at(&zeros[..step], at)?;
            at += step as u64;
        }
    } else {
        file.set_len(bytes)?;
    }
    file.sync_all()
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| os(libc::EINVAL))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

const _: () = assert!(ZERO_STEP_BYTES.is_multiple_of(BLOCK_BYTES));
