//! **What**: what the cores are told about streams and shards: single changes, deltas of them, and the whole table.
//!
//! ```text
//! delta    = frame header (type 2) | u64 from_version | u64 to_version | u32 count | items | TLVs
//! snapshot = frame header (type 3) | u64 version | u64 routing_version | u8 cores | u32 count | placed streams | TLVs
//! item     = u16 kind | u32 bytes | u64 routing_version | fields     bit 15 of kind: mandatory, else skipped if unknown
//!            1 StreamPut (mandatory): placed stream      2 StreamRemoved (mandatory): u64 id, name
//! placed   = u32 bytes | StreamInfo | u32 count | rows | TLVs
//! row      = u64 shard | u8 core | u64 range_start | u64 epoch | u32 lineage      index = place in the list
//! TLV 1 of a placed stream: a bit per shard, lowest first: its files were made; not there if no bit is set
//! ```
//!
//! **Invariants**: `from_version < to_version`; a placed stream has as many shards as its settings say and their ranges
//! rise from 0, also when a stranger wrote it. These bytes cross versions; the layout is frozen.
//!
//! **Never**: rkyv; tenants or quotas: a core does not need them.
//!
//! **See**: `state.rs` makes changes, `member.rs` keeps them for those who watch.

use crate::framed::{FrameError, FrameKind, open, seal};
use felix_protocol::codec::{DecodeError, Reader, Writer};
use felix_protocol::envelope::{TLV_MANDATORY, Tlvs, check_tlvs};
use felix_protocol::ids::{CoreId, ShardId, ShardIndex, StreamId};
use felix_protocol::limits::{CORES_MAX, SHARDS_MAX};
use felix_protocol::metadata::{Durability, StreamInfo, put_name, read_stream_name};
use felix_protocol::names::StreamName;
use felix_protocol::position::{Epoch, Lineage};

/// One shard and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardPlace {
    /// Place in the stream.
    pub index: ShardIndex,
    /// Log id.
    pub shard: ShardId,
    /// Core that owns it.
    pub core: CoreId,
    /// First key hash of its range.
    pub range_start: u64,
    /// Leader generation; rises when it changes its core.
    pub epoch: Epoch,
    /// Incarnation of its data.
    pub lineage: Lineage,
    /// Of a durable stream: its files were made. If they are not there, they are lost.
    pub made: bool,
}

/// A stream with its shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedStream {
    /// The stream.
    pub info: StreamInfo,
    /// By index, without holes; `range_start` rises from 0.
    pub shards: Vec<ShardPlace>,
}

impl PlacedStream {
    /// Whether shards and settings fit together.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.shards.is_empty() || self.shards.len() != self.info.spec.shards as usize {
            return Err("shard count");
        }
        if self.shards[0].range_start != 0 || self.shards.windows(2).any(|it| it[0].range_start >= it[1].range_start) {
            return Err("shard ranges");
        }
        if self.shards.iter().enumerate().any(|(at, shard)| shard.index.0 as usize != at) {
            return Err("shard index");
        }
        if self.shards.iter().any(|shard| shard.core.0 >= CORES_MAX) {
            return Err("core");
        }
        if self.info.id.0 == 0 || self.shards.iter().any(|shard| shard.shard.0 == 0) {
            return Err("id");
        }
        if self.shards.iter().any(|shard| shard.lineage.0 == 0 || shard.epoch.0 == 0) {
            return Err("lineage or epoch");
        }
        if self.info.spec.durability == Durability::Ephemeral && self.shards.iter().any(|shard| shard.made) {
            return Err("files of an ephemeral stream");
        }
        Ok(())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        sized(out, |out| {
            self.info.encode(out);
            out.put_u32(self.shards.len() as u32);
            for shard in &self.shards {
                out.put_u64(shard.shard.0);
                out.put_u8(shard.core.0);
                out.put_u64(shard.range_start);
                out.put_u64(shard.epoch.0);
                out.put_u32(shard.lineage.0);
            }
            if self.shards.iter().any(|shard| shard.made) {
                out.put_u16(TLV_MADE);
                let byte = |shards: &[ShardPlace]| {
                    shards.iter().rev().fold(0u8, |bits, shard| bits << 1 | u8::from(shard.made))
                };
                out.put_bytes16(&self.shards.chunks(8).map(byte).collect::<Vec<u8>>());
            }
        });
    }

    fn decode(reader: &mut Reader<'_>) -> Result<PlacedStream, DecodeError> {
        let mut reader = Reader::new(read_sized(reader)?);
        let info = StreamInfo::decode(&mut reader)?;
        let count = reader.u32()?;
        if count > SHARDS_MAX {
            return Err(DecodeError::TooLarge { bytes: u64::from(count), max: u64::from(SHARDS_MAX) });
        }
        let mut shards = (0..count)
            .map(|index| {
                Ok(ShardPlace {
                    index: ShardIndex(index),
                    shard: ShardId(reader.u64()?),
                    core: CoreId(reader.u8()?),
                    range_start: reader.u64()?,
                    epoch: Epoch(reader.u64()?),
                    lineage: Lineage(reader.u32()?),
                    made: false,
                })
            })
            .collect::<Result<Vec<_>, DecodeError>>()?;
        read_made(reader.rest(), &mut shards)?;
        let stream = PlacedStream { info, shards };
        stream.check().map_err(DecodeError::BadField)?;
        Ok(stream)
    }
}

const TLV_MADE: u16 = 1;

/// The TLVs of a placed stream. What is not said was not made: an older build wrote it, or nothing is there yet.
fn read_made(tlvs: &[u8], shards: &mut [ShardPlace]) -> Result<(), DecodeError> {
    check_tlvs(tlvs)?;
    for item in Tlvs(tlvs) {
        let (TLV_MADE, bits) = item? else { continue };
        if bits.len() != shards.len().div_ceil(8) {
            return Err(DecodeError::BadField("made shards"));
        }
        for (at, shard) in shards.iter_mut().enumerate() {
            shard.made = bits[at / 8] >> (at % 8) & 1 == 1;
        }
    }
    Ok(())
}

/// One thing that a core must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A stream is new or different: forget what was known of its id.
    StreamPut {
        /// Version of the routing table with this change.
        routing_version: u64,
        /// The stream as it is now.
        stream: PlacedStream,
    },
    /// A stream and its data are gone.
    StreamRemoved {
        /// Version of the routing table with this change.
        routing_version: u64,
        /// Its id.
        id: StreamId,
        /// The name it had.
        name: StreamName,
    },
}

const STREAM_PUT: u16 = 1 | TLV_MANDATORY;
const STREAM_REMOVED: u16 = 2 | TLV_MANDATORY;

impl Change {
    /// Version of the routing table with this change.
    pub fn routing_version(&self) -> u64 {
        match self {
            Change::StreamPut { routing_version, .. } | Change::StreamRemoved { routing_version, .. } => {
                *routing_version
            }
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Change::StreamPut { routing_version, stream } => {
                out.put_u16(STREAM_PUT);
                sized(out, |out| {
                    out.put_u64(*routing_version);
                    stream.encode(out);
                });
            }
            Change::StreamRemoved { routing_version, id, name } => {
                out.put_u16(STREAM_REMOVED);
                sized(out, |out| {
                    out.put_u64(*routing_version);
                    out.put_u64(id.0);
                    put_name(out, name);
                });
            }
        }
    }

    /// None: a kind that this build does not know and may skip.
    fn decode(reader: &mut Reader<'_>) -> Result<Option<Change>, DecodeError> {
        let kind = reader.u16()?;
        let mut reader = Reader::new(read_sized(reader)?);
        let change = match kind {
            STREAM_PUT => {
                Change::StreamPut { routing_version: reader.u64()?, stream: PlacedStream::decode(&mut reader)? }
            }
            STREAM_REMOVED => Change::StreamRemoved {
                routing_version: reader.u64()?,
                id: StreamId(reader.u64()?),
                name: read_stream_name(&mut reader)?,
            },
            unknown if unknown & TLV_MANDATORY != 0 => return Err(DecodeError::UnknownMandatoryTlv(unknown)),
            _ => return Ok(None),
        };
        check_tlvs(reader.rest())?;
        Ok(Some(change))
    }
}

/// All changes after one version up to another. Entries that changed nothing for the cores are covered too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The watcher must be at this version.
    pub from_version: u64,
    /// It is at this version afterwards.
    pub to_version: u64,
    /// In order.
    pub changes: Vec<Change>,
}

impl Delta {
    /// The frame. Refused only if it is over `FRAME_BYTES_MAX`.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        seal(FrameKind::Delta, |out| {
            out.put_u64(self.from_version);
            out.put_u64(self.to_version);
            out.put_u32(self.changes.len() as u32);
            for change in &self.changes {
                change.encode(out);
            }
        })
    }

    /// Reads a frame.
    pub fn decode(frame: &[u8]) -> Result<Delta, FrameError> {
        let mut reader = Reader::new(open(FrameKind::Delta, frame)?);
        let (from_version, to_version) = (reader.u64()?, reader.u64()?);
        if from_version >= to_version {
            return Err(DecodeError::BadField("to_version").into());
        }
        let count = reader.u32()?;
        let mut changes = Vec::new();
        for _ in 0..count {
            changes.extend(Change::decode(&mut reader)?);
        }
        check_tlvs(reader.rest())?;
        Ok(Delta { from_version, to_version, changes })
    }
}

/// The whole table, for a watcher that is new or too far behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The watcher is at this version afterwards.
    pub version: u64,
    /// Version of the routing table.
    pub routing_version: u64,
    /// Cores of the broker.
    pub cores: u8,
    /// In order of name.
    pub streams: Vec<PlacedStream>,
}

impl Snapshot {
    /// The frame. Refused only if it is over `FRAME_BYTES_MAX`.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        seal(FrameKind::WatchSnapshot, |out| {
            out.put_u64(self.version);
            out.put_u64(self.routing_version);
            out.put_u8(self.cores);
            out.put_u32(self.streams.len() as u32);
            for stream in &self.streams {
                stream.encode(out);
            }
        })
    }

    /// Reads a frame.
    pub fn decode(frame: &[u8]) -> Result<Snapshot, FrameError> {
        let mut reader = Reader::new(open(FrameKind::WatchSnapshot, frame)?);
        let (version, routing_version, cores) = (reader.u64()?, reader.u64()?, reader.u8()?);
        if cores == 0 || cores > CORES_MAX {
            return Err(DecodeError::BadField("cores").into());
        }
        let count = reader.u32()?;
        let mut streams: Vec<PlacedStream> = Vec::new();
        for _ in 0..count {
            let stream = PlacedStream::decode(&mut reader)?;
            if streams.last().is_some_and(|last| last.info.name >= stream.info.name) {
                return Err(DecodeError::BadField("order of streams").into());
            }
            streams.push(stream);
        }
        check_tlvs(reader.rest())?;
        Ok(Snapshot { version, routing_version, cores, streams })
    }
}

/// Appends a u32 length and what `fill` appends.
fn sized(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.put_u32(0);
    fill(out);
    let bytes = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&bytes.to_le_bytes());
}

fn read_sized<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], DecodeError> {
    let bytes = reader.u32()? as usize;
    reader.bytes(bytes)
}

#[cfg(test)]
mod tests;
