//! **What**: the heart of Felix: the shards of one core, and the fan-out of committed batches to the subscribers of
//! one core. Pure state machines: time, bytes and messages in, effects out.
//!
//! **Invariants**: `log_start <= high_watermark <= log_end` in every shard; a subscriber sees every offset from its
//! start once, as a record or as an explicit gap, in order (see `invariants.rs`).
//!
//! **Never**: a clock, a socket, a file, a thread, randomness, a lock. `SharedBatch` is the only thing shared.
//!
//! **See**: `shard.rs` for the path of a publish, `fan_out.rs` for the way to subscribers, `tests/path.rs` for both
//! as a transcript.
#![forbid(unsafe_code)]

pub mod append;
pub mod batch_pool;
mod by_id;
pub mod dedup;
mod durable;
pub mod effect;
pub mod event;
pub mod fan_out;
pub mod filter;
pub mod invariants;
#[cfg(test)]
mod kit;
pub mod limits;
pub mod memory_log;
mod next;
pub mod recovery;
pub mod shard;
pub mod store;
pub mod subscription;
pub mod table;
pub mod tail;
