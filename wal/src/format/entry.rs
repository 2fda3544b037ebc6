//! **What**: the entries of a WAL group.
//!
//! ```text
//! entry = u32 entry_bytes (all of it) | u8 kind | u8 version | u16 flags | u64 shard | [u64 copied_from] | fields
//!
//! kind  fields
//!  1 Append      u64 stream, u32 lineage, u32 offset_count, u64 epoch, u64 base_offset, [u64 salt_id, u64 counter], batch
//!  2 Truncate    u32 lineage, u64 epoch, u64 to
//!  3 Promise     u32 lineage, u64 epoch
//!  4 EpochStart  u32 lineage, u64 epoch, u64 start
//!  5 Create      u64 stream, u32 lineage, u64 epoch, settings
//!  6 Delete      u32 lineage
//!  7 FlushedTo   u32 lineage, u64 offset, u64 through, u8 copied
//!  8 Rehome      u32 lineage, u64 incarnation, u64 from
//!  9 Seal        u64 synced_through, u8 clean                  shard 0
//! flags: 1 copied_from is there (an entry copied forward)   2 the batch is sealed at rest (Append only)
//! ```
//!
//! **Invariants**: read in the order written, they give a shard's state by construction. An unknown kind, version or flag is
//! an error: an entry that is not understood cannot be skipped, since what follows may depend on it.
//!
//! **Never**: a key, or a batch that is opened: recovery needs neither.
//!
//! **See**: `group.rs` (what holds them), `../recover.rs` (which of them count).

use std::fmt;

use felix_protocol::codec::{DecodeError, Reader, Writer};
use felix_protocol::ids::{ShardId, StreamId};
use felix_protocol::limits::SETTINGS_BYTES_MAX;
use felix_protocol::position::{Epoch, Lineage, Offset};

use super::group::GroupSequence;
use super::names::WalId;

/// Number of an entry within its WAL, from 1 upward; 0 stands for "none yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An entry of any WAL. A shard's meta file keeps the last one that it includes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalPosition {
    /// Which WAL.
    pub wal: WalId,
    /// Which entry.
    pub lsn: Lsn,
}

/// Largest entry: a batch of the largest size, what sealing adds, and the fields.
pub const ENTRY_BYTES_MAX: usize = 2 << 20;
/// Version of all entries.
pub const ENTRY_VERSION: u8 = 1;

/// Bytes in front of every entry: length, kind, version, flags, shard.
pub const ENTRY_PREFIX_BYTES: usize = 16;
const FLAG_COPIED: u16 = 1 << 0;
const FLAG_SEALED: u16 = 1 << 1;

/// Where the bytes of a batch that is sealed at rest get their key and nonce from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SealedBy {
    /// Which salt.
    pub salt_id: u64,
    /// First nonce counter; one per piece.
    pub counter: u64,
}

/// A batch that was appended to a shard's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Append<'a> {
    /// Stream (one of those that share the shard).
    pub stream: StreamId,
    /// Incarnation of the data.
    pub lineage: Lineage,
    /// Offsets covered.
    pub offset_count: u32,
    /// Epoch of the leader that stamped it.
    pub epoch: Epoch,
    /// First offset.
    pub base_offset: Offset,
    /// Sealed at rest.
    pub sealed_by: Option<SealedBy>,
    /// The batch as in memory, or its sealed pieces.
    pub batch: &'a [u8],
}

/// What happened to a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryBody<'a> {
    /// A batch was appended.
    Append(Append<'a>),
    /// The log was cut: what stands at `to` and after counts no longer.
    Truncate {
        /// Incarnation of the data.
        lineage: Lineage,
        /// Epoch of the leader that asked for it.
        epoch: Epoch,
        /// New end.
        to: Offset,
    },
    /// Nothing below this epoch is accepted any more.
    Promise {
        /// Incarnation of the data.
        lineage: Lineage,
        /// Promised epoch.
        epoch: Epoch,
    },
    /// An epoch began.
    EpochStart {
        /// Incarnation of the data.
        lineage: Lineage,
        /// Epoch.
        epoch: Epoch,
        /// Its first offset.
        start: Offset,
    },
    /// The shard was placed here.
    Create {
        /// Stream it was made for.
        stream: StreamId,
        /// Incarnation of the data.
        lineage: Lineage,
        /// Epoch it starts with.
        epoch: Epoch,
        /// Settings, opaque here.
        settings: &'a [u8],
    },
    /// The shard is no longer here; its files may go.
    Delete {
        /// Incarnation of the data.
        lineage: Lineage,
    },
    /// Entries of the shard in this WAL up to `through` count no longer.
    FlushedTo {
        /// Incarnation of the data.
        lineage: Lineage,
        /// Records below are in segments.
        offset: Offset,
        /// Last entry that counts no longer.
        through: Lsn,
        /// Not because they are in segments and meta, but because all that matter were copied forward.
        copied: bool,
    },
    /// Of this shard, only entries of this WAL from `from` on count; nothing in any other.
    Rehome {
        /// Incarnation of the data.
        lineage: Lineage,
        /// Rises with every move of the shard; the greatest one counts.
        incarnation: u64,
        /// First entry that counts.
        from: Lsn,
    },
    /// The writer paused or stopped.
    Seal {
        /// Groups up to it are durable.
        synced_through: GroupSequence,
        /// It stopped: nothing follows.
        clean: bool,
    },
}

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Whose; 0 for a seal.
    pub shard: ShardId,
    /// It repeats this entry of the same WAL, so that the file of the original can be reused.
    pub copied_from: Option<Lsn>,
    /// What happened.
    pub body: EntryBody<'a>,
}

/// Why bytes are not an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryError {
    /// A kind this build does not know.
    UnknownKind(u8),
    /// A version this build does not know.
    UnknownVersion {
        /// Kind of entry.
        kind: u8,
        /// Its version.
        version: u8,
    },
    /// Flags this build does not know, or that do not belong to the kind.
    UnknownFlags {
        /// Kind of entry.
        kind: u8,
        /// Its flags.
        flags: u16,
    },
    /// A length that cannot be.
    BadLength {
        /// As stored.
        bytes: u32,
        /// Bytes that are left.
        left: usize,
    },
    /// A field that cannot be read.
    Field(DecodeError),
    /// Fewer or more entries than the group says.
    Count {
        /// As the group says.
        expected: u32,
        /// As found.
        found: u32,
    },
}

impl From<DecodeError> for EntryError {
    fn from(error: DecodeError) -> EntryError {
        EntryError::Field(error)
    }
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EntryError::UnknownKind(kind) => write!(f, "entry kind {kind} is not known"),
            EntryError::UnknownVersion { kind, version } => {
                write!(f, "version {version} of entry kind {kind} is not known")
            }
            EntryError::UnknownFlags { kind, flags } => write!(f, "flags {flags:#06x} of entry kind {kind}"),
            EntryError::BadLength { bytes, left } => write!(f, "an entry of {bytes} bytes, {left} are left"),
            EntryError::Field(error) => write!(f, "an entry: {error}"),
            EntryError::Count { expected, found } => write!(f, "{found} entries, the group says {expected}"),
        }
    }
}

impl std::error::Error for EntryError {}

impl EntryBody<'_> {
    fn kind(&self) -> u8 {
        match self {
            EntryBody::Append(_) => 1,
            EntryBody::Truncate { .. } => 2,
            EntryBody::Promise { .. } => 3,
            EntryBody::EpochStart { .. } => 4,
            EntryBody::Create { .. } => 5,
            EntryBody::Delete { .. } => 6,
            EntryBody::FlushedTo { .. } => 7,
            EntryBody::Rehome { .. } => 8,
            EntryBody::Seal { .. } => 9,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            EntryBody::Append(append) => 32 + append.sealed_by.map_or(0, |_| 16) + append.batch.len(),
            EntryBody::Truncate { .. } | EntryBody::EpochStart { .. } | EntryBody::Rehome { .. } => 20,
            EntryBody::FlushedTo { .. } => 21,
            EntryBody::Promise { .. } => 12,
            EntryBody::Create { settings, .. } => 20 + settings.len(),
            EntryBody::Delete { .. } => 4,
            EntryBody::Seal { .. } => 9,
        }
    }
}

impl<'a> Entry<'a> {
    /// An entry that is no copy.
    pub fn new(shard: ShardId, body: EntryBody<'a>) -> Entry<'a> {
        Entry { shard, copied_from: None, body }
    }

    /// Bytes that `encode` appends.
    pub fn bytes(&self) -> usize {
        ENTRY_PREFIX_BYTES + self.copied_from.map_or(0, |_| 8) + self.body.bytes()
    }

    /// Appends the entry. Its size is below `ENTRY_BYTES_MAX`, which the caller has checked.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let bytes = self.bytes();
        assert!(bytes <= ENTRY_BYTES_MAX, "an entry of {bytes} bytes");
        let start = out.len();
        out.put_u32(bytes as u32);
        out.put_u8(self.body.kind());
        out.put_u8(ENTRY_VERSION);
        let sealed = matches!(self.body, EntryBody::Append(Append { sealed_by: Some(_), .. }));
        let copied = self.copied_from.map_or(0, |_| FLAG_COPIED);
        out.put_u16(copied | if sealed { FLAG_SEALED } else { 0 });
        out.put_u64(self.shard.0);
        if let Some(lsn) = self.copied_from {
            out.put_u64(lsn.0);
        }
        match &self.body {
            EntryBody::Append(append) => {
                out.put_u64(append.stream.0);
                out.put_u32(append.lineage.0);
                out.put_u32(append.offset_count);
                out.put_u64(append.epoch.0);
                out.put_u64(append.base_offset.0);
                if let Some(sealed) = append.sealed_by {
                    out.put_u64(sealed.salt_id);
                    out.put_u64(sealed.counter);
                }
                out.put(append.batch);
            }
            EntryBody::Truncate { lineage, epoch, to: offset }
            | EntryBody::EpochStart { lineage, epoch, start: offset } => {
                out.put_u32(lineage.0);
                out.put_u64(epoch.0);
                out.put_u64(offset.0);
            }
            EntryBody::Promise { lineage, epoch } => {
                out.put_u32(lineage.0);
                out.put_u64(epoch.0);
            }
            EntryBody::Create { stream, lineage, epoch, settings } => {
                out.put_u64(stream.0);
                out.put_u32(lineage.0);
                out.put_u64(epoch.0);
                out.put(settings);
            }
            EntryBody::Delete { lineage } => out.put_u32(lineage.0),
            EntryBody::FlushedTo { lineage, offset, through, copied } => {
                out.put_u32(lineage.0);
                out.put_u64(offset.0);
                out.put_u64(through.0);
                out.put_u8(u8::from(*copied));
            }
            EntryBody::Rehome { lineage, incarnation, from } => {
                out.put_u32(lineage.0);
                out.put_u64(*incarnation);
                out.put_u64(from.0);
            }
            EntryBody::Seal { synced_through, clean } => {
                out.put_u64(synced_through.0);
                out.put_u8(u8::from(*clean));
            }
        }
        debug_assert_eq!(out.len() - start, bytes);
    }

    /// Reads the entry at the start of `bytes`, and how many bytes it has.
    pub fn decode(bytes: &'a [u8]) -> Result<(Entry<'a>, usize), EntryError> {
        let mut length = Reader::new(bytes);
        let entry_bytes = length.u32()?;
        let whole = bytes.get(..entry_bytes as usize).filter(|whole| whole.len() >= ENTRY_PREFIX_BYTES);
        let bad_length = EntryError::BadLength { bytes: entry_bytes, left: bytes.len() };
        let whole = whole.filter(|whole| whole.len() <= ENTRY_BYTES_MAX).ok_or(bad_length)?;
        let mut r = Reader::new(&whole[4..]);
        let kind = r.u8()?;
        let version = r.u8()?;
        let flags = r.u16()?;
        let shard = ShardId(r.u64()?);
        if !(1..=9).contains(&kind) {
            return Err(EntryError::UnknownKind(kind));
        }
        if version != ENTRY_VERSION {
            return Err(EntryError::UnknownVersion { kind, version });
        }
        let known = if kind == 1 { FLAG_COPIED | FLAG_SEALED } else { FLAG_COPIED };
        if flags & !known != 0 {
            return Err(EntryError::UnknownFlags { kind, flags });
        }
        if (kind == 9) != (shard.0 == 0) {
            return Err(DecodeError::BadField("shard").into());
        }
        let copied_from = if flags & FLAG_COPIED != 0 { Some(Lsn(r.u64()?)) } else { None };
        let body = EntryBody::fields(kind, flags, &mut r)?;
        r.finish()?;
        Ok((Entry { shard, copied_from, body }, whole.len()))
    }
}

fn flag(r: &mut Reader<'_>, name: &'static str) -> Result<bool, EntryError> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::BadField(name).into()),
    }
}

impl<'a> EntryBody<'a> {
    fn fields(kind: u8, flags: u16, r: &mut Reader<'a>) -> Result<EntryBody<'a>, EntryError> {
        Ok(match kind {
            1 => {
                let stream = StreamId(r.u64()?);
                let lineage = Lineage(r.u32()?);
                let offset_count = r.u32()?;
                let epoch = Epoch(r.u64()?);
                let base_offset = Offset(r.u64()?);
                if base_offset.checked_add(u64::from(offset_count)).is_none() {
                    return Err(DecodeError::BadField("base_offset").into());
                }
                let sealed_by = match flags & FLAG_SEALED {
                    0 => None,
                    _ => Some(SealedBy { salt_id: r.u64()?, counter: r.u64()? }),
                };
                let batch = r.bytes(r.rest().len())?;
                EntryBody::Append(Append { stream, lineage, offset_count, epoch, base_offset, sealed_by, batch })
            }
            2 => EntryBody::Truncate { lineage: Lineage(r.u32()?), epoch: Epoch(r.u64()?), to: Offset(r.u64()?) },
            3 => EntryBody::Promise { lineage: Lineage(r.u32()?), epoch: Epoch(r.u64()?) },
            4 => EntryBody::EpochStart { lineage: Lineage(r.u32()?), epoch: Epoch(r.u64()?), start: Offset(r.u64()?) },
            5 => {
                let stream = StreamId(r.u64()?);
                let lineage = Lineage(r.u32()?);
                let epoch = Epoch(r.u64()?);
                let settings = r.bytes(r.rest().len())?;
                if settings.len() > SETTINGS_BYTES_MAX {
                    let (bytes, max) = (settings.len() as u64, SETTINGS_BYTES_MAX as u64);
                    return Err(DecodeError::TooLarge { bytes, max }.into());
                }
                EntryBody::Create { stream, lineage, epoch, settings }
            }
            6 => EntryBody::Delete { lineage: Lineage(r.u32()?) },
            7 => {
                let lineage = Lineage(r.u32()?);
                let offset = Offset(r.u64()?);
                EntryBody::FlushedTo { lineage, offset, through: Lsn(r.u64()?), copied: flag(r, "copied")? }
            }
            8 => EntryBody::Rehome { lineage: Lineage(r.u32()?), incarnation: r.u64()?, from: Lsn(r.u64()?) },
            9 => {
                let synced_through = GroupSequence(r.u64()?);
                EntryBody::Seal { synced_through, clean: flag(r, "clean")? }
            }
            _ => return Err(EntryError::UnknownKind(kind)),
        })
    }
}

/// The entries of a group's payload, in order. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
    next: Lsn,
    expected: u32,
    found: u32,
    failed: bool,
}

impl<'a> Entries<'a> {
    /// The entries of a payload: how many there must be, and the number of the first.
    pub fn new(payload: &'a [u8], entry_count: u32, first_lsn: Lsn) -> Entries<'a> {
        Entries { rest: payload, next: first_lsn, expected: entry_count, found: 0, failed: false }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<(Lsn, Entry<'a>), EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        if self.rest.is_empty() || self.found == self.expected {
            let more = u32::from(!self.rest.is_empty());
            if self.found + more == self.expected {
                return None;
            }
            self.failed = true;
            return Some(Err(EntryError::Count { expected: self.expected, found: self.found.saturating_add(more) }));
        }
        match Entry::decode(self.rest) {
            Ok((entry, bytes)) => {
                let lsn = self.next;
                self.rest = &self.rest[bytes..];
                self.next = Lsn(lsn.0.saturating_add(1));
                self.found += 1;
                Some(Ok((lsn, entry)))
            }
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }
}
