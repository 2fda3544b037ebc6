//! Time: idle ends, keep-alive, handshakes that stall, delayed acknowledgements, losses.

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::{Random, World};
use felix_quic::{AckDelay, ClientAuth, ClientConfig, CloseReason, EndpointConfig, Event};

fn idle_after(time: Duration) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.transport.idle_timeout = time;
    config
}

#[test]
fn silence_ends_a_connection_on_both_sides() {
    let mut world = World::new(1, idle_after(Duration::from_millis(400)), ClientAuth::None);
    let mut connector = world.connector_with(ClientConfig { keep_alive: None, ..ClientConfig::default() });
    let (client, _, conn) = world.establish(&mut connector, None);
    let began = Instant::now();
    world.run_until("both ended", |world| {
        world.clients[client].closed().is_some() && world.cores[0].connection_count() == 0
    });
    let took = began.elapsed();
    assert!(took > Duration::from_millis(350) && took < Duration::from_secs(2), "{took:?}");
    assert_eq!(world.clients[client].closed(), Some(&CloseReason::IdleTimeout));
    let closed = Event::Closed { conn, reason: CloseReason::IdleTimeout };
    assert_eq!(world.events.last(), Some(&(0, closed)));
    assert_eq!(world.cores[0].counters().idle_timeouts, 1);
    assert_eq!(world.cores[0].next_timeout(), None, "no timer is left behind");
}

#[test]
fn keep_alive_keeps_it() {
    let mut world = World::new(1, idle_after(Duration::from_millis(400)), ClientAuth::None);
    let keep_alive = Some(Duration::from_millis(100));
    let mut connector = world.connector_with(ClientConfig { keep_alive, ..ClientConfig::default() });
    let (client, core, conn) = world.establish(&mut connector, None);
    world.run_for(Duration::from_millis(200));
    let before = world.cores[0].counters().datagrams_in;
    world.run_for(Duration::from_millis(1_000));
    assert_eq!(world.clients[client].closed(), None);
    let pings = world.cores[0].counters().datagrams_in - before;
    assert!((8..=14).contains(&pings), "{pings} packets in ten intervals");
    world.assert_works(client, core, conn, 1_000);
}

#[test]
fn a_stalled_handshake_is_forgotten_in_silence() {
    let mut config = EndpointConfig::default();
    config.transport.handshake_timeout = Duration::from_millis(200);
    let mut world = World::new(1, config, ClientAuth::None);
    let server = world.server;
    // Everything towards clients is lost.
    world.tap = Some(Box::new(move |datagram| datagram.to == server));
    let mut connector = world.connector();
    world.connect(&mut connector, None);
    world.step();
    assert_eq!(world.cores[0].counters().handshakes_in_flight, 1);
    world.clients.clear();
    world.run_until("forgotten", |world| world.cores[0].connection_count() == 0);
    let counters = world.cores[0].counters();
    assert_eq!((counters.handshakes_timed_out, counters.handshakes_in_flight), (1, 0));
    assert!(world.events.is_empty());
    assert_eq!(world.cores[0].id_count(), 0);
    assert_eq!(world.cores[0].next_timeout(), None);
}

#[test]
fn nothing_leaves_from_on_datagram_and_an_answer_carries_the_acknowledgement() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::None);
    let mut connector = world.connector();
    let (client, core, conn) = world.establish(&mut connector, None);
    world.run_for(Duration::from_millis(300));
    let stream = world.clients[client].conn.open_bidi().unwrap();
    world.clients[client].conn.stream_send(stream, b"question", false).unwrap();
    let before = world.cores[core].counters().packets_out;
    let mut out = vec![0; 65_536];
    let now = Instant::now();
    let sent = world.clients[client].conn.poll_transmit(now, &mut out).unwrap();
    let (from, to) = (world.clients[client].public, world.server);
    world.cores[core].on_datagram(now, &mut out[..sent.bytes], from, to);
    assert_eq!(world.cores[core].poll_event(), Some(Event::StreamReadable { conn, stream }));
    let mut buffer = [0; 100];
    world.cores[core].stream_recv(conn, stream, &mut buffer).unwrap();
    world.cores[core].stream_send(conn, stream, b"answer", false).unwrap();
    assert!(world.cores[core].poll_transmit(now, &mut out).is_some());
    assert_eq!(world.cores[core].poll_transmit(now, &mut out), None);
    assert_eq!(world.cores[core].counters().packets_out, before + 1, "one packet: acknowledgement and answer");
}

/// Packets that a client sends while it only receives, one message per turn.
fn client_packets_while_receiving(ack_delay: Option<AckDelay>) -> u64 {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::None);
    let mut config = ClientConfig::default();
    config.transport.ack_delay = ack_delay;
    let mut connector = world.connector_with(config);
    let (client, core, conn) = world.establish(&mut connector, None);
    world.run_for(Duration::from_millis(50));
    let stream = world.cores[core].open_uni(conn).unwrap();
    let before = world.clients[client].conn.counters().packets_out;
    let mut buffer = [0; 1_000];
    let mut got = 0;
    for _ in 0..400 {
        world.cores[core].stream_send(conn, stream, &[3; 100], false).unwrap();
        world.step();
        while let Ok(read) = world.clients[client].conn.stream_recv(stream, &mut buffer) {
            got += read.bytes;
        }
    }
    let end = Instant::now() + Duration::from_secs(5);
    while got < 40_000 {
        assert!(Instant::now() < end);
        world.step();
        while let Ok(read) = world.clients[client].conn.stream_recv(stream, &mut buffer) {
            got += read.bytes;
        }
    }
    world.run_for(Duration::from_millis(60));
    assert_eq!(world.cores[core].conn_stats(conn).unwrap().packets_lost, 0);
    world.clients[client].conn.counters().packets_out - before
}

#[test]
fn a_delay_saves_acknowledgements_and_loses_nothing() {
    let at_once = client_packets_while_receiving(None);
    let delay = AckDelay { wait_max: Duration::from_millis(1), datagrams_max: 8 };
    let delayed = client_packets_while_receiving(Some(delay));
    assert!(at_once >= 390, "{at_once}");
    assert!(delayed * 4 < at_once, "{delayed} against {at_once}");
}

#[test]
fn a_delayed_acknowledgement_still_comes_in_time() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::None);
    let mut config = ClientConfig::default();
    config.transport.ack_delay = Some(AckDelay { wait_max: Duration::from_millis(5), datagrams_max: 100 });
    let mut connector = world.connector_with(config);
    let (client, core, conn) = world.establish(&mut connector, None);
    world.run_for(Duration::from_millis(50));
    let stream = world.cores[core].open_uni(conn).unwrap();
    world.cores[core].stream_send(conn, stream, b"one", false).unwrap();
    let before = world.clients[client].conn.counters().packets_out;
    world.step();
    world.step();
    assert_eq!(world.clients[client].conn.counters().packets_out, before, "it waits");
    let due = world.clients[client].conn.next_timeout().unwrap();
    assert!(due <= Instant::now() + Duration::from_millis(5));
    world.run_for(Duration::from_millis(10));
    assert_eq!(world.clients[client].conn.counters().packets_out, before + 1);
}

#[test]
fn a_lossy_reordering_duplicating_network_changes_no_byte() {
    for seed in 1..=3 {
        let mut world = World::new(2, EndpointConfig::default(), ClientAuth::None);
        let mut connector = world.connector();
        let random = Rc::new(RefCell::new(Random(seed)));
        let choice = random.clone();
        world.tap = Some(Box::new(move |_| choice.borrow_mut().below(100) >= 5));
        let (client, core, conn) = world.establish(&mut connector, Some((seed % 2) as u8));
        world.assert_works(client, core, conn, 400_000);
        assert!(world.cores[core].connection_count() == 1);
        assert!(world.clients[client].conn.conn_stats().packets_lost > 0, "seed {seed} lost nothing");
    }
}

#[test]
fn a_deadline_that_comes_closer_moves_the_timer() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::None);
    let mut connector = world.connector_with(ClientConfig { keep_alive: None, ..ClientConfig::default() });
    let (_, core, conn) = world.establish(&mut connector, None);
    let far = |world: &mut World| world.cores[0].next_timeout().unwrap() > Instant::now() + Duration::from_secs(5);
    let end = Instant::now() + Duration::from_secs(5);
    while !far(&mut world) {
        assert!(Instant::now() < end, "an idle connection has only its idle timer");
        world.run_for(Duration::from_millis(20));
    }
    let server = world.server;
    world.tap = Some(Box::new(move |datagram| datagram.to == server));
    let stream = world.cores[core].open_uni(conn).unwrap();
    world.cores[core].stream_send(conn, stream, b"lost", true).unwrap();
    world.step();
    assert!(!far(&mut world), "the probe timer is armed");
    world.tap = None;
    world.run_within("the probe repaired it", Duration::from_secs(2), |world| {
        world.clients[0].events.iter().any(|event| matches!(event, Event::StreamReadable { .. }))
    });
}
