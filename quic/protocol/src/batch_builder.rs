//! **What**: builds the body of a batch, record by record, as a producer does.
//!
//! **Invariants**: what it builds passes `BodyView::check_publish`; buffers are reused from batch to batch.
//!
//! **Never**: compressing here: the values section can be swapped by the caller before `finish`.
//!
//! **See**: `batch.rs` for the layout.

use crate::batch::{BATCH_FORMAT, Compression};
use crate::batch_view::{BODY_FLAG_TTL, RECORD_HEADERS, RECORD_KEY, RECORD_TOMBSTONE, RECORD_TTL};
use crate::codec::Writer;
use crate::ids::{KeyId, ProducerEpoch, ProducerId, Sequence};
use crate::limits::*;
use crate::time::Timestamp;

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError {
    /// The batch has no room; finish it and push again.
    Full,
    /// The record can never fit or breaks a limit.
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Its bytes.
        found: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// TTL of zero or beyond the limit.
    BadTtl,
    /// A tombstone deletes a key, so it needs one.
    TombstoneWithoutKey,
}

impl std::fmt::Display for PushError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PushError::Full => f.write_str("the batch is full"),
            PushError::TooLarge { what, found, max } => write!(f, "{what} is {found} bytes, at most {max} are allowed"),
            PushError::BadTtl => write!(f, "a TTL must be 1 to {TTL_MS_MAX} ms"),
            PushError::TombstoneWithoutKey => f.write_str("a tombstone needs the key it deletes"),
        }
    }
}

impl std::error::Error for PushError {}

/// A record to publish.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecordToPublish<'a> {
    /// Decides the shard and is matched by filters.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: &'a [u8],
    /// Name and value pairs.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Time to live from the append.
    pub ttl_ms: Option<u64>,
    /// Deletes the key; the value must be empty.
    pub tombstone: bool,
    /// Producer's clock.
    pub time: Timestamp,
}

/// Who made a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProducerStamp {
    /// Zero: anonymous.
    pub producer: ProducerId,
    /// Incarnation.
    pub epoch: ProducerEpoch,
    /// Sequence of the first record.
    pub base_sequence: Sequence,
}

/// Collects records into a body.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    index: Vec<u8>,
    values: Vec<u8>,
    count: u32,
    base_time: Timestamp,
    any_ttl: bool,
}

/// Worst case of one index entry beside its key: flags and five varints.
const ENTRY_BYTES_MAX: usize = 1 + 5 * 10;

impl BatchBuilder {
    /// An empty one; allocates nothing.
    pub fn new() -> BatchBuilder {
        BatchBuilder::default()
    }

    /// Records so far.
    pub fn record_count(&self) -> u32 {
        self.count
    }

    /// Bytes of the body if it were finished now.
    pub fn body_bytes(&self) -> usize {
        BODY_HEADER_BYTES + self.index.len() + self.values.len()
    }

    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a record.
    pub fn push(&mut self, record: &RecordToPublish<'_>) -> Result<(), PushError> {
        let key_bytes = record.key.map_or(0, <[u8]>::len);
        within("key", key_bytes, KEY_BYTES_MAX)?;
        within("number of headers", record.headers.len(), HEADERS_MAX)?;
        let headers_bytes: usize = record
            .headers
            .iter()
            .map(|(name, value)| varint_bytes(name.len()) + name.len() + varint_bytes(value.len()) + value.len())
            .sum();
        within("headers", headers_bytes, HEADERS_BYTES_MAX)?;
        if record.ttl_ms.is_some_and(|ttl| ttl == 0 || ttl > TTL_MS_MAX) {
            return Err(PushError::BadTtl);
        }
        if record.tombstone {
            within("value of a tombstone", record.value.len(), 0)?;
            if record.key.is_none() {
                return Err(PushError::TombstoneWithoutKey);
            }
        }
        let needed = ENTRY_BYTES_MAX + key_bytes + headers_bytes + record.value.len();
        within("record", BODY_HEADER_BYTES + needed, BATCH_BODY_BYTES_MAX)?;
        if self.count == BATCH_RECORDS_MAX || self.body_bytes() + needed > BATCH_BODY_BYTES_MAX {
            return Err(PushError::Full);
        }
        if self.count == 0 {
            self.base_time = record.time;
        }
        let mut flags = 0;
        for (set, bit) in [
            (record.key.is_some(), RECORD_KEY),
            (record.ttl_ms.is_some(), RECORD_TTL),
            (headers_bytes > 0, RECORD_HEADERS),
            (record.tombstone, RECORD_TOMBSTONE),
        ] {
            if set {
                flags |= bit;
            }
        }
        self.index.put_u8(flags);
        self.index.put_varint(u64::from(self.count));
        // A producer's clock may step back; the index has no sign, so such a record takes the base time.
        self.index.put_varint(record.time.0.saturating_sub(self.base_time.0));
        if let Some(key) = record.key {
            self.index.put_varint(key.len() as u64);
            self.index.put(key);
        }
        if let Some(ttl) = record.ttl_ms {
            self.index.put_varint(ttl);
            self.any_ttl = true;
        }
        if headers_bytes > 0 {
            self.index.put_varint(headers_bytes as u64);
            for (name, value) in record.headers {
                self.values.put_varint(name.len() as u64);
                self.values.put(name.as_bytes());
                self.values.put_varint(value.len() as u64);
                self.values.put(value);
            }
        }
        self.index.put_varint(record.value.len() as u64);
        self.values.put(record.value);
        self.count += 1;
        Ok(())
    }

    /// Values section so far, for a compressor.
    pub fn values(&self) -> &[u8] {
        &self.values
    }

    /// Appends the body to `out` with the values as collected, and starts anew.
    pub fn finish(&mut self, stamp: ProducerStamp, out: &mut Vec<u8>) {
        let values = std::mem::take(&mut self.values);
        self.write(stamp, Compression::None, values.len(), &values, out);
        self.values = values;
        self.values.clear();
    }

    /// Appends the body to `out` with a values section that the caller compressed, and starts anew. What did not
    /// become smaller is stored as it is, so that values that do not compress never push a full batch over its limit.
    pub fn finish_with(&mut self, stamp: ProducerStamp, compression: Compression, stored: &[u8], out: &mut Vec<u8>) {
        if compression == Compression::None || stored.len() >= self.values.len() {
            return self.finish(stamp, out);
        }
        let values = std::mem::take(&mut self.values);
        self.write(stamp, compression, values.len(), stored, out);
        self.values = values;
        self.values.clear();
    }

    fn write(&mut self, stamp: ProducerStamp, compression: Compression, raw: usize, stored: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        write_body_header(
            out,
            &BodyHeader {
                compression,
                flags: if self.any_ttl { BODY_FLAG_TTL } else { 0 },
                record_count: self.count,
                index_bytes: self.index.len(),
                values_bytes: stored.len(),
                values_bytes_raw: raw,
                stamp,
                base_time: self.base_time,
                key_id: KeyId(0),
                tlv_bytes: 0,
            },
        );
        out.put(&self.index);
        out.put(stored);
        seal_body(out, start);
        self.index.clear();
        self.count = 0;
        self.any_ttl = false;
    }
}

fn within(what: &'static str, found: usize, max: usize) -> Result<(), PushError> {
    if found > max { Err(PushError::TooLarge { what, found, max }) } else { Ok(()) }
}

fn varint_bytes(value: usize) -> usize {
    (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

/// Fields of a body header.
pub(crate) struct BodyHeader {
    pub compression: Compression,
    pub flags: u16,
    pub record_count: u32,
    pub index_bytes: usize,
    pub values_bytes: usize,
    pub values_bytes_raw: usize,
    pub stamp: ProducerStamp,
    pub base_time: Timestamp,
    pub key_id: KeyId,
    pub tlv_bytes: usize,
}

pub(crate) fn write_body_header(out: &mut Vec<u8>, header: &BodyHeader) {
    let body_bytes = BODY_HEADER_BYTES + header.tlv_bytes + header.index_bytes + header.values_bytes;
    assert!(body_bytes <= BATCH_BODY_BYTES_MAX, "our own batch is over its limit: {body_bytes}");
    out.reserve(body_bytes);
    out.put_u32(0);
    out.put_u32(body_bytes as u32);
    out.put_u8(BATCH_FORMAT);
    out.put_u8(header.compression as u8);
    out.put_u16(header.flags);
    out.put_u32(header.record_count);
    out.put_u32(header.index_bytes as u32);
    out.put_u32(header.values_bytes as u32);
    out.put_u32(header.values_bytes_raw as u32);
    out.put_u32(header.stamp.epoch.0);
    out.put_u64(header.stamp.producer.0);
    out.put_u64(header.stamp.base_sequence.0);
    out.put_u64(header.base_time.0);
    out.put_u32(header.key_id.0);
    out.put_u32(header.tlv_bytes as u32);
}

pub(crate) fn seal_body(out: &mut [u8], start: usize) {
    let crc = crc32c::crc32c(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch_view::{BodyView, headers};

    #[test]
    fn what_is_pushed_is_read() {
        let mut builder = BatchBuilder::new();
        let pairs: [(&str, &[u8]); 2] = [("source", b"feed-a"), ("n", &[0, 255])];
        builder
            .push(&RecordToPublish {
                key: Some(b"XNAS.AAPL"),
                value: b"one",
                headers: &pairs,
                time: Timestamp(10),
                ..Default::default()
            })
            .unwrap();
        builder
            .push(&RecordToPublish { value: b"", ttl_ms: Some(300), time: Timestamp(500), ..Default::default() })
            .unwrap();
        builder
            .push(&RecordToPublish { key: Some(b"k"), tombstone: true, time: Timestamp(5), ..Default::default() })
            .unwrap();
        let mut body = Vec::new();
        builder.finish(
            ProducerStamp { producer: ProducerId(4), epoch: ProducerEpoch(2), base_sequence: Sequence(77) },
            &mut body,
        );
        assert!(builder.is_empty());
        let view = BodyView::parse(&body).unwrap();
        view.check_publish().unwrap();
        assert_eq!((view.record_count, view.base_sequence, view.producer), (3, Sequence(77), ProducerId(4)));
        let records: Vec<_> = view.records(view.values).collect::<Result<_, _>>().unwrap();
        assert_eq!(records[0].key, Some(&b"XNAS.AAPL"[..]));
        assert_eq!(records[0].value, b"one");
        let read: Vec<_> = headers(records[0].headers).collect::<Result<_, _>>().unwrap();
        assert_eq!(read, pairs);
        assert_eq!((records[1].key, records[1].ttl_ms, records[1].time), (None, Some(300), Timestamp(500)));
        assert_eq!((records[2].tombstone, records[2].time), (true, Timestamp(10)));
    }

    #[test]
    fn limits_are_refused_and_lose_nothing() {
        let mut builder = BatchBuilder::new();
        let long = vec![b'x'; KEY_BYTES_MAX + 1];
        assert!(matches!(
            builder.push(&RecordToPublish { key: Some(&long), ..Default::default() }),
            Err(PushError::TooLarge { what: "key", .. })
        ));
        assert_eq!(builder.push(&RecordToPublish { ttl_ms: Some(0), ..Default::default() }), Err(PushError::BadTtl));
        assert!(matches!(
            builder.push(&RecordToPublish { value: b"x", tombstone: true, ..Default::default() }),
            Err(PushError::TooLarge { .. })
        ));
        let big = vec![0u8; 400 << 10];
        let record = RecordToPublish { value: &big, ..Default::default() };
        builder.push(&record).unwrap();
        builder.push(&record).unwrap();
        assert_eq!(builder.push(&record), Err(PushError::Full));
        assert_eq!(builder.record_count(), 2);
    }
}
