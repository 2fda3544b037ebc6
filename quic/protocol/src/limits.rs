//! **What**: every maximum of the protocol in one place, with the relations between them checked at compile time.
//!
//! **Invariants**: a value here is part of the contract with clients; `Welcome` tells a client the ones it must obey.
//!
//! **Never**: a bound on hostile input that is written anywhere else as a bare number.
//!
//! **See**: `envelope.rs` and `batch_view.rs`, which enforce them.

/// Bytes of the fixed part of a frame envelope.
pub const ENVELOPE_BYTES: usize = 16;
/// Bytes of the optional route (stream id, shard id) in an envelope.
pub const ROUTE_BYTES: usize = 16;
/// Largest frame on a stream, envelope included. Holds one batch of the largest size and its delivery header.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Largest frame that is not Publish or Deliver: control traffic needs no more, and a hostile peer gets no more.
pub const CONTROL_FRAME_BYTES_MAX: usize = 64 << 10;
/// Largest total of TLVs in one envelope.
pub const TLV_BYTES_MAX: usize = 4 << 10;
/// Bytes of the stamped header of a batch.
pub const STAMPED_HEADER_BYTES: usize = 80;
/// Bytes of the checksum in front of stamped TLVs.
pub const STAMPED_TLV_CRC_BYTES: usize = 4;
/// Bytes of the body header of a batch.
pub const BODY_HEADER_BYTES: usize = 64;
/// Largest batch body (body header, index section and values section).
/// Longer records are refused until chunked records exist; `FRAME_BYTES_MAX` is the wall they would hit.
pub const BATCH_BODY_BYTES_MAX: usize = 1_000 << 10;
/// Largest number of records in one batch.
pub const BATCH_RECORDS_MAX: u32 = 16_384;
/// Largest values section after decompression: bounds what a compressed batch may unfold to at a reader.
pub const VALUES_BYTES_MAX: usize = 16 << 20;
/// Largest record key.
pub const KEY_BYTES_MAX: usize = 1_024;
/// Largest headers block of one record.
pub const HEADERS_BYTES_MAX: usize = 16 << 10;
/// Largest number of headers of one record.
pub const HEADERS_MAX: usize = 64;
/// Largest tenant or namespace name (RFC 1123 label).
pub const LABEL_BYTES_MAX: usize = 63;
/// Largest stream name (last part).
pub const STREAM_NAME_BYTES_MAX: usize = 127;
/// Largest field that carries a name. Every name of the grammar fits; a longer one is refused with its own error.
pub const NAME_BYTES_MAX: usize = 512;
/// Largest settings block of a stream or tenant.
pub const SETTINGS_BYTES_MAX: usize = 4 << 10;
/// Largest key filter pattern.
pub const PATTERN_BYTES_MAX: usize = 256;
/// Largest number of tokens in a key filter pattern.
pub const PATTERN_TOKENS_MAX: usize = 32;
/// Largest client name in Hello.
pub const CLIENT_NAME_BYTES_MAX: usize = 128;
/// Largest bearer token in Hello.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Largest detail text of an error.
pub const DETAIL_BYTES_MAX: usize = 1_024;
/// Largest number of shards of one stream.
pub const SHARDS_MAX: u32 = 1_024;
/// Largest number of items in one page of a list reply.
pub const LIST_PAGE_MAX: u32 = 128;
/// Largest number of batches one PublishAck may cover.
pub const ACKS_PER_FRAME_MAX: usize = 1_024;
/// Largest number of cores of one broker (a bit each in the mesh's dirty mask).
pub const CORES_MAX: u8 = 64;
/// Largest TTL of a record, milliseconds (ten years).
pub const TTL_MS_MAX: u64 = 10 * 366 * 24 * 3_600 * 1_000;

const _: () = assert!(CONTROL_FRAME_BYTES_MAX <= FRAME_BYTES_MAX);
const _: () = assert!(TLV_BYTES_MAX + ENVELOPE_BYTES + ROUTE_BYTES < CONTROL_FRAME_BYTES_MAX);
// A Deliver frame wraps a whole batch: envelope, route, TLVs, delivery header, stamped header, body, batch TLVs.
const _: () = assert!(
    ENVELOPE_BYTES + ROUTE_BYTES + 2 * TLV_BYTES_MAX + 64 + STAMPED_HEADER_BYTES + BATCH_BODY_BYTES_MAX
        <= FRAME_BYTES_MAX
);
const _: () = assert!(2 * LABEL_BYTES_MAX + STREAM_NAME_BYTES_MAX + 2 <= NAME_BYTES_MAX);
const _: () = assert!(KEY_BYTES_MAX + HEADERS_BYTES_MAX < BATCH_BODY_BYTES_MAX);
const _: () = assert!(BATCH_BODY_BYTES_MAX <= VALUES_BYTES_MAX);
const _: () = assert!(TOKEN_BYTES_MAX + CLIENT_NAME_BYTES_MAX < CONTROL_FRAME_BYTES_MAX);
