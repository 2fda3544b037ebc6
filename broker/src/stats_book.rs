//! **What**: what the cores last reported of shards and subscribers, summed per stream for `top` and `describe`.
//!
//! **Invariants**: totals never go back: a tail that was taken down and made again counts on from its former sum. Only shards
//! that the metadata know have rows: a report may be on its way when a stream is deleted.
//!
//! **Never**: a question to a core: answers are as old as the last report (`report_interval_ns`).
//!
//! **See**: `core.rs` (report), `control_thread.rs`.

use crate::message::{CoreReport, ShardReport as CoreShardReport, TailReport};
use felix_control::query::{ShardReport, ShardReports};
use felix_control::state::State;
use felix_control::watch::{Change, PlacedStream};
use felix_protocol::frame::{Stats, StreamStats};
use felix_protocol::ids::{CoreId, ShardId, StreamId};
use felix_protocol::limits::LIST_PAGE_MAX;
use felix_protocol::names::StreamName;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, Default)]
struct Out {
    records: u64,
    bytes: u64,
    gaps: u64,
}

#[derive(Clone, Copy, Debug)]
struct TailRow {
    last: TailReport,
    /// Sums of former tails of this shard on this core.
    base: Out,
}

/// The last reports.
#[derive(Debug, Default)]
pub struct StatsBook {
    positions: ShardReports,
    shards: BTreeMap<ShardId, CoreShardReport>,
    tails: BTreeMap<(ShardId, CoreId), TailRow>,
    /// The streams that the metadata know, and the shards of all of them.
    streams: BTreeMap<StreamId, Vec<ShardId>>,
    known: BTreeSet<ShardId>,
}

impl StatsBook {
    /// Takes a report. Streams must be told first: cores hear of them later.
    pub fn take(&mut self, report: &CoreReport) {
        for row in report.shards.iter().filter(|row| self.known.contains(&row.status.shard)) {
            let status = &row.status;
            self.positions.insert(
                status.shard,
                ShardReport {
                    lineage: status.lineage,
                    log_start: status.log_start,
                    high_watermark: status.high_watermark,
                    retained_bytes: status.retained_bytes,
                },
            );
            self.shards.insert(status.shard, *row);
        }
        for tail in report.tails.iter().filter(|tail| self.known.contains(&tail.shard)) {
            let row =
                self.tails.entry((tail.shard, tail.core)).or_insert(TailRow { last: *tail, base: Out::default() });
            if tail.records_out < row.last.records_out || tail.gap_records < row.last.gap_records {
                row.base.records += row.last.records_out;
                row.base.bytes += row.last.bytes_out;
                row.base.gaps += row.last.gap_records;
            }
            row.last = *tail;
        }
    }

    /// These streams are all there are.
    pub fn on_table(&mut self, streams: &[PlacedStream]) {
        let stay: BTreeSet<StreamId> = streams.iter().map(|it| it.info.id).collect();
        let gone: Vec<StreamId> = self.streams.keys().filter(|id| !stay.contains(id)).copied().collect();
        gone.into_iter().for_each(|id| self.forget(id));
        streams.iter().for_each(|stream| self.learn(stream));
    }

    /// A stream was made or changed, or is gone.
    pub fn on_change(&mut self, change: &Change) {
        match change {
            Change::StreamPut { stream, .. } => self.learn(stream),
            Change::StreamRemoved { id, .. } => self.forget(*id),
        }
    }

    /// The shards of a stream stay what they are.
    fn learn(&mut self, stream: &PlacedStream) {
        let shards = stream.shards.iter().map(|place| place.shard);
        self.known.extend(shards.clone());
        self.streams.insert(stream.info.id, shards.collect());
    }

    fn forget(&mut self, stream: StreamId) {
        for shard in self.streams.remove(&stream).unwrap_or_default() {
            self.known.remove(&shard);
            self.positions.remove(&shard);
            self.shards.remove(&shard);
            let rows: Vec<_> =
                self.tails.range((shard, CoreId(0))..=(shard, CoreId(u8::MAX))).map(|(key, _)| *key).collect();
            for key in rows {
                self.tails.remove(&key);
            }
        }
    }

    /// Positions by shard, for `describe`.
    pub fn shard_reports(&self) -> &ShardReports {
        &self.positions
    }

    /// One page of streams after `after`.
    pub fn page(&self, state: &State, after: Option<&StreamName>, uptime_ms: u64, connections: u32) -> Stats {
        let mut rest = state.streams().filter(|it| after.is_none_or(|after| it.info.name > *after));
        let streams: Vec<StreamStats> = rest
            .by_ref()
            .take(LIST_PAGE_MAX as usize)
            .map(|stream| {
                let mut row = StreamStats {
                    name: stream.info.name.clone(),
                    records_in: 0,
                    bytes_in: 0,
                    records_out: 0,
                    bytes_out: 0,
                    subscriptions: 0,
                    lag_records_max: 0,
                    gap_records: 0,
                    retained_bytes: 0,
                };
                for place in &stream.shards {
                    self.add_shard(place.shard, &mut row);
                }
                row
            })
            .collect();
        Stats { uptime_ms, connections, streams, more: rest.next().is_some() }
    }

    fn add_shard(&self, shard: ShardId, row: &mut StreamStats) {
        let Some(report) = self.shards.get(&shard) else { return };
        row.records_in += report.records_in;
        row.bytes_in += report.bytes_in;
        row.retained_bytes += report.status.retained_bytes;
        for (_, tail) in self.tails.range((shard, CoreId(0))..=(shard, CoreId(u8::MAX))) {
            row.records_out += tail.base.records + tail.last.records_out;
            row.bytes_out += tail.base.bytes + tail.last.bytes_out;
            row.gap_records += tail.base.gaps + tail.last.gap_records;
            row.subscriptions += tail.last.subscriptions;
            if let Some(slowest) = tail.last.slowest {
                row.lag_records_max = row.lag_records_max.max(report.status.high_watermark.since(slowest));
            }
        }
    }
}

#[cfg(test)]
mod tests;
