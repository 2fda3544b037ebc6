//! PROTOCOL.md says what the code does: numbers, limits, test vectors and worked examples are compared with it.
//! To print the blocks that the document should hold: `FELIX_PRINT=1 cargo test -p felix-protocol --test document --
//! --nocapture`.

use felix_protocol::batch::{BatchKind, Compression, StampedHeader};
use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::batch_view::BatchView;
use felix_protocol::derive::{DeriveScratch, Derived, derive};
use felix_protocol::envelope::FrameType;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::*;
use felix_protocol::ids::*;
use felix_protocol::limits::*;
use felix_protocol::names::StreamName;
use felix_protocol::position::{Epoch, Lineage, Offset, OffsetRange};
use felix_protocol::routing::{KEY_HASH_SEED, even_range_start, find_range, key_hash};
use felix_protocol::time::Timestamp;
use felix_protocol::version::feature;
use std::fmt::Write;

const DOCUMENT: &str = include_str!("../../../PROTOCOL.md");
const LIMITS_SOURCE: &str = include_str!("../src/limits.rs");

#[track_caller]
fn expect(block: &str) {
    if std::env::var_os("FELIX_PRINT").is_some() {
        return print!("<<<\n{block}>>>\n");
    }
    assert!(DOCUMENT.contains(block), "PROTOCOL.md does not hold this:\n{block}");
}

/// Rows of the table below a heading: first two cells of each.
fn table(heading: &str) -> Vec<(String, String)> {
    let after = DOCUMENT.split_once(heading).unwrap_or_else(|| panic!("no heading {heading}")).1;
    after
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_string());
            (cells.next().unwrap(), cells.next().unwrap())
        })
        .collect()
}

#[test]
fn every_error_code_stands_there() {
    for code in ErrorCode::ALL {
        expect(&format!("| {} | {} | {:?} |", code.number(), code.name(), code.class()));
    }
    assert_eq!(table("## 9. Errors").len(), ErrorCode::ALL.len(), "a row without a code");
}

#[test]
fn every_frame_type_stands_there() {
    for frame_type in FrameType::ALL {
        expect(&format!("| {} | {:?} |", *frame_type as u8, frame_type));
        expect(&format!("#### {:?} ({})", frame_type, *frame_type as u8));
    }
    assert_eq!(table("### 3.4 Frame types").len(), FrameType::ALL.len(), "a row without a frame type");
}

macro_rules! limits {
    ($($name:ident)*) => { [$((stringify!($name), $name as u64)),*] };
}

#[test]
fn every_limit_stands_there() {
    let known = limits!(
        ENVELOPE_BYTES ROUTE_BYTES FRAME_BYTES_MAX CONTROL_FRAME_BYTES_MAX TLV_BYTES_MAX STAMPED_HEADER_BYTES
        STAMPED_TLV_CRC_BYTES BODY_HEADER_BYTES BATCH_BODY_BYTES_MAX BATCH_RECORDS_MAX VALUES_BYTES_MAX KEY_BYTES_MAX
        HEADERS_BYTES_MAX HEADERS_MAX LABEL_BYTES_MAX STREAM_NAME_BYTES_MAX NAME_BYTES_MAX SETTINGS_BYTES_MAX
        PATTERN_BYTES_MAX PATTERN_TOKENS_MAX CLIENT_NAME_BYTES_MAX TOKEN_BYTES_MAX DETAIL_BYTES_MAX SHARDS_MAX
        LIST_PAGE_MAX ACKS_PER_FRAME_MAX CORES_MAX TTL_MS_MAX
    );
    let in_source: Vec<&str> =
        LIMITS_SOURCE.lines().filter_map(|line| line.strip_prefix("pub const ")?.split(':').next()).collect();
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, in_source, "this test and limits.rs name different limits");
    for (name, value) in known {
        expect(&format!("| `{name}` | {value} |"));
    }
    assert_eq!(table("## 10. Limits").len(), known.len(), "a row without a limit");
}

#[test]
fn feature_bits_stand_there() {
    for (bit, name) in
        [(feature::DATAGRAM, "DATAGRAM"), (feature::COMPRESSION, "COMPRESSION"), (feature::PRODUCERS, "PRODUCERS")]
    {
        expect(&format!("| {} | {name} |", bit.trailing_zeros()));
    }
    assert_eq!(feature::ALL, 7);
}

/// Bytes with a name per field.
fn annotate(bytes: &[u8], fields: &[(usize, &str)]) -> String {
    let mut text = String::new();
    let mut at = 0;
    for (count, name) in fields {
        let hex: Vec<String> = bytes[at..at + count].iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{at:>4}  {:<47}  {name}", hex.join(" ")).unwrap();
        at += count;
    }
    assert_eq!(at, bytes.len(), "fields do not add up");
    text
}

#[test]
fn hello_example() {
    let mut bytes = Vec::new();
    Frame::Hello(Hello {
        version_min: 1,
        version_max: 1,
        features: feature::ALL,
        cluster: None,
        client_name: "demo",
        token: b"",
    })
    .encode(0, &mut bytes);
    expect(&annotate(
        &bytes,
        &[
            (4, "frame_bytes 52"),
            (1, "version 1"),
            (1, "type 1 (Hello)"),
            (2, "flags 0"),
            (4, "request_id 0"),
            (2, "tlv_bytes 0"),
            (2, "reserved"),
            (1, "version_min 1"),
            (1, "version_max 1"),
            (2, "reserved"),
            (8, "features DATAGRAM, COMPRESSION, PRODUCERS"),
            (16, "cluster 0: any"),
            (2, "client_name, 4 bytes"),
            (4, "\"demo\""),
            (2, "token, 0 bytes"),
        ],
    ));
}

fn example_body() -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    let record = RecordToPublish {
        key: Some(b"XNAS.AAPL"),
        value: b"hello",
        time: Timestamp(1_700_000_000_000_000_000),
        ..Default::default()
    };
    builder.push(&record).unwrap();
    let mut body = Vec::new();
    builder.finish(ProducerStamp::default(), &mut body);
    body
}

fn example_header(batch_bytes: usize, offset_count: u32) -> StampedHeader {
    StampedHeader {
        batch_bytes: batch_bytes as u32,
        kind: BatchKind::Data,
        flags: 0,
        offset_count,
        stream: StreamId(7),
        shard: ShardId(9),
        epoch: Epoch(2),
        lineage: Lineage(1),
        tlv_bytes: 0,
        base_offset: Offset(1_000),
        append_time: Timestamp(1_700_000_000_000_500_000),
        durable_end: Offset(0),
        chain: 0,
    }
}

fn stamp(body: &[u8], offset_count: u32, chain_before: u64) -> Vec<u8> {
    let mut header = example_header(STAMPED_HEADER_BYTES + body.len(), offset_count);
    let crc = u32::from_le_bytes(body[..4].try_into().unwrap());
    header.link(chain_before, crc);
    let mut batch = header.encode().to_vec();
    batch.extend_from_slice(body);
    batch
}

const BODY_FIELDS: [(usize, &str); 22] = [
    (4, "body_crc"),
    (4, "body_bytes 83"),
    (1, "format 1"),
    (1, "compression 0: none"),
    (2, "flags 0"),
    (4, "record_count 1"),
    (4, "index_bytes 14"),
    (4, "values_bytes 5"),
    (4, "values_bytes_raw 5"),
    (4, "producer_epoch 0"),
    (8, "producer_id 0: anonymous"),
    (8, "base_sequence 0"),
    (8, "base_time 1700000000000000000"),
    (4, "key_id 0: not encrypted"),
    (4, "tlv_bytes 0"),
    (1, "index, record 0: flags KEY"),
    (1, "  offset_delta 0"),
    (1, "  time_delta_ns 0"),
    (1, "  key_bytes 9"),
    (9, "  key \"XNAS.AAPL\""),
    (1, "  value_bytes 5"),
    (5, "values: \"hello\""),
];

#[test]
fn body_and_batch_example() {
    let body = example_body();
    expect(&annotate(&body, &BODY_FIELDS));
    let batch = stamp(&body, 1, 0);
    BatchView::parse(&batch).unwrap().check().unwrap();
    expect(&annotate(
        &batch[..STAMPED_HEADER_BYTES],
        &[
            (4, "batch_bytes 163"),
            (1, "format 1"),
            (1, "kind 0: data"),
            (2, "flags 0"),
            (4, "header_crc"),
            (4, "offset_count 1"),
            (8, "stream_id 7"),
            (8, "shard_id 9"),
            (8, "epoch 2"),
            (4, "lineage 1"),
            (4, "tlv_bytes 0"),
            (8, "base_offset 1000"),
            (8, "append_time 1700000000000500000"),
            (8, "durable_end 0"),
            (8, "chain, after a chain of 0"),
        ],
    ));
    let prefix =
        deliver_prefix(SubscriptionId(42), 0, OffsetRange { from: Offset(1_000), to: Offset(1_001) }, batch.len());
    expect(&annotate(
        &prefix,
        &[
            (4, "frame_bytes 207"),
            (1, "version 1"),
            (1, "type 32 (Deliver)"),
            (2, "flags 0"),
            (4, "subscription 42"),
            (2, "tlv_bytes 0"),
            (2, "reserved"),
            (4, "kind 0: batch"),
            (8, "number 0"),
            (8, "covered from 1000"),
            (8, "covered to 1001; the 163 bytes of the batch follow"),
        ],
    ));
}

#[test]
fn publish_and_subscribe_examples() {
    let mut bytes = Vec::new();
    Frame::OpenChannel(OpenChannel {
        stream_name: StreamName::parse("acme/md/quotes").unwrap(),
        stream: None,
        shard_index: ShardIndex(0),
        flags: CHANNEL_ACKS,
        producer: ProducerId(0),
        producer_epoch: ProducerEpoch(0),
    })
    .encode(0, &mut bytes);
    expect(&annotate(
        &bytes,
        &[
            (4, "frame_bytes 57"),
            (1, "version 1"),
            (1, "type 20 (OpenChannel)"),
            (2, "flags 0"),
            (4, "request_id 0"),
            (2, "tlv_bytes 0"),
            (2, "reserved"),
            (2, "stream_name, 14 bytes"),
            (14, "\"acme/md/quotes\""),
            (8, "stream_id 0: not known yet"),
            (4, "shard_index 0"),
            (1, "flags ACKS"),
            (8, "producer_id 0: anonymous"),
            (4, "producer_epoch 0"),
        ],
    ));
    bytes.clear();
    Frame::Subscribe(Subscribe {
        stream_name: StreamName::parse("acme/md/quotes").unwrap(),
        stream: None,
        shard_index: ShardIndex(0),
        start: Start::Earliest,
        policy: SlowPolicy::Block,
        mode: DeliveryMode::Shared,
        credit_bytes: Some(1 << 20),
        filter: "XNAS.*".to_string(),
    })
    .encode(42, &mut bytes);
    expect(&annotate(
        &bytes,
        &[
            (4, "frame_bytes 76"),
            (1, "version 1"),
            (1, "type 30 (Subscribe)"),
            (2, "flags 0"),
            (4, "subscription 42"),
            (2, "tlv_bytes 0"),
            (2, "reserved"),
            (2, "stream_name, 14 bytes"),
            (14, "\"acme/md/quotes\""),
            (8, "stream_id 0: not known yet"),
            (4, "shard_index 0"),
            (1, "start 0: earliest"),
            (4, "start lineage 0"),
            (8, "start value 0"),
            (1, "policy 0: block"),
            (1, "mode 0: shared"),
            (1, "has_credit 1"),
            (8, "credit_bytes 1048576"),
            (2, "filter, 6 bytes"),
            (6, "\"XNAS.*\""),
        ],
    ));
}

#[test]
fn derived_compressed_example() {
    let mut builder = BatchBuilder::new();
    for (key, value) in [(b"a", b"11111111"), (b"b", b"22222222"), (b"c", b"33333333")] {
        builder.push(&RecordToPublish { key: Some(key), value, ..Default::default() }).unwrap();
    }
    let mut body = Vec::new();
    // Not a real LZ4 block: a broker never opens it.
    builder.finish_with(ProducerStamp::default(), Compression::Lz4, b"<stored>", &mut body);
    let batch = stamp(&body, 3, 0);
    let mut derived = Vec::new();
    let outcome = derive(
        &BatchView::parse(&batch).unwrap(),
        |entry| entry.key == Some(b"b"),
        &mut DeriveScratch::default(),
        &mut derived,
    );
    assert_eq!(outcome, Ok(Derived::Some));
    let view = BatchView::parse(&derived).unwrap();
    view.check().unwrap();
    expect(&annotate(
        view.body.index,
        &[
            (6, "SKIPPED+KEY, offset_delta 0, time 0, key \"a\", value_bytes 8"),
            (6, "KEY,         offset_delta 1, time 0, key \"b\", value_bytes 8"),
            (6, "SKIPPED+KEY, offset_delta 2, time 0, key \"c\", value_bytes 8"),
        ],
    ));
}

#[test]
fn vectors() {
    expect(&format!("seed `{KEY_HASH_SEED:#018x}`"));
    let starts: Vec<u64> = (0..4).map(|index| even_range_start(ShardIndex(index), 4)).collect();
    let mut text = String::new();
    let long = "0123456789abcdef".repeat(16);
    for (name, key) in [
        ("(empty)", &b""[..]),
        ("`a`", b"a"),
        ("`XNAS.AAPL`", b"XNAS.AAPL"),
        ("`user-000000000042`", b"user-000000000042"),
        ("the bytes 00 01 02 .. 1f", &std::array::from_fn::<u8, 32, _>(|i| i as u8)),
        ("`0123456789abcdef` 8 times (128 bytes)", &long.as_bytes()[..128]),
        ("`0123456789abcdef` 16 times (256 bytes)", long.as_bytes()),
    ] {
        let hash = key_hash(key);
        writeln!(text, "| {name} | `{hash:#018x}` | {} |", find_range(&starts, hash).unwrap()).unwrap();
    }
    expect(&text);

    let body = example_body();
    let crc = u32::from_le_bytes(body[..4].try_into().unwrap());
    assert_eq!(crc, crc32c::crc32c(&body[4..]));
    let mut text = format!("| `123456789` (ASCII) | `{:#010x}` |\n", crc32c::crc32c(b"123456789"));
    writeln!(text, "| (empty) | `{:#010x}` |", crc32c::crc32c(b"")).unwrap();
    writeln!(text, "| 32 bytes of 0 | `{:#010x}` |", crc32c::crc32c(&[0; 32])).unwrap();
    writeln!(text, "| bytes 4..83 of the body of 5.5 | `{crc:#010x}` |").unwrap();
    expect(&text);

    let mut text = String::new();
    for before in [0u64, 1, 0x0123_4567_89ab_cdef] {
        let mut header = example_header(STAMPED_HEADER_BYTES + body.len(), 1);
        header.link(before, crc);
        writeln!(text, "| `{before:#018x}` | `{:#018x}` |", header.chain).unwrap();
    }
    expect(&text);
}
