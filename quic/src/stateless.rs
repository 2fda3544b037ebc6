//! Answers to packets of no connection: resets, Retry, version negotiation, refusals.
//!
//! **What.** A bounded queue of small packets that `poll_transmit` empties first, and the rate limit
//! of stateless resets.
//!
//! **Invariants.** Each answer is smaller than the datagram that caused it, so two endpoints that
//! know nothing of each other fall silent, and nobody is used as an amplifier.
//!
//! **Never.** More than `answers_max` answers in memory: what does not fit is dropped and counted.
//!
//! **See** `accept.rs`.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use crate::conn_id::Cid;
use crate::counters::Counters;
use crate::event::Transmit;
use crate::refuse;
use crate::secrets::{EndpointSecrets, Entropy};

/// Largest answer: a Retry with the longest ids and token, rounded up.
pub(crate) const ANSWER_BYTES_MAX: usize = 256;
/// Smallest and largest stateless reset (RFC 9000 section 10.3: at least 5 + 16; 43 hides best).
const RESET_BYTES_MIN: usize = 21;
const RESET_BYTES_MAX: usize = 43;

/// Addresses of a datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    /// The other side.
    pub peer: SocketAddr,
    /// Our side.
    pub local: SocketAddr,
}

struct Answer {
    bytes: [u8; ANSWER_BYTES_MAX],
    len: usize,
    path: Path,
}

/// Answers that wait, and the allowance for resets.
pub(crate) struct Answers {
    waiting: VecDeque<Answer>,
    max: usize,
    resets: Allowance,
}

impl Answers {
    pub(crate) fn new(max: usize, resets_per_second: u32, now: Instant) -> Answers {
        Answers { waiting: VecDeque::new(), max, resets: Allowance::new(resets_per_second, now) }
    }

    /// Takes the next answer out.
    pub(crate) fn pop_into(&mut self, out: &mut [u8]) -> Option<Transmit> {
        let answer = self.waiting.pop_front()?;
        out.get_mut(..answer.len)?.copy_from_slice(&answer.bytes[..answer.len]);
        Some(Transmit { bytes: answer.len, segment_bytes: None, to: answer.path.peer, from: answer.path.local })
    }

    /// Queues what `write` makes; false if the queue is full or nothing was made.
    fn push(&mut self, path: Path, counters: &mut Counters, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        if self.waiting.len() >= self.max {
            counters.dropped_answers += 1;
            return false;
        }
        let mut bytes = [0; ANSWER_BYTES_MAX];
        let Some(len) = write(&mut bytes) else {
            counters.dropped_answers += 1;
            return false;
        };
        self.waiting.push_back(Answer { bytes, len, path });
        true
    }

    /// Answers a short-header packet of an unknown id, if it is long enough and the rate allows it.
    pub(crate) fn reset(
        &mut self,
        now: Instant,
        path: Path,
        dcid: &[u8],
        caused_by_bytes: usize,
        (secrets, entropy): (&EndpointSecrets, &Entropy),
        counters: &mut Counters,
    ) {
        let bytes = caused_by_bytes.saturating_sub(1).min(RESET_BYTES_MAX);
        if bytes < RESET_BYTES_MIN {
            return;
        }
        if !self.resets.take(now) {
            counters.resets_limited += 1;
            return;
        }
        let token = secrets.reset_token(dcid);
        let sent = self.push(path, counters, |out| {
            let out = out.get_mut(..bytes)?;
            entropy.fill(out).ok()?;
            out[0] = 0x40 | out[0] & 0x3f;
            out[bytes - token.len()..].copy_from_slice(&token);
            Some(bytes)
        });
        counters.resets_sent += u64::from(sent);
    }

    /// Sends a client away for a round trip: it comes back with the token to `retry_id`.
    pub(crate) fn retry(
        &mut self,
        path: Path,
        (scid, dcid): (&[u8], &[u8]),
        retry_id: &Cid,
        token: &[u8],
        counters: &mut Counters,
    ) {
        let sent = self.push(path, counters, |out| {
            let id = quiche::ConnectionId::from_ref;
            let (scid, dcid, retry_id) = (id(scid), id(dcid), id(retry_id.as_slice()));
            quiche::retry(&scid, &dcid, &retry_id, token, quiche::PROTOCOL_VERSION, out).ok()
        });
        counters.retries_sent += u64::from(sent);
    }

    /// Tells a client of another version which one we speak.
    pub(crate) fn negotiate_version(&mut self, path: Path, (scid, dcid): (&[u8], &[u8]), counters: &mut Counters) {
        // Ids of other versions may be longer than any answer of ours: such a client gets none.
        if scid.len() + dcid.len() > ANSWER_BYTES_MAX - 32 {
            counters.dropped_answers += 1;
            return;
        }
        let sent = self.push(path, counters, |out| {
            let id = quiche::ConnectionId::from_ref;
            quiche::negotiate_version(&id(scid), &id(dcid), out).ok()
        });
        counters.version_negotiations_sent += u64::from(sent);
    }

    /// Refuses a client's first packet with a transport error code.
    pub(crate) fn refuse(
        &mut self,
        path: Path,
        (scid, dcid): (&[u8], &[u8]),
        our_id: &Cid,
        code: u64,
        counters: &mut Counters,
    ) {
        self.push(path, counters, |out| refuse::write(out, dcid, scid, our_id.as_slice(), code as u8));
    }
}

/// A token bucket that holds one tenth of a second.
struct Allowance {
    per_second: u32,
    left: f64,
    updated: Instant,
}

impl Allowance {
    fn new(per_second: u32, now: Instant) -> Allowance {
        Allowance { per_second, left: Allowance::most(per_second), updated: now }
    }

    fn most(per_second: u32) -> f64 {
        if per_second == 0 { 0.0 } else { (f64::from(per_second) / 10.0).max(1.0) }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.updated).as_secs_f64();
        self.updated = now.max(self.updated);
        let most = Allowance::most(self.per_second);
        self.left = (self.left + passed * f64::from(self.per_second)).min(most);
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn path() -> Path {
        Path { peer: "10.0.0.1:1".parse().unwrap(), local: "10.0.0.2:2".parse().unwrap() }
    }

    #[test]
    fn resets_are_smaller_than_their_cause_limited_and_carry_the_token() {
        let now = Instant::now();
        let secrets = EndpointSecrets::from_seed(&[5; 32]);
        let entropy = Entropy::new();
        let mut counters = Counters::default();
        let mut answers = Answers::new(8, 30, now);
        let mut out = [0; 1500];
        for cause in [0, 20, 21, 22, 30, 43, 44, 1200] {
            answers.reset(now + Duration::from_secs(1), path(), &[7; 16], cause, (&secrets, &entropy), &mut counters);
            let sent = answers.pop_into(&mut out);
            assert_eq!(sent.is_some(), cause >= 22 && counters.resets_limited == 0, "cause of {cause} bytes");
            if let Some(sent) = sent {
                assert!(sent.bytes < cause && sent.bytes >= RESET_BYTES_MIN);
                assert_eq!(out[0] & 0xc0, 0x40);
                assert_eq!(out[sent.bytes - 16..sent.bytes], secrets.reset_token(&[7; 16]));
            }
        }
        // 30 per second is 3 at once: 22, 30, 43 took them.
        assert_eq!((counters.resets_sent, counters.resets_limited), (3, 2));
        answers.reset(now + Duration::from_secs(2), path(), &[7; 16], 100, (&secrets, &entropy), &mut counters);
        assert_eq!(counters.resets_sent, 4, "the allowance comes back");
    }

    #[test]
    fn the_queue_is_bounded() {
        let now = Instant::now();
        let mut counters = Counters::default();
        let mut answers = Answers::new(4, 0, now);
        for _ in 0..10 {
            answers.negotiate_version(path(), (&[1; 8], &[2; 8]), &mut counters);
        }
        assert_eq!((counters.version_negotiations_sent, counters.dropped_answers), (4, 6));
        answers.negotiate_version(path(), (&[1; 255], &[2; 255]), &mut counters);
        assert_eq!(counters.dropped_answers, 7);
    }
}
