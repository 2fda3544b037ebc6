//! **What**: a data folder as an offline tool opens it: whether a broker has it, and whose it is.
//!
//! **Invariants**: looking at a folder makes no file in it. While a tool that writes runs, no broker starts on the folder.
//!
//! **Never**: an identity made up: without one readable header there is none, and the tools say so.
//!
//! **See**: `../data_folder.rs` for how a broker opens it.

use crate::offline_disk::{Access, OfflineDisk};
use felix_protocol::ids::NodeSession;
use felix_wal::disk::{BLOCK_BYTES, Disk, DiskOk, DiskOp, FileKey, FilePath};
use felix_wal::format::header::{FileHeader, Identity};
use felix_wal::format::names::{Name, SHARDS_FOLDER, WAL_FOLDER};
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Headers that are asked whose folder it is.
const HEADERS_ASKED_MAX: usize = 4_096;
/// Bytes of a lock file that are shown.
const HOLDER_BYTES_MAX: u64 = 32;

/// Why a tool did not do its work.
#[derive(Debug)]
pub enum ToolError {
    /// No folder there.
    NotThere(PathBuf, io::Error),
    /// A folder, but nothing of Felix is in it.
    NotOurs(PathBuf),
    /// A broker has it open; its process id.
    InUse(PathBuf, String),
    /// The lock could not be looked at.
    Lock(PathBuf, io::Error),
    /// The output could not be written.
    Output(io::Error),
    /// The user asked for what cannot be; a sentence.
    Refused(String),
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ToolError::NotThere(path, error) => write!(f, "cannot open the data folder {}: {error}", path.display()),
            ToolError::NotOurs(path) => write!(
                f,
                "{} is no data folder of Felix: it has none of format, node.toml, {SHARDS_FOLDER}/ and {WAL_FOLDER}/",
                path.display()
            ),
            ToolError::InUse(path, holder) => write!(
                f,
                "a broker (process {holder}) has the data folder {} open; stop it first (SIGTERM), or work on a copy",
                path.display()
            ),
            ToolError::Lock(path, error) => write!(f, "cannot use the lock {}: {error}", path.display()),
            ToolError::Output(error) => write!(f, "cannot write the output: {error}"),
            ToolError::Refused(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ToolError {}

impl From<io::Error> for ToolError {
    fn from(error: io::Error) -> ToolError {
        ToolError::Output(error)
    }
}

/// A folder that a tool works on; locked as long as this value lives.
#[derive(Debug)]
pub struct DataFolder {
    /// Absolute.
    pub root: PathBuf,
    _lock: Option<File>,
}

impl DataFolder {
    /// Opens it. Readers share it among themselves; a writer has it alone.
    pub fn open(data: &Path, access: Access) -> Result<DataFolder, ToolError> {
        let root = find(data)?;
        let lock = lock(&root, access)?;
        Ok(DataFolder { root, _lock: lock })
    }

    /// Opens it although a broker may have it: the second value is the holder, if so. For a look at single files.
    pub fn open_shared(data: &Path) -> Result<(DataFolder, Option<String>), ToolError> {
        match DataFolder::open(data, Access::ReadOnly) {
            Ok(folder) => Ok((folder, None)),
            Err(ToolError::InUse(root, holder)) => Ok((DataFolder { root, _lock: None }, Some(holder))),
            Err(error) => Err(error),
        }
    }

    /// As a disk.
    pub fn disk(&self, access: Access) -> OfflineDisk {
        OfflineDisk::new(&self.root, access)
    }
}

fn find(data: &Path) -> Result<PathBuf, ToolError> {
    let there = |error| ToolError::NotThere(data.to_path_buf(), error);
    let root = data.canonicalize().map_err(there)?;
    root.read_dir().map_err(there)?;
    let ours = ["format", "node.toml", SHARDS_FOLDER, WAL_FOLDER].iter().any(|name| root.join(name).exists());
    if ours { Ok(root) } else { Err(ToolError::NotOurs(root)) }
}

/// The lock that a broker holds for life. A reader of a folder without a lock file (a copy, a backup) makes none.
fn lock(root: &Path, access: Access) -> Result<Option<File>, ToolError> {
    let path = root.join("lock");
    let failed = |error| ToolError::Lock(path.clone(), error);
    let opened = match access {
        Access::ReadOnly => File::open(&path),
        Access::ReadWrite => File::options().read(true).write(true).create(true).truncate(false).open(&path),
    };
    let mut file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let locked = match access {
        Access::ReadOnly => file.try_lock_shared(),
        Access::ReadWrite => file.try_lock(),
    };
    match locked {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::Error(error)) => Err(failed(error)),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = (&mut file).take(HOLDER_BYTES_MAX).read_to_string(&mut holder);
            Err(ToolError::InUse(root.to_path_buf(), super::shown(holder.trim())))
        }
    }
}

/// Whose the folder is, and the latest start of the node that left a file: what `DATA/format` says, else what most file
/// headers say. None: no header can be read.
pub fn identity(disk: &mut dyn Disk) -> Option<(Identity, NodeSession)> {
    if let Some(header) = header(disk, &Name::Format.path()) {
        return Some((header.identity, header.session));
    }
    let mut asked: Vec<(Identity, NodeSession, usize)> = Vec::new();
    let mut left = HEADERS_ASKED_MAX;
    for above in [SHARDS_FOLDER, WAL_FOLDER] {
        for folder in list(disk, above) {
            for file in list(disk, &format!("{above}/{folder}")) {
                if left == 0 {
                    break;
                }
                left -= 1;
                let Some(found) = header(disk, &FilePath(format!("{above}/{folder}/{file}"))) else { continue };
                match asked.iter_mut().find(|it| it.0 == found.identity) {
                    Some(known) => {
                        known.1 = known.1.max(found.session);
                        known.2 += 1;
                    }
                    None => asked.push((found.identity, found.session, 1)),
                }
            }
        }
    }
    asked.into_iter().max_by_key(|it| it.2).map(|(identity, session, _)| (identity, session))
}

/// The header of a file. None: there is none, or it is damaged.
pub fn header(disk: &mut dyn Disk, path: &FilePath) -> Option<FileHeader> {
    let file = FileKey(u64::MAX - 7);
    disk.call(DiskOp::Open { path: path.clone(), file }).ok()?;
    let read = disk.call(DiskOp::Read { file, at: 0, bytes: BLOCK_BYTES });
    let _ = disk.call(DiskOp::Close { file });
    match read {
        Ok(DiskOk::Bytes(bytes)) => FileHeader::decode(&bytes).ok(),
        _ => None,
    }
}

fn list(disk: &mut dyn Disk, path: &str) -> Vec<String> {
    match disk.call(DiskOp::List { path: FilePath(path.to_string()) }) {
        Ok(DiskOk::Listed(list)) => list.into_iter().map(|it| it.name).collect(),
        _ => Vec::new(),
    }
}
