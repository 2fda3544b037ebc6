//! **What**: the handle of a subscriber: a blocking reader, an iterator, a `Stream` for any runtime.
//!
//! **Invariants**: items of one shard come in order; after an error nothing more comes. Taking an item is what gives
//! the broker credit for more.
//!
//! **Never**: a background buffer beyond the credit.
//!
//! **See**: `inbox.rs`, `item.rs`.

use crate::error::SubscribeError;
use crate::inbox::Inbox;
use crate::item::{Item, Record};
use crate::shared::Shared;
use felix_protocol::position::Position;
use futures_core::Stream;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Reads a stream.
#[derive(Debug)]
pub struct Subscriber {
    inbox: Arc<Inbox>,
    shared: Arc<Shared>,
    ended: bool,
}

impl Subscriber {
    pub(crate) fn new(inbox: Arc<Inbox>, shared: Arc<Shared>) -> Subscriber {
        Subscriber { inbox, shared, ended: false }
    }

    /// Where each of its shards ended when it began, in their order: one past the last committed record. Who reads from
    /// the earliest up to there has all that was there; expired records before it are told as progress.
    pub fn committed(&self) -> Vec<Position> {
        self.inbox.committed()
    }

    /// The next item; `Ok(None)` if none came within the timeout (None: waits without end).
    pub fn next_item(&mut self, timeout: Option<Duration>) -> Result<Option<Item>, SubscribeError> {
        let deadline = timeout.and_then(|it| Instant::now().checked_add(it));
        match self.inbox.pop(deadline) {
            Some(found) => self.hand_out(found).map(Some),
            None => Ok(None),
        }
    }

    /// The next item if it is there. Never waits.
    pub fn try_next(&mut self) -> Result<Option<Item>, SubscribeError> {
        match self.inbox.try_pop() {
            Some(found) => self.hand_out(found).map(Some),
            None => Ok(None),
        }
    }

    fn hand_out(&mut self, (item, report): (Result<Item, SubscribeError>, bool)) -> Result<Item, SubscribeError> {
        if report {
            self.shared.wake();
        }
        let result = item.and_then(|mut item| {
            if let Item::Records(batch) = &mut item {
                batch.open().map_err(SubscribeError::Protocol)?;
            }
            Ok(item)
        });
        if let Err(error) = &result {
            self.ended = true;
            self.inbox.finish(error.clone());
        }
        result
    }

    /// Record by record, owned; gaps, progress and resets are passed over. Ends when the client is closed.
    pub fn records(self) -> RecordIter {
        RecordIter { subscriber: self, ready: VecDeque::new() }
    }
}

impl Iterator for Subscriber {
    type Item = Result<Item, SubscribeError>;

    /// Waits for the next item; None after the end.
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.next_item(None) {
            Ok(item) => item.map(Ok),
            Err(SubscribeError::Closed) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

impl Stream for Subscriber {
    type Item = Result<Item, SubscribeError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match self.inbox.poll_pop(context.waker()) {
            None => Poll::Pending,
            Some(found) => match self.hand_out(found) {
                Err(SubscribeError::Closed) => Poll::Ready(None),
                result => Poll::Ready(Some(result)),
            },
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.inbox.drop_reader();
        self.shared.attend();
    }
}

/// Iterator over owned records; waits for the next one.
#[derive(Debug)]
pub struct RecordIter {
    subscriber: Subscriber,
    ready: VecDeque<Record>,
}

impl RecordIter {
    /// The next record; `Ok(None)` if none came within the timeout.
    pub fn next_record(&mut self, timeout: Option<Duration>) -> Result<Option<Record>, SubscribeError> {
        let deadline = timeout.and_then(|it| Instant::now().checked_add(it));
        loop {
            if let Some(record) = self.ready.pop_front() {
                return Ok(Some(record));
            }
            let left = deadline.map(|it| it.saturating_duration_since(Instant::now()));
            match self.subscriber.next_item(left)? {
                None => return Ok(None),
                Some(Item::Records(batch)) => {
                    for view in batch.records() {
                        self.ready.push_back(view.to_record().map_err(SubscribeError::Protocol)?);
                    }
                }
                Some(_) => {}
            }
        }
    }
}

impl Iterator for RecordIter {
    type Item = Result<Record, SubscribeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.subscriber.ended && self.ready.is_empty() {
            return None;
        }
        match self.next_record(None) {
            Ok(record) => record.map(Ok),
            Err(SubscribeError::Closed) => None,
            Err(error) => {
                self.subscriber.ended = true;
                Some(Err(error))
            }
        }
    }
}
