//! **What**: a subscription that starts at a time is answered, whatever the search for it meets: a gap, a log start that moved,
//! a damaged file, a shard that is deleted.
//!
//! **Invariants**: one core over the disk in memory, no chance but its seed.
//!
//! **Never**: an assertion on time of the machine.
//!
//! **See**: `store/history.rs`.

mod one_core;

use felix_protocol::frame::Start;
use felix_protocol::ids::ShardId;
use felix_protocol::time::Timestamp;
use felix_shard::effect::Effect;
use felix_shard::event::{Event, SubKey};
use felix_shard::recovery::{self, OnDamage};
use felix_shard::store::StoreSettings;
use felix_wal::disk::FilePath;
use felix_wal::mem_disk::MemDisk;
use one_core::{Life, ME, maker};

const SECOND: u64 = 1_000_000_000;

fn recover(disk: &mut MemDisk, session: u64) {
    let now = Timestamp(session * 1_000 * SECOND);
    recovery::recover(disk, maker(session), StoreSettings::small().log, now, OnDamage::Refuse, &mut |_| {}).unwrap();
}

/// Records of a minute each second, then a kill; all is in segments after the next recovery.
fn filled(disk: &mut MemDisk) {
    recover(disk, 1);
    let mut life = Life::start(disk, 1);
    for number in 0..60 {
        life.publish(disk, 1, &format!("record {number} {}", "x".repeat(1_000)));
        life.now.time.0 += SECOND;
        life.now.wall.0 += SECOND;
        life.turn(disk);
    }
    drop(life);
    disk.kill();
    recover(disk, 2);
}

fn attach(life: &mut Life, time: u64) {
    let (sub, start) = (SubKey { slot: 0, generation: 1 }, Start::Time(Timestamp(time)));
    life.shards.handle(life.now, Event::Attached { shard: ShardId(1), core: ME, sub, start }, &mut life.effects);
}

/// The offset of the answer; None: refused.
fn answer(life: &mut Life, disk: &mut MemDisk) -> Option<u64> {
    for _ in 0..3_000 {
        for effect in life.effects.drain() {
            if let Effect::Attach { result, .. } = effect {
                return result.ok().map(|it| it.start.0);
            }
        }
        life.turn(disk);
    }
    panic!("never answered");
}

fn segment(disk: &MemDisk) -> FilePath {
    disk.paths().into_iter().find(|path| path.0.contains("0000000000000001/") && path.0.ends_with(".seg")).unwrap()
}

#[test]
fn behind_a_gap() {
    let mut disk = MemDisk::new(1);
    filled(&mut disk);
    recovery::leave_out_lost(&mut disk, maker(3), Timestamp(1)).unwrap();
    let mut life = Life::start(&mut disk, 4);
    attach(&mut life, 2_000 * SECOND);
    assert!(answer(&mut life, &mut disk).unwrap() >= 60);
    attach(&mut life, 1_030 * SECOND);
    let at = answer(&mut life, &mut disk).unwrap();
    assert!((29..=31).contains(&at), "{at}");
}

#[test]
fn in_a_damaged_file() {
    let mut disk = MemDisk::new(2);
    filled(&mut disk);
    let path = segment(&disk);
    assert!(disk.flip_bit(&path, (4_096 + 300) * 8));
    let mut life = Life::start(&mut disk, 4);
    for time in [1_001, 1_030, 1_059] {
        attach(&mut life, time * SECOND);
        answer(&mut life, &mut disk).unwrap();
    }
}

#[test]
fn of_a_shard_that_is_deleted() {
    let mut disk = MemDisk::new(3);
    filled(&mut disk);
    let mut life = Life::start(&mut disk, 4);
    attach(&mut life, 1_030 * SECOND);
    life.shards.handle(life.now, Event::ShardRemoved { shard: ShardId(1) }, &mut life.effects);
    assert_eq!(answer(&mut life, &mut disk), None);
}
