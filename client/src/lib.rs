//! The Rust client of Felix: publish, subscribe and administer over QUIC, with a deadline on every call.
//!
//! **What**: a map of the crate. The state is sans-IO; threads, sockets and clocks are at the edge.
//!
//! ```text
//!  Publisher ---> intake (Mutex) --.                                    .--> socket (UDP, quinn-udp)
//!  Client    ---> commands --------+--> poll_client --> engine ---------+--> felix_quic::ClientConnection
//!  Subscriber <-- inbox (Mutex) <--'    (the driver)      |
//!                                                         +-- session.rs      one connection, frames
//!                                                         +-- channel.rs      one (publisher, shard): unacked batches
//!                                                         +-- subscription.rs one (subscriber, shard): position, credit
//! ```
//!
//! **Invariants**: whatever the broker sends ends in data, a typed error or a closed connection, within fixed memory.
//! A record is reported acked only if a broker said so, and refused only if it can never be in the log.
//!
//! **Never**: an async runtime, a call without a deadline, `unsafe`.
//!
//! **See**: `client.rs` for the threaded face, `poll_client.rs` for the one without threads, DESIGN.md for the choices.
#![deny(unsafe_code)]

mod ack;
mod backoff;
mod calls;
mod channel;
mod client;
mod compress;
mod config;
mod context;
pub mod engine;
mod error;
mod inbox;
mod intake;
mod item;
mod link;
mod poll_client;
mod publisher;
mod random;
mod send_queue;
pub mod session;
mod shared;
mod subscriber;
mod subscription;
mod violation;

pub use ack::{AckFuture, Acked};
pub use client::Client;
pub use config::{ClientConfig, OnReset, PublisherOptions, ShardTarget, Shards, SubscribeOptions, Wait};
pub use context::{Context, ContextError};
pub use error::{ConnectError, FlushError, PublishError, RequestError, SendError, SubscribeError, UnknownReason};
pub use intake::{FlushReport, Intake};
pub use item::{DeliveredBatch, Item, Record, RecordView, RecordViews};
pub use poll_client::{PollClient, PollResult};
pub use publisher::Publisher;
pub use subscriber::{RecordIter, Subscriber};
pub use violation::Violation;

pub use felix_protocol as protocol;
pub use felix_protocol::batch::Compression;
pub use felix_protocol::batch_builder::RecordToPublish;
pub use felix_protocol::error_code::ErrorCode;
pub use felix_protocol::frame::{DeliveryMode, Route, SlowPolicy, Start, Stats, Welcome};
pub use felix_protocol::metadata::{Command, Durability, Reply};
pub use felix_protocol::names::StreamName;
