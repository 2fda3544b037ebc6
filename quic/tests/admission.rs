//! Who gets in: Retry, limits, refusals, resets, version negotiation.

mod common;

use std::time::{Duration, Instant};

use common::{Pki, Random, SEED, World};
use felix_quic::{ClientAuth, CloseReason, CoreSlot, Endpoint, EndpointConfig, EndpointSecrets, RetryPolicy};

/// The datagrams of a client's first flight.
fn first_flight(world: &mut World) -> Vec<Vec<u8>> {
    let mut connector = world.connector();
    let client = world.connect(&mut connector, None);
    let mut out = vec![0; 65_536];
    let mut flight = Vec::new();
    while let Some(sent) = world.clients[client].conn.poll_transmit(Instant::now(), &mut out) {
        let segment = sent.segment_bytes.unwrap_or(sent.bytes);
        flight.extend(out[..sent.bytes].chunks(segment).map(<[u8]>::to_vec));
    }
    world.clients.pop();
    flight
}

#[test]
fn retry_begins_at_the_threshold_and_proves_the_address() {
    let config = EndpointConfig { retry: RetryPolicy::AboveHandshakes(3), ..EndpointConfig::default() };
    let mut world = World::new(1, config, ClientAuth::None);
    // Three clients that never answer.
    for _ in 0..3 {
        let flight = first_flight(&mut world);
        let from = world.new_address();
        world.inject(from, &flight[0]);
    }
    world.step();
    assert_eq!(world.cores[0].counters().handshakes_in_flight, 3);
    assert_eq!(world.cores[0].counters().retries_sent, 0);
    let mut connector = world.connector();
    let (client, core, conn) = world.establish(&mut connector, None);
    let counters = world.cores[0].counters();
    assert_eq!((counters.retries_sent, counters.retry_tokens_valid, counters.handshakes_total), (1, 1, 4));
    world.assert_works(client, core, conn, 1_000);
}

#[test]
fn a_token_from_elsewhere_is_refused_in_one_round_trip() {
    let config = EndpointConfig { retry: RetryPolicy::Always, ..EndpointConfig::default() };
    let mut world = World::new(1, config, ClientAuth::None);
    let server = world.server;
    // The NAT gives the client another port between its Retry and its second Initial.
    let mut initials = 0;
    world.tap = Some(Box::new(move |datagram| {
        if datagram.to == server {
            initials += 1;
            if initials > 1 {
                datagram.from.set_port(9_999);
            }
        } else if datagram.to.port() == 9_999 {
            datagram.to.set_port(10_001);
        }
        true
    }));
    let mut connector = world.connector();
    let client = world.connect(&mut connector, None);
    let began = Instant::now();
    world.run_until("refused", |world| world.clients[client].closed().is_some());
    assert!(began.elapsed() < Duration::from_secs(1));
    assert!(world.clients[client].closed().unwrap().is_refused(), "{:?}", world.clients[client].closed());
    assert_eq!(world.cores[0].counters().retry_tokens_invalid, 1);
    assert_eq!(world.cores[0].counters().handshakes_total, 0);
}

#[test]
fn a_draining_endpoint_refuses_and_keeps_what_it_has() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::None);
    let mut connector = world.connector();
    let (old, core, conn) = world.establish(&mut connector, None);
    world.cores[0].stop_accepting();
    let client = world.connect(&mut connector, None);
    world.run_until("refused", |world| world.clients[client].closed().is_some());
    let refused = CloseReason::PeerTransport { code: 2, reason: Vec::new() };
    assert_eq!(world.clients[client].closed(), Some(&refused));
    assert!(refused.is_refused());
    assert_eq!(world.cores[0].counters().refused_draining, 1);
    assert_eq!(world.cores[0].counters().handshakes_total, 1, "no state for it");
    world.assert_works(old, core, conn, 1_000);
}

#[test]
fn the_connection_limit_refuses() {
    let config = EndpointConfig { connections_max: 2, ..EndpointConfig::default() };
    let mut world = World::new(1, config, ClientAuth::None);
    let mut connector = world.connector();
    let (_, _, first) = world.establish(&mut connector, None);
    world.establish(&mut connector, None);
    let client = world.connect(&mut connector, None);
    world.run_until("refused", |world| world.clients[client].closed().is_some());
    assert!(world.clients[client].closed().unwrap().is_refused());
    assert_eq!(world.cores[0].counters().refused_connections_max, 1);
    world.cores[0].close(first, 0, b"");
    world.run_until("room again", |world| world.cores[0].connection_count() == 1);
    world.establish(&mut connector, None);
}

#[test]
fn the_limit_of_one_source_leaves_others_alone() {
    let config = EndpointConfig { connections_per_source_max: 2, ..EndpointConfig::default() };
    let mut world = World::new(1, config, ClientAuth::None);
    let mut connector = world.connector();
    let (_, _, first) = world.establish(&mut connector, None);
    world.establish(&mut connector, None);
    let client = world.connect(&mut connector, None);
    world.run_until("refused", |world| world.clients[client].closed().is_some());
    assert!(world.clients[client].closed().unwrap().is_refused());
    assert_eq!(world.cores[0].counters().refused_source_max, 1);

    let other = world.connect(&mut connector, None);
    world.clients[other].public = "127.0.0.9:7".parse().unwrap();
    world.run_until("another source", |world| world.clients[other].is_connected());

    world.cores[0].close(first, 0, b"");
    world.run_until("room again", |world| world.cores[0].connection_count() == 2);
    world.establish(&mut connector, None);
}

#[test]
fn two_handshakes_at_once_cannot_pass_the_source_limit() {
    let config = EndpointConfig { connections_per_source_max: 1, ..EndpointConfig::default() };
    let mut world = World::new(1, config, ClientAuth::None);
    let mut connector = world.connector();
    let clients = [world.connect(&mut connector, None), world.connect(&mut connector, None)];
    world.run_until("one is refused", |world| clients.iter().any(|&c| world.clients[c].closed().is_some()));
    world.run_until("one is left", |world| world.cores[0].connection_count() == 1);
    let counters = world.cores[0].counters();
    assert_eq!((counters.connected_total, counters.refused_source_max, counters.handshakes_in_flight), (1, 1, 0));
    let told = world.events.iter().filter(|(_, event)| matches!(event, felix_quic::Event::Connected { .. })).count();
    assert_eq!(told, 1);
}

#[test]
fn a_spoofed_flood_leaves_only_the_handshake_limit_behind() {
    let mut config = EndpointConfig { handshakes_max: 50, retry: RetryPolicy::Never, ..EndpointConfig::default() };
    config.transport.handshake_timeout = Duration::from_millis(500);
    let mut world = World::new(1, config, ClientAuth::None);
    let mut connector = world.connector();
    let (old, core, conn) = world.establish(&mut connector, None);
    let flight = first_flight(&mut world);
    let mut random = Random(11);
    for _ in 0..2_000 {
        // Another destination id each: the keys derive from it, so only some of them decrypt.
        let fresh = if random.below(10) == 0 { first_flight(&mut world).remove(0) } else { flight[0].clone() };
        let mut bytes = fresh;
        if random.below(2) == 0 {
            bytes[6 + random.below(16)] ^= 1 << random.below(8);
        }
        let from = format!(
            "10.{}.{}.{}:{}",
            random.below(256),
            random.below(256),
            random.below(256),
            1 + random.below(60_000)
        );
        world.inject(from.parse().unwrap(), &bytes);
        if random.below(50) == 0 {
            world.step();
        }
    }
    world.step();
    let counters = *world.cores[0].counters();
    assert!(counters.handshakes_in_flight <= 50, "{}", counters.handshakes_in_flight);
    assert!(counters.dropped_handshakes_max > 0 && counters.handshakes_failed > 100);
    assert!(world.cores[0].connection_count() <= 51);
    assert!(world.cores[0].id_count() <= 4 + 2 * 50, "{}", world.cores[0].id_count());
    assert!(counters.bytes_out <= 3 * counters.bytes_in);
    world.assert_works(old, core, conn, 10_000);
    world.run_until("all given up", |world| world.cores[0].counters().handshakes_in_flight == 0);
    assert_eq!(world.cores[0].connection_count(), 1);
    world.establish(&mut connector, None);
}

#[test]
fn a_flood_under_retry_leaves_nothing_behind() {
    let config = EndpointConfig { retry: RetryPolicy::Always, ..EndpointConfig::default() };
    let mut world = World::new(1, config, ClientAuth::None);
    let mut out = vec![0; 65_536];
    let flight = first_flight(&mut world);
    for at in 0..5_000u32 {
        let from = format!("10.0.{}.{}:5", at >> 8 & 255, at & 255).parse().unwrap();
        let server = world.server;
        world.cores[0].on_datagram(Instant::now(), &mut flight[0].clone(), from, server);
        while at % 100 == 0 && world.cores[0].poll_transmit(Instant::now(), &mut out).is_some() {}
    }
    let counters = world.cores[0].counters();
    assert_eq!((world.cores[0].connection_count(), world.cores[0].id_count()), (0, 0));
    assert_eq!(counters.retries_sent, 5_000);
    assert!(counters.bytes_out * 4 < counters.bytes_in);
}

#[test]
fn a_restarted_broker_tells_its_clients_in_one_round_trip() {
    let pki = Pki::new();
    let tls = pki.server_tls(ClientAuth::None);
    let mut world = World::with_pki(pki, &tls, 2, EndpointConfig::default());
    let mut connector = world.connector();
    let (client, _, _) = world.establish(&mut connector, Some(1));
    world.run_for(Duration::from_millis(20));
    for index in 0..2 {
        let secrets = EndpointSecrets::from_seed(&SEED);
        let slot = CoreSlot { index, count: 2 };
        world.cores[usize::from(index)] =
            Endpoint::new(EndpointConfig::default(), &tls, slot, secrets, Instant::now()).unwrap();
    }
    let stream = world.clients[client].conn.open_bidi().unwrap();
    world.clients[client].conn.stream_send(stream, b"are you there", false).unwrap();
    let began = Instant::now();
    world.run_until("told", |world| world.clients[client].closed().is_some());
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
    assert_eq!(world.clients[client].closed(), Some(&CloseReason::StatelessReset));
    assert_eq!(world.cores[1].counters().resets_sent, 1);
    assert!(world.clients[client].conn.is_drained());
    assert_eq!(world.clients[client].conn.counters().resets_received, 1);
    world.establish(&mut connector, Some(1));
}

#[test]
fn a_client_that_missed_the_close_is_told_by_a_reset() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::None);
    let mut connector = world.connector();
    let (client, core, conn) = world.establish(&mut connector, None);
    world.run_for(Duration::from_millis(20));
    let server = world.server;
    world.tap = Some(Box::new(move |datagram| datagram.to == server));
    world.cores[core].close(conn, 3, b"");
    let stream = world.clients[client].conn.open_uni().unwrap();
    world.clients[client].conn.stream_send(stream, b"into the void", false).unwrap();
    world.run_until("forgotten", |world| world.cores[0].connection_count() == 0);
    world.tap = None;
    world.clients[client].conn.stream_send(stream, b"once more", false).unwrap();
    world.run_until("told", |world| world.clients[client].closed().is_some());
    assert_eq!(world.clients[client].closed(), Some(&CloseReason::StatelessReset));
}

#[test]
fn a_restarted_broker_with_other_secrets_cannot_reset() {
    let pki = Pki::new();
    let tls = pki.server_tls(ClientAuth::None);
    let mut world = World::with_pki(pki, &tls, 1, EndpointConfig::default());
    let mut connector = world.connector();
    let (client, _, _) = world.establish(&mut connector, None);
    world.run_for(Duration::from_millis(20));
    let secrets = EndpointSecrets::from_seed(&[1; 32]);
    let slot = CoreSlot { index: 0, count: 1 };
    world.cores[0] = Endpoint::new(EndpointConfig::default(), &tls, slot, secrets, Instant::now()).unwrap();
    let stream = world.clients[client].conn.open_bidi().unwrap();
    world.clients[client].conn.stream_send(stream, b"are you there", false).unwrap();
    world.run_for(Duration::from_millis(100));
    assert!(world.cores[0].counters().resets_sent > 0);
    assert_eq!(world.clients[client].closed(), None);
}

#[test]
fn another_version_is_told_ours() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::None);
    let mut flight = first_flight(&mut world);
    flight[0][1..5].copy_from_slice(&[0x1a, 0x2a, 0x3a, 0x4a]);
    let server = world.server;
    let from = "10.0.0.1:9".parse().unwrap();
    world.cores[0].on_datagram(Instant::now(), &mut flight[0].clone(), from, server);
    let mut out = vec![0; 2_000];
    let sent = world.cores[0].poll_transmit(Instant::now(), &mut out).unwrap();
    assert_eq!((sent.to, sent.from), (from, server));
    assert_eq!((out[0] & 0x80, &out[1..5]), (0x80, &[0; 4][..]), "version negotiation");
    // Ids swapped: theirs is empty, then the 16 bytes they called us.
    assert_eq!(out[5..7], [0, 16]);
    assert_eq!(out[7..23], flight[0][6..22]);
    assert!(out[23..sent.bytes].chunks(4).any(|version| version == [0, 0, 0, 1]));
    // Too small to deserve an answer.
    world.cores[0].on_datagram(Instant::now(), &mut flight[0][..1_199].to_vec(), from, server);
    assert_eq!(world.cores[0].poll_transmit(Instant::now(), &mut out), None);
    assert_eq!(world.cores[0].counters().dropped_small_initial, 1);
    assert_eq!(world.cores[0].counters().version_negotiations_sent, 1);
}
