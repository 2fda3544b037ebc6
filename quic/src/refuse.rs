//! A refusal without a connection: an Initial packet that holds only CONNECTION_CLOSE.
//!
//! **What.** RFC 9001 section 5.2 derives the keys of Initial packets from the client's first
//! connection id, so a server can answer one without any state. Used when it drains, is full, or gets
//! a bad Retry token: the client learns it in one round trip instead of a timeout.
//!
//! ```text
//!   [header byte][version][len][client's id][len][our id][token len 0][length 2][number 1]
//!   [0x1c CONNECTION_CLOSE][code][frame type 0][reason len 0][padding 0 ..]  + 16 bytes of tag
//! ```
//!
//! **Invariants.** Below 100 bytes against the client's 1,200: no amplification.
//!
//! **Never.** Use for anything but packet number 0 of a fresh id: the nonce would repeat.
//!
//! **See** `accept.rs`.

use ring::aead::quic::{AES_128, HeaderProtectionKey};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;

/// RFC 9001 section 5.2.
const INITIAL_SALT: [u8; 20] = [
    0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f,
    0x0a,
];
const TAG_BYTES: usize = 16;
/// Frame bytes, padding included: enough for the sample of the header protection.
const PLAIN_BYTES: usize = 8;

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Writes the refusal of a client's first Initial. `original` is the destination id that the client
/// used, `client_id` its source id, `our_id` any id of ours, `code` below 64. `None` if `out` is short.
pub(crate) fn write(out: &mut [u8], original: &[u8], client_id: &[u8], our_id: &[u8], code: u8) -> Option<usize> {
    debug_assert!(code < 64, "a code of more than one byte");
    let number_at = 1 + 4 + 1 + client_id.len() + 1 + our_id.len() + 1 + 2;
    let plain_at = number_at + 1;
    let total = plain_at + PLAIN_BYTES + TAG_BYTES;
    let packet = out.get_mut(..total)?;

    packet[0] = 0xc0;
    packet[1..5].copy_from_slice(&quiche::PROTOCOL_VERSION.to_be_bytes());
    let mut at = 5;
    for id in [client_id, our_id] {
        packet[at] = id.len() as u8;
        packet[at + 1..at + 1 + id.len()].copy_from_slice(id);
        at += 1 + id.len();
    }
    packet[at] = 0;
    let length = (1 + PLAIN_BYTES + TAG_BYTES) as u16;
    packet[at + 1..at + 3].copy_from_slice(&(0x4000 | length).to_be_bytes());
    packet[number_at] = 0;
    packet[plain_at..total].fill(0);
    packet[plain_at] = 0x1c;
    packet[plain_at + 1] = code;

    let keys = ServerInitialKeys::derive(original)?;
    let (header, body) = packet.split_at_mut(plain_at);
    // Packet number 0: the nonce is the IV itself.
    let nonce = Nonce::assume_unique_for_key(keys.iv);
    let (plain, tag_out) = body.split_at_mut(PLAIN_BYTES);
    let tag = keys.seal.seal_in_place_separate_tag(nonce, Aad::from(&*header), plain).ok()?;
    tag_out.copy_from_slice(tag.as_ref());

    let sample = packet.get(number_at + 4..number_at + 20)?;
    let mask = keys.header.new_mask(sample).ok()?;
    packet[0] ^= mask[0] & 0x0f;
    packet[number_at] ^= mask[1];
    Some(total)
}

struct ServerInitialKeys {
    seal: LessSafeKey,
    iv: [u8; 12],
    header: HeaderProtectionKey,
}

impl ServerInitialKeys {
    fn derive(original: &[u8]) -> Option<ServerInitialKeys> {
        let initial = hkdf::Salt::new(hkdf::HKDF_SHA256, &INITIAL_SALT).extract(original);
        let mut secret = [0; 32];
        expand_label(&initial, b"server in", &mut secret)?;
        let secret = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &secret);
        let (mut key, mut iv, mut header) = ([0; 16], [0; 12], [0; 16]);
        expand_label(&secret, b"quic key", &mut key)?;
        expand_label(&secret, b"quic iv", &mut iv)?;
        expand_label(&secret, b"quic hp", &mut header)?;
        Some(ServerInitialKeys {
            seal: LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).ok()?),
            iv,
            header: HeaderProtectionKey::new(&AES_128, &header).ok()?,
        })
    }
}

/// HKDF-Expand-Label of TLS 1.3 with an empty context.
fn expand_label(secret: &hkdf::Prk, label: &[u8], out: &mut [u8]) -> Option<()> {
    let length = (out.len() as u16).to_be_bytes();
    let label_len = [6 + label.len() as u8];
    let info = [&length[..], &label_len, b"tls13 ", label, &[0]];
    secret.expand(&info, Length(out.len())).ok()?.fill(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of RFC 9001 appendix A.1, through the packet they protect: a quiche client must read
    /// the refusal, which `tests/admission.rs` checks end to end. Here: sizes and bounds.
    #[test]
    fn fits_its_bounds_and_never_writes_past_them() {
        let mut out = [0; 128];
        let bytes = write(&mut out, &[8; 8], &[1; 20], &[2; 16], 0x02).unwrap();
        assert_eq!(bytes, 1 + 4 + 21 + 17 + 1 + 2 + 1 + PLAIN_BYTES + TAG_BYTES);
        for short in 0..bytes {
            assert_eq!(write(&mut out[..short], &[8; 8], &[1; 20], &[2; 16], 0x02), None);
        }
    }
}
