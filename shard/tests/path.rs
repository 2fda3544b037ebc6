//! **What**: one publish from the channel to two subscribers on two cores, as a transcript. Start here: run it, read
//! `path.txt` beside the code it names.
//!
//! ```text
//! cargo test -p felix-shard --test path             compares with path.txt
//! UPDATE=1 cargo test -p felix-shard --test path    rewrites path.txt
//! ```
//!
//! **See**: `shard.rs` (events and effects of the owner), `fan_out.rs` (requests and deliveries of a core).

use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::batch_view::BatchView;
use felix_protocol::frame::{DeliveryMode, SlowPolicy, Start};
use felix_protocol::ids::*;
use felix_protocol::metadata::Durability;
use felix_protocol::pattern::Pattern;
use felix_protocol::position::{Epoch, Lineage};
use felix_protocol::time::{Now, Time, Timestamp};
use felix_shard::batch_pool::{BatchPool, CheckedBatch, SharedBatch};
use felix_shard::effect::{Effect, Effects};
use felix_shard::event::{ChannelKey, ConnKey, Event, ShardConfig, SubKey};
use felix_shard::fan_out::{FanOut, Next, Request};
use felix_shard::invariants;
use felix_shard::limits::Limits;
use felix_shard::subscription::SubSpec;
use felix_shard::table::Shards;

const SHARD: ShardId = ShardId(9);
const CHANNEL: ChannelKey = ChannelKey { core: CoreId(0), conn: ConnKey(1), stream: 4 };

/// Core 0 owns the shard; cores 0 and 1 have a subscriber each.
struct Path {
    now: Now,
    owner: Shards,
    cores: [FanOut; 2],
    names: Vec<(usize, SubKey, &'static str)>,
    text: String,
}

impl Path {
    fn title(&mut self, text: &str) {
        self.text += &format!("\n== {text}\n\n");
    }

    fn line(&mut self, who: &str, what: &str, detail: String) {
        self.text += format!("{who:<8} {what:<8} {detail}").trim_end();
        self.text.push('\n');
    }

    fn name(&self, core: CoreId, key: SubKey) -> &'static str {
        self.names.iter().find(|it| (it.0, it.1) == (core.0.into(), key)).expect("a subscriber of this test").2
    }

    /// One event to the owner; its effects go where they belong at once.
    fn handle(&mut self, event: Event) {
        let detail = self.event_text(&event);
        self.line("owner", "<- event", detail);
        let mut effects = Effects::default();
        self.owner.handle(self.now, event, &mut effects);
        let effects: Vec<Effect> = effects.drain().collect();
        for effect in &effects {
            let detail = self.effect_text(effect);
            self.line("owner", "-> effect", detail);
        }
        for effect in effects {
            match effect {
                Effect::Commit { core, shard, batch } => self.cores[core.0 as usize].on_commit(shard, batch),
                Effect::Attach { core, sub, result, .. } => {
                    self.cores[core.0 as usize].on_attach(sub, result).expect("it waits for this").expect("accepted");
                }
                Effect::Gone { core, shard } => {
                    let mut ended = Vec::new();
                    self.cores[core.0 as usize].on_gone(shard, |key, sub| ended.push((key, sub.told)));
                    for (key, told) in ended {
                        let name = self.name(core, key);
                        self.line(&format!("core {core}"), "closed", format!("{name}, told up to {told}"));
                    }
                }
                Effect::OpenChannel { .. } | Effect::Ack { .. } | Effect::Refuse { .. } | Effect::Fetch { .. } => {}
            }
        }
        self.cores.iter().for_each(|core| invariants::check(&self.owner, core));
    }

    fn event_text(&self, event: &Event) -> String {
        match event {
            Event::ShardPut(it) => {
                format!("ShardPut: shard {}, lineage {}, epoch {}", it.shard, it.lineage.0, it.epoch.0)
            }
            Event::ShardRemoved { shard } => format!("ShardRemoved: shard {shard}"),
            Event::ChannelOpened { producer, producer_epoch, .. } => {
                format!("ChannelOpened: producer {producer}, its epoch {producer_epoch}")
            }
            Event::Published { batch, .. } => {
                let facts = batch.facts();
                format!(
                    "Published: {} records, sequences from {}, {} bytes",
                    facts.record_count,
                    facts.base_sequence,
                    batch.batch_bytes()
                )
            }
            Event::Attached { core, sub, start, .. } => {
                format!("Attached: core {core} for {}, start {start:?}", self.name(*core, *sub))
            }
            Event::Detached { core, .. } => format!("Detached: core {core}"),
            other => format!("{other:?}"),
        }
    }

    fn effect_text(&self, effect: &Effect) -> String {
        match effect {
            Effect::OpenChannel { result: Ok(it), .. } => {
                format!(
                    "OpenChannel: lineage {}, epoch {}, next sequence {}",
                    it.lineage.0, it.epoch.0, it.next_sequence
                )
            }
            Effect::Ack { ack, .. } => format!(
                "Ack: sequence {} + {} at offset {}, {:?}",
                ack.base_sequence, ack.record_count, ack.base_offset, ack.durability
            ),
            Effect::Refuse { base_sequence, code, .. } => format!("Refuse: sequence {base_sequence}, {code}"),
            Effect::Commit { core, batch, .. } => format!("Commit: to core {core}, {}", batch_text(batch)),
            Effect::Attach { core, sub, result: Ok(it), .. } => format!(
                "Attach: {} begins at {}, high watermark {}, core {core} gets commits from {}",
                self.name(*core, *sub),
                it.start,
                it.high_watermark,
                it.commits_from
            ),
            Effect::Gone { core, .. } => format!("Gone: to core {core}"),
            other => format!("{other:?}"),
        }
    }

    fn subscribe(&mut self, core: usize, name: &'static str, filter: Option<&str>) {
        let key = self.cores[core].subscribe(&SubSpec {
            conn: ConnKey(2),
            id: SubscriptionId(1),
            shard: SHARD,
            start: Start::Latest,
            filter: filter.map(|text| Pattern::parse(text).expect("a good filter")),
            policy: SlowPolicy::Block,
            mode: DeliveryMode::Shared,
            credit_bytes: None,
        });
        self.names.push((core, key, name));
        let detail = format!("{name}, filter {}", filter.unwrap_or("none"));
        self.line(&format!("core {core}"), "subscribe", detail);
        self.requests(core);
    }

    fn requests(&mut self, core: usize) {
        while let Some(request) = self.cores[core].take_request() {
            let core = CoreId(core as u8);
            self.handle(match request {
                Request::Attach { shard, sub, start } => Event::Attached { shard, core, sub, start },
                Request::Detach { shard } => Event::Detached { shard, core },
                Request::Fetch { shard, sub, from } => Event::Fetched { shard, core, sub, from },
            });
        }
    }

    /// What a core's sessions do in a turn: ask for every scheduled subscriber until it has nothing.
    fn deliver(&mut self, core: usize) {
        while let Some(key) = self.cores[core].take_scheduled() {
            let name = self.name(CoreId(core as u8), key);
            loop {
                let (wait, text) = match self.cores[core].next(self.now, key) {
                    Next::Batch { number, covered, batch } => (
                        false,
                        format!(
                            "{name}: number {number} covers {}..{}, {}",
                            covered.from,
                            covered.to,
                            batch_text(batch)
                        ),
                    ),
                    Next::Wait => (true, format!("{name}: nothing")),
                    other => (false, format!("{name}: {other:?}")),
                };
                self.line(&format!("core {core}"), "next", text);
                if wait {
                    break;
                }
            }
        }
    }
}

fn batch_text(batch: &SharedBatch) -> String {
    let view = BatchView::parse(batch.bytes()).expect("a good batch");
    view.check().expect("good sums");
    let records: Vec<String> = (view.body.records(view.body.values))
        .map(|it| it.expect("a good record"))
        .map(|it| {
            let key = String::from_utf8_lossy(it.key.unwrap_or(b"-")).into_owned();
            format!("{}={}", key, String::from_utf8_lossy(it.value))
        })
        .collect();
    let (range, derived) = (batch.range(), if view.header.is_derived() { "derived " } else { "" });
    format!("{derived}batch {}..{} [{}]", range.from, range.to, records.join(" "))
}

fn checked(pool: &mut BatchPool, base: u64, records: &[(&str, &str)]) -> CheckedBatch {
    let mut builder = BatchBuilder::new();
    for (key, value) in records {
        let record = RecordToPublish { key: Some(key.as_bytes()), value: value.as_bytes(), ..Default::default() };
        builder.push(&record).expect("a good record");
    }
    let stamp = ProducerStamp { producer: ProducerId(3), epoch: ProducerEpoch(1), base_sequence: Sequence(base) };
    let mut body = Vec::new();
    builder.finish(stamp, &mut body);
    CheckedBatch::check(pool, &body, 1 << 20, None).expect("a good body")
}

#[test]
fn the_path_of_a_publish() {
    let mut path = Path {
        now: Now { time: Time(0), wall: Timestamp(1_700_000_000_000_000_000) },
        owner: Shards::new(Limits::default()),
        cores: [FanOut::new(Limits::default()), FanOut::new(Limits::default())],
        names: Vec::new(),
        text: "The path of a publish, as shard/tests/path.rs prints it. Core 0 owns the shard.\n".into(),
    };
    path.title("Metadata gives core 0 a shard (table.rs)");
    path.handle(Event::ShardPut(ShardConfig {
        shard: SHARD,
        stream: StreamId(7),
        index: ShardIndex(0),
        lineage: Lineage(1),
        epoch: Epoch(1),
        durability: Durability::Ephemeral,
        made: false,
        sync_interval_ms: 0,
        sealed_for: None,
        compact: false,
        tombstone_grace_ns: 0,
        retention_bytes: 1 << 20,
        retention_age_ns: None,
    }));
    path.title("A producer opens a channel (shard.rs, dedup.rs)");
    let producer = (ProducerId(3), ProducerEpoch(1));
    path.handle(Event::ChannelOpened {
        shard: SHARD,
        channel: CHANNEL,
        producer: producer.0,
        producer_epoch: producer.1,
    });
    path.title("Two cores get a subscriber each; the second wants some keys only (fan_out.rs, shard.rs)");
    path.subscribe(0, "ann", None);
    path.subscribe(1, "bob", Some("XNAS.*"));
    path.deliver(0);
    path.deliver(1);
    path.title("A batch: append, commit to every attached core, ack (shard.rs, append.rs)");
    let trades = [("XNAS.AAPL", "187"), ("XLON.VOD", "68")];
    let batch = checked(&mut path.owner.pool, 0, &trades);
    path.handle(Event::Published { shard: SHARD, channel: CHANNEL, batch });
    path.title("Each core fans out to its own sessions (next.rs, tail.rs, filter.rs)");
    path.deliver(0);
    path.deliver(1);
    path.title("The ack was lost, the producer sends the same bytes again: acked, appended once (dedup.rs)");
    let batch = checked(&mut path.owner.pool, 0, &trades);
    path.handle(Event::Published { shard: SHARD, channel: CHANNEL, batch });
    path.title("Nothing for bob in this one: he is not woken; his next delivery covers it");
    let batch = checked(&mut path.owner.pool, 2, &[("XLON.VOD", "69")]);
    path.handle(Event::Published { shard: SHARD, channel: CHANNEL, batch });
    path.deliver(0);
    path.deliver(1);
    let batch = checked(&mut path.owner.pool, 3, &[("XNAS.MSFT", "371")]);
    path.handle(Event::Published { shard: SHARD, channel: CHANNEL, batch });
    path.deliver(0);
    path.deliver(1);
    path.title("A core's last subscriber leaves: no more commits to it");
    let (core, key, name) = path.names[1];
    path.cores[core].unsubscribe(key).expect("it lives");
    path.line("core 1", "unsubscribe", name.into());
    path.requests(core);
    let batch = checked(&mut path.owner.pool, 4, &[("XNAS.MSFT", "372")]);
    path.handle(Event::Published { shard: SHARD, channel: CHANNEL, batch });
    path.title("Metadata takes the shard away");
    path.handle(Event::ShardRemoved { shard: SHARD });
    path.requests(0);
    let batch = checked(&mut path.owner.pool, 5, &[("XNAS.MSFT", "373")]);
    path.handle(Event::Published { shard: SHARD, channel: CHANNEL, batch });

    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/path.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(file, &path.text).expect("path.txt can be written");
    }
    let expected = std::fs::read_to_string(file).expect("path.txt, or run with UPDATE=1");
    for (number, (found, expected)) in path.text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "path.txt line {}; UPDATE=1 rewrites it", number + 1);
    }
    assert_eq!(path.text.lines().count(), expected.lines().count(), "lines of path.txt; UPDATE=1 rewrites it");
}
