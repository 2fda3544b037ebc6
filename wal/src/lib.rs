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

pub mod at_rest;
pub mod check;
pub mod chunk_builder;
pub mod compact;
mod compact_map;
mod compact_output;
pub mod core_wal;
mod damaged;
pub mod disk;
pub mod dump;
pub mod format;
pub mod group_commit;
pub mod index_rebuild;
mod invariants;
mod job;
pub mod judge;
pub mod keyring;
mod listing;
pub mod log;
pub mod log_open;
pub mod mem_disk;
mod mem_file;
mod prepare;
pub mod quarantine;
pub mod queue;
pub mod read;
mod read_error;
pub mod recover;
pub mod repair;
pub mod retain;
pub mod retire;
mod ring;
pub mod script;
mod stream;
mod time_seek;
pub mod truncate;
mod window;
