//! **What**: the thread that writes the raft log: takes jobs in order, writes each as one batch, syncs, tells.
//!
//! **Invariants**: a job is told done only after its sync and after `synced` says so; after a failed job every later one
//! fails too, untried. The thread ends when the log is dropped and its jobs are done.
//!
//! **Never**: a retry of a write or sync.
//!
//! **See**: `../raft_log.rs`, which makes the jobs.

use super::caught;
use super::recover::{self, GROUP, HEAD_KEY, Indexed};
use crate::raft_folder::SyncedFile;
use crate::raft_frames::LogHead;
use crate::raft_types::RaftTypes;
use openraft::storage::LogFlushed;
use protobuf::well_known_types::BytesValue;
use raft_engine::env::FileSystem;
use raft_engine::internals::FilePipeLog;
use raft_engine::{Command, Engine, LogBatch};
use std::io::{Error, Result};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Jobs that may wait. openraft awaits each before the next, so more than one is rare.
const JOBS_MAX: usize = 64;
/// Idle time after which `synced` itself is synced: from then on even a power cut leaves damage distinguishable.
const IDLE: Duration = Duration::from_millis(200);
/// The same, in writes, for a log that is never idle.
const WRITES_MAX: u64 = 1_024;

/// Who hears of a job's end.
pub(super) enum Done {
    Flushed(LogFlushed<RaftTypes>),
    Waiter(tokio::sync::oneshot::Sender<Result<()>>),
}

impl Done {
    fn tell(self, result: Result<()>) {
        match self {
            Done::Flushed(callback) => callback.log_io_completed(result),
            // Nobody waits any more: openraft was dropped.
            Done::Waiter(waiter) => drop(waiter.send(result)),
        }
    }
}

/// One batch.
pub(super) struct Job {
    /// Frames of entries with their indexes.
    pub(super) entries: Vec<(u64, Vec<u8>)>,
    pub(super) head: LogHead,
    /// Entries before this index go.
    pub(super) compact: Option<u64>,
    pub(super) done: Done,
}

/// What is told to those whose job was lost with the thread.
pub(super) fn gone() -> Error {
    Error::other("the thread of the metadata log is gone")
}

/// The thread's handle in the log.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: SyncSender<Job>,
}

impl Writer {
    pub(super) fn start<F: FileSystem + 'static>(
        engine: Engine<F, FilePipeLog<F>>,
        synced: SyncedFile,
    ) -> Result<(Writer, JoinHandle<()>)> {
        let (jobs, queue) = sync_channel(JOBS_MAX);
        let thread = std::thread::Builder::new().name("felix-meta-log".into());
        let thread = thread.spawn(move || {
            match run(&engine, synced, &queue) {
                // Closing syncs too.
                Ended::Well => drop(caught(|| drop(engine))),
                // Both files would be synced again, and a second panic while the first unwinds ends the process.
                Ended::Panicked => std::mem::forget(engine),
            }
        })?;
        Ok((Writer { jobs }, thread))
    }

    /// Hands a job over without waiting.
    pub(super) fn send(&self, job: Job) {
        if let Err(refused) = self.jobs.try_send(job) {
            match refused {
                std::sync::mpsc::TrySendError::Full(job) => {
                    job.done.tell(Err(Error::other("more writes at once than the metadata log takes")));
                }
                std::sync::mpsc::TrySendError::Disconnected(job) => job.done.tell(Err(gone())),
            }
        }
    }
}

/// How the thread's work ended.
enum Ended {
    /// Or by an error that raft-engine told.
    Well,
    /// raft-engine panicked: its disk fails.
    Panicked,
}

fn run<F: FileSystem>(engine: &Engine<F, FilePipeLog<F>>, mut synced: SyncedFile, jobs: &Receiver<Job>) -> Ended {
    let mut failed: Option<String> = None;
    let mut ended = Ended::Well;
    loop {
        let job = match jobs.recv_timeout(IDLE) {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => {
                failed = failed.or_else(|| synced.sync().err().map(|error| error.to_string()));
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let Job { entries, head, compact, done } = job;
        let result = match &failed {
            Some(why) => Err(format!("an earlier write failed: {why}")),
            // raft-engine panics when a sync fails.
            None => caught(|| write(engine, &mut synced, entries, &head, compact)).unwrap_or_else(|| {
                ended = Ended::Panicked;
                Err("the write or its sync failed: raft-engine panicked".to_string())
            }),
        };
        if let Err(why) = &result {
            failed.get_or_insert_with(|| why.clone());
        }
        done.tell(result.map_err(Error::other));
        if compact.is_some() && failed.is_none() {
            // After the answer: nobody waits for files to go. What stays is tried again with the next purge.
            failed = match caught(|| engine.purge_expired_files().map(drop)) {
                Some(Ok(())) => None,
                Some(Err(error)) => Some(error.to_string()),
                None => {
                    ended = Ended::Panicked;
                    Some("the purge of log files panicked".to_string())
                }
            };
        }
    }
    // Best effort: at worst it says less than it could.
    let _ = synced.sync();
    ended
}

fn write<F: FileSystem>(
    engine: &Engine<F, FilePipeLog<F>>,
    synced: &mut SyncedFile,
    entries: Vec<(u64, Vec<u8>)>,
    head: &LogHead,
    compact: Option<u64>,
) -> std::result::Result<(), String> {
    let mut batch = LogBatch::with_capacity(4);
    let messages: Vec<BytesValue> = entries.iter().map(|(index, frame)| recover::wrap(*index, frame)).collect();
    batch.add_entries::<Indexed>(GROUP, &messages).map_err(|error| error.to_string())?;
    if let Some(index) = compact {
        batch.add_command(GROUP, Command::Compact { index });
    }
    batch.put(GROUP, HEAD_KEY.to_vec(), head.encode()).map_err(|error| error.to_string())?;
    engine.write(&mut batch, true).map_err(|error| error.to_string())?;
    synced.advance(head.writes).map_err(|error| format!("{}: {error}", synced.path().display()))?;
    if head.writes.is_multiple_of(WRITES_MAX) {
        synced.sync().map_err(|error| format!("{}: {error}", synced.path().display()))?;
    }
    Ok(())
}
