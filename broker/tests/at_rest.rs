//! Streams that are sealed at rest, and compacted ones, in a real broker process: what stands on the disk, what a keyring is
//! needed for, what rotation keeps and what destroying a key takes.

mod broker_process;

use broker_process::{Broker, PATIENCE, name};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::time::{Duration, Instant};

use felix_client::protocol::metadata::{Durability, StreamSpec};
use felix_client::{Client, Command, Item, PublisherOptions, RecordToPublish, Shards, Start, SubscribeOptions};

/// In every value and key of a test.
const CANARY: &str = "yellow-canary";

impl Broker {
    fn hang_up(&self, word: &str) {
        let before = self.log().matches(word).count();
        self.signal("-HUP");
        let give_up = Instant::now() + PATIENCE;
        while self.log().matches(word).count() == before {
            assert!(Instant::now() < give_up, "no {word} in {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn keyring(&self, words: &[&str]) -> (i32, String) {
        let mut command = Process::new(env!("CARGO_BIN_EXE_felix-broker"));
        let output = command.arg("keyring").arg(&self.data).args(words).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    }

    fn keyring_path(&self) -> PathBuf {
        self.data.join("secrets/keyring")
    }
}

fn sealed() -> StreamSpec {
    StreamSpec {
        durability: Durability::Group,
        shards: 1,
        retention_bytes: 1 << 30,
        encrypt: true,
        ..StreamSpec::default()
    }
}

fn create(client: &Client, text: &str, spec: StreamSpec) {
    client.admin(Command::CreateStream { name: name(text), spec, create_parents: true }).unwrap();
}

/// `count` records, whose values begin with the canary and their number.
fn publish(client: &Client, text: &str, first: u64, count: u64, bytes: usize) {
    let publisher = client.publisher(&name(text), PublisherOptions::default()).unwrap();
    for number in first..first + count {
        let (key, value) = (format!("{CANARY}-key-{}", number % 7), format!("{CANARY} {number} {}", "x".repeat(bytes)));
        let record = RecordToPublish { key: Some(key.as_bytes()), value: value.as_bytes(), ..Default::default() };
        publisher.send(&record).unwrap();
    }
    publisher.flush().unwrap();
}

/// Numbers of the records from the earliest one on, until `last` came, and the offsets told as gaps.
fn read(client: &Client, text: &str, last: u64) -> (Vec<u64>, Vec<std::ops::Range<u64>>) {
    let options = SubscribeOptions { start: Start::Earliest, shards: Shards::All, ..SubscribeOptions::default() };
    let mut subscriber = client.subscribe(&name(text), options).unwrap();
    let (mut found, mut gaps) = (Vec::new(), Vec::new());
    while found.last() != Some(&last) {
        match subscriber.next_item(Some(PATIENCE)).unwrap() {
            Some(Item::Records(batch)) => {
                for record in batch.records() {
                    let record = record.to_record().unwrap();
                    let value = String::from_utf8(record.value.to_vec()).unwrap();
                    let number = value.strip_prefix(CANARY).unwrap().split_whitespace().next().unwrap();
                    found.push(number.parse().unwrap());
                }
            }
            Some(Item::Gap { covered, .. }) => gaps.push(covered.from.0..covered.to.0),
            Some(_) => {}
            None => panic!("{} records came, {gaps:?}", found.len()),
        }
    }
    (found, gaps)
}

/// Files below a folder that hold the canary.
fn leaks(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if fs::read(&path).unwrap().windows(CANARY.len()).any(|it| it == CANARY.as_bytes()) {
                found.push(path);
            }
        }
    }
    found
}

fn everything(count: u64) -> Vec<u64> {
    (0..count).collect()
}

#[test]
fn no_file_holds_a_word_of_a_sealed_stream() {
    let mut broker = Broker::new("canary", 2);
    broker.start();
    let client = broker.connect();
    create(&client, "acme/n/sealed", sealed());
    // More than what a flush waits for: it stands in WAL and segments.
    publish(&client, "acme/n/sealed", 0, 12_000, 1_000);
    broker.wait_for("a flush", || broker.metric("felix_store_flushed_bytes_total") > 4 << 20);
    broker.kill();
    assert_eq!(leaks(&broker.data), Vec::<PathBuf>::new());
    // A start brings the rest into segments, and all can be read.
    broker.start();
    let client = broker.connect();
    assert_eq!(read(&client, "acme/n/sealed", 11_999), (everything(12_000), vec![]));
    broker.wait_for("history", || broker.metric("felix_store_history_batches_total") > 0);
    broker.stop();
    assert_eq!(leaks(&broker.data), Vec::<PathBuf>::new());
    // The same of a stream in clear is found, or this test could not fail.
    broker.start();
    let client = broker.connect();
    create(&client, "acme/n/clear", StreamSpec { encrypt: false, ..sealed() });
    publish(&client, "acme/n/clear", 0, 10, 10);
    broker.stop();
    assert!(!leaks(&broker.data).is_empty());
}

#[test]
fn a_start_without_the_right_keyring_is_refused() {
    let mut broker = Broker::new("wrong", 2);
    // Nothing is sealed yet: a lost keyring is made anew.
    broker.start();
    let path = broker.keyring_path();
    broker.stop();
    let empty = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    broker.start();
    assert_ne!(fs::read(&path).unwrap(), empty, "another region key");
    let older = fs::read(&path).unwrap();
    let client = broker.connect();
    create(&client, "acme/n/s", sealed());
    publish(&client, "acme/n/s", 0, 100, 10);
    broker.stop();
    let right = fs::read(&path).unwrap();
    assert_ne!(right, older, "the data key is in it");

    let refused = |content: Option<&[u8]>, words: &[&str]| {
        match content {
            Some(content) => fs::write(&path, content).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let text = broker.refusal();
        assert!(words.iter().all(|it| text.contains(it)), "{words:?} in {text}");
        assert_eq!(fs::read(&path).ok().as_deref(), content, "a refused start changes nothing");
    };
    refused(None, &["secrets/keyring", "missing", "--keyring"]);
    refused(Some(&right[..right.len() - 20]), &["no whole keyring", "backup"]);
    refused(Some(&older), &["no data key 1 of tenant acme"]);
    // The keyring of another node, with a tenant of the same name.
    let mut other = Broker::new("wrong-other", 2);
    other.start();
    create(&other.connect(), "acme/n/s", sealed());
    other.stop();
    refused(Some(&fs::read(other.keyring_path()).unwrap()), &["another data key 1 of tenant acme"]);
    let text = String::from_utf8(right.clone()).unwrap().replace("region local", "region elsewhere");
    let (body, _) = text.rsplit_once("crc ").unwrap();
    let text = format!("{body}crc {:08x}\n", crc32c::crc32c(body.as_bytes()));
    refused(Some(text.as_bytes()), &["region elsewhere", "local"]);

    // The right one, somewhere else.
    let elsewhere = broker.data.with_extension("keyring");
    fs::write(&elsewhere, &right).unwrap();
    broker.more = vec!["--keyring".into(), elsewhere.display().to_string()];
    broker.start();
    assert_eq!(read(&broker.connect(), "acme/n/s", 99), (everything(100), vec![]));
    // While it runs, a bad keyring is not taken, and publishing goes on.
    fs::write(&elsewhere, &older).unwrap();
    broker.hang_up("keyring not reloaded");
    publish(&broker.connect(), "acme/n/s", 100, 10, 10);
    broker.stop();
    fs::write(&elsewhere, &right).unwrap();
    broker.start();
    assert_eq!(read(&broker.connect(), "acme/n/s", 109), (everything(110), vec![]));
    fs::remove_file(&elsewhere).unwrap();
}

/// Segments by path, with their bytes.
fn segments(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for shard in fs::read_dir(data.join("shards")).unwrap() {
        for entry in fs::read_dir(shard.unwrap().path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|it| it == "seg") {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn keys_are_rotated_beside_a_running_broker_and_a_destroyed_one_is_a_gap() {
    let mut broker = Broker::new("rotation", 2);
    broker.start();
    create(&broker.connect(), "acme/n/s", sealed());
    publish(&broker.connect(), "acme/n/s", 0, 6_000, 1_000);
    broker.stop();
    broker.start();
    let before = segments(&broker.data);
    assert!(!before.is_empty());

    assert_eq!(broker.keyring(&["rotate-region"]).0, 0);
    assert_eq!(broker.keyring(&["rewrap"]).0, 0);
    assert_eq!(broker.keyring(&["rewrap"]).0, 1, "nothing is left to wrap");
    assert_eq!(broker.keyring(&["add-key", "acme"]).0, 0);
    broker.hang_up("keyring reloaded");
    let (code, listed) = broker.keyring(&["list"]);
    assert_eq!(code, 0);
    for line in [
        "region local",
        "region key 1: wraps 0 data key(s)",
        "region key 2: wraps 2 data key(s), wraps new ones",
        "acme data key 1: wrapped with region key 2",
        "acme data key 2: wrapped with region key 2, seals new records",
    ] {
        assert!(listed.lines().any(|it| it == line), "{line} is not in {listed}");
    }
    let text = fs::read_to_string(broker.keyring_path()).unwrap();
    let secrets = text.lines().filter_map(|line| line.rsplit(' ').next()).filter(|word| word.len() >= 24);
    assert!(secrets.clone().count() >= 4 && secrets.into_iter().all(|word| !listed.contains(word)), "{listed}");

    // New records under the new key, old ones readable, and none of their bytes was written anew.
    publish(&broker.connect(), "acme/n/s", 6_000, 6_000, 1_000);
    assert_eq!(read(&broker.connect(), "acme/n/s", 11_999), (everything(12_000), vec![]));
    let after = segments(&broker.data);
    for (path, bytes) in &before {
        // The segment that is written to grows behind what was there.
        let held = bytes.iter().rposition(|it| *it != 0).unwrap() + 1;
        assert!(after[path][..held] == bytes[..held], "{} was written anew", path.display());
    }
    broker.kill();
    broker.start();
    assert_eq!(read(&broker.connect(), "acme/n/s", 11_999), (everything(12_000), vec![]));

    // Destroying says first what it would take, and never takes the key that seals while others are there.
    let (code, text) = broker.keyring(&["destroy", "acme", "2", "--i-understand", "acme-2"]);
    assert!(code == 3 && text.contains("add-key"), "{text}");
    let (code, text) = broker.keyring(&["destroy", "acme", "1"]);
    assert!(code == 1 && text.contains("--i-understand acme-1"), "{text}");
    assert_eq!(broker.keyring(&["destroy", "acme", "1", "--i-understand", "yes"]).0, 3);
    assert_eq!(read(&broker.connect(), "acme/n/s", 11_999).0.len(), 12_000);
    assert_eq!(broker.keyring(&["destroy", "acme", "1", "--i-understand", "acme-1"]).0, 0);
    broker.hang_up("keyring reloaded");
    for _ in 0..2 {
        let (found, gaps) = read(&broker.connect(), "acme/n/s", 11_999);
        assert_eq!(found, (6_000..12_000).collect::<Vec<_>>(), "{gaps:?}");
        assert_eq!((gaps.first().map(|it| it.start), gaps.last().map(|it| it.end)), (Some(0), Some(6_000)), "{gaps:?}");
        broker.wait_for("a line in the log", || broker.log().contains("\"data_key\":\"1\""));
        broker.stop();
        broker.start();
    }
    // The stream goes on.
    publish(&broker.connect(), "acme/n/s", 12_000, 10, 10);
    assert_eq!(read(&broker.connect(), "acme/n/s", 12_009).0.len(), 6_010);
    assert_eq!(leaks(&broker.data), Vec::<PathBuf>::new());
}

#[test]
fn who_may_not_make_a_stream_makes_no_key() {
    let mut broker = Broker::new("no-key", 2);
    broker.start();
    let before = fs::read(broker.keyring_path()).unwrap();
    let client = broker.connect();
    let ask = |spec, create_parents| {
        client.admin(Command::CreateStream { name: name("acme/n/s"), spec, create_parents }).unwrap_err()
    };
    ask(StreamSpec { shards: 0, ..sealed() }, true);
    ask(sealed(), false);
    ask(StreamSpec { durability: Durability::Ephemeral, ..sealed() }, true);
    assert_eq!(fs::read(broker.keyring_path()).unwrap(), before);
    create(&client, "acme/n/s", sealed());
    let with_key = fs::read(broker.keyring_path()).unwrap();
    assert_ne!(with_key, before);
    create(&client, "acme/n/t", sealed());
    assert_eq!(fs::read(broker.keyring_path()).unwrap(), with_key, "one key for all streams of a tenant");
}

/// What a reader knows at the end of a compacted stream, and how many records it was given.
fn state(client: &Client, text: &str, end: &str) -> (BTreeMap<String, String>, usize) {
    let options = SubscribeOptions { start: Start::Earliest, shards: Shards::All, ..SubscribeOptions::default() };
    let mut subscriber = client.subscribe(&name(text), options).unwrap();
    let (mut state, mut count) = (BTreeMap::new(), 0);
    loop {
        let item = subscriber.next_item(Some(PATIENCE)).unwrap();
        let Some(Item::Records(batch)) = item else {
            assert!(item.is_some(), "{count} records came, and not the last");
            continue;
        };
        for record in batch.records() {
            let record = record.to_record().unwrap();
            count += 1;
            let Some(key) = &record.key else {
                assert_eq!(&*record.value, end.as_bytes());
                return (state, count);
            };
            let key = String::from_utf8(key.to_vec()).unwrap();
            if record.tombstone {
                state.remove(&key);
            } else {
                state.insert(key, String::from_utf8(record.value.to_vec()).unwrap());
            }
        }
    }
}

#[test]
fn a_compacted_stream_keeps_the_newest_of_each_key() {
    let mut broker = Broker::new("compact", 2);
    broker.start();
    let client = broker.connect();
    let spec = StreamSpec { compact: true, tombstone_grace_ms: 0, retention_bytes: 32 << 20, ..sealed() };
    create(&client, "acme/n/sealed", spec);
    create(&client, "acme/n/clear", StreamSpec { encrypt: false, ..spec });
    let mut expected = BTreeMap::new();
    let count = 20_000u64;
    for (text, is_first) in [("acme/n/sealed", true), ("acme/n/clear", false)] {
        let publisher = client.publisher(&name(text), PublisherOptions::default()).unwrap();
        for number in 0..count {
            // Some keys only early, some only late, some deleted at the end.
            let key = format!("{CANARY}-{}", if number < 100 { number } else { number % 50 });
            let deleted = number + 10 > count;
            let value = if deleted { String::new() } else { format!("{CANARY} {number} {}", "x".repeat(1_000)) };
            let record = RecordToPublish {
                key: Some(key.as_bytes()),
                value: value.as_bytes(),
                tombstone: deleted,
                ..Default::default()
            };
            publisher.send(&record).unwrap();
            if is_first && deleted {
                expected.remove(&key);
            } else if is_first {
                expected.insert(key, value);
            }
        }
        publisher.send(&RecordToPublish { value: b"the end", ..Default::default() }).unwrap();
        publisher.flush().unwrap();
    }
    assert_eq!(expected.len(), 91);
    // How much is in sealed segments depends on how large the flushes became.
    broker.wait_for("compactions", || {
        broker.metric("felix_store_compactions_total") >= 2
            && broker.metric("felix_store_compacted_records_total") > 10_000
    });
    assert_eq!(broker.metric("felix_store_compactions_failed_total"), 0, "{}", broker.log());
    for text in ["acme/n/sealed", "acme/n/clear"] {
        let (found, records) = state(&client, text, "the end");
        assert_eq!(found, expected, "{text}");
        assert!(records + 1_000 < count as usize, "{records} of {count} records are left of {text}");
    }
    client.close();
    broker.kill();
    broker.start();
    let client = broker.connect();
    for text in ["acme/n/sealed", "acme/n/clear"] {
        assert_eq!(state(&client, text, "the end").0, expected, "{text}");
    }
    let clear =
        leaks(&broker.data).iter().filter_map(|it| it.parent()?.file_name()).map(PathBuf::from).collect::<Vec<_>>();
    assert!(!clear.is_empty());
    // Shards are numbered as their streams were made: the first is the sealed one.
    let of_sealed = leaks(&broker.data.join("shards/0000000000000001"));
    assert_eq!(of_sealed, Vec::<PathBuf>::new(), "compaction wrote in clear");
}
