//! **What**: what the disk gives past the page cache: a write, then fdatasync, which is what a durable publish costs at
//! least; and reading a file from its beginning to its end.
//!
//! **Invariants**: the file was zero-written and synced before, as a recycled WAL file is; every write goes to the next
//! blocks, never to those that were just written.
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

/// Unit of O_DIRECT.
pub const BLOCK: usize = 4 << 10;
/// Bytes of one read of a file from end to end.
const READ_BYTES: usize = 1 << 20;

#[repr(align(4096))]
#[derive(Clone)]
struct Block(#[allow(dead_code, reason = "it is seen as part of a slice of bytes")] [u8; BLOCK]);

/// Memory that O_DIRECT takes.
struct Aligned(Vec<Block>);

impl Aligned {
    fn new(bytes: usize) -> Aligned {
        Aligned(vec![Block([0x5a; BLOCK]); bytes.div_ceil(BLOCK)])
    }

    fn bytes(&self) -> &[u8] {
        let bytes: &[[u8; BLOCK]] = {
            // SAFETY: a Block is its array: same size and a stricter alignment, no padding.
            unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len()) }
        };
        bytes.as_flattened()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let bytes: &mut [[u8; BLOCK]] = {
            // SAFETY: as above; the borrow of `self` is exclusive.
            unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len()) }
        };
        bytes.as_flattened_mut()
    }
}

/// Times of write and sync, ns: of the write alone, and of both; sorted.
pub struct Times {
    /// The write.
    pub write: Vec<u64>,
    /// Write and sync.
    pub both: Vec<u64>,
}

fn with_file<T>(folder: &Path, work: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let path = folder.join(format!("felix-bench-disk-{}", std::process::id()));
    let result = work(&path);
    let _ = std::fs::remove_file(&path);
    result
}

/// Writes `bytes` (whole blocks) and syncs, `count` times in a file below `folder`, but not for longer than `at_most`. With a
/// `pace` one begins at each multiple of it: a device that rested takes longer.
pub fn write_and_sync(
    folder: &Path,
    bytes: usize,
    count: usize,
    at_most: Duration,
    pace: Option<Duration>,
) -> io::Result<Times> {
    with_file(folder, |path| {
        fill(path, (bytes * count) as u64)?;
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path)?;
        let block = Aligned::new(bytes);
        let mut times = Times { write: Vec::with_capacity(count), both: Vec::with_capacity(count) };
        let begun = Instant::now();
        for index in 0..count {
            if let Some(pace) = pace {
                std::thread::sleep((pace * index as u32).saturating_sub(begun.elapsed()));
            }
            let started = Instant::now();
            file.write_all_at(block.bytes(), (index * bytes) as u64)?;
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
    })
}

/// Bytes per second of reading `bytes` (whole blocks) in order, so many reads of 1 MiB at a time.
pub fn sequential_read(folder: &Path, bytes: u64, at_a_time: u64) -> io::Result<f64> {
    with_file(folder, |path| {
        fill(path, bytes)?;
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
        let started = Instant::now();
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..at_a_time)
                .map(|reader| {
                    let file = &file;
                    scope.spawn(move || {
                        let mut buffer = Aligned::new(READ_BYTES);
                        let step = READ_BYTES as u64;
                        let mut at = reader * step;
                        while at < bytes {
                            let wanted = step.min(bytes - at) as usize;
                            file.read_exact_at(&mut buffer.bytes_mut()[..wanted], at)?;
                            at += at_a_time * step;
                        }
                        io::Result::Ok(())
                    })
                })
                .collect();
            readers.into_iter().try_for_each(|it| it.join().map_err(|_| io::Error::other("a reader panicked"))?)
        })?;
        Ok(bytes as f64 / started.elapsed().as_secs_f64())
    })
}

/// A file of zeros that is on the disk and not in the page cache's debt.
fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let zeros = vec![0; READ_BYTES];
    let mut left = bytes;
    while left > 0 {
        let step = left.min(zeros.len() as u64);
        file.write_all(&zeros[..step as usize])?;
        left -= step;
    }
    file.sync_all()?;
    // SAFETY: advice on an open file; what is cached would be read from memory otherwise.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    Ok(())
}
