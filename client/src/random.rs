//! **What**: the little randomness a client needs: keys of admin writes, and the jitter of reconnects.
//!
//! **Invariants**: a [`Jitter`] with a given seed repeats.
//!
//! **Never**: secrets from here; TLS has its own source.
//!
//! **See**: `backoff.rs`, `engine/requests.rs`.

use std::hash::{BuildHasher, RandomState};

/// 64 bits that no other process draws: the standard library's hash keys come from the operating system.
pub(crate) fn fresh_u64() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// A small repeatable generator (splitmix64): enough to spread retries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn new(seed: u64) -> Jitter {
        Jitter(seed)
    }

    /// The next 64 bits.
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 128 bits that are not zero.
    pub(crate) fn next_key(&mut self) -> u128 {
        (u128::from(self.next_u64()) << 64 | u128::from(self.next_u64())).max(1)
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        let span = high.saturating_sub(low).saturating_add(1);
        low + self.next_u64() % span.max(1)
    }
}
