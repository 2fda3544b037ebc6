//! **What**: the few system calls of the start-up self-check and of the look at the disk, with a safe face.
//!
//! **Invariants**: nothing here changes the process but `raise_soft_limit`, a thread but `set_affinity` and
//! `ask_for_short_slices`, or a file but `allocate`.
//!
//! **Never**: judgement; that is `self_check.rs` and `space.rs`.
//!
//! **See**: `self_check.rs`, `space.rs`.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A resource limit of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Bytes of memory that may be locked: io_uring buffers.
    LockedMemory,
    /// Open files: sockets, rings, segments.
    OpenFiles,
}

/// A limit; `u64::MAX` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What holds now.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// Puts the calling thread on these CPUs.
pub fn set_affinity(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: plain data; zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    for &cpu in cpus.iter().filter(|&&cpu| cpu < libc::CPU_SETSIZE as usize) {
        // SAFETY: inside the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: `set` lives through the call and is as long as it says.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) })
}

/// Slice of CPU time that `ask_for_short_slices` asks for: the shortest there is.
const SLICE_NS: u64 = 100_000;

/// Asks the scheduler for short slices for the calling thread and those that it starts: whoever wakes with a shorter slice
/// than the one that runs need not wait for the next tick of the clock (EEVDF, Linux 6.12; older ones ignore it). It gives
/// no larger share of a CPU.
pub fn ask_for_short_slices() {
    // SAFETY: plain data; zero is a valid value of each field.
    let mut attributes: libc::sched_attr = unsafe { zeroed() };
    attributes.size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: the structure lives through the calls and is as long as it says.
    unsafe {
        let got = libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, attributes.size, 0);
        if got == 0 && attributes.sched_policy == libc::SCHED_OTHER as u32 {
            attributes.sched_runtime = SLICE_NS;
            // Nothing depends on it but tails.
            let _ = libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0);
        }
    }
}

/// Reads a limit.
pub fn limit(resource: Resource) -> io::Result<Limit> {
    // SAFETY: rlimit is plain data; zero is valid.
    let mut raw: libc::rlimit = unsafe { zeroed() };
    // SAFETY: `raw` lives through the call.
    check(unsafe { libc::getrlimit(code(resource), &mut raw) })?;
    Ok(Limit { soft: raw.rlim_cur, hard: raw.rlim_max })
}

/// Raises the soft limit to `wanted`, or to the hard limit if that is lower, and returns what holds after.
pub fn raise_soft_limit(resource: Resource, wanted: u64) -> io::Result<Limit> {
    let now = limit(resource)?;
    if now.soft >= wanted || now.soft == now.hard {
        return Ok(now);
    }
    let raw = libc::rlimit { rlim_cur: wanted.min(now.hard), rlim_max: now.hard };
    // SAFETY: `raw` lives through the call.
    check(unsafe { libc::setrlimit(code(resource), &raw) })?;
    limit(resource)
}

fn code(resource: Resource) -> libc::__rlimit_resource_t {
    match resource {
        Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
        Resource::OpenFiles => libc::RLIMIT_NOFILE,
    }
}

/// The CPUs this process may run on, ascending. A cgroup's CPU set is part of it.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: cpu_set_t is plain data; zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: the set lives through the call and has the size given.
    check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) })?;
    // SAFETY: CPU_ISSET reads inside the set for numbers below CPU_SETSIZE.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

/// Makes a small io_uring and closes it again.
pub fn try_io_uring() -> io::Result<()> {
    // struct io_uring_params: 120 bytes of plain data, all zero for the defaults.
    let mut params = [0u64; 15];
    // SAFETY: the parameters live through the call and have the size the kernel writes; the descriptor is ours alone.
    unsafe {
        let fd = libc::syscall(libc::SYS_io_uring_setup, 8u32, params.as_mut_ptr());
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        drop(OwnedFd::from_raw_fd(fd as i32));
    }
    Ok(())
}

/// A file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes it has.
    pub total: u64,
    /// Bytes that this process may still write.
    pub available: u64,
}

/// Size and room of the file system that `path` is on.
pub fn space(path: &Path) -> io::Result<Space> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: statvfs is plain data; zero is valid.
    let mut raw: libc::statvfs = unsafe { zeroed() };
    // SAFETY: the path ends in a zero byte, and both live through the call.
    check(unsafe { libc::statvfs(path.as_ptr(), &mut raw) })?;
    let bytes = |blocks: u64| blocks.saturating_mul(raw.f_frsize);
    Ok(Space { total: bytes(raw.f_blocks), available: bytes(raw.f_bavail) })
}

/// Gives a file `bytes` bytes of blocks, without writing them. An error if the file system cannot.
pub fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let bytes = libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: no memory is involved; the descriptor is open while `file` lives.
    check(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes) })
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
