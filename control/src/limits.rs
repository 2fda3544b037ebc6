//! **What**: every maximum of the control plane in one place.
//!
//! **Invariants**: what a client may ask for is bounded here or in `felix_protocol::limits`, nowhere else.
//!
//! **Never**: a change of a value that `State::apply` reads without a new entry version: two builds that apply the same
//! log must agree.
//!
//! **See**: `state.rs`, `command.rs`, `member.rs`.

use felix_protocol::limits::{BATCH_BODY_BYTES_MAX, LABEL_BYTES_MAX, STREAM_NAME_BYTES_MAX, TLV_BYTES_MAX};

/// Smallest `retention_bytes` of a stream, per shard.
pub const RETENTION_BYTES_MIN: u64 = 64 << 10;
/// Largest `retention_bytes` of a stream, per shard.
pub const RETENTION_BYTES_MAX: u64 = 1 << 40;
/// Smallest `retention_age_ms` of a stream.
pub const RETENTION_AGE_MS_MIN: u64 = 1;
/// Smallest `batch_bytes_max` of a stream.
pub const BATCH_BYTES_MIN: u32 = 1 << 10;
/// Largest `batch_bytes_max` of a stream.
pub const BATCH_BYTES_MAX: u32 = BATCH_BODY_BYTES_MAX as u32;
/// Smallest `interval_ms` of a stream of durability `interval`.
pub const INTERVAL_MS_MIN: u32 = 1;
/// Largest `interval_ms`: who can lose more than a minute wants `none`.
pub const INTERVAL_MS_MAX: u32 = 60_000;
/// Largest `tombstone_grace_ms` of a compacted stream: ten years.
pub const TOMBSTONE_GRACE_MS_MAX: u64 = 3_650 * 24 * 60 * 60 * 1_000;
/// Outcomes kept for repeated idempotency keys, oldest out first. A client repeats within seconds; this is minutes of
/// administration and at most 2 MiB.
pub const IDEMPOTENCY_KEYS_MAX: usize = 4_096;
/// Largest block of producer ids given to a core at once.
pub const PRODUCER_BLOCK_MAX: u32 = 1 << 20;
/// Largest name of a principal.
pub const PRINCIPAL_BYTES_MAX: usize = 255;
/// Largest encoded command in an entry.
pub const COMMAND_BYTES_MAX: usize = 8 << 10;
/// Shards that one `ShardsMade` names: as many as a command holds behind its kind and count.
pub const SHARDS_MADE_MAX: usize = (COMMAND_BYTES_MAX - 3) / 8;
/// Largest entry of the metadata log, frame header included.
pub const ENTRY_BYTES_MAX: usize = 16 << 10;
/// Largest entry of the raft log: one of the metadata log, or all members.
pub const RAFT_ENTRY_BYTES_MAX: usize = 32 << 10;
/// Largest small record of a metadata folder: identity, log head, how far it is synced.
pub const HEAD_BYTES_MAX: usize = 4 << 10;
/// Members of the raft group, learners included.
pub const MEMBERS_MAX: usize = 32;
/// Largest address of a member.
pub const ADDRESS_BYTES_MAX: usize = 255;
/// Proposals of one member that may wait for their commit; more are told to come again.
pub const PROPOSALS_MAX: usize = 1_024;
/// Largest frame of the watch and largest state snapshot: a length is a u32, and rkyv's relative pointers reach 2 GiB.
pub const FRAME_BYTES_MAX: usize = 2 << 30;
/// Changes after which the watch begins another delta.
pub const DELTA_CHANGES_MAX: usize = 256;

// The longest command is a CreateStream: kind, name, 4 KiB of settings at most, a flag.
const _: () = assert!(8 + 2 * LABEL_BYTES_MAX + STREAM_NAME_BYTES_MAX + 2 + 4_096 < COMMAND_BYTES_MAX);
const _: () = assert!(COMMAND_BYTES_MAX + PRINCIPAL_BYTES_MAX + TLV_BYTES_MAX + 64 < ENTRY_BYTES_MAX);
const _: () = assert!(ENTRY_BYTES_MAX + TLV_BYTES_MAX + 64 < RAFT_ENTRY_BYTES_MAX);
const _: () = assert!(MEMBERS_MAX * (3 * 16 + 2 + ADDRESS_BYTES_MAX) + 128 < RAFT_ENTRY_BYTES_MAX);
const _: () = assert!(ENTRY_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(COMMAND_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(SHARDS_MADE_MAX <= u16::MAX as usize);
const _: () = assert!(FRAME_BYTES_MAX <= u32::MAX as usize);
