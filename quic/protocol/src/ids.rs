//! **What**: a type of its own for every number that names something.
//!
//! **Invariants**: ids are never reused; zero is never a valid stream, shard or producer id.
//!
//! **Never**: two arguments of one bare integer type side by side.
//!
//! **See**: `names.rs` for what users type.

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(/// A stream, for life. Given by metadata; a stream made anew under an old name gets a new one.
    StreamId(u64));
id!(/// A shard's log, unique in the cluster. Streams of one colocation group share it.
    ShardId(u64));
id!(/// Place of a shard within its stream, `0..shard_count`.
    ShardIndex(u32));
id!(/// A core (pinned executor) of one broker, `0..core_count`.
    CoreId(u8));
id!(/// An idempotent producer. Zero: anonymous, no deduplication.
    ProducerId(u64));
id!(/// Incarnation of a producer; a higher one fences the lower.
    ProducerEpoch(u32));
id!(/// Number of a record within (producer, epoch, shard), from 0 upward. Also counts on anonymous channels.
    Sequence(u64));
id!(/// A request on a connection, chosen by the client; its reply carries it. Zero: no reply wanted or not a reply.
    RequestId(u32));
id!(/// A subscription on a connection, chosen by the client.
    SubscriptionId(u32));
id!(/// One start of a broker process; greater after every start.
    NodeSession(u64));
id!(/// Key of an end-to-end encrypted batch. Zero: not encrypted.
    KeyId(u32));

/// Identity of a cluster: 128 random bits made once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClusterId(pub u128);

/// Identity of a node: 128 random bits kept on its volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeId(pub u128);
