//! **What**: reads of open files on an io_uring of this core's own.
//!
//! ```text
//!   start -> slot -> SQE --enter (once per turn)--> kernel
//!   reap  <- slot <- CQE (memory that the kernel writes: no system call)          -> bell, for a parked core
//! ```
//!
//! **Invariants**: a slot has exactly one operation in the kernel or waiting for `enter`, and there are fewer slots than
//! entries, so no queue overflows; memory and file of a slot live until its completion was reaped.
//!
//! **Never**: IOPOLL; a second try of a failed read; a slot dropped before its completion; a write or sync (`blocking.rs`
//! says why).
//!
//! **See**: `disk.rs`, which decides what may start; broker/DESIGN.md, why not the executor's rings.

use super::bell::Bell;
use super::folder::from_errno;
use super::open::OpenFile;
use super::staging::{Aligned, Staging};
use felix_wal::disk::{DiskDone, DiskOk, FileKey, Priority, Ticket};
use io_uring::{IoUring, opcode, types};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// Entries of the submission queue; the completion queue has twice as many. More than all classes may have under way.
pub(super) const RING_ENTRIES: usize = 64;

/// A read.
pub(super) struct Transfer {
    /// Of the request.
    pub ticket: Ticket,
    /// Of the request.
    pub priority: Priority,
    /// For the bookkeeping of the port.
    pub key: FileKey,
    /// On which file.
    pub file: Arc<OpenFile>,
    /// First byte in the file.
    pub at: u64,
    /// Filled up to `wanted` bytes, which it has room for.
    pub buffer: Vec<u8>,
    /// Bytes asked for.
    pub wanted: usize,
    /// Most bytes of one operation.
    pub piece_bytes: usize,
}

struct Slot {
    transfer: Transfer,
    /// Bytes done by earlier pieces.
    moved: usize,
    /// Bytes of the piece under way.
    piece: usize,
    staged: Option<Aligned>,
}

/// A transfer that ended.
pub(super) struct Ended {
    /// For the planner.
    pub done: DiskDone,
    /// Its class.
    pub priority: Priority,
    /// Its file.
    pub key: FileKey,
}

/// The ring of one core.
pub(super) struct Ring {
    ring: IoUring,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    staging: Staging,
    unsubmitted: usize,
    operations: u64,
}

impl Ring {
    /// Makes the ring.
    pub fn new(bell: &Bell) -> io::Result<Ring> {
        let ring = IoUring::new(RING_ENTRIES as u32)?;
        ring.submitter().register_eventfd(bell.as_raw_fd())?;
        Ok(Ring {
            ring,
            slots: (0..RING_ENTRIES).map(|_| None).collect(),
            free: (0..RING_ENTRIES).rev().collect(),
            staging: Staging::default(),
            unsubmitted: 0,
            operations: 0,
        })
    }

    /// Transfers that have not ended.
    pub fn under_way(&self) -> usize {
        RING_ENTRIES - self.free.len()
    }

    /// Operations given to the kernel or about to be. A transfer is one per piece.
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// Starts a transfer at the next `enter`.
    pub fn start(&mut self, transfer: Transfer) {
        let index = self.free.pop().expect("the classes together have fewer transfers than there are slots");
        self.slots[index] = Some(Slot { transfer, moved: 0, piece: 0, staged: None });
        self.push(index);
    }

    /// Gives what was started to the kernel.
    pub fn enter(&mut self) {
        while self.unsubmitted > 0 {
            match self.ring.submit() {
                Ok(taken) => self.unsubmitted -= taken.min(self.unsubmitted),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Short of memory or of room for completions: the next turn tries again.
                    Some(libc::EAGAIN | libc::EBUSY) => return,
                    _ => panic!("io_uring_enter failed: {error}"),
                },
            }
        }
    }

    /// Whether something waits for `enter` or a completion for `reap`.
    pub fn has_something(&mut self) -> bool {
        self.unsubmitted > 0 || !self.ring.completion().is_empty()
    }

    /// The next transfer that ended. A transfer of several pieces goes on by itself.
    pub fn reap(&mut self) -> Option<Ended> {
        loop {
            let completion = self.ring.completion().next()?;
            if let Some(ended) = self.on_completion(completion.user_data() as usize, completion.result()) {
                return Some(ended);
            }
        }
    }

    fn on_completion(&mut self, index: usize, result: i32) -> Option<Ended> {
        let slot = self.slots[index].as_mut().expect("a completion has a slot");
        let Slot { transfer, moved, piece, staged } = slot;
        let outcome = match usize::try_from(result) {
            Err(_) => Some(Err(from_errno(-result))),
            Ok(read) => {
                assert!(read <= *piece, "the kernel read {read} of {piece} bytes");
                match staged {
                    Some(staged) => transfer.buffer.extend_from_slice(&staged.bytes()[..read]),
                    // SAFETY: the kernel wrote `read` bytes behind the length, inside the capacity (checked in `push`).
                    None => unsafe { transfer.buffer.set_len(*moved + read) },
                }
                *moved += read;
                let at_end = read < *piece && (read == 0 || is_beyond(&transfer.file, transfer.at + *moved as u64));
                let is_over = at_end || *moved >= transfer.wanted;
                is_over.then(|| Ok(DiskOk::Bytes(std::mem::take(&mut transfer.buffer))))
            }
        };
        if let Some(staged) = staged.take() {
            self.staging.give_back(staged);
        }
        let Some(result) = outcome else {
            self.push(index);
            return None;
        };
        let Slot { transfer: Transfer { ticket, priority, key, .. }, .. } = self.slots[index].take().expect("as above");
        self.free.push(index);
        Some(Ended { done: DiskDone { ticket, result }, priority, key })
    }

    /// Queues the next piece of a slot.
    fn push(&mut self, index: usize) {
        let slot = self.slots[index].as_mut().expect("a slot that was taken");
        let Slot { transfer, moved, piece, staged } = slot;
        let fd = types::Fd(transfer.file.as_file().as_raw_fd());
        let at = transfer.at + *moved as u64;
        *piece = (transfer.wanted - *moved).min(transfer.piece_bytes);
        let bytes = *piece as u32;
        let align = transfer.file.memory_align;
        debug_assert_eq!(transfer.buffer.len(), *moved);
        let room = &mut transfer.buffer.spare_capacity_mut()[..*piece];
        let address = room.as_mut_ptr().cast::<u8>();
        let address = match address.addr().is_multiple_of(align) {
            true => address,
            false => staged.insert(self.staging.take(*piece)).as_mut_ptr(),
        };
        let entry = opcode::Read::new(fd, address, bytes).offset(at).build();
        // SAFETY: buffer, staging memory and file stay in the slot until the completion was reaped, or leak (`drop`).
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(index as u64)) };
        pushed.expect("a slot has one entry, and there are as many entries as slots");
        self.unsubmitted += 1;
        self.operations += 1;
    }
}

/// Whether a position is at or behind the end of the file. What cannot be asked is answered by the next read.
fn is_beyond(file: &OpenFile, at: u64) -> bool {
    file.as_file().metadata().is_ok_and(|facts| at >= facts.len())
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still write the memory of a slot: wait for it, or never free it.
        self.enter();
        while self.unsubmitted == 0 && self.under_way() > 0 {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.raw_os_error() != Some(libc::EINTR) => break,
                _ => {}
            }
            while let Some(completion) = self.ring.completion().next() {
                let index = completion.user_data() as usize;
                if self.slots[index].take().is_some() {
                    self.free.push(index);
                }
            }
        }
        if self.under_way() > 0 {
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

#[cfg(test)]
mod tests;
