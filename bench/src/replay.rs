//! **What**: `replay`: history of a durable stream read back from its beginning, beside what the disk and the bare relay give;
//! and what it does to the subscribers at the tail of another stream.
//!
//! ```text
//! fill     N bytes into stream A, 64 KiB batches, acknowledged
//! quiet    stream B: publisher and subscriber, open loop                                  -> tail p99 without
//! replay   one subscriber of A from earliest, alone                                       -> MB/s
//! both     the same beside B's publisher and subscriber                                   -> tail p99 during, MB/s
//! floors   raw sequential O_DIRECT read of the same size; the relay, same bytes as fast as they go
//! ```
//!
//! **Invariants**: every record of A arrives once and in order, else the run ends. One thread drives all clients. The tail is
//! measured for as long as the replay lasts, and without it for as long again.
//!
//! **Never**: a replay from memory reported as one from disk: N must be more than the broker keeps of the tail.
//!
//! **See**: `durable.rs`, `load.rs` (the relay), `floors/disk.rs`.

use crate::cell::{OTHERS_MAX_PERCENT, STEAL_MAX_PERCENT};
use crate::durable::{Store, on_a_disk, spec};
use crate::floors::disk;
use crate::load::{Load, Phase};
use crate::machine::{Ticks, cpu_ns, now_ns, pin, rss_bytes};
use crate::party::{Party, Role, System};
use crate::quic_party::{QuicParty, Terms};
use crate::report::Report;
use crate::roles::{Crew, Part};
use crate::series::Spread;
use crate::servers::{CLIENT_CPU, Server, certificates};
use crate::{Common, Error, lean};
use felix_protocol::frame::Start;
use felix_protocol::metadata::StreamSpec;
use felix_quic::Connector;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The stream with the history, and the one with the tail.
const HISTORY: &str = "bench/bench/history";
const TAIL: &str = "bench/bench/tail";
/// Bytes of values in a batch of the history.
const BATCH_BYTES: usize = 64 << 10;
/// Batches of the history that may be without an ack.
const FILL_WINDOW: u64 = 32;
/// Reads of the replaying socket before the tail has its turn.
const READS_PER_TURN: usize = 2;
/// Without any progress for so long a run has failed.
const STUCK_NS: u64 = 30_000_000_000;
/// First part of a tail that is not in its histogram.
const LEAD_IN_NS: u64 = 100_000_000;
/// How long the last records of a tail may take.
const TAIL_DRAIN_NS: u64 = 2_000_000_000;
/// Reads at a time of the disk's second figure.
const READS_AT_A_TIME: u64 = 4;

/// What is run.
#[derive(Clone, Debug, clap::Args)]
pub struct ReplayArgs {
    /// Bytes of the history, GiB.
    #[arg(long, default_value_t = 4.0)]
    pub gib: f64,
    /// Folder below which the data folder is made: on the disk that matters.
    #[arg(long, default_value = ".felix-bench")]
    pub data: PathBuf,
    /// Durability of both streams.
    #[arg(long, value_enum, default_value = "felix-group")]
    pub system: Store,
    /// Records per second of the tail.
    #[arg(long, default_value_t = 1_000)]
    pub rate: u64,
    /// MB/s at which the reader beside the tail takes the history; 0: as fast as it can, which takes a whole CPU of the broker
    /// and one of the clients.
    #[arg(long, default_value_t = 0)]
    pub beside_mb_per_s: u64,
    /// Leave the floors out.
    #[arg(long)]
    pub no_floors: bool,
}

/// What one round gave: one line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct ReplayRow {
    system: String,
    wait: String,
    value_bytes: usize,
    bytes: u64,
    records: u64,
    fill_mb_per_s: f64,
    replay_mb_per_s: f64,
    replay_beside_tail_mb_per_s: f64,
    cpu_ns_per_kib: f64,
    tail_rate: u64,
    tail_p50_us: f64,
    tail_p99_us: f64,
    tail_during_p50_us: f64,
    tail_during_p99_us: f64,
    ratio_tail_p99: f64,
    steal_percent: f64,
    others_percent: f64,
    server_rss_mib: f64,
}

/// Connections of one broker.
struct Bench<'a> {
    server: &'a Server,
    connector: Connector,
    spec: StreamSpec,
    value_bytes: usize,
    buffer: Vec<u8>,
}

impl Bench<'_> {
    fn connect(&mut self, role: Role, stream: &str, start: Start) -> Result<QuicParty, Error> {
        let terms = Terms { stream, spec: self.spec, acks: role == Role::Publisher, start };
        let (target, value_bytes) = (&self.server.target, self.value_bytes);
        QuicParty::connect_to(target, &mut self.connector, role, &terms, value_bytes, &mut self.buffer)
    }
}

/// Ends a run in which nothing comes any more.
struct Watch(u64);

impl Watch {
    fn look(&mut self, progress: bool) -> Result<(), Error> {
        let now = now_ns();
        if progress {
            self.0 = now;
        }
        match now - self.0 > STUCK_NS {
            true => Err(format!("nothing came for {} s", STUCK_NS / 1_000_000_000).into()),
            false => Ok(()),
        }
    }
}

/// Publishes the history; returns ns.
fn fill(party: &mut dyn Party, records: u64, batch: u64, buffer: &mut [u8]) -> Result<u64, Error> {
    let (started, mut watch) = (now_ns(), Watch(now_ns()));
    let (mut batches, mut acked) = (0u64, 0u64);
    let all = records.div_ceil(batch);
    while acked < all {
        while batches < all && batches - acked < FILL_WINDOW && !party.has_unsent() {
            party.publish(now_ns(), batch.min(records - batches * batch))?;
            batches += 1;
            party.flush(buffer)?;
        }
        party.flush(buffer)?;
        let before = acked;
        party.receive(buffer, usize::MAX, &mut |_, _| acked += 1)?;
        watch.look(acked > before)?;
    }
    Ok(now_ns() - started)
}

/// Publisher and subscriber at the tail of a stream.
struct Tail {
    publisher: QuicParty,
    subscriber: QuicParty,
    interval: u64,
    next: u64,
}

impl Tail {
    /// One turn: publishes what is due before `end` and takes what came.
    fn turn(
        &mut self,
        due: &mut u64,
        from: u64,
        end: u64,
        latency: &mut Histogram<u64>,
        buffer: &mut [u8],
    ) -> Result<u64, Error> {
        let now = now_ns();
        let mut sent = 0;
        while *due <= now && *due < end {
            self.publisher.publish(*due, 1)?;
            *due += self.interval;
            sent += 1;
        }
        self.publisher.flush(buffer)?;
        self.publisher.receive(buffer, usize::MAX, &mut |_, _| ())?;
        let (next, mut wrong) = (&mut self.next, None);
        self.subscriber.receive(buffer, usize::MAX, &mut |time, number| {
            if number != *next {
                wrong.get_or_insert((number, *next));
            }
            *next = number + 1;
            if time >= from {
                latency.saturating_record(now_ns().saturating_sub(time));
            }
        })?;
        self.subscriber.flush(buffer)?;
        match wrong {
            Some((found, due)) => Err(format!("tail: record {found} came where {due} was due").into()),
            None => Ok(sent),
        }
    }
}

/// Reads the history, with the tail beside if there is one; ns, and the tail's latency.
fn replay(
    bench: &mut Bench,
    records: u64,
    mut tail: Option<&mut Tail>,
    sent: &mut u64,
    mb_per_s: u64,
) -> Result<(u64, Histogram<u64>), Error> {
    let mut latency = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
    let started = now_ns();
    let mut reader = bench.connect(Role::Subscriber, HISTORY, Start::Earliest)?;
    // The replay comes as fast as it is read; what is measured is the broker, not how long one client keeps the other waiting.
    let (mut next, mut wrong, mut due, mut watch) = (0u64, None, now_ns(), Watch(now_ns()));
    let mut buffer = vec![0; 65_536];
    while next < records {
        let before = next;
        let read = next * bench.value_bytes as u64;
        let is_ahead = mb_per_s > 0 && read * 1_000 > (now_ns() - started) * mb_per_s;
        reader.limit_reads(if is_ahead { 0 } else { READS_PER_TURN });
        reader.receive(&mut buffer, usize::MAX, &mut |_, number| {
            if number != next {
                wrong.get_or_insert((number, next));
            }
            next = number + 1;
        })?;
        reader.flush(&mut buffer)?;
        if let Some((found, due)) = wrong {
            return Err(format!("replay: record {found} came where {due} was due").into());
        }
        if let Some(tail) = &mut tail {
            *sent += tail.turn(&mut due, started + LEAD_IN_NS, u64::MAX, &mut latency, &mut buffer)?;
        }
        watch.look(next > before)?;
    }
    let wall = now_ns() - started;
    if let Some(tail) = tail {
        finish(tail, *sent, &mut due, &mut latency, &mut buffer)?;
    }
    Ok((wall, latency))
}

/// Waits for the rest of a tail.
fn finish(
    tail: &mut Tail,
    sent: u64,
    due: &mut u64,
    latency: &mut Histogram<u64>,
    buffer: &mut [u8],
) -> Result<(), Error> {
    let give_up = now_ns() + TAIL_DRAIN_NS;
    while tail.next < sent {
        // What comes late counts, so nothing is left out of the histogram.
        tail.turn(due, 0, 0, latency, buffer)?;
        if now_ns() > give_up {
            return Err(format!("{} records of the tail did not come", sent - tail.next).into());
        }
    }
    Ok(())
}

/// The tail alone, for so long.
fn quiet(tail: &mut Tail, length: u64, sent: &mut u64) -> Result<Histogram<u64>, Error> {
    let mut latency = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
    let mut buffer = vec![0; 65_536];
    let started = now_ns();
    let mut due = started;
    let end = started + length;
    while now_ns() < end {
        *sent += tail.turn(&mut due, started + LEAD_IN_NS, end, &mut latency, &mut buffer)?;
    }
    finish(tail, *sent, &mut due, &mut latency, &mut buffer)?;
    Ok(latency)
}

/// Measures and prints.
pub fn run(common: &Common, args: &ReplayArgs) -> Result<(), Error> {
    let durability = args.system.durability().ok_or("`replay` is for Felix: --system felix-...")?;
    let bytes = (args.gib * f64::from(1u32 << 30)) as u64;
    if bytes < 1 << 20 || args.rate == 0 {
        return Err("`replay` needs at least 0.001 GiB and a rate".into());
    }
    pin(CLIENT_CPU)?;
    let data = on_a_disk(&args.data)?;
    let mut report = Report::of(common, common.runs)?;
    report.json("machine", &crate::ground::machine())?;
    let mut rows = Vec::new();
    for _ in 0..common.runs {
        let spec = StreamSpec { retention_bytes: bytes.saturating_mul(2).max(8 << 30), ..spec(durability) };
        let row = round(common, args, &data, spec, bytes)?;
        report.say(&format!(
            "{} {}: fill {:.0} MB/s, replay {:.0} MB/s, beside a tail {:.0} MB/s; tail p99 {:.1} us, during {:.1} us \
             ({:.2} times)  others {:.0} %  steal {:.1} %",
            row.system,
            row.wait,
            row.fill_mb_per_s,
            row.replay_mb_per_s,
            row.replay_beside_tail_mb_per_s,
            row.tail_p99_us,
            row.tail_during_p99_us,
            row.ratio_tail_p99,
            row.others_percent,
            row.steal_percent,
        ));
        report.json("replay", &row)?;
        report.done();
        rows.push(row);
    }
    let floors = if args.no_floors { None } else { Some(floors(common, &data, bytes)?) };
    let (disk_one, disk_many, relay) = (floors.map(|it| it.0), floors.map(|it| it.1), floors.map(|it| it.2));
    let told = |rate: Option<f64>| rate.map_or_else(|| "-".to_string(), |rate| format!("{rate:.0}"));
    let of = |what: fn(&ReplayRow) -> f64| Spread::of(&rows.iter().map(what).collect::<Vec<_>>());
    let (rate, tail) = (of(|row| row.replay_mb_per_s), of(|row| row.ratio_tail_p99));
    let crowded =
        rows.iter().filter(|row| row.others_percent > OTHERS_MAX_PERCENT || row.steal_percent > STEAL_MAX_PERCENT);
    let void = crowded.count() * 2 > rows.len();
    report.say(&format!(
        "\nreplay of {:.2} GiB: {:.0} [{:.0}..{:.0}] MB/s; disk {} MB/s one read at a time, {} MB/s \
         {READS_AT_A_TIME} at a time; bare relay {} MB/s; tail p99 during / without {:.2} [{:.2}..{:.2}]{}",
        args.gib,
        rate.median,
        rate.min,
        rate.max,
        told(disk_one),
        told(disk_many),
        told(relay),
        tail.median,
        tail.min,
        tail.max,
        if void { "  VOID" } else { "" },
    ));
    report.json(
        "replay-summary",
        &json!({
            "system": args.system.name(), "wait": common.wait.name(), "gib": args.gib, "rounds": rows.len(),
            "replay_mb_per_s": rate, "fill_mb_per_s": of(|row| row.fill_mb_per_s),
            "replay_beside_tail_mb_per_s": of(|row| row.replay_beside_tail_mb_per_s),
            "tail_p99_us": of(|row| row.tail_p99_us), "tail_during_p99_us": of(|row| row.tail_during_p99_us),
            "ratio_tail_p99": tail, "disk_mb_per_s": disk_one, "disk_many_mb_per_s": disk_many,
            "relay_mb_per_s": relay, "void": void,
        }),
    )
}

fn round(common: &Common, args: &ReplayArgs, data: &Path, spec: StreamSpec, bytes: u64) -> Result<ReplayRow, Error> {
    let server = Server::broker_in(common, data)?;
    let connector = lean::connector(&server.target, common.udp_payload)?;
    let value_bytes = common.value_bytes.max(16);
    let mut bench = Bench { server: &server, connector, spec, value_bytes, buffer: vec![0; 65_536] };
    let records = bytes / value_bytes as u64;
    let batch = (BATCH_BYTES / value_bytes).max(1) as u64;
    let mut publisher = bench.connect(Role::Publisher, HISTORY, Start::Latest)?;
    let mut buffer = vec![0; 65_536];
    let fill_ns = fill(&mut publisher, records, batch, &mut buffer)?;
    drop(publisher);
    let cpu_before = cpu_ns(server.pid())?;
    let (alone_ns, _) = replay(&mut bench, records, None, &mut 0, 0)?;
    let cpu = cpu_ns(server.pid())? - cpu_before;
    let mut tail = Tail {
        publisher: bench.connect(Role::Publisher, TAIL, Start::Latest)?,
        subscriber: bench.connect(Role::Subscriber, TAIL, Start::Latest)?,
        interval: 1_000_000_000 / args.rate,
        next: 0,
    };
    let mut sent = 0;
    // Warm, then without, then during.
    quiet(&mut tail, 500_000_000, &mut sent)?;
    let (ticks, server_before, client_before) = (Ticks::now(), cpu_ns(server.pid())?, cpu_ns(std::process::id())?);
    let without = quiet(&mut tail, alone_ns.max(1_000_000_000), &mut sent)?;
    let (beside_ns, during) = replay(&mut bench, records, Some(&mut tail), &mut sent, args.beside_mb_per_s)?;
    let (after, ours) =
        (Ticks::now(), cpu_ns(server.pid())? - server_before + cpu_ns(std::process::id())? - client_before);
    if during.is_empty() || without.is_empty() {
        return Err("the replay was over before the tail was measured: more --gib, or a higher --rate".into());
    }
    let us = |latency: &Histogram<u64>, q| latency.value_at_quantile(q) as f64 / 1e3;
    let stored = (records * value_bytes as u64) as f64;
    let mb_per_s = |ns: u64| stored / 1e6 / (ns as f64 / 1e9);
    Ok(ReplayRow {
        system: args.system.name(),
        wait: common.wait.name().into(),
        value_bytes,
        bytes,
        records,
        fill_mb_per_s: mb_per_s(fill_ns),
        replay_mb_per_s: mb_per_s(alone_ns),
        replay_beside_tail_mb_per_s: mb_per_s(beside_ns),
        cpu_ns_per_kib: cpu as f64 / (stored / 1024.0),
        tail_rate: args.rate,
        tail_p50_us: us(&without, 0.5),
        tail_p99_us: us(&without, 0.99),
        tail_during_p50_us: us(&during, 0.5),
        tail_during_p99_us: us(&during, 0.99),
        ratio_tail_p99: us(&during, 0.99) / us(&without, 0.99),
        steal_percent: after.steal_percent(ticks),
        others_percent: after.others_percent(ticks, ours),
        server_rss_mib: rss_bytes(server.pid())? as f64 / f64::from(1 << 20),
    })
}

/// MB/s: the disk with one read at a time and with several; the bare relay.
fn floors(common: &Common, data: &Path, bytes: u64) -> Result<(f64, f64, f64), Error> {
    let whole = bytes / disk::BLOCK as u64 * disk::BLOCK as u64;
    let one = disk::sequential_read(data, whole, 1)? / 1e6;
    let many = disk::sequential_read(data, whole, READS_AT_A_TIME)? / 1e6;
    let keeper = certificates(common)?;
    let server = Server::start(System::Floor, common, &keeper.target.pki)?;
    let part = Part {
        target: server.target.clone(),
        publisher: true,
        subscribers: 1,
        value_bytes: common.value_bytes.max(16),
        udp_payload: common.udp_payload,
    };
    let mut crew = Crew::connect(&part, 0)?;
    crew.settle(Duration::from_millis(400))?;
    let batch = (BATCH_BYTES / 4 / part.value_bytes).max(1) as u64;
    let phase = Phase {
        start_ns: now_ns() + 20_000_000,
        length: Duration::from_secs(common.seconds).max(Duration::from_millis(500)),
        load: Load::InFlight(batch * 8),
        batch,
        lead_in: Duration::ZERO,
    };
    let tally = crew.run(&phase)?;
    let relay = tally.deliveries as f64 * part.value_bytes as f64 / 1e6 / (tally.wall_ns.max(1) as f64 / 1e9);
    Ok((one, many, relay))
}
