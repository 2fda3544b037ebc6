//! Random commands over few names and keys, so that they meet each other often.
#![allow(dead_code, reason = "each test file uses its part")]

use felix_control::authorise::Principal;
use felix_control::command::{Action, Entry, Internal};
use felix_protocol::ids::{CoreId, NodeId, NodeSession, ShardId};
use felix_protocol::metadata::*;
use felix_protocol::names::{NamespaceName, StreamName};
use felix_protocol::position::Lineage;
use felix_protocol::time::Timestamp;
use proptest::prelude::*;

fn tenant() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a".to_string(), "b".to_string()])
}

pub fn namespace() -> impl Strategy<Value = NamespaceName> {
    prop::sample::select(vec!["a/m", "a/n", "b/m"]).prop_map(|it| NamespaceName::parse(it).unwrap())
}

pub fn stream() -> impl Strategy<Value = StreamName> {
    (namespace(), prop::sample::select(vec!["s", "t", "u"]))
        .prop_map(|(it, stream)| StreamName::new(it.tenant(), it.namespace(), stream).unwrap())
}

fn limits() -> impl Strategy<Value = TenantLimits> {
    let tight = TenantLimits { streams_max: 2, shards_max: 12, retained_bytes_max: 1 << 30 };
    prop::sample::select(vec![tight, TenantLimits::default()])
}

fn spec() -> impl Strategy<Value = StreamSpec> {
    let bytes = prop::sample::select(vec![0, 64 << 10, 64 << 20, 1 << 40]);
    use Durability::*;
    let durability = prop_oneof![2 => Just(Ephemeral), 1 => Just(Group), 1 => Just(Interval), 1 => Just(Each)];
    let age = prop::option::of(prop::sample::select(vec![0, 1, 60_000]));
    // Often settings that do not go together, which must be refused.
    let storage = (
        prop::sample::select(vec![100, 100, 250, 0]),
        any::<bool>(),
        prop::sample::select(vec![StreamSpec::TOMBSTONE_GRACE_MS_DEFAULT, StreamSpec::TOMBSTONE_GRACE_MS_DEFAULT, 5]),
        prop::bool::weighted(0.2),
    );
    (1u32..10, durability, bytes, age, storage).prop_map(
        |(shards, durability, retention_bytes, retention_age_ms, storage)| {
            let (interval_ms, compact, tombstone_grace_ms, encrypt) = storage;
            StreamSpec {
                shards,
                durability,
                retention_bytes,
                retention_age_ms,
                interval_ms,
                compact,
                tombstone_grace_ms,
                encrypt,
                ..StreamSpec::default()
            }
        },
    )
}

fn changes() -> impl Strategy<Value = StreamChanges> {
    let bytes = prop::option::of(prop::sample::select(vec![64 << 10, 1 << 30, 1]));
    let age = prop::option::of(prop::option::of(1u64..9));
    let batch = prop::option::of(prop::sample::select(vec![1 << 10, 2 << 10, 1]));
    (bytes, age, batch).prop_map(|(retention_bytes, retention_age_ms, batch_bytes_max)| StreamChanges {
        retention_bytes,
        retention_age_ms,
        batch_bytes_max,
    })
}

pub fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        2 => (tenant(), limits()).prop_map(|(tenant, limits)| Command::CreateTenant { tenant, limits }),
        2 => tenant().prop_map(|tenant| Command::DeleteTenant { tenant }),
        2 => namespace().prop_map(|name| Command::CreateNamespace { name }),
        2 => namespace().prop_map(|name| Command::DeleteNamespace { name }),
        9 => (stream(), spec(), any::<bool>())
            .prop_map(|(name, spec, create_parents)| Command::CreateStream { name, spec, create_parents }),
        4 => (stream(), changes(), prop::option::weighted(0.3, 1u64..40))
            .prop_map(|(name, changes, if_version)| Command::AlterStream { name, changes, if_version }),
        4 => stream().prop_map(|name| Command::DeleteStream { name }),
    ]
}

pub fn internal() -> impl Strategy<Value = Internal> {
    prop_oneof![
        (0u8..9).prop_map(|cores| Internal::SetCoreCount { cores }),
        (0u8..5, 0u32..1_000).prop_map(|(core, count)| Internal::AllocateProducers { core: CoreId(core), count }),
        (0u128..2, 0u64..50)
            .prop_map(|(node, session)| Internal::StartNode { node: NodeId(node), session: NodeSession(session) }),
        (0u64..90, 0u32..90).prop_map(|(ids, lineage)| Internal::RaiseFloors { ids, lineage: Lineage(lineage) }),
        prop::collection::vec((0u64..60).prop_map(ShardId), 1..20).prop_map(|shards| Internal::ShardsMade { shards }),
    ]
}

fn principal() -> impl Strategy<Value = Principal> {
    prop_oneof![9 => Just(Principal::admin()), 1 => Just(Principal::named("ann").unwrap())]
}

/// An entry; about half have a key, often one that was there before.
pub fn entry() -> impl Strategy<Value = Entry> {
    let action = prop_oneof![5 => command().prop_map(Action::Client), 1 => internal().prop_map(Action::Internal)];
    (prop_oneof![Just(0), 1u128..30], any::<u64>(), principal(), action)
        .prop_map(|(key, time, principal, action)| Entry::new(key, Timestamp(time), principal, action))
}

/// A log, in which some entries are there twice: what a client does whose answer was lost.
pub fn log() -> impl Strategy<Value = Vec<Entry>> {
    prop::collection::vec((entry(), prop::option::weighted(0.2, any::<prop::sample::Index>())), 1..60).prop_map(
        |items| {
            let mut log: Vec<Entry> = Vec::new();
            for (entry, repeat) in items {
                let entry = repeat.filter(|_| !log.is_empty()).map_or(entry, |at| log[at.index(log.len())].clone());
                log.push(entry);
            }
            log
        },
    )
}
