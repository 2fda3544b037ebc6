//! **What**: a file opened for O_DIRECT, and what its device asks of memory.
//!
//! **Invariants**: every data file is opened with O_DIRECT; there is no silent fall-back to the page cache.
//!
//! **Never**: a blocking read, write or sync here: that is `ring.rs`.
//!
//! **See**: `folder.rs`, which opens; `staging.rs`, for memory that is not aligned.

use felix_wal::disk::BLOCK_BYTES;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// An open file. Shared with the helper thread only while it extends or closes it.
pub(super) struct OpenFile {
    file: File,
    /// What an address must be a multiple of.
    pub memory_align: usize,
}

impl OpenFile {
    /// Takes a descriptor.
    pub fn of(file: File) -> OpenFile {
        let memory_align = memory_align(&file);
        OpenFile { file, memory_align }
    }

    /// The file.
    pub fn as_file(&self) -> &File {
        &self.file
    }
}

/// Opens for reading and writing; `create`: a file that must not exist.
pub(super) fn open_direct(path: &Path, create: bool) -> io::Result<OpenFile> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(create).custom_flags(libc::O_DIRECT);
    let file = options.open(path).inspect_err(|error| {
        if create && error.raw_os_error() == Some(libc::EINVAL) {
            // A file system that refuses O_DIRECT has made the file all the same.
            let _ = std::fs::remove_file(path);
        }
    })?;
    Ok(OpenFile::of(file))
}

/// What the file system says (Linux 6.1), else a block, which satisfies all.
fn memory_align(file: &File) -> usize {
    // SAFETY: plain data, zero is a value.
    let mut facts: libc::statx = unsafe { zeroed() };
    // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor; the result lives through the call.
    let result =
        unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &mut facts) };
    let align = facts.stx_dio_mem_align as usize;
    let known = result == 0 && facts.stx_mask & libc::STATX_DIOALIGN != 0;
    if known && align.is_power_of_two() && align <= BLOCK_BYTES { align } else { BLOCK_BYTES }
}
