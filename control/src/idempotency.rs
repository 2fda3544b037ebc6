//! **What**: the outcomes of the last commands that carried an idempotency key.
//!
//! **Invariants**: at most `IDEMPOTENCY_KEYS_MAX` keys, the oldest goes first; a key keeps its first outcome, refusals
//! included, until it goes.
//!
//! **Never**: expiry by time: two replicas would forget at different entries.
//!
//! **See**: `state.rs`, which asks before it applies.

use crate::limits::IDEMPOTENCY_KEYS_MAX;
use crate::state::{ProducerBlock, Refused};
use felix_protocol::metadata::Reply;
use std::collections::{BTreeMap, VecDeque};

/// What became of the first command with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    /// [`crate::command::Entry::fingerprint`] of that command.
    pub(crate) fingerprint: u64,
    /// Metadata version at which it was applied.
    pub(crate) version: u64,
    /// Its outcome.
    pub(crate) outcome: Result<Reply, Refused>,
    /// Its producer ids.
    pub(crate) producers: Option<ProducerBlock>,
}

/// A first-in first-out table of outcomes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Idempotency {
    order: VecDeque<u128>,
    by_key: BTreeMap<u128, Remembered>,
}

impl Idempotency {
    pub(crate) fn find(&self, key: u128) -> Option<&Remembered> {
        self.by_key.get(&key)
    }

    /// Keeps the outcome of a key that is not there yet.
    pub(crate) fn remember(&mut self, key: u128, remembered: Remembered) {
        if self.order.len() == IDEMPOTENCY_KEYS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_key.remove(&oldest);
        }
        let former = self.by_key.insert(key, remembered);
        assert!(former.is_none(), "the first outcome of a key stays");
        self.order.push_back(key);
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u128, &Remembered)> {
        self.order.iter().filter_map(|key| self.by_key.get(key).map(|it| (*key, it)))
    }

    pub(crate) fn count(&self) -> usize {
        self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_key_goes_first() {
        let mut table = Idempotency::default();
        let outcome =
            |version| Remembered { fingerprint: 1, version, outcome: Ok(Reply::Done { version }), producers: None };
        for version in 1..=IDEMPOTENCY_KEYS_MAX as u64 + 2 {
            table.remember(u128::from(version), outcome(version));
        }
        assert_eq!(table.count(), IDEMPOTENCY_KEYS_MAX);
        assert_eq!(table.iter().count(), IDEMPOTENCY_KEYS_MAX);
        assert_eq!(table.find(2), None);
        assert_eq!(table.find(3), Some(&outcome(3)));
        assert_eq!(table.iter().next().map(|it| it.0), Some(3));
    }
}
