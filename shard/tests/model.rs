//! **What**: random lives of shards and subscribers on several cores against a simple model, and the proof that the
//! model finds bugs.
//!
//! ```text
//! cargo test -p felix-shard --test model                one life per seed, many seeds
//! FELIX_SEED=123 cargo test -p felix-shard --test model random_lives   one seed
//! ```
//!
//! **See**: `model/world.rs` for the machinery, `model/reference.rs` for what is right, `model/mutation.rs` for the
//! bugs.

#[path = "model/mutation.rs"]
mod mutation;
#[path = "model/random.rs"]
mod random;
#[path = "model/reference.rs"]
mod reference;
#[path = "model/world.rs"]
mod world;

use mutation::Mutation;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

const SEEDS: u64 = 5_000;
const STEPS: u64 = 250;
/// Seeds within which every seeded bug must be found.
const SEEDS_TO_FIND: u64 = 300;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs a life; what went wrong if something did.
fn live(seed: u64, mutation: Option<Mutation>) -> Result<World, String> {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, mutation);
        world.run(STEPS);
        world
    }));
    QUIET.set(false);
    result.map_err(|cause| match cause.downcast::<String>() {
        Ok(text) => *text,
        Err(cause) => cause.downcast::<&str>().map_or("a panic".into(), |text| text.to_string()),
    })
}

#[test]
fn random_lives() {
    if let Ok(seed) = std::env::var("FELIX_SEED") {
        World::new(seed.parse().expect("FELIX_SEED is a number"), None).run(STEPS);
        return;
    }
    let mut seen = [0; 5];
    for seed in 0..SEEDS {
        match live(seed, None) {
            Ok(world) => seen.iter_mut().zip(world.seen).for_each(|(sum, it)| *sum += it),
            Err(error) => panic!("FELIX_SEED={seed}: {error}"),
        }
    }
    println!("deliveries, gaps, fetches, jumps, disconnects: {seen:?}");
    assert!(seen.iter().all(|count| *count > SEEDS / 10), "the lives are too quiet to prove anything: {seen:?}");
}

#[test]
fn one_seed_is_one_life() {
    for seed in 0..50 {
        let lives = [live(seed, None), live(seed, None)].map(|it| it.map(|world| world.transcript));
        assert_eq!(lives[0], lives[1], "seed {seed}");
    }
}

#[test]
fn every_seeded_bug_is_found() {
    let mut missed = Vec::new();
    for mutation in Mutation::ALL {
        match (0..SEEDS_TO_FIND).find_map(|seed| Some((seed, live(seed, Some(mutation)).err()?))) {
            Some((seed, error)) => println!("{mutation:?}: seed {seed}: {}", error.lines().next().unwrap_or_default()),
            None => missed.push(mutation),
        }
    }
    assert_eq!(missed, [], "not found in {SEEDS_TO_FIND} seeds");
}
