//! **What**: RESP2, as much as pub/sub needs: PING, SUBSCRIBE, PUBLISH.
//!
//! **Invariants**: PUBLISH is pipelined; its answers (how many got it) are read and not waited for.
//!
//! **Never**: nested arrays.
//!
//! **See**: `mod.rs`.

use super::{Piece, Protocol, TOPIC, length, line};
use crate::Error;
use std::io::Write;

/// Redis.
#[derive(Clone, Copy)]
pub struct Redis;

/// Elements of the longest array that pub/sub sends.
const ELEMENTS_MAX: usize = 4;

impl Protocol for Redis {
    const GREETING: bool = false;

    fn hello(&self) -> Vec<u8> {
        b"*1\r\n$4\r\nPING\r\n".to_vec()
    }

    fn subscribe(&self) -> Vec<u8> {
        format!("*2\r\n$9\r\nSUBSCRIBE\r\n${}\r\n{TOPIC}\r\n", TOPIC.len()).into_bytes()
    }

    fn publish(&self, value: &[u8], out: &mut Vec<u8>) {
        // Writing to a Vec does not fail.
        let _ = write!(out, "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{TOPIC}\r\n${}\r\n", TOPIC.len(), value.len());
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }

    fn parse<'a>(&self, bytes: &'a [u8]) -> Result<Option<(usize, Piece<'a>)>, Error> {
        let Some((text, mut at)) = line(bytes)? else { return Ok(None) };
        let count = match text.first() {
            Some(b'+') if text == b"+PONG" => return Ok(Some((at, Piece::Answer))),
            Some(b':') => return Ok(Some((at, Piece::Noted))),
            Some(b'*') => length(&text[1..])?,
            _ => return Err(format!("Redis says {}", String::from_utf8_lossy(text)).into()),
        };
        if count > ELEMENTS_MAX {
            return Err(format!("an array of {count} elements").into());
        }
        let mut elements = [&b""[..]; ELEMENTS_MAX];
        for element in elements.iter_mut().take(count) {
            let Some((value, used)) = bulk(&bytes[at..])? else { return Ok(None) };
            *element = value;
            at += used;
        }
        match elements[0] {
            b"message" if count == 3 => Ok(Some((at, Piece::Record(elements[2])))),
            b"subscribe" if count == 3 => Ok(Some((at, Piece::Answer))),
            other => Err(format!("Redis sends {}", String::from_utf8_lossy(other)).into()),
        }
    }
}

/// A bulk string or a number.
pub(super) fn bulk(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, Error> {
    let Some((text, head)) = line(bytes)? else { return Ok(None) };
    match text.first() {
        Some(b':') => Ok(Some((&text[1..], head))),
        Some(b'$') => {
            let value_bytes = length(&text[1..])?;
            let Some(value) = bytes[head..].get(..value_bytes) else { return Ok(None) };
            match bytes[head + value_bytes..].get(..2) {
                Some(b"\r\n") => Ok(Some((value, head + value_bytes + 2))),
                Some(_) => Err("a string longer than it said".into()),
                None => Ok(None),
            }
        }
        _ => Err(format!("Redis sends {}", String::from_utf8_lossy(text)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::tests::pieces;

    #[test]
    fn whatever_the_cut_the_pieces_are_the_same() {
        let bytes = b"+PONG\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$4\r\na\r\nb\r\n:17\r\n";
        assert_eq!(pieces(&Redis, bytes), ["Answer", "Answer", &format!("{:?}", Piece::Record(b"a\r\nb")), "Noted"]);
    }

    #[test]
    fn errors_end_the_run() {
        for bad in [
            &b"-ERR unknown command\r\n"[..],
            b"*9\r\n",
            b"*1\r\n*1\r\n",
            b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nabc\r\n",
            b"*1\r\n$99999999999\r\n",
            b"*3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:0\r\n",
        ] {
            assert!(Redis.parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_publish_says_its_lengths() {
        let mut out = Vec::new();
        Redis.publish(b"abc", &mut out);
        assert_eq!(out, b"*3\r\n$7\r\nPUBLISH\r\n$12\r\nbench.stream\r\n$3\r\nabc\r\n");
    }
}
