//! The world outside the cores: virtual time, the event queue, connections with their streams, the mesh. One thread, one
//! source of chance, so a seed is a run.

use crate::cover::Cover;
use crate::faults::Faults;
use crate::plan::{NetPlan, Plan};
use crate::rng::Rng;
use crate::transport::{Got, Pipe, Stream};
use felix_broker::message::MeshMessage;
use felix_protocol::time::{Now, Time, Timestamp};
use felix_shard::event::ConnKey;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::rc::Rc;

/// Wall clock at time 0.
const WALL: u64 = 1_700_000_000_000_000_000;

/// Something that happens at a time.
#[derive(Debug)]
pub enum Ev {
    Turn(usize),
    ControlTurn,
    Piece { conn: usize, stream: u64, up: bool, offset: u64, bytes: Rc<[u8]>, fin: bool },
    Window { conn: usize, stream: u64, up: bool, limit: u64 },
    Uncork { conn: usize, stream: u64 },
    Reset { conn: usize, stream: u64, up: bool },
    Stop { conn: usize, stream: u64, up: bool },
    Datagram { conn: usize, bytes: Vec<u8> },
    UpDatagram { conn: usize },
    Connected { conn: usize },
    BrokerLearns { conn: usize },
    ClientLearns { conn: usize, code: Option<u16> },
    Client(usize),
    Unstall(usize),
    Watch,
}

/// What an endpoint tells its core.
#[derive(Debug)]
pub enum CoreEv {
    Connected(usize),
    Readable(ConnKey, u64),
    Writable(ConnKey, u64),
    Ended(ConnKey, u64),
    Datagram(ConnKey),
    Closed(ConnKey),
}

struct Entry {
    at: u64,
    order: u64,
    ev: Ev,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

pub struct Conn {
    pub client: usize,
    pub core: usize,
    pub key: ConnKey,
    pub net: NetPlan,
    pub streams: BTreeMap<u64, Stream>,
    pub next_bidi: u64,
    next_uni: u64,
    /// The broker's side is there.
    pub broker_up: bool,
    /// The broker closed it, or heard of its end.
    pub broker_gone: bool,
    pub client_gone: bool,
    datagrams: usize,
    /// Received but not read by the client, which is stalled.
    pub stalled: bool,
}

pub struct Port {
    pub inbox: VecDeque<CoreEv>,
    pub keys: BTreeMap<u64, usize>,
    free: Vec<u32>,
    generations: Vec<u32>,
    pub turn_at: u64,
    pub paused_until: u64,
}

struct Ring {
    capacity: usize,
    messages: VecDeque<(u64, MeshMessage)>,
    last: u64,
}

/// A hash over all that happened, and the last lines of it for people.
pub struct Trace {
    pub hash: u64,
    lines: Option<VecDeque<String>>,
}

impl Trace {
    pub fn note(&mut self, word: u64) {
        self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(0x2545_f491_4f6c_dd1d);
    }

    pub fn line(&mut self, at: u64, text: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            if lines.len() == 400_000 {
                lines.pop_front();
            }
            lines.push_back(format!("{:>12.3} ms  {}", at as f64 / 1e6, text()));
        }
    }

    pub fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    pub fn print(&self) {
        self.lines.iter().flatten().for_each(|line| eprintln!("{line}"));
    }
}

pub struct Sim {
    pub plan: Plan,
    pub now: u64,
    pub rng: Rng,
    queue: BinaryHeap<Reverse<Entry>>,
    order: u64,
    pub conns: Vec<Conn>,
    pub ports: Vec<Port>,
    rings: Vec<Ring>,
    pub control_at: u64,
    pub faults: Faults,
    pub cover: Cover,
    pub trace: Trace,
    /// No faults any more; clients only finish.
    pub healed: bool,
}

impl Sim {
    pub fn new(plan: Plan, faults: Faults, traced: bool) -> Sim {
        let mut rng = Rng::new(plan.seed);
        let members = plan.cores + 1;
        let rings = (0..members * members)
            .map(|_| Ring {
                capacity: rng.range(plan.ring.0, plan.ring.1) as usize,
                messages: VecDeque::new(),
                last: 0,
            })
            .collect();
        let ports = (0..plan.cores)
            .map(|_| Port {
                inbox: VecDeque::new(),
                keys: BTreeMap::new(),
                free: Vec::new(),
                generations: Vec::new(),
                turn_at: u64::MAX,
                paused_until: 0,
            })
            .collect();
        Sim {
            now: 0,
            rng,
            queue: BinaryHeap::new(),
            order: 0,
            conns: Vec::new(),
            ports,
            rings,
            control_at: u64::MAX,
            faults,
            cover: Cover::default(),
            trace: Trace { hash: 0, lines: traced.then(VecDeque::new) },
            healed: false,
            plan,
        }
    }

    pub fn clock(&self) -> Now {
        Now { time: Time(self.now), wall: Timestamp(WALL + self.now) }
    }

    pub fn at(&mut self, after: u64, ev: Ev) {
        self.order += 1;
        self.queue.push(Reverse(Entry { at: self.now + after, order: self.order, ev }));
    }

    pub fn pop(&mut self) -> Option<Ev> {
        let Reverse(entry) = self.queue.pop()?;
        self.now = entry.at;
        self.cover.events += 1;
        self.trace.note(entry.at);
        Some(entry.ev)
    }

    /// A turn of a core at the latest after this time.
    pub fn wake_core(&mut self, core: usize, after: u64) {
        let at = (self.now + after).max(self.ports[core].paused_until);
        if at < self.ports[core].turn_at {
            self.ports[core].turn_at = at;
            self.at(at - self.now, Ev::Turn(core));
        }
    }

    pub fn wake_control(&mut self, after: u64) {
        if self.now + after < self.control_at {
            self.control_at = self.now + after;
            self.at(after, Ev::ControlTurn);
        }
    }

    fn tell_core(&mut self, core: usize, ev: CoreEv) {
        self.ports[core].inbox.push_back(ev);
        let after = self.rng.range(500, 5_000);
        self.wake_core(core, after);
    }

    // Mesh.

    pub fn mesh_push(&mut self, from: usize, to: usize, message: MeshMessage) -> Result<(), MeshMessage> {
        let members = self.plan.cores + 1;
        if self.rings[from * members + to].messages.len() >= self.rings[from * members + to].capacity {
            self.cover.mesh_full += 1;
            return Err(message);
        }
        let delay = self.rng.range(200, self.plan.mesh_delay);
        let ring = &mut self.rings[from * members + to];
        let at = (self.now + delay).max(ring.last);
        ring.last = at;
        ring.messages.push_back((at, message));
        self.cover.mesh_messages += 1;
        match to == self.plan.cores {
            true => self.wake_control(at - self.now),
            false => self.wake_core(to, at - self.now),
        }
        Ok(())
    }

    /// The next message that has arrived.
    pub fn mesh_take(&mut self, from: usize, to: usize) -> Option<MeshMessage> {
        let ring = &mut self.rings[from * (self.plan.cores + 1) + to];
        let (at, _) = ring.messages.front()?;
        if *at > self.now {
            return None;
        }
        ring.messages.pop_front().map(|(_, message)| message)
    }

    /// When the next message to a member arrives.
    pub fn mesh_next(&self, to: usize) -> Option<u64> {
        let members = self.plan.cores + 1;
        (0..members).filter_map(|from| self.rings[from * members + to].messages.front().map(|(at, _)| *at)).min()
    }

    // Connections.

    pub fn connect(&mut self, client: usize, core: usize, net: NetPlan) -> usize {
        let conn = self.conns.len();
        self.conns.push(Conn {
            client,
            core,
            key: ConnKey(0),
            net,
            streams: BTreeMap::new(),
            next_bidi: 0,
            next_uni: 0,
            broker_up: false,
            broker_gone: false,
            client_gone: false,
            datagrams: 0,
            stalled: false,
        });
        self.cover.connections += 1;
        self.at(2 * net.delay, Ev::Connected { conn });
        conn
    }

    /// The broker's end of a connection comes to be.
    pub fn on_connected(&mut self, conn: usize) {
        let core = self.conns[conn].core;
        let reuse = self.faults.reuses_keys();
        let port = &mut self.ports[core];
        let used = port.free.pop();
        let slot = used.unwrap_or_else(|| {
            port.generations.push(0);
            port.generations.len() as u32 - 1
        });
        if !reuse {
            port.generations[slot as usize] += 1;
        }
        let key = ConnKey(u64::from(port.generations[slot as usize]) << 32 | u64::from(slot));
        port.keys.insert(key.0, conn);
        self.conns[conn].key = key;
        self.conns[conn].broker_up = true;
        self.tell_core(core, CoreEv::Connected(conn));
        if reuse && used.is_some() {
            // The end of the former connection, late: with a generation of its own it would hit nobody.
            self.tell_core(core, CoreEv::Closed(key));
        }
    }

    /// The broker's end is over; its slot is free.
    pub fn broker_end(&mut self, conn: usize) {
        if self.conns[conn].broker_gone || !self.conns[conn].broker_up {
            self.conns[conn].broker_gone = true;
            return;
        }
        self.conns[conn].broker_gone = true;
        let (core, key) = (self.conns[conn].core, self.conns[conn].key);
        self.ports[core].keys.remove(&key.0);
        self.ports[core].free.push(key.0 as u32);
        self.tell_core(core, CoreEv::Closed(key));
        if self.conns[conn].client_gone {
            self.conns[conn].streams.clear();
        }
    }

    /// The client is through with a connection. `told`: the broker hears of it soon; else after its idle timeout.
    pub fn client_end(&mut self, conn: usize, told: bool) {
        if self.conns[conn].client_gone {
            return;
        }
        self.conns[conn].client_gone = true;
        let idle = self.rng.range(2_000_000, 60_000_000);
        let after = if told { self.conns[conn].net.delay } else { idle };
        self.at(after, Ev::BrokerLearns { conn });
    }

    pub fn stream(&mut self, conn: usize, stream: u64) -> &mut Stream {
        let net = self.conns[conn].net;
        self.conns[conn]
            .streams
            .entry(stream)
            .or_insert_with(|| Stream { up: Pipe::new(net.window_up), down: Pipe::new(net.window_down) })
    }

    /// Cuts accepted bytes into pieces and sends them off.
    fn transmit(&mut self, conn: usize, stream: u64, up: bool, bytes: &[u8], fin: bool) {
        let net = self.conns[conn].net;
        let pipe = self.pipe(conn, stream, up);
        let mut offset = pipe.sent;
        pipe.sent += bytes.len() as u64;
        pipe.ended |= fin;
        let mut rest = bytes;
        loop {
            let take =
                if rest.len() <= 3 { rest.len() } else { self.rng.range(1, net.piece).min(rest.len() as u64) as usize };
            let (piece, after) = rest.split_at(take);
            rest = after;
            let piece: Rc<[u8]> = piece.into();
            let ends = fin && rest.is_empty();
            let length = piece.len() as u64;
            let copies = 1 + u64::from(!self.healed && self.rng.chance(net.duplicate));
            self.cover.pieces_doubled += copies - 1;
            for _ in 0..copies {
                let mut after = net.delay + self.rng.below(net.jitter);
                if !self.healed && self.rng.chance(net.loss) {
                    // Lost and sent again after a probe timeout.
                    self.cover.pieces_lost += 1;
                    after += 3 * net.delay + self.rng.below(5 * net.delay);
                }
                self.at(after, Ev::Piece { conn, stream, up, offset, bytes: piece.clone(), fin: ends });
            }
            offset += length;
            if rest.is_empty() {
                return;
            }
        }
    }

    pub fn pipe(&mut self, conn: usize, stream: u64, up: bool) -> &mut Pipe {
        let stream = self.stream(conn, stream);
        if up { &mut stream.up } else { &mut stream.down }
    }

    // The broker's calls.

    pub fn broker_send(&mut self, conn: usize, stream: u64, bytes: &[u8], fin: bool) -> Option<usize> {
        let corked = !self.healed && bytes.len() > 1 && self.rng.chance(20);
        let pipe = self.pipe(conn, stream, false);
        if pipe.ended || pipe.stopped {
            return None;
        }
        let mut taken = (bytes.len() as u64).min(pipe.room()) as usize;
        if corked {
            // Congestion: less than the window allows.
            taken = self.rng.below(taken as u64 + 1) as usize;
            self.at(200_000, Ev::Uncork { conn, stream });
        }
        let short = taken < bytes.len();
        self.pipe(conn, stream, false).blocked = short;
        self.cover.short_sends += u64::from(short);
        let fin = fin && !short;
        if taken > 0 || fin {
            self.transmit(conn, stream, false, &bytes[..taken], fin);
        }
        Some(taken)
    }

    pub fn broker_open(&mut self, conn: usize) -> Option<u64> {
        let it = &mut self.conns[conn];
        if it.next_uni == it.net.uni_max {
            return None;
        }
        let stream = 3 + 4 * it.next_uni;
        it.next_uni += 1;
        self.stream(conn, stream);
        Some(stream)
    }

    /// `Err(true)`: too large; `Err(false)`: the queue is full.
    pub fn broker_datagram(&mut self, conn: usize, bytes: &[u8]) -> Result<(), bool> {
        let net = self.conns[conn].net;
        if bytes.len() > net.datagram_max {
            return Err(true);
        }
        if self.conns[conn].datagrams >= net.datagram_queue {
            self.cover.datagrams_dropped += 1;
            return Err(false);
        }
        if !self.healed && self.rng.chance(net.loss) {
            self.cover.datagrams_lost += 1;
            return Ok(());
        }
        self.conns[conn].datagrams += 1;
        let after = net.delay + self.rng.below(net.jitter);
        self.at(after, Ev::Datagram { conn, bytes: bytes.to_vec() });
        Ok(())
    }

    // The client's calls.

    pub fn client_send(&mut self, conn: usize, stream: u64, bytes: &[u8], fin: bool) {
        let pipe = self.pipe(conn, stream, true);
        if pipe.ended || pipe.stopped {
            return;
        }
        pipe.backlog.extend_from_slice(bytes);
        pipe.fin_wanted |= fin;
        self.pump(conn, stream);
    }

    pub fn client_open(&mut self, conn: usize) -> u64 {
        let stream = self.conns[conn].next_bidi;
        self.conns[conn].next_bidi += 4;
        self.stream(conn, stream);
        stream
    }

    /// Sends what waits, as far as the window goes.
    pub fn pump(&mut self, conn: usize, stream: u64) {
        let pipe = self.pipe(conn, stream, true);
        if pipe.ended || pipe.stopped {
            pipe.backlog.clear();
            return;
        }
        let take = pipe.room().min(pipe.backlog.len() as u64) as usize;
        let bytes: Vec<u8> = pipe.backlog.drain(..take).collect();
        let fin = pipe.fin_wanted && pipe.backlog.is_empty();
        if !bytes.is_empty() || fin {
            self.transmit(conn, stream, true, &bytes, fin);
        }
    }

    pub fn client_reset(&mut self, conn: usize, stream: u64) {
        let pipe = self.pipe(conn, stream, true);
        if !pipe.ended {
            pipe.ended = true;
            pipe.backlog.clear();
            let after = self.conns[conn].net.delay;
            self.at(after, Ev::Reset { conn, stream, up: true });
        }
    }

    /// All that a client may read from a stream now.
    pub fn client_read(&mut self, conn: usize, stream: u64) -> Option<(Vec<u8>, bool)> {
        let Got::Bytes(bytes, fin) = self.pipe(conn, stream, false).recv(usize::MAX) else { return None };
        self.announce_window(conn, stream, false);
        Some((bytes, fin))
    }

    pub fn announce_window(&mut self, conn: usize, stream: u64, up: bool) {
        if let Some(limit) = self.pipe(conn, stream, up).window_update() {
            let after = self.conns[conn].net.delay;
            self.at(after, Ev::Window { conn, stream, up, limit });
        }
    }

    // Arrivals. True: the client has something to read.

    pub fn on_piece(&mut self, conn: usize, stream: u64, up: bool, offset: u64, bytes: Rc<[u8]>, fin: bool) -> bool {
        if if up { self.conns[conn].broker_gone } else { self.conns[conn].client_gone } {
            return false;
        }
        let eager = self.rng.chance(500);
        let now = self.now;
        if fin {
            self.trace.line(now, || format!("conn {conn} stream {stream}: its end at {offset} arrives, up {up}"));
        }
        let pipe = self.pipe(conn, stream, up);
        let fresh = pipe.arrive(offset, bytes, fin);
        let disordered = pipe.disordered();
        // An endpoint announces once until the stream was read empty; more often it may.
        let tell = fresh && (!pipe.announced || eager);
        pipe.announced |= fresh;
        let discard = pipe.discard;
        self.cover.pieces_disordered += u64::from(disordered);
        if discard {
            self.announce_window(conn, stream, up);
        }
        if up && tell && !discard {
            let (core, key) = (self.conns[conn].core, self.conns[conn].key);
            self.tell_core(core, CoreEv::Readable(key, stream));
        }
        !up && fresh
    }

    pub fn on_window(&mut self, conn: usize, stream: u64, up: bool, limit: u64) {
        let pipe = self.pipe(conn, stream, up);
        pipe.limit = pipe.limit.max(limit);
        match up {
            true => self.pump(conn, stream),
            false => self.uncork(conn, stream),
        }
    }

    pub fn uncork(&mut self, conn: usize, stream: u64) {
        let pipe = self.pipe(conn, stream, false);
        if pipe.blocked && pipe.room() > 0 && !pipe.stopped && !self.conns[conn].broker_gone {
            self.pipe(conn, stream, false).blocked = false;
            if self.faults.loses_writable(&mut self.rng) {
                return;
            }
            let (core, key) = (self.conns[conn].core, self.conns[conn].key);
            self.tell_core(core, CoreEv::Writable(key, stream));
        }
    }

    /// A reset or stop of the client reached the broker.
    pub fn on_client_ended(&mut self, conn: usize, stream: u64, up: bool) {
        if self.conns[conn].broker_gone {
            return;
        }
        let pipe = self.pipe(conn, stream, up);
        let tell = match up {
            true => {
                pipe.reset = Some(0);
                pipe.drop_unread();
                true
            }
            false => {
                pipe.stopped = true;
                pipe.blocked
            }
        };
        if tell {
            let (core, key) = (self.conns[conn].core, self.conns[conn].key);
            self.tell_core(core, CoreEv::Ended(key, stream));
        }
    }

    pub fn on_datagram_arrived(&mut self, conn: usize) {
        self.conns[conn].datagrams -= 1;
    }

    pub fn on_up_datagram(&mut self, conn: usize) {
        if !self.conns[conn].broker_gone {
            let (core, key) = (self.conns[conn].core, self.conns[conn].key);
            self.tell_core(core, CoreEv::Datagram(key));
        }
    }
}
