//! **What**: the NATS client protocol: CONNECT, PING, SUB, PUB, MSG.
//!
//! **Invariants**: `verbose` is off, so a publish is not answered; a PING behind CONNECT and SUB shows that they took effect.
//!
//! **Never**: headers, JetStream.
//!
//! **See**: `mod.rs`.

use super::{Piece, Protocol, TOPIC, length, line};
use crate::Error;
use std::io::Write;

/// NATS.
#[derive(Clone, Copy)]
pub struct Nats;

impl Protocol for Nats {
    const GREETING: bool = true;

    fn hello(&self) -> Vec<u8> {
        b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"felix-bench\",\"version\":\"1\",\"protocol\":1}\r\nPING\r\n".to_vec()
    }

    fn subscribe(&self) -> Vec<u8> {
        format!("SUB {TOPIC} 1\r\nPING\r\n").into_bytes()
    }

    fn publish(&self, value: &[u8], out: &mut Vec<u8>) {
        // Writing to a Vec does not fail.
        let _ = write!(out, "PUB {TOPIC} {}\r\n", value.len());
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }

    fn parse<'a>(&self, bytes: &'a [u8]) -> Result<Option<(usize, Piece<'a>)>, Error> {
        let Some((text, head)) = line(bytes)? else { return Ok(None) };
        let piece = match text {
            b"PING" => Piece::Reply(b"PONG\r\n"),
            b"PONG" => Piece::Answer,
            b"+OK" => Piece::Noted,
            _ if text.starts_with(b"INFO ") => Piece::Noted,
            _ if text.starts_with(b"MSG ") => {
                // MSG subject sid [reply-to] bytes
                let digits = text.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
                let value_bytes = length(digits)?;
                let Some(value) = bytes[head..].get(..value_bytes) else { return Ok(None) };
                return match bytes[head + value_bytes..].get(..2) {
                    Some(b"\r\n") => Ok(Some((head + value_bytes + 2, Piece::Record(value)))),
                    Some(_) => Err("a message longer than it said".into()),
                    None => Ok(None),
                };
            }
            other => return Err(format!("NATS says {}", String::from_utf8_lossy(other)).into()),
        };
        Ok(Some((head, piece)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::tests::pieces;

    #[test]
    fn whatever_the_cut_the_pieces_are_the_same() {
        let bytes =
            b"INFO {\"a\":1}\r\nPONG\r\nMSG bench.stream 1 4\r\na\r\nb\r\nMSG s 1 back.to 2\r\nxy\r\nPING\r\n+OK\r\n";
        let record = |value: &[u8]| format!("{:?}", Piece::Record(value));
        assert_eq!(
            pieces(&Nats, bytes),
            [
                "Noted",
                "Answer",
                &record(b"a\r\nb"),
                &record(b"xy"),
                &format!("{:?}", Piece::Reply(b"PONG\r\n")),
                "Noted"
            ]
        );
    }

    #[test]
    fn errors_end_the_run() {
        for bad in [&b"-ERR 'Slow Consumer'\r\n"[..], b"MSG s 1 x\r\n", b"MSG s 1 1\r\nabc", b"MSG s 1 99999999999\r\n"]
        {
            assert!(Nats.parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_publish_says_its_length() {
        let mut out = Vec::new();
        Nats.publish(b"abc", &mut out);
        assert_eq!(out, b"PUB bench.stream 3\r\nabc\r\n");
    }
}
