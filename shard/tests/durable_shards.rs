//! **What**: durable shards over a disk that fails, in one core: publishers, retries, readers, retention, deletion, crashes at
//! any disk operation, also during recovery. What was acknowledged is checked after every start.
//!
//! ```text
//! FELIX_DURABLE_SEEDS=10000 cargo test -p felix-shard --test durable_shards       (more seeds)
//! FELIX_DURABLE_SEED=17     cargo test -p felix-shard --test durable_shards       (one seed, with its story)
//! ```
//!
//! **Invariants**: see `durable_shards/world.rs`.
//!
//! **Never**: time of the machine; one seed, one run.
//!
//! **See**: `broker/tests/sim` for whole cores without a disk.

#[path = "durable_shards/world.rs"]
mod world;

use world::{Trouble, World};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn run(trouble: Trouble, seeds: u64) {
    if let Some(seed) = number("FELIX_DURABLE_SEED") {
        World::new(seed, trouble, true).run();
        return;
    }
    let mut seen = world::Seen::default();
    for seed in 0..number("FELIX_DURABLE_SEEDS").unwrap_or(seeds) {
        let world = std::panic::catch_unwind(|| World::new(seed, trouble, false).run());
        match world {
            Ok(one) => seen.add(&one),
            Err(error) => {
                eprintln!("seed {seed} of {trouble:?} failed");
                std::panic::resume_unwind(error);
            }
        }
    }
    println!("{trouble:?}: {seen:?}");
    seen.check(trouble);
}

/// Else a seed that failed could not be looked at.
#[test]
fn a_seed_repeats_its_run() {
    for (seed, trouble) in (0..12).zip([Trouble::Crash, Trouble::Full, Trouble::Errors].into_iter().cycle()) {
        let traces = [(); 2].map(|()| World::new(seed, trouble, false).run().trace);
        assert_eq!(traces[0], traces[1], "seed {seed} of {trouble:?}");
    }
}

#[test]
fn what_was_acknowledged_survives_crashes() {
    run(Trouble::Crash, 150);
}

#[test]
fn what_was_acknowledged_survives_a_kill_of_the_process() {
    run(Trouble::Kill, 50);
}

#[test]
fn a_failed_write_or_sync_is_never_followed_by_an_ack() {
    run(Trouble::Errors, 80);
}

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    run(Trouble::Full, 50);
}
