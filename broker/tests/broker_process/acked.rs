//! **What**: a publisher that notes what was acknowledged, and a reader that looks for all of it.
//!
//! **Invariants**: a record is noted with the position of its ack, after the ack came.
//!
//! **Never**: an ack assumed.
//!
//! **See**: `durable_records.rs` (kills), `lossy_disk.rs` (crashes).
#![allow(dead_code, reason = "each test file that includes this uses a part of it")]

use super::name;
use felix_client::protocol::metadata::StreamSpec;
use felix_client::{Client, Command, Item, PublisherOptions, RecordToPublish, Shards, Start, SubscribeOptions};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Makes a stream and what it lies in.
pub fn create(client: &Client, text: &str, spec: StreamSpec) {
    client.admin(Command::CreateStream { name: name(text), spec, create_parents: true }).unwrap();
}

/// Acknowledged records, by shard and offset.
pub type Acked = Arc<Mutex<BTreeMap<(u32, u64), Vec<u8>>>>;

/// Publishes as fast as it is acknowledged, 64 in flight, until told to stop.
pub fn publish(client: &Client, text: &str, round: usize, acked: &Acked, stop: &AtomicBool) {
    let Ok(publisher) = client.publisher(&name(text), PublisherOptions::default()) else { return };
    let mut waiting = std::collections::VecDeque::new();
    for number in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let value = format!("{round}-{number}-{}", "x".repeat((number % 700) as usize)).into_bytes();
        let key = format!("k{}", number % 17);
        let record = RecordToPublish { key: Some(key.as_bytes()), value: &value, ..Default::default() };
        let Ok(ack) = publisher.send_acked(&record) else { break };
        waiting.push_back((ack, value));
        while waiting.len() >= 64 || (stop.load(Ordering::Relaxed) && !waiting.is_empty()) {
            let Some((ack, value)) = waiting.pop_front() else { break };
            if let Ok(ack) = ack.wait(Instant::now() + Duration::from_millis(500)) {
                acked.lock().unwrap().insert((ack.shard.0, ack.position.offset.0), value);
            } else if stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

/// Reads until everything acknowledged was seen.
pub fn read_until(client: &Client, text: &str, acked: &BTreeMap<(u32, u64), Vec<u8>>) -> BTreeMap<(u32, u64), Vec<u8>> {
    let options = SubscribeOptions { start: Start::Earliest, shards: Shards::All, ..SubscribeOptions::default() };
    let mut subscriber = client.subscribe(&name(text), options).unwrap();
    let mut found = BTreeMap::new();
    let mut missing: std::collections::BTreeSet<_> = acked.keys().copied().collect();
    while !missing.is_empty() {
        match subscriber.next_item(Some(Duration::from_secs(5))).unwrap() {
            Some(Item::Records(batch)) => {
                for record in batch.records() {
                    let record = record.to_record().unwrap();
                    missing.remove(&(record.shard.0, record.position.offset.0));
                    found.insert((record.shard.0, record.position.offset.0), record.value.to_vec());
                }
            }
            Some(_) => {}
            None => break,
        }
    }
    found
}
