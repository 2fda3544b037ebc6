//! **What**: acks of a channel come in the order of its batches, also while a stream that does not wait for the disk begins: its
//! first batches wait until its meta says that it shows early, and those behind them must not overtake.
//!
//! **Invariants**: one core over the disk in memory, no chance but its seed.
//!
//! **Never**: an assertion on time.
//!
//! **See**: `Shards::begin_early`; PROTOCOL.md, "Answers".

mod one_core;

use felix_protocol::metadata::Durability;
use felix_shard::effect::Effect;
use felix_shard::store::StoreSettings;
use felix_wal::mem_disk::MemDisk;
use one_core::Life;

/// Sends so many batches with so many turns after each, and returns the offsets in the order of the acks.
fn acks(durability: Durability, seed: u64, turns: u64) -> Vec<u64> {
    let mut disk = MemDisk::new(seed);
    let mut life = Life::of(&mut disk, 1, StoreSettings::small(), durability);
    let mut offsets = Vec::new();
    for number in 0..150 {
        life.send(1, &format!("record {number}"));
        // Several batches of a turn, several turns between two batches.
        (0..(number * 7 + seed) % (turns + 1)).for_each(|_| life.turn(&mut disk));
        take(&mut life, &mut offsets);
    }
    for _ in 0..10_000 {
        life.turn(&mut disk);
        take(&mut life, &mut offsets);
        life.shards.check();
    }
    offsets
}

fn take(life: &mut Life, offsets: &mut Vec<u64>) {
    for effect in life.effects.drain() {
        match effect {
            Effect::Ack { ack, .. } => offsets.push(ack.base_offset.0),
            Effect::Refuse { code, .. } => panic!("refused: {code}"),
            _ => {}
        }
    }
}

#[test]
fn acks_come_in_the_order_of_the_batches() {
    for durability in [Durability::None, Durability::Interval, Durability::Group, Durability::Each] {
        for seed in 0..20 {
            let offsets = acks(durability, seed, seed % 4);
            assert_eq!(offsets, (0..150).collect::<Vec<_>>(), "{durability:?}, seed {seed}");
        }
    }
}

/// The others of the core leave it no quiet moment, in which all is synced.
#[test]
fn a_stream_that_never_syncs_is_not_refused_for_it() {
    let mut disk = MemDisk::new(1);
    let mut life = Life::of(&mut disk, 1, StoreSettings::default(), Durability::None);
    let mut offsets = Vec::new();
    for _ in 0..400 {
        life.send_many(1, "x", 4_096);
        for _ in 0..10 {
            life.send(2, "x");
            life.turn(&mut disk);
        }
        take(&mut life, &mut offsets);
    }
    assert!(offsets.len() >= 400 * 11 - 20, "{}", offsets.len());
}
