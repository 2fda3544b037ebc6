//! **What**: tries whether a folder takes what a core does to it: a direct write, a data sync, a read, through io_uring.
//!
//! **Invariants**: leaves nothing behind; touches one file of its own name only.
//!
//! **Never**: a core's thread.
//!
//! **See**: `self_check.rs`, which turns the answer into a sentence.

use super::{Places, start};
use felix_wal::disk::{BLOCK_BYTES, Disk, DiskError, DiskOk, DiskOp, FileKey, FilePath};
use std::ffi::CString;
use std::fmt;
use std::io;
use std::mem::zeroed;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The file of the trial.
const NAME: &str = "self-check.tmp";

/// What was tried when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderStep {
    /// Making an io_uring and a thread.
    Start,
    /// Creating a file that is opened with O_DIRECT, and making it durable.
    Create,
    /// Writing a block.
    Write,
    /// fdatasync.
    Sync,
    /// Reading it again.
    Read,
    /// Removing the file.
    Remove,
}

/// Why a folder cannot hold data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolderProblem {
    /// What was tried.
    pub step: FolderStep,
    /// What the system said. `None`: other bytes came back than were written.
    pub error: Option<DiskError>,
}

impl fmt::Display for FolderProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = match self.step {
            FolderStep::Start => "starting the disk path",
            FolderStep::Create => "creating a file with O_DIRECT",
            FolderStep::Write => "writing a block with O_DIRECT",
            FolderStep::Sync => "fdatasync",
            FolderStep::Read => "reading a block with O_DIRECT",
            FolderStep::Remove => "removing a file",
        };
        match self.error {
            Some(DiskError::Io { errno }) => write!(f, "{step} failed: {}", io::Error::from_raw_os_error(errno)),
            Some(error) => write!(f, "{step} failed: {error}"),
            None => write!(f, "{step} gave other bytes than were written"),
        }
    }
}

impl std::error::Error for FolderProblem {}

/// Tries a folder that exists.
pub fn try_folder(folder: &Path) -> Result<(), FolderProblem> {
    let failed = |step, error| FolderProblem { step, error: Some(error) };
    let started = start(folder, 1).and_then(|(helper, mut seats)| {
        let seat = seats.pop().expect("one seat was asked for");
        Ok((helper, seat.open(Places::default())?))
    });
    let (helper, mut disk) = started.map_err(|error| failed(FolderStep::Start, super::folder::disk_error(&error)))?;
    let path = FilePath(NAME.to_string());
    let file = FileKey(0);
    // Left by a trial that was killed.
    let _ = disk.call(DiskOp::Remove { path: path.clone() });
    let create = DiskOp::Create { path: path.clone(), file, bytes: BLOCK_BYTES as u64, zeroed: true };
    disk.call(create).map_err(|error| failed(FolderStep::Create, error))?;
    let bytes = vec![0xa5; BLOCK_BYTES];
    let tried = (|| {
        let write = DiskOp::Write { file, at: 0, bytes: bytes.clone() };
        disk.call(write).map_err(|error| failed(FolderStep::Write, error))?;
        disk.call(DiskOp::Sync { file }).map_err(|error| failed(FolderStep::Sync, error))?;
        let read = DiskOp::Read { file, at: 0, bytes: BLOCK_BYTES };
        match disk.call(read).map_err(|error| failed(FolderStep::Read, error))? {
            DiskOk::Bytes(found) if found == bytes => Ok(()),
            _ => Err(FolderProblem { step: FolderStep::Read, error: None }),
        }
    })();
    let removed = disk.call(DiskOp::Close { file }).and_then(|_| disk.call(DiskOp::Remove { path }));
    drop(disk);
    helper.join();
    tried.and(removed.map(|_| ()).map_err(|error| failed(FolderStep::Remove, error)))
}

/// Whether what is written there is gone when the machine is switched off: tmpfs and ramfs.
pub fn is_in_memory(folder: &Path) -> bool {
    let Ok(path) = CString::new(folder.as_os_str().as_bytes()) else { return false };
    // SAFETY: plain data, zero is a value.
    let mut facts: libc::statfs = unsafe { zeroed() };
    // SAFETY: the path is zero-terminated, and both live through the call.
    let result = unsafe { libc::statfs(path.as_ptr(), &mut facts) };
    // The second is RAMFS_MAGIC of linux/magic.h.
    result == 0 && (facts.f_type == libc::TMPFS_MAGIC || facts.f_type == 0x8584_58f6)
}
