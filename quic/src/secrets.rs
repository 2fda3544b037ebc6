//! Keys that outlive a process, and random bytes.
//!
//! **What.** The stateless reset key (RFC 9000 section 10.3.2): the token of a connection id is
//! HMAC-SHA256(key, id) cut to 16 bytes, so a broker that lost its memory can still tell its clients.
//!
//! **Invariants.** All cores of a node share one `EndpointSecrets`, and it is the same after a
//! restart. The Retry key is not in it: it is drawn per endpoint, since a Retry ends with its process.
//!
//! **Never.** Keys in Debug output.
//!
//! **See** `stateless.rs`, `token.rs`.

use std::fmt;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use crate::error::ConfigError;

/// The persisted secret of one node's endpoints.
#[derive(Clone)]
pub struct EndpointSecrets {
    reset: hmac::Key,
}

impl EndpointSecrets {
    /// Bytes of the seed that the broker keeps on its volume.
    pub const SEED_BYTES: usize = 32;

    /// Derives the keys from the persisted seed.
    pub fn from_seed(seed: &[u8; Self::SEED_BYTES]) -> EndpointSecrets {
        let root = hmac::Key::new(hmac::HMAC_SHA256, seed);
        let derived = hmac::sign(&root, b"felix quic stateless reset v1");
        EndpointSecrets { reset: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()) }
    }

    /// A fresh seed, for the first start of a node.
    pub fn new_seed() -> Result<[u8; Self::SEED_BYTES], ConfigError> {
        let mut seed = [0; Self::SEED_BYTES];
        Entropy::new().fill(&mut seed).map_err(|_| ConfigError::Entropy)?;
        Ok(seed)
    }

    /// The stateless reset token of a connection id.
    pub(crate) fn reset_token(&self, conn_id: &[u8]) -> [u8; 16] {
        let tag = hmac::sign(&self.reset, conn_id);
        let mut token = [0; 16];
        token.copy_from_slice(&tag.as_ref()[..16]);
        token
    }
}

impl fmt::Debug for EndpointSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EndpointSecrets")
    }
}

/// The system had no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoEntropy;

/// Source of random bytes: the system's.
pub(crate) struct Entropy {
    system: SystemRandom,
}

impl Entropy {
    pub(crate) fn new() -> Entropy {
        Entropy { system: SystemRandom::new() }
    }

    pub(crate) fn fill(&self, bytes: &mut [u8]) -> Result<(), NoEntropy> {
        self.system.fill(bytes).map_err(|_| NoEntropy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_stable_and_differ_by_id_and_seed() {
        let a = EndpointSecrets::from_seed(&[1; 32]);
        let again = EndpointSecrets::from_seed(&[1; 32]);
        let b = EndpointSecrets::from_seed(&[2; 32]);
        assert_eq!(a.reset_token(b"id"), again.reset_token(b"id"));
        assert_ne!(a.reset_token(b"id"), a.reset_token(b"ie"));
        assert_ne!(a.reset_token(b"id"), b.reset_token(b"id"));
        assert_eq!(format!("{a:?}"), "EndpointSecrets");
    }
}
