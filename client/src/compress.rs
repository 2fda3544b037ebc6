//! **What**: compresses and opens the values section of a batch.
//!
//! **Invariants**: opening never makes more than the announced size, which `BodyView::parse` bounded; a result of any
//! other size is a violation.
//!
//! **Never**: a compressed section that is not smaller.
//!
//! **See**: `channel.rs` (out), `item.rs` (in).

use crate::violation::Violation;
use felix_protocol::batch::Compression;
use felix_protocol::batch_view::BodyView;
use felix_protocol::limits::VALUES_BYTES_MAX;

/// Smaller sections are not worth the cycles: LZ4 needs some repetition to win.
pub(crate) const COMPRESS_BYTES_MIN: usize = 512;
/// Level of Zstandard: its own default, the knee of its curve.
const ZSTD_LEVEL: i32 = 3;

/// Compresses `values` into `out`. False: it is not worth it, `out` is of no use.
pub(crate) fn compress(compression: Compression, values: &[u8], out: &mut Vec<u8>) -> bool {
    if values.len() < COMPRESS_BYTES_MIN {
        return false;
    }
    out.clear();
    // Room for less than the input: what would not shrink by an eighth is not worth opening either.
    out.resize(values.len() - values.len() / 8, 0);
    let written = match compression {
        Compression::None => return false,
        Compression::Lz4 => {
            // The block compressor wants room for the worst case.
            out.resize(lz4_flex::block::get_maximum_output_size(values.len()), 0);
            lz4_flex::block::compress_into(values, out).ok()
        }
        Compression::Zstd => zstd::bulk::compress_to_buffer(values, out.as_mut_slice(), ZSTD_LEVEL).ok(),
    };
    match written {
        Some(bytes) if bytes <= values.len() - values.len() / 8 => {
            out.truncate(bytes);
            true
        }
        _ => false,
    }
}

/// Opens the values section of a body; None if it is not compressed.
pub(crate) fn open(body: &BodyView<'_>) -> Result<Option<Vec<u8>>, Violation> {
    let raw = body.values_bytes_raw as usize;
    if body.compression == Compression::None {
        return Ok(None);
    }
    if raw > VALUES_BYTES_MAX {
        return Err(Violation::BadCompression);
    }
    let mut out = vec![0; raw];
    let written = match body.compression {
        Compression::None => 0,
        Compression::Lz4 => {
            lz4_flex::block::decompress_into(body.values, &mut out).map_err(|_| Violation::BadCompression)?
        }
        Compression::Zstd => {
            zstd::bulk::decompress_to_buffer(body.values, out.as_mut_slice()).map_err(|_| Violation::BadCompression)?
        }
    };
    if written == raw { Ok(Some(out)) } else { Err(Violation::BadCompression) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};

    #[test]
    fn both_formats_round_trip_and_lies_are_found() {
        let value = b"a value that repeats itself. ".repeat(100);
        for compression in [Compression::Lz4, Compression::Zstd] {
            let mut builder = BatchBuilder::new();
            builder.push(&RecordToPublish { value: &value, ..Default::default() }).unwrap();
            let mut stored = Vec::new();
            assert!(compress(compression, builder.values(), &mut stored));
            assert!(stored.len() < value.len() / 4);
            let mut body = Vec::new();
            builder.finish_with(ProducerStamp::default(), compression, &stored, &mut body);
            let view = BodyView::parse(&body).unwrap();
            assert_eq!(open(&view).unwrap().unwrap(), value);
            for raw in [0, 1, view.values_bytes_raw - 1, view.values_bytes_raw + 1, VALUES_BYTES_MAX as u32 + 1] {
                let lie = BodyView { values_bytes_raw: raw, ..view };
                assert_eq!(open(&lie), Err(Violation::BadCompression), "{compression:?} {raw}");
            }
            for cut in 0..stored.len() {
                let lie = BodyView { values: &stored[..cut], ..view };
                assert_eq!(open(&lie), Err(Violation::BadCompression), "{compression:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_does_not_shrink_stays() {
        let mut jitter = crate::random::Jitter::new(3);
        let noise: Vec<u8> = (0..4_096).map(|_| jitter.next_u64() as u8).collect();
        let mut out = Vec::new();
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            assert!(!compress(compression, &noise, &mut out));
            assert!(!compress(compression, b"short", &mut out));
        }
    }
}
