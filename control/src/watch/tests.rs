use super::*;
use crate::framed::HEADER_BYTES;
use felix_protocol::metadata::StreamSpec;
use felix_protocol::routing::even_range_start;
use felix_protocol::time::Timestamp;

fn placed(name: &str, shards: u32) -> PlacedStream {
    let info = StreamInfo {
        id: StreamId(7),
        name: StreamName::parse(name).unwrap(),
        spec: StreamSpec { shards, ..StreamSpec::default() },
        version: 3,
        created: Timestamp(4),
    };
    let place = |index| ShardPlace {
        index: ShardIndex(index),
        shard: ShardId(20 + u64::from(index)),
        core: CoreId((index % 3) as u8),
        range_start: even_range_start(ShardIndex(index), shards),
        epoch: Epoch(1),
        lineage: Lineage(2),
        made: false,
    };
    PlacedStream { info, shards: (0..shards).map(place).collect() }
}

fn delta() -> Delta {
    Delta {
        from_version: 5,
        to_version: 8,
        changes: vec![
            Change::StreamPut { routing_version: 2, stream: placed("t/n/a", 3) },
            Change::StreamRemoved { routing_version: 3, id: StreamId(7), name: StreamName::parse("t/n/b").unwrap() },
        ],
    }
}

#[test]
fn deltas_and_snapshots_round_trip() {
    let delta = delta();
    assert_eq!(Delta::decode(&delta.encode().unwrap()), Ok(delta));
    let streams = vec![placed("t/n/a", 1), placed("t/n/b", 1_024)];
    let snapshot = Snapshot { version: 9, routing_version: 4, cores: 3, streams };
    assert_eq!(Snapshot::decode(&snapshot.encode().unwrap()), Ok(snapshot));
}

#[test]
fn made_shards_round_trip_and_an_older_build_passes_them_over() {
    let (plain, mut made) = (placed("t/n/a", 11), placed("t/n/a", 11));
    made.info.spec.durability = Durability::Group;
    for at in [0, 7, 8, 10] {
        made.shards[at].made = true;
    }
    let bytes = |stream: &PlacedStream| {
        let mut out = Vec::new();
        stream.encode(&mut out);
        out
    };
    let found = bytes(&made);
    assert_eq!(PlacedStream::decode(&mut Reader::new(&found)), Ok(made));
    // Kind, length, bits: a TLV that nobody has to know.
    let tail = [1, 0, 2, 0, 0b1000_0001, 0b101];
    assert_eq!(found[found.len() - tail.len()..], tail);
    assert_eq!(found.len(), bytes(&plain).len() + tail.len());
    for wrong in [[1, 0, 1, 0, 1, 0], [1, 0, 3, 0, 1, 0]] {
        let mut spoilt = found.clone();
        spoilt[found.len() - tail.len()..].copy_from_slice(&wrong);
        assert!(PlacedStream::decode(&mut Reader::new(&spoilt)).is_err());
    }
}

/// The delta with another item of this kind in front.
fn with_item(kind: u16) -> Vec<u8> {
    let frame = delta().encode().unwrap();
    let body = &frame[HEADER_BYTES..];
    seal(FrameKind::Delta, |out| {
        out.put(&body[..16]);
        out.put_u32(3);
        out.put_u16(kind);
        sized(out, |out| out.put(b"of a later version"));
        out.put(&body[20..]);
    })
    .unwrap()
}

#[test]
fn an_unknown_optional_change_is_skipped_and_a_mandatory_one_refused() {
    assert_eq!(Delta::decode(&with_item(0x70)), Ok(delta()));
    let kind = 0x70 | TLV_MANDATORY;
    assert_eq!(Delta::decode(&with_item(kind)), Err(FrameError::Body(DecodeError::UnknownMandatoryTlv(kind))));
}

#[test]
fn a_stream_that_contradicts_itself_is_refused() {
    type Spoil = fn(&mut PlacedStream);
    let cases: [(&'static str, Spoil); 9] = [
        ("files of an ephemeral stream", |it| {
            it.info.spec.durability = Durability::Ephemeral;
            it.shards[1].made = true;
        }),
        ("shard count", |it| it.info.spec.shards = 4),
        ("shard ranges", |it| it.shards[0].range_start = 1),
        ("shard ranges", |it| it.shards[1].range_start = it.shards[2].range_start),
        ("core", |it| it.shards[1].core = CoreId(CORES_MAX)),
        ("id", |it| it.info.id = StreamId(0)),
        ("id", |it| it.shards[2].shard = ShardId(0)),
        ("lineage or epoch", |it| it.shards[2].lineage = Lineage(0)),
        ("lineage or epoch", |it| it.shards[2].epoch = Epoch(0)),
    ];
    for (error, spoil) in cases {
        let mut stream = placed("t/n/a", 3);
        spoil(&mut stream);
        let changes = vec![Change::StreamPut { routing_version: 1, stream }];
        let frame = Delta { from_version: 0, to_version: 1, changes }.encode().unwrap();
        assert_eq!(Delta::decode(&frame), Err(FrameError::Body(DecodeError::BadField(error))));
    }
}

#[test]
fn versions_cores_and_order_are_checked() {
    let refused = |field| Err(FrameError::Body(DecodeError::BadField(field)));
    let still = Delta { from_version: 5, to_version: 5, changes: vec![] };
    assert_eq!(Delta::decode(&still.encode().unwrap()), refused("to_version").map(|()| still));
    for (field, cores, names) in [
        ("cores", 0, &["t/n/a"][..]),
        ("cores", 65, &["t/n/a"]),
        ("order of streams", 1, &["t/n/b", "t/n/a"]),
        ("order of streams", 1, &["t/n/a", "t/n/a"]),
    ] {
        let streams = names.iter().map(|name| placed(name, 1)).collect();
        let snapshot = Snapshot { version: 1, routing_version: 1, cores, streams };
        assert_eq!(Snapshot::decode(&snapshot.encode().unwrap()), refused(field).map(|()| snapshot));
    }
}
