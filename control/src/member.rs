//! **What**: the one door to metadata: propose a command, read, watch. This member is alone and in memory; the
//! replicated one takes its place behind the same methods.
//!
//! ```text
//! propose -> Entry -> bytes -> log -> bytes -> Entry -> State::apply -> Committed, and changes for watchers
//!                              `-- every `log_entries_max` entries: snapshot, log empty
//! ```
//!
//! **Invariants**: what is applied is what was decoded from the log's bytes; snapshot and log together always rebuild
//! the state. Memory is bounded: the log by entries, the kept changes by their number.
//!
//! **Never**: a change of state that is not in the log.
//!
//! **See**: `state.rs`, `watch.rs`; DESIGN.md for what a restart without the former metadata needs (`RaiseFloors`).

use crate::authorise::Principal;
use crate::command::{Action, Entry, Internal};
use crate::framed::FrameError;
use crate::limits::DELTA_CHANGES_MAX;
use crate::query::ShardReports;
use crate::snapshot::{self, SnapshotError};
use crate::state::{Applied, Refused, State, refused};
use crate::watch::{Change, Delta, Snapshot};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::metadata::{Command, Reply};
use felix_protocol::names::check_label;
use felix_protocol::time::Timestamp;
use std::collections::VecDeque;

/// What became of a proposal. Its version is that of the log entry, or the present one if nothing was logged.
pub type Committed = Applied;

/// Bounds of a member's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberSettings {
    /// Entries kept before they are folded into a snapshot; at least 1.
    pub log_entries_max: usize,
    /// Changes kept for watchers; who is further behind gets a snapshot.
    pub watch_changes_max: usize,
}

impl Default for MemberSettings {
    fn default() -> MemberSettings {
        MemberSettings { log_entries_max: 1_024, watch_changes_max: 4_096 }
    }
}

/// What a watcher must know to be at the present version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watch {
    /// One after another; none: it is there already.
    Deltas(Vec<Delta>),
    /// It is new, too far behind, or of another history.
    Snapshot(Snapshot),
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

/// The changes of one entry.
#[derive(Debug)]
struct Kept {
    version: u64,
    changes: Vec<Change>,
}

/// The embedded single member.
#[derive(Debug)]
pub struct Member {
    settings: MemberSettings,
    state: State,
    snapshot: Option<Vec<u8>>,
    log: Vec<Vec<u8>>,
    /// Entries after version `kept_from`, without holes.
    kept: VecDeque<Kept>,
    kept_from: u64,
    kept_changes: usize,
}

impl Member {
    /// A member without metadata.
    pub fn new(settings: MemberSettings) -> Member {
        assert!(settings.log_entries_max > 0, "a log holds at least the entry that is being applied");
        Member {
            settings,
            state: State::new(),
            snapshot: None,
            log: Vec::new(),
            kept: VecDeque::new(),
            kept_from: 0,
            kept_changes: 0,
        }
    }

    /// Rebuilds a member from what [`Member::snapshot`] and [`Member::log`] gave.
    pub fn restore(settings: MemberSettings, snapshot: Option<&[u8]>, log: &[Vec<u8>]) -> Result<Member, RestoreError> {
        let mut member = Member::new(settings);
        if let Some(bytes) = snapshot {
            member.state = snapshot::decode(bytes).map_err(RestoreError::Snapshot)?;
            member.snapshot = Some(bytes.to_vec());
            member.kept_from = member.state.version();
        }
        for (index, frame) in log.iter().enumerate() {
            let entry = Entry::decode(frame).map_err(|error| RestoreError::Entry { index, error })?;
            member.commit(frame.clone(), &entry);
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
        match check_entry(&command) {
            Ok(()) => self.append(Entry::new(idempotency_key, now, principal.clone(), Action::Client(command))),
            Err(refused) => self.unlogged(refused),
        }
    }

    /// Carries out what the broker itself needs.
    pub fn propose_internal(&mut self, now: Timestamp, command: Internal) -> Committed {
        self.append(Entry::new(0, now, Principal::system(), Action::Internal(command)))
    }

    /// Answers a command that only reads.
    pub fn query(&self, command: &Command, reports: &ShardReports) -> Result<Reply, Refused> {
        self.state.query(command, reports)
    }

    /// The metadata as it is now.
    pub fn state(&self) -> &State {
        &self.state
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
        if version < self.kept_from || version > self.state.version() {
            return Watch::Snapshot(self.state.watch_snapshot());
        }
        let mut deltas: Vec<Delta> = Vec::new();
        for kept in self.kept.iter().filter(|kept| kept.version > version) {
            match deltas.last_mut() {
                Some(delta) if delta.changes.len() + kept.changes.len() <= DELTA_CHANGES_MAX => {
                    delta.to_version = kept.version;
                    delta.changes.extend_from_slice(&kept.changes);
                }
                _ => deltas.push(Delta {
                    from_version: kept.version - 1,
                    to_version: kept.version,
                    changes: kept.changes.clone(),
                }),
            }
        }
        Watch::Deltas(deltas)
    }

    fn append(&mut self, entry: Entry) -> Committed {
        let decoded = entry.encode().and_then(|frame| Ok((Entry::decode(&frame)?, frame)));
        match decoded {
            Ok((entry, frame)) => self.commit(frame, &entry),
            Err(error) => {
                let detail = format!("the command cannot be written to the metadata log: {error}");
                self.unlogged(Refused { code: ErrorCode::InvalidArgument, detail })
            }
        }
    }

    fn unlogged(&self, refused: Refused) -> Committed {
        Applied { version: self.state.version(), outcome: Err(refused), changes: Vec::new(), producers: None }
    }

    fn commit(&mut self, frame: Vec<u8>, entry: &Entry) -> Committed {
        self.log.push(frame);
        let applied = self.state.apply(entry);
        self.keep(&applied.changes);
        if self.log.len() >= self.settings.log_entries_max {
            self.compact();
        }
        applied
    }

    fn keep(&mut self, changes: &[Change]) {
        let version = self.state.version();
        self.kept_changes += changes.len();
        self.kept.push_back(Kept { version, changes: changes.to_vec() });
        // Also bounded by entries: those without changes are not free.
        let max = self.settings.watch_changes_max;
        while (self.kept_changes > max || self.kept.len() > max)
            && let Some(oldest) = self.kept.pop_front()
        {
            self.kept_changes -= oldest.changes.len();
            self.kept_from = oldest.version;
        }
    }

    fn compact(&mut self) {
        // A snapshot that cannot be written (over 2 GiB) leaves the log as it is: slower to rebuild, nothing lost.
        if let Ok(bytes) = snapshot::encode(&self.state) {
            self.snapshot = Some(bytes);
            self.log.clear();
        }
    }
}

/// Refuses what has no place in the log before anything is encoded.
fn check_entry(command: &Command) -> Result<(), Refused> {
    if !command.is_write() {
        return refused(ErrorCode::InvalidArgument, "a command that only reads does not go through the metadata log");
    }
    if let Command::CreateTenant { tenant, .. } | Command::DeleteTenant { tenant } = command
        && let Err(error) = check_label(tenant)
    {
        return refused(ErrorCode::InvalidName, error.to_string());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
