//! **What**: durable storage without I/O: formats, the core WAL with group commit, per-shard segments, indexes, recovery,
//! retention. It plans disk operations and is told what became of them.
//!
//! **Invariants**: nothing is acknowledged before a sync that was issued after its write has returned. A block that held
//! acknowledged data is never rewritten. Damage is told apart from a torn end and is never cut silently.
//!
//! **Never**: a file, a clock, a thread, randomness. Bytes from a disk are hostile: errors, never asserts.
//!
//! **See**: `disk.rs` for the vocabulary, DESIGN.md for the layout of a data folder.
#![forbid(unsafe_code)]

pub mod core_wal;
pub mod disk;
pub mod format;
pub mod group_commit;
pub mod judge;
pub mod mem_disk;
mod mem_file;
mod prepare;
pub mod recover;
pub mod retire;
mod ring;
mod window;
