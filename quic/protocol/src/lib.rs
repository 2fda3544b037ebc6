//! **What**: the words that every part of Felix speaks: names and ids, positions, the record batch, frames and
//! their codec, error codes, limits. Plain data; no I/O, no clock, no QUIC.
//!
//! **Invariants**: a decoder never trusts a length, never panics and never allocates more than the input justifies;
//! the bytes of wire version 1 and batch format 1 are pinned by golden files and described in `PROTOCOL.md`.
//!
//! **Never**: a dependency on a transport, a runtime or another Felix crate.
//!
//! **See**: `frame.rs` for what travels, `batch.rs` for what is stored, `codec.rs` for how bytes are read.
#![forbid(unsafe_code)]

pub mod backup;
pub mod batch;
pub mod batch_builder;
mod batch_error;
pub mod batch_view;
pub mod codec;
pub mod derive;
pub mod envelope;
pub mod error_code;
pub mod frame;
mod frame_codec;
pub mod frame_stream;
pub mod ids;
pub mod limits;
pub mod metadata;
mod metadata_codec;
pub mod names;
pub mod pattern;
pub mod position;
pub mod routing;
pub mod time;
pub mod version;
