//! **What**: the metadata of a cluster and the one function that changes it: [`State::apply`].
//!
//! **Invariants**: `apply` is a function of state and entry alone; every entry raises `version` by one, also a refused
//! or repeated one (it is the position in the log); a refused entry changes nothing else but the table of idempotency
//! keys. Ids and lineages are never given twice. `routing_version` rises with every change of what a Route says.
//!
//! **Never**: a map without order; a partial change (everything is checked before the first field is written).
//!
//! **See**: `state/streams.rs` (streams and shards), `query.rs` (reads), `invariants.rs` (what must always hold).

mod streams;

pub use streams::NOT_DURABLE;
pub(crate) use streams::{add_usage, check_spec};

use crate::command::{Action, Entry, Internal};
use crate::idempotency::{Idempotency, Remembered};
use crate::limits::PRODUCER_BLOCK_MAX;
use crate::watch::{Change, PlacedStream};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::ids::{CoreId, NodeId, NodeSession, ProducerId};
use felix_protocol::limits::CORES_MAX;
use felix_protocol::metadata::{Command, Reply, TenantLimits};
use felix_protocol::names::{NamespaceName, StreamName};
use felix_protocol::position::Lineage;
use felix_protocol::time::Timestamp;
use std::collections::BTreeMap;

/// A command that was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why, for programs.
    pub code: ErrorCode,
    /// Why, for people, with what was found and what is allowed.
    pub detail: String,
}

pub(crate) fn refused<T>(code: ErrorCode, detail: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { code, detail: detail.into() })
}

/// Producer ids given to a core, which gives them to producers without asking again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerBlock {
    /// To whom.
    pub core: CoreId,
    /// First id.
    pub first: ProducerId,
    /// How many, from `first` upward.
    pub count: u32,
}

/// What an entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Metadata version of the outcome: that of the first time for a repeated idempotency key.
    pub version: u64,
    /// The answer for whoever asked.
    pub outcome: Result<Reply, Refused>,
    /// What the cores must know; empty for a repeat.
    pub changes: Vec<Change>,
    /// The ids of `AllocateProducers`, also for a repeat.
    pub producers: Option<ProducerBlock>,
}

/// What a tenant uses of its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) streams: u32,
    pub(crate) shards: u32,
    /// Sum of `retention_bytes` over all shards.
    pub(crate) retained_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tenant {
    pub(crate) limits: TenantLimits,
    pub(crate) usage: Usage,
    pub(crate) namespaces: u32,
}

impl Tenant {
    pub(crate) fn new(limits: TenantLimits) -> Tenant {
        Tenant { limits, usage: Usage::default(), namespaces: 0 }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Namespace {
    pub(crate) streams: u32,
}

/// Lowest numbers that were never given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Next {
    pub(crate) stream: u64,
    pub(crate) shard: u64,
    pub(crate) producer: u64,
    /// One count for the whole cluster: a stream made anew under an old name is then as different as one that lost its
    /// data, and a client that knows only the name gets LineageReset, not other data.
    pub(crate) lineage: u32,
}

/// All metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub(crate) version: u64,
    pub(crate) routing_version: u64,
    pub(crate) next: Next,
    /// Shards of each core; never empty.
    pub(crate) loads: Vec<u32>,
    /// Last start of each node.
    pub(crate) nodes: BTreeMap<u128, NodeSession>,
    pub(crate) tenants: BTreeMap<String, Tenant>,
    pub(crate) namespaces: BTreeMap<NamespaceName, Namespace>,
    pub(crate) streams: BTreeMap<StreamName, PlacedStream>,
    pub(crate) idempotency: Idempotency,
}

impl Default for State {
    fn default() -> State {
        State::new()
    }
}

/// What an entry does besides its reply.
#[derive(Default)]
struct Effects {
    changes: Vec<Change>,
    producers: Option<ProducerBlock>,
}

impl State {
    /// Nothing yet, on one core.
    pub fn new() -> State {
        State {
            version: 0,
            routing_version: 1,
            next: Next { stream: 1, shard: 1, producer: 1, lineage: 1 },
            loads: vec![0],
            nodes: BTreeMap::new(),
            tenants: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            streams: BTreeMap::new(),
            idempotency: Idempotency::default(),
        }
    }

    /// Entries applied; the position in the metadata log.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Version of the routing table.
    pub fn routing_version(&self) -> u64 {
        self.routing_version
    }

    /// Cores of the broker.
    pub fn cores(&self) -> u8 {
        self.loads.len() as u8
    }

    /// Applies the next entry of the log.
    pub fn apply(&mut self, entry: &Entry) -> Applied {
        self.version += 1;
        let version = self.version;
        let key = entry.idempotency_key;
        if let Some(first) = self.idempotency.find(key) {
            if first.fingerprint == entry.fingerprint() {
                return Applied {
                    version: first.version,
                    outcome: first.outcome.clone(),
                    changes: Vec::new(),
                    producers: first.producers,
                };
            }
            let outcome = refused(
                ErrorCode::InvalidArgument,
                "the idempotency key was used for another command; take a new key for each command",
            );
            return Applied { version, outcome, changes: Vec::new(), producers: None };
        }
        let mut effects = Effects::default();
        let outcome = match &entry.action {
            Action::Client(command) => self.client(command, entry.issued_at, &mut effects),
            Action::Internal(command) => self.internal(command, &mut effects),
        };
        let Effects { changes, producers } = effects;
        if key != 0 {
            let outcome = outcome.clone();
            self.idempotency
                .remember(key, Remembered { fingerprint: entry.fingerprint(), version, outcome, producers });
        }
        Applied { version, outcome, changes, producers }
    }

    fn done(&self) -> Result<Reply, Refused> {
        Ok(Reply::Done { version: self.version })
    }

    fn client(&mut self, command: &Command, now: Timestamp, effects: &mut Effects) -> Result<Reply, Refused> {
        match command {
            Command::CreateTenant { tenant, limits } => self.create_tenant(tenant, *limits),
            Command::DeleteTenant { tenant } => self.delete_tenant(tenant),
            Command::CreateNamespace { name } => self.create_namespace(name),
            Command::DeleteNamespace { name } => self.delete_namespace(name),
            Command::CreateStream { name, spec, create_parents } => {
                self.create_stream(name, *spec, *create_parents, now, effects)
            }
            Command::AlterStream { name, changes, if_version } => {
                self.alter_stream(name, changes, *if_version, effects)
            }
            Command::DeleteStream { name } => self.delete_stream(name, effects),
            Command::ListTenants { .. }
            | Command::ListNamespaces { .. }
            | Command::DescribeStream { .. }
            | Command::ListStreams { .. } => {
                refused(ErrorCode::InvalidArgument, "a command that only reads does not belong in the metadata log")
            }
        }
    }

    fn internal(&mut self, command: &Internal, effects: &mut Effects) -> Result<Reply, Refused> {
        match *command {
            Internal::RestoreStream(ref stream) => self.restore_stream(stream, effects),
            Internal::SetCoreCount { cores } => self.set_core_count(cores, effects),
            Internal::AllocateProducers { core, count } => self.allocate_producers(core, count, effects),
            Internal::StartNode { node, session } => self.start_node(node, session, effects),
            Internal::RaiseFloors { ids, lineage } => self.raise_floors(ids, lineage),
            Internal::ShardsMade { ref shards } => self.shards_made(shards, effects),
        }
    }

    fn create_tenant(&mut self, tenant: &str, limits: TenantLimits) -> Result<Reply, Refused> {
        if self.tenants.contains_key(tenant) {
            return refused(ErrorCode::AlreadyExists, format!("tenant {tenant} exists already"));
        }
        self.tenants.insert(tenant.to_string(), Tenant::new(limits));
        self.done()
    }

    fn delete_tenant(&mut self, tenant: &str) -> Result<Reply, Refused> {
        let namespaces = self.tenant(tenant)?.namespaces;
        if namespaces > 0 {
            return refused(ErrorCode::NotEmpty, format!("tenant {tenant} still has {namespaces} namespace(s)"));
        }
        self.tenants.remove(tenant);
        self.done()
    }

    fn create_namespace(&mut self, name: &NamespaceName) -> Result<Reply, Refused> {
        if self.namespaces.contains_key(name) {
            return refused(ErrorCode::AlreadyExists, format!("namespace {name} exists already"));
        }
        self.tenant(name.tenant())?;
        self.add_namespace(name);
        self.done()
    }

    fn delete_namespace(&mut self, name: &NamespaceName) -> Result<Reply, Refused> {
        let streams = self.namespace(name)?.streams;
        if streams > 0 {
            return refused(ErrorCode::NotEmpty, format!("namespace {name} still has {streams} stream(s)"));
        }
        self.namespaces.remove(name);
        if let Some(tenant) = self.tenants.get_mut(name.tenant()) {
            tenant.namespaces -= 1;
        }
        self.done()
    }

    /// Adds a namespace that is not there to a tenant that is.
    fn add_namespace(&mut self, name: &NamespaceName) {
        self.namespaces.insert(name.clone(), Namespace::default());
        self.tenants.get_mut(name.tenant()).expect("the tenant was checked").namespaces += 1;
    }

    pub(crate) fn tenant(&self, tenant: &str) -> Result<&Tenant, Refused> {
        match self.tenants.get(tenant) {
            Some(found) => Ok(found),
            None => refused(ErrorCode::NotFound, format!("there is no tenant {tenant}")),
        }
    }

    pub(crate) fn namespace(&self, name: &NamespaceName) -> Result<&Namespace, Refused> {
        match self.namespaces.get(name) {
            Some(found) => Ok(found),
            None => refused(ErrorCode::NotFound, format!("there is no namespace {name}")),
        }
    }

    fn allocate_producers(&mut self, core: CoreId, count: u32, effects: &mut Effects) -> Result<Reply, Refused> {
        if core.0 >= self.cores() {
            let cores = self.cores();
            return refused(ErrorCode::InvalidArgument, format!("core {core}, but there are {cores} core(s)"));
        }
        if count == 0 || count > PRODUCER_BLOCK_MAX {
            let detail = format!("a block of {count} producer ids, allowed are 1 to {PRODUCER_BLOCK_MAX}");
            return refused(ErrorCode::InvalidArgument, detail);
        }
        let first = self.next.producer;
        let Some(next) = first.checked_add(u64::from(count)) else { return used_up("producer ids") };
        self.next.producer = next;
        effects.producers = Some(ProducerBlock { core, first: ProducerId(first), count });
        self.done()
    }

    fn start_node(&mut self, node: NodeId, session: NodeSession, effects: &mut Effects) -> Result<Reply, Refused> {
        if let Some(last) = self.nodes.get(&node.0)
            && session <= *last
        {
            let detail = format!("session {session} of the node, its last one was {last}");
            return refused(ErrorCode::InvalidArgument, detail);
        }
        self.new_lineages(effects)?;
        self.nodes.insert(node.0, session);
        self.done()
    }

    fn raise_floors(&mut self, ids: u64, lineage: Lineage) -> Result<Reply, Refused> {
        self.next.stream = self.next.stream.max(ids);
        self.next.shard = self.next.shard.max(ids);
        self.next.producer = self.next.producer.max(ids);
        self.next.lineage = self.next.lineage.max(lineage.0);
        self.done()
    }

    fn set_core_count(&mut self, cores: u8, effects: &mut Effects) -> Result<Reply, Refused> {
        if cores == 0 || cores > CORES_MAX {
            return refused(ErrorCode::InvalidArgument, format!("{cores} cores, allowed are 1 to {CORES_MAX}"));
        }
        self.move_to_cores(cores, effects)?;
        self.done()
    }
}

/// The end of a number range that is never given twice. Out of reach in practice; refused rather than wrapped.
fn used_up<T>(what: &str) -> Result<T, Refused> {
    refused(ErrorCode::Internal, format!("all {what} of this cluster are used up"))
}

#[cfg(test)]
mod tests;
