//! **What**: what segments have leaves memory, also when one flush takes more batches than one look lets go.
//!
//! **Invariants**: counts of the program alone; no times.
//!
//! **Never**: an assertion on what the allocator does.
//!
//! **See**: `felix_shard::shard::Shard::memory_bytes`.

mod one_core;

use felix_protocol::ids::ShardId;
use felix_shard::store::StoreSettings;
use felix_wal::mem_disk::MemDisk;
use one_core::Life;

/// Batches of one record; many thousands fit a flush.
const BATCHES: usize = 20_000;

#[test]
fn a_long_run_of_small_batches_does_not_grow_memory() {
    let mut disk = MemDisk::new(3);
    let settings = StoreSettings { flush_bytes: 512 << 10, unflushed_bytes_max: 8 << 20, ..StoreSettings::default() };
    let (flush_bytes, tail_bytes) = (settings.flush_bytes, 64 << 10);
    let mut life = Life::with(&mut disk, 1, StoreSettings { tail_bytes, ..settings });
    let memory = |life: &Life| life.shards.get(ShardId(1)).unwrap().memory_bytes();
    let mut most = 0;
    for number in 0..BATCHES {
        life.send(1, &format!("record {number}"));
        if number % 64 == 0 {
            // The disk keeps up.
            (0..8).for_each(|_| life.turn(&mut disk));
            life.effects.drain().for_each(drop);
        }
        most = most.max(memory(&life));
        life.shards.check();
    }
    assert!(life.shards.store().unwrap().counters.flushes >= 3, "it was flushed while it grew");
    // What is gathered, what is flushed just now, and the newest bytes that stay.
    assert!(most <= 3 * flush_bytes + tail_bytes, "{most} bytes in memory");
    for _ in 0..100 {
        life.turn(&mut disk);
    }
    let unflushed = life.shards.store().unwrap().unflushed_bytes();
    assert!(memory(&life) <= unflushed + tail_bytes + 4_096, "{} bytes, {unflushed} not flushed", memory(&life));
}
