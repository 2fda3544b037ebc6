//! Filters, one after the other, on any body that a broker would append. The last eight bytes of the input choose the
//! records, so that golden bodies are seeds as they are.
#![no_main]

use felix_protocol::batch::{BatchKind, StampedHeader};
use felix_protocol::batch_view::{BatchView, BodyView};
use felix_protocol::derive::{DeriveScratch, Derived, derive};
use felix_protocol::limits::STAMPED_HEADER_BYTES;
use felix_protocol::position::Offset;
use libfuzzer_sys::fuzz_target;

fn stamp(body: &BodyView<'_>) -> Vec<u8> {
    let mut header = StampedHeader {
        batch_bytes: (STAMPED_HEADER_BYTES + body.bytes.len()) as u32,
        kind: BatchKind::Data,
        flags: 0,
        offset_count: body.record_count,
        stream: Default::default(),
        shard: Default::default(),
        epoch: Default::default(),
        lineage: Default::default(),
        tlv_bytes: 0,
        base_offset: Offset(1_000),
        append_time: Default::default(),
        durable_end: Offset(0),
        chain: 0,
    };
    header.link(0, body.crc);
    [&header.encode()[..], body.bytes].concat()
}

/// Offset deltas of the records that are in a batch.
fn records(batch: &BatchView<'_>) -> Vec<u32> {
    let mut list = Vec::new();
    let outcome = derive(
        batch,
        |entry| {
            list.push(entry.offset_delta);
            false
        },
        &mut DeriveScratch::default(),
        &mut Vec::new(),
    );
    assert_eq!(outcome, Ok(Derived::Nothing));
    list
}

fuzz_target!(|input: &[u8]| {
    let mask = input.last_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let mut bytes = input.to_vec();
    if bytes.len() > 4 {
        let crc = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
    }
    let Ok(body) = BodyView::parse(&bytes) else { return };
    if body.check_publish().is_err() {
        return;
    }
    let mut batch = stamp(&body);
    let mut scratch = DeriveScratch::default();
    for mask in [mask, mask.rotate_left(13)] {
        let view = BatchView::parse(&batch).expect("we made it");
        view.check().expect("we made it");
        let stays = |delta: u32| mask >> (delta % 64) & 1 != 0;
        let before = records(&view);
        let wanted: Vec<u32> = before.iter().copied().filter(|delta| stays(*delta)).collect();
        let mut out = Vec::new();
        match derive(&view, |entry| stays(entry.offset_delta), &mut scratch, &mut out).expect("it was checked") {
            Derived::All => assert_eq!(wanted, before),
            Derived::Nothing => assert!(wanted.is_empty()),
            Derived::Some => {
                let derived = BatchView::parse(&out).expect("we made it");
                derived.check().expect("a derived batch is a batch");
                assert!(derived.header.is_derived());
                assert_eq!(derived.header.range(), view.header.range());
                assert_eq!(records(&derived), wanted);
                batch = out;
            }
        }
    }
});
