//! **What**: counts what the hot paths allocate in steady state: nothing per publish, nothing per delivery
//! (DECISIONS 37).
//!
//! **Invariants**: each thread counts its own, so that the test harness does not count.

use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::frame::{DeliveryMode, SlowPolicy, Start};
use felix_protocol::ids::*;
use felix_protocol::metadata::Durability;
use felix_protocol::pattern::Pattern;
use felix_protocol::position::{Epoch, Lineage};
use felix_protocol::time::{Now, Time, Timestamp};
use felix_shard::batch_pool::CheckedBatch;
use felix_shard::effect::{Effect, Effects};
use felix_shard::event::{ChannelKey, ConnKey, Event, ShardConfig};
use felix_shard::fan_out::{FanOut, Next, Request};
use felix_shard::limits::Limits;
use felix_shard::subscription::SubSpec;
use felix_shard::table::Shards;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: every call goes to the system allocator unchanged; the counter has no part in it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const SHARD: ShardId = ShardId(1);

/// One owner and two cores, as many subscribers on each, all idempotent publishes of two records.
struct Bench {
    now: Now,
    owner: Shards,
    cores: [FanOut; 2],
    effects: Effects,
    bodies: Vec<Vec<u8>>,
    published: usize,
    delivered: u64,
}

impl Bench {
    fn new(subscribers: usize, filter: Option<&str>) -> Bench {
        let limits = Limits { tail_batches_max: 64, ..Limits::default() };
        let mut bench = Bench {
            now: Now { time: Time(0), wall: Timestamp(1) },
            owner: Shards::new(limits),
            cores: [FanOut::new(limits), FanOut::new(limits)],
            effects: Effects::default(),
            bodies: Vec::new(),
            published: 0,
            delivered: 0,
        };
        bench.handle(Event::ShardPut(ShardConfig {
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
            retention_bytes: 20_000,
            retention_age_ns: Some(100_000),
        }));
        for core in 0..2 {
            for id in 0..subscribers {
                bench.cores[core].subscribe(&SubSpec {
                    conn: ConnKey(1),
                    id: SubscriptionId(id as u32),
                    shard: SHARD,
                    start: Start::Latest,
                    filter: filter.map(|text| Pattern::parse(text).unwrap()),
                    policy: SlowPolicy::Block,
                    mode: DeliveryMode::Shared,
                    credit_bytes: None,
                });
            }
        }
        bench.turn();
        bench
    }

    /// The bodies of the next rounds, made before anything is counted.
    fn prepare(&mut self, rounds: usize) {
        let mut builder = BatchBuilder::new();
        self.bodies.clear();
        for round in self.published..self.published + rounds {
            for key in ["a.x", "b.x"] {
                let value = [round as u8; 100];
                builder
                    .push(&RecordToPublish { key: Some(key.as_bytes()), value: &value, ..Default::default() })
                    .unwrap();
            }
            let base_sequence = Sequence(2 * round as u64);
            let stamp = ProducerStamp { producer: ProducerId(3), epoch: ProducerEpoch(1), base_sequence };
            let mut body = Vec::new();
            builder.finish(stamp, &mut body);
            self.bodies.push(body);
        }
    }

    fn handle(&mut self, event: Event) {
        self.owner.handle(self.now, event, &mut self.effects);
        for effect in self.effects.drain() {
            match effect {
                Effect::Commit { core, shard, batch } => self.cores[core.0 as usize].on_commit(shard, batch),
                Effect::Attach { core, sub, result, .. } => {
                    self.cores[core.0 as usize].on_attach(sub, result);
                }
                Effect::Ack { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Requests, ticks and all deliveries that wait.
    fn turn(&mut self) {
        for core in 0..2 {
            while let Some(request) = self.cores[core].take_request() {
                let Request::Attach { shard, sub, start } = request else { panic!("{request:?}") };
                self.handle(Event::Attached { shard, core: CoreId(core as u8), sub, start });
            }
            while let Some(key) = self.cores[core].take_scheduled() {
                loop {
                    match self.cores[core].next(self.now, key) {
                        Next::Batch { batch, .. } => {
                            self.delivered += 1;
                            let bytes = batch.bytes().len();
                            self.cores[core].charge(key, bytes);
                        }
                        Next::Wait => break,
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        self.handle(Event::Ticked);
    }

    fn rounds(&mut self, rounds: usize) {
        for round in 0..rounds {
            self.now.wall.0 += 100;
            let batch = CheckedBatch::check(&mut self.owner.pool, &self.bodies[round], 1 << 20, None).unwrap();
            let channel = ChannelKey { core: CoreId(0), conn: ConnKey(1), stream: 4 };
            self.handle(Event::Published { shard: SHARD, channel, batch });
            self.turn();
            self.published += 1;
        }
    }
}

#[test]
fn nothing_is_allocated_in_steady_state() {
    for (subscribers, filter) in [(0, None), (1, None), (100, None), (1, Some("a.*")), (100, Some("a.*"))] {
        let mut bench = Bench::new(subscribers, filter);
        // The dedup window (1,024 batches), the log and the rings fill up; then nothing grows any more.
        bench.prepare(3_000);
        bench.rounds(3_000);
        bench.prepare(10_000);
        let (buffers, delivered) = (bench.owner.pool.allocated, bench.delivered);
        let before = ALLOCATIONS.get();
        bench.rounds(10_000);
        let allocations = ALLOCATIONS.get() - before;
        assert_eq!(bench.delivered - delivered, 10_000 * 2 * subscribers as u64, "every one was delivered");
        assert_eq!(bench.owner.pool.allocated, buffers, "buffers, {subscribers} subscribers, filter {filter:?}");
        assert_eq!(
            allocations, 0,
            "in 10,000 publishes, {subscribers} subscribers each on two cores, filter {filter:?}"
        );
        assert!(bench.owner.get(SHARD).unwrap().counters().evicted > 9_000, "the log let go as much as it took");
    }
}
