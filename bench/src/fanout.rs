//! **What**: CPU of the serving process per delivery: one publisher, N subscribers in lockstep (the next round begins
//! when every subscriber has the last one), so that records per flush are the same for broker and floor.
//!
//! **Invariants**: both poll for ever (busy), and only turns that found something count; in `park`, the scheduler's CPU
//! time counts, which includes what going to sleep and waking up cost.
//!
//! **Never**: wall time in the result.
//!
//! **See**: `floors/relay.rs`.

use crate::lean::{Lean, connector};
use crate::machine::{cpu_ns, median, pin, steal};
use crate::servers::{CLIENT_CPU, Server};
use crate::wire::{Batcher, CHANNEL, Unbatcher, create_stream, hello, open_channel, subscribe};
use crate::{Common, Error, Wait};
use felix_protocol::frame::Start;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Measures and prints.
pub fn run(common: &Common, subscribers: usize, records: &[usize], rounds: u64) -> Result<(), Error> {
    pin(CLIENT_CPU)?;
    let keeper = Server::broker(&Common { wait: Wait::Park, ..common.clone() })?;
    for &per_round in records {
        let (mut floor, mut felix) = (Vec::new(), Vec::new());
        for run in 0..common.runs {
            for is_felix in [false, true] {
                let server = match is_felix {
                    true => Server::broker(common)?,
                    false => Server::floor(common, &keeper.pki)?,
                };
                let (before_steal, before_total) = steal();
                let (cpu, wall) = one(common, &server, subscribers, per_round as u64, rounds)?;
                let (after_steal, after_total) = steal();
                let stolen = (after_steal - before_steal) as f64 / (after_total - before_total).max(1) as f64;
                let deliveries = subscribers as f64 * rounds as f64 * per_round as f64;
                let each = cpu as f64 / deliveries;
                println!(
                    "run {run} {:<12} {per_round} record(s) per flush: {each:>7.0} ns of work per delivery, {:.0} deliveries/s, steal {:.1} %",
                    server.name(),
                    deliveries / wall.as_secs_f64(),
                    stolen * 100.0
                );
                if is_felix { felix.push(each) } else { floor.push(each) }
            }
        }
        let (floor, felix) = (median(&floor), median(&felix));
        println!(
            "median of {}, {subscribers} subscribers, {} B, {per_round} record(s) per flush: bare {floor:.0} ns, felix {felix:.0} ns, ratio {:.2}",
            common.runs,
            common.value_bytes,
            felix / floor
        );
        println!(
            "{}",
            serde_json::json!({
                "bench": "fanout", "subscribers": subscribers, "value_bytes": common.value_bytes,
                "records_per_flush": per_round, "floor_cpu_ns": floor, "felix_cpu_ns": felix, "ratio": felix / floor,
            })
        );
    }
    Ok(())
}

fn one(
    common: &Common,
    server: &Server,
    subscribers: usize,
    per_round: u64,
    rounds: u64,
) -> Result<(u64, Duration), Error> {
    let framed = server.is_broker;
    let mut buffer = vec![0u8; 65_536];
    let mut connector = connector(server, common.udp_payload)?;
    let mut publisher = Lean::connect(server, &mut connector)?;
    publisher.finish_handshake(&mut buffer)?;
    let channel = if framed {
        hello(&mut publisher, &mut buffer)?;
        create_stream(&mut publisher, &mut buffer)?;
        open_channel(&mut publisher, false, &mut buffer)?;
        CHANNEL
    } else {
        publisher.write_all(0, b"P", &mut buffer)?;
        0
    };
    let mut leans = Vec::new();
    for _ in 0..subscribers {
        let mut lean = Lean::connect(server, &mut connector)?;
        lean.finish_handshake(&mut buffer)?;
        if framed {
            hello(&mut lean, &mut buffer)?;
            subscribe(&mut lean, Start::Latest, &mut buffer)?;
        } else {
            lean.write_all(0, b"S", &mut buffer)?;
        }
        leans.push((lean, Unbatcher::default(), 0u64));
    }
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(256);
    for (at, (lean, ..)) in leans.iter().enumerate() {
        poll.registry().register(&mut SourceFd(&lean.socket().as_raw_fd()), Token(at), Interest::READABLE)?;
    }
    settle(&mut leans, &mut publisher, &mut buffer, Duration::from_millis(400))?;

    let mut batcher = Batcher::new(common.value_bytes, framed);
    let (mut out, mut bytes) = (Vec::new(), Vec::new());
    let warm_up = (rounds / 10).max(20);
    let (mut cpu_before, mut started) = (0, Instant::now());
    for round in 0..warm_up + rounds {
        if round == warm_up {
            cpu_before = cost(common, server)?;
            started = Instant::now();
        }
        out.clear();
        batcher.make(0, per_round, &mut out)?;
        publisher.write_all(channel, &out, &mut buffer)?;
        let wanted = (round + 1) * per_round;
        let mut missing = leans.len();
        let give_up = Instant::now() + Duration::from_secs(5);
        while missing > 0 {
            poll.poll(&mut events, Some(Duration::from_millis(2)))?;
            if events.is_empty() {
                for (lean, ..) in &mut leans {
                    lean.send(&mut buffer);
                }
            }
            publisher.receive(&mut buffer)?;
            publisher.send(&mut buffer);
            for event in &events {
                let (lean, unbatcher, got) = &mut leans[event.token().0];
                if !lean.receive(&mut buffer)? {
                    continue;
                }
                bytes.clear();
                while let Some(stream) = lean.readable.pop() {
                    lean.read(stream, &mut bytes);
                }
                let before = *got;
                let mut wrong = false;
                unbatcher.take(&bytes, framed, common.value_bytes, |_, number| {
                    wrong |= number != *got;
                    *got = number + 1;
                })?;
                if wrong {
                    return Err("a record was lost or reordered".into());
                }
                if before < wanted && *got >= wanted {
                    missing -= 1;
                }
                lean.send(&mut buffer);
            }
            if Instant::now() > give_up {
                return Err(format!("{missing} subscriber(s) did not get round {round}").into());
            }
        }
    }
    let wall = started.elapsed();
    Ok((cost(common, server)? - cpu_before, wall))
}

fn cost(common: &Common, server: &Server) -> Result<u64, Error> {
    if common.wait == Wait::Busy { server.work_ns() } else { cpu_ns(server.pid()) }
}

/// Lets handshakes and path probes end before anything is measured.
fn settle(
    leans: &mut [(Lean, Unbatcher, u64)],
    publisher: &mut Lean,
    buffer: &mut [u8],
    span: Duration,
) -> Result<(), Error> {
    let until = Instant::now() + span;
    while Instant::now() < until {
        publisher.receive(buffer)?;
        publisher.send(buffer);
        for (lean, ..) in leans.iter_mut() {
            lean.receive(buffer)?;
            lean.send(buffer);
        }
    }
    Ok(())
}
