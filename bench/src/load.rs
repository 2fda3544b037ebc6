//! **What**: the one loop that drives all parties of a run: publishes when it is due, takes what comes, keeps the clock.
//!
//! ```text
//! rate       open loop: a publish is due every batch/rate seconds, whatever the server does; latency counts from then
//! in flight  as fast as it goes with at most so many records not yet at every subscriber; with a window of one batch
//!            this is lockstep: every flush carries the same number of records for every system
//! ```
//!
//! **Invariants**: one thread polls every party, so all systems get the same client. Latency counts from the intended send
//! time. A record that comes twice or out of order ends the run; one that is missing shows in the sum of deliveries.
//!
//! **Never**: sleeping; a publish skipped because the loop was late.
//!
//! **See**: `cell.rs`, `party.rs`.

use crate::Error;
use crate::machine::now_ns;
use crate::party::{Dialler, Party, Role};
use hdrhistogram::Histogram;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Up to so many parties are asked in turn; more are asked when the system says that they have something.
const DIRECT_MAX: usize = 2;
/// Publishes in a row before the subscribers get their turn.
const PUBLISHES_PER_TURN: usize = 16;
/// Slices of the timeline.
pub const SLICES: usize = 60;
/// How long records may still come after the end, and how long silence must last to believe that none does.
const DRAIN: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(500);
/// Between two looks at a throttled subscriber that nothing announced.
const LOOK_NS: u64 = 1_000_000;

/// How records are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Load {
    /// Records per second, open loop.
    Rate(u64),
    /// Records that may be under way to the slowest subscriber.
    InFlight(u64),
}

/// One stretch of load.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Phase {
    /// When it begins, on the monotonic clock.
    pub start_ns: u64,
    /// How long records are offered.
    pub length: Duration,
    /// How.
    pub load: Load,
    /// Records per publish.
    pub batch: u64,
    /// Records sent within this time after the start are not in the histograms.
    pub lead_in: Duration,
}

/// What a stretch gave.
pub struct Tally {
    /// Latency of every delivery, ns.
    pub latency: Histogram<u64>,
    /// Latency by when the record was to be sent.
    pub slices: Vec<Histogram<u64>>,
    /// Records published.
    pub sent: u64,
    /// Publishes that were given to the transport together.
    pub flushes: u64,
    /// Records that arrived, over all subscribers that count.
    pub deliveries: u64,
    /// From the start to the last arrival.
    pub wall_ns: u64,
    /// Time in turns that found something to do: the clients' share of their CPU.
    pub busy_ns: u64,
    /// Records that arrived at throttled subscribers.
    pub throttled_deliveries: u64,
}

impl Tally {
    /// An empty one.
    pub fn new() -> Result<Tally, Error> {
        let slice = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 2)?;
        Ok(Tally {
            latency: Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?,
            slices: vec![slice; SLICES],
            sent: 0,
            flushes: 0,
            deliveries: 0,
            wall_ns: 0,
            busy_ns: 0,
            throttled_deliveries: 0,
        })
    }
}

struct Subscriber {
    party: Box<dyn Party>,
    expected: u64,
    throttle: Option<Throttle>,
}

/// Reads at most so many bytes per second.
#[derive(Clone, Copy)]
struct Throttle {
    bytes_per_second: u64,
    since_ns: u64,
    read: u64,
}

/// The parties of this process.
pub struct Clients {
    publisher: Option<Box<dyn Party>>,
    subscribers: Vec<Subscriber>,
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    /// Whose timers are looked at next.
    next_timer: usize,
    /// Records published before this phase.
    published: u64,
}

impl Clients {
    /// Connects a publisher, if wanted, and subscribers; each is confirmed by the server.
    pub fn connect(dialler: &mut Dialler, publisher: bool, subscribers: usize) -> Result<Clients, Error> {
        let mut buffer = vec![0u8; 65_536];
        let poll = Poll::new()?;
        // First the publisher: it makes the stream.
        let publisher = if publisher { Some(dialler.connect(Role::Publisher, &mut buffer)?) } else { None };
        let mut clients = Clients {
            publisher,
            subscribers: Vec::with_capacity(subscribers),
            poll,
            events: Events::with_capacity(256),
            buffer,
            next_timer: 0,
            published: 0,
        };
        for index in 0..subscribers {
            let party = dialler.connect(Role::Subscriber, &mut clients.buffer)?;
            clients.poll.registry().register(&mut SourceFd(&party.fd()), Token(index), Interest::READABLE)?;
            clients.subscribers.push(Subscriber { party, expected: 0, throttle: None });
            // The older ones stay alive: acknowledgements, path probes.
            if index % 64 == 63 {
                clients.settle(Duration::ZERO)?;
            }
        }
        Ok(clients)
    }

    /// Lets the last subscriber read only so much.
    pub fn throttle_last(&mut self, bytes_per_second: u64) {
        if let Some(last) = self.subscribers.last_mut() {
            last.throttle = Some(Throttle { bytes_per_second, since_ns: now_ns(), read: 0 });
        }
    }

    /// Serves all connections without load: handshakes and path probes end, the server becomes idle.
    pub fn settle(&mut self, span: Duration) -> Result<(), Error> {
        let until = now_ns() + span.as_nanos() as u64;
        loop {
            let buffer = &mut self.buffer;
            for party in self.publisher.iter_mut().chain(self.subscribers.iter_mut().map(|it| &mut it.party)) {
                party.receive(buffer, usize::MAX, &mut |_, _| ())?;
                party.flush(buffer)?;
            }
            if now_ns() >= until {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Largest packet payload of a delivery path.
    pub fn path_mtu(&self) -> usize {
        self.subscribers.first().map_or(0, |it| it.party.path_mtu())
    }

    /// Drives one stretch of load to its end, and until all of it has arrived.
    pub fn run(&mut self, phase: &Phase) -> Result<Tally, Error> {
        let mut tally = Tally::new()?;
        let counted = self.subscribers.iter().filter(|it| it.throttle.is_none());
        let first = match self.publisher {
            Some(_) => self.published,
            None => counted.clone().map(|it| it.expected).min().unwrap_or(0),
        };
        let mut window = Window::new(first, counted.count());
        let end = phase.start_ns + phase.length.as_nanos() as u64;
        let interval = match phase.load {
            Load::Rate(rate) => (phase.batch * 1_000_000_000).checked_div(rate).unwrap_or(0).max(1),
            Load::InFlight(_) => 0,
        };
        let mut due = phase.start_ns;
        let mut last_arrival = phase.start_ns;
        let direct = self.subscribers.len() <= DIRECT_MAX;
        while now_ns() < phase.start_ns {
            std::hint::spin_loop();
        }
        let mut turn = now_ns();
        let mut next_look = turn;
        loop {
            let mut worked = self.publish(phase, turn, end, interval, &mut due, &window, &mut tally)?;
            if direct {
                for index in 0..self.subscribers.len() {
                    worked |= self.receive(index, phase, &mut window, &mut tally)?;
                }
            } else {
                self.poll.poll(&mut self.events, Some(Duration::ZERO))?;
                let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
                for event in &events {
                    worked |= self.receive(event.token().0, phase, &mut window, &mut tally)?;
                }
                self.events = events;
                // A throttled one is not announced again for what was left, and it looks seldom: asking its socket in every
                // turn would slow the others' client, not the server.
                if turn >= next_look && self.subscribers.last().is_some_and(|it| it.throttle.is_some()) {
                    next_look = turn + LOOK_NS;
                    self.receive(self.subscribers.len() - 1, phase, &mut window, &mut tally)?;
                }
            }
            if let Some(publisher) = &mut self.publisher {
                worked |= publisher.receive(&mut self.buffer, usize::MAX, &mut |_, _| ())?;
            }
            self.timers()?;
            let now = now_ns();
            if worked {
                tally.busy_ns += now - turn;
                last_arrival = now;
            }
            turn = now;
            if turn >= end {
                let waits = self.publisher.as_ref().is_some_and(|it| it.has_unsent());
                let all = self.publisher.is_some() && window.is_settled(self.published) && !waits;
                let quiet = turn.saturating_sub(last_arrival) > QUIET.as_nanos() as u64;
                if all || (quiet && !waits) || turn > end + DRAIN.as_nanos() as u64 {
                    break;
                }
            }
        }
        tally.wall_ns = last_arrival - phase.start_ns;
        Ok(tally)
    }

    #[allow(clippy::too_many_arguments, reason = "the state of one run, split so that the loop can be read")]
    fn publish(
        &mut self,
        phase: &Phase,
        turn: u64,
        end: u64,
        interval: u64,
        due: &mut u64,
        window: &Window,
        tally: &mut Tally,
    ) -> Result<bool, Error> {
        let Some(publisher) = &mut self.publisher else { return Ok(false) };
        if publisher.has_unsent() {
            publisher.flush(&mut self.buffer)?;
            if publisher.has_unsent() {
                return Ok(false);
            }
        }
        let mut count = 0;
        while count < PUBLISHES_PER_TURN {
            let time = match phase.load {
                // What was due before the end is sent, however late: the queue before a slow server is not forgotten.
                Load::Rate(_) if *due <= turn && *due < end => *due,
                Load::InFlight(most) if turn < end && window.in_flight(self.published) + phase.batch <= most => turn,
                _ => break,
            };
            publisher.publish(time, phase.batch)?;
            self.published += phase.batch;
            *due += interval;
            count += 1;
            // One flush is one publish here: what the server gets together is the same for all.
            if matches!(phase.load, Load::InFlight(_)) {
                break;
            }
        }
        if count == 0 {
            return Ok(false);
        }
        tally.sent += count as u64 * phase.batch;
        tally.flushes += 1;
        publisher.flush(&mut self.buffer)?;
        Ok(true)
    }

    fn receive(&mut self, index: usize, phase: &Phase, window: &mut Window, tally: &mut Tally) -> Result<bool, Error> {
        let subscriber = &mut self.subscribers[index];
        let is_throttled = subscriber.throttle.is_some();
        // With a limit of 0 its transport goes on all the same: acknowledgements are not what it is slow at.
        let limit = subscriber.throttle.map_or(usize::MAX, |it| it.left(now_ns()));
        let (expected, first) = (&mut subscriber.expected, window.first);
        let begin = phase.start_ns + phase.lead_in.as_nanos() as u64;
        let slice_ns = (phase.length.as_nanos() as u64 / SLICES as u64).max(1);
        let (mut now, mut backward, mut count) = (0, None, 0);
        let any = subscriber.party.receive(&mut self.buffer, limit, &mut |time, number| {
            if number < *expected {
                backward = Some((number, *expected));
                return;
            }
            if now == 0 {
                now = now_ns();
            }
            count += 1;
            if is_throttled {
                *expected = number + 1;
                return;
            }
            // Records that were jumped over will not come any more.
            window.arrived((*expected).max(first), number + 1);
            *expected = number + 1;
            tally.deliveries += 1;
            if time >= begin {
                let latency = now.saturating_sub(time);
                tally.latency.saturating_record(latency);
                let slice = ((time - phase.start_ns) / slice_ns).min(SLICES as u64 - 1) as usize;
                tally.slices[slice].saturating_record(latency);
            }
        })?;
        if let Some((number, expected)) = backward {
            return Err(format!("record {number} came where {expected} was due").into());
        }
        if let Some(throttle) = &mut subscriber.throttle {
            tally.throttled_deliveries += count;
            throttle.read += if any { limit.min(throttle.burst()) as u64 } else { 0 };
            return Ok(false);
        }
        Ok(any)
    }

    /// Looks at the timers of one party: a turn is short, so all get their turn in time.
    fn timers(&mut self) -> Result<(), Error> {
        let count = self.subscribers.len();
        match self.subscribers.get_mut(self.next_timer) {
            Some(subscriber) => subscriber.party.flush(&mut self.buffer)?,
            None => {
                if let Some(publisher) = &mut self.publisher {
                    publisher.flush(&mut self.buffer)?;
                }
            }
        }
        self.next_timer = (self.next_timer + 1) % (count + 1);
        Ok(())
    }
}

impl Throttle {
    fn burst(self) -> usize {
        (self.bytes_per_second as usize / 20).max(256)
    }

    /// Bytes that may be read now: in portions of a twentieth of a second, as a slow reader takes them.
    fn left(self, now: u64) -> usize {
        let allowed = (now - self.since_ns) / 1_000 * self.bytes_per_second / 1_000_000;
        let left = allowed.saturating_sub(self.read) as usize;
        if left >= self.burst() { self.burst() } else { 0 }
    }
}

/// Counts at how many subscribers each record under way arrived.
struct Window {
    /// First record of the phase.
    first: u64,
    /// All before this are at every subscriber.
    settled: u64,
    subscribers: u32,
    arrivals: std::collections::VecDeque<u32>,
}

impl Window {
    fn new(first: u64, subscribers: usize) -> Window {
        Window { first, settled: first, subscribers: subscribers as u32, arrivals: Default::default() }
    }

    fn in_flight(&self, published: u64) -> u64 {
        published - self.settled
    }

    fn is_settled(&self, published: u64) -> bool {
        self.settled >= published
    }

    /// One subscriber got the records up to `to`, or will not get them any more.
    fn arrived(&mut self, from: u64, to: u64) {
        for number in from..to {
            let index = (number - self.settled) as usize;
            if index >= self.arrivals.len() {
                self.arrivals.resize(index + 1, 0);
            }
            self.arrivals[index] += 1;
        }
        while self.arrivals.front() == Some(&self.subscribers) {
            self.arrivals.pop_front();
            self.settled += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_settled_when_the_last_subscriber_has_it() {
        let mut window = Window::new(10, 2);
        assert!(window.is_settled(10));
        window.arrived(10, 13);
        assert_eq!(window.in_flight(13), 3);
        window.arrived(10, 11);
        assert_eq!(window.in_flight(13), 2);
        // The second one lost record 11 and 12, and says so with the arrival of 13.
        window.arrived(11, 14);
        assert_eq!(window.in_flight(14), 1);
        window.arrived(13, 14);
        assert!(window.is_settled(14));
        assert!(window.arrivals.is_empty());
    }

    #[test]
    fn a_throttled_reader_gets_its_share_in_portions() {
        let mut throttle = Throttle { bytes_per_second: 100_000, since_ns: 0, read: 0 };
        assert_eq!(throttle.left(1_000_000), 0);
        assert_eq!(throttle.left(50_000_000), 5_000);
        throttle.read += 5_000;
        assert_eq!(throttle.left(60_000_000), 0);
        assert_eq!(throttle.left(1_000_000_000), 5_000);
    }
}
