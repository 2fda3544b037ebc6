//! **What**: the latest offset of each key in a range, for compaction.
//!
//! **Invariants**: keys are compared whole, so two keys never count as one. It says what it holds; when that is
//! enough, the range ends there and the rest waits for the next pass.
//!
//! **Never**: a hash in place of a key: a collision, which a client could make, would lose a record.
//!
//! **See**: `compact.rs`.

use std::collections::HashMap;

/// Bytes that an entry costs beside its key: box, offset, and the table's spare room.
const ENTRY_BYTES: usize = 48;

/// Keys and their latest offsets.
#[derive(Debug, Default)]
pub(crate) struct LatestMap {
    latest: HashMap<Box<[u8]>, u64>,
    bytes: usize,
}

impl LatestMap {
    /// Bytes it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Notes a record.
    pub(crate) fn note(&mut self, key: &[u8], offset: u64) {
        match self.latest.get_mut(key) {
            Some(held) => *held = offset.max(*held),
            None => {
                self.bytes += key.len() + ENTRY_BYTES;
                self.latest.insert(key.into(), offset);
            }
        }
    }

    /// A later record of the key is known.
    pub(crate) fn is_outdated(&self, key: &[u8], offset: u64) -> bool {
        self.latest.get(key).is_some_and(|latest| offset < *latest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_knows_the_latest_and_what_it_costs() {
        let mut map = LatestMap::default();
        map.note(b"a", 1);
        map.note(b"b", 2);
        let bytes = map.bytes();
        map.note(b"a", 4);
        assert_eq!(map.bytes(), bytes);
        assert!(map.is_outdated(b"a", 1) && !map.is_outdated(b"a", 4) && !map.is_outdated(b"c", 0));
    }
}
