//! **What**: the records of a publisher that wait for the driver, batched per shard as they come.
//!
//! ```text
//! push --> lane of the shard --> [pending][pending] <-- take, when the channel can send
//! ```
//!
//! **Invariants**: `bytes` counts every record from `push` until its outcome is settled, and stays below the bound
//! (one record more if nothing else is in flight). A pending batch never waits for a timer: whatever is there when the
//! driver comes is taken.
//!
//! **Never**: I/O, a lock of its own (`publisher.rs` puts it behind one), a record counted twice.
//!
//! **See**: `channel.rs`, which takes; `publisher.rs`, which pushes.

use crate::ack::AckCell;
use crate::error::{PublishError, SendError};
use felix_protocol::batch_builder::{BatchBuilder, PushError, RecordToPublish};
use felix_protocol::limits::BODY_HEADER_BYTES;
use felix_protocol::routing::{find_range, key_hash};
use felix_protocol::time::Time;
use std::collections::VecDeque;
use std::sync::Arc;

/// A batch of more than one record ends here: no contiguous buffer over 128 KiB, and pipelining instead of bulk.
const BATCH_BYTES_TARGET: usize = 128 << 10;
/// Charged per record beside its bytes: index entry, ticket, share of the batch.
const RECORD_OVERHEAD_BYTES: usize = 64;
/// Builders kept for reuse.
const SPARE_MAX: usize = 64;

/// Records of one shard that will be one batch.
#[derive(Debug)]
pub(crate) struct Pending {
    pub builder: BatchBuilder,
    /// Records whose outcome somebody waits for, by index.
    pub tickets: Vec<(u32, Arc<AckCell>)>,
    /// When the first record came.
    pub since: Time,
    /// Bytes charged.
    pub charge: usize,
    /// Flush generation.
    pub generation: u64,
}

/// What became of records since the last settlement.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    charge: usize,
    by_generation: Vec<(u64, u64)>,
    report: FlushReport,
}

/// How an outcome counts.
pub(crate) enum Outcome<'a> {
    Acked,
    Sent,
    Failed(&'a PublishError),
}

impl Tally {
    /// Records of one generation have their outcome.
    pub(crate) fn settle(&mut self, generation: u64, records: u64, charge: usize, outcome: Outcome<'_>) {
        self.charge += charge;
        match self.by_generation.last_mut() {
            Some((last, count)) if *last == generation => *count += records,
            _ => self.by_generation.push((generation, records)),
        }
        match outcome {
            Outcome::Acked => self.report.acked += records,
            Outcome::Sent => self.report.sent += records,
            Outcome::Failed(error) => {
                match error {
                    PublishError::Rejected { .. } => self.report.refused += records,
                    PublishError::Expired => self.report.expired += records,
                    PublishError::UnknownOutcome { .. } => self.report.unknown += records,
                }
                if self.report.first_error.is_none() {
                    self.report.first_error = Some(error.clone());
                }
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_generation.is_empty()
    }
}

/// What became of the records of a publisher since the flush before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlushReport {
    /// Records acknowledged.
    pub acked: u64,
    /// Records handed to the network without asking for acknowledgements.
    pub sent: u64,
    /// Records the broker refused: not in the log.
    pub refused: u64,
    /// Records whose deadline passed before they were sent: not in the log.
    pub expired: u64,
    /// Records that may or may not be in the log.
    pub unknown: u64,
    /// The first failure among them.
    pub first_error: Option<PublishError>,
}

impl FlushReport {
    /// Every record is acknowledged (or, without acks, sent).
    pub fn is_clean(&self) -> bool {
        self.refused + self.expired + self.unknown == 0
    }
}

/// Records waiting, per shard.
#[derive(Debug)]
pub struct Intake {
    starts: Vec<u64>,
    fixed_shard: Option<usize>,
    lanes: Vec<VecDeque<Pending>>,
    waiting: usize,
    sticky: usize,
    sticky_open: bool,
    bytes: usize,
    bytes_max: usize,
    batch_bytes_max: usize,
    generation: u64,
    /// Records without outcome per flush generation, oldest first.
    outstanding: VecDeque<(u64, u64)>,
    report: FlushReport,
    spare: Vec<BatchBuilder>,
    closed: bool,
    /// The last record found no room, and none was made since.
    starved: bool,
}

impl Intake {
    /// For a stream whose shards begin at these key hashes. `fixed_shard`: everything goes there.
    pub fn new(starts: Vec<u64>, fixed_shard: Option<u32>, bytes_max: usize, batch_bytes_max: usize) -> Intake {
        let fixed_shard = fixed_shard.map(|it| it as usize);
        let lanes = starts.len().max(fixed_shard.map_or(1, |it| it + 1));
        Intake {
            starts,
            fixed_shard,
            lanes: std::iter::repeat_with(VecDeque::new).take(lanes).collect(),
            waiting: 0,
            sticky: lanes - 1,
            sticky_open: false,
            bytes: 0,
            bytes_max: bytes_max.max(1),
            batch_bytes_max,
            generation: 0,
            outstanding: VecDeque::new(),
            report: FlushReport::default(),
            spare: Vec::new(),
            closed: false,
            starved: false,
        }
    }

    /// Takes a record. `WouldBlock` if the bound on bytes in flight is reached.
    pub fn push(&mut self, now: Time, record: &RecordToPublish<'_>) -> Result<(), SendError> {
        self.push_with(now, record, None)
    }

    pub(crate) fn push_with(
        &mut self,
        now: Time,
        record: &RecordToPublish<'_>,
        ticket: Option<Arc<AckCell>>,
    ) -> Result<(), SendError> {
        if self.closed {
            return Err(SendError::Closed);
        }
        let headers_bytes: usize = record.headers.iter().map(|(name, value)| name.len() + value.len() + 10).sum();
        let content = record.key.map_or(0, <[u8]>::len) + headers_bytes + record.value.len();
        let needed = content + RECORD_OVERHEAD_BYTES;
        if BODY_HEADER_BYTES + needed > self.batch_bytes_max {
            return Err(SendError::TooLarge { bytes: BODY_HEADER_BYTES + needed, max: self.batch_bytes_max });
        }
        if self.bytes > 0 && self.bytes + needed > self.bytes_max {
            self.starved = true;
            return Err(SendError::WouldBlock);
        }
        let shard = self.shard_of(record.key);
        let limit = self.batch_bytes_max.min(BATCH_BYTES_TARGET);
        let lane = &mut self.lanes[shard];
        let generation = self.generation;
        let fits =
            lane.back().is_some_and(|it| it.generation == generation && it.builder.body_bytes() + needed <= limit);
        let fresh = if fits { None } else { Some(self.spare.pop().unwrap_or_default()) };
        let result = match fresh {
            None => match lane.back_mut() {
                Some(pending) => pending.builder.push(record),
                None => Err(PushError::Full),
            },
            Some(mut builder) => builder.push(record).map(|()| {
                self.waiting += 1;
                lane.push_back(Pending { builder, tickets: Vec::new(), since: now, charge: 0, generation });
            }),
        };
        match result {
            Ok(()) => {}
            // Only the number of records can fill a batch here; the next push begins another one.
            Err(PushError::Full) => {
                self.waiting += 1;
                let builder = self.spare.pop().unwrap_or_default();
                lane.push_back(Pending { builder, tickets: Vec::new(), since: now, charge: 0, generation });
                if let Some(pending) = lane.back_mut() {
                    pending.builder.push(record).map_err(SendError::Invalid)?;
                }
            }
            Err(error) => return Err(SendError::Invalid(error)),
        }
        if let Some(pending) = lane.back_mut() {
            pending.charge += needed;
            if let Some(ticket) = ticket {
                pending.tickets.push((pending.builder.record_count() - 1, ticket));
            }
        }
        self.bytes += needed;
        match self.outstanding.back_mut() {
            Some((last, count)) if *last == generation => *count += 1,
            _ => self.outstanding.push_back((generation, 1)),
        }
        Ok(())
    }

    fn shard_of(&mut self, key: Option<&[u8]>) -> usize {
        if let Some(shard) = self.fixed_shard {
            return shard;
        }
        if self.lanes.len() == 1 {
            return 0;
        }
        match key {
            Some(key) => find_range(&self.starts, key_hash(key)).unwrap_or(0),
            None => {
                // One shard per batch: sticky until its batch is taken, then the next.
                if !self.sticky_open || self.lanes[self.sticky].is_empty() {
                    self.sticky = (self.sticky + 1) % self.starts.len().max(1);
                    self.sticky_open = true;
                }
                self.sticky
            }
        }
    }

    /// Whether anything waits to be taken.
    pub fn has_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Shards something waits for.
    pub(crate) fn waiting_lanes(&self) -> impl Iterator<Item = usize> + '_ {
        self.lanes.iter().enumerate().filter(|(_, lane)| !lane.is_empty()).map(|(index, _)| index)
    }

    pub(crate) fn take(&mut self, lane: usize) -> Option<Pending> {
        let pending = self.lanes.get_mut(lane)?.pop_front()?;
        self.waiting -= 1;
        if lane == self.sticky {
            self.sticky_open = false;
        }
        Some(pending)
    }

    /// Takes the oldest batch of a lane if it has waited since `limit` or longer.
    pub(crate) fn take_older(&mut self, lane: usize, limit: Time) -> Option<Pending> {
        if self.lanes.get(lane)?.front()?.since <= limit { self.take(lane) } else { None }
    }

    /// When the oldest batch came.
    pub(crate) fn oldest(&self) -> Option<Time> {
        self.lanes.iter().filter_map(|lane| lane.front()).map(|it| it.since).min()
    }

    /// Gives a builder back for reuse.
    pub(crate) fn recycle(&mut self, builder: BatchBuilder) {
        if self.spare.len() < SPARE_MAX && builder.is_empty() {
            self.spare.push(builder);
        }
    }

    /// Books outcomes.
    pub(crate) fn settle(&mut self, tally: &mut Tally) {
        self.bytes = self.bytes.saturating_sub(tally.charge);
        self.starved &= tally.charge == 0;
        tally.charge = 0;
        for (generation, count) in tally.by_generation.drain(..) {
            if let Some(entry) = self.outstanding.iter_mut().find(|it| it.0 == generation) {
                entry.1 = entry.1.saturating_sub(count);
            }
        }
        while self.outstanding.front().is_some_and(|it| it.1 == 0) {
            self.outstanding.pop_front();
        }
        let report = std::mem::take(&mut tally.report);
        self.report.acked += report.acked;
        self.report.sent += report.sent;
        self.report.refused += report.refused;
        self.report.expired += report.expired;
        self.report.unknown += report.unknown;
        if self.report.first_error.is_none() {
            self.report.first_error = report.first_error;
        }
    }

    /// Ends a flush generation; everything pushed so far belongs to it or to one before.
    pub(crate) fn begin_flush(&mut self) -> u64 {
        self.generation += 1;
        self.generation - 1
    }

    /// Records up to a flush generation that have no outcome yet.
    pub(crate) fn unflushed(&self, generation: u64) -> u64 {
        self.outstanding.iter().filter(|it| it.0 <= generation).map(|it| it.1).sum()
    }

    /// What became of the records since the last report.
    pub fn take_report(&mut self) -> FlushReport {
        std::mem::take(&mut self.report)
    }

    /// Whether a record was refused for lack of room and none was made since.
    pub(crate) fn is_starved(&self) -> bool {
        self.starved && self.bytes > 0
    }

    /// Bytes charged for records without outcome.
    pub fn bytes_in_flight(&self) -> usize {
        self.bytes
    }

    /// Refuses every further record.
    pub fn close(&mut self) {
        self.closed = true;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// A new route: where keys go from now on. Lanes only grow, so that what waits stays where it is.
    pub(crate) fn reroute(&mut self, starts: Vec<u64>, batch_bytes_max: usize) {
        while self.lanes.len() < starts.len() {
            self.lanes.push(VecDeque::new());
        }
        self.starts = starts;
        self.batch_bytes_max = batch_bytes_max;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use felix_protocol::ids::ShardIndex;
    use felix_protocol::routing::even_range_start;

    fn intake(shards: u32, bytes_max: usize) -> Intake {
        let starts = (0..shards).map(|it| even_range_start(ShardIndex(it), shards)).collect();
        Intake::new(starts, None, bytes_max, 1 << 20)
    }

    fn record(key: Option<&'static [u8]>) -> RecordToPublish<'static> {
        RecordToPublish { key, value: b"value", ..Default::default() }
    }

    #[test]
    fn keys_go_to_their_range_and_keyless_batches_take_turns() {
        let mut intake = intake(4, 1 << 20);
        for key in [&b"a"[..], b"b", b"c", b"d", b"e"] {
            let hash = key_hash(key);
            let shard = ((u128::from(hash) * 4) >> 64) as usize;
            intake.push(Time(0), &RecordToPublish { key: Some(key), ..Default::default() }).unwrap();
            assert!(intake.waiting_lanes().any(|it| it == shard));
        }
        for lane in intake.waiting_lanes().collect::<Vec<_>>() {
            while intake.take(lane).is_some() {}
        }
        let mut lanes = Vec::new();
        for _ in 0..8 {
            intake.push(Time(0), &record(None)).unwrap();
            intake.push(Time(0), &record(None)).unwrap();
            let lane = intake.waiting_lanes().next().unwrap();
            assert_eq!(intake.take(lane).unwrap().builder.record_count(), 2, "one shard per batch");
            lanes.push(lane);
        }
        assert_eq!(lanes[..4].iter().collect::<std::collections::HashSet<_>>().len(), 4);
        assert_eq!(lanes[..4], lanes[4..]);
    }

    #[test]
    fn bytes_are_bounded_until_settled() {
        let mut intake = intake(1, 200);
        intake.push(Time(0), &record(None)).unwrap();
        intake.push(Time(0), &record(None)).unwrap();
        assert_eq!(intake.push(Time(0), &record(None)), Err(SendError::WouldBlock));
        let pending = intake.take(0).unwrap();
        assert_eq!(intake.push(Time(0), &record(None)), Err(SendError::WouldBlock), "taken is still in flight");
        let mut tally = Tally::default();
        tally.settle(pending.generation, 2, pending.charge, Outcome::Acked);
        intake.settle(&mut tally);
        assert_eq!((intake.bytes_in_flight(), tally.is_empty()), (0, true));
        intake.push(Time(0), &record(None)).unwrap();
        assert_eq!(intake.take_report(), FlushReport { acked: 2, ..Default::default() });
    }

    #[test]
    fn a_flush_covers_what_came_before_it() {
        let mut intake = intake(1, 1 << 20);
        intake.push(Time(0), &record(None)).unwrap();
        let first = intake.begin_flush();
        intake.push(Time(0), &record(None)).unwrap();
        assert_eq!(intake.unflushed(first), 1);
        let (one, two) = (intake.take(0).unwrap(), intake.take(0).unwrap());
        let mut tally = Tally::default();
        tally.settle(two.generation, 1, two.charge, Outcome::Acked);
        intake.settle(&mut tally);
        assert_eq!(intake.unflushed(first), 1, "the later one does not count for the earlier flush");
        tally.settle(one.generation, 1, one.charge, Outcome::Failed(&PublishError::Expired));
        intake.settle(&mut tally);
        assert_eq!(intake.unflushed(first), 0);
        assert!(!intake.take_report().is_clean());
    }

    #[test]
    fn limits_are_refused_and_cost_nothing() {
        let mut intake = Intake::new(vec![0], None, 1 << 30, 1_000);
        let big = vec![0; 2_000];
        assert!(matches!(
            intake.push(Time(0), &RecordToPublish { value: &big, ..Default::default() }),
            Err(SendError::TooLarge { max: 1_000, .. })
        ));
        assert!(matches!(
            intake.push(Time(0), &RecordToPublish { ttl_ms: Some(0), ..Default::default() }),
            Err(SendError::Invalid(PushError::BadTtl))
        ));
        assert_eq!((intake.bytes_in_flight(), intake.has_waiting()), (0, false));
        for _ in 0..20_000 {
            intake.push(Time(0), &RecordToPublish::default()).unwrap();
        }
        assert!(intake.take(0).unwrap().builder.record_count() > 10);
        intake.close();
        assert_eq!(intake.push(Time(0), &record(None)), Err(SendError::Closed));
    }
}
