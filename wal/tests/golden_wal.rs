//! Golden bytes of WAL format 1. The files in `golden/v1/` are written once and never edited after:
//! `FELIX_GOLDEN=write cargo test -p felix-wal --test golden_wal` adds the ones that are missing.
//!
//! `header-*`, `entry-*`, `group-*` are read to the exact value and written back to the same bytes; `bad-*` are damaged twins,
//! each refused with its exact error.

use std::path::PathBuf;

use felix_protocol::codec::DecodeError;
use felix_protocol::ids::{ClusterId, CoreId, NodeId, NodeSession, ShardId, StreamId};
use felix_protocol::position::{Epoch, Lineage, Offset};
use felix_wal::format::entry::{Append, Entries, Entry, EntryBody, EntryError, Lsn, SealedBy};
use felix_wal::format::group::{GROUP_HEADER_BYTES, GroupError, GroupHeader, GroupSeed, GroupSequence};
use felix_wal::format::header::{FileHeader, HeaderError, Identity, Owner, Region};
use felix_wal::format::names::{SegmentId, WalId};

const SALT: u128 = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;
const LINEAGE: Lineage = Lineage(0x0102_0304);
const EPOCH: Epoch = Epoch(0x1112_1314_1516_1718);
const OFFSET: Offset = Offset(0x2122_2324_2526_2728);
const SHARD: ShardId = ShardId(0x3132_3334_3536_3738);
const STREAM: StreamId = StreamId(0x4142_4344_4546_4748);

#[track_caller]
fn stored(name: &str, made: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v1/{name}.bin"));
    if !path.exists() && std::env::var("FELIX_GOLDEN").is_ok_and(|it| it == "write") {
        std::fs::write(&path, made).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn wal() -> WalId {
    WalId { session: NodeSession(0x5152_5354_5556_5758), core: CoreId(0x61) }
}

fn headers() -> Vec<(&'static str, FileHeader)> {
    let region = Region::new("eu-central-1").unwrap();
    let identity = Identity { cluster: ClusterId(0xc1 << 120 | 1), node: NodeId(0xd1 << 120 | 2), region };
    let segment = SegmentId { lineage: LINEAGE, base_offset: OFFSET };
    let make = |owner| FileHeader { identity, session: NodeSession(0x7172), salt: SALT, owner };
    vec![
        ("header-folder", make(Owner::Folder)),
        ("header-wal", make(Owner::Wal { wal: wal(), number: 0x8182_8384 })),
        ("header-segment", make(Owner::Segment { stream: STREAM, shard: SHARD, segment })),
        ("header-index", make(Owner::Index { stream: STREAM, shard: SHARD, segment })),
        ("header-meta", make(Owner::Meta { stream: STREAM, shard: SHARD })),
        ("header-keyring", make(Owner::Keyring)),
    ]
}

fn entries() -> Vec<(&'static str, Entry<'static>)> {
    let append = Append {
        stream: STREAM,
        lineage: LINEAGE,
        offset_count: 3,
        epoch: EPOCH,
        base_offset: OFFSET,
        sealed_by: None,
        batch: b"a batch",
    };
    let sealed = Append { sealed_by: Some(SealedBy { salt_id: 0x91, counter: 0x92 }), ..append };
    let lineage = LINEAGE;
    let through = Lsn(0xa1a2);
    let of = |body| Entry::new(SHARD, body);
    vec![
        ("entry-append", of(EntryBody::Append(append))),
        ("entry-append-sealed", of(EntryBody::Append(sealed))),
        ("entry-append-copied", Entry { copied_from: Some(Lsn(0xb1)), ..of(EntryBody::Append(append)) }),
        ("entry-truncate", of(EntryBody::Truncate { lineage, epoch: EPOCH, to: OFFSET })),
        ("entry-promise", of(EntryBody::Promise { lineage, epoch: EPOCH })),
        ("entry-epoch-start", of(EntryBody::EpochStart { lineage, epoch: EPOCH, start: OFFSET })),
        ("entry-create", of(EntryBody::Create { stream: STREAM, lineage, epoch: EPOCH, settings: b"settings" })),
        ("entry-delete", of(EntryBody::Delete { lineage })),
        ("entry-flushed-to", of(EntryBody::FlushedTo { lineage, offset: OFFSET, through, copied: false })),
        ("entry-superseded", of(EntryBody::FlushedTo { lineage, offset: OFFSET, through, copied: true })),
        ("entry-rehome", of(EntryBody::Rehome { lineage, incarnation: 0xc1c2, from: through })),
        ("entry-seal", Entry::new(ShardId(0), EntryBody::Seal { synced_through: GroupSequence(0xd1), clean: true })),
    ]
}

fn group() -> (GroupHeader, Vec<u8>) {
    let mut buffer = vec![0; GROUP_HEADER_BYTES];
    entries().iter().for_each(|(_, entry)| entry.encode(&mut buffer));
    let header = GroupHeader {
        wal: wal(),
        number: 0x8182_8384,
        generation: 2,
        block: 17,
        sequence: GroupSequence(0x1_0000_0001),
        first_lsn: Lsn(0x2_0000_0002),
        entry_count: entries().len() as u32,
        payload_bytes: (buffer.len() - GROUP_HEADER_BYTES) as u32,
        synced_through: GroupSequence(0x1_0000_0000),
        first_needed: GroupSequence(0x0_f000_0000),
        index_crc: 0xe1e2_e3e4,
    };
    header.finish(GroupSeed::of(SALT), &mut buffer);
    (header, buffer)
}

#[test]
fn values_and_bytes_agree() {
    for (name, header) in headers() {
        let mut made = Vec::new();
        header.encode(&mut made);
        let bytes = stored(name, &made);
        assert_eq!(FileHeader::decode(&bytes), Ok(header), "{name}");
        assert_eq!(made, bytes, "{name}");
    }
    for (name, entry) in entries() {
        let mut made = Vec::new();
        entry.encode(&mut made);
        let bytes = stored(name, &made);
        assert_eq!(Entry::decode(&bytes), Ok((entry, bytes.len())), "{name}");
        assert_eq!(made, bytes, "{name}");
    }
    let (header, made) = group();
    let bytes = stored("group-all-kinds", &made);
    assert_eq!(made, bytes);
    let seed = GroupSeed::of(SALT);
    assert_eq!(GroupHeader::decode(seed, &bytes), Ok(header));
    let payload = header.payload(seed, &bytes).unwrap();
    let found: Vec<_> =
        Entries::new(payload, header.entry_count, header.first_lsn).map(|item| item.unwrap().1).collect();
    assert_eq!(found, entries().into_iter().map(|(_, entry)| entry).collect::<Vec<_>>());
}

type Damage = fn(&mut Vec<u8>);

/// Sets a header's checksum anew.
fn refit(block: &mut [u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&block[..12]), &block[16..4_096]);
    block[12..16].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn damaged_headers_are_refused() {
    let cases: &[(&str, Damage, HeaderError)] = &[
        ("bad-header-cut", |b| b.truncate(4_095), HeaderError::Truncated),
        ("bad-header-blank", |b| b.fill(0), HeaderError::Blank),
        ("bad-header-magic", |b| b[0] ^= 1, HeaderError::BadMagic),
        (
            "bad-header-version-2",
            |b| {
                b[8] = 2;
                refit(b);
            },
            HeaderError::UnknownVersion(2),
        ),
        (
            "bad-header-kind-7",
            |b| {
                b[10] = 7;
                refit(b);
            },
            HeaderError::UnknownKind(7),
        ),
        (
            "bad-header-region",
            |b| {
                b[114] = b'E';
                refit(b);
            },
            HeaderError::BadField("region"),
        ),
        (
            "bad-header-padding",
            |b| {
                b[4_095] = 1;
                refit(b);
            },
            HeaderError::BadField("unused"),
        ),
    ];
    let mut good = Vec::new();
    headers()[1].1.encode(&mut good);
    for (name, damage, error) in cases {
        let mut made = good.clone();
        damage(&mut made);
        assert_eq!(FileHeader::decode(&stored(name, &made)), Err(*error), "{name}");
    }
    let mut made = good;
    made[60] ^= 1;
    let found = FileHeader::decode(&stored("bad-header-bit", &made));
    assert!(matches!(found, Err(HeaderError::Checksum { .. })), "{found:?}");
}

#[test]
fn damaged_entries_are_refused() {
    let cases: &[(&str, &str, Damage, EntryError)] = &[
        ("bad-entry-kind-0", "entry-promise", |b| b[4] = 0, EntryError::UnknownKind(0)),
        ("bad-entry-kind-10", "entry-promise", |b| b[4] = 10, EntryError::UnknownKind(10)),
        ("bad-entry-version-2", "entry-promise", |b| b[5] = 2, EntryError::UnknownVersion { kind: 3, version: 2 }),
        ("bad-entry-flags", "entry-promise", |b| b[6] = 4, EntryError::UnknownFlags { kind: 3, flags: 4 }),
        ("bad-entry-sealed-promise", "entry-promise", |b| b[6] = 2, EntryError::UnknownFlags { kind: 3, flags: 2 }),
        ("bad-entry-long", "entry-promise", |b| b[0] = 29, EntryError::BadLength { bytes: 29, left: 28 }),
        ("bad-entry-short", "entry-promise", |b| b[0] = 15, EntryError::BadLength { bytes: 15, left: 28 }),
        ("bad-entry-cut", "entry-promise", |b| b[0] = 27, EntryError::Field(DecodeError::Truncated)),
        (
            "bad-entry-trailing",
            "entry-delete",
            |b| {
                b.push(0);
                b[0] = 21;
            },
            EntryError::Field(DecodeError::TrailingBytes),
        ),
        (
            "bad-entry-no-shard",
            "entry-promise",
            |b| b[8..16].fill(0),
            EntryError::Field(DecodeError::BadField("shard")),
        ),
        ("bad-entry-clean-2", "entry-seal", |b| b[24] = 2, EntryError::Field(DecodeError::BadField("clean"))),
        (
            "bad-entry-offset-overflow",
            "entry-append",
            |b| b[40..48].fill(0xff),
            EntryError::Field(DecodeError::BadField("base_offset")),
        ),
    ];
    for (name, base, damage, error) in cases {
        let mut made = Vec::new();
        entries().iter().find(|(name, _)| name == base).unwrap().1.encode(&mut made);
        damage(&mut made);
        assert_eq!(Entry::decode(&stored(name, &made)), Err(*error), "{name}");
    }
}

#[test]
fn damaged_groups_are_refused() {
    let seed = GroupSeed::of(SALT);
    let (header, good) = group();
    let damaged = |name: &str, damage: Damage| {
        let mut made = good.clone();
        damage(&mut made);
        let bytes = stored(name, &made);
        GroupHeader::decode(seed, &bytes).and_then(|header| header.payload(seed, &bytes).map(|_| ()))
    };
    assert_eq!(damaged("bad-group-cut", |b| b.truncate(4_095)), Err(GroupError::Truncated));
    assert_eq!(damaged("bad-group-blank", |b| b.fill(0)), Err(GroupError::Blank));
    assert_eq!(damaged("bad-group-magic", |b| b[3] ^= 1), Err(GroupError::BadMagic));
    let found = damaged("bad-group-header-bit", |b| b[40] ^= 1);
    assert!(matches!(found, Err(GroupError::HeaderChecksum { .. })), "{found:?}");
    let found = damaged("bad-group-entry-bit", |b| b[100] ^= 1);
    assert!(matches!(found, Err(GroupError::BodyChecksum { .. })), "{found:?}");
    let found = damaged("bad-group-padding-bit", |b| *b.last_mut().unwrap() ^= 1);
    assert!(matches!(found, Err(GroupError::BodyChecksum { .. })), "{found:?}");
    assert_eq!(header.payload(seed, &good[..4_000]), Err(GroupError::Truncated));
    // Behind checksums that fit.
    let refit: Damage = |b| {
        *b.last_mut().unwrap() = 1;
        let seed = crc32c_of_seed();
        let body = crc32c::crc32c_append(seed, &b[GROUP_HEADER_BYTES..]);
        b[12..16].copy_from_slice(&body.to_le_bytes());
        let head = crc32c::crc32c_append(crc32c::crc32c_append(seed, &b[..8]), &b[12..GROUP_HEADER_BYTES]);
        b[8..12].copy_from_slice(&head.to_le_bytes());
    };
    assert_eq!(damaged("bad-group-padding", refit), Err(GroupError::BadField("padding")));
}

/// What `GroupSeed::of(SALT)` is: part of the format, so it is written down here once more.
fn crc32c_of_seed() -> u32 {
    let words = [0x0302_0100u32, 0x0706_0504, 0x0b0a_0908, 0x0f0e_0d0c];
    words.into_iter().fold(0, |seed, word| seed.rotate_left(7) ^ word)
}
