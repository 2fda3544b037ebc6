//! **What**: backup and restore with real processes: `felix backup` of a broker that publishers use, `felix-broker restore`
//! into a new data folder, a broker on it, and every record, position, key and setting compared.
//!
//! **Invariants**: needs `felix-broker` beside the tool (`cargo build --workspace --bins`); without it the tests say so and
//! pass. `FELIX_E2E=1` makes a missing broker a failure. Every wait has a bound.
//!
//! **Never**: a fixed port; a process that outlives its test.
//!
//! **See**: `felix_protocol::backup`, `broker/src/tools/restore.rs`.

use felix_client::protocol::backup::{MANIFEST, Manifest, ShardFile};
use felix_client::protocol::metadata::{Durability, ShardStatus, StreamInfo, StreamSpec, TenantLimits};
use felix_client::protocol::names::{NamespaceName, StreamName};
use felix_client::protocol::position::Position;
use felix_client::{
    Client, ClientConfig, Command, Compression, Context, Item, PublisherOptions, RecordToPublish, Reply, Shards, Start,
    SubscribeOptions,
};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

fn binary() -> Option<PathBuf> {
    let binary = Path::new(env!("CARGO_BIN_EXE_felix")).with_file_name("felix-broker");
    if !binary.exists() {
        assert!(std::env::var_os("FELIX_E2E").is_none(), "no {}: cargo build --workspace --bins", binary.display());
        eprintln!("skipped: no {}", binary.display());
        return None;
    }
    Some(binary)
}

/// A folder of the test's own, on a disk: a broker refuses one in memory.
fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("backup-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

struct Broker {
    child: Option<Child>,
    data: PathBuf,
}

impl Broker {
    fn start(binary: &Path, data: &Path, cores: u8) -> Broker {
        let listen = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = fs::File::options().create(true).append(true).open(data.with_extension("log")).unwrap();
        let mut command = Process::new(binary);
        command
            .args(["dev", "--wait", "park", "--drain-ms", "300", "--cores", &cores.to_string()])
            .args(["--listen", &listen.to_string(), "--http", &http.to_string()])
            .arg("--data")
            .arg(data)
            .stdout(Stdio::null())
            .stderr(log);
        let mut broker = Broker { child: Some(command.spawn().unwrap()), data: data.to_path_buf() };
        let give_up = Instant::now() + PATIENCE;
        while !is_ready(http) {
            let ended = broker.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < give_up, "it does not start: {}", broker.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        broker
    }

    fn log(&self) -> String {
        fs::read_to_string(self.data.with_extension("log")).unwrap_or_default()
    }

    fn stop(mut self) {
        let mut child = self.child.take().unwrap();
        assert!(Process::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{}", self.log());
    }

    fn context(&self) -> PathBuf {
        self.data.join("context.toml")
    }

    fn connect(&self) -> Client {
        let context = Context::load(self.context()).unwrap();
        Client::connect(ClientConfig::from_context(&context).unwrap().request_timeout(PATIENCE)).unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn is_ready(http: SocketAddr) -> bool {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(http) {
        let _ = stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n");
        let _ = stream.read_to_string(&mut answer);
    }
    answer.starts_with("HTTP/1.0 200")
}

fn run(program: &Path, arguments: &[&str]) -> Output {
    Process::new(program).args(arguments).env_clear().stdin(Stdio::null()).output().unwrap()
}

fn felix(arguments: &[&str]) -> Output {
    run(Path::new(env!("CARGO_BIN_EXE_felix")), arguments)
}

/// Code and what it said.
fn ended(output: &Output) -> (i32, String) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    (output.status.code().expect("no signal ends it"), text)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn stream(text: &str) -> StreamName {
    StreamName::parse(text).unwrap()
}

fn describe(client: &Client, name: &str) -> (StreamInfo, Vec<ShardStatus>) {
    match client.admin(Command::DescribeStream { name: stream(name) }).unwrap() {
        Reply::Stream { stream, shards } => (stream, shards),
        other => panic!("{other:?}"),
    }
}

fn publish(client: &Client, name: &str, numbers: std::ops::Range<u64>, value_bytes: usize) {
    let options = PublisherOptions { compression: Compression::Zstd, ..PublisherOptions::default() };
    let publisher = client.publisher(&stream(name), options).unwrap();
    for number in numbers {
        // A part that compresses and a part that does not.
        let noise = (0..value_bytes / 2).map(|at| (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (at % 57)) as u8);
        let value: Vec<u8> =
            format!("{number}-").into_bytes().into_iter().chain(noise).chain(vec![b'z'; value_bytes / 2]).collect();
        let key = format!("k{}", number % 23);
        let headers: &[(&str, &[u8])] = &[("n", b"v")];
        let record = RecordToPublish { key: Some(key.as_bytes()), value: &value, headers, ..Default::default() };
        publisher.send(&record).unwrap();
    }
    publisher.flush().unwrap();
}

/// Batches as they were delivered, from the earliest of a shard to `end`.
fn batches(client: &Client, name: &str, shard: u32, end: u64) -> Vec<Vec<u8>> {
    let options = SubscribeOptions { start: Start::Earliest, shards: Shards::One(shard), ..Default::default() };
    let mut subscriber = client.subscribe(&stream(name), options).unwrap();
    let mut found = Vec::new();
    let mut next = 0;
    while next < end {
        let item = subscriber.next_item(Some(PATIENCE)).unwrap().unwrap_or_else(|| panic!("{name}: nothing at {next}"));
        next = item.next_position().offset.0;
        match item {
            Item::Records(batch) => found.push(batch.bytes().to_vec()),
            other => panic!("{other:?}"),
        }
    }
    found
}

/// Offset, key and value of the next record from a position.
fn record_at(client: &Client, name: &str, shard: u32, start: Start) -> (Position, Vec<u8>, Vec<u8>) {
    let options = SubscribeOptions { start, shards: Shards::One(shard), ..Default::default() };
    let mut subscriber = client.subscribe(&stream(name), options).unwrap();
    match subscriber.next_item(Some(PATIENCE)).unwrap() {
        Some(Item::Records(batch)) => {
            let record = batch.records().next().unwrap();
            (record.position, record.key.unwrap().to_vec(), record.value.to_vec())
        }
        other => panic!("{other:?}"),
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().try_into().unwrap()
}

const LIMITS: TenantLimits = TenantLimits { streams_max: 77, shards_max: 99, retained_bytes_max: 1 << 36 };

fn specs() -> BTreeMap<&'static str, StreamSpec> {
    let group = StreamSpec { durability: Durability::Group, retention_bytes: 1 << 30, ..StreamSpec::default() };
    BTreeMap::from([
        ("acme/md/busy", StreamSpec { shards: 3, ..group }),
        ("acme/md/cut", StreamSpec { retention_bytes: 4 << 20, ..group }),
        ("acme/md/none", StreamSpec { durability: Durability::Each, retention_age_ms: Some(86_400_000), ..group }),
        ("acme/md/memory", StreamSpec { shards: 2, ..StreamSpec::default() }),
        (
            "other/x/y",
            StreamSpec { durability: Durability::Interval, interval_ms: 50, batch_bytes_max: 99_999, ..group },
        ),
    ])
}

fn make_streams(client: &Client) {
    client.admin(Command::CreateTenant { tenant: "acme".into(), limits: LIMITS }).unwrap();
    for name in ["acme/md", "acme/vacant"] {
        client.admin(Command::CreateNamespace { name: NamespaceName::parse(name).unwrap() }).unwrap();
    }
    for (name, spec) in specs() {
        client.admin(Command::CreateStream { name: stream(name), spec, create_parents: true }).unwrap();
    }
    publish(client, "acme/md/busy", 0..4_000, 900);
    publish(client, "other/x/y", 0..100, 100);
    // Until retention has cut the beginning off.
    let started = Instant::now();
    let mut number = 0;
    while describe(client, "acme/md/cut").1[0].log_start.0 == 0 {
        assert!(started.elapsed() < PATIENCE, "retention takes nothing");
        publish(client, "acme/md/cut", number..number + 2_000, 2_000);
        number += 2_000;
    }
}

/// First offset that a restored shard gives: behind all that the old broker may have given since the backup.
fn goes_on_at(file: &ShardFile) -> u64 {
    file.end.0 + (1 << 32)
}

/// What was saved, as the first broker delivers it.
type Saved = BTreeMap<(String, u32), Vec<Vec<u8>>>;

fn read_saved(client: &Client, manifest: &Manifest) -> Saved {
    let mut saved = Saved::new();
    for backup in &manifest.streams {
        for (index, file) in (0..).zip(&backup.files) {
            let name = backup.info.name.to_string();
            let found = if file.log_start < file.end { batches(client, &name, index, file.end.0) } else { Vec::new() };
            saved.insert((name, index), found);
        }
    }
    saved
}

#[test]
fn a_restored_broker_is_the_one_that_was_saved() {
    let Some(binary) = binary() else { return };
    let root = folder("round");
    let (data, backup, restored) = (root.join("data"), root.join("backup"), root.join("restored"));
    fs::create_dir(&data).unwrap();
    let first = Broker::start(&binary, &data, 2);
    let client = first.connect();
    make_streams(&client);
    let position = record_at(&client, "acme/md/busy", 1, Start::Earliest).0;
    let position = Position { offset: felix_client::protocol::position::Offset(position.offset.0 + 100), ..position };
    let kept = record_at(&client, "acme/md/busy", 1, Start::Position(position));
    assert_eq!(kept.0, position);

    // Publishers go on while it is saved.
    let stop = AtomicBool::new(false);
    let saved = std::thread::scope(|scope| {
        let (client, stop) = (&client, &stop);
        let publisher = scope.spawn(move || {
            let mut number = 100_000;
            while !stop.load(Ordering::Relaxed) {
                publish(client, "acme/md/busy", number..number + 50, 300);
                number += 50;
            }
            number
        });
        let saved = felix(&["backup", text(&backup), "--context", text(&first.context())]);
        stop.store(true, Ordering::Relaxed);
        assert!(publisher.join().unwrap() > 100_050, "nothing was published meanwhile");
        saved
    });
    let (code, said) = ended(&saved);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("acme/md/memory: ephemeral"), "{said}");
    let (code, said) = ended(&felix(&["backup", "verify", text(&backup)]));
    assert_eq!(code, 0, "{said}");
    let (code, said) = ended(&felix(&["backup", text(&backup), "--context", text(&first.context())]));
    assert_eq!(code, 6, "a second backup went into the folder: {said}");

    let manifest = Manifest::parse(&fs::read(backup.join(MANIFEST)).unwrap(), sha256).unwrap();
    assert_eq!(manifest.streams.len(), specs().len());
    let busy = manifest.streams.iter().find(|it| it.info.name == stream("acme/md/busy")).unwrap();
    let now = describe(&client, "acme/md/busy").1;
    let ahead = |file: &ShardFile| now.iter().any(|it| it.shard == file.shard && it.high_watermark > file.end);
    assert!(busy.files.iter().any(ahead), "the backup did not end before the publishers");
    let cut = manifest.streams.iter().find(|it| it.info.name == stream("acme/md/cut")).unwrap();
    assert!(cut.files[0].log_start.0 > 0);
    let expected = read_saved(&client, &manifest);
    let key_shards: BTreeMap<Vec<u8>, u32> = key_shards(&client, &manifest);
    drop(client);
    first.stop();

    let restore = |data: &Path| ended(&run(&binary, &["restore", text(&backup), "--data", text(data)]));
    let (code, said) = restore(&restored);
    assert_eq!(code, 0, "{said}");
    let (code, said) = restore(&restored);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("is not empty"), "{said}");
    let (code, said) = ended(&run(&binary, &["check", text(&restored)]));
    assert_eq!(code, 0, "{said}");

    // Another number of cores: the restored shards move.
    let second = Broker::start(&binary, &restored, 1);
    let client = second.connect();
    assert_eq!(client.welcome().cluster, manifest.cluster);
    assert_ne!(client.welcome().node, manifest.node);
    compare(&client, &manifest, &expected);
    assert_eq!(record_at(&client, "acme/md/busy", 1, Start::Position(position)), kept, "a saved position goes on");

    // What is published now follows what was restored, on the shard of its key, under a producer that nobody had.
    publish(&client, "acme/md/busy", 900_000..900_023, 10);
    for status in describe(&client, "acme/md/busy").1 {
        let file = busy.files.iter().find(|it| it.shard == status.shard).unwrap();
        for at in goes_on_at(file)..status.high_watermark.0 {
            let start = Start::Position(Position {
                lineage: file.lineage,
                offset: felix_client::protocol::position::Offset(at),
            });
            let (found, key, value) = record_at(&client, "acme/md/busy", status.index.0, start);
            assert_eq!(found.offset.0, at);
            assert!(value.starts_with(b"9000"), "{value:?}");
            assert_eq!(key_shards.get(&key), Some(&status.index.0), "the key moved to another shard");
        }
    }
    let added: u64 = describe(&client, "acme/md/busy").1.iter().map(|it| it.high_watermark.0).sum::<u64>()
        - busy.files.iter().map(goes_on_at).sum::<u64>();
    assert_eq!(added, 23);
    // Who had read what the backup does not hold is told of a gap, and never given another record in its place.
    for (index, file) in (0..).zip(&busy.files) {
        let offset = felix_client::protocol::position::Offset(file.end.0 + 1);
        let start = Start::Position(Position { lineage: file.lineage, offset });
        let options = SubscribeOptions { start, shards: Shards::One(index), ..Default::default() };
        let mut subscriber = client.subscribe(&busy.info.name, options).unwrap();
        match subscriber.next_item(Some(PATIENCE)).unwrap() {
            Some(Item::Gap { covered, .. }) => assert_eq!((covered.from, covered.to.0), (offset, goes_on_at(file))),
            other => panic!("{other:?}"),
        }
    }
    // A restored broker is saved like any other.
    let again = root.join("again");
    let (code, said) = ended(&felix(&["backup", text(&again), "--context", text(&second.context())]));
    assert_eq!(code, 0, "{said}");
    let (code, said) = ended(&felix(&["backup", "verify", text(&again)]));
    assert_eq!(code, 0, "{said}");
    // A new stream meets no id of the old cluster.
    let spec = specs()["acme/md/busy"];
    client.admin(Command::CreateStream { name: stream("acme/md/new"), spec, create_parents: false }).unwrap();
    let new = describe(&client, "acme/md/new");
    assert!(manifest.streams.iter().all(|it| it.info.id < new.0.id && it.shards[0].lineage < new.1[0].lineage));
    drop(client);
    second.stop();

    // And once more, after a start that read its own log.
    let third = Broker::start(&binary, &restored, 2);
    let client = third.connect();
    compare_records(&client, &manifest, &expected);
    assert_eq!(record_at(&client, "acme/md/busy", 1, Start::Position(position)), kept);
    drop(client);
    third.stop();
    fs::remove_dir_all(root).unwrap();
}

/// The shard of every key, from records that are there.
fn key_shards(client: &Client, manifest: &Manifest) -> BTreeMap<Vec<u8>, u32> {
    let busy = manifest.streams.iter().find(|it| it.info.name == stream("acme/md/busy")).unwrap();
    let mut found = BTreeMap::new();
    for (index, file) in (0..).zip(&busy.files) {
        let options = SubscribeOptions { start: Start::Earliest, shards: Shards::One(index), ..Default::default() };
        let mut subscriber = client.subscribe(&busy.info.name, options).unwrap();
        let mut next = 0;
        while next < file.end.0 {
            let item = subscriber.next_item(Some(PATIENCE)).unwrap().unwrap();
            next = item.next_position().offset.0;
            if let Item::Records(batch) = &item {
                batch.records().for_each(|record| {
                    found.insert(record.key.unwrap().to_vec(), index);
                });
            }
        }
    }
    assert_eq!(found.len(), 23);
    found
}

fn compare(client: &Client, manifest: &Manifest, expected: &Saved) {
    let Reply::Tenants { tenants, .. } = client.admin(Command::ListTenants { after: None }).unwrap() else { panic!() };
    assert_eq!(tenants, manifest.tenants);
    assert_eq!(tenants.iter().find(|it| it.name == "acme").unwrap().limits, LIMITS);
    let list = Command::ListNamespaces { tenant: "acme".into(), after: None };
    let Reply::Namespaces { names, .. } = client.admin(list).unwrap() else { panic!() };
    assert_eq!(names.iter().map(ToString::to_string).collect::<Vec<_>>(), ["acme/md", "acme/vacant"]);
    for backup in &manifest.streams {
        let name = backup.info.name.to_string();
        let (info, shards) = describe(client, &name);
        assert_eq!(info.spec, specs()[name.as_str()]);
        assert_eq!(
            (info.id, info.created, info.spec),
            (backup.info.id, backup.info.created, backup.info.spec),
            "{name}"
        );
        for ((now, then), file) in shards.iter().zip(&backup.shards).zip(&backup.files) {
            assert_eq!((now.shard, now.index, now.lineage), (then.shard, then.index, then.lineage), "{name}");
            assert!(now.epoch > then.epoch, "{name}");
            assert_eq!((now.log_start, now.high_watermark.0), (file.log_start, goes_on_at(file)), "{name}");
        }
    }
    compare_records(client, manifest, expected);
}

fn compare_records(client: &Client, manifest: &Manifest, expected: &Saved) {
    let found = read_saved(client, manifest);
    assert_eq!(found.len(), expected.len());
    for (shard, batches) in &found {
        // Byte for byte: headers, epochs, compressed values.
        assert!(batches == &expected[shard], "{shard:?} differs");
    }
    assert!(found.values().map(Vec::len).sum::<usize>() > 50, "hardly anything was compared");
}

#[test]
fn a_damaged_or_unfinished_backup_is_refused() {
    let Some(binary) = binary() else { return };
    let root = folder("damage");
    let (data, backup, restored) = (root.join("data"), root.join("backup"), root.join("restored"));
    fs::create_dir(&data).unwrap();
    let broker = Broker::start(&binary, &data, 1);
    let client = broker.connect();
    let spec = StreamSpec { durability: Durability::Group, shards: 2, ..StreamSpec::default() };
    for name in ["a/b/c", "a/b/d"] {
        client.admin(Command::CreateStream { name: stream(name), spec, create_parents: true }).unwrap();
        publish(&client, name, 0..60, 200);
    }
    let (code, said) =
        ended(&felix(&["backup", text(&backup), "--stream", "a/b/c", "--context", text(&broker.context())]));
    assert_eq!(code, 0, "{said}");
    let missing = root.join("missing");
    let (code, said) =
        ended(&felix(&["backup", text(&missing), "--stream", "a/b/x", "--context", text(&broker.context())]));
    assert_eq!(code, 5, "{said}");
    assert!(!missing.join(MANIFEST).exists());
    drop(client);
    broker.stop();

    let manifest = Manifest::parse(&fs::read(backup.join(MANIFEST)).unwrap(), sha256).unwrap();
    assert_eq!(manifest.streams.len(), 1, "only what was asked for");
    let mut files: Vec<PathBuf> = fs::read_dir(backup.join("shards")).unwrap().map(|it| it.unwrap().path()).collect();
    files.push(backup.join(MANIFEST));
    assert_eq!(files.len(), 3);
    let refused = |what: &str| {
        let (code, said) = ended(&felix(&["backup", "verify", text(&backup)]));
        assert!(code == 1 || code == 5, "{what}: verify ended with {code}: {said}");
        let (code, said) = ended(&run(&binary, &["restore", text(&backup), "--data", text(&restored)]));
        assert_eq!(code, 2, "{what}: {said}");
        assert!(!restored.exists() && !root.join("restored.restoring").exists(), "{what}: something was made");
    };
    for path in &files {
        let whole = fs::read(path).unwrap();
        let middle = whole.len() / 2;
        for at in [0, 1, 7, 40, 90, middle, middle + 1, whole.len() - 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x04;
            fs::write(path, bytes).unwrap();
            refused(&format!("byte {at} of {}", path.display()));
        }
        fs::write(path, &whole[..middle]).unwrap();
        refused(&format!("half of {}", path.display()));
        fs::remove_file(path).unwrap();
        refused(&format!("no {}", path.display()));
        fs::write(path, &whole).unwrap();
    }
    // Whole again: it is the damage that was refused.
    let (code, said) = ended(&run(&binary, &["restore", text(&backup), "--data", text(&restored)]));
    assert_eq!(code, 0, "{said}");
    fs::remove_dir_all(root).unwrap();
}

/// A broker with the durable stream a/b/c.
fn with_ten_records(binary: &Path, data: &Path) -> (Broker, Client) {
    fs::create_dir(data).unwrap();
    let broker = Broker::start(binary, data, 1);
    let client = broker.connect();
    let spec = StreamSpec { durability: Durability::Group, ..StreamSpec::default() };
    client.admin(Command::CreateStream { name: stream("a/b/c"), spec, create_parents: true }).unwrap();
    publish(&client, "a/b/c", 0..10, 100);
    (broker, client)
}

#[test]
fn a_stream_whose_last_records_have_expired_is_saved() {
    let Some(binary) = binary() else { return };
    let root = folder("expired");
    let (data, backup) = (root.join("data"), root.join("backup"));
    let (broker, client) = with_ten_records(&binary, &data);
    let publisher = client.publisher(&stream("a/b/c"), PublisherOptions::default()).unwrap();
    for _ in 0..10 {
        publisher.send(&RecordToPublish { value: b"soon gone", ttl_ms: Some(50), ..Default::default() }).unwrap();
    }
    publisher.flush().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let (code, said) = ended(&felix(&["backup", text(&backup), "--context", text(&broker.context())]));
    assert_eq!(code, 0, "{said}");
    let manifest = Manifest::parse(&fs::read(backup.join(MANIFEST)).unwrap(), sha256).unwrap();
    assert_eq!(manifest.streams[0].files[0].end.0, 20);
}

#[test]
fn a_shard_that_did_not_open_is_not_saved_as_empty() {
    let Some(binary) = binary() else { return };
    let root = folder("unopened");
    let (data, backup) = (root.join("data"), root.join("backup"));
    let (broker, client) = with_ten_records(&binary, &data);
    drop(client);
    broker.stop();
    let at = fs::read_dir(data.join("shards")).unwrap().next().unwrap().unwrap().path();
    fs::rename(&at, root.join("away")).unwrap();
    let broker = Broker::start(&binary, &data, 1);
    let (code, said) = ended(&felix(&["backup", text(&backup), "--context", text(&broker.context())]));
    assert!(code == 1 && said.contains("a/b/c") && said.contains("the shard did not open"), "{code}: {said}");
    assert!(!backup.join(MANIFEST).exists());
    // With the folder back all of it is saved, and an empty shard is no fault.
    broker.stop();
    fs::rename(root.join("away"), &at).unwrap();
    let broker = Broker::start(&binary, &data, 1);
    let client = broker.connect();
    client
        .admin(Command::CreateStream {
            name: stream("a/b/empty"),
            spec: StreamSpec { durability: Durability::Group, ..StreamSpec::default() },
            create_parents: true,
        })
        .unwrap();
    let backup = root.join("second");
    let (code, said) = ended(&felix(&["backup", text(&backup), "--context", text(&broker.context())]));
    assert_eq!(code, 0, "{said}");
    let manifest = Manifest::parse(&fs::read(backup.join(MANIFEST)).unwrap(), sha256).unwrap();
    // What the end is taken from if reports are old.
    let subscriber = client.subscribe(&stream("a/b/c"), SubscribeOptions::default()).unwrap();
    assert_eq!(subscriber.committed().iter().map(|it| it.offset.0).collect::<Vec<_>>(), [10]);
    let ends: Vec<u64> = manifest.streams.iter().map(|it| it.files[0].end.0).collect();
    assert_eq!(ends, [10, 0]);
}
