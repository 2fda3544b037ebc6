//! **What**: the future of one acknowledgement: one cell, written once by the driver, read by whoever waits.
//!
//! **Invariants**: a cell gets exactly one result. A future that is dropped costs nothing but its cell.
//!
//! **Never**: a lock held while somebody else's waker runs.
//!
//! **See**: `channel.rs`, which fills cells.

use crate::error::{PublishError, UnknownReason};
use felix_protocol::ids::ShardIndex;
use felix_protocol::metadata::Durability;
use felix_protocol::position::{Epoch, Position};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

/// Where a record is, and what the acknowledgement is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acked {
    /// Shard of the stream.
    pub shard: ShardIndex,
    /// Position of the record.
    pub position: Position,
    /// Leader generation that appended it.
    pub epoch: Epoch,
    /// What had been reached when the broker acknowledged.
    pub durability: Durability,
}

#[derive(Debug, Default)]
struct State {
    result: Option<Result<Acked, PublishError>>,
    waker: Option<Waker>,
}

/// The cell between driver and waiter.
#[derive(Debug, Default)]
pub(crate) struct AckCell {
    state: Mutex<State>,
    ready: Condvar,
}

impl AckCell {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the result.
    pub(crate) fn complete(&self, result: Result<Acked, PublishError>) {
        let mut state = self.lock();
        state.result.get_or_insert(result);
        let waker = state.waker.take();
        drop(state);
        self.ready.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The acknowledgement of one record: a future for any runtime, or something to wait for.
#[derive(Debug)]
#[must_use = "an acknowledgement that nobody looks at proves nothing; use `send` and `flush`"]
pub struct AckFuture {
    pub(crate) cell: Arc<AckCell>,
}

impl AckFuture {
    /// Waits until the result is there or `deadline` passed; then the outcome is unknown.
    pub fn wait(self, deadline: Instant) -> Result<Acked, PublishError> {
        let mut state = self.cell.lock();
        loop {
            if let Some(result) = &state.result {
                return result.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(PublishError::UnknownOutcome { reason: UnknownReason::Deadline });
            }
            let waited = self.cell.ready.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
        }
    }

    /// The result if it is there.
    pub fn try_get(&self) -> Option<Result<Acked, PublishError>> {
        self.cell.lock().result.clone()
    }
}

impl Future for AckFuture {
    type Output = Result<Acked, PublishError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.cell.lock();
        match &state.result {
            Some(result) => Poll::Ready(result.clone()),
            None => {
                match &mut state.waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}
