//! **What**: entries of core WALs as a person sees them: one line per entry that counts, and what a WAL holds per shard.
//!
//! **Invariants**: only entries that a start would replay are shown, in its order.
//!
//! **Never**: values: a WAL is for starts, and its records come to segments.
//!
//! **See**: `felix_wal::recover`.

use felix_protocol::ids::ShardId;
use felix_protocol::position::{Offset, OffsetRange};
use felix_wal::disk::Disk;
use felix_wal::format::entry::{Entry, EntryBody, WalPosition};
use felix_wal::format::header::Identity;
use felix_wal::format::names::WalId;
use felix_wal::recover::{RecoverError, Recovery, Report};
use felix_wal::repair::InWal;
use std::collections::BTreeMap;

/// Bytes read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Calls back with every entry that counts.
pub fn each(
    disk: &mut dyn Disk,
    identity: Identity,
    each: impl FnMut(WalPosition, &Entry<'_>),
) -> Result<Report, RecoverError> {
    Recovery::new(identity, u32::MAX, PIECE_BYTES).run(disk, each)
}

/// One line.
pub fn line(position: WalPosition, entry: &Entry<'_>) -> String {
    let what = match &entry.body {
        EntryBody::Append(it) => format!(
            "append lineage {} epoch {} offsets {}..{} bytes {}{}",
            it.lineage.0,
            it.epoch.0,
            it.base_offset,
            it.base_offset.0.saturating_add(it.offset_count.into()),
            it.batch.len(),
            if it.sealed_by.is_some() { " sealed" } else { "" }
        ),
        EntryBody::Truncate { lineage, epoch, to } => {
            format!("truncate lineage {} epoch {} to {to}", lineage.0, epoch.0)
        }
        EntryBody::Promise { lineage, epoch } => format!("promise lineage {} epoch {}", lineage.0, epoch.0),
        EntryBody::EpochStart { lineage, epoch, start } => {
            format!("epoch-start lineage {} epoch {} at {start}", lineage.0, epoch.0)
        }
        EntryBody::Create { stream, lineage, epoch, settings } => {
            format!("create stream {stream} lineage {} epoch {} settings {} bytes", lineage.0, epoch.0, settings.len())
        }
        EntryBody::Delete { lineage } => format!("delete lineage {}", lineage.0),
        EntryBody::FlushedTo { lineage, offset, through, copied } => format!(
            "flushed lineage {} to {offset} entries through {through}{}",
            lineage.0,
            if *copied { " copied" } else { "" }
        ),
        EntryBody::Rehome { lineage, incarnation, from } => {
            format!("rehome lineage {} incarnation {incarnation} from entry {from}", lineage.0)
        }
        EntryBody::Seal { synced_through, clean } => {
            format!("seal groups through {synced_through}{}", if *clean { " clean" } else { "" })
        }
    };
    let copy = entry.copied_from.map_or_else(String::new, |lsn| format!(" (a copy of {lsn})"));
    format!("{} entry {} shard {:016x} {what}{copy}", position.wal, position.lsn, entry.shard.0)
}

/// By shard: offsets from the first to the last, batches.
pub type Appended = BTreeMap<ShardId, (OffsetRange, u64)>;

/// Records that a WAL holds and that count.
pub fn appended(disk: &mut dyn Disk, identity: Identity, wal: WalId) -> Result<(Report, Appended), RecoverError> {
    let mut shards = Appended::new();
    let report = each(disk, identity, |position, entry| {
        let EntryBody::Append(append) = &entry.body else { return };
        if position.wal != wal {
            return;
        }
        let from = append.base_offset;
        let to = Offset(from.0.saturating_add(append.offset_count.into()));
        let (range, batches) = shards.entry(entry.shard).or_insert((OffsetRange { from, to }, 0));
        range.from = range.from.min(from);
        range.to = range.to.max(to);
        *batches += 1;
    })?;
    Ok((report, shards))
}

/// What a start would replay of one shard. Refused while a WAL is damaged: what it lost may be of this shard.
pub fn of_shard(disk: &mut dyn Disk, identity: Identity, shard: ShardId) -> Result<Option<InWal>, String> {
    let mut found: Option<InWal> = None;
    let report = each(disk, identity, |position, entry| {
        let EntryBody::Append(append) = &entry.body else { return };
        if entry.shard != shard {
            return;
        }
        let end = Offset(append.base_offset.0.saturating_add(append.offset_count.into()));
        let key = |it: WalPosition| (it.wal.session, it.lsn);
        let held = found.get_or_insert(InWal { last: position, end });
        held.end = held.end.max(end);
        if key(position) > key(held.last) {
            held.last = position;
        }
    })
    .map_err(|error| format!("the write-ahead log cannot be read: {error}"))?;
    match report.wals.iter().find(|it| it.is_damaged()) {
        Some(wal) => Err(format!("{} is damaged and may hold records of the shard; decide about it first", wal.wal)),
        None => Ok(found),
    }
}
