//! Allocations per delivered record in steady state, through the whole of a core: a real QUIC endpoint, a session that
//! publishes with acks, and subscribers. Allocations inside endpoint calls are quiche's and are reported; those outside
//! are ours and must be none.

use felix_broker::admission::Admission;
use felix_broker::core::{Core, CoreConfig, Identity};
use felix_broker::links::{LinkError, Links, Read};
use felix_broker::message::{FromControl, MeshMessage};
use felix_control::authorise::{Principal, Roles};
use felix_control::command::Internal;
use felix_control::member::{Member, MemberSettings};
use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::envelope::{FrameType, write_frame};
use felix_protocol::frame::{CHANNEL_ACKS, DeliveryMode, Frame, Hello, OpenChannel, SlowPolicy, Start, Subscribe};
use felix_protocol::ids::{ClusterId, CoreId, NodeId, NodeSession, ProducerEpoch, ProducerId, Sequence, ShardIndex};
use felix_protocol::metadata::{Command, StreamSpec};
use felix_protocol::names::StreamName;
use felix_protocol::time::{Now, Time, Timestamp};
use felix_quic::{
    ClientAuth, ClientConfig, ClientConnection, ClientTls, ConnId, Connector, CoreSlot, Endpoint, EndpointConfig,
    EndpointSecrets, Event, LentBytes, ServerTls,
};
use felix_shard::event::ConnKey;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() -> u64 {
    COUNT.with(Cell::get)
}

/// Runs a call and adds what it allocated to `sum`.
fn counted<T>(sum: &mut u64, call: impl FnOnce() -> T) -> T {
    let before = count();
    let result = call();
    *sum += count() - before;
    result
}

struct CountedLinks<'a> {
    endpoint: &'a mut Endpoint,
    quic: &'a mut u64,
}

fn id(conn: ConnKey) -> ConnId {
    ConnId::from_u64(conn.0)
}

impl Links for CountedLinks<'_> {
    fn stream_recv(&mut self, conn: ConnKey, stream: u64, buffer: &mut [u8]) -> Result<Read, LinkError> {
        counted(self.quic, || self.endpoint.stream_recv(id(conn), stream, buffer))
            .map(|read| Read { bytes: read.bytes, fin: read.fin })
            .map_err(|_| LinkError::WouldBlock)
    }
    fn stream_send(&mut self, conn: ConnKey, stream: u64, bytes: &[u8], fin: bool) -> Result<usize, LinkError> {
        counted(self.quic, || self.endpoint.stream_send(id(conn), stream, bytes, fin)).map_err(|_| LinkError::Closed)
    }
    fn stream_lend(&mut self, conn: ConnKey, stream: u64, bytes: LentBytes) -> Result<usize, LinkError> {
        counted(self.quic, || self.endpoint.stream_lend(id(conn), stream, bytes)).map_err(|_| LinkError::Closed)
    }
    fn stream_capacity(&mut self, conn: ConnKey, stream: u64) -> usize {
        counted(self.quic, || self.endpoint.stream_capacity(id(conn), stream)).unwrap_or(0)
    }
    fn stream_wait(&mut self, conn: ConnKey, stream: u64) -> Result<bool, LinkError> {
        counted(self.quic, || self.endpoint.stream_wait(id(conn), stream)).map_err(|_| LinkError::Closed)
    }
    fn stop_reading(&mut self, _: ConnKey, _: u64, _: u16) {}
    fn reset(&mut self, _: ConnKey, _: u64, _: u16) {}
    fn open_uni(&mut self, conn: ConnKey) -> Result<u64, LinkError> {
        self.endpoint.open_uni(id(conn)).map_err(|_| LinkError::StreamLimit)
    }
    fn datagram_send(&mut self, _: ConnKey, _: &[u8]) -> Result<(), LinkError> {
        Err(LinkError::TooLarge)
    }
    fn close(&mut self, _: ConnKey, code: u16, reason: &str) {
        panic!("the core closed a connection: {code} {reason}");
    }
    fn mesh_send(&mut self, to: usize, message: MeshMessage) -> Result<(), MeshMessage> {
        // The only other member is the control thread; reports are dropped here.
        assert_eq!(to, 1);
        drop(message);
        Ok(())
    }
}

struct Client {
    conn: ClientConnection,
    addr: SocketAddr,
    received: u64,
}

struct Lab {
    core: Core,
    endpoint: Endpoint,
    clients: Vec<Client>,
    server: SocketAddr,
    started: Instant,
    buffer: Vec<u8>,
    /// Allocations of ours and of the QUIC endpoint.
    ours: u64,
    quic: u64,
}

fn certificates() -> (ServerTls, ClientTls) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    // A leaf with its issuer's name would count as self-signed.
    ca.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let leaf = |names: Vec<String>| {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        (cert.pem().into_bytes(), key.serialize_pem().into_bytes())
    };
    let (server_cert, server_key) = leaf(vec!["localhost".to_string()]);
    let ca_pem = ca_cert.pem().into_bytes();
    let server = ServerTls {
        cert_chain_pem: server_cert,
        key_pem: server_key,
        client_ca_pem: None,
        client_auth: ClientAuth::None,
    };
    (server, ClientTls { ca_pem, cert_chain_pem: None, key_pem: None })
}

impl Lab {
    fn new(clients: usize) -> Lab {
        let (server_tls, client_tls) = certificates();
        let slot = CoreSlot { index: 0, count: 1 };
        let started = Instant::now();
        let secrets = EndpointSecrets::from_seed(&[7; 32]);
        let endpoint = Endpoint::new(EndpointConfig::default(), &server_tls, slot, secrets, started).unwrap();
        let core = Core::new(CoreConfig {
            me: CoreId(0),
            core_count: 1,
            identity: Identity {
                cluster: ClusterId(1),
                node: NodeId(1),
                session: NodeSession(1),
                region: "local".into(),
            },
            admission: Admission::default(),
            // A short tail, so that steady state (every append lets one batch go) is reached soon.
            shard_limits: felix_shard::limits::Limits { tail_batches_max: 256, ..Default::default() },
            roles: Arc::new(Roles::default()),
        });
        let server: SocketAddr = "127.0.0.1:4433".parse().unwrap();
        let mut connector = Connector::new(ClientConfig::default(), client_tls).unwrap();
        let clients = (0..clients)
            .map(|i| {
                let addr = SocketAddr::from(([127, 0, 0, 1], 10_000 + i as u16));
                let conn =
                    ClientConnection::connect(started, &mut connector, "localhost", addr, server, Some(slot)).unwrap();
                Client { conn, addr, received: 0 }
            })
            .collect();
        let mut lab = Lab { core, endpoint, clients, server, started, buffer: vec![0; 65_536], ours: 0, quic: 0 };
        lab.make_stream();
        lab
    }

    fn now(&self) -> Now {
        let at = self.started.elapsed().as_nanos() as u64;
        Now { time: Time(at), wall: Timestamp(1_700_000_000_000_000_000 + at) }
    }

    fn make_stream(&mut self) {
        let mut member = Member::new(MemberSettings::default());
        let now = self.now();
        member.propose_internal(now.wall, Internal::SetCoreCount { cores: 1 });
        // Retention is small, so that steady state (as much goes as comes) is reached soon.
        let command = Command::CreateStream {
            name: stream_name(),
            spec: StreamSpec { retention_bytes: 256 << 10, ..StreamSpec::default() },
            create_parents: true,
        };
        let done = member.propose(now.wall, &Principal::admin(), 1, command);
        let changes =
            FromControl::Changes { routing_version: member.state().routing_version(), changes: done.changes.into() };
        self.core.on_mesh(now, 1, MeshMessage::FromControl(Box::new(changes)));
    }

    /// Everything that waits on both sides, until nothing does.
    fn run(&mut self) {
        for _ in 0..64 {
            let mut moved = false;
            let at = Instant::now();
            for client in &mut self.clients {
                while let Some(transmit) = client.conn.poll_transmit(at, &mut self.buffer) {
                    moved = true;
                    let step = transmit.segment_bytes.unwrap_or(transmit.bytes).max(1);
                    let (endpoint, from, to) = (&mut self.endpoint, client.addr, self.server);
                    for datagram in self.buffer[..transmit.bytes].chunks_mut(step) {
                        counted(&mut self.quic, || endpoint.on_datagram(at, datagram, from, to));
                    }
                }
            }
            let now = self.now();
            loop {
                let endpoint = &mut self.endpoint;
                let Some(event) = counted(&mut self.quic, || endpoint.poll_event()) else { break };
                self.on_event(now, event);
            }
            let mut quic = 0;
            let mut links = CountedLinks { endpoint: &mut self.endpoint, quic: &mut quic };
            let before = count();
            self.core.end_turn(now, &mut links);
            self.ours += count() - before - quic;
            self.quic += quic;
            loop {
                let (endpoint, buffer) = (&mut self.endpoint, &mut self.buffer);
                let Some(transmit) = counted(&mut self.quic, || endpoint.poll_transmit(at, buffer)) else { break };
                moved = true;
                let step = transmit.segment_bytes.unwrap_or(transmit.bytes).max(1);
                let client = self.clients.iter_mut().find(|it| it.addr == transmit.to).unwrap();
                for datagram in self.buffer[..transmit.bytes].chunks_mut(step) {
                    client.conn.on_datagram(at, datagram, self.server, client.addr);
                }
            }
            for client in &mut self.clients {
                let mut chunk = [0u8; 16_384];
                while let Some(event) = client.conn.poll_event() {
                    if let Event::StreamReadable { stream, .. } = event {
                        while let Ok(read) = client.conn.stream_recv(stream, &mut chunk) {
                            client.received += if stream & 0b11 == 0b11 { read.bytes as u64 } else { 0 };
                        }
                    }
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn on_event(&mut self, now: Now, event: Event) {
        let mut quic = 0;
        let before = count();
        let mut links = CountedLinks { endpoint: &mut self.endpoint, quic: &mut quic };
        let key = |conn: ConnId| ConnKey(conn.to_u64());
        match event {
            Event::Connected { conn, .. } => {
                self.core.on_connected(now, key(conn), Some(Arc::new(Principal::admin())));
            }
            Event::StreamReadable { conn, stream } => self.core.on_readable(now, key(conn), stream, &mut links),
            Event::StreamWritable { conn, stream } => self.core.on_writable(key(conn), stream),
            other => panic!("unexpected {other:?}"),
        }
        self.ours += count() - before - quic;
        self.quic += quic;
    }

    fn send(&mut self, client: usize, stream: u64, bytes: &[u8]) {
        let sent = self.clients[client].conn.stream_send(stream, bytes, false).unwrap();
        assert_eq!(sent, bytes.len(), "the test keeps within the windows");
        self.run();
    }
}

fn stream_name() -> StreamName {
    StreamName::parse("a/b/c").unwrap()
}

fn measure(subscribers: usize) -> (f64, f64) {
    let mut lab = Lab::new(subscribers + 1);
    lab.run();
    let mut out = Vec::new();
    let hello = Hello { version_min: 1, version_max: 1, features: 0, cluster: None, client_name: "", token: &[] };
    for client in 0..=subscribers {
        out.clear();
        Frame::Hello(hello.clone()).encode(0, &mut out);
        lab.send(client, 0, &out);
    }
    for client in 1..=subscribers {
        out.clear();
        Frame::Subscribe(Subscribe {
            stream_name: stream_name(),
            stream: None,
            shard_index: ShardIndex(0),
            start: Start::Latest,
            policy: SlowPolicy::Block,
            mode: DeliveryMode::Shared,
            credit_bytes: None,
            filter: String::new(),
        })
        .encode(1, &mut out);
        lab.send(client, 0, &out);
    }
    out.clear();
    Frame::OpenChannel(OpenChannel {
        stream_name: stream_name(),
        stream: None,
        shard_index: ShardIndex(0),
        flags: CHANNEL_ACKS,
        producer: ProducerId(9),
        producer_epoch: ProducerEpoch(1),
    })
    .encode(0, &mut out);
    lab.send(0, 4, &out);

    let mut builder = BatchBuilder::new();
    let mut body = Vec::new();
    let mut next = 0;
    let mut publish = |lab: &mut Lab, rounds: u64| {
        for _ in 0..rounds {
            builder.push(&RecordToPublish { key: Some(b"XNAS.AAPL"), value: &[7; 256], ..Default::default() }).unwrap();
            body.clear();
            let stamp =
                ProducerStamp { producer: ProducerId(9), epoch: ProducerEpoch(1), base_sequence: Sequence(next) };
            next += 1;
            builder.finish(stamp, &mut body);
            out.clear();
            write_frame(&mut out, FrameType::Publish, 0, 0, None, |out| out.extend_from_slice(&body));
            lab.send(0, 4, &out);
        }
    };
    // Warm up: retention is full, windows have grown, every list has its size.
    publish(&mut lab, 3_000);
    let received = lab.clients[1].received;
    assert!(received > 0, "nothing was delivered");
    (lab.ours, lab.quic) = (0, 0);
    let rounds = 2_000;
    publish(&mut lab, rounds);
    for client in &lab.clients[1..] {
        assert!(client.received >= received + rounds * 256, "a subscriber did not get every record");
    }
    let delivered = (rounds * subscribers as u64) as f64;
    (lab.ours as f64 / delivered, lab.quic as f64 / delivered)
}

#[test]
fn a_delivered_record_costs_no_allocation_of_ours() {
    for subscribers in [1, 20] {
        let (ours, quic) = measure(subscribers);
        println!("{subscribers} subscriber(s): allocations per delivered record: ours {ours:.4}, quiche {quic:.2}");
        // Reports to the control thread go by time, not by record; a handful may fall into the window.
        assert!(ours < 0.01, "{subscribers} subscriber(s): {ours} allocations of ours per delivered record");
        assert!(quic > 0.0, "the counter does not count");
    }
}
