//! **What**: key filters: tokens divided by dots, `*` for one token, `>` for one or more at the end.
//!
//! ```text
//! XNAS.*.trade   matches XNAS.AAPL.trade            not XNAS.AAPL.quote, XNAS.trade
//! md.>           matches md.a, md.a.b               not md
//! >              matches every key, also the empty one, and records without a key only if no filter is set
//! ```
//!
//! **Invariants**: matching is linear in the key and allocates nothing.
//!
//! **Never**: matching a record without a key against a pattern.
//!
//! **See**: `shard/src/filter.rs`.

use crate::limits::{PATTERN_BYTES_MAX, PATTERN_TOKENS_MAX};

/// Why a pattern was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatternError {
    /// Nothing there.
    Empty,
    /// Over the limit.
    TooLong,
    /// Two dots in a row, or a dot at an end.
    EmptyToken,
    /// `>` not at the end, or a wildcard mixed with other characters in one token.
    MisplacedWildcard,
}

impl std::fmt::Display for PatternError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PatternError::Empty => f.write_str("a filter may not be empty"),
            PatternError::TooLong => {
                write!(f, "a filter has at most {PATTERN_BYTES_MAX} bytes and {PATTERN_TOKENS_MAX} tokens")
            }
            PatternError::EmptyToken => {
                f.write_str("a filter may not have an empty token (two dots, or a dot at an end)")
            }
            PatternError::MisplacedWildcard => f.write_str("'*' must be a whole token and '>' the whole last token"),
        }
    }
}

impl std::error::Error for PatternError {}

/// A checked key filter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern {
    text: Box<str>,
}

impl Pattern {
    /// Checks a pattern.
    pub fn parse(text: &str) -> Result<Pattern, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.len() > PATTERN_BYTES_MAX || text.split('.').count() > PATTERN_TOKENS_MAX {
            return Err(PatternError::TooLong);
        }
        let mut tokens = text.split('.').peekable();
        while let Some(token) = tokens.next() {
            match token {
                "" => return Err(PatternError::EmptyToken),
                "*" => {}
                ">" if tokens.peek().is_none() => {}
                plain if plain.contains(['*', '>']) => return Err(PatternError::MisplacedWildcard),
                _ => {}
            }
        }
        Ok(Pattern { text: text.into() })
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a key matches.
    pub fn matches(&self, key: &[u8]) -> bool {
        if &*self.text == ">" {
            return true;
        }
        let mut tokens = key.split(|byte| *byte == b'.');
        for wanted in self.text.split('.') {
            match (wanted, tokens.next()) {
                (">", Some(_)) => return true,
                (_, None) => return false,
                ("*", Some(_)) => {}
                (plain, Some(token)) if plain.as_bytes() == token => {}
                _ => return false,
            }
        }
        tokens.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matching() {
        for (pattern, key, expected) in [
            ("XNAS.*.trade", "XNAS.AAPL.trade", true),
            ("XNAS.*.trade", "XNAS.AAPL.quote", false),
            ("XNAS.*.trade", "XNAS.trade", false),
            ("XNAS.*.trade", "XNAS.A.trade.x", false),
            ("XNAS.*", "XNAS.AAPL", true),
            ("XNAS.*", "XNAS", false),
            ("XNAS.*", "XNAS.", true),
            ("md.>", "md.a", true),
            ("md.>", "md.a.b", true),
            ("md.>", "md", false),
            (">", "", true),
            (">", "a.b", true),
            ("*", "a", true),
            ("*", "a.b", false),
            ("a", "a", true),
            ("a", "ab", false),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(key.as_bytes()), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn grammar() {
        for (bad, error) in [
            ("", PatternError::Empty),
            ("a..b", PatternError::EmptyToken),
            (".a", PatternError::EmptyToken),
            ("a.", PatternError::EmptyToken),
            (">.a", PatternError::MisplacedWildcard),
            ("a*", PatternError::MisplacedWildcard),
            ("a.>b", PatternError::MisplacedWildcard),
        ] {
            assert_eq!(Pattern::parse(bad), Err(error), "{bad}");
        }
        assert_eq!(Pattern::parse(&"a.".repeat(33)), Err(PatternError::TooLong));
        assert_eq!(Pattern::parse(&"a".repeat(257)), Err(PatternError::TooLong));
    }
}
