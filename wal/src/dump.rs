//! **What**: the content of a segment file for people: chunks and batches in order, keys and, on request, values.
//!
//! **Invariants**: needs nothing but the file: no meta, no index, no keys. Goes on behind a damaged chunk as long as its header
//! leads further, and says where it stopped and why.
//!
//! **Never**: the bytes of a batch that did not pass its checksums.
//!
//! **See**: `format/segment.rs`, `check.rs`.

use crate::disk::{BLOCK_BYTES, Disk, DiskError, DiskOk, DiskOp, FileKey, FilePath};
use crate::format::header::{FileHeader, HeaderError};
use crate::format::segment::{CHUNK_HEADER_BYTES, ChunkError, ChunkHeader, ChunkPlace, FIRST_CHUNK_AT, file_tag};
use crate::format::stored::StoredBatch;
use felix_protocol::batch::Compression;
use felix_protocol::batch_view::BatchView;
use std::fmt::{self, Write};

/// How values are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Values {
    /// Only their lengths.
    #[default]
    Lengths,
    /// As text, with escapes.
    Text,
    /// As hex digits.
    Hex,
}

/// Why a dump ended before the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DumpError {
    /// The disk.
    Disk(DiskError),
    /// Not a file of ours, or damaged.
    Header(HeaderError),
    /// A chunk whose header is damaged: what follows cannot be found.
    Chunk {
        /// Byte of the file.
        at: u64,
        /// What is wrong.
        error: ChunkError,
    },
    /// The text could not be written.
    Output,
}

impl fmt::Display for DumpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DumpError::Disk(error) => error.fmt(f),
            DumpError::Header(error) => error.fmt(f),
            DumpError::Chunk { at, error } => write!(f, "byte {at}: {error}"),
            DumpError::Output => f.write_str("the output failed"),
        }
    }
}

impl std::error::Error for DumpError {}

impl From<fmt::Error> for DumpError {
    fn from(_: fmt::Error) -> DumpError {
        DumpError::Output
    }
}

const FILE: FileKey = FileKey(u64::MAX - 1);

/// Writes the content of a segment file as text.
pub fn dump(disk: &mut dyn Disk, path: &FilePath, values: Values, out: &mut dyn Write) -> Result<(), DumpError> {
    let open = DiskOp::Open { path: path.clone(), file: FILE };
    let bytes = match disk.call(open).map_err(DumpError::Disk)? {
        DiskOk::Opened { bytes } => bytes,
        _ => return Err(DumpError::Disk(DiskError::NotFound)),
    };
    let result = dump_file(disk, bytes, values, out);
    let _ = disk.call(DiskOp::Close { file: FILE });
    result
}

fn read(disk: &mut dyn Disk, at: u64, bytes: usize) -> Result<Vec<u8>, DumpError> {
    match disk.call(DiskOp::Read { file: FILE, at, bytes }).map_err(DumpError::Disk)? {
        DiskOk::Bytes(bytes) => Ok(bytes),
        _ => Err(DumpError::Disk(DiskError::NotFound)),
    }
}

fn dump_file(disk: &mut dyn Disk, file_bytes: u64, values: Values, out: &mut dyn Write) -> Result<(), DumpError> {
    let head = read(disk, 0, BLOCK_BYTES)?;
    let header = FileHeader::decode(&head).map_err(DumpError::Header)?;
    writeln!(
        out,
        "cluster {:032x} node {:032x} region {} session {} {:?}",
        header.identity.cluster.0, header.identity.node.0, header.identity.region, header.session, header.owner
    )?;
    let tag = file_tag(&head);
    let mut at = FIRST_CHUNK_AT;
    while at < file_bytes {
        let block = read(disk, at, BLOCK_BYTES)?;
        let chunk = match ChunkHeader::decode(&block) {
            Err(ChunkError::Empty) => return Ok(()),
            Err(error) => return Err(DumpError::Chunk { at, error }),
            Ok(chunk) => chunk,
        };
        let place = ChunkPlace { shard: chunk.shard, lineage: chunk.lineage, tag, at };
        ChunkHeader::decode_at(&block, place).map_err(|error| DumpError::Chunk { at, error })?;
        writeln!(
            out,
            "chunk at {at} bytes {} offsets {}..{} epochs {}..={} times {}..={} batches {}{}{}",
            chunk.payload_bytes,
            chunk.range.from,
            chunk.range.to,
            chunk.epochs.0.0,
            chunk.epochs.1.0,
            chunk.times.0.0,
            chunk.times.1.0,
            chunk.batch_count,
            if chunk.sealed { " sealed" } else { "" },
            if chunk.compacted { " compacted" } else { "" },
        )?;
        let bytes = read(disk, at, chunk.stored_bytes())?;
        match chunk.check(&bytes) {
            Ok(payload) => dump_batches(payload, chunk.sealed, values, out)?,
            Err(error) => writeln!(out, "  DAMAGED: {error}")?,
        }
        debug_assert!(CHUNK_HEADER_BYTES < chunk.stored_bytes());
        at += chunk.stored_bytes() as u64;
    }
    Ok(())
}

fn dump_batches(mut rest: &[u8], sealed: bool, values: Values, out: &mut dyn Write) -> Result<(), DumpError> {
    while let Ok((batch, tail)) = StoredBatch::split_checked(rest, sealed) {
        let header = &batch.header;
        writeln!(
            out,
            "  batch {}..{} {:?} stream {} epoch {} time {} bytes {} chain {:016x}{}",
            header.range().from,
            header.range().to,
            header.kind,
            header.stream,
            header.epoch.0,
            header.append_time.0,
            batch.bytes.len(),
            header.chain,
            if header.is_derived() { " derived" } else { "" },
        )?;
        match batch.sealed {
            Some(envelope) => writeln!(
                out,
                "    sealed with key {} salt {:032x} counter {}",
                envelope.key_id, envelope.salt, envelope.counter
            )?,
            None => dump_records(batch.bytes, values, out)?,
        }
        rest = tail;
    }
    Ok(())
}

fn dump_records(bytes: &[u8], values: Values, out: &mut dyn Write) -> Result<(), DumpError> {
    let Ok(view) = BatchView::parse(bytes) else { return Ok(()) };
    let base = view.header.base_offset.0;
    let readable = view.body.compression == Compression::None;
    if !readable || values == Values::Lengths {
        for entry in view.body.entries() {
            let Ok(entry) = entry else {
                writeln!(out, "    an entry makes no sense")?;
                return Ok(());
            };
            write!(out, "    {}", base + u64::from(entry.offset_delta))?;
            dump_key(entry.key, out)?;
            writeln!(out, " flags {:#04x} value {} bytes", entry.flags, entry.value_bytes)?;
        }
        return Ok(());
    }
    for record in view.body.records(view.body.values) {
        let Ok(record) = record else {
            writeln!(out, "    a record makes no sense")?;
            return Ok(());
        };
        write!(out, "    {}", base + u64::from(record.offset_delta))?;
        dump_key(record.key, out)?;
        match (record.tombstone, values) {
            (true, _) => writeln!(out, " deleted")?,
            (false, Values::Hex) => {
                out.write_str(" value ")?;
                record.value.iter().try_for_each(|byte| write!(out, "{byte:02x}"))?;
                out.write_char('\n')?;
            }
            (false, _) => writeln!(out, " value \"{}\"", record.value.escape_ascii())?,
        }
    }
    Ok(())
}

fn dump_key(key: Option<&[u8]>, out: &mut dyn Write) -> fmt::Result {
    match key {
        Some(key) => write!(out, " key \"{}\"", key.escape_ascii()),
        None => Ok(()),
    }
}
