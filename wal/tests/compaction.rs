//! Compaction: what stays, what goes, when a tombstone may go, and what survives a crash in between.

mod kit;

use felix_protocol::position::Offset;
use felix_protocol::time::Timestamp;
use felix_wal::at_rest::{AtRest, AtRestScope, DataKey, Opener, Sealer};
use felix_wal::compact::{CompactReport, CompactSettings, CompactState, Compaction};
use felix_wal::disk::DiskError;
use felix_wal::format::stored::StoredBatch;
use felix_wal::log::{Ended, Health, ShardLog};
use felix_wal::mem_disk::{Fault, MemDisk, OpKind};
use felix_wal::read::{ReadFault, ReadFrom};
use felix_wal::repair::{Choice, repair};
use kit::*;
use std::collections::BTreeMap;

const SMALL: CompactSettings =
    CompactSettings { map_bytes_max: 1 << 20, tombstone_grace_ns: 1_000, group_bytes_max: 64 << 10 };

struct Keys {
    opener: Opener,
    sealer: Sealer,
}

fn compact(
    world: &mut World,
    log: &mut ShardLog,
    now: u64,
    settings: CompactSettings,
    mut keys: Option<&mut Keys>,
) -> Result<CompactReport, Crashed> {
    let limit = log.flushed_to();
    let Some(mut pass) = Compaction::new(READER, log, limit, Timestamp(now), settings, READ) else {
        return Ok(CompactReport::default());
    };
    let report = loop {
        let at_rest = keys.as_mut().map(|keys| AtRest { opener: &mut keys.opener, sealer: &mut keys.sealer });
        match pass.poll(log, &mut world.queue, at_rest) {
            CompactState::Working => {
                let done = world.next()?.expect("it works on something");
                pass.handle(done, log, &mut world.queue);
            }
            CompactState::Paused => pass.grant(10_000),
            CompactState::Switch(finished) => {
                log.switch(&finished, Timestamp(now), &mut world.queue).unwrap();
                let event = world.finish(log)?;
                assert_eq!((event.ended, event.leftovers), (Ended::Done, vec![]));
                pass.switched(Ok(()));
            }
            CompactState::Done(report) => break report,
            CompactState::Failed(error) => panic!("{error}"),
        }
    };
    if log.note_compacted(report.compacted_to, &mut world.queue).unwrap() {
        world.finish(log)?;
    }
    Ok(report)
}

fn all(world: &mut World, log: &ShardLog) -> Vec<(u64, Rec)> {
    let (read, position, error) = world.read(log, ReadFrom::Offset(log.log_start())).unwrap();
    assert_eq!((error, position), (None, log.flushed_to()));
    read.iter().flat_map(|batch| records(batch)).collect()
}

/// What a reader knows at the end: key to value.
fn state(records: &[(u64, Rec)]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut map = BTreeMap::new();
    for (_, (key, value, tombstone)) in records {
        let Some(key) = key else { continue };
        if *tombstone {
            map.remove(key);
        } else {
            map.insert(key.clone(), value.clone());
        }
    }
    map
}

/// 120 batches over 12 keys; every 10th record deletes, every 13th has no key.
fn filled(world: &mut World, sealer: Option<&mut Sealer>) -> (ShardLog, Stamper) {
    let mut log = world.create().unwrap();
    let mut stamper = Stamper::default();
    let mut sealer = sealer;
    for number in 0..120u64 {
        stamper.time = Timestamp(1_000 + number);
        let records: Vec<Rec> = (0..3)
            .map(|it| {
                let n = number * 3 + it;
                let key = (n % 13 != 0).then(|| format!("key-{}", n % 12).into_bytes());
                let tombstone = n % 10 == 0 && key.is_some();
                (key, if tombstone { vec![] } else { vec![n as u8; 400] }, tombstone)
            })
            .collect();
        let batch = stamper.batch(&records);
        match &mut sealer {
            Some(sealer) => {
                let mut out = Vec::new();
                sealer.seal(&batch, &mut out).unwrap();
                world.flush_stored(&mut log, &[out], true).unwrap().unwrap();
            }
            None => {
                world.flush(&mut log, &[batch]).unwrap();
            }
        }
    }
    assert!(log.segments().len() >= 4, "{:?}", log.segments());
    (log, stamper)
}

#[test]
fn the_latest_of_each_key_stays_at_its_offset() {
    let mut world = World::new(MemDisk::new(1));
    let (mut log, stamper) = filled(&mut world, None);
    let before = all(&mut world, &log);
    let bytes_before = log.stored_bytes();
    let report = compact(&mut world, &mut log, 1_500, SMALL, None).unwrap();
    assert!(report.dropped > 200, "{report:?}");
    assert_eq!(report.tombstones, 0, "within their grace");
    assert!(log.stored_bytes() < bytes_before / 2);
    let after = all(&mut world, &log);
    assert_eq!(state(&before), state(&after));
    assert!(after.iter().all(|record| before.contains(record)), "a record changed");
    // Exactly one record per key below the compacted end, and all without a key.
    let mut seen = BTreeMap::new();
    for (offset, (key, ..)) in after.iter().filter(|(offset, _)| Offset(*offset) < report.compacted_to) {
        if let Some(key) = key {
            assert_eq!(seen.insert(key.clone(), *offset), None, "two records of a key");
        }
    }
    let without_key = |list: &[(u64, Rec)]| list.iter().filter(|(_, (key, ..))| key.is_none()).count();
    assert_eq!(without_key(&before), without_key(&after));
    // Nothing new, nothing to do; and a start sees the same.
    assert_eq!(compact(&mut world, &mut log, 1_500, SMALL, None).unwrap().dropped, 0);
    let (again, opened) = world.open(9).unwrap().unwrap();
    assert_eq!((opened.damage, opened.strays.len()), (None, 0));
    assert!(all(&mut world, &again) == after);
    // The log goes on behind it, and from every offset a reader finds what is left.
    for offset in (0..stamper.next.0).step_by(7) {
        let (read, _, error) = world.read(&again, ReadFrom::Offset(Offset(offset))).unwrap();
        assert_eq!(error, None);
        let found: Vec<_> = read.iter().flat_map(|batch| records(batch)).filter(|(at, _)| *at >= offset).collect();
        let wanted: Vec<_> = after.iter().filter(|(at, _)| *at >= offset).cloned().collect();
        assert!(found == wanted, "from {offset}");
    }
}

#[test]
fn tombstones_go_after_their_grace_and_keys_stay_deleted() {
    let mut world = World::new(MemDisk::new(2));
    let (mut log, _) = filled(&mut world, None);
    let before = state(&all(&mut world, &log));
    let report = compact(&mut world, &mut log, 1_000_000, SMALL, None).unwrap();
    assert!(report.tombstones > 0);
    let after = all(&mut world, &log);
    assert_eq!(before, state(&after));
    let left = after.iter().filter(|(offset, (_, _, tombstone))| *tombstone && Offset(*offset) < report.compacted_to);
    assert_eq!(left.count(), 0);
}

/// With room for two keys a pass comes not far, but what it does is right, and passes together finish.
#[test]
fn a_small_map_takes_several_passes() {
    let mut world = World::new(MemDisk::new(3));
    let (mut log, _) = filled(&mut world, None);
    let before = state(&all(&mut world, &log));
    let mut last = Offset(0);
    for round in 0..1_000 {
        let settings = CompactSettings { map_bytes_max: 130, ..SMALL };
        let report = compact(&mut world, &mut log, 1_000_000 + round, settings, None).unwrap();
        assert_eq!(before, state(&all(&mut world, &log)), "round {round}");
        if report.compacted_to <= last {
            break;
        }
        last = report.compacted_to;
    }
    assert!(last > Offset(10), "{last}");
}

#[test]
fn a_sealed_log_is_compacted_with_its_keys_only() {
    let scope = AtRestScope::new("eu-west", "acme");
    let key = || DataKey::new(1, [3; 32]);
    let mut keys = Keys { opener: Opener::new(scope, vec![key()]), sealer: Sealer::new(scope, &key(), 1) };
    let mut world = World::new(MemDisk::new(4));
    let (mut log, _) = filled(&mut world, Some(&mut keys.sealer));
    let read = |world: &mut World, log: &ShardLog, keys: &mut Keys| {
        let (read, _, error) = world.read(log, ReadFrom::Offset(Offset(0))).unwrap();
        assert_eq!(error, None);
        let mut list = Vec::new();
        for stored in read {
            let mut clear = Vec::new();
            keys.opener.open(&StoredBatch::split_first(&stored, true).unwrap().0, &mut clear).unwrap();
            list.extend(records(&clear));
        }
        list
    };
    let before = read(&mut world, &log, &mut keys);
    let report = compact(&mut world, &mut log, 1_500, SMALL, Some(&mut keys)).unwrap();
    assert!(report.dropped > 200);
    assert_eq!(state(&before), state(&read(&mut world, &log, &mut keys)));
}

/// The power fails after every single operation of a pass: the log always reads as before or as after.
#[test]
fn a_crash_anywhere_leaves_a_whole_log() {
    let mut world = World::new(MemDisk::new(5));
    let (log, _) = filled(&mut world, None);
    let before = all(&mut world, &log);
    let disk = world.disk.clone();
    let mut crashes = 0;
    for crash_in in 0.. {
        let mut world = World::new(disk.clone());
        world.disk.reseed(crash_in);
        world.disk.crash();
        let (mut log, _) = world.open(10 + crash_in).unwrap().unwrap();
        world.crash_in = Some(crash_in);
        if compact(&mut world, &mut log, 1_000_000 + crash_in, SMALL, None).is_ok() {
            break;
        }
        crashes += 1;
        let (mut log, report) = world.open(2_000_000 + crash_in).unwrap().unwrap();
        assert_eq!(report.damage, None, "crash after {crash_in}");
        if log.clean(Timestamp(3_000_000), &mut world.queue).unwrap() {
            assert_eq!(world.finish(&mut log).unwrap().leftovers, []);
        }
        // What the pass had written so far is old in quarantine one day, and goes.
        use felix_wal::quarantine::QuarantineSweep;
        let mut sweep = QuarantineSweep::new(READER, Timestamp(4_000_000), 10, &mut world.queue);
        let swept = loop {
            let done = world.next().unwrap().unwrap();
            if let Some(swept) = sweep.handle(done, &mut world.queue) {
                break swept.unwrap();
            }
        };
        assert_eq!((swept.foreign.len(), swept.failed.len(), swept.waiting), (0, 0, 0), "{swept:?}");
        let after = all(&mut world, &log);
        assert_eq!(state(&before), state(&after), "crash after {crash_in}");
        assert!(after.iter().all(|record| before.contains(record)));
        // And it can be compacted now.
        compact(&mut world, &mut log, 4_000_000, SMALL, None).unwrap();
        assert_eq!(state(&before), state(&all(&mut world, &log)));
    }
    assert!(crashes > 50, "{crashes}");
}

/// One flush of a record per key, sealed at once.
fn put(world: &mut World, log: &mut ShardLog, stamper: &mut Stamper, keys: &[&str]) {
    stamper.time.0 += 1;
    let batch = |key: &&str| stamper.batch(&[(Some(key.as_bytes().to_vec()), vec![1; 100], false)]);
    let batches: Vec<_> = keys.iter().map(batch).collect();
    world.flush(log, &batches).unwrap();
    if log.roll(&mut world.queue).unwrap() {
        world.finish(log).unwrap();
    }
}

/// A reader passes over a segment that compaction emptied in silence: its chain is not that of the one before.
#[test]
fn a_segment_before_an_empty_one_keeps_its_chain() {
    let one = CompactSettings { group_bytes_max: 1, ..SMALL };
    let (mut world, mut stamper) = (World::new(MemDisk::new(6)), Stamper::default());
    let mut log = world.create().unwrap();
    for keys in [&["a", "b"][..], &["hot"], &["hot"]] {
        put(&mut world, &mut log, &mut stamper, keys);
    }
    // The second segment is empty after the first pass; the second one rewrites the first.
    assert_eq!(compact(&mut world, &mut log, 2_000, one, None).unwrap().dropped, 1);
    put(&mut world, &mut log, &mut stamper, &["a"]);
    assert_eq!(compact(&mut world, &mut log, 2_001, one, None).unwrap().dropped, 1);
    let offsets: Vec<u64> = all(&mut world, &log).iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, [1, 3, 4]);
}

/// Everything that is there; gaps are stepped over.
fn all_sides(world: &mut World, log: &ShardLog) -> Vec<(u64, Rec)> {
    let (mut from, mut out) = (log.log_start(), Vec::new());
    loop {
        let (read, position, error) = world.read(log, ReadFrom::Offset(from)).unwrap();
        out.extend(read.iter().flat_map(|batch| records(batch)));
        match error.map(|error| error.fault) {
            Some(ReadFault::Gap(gap)) => from = gap.to,
            fault => {
                assert_eq!((fault, position), (None, log.flushed_to()));
                return out;
            }
        }
    }
}

/// Offsets that a stop left out, a person gave up, or both, one behind the other.
#[test]
fn a_log_with_gaps_is_compacted_on_all_sides() {
    for (group_bytes_max, beside) in [(64 << 10, false), (1 << 20, true), (1, false)] {
        let settings = CompactSettings { group_bytes_max, ..SMALL };
        let mut world = World::new(MemDisk::new(7));
        let (mut log, mut stamper) = filled(&mut world, None);
        for _ in 0..2 {
            stamper.next = Offset(stamper.next.0 + 500);
            log.skip(stamper.next, NOW, &mut world.queue).unwrap();
            assert_eq!(world.finish(&mut log).unwrap().ended, Ended::Done);
        }
        if beside {
            // What lies behind the gap is the first that is new, the next time.
            compact(&mut world, &mut log, 1_500, settings, None).unwrap();
        } else {
            let mut again = World::new(world.disk.clone());
            let mut log = again.open(5).unwrap().unwrap().0;
            let report = compact(&mut again, &mut log, 1_500, settings, None).unwrap();
            assert!(report.dropped > 200, "{report:?}");
        }
        stamper.time = Timestamp(2_000);
        for keys in [["key-1", "key-2", "key-3"], ["key-1", "key-2", "key-4"]] {
            put(&mut world, &mut log, &mut stamper, &keys);
        }
        // The first segment is given up, or the one before the gap.
        let at = if group_bytes_max == 1 { log.segments().len() - 3 } else { 0 };
        let choice = Choice::QuarantineSegment(log.segments()[at].base);
        repair(&mut world.disk, maker(), SPEC.shard, choice, None, Timestamp(3_000)).unwrap();
        let (mut log, opened) = world.open(9).unwrap().unwrap();
        assert_eq!(opened.damage, None);
        let before = all_sides(&mut world, &log);
        let report = compact(&mut world, &mut log, 3_500, settings, None).unwrap();
        assert!(report.dropped >= 2, "{report:?}");
        let after = all_sides(&mut world, &log);
        assert_eq!(state(&before), state(&after));
        assert!(after.iter().all(|record| before.contains(record)), "a record changed");
        let mut seen = BTreeMap::new();
        for (offset, (key, ..)) in after.iter().filter(|(_, (key, ..))| key.is_some()) {
            assert_eq!(seen.insert(key.clone(), *offset), None, "two records of {key:?}");
        }
        assert_eq!(report.compacted_to, log.flushed_to());
        assert_eq!(log.compact_share(log.flushed_to()).new_bytes, 0);
        // Nothing is left to do, and a start sees the same.
        assert_eq!(compact(&mut world, &mut log, 3_600, settings, None).unwrap().bytes_read, 0);
        let (log, opened) = world.open(10).unwrap().unwrap();
        assert_eq!((opened.damage, opened.strays.len()), (None, 0));
        assert!(all_sides(&mut world, &log) == after);
    }
}

/// The power fails between a switch that counts and its end: the next pass goes on, without a flush in between.
#[test]
fn a_pass_goes_on_after_a_crash_within_a_switch() {
    let one = CompactSettings { group_bytes_max: 1, ..SMALL };
    let mut world = World::new(MemDisk::new(8));
    let (mut log, _) = filled(&mut world, None);
    assert!(log.roll(&mut world.queue).unwrap());
    world.finish(&mut log).unwrap();
    let disk = world.disk.clone();
    let mut within = 0;
    for crash_in in 0.. {
        let mut world = World::new(disk.clone());
        let (mut log, _) = world.open(10).unwrap().unwrap();
        world.crash_in = Some(crash_in);
        if compact(&mut world, &mut log, 2_000, one, None).is_ok() {
            break;
        }
        let (mut log, _) = world.open(3_000).unwrap().unwrap();
        if log.meta().switch.is_none() {
            continue;
        }
        within += 1;
        if log.clean(Timestamp(3_000), &mut world.queue).unwrap() {
            assert_eq!(world.finish(&mut log).unwrap().ended, Ended::Done);
        }
        assert_eq!(log.meta().switch, None);
        let limit = log.flushed_to();
        let report = compact(&mut world, &mut log, 4_000, one, None).unwrap();
        assert_eq!((report.compacted_to.max(log.meta().compacted_to), log.compact_share(limit).new_bytes), (limit, 0));
        assert_eq!(world.open(5_000).unwrap().unwrap().0.meta(), log.meta());
    }
    assert!(within > 5, "{within}");
}

/// No room for the index of what was switched: the pass ends, and the next one goes on after `clean`.
#[test]
fn a_pass_goes_on_after_a_full_disk_within_a_switch() {
    let one = CompactSettings { group_bytes_max: 1, ..SMALL };
    let mut world = World::new(MemDisk::new(9));
    let (mut log, _) = filled(&mut world, None);
    let before = state(&all(&mut world, &log));
    let limit = log.flushed_to();
    let mut pass = Compaction::new(READER, &log, limit, Timestamp(2_000), one, READ).unwrap();
    let report = loop {
        match pass.poll(&log, &mut world.queue, None) {
            CompactState::Working => {
                let done = world.next().unwrap().unwrap();
                pass.handle(done, &log, &mut world.queue);
            }
            CompactState::Paused => pass.grant(10_000),
            CompactState::Switch(finished) => {
                // The first replacement is the meta, the second the index.
                world.disk.plan_fault(OpKind::Replace, 1, Fault::Error(DiskError::Full));
                log.switch(&finished, Timestamp(2_000), &mut world.queue).unwrap();
                let event = world.finish(&mut log).unwrap();
                assert_eq!((event.ended, event.leftovers.len()), (Ended::Done, 1));
                pass.switched(Ok(()));
            }
            CompactState::Done(report) => break report,
            CompactState::Failed(error) => panic!("{error}"),
        }
    };
    assert!(report.segments_replaced == 1 && log.meta().switch.is_some() && *log.health() == Health::Well);
    assert!(log.clean(Timestamp(3_000), &mut world.queue).unwrap());
    assert_eq!(world.finish(&mut log).unwrap().ended, Ended::Done);
    assert!(!log.clean(Timestamp(3_000), &mut world.queue).unwrap());
    assert!(compact(&mut world, &mut log, 4_000, one, None).unwrap().segments_replaced > 1);
    assert_eq!(state(&all(&mut world, &log)), before);
    assert_eq!(world.open(5_000).unwrap().unwrap().1.damage, None);
}
