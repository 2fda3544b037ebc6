//! **What**: an entry of the metadata log: a command, who asked for it, when, and under which idempotency key.
//!
//! ```text
//! frame header                  framed.rs, type 1
//! u128 idempotency_key          0: repeats are not recognised
//! u64  issued_at                nanoseconds since the Unix epoch, by the clock of the proposer
//! text principal                u16 bytes, UTF-8
//! u8   source                   0 a client's command, 1 an internal one
//! u16  command_bytes, command   source 0: felix_protocol::metadata::Command; source 1: below
//! TLVs to the end               unknown optional ones are skipped, unknown mandatory ones refused
//!
//! internal = u8 kind | fields   1 SetCoreCount u8       2 AllocateProducers u8 core, u32 count
//!                               3 StartNode u128, u64   4 RaiseFloors u64 ids, u32 lineage
//!                               5 RestoreStream StreamInfo, u64 first shard, u64 epoch, u32 lineage
//!                               6 ShardsMade u16 count, u64 shards
//! ```
//!
//! **Invariants**: these bytes cross versions in a rolling upgrade, so the layout is frozen and pinned by golden
//! files; `decode` never panics and allocates no more than the bytes justify.
//!
//! **Never**: rkyv; a field whose meaning depends on who reads it.
//!
//! **See**: `state.rs`, which applies entries.

use crate::authorise::Principal;
use crate::framed::{FrameError, FrameKind, open, seal};
use crate::limits::{COMMAND_BYTES_MAX, PRINCIPAL_BYTES_MAX, SHARDS_MADE_MAX};
use felix_protocol::codec::{DecodeError, Reader, Writer};
use felix_protocol::envelope::check_tlvs;
use felix_protocol::ids::{CoreId, NodeId, NodeSession, ShardId};
use felix_protocol::metadata::{Command, StreamInfo};
use felix_protocol::position::{Epoch, Lineage};
use felix_protocol::routing::key_hash;
use felix_protocol::time::Timestamp;

const SOURCE_CLIENT: u8 = 0;
const SOURCE_INTERNAL: u8 = 1;

/// A stream of a backup, with the ids and the lineage that it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoredStream {
    /// Id, name, settings and time of its creation; the version is that of the entry.
    pub info: StreamInfo,
    /// Log of shard 0; those of the others follow.
    pub shard_first: ShardId,
    /// Leader generation of all shards.
    pub epoch: Epoch,
    /// Incarnation of the data of all shards.
    pub lineage: Lineage,
}

/// A command that no client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Internal {
    /// The broker has this many cores. Shards move only as far as they must. Only between starts.
    SetCoreCount {
        /// 1 to `CORES_MAX`.
        cores: u8,
    },
    /// A core needs producer ids to give away.
    AllocateProducers {
        /// The core.
        core: CoreId,
        /// How many, 1 to `PRODUCER_BLOCK_MAX`.
        count: u32,
    },
    /// A node's process started: every ephemeral shard lost its data and takes a new lineage.
    StartNode {
        /// The node.
        node: NodeId,
        /// This start, greater than every earlier one of the node.
        session: NodeSession,
    },
    /// Ids and lineages below these may have been used by metadata that is lost; never give them again. Floors that are
    /// already passed change nothing.
    RaiseFloors {
        /// Lowest stream, shard and producer id to give from now on.
        ids: u64,
        /// Lowest lineage to give from now on.
        lineage: Lineage,
    },
    /// Makes a stream again from a backup, in its namespace, which exists. Its ids must be free; ids and lineages that are
    /// given later are greater.
    RestoreStream(Box<RestoredStream>),
    /// The files of these durable shards are on disk: a start that does not find them has lost them. Shards that are not
    /// there are passed over, since their stream may have been deleted meanwhile.
    ShardsMade {
        /// 1 to `SHARDS_MADE_MAX`.
        shards: Vec<ShardId>,
    },
}

impl Internal {
    fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Internal::RestoreStream(ref stream) => {
                let RestoredStream { info, shard_first, epoch, lineage } = &**stream;
                out.put_u8(5);
                info.encode(out);
                out.put_u64(shard_first.0);
                out.put_u64(epoch.0);
                out.put_u32(lineage.0);
            }
            Internal::ShardsMade { ref shards } => {
                out.put_u8(6);
                // More than fit are more than a command may have bytes, so `Entry::encode` refuses them.
                out.put_u16(shards.len() as u16);
                shards.iter().for_each(|shard| out.put_u64(shard.0));
            }
            Internal::SetCoreCount { cores } => {
                out.put_u8(1);
                out.put_u8(cores);
            }
            Internal::AllocateProducers { core, count } => {
                out.put_u8(2);
                out.put_u8(core.0);
                out.put_u32(count);
            }
            Internal::StartNode { node, session } => {
                out.put_u8(3);
                out.put_u128(node.0);
                out.put_u64(session.0);
            }
            Internal::RaiseFloors { ids, lineage } => {
                out.put_u8(4);
                out.put_u64(ids);
                out.put_u32(lineage.0);
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Internal, DecodeError> {
        Ok(match reader.u8()? {
            1 => Internal::SetCoreCount { cores: reader.u8()? },
            2 => Internal::AllocateProducers { core: CoreId(reader.u8()?), count: reader.u32()? },
            3 => Internal::StartNode { node: NodeId(reader.u128()?), session: NodeSession(reader.u64()?) },
            4 => Internal::RaiseFloors { ids: reader.u64()?, lineage: Lineage(reader.u32()?) },
            5 => Internal::RestoreStream(Box::new(RestoredStream {
                info: StreamInfo::decode(reader)?,
                shard_first: ShardId(reader.u64()?),
                epoch: Epoch(reader.u64()?),
                lineage: Lineage(reader.u32()?),
            })),
            6 => {
                let count = reader.u16()?;
                if count == 0 || usize::from(count) > SHARDS_MADE_MAX {
                    return Err(DecodeError::BadField("count of made shards"));
                }
                let shards = (0..count).map(|_| Ok(ShardId(reader.u64()?))).collect::<Result<_, DecodeError>>()?;
                Internal::ShardsMade { shards }
            }
            _ => return Err(DecodeError::BadField("internal command kind")),
        })
    }
}

/// What an entry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// What a client asked for.
    Client(Command),
    /// What the broker itself needs.
    Internal(Internal),
}

impl Action {
    fn source(&self) -> u8 {
        match self {
            Action::Client(_) => SOURCE_CLIENT,
            Action::Internal(_) => SOURCE_INTERNAL,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        match self {
            Action::Client(command) => command.encode(&mut bytes),
            Action::Internal(command) => command.encode(&mut bytes),
        }
        bytes
    }

    fn decode(source: u8, bytes: &[u8]) -> Result<Action, DecodeError> {
        let mut reader = Reader::new(bytes);
        let action = match source {
            SOURCE_CLIENT => Action::Client(Command::decode(&mut reader)?),
            SOURCE_INTERNAL => Action::Internal(Internal::decode(&mut reader)?),
            _ => return Err(DecodeError::BadField("source")),
        };
        reader.finish()?;
        Ok(action)
    }
}

/// One entry of the metadata log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// A repeat of the same key has no second effect; 0: no key.
    pub idempotency_key: u128,
    /// When it was proposed.
    pub issued_at: Timestamp,
    /// Who asked.
    pub principal: Principal,
    /// What is asked for.
    pub action: Action,
    fingerprint: u64,
}

impl Entry {
    /// Puts an entry together.
    pub fn new(idempotency_key: u128, issued_at: Timestamp, principal: Principal, action: Action) -> Entry {
        let fingerprint = fingerprint(&principal, action.source(), &action.encode());
        Entry { idempotency_key, issued_at, principal, action, fingerprint }
    }

    /// Hash of principal and command as their bytes were: tells a repeat from another command under the same key. Not
    /// against attackers: both commands come from whoever chose the key.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The frame. Refused only if the command is over its limit, which no command of a decoded frame is.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let command = self.action.encode();
        if command.len() > COMMAND_BYTES_MAX {
            return Err(FrameError::TooLarge { found: command.len(), max: COMMAND_BYTES_MAX });
        }
        seal(FrameKind::Entry, |out| {
            out.put_u128(self.idempotency_key);
            out.put_u64(self.issued_at.0);
            out.put_bytes16(self.principal.as_str().as_bytes());
            out.put_u8(self.action.source());
            out.put_bytes16(&command);
        })
    }

    /// Reads a frame.
    pub fn decode(frame: &[u8]) -> Result<Entry, FrameError> {
        let mut reader = Reader::new(open(FrameKind::Entry, frame)?);
        let idempotency_key = reader.u128()?;
        let issued_at = Timestamp(reader.u64()?);
        let principal =
            Principal::from_log(reader.text16(PRINCIPAL_BYTES_MAX)?).map_err(|_| DecodeError::BadField("principal"))?;
        let source = reader.u8()?;
        let command = reader.bytes16(COMMAND_BYTES_MAX)?;
        let action = Action::decode(source, command)?;
        check_tlvs(reader.rest())?;
        // Of the bytes as they are, not as this build would write them: nodes of two builds must agree.
        let fingerprint = fingerprint(&principal, source, command);
        Ok(Entry { idempotency_key, issued_at, principal, action, fingerprint })
    }
}

fn fingerprint(principal: &Principal, source: u8, command: &[u8]) -> u64 {
    let name = principal.as_str().as_bytes();
    let mut bytes = Vec::with_capacity(3 + name.len() + command.len());
    bytes.put_bytes16(name);
    bytes.put_u8(source);
    bytes.put(command);
    key_hash(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framed::HEADER_BYTES;
    use felix_protocol::envelope::TLV_MANDATORY;
    use felix_protocol::ids::StreamId;
    use felix_protocol::metadata::{StreamSpec, TenantLimits};
    use felix_protocol::names::StreamName;

    fn entry(action: Action) -> Entry {
        Entry::new(7, Timestamp(8), Principal::named("ann").unwrap(), action)
    }

    fn create() -> Action {
        let name = StreamName::parse("a/b/c").unwrap();
        Action::Client(Command::CreateStream { name, spec: StreamSpec::default(), create_parents: true })
    }

    /// The frame of `entry` with more bytes at the end of its body, sealed anew.
    fn with_tail(entry: &Entry, tail: &[u8]) -> Vec<u8> {
        let frame = entry.encode().unwrap();
        seal(FrameKind::Entry, |out| {
            out.put(&frame[HEADER_BYTES..]);
            out.put(tail);
        })
        .unwrap()
    }

    #[test]
    fn every_action_round_trips() {
        for action in [
            create(),
            Action::Client(Command::CreateTenant { tenant: "t".into(), limits: TenantLimits::default() }),
            Action::Internal(Internal::SetCoreCount { cores: 9 }),
            Action::Internal(Internal::AllocateProducers { core: CoreId(3), count: 70_000 }),
            Action::Internal(Internal::StartNode { node: NodeId(u128::MAX - 1), session: NodeSession(5) }),
            Action::Internal(Internal::RaiseFloors { ids: u64::MAX, lineage: Lineage(6) }),
            Action::Internal(Internal::RestoreStream(Box::new(RestoredStream {
                info: StreamInfo {
                    id: StreamId(4),
                    name: StreamName::parse("a/b/c").unwrap(),
                    spec: StreamSpec { shards: 3, compact: true, ..StreamSpec::default() },
                    version: 8,
                    created: Timestamp(9),
                },
                shard_first: ShardId(5),
                epoch: Epoch(u64::MAX),
                lineage: Lineage(u32::MAX),
            }))),
            Action::Internal(Internal::ShardsMade { shards: vec![ShardId(1), ShardId(u64::MAX)] }),
            Action::Internal(Internal::ShardsMade { shards: (1..=SHARDS_MADE_MAX as u64).map(ShardId).collect() }),
        ] {
            let entry = entry(action);
            assert_eq!(Entry::decode(&entry.encode().unwrap()), Ok(entry));
        }
    }

    #[test]
    fn an_unknown_optional_tlv_is_skipped_and_a_mandatory_one_refused() {
        let entry = entry(create());
        let tlv = |kind: u16| {
            let mut out = Vec::new();
            out.put_u16(kind);
            out.put_bytes16(b"later");
            out
        };
        assert_eq!(Entry::decode(&with_tail(&entry, &tlv(0x55))), Ok(entry.clone()));
        let kind = 0x55 | TLV_MANDATORY;
        assert_eq!(
            Entry::decode(&with_tail(&entry, &tlv(kind))),
            Err(FrameError::Body(DecodeError::UnknownMandatoryTlv(kind)))
        );
        assert_eq!(Entry::decode(&with_tail(&entry, &[1])), Err(FrameError::Body(DecodeError::Truncated)));
    }

    #[test]
    fn a_fingerprint_tells_commands_and_principals_apart() {
        let first = entry(create());
        let delete = entry(Action::Client(Command::DeleteStream { name: StreamName::parse("a/b/c").unwrap() }));
        assert_ne!(first.fingerprint(), delete.fingerprint());
        let other = Entry::new(7, Timestamp(8), Principal::admin(), create());
        assert_ne!(first.fingerprint(), other.fingerprint());
        let later = Entry::new(9, Timestamp(10), Principal::named("ann").unwrap(), create());
        assert_eq!(first.fingerprint(), later.fingerprint());
    }

    #[test]
    fn a_command_with_bytes_left_over_is_refused() {
        let mut bytes = entry(create()).action.encode();
        bytes.put_u8(0);
        assert_eq!(Action::decode(SOURCE_CLIENT, &bytes), Err(DecodeError::TrailingBytes));
        assert_eq!(Action::decode(2, &bytes), Err(DecodeError::BadField("source")));
        assert_eq!(Action::decode(SOURCE_INTERNAL, &[9]), Err(DecodeError::BadField("internal command kind")));
    }

    #[test]
    fn made_shards_are_as_many_as_a_command_holds() {
        let made = |count: u64| Internal::ShardsMade { shards: (1..=count).map(ShardId).collect() };
        let (found, max) = (COMMAND_BYTES_MAX + 3, COMMAND_BYTES_MAX);
        let over = entry(Action::Internal(made(SHARDS_MADE_MAX as u64 + 1))).encode();
        assert_eq!(over, Err(FrameError::TooLarge { found, max }));
        let decode = |bytes: &[u8]| Action::decode(SOURCE_INTERNAL, bytes);
        for count in [0, SHARDS_MADE_MAX as u16 + 1, u16::MAX] {
            let bytes = [&[6][..], &count.to_le_bytes()].concat();
            assert_eq!(decode(&bytes), Err(DecodeError::BadField("count of made shards")));
        }
        assert_eq!(decode(&[6, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0]), Err(DecodeError::Truncated));
        assert_eq!(decode(&[6]), Err(DecodeError::Truncated));
    }
}
