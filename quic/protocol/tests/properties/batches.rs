//! Batches: what is built is read; filters keep exactly what matches; every flipped bit is found.

use crate::make::{self, OwnedRecord};
use felix_protocol::batch::{BatchKind, Compression, StampedHeader, put_stamped_tlvs};
use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, PushError, RecordToPublish};
use felix_protocol::batch_view::{BatchError, BatchView, BodyView, Record, headers};
use felix_protocol::derive::{DeriveScratch, Derived, derive};
use felix_protocol::ids::{ProducerEpoch, ProducerId, Sequence, ShardId, StreamId};
use felix_protocol::limits::*;
use felix_protocol::position::{Epoch, Lineage, Offset};
use felix_protocol::time::Timestamp;
use proptest::collection::vec;
use proptest::prelude::*;

fn stamp() -> impl Strategy<Value = ProducerStamp> {
    any::<(u64, u32, u32)>().prop_map(|(producer, epoch, base)| ProducerStamp {
        producer: ProducerId(producer),
        epoch: ProducerEpoch(epoch),
        base_sequence: Sequence(u64::from(base)),
    })
}

fn compression() -> impl Strategy<Value = Compression> {
    prop_oneof![Just(Compression::None), Just(Compression::Lz4), Just(Compression::Zstd)]
}

/// Puts a header before and TLVs behind a body.
pub fn whole(body: &[u8], tlvs: &[u8]) -> Vec<u8> {
    let mut section = Vec::new();
    let tlv_bytes = put_stamped_tlvs(&mut section, tlvs);
    let view = BodyView::parse(body).unwrap();
    let mut header = StampedHeader {
        batch_bytes: (STAMPED_HEADER_BYTES + body.len() + section.len()) as u32,
        kind: BatchKind::Data,
        flags: 0,
        offset_count: view.record_count,
        stream: StreamId(7),
        shard: ShardId(900),
        epoch: Epoch(4),
        lineage: Lineage(3),
        tlv_bytes,
        base_offset: Offset(1_000),
        append_time: Timestamp(5),
        durable_end: Offset(990),
        chain: 0,
    };
    header.link(1, view.crc);
    [&header.encode()[..], body, &section].concat()
}

fn values_of(records: &[OwnedRecord]) -> Vec<u8> {
    let plain = make::build(records, ProducerStamp::default(), Compression::None);
    BodyView::parse(&plain).unwrap().values.to_vec()
}

fn check_record(read: &Record<'_, '_>, wanted: &OwnedRecord, base: Timestamp) -> Result<(), TestCaseError> {
    prop_assert_eq!(read.key, wanted.key.as_deref());
    prop_assert_eq!(read.value, &wanted.value[..]);
    prop_assert_eq!((read.ttl_ms, read.tombstone), (wanted.ttl_ms, wanted.tombstone));
    prop_assert_eq!(read.time, wanted.time.max(base));
    let pairs: Vec<(&str, &[u8])> = headers(read.headers).collect::<Result<_, _>>().unwrap();
    let wanted: Vec<(&str, &[u8])> = wanted.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
    prop_assert_eq!(pairs, wanted);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_is_built_is_read(records in vec(make::record(), 1..30), stamp in stamp(), how in compression()) {
        let body = make::build(&records, stamp, how);
        let view = BodyView::parse(&body).unwrap();
        view.check_publish().unwrap();
        prop_assert_eq!((view.producer, view.producer_epoch), (stamp.producer, stamp.epoch));
        prop_assert_eq!((view.base_sequence, view.base_time), (stamp.base_sequence, records[0].time));
        let values = values_of(&records);
        prop_assert_eq!(view.values_bytes_raw as usize, values.len());
        let read: Vec<_> = view.records(&values).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(read.len(), records.len());
        for (number, (read, wanted)) in read.iter().zip(&records).enumerate() {
            prop_assert_eq!(read.offset_delta as usize, number);
            check_record(read, wanted, records[0].time)?;
        }
        let batch = whole(&body, b"");
        BatchView::parse(&batch).unwrap().check().unwrap();
    }

    #[test]
    fn derive_keeps_exactly_what_matches(
        records in vec(make::record(), 1..30),
        how in compression(),
        masks in any::<[u32; 2]>(),
        tlvs in any::<bool>(),
    ) {
        let tlvs: &[u8] = if tlvs { &[0x11, 0, 1, 0, 9] } else { &[] };
        let original = whole(&make::build(&records, ProducerStamp::default(), how), tlvs);
        let values = values_of(&records);
        let mut bytes = original.clone();
        let mut scratch = DeriveScratch::default();
        let mut left: Vec<u32> = (0..records.len() as u32).collect();
        // A second filter works on what the first one left.
        for mask in masks {
            let view = BatchView::parse(&bytes).unwrap();
            let stays = |delta: u32| mask & 1 << (delta % 32) != 0;
            let mut out = b"before".to_vec();
            let mut asked = Vec::new();
            let outcome = derive(&view, |entry| {
                asked.push(entry.offset_delta);
                stays(entry.offset_delta)
            }, &mut scratch, &mut out).unwrap();
            prop_assert_eq!(&asked, &left, "asked once per record that is still in, in order");
            let kept: Vec<u32> = left.iter().copied().filter(|delta| stays(*delta)).collect();
            let expected = match (kept.is_empty(), kept.len() == left.len()) {
                (true, _) => Derived::Nothing,
                (false, true) => Derived::All,
                (false, false) => Derived::Some,
            };
            prop_assert_eq!(outcome, expected);
            if outcome != Derived::Some {
                prop_assert_eq!(&out, b"before");
                if outcome == Derived::Nothing {
                    break;
                }
                continue;
            }
            prop_assert_eq!(&out[..6], b"before");
            bytes = out.split_off(6);
            left = kept;
            let view = BatchView::parse(&bytes).unwrap();
            view.check().unwrap();
            let first = BatchView::parse(&original).unwrap();
            prop_assert!(view.header.is_derived());
            prop_assert_eq!(view.tlvs, tlvs);
            let mut header = view.header;
            (header.flags, header.batch_bytes) = (0, first.header.batch_bytes);
            prop_assert_eq!(header, first.header, "only flag and length may differ");
            let compressed = view.body.compression != Compression::None;
            if compressed {
                prop_assert_eq!(view.body.values, first.body.values);
            }
            let given = if compressed { &values[..] } else { view.body.values };
            let read: Vec<_> = view.body.records(given).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(read.iter().map(|it| it.offset_delta).collect::<Vec<_>>(), left.clone());
            for read in &read {
                check_record(read, &records[read.offset_delta as usize], records[0].time)?;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_flipped_bit_is_found(records in vec(make::record(), 1..4), how in compression(), tlvs in any::<bool>()) {
        let tlvs: &[u8] = if tlvs { &[0x11, 0, 1, 0, 9] } else { &[] };
        let mut batch = whole(&make::build(&records, ProducerStamp::default(), how), tlvs);
        let body_end = batch.len() - BatchView::parse(&batch).unwrap().header.tlv_bytes as usize;
        for bit in 0..batch.len() * 8 {
            let at = bit / 8;
            batch[at] ^= 1 << (bit % 8);
            let found = BatchView::parse(&batch).and_then(|view| view.check());
            prop_assert!(found.is_err(), "bit {} went unseen", bit);
            if at < STAMPED_HEADER_BYTES {
                let by_header = matches!(found, Err(BatchError::HeaderChecksum { .. }));
                prop_assert!(by_header, "bit {}: {:?}", bit, found);
            } else if at >= body_end {
                let by_tlvs = matches!(found, Err(BatchError::TlvChecksum { .. }));
                prop_assert!(by_tlvs, "bit {}: {:?}", bit, found);
            }
            batch[at] ^= 1 << (bit % 8);
        }
        BatchView::parse(&batch).unwrap().check().unwrap();
    }

    #[test]
    fn every_flipped_bit_of_a_published_body_is_found(records in vec(make::record(), 1..4), how in compression()) {
        let mut body = make::build(&records, ProducerStamp::default(), how);
        for bit in 0..body.len() * 8 {
            body[bit / 8] ^= 1 << (bit % 8);
            let found = BodyView::parse(&body).and_then(|view| view.check_publish());
            prop_assert!(found.is_err(), "bit {} went unseen", bit);
            body[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

/// Random bytes do not compress: the compressor's output is larger, and the batch is full.
#[test]
fn values_that_grow_under_compression_are_stored_plain() {
    let mut builder = BatchBuilder::new();
    let value = vec![0u8; BATCH_BODY_BYTES_MAX - BODY_HEADER_BYTES - 51];
    builder.push(&RecordToPublish { value: &value, ..Default::default() }).unwrap();
    let grown = vec![1u8; BATCH_BODY_BYTES_MAX];
    let mut body = Vec::new();
    builder.finish_with(ProducerStamp::default(), Compression::Lz4, &grown, &mut body);
    let view = BodyView::parse(&body).unwrap();
    view.check_publish().unwrap();
    assert_eq!((view.compression, view.values), (Compression::None, &value[..]));
    assert!(builder.is_empty());
}

#[test]
fn the_largest_batch_fits_a_frame() {
    let mut builder = BatchBuilder::new();
    let record = RecordToPublish { value: b"", ..Default::default() };
    for _ in 0..BATCH_RECORDS_MAX {
        builder.push(&record).unwrap();
    }
    assert_eq!(builder.push(&record), Err(PushError::Full));
    let mut body = Vec::new();
    builder.finish(ProducerStamp::default(), &mut body);
    BodyView::parse(&body).unwrap().check_publish().unwrap();
    let value = vec![0u8; BATCH_BODY_BYTES_MAX - BODY_HEADER_BYTES - 51];
    builder.push(&RecordToPublish { value: &value, ..Default::default() }).unwrap();
    body.clear();
    builder.finish(ProducerStamp::default(), &mut body);
    let mut frame = Vec::new();
    felix_protocol::frame::Frame::Publish { body: &body }.encode(0, &mut frame);
    assert!(frame.len() <= FRAME_BYTES_MAX);
}

#[test]
fn a_tombstone_needs_a_key() {
    let record = RecordToPublish { tombstone: true, ..Default::default() };
    assert_eq!(BatchBuilder::new().push(&record), Err(PushError::TombstoneWithoutKey));
}
