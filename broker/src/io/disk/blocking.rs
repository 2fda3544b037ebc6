//! **What**: a thread that writes and syncs with calls that block: one per core for commits, one for write-behind.
//!
//! ```text
//!   core --Job (mesh ring)--> thread: pwrite, fdatasync --Done (mesh ring), bell if the core sleeps--> core
//! ```
//!
//! Why not the core's io_uring: an asynchronous direct write ends on a kernel worker bound to the CPU that took the device's
//! interrupt (iomap, Linux 6.18). Where somebody polls on that CPU, as a core does, the worker waits for the next tick of
//! the clock, 4 ms at 250 Hz. The end of a blocking write is handled by its own thread, which can go elsewhere
//! (broker/DESIGN.md has the figures).
//!
//! **Invariants**: jobs run one after the other in their order, each to its end, write before sync; a job whose write failed
//! syncs nothing; an answer finds room, since a port has at most `JOBS_UNDER_WAY` jobs under way. The thread ends when its
//! port is gone, after the jobs that it was given.
//!
//! **Never**: a second try of a failed write or sync (a short write goes on behind what was written); an allocation per job.
//!
//! **See**: `mesh.rs` for the rings, `lane.rs` for the core's side, `places.rs` for where it runs.

use super::folder::{disk_error, from_errno};
use super::open::OpenFile;
use super::places::{Crowd, Places};
use super::staging::Staging;
use crate::io::mesh::{Mesh, MeshLimits, MeshPort};
use felix_wal::disk::{DiskError, FileKey, Ticket};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};

/// Jobs that a port may have given away and not got back.
pub(super) const JOBS_UNDER_WAY: usize = 32;

const LIMITS: MeshLimits = MeshLimits { capacity: JOBS_UNDER_WAY, reserved: 1 };
/// Members of the mesh.
const THREAD: usize = 1;
const PORT: usize = 0;

/// A write, a sync, or a write and the sync behind it.
pub(super) struct Job {
    /// The file, for the bookkeeping of the port.
    pub key: FileKey,
    /// The same, open.
    pub file: Arc<OpenFile>,
    /// First byte and content.
    pub write: Option<(Ticket, u64, Vec<u8>)>,
    /// The sync.
    pub sync: Option<Ticket>,
}

/// What became of a job.
pub(super) struct Done {
    /// The file.
    pub key: FileKey,
    /// The write; its buffer comes back.
    pub write: Option<(Ticket, Result<Vec<u8>, DiskError>)>,
    /// The sync.
    pub sync: Option<(Ticket, Result<(), DiskError>)>,
}

/// Messages between a port and a thread.
enum Message {
    Job(Job),
    Done(Done),
    /// The port is gone. The one message that uses the reserved slot.
    Bye,
}

/// A port's end. Its drop waits for the jobs that were given.
pub(super) struct Blocking {
    port: MeshPort<Message>,
    thread: Option<JoinHandle<()>>,
}

impl Blocking {
    /// Starts the thread. It writes pieces of `piece_bytes`, so that others find the device in between.
    pub fn start(name: &str, piece_bytes: usize, places: Places) -> io::Result<Blocking> {
        let mut ports = Mesh::ports(2, LIMITS);
        let port = ports.pop().expect("two members");
        let run = move || Worker { port, staging: Staging::default(), piece_bytes }.run(Crowd::new(places));
        let thread = thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Blocking { port: ports.pop().expect("two members"), thread: Some(thread) })
    }

    /// Gives a job. The caller keeps at most `JOBS_UNDER_WAY`.
    pub fn send(&mut self, job: Job) {
        let sent = self.port.try_send(THREAD, Message::Job(job));
        assert!(sent.is_ok(), "no more jobs are under way than a ring has slots");
    }

    /// The next job that ended.
    pub fn poll(&mut self) -> Option<Done> {
        let mut done = None;
        self.port.drain(1, |_, message| match message {
            Message::Done(it) => done = Some(it),
            Message::Job(_) | Message::Bye => unreachable!("the thread only answers"),
        });
        done
    }

    /// The last look before the core parks: from here on an answer wakes `waker`. False: there is one already.
    pub fn prepare_sleep(&mut self, waker: &Waker) -> bool {
        self.port.register(waker);
        self.port.prepare_sleep()
    }

    /// Ends sleep, however it ended.
    pub fn awake(&mut self) {
        self.port.awake();
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        // The reserved slot is for this.
        let _ = self.port.send_reserved(THREAD, Message::Bye);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

struct Worker {
    port: MeshPort<Message>,
    staging: Staging,
    piece_bytes: usize,
}

impl Worker {
    fn run(mut self, mut crowd: Crowd) {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut cx = Context::from_waker(&waker);
        loop {
            let mut next = None;
            self.port.drain(1, |_, message| next = Some(message));
            match next {
                Some(Message::Job(job)) => {
                    let done = self.work(job);
                    // It finds room: the port has no more jobs under way than a ring has slots, also one that is gone.
                    let _ = self.port.try_send(PORT, Message::Done(done));
                    crowd.after_job();
                }
                Some(Message::Bye) => return,
                Some(Message::Done(_)) => unreachable!("ports send no answers"),
                None if self.port.poll_mail(&mut cx).is_pending() => {
                    // May return for no reason: the loop looks again.
                    thread::park();
                    self.port.awake();
                }
                None => {}
            }
        }
    }

    fn work(&mut self, Job { key, file, write, sync }: Job) -> Done {
        let write = write.map(|(ticket, at, bytes)| {
            let written = self.write(&file, at, &bytes);
            (ticket, written.map(|()| bytes))
        });
        let failed = write.as_ref().and_then(|(_, result)| result.as_ref().err().copied());
        let sync = sync.map(|ticket| (ticket, failed.map_or_else(|| fdatasync(&file), Err)));
        Done { key, write, sync }
    }

    fn write(&mut self, file: &OpenFile, at: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let mut at = at;
        for piece in bytes.chunks(self.piece_bytes) {
            if piece.as_ptr().addr().is_multiple_of(file.memory_align) {
                pwrite(file, at, piece)?;
            } else {
                let mut staged = self.staging.take(piece.len());
                staged.bytes_mut()[..piece.len()].copy_from_slice(piece);
                let written = pwrite(file, at, &staged.bytes()[..piece.len()]);
                self.staging.give_back(staged);
                written?;
            }
            at += piece.len() as u64;
        }
        Ok(())
    }
}

/// Goes on behind a short write.
fn pwrite(file: &OpenFile, mut at: u64, mut bytes: &[u8]) -> Result<(), DiskError> {
    while !bytes.is_empty() {
        // SAFETY: the bytes live through the call. A position is below `i64::MAX` (`check_extent`).
        let written =
            unsafe { libc::pwrite64(file.as_file().as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), at as i64) };
        match usize::try_from(written) {
            // Nothing written and no reason given.
            Ok(0) => return Err(DiskError::Io { errno: libc::EIO }),
            Ok(count) => {
                bytes = bytes.get(count..).unwrap_or_default();
                at += count as u64;
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                // A signal came before the first byte: nothing failed.
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(disk_error(&error));
                }
            }
        }
    }
    Ok(())
}

fn fdatasync(file: &OpenFile) -> Result<(), DiskError> {
    // SAFETY: plain system call on a descriptor that lives through it. Not `sync_data`, which tries again after EINTR:
    // what a sync did that ended early is not known.
    match unsafe { libc::fdatasync(file.as_file().as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(from_errno(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))),
    }
}

#[cfg(test)]
mod tests;
