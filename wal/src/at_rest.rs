//! **What**: encryption at rest: seals a batch in pieces, and opens it again.
//!
//! ```text
//! key   = HKDF-SHA256(salt = 128 random bits of this WAL incarnation, secret = data key of the tenant)
//! nonce = 96-bit counter, big endian, of this key; one per piece
//! AAD   = SHA-256(region, tenant) | stream | shard | lineage | epoch | base offset | key id | piece | pieces
//! ```
//!
//! **Invariants**: a nonce is used once: the counter belongs to a `Sealer`, which is neither copied nor cloned, and a salt
//! makes one sealer per tenant and WAL incarnation. A piece opens only in the place it was sealed for.
//!
//! **Never**: randomness from here: salts are given by the caller. A key in a debug print.
//!
//! **See**: `format/stored.rs` for the bytes, `keyring.rs` for where data keys come from.

use crate::format::stored::{
    ENVELOPE_BYTES, Envelope, PIECE_BYTES_MAX, StoredBatch, TAG_BYTES, piece_count, sealed_bytes,
};
use felix_protocol::batch::StampedHeader;
use felix_protocol::batch_view::{BatchError, BatchView};
use felix_protocol::limits::STAMPED_HEADER_BYTES;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::{digest, hkdf, hmac};
use std::fmt;

/// Bytes of a data key.
pub const DATA_KEY_BYTES: usize = 32;
const AAD_BYTES: usize = 32 + 8 + 8 + 4 + 8 + 8 + 4 + 2 + 2;
/// Pieces that one sealer seals at most; far below what AES-GCM allows under one key (2^32 random nonces; ours count).
const PIECES_MAX: u64 = 1 << 48;

/// Whose data it is: goes into every AAD.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AtRestScope {
    digest: [u8; 32],
}

impl AtRestScope {
    /// Of a tenant in a region.
    pub fn new(region: &str, tenant: &str) -> AtRestScope {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [region, tenant] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        AtRestScope { digest: bytes }
    }
}

impl fmt::Debug for AtRestScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtRestScope")
    }
}

/// A tenant's data key and its number.
pub struct DataKey {
    /// Its number in the keyring.
    pub id: u32,
    /// The key.
    bytes: [u8; DATA_KEY_BYTES],
}

impl DataKey {
    /// A key from bytes.
    pub fn new(id: u32, bytes: [u8; DATA_KEY_BYTES]) -> DataKey {
        DataKey { id, bytes }
    }

    /// Tells this key from another of the same tenant and number, and tells nothing of the key itself.
    pub fn fingerprint(&self, tenant: &str) -> [u8; 8] {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.bytes));
        context.update(b"felix key fingerprint 1");
        context.update(&self.id.to_le_bytes());
        context.update(tenant.as_bytes());
        let mut print = [0; 8];
        print.copy_from_slice(&context.sign().as_ref()[..8]);
        print
    }

    pub(crate) fn bytes(&self) -> &[u8; DATA_KEY_BYTES] {
        &self.bytes
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({})", self.id)
    }
}

impl Drop for DataKey {
    fn drop(&mut self) {
        self.bytes.fill(0);
        std::hint::black_box(&mut self.bytes);
    }
}

/// Why a batch was not sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtRestError {
    /// The sealer has used up its counter: a new salt is needed.
    Exhausted,
    /// It is not a batch.
    Batch(BatchError),
    /// It is not sealed.
    NotSealed,
    /// It was sealed with another key.
    OtherKey {
        /// Key that is needed.
        key_id: u32,
    },
    /// The key does not open it: other bytes, another place, or another tenant.
    Refused {
        /// Which piece.
        piece: usize,
    },
}

impl fmt::Display for AtRestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AtRestError::Exhausted => f.write_str("the sealing key has sealed enough"),
            AtRestError::Batch(error) => error.fmt(f),
            AtRestError::NotSealed => f.write_str("the batch is not sealed"),
            AtRestError::OtherKey { key_id } => write!(f, "data key {key_id} is needed"),
            AtRestError::Refused { piece } => write!(f, "piece {piece} does not open"),
        }
    }
}

impl std::error::Error for AtRestError {}

impl From<BatchError> for AtRestError {
    fn from(error: BatchError) -> AtRestError {
        AtRestError::Batch(error)
    }
}

fn derive(key: &DataKey, salt: u128) -> LessSafeKey {
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &salt.to_be_bytes()).extract(&key.bytes);
    let okm = prk.expand(&[b"felix at rest 1"], &AES_256_GCM).expect("32 bytes are within the limit of HKDF");
    LessSafeKey::new(UnboundKey::from(okm))
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn aad(scope: &AtRestScope, header: &StampedHeader, key_id: u32, piece: usize, pieces: usize) -> Aad<[u8; AAD_BYTES]> {
    let mut bytes = [0; AAD_BYTES];
    let mut at = 0;
    for part in [
        &scope.digest[..],
        &header.stream.0.to_le_bytes(),
        &header.shard.0.to_le_bytes(),
        &header.lineage.0.to_le_bytes(),
        &header.epoch.0.to_le_bytes(),
        &header.base_offset.0.to_le_bytes(),
        &key_id.to_le_bytes(),
        &(piece as u16).to_le_bytes(),
        &(pieces as u16).to_le_bytes(),
    ] {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    debug_assert_eq!(at, AAD_BYTES);
    Aad::from(bytes)
}

/// Seals batches of one tenant in one WAL incarnation.
pub struct Sealer {
    key: LessSafeKey,
    scope: AtRestScope,
    key_id: u32,
    salt: u128,
    counter: u64,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer(key {}, counter {})", self.key_id, self.counter)
    }
}

impl Sealer {
    /// A sealer. The salt must be fresh random bits: no other sealer of this data key may have had it.
    pub fn new(scope: AtRestScope, key: &DataKey, salt: u128) -> Sealer {
        Sealer { key: derive(key, salt), scope, key_id: key.id, salt, counter: 0 }
    }

    /// Seals a clear stamped batch; appends it as it is stored.
    pub fn seal(&mut self, batch: &[u8], out: &mut Vec<u8>) -> Result<(), AtRestError> {
        let view = BatchView::parse(batch)?;
        let clear = &batch[STAMPED_HEADER_BYTES..];
        let pieces = piece_count(clear.len());
        let first = self.counter;
        if first + pieces as u64 > PIECES_MAX {
            return Err(AtRestError::Exhausted);
        }
        // Spent before use: whatever fails below, these nonces are never used again.
        self.counter += pieces as u64;
        let start = out.len();
        out.reserve(STAMPED_HEADER_BYTES + sealed_bytes(clear.len()));
        out.extend_from_slice(&batch[..STAMPED_HEADER_BYTES]);
        let envelope_at = out.len();
        out.resize(envelope_at + ENVELOPE_BYTES, 0);
        for (number, piece) in clear.chunks(PIECE_BYTES_MAX).enumerate() {
            let at = out.len();
            out.extend_from_slice(piece);
            let aad = aad(&self.scope, &view.header, self.key_id, number, pieces);
            let sealed = self.key.seal_in_place_separate_tag(nonce(first + number as u64), aad, &mut out[at..]);
            let Ok(tag) = sealed else {
                out.truncate(start);
                return Err(AtRestError::Refused { piece: number });
            };
            out.extend_from_slice(tag.as_ref());
        }
        let envelope = Envelope { body_crc: view.body.crc, salt: self.salt, counter: first, key_id: self.key_id };
        envelope.write(&mut out[envelope_at..]);
        Ok(())
    }
}

/// Opens batches of one tenant; remembers the key of the last few salts.
pub struct Opener {
    scope: AtRestScope,
    data_keys: Vec<DataKey>,
    derived: Vec<(u32, u128, LessSafeKey)>,
}

/// Derived keys an opener remembers: a segment holds batches of a few WAL incarnations.
const DERIVED_MAX: usize = 8;

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opener({} keys)", self.data_keys.len())
    }
}

impl Opener {
    /// An opener with all data keys of a tenant that still exist.
    pub fn new(scope: AtRestScope, data_keys: Vec<DataKey>) -> Opener {
        Opener { scope, data_keys, derived: Vec::new() }
    }

    fn key(&mut self, envelope: &Envelope) -> Result<&LessSafeKey, AtRestError> {
        let wanted = (envelope.key_id, envelope.salt);
        if let Some(at) = self.derived.iter().position(|(id, salt, _)| (*id, *salt) == wanted) {
            return Ok(&self.derived[at].2);
        }
        let data_key = self.data_keys.iter().find(|key| key.id == envelope.key_id);
        let data_key = data_key.ok_or(AtRestError::OtherKey { key_id: envelope.key_id })?;
        if self.derived.len() == DERIVED_MAX {
            self.derived.remove(0);
        }
        self.derived.push((envelope.key_id, envelope.salt, derive(data_key, envelope.salt)));
        Ok(&self.derived[self.derived.len() - 1].2)
    }

    /// Opens a stored batch; appends the clear one. Nothing is appended on an error.
    pub fn open(&mut self, stored: &StoredBatch<'_>, out: &mut Vec<u8>) -> Result<(), AtRestError> {
        let envelope = stored.sealed.ok_or(AtRestError::NotSealed)?;
        let scope = self.scope;
        let key = self.key(&envelope)?;
        let start = out.len();
        let pieces = stored.bytes[STAMPED_HEADER_BYTES + ENVELOPE_BYTES..].chunks(PIECE_BYTES_MAX + TAG_BYTES);
        let count = pieces.len();
        out.extend_from_slice(&stored.bytes[..STAMPED_HEADER_BYTES]);
        for (number, piece) in pieces.enumerate() {
            let at = out.len();
            out.extend_from_slice(piece);
            let aad = aad(&scope, &stored.header, envelope.key_id, number, count);
            match key.open_in_place(nonce(envelope.counter + number as u64), aad, &mut out[at..]) {
                Ok(clear) => {
                    let bytes = clear.len();
                    out.truncate(at + bytes);
                }
                Err(_) => {
                    out.truncate(start);
                    return Err(AtRestError::Refused { piece: number });
                }
            }
        }
        match BatchView::parse(&out[start..]) {
            Ok(view) if view.body.crc == stored.body_crc => Ok(()),
            Ok(_) | Err(_) => {
                out.truncate(start);
                Err(AtRestError::Refused { piece: count })
            }
        }
    }
}

/// What compaction of a sealed log needs.
#[derive(Debug)]
pub struct AtRest<'a> {
    /// Opens what is there.
    pub opener: &'a mut Opener,
    /// Seals what is written anew.
    pub sealer: &'a mut Sealer,
}
