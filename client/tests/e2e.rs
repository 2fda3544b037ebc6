//! **What**: the client against a real broker process: publish, subscribe, restart, many shards, datagrams.
//!
//! **Invariants**: needs the broker's binary beside this test's own folder (`cargo build -p felix-broker`); without it
//! the tests say so and pass, because a library must be testable alone. `FELIX_E2E=1` makes a missing binary a failure.
//!
//! **Never**: a fixed port, a sleep as a proof.
//!
//! **See**: `client/src/engine/tests` for what needs no broker.

use felix_client::protocol::error_code::ErrorCode;
use felix_client::protocol::metadata::StreamSpec;
use felix_client::{
    Client, ClientConfig, Command, Compression, Context, DeliveryMode, Item, PollClient, PublisherOptions, Record,
    RecordToPublish, Reply, RequestError, ShardTarget, Shards, SlowPolicy, Start, StreamName, SubscribeOptions,
};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

struct Broker {
    child: Option<Child>,
    data: PathBuf,
    listen: String,
    cores: u8,
}

fn binary() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.parent()?.parent()?.join("felix-broker");
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("FELIX_E2E").is_none(), "{} is missing: cargo build -p felix-broker", path.display());
    eprintln!("skipped: {} is missing", path.display());
    None
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Broker {
    fn start(cores: u8) -> Option<Broker> {
        binary()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let data = std::env::temp_dir().join(format!("felix-e2e-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&data);
        // A port that was free a moment ago, so that a restart can use it again.
        let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut broker = Broker { child: None, data, listen: free.to_string(), cores };
        broker.run();
        Some(broker)
    }

    fn run(&mut self) {
        let log = std::fs::File::create(self.data.with_extension("log")).unwrap();
        let child = std::process::Command::new(binary().unwrap())
            .args(["dev", "--wait", "park", "--http", "127.0.0.1:0", "--drain-ms", "200", "--listen", &self.listen])
            .args(["--cores", &self.cores.to_string()])
            .arg("--data")
            .arg(&self.data)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn config(&self) -> ClientConfig {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match Context::load(self.data.join("context.toml")) {
                Ok(context) => return ClientConfig::from_context(&context).unwrap().client_name("e2e"),
                Err(error) if Instant::now() > until => panic!("{error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn connect(&self) -> Client {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match Client::connect(self.config()) {
                Ok(client) => return client,
                Err(error) if Instant::now() > until => panic!("{error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.data);
        let _ = std::fs::remove_file(self.data.with_extension("log"));
    }
}

fn create(client: &Client, name: &str, shards: u32) -> StreamName {
    let name = StreamName::parse(name).unwrap();
    let spec = StreamSpec { shards, ..StreamSpec::default() };
    let reply = client.admin(Command::CreateStream { name: name.clone(), spec, create_parents: true }).unwrap();
    assert!(matches!(reply, Reply::StreamDone { .. }), "{reply:?}");
    name
}

fn read(records: &mut impl FnMut() -> Option<Record>, count: usize) -> Vec<Record> {
    let mut found = Vec::new();
    while found.len() < count {
        found.push(records().unwrap_or_else(|| panic!("{} of {count} records came", found.len())));
    }
    found
}

const WAIT: Option<Duration> = Some(Duration::from_secs(10));

#[test]
fn what_is_published_is_read_with_its_position() {
    let Some(broker) = Broker::start(1) else { return };
    let client = broker.connect();
    let stream = create(&client, "acme/md/quotes", 1);
    let subscriber = client.subscribe(&stream, SubscribeOptions::default()).unwrap();
    let publisher = client.publisher(&stream, PublisherOptions::default()).unwrap();
    let pairs: [(&str, &[u8]); 1] = [("source", b"a")];
    let mut acks = Vec::new();
    for i in 0..100u32 {
        let value = i.to_le_bytes();
        let record = RecordToPublish { key: Some(b"XNAS.AAPL"), value: &value, headers: &pairs, ..Default::default() };
        acks.push(publisher.send_acked(&record).unwrap());
    }
    for (i, ack) in acks.into_iter().enumerate() {
        let acked = ack.wait(Instant::now() + Duration::from_secs(10)).unwrap();
        assert_eq!(acked.position.offset.0, i as u64);
    }
    let report = publisher.flush().unwrap();
    assert_eq!((report.acked, report.is_clean()), (100, true));
    let mut iter = subscriber.records();
    for (i, record) in read(&mut || iter.next_record(WAIT).unwrap(), 100).into_iter().enumerate() {
        assert_eq!(record.value, (i as u32).to_le_bytes());
        assert_eq!((record.position.offset.0, record.key.as_deref()), (i as u64, Some(&b"XNAS.AAPL"[..])));
        assert_eq!(record.headers, [("source".to_string(), b"a".to_vec())]);
        assert!(record.time.0 > 0 && record.append_time.0 > 0);
    }
    // Cores report their counters from time to time.
    let until = Instant::now() + Duration::from_secs(10);
    while !client.stats(None).unwrap().streams.iter().any(|it| it.name == stream && it.records_in == 100) {
        assert!(Instant::now() < until, "{:?}", client.stats(None));
        std::thread::sleep(Duration::from_millis(20));
    }
    client.close();
}

#[test]
fn requests_are_refused_with_a_code() {
    let Some(broker) = Broker::start(1) else { return };
    let client = broker.connect();
    let stream = create(&client, "acme/md/quotes", 1);
    let spec = StreamSpec::default();
    let again = client.admin(Command::CreateStream { name: stream.clone(), spec, create_parents: false });
    assert!(matches!(again, Err(RequestError::Refused { code: ErrorCode::AlreadyExists, .. })), "{again:?}");
    let none = StreamName::parse("acme/md/none").unwrap();
    let error = client.publisher(&none, PublisherOptions::default()).unwrap_err();
    assert!(matches!(error, RequestError::Refused { code: ErrorCode::NotFound, .. }), "{error}");
    let bad = SubscribeOptions { filter: Some("a..>.b".into()), ..Default::default() };
    let error = client.subscribe(&stream, bad).unwrap_err();
    assert!(matches!(error, RequestError::Refused { code: ErrorCode::InvalidPattern, .. }), "{error}");
}

#[test]
fn many_shards_keys_filters_and_compression() {
    let Some(broker) = Broker::start(2) else { return };
    let client = broker.connect();
    let stream = create(&client, "acme/md/many", 8);
    let all = client.subscribe(&stream, SubscribeOptions::default()).unwrap();
    let filter = SubscribeOptions { filter: Some("k.7.>".into()), ..Default::default() };
    let some = client.subscribe(&stream, filter).unwrap();
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let options = PublisherOptions { compression, ..Default::default() };
        let publisher = client.publisher(&stream, options).unwrap();
        for i in 0..1_000u32 {
            let key = format!("k.{}.x", i % 10);
            let value = format!("value {i} {}", "repeat ".repeat(20));
            let record = RecordToPublish { key: Some(key.as_bytes()), value: value.as_bytes(), ..Default::default() };
            publisher.send(&record).unwrap();
        }
        let report = publisher.flush().unwrap();
        assert_eq!(report.acked, 1_000, "{report:?}");
    }
    let mut iter = all.records();
    let records = read(&mut || iter.next_record(WAIT).unwrap(), 3_000);
    let mut last = std::collections::HashMap::new();
    for record in &records {
        let before = last.insert(record.shard, record.position.offset.0);
        assert!(before.is_none_or(|it| it < record.position.offset.0), "order within a shard");
    }
    assert!(last.len() > 1, "ten keys went to more than one shard");
    let mut iter = some.records();
    for record in read(&mut || iter.next_record(WAIT).unwrap(), 300) {
        assert_eq!(record.key.as_deref(), Some(&b"k.7.x"[..]));
    }
}

#[test]
fn a_slow_reader_gets_everything_by_credit() {
    let Some(broker) = Broker::start(1) else { return };
    let client = broker.connect();
    let stream = create(&client, "acme/md/slow", 1);
    let subscriber = client.subscribe(&stream, SubscribeOptions::default()).unwrap();
    let publisher = client.publisher(&stream, PublisherOptions::default()).unwrap();
    let value = vec![7u8; 50_000];
    for _ in 0..600 {
        publisher.send(&RecordToPublish { value: &value, ..Default::default() }).unwrap();
    }
    assert_eq!(publisher.flush().unwrap().acked, 600);
    // 30 MB went through a window of 16 MiB that nobody read meanwhile.
    let mut iter = subscriber.records();
    for (i, record) in read(&mut || iter.next_record(WAIT).unwrap(), 600).into_iter().enumerate() {
        assert_eq!((record.position.offset.0, record.value.len()), (i as u64, value.len()));
    }
}

#[test]
fn a_client_survives_a_restart_of_the_broker() {
    let Some(mut broker) = Broker::start(1) else { return };
    let client = broker.connect();
    let stream = create(&client, "acme/md/restart", 1);
    let publisher = client.publisher(&stream, PublisherOptions::default()).unwrap();
    publisher.send(&RecordToPublish { value: b"before", ..Default::default() }).unwrap();
    assert_eq!(publisher.flush().unwrap().acked, 1);
    broker.kill();
    broker.run();
    // The same client finds the new process by itself, and the stream is there, whenever it asks.
    let until = Instant::now() + Duration::from_secs(20);
    while let Err(error) = client.route(&stream) {
        assert!(Instant::now() < until && error.code() != Some(ErrorCode::NotFound), "{error}");
    }
    let mut iter = client.subscribe(&stream, SubscribeOptions::default()).unwrap().records();
    publisher.send(&RecordToPublish { value: b"after", ..Default::default() }).unwrap();
    let report = publisher.flush().unwrap();
    assert_eq!((report.acked, report.is_clean()), (1, true), "{report:?}");
    assert_eq!(iter.next_record(WAIT).unwrap().unwrap().value, b"after");
}

#[test]
fn starts_modes_and_policies() {
    let Some(broker) = Broker::start(1) else { return };
    let client = broker.connect();
    let stream = create(&client, "acme/md/starts", 2);
    let options = PublisherOptions { target: ShardTarget::Shard(1), ..Default::default() };
    let publisher = client.publisher(&stream, options).unwrap();
    for i in 0..10u8 {
        publisher.send(&RecordToPublish { value: &[i], ..Default::default() }).unwrap();
        publisher.flush().unwrap();
    }
    let lineage = client.route(&stream).unwrap().shards[1].lineage;
    let position =
        felix_client::protocol::position::Position { lineage, offset: felix_client::protocol::position::Offset(6) };
    for (start, first) in [(Start::Earliest, 0), (Start::Position(position), 6)] {
        for mode in
            [DeliveryMode::Shared, DeliveryMode::Own, DeliveryMode::DatagramOrStream, DeliveryMode::DatagramOrGap]
        {
            let options = SubscribeOptions {
                shards: Shards::One(1),
                start,
                mode,
                policy: SlowPolicy::DropOldest,
                ..Default::default()
            };
            let mut iter = client.subscribe(&stream, options).unwrap().records();
            for i in first..10u8 {
                let record = iter.next_record(WAIT).unwrap().unwrap_or_else(|| panic!("{start:?} {mode:?} {i}"));
                assert_eq!(record.value, [i], "{start:?} {mode:?}");
            }
        }
    }
}

#[test]
fn fire_and_forget_arrives() {
    let Some(broker) = Broker::start(1) else { return };
    let client = broker.connect();
    let stream = create(&client, "acme/md/forget", 1);
    let mut iter = client.subscribe(&stream, SubscribeOptions::default()).unwrap().records();
    let options = PublisherOptions { acks: false, ..Default::default() };
    let publisher = client.publisher(&stream, options).unwrap();
    for i in 0..1_000u32 {
        publisher.send(&RecordToPublish { value: &i.to_le_bytes(), ..Default::default() }).unwrap();
    }
    assert_eq!(publisher.flush().unwrap().sent, 1_000);
    for (i, record) in read(&mut || iter.next_record(WAIT).unwrap(), 1_000).into_iter().enumerate() {
        assert_eq!(record.value, (i as u32).to_le_bytes());
    }
}

#[test]
fn a_close_waits_for_what_nobody_acknowledges() {
    let Some(broker) = Broker::start(1) else { return };
    let reader = broker.connect();
    let stream = create(&reader, "acme/md/close", 1);
    let mut iter = reader.subscribe(&stream, SubscribeOptions::default()).unwrap().records();
    let writer = broker.connect();
    let publisher = writer.publisher(&stream, PublisherOptions { acks: false, ..Default::default() }).unwrap();
    let value = vec![1u8; 10_000];
    for _ in 0..500 {
        publisher.send(&RecordToPublish { value: &value, ..Default::default() }).unwrap();
    }
    drop(publisher);
    writer.close();
    assert_eq!(read(&mut || iter.next_record(WAIT).unwrap(), 500).len(), 500);
}

/// The smallest runtime: a waker that unparks.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(value) => return value,
            std::task::Poll::Pending => std::thread::park_timeout(Duration::from_secs(10)),
        }
    }
}

#[test]
fn futures_work_on_any_runtime() {
    use futures_core::Stream;
    let Some(broker) = Broker::start(1) else { return };
    let client = broker.connect();
    let stream = create(&client, "acme/md/futures", 1);
    let mut subscriber = client.subscribe(&stream, SubscribeOptions::default()).unwrap();
    let options = PublisherOptions { in_flight_bytes_max: 300, ..Default::default() };
    let publisher = client.publisher(&stream, options).unwrap();
    block_on(async {
        for i in 0..100u32 {
            let value = i.to_le_bytes();
            let ack = loop {
                match publisher.try_send_acked(&RecordToPublish { value: &value, ..Default::default() }) {
                    Ok(ack) => break ack,
                    Err(felix_client::SendError::WouldBlock) => publisher.room().await,
                    Err(error) => panic!("{error}"),
                }
            };
            assert_eq!(ack.await.unwrap().position.offset.0, u64::from(i));
            let item = std::future::poll_fn(|context| std::pin::Pin::new(&mut subscriber).poll_next(context)).await;
            let Some(Ok(Item::Records(batch))) = item else { panic!("{item:?}") };
            assert_eq!(batch.records().next().unwrap().value, value);
        }
    });
}

#[test]
fn threads_share_a_publisher_and_keep_their_order() {
    let Some(broker) = Broker::start(2) else { return };
    let client = broker.connect();
    let stream = create(&client, "acme/md/threads", 4);
    let mut iter = client.subscribe(&stream, SubscribeOptions::default()).unwrap().records();
    let publisher = client.publisher(&stream, PublisherOptions::default()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let publisher = &publisher;
            scope.spawn(move || {
                for i in 0..2_000u32 {
                    let mut value = i.to_le_bytes().to_vec();
                    value.push(thread);
                    publisher
                        .send(&RecordToPublish { key: Some(&[thread]), value: &value, ..Default::default() })
                        .unwrap();
                }
            });
        }
    });
    assert_eq!(publisher.flush().unwrap().acked, 8_000);
    let mut next = [0u32; 4];
    for record in read(&mut || iter.next_record(WAIT).unwrap(), 8_000) {
        let thread = usize::from(record.value[4]);
        assert_eq!(record.value[..4], next[thread].to_le_bytes());
        next[thread] += 1;
    }
}

#[test]
fn one_thread_drives_publisher_and_subscriber() {
    let Some(broker) = Broker::start(1) else { return };
    drop(broker.connect());
    let mut driver = PollClient::connect(broker.config()).unwrap();
    let stream = StreamName::parse("acme/md/poll").unwrap();
    let create = Command::CreateStream { name: stream.clone(), spec: StreamSpec::default(), create_parents: true };
    driver.admin(create).unwrap();
    let mut subscriber = driver.subscribe(&stream, SubscribeOptions::default()).unwrap();
    let publisher = driver.publisher(&stream, PublisherOptions::default()).unwrap();
    let mut times = Vec::new();
    for i in 0..300u64 {
        let begun = Instant::now();
        publisher.try_send(&RecordToPublish { value: &i.to_le_bytes(), ..Default::default() }).unwrap();
        loop {
            driver.poll();
            if let Some(Item::Records(batch)) = subscriber.try_next().unwrap() {
                let values: Vec<_> = batch.records().map(|it| it.value.to_vec()).collect();
                assert_eq!(values, [i.to_le_bytes().to_vec()]);
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "record {i} does not come back");
        }
        times.push(begun.elapsed());
    }
    times.sort();
    eprintln!("round trip p50 {:?}, p99 {:?}", times[150], times[297]);
    assert_eq!(driver.flush(&publisher, Duration::from_secs(5)).unwrap().acked, 300);
    driver.close();
}

#[test]
fn nobody_there_is_said_at_once() {
    let Some(mut broker) = Broker::start(1) else { return };
    drop(broker.connect());
    let config = broker.config();
    broker.kill();
    let begun = Instant::now();
    let error = Client::connect(config).unwrap_err();
    assert!(matches!(error, felix_client::ConnectError::Unreachable { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(2));
}
