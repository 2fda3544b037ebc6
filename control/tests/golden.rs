//! The frozen bytes of version 1: `tests/golden/v1/`. Files are added, never edited: a difference here means that this
//! build would not read what an older one wrote. `cargo test --test golden -- --ignored` writes those that are missing.

use felix_control::authorise::Principal;
use felix_control::command::{Action, Entry, Internal, RestoredStream};
use felix_control::framed::{FrameError, FrameKind};
use felix_control::raft_frames::*;
use felix_control::raft_types::{EntryBytes, LogId, Membership, Peer, RaftEntry, StoredMembership, Vote};
use felix_control::snapshot::{self, SnapshotError};
use felix_control::state::State;
use felix_control::watch::{Change, Delta, Snapshot};
use felix_protocol::codec::DecodeError;
use felix_protocol::ids::{ClusterId, CoreId, NodeId, NodeSession, ShardId, StreamId};
use felix_protocol::metadata::*;
use felix_protocol::names::{NamespaceName, StreamName};
use felix_protocol::position::{Epoch, Lineage};
use felix_protocol::time::Timestamp;
use openraft::{EntryPayload, LeaderId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1").join(name)
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn stream(text: &str) -> StreamName {
    StreamName::parse(text).unwrap()
}

/// Every command of the log, each with a file of its own.
fn entries() -> Vec<(&'static str, Entry)> {
    let client = Action::Client;
    let internal = Action::Internal;
    let spec = StreamSpec {
        shards: 3,
        durability: Durability::Ephemeral,
        retention_bytes: 1 << 20,
        retention_age_ms: Some(60_000),
        batch_bytes_max: 65_536,
        ..StreamSpec::default()
    };
    let limits = TenantLimits { streams_max: 10, shards_max: 20, retained_bytes_max: 1 << 30 };
    let changes =
        StreamChanges { retention_bytes: Some(2 << 20), retention_age_ms: Some(None), batch_bytes_max: Some(32_768) };
    let md = NamespaceName::parse("acme/md").unwrap();
    let quotes = stream("acme/md/quotes");
    let orders = stream("other/x/Orders_1");
    let actions = [
        ("set_core_count", internal(Internal::SetCoreCount { cores: 4 })),
        ("raise_floors", internal(Internal::RaiseFloors { ids: 100, lineage: Lineage(10) })),
        ("start_node", internal(Internal::StartNode { node: NodeId(0xabcd), session: NodeSession(7) })),
        ("create_tenant", client(Command::CreateTenant { tenant: "acme".into(), limits })),
        ("create_namespace", client(Command::CreateNamespace { name: md.clone() })),
        ("create_stream", client(Command::CreateStream { name: quotes.clone(), spec, create_parents: false })),
        (
            "create_stream_and_parents",
            client(Command::CreateStream { name: orders.clone(), spec: StreamSpec::default(), create_parents: true }),
        ),
        ("alter_stream", client(Command::AlterStream { name: quotes, changes, if_version: Some(6) })),
        ("delete_tenant", client(Command::DeleteTenant { tenant: "acme".into() })),
        ("delete_namespace", client(Command::DeleteNamespace { name: md })),
        ("delete_stream", client(Command::DeleteStream { name: orders })),
        ("allocate_producers", internal(Internal::AllocateProducers { core: CoreId(2), count: 1_000 })),
    ];
    let principal = |action: &Action| match action {
        Action::Internal(_) => Principal::system(),
        Action::Client(Command::DeleteStream { .. }) => Principal::named("ann").unwrap(),
        Action::Client(_) => Principal::admin(),
    };
    let entry = |(at, (name, action)): (u64, (&'static str, Action))| {
        let time = Timestamp(1_700_000_000_000_000_000 + at);
        (name, Entry::new(0x1000 + u128::from(at), time, principal(&action), action))
    };
    (0..).zip(actions).map(entry).collect()
}

/// A command that came later; not among `entries`, whose states are frozen too.
fn restore_entry() -> Entry {
    let spec = StreamSpec { shards: 2, durability: Durability::Group, ..StreamSpec::default() };
    let name = stream("acme/md/restored");
    let info = StreamInfo { id: StreamId(0x77), name, spec, version: 3, created: Timestamp(1_700_000_000_000_000_000) };
    let restored = RestoredStream { info, shard_first: ShardId(0x88), epoch: Epoch(9), lineage: Lineage(5) };
    let action = Action::Internal(Internal::RestoreStream(Box::new(restored)));
    Entry::new(0, Timestamp(1_700_000_000_000_000_001), Principal::system(), action)
}

/// A command that came later still.
fn made_entry() -> Entry {
    let shards = vec![ShardId(1), ShardId(3), ShardId(0x1122)];
    let action = Action::Internal(Internal::ShardsMade { shards });
    Entry::new(0, Timestamp(1_700_000_000_000_000_002), Principal::system(), action)
}

/// The later state with files of some of its shards, and the changes that the files made.
fn made_state_and_changes() -> (State, Vec<Change>) {
    let (mut state, _) = later_state_and_changes();
    let changes = state.apply(&made_entry()).changes;
    state.check_invariants().unwrap();
    (state, changes)
}

/// A state with streams on disk, one of them gone but remembered, and the changes that made it.
fn later_state_and_changes() -> (State, Vec<Change>) {
    let spec = StreamSpec { durability: Durability::Group, ..StreamSpec::default() };
    let interval = StreamSpec { durability: Durability::Interval, interval_ms: 250, encrypt: true, ..spec };
    let compact = StreamSpec { compact: true, tombstone_grace_ms: 3_600_000, shards: 2, ..spec };
    let create = |name, spec| Command::CreateStream { name: stream(name), spec, create_parents: true };
    let commands = [
        create("acme/md/plain", spec),
        create("acme/md/interval", interval),
        create("acme/md/compact", compact),
        Command::DeleteStream { name: stream("acme/md/interval") },
    ];
    let mut state = State::new();
    let mut changes = Vec::new();
    for (key, command) in (1..).zip(commands) {
        let entry = Entry::new(key, Timestamp(1_700_000_000_000_000_000), Principal::admin(), Action::Client(command));
        let applied = state.apply(&entry);
        applied.outcome.unwrap();
        changes.extend(applied.changes);
    }
    state.check_invariants().unwrap();
    (state, changes)
}

fn state_and_changes() -> (State, Vec<Change>) {
    let mut state = State::new();
    let changes = entries().iter().flat_map(|(_, entry)| state.apply(entry).changes).collect();
    state.check_invariants().unwrap();
    (state, changes)
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId::new(term, 0xabcd), index)
}

/// Two voter sets, as in the middle of a change, and a learner.
fn membership() -> Membership {
    let address = |text: &str| Peer { address: text.into() };
    let nodes = BTreeMap::from([(0xabcd, address("")), (2, address("b.example:7001")), (3, address("c.example:7001"))]);
    Membership::new(vec![BTreeSet::from([0xabcd]), BTreeSet::from([0xabcd, 2])], nodes)
}

fn raft_entries() -> Vec<(&'static str, RaftEntry)> {
    let command = EntryBytes(entries()[0].1.encode().unwrap());
    let entry = |index, payload| RaftEntry { log_id: log_id(3, index), payload };
    vec![
        ("raft_entry_nothing.bin", entry(7, EntryPayload::Blank)),
        ("raft_entry_command.bin", entry(8, EntryPayload::Normal(command))),
        ("raft_entry_membership.bin", entry(9, EntryPayload::Membership(membership()))),
    ]
}

fn log_heads() -> Vec<(&'static str, LogHead)> {
    let full = LogHead {
        writes: 1_000,
        vote: Some(Vote::new_committed(4, 0xabcd)),
        committed: Some(log_id(3, 8)),
        purged: Some(log_id(2, 5)),
        last: Some(log_id(4, 9)),
    };
    vec![("log_head.bin", full), ("log_head_new.bin", LogHead::default())]
}

const IDENTITY: Identity = Identity { cluster: ClusterId(0xc0ffee), node: NodeId(0xabcd) };
const SYNCED: Synced = Synced { writes: 1_000 };

fn snapshot_head() -> SnapshotHead {
    SnapshotHead { last: Some(log_id(3, 9)), membership: StoredMembership::new(Some(log_id(3, 9)), membership()) }
}

/// Every golden file and the bytes that this build would write.
fn files() -> Vec<(String, Vec<u8>)> {
    let (state, changes) = state_and_changes();
    let delta = Delta { from_version: 0, to_version: state.version(), changes };
    let (later, later_changes) = later_state_and_changes();
    let later_delta = Delta { from_version: 0, to_version: later.version(), changes: later_changes };
    let (made, made_changes) = made_state_and_changes();
    let made_delta = Delta { from_version: later.version(), to_version: made.version(), changes: made_changes };
    let entries = entries().into_iter().map(|(name, entry)| (format!("entry_{name}.bin"), entry.encode().unwrap()));
    entries
        .chain([
            ("delta.bin".to_string(), delta.encode().unwrap()),
            ("watch_snapshot.bin".to_string(), state.watch_snapshot().encode().unwrap()),
            ("state_snapshot.bin".to_string(), snapshot::encode(&state).unwrap()),
            ("delta_later_settings.bin".to_string(), later_delta.encode().unwrap()),
            ("state_snapshot_2.bin".to_string(), snapshot::encode(&later).unwrap()),
            ("entry_restore_stream.bin".to_string(), restore_entry().encode().unwrap()),
            ("entry_shards_made.bin".to_string(), made_entry().encode().unwrap()),
            ("delta_made_shards.bin".to_string(), made_delta.encode().unwrap()),
            ("state_snapshot_3.bin".to_string(), snapshot::encode(&made).unwrap()),
            ("identity.bin".to_string(), IDENTITY.encode()),
            ("synced.bin".to_string(), SYNCED.encode()),
            (
                "snapshot_file.bin".to_string(),
                encode_snapshot(&snapshot_head(), &snapshot::encode(&state).unwrap()).unwrap(),
            ),
        ])
        .chain(raft_entries().iter().map(|(name, entry)| (name.to_string(), encode_entry(entry).unwrap())))
        .chain(log_heads().iter().map(|(name, head)| (name.to_string(), head.encode())))
        .collect()
}

#[test]
#[ignore = "writes files"]
fn write_missing_golden_files() {
    for (name, bytes) in files() {
        if !path(&name).exists() {
            std::fs::write(path(&name), bytes).unwrap();
        }
    }
}

#[test]
fn this_build_writes_the_golden_bytes() {
    for (name, bytes) in files() {
        assert!(bytes == golden(&name), "{name}: these bytes are frozen; a change is a new version");
    }
    let count = std::fs::read_dir(path("")).unwrap().count();
    assert_eq!(count, files().len(), "a golden file that no test reads");
}

#[test]
fn this_build_reads_the_golden_bytes() {
    for (name, entry) in entries() {
        assert_eq!(Entry::decode(&golden(&format!("entry_{name}.bin"))), Ok(entry), "{name}");
    }
    assert_eq!(Entry::decode(&golden("entry_restore_stream.bin")), Ok(restore_entry()));
    let (state, changes) = state_and_changes();
    let delta = Delta { from_version: 0, to_version: state.version(), changes };
    assert_eq!(Delta::decode(&golden("delta.bin")), Ok(delta));
    assert_eq!(Snapshot::decode(&golden("watch_snapshot.bin")), Ok(state.watch_snapshot()));
    assert_eq!(snapshot::decode(&golden("state_snapshot.bin")).as_ref(), Ok(&state));
    let (later, changes) = later_state_and_changes();
    let delta = Delta { from_version: 0, to_version: later.version(), changes };
    assert_eq!(Delta::decode(&golden("delta_later_settings.bin")), Ok(delta));
    let version = later.version();
    assert_eq!(snapshot::decode(&golden("state_snapshot_2.bin")), Ok(later));
    assert_eq!(Entry::decode(&golden("entry_shards_made.bin")), Ok(made_entry()));
    let (made, changes) = made_state_and_changes();
    assert_eq!(changes.len(), 2, "of the streams of shard 1 and of shard 3");
    let delta = Delta { from_version: version, to_version: made.version(), changes };
    assert_eq!(Delta::decode(&golden("delta_made_shards.bin")), Ok(delta));
    assert_eq!(snapshot::decode(&golden("state_snapshot_3.bin")), Ok(made));
    for (name, entry) in raft_entries() {
        assert_eq!(decode_entry(&golden(name)), Ok(entry), "{name}");
    }
    for (name, head) in log_heads() {
        assert_eq!(LogHead::decode(&golden(name)), Ok(head), "{name}");
    }
    assert_eq!(Identity::decode(&golden("identity.bin")), Ok(IDENTITY));
    assert_eq!(Synced::decode(&golden("synced.bin")), Ok(SYNCED));
    let file = golden("snapshot_file.bin");
    let (head, inner) = decode_snapshot(&file).unwrap();
    assert_eq!((head, snapshot::decode(inner)), (snapshot_head(), Ok(state)));
}

/// One entry written out by hand, so that the layout is checked against its description and not only against itself.
#[test]
fn the_layout_is_the_one_described() {
    let mut expected = Vec::new();
    expected.extend(*b"FLXC");
    expected.extend([1, 1, 0, 0]); // version, type, reserved
    expected.extend([0; 4]); // length, below
    expected.extend([0; 4]); // checksum, below
    expected.extend(0x1000u128.to_le_bytes());
    expected.extend(1_700_000_000_000_000_000u64.to_le_bytes());
    expected.extend([6, 0]);
    expected.extend(*b"system");
    expected.push(1); // internal
    expected.extend([2, 0]);
    expected.extend([1, 4]); // SetCoreCount, 4
    let length = expected.len() as u32;
    expected[8..12].copy_from_slice(&length.to_le_bytes());
    let checked = [&expected[..12], &expected[16..]].concat();
    let checksum = crc32c::crc32c(&checked);
    expected[12..16].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(golden("entry_set_core_count.bin"), expected);
}

/// The record that everything hangs on, written out by hand.
#[test]
fn the_log_head_is_the_one_described() {
    let mut expected = Vec::new();
    expected.extend(*b"FLXC");
    expected.extend([1, 6, 0, 0]); // version, type, reserved
    expected.extend([0; 8]); // length and checksum, below
    expected.extend(1_000u64.to_le_bytes());
    expected.push(3); // a vote, granted
    expected.extend(4u64.to_le_bytes());
    expected.extend(0xabcdu128.to_le_bytes());
    for (index, term) in [(8u64, 3u64), (5, 2), (9, 4)] {
        expected.push(1);
        expected.extend(index.to_le_bytes());
        expected.extend(term.to_le_bytes());
        expected.extend(0xabcdu128.to_le_bytes());
    }
    let length = expected.len() as u32;
    expected[8..12].copy_from_slice(&length.to_le_bytes());
    let checksum = crc32c::crc32c(&[&expected[..12], &expected[16..]].concat());
    expected[12..16].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(golden("log_head.bin"), expected);
}

#[test]
fn corrupt_twins_are_refused_with_the_exact_reason() {
    let spoilt = |name: &str, at: usize, value: u8| {
        let mut bytes = golden(name);
        bytes[at] = value;
        bytes
    };
    let entry = |at, value| Entry::decode(&spoilt("entry_start_node.bin", at, value)).unwrap_err();
    let bytes = golden("entry_start_node.bin");
    let found = bytes.len();
    assert_eq!(entry(0, b'X'), FrameError::BadMagic { found: u32::from_le_bytes(*b"XLXC") });
    assert_eq!(entry(4, 2), FrameError::UnknownVersion { found: 2 });
    assert_eq!(entry(5, 2), FrameError::WrongKind { expected: FrameKind::Entry, found: 2 });
    assert_eq!(entry(6, 1), FrameError::ReservedBits { found: 1 });
    assert_eq!(entry(8, 1), FrameError::BadLength { announced: 1, found });
    assert!(matches!(entry(20, 0xee), FrameError::BadChecksum { .. }));
    assert_eq!(Entry::decode(&bytes[..9]), Err(FrameError::Truncated { found: 9 }));
    assert_eq!(Entry::decode(&bytes[..found - 1]), Err(FrameError::BadLength { announced: found, found: found - 1 }));
    let wrong = FrameError::WrongKind { expected: FrameKind::StateSnapshot, found: 1 };
    assert_eq!(snapshot::decode(&bytes), Err(SnapshotError::Frame(wrong)));
    // A whole frame with a body that is not one.
    let short = felix_control::framed::seal(FrameKind::Entry, |out| out.extend([0; 20])).unwrap();
    assert_eq!(Entry::decode(&short), Err(FrameError::Body(DecodeError::Truncated)));
}

#[test]
fn every_single_bit_flip_is_refused() {
    type Refuses = fn(&[u8]) -> bool;
    let cases: [(&str, Refuses); 14] = [
        ("identity.bin", |bytes| Identity::decode(bytes).is_err()),
        ("synced.bin", |bytes| Synced::decode(bytes).is_err()),
        ("log_head.bin", |bytes| LogHead::decode(bytes).is_err()),
        ("snapshot_file.bin", |bytes| decode_snapshot(bytes).is_err()),
        ("raft_entry_nothing.bin", |bytes| decode_entry(bytes).is_err()),
        ("raft_entry_command.bin", |bytes| decode_entry(bytes).is_err()),
        ("raft_entry_membership.bin", |bytes| decode_entry(bytes).is_err()),
        ("state_snapshot.bin", |bytes| snapshot::decode(bytes).is_err()),
        ("state_snapshot_2.bin", |bytes| snapshot::decode(bytes).is_err()),
        ("state_snapshot_3.bin", |bytes| snapshot::decode(bytes).is_err()),
        ("entry_shards_made.bin", |bytes| Entry::decode(bytes).is_err()),
        ("watch_snapshot.bin", |bytes| Snapshot::decode(bytes).is_err()),
        ("delta.bin", |bytes| Delta::decode(bytes).is_err()),
        ("entry_create_stream.bin", |bytes| Entry::decode(bytes).is_err()),
    ];
    for (name, refuses) in cases {
        let mut bytes = golden(name);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(refuses(&bytes), "{name}: bit {bit} of {}", bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(!refuses(&bytes), "{name}");
    }
}
