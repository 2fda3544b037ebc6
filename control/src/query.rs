//! **What**: reads of the metadata: lists, descriptions, routes. They do not go through the log.
//!
//! **Invariants**: a page has at most `LIST_PAGE_MAX` items in order of name, and costs what it returns, not what
//! exists; `more` is true exactly if another page would have something.
//!
//! **Never**: a change of state.
//!
//! **See**: `state.rs` for writes, `authorise.rs` for who may ask.

use crate::state::{Refused, State, refused};
use crate::watch::{PlacedStream, Snapshot};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{Route, ShardRoute};
use felix_protocol::ids::ShardId;
use felix_protocol::limits::LIST_PAGE_MAX;
use felix_protocol::metadata::{Command, Reply, ShardStatus, TenantInfo};
use felix_protocol::names::{NamespaceName, StreamName};
use felix_protocol::position::{Lineage, Offset};
use std::collections::BTreeMap;
use std::ops::Bound;

/// What the owner of a shard last told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardReport {
    /// Incarnation it speaks of. A report of another one than metadata has is as good as none.
    pub lineage: Lineage,
    /// First offset kept.
    pub log_start: Offset,
    /// One past the last committed offset.
    pub high_watermark: Offset,
    /// Bytes kept.
    pub retained_bytes: u64,
}

/// What the owners told, by shard. A shard that is missing is shown with zeros.
pub type ShardReports = BTreeMap<ShardId, ShardReport>;

/// The least label and stream part of the grammar: where the names of a tenant or namespace begin.
const FIRST: &str = "0";

/// Takes a page and looks whether anything is left.
fn page<T>(mut items: impl Iterator<Item = T>) -> (Vec<T>, bool) {
    let page: Vec<T> = items.by_ref().take(LIST_PAGE_MAX as usize).collect();
    (page, items.next().is_some())
}

/// Where a list begins: after `after`, but not before `first`.
fn begin<T: Ord>(after: Option<T>, first: Option<T>) -> Bound<T> {
    match (after, first) {
        (Some(after), Some(first)) if after < first => Bound::Included(first),
        (Some(after), _) => Bound::Excluded(after),
        (None, Some(first)) => Bound::Included(first),
        (None, None) => Bound::Unbounded,
    }
}

impl State {
    /// Answers a command that only reads.
    pub fn query(&self, command: &Command, reports: &ShardReports) -> Result<Reply, Refused> {
        match command {
            Command::ListTenants { after } => Ok(self.list_tenants(after.as_deref())),
            Command::ListNamespaces { tenant, after } => self.list_namespaces(tenant, after.as_deref()),
            Command::DescribeStream { name } => self.describe(name, reports),
            Command::ListStreams { tenant, namespace, after } => {
                self.list_streams(tenant.as_deref(), namespace.as_deref(), after.as_ref())
            }
            Command::CreateTenant { .. }
            | Command::DeleteTenant { .. }
            | Command::CreateNamespace { .. }
            | Command::DeleteNamespace { .. }
            | Command::CreateStream { .. }
            | Command::AlterStream { .. }
            | Command::DeleteStream { .. } => {
                refused(ErrorCode::InvalidArgument, "a command that changes metadata must go through the log")
            }
        }
    }

    /// A stream with its shards.
    pub fn stream_by_name(&self, name: &StreamName) -> Option<&PlacedStream> {
        self.streams.get(name)
    }

    /// Every stream in order of name.
    pub fn streams(&self) -> impl Iterator<Item = &PlacedStream> {
        self.streams.values()
    }

    /// Where the shards of a stream live.
    pub fn route(&self, name: &StreamName) -> Option<Route> {
        let stream = self.streams.get(name)?;
        let shards = stream.shards.iter().map(|it| ShardRoute {
            shard: it.shard,
            range_start: it.range_start,
            core: it.core,
            epoch: it.epoch,
            lineage: it.lineage,
        });
        Some(Route {
            routing_version: self.routing_version,
            stream: stream.info.id,
            batch_bytes_max: stream.info.spec.batch_bytes_max,
            shards: shards.collect(),
        })
    }

    /// All that a core must know.
    pub fn watch_snapshot(&self) -> Snapshot {
        Snapshot {
            version: self.version,
            routing_version: self.routing_version,
            cores: self.cores(),
            streams: self.streams.values().cloned().collect(),
        }
    }

    fn list_tenants(&self, after: Option<&str>) -> Reply {
        let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (tenants, more) = page(self.tenants.range::<str, _>((begin, Bound::Unbounded)));
        let info = |(name, tenant): (&String, &crate::state::Tenant)| TenantInfo {
            name: name.clone(),
            limits: tenant.limits,
            streams: tenant.usage.streams,
        };
        Reply::Tenants { tenants: tenants.into_iter().map(info).collect(), more }
    }

    fn list_namespaces(&self, tenant: &str, after: Option<&str>) -> Result<Reply, Refused> {
        self.tenant(tenant)?;
        let name = |namespace| NamespaceName::new(tenant, namespace).or_else(|error| invalid_name(&error));
        let begin = begin(after.map(name).transpose()?, Some(name(FIRST)?));
        let names = self.namespaces.range((begin, Bound::Unbounded)).map(|(name, _)| name.clone());
        let (names, more) = page(names.take_while(|name| name.tenant() == tenant));
        Ok(Reply::Namespaces { names, more })
    }

    fn list_streams(
        &self,
        tenant: Option<&str>,
        namespace: Option<&str>,
        after: Option<&StreamName>,
    ) -> Result<Reply, Refused> {
        let first = match (tenant, namespace) {
            (None, None) => None,
            (None, Some(_)) => {
                return refused(ErrorCode::InvalidArgument, "a namespace is only found within a tenant; name both");
            }
            (Some(tenant), namespace) => {
                self.tenant(tenant)?;
                if let Some(namespace) = namespace {
                    let name = NamespaceName::new(tenant, namespace).or_else(|error| invalid_name(&error))?;
                    self.namespace(&name)?;
                }
                let first = StreamName::new(tenant, namespace.unwrap_or(FIRST), FIRST);
                Some(first.or_else(|error| invalid_name(&error))?)
            }
        };
        let streams = self.streams.range((begin(after.cloned(), first), Bound::Unbounded));
        let inside = |name: &StreamName| {
            tenant.is_none_or(|it| it == name.tenant()) && namespace.is_none_or(|it| it == name.namespace().namespace())
        };
        let (streams, more) = page(streams.take_while(|it| inside(it.0)).map(|(_, stream)| stream.info.clone()));
        Ok(Reply::Streams { streams, more })
    }

    fn describe(&self, name: &StreamName, reports: &ShardReports) -> Result<Reply, Refused> {
        let Some(stream) = self.streams.get(name) else {
            return refused(ErrorCode::NotFound, format!("there is no stream {name}"));
        };
        let status = |it: &crate::watch::ShardPlace| {
            let report = reports.get(&it.shard).filter(|report| report.lineage == it.lineage);
            let report = report.copied().unwrap_or_default();
            ShardStatus {
                index: it.index,
                shard: it.shard,
                core: it.core,
                lineage: it.lineage,
                epoch: it.epoch,
                log_start: report.log_start,
                high_watermark: report.high_watermark,
                retained_bytes: report.retained_bytes,
            }
        };
        Ok(Reply::Stream { stream: stream.info.clone(), shards: stream.shards.iter().map(status).collect() })
    }
}

fn invalid_name<T>(error: &felix_protocol::names::NameError) -> Result<T, Refused> {
    refused(ErrorCode::InvalidName, error.to_string())
}

#[cfg(test)]
mod tests;
