//! **What**: many records through one shard to one subscriber, as fast as they go; every one is counted.
//!
//! **Invariants**: the publisher keeps a bounded number of records in flight, so that nothing may be dropped.
//!
//! **Never**: a record lost, doubled or out of order without an error.
//!
//! **See**: `wire.rs`.

use crate::lean::{Lean, connector};
use crate::machine::{pin, rss_bytes};
use crate::servers::{CLIENT_CPU, Server};
use crate::wire::{Batcher, CHANNEL, Unbatcher, create_stream, hello, open_channel, subscribe};
use crate::{Common, Error};
use felix_protocol::frame::Start;
use std::time::{Duration, Instant};

/// Records in flight.
const IN_FLIGHT: u64 = 16_384;

/// Runs and prints.
pub fn run(common: &Common, records: u64, batch: u64) -> Result<(), Error> {
    pin(CLIENT_CPU)?;
    let server = Server::broker(common)?;
    let mut buffer = vec![0u8; 65_536];
    let mut connector = connector(&server, common.udp_payload)?;
    let mut publisher = Lean::connect(&server, &mut connector)?;
    publisher.finish_handshake(&mut buffer)?;
    hello(&mut publisher, &mut buffer)?;
    create_stream(&mut publisher, &mut buffer)?;
    open_channel(&mut publisher, false, &mut buffer)?;
    let mut subscriber = Lean::connect(&server, &mut connector)?;
    subscriber.finish_handshake(&mut buffer)?;
    hello(&mut subscriber, &mut buffer)?;
    subscribe(&mut subscriber, Start::Latest, &mut buffer)?;
    let mut batcher = Batcher::new(common.value_bytes, true);
    let mut unbatcher = Unbatcher::default();
    let (mut out, mut at, mut bytes) = (Vec::new(), 0, Vec::new());
    let (mut made, mut expected) = (0u64, 0u64);
    let started = Instant::now();
    let mut last_progress = Instant::now();
    let mut next_print = records / 10;
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
            unbatcher.take(&bytes, true, common.value_bytes, |_, number| {
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
        if expected >= next_print {
            let rss = rss_bytes(server.pid())? >> 20;
            println!("{expected} records, {:.1} s, broker RSS {rss} MiB", started.elapsed().as_secs_f64());
            next_print += records / 10;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{records} records of {} B, none lost or reordered, {:.0} records/s",
        common.value_bytes,
        records as f64 / seconds
    );
    println!(
        "{}",
        serde_json::json!({"bench": "soak", "records": records, "lost": 0, "records_per_s": records as f64 / seconds})
    );
    Ok(())
}
