//! A WAL group as it comes, and with checksums that fit.
#![no_main]

use felix_wal::format::entry::Entries;
use felix_wal::format::group::{GROUP_HEADER_BYTES, GroupHeader, GroupSeed};
use libfuzzer_sys::fuzz_target;

fn check(bytes: &[u8]) {
    let seed = GroupSeed::of(0);
    let Ok(header) = GroupHeader::decode(seed, bytes) else { return };
    let Ok(payload) = header.payload(seed, bytes) else { return };
    Entries::new(payload, header.entry_count, header.first_lsn).for_each(drop);
    let mut again = bytes[..GROUP_HEADER_BYTES + payload.len()].to_vec();
    header.finish(seed, &mut again);
    assert_eq!(again[..GROUP_HEADER_BYTES + payload.len()], bytes[..GROUP_HEADER_BYTES + payload.len()]);
}

fuzz_target!(|input: &[u8]| {
    check(input);
    if input.len() < GROUP_HEADER_BYTES {
        return;
    }
    let mut bytes = input.to_vec();
    bytes[..4].copy_from_slice(b"FLXG");
    let payload = u32::from_le_bytes([bytes[60], bytes[61], bytes[62], bytes[63]]) as usize;
    let end = (GROUP_HEADER_BYTES + payload % 8_192).next_multiple_of(4_096);
    bytes[60..64].copy_from_slice(&((payload % 8_192) as u32).to_le_bytes());
    bytes.resize(end, 0);
    let body = crc32c::crc32c(&bytes[GROUP_HEADER_BYTES..]);
    bytes[12..16].copy_from_slice(&body.to_le_bytes());
    let head = crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), &bytes[12..GROUP_HEADER_BYTES]);
    bytes[8..12].copy_from_slice(&head.to_le_bytes());
    check(&bytes);
});
