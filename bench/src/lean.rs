//! **What**: a lean client: one QUIC connection on a socket of its own, polled by the caller. The same for broker and
//! floor, so that only the server differs.
//!
//! It receives as the users' client does: trains merged by the kernel (GRO) and acknowledgements that wait a little, so
//! that a hundred of it on one CPU measure the server and not themselves.
//!
//! **Invariants**: never sleeps, never blocks.
//!
//! **Never**: more of the protocol than a measurement needs; users have `felix-client`.
//!
//! **See**: `wire.rs`.

use crate::Error;
use crate::servers::Target;
use felix_quic::{AckDelay, ClientConfig, ClientConnection, ClientTls, Connector, CoreSlot, Event, TransportConfig};
use quinn_udp::{RecvMeta, UdpSocketState};
use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// One connection and its socket.
pub struct Lean {
    /// The connection.
    pub conn: ClientConnection,
    socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    peer: SocketAddr,
    /// Streams with bytes to read since they were last taken.
    pub readable: Vec<u64>,
    /// Reads of the socket of one `receive` at most: a stream that comes as fast as it is read would never let the thread go
    /// on to its other connections.
    pub reads_max: usize,
    connected: bool,
    closed: Option<String>,
}

/// Certificates and transport settings of all clients of a run.
pub fn connector(target: &Target, udp_payload: usize) -> Result<Connector, Error> {
    let read = |name: &str| std::fs::read(target.pki.join(name));
    let tls = ClientTls {
        ca_pem: read("ca.crt")?,
        cert_chain_pem: Some(read("admin.crt")?),
        key_pem: Some(read("admin.key")?),
    };
    let config = ClientConfig {
        transport: TransportConfig {
            max_udp_payload_bytes: udp_payload,
            idle_timeout: Duration::from_secs(60),
            connection_window_initial_bytes: 1 << 20,
            stream_window_initial_bytes: 1 << 20,
            connection_ids_max: 2,
            ack_delay: Some(AckDelay { wait_max: Duration::from_millis(5), datagrams_max: 8 }),
            ..TransportConfig::default()
        },
        ..ClientConfig::default()
    };
    Ok(Connector::new(config, tls)?)
}

impl Lean {
    /// Starts a connection.
    pub fn connect(target: &Target, connector: &mut Connector) -> Result<Lean, Error> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(target.addr)?;
        let state = UdpSocketState::new((&socket).into())?;
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        let steer = CoreSlot { index: 0, count: 1 };
        let conn = ClientConnection::connect(Instant::now(), connector, "localhost", local, target.addr, Some(steer))?;
        let reads_max = usize::MAX;
        let readable = Vec::new();
        Ok(Lean { conn, socket, state, local, peer: target.addr, readable, reads_max, connected: false, closed: None })
    }

    /// The socket, for readiness.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Takes what arrived. Returns whether anything did.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Result<bool, Error> {
        let mut any = false;
        for _ in 0..self.reads_max {
            let mut metas = [RecvMeta::default()];
            match self.state.recv((&self.socket).into(), &mut [IoSliceMut::new(buffer)], &mut metas) {
                Ok(_) => {
                    any = true;
                    let [meta] = metas;
                    for datagram in buffer[..meta.len].chunks_mut(meta.stride.max(1)) {
                        self.conn.on_datagram(Instant::now(), datagram, self.peer, self.local);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                // Refused: the server is gone; the connection will tell.
                Err(_) => break,
            }
        }
        if any {
            self.events();
        }
        match &self.closed {
            None => Ok(any),
            Some(reason) => Err(format!("the connection ended: {reason}").into()),
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.conn.poll_event() {
            match event {
                Event::Connected { .. } => self.connected = true,
                Event::StreamReadable { stream, .. } if !self.readable.contains(&stream) => self.readable.push(stream),
                Event::Closed { reason, .. } => self.closed = Some(format!("{reason:?}")),
                _ => {}
            }
        }
    }

    /// Sends what waits.
    pub fn send(&mut self, buffer: &mut [u8]) {
        let now = Instant::now();
        if self.conn.next_timeout().is_some_and(|at| at <= now) {
            self.conn.on_timeout(now);
            self.events();
        }
        while let Some(transmit) = self.conn.poll_transmit(now, buffer) {
            let segment = transmit.segment_bytes.unwrap_or(transmit.bytes).max(1);
            for datagram in buffer[..transmit.bytes].chunks(segment) {
                let _ = self.socket.send(datagram);
            }
        }
    }

    /// The handshake is complete.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Polls until the handshake is complete.
    pub fn finish_handshake(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        let give_up = Instant::now() + Duration::from_secs(10);
        while !self.connected {
            self.send(buffer);
            self.receive(buffer)?;
            if Instant::now() > give_up {
                return Err("no handshake within 10 s".into());
            }
        }
        self.send(buffer);
        Ok(())
    }

    /// Writes all bytes to a stream, polling while flow control holds it.
    pub fn write_all(&mut self, stream: u64, mut bytes: &[u8], buffer: &mut [u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let sent = self.conn.stream_send(stream, bytes, false)?;
            bytes = &bytes[sent..];
            self.send(buffer);
            if sent == 0 {
                self.receive(buffer)?;
            }
        }
        Ok(())
    }

    /// Reads what a stream has; returns the bytes appended.
    pub fn read(&mut self, stream: u64, out: &mut Vec<u8>) -> usize {
        self.read_at_most(stream, usize::MAX, out)
    }

    /// Reads up to `limit` bytes of what a stream has; returns the bytes appended.
    pub fn read_at_most(&mut self, stream: u64, limit: usize, out: &mut Vec<u8>) -> usize {
        let before = out.len();
        let mut chunk = [0u8; 16 << 10];
        while out.len() - before < limit {
            let wanted = chunk.len().min(limit - (out.len() - before));
            let Ok(read) = self.conn.stream_recv(stream, &mut chunk[..wanted]) else { break };
            out.extend_from_slice(&chunk[..read.bytes]);
        }
        out.len() - before
    }
}
