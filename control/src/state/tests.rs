use super::*;
use crate::authorise::Principal;
use crate::limits::IDEMPOTENCY_KEYS_MAX;
use crate::member::{Member, MemberSettings};
use felix_protocol::ids::{ShardId, StreamId};
use felix_protocol::metadata::{Durability, StreamChanges, StreamInfo, StreamSpec};
use felix_protocol::position::Epoch;

fn stream(text: &str) -> StreamName {
    StreamName::parse(text).unwrap()
}

fn create(name: &str, spec: StreamSpec) -> Command {
    Command::CreateStream { name: stream(name), spec, create_parents: true }
}

fn shards(shards: u32) -> StreamSpec {
    StreamSpec { shards, ..StreamSpec::default() }
}

fn limits(streams_max: u32, shards_max: u32, retained_bytes_max: u64) -> TenantLimits {
    TenantLimits { streams_max, shards_max, retained_bytes_max }
}

fn tenant(name: &str, limits: TenantLimits) -> Command {
    Command::CreateTenant { tenant: name.into(), limits }
}

fn keyed(key: u128, command: Command) -> Entry {
    Entry::new(key, Timestamp(5), Principal::admin(), Action::Client(command))
}

impl State {
    fn run(&mut self, command: Command) -> Applied {
        let applied = self.apply(&keyed(0, command));
        self.check_invariants().unwrap();
        applied
    }

    fn run_internal(&mut self, command: Internal) -> Applied {
        let applied = self.apply(&Entry::new(0, Timestamp(5), Principal::system(), Action::Internal(command)));
        self.check_invariants().unwrap();
        applied
    }

    fn places(&self, name: &str) -> Vec<(u64, u8, u64, u32)> {
        let stream = self.stream_by_name(&stream(name)).unwrap();
        stream.shards.iter().map(|it| (it.shard.0, it.core.0, it.epoch.0, it.lineage.0)).collect()
    }
}

fn code(applied: &Applied) -> ErrorCode {
    applied.outcome.as_ref().unwrap_err().code
}

fn detail(applied: &Applied) -> &str {
    &applied.outcome.as_ref().unwrap_err().detail
}

#[test]
fn a_refused_command_changes_nothing_but_the_version() {
    let mut state = State::new();
    state.run(tenant("t", limits(2, 4, 1 << 30)));
    state.run(create("t/n/s", shards(2)));
    let name = || stream("t/n/s");
    let namespace = |text| NamespaceName::parse(text).unwrap();
    let alter = |changes, if_version| Command::AlterStream { name: name(), changes, if_version };
    let small = StreamChanges { retention_bytes: Some(1), ..StreamChanges::default() };
    let large = StreamChanges { retention_bytes: Some(1 << 30), ..StreamChanges::default() };
    let orphan = |name| Command::CreateStream { name: stream(name), spec: shards(1), create_parents: false };
    for (command, expected) in [
        (tenant("t", limits(9, 9, 9)), ErrorCode::AlreadyExists),
        (Command::CreateNamespace { name: namespace("t/n") }, ErrorCode::AlreadyExists),
        (create("t/n/s", shards(1)), ErrorCode::AlreadyExists),
        (Command::CreateNamespace { name: namespace("u/n") }, ErrorCode::NotFound),
        (orphan("t/m/s"), ErrorCode::NotFound),
        (orphan("u/n/s"), ErrorCode::NotFound),
        (Command::DeleteTenant { tenant: "u".into() }, ErrorCode::NotFound),
        (Command::DeleteNamespace { name: namespace("t/m") }, ErrorCode::NotFound),
        (Command::DeleteStream { name: stream("t/n/x") }, ErrorCode::NotFound),
        (Command::DeleteTenant { tenant: "t".into() }, ErrorCode::NotEmpty),
        (Command::DeleteNamespace { name: namespace("t/n") }, ErrorCode::NotEmpty),
        (create("t/m/x", shards(3)), ErrorCode::QuotaExceeded),
        (alter(large, None), ErrorCode::QuotaExceeded),
        (alter(small, None), ErrorCode::InvalidArgument),
        (alter(StreamChanges::default(), Some(1)), ErrorCode::VersionMismatch),
        (create("t/n/x", shards(0)), ErrorCode::InvalidArgument),
        (Command::ListTenants { after: None }, ErrorCode::InvalidArgument),
    ] {
        let mut before = state.clone();
        let applied = state.run(command.clone());
        assert_eq!(code(&applied), expected, "{command:?}");
        assert_eq!((applied.version, applied.changes), (before.version + 1, vec![]));
        before.version += 1;
        assert_eq!(state, before, "{command:?}");
    }
}

#[test]
fn settings_have_bounds() {
    let ok = StreamSpec { shards: 1, retention_bytes: 64 << 10, batch_bytes_max: 1 << 10, ..StreamSpec::default() };
    let check = |spec| streams::check_spec(&spec).map_err(|refused| refused.code);
    let refused = Err(ErrorCode::InvalidArgument);
    for (spec, expected) in [
        (ok, Ok(())),
        (StreamSpec { shards: 1_024, ..ok }, Ok(())),
        (StreamSpec { shards: 1_025, ..ok }, refused),
        (StreamSpec { shards: 0, ..ok }, refused),
        (StreamSpec { retention_bytes: (64 << 10) - 1, ..ok }, refused),
        (StreamSpec { retention_bytes: 1 << 40, ..ok }, Ok(())),
        (StreamSpec { retention_bytes: (1 << 40) + 1, ..ok }, refused),
        (StreamSpec { retention_age_ms: Some(1), ..ok }, Ok(())),
        (StreamSpec { retention_age_ms: Some(0), ..ok }, refused),
        (StreamSpec { batch_bytes_max: 1_023, ..ok }, refused),
        (StreamSpec { batch_bytes_max: 1_000 << 10, ..ok }, Ok(())),
        (StreamSpec { batch_bytes_max: (1_000 << 10) + 1, ..ok }, refused),
        (StreamSpec { durability: Durability::Interval, ..ok }, Ok(())),
        (StreamSpec { durability: Durability::Interval, interval_ms: 0, ..ok }, refused),
        (StreamSpec { durability: Durability::Interval, interval_ms: 60_000, ..ok }, Ok(())),
        (StreamSpec { durability: Durability::Interval, interval_ms: 60_001, ..ok }, refused),
        (StreamSpec { durability: Durability::Group, interval_ms: 99, ..ok }, refused),
        (StreamSpec { interval_ms: 1, ..ok }, refused),
        (StreamSpec { compact: true, ..ok }, refused),
        (StreamSpec { encrypt: true, ..ok }, refused),
        (StreamSpec { durability: Durability::None, compact: true, encrypt: true, ..ok }, Ok(())),
        (StreamSpec { durability: Durability::Each, tombstone_grace_ms: 1, ..ok }, refused),
        (StreamSpec { durability: Durability::Each, compact: true, tombstone_grace_ms: 0, ..ok }, Ok(())),
        (StreamSpec { durability: Durability::Each, compact: true, tombstone_grace_ms: u64::MAX, ..ok }, refused),
    ] {
        assert_eq!(check(spec), expected, "{spec:?}");
    }
}

#[test]
fn durable_streams_need_a_store() {
    let propose = |durable_streams, spec| {
        let mut member = Member::new(MemberSettings { durable_streams, ..MemberSettings::default() });
        let committed = member.propose(Timestamp(1), &Principal::admin(), 0, create("t/n/s", spec));
        (committed, member.log().len())
    };
    for durability in [Durability::None, Durability::Interval, Durability::Group, Durability::Each] {
        let spec = StreamSpec { durability, ..StreamSpec::default() };
        let (refused, logged) = propose(false, spec);
        let text = "this broker keeps records in memory only; create the stream with --ephemeral";
        assert_eq!((code(&refused), detail(&refused), logged), (ErrorCode::NotSupported, text, 0));
        let (done, logged) = propose(true, spec);
        let Ok(Reply::StreamDone { stream, .. }) = &done.outcome else { panic!("{done:?}") };
        assert_eq!((stream.spec, logged), (spec, 1));
        // A core is told everything that its store must know.
        let [Change::StreamPut { stream, .. }] = &done.changes[..] else { panic!("{done:?}") };
        assert_eq!((stream.info.spec, stream.info.name.tenant()), (spec, "t"));
        // What is wrong in any case is said first.
        let (wrong, _) = propose(false, StreamSpec { batch_bytes_max: 1, ..spec });
        assert_eq!(code(&wrong), ErrorCode::InvalidArgument);
    }
}

#[test]
fn quotas_say_what_was_found_and_what_is_allowed() {
    let mut state = State::new();
    state.run(tenant("a", limits(1, 100, 1 << 40)));
    state.run(tenant("b", limits(100, 3, 1 << 40)));
    state.run(tenant("c", limits(100, 100, 128 << 20)));
    for name in ["a/n/s", "b/n/s", "c/n/s"] {
        state.run(create(name, shards(2))).outcome.unwrap();
    }
    for (name, count, expected) in [
        ("a/n/t", 1, "tenant a would have 2 streams, allowed are 1"),
        ("b/n/t", 2, "tenant b would have 4 shards, allowed are 3"),
        ("c/n/t", 1, "tenant c would have 201326592 bytes of retention, allowed are 134217728"),
    ] {
        let applied = state.run(create(name, shards(count)));
        assert_eq!((code(&applied), detail(&applied)), (ErrorCode::QuotaExceeded, expected));
    }
    // A quota comes back with what used it.
    state.run(Command::DeleteStream { name: stream("a/n/s") }).outcome.unwrap();
    state.run(create("a/n/t", shards(1))).outcome.unwrap();
}

#[test]
fn a_stream_made_anew_shares_nothing_with_the_old_one() {
    let mut state = State::new();
    state.run(create("t/n/s", shards(2)));
    assert_eq!(state.places("t/n/s"), [(1, 0, 1, 1), (2, 0, 1, 1)]);
    let gone = state.run(Command::DeleteStream { name: stream("t/n/s") });
    assert_eq!(gone.changes, [Change::StreamRemoved { routing_version: 3, id: StreamId(1), name: stream("t/n/s") }]);
    let made = state.run(create("t/n/s", shards(2)));
    let Ok(Reply::StreamDone { version: 3, stream: info }) = made.outcome else { panic!("{made:?}") };
    assert_eq!((info.id, info.version, info.created), (StreamId(2), 3, Timestamp(5)));
    assert_eq!(state.places("t/n/s"), [(3, 0, 1, 2), (4, 0, 1, 2)]);
}

#[test]
fn every_start_gives_every_ephemeral_shard_a_new_lineage() {
    let mut state = State::new();
    let start = |node, session| Internal::StartNode { node: NodeId(node), session: NodeSession(session) };
    assert_eq!(state.run_internal(start(1, 10)).changes, []);
    assert_eq!(state.routing_version, 1);
    state.run(create("t/n/a", shards(2)));
    state.run(create("t/n/b", shards(1)));
    let applied = state.run_internal(start(1, 11));
    assert_eq!(applied.changes.len(), 2);
    assert!(applied.changes.iter().all(|it| it.routing_version() == 4));
    assert_eq!(state.places("t/n/a"), [(1, 0, 1, 3), (2, 0, 1, 3)]);
    assert_eq!(state.places("t/n/b"), [(3, 0, 1, 3)]);
    // The same start twice, or an older one, is refused: its data may still be there.
    for session in [11, 10] {
        assert_eq!(code(&state.run_internal(start(1, session))), ErrorCode::InvalidArgument);
    }
    state.run_internal(start(2, 1)).outcome.unwrap();
    assert_eq!(state.places("t/n/b"), [(3, 0, 1, 4)]);
}

/// Its data survive a start, so what a client knows of them stays true.
#[test]
fn a_durable_stream_keeps_its_lineage_over_starts() {
    let mut state = State::new();
    state.run(create("t/n/durable", shards(2)));
    state.run(create("t/n/ephemeral", shards(1)));
    let name = stream("t/n/durable");
    state.streams.get_mut(&name).unwrap().info.spec.durability = Durability::Group;
    let (before, routing_version) = (state.places("t/n/durable"), state.routing_version);
    for session in 1..=3 {
        let start = Internal::StartNode { node: NodeId(1), session: NodeSession(session) };
        let changes = state.run_internal(start).changes;
        assert!(matches!(&changes[..], [Change::StreamPut { stream, .. }] if stream.info.name != name));
        assert_eq!(state.places("t/n/durable"), before);
        assert_eq!(state.places("t/n/ephemeral"), [(3, 0, 1, 2 + session as u32)]);
    }
    assert_eq!(state.routing_version, routing_version + 3);
    // Without ephemeral streams a start changes nothing for anybody.
    state.run(Command::DeleteStream { name: stream("t/n/ephemeral") });
    let routing_version = state.routing_version;
    let start = Internal::StartNode { node: NodeId(1), session: NodeSession(9) };
    assert_eq!(state.run_internal(start).changes, []);
    assert_eq!((state.places("t/n/durable"), state.routing_version), (before, routing_version));
}

#[test]
fn a_shard_that_changes_its_core_gets_a_new_epoch() {
    let mut state = State::new();
    let cores = |cores| Internal::SetCoreCount { cores };
    state.run_internal(cores(4)).outcome.unwrap();
    state.run(create("t/n/a", shards(4)));
    state.run(create("t/n/b", shards(2)));
    assert_eq!(state.run_internal(cores(4)).changes, []);
    let before = state.routing_version;
    let applied = state.run_internal(cores(3));
    assert_eq!(applied.changes.len(), 1, "only a had a shard on core 3");
    assert_eq!(state.routing_version, before + 1);
    assert_eq!(state.places("t/n/a"), [(1, 0, 1, 1), (2, 1, 1, 1), (3, 2, 1, 1), (4, 2, 2, 1)]);
    assert_eq!(state.places("t/n/b"), [(5, 0, 1, 2), (6, 1, 1, 2)]);
    for count in [0, 65] {
        assert_eq!(code(&state.run_internal(cores(count))), ErrorCode::InvalidArgument);
    }
}

#[test]
fn only_what_a_route_says_moves_the_routing_version() {
    let mut state = State::new();
    state.run(create("t/n/s", shards(1)));
    let alter = |changes| Command::AlterStream { name: stream("t/n/s"), changes, if_version: None };
    let age = StreamChanges { retention_age_ms: Some(Some(9)), ..StreamChanges::default() };
    let applied = state.run(alter(age));
    let Ok(Reply::StreamDone { version: 2, stream: info }) = applied.outcome else { panic!("{applied:?}") };
    assert_eq!((info.version, info.spec.retention_age_ms, applied.changes.len()), (2, Some(9), 1));
    assert_eq!(state.routing_version, 2);
    state.run(alter(StreamChanges { batch_bytes_max: Some(2_000), ..StreamChanges::default() }));
    assert_eq!(state.routing_version, 3);
    state.run(alter(StreamChanges { retention_age_ms: Some(None), ..StreamChanges::default() }));
    assert_eq!(state.stream_by_name(&stream("t/n/s")).unwrap().info.spec.retention_age_ms, None);
}

#[test]
fn producer_blocks_never_overlap() {
    let mut state = State::new();
    state.run_internal(Internal::SetCoreCount { cores: 2 });
    let block = |core, count| Internal::AllocateProducers { core: CoreId(core), count };
    let first = state.run_internal(block(0, 100)).producers;
    let second = state.run_internal(block(1, 1 << 20)).producers;
    assert_eq!(first, Some(ProducerBlock { core: CoreId(0), first: ProducerId(1), count: 100 }));
    assert_eq!(second, Some(ProducerBlock { core: CoreId(1), first: ProducerId(101), count: 1 << 20 }));
    for refused in [block(2, 1), block(0, 0), block(0, (1 << 20) + 1)] {
        let applied = state.run_internal(refused);
        assert_eq!((code(&applied), applied.producers), (ErrorCode::InvalidArgument, None));
    }
}

#[test]
fn floors_only_rise() {
    let mut state = State::new();
    state.run_internal(Internal::RaiseFloors { ids: 1_000, lineage: Lineage(50) });
    state.run_internal(Internal::RaiseFloors { ids: 10, lineage: Lineage(5) });
    state.run(create("t/n/s", shards(1)));
    let found = state.stream_by_name(&stream("t/n/s")).unwrap();
    let shard = found.shards[0];
    assert_eq!(
        (found.info.id, shard.shard, shard.lineage, shard.epoch),
        (StreamId(1_000), ShardId(1_000), Lineage(50), Epoch(1))
    );
}

#[test]
fn numbers_that_are_used_up_are_refused_not_wrapped() {
    for (ids, lineage) in [(u64::MAX, 1), (1, u32::MAX)] {
        let mut state = State::new();
        state.run_internal(Internal::RaiseFloors { ids, lineage: Lineage(lineage) });
        assert_eq!(code(&state.run(create("t/n/s", shards(1)))), ErrorCode::Internal);
        assert_eq!(state.tenants.len(), 0);
        let block = state.run_internal(Internal::AllocateProducers { core: CoreId(0), count: 1 });
        assert_eq!(block.producers.is_none(), ids == u64::MAX);
    }
}

#[test]
fn a_repeat_gets_the_first_outcome_and_another_command_is_refused() {
    let mut state = State::new();
    let first = state.apply(&keyed(7, create("t/n/s", shards(1))));
    assert_eq!((first.version, first.changes.len()), (1, 1));
    state.run(Command::DeleteStream { name: stream("t/n/s") });
    let mut before = state.clone();
    let repeat = state.apply(&keyed(7, create("t/n/s", shards(1))));
    assert_eq!(repeat, Applied { changes: vec![], ..first });
    before.version += 1;
    assert_eq!(state, before, "a repeat has no second effect");

    let other = state.apply(&keyed(7, create("t/n/s", shards(2))));
    assert_eq!(code(&other), ErrorCode::InvalidArgument);
    let stranger =
        Entry::new(7, Timestamp(5), Principal::named("ann").unwrap(), Action::Client(create("t/n/s", shards(1))));
    assert_eq!(code(&state.apply(&stranger)), ErrorCode::InvalidArgument);
    assert_eq!(state.stream_by_name(&stream("t/n/s")), None);

    // A refusal is an outcome too; producer ids are not given twice.
    let refusal = state.apply(&keyed(8, Command::DeleteStream { name: stream("t/n/x") }));
    state.run(create("t/n/x", shards(1)));
    assert_eq!(state.apply(&keyed(8, Command::DeleteStream { name: stream("t/n/x") })), refusal);
    let block = Action::Internal(Internal::AllocateProducers { core: CoreId(0), count: 5 });
    let block = Entry::new(9, Timestamp(5), Principal::system(), block);
    let given = state.apply(&block);
    assert!(given.producers.is_some());
    assert_eq!(state.apply(&block), given);
}

#[test]
fn a_key_is_forgotten_after_as_many_others_as_the_table_holds() {
    let mut state = State::new();
    let command = || Command::DeleteTenant { tenant: "none".into() };
    for key in 1..=IDEMPOTENCY_KEYS_MAX as u128 {
        state.apply(&keyed(key, command()));
    }
    assert_eq!(state.apply(&keyed(1, command())).version, 1);
    // The repeat took no place; one more key takes that of the oldest.
    state.apply(&keyed(u128::MAX, command()));
    assert_eq!(state.apply(&keyed(2, command())).version, 2);
    let again = state.apply(&keyed(1, command()));
    assert_eq!(again.version, state.version());
    state.check_invariants().unwrap();
}

#[test]
fn a_stream_of_a_backup_keeps_its_ids_and_later_ones_are_greater() {
    use crate::command::RestoredStream;
    let mut state = State::new();
    state.run(tenant("a", limits(3, 10, 1 << 40)));
    state.run(Command::CreateNamespace { name: NamespaceName::parse("a/b").unwrap() });
    let spec = StreamSpec { durability: Durability::Group, retention_bytes: 5 << 20, ..shards(3) };
    let restored = |name: &str, id, first, spec| {
        let info = StreamInfo { id: StreamId(id), name: stream(name), spec, version: 99, created: Timestamp(7) };
        let (epoch, lineage) = (Epoch(4), Lineage(8));
        Internal::RestoreStream(Box::new(RestoredStream { info, shard_first: ShardId(first), epoch, lineage }))
    };
    let before = state.version();
    let Ok(Reply::StreamDone { stream: info, .. }) = state.run_internal(restored("a/b/c", 20, 30, spec)).outcome else {
        panic!("refused")
    };
    assert_eq!((info.id, info.version, info.created, info.spec), (StreamId(20), before + 1, Timestamp(7), spec));
    assert_eq!(state.places("a/b/c"), [(30, 0, 4, 8), (31, 0, 4, 8), (32, 0, 4, 8)]);
    for (name, id, first, expected) in [
        ("a/b/c", 21, 40, ErrorCode::AlreadyExists),
        ("a/b/d", 20, 40, ErrorCode::AlreadyExists),
        ("a/b/d", 21, 28, ErrorCode::AlreadyExists),
        ("a/b/d", 21, 32, ErrorCode::AlreadyExists),
        ("a/b/d", 0, 40, ErrorCode::InvalidArgument),
        ("a/x/d", 21, 40, ErrorCode::NotFound),
        ("a/b/d", u64::MAX, 40, ErrorCode::Internal),
    ] {
        assert_eq!(code(&state.run_internal(restored(name, id, first, spec))), expected, "{name} {id} {first}");
    }
    let many = StreamSpec { shards: 8, ..spec };
    assert_eq!(code(&state.run_internal(restored("a/b/d", 21, 40, many))), ErrorCode::QuotaExceeded);
    // Below what is there already: nothing that is given later meets it.
    assert!(state.run_internal(restored("a/b/d", 2, 3, spec)).outcome.is_ok());
    let Ok(Reply::StreamDone { stream: info, .. }) = state.run(create("a/b/e", shards(1))).outcome else { panic!() };
    assert_eq!(info.id, StreamId(21));
    assert_eq!(state.places("a/b/e"), [(33, 0, 1, 9)]);
}

#[test]
fn files_are_noted_of_durable_shards_that_are_there() {
    let mut state = State::new();
    let name = |text| StreamName::parse(text).unwrap();
    let create = |text, durability| Command::CreateStream {
        name: name(text),
        spec: StreamSpec { shards: 3, durability, ..StreamSpec::default() },
        create_parents: true,
    };
    let run = |state: &mut State, action| state.apply(&Entry::new(0, Timestamp(1), Principal::admin(), action));
    run(&mut state, Action::Client(create("t/n/disk", Durability::Group))).outcome.unwrap();
    run(&mut state, Action::Client(create("t/n/memory", Durability::Ephemeral))).outcome.unwrap();
    let routing_version = state.routing_version();
    let made =
        |ids: &[u64]| Action::Internal(Internal::ShardsMade { shards: ids.iter().copied().map(ShardId).collect() });
    let flags = |state: &State| -> Vec<(u64, bool)> {
        state.streams().flat_map(|it| &it.shards).map(|it| (it.shard.0, it.made)).collect()
    };
    // 4 to 6 are in memory only, 99 was deleted meanwhile.
    let applied = run(&mut state, made(&[3, 1, 5, 99, 3]));
    applied.outcome.unwrap();
    assert_eq!(flags(&state), [(1, true), (2, false), (3, true), (4, false), (5, false), (6, false)]);
    let [Change::StreamPut { stream, .. }] = &applied.changes[..] else { panic!("{:?}", applied.changes) };
    assert_eq!(stream.shards.iter().map(|it| it.made).collect::<Vec<_>>(), [true, false, true]);
    // Nothing new, nothing to tell.
    assert_eq!(run(&mut state, made(&[1, 3, 99])).changes, []);
    assert_eq!(state.routing_version(), routing_version);
    // It stays for ever: durable shards keep their lineage, also over starts and other numbers of cores.
    run(&mut state, Action::Internal(Internal::SetCoreCount { cores: 2 })).outcome.unwrap();
    let start = Internal::StartNode { node: NodeId(1), session: NodeSession(1) };
    run(&mut state, Action::Internal(start)).outcome.unwrap();
    assert_eq!(flags(&state)[..3], [(1, true), (2, false), (3, true)]);
    // Made anew under its name it has other shards, without files.
    run(&mut state, Action::Client(Command::DeleteStream { name: name("t/n/disk") })).outcome.unwrap();
    run(&mut state, Action::Client(create("t/n/disk", Durability::Group))).outcome.unwrap();
    assert!(flags(&state).iter().all(|(_, made)| !made), "{:?}", flags(&state));
    state.check_invariants().unwrap();
}
