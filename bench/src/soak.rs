//! **What**: many records through one shard to one subscriber, as fast as they go; every one is counted, and the broker's
//! memory is looked at while they go.
//!
//! **Invariants**: the publisher keeps a bounded number of records in flight, so that nothing may be dropped.
//!
//! **Never**: a record lost, doubled or out of order without an error.
//!
//! **See**: `wire.rs`.

use crate::lean::{Lean, connector};
use crate::machine::{pin, rss_bytes};
use crate::report::Report;
use crate::servers::{CLIENT_CPU, Server};
use crate::wire::{Batcher, CHANNEL, Unbatcher, create_stream, hello, open_channel, subscribe};
use crate::{Common, Error};
use felix_protocol::frame::Start;
use indicatif::ProgressBar;
use std::time::{Duration, Instant};

/// Records in flight.
const IN_FLIGHT: u64 = 16_384;

/// Between two looks at the broker's memory.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs and prints. With `minutes`, so many records as they let through.
pub fn run(common: &Common, records: u64, batch: u64, minutes: Option<u64>) -> Result<(), Error> {
    pin(CLIENT_CPU)?;
    let mut report = Report::of(common, 0)?;
    let server = Server::broker(common)?;
    let mut buffer = vec![0u8; 65_536];
    let mut connector = connector(&server.target, common.udp_payload)?;
    let mut publisher = Lean::connect(&server.target, &mut connector)?;
    publisher.finish_handshake(&mut buffer)?;
    hello(&mut publisher, &mut buffer)?;
    create_stream(&mut publisher, &mut buffer)?;
    open_channel(&mut publisher, false, &mut buffer)?;
    let mut subscriber = Lean::connect(&server.target, &mut connector)?;
    subscriber.finish_handshake(&mut buffer)?;
    hello(&mut subscriber, &mut buffer)?;
    subscribe(&mut subscriber, Start::Latest, &mut buffer)?;
    let mut batcher = Batcher::new(common.value_bytes, true);
    let mut unbatcher = Unbatcher::default();
    let (mut out, mut at, mut bytes) = (Vec::new(), 0, Vec::new());
    let (mut made, mut expected) = (0u64, 0u64);
    let started = Instant::now();
    let mut last_progress = Instant::now();
    // With a time, the number of records is what fits into it.
    let mut records = if minutes.is_some() { u64::MAX } else { records };
    let end = minutes.map(|minutes| started + Duration::from_secs(minutes * 60));
    let bar = ProgressBar::new(minutes.map_or(records, |minutes| minutes * 60));
    let mut next_look = started + LOOK_EVERY;
    let mut memory: Vec<u64> = Vec::new();
    while expected < records {
        if at == out.len() && made < records && made - expected < IN_FLIGHT {
            out.clear();
            at = 0;
            let count = batch.min(records - made);
            batcher.make(0, count, &mut out)?;
            made += count;
        }
        if at < out.len() {
            at += publisher.conn.stream_send(CHANNEL, &out[at..], false)?;
        }
        publisher.send(&mut buffer);
        publisher.receive(&mut buffer)?;
        if subscriber.receive(&mut buffer)? {
            bytes.clear();
            while let Some(stream) = subscriber.readable.pop() {
                subscriber.read(stream, &mut bytes);
            }
            let mut wrong = None;
            unbatcher.take(&bytes, true, common.value_bytes, &mut |_, number| {
                if number != expected {
                    wrong.get_or_insert((number, expected));
                }
                expected = number + 1;
            })?;
            if let Some((number, due)) = wrong {
                return Err(format!("record {number} came where {due} was due").into());
            }
            last_progress = Instant::now();
        }
        subscriber.send(&mut buffer);
        if last_progress.elapsed() > Duration::from_secs(10) {
            return Err(format!("nothing came for 10 s after {expected} of {made} records").into());
        }
        let now = Instant::now();
        if now >= next_look {
            memory.push(rss_bytes(server.pid())? >> 20);
            bar.set_position(if minutes.is_some() { started.elapsed().as_secs() } else { expected });
            next_look = now + LOOK_EVERY;
        }
        if end.is_some_and(|end| now >= end) && records == u64::MAX {
            records = made;
        }
    }
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    // The first tenth fills retention and pools.
    let steady = &memory[memory.len() / 10..];
    let (low, high) = (steady.iter().min().copied().unwrap_or(0), steady.iter().max().copied().unwrap_or(0));
    report.say(&format!(
        "{records} records of {} B, none lost or reordered, {:.0} records/s, broker memory {low} to {high} MiB, at the end {} MiB",
        common.value_bytes,
        records as f64 / seconds,
        rss_bytes(server.pid())? >> 20
    ));
    report.json(
        "soak",
        &serde_json::json!({
            "records": records, "lost": 0, "records_per_s": records as f64 / seconds, "seconds": seconds,
            "value_bytes": common.value_bytes, "rss_mib_min": low, "rss_mib_max": high, "rss_mib": memory,
        }),
    )
}
