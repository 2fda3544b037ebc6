//! Datagrams of an id that nobody knows: a new client, a lost one, or noise.
//!
//! **What.**
//!
//! ```text
//!   another core's            -> dropped (the caller routes)
//!   short header              -> stateless reset
//!   long, other version       -> version negotiation
//!   Initial, too small        -> dropped
//!   Initial, draining or full -> refusal (CONNECTION_REFUSED)
//!   Initial with a bad token  -> refusal (INVALID_TOKEN)
//!   Initial under load        -> Retry
//!   Initial at the limit      -> dropped, the client tries again
//!   Initial                   -> connection
//! ```
//!
//! **Invariants.** State is made only in the last case, and there are at most `handshakes_max` such
//! states that have not proven themselves.
//!
//! **Never.** An answer larger than what it answers.
//!
//! **See** `token.rs`, `refuse.rs`, `stateless.rs`.

use std::time::Instant;

use crate::admission::Source;
use crate::conn_id::{self, Cid, FIRST_ID_BYTES_MIN, Head, Route};
use crate::connection::Connection;
use crate::endpoint::{Endpoint, Served, Target};
use crate::event::{CONNECTION_REFUSED, INVALID_TOKEN};
use crate::settings::RetryPolicy;
use crate::stateless::Path;

/// Smallest datagram that may open a connection (RFC 9000 section 14.1).
const INITIAL_BYTES_MIN: usize = 1_200;

/// The first packet of a client.
struct Initial {
    dcid: Cid,
    scid: Cid,
    token: Vec<u8>,
}

impl Endpoint {
    pub(crate) fn on_unknown(&mut self, now: Instant, datagram: &mut [u8], path: Path) {
        if conn_id::route(self.core, datagram) != Route::Local {
            self.counters.dropped_wrong_core += 1;
            return;
        }
        match Head::parse(datagram) {
            None => self.counters.dropped_junk += 1,
            Some(Head::Short { dcid }) => {
                self.counters.dropped_unknown_id += 1;
                let keys = (&self.secrets, &self.entropy);
                self.answers.reset(now, path, dcid, datagram.len(), keys, &mut self.counters);
            }
            Some(Head::Long { version: 0, .. }) => self.counters.dropped_junk += 1,
            Some(_) if datagram.len() < INITIAL_BYTES_MIN => self.counters.dropped_small_initial += 1,
            Some(Head::Long { version, dcid, scid, .. }) if !quiche::version_is_supported(version) => {
                self.answers.negotiate_version(path, (scid, dcid), &mut self.counters);
            }
            Some(Head::Long { kind, dcid, scid, rest, .. }) => {
                const INITIAL: u8 = 0;
                if kind != INITIAL {
                    self.counters.dropped_unknown_id += 1;
                    return;
                }
                let (Some(dcid_owned), Some(scid), Some(token)) = (Cid::new(dcid), Cid::new(scid), token_of(rest))
                else {
                    self.counters.dropped_junk += 1;
                    return;
                };
                if dcid.len() < FIRST_ID_BYTES_MIN {
                    self.counters.dropped_small_initial += 1;
                    return;
                }
                let initial = Initial { dcid: dcid_owned, scid, token: token.to_vec() };
                self.on_initial(now, initial, datagram, path);
            }
        }
    }

    fn on_initial(&mut self, now: Instant, initial: Initial, datagram: &mut [u8], path: Path) {
        let source = Source::of(path.peer.ip());
        if self.draining {
            self.counters.refused_draining += 1;
            return self.refuse(&initial, path, CONNECTION_REFUSED);
        }
        if self.served.len() >= self.config.connections_max {
            self.counters.refused_connections_max += 1;
            return self.refuse(&initial, path, CONNECTION_REFUSED);
        }
        if self.sources.is_full(source) {
            self.counters.refused_source_max += 1;
            return self.refuse(&initial, path, CONNECTION_REFUSED);
        }
        let mut original = None;
        if !initial.token.is_empty() {
            // Whoever brings a token followed a Retry and cannot follow another.
            original = self.tokens.check(now, path.peer, initial.dcid.as_slice(), &initial.token);
            if original.is_none() {
                self.counters.retry_tokens_invalid += 1;
                return self.refuse(&initial, path, INVALID_TOKEN);
            }
            self.counters.retry_tokens_valid += 1;
        } else if self.wants_retry() {
            return self.send_retry(now, &initial, path);
        }
        if self.counters.handshakes_in_flight >= self.config.handshakes_max as u64 {
            self.counters.dropped_handshakes_max += 1;
            return;
        }
        self.accept(now, &initial, original, datagram, path);
    }

    fn wants_retry(&self) -> bool {
        match self.config.retry {
            RetryPolicy::Always => true,
            RetryPolicy::AboveHandshakes(threshold) => self.counters.handshakes_in_flight >= threshold as u64,
            RetryPolicy::Never => false,
        }
    }

    fn send_retry(&mut self, now: Instant, initial: &Initial, path: Path) {
        let Ok(retry_id) = Cid::generate_for_retry(self.core, &self.entropy) else { return };
        let token = self.tokens.issue(now, path.peer, &initial.dcid, retry_id.as_slice());
        let ids = (initial.scid.as_slice(), initial.dcid.as_slice());
        self.answers.retry(path, ids, &retry_id, &token, &mut self.counters);
    }

    fn refuse(&mut self, initial: &Initial, path: Path, code: u64) {
        let Ok(our_id) = Cid::generate(self.core, &self.entropy) else { return };
        let ids = (initial.scid.as_slice(), initial.dcid.as_slice());
        self.answers.refuse(path, ids, &our_id, code, &mut self.counters);
    }

    fn accept(&mut self, now: Instant, initial: &Initial, original: Option<Cid>, datagram: &mut [u8], path: Path) {
        let Ok(own) = Cid::generate(self.core, &self.entropy) else {
            self.counters.accept_failed += 1;
            return;
        };
        let reset_token = self.secrets.reset_token(own.as_slice());
        self.quic.set_stateless_reset_token(Some(u128::from_be_bytes(reset_token)));
        let own_quiche = own.to_quiche();
        let quic = match &original {
            None => quiche::accept_with_buf_factory(&own_quiche, None, path.local, path.peer, &mut self.quic),
            Some(original) => {
                let ids = quiche::RetryConnectionIds {
                    original_destination_cid: &original.to_quiche(),
                    retry_source_cid: &initial.dcid.to_quiche(),
                };
                quiche::accept_with_retry(&own_quiche, ids, path.local, path.peer, &mut self.quic)
            }
        };
        let Ok(quic) = quic else {
            self.counters.accept_failed += 1;
            return;
        };
        // A Retry proved the address: it counts from now on. Others count once they are connected.
        let source = Source::of(path.peer.ip());
        let counted = original.is_some() && self.sources.add(source);
        let conn = self.served.insert(Box::new(Served {
            connection: Connection::new(quic, path.peer, now, self.habits()),
            first_id: Some(initial.dcid),
            source: counted.then_some(source),
            opened: false,
            dirty: false,
            touched: false,
        }));
        self.ids.insert(own, Target::Live(conn));
        self.ids.insert(initial.dcid, Target::Live(conn));
        self.counters.handshakes_total += 1;
        self.counters.handshakes_in_flight += 1;
        self.counters.connections = self.served.len() as u64;
        self.deliver(now, conn, datagram, path);
        self.drop_stillborn(conn);
    }
}

/// The token field of an Initial packet: a variable-length integer, then the bytes.
fn token_of(rest: &[u8]) -> Option<&[u8]> {
    let first = *rest.first()?;
    let bytes = 1usize << (first >> 6);
    let mut len = u64::from(first & 0x3f);
    for &byte in rest.get(1..bytes)? {
        len = len << 8 | u64::from(byte);
    }
    let end = usize::try_from(len).ok()?.checked_add(bytes)?;
    rest.get(bytes..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_cut_out_or_refused() {
        assert_eq!(token_of(&[]), None);
        assert_eq!(token_of(&[0]), Some(&[][..]));
        assert_eq!(token_of(&[2, 7, 8, 9]), Some(&[7, 8][..]));
        assert_eq!(token_of(&[2, 7]), None);
        assert_eq!(token_of(&[0x40, 1, 5, 6]), Some(&[5][..]));
        assert_eq!(token_of(&[0x40]), None);
        assert_eq!(token_of(&[0xff; 8]), None, "2^62 bytes");
        assert_eq!(token_of(&[0xff; 7]), None);
    }
}
