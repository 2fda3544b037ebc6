//! **What**: the shards of one core and the dispatch of events to them.
//!
//! **Invariants**: after every event the positions of the shard it touched are in order (`invariants.rs`).
//! An idle shard has no timer: only shards that age or wait for memory are on the tick list, and a tick looks only at
//! those that are due.
//!
//! **Never**: a loop over all shards on an event.
//!
//! **See**: `event.rs`, `effect.rs`, `shard.rs`.

use crate::batch_pool::BatchPool;
use crate::by_id::ById;
use crate::durable::history_wish;
use crate::effect::{AttachRefused, Effect, Effects};
use crate::event::Event;
use crate::limits::Limits;
use crate::shard::Shard;
use crate::store::Store;
use crate::store::history::{Wanted, Wish};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::Start;
use felix_protocol::ids::{CoreId, ShardId};
use felix_protocol::limits::CORES_MAX;
use felix_protocol::metadata::Durability;
use felix_protocol::position::{Lineage, Offset};
use felix_protocol::time::{Now, Timestamp};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};

/// Shards whose tick one turn handles.
const TICKS_PER_TURN: usize = 256;

/// The shards that one core leads.
#[derive(Debug)]
pub struct Shards {
    pub(crate) shards: HashMap<ShardId, Shard, ById>,
    /// Buffers of this core.
    pub pool: BatchPool,
    pub(crate) limits: Limits,
    /// What is on disk; None: this core takes ephemeral shards only.
    pub(crate) store: Option<Box<Store>>,
    /// Some durable shard forgets by age.
    pub(crate) has_aging: bool,
    /// Shards with a core whose mesh ring was full.
    stalled: BTreeMap<CoreId, VecDeque<ShardId>>,
    /// Shards by when time may change them next. An entry counts if it is the shard's `tick_at`; others are outdated.
    ticking: BinaryHeap<Reverse<(Timestamp, ShardId)>>,
    /// Shards of the tick under way.
    ticked: Vec<ShardId>,
    touched: Vec<ShardId>,
}

impl Shards {
    /// No shards yet.
    pub fn new(limits: Limits) -> Shards {
        Shards {
            shards: HashMap::default(),
            pool: BatchPool::new(limits.pool_bytes_max),
            limits,
            store: None,
            has_aging: false,
            stalled: BTreeMap::new(),
            ticking: BinaryHeap::new(),
            ticked: Vec::new(),
            touched: Vec::new(),
        }
    }

    /// One of them.
    pub fn get(&self, shard: ShardId) -> Option<&Shard> {
        self.shards.get(&shard)
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.shards.len()
    }

    /// One event in, effects out.
    pub fn handle(&mut self, now: Now, event: Event, effects: &mut Effects) {
        let Some(event) = self.keep_for_opening(event, effects) else { return };
        match event {
            Event::ShardPut(config) => {
                // Another lineage is other data: its readers are told, nothing of the former is shown under it.
                let lineage = self.shards.get(&config.shard).map(|it| it.config.lineage);
                if lineage.is_some_and(|it| it != config.lineage) {
                    self.remove(config.shard, effects);
                }
                self.has_aging |= config.durability != Durability::Ephemeral && config.retention_age_ns.is_some();
                match self.shards.get_mut(&config.shard) {
                    Some(shard) => {
                        shard.on_config(config);
                        // It may keep less now, and nothing else may ever come to make it look.
                        if let Some(store) = self.store.as_deref_mut() {
                            store.want_retention(shard);
                        }
                    }
                    None if config.durability != Durability::Ephemeral && self.store.is_some() => {
                        return self.put_durable(config);
                    }
                    None => {
                        self.shards.insert(config.shard, Shard::new(config));
                    }
                }
                self.after(now, config.shard);
            }
            Event::ShardRemoved { shard } => self.remove(shard, effects),
            Event::ChannelOpened { shard, channel, producer, producer_epoch } => match self.shards.get(&shard) {
                Some(it) => it.on_channel_opened(channel, producer, producer_epoch, effects),
                None => effects.push(Effect::OpenChannel { channel, result: Err(ErrorCode::StreamGone) }),
            },
            Event::Published { shard, channel, batch } => match self.shards.get_mut(&shard) {
                Some(it) => {
                    let store = self.store.as_deref_mut();
                    it.on_published(now, channel, batch, store, &mut self.pool, &self.limits, effects);
                    self.after(now, shard);
                }
                None => {
                    let facts = *batch.facts();
                    self.pool.put_back(batch);
                    effects.push(Effect::Refuse {
                        channel,
                        base_sequence: facts.base_sequence,
                        record_count: facts.record_count,
                        code: ErrorCode::StreamGone,
                    });
                }
            },
            Event::Attached { shard, core, sub, start: Start::Time(time) }
                if self.shards.get(&shard).is_some_and(|it| history_wish(it, Wish::Start(time))) =>
            {
                self.want_history(now, Wanted { shard, core, sub, wish: Wish::Start(time) }, effects);
            }
            Event::Attached { shard, core, sub, start } => match self.shards.get_mut(&shard) {
                Some(it) => it.on_attached(core, sub, start, effects),
                None => effects.push(Effect::Attach {
                    core,
                    shard,
                    sub,
                    result: Err(AttachRefused { code: ErrorCode::StreamGone, lineage: Lineage(0), next: Offset(0) }),
                }),
            },
            Event::Detached { shard, core } => {
                if let Some(it) = self.shards.get_mut(&shard) {
                    it.on_detached(core);
                }
            }
            Event::Fetched { shard, core, sub, from } => {
                // Who reads was attached, so if the shard is gone, `Gone` is on its way. A second one could end
                // subscribers of the shard's next incarnation.
                match self.shards.get(&shard) {
                    Some(it) if history_wish(it, Wish::Batches(from)) => {
                        self.want_history(now, Wanted { shard, core, sub, wish: Wish::Batches(from) }, effects);
                    }
                    Some(it) => it.fetch_from_memory(core, sub, from, &self.limits, effects),
                    None => {}
                }
            }
            Event::MeshHasRoom { core } => self.on_mesh_has_room(core, effects),
            Event::Ticked => self.on_ticked(now),
        }
    }

    fn remove(&mut self, id: ShardId, effects: &mut Effects) {
        if self.remove_durable(id) {
            return;
        }
        let Some(mut removed) = self.shards.remove(&id) else { return };
        removed.on_removed(&mut self.pool, effects);
        if let (Some(part), Some(store)) = (removed.part.take(), self.store.as_deref_mut()) {
            store.begin_leaving(id, removed.slot, *part);
        }
        if removed.stalled_for != 0 {
            self.stalled.values_mut().for_each(|waiting| waiting.retain(|it| *it != id));
        }
    }

    /// A `Commit` effect could not be sent: the mesh to its core is full.
    pub fn commit_refused(&mut self, core: CoreId, shard: ShardId, offset: Offset) {
        if let Some(it) = self.shards.get_mut(&shard) {
            it.on_commit_refused(core, offset);
            if it.stalled_for & core_bit(core) == 0 {
                it.stalled_for |= core_bit(core);
                self.stalled.entry(core).or_default().push_back(shard);
            }
        }
    }

    /// Cores that wait for room in the mesh.
    pub fn stalled_cores(&self) -> impl Iterator<Item = CoreId> + '_ {
        self.stalled.iter().filter(|(_, waiting)| !waiting.is_empty()).map(|(core, _)| *core)
    }

    fn on_mesh_has_room(&mut self, core: CoreId, effects: &mut Effects) {
        let Some(waiting) = self.stalled.get_mut(&core) else { return };
        let Some(shard) = waiting.pop_front() else { return };
        let Some(it) = self.shards.get_mut(&shard) else { return };
        if it.on_mesh_has_room(core, effects) {
            waiting.push_back(shard);
        } else {
            it.stalled_for &= !core_bit(core);
        }
    }

    fn on_ticked(&mut self, now: Now) {
        let mut ticked = std::mem::take(&mut self.ticked);
        while ticked.len() < TICKS_PER_TURN
            && let Some(Reverse((due, id))) = self.ticking.peek().copied()
            && due <= now.wall
        {
            self.ticking.pop();
            if let Some(shard) = self.shards.get_mut(&id).filter(|it| it.tick_at == Some(due)) {
                shard.tick_at = None;
                shard.retain(now, &mut self.pool);
                ticked.push(id);
            }
        }
        // Only now, so that what is due again at once waits for the next tick.
        for id in ticked.drain(..) {
            self.after(now, id);
        }
        self.ticked = ticked;
    }

    pub(crate) fn after(&mut self, now: Now, id: ShardId) {
        let Some(shard) = self.shards.get_mut(&id) else { return };
        if let Some(due) = shard.tick_due(now)
            && shard.tick_at.is_none_or(|at| due < at)
        {
            shard.tick_at = Some(due);
            self.ticking.push(Reverse((due, id)));
        }
        if shard.touched && !shard.on_touched_list {
            shard.on_touched_list = true;
            self.touched.push(id);
        }
    }

    /// Some shard ages or waits for memory.
    pub fn needs_ticks(&self) -> bool {
        !self.ticking.is_empty()
    }

    /// When the next `Ticked` has something to do; a time in the past: now.
    pub fn next_tick(&self) -> Option<Timestamp> {
        self.ticking.peek().map(|Reverse((due, _))| *due)
    }

    /// Some shard changed since the last report.
    pub fn has_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// A core waits for room in the mesh.
    pub fn is_stalled(&self, core: CoreId) -> bool {
        self.stalled.get(&core).is_some_and(|waiting| !waiting.is_empty())
    }

    /// Shards that changed since they were last taken, for reports.
    pub fn take_touched(&mut self, mut report: impl FnMut(&Shard)) {
        for id in self.touched.drain(..) {
            if let Some(shard) = self.shards.get_mut(&id) {
                shard.touched = false;
                shard.on_touched_list = false;
                report(shard);
            }
        }
    }

    /// Checks every invariant of every shard; for tests.
    pub fn check(&self) {
        for (id, shard) in &self.shards {
            shard.check();
            for (core, waiting) in &self.stalled {
                let listed = waiting.iter().filter(|it| *it == id).count();
                assert_eq!(listed, usize::from(shard.stalled_for & core_bit(*core) != 0), "stalled once or not at all");
                assert!(listed == 1 || !shard.is_stalled(*core), "a stalled shard waits for room");
            }
        }
    }
}

fn core_bit(core: CoreId) -> u64 {
    assert!(core.0 < CORES_MAX);
    1 << core.0
}

#[cfg(test)]
mod tests;
