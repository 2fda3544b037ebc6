//! **What**: a retention that is lowered takes effect by itself, also on a shard to which nothing is published any more, as on a
//! full disk.
//!
//! **Invariants**: one core over the disk in memory, no chance but its seed.
//!
//! **Never**: an assertion on time of the machine.
//!
//! **See**: `Store::want_retention`.

mod one_core;

use felix_protocol::ids::ShardId;
use felix_protocol::position::Offset;
use felix_shard::event::{Event, ShardConfig, SubKey};
use felix_shard::store::{Alarm, StoreSettings};
use felix_wal::disk::{Disk, DiskOp, FilePath};
use felix_wal::mem_disk::MemDisk;
use one_core::{Life, ME, config};

/// A shard with 300 KB in segments of 32 KiB, at rest.
fn filled(disk: &mut MemDisk) -> Life {
    let mut life = Life::with(disk, 1, StoreSettings::small());
    for _ in 0..300 {
        life.publish(disk, 1, &"x".repeat(1_000));
    }
    turns(&mut life, disk, 500);
    assert!(stored(&life) > 250_000);
    life
}

fn turns(life: &mut Life, disk: &mut MemDisk, count: usize) {
    (0..count).for_each(|_| life.turn(disk));
}

fn stored(life: &Life) -> u64 {
    life.shards.get(ShardId(1)).unwrap().retained_bytes()
}

fn change(life: &mut Life, config: ShardConfig) {
    life.shards.handle(life.now, Event::ShardPut(config), &mut life.effects);
}

#[test]
fn fewer_bytes() {
    let mut disk = MemDisk::new(1);
    let mut life = filled(&mut disk);
    change(&mut life, ShardConfig { retention_bytes: 64 << 10, ..config(1, 1) });
    turns(&mut life, &mut disk, 5_000);
    assert!(stored(&life) <= (64 << 10) + (32 << 10), "{}", stored(&life));
}

/// A millisecond is kept from now on, and ten seconds pass.
fn let_age(life: &mut Life, disk: &mut MemDisk) {
    change(life, ShardConfig { retention_age_ns: Some(1_000_000), ..config(1, 1) });
    for _ in 0..10 {
        life.now.time.0 += 1_000_000_000;
        life.now.wall.0 += 1_000_000_000;
        turns(life, disk, 500);
    }
}

#[test]
fn a_shorter_time() {
    let mut disk = MemDisk::new(2);
    let mut life = filled(&mut disk);
    let_age(&mut life, &mut disk);
    assert_eq!(stored(&life), 0);
}

/// A crash or a full disk left a segment without its index, which says how old it is.
#[test]
fn a_shorter_time_and_an_index_that_is_not_there() {
    let mut disk = MemDisk::new(3);
    let mut life = filled(&mut disk);
    let is_index = |path: &FilePath| path.0.starts_with("shards/0000000000000001/") && path.0.ends_with(".idx");
    let indexes: Vec<FilePath> = disk.paths().into_iter().filter(is_index).collect();
    assert!(indexes.len() > 4);
    for path in [&indexes[0], &indexes[2]] {
        disk.call(DiskOp::Remove { path: path.clone() }).unwrap();
    }
    let_age(&mut life, &mut disk);
    assert_eq!(stored(&life), 0);
}

/// Who reads from the middle of a segment without an index reads it from its front: the index is made again.
#[test]
fn a_reader_that_misses_an_index() {
    let mut disk = MemDisk::new(6);
    let mut life = filled(&mut disk);
    let is_index = |path: &FilePath| path.0.starts_with("shards/0000000000000001/") && path.0.ends_with(".idx");
    let index = disk.paths().into_iter().filter(is_index).nth(1).unwrap();
    let content = disk.content(&index);
    disk.call(DiskOp::Remove { path: index.clone() }).unwrap();
    let base = index.0.rsplit_once('-').unwrap().1.strip_suffix(".idx").unwrap();
    let from = Offset(u64::from_str_radix(base, 16).unwrap() + 1);
    let sub = SubKey { slot: 1, generation: 1 };
    let event = Event::Fetched { shard: ShardId(1), core: ME, sub, from };
    life.shards.handle(life.now, event, &mut life.effects);
    turns(&mut life, &mut disk, 100);
    assert!(content.is_some() && disk.content(&index) == content);
}

/// It is damaged as well: what is as old stays, and that is told once.
#[test]
fn a_segment_that_no_index_can_be_made_of_stays_and_is_told() {
    let mut disk = MemDisk::new(4);
    let mut life = filled(&mut disk);
    let is_of_segment = |path: &FilePath| path.0.starts_with("shards/0000000000000001/00000001-");
    let first = disk.paths().into_iter().find(is_of_segment).unwrap();
    let index = FilePath(first.0.replace(".seg", ".idx"));
    let segment = FilePath(index.0.replace(".idx", ".seg"));
    disk.call(DiskOp::Remove { path: index }).unwrap();
    assert!(disk.flip_bit(&segment, 8 * 4_100));
    let before = stored(&life);
    let_age(&mut life, &mut disk);
    assert!(stored(&life) >= before && disk.content(&segment).is_some());
    let alarms: Vec<Alarm> = std::iter::from_fn(|| life.shards.take_alarm()).collect();
    assert!(matches!(&alarms[..], [Alarm::Note { what, .. }] if what.contains("no index")), "{alarms:?}");
}

/// The shard leaves while an index is made again: nothing of it stays behind.
#[test]
fn a_shard_that_leaves_meanwhile() {
    for before in 0..12 {
        let mut disk = MemDisk::new(5);
        let mut life = filled(&mut disk);
        let is_of_shard = |path: &FilePath| path.0.starts_with("shards/0000000000000001/");
        let index = disk.paths().into_iter().find(|path| is_of_shard(path) && path.0.ends_with(".idx")).unwrap();
        disk.call(DiskOp::Remove { path: index }).unwrap();
        change(&mut life, ShardConfig { retention_age_ns: Some(1_000_000), ..config(1, 1) });
        life.now.time.0 += 1_000_000_000;
        life.now.wall.0 += 1_000_000_000;
        turns(&mut life, &mut disk, before);
        life.shards.handle(life.now, Event::ShardRemoved { shard: ShardId(1) }, &mut life.effects);
        turns(&mut life, &mut disk, 500);
        let left: Vec<FilePath> = disk.paths().into_iter().filter(is_of_shard).collect();
        assert_eq!(left, [], "after {before} turns");
    }
}
