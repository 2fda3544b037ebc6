use super::*;
use crate::authorise::Principal;
use crate::command::{Action, Entry};
use felix_protocol::ids::{CoreId, ShardIndex};
use felix_protocol::metadata::{StreamSpec, TenantLimits};
use felix_protocol::position::Epoch;
use felix_protocol::time::Timestamp;

fn stream(text: &str) -> StreamName {
    StreamName::parse(text).unwrap()
}

fn state(names: impl IntoIterator<Item = String>) -> State {
    let mut state = State::new();
    for name in names {
        let spec = StreamSpec { shards: 2, ..StreamSpec::default() };
        let command = Command::CreateStream { name: stream(&name), spec, create_parents: true };
        let entry = Entry::new(0, Timestamp(1), Principal::admin(), Action::Client(command));
        state.apply(&entry).outcome.unwrap();
    }
    state
}

fn names(state: &State, tenant: Option<&str>, namespace: Option<&str>, after: Option<&str>) -> (Vec<String>, bool) {
    let command = Command::ListStreams {
        tenant: tenant.map(Into::into),
        namespace: namespace.map(Into::into),
        after: after.map(stream),
    };
    match state.query(&command, &ShardReports::new()) {
        Ok(Reply::Streams { streams, more }) => (streams.iter().map(|it| it.name.to_string()).collect(), more),
        other => panic!("{other:?}"),
    }
}

#[test]
fn lists_stay_within_tenant_and_namespace() {
    let all = ["a/m/s", "a/n/0", "a/n/Z", "a/n/a.b", "a/n-x/s", "b/n/s", "ba/n/s"];
    let state = state(all.map(String::from));
    let list = |tenant, namespace, after| names(&state, tenant, namespace, after).0;
    assert_eq!(list(Some("a"), None, None), ["a/m/s", "a/n/0", "a/n/Z", "a/n/a.b", "a/n-x/s"]);
    assert_eq!(list(Some("a"), Some("n"), None), ["a/n/0", "a/n/Z", "a/n/a.b"]);
    assert_eq!(list(Some("b"), None, None), ["b/n/s"]);
    assert_eq!(list(None, None, None), all);
    assert_eq!(list(Some("a"), Some("n"), Some("a/n/0")), ["a/n/Z", "a/n/a.b"]);
    // A place outside of the list: before it, all; after it, nothing.
    assert_eq!(list(Some("b"), None, Some("a/m/s")), ["b/n/s"]);
    assert_eq!(list(Some("a"), None, Some("b/n/s")), [""; 0]);
}

#[test]
fn pages_end_where_they_say() {
    let max = LIST_PAGE_MAX as usize;
    for count in [0, 1, max - 1, max, max + 1, 2 * max, 2 * max + 1] {
        let all: Vec<String> = (0..count).map(|it| format!("t/n/s{it:04}")).collect();
        let state = state(all.clone());
        let (mut found, mut pages) = (Vec::new(), 0);
        loop {
            let after: Option<String> = found.last().cloned();
            let (page, more) = names(&state, None, None, after.as_deref());
            assert!(page.len() <= max && pages < 4, "page {pages} of {count} streams");
            found.extend(page);
            pages += 1;
            if !more {
                break;
            }
        }
        assert_eq!(found, all);
        assert_eq!(pages, count.div_ceil(max).max(1), "{count}");
    }
}

#[test]
fn tenants_and_namespaces_are_listed() {
    let state = state(["a/m/s", "a/n/s", "b/n/s"].map(String::from));
    let query = |command| state.query(&command, &ShardReports::new());
    let info = |name: &str, streams| TenantInfo { name: name.into(), limits: TenantLimits::default(), streams };
    assert_eq!(
        query(Command::ListTenants { after: None }),
        Ok(Reply::Tenants { tenants: vec![info("a", 2), info("b", 1)], more: false })
    );
    assert_eq!(
        query(Command::ListTenants { after: Some("a".into()) }),
        Ok(Reply::Tenants { tenants: vec![info("b", 1)], more: false })
    );
    let list = |tenant: &str, after: Option<&str>| {
        query(Command::ListNamespaces { tenant: tenant.into(), after: after.map(Into::into) })
    };
    let namespaces = |names: &[&str]| {
        let names = names.iter().map(|it| NamespaceName::parse(it).unwrap()).collect();
        Ok(Reply::Namespaces { names, more: false })
    };
    assert_eq!(list("a", None), namespaces(&["a/m", "a/n"]));
    assert_eq!(list("a", Some("m")), namespaces(&["a/n"]));
    assert_eq!(list("a", Some("z")), namespaces(&[]));
}

#[test]
fn what_is_not_there_is_said() {
    let state = state(["a/n/s".into()]);
    let list = |tenant: Option<&str>, namespace: Option<&str>| Command::ListStreams {
        tenant: tenant.map(Into::into),
        namespace: namespace.map(Into::into),
        after: None,
    };
    for (command, expected) in [
        (Command::DescribeStream { name: stream("a/n/x") }, ErrorCode::NotFound),
        (Command::ListNamespaces { tenant: "x".into(), after: None }, ErrorCode::NotFound),
        (list(Some("x"), None), ErrorCode::NotFound),
        (list(Some("a"), Some("x")), ErrorCode::NotFound),
        (list(None, Some("n")), ErrorCode::InvalidArgument),
        (list(Some("a"), Some("N")), ErrorCode::InvalidName),
        (Command::DeleteTenant { tenant: "a".into() }, ErrorCode::InvalidArgument),
    ] {
        let refused = state.query(&command, &ShardReports::new()).unwrap_err();
        assert_eq!(refused.code, expected, "{command:?}");
    }
    assert_eq!(state.route(&stream("a/n/x")), None);
}

#[test]
fn a_description_shows_reports_of_the_present_lineage_only() {
    let state = state(["a/n/s".into()]);
    let report = |lineage| ShardReport {
        lineage: Lineage(lineage),
        log_start: Offset(3),
        high_watermark: Offset(9),
        retained_bytes: 600,
    };
    let reports = ShardReports::from([(ShardId(1), report(1)), (ShardId(2), report(7))]);
    let reply = state.query(&Command::DescribeStream { name: stream("a/n/s") }, &reports).unwrap();
    let Reply::Stream { stream: info, shards } = reply else { panic!("{reply:?}") };
    assert_eq!(info.name, stream("a/n/s"));
    let status = |index, log_start, high_watermark, retained_bytes| ShardStatus {
        index: ShardIndex(index),
        shard: ShardId(u64::from(index) + 1),
        core: CoreId(0),
        lineage: Lineage(1),
        epoch: Epoch(1),
        log_start: Offset(log_start),
        high_watermark: Offset(high_watermark),
        retained_bytes,
    };
    assert_eq!(shards, [status(0, 3, 9, 600), status(1, 0, 0, 0)]);
}

#[test]
fn a_route_says_where_the_shards_are() {
    let state = state(["a/n/s".into()]);
    let route = state.route(&stream("a/n/s")).unwrap();
    assert_eq!((route.routing_version, route.stream.0, route.batch_bytes_max), (2, 1, 1_000 << 10));
    let starts: Vec<u64> = route.shards.iter().map(|it| it.range_start).collect();
    assert_eq!(starts, [0, 1 << 63]);
}
