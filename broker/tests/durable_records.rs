//! Records of durable streams in a real broker process: what was acknowledged is there after every kill, where it was.

mod broker_process;

use broker_process::acked::{Acked, create, publish, read_until};
use broker_process::{Broker, PATIENCE, name};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use felix_client::protocol::metadata::{Durability, StreamSpec};
use felix_client::{Client, Item, PublisherOptions, RecordToPublish, Shards, Start, SubscribeOptions};

/// Kills of one run; `FELIX_KILLS=50` for the long one.
fn kills() -> usize {
    std::env::var("FELIX_KILLS").map_or(6, |text| text.parse().expect("a number"))
}

/// Every record of every shard from its start to where it ends now, by shard and offset.
fn read_all(client: &Client, text: &str, count: usize) -> BTreeMap<(u32, u64), Vec<u8>> {
    let options = SubscribeOptions { start: Start::Earliest, shards: Shards::All, ..SubscribeOptions::default() };
    let mut subscriber = client.subscribe(&name(text), options).unwrap();
    let mut found = BTreeMap::new();
    while found.len() < count {
        match subscriber.next_item(Some(PATIENCE)).unwrap() {
            Some(Item::Records(batch)) => {
                for record in batch.records() {
                    let record = record.to_record().unwrap();
                    let before = found.insert((record.shard.0, record.position.offset.0), record.value.to_vec());
                    assert!(before.is_none(), "offset {} came twice", record.position.offset);
                }
            }
            Some(Item::Gap { covered, .. }) => panic!("a gap: {covered:?}"),
            Some(other) => panic!("{other:?}"),
            None => panic!("{} of {count} records came", found.len()),
        }
    }
    found
}

#[test]
fn what_was_acknowledged_is_there_after_every_kill() {
    let mut broker = Broker::new("kill", 2);
    broker.start();
    let streams = [("t/n/group", Durability::Group), ("t/n/each", Durability::Each)];
    let client = broker.connect();
    for (text, durability) in streams {
        create(&client, text, StreamSpec { durability, shards: 3, retention_bytes: 1 << 30, ..StreamSpec::default() });
    }
    drop(client);
    let acked: Vec<Acked> = streams.iter().map(|_| Acked::default()).collect();
    for round in 0..kills() {
        let stop = AtomicBool::new(false);
        let client = broker.connect();
        std::thread::scope(|scope| {
            for ((text, _), acked) in streams.iter().zip(&acked) {
                let (client, stop) = (&client, &stop);
                scope.spawn(move || publish(client, text, round, acked, stop));
            }
            std::thread::sleep(Duration::from_millis(300 + (round as u64 * 97) % 500));
            broker.kill();
            stop.store(true, Ordering::Relaxed);
        });
        broker.start();
        // Somebody who knows nothing of the publishers.
        let reader = broker.connect();
        for ((text, _), acked) in streams.iter().zip(&acked) {
            let acked = acked.lock().unwrap();
            let expected = acked.len();
            let found = read_all(&reader, text, expected);
            // There may be more: what was written and not acknowledged in time. So read until all acked are seen.
            let mut all = found;
            let last = acked.keys().next_back().copied();
            if acked.keys().any(|key| !all.contains_key(key)) {
                all = read_until(&reader, text, &acked);
            }
            for (key, value) in acked.iter() {
                assert_eq!(
                    all.get(key),
                    Some(value),
                    "round {round}, {text}, {key:?} was acknowledged (last {last:?})"
                );
            }
        }
    }
    let total: usize = acked.iter().map(|it| it.lock().unwrap().len()).sum();
    println!("{total} acknowledged records over {} kills", kills());
    assert!(total > 100 * kills(), "hardly anything was acknowledged: {total}");
}

#[test]
fn history_is_read_from_segments_and_goes_on_live() {
    let mut broker = Broker::new("history", 2);
    broker.start();
    let client = broker.connect();
    let spec =
        StreamSpec { durability: Durability::Group, shards: 1, retention_bytes: 1 << 30, ..StreamSpec::default() };
    create(&client, "t/n/s", spec);
    let publisher = client.publisher(&name("t/n/s"), PublisherOptions::default()).unwrap();
    let count = 30_000u64;
    for number in 0..count {
        let value = format!("{number}-{}", "y".repeat(1_000));
        publisher.send(&RecordToPublish { value: value.as_bytes(), ..Default::default() }).unwrap();
    }
    publisher.flush().unwrap();
    // 30 MB: far more than memory keeps of a shard; the reader must come out of the segments into what is live.
    let give_up = Instant::now() + PATIENCE;
    while broker.metric("felix_store_flushed_bytes_total") < 20 << 20 {
        assert!(Instant::now() < give_up, "nothing was flushed: {}", broker.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let options = SubscribeOptions { start: Start::Earliest, ..SubscribeOptions::default() };
    let mut records = client.subscribe(&name("t/n/s"), options).unwrap().records();
    for number in 0..count + 500 {
        if number >= count {
            let value = format!("{number}-live");
            publisher.send(&RecordToPublish { value: value.as_bytes(), ..Default::default() }).unwrap();
        }
        let record = records.next_record(Some(PATIENCE)).unwrap().expect("a record");
        assert_eq!(record.position.offset.0, number);
        assert!(record.value.starts_with(format!("{number}-").as_bytes()), "offset {number} holds another record");
    }
    assert!(broker.metric("felix_store_history_batches_total") > 0, "history came from memory");
    publisher.flush().unwrap();
    drop(publisher);
    client.close();

    // A stop in good order and another number of cores: the same records again.
    broker.stop();
    broker.cores = 3;
    broker.start();
    let client = broker.connect();
    let found = read_all(&client, "t/n/s", count as usize + 500);
    assert!(found.iter().all(|((_, offset), value)| value.starts_with(format!("{offset}-").as_bytes())));
}

#[test]
fn a_subscriber_that_rests_while_segments_fill_goes_on() {
    let mut broker = Broker::new("rests", 1);
    broker.start();
    let client = broker.connect();
    create(
        &client,
        "t/n/s",
        StreamSpec { durability: Durability::Group, retention_bytes: 4 << 30, ..Default::default() },
    );
    let publisher = client.publisher(&name("t/n/s"), PublisherOptions::default()).unwrap();
    let send = |numbers: std::ops::Range<u64>| {
        for number in numbers {
            let value = format!("{number}-{}", "y".repeat(1_000));
            publisher.send(&RecordToPublish { value: value.as_bytes(), ..Default::default() }).unwrap();
        }
        publisher.flush().unwrap();
    };
    let read = |records: &mut felix_client::RecordIter, numbers: std::ops::Range<u64>| {
        for number in numbers {
            let record = records.next_record(Some(PATIENCE)).unwrap().expect("a record");
            assert_eq!(record.position.offset.0, number, "a gap");
            assert!(record.value.starts_with(format!("{number}-").as_bytes()), "offset {number} holds another record");
        }
    };
    send(0..40_000);
    broker.wait_for("a segment", || broker.metric("felix_store_flushed_bytes_total") > 30 << 20);
    let options = SubscribeOptions { start: Start::Earliest, ..SubscribeOptions::default() };
    let mut records = client.subscribe(&name("t/n/s"), options).unwrap().records();
    read(&mut records, 0..100);
    // Its window is full of history, and its reader stands in a segment that grows to its end and is sealed meanwhile.
    send(40_000..140_000);
    broker.wait_for("the next segment", || broker.metric("felix_store_flushed_bytes_total") > 120 << 20);
    read(&mut records, 100..140_000);
    send(140_000..140_100);
    read(&mut records, 140_000..140_100);
    assert!(broker.metric("felix_store_history_batches_total") > 0, "history came from memory");
}

#[test]
fn a_retry_after_a_kill_is_appended_once() {
    let mut broker = Broker::new("retry", 1);
    broker.start();
    let client = broker.connect();
    create(&client, "t/n/s", StreamSpec { durability: Durability::Group, ..StreamSpec::default() });
    // The client of an idempotent producer sends again by itself what was not answered.
    let options = PublisherOptions { idempotent: true, ..PublisherOptions::default() };
    let publisher = client.publisher(&name("t/n/s"), options).unwrap();
    let mut acks = Vec::new();
    for round in 0..3u64 {
        for number in 0..500u64 {
            let value = format!("{}", round * 500 + number);
            acks.push(
                publisher.send_acked(&RecordToPublish { value: value.as_bytes(), ..Default::default() }).unwrap(),
            );
        }
        broker.kill();
        broker.start();
    }
    for (number, ack) in acks.into_iter().enumerate() {
        let acked = ack.wait(Instant::now() + PATIENCE).unwrap();
        assert_eq!(acked.position.offset.0, number as u64, "a record was lost or appended twice");
    }
    let found = read_all(&broker.connect(), "t/n/s", 1_500);
    assert!(found.iter().all(|((_, offset), value)| value == offset.to_string().as_bytes()));
}
