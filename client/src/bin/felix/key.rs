//! **What**: the key of a line that `pub` reads: none, always the same, a field of a JSON object, or what is in front
//! of a separator.
//!
//! **Invariants**: with a separator the value is what follows it; otherwise the value is the whole line, untouched.
//!
//! **Never**: two spellings of one key. So a field that is a fraction is refused: 1.0 and 1e0 would be two keys.
//!
//! **See**: `publish.rs`.

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// Where keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// Records have no key.
    None,
    /// Every record has this one.
    Fixed(Vec<u8>),
    /// This field of the JSON object on the line: a string, an integer or a boolean.
    Field(String),
    /// What is in front of these bytes.
    Separator(Vec<u8>),
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadLine {
    /// Not a JSON object.
    NotJson {
        /// Byte of the line, from 1.
        column: usize,
        /// What the parser said.
        detail: String,
    },
    /// JSON without the field.
    NoField {
        /// Its name.
        name: String,
    },
    /// The field holds something that makes no key.
    NoKey {
        /// Its name.
        name: String,
        /// What it holds.
        found: &'static str,
    },
    /// No separator on the line.
    NoSeparator,
    /// Longer than a record can be.
    TooLong {
        /// Bytes allowed.
        max: usize,
    },
    /// The client would not take the record.
    Refused(felix_client::SendError),
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadLine::NotJson { column, detail } => write!(f, "not a JSON object, at byte {column}: {detail}"),
            BadLine::NoField { name } => write!(f, "no field {name:?}"),
            BadLine::NoKey { name, found } => {
                write!(f, "field {name:?} is {found}; a key is a string, an integer or a boolean")
            }
            BadLine::NoSeparator => f.write_str("no separator between key and value"),
            BadLine::TooLong { max } => write!(f, "longer than {max} bytes, the most a record can have"),
            BadLine::Refused(error) => error.fmt(f),
        }
    }
}

/// A key, if there is one, and a value.
pub type KeyAndValue<'a> = (Option<Cow<'a, [u8]>>, &'a [u8]);

impl KeySource {
    /// Key and value of a line.
    pub fn split<'a>(&'a self, line: &'a [u8]) -> Result<KeyAndValue<'a>, BadLine> {
        match self {
            KeySource::None => Ok((None, line)),
            KeySource::Fixed(key) => Ok((Some(Cow::Borrowed(key)), line)),
            KeySource::Field(name) => Ok((Some(field(line, name)?), line)),
            KeySource::Separator(separator) => {
                let at = line.windows(separator.len()).position(|window| window == separator);
                let at = at.ok_or(BadLine::NoSeparator)?;
                Ok((Some(Cow::Borrowed(&line[..at])), &line[at + separator.len()..]))
            }
        }
    }
}

/// Reads a separator: the usual escapes `\t \n \r \0 \\ \xNN`, so that it can be typed in any shell.
pub fn parse_separator(text: &str) -> Result<Vec<u8>, String> {
    let bad = || format!("{text:?} is no separator; write one or more characters, or \\t, \\0, \\x1f");
    let mut bytes = Vec::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        bytes.push(match chars.next().ok_or_else(bad)? {
            't' => b'\t',
            'n' => b'\n',
            'r' => b'\r',
            '0' => 0,
            '\\' => b'\\',
            'x' => {
                let digits: String = chars.by_ref().take(2).collect();
                let valid = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                valid.then(|| u8::from_str_radix(&digits, 16).ok()).flatten().ok_or_else(bad)?
            }
            _ => return Err(bad()),
        });
    }
    if bytes.is_empty() { Err(bad()) } else { Ok(bytes) }
}

/// What a field holds.
enum Found<'a> {
    Key(Cow<'a, [u8]>),
    Other(&'static str),
}

fn field<'a>(line: &'a [u8], name: &str) -> Result<Cow<'a, [u8]>, BadLine> {
    let not_json = |error: serde_json::Error| {
        let detail = error.to_string();
        // The parser's own place ("at line 1 column 7") is said by us, without the line that is always 1.
        let detail = detail.split(" at line ").next().unwrap_or_default().to_string();
        BadLine::NotJson { column: error.column(), detail }
    };
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    let found = deserializer.deserialize_map(FieldVisitor { name }).map_err(not_json)?;
    deserializer.end().map_err(not_json)?;
    match found {
        Some(Found::Key(key)) => Ok(key),
        Some(Found::Other(found)) => Err(BadLine::NoKey { name: name.into(), found }),
        None => Err(BadLine::NoField { name: name.into() }),
    }
}

/// Looks at one field of an object and passes over the others. Of a name that comes twice the last counts.
struct FieldVisitor<'n> {
    name: &'n str,
}

impl<'de> Visitor<'de> for FieldVisitor<'_> {
    type Value = Option<Found<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(IsName(is_name)) = map.next_key_seed(NameSeed(self.name))? {
            if is_name {
                found = Some(map.next_value::<Found<'de>>()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

struct IsName(bool);

struct NameSeed<'n>(&'n str);

impl<'de> serde::de::DeserializeSeed<'de> for NameSeed<'_> {
    type Value = IsName;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<IsName, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = IsName;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<IsName, E> {
        Ok(IsName(name == self.0))
    }
}

impl<'de> serde::Deserialize<'de> for Found<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Found<'de>, D::Error> {
        deserializer.deserialize_any(FoundVisitor)
    }
}

struct FoundVisitor;

impl<'de> Visitor<'de> for FoundVisitor {
    type Value = Found<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Found<'de>, E> {
        Ok(Found::Key(Cow::Borrowed(text.as_bytes())))
    }

    fn visit_str<E>(self, text: &str) -> Result<Found<'de>, E> {
        Ok(Found::Key(Cow::Owned(text.as_bytes().to_vec())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Found<'de>, E> {
        Ok(Found::Key(Cow::Owned(number.to_string().into_bytes())))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Found<'de>, E> {
        Ok(Found::Key(Cow::Owned(number.to_string().into_bytes())))
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Found<'de>, E> {
        Ok(Found::Key(Cow::Borrowed(if truth { b"true" } else { b"false" })))
    }

    fn visit_f64<E>(self, _number: f64) -> Result<Found<'de>, E> {
        Ok(Found::Other("a fraction or a number beyond 64 bits"))
    }

    fn visit_unit<E>(self) -> Result<Found<'de>, E> {
        Ok(Found::Other("null"))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Found<'de>, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Found::Other("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Found::Other("an object"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(source: &KeySource, line: &str) -> Result<Option<String>, BadLine> {
        let (key, value) = source.split(line.as_bytes())?;
        if !matches!(source, KeySource::Separator(_)) {
            assert_eq!(value, line.as_bytes(), "the value is the line");
        }
        Ok(key.map(|key| String::from_utf8(key.into_owned()).unwrap()))
    }

    #[test]
    fn keys_of_json_fields() {
        let source = KeySource::Field("symbol".into());
        for (line, expected) in [
            (r#"{"symbol":"AAPL","bid":1.5}"#, "AAPL"),
            (r#"{"bid":{"symbol":"X"},"symbol":"AAPL"}"#, "AAPL"),
            (r#" {"symbol" : "A\u00e4" } "#, "Aä"),
            (r#"{"symbol":42}"#, "42"),
            (r#"{"symbol":-7}"#, "-7"),
            (r#"{"symbol":true}"#, "true"),
            (r#"{"symbol":""}"#, ""),
            (r#"{"symbol":"A","symbol":"B"}"#, "B"),
            (r#"{"\u0073ymbol":"A"}"#, "A"),
            ("{\"symbol\":\"A\"}\r", "A"),
        ] {
            assert_eq!(key(&source, line), Ok(Some(expected.into())), "{line}");
        }
    }

    #[test]
    fn lines_without_a_key() {
        let source = KeySource::Field("symbol".into());
        assert_eq!(key(&source, r#"{"bid":1}"#), Err(BadLine::NoField { name: "symbol".into() }));
        for (line, found) in [
            (r#"{"symbol":null}"#, "null"),
            (r#"{"symbol":[1,2]}"#, "an array"),
            (r#"{"symbol":{"a":1}}"#, "an object"),
            (r#"{"symbol":1.5}"#, "a fraction or a number beyond 64 bits"),
            (r#"{"symbol":18446744073709551616}"#, "a fraction or a number beyond 64 bits"),
        ] {
            assert_eq!(key(&source, line), Err(BadLine::NoKey { name: "symbol".into(), found }), "{line}");
        }
        for line in ["", "AAPL", "[1]", "{", r#"{"symbol":"A""#, r#"{"symbol":"A"} x"#, r#"{"symbol":A}"#] {
            assert!(matches!(key(&source, line), Err(BadLine::NotJson { .. })), "{line}");
        }
        let error = key(&source, r#"{"symbol":A}"#).unwrap_err().to_string();
        assert_eq!(error, "not a JSON object, at byte 11: expected value");
    }

    #[test]
    fn keys_in_front_of_a_separator() {
        let source = KeySource::Separator(b"::".to_vec());
        for (line, key, value) in [("a::b", "a", "b"), ("a::b::c", "a", "b::c"), ("::b", "", "b"), ("a::", "a", "")] {
            let found = source.split(line.as_bytes()).unwrap();
            assert_eq!(found, (Some(Cow::Borrowed(key.as_bytes())), value.as_bytes()), "{line}");
        }
        assert_eq!(source.split(b"a:b"), Err(BadLine::NoSeparator));
        assert_eq!(source.split(b""), Err(BadLine::NoSeparator));
    }

    #[test]
    fn separators() {
        for (text, bytes) in [
            ("\\t", &b"\t"[..]),
            ("\t", b"\t"),
            ("|", b"|"),
            ("\\x1f", b"\x1f"),
            ("\\\\", b"\\"),
            ("ä", "ä".as_bytes()),
        ] {
            assert_eq!(parse_separator(text), Ok(bytes.to_vec()), "{text}");
        }
        for bad in ["", "\\", "\\q", "\\x", "\\x1", "\\xgg", "\\x+1"] {
            assert!(parse_separator(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn other_sources() {
        assert_eq!(key(&KeySource::None, "x"), Ok(None));
        assert_eq!(key(&KeySource::Fixed(b"K".to_vec()), "x"), Ok(Some("K".into())));
    }
}
