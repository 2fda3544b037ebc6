//! What an endpoint counts.
//!
//! **What.** Plain numbers, one per drop reason, limit and kind of packet. A client uses the same
//! struct for the few that apply.
//!
//! **Invariants.** Only `connections` and `handshakes_in_flight` go down.
//!
//! **Never.** Atomics: one endpoint belongs to one core; its owner copies them out.
//!
//! **See** `endpoint.rs` and `accept.rs`, which count.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts of one endpoint since it was made.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Every counter with its name, for metrics.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// UDP datagrams given to `on_datagram`.
    datagrams_in,
    /// Bytes of them.
    bytes_in,
    /// QUIC packets given out by `poll_transmit`, stateless ones included.
    packets_out,
    /// Bytes of them.
    bytes_out,
    /// Transmits of more than one packet.
    trains_out,
    /// Connections that hold a slot now, handshakes and closing ones included.
    connections,
    /// Connections that came to `Connected`.
    connected_total,
    /// Handshakes that are not complete now.
    handshakes_in_flight,
    /// Handshakes started.
    handshakes_total,
    /// Handshakes that failed (TLS, ALPN, protocol).
    handshakes_failed,
    /// Handshakes that ran out of time.
    handshakes_timed_out,
    /// `Closed` events given.
    closed_total,
    /// Connections that ended by idle timeout.
    idle_timeouts,
    /// Connections closed because the peer broke the protocol.
    protocol_errors,
    /// Peers that moved to a new address.
    migrations,
    /// Connection ids issued after the first of each connection.
    ids_issued,
    /// Connection ids retired by peers.
    ids_retired,
    /// Retry packets sent.
    retries_sent,
    /// Retry tokens that were good.
    retry_tokens_valid,
    /// Retry tokens that were forged, expired or for another address.
    retry_tokens_invalid,
    /// Stateless resets sent.
    resets_sent,
    /// Stateless resets held back by the rate limit.
    resets_limited,
    /// Stateless resets received (client).
    resets_received,
    /// Version negotiation packets sent.
    version_negotiations_sent,
    /// Handshakes refused because the endpoint drains.
    refused_draining,
    /// Handshakes refused at the connection limit.
    refused_connections_max,
    /// Handshakes refused at the limit of one source address.
    refused_source_max,
    /// Initials dropped at the handshake limit (their sender tries again).
    dropped_handshakes_max,
    /// Datagrams that are not QUIC or are too short to hold a connection id.
    dropped_junk,
    /// Initials below 1,200 bytes or with a connection id below 8 bytes.
    dropped_small_initial,
    /// Packets of a connection id that this endpoint does not know and that starts nothing.
    dropped_unknown_id,
    /// First packets that belong to another core.
    dropped_wrong_core,
    /// Late packets of a retired connection id.
    dropped_retired_id,
    /// Stateless answers dropped because their queue was full.
    dropped_answers,
    /// Connections that the library could not even create.
    accept_failed,
    /// Packets the library could not build (the connection is closed then).
    send_failed,
}
