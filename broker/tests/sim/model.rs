//! The truth as the clients know it: every record has a tag that is in its value, so whoever sees it, in an ack or in a
//! delivery, tells where it is. One tag is at one place, one place holds one tag.

use crate::plan::Kind;
use crate::view::View;
use felix_protocol::ids::{ShardId, StreamId};
use felix_protocol::limits::STAMPED_HEADER_BYTES;
use felix_protocol::pattern::Pattern;
use felix_protocol::position::Lineage;
use std::collections::{BTreeMap, BTreeSet};

pub const KEYS: usize = 40;

pub fn key(index: u16) -> String {
    format!("m.{}.{}", index % 5, index / 5)
}

pub const FILTERS: &[&str] = &["m.1.*", "m.>", ">", "*.2.3", "m.*.7", "none.>"];

#[derive(Clone, Debug)]
pub struct Rec {
    pub key: Option<u16>,
    pub ttl_ms: Option<u64>,
    pub batch: u32,
    pub place: Option<(ShardId, Lineage, u64)>,
    pub bytes: u32,
}

/// A batch as it was made.
#[derive(Clone, Debug)]
pub struct BatchInfo {
    pub first: u64,
    pub count: u32,
    pub crc: u32,
    pub bytes: usize,
    pub seq: u64,
    pub producer: u64,
    /// Batches of one group are in one order, and in the log in the same.
    pub group: u64,
    pub created: u64,
    /// It must never be in a log.
    pub refused: bool,
    pub compressed: bool,
}

#[derive(Debug, Default)]
pub struct Log {
    /// Tag by offset; `u64::MAX`: not seen.
    pub tags: Vec<u64>,
    pub batches: usize,
    pub bytes: usize,
}

#[derive(Clone, Copy, Debug)]
pub struct ShardInfo {
    pub stream: StreamId,
    pub plan: usize,
    pub index: u32,
    pub lineage: Lineage,
}

pub struct Model {
    pub recs: Vec<Rec>,
    pub batches: Vec<BatchInfo>,
    pub logs: BTreeMap<(ShardId, Lineage), Log>,
    pub views: Vec<View>,
    pub shards: BTreeMap<ShardId, ShardInfo>,
    streams: BTreeMap<(StreamId, u32), ShardId>,
    /// Streams whose deletion was asked for.
    pub maybe_gone: BTreeSet<StreamId>,
    pub kinds: Vec<Kind>,
    pub patterns: Vec<Pattern>,
    pub failure: Option<String>,
    pub groups: u64,
    pub any_ttl: bool,
    pub producers: BTreeSet<u64>,
}

impl Model {
    pub fn new(kinds: Vec<Kind>) -> Model {
        Model {
            recs: Vec::new(),
            batches: Vec::new(),
            logs: BTreeMap::new(),
            views: Vec::new(),
            shards: BTreeMap::new(),
            streams: BTreeMap::new(),
            maybe_gone: BTreeSet::new(),
            kinds,
            patterns: FILTERS.iter().map(|it| Pattern::parse(it).expect("our own pattern")).collect(),
            failure: None,
            groups: 0,
            any_ttl: false,
            producers: BTreeSet::new(),
        }
    }

    pub fn fail(&mut self, what: impl FnOnce() -> String) {
        if self.failure.is_none() {
            self.failure = Some(what());
        }
    }

    pub fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.fail(what);
        }
    }

    pub fn group(&mut self) -> u64 {
        self.groups += 1;
        self.groups
    }

    pub fn matches(&self, filter: Option<usize>, rec: &Rec) -> bool {
        match (filter, rec.key) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(filter), Some(at)) => self.patterns[filter].matches(key(at).as_bytes()),
        }
    }

    /// The bytes of a record's value.
    pub fn value(tag: u64, bytes: u32) -> Vec<u8> {
        let mut value = tag.to_le_bytes().to_vec();
        value.extend((8..bytes).map(|at| (tag as u8).wrapping_mul(31).wrapping_add(at as u8)));
        value
    }

    /// Someone was told which shard and lineage this is: it must be what all others were told.
    pub fn meet(&mut self, stream: StreamId, plan: usize, index: u32, shard: ShardId, lineage: Lineage) {
        let info = ShardInfo { stream, plan, index, lineage };
        let known = *self.shards.entry(shard).or_insert(info);
        let same = (known.stream, known.plan, known.index, known.lineage) == (stream, plan, index, lineage);
        self.expect(same, || format!("shard {shard} is {known:?} for some and {info:?} for others"));
        let first = *self.streams.entry((stream, index)).or_insert(shard);
        self.expect(first == shard, || format!("shard {index} of stream {stream} is {first} and {shard}"));
    }

    /// A record was seen at a place.
    pub fn place(&mut self, tag: u64, shard: ShardId, lineage: Lineage, offset: u64, how: &str) {
        let Some(rec) = self.recs.get_mut(tag as usize) else {
            return self.fail(|| format!("{how}: record {tag} was never made"));
        };
        let at = (shard, lineage, offset);
        if let Some(other) = rec.place
            && other != at
        {
            return self.fail(|| format!("{how}: record {tag} is at {at:?} and at {other:?}: it is in the log twice"));
        }
        let new = rec.place.replace(at).is_none();
        let batch = rec.batch as usize;
        let refused = self.batches[batch].refused;
        self.expect(!refused, || format!("{how}: record {tag} of a bad batch is in the log at {at:?}"));
        let log = self.logs.entry((shard, lineage)).or_default();
        if new && self.batches[batch].first == tag {
            log.batches += 1;
            log.bytes += self.batches[batch].bytes + STAMPED_HEADER_BYTES;
        }
        if log.tags.len() <= offset as usize {
            log.tags.resize(offset as usize + 1, u64::MAX);
        }
        let old = std::mem::replace(&mut log.tags[offset as usize], tag);
        self.expect(old == u64::MAX || old == tag, || format!("{how}: at {at:?} are the records {old} and {tag}"));
    }

    /// A batch was acked at an offset.
    pub fn acked(&mut self, batch: u32, shard: ShardId, lineage: Lineage, offset: u64) {
        let (first, count) = (self.batches[batch as usize].first, self.batches[batch as usize].count);
        for at in 0..u64::from(count) {
            self.place(first + at, shard, lineage, offset + at, "ack");
        }
    }

    /// Records of one producer stand in the log in the order they were sent in.
    pub fn check_order(&mut self) {
        let mut last: BTreeMap<(u64, ShardId, Lineage), (u64, u64)> = BTreeMap::new();
        let mut wrong = None;
        for (tag, rec) in self.recs.iter().enumerate() {
            let Some((shard, lineage, offset)) = rec.place else { continue };
            let group = self.batches[rec.batch as usize].group;
            let before = last.insert((group, shard, lineage), (tag as u64, offset));
            if let Some((other, at)) = before
                && at >= offset
            {
                wrong = Some(format!("order: record {tag} is at {offset} of shard {shard}, {other} before it at {at}"));
            }
        }
        if let Some(wrong) = wrong {
            self.fail(|| wrong);
        }
    }
}
