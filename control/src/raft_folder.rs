//! **What**: the folder of durable metadata: whose it is, how far its log was synced, its snapshots.
//!
//! ```text
//! FOLDER/identity          whose it is; written last when the folder is made
//! FOLDER/synced            8 KiB: two slots, at 0 and at 4096, written in turn
//! FOLDER/snapshot-INDEX    newest two; INDEX = 20 digits, last entry covered
//! FOLDER/log/              raft-engine's files
//! ```
//!
//! **Invariants**: `identity` and snapshots appear whole or not at all (written aside, synced, renamed, folder synced);
//! `synced` never says more than what is on disk, because it is written after the sync it tells of. What could not be
//! written whole leaves nothing behind: it would take the room that is missing.
//!
//! **Never**: a damaged or missing file taken for an empty cluster.
//!
//! **See**: `raft_frames.rs` for the bytes, `raft_log/recover.rs`, which holds `synced` against the log.

use crate::framed::FrameError;
use crate::raft_frames::{Identity, Synced};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const IDENTITY: &str = "identity";
const SYNCED: &str = "synced";
const SNAPSHOT: &str = "snapshot-";
const ASIDE: &str = ".tmp";
/// Distance of the two slots of `synced`: blocks of their own, so that a torn write hits one of them at most.
const SLOT_BYTES: u64 = 4_096;
/// Snapshots that stay: the newest, and the one before for an operator who must go back.
const SNAPSHOTS_KEPT: usize = 2;

/// Why metadata could not be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The disk refused.
    Io {
        /// File or folder.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The folder belongs to somebody else.
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Whose it should be.
        expected: Identity,
        /// Whose it is.
        found: Identity,
    },
    /// What was acknowledged is not there any more, or not as it was.
    Damaged {
        /// File or folder.
        path: PathBuf,
        /// What is wrong, for people.
        detail: String,
    },
    /// Another process has it open.
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The member did not come to lead; the text says why.
    NotStarted {
        /// For people.
        detail: String,
    },
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Io { path, error } => write!(f, "cannot use {}: {error}", path.display()),
            OpenError::Foreign { path, expected, found } => {
                let (what, expected, found) = match expected.cluster == found.cluster {
                    false => ("cluster", expected.cluster.0, found.cluster.0),
                    true => ("node", expected.node.0, found.node.0),
                };
                let path = path.display();
                write!(f, "the metadata in {path} belongs to {what} {found:032x}, this is {what} {expected:032x}")
            }
            OpenError::Damaged { path, detail } => {
                write!(
                    f,
                    "the metadata is damaged: {}: {detail}; nothing was changed, restore a backup",
                    path.display()
                )
            }
            OpenError::InUse { path } => write!(f, "another process has {} open", path.display()),
            OpenError::NotStarted { detail } => write!(f, "the metadata did not start: {detail}"),
        }
    }
}

impl std::error::Error for OpenError {}

pub(crate) fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> OpenError + '_ {
    |error| OpenError::Io { path: path.to_path_buf(), error }
}

pub(crate) fn damaged(path: &Path, detail: impl Into<String>) -> OpenError {
    OpenError::Damaged { path: path.to_path_buf(), detail: detail.into() }
}

/// Syncs a folder, so that the names in it survive a power cut.
pub(crate) fn sync_folder(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// Puts a file in place, whole and durable.
fn write_whole(folder: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let aside = folder.join(format!("{name}{ASIDE}"));
    let written = File::create(&aside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| std::fs::rename(&aside, folder.join(name))) {
        // If that fails too, the first error is the one to tell.
        let _ = std::fs::remove_file(&aside);
        return Err(error);
    }
    sync_folder(folder)
}

/// A metadata folder whose identity was checked.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Opens the folder of `identity`, or makes it.
    pub fn open(path: &Path, identity: Identity) -> Result<Folder, OpenError> {
        let folder = Folder { path: path.to_path_buf() };
        let file = path.join(IDENTITY);
        match std::fs::read(&file) {
            Ok(bytes) => {
                let found = Identity::decode(&bytes).map_err(|error| damaged(&file, error.to_string()))?;
                if found != identity {
                    return Err(OpenError::Foreign { path: path.to_path_buf(), expected: identity, found });
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => folder.create(identity)?,
            Err(error) => return Err(io_error(&file)(error)),
        }
        Ok(folder)
    }

    /// Nothing but what a start that was cut off here may have left is taken for a new folder.
    fn create(&self, identity: Identity) -> Result<(), OpenError> {
        std::fs::create_dir_all(&self.path).map_err(io_error(&self.path))?;
        if self.log().exists() || !self.snapshots()?.is_empty() {
            return Err(damaged(&self.path.join(IDENTITY), "it is missing, but there is a log or a snapshot"));
        }
        let synced = Synced { writes: 0 }.encode();
        let mut slots = vec![0; 2 * SLOT_BYTES as usize];
        for slot in slots.chunks_mut(SLOT_BYTES as usize) {
            slot[..synced.len()].copy_from_slice(&synced);
        }
        write_whole(&self.path, SYNCED, &slots).map_err(io_error(&self.path))?;
        write_whole(&self.path, IDENTITY, &identity.encode()).map_err(io_error(&self.path))?;
        // The folder's own name. Whoever made the parent must have synced that.
        match self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => sync_folder(parent).map_err(io_error(parent)),
            None => Ok(()),
        }
    }

    /// Where raft-engine lives.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that says how far the log was synced.
    pub fn synced(&self) -> Result<SyncedFile, OpenError> {
        SyncedFile::open(&self.path.join(SYNCED))
    }

    /// Snapshots by the index of their last entry, oldest first.
    fn snapshots(&self) -> Result<Vec<(u64, PathBuf)>, OpenError> {
        let mut found = Vec::new();
        for item in std::fs::read_dir(&self.path).map_err(io_error(&self.path))? {
            let path = item.map_err(io_error(&self.path))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let digits = name.and_then(|name| name.strip_prefix(SNAPSHOT)).filter(|digits| digits.len() == 20);
            if let Some(index) = digits.and_then(|digits| digits.parse().ok()) {
                found.push((index, path));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The newest snapshot, whatever is in it.
    pub fn newest_snapshot(&self) -> Result<Option<(PathBuf, Vec<u8>)>, OpenError> {
        let Some((_, path)) = self.snapshots()?.pop() else { return Ok(None) };
        let bytes = std::fs::read(&path).map_err(io_error(&path))?;
        Ok(Some((path, bytes)))
    }

    /// Puts a snapshot in place. `index`: of the last entry it covers.
    pub fn write_snapshot(&self, index: u64, bytes: &[u8]) -> Result<(), OpenError> {
        let name = format!("{SNAPSHOT}{index:020}");
        write_whole(&self.path, &name, bytes).map_err(io_error(&self.path.join(&name)))
    }

    /// Removes the snapshots before the last two.
    pub fn remove_old_snapshots(&self) -> Result<(), OpenError> {
        let snapshots = self.snapshots()?;
        let old = snapshots.len().saturating_sub(SNAPSHOTS_KEPT);
        for (_, path) in &snapshots[..old] {
            std::fs::remove_file(path).map_err(io_error(path))?;
        }
        Ok(())
    }
}

/// The file `synced`.
#[derive(Debug)]
pub struct SyncedFile {
    path: PathBuf,
    file: File,
    synced: Synced,
    slot: u64,
    dirty: bool,
}

impl SyncedFile {
    fn open(path: &Path) -> Result<SyncedFile, OpenError> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(damaged(path, "it is missing")),
            other => other.map_err(io_error(path))?,
        };
        let length = Synced { writes: 0 }.encode().len();
        let mut slots: [Result<Synced, FrameError>; 2] = [Err(FrameError::Truncated { found: 0 }); 2];
        for (at, slot) in (0..).zip(&mut slots) {
            let mut bytes = vec![0; length];
            *slot = match file.read_exact_at(&mut bytes, at * SLOT_BYTES) {
                Ok(()) => Synced::decode(&bytes),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => continue,
                Err(error) => return Err(io_error(path)(error)),
            };
        }
        let newest = slots.iter().zip(0..).filter_map(|(slot, at)| slot.ok().map(|it| (it.writes, at))).max();
        let Some((writes, at)) = newest else {
            let detail = slots[0].err().map_or_else(String::new, |error| error.to_string());
            return Err(damaged(path, format!("both of its slots are: {detail}")));
        };
        Ok(SyncedFile { path: path.to_path_buf(), file, synced: Synced { writes }, slot: 1 - at, dirty: false })
    }

    /// What it says.
    pub fn writes(&self) -> u64 {
        self.synced.writes
    }

    /// Says that the log is on disk up to this write. Not synced: what it says may be old after a power cut, never too
    /// new.
    pub fn advance(&mut self, writes: u64) -> std::io::Result<()> {
        self.synced = Synced { writes };
        self.file.write_all_at(&self.synced.encode(), self.slot * SLOT_BYTES)?;
        self.slot = 1 - self.slot;
        self.dirty = true;
        Ok(())
    }

    /// Makes what was said last survive a power cut too.
    pub fn sync(&mut self) -> std::io::Result<()> {
        if self.dirty {
            self.file.sync_data()?;
            self.dirty = false;
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests;
