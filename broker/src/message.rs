//! **What**: what travels through the mesh: between cores, and between a core and the control thread.
//!
//! **Invariants**: messages of one pair arrive in order. A message owns all it carries; a batch is shared, never copied.
//! What asks for a shard names the routing version it was decided by: an owner that is behind holds it until it caught
//! up, so a stream can be used through any core as soon as one core knows it (DECISIONS 27).
//! `Commit` is the only message its sender may get back (mesh full); all others wait in the sender's outbox.
//!
//! **Never**: a reference into another core's state.
//!
//! **See**: `core.rs`, which sends and receives them; `control_thread.rs` for the other end of `ToControl`.

use felix_control::authorise::Principal;
use felix_control::watch::{Change, Snapshot};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{Start, Stats};
use felix_protocol::ids::{CoreId, ProducerEpoch, ProducerId, Sequence, ShardId};
use felix_protocol::metadata::{Command, Reply, ShardStatus};
use felix_protocol::names::StreamName;
use felix_protocol::position::Offset;
use felix_shard::batch_pool::{CheckedBatch, SharedBatch};
use felix_shard::effect::{Ack, AttachRefused, AttachState, ChannelState};
use felix_shard::event::{ChannelKey, ConnKey, SubKey};
use felix_wal::keyring::Keyring;
use std::net::SocketAddr;
use std::sync::Arc;

/// A message between two members of the mesh.
#[derive(Debug)]
#[allow(missing_docs, reason = "fields repeat the events and effects of felix-shard that they carry")]
pub enum MeshMessage {
    /// To the owner: a channel was opened.
    OpenChannel {
        routing_version: u64,
        shard: ShardId,
        channel: ChannelKey,
        producer: ProducerId,
        producer_epoch: ProducerEpoch,
    },
    /// From the owner: its answer.
    ChannelOpened { channel: ChannelKey, result: Result<ChannelState, ErrorCode> },
    /// To the owner: a batch.
    Publish { shard: ShardId, channel: ChannelKey, batch: CheckedBatch },
    /// From the owner: a batch is appended.
    Ack { channel: ChannelKey, ack: Ack },
    /// From the owner: a batch is refused.
    Refuse { channel: ChannelKey, base_sequence: Sequence, record_count: u32, code: ErrorCode },
    /// To the owner: a subscriber came.
    Attach { routing_version: u64, shard: ShardId, sub: SubKey, start: Start },
    /// To the owner: the last subscriber left.
    Detach { shard: ShardId },
    /// To the owner: a subscriber reads history.
    Fetch { shard: ShardId, sub: SubKey, from: Offset },
    /// From the owner: where a subscriber begins.
    Attached { sub: SubKey, result: Result<AttachState, AttachRefused> },
    /// From the owner: a committed batch.
    Commit { shard: ShardId, batch: SharedBatch },
    /// From the owner: history.
    Fetched { sub: SubKey, batches: Vec<SharedBatch>, high_watermark: Offset },
    /// From the owner: a shard is gone.
    Gone { shard: ShardId },
    /// A datagram that reached the wrong core.
    Datagram { bytes: Vec<u8>, from: SocketAddr, to: SocketAddr },
    /// A core to the control thread.
    ToControl(Box<ToControl>),
    /// The control thread to a core.
    FromControl(Box<FromControl>),
}

/// A request of a core to the control thread.
#[derive(Debug)]
pub enum ToControl {
    /// A metadata command of a client.
    Admin {
        /// Connection that waits for the reply.
        conn: ConnKey,
        /// Its request.
        request_id: u32,
        /// Who asks.
        principal: Arc<Principal>,
        /// Repeats have no second effect.
        idempotency_key: u128,
        /// What to do.
        command: Command,
    },
    /// Counters for a client.
    Stats {
        /// Connection that waits for the reply.
        conn: ConnKey,
        /// Its request.
        request_id: u32,
        /// Only streams after this one.
        after: Option<StreamName>,
    },
    /// The core runs out of producer ids.
    NeedProducers,
    /// What changed on the core since its last report.
    Report(CoreReport),
}

/// What the control thread tells a core.
#[derive(Debug)]
pub enum FromControl {
    /// All metadata, in the place of what the core knows: at the start, and for a core that is too far behind for
    /// changes. Shared by all cores.
    Table(Arc<Snapshot>),
    /// Metadata changed; the list is shared by all cores.
    Changes {
        /// Version of the routing table after these.
        routing_version: u64,
        /// In order.
        changes: Arc<[Change]>,
    },
    /// Data keys: before the streams that need them, and again whenever the keyring changed. Shared by all cores.
    Keys {
        /// All keys.
        keyring: Arc<Keyring>,
        /// Only those of this tenant changed; None: any of them may have.
        tenant: Option<Arc<str>>,
    },
    /// The answer to `Admin`.
    AdminReply {
        /// Connection that waits.
        conn: ConnKey,
        /// Its request.
        request_id: u32,
        /// Result, or why not.
        result: Result<Reply, (ErrorCode, String)>,
    },
    /// The answer to `Stats`.
    StatsReply {
        /// Connection that waits.
        conn: ConnKey,
        /// Its request.
        request_id: u32,
        /// Counters.
        stats: Stats,
    },
    /// Ids for producers, `first..first + count`.
    Producers {
        /// First id.
        first: u64,
        /// How many.
        count: u64,
    },
    /// There are no ids for producers now: whoever waits is to come again.
    NoProducers {
        /// Why, for clients.
        code: ErrorCode,
        /// Why, for people.
        detail: String,
    },
    /// Tell every client to go; close what is left after this time.
    Drain {
        /// Time left, ms.
        drain_ms: u32,
    },
    /// Somebody asks for numbers: report what changed now.
    ReportNow {
        /// Comes back in the report.
        ticket: u64,
    },
    /// Room on the disk.
    Space {
        /// Bytes that the core may still write; beyond them publishers of durable streams get DiskFull.
        room: u64,
        /// What can go should go at once.
        is_short: bool,
    },
    /// New certificates for new handshakes; the loop takes it, not the core.
    ReloadTls(Arc<felix_quic::ServerTls>),
    /// Close everything and stop the core's loop.
    Stop,
}

/// What changed on a core since its last report. Rows are absolute, not differences.
#[derive(Clone, Debug, Default)]
pub struct CoreReport {
    /// Last `ReportNow` that this answers; 0: none yet.
    pub ticket: u64,
    /// Connections now.
    pub connections: u32,
    /// Durable shards that are not open yet.
    pub opening: u32,
    /// Why storage takes nothing durable any more.
    pub storage_failure: Option<String>,
    /// Durable shards whose files are there, and that the metadata do not know as made; each once per start.
    pub made: Vec<ShardId>,
    /// Shards owned here that changed.
    pub shards: Vec<ShardReport>,
    /// Shards with subscribers here that changed.
    pub tails: Vec<TailReport>,
}

/// A shard as its owner sees it.
#[derive(Clone, Copy, Debug)]
pub struct ShardReport {
    /// Position and size.
    pub status: ShardStatus,
    /// Records appended.
    pub records_in: u64,
    /// Bytes of batches appended.
    pub bytes_in: u64,
}

/// A shard's subscribers on one core.
#[derive(Clone, Copy, Debug)]
pub struct TailReport {
    /// Which shard.
    pub shard: ShardId,
    /// Which core.
    pub core: CoreId,
    /// Subscriptions now.
    pub subscriptions: u32,
    /// Records delivered since the shard had its first subscriber here.
    pub records_out: u64,
    /// Bytes of batches delivered.
    pub bytes_out: u64,
    /// Offsets told as gaps.
    pub gap_records: u64,
    /// Cursor of the slowest; None without subscribers.
    pub slowest: Option<Offset>,
}
