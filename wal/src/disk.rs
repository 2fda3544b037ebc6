//! **What**: the vocabulary between storage planners and whoever executes them: operations out, completions in.
//!
//! ```text
//! planner --DiskRequest{ticket, op}--> executor (glommio O_DIRECT | MemDisk with faults) --DiskDone{ticket, result}--> planner
//! ```
//!
//! **Invariants**: requests on one file may complete in any order; a planner that needs an order waits for the completion.
//! A `Sync` covers the writes that completed before it was submitted, and no other (`SyncAfter`: and its write). Every request gets exactly one completion.
//! Positions and sizes of `Write` and `Read` are multiples of `BLOCK_BYTES`.
//!
//! **Never**: a retry of a failed write or sync inside an executor.
//!
//! **See**: `mem_disk.rs` (the executor for tests), `broker/src/io/disk.rs` (the real one).

use std::fmt;

/// Unit of writes and reads: O_DIRECT alignment, and the largest unit that real disks tear.
pub const BLOCK_BYTES: usize = 4_096;

/// Where a file lies, relative to the data folder: `/`-separated, no `..`, no leading `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilePath(pub String);

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An open file, numbered by the planner that opened it; unique among the open files of an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKey(pub u64);

impl FileKey {
    /// Number `number` of planner `owner`: planners that share an executor never meet.
    pub fn new(owner: u32, number: u32) -> FileKey {
        FileKey(u64::from(owner) << 32 | u64::from(number))
    }
}

/// Matches a completion to its request; chosen by the planner, unique among requests under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

impl Ticket {
    /// Number `number` of planner `owner`; the number may wrap, requests are not under way for that long.
    pub fn new(owner: u32, number: u32) -> Ticket {
        Ticket(u64::from(owner) << 32 | u64::from(number))
    }

    /// Which planner the completion is for.
    pub fn owner(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Its number within the planner.
    pub fn number(self) -> u32 {
        self.0 as u32
    }
}

/// How urgent a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// Somebody waits for an ack.
    #[default]
    Commit,
    /// Write-behind, recycling, retention.
    Background,
    /// History for readers that are behind; must not disturb the tail.
    History,
}

/// Largest content of a `Replace`.
pub const REPLACE_BYTES_MAX: usize = 16 << 20;

/// What the name of the temporary file of a `Replace` ends with; a crash may leave one behind.
pub const TEMPORARY_SUFFIX: &str = ".tmp";

/// Something to do with the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// Makes a file that must not exist, `bytes` long. `zeroed`: written with zeros and synced, so that later writes need
    /// no allocation; else only its size is set and extents are reserved. File and directory entry are durable on
    /// completion. After an error other than `Exists` the executor has tried to remove it; a planner takes another name.
    Create {
        /// Where. Missing folders are made.
        path: FilePath,
        /// Its handle from now on.
        file: FileKey,
        /// Size, a multiple of `BLOCK_BYTES`.
        bytes: u64,
        /// Zero-filled.
        zeroed: bool,
    },
    /// Opens a file for reading and writing.
    Open {
        /// Where.
        path: FilePath,
        /// Its handle from now on.
        file: FileKey,
    },
    /// Grows a file to `bytes` with reserved extents (reads as zeros). The size is durable after a `Sync`.
    Extend {
        /// Which.
        file: FileKey,
        /// New size, a multiple of `BLOCK_BYTES`, not smaller than before.
        bytes: u64,
    },
    /// Writes whole blocks, inside the size that Create or Extend gave the file.
    Write {
        /// Which.
        file: FileKey,
        /// First byte, a multiple of `BLOCK_BYTES`.
        at: u64,
        /// What, a multiple of `BLOCK_BYTES`; comes back in the completion for reuse.
        bytes: Vec<u8>,
    },
    /// Makes all writes (and the size) durable that completed before.
    Sync {
        /// Which.
        file: FileKey,
    },
    /// A `Sync` that begins when one write has completed, and covers it as well: what a group commit does, without a turn of
    /// the loop in between. It is the request right behind that write, and completes after it. If the write fails, so does
    /// this, and nothing was synced.
    SyncAfter {
        /// Which.
        file: FileKey,
        /// The write, of the same file; both are `Priority::Commit`.
        write: Ticket,
    },
    /// Reads whole blocks; shorter only at the end of the file (empty beyond it).
    Read {
        /// Which.
        file: FileKey,
        /// First byte, a multiple of `BLOCK_BYTES`.
        at: u64,
        /// How many, a multiple of `BLOCK_BYTES`.
        bytes: usize,
    },
    /// Closes a file. No request on it may be under way.
    Close {
        /// Which.
        file: FileKey,
    },
    /// Replaces a small file as a whole: temporary file, sync, rename, sync of the folder. Old or new content survives a
    /// crash, never a mix. The temporary file is `path` + `TEMPORARY_SUFFIX`.
    Replace {
        /// Where. Missing folders are made.
        path: FilePath,
        /// Its content, any length up to `REPLACE_BYTES_MAX`.
        bytes: Vec<u8>,
    },
    /// Reads a small file as a whole.
    Load {
        /// Where.
        path: FilePath,
        /// Refuse a larger one.
        bytes_max: usize,
    },
    /// Renames a file or folder durably; the target must not exist, its missing folders are made.
    Rename {
        /// From.
        from: FilePath,
        /// To.
        to: FilePath,
    },
    /// Removes a file, or an empty folder, durably.
    Remove {
        /// Which.
        path: FilePath,
    },
    /// Names and sizes of the files and folders in a folder, sorted by name; empty if the folder does not exist.
    List {
        /// Which.
        path: FilePath,
    },
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRequest {
    /// Comes back in the completion.
    pub ticket: Ticket,
    /// How urgent.
    pub priority: Priority,
    /// What to do.
    pub op: DiskOp,
}

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Name within the folder.
    pub name: String,
    /// Size; 0 for a folder.
    pub bytes: u64,
    /// It is a folder.
    pub is_folder: bool,
}

/// What a request gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOk {
    /// Create, Extend, Sync, SyncAfter, Close, Replace, Rename, Remove.
    Done,
    /// Open: the size of the file.
    Opened {
        /// Bytes.
        bytes: u64,
    },
    /// Write: the buffer comes back.
    Written(Vec<u8>),
    /// Read, Load.
    Bytes(Vec<u8>),
    /// List.
    Listed(Vec<Listed>),
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// No space left (ENOSPC, EDQUOT).
    Full,
    /// No such file.
    NotFound,
    /// The file exists.
    Exists,
    /// The system lacks descriptors or memory (EMFILE, ENFILE, ENOMEM) and has not begun: no word on the disk.
    Short {
        /// errno.
        errno: i32,
    },
    /// The device or file system failed; `errno` for people.
    Io {
        /// errno.
        errno: i32,
    },
    /// A `Load` of a file that is larger than allowed.
    TooLarge {
        /// Its size.
        bytes: u64,
    },
}

impl DiskError {
    /// Nothing was done and nothing is wrong with what is there: the same may be asked again later.
    pub fn passes(&self) -> bool {
        matches!(self, DiskError::Full | DiskError::Short { .. })
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiskError::Full => write!(f, "no space left on the device"),
            DiskError::Short { errno } => {
                write!(
                    f,
                    "the system is short of file descriptors or memory (errno {errno}); raise the limit of open files"
                )
            }
            DiskError::NotFound => write!(f, "no such file"),
            DiskError::Exists => write!(f, "the file exists"),
            DiskError::Io { errno } => write!(f, "input/output failed (errno {errno})"),
            DiskError::TooLarge { bytes } => write!(f, "the file has {bytes} bytes, more than it may have"),
        }
    }
}

impl std::error::Error for DiskError {}

/// A completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskDone {
    /// Of which request.
    pub ticket: Ticket,
    /// What became of it.
    pub result: Result<DiskOk, DiskError>,
}

/// An executor, as tests and offline tools see it.
pub trait Disk {
    /// Takes a request.
    fn submit(&mut self, request: DiskRequest);
    /// The next completion; blocks if none is there yet. None: nothing is under way.
    fn wait(&mut self) -> Option<DiskDone>;

    /// One operation, to its end. For offline tools and tests: nothing else may be under way.
    fn call(&mut self, op: DiskOp) -> Result<DiskOk, DiskError> {
        let ticket = Ticket(u64::MAX);
        self.submit(DiskRequest { ticket, priority: Priority::Background, op });
        let done = self.wait().expect("a request is under way");
        assert_eq!(done.ticket, ticket, "another request was under way");
        done.result
    }
}
