//! **What**: `floors`: measures what the machine gives, and says what machine it is.
//!
//! **Invariants**: the bare relay runs through the same cells as everything else, in the wait mode that was asked for.
//!
//! **Never**: a figure of Felix.
//!
//! **See**: `floors/`.

use crate::floors::{bytes, disk, ping, quantile};
use crate::grid::{self, Grid, LoadName};
use crate::machine::pin;
use crate::party::System;
use crate::report::Report;
use crate::servers::{CLIENT_CPU, SERVER_CPU};
use crate::{Common, Error, Wait};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Measures and prints. `data` is a folder on the disk that matters.
pub fn run(common: &Common, data: &Path, relay: bool) -> Result<(), Error> {
    pin(CLIENT_CPU)?;
    let mut report = Report::of(common, 0)?;
    report.json("machine", &machine())?;

    let spin = common.wait == Wait::Busy;
    for size in [64, 1_200] {
        let pin_there = || drop(pin(SERVER_CPU));
        let times = ping::round_trips(size, 20_000, spin, pin_there)?;
        let (p50, p99) = (quantile(&times, 0.5) as f64 / 1e3, quantile(&times, 0.99) as f64 / 1e3);
        let how = if spin { "polling" } else { "asleep" };
        report.say(&format!("UDP ping-pong, {size} B, {how}: round trip p50 {p50:.1} us, p99 {p99:.1} us"));
        report.json("floor-udp", &json!({"bytes": size, "wait": how, "p50_us": p50, "p99_us": p99}))?;
    }
    for size in [64, 256, 1_350, 16_384] {
        let each = bytes::seal_ns(size).ok_or("AES-GCM does not work")?;
        report.say(&format!("AES-128-GCM, {size} B: {each:.0} ns, {:.3} ns per byte", each / size as f64));
        report.json("floor-aes", &json!({"bytes": size, "ns": each, "ns_per_byte": each / size as f64}))?;
    }
    for (name, span) in [("cache", 16 << 10), ("memory", 256 << 20)] {
        for size in [256, 4_096] {
            let each = bytes::memcpy_ns(size, span);
            report.say(&format!("memcpy, {size} B, {name}: {each:.1} ns, {:.1} GB/s", size as f64 / each));
            report.json("floor-memcpy", &json!({"bytes": size, "from": name, "ns": each}))?;
        }
    }
    std::fs::create_dir_all(data)?;
    let times = disk::write_and_sync(data, disk::BLOCK, 4_000, Duration::from_secs(3), None)?;
    let us = |list: &[u64], q| quantile(list, q) as f64 / 1e3;
    report.say(&format!(
        "4 KiB O_DIRECT write, {}: p50 {:.0} us, p99 {:.0} us; with fdatasync p50 {:.0} us, p99 {:.0} us ({} times)",
        data.display(),
        us(&times.write, 0.5),
        us(&times.write, 0.99),
        us(&times.both, 0.5),
        us(&times.both, 0.99),
        times.both.len()
    ));
    report.json(
        "floor-disk",
        &json!({
            "write_p50_us": us(&times.write, 0.5), "write_p99_us": us(&times.write, 0.99),
            "sync_p50_us": us(&times.both, 0.5), "sync_p99_us": us(&times.both, 0.99), "count": times.both.len(),
        }),
    )?;
    drop(report);
    if !relay {
        return Ok(());
    }
    let floor =
        Grid { systems: vec![System::Floor], subscribers: vec![1], sizes: vec![], rate: vec![], batch: vec![1] };
    grid::run(common, &Grid { rate: vec![LoadName::Rate(2_000)], ..floor.clone() })?;
    grid::run(common, &Grid { subscribers: vec![10, 100], rate: vec![LoadName::Lockstep], batch: vec![1, 8], ..floor })
}

/// What machine this is, and the versions of what runs on it.
pub fn machine() -> serde_json::Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("").trim_matches([' ', '\t', ':']);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "cpu": model,
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "logical_cpus": cpu.lines().filter(|line| line.starts_with("processor")).count(),
        "kernel": kernel.split('-').next().unwrap_or("").trim(),
        "nats": version("nats-server", "--version"),
        "redis": version("redis-server", "--version"),
        "mosquitto": version("/usr/sbin/mosquitto", "-h"),
    })
}

/// What version a program says it is.
pub fn version(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).lines().next()?.to_string();
    text.split_whitespace().map(|word| word.trim_start_matches("v=")).find(|word| is_version(word)).map(String::from)
}

fn is_version(word: &str) -> bool {
    let word = word.trim_start_matches('v');
    word.contains('.') && word.starts_with(|first: char| first.is_ascii_digit())
}
