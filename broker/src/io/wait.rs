//! **What**: how a core's loop waits for its next event: a datagram, a mesh message, a disk completion, a deadline, a
//! socket that takes more.
//!
//! The loop polls its sources itself and asks the waiter only when it found nothing. Busy returns at once; park parks;
//! hybrid returns at once until the next work is overdue, then parks: after `spin` on a quiet core, and after twice the
//! usual pause between two pieces of work on one that is used steadily (`Pace`).
//!
//! ```text
//!   parked loop <- peek of the UDP socket    IORING_OP_RECV + MSG_PEEK completed: a datagram is there
//!               <- peek of the wake socket   a mesh sender saw this core asleep and wrote a byte to its pair
//!               <- read of the disk's bell   a completion was posted on the disk's own ring, or its helper answered
//!               <- glommio timer             the deadline, or the next try of a blocked sender
//! ```
//!
//! **Invariants**: no wake-up is missed:
//! - datagram: the peek is armed after the loop found the socket empty, and a peek is level-triggered: it completes at
//!   once for a datagram that came in between. A peek that is armed stays so until it completes, across any number of
//!   waits; one that completed while the loop ran is armed anew by the next park, and looks again;
//! - mesh: peek and waker are in place before `prepare_sleep`, whose re-check sees any message rung before (doorbell.rs);
//!   one rung later writes a byte, which completes the peek. Bytes are taken out after the wait, before mail is drained;
//! - disk: a loop that spins sees completions in memory, without the executor. A core parks with a read of the bell under
//!   way only while requests are in flight; the read is there before `DiskPort::prepare_sleep` looks a last time, and
//!   whatever comes after that look rings (disk.rs). A bell that rang for completions polled meanwhile ends one wait early;
//! - deadline: the timer is registered with the executor before the future returns pending;
//! - the executor never sleeps while the loop is runnable. glommio 0.9 does just that if a completion that wakes nobody
//!   appears on its latency ring after it polled for I/O and before it ran the first task (`run_task_queues` says that
//!   nothing ran, `run` parks). Three things put such a completion there: the preempt timer (`executor.rs` sets it to
//!   for ever), the executor's eventfd, written late by a foreign waker (hence the wake socket: no glommio waker leaves
//!   its thread), and a cancelled operation (none). And the loop is the only task: one woken by it could be overlooked.
//!   The disk adds nothing to it: no transfer is an operation of the executor, and the read of the bell lives on its main
//!   ring, whose completions `need_preempt` does not see. glommio makes its main ring write the executor's eventfd after
//!   128 completions between two of its waits, which would be such a completion; with one read under way there are few.
//!
//! **Never**: cancelling a peek (a lost completion, and a buffer the kernel still writes to); two pending peeks of one
//! socket or bell; polling a peek unless it completed (glommio stores one more waker per poll); `spawn_local`; a glommio waker
//! given to another thread.
//!
//! **See**: `peek.rs`; `executor.rs`, which makes waiters and ends their peeks.

use super::disk::DiskPort;
use super::mesh::MeshPort;
use super::peek::Peek;
use super::udp::UdpSocket;
use glommio::timer::Timer;
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Wake, Waker};
use std::time::{Duration, Instant};

/// First and last pause before a blocked sender tries again. glommio offers no wait for writability of an unconnected
/// socket; a send buffer of 4 MiB at 10 Gbit/s drains in 3 ms, so a try per 100 us to 1 ms neither idles nor spins.
const RETRY_FIRST: Duration = Duration::from_micros(100);
const RETRY_LAST: Duration = Duration::from_millis(1);

/// Hybrid, with a commit under way: how long after the last work the loop polls at least. A data sync takes 100 us on the
/// reference disk, more than `spin`; to park and be woken costs the core more than to poll for that long (both measured,
/// broker/DESIGN.md). Disks that take longer cost this much CPU per commit.
const COMMIT_SPIN: Duration = Duration::from_micros(200);

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

/// How long hybrid waits for the next work before it parks. A park costs tens of microseconds at both ends and, on a
/// virtual machine, a halt; work that comes every millisecond is met awake, work that comes every ten is not waited for.
#[derive(Clone, Copy, Debug)]
struct Pace {
    spin: Duration,
    /// Moving average of the pauses, each counted as twice `PAUSE_LONG` at most.
    pause: Duration,
    /// Somebody else wanted this CPU: no long spins until then.
    crowded_until: Option<Instant>,
}

/// A pause that is not worth waiting for: a core that works less often than this parks after `spin`.
const PAUSE_LONG: Duration = Duration::from_micros(1_500);
/// A yield that took so long let somebody else run for a slice. (One that finds nobody takes below a microsecond; an
/// interrupt or a stolen moment of a virtual CPU is shorter than a slice.)
const YIELD_LONG: Duration = Duration::from_micros(200);
/// How long a core that met somebody else on its CPU makes no long spins.
const CROWDED: Duration = Duration::from_millis(20);

impl Pace {
    fn new(spin: Duration) -> Pace {
        Pace { spin, pause: PAUSE_LONG, crowded_until: None }
    }

    /// A pause ended. Ups count at once and downs slowly: a core that falls silent must not poll for nothing.
    fn paused(&mut self, pause: Duration) {
        let pause = pause.min(PAUSE_LONG * 2);
        self.pause = match pause > self.pause {
            true => (self.pause + pause) / 2,
            false => (self.pause * 7 + pause) / 8,
        };
    }

    fn crowded(&mut self, now: Instant) {
        self.crowded_until = Some(now + CROWDED);
    }

    /// Time without work after which to park.
    fn patience(&self, now: Instant) -> Duration {
        let is_crowded = self.crowded_until.is_some_and(|until| now < until);
        match self.pause < PAUSE_LONG && !is_crowded {
            true => self.spin + self.pause * 2,
            false => self.spin,
        }
    }
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
    parking: Rc<RefCell<Parking>>,
    mode: WaitMode,
    pace: Pace,
    idle_since: Option<Instant>,
    retry: Duration,
    counters: WaitCounters,
}

impl Waiter {
    pub(super) fn new(parking: Rc<RefCell<Parking>>, mode: WaitMode, spin: Duration) -> Waiter {
        Waiter {
            parking,
            mode,
            pace: Pace::new(spin),
            idle_since: None,
            retry: RETRY_FIRST,
            counters: WaitCounters::default(),
        }
    }

    /// Counters since the waiter was made.
    pub fn counters(&self) -> WaitCounters {
        self.counters
    }

    /// To be called after a turn that did work: restarts the spin window, and lets the executor reap completions when it
    /// has some (a check of two words otherwise).
    pub async fn worked(&mut self) {
        if let Some(since) = self.idle_since.take() {
            self.pace.paused(since.elapsed());
        }
        self.retry = RETRY_FIRST;
        yield_if_needed().await;
    }

    /// To be called after a turn that found nothing. Returns when there may be something to do, and now and then for no
    /// reason: the loop polls its sources again.
    pub async fn wait<T: Send>(&mut self, port: &mut MeshPort<T>, until: Until) {
        self.wait_for(port, None, until).await;
    }

    /// Lets `wait_with_disk` park on this disk. Once, on the core of both.
    pub fn attach_disk(&mut self, disk: &DiskPort) -> io::Result<()> {
        let mut parking = self.parking.borrow_mut();
        assert!(parking.bell.is_none(), "a waiter has one disk");
        parking.bell = Some(Peek::of_counter(disk.bell_fd()?)?);
        Ok(())
    }

    /// [`wait`](Self::wait) that also returns for a completion of the disk that was attached. Starts requests that wait
    /// for a `flush`.
    pub async fn wait_with_disk<T: Send>(&mut self, port: &mut MeshPort<T>, disk: &mut DiskPort, until: Until) {
        self.wait_for(port, Some(disk), until).await;
    }

    async fn wait_for<T: Send>(&mut self, port: &mut MeshPort<T>, disk: Option<&mut DiskPort>, until: Until) {
        // A disk that does nothing needs no bell.
        let mut disk = disk.filter(|disk| disk.in_flight() > 0);
        let commits = disk.as_ref().is_some_and(|disk| disk.has_commits());
        if !self.must_park(commits) {
            self.counters.spins += 1;
            if let Some(disk) = &mut disk {
                disk.flush();
            }
            if self.mode == WaitMode::Hybrid && self.is_past_first_spin() {
                // A longer spin is a guess: whoever else is runnable on this CPU goes first. Then it is no place to spin: a
                // task that slept is run at once when its datagram comes, one that polled has used up its share.
                let before = Instant::now();
                std::thread::yield_now();
                let after = Instant::now();
                if after.duration_since(before) > YIELD_LONG {
                    self.pace.crowded(after);
                }
            } else {
                std::hint::spin_loop();
            }
            return yield_if_needed().await;
        }
        let mut deadline = until.deadline;
        if until.writable {
            let retry = Instant::now() + self.retry;
            deadline = Some(deadline.map_or(retry, |deadline| deadline.min(retry)));
            self.retry = (self.retry * 2).min(RETRY_LAST);
        }
        self.counters.parks += 1;
        self.park(port, disk, deadline).await;
    }

    fn must_park(&mut self, commits: bool) -> bool {
        match self.mode {
            WaitMode::Busy => false,
            WaitMode::Park => true,
            WaitMode::Hybrid => {
                let now = Instant::now();
                let patience = self.pace.patience(now);
                let patience = if commits { patience.max(COMMIT_SPIN) } else { patience };
                now.duration_since(*self.idle_since.get_or_insert(now)) >= patience
            }
        }
    }

    fn is_past_first_spin(&self) -> bool {
        self.idle_since.is_some_and(|since| since.elapsed() > self.pace.spin)
    }

    async fn park<T: Send>(
        &mut self,
        port: &mut MeshPort<T>,
        mut disk: Option<&mut DiskPort>,
        deadline: Option<Instant>,
    ) {
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
            let mut parking = self.parking.borrow_mut();
            if parking.datagrams.arm(cx).is_ready() | parking.wakes.arm(cx).is_ready() {
                return Poll::Ready(());
            }
            if let Some(disk) = &mut disk {
                let bell = parking.bell.as_mut().expect("the disk was attached");
                if bell.arm(cx).is_ready() || !disk.prepare_sleep() {
                    return Poll::Ready(());
                }
            }
            port.register(&parking.mesh_waker);
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
        if let Some(disk) = disk {
            disk.awake();
        }
        // After the wait and before the loop drains its mail: a byte that comes later completes the next peek.
        self.parking.borrow().wakes.discard();
    }
}

/// Lets the executor reap completions, if there are any on its latency ring.
async fn yield_if_needed() {
    glommio::yield_if_needed().await;
}

/// What a core parks on, besides its timer. Shared by the waiter and by the end of the core.
pub(super) struct Parking {
    datagrams: Peek,
    wakes: Peek,
    bell: Option<Peek>,
    mesh_waker: Waker,
}

impl Parking {
    /// Makes the wake socket. On the core's executor only.
    pub fn new(socket: &UdpSocket) -> io::Result<Parking> {
        let (inside, outside) = UnixStream::pair()?;
        outside.set_nonblocking(true)?;
        Ok(Parking {
            datagrams: Peek::new(socket.as_fd().try_clone_to_owned()?)?,
            wakes: Peek::new(inside.into())?,
            bell: None,
            mesh_waker: Waker::from(Arc::new(WakeSocket(outside))),
        })
    }

    /// Ends all peeks, so that no pending operation writes into memory of an executor that is gone. The UDP socket
    /// receives nothing after this.
    pub async fn close(parking: Rc<RefCell<Parking>>) {
        parking.borrow().datagrams.shut_down();
        parking.borrow().wakes.shut_down();
        let mut bell = parking.borrow_mut().bell.take();
        if let Some(bell) = &bell {
            bell.shut_down();
        }
        poll_fn(|cx| {
            let mut parking = parking.borrow_mut();
            let bell = bell.as_mut().map_or(Poll::Ready(()), |bell| bell.poll_end(cx));
            match (parking.datagrams.poll_end(cx), parking.wakes.poll_end(cx), bell) {
                (Poll::Ready(()), Poll::Ready(()), Poll::Ready(())) => Poll::Ready(()),
                _ => Poll::Pending,
            }
        })
        .await;
        if let Some(bell) = bell {
            bell.close().await;
        }
    }
}

/// The other end of a core's wake socket, as a waker for mesh senders on any thread.
struct WakeSocket(UnixStream);

impl Wake for WakeSocket {
    fn wake(self: Arc<Self>) {
        // A full pair has unread bytes and wakes the core all the same; a closed one has no core left to wake.
        let _ = (&self.0).write(&[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPIN: Duration = Duration::from_micros(50);

    fn after(pauses: &[u64]) -> Duration {
        let mut pace = Pace::new(SPIN);
        for _ in 0..50 {
            pauses.iter().for_each(|us| pace.paused(Duration::from_micros(*us)));
        }
        pace.patience(Instant::now())
    }

    #[test]
    fn steady_work_is_waited_for_and_rare_work_is_not() {
        assert!(after(&[800]) > Duration::from_micros(800));
        assert!(after(&[40, 60, 900]) > Duration::from_micros(900), "a message is several packets, then a pause");
        assert_eq!(after(&[10_000]), SPIN);
        assert_eq!(after(&[40, 60, 5_000]), SPIN);
        assert_eq!(Pace::new(SPIN).patience(Instant::now()), SPIN);
    }

    #[test]
    fn on_a_crowded_cpu_a_core_parks_soon() {
        let (mut pace, now) = (Pace::new(SPIN), Instant::now());
        (0..50).for_each(|_| pace.paused(Duration::from_micros(200)));
        assert!(pace.patience(now) > SPIN);
        pace.crowded(now);
        assert_eq!(pace.patience(now + CROWDED / 2), SPIN);
        assert!(pace.patience(now + CROWDED) > SPIN);
    }

    #[test]
    fn a_core_that_falls_silent_parks_in_milliseconds() {
        assert!(after(&[1_400]) < Duration::from_millis(4));
    }
}
