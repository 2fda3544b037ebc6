//! **What**: bytes and times as text: JSON strings, base64 for what is no text, RFC 3339 with nanoseconds.
//!
//! **Invariants**: what is written is valid JSON on one line, whatever the bytes are.
//!
//! **Never**: a lossy conversion.
//!
//! **See**: `record.rs`, which puts records together from these.

use felix_client::protocol::time::Timestamp;
use serde::{Serialize, Serializer};
use time::OffsetDateTime;

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Appends bytes in base64 (RFC 4648 section 4, padded).
pub fn put_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.chunks(3) {
        let mut word = [0u8; 3];
        word[..chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes([0, word[0], word[1], word[2]]);
        for place in 0..4 {
            let sextet = (word >> (18 - 6 * place)) & 63;
            out.push(if place <= chunk.len() { BASE64[sextet as usize] } else { b'=' });
        }
    }
}

/// Appends a JSON string.
pub fn put_json_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a Vec takes every write and a str is always JSON");
}

/// Appends bytes as a JSON string if they are UTF-8, else as `{"base64":"..."}`.
pub fn put_json_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => put_json_string(out, text),
        Err(_) => {
            out.extend_from_slice(b"{\"base64\":\"");
            put_base64(out, bytes);
            out.extend_from_slice(b"\"}");
        }
    }
}

/// Appends a decimal number.
pub fn put_number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut left = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// A time as RFC 3339 in UTC with nine digits of a second.
pub fn show_time(time: Timestamp) -> String {
    // The range of Timestamp (1970 to 2554) is within that of OffsetDateTime.
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(time.0)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.nanosecond()
    )
}

/// A time for tables: to the second.
pub fn show_time_short(time: Timestamp) -> String {
    let mut text = show_time(time);
    text.truncate("2026-01-31T12:00:00".len());
    text + "Z"
}

/// Serialises a time as [`show_time`] shows it.
pub fn serialize_time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    show_time(*time).serialize(serializer)
}

/// This machine's wall clock.
pub fn now() -> Timestamp {
    let age = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp(age.map_or(0, |age| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base64(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        put_base64(&mut out, bytes);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn base64_vectors_of_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xef, 0xbe]), "/+++");
    }

    #[test]
    fn bytes_as_json() {
        for (bytes, json) in [
            (&b"plain"[..], "\"plain\""),
            (b"", "\"\""),
            (b"a\"b\\c\n\x01", r#""a\"b\\c\n\u0001""#),
            ("grün".as_bytes(), "\"grün\""),
            (b"\xff\xfe", r#"{"base64":"//4="}"#),
        ] {
            let mut out = Vec::new();
            put_json_bytes(&mut out, bytes);
            assert_eq!(String::from_utf8(out).unwrap(), json);
        }
    }

    #[test]
    fn numbers() {
        for number in [0, 9, 10, 12_345, u64::MAX] {
            let mut out = Vec::new();
            put_number(&mut out, number);
            assert_eq!(out, number.to_string().into_bytes());
        }
    }

    #[test]
    fn times() {
        for (ns, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_769_860_800_123_456_789, "2026-01-31T12:00:00.123456789Z"),
            (u64::MAX, "2554-07-21T23:34:33.709551615Z"),
        ] {
            assert_eq!(show_time(Timestamp(ns)), text);
        }
        assert_eq!(show_time_short(Timestamp(1_769_860_800_123_456_789)), "2026-01-31T12:00:00Z");
    }
}
