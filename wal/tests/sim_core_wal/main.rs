//! The core WAL under random work with a crash at every step of the disk, against a model of what its caller knows.
//! `FELIX_SIM_SEEDS=1000` runs more seeds, `FELIX_SIM_SEED=42` one.

mod bugs;
mod world;

use std::collections::BTreeMap;

use bugs::Bug;
use world::{Stats, World};

const STEPS: u64 = 80;

fn seeds(default: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("FELIX_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("FELIX_SIM_SEEDS").unwrap_or(default)).collect(),
    }
}

fn run(seed: u64, bug: Bug) -> Result<Stats, String> {
    let mut world = World::new(seed, bug);
    world.run(STEPS).map(|()| world.stats)
}

#[test]
fn no_crash_loses_what_was_acked_nor_changes_what_is_there() {
    let mut total = Stats::default();
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    let seeds = seeds(120);
    for &seed in &seeds {
        let stats = run(seed, Bug::None).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        total.crashes += stats.crashes;
        total.entries += stats.entries;
        total.durable += stats.durable;
        total.groups += stats.groups;
        total.reuses += stats.reuses;
        total.copies += stats.copies;
        total.refused_full += stats.refused_full;
        stats.ends.into_iter().for_each(|(end, count)| *ends.entry(end).or_default() += count);
    }
    println!("{} seeds: {total:?} {ends:?}", seeds.len());
    if seeds.len() >= 100 {
        // Else the run has proved little.
        for end in ["empty", "clean", "sealed", "unsealed", "torn"] {
            assert!(ends.get(end).is_some_and(|count| *count > 20), "{end}: {ends:?}");
        }
        assert!(total.copies > 100 && total.refused_full > 10 && total.reuses > 50, "{total:?}");
    }
}

#[test]
fn one_seed_is_one_run() {
    for seed in [3, 4, 5, 77] {
        assert_eq!(run(seed, Bug::None), run(seed, Bug::None), "seed {seed}");
    }
    assert_ne!(run(3, Bug::None).map(|stats| stats.trace), run(4, Bug::None).map(|stats| stats.trace));
}

/// A mistake must be found within so many seeds, by what it does.
fn check(bug: Bug, symptoms: &[&str]) {
    let mut others = Vec::new();
    for seed in 1..=60 {
        match run(seed, bug) {
            Ok(_) => {}
            Err(error) if symptoms.iter().any(|symptom| error.contains(symptom)) => return,
            Err(error) => others.push(error),
        }
    }
    panic!("{bug:?} was not found; other findings: {others:?}");
}

const LOST: &str = "was acked and is lost";
const DAMAGE: &str = "a crash looks like damage";

#[test]
fn every_mistake_is_found() {
    check(Bug::AckBeforeSync, &[LOST]);
    check(Bug::SyncMissesLastWrite, &[LOST]);
    check(Bug::RewriteAckedBlock, &[LOST, DAMAGE]);
    check(Bug::GroupOvertakes, &[LOST, DAMAGE]);
    check(Bug::IgnoreGeneration, &["other bytes", "never was"]);
    check(Bug::IgnoreCrc, &["other bytes"]);
    check(Bug::DamageAsTorn, &[LOST]);
    check(Bug::RetryFailedSync, &[LOST]);
    check(Bug::RecycleTooEarly, &[LOST]);
    check(Bug::CopyNotDurable, &[LOST]);
}
