//! **What**: everything that can happen to the shards of a core.
//!
//! **Invariants**: a closed list; each event has a bounded number of effects (see `effect.rs`).
//!
//! **Never**: an event that borrows from a connection.
//!
//! **See**: `table.rs`, which dispatches them.

use crate::batch_pool::CheckedBatch;
use felix_protocol::frame::Start;
use felix_protocol::ids::{CoreId, ProducerEpoch, ProducerId, ShardId, ShardIndex, StreamId};
use felix_protocol::metadata::Durability;
use felix_protocol::position::{Epoch, Lineage, Offset};

/// A connection on a core: slot and generation of its endpoint, opaque here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnKey(pub u64);

/// A publish channel, anywhere in this broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelKey {
    /// Core whose session it is.
    pub core: CoreId,
    /// Connection there.
    pub conn: ConnKey,
    /// QUIC stream of the channel.
    pub stream: u64,
}

/// A subscription on a core: slot and generation in its fan-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubKey {
    /// Slot.
    pub slot: u32,
    /// Generation of the slot.
    pub generation: u32,
}

/// A tenant's keys for encryption at rest, by the number that the core gave them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantKeys(pub u32);

/// What a shard is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardConfig {
    /// Log id.
    pub shard: ShardId,
    /// Stream it belongs to.
    pub stream: StreamId,
    /// Place in the stream.
    pub index: ShardIndex,
    /// Incarnation of its data.
    pub lineage: Lineage,
    /// Leader generation.
    pub epoch: Epoch,
    /// How it is stored.
    pub durability: Durability,
    /// If it is stored: its files were made. If they are not there, they are lost, and none are made in their place.
    pub made: bool,
    /// With `Durability::Interval`: milliseconds within which a sync begins.
    pub sync_interval_ms: u32,
    /// Sealed at rest with the keys of this tenant; None: in clear.
    pub sealed_for: Option<TenantKeys>,
    /// Only the newest record of each key is kept, in the end.
    pub compact: bool,
    /// With `compact`: nanoseconds for which a deleted key's tombstone stays.
    pub tombstone_grace_ns: u64,
    /// Bytes kept.
    pub retention_bytes: u64,
    /// Age kept.
    pub retention_age_ns: Option<u64>,
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// Metadata gave this core a shard, or changed its settings.
    ShardPut(ShardConfig),
    /// Metadata took the shard away.
    ShardRemoved {
        /// Which.
        shard: ShardId,
    },
    /// A channel was opened: tell what the producer must go on with.
    ChannelOpened {
        /// Which shard.
        shard: ShardId,
        /// Who asks.
        channel: ChannelKey,
        /// Producer, 0 for none.
        producer: ProducerId,
        /// Its incarnation.
        producer_epoch: ProducerEpoch,
    },
    /// A batch arrived on a channel.
    Published {
        /// Which shard.
        shard: ShardId,
        /// Who sent it.
        channel: ChannelKey,
        /// The checked body.
        batch: CheckedBatch,
    },
    /// A core has a subscriber: resolve its start and send the core what is committed from now on.
    Attached {
        /// Which shard.
        shard: ShardId,
        /// Whose fan-out.
        core: CoreId,
        /// For which subscription.
        sub: SubKey,
        /// Where it wants to begin.
        start: Start,
    },
    /// A core has no subscriber of this shard any more.
    Detached {
        /// Which shard.
        shard: ShardId,
        /// Whose fan-out.
        core: CoreId,
    },
    /// A subscription is behind its core's tail: read history.
    Fetched {
        /// Which shard.
        shard: ShardId,
        /// Whose fan-out.
        core: CoreId,
        /// For which subscription.
        sub: SubKey,
        /// First offset wanted.
        from: Offset,
    },
    /// The mesh to a core has room again after a Commit could not be sent.
    MeshHasRoom {
        /// Which core.
        core: CoreId,
    },
    /// Time passed.
    Ticked,
}
