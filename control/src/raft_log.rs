//! **What**: the raft log: all of it in memory to read from, on disk through raft-engine, which a thread of its own
//! writes and syncs.
//!
//! ```text
//! append, vote, truncate, purge -> checked here, in memory -> job -> thread: one batch, one sync -> `synced` -> done
//! ```
//!
//! The log is short (a snapshot folds it when it outgrows a part of the state), so memory holds it, and neither
//! applying nor replicating ever waits for a disk read.
//!
//! **Invariants**: entries are consecutive, in memory and on disk; every batch carries the whole [`LogHead`], so the
//! newest write alone tells vote, bounds and count; what openraft is told done is synced.
//!
//! **Never**: an entry given to raft-engine that leaves a hole (it would write it and then refuse to open for ever); a
//! write after a failed one; a call that blocks on the disk from the control thread.
//!
//! **See**: `raft_log/writer.rs` (the thread), `raft_log/recover.rs` (opening), `raft_frames.rs` (bytes).
#![allow(clippy::result_large_err, reason = "the error type is openraft's")]

#[cfg(test)]
mod power_cut;
mod probe;
pub mod recover;
mod writer;

use crate::framed::FrameError;
use crate::raft_frames::{LogHead, encode_entry};
use crate::raft_types::{LogId, RaftEntry, RaftTypes, StorageError, Vote};
use felix_protocol::ids::NodeId;
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader, StorageIOError};
use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use writer::{Done, Job, Writer};

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread is one of raft-engine that becomes an error here: for a panic hook that else would
/// end the process, which can still answer reads.
pub fn panic_is_caught() -> bool {
    CATCHING.get()
}

/// Calls raft-engine, which panics on damaged records and when a sync fails. None: it did, and its state is not to be
/// used any more.
fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    let before = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(before);
    result.ok()
}

/// Why an append was refused before the engine saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// It would leave a hole, or overwrite what was not cut off first.
    NotNext {
        /// The one index that may follow.
        expected: u64,
        /// Index of the entry.
        found: u64,
    },
    /// The entry cannot be written.
    Frame(FrameError),
}

impl std::fmt::Display for AppendError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AppendError::NotNext { expected, found } => {
                write!(f, "entry {found} does not follow the log, whose next entry is {expected}")
            }
            AppendError::Frame(error) => std::fmt::Display::fmt(error, f),
        }
    }
}

impl std::error::Error for AppendError {}

/// The log as it is in memory: what is on disk, and what is on its way there.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    head: LogHead,
    /// From `head.first_index()` to `head.last`.
    entries: VecDeque<RaftEntry>,
}

impl Mirror {
    pub(crate) fn new(head: LogHead, entries: VecDeque<RaftEntry>) -> Mirror {
        Mirror { head, entries }
    }

    /// The head of the next write.
    fn next_head(&mut self) -> LogHead {
        self.head.writes += 1;
        self.head
    }

    /// Checks and takes entries; their frames. All or none.
    fn append(&mut self, entries: Vec<RaftEntry>) -> Result<Vec<(u64, Vec<u8>)>, AppendError> {
        let mut frames = Vec::with_capacity(entries.len());
        for (expected, entry) in (self.head.next_index()..).zip(&entries) {
            let found = entry.log_id.index;
            if found != expected {
                return Err(AppendError::NotNext { expected, found });
            }
            frames.push((found, encode_entry(entry).map_err(AppendError::Frame)?));
        }
        if let Some(last) = entries.last() {
            self.head.last = Some(last.log_id);
        }
        self.entries.extend(entries);
        Ok(frames)
    }

    /// Cuts entries off, from this index on.
    fn truncate(&mut self, from: u64) {
        while self.entries.back().is_some_and(|entry| entry.log_id.index >= from) {
            self.entries.pop_back();
        }
        self.head.last = self.entries.back().map(|entry| entry.log_id).or(self.head.purged);
        self.head.committed = self.head.committed.min(self.head.last);
    }

    /// Removes entries up to this one, which may lie beyond the last.
    fn purge(&mut self, to: LogId) {
        while self.entries.front().is_some_and(|entry| entry.log_id.index <= to.index) {
            self.entries.pop_front();
        }
        self.head.purged = self.head.purged.max(Some(to));
        self.head.last = self.entries.back().map(|entry| entry.log_id).or(self.head.purged);
    }

    fn read(&self, range: impl RangeBounds<u64>) -> Vec<RaftEntry> {
        let first = self.head.first_index();
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        let end = end.min(self.head.next_index()).saturating_sub(first) as usize;
        let start = (start.max(first) - first) as usize;
        if start < end { self.entries.range(start..end).cloned().collect() } else { Vec::new() }
    }
}

/// The log, shared by its writer (openraft's core) and its readers. A lock is held for memory work only.
#[derive(Clone, Debug, Default)]
pub struct LogMirror(Arc<Mutex<Mirror>>);

impl LogMirror {
    fn lock(&self) -> MutexGuard<'_, Mirror> {
        // Every change below is complete before anything could panic, so a poisoned lock still guards a whole log.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn new(mirror: Mirror) -> LogMirror {
        LogMirror(Arc::new(Mutex::new(mirror)))
    }

    /// Vote, bounds, count of writes.
    pub fn head(&self) -> LogHead {
        self.lock().head
    }
}

impl RaftLogReader<RaftTypes> for LogMirror {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<RaftEntry>, StorageError> {
        Ok(self.lock().read(range))
    }
}

/// openraft's door to the log.
#[derive(Debug)]
pub struct RaftLog {
    node: NodeId,
    mirror: LogMirror,
    writer: Writer,
}

fn write_error(error: &(impl std::error::Error + 'static)) -> StorageError {
    StorageIOError::write_logs(openraft::AnyError::new(error)).into()
}

impl RaftLog {
    /// The log in memory.
    pub fn mirror(&self) -> LogMirror {
        self.mirror.clone()
    }

    /// Writes the head as `change` leaves it, and waits until it is synced.
    async fn write_head(&mut self, compact: Option<u64>, change: impl FnOnce(&mut Mirror)) -> std::io::Result<()> {
        let (done, synced) = tokio::sync::oneshot::channel();
        {
            let mut mirror = self.mirror.lock();
            change(&mut mirror);
            let head = mirror.next_head();
            self.writer.send(Job { entries: Vec::new(), head, compact, done: Done::Waiter(done) });
        }
        synced.await.unwrap_or_else(|_| Err(writer::gone()))
    }
}

impl RaftLogReader<RaftTypes> for RaftLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<RaftEntry>, StorageError> {
        Ok(self.mirror.lock().read(range))
    }
}

impl RaftLogStorage<RaftTypes> for RaftLog {
    type LogReader = LogMirror;

    async fn get_log_state(&mut self) -> Result<LogState<RaftTypes>, StorageError> {
        let head = self.mirror.head();
        Ok(LogState { last_purged_log_id: head.purged, last_log_id: head.last })
    }

    async fn get_log_reader(&mut self) -> LogMirror {
        self.mirror.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let result = self.write_head(None, |mirror| mirror.head.vote = Some(*vote)).await;
        result.map_err(|error| StorageError::from_io_error(ErrorSubject::Vote, ErrorVerb::Write, error))
    }

    /// Asked once, at the start. Who led when it stopped must not go on under the old term: its vote for itself is read
    /// as one that was not granted yet, so it follows until it is elected anew. A vote weaker than the one given
    /// promises no less.
    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let vote = self.mirror.head().vote;
        Ok(vote.map(|vote| Vote { committed: vote.committed && vote.leader_id.node_id != self.node.0, ..vote }))
    }

    /// Goes to disk with the next write. It only shortens what is applied before the first election after a start, and
    /// a write and sync of its own would double what a proposal costs.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let mut mirror = self.mirror.lock();
        mirror.head.committed = committed.min(mirror.head.last);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.mirror.head().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<RaftTypes>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut mirror = self.mirror.lock();
        let entries = mirror.append(entries.into_iter().collect()).map_err(|error| write_error(&error))?;
        let head = mirror.next_head();
        self.writer.send(Job { entries, head, compact: None, done: Done::Flushed(callback) });
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let result = self.write_head(None, |mirror| mirror.truncate(log_id.index)).await;
        result.map_err(|error| write_error(&error))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let result = self.write_head(Some(log_id.index + 1), |mirror| mirror.purge(log_id)).await;
        result.map_err(|error| write_error(&error))
    }
}

#[cfg(test)]
mod tests;
