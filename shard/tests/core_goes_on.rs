//! **What**: one shard that cannot go on does not stop the others of its core: its entries do not pin the WAL for ever.
//!
//! **Invariants**: one core over the disk in memory, no chance but its seed.
//!
//! **Never**: an assertion on time of the machine.
//!
//! **See**: `Shards::begin_flushes`, `store/leaving.rs`, `store/keys.rs`.

mod one_core;

use felix_protocol::ids::ShardId;
use felix_shard::event::{Event, ShardConfig, TenantKeys};
use felix_shard::table::Shards;
use felix_wal::at_rest::{AtRestScope, DataKey};
use felix_wal::disk::DiskError;
use felix_wal::mem_disk::{Fault, MemDisk, OpKind};
use one_core::{Life, config};

fn turns(life: &mut Life, disk: &mut MemDisk, count: usize) {
    (0..count).for_each(|_| life.turn(disk));
}

/// More than the WAL of these tests holds; `publish` panics on a refusal.
fn publish_much(life: &mut Life, disk: &mut MemDisk, shard: u64) {
    for _ in 0..2_000 {
        life.publish(disk, shard, &"x".repeat(1_000));
        life.turn(disk);
    }
}

fn set_keys(shards: &mut Shards, keys: Vec<DataKey>) {
    shards.store_mut().unwrap().set_keys(TenantKeys(1), AtRestScope::new("eu", "acme"), keys);
}

#[test]
fn a_destroyed_key() {
    let mut disk = MemDisk::new(1);
    let mut life = Life::start(&mut disk, 1);
    set_keys(&mut life.shards, vec![DataKey::new(1, [7; 32])]);
    let sealed = ShardConfig { sealed_for: Some(TenantKeys(1)), ..config(3, 1) };
    life.shards.handle(life.now, Event::ShardPut(sealed), &mut life.effects);
    turns(&mut life, &mut disk, 50);
    life.publish(&mut disk, 3, "nobody will read this");
    set_keys(&mut life.shards, vec![]);
    publish_much(&mut life, &mut disk, 2);
    assert!(life.shards.get(ShardId(3)).is_some_and(|it| !it.is_failed()));
    // Another key, and it takes more.
    set_keys(&mut life.shards, vec![DataKey::new(2, [8; 32])]);
    life.publish(&mut disk, 3, "this");
}

#[test]
fn a_deletion_that_the_disk_refused_for_a_while() {
    for kind in [OpKind::List, OpKind::Rename] {
        let mut disk = MemDisk::new(2);
        let mut life = Life::start(&mut disk, 1);
        for _ in 0..20 {
            life.publish(&mut disk, 1, &"x".repeat(1_000));
        }
        turns(&mut life, &mut disk, 100);
        for skip in 0..2 {
            disk.plan_fault(kind, skip, Fault::Error(DiskError::Full));
        }
        life.shards.handle(life.now, Event::ShardRemoved { shard: ShardId(1) }, &mut life.effects);
        turns(&mut life, &mut disk, 200);
        for _ in 0..5 {
            life.now.time.0 += 1_000_000_000;
            turns(&mut life, &mut disk, 100);
        }
        publish_much(&mut life, &mut disk, 2);
        let left: Vec<_> = disk.paths().into_iter().filter(|it| it.0.starts_with("shards/0000000000000001/")).collect();
        assert!(left.is_empty(), "{kind:?}: {left:?}");
    }
}
