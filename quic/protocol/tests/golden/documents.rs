//! Metadata commands and replies, as they stand in Admin and AdminReply frames.

use felix_protocol::frame::{Admin, Frame};
use felix_protocol::ids::{CoreId, ShardId, ShardIndex, StreamId};
use felix_protocol::metadata::*;
use felix_protocol::names::{NamespaceName, StreamName};
use felix_protocol::position::{Epoch, Lineage, Offset};
use felix_protocol::time::Timestamp;

pub fn stream_name(text: &str) -> StreamName {
    StreamName::parse(text).unwrap()
}

fn commands() -> Vec<(&'static str, Command)> {
    let namespace = || NamespaceName::parse("acme/md").unwrap();
    let name = || stream_name("acme/md/quotes");
    vec![
        ("create-tenant", Command::CreateTenant { tenant: "acme".into(), limits: TenantLimits::default() }),
        (
            "create-tenant-limits",
            Command::CreateTenant {
                tenant: "a-1".into(),
                limits: TenantLimits { streams_max: 0, shards_max: 7, retained_bytes_max: u64::MAX },
            },
        ),
        ("delete-tenant", Command::DeleteTenant { tenant: "acme".into() }),
        ("list-tenants", Command::ListTenants { after: None }),
        ("list-tenants-after", Command::ListTenants { after: Some("acme".into()) }),
        ("create-namespace", Command::CreateNamespace { name: namespace() }),
        ("delete-namespace", Command::DeleteNamespace { name: namespace() }),
        ("list-namespaces", Command::ListNamespaces { tenant: "acme".into(), after: None }),
        ("list-namespaces-after", Command::ListNamespaces { tenant: "acme".into(), after: Some("md".into()) }),
        ("create-stream", Command::CreateStream { name: name(), spec: StreamSpec::default(), create_parents: true }),
        (
            "create-stream-durable",
            Command::CreateStream {
                name: name(),
                spec: StreamSpec {
                    shards: 1_024,
                    durability: Durability::Each,
                    retention_bytes: 1 << 40,
                    retention_age_ms: Some(86_400_000),
                    batch_bytes_max: 65_536,
                    ..StreamSpec::default()
                },
                create_parents: false,
            },
        ),
        (
            "create-stream-interval",
            Command::CreateStream {
                name: name(),
                spec: StreamSpec { durability: Durability::Interval, interval_ms: 250, ..StreamSpec::default() },
                create_parents: true,
            },
        ),
        (
            "create-stream-compact",
            Command::CreateStream {
                name: name(),
                spec: StreamSpec {
                    durability: Durability::Group,
                    compact: true,
                    tombstone_grace_ms: 3_600_000,
                    encrypt: true,
                    ..StreamSpec::default()
                },
                create_parents: true,
            },
        ),
        (
            "alter-stream",
            Command::AlterStream {
                name: name(),
                changes: StreamChanges {
                    retention_bytes: Some(5),
                    retention_age_ms: Some(Some(6)),
                    batch_bytes_max: Some(7),
                },
                if_version: Some(8),
            },
        ),
        (
            "alter-stream-no-age",
            Command::AlterStream {
                name: name(),
                changes: StreamChanges { retention_age_ms: Some(None), ..Default::default() },
                if_version: None,
            },
        ),
        ("delete-stream", Command::DeleteStream { name: name() }),
        ("describe-stream", Command::DescribeStream { name: name() }),
        ("list-streams", Command::ListStreams { tenant: None, namespace: None, after: None }),
        (
            "list-streams-after",
            Command::ListStreams { tenant: Some("acme".into()), namespace: Some("md".into()), after: Some(name()) },
        ),
    ]
}

fn info() -> StreamInfo {
    StreamInfo {
        id: StreamId(7),
        name: stream_name("acme/md/quotes"),
        spec: StreamSpec { shards: 2, durability: Durability::Group, ..StreamSpec::default() },
        version: 12,
        created: Timestamp(1_700_000_000_000_000_000),
    }
}

fn replies() -> Vec<(&'static str, Reply)> {
    let status = |index: u32| ShardStatus {
        index: ShardIndex(index),
        shard: ShardId(900 + u64::from(index)),
        core: CoreId(1),
        lineage: Lineage(3),
        epoch: Epoch(4),
        log_start: Offset(5),
        high_watermark: Offset(6),
        retained_bytes: 7,
    };
    vec![
        ("done", Reply::Done { version: 11 }),
        ("stream-done", Reply::StreamDone { version: 12, stream: info() }),
        ("stream", Reply::Stream { stream: info(), shards: vec![status(0), status(1)] }),
        ("streams", Reply::Streams { streams: vec![info(), info()], more: true }),
        ("streams-none", Reply::Streams { streams: vec![], more: false }),
        ("namespaces", Reply::Namespaces { names: vec![NamespaceName::parse("acme/md").unwrap()], more: false }),
        (
            "tenants",
            Reply::Tenants {
                tenants: vec![TenantInfo { name: "acme".into(), limits: TenantLimits::default(), streams: 9 }],
                more: false,
            },
        ),
    ]
}

pub fn frames() -> Vec<(String, u32, Frame<'static>)> {
    let mut cases = Vec::new();
    for (name, command) in commands() {
        let idempotency_key = if command.is_write() { 0x0123_4567_89ab_cdef_0011_2233_4455_6677 } else { 0 };
        cases.push((format!("admin-{name}"), 30, Frame::Admin(Admin { idempotency_key, command })));
    }
    for (name, reply) in replies() {
        cases.push((format!("admin-reply-{name}"), 30, Frame::AdminReply(reply)));
    }
    cases
}
