//! What a seed stands for: sizes, bounds, faults of the network, streams. Most plans are small and nasty; some have
//! 1,000 clients.

use crate::rng::Rng;
use felix_broker::admission::Admission;
use felix_protocol::metadata::StreamSpec;
use felix_shard::limits::Limits;

pub const MS: u64 = 1_000_000;
pub const US: u64 = 1_000;

/// What a stream is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Keeps everything and lives for the whole run: the reference.
    Stable,
    /// Forgets soon, by bytes or age.
    Lossy,
    /// Deleted and made anew, also altered.
    Mortal,
}

#[derive(Clone, Debug)]
pub struct StreamPlan {
    pub name: String,
    pub kind: Kind,
    pub spec: StreamSpec,
}

/// How a connection's network behaves.
#[derive(Clone, Copy, Debug)]
pub struct NetPlan {
    pub delay: u64,
    pub jitter: u64,
    pub loss: u64,
    pub duplicate: u64,
    /// Largest piece of a stream that arrives at once.
    pub piece: u64,
    /// Flow control window towards the client, and towards the broker.
    pub window_down: u64,
    pub window_up: u64,
    pub datagram_max: usize,
    pub datagram_queue: usize,
    pub uni_max: u64,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub big: bool,
    pub cores: usize,
    pub clients: usize,
    pub rogues: usize,
    pub streams: Vec<StreamPlan>,
    pub admission: Admission,
    pub limits: Limits,
    /// Smallest and largest ring.
    pub ring: (u64, u64),
    pub mesh_delay: u64,
    /// Per mille of turns after which a core pauses.
    pub pauses: u64,
    /// Time with faults.
    pub chaos: u64,
    /// Per mille of actions that kill a connection.
    pub deaths: u64,
    pub batches: u64,
    pub check_every: u64,
}

impl Plan {
    pub fn new(seed: u64, may_be_big: bool) -> Plan {
        let mut rng = Rng::new(seed ^ 0xfe11);
        let rng = &mut rng;
        let big = may_be_big && seed % 15 == 7;
        let nasty = !big && rng.chance(700);
        let cores = if big { rng.range(4, 6) } else { rng.pick(&[1, 2, 4, 4, 4, 5, 6]) } as usize;
        let clients = if big { 1_000 } else { rng.range(8, 40) as usize };
        let mut streams = Vec::new();
        let kinds = [Kind::Stable, Kind::Lossy, Kind::Mortal, Kind::Stable, Kind::Lossy, Kind::Mortal];
        for (at, kind) in kinds.into_iter().take(rng.range(3, 6) as usize).enumerate() {
            let mut spec = StreamSpec { shards: rng.range(1, if big { 8 } else { 4 }) as u32, ..StreamSpec::default() };
            spec.batch_bytes_max = rng.pick(&[1_024_000, 8_192]);
            if kind == Kind::Lossy {
                match rng.chance(500) {
                    true => spec.retention_age_ms = Some(rng.range(1, 20)),
                    false => spec.retention_bytes = 64 << 10,
                }
            }
            streams.push(StreamPlan { name: format!("t{}/n/s{at}", at % 2), kind, spec });
        }
        let mut admission = Admission { hello_timeout_ns: 40 * MS, channels_max: 12, ..Admission::default() };
        admission.report_interval_ns = rng.pick(&[5 * MS, 100 * MS, 20_000 * MS]);
        let mut limits = Limits::default();
        if nasty {
            admission.control_out_bytes_max = rng.range(100, 1_000) as usize;
            admission.ack_out_bytes_max = rng.range(40, 400) as usize;
            admission.forwarded_max = rng.range(1, 12) as u32;
            admission.requests_max = rng.range(1, 6) as u32;
            admission.deliveries_per_turn = rng.range(1, 40) as usize;
            admission.write_bytes_max = rng.range(100, 4_000) as usize;
            limits.tail_batches_max = rng.range(1, 12) as usize;
            limits.tail_bytes_max = rng.pick(&[1_000, 10_000, 8 << 20]);
            limits.fetch_batches_max = rng.range(1, 6) as usize;
            limits.fetch_bytes_max = rng.pick(&[500, 5_000, 1 << 20]);
            limits.history_bytes_max = rng.pick(&[1_000, 20_000, 64 << 20]);
            limits.progress_offsets = rng.range(2, 40);
            limits.pool_bytes_max = rng.pick(&[0, 10_000, 16 << 20]);
            limits.derived_pool_bytes_max = rng.pick(&[0, 4 << 20]);
        } else if big {
            limits.tail_batches_max = rng.pick(&[32, 4_096]);
            limits.progress_offsets = 64;
        }
        Plan {
            seed,
            big,
            cores,
            clients,
            rogues: rng.range(2, 8) as usize,
            streams,
            admission,
            limits,
            ring: if big { (16, 64) } else { rng.pick(&[(2, 4), (2, 16), (2, 64)]) },
            mesh_delay: rng.pick(&[2 * US, 50 * US, 500 * US]),
            pauses: rng.pick(&[0, 5, 30]),
            chaos: if big { 60 * MS } else { rng.range(40, 150) * MS },
            deaths: if big { 5 } else { rng.pick(&[0, 10, 40]) },
            batches: if big { 6 } else { rng.range(5, 40) },
            check_every: if big { 20_000 } else { 100 },
        }
    }

    pub fn net(&self, rng: &mut Rng) -> NetPlan {
        let wild = !self.big && rng.chance(500);
        NetPlan {
            delay: rng.pick(&[20 * US, 100 * US, MS]),
            jitter: rng.pick(&[10 * US, 300 * US]),
            loss: if wild { rng.below(200) } else { 5 },
            duplicate: if wild { rng.below(100) } else { 5 },
            piece: if wild { rng.pick(&[3, 40, 400, 1_200]) } else { 4_000 },
            window_down: if wild { rng.pick(&[100, 700, 5_000, 1 << 20]) } else { 1 << 20 },
            window_up: if wild { rng.pick(&[100, 700, 5_000, 1 << 20]) } else { 1 << 20 },
            datagram_max: rng.pick(&[0, 150, 400, 1_200]),
            datagram_queue: rng.pick(&[1, 8, 100]),
            uni_max: 64,
        }
    }
}
