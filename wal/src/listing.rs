//! **What**: what the files in a shard's folder are, given its meta: segments, strays, what is not ours.
//!
//! **Invariants**: pure: names, sizes and a meta in, an order of things out. A file that the meta does not explain is a stray;
//! a name that is not ours is left alone.
//!
//! **Never**: a conclusion from a missing file.
//!
//! **See**: `log_open.rs` and `check.rs`, which act on it.

use crate::disk::{FilePath, Listed};
use crate::format::meta::ShardMeta;
use crate::format::names::{Name, SegmentId};
use crate::log::SegmentRef;
use felix_protocol::ids::ShardId;
use felix_protocol::position::{Lineage, Offset, OffsetRange};

/// A shard's folder, sorted out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    /// Segments in order, the open one included, as they are after a switch.
    pub(crate) segments: Vec<SegmentRef>,
    /// Files that belong to nothing.
    pub(crate) strays: Vec<FilePath>,
    /// Names that are not ours.
    pub(crate) foreign: Vec<String>,
    /// Files that a switch still has to move away.
    pub(crate) replaced: Vec<FilePath>,
    /// A segment that the meta is too old to know: more than the one that a crash leaves of a flush.
    pub(crate) beyond_meta: Option<Offset>,
    /// The result of a switch under its temporary name, and the name it is to have.
    pub(crate) finished: Option<(FilePath, FilePath)>,
}

/// Number of segment files of this lineage or a later one in a folder without a meta.
pub(crate) fn segment_count(shard: ShardId, from: Lineage, list: &[Listed]) -> usize {
    let folder = Name::Shard(shard).path();
    let is_segment = |it: &&Listed| match Name::parse(&FilePath(format!("{folder}/{}", it.name))) {
        Some(Name::Segment(_, segment)) => segment.lineage >= from,
        _ => false,
    };
    list.iter().filter(is_segment).count()
}

pub(crate) fn segment_path(meta: &ShardMeta, base: Offset) -> FilePath {
    Name::Segment(meta.shard, SegmentId { lineage: meta.lineage, base_offset: base }).path()
}

pub(crate) fn index_path(meta: &ShardMeta, base: Offset) -> FilePath {
    Name::Index(meta.shard, SegmentId { lineage: meta.lineage, base_offset: base }).path()
}

/// Where a segment ends whose successor begins at `next`: a gap between them belongs to neither.
pub(crate) fn end_before_gap(meta: &ShardMeta, base: Offset, next: Offset) -> Offset {
    let gap = meta.gaps.iter().map(|gap| gap.from).find(|from| *from > base);
    gap.map_or(next, |from| from.min(next))
}

/// The first offset from `from` on that no gap has.
pub(crate) fn over_gaps(meta: &ShardMeta, from: Offset) -> Offset {
    meta.gaps.iter().fold(from, |at, gap| if (gap.from..gap.to).contains(&at) { gap.to } else { at })
}

/// Sorts a listing.
pub(crate) fn sort(meta: &ShardMeta, list: Vec<Listed>) -> Listing {
    let folder = Name::Shard(meta.shard).path();
    let mut out = Listing::default();
    let mut finished = None;
    let mut indexes = Vec::new();
    let mut unknown = Vec::new();
    for listed in list {
        let path = FilePath(format!("{folder}/{}", listed.name));
        match Name::parse(&path) {
            Some(Name::ShardMeta(_) | Name::Producers(_)) => {}
            Some(Name::Segment(_, segment)) if segment.lineage == meta.lineage => {
                let base = segment.base_offset;
                let is_void = meta.void_from.is_some_and(|from| base >= from);
                if is_void || base >= meta.flushed_to {
                    out.strays.push(path);
                    if !is_void {
                        unknown.push(base);
                    }
                } else {
                    out.segments.push(SegmentRef { base, bytes: listed.bytes });
                }
            }
            Some(Name::Index(_, segment)) if segment.lineage == meta.lineage => {
                indexes.push((segment.base_offset, path));
            }
            Some(Name::Temporary(meant)) => match (Name::parse(&meant), meta.switch) {
                (Some(Name::Segment(_, segment)), Some(range))
                    if segment.lineage == meta.lineage && segment.base_offset == range.from =>
                {
                    finished = Some((path, meant, listed.bytes));
                }
                _ => out.strays.push(path),
            },
            Some(_) => out.strays.push(path),
            None => out.foreign.push(listed.name),
        }
    }
    // A crash in a flush leaves one file that the meta does not know, never its index.
    let sealed = unknown.iter().find(|base| indexes.iter().any(|(it, _)| it == *base));
    out.beyond_meta = if unknown.len() > 1 { unknown.iter().max().copied() } else { sealed.copied() };
    if let Some(range) = meta.switch {
        out.settle_switch(meta, range, finished, &mut indexes);
    }
    let bases: Vec<Offset> = out.segments.iter().map(|it| it.base).collect();
    out.strays.extend(indexes.into_iter().filter(|(base, _)| !bases.contains(base)).map(|(_, path)| path));
    // Whole segments below the log start were given up; a crash came before they were moved.
    let whole_log = meta.log_start == meta.flushed_to && meta.open.is_none();
    let below = match whole_log {
        true => out.segments.len(),
        false => out.segments.partition_point(|it| it.base <= meta.log_start).saturating_sub(1),
    };
    for segment in out.segments.drain(..below) {
        out.strays.extend([segment_path(meta, segment.base), index_path(meta, segment.base)]);
    }
    out.strays.sort();
    out.strays.dedup();
    out
}

impl Listing {
    /// While the temporary file is there, names in the range are sources; without it the first is the result.
    fn settle_switch(
        &mut self,
        meta: &ShardMeta,
        range: OffsetRange,
        finished: Option<(FilePath, FilePath, u64)>,
        indexes: &mut Vec<(Offset, FilePath)>,
    ) {
        let in_range = |base: Offset| base >= range.from && base < range.to;
        let is_result = |base: Offset| finished.is_none() && base == range.from;
        let sources = self.segments.iter().map(|it| it.base).filter(|base| in_range(*base) && !is_result(*base));
        self.replaced = sources.map(|base| segment_path(meta, base)).collect();
        indexes.retain(|(base, path)| {
            let stays = !in_range(*base) || is_result(*base);
            if !stays {
                self.replaced.push(path.clone());
            }
            stays
        });
        self.segments.retain(|it| !in_range(it.base) || is_result(it.base));
        if let Some((path, meant, bytes)) = finished {
            self.finished = Some((path, meant));
            self.segments.push(SegmentRef { base: range.from, bytes });
            self.segments.sort_by_key(|it| it.base);
        }
    }
}
