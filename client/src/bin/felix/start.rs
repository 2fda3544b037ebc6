//! **What**: `--from`: where a subscription begins, as people write it.
//!
//! ```text
//! earliest | latest | offset:N | position:LINEAGE:OFFSET | time:RFC3339 | ago:SPAN
//! ```
//!
//! **Invariants**: `ago` is resolved once, against this machine's clock, when the command starts.
//!
//! **Never**: a silent default for something misspelt.
//!
//! **See**: `felix_protocol::frame::Start`.

use crate::units::parse_duration;
use felix_client::Start;
use felix_client::protocol::position::{Lineage, Offset, Position};
use felix_client::protocol::time::Timestamp;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Where to begin, before the clock is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// As the protocol has it.
    Fixed(Start),
    /// So long before now.
    Ago(Duration),
}

impl Begin {
    /// Reads `--from`.
    pub fn parse(text: &str) -> Result<Begin, String> {
        let (kind, argument) = match text.split_once(':') {
            Some((kind, argument)) => (kind, Some(argument)),
            None => (text, None),
        };
        let fixed = match (kind, argument) {
            ("earliest", None) => Start::Earliest,
            ("latest", None) => Start::Latest,
            ("offset", Some(offset)) => Start::Position(position("0", offset)?),
            ("position", Some(argument)) => {
                let (lineage, offset) = argument
                    .split_once(':')
                    .ok_or_else(|| format!("{text:?} lacks a part; write position:LINEAGE:OFFSET"))?;
                Start::Position(position(lineage, offset)?)
            }
            ("time", Some(time)) => Start::Time(parse_time(time)?),
            ("ago", Some(span)) => return Ok(Begin::Ago(parse_duration(span)?)),
            _ => {
                return Err(format!(
                    "{text:?} is no place to begin; write earliest, latest, offset:N, position:LINEAGE:OFFSET, \
                     time:2026-01-31T12:00:00Z or ago:5m"
                ));
            }
        };
        Ok(Begin::Fixed(fixed))
    }

    /// The start, given the time now.
    pub fn resolve(self, now: Timestamp) -> Start {
        match self {
            Begin::Fixed(start) => start,
            Begin::Ago(span) => {
                let span_ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
                Start::Time(now.saturating_sub_ns(span_ns))
            }
        }
    }

    /// It names an offset, which means something only within one shard.
    pub fn is_of_one_shard(self) -> bool {
        matches!(self, Begin::Fixed(Start::Position(_)))
    }
}

/// Lineage 0: any.
fn position(lineage: &str, offset: &str) -> Result<Position, String> {
    let lineage = lineage.parse().map_err(|_| format!("lineage {lineage:?} is no number from 0 to {}", u32::MAX))?;
    let offset = offset.parse().map_err(|_| format!("offset {offset:?} is no number from 0 to {}", u64::MAX))?;
    Ok(Position { lineage: Lineage(lineage), offset: Offset(offset) })
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    let bad = || format!("{text:?} is no time; write it like 2026-01-31T12:00:00Z or 2026-01-31T12:00:00.5+01:00");
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| bad())?;
    u64::try_from(time.unix_timestamp_nanos())
        .map(Timestamp)
        .map_err(|_| format!("{text:?} is out of range; use 1970 to 2554"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(lineage: u32, offset: u64) -> Start {
        Start::Position(Position { lineage: Lineage(lineage), offset: Offset(offset) })
    }

    #[test]
    fn places() {
        for (text, start) in [
            ("earliest", Start::Earliest),
            ("latest", Start::Latest),
            ("offset:0", at(0, 0)),
            ("offset:18446744073709551615", at(0, u64::MAX)),
            ("position:3:42", at(3, 42)),
            ("time:1970-01-01T00:00:01Z", Start::Time(Timestamp(1_000_000_000))),
            ("time:2026-01-31T13:00:00.000000001+01:00", Start::Time(Timestamp(1_769_860_800_000_000_001))),
        ] {
            assert_eq!(Begin::parse(text), Ok(Begin::Fixed(start)), "{text}");
        }
        assert_eq!(Begin::parse("ago:5m"), Ok(Begin::Ago(Duration::from_secs(300))));
    }

    #[test]
    fn places_that_are_none() {
        for bad in [
            "",
            "begin",
            "Earliest",
            "earliest:1",
            "offset",
            "offset:",
            "offset:-1",
            "offset:18446744073709551616",
            "position:1",
            "position:x:1",
            "position:1:2:3",
            "time:yesterday",
            "time:2026-01-31",
            "time:1969-12-31T23:59:59Z",
            "ago:5",
            "ago:",
        ] {
            assert!(Begin::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ago_is_counted_from_now() {
        let now = Timestamp(10_000_000_000);
        assert_eq!(Begin::parse("ago:4s").unwrap().resolve(now), Start::Time(Timestamp(6_000_000_000)));
        assert_eq!(Begin::parse("ago:1h").unwrap().resolve(now), Start::Time(Timestamp(0)));
        assert_eq!(Begin::parse("latest").unwrap().resolve(now), Start::Latest);
        assert!(Begin::parse("offset:1").unwrap().is_of_one_shard());
        assert!(!Begin::parse("ago:1s").unwrap().is_of_one_shard());
    }
}
