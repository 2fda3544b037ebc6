//! **What**: the shards of one core and the dispatch of events to them.
//!
//! **Invariants**: after every event the positions of the shard it touched are in order (`invariants.rs`).
//! An idle shard has no timer: only shards that age or wait for memory are on the tick list.
//!
//! **Never**: a loop over all shards on an event.
//!
//! **See**: `event.rs`, `effect.rs`, `shard.rs`.

use crate::batch_pool::BatchPool;
use crate::effect::{AttachRefused, Effect, Effects};
use crate::event::Event;
use crate::limits::Limits;
use crate::shard::Shard;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::ids::{CoreId, ShardId};
use felix_protocol::position::{Lineage, Offset};
use felix_protocol::time::Now;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Shards whose tick one turn handles.
const TICKS_PER_TURN: usize = 256;

/// The shards that one core leads.
#[derive(Debug)]
pub struct Shards {
    shards: HashMap<ShardId, Shard>,
    /// Buffers of this core.
    pub pool: BatchPool,
    limits: Limits,
    /// Shards with a core whose mesh ring was full.
    stalled: BTreeMap<CoreId, VecDeque<ShardId>>,
    ticking: VecDeque<ShardId>,
    touched: Vec<ShardId>,
}

impl Shards {
    /// No shards yet.
    pub fn new(limits: Limits) -> Shards {
        Shards {
            shards: HashMap::new(),
            pool: BatchPool::new(limits.pool_bytes_max),
            limits,
            stalled: BTreeMap::new(),
            ticking: VecDeque::new(),
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
        match event {
            Event::ShardPut(config) => {
                match self.shards.get_mut(&config.shard) {
                    Some(shard) => shard.on_config(config),
                    None => {
                        self.shards.insert(config.shard, Shard::new(config));
                    }
                }
                self.after(config.shard);
            }
            Event::ShardRemoved { shard } => {
                if let Some(mut removed) = self.shards.remove(&shard) {
                    removed.on_removed(&mut self.pool, effects);
                }
            }
            Event::ChannelOpened { shard, channel, producer, producer_epoch } => match self.shards.get(&shard) {
                Some(it) => it.on_channel_opened(channel, producer, producer_epoch, effects),
                None => effects.push(Effect::OpenChannel { channel, result: Err(ErrorCode::StreamGone) }),
            },
            Event::Published { shard, channel, batch } => match self.shards.get_mut(&shard) {
                Some(it) => {
                    it.on_published(now, channel, batch, &mut self.pool, &self.limits, effects);
                    self.after(shard);
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
            Event::Attached { shard, core, sub, start } => match self.shards.get_mut(&shard) {
                Some(it) => it.on_attached(core, sub, start, effects),
                None => effects.push(Effect::Attach {
                    core,
                    shard,
                    sub,
                    result: Err(AttachRefused {
                        code: ErrorCode::StreamGone,
                        lineage: Lineage(0),
                        next: Offset(0),
                    }),
                }),
            },
            Event::Detached { shard, core } => {
                if let Some(it) = self.shards.get_mut(&shard) {
                    it.on_detached(core);
                }
            }
            Event::Fetched { shard, core, sub, from } => match self.shards.get(&shard) {
                Some(it) => it.on_fetched(core, sub, from, &self.limits, effects),
                None => effects.push(Effect::Gone { core, shard }),
            },
            Event::MeshHasRoom { core } => self.on_mesh_has_room(core, effects),
            Event::Ticked => self.on_ticked(now),
        }
    }

    /// A `Commit` effect could not be sent: the mesh to its core is full.
    pub fn commit_refused(&mut self, core: CoreId, shard: ShardId, offset: Offset) {
        if let Some(it) = self.shards.get_mut(&shard) {
            it.on_commit_refused(core, offset);
            let waiting = self.stalled.entry(core).or_default();
            if !waiting.contains(&shard) {
                waiting.push_back(shard);
            }
        }
    }

    /// Cores that wait for room in the mesh.
    pub fn stalled_cores(&self) -> impl Iterator<Item = CoreId> + '_ {
        self.stalled.iter().filter(|(_, waiting)| !waiting.is_empty()).map(|(core, _)| *core)
    }

    fn on_mesh_has_room(&mut self, core: CoreId, effects: &mut Effects) {
        let Some(waiting) = self.stalled.get_mut(&core) else { return };
        if let Some(shard) = waiting.pop_front()
            && let Some(it) = self.shards.get_mut(&shard)
            && it.on_mesh_has_room(core, effects)
        {
            waiting.push_back(shard);
        }
    }

    fn on_ticked(&mut self, now: Now) {
        for _ in 0..self.ticking.len().min(TICKS_PER_TURN) {
            let Some(id) = self.ticking.pop_front() else { break };
            let Some(shard) = self.shards.get_mut(&id) else { continue };
            shard.on_tick_list = false;
            shard.retain(now, &mut self.pool);
            self.after(id);
        }
    }

    fn after(&mut self, id: ShardId) {
        let Some(shard) = self.shards.get_mut(&id) else { return };
        if !shard.on_tick_list && shard.needs_ticks() {
            shard.on_tick_list = true;
            self.ticking.push_back(id);
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
        for shard in self.shards.values() {
            shard.check();
        }
    }
}
