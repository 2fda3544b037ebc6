//! **What**: a shard's producers file: what it remembers of idempotent producers, so that a start need not read the whole
//! log for it.
//!
//! ```text
//! header block | frame: u64 through, u32 lineage, u32 producers, then per producer:
//!   u64 id, u32 epoch, u64 next, u64 last_append, u32 seen, then per batch: u64 base_sequence, u32 records, u32 crc, u64 base_offset
//! ```
//!
//! **Invariants**: it holds what the batches below `through` say, and may hold what batches behind the end of the log
//! said, which a crash took: who reads it forgets those, and goes on with the batches from `through` on.
//!
//! **Never**: an expiry by a clock: only append times count (DECISIONS 12).
//!
//! **See**: `shard/src/dedup.rs`.

use crate::disk::{BLOCK_BYTES, FilePath, REPLACE_BYTES_MAX};
use crate::format::frame::{FrameError, FrameKind, put_frame, take_frame};
use crate::format::header::{FileHeader, HeaderError, Owner};
use crate::format::names::Name;
use crate::log::Maker;
use felix_protocol::codec::{DecodeError, Reader, Writer};
use felix_protocol::ids::{ProducerEpoch, ProducerId, Sequence, ShardId, StreamId};
use felix_protocol::position::{Lineage, Offset};
use felix_protocol::time::Timestamp;
use std::fmt;

const VERSION: u16 = 1;
/// Largest producers file.
pub const PRODUCERS_BYTES_MAX: usize = REPLACE_BYTES_MAX;
const PRODUCER_BYTES: usize = 32;
const SEEN_BYTES: usize = 24;

/// A batch that a producer sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenBatch {
    /// Sequence of its first record.
    pub base_sequence: Sequence,
    /// Records in it.
    pub record_count: u32,
    /// Checksum of its body.
    pub crc: u32,
    /// Offset of its first record.
    pub base_offset: Offset,
}

/// A producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownProducer {
    /// Which.
    pub id: ProducerId,
    /// Its incarnation.
    pub epoch: ProducerEpoch,
    /// Sequence that follows.
    pub next: Sequence,
    /// Append time of its last batch.
    pub last_append: Timestamp,
    /// Its last batches, oldest first.
    pub seen: Vec<SeenBatch>,
}

/// The content of a producers file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Producers {
    /// What the batches below this offset say is in here.
    pub through: Offset,
    /// Incarnation of the data.
    pub lineage: Lineage,
    /// The producers.
    pub known: Vec<KnownProducer>,
}

/// Why a producers file was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProducersError {
    /// Its header.
    Header(HeaderError),
    /// Its frame.
    Frame(FrameError),
}

impl fmt::Display for ProducersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProducersError::Header(error) => write!(f, "producers: {error}"),
            ProducersError::Frame(error) => write!(f, "producers: {error}"),
        }
    }
}

impl std::error::Error for ProducersError {}

impl Producers {
    /// Where a shard's producers file lies.
    pub fn path(shard: ShardId) -> FilePath {
        Name::Producers(shard).path()
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> usize {
        let seen: usize = self.known.iter().map(|it| it.seen.len()).sum();
        BLOCK_BYTES + 64 + self.known.len() * PRODUCER_BYTES + seen * SEEN_BYTES
    }

    /// The bytes of the file.
    pub fn encode(&self, maker: &Maker, stream: StreamId, shard: ShardId) -> Vec<u8> {
        let mut payload = Vec::with_capacity(self.file_bytes());
        payload.put_u64(self.through.0);
        payload.put_u32(self.lineage.0);
        payload.put_u32(self.known.len() as u32);
        for producer in &self.known {
            payload.put_u64(producer.id.0);
            payload.put_u32(producer.epoch.0);
            payload.put_u64(producer.next.0);
            payload.put_u64(producer.last_append.0);
            payload.put_u32(producer.seen.len() as u32);
            for seen in &producer.seen {
                payload.put_u64(seen.base_sequence.0);
                payload.put_u32(seen.record_count);
                payload.put_u32(seen.crc);
                payload.put_u64(seen.base_offset.0);
            }
        }
        let mut out = Vec::with_capacity(payload.len() + BLOCK_BYTES + 64);
        let owner = Owner::Producers { stream, shard };
        FileHeader { identity: maker.identity, session: maker.session, salt: 0, owner }.encode(&mut out);
        put_frame(FrameKind::Producers, VERSION, &payload, &mut out);
        out
    }

    /// Reads and checks a file.
    pub fn decode(bytes: &[u8], maker: &Maker, stream: StreamId, shard: ShardId) -> Result<Producers, ProducersError> {
        FileHeader::expect(bytes, &maker.identity, &Owner::Producers { stream, shard })
            .map_err(ProducersError::Header)?;
        let (version, payload) =
            take_frame(FrameKind::Producers, &bytes[BLOCK_BYTES..]).map_err(ProducersError::Frame)?;
        if version != VERSION {
            return Err(ProducersError::Frame(FrameError::Version(version)));
        }
        let content = |what| ProducersError::Frame(FrameError::Content(what));
        let producers = read(&payload).map_err(|_| content("the list of producers"))?;
        for known in &producers.known {
            let rising = known
                .seen
                .windows(2)
                .all(|pair| pair[0].base_sequence < pair[1].base_sequence && pair[0].base_offset < pair[1].base_offset);
            let last = known.seen.last();
            let ends =
                last.is_none_or(|it| it.base_sequence.0.checked_add(u64::from(it.record_count)) == Some(known.next.0));
            if !rising || !ends {
                return Err(content("the batches of a producer"));
            }
        }
        Ok(producers)
    }
}

fn read(payload: &[u8]) -> Result<Producers, DecodeError> {
    let mut reader = Reader::new(payload);
    let mut producers =
        Producers { through: Offset(reader.u64()?), lineage: Lineage(reader.u32()?), known: Vec::new() };
    let count = reader.u32()? as usize;
    // The count is believed as far as bytes are there.
    producers.known.reserve(count.min(payload.len() / PRODUCER_BYTES));
    for _ in 0..count {
        let mut producer = KnownProducer {
            id: ProducerId(reader.u64()?),
            epoch: ProducerEpoch(reader.u32()?),
            next: Sequence(reader.u64()?),
            last_append: Timestamp(reader.u64()?),
            seen: Vec::new(),
        };
        let seen = reader.u32()? as usize;
        producer.seen.reserve(seen.min(reader.rest().len() / SEEN_BYTES));
        for _ in 0..seen {
            producer.seen.push(SeenBatch {
                base_sequence: Sequence(reader.u64()?),
                record_count: reader.u32()?,
                crc: reader.u32()?,
                base_offset: Offset(reader.u64()?),
            });
        }
        producers.known.push(producer);
    }
    reader.finish()?;
    Ok(producers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::header::{Identity, Region};
    use felix_protocol::ids::{ClusterId, NodeId, NodeSession};

    fn maker() -> Maker {
        let identity = Identity { cluster: ClusterId(1), node: NodeId(2), region: Region::new("eu").unwrap() };
        Maker { identity, session: NodeSession(3) }
    }

    fn some() -> Producers {
        let seen = |sequence, offset| SeenBatch {
            base_sequence: Sequence(sequence),
            record_count: 2,
            crc: 7,
            base_offset: Offset(offset),
        };
        let producer = |id, seen: Vec<SeenBatch>| KnownProducer {
            id: ProducerId(id),
            epoch: ProducerEpoch(1),
            next: Sequence(seen.last().map_or(9, |it| it.base_sequence.0 + 2)),
            last_append: Timestamp(5),
            seen,
        };
        let known = vec![producer(1, vec![seen(0, 10), seen(2, 14)]), producer(2, vec![])];
        Producers { through: Offset(20), lineage: Lineage(4), known }
    }

    #[test]
    fn what_was_written_is_read_and_damage_is_not() {
        let (stream, shard) = (StreamId(8), ShardId(9));
        let bytes = some().encode(&maker(), stream, shard);
        assert_eq!(Producers::decode(&bytes, &maker(), stream, shard), Ok(some()));
        assert!(Producers::decode(&bytes, &maker(), stream, ShardId(10)).is_err(), "of another shard");
        for end in 0..bytes.len() {
            assert!(Producers::decode(&bytes[..end], &maker(), stream, shard).is_err(), "cut at {end}");
        }
        for at in (0..BLOCK_BYTES).step_by(61).chain(BLOCK_BYTES..bytes.len()) {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(Producers::decode(&bad, &maker(), stream, shard).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_list_that_makes_no_sense_is_refused() {
        let (stream, shard) = (StreamId(8), ShardId(9));
        let mut bad = some();
        bad.known[0].seen.swap(0, 1);
        assert!(Producers::decode(&bad.encode(&maker(), stream, shard), &maker(), stream, shard).is_err());
        let mut bad = some();
        bad.known[0].next = Sequence(99);
        assert!(Producers::decode(&bad.encode(&maker(), stream, shard), &maker(), stream, shard).is_err());
    }
}
