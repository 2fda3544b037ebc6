//! **What**: the bell of one core's disk port: an eventfd that the kernel and the helper thread write to.
//!
//! ```text
//!   own ring: completion posted -> kernel adds 1          helper: answer in the mesh, core asleep -> adds 1
//!                                 \                      /
//!                                  eventfd: readable until read; a parked core has a read of it under way
//! ```
//!
//! **Invariants**: never non-blocking (a read in the kernel would answer EAGAIN instead of waiting).
//!
//! **Never**: a blocking read on a core's thread.
//!
//! **See**: `wait.rs` for the read of a parked core, `disk.rs` for the argument that no ring is missed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::task::Wake;

/// An eventfd.
pub(in crate::io) struct Bell(OwnedFd);

impl Bell {
    /// A silent bell.
    pub fn new() -> io::Result<Bell> {
        // SAFETY: plain system call; the descriptor is ours alone.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
            if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(Bell(OwnedFd::from_raw_fd(fd))) }
        }
    }

    /// Makes it readable.
    pub fn ring(&self) {
        ring_fd(self.0.as_fd());
    }

    /// Blocks until it is readable, and reads it. For threads that are no cores.
    pub fn wait(&self) {
        let mut count = 0u64;
        // SAFETY: the kernel writes eight bytes into the counter, which lives through the call. An interrupted call
        // returns early, and the caller looks again.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
    }

    /// Another descriptor of the same bell.
    pub fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }
}

/// Makes an eventfd readable.
pub(in crate::io) fn ring_fd(fd: BorrowedFd<'_>) {
    let one = 1u64;
    // SAFETY: eight bytes that live through the call. It fails only if the counter is about to overflow: readable already.
    unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
}
