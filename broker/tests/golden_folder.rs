//! Data folders that an older build wrote: this build opens them, reads every record where it was, and goes on.
//!
//! `golden/folder-v1-stopped.tgz` is of a broker that was stopped, `golden/folder-v1-killed.tgz` of one that was killed while its
//! write-ahead log held what no segment had. They are kept for ever; a new format adds a pair and keeps these.
//!
//! FELIX_GOLDEN_WRITE=1 cargo test --workspace --test golden_folder       (writes what is missing)
//!
//! Certificates and context are not in them: the broker makes new ones, and no private key of a client is kept here. The
//! keyring is: it opens nothing but this folder.

mod broker_process;

use broker_process::{Broker, PATIENCE, name};
use felix_client::protocol::metadata::{Durability, StreamSpec};
use felix_client::{Client, Command, Item, PublisherOptions, RecordToPublish, Shards, Start, SubscribeOptions};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::time::Instant;

/// Records of each stream.
const RECORDS: u64 = 60;
const KEYS: u64 = 7;

fn streams() -> Vec<(&'static str, StreamSpec)> {
    let spec = |durability| StreamSpec { durability, ..StreamSpec::default() };
    vec![
        ("golden/folder/each", spec(Durability::Each)),
        ("golden/folder/group", StreamSpec { shards: 3, ..spec(Durability::Group) }),
        ("golden/folder/interval", StreamSpec { interval_ms: 50, ..spec(Durability::Interval) }),
        ("golden/folder/none", spec(Durability::None)),
        ("golden/folder/sealed", StreamSpec { encrypt: true, ..spec(Durability::Group) }),
        ("golden/folder/compacted", StreamSpec { compact: true, ..spec(Durability::Group) }),
    ]
}

fn key(number: u64) -> String {
    format!("key-{}", number % KEYS)
}

/// Every tenth is larger than a block.
fn value(stream: &str, number: u64) -> String {
    format!("{stream} {number} {}", "0123456789".repeat(if number.is_multiple_of(10) { 700 } else { 3 }))
}

fn publish(client: &Client, stream: &str, numbers: std::ops::Range<u64>) {
    let publisher = client.publisher(&name(stream), PublisherOptions::default()).unwrap();
    for number in numbers {
        let (key, value) = (key(number), value(stream, number));
        let record = RecordToPublish { key: Some(key.as_bytes()), value: value.as_bytes(), ..Default::default() };
        publisher.send_acked(&record).unwrap().wait(Instant::now() + PATIENCE).unwrap();
    }
}

/// What each key has, in order, until the last record of `numbers` came for every key.
fn read(client: &Client, stream: &str, end: u64) -> BTreeMap<String, Vec<String>> {
    let options = SubscribeOptions { start: Start::Earliest, shards: Shards::All, ..SubscribeOptions::default() };
    let mut subscriber = client.subscribe(&name(stream), options).unwrap();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let last: Vec<(String, String)> = (end - KEYS..end).map(|number| (key(number), value(stream, number))).collect();
    while !last.iter().all(|(key, value)| found.get(key).and_then(|it| it.last()) == Some(value)) {
        match subscriber.next_item(Some(PATIENCE)).unwrap() {
            Some(Item::Records(batch)) => {
                for record in batch.records() {
                    let record = record.to_record().unwrap();
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                    found.entry(text(record.key.as_deref().unwrap())).or_default().push(text(&record.value));
                }
            }
            // Where a stop was not clean, `interval` and `none` go on a million offsets later.
            Some(_) => {}
            None => panic!("{stream}: {:?} came", found.values().map(Vec::len).collect::<Vec<_>>()),
        }
    }
    found
}

/// Every record once and in order; of a compacted stream at least the newest of each key.
fn check(stream: &str, compact: bool, end: u64, found: &BTreeMap<String, Vec<String>>) {
    for number in 0..KEYS {
        let all: Vec<String> = (0..end).filter(|it| it % KEYS == number).map(|it| value(stream, it)).collect();
        let there = &found[&key(number)];
        match compact {
            false => assert_eq!(there, &all, "{stream}, {}", key(number)),
            true => {
                let mut rest = all.iter();
                assert!(there.iter().all(|it| rest.any(|other| other == it)), "{stream}: {there:?} of {all:?}");
                assert_eq!(there.last(), all.last());
            }
        }
    }
}

fn golden(which: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/folder-v1-{which}.tgz"))
}

fn tar(arguments: &[&str], data: &Path, archive: &Path) {
    let mut tar = Process::new("tar");
    tar.args(arguments).arg("--file").arg(archive).arg("--directory").arg(data);
    if arguments.contains(&"--create") {
        tar.arg(".");
    }
    assert!(tar.status().unwrap().success(), "{tar:?}");
}

fn write(which: &str) {
    let mut broker = Broker::new(&format!("golden-{which}"), 1);
    broker.start();
    let client = broker.connect();
    for (stream, spec) in streams() {
        client.admin(Command::CreateStream { name: name(stream), spec, create_parents: true }).unwrap();
        publish(&client, stream, 0..RECORDS);
    }
    if which == "stopped" {
        drop(client);
        broker.stop();
    } else {
        // What is not synced on its ack is with the system by then, and no power fails.
        std::thread::sleep(std::time::Duration::from_millis(500));
        broker.kill();
    }
    let leave = ["--exclude=./dev-pki", "--exclude=./context.toml", "--exclude=./reserve", "--exclude=./lock"];
    fs::create_dir_all(golden(which).parent().unwrap()).unwrap();
    let create = ["--create", "--gzip", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"];
    tar(&[&create[..], &leave[..]].concat(), &broker.data, &golden(which));
}

fn open(which: &str) {
    if std::env::var_os("FELIX_GOLDEN_WRITE").is_some() && !golden(which).exists() {
        write(which);
    }
    let mut broker = Broker::new(&format!("opens-{which}"), 2);
    tar(&["--extract", "--gzip"], &broker.data, &golden(which));
    broker.start();
    let client = broker.connect();
    for (stream, spec) in streams() {
        let end = RECORDS;
        check(stream, spec.compact, end, &read(&client, stream, end));
        // It goes on.
        publish(&client, stream, end..end + KEYS);
        check(stream, spec.compact, end + KEYS, &read(&client, stream, end + KEYS));
    }
    drop(client);
    broker.stop();
    // What this build made of it, it opens as well.
    broker.start();
    let client = broker.connect();
    for (stream, spec) in streams() {
        check(stream, spec.compact, RECORDS + KEYS, &read(&client, stream, RECORDS + KEYS));
    }
    drop(client);
    broker.stop();
}

#[test]
fn a_folder_of_format_v1_that_was_stopped_is_opened() {
    open("stopped");
}

#[test]
fn a_folder_of_format_v1_that_was_killed_is_opened() {
    open("killed");
}
