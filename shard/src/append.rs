//! **What**: the append stage: judge the producer, assign offsets, stamp, chain, append.
//!
//! **Invariants**: offsets are contiguous; append time never runs backwards in a shard; a refused or duplicate batch
//! changes nothing.
//!
//! **Never**: an ack from here: that is `shard.rs` after commit.
//!
//! **See**: `dedup.rs` for the verdicts, `shard.rs` for the stages around this one.

use crate::batch_pool::{BatchPool, CheckedBatch};
use crate::dedup::Verdict;
use crate::limits::Limits;
use crate::shard::Shard;
use crate::store::Store;
use felix_protocol::batch::{BatchKind, StampedHeader};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::position::Offset;
use felix_protocol::time::Now;
use felix_wal::format::entry::Lsn;

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is in the log, its first record at this offset; of a durable shard, under this number in the WAL.
    New(Offset, Option<Lsn>),
    /// It was there already.
    Duplicate(Offset),
    /// It is not taken.
    Refused(ErrorCode),
}

/// Appends a checked batch to a shard's log.
pub fn append(
    shard: &mut Shard,
    now: Now,
    batch: CheckedBatch,
    store: Option<&mut Store>,
    pool: &mut BatchPool,
    limits: &Limits,
) -> Appended {
    let facts = *batch.facts();
    let append_time = now.wall.max(shard.last_append);
    match shard.dedup.judge(&facts, append_time, limits) {
        Verdict::New => {}
        Verdict::Duplicate { base_offset } => {
            pool.put_back(batch);
            shard.counters.duplicates += 1;
            return Appended::Duplicate(base_offset);
        }
        Verdict::Refuse(code) => {
            pool.put_back(batch);
            return Appended::Refused(code);
        }
    }
    if shard.log.held_bytes() > limits.held_bytes_max {
        pool.put_back(batch);
        return Appended::Refused(ErrorCode::Overloaded);
    }
    let base_offset = shard.log.log_end();
    if base_offset.checked_add(u64::from(facts.record_count)).is_none() {
        pool.put_back(batch);
        return Appended::Refused(ErrorCode::QuotaExceeded);
    }
    let mut header = StampedHeader {
        batch_bytes: batch.batch_bytes() as u32,
        kind: BatchKind::Data,
        flags: 0,
        offset_count: facts.record_count,
        stream: shard.config.stream,
        shard: shard.config.shard,
        epoch: shard.config.epoch,
        lineage: shard.config.lineage,
        tlv_bytes: 0,
        base_offset,
        append_time,
        // An ephemeral log has no durable part.
        durable_end: shard.part.as_ref().map_or(Offset(0), |part| part.durable_to),
        chain: 0,
    };
    header.link(shard.chain, facts.crc);
    let batch_bytes = batch.batch_bytes() as u64;
    let stamped = batch.stamp(header);
    let mut lsn = None;
    if let Some(part) = &mut shard.part {
        let taken = store.ok_or(ErrorCode::Internal).and_then(|store| store.append(now, part, &stamped));
        match taken {
            Ok(taken) => lsn = Some(taken),
            Err(code) => {
                // Nobody else has seen it.
                let _ = pool.recycle(stamped);
                return Appended::Refused(code);
            }
        }
    }
    shard.chain = header.chain;
    shard.last_append = append_time;
    shard.counters.records_in += u64::from(facts.record_count);
    shard.counters.bytes_in += batch_bytes;
    shard.dedup.remember(&facts, base_offset, append_time, limits);
    shard.log.append(stamped);
    Appended::New(base_offset, lsn)
}
