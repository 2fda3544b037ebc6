//! **What**: how a core's loop waits for its next event: a datagram, a mesh message, a deadline, a socket that takes more.
//!
//! The loop polls its sources itself and asks the waiter only when it found nothing. Busy returns at once; hybrid
//! returns at once until `spin` has passed since the last work, then parks; park parks.
//!
//! ```text
//!   parked loop <- peek task       IORING_OP_RECV + MSG_PEEK on the latency ring completed: a datagram is there
//!               <- mesh sender     its waker, only if the doorbell says that this core sleeps
//!               <- glommio timer   the deadline, or the next try of a blocked sender
//! ```
//!
//! **Invariants**: no wake-up is missed:
//! - datagram: the peek is armed after the loop found the socket empty, and a peek is level-triggered: it completes at
//!   once for a datagram that came in between. A peek that is armed stays so until it completes, across any number of
//!   waits; when it completes while the loop runs, the next park arms it anew, and it looks again;
//! - mesh: the waker is registered before `prepare_sleep`, whose re-check sees any message rung before (doorbell.rs);
//!   one rung later wakes this waker, from another thread through glommio's queue and eventfd, which it checks once more
//!   between announcing its own sleep and sleeping;
//! - deadline: the timer is registered with the executor before the future returns pending.
//!
//! **Never**: cancelling a peek (a lost completion, and a buffer the kernel still writes to); two pending peeks; polling the
//! peek's future except when it completed (glommio 0.9 stores one more waker clone per poll, in a 16-bit count).
//!
//! **See**: `executor.rs`, which makes waiters and ends their peeks.

use super::mesh::MeshPort;
use super::udp::UdpSocket;
use glommio::net::TcpStream;
use glommio::timer::Timer;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// First and last pause before a blocked sender tries again. glommio offers no wait for writability of an unconnected
/// socket; a send buffer of 4 MiB at 10 Gbit/s drains in 3 ms, so a try per 100 us to 1 ms neither idles nor spins.
const RETRY_FIRST: Duration = Duration::from_micros(100);
const RETRY_LAST: Duration = Duration::from_millis(1);

/// How a core's loop waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitMode {
    /// Polls for ever: owns its CPU, lowest latency.
    Busy,
    /// Polls for a while after work, then parks. The default.
    Hybrid,
    /// Parks at once: for idle machines and shared CPUs.
    Park,
}

/// What a wait is for, besides datagrams and mail.
#[derive(Clone, Copy, Debug, Default)]
pub struct Until {
    /// Come back at this time at the latest.
    pub deadline: Option<Instant>,
    /// A flush was blocked: come back when the socket may take more.
    pub writable: bool,
}

/// What a waiter did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitCounters {
    /// Waits that returned at once to let the loop poll again.
    pub spins: u64,
    /// Waits that parked.
    pub parks: u64,
}

/// Waits for one core. Made by `CoreHandle::waiter`, stays on its core.
///
/// ```text
/// loop {
///     if turn() { waiter.worked().await } else { waiter.wait(&mut port, until).await }
/// }
/// ```
pub struct Waiter {
    parking: Rc<Parking>,
    mode: WaitMode,
    spin: Duration,
    idle_since: Option<Instant>,
    retry: Duration,
    counters: WaitCounters,
}

impl Waiter {
    pub(super) fn new(parking: Rc<Parking>, mode: WaitMode, spin: Duration) -> Waiter {
        Waiter { parking, mode, spin, idle_since: None, retry: RETRY_FIRST, counters: WaitCounters::default() }
    }

    /// Counters since the waiter was made.
    pub fn counters(&self) -> WaitCounters {
        self.counters
    }

    /// To be called after a turn that did work: restarts the spin window, and lets the executor reap completions when it
    /// has some (a check of two words otherwise).
    pub async fn worked(&mut self) {
        self.idle_since = None;
        self.retry = RETRY_FIRST;
        yield_if_needed().await;
    }

    /// To be called after a turn that found nothing. Returns when there may be something to do, and now and then for no
    /// reason: the loop polls its sources again.
    pub async fn wait<T: Send>(&mut self, port: &mut MeshPort<T>, until: Until) {
        if !self.must_park() {
            self.counters.spins += 1;
            std::hint::spin_loop();
            return yield_if_needed().await;
        }
        let mut deadline = until.deadline;
        if until.writable {
            let retry = Instant::now() + self.retry;
            deadline = Some(deadline.map_or(retry, |deadline| deadline.min(retry)));
            self.retry = (self.retry * 2).min(RETRY_LAST);
        }
        self.counters.parks += 1;
        self.park(port, deadline).await;
    }

    fn must_park(&mut self) -> bool {
        match self.mode {
            WaitMode::Busy => false,
            WaitMode::Park => true,
            WaitMode::Hybrid => {
                let now = Instant::now();
                now.duration_since(*self.idle_since.get_or_insert(now)) >= self.spin
            }
        }
    }

    async fn park<T: Send>(&mut self, port: &mut MeshPort<T>, deadline: Option<Instant>) {
        let mut timer = None;
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return yield_if_needed().await;
            }
            // Dropping a timer takes it out of the executor's table: none is left behind by a wait that ended early.
            timer = Some(Timer::new(left));
        }
        let mut parked = false;
        poll_fn(|cx| {
            if parked {
                return Poll::Ready(());
            }
            parked = true;
            self.parking.arm(cx.waker());
            port.register(cx.waker());
            if !port.prepare_sleep() {
                return Poll::Ready(());
            }
            match &mut timer {
                Some(timer) => Pin::new(timer).poll(cx).map(|_| ()),
                None => Poll::Pending,
            }
        })
        .await;
        port.awake();
        self.parking.parked.set(false);
    }
}

/// Lets the executor reap completions and run the peek task, if it wants to.
async fn yield_if_needed() {
    glommio::yield_if_needed().await;
}

/// The peek task of one socket and what it shares with the waiter.
pub(super) struct Parking {
    fd: OwnedFd,
    /// The peek is asked for or under way.
    armed: Cell<bool>,
    /// The loop is parked: a completed peek wakes it.
    parked: Cell<bool>,
    closing: Cell<bool>,
    loop_waker: RefCell<Option<Waker>>,
    task_waker: RefCell<Option<Waker>>,
    done: Cell<bool>,
}

impl Parking {
    /// Starts the peek task. On the core's executor only.
    pub fn start(socket: &UdpSocket) -> io::Result<Rc<Parking>> {
        let parking = Rc::new(Parking {
            fd: socket.as_fd().try_clone_to_owned()?,
            armed: Cell::new(false),
            parked: Cell::new(false),
            closing: Cell::new(false),
            loop_waker: RefCell::new(None),
            task_waker: RefCell::new(None),
            done: Cell::new(false),
        });
        let stream = parking.stream()?;
        glommio::spawn_local(parking.clone().run(stream)).detach();
        Ok(parking)
    }

    /// Asks for a wake-up of the loop when the socket has a datagram. Idempotent while one is pending.
    fn arm(&self, waker: &Waker) {
        set_waker(&self.loop_waker, waker);
        self.parked.set(true);
        if !self.armed.replace(true) {
            self.wake_task();
        }
    }

    /// Ends the peek task: shutting the read side down completes a pending peek. The socket receives nothing after.
    pub async fn close(&self) {
        self.closing.set(true);
        // SAFETY: plain system call on a descriptor that self owns. It reports ENOTCONN, and wakes readers all the same.
        unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_RD) };
        self.wake_task();
        poll_fn(|cx| {
            set_waker(&self.loop_waker, cx.waker());
            if self.done.get() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    async fn run(self: Rc<Self>, mut stream: TcpStream) {
        while !self.closing.get() {
            poll_fn(|cx| {
                set_waker(&self.task_waker, cx.waker());
                if self.armed.get() || self.closing.get() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            if self.closing.get() {
                break;
            }
            // An error is reported to the loop as readiness: `recv` meets it too, and says what it is.
            let peeked = stream.peek(&mut [0]).await;
            if matches!(peeked, Ok(0)) {
                // An empty datagram. glommio takes it for the end of a stream and would report it for ever.
                if let Ok(fresh) = self.stream() {
                    stream = fresh;
                }
            }
            self.armed.set(false);
            if self.parked.get() {
                self.wake_loop();
            }
        }
        self.done.set(true);
        self.wake_loop();
    }

    /// The socket dressed as a stream: `UdpSocket::peek` of glommio asks for a connected peer, this does not.
    fn stream(&self) -> io::Result<TcpStream> {
        let fd = self.fd.try_clone()?;
        // SAFETY: the descriptor was just made and is given away here; the stream closes it.
        Ok(unsafe { TcpStream::from_raw_fd(fd.into_raw_fd()) })
    }

    fn wake_task(&self) {
        if let Some(waker) = &*self.task_waker.borrow() {
            waker.wake_by_ref();
        }
    }

    fn wake_loop(&self) {
        if let Some(waker) = &*self.loop_waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

fn set_waker(slot: &RefCell<Option<Waker>>, waker: &Waker) {
    let mut slot = slot.borrow_mut();
    match &*slot {
        Some(old) if old.will_wake(waker) => {}
        _ => *slot = Some(waker.clone()),
    }
}
