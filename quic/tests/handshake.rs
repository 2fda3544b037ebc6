//! Handshakes: identities, names, ALPN, steering, and what fails with which reason.

mod common;

use std::time::Duration;

use common::{Pki, World};
use felix_quic::{
    ClientAuth, ClientConfig, ClientTls, CloseReason, ConfigError, ConnectError, Connector, EndpointConfig, Event,
};

#[test]
fn connects_and_carries_bytes_both_ways() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::None);
    let mut connector = world.connector();
    let (client, core, conn) = world.establish(&mut connector, None);
    world.assert_works(client, core, conn, 300_000);
    let counters = world.cores[0].counters();
    assert_eq!((counters.connected_total, counters.handshakes_in_flight, counters.connections), (1, 0, 1));
    assert!(counters.trains_out > 0 || counters.packets_out > 0);
}

#[test]
fn mutual_tls_shows_the_clients_certificate() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::Required);
    let tls = world.pki.client_tls_with_identity();
    let mut connector = Connector::new(ClientConfig::default(), tls).unwrap();
    let (client, core, conn) = world.establish(&mut connector, None);
    let shown = world.events.iter().find_map(|(_, event)| match event {
        Event::Connected { peer_cert, .. } => peer_cert.clone(),
        _ => None,
    });
    assert!(shown.is_some_and(|der| der.starts_with(&[0x30, 0x82])), "a DER certificate");
    world.assert_works(client, core, conn, 10);
}

#[test]
fn optional_client_certificates_may_be_absent_but_not_foreign() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::Optional);
    let mut connector = world.connector();
    world.establish(&mut connector, None);
    let (cert, key) = Pki::new().leaf(&["client"]);
    let tls = ClientTls { cert_chain_pem: Some(cert), key_pem: Some(key), ..world.pki.client_tls() };
    let mut foreign = Connector::new(ClientConfig::default(), tls).unwrap();
    let client = world.connect(&mut foreign, None);
    world.run_until("refused", |world| world.clients[client].closed().is_some());
    assert!(world.clients[client].closed().unwrap().tls_alert().is_some());
    assert_eq!(world.cores[0].counters().connected_total, 1);
}

#[test]
fn a_client_without_certificate_is_refused_with_the_tls_alert() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::Required);
    let mut connector = world.connector();
    let client = world.connect(&mut connector, None);
    world.run_until("refused", |world| world.clients[client].closed().is_some());
    const CERTIFICATE_REQUIRED: u8 = 116;
    assert_eq!(world.clients[client].closed().unwrap().tls_alert(), Some(CERTIFICATE_REQUIRED));
    world.run_until("forgotten", |world| world.cores[0].connection_count() == 0);
    let counters = world.cores[0].counters();
    assert_eq!((counters.handshakes_failed, counters.connected_total, counters.handshakes_in_flight), (1, 0, 0));
    assert!(world.events.is_empty(), "nobody is told of a connection that never was");
}

#[test]
fn names_must_match_and_addresses_are_names_too() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::None);
    let mut connector = world.connector();
    let by_address = world.connect_to(&mut connector, "127.0.0.1", None);
    world.run_until("connected by address", |world| world.clients[by_address].is_connected());
    for wrong in ["example.org", "127.0.0.2"] {
        let client = world.connect_to(&mut connector, wrong, None);
        world.run_until("refused", |world| world.clients[client].closed().is_some());
        assert!(!world.clients[client].is_connected(), "{wrong}");
        assert!(world.clients[client].closed().unwrap().tls_alert().is_some(), "{wrong}");
    }
    let local = world.new_address();
    let bad = felix_quic::ClientConnection::connect(
        std::time::Instant::now(),
        &mut connector,
        "bad name",
        local,
        world.server,
        None,
    );
    assert_eq!(bad.err(), Some(ConnectError::ServerName));
}

#[test]
fn a_client_that_trusts_another_authority_does_not_connect() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::None);
    let tls = Pki::new().client_tls();
    let mut connector = Connector::new(ClientConfig::default(), tls).unwrap();
    let client = world.connect(&mut connector, None);
    world.run_until("refused", |world| world.clients[client].closed().is_some());
    const UNKNOWN_CA: u8 = 48;
    assert_eq!(world.clients[client].closed().unwrap().tls_alert(), Some(UNKNOWN_CA));
}

#[test]
fn bad_identities_are_named() {
    let pki = Pki::new();
    let good = pki.server_tls(ClientAuth::None);
    let (_, other_key) = pki.leaf(&["localhost"]);
    let check = |change: &dyn Fn(&mut felix_quic::ServerTls)| {
        let mut tls = good.clone();
        change(&mut tls);
        felix_quic::Endpoint::new(
            EndpointConfig::default(),
            &tls,
            felix_quic::CoreSlot { index: 0, count: 1 },
            felix_quic::EndpointSecrets::from_seed(&common::SEED),
            std::time::Instant::now(),
        )
        .err()
    };
    assert_eq!(check(&|_| {}), None);
    assert_eq!(check(&|tls| tls.cert_chain_pem = b"junk".to_vec()), Some(ConfigError::CertificateChain));
    assert_eq!(check(&|tls| tls.key_pem = b"junk".to_vec()), Some(ConfigError::PrivateKey));
    assert_eq!(check(&|tls| tls.key_pem = other_key.clone()), Some(ConfigError::KeyMismatch));
    assert_eq!(check(&|tls| tls.client_ca_pem = Some(Vec::new())), Some(ConfigError::CaBundle));
    let no_ca = check(&|tls| {
        tls.client_ca_pem = None;
        tls.client_auth = ClientAuth::Required;
    });
    assert_eq!(no_ca, Some(ConfigError::ClientAuthWithoutCa));
}

#[test]
fn every_client_lands_on_the_core_it_asked_for() {
    let mut world = World::new(4, EndpointConfig::default(), ClientAuth::None);
    let mut connector = world.connector();
    for wanted in [0u8, 1, 2, 3, 2, 1, 3, 0] {
        let (client, core, conn) = world.establish(&mut connector, Some(wanted));
        assert_eq!(core, usize::from(wanted));
        world.assert_works(client, core, conn, 5_000);
    }
    assert!(world.cores.iter().all(|core| core.counters().dropped_wrong_core == 0));
}

#[test]
fn a_new_identity_serves_new_handshakes_only() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::None);
    let mut connector = world.connector();
    let (old, core, old_conn) = world.establish(&mut connector, None);
    let other = Pki::new();
    world.cores[0].reload_tls(&other.server_tls(ClientAuth::None)).unwrap();
    let refused = world.connect(&mut connector, None);
    world.run_until("refused", |world| world.clients[refused].closed().is_some());
    let mut trusting = Connector::new(ClientConfig::default(), other.client_tls()).unwrap();
    let (new, _, new_conn) = world.establish(&mut trusting, None);
    world.assert_works(old, core, old_conn, 1_000);
    world.assert_works(new, core, new_conn, 1_000);
}

#[test]
fn a_silent_server_ends_in_a_handshake_timeout() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::None);
    world.tap = Some(Box::new(|_| false));
    let mut config = ClientConfig::default();
    config.transport.handshake_timeout = Duration::from_millis(300);
    let mut connector = world.connector_with(config);
    let client = world.connect(&mut connector, None);
    world.run_until("gave up", |world| world.clients[client].closed().is_some());
    assert_eq!(world.clients[client].closed(), Some(&CloseReason::HandshakeTimeout));
    assert!(world.clients[client].conn.is_drained());
    assert_eq!(world.clients[client].conn.next_timeout(), None);
}
