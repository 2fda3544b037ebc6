//! **What**: 4 KiB written past the page cache, then fdatasync: what a durable publish costs at least on this disk.
//!
//! **Invariants**: the file was zero-written and synced before, as a recycled WAL file is; every write goes to the next
//! block, never to one that was just written.
//!
//! **Never**: anything of Felix.
//!
//! **See**: `mod.rs`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

const BLOCK: usize = 4 << 10;

#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

/// Times of write and sync, ns: of the write alone, and of both; sorted.
pub struct Times {
    /// The write.
    pub write: Vec<u64>,
    /// Write and sync.
    pub both: Vec<u64>,
}

/// Writes `count` blocks in a file below `folder`, but not for longer than `at_most`.
pub fn write_and_sync(folder: &Path, count: usize, at_most: Duration) -> io::Result<Times> {
    let path = folder.join(format!("felix-bench-disk-{}", std::process::id()));
    let result = run(&path, count, at_most);
    let _ = std::fs::remove_file(&path);
    result
}

fn run(path: &Path, count: usize, at_most: Duration) -> io::Result<Times> {
    let mut file = File::create(path)?;
    for _ in 0..count {
        file.write_all(&[0; BLOCK])?;
    }
    file.sync_all()?;
    drop(file);
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path)?;
    let block = Aligned([0x5a; BLOCK]);
    let mut times = Times { write: Vec::with_capacity(count), both: Vec::with_capacity(count) };
    let begun = Instant::now();
    for index in 0..count {
        let started = Instant::now();
        file.write_all_at(&block.0, (index * BLOCK) as u64)?;
        times.write.push(started.elapsed().as_nanos() as u64);
        // SAFETY: the descriptor belongs to an open file.
        if unsafe { libc::fdatasync(file.as_raw_fd()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        times.both.push(started.elapsed().as_nanos() as u64);
        if begun.elapsed() > at_most {
            break;
        }
    }
    times.write.sort_unstable();
    times.both.sort_unstable();
    Ok(times)
}
