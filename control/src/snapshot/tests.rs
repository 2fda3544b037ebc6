use super::*;
use crate::authorise::Principal;
use crate::command::{Action, Entry, Internal};
use felix_protocol::ids::NodeId;
use felix_protocol::metadata::Command;

/// A state with something in every field.
fn state() -> State {
    let mut state = State::new();
    let name = |text| StreamName::parse(text).unwrap();
    let create = |text, shards| {
        let spec = StreamSpec { shards, retention_age_ms: Some(60_000), ..StreamSpec::default() };
        Action::Client(Command::CreateStream { name: name(text), spec, create_parents: true })
    };
    let actions = [
        Action::Internal(Internal::SetCoreCount { cores: 3 }),
        Action::Internal(Internal::AllocateProducers { core: CoreId(1), count: 9 }),
        create("t/n/a", 4),
        create("t/n/b", 1),
        Action::Client(Command::DeleteStream { name: name("t/n/b") }),
        Action::Client(Command::DeleteStream { name: name("t/n/b") }),
        Action::Internal(Internal::StartNode { node: NodeId(5), session: NodeSession(6) }),
    ];
    for (key, action) in (1..).zip(actions) {
        state.apply(&Entry::new(key, Timestamp(7), Principal::admin(), action));
    }
    state
}

#[test]
fn a_state_survives() {
    for state in [State::new(), state()] {
        let bytes = encode(&state).unwrap();
        assert_eq!(decode(&bytes).unwrap(), state);
        assert_eq!(encode(&decode(&bytes).unwrap()).unwrap(), bytes);
    }
}

#[test]
fn repeats_are_recognised_after_a_snapshot() {
    let state = state();
    let mut rebuilt = decode(&encode(&state).unwrap()).unwrap();
    let block = Action::Internal(Internal::AllocateProducers { core: CoreId(1), count: 9 });
    let repeat = Entry::new(2, Timestamp(9), Principal::admin(), block);
    let applied = rebuilt.apply(&repeat);
    assert_eq!((applied.version, applied.producers.map(|it| it.first)), (2, Some(ProducerId(1))));
    assert_eq!(applied, state.clone().apply(&repeat));
}

#[test]
fn an_archive_that_contradicts_itself_is_refused() {
    type Spoil = fn(&mut v1::Snapshot);
    let cases: [(&'static str, Spoil); 22] = [
        ("zero as next id", |it| it.next_stream = 0),
        ("zero as routing version", |it| it.routing_version = 0),
        ("core count", |it| it.cores = 65),
        ("shard on a core that is not there", |it| it.cores = 1),
        ("node twice", |it| it.nodes.push(v1::Node { node: 5, session: 1 })),
        ("tenant twice", |it| it.tenants.push(freeze_tenant("t", &TenantLimits::default()))),
        ("name of a tenant", |it| it.tenants.push(freeze_tenant("../t", &TenantLimits::default()))),
        ("namespace twice", |it| it.namespaces.push("t/n".into())),
        ("name of a namespace", |it| it.namespaces.push("t".into())),
        ("namespace without tenant", |it| it.tenants.clear()),
        ("stream without namespace", |it| it.namespaces.clear()),
        ("name of a stream", |it| it.streams[0].info.name = "t/n".into()),
        ("durability", |it| it.streams[0].info.durability = 9),
        ("settings of a stream", |it| it.streams[0].info.batch_bytes_max = 0),
        ("version of a stream", |it| it.streams[0].info.version = 99),
        ("stream id", |it| it.next_stream = 1),
        ("shard id", |it| it.streams[0].shards[1].shard = it.streams[0].shards[0].shard),
        ("lineage", |it| it.next_lineage = 1),
        ("shard count", |it| it.streams[0].shards.truncate(3)),
        ("tenant over its limits", |it| it.tenants[0].shards_max = 3),
        ("idempotency key twice", |it| it.outcomes[1].key = it.outcomes[0].key),
        ("version of an outcome", |it| it.outcomes.swap(0, 1)),
    ];
    for (error, spoil) in cases {
        let mut frozen = freeze(&state());
        spoil(&mut frozen);
        let archive = rkyv::to_bytes::<Failure>(&frozen).unwrap();
        let frame = seal(FrameKind::StateSnapshot, |out| out.put(&archive)).unwrap();
        assert_eq!(decode(&frame), Err(SnapshotError::Broken(error)));
    }
}

#[test]
fn later_settings_that_contradict_themselves_are_refused() {
    type Spoil = fn(&mut Vec<v2::StreamSettings>);
    let row = |id| v2::StreamSettings { id, interval_ms: 100, compact: true, tombstone_grace_ms: 5, encrypt: false };
    let cases: [(&'static str, Spoil); 4] = [
        ("later settings of streams", |rows| rows.clear()),
        ("later settings of streams", |rows| rows.swap(0, 1)),
        ("settings of a stream", |rows| rows[0].tombstone_grace_ms = u64::MAX),
        ("settings of a stream", |rows| rows[0].interval_ms = 0),
    ];
    let mut base = freeze(&state());
    for stream in &mut base.streams {
        stream.info.durability = Durability::Each as u8;
    }
    for (error, spoil) in cases {
        let mut frozen = v2::Snapshot { base: rkyv_copy(&base), settings: vec![row(1), row(2)] };
        let seal_up = |frozen: &v2::Snapshot| {
            let archive = rkyv::to_bytes::<Failure>(frozen).unwrap();
            seal(FrameKind::StateSnapshot2, |out| out.put(&archive)).unwrap()
        };
        decode(&seal_up(&frozen)).unwrap();
        spoil(&mut frozen.settings);
        assert_eq!(decode(&seal_up(&frozen)), Err(SnapshotError::Broken(error)));
    }
    // What is only of the older kind is not taken for the later one.
    let mut frame = encode(&state()).unwrap();
    frame[KIND_AT] = FrameKind::StateSnapshot2 as u8;
    assert!(matches!(decode(&frame), Err(SnapshotError::Frame(FrameError::BadChecksum { .. }))));
}

#[test]
fn made_shards_survive_and_broken_lists_of_them_are_refused() {
    let mut state = state();
    for stream in state.streams.values_mut() {
        stream.info.spec.durability = Durability::Group;
    }
    let former = encode(&state).unwrap();
    assert_eq!(former[KIND_AT], FrameKind::StateSnapshot as u8, "an older build reads what it can");
    let shards = vec![ShardId(2), ShardId(4), ShardId(77)];
    let made = Action::Internal(Internal::ShardsMade { shards });
    state.apply(&Entry::new(0, Timestamp(7), Principal::system(), made));
    let bytes = encode(&state).unwrap();
    assert_eq!(bytes[KIND_AT], FrameKind::StateSnapshot3 as u8);
    assert_eq!(decode(&bytes).unwrap(), state);
    let seal_up = |made: Vec<u64>| {
        let frozen = v3::Snapshot { base: freeze(&state), settings: freeze_settings(&state), made };
        let archive = rkyv::to_bytes::<Failure>(&frozen).unwrap();
        seal(FrameKind::StateSnapshot3, |out| out.put(&archive)).unwrap()
    };
    assert_eq!(seal_up(vec![2, 4]), bytes);
    for wrong in [vec![], vec![4, 2], vec![2, 2], vec![2, 77]] {
        assert_eq!(decode(&seal_up(wrong)), Err(SnapshotError::Broken("made shards")));
    }
    state.streams.values_mut().for_each(|it| it.info.spec.durability = Durability::Ephemeral);
    assert_eq!(decode(&encode(&state).unwrap()), Err(SnapshotError::Broken("files of an ephemeral stream")));
}

fn rkyv_copy(base: &v1::Snapshot) -> v1::Snapshot {
    rkyv::from_bytes::<v1::Snapshot, Failure>(&rkyv::to_bytes::<Failure>(base).unwrap()).unwrap()
}

#[test]
fn a_body_that_is_no_archive_is_refused() {
    for body in [&b""[..], b"no archive", &[0xff; 200]] {
        let frame = seal(FrameKind::StateSnapshot, |out| out.put(body)).unwrap();
        assert_eq!(decode(&frame), Err(SnapshotError::NotAnArchive));
    }
}
