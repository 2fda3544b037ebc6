//! **What**: what handles and the driver share: a bounded queue of commands, a way to wake the driver, one-shot cells.
//!
//! **Invariants**: a handle first makes its change visible, then looks whether the driver sleeps; the driver first says
//! that it sleeps, then looks for changes. Both are SeqCst, so that one of them sees the other: no lost wake-up.
//!
//! **Never**: a system call to wake a driver that is awake.
//!
//! **See**: `poll_client.rs` (the driver), `publisher.rs`, `subscriber.rs`, `client.rs` (the handles).

use crate::config::{PublisherOptions, SubscribeOptions};
use crate::engine::Ask;
use crate::error::{RequestError, SubscribeError};
use crate::inbox::Inbox;
use crate::publisher::Outbox;
use crate::session::Answer;
use felix_protocol::frame::{Route, Welcome};
use felix_protocol::names::StreamName;
use felix_protocol::time::{Now, Time, Timestamp};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Commands that wait for the driver: as many threads as could be blocked in calls.
const COMMANDS_MAX: usize = 4_096;

/// Locks; a panic of another thread while it held the lock left nothing half done that a later reader could not bear.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A value that comes once.
#[derive(Debug)]
pub(crate) struct OneShot<T> {
    value: Mutex<Option<T>>,
    ready: Condvar,
}

impl<T> OneShot<T> {
    pub(crate) fn new() -> Arc<OneShot<T>> {
        Arc::new(OneShot { value: Mutex::new(None), ready: Condvar::new() })
    }

    pub(crate) fn set(&self, value: T) {
        *lock(&self.value) = Some(value);
        self.ready.notify_all();
    }

    pub(crate) fn try_take(&self) -> Option<T> {
        lock(&self.value).take()
    }

    pub(crate) fn wait(&self, deadline: Instant) -> Option<T> {
        let mut value = lock(&self.value);
        loop {
            if let Some(value) = value.take() {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            value = self.ready.wait_timeout(value, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What a handle asks of the driver.
#[derive(Debug)]
pub(crate) enum Command {
    Request { ask: Ask, deadline: Time, reply: Arc<OneShot<Result<Answer, RequestError>>> },
    AddPublisher { name: StreamName, route: Arc<Route>, options: PublisherOptions, outbox: Arc<Outbox> },
    AddSubscriber { name: StreamName, route: Arc<Route>, options: SubscribeOptions, inbox: Arc<Inbox>, live: Live },
}

/// Told when a subscriber is live, or why not.
pub(crate) type Live = Arc<OneShot<Result<(), SubscribeError>>>;

/// Shared by the driver and all handles of a client.
#[derive(Debug)]
pub(crate) struct Shared {
    base: Instant,
    commands: Mutex<VecDeque<Command>>,
    /// Commands wait, or a handle was dropped.
    attention: AtomicBool,
    sleeping: AtomicBool,
    stopped: AtomicBool,
    waker: mio::Waker,
    welcome: Mutex<Option<Welcome>>,
    pub(crate) request_timeout: Duration,
}

impl Shared {
    pub(crate) fn new(waker: mio::Waker, request_timeout: Duration) -> Arc<Shared> {
        Arc::new(Shared {
            base: Instant::now(),
            commands: Mutex::new(VecDeque::new()),
            attention: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            waker,
            welcome: Mutex::new(None),
            request_timeout,
        })
    }

    // ---- time ---------------------------------------------------------------------------------------------------

    pub(crate) fn time(&self, at: Instant) -> Time {
        // Zero is "never" nowhere, but a deadline below it would be; so time begins at one second.
        Time(1_000_000_000 + at.saturating_duration_since(self.base).as_nanos() as u64)
    }

    pub(crate) fn now(&self) -> Now {
        Now { time: self.time(Instant::now()), wall: wall() }
    }

    pub(crate) fn instant(&self, at: Time) -> Instant {
        self.base + Duration::from_nanos(at.0.saturating_sub(1_000_000_000).min(u64::MAX / 4))
    }

    // ---- handles ------------------------------------------------------------------------------------------------

    /// Queues a command. False: the driver has ended or does not keep up.
    pub(crate) fn command(&self, command: Command) -> bool {
        let mut commands = lock(&self.commands);
        if self.stopped.load(Ordering::SeqCst) || commands.len() >= COMMANDS_MAX {
            return false;
        }
        commands.push_back(command);
        drop(commands);
        self.attend();
        true
    }

    /// Asks the driver to look around.
    pub(crate) fn attend(&self) {
        self.attention.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Wakes the driver if it sleeps. Call after the change is visible.
    pub(crate) fn wake(&self) {
        if self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst) {
            // It can only fail if the eventfd is full, and then the driver is being woken already.
            let _ = self.waker.wake();
        }
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.attend();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    pub(crate) fn welcome(&self) -> Option<Welcome> {
        lock(&self.welcome).clone()
    }

    // ---- driver -------------------------------------------------------------------------------------------------

    pub(crate) fn set_welcome(&self, welcome: Welcome) {
        *lock(&self.welcome) = Some(welcome);
    }

    pub(crate) fn take_attention(&self) -> bool {
        self.attention.load(Ordering::Relaxed) && self.attention.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn has_attention(&self) -> bool {
        self.attention.load(Ordering::SeqCst)
    }

    pub(crate) fn take_command(&self) -> Option<Command> {
        lock(&self.commands).pop_front()
    }

    pub(crate) fn set_sleeping(&self, sleeping: bool) {
        self.sleeping.store(sleeping, Ordering::SeqCst);
    }
}

/// This machine's clock.
pub(crate) fn wall() -> Timestamp {
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_nanos() as u64))
}
