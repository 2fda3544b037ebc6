//! **What**: everything the shards of a core can ask for.
//!
//! **Invariants**: an event makes at most `1 + cores` effects, but `MeshHasRoom`, which makes at most
//! `RESUME_BATCHES_MAX` and asks to be called again.
//!
//! **Never**: an effect that is silently not executed: a `Commit` that finds the mesh full, or anything else waiting for
//! its core, goes back by `Shards::commit_refused`, and so do the commits of its shard to that core after it. All other
//! effects wait for room. So what a core gets from an owner keeps its order.
//!
//! **See**: `broker/src/core.rs`, which executes them.

use crate::batch_pool::SharedBatch;
use crate::event::{ChannelKey, SubKey};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::ids::{CoreId, Sequence, ShardId, StreamId};
use felix_protocol::metadata::Durability;
use felix_protocol::position::{Epoch, Lineage, Offset};

/// Batches one `MeshHasRoom` may send.
pub const RESUME_BATCHES_MAX: usize = 64;

/// Something to do.
#[derive(Debug)]
pub enum Effect {
    /// Tell a channel what to go on with.
    OpenChannel {
        /// Which.
        channel: ChannelKey,
        /// The shard's state, or why not.
        result: Result<ChannelState, ErrorCode>,
    },
    /// Tell a channel that a batch is appended.
    Ack {
        /// Which.
        channel: ChannelKey,
        /// What.
        ack: Ack,
    },
    /// Tell a channel that a batch is refused.
    Refuse {
        /// Which.
        channel: ChannelKey,
        /// First sequence of the batch.
        base_sequence: Sequence,
        /// Records in it.
        record_count: u32,
        /// Why.
        code: ErrorCode,
    },
    /// Send a committed batch to a core that has subscribers.
    Commit {
        /// Which core.
        core: CoreId,
        /// Which shard.
        shard: ShardId,
        /// The batch.
        batch: SharedBatch,
    },
    /// Answer to `Attached`.
    Attach {
        /// Which core.
        core: CoreId,
        /// Which shard.
        shard: ShardId,
        /// For which subscription.
        sub: SubKey,
        /// Where it begins, or why not.
        result: Result<AttachState, AttachRefused>,
    },
    /// Answer to `Fetched`.
    Fetch {
        /// Which core.
        core: CoreId,
        /// Which shard.
        shard: ShardId,
        /// For which subscription.
        sub: SubKey,
        /// Batches from the offset asked (or the first kept after it), in order. Empty: it is at the end.
        batches: Vec<SharedBatch>,
        /// One past the last committed offset.
        high_watermark: Offset,
    },
    /// Tell a core that a shard is gone.
    Gone {
        /// Which core.
        core: CoreId,
        /// Which shard.
        shard: ShardId,
    },
}

/// A batch is appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// First sequence of the batch.
    pub base_sequence: Sequence,
    /// Records in it.
    pub record_count: u32,
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Incarnation of the data.
    pub lineage: Lineage,
    /// Leader generation.
    pub epoch: Epoch,
    /// What the ack is worth.
    pub durability: Durability,
}

/// What a new channel must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelState {
    /// Stream of the shard.
    pub stream: StreamId,
    /// The shard.
    pub shard: ShardId,
    /// Incarnation of the data.
    pub lineage: Lineage,
    /// Leader generation.
    pub epoch: Epoch,
    /// Next sequence expected.
    pub next_sequence: Sequence,
}

/// What a new subscription must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachState {
    /// Stream of the shard.
    pub stream: StreamId,
    /// Incarnation of the data.
    pub lineage: Lineage,
    /// Leader generation.
    pub epoch: Epoch,
    /// First offset it will cover. May lie before `log_start`: the difference is told as a gap.
    pub start: Offset,
    /// First offset kept.
    pub log_start: Offset,
    /// One past the last committed offset.
    pub high_watermark: Offset,
    /// Everything from here on comes as `Commit`: the high watermark, or less while the mesh to the core is full.
    pub commits_from: Offset,
}

/// Why a subscription cannot begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachRefused {
    /// Why.
    pub code: ErrorCode,
    /// Incarnation of the data there is.
    pub lineage: Lineage,
    /// Offset to begin with instead.
    pub next: Offset,
}

/// Effects of a turn, in order; the memory is reused.
#[derive(Debug, Default)]
pub struct Effects {
    list: Vec<Effect>,
}

impl Effects {
    /// Adds one.
    pub fn push(&mut self, effect: Effect) {
        self.list.push(effect);
    }

    /// Takes all, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = Effect> + '_ {
        self.list.drain(..)
    }

    /// Nothing there.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}
