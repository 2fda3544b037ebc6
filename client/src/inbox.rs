//! **What**: items on their way from the driver to a subscriber's handle.
//!
//! **Invariants**: bounded by the credit that the driver granted; credit is given back for what was taken out, in steps
//! of `REPORT_BYTES`. The end comes after all items.
//!
//! **Never**: decompression under the lock.
//!
//! **See**: `subscription.rs` for the credit, `subscriber.rs` for the reader.

use crate::error::SubscribeError;
use crate::item::Item;
use crate::shared::lock;
use crate::subscription::WINDOW_BYTES_MIN;
use felix_protocol::position::Position;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::Waker;
use std::time::Instant;

/// Bytes consumed before the driver is told: a wake-up per item would cost more than the item.
const REPORT_BYTES: u64 = 128 << 10;
// What is not reported and not granted yet must leave room for a frame of the largest size.
const _: () = assert!(
    WINDOW_BYTES_MIN - WINDOW_BYTES_MIN / 4 - (REPORT_BYTES as usize) >= felix_protocol::limits::FRAME_BYTES_MAX
);

#[derive(Debug, Default)]
struct State {
    items: VecDeque<(u32, u64, Item)>,
    /// Bytes per lane since the last report.
    consumed: Vec<(u32, u64)>,
    unreported: u64,
    end: Option<SubscribeError>,
    /// Where each shard ended when the subscriber began.
    committed: Vec<Position>,
    waker: Option<Waker>,
    waiting: usize,
}

/// The queue between driver and reader.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    ready: Condvar,
    dirty: AtomicBool,
    dropped: AtomicBool,
}

impl Inbox {
    pub(crate) fn new() -> Arc<Inbox> {
        Arc::default()
    }

    // ---- driver -------------------------------------------------------------------------------------------------

    pub(crate) fn push(&self, lane: u32, cost: u64, item: Item) {
        let mut state = lock(&self.state);
        // Progress upon progress: the reader needs only the last.
        match (state.items.back_mut(), &item) {
            (Some((last, sum, Item::Progress { to, .. })), Item::Progress { to: new, .. }) if *last == lane => {
                *to = *new;
                *sum += cost;
            }
            _ => state.items.push_back((lane, cost, item)),
        }
        self.tell(state);
    }

    /// All shards are live.
    pub(crate) fn began(&self, committed: Vec<Position>) {
        lock(&self.state).committed = committed;
    }

    pub(crate) fn finish(&self, error: SubscribeError) {
        let mut state = lock(&self.state);
        state.end.get_or_insert(error);
        self.tell(state);
    }

    fn tell(&self, mut state: std::sync::MutexGuard<'_, State>) {
        let waker = state.waker.take();
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.ready.notify_all();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Bytes consumed per lane since the last call, if it is worth telling.
    pub(crate) fn take_consumed(&self) -> Vec<(u32, u64)> {
        if !self.dirty.load(Ordering::Relaxed) || !self.dirty.swap(false, Ordering::SeqCst) {
            return Vec::new();
        }
        let mut state = lock(&self.state);
        state.unreported = 0;
        std::mem::take(&mut state.consumed)
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::SeqCst)
    }

    pub(crate) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::SeqCst)
    }

    // ---- reader -------------------------------------------------------------------------------------------------

    /// Where each shard ended when the subscriber began.
    pub(crate) fn committed(&self) -> Vec<Position> {
        lock(&self.state).committed.clone()
    }

    /// The next item; the flag says that the driver should be woken. None: nothing is there.
    pub(crate) fn try_pop(&self) -> Option<(Result<Item, SubscribeError>, bool)> {
        self.pop_locked(&mut lock(&self.state))
    }

    fn pop_locked(&self, state: &mut State) -> Option<(Result<Item, SubscribeError>, bool)> {
        let Some((lane, cost, item)) = state.items.pop_front() else {
            return state.end.clone().map(|error| (Err(error), false));
        };
        match state.consumed.iter_mut().find(|it| it.0 == lane) {
            Some(entry) => entry.1 += cost,
            None => state.consumed.push((lane, cost)),
        }
        state.unreported += cost;
        let report = state.unreported >= REPORT_BYTES && !self.dirty.swap(true, Ordering::SeqCst);
        Some((Ok(item), report))
    }

    /// Waits for an item until the deadline; None: without end.
    pub(crate) fn pop(&self, deadline: Option<Instant>) -> Option<(Result<Item, SubscribeError>, bool)> {
        let mut state = lock(&self.state);
        loop {
            if let Some(found) = self.pop_locked(&mut state) {
                return Some(found);
            }
            state.waiting += 1;
            match deadline {
                None => state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        state.waiting -= 1;
                        return None;
                    }
                    state = self.ready.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
            state.waiting -= 1;
        }
    }

    /// The next item, or the waker is kept until there is one.
    pub(crate) fn poll_pop(&self, waker: &Waker) -> Option<(Result<Item, SubscribeError>, bool)> {
        let mut state = lock(&self.state);
        let found = self.pop_locked(&mut state);
        if found.is_none() {
            match &mut state.waker {
                Some(kept) => kept.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
        found
    }

    pub(crate) fn drop_reader(&self) {
        self.dropped.store(true, Ordering::SeqCst);
    }
}
