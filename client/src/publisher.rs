//! **What**: the handle of a publisher.
//!
//! **Invariants**: a record that `send` took gets exactly one outcome, which `send_acked` gives to its future and
//! `flush` counts. `Publisher` can be shared by threads; records of one thread keep their order per shard.
//!
//! **Never**: waiting without a deadline.
//!
//! **See**: `intake.rs` for what happens under the lock, `engine/publishing.rs` for what happens then.

use crate::ack::{AckCell, AckFuture};
use crate::config::PublisherOptions;
use crate::error::{FlushError, SendError};
use crate::intake::{FlushReport, Intake};
use crate::shared::{Shared, lock, wall};
use felix_protocol::batch_builder::RecordToPublish;
use felix_protocol::frame::Route;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Guarded {
    pub(crate) intake: Intake,
    wakers: Vec<Waker>,
}

/// What a publisher's handle and the driver share.
#[derive(Debug)]
pub(crate) struct Outbox {
    guarded: Mutex<Guarded>,
    /// Room was made, or outcomes were settled.
    progress: Condvar,
    /// Something was pushed since the driver last looked.
    dirty: AtomicBool,
    dropped: AtomicBool,
}

impl Outbox {
    pub(crate) fn new(intake: Intake) -> Arc<Outbox> {
        Arc::new(Outbox {
            guarded: Mutex::new(Guarded { intake, wakers: Vec::new() }),
            progress: Condvar::new(),
            dirty: AtomicBool::new(false),
            dropped: AtomicBool::new(false),
        })
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::SeqCst)
    }

    pub(crate) fn take_dirty(&self) -> bool {
        self.dirty.load(Ordering::Relaxed) && self.dirty.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::SeqCst)
    }

    /// Runs the driver's part under the lock and tells whoever waits. Returns whether records still wait.
    pub(crate) fn drive(&self, act: impl FnOnce(&mut Intake)) -> bool {
        let mut guarded = lock(&self.guarded);
        let before = guarded.intake.bytes_in_flight();
        act(&mut guarded.intake);
        let waiting = guarded.intake.has_waiting();
        let progress = guarded.intake.bytes_in_flight() < before || guarded.intake.is_closed();
        let wakers = if progress { std::mem::take(&mut guarded.wakers) } else { Vec::new() };
        drop(guarded);
        if progress {
            self.progress.notify_all();
            wakers.into_iter().for_each(Waker::wake);
        }
        waiting
    }

    /// Ends a flush generation. For a driver that flushes by itself.
    pub(crate) fn begin_flush(&self) -> u64 {
        lock(&self.guarded).intake.begin_flush()
    }

    /// The report, once all records of the generation have their outcome.
    pub(crate) fn try_flush(&self, generation: u64) -> Result<Option<FlushReport>, FlushError> {
        let mut guarded = lock(&self.guarded);
        if guarded.intake.unflushed(generation) == 0 {
            return Ok(Some(guarded.intake.take_report()));
        }
        if guarded.intake.is_closed() { Err(FlushError::Closed) } else { Ok(None) }
    }

    pub(crate) fn unflushed(&self, generation: u64) -> u64 {
        lock(&self.guarded).intake.unflushed(generation)
    }
}

/// Publishes records to one stream.
#[derive(Debug)]
pub struct Publisher {
    outbox: Arc<Outbox>,
    shared: Arc<Shared>,
    options: PublisherOptions,
    route: Arc<Route>,
}

impl Publisher {
    pub(crate) fn new(
        outbox: Arc<Outbox>,
        shared: Arc<Shared>,
        options: PublisherOptions,
        route: Arc<Route>,
    ) -> Publisher {
        Publisher { outbox, shared, options, route }
    }

    pub(crate) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// Its settings.
    pub fn options(&self) -> &PublisherOptions {
        &self.options
    }

    /// The stream's route when the publisher was made.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// Takes a record; waits for room up to the publisher's deadline. A record time of 0 becomes the time now.
    pub fn send(&self, record: &RecordToPublish<'_>) -> Result<(), SendError> {
        self.push(record, None, true)
    }

    /// Takes a record, or says `WouldBlock`. Never waits.
    pub fn try_send(&self, record: &RecordToPublish<'_>) -> Result<(), SendError> {
        self.push(record, None, false)
    }

    /// Like `send`; the future tells the record's position. (Of a publisher without acks it tells that the outcome is
    /// unknown, once the record is on its way.)
    pub fn send_acked(&self, record: &RecordToPublish<'_>) -> Result<AckFuture, SendError> {
        let cell = Arc::new(AckCell::default());
        self.push(record, Some(cell.clone()), true)?;
        Ok(AckFuture { cell })
    }

    /// Like `send_acked`, but never waits.
    pub fn try_send_acked(&self, record: &RecordToPublish<'_>) -> Result<AckFuture, SendError> {
        let cell = Arc::new(AckCell::default());
        self.push(record, Some(cell.clone()), false)?;
        Ok(AckFuture { cell })
    }

    fn push(&self, record: &RecordToPublish<'_>, cell: Option<Arc<AckCell>>, wait: bool) -> Result<(), SendError> {
        let mut record = *record;
        if record.time.0 == 0 {
            record.time = wall();
        }
        let begun = Instant::now();
        let mut guarded = lock(&self.outbox.guarded);
        loop {
            // The deadline of a record begins when it is taken, so that waiting for room does not eat it up.
            match guarded.intake.push_with(self.shared.time(begun), &record, cell.clone()) {
                Err(SendError::WouldBlock) if wait => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
            let left = (begun + self.options.deadline).saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(SendError::TimedOut);
            }
            let waited = self.outbox.progress.wait_timeout(guarded, left).unwrap_or_else(PoisonError::into_inner);
            guarded = waited.0;
        }
        let was_dirty = self.outbox.dirty.swap(true, Ordering::SeqCst);
        drop(guarded);
        if !was_dirty {
            self.shared.wake();
        }
        Ok(())
    }

    /// A future that is ready when room was made since `try_send` said `WouldBlock`, for runtimes: `publisher.room().await; publisher.try_send(..)`.
    pub fn room(&self) -> Room<'_> {
        Room { publisher: self }
    }

    /// Bytes of records without outcome.
    pub fn bytes_in_flight(&self) -> usize {
        lock(&self.outbox.guarded).intake.bytes_in_flight()
    }

    /// Waits until every record taken before has its outcome, at most the publisher's deadline and a little. The
    /// report covers everything since the flush before.
    pub fn flush(&self) -> Result<FlushReport, FlushError> {
        // A record taken just now has the whole deadline; its outcome is booked a moment later.
        let deadline = Instant::now() + self.options.deadline + Duration::from_secs(1);
        let mut guarded = lock(&self.outbox.guarded);
        let generation = guarded.intake.begin_flush();
        loop {
            let records = guarded.intake.unflushed(generation);
            if records == 0 {
                return Ok(guarded.intake.take_report());
            }
            if guarded.intake.is_closed() {
                return Err(FlushError::Closed);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(FlushError::TimedOut { records });
            }
            let waited = self.outbox.progress.wait_timeout(guarded, left).unwrap_or_else(PoisonError::into_inner);
            guarded = waited.0;
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.outbox.dropped.store(true, Ordering::SeqCst);
        self.shared.attend();
    }
}

/// Ready when a publisher has room.
#[derive(Debug)]
pub struct Room<'a> {
    publisher: &'a Publisher,
}

impl Future for Room<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut guarded = lock(&self.publisher.outbox.guarded);
        if !guarded.intake.is_starved() || guarded.intake.is_closed() {
            return Poll::Ready(());
        }
        if !guarded.wakers.iter().any(|it| it.will_wake(context.waker())) {
            guarded.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }
}
