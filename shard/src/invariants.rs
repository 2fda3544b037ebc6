//! **What**: what must always hold, in one place, run after every event in tests and simulation.
//!
//! ```text
//! shard:        log_start <= high_watermark <= log_end; batches contiguous; bytes add up
//! attached core: what it was sent ends at the high watermark unless its mesh ring was full
//! tail:         ring contiguous; ends where the owner said; every filter group as long as the ring
//! subscription: covered ranges contiguous from its start; delivery numbers without a hole
//! ```
//!
//! **Invariants**: these.
//!
//! **Never**: a check that repairs.
//!
//! **See**: `shard.rs`, `tail.rs`, `subscription.rs`, where each part checks itself.

use crate::fan_out::FanOut;
use crate::table::Shards;

/// Panics with the invariant that is broken.
pub fn check(shards: &Shards, fan_out: &FanOut) {
    shards.check();
    fan_out.check();
}
