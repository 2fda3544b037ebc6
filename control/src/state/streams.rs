//! **What**: the commands that touch streams and shards.
//!
//! **Invariants**: as in `state.rs`; whatever a Route says changes only together with `routing_version`.
//!
//! **Never**: a stream whose shards and settings disagree, a tenant over its limits.
//!
//! **See**: `placement.rs` (which core), `watch.rs` (what the cores are told).

use super::{Effects, Namespace, Refused, State, Tenant, Usage, refused, used_up};
use crate::command::RestoredStream;
use crate::limits::*;
use crate::placement::{place, re_place};
use crate::watch::{Change, PlacedStream, ShardPlace};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::ids::{CoreId, ShardId, ShardIndex, StreamId};
use felix_protocol::limits::SHARDS_MAX;
use felix_protocol::metadata::{Durability, Reply, StreamChanges, StreamInfo, StreamSpec, TenantLimits};
use felix_protocol::names::StreamName;
use felix_protocol::position::{Epoch, Lineage};
use felix_protocol::routing::even_range_start;
use felix_protocol::time::Timestamp;
use std::collections::BTreeSet;

/// What a client is told who wants a stream on disk of a broker that has no store for it.
pub const NOT_DURABLE: &str = "this broker keeps records in memory only; create the stream with --ephemeral";

/// Checks settings by themselves, against no tenant.
pub(crate) fn check_spec(spec: &StreamSpec) -> Result<(), Refused> {
    let invalid = |detail| refused(ErrorCode::InvalidArgument, detail);
    if spec.shards == 0 || spec.shards > SHARDS_MAX {
        return invalid(format!("{} shards, allowed are 1 to {SHARDS_MAX}", spec.shards));
    }
    if !(RETENTION_BYTES_MIN..=RETENTION_BYTES_MAX).contains(&spec.retention_bytes) {
        let found = spec.retention_bytes;
        return invalid(format!(
            "retention of {found} bytes, allowed are {RETENTION_BYTES_MIN} to {RETENTION_BYTES_MAX} per shard"
        ));
    }
    if let Some(found) = spec.retention_age_ms.filter(|age| *age < RETENTION_AGE_MS_MIN) {
        return invalid(format!("retention age of {found} ms, at least {RETENTION_AGE_MS_MIN} ms is allowed"));
    }
    if !(BATCH_BYTES_MIN..=BATCH_BYTES_MAX).contains(&spec.batch_bytes_max) {
        let found = spec.batch_bytes_max;
        return invalid(format!("batches of {found} bytes, allowed are {BATCH_BYTES_MIN} to {BATCH_BYTES_MAX}"));
    }
    check_storage(spec)
}

/// Checks the settings that only some durabilities have.
fn check_storage(spec: &StreamSpec) -> Result<(), Refused> {
    let invalid = |detail| refused(ErrorCode::InvalidArgument, detail);
    let found = spec.interval_ms;
    if spec.durability == Durability::Interval {
        if !(INTERVAL_MS_MIN..=INTERVAL_MS_MAX).contains(&found) {
            return invalid(format!(
                "an interval of {found} ms between syncs, allowed are {INTERVAL_MS_MIN} to {INTERVAL_MS_MAX} ms"
            ));
        }
    } else if found != StreamSpec::INTERVAL_MS_DEFAULT {
        return invalid(format!("an interval of {found} ms between syncs needs durability interval"));
    }
    if spec.durability == Durability::Ephemeral {
        for (asked, what) in [(spec.compact, "compaction"), (spec.encrypt, "encryption at rest")] {
            if asked {
                return invalid(format!("{what} needs a durable stream, this one is ephemeral"));
            }
        }
    }
    let found = spec.tombstone_grace_ms;
    if !spec.compact && found != StreamSpec::TOMBSTONE_GRACE_MS_DEFAULT {
        return invalid(format!("a tombstone grace of {found} ms needs compaction"));
    }
    if found > TOMBSTONE_GRACE_MS_MAX {
        return invalid(format!("a tombstone grace of {found} ms, at most {TOMBSTONE_GRACE_MS_MAX} ms are allowed"));
    }
    Ok(())
}

/// `usage` with a stream of these settings more. None if a count overflows.
pub(crate) fn add_usage(usage: Usage, spec: &StreamSpec) -> Option<Usage> {
    Some(Usage {
        streams: usage.streams.checked_add(1)?,
        shards: usage.shards.checked_add(spec.shards)?,
        retained_bytes: usage.retained_bytes.checked_add(spec.retention_bytes.checked_mul(spec.shards.into())?)?,
    })
}

/// `usage` without a stream of these settings, which it contains.
fn remove_usage(usage: Usage, spec: &StreamSpec) -> Usage {
    Usage {
        streams: usage.streams - 1,
        shards: usage.shards - spec.shards,
        retained_bytes: usage.retained_bytes - spec.retention_bytes * u64::from(spec.shards),
    }
}

fn check_quota(tenant: &str, limits: &TenantLimits, usage: Option<Usage>) -> Result<Usage, Refused> {
    let Some(usage) = usage else {
        return refused(ErrorCode::QuotaExceeded, format!("tenant {tenant} would have more than can be counted"));
    };
    for (what, found, allowed) in [
        ("streams", u64::from(usage.streams), u64::from(limits.streams_max)),
        ("shards", u64::from(usage.shards), u64::from(limits.shards_max)),
        ("bytes of retention", usage.retained_bytes, limits.retained_bytes_max),
    ] {
        if found > allowed {
            let detail = format!("tenant {tenant} would have {found} {what}, allowed are {allowed}");
            return refused(ErrorCode::QuotaExceeded, detail);
        }
    }
    Ok(usage)
}

impl State {
    /// Whether a stream could be made now, as far as the metadata tell. For what must be there before it is proposed;
    /// whether it is made is decided when it is applied.
    pub fn may_create_stream(&self, name: &StreamName, spec: &StreamSpec, create_parents: bool) -> Result<(), Refused> {
        self.check_create(name, spec, create_parents).map(|_| ())
    }

    /// The tenant's usage with the stream.
    fn check_create(&self, name: &StreamName, spec: &StreamSpec, create_parents: bool) -> Result<Usage, Refused> {
        check_spec(spec)?;
        if self.streams.contains_key(name) {
            return refused(ErrorCode::AlreadyExists, format!("stream {name} exists already"));
        }
        if !create_parents {
            self.tenant(name.tenant())?;
            self.namespace(name.namespace())?;
        }
        let (limits, usage) = match self.tenants.get(name.tenant()) {
            Some(tenant) => (tenant.limits, tenant.usage),
            None => (TenantLimits::default(), Usage::default()),
        };
        check_quota(name.tenant(), &limits, add_usage(usage, spec))
    }

    pub(super) fn create_stream(
        &mut self,
        name: &StreamName,
        spec: StreamSpec,
        create_parents: bool,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Result<Reply, Refused> {
        let usage = self.check_create(name, &spec, create_parents)?;
        let new_tenant = Tenant::new(TenantLimits::default());
        let (stream_id, shard_first, lineage) = (self.next.stream, self.next.shard, self.next.lineage);
        let Some(stream_next) = stream_id.checked_add(1) else { return used_up("stream ids") };
        let Some(shard_next) = shard_first.checked_add(spec.shards.into()) else { return used_up("shard ids") };
        let Some(lineage_next) = lineage.checked_add(1) else { return used_up("lineages") };

        // Nothing is refused from here on.
        self.next.stream = stream_next;
        self.next.shard = shard_next;
        self.next.lineage = lineage_next;
        self.routing_version += 1;
        self.tenants.entry(name.tenant().to_string()).or_insert(new_tenant).usage = usage;
        if !self.namespaces.contains_key(name.namespace()) {
            self.add_namespace(name.namespace());
        }
        self.namespaces.entry(name.namespace().clone()).or_default().streams += 1;
        let shards = (0..).zip(place(&mut self.loads, spec.shards));
        let shards = shards.map(|(index, core)| ShardPlace {
            index: ShardIndex(index),
            shard: ShardId(shard_first + u64::from(index)),
            core,
            range_start: even_range_start(ShardIndex(index), spec.shards),
            epoch: Epoch(1),
            lineage: Lineage(lineage),
            made: false,
        });
        let (id, version) = (StreamId(stream_id), self.version);
        let info = StreamInfo { id, name: name.clone(), spec, version, created: now };
        let stream = PlacedStream { info: info.clone(), shards: shards.collect() };
        self.streams.insert(name.clone(), stream.clone());
        effects.changes.push(Change::StreamPut { routing_version: self.routing_version, stream });
        Ok(Reply::StreamDone { version, stream: info })
    }

    /// A stream of a backup: as `create_stream`, but its ids and its lineage are given.
    pub(super) fn restore_stream(&mut self, stream: &RestoredStream, effects: &mut Effects) -> Result<Reply, Refused> {
        let RestoredStream { ref info, shard_first, epoch, lineage } = *stream;
        let (name, spec) = (&info.name, info.spec);
        check_spec(&spec)?;
        if self.streams.contains_key(name) {
            return refused(ErrorCode::AlreadyExists, format!("stream {name} exists already"));
        }
        let namespace = self.namespace(name.namespace())?.clone();
        let tenant = self.tenant(name.tenant())?;
        let usage = check_quota(name.tenant(), &tenant.limits, add_usage(tenant.usage, &spec))?;
        let (id, count) = (info.id.0, u64::from(spec.shards));
        let ends = (id.checked_add(1), shard_first.0.checked_add(count), lineage.0.checked_add(1));
        let (Some(stream_next), Some(shard_next), Some(lineage_next)) = ends else { return used_up("ids") };
        if id == 0 || shard_first.0 == 0 || epoch.0 == 0 || lineage.0 == 0 {
            return refused(ErrorCode::InvalidArgument, format!("stream {name} has an id, epoch or lineage of 0"));
        }
        let ours = shard_first.0..shard_next;
        let taken = self
            .streams
            .values()
            .find(|it| it.info.id == info.id || it.shards.iter().any(|shard| ours.contains(&shard.shard.0)));
        if let Some(other) = taken {
            let detail = format!("stream {name} has ids that are those of {}", other.info.name);
            return refused(ErrorCode::AlreadyExists, detail);
        }

        // Nothing is refused from here on.
        self.next.stream = self.next.stream.max(stream_next);
        self.next.shard = self.next.shard.max(shard_next);
        self.next.lineage = self.next.lineage.max(lineage_next);
        self.routing_version += 1;
        self.tenants.get_mut(name.tenant()).expect("it was found").usage = usage;
        self.namespaces.insert(name.namespace().clone(), Namespace { streams: namespace.streams + 1 });
        let shards = (0..).zip(place(&mut self.loads, spec.shards)).map(|(index, core)| ShardPlace {
            index: ShardIndex(index),
            shard: ShardId(shard_first.0 + u64::from(index)),
            core,
            range_start: even_range_start(ShardIndex(index), spec.shards),
            epoch,
            lineage,
            made: false,
        });
        let version = self.version;
        let info = StreamInfo { version, ..info.clone() };
        let stream = PlacedStream { info: info.clone(), shards: shards.collect() };
        self.streams.insert(name.clone(), stream.clone());
        effects.changes.push(Change::StreamPut { routing_version: self.routing_version, stream });
        Ok(Reply::StreamDone { version, stream: info })
    }

    pub(super) fn alter_stream(
        &mut self,
        name: &StreamName,
        changes: &StreamChanges,
        if_version: Option<u64>,
        effects: &mut Effects,
    ) -> Result<Reply, Refused> {
        let Some(stream) = self.streams.get_mut(name) else {
            return refused(ErrorCode::NotFound, format!("there is no stream {name}"));
        };
        let found = stream.info.version;
        if let Some(expected) = if_version.filter(|expected| *expected != found) {
            let detail = format!("stream {name} has version {found}, expected {expected}; describe it and try again");
            return refused(ErrorCode::VersionMismatch, detail);
        }
        let old = stream.info.spec;
        let spec = StreamSpec {
            retention_bytes: changes.retention_bytes.unwrap_or(old.retention_bytes),
            retention_age_ms: changes.retention_age_ms.unwrap_or(old.retention_age_ms),
            batch_bytes_max: changes.batch_bytes_max.unwrap_or(old.batch_bytes_max),
            ..old
        };
        check_spec(&spec)?;
        let tenant = self.tenants.get_mut(name.tenant()).expect("a stream has a tenant");
        let usage = add_usage(remove_usage(tenant.usage, &old), &spec);
        tenant.usage = check_quota(name.tenant(), &tenant.limits, usage)?;
        stream.info.spec = spec;
        stream.info.version = self.version;
        // The one setting that a Route carries.
        if spec.batch_bytes_max != old.batch_bytes_max {
            self.routing_version += 1;
        }
        let (version, stream) = (self.version, stream.clone());
        let info = stream.info.clone();
        effects.changes.push(Change::StreamPut { routing_version: self.routing_version, stream });
        Ok(Reply::StreamDone { version, stream: info })
    }

    pub(super) fn delete_stream(&mut self, name: &StreamName, effects: &mut Effects) -> Result<Reply, Refused> {
        let Some(stream) = self.streams.remove(name) else {
            return refused(ErrorCode::NotFound, format!("there is no stream {name}"));
        };
        self.routing_version += 1;
        let tenant = self.tenants.get_mut(name.tenant()).expect("a stream has a tenant");
        tenant.usage = remove_usage(tenant.usage, &stream.info.spec);
        self.namespaces.get_mut(name.namespace()).expect("a stream has a namespace").streams -= 1;
        for shard in &stream.shards {
            self.loads[usize::from(shard.core.0)] -= 1;
        }
        let (routing_version, id) = (self.routing_version, stream.info.id);
        effects.changes.push(Change::StreamRemoved { routing_version, id, name: name.clone() });
        self.done()
    }

    /// The files of durable shards are there. Says nothing of what a Route says.
    pub(super) fn shards_made(&mut self, shards: &[ShardId], effects: &mut Effects) -> Result<Reply, Refused> {
        let made: BTreeSet<ShardId> = shards.iter().copied().collect();
        for stream in self.streams.values_mut().filter(|it| it.info.spec.durability != Durability::Ephemeral) {
            let mut changed = false;
            for shard in stream.shards.iter_mut().filter(|it| !it.made && made.contains(&it.shard)) {
                shard.made = true;
                changed = true;
            }
            if changed {
                let (routing_version, stream) = (self.routing_version, stream.clone());
                effects.changes.push(Change::StreamPut { routing_version, stream });
            }
        }
        self.done()
    }

    /// Gives every ephemeral shard a new lineage, the same for all. A durable one keeps its own for ever, and with it the
    /// note that its files were made.
    pub(super) fn new_lineages(&mut self, effects: &mut Effects) -> Result<(), Refused> {
        let lineage = self.next.lineage;
        let Some(next) = lineage.checked_add(1) else { return used_up("lineages") };
        let ephemeral = |it: &&mut PlacedStream| it.info.spec.durability == Durability::Ephemeral;
        let mut streams = self.streams.values_mut().filter(ephemeral).peekable();
        if streams.peek().is_none() {
            return Ok(());
        }
        self.next.lineage = next;
        self.routing_version += 1;
        for stream in streams {
            for shard in &mut stream.shards {
                shard.lineage = Lineage(lineage);
            }
            let (routing_version, stream) = (self.routing_version, stream.clone());
            effects.changes.push(Change::StreamPut { routing_version, stream });
        }
        Ok(())
    }

    /// Spreads the shards over another number of cores. A shard that moves gets a new epoch, which fences its old core.
    pub(super) fn move_to_cores(&mut self, cores: u8, effects: &mut Effects) -> Result<(), Refused> {
        let placed: Vec<Vec<CoreId>> =
            self.streams.values().map(|it| it.shards.iter().map(|shard| shard.core).collect()).collect();
        let moves = re_place(&placed, self.cores(), cores);
        self.loads.resize(usize::from(cores).max(self.loads.len()), 0);
        if !moves.is_empty() {
            self.routing_version += 1;
        }
        let moved: BTreeSet<usize> = moves.iter().map(|it| it.stream).collect();
        let mut streams: Vec<&mut PlacedStream> = self.streams.values_mut().collect();
        for it in moves {
            let shard = &mut streams[it.stream].shards[it.index];
            self.loads[usize::from(shard.core.0)] -= 1;
            self.loads[usize::from(it.to.0)] += 1;
            shard.core = it.to;
            shard.epoch = Epoch(shard.epoch.0 + 1);
        }
        self.loads.truncate(usize::from(cores));
        let routing_version = self.routing_version;
        effects
            .changes
            .extend(moved.into_iter().map(|at| Change::StreamPut { routing_version, stream: streams[at].clone() }));
        Ok(())
    }
}
