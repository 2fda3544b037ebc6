//! **What**: what must hold of a [`State`] after every entry, in one place.
//!
//! **Invariants**: these, in the order of the checks: names have parents; ids are unique and below the next one; ranges
//! cover the hash space; counts equal the sums they stand for; the table of idempotency keys is bounded.
//!
//! **Never**: a repair. A state that fails is not used.
//!
//! **See**: `snapshot.rs`, which asks before it believes bytes; the tests, which ask after every entry.

use crate::limits::IDEMPOTENCY_KEYS_MAX;
use crate::state::{State, Usage, add_usage, check_spec};
use felix_protocol::limits::CORES_MAX;
use felix_protocol::names::check_label;
use std::collections::{BTreeMap, BTreeSet};

impl State {
    /// Checks everything; the text names what is broken. Costs time in proportion to all metadata: for tests and for
    /// bytes that come from outside.
    pub fn check_invariants(&self) -> Result<(), &'static str> {
        self.check_numbers()?;
        self.check_parents()?;
        self.check_streams()?;
        self.check_sums()?;
        self.check_keys()
    }

    fn check_numbers(&self) -> Result<(), &'static str> {
        let next = &self.next;
        if next.stream == 0 || next.shard == 0 || next.producer == 0 || next.lineage == 0 {
            return Err("zero as next id");
        }
        if self.routing_version == 0 {
            return Err("zero as routing version");
        }
        if self.loads.is_empty() || self.loads.len() > usize::from(CORES_MAX) {
            return Err("core count");
        }
        Ok(())
    }

    fn check_parents(&self) -> Result<(), &'static str> {
        if self.tenants.keys().any(|name| check_label(name).is_err()) {
            return Err("name of a tenant");
        }
        if self.namespaces.keys().any(|name| !self.tenants.contains_key(name.tenant())) {
            return Err("namespace without tenant");
        }
        if self.streams.keys().any(|name| !self.namespaces.contains_key(name.namespace())) {
            return Err("stream without namespace");
        }
        Ok(())
    }

    fn check_streams(&self) -> Result<(), &'static str> {
        let (mut stream_ids, mut shard_ids) = (BTreeSet::new(), BTreeSet::new());
        for (name, stream) in &self.streams {
            stream.check()?;
            let info = &stream.info;
            if info.name != *name {
                return Err("stream under another name");
            }
            if check_spec(&info.spec).is_err() {
                return Err("settings of a stream");
            }
            if info.version == 0 || info.version > self.version {
                return Err("version of a stream");
            }
            if info.id.0 >= self.next.stream || !stream_ids.insert(info.id) {
                return Err("stream id");
            }
            for shard in &stream.shards {
                if shard.shard.0 >= self.next.shard || !shard_ids.insert(shard.shard) {
                    return Err("shard id");
                }
                if shard.lineage.0 >= self.next.lineage {
                    return Err("lineage");
                }
                if usize::from(shard.core.0) >= self.loads.len() {
                    return Err("shard on a core that is not there");
                }
            }
        }
        Ok(())
    }

    fn check_sums(&self) -> Result<(), &'static str> {
        let mut loads = vec![0u32; self.loads.len()];
        let mut usages: BTreeMap<&str, Usage> = BTreeMap::new();
        let mut streams = BTreeMap::new();
        for (name, stream) in &self.streams {
            for shard in &stream.shards {
                loads[usize::from(shard.core.0)] += 1;
            }
            let usage = usages.entry(name.tenant()).or_default();
            *usage = add_usage(*usage, &stream.info.spec).ok_or("usage that cannot be counted")?;
            *streams.entry(name.namespace()).or_insert(0u32) += 1;
        }
        let mut namespaces = BTreeMap::new();
        for (name, namespace) in &self.namespaces {
            if namespace.streams != streams.get(name).copied().unwrap_or(0) {
                return Err("streams of a namespace");
            }
            *namespaces.entry(name.tenant()).or_insert(0u32) += 1;
        }
        for (name, tenant) in &self.tenants {
            if tenant.namespaces != namespaces.get(name.as_str()).copied().unwrap_or(0) {
                return Err("namespaces of a tenant");
            }
            let usage = usages.get(name.as_str()).copied().unwrap_or_default();
            if tenant.usage != usage {
                return Err("usage of a tenant");
            }
            let limits = &tenant.limits;
            if usage.streams > limits.streams_max
                || usage.shards > limits.shards_max
                || usage.retained_bytes > limits.retained_bytes_max
            {
                return Err("tenant over its limits");
            }
        }
        if loads != self.loads {
            return Err("shards of a core");
        }
        Ok(())
    }

    fn check_keys(&self) -> Result<(), &'static str> {
        if self.idempotency.count() > IDEMPOTENCY_KEYS_MAX {
            return Err("number of idempotency keys");
        }
        let mut last = 0;
        for (key, remembered) in self.idempotency.iter() {
            if key == 0 {
                return Err("zero as idempotency key");
            }
            if remembered.version <= last || remembered.version > self.version {
                return Err("version of an outcome");
            }
            last = remembered.version;
        }
        Ok(())
    }
}
