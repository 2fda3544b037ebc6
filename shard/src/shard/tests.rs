use super::*;
use crate::event::{ConnKey, Event};
use crate::kit::{Lab, MS, SHARD, body, config, spec};
use felix_protocol::batch_builder::ProducerStamp;
use felix_protocol::frame::SlowPolicy::Block;
use felix_protocol::ids::Sequence;
use felix_protocol::position::{Epoch, Lineage};

/// Publishes and tells what came of it.
fn publish(lab: &mut Lab, producer: u64, epoch: u32, base: u64, names: &[&str]) -> String {
    let stamp =
        ProducerStamp { producer: ProducerId(producer), epoch: ProducerEpoch(epoch), base_sequence: Sequence(base) };
    let body = body(names, stamp, b"v");
    let batch = CheckedBatch::check(&mut lab.owner.pool, &body, 1 << 20, None).unwrap();
    let channel = ChannelKey { core: CoreId(0), conn: ConnKey(1), stream: 4 };
    lab.owner.handle(lab.now, Event::Published { shard: SHARD, channel, batch }, &mut lab.effects);
    let effects: Vec<_> = lab.effects.drain().collect();
    match &effects[..] {
        [Effect::Ack { ack, .. }] => format!("{}+{} at {}", ack.base_sequence, ack.record_count, ack.base_offset),
        [Effect::Refuse { base_sequence, record_count, code, .. }] => format!("{base_sequence}+{record_count} {code}"),
        other => panic!("{other:?}"),
    }
}

fn next_sequence(lab: &mut Lab, producer: u64, epoch: u32) -> Result<u64, ErrorCode> {
    let channel = ChannelKey { core: CoreId(0), conn: ConnKey(1), stream: 4 };
    let (producer, producer_epoch) = (ProducerId(producer), ProducerEpoch(epoch));
    lab.owner.handle(
        lab.now,
        Event::ChannelOpened { shard: SHARD, channel, producer, producer_epoch },
        &mut lab.effects,
    );
    match lab.effects.drain().next() {
        Some(Effect::OpenChannel { result, .. }) => result.map(|it| it.next_sequence.0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn retries_are_appended_once() {
    let mut lab = Lab::new(Limits::default(), 1, config());
    assert_eq!(publish(&mut lab, 0, 0, 0, &["x"]), "0+1 at 0", "anonymous");
    assert_eq!(publish(&mut lab, 0, 0, 0, &["x"]), "0+1 at 1", "and never a duplicate");
    assert_eq!(next_sequence(&mut lab, 5, 1), Ok(0));
    assert_eq!(publish(&mut lab, 5, 1, 0, &["a", "b"]), "0+2 at 2");
    assert_eq!(publish(&mut lab, 5, 1, 0, &["a", "b"]), "0+2 at 2");
    assert_eq!(publish(&mut lab, 5, 1, 3, &["d"]), "3+1 SequenceGap");
    assert_eq!(publish(&mut lab, 5, 1, 2, &["c"]), "2+1 at 4");
    assert_eq!(publish(&mut lab, 5, 1, 2, &["C"]), "2+1 DuplicateMismatch");
    assert_eq!(next_sequence(&mut lab, 5, 1), Ok(3));
    assert_eq!(publish(&mut lab, 5, 2, 0, &["a"]), "0+1 at 5");
    assert_eq!(publish(&mut lab, 5, 1, 3, &["d"]), "3+1 ProducerFenced");
    assert_eq!(next_sequence(&mut lab, 5, 1), Err(ErrorCode::ProducerFenced));
    let counters = *lab.owner.get(SHARD).unwrap().counters();
    assert_eq!((counters.records_in, counters.duplicates, counters.refused), (6, 1, 3));
    assert_eq!(lab.owner.get(SHARD).unwrap().high_watermark(), Offset(6));
}

#[test]
fn appends_are_chained_and_time_never_runs_back() {
    let mut lab = Lab::new(Limits::default(), 1, config());
    lab.publish(&["a"]);
    lab.now.wall.0 -= 500 * MS;
    lab.publish(&["b"]);
    let batches: Vec<_> = lab.owner.get(SHARD).unwrap().log.read(Offset(0)).cloned().collect();
    assert_eq!(batches[0].header().append_time, batches[1].header().append_time);
    let mut again = *batches[1].header();
    let crc = felix_protocol::batch_view::BatchView::parse(batches[1].bytes()).unwrap().body.crc;
    again.link(batches[0].header().chain, crc);
    assert_eq!(again.chain, batches[1].header().chain);
}

#[test]
fn held_memory_refuses_appends_until_it_comes_back() {
    let limits = Limits { held_bytes_max: 400, ..Limits::default() };
    let mut lab = Lab::new(limits, 1, ShardConfig { retention_bytes: 1, ..config() });
    let reader = lab.subscribe(&spec(Start::Latest, "", Block));
    for base in 0..4 {
        assert!(publish_and_deliver(&mut lab), "{base}");
    }
    assert!(!publish_and_deliver(&mut lab), "the tail of the reader's core holds too much");
    assert_eq!(lab.owner.get(SHARD).unwrap().counters().refused, 1);
    assert!(lab.owner.needs_ticks());
    lab.cores[0].unsubscribe(reader);
    lab.handle(Event::Ticked);
    assert!(publish_and_deliver(&mut lab), "time alone brought it back");
}

fn publish_and_deliver(lab: &mut Lab) -> bool {
    let before = lab.owner.get(SHARD).unwrap().high_watermark();
    lab.publish(&["a"]);
    lab.owner.get(SHARD).unwrap().high_watermark() > before
}

#[test]
fn a_full_mesh_loses_nothing() {
    let mut lab = Lab::new(Limits::default(), 2, config());
    let key = lab.cores[1].subscribe(&spec(Start::Latest, "", Block));
    lab.pump();
    lab.full = vec![CoreId(1)];
    for _ in 0..RESUME_BATCHES_MAX + 10 {
        lab.publish(&["a"]);
    }
    assert_eq!(lab.owner.stalled_cores().collect::<Vec<_>>(), [CoreId(1)]);
    assert_eq!(lab.read_at(1, key), "");
    // Who attaches meanwhile begins where the log is, though its core is not there yet.
    let late = lab.cores[1].subscribe(&spec(Start::Latest, "", Block));
    lab.pump();
    let state = lab.cores[1].get(late).unwrap();
    assert_eq!(state.told, Offset(RESUME_BATCHES_MAX as u64 + 10));
    lab.full.clear();
    lab.handle(Event::MeshHasRoom { core: CoreId(1) });
    assert_eq!(lab.owner.stalled_cores().count(), 1, "more than one event may send");
    lab.full = vec![CoreId(1)];
    lab.handle(Event::MeshHasRoom { core: CoreId(1) });
    lab.handle(Event::MeshHasRoom { core: CoreId(1) });
    assert_eq!(lab.owner.stalled_cores().count(), 1, "full again");
    lab.full.clear();
    lab.handle(Event::MeshHasRoom { core: CoreId(1) });
    assert_eq!(lab.owner.stalled_cores().count(), 0);
    lab.publish(&["b"]);
    let read = lab.read_at(1, key);
    assert_eq!(read.split(", ").count(), RESUME_BATCHES_MAX + 11);
    assert!(!read.contains("gap") && read.ends_with("74-75: b"), "{read}");
    assert_eq!(lab.read_at(1, late), "74-75: b");
    assert_eq!(lab.cores[1].counters.jumps, 0);
}

#[test]
fn retention_may_overtake_a_full_mesh() {
    let mut lab = Lab::new(Limits::default(), 2, ShardConfig { retention_bytes: 500, ..config() });
    lab.publish(&["a"]);
    let key = lab.cores[1].subscribe(&spec(Start::Earliest, "", Block));
    let idle = lab.cores[1].subscribe(&spec(Start::Earliest, "x", Block));
    lab.pump();
    assert_eq!((lab.read_at(1, key).as_str(), lab.read_at(1, idle).as_str()), ("0-1: a", "progress 0-1"));
    lab.publish(&["a"]);
    assert_eq!((lab.read_at(1, key).as_str(), lab.read_at(1, idle).as_str()), ("1-2: a", ""));
    lab.full = vec![CoreId(1)];
    for _ in 0..10 {
        lab.publish(&["b"]);
    }
    lab.full.clear();
    lab.handle(Event::MeshHasRoom { core: CoreId(1) });
    assert_eq!(lab.cores[1].counters.jumps, 1);
    assert_eq!(lab.read_at(1, key), "gap 2-9, 9-10: b, 10-11: b, 11-12: b", "the ring begins behind the hole");
    // The hole may have held what it wants, so it is told at once; what it has looked at is not part of it.
    assert_eq!(lab.read_at(1, idle), "progress 1-2, gap 2-9");
}

#[test]
fn a_log_that_aged_away_is_a_gap() {
    let mut lab = Lab::new(Limits::default(), 1, ShardConfig { retention_age_ns: Some(5 * MS), ..config() });
    lab.publish(&["a", "b"]);
    lab.pass(6);
    lab.handle(Event::Ticked);
    let start = Start::Position(felix_protocol::position::Position { lineage: Lineage(1), offset: Offset(1) });
    let key = lab.subscribe(&spec(start, "", Block));
    assert_eq!(lab.read(key), "gap 1-2", "nothing to fetch, so all up to the high watermark is lost");
    lab.publish(&["c"]);
    assert_eq!(lab.read(key), "2-3: c");
}

#[test]
fn a_refusal_of_an_attachment_that_ended_changes_nothing() {
    let mut lab = Lab::new(Limits::default(), 2, config());
    let attach = |lab: &mut Lab| {
        let sub = SubKey { slot: 0, generation: 0 };
        lab.handle(Event::Attached { shard: SHARD, core: CoreId(1), sub, start: Start::Latest });
    };
    attach(&mut lab);
    lab.publish(&["a"]);
    lab.handle(Event::ShardPut(ShardConfig { lineage: Lineage(2), epoch: Epoch(2), ..config() }));
    attach(&mut lab);
    lab.owner.commit_refused(CoreId(1), SHARD, Offset(0));
    lab.owner.check();
    lab.handle(Event::MeshHasRoom { core: CoreId(1) });
    assert_eq!(lab.owner.stalled_cores().count(), 0);
    lab.publish(&["b"]);
    assert_eq!(lab.owner.get(SHARD).unwrap().high_watermark(), Offset(1));
}

#[test]
fn an_idle_shard_is_small() {
    // DESIGN 11: at most 2 KiB, dedup and log included, while nobody uses it.
    assert!(size_of::<Shard>() < 600, "{}", size_of::<Shard>());
}
