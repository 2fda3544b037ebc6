//! **What**: the reconnect storm: so many clients connect at once, none waits for another.
//!
//! **Invariants**: a client's time runs from its own start to its Welcome; handshakes of all overlap. One that fails tries
//! again, as a real client would, and its time runs on.
//!
//! **Never**: blocking on one client.
//!
//! **See**: `connections.rs`.

use crate::Error;
use crate::floors::quantile;
use crate::lean::Lean;
use crate::machine::{cpu_ns, now_ns};
use crate::report::Report;
use crate::servers::Server;
use crate::wire::hello_frame;
use felix_protocol::envelope::FrameType;
use felix_protocol::frame::Frame;
use felix_protocol::frame_stream::FrameStream;
use felix_quic::Connector;
use indicatif::ProgressBar;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// How long the whole storm may last.
const PATIENCE_NS: u64 = 120_000_000_000;
/// Clients started between two looks at those that are under way.
const STARTS_PER_TURN: usize = 4;
/// Clients whose timers are looked at per turn.
const TIMERS_PER_TURN: usize = 16;

enum Stage {
    Handshake,
    Hello,
    Welcome,
}

struct Client {
    lean: Lean,
    stage: Stage,
    since_ns: u64,
    frames: FrameStream,
}

/// Connects `count` clients and prints how long it took.
pub fn run(server: &Server, connector: &mut Connector, count: usize, report: &mut Report) -> Result<(), Error> {
    let mut buffer = vec![0u8; 65_536];
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1_024);
    let mut clients: Vec<Client> = Vec::with_capacity(count);
    let mut times: Vec<u64> = Vec::with_capacity(count);
    let (mut retries, mut next_timer) = (0u64, 0usize);
    let cpu_before = cpu_ns(server.pid())?;
    let started = now_ns();
    let bar = ProgressBar::new(count as u64);
    while times.len() < count {
        for _ in 0..STARTS_PER_TURN.min(count - clients.len()) {
            clients.push(start(server, connector, now_ns())?);
            register(&poll, &clients, clients.len() - 1)?;
            let last = clients.len() - 1;
            clients[last].lean.send(&mut buffer);
        }
        poll.poll(&mut events, Some(Duration::ZERO))?;
        let mut ready: Vec<usize> = events.iter().map(|event| event.token().0).collect();
        for _ in 0..TIMERS_PER_TURN.min(clients.len()) {
            ready.push(next_timer);
            next_timer = (next_timer + 1) % clients.len();
        }
        for index in ready {
            let client = &mut clients[index];
            match advance(client, &mut buffer) {
                Ok(true) => {
                    times.push(now_ns() - client.since_ns);
                    if times.len().is_multiple_of(256) {
                        bar.set_position(times.len() as u64);
                    }
                }
                Ok(false) => {}
                Err(_) if !matches!(client.stage, Stage::Welcome) => {
                    retries += 1;
                    clients[index] = start(server, connector, client.since_ns)?;
                    register(&poll, &clients, index)?;
                    clients[index].lean.send(&mut buffer);
                }
                Err(error) => return Err(error),
            }
        }
        if now_ns() - started > PATIENCE_NS {
            return Err(format!("{} of {count} clients were back after 2 min", times.len()).into());
        }
    }
    bar.finish_and_clear();
    let seconds = (now_ns() - started) as f64 / 1e9;
    let cpu_us = (cpu_ns(server.pid())? - cpu_before) as f64 / 1e3 / count as f64;
    times.sort_unstable();
    let ms = |q| quantile(&times, q) as f64 / 1e6;
    report.say(&format!(
        "reconnect storm: {count} clients back after {seconds:.2} s, p50 {:.1} ms, p99 {:.1} ms, {cpu_us:.0} us of the \
         server's CPU each, {retries} tried again",
        ms(0.5),
        ms(0.99)
    ));
    report.json(
        "storm",
        &serde_json::json!({
            "count": count, "seconds": seconds, "p50_ms": ms(0.5), "p99_ms": ms(0.99), "cpu_us": cpu_us, "retries": retries,
        }),
    )
}

fn start(server: &Server, connector: &mut Connector, since_ns: u64) -> Result<Client, Error> {
    let lean = Lean::connect(&server.target, connector)?;
    Ok(Client { lean, stage: Stage::Handshake, since_ns, frames: FrameStream::new() })
}

fn register(poll: &Poll, clients: &[Client], index: usize) -> Result<(), Error> {
    let socket = clients[index].lean.socket().as_raw_fd();
    Ok(poll.registry().register(&mut SourceFd(&socket), Token(index), Interest::READABLE)?)
}

/// One step of one client. Returns whether it was welcomed just now.
fn advance(client: &mut Client, buffer: &mut [u8]) -> Result<bool, Error> {
    client.lean.receive(buffer)?;
    let mut welcomed = false;
    if matches!(client.stage, Stage::Handshake) && client.lean.is_connected() {
        client.stage = Stage::Hello;
        let hello = hello_frame();
        let sent = client.lean.conn.stream_send(0, &hello, false)?;
        if sent < hello.len() {
            return Err("no room for a Hello".into());
        }
    }
    if matches!(client.stage, Stage::Hello) {
        let mut bytes = Vec::new();
        client.lean.read(0, &mut bytes);
        client.frames.push(&bytes);
        if let Some(frame) = client.frames.next_frame()? {
            let (envelope, frame) = Frame::decode(frame)?;
            if envelope.frame_type != FrameType::Welcome {
                return Err(format!("expected Welcome, got {frame:?}").into());
            }
            client.stage = Stage::Welcome;
            welcomed = true;
        }
    }
    client.lean.send(buffer);
    Ok(welcomed)
}
