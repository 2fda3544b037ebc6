//! **What**: openraft's door to the metadata itself: applies committed entries to a [`Replica`], makes snapshots and
//! reads them.
//!
//! **Invariants**: what is applied are the bytes of the log; a snapshot file is written whole, after the entries it
//! covers; the copy that is encoded is taken at once, so a snapshot is of one version. One that cannot be made changes
//! nothing: the one before goes on to count, the log keeps what only it holds, and it is tried again.
//!
//! **Never**: the disk or an encoding on the control thread; a snapshot that does not decode taken for no snapshot; an end
//! of the member because a snapshot found no room.
//!
//! **See**: `replica.rs`, `raft_folder.rs` (files), `raft_frames.rs` (bytes).
#![allow(clippy::result_large_err, reason = "the error type is openraft's")]

use crate::raft_folder::{Folder, OpenError, damaged};
use crate::raft_frames::{SnapshotHead, decode_snapshot, encode_snapshot};
use crate::raft_types::{
    EntryBytes, LogId, RaftEntry, RaftTypes, Response, SnapshotMeta, StorageError, StoredMembership,
};
use crate::replica::Replica;
use crate::snapshot;
use crate::state::State;
use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, StorageIOError};
use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Bytes of entries after which a new snapshot is made, at least.
const SNAPSHOT_AFTER_BYTES: u64 = 256 << 10;
/// The same as a part of the last snapshot: the log then never takes longer to apply than the state to read, and a
/// byte of entries costs at most this many bytes of snapshots.
const SNAPSHOT_AFTER_PART: u64 = 4;

/// The metadata and what raft knows of it.
#[derive(Debug)]
pub(crate) struct Applied {
    replica: Replica,
    last: Option<LogId>,
    membership: StoredMembership,
    /// The snapshot on disk.
    snapshot: Option<SnapshotMeta>,
    snapshot_bytes: u64,
    /// Bytes of entries applied after it.
    bytes_since: u64,
    /// With fewer of them none is made: the last try failed.
    not_before_bytes: u64,
    /// Why that was, or why an old one could not be removed.
    snapshot_failure: Option<String>,
}

/// The metadata, shared by openraft and those who read. A lock is held for memory work only.
#[derive(Debug)]
pub struct SharedState {
    applied: Mutex<Applied>,
    version: watch::Sender<u64>,
    snapshot_after_bytes: Option<u64>,
}

impl SharedState {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Applied> {
        // `State::apply` checks everything before it writes the first field.
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the version after each change.
    pub(crate) fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Whether the log outgrew the snapshot.
    pub(crate) fn wants_snapshot(&self) -> bool {
        let applied = self.lock();
        applied.bytes_since >= self.snapshot_after(&applied).max(applied.not_before_bytes)
    }

    fn snapshot_after(&self, applied: &Applied) -> u64 {
        let after = SNAPSHOT_AFTER_BYTES.max(applied.snapshot_bytes / SNAPSHOT_AFTER_PART);
        self.snapshot_after_bytes.unwrap_or(after)
    }

    fn tell(&self) {
        let version = self.lock().replica.state().version();
        self.version.send_replace(version);
    }
}

impl Applied {
    pub(crate) fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Last entry that the snapshot on disk covers.
    pub(crate) fn snapshot_last(&self) -> Option<LogId> {
        self.snapshot.as_ref().and_then(|meta| meta.last_log_id)
    }

    /// Why the last snapshot was not made, or one before it could not be removed.
    pub(crate) fn snapshot_failure(&self) -> Option<&str> {
        self.snapshot_failure.as_deref()
    }

    fn apply(&mut self, entry: RaftEntry) -> Result<Response, StorageError> {
        let response = match entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                None
            }
            EntryPayload::Normal(EntryBytes(frame)) => {
                let applied = self.replica.apply(&frame);
                self.bytes_since += frame.len() as u64;
                Some(applied.map_err(|error| StorageIOError::apply(entry.log_id, AnyError::new(&error)))?)
            }
        };
        self.last = Some(entry.log_id);
        Ok(Response(response))
    }
}

fn meta(head: &SnapshotHead) -> SnapshotMeta {
    let snapshot_id = head.last.map_or_else(String::new, |last| last.to_string());
    SnapshotMeta { last_log_id: head.last, last_membership: head.membership.clone(), snapshot_id }
}

fn read_error(error: &(impl std::error::Error + 'static)) -> StorageError {
    StorageIOError::read_snapshot(None, AnyError::new(error)).into()
}

fn write_error(error: &(impl std::error::Error + 'static)) -> StorageError {
    StorageIOError::write_snapshot(None, AnyError::new(error)).into()
}

/// Runs what blocks on a thread for that.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(write_error(&error)))
}

/// openraft's door.
#[derive(Debug)]
pub struct RaftState {
    shared: Arc<SharedState>,
    folder: Folder,
}

impl RaftState {
    /// The metadata of the newest snapshot, or none yet. Blocks on the disk.
    pub fn open(
        folder: &Folder,
        kept_changes_max: usize,
        snapshot_after_bytes: Option<u64>,
    ) -> Result<RaftState, OpenError> {
        let mut applied = Applied {
            replica: Replica::new(kept_changes_max),
            last: None,
            membership: StoredMembership::default(),
            snapshot: None,
            snapshot_bytes: 0,
            bytes_since: 0,
            not_before_bytes: 0,
            snapshot_failure: None,
        };
        if let Some((path, bytes)) = folder.newest_snapshot()? {
            let (head, state) = decode_snapshot(&bytes).map_err(|error| damaged(&path, error.to_string()))?;
            applied.replica =
                Replica::restore(state, kept_changes_max).map_err(|error| damaged(&path, error.to_string()))?;
            applied.snapshot = Some(meta(&head));
            applied.snapshot_bytes = bytes.len() as u64;
            applied.last = head.last;
            applied.membership = head.membership;
        }
        let version = watch::Sender::new(applied.replica.state().version());
        let shared = Arc::new(SharedState { applied: Mutex::new(applied), version, snapshot_after_bytes });
        Ok(RaftState { shared, folder: folder.clone() })
    }

    /// The metadata for those who read.
    pub fn shared(&self) -> Arc<SharedState> {
        self.shared.clone()
    }
}

/// A copy of the metadata on its way to a file.
#[derive(Debug)]
pub struct SnapshotBuilder {
    shared: Arc<SharedState>,
    folder: Folder,
    state: State,
    head: SnapshotHead,
    bytes_since: u64,
}

impl SnapshotBuilder {
    /// Encodes and writes it. Its bytes, and why old ones stay if they do.
    async fn write(&mut self) -> Result<(Vec<u8>, Option<String>), StorageError> {
        let (state, head, folder) = (std::mem::take(&mut self.state), self.head.clone(), self.folder.clone());
        off_thread(move || {
            let state = snapshot::encode(&state).map_err(|error| write_error(&error))?;
            let bytes = encode_snapshot(&head, &state).map_err(|error| write_error(&error))?;
            put_in_place(&folder, &head, &bytes).map(|stays| (bytes, stays))
        })
        .await
    }
}

/// Writes a snapshot and removes old ones; why these stay, if they do: what was written counts all the same.
fn put_in_place(folder: &Folder, head: &SnapshotHead, bytes: &[u8]) -> Result<Option<String>, StorageError> {
    let index = head.last.map_or(0, |last| last.index);
    folder.write_snapshot(index, bytes).map_err(|error| write_error(&error))?;
    Ok(folder.remove_old_snapshots().err().map(|error| error.to_string()))
}

impl RaftSnapshotBuilder<RaftTypes> for SnapshotBuilder {
    /// openraft takes an error for the end of the member. So a failure is answered with the snapshot that is there:
    /// openraft passes over one that is not newer than what it knows, and of the answer it reads the meta alone.
    async fn build_snapshot(&mut self) -> Result<Snapshot<RaftTypes>, StorageError> {
        let written = self.write().await;
        let mut applied = self.shared.lock();
        let (bytes, stays) = match written {
            Ok(written) => written,
            Err(error) => {
                applied.not_before_bytes = applied.bytes_since + self.shared.snapshot_after(&applied);
                applied.snapshot_failure = Some(error.to_string());
                let meta = applied.snapshot.clone().unwrap_or_default();
                return Ok(Snapshot { meta, snapshot: Box::default() });
            }
        };
        let meta = meta(&self.head);
        applied.snapshot = Some(meta.clone());
        applied.snapshot_bytes = bytes.len() as u64;
        applied.bytes_since -= self.bytes_since.min(applied.bytes_since);
        applied.not_before_bytes = 0;
        applied.snapshot_failure = stays;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(bytes)) })
    }
}

impl RaftStateMachine<RaftTypes> for RaftState {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let applied = self.shared.lock();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Response>, StorageError>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let responses = {
            let mut applied = self.shared.lock();
            entries.into_iter().map(|entry| applied.apply(entry)).collect::<Result<Vec<_>, _>>()
        };
        self.shared.tell();
        responses
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let applied = self.shared.lock();
        SnapshotBuilder {
            shared: self.shared.clone(),
            folder: self.folder.clone(),
            state: applied.replica.state().clone(),
            head: SnapshotHead { last: applied.last, membership: applied.membership.clone() },
            bytes_since: applied.bytes_since,
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        announced: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let (folder, kept_max) = (self.folder.clone(), self.shared.lock().replica.kept_changes_max());
        let announced = announced.clone();
        let (replica, head, bytes, stays) = off_thread(move || {
            let bytes = snapshot.into_inner();
            let (head, state) = decode_snapshot(&bytes).map_err(|error| read_error(&error))?;
            if head.last != announced.last_log_id || head.membership != announced.last_membership {
                return Err(read_error(&std::io::Error::other("a snapshot that is not the one announced")));
            }
            let replica = Replica::restore(state, kept_max).map_err(|error| read_error(&error))?;
            let stays = put_in_place(&folder, &head, &bytes)?;
            Ok((replica, head, bytes.len() as u64, stays))
        })
        .await?;
        {
            let mut applied = self.shared.lock();
            *applied = Applied {
                replica,
                last: head.last,
                snapshot: Some(meta(&head)),
                membership: head.membership,
                snapshot_bytes: bytes,
                bytes_since: 0,
                not_before_bytes: 0,
                snapshot_failure: stays,
            };
        }
        self.shared.tell();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<RaftTypes>>, StorageError> {
        if self.shared.lock().snapshot.is_none() {
            return Ok(None);
        }
        let folder = self.folder.clone();
        off_thread(move || {
            let Some((_, bytes)) = folder.newest_snapshot().map_err(|error| read_error(&error))? else {
                return Err(read_error(&std::io::Error::other("the snapshot file is gone")));
            };
            let (head, _) = decode_snapshot(&bytes).map_err(|error| read_error(&error))?;
            Ok(Some(Snapshot { meta: meta(&head), snapshot: Box::new(Cursor::new(bytes)) }))
        })
        .await
    }
}
