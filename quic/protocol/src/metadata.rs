//! **What**: the documents of the control plane as clients and brokers exchange them: tenants, namespaces, streams,
//! the commands that change them and the replies.
//!
//! **Invariants**: a name in a decoded document obeys the grammar.
//!
//! **Never**: a document that only one broker version can read.
//!
//! **See**: `metadata_codec.rs` for the bytes, `control/src/command.rs`, which wraps a command with version and
//! idempotency key.

use crate::codec::{DecodeError, Reader, Writer};
use crate::ids::{CoreId, ShardId, ShardIndex, StreamId};
use crate::limits::NAME_BYTES_MAX;
use crate::names::{NamespaceName, StreamName};
use crate::position::{Epoch, Lineage, Offset};
use crate::time::Timestamp;

/// What an acknowledgement is worth, and how a stream is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Durability {
    /// In memory only; a restart loses it and takes a new lineage.
    #[default]
    Ephemeral = 0,
    /// On disk, never synced.
    None = 1,
    /// On disk, synced at intervals; may lose the interval.
    Interval = 2,
    /// On disk, synced before the ack, sync shared.
    Group = 3,
    /// On disk, synced before the ack, never waiting for others.
    Each = 4,
}

impl Durability {
    /// The durability of a number.
    pub fn from_number(number: u8) -> Option<Durability> {
        use Durability::*;
        [Ephemeral, None, Interval, Group, Each].into_iter().find(|it| *it as u8 == number)
    }
}

/// Settings of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamSpec {
    /// Number of shards, 1 to `SHARDS_MAX`. Fixed at creation.
    pub shards: u32,
    /// How it is stored. Fixed at creation.
    pub durability: Durability,
    /// Bytes kept per shard; the oldest batches go first.
    pub retention_bytes: u64,
    /// Age after which a batch goes; None: no bound by age.
    pub retention_age_ms: Option<u64>,
    /// Largest batch body a producer may send.
    pub batch_bytes_max: u32,
    /// Longest time between two syncs of a stream of durability `interval`, ms: what a power failure may take of what
    /// was acknowledged. Of no meaning, and left at its default, for other streams. Fixed at creation.
    pub interval_ms: u32,
    /// Keep only the newest record of each key. Durable streams only. Fixed at creation.
    pub compact: bool,
    /// How long a compacted stream keeps a tombstone, so that slow readers see it, ms. Fixed at creation.
    pub tombstone_grace_ms: u64,
    /// Encrypted at rest under a key of the tenant. Durable streams only. Fixed at creation.
    pub encrypt: bool,
}

impl StreamSpec {
    /// `interval_ms` of who did not ask for another.
    pub const INTERVAL_MS_DEFAULT: u32 = 100;
    /// `tombstone_grace_ms` of who did not ask for another: a day.
    pub const TOMBSTONE_GRACE_MS_DEFAULT: u64 = 24 * 60 * 60 * 1_000;

    /// What an acknowledgement of this stream is worth, in one sentence for people: what may be lost, and when.
    pub fn loss_window(&self) -> String {
        match self.durability {
            Durability::Ephemeral => "in memory: a restart of the broker loses every record".to_string(),
            Durability::None => {
                "never synced: a power failure loses what the system had not written, acked or not; a crash of the \
                 broker loses what it had not handed to the system"
                    .to_string()
            }
            Durability::Interval => {
                format!("synced every {} ms: up to {0} ms of acked records at a power failure", self.interval_ms)
            }
            Durability::Group => "none: an ack comes after fdatasync, which waiting batches share".to_string(),
            Durability::Each => "none: an ack comes after fdatasync, started without waiting for others".to_string(),
        }
    }
}

impl Default for StreamSpec {
    fn default() -> StreamSpec {
        StreamSpec {
            shards: 1,
            durability: Durability::Ephemeral,
            retention_bytes: 64 << 20,
            retention_age_ms: None,
            batch_bytes_max: crate::limits::BATCH_BODY_BYTES_MAX as u32,
            interval_ms: StreamSpec::INTERVAL_MS_DEFAULT,
            compact: false,
            tombstone_grace_ms: StreamSpec::TOMBSTONE_GRACE_MS_DEFAULT,
            encrypt: false,
        }
    }
}

/// Changes to a stream's settings; None leaves a setting as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamChanges {
    /// New bytes kept per shard.
    pub retention_bytes: Option<u64>,
    /// New age bound; `Some(None)` takes the bound away.
    pub retention_age_ms: Option<Option<u64>>,
    /// New largest batch body.
    pub batch_bytes_max: Option<u32>,
}

/// Limits of a tenant; zero is not "unlimited", it is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantLimits {
    /// Largest number of streams.
    pub streams_max: u32,
    /// Largest number of shards over all streams.
    pub shards_max: u32,
    /// Largest sum of `retention_bytes` over all shards.
    pub retained_bytes_max: u64,
}

impl Default for TenantLimits {
    fn default() -> TenantLimits {
        TenantLimits { streams_max: 10_000, shards_max: 100_000, retained_bytes_max: 64 << 30 }
    }
}

/// A request to the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Makes a tenant.
    CreateTenant {
        /// Its name.
        tenant: String,
        /// Its limits.
        limits: TenantLimits,
    },
    /// Deletes an empty tenant.
    DeleteTenant {
        /// Its name.
        tenant: String,
    },
    /// Tenants in order of name.
    ListTenants {
        /// Only names after this one.
        after: Option<String>,
    },
    /// Makes a namespace.
    CreateNamespace {
        /// Its name.
        name: NamespaceName,
    },
    /// Deletes an empty namespace.
    DeleteNamespace {
        /// Its name.
        name: NamespaceName,
    },
    /// Namespaces of a tenant in order of name.
    ListNamespaces {
        /// The tenant.
        tenant: String,
        /// Only namespaces after this one.
        after: Option<String>,
    },
    /// Makes a stream.
    CreateStream {
        /// Its name.
        name: StreamName,
        /// Its settings.
        spec: StreamSpec,
        /// Make tenant and namespace too if they are missing.
        create_parents: bool,
    },
    /// Changes settings of a stream.
    AlterStream {
        /// Its name.
        name: StreamName,
        /// What to change.
        changes: StreamChanges,
        /// Only if the stream still has this version.
        if_version: Option<u64>,
    },
    /// Deletes a stream and its data.
    DeleteStream {
        /// Its name.
        name: StreamName,
    },
    /// One stream with its shards.
    DescribeStream {
        /// Its name.
        name: StreamName,
    },
    /// Streams in order of name.
    ListStreams {
        /// Only of this tenant.
        tenant: Option<String>,
        /// Only of this namespace of the tenant.
        namespace: Option<String>,
        /// Only streams after this one.
        after: Option<StreamName>,
    },
}

impl Command {
    /// Whether it changes metadata (and so goes through the log).
    pub fn is_write(&self) -> bool {
        !matches!(
            self,
            Command::ListTenants { .. }
                | Command::ListNamespaces { .. }
                | Command::DescribeStream { .. }
                | Command::ListStreams { .. }
        )
    }
}

/// A stream as metadata knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// Id, never reused.
    pub id: StreamId,
    /// Name.
    pub name: StreamName,
    /// Settings.
    pub spec: StreamSpec,
    /// Metadata version of the last change.
    pub version: u64,
    /// When it was made.
    pub created: Timestamp,
}

/// A shard as its owner last reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// Place in the stream.
    pub index: ShardIndex,
    /// Log id.
    pub shard: ShardId,
    /// Owning core.
    pub core: CoreId,
    /// Incarnation of the data.
    pub lineage: Lineage,
    /// Leader generation.
    pub epoch: Epoch,
    /// First offset kept.
    pub log_start: Offset,
    /// One past the last committed offset.
    pub high_watermark: Offset,
    /// Bytes kept.
    pub retained_bytes: u64,
}

/// A tenant as metadata knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantInfo {
    /// Name.
    pub name: String,
    /// Limits.
    pub limits: TenantLimits,
    /// Streams it has.
    pub streams: u32,
}

/// The answer to a [`Command`]. Failures travel as an Error frame instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The change is in the metadata log at this version (also for a repeat of the same idempotency key).
    Done {
        /// Metadata version.
        version: u64,
    },
    /// A stream was made or changed.
    StreamDone {
        /// Metadata version.
        version: u64,
        /// The stream as it is now.
        stream: StreamInfo,
    },
    /// One stream.
    Stream {
        /// The stream.
        stream: StreamInfo,
        /// Its shards by index.
        shards: Vec<ShardStatus>,
    },
    /// A page of streams.
    Streams {
        /// In order of name.
        streams: Vec<StreamInfo>,
        /// Ask again after the last one.
        more: bool,
    },
    /// A page of namespaces.
    Namespaces {
        /// In order of name.
        names: Vec<NamespaceName>,
        /// Ask again after the last one.
        more: bool,
    },
    /// A page of tenants.
    Tenants {
        /// In order of name.
        tenants: Vec<TenantInfo>,
        /// Ask again after the last one.
        more: bool,
    },
}

/// Reads a namespace name.
pub fn read_namespace(reader: &mut Reader<'_>) -> Result<NamespaceName, DecodeError> {
    NamespaceName::parse(reader.text16(NAME_BYTES_MAX)?).map_err(DecodeError::BadName)
}

/// Reads a stream name.
pub fn read_stream_name(reader: &mut Reader<'_>) -> Result<StreamName, DecodeError> {
    StreamName::parse(reader.text16(NAME_BYTES_MAX)?).map_err(DecodeError::BadName)
}

/// Appends a name.
pub fn put_name(out: &mut Vec<u8>, name: &impl std::fmt::Display) {
    out.put_bytes16(name.to_string().as_bytes());
}
