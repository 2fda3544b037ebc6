//! **What**: every setting of a client, a publisher and a subscription, with its default.
//!
//! **Invariants**: a configuration that was built can be used: files were read, names checked.
//!
//! **Never**: reading the environment here.
//!
//! **See**: `context.rs`, `client.rs`.

use crate::context::{Context, ContextError};
use felix_protocol::batch::Compression;
use felix_protocol::frame::{DeliveryMode, SlowPolicy, Start};
use felix_protocol::limits::{CLIENT_NAME_BYTES_MAX, FRAME_BYTES_MAX, TOKEN_BYTES_MAX};
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// Connections that subscriptions can be spread over: more would only cost handshakes.
pub(crate) const CONNECTIONS_MAX: usize = 64;
/// Time a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of deliveries a subscriber holds unread: about 10 ms at 10 Gbit/s.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;
/// Bytes of records a publisher may have unacknowledged.
const IN_FLIGHT_BYTES: usize = 16 << 20;
/// Time a record may take: longer than the restart of a broker.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(30);

/// How the background thread waits for work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Sleep at once: least CPU.
    #[default]
    Park,
    /// Spin for so long before sleeping.
    Spin(Duration),
    /// Never sleep: least latency, one CPU.
    Busy,
}

/// Settings of a client.
#[derive(Clone)]
pub struct ClientConfig {
    pub(crate) server: String,
    pub(crate) server_name: String,
    pub(crate) ca_pem: Vec<u8>,
    pub(crate) cert_chain_pem: Option<Vec<u8>>,
    pub(crate) key_pem: Option<Vec<u8>>,
    pub(crate) token: Vec<u8>,
    pub(crate) client_name: String,
    pub(crate) request_timeout: Duration,
    pub(crate) connections: usize,
    pub(crate) receive_buffer_bytes: usize,
    pub(crate) wait: Wait,
    pub(crate) seed: Option<u64>,
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("server", &self.server)
            .field("server_name", &self.server_name)
            .field("client_name", &self.client_name)
            .field("request_timeout", &self.request_timeout)
            .field("connections", &self.connections)
            .field("receive_buffer_bytes", &self.receive_buffer_bytes)
            .field("wait", &self.wait)
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ContextError> {
    std::fs::read(path).map_err(|error| ContextError::Unreadable { path: path.to_path_buf(), kind: error.kind() })
}

impl ClientConfig {
    /// Reads the files of a context.
    pub fn from_context(context: &Context) -> Result<ClientConfig, ContextError> {
        let host = context.host()?;
        let (cert, key) = match (&context.cert, &context.key) {
            (Some(cert), Some(key)) => (Some(read(cert)?), Some(read(key)?)),
            (None, None) => (None, None),
            _ => return Err(ContextError::HalfIdentity),
        };
        let token = context.token.clone().unwrap_or_default().into_bytes();
        if token.len() > TOKEN_BYTES_MAX {
            return Err(ContextError::Setting { name: "token" });
        }
        Ok(ClientConfig {
            server: context.server.clone(),
            server_name: context.server_name.clone().unwrap_or_else(|| host.to_string()),
            ca_pem: read(&context.ca)?,
            cert_chain_pem: cert,
            key_pem: key,
            token,
            client_name: format!("felix-client/{}", env!("CARGO_PKG_VERSION")),
            request_timeout: REQUEST_TIMEOUT,
            connections: 1,
            receive_buffer_bytes: RECEIVE_BUFFER_BYTES,
            wait: Wait::default(),
            seed: None,
        })
    }

    /// Name in the broker's logs and metrics; cut at 128 bytes.
    pub fn client_name(mut self, name: impl Into<String>) -> ClientConfig {
        let mut name: String = name.into();
        let mut end = name.len().min(CLIENT_NAME_BYTES_MAX);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
        self.client_name = name;
        self
    }

    /// Time a request, and the first connection, may take. Default 5 s.
    pub fn request_timeout(mut self, timeout: Duration) -> ClientConfig {
        self.request_timeout = timeout.max(Duration::from_millis(1));
        self
    }

    /// Connections that subscriptions are spread over, 1 to 64. Default 1.
    pub fn connections(mut self, connections: usize) -> ClientConfig {
        self.connections = connections.clamp(1, CONNECTIONS_MAX);
        self
    }

    /// Bytes of deliveries a subscriber holds unread; each shard gets a share, at least two frames of the largest size
    /// (2 MiB). Datagrams for which it has no room are dropped and told as a gap. Default 16 MiB.
    pub fn receive_buffer_bytes(mut self, bytes: usize) -> ClientConfig {
        self.receive_buffer_bytes = bytes.max(FRAME_BYTES_MAX);
        self
    }

    /// How the background thread waits. Default: sleep at once.
    pub fn wait(mut self, wait: Wait) -> ClientConfig {
        self.wait = wait;
        self
    }

    /// Spin for so long before sleeping: `wait(Wait::Spin(duration))`.
    pub fn spin(self, duration: Duration) -> ClientConfig {
        self.wait(Wait::Spin(duration))
    }

    /// Seed of the jitter of reconnects, for tests that repeat.
    pub fn seed(mut self, seed: u64) -> ClientConfig {
        self.seed = Some(seed);
        self
    }

    /// Address of the broker as configured.
    pub fn server(&self) -> &str {
        &self.server
    }
}

/// Which shard a publisher's records go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShardTarget {
    /// By the hash of the key; records without a key go batch by batch to the shards in turn.
    #[default]
    ByKey,
    /// All to this shard.
    Shard(u32),
}

/// Settings of a publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublisherOptions {
    /// Ask for acknowledgements. Without: fire and forget, at most once. Default true.
    pub acks: bool,
    /// Which shard. Default by key.
    pub target: ShardTarget,
    /// Resend after a lost connection without duplicates. Default true; of no effect without acks.
    pub idempotent: bool,
    /// Of batches that are worth it. Default none.
    pub compression: Compression,
    /// Bytes of records that may be in flight. Default 16 MiB.
    pub in_flight_bytes_max: usize,
    /// Time a record may take from `send` to its acknowledgement. Default 30 s.
    pub deadline: Duration,
}

impl Default for PublisherOptions {
    fn default() -> PublisherOptions {
        PublisherOptions {
            acks: true,
            target: ShardTarget::ByKey,
            idempotent: true,
            compression: Compression::None,
            in_flight_bytes_max: IN_FLIGHT_BYTES,
            deadline: PUBLISH_DEADLINE,
        }
    }
}

/// Which shards to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shards {
    /// Every shard, merged in order of arrival.
    #[default]
    All,
    /// One.
    One(u32),
}

/// What to do when the data of a shard was replaced by a new incarnation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReset {
    /// Tell `Item::Reset` and go on from the earliest record of the new incarnation.
    #[default]
    Continue,
    /// End the subscription with `SubscribeError::Reset`.
    Stop,
}

/// Settings of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Which shards. Default all.
    pub shards: Shards,
    /// Where to begin. Default latest. A position is of one shard, so it needs `Shards::One`.
    pub start: Start,
    /// Key filter. Default none.
    pub filter: Option<String>,
    /// When too slow. Default block.
    pub policy: SlowPolicy,
    /// How deliveries travel. Default one stream per connection.
    pub mode: DeliveryMode,
    /// When the data was replaced. Default continue.
    pub on_reset: OnReset,
}

impl Default for SubscribeOptions {
    fn default() -> SubscribeOptions {
        SubscribeOptions {
            shards: Shards::All,
            start: Start::Latest,
            filter: None,
            policy: SlowPolicy::Block,
            mode: DeliveryMode::Shared,
            on_reset: OnReset::Continue,
        }
    }
}
