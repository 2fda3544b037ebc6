//! **What**: Redis Streams as a producer sees them: XADD, pipelined, and its answer, the entry's id.
//!
//! **Invariants**: Redis answers in order; an answer that is an error ends the run.
//!
//! **Never**: consumer groups, MAXLEN.
//!
//! **See**: `redis.rs`, `start.rs` (`appendfsync always`: the answer leaves after the sync).

use super::redis::{Redis, bulk};
use super::{Piece, Protocol, TOPIC};
use crate::Error;
use std::io::Write;

/// XADD to one stream.
#[derive(Clone, Copy)]
pub struct RedisStream;

impl Protocol for RedisStream {
    const GREETING: bool = false;

    fn hello(&self) -> Vec<u8> {
        Redis.hello()
    }

    fn subscribe(&self) -> Vec<u8> {
        Redis.subscribe()
    }

    fn publish(&self, value: &[u8], out: &mut Vec<u8>) {
        // Writing to a Vec does not fail.
        let _ = write!(
            out,
            "*5\r\n$4\r\nXADD\r\n${}\r\n{TOPIC}\r\n$1\r\n*\r\n$1\r\nv\r\n${}\r\n",
            TOPIC.len(),
            value.len()
        );
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }

    fn parse<'a>(&self, bytes: &'a [u8]) -> Result<Option<(usize, Piece<'a>)>, Error> {
        if bytes.first() != Some(&b'$') {
            return Redis.parse(bytes);
        }
        let Some((id, used)) = bulk(bytes)? else { return Ok(None) };
        match id.contains(&b'-') {
            true => Ok(Some((used, Piece::Stored(None)))),
            false => Err(format!("Redis says {} where an id is due", String::from_utf8_lossy(id)).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::tests::pieces;

    #[test]
    fn whatever_the_cut_the_pieces_are_the_same() {
        let bytes = b"+PONG\r\n$15\r\n1526919030474-0\r\n$15\r\n1526919030474-1\r\n";
        assert_eq!(pieces(&RedisStream, bytes), ["Answer", "Stored(None)", "Stored(None)"]);
    }

    #[test]
    fn errors_end_the_run() {
        for bad in [&b"-MISCONF Errors writing to the AOF file\r\n"[..], b"$2\r\nxy\r\n", b"$-1\r\n"] {
            assert!(RedisStream.parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_publish_says_its_lengths() {
        let mut out = Vec::new();
        RedisStream.publish(b"abc", &mut out);
        assert_eq!(out, b"*5\r\n$4\r\nXADD\r\n$12\r\nbench.stream\r\n$1\r\n*\r\n$1\r\nv\r\n$3\r\nabc\r\n");
    }
}
