//! **What**: versions of the wire and what each changed.
//!
//! **Invariants**: both sides name a range in the handshake and use the highest that both have; golden bytes of a
//! version never change.
//!
//! **Never**: a change of a published version's bytes.
//!
//! **See**: `frame.rs` (Hello, Welcome).

/// Application protocol of the TLS handshake (RFC 7301).
pub const ALPN: &[u8] = b"felix/1";

/// A version of the frame envelope and of the frames in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WireVersion(pub u8);

impl WireVersion {
    /// First version: envelope, publish, subscribe, admin.
    pub const V1: WireVersion = WireVersion(1);
    /// Lowest version this build speaks.
    pub const LOWEST: WireVersion = WireVersion::V1;
    /// Highest version this build speaks.
    pub const HIGHEST: WireVersion = WireVersion::V1;

    /// Highest version within both our range and the peer's `min..=max`; None if the ranges do not meet.
    pub fn negotiate(min: u8, max: u8) -> Option<WireVersion> {
        let high = max.min(Self::HIGHEST.0);
        let low = min.max(Self::LOWEST.0);
        (low <= high).then_some(WireVersion(high))
    }
}

/// Optional abilities, a bit each, told in Hello and Welcome. Unknown bits are ignored.
pub mod feature {
    /// Deliveries in QUIC DATAGRAM frames.
    pub const DATAGRAM: u64 = 1 << 0;
    /// Values sections compressed with LZ4 or Zstandard.
    pub const COMPRESSION: u64 = 1 << 1;
    /// Idempotent producers.
    pub const PRODUCERS: u64 = 1 << 2;
    /// Everything this build has.
    pub const ALL: u64 = DATAGRAM | COMPRESSION | PRODUCERS;
}
