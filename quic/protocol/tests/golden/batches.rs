//! Bodies and whole batches, read to exact records.

use crate::stored;
use felix_protocol::batch::{BatchKind, Compression, StampedHeader, put_stamped_tlvs};
use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::batch_view::{BatchView, BodyView, headers};
use felix_protocol::codec::Writer;
use felix_protocol::derive::{DeriveScratch, Derived, derive};
use felix_protocol::ids::{ProducerEpoch, ProducerId, Sequence, ShardId, StreamId};
use felix_protocol::limits::STAMPED_HEADER_BYTES;
use felix_protocol::position::{Epoch, Lineage, Offset};
use felix_protocol::time::Timestamp;

const TIME: Timestamp = Timestamp(1_700_000_000_000_000_000);

/// 24 times "x" as an LZ4 block: one literal, a match of 18 at distance 1, five literals.
const LZ4: &[u8] = &[0x1e, b'x', 1, 0, 0x50, b'x', b'x', b'x', b'x', b'x'];
/// 24 times "x" as a Zstandard frame: single segment of 24 bytes, one last RLE block.
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd, 0x20, 24, 0xc3, 0, 0, b'x'];
const RAW: &[u8] = &[b'x'; 24];

/// A record as text, so that an expectation is one line.
type Line = &'static str;

struct Case {
    name: &'static str,
    records: &'static [RecordToPublish<'static>],
    stamp: ProducerStamp,
    stored: (Compression, &'static [u8]),
    expected: &'static [Line],
}

const PLAIN: RecordToPublish<'static> =
    RecordToPublish { key: None, value: b"", headers: &[], ttl_ms: None, tombstone: false, time: TIME };
const ANONYMOUS: ProducerStamp =
    ProducerStamp { producer: ProducerId(0), epoch: ProducerEpoch(0), base_sequence: Sequence(0) };
const EIGHT: RecordToPublish<'static> = RecordToPublish { value: b"xxxxxxxx", ..PLAIN };
const EIGHT_KEYED: [RecordToPublish<'static>; 3] = [
    RecordToPublish { key: Some(b"a"), ..EIGHT },
    RecordToPublish { key: Some(b"b"), ttl_ms: Some(1), ..EIGHT },
    RecordToPublish { key: Some(b"c"), ..EIGHT },
];

const CASES: &[Case] = &[
    Case {
        name: "plain",
        records: &[
            RecordToPublish { value: b"one", ..PLAIN },
            RecordToPublish { value: b"", ..PLAIN },
            RecordToPublish { value: b"three", time: Timestamp(TIME.0 + 1_000_000), ..PLAIN },
        ],
        stamp: ANONYMOUS,
        stored: (Compression::None, b""),
        expected: &["+0 0ns - = one", "+1 0ns - = ", "+2 1000000ns - = three"],
    },
    Case {
        name: "keyed",
        records: &[
            RecordToPublish { key: Some(b"XNAS.AAPL"), value: b"1", ..PLAIN },
            RecordToPublish { key: Some(b""), value: b"2", ..PLAIN },
            RecordToPublish { key: None, value: b"3", ..PLAIN },
        ],
        stamp: ProducerStamp { producer: ProducerId(77), epoch: ProducerEpoch(2), base_sequence: Sequence(1 << 40) },
        stored: (Compression::None, b""),
        expected: &["+0 0ns XNAS.AAPL = 1", "+1 0ns  = 2", "+2 0ns - = 3"],
    },
    Case {
        name: "ttl",
        records: &[
            RecordToPublish { value: b"short", ttl_ms: Some(300), ..PLAIN },
            RecordToPublish { value: b"for ever", ..PLAIN },
        ],
        stamp: ANONYMOUS,
        stored: (Compression::None, b""),
        expected: &["+0 0ns - ttl 300 = short", "+1 0ns - = for ever"],
    },
    Case {
        name: "headers",
        records: &[RecordToPublish {
            key: Some(b"k"),
            value: b"v",
            headers: &[("source", b"feed-a"), ("", b""), ("e\u{301}", &[0x41; 200])],
            ..PLAIN
        }],
        stamp: ANONYMOUS,
        stored: (Compression::None, b""),
        expected: &["+0 0ns k [source: 6, : 0, e\u{301}: 200] = v"],
    },
    Case {
        name: "tombstone",
        records: &[
            RecordToPublish { key: Some(b"gone"), tombstone: true, ..PLAIN },
            RecordToPublish { key: Some(b"here"), value: b"v", ..PLAIN },
        ],
        stamp: ANONYMOUS,
        stored: (Compression::None, b""),
        expected: &["+0 0ns gone deleted = ", "+1 0ns here = v"],
    },
    Case {
        name: "lz4",
        records: &EIGHT_KEYED,
        stamp: ANONYMOUS,
        stored: (Compression::Lz4, LZ4),
        expected: &["+0 0ns a = xxxxxxxx", "+1 0ns b ttl 1 = xxxxxxxx", "+2 0ns c = xxxxxxxx"],
    },
    Case {
        name: "zstd",
        records: &EIGHT_KEYED,
        stamp: ANONYMOUS,
        stored: (Compression::Zstd, ZSTD),
        expected: &["+0 0ns a = xxxxxxxx", "+1 0ns b ttl 1 = xxxxxxxx", "+2 0ns c = xxxxxxxx"],
    },
];

/// A batch that was derived from a case: the keys that stay, and the records left.
const DERIVED: &[(&str, &str, &[&str], &[Line])] = &[
    ("derived-keyed", "keyed", &["XNAS.AAPL"], &["+0 0ns XNAS.AAPL = 1"]),
    ("derived-tombstone", "tombstone", &["here"], &["+1 0ns here = v"]),
    ("derived-lz4", "lz4", &["b"], &["+1 0ns b ttl 1 = xxxxxxxx"]),
    ("derived-zstd", "zstd", &["a", "c"], &["+0 0ns a = xxxxxxxx", "+2 0ns c = xxxxxxxx"]),
];

pub fn body(name: &str) -> Vec<u8> {
    let case = CASES.iter().find(|case| case.name == name).expect("a case of this name");
    let mut builder = BatchBuilder::new();
    for record in case.records {
        builder.push(record).unwrap();
    }
    let mut out = Vec::new();
    builder.finish_with(case.stamp, case.stored.0, case.stored.1, &mut out);
    out
}

fn stamp(body: &[u8], tlvs: &[u8]) -> Vec<u8> {
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
        append_time: Timestamp(TIME.0 + 500_000),
        durable_end: Offset(990),
        chain: 0,
    };
    header.link(0x1122_3344_5566_7788, view.crc);
    [&header.encode()[..], body, &section].concat()
}

pub fn batch(name: &str) -> Vec<u8> {
    if let Some(of) = name.strip_suffix("-stamped-tlvs") {
        let mut tlvs = Vec::new();
        tlvs.put_u16(felix_protocol::batch::STAMPED_TLV_HOPS);
        tlvs.put_bytes16(&[1]);
        return stamp(&body(of), &tlvs);
    }
    let Some((_, of, keys, _)) = DERIVED.iter().find(|(it, ..)| *it == name) else { return stamp(&body(name), &[]) };
    let whole = batch(of);
    let mut out = Vec::new();
    let outcome = derive(
        &BatchView::parse(&whole).unwrap(),
        |entry| keys.iter().any(|key| entry.key == Some(key.as_bytes())),
        &mut DeriveScratch::default(),
        &mut out,
    );
    assert_eq!(outcome, Ok(Derived::Some));
    out
}

fn batch_cases() -> Vec<(&'static str, &'static [Line])> {
    let whole = CASES.iter().map(|case| (case.name, case.expected));
    let derived = DERIVED.iter().map(|(name, _, _, expected)| (*name, *expected));
    whole.chain(derived).chain([("plain-stamped-tlvs", CASES[0].expected)]).collect()
}

pub fn names() -> Vec<String> {
    let bodies = CASES.iter().map(|case| format!("body-{}", case.name));
    bodies.chain(batch_cases().into_iter().map(|(name, _)| format!("batch-{name}"))).collect()
}

fn lines(body: &BodyView<'_>) -> Vec<String> {
    let values = if body.compression == Compression::None { body.values } else { RAW };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    body.records(values)
        .map(|record| {
            let record = record.unwrap();
            let delta = record.time.0 - body.base_time.0;
            let mut line = format!("+{} {delta}ns {}", record.offset_delta, record.key.map_or("-".into(), text));
            if let Some(ttl) = record.ttl_ms {
                line += &format!(" ttl {ttl}");
            }
            if record.tombstone {
                line += " deleted";
            }
            if !record.headers.is_empty() {
                let pairs = headers(record.headers).map(|pair| {
                    let (name, value) = pair.unwrap();
                    format!("{name}: {}", value.len())
                });
                line += &format!(" [{}]", pairs.collect::<Vec<_>>().join(", "));
            }
            line + " = " + &text(record.value)
        })
        .collect()
}

#[test]
fn bodies_are_read_and_written() {
    for case in CASES {
        let stored = stored(&format!("body-{}", case.name), &body(case.name));
        assert_eq!(body(case.name), stored, "{} is written differently", case.name);
        let view = BodyView::parse(&stored).unwrap();
        view.check_publish().unwrap();
        assert_eq!(lines(&view), case.expected, "{}", case.name);
        assert_eq!(view.compression, case.stored.0);
        assert_eq!(
            (view.producer, view.producer_epoch, view.base_sequence),
            (case.stamp.producer, case.stamp.epoch, case.stamp.base_sequence)
        );
    }
}

#[test]
fn batches_are_read_and_written() {
    for (name, expected) in batch_cases() {
        let made = batch(name);
        let stored = stored(&format!("batch-{name}"), &made);
        assert_eq!(made, stored, "{name} is written differently");
        let view = BatchView::parse(&stored).unwrap();
        view.check().unwrap();
        assert_eq!(lines(&view.body), expected, "{name}");
        assert_eq!(view.header.is_derived(), name.starts_with("derived"), "{name}");
        assert_eq!((view.header.stream, view.header.shard), (StreamId(7), ShardId(900)), "{name}");
        assert_eq!((view.header.epoch, view.header.lineage), (Epoch(4), Lineage(3)), "{name}");
        let whole = DERIVED.iter().find(|(it, ..)| *it == name).map_or(name, |(_, of, ..)| of);
        let records = CASES.iter().find(|case| case.name == whole.trim_end_matches("-stamped-tlvs")).unwrap().records;
        assert_eq!(view.header.range().count(), records.len() as u64, "{name} covers the original range");
        assert_eq!((view.header.base_offset, view.header.durable_end), (Offset(1_000), Offset(990)), "{name}");
        assert_eq!(view.header.append_time, Timestamp(TIME.0 + 500_000), "{name}");
    }
}

#[test]
fn derived_batches_keep_the_chain() {
    for (name, of, ..) in DERIVED {
        let (derived, whole) = (batch(name), batch(of));
        let (derived, whole) = (BatchView::parse(&derived).unwrap(), BatchView::parse(&whole).unwrap());
        assert_eq!(derived.header.chain, whole.header.chain, "{name}");
        assert_eq!(derived.body.base_sequence, whole.body.base_sequence, "{name}");
    }
}
