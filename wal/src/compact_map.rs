//! **What**: the latest offset of each key in a range, for compaction.
//!
//! **Invariants**: keys are compared whole, so two keys never count as one. Its memory is bounded; when it is full, the
//! range ends there and the rest waits for the next pass.
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
    /// Notes a record. False: it is full, the key was not taken.
    pub(crate) fn note(&mut self, key: &[u8], offset: u64, bytes_max: usize) -> bool {
        if let Some(held) = self.latest.get_mut(key) {
            *held = offset.max(*held);
            return true;
        }
        if self.bytes + key.len() + ENTRY_BYTES > bytes_max && !self.latest.is_empty() {
            return false;
        }
        self.bytes += key.len() + ENTRY_BYTES;
        self.latest.insert(key.into(), offset);
        true
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
    fn it_is_bounded_and_still_learns_of_keys_it_has() {
        let mut map = LatestMap::default();
        assert!(map.note(b"a", 1, 120));
        assert!(map.note(b"b", 2, 120));
        assert!(!map.note(b"c", 3, 120));
        assert!(map.note(b"a", 4, 120));
        assert!(map.is_outdated(b"a", 1) && !map.is_outdated(b"a", 4) && !map.is_outdated(b"c", 0));
    }
}
