//! **What**: everything that lies in a data folder, byte by byte: one file here per thing on disk.
//!
//! **Invariants**: format 1 never changes; golden files in `tests/golden/v1` pin it. A reader checks a checksum before it
//! believes a field.
//!
//! **Never**: a length that is trusted, a disk.
//!
//! **See**: `names.rs` (where things lie), `header.rs` (how every file begins).

pub mod entry;
pub mod frame;
pub mod group;
pub mod header;
pub mod index;
pub mod meta;
pub mod names;
pub mod producers;
pub mod segment;
pub mod stored;
