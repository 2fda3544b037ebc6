//! A header block as it comes, and with a checksum that fits, so that the rules behind it are reached.
#![no_main]

use felix_wal::format::header::{FileHeader, HEADER_BYTES};
use libfuzzer_sys::fuzz_target;

fn check(block: &[u8]) {
    if let Ok(header) = FileHeader::decode(block) {
        let mut again = Vec::new();
        header.encode(&mut again);
        assert_eq!(again, block[..HEADER_BYTES], "a header has one form");
    }
}

fuzz_target!(|input: &[u8]| {
    check(input);
    let mut block = input.to_vec();
    block.resize(HEADER_BYTES, 0);
    block[..8].copy_from_slice(b"FELIXDSK");
    let crc = crc32c::crc32c_append(crc32c::crc32c(&block[..12]), &block[16..]);
    block[12..16].copy_from_slice(&crc.to_le_bytes());
    check(&block);
});
