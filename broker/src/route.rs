//! **What**: the route stage: a core's own copy of where streams and shards live, replaced by the metadata watch.
//!
//! **Invariants**: `by_name` and `by_shard` tell the same; a stream made anew replaces the old one whole.
//!
//! **Never**: a request to the control plane on the data path.
//!
//! **See**: `felix_control::state`, which makes the changes.

use felix_control::watch::{Change, ShardPlace, Snapshot};
use felix_protocol::frame::{Route, ShardRoute};
use felix_protocol::ids::{CoreId, ShardId, ShardIndex};
use felix_protocol::metadata::StreamInfo;
use felix_protocol::names::StreamName;
use felix_shard::batch_pool::HashRange;
use felix_shard::event::{ShardConfig, TenantKeys};
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

    /// What the owner of a shard must know. `sealed_for`: its tenant's keys, if the stream is sealed at rest.
    fn shard_config(&self, place: &ShardPlace, sealed_for: Option<TenantKeys>) -> ShardConfig {
        ShardConfig {
            shard: place.shard,
            stream: self.info.id,
            index: place.index,
            lineage: place.lineage,
            epoch: place.epoch,
            durability: self.info.spec.durability,
            made: place.made,
            sync_interval_ms: self.info.spec.interval_ms,
            sealed_for,
            compact: self.info.spec.compact,
            tombstone_grace_ns: self.info.spec.tombstone_grace_ms.saturating_mul(1_000_000),
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
    tenants: TenantNumbers,
}

/// Numbers for the tenants that have keys at rest; this core's own, and never given twice.
#[derive(Debug, Default)]
struct TenantNumbers(BTreeMap<String, TenantKeys>);

impl TenantNumbers {
    fn of(&mut self, tenant: &str) -> TenantKeys {
        if let Some(number) = self.0.get(tenant) {
            return *number;
        }
        let number = TenantKeys(self.0.len() as u32);
        self.0.insert(tenant.to_string(), number);
        number
    }
}

impl RouteTable {
    /// Version of the metadata this shows.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The number under which this core's shards know a tenant's keys.
    pub fn tenant_keys(&mut self, tenant: &str) -> TenantKeys {
        self.tenants.of(tenant)
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

    /// The changes that lead from here to `table`.
    pub fn changes_to(&self, table: &Snapshot) -> Vec<Change> {
        let routing_version = table.routing_version;
        // In order of name, so a stream is found by halving.
        let stays = |name: &StreamName| table.streams.binary_search_by(|it| it.info.name.cmp(name)).is_ok();
        let gone = self.by_name.values().filter(|it| !stays(&it.info.name));
        let gone = gone.map(|it| {
            let (id, name) = (it.info.id, it.info.name.clone());
            Change::StreamRemoved { routing_version, id, name }
        });
        // A stream that was made anew under its name takes the place of the old one.
        let put = table.streams.iter().map(|stream| Change::StreamPut { routing_version, stream: stream.clone() });
        gone.chain(put).collect()
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
                    let sealed_for = info.spec.encrypt.then(|| self.tenants.of(info.name.tenant()));
                    for place in shards {
                        self.by_shard.insert(place.shard, (place.core, info.name.clone()));
                        if place.core == me {
                            owned(Owned::Put(route.shard_config(place, sealed_for)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use felix_control::authorise::Principal;
    use felix_control::member::{Member, MemberSettings, Watch};
    use felix_protocol::metadata::{Command, Durability, StreamSpec};
    use felix_protocol::time::Timestamp;
    use std::collections::BTreeSet;

    fn run(member: &mut Member, command: Command) {
        member.propose(Timestamp(1), &Principal::admin(), 0, command).outcome.unwrap();
    }

    fn name(text: &str) -> StreamName {
        StreamName::parse(text).unwrap()
    }

    fn create(text: &str, shards: u32) -> Command {
        let spec = StreamSpec { shards, ..StreamSpec::default() };
        Command::CreateStream { name: name(text), spec, create_parents: true }
    }

    /// Ids of the shards that core 0 owns after a table.
    fn take(routes: &mut RouteTable, member: &Member, owned: &mut BTreeSet<u64>) {
        let Watch::Snapshot(table) = member.changes_since(u64::MAX) else { panic!("a version that never was") };
        let changes = routes.changes_to(&table);
        routes.apply(table.routing_version, &changes, CoreId(0), |it| match it {
            Owned::Put(config) => drop(owned.insert(config.shard.0)),
            Owned::Removed(shard) => drop(owned.remove(&shard.0)),
        });
    }

    #[test]
    fn sealed_streams_name_the_keys_of_their_tenant() {
        let mut member = Member::new(MemberSettings { durable_streams: true, ..MemberSettings::default() });
        let durability = Durability::Group;
        let (clear, sealed) = (StreamSpec { durability, ..StreamSpec::default() }, true);
        for (text, encrypt) in [("a/n/s", sealed), ("a/n/clear", false), ("b/n/s", sealed), ("a/m/s", sealed)] {
            let spec = StreamSpec { encrypt, ..clear };
            run(&mut member, Command::CreateStream { name: name(text), spec, create_parents: true });
        }
        let mut routes = RouteTable::default();
        // Keys come before the streams that need them.
        let b = routes.tenant_keys("b");
        let Watch::Snapshot(table) = member.changes_since(u64::MAX) else { panic!("a version that never was") };
        let changes = routes.changes_to(&table);
        let mut found = BTreeMap::new();
        routes.apply(table.routing_version, &changes, CoreId(0), |it| {
            let Owned::Put(config) = it else { panic!("{it:?}") };
            found.insert(config.stream.0, config.sealed_for);
        });
        let a = routes.tenant_keys("a");
        assert_ne!(a, b);
        assert_eq!(found.into_values().collect::<Vec<_>>(), [Some(a), None, Some(b), Some(a)]);
    }

    #[test]
    fn a_table_takes_the_place_of_what_was_known() {
        let mut member = Member::new(MemberSettings::default());
        let (mut routes, mut owned) = (RouteTable::default(), BTreeSet::new());
        run(&mut member, create("t/n/a", 2));
        run(&mut member, create("t/n/b", 1));
        take(&mut routes, &member, &mut owned);
        assert_eq!((routes.version(), &owned), (member.state().routing_version(), &BTreeSet::from([1, 2, 3])));
        // One is gone, one was made anew with fewer shards, one is new: all while nobody told.
        for gone in ["t/n/a", "t/n/b"] {
            run(&mut member, Command::DeleteStream { name: name(gone) });
        }
        run(&mut member, create("t/n/a", 1));
        run(&mut member, create("t/n/c", 1));
        take(&mut routes, &member, &mut owned);
        assert_eq!((routes.version(), &owned), (member.state().routing_version(), &BTreeSet::from([4, 5])));
        assert!(routes.stream(&name("t/n/b")).is_none() && routes.owner(ShardId(3)).is_none());
        assert_eq!(routes.stream_of(ShardId(4)).map(|it| it.info.name.clone()), Some(name("t/n/a")));
    }
}
