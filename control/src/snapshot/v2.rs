//! **What**: the types of a stored state, version 2: version 1 and, apart from it, the settings of streams that came
//! later.
//!
//! **Invariants**: frozen, like `v1.rs`. The settings here are fixed when a stream is made, so its id names them, for the
//! stream itself and for every remembered answer that shows it.
//!
//! **Never**: a type of another module but `v1` in a field; a row in which everything is at its default.
//!
//! **See**: `snapshot.rs`, which writes version 1 as long as no stream uses these settings.

use super::v1;
use rkyv::{Archive, Deserialize, Serialize};

/// All metadata.
#[derive(Archive, Serialize, Deserialize)]
pub struct Snapshot {
    /// All that version 1 has.
    pub base: v1::Snapshot,
    /// In order of id.
    pub settings: Vec<StreamSettings>,
}

/// Later settings of a stream.
#[derive(Archive, Serialize, Deserialize)]
pub struct StreamSettings {
    /// Id of the stream, which may have been deleted since.
    pub id: u64,
    /// Setting.
    pub interval_ms: u32,
    /// Setting.
    pub compact: bool,
    /// Setting.
    pub tombstone_grace_ms: u64,
    /// Setting.
    pub encrypt: bool,
}
