//! **What**: publish to subscriber, one of each, at a fixed rate; the broker and the bare relay in turn.
//!
//! **Invariants**: open loop: latency counts from the intended send time. Publisher and subscriber are two connections
//! polled by one thread on CPU 1, the server runs on CPU 0.
//!
//! **Never**: a run whose steal is above 2 % counted without saying so.
//!
//! **See**: `floors/relay.rs`.

use crate::lean::{Lean, connector};
use crate::machine::{median, pin, steal};
use crate::servers::{CLIENT_CPU, Server};
use crate::wire::{Batcher, CHANNEL, Unbatcher, create_stream, hello, open_channel, subscribe};
use crate::{Common, Error};
use felix_protocol::frame::Start;
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// Measures and prints.
pub fn run(common: &Common, rate: u64, seconds: u64) -> Result<(), Error> {
    pin(CLIENT_CPU)?;
    let mut results: Vec<(&str, Vec<[f64; 3]>)> = vec![("bare quiche", Vec::new()), ("felix", Vec::new())];
    let keeper = Server::broker_with(&Common { wait: crate::Wait::Park, ..common.clone() }, &[])?;
    for run in 0..common.runs {
        for (which, rows) in results.iter_mut() {
            let server = match *which {
                "felix" => Server::broker(common)?,
                _ => Server::floor(common, &keeper.pki)?,
            };
            let (before_steal, before_total) = steal();
            let histogram = one(common, &server, rate, seconds)?;
            let (after_steal, after_total) = steal();
            let stolen = (after_steal - before_steal) as f64 / (after_total - before_total).max(1) as f64;
            let at = |q: f64| histogram.value_at_quantile(q) as f64 / 1_000.0;
            let row = [at(0.5), at(0.99), at(0.999)];
            println!(
                "run {run} {which:<12} p50 {:>8.1} us  p99 {:>8.1} us  p99.9 {:>8.1} us  records {}  steal {:.1} %",
                row[0],
                row[1],
                row[2],
                histogram.len(),
                stolen * 100.0
            );
            rows.push(row);
        }
    }
    let middle = |rows: &[[f64; 3]], at: usize| median(&rows.iter().map(|row| row[at]).collect::<Vec<_>>());
    let (floor, felix) = (&results[0].1, &results[1].1);
    println!(
        "median of {}: bare p50 {:.1} us, felix p50 {:.1} us, ratio {:.2} (p99 {:.1} / {:.1} us)",
        common.runs,
        middle(floor, 0),
        middle(felix, 0),
        middle(felix, 0) / middle(floor, 0),
        middle(floor, 1),
        middle(felix, 1),
    );
    println!(
        "{}",
        serde_json::json!({
            "bench": "latency", "wait": common.wait.name(), "value_bytes": common.value_bytes, "rate": rate,
            "floor_p50_us": middle(floor, 0), "felix_p50_us": middle(felix, 0),
            "floor_p99_us": middle(floor, 1), "felix_p99_us": middle(felix, 1),
            "ratio_p50": middle(felix, 0) / middle(floor, 0),
        })
    );
    Ok(())
}

fn one(common: &Common, server: &Server, rate: u64, seconds: u64) -> Result<Histogram<u64>, Error> {
    let framed = server.is_broker;
    let mut buffer = vec![0u8; 65_536];
    let mut connector = connector(server, common.udp_payload)?;
    let mut publisher = Lean::connect(server, &mut connector)?;
    publisher.finish_handshake(&mut buffer)?;
    let mut subscriber = Lean::connect(server, &mut connector)?;
    subscriber.finish_handshake(&mut buffer)?;
    let channel = if framed {
        hello(&mut publisher, &mut buffer)?;
        create_stream(&mut publisher, &mut buffer)?;
        hello(&mut subscriber, &mut buffer)?;
        subscribe(&mut subscriber, Start::Latest, &mut buffer)?;
        open_channel(&mut publisher, false, &mut buffer)?;
        CHANNEL
    } else {
        publisher.write_all(0, b"P", &mut buffer)?;
        subscriber.write_all(0, b"S", &mut buffer)?;
        std::thread::sleep(Duration::from_millis(50));
        0
    };
    let mut batcher = Batcher::new(common.value_bytes, framed);
    let mut unbatcher = Unbatcher::default();
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
    let interval = Duration::from_nanos(1_000_000_000 / rate);
    let warm_up = Duration::from_millis(500);
    let start = Instant::now();
    let end = start + warm_up + Duration::from_secs(seconds);
    let (mut due, mut out, mut bytes) = (start + interval, Vec::new(), Vec::new());
    let (mut sent, mut expected) = (0u64, 0u64);
    while Instant::now() < end || expected < sent {
        let now = Instant::now();
        if now >= due && now < end {
            let intended = due.duration_since(start).as_nanos() as u64;
            batcher.make(intended, 1, &mut out)?;
            publisher.write_all(channel, &out, &mut buffer)?;
            out.clear();
            sent += 1;
            due += interval;
        }
        publisher.receive(&mut buffer)?;
        publisher.send(&mut buffer);
        if subscriber.receive(&mut buffer)? {
            bytes.clear();
            while let Some(stream) = subscriber.readable.pop() {
                subscriber.read(stream, &mut bytes);
            }
            let arrived = start.elapsed().as_nanos() as u64;
            let mut wrong = None;
            unbatcher.take(&bytes, framed, common.value_bytes, |time, number| {
                if number != expected {
                    wrong = Some((number, expected));
                }
                expected = number + 1;
                if u128::from(time) > warm_up.as_nanos() {
                    histogram.saturating_record(arrived.saturating_sub(time));
                }
            })?;
            if let Some((number, expected)) = wrong {
                return Err(format!("record {number} came where {expected} was due").into());
            }
        }
        subscriber.send(&mut buffer);
        if Instant::now() > end + Duration::from_secs(5) {
            return Err(format!("{} of {sent} records came", expected).into());
        }
    }
    Ok(histogram)
}
