//! **What**: the hasher of maps whose keys are ids that metadata gave.
//!
//! **Invariants**: the order of such a map depends on what was put in, and not on chance: a seed repeats its run.
//!
//! **Never**: for keys that a client chooses: it could make them collide.
//!
//! **See**: `table.rs`, `fan_out.rs`, `dedup.rs`.

use std::collections::hash_map::DefaultHasher;
use std::hash::BuildHasherDefault;

/// SipHash without a random key.
pub(crate) type ById = BuildHasherDefault<DefaultHasher>;
