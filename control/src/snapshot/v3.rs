//! **What**: the types of a stored state, version 3: version 2 and, apart from it, the shards whose files were made.
//!
//! **Invariants**: frozen, like `v1.rs`. A shard that is not named has no files as far as the metadata know.
//!
//! **Never**: a type of another module but `v1` and `v2` in a field.
//!
//! **See**: `snapshot.rs`, which writes an earlier version as long as no shard was made.

use super::{v1, v2};
use rkyv::{Archive, Deserialize, Serialize};

/// All metadata.
#[derive(Archive, Serialize, Deserialize)]
pub struct Snapshot {
    /// All that version 1 has.
    pub base: v1::Snapshot,
    /// As in version 2, but there may be none. In order of id.
    pub settings: Vec<v2::StreamSettings>,
    /// Ids of the shards whose files were made, in order.
    pub made: Vec<u64>,
}
