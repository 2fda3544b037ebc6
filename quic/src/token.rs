//! Retry tokens: a client proves that it hears at its address, and we keep nothing.
//!
//! **What.**
//!
//! ```text
//!   [1: form][8: issued, ms since the endpoint began][1: length][original id ..][32: HMAC-SHA256]
//!   the HMAC covers all before it, the client's address and the Retry's source id
//! ```
//!
//! **Invariants.** The key is drawn per endpoint, so a token is good on the core that issued it and
//! only in this life of the process. The comparison takes constant time (ring).
//!
//! **Never.** Trust in the original id before the HMAC is checked.
//!
//! **See** `accept.rs`.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ring::hmac;

use crate::conn_id::{Cid, ID_BYTES_MAX};
use crate::secrets::{Entropy, NoEntropy};

const FORM: u8 = 1;
const FIXED_BYTES: usize = 10;
const TAG_BYTES: usize = 32;
/// Longest token of ours.
pub(crate) const TOKEN_BYTES_MAX: usize = FIXED_BYTES + ID_BYTES_MAX + TAG_BYTES;

/// Issues and checks the tokens of one endpoint.
pub(crate) struct RetryTokens {
    key: hmac::Key,
    began: Instant,
    lifetime: Duration,
}

impl RetryTokens {
    pub(crate) fn new(entropy: &Entropy, began: Instant, lifetime: Duration) -> Result<RetryTokens, NoEntropy> {
        let mut key = [0; 32];
        entropy.fill(&mut key)?;
        Ok(RetryTokens { key: hmac::Key::new(hmac::HMAC_SHA256, &key), began, lifetime })
    }

    /// A token for the client at `peer` that first asked for `original` and is told to use `retry_id`.
    pub(crate) fn issue(&self, now: Instant, peer: SocketAddr, original: &Cid, retry_id: &[u8]) -> Vec<u8> {
        let original = original.as_slice();
        let mut token = Vec::with_capacity(TOKEN_BYTES_MAX);
        token.push(FORM);
        token.extend_from_slice(&self.millis(now).to_be_bytes());
        token.push(original.len() as u8);
        token.extend_from_slice(original);
        let tag = hmac::sign(&self.key, &signed(&token, peer, retry_id));
        token.extend_from_slice(tag.as_ref());
        token
    }

    /// The original id, if the token is ours, fresh and for this address and id.
    pub(crate) fn check(&self, now: Instant, peer: SocketAddr, retry_id: &[u8], token: &[u8]) -> Option<Cid> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (body, tag) = token.split_at_checked(token.len().checked_sub(TAG_BYTES)?)?;
        hmac::verify(&self.key, &signed(body, peer, retry_id), tag).ok()?;
        let (fixed, original) = body.split_at_checked(FIXED_BYTES)?;
        let issued = u64::from_be_bytes(fixed[1..9].try_into().ok()?);
        let age = self.millis(now).saturating_sub(issued);
        let fresh = u128::from(age) <= self.lifetime.as_millis();
        if fixed[0] != FORM || usize::from(fixed[9]) != original.len() || !fresh {
            return None;
        }
        Cid::new(original)
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_millis() as u64
    }
}

/// The bytes under the HMAC: the token's body, then the address, then the Retry's id.
fn signed(body: &[u8], peer: SocketAddr, retry_id: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() + 18 + retry_id.len());
    bytes.extend_from_slice(body);
    match peer.ip() {
        IpAddr::V4(ip) => bytes.extend_from_slice(&ip.to_ipv6_mapped().octets()),
        IpAddr::V6(ip) => bytes.extend_from_slice(&ip.octets()),
    }
    bytes.extend_from_slice(&peer.port().to_be_bytes());
    bytes.extend_from_slice(retry_id);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_only_as_it_was_issued() {
        let now = Instant::now();
        let tokens = RetryTokens::new(&Entropy::new(), now, Duration::from_secs(5)).unwrap();
        let peer: SocketAddr = "10.0.0.1:4000".parse().unwrap();
        let original = Cid::new(&[3; 16]).unwrap();
        let token = tokens.issue(now, peer, &original, b"retry id");
        let good =
            |now, peer, id: &[u8], token: &[u8]| tokens.check(now, peer, id, token).map(|id| id.as_slice().to_vec());
        assert_eq!(good(now, peer, b"retry id", &token), Some(vec![3; 16]));
        assert_eq!(good(now + Duration::from_secs(5), peer, b"retry id", &token), Some(vec![3; 16]));
        assert_eq!(good(now + Duration::from_millis(5_001), peer, b"retry id", &token), None, "expired");
        assert_eq!(good(now, "10.0.0.2:4000".parse().unwrap(), b"retry id", &token), None, "other address");
        assert_eq!(good(now, "10.0.0.1:4001".parse().unwrap(), b"retry id", &token), None, "other port");
        assert_eq!(good(now, peer, b"retry ie", &token), None, "other id");
        for at in 0..token.len() {
            let mut damaged = token.clone();
            damaged[at] ^= 1;
            assert_eq!(good(now, peer, b"retry id", &damaged), None, "bit at {at}");
            assert_eq!(good(now, peer, b"retry id", &token[..at]), None, "cut at {at}");
        }
        let other = RetryTokens::new(&Entropy::new(), now, Duration::from_secs(5)).unwrap();
        assert!(other.check(now, peer, b"retry id", &token).is_none(), "another endpoint's key");
        assert!(tokens.check(now, peer, b"retry id", &[1; 4096]).is_none(), "huge");
    }
}
