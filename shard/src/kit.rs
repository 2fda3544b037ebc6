//! **What**: a small laboratory for unit tests: an owner and the fan-outs of some cores, joined without delay unless a
//! test holds messages back, and what happens as short text.
//!
//! **Invariants**: messages of one pair keep their order, as in the mesh.
//!
//! **Never**: anything that is compiled into a broker.
//!
//! **See**: `tests/model.rs`, which does the same with delays and full rings.

use crate::batch_pool::{BatchPool, CheckedBatch, SharedBatch};
use crate::effect::{Effect, Effects};
use crate::event::{ChannelKey, ConnKey, Event, ShardConfig, SubKey};
use crate::fan_out::{FanOut, Next, Request};
use crate::invariants;
use crate::limits::Limits;
use crate::subscription::SubSpec;
use crate::table::Shards;
use felix_protocol::batch::{BatchKind, StampedHeader};
use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::batch_view::BatchView;
use felix_protocol::frame::{DELIVER_PREFIX_BYTES, DeliveryMode, SlowPolicy, Start};
use felix_protocol::ids::*;
use felix_protocol::metadata::Durability;
use felix_protocol::pattern::Pattern;
use felix_protocol::position::{Epoch, Lineage, Offset};
use felix_protocol::time::{Now, Time, Timestamp};

pub const MS: u64 = 1_000_000;
pub const SHARD: ShardId = ShardId(1);

/// Names a record: `key`, or `key!5` for a TTL of 5 ms; `-` for no key.
pub fn body(names: &[&str], stamp: ProducerStamp, value: &[u8]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for name in names {
        let (key, ttl) = name.split_once('!').unwrap_or((name, ""));
        let key = (key != "-").then_some(key.as_bytes());
        builder.push(&RecordToPublish { key, value, ttl_ms: ttl.parse().ok(), ..Default::default() }).unwrap();
    }
    let mut body = Vec::new();
    builder.finish(stamp, &mut body);
    body
}

/// A checked body from a pool.
pub fn checked(pool: &mut BatchPool, names: &[&str], value_bytes: usize) -> CheckedBatch {
    let body = body(names, ProducerStamp::default(), &vec![7; value_bytes]);
    CheckedBatch::check(pool, &body, 1 << 20, None).unwrap()
}

/// A stamped batch of one record at an offset.
pub fn stamped(pool: &mut BatchPool, base: u64, time: u64, value_bytes: usize) -> SharedBatch {
    let batch = checked(pool, &["k"], value_bytes);
    let header = StampedHeader {
        batch_bytes: batch.batch_bytes() as u32,
        kind: BatchKind::Data,
        flags: 0,
        offset_count: 1,
        stream: StreamId(7),
        shard: SHARD,
        epoch: Epoch(1),
        lineage: Lineage(1),
        tlv_bytes: 0,
        base_offset: Offset(base),
        append_time: Timestamp(time),
        durable_end: Offset(0),
        chain: 0,
    };
    batch.stamp(header)
}

pub fn config() -> ShardConfig {
    ShardConfig {
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
    }
}

pub fn spec(start: Start, filter: &str, policy: SlowPolicy) -> SubSpec {
    SubSpec {
        conn: ConnKey(1),
        id: SubscriptionId(1),
        shard: SHARD,
        start,
        filter: (!filter.is_empty()).then(|| Pattern::parse(filter).unwrap()),
        policy,
        mode: DeliveryMode::Shared,
        credit_bytes: None,
    }
}

/// An owner (core 0) and the fan-outs of `cores`.
pub struct Lab {
    pub now: Now,
    pub owner: Shards,
    pub cores: Vec<FanOut>,
    pub effects: Effects,
    /// Commits to these cores find the mesh full.
    pub full: Vec<CoreId>,
}

impl Lab {
    pub fn new(limits: Limits, cores: usize, config: ShardConfig) -> Lab {
        let mut lab = Lab {
            now: Now { time: Time(0), wall: Timestamp(1_000 * MS) },
            owner: Shards::new(limits),
            cores: (0..cores).map(|_| FanOut::new(limits)).collect(),
            effects: Effects::default(),
            full: Vec::new(),
        };
        lab.handle(Event::ShardPut(config));
        lab
    }

    /// One event to the owner, its effects to the cores.
    pub fn handle(&mut self, event: Event) {
        self.owner.handle(self.now, event, &mut self.effects);
        self.execute();
    }

    fn execute(&mut self) {
        for effect in self.effects.drain() {
            match effect {
                Effect::Commit { core, shard, batch } if self.full.contains(&core) => {
                    self.owner.commit_refused(core, shard, batch.range().from);
                }
                Effect::Commit { core, shard, batch } => self.cores[core.0 as usize].on_commit(shard, batch),
                Effect::Attach { core, sub, result, .. } => {
                    self.cores[core.0 as usize].on_attach(sub, result);
                }
                Effect::Fetch { core, sub, batches, high_watermark, .. } => {
                    self.cores[core.0 as usize].on_fetch(sub, batches, high_watermark);
                }
                Effect::Gone { core, shard } => self.cores[core.0 as usize].on_gone(shard, |_, _| {}),
                Effect::Ack { .. } | Effect::Refuse { .. } | Effect::OpenChannel { .. } => {}
            }
        }
        for core in &self.cores {
            invariants::check(&self.owner, core);
        }
    }

    /// Requests of all cores to the owner, until there are none.
    pub fn pump(&mut self) {
        for core in 0..self.cores.len() {
            while let Some(request) = self.cores[core].take_request() {
                self.handle(to_event(CoreId(core as u8), request));
            }
        }
    }

    pub fn publish(&mut self, names: &[&str]) {
        self.publish_sized(names, 4);
    }

    pub fn publish_sized(&mut self, names: &[&str], value_bytes: usize) {
        let batch = checked(&mut self.owner.pool, names, value_bytes);
        let channel = ChannelKey { core: CoreId(0), conn: ConnKey(1), stream: 4 };
        self.handle(Event::Published { shard: SHARD, channel, batch });
    }

    pub fn subscribe(&mut self, spec: &SubSpec) -> SubKey {
        let key = self.cores[0].subscribe(spec);
        self.pump();
        key
    }

    pub fn pass(&mut self, ms: u64) {
        self.now.wall.0 += ms * MS;
        self.now.time.0 += ms * MS;
    }

    /// All that a subscriber of core 0 gets now: `0-3: a b c` is a batch that covers offsets 0, 1, 2; then its own
    /// requests, for as long as they bring more.
    pub fn read(&mut self, key: SubKey) -> String {
        self.read_at(0, key)
    }

    pub fn read_at(&mut self, core: usize, key: SubKey) -> String {
        let mut lines = Vec::new();
        while self.cores[core].take_scheduled().is_some() {}
        loop {
            let line = self.next(core, key);
            if line == "wait" {
                self.pump();
                if self.cores[core].take_scheduled() != Some(key) {
                    return lines.join(", ");
                }
                continue;
            }
            let closed = line.starts_with("closed");
            lines.push(line);
            if closed {
                return lines.join(", ");
            }
        }
    }

    pub fn next(&mut self, core: usize, key: SubKey) -> String {
        let (line, bytes) = match self.cores[core].next(self.now, key) {
            Next::Wait => return "wait".into(),
            Next::Closed(code) => return format!("closed {code}"),
            Next::Gap { covered, .. } => (format!("gap {}-{}", covered.from, covered.to), 0),
            Next::Progress { covered, .. } => (format!("progress {}-{}", covered.from, covered.to), 0),
            Next::Batch { covered, batch, .. } => {
                let view = BatchView::parse(batch.bytes()).unwrap();
                view.check().unwrap();
                let names: Vec<_> = view.body.entries().map(|it| it.unwrap().key.unwrap_or(b"-").to_vec()).collect();
                let names: Vec<_> = names.into_iter().map(|it| String::from_utf8(it).unwrap()).collect();
                (format!("{}-{}: {}", covered.from, covered.to, names.join(" ")), batch.bytes().len())
            }
        };
        self.cores[core].charge(key, DELIVER_PREFIX_BYTES + bytes);
        line
    }
}

/// A request as the owner sees it.
pub fn to_event(core: CoreId, request: Request) -> Event {
    match request {
        Request::Attach { shard, sub, start } => Event::Attached { shard, core, sub, start },
        Request::Detach { shard } => Event::Detached { shard, core },
        Request::Fetch { shard, sub, from } => Event::Fetched { shard, core, sub, from },
    }
}
