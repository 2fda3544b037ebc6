//! Entries of a WAL group: one, and a payload full of them.
#![no_main]

use felix_wal::format::entry::{Entries, Entry, Lsn};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok((entry, bytes)) = Entry::decode(input) {
        let mut again = Vec::new();
        entry.encode(&mut again);
        assert_eq!(again, input[..bytes], "an entry has one form");
        assert_eq!(Entry::decode(&again), Ok((entry, bytes)));
    }
    let count = input.first().copied().map_or(0, u32::from);
    let mut found = 0;
    for item in Entries::new(input, count, Lsn(u64::MAX - 3)) {
        if item.is_err() {
            return;
        }
        found += 1;
    }
    assert_eq!(found, count);
});
