//! What must hold for all values and all bytes: round trips, and hostile input that is refused without a panic.

use felix_protocol::ids::{ClusterId, CoreId, NodeId, NodeSession, ShardId, StreamId};
use felix_protocol::position::{Epoch, Lineage, Offset};
use felix_wal::disk::{Disk, DiskOp, FileKey, FilePath};
use felix_wal::format::entry::{Append, Entries, Entry, EntryBody, Lsn, SealedBy};
use felix_wal::format::group::{GROUP_HEADER_BYTES, GroupError, GroupHeader, GroupSeed, GroupSequence};
use felix_wal::format::header::{FileHeader, HEADER_BYTES, Identity, Owner, Region};
use felix_wal::format::names::{Name, SegmentId, WalId};
use felix_wal::mem_disk::MemDisk;
use felix_wal::recover::Recovery;
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Made {
    shard: u64,
    copied_from: Option<u64>,
    kind: u8,
    numbers: [u64; 4],
    small: u32,
    sealed: bool,
    bytes: Vec<u8>,
}

fn made() -> impl Strategy<Value = Made> {
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    (1u64.., any::<Option<u64>>(), 1u8..=9, any::<[u64; 4]>(), any::<u32>(), any::<bool>(), bytes).prop_map(
        |(shard, copied_from, kind, numbers, small, sealed, bytes)| Made {
            shard,
            copied_from,
            kind,
            numbers,
            small,
            sealed,
            bytes,
        },
    )
}

fn entry(made: &Made) -> Entry<'_> {
    let [a, b, c, d] = made.numbers;
    let lineage = Lineage(made.small);
    let body = match made.kind {
        1 => EntryBody::Append(Append {
            stream: StreamId(a),
            lineage,
            offset_count: 7,
            epoch: Epoch(b),
            base_offset: Offset(c >> 1),
            sealed_by: made.sealed.then_some(SealedBy { salt_id: d, counter: a }),
            batch: &made.bytes,
        }),
        2 => EntryBody::Truncate { lineage, epoch: Epoch(a), to: Offset(b) },
        3 => EntryBody::Promise { lineage, epoch: Epoch(a) },
        4 => EntryBody::EpochStart { lineage, epoch: Epoch(a), start: Offset(b) },
        5 => EntryBody::Create { stream: StreamId(a), lineage, epoch: Epoch(b), settings: &made.bytes },
        6 => EntryBody::Delete { lineage },
        7 => EntryBody::FlushedTo { lineage, offset: Offset(a), through: Lsn(b), copied: made.sealed },
        8 => EntryBody::Rehome { lineage, incarnation: a, from: Lsn(b) },
        _ => EntryBody::Seal { synced_through: GroupSequence(a), clean: made.sealed },
    };
    let shard = ShardId(if made.kind == 9 { 0 } else { made.shard });
    Entry { shard, copied_from: made.copied_from.map(Lsn), body }
}

fn group_header(made: &[Made], payload_bytes: usize) -> GroupHeader {
    GroupHeader {
        wal: WalId { session: NodeSession(3), core: CoreId(200) },
        number: 4,
        generation: 5,
        block: 6,
        sequence: GroupSequence(70),
        first_lsn: Lsn(800),
        entry_count: made.len() as u32,
        payload_bytes: payload_bytes as u32,
        synced_through: GroupSequence(69),
        first_needed: GroupSequence(70),
        index_crc: 9,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn entries_round_trip(made in made()) {
        let entry = entry(&made);
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        prop_assert_eq!(bytes.len(), entry.bytes());
        prop_assert_eq!(Entry::decode(&bytes), Ok((entry, bytes.len())));
        // With anything behind it, and not with less.
        let count = bytes.len();
        prop_assert!(Entry::decode(&bytes[..count - 1]).is_err());
        bytes.extend_from_slice(&[0xab; 9]);
        prop_assert_eq!(Entry::decode(&bytes), Ok((entry, count)));
    }

    #[test]
    fn groups_round_trip_and_every_flip_is_found(
        made in prop::collection::vec(made(), 0..8),
        salt in any::<u128>(),
        bit in any::<prop::sample::Index>(),
    ) {
        let seed = GroupSeed::of(salt);
        let mut buffer = vec![0; GROUP_HEADER_BYTES];
        made.iter().for_each(|made| entry(made).encode(&mut buffer));
        let header = group_header(&made, buffer.len() - GROUP_HEADER_BYTES);
        header.finish(seed, &mut buffer);
        prop_assert_eq!(buffer.len() % 4_096, 0);
        prop_assert_eq!(GroupHeader::decode(seed, &buffer), Ok(header));
        let payload = header.payload(seed, &buffer).unwrap();
        let found: Vec<_> = Entries::new(payload, header.entry_count, header.first_lsn).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(found.len(), made.len());
        for (at, (lsn, found)) in found.iter().enumerate() {
            prop_assert_eq!(*lsn, Lsn(800 + at as u64));
            prop_assert_eq!(*found, entry(&made[at]));
        }
        let bit = bit.index(buffer.len() * 8);
        buffer[bit / 8] ^= 1 << (bit % 8);
        let read = GroupHeader::decode(seed, &buffer).and_then(|header| header.payload(seed, &buffer).map(|_| ()));
        prop_assert!(read.is_err());
        buffer[bit / 8] ^= 1 << (bit % 8);
        let other = GroupSeed::of(salt ^ 1);
        let is_refused = matches!(GroupHeader::decode(other, &buffer), Err(GroupError::HeaderChecksum { .. }));
        prop_assert!(is_refused);
    }

    #[test]
    fn wrong_counts_are_found(made in prop::collection::vec(made(), 1..5), wrong in 0u32..9) {
        let mut payload = Vec::new();
        made.iter().for_each(|made| entry(made).encode(&mut payload));
        let result: Result<Vec<_>, _> = Entries::new(&payload, wrong, Lsn(1)).collect();
        prop_assert_eq!(result.is_ok(), wrong as usize == made.len());
    }

    #[test]
    fn headers_round_trip(
        ids in any::<[u128; 3]>(),
        numbers in any::<[u64; 4]>(),
        small in any::<(u32, u8)>(),
        kind in 0usize..6,
        region in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
    ) {
        let segment = SegmentId { lineage: Lineage(small.0), base_offset: Offset(numbers[0]) };
        let (stream, shard) = (StreamId(numbers[1]), ShardId(numbers[2]));
        let wal = WalId { session: NodeSession(numbers[3]), core: CoreId(small.1) };
        let owner = [
            Owner::Folder,
            Owner::Wal { wal, number: small.0 },
            Owner::Segment { stream, shard, segment },
            Owner::Index { stream, shard, segment },
            Owner::Meta { stream, shard },
            Owner::Keyring,
        ][kind];
        let identity =
            Identity { cluster: ClusterId(ids[0]), node: NodeId(ids[1]), region: Region::new(&region).unwrap() };
        let header = FileHeader { identity, session: NodeSession(numbers[0]), salt: ids[2], owner };
        let mut block = Vec::new();
        header.encode(&mut block);
        prop_assert_eq!(block.len(), HEADER_BYTES);
        prop_assert_eq!(FileHeader::expect(&block, &identity, &owner), Ok(header));
    }

    #[test]
    fn names_round_trip(numbers in any::<[u64; 2]>(), small in any::<(u32, u8)>(), kind in 0usize..7) {
        let wal = WalId { session: NodeSession(numbers[0]), core: CoreId(small.1) };
        let segment = SegmentId { lineage: Lineage(small.0), base_offset: Offset(numbers[1]) };
        let shard = ShardId(numbers[0]);
        let name = [
            Name::Wal(wal),
            Name::WalFile(wal, small.0),
            Name::RetiredWalFile(wal, small.0),
            Name::ShardMeta(shard),
            Name::Segment(shard, segment),
            Name::Index(shard, segment),
            Name::Shard(shard),
        ][kind].clone();
        prop_assert_eq!(Name::parse(&name.path()), Some(name));
    }

    #[test]
    fn hostile_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), seed in any::<u128>()) {
        let _ = Entry::decode(&bytes);
        let _ = GroupHeader::decode(GroupSeed::of(seed), &bytes);
        let _ = FileHeader::decode(&bytes);
        for entry in Entries::new(&bytes, u32::MAX, Lsn(u64::MAX)) {
            let _ = entry;
        }
        let _ = Name::parse(&FilePath(String::from_utf8_lossy(&bytes).into_owned()));
    }

    #[test]
    fn recovery_of_noise_ends_and_gives_nothing(
        blocks in prop::collection::vec((any::<u8>(), any::<u64>()), 1..12),
        with_header in any::<bool>(),
    ) {
        let wal = WalId { session: NodeSession(3), core: CoreId(1) };
        let identity = Identity { cluster: ClusterId(1), node: NodeId(2), region: Region::new("eu").unwrap() };
        let path = Name::WalFile(wal, 4).path();
        let mut disk = MemDisk::new(1);
        let bytes = (blocks.len() as u64 + 1) * 4_096;
        disk.call(DiskOp::Create { path: path.clone(), file: FileKey(1), bytes, zeroed: true }).unwrap();
        if with_header {
            let mut header = Vec::new();
            let owner = Owner::Wal { wal, number: 4 };
            FileHeader { identity, session: NodeSession(3), salt: 5, owner }.encode(&mut header);
            disk.overwrite(&path, 0, &header);
        }
        for (at, (fill, number)) in blocks.iter().enumerate() {
            let mut block = vec![*fill; 4_096];
            block[..4].copy_from_slice(b"FLXG");
            block[16..24].copy_from_slice(&number.to_le_bytes());
            disk.overwrite(&path, (at as u64 + 1) * 4_096, &block);
        }
        let report = Recovery::new(identity, 9, 4_096).run(&mut disk, |_, _| panic!("nothing is there")).unwrap();
        prop_assert_eq!(report.wals.len(), 1);
    }
}
