//! **What**: the simple model: what the log of a shard must hold and what a subscriber must have been told, kept without
//! any of the machinery under test.

use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{SlowPolicy, Start};
use felix_protocol::ids::{ProducerEpoch, ProducerId, Sequence};
use felix_protocol::pattern::Pattern;
use felix_protocol::position::{Lineage, Offset, OffsetRange, Position};
use std::collections::BTreeMap;

/// A record as it was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: Option<&'static str>,
    pub value: Vec<u8>,
    pub ttl_ms: Option<u64>,
}

/// A record as it was appended.
#[derive(Clone, Debug)]
pub struct Appended {
    pub record: Record,
    pub append_time: u64,
}

/// A body somebody publishes.
#[derive(Clone, Debug)]
pub struct Publish {
    pub producer: ProducerId,
    pub epoch: ProducerEpoch,
    pub base: Sequence,
    pub records: Vec<Record>,
    pub body: Vec<u8>,
}

/// What must come of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Appended at this offset, unless memory is short.
    New(Offset),
    Duplicate(Offset),
    Refused(ErrorCode),
}

#[derive(Default)]
struct Producer {
    epoch: ProducerEpoch,
    next: u64,
    seen: BTreeMap<u64, (Offset, Vec<u8>)>,
}

/// One incarnation of a shard.
#[derive(Default)]
pub struct Log {
    pub records: Vec<Appended>,
    /// Base offset and append time of each batch.
    pub batches: Vec<(u64, u64)>,
    producers: BTreeMap<ProducerId, Producer>,
}

impl Log {
    pub fn end(&self) -> Offset {
        Offset(self.records.len() as u64)
    }

    /// What must come of it; `append` makes it so.
    pub fn judge(&self, publish: &Publish) -> Expected {
        let fresh = Expected::New(self.end());
        if publish.producer.0 == 0 {
            return fresh;
        }
        let base = publish.base.0;
        match self.producers.get(&publish.producer) {
            None if base == 0 => fresh,
            None => Expected::Refused(ErrorCode::UnknownProducer),
            Some(known) if publish.epoch < known.epoch => Expected::Refused(ErrorCode::ProducerFenced),
            Some(known) if publish.epoch > known.epoch && base == 0 => fresh,
            Some(known) if publish.epoch > known.epoch || base > known.next => {
                Expected::Refused(ErrorCode::SequenceGap)
            }
            Some(known) if base == known.next => fresh,
            Some(known) => match known.seen.get(&base) {
                Some((offset, body)) if *body == publish.body => Expected::Duplicate(*offset),
                _ => Expected::Refused(ErrorCode::DuplicateMismatch),
            },
        }
    }

    pub fn append(&mut self, publish: &Publish, wall: u64) {
        let append_time = self.batches.last().map_or(wall, |(_, last)| wall.max(*last));
        let base = self.end();
        self.batches.push((base.0, append_time));
        self.records.extend(publish.records.iter().map(|record| Appended { record: record.clone(), append_time }));
        if publish.producer.0 != 0 {
            let producer = self.producers.entry(publish.producer).or_default();
            if producer.epoch != publish.epoch {
                *producer = Producer { epoch: publish.epoch, ..Producer::default() };
            }
            producer.next = publish.base.0 + publish.records.len() as u64;
            producer.seen.insert(publish.base.0, (base, publish.body.clone()));
        }
    }

    /// Where a start leads; `log_start` is what retention left.
    pub fn resolve(&self, start: Start, lineage: Lineage, log_start: Offset) -> Result<Offset, (ErrorCode, Offset)> {
        match start {
            Start::Earliest => Ok(log_start),
            Start::Latest => Ok(self.end()),
            Start::Time(time) => {
                let kept = self.batches.iter().filter(|(base, _)| *base >= log_start.0);
                Ok(kept.clone().find(|(_, at)| *at >= time.0).map_or(self.end(), |(base, _)| Offset(*base)))
            }
            Start::Position(Position { lineage: of, .. }) if of.0 != 0 && of != lineage => {
                Err((ErrorCode::LineageReset, log_start))
            }
            Start::Position(at) if at.offset > self.end() => Err((ErrorCode::OffsetInFuture, self.end())),
            Start::Position(at) => Ok(at.offset),
        }
    }

    /// Offsets in a range that match a filter and live at `wall`.
    pub fn wanted(&self, range: OffsetRange, filter: &Option<Pattern>, wall: u64) -> Vec<u64> {
        let wanted = |offset: &u64| {
            let it = &self.records[*offset as usize];
            matches(filter, it.record.key) && it.record.ttl_ms.is_none_or(|ttl| it.append_time + ttl * 1_000_000 > wall)
        };
        (range.from.0..range.to.0).filter(wanted).collect()
    }
}

pub fn matches(filter: &Option<Pattern>, key: Option<&str>) -> bool {
    filter.as_ref().is_none_or(|filter| key.is_some_and(|key| filter.matches(key.as_bytes())))
}

/// What a subscriber was told.
#[derive(Debug)]
pub enum Told {
    /// Offset, key and value of each record.
    Batch(Vec<(u64, Option<Vec<u8>>, Vec<u8>)>),
    Gap,
    Progress,
}

/// A subscriber as its client sees it.
pub struct Client {
    pub core: usize,
    pub shard: usize,
    pub start: Start,
    pub filter: Option<Pattern>,
    pub policy: SlowPolicy,
    pub credit: Option<u64>,
    pub sent: u64,
    /// Lineage and start once it is live.
    pub live: Option<Lineage>,
    pub told: Offset,
    pub number: u64,
    /// What its Attach must be answered with, once the owner has handled it.
    pub expected: Option<Result<(Lineage, Offset), (ErrorCode, Offset)>>,
    /// It does not read until this step.
    pub stuck_until: u64,
}

impl Client {
    /// Compares one delivery with the log. `log_start`: what retention has left by now; None if the shard is gone.
    pub fn check(
        &mut self,
        number: u64,
        covered: OffsetRange,
        told: &Told,
        log: &Log,
        log_start: Option<Offset>,
        wall: u64,
    ) {
        assert_eq!(number, self.number, "a delivery is missing or doubled");
        assert_eq!(covered.from, self.told, "covered ranges must continue each other");
        assert!(covered.from < covered.to && covered.to <= log.end(), "covered nothing, or what was never appended");
        assert!(self.credit.is_none_or(|credit| self.sent < credit), "sent without credit");
        self.number += 1;
        self.told = covered.to;
        let wanted = log.wanted(covered, &self.filter, wall);
        match told {
            Told::Batch(records) => {
                let inside: Vec<_> = records.iter().filter(|(offset, ..)| *offset >= covered.from.0).collect();
                let offsets: Vec<u64> = inside.iter().map(|(offset, ..)| *offset).collect();
                assert_eq!(offsets, wanted, "records lost, doubled, reordered, not matching or expired");
                for (offset, key, value) in inside {
                    let record = &log.records[*offset as usize].record;
                    assert_eq!((key.as_deref(), value), (record.key.map(str::as_bytes), &record.value));
                }
            }
            Told::Progress => assert_eq!(wanted, [0u64; 0], "progress over records it wanted"),
            Told::Gap => {
                let all_gone = log_start.is_none_or(|start| covered.to <= start);
                let some_gone = log_start.is_none_or(|start| covered.from < start);
                // A filter is kept per batch: who began inside one counts as having missed what it began behind.
                let first =
                    log.batches.iter().rev().find(|(base, _)| *base <= covered.from.0).expect("it was appended").0;
                let lost_some =
                    (first..covered.to.0).any(|at| matches(&self.filter, log.records[at as usize].record.key));
                match self.policy {
                    SlowPolicy::DropOldest => assert!(some_gone || lost_some, "a gap, but nothing was missed"),
                    _ => assert!(all_gone, "a gap, but the log has it"),
                }
            }
        }
    }
}
