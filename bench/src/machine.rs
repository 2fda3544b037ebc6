//! **What**: what the operating system says of a process: CPU time, memory; and pinning.
//!
//! **Invariants**: CPU time is the scheduler's, in nanoseconds, summed over threads; steal is reported beside.
//!
//! **Never**: wall time taken for CPU time.
//!
//! **See**: `cell.rs`.

use crate::report::Report;
use crate::servers::Server;
use crate::{Common, Error};
use std::fs;
use std::time::{Duration, Instant};

/// CPU time of a process, ns, summed over its threads (first number of schedstat).
pub fn cpu_ns(pid: u32) -> Result<u64, Error> {
    let mut sum = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(entry?.path().join("schedstat"))?;
        sum += text.split_whitespace().next().unwrap_or("0").parse::<u64>()?;
    }
    Ok(sum)
}

/// Resident memory of a process, bytes.
pub fn rss_bytes(pid: u32) -> Result<u64, Error> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = text.split_whitespace().nth(1).unwrap_or("0").parse()?;
    Ok(pages * 4_096)
}

/// Ticks of all CPUs since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticks {
    /// All of them.
    pub total: u64,
    /// Taken by the hypervisor.
    pub steal: u64,
    /// Nobody ran.
    pub idle: u64,
}

impl Ticks {
    /// Now.
    pub fn now() -> Ticks {
        Ticks::parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn parse(text: &str) -> Ticks {
        let first = text.lines().next().unwrap_or("");
        // user nice system idle iowait irq softirq steal; guest time is in user.
        let ticks: Vec<u64> = first.split_whitespace().skip(1).take(8).filter_map(|it| it.parse().ok()).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
        Ticks { total: ticks.iter().sum(), steal: at(7), idle: at(3) + at(4) }
    }

    /// Percent of all ticks since `before` that were stolen.
    pub fn steal_percent(self, before: Ticks) -> f64 {
        percent(self.steal - before.steal, self.total - before.total)
    }

    /// Percent of all CPU time since `before` that neither idled, was stolen nor is among `ours_ns`.
    pub fn others_percent(self, before: Ticks, ours_ns: u64) -> f64 {
        let busy = (self.total - before.total) - (self.idle - before.idle) - (self.steal - before.steal);
        percent(busy.saturating_sub(ours_ns / TICK_NS), self.total - before.total)
    }
}

/// The unit of /proc/stat.
const TICK_NS: u64 = 10_000_000;

fn percent(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64 * 100.0
}

/// The monotonic clock, the same for all processes of this machine.
pub fn now_ns() -> u64 {
    // SAFETY: the out-parameter is a plain struct, alive through the call; the monotonic clock always exists.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time);
        time
    };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Lets this process open as many sockets as it may.
pub fn raise_open_files() {
    // SAFETY: plain structs, alive through the calls. A refusal shows when sockets run out.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}

/// Pins this thread.
pub fn pin(cpu: usize) -> Result<(), Error> {
    // SAFETY: a cpu_set_t is a bit array, for which all zeros is a value; CPU_SET writes within it.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

/// Median of a list; NaN if it is empty.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count => (sorted[(count - 1) / 2] + sorted[count / 2]) / 2.0,
    }
}

/// Measures the CPU of an idle broker.
pub fn idle(common: &Common) -> Result<(), Error> {
    let server = Server::broker(common)?;
    std::thread::sleep(Duration::from_secs(2));
    let (before, started) = (cpu_ns(server.pid())?, Instant::now());
    std::thread::sleep(Duration::from_secs(common.seconds));
    let share = (cpu_ns(server.pid())? - before) as f64 / started.elapsed().as_nanos() as f64;
    println!("idle broker, {}: {:.3} % of a CPU", common.wait.name(), share * 100.0);
    let line = serde_json::json!({"wait": common.wait.name(), "cpu_percent": share * 100.0});
    Report::of(common, 0)?.json("idle", &line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_used_is_what_is_left() {
        let before = Ticks::parse("cpu 100 0 50 800 10 0 0 40 5 5\ncpu0 1");
        assert_eq!(before, Ticks { total: 1_000, steal: 40, idle: 810 });
        let after = Ticks::parse("cpu 180 0 70 880 10 0 10 50 9 9\n");
        assert_eq!(after.total - before.total, 200);
        assert_eq!(after.steal_percent(before), 5.0);
        // 110 ticks were busy, 70 of them ours.
        assert_eq!(after.others_percent(before, 70 * TICK_NS), 20.0);
        assert_eq!(Ticks::parse(""), Ticks::default());
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
