//! **What**: the types of a stored state, version 1.
//!
//! **Invariants**: frozen. rkyv lays fields out in the order and with the types that stand here, so any edit breaks
//! stored bytes; `tests/golden/v1/state_snapshot.bin` would tell.
//!
//! **Never**: a type of another module in a field: it could change.
//!
//! **See**: `snapshot.rs`, which converts.

use rkyv::{Archive, Deserialize, Serialize};

/// All metadata.
#[derive(Archive, Serialize, Deserialize)]
pub struct Snapshot {
    /// Entries applied.
    pub version: u64,
    /// Version of the routing table.
    pub routing_version: u64,
    /// Lowest stream id never given.
    pub next_stream: u64,
    /// Lowest shard id never given.
    pub next_shard: u64,
    /// Lowest producer id never given.
    pub next_producer: u64,
    /// Lowest lineage never given.
    pub next_lineage: u32,
    /// Cores of the broker.
    pub cores: u8,
    /// In order of id.
    pub nodes: Vec<Node>,
    /// In order of name.
    pub tenants: Vec<Tenant>,
    /// `tenant/namespace`, in order.
    pub namespaces: Vec<String>,
    /// In order of name.
    pub streams: Vec<Stream>,
    /// By idempotency key, oldest first.
    pub outcomes: Vec<Outcome>,
}

/// A node.
#[derive(Archive, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub node: u128,
    /// Its last start.
    pub session: u64,
}

/// A tenant.
#[derive(Archive, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Limit.
    pub streams_max: u32,
    /// Limit.
    pub shards_max: u32,
    /// Limit.
    pub retained_bytes_max: u64,
}

/// A stream without its shards.
#[derive(Archive, Serialize, Deserialize)]
pub struct StreamInfo {
    /// Its id.
    pub id: u64,
    /// `tenant/namespace/stream`.
    pub name: String,
    /// Setting.
    pub shards: u32,
    /// Setting, a number of `Durability`.
    pub durability: u8,
    /// Setting.
    pub retention_bytes: u64,
    /// Setting.
    pub retention_age_ms: Option<u64>,
    /// Setting.
    pub batch_bytes_max: u32,
    /// Metadata version of the last change.
    pub version: u64,
    /// Nanoseconds since the Unix epoch.
    pub created: u64,
}

/// A stream.
#[derive(Archive, Serialize, Deserialize)]
pub struct Stream {
    /// The stream itself.
    pub info: StreamInfo,
    /// By index.
    pub shards: Vec<Shard>,
}

/// A shard.
#[derive(Archive, Serialize, Deserialize)]
pub struct Shard {
    /// Its id.
    pub shard: u64,
    /// First key hash of its range.
    pub range_start: u64,
    /// Leader generation.
    pub epoch: u64,
    /// Incarnation of its data.
    pub lineage: u32,
    /// Core that owns it.
    pub core: u8,
}

/// The outcome of a command with an idempotency key.
#[derive(Archive, Serialize, Deserialize)]
pub struct Outcome {
    /// The key.
    pub key: u128,
    /// Hash of principal and command.
    pub fingerprint: u64,
    /// Metadata version.
    pub version: u64,
    /// The answer.
    pub answer: Answer,
    /// Producer ids that were given.
    pub producers: Option<Producers>,
}

/// What was answered.
#[derive(Archive, Serialize, Deserialize)]
pub enum Answer {
    /// Done at that version.
    Done,
    /// A stream was made or changed.
    Stream(StreamInfo),
    /// Refused.
    Refused(Refusal),
}

/// A refusal.
#[derive(Archive, Serialize, Deserialize)]
pub struct Refusal {
    /// A number of `ErrorCode`.
    pub code: u16,
    /// For people.
    pub detail: String,
}

/// A block of producer ids.
#[derive(Archive, Serialize, Deserialize)]
pub struct Producers {
    /// To whom.
    pub core: u8,
    /// First id.
    pub first: u64,
    /// How many.
    pub count: u32,
}
