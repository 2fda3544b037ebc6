//! **What**: checks and reads the body of a batch in place.
//!
//! **Invariants**: `BodyView::parse` and `check_publish` accept exactly the bodies whose every length adds up; after
//! them, iterating cannot fail in a way that loses records silently (the iterator still returns errors, never panics).
//!
//! **Never**: opening a compressed or encrypted value.
//!
//! **See**: `batch.rs` for the layout, `batch_builder.rs` for the other direction.

use crate::batch::{BATCH_FORMAT, BatchKind, Compression, StampedHeader};
use crate::codec::{DecodeError, Reader};
use crate::envelope::check_tlvs;
use crate::ids::{KeyId, ProducerEpoch, ProducerId, Sequence};
use crate::limits::*;
use crate::time::Timestamp;

pub use crate::batch_error::BatchError;

/// Body flag: at least one record has a TTL.
pub const BODY_FLAG_TTL: u16 = 1 << 0;
/// Body flag: values are end-to-end encrypted, per record.
pub const BODY_FLAG_ENCRYPTED: u16 = 1 << 1;
/// Body flag: keys are keyed hashes, not clear text.
pub const BODY_FLAG_KEYS_HASHED: u16 = 1 << 2;
const BODY_FLAGS_KNOWN: u16 = BODY_FLAG_TTL | BODY_FLAG_ENCRYPTED | BODY_FLAG_KEYS_HASHED;

/// Record flag: it has a key.
pub const RECORD_KEY: u8 = 1 << 0;
/// Record flag: it has a TTL.
pub const RECORD_TTL: u8 = 1 << 1;
/// Record flag: it has headers.
pub const RECORD_HEADERS: u8 = 1 << 2;
/// Record flag: its key is deleted; no value.
pub const RECORD_TOMBSTONE: u8 = 1 << 3;
/// Record flag, only in a DERIVED batch with a compressed values section: taken out, kept for its lengths.
pub const RECORD_SKIPPED: u8 = 1 << 4;
const RECORD_FLAGS_KNOWN: u8 = RECORD_KEY | RECORD_TTL | RECORD_HEADERS | RECORD_TOMBSTONE | RECORD_SKIPPED;

/// A body whose header and lengths were checked.
#[derive(Clone, Copy, Debug)]
pub struct BodyView<'a> {
    /// All bytes of the body.
    pub bytes: &'a [u8],
    /// Checksum stored in front (checked by `check_crc`).
    pub crc: u32,
    /// Of the values section.
    pub compression: Compression,
    /// `BODY_FLAG_*`.
    pub flags: u16,
    /// Entries of the index section.
    pub record_count: u32,
    /// Decompressed size of the values section.
    pub values_bytes_raw: u32,
    /// Producer, 0 if anonymous.
    pub producer: ProducerId,
    /// Its incarnation.
    pub producer_epoch: ProducerEpoch,
    /// Sequence of the first record.
    pub base_sequence: Sequence,
    /// Producer's clock at the first record.
    pub base_time: Timestamp,
    /// End-to-end key.
    pub key_id: KeyId,
    /// TLVs of the producer.
    pub tlvs: &'a [u8],
    /// Index section.
    pub index: &'a [u8],
    /// Values section as stored.
    pub values: &'a [u8],
}

impl<'a> BodyView<'a> {
    /// Reads the header of a body that fills `bytes` exactly. Does not check the checksum.
    pub fn parse(bytes: &'a [u8]) -> Result<BodyView<'a>, BatchError> {
        if bytes.len() > BATCH_BODY_BYTES_MAX {
            return Err(BatchError::TooLarge {
                what: "batch body bytes",
                found: bytes.len() as u64,
                max: BATCH_BODY_BYTES_MAX as u64,
            });
        }
        let mut reader = Reader::new(bytes);
        let crc = reader.u32()?;
        let body_bytes = reader.u32()? as usize;
        if body_bytes != bytes.len() {
            return Err(if body_bytes > bytes.len() { BatchError::Truncated } else { BatchError::LengthMismatch });
        }
        let format = reader.u8()?;
        if format != BATCH_FORMAT {
            return Err(BatchError::UnknownFormat(format));
        }
        let compression = Compression::from_number(reader.u8()?).ok_or(BatchError::BadField("compression"))?;
        let flags = reader.u16()?;
        if flags & !BODY_FLAGS_KNOWN != 0 {
            return Err(BatchError::BadField("body flags"));
        }
        let record_count = reader.u32()?;
        let index_bytes = reader.u32()? as usize;
        let values_bytes = reader.u32()? as usize;
        let values_bytes_raw = reader.u32()?;
        let producer_epoch = ProducerEpoch(reader.u32()?);
        let producer = ProducerId(reader.u64()?);
        let base_sequence = Sequence(reader.u64()?);
        let base_time = Timestamp(reader.u64()?);
        let key_id = KeyId(reader.u32()?);
        let tlv_bytes = reader.u32()? as usize;
        if tlv_bytes > TLV_BYTES_MAX {
            return Err(BatchError::TooLarge { what: "tlv", found: tlv_bytes as u64, max: TLV_BYTES_MAX as u64 });
        }
        let tlvs = reader.bytes(tlv_bytes)?;
        let index = reader.bytes(index_bytes)?;
        let values = reader.bytes(values_bytes)?;
        if !reader.rest().is_empty() {
            return Err(BatchError::LengthMismatch);
        }
        if record_count > BATCH_RECORDS_MAX {
            return Err(BatchError::TooLarge {
                what: "record count",
                found: u64::from(record_count),
                max: u64::from(BATCH_RECORDS_MAX),
            });
        }
        if values_bytes_raw as usize > VALUES_BYTES_MAX {
            return Err(BatchError::TooLarge {
                what: "decompressed values bytes",
                found: u64::from(values_bytes_raw),
                max: VALUES_BYTES_MAX as u64,
            });
        }
        if compression == Compression::None && values_bytes_raw as usize != values.len() {
            return Err(BatchError::LengthMismatch);
        }
        if base_sequence.0.checked_add(u64::from(record_count)).is_none() {
            return Err(BatchError::BadField("base_sequence"));
        }
        Ok(BodyView {
            bytes,
            crc,
            compression,
            flags,
            record_count,
            values_bytes_raw,
            producer,
            producer_epoch,
            base_sequence,
            base_time,
            key_id,
            tlvs,
            index,
            values,
        })
    }

    /// Compares the stored checksum with the bytes.
    pub fn check_crc(&self) -> Result<(), BatchError> {
        let found = crc32c::crc32c(&self.bytes[4..]);
        if found == self.crc { Ok(()) } else { Err(BatchError::BodyChecksum { expected: self.crc, found }) }
    }

    /// All that a broker checks before it appends: checksum, TLVs, every index entry, every length, no holes.
    pub fn check_publish(&self) -> Result<(), BatchError> {
        self.check_crc()?;
        if self.record_count == 0 {
            return Err(BatchError::Empty);
        }
        self.check_index(false, self.record_count)
    }

    /// TLVs, flags and index. `derived`: holes are legal, and records marked SKIPPED if the values are compressed.
    fn check_index(&self, derived: bool, offset_count: u32) -> Result<(), BatchError> {
        check_tlvs(self.tlvs)?;
        let encrypted = self.flags & BODY_FLAG_ENCRYPTED != 0;
        let hashed = self.flags & BODY_FLAG_KEYS_HASHED != 0;
        if if self.key_id.0 == 0 { encrypted } else { !encrypted && !hashed } {
            return Err(BatchError::BadField("key_id"));
        }
        let skipping = derived && self.compression != Compression::None;
        let mut values_bytes = 0u64;
        let mut any_ttl = false;
        for (number, entry) in self.entries().enumerate() {
            let entry = entry?;
            if entry.offset_delta >= offset_count || !derived && entry.offset_delta as usize != number {
                return Err(BatchError::BadField("offset_delta"));
            }
            if entry.flags & RECORD_SKIPPED != 0 && !skipping {
                return Err(BatchError::BadField("record flags"));
            }
            any_ttl |= entry.ttl_ms.is_some();
            values_bytes += entry.headers_bytes as u64 + entry.value_bytes as u64;
        }
        if values_bytes != u64::from(self.values_bytes_raw) {
            return Err(BatchError::LengthMismatch);
        }
        if any_ttl != (self.flags & BODY_FLAG_TTL != 0) {
            return Err(BatchError::BadField("ttl flag"));
        }
        Ok(())
    }

    /// The index entries, in order. Yields exactly `record_count` items or an error.
    pub fn entries(&self) -> Entries<'a> {
        Entries { reader: Reader::new(self.index), left: self.record_count, last_delta: None }
    }

    /// The records with their values. `values` is the decompressed values section (`self.values` if not compressed).
    /// Records that were taken out are skipped.
    pub fn records<'v>(&self, values: &'v [u8]) -> Records<'a, 'v> {
        Records { entries: self.entries(), values: Reader::new(values), base_time: self.base_time }
    }
}

/// One entry of the index section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// `RECORD_*`.
    pub flags: u8,
    /// Offset less the batch's base offset.
    pub offset_delta: u32,
    /// Producer's clock less the batch's base time, ns.
    pub time_delta_ns: u64,
    /// Key or keyed hash.
    pub key: Option<&'a [u8]>,
    /// Time to live from the append time.
    pub ttl_ms: Option<u64>,
    /// Bytes of headers in the values section.
    pub headers_bytes: usize,
    /// Bytes of value in the values section.
    pub value_bytes: usize,
    /// The entry's own bytes.
    pub raw: &'a [u8],
}

/// Iterator over index entries; ends after the first error.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    reader: Reader<'a>,
    left: u32,
    last_delta: Option<u32>,
}

impl<'a> Entries<'a> {
    #[inline]
    fn read(&mut self) -> Result<Entry<'a>, BatchError> {
        let before = self.reader.rest();
        let flags = self.reader.u8()?;
        if flags & !RECORD_FLAGS_KNOWN != 0 {
            return Err(BatchError::BadField("record flags"));
        }
        let offset_delta = u32::try_from(self.reader.varint()?).map_err(|_| BatchError::BadField("offset_delta"))?;
        if self.last_delta.is_some_and(|last| offset_delta <= last) {
            return Err(BatchError::BadField("offset_delta"));
        }
        self.last_delta = Some(offset_delta);
        let time_delta_ns = self.reader.varint()?;
        let key = if flags & RECORD_KEY != 0 {
            let count = bounded(self.reader.varint()?, "key bytes", KEY_BYTES_MAX)?;
            Some(self.reader.bytes(count)?)
        } else {
            None
        };
        let ttl_ms = if flags & RECORD_TTL != 0 {
            let ttl = self.reader.varint()?;
            if ttl == 0 || ttl > TTL_MS_MAX {
                return Err(BatchError::BadField("ttl_ms"));
            }
            Some(ttl)
        } else {
            None
        };
        let headers_bytes = if flags & RECORD_HEADERS != 0 {
            bounded(self.reader.varint()?, "headers bytes", HEADERS_BYTES_MAX)?
        } else {
            0
        };
        let value_bytes = bounded(self.reader.varint()?, "value bytes", VALUES_BYTES_MAX)?;
        if flags & RECORD_TOMBSTONE != 0 && value_bytes != 0 {
            return Err(BatchError::BadField("tombstone with a value"));
        }
        if flags & RECORD_TOMBSTONE != 0 && key.is_none() {
            return Err(BatchError::BadField("tombstone without a key"));
        }
        let raw = &before[..before.len() - self.reader.rest().len()];
        Ok(Entry { flags, offset_delta, time_delta_ns, key, ttl_ms, headers_bytes, value_bytes, raw })
    }
}

fn bounded(found: u64, what: &'static str, max: usize) -> Result<usize, BatchError> {
    if found > max as u64 { Err(BatchError::TooLarge { what, found, max: max as u64 }) } else { Ok(found as usize) }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, BatchError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            if self.reader.rest().is_empty() {
                return None;
            }
            self.reader = Reader::new(&[]);
            return Some(Err(BatchError::LengthMismatch));
        }
        self.left -= 1;
        let item = self.read();
        if item.is_err() {
            self.left = 0;
            self.reader = Reader::new(&[]);
        }
        Some(item)
    }
}

/// A record read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a, 'v> {
    /// Offset less the batch's base offset.
    pub offset_delta: u32,
    /// Producer's clock.
    pub time: Timestamp,
    /// Key or keyed hash.
    pub key: Option<&'a [u8]>,
    /// Time to live from the append time.
    pub ttl_ms: Option<u64>,
    /// The key is deleted.
    pub tombstone: bool,
    /// Headers block; read with [`headers`].
    pub headers: &'v [u8],
    /// The value.
    pub value: &'v [u8],
}

/// Iterator over records; ends after the first error.
#[derive(Clone, Debug)]
pub struct Records<'a, 'v> {
    entries: Entries<'a>,
    values: Reader<'v>,
    base_time: Timestamp,
}

impl<'a, 'v> Iterator for Records<'a, 'v> {
    type Item = Result<Record<'a, 'v>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.entries.next()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error)),
            };
            let parts = (|| Ok((self.values.bytes(entry.headers_bytes)?, self.values.bytes(entry.value_bytes)?)))();
            let (headers, value) = match parts {
                Ok(parts) => parts,
                Err(error) => {
                    let error: DecodeError = error;
                    self.entries = Entries { reader: Reader::new(&[]), left: 0, last_delta: None };
                    return Some(Err(error.into()));
                }
            };
            if entry.flags & RECORD_SKIPPED != 0 {
                continue;
            }
            return Some(Ok(Record {
                offset_delta: entry.offset_delta,
                time: self.base_time.saturating_add_ns(entry.time_delta_ns),
                key: entry.key,
                ttl_ms: entry.ttl_ms,
                tombstone: entry.flags & RECORD_TOMBSTONE != 0,
                headers,
                value,
            }));
        }
    }
}

/// The (name, value) pairs of a headers block; at most `HEADERS_MAX`.
pub fn headers(block: &[u8]) -> impl Iterator<Item = Result<(&str, &[u8]), BatchError>> {
    let mut reader = Reader::new(block);
    let mut count = 0;
    std::iter::from_fn(move || {
        if reader.rest().is_empty() {
            return None;
        }
        count += 1;
        let item = (|| {
            if count > HEADERS_MAX {
                return Err(BatchError::TooLarge { what: "headers", found: count as u64, max: HEADERS_MAX as u64 });
            }
            let name_bytes = bounded(reader.varint()?, "header name bytes", HEADERS_BYTES_MAX)?;
            let name =
                std::str::from_utf8(reader.bytes(name_bytes)?).map_err(|_| BatchError::BadField("header name"))?;
            let value_bytes = bounded(reader.varint()?, "header value bytes", HEADERS_BYTES_MAX)?;
            Ok((name, reader.bytes(value_bytes)?))
        })();
        if item.is_err() {
            reader = Reader::new(&[]);
        }
        Some(item)
    })
}

/// A whole batch: stamped header, body, stamped TLVs.
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    /// The broker's header.
    pub header: StampedHeader,
    /// The producer's body.
    pub body: BodyView<'a>,
    /// Checksum stored in front of the stamped TLVs (checked by `check`); 0 if there are none.
    pub tlv_crc: u32,
    /// Stamped TLVs.
    pub tlvs: &'a [u8],
}

impl<'a> BatchView<'a> {
    /// Reads a batch that fills `bytes` exactly. Checks the header's checksum and all lengths, not the body's checksum.
    pub fn parse(bytes: &'a [u8]) -> Result<BatchView<'a>, BatchError> {
        let header = StampedHeader::decode(bytes)?;
        if header.batch_bytes as usize != bytes.len() {
            return Err(if header.batch_bytes as usize > bytes.len() {
                BatchError::Truncated
            } else {
                BatchError::LengthMismatch
            });
        }
        let rest = &bytes[STAMPED_HEADER_BYTES..];
        let body_bytes = rest.len().checked_sub(header.tlv_bytes as usize).ok_or(BatchError::LengthMismatch)?;
        let (body, section) = rest.split_at(body_bytes);
        if section.len() > TLV_BYTES_MAX {
            return Err(BatchError::TooLarge { what: "tlv", found: section.len() as u64, max: TLV_BYTES_MAX as u64 });
        }
        let (tlv_crc, tlvs) = match section.split_first_chunk() {
            Some((crc, tlvs)) if !tlvs.is_empty() => (u32::from_le_bytes(*crc), tlvs),
            None if section.is_empty() => (0, section),
            _ => return Err(BatchError::BadField("tlv_bytes")),
        };
        Ok(BatchView { header, body: BodyView::parse(body)?, tlv_crc, tlvs })
    }

    /// All that a reader checks: checksums, TLVs, index, offsets within the range; holes only in a DERIVED batch.
    pub fn check(&self) -> Result<(), BatchError> {
        self.body.check_crc()?;
        let found = crc32c::crc32c(self.tlvs);
        if found != self.tlv_crc {
            return Err(BatchError::TlvChecksum { expected: self.tlv_crc, found });
        }
        check_tlvs(self.tlvs)?;
        let derived = self.header.is_derived();
        if !derived && self.header.kind == BatchKind::Data && self.header.offset_count != self.body.record_count {
            return Err(BatchError::BadField("offset_count"));
        }
        self.body.check_index(derived, self.header.offset_count)
    }
}
