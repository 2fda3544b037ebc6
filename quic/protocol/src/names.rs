//! **What**: the names users type: `tenant/namespace/stream`, and the grammar they obey.
//!
//! ```text
//! tenant, namespace = label          RFC 1123 label: a-z 0-9 '-', 1 to 63 bytes, first and last a letter or digit
//! stream            = 1 to 127 bytes of A-Z a-z 0-9 '.' '_' '-', first a letter or digit
//! ```
//!
//! **Invariants**: a value of these types obeys the grammar, so it is safe in a path, a metric label and a log line.
//!
//! **Never**: normalising; a name is compared byte by byte.
//!
//! **See**: `metadata.rs`, `frame.rs`.

use crate::limits::{LABEL_BYTES_MAX, STREAM_NAME_BYTES_MAX};
use std::fmt;

/// Why a name was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// Nothing there.
    Empty,
    /// Longer than the grammar allows.
    TooLong {
        /// Bytes found.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A character outside the grammar.
    BadCharacter {
        /// Index of the byte.
        at: usize,
    },
    /// Not `tenant/namespace/stream`.
    WrongParts {
        /// Number of parts found.
        found: usize,
    },
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::Empty => f.write_str("a name may not be empty"),
            NameError::TooLong { bytes, max } => write!(f, "the name has {bytes} bytes, at most {max} are allowed"),
            NameError::BadCharacter { at } => write!(
                f,
                "character {} is not allowed (tenant and namespace: a-z 0-9 '-', stream: also A-Z '.' '_'; \
                 first character a letter or digit)",
                at + 1
            ),
            NameError::WrongParts { found } => {
                write!(f, "expected tenant/namespace/stream, found {found} part(s)")
            }
        }
    }
}

impl std::error::Error for NameError {}

/// Checks a tenant or namespace name.
pub fn check_label(text: &str) -> Result<(), NameError> {
    check(text, LABEL_BYTES_MAX, |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')?;
    match text.as_bytes().last() {
        Some(b'-') => Err(NameError::BadCharacter { at: text.len() - 1 }),
        _ => Ok(()),
    }
}

/// Checks the last part of a stream name.
pub fn check_stream_part(text: &str) -> Result<(), NameError> {
    check(text, STREAM_NAME_BYTES_MAX, |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn check(text: &str, max: usize, allowed: impl Fn(u8) -> bool) -> Result<(), NameError> {
    let bytes = text.as_bytes();
    let first = *bytes.first().ok_or(NameError::Empty)?;
    if bytes.len() > max {
        return Err(NameError::TooLong { bytes: bytes.len(), max });
    }
    if let Some(at) = bytes.iter().position(|&b| !allowed(b)) {
        return Err(NameError::BadCharacter { at });
    }
    if !first.is_ascii_alphanumeric() {
        return Err(NameError::BadCharacter { at: 0 });
    }
    Ok(())
}

/// Full name of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceName {
    tenant: Box<str>,
    namespace: Box<str>,
}

impl NamespaceName {
    /// Checks and joins the two parts.
    pub fn new(tenant: &str, namespace: &str) -> Result<NamespaceName, NameError> {
        check_label(tenant)?;
        check_label(namespace)?;
        Ok(NamespaceName { tenant: tenant.into(), namespace: namespace.into() })
    }

    /// Parses `tenant/namespace`.
    pub fn parse(text: &str) -> Result<NamespaceName, NameError> {
        let mut parts = text.splitn(3, '/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(tenant), Some(namespace), None) => NamespaceName::new(tenant, namespace),
            _ => Err(NameError::WrongParts { found: text.split('/').count() }),
        }
    }

    /// The tenant part.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// The namespace part.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.namespace)
    }
}

/// Full name of a stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamName {
    namespace: NamespaceName,
    stream: Box<str>,
}

impl StreamName {
    /// Checks and joins the three parts.
    pub fn new(tenant: &str, namespace: &str, stream: &str) -> Result<StreamName, NameError> {
        check_stream_part(stream)?;
        Ok(StreamName { namespace: NamespaceName::new(tenant, namespace)?, stream: stream.into() })
    }

    /// Parses `tenant/namespace/stream`.
    pub fn parse(text: &str) -> Result<StreamName, NameError> {
        let mut parts = text.splitn(4, '/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(tenant), Some(namespace), Some(stream), None) => StreamName::new(tenant, namespace, stream),
            _ => Err(NameError::WrongParts { found: text.split('/').count() }),
        }
    }

    /// The namespace it lives in.
    pub fn namespace(&self) -> &NamespaceName {
        &self.namespace
    }

    /// The tenant part.
    pub fn tenant(&self) -> &str {
        &self.namespace.tenant
    }

    /// The last part.
    pub fn stream(&self) -> &str {
        &self.stream
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.stream)
    }
}

impl std::str::FromStr for StreamName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<StreamName, NameError> {
        StreamName::parse(text)
    }
}

impl std::str::FromStr for NamespaceName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<NamespaceName, NameError> {
        NamespaceName::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar() {
        for good in ["acme/md/quotes", "a/b/C.d_e-f", "0/1/2", &format!("a/b/{}", "x".repeat(127))] {
            assert_eq!(StreamName::parse(good).unwrap().to_string(), *good);
        }
        for (bad, error) in [
            ("", NameError::WrongParts { found: 1 }),
            ("a/b", NameError::WrongParts { found: 2 }),
            ("a/b/c/d", NameError::WrongParts { found: 4 }),
            ("a//c", NameError::Empty),
            ("A/b/c", NameError::BadCharacter { at: 0 }),
            ("a-/b/c", NameError::BadCharacter { at: 1 }),
            ("a/b/.c", NameError::BadCharacter { at: 0 }),
            ("a/b/c d", NameError::BadCharacter { at: 1 }),
        ] {
            assert_eq!(StreamName::parse(bad), Err(error), "{bad}");
        }
        let long = format!("a/b/{}", "x".repeat(128));
        assert_eq!(StreamName::parse(&long), Err(NameError::TooLong { bytes: 128, max: 127 }));
    }
}
