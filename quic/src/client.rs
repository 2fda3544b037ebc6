//! The client side: one connection over one socket.
//!
//! **What.** `Connector` holds the settings and TLS contexts; `ClientConnection` is one connection
//! with the same calls as an endpoint, without the connection argument.
//!
//! **Invariants.** The client's own connection ids are empty: its socket tells connections apart, and
//! every packet towards it is smaller. Its first destination id has 16 random bytes, of which byte 0
//! leads to the core that it wants. `Closed` comes exactly once, connected or not.
//!
//! **Never.** A server that is not verified.
//!
//! **See** `connection.rs`; `endpoint.rs` for the other side.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::conn_id::{Cid, ConnId, CoreSlot};
use crate::connection::{Attention, ConnStats, Connection, Habits, Phase};
use crate::counters::Counters;
use crate::error::{ConfigError, ConnectError, DatagramError, StreamError};
use crate::event::{CloseReason, Event, Recv, Transmit};
use crate::secrets::Entropy;
use crate::settings::ClientConfig;
use crate::stateless::Path;
use crate::tls::ClientTls;
use crate::train::{self, Carried};

/// Server addresses whose TLS context is kept. (Servers named by host name share one.)
const ADDRESS_CONTEXTS_MAX: usize = 64;
/// Smallest stateless reset: 5 bytes and the token (RFC 9000 section 10.3).
const RESET_BYTES_MIN: usize = 21;

/// Settings and TLS contexts for connections; make one and use it for all.
pub struct Connector {
    config: ClientConfig,
    tls: ClientTls,
    by_name: quiche::Config,
    by_address: Vec<(IpAddr, quiche::Config)>,
    entropy: Entropy,
}

impl Connector {
    /// Checks the settings and loads the certificates.
    pub fn new(config: ClientConfig, tls: ClientTls) -> Result<Connector, ConfigError> {
        config.validate()?;
        let by_name = config.transport.to_quiche(tls.to_boring(None)?)?;
        Ok(Connector { config, tls, by_name, by_address: Vec::new(), entropy: Entropy::new() })
    }

    fn for_address(&mut self, address: IpAddr) -> Result<&mut quiche::Config, ConnectError> {
        let at = match self.by_address.iter().position(|(known, _)| *known == address) {
            Some(at) => at,
            None => {
                let tls = self.tls.to_boring(Some(address)).map_err(|_| ConnectError::Tls)?;
                let config = self.config.transport.to_quiche(tls).map_err(|_| ConnectError::Tls)?;
                if self.by_address.len() >= ADDRESS_CONTEXTS_MAX {
                    self.by_address.remove(0);
                }
                self.by_address.push((address, config));
                self.by_address.len() - 1
            }
        };
        Ok(&mut self.by_address[at].1)
    }
}

/// One connection of a client.
pub struct ClientConnection {
    connection: Connection,
    events: VecDeque<Event>,
    carried: Carried,
    counters: Counters,
    packet_bytes_max: usize,
    reset_token: Option<[u8; 16]>,
    dirty: bool,
    touched: bool,
    /// Sequence number of the server's id in use, and of the one before until the new path is proven.
    id_in_use: u64,
    id_to_retire: Option<u64>,
}

impl ClientConnection {
    /// The handle in this connection's events.
    pub const ID: ConnId = ConnId { slot: 0, generation: 1 };

    /// Starts a connection; the first packets come from `poll_transmit`. `server_name` is a host name
    /// or an address, and the certificate must be for it. `steer` picks the core that will serve us.
    pub fn connect(
        now: Instant,
        connector: &mut Connector,
        server_name: &str,
        local: SocketAddr,
        peer: SocketAddr,
        steer: Option<CoreSlot>,
    ) -> Result<ClientConnection, ConnectError> {
        let anywhere = CoreSlot { index: 0, count: 1 };
        let core = steer.unwrap_or(anywhere).validate().map_err(|_| ConnectError::Steer)?;
        let first = Cid::generate(core, &connector.entropy).map_err(|_| ConnectError::Entropy)?.to_quiche();
        let own = quiche::ConnectionId::from_ref(&[]);
        let habits = Habits {
            handshake_timeout: connector.config.transport.handshake_timeout,
            keep_alive: connector.config.keep_alive,
            ack_delay: connector.config.transport.ack_delay,
        };
        let packet_bytes_max = connector.config.transport.max_udp_payload_bytes;
        let address = server_name.parse::<IpAddr>().ok();
        if address.is_none() && !is_host_name(server_name) {
            return Err(ConnectError::ServerName);
        }
        let (name, config) = match address {
            Some(address) => (None, connector.for_address(address)?),
            None => (Some(server_name), &mut connector.by_name),
        };
        let quic = quiche::connect_with_dcid_and_buffer_factory(name, &own, &first, local, peer, config)
            .map_err(|_| ConnectError::Tls)?;
        let counters = Counters { connections: 1, handshakes_in_flight: 1, handshakes_total: 1, ..Counters::default() };
        Ok(ClientConnection {
            connection: Connection::new(quic, peer, now, habits),
            events: VecDeque::new(),
            carried: Carried::default(),
            counters,
            packet_bytes_max,
            reset_token: None,
            dirty: true,
            touched: false,
            id_in_use: 0,
            id_to_retire: None,
        })
    }

    /// Takes one UDP datagram of this connection's socket.
    pub fn on_datagram(&mut self, now: Instant, datagram: &mut [u8], from: SocketAddr, to: SocketAddr) {
        self.counters.datagrams_in += 1;
        self.counters.bytes_in += datagram.len() as u64;
        if datagram.is_empty() {
            self.counters.dropped_junk += 1;
            return;
        }
        if self.is_reset(datagram) {
            self.counters.resets_received += 1;
            self.connection.cut_off(CloseReason::StatelessReset);
            self.touched = true;
            return;
        }
        let attention = self.connection.heard(now, datagram, Path { peer: from, local: to });
        self.touched = true;
        self.attend(attention);
    }

    /// quiche looks for the token only after it tried to decrypt in place, which may have overwritten
    /// it: so it is compared first. All 16 bytes are always compared.
    fn is_reset(&self, datagram: &[u8]) -> bool {
        let Some(token) = &self.reset_token else { return false };
        if datagram.len() < RESET_BYTES_MIN || datagram[0] & 0x80 != 0 {
            return false;
        }
        let tail = &datagram[datagram.len() - token.len()..];
        token.iter().zip(tail).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }

    fn attend(&mut self, attention: Attention) {
        self.dirty |= attention == Attention::Send;
    }

    /// The next thing that happened. Call until `None` in every turn, before `poll_transmit`.
    pub fn poll_event(&mut self) -> Option<Event> {
        if self.events.is_empty() && self.touched {
            self.touched = false;
            self.collect();
        }
        self.events.pop_front()
    }

    fn collect(&mut self) {
        if self.connection.opens() {
            self.counters.handshakes_in_flight = 0;
            self.counters.connected_total = 1;
            let token = self.connection.quic.peer_transport_params().and_then(|peer| peer.stateless_reset_token);
            self.reset_token = token.map(u128::to_be_bytes);
            self.events.push_back(self.connection.connected(Self::ID));
        }
        let was_open = self.connection.phase() == Phase::Open;
        if was_open {
            let news = self.connection.take_path_events();
            if news.validated.is_some()
                && let Some(old) = self.id_to_retire.take()
            {
                // The old address must not be linked to the new one by a common id (RFC 9000 section 9.5).
                let _ = self.connection.quic.retire_dcid(old);
                self.counters.migrations += 1;
                self.dirty = true;
            }
            self.connection.collect(Self::ID, &mut self.events);
        }
        if let Some(reason) = self.connection.ends() {
            self.counters.closed_total = 1;
            self.counters.handshakes_in_flight = 0;
            self.counters.connections = 0;
            match reason {
                CloseReason::HandshakeTimeout => self.counters.handshakes_timed_out += 1,
                CloseReason::IdleTimeout => self.counters.idle_timeouts += 1,
                CloseReason::LocalTransport { .. } if was_open => self.counters.protocol_errors += 1,
                _ if !was_open => self.counters.handshakes_failed += 1,
                _ => {}
            }
            self.events.push_back(Event::Closed { conn: Self::ID, reason });
        }
    }

    /// The next bytes to send. `out` must hold `max_udp_payload_bytes`; 65,507 lets every train fit.
    pub fn poll_transmit(&mut self, _now: Instant, out: &mut [u8]) -> Option<Transmit> {
        if !self.dirty {
            return None;
        }
        let train = train::build(Self::ID, &mut self.connection, &mut self.carried, out, self.packet_bytes_max);
        self.counters.send_failed += u64::from(train.failed);
        if train.drained && !self.carried.is_of(Self::ID) {
            self.dirty = false;
            self.connection.flushed();
            self.touched |= self.connection.end().is_some();
        }
        let transmit = train.transmit?;
        self.counters.packets_out += train.packets as u64;
        self.counters.bytes_out += transmit.bytes as u64;
        self.counters.trains_out += u64::from(train.packets > 1);
        Some(transmit)
    }

    /// When `on_timeout` should be called, if no datagram comes before.
    pub fn next_timeout(&mut self) -> Option<Instant> {
        if self.connection.is_gone() { None } else { self.connection.deadline() }
    }

    /// Handles every deadline up to `now`.
    pub fn on_timeout(&mut self, now: Instant) {
        if self.connection.is_gone() || self.connection.on_timeout(now) == Attention::Later {
            return;
        }
        self.dirty = true;
        self.touched = true;
    }

    /// Moves to another local address, whose socket the caller has opened. False if the server gave no
    /// spare connection id (yet), or the connection has used up its paths: then connect again.
    pub fn migrate(&mut self, local: SocketAddr) -> bool {
        if self.connection.phase() != Phase::Open || self.id_to_retire.is_some() {
            return false;
        }
        let quic = &mut self.connection.quic;
        let Some(peer) = quic.path_stats().find(|path| path.active).map(|path| path.peer_addr) else { return false };
        match quic.migrate(local, peer) {
            Ok(id) => {
                // Ask for proof of the new path: then the old id can go.
                let _ = quic.probe_path(local, peer);
                if id != self.id_in_use {
                    self.id_to_retire = Some(self.id_in_use);
                    self.id_in_use = id;
                }
                self.dirty = true;
                true
            }
            Err(_) => false,
        }
    }

    /// Reads from a stream. Works at any time, event or not.
    pub fn stream_recv(&mut self, stream: u64, buffer: &mut [u8]) -> Result<Recv, StreamError> {
        let result = self.connection.stream_recv(stream, buffer);
        if result.is_ok() {
            self.attend(self.connection.attention_after_read());
        }
        result
    }

    /// Writes to a stream. A short count (also 0) is flow or congestion control: `StreamWritable`
    /// follows. `fin` counts only if all bytes were taken.
    pub fn stream_send(&mut self, stream: u64, bytes: &[u8], fin: bool) -> Result<usize, StreamError> {
        self.dirty = true;
        self.connection.stream_send(stream, bytes, fin)
    }

    /// Bytes that `stream_send` would take now.
    pub fn stream_capacity(&mut self, stream: u64) -> Result<usize, StreamError> {
        self.connection.stream_capacity(stream)
    }

    /// Asks the peer to stop sending (STOP_SENDING) and drops what is unread.
    pub fn stream_shutdown_read(&mut self, stream: u64, code: u64) -> Result<(), StreamError> {
        self.dirty = true;
        self.connection.stream_shutdown_read(stream, code)
    }

    /// Gives up sending on a stream (RESET_STREAM) and drops what is unsent.
    pub fn stream_reset(&mut self, stream: u64, code: u64) -> Result<(), StreamError> {
        self.dirty = true;
        self.connection.stream_reset(stream, code)
    }

    /// Opens a stream that only we write.
    pub fn open_uni(&mut self) -> Result<u64, StreamError> {
        self.connection.open_uni()
    }

    /// Opens a stream that both write.
    pub fn open_bidi(&mut self) -> Result<u64, StreamError> {
        self.connection.open_bidi()
    }

    /// Queues an unreliable datagram.
    pub fn datagram_send(&mut self, bytes: &[u8]) -> Result<(), DatagramError> {
        self.dirty = true;
        self.connection.datagram_send(bytes)
    }

    /// Reads one datagram; its size.
    pub fn datagram_recv(&mut self, buffer: &mut [u8]) -> Result<usize, DatagramError> {
        self.connection.datagram_recv(buffer)
    }

    /// Largest datagram that can be sent now; `None` if the server takes none.
    pub fn datagram_max(&self) -> Option<usize> {
        self.connection.datagram_max()
    }

    /// Closes with an application code. `Closed` follows; keep driving until `is_drained`, or drop the
    /// connection once the close was transmitted.
    pub fn close(&mut self, code: u64, reason: &[u8]) {
        self.connection.close(code, reason);
        self.dirty = true;
        self.touched = true;
    }

    /// Whether nothing is left to send or to wait for.
    pub fn is_drained(&self) -> bool {
        self.connection.is_gone()
    }

    /// Counts since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Figures of the connection.
    pub fn conn_stats(&self) -> ConnStats {
        self.connection.stats()
    }
}

/// Letters, digits, dots, hyphens and underscores, up to the 253 of DNS.
fn is_host_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=253).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_hold_no_surprises() {
        for good in ["localhost", "a.b-c.example", "broker_1.felix.svc.cluster.local"] {
            assert!(is_host_name(good), "{good}");
        }
        for bad in ["", "a b", "a\0b", "a/b", "ä.example", &"x".repeat(254)] {
            assert!(!is_host_name(bad), "{bad:?}");
        }
    }
}
