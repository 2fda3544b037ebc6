//! Clients that are not ours: plain quiche with other settings, polite and not.

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use boring::ssl::{SslContextBuilder, SslMethod, SslVerifyMode};
use boring::x509::X509;
use common::{Pki, SEED};
use felix_quic::{
    ClientAuth, ConnId, CoreSlot, Endpoint, EndpointConfig, EndpointSecrets, Event, RetryPolicy, ServerTls,
};

struct Foreign {
    quic: quiche::Connection,
    local: SocketAddr,
}

struct Meeting {
    endpoint: Endpoint,
    server: SocketAddr,
    pki: Pki,
    events: Vec<Event>,
}

fn meeting(config: EndpointConfig) -> Meeting {
    let pki = Pki::new();
    let tls: ServerTls = pki.server_tls(ClientAuth::None);
    let core = CoreSlot { index: 0, count: 1 };
    let endpoint = Endpoint::new(config, &tls, core, EndpointSecrets::from_seed(&SEED), Instant::now()).unwrap();
    Meeting { endpoint, server: "127.0.0.1:4433".parse().unwrap(), pki, events: Vec::new() }
}

impl Meeting {
    fn config(&self, protocols: &[&[u8]]) -> quiche::Config {
        let mut tls = SslContextBuilder::new(SslMethod::tls()).unwrap();
        for root in X509::stack_from_pem(&self.pki.ca_pem).unwrap() {
            tls.cert_store_mut().add_cert(root).unwrap();
        }
        tls.set_verify(SslVerifyMode::PEER);
        let mut config = quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, tls).unwrap();
        config.set_application_protos(protocols).unwrap();
        config.set_initial_max_data(1 << 20);
        config.set_initial_max_stream_data_uni(1 << 20);
        config.set_initial_max_streams_uni(10);
        config.set_active_connection_id_limit(8);
        config
    }

    fn connect(&self, config: &mut quiche::Config, scid: &[u8], dcid: &[u8]) -> Foreign {
        let local = "127.0.0.1:5555".parse().unwrap();
        let (scid, dcid) = (quiche::ConnectionId::from_ref(scid), quiche::ConnectionId::from_ref(dcid));
        let quic = quiche::connect_with_dcid(Some("localhost"), &scid, &dcid, local, self.server, config).unwrap();
        Foreign { quic, local }
    }

    /// One exchange; false if nothing moved.
    fn step(&mut self, client: &mut Foreign) -> bool {
        let mut out = vec![0; 65_536];
        let mut moved = false;
        let now = Instant::now();
        while let Ok((bytes, _)) = client.quic.send(&mut out) {
            self.endpoint.on_datagram(now, &mut out[..bytes], client.local, self.server);
            moved = true;
        }
        while let Some(event) = self.endpoint.poll_event() {
            self.events.push(event);
        }
        while let Some(sent) = self.endpoint.poll_transmit(now, &mut out) {
            for packet in out[..sent.bytes].chunks_mut(sent.segment_bytes.unwrap_or(sent.bytes)) {
                let info = quiche::RecvInfo { from: self.server, to: client.local };
                let _ = client.quic.recv(packet, info);
            }
            moved = true;
        }
        moved
    }

    fn settle(&mut self, client: &mut Foreign) {
        while self.step(client) {}
    }

    fn connected(&self) -> Option<ConnId> {
        self.events.iter().find_map(|event| match event {
            Event::Connected { conn, .. } => Some(*conn),
            _ => None,
        })
    }
}

#[test]
fn another_alpn_or_none_is_refused() {
    const NO_APPLICATION_PROTOCOL: u64 = 0x178;
    for protocols in [&[b"h3" as &[u8]] as &[&[u8]], &[b"felix/2"], &[b"felix/10", b"felix/"], &[]] {
        let mut meeting = meeting(EndpointConfig::default());
        let mut config = meeting.config(protocols);
        let mut client = meeting.connect(&mut config, &[1; 8], &[2; 8]);
        meeting.settle(&mut client);
        let told = client.quic.peer_error().or(client.quic.local_error()).map(|error| error.error_code);
        // Without any, the TLS library does not even let a client start.
        let expected = if protocols.is_empty() { 0x01 } else { NO_APPLICATION_PROTOCOL };
        assert_eq!(told, Some(expected), "{protocols:?}");
        assert_eq!(meeting.endpoint.counters().connected_total, 0);
        assert_eq!(meeting.endpoint.connection_count(), 0, "{protocols:?}");
        assert!(meeting.events.is_empty());
    }
}

#[test]
fn the_longest_ids_with_retry_still_fit_the_transport_parameters() {
    let mut endpoint_config = EndpointConfig { retry: RetryPolicy::Always, ..EndpointConfig::default() };
    let transport = &mut endpoint_config.transport;
    transport.connection_window_initial_bytes = (1 << 30) - 1;
    transport.connection_window_max_bytes = 1 << 30;
    transport.stream_window_initial_bytes = (1 << 30) - 1;
    transport.stream_window_max_bytes = 1 << 30;
    transport.streams_bidi_max = (1 << 14) - 1;
    transport.streams_uni_max = (1 << 14) - 1;
    transport.idle_timeout = Duration::from_millis((1 << 30) - 1);
    transport.max_udp_payload_bytes = 16_383;
    let mut meeting = meeting(endpoint_config);
    let mut config = meeting.config(&[b"h3", b"felix/1"]);
    let mut client = meeting.connect(&mut config, &[1; 20], &[2; 20]);
    meeting.settle(&mut client);
    let counters = meeting.endpoint.counters();
    assert!(client.quic.is_established(), "{:?} {counters:?}", client.quic.local_error());
    assert_eq!(client.quic.application_proto(), b"felix/1");
    assert!(meeting.connected().is_some());
    assert_eq!(meeting.endpoint.counters().accept_failed, 0);
}

#[test]
fn no_session_is_handed_out() {
    let mut meeting = meeting(EndpointConfig::default());
    let mut config = meeting.config(&[b"felix/1"]);
    let mut client = meeting.connect(&mut config, &[1; 8], &[2; 8]);
    meeting.settle(&mut client);
    std::thread::sleep(Duration::from_millis(20));
    meeting.settle(&mut client);
    assert!(client.quic.is_established());
    assert!(client.quic.session().is_none(), "a ticket is memory and outlives a revoked certificate");
}

#[test]
fn retiring_ids_without_end_keeps_the_map_bounded() {
    let mut meeting = meeting(EndpointConfig::default());
    let mut config = meeting.config(&[b"felix/1"]);
    let mut client = meeting.connect(&mut config, &[1; 8], &[2; 8]);
    meeting.settle(&mut client);
    let mut next = 1;
    for _ in 0..30_000 {
        if client.quic.retire_dcid(next).is_ok() {
            next += 1;
        }
        meeting.step(&mut client);
        if client.quic.is_closed() || client.quic.is_draining() {
            break;
        }
    }
    let counters = meeting.endpoint.counters();
    assert!(counters.ids_retired > 20_000, "{}", counters.ids_retired);
    assert!(meeting.endpoint.id_count() < 16_384 + 20, "{}", meeting.endpoint.id_count());
    assert_eq!(meeting.endpoint.connection_count(), 1);
}

#[test]
fn our_stream_limit_is_enforced_by_a_close() {
    let mut endpoint_config = EndpointConfig::default();
    endpoint_config.transport.streams_uni_max = 2;
    let mut meeting = meeting(endpoint_config);
    let mut config = meeting.config(&[b"felix/1"]);
    let mut client = meeting.connect(&mut config, &[1; 8], &[2; 8]);
    meeting.settle(&mut client);
    for stream in [2, 6] {
        client.quic.stream_send(stream, b"x", false).unwrap();
    }
    assert_eq!(client.quic.stream_send(10, b"x", false), Err(quiche::Error::StreamLimit));
    meeting.settle(&mut client);
    let readable = meeting.events.iter().filter(|event| matches!(event, Event::StreamReadable { .. })).count();
    assert_eq!(readable, 2);
}
