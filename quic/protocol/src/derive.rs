//! **What**: makes a batch with only some of the records of another, for key filters.
//!
//! **Invariants**: the derived batch keeps the original offset range, times, lineage, epoch and chain; it carries
//! DERIVED and fresh checksums. Compressed or encrypted values are not opened: with compression the values section
//! stays whole and entries taken out are marked SKIPPED, so that lengths still lead to the right value.
//!
//! **Never**: changing a record that stays.
//!
//! **See**: `batch.rs`, `shard/src/fan_out.rs`.

use crate::batch::{BATCH_FLAG_DERIVED, Compression, put_stamped_tlvs};
use crate::batch_builder::{BodyHeader, ProducerStamp, seal_body, write_body_header};
use crate::batch_view::{BODY_FLAG_TTL, BatchError, BatchView, Entry, RECORD_SKIPPED, RECORD_TTL};
use crate::codec::Writer;
use crate::limits::STAMPED_HEADER_BYTES;

/// What a filter left of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derived {
    /// Every record: use the original.
    All,
    /// No record.
    Nothing,
    /// Some: the derived batch was appended to the output.
    Some,
}

/// Keeps the records for which `keep` is true. Appends to `out` only for [`Derived::Some`].
/// `keep` is asked once per record that is still in, in order. The batch must have passed [`BatchView::check`].
pub fn derive(
    batch: &BatchView<'_>,
    mut keep: impl FnMut(&Entry<'_>) -> bool,
    scratch: &mut DeriveScratch,
    out: &mut Vec<u8>,
) -> Result<Derived, BatchError> {
    let body = &batch.body;
    let compressed = body.compression != Compression::None;
    let DeriveScratch { index, values } = scratch;
    index.clear();
    values.clear();
    // `gone` were taken out before, `dropped` are taken out now.
    let (mut kept, mut dropped, mut gone) = (0u32, 0u32, 0u32);
    let mut flags = body.flags & !BODY_FLAG_TTL;
    let mut at = 0usize;
    for entry in body.entries() {
        let entry = entry?;
        let bytes = entry.headers_bytes + entry.value_bytes;
        let stays = entry.flags & RECORD_SKIPPED == 0 && keep(&entry);
        if stays {
            kept += 1;
            if entry.flags & RECORD_TTL != 0 {
                flags |= BODY_FLAG_TTL;
            }
            index.put(entry.raw);
            if !compressed {
                values.put(body.values.get(at..at + bytes).ok_or(BatchError::LengthMismatch)?);
            }
        } else {
            match entry.flags & RECORD_SKIPPED {
                0 => dropped += 1,
                _ => gone += 1,
            }
            if compressed {
                let start = index.len();
                index.put(entry.raw);
                index[start] |= RECORD_SKIPPED;
            }
        }
        at += bytes;
    }
    if kept == 0 {
        return Ok(Derived::Nothing);
    }
    if dropped == 0 {
        return Ok(Derived::All);
    }
    let start = out.len();
    out.put(&[0; STAMPED_HEADER_BYTES]);
    let body_start = out.len();
    let stored: &[u8] = if compressed { body.values } else { values };
    if compressed {
        flags |= body.flags & BODY_FLAG_TTL;
    }
    write_body_header(
        out,
        &BodyHeader {
            compression: body.compression,
            flags,
            record_count: if compressed { kept + dropped + gone } else { kept },
            index_bytes: index.len(),
            values_bytes: stored.len(),
            values_bytes_raw: if compressed { body.values_bytes_raw as usize } else { stored.len() },
            stamp: ProducerStamp {
                producer: body.producer,
                epoch: body.producer_epoch,
                base_sequence: body.base_sequence,
            },
            base_time: body.base_time,
            key_id: body.key_id,
            tlv_bytes: body.tlvs.len(),
        },
    );
    out.put(body.tlvs);
    out.put(index);
    out.put(stored);
    seal_body(out, body_start);
    let tlv_bytes = put_stamped_tlvs(out, batch.tlvs);
    let mut header = batch.header;
    header.tlv_bytes = tlv_bytes;
    header.flags |= BATCH_FLAG_DERIVED;
    header.batch_bytes = (out.len() - start) as u32;
    out[start..body_start].copy_from_slice(&header.encode());
    Ok(Derived::Some)
}

/// Buffers reused from batch to batch.
#[derive(Debug, Default)]
pub struct DeriveScratch {
    index: Vec<u8>,
    values: Vec<u8>,
}
