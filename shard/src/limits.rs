//! **What**: the bounds of the shards and the fan-out of one core.
//!
//! **Invariants**: every queue of this crate has its bound here; hitting one is counted.
//!
//! **Never**: a bound that only a comment knows.
//!
//! **See**: `felix_protocol::limits` for those a client can see.

/// Bounds of one core, settable by its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Batches of one tail ring. A subscriber further behind is served from the owner's log or by its policy.
    pub tail_batches_max: usize,
    /// Bytes of one tail ring.
    pub tail_bytes_max: usize,
    /// Different key filters in use on one tail. Each costs 16 bytes per batch of the ring (256 MiB for all of these on a
    /// full ring) and a match per commit.
    pub filters_max: usize,
    /// Bytes one Fetch of history may carry from the owner's core.
    pub fetch_bytes_max: usize,
    /// Batches one Fetch may carry.
    pub fetch_batches_max: usize,
    /// Bytes of history fetched by subscribers that did not take it yet; beyond it the oldest is dropped and fetched
    /// again, so that subscribers who stopped reading do not hold the owners' memory.
    pub history_bytes_max: usize,
    /// Bytes of batches that retention let go but other cores still hold; beyond it appends are refused.
    pub held_bytes_max: usize,
    /// Idle buffers kept for reuse, bytes.
    pub pool_bytes_max: usize,
    /// The same for batches derived for filters.
    pub derived_pool_bytes_max: usize,
    /// Idempotent producers remembered per shard.
    pub producers_max: usize,
    /// Batches of all producers of a shard remembered for retries; beyond it only the newest of each producer are.
    pub dedup_batches_max: usize,
    /// Time after which a silent producer is forgotten, by append time.
    pub producer_expiry_ns: u64,
    /// Offsets a filtered subscriber may skip before it gets a Progress.
    pub progress_offsets: u64,
}

/// Batches of one producer that a shard remembers for retries: as many as a channel may have in flight.
pub const DEDUP_WINDOW: usize = 1_024;

/// Batches of one producer that a shard remembers however many others publish.
pub const DEDUP_WINDOW_MIN: usize = 32;

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            tail_batches_max: 4_096,
            tail_bytes_max: 8 << 20,
            filters_max: 4_096,
            fetch_bytes_max: 1 << 20,
            fetch_batches_max: 256,
            history_bytes_max: 64 << 20,
            held_bytes_max: 256 << 20,
            pool_bytes_max: 16 << 20,
            derived_pool_bytes_max: 4 << 20,
            producers_max: 10_000,
            dedup_batches_max: 1 << 18,
            producer_expiry_ns: 3_600_000_000_000,
            progress_offsets: 1_024,
        }
    }
}

const _: () = assert!(DEDUP_WINDOW_MIN < DEDUP_WINDOW);
const _: () = assert!(DEDUP_WINDOW >= felix_protocol::limits::ACKS_PER_FRAME_MAX);
