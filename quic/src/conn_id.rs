//! Connection ids that name their core, and handles that name a connection.
//!
//! **What.** A QUIC connection id of ours is 16 bytes: byte 0 is core + k·count, the rest is random.
//! `ConnId` is our own handle: slot and generation inside one endpoint.
//!
//! ```text
//!   short header   [0x40..0x7f][ id 16 .. ][packet number, payload]        core = byte 1 mod count
//!   long header    [0xc0..0xff][version 4][len][ id .. ][len][ scid .. ]   core = byte 6 mod count
//! ```
//!
//! **Invariants.** `core_of` agrees with the packet filter on the sockets for every datagram that is
//! long enough to hold an id.
//!
//! **Never.** A read past the end: every length is checked here, once.
//!
//! **See** `endpoint.rs`, which looks the id up.

use crate::error::ConfigError;
use crate::secrets::{Entropy, NoEntropy};

/// Bytes of the connection ids that servers issue.
pub(crate) const SERVER_ID_BYTES: usize = 16;
/// Bytes of the ids in our Retry packets. They live for one handshake, and quiche has 128 bytes for all
/// transport parameters: with 16 here and a client's id of 20 they do not fit.
const RETRY_ID_BYTES: usize = 8;
/// Longest connection id of QUIC version 1 (RFC 9000 section 17.2).
pub(crate) const ID_BYTES_MAX: usize = 20;
/// Shortest connection id that a client may pick for its first packet (RFC 9000 section 7.2).
pub(crate) const FIRST_ID_BYTES_MIN: usize = 8;

/// Handle of a connection inside one endpoint. Never reused: the generation changes with the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl ConnId {
    /// The handle as one number, for session tables.
    pub fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// The handle back from its number.
    pub fn from_u64(number: u64) -> ConnId {
        ConnId { slot: number as u32, generation: (number >> 32) as u32 }
    }
}

/// Which core of how many an endpoint serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreSlot {
    /// Index of this core, below `count`.
    pub index: u8,
    /// Number of cores that share the address.
    pub count: u8,
}

impl CoreSlot {
    /// Checks that the index is below the count.
    pub fn validate(self) -> Result<CoreSlot, ConfigError> {
        if self.index < self.count {
            Ok(self)
        } else {
            Err(ConfigError::CoreSlot { index: self.index, count: self.count })
        }
    }

    /// A first byte that leads to this core, picked by a random byte.
    fn first_byte(self, random: u8) -> u8 {
        let choices = (255 - u16::from(self.index)) / u16::from(self.count) + 1;
        let k = u16::from(random) % choices;
        (u16::from(self.index) + k * u16::from(self.count)) as u8
    }
}

/// Where a datagram belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To this endpoint.
    Local,
    /// To the endpoint of that core.
    Core(u8),
    /// Nowhere: it is too short to hold a connection id.
    Junk,
}

/// The core byte of a datagram, exactly as the packet filter reads it.
pub(crate) fn core_byte(datagram: &[u8]) -> Option<u8> {
    let first = *datagram.first()?;
    datagram.get(if first & 0x80 != 0 { 6 } else { 1 }).copied()
}

/// Where a datagram belongs, seen from `here`.
pub(crate) fn route(here: CoreSlot, datagram: &[u8]) -> Route {
    match core_byte(datagram) {
        None => Route::Junk,
        Some(byte) if byte % here.count == here.index => Route::Local,
        Some(byte) => Route::Core(byte % here.count),
    }
}

/// A connection id as map key: fixed size, no heap.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Cid {
    bytes: [u8; ID_BYTES_MAX],
    len: u8,
}

impl Cid {
    /// An id from the wire; `None` if it is longer than QUIC allows.
    pub(crate) fn new(id: &[u8]) -> Option<Cid> {
        let mut bytes = [0; ID_BYTES_MAX];
        bytes.get_mut(..id.len())?.copy_from_slice(id);
        Some(Cid { bytes, len: id.len() as u8 })
    }

    /// A new server id that leads to `core`.
    pub(crate) fn generate(core: CoreSlot, entropy: &Entropy) -> Result<Cid, NoEntropy> {
        Cid::random(core, SERVER_ID_BYTES, entropy)
    }

    /// A new id for a Retry that leads to `core`.
    pub(crate) fn generate_for_retry(core: CoreSlot, entropy: &Entropy) -> Result<Cid, NoEntropy> {
        Cid::random(core, RETRY_ID_BYTES, entropy)
    }

    fn random(core: CoreSlot, len: usize, entropy: &Entropy) -> Result<Cid, NoEntropy> {
        let mut bytes = [0; ID_BYTES_MAX];
        entropy.fill(&mut bytes[..len])?;
        bytes[0] = core.first_byte(bytes[0]);
        Ok(Cid { bytes, len: len as u8 })
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    pub(crate) fn to_quiche(self) -> quiche::ConnectionId<'static> {
        quiche::ConnectionId::from_vec(self.as_slice().to_vec())
    }
}

/// The part of a packet that is readable without any key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head<'a> {
    /// 1-RTT packet.
    Short {
        /// Our connection id.
        dcid: &'a [u8],
    },
    /// Initial, 0-RTT, Handshake or Retry, or anything of another version.
    Long {
        /// QUIC version; 0 is version negotiation.
        version: u32,
        /// Packet type bits (only of meaning in version 1): 0 is Initial.
        kind: u8,
        /// Destination id: ours, or the client's first choice.
        dcid: &'a [u8],
        /// Source id: the peer's.
        scid: &'a [u8],
        /// What follows both ids.
        rest: &'a [u8],
    },
}

impl<'a> Head<'a> {
    /// Parses the first packet of a datagram; `None` is junk.
    pub(crate) fn parse(datagram: &'a [u8]) -> Option<Head<'a>> {
        let first = *datagram.first()?;
        if first & 0x80 == 0 {
            // The fixed bit: RFC 9000 section 17.3.1 says such packets MUST be discarded.
            if first & 0x40 == 0 {
                return None;
            }
            return Some(Head::Short { dcid: datagram.get(1..1 + SERVER_ID_BYTES)? });
        }
        let version = u32::from_be_bytes(datagram.get(1..5)?.try_into().ok()?);
        let (dcid, after) = id_at(datagram, 5)?;
        let (scid, after) = id_at(datagram, after)?;
        let rest = datagram.get(after..)?;
        Some(Head::Long { version, kind: first >> 4 & 0x03, dcid, scid, rest })
    }
}

/// A length-prefixed id at `at`, and the offset after it.
fn id_at(datagram: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let end = at + 1 + usize::from(*datagram.get(at)?);
    Some((datagram.get(at + 1..end)?, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_generated_id_leads_to_its_core() {
        let entropy = Entropy::new();
        for count in [1u8, 2, 3, 4, 7, 64, 200, 255] {
            for index in [0, count / 2, count - 1] {
                let core = CoreSlot { index, count };
                for _ in 0..200 {
                    let id = Cid::generate(core, &entropy).unwrap();
                    assert_eq!(id.as_slice().len(), SERVER_ID_BYTES);
                    assert_eq!(id.as_slice()[0] % count, index, "{core:?}");
                }
                // The extremes of the random byte, which chance may not show.
                for random in 0..=255 {
                    assert_eq!(core.first_byte(random) % count, index, "{core:?} {random}");
                }
            }
        }
    }

    #[test]
    fn route_reads_byte_one_or_byte_six() {
        let here = CoreSlot { index: 1, count: 4 };
        assert_eq!(route(here, &[]), Route::Junk);
        assert_eq!(route(here, &[0x40]), Route::Junk);
        assert_eq!(route(here, &[0x40, 5]), Route::Local);
        assert_eq!(route(here, &[0x40, 6]), Route::Core(2));
        assert_eq!(route(here, &[0xc0, 1, 1, 1, 1, 1]), Route::Junk);
        assert_eq!(route(here, &[0xc0, 1, 1, 1, 1, 1, 7]), Route::Core(3));
        assert_eq!(route(here, &[0xc0, 1, 1, 1, 1, 1, 9]), Route::Local);
    }

    #[test]
    fn heads_of_every_truncation_are_junk_or_bounded() {
        let mut long = vec![0xc3, 0, 0, 0, 1, 8];
        long.extend([7; 8]);
        long.push(4);
        long.extend([9; 4]);
        long.extend([0, 1, 2]);
        for end in 0..long.len() {
            let head = Head::parse(&long[..end]);
            assert_eq!(head.is_some(), end >= 19, "{end}");
        }
        let Some(Head::Long { version, kind, dcid, scid, rest }) = Head::parse(&long) else {
            panic!("not a long header")
        };
        assert_eq!((version, kind, dcid, scid, rest), (1, 0, &[7; 8][..], &[9; 4][..], &[0, 1, 2][..]));
        assert_eq!(Head::parse(&[0x20; 40]), None, "fixed bit missing");
        assert_eq!(Head::parse(&[0x40; 16]), None, "one byte short of an id");
        assert!(Head::parse(&[0x40; 17]).is_some());
        assert!(Cid::new(&[0; 21]).is_none());
    }

    #[test]
    fn handles_survive_the_way_through_a_number() {
        let id = ConnId { slot: 0xdead_beef, generation: 7 };
        assert_eq!(ConnId::from_u64(id.to_u64()), id);
    }
}
