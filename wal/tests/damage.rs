//! Damage at rest: 200 flips, cuts, lost and misplaced blocks, in every kind of file. Nothing wrong is ever served, nothing
//! goes unnoticed by `check` unless it is harmless, and nothing is removed. Then what a person may decide about it.

mod kit;

use felix_protocol::ids::NodeId;
use felix_protocol::position::{Offset, OffsetRange};
use felix_protocol::time::Timestamp;
use felix_wal::check::{Consequence, What, check};
use felix_wal::disk::{Disk, DiskOp, FilePath};
use felix_wal::dump::{Values, dump};
use felix_wal::format::header::HeaderError;
use felix_wal::log::{Ended, Health, ShardLog};
use felix_wal::log_open::{OpenError, Tail};
use felix_wal::mem_disk::{Chance, Fault, MemDisk, OpKind};
use felix_wal::read::{ReadFault, ReadFrom};
use felix_wal::repair::{Choice, LOST_OFFSETS, RepairError, repair};
use kit::*;

/// A folder with sealed segments, an open one, and all batches in it.
fn filled(seed: u64) -> (World, ShardLog, Stamper, Vec<Vec<u8>>) {
    let mut world = World::new(MemDisk::new(seed));
    let mut log = world.create().unwrap();
    let mut stamper = Stamper::default();
    let mut all = Vec::new();
    for number in 0..40u64 {
        stamper.time = Timestamp(1_000 + number);
        let batches: Vec<_> = (0..1 + number % 4)
            .map(|it| stamper.batch(&[(Some(vec![b'a' + it as u8]), vec![number as u8; 900], false)]))
            .collect();
        world.flush(&mut log, &batches).unwrap();
        all.extend(batches);
    }
    assert!(log.segments().len() >= 2 && log.meta().open.is_some());
    (world, log, stamper, all)
}

fn pick(disk: &MemDisk, chance: &mut Chance) -> FilePath {
    let paths = disk.paths();
    paths[chance.below(paths.len() as u64) as usize].clone()
}

#[test]
fn two_hundred_kinds_of_damage_serve_nothing_wrong() {
    let (world, _, _, all) = filled(1);
    let clean = world.disk;
    let mut chance = Chance::new(7);
    let (mut refused, mut partial, mut harmless) = (0, 0, 0);
    for case in 0..200 {
        let mut world = World::new(clean.clone());
        let path = pick(&world.disk, &mut chance);
        let content = clean.content(&path).unwrap();
        let bytes = content.len() as u64;
        match case % 5 {
            0..=2 => assert!(world.disk.flip_bit(&path, chance.below(bytes * 8))),
            3 => world.disk.cut(&path, chance.below(bytes)),
            _ => {
                // A block of this file where another belongs.
                let from = chance.below(bytes / 4_096) as usize * 4_096;
                let at = chance.below(bytes / 4_096) * 4_096;
                world.disk.overwrite(&path, at, &content[from..from + 4_096]);
            }
        }
        let damaged = world.disk.content(&path);
        let same = damaged.as_ref() == Some(&content);
        let before = world.disk.paths();
        let report = check(&mut world.disk, &maker().identity);
        let served = match world.open(9).unwrap() {
            Err(_) => {
                refused += 1;
                assert_eq!(report.worst(), Consequence::Closed, "case {case} {path}: {:?}", report.findings);
                None
            }
            Ok((mut log, opened)) => {
                let (read, position, error) = world.read(&log, ReadFrom::Offset(Offset(0))).unwrap();
                assert!(read == all[..read.len()], "case {case} {path}: wrong bytes");
                if let Some(range) = error.as_ref().and_then(|error| error.damaged()) {
                    log.mark_damaged(range);
                    // Behind the damage it goes on, or says so again; it is never wrong.
                    let (rest, ..) = world.read(&log, ReadFrom::Offset(range.to)).unwrap();
                    let first = all.iter().position(|batch| rest.first() == Some(batch));
                    assert!(rest.is_empty() || rest == all[first.unwrap()..][..rest.len()], "case {case}");
                }
                if matches!(log.health(), Health::Damaged(_)) {
                    assert!(log.clean(Timestamp(9), &mut world.queue).is_err(), "a damaged log throws away");
                    // What the WAL still holds goes to a segment of its own; what was served before is served again.
                    world.builder.begin(log.cursor());
                    let end = log.cursor().next;
                    let mut stamper = Stamper { next: end, chain: log.cursor().chain, ..Default::default() };
                    stamper.time = Timestamp(90_000);
                    let batch = stamper.batch(&[(None, vec![1], false)]);
                    assert_eq!(world.flush(&mut log, std::slice::from_ref(&batch)).unwrap().ended, Ended::Done);
                    let (log, _) = world.open(10).unwrap().unwrap();
                    assert_eq!(world.read(&log, ReadFrom::Offset(Offset(0))).unwrap().0, read, "case {case} {path}");
                    let (behind, position, error) = world.read(&log, ReadFrom::Offset(end)).unwrap();
                    assert_eq!((behind, position, error), (vec![batch], stamper.next, None), "case {case} {path}");
                    assert_eq!(world.disk.content(&path), damaged, "case {case}: the damaged file was written to");
                }
                let whole = read.len() == all.len() && error.is_none() && opened.damage.is_none();
                if whole {
                    assert!(position == log.flushed_to());
                    harmless += 1;
                } else {
                    partial += 1;
                    assert!(
                        report.worst() >= Consequence::Unreadable,
                        "case {case} {path}: not found by check: {:?}, but {error:?} {opened:?}",
                        report.findings
                    );
                }
                Some(whole)
            }
        };
        if served == Some(true) && !same {
            // Harmless: behind the end of the log, or an index, which costs time only.
            let tail = report.findings.iter().all(|it| it.consequence < Consequence::Unreadable);
            assert!(tail, "case {case} {path}: {:?}", report.findings);
        }
        let after = world.disk.paths();
        assert!(before.iter().all(|path| after.contains(path)), "case {case}: a file is gone");
    }
    assert!(refused > 10 && partial > 30 && harmless > 10, "{refused} {partial} {harmless}");
}

#[test]
fn a_clean_folder_has_no_findings_and_a_foreign_one_is_refused() {
    let (mut world, log, _, all) = filled(2);
    let report = check(&mut world.disk, &maker().identity);
    assert_eq!(report.findings, []);
    assert_eq!((report.shards, report.batches), (1, all.len() as u64));
    assert_eq!(report.segments, log.segments().len() as u64 + 1);
    let mut other = maker().identity;
    other.node = NodeId(99);
    let report = check(&mut world.disk, &other);
    assert!(matches!(report.findings[0].what, What::Header(HeaderError::OtherNode { .. })), "{:?}", report.findings);
}

#[test]
fn a_torn_tail_is_passed_over_and_said() {
    let (mut world, log, mut stamper, all) = filled(3);
    let open = log.meta().open.unwrap();
    let path = format!("shards/{:016x}/{:08x}-{:016x}.seg", SPEC.shard.0, SPEC.lineage.0, open.base.0);
    let path = FilePath(path);
    // A flush whose meta never came, then one that was torn as well.
    stamper.time = Timestamp(9_000);
    let more: Vec<_> = (0..6).map(|_| stamper.batch(&[(None, vec![3; 2_000], false)])).collect();
    let mut twin = World::new(world.disk.clone());
    let (mut other, _) = twin.open(1).unwrap().unwrap();
    twin.flush(&mut other, &more).unwrap();
    let written = twin.disk.content(&path).unwrap();
    let at = open.used_bytes as usize;
    assert!(written.len() >= at + 12_288);
    let size = world.disk.content(&path).unwrap().len();
    for (bytes, torn) in [(12_288.min(size - at), false), (4_096, true)] {
        let mut world = World::new(world.disk.clone());
        world.disk.overwrite(&path, at as u64, &written[at..at + bytes]);
        let findings = check(&mut world.disk, &maker().identity).findings;
        let (log, report) = world.open(2).unwrap().unwrap();
        assert_eq!(report.damage, None);
        if torn || bytes < 12_288 {
            assert!(matches!(report.tail, Tail::Torn { .. }), "{:?}", report.tail);
            assert!(matches!(findings[..], [ref it] if matches!(it.what, What::TornTail(_))), "{findings:?}");
        } else {
            assert!(matches!(report.tail, Tail::Unacknowledged { .. }), "{:?}", report.tail);
            assert!(matches!(findings[..], [ref it] if it.what == What::UnacknowledgedTail), "{findings:?}");
        }
        assert!(world.read(&log, ReadFrom::Offset(Offset(0))).unwrap().0 == all);
    }
    // And the next flush writes over it.
    world.disk.overwrite(&path, at as u64, &written[at..at + 4_096]);
    let (mut log, _) = world.open(3).unwrap().unwrap();
    assert_eq!(world.flush(&mut log, &more).unwrap().ended, Ended::Done);
    let (log, report) = world.open(4).unwrap().unwrap();
    assert_eq!((report.tail, log.flushed_to()), (Tail::Clean, stamper.next));
    assert!(world.read(&log, ReadFrom::Offset(Offset(0))).unwrap().0 == [all, more].concat());
}

#[test]
fn a_lost_meta_closes_the_shard_and_touches_nothing() {
    let (mut world, _, _, _) = filled(4);
    let meta = FilePath(format!("shards/{:016x}/meta", SPEC.shard.0));
    world.disk.flip_bit(&meta, 8 * 4_100);
    assert!(matches!(world.open(1).unwrap(), Err(OpenError::Meta(_))));
    world.disk.cut(&meta, 0);
    assert!(matches!(world.open(1).unwrap(), Err(OpenError::MetaHeader(HeaderError::Truncated))));
    let before = world.disk.paths();
    world.disk.call(DiskOp::Remove { path: meta }).unwrap();
    let segments = before.iter().filter(|path| path.0.ends_with(".seg")).count();
    assert_eq!(world.open(1).unwrap().unwrap_err(), OpenError::NoMeta { segments });
    assert_eq!(world.disk.paths().len(), before.len() - 1);
}

fn break_chunk(world: &mut World, base: Offset, at: u64) {
    let path = format!("shards/{:016x}/{:08x}-{:016x}.seg", SPEC.shard.0, SPEC.lineage.0, base.0);
    assert!(world.disk.flip_bit(&FilePath(path), 8 * (at + 500)));
}

#[test]
fn a_person_may_cut_at_the_damage() {
    let (mut world, log, _, all) = filled(5);
    let base = log.segments()[1].base;
    break_chunk(&mut world, base, 8_192);
    let (log, _) = world.open(1).unwrap().unwrap();
    let (good, _, error) = world.read(&log, ReadFrom::Offset(Offset(0))).unwrap();
    let error = error.unwrap();
    assert!(matches!(error.fault, ReadFault::Chunk(_)));
    let report = repair(&mut world.disk, maker(), SPEC.shard, Choice::TruncateAtDamage, None, Timestamp(50)).unwrap();
    assert_eq!(report.given_up, Some(OffsetRange { from: error.next, to: log.flushed_to() }));
    assert!(!report.quarantined.is_empty());
    let (mut log, opened) = world.open(60).unwrap().unwrap();
    // The offsets that were given up are given to nobody else.
    let end = Offset(report.given_up.unwrap().to.0 + LOST_OFFSETS);
    assert_eq!((opened.damage, log.flushed_to(), report.goes_on_at), (None, end, Some(end)));
    let (read, _, gap) = world.read(&log, ReadFrom::Offset(Offset(0))).unwrap();
    assert!(read == good && good == all[..good.len()]);
    assert_eq!(gap.unwrap().fault, ReadFault::Gap(OffsetRange { from: error.next, to: end }));
    let cursor = log.cursor();
    let mut stamper = Stamper { next: cursor.next, chain: cursor.chain, time: Timestamp(9_000), ..Default::default() };
    let batch = stamper.batch(&[(None, vec![1], false)]);
    assert_eq!(world.flush(&mut log, std::slice::from_ref(&batch)).unwrap().ended, Ended::Done);
    assert_eq!(world.read(&log, ReadFrom::Offset(end)).unwrap().0, [batch]);
    let findings = check(&mut world.disk, &maker().identity).findings;
    assert!(matches!(findings[..], [ref it] if it.what == What::Gap), "{findings:?}");
    let again = repair(&mut world.disk, maker(), SPEC.shard, Choice::TruncateAtDamage, None, Timestamp(70));
    assert_eq!(again, Err(RepairError::NothingDamaged));
}

#[test]
fn a_person_may_give_a_segment_up() {
    let (world, log, stamper, all) = filled(6);
    let bases: Vec<Offset> = log.segments().iter().map(|it| it.base).collect();
    let open = log.meta().open.unwrap().base;
    for (base, end) in [(bases[0], bases[1]), (bases[1], bases.get(2).copied().unwrap_or(open)), (open, stamper.next)] {
        let mut world = World::new(world.disk.clone());
        break_chunk(&mut world, base, 4_096);
        let choice = Choice::QuarantineSegment(base);
        let report = repair(&mut world.disk, maker(), SPEC.shard, choice, None, Timestamp(50)).unwrap();
        let gap = OffsetRange { from: base, to: end };
        assert_eq!(report.given_up, Some(gap));
        let (mut log, opened) = world.open(60).unwrap().unwrap();
        assert_eq!(opened.damage, None);
        let error = world.read(&log, ReadFrom::Offset(base)).unwrap().2.unwrap();
        assert_eq!(error.fault, ReadFault::Gap(gap));
        let mut stamper = stamper.clone();
        stamper.time = Timestamp(9_000);
        let batch = stamper.batch(&[(None, vec![1], false)]);
        assert_eq!(world.flush(&mut log, std::slice::from_ref(&batch)).unwrap().ended, Ended::Done);
        let (before, ..) = world.read(&log, ReadFrom::Offset(Offset(0))).unwrap();
        let (behind, _, error) = world.read(&log, ReadFrom::Offset(end)).unwrap();
        assert_eq!(error, None);
        let is_in = |batch: &&Vec<u8>, from: u64, to: u64| (from..to).contains(&records(batch)[0].0);
        assert!(before.iter().eq(all.iter().filter(|it| is_in(it, 0, base.0))));
        assert!(behind.iter().eq(all.iter().chain([&batch]).filter(|it| is_in(it, end.0, u64::MAX))));
        let findings = check(&mut world.disk, &maker().identity).findings;
        assert!(matches!(findings[..], [ref it] if it.what == What::Gap), "{findings:?}");
    }
    let mut world = World::new(world.disk.clone());
    let nothing =
        repair(&mut world.disk, maker(), SPEC.shard, Choice::QuarantineSegment(Offset(1)), None, Timestamp(5));
    assert_eq!(nothing, Err(RepairError::NoSegment(Offset(1))));
}

#[test]
fn a_lost_index_is_made_again_as_it_was() {
    let (mut world, log, _, all) = filled(7);
    let base = log.segments()[1].base;
    let path = FilePath(format!("shards/{:016x}/{:08x}-{:016x}.idx", SPEC.shard.0, SPEC.lineage.0, base.0));
    let good = world.disk.content(&path).unwrap();
    world.disk.flip_bit(&path, 8 * 4_200);
    assert_eq!(check(&mut world.disk, &maker().identity).worst(), Consequence::Slower);
    let (log, _) = world.open(1).unwrap().unwrap();
    let wanted = Offset(base.0 + 5);
    let (read, _, error) = world.read(&log, ReadFrom::Offset(wanted)).unwrap();
    assert!(error.is_none() && read == all[all.len() - read.len()..]);
    repair(&mut world.disk, maker(), SPEC.shard, Choice::RebuildIndex(base), None, Timestamp(5)).unwrap();
    assert!(world.disk.content(&path).unwrap() == good);
    assert_eq!(check(&mut world.disk, &maker().identity).findings, []);
}

#[test]
fn an_unreadable_block_is_an_error_with_its_place() {
    let (mut world, log, _, all) = filled(8);
    world.disk.plan_fault(OpKind::Read, 3, Fault::Error(felix_wal::disk::DiskError::Io { errno: 5 }));
    let (read, _, error) = world.read(&log, ReadFrom::Offset(Offset(0))).unwrap();
    let error = error.unwrap();
    assert!(matches!(error.fault, ReadFault::Disk(_)) && error.path.0.ends_with(".seg"), "{error}");
    assert!(read == all[..read.len()] && read.len() < all.len());
}

#[test]
fn a_dump_shows_what_is_there() {
    let (mut world, log, _, _) = filled(9);
    let path = FilePath(format!("shards/{:016x}/{:08x}-{:016x}.seg", SPEC.shard.0, SPEC.lineage.0, 0));
    let mut text = String::new();
    dump(&mut world.disk, &path, Values::Lengths, &mut text).unwrap();
    let batches = text.lines().filter(|line| line.starts_with("  batch ")).count();
    let end = log.segments()[1].base.0 as usize;
    assert_eq!(batches, end, "{text}");
    assert!(text.contains("    0 key \"a\" flags 0x01 value 900 bytes"), "{text}");
    break_chunk(&mut world, Offset(0), 8_192);
    let mut text = String::new();
    dump(&mut world.disk, &path, Values::Hex, &mut text).unwrap();
    assert!(text.contains("DAMAGED: chunk checksum"), "{text}");
    assert!(text.contains(&format!("value {}", "00".repeat(900))));
}

fn segment_file(base: Offset) -> FilePath {
    FilePath(format!("shards/{:016x}/{:08x}-{:016x}.seg", SPEC.shard.0, SPEC.lineage.0, base.0))
}

/// What was acknowledged is flushed, and offsets are left out, behind a hole in front.
#[test]
fn a_log_without_its_first_segment_takes_what_was_acknowledged() {
    let (mut world, log, mut stamper, all) = filled(10);
    let second = log.segments()[1].base;
    world.disk.call(DiskOp::Remove { path: segment_file(Offset(0)) }).unwrap();
    world.disk.crash();
    let (mut log, opened) = world.open(1).unwrap().unwrap();
    let hole = OffsetRange { from: Offset(0), to: second };
    assert_eq!(opened.damage.map(|damage| damage.range), Some(hole));
    stamper.time = Timestamp(9_000);
    let batch = stamper.batch(&[(None, vec![1], false)]);
    assert_eq!(world.flush(&mut log, std::slice::from_ref(&batch)).unwrap().ended, Ended::Done);
    log.skip(Offset(stamper.next.0 + 10), NOW, &mut world.queue).unwrap();
    assert_eq!(world.finish(&mut log).unwrap().ended, Ended::Done);
    for _ in 0..2 {
        assert!(matches!(log.health(), Health::Damaged(range) if *range == hole), "{:?}", log.health());
        let (read, position, _) = world.read(&log, ReadFrom::Offset(second)).unwrap();
        assert_eq!((read.last(), position), (Some(&batch), stamper.next));
        assert!(read[..read.len() - 1] == all[all.len() + 1 - read.len()..]);
        log = world.open(2).unwrap().unwrap().0;
    }
    // And with the end damaged as well.
    let batch = stamper_behind(&log).batch(&[(None, vec![2; 1_000], false)]);
    assert_eq!(world.flush(&mut log, std::slice::from_ref(&batch)).unwrap().ended, Ended::Done);
    break_chunk(&mut world, log.meta().open.unwrap().base, 4_096);
    let (mut log, opened) = world.open(3).unwrap().unwrap();
    let end = records(&batch)[0].0;
    assert_eq!(opened.damage.map(|damage| damage.range.from), Some(Offset(end)));
    let batch = stamper_behind(&log).batch(&[(None, vec![3], false)]);
    assert_eq!(world.flush(&mut log, &[batch]).unwrap().ended, Ended::Done);
}

fn stamper_behind(log: &ShardLog) -> Stamper {
    let cursor = log.cursor();
    Stamper { next: cursor.next, chain: cursor.chain, time: Timestamp(90_000), ..Default::default() }
}

/// The power fails in the flush of a log whose open segment is damaged: what it began is not in the way of the next one.
#[test]
fn a_crash_in_a_flush_behind_damage_keeps_no_start_from_flushing() {
    let (mut world, log, stamper, _) = filled(11);
    let open = log.meta().open.unwrap();
    break_chunk(&mut world, open.base, open.used_bytes - 4_096);
    world.disk.crash();
    let disk = world.disk;
    let mut strays = 0;
    for crash_in in 0.. {
        let mut world = World::new(disk.clone());
        let (mut log, _) = world.open(1).unwrap().unwrap();
        assert!(matches!(log.health(), Health::Damaged(_)));
        let mut stamper = Stamper { time: Timestamp(9_000), ..stamper.clone() };
        let batch = stamper.batch(&[(None, vec![1], false)]);
        world.crash_in = Some(crash_in);
        if world.flush(&mut log, std::slice::from_ref(&batch)).is_ok() {
            break;
        }
        let (mut log, report) = world.open(2).unwrap().unwrap();
        strays += report.strays.len();
        let again =
            if log.flushed_to() < stamper.next { batch.clone() } else { stamper.batch(&[(None, vec![2], false)]) };
        let flushed = world.flush_stored(&mut log, std::slice::from_ref(&again), false).unwrap();
        assert!(matches!(&flushed, Ok(event) if event.ended == Ended::Done), "crash after {crash_in}: {flushed:?}");
        let (log, report) = world.open(3).unwrap().unwrap();
        assert_eq!((log.flushed_to(), report.strays), (stamper.next, vec![]), "crash after {crash_in}");
        let from = ReadFrom::Offset(Offset(records(&again)[0].0));
        assert_eq!(world.read(&log, from).unwrap(), (vec![again], stamper.next, None));
    }
    assert!(strays > 0);
}

/// A file of a flush that never counted lies where offsets are left out: it does not become a part of the log.
#[test]
fn leaving_offsets_out_makes_no_segment_of_a_stray() {
    let (mut world, mut log, mut stamper, all) = filled(12);
    assert!(log.roll(&mut world.queue).unwrap());
    world.finish(&mut log).unwrap();
    stamper.time = Timestamp(9_000);
    let batch = stamper.batch(&[(None, vec![1], false)]);
    world.crash_in = Some(2);
    world.flush(&mut log, &[batch]).unwrap_err();
    let (mut log, report) = world.open(2).unwrap().unwrap();
    assert_eq!((report.damage, report.strays), (None, vec![segment_file(log.flushed_to())]));
    let gap = OffsetRange { from: log.flushed_to(), to: Offset(stamper.next.0 + 100) };
    log.skip(gap.to, NOW, &mut world.queue).unwrap();
    assert_eq!(world.finish(&mut log).unwrap().ended, Ended::Done);
    let findings = check(&mut world.disk, &maker().identity).findings;
    assert!(matches!(findings[..], [ref it] if it.what == What::Gap), "{findings:?}");
    let (log, report) = world.open(3).unwrap().unwrap();
    assert_eq!((report.damage, report.strays), (None, vec![]));
    assert_eq!(log.segments().last().map(|it| it.base < gap.from), Some(true));
    let (read, position, error) = world.read(&log, ReadFrom::Offset(Offset(0))).unwrap();
    assert_eq!((position, error.map(|it| it.fault)), (gap.from, Some(ReadFault::Gap(gap))));
    assert!(read == all);
}

#[test]
fn what_lies_between_two_damaged_places_is_read() {
    let (mut world, mut log, stamper, all) = filled(13);
    let place = |from: u64, to: u64| OffsetRange { from: Offset(from), to: Offset(to) };
    // The last chunk is of the last flush, with four batches.
    let end = stamper.next.0;
    log.mark_damaged(place(0, 1));
    log.mark_damaged(place(end - 4, end));
    let middle = all.len() / 2;
    let from = ReadFrom::Offset(Offset(records(&all[middle])[0].0));
    let (read, position, error) = world.read(&log, from).unwrap();
    let fault = Some(ReadFault::Damaged(place(end - 4, end)));
    assert_eq!((position.0, error.map(|error| error.fault)), (end - 4, fault));
    assert!(read == all[middle..all.len() - 4]);
    assert_eq!(*log.health(), Health::Damaged(place(0, end)));
    // Very many are joined, the nearest first: what is damaged stays so.
    let many = (0..end).step_by(3);
    many.clone().for_each(|offset| log.mark_damaged(place(offset, offset + 1)));
    for offset in many {
        let (read, _, error) = world.read(&log, ReadFrom::Offset(Offset(offset))).unwrap();
        assert!(read.is_empty() && matches!(error.unwrap().fault, ReadFault::Damaged(_)), "offset {offset}");
    }
    assert!(log.held_bytes() < 4_096, "{}", log.held_bytes());
}
