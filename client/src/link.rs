//! **What**: one connection at the edge: a UDP socket and a QUIC connection, between the kernel and the engine.
//!
//! ```text
//!   recv (GRO) -> quic.on_datagram -> quic.poll_event -> engine inputs
//!   engine.session_output -> quic.stream_send -> quic.poll_transmit -> send (GSO)
//! ```
//!
//! **Invariants**: bounded work per call. A packet that QUIC made is sent, or kept until the socket takes it: QUIC
//! counts it as sent. The socket is connected, so that only the broker is heard and a closed port is learned at once.
//!
//! **Never**: a blocking call.
//!
//! **See**: `poll_client.rs`, which owns links.

use crate::engine::{ConnKey, Engine, Lost};
use crate::session::Output;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::time::Now;
use felix_quic::{ClientConnection, CloseReason, Connector, CoreSlot, Event, StreamError, Transmit};
use mio::net::UdpSocket;
use quinn_udp::{RecvMeta, UdpSocketState};
use std::io::{ErrorKind, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

/// Receive buffer of a socket: a burst of about 50 ms at 1 Gbit/s. The kernel caps it at net.core.rmem_max.
const SOCKET_RECEIVE_BYTES: usize = 8 << 20;
/// Send buffer of a socket.
const SOCKET_SEND_BYTES: usize = 2 << 20;
/// Buffers per receive call; each takes a whole GRO train.
const RECEIVE_BUFFERS: usize = 8;
const RECEIVE_BUFFER_BYTES: usize = 64 << 10;
/// Receive calls per turn.
const RECEIVE_CALLS_MAX: usize = 8;
/// Trains sent per turn.
const SEND_CALLS_MAX: usize = 64;
/// Bytes read of a stream per turn.
const STREAM_READ_MAX: usize = 4 << 20;
/// Bytes of one send call.
const TRAIN_BYTES_MAX: usize = 65_507;
/// A closed port says so for every packet; a broker that restarts may be silent for one.
const REFUSALS_MAX: u32 = 3;

/// Buffers that all links of a client use in turn.
pub(crate) struct Scratch {
    receive: Vec<u8>,
    read: Vec<u8>,
    send: Vec<u8>,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch {
            receive: vec![0; RECEIVE_BUFFERS * RECEIVE_BUFFER_BYTES],
            read: vec![0; 256 << 10],
            send: vec![0; TRAIN_BYTES_MAX],
        }
    }
}

/// What a turn of a link found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turn {
    /// Something came or went.
    pub progressed: bool,
    /// The bound on work was reached: there is more.
    pub more: bool,
}

/// A socket and its connection.
pub(crate) struct Link {
    key: ConnKey,
    pub(crate) socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    quic: ClientConnection,
    /// A train that the socket did not take.
    unsent: Option<(Vec<u8>, Transmit)>,
    /// The kernel may have something.
    pub(crate) readable: bool,
    /// Streams with bytes left over from the last turn.
    unread: Vec<u64>,
    connected: bool,
    refusals: u32,
    lost: Option<Lost>,
}

impl Link {
    /// Opens a socket and starts the handshake.
    pub(crate) fn open(
        key: ConnKey,
        connector: &mut Connector,
        server_name: &str,
        peer: SocketAddr,
        steer: Option<CoreSlot>,
    ) -> Result<Link, ErrorKind> {
        let any: SocketAddr = match peer {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let open = || {
            let (socket, local) = connected(peer, || std::net::UdpSocket::bind(any))?;
            socket.set_nonblocking(true)?;
            let state = UdpSocketState::new((&socket).into())?;
            // Best effort: the kernel may allow less, and a small buffer is slower but not wrong.
            let _ = state.set_recv_buffer_size((&socket).into(), SOCKET_RECEIVE_BYTES);
            let _ = state.set_send_buffer_size((&socket).into(), SOCKET_SEND_BYTES);
            Ok::<_, std::io::Error>((socket, local, state))
        };
        let (socket, local, state) = open().map_err(|error| error.kind())?;
        let quic = ClientConnection::connect(Instant::now(), connector, server_name, local, peer, steer)
            .map_err(|_| ErrorKind::InvalidInput)?;
        Ok(Link {
            key,
            socket: UdpSocket::from_std(socket),
            state,
            local,
            quic,
            unsent: None,
            readable: true,
            unread: Vec::new(),
            connected: false,
            refusals: 0,
            lost: None,
        })
    }

    /// Why it is over, if it is. Told once; drop the link then.
    pub(crate) fn take_lost(&mut self) -> Option<Lost> {
        self.lost.take()
    }

    pub(crate) fn next_timeout(&mut self) -> Option<Instant> {
        self.quic.next_timeout()
    }

    /// Takes what the kernel has and tells the engine what came of it.
    pub(crate) fn receive(&mut self, at: Instant, now: Now, scratch: &mut Scratch, engine: &mut Engine) -> Turn {
        let mut turn = Turn::default();
        if self.readable {
            self.receive_datagrams(at, scratch, &mut turn);
        }
        if self.quic.next_timeout().is_some_and(|due| due <= at) {
            self.quic.on_timeout(at);
            turn.progressed = true;
        }
        for stream in std::mem::take(&mut self.unread) {
            self.read_stream(stream, now, scratch, engine, &mut turn);
        }
        while let Some(event) = self.quic.poll_event() {
            turn.progressed = true;
            self.on_event(event, now, scratch, engine, &mut turn);
        }
        turn
    }

    fn receive_datagrams(&mut self, at: Instant, scratch: &mut Scratch, turn: &mut Turn) {
        for _ in 0..RECEIVE_CALLS_MAX {
            let mut metas = [RecvMeta::default(); RECEIVE_BUFFERS];
            let received = {
                let mut chunks = scratch.receive.chunks_exact_mut(RECEIVE_BUFFER_BYTES);
                let mut buffers: [IoSliceMut<'_>; RECEIVE_BUFFERS] =
                    std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
                self.state.recv((&self.socket).into(), &mut buffers, &mut metas)
            };
            let count = match received {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return;
                }
                Err(error) => {
                    if error.kind() == ErrorKind::ConnectionRefused {
                        self.refusals += 1;
                        if !self.connected || self.refusals >= REFUSALS_MAX {
                            self.lost.get_or_insert(Lost::Unreachable);
                        }
                    }
                    continue;
                }
            };
            turn.progressed = true;
            self.refusals = 0;
            for (meta, buffer) in metas.iter().zip(scratch.receive.chunks_exact_mut(RECEIVE_BUFFER_BYTES)).take(count) {
                let bytes = meta.len.min(buffer.len());
                for datagram in buffer[..bytes].chunks_mut(meta.stride.max(1)) {
                    self.quic.on_datagram(at, datagram, meta.addr, self.local);
                }
            }
        }
        turn.more = true;
    }

    fn on_event(&mut self, event: Event, now: Now, scratch: &mut Scratch, engine: &mut Engine, turn: &mut Turn) {
        match event {
            Event::Connected { .. } => {
                self.connected = true;
                engine.on_connected(now, self.key);
            }
            Event::StreamReadable { stream, .. } => self.read_stream(stream, now, scratch, engine, turn),
            Event::StreamWritable { stream, .. } => engine.on_stream_writable(self.key, stream),
            Event::DatagramReadable { .. } => {
                // Bounded by the queue of the connection.
                while let Ok(bytes) = self.quic.datagram_recv(&mut scratch.read) {
                    engine.on_datagram(now, self.key, &scratch.read[..bytes]);
                }
            }
            Event::StreamReset { stream, .. } | Event::StreamStopped { stream, .. } => {
                engine.on_stream_failed(now, self.key, stream);
            }
            Event::Closed { reason, .. } => {
                self.lost.get_or_insert(lost(reason));
            }
        }
    }

    fn read_stream(&mut self, stream: u64, now: Now, scratch: &mut Scratch, engine: &mut Engine, turn: &mut Turn) {
        let mut bytes = 0;
        while bytes < STREAM_READ_MAX {
            match self.quic.stream_recv(stream, &mut scratch.read) {
                Ok(read) => {
                    bytes += read.bytes;
                    turn.progressed = true;
                    engine.on_stream_bytes(now, self.key, stream, &scratch.read[..read.bytes], read.fin);
                    if read.fin {
                        return;
                    }
                }
                Err(StreamError::Reset(_)) => return engine.on_stream_failed(now, self.key, stream),
                Err(_) => return,
            }
        }
        self.unread.push(stream);
        turn.more = true;
    }

    /// Hands the engine's output to QUIC and QUIC's packets to the kernel.
    pub(crate) fn send(&mut self, at: Instant, now: Now, scratch: &mut Scratch, engine: &mut Engine) -> Turn {
        let mut turn = Turn::default();
        self.take_output(now, engine, &mut turn);
        // Events of writing come before the packets (see `ClientConnection::poll_event`).
        while let Some(event) = self.quic.poll_event() {
            self.on_event(event, now, scratch, engine, &mut turn);
        }
        self.transmit(at, scratch, &mut turn);
        turn
    }

    /// Sends the last packets of a connection that is over: the close, if it was ours.
    pub(crate) fn send_close(&mut self, at: Instant, scratch: &mut Scratch) {
        while self.quic.poll_event().is_some() {}
        self.transmit(at, scratch, &mut Turn::default());
    }

    fn take_output(&mut self, now: Now, engine: &mut Engine, turn: &mut Turn) {
        while let Some(output) = engine.session_output(self.key) {
            turn.progressed = true;
            match output {
                Output::Send { stream, bytes, fin } => match self.quic.stream_send(stream, bytes, fin) {
                    Ok(count) => engine.on_sent(self.key, stream, count),
                    Err(StreamError::StreamLimit) => engine.on_stream_limit(self.key, stream),
                    Err(StreamError::Closed) => return,
                    Err(_) => {
                        engine.on_stream_failed(now, self.key, stream);
                        engine.on_stream_gone(self.key, stream);
                    }
                },
                Output::Abandon { stream } => {
                    let code = u64::from(ErrorCode::NoError.number());
                    let _ = self.quic.stream_reset(stream, code);
                    let _ = self.quic.stream_shutdown_read(stream, code);
                }
                Output::Close { code } => self.quic.close(u64::from(code.number()), b""),
            }
        }
    }

    fn transmit(&mut self, at: Instant, scratch: &mut Scratch, turn: &mut Turn) {
        if let Some((bytes, transmit)) = self.unsent.take()
            && self.send_train(&bytes[..transmit.bytes], &transmit).is_err()
        {
            self.unsent = Some((bytes, transmit));
            return;
        }
        for _ in 0..SEND_CALLS_MAX {
            let Some(transmit) = self.quic.poll_transmit(at, &mut scratch.send) else { return };
            turn.progressed = true;
            if self.send_train(&scratch.send[..transmit.bytes], &transmit).is_err() {
                self.unsent = Some((scratch.send[..transmit.bytes].to_vec(), transmit));
                return;
            }
        }
        turn.more = true;
    }

    /// `Err`: the socket is full. Any other failure is a lost packet, which QUIC repairs.
    fn send_train(&mut self, bytes: &[u8], transmit: &Transmit) -> Result<(), ()> {
        let segment = transmit.segment_bytes.unwrap_or(bytes.len()).max(1);
        let whole = self.state.max_gso_segments() > 1 || transmit.segment_bytes.is_none();
        if whole {
            match self.try_send(bytes, transmit.segment_bytes, transmit.to) {
                Ok(()) => return Ok(()),
                Err(ErrorKind::WouldBlock) => return Err(()),
                Err(_) if transmit.segment_bytes.is_none() => return Ok(()),
                // The device does not take trains after all: packet by packet.
                Err(_) => {}
            }
        }
        for packet in bytes.chunks(segment) {
            let _ = self.try_send(packet, None, transmit.to);
        }
        Ok(())
    }

    fn try_send(&self, contents: &[u8], segment_size: Option<usize>, destination: SocketAddr) -> Result<(), ErrorKind> {
        let transmit = quinn_udp::Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
        self.state.try_send((&self.socket).into(), &transmit).map_err(|error| error.kind())
    }
}

/// A QUIC close as the engine sees it.
fn lost(reason: CloseReason) -> Lost {
    if let Some(alert) = reason.tls_alert() {
        return Lost::Tls(Some(alert));
    }
    if reason.is_refused() {
        return Lost::TurnedAway;
    }
    match reason {
        CloseReason::Local { .. } => Lost::Closed,
        CloseReason::PeerApplication { code, reason } => {
            let code = ErrorCode::from_number(u16::try_from(code).unwrap_or(u16::MAX));
            let mut text = String::from_utf8_lossy(&reason).into_owned();
            text.truncate(text.char_indices().nth(256).map_or(text.len(), |(at, _)| at));
            Lost::Refused(code, text)
        }
        CloseReason::PeerTransport { code, .. } | CloseReason::LocalTransport { code } => Lost::Transport(code),
        CloseReason::IdleTimeout | CloseReason::HandshakeTimeout | CloseReason::PathLost => Lost::Silent,
        CloseReason::StatelessReset => Lost::Reset,
    }
}

/// A socket from `bind`, connected to `peer`, and its address. Never one on the peer's own address: the kernel may hand that
/// port to a client of the same machine while the broker is down; connected to itself the socket hears no refusal, and the
/// broker could not bind when it is back.
fn connected(
    peer: SocketAddr,
    bind: impl Fn() -> std::io::Result<std::net::UdpSocket>,
) -> std::io::Result<(std::net::UdpSocket, SocketAddr)> {
    let connect = || {
        let socket = bind()?;
        socket.connect(peer)?;
        let local = socket.local_addr()?;
        Ok::<_, std::io::Error>((socket, local))
    };
    let first = connect()?;
    // The first is let go after the second is bound, so that it is another port.
    if first.1 != peer {
        return Ok(first);
    }
    let second = connect()?;
    drop(first);
    if second.1 == peer { Err(ErrorKind::AddrInUse.into()) } else { Ok(second) }
}

#[cfg(test)]
mod tests {
    use super::connected;
    use std::cell::Cell;
    use std::net::UdpSocket;

    #[test]
    fn the_port_of_the_peer_is_not_taken() {
        let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let calls = Cell::new(0);
        let bind = || {
            calls.set(calls.get() + 1);
            UdpSocket::bind(("0.0.0.0", if calls.get() == 1 { free.port() } else { 0 }))
        };
        let (socket, local) = connected(free, bind).unwrap();
        assert_eq!((calls.get(), socket.peer_addr().unwrap()), (2, free));
        assert_ne!(local, free);
        UdpSocket::bind(free).expect("the peer can bind");
    }

    #[test]
    fn a_socket_is_connected_at_once_if_its_port_is_another() {
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (socket, local) = connected(peer.local_addr().unwrap(), || UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.send(b"it is me").unwrap();
        let mut bytes = [0; 16];
        assert_eq!(peer.recv_from(&mut bytes).unwrap(), (8, local));
    }
}
