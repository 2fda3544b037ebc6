//! Damaged twins, each with the exact error.

use crate::{batches, frames, stored};
use felix_protocol::batch::StampedHeader;
use felix_protocol::batch_view::{BatchError, BatchView, BodyView};
use felix_protocol::codec::DecodeError;
use felix_protocol::frame::Frame;
use felix_protocol::limits::*;
use felix_protocol::names::NameError;

type Damage = fn(&mut Vec<u8>);

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Sets the one byte of a setting to 2.
fn flip_flag(bytes: &mut [u8], kind: u16) {
    let pattern = [kind as u8, (kind >> 8) as u8, 1, 0, 1];
    let at = bytes.windows(5).position(|it| it == pattern).expect("the setting stands there");
    bytes[at + 4] = 2;
}

fn fix_length(frame: &mut [u8]) {
    let length = frame.len() as u32;
    put32(frame, 0, length);
}

const FRAMES: &[(&str, &str, Damage, DecodeError)] = &[
    ("length-over-limit", "credit", |b| put32(b, 0, 65_537), DecodeError::TooLarge { bytes: 65_537, max: 65_536 }),
    (
        "length-of-4-gib",
        "publish",
        |b| put32(b, 0, u32::MAX),
        DecodeError::TooLarge { bytes: u32::MAX as u64, max: FRAME_BYTES_MAX as u64 },
    ),
    ("length-under-envelope", "credit", |b| put32(b, 0, 15), DecodeError::BadField("frame_bytes")),
    ("length-short", "credit", |b| put32(b, 0, 23), DecodeError::TrailingBytes),
    ("length-long", "credit", |b| put32(b, 0, 25), DecodeError::Truncated),
    ("cut-in-envelope", "credit", |b| b.truncate(15), DecodeError::Truncated),
    ("version-0", "credit", |b| b[4] = 0, DecodeError::UnknownVersion(0)),
    ("version-2", "credit", |b| b[4] = 2, DecodeError::UnknownVersion(2)),
    ("type-99", "credit", |b| b[5] = 99, DecodeError::UnknownFrameType(99)),
    ("mandatory-flag", "credit", |b| b[6] = 0x80, DecodeError::UnknownMandatoryFlag(0x80)),
    ("reserved", "credit", |b| b[14] = 1, DecodeError::BadField("reserved")),
    ("routed-without-route", "unsubscribe", |b| b[6] = 1, DecodeError::Truncated),
    ("tlvs-past-the-end", "credit", |b| b[12] = 9, DecodeError::Truncated),
    (
        "tlvs-over-limit",
        "credit",
        |b| b[12..14].copy_from_slice(&4_097u16.to_le_bytes()),
        DecodeError::TooLarge { bytes: 4_097, max: 4_096 },
    ),
    ("tlv-cut", "credit", |b| b[12] = 3, DecodeError::Truncated),
    (
        "mandatory-tlv",
        "unsubscribe",
        |b| {
            b.extend_from_slice(&[1, 0x80, 0, 0]);
            b[12] = 4;
            fix_length(b);
        },
        DecodeError::UnknownMandatoryTlv(0x8001),
    ),
    (
        "body-too-long",
        "credit",
        |b| {
            b.push(0);
            fix_length(b);
        },
        DecodeError::TrailingBytes,
    ),
    (
        "body-too-short",
        "credit",
        |b| {
            b.pop();
            fix_length(b);
        },
        DecodeError::Truncated,
    ),
    ("hello-reserved", "hello-small", |b| b[18] = 1, DecodeError::BadField("reserved")),
    ("hello-name-not-utf8", "hello-full", |b| b[60] = 0xff, DecodeError::NotUtf8),
    (
        "hello-token-over-limit",
        "hello-small",
        |b| b[46..48].copy_from_slice(&8_193u16.to_le_bytes()),
        DecodeError::TooLarge { bytes: 8_193, max: 8_192 },
    ),
    ("welcome-core-not-there", "welcome", |b| b[17] = 4, DecodeError::BadField("core_count")),
    ("welcome-no-cores", "welcome", |b| b[18] = 0, DecodeError::BadField("core_count")),
    ("route-without-shards", "route", |b| put32(b, 36, 0), DecodeError::BadField("shards")),
    ("route-too-many-shards", "route", |b| put32(b, 36, 1_025), DecodeError::BadField("shards")),
    ("route-shards-not-there", "route", |b| put32(b, 36, 2), DecodeError::Truncated),
    ("route-hole-at-start", "route", |b| b[48] = 1, DecodeError::BadField("range_start")),
    ("route-not-rising", "route-four", |b| b[40 + 29 + 15] = 0, DecodeError::BadField("range_start")),
    ("name-bad-character", "get-route", |b| b[18] = b'A', DecodeError::BadName(NameError::BadCharacter { at: 0 })),
    ("name-two-parts", "get-route", |b| b[22] = b'x', DecodeError::BadName(NameError::WrongParts { found: 2 })),
    (
        "name-over-limit",
        "get-route",
        |b| b[16..18].copy_from_slice(&513u16.to_le_bytes()),
        DecodeError::TooLarge { bytes: 513, max: 512 },
    ),
    ("channel-flags", "open-channel", |b| b[44] = 4, DecodeError::BadField("channel flags")),
    ("ack-durability", "publish-ack", |b| b[28] = 5, DecodeError::BadField("durability")),
    ("ack-count", "publish-ack", |b| b[38] = 5, DecodeError::BadField("ack count")),
    ("subscribe-start-4", "subscribe-earliest", |b| b[44] = 4, DecodeError::BadField("start")),
    ("subscribe-latest-with-offset", "subscribe-latest", |b| b[49] = 1, DecodeError::BadField("start")),
    ("subscribe-time-with-lineage", "subscribe-time", |b| b[45] = 1, DecodeError::BadField("start")),
    ("subscribe-policy-3", "subscribe-earliest", |b| b[57] = 3, DecodeError::BadField("policy")),
    ("subscribe-mode-4", "subscribe-earliest", |b| b[58] = 4, DecodeError::BadField("mode")),
    ("subscribe-credit-2", "subscribe-earliest", |b| b[59] = 2, DecodeError::BadField("credit")),
    ("subscribe-no-credit-of-1", "subscribe-earliest", |b| b[60] = 1, DecodeError::BadField("credit")),
    ("deliver-kind-3", "deliver-gap", |b| b[16] = 3, DecodeError::BadField("delivery kind")),
    ("deliver-backwards", "deliver-gap", |b| b[36] = 0, DecodeError::BadField("covered")),
    (
        "deliver-gap-with-bytes",
        "deliver-gap",
        |b| {
            b.push(0);
            fix_length(b);
        },
        DecodeError::TrailingBytes,
    ),
    ("stats-more-of-2", "stats-none", |b| b[28] = 2, DecodeError::BadField("bool")),
    ("stats-page-over-limit", "stats-none", |b| put32(b, 29, 129), DecodeError::BadField("stream count")),
    ("admin-kind-0", "admin-delete-tenant", |b| b[32] = 0, DecodeError::BadField("command kind")),
    (
        "admin-tenant-upper-case",
        "admin-delete-tenant",
        |b| b[35] = b'A',
        DecodeError::BadName(NameError::BadCharacter { at: 0 }),
    ),
    ("admin-option-2", "admin-list-tenants", |b| b[33] = 2, DecodeError::BadField("option")),
    ("admin-no-shards", "admin-create-stream", |b| put32(b, 55, 0), DecodeError::BadArgument("shards")),
    ("admin-too-many-shards", "admin-create-stream", |b| put32(b, 55, 1_025), DecodeError::BadArgument("shards")),
    ("admin-durability-5", "admin-create-stream", |b| b[63] = 5, DecodeError::BadArgument("durability")),
    ("admin-unknown-setting", "admin-create-stream", |b| b[51] = 99, DecodeError::UnknownMandatoryTlv(0x8063)),
    ("admin-setting-of-3-bytes", "admin-create-stream", |b| b[53] = 3, DecodeError::BadField("setting")),
    ("admin-compact-2", "admin-create-stream-compact", |b| flip_flag(b, 0x8008), DecodeError::BadField("setting")),
    ("admin-encrypt-2", "admin-create-stream-compact", |b| flip_flag(b, 0x800a), DecodeError::BadField("setting")),
    ("admin-reply-kind-9", "admin-reply-done", |b| b[16] = 9, DecodeError::BadField("reply kind")),
    (
        "admin-reply-page-over-limit",
        "admin-reply-streams-none",
        |b| put32(b, 17, u32::MAX),
        DecodeError::TooLarge { bytes: u32::MAX as u64, max: 128 },
    ),
];

fn seal_body(body: &mut [u8]) {
    let crc = crc32c::crc32c(&body[4..]);
    put32(body, 0, crc);
}

fn seal_header(batch: &mut [u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&batch[..8]), &batch[12..STAMPED_HEADER_BYTES]);
    put32(batch, 8, crc);
}

/// Twins of bodies. The checksum is made anew after the damage, so that the rule behind it is what refuses.
const BODIES: &[(&str, &str, Damage, BatchError)] = &[
    ("body-empty", "plain", |b| b.clear(), BatchError::Truncated),
    ("body-cut", "plain", |b| b.truncate(80), BatchError::Truncated),
    ("body-longer", "plain", |b| b.push(0), BatchError::LengthMismatch),
    ("body-format-2", "plain", |b| b[8] = 2, BatchError::UnknownFormat(2)),
    ("body-compression-3", "plain", |b| b[9] = 3, BatchError::BadField("compression")),
    ("body-flags", "plain", |b| b[10] = 8, BatchError::BadField("body flags")),
    ("body-ttl-flag-without-ttl", "plain", |b| b[10] = 1, BatchError::BadField("ttl flag")),
    ("body-ttl-without-flag", "ttl", |b| b[10] = 0, BatchError::BadField("ttl flag")),
    ("body-encrypted-without-key", "plain", |b| b[10] = 2, BatchError::BadField("key_id")),
    ("body-key-without-encrypted", "plain", |b| b[56] = 1, BatchError::BadField("key_id")),
    ("body-one-record-less", "plain", |b| b[12] = 2, BatchError::LengthMismatch),
    ("body-one-record-more", "plain", |b| b[12] = 4, BatchError::Truncated),
    (
        "body-records-over-limit",
        "plain",
        |b| put32(b, 12, 16_385),
        BatchError::TooLarge { what: "record count", found: 16_385, max: 16_384 },
    ),
    ("body-index-longer", "plain", |b| b[16] += 1, BatchError::Truncated),
    ("body-values-shorter", "plain", |b| b[20] -= 1, BatchError::LengthMismatch),
    ("body-raw-differs", "plain", |b| b[24] += 1, BatchError::LengthMismatch),
    ("body-raw-lies", "lz4", |b| b[24] += 1, BatchError::LengthMismatch),
    (
        "body-raw-bomb",
        "lz4",
        |b| put32(b, 24, u32::MAX),
        BatchError::TooLarge { what: "decompressed values bytes", found: u32::MAX as u64, max: 16_777_216 },
    ),
    (
        "body-sequence-overflow",
        "plain",
        |b| b[40..48].copy_from_slice(&[0xff; 8]),
        BatchError::BadField("base_sequence"),
    ),
    ("body-tlvs-past-the-end", "plain", |b| put32(b, 60, 200), BatchError::Truncated),
    (
        "body-tlvs-over-limit",
        "plain",
        |b| put32(b, 60, 4_097),
        BatchError::TooLarge { what: "tlv", found: 4_097, max: 4_096 },
    ),
    (
        "body-mandatory-tlv",
        "plain",
        |b| {
            b.splice(64..64, [1, 0x80, 0, 0]);
            b[60] = 4;
            b[4] += 4;
        },
        BatchError::BadField("mandatory tlv"),
    ),
    ("body-record-flags", "plain", |b| b[64] = 0x20, BatchError::BadField("record flags")),
    ("body-skipped", "plain", |b| b[64] = 0x10, BatchError::BadField("record flags")),
    ("body-skipped-compressed", "lz4", |b| b[64] |= 0x10, BatchError::BadField("record flags")),
    ("body-offset-hole", "plain", |b| b[69] = 2, BatchError::BadField("offset_delta")),
    ("body-offset-not-rising", "plain", |b| b[69] = 0, BatchError::BadField("offset_delta")),
    ("body-varint-overlong", "keyed", |b| b[65..67].copy_from_slice(&[0x80, 0]), BatchError::BadField("varint")),
    (
        "body-key-over-limit",
        "keyed",
        |b| b[67..69].copy_from_slice(&[0x81, 8]),
        BatchError::TooLarge { what: "key bytes", found: 1_025, max: 1_024 },
    ),
    ("body-ttl-zero", "ttl", |b| b[67..69].copy_from_slice(&[0, 0]), BatchError::BadField("ttl_ms")),
    ("body-tombstone-with-value", "tombstone", |b| b[72] = 1, BatchError::BadField("tombstone with a value")),
    ("body-tombstone-without-key", "plain", |b| b[68] = 8, BatchError::BadField("tombstone without a key")),
    ("body-value-longer", "plain", |b| b[67] = 4, BatchError::LengthMismatch),
    (
        "body-no-records",
        "plain",
        |b| {
            b.truncate(64);
            put32(b, 4, 64);
            b[12..28].fill(0);
        },
        BatchError::Empty,
    ),
];

/// Twins of whole batches. The header's checksum is made anew if the damage is in the header.
const BATCHES: &[(&str, &str, Damage, BatchError)] = &[
    ("batch-cut-in-header", "plain", |b| b.truncate(79), BatchError::Truncated),
    ("batch-cut", "plain", |b| b.truncate(100), BatchError::Truncated),
    ("batch-longer", "plain", |b| b.push(0), BatchError::LengthMismatch),
    ("batch-format-2", "plain", |b| b[4] = 2, BatchError::UnknownFormat(2)),
    ("batch-kind-7", "plain", |b| b[5] = 7, BatchError::BadField("kind")),
    ("batch-flags", "plain", |b| b[6] = 2, BatchError::BadField("flags")),
    ("batch-offset-overflow", "plain", |b| b[48..56].fill(0xff), BatchError::BadField("base_offset")),
    ("batch-covers-less", "plain", |b| b[12] = 2, BatchError::BadField("offset_count")),
    ("batch-covers-more", "plain", |b| b[12] = 4, BatchError::BadField("offset_count")),
    ("batch-derived-covers-less", "derived-tombstone", |b| b[12] = 1, BatchError::BadField("offset_delta")),
    ("batch-holes-but-not-derived", "derived-tombstone", |b| b[6] = 0, BatchError::BadField("offset_count")),
    ("batch-skipped-but-not-derived", "derived-lz4", |b| b[6] = 0, BatchError::BadField("record flags")),
    ("batch-tlvs-past-the-end", "plain", |b| put32(b, 44, 10_000), BatchError::LengthMismatch),
    ("batch-tlv-section-too-short", "plain-stamped-tlvs", |b| b[44] = 4, BatchError::BadField("tlv_bytes")),
    ("batch-tlvs-forgotten", "plain-stamped-tlvs", |b| b[44] = 0, BatchError::LengthMismatch),
];

/// Damage that a checksum finds.
const CHECKSUMS: &[(&str, &str, usize)] =
    &[("batch-header-bit", "plain", 50), ("batch-body-bit", "plain", 150), ("batch-tlv-bit", "plain-stamped-tlvs", 0)];

pub fn names() -> Vec<String> {
    let rows = FRAMES.iter().map(|row| row.0).chain(BODIES.iter().map(|row| row.0));
    let rows = rows.chain(BATCHES.iter().map(|row| row.0)).chain(CHECKSUMS.iter().map(|row| row.0));
    rows.map(|name| format!("bad-{name}")).collect()
}

#[test]
fn damaged_frames_are_refused() {
    for (name, of, damage, error) in FRAMES {
        let mut made = frames::bytes(of);
        damage(&mut made);
        let stored = stored(&format!("bad-{name}"), &made);
        assert_eq!(made, stored, "{name}");
        assert_eq!(Frame::decode(&stored).map(|(_, frame)| frame), Err(*error), "{name}");
    }
}

fn check_body(bytes: &[u8]) -> Result<(), BatchError> {
    BodyView::parse(bytes)?.check_publish()
}

fn check_batch(bytes: &[u8]) -> Result<(), BatchError> {
    BatchView::parse(bytes)?.check()
}

#[test]
fn damaged_bodies_are_refused() {
    for (name, of, damage, error) in BODIES {
        let mut made = batches::body(of);
        damage(&mut made);
        if made.len() > 4 {
            seal_body(&mut made);
        }
        let stored = stored(&format!("bad-{name}"), &made);
        assert_eq!(made, stored, "{name}");
        assert_eq!(check_body(&stored), Err(*error), "{name}");
    }
}

#[test]
fn damaged_batches_are_refused() {
    for (name, of, damage, error) in BATCHES {
        let mut made = batches::batch(of);
        damage(&mut made);
        if made.len() >= STAMPED_HEADER_BYTES {
            seal_header(&mut made);
        }
        let stored = stored(&format!("bad-{name}"), &made);
        assert_eq!(made, stored, "{name}");
        assert_eq!(check_batch(&stored), Err(*error), "{name}");
    }
}

#[test]
fn checksums_find_damage() {
    for (name, of, at) in CHECKSUMS {
        let mut made = batches::batch(of);
        let (good, at) = (made.clone(), if *at == 0 { made.len() - 1 } else { *at });
        made[at] ^= 1;
        let stored = stored(&format!("bad-{name}"), &made);
        assert_eq!(made, stored, "{name}");
        let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let error = check_batch(&stored).unwrap_err();
        let body_end = good.len() - StampedHeader::decode(&good).unwrap().tlv_bytes as usize;
        match error {
            BatchError::HeaderChecksum { expected, .. } => {
                assert_eq!((*name, expected), ("batch-header-bit", word(&good, 8)));
            }
            BatchError::BodyChecksum { expected, found } => {
                assert_eq!((*name, expected), ("batch-body-bit", word(&good, 80)));
                assert_eq!(found, crc32c::crc32c(&stored[84..body_end]));
            }
            BatchError::TlvChecksum { expected, found } => {
                assert_eq!((*name, expected), ("batch-tlv-bit", word(&good, body_end)));
                assert_eq!(found, crc32c::crc32c(&stored[body_end + 4..]));
            }
            other => panic!("{name}: {other}"),
        }
    }
}
