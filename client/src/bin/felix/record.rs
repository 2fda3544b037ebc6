//! **What**: one delivered record as a line: JSON with a fixed set of fields, or the value alone.
//!
//! ```text
//! json      {"stream":..,"shard":0,"offset":7,"time":"..Z","key":..,"value":..}
//! verbose   the same and "lineage":1,"headers":{..},"ttl":"5s"
//! plain     VALUE          with key: KEY TAB VALUE
//! ```
//!
//! **Invariants**: the fields, their names and their order are a contract with scripts. Key and value are strings when
//! they are UTF-8, else `{"base64":..}`; a missing key, a deleted value and a missing TTL are null.
//!
//! **Never**: an allocation per record beyond the one buffer.
//!
//! **See**: `subscribe.rs`, which feeds it.

use crate::text::{put_json_bytes, put_json_string, put_number, show_time};
use crate::units::show_duration;
use felix_client::protocol::time::Timestamp;
use serde::de::IgnoredAny;
use std::time::Duration;

/// A record to show, borrowed from its batch.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// Shard of the stream.
    pub shard: u32,
    /// Offset in the shard.
    pub offset: u64,
    /// Incarnation of the data.
    pub lineage: u32,
    /// Producer's clock.
    pub time: Timestamp,
    /// Key.
    pub key: Option<&'a [u8]>,
    /// Value; None: the key was deleted.
    pub value: Option<&'a [u8]>,
    /// Header pairs.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Time to live.
    pub ttl_ms: Option<u64>,
}

/// How records are shown.
#[derive(Clone, Debug)]
pub struct RecordFormat {
    /// The stream's name as a JSON string, made once.
    stream: Vec<u8>,
    json: bool,
    verbose: bool,
    parse_json: bool,
    with_key: bool,
}

impl RecordFormat {
    /// JSON lines. `parse_json`: a value that is JSON is put in as it is, not as a string.
    pub fn json(stream: &str, verbose: bool, parse_json: bool) -> RecordFormat {
        let mut name = Vec::new();
        put_json_string(&mut name, stream);
        RecordFormat { stream: name, json: true, verbose, parse_json, with_key: false }
    }

    /// Values, each followed by a newline; with the key and a tab in front if asked.
    pub fn plain(with_key: bool) -> RecordFormat {
        RecordFormat { stream: Vec::new(), json: false, verbose: false, parse_json: false, with_key }
    }

    /// Whether headers are shown at all, so that nobody reads them in vain.
    pub fn wants_headers(&self) -> bool {
        self.json && self.verbose
    }

    /// Appends the line of a record.
    pub fn put(&self, out: &mut Vec<u8>, record: &Shown<'_>) {
        if self.json {
            self.put_json(out, record)
        } else {
            self.put_plain(out, record)
        }
        out.push(b'\n');
    }

    fn put_plain(&self, out: &mut Vec<u8>, record: &Shown<'_>) {
        if self.with_key {
            out.extend_from_slice(record.key.unwrap_or_default());
            out.push(b'\t');
        }
        out.extend_from_slice(record.value.unwrap_or_default());
    }

    fn put_json(&self, out: &mut Vec<u8>, record: &Shown<'_>) {
        out.extend_from_slice(b"{\"stream\":");
        out.extend_from_slice(&self.stream);
        out.extend_from_slice(b",\"shard\":");
        put_number(out, u64::from(record.shard));
        out.extend_from_slice(b",\"offset\":");
        put_number(out, record.offset);
        out.extend_from_slice(b",\"time\":\"");
        out.extend_from_slice(show_time(record.time).as_bytes());
        out.extend_from_slice(b"\",\"key\":");
        put_or_null(out, record.key, put_json_bytes);
        out.extend_from_slice(b",\"value\":");
        put_or_null(out, record.value, |out, value| match self.parse_json && is_json(value) {
            true => put_json_document(out, value),
            false => put_json_bytes(out, value),
        });
        if self.verbose {
            out.extend_from_slice(b",\"lineage\":");
            put_number(out, u64::from(record.lineage));
            out.extend_from_slice(b",\"headers\":{");
            for (number, (name, value)) in record.headers.iter().enumerate() {
                if number > 0 {
                    out.push(b',');
                }
                put_json_string(out, name);
                out.push(b':');
                put_json_bytes(out, value);
            }
            out.extend_from_slice(b"},\"ttl\":");
            let ttl = record.ttl_ms.map(|ms| show_duration(Duration::from_millis(ms)));
            put_or_null(out, ttl.as_deref(), put_json_string);
        }
        out.push(b'}');
    }
}

fn put_or_null<T: ?Sized>(out: &mut Vec<u8>, value: Option<&T>, put: impl FnOnce(&mut Vec<u8>, &T)) {
    match value {
        Some(value) => put(out, value),
        None => out.extend_from_slice(b"null"),
    }
}

fn is_json(value: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(value).is_ok() && std::str::from_utf8(value).is_ok()
}

/// Appends a checked JSON document on one line. Outside of strings a line break is only space, inside it is not JSON.
fn put_json_document(out: &mut Vec<u8>, document: &[u8]) {
    out.extend(document.trim_ascii().iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record<'a>() -> Shown<'a> {
        Shown {
            shard: 1,
            offset: 42,
            lineage: 3,
            time: Timestamp(1_769_860_800_000_000_007),
            key: Some(b"XNAS.AAPL"),
            value: Some(b"{\"bid\":1.50}"),
            headers: &[],
            ttl_ms: None,
        }
    }

    fn line(format: &RecordFormat, record: &Shown<'_>) -> String {
        let mut out = Vec::new();
        format.put(&mut out, record);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_lines_to_the_byte() {
        let format = RecordFormat::json("acme/md/quotes", false, false);
        assert_eq!(
            line(&format, &record()),
            concat!(
                r#"{"stream":"acme/md/quotes","shard":1,"offset":42,"time":"2026-01-31T12:00:00.000000007Z","#,
                r#""key":"XNAS.AAPL","value":"{\"bid\":1.50}"}"#,
                "\n"
            )
        );
        let binary = Shown { key: None, value: Some(b"\xff"), ..record() };
        assert_eq!(
            line(&format, &binary),
            concat!(
                r#"{"stream":"acme/md/quotes","shard":1,"offset":42,"time":"2026-01-31T12:00:00.000000007Z","#,
                r#""key":null,"value":{"base64":"/w=="}}"#,
                "\n"
            )
        );
    }

    #[test]
    fn verbose_json_has_the_rest() {
        let format = RecordFormat::json("a/b/c", true, false);
        let record =
            Shown { value: None, headers: &[("trace", b"01"), ("bin", b"\x80")], ttl_ms: Some(5_000), ..record() };
        assert_eq!(
            line(&format, &record),
            concat!(
                r#"{"stream":"a/b/c","shard":1,"offset":42,"time":"2026-01-31T12:00:00.000000007Z","key":"XNAS.AAPL","#,
                r#""value":null,"lineage":3,"headers":{"trace":"01","bin":{"base64":"gA=="}},"ttl":"5s"}"#,
                "\n"
            )
        );
        assert!(line(&format, &super::tests::record()).ends_with(",\"headers\":{},\"ttl\":null}\n"));
    }

    #[test]
    fn values_that_are_json_on_demand() {
        let format = RecordFormat::json("a/b/c", false, true);
        for (value, expected) in [
            (&b"{\"bid\":1.50}"[..], "{\"bid\":1.50}"),
            (b"[1,\n2]\r\n", "[1, 2]"),
            (b"3", "3"),
            (b"not json", "\"not json\""),
            (b"{\"a\":1} trailing", "\"{\\\"a\\\":1} trailing\""),
            (b"\"\xff\"", "{\"base64\":\"Iv8i\"}"),
            (b"", "\"\""),
        ] {
            let line = line(&format, &Shown { value: Some(value), ..record() });
            assert!(line.ends_with(&format!(",\"value\":{expected}}}\n")), "{line}");
            assert_eq!(line.matches('\n').count(), 1);
            serde_json::from_str::<serde_json::Value>(&line).unwrap();
        }
    }

    #[test]
    fn plain_lines() {
        let bytes = Shown { value: Some(b"\xffx"), ..record() };
        let mut out = Vec::new();
        RecordFormat::plain(false).put(&mut out, &bytes);
        assert_eq!(out, b"\xffx\n");
        out.clear();
        RecordFormat::plain(true).put(&mut out, &bytes);
        assert_eq!(out, b"XNAS.AAPL\t\xffx\n");
        out.clear();
        RecordFormat::plain(true).put(&mut out, &Shown { key: None, value: None, ..record() });
        assert_eq!(out, b"\t\n");
    }
}
