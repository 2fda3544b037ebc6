//! **What**: where the disk threads of a core run, and when they move.
//!
//! ```text
//!   the CPUs without a core, or those of other cores  --waited for a CPU longer than LATE-->  the core's own CPU
//!                                                     <--after a while, twice as long each time--
//! ```
//!
//! **Invariants**: a thread shares the CPU of a core only if that core gives way (it parks, or polls and yields); it tries
//! its first places again. Waiting is what the scheduler counted, not a guess from the time a job took.
//!
//! **Never**: a move because the disk is slow.
//!
//! **See**: `blocking.rs`, `disk.rs` (`thread_places`).

use crate::io::sys::set_affinity;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// A wait for a CPU that a thread with a short slice never has on a free one.
const LATE: Duration = Duration::from_millis(1);
/// First and longest stay on the core's own CPU.
const STAY_FIRST: Duration = Duration::from_secs(1);
const STAY_LAST: Duration = Duration::from_secs(64);

/// CPUs for the disk threads of one core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Where they begin; empty: where the thread that starts them may run.
    pub first: Vec<usize>,
    /// The core's own CPU, if the core gives way.
    pub own: Option<usize>,
}

/// Watches how long a thread waits for its CPU, and moves it.
pub(super) struct Crowd {
    places: Places,
    /// The scheduler's counters of this thread; None: the kernel keeps none, and the thread stays.
    counters: Option<File>,
    waited: Duration,
    /// On the core's own CPU until then.
    own_until: Option<Instant>,
    stay: Duration,
    returned: Instant,
}

impl Crowd {
    /// On the thread that it is for; puts it on its first places.
    pub fn new(places: Places) -> Crowd {
        if !places.first.is_empty() {
            // Without it the thread shares the CPU of its core: slow, and nothing worse.
            let _ = set_affinity(&places.first);
        }
        let counters = places.own.and_then(|_| File::open("/proc/thread-self/schedstat").ok());
        let mut crowd = Crowd {
            places,
            counters,
            waited: Duration::ZERO,
            own_until: None,
            stay: STAY_FIRST,
            returned: Instant::now(),
        };
        crowd.waited = crowd.waited_so_far().unwrap_or_default();
        crowd
    }

    fn waited_so_far(&self) -> Option<Duration> {
        let mut text = [0; 64];
        let bytes = self.counters.as_ref()?.read_at(&mut text, 0).ok()?;
        waited(std::str::from_utf8(&text[..bytes]).ok()?)
    }

    /// After each job.
    pub fn after_job(&mut self) {
        let (Some(own), Some(waited)) = (self.places.own, self.waited_so_far()) else { return };
        let late = waited.saturating_sub(self.waited) >= LATE;
        self.waited = waited;
        match self.step(late, Instant::now()) {
            Move::Stay => {}
            // A move that fails leaves it where it is, and is tried at the next turn of the tide.
            Move::ToOwn => drop(set_affinity(&[own])),
            Move::ToFirst => drop(set_affinity(&self.places.first)),
        }
    }

    fn step(&mut self, late: bool, now: Instant) -> Move {
        match self.own_until {
            None if late => {
                if now.duration_since(self.returned) > 4 * STAY_FIRST {
                    // It was well for a while: another crowd.
                    self.stay = STAY_FIRST;
                }
                self.own_until = Some(now + self.stay);
                self.stay = (self.stay * 2).min(STAY_LAST);
                Move::ToOwn
            }
            Some(until) if now >= until => {
                self.own_until = None;
                self.returned = now;
                Move::ToFirst
            }
            _ => Move::Stay,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Stay,
    ToOwn,
    ToFirst,
}

/// The second number of a schedstat file: nanoseconds ready to run and not running.
fn waited(text: &str) -> Option<Duration> {
    text.split_ascii_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowded_thread_moves_and_comes_back_ever_later() {
        let begin = Instant::now();
        let mut crowd = Crowd::new(Places::default());
        crowd.returned = begin;
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        assert_eq!(crowd.step(false, at(0)), Move::Stay);
        assert_eq!(crowd.step(true, at(1)), Move::ToOwn);
        assert_eq!(crowd.step(true, at(1)), Move::Stay, "it is there already");
        assert_eq!(crowd.step(false, at(2)), Move::ToFirst);
        assert_eq!(crowd.step(true, at(2)), Move::ToOwn);
        assert_eq!(crowd.step(false, at(3)), Move::Stay, "twice as long");
        assert_eq!(crowd.step(false, at(4)), Move::ToFirst);
        assert_eq!(crowd.step(false, at(20)), Move::Stay);
        assert_eq!(crowd.step(true, at(20)), Move::ToOwn);
        assert_eq!(crowd.step(false, at(21)), Move::ToFirst, "it was well for long");
    }

    #[test]
    fn the_kernel_counts_how_long_a_thread_waits() {
        assert_eq!(waited("12 345 6\n"), Some(Duration::from_nanos(345)));
        assert_eq!((waited(""), waited("1 x 2")), (None, None));
        let Ok(text) = std::fs::read_to_string("/proc/thread-self/schedstat") else {
            return eprintln!("skipped: this kernel keeps no counters of threads");
        };
        assert!(waited(&text).is_some(), "{text}");
    }
}
