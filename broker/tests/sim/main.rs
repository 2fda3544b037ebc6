//! A seeded simulation of one broker: the real cores, the real metadata, real frames; network, mesh, time and clients
//! are simulated. One seed, one run; `FELIX_SIM_SEED=n` runs one with its trace, `FELIX_SIM_SEEDS=n` that many.

mod admin;
mod client;
mod control;
mod cover;
mod faults;
mod model;
mod plan;
mod publisher;
mod rng;
mod rogue;
mod side;
mod sim;
mod subscriber;
mod transport;
mod view;
mod world;

use cover::Cover;
use plan::Plan;
use std::cell::Cell;
use std::sync::Once;
use std::time::Instant;

/// Seeds of a plain `cargo test`.
const SEEDS: u64 = 100;
/// Seeds within which a seeded bug must be found.
const BUG_SEEDS: u64 = 200;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics that a run turns into a failure off the screen.
fn quietly<T>(run: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
    let result = run();
    QUIET.set(false);
    result
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|it| !it.is_empty()).map(|it| it.parse().expect("a number"))
}

#[test]
fn seeds_hold() {
    if let Some(seed) = number("FELIX_SIM_SEED") {
        let outcome = world::run(Plan::new(seed, true), None, true);
        println!("seed {seed}: {:?}", outcome.cover.each());
        return assert_eq!(outcome.failure, None, "seed {seed}");
    }
    let seeds = number("FELIX_SIM_SEEDS").unwrap_or(SEEDS);
    let started = Instant::now();
    let mut cover = Cover::default();
    let mut failures = Vec::new();
    for seed in 0..seeds {
        let outcome = quietly(|| world::run(Plan::new(seed, true), None, false));
        cover.add(&outcome.cover);
        if let Some(failure) = outcome.failure {
            eprintln!("seed {seed}: {failure}");
            failures.push(seed);
            if failures.len() == 10 {
                break;
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{seeds} seeds in {seconds:.1} s, {:.1} seeds per second", seeds as f64 / seconds);
    println!("{}", cover.each().iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", "));
    assert!(failures.is_empty(), "seeds {failures:?} fail; see one with FELIX_SIM_SEED={}", failures[0]);
    if seeds >= SEEDS {
        let never: Vec<_> = cover.each().into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name).collect();
        assert!(never.is_empty(), "over {seeds} seeds these never happened: {never:?}");
    }
}

#[test]
fn same_seed_same_trace() {
    for seed in 0..6 {
        let run = || quietly(|| world::run(Plan::new(seed, false), None, false));
        let (one, other) = (run(), run());
        assert_eq!((one.hash, one.cover.events), (other.hash, other.cover.events), "seed {seed}");
    }
}

#[test]
fn seeded_bugs_are_found() {
    let only = std::env::var("FELIX_SIM_BUG").ok();
    let mut missed = Vec::new();
    for bug in faults::ALL {
        if only.as_ref().is_some_and(|it| *it != format!("{bug:?}")) {
            continue;
        }
        let found = (0..BUG_SEEDS).find_map(|seed| {
            let outcome = quietly(|| world::run(Plan::new(seed, false), Some(*bug), false));
            outcome.failure.filter(|_| outcome.struck > 0).map(|failure| (seed, failure))
        });
        match found {
            Some((seed, failure)) => println!("{bug:?}: {} seed(s); {failure:.160}", seed + 1),
            None => missed.push(*bug),
        }
    }
    assert!(missed.is_empty(), "not found within {BUG_SEEDS} seeds: {missed:?}");
}
