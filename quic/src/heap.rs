//! The timers of one endpoint.
//!
//! **What.** A 4-ary heap with the position of each entry known, so each connection has at most one
//! timer and moving it leaves nothing behind.
//!
//! **Invariants.** `position[key]` is where `key` lies in `heap`, or `ABSENT`. A parent is never later
//! than its children.
//!
//! **Never.** A second entry for one connection: with 100,000 connections and a new deadline per
//! packet, stale entries would be most of the heap.
//!
//! **See** `endpoint.rs`: deadlines that move later are left alone until they fire.

use std::time::Instant;

const ARITY: usize = 4;
const ABSENT: u32 = u32::MAX;

/// Deadlines by connection slot.
#[derive(Default)]
pub(crate) struct TimerHeap {
    heap: Vec<(Instant, u32)>,
    position: Vec<u32>,
}

impl TimerHeap {
    /// The earliest deadline and its slot.
    pub(crate) fn first(&self) -> Option<(Instant, u32)> {
        self.heap.first().copied()
    }

    /// The deadline of a slot.
    pub(crate) fn deadline(&self, slot: u32) -> Option<Instant> {
        let at = *self.position.get(slot as usize)?;
        self.heap.get(at as usize).map(|entry| entry.0)
    }

    /// Sets the deadline of a slot, earlier or later.
    pub(crate) fn set(&mut self, slot: u32, deadline: Instant) {
        let index = slot as usize;
        if index >= self.position.len() {
            self.position.resize(index + 1, ABSENT);
        }
        let at = self.position[index];
        if at == ABSENT {
            self.heap.push((deadline, slot));
            self.position[index] = (self.heap.len() - 1) as u32;
            self.up(self.heap.len() - 1);
        } else {
            let at = at as usize;
            let before = self.heap[at].0;
            self.heap[at].0 = deadline;
            if deadline < before {
                self.up(at);
            } else {
                self.down(at);
            }
        }
    }

    /// Removes the deadline of a slot, if it has one.
    pub(crate) fn clear(&mut self, slot: u32) {
        let Some(&at) = self.position.get(slot as usize) else { return };
        if at == ABSENT {
            return;
        }
        let at = at as usize;
        self.position[slot as usize] = ABSENT;
        let last = self.heap.pop().expect("a positioned entry is in the heap");
        if at < self.heap.len() {
            self.heap[at] = last;
            self.position[last.1 as usize] = at as u32;
            self.down(at);
            self.up(at);
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.position[self.heap[a].1 as usize] = a as u32;
        self.position[self.heap[b].1 as usize] = b as u32;
    }

    fn up(&mut self, mut at: usize) {
        while at > 0 {
            let parent = (at - 1) / ARITY;
            if self.heap[parent].0 <= self.heap[at].0 {
                break;
            }
            self.swap(parent, at);
            at = parent;
        }
    }

    fn down(&mut self, mut at: usize) {
        loop {
            let first = at * ARITY + 1;
            let end = (first + ARITY).min(self.heap.len());
            let Some(least) = (first..end).min_by_key(|&child| self.heap[child].0) else { break };
            if self.heap[at].0 <= self.heap[least].0 {
                break;
            }
            self.swap(at, least);
            at = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    #[test]
    fn agrees_with_a_sorted_map_under_random_moves() {
        let start = Instant::now();
        let mut heap = TimerHeap::default();
        let mut model: BTreeMap<u32, Instant> = BTreeMap::new();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for step in 0..20_000 {
            let slot = (random() % 300) as u32;
            if random() % 4 == 0 {
                heap.clear(slot);
                model.remove(&slot);
            } else {
                let deadline = start + Duration::from_nanos(random() % 1_000_000);
                heap.set(slot, deadline);
                model.insert(slot, deadline);
            }
            assert_eq!(heap.first().map(|f| f.0), model.values().min().copied(), "step {step}");
            assert_eq!(heap.deadline(slot), model.get(&slot).copied());
            assert_eq!(heap.heap.len(), model.len(), "one entry per slot");
        }
        while let Some((deadline, slot)) = heap.first() {
            assert_eq!(model.values().min(), Some(&deadline));
            assert_eq!(model.remove(&slot), Some(deadline));
            heap.clear(slot);
        }
        assert!(model.is_empty());
    }
}
