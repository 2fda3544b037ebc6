//! Every setting of an endpoint and of a client, with its default.
//!
//! **What.** Plain values and the one function that turns them into a `quiche::Config`.
//!
//! **Invariants.** Windows start small and grow on use, so an idle connection reserves nothing.
//! Both sides use one `TransportConfig`.
//!
//! **Never.** Early data, session tickets, GREASE: 0-RTT can be replayed, tickets cost memory per
//! connection, and quiche encodes its transport parameters into 128 bytes, which GREASE would fill.
//!
//! **See** DESIGN.md for the numbers.

use std::time::Duration;

use boring::ssl::SslContextBuilder;

use crate::error::ConfigError;
use crate::tls::ALPN;

/// Largest UDP payload that quiche can describe (two-byte length).
const UDP_PAYLOAD_BYTES_MAX: usize = 16_383;
/// Smallest UDP payload QUIC allows (RFC 9000 section 14).
const UDP_PAYLOAD_BYTES_MIN: usize = 1_200;

/// Largest window and idle time that take 4 bytes in a transport parameter, and largest stream count
/// that takes 2. quiche encodes all parameters into 128 bytes; with these bounds they always fit
/// (`tests/foreign.rs` tries the longest).
const FOUR_BYTE_MAX: u64 = (1 << 30) - 1;
const TWO_BYTE_MAX: u64 = (1 << 14) - 1;

/// Congestion control. (quiche paces neither of them, so there is no pacing setting.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Congestion {
    /// RFC 9438.
    Cubic,
    /// RFC 5681.
    Reno,
}

/// How long an acknowledgement of a connection that has nothing else to send may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckDelay {
    /// Longest wait. Keep it far below the 25 ms that the peer is told.
    pub wait_max: Duration,
    /// Datagrams after which it is sent at once.
    pub datagrams_max: u16,
}

/// What both sides of a connection can set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportConfig {
    /// Silence after which a connection ends. The lower value of both sides holds.
    pub idle_timeout: Duration,
    /// Time a handshake may take.
    pub handshake_timeout: Duration,
    /// Bytes the peer may send on a new connection before we read.
    pub connection_window_initial_bytes: u64,
    /// What that window may grow to.
    pub connection_window_max_bytes: u64,
    /// Bytes the peer may send on a new stream before we read.
    pub stream_window_initial_bytes: u64,
    /// What that window may grow to.
    pub stream_window_max_bytes: u64,
    /// Bidirectional streams the peer may have open.
    pub streams_bidi_max: u64,
    /// Unidirectional streams the peer may have open.
    pub streams_uni_max: u64,
    /// Datagrams kept for a reader; the oldest is dropped beyond it.
    pub datagrams_received_max: usize,
    /// Datagrams that may wait to be sent; then `DatagramError::Full`.
    pub datagrams_unsent_max: usize,
    /// Largest UDP payload we send or take, 1,200 to 16,383.
    pub max_udp_payload_bytes: usize,
    /// Start at 1,200 bytes and probe for more. Off: use the maximum at once, which needs a network
    /// that is known to carry it.
    pub path_mtu_discovery: bool,
    /// Congestion control.
    pub congestion: Congestion,
    /// Packets that may be sent before the first acknowledgement.
    pub initial_window_packets: usize,
    /// Round-trip time assumed before the first measurement; the first probe waits three times it.
    pub initial_rtt: Duration,
    /// Connection ids we store of the peer, and network paths a connection may ever know: a peer can
    /// change its address one time less, then it has to connect again.
    pub connection_ids_max: u8,
    /// Wait with acknowledgements; `None` sends them in the turn that received.
    pub ack_delay: Option<AckDelay>,
}

impl Default for TransportConfig {
    fn default() -> TransportConfig {
        TransportConfig {
            idle_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            connection_window_initial_bytes: 128 * 1024,
            connection_window_max_bytes: 16 * 1024 * 1024,
            stream_window_initial_bytes: 64 * 1024,
            stream_window_max_bytes: 8 * 1024 * 1024,
            streams_bidi_max: 32,
            streams_uni_max: 128,
            datagrams_received_max: 256,
            datagrams_unsent_max: 1024,
            // 1,500 minus IPv6 and UDP headers.
            max_udp_payload_bytes: 1_452,
            path_mtu_discovery: true,
            congestion: Congestion::Cubic,
            initial_window_packets: 32,
            // A third of the 333 ms of RFC 9002: data centre first, and a lost first packet on a wide
            // area link costs only a spurious probe.
            initial_rtt: Duration::from_millis(100),
            connection_ids_max: 8,
            ack_delay: None,
        }
    }
}

/// When a client must prove its address before it costs us memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryPolicy {
    /// Always: one more round trip for everybody.
    Always,
    /// Once this many handshakes are in flight on this endpoint.
    AboveHandshakes(usize),
    /// Never (the handshake limit still holds).
    Never,
}

/// Settings of a server endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointConfig {
    /// Settings of each connection.
    pub transport: TransportConfig,
    /// Connections of this endpoint.
    pub connections_max: usize,
    /// Handshakes of this endpoint that may be incomplete at once.
    pub handshakes_max: usize,
    /// Connections from one source: an IPv4 address or an IPv6 /64. Counted once the address is proven.
    pub connections_per_source_max: usize,
    /// When to ask for a Retry.
    pub retry: RetryPolicy,
    /// How long a Retry token is good.
    pub retry_token_lifetime: Duration,
    /// Stateless resets per second.
    pub resets_per_second: u32,
    /// Stateless answers that may wait for `poll_transmit`.
    pub answers_max: usize,
}

impl Default for EndpointConfig {
    fn default() -> EndpointConfig {
        EndpointConfig {
            transport: TransportConfig::default(),
            connections_max: 100_000,
            handshakes_max: 2_048,
            connections_per_source_max: 20_000,
            retry: RetryPolicy::AboveHandshakes(256),
            retry_token_lifetime: Duration::from_secs(15),
            resets_per_second: 1_000,
            answers_max: 256,
        }
    }
}

/// Settings of client connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// Settings of each connection.
    pub transport: TransportConfig,
    /// Send a PING when nothing was heard for so long; `None` lets an idle connection end. Keep it
    /// below half of the idle timeout.
    pub keep_alive: Option<Duration>,
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        ClientConfig {
            // A server stores every id it issues: a client asks for few.
            transport: TransportConfig { connection_ids_max: 3, ..TransportConfig::default() },
            keep_alive: Some(Duration::from_secs(10)),
        }
    }
}

impl EndpointConfig {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        self.transport.validate()?;
        check(self.connections_max > 0 && self.connections_max < u32::MAX as usize, "connections_max")?;
        check(self.handshakes_max > 0, "handshakes_max")?;
        check(self.connections_per_source_max > 0, "connections_per_source_max")?;
        check(self.retry_token_lifetime > Duration::ZERO, "retry_token_lifetime")?;
        check(self.answers_max > 0, "answers_max")
    }
}

impl ClientConfig {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        self.transport.validate()?;
        check(self.keep_alive != Some(Duration::ZERO), "keep_alive")
    }
}

impl TransportConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if !(UDP_PAYLOAD_BYTES_MIN..=UDP_PAYLOAD_BYTES_MAX).contains(&self.max_udp_payload_bytes) {
            return Err(ConfigError::UdpPayload { found: self.max_udp_payload_bytes });
        }
        check(self.idle_timeout > Duration::ZERO, "idle_timeout")?;
        check(self.handshake_timeout > Duration::ZERO, "handshake_timeout")?;
        check(self.initial_rtt > Duration::ZERO, "initial_rtt")?;
        check(self.initial_window_packets > 0, "initial_window_packets")?;
        check((2..=16).contains(&self.connection_ids_max), "connection_ids_max")?;
        check(self.idle_timeout.as_millis() <= u128::from(FOUR_BYTE_MAX), "idle_timeout")?;
        check(self.connection_window_initial_bytes <= FOUR_BYTE_MAX, "connection_window_initial_bytes")?;
        check(self.stream_window_initial_bytes <= FOUR_BYTE_MAX, "stream_window_initial_bytes")?;
        check(self.streams_bidi_max <= TWO_BYTE_MAX, "streams_bidi_max")?;
        check(self.streams_uni_max <= TWO_BYTE_MAX, "streams_uni_max")?;
        check(
            self.connection_window_initial_bytes <= self.connection_window_max_bytes,
            "connection_window_initial_bytes",
        )?;
        check(self.stream_window_initial_bytes <= self.stream_window_max_bytes, "stream_window_initial_bytes")?;
        check(
            self.ack_delay.is_none_or(|delay| {
                delay.wait_max > Duration::ZERO
                    && delay.wait_max <= Duration::from_millis(20)
                    && delay.datagrams_max > 0
            }),
            "ack_delay",
        )
    }

    /// The quiche side of these settings, around a TLS context.
    pub(crate) fn to_quiche(&self, tls: SslContextBuilder) -> Result<quiche::Config, ConfigError> {
        let mut config =
            quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, tls).map_err(|_| ConfigError::Tls)?;
        config.set_application_protos(&[ALPN]).map_err(|_| ConfigError::Tls)?;
        config.grease(false);
        config.set_max_idle_timeout(self.idle_timeout.as_millis() as u64);
        config.set_initial_max_data(self.connection_window_initial_bytes);
        config.set_max_connection_window(self.connection_window_max_bytes);
        config.set_initial_max_stream_data_bidi_local(self.stream_window_initial_bytes);
        config.set_initial_max_stream_data_bidi_remote(self.stream_window_initial_bytes);
        config.set_initial_max_stream_data_uni(self.stream_window_initial_bytes);
        config.set_max_stream_window(self.stream_window_max_bytes);
        config.set_initial_max_streams_bidi(self.streams_bidi_max);
        config.set_initial_max_streams_uni(self.streams_uni_max);
        config.enable_dgram(true, self.datagrams_received_max, self.datagrams_unsent_max);
        config.set_max_recv_udp_payload_size(self.max_udp_payload_bytes);
        config.set_max_send_udp_payload_size(self.max_udp_payload_bytes);
        config.discover_pmtu(self.path_mtu_discovery);
        config.set_cc_algorithm(match self.congestion {
            Congestion::Cubic => quiche::CongestionControlAlgorithm::CUBIC,
            Congestion::Reno => quiche::CongestionControlAlgorithm::Reno,
        });
        config.set_initial_congestion_window_packets(self.initial_window_packets);
        config.set_initial_rtt(self.initial_rtt);
        config.set_active_connection_id_limit(u64::from(self.connection_ids_max));
        config.enable_pacing(false);
        Ok(config)
    }
}

fn check(holds: bool, name: &'static str) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Setting { name }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_bad_values_are_named() {
        EndpointConfig::default().validate().unwrap();
        ClientConfig::default().validate().unwrap();
        let mut config = EndpointConfig::default();
        config.transport.max_udp_payload_bytes = 1_199;
        assert_eq!(config.validate(), Err(ConfigError::UdpPayload { found: 1_199 }));
        let mut config = EndpointConfig::default();
        config.transport.stream_window_initial_bytes = 1 << 40;
        assert_eq!(config.validate(), Err(ConfigError::Setting { name: "stream_window_initial_bytes" }));
        let config = ClientConfig { keep_alive: Some(Duration::ZERO), ..ClientConfig::default() };
        assert_eq!(config.validate(), Err(ConfigError::Setting { name: "keep_alive" }));
    }
}
