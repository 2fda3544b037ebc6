//! **What**: clients for the systems that Felix is measured beside: one socket and TLS driver, three small protocols.
//!
//! A driver of our own instead of each system's client library: the libraries bring an async runtime, tasks and queues of
//! their own, so their latency would be measured with the server's, and each in another way. Here all parties are polled by
//! the same loop on the same thread.
//!
//! **Invariants**: every frame is parsed in full; a protocol error ends the run.
//!
//! **Never**: more of a protocol than a measurement needs.
//!
//! **See**: `tcp.rs`, `start.rs` (how the servers are set up).

mod jetstream;
mod mqtt;
mod nats;
mod redis;
mod redis_stream;
pub mod start;
mod tcp;

pub use jetstream::JetStream;
pub use mqtt::Mqtt;
pub use nats::Nats;
pub use redis::Redis;
pub use redis_stream::RedisStream;
pub use tcp::{TcpParty, Tls};

use crate::Error;

/// Subject, channel or topic of every measurement.
pub const TOPIC: &str = "bench.stream";

/// One whole piece of what a server sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A record's value.
    Record(&'a [u8]),
    /// The answer to the hello or to the subscription.
    Answer,
    /// The oldest record under way is stored. Its place in the server's log, where the server tells it: 0, 1, ...
    Stored(Option<u64>),
    /// The server wants these bytes back.
    Reply(&'static [u8]),
    /// Nothing that matters.
    Noted,
}

/// The words of one system.
pub trait Protocol {
    /// The server speaks first, in clear: a line, before TLS.
    const GREETING: bool;
    /// Opens a session; the server sends [`Piece::Answer`] once.
    fn hello(&self) -> Vec<u8>;
    /// Subscribes to [`TOPIC`]; the server sends [`Piece::Answer`] once.
    fn subscribe(&self) -> Vec<u8>;
    /// Appends the publish of one value.
    fn publish(&self, value: &[u8], out: &mut Vec<u8>);
    /// The first whole piece and its length; `None` if more bytes are needed.
    fn parse<'a>(&self, bytes: &'a [u8]) -> Result<Option<(usize, Piece<'a>)>, Error>;
}

/// A line without its CR LF, and the length with it.
fn line(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, Error> {
    match bytes.windows(2).take(LINE_MAX).position(|pair| pair == b"\r\n") {
        Some(end) => Ok(Some((&bytes[..end], end + 2))),
        None if bytes.len() > LINE_MAX => Err("a line without an end".into()),
        None => Ok(None),
    }
}

/// Longest line that a server may send (NATS introduces itself in one).
const LINE_MAX: usize = 16 << 10;
/// Largest message that a server may announce.
const MESSAGE_MAX: usize = 32 << 20;

/// A decimal length, bounded.
fn length(digits: &[u8]) -> Result<usize, Error> {
    let text = std::str::from_utf8(digits)?;
    match text.parse::<usize>()? {
        length if length <= MESSAGE_MAX => Ok(length),
        length => Err(format!("a message of {length} bytes").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses bytes that come in two parts, cut at every place, and lists what was found.
    pub fn pieces(protocol: &impl Protocol, bytes: &[u8]) -> Vec<String> {
        let mut all = Vec::new();
        for cut in 0..=bytes.len() {
            let (mut held, mut found) = (Vec::new(), Vec::new());
            for part in [&bytes[..cut], &bytes[cut..]] {
                held.extend_from_slice(part);
                let mut at = 0;
                while let Some((length, piece)) = protocol.parse(&held[at..]).unwrap() {
                    found.push(format!("{piece:?}"));
                    at += length;
                }
                held.drain(..at);
            }
            assert!(held.is_empty(), "cut at {cut}: {} bytes left", held.len());
            all.push(found);
        }
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "the cut matters: {all:?}");
        all.swap_remove(0)
    }

    #[test]
    fn lines_and_lengths_are_bounded() {
        assert!(line(&vec![b'x'; LINE_MAX + 2]).is_err());
        assert!(line(b"no end yet").unwrap().is_none());
        assert!(length(b"99999999999").is_err());
        assert!(length(b"-1").is_err());
    }
}
