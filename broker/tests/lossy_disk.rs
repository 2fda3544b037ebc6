//! A real broker process on a file system that forgets at a crash what was not synced, tears what was being written, and
//! fails a write or a sync: what was acknowledged is there, and nothing is acknowledged that may not be.
//!
//! Needs /dev/fuse and the right to mount; without them the tests say so and pass. `FELIX_LOSSY_ROUNDS` for a longer run,
//! `FELIX_LOSSY_SEED` for another choice of what survives.

mod broker_process;
mod lossy_fs;

use broker_process::acked::{Acked, create, publish, read_until};
use broker_process::{Broker, PATIENCE, get, name};
use felix_client::protocol::metadata::{Durability, StreamSpec};
use felix_client::{PublisherOptions, RecordToPublish};
use lossy_fs::{LossyFs, Trouble};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const STREAMS: [(&str, Durability); 2] = [("t/n/group", Durability::Group), ("t/n/each", Durability::Each)];

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn broker(test: &str, cores: u8) -> Option<(LossyFs, Broker)> {
    let seed = number("FELIX_LOSSY_SEED", 1);
    match LossyFs::mount(test, seed) {
        Ok(fs) => {
            println!("FELIX_LOSSY_SEED={seed}");
            let mut broker = Broker::new(&format!("lossy-{test}"), cores);
            std::fs::remove_dir_all(&broker.data).unwrap();
            broker.data = fs.path();
            Some((fs, broker))
        }
        Err(error) => {
            eprintln!("skipped: FUSE cannot be used here ({error})");
            None
        }
    }
}

fn make_streams(broker: &Broker) -> Vec<Acked> {
    let client = broker.connect();
    for (text, durability) in STREAMS {
        create(&client, text, StreamSpec { durability, shards: 2, retention_bytes: 1 << 30, ..StreamSpec::default() });
    }
    STREAMS.iter().map(|_| Acked::default()).collect()
}

/// Everything acknowledged is read by somebody who knows nothing of the publishers.
fn check(broker: &Broker, acked: &[Acked], when: &str) {
    let reader = broker.connect();
    for ((text, _), acked) in STREAMS.iter().zip(acked) {
        let acked = acked.lock().unwrap();
        let found = read_until(&reader, text, &acked);
        for (at, value) in acked.iter() {
            assert_eq!(found.get(at), Some(value), "{when}: {text}, {at:?} was acknowledged");
        }
    }
}

#[test]
fn what_was_acknowledged_survives_power_failures() {
    let Some((fs, mut broker)) = broker("power", 2) else { return };
    broker.start();
    let acked = make_streams(&broker);
    let rounds = number("FELIX_LOSSY_ROUNDS", 5);
    for round in 0..rounds {
        let stop = AtomicBool::new(false);
        let client = broker.connect();
        let extra = format!("t/n/made-{round}");
        std::thread::scope(|scope| {
            for ((text, _), acked) in STREAMS.iter().zip(&acked) {
                let (client, stop) = (&client, &stop);
                scope.spawn(move || publish(client, text, round as usize, acked, stop));
            }
            std::thread::sleep(Duration::from_millis(200 + round * 131 % 400));
            // Metadata are acknowledged as well.
            create(&client, &extra, StreamSpec { durability: Durability::Each, ..StreamSpec::default() });
            std::thread::sleep(Duration::from_millis(round * 57 % 90));
            broker.kill();
            stop.store(true, Ordering::Relaxed);
        });
        drop(client);
        fs.crash();
        broker.start();
        check(&broker, &acked, &format!("crash {round}"));
        let publisher = broker.connect();
        let publisher = publisher.publisher(&name(&extra), PublisherOptions::default());
        let publisher = publisher.unwrap_or_else(|error| panic!("crash {round}: {extra} was made: {error}"));
        let ack = publisher.send_acked(&RecordToPublish { value: b"here", ..Default::default() }).unwrap();
        ack.wait(Instant::now() + PATIENCE).unwrap();
    }
    let total: usize = acked.iter().map(|it| it.lock().unwrap().len()).sum();
    println!("{total} acknowledged records over {rounds} crashes, {} syncs", fs.syncs());
    assert!(total as u64 > 20 * rounds, "hardly anything was acknowledged: {total}");
    broker.kill();
}

fn nothing_is_acknowledged_after(trouble: Trouble, test: &str) {
    // One core, one log: after its failure nothing may be acknowledged.
    let Some((fs, mut broker)) = broker(test, 1) else { return };
    broker.start();
    let acked = make_streams(&broker);
    let client = broker.connect();
    let publishers = STREAMS.map(|(text, _)| client.publisher(&name(text), PublisherOptions::default()).unwrap());
    let send = |at: usize, text: &str| {
        let ack = publishers[at].send_acked(&RecordToPublish { value: text.as_bytes(), ..Default::default() }).unwrap();
        let ack = ack.wait(Instant::now() + PATIENCE);
        ack.map(|ack| drop(acked[at].lock().unwrap().insert((ack.shard.0, ack.position.offset.0), text.into())))
    };
    for round in 0..20 {
        send(round % 2, &format!("before {round}")).unwrap();
    }
    fs.fail_once(trouble);
    let mut refused = 0;
    for round in 0..40 {
        match send(round % 2, &format!("after {round}")) {
            Ok(()) => assert!(!fs.has_failed() && refused == 0, "round {round} was acknowledged after the failure"),
            Err(_) => refused += 1,
        }
    }
    assert!(fs.has_failed() && refused >= 39, "{refused} of 40 were refused");
    broker.wait_for("it tells", || !get(broker.http, "/readyz").starts_with("HTTP/1.0 200"));
    assert!(broker.metric("felix_store_failed") > 0, "{}", get(broker.http, "/metrics"));
    // Reads go on.
    check(&broker, &acked, "after the failure");
    drop(client);
    broker.kill();
    fs.crash();
    broker.start();
    check(&broker, &acked, "after the failure and a crash");
    broker.kill();
}

#[test]
fn nothing_is_acknowledged_after_a_failed_sync() {
    nothing_is_acknowledged_after(Trouble::Sync, "sync");
}

#[test]
fn nothing_is_acknowledged_after_a_failed_write() {
    nothing_is_acknowledged_after(Trouble::Write, "write");
}
