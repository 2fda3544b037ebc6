//! **What**: NATS JetStream as a publisher sees it: a stream made in the hello, PUB with a reply subject, PubAck.
//!
//! ```text
//! CONNECT, SUB _INBOX.>, PUB $JS.API.STREAM.CREATE.bench _INBOX.made {...}   -> MSG _INBOX.made    {"type":...create_response}
//! PUB bench.stream _INBOX.ack <bytes>                                       -> MSG _INBOX.ack     {"stream":"bench","seq":N}
//! ```
//!
//! **Invariants**: an ack counts only with the sequence that is due; an error of the API ends the run.
//!
//! **Never**: headers, consumers.
//!
//! **See**: `nats.rs`, `start.rs` (sync before the ack).

use super::nats::Nats;
use super::{Piece, Protocol, TOPIC, length, line};
use crate::Error;
use serde_json::Value;
use std::io::Write;

/// JetStream on a file store.
#[derive(Clone, Copy)]
pub struct JetStream;

const MADE: &str = "_INBOX.made";
const ACK: &str = "_INBOX.ack";

impl Protocol for JetStream {
    const GREETING: bool = true;

    fn hello(&self) -> Vec<u8> {
        let stream = format!(
            "{{\"name\":\"bench\",\"subjects\":[\"{TOPIC}\"],\"retention\":\"limits\",\"storage\":\"file\",\"num_replicas\":1,\
             \"max_consumers\":-1,\"max_msgs\":-1,\"max_bytes\":-1,\"discard\":\"old\"}}"
        );
        // Not the PING of the core protocol: what answers is the stream that was made.
        let connect =
            "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"felix-bench\",\"version\":\"1\",\"protocol\":1}";
        format!(
            "{connect}\r\nSUB _INBOX.> 1\r\nPUB $JS.API.STREAM.CREATE.bench {MADE} {}\r\n{stream}\r\n",
            stream.len()
        )
        .into_bytes()
    }

    fn subscribe(&self) -> Vec<u8> {
        Nats.subscribe()
    }

    fn publish(&self, value: &[u8], out: &mut Vec<u8>) {
        // Writing to a Vec does not fail.
        let _ = write!(out, "PUB {TOPIC} {ACK} {}\r\n", value.len());
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }

    fn parse<'a>(&self, bytes: &'a [u8]) -> Result<Option<(usize, Piece<'a>)>, Error> {
        let Some((text, head)) = line(bytes)? else { return Ok(None) };
        let mut words = text.split(|byte| *byte == b' ');
        if words.next() != Some(b"MSG") {
            return Nats.parse(bytes);
        }
        let subject = words.next().unwrap_or_default();
        let value_bytes = length(words.next_back().unwrap_or_default())?;
        let Some(value) = bytes[head..].get(..value_bytes) else { return Ok(None) };
        match bytes[head + value_bytes..].get(..2) {
            Some(b"\r\n") => {}
            Some(_) => return Err("a message longer than it said".into()),
            None => return Ok(None),
        }
        let answer: Value = serde_json::from_slice(value)?;
        if !answer["error"].is_null() {
            return Err(format!("JetStream says {}", answer["error"]).into());
        }
        let piece = match subject {
            _ if subject == MADE.as_bytes() => Piece::Answer,
            _ if subject == ACK.as_bytes() => {
                let sequence = answer["seq"].as_u64().and_then(|it| it.checked_sub(1));
                Piece::Stored(Some(sequence.ok_or_else(|| format!("an ack without a sequence: {answer}"))?))
            }
            other => return Err(format!("a message on {}", String::from_utf8_lossy(other)).into()),
        };
        Ok(Some((head + value_bytes + 2, piece)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::tests::pieces;

    #[test]
    fn whatever_the_cut_the_pieces_are_the_same() {
        let made = r#"{"type":"io.nats.jetstream.api.v1.stream_create_response","config":{}}"#;
        let ack = r#"{"stream":"bench", "seq":7}"#;
        let bytes = format!(
            "PONG\r\nMSG _INBOX.made 1 {}\r\n{made}\r\nMSG _INBOX.ack 1 {}\r\n{ack}\r\nPING\r\n",
            made.len(),
            ack.len()
        );
        let reply = format!("{:?}", Piece::Reply(b"PONG\r\n"));
        assert_eq!(pieces(&JetStream, bytes.as_bytes()), ["Answer", "Answer", "Stored(Some(6))", &reply]);
    }

    #[test]
    fn errors_end_the_run() {
        for bad in [
            r#"{"error":{"code":503,"description":"JetStream not enabled"}}"#,
            r#"{"stream":"bench","seq":3,"error":{"code":500}}"#,
            r#"{"stream":"bench"}"#,
            r#"{"stream":"bench","seq":0}"#,
            "no json",
        ] {
            let bytes = format!("MSG _INBOX.ack 1 {}\r\n{bad}\r\n", bad.len());
            assert!(JetStream.parse(bytes.as_bytes()).is_err(), "{bad}");
        }
        // A stream that was not made.
        let refused = r#"{"type":"io.nats.jetstream.api.v1.stream_create_response","error":{"code":400}}"#;
        assert!(JetStream.parse(format!("MSG {MADE} 1 {}\r\n{refused}\r\n", refused.len()).as_bytes()).is_err());
        assert!(JetStream.parse(b"MSG other 1 2\r\n{}\r\n").is_err());
        assert!(JetStream.parse(b"-ERR 'x'\r\n").is_err());
    }
}
