//! **What**: the places of a log that are known to be damaged.
//!
//! **Invariants**: in order, apart from each other, at most `DAMAGED_RANGES_MAX`; when there are more, the two that are nearest
//! become one, so that what was noted stays noted.
//!
//! **Never**: a range that shrinks: only a repair, without the log, ends damage.
//!
//! **See**: `log.rs`, `read.rs` which serves nothing of them.

use felix_protocol::position::{Offset, OffsetRange};

/// Ranges that are told apart: bounds what a log with a bad disk holds, 16 bytes each.
const DAMAGED_RANGES_MAX: usize = 16;

/// Damaged places of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DamagedRanges(Vec<OffsetRange>);

impl DamagedRanges {
    pub(crate) fn add(&mut self, range: OffsetRange) {
        let touches = |it: &OffsetRange| it.from <= range.to && range.from <= it.to;
        let first = self.0.iter().position(touches);
        let at = first.unwrap_or_else(|| self.0.partition_point(|it| it.from < range.from));
        let count = self.0.iter().skip(at).take_while(|it| touches(it)).count();
        let joined = self.0[at..at + count].iter().fold(range, join);
        self.0.splice(at..at + count, [joined]);
        if self.0.len() > DAMAGED_RANGES_MAX {
            let apart = |at: &usize| self.0[at + 1].from.0 - self.0[*at].to.0;
            let nearest = (0..self.0.len() - 1).min_by_key(apart).unwrap_or(0);
            let joined = join(self.0[nearest], &self.0[nearest + 1]);
            self.0.splice(nearest..nearest + 2, [joined]);
        }
    }

    /// The damaged place that an offset lies in.
    pub(crate) fn at(&self, offset: Offset) -> Option<OffsetRange> {
        self.0.iter().copied().find(|it| (it.from..it.to).contains(&offset))
    }

    /// All of a range is damaged.
    pub(crate) fn covers(&self, range: OffsetRange) -> bool {
        self.0.iter().any(|it| it.from <= range.from && it.to >= range.to)
    }

    /// From the first damaged offset to the last; None: nothing is damaged.
    pub(crate) fn outline(&self) -> Option<OffsetRange> {
        self.0.iter().copied().reduce(|all, it| join(all, &it))
    }

    pub(crate) fn held_bytes(&self) -> usize {
        self.0.capacity() * size_of::<OffsetRange>()
    }
}

fn join(one: OffsetRange, other: &OffsetRange) -> OffsetRange {
    OffsetRange { from: one.from.min(other.from), to: one.to.max(other.to) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range((from, to): (u64, u64)) -> OffsetRange {
        OffsetRange { from: Offset(from), to: Offset(to) }
    }

    fn check(added: &[(u64, u64)], held: &[(u64, u64)]) {
        let mut ranges = DamagedRanges::default();
        added.iter().for_each(|it| ranges.add(range(*it)));
        assert_eq!(ranges.0, held.iter().map(|it| range(*it)).collect::<Vec<_>>(), "{added:?}");
    }

    #[test]
    fn ranges_are_kept_apart_and_joined_where_they_touch() {
        check(&[(5, 6), (1, 2), (9, 10)], &[(1, 2), (5, 6), (9, 10)]);
        check(&[(1, 2), (5, 6), (2, 5)], &[(1, 6)]);
        check(&[(1, 2), (5, 6), (9, 12), (4, 10)], &[(1, 2), (4, 12)]);
        check(&[(1, 9), (3, 4)], &[(1, 9)]);
        // The outer end of the first is far beyond the second.
        check(&[(3, 4), (6, 7), (0, 20)], &[(0, 20)]);
    }

    #[test]
    fn too_many_become_fewer_and_all_stays_noted() {
        let mut ranges = DamagedRanges::default();
        for at in (0..4_000).step_by(7).map(|at| at * at) {
            ranges.add(range((at, at + 1)));
            assert!(ranges.at(Offset(at)).is_some() && ranges.0.len() <= DAMAGED_RANGES_MAX);
        }
        assert!((0..4_000).step_by(7).all(|at| ranges.covers(range((at * at, at * at + 1)))));
        assert!(ranges.at(Offset(3_990 * 3_990 - 1)).is_none(), "far apart");
        assert_eq!(ranges.outline(), Some(range((0, 3_997 * 3_997 + 1))));
    }
}
