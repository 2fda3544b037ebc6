//! **What**: the loop of a producer that waits for acks: open loop with one in flight, or a window that is kept full.
//!
//! **Invariants**: one thread, which polls and never sleeps. Acks come in the order of the records, one each. Latency counts
//! from the intended send time: a record that waited for the ack before it waited.
//!
//! **Never**: a record left out because the server was slow.
//!
//! **See**: `durable.rs`, `load.rs` (the same for deliveries).

use crate::Error;
use crate::machine::now_ns;
use crate::party::Party;
use hdrhistogram::Histogram;
use std::collections::VecDeque;
use std::time::Duration;

/// How long the last acks may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How records are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckLoad {
    /// Open loop; one in flight.
    Rate {
        /// Records per second.
        per_second: u64,
    },
    /// As many in flight as this.
    Window {
        /// Records.
        records: u64,
    },
}

/// What a stretch gave.
pub struct AckTally {
    /// Latency of every record, ns.
    pub latency: Histogram<u64>,
    /// Records acknowledged.
    pub acked: u64,
    /// From the start to the last ack.
    pub wall_ns: u64,
    /// Time in turns that found something to do.
    pub busy_ns: u64,
}

/// Offers records for `length`, and waits until all are acknowledged.
pub fn drive(party: &mut dyn Party, load: AckLoad, length: Duration) -> Result<AckTally, Error> {
    let mut tally =
        AckTally { latency: Histogram::new_with_bounds(1, 60_000_000_000, 3)?, acked: 0, wall_ns: 0, busy_ns: 0 };
    let (window, interval) = match load {
        AckLoad::Rate { per_second } => (1, 1_000_000_000 / per_second.max(1)),
        AckLoad::Window { records } => (records.max(1), 0),
    };
    let mut buffer = vec![0; 65_536];
    let mut under_way: VecDeque<u64> = VecDeque::new();
    let start = now_ns();
    let end = start + length.as_nanos() as u64;
    let (mut due, mut turn, mut last_ack) = (start, start, start);
    loop {
        let mut worked = false;
        while (under_way.len() as u64) < window && due <= turn && due < end && turn < end + PATIENCE.as_nanos() as u64 {
            let time = if interval == 0 { turn } else { due };
            if interval == 0 && turn >= end {
                break;
            }
            party.publish(time, 1)?;
            under_way.push_back(time);
            due += interval;
            worked = true;
        }
        party.flush(&mut buffer)?;
        let (mut acks, mut now) = (0, 0);
        worked |= party.receive(&mut buffer, usize::MAX, &mut |_, _| {
            if now == 0 {
                now = now_ns();
            }
            acks += 1;
            if let Some(time) = under_way.pop_front() {
                tally.latency.saturating_record(now.saturating_sub(time));
                tally.acked += 1;
            }
        })?;
        if acks > 0 {
            last_ack = now;
        }
        if tally.acked > 0 && acks > 0 && tally.latency.len() != tally.acked {
            return Err("more acks than records".into());
        }
        let now = now_ns();
        if worked {
            tally.busy_ns += now - turn;
        }
        turn = now;
        // What was due before the end is sent, however late.
        let all_sent = if interval == 0 { turn >= end } else { due >= end };
        if all_sent && under_way.is_empty() {
            break;
        }
        if turn > end + PATIENCE.as_nanos() as u64 {
            return Err(
                format!("{} record(s) were not acknowledged within {} s", under_way.len(), PATIENCE.as_secs()).into()
            );
        }
    }
    if tally.acked == 0 {
        return Err("nothing was acknowledged".into());
    }
    tally.wall_ns = (last_ack - start).max(1);
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::party::OnRecord;
    use std::os::fd::RawFd;

    /// Acknowledges each record so long after it came.
    struct Slow {
        delay_ns: u64,
        sent: VecDeque<u64>,
        most: usize,
        acked: u64,
    }

    impl Party for Slow {
        fn fd(&self) -> RawFd {
            -1
        }
        fn publish(&mut self, _: u64, records: u64) -> Result<(), Error> {
            assert_eq!(records, 1);
            self.sent.push_back(now_ns());
            self.most = self.most.max(self.sent.len());
            Ok(())
        }
        fn has_unsent(&self) -> bool {
            false
        }
        fn flush(&mut self, _: &mut [u8]) -> Result<(), Error> {
            Ok(())
        }
        fn receive(&mut self, _: &mut [u8], _: usize, on_record: &mut OnRecord) -> Result<bool, Error> {
            let mut any = false;
            while self.sent.front().is_some_and(|at| now_ns() >= at + self.delay_ns) {
                self.sent.pop_front();
                on_record(0, self.acked);
                self.acked += 1;
                any = true;
            }
            Ok(any)
        }
        fn path_mtu(&self) -> usize {
            0
        }
    }

    fn slow(delay_ns: u64) -> Slow {
        Slow { delay_ns, sent: VecDeque::new(), most: 0, acked: 0 }
    }

    #[test]
    fn the_window_is_kept_full_and_no_fuller() {
        let mut party = slow(1_000_000);
        let tally = drive(&mut party, AckLoad::Window { records: 64 }, Duration::from_millis(50)).unwrap();
        assert_eq!((party.most, tally.acked), (64, party.acked));
        assert!(tally.acked >= 64 && tally.latency.min() >= 990_000, "{} acks", tally.acked);
        assert!(party.sent.is_empty(), "all were waited for");
    }

    #[test]
    fn a_record_that_waits_for_the_one_before_counts_its_wait() {
        let mut party = slow(4_000_000);
        // Due every millisecond, possible every four: each waits three milliseconds longer than the one before.
        let tally = drive(&mut party, AckLoad::Rate { per_second: 1_000 }, Duration::from_millis(20)).unwrap();
        assert_eq!((party.most, tally.acked), (1, 20), "nothing is left out");
        assert!(tally.latency.max() > 50_000_000, "{}", tally.latency.max());
    }
}
