//! A data folder with a damaged segment and records that are only in the write-ahead log: the real program repairs it and goes
//! on, and no offset that was acknowledged is given to another record.

mod broker_process;

use broker_process::acked::create;
use broker_process::{Broker, PATIENCE, name};
use felix_client::protocol::metadata::{Durability, StreamSpec};
use felix_client::{Client, Item, PublisherOptions, RecordToPublish, Start, SubscribeOptions};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Instant;

/// Offsets that a repair leaves out.
const LEFT_OUT: u64 = 1 << 32;

/// Publishes records one by one and returns the last offset.
fn publish(client: &Client, count: u64) -> u64 {
    let publisher = client.publisher(&name("t/n/s"), PublisherOptions::default()).unwrap();
    let mut last = 0;
    for number in 0..count {
        let value = format!("record {number}");
        let ack = publisher.send_acked(&RecordToPublish { value: value.as_bytes(), ..Default::default() }).unwrap();
        let ack = ack.wait(Instant::now() + PATIENCE).unwrap();
        last = ack.position.offset.0;
    }
    last
}

/// The one segment of the one shard.
fn segment(broker: &Broker) -> PathBuf {
    let shards = fs::read_dir(broker.data.join("shards")).unwrap();
    let mut files = shards.flat_map(|shard| fs::read_dir(shard.unwrap().path()).unwrap());
    files
        .find_map(|file| Some(file.unwrap().path()).filter(|path| path.extension().is_some_and(|it| it == "seg")))
        .unwrap()
}

fn tool(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_felix-broker")).args(args).output().unwrap()
}

#[test]
fn a_cut_with_records_in_the_wal_gives_no_offset_twice() {
    let mut broker = Broker::new("damaged", 1);
    broker.start();
    let client = broker.connect();
    let spec =
        StreamSpec { durability: Durability::Group, shards: 1, retention_bytes: 1 << 30, ..StreamSpec::default() };
    create(&client, "t/n/s", spec);
    publish(&client, 50);
    drop(client);
    broker.kill();
    // The start brings them to a segment; what comes then is in the WAL alone.
    broker.start();
    let last = publish(&broker.connect(), 50);
    assert_eq!(last, 99);
    broker.kill();
    let path = segment(&broker);
    let mut bytes = fs::read(&path).unwrap();
    bytes[4_096 + 300] ^= 4;
    fs::write(&path, bytes).unwrap();

    let data = broker.data.to_str().unwrap().to_string();
    let shard = path.parent().unwrap().file_name().unwrap().to_str().unwrap().to_string();
    let args = ["repair", &data, &shard, "--choose", "truncate-at-damage"];
    let dry = String::from_utf8(tool(&args).stdout).unwrap();
    assert!(dry.contains("0..100"), "{dry}");
    let done = tool(&[&args[..], &["--i-understand", "0..100"]].concat());
    assert!(String::from_utf8_lossy(&done.stdout).starts_with("Done."), "{done:?}");

    broker.start();
    let client = broker.connect();
    assert_eq!(publish(&client, 1), 100 + LEFT_OUT);
    let options = SubscribeOptions { start: Start::Earliest, ..SubscribeOptions::default() };
    let mut subscriber = client.subscribe(&name("t/n/s"), options).unwrap();
    let mut gap = None;
    loop {
        match subscriber.next_item(Some(PATIENCE)).unwrap().expect("an item") {
            Item::Gap { covered, .. } => gap = Some(covered),
            Item::Records(batch) => {
                let record = batch.records().next().unwrap().to_record().unwrap();
                assert_eq!((record.position.offset.0, &record.value[..]), (100 + LEFT_OUT, &b"record 0"[..]));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(gap.is_some(), "what was given up was not told");
    client.close();
    broker.stop();
    assert_eq!(tool(&["check", &data]).status.code(), Some(1), "only the gap is to be told");
}
