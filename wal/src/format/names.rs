//! **What**: where things lie in a data folder. Paths are printed and parsed here and nowhere else.
//!
//! ```text
//! format                                          wal/<session>-<core>/<number>.wal
//! shards/<shard>/meta                             wal/<session>-<core>.retired/...      to be removed
//! shards/<shard>/<lineage>-<base offset>.seg      quarantine/<time>.<path with + for />
//! shards/<shard>/<lineage>-<base offset>.idx
//! ```
//!
//! **Invariants**: numbers are lower-case hex of fixed width, so that a sorted listing is in order. A name has one form.
//!
//! **Never**: a guess about a name that does not parse: it is reported as foreign and left alone.
//!
//! **See**: `header.rs`, which repeats in the file what its name says.

use std::fmt;

use felix_protocol::ids::{CoreId, NodeSession, ShardId};
use felix_protocol::position::{Lineage, Offset};
use felix_protocol::time::Timestamp;

use crate::disk::{FilePath, TEMPORARY_SUFFIX};

/// A core WAL: one core in one start of the node. Never reused, since sessions are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalId {
    /// Start of the node.
    pub session: NodeSession,
    /// Core.
    pub core: CoreId,
}

impl fmt::Display for WalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:02x}", self.session.0, self.core.0)
    }
}

/// A segment or its index: the first offset it may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    /// Incarnation of the shard's data.
    pub lineage: Lineage,
    /// First offset.
    pub base_offset: Offset,
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:016x}", self.lineage.0, self.base_offset.0)
    }
}

/// Folder of the core WALs.
pub const WAL_FOLDER: &str = "wal";
/// Folder of the shards.
pub const SHARDS_FOLDER: &str = "shards";
/// Folder of what was taken out of service.
pub const QUARANTINE_FOLDER: &str = "quarantine";
/// What the folder name of a WAL ends with that counts no longer.
pub const RETIRED_SUFFIX: &str = ".retired";

/// Everything that has a place in a data folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// Folder format version and identity.
    Format,
    /// Folder of all WALs.
    Wals,
    /// Folder of one WAL.
    Wal(WalId),
    /// Folder of one WAL that counts no longer.
    RetiredWal(WalId),
    /// A file of a WAL.
    WalFile(WalId, u32),
    /// A file of a WAL that counts no longer.
    RetiredWalFile(WalId, u32),
    /// Folder of all shards.
    Shards,
    /// Folder of one shard.
    Shard(ShardId),
    /// A shard's meta file.
    ShardMeta(ShardId),
    /// What a shard remembers of its producers.
    Producers(ShardId),
    /// A segment.
    Segment(ShardId, SegmentId),
    /// The index of a segment.
    Index(ShardId, SegmentId),
    /// Folder of what was taken out of service.
    Quarantine,
    /// Something taken out of service: when, and where it was.
    Quarantined(Timestamp, FilePath),
    /// What a crash left of a `Replace`: the path it was meant for.
    Temporary(FilePath),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Format => f.write_str("format"),
            Name::Wals => f.write_str(WAL_FOLDER),
            Name::Wal(wal) => write!(f, "{WAL_FOLDER}/{wal}"),
            Name::RetiredWal(wal) => write!(f, "{WAL_FOLDER}/{wal}{RETIRED_SUFFIX}"),
            Name::WalFile(wal, number) => write!(f, "{WAL_FOLDER}/{wal}/{number:08x}.wal"),
            Name::RetiredWalFile(wal, number) => write!(f, "{WAL_FOLDER}/{wal}{RETIRED_SUFFIX}/{number:08x}.wal"),
            Name::Shards => f.write_str(SHARDS_FOLDER),
            Name::Shard(shard) => write!(f, "{SHARDS_FOLDER}/{:016x}", shard.0),
            Name::ShardMeta(shard) => write!(f, "{SHARDS_FOLDER}/{:016x}/meta", shard.0),
            Name::Producers(shard) => write!(f, "{SHARDS_FOLDER}/{:016x}/producers", shard.0),
            Name::Segment(shard, segment) => write!(f, "{SHARDS_FOLDER}/{:016x}/{segment}.seg", shard.0),
            Name::Index(shard, segment) => write!(f, "{SHARDS_FOLDER}/{:016x}/{segment}.idx", shard.0),
            Name::Quarantine => f.write_str(QUARANTINE_FOLDER),
            Name::Quarantined(time, path) => {
                write!(f, "{QUARANTINE_FOLDER}/{:016x}.{}", time.0, path.0.replace('/', "+"))
            }
            Name::Temporary(path) => write!(f, "{path}{TEMPORARY_SUFFIX}"),
        }
    }
}

/// Hex of exactly `digits` lower-case digits.
fn hex(text: &str, digits: usize) -> Option<u64> {
    let good = text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    good.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

fn wal_id(text: &str) -> Option<WalId> {
    let (session, core) = text.split_once('-')?;
    Some(WalId { session: NodeSession(hex(session, 16)?), core: CoreId(hex(core, 2)? as u8) })
}

fn segment_id(text: &str) -> Option<SegmentId> {
    let (lineage, offset) = text.split_once('-')?;
    Some(SegmentId { lineage: Lineage(hex(lineage, 8)? as u32), base_offset: Offset(hex(offset, 16)?) })
}

impl Name {
    /// As a path.
    pub fn path(&self) -> FilePath {
        FilePath(self.to_string())
    }

    /// Where `path` goes when it is taken out of service at `time`.
    pub fn quarantined(time: Timestamp, path: &FilePath) -> Name {
        Name::Quarantined(time, path.clone())
    }

    /// What lies at a path. None: nothing that we put there.
    pub fn parse(path: &FilePath) -> Option<Name> {
        if let Some(meant) = path.0.strip_suffix(TEMPORARY_SUFFIX) {
            let meant = FilePath(meant.to_string());
            return match Name::parse(&meant)? {
                Name::Temporary(_) => None,
                _ => Some(Name::Temporary(meant)),
            };
        }
        let parts: Vec<&str> = path.0.split('/').collect();
        match parts[..] {
            ["format"] => Some(Name::Format),
            [WAL_FOLDER] => Some(Name::Wals),
            [WAL_FOLDER, folder] => match folder.strip_suffix(RETIRED_SUFFIX) {
                Some(folder) => wal_id(folder).map(Name::RetiredWal),
                None => wal_id(folder).map(Name::Wal),
            },
            [WAL_FOLDER, folder, file] => {
                let number = hex(file.strip_suffix(".wal")?, 8)? as u32;
                match folder.strip_suffix(RETIRED_SUFFIX) {
                    Some(folder) => wal_id(folder).map(|wal| Name::RetiredWalFile(wal, number)),
                    None => wal_id(folder).map(|wal| Name::WalFile(wal, number)),
                }
            }
            [SHARDS_FOLDER] => Some(Name::Shards),
            [SHARDS_FOLDER, shard] => hex(shard, 16).map(|shard| Name::Shard(ShardId(shard))),
            [SHARDS_FOLDER, shard, file] => {
                let shard = ShardId(hex(shard, 16)?);
                match file.rsplit_once('.') {
                    None if file == "meta" => Some(Name::ShardMeta(shard)),
                    None if file == "producers" => Some(Name::Producers(shard)),
                    Some((segment, "seg")) => segment_id(segment).map(|segment| Name::Segment(shard, segment)),
                    Some((segment, "idx")) => segment_id(segment).map(|segment| Name::Index(shard, segment)),
                    _ => None,
                }
            }
            [QUARANTINE_FOLDER] => Some(Name::Quarantine),
            [QUARANTINE_FOLDER, entry] => {
                let (time, from) = entry.split_once('.')?;
                let from = FilePath(from.replace('+', "/"));
                Some(Name::Quarantined(Timestamp(hex(time, 16)?), from))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: Name, text: &str) {
        assert_eq!(name.to_string(), text);
        assert_eq!(Name::parse(&FilePath(text.to_string())), Some(name));
    }

    #[test]
    fn names_print_and_parse() {
        let wal = WalId { session: NodeSession(0x12), core: CoreId(3) };
        let shard = ShardId(0xabc);
        let segment = SegmentId { lineage: Lineage(2), base_offset: Offset(4_096) };
        check(Name::Format, "format");
        check(Name::Wals, "wal");
        check(Name::Wal(wal), "wal/0000000000000012-03");
        check(Name::RetiredWal(wal), "wal/0000000000000012-03.retired");
        check(Name::WalFile(wal, 10), "wal/0000000000000012-03/0000000a.wal");
        check(Name::RetiredWalFile(wal, 10), "wal/0000000000000012-03.retired/0000000a.wal");
        check(Name::Shards, "shards");
        check(Name::Shard(shard), "shards/0000000000000abc");
        check(Name::ShardMeta(shard), "shards/0000000000000abc/meta");
        check(Name::Segment(shard, segment), "shards/0000000000000abc/00000002-0000000000001000.seg");
        check(Name::Index(shard, segment), "shards/0000000000000abc/00000002-0000000000001000.idx");
        check(Name::Quarantine, "quarantine");
        let from = Name::Segment(shard, segment).path();
        check(
            Name::quarantined(Timestamp(255), &from),
            "quarantine/00000000000000ff.shards+0000000000000abc+00000002-0000000000001000.seg",
        );
        check(Name::Temporary(Name::ShardMeta(shard).path()), "shards/0000000000000abc/meta.tmp");
    }

    #[test]
    fn other_names_are_foreign() {
        for text in [
            "",
            "format2",
            "wal/12-3",
            "wal/0000000000000012-03/0000000A.wal",
            "wal/0000000000000012-03/+000000a.wal",
            "wal/0000000000000012-03/0000000a.wal.bak",
            "shards/0000000000000abc/meta.tmp.tmp",
            "shards/0000000000000abc/notes",
            "shards/0000000000000abc/00000002-0000000000001000.txt",
            "quarantine/x",
            "lost+found",
        ] {
            assert_eq!(Name::parse(&FilePath(text.to_string())), None, "{text}");
        }
    }
}
