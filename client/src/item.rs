//! **What**: what a subscriber is given: batches it owns and reads in place, gaps, progress, resets.
//!
//! **Invariants**: a batch was checked (checksums, index, range, lineage) before it became a [`DeliveredBatch`], and
//! its values are open. Records outside the covered range or past their TTL are not shown.
//!
//! **Never**: a copy of a record unless the user asks for an owned [`Record`].
//!
//! **See**: `subscription.rs`, which checks; `subscriber.rs`, which hands out.

use crate::compress;
use crate::violation::Violation;
use felix_protocol::batch::StampedHeader;
use felix_protocol::batch_view::{BatchView, Records, headers};
use felix_protocol::ids::ShardIndex;
use felix_protocol::position::{Lineage, Offset, OffsetRange, Position};
use felix_protocol::time::Timestamp;
use std::time::{SystemTime, UNIX_EPOCH};

/// One thing a subscription tells.
#[derive(Clone, Debug)]
pub enum Item {
    /// Records of one batch.
    Records(DeliveredBatch),
    /// These offsets were not delivered and will not be: too slow, too old, or lost as a datagram.
    Gap {
        /// Shard of the stream.
        shard: ShardIndex,
        /// Lineage of the offsets.
        lineage: Lineage,
        /// Offsets that are missing.
        covered: OffsetRange,
    },
    /// Nothing for this subscription's filter up to here.
    Progress {
        /// Shard of the stream.
        shard: ShardIndex,
        /// Next offset.
        to: Position,
    },
    /// The shard's data was replaced by a new incarnation; what follows is of the new one, from its earliest record.
    Reset {
        /// Shard of the stream.
        shard: ShardIndex,
        /// Where the subscription was.
        old: Position,
        /// Where it goes on.
        new: Position,
    },
}

impl Item {
    /// Shard it is about.
    pub fn shard(&self) -> ShardIndex {
        match self {
            Item::Records(batch) => batch.shard,
            Item::Gap { shard, .. } | Item::Progress { shard, .. } | Item::Reset { shard, .. } => *shard,
        }
    }

    /// Position to resume from once this item is processed.
    pub fn next_position(&self) -> Position {
        match self {
            Item::Records(batch) => Position { lineage: batch.header.lineage, offset: batch.covered.to },
            Item::Gap { lineage, covered, .. } => Position { lineage: *lineage, offset: covered.to },
            Item::Progress { to, .. } => *to,
            Item::Reset { new, .. } => *new,
        }
    }
}

/// One batch as it was delivered. Owns its bytes; records are read in place.
#[derive(Clone, Debug)]
pub struct DeliveredBatch {
    bytes: Vec<u8>,
    /// Where the batch begins in `bytes`.
    start: usize,
    header: StampedHeader,
    shard: ShardIndex,
    covered: OffsetRange,
    values: Option<Vec<u8>>,
    /// Broker's clock less ours, nanoseconds.
    clock_offset_ns: i64,
    has_ttl: bool,
}

/// What `subscription.rs` knows of a batch it checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchFacts {
    pub header: StampedHeader,
    pub shard: ShardIndex,
    pub covered: OffsetRange,
    pub clock_offset_ns: i64,
    pub has_ttl: bool,
}

impl DeliveredBatch {
    /// Takes bytes whose part from `start` is a checked batch.
    pub(crate) fn new(bytes: Vec<u8>, start: usize, facts: BatchFacts) -> DeliveredBatch {
        let BatchFacts { header, shard, covered, clock_offset_ns, has_ttl } = facts;
        DeliveredBatch { bytes, start, header, shard, covered, values: None, clock_offset_ns, has_ttl }
    }

    /// Opens compressed values. Called on the reader's thread before the batch is handed out.
    pub(crate) fn open(&mut self) -> Result<(), Violation> {
        self.values = compress::open(&self.view()?.body)?;
        Ok(())
    }

    fn view(&self) -> Result<BatchView<'_>, Violation> {
        BatchView::parse(&self.bytes[self.start..]).map_err(Violation::BadBatch)
    }

    /// Shard of the stream.
    pub fn shard(&self) -> ShardIndex {
        self.shard
    }

    /// Incarnation of the data.
    pub fn lineage(&self) -> Lineage {
        self.header.lineage
    }

    /// The broker's header.
    pub fn header(&self) -> &StampedHeader {
        &self.header
    }

    /// Offsets this delivery covers; `to` is the progress of the subscription.
    pub fn covered(&self) -> OffsetRange {
        self.covered
    }

    /// When the leader appended it, broker's clock.
    pub fn append_time(&self) -> Timestamp {
        self.header.append_time
    }

    /// Bytes of the whole batch as it travelled.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// The records in order. Those whose TTL has passed by the machine's clock now are left out.
    pub fn records(&self) -> RecordViews<'_> {
        // Most batches have no TTL, and then the clock is not asked.
        let now = if self.has_ttl {
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_nanos() as u64)
        } else {
            0
        };
        self.records_at(Timestamp(now))
    }

    /// The records in order, without those whose TTL has passed at `now` (this machine's clock).
    pub fn records_at(&self, now: Timestamp) -> RecordViews<'_> {
        let records = self.view().ok().map(|view| {
            let values = self.values.as_deref().unwrap_or(view.body.values);
            view.body.records(values)
        });
        let broker_now = now.0.saturating_add_signed(self.clock_offset_ns);
        RecordViews { records, batch: self, age_ns: broker_now.saturating_sub(self.header.append_time.0) }
    }
}

/// A record read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// Shard of the stream.
    pub shard: ShardIndex,
    /// Its position.
    pub position: Position,
    /// When the leader appended it, broker's clock.
    pub append_time: Timestamp,
    /// Producer's clock.
    pub time: Timestamp,
    /// Key.
    pub key: Option<&'a [u8]>,
    /// Time to live from the append.
    pub ttl_ms: Option<u64>,
    /// The key is deleted; no value.
    pub tombstone: bool,
    /// The value.
    pub value: &'a [u8],
    headers: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// Name and value pairs. A producer that is not ours may have written nonsense, so each is a result.
    pub fn headers(&self) -> impl Iterator<Item = Result<(&'a str, &'a [u8]), Violation>> + use<'a> {
        headers(self.headers).map(|item| item.map_err(Violation::BadBatch))
    }

    /// An owned copy.
    pub fn to_record(&self) -> Result<Record, Violation> {
        let mut headers = Vec::new();
        for pair in self.headers() {
            let (name, value) = pair?;
            headers.push((name.to_string(), value.to_vec()));
        }
        Ok(Record {
            shard: self.shard,
            position: self.position,
            append_time: self.append_time,
            time: self.time,
            key: self.key.map(<[u8]>::to_vec),
            ttl_ms: self.ttl_ms,
            tombstone: self.tombstone,
            headers,
            value: self.value.to_vec(),
        })
    }
}

/// An owned record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Shard of the stream.
    pub shard: ShardIndex,
    /// Its position.
    pub position: Position,
    /// When the leader appended it, broker's clock.
    pub append_time: Timestamp,
    /// Producer's clock.
    pub time: Timestamp,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Time to live from the append.
    pub ttl_ms: Option<u64>,
    /// The key is deleted; no value.
    pub tombstone: bool,
    /// Name and value pairs.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The value.
    pub value: Vec<u8>,
}

/// Iterator over the records of a batch. The batch was checked before, so that none is lost on the way.
#[derive(Clone, Debug)]
pub struct RecordViews<'a> {
    records: Option<Records<'a, 'a>>,
    batch: &'a DeliveredBatch,
    age_ns: u64,
}

impl<'a> Iterator for RecordViews<'a> {
    type Item = RecordView<'a>;

    #[inline]
    fn next(&mut self) -> Option<RecordView<'a>> {
        let batch = self.batch;
        loop {
            // `BatchView::check` walked the same entries and `open` proved the size of the values.
            let record = self.records.as_mut()?.next()?.ok()?;
            let offset = Offset(batch.header.base_offset.0.saturating_add(u64::from(record.offset_delta)));
            if offset < batch.covered.from || offset >= batch.covered.to {
                continue;
            }
            if record.ttl_ms.is_some_and(|ttl| ttl.saturating_mul(1_000_000) <= self.age_ns) {
                continue;
            }
            return Some(RecordView {
                shard: batch.shard,
                position: Position { lineage: batch.header.lineage, offset },
                append_time: batch.header.append_time,
                time: record.time,
                key: record.key,
                ttl_ms: record.ttl_ms,
                tombstone: record.tombstone,
                value: record.value,
                headers: record.headers,
            });
        }
    }
}
