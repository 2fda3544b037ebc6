//! **What**: how long to wait before the next try: exponential with jitter.
//!
//! **Invariants**: the first try after a success is at once; then the bound doubles from 10 ms to 2 s, and the wait is
//! drawn between half the bound and the bound, so that clients of one broker do not come back together.
//!
//! **Never**: a clock; the caller adds the wait to its `now`.
//!
//! **See**: `engine/connections.rs`.

use crate::random::Jitter;

/// First bound: a broker that restarts needs about as long.
const FIRST_NS: u64 = 10_000_000;
/// Last bound: what a user may have to wait after an outage.
const LAST_NS: u64 = 2_000_000_000;

/// Failures in a row, and the wait they earn.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// It worked.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// It failed (again): wait this many nanoseconds.
    pub(crate) fn failed(&mut self, jitter: &mut Jitter) -> u64 {
        let bound = FIRST_NS.saturating_mul(1 << self.failures.min(16)).min(LAST_NS);
        self.failures = self.failures.saturating_add(1);
        jitter.between(bound / 2, bound)
    }

    /// Failures in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_repeat_with_the_seed() {
        let run = || {
            let (mut backoff, mut jitter) = (Backoff::default(), Jitter::new(7));
            (0..40).map(|_| backoff.failed(&mut jitter)).collect::<Vec<_>>()
        };
        let waits = run();
        assert_eq!(waits, run());
        for (i, wait) in waits.iter().enumerate() {
            let bound = FIRST_NS.saturating_mul(1 << i.min(16)).min(LAST_NS);
            assert!((bound / 2..=bound).contains(wait), "{i}: {wait}");
        }
    }
}
