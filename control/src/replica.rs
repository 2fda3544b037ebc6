//! **What**: one copy of the metadata and what its watchers may have missed: the pure half of every member, alone in
//! memory (`member.rs`) or durable and replicated (`node.rs`).
//!
//! **Invariants**: what is applied is what was decoded from the log's bytes; the kept changes have no hole and are
//! bounded by number and by entries.
//!
//! **Never**: a change of state that is not an entry; a log (that is the member's).
//!
//! **See**: `state.rs` (what an entry does), `watch.rs` (what watchers get).

use crate::authorise::Principal;
use crate::command::{Action, Entry, Internal};
use crate::framed::FrameError;
use crate::limits::DELTA_CHANGES_MAX;
use crate::snapshot::{self, SnapshotError};
use crate::state::{Applied, NOT_DURABLE, Refused, State, check_spec, refused};
use crate::watch::{Change, Delta, Snapshot};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::metadata::{Command, Durability};
use felix_protocol::names::check_label;
use felix_protocol::time::Timestamp;
use std::collections::VecDeque;

/// What a watcher must know to be at the present version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watch {
    /// One after another; none: it is there already.
    Deltas(Vec<Delta>),
    /// It is new, too far behind, or of another history.
    Snapshot(Snapshot),
}

/// The changes of one entry.
#[derive(Debug)]
struct Kept {
    version: u64,
    changes: Vec<Change>,
}

/// A copy of the metadata.
#[derive(Debug)]
pub struct Replica {
    state: State,
    /// Entries after version `kept_from`, without holes.
    kept: VecDeque<Kept>,
    kept_from: u64,
    kept_changes: usize,
    kept_changes_max: usize,
}

impl Replica {
    /// No metadata yet. `kept_changes_max`: who is further behind gets the whole table.
    pub fn new(kept_changes_max: usize) -> Replica {
        Replica::of(State::new(), kept_changes_max)
    }

    /// The copy that a state snapshot (`snapshot.rs`) holds. Its watchers begin with the whole table.
    pub fn restore(frame: &[u8], kept_changes_max: usize) -> Result<Replica, SnapshotError> {
        Ok(Replica::of(snapshot::decode(frame)?, kept_changes_max))
    }

    fn of(state: State, kept_changes_max: usize) -> Replica {
        let kept_from = state.version();
        Replica { state, kept: VecDeque::new(), kept_from, kept_changes: 0, kept_changes_max }
    }

    /// The metadata as it is now.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How many changes are kept for watchers.
    pub fn kept_changes_max(&self) -> usize {
        self.kept_changes_max
    }

    /// Applies the next entry of the log, from its bytes.
    pub fn apply(&mut self, frame: &[u8]) -> Result<Applied, FrameError> {
        let entry = Entry::decode(frame)?;
        let applied = self.state.apply(&entry);
        self.keep(&applied.changes);
        Ok(applied)
    }

    /// What becomes of a proposal that has no place in the log.
    pub fn unlogged(&self, refused: Refused) -> Applied {
        Applied { version: self.state.version(), outcome: Err(refused), changes: Vec::new(), producers: None }
    }

    /// What a watcher at `version` has missed.
    pub fn changes_since(&self, version: u64) -> Watch {
        if version < self.kept_from || version > self.state.version() {
            return Watch::Snapshot(self.state.watch_snapshot());
        }
        let mut deltas: Vec<Delta> = Vec::new();
        // The kept entries have no hole, so the first one missed is found by counting.
        let first = (version - self.kept_from) as usize;
        for kept in self.kept.range(first..) {
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

    fn keep(&mut self, changes: &[Change]) {
        let version = self.state.version();
        self.kept_changes += changes.len();
        self.kept.push_back(Kept { version, changes: changes.to_vec() });
        // Also bounded by entries: those without changes are not free.
        let max = self.kept_changes_max;
        while (self.kept_changes > max || self.kept.len() > max)
            && let Some(oldest) = self.kept.pop_front()
        {
            self.kept_changes -= oldest.changes.len();
            self.kept_from = oldest.version;
        }
    }

    #[cfg(test)]
    pub(crate) fn kept(&self) -> (usize, usize) {
        (self.kept.len(), self.kept_changes)
    }
}

/// The log bytes of a client's command. Refused, and nothing to log: what could never be an entry (a command that only
/// reads, a name or setting outside its grammar).
///
/// `durable_streams`: whether this broker has a store. It is asked here and not when an entry is applied, because
/// members that apply the same log must agree whatever each of them can store.
pub fn client_entry(
    now: Timestamp,
    principal: &Principal,
    idempotency_key: u128,
    command: Command,
    durable_streams: bool,
) -> Result<Vec<u8>, Refused> {
    check_entry(&command)?;
    if let Command::CreateStream { spec, .. } = &command
        && spec.durability != Durability::Ephemeral
        && !durable_streams
    {
        // What is wrong with the settings in any case is said first.
        check_spec(spec)?;
        return refused(ErrorCode::NotSupported, NOT_DURABLE);
    }
    encode(&Entry::new(idempotency_key, now, principal.clone(), Action::Client(command)))
}

/// The log bytes of what the broker itself needs.
pub fn internal_entry(now: Timestamp, command: Internal) -> Result<Vec<u8>, Refused> {
    encode(&Entry::new(0, now, Principal::system(), Action::Internal(command)))
}

/// Encodes an entry and makes sure that every member will read it.
fn encode(entry: &Entry) -> Result<Vec<u8>, Refused> {
    entry.encode().and_then(|frame| Entry::decode(&frame).map(|_| frame)).map_err(|error| Refused {
        code: ErrorCode::InvalidArgument,
        detail: format!("the command cannot be written to the metadata log: {error}"),
    })
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
