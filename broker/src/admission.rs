//! **What**: the bounds of sessions, channels, subscriptions and queues of one core, each with a counter when hit.
//!
//! **Invariants**: what a client can make a core hold is the product of these.
//!
//! **Never**: a queue of the broker without a line here.
//!
//! **See**: `felix_protocol::limits` (the wire), `felix_shard::limits` (logs and tails).

/// Bounds of one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Publish channels of a connection.
    pub channels_max: u32,
    /// Subscriptions of a connection.
    pub subscriptions_max: u32,
    /// Requests of a connection that wait for a reply.
    pub requests_max: u32,
    /// Subscriptions of a core.
    pub core_subscriptions_max: usize,
    /// Unsent control bytes of a connection, and unsent ends of its subscriptions; beyond it no further request is read.
    pub control_out_bytes_max: usize,
    /// Unsent ack bytes of a channel; beyond it no further batch is read.
    pub ack_out_bytes_max: usize,
    /// Batches forwarded to one other core and not answered yet; beyond it the channels of that core are not read.
    pub forwarded_max: u32,
    /// Messages handled in one turn before deliveries get their share.
    pub reads_per_turn: usize,
    /// Deliveries of one turn.
    pub deliveries_per_turn: usize,
    /// Bytes written to one stream in one go.
    pub write_bytes_max: usize,
    /// Bytes of batches lent to the connections of a core at a time; beyond it deliveries are copied.
    pub egress_bytes_max: usize,
    /// Time from a connection's handshake to its Hello, ns.
    pub hello_timeout_ns: u64,
    /// Between two reports to the control thread, ns.
    pub report_interval_ns: u64,
}

impl Default for Admission {
    fn default() -> Admission {
        Admission {
            channels_max: 1_024,
            subscriptions_max: 65_536,
            requests_max: 64,
            core_subscriptions_max: 1_000_000,
            control_out_bytes_max: 256 << 10,
            ack_out_bytes_max: 64 << 10,
            forwarded_max: 512,
            reads_per_turn: 1_024,
            deliveries_per_turn: 65_536,
            write_bytes_max: 64 << 10,
            egress_bytes_max: 64 << 20,
            hello_timeout_ns: 5_000_000_000,
            report_interval_ns: 100_000_000,
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a core counted. Plain numbers; the loop copies them into metrics.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct CoreCounters { $($(#[$doc])* pub $name: u64,)* }

        impl CoreCounters {
            /// Every counter by name, for metrics.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }
    };
}

counters! {
    /// Sessions that said Hello.
    sessions_opened,
    /// Sessions refused or closed because the peer broke the protocol.
    protocol_errors,
    /// Sessions that did not say Hello in time.
    hello_timeouts,
    /// Frames received.
    frames_in,
    /// Batches received on channels.
    batches_in,
    /// Batches refused, for whatever reason.
    batches_refused,
    /// Batches forwarded to another core.
    batches_forwarded,
    /// Deliver frames sent.
    deliveries,
    /// Datagrams dropped because the connection's queue was full.
    datagrams_dropped,
    /// Requests refused because of a bound.
    requests_refused,
    /// Requests refused for lack of permission.
    permissions_denied,
    /// Times a channel was not read because of a bound (credit, outbox, forwarded).
    channel_stalls,
    /// Times a commit had to wait because the mesh was full.
    commits_stalled,
    /// Datagrams handed over to the core they belong to.
    datagrams_handed_over,
    /// Datagrams for another core that were dropped because the mesh was full (QUIC sends them again).
    handovers_dropped,
}
