//! **What**: a batch as it is stored: clear, exactly as in memory, or sealed at rest with its stamped header in clear.
//!
//! ```text
//! clear   stamped header | body | [stamped TLVs]                                     see felix_protocol::batch
//! sealed  stamped header | envelope | pieces
//!
//! envelope                                          piece
//!  0 u32  CRC32C of 4.. and the pieces               at most 65,536 bytes of (body | stamped TLVs), encrypted
//!  4 u32  sealed_bytes  envelope and pieces          16 bytes of tag
//!  8 u32  body_crc      of the clear body
//! 12 u16  version 1                                 all pieces but the last are full
//! 14 u16  piece_count
//! 16 u128 salt          names the WAL incarnation
//! 32 u64  counter       nonce of the first piece; the others follow
//! 40 u32  key_id        data key of the tenant
//! 44 u32  0
//! ```
//!
//! **Invariants**: a stored batch that was split off has whole checksums and lengths that add up; a sealed one is
//! checked and chained without any key. The body's checksum in clear tells no more than the chain in the stamped header,
//! which is a 64-bit hash of it, does already.
//!
//! **Never**: a body trusted because its chunk was whole.
//!
//! **See**: `segment.rs` for chunks of these, `at_rest.rs` for sealing and opening.

use super::segment::SliceWriter;
use felix_protocol::batch::StampedHeader;
use felix_protocol::batch_view::{BatchError, BatchView};
use felix_protocol::codec::{Reader, Writer};
use felix_protocol::limits::{BATCH_BODY_BYTES_MAX, BODY_HEADER_BYTES, STAMPED_HEADER_BYTES, TLV_BYTES_MAX};

/// Clear bytes in one piece (DECISIONS 4).
pub const PIECE_BYTES_MAX: usize = 64 << 10;
/// Bytes of the tag after each piece.
pub const TAG_BYTES: usize = 16;
/// Bytes of the envelope in front of the pieces.
pub const ENVELOPE_BYTES: usize = 48;
const ENVELOPE_VERSION: u16 = 1;
/// Largest clear batch.
pub const BATCH_BYTES_MAX: usize = STAMPED_HEADER_BYTES + BATCH_BODY_BYTES_MAX + TLV_BYTES_MAX;
/// Largest stored batch.
pub const STORED_BYTES_MAX: usize =
    BATCH_BYTES_MAX + ENVELOPE_BYTES + (BATCH_BYTES_MAX / PIECE_BYTES_MAX + 1) * TAG_BYTES;

/// What was sealed with which key and nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Checksum of the clear body.
    pub body_crc: u32,
    /// Random name of the WAL incarnation.
    pub salt: u128,
    /// Nonce of the first piece.
    pub counter: u64,
    /// Data key of the tenant.
    pub key_id: u32,
}

/// Pieces of so many clear bytes.
pub fn piece_count(clear_bytes: usize) -> usize {
    clear_bytes.div_ceil(PIECE_BYTES_MAX)
}

/// Bytes of envelope and pieces for so many clear bytes after the stamped header.
pub fn sealed_bytes(clear_bytes: usize) -> usize {
    ENVELOPE_BYTES + clear_bytes + piece_count(clear_bytes) * TAG_BYTES
}

impl Envelope {
    /// Writes the envelope into the first `ENVELOPE_BYTES` of `sealed`, whose rest holds the finished pieces.
    pub fn write(&self, sealed: &mut [u8]) {
        let bytes = sealed.len();
        let mut head = [0; ENVELOPE_BYTES];
        let mut head = SliceWriter { out: &mut head, at: 0 };
        head.put_u32(0);
        head.put_u32(bytes as u32);
        head.put_u32(self.body_crc);
        head.put_u16(ENVELOPE_VERSION);
        head.put_u16((bytes - ENVELOPE_BYTES).div_ceil(PIECE_BYTES_MAX + TAG_BYTES) as u16);
        head.put_u128(self.salt);
        head.put_u64(self.counter);
        head.put_u32(self.key_id);
        head.put_u32(0);
        sealed[..ENVELOPE_BYTES].copy_from_slice(head.out);
        let crc = crc32c::crc32c(&sealed[4..]);
        sealed[..4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Why a stored batch was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredError {
    /// A clear part of it.
    Batch(BatchError),
    /// The envelope's checksum does not fit.
    EnvelopeChecksum {
        /// Stored.
        expected: u32,
        /// Of the bytes.
        found: u32,
    },
    /// An envelope of another version.
    EnvelopeVersion(u16),
    /// A field of the envelope does not fit the stamped header; the text names it.
    EnvelopeField(&'static str),
}

impl std::fmt::Display for StoredError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StoredError::Batch(error) => error.fmt(f),
            StoredError::EnvelopeChecksum { expected, found } => {
                write!(f, "envelope checksum {expected:#010x}, its bytes give {found:#010x}")
            }
            StoredError::EnvelopeVersion(found) => write!(f, "envelope version {found} is not known"),
            StoredError::EnvelopeField(field) => write!(f, "envelope field {field} does not fit the batch"),
        }
    }
}

impl std::error::Error for StoredError {}

impl From<BatchError> for StoredError {
    fn from(error: BatchError) -> StoredError {
        StoredError::Batch(error)
    }
}

/// A stored batch whose checksums were checked.
#[derive(Clone, Copy, Debug)]
pub struct StoredBatch<'a> {
    /// The broker's header.
    pub header: StampedHeader,
    /// Checksum of the clear body.
    pub body_crc: u32,
    /// How it was sealed; None: it is clear, `bytes` is the batch.
    pub sealed: Option<Envelope>,
    /// All its stored bytes.
    pub bytes: &'a [u8],
}

impl<'a> StoredBatch<'a> {
    /// Splits the first stored batch off, and checks it. `sealed`: as its chunk says.
    pub fn split_first(bytes: &'a [u8], sealed: bool) -> Result<(StoredBatch<'a>, &'a [u8]), StoredError> {
        StoredBatch::split(bytes, sealed, true)
    }

    /// The same without the checksums of bodies and pieces, of a chunk that was checked whole.
    pub(crate) fn split_checked(bytes: &'a [u8], sealed: bool) -> Result<(StoredBatch<'a>, &'a [u8]), StoredError> {
        StoredBatch::split(bytes, sealed, false)
    }

    fn split(bytes: &'a [u8], sealed: bool, check: bool) -> Result<(StoredBatch<'a>, &'a [u8]), StoredError> {
        let header = StampedHeader::decode(bytes)?;
        let batch_bytes = header.batch_bytes as usize;
        if !(STAMPED_HEADER_BYTES + BODY_HEADER_BYTES..=BATCH_BYTES_MAX).contains(&batch_bytes) {
            return Err(BatchError::BadField("batch_bytes").into());
        }
        if !sealed {
            let (bytes, rest) = bytes.split_at_checked(batch_bytes).ok_or(BatchError::Truncated)?;
            let view = BatchView::parse(bytes)?;
            if check {
                view.body.check_crc()?;
                let found = crc32c::crc32c(view.tlvs);
                if found != view.tlv_crc {
                    return Err(BatchError::TlvChecksum { expected: view.tlv_crc, found }.into());
                }
            }
            return Ok((StoredBatch { header, body_crc: view.body.crc, sealed: None, bytes }, rest));
        }
        let clear_bytes = batch_bytes - STAMPED_HEADER_BYTES;
        let stored_bytes = STAMPED_HEADER_BYTES + sealed_bytes(clear_bytes);
        let (bytes, rest) = bytes.split_at_checked(stored_bytes).ok_or(BatchError::Truncated)?;
        let part = &bytes[STAMPED_HEADER_BYTES..];
        let mut reader = Reader::new(part);
        let mut fields = || -> Result<_, BatchError> {
            let lengths = (reader.u32()?, reader.u32()?, reader.u32()?, reader.u16()?, reader.u16()?);
            Ok((lengths, reader.u128()?, reader.u64()?, reader.u32()?, reader.u32()?))
        };
        let ((expected, length, body_crc, version, pieces), salt, counter, key_id, reserved) = fields()?;
        let found = if check { crc32c::crc32c(&part[4..]) } else { expected };
        if found != expected {
            return Err(StoredError::EnvelopeChecksum { expected, found });
        }
        if version != ENVELOPE_VERSION {
            return Err(StoredError::EnvelopeVersion(version));
        }
        for (fits, field) in [
            (length as usize == part.len(), "sealed_bytes"),
            (usize::from(pieces) == piece_count(clear_bytes), "piece_count"),
            (counter.checked_add(u64::from(pieces)).is_some(), "counter"),
            (reserved == 0, "reserved"),
        ] {
            if !fits {
                return Err(StoredError::EnvelopeField(field));
            }
        }
        Ok((StoredBatch { header, body_crc, sealed: Some(Envelope { body_crc, salt, counter, key_id }), bytes }, rest))
    }
}
