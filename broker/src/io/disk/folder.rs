//! **What**: the file operations that block: create, open, extend, replace, load, rename, remove, list.
//!
//! Plain system calls, run by the helper thread. Names, sizes and contents are durable when one returns.
//!
//! **Invariants**: a folder that a durable name depends on is durable itself: its entry is synced once per process, also if
//! it was there already (a process that made it may have died before its sync). An error after a file was made removes it.
//!
//! **Never**: a path that leaves the data folder (asserted: paths are made by us); a retry of a failed sync; a core's thread.
//!
//! **See**: `helper.rs`, which runs this; `open.rs`, what an open file is.

use super::open::{OpenFile, open_direct};
use super::staging::Aligned;
use felix_wal::disk::{BLOCK_BYTES, DiskError, FilePath, Listed, TEMPORARY_SUFFIX};
use std::collections::HashSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of one step of a zero-fill, between which the helper looks for what is more urgent.
const ZERO_STEP_BYTES: usize = 1 << 20;

/// Folders remembered as durable; more are forgotten and synced again.
const DURABLE_FOLDERS_MAX: usize = 16_384;

/// The data folder.
pub(super) struct Folder {
    root: PathBuf,
    durable: HashSet<PathBuf>,
}

/// What an error of the system means to a planner.
pub(super) fn disk_error(error: &io::Error) -> DiskError {
    from_errno(error.raw_os_error().unwrap_or(libc::EIO))
}

/// The same for an error that came after the change was made, which may or may not last: none that "nothing was done" describes.
fn in_doubt(error: &io::Error) -> DiskError {
    DiskError::Io { errno: error.raw_os_error().unwrap_or(libc::EIO) }
}

/// What an error number means to a planner.
pub(super) fn from_errno(errno: i32) -> DiskError {
    match errno {
        libc::ENOSPC | libc::EDQUOT => DiskError::Full,
        libc::ENOENT => DiskError::NotFound,
        libc::EEXIST => DiskError::Exists,
        libc::EMFILE | libc::ENFILE | libc::ENOMEM => DiskError::Short { errno },
        errno => DiskError::Io { errno },
    }
}

impl Folder {
    /// A folder that exists.
    pub fn new(root: &Path) -> Folder {
        Folder { root: root.to_path_buf(), durable: HashSet::new() }
    }

    /// Creates a file. `between` is called between the steps of a zero-fill.
    pub fn create(
        &mut self,
        path: &FilePath,
        bytes: u64,
        zeroed: bool,
        between: impl FnMut(&mut Folder),
    ) -> Result<OpenFile, DiskError> {
        let path = self.resolve(path);
        let parent = self.make_parent(&path)?;
        let file = open_direct(&path, true).map_err(|error| disk_error(&error))?;
        let filled = self
            .fill(&file, bytes, zeroed, between)
            .and_then(|()| sync_folder(&parent))
            .map_err(|error| disk_error(&error));
        if let Err(error) = filled {
            // It was made here a moment ago; what cannot be removed is found by the next start.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(file)
    }

    fn fill(
        &mut self,
        file: &OpenFile,
        bytes: u64,
        zeroed: bool,
        mut between: impl FnMut(&mut Folder),
    ) -> io::Result<()> {
        // Extents first, so that the zeros lie together and a full disk is found before any is written.
        reserve(file.as_file(), bytes)?;
        if zeroed {
            let zeros = Aligned::new(ZERO_STEP_BYTES.min(usize::try_from(bytes).unwrap_or(ZERO_STEP_BYTES)));
            let mut at = 0;
            while at < bytes {
                let step = zeros.bytes().len().min((bytes - at) as usize);
                file.as_file().write_all_at(&zeros.bytes()[..step], at)?;
                at += step as u64;
                between(self);
            }
        }
        file.as_file().sync_all()
    }

    /// Opens a file.
    pub fn open(&self, path: &FilePath) -> Result<OpenFile, DiskError> {
        open_direct(&self.resolve(path), false).map_err(|error| disk_error(&error))
    }

    /// Replaces a small file.
    pub fn replace(&mut self, path: &FilePath, bytes: &[u8]) -> Result<(), DiskError> {
        let path = self.resolve(path);
        let parent = self.make_parent(&path)?;
        let mut temporary = path.clone().into_os_string();
        temporary.push(TEMPORARY_SUFFIX);
        let temporary = PathBuf::from(temporary);
        let replaced = (|| {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        })();
        if let Err(error) = replaced {
            let _ = fs::remove_file(&temporary);
            return Err(disk_error(&error));
        }
        sync_folder(&parent).map_err(|error| in_doubt(&error))
    }

    /// Reads a small file.
    pub fn load(&self, path: &FilePath, bytes_max: usize) -> Result<Vec<u8>, DiskError> {
        let load = || {
            let file = File::open(self.resolve(path))?;
            let bytes = file.metadata()?.len();
            if bytes > bytes_max as u64 {
                return Ok(Err(bytes));
            }
            let mut content = Vec::with_capacity(bytes as usize);
            file.take(bytes_max as u64).read_to_end(&mut content)?;
            Ok(Ok(content))
        };
        match load() {
            Ok(Ok(content)) => Ok(content),
            Ok(Err(bytes)) => Err(DiskError::TooLarge { bytes }),
            Err(error) => Err(disk_error(&error)),
        }
    }

    /// Renames a file or folder onto a name that does not exist.
    pub fn rename(&mut self, from: &FilePath, to: &FilePath) -> Result<(), DiskError> {
        let (from, to) = (self.resolve(from), self.resolve(to));
        // First, so that a failed rename leaves no folders.
        fs::symlink_metadata(&from).map_err(|error| disk_error(&error))?;
        let target = self.make_parent(&to)?;
        rename_new(&from, &to).map_err(|error| disk_error(&error))?;
        self.forget(&from);
        let source = parent(&from);
        let synced = sync_folder(&target).and_then(|()| if source == target { Ok(()) } else { sync_folder(source) });
        synced.map_err(|error| in_doubt(&error))
    }

    /// Removes a file or an empty folder.
    pub fn remove(&mut self, path: &FilePath) -> Result<(), DiskError> {
        let path = self.resolve(path);
        let is_folder = fs::symlink_metadata(&path).map_err(|error| disk_error(&error))?.is_dir();
        let removed = match is_folder {
            true => fs::remove_dir(&path),
            false => fs::remove_file(&path),
        };
        match removed {
            Ok(()) => {}
            // Two names for the same: POSIX allows either of a folder that is not empty.
            Err(error) if is_folder && error.raw_os_error() == Some(libc::EEXIST) => {
                return Err(DiskError::Io { errno: libc::ENOTEMPTY });
            }
            Err(error) => return Err(disk_error(&error)),
        }
        if is_folder {
            self.forget(&path);
        }
        sync_folder(parent(&path)).map_err(|error| in_doubt(&error))
    }

    /// What lies in a folder.
    pub fn list(&self, path: &FilePath) -> Result<Vec<Listed>, DiskError> {
        let list = || {
            let mut found = Vec::new();
            let path = if path.0.is_empty() { self.root.clone() } else { self.resolve(path) };
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                let facts = entry.metadata()?;
                let is_folder = facts.is_dir();
                let bytes = if is_folder { 0 } else { facts.len() };
                found.push(Listed { name: entry.file_name().to_string_lossy().into_owned(), bytes, is_folder });
            }
            found.sort_unstable();
            Ok(found)
        };
        match list() {
            Err(error) if is_not_found(&error) => Ok(Vec::new()),
            result => result.map_err(|error| disk_error(&error)),
        }
    }

    fn resolve(&self, path: &FilePath) -> PathBuf {
        check_path(path);
        self.root.join(&path.0)
    }

    /// Makes the folders above `path`, durably, and returns the nearest.
    fn make_parent(&mut self, path: &Path) -> Result<PathBuf, DiskError> {
        let parent = parent(path).to_path_buf();
        self.make(&parent).map_err(|error| disk_error(&error))?;
        Ok(parent)
    }

    fn make(&mut self, folder: &Path) -> io::Result<()> {
        if folder == self.root || self.durable.contains(folder) {
            return Ok(());
        }
        let above = parent(folder);
        self.make(above)?;
        match fs::create_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
            made => made?,
        }
        sync_folder(above)?;
        if self.durable.len() >= DURABLE_FOLDERS_MAX {
            self.durable.clear();
        }
        self.durable.insert(folder.to_path_buf());
        Ok(())
    }

    /// A folder is gone or has another name: neither it nor what was in it is known to be durable.
    fn forget(&mut self, path: &Path) {
        if self.durable.contains(path) {
            self.durable.retain(|known| !known.starts_with(path));
        }
    }
}

/// Asserts that a path stays in the data folder.
pub(super) fn check_path(path: &FilePath) {
    let is_name = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    assert!(path.0.split('/').all(is_name), "{path:?} is no path below the data folder");
}

/// Grows a file and reserves its extents.
pub(super) fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    let length = libc::off_t::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    if length == 0 {
        return Ok(());
    }
    loop {
        // SAFETY: plain system call on a descriptor that lives through it.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Nothing was decided yet.
            Some(libc::EINTR) => {}
            // A file system without reservations: it says at the write that it is full.
            Some(libc::EOPNOTSUPP) => {
                return if file.metadata()?.len() < bytes { file.set_len(bytes) } else { Ok(()) };
            }
            _ => return Err(error),
        }
    }
}

/// Renames unless the target exists.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let (c_from, c_to) = (CString::new(from.as_os_str().as_bytes())?, CString::new(to.as_os_str().as_bytes())?);
    // SAFETY: both are zero-terminated and live through the call.
    let result = unsafe {
        libc::renameat2(libc::AT_FDCWD, c_from.as_ptr(), libc::AT_FDCWD, c_to.as_ptr(), libc::RENAME_NOREPLACE)
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EINVAL) {
        return Err(error);
    }
    // A file system without the flag. Nobody else makes names here, so that looking first is as good.
    match fs::symlink_metadata(to) {
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EEXIST)),
        Err(error) if is_not_found(&error) => fs::rename(from, to),
        Err(error) => Err(error),
    }
}

fn is_not_found(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn parent(path: &Path) -> &Path {
    path.parent().expect("below the data folder")
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

const _: () = assert!(ZERO_STEP_BYTES.is_multiple_of(BLOCK_BYTES));
