//! What one subscription was told, checked as it comes and once more when all is known: numbers and ranges without a
//! hole, the records it asked for and no others, bytes as they were published, gaps only where they may be.

use crate::model::Model;
use crate::plan::Kind;
use felix_protocol::batch_view::{BatchView, RECORD_SKIPPED};
use felix_protocol::frame::{DELIVER_PREFIX_BYTES, Deliver, Delivery, DeliveryMode, SlowPolicy};
use felix_protocol::ids::{ShardId, StreamId};
use felix_protocol::position::Lineage;
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Batch,
    Gap,
    Progress,
}

#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub from: u64,
    pub to: u64,
    pub told: Told,
    pub at: u64,
}

#[derive(Debug)]
pub struct View {
    pub name: String,
    pub filter: Option<usize>,
    pub policy: SlowPolicy,
    pub mode: DeliveryMode,
    pub kind: Kind,
    pub stream: StreamId,
    pub shard: ShardId,
    pub lineage: Lineage,
    pub start: u64,
    pub told: u64,
    pub reference: bool,
    /// Grants by time; None: without credit.
    pub credit: Option<Vec<(u64, u64)>>,
    /// A grant sent at t can make a frame arrive at t plus this.
    pub round_trip: u64,
    /// Bytes of deliveries over streams: what credit counts.
    pub bytes: u64,
    spans: BTreeMap<u64, Span>,
    next: u64,
    offsets: Vec<u64>,
}

/// How a frame came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Stream,
    Datagram,
}

/// What a delivery was, for the counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub derived: bool,
    pub compressed: bool,
    pub gap_too_large: bool,
}

impl View {
    #[allow(clippy::too_many_arguments, reason = "the parts of a subscription")]
    pub fn new(
        name: String,
        filter: Option<usize>,
        policy: SlowPolicy,
        mode: DeliveryMode,
        kind: Kind,
        place: (StreamId, ShardId, Lineage),
        start: u64,
        credit: Option<u64>,
    ) -> View {
        View {
            name,
            filter,
            policy,
            mode,
            kind,
            stream: place.0,
            shard: place.1,
            lineage: place.2,
            start,
            told: start,
            reference: false,
            credit: credit.map(|total| vec![(0, total)]),
            round_trip: 0,
            bytes: 0,
            spans: BTreeMap::new(),
            next: 0,
            offsets: Vec::new(),
        }
    }

    pub fn is_reliable(&self) -> bool {
        matches!(self.mode, DeliveryMode::Shared | DeliveryMode::Own)
    }

    /// Numbers and ranges.
    fn take(&mut self, number: u64, span: Span) -> Result<(), String> {
        let Span { from, to, .. } = span;
        if from >= to {
            return Err(format!("delivery {number} covers nothing: {from}..{to}"));
        }
        if self.is_reliable() && (number != self.next || from != self.told) {
            let (next, told) = (self.next, self.told);
            return Err(format!("delivery {number} of {from}..{to} came where {next} from {told} was due"));
        }
        let before = self.spans.range(..number).next_back().map(|(n, it)| (*n, it.to)).unwrap_or((0, self.start));
        let after = self.spans.range(number..).next().map(|(n, it)| (*n, it.from));
        let touches_before =
            if number > 0 && before.0 + 1 == number && self.spans.contains_key(&before.0) || number == 0 {
                before.1 == from
            } else {
                before.1 <= from
            };
        let touches_after = match after {
            Some((n, _)) if n == number => return Err(format!("delivery {number} came twice")),
            Some((n, at)) if n == number + 1 => at == to,
            Some((_, at)) => to <= at,
            None => true,
        };
        if !touches_before || !touches_after {
            return Err(format!("delivery {number} of {from}..{to} does not fit between {before:?} and {after:?}"));
        }
        self.spans.insert(number, span);
        self.next = self.next.max(number + 1);
        self.told = self.told.max(to);
        Ok(())
    }

    fn may_have_gaps(&self) -> bool {
        self.policy == SlowPolicy::DropOldest || self.mode == DeliveryMode::DatagramOrGap || self.kind == Kind::Lossy
    }
}

impl Model {
    /// A delivery came for a subscription.
    pub fn deliver(&mut self, view: usize, it: &Deliver<'_>, via: Via, now: u64) -> Seen {
        let told = match it.delivery {
            Delivery::Batch(_) => Told::Batch,
            Delivery::Gap => Told::Gap,
            Delivery::Progress => Told::Progress,
        };
        let mut seen = Seen::default();
        let span = Span { from: it.covered.from.0, to: it.covered.to.0, told, at: now };
        let bytes = match it.delivery {
            Delivery::Batch(batch) => DELIVER_PREFIX_BYTES + batch.len(),
            _ => DELIVER_PREFIX_BYTES,
        };
        let v = &mut self.views[view];
        let granted = v.credit.as_ref().map(|grants| {
            let due = now.saturating_sub(v.round_trip);
            grants.iter().rev().find(|(at, _)| *at <= due).map_or(0, |(_, total)| *total)
        });
        // Datagrams use no credit; what goes over a stream instead of one does.
        let within = via == Via::Datagram || granted.is_none_or(|granted| v.bytes < granted);
        v.bytes += if via == Via::Stream { bytes as u64 } else { 0 };
        let sent = v.bytes;
        let taken = v.take(it.number, span);
        let name = v.name.clone();
        self.expect(within, || format!("{name}: {sent} bytes came, {granted:?} were granted"));
        if let Err(error) = taken {
            self.fail(|| format!("{name}: {error}"));
        }
        match it.delivery {
            Delivery::Gap => {
                let v = &self.views[view];
                seen.gap_too_large = v.mode == DeliveryMode::DatagramOrGap;
                let (may, told) = (v.may_have_gaps(), format!("{v:.0?}"));
                self.expect(may, || format!("{name}: a gap {span:?} that nothing allows: {told:.300}"));
            }
            Delivery::Progress => {
                let filtered = self.views[view].filter.is_some();
                let ttl = self.any_ttl;
                self.expect(filtered || ttl, || format!("{name}: progress {span:?} without a filter"));
            }
            Delivery::Batch(batch) => match self.read_batch(view, batch, span) {
                Ok(read) => seen = read,
                Err(error) => self.fail(|| format!("{name}: delivery {} of {span:?}: {error}", it.number)),
            },
        }
        seen
    }

    fn read_batch(&mut self, view: usize, bytes: &[u8], span: Span) -> Result<Seen, String> {
        let batch = BatchView::parse(bytes).map_err(|error| format!("not a batch: {error}"))?;
        batch.check().map_err(|error| format!("a damaged batch: {error}"))?;
        let header = &batch.header;
        let v = &self.views[view];
        let (stream, shard, lineage, filter) = (v.stream, v.shard, v.lineage, v.filter);
        if (header.stream, header.shard, header.lineage) != (stream, shard, lineage) {
            return Err(format!("a batch of {header:?} in a subscription of shard {shard} {lineage:?}"));
        }
        let tag = batch.body.values.first_chunk().map(|it| u64::from_le_bytes(*it)).ok_or("no tag")?;
        let index = self.recs.get(tag as usize).map(|it| it.batch).ok_or("a record nobody made")?;
        let info = self.batches[index as usize].clone();
        if (batch.body.base_sequence.0, batch.body.producer.0) != (info.seq, info.producer) {
            return Err(format!("sequence or producer is not that of {info:?}"));
        }
        let derived = header.is_derived();
        if header.offset_count != info.count {
            return Err(format!("{} offsets for a batch of {}", header.offset_count, info.count));
        }
        if !derived && (batch.body.crc, batch.body.bytes.len()) != (info.crc, info.bytes) {
            return Err("the bytes are not those that were published".to_string());
        }
        let mut values = (!info.compressed).then(|| batch.body.records(batch.body.values));
        let mut previous = self.views[view].offsets.last().copied();
        for entry in batch.body.entries() {
            let entry = entry.map_err(|error| error.to_string())?;
            let skipped = entry.flags & RECORD_SKIPPED != 0;
            let tag = info.first + u64::from(entry.offset_delta);
            let rec = self.recs[tag as usize].clone();
            if entry.key != rec.key.map(crate::model::key).as_deref().map(str::as_bytes) || entry.ttl_ms != rec.ttl_ms {
                return Err(format!("key or TTL of record {tag} is not as published"));
            }
            if skipped {
                continue;
            }
            if let Some(values) = &mut values {
                let read = values.next().ok_or("a value is missing")?.map_err(|error| error.to_string())?;
                if derived && read.value != Model::value(tag, rec.bytes) {
                    return Err(format!("the value of record {tag} is not as published"));
                }
            }
            let offset = header.base_offset.0 + u64::from(entry.offset_delta);
            self.place(tag, shard, lineage, offset, "delivery");
            if offset < span.from || offset >= span.to {
                continue;
            }
            if !self.matches(filter, &rec) {
                return Err(format!("record {tag} does not match the filter {filter:?}"));
            }
            if self.views[view].is_reliable() && previous.is_some_and(|it| it >= offset) {
                return Err(format!("record {tag} at {offset} comes after {previous:?}"));
            }
            previous = Some(offset);
            self.views[view].offsets.push(offset);
        }
        Ok(Seen { derived, compressed: derived && info.compressed, gap_too_large: false })
    }

    /// With all that is known now: nothing twice, nothing missing that was not told as lost. Returns skipped for TTL.
    pub fn check_view(&mut self, view: usize, tail: (usize, usize)) -> u64 {
        let v = &self.views[view];
        let ring_held_all =
            self.logs.get(&(v.shard, v.lineage)).is_none_or(|log| log.batches <= tail.0 && log.bytes <= tail.1);
        let strict = v.kind == Kind::Stable && v.mode != DeliveryMode::DatagramOrGap && ring_held_all;
        let mut offsets = v.offsets.clone();
        offsets.sort_unstable();
        let mut ttl_skips = 0;
        let mut wrong = offsets
            .windows(2)
            .find(|it| it[0] == it[1])
            .map(|it| format!("{}: offset {} was delivered twice", v.name, it[0]));
        let empty = Vec::new();
        let tags = self.logs.get(&(v.shard, v.lineage)).map_or(&empty, |log| &log.tags);
        for span in v.spans.values() {
            if strict && span.told == Told::Gap {
                wrong = Some(format!("{}: {span:?} though the ring held all that was ever appended", v.name));
            }
            for offset in span.from..span.to {
                let delivered = offsets.binary_search(&offset).is_ok();
                if span.told != Told::Batch && delivered {
                    wrong = Some(format!("{}: {span:?} covers offset {offset}, which was delivered", v.name));
                }
                let Some(tag) = tags.get(offset as usize).filter(|tag| **tag != u64::MAX) else { continue };
                let rec = &self.recs[*tag as usize];
                if span.told == Told::Gap || delivered || !self.matches(v.filter, rec) {
                    continue;
                }
                let created = self.batches[rec.batch as usize].created;
                match rec.ttl_ms {
                    Some(ttl) if created + ttl * 1_000_000 <= span.at => ttl_skips += 1,
                    _ => {
                        wrong = Some(format!("{}: record {tag} at {offset} is missing in {span:?}", v.name));
                    }
                }
            }
        }
        if let Some(wrong) = wrong {
            self.fail(|| wrong);
        }
        ttl_skips
    }

    /// The first record that a subscription still should get of a log. What retention took is told as a gap with the
    /// next append at the latest, so it is not waited for.
    pub fn owed(&self, view: usize, start: u64, end: u64) -> Option<u64> {
        let v = &self.views[view];
        if v.kind == Kind::Stable && v.filter.is_none() {
            return (v.told < end).then_some(v.told);
        }
        let tags = &self.logs.get(&(v.shard, v.lineage))?.tags;
        (v.told.max(start)..end.min(tags.len() as u64)).find(|offset| {
            let tag = tags[*offset as usize];
            tag != u64::MAX
                && self.recs[tag as usize].ttl_ms.is_none()
                && self.matches(v.filter, &self.recs[tag as usize])
        })
    }
}
