//! **What**: MQTT 3.1.1 with QoS 0: CONNECT, SUBSCRIBE, PUBLISH.
//!
//! **Invariants**: keep-alive is off, so no PINGREQ is due; a session is clean.
//!
//! **Never**: QoS above 0, retained messages.
//!
//! **See**: `mod.rs`.

use super::{MESSAGE_MAX, Piece, Protocol, TOPIC};
use crate::Error;

/// MQTT.
#[derive(Clone, Copy)]
pub struct Mqtt;

impl Protocol for Mqtt {
    const GREETING: bool = false;

    fn hello(&self) -> Vec<u8> {
        // Level 4, clean session, no keep-alive, an empty client id (the server makes one).
        vec![0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 4, 0x02, 0, 0, 0, 0]
    }

    fn subscribe(&self) -> Vec<u8> {
        let mut out = vec![0x82];
        put_length(2 + 2 + TOPIC.len() + 1, &mut out);
        // Packet id 1, one filter, QoS 0.
        out.extend_from_slice(&[0, 1]);
        put_topic(&mut out);
        out.push(0);
        out
    }

    fn publish(&self, value: &[u8], out: &mut Vec<u8>) {
        out.push(0x30);
        put_length(2 + TOPIC.len() + value.len(), out);
        put_topic(out);
        out.extend_from_slice(value);
    }

    fn parse<'a>(&self, bytes: &'a [u8]) -> Result<Option<(usize, Piece<'a>)>, Error> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let Some((length, used)) = get_length(&bytes[1..])? else { return Ok(None) };
        let head = 1 + used;
        let Some(body) = bytes[head..].get(..length) else { return Ok(None) };
        let piece = match (first, body) {
            // QoS 0: no packet id behind the topic. Duplicate and retain flags would be wrong here.
            (0x30, [high, low, rest @ ..]) => {
                let topic_bytes = usize::from(u16::from_be_bytes([*high, *low]));
                Piece::Record(rest.get(topic_bytes..).ok_or("a topic longer than its packet")?)
            }
            (0x20, [_, 0]) => Piece::Answer,
            (0x90, [0, 1, 0]) => Piece::Answer,
            _ => return Err(format!("the MQTT server sends packet {first:#x} with {length} bytes").into()),
        };
        Ok(Some((head + length, piece)))
    }
}

fn put_topic(out: &mut Vec<u8>) {
    out.extend_from_slice(&(TOPIC.len() as u16).to_be_bytes());
    out.extend_from_slice(TOPIC.as_bytes());
}

/// Seven bits a byte, lowest first, the top bit says that more follow.
fn put_length(mut length: usize, out: &mut Vec<u8>) {
    loop {
        let low = (length & 0x7f) as u8;
        length >>= 7;
        out.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            return;
        }
    }
}

fn get_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Error> {
    let mut length = 0;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return if length <= MESSAGE_MAX {
                Ok(Some((length, at + 1)))
            } else {
                Err(format!("a packet of {length} bytes").into())
            };
        }
    }
    if bytes.len() >= 4 { Err("a length without an end".into()) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::tests::pieces;

    #[test]
    fn whatever_the_cut_the_pieces_are_the_same() {
        let mut bytes = vec![0x20, 2, 0, 0, 0x90, 3, 0, 1, 0];
        let value = vec![7; 300];
        Mqtt.publish(&value, &mut bytes);
        Mqtt.publish(b"", &mut bytes);
        let record = |value: &[u8]| format!("{:?}", Piece::Record(value));
        assert_eq!(pieces(&Mqtt, &bytes), ["Answer", "Answer", &record(&value), &record(b"")]);
    }

    #[test]
    fn errors_end_the_run() {
        for bad in [
            &[0x20, 2, 0, 5][..],
            &[0x90, 3, 0, 1, 0x80],
            &[0x30, 3, 0, 9, 1],
            &[0x30, 0xff, 0xff, 0xff, 0xff],
            &[0x30, 0xff, 0xff, 0xff, 0x7f],
            &[0xd0, 0],
        ] {
            assert!(Mqtt.parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lengths_go_there_and_back() {
        for length in [0, 127, 128, 16_383, 16_384, 2_097_152] {
            let mut out = Vec::new();
            put_length(length, &mut out);
            assert_eq!(get_length(&out).unwrap(), Some((length, out.len())));
        }
    }
}
