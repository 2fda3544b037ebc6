//! **What**: the errors of the public calls, one small enum per operation.
//!
//! **Invariants**: "refused" means that it did not happen; "unknown outcome" means that it may have happened. Every
//! text says what was wrong and what to do.
//!
//! **Never**: a foreign error type, text to match on.
//!
//! **See**: `violation.rs` for what a broker can do wrong, `felix_protocol::error_code` for what it can say.

use crate::context::ContextError;
use crate::violation::Violation;
use felix_protocol::batch_builder::PushError;
use felix_protocol::error_code::{Class, ErrorCode};
use std::fmt;
use std::time::Duration;

fn advice(class: Class) -> &'static str {
    match class {
        Class::Retry => "try again later",
        Class::Redirect => "ask for the route again and retry",
        Class::Reject => "change the request; repeating it will not help",
        Class::Fatal => "check that client and broker versions and credentials match",
    }
}

/// Why no connection came about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectError {
    /// The context or configuration cannot be used.
    Config(ContextError),
    /// The address cannot be resolved.
    Address {
        /// What was configured.
        server: String,
    },
    /// The operating system refused a socket or thread.
    System {
        /// Which call.
        call: &'static str,
        /// What it said.
        kind: std::io::ErrorKind,
    },
    /// Nobody listens there.
    Unreachable {
        /// What was configured.
        server: String,
    },
    /// No Welcome within the request timeout.
    TimedOut {
        /// What was configured.
        server: String,
        /// Time waited.
        after: Duration,
    },
    /// The TLS handshake failed.
    Tls {
        /// TLS alert number (RFC 8446 section 6), if there was one.
        alert: Option<u8>,
    },
    /// The broker turned the client away.
    Refused {
        /// Why.
        code: ErrorCode,
        /// For people.
        detail: String,
    },
    /// The broker broke the protocol.
    Protocol(Violation),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Config(error) => error.fmt(f),
            ConnectError::Address { server } => {
                write!(f, "the server address {server:?} cannot be resolved; use host:port")
            }
            ConnectError::System { call, kind } => {
                write!(f, "the system refused {call}: {kind}; check limits on sockets, memory and threads")
            }
            ConnectError::Unreachable { server } => {
                write!(f, "nobody listens at {server}; check the address and that the broker runs")
            }
            ConnectError::TimedOut { server, after } => write!(
                f,
                "no answer from {server} within {} ms; check the address, that UDP passes, and that the broker runs",
                after.as_millis()
            ),
            ConnectError::Tls { alert } => {
                let what = match alert {
                    Some(42..=46) => "a certificate was not accepted",
                    Some(48) => "the certificate authority is not known to the other side",
                    Some(112) => "the server does not have this name",
                    Some(116) => "the broker asks for a client certificate",
                    Some(120) => "the server does not speak felix/1",
                    _ => "the two sides found nothing in common",
                };
                write!(f, "the TLS handshake failed: {what}")?;
                if let Some(alert) = alert {
                    write!(f, " (alert {alert})")?;
                }
                f.write_str("; check ca, cert, key and server_name of the context")
            }
            ConnectError::Refused { code, detail } => {
                write!(f, "the broker refused the connection ({code}): {detail}; {}", advice(code.class()))
            }
            ConnectError::Protocol(violation) => write!(f, "{violation}; check what listens at this address"),
        }
    }
}

impl std::error::Error for ConnectError {}

impl From<ContextError> for ConnectError {
    fn from(error: ContextError) -> ConnectError {
        ConnectError::Config(error)
    }
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestError {
    /// The broker refused it: it did not happen.
    Refused {
        /// Why.
        code: ErrorCode,
        /// For people.
        detail: String,
        /// When to try again, for class Retry; 0: at will.
        retry_after_ms: u32,
    },
    /// No answer within the deadline.
    TimedOut {
        /// It is a write and was sent: it may have happened. Repeating it with the same content is safe where the
        /// command itself is (creating what exists is refused, not repeated).
        outcome_unknown: bool,
        /// Time waited.
        after: Duration,
    },
    /// The client was closed.
    Disconnected {
        /// It is a write and was sent: it may have happened.
        outcome_unknown: bool,
    },
    /// The broker broke the protocol.
    Protocol {
        /// How.
        violation: Violation,
    },
}

impl RequestError {
    /// The broker's code, if it answered.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            RequestError::Refused { code, .. } => Some(*code),
            RequestError::Protocol { violation } => Some(violation.code()),
            _ => None,
        }
    }

    /// Whether the request may have had its effect.
    pub fn outcome_unknown(&self) -> bool {
        matches!(
            self,
            RequestError::TimedOut { outcome_unknown: true, .. } | RequestError::Disconnected { outcome_unknown: true }
        )
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestError::Refused { code, detail, retry_after_ms } => {
                write!(f, "the broker refused the request ({code}): {detail}; {}", advice(code.class()))?;
                if *retry_after_ms > 0 { write!(f, " (after {retry_after_ms} ms)") } else { Ok(()) }
            }
            RequestError::TimedOut { outcome_unknown, after } => {
                write!(f, "no answer within {} ms; ", after.as_millis())?;
                f.write_str(match outcome_unknown {
                    true => "the change may or may not have happened: look before you repeat it",
                    false => "nothing was changed: check that the broker runs, then try again",
                })
            }
            RequestError::Disconnected { outcome_unknown } => {
                f.write_str("the client was closed before the answer came; ")?;
                f.write_str(match outcome_unknown {
                    true => "the change may or may not have happened: look before you repeat it",
                    false => "nothing was changed",
                })
            }
            RequestError::Protocol { violation } => write!(f, "{violation}; report this with both versions"),
        }
    }
}

impl std::error::Error for RequestError {}

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// The publisher's bound on bytes in flight is reached.
    WouldBlock,
    /// The bound on bytes in flight stayed reached until the deadline.
    TimedOut,
    /// The record breaks a limit.
    Invalid(PushError),
    /// The record is over the stream's own limit.
    TooLarge {
        /// Bytes it needs.
        bytes: usize,
        /// Bytes a batch of this stream may have.
        max: usize,
    },
    /// The client or publisher was closed.
    Closed,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::WouldBlock => {
                f.write_str("too many bytes are in flight; wait for acknowledgements or raise in_flight_bytes_max")
            }
            SendError::TimedOut => f.write_str(
                "too many bytes were in flight until the deadline; the record was not sent: check the broker, then retry",
            ),
            SendError::Invalid(error) => write!(f, "the record cannot be sent: {error}; change it"),
            SendError::TooLarge { bytes, max } => {
                write!(f, "the record needs {bytes} bytes, the stream takes {max}; split it or raise batch_bytes_max")
            }
            SendError::Closed => f.write_str("the publisher is closed; open another one"),
        }
    }
}

impl std::error::Error for SendError {}

/// Why it is not known whether a record is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownReason {
    /// It was sent and not acknowledged before its deadline.
    Deadline,
    /// The connection was lost and, without an idempotent producer, sending again could duplicate it.
    ConnectionLost,
    /// The broker forgot this producer, so a repeat could not be recognised.
    ProducerForgotten,
    /// The client was closed.
    Closed,
    /// The storage of the shard failed while the record was on its way to the disk.
    StorageFailed,
}

/// What became of a record that was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublishError {
    /// It is not in the log and never will be.
    Rejected {
        /// Why.
        code: ErrorCode,
        /// For people.
        detail: String,
    },
    /// The deadline passed before it was sent. It is not in the log and never will be.
    Expired,
    /// It may or may not be in the log.
    UnknownOutcome {
        /// Why that is not known.
        reason: UnknownReason,
    },
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PublishError::Rejected { code, detail } => {
                write!(f, "the broker refused the record ({code}): {detail}; {}", advice(code.class()))
            }
            PublishError::Expired => {
                f.write_str("the deadline passed before the record was sent; it was not published: retry")
            }
            PublishError::UnknownOutcome { reason } => {
                f.write_str(match reason {
                    UnknownReason::Deadline => "no acknowledgement came before the deadline",
                    UnknownReason::ConnectionLost => "the connection was lost without an acknowledgement",
                    UnknownReason::ProducerForgotten => "the broker forgot this producer before it acknowledged",
                    UnknownReason::Closed => "the client was closed before an acknowledgement came",
                    UnknownReason::StorageFailed => "the broker's storage failed before it could acknowledge",
                })?;
                f.write_str("; the record may or may not be published: look, or make its effect idempotent and retry")
            }
        }
    }
}

impl std::error::Error for PublishError {}

/// Why a flush did not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FlushError {
    /// Records are still in flight at the deadline.
    TimedOut {
        /// How many.
        records: u64,
    },
    /// The client was closed.
    Closed,
}

impl fmt::Display for FlushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FlushError::TimedOut { records } => {
                write!(f, "{records} records are still in flight at the deadline; check the broker and flush again")
            }
            FlushError::Closed => f.write_str("the publisher is closed; open another one"),
        }
    }
}

impl std::error::Error for FlushError {}

/// Why a subscription ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The broker ended it or would not start it.
    Refused {
        /// Shard of the stream.
        shard: felix_protocol::ids::ShardIndex,
        /// Why.
        code: ErrorCode,
        /// For people.
        detail: String,
    },
    /// The data was replaced by a new incarnation and `OnReset::Stop` was asked for.
    Reset {
        /// Shard of the stream.
        shard: felix_protocol::ids::ShardIndex,
        /// Where the subscription was.
        old: felix_protocol::position::Position,
    },
    /// The broker broke the protocol.
    Protocol(Violation),
    /// The client was closed.
    Closed,
}

impl fmt::Display for SubscribeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SubscribeError::Refused { shard, code, detail } => {
                write!(f, "the subscription to shard {shard} ended ({code}): {detail}; {}", advice(code.class()))
            }
            SubscribeError::Reset { shard, old } => write!(
                f,
                "the data of shard {shard} was replaced (lineage {} is gone at offset {}); start again from earliest",
                old.lineage.0, old.offset
            ),
            SubscribeError::Protocol(violation) => write!(f, "{violation}; report this with both versions"),
            SubscribeError::Closed => f.write_str("the client was closed; connect again"),
        }
    }
}

impl std::error::Error for SubscribeError {}
