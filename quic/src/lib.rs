//! The QUIC endpoint of Felix: datagrams in, connection events out, datagrams out.
//!
//! **What.** A map of the crate. A datagram takes this way:
//!
//! ```text
//!   on_datagram -> conn_id (which core, which connection) -> connection -> poll_event
//!                     |  unknown id                                          |
//!                     v                                                      v
//!                  admission -> accept | Retry | refusal | reset      stream and datagram calls
//!                     |                                                      |
//!                     +------------> poll_transmit <------ dirty list <------+
//! ```
//!
//! **Invariants.** No sockets, threads, clocks of our own or frames of ours: bytes and `now` come
//! from the caller. Bytes from the network end in a counter or a closed connection, never a panic.
//!
//! **Never.** Nothing outside this crate names quiche or boring.
//!
//! **See** `endpoint.rs` for the server side, `client.rs` for the client side.

#![forbid(unsafe_code)]

mod accept;
mod admission;
mod buffers;
mod calls;
mod client;
mod conn_id;
mod connection;
mod counters;
mod endpoint;
mod error;
mod event;
mod heap;
mod refuse;
mod secrets;
mod settings;
mod slots;
mod stateless;
mod streams;
mod tls;
mod token;
mod train;

pub use buffers::LentBytes;
pub use client::{ClientConnection, Connector};
pub use conn_id::{ConnId, CoreSlot, Route};
pub use connection::ConnStats;
pub use counters::Counters;
pub use endpoint::Endpoint;
pub use error::{ConfigError, ConnectError, DatagramError, StreamError};
pub use event::{CloseReason, Event, Recv, Transmit};
pub use secrets::EndpointSecrets;
pub use settings::{AckDelay, ClientConfig, Congestion, EndpointConfig, RetryPolicy, TransportConfig};
pub use tls::{ALPN, ClientAuth, ClientTls, ServerTls};
