use super::*;

fn identity() -> Identity {
    Identity { cluster: ClusterId(1), node: NodeId(2), region: Region::new("eu-1").unwrap() }
}

fn owners() -> Vec<Owner> {
    let segment = SegmentId { lineage: Lineage(3), base_offset: Offset(4) };
    let (stream, shard) = (StreamId(5), ShardId(6));
    vec![
        Owner::Folder,
        Owner::Wal { wal: WalId { session: NodeSession(7), core: CoreId(8) }, number: 9 },
        Owner::Segment { stream, shard, segment },
        Owner::Index { stream, shard, segment },
        Owner::Meta { stream, shard },
        Owner::Keyring,
    ]
}

fn block(owner: Owner) -> Vec<u8> {
    let mut out = Vec::new();
    FileHeader { identity: identity(), session: NodeSession(10), salt: 11, owner }.encode(&mut out);
    out
}

#[test]
fn headers_round_trip() {
    for owner in owners() {
        let bytes = block(owner);
        assert_eq!(bytes.len(), HEADER_BYTES);
        let header = FileHeader::expect(&bytes, &identity(), &owner).unwrap();
        assert_eq!((header.session, header.salt), (NodeSession(10), 11));
    }
}

#[test]
fn every_bit_flip_is_found() {
    let bytes = block(owners()[2]);
    for bit in (0..512 * 8).chain((512 * 8..HEADER_BYTES * 8).step_by(61)) {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let error = FileHeader::decode(&bad).unwrap_err();
        assert!(matches!(error, HeaderError::Checksum { .. } | HeaderError::BadMagic), "bit {bit}: {error}");
    }
}

#[test]
fn a_mismatch_is_refused_with_what_it_is() {
    let owner = owners()[1];
    let bytes = block(owner);
    let with = |change: fn(&mut Identity)| {
        let mut other = identity();
        change(&mut other);
        FileHeader::expect(&bytes, &other, &owner).unwrap_err()
    };
    assert!(matches!(with(|id| id.cluster.0 = 9), HeaderError::OtherCluster { found: ClusterId(1), .. }));
    assert!(matches!(with(|id| id.node.0 = 9), HeaderError::OtherNode { found: NodeId(2), .. }));
    assert!(matches!(with(|id| id.region = Region::new("us").unwrap()), HeaderError::OtherRegion(_)));
    let error = FileHeader::expect(&bytes, &identity(), &Owner::Folder).unwrap_err();
    assert_eq!(error, HeaderError::OtherOwner { expected: Owner::Folder, found: owner });
    assert_eq!(FileHeader::decode(&bytes[..4_095]), Err(HeaderError::Truncated));
    assert_eq!(FileHeader::decode(&[0; HEADER_BYTES]), Err(HeaderError::Blank));
    assert_eq!(FileHeader::decode(&[1; HEADER_BYTES]), Err(HeaderError::BadMagic));
}

#[test]
fn fields_out_of_range_are_refused_behind_a_good_checksum() {
    let refit = |at: usize, byte: u8| {
        let mut bytes = block(Owner::Folder);
        bytes[at] = byte;
        let crc = header_crc(&bytes);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        FileHeader::decode(&bytes).unwrap_err()
    };
    assert_eq!(refit(8, 2), HeaderError::UnknownVersion(2));
    assert_eq!(refit(10, 99), HeaderError::UnknownKind(99));
    assert_eq!(refit(113, 200), HeaderError::BadField("region"));
    assert_eq!(refit(113, 0), HeaderError::BadField("region"));
    assert_eq!(refit(114, b'E'), HeaderError::BadField("region"));
    assert_eq!(refit(72, 1), HeaderError::BadField("unused"), "a folder has no shard");
    assert_eq!(refit(4_000, 1), HeaderError::BadField("unused"));
}

#[test]
fn regions_are_labels() {
    for bad in ["", "-a", "a-", "A", "a.b", &"a".repeat(64)] {
        assert_eq!(Region::new(bad), None, "{bad}");
    }
    assert_eq!(Region::new(&"a".repeat(63)).unwrap().as_str().len(), 63);
}
