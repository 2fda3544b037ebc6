//! Metadata of a real broker process over restarts, kills, and a disk that fails: what a client was told is there.

mod broker_process;

use broker_process::{Broker, get, name};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use felix_client::protocol::error_code::ErrorCode;
use felix_client::protocol::metadata::{StreamInfo, StreamSpec, TenantLimits};
use felix_client::protocol::names::NamespaceName;
use felix_client::protocol::position::{Offset, Position};
use felix_client::{
    Client, Command, OnReset, PublisherOptions, RecordToPublish, Reply, RequestError, Shards, Start, SubscribeOptions,
};

const PATIENCE: Duration = Duration::from_secs(30);
const KILLS: usize = 20;

fn create(text: &str) -> Command {
    Command::CreateStream { name: name(text), spec: StreamSpec::default(), create_parents: true }
}

fn made(reply: Reply) -> StreamInfo {
    match reply {
        Reply::StreamDone { stream, .. } => stream,
        other => panic!("{other:?}"),
    }
}

fn described(client: &Client, text: &str) -> (StreamInfo, Vec<u32>) {
    match client.admin(Command::DescribeStream { name: name(text) }).unwrap() {
        Reply::Stream { stream, shards } => (stream, shards.iter().map(|it| it.lineage.0).collect()),
        other => panic!("{other:?}"),
    }
}

fn all_streams(client: &Client) -> BTreeMap<String, StreamInfo> {
    let (mut found, mut after) = (BTreeMap::new(), None);
    loop {
        let list = Command::ListStreams { tenant: None, namespace: None, after: after.take() };
        let Reply::Streams { streams, more } = client.admin(list).unwrap() else { panic!("no page of streams") };
        after = streams.last().map(|it| it.name.clone());
        found.extend(streams.into_iter().map(|it| (it.name.to_string(), it)));
        if !more {
            return found;
        }
    }
}

#[test]
fn everything_is_there_after_a_stop_and_after_a_kill() {
    let mut broker = Broker::new("restart", 2);
    broker.start();
    let client = broker.connect();
    let limits = TenantLimits { streams_max: 3, shards_max: 9, retained_bytes_max: 1 << 30 };
    client.admin(Command::CreateTenant { tenant: "acme".into(), limits }).unwrap();
    client.admin(Command::CreateNamespace { name: NamespaceName::parse("acme/empty").unwrap() }).unwrap();
    let spec = StreamSpec { shards: 4, retention_age_ms: Some(60_000), ..StreamSpec::default() };
    let create_quotes = Command::CreateStream { name: name("acme/md/quotes"), spec, create_parents: true };
    let quotes = made(client.admin(create_quotes).unwrap());
    client.admin(create("acme/md/gone")).unwrap();
    client.admin(Command::DeleteStream { name: name("acme/md/gone") }).unwrap();
    let mut lineages = vec![described(&client, "acme/md/quotes").1];
    let mut versions = Vec::new();
    for round in 0..4 {
        // The client that was there before finds its stream at once, whatever it asks first.
        if round % 2 == 0 {
            broker.stop()
        } else {
            broker.kill()
        }
        broker.start();
        assert_eq!(client.route(&name("acme/md/quotes")).unwrap().shards.len(), 4);
        let fresh = broker.connect();
        let (info, found) = described(&fresh, "acme/md/quotes");
        assert_eq!(info, quotes);
        lineages.push(found);
        let Reply::Tenants { tenants, .. } = fresh.admin(Command::ListTenants { after: None }).unwrap() else {
            panic!("no page of tenants")
        };
        assert_eq!((tenants.len(), tenants[0].limits, tenants[0].streams), (1, limits, 1));
        let spaces = fresh.admin(Command::ListNamespaces { tenant: "acme".into(), after: None }).unwrap();
        let Reply::Namespaces { names, .. } = spaces else { panic!("no page of namespaces") };
        assert_eq!(names.iter().map(ToString::to_string).collect::<Vec<_>>(), ["acme/empty", "acme/md"]);
        // Quotas count what was there before.
        let wide = StreamSpec { shards: 6, ..StreamSpec::default() };
        let over = fresh.admin(Command::CreateStream { name: name("acme/md/w"), spec: wide, create_parents: true });
        assert_eq!(over.unwrap_err().code(), Some(ErrorCode::QuotaExceeded));
        // Ids go on where they were.
        let other = made(fresh.admin(create(&format!("acme/md/r{round}"))).unwrap());
        assert_eq!(other.id.0, quotes.id.0 + 2 + round);
        versions.push(other.version);
        fresh.admin(Command::DeleteStream { name: other.name }).unwrap();
        fresh.close();
    }
    assert!(versions.windows(2).all(|it| it[0] < it[1]), "{versions:?}");
    // A new lineage with each start, the same for all shards of the stream, none twice.
    assert!(lineages.iter().all(|it| it.len() == 4 && it.iter().all(|lineage| *lineage == it[0])), "{lineages:?}");
    assert!(lineages.windows(2).all(|it| it[0][0] < it[1][0]), "{lineages:?}");
    client.close();
    broker.stop();
}

#[test]
fn an_old_position_of_an_ephemeral_stream_is_told_so() {
    let mut broker = Broker::new("lineage", 1);
    broker.start();
    let client = broker.connect();
    client.admin(create("a/b/c")).unwrap();
    let publisher = client.publisher(&name("a/b/c"), PublisherOptions::default()).unwrap();
    for _ in 0..3 {
        publisher.send(&RecordToPublish { value: b"before", ..Default::default() }).unwrap();
    }
    assert_eq!(publisher.flush().unwrap().acked, 3);
    let lineage = client.route(&name("a/b/c")).unwrap().shards[0].lineage;
    drop(publisher);
    client.close();
    broker.kill();
    broker.start();
    let client = broker.connect();
    // As many records as before, so that the offset itself is one that exists.
    let publisher = client.publisher(&name("a/b/c"), PublisherOptions::default()).unwrap();
    for _ in 0..3 {
        publisher.send(&RecordToPublish { value: b"after", ..Default::default() }).unwrap();
    }
    assert_eq!(publisher.flush().unwrap().acked, 3);
    let start = Start::Position(Position { lineage, offset: Offset(1) });
    let options = SubscribeOptions { shards: Shards::One(0), start, on_reset: OnReset::Stop, ..Default::default() };
    let error = client.subscribe(&name("a/b/c"), options).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::LineageReset), "{error}");
}

/// Clients that make and delete streams without a pause while the broker is killed again and again. They repeat what
/// was under way under the same idempotency key, so no command is ever told that it was done by somebody else.
#[test]
fn what_was_acknowledged_survives_twenty_kills() {
    let mut broker = Broker::new("kills", 2);
    broker.start();
    let admin = broker.connect();
    let limits = TenantLimits { streams_max: 1_000_000, shards_max: 1_000_000, retained_bytes_max: u64::MAX };
    admin.admin(Command::CreateTenant { tenant: "t".into(), limits }).unwrap();
    // Name to info of all that must be there; names whose end is unknown right now.
    let acked: Mutex<BTreeMap<String, StreamInfo>> = Mutex::new(BTreeMap::new());
    let underway: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let (done, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut interrupted = 0;
    std::thread::scope(|scope| {
        for writer in 0..6 {
            let client = Arc::new(broker.connect());
            let (acked, underway, done, count) = (&acked, &underway, &done, &count);
            // Who only waits for an answer that will never come learns of the restart at the next keep-alive; a packet
            // now and then tells it at once.
            let nudge = client.clone();
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let _ = nudge.route(&name("t/n/nobody"));
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            scope.spawn(move || {
                for at in 0.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let text = format!("t/n/w{writer}-{at}");
                    underway.lock().unwrap().insert(text.clone());
                    let info = made(client.admin(create(&text)).unwrap_or_else(|error| panic!("{text}: {error}")));
                    assert_eq!(info.name.to_string(), text, "the answer of another request");
                    acked.lock().unwrap().insert(text.clone(), info);
                    count.fetch_add(1, Ordering::Relaxed);
                    if at % 3 == 2 {
                        // Unknown from here until it is acknowledged: then it must be gone.
                        acked.lock().unwrap().remove(&text);
                        let delete = Command::DeleteStream { name: name(&text) };
                        client.admin(delete).unwrap_or_else(|error| panic!("delete {text}: {error}"));
                    }
                    underway.lock().unwrap().remove(&text);
                }
            });
        }
        // Whatever fails below must not leave the writers at work for ever.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&done);
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        for kill in 0..KILLS {
            let before = count.load(Ordering::Relaxed);
            let give_up = Instant::now() + PATIENCE;
            while count.load(Ordering::Relaxed) < before + 20 {
                assert!(Instant::now() < give_up, "nothing is acknowledged in life {kill}: {}", broker.log());
                std::thread::sleep(Duration::from_millis(1));
            }
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            std::thread::sleep(Duration::from_micros(random % 30_000));
            broker.kill();
            // The broker is dead: what is acknowledged now was acknowledged before.
            let expected = acked.lock().unwrap().clone();
            interrupted += underway.lock().unwrap().len();
            broker.start();
            let client = broker.connect();
            let found = all_streams(&client);
            client.close();
            let unknown = underway.lock().unwrap().clone();
            for (text, info) in &expected {
                // A writer may have gone on to delete it meanwhile.
                if acked.lock().unwrap().contains_key(text) && !unknown.contains(text) {
                    assert_eq!(found.get(text), Some(info), "kill {kill}: {text} was acknowledged");
                }
            }
            let ids: BTreeSet<u64> = found.values().map(|it| it.id.0).collect();
            assert_eq!(ids.len(), found.len(), "an id twice");
        }
    });
    assert!(interrupted > KILLS, "{interrupted} commands were under way at the kills: too few to show anything");
    // All writers have ended in order: exactly what they made and did not delete is there.
    let found = all_streams(&admin);
    assert_eq!(found, acked.into_inner().unwrap());
    assert!(found.len() > 200, "{} streams", found.len());
    broker.stop();
}

/// Many commands at once, over all cores: each client gets its own answers, and a stream can be used through any core
/// as soon as it was answered.
#[test]
fn answers_go_to_whoever_asked_and_come_after_the_cores_know() {
    let mut broker = Broker::new("many", 4);
    broker.start();
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let broker = &broker;
            scope.spawn(move || {
                let (maker, user) = (broker.connect(), broker.connect());
                for at in 0..25 {
                    let text = format!("t{writer}/n/s{at}");
                    let info = made(maker.admin(create(&text)).unwrap());
                    assert_eq!(info.name.to_string(), text);
                    let route = user.route(&info.name).unwrap_or_else(|error| panic!("{text} is not known: {error}"));
                    assert_eq!(route.stream, info.id);
                }
            });
        }
    });
    broker.stop();
}

#[test]
fn shards_go_with_the_number_of_cores() {
    let mut broker = Broker::new("cores", 1);
    broker.start();
    let spec = StreamSpec { shards: 8, ..StreamSpec::default() };
    let client = broker.connect();
    client.admin(Command::CreateStream { name: name("a/b/c"), spec, create_parents: true }).unwrap();
    client.close();
    for cores in [4, 2, 1] {
        broker.stop();
        broker.cores = cores;
        broker.start();
        let client = broker.connect();
        let owners: BTreeSet<u8> = client.route(&name("a/b/c")).unwrap().shards.iter().map(|it| it.core.0).collect();
        assert_eq!(owners, (0..cores).collect(), "{cores} cores");
        let publisher = client.publisher(&name("a/b/c"), PublisherOptions::default()).unwrap();
        for at in 0..64u32 {
            let key = at.to_le_bytes();
            publisher.send(&RecordToPublish { key: Some(&key), value: b"x", ..Default::default() }).unwrap();
        }
        assert_eq!(publisher.flush().unwrap().acked, 64);
        drop(publisher);
        client.close();
    }
}

#[test]
fn a_folder_in_use_or_without_its_metadata_is_refused() {
    let mut broker = Broker::new("refused", 1);
    broker.start();
    let mut second = Broker::new("refused-second", 1);
    second.data = broker.data.clone();
    let text = second.refusal();
    assert!(text.contains("in use by another broker") && text.contains("--data"), "{text}");
    second.data = second.data.with_extension("nothing");
    let client = broker.connect();
    client.admin(create("a/b/c")).unwrap();
    client.close();
    broker.kill();

    let control = broker.data.join("control");
    let aside = broker.data.join("aside");
    fs::rename(&control, &aside).unwrap();
    let session = fs::read(broker.data.join("session")).unwrap();
    let text = broker.refusal();
    for part in [control.to_str().unwrap(), "is missing", "restore it from a backup", "--data"] {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert_eq!(fs::read(broker.data.join("session")).unwrap(), session, "a refused start is no start");
    assert!(!control.exists());
    fs::rename(&aside, &control).unwrap();

    // Damage is refused too, and nothing is touched.
    let log = control.join("log");
    let file = fs::read_dir(&log).unwrap().map(|it| it.unwrap().path()).find(|it| it.extension().is_some()).unwrap();
    let good = fs::read(&file).unwrap();
    let mut bad = good.clone();
    // In front of most of what was written.
    let at = good.iter().rposition(|byte| *byte != 0).unwrap() / 2;
    bad[at] ^= 1;
    fs::write(&file, &bad).unwrap();
    let text = broker.refusal();
    assert!(text.contains("the metadata is damaged") && text.contains("restore a backup"), "{text}");
    assert!(!text.contains("Aborted"), "{text}");
    fs::write(&file, &good).unwrap();

    // An older session beside newer metadata.
    fs::write(broker.data.join("session"), "0\n").unwrap();
    let text = broker.refusal();
    assert!(text.contains("refuse start 1") && text.contains("its last one was 1"), "{text}");
    fs::write(broker.data.join("session"), session).unwrap();
    broker.start();
    assert_eq!(all_streams(&broker.connect()).len(), 1);
}

/// A folder that the version with metadata in memory left: it counted its starts and made ids from their number.
#[test]
fn a_folder_of_the_version_before_goes_on_above_its_ids() {
    let mut broker = Broker::new("before", 1);
    broker.start();
    broker.stop();
    // What that version wrote is what is left now.
    fs::remove_dir_all(broker.data.join("control")).unwrap();
    fs::remove_file(broker.data.join("format")).unwrap();
    fs::write(broker.data.join("session"), "41\n").unwrap();
    broker.start();
    let client = broker.connect();
    let info = made(client.admin(create("a/b/c")).unwrap());
    let (_, lineages) = described(&client, "a/b/c");
    assert!(info.id.0 >= 42 << 32 && lineages[0] >= 42, "{info:?} {lineages:?}");
    client.close();
    broker.stop();
    broker.start();
    assert_eq!(all_streams(&broker.connect())["a/b/c"], info);
}

/// The disk fails under a running broker: not ready any more, writes are refused by a typed error, reads and the data
/// path go on, and a restart over a good disk has everything that was acknowledged.
#[test]
fn a_failed_disk_stops_writes_and_nothing_else() {
    let mut broker = Broker::new("disk", 2);
    broker.start();
    let client = Client::connect(broker.config().request_timeout(Duration::from_secs(3))).unwrap();
    client.admin(create("a/b/kept")).unwrap();
    let publisher = client.publisher(&name("a/b/kept"), PublisherOptions::default()).unwrap();
    let Some(mut strace) = fail_syncs(broker.child.as_ref().unwrap().id(), &broker.data) else { return };
    let started = Instant::now();
    let error = client.admin(create("a/b/lost")).unwrap_err();
    match &error {
        RequestError::Refused { code: ErrorCode::Internal, detail, .. } => {
            assert!(detail.contains("the metadata stopped"), "{detail}");
        }
        // The client repeats what may be repeated until its time is over.
        RequestError::TimedOut { outcome_unknown: true, .. } => {}
        other => panic!("{other:?}"),
    }
    assert!(started.elapsed() < PATIENCE);
    let ready = get(broker.http, "/readyz");
    assert!(ready.starts_with("HTTP/1.0 503") && ready.contains("the metadata stopped"), "{ready}");
    assert!(get(broker.http, "/healthz").starts_with("HTTP/1.0 200"));
    assert!(all_streams(&client).contains_key("a/b/kept"));
    assert!(client.stats(None).is_ok());
    publisher.send(&RecordToPublish { value: b"still", ..Default::default() }).unwrap();
    assert_eq!(publisher.flush().unwrap().acked, 1);
    assert!(broker.log().contains("only reads go on"), "{}", broker.log());
    drop(publisher);
    client.close();
    // Detached first: the stop is an orderly one.
    assert!(Process::new("kill").args(["-INT", &strace.id().to_string()]).status().unwrap().success());
    strace.wait().unwrap();
    broker.stop();
    broker.start();
    let found = all_streams(&broker.connect());
    assert!(found.contains_key("a/b/kept"), "{found:?}");
}

/// Makes every sync of a process fail from now on. None: strace is missing or may not trace here.
fn fail_syncs(process: u32, folder: &Path) -> Option<Child> {
    let trace = folder.join("trace");
    let child = Process::new("strace")
        .args(["-f", "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO", "-p"])
        .arg(process.to_string())
        .arg("-o")
        .arg(&trace)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            eprintln!("skipped: strace is not installed ({error})");
            return None;
        }
    };
    // It says when it is attached.
    let mut said = [0; 256];
    let count = child.stderr.as_mut().unwrap().read(&mut said).unwrap_or(0);
    let said = String::from_utf8_lossy(&said[..count]).to_string();
    if !said.contains("attached") {
        eprintln!("skipped: strace may not trace here: {said}");
        let _ = child.wait();
        return None;
    }
    Some(child)
}
