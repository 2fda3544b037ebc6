//! **What**: the route stage: a core's own copy of where streams and shards live, replaced by the metadata watch.
//!
//! **Invariants**: `by_name` and `by_shard` tell the same; a stream made anew replaces the old one whole.
//!
//! **Never**: a request to the control plane on the data path.
//!
//! **See**: `felix_control::state`, which makes the changes.

use felix_control::watch::{Change, ShardPlace};
use felix_protocol::frame::{Route, ShardRoute};
use felix_protocol::ids::{CoreId, ShardId, ShardIndex};
use felix_protocol::metadata::StreamInfo;
use felix_protocol::names::StreamName;
use felix_shard::batch_pool::HashRange;
use felix_shard::event::ShardConfig;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// One stream's settings and shards by index.
#[derive(Clone, Debug)]
pub struct StreamRoute {
    /// Settings.
    pub info: StreamInfo,
    /// Shards by index.
    pub shards: Vec<ShardPlace>,
}

impl StreamRoute {
    /// Key hashes that belong to a shard.
    pub fn hash_range(&self, index: ShardIndex) -> HashRange {
        let at = index.0 as usize;
        let first = self.shards[at].range_start;
        let last = self.shards.get(at + 1).map_or(u64::MAX, |next| next.range_start - 1);
        HashRange { first, last }
    }

    /// What the owner of a shard must know.
    pub fn shard_config(&self, place: &ShardPlace) -> ShardConfig {
        ShardConfig {
            shard: place.shard,
            stream: self.info.id,
            index: place.index,
            lineage: place.lineage,
            epoch: place.epoch,
            durability: self.info.spec.durability,
            sync_interval_ms: 100,
            retention_bytes: self.info.spec.retention_bytes,
            retention_age_ns: self.info.spec.retention_age_ms.map(|ms| ms.saturating_mul(1_000_000)),
        }
    }
}

/// What a change means for the shards a core owns.
#[derive(Debug)]
pub enum Owned {
    /// The core owns this shard, or its settings changed.
    Put(ShardConfig),
    /// The core does not own this shard any more.
    Removed(ShardId),
}

/// A core's routing table.
#[derive(Debug, Default)]
pub struct RouteTable {
    version: u64,
    by_name: BTreeMap<StreamName, Rc<StreamRoute>>,
    by_shard: HashMap<ShardId, (CoreId, StreamName)>,
}

impl RouteTable {
    /// Version of the metadata this shows.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// A stream by name.
    pub fn stream(&self, name: &StreamName) -> Option<&Rc<StreamRoute>> {
        self.by_name.get(name)
    }

    /// Core that owns a shard.
    pub fn owner(&self, shard: ShardId) -> Option<CoreId> {
        self.by_shard.get(&shard).map(|(core, _)| *core)
    }

    /// Stream a shard belongs to.
    pub fn stream_of(&self, shard: ShardId) -> Option<&Rc<StreamRoute>> {
        self.by_name.get(&self.by_shard.get(&shard)?.1)
    }

    /// The frame that tells a client.
    pub fn route_frame(&self, name: &StreamName) -> Option<Route> {
        let stream = self.stream(name)?;
        Some(Route {
            routing_version: self.version,
            stream: stream.info.id,
            batch_bytes_max: stream.info.spec.batch_bytes_max,
            shards: stream
                .shards
                .iter()
                .map(|place| ShardRoute {
                    shard: place.shard,
                    range_start: place.range_start,
                    core: place.core,
                    epoch: place.epoch,
                    lineage: place.lineage,
                })
                .collect(),
        })
    }

    /// Takes changes in. Tells what they mean for the shards that `me` owns.
    pub fn apply(&mut self, version: u64, changes: &[Change], me: CoreId, mut owned: impl FnMut(Owned)) {
        self.version = version;
        for change in changes {
            match change {
                Change::StreamPut { stream, .. } => {
                    let (info, shards) = (&stream.info, &stream.shards);
                    let route = Rc::new(StreamRoute { info: info.clone(), shards: shards.clone() });
                    if let Some(old) = self.by_name.insert(info.name.clone(), route.clone()) {
                        self.forget(
                            &old,
                            me,
                            |shard| shards.iter().any(|it| it.shard == shard && it.core == me),
                            &mut owned,
                        );
                    }
                    for place in shards {
                        self.by_shard.insert(place.shard, (place.core, info.name.clone()));
                        if place.core == me {
                            owned(Owned::Put(route.shard_config(place)));
                        }
                    }
                }
                Change::StreamRemoved { name, id, .. } => {
                    if self.by_name.get(name).is_some_and(|it| it.info.id == *id)
                        && let Some(old) = self.by_name.remove(name)
                    {
                        self.forget(&old, me, |_| false, &mut owned);
                    }
                }
            }
        }
    }

    fn forget(
        &mut self,
        old: &StreamRoute,
        me: CoreId,
        still_mine: impl Fn(ShardId) -> bool,
        owned: &mut impl FnMut(Owned),
    ) {
        for place in &old.shards {
            self.by_shard.remove(&place.shard);
            if place.core == me && !still_mine(place.shard) {
                owned(Owned::Removed(place.shard));
            }
        }
    }
}
