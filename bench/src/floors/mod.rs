//! **What**: the floors: what the machine and the bare libraries give, with nothing of Felix in between.
//!
//! **Invariants**: only quiche, ring, libc and std are named below this folder.
//!
//! **Never**: Felix code here.
//!
//! **See**: `relay.rs`, `ping.rs`, `disk.rs`, `bytes.rs`; `../ground.rs` runs them.

pub mod bytes;
pub mod disk;
pub mod ping;
pub mod relay;

/// Value at a quantile of a sorted list.
pub fn quantile(sorted: &[u64], q: f64) -> u64 {
    let index = ((sorted.len() as f64 * q) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or(0)
}
