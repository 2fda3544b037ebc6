//! **What**: the whole state as bytes and back.
//!
//! ```text
//! frame header (type 4)  | rkyv archive of v1::Snapshot, little-endian, 32-bit relative pointers
//! frame header (type 10) | rkyv archive of v2::Snapshot: only if a stream has settings that v1 has no place for
//! frame header (type 11) | rkyv archive of v3::Snapshot: only if the files of a shard were made
//! ```
//!
//! **Invariants**: equal states have equal bytes, and `decode(encode(state)) == state`; a state that leaves `decode`
//! satisfies `invariants.rs`. Sums are not stored, they are counted again.
//!
//! **Never**: access to an archive that bytecheck has not walked; a change of a type in `v1`, `v2` or `v3`.
//!
//! **See**: `snapshot/v1.rs`, `v2.rs` and `v3.rs` there for the frozen types, `member.rs` for when one is made.

pub mod v1;
pub mod v2;
pub mod v3;

use crate::framed::{FrameError, FrameKind, open, seal};
use crate::idempotency::{Idempotency, Remembered};
use crate::state::{Namespace, Next, ProducerBlock, Refused, State, Tenant, add_usage};
use crate::watch::{PlacedStream, ShardPlace};
use felix_protocol::codec::Writer;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::ids::{CoreId, NodeSession, ProducerId, ShardId, ShardIndex, StreamId};
use felix_protocol::metadata::{Durability, Reply, StreamInfo, StreamSpec, TenantLimits};
use felix_protocol::names::{NamespaceName, StreamName};
use felix_protocol::position::{Epoch, Lineage};
use felix_protocol::time::Timestamp;
use rkyv::rancor::Failure;
use rkyv::util::AlignedVec;
use std::collections::BTreeMap;

/// Where a frame says its kind.
const KIND_AT: usize = 5;

/// Why a state was not stored or not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotError {
    /// The frame around it is damaged, foreign or too large.
    Frame(FrameError),
    /// The archive cannot be written: over the 2 GiB that its pointers reach.
    NotArchivable,
    /// The frame is whole, but its body is no archive of this version.
    NotAnArchive,
    /// An archive whose content cannot be a state; the text names what is broken.
    Broken(&'static str),
}

impl From<FrameError> for SnapshotError {
    fn from(error: FrameError) -> SnapshotError {
        SnapshotError::Frame(error)
    }
}

impl std::fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SnapshotError::Frame(error) => error.fmt(f),
            SnapshotError::NotArchivable => f.write_str("the metadata is too large for a snapshot"),
            SnapshotError::NotAnArchive => f.write_str("the body is no snapshot of version 1"),
            SnapshotError::Broken(what) => write!(f, "the snapshot contradicts itself: {what}"),
        }
    }
}

impl std::error::Error for SnapshotError {}

/// The state as a frame.
pub fn encode(state: &State) -> Result<Vec<u8>, SnapshotError> {
    let (base, settings, made) = (freeze(state), freeze_settings(state), freeze_made(state));
    // What the older build reads is written as long as it says everything.
    let (kind, archive) = if !made.is_empty() {
        (FrameKind::StateSnapshot3, rkyv::to_bytes::<Failure>(&v3::Snapshot { base, settings, made }))
    } else if !settings.is_empty() {
        (FrameKind::StateSnapshot2, rkyv::to_bytes::<Failure>(&v2::Snapshot { base, settings }))
    } else {
        (FrameKind::StateSnapshot, rkyv::to_bytes::<Failure>(&base))
    };
    let archive = archive.map_err(|_| SnapshotError::NotArchivable)?;
    Ok(seal(kind, |out| out.put(&archive))?)
}

/// The state of a frame.
pub fn decode(frame: &[u8]) -> Result<State, SnapshotError> {
    let later = [FrameKind::StateSnapshot2, FrameKind::StateSnapshot3];
    let kind = later.into_iter().find(|it| frame.get(KIND_AT) == Some(&(*it as u8)));
    let kind = kind.unwrap_or(FrameKind::StateSnapshot);
    let body = open(kind, frame)?;
    // The archive wants an alignment that a slice does not promise.
    let mut archive = AlignedVec::<16>::with_capacity(body.len());
    archive.extend_from_slice(body);
    let foreign = |_| SnapshotError::NotAnArchive;
    let (base, settings, made) = match kind {
        FrameKind::StateSnapshot3 => {
            let frozen = rkyv::from_bytes::<v3::Snapshot, Failure>(&archive).map_err(foreign)?;
            (frozen.base, frozen.settings, frozen.made)
        }
        FrameKind::StateSnapshot2 => {
            let frozen = rkyv::from_bytes::<v2::Snapshot, Failure>(&archive).map_err(foreign)?;
            (frozen.base, frozen.settings, Vec::new())
        }
        _ => (rkyv::from_bytes::<v1::Snapshot, Failure>(&archive).map_err(foreign)?, Vec::new(), Vec::new()),
    };
    let later = Later::new(settings, kind == FrameKind::StateSnapshot2)?;
    let mut state = thaw(base, &later).map_err(SnapshotError::Broken)?;
    thaw_made(&mut state, &made, kind == FrameKind::StateSnapshot3).map_err(SnapshotError::Broken)?;
    state.check_invariants().map_err(SnapshotError::Broken)?;
    Ok(state)
}

fn freeze(state: &State) -> v1::Snapshot {
    v1::Snapshot {
        version: state.version,
        routing_version: state.routing_version,
        next_stream: state.next.stream,
        next_shard: state.next.shard,
        next_producer: state.next.producer,
        next_lineage: state.next.lineage,
        cores: state.cores(),
        nodes: state.nodes.iter().map(|(node, session)| v1::Node { node: *node, session: session.0 }).collect(),
        tenants: state.tenants.iter().map(|(name, it)| freeze_tenant(name, &it.limits)).collect(),
        namespaces: state.namespaces.keys().map(ToString::to_string).collect(),
        streams: state.streams.values().map(freeze_stream).collect(),
        outcomes: state.idempotency.iter().map(|(key, it)| freeze_outcome(key, it)).collect(),
    }
}

fn freeze_tenant(name: &str, limits: &TenantLimits) -> v1::Tenant {
    v1::Tenant {
        name: name.to_string(),
        streams_max: limits.streams_max,
        shards_max: limits.shards_max,
        retained_bytes_max: limits.retained_bytes_max,
    }
}

fn freeze_info(info: &StreamInfo) -> v1::StreamInfo {
    v1::StreamInfo {
        id: info.id.0,
        name: info.name.to_string(),
        shards: info.spec.shards,
        durability: info.spec.durability as u8,
        retention_bytes: info.spec.retention_bytes,
        retention_age_ms: info.spec.retention_age_ms,
        batch_bytes_max: info.spec.batch_bytes_max,
        version: info.version,
        created: info.created.0,
    }
}

/// The settings that version 1 has no place for, of every stream that is there or in a remembered answer.
fn freeze_settings(state: &State) -> Vec<v2::StreamSettings> {
    let answers = state.idempotency.iter().filter_map(|(_, it)| match &it.outcome {
        Ok(Reply::StreamDone { stream, .. }) => Some(stream),
        _ => None,
    });
    let infos = state.streams.values().map(|it| &it.info).chain(answers);
    let rows: BTreeMap<u64, v2::StreamSettings> = infos
        .filter(|info| {
            let v1_only = StreamSpec {
                shards: info.spec.shards,
                durability: info.spec.durability,
                retention_bytes: info.spec.retention_bytes,
                retention_age_ms: info.spec.retention_age_ms,
                batch_bytes_max: info.spec.batch_bytes_max,
                ..StreamSpec::default()
            };
            info.spec != v1_only
        })
        .map(|info| {
            let StreamSpec { interval_ms, compact, tombstone_grace_ms, encrypt, .. } = info.spec;
            let id = info.id.0;
            (id, v2::StreamSettings { id, interval_ms, compact, tombstone_grace_ms, encrypt })
        })
        .collect();
    rows.into_values().collect()
}

/// The shards whose files were made, in order of their ids, which is not that of the streams' names.
fn freeze_made(state: &State) -> Vec<u64> {
    let shards = state.streams.values().flat_map(|it| &it.shards);
    let mut made: Vec<u64> = shards.filter(|it| it.made).map(|it| it.shard.0).collect();
    made.sort_unstable();
    made
}

/// One form only: rising ids, some of them in a version 3, and each that of a shard.
fn thaw_made(state: &mut State, made: &[u64], expected: bool) -> Result<(), &'static str> {
    if made.is_empty() && expected || made.windows(2).any(|it| it[0] >= it[1]) {
        return Err("made shards");
    }
    let mut found = 0;
    for shard in state.streams.values_mut().flat_map(|it| &mut it.shards) {
        shard.made = made.binary_search(&shard.shard.0).is_ok();
        found += usize::from(shard.made);
    }
    if found == made.len() { Ok(()) } else { Err("made shards") }
}

/// The rows of version 2 by stream.
struct Later(BTreeMap<u64, v2::StreamSettings>);

impl Later {
    /// One form only: rising ids, and some row in a version 2.
    fn new(rows: Vec<v2::StreamSettings>, expected: bool) -> Result<Later, SnapshotError> {
        if rows.is_empty() && expected || rows.windows(2).any(|it| it[0].id >= it[1].id) {
            return Err(SnapshotError::Broken("later settings of streams"));
        }
        Ok(Later(rows.into_iter().map(|it| (it.id, it)).collect()))
    }
}

fn freeze_stream(stream: &PlacedStream) -> v1::Stream {
    let shard = |it: &ShardPlace| v1::Shard {
        shard: it.shard.0,
        range_start: it.range_start,
        epoch: it.epoch.0,
        lineage: it.lineage.0,
        core: it.core.0,
    };
    v1::Stream { info: freeze_info(&stream.info), shards: stream.shards.iter().map(shard).collect() }
}

fn freeze_outcome(key: u128, remembered: &Remembered) -> v1::Outcome {
    let answer = match &remembered.outcome {
        Ok(Reply::StreamDone { stream, .. }) => v1::Answer::Stream(freeze_info(stream)),
        Ok(_) => v1::Answer::Done,
        Err(refused) => {
            v1::Answer::Refused(v1::Refusal { code: refused.code.number(), detail: refused.detail.clone() })
        }
    };
    let producers =
        remembered.producers.map(|it| v1::Producers { core: it.core.0, first: it.first.0, count: it.count });
    v1::Outcome { key, fingerprint: remembered.fingerprint, version: remembered.version, answer, producers }
}

fn thaw(frozen: v1::Snapshot, later: &Later) -> Result<State, &'static str> {
    let mut state = State {
        version: frozen.version,
        routing_version: frozen.routing_version,
        next: Next {
            stream: frozen.next_stream,
            shard: frozen.next_shard,
            producer: frozen.next_producer,
            lineage: frozen.next_lineage,
        },
        loads: vec![0; usize::from(frozen.cores)],
        ..State::new()
    };
    for it in frozen.nodes {
        let former = state.nodes.insert(it.node, NodeSession(it.session));
        absent(former, "node twice")?;
    }
    for it in frozen.tenants {
        let v1::Tenant { name, streams_max, shards_max, retained_bytes_max } = it;
        let tenant = Tenant::new(TenantLimits { streams_max, shards_max, retained_bytes_max });
        absent(state.tenants.insert(name, tenant), "tenant twice")?;
    }
    for name in &frozen.namespaces {
        let name = NamespaceName::parse(name).map_err(|_| "name of a namespace")?;
        state.tenants.get_mut(name.tenant()).ok_or("namespace without tenant")?.namespaces += 1;
        absent(state.namespaces.insert(name, Namespace::default()), "namespace twice")?;
    }
    for it in frozen.streams {
        let stream = thaw_stream(it, later)?;
        let name = stream.info.name.clone();
        let tenant = state.tenants.get_mut(name.tenant()).ok_or("stream without tenant")?;
        tenant.usage = add_usage(tenant.usage, &stream.info.spec).ok_or("usage that cannot be counted")?;
        state.namespaces.get_mut(name.namespace()).ok_or("stream without namespace")?.streams += 1;
        for shard in &stream.shards {
            *state.loads.get_mut(usize::from(shard.core.0)).ok_or("shard on a core that is not there")? += 1;
        }
        absent(state.streams.insert(name, stream), "stream twice")?;
    }
    state.idempotency = thaw_outcomes(frozen.outcomes, later)?;
    Ok(state)
}

fn absent<T>(former: Option<T>, what: &'static str) -> Result<(), &'static str> {
    former.map_or(Ok(()), |_| Err(what))
}

fn thaw_info(frozen: v1::StreamInfo, later: &Later) -> Result<StreamInfo, &'static str> {
    let base = later.0.get(&frozen.id).map_or_else(StreamSpec::default, |it| StreamSpec {
        interval_ms: it.interval_ms,
        compact: it.compact,
        tombstone_grace_ms: it.tombstone_grace_ms,
        encrypt: it.encrypt,
        ..StreamSpec::default()
    });
    Ok(StreamInfo {
        id: StreamId(frozen.id),
        name: StreamName::parse(&frozen.name).map_err(|_| "name of a stream")?,
        spec: StreamSpec {
            shards: frozen.shards,
            durability: Durability::from_number(frozen.durability).ok_or("durability")?,
            retention_bytes: frozen.retention_bytes,
            retention_age_ms: frozen.retention_age_ms,
            batch_bytes_max: frozen.batch_bytes_max,
            ..base
        },
        version: frozen.version,
        created: Timestamp(frozen.created),
    })
}

fn thaw_stream(frozen: v1::Stream, later: &Later) -> Result<PlacedStream, &'static str> {
    let shards = (0..).zip(frozen.shards).map(|(index, it)| ShardPlace {
        index: ShardIndex(index),
        shard: ShardId(it.shard),
        core: CoreId(it.core),
        range_start: it.range_start,
        epoch: Epoch(it.epoch),
        lineage: Lineage(it.lineage),
        made: false,
    });
    Ok(PlacedStream { info: thaw_info(frozen.info, later)?, shards: shards.collect() })
}

fn thaw_outcomes(frozen: Vec<v1::Outcome>, later: &Later) -> Result<Idempotency, &'static str> {
    if frozen.len() > crate::limits::IDEMPOTENCY_KEYS_MAX {
        return Err("number of idempotency keys");
    }
    let mut table = Idempotency::default();
    for it in frozen {
        if table.find(it.key).is_some() {
            return Err("idempotency key twice");
        }
        let version = it.version;
        let outcome = match it.answer {
            v1::Answer::Done => Ok(Reply::Done { version }),
            v1::Answer::Stream(info) => Ok(Reply::StreamDone { version, stream: thaw_info(info, later)? }),
            v1::Answer::Refused(v1::Refusal { code, detail }) => {
                Err(Refused { code: ErrorCode::from_number(code), detail })
            }
        };
        let block =
            |it: v1::Producers| ProducerBlock { core: CoreId(it.core), first: ProducerId(it.first), count: it.count };
        let producers = it.producers.map(block);
        table.remember(it.key, Remembered { fingerprint: it.fingerprint, version, outcome, producers });
    }
    Ok(table)
}

#[cfg(test)]
mod tests;
