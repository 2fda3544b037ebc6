//! **What**: memory of the serving process per idle connection, broker and floor; then the time from Subscribe to the
//! first record of a new subscriber among them; then a reconnect storm: all clients vanish and come back at once.
//!
//! **Invariants**: the same client connections for both; memory is resident memory, after the handshakes are over.
//!
//! **Never**: a connection that is not established counted.
//!
//! **See**: `storm.rs`.

use crate::lean::{Lean, connector};
use crate::machine::{pin, raise_open_files, rss_bytes};
use crate::report::Report;
use crate::servers::{CLIENT_CPU, Server};
use crate::storm;
use crate::wire::{Batcher, CHANNEL, Unbatcher, create_stream, hello, open_channel, subscribe};
use crate::{Common, Error};
use felix_protocol::frame::Start;
use indicatif::ProgressBar;
use std::time::{Duration, Instant};

/// Measures and prints.
pub fn run(common: &Common, count: usize) -> Result<(), Error> {
    pin(CLIENT_CPU)?;
    raise_open_files();
    let keeper = Server::broker(common)?;
    let mut report = Report::of(common, 0)?;
    let floor = one(common, &Server::floor(common, &keeper.target.pki)?, count, &mut report)?;
    let felix = one(common, &Server::broker(common)?, count, &mut report)?;
    println!(
        "{count} idle connections: bare quiche {floor} B each, felix {felix} B each, difference {} B",
        felix as i64 - floor as i64
    );
    report.json("connections", &serde_json::json!({"count": count, "floor_bytes": floor, "felix_bytes": felix}))?;
    Ok(())
}

fn one(common: &Common, server: &Server, count: usize, report: &mut Report) -> Result<u64, Error> {
    let mut buffer = vec![0u8; 65_536];
    let mut connector = connector(&server.target, common.udp_payload)?;
    let before = rss_bytes(server.pid())?;
    let mut leans = Vec::with_capacity(count);
    let started = Instant::now();
    let bar = ProgressBar::new(count as u64);
    for index in 0..count {
        let mut lean = Lean::connect(&server.target, &mut connector)?;
        lean.finish_handshake(&mut buffer)?;
        if server.target.is_broker() {
            hello(&mut lean, &mut buffer)?;
        } else {
            lean.write_all(0, b"S", &mut buffer)?;
        }
        leans.push(lean);
        // The older ones stay alive: acknowledgements, path probes, keep-alive.
        if index % 256 == 255 {
            serve(&mut leans, &mut buffer)?;
            bar.set_position(index as u64);
        }
    }
    bar.finish_and_clear();
    let connected = started.elapsed();
    for _ in 0..4 {
        serve(&mut leans, &mut buffer)?;
        std::thread::sleep(Duration::from_millis(250));
    }
    let each = rss_bytes(server.pid())?.saturating_sub(before) / count as u64;
    println!("{}: {count} connected in {:.1} s, {each} B each", server.target.system.name(), connected.as_secs_f64());
    if server.target.is_broker() {
        let first = first_record(common, server, &mut leans, &mut connector, &mut buffer)?;
        println!("a new subscriber among them got its first record after {:.2} ms", first.as_secs_f64() * 1e3);
        // Closed sockets, no goodbye: what a network that was cut looks like.
        drop(leans);
        storm::run(server, &mut connector, count, report)?;
    }
    Ok(each)
}

fn serve(leans: &mut [Lean], buffer: &mut [u8]) -> Result<(), Error> {
    for lean in leans {
        lean.receive(buffer)?;
        lean.send(buffer);
    }
    Ok(())
}

fn first_record(
    common: &Common,
    server: &Server,
    leans: &mut [Lean],
    connector: &mut felix_quic::Connector,
    buffer: &mut [u8],
) -> Result<Duration, Error> {
    let publisher = &mut leans[0];
    create_stream(publisher, buffer)?;
    open_channel(publisher, false, buffer)?;
    let mut out = Vec::new();
    Batcher::new(common.value_bytes, true).make(0, 1, &mut out)?;
    publisher.write_all(CHANNEL, &out, buffer)?;
    std::thread::sleep(Duration::from_millis(50));
    let started = Instant::now();
    let mut subscriber = Lean::connect(&server.target, connector)?;
    subscriber.finish_handshake(buffer)?;
    hello(&mut subscriber, buffer)?;
    subscribe(&mut subscriber, Start::Earliest, buffer)?;
    let mut unbatcher = Unbatcher::default();
    let (mut got, mut bytes) = (0, Vec::new());
    while got == 0 {
        subscriber.receive(buffer)?;
        bytes.clear();
        subscriber.read(3, &mut bytes);
        unbatcher.take(&bytes, true, common.value_bytes, &mut |_, _| got += 1)?;
        subscriber.send(buffer);
        if started.elapsed() > Duration::from_secs(5) {
            return Err("no record within 5 s".into());
        }
    }
    Ok(started.elapsed())
}
