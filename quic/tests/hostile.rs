//! Hostile bytes and hostile peers: nothing panics, state stays bounded, others go on.
//!
//! Each test keeps one honest connection and checks at the end that it still works.

mod common;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::{Random, World};
use felix_quic::{ClientAuth, Counters, EndpointConfig, RetryPolicy, StreamError};

fn strict() -> EndpointConfig {
    let mut config = EndpointConfig { handshakes_max: 64, retry: RetryPolicy::Never, ..EndpointConfig::default() };
    config.transport.handshake_timeout = Duration::from_secs(1);
    config
}

/// What the endpoint says why it dropped something.
fn drops(counters: &Counters) -> u64 {
    counters.each().filter(|(name, _)| name.starts_with("dropped_") || *name == "handshakes_failed").map(|c| c.1).sum()
}

/// Real datagrams towards the server, of handshakes and of a lively connection.
fn recorded(world: &mut World) -> Vec<Vec<u8>> {
    let log: Rc<RefCell<Vec<Vec<u8>>>> = Rc::default();
    let seen = log.clone();
    let server = world.server;
    world.tap = Some(Box::new(move |datagram| {
        if datagram.to == server {
            seen.borrow_mut().push(datagram.bytes.clone());
        }
        true
    }));
    let mut connector = world.connector();
    let (client, core, conn) = world.establish(&mut connector, None);
    world.assert_works(client, core, conn, 30_000);
    world.clients[client].conn.datagram_send(b"datagram").unwrap();
    world.step();
    let second = world.connect(&mut connector, None);
    world.run_until("second", |world| world.clients[second].is_connected());
    world.tap = None;
    log.take()
}

fn mutate(random: &mut Random, datagram: &[u8]) -> Vec<u8> {
    let mut bytes = datagram.to_vec();
    match random.below(6) {
        0 => bytes.truncate(random.below(bytes.len() + 1)),
        1 => {
            for _ in 0..1 + random.below(8) {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
        }
        2 => {
            // Where ids, lengths and tokens are.
            let at = random.below(bytes.len().min(60));
            bytes[at] = random.next() as u8;
        }
        3 => {
            let extra = random.below(300);
            bytes.extend((0..extra).map(|_| random.next() as u8));
        }
        4 => {
            let at = random.below(bytes.len());
            let piece: Vec<u8> = bytes[at..].to_vec();
            bytes.splice(0..0, piece);
        }
        _ => {
            let at = random.below(bytes.len().min(40));
            bytes.splice(at..at, [0xff; 9]);
        }
    }
    bytes
}

#[test]
fn mutated_datagrams_harm_nobody() {
    let mut world = World::new(2, strict(), ClientAuth::None);
    let mut connector = world.connector();
    let (honest, core, conn) = world.establish(&mut connector, Some(1));
    let originals = recorded(&mut world);
    assert!(originals.len() > 20);
    let mut random = Random(0x5eed);
    for round in 0..20_000 {
        let original = &originals[random.below(originals.len())];
        let bytes = mutate(&mut random, original);
        // Often from the honest client's own address: an attacker on the path.
        let from = match random.below(3) {
            0 => world.clients[honest].public,
            _ => SocketAddr::from(([10, 1, random.below(250) as u8, 1], 1 + random.below(60_000) as u16)),
        };
        world.inject(from, &bytes);
        if round % 64 == 0 {
            world.step();
        }
        if round % 2_000 == 0 {
            world.assert_works(honest, core, conn, 5_000);
        }
    }
    world.step();
    for core in &world.cores {
        assert!(core.counters().handshakes_in_flight <= 64);
        assert!(core.connection_count() <= 64 + 8, "{}", core.connection_count());
    }
    assert!(world.cores.iter().map(|core| drops(core.counters())).sum::<u64>() > 5_000);
    assert!(world.clients[honest].closed().is_none());
    world.assert_works(honest, core, conn, 50_000);
    world.run_until("the rest is forgotten", |world| {
        world.cores.iter().all(|core| core.counters().handshakes_in_flight == 0)
    });
}

#[test]
fn random_bytes_are_counted() {
    let mut world = World::new(1, strict(), ClientAuth::None);
    let mut connector = world.connector();
    let (honest, core, conn) = world.establish(&mut connector, None);
    let mut random = Random(99);
    let before = drops(world.cores[0].counters());
    let mut out = vec![0; 65_536];
    for _ in 0..20_000 {
        let len = [0, 1, 2, 5, 6, 7, 16, 17, 18, 21, 40, 300, 1_200, 1_400][random.below(14)];
        let mut bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        if len > 6 && random.below(2) == 0 {
            // Close to an Initial.
            bytes[0] = 0xc0 | bytes[0] & 0x0f;
            bytes[1..5].copy_from_slice(&[0, 0, 0, 1]);
            bytes[5] = [0, 7, 8, 16, 20, 21, 255][random.below(7)];
        }
        let server = world.server;
        world.cores[0].on_datagram(Instant::now(), &mut bytes, "10.0.0.1:5".parse().unwrap(), server);
        while world.cores[0].poll_event().is_some() {}
        while world.cores[0].poll_transmit(Instant::now(), &mut out).is_some() {}
    }
    let counters = world.cores[0].counters();
    assert!(drops(counters) - before > 5_000);
    assert!(counters.dropped_junk > 0 && counters.dropped_unknown_id > 0 && counters.dropped_small_initial > 0);
    assert!(counters.resets_sent > 0 && counters.resets_limited > 0 && counters.version_negotiations_sent > 0);
    assert!(counters.handshakes_in_flight <= 64);
    world.assert_works(honest, core, conn, 20_000);
}

#[test]
fn every_truncation_of_an_initial_is_survived() {
    let mut world = World::new(1, strict(), ClientAuth::None);
    let mut connector = world.connector();
    let (honest, core, conn) = world.establish(&mut connector, None);
    let originals = recorded(&mut world);
    let initial = originals.iter().find(|bytes| bytes[0] & 0xf0 == 0xc0).unwrap();
    let server = world.server;
    let from = "10.0.0.1:5".parse().unwrap();
    for end in 0..=initial.len() {
        world.cores[0].on_datagram(Instant::now(), &mut initial[..end].to_vec(), from, server);
    }
    // Lengths that lie: token length, then packet length.
    let token_at = 6 + usize::from(initial[5]) + 1;
    for at in token_at..token_at + 8 {
        for value in 0..=255 {
            let mut bytes = initial.clone();
            bytes[at] = value;
            // Another id, so that it is nobody's.
            bytes[10] ^= value | 1;
            world.cores[0].on_datagram(Instant::now(), &mut bytes, from, server);
        }
    }
    assert!(world.cores[0].counters().handshakes_in_flight <= 64);
    world.assert_works(honest, core, conn, 20_000);
}

#[test]
fn huge_tokens_cost_nothing() {
    let mut world = World::new(1, strict(), ClientAuth::None);
    let mut connector = world.connector();
    let (honest, core, conn) = world.establish(&mut connector, None);
    let before = *world.cores[0].counters();
    for token_bytes in [1usize, 63, 64, 200, 1_000, 1_150] {
        let mut bytes = vec![0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0];
        bytes.extend((0x4000 | token_bytes as u16).to_be_bytes());
        bytes.resize(bytes.len() + token_bytes, 0x5a);
        bytes.resize(1_200.max(bytes.len()), 0);
        world.inject("10.0.0.1:5".parse().unwrap(), &bytes);
    }
    world.step();
    let after = world.cores[0].counters();
    assert_eq!(after.retry_tokens_invalid - before.retry_tokens_invalid, 6);
    assert_eq!(after.handshakes_total, before.handshakes_total);
    world.assert_works(honest, core, conn, 1_000);
}

#[test]
fn a_flood_of_resets_and_stops_stays_bounded() {
    let mut world = World::new(1, strict(), ClientAuth::None);
    let mut connector = world.connector();
    let (honest, core, honest_conn) = world.establish(&mut connector, None);
    let (hostile, _, conn) = world.establish(&mut connector, None);
    let mut opened = 0;
    for _ in 0..400 {
        while let Ok(stream) = world.clients[hostile].conn.open_uni() {
            world.clients[hostile].conn.stream_send(stream, b"x", false).unwrap();
            world.clients[hostile].conn.stream_reset(stream, 1).unwrap();
            opened += 1;
        }
        world.step();
        assert!(world.events.len() < 200_000);
    }
    assert!(opened > 1_000, "{opened}");
    // The events are bounded by what the peer may open at a time, turn by turn.
    let told = world.events.iter().filter(|(_, event)| matches!(event, felix_quic::Event::StreamReset { .. })).count();
    assert!(told <= opened, "{told}");
    world.assert_works(honest, core, honest_conn, 20_000);
    world.cores[0].close(conn, 0, b"");
    world.run_until("gone", |world| world.cores[0].connection_count() == 1);
}

#[test]
fn one_byte_at_a_time_is_delivered_and_bounded() {
    let mut world = World::new(1, strict(), ClientAuth::None);
    let mut connector = world.connector();
    let (client, core, conn) = world.establish(&mut connector, None);
    let stream = world.clients[client].conn.open_uni().unwrap();
    let mut got = Vec::new();
    let mut buffer = [0; 64];
    for at in 0..5_000u32 {
        while world.clients[client].conn.stream_send(stream, &[at as u8], false).unwrap() == 0 {
            world.step();
        }
        world.step();
        while let Ok(read) = world.cores[core].stream_recv(conn, stream, &mut buffer) {
            got.extend_from_slice(&buffer[..read.bytes]);
        }
    }
    let end = Instant::now() + Duration::from_secs(5);
    while got.len() < 5_000 {
        assert!(Instant::now() < end);
        world.step();
        if let Ok(read) = world.cores[core].stream_recv(conn, stream, &mut buffer) {
            got.extend_from_slice(&buffer[..read.bytes]);
        }
    }
    assert!(got.iter().enumerate().all(|(at, &byte)| byte == at as u8));
}

#[test]
fn a_reader_that_never_reads_holds_one_window() {
    let mut config = strict();
    config.transport.connection_window_initial_bytes = 100_000;
    config.transport.stream_window_initial_bytes = 100_000;
    let mut world = World::new(1, config, ClientAuth::None);
    let mut connector = world.connector();
    let (client, core, conn) = world.establish(&mut connector, None);
    let mut sent = 0;
    for _ in 0..50 {
        if let Ok(stream) = world.clients[client].conn.open_uni() {
            sent += world.clients[client].conn.stream_send(stream, &[0; 50_000], false).unwrap();
        }
        world.step();
    }
    world.run_for(Duration::from_millis(50));
    assert!(sent <= 100_000, "{sent} bytes taken from a client whose server reads nothing");
    // Reading opens the window again.
    let mut buffer = [0; 65_536];
    let streams: BTreeSet<u64> = world
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            felix_quic::Event::StreamReadable { stream, .. } => Some(*stream),
            _ => None,
        })
        .collect();
    for stream in streams {
        while world.cores[core].stream_recv(conn, stream, &mut buffer).is_ok() {}
    }
    world.run_for(Duration::from_millis(20));
    let stream = world.clients[client].conn.open_uni().unwrap();
    assert!(world.clients[client].conn.stream_send(stream, &[0; 50_000], false).unwrap() > 0);
}

#[test]
fn handles_of_another_life_reach_nobody() {
    let mut world = World::new(1, strict(), ClientAuth::None);
    let mut connector = world.connector();
    let (_, core, old) = world.establish(&mut connector, None);
    world.cores[core].close(old, 0, b"");
    world.run_until("gone", |world| world.cores[core].connection_count() == 0);
    let (client, core, new) = world.establish(&mut connector, None);
    assert_ne!(old, new);
    let endpoint = &mut world.cores[core];
    assert_eq!(endpoint.stream_send(old, 3, b"x", false), Err(StreamError::UnknownConnection));
    assert_eq!(endpoint.stream_recv(old, 0, &mut [0]), Err(StreamError::UnknownConnection));
    assert_eq!(endpoint.open_uni(old), Err(StreamError::UnknownConnection));
    assert_eq!(endpoint.conn_stats(old), None);
    assert_eq!(endpoint.datagram_max(old), None);
    endpoint.close(old, 9, b"");
    for number in [0, 1, u64::MAX, 1 << 32, old.to_u64()] {
        let conn = felix_quic::ConnId::from_u64(number);
        if conn != new {
            assert_eq!(endpoint.stream_send(conn, 3, b"x", false), Err(StreamError::UnknownConnection));
        }
    }
    world.assert_works(client, core, new, 1_000);
}
