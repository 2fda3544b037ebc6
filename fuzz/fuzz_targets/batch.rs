//! A body as a broker checks it and a batch as a reader does: as they come, and with checksums that fit, so that the
//! rules behind the checksums are reached.
#![no_main]

use felix_protocol::batch_view::{BatchView, BodyView, headers};
use felix_protocol::limits::STAMPED_HEADER_BYTES;
use libfuzzer_sys::fuzz_target;

fn read(body: &BodyView<'_>, checked: bool) {
    let mut count = 0;
    for entry in body.entries() {
        if entry.is_err() {
            assert!(!checked, "a checked body has a bad entry");
            break;
        }
        count += 1;
    }
    assert!(!checked || count == body.record_count);
    for record in body.records(body.values).flatten() {
        headers(record.headers).for_each(drop);
    }
}

fn publish(bytes: &[u8]) {
    if let Ok(body) = BodyView::parse(bytes) {
        read(&body, body.check_publish().is_ok());
    }
}

fn view(bytes: &[u8]) {
    if let Ok(batch) = BatchView::parse(bytes) {
        read(&batch.body, batch.check().is_ok());
    }
}

fn put_crc(bytes: &mut [u8], at: usize, crc: u32) {
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

fuzz_target!(|input: &[u8]| {
    publish(input);
    view(input);
    let mut bytes = input.to_vec();
    if bytes.len() > 4 {
        let crc = crc32c::crc32c(&bytes[4..]);
        put_crc(&mut bytes, 0, crc);
        publish(&bytes);
    }
    bytes.copy_from_slice(input);
    if bytes.len() > STAMPED_HEADER_BYTES + 4 {
        let tlv_bytes = u32::from_le_bytes(bytes[44..48].try_into().unwrap()) as usize;
        let body_end = bytes.len().saturating_sub(tlv_bytes).max(STAMPED_HEADER_BYTES + 4);
        let crc = crc32c::crc32c(&bytes[STAMPED_HEADER_BYTES + 4..body_end]);
        put_crc(&mut bytes, STAMPED_HEADER_BYTES, crc);
        if bytes.len() >= body_end + 4 {
            let crc = crc32c::crc32c(&bytes[body_end + 4..]);
            put_crc(&mut bytes, body_end, crc);
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), &bytes[12..STAMPED_HEADER_BYTES]);
        put_crc(&mut bytes, 8, crc);
        view(&bytes);
    }
});
