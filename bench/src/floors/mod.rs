//! **What**: the floors: what the machine and the bare libraries give, with nothing of Felix in between.
//!
//! **Invariants**: only quiche, libc and std are named below this folder.
//!
//! **Never**: Felix code here.
//!
//! **See**: `relay.rs`.

pub mod relay;
