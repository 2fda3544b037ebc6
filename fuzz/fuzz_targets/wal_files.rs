//! Index, meta, stored batch and keyring of any bytes, as they come and with checksums that fit: what is accepted says the
//! same again.
#![no_main]

use felix_wal::format::index::SegmentIndex;
use felix_wal::format::meta::ShardMeta;
use felix_wal::format::stored::StoredBatch;
use felix_wal::keyring::Keyring;
use libfuzzer_sys::fuzz_target;

fn index(bytes: &[u8]) {
    if let Ok(index) = SegmentIndex::decode(bytes) {
        assert_eq!(SegmentIndex::decode(&index.encode()).as_ref(), Ok(&index));
        for entry in index.sparse.entries() {
            assert!(index.sparse.place_of(entry.offset) <= entry.place);
        }
    }
}

fn meta(bytes: &[u8]) {
    if let Ok(meta) = ShardMeta::decode(bytes) {
        let mut again = Vec::new();
        meta.encode(&mut again);
        assert_eq!(ShardMeta::decode(&again), Ok(meta));
    }
}

fn framed(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"FxFr".to_vec();
    bytes.extend_from_slice(&1u16.to_le_bytes());
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), payload);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fuzz_target!(|input: &[u8]| {
    index(input);
    meta(input);
    index(&framed(1, input));
    meta(&framed(2, input));
    for sealed in [false, true] {
        if let Ok((batch, rest)) = StoredBatch::split_first(input, sealed) {
            assert_eq!(batch.bytes.len() + rest.len(), input.len());
        }
    }
    if let Ok(text) = std::str::from_utf8(input) {
        for text in [text.to_string(), format!("{text}crc {:08x}\n", crc32c::crc32c(text.as_bytes()))] {
            if let Ok(ring) = Keyring::parse(&text) {
                assert_eq!(ring.print(), text, "one form");
            }
        }
    }
});
