//! One shard's log, path by path.

mod kit;

use felix_protocol::position::{Epoch, Offset, OffsetRange};
use felix_protocol::time::Timestamp;
use felix_wal::log::{Ended, JobError, MetaChange};
use felix_wal::log_open::Tail;
use felix_wal::mem_disk::MemDisk;
use felix_wal::read::{ReadFault, ReadFrom};
use felix_wal::retain::{FloorRule, RetainPolicy, RetainScan};
use felix_wal::truncate::{CutError, FindCut};
use kit::*;

fn filled(world: &mut World, batches: usize, value_bytes: usize) -> (felix_wal::log::ShardLog, Stamper, Vec<Vec<u8>>) {
    let mut log = world.create().unwrap();
    let mut stamper = Stamper::default();
    let mut all = Vec::new();
    for number in 0..batches {
        stamper.time = Timestamp(1_000 + number as u64 * 10);
        let records: Vec<Rec> = (0..1 + number % 3)
            .map(|it| (Some(format!("k{}", (number + it) % 7).into_bytes()), vec![number as u8; value_bytes], false))
            .collect();
        let batch = stamper.batch(&records);
        let event = world.flush(&mut log, std::slice::from_ref(&batch)).unwrap();
        assert_eq!(event.ended, Ended::Done);
        all.push(batch);
    }
    assert_eq!(log.flushed_to(), stamper.next);
    (log, stamper, all)
}

#[test]
fn what_was_flushed_is_read_again_from_every_offset_before_and_after_a_start() {
    let mut world = World::new(MemDisk::new(1));
    let (log, stamper, all) = filled(&mut world, 60, 700);
    assert!(log.segments().len() > 2, "{:?}", log.segments());
    let (again, report) = World::open(&mut world, 5).unwrap().unwrap();
    assert_eq!((report.tail, report.strays.len(), &report.damage), (Tail::Clean, 0, &None));
    assert_eq!(again.meta(), log.meta());
    for log in [&log, &again] {
        for offset in 0..=stamper.next.0 {
            let (read, position, error) = world.read(log, ReadFrom::Offset(Offset(offset))).unwrap();
            assert_eq!(error, None, "from {offset}");
            assert_eq!(position, stamper.next);
            let first = all.iter().position(|batch| records(batch).last().unwrap().0 >= offset).unwrap_or(all.len());
            assert!(read == all[first..], "from {offset}");
        }
    }
}

#[test]
fn reading_begins_at_a_time() {
    let mut world = World::new(MemDisk::new(2));
    let (log, stamper, all) = filled(&mut world, 60, 700);
    let (again, _) = world.open(5).unwrap().unwrap();
    for log in [&log, &again] {
        for time in (990..1_620).step_by(5) {
            let (read, position, error) = world.read(log, ReadFrom::Time(Timestamp(time))).unwrap();
            assert_eq!((error, position), (None, stamper.next));
            let first = (time.saturating_sub(1_000)).div_ceil(10) as usize;
            assert_eq!(read.len(), all.len() - first.min(all.len()), "from time {time}");
            assert!(read == all[first.min(all.len())..]);
        }
    }
}

#[test]
fn positions_outside_are_refused_by_name() {
    let mut world = World::new(MemDisk::new(3));
    let (mut log, stamper, _) = filled(&mut world, 30, 700);
    assert!(log.set_log_start(Offset(20), Timestamp(9), &mut world.queue).unwrap());
    world.finish(&mut log).unwrap();
    let error =
        |world: &mut World, log: &_, offset| world.read(log, ReadFrom::Offset(Offset(offset))).unwrap().2.unwrap();
    assert_eq!(error(&mut world, &log, 19).fault, ReadFault::Expired { log_start: Offset(20) });
    let beyond = stamper.next.0 + 1;
    assert_eq!(error(&mut world, &log, beyond).fault, ReadFault::Beyond { flushed_to: stamper.next });
    assert_eq!(
        log.set_log_start(Offset(19), Timestamp(9), &mut world.queue),
        Err(JobError::OutOfRange { offset: Offset(19), range: OffsetRange { from: Offset(20), to: stamper.next } })
    );
}

fn find(
    world: &mut World,
    log: &felix_wal::log::ShardLog,
    to: Offset,
) -> Result<felix_wal::truncate::CutPoint, CutError> {
    let mut find = FindCut::new(READER, log, to).unwrap();
    let found = loop {
        if let Some(found) = find.poll(log, &mut world.queue) {
            break found;
        }
        let done = world.next().unwrap().unwrap();
        find.handle(done, log, &mut world.queue);
    };
    find.close(&mut world.queue);
    while !find.is_closed() {
        let done = world.next().unwrap().unwrap();
        find.handle(done, log, &mut world.queue);
    }
    found
}

#[test]
fn a_cut_is_logical_and_the_log_goes_on_from_it() {
    let mut world = World::new(MemDisk::new(4));
    let (mut log, _, mut all) = filled(&mut world, 60, 700);
    // Batches have 1, 2, 3, 1, 2, 3 ... records.
    assert!(matches!(find(&mut world, &log, Offset(41)), Err(CutError::InsideBatch(_))));
    let point = find(&mut world, &log, Offset(42)).unwrap();
    log.cut(point, &MetaChange::default(), Timestamp(50), &mut world.queue).unwrap();
    let event = world.finish(&mut log).unwrap();
    assert_eq!(event.ended, Ended::Done);
    assert!(!event.quarantined.is_empty());
    all.truncate(21);
    let mut stamper = Stamper { next: Offset(42), chain: point.chain, epoch: Epoch(2), time: Timestamp(5_000) };
    for number in 0..20 {
        let batch = stamper.batch(&[(None, vec![number; 3_000], false)]);
        world.flush(&mut log, std::slice::from_ref(&batch)).unwrap();
        all.push(batch);
    }
    let (again, report) = world.open(60).unwrap().unwrap();
    assert_eq!((report.damage, report.strays.len()), (None, 0));
    assert_eq!(again.meta().epochs.iter().map(|it| (it.epoch.0, it.start.0)).collect::<Vec<_>>(), [(1, 0), (2, 42)]);
    for log in [&log, &again] {
        let (read, _, error) = world.read(log, ReadFrom::Offset(Offset(0))).unwrap();
        assert_eq!(error, None);
        assert!(read == all);
    }
    // To the very beginning.
    let point = find(&mut world, &log, Offset(0)).unwrap();
    log.cut(point, &MetaChange::default(), Timestamp(70), &mut world.queue).unwrap();
    world.finish(&mut log).unwrap();
    assert_eq!(log.flushed_to(), Offset(0));
    let mut stamper = Stamper::default();
    let batch = stamper.batch(&[(None, vec![1], false)]);
    world.flush(&mut log, std::slice::from_ref(&batch)).unwrap();
    assert!(world.read(&log, ReadFrom::Offset(Offset(0))).unwrap().0 == [batch]);
}

fn scan(
    world: &mut World,
    log: &felix_wal::log::ShardLog,
    policy: RetainPolicy,
    now: u64,
) -> felix_wal::retain::RetainPlan {
    let mut scan = RetainScan::new(READER, policy, Timestamp(now));
    loop {
        if let Some(plan) = scan.poll(log, &mut world.queue) {
            return plan;
        }
        let done = world.next().unwrap().unwrap();
        scan.handle(done, log);
    }
}

#[test]
fn retention_keeps_what_the_floor_holds_or_says_what_it_cost() {
    let mut world = World::new(MemDisk::new(5));
    let (mut log, stamper, _) = filled(&mut world, 90, 700);
    let sealed = log.segments().len();
    assert!(sealed >= 3, "{sealed}");
    let bases: Vec<Offset> = log.segments().iter().map(|it| it.base).collect();
    let all = RetainPolicy { age_ns: Some(0), ..Default::default() };
    assert_eq!(scan(&mut world, &log, all, 1_000_000).segments, sealed);
    let aged = RetainPolicy { age_ns: Some(100), ..Default::default() };
    assert_eq!(scan(&mut world, &log, aged, 1_050).segments, 0);
    let kept = RetainPolicy { floor: Some(Offset(bases[1].0 + 1)), ..all };
    let plan = scan(&mut world, &log, kept, 1_000_000);
    assert_eq!((plan.segments, plan.log_start, plan.expired), (1, bases[1], None));
    assert_eq!(plan.held_bytes, log.segments()[1..].iter().map(|it| it.bytes).sum::<u64>());
    let expire = RetainPolicy { floor_rule: FloorRule::Expire, ..kept };
    let plan = scan(&mut world, &log, expire, 1_000_000);
    assert_eq!(plan.expired, Some(OffsetRange { from: Offset(bases[1].0 + 1), to: plan.log_start }));
    let small = RetainPolicy { bytes: Some(log.stored_bytes() - 1), ..Default::default() };
    let plan = scan(&mut world, &log, small, 0);
    assert_eq!(plan.segments, 1);
    assert!(log.retain(&plan, Timestamp(77), &mut world.queue).unwrap());
    let event = world.finish(&mut log).unwrap();
    assert_eq!(event.quarantined.len(), 2, "segment and index");
    assert_eq!(log.log_start(), bases[1]);
    assert!(world.disk.paths().iter().any(|path| path.0.starts_with("quarantine/")));
    let (read, position, error) = world.read(&log, ReadFrom::Offset(bases[1])).unwrap();
    assert_eq!((error, position), (None, stamper.next));
    assert!(!read.is_empty());
}

#[test]
fn an_idle_shard_is_small() {
    let mut world = World::new(MemDisk::new(6));
    world.settings.segment_bytes = 64 << 20;
    let (mut log, _, _) = filled(&mut world, 400, 100);
    log.close_file(&mut world.queue).unwrap();
    world.finish(&mut log).unwrap();
    assert!(log.held_bytes() <= 2 << 10, "{}", log.held_bytes());
}

#[test]
fn an_old_copy_of_the_meta_is_refused() {
    use felix_wal::log_open::{OpenError, Opening};
    let mut world = World::new(MemDisk::new(7));
    let (log, stamper, _) = filled(&mut world, 3, 10);
    assert_eq!(log.flushed_to(), stamper.next);
    let expected = Offset(stamper.next.0 + 1);
    let mut opening = Opening::open(LOG, maker(), SPEC.shard, Timestamp(0), expected, &mut world.queue);
    loop {
        let done = world.next().unwrap().unwrap();
        if let Some(opened) = opening.handle(done, &mut world.queue) {
            assert_eq!(opened.unwrap_err(), OpenError::MetaOlder { flushed_to: stamper.next, expected });
            break;
        }
    }
}

/// A shard is made once per lineage, and never over data that lost its meta.
#[test]
fn a_shard_is_not_made_over_another() {
    use felix_protocol::position::Lineage;
    use felix_wal::disk::{Disk, DiskOp, FilePath};
    use felix_wal::log_open::{OpenError, Opening, ShardSpec};
    let mut world = World::new(MemDisk::new(8));
    let (log, _, _) = filled(&mut world, 30, 700);
    let segments = log.segments().len() + 1;
    let create = |world: &mut World, lineage| {
        let mut opening = Opening::create(LOG, maker(), ShardSpec { lineage, ..SPEC }, &mut world.queue);
        loop {
            let done = world.next().unwrap().unwrap();
            if let Some(opened) = opening.handle(done, &mut world.queue) {
                return opened.map(|(log, _)| log.flushed_to());
            }
        }
    };
    assert_eq!(create(&mut world, SPEC.lineage), Err(OpenError::Exists(SPEC.lineage)));
    let mut bare = World::new(world.disk.clone());
    let meta = FilePath(format!("shards/{:016x}/meta", SPEC.shard.0));
    bare.disk.call(DiskOp::Remove { path: meta }).unwrap();
    assert_eq!(create(&mut bare, SPEC.lineage), Err(OpenError::NoMeta { segments }));
    assert_eq!(create(&mut world, Lineage(2)), Ok(Offset(0)));
    let (log, report) = world.open(5).unwrap().unwrap();
    assert_eq!((log.lineage(), log.flushed_to()), (Lineage(2), Offset(0)));
    assert!(report.strays.len() >= segments, "{:?}", report.strays);
}

/// Segments that the meta does not know are no leftovers of one crash: the meta is an old one.
#[test]
fn a_meta_from_before_is_refused_although_nobody_says_what_to_expect() {
    use felix_wal::disk::{Disk, DiskOp, FilePath};
    use felix_wal::log_open::OpenError;
    let mut world = World::new(MemDisk::new(9));
    let (mut log, mut stamper, _) = filled(&mut world, 3, 700);
    let path = FilePath(format!("shards/{:016x}/meta", SPEC.shard.0));
    let bytes = world.disk.content(&path).unwrap();
    let flushed_to = log.flushed_to();
    for _ in 0..60 {
        let batch = stamper.batch(&[(None, vec![1; 3_000], false)]);
        world.flush(&mut log, &[batch]).unwrap();
    }
    world.disk.call(DiskOp::Replace { path, bytes }).unwrap();
    match world.open(5).unwrap() {
        Err(OpenError::MetaOlder { flushed_to: found, expected }) => {
            assert!(found == flushed_to && expected > found);
        }
        other => panic!("{other:?}"),
    }
}

/// The power fails after every operation of a cut that takes many segments: the log opens, cut or not, and goes on.
#[test]
fn a_crash_anywhere_in_a_cut_leaves_the_log_cut_or_not() {
    let mut world = World::new(MemDisk::new(10));
    let (log, stamper, all) = filled(&mut world, 90, 700);
    let to = Offset(all.iter().map(|batch| records(batch).last().unwrap().0 + 1).find(|end| *end > 20).unwrap());
    assert!(log.segments().iter().filter(|it| it.base > to).count() >= 2);
    let point = find(&mut world, &log, to).unwrap();
    let (mut cut, mut whole) = (0, 0);
    for crash_in in 0.. {
        let mut world = World::new(world.disk.clone());
        world.disk.crash();
        let (mut log, _) = world.open(1).unwrap().unwrap();
        world.disk.reseed(crash_in);
        world.crash_in = Some(crash_in);
        log.cut(point, &MetaChange::default(), Timestamp(5), &mut world.queue).unwrap();
        if world.finish(&mut log).is_ok() {
            break;
        }
        let (mut log, report) = world.open(100).unwrap().unwrap();
        assert_eq!(report.damage, None);
        if log.clean(Timestamp(200), &mut world.queue).unwrap() {
            assert_eq!(world.finish(&mut log).unwrap().leftovers, []);
        }
        let end = log.flushed_to();
        assert!(end == to || end == stamper.next, "{end}");
        *(if end == to { &mut cut } else { &mut whole }) += 1;
        let cursor = log.cursor();
        let mut stamper = Stamper { next: end, chain: cursor.chain, epoch: Epoch(9), time: Timestamp(90_000) };
        let more = stamper.batch(&[(None, vec![3; 10], false)]);
        assert_eq!(world.flush(&mut log, std::slice::from_ref(&more)).unwrap().ended, Ended::Done);
        let (log, _) = world.open(300).unwrap().unwrap();
        let (read, _, error) = world.read(&log, ReadFrom::Offset(Offset(0))).unwrap();
        assert_eq!(error, None);
        let kept = all.iter().filter(|batch| records(batch)[0].0 < end.0);
        assert!(read.iter().eq(kept.chain([&more])), "crash after {crash_in}");
    }
    assert!(cut > 3 && whole > 0, "{cut} {whole}");
}

/// An index that was written before its segment grew, by a roll that a crash kept from counting: it is not believed.
#[test]
fn an_index_from_before_the_segment_grew_is_not_believed() {
    use felix_wal::disk::{Disk, DiskOp};
    let mut world = World::new(MemDisk::new(11));
    world.settings.segment_bytes = 1 << 20;
    let (mut log, mut stamper, mut all) = filled(&mut world, 10, 700);
    let mut rolled = World::new(world.disk.clone());
    rolled.disk.crash();
    let (mut early, _) = rolled.open(1).unwrap().unwrap();
    assert!(early.roll(&mut rolled.queue).unwrap());
    rolled.finish(&mut early).unwrap();
    for _ in 0..10 {
        stamper.time = Timestamp(50_000);
        let batch = stamper.batch(&[(None, vec![3; 3_000], false)]);
        world.flush(&mut log, std::slice::from_ref(&batch)).unwrap();
        all.push(batch);
    }
    log.roll(&mut world.queue).unwrap();
    world.finish(&mut log).unwrap();
    let path = world.disk.paths().into_iter().find(|path| path.0.ends_with(".idx")).unwrap();
    let stale = rolled.disk.content(&path).unwrap();
    let good = world.disk.content(&path).unwrap();
    assert!(stale != good);
    let aged = RetainPolicy { age_ns: Some(10_000), ..Default::default() };
    assert_eq!(scan(&mut world, &log, aged, 55_000).segments, 0);
    assert_eq!(scan(&mut world, &log, aged, 70_000).segments, 1);
    world.disk.call(DiskOp::Replace { path, bytes: stale }).unwrap();
    let plan = scan(&mut world, &log, aged, 55_000);
    assert_eq!((plan.segments, plan.unknown_age), (0, Some(Offset(0))));
    for offset in 0..stamper.next.0 {
        let (read, position, error) = world.read(&log, ReadFrom::Offset(Offset(offset))).unwrap();
        assert_eq!((error, position), (None, stamper.next), "from {offset}");
        assert!(read == all[all.len() - read.len()..]);
    }
}

/// A flush that a crash kept from counting, then another one in its place whose write is lost: what lies there is whole and
/// in its place, and not the log.
#[test]
fn an_older_chunk_in_the_place_of_a_lost_one_is_found() {
    use felix_wal::mem_disk::{Fault, OpKind};
    for more in [0, 3] {
        let mut world = World::new(MemDisk::new(12));
        world.settings.extent_bytes_first = 64 << 10;
        let (log, stamper, all) = filled(&mut world, 3, 100);
        let mut other = World::new(world.disk.clone());
        other.disk.crash();
        let (mut twin, _) = other.open(1).unwrap().unwrap();
        let lost = stamper.clone().batch(&[(None, vec![1; 100], false)]);
        other.flush(&mut twin, &[lost]).unwrap();
        let open = log.meta().open.unwrap();
        let path = world.disk.paths().into_iter().find(|path| path.0.ends_with(".seg")).unwrap();
        let content = other.disk.content(&path).unwrap();
        let at = open.used_bytes as usize;
        world.disk.overwrite(&path, at as u64, &content[at..at + 4_096]);
        world.disk.crash();
        let (mut log, _) = world.open(2).unwrap().unwrap();
        let mut stamper = stamper.clone();
        for number in 0..=more {
            if number == 0 {
                world.disk.plan_fault(OpKind::Write, 0, Fault::Lost);
            }
            let batch = stamper.batch(&[(None, vec![2; 100], false)]);
            assert_eq!(world.flush(&mut log, &[batch]).unwrap().ended, Ended::Done);
        }
        let (read, _, error) = world.read(&log, ReadFrom::Offset(Offset(0))).unwrap();
        assert!(matches!(error, Some(ref it) if matches!(it.fault, ReadFault::Broken { .. })), "{more}: {error:?}");
        assert!(read.len() <= all.len() + usize::from(more > 0) && read[..all.len()] == all);
    }
}
