//! **What**: which shard a key belongs to: a range lookup of its hash, never modulo (DECISIONS 11).
//!
//! **Invariants**: the ranges of a stream's shards cover the whole hash space without overlap; `range_start` of the
//! first is 0 and they rise strictly.
//!
//! **Never**: a change of seed or hash: keys would move.
//!
//! **See**: `frame.rs` (Route).

use crate::ids::ShardIndex;

/// Seed of the key hash, fixed for ever.
pub const KEY_HASH_SEED: u64 = 0x0046_454c_4958_0001;

/// XXH3-64 of a key with the fixed seed.
#[inline]
pub fn key_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(key, KEY_HASH_SEED)
}

/// Start of shard `index`'s range when `count` shards divide the hash space evenly.
pub fn even_range_start(index: ShardIndex, count: u32) -> u64 {
    ((u128::from(index.0) << 64) / u128::from(count.max(1))) as u64
}

/// Index of the range that holds `hash`. `starts` rises and begins with 0. None only if it is empty.
pub fn find_range(starts: &[u64], hash: u64) -> Option<usize> {
    starts.partition_point(|start| *start <= hash).checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_ranges_cover_everything() {
        for count in [1u32, 2, 3, 7, 1_024] {
            let starts: Vec<u64> = (0..count).map(|i| even_range_start(ShardIndex(i), count)).collect();
            assert_eq!(starts[0], 0);
            assert!(starts.windows(2).all(|pair| pair[0] < pair[1]));
            assert_eq!(find_range(&starts, 0), Some(0));
            assert_eq!(find_range(&starts, u64::MAX), Some(count as usize - 1));
            for (i, start) in starts.iter().enumerate() {
                assert_eq!(find_range(&starts, *start), Some(i));
                if *start > 0 {
                    assert_eq!(find_range(&starts, start - 1), Some(i - 1));
                }
            }
        }
        assert_eq!(find_range(&[], 5), None);
    }
}
