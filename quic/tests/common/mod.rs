//! A server of several cores and its clients, joined by a network in memory.
//!
//! The cores share one address. `Spread` says how datagrams reach them: as the packet filter would do
//! it, or anyhow, in which case the wrong core hands over what `route` says. Each client has a local
//! address and the public one that a NAT shows to the server.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use felix_quic::{
    ClientAuth, ClientConfig, ClientConnection, ClientTls, ConnId, Connector, CoreSlot, Endpoint, EndpointConfig,
    EndpointSecrets, Event, Route, ServerTls, StreamError, Transmit,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// A certificate authority and what it signed.
pub struct Pki {
    pub ca_pem: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    pub fn new() -> Pki {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("felix test authority {}", COUNT.fetch_add(1, Ordering::Relaxed));
        let key = KeyPair::generate().unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let ca = params.self_signed(&key).unwrap();
        Pki { ca_pem: ca.pem().into_bytes(), issuer: Issuer::new(params, key) }
    }

    /// Certificate and key for these names (addresses become address names).
    pub fn leaf(&self, names: &[&str]) -> (Vec<u8>, Vec<u8>) {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        (leaf.pem().into_bytes(), key.serialize_pem().into_bytes())
    }

    pub fn server_tls(&self, auth: ClientAuth) -> ServerTls {
        let (cert_chain_pem, key_pem) = self.leaf(&["localhost", "127.0.0.1"]);
        ServerTls { cert_chain_pem, key_pem, client_ca_pem: Some(self.ca_pem.clone()), client_auth: auth }
    }

    pub fn client_tls(&self) -> ClientTls {
        ClientTls { ca_pem: self.ca_pem.clone(), cert_chain_pem: None, key_pem: None }
    }

    pub fn client_tls_with_identity(&self) -> ClientTls {
        let (cert, key) = self.leaf(&["client"]);
        ClientTls { ca_pem: self.ca_pem.clone(), cert_chain_pem: Some(cert), key_pem: Some(key) }
    }
}

/// How the network spreads datagrams over the cores.
#[derive(Clone, Copy, PartialEq)]
pub enum Spread {
    /// By connection id, like the packet filter.
    Filter,
    /// To any core; the core hands over what is not its own.
    Anyhow,
}

/// xorshift64*, for seeded choices.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// One datagram under way.
#[derive(Clone)]
pub struct Datagram {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

pub struct Client {
    pub conn: ClientConnection,
    /// Address of its socket.
    pub local: SocketAddr,
    /// Address that the server sees.
    pub public: SocketAddr,
    pub events: Vec<Event>,
}

impl Client {
    pub fn is_connected(&self) -> bool {
        self.events.iter().any(|event| matches!(event, Event::Connected { .. }))
    }

    pub fn closed(&self) -> Option<&felix_quic::CloseReason> {
        self.events.iter().find_map(|event| match event {
            Event::Closed { reason, .. } => Some(reason),
            _ => None,
        })
    }
}

type Tap = Box<dyn FnMut(&mut Datagram) -> bool>;

pub struct World {
    pub pki: Pki,
    pub cores: Vec<Endpoint>,
    pub server: SocketAddr,
    pub clients: Vec<Client>,
    /// Events of all cores, in order.
    pub events: Vec<(usize, Event)>,
    pub spread: Spread,
    pub random: Random,
    /// Sees every datagram; false drops it.
    pub tap: Option<Tap>,
    /// Datagrams that reached a core by way of another.
    pub handed_over: u64,
    wire: VecDeque<Datagram>,
    buffer: Vec<u8>,
    next_port: u16,
}

pub const SEED: [u8; 32] = [42; 32];

impl World {
    pub fn new(cores: u8, config: EndpointConfig, auth: ClientAuth) -> World {
        let pki = Pki::new();
        let tls = pki.server_tls(auth);
        World::with_pki(pki, &tls, cores, config)
    }

    pub fn with_pki(pki: Pki, tls: &ServerTls, cores: u8, config: EndpointConfig) -> World {
        let make = |index| {
            let secrets = EndpointSecrets::from_seed(&SEED);
            Endpoint::new(config.clone(), tls, CoreSlot { index, count: cores }, secrets, Instant::now()).unwrap()
        };
        World {
            cores: (0..cores).map(make).collect(),
            pki,
            server: "127.0.0.1:4433".parse().unwrap(),
            clients: Vec::new(),
            events: Vec::new(),
            spread: Spread::Filter,
            random: Random(7),
            tap: None,
            handed_over: 0,
            wire: VecDeque::new(),
            buffer: vec![0; 65_536],
            next_port: 10_000,
        }
    }

    pub fn connector(&self) -> Connector {
        self.connector_with(ClientConfig::default())
    }

    pub fn connector_with(&self, config: ClientConfig) -> Connector {
        Connector::new(config, self.pki.client_tls()).unwrap()
    }

    pub fn new_address(&mut self) -> SocketAddr {
        self.next_port += 1;
        SocketAddr::new("127.0.0.1".parse().unwrap(), self.next_port)
    }

    /// Starts a client; its index.
    pub fn connect(&mut self, connector: &mut Connector, core: Option<u8>) -> usize {
        self.connect_to(connector, "localhost", core)
    }

    pub fn connect_to(&mut self, connector: &mut Connector, name: &str, core: Option<u8>) -> usize {
        let local = self.new_address();
        let steer = core.map(|index| CoreSlot { index, count: self.cores.len() as u8 });
        let conn = ClientConnection::connect(Instant::now(), connector, name, local, self.server, steer).unwrap();
        self.clients.push(Client { conn, local, public: local, events: Vec::new() });
        self.clients.len() - 1
    }

    /// Starts a client and waits until both sides are connected; its index and the server's handle.
    pub fn establish(&mut self, connector: &mut Connector, core: Option<u8>) -> (usize, usize, ConnId) {
        let client = self.connect(connector, core);
        let public = self.clients[client].public;
        let seen = self.events.len();
        let find = |world: &World| {
            world.events[seen..].iter().find_map(|(core, event)| match event {
                Event::Connected { conn, peer, .. } if *peer == public => Some((*core, *conn)),
                _ => None,
            })
        };
        self.run_until("connected", |world| world.clients[client].is_connected() && find(world).is_some());
        let (core, conn) = find(self).unwrap();
        (client, core, conn)
    }

    /// Puts raw bytes on the wire.
    pub fn inject(&mut self, from: SocketAddr, bytes: &[u8]) {
        let to = self.server;
        self.wire.push_back(Datagram { from, to, bytes: bytes.to_vec() });
    }

    fn send(wire: &mut VecDeque<Datagram>, transmit: Transmit, bytes: &[u8], from: SocketAddr) {
        assert!(transmit.bytes <= 65_507 && transmit.bytes > 0);
        let segment = transmit.segment_bytes.unwrap_or(transmit.bytes);
        let packets = bytes[..transmit.bytes].chunks(segment);
        assert!(packets.len() <= 64, "a train of {} packets", packets.len());
        assert_eq!(transmit.segment_bytes.is_some(), packets.len() > 1);
        for packet in packets {
            wire.push_back(Datagram { from, to: transmit.to, bytes: packet.to_vec() });
        }
    }

    /// One turn of everybody. False if nothing moved.
    pub fn step(&mut self) -> bool {
        let mut moved = false;
        let now = Instant::now();
        for client in &mut self.clients {
            if client.conn.next_timeout().is_some_and(|at| at <= now) {
                client.conn.on_timeout(now);
            }
            while let Some(event) = client.conn.poll_event() {
                client.events.push(event);
                moved = true;
            }
            while let Some(transmit) = client.conn.poll_transmit(now, &mut self.buffer) {
                Self::send(&mut self.wire, transmit, &self.buffer, client.public);
            }
        }
        for (index, core) in self.cores.iter_mut().enumerate() {
            if core.next_timeout().is_some_and(|at| at <= now) {
                core.on_timeout(now);
            }
            while let Some(event) = core.poll_event() {
                self.events.push((index, event));
                moved = true;
            }
            while let Some(transmit) = core.poll_transmit(now, &mut self.buffer) {
                Self::send(&mut self.wire, transmit, &self.buffer, transmit.from);
            }
        }
        moved | self.deliver_all()
    }

    fn deliver_all(&mut self) -> bool {
        let mut moved = false;
        for mut datagram in std::mem::take(&mut self.wire) {
            moved = true;
            if let Some(tap) = &mut self.tap
                && !tap(&mut datagram)
            {
                continue;
            }
            self.deliver(datagram);
        }
        moved
    }

    fn deliver(&mut self, mut datagram: Datagram) {
        let now = Instant::now();
        if datagram.to != self.server {
            let client = self.clients.iter_mut().find(|client| client.public == datagram.to);
            if let Some(client) = client {
                client.conn.on_datagram(now, &mut datagram.bytes, datagram.from, client.local);
            }
            return;
        }
        let mut core = match (self.spread, self.cores[0].route(&datagram.bytes)) {
            (Spread::Anyhow, _) => self.random.below(self.cores.len()),
            (Spread::Filter, Route::Core(core)) => usize::from(core),
            (Spread::Filter, Route::Local | Route::Junk) => 0,
        };
        if let Route::Core(other) = self.cores[core].route(&datagram.bytes) {
            assert!(self.spread == Spread::Anyhow, "the filter and route() disagree");
            core = usize::from(other);
            self.handed_over += 1;
        }
        self.cores[core].on_datagram(now, &mut datagram.bytes, datagram.from, self.server);
    }

    /// Runs until `done`, at most 10 s.
    pub fn run_until(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        self.run_within(what, Duration::from_secs(10), done);
    }

    pub fn run_within(&mut self, what: &str, limit: Duration, done: impl Fn(&World) -> bool) {
        let end = Instant::now() + limit;
        while !done(self) {
            assert!(Instant::now() < end, "timed out waiting for: {what}\n{}", self.report());
            if !self.step() {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    fn report(&self) -> String {
        let mut text = String::new();
        for (at, core) in self.cores.iter().enumerate() {
            let counts: Vec<_> = core.counters().each().filter(|(_, count)| *count > 0).collect();
            text += &format!("core {at}: {counts:?}\n");
        }
        for client in self.clients.iter().rev().take(3) {
            let connected = client.is_connected();
            text += &format!("client {}: connected {connected}, closed {:?}\n", client.public, client.closed());
        }
        text
    }

    /// Runs for a while, whatever happens.
    pub fn run_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            if !self.step() {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    /// Sends `bytes` on a new stream of the client and waits for the server's echo of their sum.
    pub fn assert_works(&mut self, client: usize, core: usize, conn: ConnId, bytes: usize) {
        let payload: Vec<u8> = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
        let stream = self.clients[client].conn.open_bidi().unwrap();
        let (mut sent, mut got, mut fin) = (0, Vec::new(), false);
        let end = Instant::now() + Duration::from_secs(20);
        let mut buffer = vec![0; 65_536];
        while !fin {
            assert!(Instant::now() < end, "sent {sent}, got {} of {bytes}", got.len());
            if sent < bytes {
                sent += self.clients[client].conn.stream_send(stream, &payload[sent..], true).unwrap();
            }
            let moved = self.step();
            match self.cores[core].stream_recv(conn, stream, &mut buffer) {
                Ok(read) => {
                    got.extend_from_slice(&buffer[..read.bytes]);
                    fin = read.fin;
                }
                Err(StreamError::WouldBlock | StreamError::UnknownStream) => {
                    if !moved {
                        std::thread::sleep(Duration::from_micros(100));
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(got == payload, "the bytes changed on the way");
        assert_eq!(self.cores[core].stream_send(conn, stream, b"ok", true), Ok(2));
        let mut answer = [0; 8];
        loop {
            assert!(Instant::now() < end, "no answer");
            let moved = self.step();
            match self.clients[client].conn.stream_recv(stream, &mut answer) {
                Ok(read) => {
                    assert_eq!((&answer[..read.bytes], read.fin), (&b"ok"[..], true));
                    return;
                }
                Err(StreamError::WouldBlock) if !moved => std::thread::sleep(Duration::from_micros(100)),
                Err(StreamError::WouldBlock) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}
