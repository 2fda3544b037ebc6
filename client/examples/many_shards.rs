//! **What**: does a durable publish cost more when its core leads many shards? Ack latency of one record in flight, to one
//! shard and to 200 in turn, on the broker that `FELIX_CONTEXT` names (one core: `--cores 1`).
//!
//! **Invariants**: both streams are measured in turn, A B A B, so that the machine's mood hits both.
//!
//! **Never**: an assertion on time.
//!
//! **See**: `felix-bench durable` for one shard beside the disk and other systems.

use felix_client::protocol::metadata::{Durability, StreamSpec};
use felix_client::protocol::names::StreamName;
use felix_client::{Client, ClientConfig, Command, Context, PublisherOptions, RecordToPublish};
use hdrhistogram::Histogram;
use std::error::Error;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
const RECORDS: u64 = 1_000;
const PACE: Duration = Duration::from_millis(2);

fn round(client: &Client, name: &StreamName, load: bool) -> Result<Histogram<u64>, Box<dyn Error>> {
    let publisher = client.publisher(name, PublisherOptions::default())?;
    let mut latency = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
    let value = [7u8; 1_024];
    let mut due = Instant::now();
    for number in 0..RECORDS {
        while Instant::now() < due {
            std::hint::spin_loop();
        }
        let key = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let record = RecordToPublish { key: Some(&key), value: &value, ..Default::default() };
        let ack = publisher.send_acked(&record)?;
        ack.wait(Instant::now() + Duration::from_secs(20))?;
        if load {
            latency.record(due.elapsed().as_nanos() as u64)?;
        }
        due += PACE;
    }
    Ok(latency)
}

fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::connect(ClientConfig::from_context(&Context::from_env()?)?)?;
    let mut streams = Vec::new();
    for shards in [1, 200] {
        let name = StreamName::parse(&format!("bench/shards/of-{shards}-{}", std::process::id()))?;
        let spec = StreamSpec { shards, durability: Durability::Group, ..StreamSpec::default() };
        client.admin(Command::CreateStream { name: name.clone(), spec, create_parents: true })?;
        round(&client, &name, false)?;
        streams.push((shards, name));
    }
    let mut all = vec![Vec::new(); streams.len()];
    for _ in 0..ROUNDS {
        for ((_, name), rows) in streams.iter().zip(&mut all) {
            let latency = round(&client, name, true)?;
            rows.push((latency.value_at_quantile(0.5) / 1_000, latency.value_at_quantile(0.99) / 1_000));
        }
    }
    for ((shards, name), rows) in streams.iter().zip(&mut all) {
        rows.sort_unstable();
        let p50 = rows[ROUNDS / 2].0;
        rows.sort_unstable_by_key(|it| it.1);
        println!("{shards:>4} shard(s): p50 {p50} us, p99 {} us (medians of {ROUNDS} rounds)", rows[ROUNDS / 2].1);
        client.admin(Command::DeleteStream { name: name.clone() })?;
    }
    Ok(())
}
