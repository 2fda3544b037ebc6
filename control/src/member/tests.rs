use super::*;
use crate::limits::DELTA_CHANGES_MAX;
use crate::watch::{Change, Delta, Snapshot};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::ids::{CoreId, NodeId, NodeSession};
use felix_protocol::metadata::{StreamSpec, TenantLimits};
use felix_protocol::names::StreamName;

const SMALL: MemberSettings = MemberSettings { log_entries_max: 4, watch_changes_max: 6, durable_streams: false };

fn create(name: &str) -> Command {
    let name = StreamName::parse(name).unwrap();
    Command::CreateStream { name, spec: StreamSpec::default(), create_parents: true }
}

fn delete(name: &str) -> Command {
    Command::DeleteStream { name: StreamName::parse(name).unwrap() }
}

impl Member {
    fn run(&mut self, command: Command) -> Committed {
        self.propose(Timestamp(3), &Principal::admin(), 0, command)
    }
}

#[test]
fn snapshot_and_log_rebuild_the_member() {
    let mut member = Member::new(SMALL);
    for index in 0..11 {
        member.run(create(&format!("t/n/s{index}"))).outcome.unwrap();
        assert!(member.log().len() < SMALL.log_entries_max);
        let rebuilt = Member::restore(SMALL, member.snapshot(), member.log()).unwrap();
        assert_eq!(rebuilt.state(), member.state());
        assert_eq!(rebuilt.snapshot(), member.snapshot());
    }
    assert!(member.snapshot().is_some());
    let mut log = member.log().to_vec();
    let last = log.last_mut().unwrap();
    let at = last.len() - 1;
    last[at] ^= 1;
    let error = Member::restore(SMALL, member.snapshot(), &log).unwrap_err();
    let index = log.len() - 1;
    assert!(matches!(error, RestoreError::Entry { index: at, error: FrameError::BadChecksum { .. } } if at == index));
}

#[test]
fn what_could_never_be_an_entry_leaves_no_trace() {
    let mut member = Member::new(SMALL);
    member.run(create("t/n/s")).outcome.unwrap();
    let spec = StreamSpec { shards: 0, ..StreamSpec::default() };
    let none = Command::CreateStream { name: StreamName::parse("t/n/x").unwrap(), spec, create_parents: true };
    let tenant = |tenant: String| Command::CreateTenant { tenant, limits: TenantLimits::default() };
    for (command, expected) in [
        (Command::ListTenants { after: None }, ErrorCode::InvalidArgument),
        (tenant("No Name".into()), ErrorCode::InvalidName),
        (tenant("x".repeat(70_000)), ErrorCode::InvalidName),
        (none, ErrorCode::InvalidArgument),
    ] {
        let committed = member.run(command);
        assert_eq!(committed.outcome.unwrap_err().code, expected);
        assert_eq!((committed.version, member.state().version(), member.log().len()), (1, 1, 1));
    }
}

/// What a watcher holds: version and streams in order of name.
fn follow(seen: &mut (u64, Snapshot), watch: Watch) {
    match watch {
        Watch::Snapshot(snapshot) => *seen = (snapshot.version, snapshot),
        Watch::Deltas(deltas) => {
            for delta in deltas {
                let delta = Delta::decode(&delta.encode().unwrap()).unwrap();
                assert_eq!(delta.from_version, seen.0, "a delta follows the one before");
                for change in delta.changes {
                    seen.1.routing_version = change.routing_version();
                    let streams = &mut seen.1.streams;
                    match change {
                        Change::StreamPut { stream, .. } => {
                            streams.retain(|it| it.info.name != stream.info.name);
                            streams.push(stream);
                            streams.sort_by(|a, b| a.info.name.cmp(&b.info.name));
                        }
                        Change::StreamRemoved { id, .. } => streams.retain(|it| it.info.id != id),
                    }
                }
                seen.0 = delta.to_version;
                seen.1.version = delta.to_version;
            }
        }
    }
}

#[test]
fn a_watcher_at_any_version_arrives_at_the_present() {
    let mut member = Member::new(SMALL);
    let mut watchers = vec![(0, member.state().watch_snapshot())];
    let (mut merged, mut snapshots) = (0, 0);
    for step in 0..20u64 {
        match step % 5 {
            0 | 1 | 3 => member.run(create(&format!("t/n/s{step}"))),
            2 => member.run(delete(&format!("t/n/s{}", step - 1))),
            _ => {
                let (node, session) = (NodeId(1), NodeSession(step));
                member.propose_internal(Timestamp(3), Internal::StartNode { node, session })
            }
        };
        let present = (step + 1, member.state().watch_snapshot());
        watchers.push(present.clone());
        for mut watcher in watchers.iter().cloned() {
            let watch = member.changes_since(watcher.0);
            match &watch {
                Watch::Deltas(deltas) => {
                    merged += deltas.iter().filter(|it| it.to_version > it.from_version + 1).count();
                }
                Watch::Snapshot(_) => snapshots += 1,
            }
            follow(&mut watcher, watch);
            assert_eq!(watcher, present);
        }
    }
    assert!(merged > 10 && snapshots > 10, "{merged} {snapshots}");
}

#[test]
fn entries_without_changes_are_not_kept_for_ever() {
    let mut member = Member::new(SMALL);
    for _ in 0..50 {
        member.run(delete("t/n/none")).outcome.unwrap_err();
        assert!(member.replica.kept().0 <= SMALL.watch_changes_max);
    }
    assert!(matches!(member.changes_since(43), Watch::Snapshot(_)));
    assert!(matches!(member.changes_since(44), Watch::Deltas(_)));
}

#[test]
fn a_watcher_of_the_future_gets_a_snapshot() {
    let mut member = Member::new(MemberSettings::default());
    assert_eq!(member.changes_since(0), Watch::Deltas(vec![]));
    assert!(matches!(member.changes_since(1), Watch::Snapshot(_)));
    member.run(create("t/n/s"));
    let refused = member.run(create("t/n/s"));
    assert_eq!((refused.version, refused.changes), (2, vec![]));
    let Watch::Deltas(deltas) = member.changes_since(1) else { panic!("a kept version") };
    assert_eq!(deltas, [Delta { from_version: 1, to_version: 2, changes: vec![] }]);
}

#[test]
fn a_delta_is_cut_when_it_is_long() {
    let mut member = Member::new(MemberSettings::default());
    for index in 0..DELTA_CHANGES_MAX + 10 {
        member.run(create(&format!("t/n/s{index}"))).outcome.unwrap();
    }
    let Watch::Deltas(deltas) = member.changes_since(0) else { panic!("kept from the start") };
    let lengths: Vec<usize> = deltas.iter().map(|it| it.changes.len()).collect();
    assert_eq!(lengths, [DELTA_CHANGES_MAX, 10]);
}

#[test]
fn more_changes_at_once_than_are_kept_are_a_snapshot() {
    let mut member = Member::new(SMALL);
    for index in 0..8 {
        member.run(create(&format!("t/n/s{index}"))).outcome.unwrap();
    }
    let start = Internal::StartNode { node: NodeId(1), session: NodeSession(1) };
    assert_eq!(member.propose_internal(Timestamp(3), start).changes.len(), 8);
    assert!(matches!(member.changes_since(8), Watch::Snapshot(_)));
    assert_eq!(member.changes_since(9), Watch::Deltas(vec![]));
    assert_eq!(member.replica.kept(), (0, 0));
}

#[test]
fn producer_ids_come_with_the_commit() {
    let mut member = Member::new(SMALL);
    let block = Internal::AllocateProducers { core: CoreId(0), count: 10 };
    assert_eq!(member.propose_internal(Timestamp(3), block.clone()).producers.map(|it| it.first.0), Some(1));
    assert_eq!(member.propose_internal(Timestamp(3), block).producers.map(|it| it.first.0), Some(11));
}
