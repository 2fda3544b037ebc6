//! **What**: the core's side of a thread that writes and syncs: what waits for it, and what it gave back.
//!
//! **Invariants**: one completion per request, a write's before that of its sync; at most `JOBS_UNDER_WAY` jobs are with the
//! thread.
//!
//! **Never**: another order than that of the requests.
//!
//! **See**: `blocking.rs`, the thread.

use super::blocking::{Blocking, Done, JOBS_UNDER_WAY, Job};
use felix_wal::disk::{DiskDone, DiskOk, FileKey, Ticket};
use std::collections::VecDeque;
use std::task::Waker;

/// A lane to a thread.
pub(super) struct Lane {
    thread: Blocking,
    waiting: VecDeque<Job>,
    under_way: usize,
    /// The sync of a job whose write was told just now.
    synced: Option<DiskDone>,
    operations: u64,
}

impl Lane {
    pub fn new(thread: Blocking) -> Lane {
        Lane { thread, waiting: VecDeque::new(), under_way: 0, synced: None, operations: 0 }
    }

    /// Queues a job for the next `flush`.
    pub fn push(&mut self, job: Job) {
        self.operations += 1;
        self.waiting.push_back(job);
    }

    /// Adds a sync to the job that was pushed last.
    ///
    /// # Panics
    /// If that is not this write.
    pub fn push_sync_after(&mut self, key: FileKey, write: Ticket, sync: Ticket) {
        let last = self.waiting.back_mut().filter(|job| job.key == key && job.sync.is_none());
        let last = last.filter(|job| job.write.as_ref().is_some_and(|(other, ..)| *other == write));
        last.expect("a SyncAfter is the request right behind its write, and both are commits").sync = Some(sync);
        self.operations += 1;
    }

    /// Gives the thread what it may have.
    pub fn flush(&mut self) {
        while self.under_way < JOBS_UNDER_WAY
            && let Some(job) = self.waiting.pop_front()
        {
            self.under_way += 1;
            self.thread.send(job);
        }
    }

    /// The next completion, and the file that a job ended on.
    pub fn poll(&mut self) -> Option<(DiskDone, Option<FileKey>)> {
        if self.under_way == 0 {
            return None;
        }
        if let Some(synced) = self.synced.take() {
            self.under_way -= 1;
            return Some((synced, None));
        }
        let Done { key, write, sync } = self.thread.poll()?;
        let write = write.map(|(ticket, result)| DiskDone { ticket, result: result.map(DiskOk::Written) });
        let sync = sync.map(|(ticket, result)| DiskDone { ticket, result: result.map(|()| DiskOk::Done) });
        let done = match (write, sync) {
            (Some(write), Some(sync)) => {
                self.synced = Some(sync);
                write
            }
            (one, other) => {
                self.under_way -= 1;
                one.or(other)?
            }
        };
        Some((done, Some(key)))
    }

    /// Something waits or is under way.
    pub fn is_busy(&self) -> bool {
        self.under_way > 0 || !self.waiting.is_empty()
    }

    /// Writes and syncs that were pushed.
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// The last look before the core parks: from here on an answer wakes `waker`. False: there is one already.
    pub fn prepare_sleep(&mut self, waker: &Waker) -> bool {
        self.synced.is_none() && (self.under_way == 0 || self.thread.prepare_sleep(waker))
    }

    /// Ends sleep, however it ended.
    pub fn awake(&mut self) {
        self.thread.awake();
    }
}
