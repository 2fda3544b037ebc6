//! **What**: a member that is alone and keeps its log in memory: for tests, simulation and a broker without a data
//! folder. The durable one is `node.rs`; both put their entries through the same [`Replica`].
//!
//! ```text
//! propose -> Entry -> bytes -> log -> bytes -> Entry -> State::apply -> Committed, and changes for watchers
//!                              `-- every `log_entries_max` entries: snapshot, log empty
//! ```
//!
//! **Invariants**: snapshot and log together always rebuild the state. Memory is bounded: the log by entries, the kept
//! changes by their number.
//!
//! **Never**: a change of state that is not in the log.
//!
//! **See**: `replica.rs`; DESIGN.md for what a restart without the former metadata needs (`RaiseFloors`).

use crate::authorise::Principal;
use crate::command::Internal;
use crate::framed::FrameError;
use crate::query::ShardReports;
pub use crate::replica::Watch;
use crate::replica::{Replica, client_entry, internal_entry};
use crate::snapshot::{self, SnapshotError};
use crate::state::{Applied, Refused, State};
use felix_protocol::metadata::{Command, Reply};
use felix_protocol::time::Timestamp;

/// What became of a proposal. Its version is that of the log entry, or the present one if nothing was logged.
pub type Committed = Applied;

/// Bounds of a member's memory, and what its broker can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberSettings {
    /// Entries kept before they are folded into a snapshot; at least 1.
    pub log_entries_max: usize,
    /// Changes kept for watchers; who is further behind gets a snapshot.
    pub watch_changes_max: usize,
    /// Whether streams on disk may be made.
    pub durable_streams: bool,
}

impl Default for MemberSettings {
    fn default() -> MemberSettings {
        MemberSettings { log_entries_max: 1_024, watch_changes_max: 4_096, durable_streams: false }
    }
}

/// Why a member could not be rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreError {
    /// The snapshot is not readable.
    Snapshot(SnapshotError),
    /// An entry is not readable.
    Entry {
        /// Its place after the snapshot, from 0.
        index: usize,
        /// Why.
        error: FrameError,
    },
}

impl std::fmt::Display for RestoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RestoreError::Snapshot(error) => write!(f, "snapshot: {error}"),
            RestoreError::Entry { index, error } => write!(f, "entry {index} after the snapshot: {error}"),
        }
    }
}

impl std::error::Error for RestoreError {}

/// The embedded single member, in memory.
#[derive(Debug)]
pub struct Member {
    settings: MemberSettings,
    replica: Replica,
    snapshot: Option<Vec<u8>>,
    log: Vec<Vec<u8>>,
}

impl Member {
    /// A member without metadata.
    pub fn new(settings: MemberSettings) -> Member {
        assert!(settings.log_entries_max > 0, "a log holds at least the entry that is being applied");
        let replica = Replica::new(settings.watch_changes_max);
        Member { settings, replica, snapshot: None, log: Vec::new() }
    }

    /// Rebuilds a member from what [`Member::snapshot`] and [`Member::log`] gave.
    pub fn restore(settings: MemberSettings, snapshot: Option<&[u8]>, log: &[Vec<u8>]) -> Result<Member, RestoreError> {
        let mut member = Member::new(settings);
        if let Some(bytes) = snapshot {
            member.replica = Replica::restore(bytes, settings.watch_changes_max).map_err(RestoreError::Snapshot)?;
            member.snapshot = Some(bytes.to_vec());
        }
        for (index, frame) in log.iter().enumerate() {
            member.commit(frame.clone()).map_err(|error| RestoreError::Entry { index, error })?;
        }
        Ok(member)
    }

    /// Carries out a client's command that changes metadata. The caller has checked that the principal may.
    ///
    /// What could never be an entry (a command that only reads, a name or setting outside its grammar) is refused
    /// without a trace in the log.
    pub fn propose(
        &mut self,
        now: Timestamp,
        principal: &Principal,
        idempotency_key: u128,
        command: Command,
    ) -> Committed {
        self.append(client_entry(now, principal, idempotency_key, command, self.settings.durable_streams))
    }

    /// Carries out what the broker itself needs.
    pub fn propose_internal(&mut self, now: Timestamp, command: Internal) -> Committed {
        self.append(internal_entry(now, command))
    }

    /// Answers a command that only reads.
    pub fn query(&self, command: &Command, reports: &ShardReports) -> Result<Reply, Refused> {
        self.replica.state().query(command, reports)
    }

    /// The metadata as it is now.
    pub fn state(&self) -> &State {
        self.replica.state()
    }

    /// The last snapshot; None before the first.
    pub fn snapshot(&self) -> Option<&[u8]> {
        self.snapshot.as_deref()
    }

    /// The entries after that snapshot, oldest first.
    pub fn log(&self) -> &[Vec<u8>] {
        &self.log
    }

    /// What a watcher at `version` has missed.
    pub fn changes_since(&self, version: u64) -> Watch {
        self.replica.changes_since(version)
    }

    fn append(&mut self, frame: Result<Vec<u8>, Refused>) -> Committed {
        match frame {
            Ok(frame) => self.commit(frame).expect("the entry was read when it was encoded"),
            Err(refused) => self.replica.unlogged(refused),
        }
    }

    fn commit(&mut self, frame: Vec<u8>) -> Result<Committed, FrameError> {
        let applied = self.replica.apply(&frame)?;
        self.log.push(frame);
        if self.log.len() >= self.settings.log_entries_max {
            self.compact();
        }
        Ok(applied)
    }

    fn compact(&mut self) {
        // A snapshot that cannot be written (over 2 GiB) leaves the log as it is: slower to rebuild, nothing lost.
        if let Ok(bytes) = snapshot::encode(self.replica.state()) {
            self.snapshot = Some(bytes);
            self.log.clear();
        }
    }
}

#[cfg(test)]
mod tests;
