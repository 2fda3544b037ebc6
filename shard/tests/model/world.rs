//! **What**: one core that owns shards, several that have subscribers, queues of tiny capacity between them, and the
//! simple model beside. One seed, one run.
//!
//! ```text
//!   cores --requests, publishes--> owner        unbounded, in order, taken in random portions
//!   owner --outbox--> ring (1 to 4) --> cores   a commit that finds the ring full or the outbox in use goes back
//! ```
//!
//! **Invariants**: after every event `invariants::check` runs, and every effect and delivery is compared with the model
//! at once.
//!
//! **See**: `reference.rs` for the model, `mutation.rs` for the bugs that can be seeded here.

use crate::mutation::Mutation;
use crate::random::Random;
use crate::reference::{Client, Expected, Log, Publish, Record, Told, matches};
use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::batch_view::BatchView;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{DELIVER_PREFIX_BYTES, DeliveryMode, SlowPolicy, Start};
use felix_protocol::ids::*;
use felix_protocol::metadata::Durability;
use felix_protocol::pattern::Pattern;
use felix_protocol::position::{Epoch, Lineage, Offset, OffsetRange, Position};
use felix_protocol::time::{Now, Time, Timestamp};
use felix_shard::batch_pool::{BatchPool, CheckedBatch, SharedBatch};
use felix_shard::effect::{AttachRefused, AttachState, Effect, Effects};
use felix_shard::event::{ChannelKey, ConnKey, Event, ShardConfig, SubKey};
use felix_shard::fan_out::{FanOut, Next, Request};
use felix_shard::invariants;
use felix_shard::limits::Limits;
use felix_shard::subscription::SubSpec;
use felix_shard::table::Shards;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const KEYS: [Option<&str>; 7] = [None, Some("a"), Some("b"), Some("a.x"), Some("a.y"), Some("b.x.z"), Some("")];
const FILTERS: [&str; 8] = ["", "", "a", "a.*", "a.>", "b.>", ">", "nobody"];
const MS: u64 = 1_000_000;

enum ToOwner {
    Request(Request),
    Publish(usize, CheckedBatch, Publish),
}

enum ToCore {
    Commit(ShardId, SharedBatch),
    Attach(SubKey, Result<AttachState, AttachRefused>),
    Fetch(SubKey, Vec<SharedBatch>, Offset),
    Gone(ShardId),
}

#[derive(Default)]
struct Link {
    outbox: VecDeque<ToCore>,
    ring: VecDeque<ToCore>,
}

struct Core {
    fan_out: FanOut,
    pool: BatchPool,
    ready: VecDeque<SubKey>,
    /// Keys as they were given out, by slot, for `IgnoreGeneration`.
    newest: BTreeMap<u32, SubKey>,
}

struct Shard {
    id: ShardId,
    config: ShardConfig,
    exists: bool,
    /// By lineage less one.
    logs: Vec<Log>,
}

#[derive(Default)]
struct Producer {
    epoch: u32,
    /// What it published to each shard in this epoch.
    sent: Vec<Vec<Publish>>,
}

pub struct World {
    random: Random,
    mutation: Option<Mutation>,
    now: Now,
    step: u64,
    owner: Shards,
    effects: Effects,
    to_owner: Vec<VecDeque<ToOwner>>,
    links: Vec<Link>,
    ring_max: usize,
    cores: Vec<Core>,
    shards: Vec<Shard>,
    producers: Vec<Producer>,
    clients: BTreeMap<(usize, SubKey), Client>,
    /// Batches that sessions still hold, as a transport does until they are acknowledged.
    held: Vec<SharedBatch>,
    expected: VecDeque<(Expected, usize, Publish)>,
    /// What was told, to compare two runs.
    pub transcript: u64,
    /// Deliveries, gaps, fetches, jumps, disconnects: to see that a run is worth something.
    pub seen: [u64; 5],
    progress_offsets: u64,
}

impl World {
    pub fn new(seed: u64, mutation: Option<Mutation>) -> World {
        let mut random = Random::new(seed);
        let limits = Limits {
            tail_batches_max: random.within(1, 8) as usize,
            tail_bytes_max: random.within(300, 4_000) as usize,
            fetch_bytes_max: random.within(300, 2_000) as usize,
            fetch_batches_max: random.within(1, 4) as usize,
            history_bytes_max: random.within(400, 4_000) as usize,
            held_bytes_max: if random.chance(20) { 3_000 } else { 1 << 20 },
            pool_bytes_max: 16 << 10,
            derived_pool_bytes_max: 4 << 10,
            progress_offsets: random.within(3, 24),
            ..Limits::default()
        };
        let core_count = random.within(1, 4) as usize;
        let shard_count = random.within(1, 3) as usize;
        let mut world = World {
            mutation,
            now: Now { time: Time(0), wall: Timestamp(1_000 * MS) },
            step: 0,
            owner: Shards::new(limits),
            effects: Effects::default(),
            to_owner: (0..core_count).map(|_| VecDeque::new()).collect(),
            links: (0..core_count).map(|_| Link::default()).collect(),
            ring_max: random.within(1, 4) as usize,
            cores: (0..core_count)
                .map(|_| Core {
                    fan_out: FanOut::new(limits),
                    pool: BatchPool::new(4 << 10),
                    ready: VecDeque::new(),
                    newest: BTreeMap::new(),
                })
                .collect(),
            shards: Vec::new(),
            producers: (0..4)
                .map(|_| Producer { epoch: 0, sent: (0..shard_count).map(|_| Vec::new()).collect() })
                .collect(),
            clients: BTreeMap::new(),
            held: Vec::new(),
            expected: VecDeque::new(),
            transcript: seed,
            seen: [0; 5],
            progress_offsets: limits.progress_offsets,
            random,
        };
        for index in 0..shard_count {
            let config = ShardConfig {
                shard: ShardId(index as u64 + 1),
                stream: StreamId(7),
                index: ShardIndex(index as u32),
                lineage: Lineage(1),
                epoch: Epoch(1),
                durability: Durability::Ephemeral,
                made: false,
                sync_interval_ms: 0,
                sealed_for: None,
                compact: false,
                tombstone_grace_ns: 0,
                retention_bytes: world.random.within(300, 6_000),
                retention_age_ns: world.random.chance(40).then(|| world.random.within(5, 200) * MS),
            };
            world.shards.push(Shard { id: config.shard, config, exists: true, logs: vec![Log::default()] });
            world.owner_event(Event::ShardPut(config));
        }
        world
    }

    /// Whether the seeded bug strikes here.
    fn strikes(&mut self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation) && self.random.chance(40)
    }

    fn note(&mut self, words: &[u64]) {
        for word in words {
            self.transcript = (self.transcript ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
    }

    /// A random life, then the end of it.
    pub fn run(&mut self, steps: u64) {
        while self.step < steps {
            self.step += 1;
            match self.random.below(100) {
                0..30 => self.publish(),
                30..38 => self.subscribe(),
                38..42 => self.unsubscribe_one(),
                42..48 => self.grant_one(),
                48..56 => self.pass_time(),
                56..60 => self.owner_event(Event::Ticked),
                60..61 => self.metadata(),
                61..63 => self.report(),
                63..66 => self.let_go(),
                66..80 => self.owner_turn(),
                _ => {
                    let core = self.random.below(self.cores.len());
                    self.core_turn(core);
                }
            }
        }
        self.settle();
        self.leave();
    }

    // ---- what users do

    fn records(&mut self) -> Vec<Record> {
        let count = self.random.within(1, 5);
        (0..count)
            .map(|_| {
                let key = *self.random.pick(&KEYS);
                let bytes = self.random.below(60);
                let value = (0..bytes).map(|_| self.random.number() as u8).collect();
                let ttl_ms = self.random.chance(15).then(|| self.random.within(1, 60));
                Record { key, value, ttl_ms }
            })
            .collect()
    }

    fn publish(&mut self) {
        let (shard, core) = (self.random.below(self.shards.len()), self.random.below(self.cores.len()));
        let who = self.random.below(self.producers.len() + 1);
        let mut publish = None;
        if let Some(producer) = self.producers.get(who)
            && self.random.chance(35)
            && !producer.sent[shard].is_empty()
        {
            let sent = &producer.sent[shard];
            let back = self.random.below(sent.len().min(4));
            publish = Some(sent[sent.len() - 1 - back].clone());
        }
        let mut publish = publish.unwrap_or_else(|| {
            let records = self.records();
            let mut stamp = ProducerStamp::default();
            if let Some(producer) = self.producers.get_mut(who) {
                if self.random.chance(3) {
                    producer.epoch += 1;
                    producer.sent.iter_mut().for_each(Vec::clear);
                }
                let next = producer.sent[shard].last().map_or(0, |last| last.base.0 + last.records.len() as u64);
                let skip = u64::from(self.random.chance(2));
                stamp = ProducerStamp {
                    producer: ProducerId(who as u64 + 1),
                    epoch: ProducerEpoch(producer.epoch),
                    base_sequence: Sequence(next + skip),
                };
            }
            let publish = body(stamp, records);
            if let Some(producer) = self.producers.get_mut(who)
                && producer.sent[shard].last().map_or(0, |last| last.base.0 + last.records.len() as u64)
                    == publish.base.0
            {
                producer.sent[shard].push(publish.clone());
            }
            publish
        });
        let honest = publish.clone();
        if self.strikes(Mutation::RetryAnonymously) {
            publish = body(ProducerStamp::default(), publish.records);
        }
        let pool = if core == 0 { &mut self.owner.pool } else { &mut self.cores[core].pool };
        let batch = CheckedBatch::check(pool, &publish.body, 1 << 20, None).expect("a good body");
        self.to_owner[core].push_back(ToOwner::Publish(shard, batch, honest));
    }

    fn subscribe(&mut self) {
        if self.clients.len() >= 24 {
            return;
        }
        let (core, shard) = (self.random.below(self.cores.len()), self.random.below(self.shards.len()));
        let log_end = self.shards[shard].logs.last().map_or(0, |log| log.end().0);
        let start = match self.random.below(5) {
            0 => Start::Earliest,
            1 => Start::Latest,
            2 => Start::Time(Timestamp(self.now.wall.0.saturating_sub(self.random.within(0, 100) * MS))),
            _ => Start::Position(Position {
                lineage: Lineage(self.random.within(0, u64::from(self.shards[shard].config.lineage.0) + 1) as u32),
                offset: Offset(self.random.within(0, log_end + 3)),
            }),
        };
        let filter = match *self.random.pick(&FILTERS) {
            "" => None,
            text => Some(Pattern::parse(text).expect("a good filter")),
        };
        let policy = *self.random.pick(&[SlowPolicy::Block, SlowPolicy::DropOldest, SlowPolicy::Disconnect]);
        let credit = self.random.chance(40).then(|| self.random.within(0, 1_500));
        let spec = SubSpec {
            conn: ConnKey(1),
            id: SubscriptionId(self.step as u32),
            shard: self.shards[shard].id,
            start,
            filter: filter.clone(),
            policy,
            mode: DeliveryMode::Shared,
            credit_bytes: credit,
        };
        let key = self.cores[core].fan_out.subscribe(&spec);
        self.cores[core].newest.insert(key.slot, key);
        let client = Client {
            core,
            shard,
            start,
            filter,
            policy,
            credit,
            sent: 0,
            live: None,
            told: Offset(0),
            number: 0,
            expected: None,
            stuck_until: if self.random.chance(20) { self.step + self.random.within(1, 120) } else { 0 },
        };
        assert!(self.clients.insert((core, key), client).is_none(), "a key is given out once");
        self.core_checks(core);
    }

    fn any_client(&mut self) -> Option<(usize, SubKey)> {
        let at = self.random.below(self.clients.len().max(1));
        self.clients.keys().nth(at).copied()
    }

    fn unsubscribe_one(&mut self) {
        if let Some(of) = self.any_client() {
            self.unsubscribe(of);
        }
    }

    fn unsubscribe(&mut self, (core, key): (usize, SubKey)) {
        let gone = self.cores[core].fan_out.unsubscribe(key);
        assert!(gone.is_some(), "a client that lives is known");
        assert!(self.cores[core].fan_out.unsubscribe(key).is_none(), "and ends once");
        self.clients.remove(&(core, key));
        self.core_checks(core);
    }

    fn grant_one(&mut self) {
        let Some((core, key)) = self.any_client() else { return };
        let more = self.random.within(1, 2_000);
        let client = &self.clients[&(core, key)];
        let sent = client.sent;
        if let Some(credit) = client.credit {
            self.grant(core, key, credit.max(sent) + more);
        }
    }

    fn grant(&mut self, core: usize, key: SubKey, total: u64) {
        let client = self.clients.get_mut(&(core, key)).expect("it lives");
        client.credit = Some(total);
        if !self.strikes(Mutation::DropCredit) {
            self.cores[core].fan_out.on_credit(key, total);
        }
        self.core_checks(core);
    }

    fn pass_time(&mut self) {
        let span = self.random.within(1, 15) * MS;
        self.now = Now { time: self.now.time.after_ns(span), wall: self.now.wall.saturating_add_ns(span) };
        let core = self.random.below(self.cores.len());
        for shard in 0..self.shards.len() {
            if let Some(age) = self.shards[shard].config.retention_age_ns {
                self.cores[core].fan_out.expire(self.shards[shard].id, self.now.wall.saturating_sub_ns(age));
            }
        }
        self.core_checks(core);
    }

    fn metadata(&mut self) {
        let at = self.random.below(self.shards.len());
        let shard = &mut self.shards[at];
        let (id, change) = (shard.id, self.random.below(3));
        if change == 0 && shard.exists {
            shard.exists = false;
            return self.owner_event(Event::ShardRemoved { shard: id });
        }
        if change == 1 || !shard.exists {
            // A new incarnation, also over one that lives.
            shard.exists = true;
            shard.config.lineage.0 += 1;
            shard.logs.push(Log::default());
        } else {
            shard.config.retention_bytes = self.random.within(300, 6_000);
        }
        shard.config.epoch.0 += 1;
        let config = shard.config;
        self.owner_event(Event::ShardPut(config));
    }

    fn report(&mut self) {
        self.owner.take_touched(|_| {});
        for core in 0..self.cores.len() {
            let mut told = BTreeSet::new();
            self.cores[core].fan_out.take_touched(|shard, _| assert!(told.insert(shard), "reported once"));
            self.core_checks(core);
        }
    }

    fn let_go(&mut self) {
        let keep = self.random.below(self.held.len() + 1);
        while self.held.len() > keep {
            let at = self.random.below(self.held.len());
            self.held.swap_remove(at);
        }
    }

    // ---- the owner

    fn owner_event(&mut self, event: Event) {
        let mut effects = std::mem::take(&mut self.effects);
        self.owner.handle(self.now, event, &mut effects);
        self.effects = effects;
        self.owner_checks();
    }

    fn owner_checks(&self) {
        invariants::check(&self.owner, &self.cores[0].fan_out);
    }

    fn core_checks(&self, core: usize) {
        invariants::check(&self.owner, &self.cores[core].fan_out);
    }

    fn shard_at(&self, id: ShardId) -> usize {
        id.0 as usize - 1
    }

    fn log_start(&self, shard: usize) -> Option<Offset> {
        self.owner.get(self.shards[shard].id).map(|it| it.log_start())
    }

    fn owner_turn(&mut self) {
        for core in 0..self.cores.len() {
            for _ in 0..self.random.below(5) {
                let Some(message) = self.to_owner[core].pop_front() else { break };
                self.owner_message(core, message);
            }
            let link = &mut self.links[core];
            while link.ring.len() < self.ring_max
                && let Some(message) = link.outbox.pop_front()
            {
                link.ring.push_back(message);
            }
            let has_room = link.ring.len() < self.ring_max;
            if has_room
                && self.owner.stalled_cores().any(|it| it.0 as usize == core)
                && self.mutation != Some(Mutation::SkipMeshHasRoom)
            {
                self.owner_event(Event::MeshHasRoom { core: CoreId(core as u8) });
            }
        }
        self.execute();
    }

    fn owner_message(&mut self, core: usize, message: ToOwner) {
        let owner_core = CoreId(core as u8);
        match message {
            ToOwner::Publish(shard, batch, publish) => {
                let expected = match self.shards[shard].exists {
                    true => self.shards[shard].logs.last().expect("it has one").judge(&publish),
                    false => Expected::Refused(ErrorCode::StreamGone),
                };
                self.expected.push_back((expected, shard, publish.clone()));
                let before = self.owner.get(self.shards[shard].id).map(|it| it.high_watermark());
                let channel = ChannelKey { core: owner_core, conn: ConnKey(9), stream: shard as u64 };
                self.owner_event(Event::Published { shard: self.shards[shard].id, channel, batch });
                // The model goes along with what memory allowed; the effect is compared when it is executed.
                let after = self.owner.get(self.shards[shard].id).map(|it| it.high_watermark());
                if matches!(expected, Expected::New(_)) && before != after {
                    let wall = self.now.wall.0;
                    self.shards[shard].logs.last_mut().expect("it has one").append(&publish, wall);
                }
            }
            ToOwner::Request(Request::Attach { shard, sub, start }) => {
                let at = self.shard_at(shard);
                let lineage = self.shards[at].config.lineage;
                let expected = match self.log_start(at) {
                    Some(log_start) => {
                        let log = self.shards[at].logs.last().expect("it has one");
                        let asked = self.clients.get(&(core, sub)).map_or(start, |client| client.start);
                        log.resolve(asked, lineage, log_start).map(|start| (lineage, start))
                    }
                    None => Err((ErrorCode::StreamGone, Offset(0))),
                };
                if let Some(client) = self.clients.get_mut(&(core, sub)) {
                    client.expected = Some(expected);
                }
                let mut start = start;
                if let Start::Position(at) = &mut start
                    && self.strikes(Mutation::IgnoreLineage)
                {
                    at.lineage = Lineage(0);
                }
                self.owner_event(Event::Attached { shard, core: owner_core, sub, start });
            }
            ToOwner::Request(Request::Detach { shard }) => {
                if !self.strikes(Mutation::DropDetach) {
                    self.owner_event(Event::Detached { shard, core: owner_core });
                }
            }
            ToOwner::Request(Request::Fetch { shard, sub, from }) => {
                self.owner_event(Event::Fetched { shard, core: owner_core, sub, from });
            }
        }
    }

    /// Executes the effects of a turn as the broker does.
    fn execute(&mut self) {
        let mut refused = BTreeSet::new();
        let effects: Vec<Effect> = self.effects.drain().collect();
        for effect in effects {
            match effect {
                Effect::Ack { ack, .. } => {
                    let (expected, _, publish) = self.expected.pop_front().expect("one answer per publish");
                    let found = ack.base_offset;
                    assert!(
                        expected == Expected::New(found) || expected == Expected::Duplicate(found),
                        "acked at {found}, but {expected:?}"
                    );
                    assert_eq!((ack.base_sequence, ack.record_count), (publish.base, publish.records.len() as u32));
                    self.note(&[1, found.0]);
                }
                Effect::Refuse { code, .. } => {
                    let (expected, ..) = self.expected.pop_front().expect("one answer per publish");
                    let short = code == ErrorCode::Overloaded && matches!(expected, Expected::New(_));
                    assert!(short || expected == Expected::Refused(code), "refused with {code}, but {expected:?}");
                    self.note(&[2, u64::from(code.number())]);
                }
                Effect::OpenChannel { .. } => unreachable!("nobody opens a channel here"),
                Effect::Commit { core, shard, batch } => {
                    let at = core.0 as usize;
                    let link = &self.links[at];
                    let full = at != 0 && (link.ring.len() >= self.ring_max || !link.outbox.is_empty());
                    if refused.contains(&(core, shard)) || full {
                        if !self.strikes(Mutation::SkipCommitRefused) {
                            self.owner.commit_refused(core, shard, batch.range().from);
                            refused.insert((core, shard));
                            self.owner_checks();
                        }
                    } else if !self.strikes(Mutation::DropCommit) {
                        self.send(at, ToCore::Commit(shard, batch));
                    }
                }
                Effect::Attach { core, sub, mut result, .. } => {
                    if let Ok(state) = &mut result
                        && self.strikes(Mutation::WrongStart)
                    {
                        state.start.0 += 1;
                    }
                    self.send(core.0 as usize, ToCore::Attach(sub, result));
                }
                Effect::Fetch { core, sub, batches, high_watermark, .. } => {
                    if !self.strikes(Mutation::DropFetch) {
                        self.send(core.0 as usize, ToCore::Fetch(sub, batches, high_watermark));
                    }
                }
                Effect::Gone { core, shard } => {
                    if !self.strikes(Mutation::DropGone) {
                        self.send(core.0 as usize, ToCore::Gone(shard));
                    }
                }
            }
        }
    }

    fn send(&mut self, core: usize, message: ToCore) {
        if core == 0 {
            return self.core_message(0, message);
        }
        let link = &mut self.links[core];
        if link.outbox.is_empty() && link.ring.len() < self.ring_max {
            link.ring.push_back(message);
        } else {
            link.outbox.push_back(message);
        }
    }

    // ---- the other cores

    fn core_turn(&mut self, core: usize) {
        if self.links[core].ring.len() > 1 && self.strikes(Mutation::Reorder) {
            self.links[core].ring.swap(0, 1);
        }
        for _ in 0..self.random.below(4) {
            let Some(message) = self.links[core].ring.pop_front() else { break };
            self.core_message(core, message);
        }
        for _ in 0..self.random.below(12) {
            if let Some(key) = self.cores[core].fan_out.take_scheduled()
                && !self.strikes(Mutation::LoseWakeUp)
            {
                assert!(!self.cores[core].ready.contains(&key), "on one list only");
                self.cores[core].ready.push_back(key);
            }
            if let Some(key) = self.cores[core].ready.pop_front() {
                self.serve(core, key);
            }
        }
        while let Some(request) = self.cores[core].fan_out.take_request() {
            self.to_owner[core].push_back(ToOwner::Request(request));
        }
    }

    fn core_message(&mut self, core: usize, message: ToCore) {
        match message {
            ToCore::Commit(shard, batch) => {
                let from = batch.range().from;
                let lineage = batch.header().lineage;
                let jumps = self.cores[core].fan_out.counters.jumps;
                self.cores[core].fan_out.on_commit(shard, batch);
                let at = self.shard_at(shard);
                if self.cores[core].fan_out.counters.jumps > jumps && self.shards[at].config.lineage == lineage {
                    self.seen[3] += 1;
                    let start = self.log_start(at);
                    assert!(start.is_none_or(|start| from <= start), "a commit is missing and the log has it");
                }
            }
            ToCore::Attach(key, result) => {
                let key = self.addressee(core, key);
                let told = self.cores[core].fan_out.on_attach(key, result);
                if let Some(result) = told {
                    let client = self.clients.get_mut(&(core, key)).expect("it lives");
                    let found = result.map(|it| (it.lineage, it.start)).map_err(|it| (it.code, it.next));
                    assert_eq!(Some(found), client.expected, "the start");
                    match found {
                        Ok((lineage, start)) => {
                            client.live = Some(lineage);
                            client.told = start;
                            self.note(&[3, start.0]);
                        }
                        Err(_) => self.unsubscribe((core, key)),
                    }
                }
            }
            ToCore::Fetch(key, batches, high_watermark) => {
                let key = self.addressee(core, key);
                self.seen[2] += 1;
                self.cores[core].fan_out.on_fetch(key, batches, high_watermark);
            }
            ToCore::Gone(shard) => {
                let clients = &mut self.clients;
                self.cores[core].fan_out.on_gone(shard, |key, _| {
                    assert!(clients.remove(&(core, key)).is_some(), "only who lives can end");
                });
            }
        }
        self.core_checks(core);
    }

    fn addressee(&mut self, core: usize, key: SubKey) -> SubKey {
        match self.mutation {
            Some(Mutation::IgnoreGeneration) => self.cores[core].newest[&key.slot],
            _ => key,
        }
    }

    /// A session asks what its subscriber gets, for a while.
    fn serve(&mut self, core: usize, key: SubKey) {
        for _ in 0..self.random.within(1, 4) {
            if self.clients.get(&(core, key)).is_some_and(|client| client.stuck_until > self.step) {
                return self.cores[core].ready.push_back(key);
            }
            let stopped = self.mutation == Some(Mutation::StoppedClock);
            let now = if stopped { Now::default() } else { self.now };
            let mut frame_bytes = DELIVER_PREFIX_BYTES;
            let (number, covered, told) = match self.cores[core].fan_out.next(now, key) {
                Next::Wait => return self.core_checks(core),
                Next::Closed(code) => {
                    assert_eq!(code, ErrorCode::SlowConsumer);
                    self.seen[4] += 1;
                    self.closed_rightly(core, key);
                    return self.unsubscribe((core, key));
                }
                Next::Gap { number, covered } => (number, covered, Told::Gap),
                Next::Progress { number, covered } => (number, covered, Told::Progress),
                Next::Batch { number, covered, batch } => {
                    frame_bytes += batch.bytes().len();
                    if self.random.chance(20) {
                        self.held.push(batch.clone());
                    }
                    let client = &self.clients[&(core, key)];
                    let told = read(batch, self.shards[client.shard].id, client.live, covered);
                    (number, covered, told)
                }
            };
            self.deliver(core, key, number, covered, &told, frame_bytes);
            if self.strikes(Mutation::DeliverTwice) {
                self.deliver(core, key, number, covered, &told, frame_bytes);
            }
            self.core_checks(core);
        }
        self.cores[core].ready.push_back(key);
    }

    fn deliver(
        &mut self,
        core: usize,
        key: SubKey,
        number: u64,
        covered: OffsetRange,
        told: &Told,
        frame_bytes: usize,
    ) {
        if matches!(told, Told::Gap) {
            self.seen[1] += 1;
            if self.strikes(Mutation::ForgetGap) {
                return;
            }
        }
        self.seen[0] += 1;
        let client = self.clients.get_mut(&(core, key)).expect("only who lives is told");
        let shard = &self.shards[client.shard];
        let lineage = client.live.expect("nothing before its start");
        let current = shard.config.lineage == lineage && shard.exists;
        let log_start = self.owner.get(shard.id).map(|it| it.log_start()).filter(|_| current);
        client.check(number, covered, told, &shard.logs[lineage.0 as usize - 1], log_start, self.now.wall.0);
        client.sent += frame_bytes as u64;
        self.note(&[4, core as u64, number, covered.from.0, covered.to.0, frame_bytes as u64]);
        if !self.strikes(Mutation::SkipCharge) {
            self.cores[core].fan_out.charge(key, frame_bytes);
        }
    }

    /// Policy disconnect may strike only a subscriber that missed something.
    fn closed_rightly(&self, core: usize, key: SubKey) {
        let client = &self.clients[&(core, key)];
        assert_eq!(client.policy, SlowPolicy::Disconnect);
        let shard = &self.shards[client.shard];
        let lineage = client.live.expect("nothing before its start");
        if shard.exists && shard.config.lineage == lineage {
            let log = shard.logs.last().expect("it has one");
            let lost = self.log_start(client.shard).is_none_or(|start| client.told < start);
            // Per batch, as for gaps.
            let first = log.batches.iter().rev().find(|(base, _)| *base <= client.told.0).map_or(0, |(base, _)| *base);
            let missed = log.records[first as usize..].iter().any(|it| matches(&client.filter, it.record.key));
            assert!(lost || missed, "closed as too slow, but it missed nothing");
        }
    }

    // ---- the end

    /// Everybody may read without end, and everything under way arrives.
    fn settle(&mut self) {
        self.let_go_all();
        for (core, key) in self.clients.keys().copied().collect::<Vec<_>>() {
            let client = self.clients.get_mut(&(core, key)).expect("it lives");
            client.stuck_until = 0;
            if client.credit.is_some() {
                self.grant(core, key, u64::MAX);
            }
        }
        self.quiesce();
        // A core that was stalled while age emptied the log learns of the hole with the next commit.
        for shard in 0..self.shards.len() {
            if self.shards[shard].exists {
                let publish = body(ProducerStamp::default(), vec![Record { key: None, value: vec![1], ttl_ms: None }]);
                let batch = CheckedBatch::check(&mut self.owner.pool, &publish.body, 1 << 20, None).expect("good");
                self.to_owner[0].push_back(ToOwner::Publish(shard, batch, publish));
            }
        }
        self.quiesce();
        for client in self.clients.values() {
            let shard = &self.shards[client.shard];
            let lineage = client.live.expect("every subscriber got an answer");
            assert!(shard.exists && shard.config.lineage == lineage, "it reads data that is no more");
            let log = shard.logs.last().expect("it has one");
            let left = OffsetRange { from: client.told, to: log.end() };
            let wanted = log.wanted(left, &client.filter, self.now.wall.0);
            assert_eq!(wanted, [0u64; 0], "not delivered, and nobody will (core {})", client.core);
            assert!(left.count() < 2 * self.progress_offsets, "its progress was not told");
        }
        assert!(self.expected.is_empty(), "every publish was answered");
    }

    fn let_go_all(&mut self) {
        self.held.clear();
    }

    fn quiesce(&mut self) {
        for _ in 0..2_000 {
            self.owner_turn();
            for core in 0..self.cores.len() {
                self.core_turn(core);
            }
            self.held.clear();
            let quiet = self.to_owner.iter().all(VecDeque::is_empty)
                && self.links.iter().all(|it| it.outbox.is_empty() && it.ring.is_empty())
                && self.effects.is_empty()
                && self.owner.stalled_cores().next().is_none();
            // A core may still have scheduled subscribers that it has not looked at: asked for some rounds more.
            self.step += u64::from(quiet);
            if quiet && self.random.chance(4) && self.drained() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// Nobody is scheduled any more.
    fn drained(&mut self) -> bool {
        for core in &mut self.cores {
            if let Some(key) = core.fan_out.take_scheduled() {
                core.ready.push_back(key);
            }
        }
        self.cores.iter().all(|core| core.ready.is_empty())
    }

    /// All subscribers leave: nothing of them may stay behind.
    fn leave(&mut self) {
        for core in 0..self.cores.len() {
            let with_tail: BTreeSet<usize> =
                self.clients.values().filter(|client| client.core == core).map(|client| client.shard).collect();
            for shard in 0..self.shards.len() {
                let attached = self.owner.get(self.shards[shard].id);
                let attached = attached.is_some_and(|it| it.attached().any(|it| it.0 as usize == core));
                assert_eq!(attached, with_tail.contains(&shard), "commits go where subscribers are");
            }
        }
        for of in self.clients.keys().copied().collect::<Vec<_>>() {
            self.unsubscribe(of);
        }
        self.quiesce();
        self.report();
        for core in &self.cores {
            assert_eq!(core.fan_out.count(), 0);
        }
        for _ in 0..5_000 {
            let held: usize = self.shards.iter().filter_map(|it| self.owner.get(it.id)).map(|it| it.held_bytes()).sum();
            if held == 0 {
                return;
            }
            self.now.wall.0 += 1;
            self.owner_event(Event::Ticked);
        }
        panic!("memory stays held though nobody reads");
    }
}

fn body(stamp: ProducerStamp, records: Vec<Record>) -> Publish {
    let mut builder = BatchBuilder::new();
    for record in &records {
        builder
            .push(&RecordToPublish {
                key: record.key.map(str::as_bytes),
                value: &record.value,
                ttl_ms: record.ttl_ms,
                ..Default::default()
            })
            .expect("a good record");
    }
    let mut body = Vec::new();
    builder.finish(stamp, &mut body);
    Publish { producer: stamp.producer, epoch: stamp.epoch, base: stamp.base_sequence, records, body }
}

/// Reads a delivered batch as a client does.
fn read(batch: &SharedBatch, shard: ShardId, lineage: Option<Lineage>, covered: OffsetRange) -> Told {
    let view = BatchView::parse(batch.bytes()).expect("a good batch");
    view.check().expect("good sums");
    assert_eq!((view.header.shard, Some(view.header.lineage)), (shard, lineage));
    assert_eq!(view.header.range().to, covered.to, "a delivery ends where its batch does");
    assert_eq!(batch.range(), view.header.range());
    let base = view.header.base_offset.0;
    let records: Vec<_> = view
        .body
        .records(view.body.values)
        .map(|record| record.expect("a good record"))
        .map(|it| (base + u64::from(it.offset_delta), it.key.map(<[u8]>::to_vec), it.value.to_vec()))
        .collect();
    assert_eq!(records.len(), batch.record_count() as usize);
    Told::Batch(records)
}
