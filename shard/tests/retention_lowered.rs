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
use felix_shard::event::{Event, ShardConfig};
use felix_shard::store::StoreSettings;
use felix_wal::mem_disk::MemDisk;
use one_core::{Life, config};

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

#[test]
fn a_shorter_time() {
    let mut disk = MemDisk::new(2);
    let mut life = filled(&mut disk);
    change(&mut life, ShardConfig { retention_age_ns: Some(1_000_000), ..config(1, 1) });
    for _ in 0..10 {
        life.now.time.0 += 1_000_000_000;
        life.now.wall.0 += 1_000_000_000;
        turns(&mut life, &mut disk, 500);
    }
    assert_eq!(stored(&life), 0);
}
