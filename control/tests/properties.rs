//! Random logs: what must always hold of the state, that it is a function of the log, and that no bytes harm a decoder.

mod support;

use felix_control::authorise::Principal;
use felix_control::command::{Action, Entry};
use felix_control::framed::{FrameKind, HEADER_BYTES, seal};
use felix_control::member::{Member, MemberSettings};
use felix_control::snapshot;
use felix_control::state::{Applied, State};
use felix_control::watch::{Change, Delta, Snapshot};
use felix_protocol::frame::Route;
use felix_protocol::metadata::{Command, Reply};
use felix_protocol::names::StreamName;
use felix_protocol::time::Timestamp;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use support::{command, entry, log};

fn routes(state: &State) -> BTreeMap<StreamName, Route> {
    let names = state.streams().map(|it| it.info.name.clone());
    names.map(|name| (name.clone(), Route { routing_version: 0, ..state.route(&name).unwrap() })).collect()
}

fn apply_all(state: &mut State, log: &[Entry]) -> Vec<Applied> {
    log.iter().map(|entry| state.apply(entry)).collect()
}

/// What no state may ever hold twice, over the whole life of a log.
#[derive(Default)]
struct Given {
    streams: BTreeMap<u64, StreamName>,
    shards: BTreeMap<u64, u64>,
    lineages: BTreeMap<StreamName, (u64, u32)>,
    producers: BTreeSet<u64>,
}

impl Given {
    fn check(&mut self, applied: &Applied) {
        for change in &applied.changes {
            let Change::StreamPut { stream, .. } = change else { continue };
            let (id, name) = (stream.info.id.0, &stream.info.name);
            assert_eq!(self.streams.entry(id).or_insert(name.clone()), name, "stream id {id} given twice");
            for shard in &stream.shards {
                assert_eq!(*self.shards.entry(shard.shard.0).or_insert(id), id, "shard id given twice");
            }
            // A name never goes back to a lineage it had, not even through another stream id.
            let lineage = stream.shards[0].lineage.0;
            let (last_id, last) = self.lineages.insert(name.clone(), (id, lineage)).unwrap_or((0, 0));
            assert!(lineage > last || lineage == last && id == last_id, "lineage {lineage} of {name} after {last}");
        }
    }

    fn check_new(&mut self, applied: &Applied) {
        let Some(block) = applied.producers else { return };
        for id in block.first.0..block.first.0 + u64::from(block.count) {
            assert!(self.producers.insert(id), "producer id {id} given twice");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_must_hold_holds_after_every_entry(log in log()) {
        let mut state = State::new();
        let mut given = Given::default();
        for (at, entry) in log.iter().enumerate() {
            let before = (routes(&state), state.routing_version(), state.watch_snapshot());
            let applied = state.apply(entry);
            state.check_invariants().unwrap();
            prop_assert_eq!(state.version(), at as u64 + 1);
            let repeat = applied.version != state.version();
            given.check(&applied);
            if !repeat {
                given.check_new(&applied);
            }
            // Routing: the version rises exactly with what a Route says.
            prop_assert_eq!(routes(&state) != before.0, state.routing_version() > before.1);
            prop_assert!(state.routing_version() <= before.1 + 1);
            // Whoever is told the changes knows the table.
            if repeat || applied.outcome.is_err() {
                prop_assert_eq!(&applied.changes, &vec![]);
            }
            let mut table: BTreeMap<_, _> = before.2.streams.into_iter().map(|it| (it.info.name.clone(), it)).collect();
            for change in applied.changes {
                prop_assert_eq!(change.routing_version(), state.routing_version());
                match change {
                    Change::StreamPut { stream, .. } => drop(table.insert(stream.info.name.clone(), stream)),
                    Change::StreamRemoved { id, name, .. } => {
                        prop_assert_eq!(table.remove(&name).map(|it| it.info.id), Some(id));
                    }
                }
            }
            prop_assert!(table.values().eq(state.streams()));
            // An answer that speaks of a stream speaks of it as it was then.
            if let (false, Ok(Reply::StreamDone { version, stream })) = (repeat, &applied.outcome) {
                prop_assert_eq!(*version, state.version());
                prop_assert_eq!(stream.version, *version);
                prop_assert_eq!(&state.stream_by_name(&stream.name).unwrap().info, stream);
            }
        }
    }

    #[test]
    fn the_same_log_gives_the_same_bytes(log in log(), cut in any::<prop::sample::Index>()) {
        let mut whole = State::new();
        let applied = apply_all(&mut whole, &log);
        let bytes = snapshot::encode(&whole).unwrap();

        // Again, from the log's bytes.
        let frames: Vec<Vec<u8>> = log.iter().map(|entry| entry.encode().unwrap()).collect();
        let decoded: Vec<Entry> = frames.iter().map(|frame| Entry::decode(frame).unwrap()).collect();
        let mut again = State::new();
        prop_assert_eq!(&apply_all(&mut again, &decoded), &applied);
        prop_assert_eq!(snapshot::encode(&again).unwrap(), bytes.clone());

        // Through a snapshot at a random point; the answers after it are the same too, repeats included.
        let cut = cut.index(log.len());
        let mut half = State::new();
        apply_all(&mut half, &log[..cut]);
        let mut rebuilt = snapshot::decode(&snapshot::encode(&half).unwrap()).unwrap();
        prop_assert_eq!(&rebuilt, &half);
        prop_assert_eq!(&apply_all(&mut rebuilt, &log[cut..]), &applied[cut..]);
        prop_assert_eq!(snapshot::encode(&rebuilt).unwrap(), bytes);
        prop_assert_eq!(rebuilt, whole);
    }

    #[test]
    fn a_member_is_its_snapshot_and_its_log(
        commands in prop::collection::vec((0u128..20, command()), 1..40),
        log_entries_max in 1usize..9,
    ) {
        let settings = MemberSettings { log_entries_max, watch_changes_max: 8, durable_streams: true };
        let mut member = Member::new(settings);
        let mut state = State::new();
        let principal = Principal::admin();
        for (at, (key, command)) in commands.into_iter().enumerate() {
            let now = Timestamp(at as u64);
            let entry = Entry::new(key, now, principal.clone(), Action::Client(command.clone()));
            prop_assert_eq!(member.propose(now, &principal, key, command), state.apply(&entry));
            prop_assert!(member.log().len() < log_entries_max);
        }
        prop_assert_eq!(member.state(), &state);
        let rebuilt = Member::restore(settings, member.snapshot(), member.log()).unwrap();
        prop_assert_eq!(rebuilt.state(), &state);
    }

    #[test]
    fn entries_round_trip(entry in entry()) {
        let frame = entry.encode().unwrap();
        prop_assert_eq!(Entry::decode(&frame), Ok(entry));
    }

    #[test]
    fn what_decodes_encodes_to_what_decodes(log in log(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        // A body with one byte changed and a checksum that fits: what a hostile or newer peer could send.
        let entry = &log[0];
        if let Some(frame) = mutated(FrameKind::Entry, &entry.encode().unwrap(), at, byte)
            && let Ok(found) = Entry::decode(&frame)
        {
            prop_assert_eq!(Entry::decode(&found.encode().unwrap()).unwrap().action, found.action);
        }
        let mut state = State::new();
        let changes: Vec<Change> = apply_all(&mut state, &log).into_iter().flat_map(|it| it.changes).collect();
        let delta = Delta { from_version: 0, to_version: state.version(), changes };
        let frame = delta.encode().unwrap();
        prop_assert_eq!(Delta::decode(&frame), Ok(delta));
        if let Some(frame) = mutated(FrameKind::Delta, &frame, at, byte)
            && let Ok(found) = Delta::decode(&frame)
        {
            prop_assert_eq!(Delta::decode(&found.encode().unwrap()), Ok(found));
        }
        let table = state.watch_snapshot();
        let frame = table.encode().unwrap();
        prop_assert_eq!(Snapshot::decode(&frame), Ok(table));
        if let Some(frame) = mutated(FrameKind::WatchSnapshot, &frame, at, byte)
            && let Ok(found) = Snapshot::decode(&frame)
        {
            prop_assert_eq!(Snapshot::decode(&found.encode().unwrap()), Ok(found));
        }
        // A state that is believed can be used: it satisfies its invariants and takes the next entries.
        if let Some(frame) = mutated(FrameKind::StateSnapshot, &snapshot::encode(&state).unwrap(), at, byte)
            && let Ok(mut found) = snapshot::decode(&frame)
        {
            let bytes = snapshot::encode(&found).unwrap();
            prop_assert_eq!(&snapshot::decode(&bytes).unwrap(), &found);
            prop_assert!(found.check_invariants().is_ok());
            let list = Command::ListStreams { tenant: None, namespace: None, after: None };
            prop_assert!(found.query(&list, &BTreeMap::new()).is_ok());
            if found.version() < u64::MAX - 100 && found.routing_version() < u64::MAX - 100 {
                apply_all(&mut found, &log);
                found.check_invariants().unwrap();
            }
        }
    }

    #[test]
    fn random_bytes_harm_no_decoder(body in prop::collection::vec(any::<u8>(), 0..300), sealed in any::<bool>()) {
        for kind in [FrameKind::Entry, FrameKind::Delta, FrameKind::WatchSnapshot, FrameKind::StateSnapshot] {
            let frame = if sealed { seal(kind, |out| out.extend_from_slice(&body)).unwrap() } else { body.clone() };
            let _ = Entry::decode(&frame);
            let _ = Delta::decode(&frame);
            let _ = Snapshot::decode(&frame);
            let _ = snapshot::decode(&frame);
        }
    }
}

/// The frame with one byte of its body changed, sealed anew. None for an empty body.
fn mutated(kind: FrameKind, frame: &[u8], at: prop::sample::Index, byte: u8) -> Option<Vec<u8>> {
    let mut body = frame[HEADER_BYTES..].to_vec();
    if body.is_empty() {
        return None;
    }
    let at = at.index(body.len());
    body[at] = byte;
    seal(kind, |out| out.extend_from_slice(&body)).ok()
}
