//! **What**: what must hold of a shard's log after every commit.
//!
//! **Invariants**: the list below, in words of the drawing in `log.rs`.
//!
//! **Never**: a look at the disk.
//!
//! **See**: `log.rs`, which calls this.

use crate::log::ShardLog;
use felix_protocol::position::{Offset, OffsetRange};

/// Panics if the memory of a log contradicts itself: its offsets may not be trusted then.
pub(crate) fn check(log: &ShardLog) {
    let meta = &log.meta;
    assert_eq!(meta.fault(), None, "the meta of shard {}", meta.shard);
    let mut before: Option<Offset> = None;
    for segment in &log.segments {
        assert!(before.is_none_or(|base| base < segment.base), "segments of shard {} out of order", meta.shard);
        assert!(segment.base < meta.flushed_to, "a segment of shard {} beyond its end", meta.shard);
        before = Some(segment.base);
    }
    let open = log.open.as_ref();
    assert_eq!(open.map(|it| (it.base, it.used_bytes)), meta.open.map(|it| (it.base, it.used_bytes)));
    if let Some(open) = open {
        assert!(before.is_none_or(|base| base < open.base), "the open segment of shard {} is not last", meta.shard);
        assert!(open.used_bytes <= open.size);
    }
    let first = log.segments.first().map(|it| it.base).or(open.map(|it| it.base));
    if let Some(first) = first {
        // What is missing in front was given up, or the log knows that it is gone and serves none of it.
        let given_up = |gap: &OffsetRange| gap.from <= meta.log_start && gap.to >= first;
        let is_damaged = || log.damaged.covers(OffsetRange { from: meta.log_start, to: first });
        let begins = first <= meta.log_start || meta.gaps.iter().any(given_up) || is_damaged();
        assert!(begins, "shard {} says it begins before its first segment", meta.shard);
    }
}
