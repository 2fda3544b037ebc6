//! **What**: one core with two durable shards over the disk in memory, driven a turn at a time.
//!
//! **Invariants**: no chance but the disk's seed.
//!
//! **Never**: a wait; a turn ends at most one disk request.
//!
//! **See**: `accepted_loss.rs`, `memory_is_let_go.rs`.
#![allow(dead_code, reason = "each test file that includes this uses a part of it")]

use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::ids::*;
use felix_protocol::metadata::Durability;
use felix_protocol::position::{Epoch, Lineage};
use felix_protocol::time::{Now, Time, Timestamp};
use felix_shard::batch_pool::CheckedBatch;
use felix_shard::effect::{Effect, Effects};
use felix_shard::event::{ChannelKey, ConnKey, Event, ShardConfig};
use felix_shard::limits::Limits;
use felix_shard::store::{Store, StoreSettings};
use felix_shard::table::Shards;
use felix_wal::disk::Disk;
use felix_wal::format::header::{Identity, Region};
use felix_wal::log::Maker;
use felix_wal::mem_disk::MemDisk;

pub const ME: CoreId = CoreId(0);
pub const SHARDS: u64 = 2;

pub fn maker(session: u64) -> Maker {
    let identity = Identity { cluster: ClusterId(1), node: NodeId(2), region: Region::new("eu").unwrap() };
    Maker { identity, session: NodeSession(session) }
}

pub fn config(shard: u64, session: u64) -> ShardConfig {
    ShardConfig {
        shard: ShardId(shard),
        stream: StreamId(shard),
        index: ShardIndex(0),
        lineage: Lineage(1),
        epoch: Epoch(session),
        durability: Durability::Group,
        made: false,
        sync_interval_ms: 0,
        sealed_for: None,
        compact: false,
        tombstone_grace_ns: 0,
        retention_bytes: 1 << 30,
        retention_age_ns: None,
    }
}

/// One start of one core.
pub struct Life {
    pub shards: Shards,
    pub effects: Effects,
    pub now: Now,
}

impl Life {
    pub fn start(disk: &mut MemDisk, session: u64) -> Life {
        Life::with(disk, session, StoreSettings::small())
    }

    pub fn with(disk: &mut MemDisk, session: u64, settings: StoreSettings) -> Life {
        Life::of(disk, session, settings, Durability::Group)
    }

    pub fn of(disk: &mut MemDisk, session: u64, settings: StoreSettings, durability: Durability) -> Life {
        Life::limited(disk, session, settings, durability, Limits::default())
    }

    pub fn limited(
        disk: &mut MemDisk,
        session: u64,
        settings: StoreSettings,
        durability: Durability,
        limits: Limits,
    ) -> Life {
        let now = Now { time: Time(1), wall: Timestamp(session * 1_000_000_000_000) };
        let mut life = Life { shards: Shards::new(limits), effects: Effects::default(), now };
        life.shards.set_store(Store::new(settings, maker(session), ME, u128::from(session)));
        for shard in 1..=SHARDS {
            let config = ShardConfig { durability, ..config(shard, session) };
            life.shards.handle(life.now, Event::ShardPut(config), &mut life.effects);
        }
        while life.shards.store().unwrap().opening_count() > 0 {
            life.turn(disk);
        }
        life
    }

    pub fn turn(&mut self, disk: &mut MemDisk) {
        self.now.time.0 += 50_000;
        self.now.wall.0 += 50_000;
        if self.shards.next_tick().is_some_and(|due| due <= self.now.wall) {
            self.shards.handle(self.now, Event::Ticked, &mut self.effects);
        }
        let mut requests = Vec::new();
        self.shards.plan_disk(self.now, &mut self.effects, &mut requests);
        requests.into_iter().for_each(|request| disk.submit(request));
        if let Some(done) = disk.wait() {
            self.shards.on_disk_done(self.now, done, &mut self.effects);
        }
    }

    /// Publishes one record without waiting for its ack.
    pub fn send(&mut self, shard: u64, value: &str) {
        self.send_many(shard, value, 1);
    }

    /// Publishes a batch of equal records without waiting for its ack.
    pub fn send_many(&mut self, shard: u64, value: &str, count: usize) {
        let mut builder = BatchBuilder::new();
        for _ in 0..count {
            builder.push(&RecordToPublish { value: value.as_bytes(), ..Default::default() }).unwrap();
        }
        let mut body = Vec::new();
        builder.finish(ProducerStamp::default(), &mut body);
        let batch = CheckedBatch::check(&mut self.shards.pool, &body, 1 << 20, None).unwrap();
        let channel = ChannelKey { core: ME, conn: ConnKey(1), stream: 4 };
        let event = Event::Published { shard: ShardId(shard), channel, batch };
        self.shards.handle(self.now, event, &mut self.effects);
    }

    /// Publishes one record and returns the offset that was acknowledged.
    pub fn publish(&mut self, disk: &mut MemDisk, shard: u64, value: &str) -> u64 {
        self.send(shard, value);
        for _ in 0..1_000 {
            for effect in self.effects.drain() {
                match effect {
                    Effect::Ack { ack, .. } => return ack.base_offset.0,
                    Effect::Refuse { code, .. } => panic!("refused: {code}"),
                    _ => {}
                }
            }
            self.turn(disk);
        }
        panic!("no ack");
    }
}
