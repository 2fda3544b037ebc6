//! **What**: the error codes a client can see, and what it may do about each.
//!
//! **Invariants**: numbers are stable for ever; an unknown number is kept and treated as `Reject`.
//!
//! **Never**: a code that means two things.
//!
//! **See**: `frame.rs` (Error, SubscriptionClosed), PROTOCOL.md.

use std::fmt;

/// What a client should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Try again later, after `retry_after_ms` if given.
    Retry,
    /// Ask for the route again and go there.
    Redirect,
    /// This request will never succeed as it is.
    Reject,
    /// The connection or channel cannot go on.
    Fatal,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $class:ident;)*) => {
        /// A typed error on the wire. As a QUIC application error code it is the same number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
            /// A code this build does not know (sent by a newer peer).
            Unknown(u16),
        }

        impl ErrorCode {
            /// Every code this build knows.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$name),*];

            /// The number on the wire.
            pub fn number(self) -> u16 {
                match self { $(ErrorCode::$name => $number,)* ErrorCode::Unknown(number) => number }
            }

            /// The code of a number; `Unknown` if this build has no name for it.
            pub fn from_number(number: u16) -> ErrorCode {
                match number { $($number => ErrorCode::$name,)* other => ErrorCode::Unknown(other) }
            }

            /// What a client should do.
            pub fn class(self) -> Class {
                match self { $(ErrorCode::$name => Class::$class,)* ErrorCode::Unknown(_) => Class::Reject }
            }

            /// The name as written in PROTOCOL.md and metrics.
            pub fn name(self) -> &'static str {
                match self { $(ErrorCode::$name => stringify!($name),)* ErrorCode::Unknown(_) => "Unknown" }
            }
        }
    };
}

codes! {
    /// Orderly end, nothing was wrong.
    NoError = 0, Retry;
    /// Bytes that are not a frame: truncated, oversized, lengths that lie, reserved bits.
    MalformedFrame = 1, Fatal;
    /// A frame larger than the limit for its type.
    FrameTooLarge = 2, Fatal;
    /// No version in common.
    UnsupportedVersion = 3, Fatal;
    /// A mandatory TLV or flag this build does not know.
    UnknownMandatoryField = 4, Fatal;
    /// A frame type that is unknown or not allowed on this stream or in this state.
    UnexpectedFrame = 5, Fatal;
    /// The first frame must be Hello, once.
    HandshakeRequired = 6, Fatal;
    /// No valid credentials.
    Unauthenticated = 7, Fatal;
    /// The principal may not do this.
    PermissionDenied = 8, Reject;
    /// The peer belongs to another cluster or region.
    WrongCluster = 9, Fatal;
    /// The broker is shutting down; reconnect elsewhere or later.
    Draining = 10, Retry;
    /// A bound was hit; retry after the time given.
    Overloaded = 11, Retry;
    /// Too many connections, channels, subscriptions or requests.
    TooMany = 12, Retry;
    /// The peer broke flow control: more bytes or frames than credit.
    CreditExceeded = 13, Fatal;
    /// Something broke inside the broker. The outcome is unknown.
    Internal = 14, Retry;
    /// A name that breaks the grammar of PROTOCOL.md.
    InvalidName = 20, Reject;
    /// An argument out of range.
    InvalidArgument = 21, Reject;
    /// No such tenant, namespace, stream or shard.
    NotFound = 22, Reject;
    /// It exists already.
    AlreadyExists = 23, Reject;
    /// It still holds other things.
    NotEmpty = 24, Reject;
    /// Metadata changed since the version given.
    VersionMismatch = 25, Retry;
    /// A feature this build does not have.
    NotSupported = 26, Reject;
    /// A quota or limit of the tenant or stream.
    QuotaExceeded = 27, Retry;
    /// Not the owner of this shard; ask for the route.
    NotOwner = 30, Redirect;
    /// The stream was deleted or made anew.
    StreamGone = 31, Redirect;
    /// A Publish outside an open channel.
    NoChannel = 32, Fatal;
    /// A batch whose bytes do not match their checksum.
    CorruptBatch = 33, Reject;
    /// A batch that breaks the format or the stream's limits.
    InvalidBatch = 34, Reject;
    /// A record whose key does not belong to this shard.
    WrongShard = 35, Reject;
    /// Sequence numbers with a hole.
    SequenceGap = 36, Reject;
    /// A retry whose bytes differ from the first try.
    DuplicateMismatch = 37, Reject;
    /// The producer is not known any more; take a new id.
    UnknownProducer = 38, Reject;
    /// A newer incarnation of this producer exists.
    ProducerFenced = 39, Reject;
    /// The storage of the shard failed or is damaged: it takes nothing more until an operator has looked at it, and whether
    /// a batch that was not acknowledged survives is not known.
    StorageFailed = 40, Reject;
    /// The disk is full; again when there is room.
    DiskFull = 41, Retry;
    /// The position is older than the log's start.
    OffsetTooOld = 50, Reject;
    /// The position is beyond the log's end.
    OffsetInFuture = 51, Reject;
    /// The position belongs to data that no longer exists.
    LineageReset = 52, Reject;
    /// The consumer was too slow for policy `disconnect`.
    SlowConsumer = 53, Reject;
    /// No such subscription.
    UnknownSubscription = 54, Reject;
    /// The subscription id is in use on this connection.
    SubscriptionInUse = 55, Reject;
    /// A key pattern that breaks the grammar.
    InvalidPattern = 56, Reject;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ErrorCode::Unknown(number) => write!(f, "unknown error {number}"),
            known => f.write_str(known.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_distinct_and_round_trip() {
        let mut seen = std::collections::HashSet::new();
        for code in ErrorCode::ALL {
            assert!(seen.insert(code.number()), "{code} shares its number");
            assert_eq!(ErrorCode::from_number(code.number()), *code);
        }
        assert_eq!(ErrorCode::from_number(9_999), ErrorCode::Unknown(9_999));
    }
}
