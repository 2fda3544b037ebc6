//! What an endpoint tells its owner.
//!
//! **What.** Events, close reasons, and the small results of transmit and receive.
//!
//! **Invariants.** A `Connected` is followed by exactly one `Closed` of the same id. On the server a
//! connection that never came to `Connected` is only counted; on the client `Closed` always comes,
//! once. A stream is announced at most once until it was read from.
//!
//! **Never.** No event is lost because its reader is slow: events are made when they are polled.
//!
//! **See** `connection.rs`, which makes them.

use std::net::SocketAddr;

use crate::conn_id::ConnId;

/// One thing that happened to a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The handshake is complete and ALPN is `felix/1`. On a client the server may still refuse our
    /// certificate: authorised is only who hears from the server.
    Connected {
        /// The connection.
        conn: ConnId,
        /// Address it was accepted from (or connected to).
        peer: SocketAddr,
        /// The peer's leaf certificate as DER, if it showed one.
        peer_cert: Option<Vec<u8>>,
    },
    /// Bytes or the end of the stream wait. Read until `WouldBlock`, or remember that there is more:
    /// the event need not come again before the stream was read empty.
    StreamReadable {
        /// The connection.
        conn: ConnId,
        /// QUIC stream id.
        stream: u64,
    },
    /// A stream whose last send was short takes bytes again.
    StreamWritable {
        /// The connection.
        conn: ConnId,
        /// QUIC stream id.
        stream: u64,
    },
    /// At least one datagram waits. Comes again only after the queue was read empty or new ones came.
    DatagramReadable {
        /// The connection.
        conn: ConnId,
    },
    /// The peer reset its side of the stream. (A reader that left bytes in the stream may learn it
    /// from `stream_recv` instead.)
    StreamReset {
        /// The connection.
        conn: ConnId,
        /// QUIC stream id.
        stream: u64,
        /// Application error code of the peer.
        code: u64,
    },
    /// The peer does not want more bytes of a stream that waits to be writable. (A writer that does not
    /// wait learns it from its next `stream_send`.)
    StreamStopped {
        /// The connection.
        conn: ConnId,
        /// QUIC stream id.
        stream: u64,
        /// Application error code of the peer.
        code: u64,
    },
    /// The connection is over: nothing can be sent. What had already arrived can still be read while
    /// this event is handled.
    Closed {
        /// The connection.
        conn: ConnId,
        /// Why.
        reason: CloseReason,
    },
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// We closed it.
    Local {
        /// The application code we gave.
        code: u64,
    },
    /// The peer's application closed it.
    PeerApplication {
        /// Application code.
        code: u64,
        /// Reason bytes, unchecked.
        reason: Vec<u8>,
    },
    /// The peer's transport closed it. Codes 0x100 to 0x1ff are TLS alerts.
    PeerTransport {
        /// Transport code, RFC 9000 section 20.1.
        code: u64,
        /// Reason bytes, unchecked.
        reason: Vec<u8>,
    },
    /// The peer broke the protocol or failed TLS, and we closed it.
    LocalTransport {
        /// Transport code that we sent.
        code: u64,
    },
    /// Nothing was heard for the idle timeout.
    IdleTimeout,
    /// The handshake did not end in time.
    HandshakeTimeout,
    /// The peer no longer knows the connection (it restarted). Connect again at once.
    StatelessReset,
    /// No network path works any more.
    PathLost,
}

/// `CONNECTION_REFUSED`, RFC 9000 section 20.1.
pub(crate) const CONNECTION_REFUSED: u64 = 0x02;
/// `INVALID_TOKEN`, RFC 9000 section 20.1.
pub(crate) const INVALID_TOKEN: u64 = 0x0b;

impl CloseReason {
    /// Whether the server turned the connection away (draining, or at a limit): try another one.
    pub fn is_refused(&self) -> bool {
        matches!(self, CloseReason::PeerTransport { code, .. }
            if *code == CONNECTION_REFUSED || *code == INVALID_TOKEN)
    }

    /// The TLS alert in it, if the handshake failed on one.
    pub fn tls_alert(&self) -> Option<u8> {
        match self {
            CloseReason::PeerTransport { code, .. } | CloseReason::LocalTransport { code }
                if (0x100..0x200).contains(code) =>
            {
                Some((code - 0x100) as u8)
            }
            _ => None,
        }
    }
}

/// One send call for the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Bytes at the start of the buffer.
    pub bytes: usize,
    /// Set if the bytes are several packets of this size (the last may be smaller): UDP_SEGMENT.
    pub segment_bytes: Option<usize>,
    /// Where to.
    pub to: SocketAddr,
    /// Local address to send from.
    pub from: SocketAddr,
}

/// What a stream read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recv {
    /// Bytes written to the start of the buffer.
    pub bytes: usize,
    /// Whether the stream ends after them.
    pub fin: bool,
}
