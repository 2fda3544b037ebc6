//! What an idle connection costs the server: every byte of heap, TLS library included.
//!
//! The heap in use is read before and after each call into the endpoint, so that the client's share of
//! the same process is not counted. `cargo test -p felix-quic --release --test memory -- --nocapture`
//! prints the figures.

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::{Pki, SEED};
use felix_quic::{
    ClientAuth, ClientConfig, ClientConnection, Connector, CoreSlot, Endpoint, EndpointConfig, EndpointSecrets,
};

/// `struct mallinfo2` of glibc.
#[repr(C)]
#[derive(Default)]
struct HeapInfo {
    arena: usize,
    free_chunks: usize,
    fast_chunks: usize,
    mapped_count: usize,
    mapped_bytes: usize,
    unused: usize,
    fast_bytes: usize,
    used_bytes: usize,
    free_bytes: usize,
    trimmable: usize,
}

unsafe extern "C" {
    fn mallinfo2() -> HeapInfo;
}

fn heap_bytes() -> i64 {
    // SAFETY: takes nothing and returns a plain struct.
    let info = unsafe { mallinfo2() };
    (info.used_bytes + info.mapped_bytes) as i64
}

/// Runs a call into the server and adds what it keeps.
fn count<T>(total: &mut i64, call: impl FnOnce() -> T) -> T {
    let before = heap_bytes();
    let result = call();
    *total += heap_bytes() - before;
    result
}

struct Bench {
    endpoint: Endpoint,
    server: SocketAddr,
    clients: Vec<(ClientConnection, SocketAddr)>,
    kept: i64,
    out: Vec<u8>,
}

impl Bench {
    fn step(&mut self, from: usize) -> bool {
        let now = Instant::now();
        let mut moved = false;
        for (client, local) in &mut self.clients[from..] {
            if client.next_timeout().is_some_and(|at| at <= now) {
                client.on_timeout(now);
            }
            while client.poll_event().is_some() {}
            while let Some(sent) = client.poll_transmit(now, &mut self.out) {
                moved = true;
                let segment = sent.segment_bytes.unwrap_or(sent.bytes);
                for packet in self.out[..sent.bytes].chunks_mut(segment) {
                    count(&mut self.kept, || self.endpoint.on_datagram(now, packet, *local, self.server));
                }
            }
        }
        count(&mut self.kept, || {
            self.endpoint.on_timeout(now);
            while self.endpoint.poll_event().is_some() {}
        });
        while let Some(sent) = count(&mut self.kept, || self.endpoint.poll_transmit(now, &mut self.out)) {
            moved = true;
            let segment = sent.segment_bytes.unwrap_or(sent.bytes);
            let at = usize::from(sent.to.port()) - 10_000;
            if let Some((client, local)) = self.clients.get_mut(at) {
                for packet in self.out[..sent.bytes].chunks_mut(segment) {
                    client.on_datagram(now, packet, sent.from, *local);
                }
            }
        }
        moved
    }
}

#[test]
fn an_idle_connection_fits_its_budget() {
    const CONNECTIONS: usize = 300;
    let pki = Pki::new();
    let tls = pki.server_tls(ClientAuth::Required);
    let mut connector = Connector::new(ClientConfig::default(), pki.client_tls_with_identity()).unwrap();
    let core = CoreSlot { index: 0, count: 1 };
    let secrets = EndpointSecrets::from_seed(&SEED);
    let config = EndpointConfig::default();
    let endpoint = Endpoint::new(config, &tls, core, secrets, Instant::now()).unwrap();
    let server: SocketAddr = "127.0.0.1:4433".parse().unwrap();
    let mut bench = Bench { endpoint, server, clients: Vec::new(), kept: 0, out: vec![0; 65_536] };
    // The first ones fill caches and tables.
    let mut base = 0;
    for at in 0..CONNECTIONS + 20 {
        let local = SocketAddr::new(server.ip(), 10_000 + at as u16);
        let client =
            ClientConnection::connect(Instant::now(), &mut connector, "localhost", local, server, None).unwrap();
        bench.clients.push((client, local));
        while bench.step(at) {}
        if at == 19 {
            base = bench.kept;
        }
    }
    let fresh = (bench.kept - base) / CONNECTIONS as i64;
    // Idle: MTU probes and delayed acknowledgements are over.
    let end = Instant::now() + Duration::from_millis(1_500);
    while Instant::now() < end {
        if !bench.step(0) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    assert_eq!(bench.endpoint.counters().connected_total, CONNECTIONS as u64 + 20);
    let idle = (bench.kept - base) / CONNECTIONS as i64;
    println!("heap per connection with mutual TLS: {fresh} bytes after the handshake, {idle} bytes idle");
    println!("of which quiche's struct: {} bytes", size_of::<quiche::Connection>());
    assert!(idle > 4_096, "nothing was measured: {idle}");
    assert!(idle < 64 * 1024, "{idle} bytes per idle connection");
    // And it goes away.
    bench.clients.clear();
    count(&mut bench.kept, || {
        bench.endpoint.close_all(0, b"");
        while bench.endpoint.poll_event().is_some() {}
    });
    let end = Instant::now() + Duration::from_secs(10);
    while bench.endpoint.connection_count() > 0 {
        assert!(Instant::now() < end);
        bench.step(0);
    }
    let left = bench.kept / CONNECTIONS as i64;
    println!("left per closed connection: {left} bytes");
    assert!(left < 2_048, "{left} bytes are left of each closed connection");
}
