//! **What**: how a driver is made from a configuration, and which first failures are final.
//!
//! **Invariants**: addresses are resolved once, here, so that driving never blocks on a resolver.
//!
//! **Never**: a retry hidden from the caller of `connect` beyond its timeout.
//!
//! **See**: `poll_client.rs`.

use super::{PollClient, WAKER};
use crate::config::ClientConfig;
use crate::context::ContextError;
use crate::engine::{Engine, EngineConfig, Lost};
use crate::error::ConnectError;
use crate::link::Scratch;
use crate::random::fresh_u64;
use crate::session::Identity;
use crate::shared::Shared;
use felix_protocol::error_code::Class;
use felix_quic::{ClientTls, ConfigError, Connector};
use mio::{Events, Poll, Waker};
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};

/// Largest UDP payload: what quiche can describe. Path MTU discovery finds what the path carries up to this.
const UDP_PAYLOAD_BYTES_MAX: usize = 16_383;

fn system(call: &'static str) -> impl FnOnce(std::io::Error) -> ConnectError {
    move |error| ConnectError::System { call, kind: error.kind() }
}

/// A client has few connections and much to read on each: larger windows than a broker gives, and packets as large as
/// the path takes.
fn transport() -> felix_quic::ClientConfig {
    let mut config = felix_quic::ClientConfig::default();
    config.transport.max_udp_payload_bytes = UDP_PAYLOAD_BYTES_MAX;
    config.transport.connection_window_initial_bytes = 4 << 20;
    config.transport.stream_window_initial_bytes = 1 << 20;
    config.transport.streams_uni_max = 1_024;
    config.transport.datagrams_received_max = 4_096;
    config
}

fn tls_error(error: ConfigError) -> ConnectError {
    let detail = match error {
        ConfigError::CertificateChain => "cert is not a PEM certificate chain",
        ConfigError::PrivateKey => "key is not a PEM private key",
        ConfigError::KeyMismatch => "key does not belong to cert",
        ConfigError::CaBundle => "ca is not a PEM certificate",
        ConfigError::HalfIdentity => return ConnectError::Config(ContextError::HalfIdentity),
        _ => "the TLS library refused the credentials",
    };
    ConnectError::Config(ContextError::Credentials { detail })
}

impl PollClient {
    pub(super) fn new(config: &ClientConfig) -> Result<PollClient, ConnectError> {
        let addresses: Vec<SocketAddr> = config
            .server
            .to_socket_addrs()
            .map_err(|_| ConnectError::Address { server: config.server.clone() })?
            .collect();
        if addresses.is_empty() {
            return Err(ConnectError::Address { server: config.server.clone() });
        }
        let tls = ClientTls {
            ca_pem: config.ca_pem.clone(),
            cert_chain_pem: config.cert_chain_pem.clone(),
            key_pem: config.key_pem.clone(),
        };
        let connector = Connector::new(transport(), tls).map_err(tls_error)?;
        let poll = Poll::new().map_err(system("epoll"))?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(system("eventfd"))?;
        let engine = Engine::new(EngineConfig {
            identity: Identity { client_name: config.client_name.clone(), token: config.token.clone(), cluster: None },
            connections: config.connections,
            receive_buffer_bytes: config.receive_buffer_bytes,
            request_timeout_ns: config.request_timeout.as_nanos().min(u128::from(u64::MAX)) as u64,
            seed: config.seed.unwrap_or_else(fresh_u64),
        });
        Ok(PollClient {
            shared: Shared::new(waker, config.request_timeout),
            engine,
            connector,
            server_name: config.server_name.clone(),
            addresses,
            links: BTreeMap::new(),
            dying: Vec::new(),
            poll,
            events: Events::with_capacity(64),
            scratch: Scratch::new(),
            publishers: Vec::new(),
            subscribers: BTreeMap::new(),
            replies: BTreeMap::new(),
            next_token: 1,
            last_lost: None,
            more: false,
        })
    }

    /// Whether the first connection failed in a way that trying again does not mend.
    pub(super) fn final_error(&mut self, config: &ClientConfig) -> Option<ConnectError> {
        match self.last_lost.as_ref()? {
            Lost::Tls(alert) => Some(ConnectError::Tls { alert: *alert }),
            Lost::Unreachable if self.addresses.len() == 1 => {
                Some(ConnectError::Unreachable { server: config.server.clone() })
            }
            Lost::Violation(violation) => Some(ConnectError::Protocol(*violation)),
            Lost::Refused(code, detail) if code.class() != Class::Retry => {
                Some(ConnectError::Refused { code: *code, detail: detail.clone() })
            }
            _ => None,
        }
    }
}
