//! **What**: the durable member: metadata as a raft group whose log and snapshots are on disk. Here it is the only
//! member: it founds its group on the first start and elects itself on every later one.
//!
//! ```text
//! propose -> entry bytes -> openraft -> raft_log (write, sync) -> commit -> raft_state -> Replica -> Committed
//!                                                                              `-> version(): who watches wakes
//! ```
//!
//! How a control thread uses it (tokio, current thread): poll the futures of [`ControlNode::propose`] beside its mail;
//! when [`ControlNode::version`] or a future wakes it, first tell the cores [`ControlNode::changes_since`] the version
//! they have, then answer whoever asked. A committed outcome is applied before its future ends, so its changes are
//! among those. Entries of other members would arrive the same way.
//!
//! **Invariants**: what was answered as committed is there after any crash; what this node reads includes everything
//! that was committed before it opened.
//!
//! **Never**: the disk on the caller's thread after `open` was awaited; a proposal accepted beyond `PROPOSALS_MAX`.
//!
//! **See**: `raft_log.rs`, `raft_state.rs`, `raft_folder.rs`; `member.rs` for the one in memory.

use crate::authorise::Principal;
use crate::command::Internal;
use crate::limits::PROPOSALS_MAX;
use crate::member::Committed;
use crate::query::ShardReports;
use crate::raft_folder::{Folder, OpenError};
pub use crate::raft_frames::Identity;
pub use crate::raft_log::panic_is_caught;
use crate::raft_log::{LogMirror, RaftLog, recover};
use crate::raft_network::EmbeddedNetwork;
use crate::raft_state::{RaftState, SharedState};
use crate::raft_types::{EntryBytes, Peer, RaftTypes};
use crate::replica::{Watch, client_entry, internal_entry};
use crate::state::{Refused, State};
use felix_protocol::metadata::{Command, Reply};
use felix_protocol::time::Timestamp;
use openraft::error::{ClientWriteError, RaftError};
use openraft::{Raft, ServerState, SnapshotPolicy};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// How long a start may take after the files were read. An election of one needs two writes.
const START_MAX: Duration = Duration::from_secs(60);
/// Ticks of openraft. Nobody competes with a member that is alone, so they only need to be rare.
const HEARTBEAT_MS: u64 = 1_000;

/// Bounds of a durable member, and what its broker can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// Changes kept for watchers; who is further behind gets a snapshot.
    pub watch_changes_max: usize,
    /// Bytes of entries after which a snapshot is made. None: by the size of the last one.
    pub snapshot_after_bytes: Option<u64>,
    /// Whether streams on disk may be made: true only if this broker's shard store runs.
    pub durable_streams: bool,
}

impl Default for NodeSettings {
    fn default() -> NodeSettings {
        NodeSettings { watch_changes_max: 4_096, snapshot_after_bytes: None, durable_streams: false }
    }
}

/// Why a proposal has no outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposeError {
    /// Too many wait for their commit. Nothing was done; come again.
    Busy {
        /// How many may.
        max: usize,
    },
    /// Another member leads. Nothing was done; ask that one.
    NotLeader {
        /// Who leads, if known.
        leader: Option<u128>,
    },
    /// This member stopped, because it was told to or because its disk failed. The command may or may not have been
    /// committed; a repeat with the same idempotency key is safe.
    Stopped {
        /// For people.
        detail: String,
    },
}

impl std::fmt::Display for ProposeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ProposeError::Busy { max } => write!(f, "{max} changes of metadata are waiting, try again"),
            ProposeError::NotLeader { leader: Some(leader) } => write!(f, "node {leader:032x} leads the metadata"),
            ProposeError::NotLeader { leader: None } => f.write_str("nobody leads the metadata now"),
            ProposeError::Stopped { detail } => write!(f, "the metadata stopped: {detail}"),
        }
    }
}

impl std::error::Error for ProposeError {}

/// A durable member of the metadata's raft group.
pub struct ControlNode {
    raft: Raft<RaftTypes>,
    shared: Arc<SharedState>,
    log: LogMirror,
    permits: Arc<Semaphore>,
    durable_streams: bool,
    snapshots: tokio::task::JoinHandle<()>,
    writer: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for ControlNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlNode").field("log", &self.log.head()).finish_non_exhaustive()
    }
}

impl ControlNode {
    /// Opens the metadata in `folder`, or makes it, and waits until this member leads and has applied everything that
    /// was ever acknowledged. Files are read on another thread. Must run on a tokio runtime with its timer.
    pub async fn open(folder: &Path, identity: Identity, settings: NodeSettings) -> Result<ControlNode, OpenError> {
        let path = folder.to_path_buf();
        let opened = tokio::task::spawn_blocking(move || open_files(&path, identity, &settings)).await;
        let (log, writer, state) = opened.unwrap_or_else(|error| Err(not_started(error)))?;
        let (shared, mirror) = (state.shared(), log.mirror());
        let raft = Raft::new(identity.node.0, Arc::new(config()?), EmbeddedNetwork, log, state).await;
        let raft = raft.map_err(not_started)?;
        let snapshots = tokio::spawn(make_snapshots(raft.clone(), shared.clone()));
        let permits = Arc::new(Semaphore::new(PROPOSALS_MAX));
        let durable_streams = settings.durable_streams;
        let node = ControlNode { raft, shared, log: mirror, permits, durable_streams, snapshots, writer: Some(writer) };
        match tokio::time::timeout(START_MAX, node.start(identity)).await {
            Ok(started) => started?,
            Err(_) => return Err(not_started(format!("no leader after {} s", START_MAX.as_secs()))),
        }
        Ok(node)
    }

    async fn start(&self, identity: Identity) -> Result<(), OpenError> {
        let node = identity.node.0;
        let term_before = self.log.head().vote.map_or(0, |vote| vote.leader_id.term);
        if self.raft.is_initialized().await.map_err(not_started)? {
            // A term of its own for each start, and with it an entry whose commit commits all before it.
            self.raft.trigger().elect().await.map_err(not_started)?;
        } else {
            self.raft.initialize(BTreeMap::from([(node, Peer::default())])).await.map_err(not_started)?;
        }
        let mut metrics = self.raft.metrics();
        loop {
            {
                let now = metrics.borrow_and_update();
                now.running_state.clone().map_err(not_started)?;
                let applied = now.last_applied;
                let fresh = applied.is_some_and(|it| it.leader_id.term == now.current_term);
                let all = applied.map(|it| it.index) == now.last_log_index;
                if now.state == ServerState::Leader && now.current_term > term_before && fresh && all {
                    return Ok(());
                }
            }
            metrics.changed().await.map_err(not_started)?;
        }
    }

    /// Carries out a client's command that changes metadata. The caller has checked that the principal may.
    ///
    /// The future ends when the command is on disk, committed and applied here. What could never be an entry is refused
    /// without a trace in the log. Two proposals are in the order in which their futures are first polled; a future
    /// that is dropped may still be carried out.
    pub fn propose(
        &self,
        now: Timestamp,
        principal: &Principal,
        idempotency_key: u128,
        command: Command,
    ) -> impl Future<Output = Result<Committed, ProposeError>> + Send + use<> {
        self.commit(client_entry(now, principal, idempotency_key, command, self.durable_streams))
    }

    /// Carries out what the broker itself needs; else as [`ControlNode::propose`].
    pub fn propose_internal(
        &self,
        now: Timestamp,
        command: Internal,
    ) -> impl Future<Output = Result<Committed, ProposeError>> + Send + use<> {
        self.commit(internal_entry(now, command))
    }

    fn commit(
        &self,
        frame: Result<Vec<u8>, Refused>,
    ) -> impl Future<Output = Result<Committed, ProposeError>> + Send + use<> {
        let (raft, shared) = (self.raft.clone(), self.shared.clone());
        let permit = self.permits.clone().try_acquire_owned();
        async move {
            let frame = match frame {
                Ok(frame) => frame,
                Err(refused) => return Ok(shared.lock().replica().unlogged(refused)),
            };
            let _permit = permit.map_err(|_| ProposeError::Busy { max: PROPOSALS_MAX })?;
            let written = raft.client_write(EntryBytes(frame)).await;
            match written {
                Ok(response) => Ok(response.data.0.expect("a command has an outcome")),
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                    Err(ProposeError::NotLeader { leader: forward.leader_id })
                }
                Err(error) => Err(ProposeError::Stopped { detail: error.to_string() }),
            }
        }
    }

    /// Answers a command that only reads, from what is applied here.
    pub fn query(&self, command: &Command, reports: &ShardReports) -> Result<Reply, Refused> {
        self.read(|state| state.query(command, reports))
    }

    /// Looks at the metadata. Nothing is applied meanwhile, so do not linger.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(self.shared.lock().replica().state())
    }

    /// What a watcher at `version` has missed.
    pub fn changes_since(&self, version: u64) -> Watch {
        self.shared.lock().replica().changes_since(version)
    }

    /// The version that is applied here, and a wake-up at each change.
    pub fn version(&self) -> watch::Receiver<u64> {
        self.shared.version()
    }

    /// Index of the last entry that the newest snapshot covers.
    pub fn snapshot_index(&self) -> Option<u64> {
        self.shared.lock().snapshot_last().map(|last| last.index)
    }

    /// Why the last snapshot was not made, or one before it could not be removed; None: all is well. Proposals go on, and
    /// it is tried again when the log has grown further.
    pub fn snapshot_failure(&self) -> Option<String> {
        self.shared.lock().snapshot_failure().map(str::to_string)
    }

    /// Index of the first entry that the log still has.
    pub fn log_first_index(&self) -> u64 {
        self.log.head().first_index()
    }

    /// Index of the next entry.
    pub fn log_next_index(&self) -> u64 {
        self.log.head().next_index()
    }

    /// Why this member stopped; None: it runs. It stops for good when its disk fails: reads go on, proposals do not.
    pub fn failure(&self) -> Option<String> {
        self.raft.metrics().borrow().running_state.as_ref().err().map(ToString::to_string)
    }

    /// Stops, and waits until the log is closed. Whoever only drops the node loses nothing that was committed.
    pub async fn shutdown(mut self) {
        self.snapshots.abort();
        // An error means that openraft's task panicked; it has stopped then too.
        let _ = self.raft.shutdown().await;
        let writer = self.writer.take();
        drop(self);
        if let Some(writer) = writer {
            // The thread ends when openraft has dropped the log.
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
    }
}

impl Drop for ControlNode {
    fn drop(&mut self) {
        self.snapshots.abort();
    }
}

fn not_started(why: impl std::fmt::Display) -> OpenError {
    OpenError::NotStarted { detail: why.to_string() }
}

fn config() -> Result<openraft::Config, OpenError> {
    let config = openraft::Config {
        cluster_name: "felix".to_string(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: 3 * HEARTBEAT_MS,
        election_timeout_max: 6 * HEARTBEAT_MS,
        // By bytes, not by entries: `make_snapshots`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        ..openraft::Config::default()
    };
    config.validate().map_err(not_started)
}

fn open_files(
    path: &Path,
    identity: Identity,
    settings: &NodeSettings,
) -> Result<(RaftLog, JoinHandle<()>, RaftState), OpenError> {
    let folder = Folder::open(path, identity)?;
    let state = RaftState::open(&folder, settings.watch_changes_max, settings.snapshot_after_bytes)?;
    let snapshot = state.shared().lock().snapshot_last();
    let (log, thread) = recover::open(&folder, identity.node, snapshot)?;
    Ok((log, thread, state))
}

/// Makes a snapshot whenever the log has outgrown the last one; openraft then purges the log. Looks again after each
/// entry and each snapshot, because a trigger is ignored while a snapshot is being made.
async fn make_snapshots(raft: Raft<RaftTypes>, shared: Arc<SharedState>) {
    let mut progress = raft.data_metrics();
    while progress.changed().await.is_ok() {
        if shared.wants_snapshot() && raft.trigger().snapshot().await.is_err() {
            return;
        }
    }
}
