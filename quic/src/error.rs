//! Errors of the public calls.
//!
//! **What.** One small enum per operation, with facts.
//!
//! **Invariants.** "Nothing to do" is never an error but `WouldBlock` on a read, because a reader
//! loops until it sees it. No error of quiche or boring crosses this crate.
//!
//! **Never.** Text to match on.
//!
//! **See** `streams.rs`, where quiche's errors become these.

use std::fmt;

/// Why a stream call did nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamError {
    /// Nothing to read now; a `StreamReadable` event follows when there is.
    WouldBlock,
    /// The peer reset the stream: no further byte of it will come. Told once.
    Reset(u64),
    /// The peer asked us to stop sending on the stream. Told once.
    Stopped(u64),
    /// The peer allows no further stream of this kind now.
    StreamLimit,
    /// The stream does not exist, cannot be used in this direction, or is over: ended and acknowledged,
    /// reset, or stopped by the peer while nobody was writing.
    UnknownStream,
    /// Bytes after the end of the stream were offered.
    Finished,
    /// The connection is closed or closing; nothing can be sent any more.
    Closed,
    /// No connection has this id (any more).
    UnknownConnection,
}

/// Why a datagram call did nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatagramError {
    /// Larger than one packet can carry; `max` is the limit now, in bytes.
    TooLarge {
        /// Largest datagram that would have been taken.
        max: usize,
    },
    /// The send queue is full; the caller decides between a gap and the stream.
    Full,
    /// The peer does not take datagrams.
    Unsupported,
    /// No datagram waits.
    WouldBlock,
    /// The buffer is smaller than the datagram that waits; `bytes` are needed.
    BufferTooSmall {
        /// Bytes of the datagram that waits.
        bytes: usize,
    },
    /// The connection is closed or closing.
    Closed,
    /// No connection has this id (any more).
    UnknownConnection,
}

/// Why an endpoint or connector cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigError {
    /// The certificate chain is not PEM or holds no certificate.
    CertificateChain,
    /// The private key is not PEM or not usable.
    PrivateKey,
    /// The private key does not belong to the certificate.
    KeyMismatch,
    /// The CA bundle is not PEM or holds no certificate.
    CaBundle,
    /// Client certificates are asked for, but there is no CA to check them.
    ClientAuthWithoutCa,
    /// A certificate without its key, or the other way round.
    HalfIdentity,
    /// `index` is not below `count`, or `count` is zero.
    CoreSlot {
        /// The core's index.
        index: u8,
        /// Number of cores.
        count: u8,
    },
    /// `max_udp_payload_bytes` is outside 1,200 to 16,383.
    UdpPayload {
        /// The value found.
        found: usize,
    },
    /// A setting is outside its range; `name` is the field.
    Setting {
        /// Field name.
        name: &'static str,
    },
    /// The TLS library refused the context.
    Tls,
    /// The system gave no random bytes.
    Entropy,
}

/// Why a client connection could not even be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectError {
    /// The server name is neither a host name nor an address.
    ServerName,
    /// The core to steer to is not below the number of cores.
    Steer,
    /// The TLS library refused the connection.
    Tls,
    /// The system gave no random bytes.
    Entropy,
}

macro_rules! display_as_debug {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
        impl std::error::Error for $name {}
    )*};
}

display_as_debug!(StreamError, DatagramError, ConfigError, ConnectError);
