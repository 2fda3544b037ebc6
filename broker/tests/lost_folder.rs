//! A shard's folder that somebody takes away: nothing is made in its place, the others are served, and when it is put back every
//! record is there, also those that only the write-ahead log has.

mod broker_process;

use broker_process::acked::{create, read_until};
use broker_process::{Broker, PATIENCE, get, name};
use felix_client::protocol::metadata::{Durability, StreamSpec};
use felix_client::{Client, Command, PublisherOptions, RecordToPublish, Start, SubscribeOptions};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const RECORDS: u64 = 50;
const GONE: &str = "its files were made once and are gone";

fn durable() -> StreamSpec {
    StreamSpec { durability: Durability::Group, ..StreamSpec::default() }
}

/// Publishes and returns what was acknowledged.
fn publish(client: &Client, text: &str, numbers: std::ops::Range<u64>) -> BTreeMap<(u32, u64), Vec<u8>> {
    let publisher = client.publisher(&name(text), PublisherOptions::default()).unwrap();
    let one = |number: u64| {
        let value = format!("{text} {number}").into_bytes();
        let ack = publisher.send_acked(&RecordToPublish { value: &value, ..Default::default() }).unwrap();
        let ack = ack.wait(Instant::now() + PATIENCE).unwrap();
        ((ack.shard.0, ack.position.offset.0), value)
    };
    numbers.map(one).collect()
}

#[track_caller]
fn holds(broker: &Broker, text: &str, acked: &BTreeMap<(u32, u64), Vec<u8>>) {
    let found = read_until(&broker.connect(), text, acked);
    for (at, value) in acked {
        assert_eq!(found.get(at), Some(value), "{text}, {at:?}; {}", broker.log());
    }
}

/// Folders of shards, in order of their ids.
fn folders(broker: &Broker) -> Vec<PathBuf> {
    let list = fs::read_dir(broker.data.join("shards")).unwrap();
    let mut folders: Vec<PathBuf> = list.map(|it| it.unwrap().path()).collect();
    folders.sort();
    folders
}

fn take(broker: &Broker, folder: &Path) -> PathBuf {
    let away = broker.data.with_extension("away");
    fs::rename(folder, &away).unwrap();
    away
}

/// What readers and publishers of the stream are told: that storage failed, not that it is empty.
fn is_refused(broker: &Broker, text: &str) {
    let client = broker.connect();
    let options = SubscribeOptions { start: Start::Earliest, ..SubscribeOptions::default() };
    let read = client.subscribe(&name(text), options).map_err(|error| format!("{error:?}"));
    let read = read.and_then(|mut it| it.next_item(Some(PATIENCE)).map_err(|error| format!("{error:?}")));
    assert!(read.as_ref().is_err_and(|error| error.contains("StorageFailed")), "{read:?}");
    let config = broker.config().request_timeout(Duration::from_secs(2));
    let client = Client::connect(config).unwrap();
    if let Ok(publisher) = client.publisher(&name(text), PublisherOptions::default())
        && let Ok(ack) = publisher.send_acked(&RecordToPublish { value: b"lost", ..Default::default() })
    {
        let acked = ack.wait(Instant::now() + Duration::from_secs(2));
        assert!(acked.is_err(), "acknowledged in place of what was taken away: {acked:?}");
    }
}

/// The second folder goes and comes back; `between` happens before it goes, with the broker stopped.
fn goes_and_comes_back(test: &str, stop: fn(&mut Broker), between: impl FnOnce(&mut Broker)) {
    let mut broker = Broker::new(test, 2);
    broker.start();
    let client = broker.connect();
    let mut acked = BTreeMap::new();
    for text in ["t/n/a", "t/n/b", "t/n/c"] {
        create(&client, text, durable());
        acked.insert(text, publish(&client, text, 0..RECORDS));
    }
    drop(client);
    stop(&mut broker);
    between(&mut broker);
    let [_, second, _] = &folders(&broker)[..] else { panic!("{:?}", folders(&broker)) };
    let away = take(&broker, second);

    // Twice: a start that refuses it must leave all as it is.
    for _ in 0..2 {
        let said = broker.log().len();
        broker.start();
        broker.wait_for("it tells of the folder", || broker.log()[said..].contains(GONE));
        let log = broker.log()[said..].to_string();
        let folder = format!("shards/{}", second.file_name().unwrap().to_str().unwrap());
        for word in [&folder, "nothing was touched", "restore a backup", "delete the stream"] {
            assert!(log.contains(word), "{word:?} is not in {log}");
        }
        assert!(get(broker.http, "/readyz").starts_with("HTTP/1.0 200"), "one shard does not stop a broker");
        is_refused(&broker, "t/n/b");
        let client = broker.connect();
        for text in ["t/n/a", "t/n/c"] {
            holds(&broker, text, &acked[text]);
            let from = acked[text].len() as u64;
            acked.get_mut(text).unwrap().extend(publish(&client, text, from..from + 5));
        }
        drop(client);
        stop(&mut broker);
        assert!(!second.exists(), "it was made anew");
    }

    fs::rename(&away, second).unwrap();
    broker.start();
    for text in ["t/n/a", "t/n/b", "t/n/c"] {
        holds(&broker, text, &acked[text]);
    }
    let client = broker.connect();
    let more = publish(&client, "t/n/b", RECORDS..RECORDS + 5);
    assert_eq!(more.keys().next().map(|(_, offset)| *offset), Some(RECORDS), "it goes on where it ended");
    acked.get_mut("t/n/b").unwrap().extend(more);
    drop(client);
    stop(&mut broker);
    broker.start();
    for text in ["t/n/a", "t/n/b", "t/n/c"] {
        holds(&broker, text, &acked[text]);
    }
    broker.stop();
    assert_eq!(wals(&broker), 2, "only the last start's write-ahead logs are left");
}

/// Write-ahead logs: a folder per start and core.
fn wals(broker: &Broker) -> usize {
    fs::read_dir(broker.data.join("wal")).unwrap().count()
}

#[test]
fn records_in_segments_come_back() {
    let once_more = |broker: &mut Broker| {
        // A start puts all of the write-ahead log into segments.
        broker.start();
        broker.stop();
    };
    goes_and_comes_back("gone-segments", Broker::stop, once_more);
}

#[test]
fn records_in_the_log_come_back_after_stops() {
    goes_and_comes_back("gone-wal", Broker::stop, |_| {});
}

#[test]
fn records_in_the_log_come_back_after_kills() {
    goes_and_comes_back("gone-killed", Broker::kill, |_| {});
}

#[test]
fn who_gives_the_data_up_deletes_the_stream() {
    let mut broker = Broker::new("gone-deleted", 1);
    broker.start();
    let client = broker.connect();
    create(&client, "t/n/a", durable());
    publish(&client, "t/n/a", 0..RECORDS);
    drop(client);
    broker.stop();
    let folder = folders(&broker).remove(0);
    fs::remove_dir_all(&folder).unwrap();
    broker.start();
    broker.wait_for("it tells of the folder", || broker.log().contains(GONE));
    let client = broker.connect();
    client.admin(Command::DeleteStream { name: name("t/n/a") }).unwrap();
    create(&client, "t/n/a", durable());
    let acked = publish(&client, "t/n/a", 0..RECORDS);
    drop(client);
    broker.stop();
    let said = broker.log().len();
    broker.start();
    holds(&broker, "t/n/a", &acked);
    let log = broker.log()[said..].to_string();
    assert!(log.contains("it is kept in quarantine") && !log.contains(GONE), "{log}");
    broker.stop();
}

/// However soon the process ends after a stream was made, the next start has the stream, with all that was acknowledged.
#[test]
fn a_stream_is_there_after_a_kill_at_once() {
    let mut broker = Broker::new("made-and-killed", 2);
    broker.start();
    let mut acked = BTreeMap::new();
    for round in 0..6u64 {
        let text = format!("t/n/round-{round}");
        let client = broker.connect();
        create(&client, &text, StreamSpec { shards: 4, ..durable() });
        match round {
            // The folders may or may not be there yet, and the metadata may or may not know of them.
            0..3 => std::thread::sleep(Duration::from_millis(round * 3)),
            _ => drop(acked.insert(text.clone(), publish(&client, &text, 0..5))),
        }
        drop(client);
        if round % 2 == 0 {
            broker.kill()
        } else {
            broker.stop()
        }
        broker.start();
        let client = broker.connect();
        let more = publish(&client, &text, 5..10);
        acked.entry(text).or_default().extend(more);
        for (text, acked) in &acked {
            holds(&broker, text, acked);
        }
    }
    assert!(!broker.log().contains("takes nothing more"), "{}", broker.log());
    broker.stop();
}
