//! **What**: more subscribers that read history than a core has readers: each comes to its turn, also while others ask again as
//! soon as they were answered.
//!
//! **Invariants**: one core over the disk in memory, no chance but its seed.
//!
//! **Never**: an assertion on time.
//!
//! **See**: `store/history.rs`.

mod one_core;

use felix_protocol::ids::ShardId;
use felix_protocol::metadata::Durability;
use felix_protocol::position::Offset;
use felix_shard::effect::Effect;
use felix_shard::event::{Event, SubKey};
use felix_shard::limits::Limits;
use felix_shard::store::StoreSettings;
use felix_wal::mem_disk::MemDisk;
use one_core::{Life, ME};
use std::collections::BTreeMap;

const READERS: usize = 2;
const SUBSCRIBERS: u32 = 7;
const RECORDS: u64 = 4_000;

fn fetch(life: &mut Life, slot: u32, from: u64) {
    let sub = SubKey { slot, generation: 1 };
    let event = Event::Fetched { shard: ShardId(1), core: ME, sub, from: Offset(from) };
    life.shards.handle(life.now, event, &mut life.effects);
}

#[test]
fn every_reader_of_history_comes_to_its_turn() {
    let mut disk = MemDisk::new(5);
    let settings = StoreSettings { readers_max: READERS, tail_bytes: 4 << 10, ..StoreSettings::small() };
    // Small answers, so that everybody asks often.
    let limits = Limits { fetch_batches_max: 16, ..Limits::default() };
    let mut life = Life::limited(&mut disk, 1, settings, Durability::Group, limits);
    for number in 0..RECORDS {
        life.send(1, &format!("record {number}"));
        if number % 16 == 0 {
            (0..8).for_each(|_| life.turn(&mut disk));
        }
    }
    (0..2_000).for_each(|_| life.turn(&mut disk));
    life.effects.drain().for_each(drop);

    let mut at: BTreeMap<u32, u64> = (0..SUBSCRIBERS).map(|slot| (slot, 0)).collect();
    (0..SUBSCRIBERS).for_each(|slot| fetch(&mut life, slot, 0));
    for turn in 0..100_000 {
        life.turn(&mut disk);
        let answers: Vec<(u32, u64)> = life.effects.drain().filter_map(|effect| answer(&effect)).collect();
        for (slot, next) in answers {
            assert!(at[&slot] < next, "subscriber {slot} was answered with nothing new");
            at.insert(slot, next);
            // It asks again at once, so its reader is hardly ever idle.
            if next < RECORDS {
                fetch(&mut life, slot, next);
            }
        }
        let (most, least) = (at.values().max().unwrap(), at.values().min().unwrap());
        assert!(most - least <= 3 * 16, "turn {turn}: somebody is left behind: {at:?}");
        if *least == RECORDS {
            assert!(life.shards.store().unwrap().counters.history_batches > RECORDS, "history came from memory");
            return;
        }
    }
    panic!("not all was read: {at:?}");
}

fn answer(effect: &Effect) -> Option<(u32, u64)> {
    match effect {
        Effect::Fetch { sub, batches, .. } => {
            Some((sub.slot, batches.last().expect("something is there").header().range().to.0))
        }
        _ => None,
    }
}
