//! One run: cores, control member and clients driven from one queue of events; chaos, then healing, then all leave.

use crate::admin::AdminScript;
use crate::client::{Client, Ctx, Phase};
use crate::control::Control;
use crate::cover::Cover;
use crate::faults::{Bug, Faults};
use crate::model::Model;
use crate::plan::{Kind, MS, Plan, US};
use crate::rogue::Rogue;
use crate::side::Side;
use crate::sim::{CoreEv, Ev, Sim};
use crate::subscriber::Sub;
use felix_broker::core::{Core, CoreConfig, Identity};
use felix_control::authorise::{Principal, Roles};
use felix_protocol::ids::{ClusterId, CoreId, NodeId, NodeSession, ShardId};
use std::sync::Arc;

enum Who {
    Client(Box<Client>),
    Rogue(Box<Rogue>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Chaos,
    Heal { until: u64 },
    Leave { until: u64 },
    Done,
}

pub struct World {
    sim: Sim,
    model: Model,
    cores: Vec<Core>,
    control: Control,
    clients: Vec<Who>,
    act: Act,
    /// The client that owed something last.
    owing: usize,
}

/// What came of a run.
pub struct Outcome {
    pub failure: Option<String>,
    pub hash: u64,
    pub cover: Cover,
    pub struck: u32,
}

impl World {
    fn new(plan: Plan, bug: Option<Bug>, traced: bool) -> World {
        let mut model = Model::new(plan.streams.iter().map(|it| it.kind).collect());
        let mut sim = Sim::new(plan, Faults::new(bug), traced);
        let identity =
            Identity { cluster: ClusterId(5), node: NodeId(7), session: NodeSession(1), region: "local".to_string() };
        let cores = (0..sim.plan.cores)
            .map(|at| {
                Core::new(CoreConfig {
                    me: CoreId(at as u8),
                    core_count: sim.plan.cores as u8,
                    identity: identity.clone(),
                    admission: sim.plan.admission,
                    shard_limits: sim.plan.limits,
                    roles: Arc::new(Roles::default()),
                })
            })
            .collect();
        let control = Control::new(&mut sim);
        let mut clients = Vec::new();
        let (count, rogues, big) = (sim.plan.clients, sim.plan.rogues, sim.plan.big);
        let mut ctx = Ctx { sim: &mut sim, model: &mut model };
        for id in 0..count {
            let rng = &mut ctx.sim.rng;
            let (pubs, subs) = match id {
                0 | 1 => (0, 0),
                _ if big => (u64::from(rng.chance(200)), rng.range(0, 2)),
                _ => (rng.range(0, 2), rng.range(0, 3)),
            };
            let mut client = Client::new(&mut ctx, id, pubs, subs);
            if id == 0 {
                client.admin = Some(AdminScript::new(&mut ctx));
            } else if id == 1 {
                client.subs = references(&mut ctx);
            }
            clients.push(Who::Client(Box::new(client)));
        }
        for id in count..count + rogues {
            clients.push(Who::Rogue(Box::new(Rogue::new(&mut ctx, id))));
        }
        sim.cover.thousand_clients += u64::from(count >= 1_000 && sim.plan.cores >= 4);
        sim.at(MS, Ev::Watch);
        for core in 0..sim.plan.cores {
            sim.wake_core(core, 0);
        }
        World { sim, model, cores, control, clients, act: Act::Chaos, owing: 0 }
    }

    fn run(&mut self) {
        let check_every = self.sim.plan.check_every;
        while self.act != Act::Done && self.model.failure.is_none() {
            let Some(ev) = self.sim.pop() else {
                return self.model.fail(|| "the world stands still".to_string());
            };
            self.on_event(ev);
            if self.sim.cover.events.is_multiple_of(check_every) {
                self.cores.iter().for_each(Core::check);
            }
        }
        self.gather();
    }

    fn on_event(&mut self, ev: Ev) {
        match ev {
            Ev::Turn(core) => self.turn(core),
            Ev::ControlTurn => {
                if self.sim.control_at == self.sim.now {
                    self.sim.control_at = u64::MAX;
                    self.control.turn(&mut self.sim);
                }
            }
            Ev::Piece { conn, stream, up, offset, bytes, fin } => {
                if self.sim.on_piece(conn, stream, up, offset, bytes, fin) {
                    self.read(conn, stream);
                }
            }
            Ev::Window { conn, stream, up, limit } => self.sim.on_window(conn, stream, up, limit),
            Ev::Uncork { conn, stream } => self.sim.uncork(conn, stream),
            Ev::Reset { conn, stream, up: true } => self.sim.on_client_ended(conn, stream, true),
            Ev::Reset { conn, stream, up: false } => {
                // A reset overtakes what is under way; a transport throws that away.
                let pipe = self.sim.pipe(conn, stream, false);
                pipe.reset = Some(0);
                pipe.drop_unread();
                let World { sim, model, clients, .. } = self;
                let who = sim.conns[conn].client;
                match &mut clients[who] {
                    Who::Client(client) if client.conn == Some(conn) => {
                        client.on_end(&mut Ctx { sim, model }, stream, true);
                    }
                    Who::Rogue(rogue) if rogue.conn == Some(conn) => rogue.on_end(stream),
                    _ => {}
                }
            }
            Ev::Stop { conn, stream, up: true } => {
                let pipe = self.sim.pipe(conn, stream, true);
                pipe.stopped = true;
                pipe.backlog.clear();
            }
            Ev::Stop { conn, stream, up: false } => self.sim.on_client_ended(conn, stream, false),
            Ev::Datagram { conn, bytes } => {
                self.sim.on_datagram_arrived(conn);
                let World { sim, model, clients, .. } = self;
                if let Who::Client(client) = &mut clients[sim.conns[conn].client] {
                    client.on_datagram(&mut Ctx { sim, model }, conn, &bytes);
                }
            }
            Ev::UpDatagram { conn } => self.sim.on_up_datagram(conn),
            Ev::Connected { conn } => self.on_connected(conn),
            Ev::BrokerLearns { conn } => self.sim.broker_end(conn),
            Ev::ClientLearns { conn, code } => {
                let World { sim, model, clients, .. } = self;
                let who = sim.conns[conn].client;
                let mut ctx = Ctx { sim, model };
                match &mut clients[who] {
                    Who::Client(client) => client.on_closed(&mut ctx, conn, code),
                    Who::Rogue(rogue) => rogue.on_closed(&mut ctx, conn, code),
                }
            }
            Ev::Client(who) => {
                let World { sim, model, clients, .. } = self;
                let mut ctx = Ctx { sim, model };
                match &mut clients[who] {
                    Who::Client(client) => client.act(&mut ctx),
                    Who::Rogue(rogue) => rogue.act(&mut ctx),
                }
            }
            Ev::Unstall(conn) => self.unstall(conn),
            Ev::Watch => self.watch(),
        }
    }

    fn read(&mut self, conn: usize, stream: u64) {
        let World { sim, model, clients, .. } = self;
        let who = sim.conns[conn].client;
        let mut ctx = Ctx { sim, model };
        match &mut clients[who] {
            Who::Client(client) => client.read(&mut ctx, conn, stream),
            Who::Rogue(rogue) => rogue.read(&mut ctx, conn, stream),
        }
    }

    fn unstall(&mut self, conn: usize) {
        if std::mem::take(&mut self.sim.conns[conn].stalled) {
            let streams: Vec<u64> = self.sim.conns[conn].streams.keys().copied().collect();
            for stream in streams {
                self.read(conn, stream);
            }
        }
    }

    fn on_connected(&mut self, conn: usize) {
        self.sim.on_connected(conn);
        if self.sim.conns[conn].broker_gone {
            // The client gave up meanwhile.
            self.sim.conns[conn].broker_gone = false;
            self.sim.broker_end(conn);
        }
        let World { sim, model, clients, .. } = self;
        let who = sim.conns[conn].client;
        let mut ctx = Ctx { sim, model };
        match &mut clients[who] {
            Who::Client(client) => client.on_connected(&mut ctx, conn),
            Who::Rogue(rogue) => rogue.on_connected(&mut ctx, conn),
        }
    }

    /// One turn of a core, as `core_loop.rs` does it: mail, events of the endpoint, the end of the turn.
    fn turn(&mut self, at: usize) {
        let World { sim, cores, clients, .. } = self;
        if sim.ports[at].turn_at != sim.now {
            return;
        }
        sim.ports[at].turn_at = u64::MAX;
        let now = sim.clock();
        let core = &mut cores[at];
        let members = sim.plan.cores + 1;
        let first = sim.rng.below(members as u64) as usize;
        let mut budget = sim.rng.range(1, 64);
        for from in (0..members).map(|it| (it + first) % members) {
            while budget > 0
                && let Some(message) = sim.mesh_take(from, at)
            {
                budget -= 1;
                core.on_mesh(now, from, message);
            }
        }
        while let Some(ev) = sim.ports[at].inbox.pop_front() {
            match ev {
                CoreEv::Connected(conn) => {
                    let principal = match &clients[sim.conns[conn].client] {
                        Who::Client(_) => Some(Principal::admin()),
                        Who::Rogue(rogue) => rogue.principal(),
                    };
                    core.on_connected(now, sim.conns[conn].key, principal.map(Arc::new));
                }
                CoreEv::Readable(key, stream) => core.on_readable(now, key, stream, &mut Side { sim, core: at }),
                CoreEv::Writable(key, stream) => core.on_writable(key, stream),
                CoreEv::Ended(key, stream) => core.on_stream_ended(key, stream, &mut Side { sim, core: at }),
                CoreEv::Datagram(key) => core.on_datagram(key, &mut Side { sim, core: at }),
                CoreEv::Closed(key) => core.on_closed(key),
            }
        }
        let again = core.end_turn(now, &mut Side { sim, core: at });
        if !sim.healed && sim.rng.chance(sim.plan.pauses) {
            sim.ports[at].paused_until = sim.now + sim.rng.range(100 * US, 4 * MS);
        }
        if again {
            sim.wake_core(at, 2 * US);
        } else if let Some(deadline) = core.next_deadline(now)
            && !sim.faults.loses_deadlines()
        {
            sim.wake_core(at, deadline.0.saturating_sub(sim.now).max(2 * US));
        }
        if let Some(next) = sim.mesh_next(at) {
            sim.wake_core(at, next.saturating_sub(sim.now).max(2 * US));
        }
    }

    /// Looks from time to time how far the run is.
    fn watch(&mut self) {
        let now = self.sim.now;
        match self.act {
            Act::Chaos if now >= self.sim.plan.chaos => {
                self.sim.healed = true;
                (0..self.sim.conns.len()).for_each(|conn| self.unstall(conn));
                self.act = Act::Heal { until: now + 8_000 * MS };
            }
            Act::Heal { until } => {
                let owed = self.owed();
                if owed.is_none() {
                    self.check_all();
                    self.everybody_leaves();
                    self.act = Act::Leave { until: now + 60_000 * MS };
                } else if now >= until {
                    if self.sim.trace.is_on() {
                        eprintln!("PROBE {:?}", self.cores);
                    }
                    self.model.fail(|| format!("it does not drain: {}", owed.unwrap_or_default()));
                }
            }
            Act::Leave { until } => {
                let unrest = self.unrest();
                if unrest.is_none() {
                    self.act = Act::Done;
                } else if now >= until {
                    self.model.fail(|| format!("all have left, but there are {}", unrest.unwrap_or_default()));
                }
            }
            _ => {}
        }
        let pause = match self.act {
            Act::Leave { .. } => 20 * MS,
            _ if self.sim.plan.big => 4 * MS,
            _ => MS,
        };
        self.sim.at(pause, Ev::Watch);
    }

    /// Where the log of a shard begins and ends, if it still lives.
    fn log_of(cores: &[Core], shard: ShardId) -> Option<(u64, u64)> {
        cores.iter().find_map(|core| core.shard(shard)).map(|it| (it.log_start().0, it.high_watermark().0))
    }

    fn owed(&mut self) -> Option<String> {
        let World { sim, model, cores, clients, owing, .. } = self;
        let shards: Vec<ShardId> = model.views.iter().map(|view| view.shard).collect();
        let count = clients.len();
        for at in (0..count).map(|it| (it + *owing) % count) {
            let client = match &clients[at] {
                Who::Client(client) => client,
                Who::Rogue(rogue) if rogue.conn.is_some() => return Some(format!("rogue {} goes on", rogue.id)),
                Who::Rogue(_) => continue,
            };
            let owed = client.owes(&Ctx { sim, model }, |view| World::log_of(cores, shards[view]));
            if owed.is_some() {
                *owing = at;
                return owed;
            }
        }
        None
    }

    fn check_all(&mut self) {
        let limits = &self.sim.plan.limits;
        let tail = (limits.tail_batches_max, limits.tail_bytes_max);
        for view in 0..self.model.views.len() {
            self.sim.cover.ttl_skips += self.model.check_view(view, tail);
        }
        self.model.check_order();
        let mut unknown = None;
        for (shard, info) in &self.model.shards {
            if self.model.kinds[info.plan] != Kind::Stable {
                continue;
            }
            let end = World::log_of(&self.cores, *shard).unwrap_or_default().1 as usize;
            let empty = Vec::new();
            let tags = self.model.logs.get(&(*shard, info.lineage)).map_or(&empty, |log| &log.tags);
            if tags.len() != end || tags.contains(&u64::MAX) {
                let hole = tags.iter().position(|tag| *tag == u64::MAX);
                unknown = Some(format!("shard {shard} ends at {end}, {} offsets are known, hole {hole:?}", tags.len()));
            }
        }
        if let Some(unknown) = unknown {
            self.model.fail(|| unknown);
        }
        self.cores.iter().for_each(Core::check);
    }

    fn everybody_leaves(&mut self) {
        let World { sim, model, clients, .. } = self;
        for who in clients {
            if let Who::Client(client) = who
                && client.phase != Phase::Left
            {
                client.leave(&mut Ctx { sim, model });
            }
        }
    }

    fn unrest(&self) -> Option<String> {
        for (at, core) in self.cores.iter().enumerate() {
            if let Some(unrest) = core.unrest() {
                return Some(format!("{unrest} on core {at}"));
            }
            for shard in self.model.shards.keys() {
                let Some(it) = core.shard(*shard) else { continue };
                if it.held_bytes() > 0 {
                    return Some(format!("{} held bytes of shard {shard}", it.held_bytes()));
                }
                if let Some(core) = it.attached().next() {
                    return Some(format!("commits of shard {shard} to core {core}, where nobody reads it"));
                }
            }
        }
        (!self.control.is_idle()).then(|| "messages of the control member".to_string())
    }

    fn gather(&mut self) {
        let cover = &mut self.sim.cover;
        for core in &self.cores {
            let (mine, fan_out) = (core.counters, core.fan_out_counters());
            cover.commits_stalled += mine.commits_stalled;
            cover.channel_stalls += mine.channel_stalls;
            cover.forwarded += mine.batches_forwarded;
            cover.jumps += fan_out.jumps;
            cover.fetches += fan_out.fetches;
            cover.histories_dropped += fan_out.histories_dropped;
            for shard in self.model.shards.keys() {
                cover.evictions += core.shard(*shard).map_or(0, |it| it.counters().evicted);
            }
        }
    }
}

/// Somebody who reads all of each stable shard.
fn references(ctx: &mut Ctx<'_>) -> Vec<Sub> {
    let mut subs = Vec::new();
    for stream in 0..ctx.sim.plan.streams.len() {
        if ctx.sim.plan.streams[stream].kind == Kind::Stable {
            for shard in 0..ctx.sim.plan.streams[stream].spec.shards {
                let own = ctx.sim.rng.chance(300);
                subs.push(Sub::reference(format!("reference of stream {stream} shard {shard}"), stream, shard, own));
            }
        }
    }
    subs
}

/// Runs a plan. A panic of the broker is a failure like any other.
pub fn run(plan: Plan, bug: Option<Bug>, traced: bool) -> Outcome {
    let mut world = World::new(plan, bug, traced);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
    if let Err(panic) = result {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_string()))
            .unwrap_or_default();
        world.model.failure.get_or_insert(format!("panic: {text}"));
    }
    if traced && world.model.failure.is_some() {
        world.sim.trace.print();
    }
    Outcome {
        failure: world.model.failure.take(),
        hash: world.sim.trace.hash,
        cover: world.sim.cover,
        struck: world.sim.faults.struck,
    }
}
