//! **What**: a disk that is full for a moment, and a system that is out of descriptors for a moment, leave nothing behind: a shard
//! opens later, a reader goes on, a flush is made again.
//!
//! **Invariants**: one core over the disk in memory, no chance but its seed.
//!
//! **Never**: an assertion on time of the machine.
//!
//! **See**: `DiskError::passes`.

mod one_core;

use felix_protocol::error_code::ErrorCode;
use felix_protocol::ids::ShardId;
use felix_protocol::position::Offset;
use felix_shard::effect::Effect;
use felix_shard::event::{Event, SubKey};
use felix_shard::store::StoreSettings;
use felix_wal::disk::DiskError;
use felix_wal::mem_disk::{Fault, MemDisk, OpKind};
use one_core::{Life, ME, config};

const SHORT: DiskError = DiskError::Short { errno: 24 };

fn turns(life: &mut Life, disk: &mut MemDisk, count: usize) {
    (0..count).for_each(|_| life.turn(disk));
}

/// Long enough that everything is tried again.
fn later(life: &mut Life, disk: &mut MemDisk) {
    for _ in 0..5 {
        life.now.time.0 += 1_000_000_000;
        life.now.wall.0 += 1_000_000_000;
        turns(life, disk, 100);
    }
}

fn fail(disk: &mut MemDisk, kinds: &[OpKind], error: DiskError) {
    for kind in kinds {
        (0..3).for_each(|skip| disk.plan_fault(*kind, skip, Fault::Error(error)));
    }
}

#[test]
fn a_shard_that_could_not_be_made_opens_later() {
    for (kind, error) in [(OpKind::Replace, DiskError::Full), (OpKind::Replace, SHORT), (OpKind::Load, SHORT)] {
        let mut disk = MemDisk::new(1);
        let mut life = Life::start(&mut disk, 1);
        fail(&mut disk, &[kind], error);
        life.shards.handle(life.now, Event::ShardPut(config(3, 1)), &mut life.effects);
        turns(&mut life, &mut disk, 20);
        assert!(life.shards.get(ShardId(3)).is_none(), "the fault came");
        later(&mut life, &mut disk);
        assert_eq!(life.publish(&mut disk, 3, "x"), 0);
    }
}

#[test]
fn a_reader_goes_on_and_nothing_is_called_damaged() {
    for error in [DiskError::Full, SHORT] {
        for kind in [OpKind::Open, OpKind::Read] {
            let mut disk = MemDisk::new(2);
            let mut life = Life::with(&mut disk, 1, StoreSettings { tail_bytes: 1 << 10, ..StoreSettings::small() });
            for _ in 0..100 {
                life.publish(&mut disk, 1, &"x".repeat(1_000));
            }
            turns(&mut life, &mut disk, 500);
            life.effects.drain().for_each(drop);
            disk.plan_fault(kind, 0, Fault::Error(error));
            let sub = SubKey { slot: 1, generation: 1 };
            let event = Event::Fetched { shard: ShardId(1), core: ME, sub, from: Offset(0) };
            life.shards.handle(life.now, event, &mut life.effects);
            turns(&mut life, &mut disk, 50);
            later(&mut life, &mut disk);
            let answers: Vec<usize> = life.effects.drain().filter_map(|it| fetched(&it)).collect();
            assert!(answers.len() == 1 && answers[0] > 0, "{kind:?} {error:?}: {answers:?}");
            life.publish(&mut disk, 1, "the shard takes more");
        }
    }
}

fn fetched(effect: &Effect) -> Option<usize> {
    match effect {
        Effect::Fetch { batches, .. } => Some(batches.len()),
        _ => None,
    }
}

#[test]
fn a_flush_is_made_again() {
    for kinds in [&[OpKind::Create][..], &[OpKind::Replace], &[OpKind::Open], &[OpKind::Extend]] {
        let mut disk = MemDisk::new(3);
        let mut life = Life::start(&mut disk, 1);
        life.publish(&mut disk, 1, "before");
        fail(&mut disk, kinds, SHORT);
        // Some may be refused for now.
        for _ in 0..60 {
            life.send(1, &"x".repeat(1_000));
            turns(&mut life, &mut disk, 5);
        }
        later(&mut life, &mut disk);
        life.effects.drain().for_each(drop);
        assert!(!life.shards.get(ShardId(1)).unwrap().is_failed(), "{kinds:?}");
        for _ in 0..300 {
            life.publish(&mut disk, 1, &"x".repeat(1_000));
        }
        later(&mut life, &mut disk);
        assert!(life.shards.store().unwrap().counters.flushes > 10, "{kinds:?}");
    }
}

#[test]
fn many_shards_need_few_files() {
    let mut disk = MemDisk::new(4);
    let mut life = Life::start(&mut disk, 1);
    for shard in 3..=200 {
        life.shards.handle(life.now, Event::ShardPut(config(shard, 1)), &mut life.effects);
    }
    turns(&mut life, &mut disk, 3_000);
    for round in 0..3 {
        for shard in 3..=200 {
            life.publish(&mut disk, shard, &format!("{round}{}", "x".repeat(5_000)));
            turns(&mut life, &mut disk, 20);
        }
    }
    turns(&mut life, &mut disk, 5_000);
    let open = disk.count(OpKind::Create) + disk.count(OpKind::Open) - disk.count(OpKind::Close);
    assert!(life.shards.store().unwrap().counters.flushes >= 3 * 198);
    // The WAL's and those of a few shards.
    assert!(open < 30, "{open} files are open");
}

/// A publisher is refused while there is room for all that was taken: a new file of the write-ahead log takes its part.
#[test]
fn files_of_the_log_count_as_room() {
    let mut disk = MemDisk::new(5);
    let settings = StoreSettings::small();
    let file_bytes = settings.wal.file_bytes;
    let mut life = Life::with(&mut disk, 1, settings);
    let room = 3 * file_bytes;
    life.shards.on_space(room, false);
    let before = disk.count(OpKind::Create);
    let mut taken = 0;
    let mut refused = None;
    while refused.is_none() {
        assert!(taken < room, "nothing is refused");
        life.send(1, &"x".repeat(1_000));
        for _ in 0..10 {
            life.turn(&mut disk);
            for effect in life.effects.drain() {
                match effect {
                    Effect::Ack { .. } => taken += 1_000,
                    Effect::Refuse { code, .. } => refused = Some(code),
                    _ => {}
                }
            }
        }
    }
    assert!(disk.count(OpKind::Create) > before);
    assert_eq!(refused, Some(ErrorCode::DiskFull));
    assert!(taken + file_bytes <= room, "{taken} bytes were taken with {room} of room and a file of {file_bytes}");
}
