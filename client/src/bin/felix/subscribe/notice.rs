//! **What**: what `felix sub` tells beside records: gaps, resets, the count at the end. For people and as JSON.
//!
//! **Invariants**: a JSON notice is an object with one field, `gap` or `reset`, so it cannot be taken for a record.
//!
//! **Never**: a range that includes its end: `from` is in it, `to` is not, as everywhere in Felix.
//!
//! **See**: `../subscribe.rs`, `felix_client::Item`.

use felix_client::Item;
use felix_client::protocol::position::Position;
use serde::Serialize;
use std::fmt;

/// Something that is no record.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Notice<'a> {
    /// Offsets that were not and will not be delivered.
    Gap {
        /// The stream.
        stream: &'a str,
        /// The shard.
        shard: u32,
        /// Lineage of the offsets.
        lineage: u32,
        /// First offset missing.
        from: u64,
        /// First offset after the gap.
        to: u64,
    },
    /// The shard's data was replaced.
    Reset {
        /// The stream.
        stream: &'a str,
        /// The shard.
        shard: u32,
        /// Where we were.
        old: Place,
        /// Where it goes on.
        new: Place,
    },
}

/// A position.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Place {
    lineage: u32,
    offset: u64,
}

impl From<Position> for Place {
    fn from(at: Position) -> Place {
        Place { lineage: at.lineage.0, offset: at.offset.0 }
    }
}

impl<'a> Notice<'a> {
    /// The notice that an item is, if it is one.
    pub fn of(stream: &'a str, item: &Item) -> Option<Notice<'a>> {
        match item {
            Item::Gap { shard, lineage, covered } => {
                Some(Notice::Gap { stream, shard: shard.0, lineage: lineage.0, from: covered.from.0, to: covered.to.0 })
            }
            Item::Reset { shard, old, new } => {
                Some(Notice::Reset { stream, shard: shard.0, old: (*old).into(), new: (*new).into() })
            }
            Item::Records(_) | Item::Progress { .. } => None,
        }
    }
}

impl fmt::Display for Notice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Gap { shard, from, to, .. } => write!(
                f,
                "gap: shard {shard}, offsets {from} to {to} ({} records) were not delivered: too slow, too old, or lost \
                 as datagrams",
                to.saturating_sub(*from)
            ),
            Notice::Reset { shard, old, new, .. } => write!(
                f,
                "reset: the data of shard {shard} was replaced: we were at offset {} of lineage {}, it goes on at \
                 offset {} of lineage {}",
                old.offset, old.lineage, new.offset, new.lineage
            ),
        }
    }
}

/// Counts of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Counts {
    /// The stream.
    pub stream: String,
    /// Records.
    pub records: u64,
    /// Offsets told as gaps.
    pub gap_records: u64,
    /// Resets.
    pub resets: u64,
    /// Time the subscription was live.
    pub seconds: f64,
}

impl Counts {
    /// Counts a notice.
    pub fn add(&mut self, notice: &Notice<'_>) {
        match notice {
            Notice::Gap { from, to, .. } => self.gap_records += to.saturating_sub(*from),
            Notice::Reset { .. } => self.resets += 1,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { stream, records, gap_records, resets, seconds } = self;
        write!(f, "{records} records from {stream} in {seconds:.1} s, {gap_records} in gaps, {resets} resets")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use felix_client::protocol::ids::ShardIndex;
    use felix_client::protocol::position::{Lineage, Offset, OffsetRange};

    fn at(lineage: u32, offset: u64) -> Position {
        Position { lineage: Lineage(lineage), offset: Offset(offset) }
    }

    #[test]
    fn notices_to_the_byte() {
        let covered = OffsetRange { from: Offset(5), to: Offset(9) };
        let gap = Item::Gap { shard: ShardIndex(1), lineage: Lineage(3), covered };
        let reset = Item::Reset { shard: ShardIndex(0), old: at(3, 9), new: at(4, 0) };
        let mut counts = Counts { stream: "a/b/c".into(), seconds: 0.25, ..Counts::default() };
        for (item, json, text) in [
            (
                gap,
                r#"{"gap":{"stream":"a/b/c","shard":1,"lineage":3,"from":5,"to":9}}"#,
                "gap: shard 1, offsets 5 to 9 (4 records) were not delivered: too slow, too old, or lost as datagrams",
            ),
            (
                reset,
                concat!(
                    r#"{"reset":{"stream":"a/b/c","shard":0,"old":{"lineage":3,"offset":9},"#,
                    r#""new":{"lineage":4,"offset":0}}}"#
                ),
                "reset: the data of shard 0 was replaced: we were at offset 9 of lineage 3, it goes on at offset 0 of lineage 4",
            ),
        ] {
            let notice = Notice::of("a/b/c", &item).unwrap();
            assert_eq!(serde_json::to_string(&notice).unwrap(), json);
            assert_eq!(notice.to_string(), text);
            counts.add(&notice);
        }
        assert_eq!(Notice::of("a/b/c", &Item::Progress { shard: ShardIndex(0), to: at(1, 1) }), None);
        assert_eq!(
            serde_json::to_string(&counts).unwrap(),
            r#"{"stream":"a/b/c","records":0,"gap_records":4,"resets":1,"seconds":0.25}"#
        );
        assert_eq!(counts.to_string(), "0 records from a/b/c in 0.2 s, 4 in gaps, 1 resets");
    }
}
