//! **What**: `felix-broker dump`: what is in a segment, a shard's meta or the WALs, as text.
//!
//! **Invariants**: written as it is read: memory is bounded by one chunk. Bytes that failed their checksum are not shown.
//!
//! **Never**: a write; a guess about a file that is none of ours.
//!
//! **See**: `wal/src/dump.rs`, `wal_entries.rs`.

use super::args::{DumpArgs, ShowValues};
use super::folder::{self, DataFolder, ToolError};
use super::{CANNOT_READ, CLEAN, DAMAGE, shown, wal_entries};
use crate::offline_disk::{Access, OfflineDisk, is_inside};
use felix_wal::disk::{BLOCK_BYTES, Disk, DiskError, DiskOk, DiskOp, FilePath};
use felix_wal::dump::{DumpError, Values, dump};
use felix_wal::format::header::{FileHeader, Owner};
use felix_wal::format::meta::{META_BYTES_MAX, ShardMeta};
use felix_wal::format::names::WAL_FOLDER;
use std::fmt;
use std::io::{self, Write};
use std::path::{Component, Path};

/// Text to standard output that remembers why it failed, and whether damage was shown.
struct Out<W> {
    to: W,
    error: Option<io::Error>,
    damaged: bool,
    in_line: bool,
}

/// How a line of the dump begins that tells of damage. Values stand within a line, so none of them can look like it.
const DAMAGED_LINES: &[&str] = &["  DAMAGED: ", "    an entry makes no sense", "    a record makes no sense"];

impl<W: Write> fmt::Write for Out<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.damaged |= !self.in_line && DAMAGED_LINES.iter().any(|line| text.starts_with(line));
        self.in_line = if text.is_empty() { self.in_line } else { !text.ends_with('\n') };
        self.to.write_all(text.as_bytes()).map_err(|error| {
            self.error = Some(error);
            fmt::Error
        })
    }
}

/// Shows a file. Returns the exit code.
pub fn run(args: &DumpArgs) -> Result<u8, ToolError> {
    let (folder, holder) = DataFolder::open_shared(&args.data)?;
    if let Some(holder) = holder {
        let note = "a broker has this folder open: the end of what is shown may be unfinished";
        let _ = writeln!(io::stderr(), "felix-broker dump: process {holder}: {note}");
    }
    let path = inside(&folder.root, &args.path)?;
    let mut disk = folder.disk(Access::ReadOnly);
    let mut out = Out { to: io::BufWriter::new(io::stdout().lock()), error: None, damaged: false, in_line: false };
    let code = if path.0 == WAL_FOLDER {
        entries(&mut disk, &mut out)?
    } else {
        file(&mut disk, &path, args.values, &mut out)?
    };
    out.to.flush()?;
    Ok(code)
}

/// The path within the folder; `DATA/x` and `x` are the same.
fn inside(root: &Path, wanted: &Path) -> Result<FilePath, ToolError> {
    let outside = || ToolError::Refused(format!("{} is not below {}", wanted.display(), root.display()));
    let relative = match wanted.is_absolute() {
        true => wanted.canonicalize().ok().and_then(|it| it.strip_prefix(root).map(Path::to_path_buf).ok()),
        false => Some(wanted.to_path_buf()),
    };
    let relative = relative.ok_or_else(outside)?;
    let parts: Vec<_> = relative.components().filter(|it| *it != Component::CurDir).collect();
    let plain = parts.iter().all(|part| matches!(part, Component::Normal(_)));
    let names: Option<Vec<&str>> = parts.iter().map(|part| part.as_os_str().to_str()).collect();
    let path = FilePath(names.ok_or_else(outside)?.join("/"));
    if plain && is_inside(&path) { Ok(path) } else { Err(outside()) }
}

fn cannot(path: &FilePath, error: &dyn fmt::Display) -> ToolError {
    ToolError::Refused(format!("cannot read {}: {error}", shown(&path.0)))
}

fn file<W: Write>(
    disk: &mut OfflineDisk,
    path: &FilePath,
    values: ShowValues,
    out: &mut Out<W>,
) -> Result<u8, ToolError> {
    let head = match disk.call(DiskOp::Load { path: path.clone(), bytes_max: META_BYTES_MAX }) {
        Ok(DiskOk::Bytes(bytes)) => Some(bytes),
        // Larger than a meta may be: not one, or a segment, which is read in pieces.
        Err(DiskError::TooLarge { .. }) => None,
        Ok(_) => None,
        Err(error) => return Err(cannot(path, &error)),
    };
    let header = match &head {
        Some(bytes) => FileHeader::decode(bytes).map_err(|error| cannot(path, &error))?,
        None => folder::header(disk, path).ok_or_else(|| cannot(path, &"its header is not one of ours, or damaged"))?,
    };
    match (header.owner, &head) {
        (Owner::Segment { .. }, _) => {
            drop(head);
            segment(disk, path, values, out)
        }
        (Owner::Meta { .. }, Some(bytes)) => meta(path, &header, bytes.get(BLOCK_BYTES..).unwrap_or_default(), out),
        (Owner::Wal { .. }, _) => Err(ToolError::Refused(format!(
            "{} is a file of a WAL; `felix-broker dump DATA {WAL_FOLDER}` shows what counts in all of them",
            shown(&path.0)
        ))),
        (owner, _) => {
            Err(ToolError::Refused(format!("{} is {owner:?}; dump shows segments, metas and the WALs", shown(&path.0))))
        }
    }
}

fn failed<W>(out: &mut Out<W>, path: &FilePath, error: &DumpError) -> Result<u8, ToolError> {
    match (error, out.error.take()) {
        (_, Some(error)) => Err(ToolError::Output(error)),
        (DumpError::Disk(_), None) => Err(cannot(path, error)),
        (_, None) => {
            let _ = writeln!(io::stderr(), "felix-broker dump: {} ends here: {error}", shown(&path.0));
            Ok(DAMAGE)
        }
    }
}

fn segment<W: Write>(
    disk: &mut OfflineDisk,
    path: &FilePath,
    values: ShowValues,
    out: &mut Out<W>,
) -> Result<u8, ToolError> {
    let values = match values {
        ShowValues::None => Values::Lengths,
        ShowValues::Text => Values::Text,
        ShowValues::Hex => Values::Hex,
    };
    match dump(disk, path, values, out) {
        Ok(()) if out.damaged => Ok(DAMAGE),
        Ok(()) => Ok(CLEAN),
        Err(error) => {
            // What was shown before stands before the error.
            out.to.flush()?;
            failed(out, path, &error)
        }
    }
}

fn meta<W: Write>(path: &FilePath, header: &FileHeader, bytes: &[u8], out: &mut Out<W>) -> Result<u8, ToolError> {
    let meta = match ShardMeta::decode(bytes) {
        Ok(meta) => meta,
        Err(error) => {
            let _ = writeln!(io::stderr(), "felix-broker dump: {} is damaged: {error}", shown(&path.0));
            return Ok(DAMAGE);
        }
    };
    let to = &mut out.to;
    let identity = &header.identity;
    writeln!(
        to,
        "cluster {:032x} node {:032x} region {} session {}",
        identity.cluster.0, identity.node.0, identity.region, header.session
    )?;
    writeln!(
        to,
        "shard {:016x} stream {} lineage {} durability {:?}",
        meta.shard.0, meta.stream, meta.lineage.0, meta.durability
    )?;
    writeln!(to, "offsets {}..{} chain {:016x} time {}", meta.log_start, meta.flushed_to, meta.chain, meta.time.0)?;
    match meta.open {
        Some(open) => writeln!(to, "open segment at {} bytes {}", open.base, open.used_bytes)?,
        None => writeln!(to, "no open segment")?,
    }
    writeln!(to, "includes entries of WAL {} through {}", meta.included.wal, meta.included.lsn)?;
    writeln!(
        to,
        "promised epoch {} compacted to {} settings {} bytes",
        meta.promised.0,
        meta.compacted_to,
        meta.settings.len()
    )?;
    for epoch in &meta.epochs {
        writeln!(to, "epoch {} starts at {}", epoch.epoch.0, epoch.start)?;
    }
    for cut in &meta.cuts {
        writeln!(to, "cut to {} from {}", cut.to, cut.end_before)?;
    }
    if let Some(from) = meta.void_from {
        writeln!(to, "segments from {from} on are void")?;
    }
    if let Some(range) = meta.switch {
        writeln!(to, "compacted segment of {}..{} waits for its name", range.from, range.to)?;
    }
    for gap in &meta.gaps {
        writeln!(to, "given up {}..{}", gap.from, gap.to)?;
    }
    Ok(CLEAN)
}

fn entries<W: Write>(disk: &mut OfflineDisk, out: &mut Out<W>) -> Result<u8, ToolError> {
    let Some((identity, _)) = folder::identity(disk) else {
        writeln!(out.to, "no WAL")?;
        return Ok(CLEAN);
    };
    let (to, error) = (&mut out.to, &mut out.error);
    let ran = wal_entries::each(disk, identity, |position, entry| {
        if error.is_none() {
            *error = writeln!(to, "{}", wal_entries::line(position, entry)).err();
        }
    });
    if let Some(error) = out.error.take() {
        return Err(ToolError::Output(error));
    }
    let report = match ran {
        Ok(report) => report,
        Err(error) => {
            out.to.flush()?;
            let _ = writeln!(io::stderr(), "felix-broker dump: {}", shown(&error.to_string()));
            return Ok(CANNOT_READ);
        }
    };
    let damaged: Vec<_> = report.wals.iter().filter(|wal| wal.is_damaged()).collect();
    for wal in &damaged {
        writeln!(out.to, "{} DAMAGED: entries are missing; `felix-broker check` says which", wal.wal)?;
    }
    Ok(if damaged.is_empty() { CLEAN } else { DAMAGE })
}
