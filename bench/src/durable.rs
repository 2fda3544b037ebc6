//! **What**: `durable`: what an acknowledged record costs: latency with one in flight, and throughput with 64 in flight, for
//! every durability of Felix, beside the disk's own write and sync, JetStream and Redis Streams that sync before the ack.
//!
//! ```text
//! floor      4 KiB O_DIRECT write + fdatasync, one after the other; with 64 in flight one write of 64 records + fdatasync
//! others     start server (data folder on the disk that is measured) -> connect -> warm-up -> load until all is acked
//! ```
//!
//! **Invariants**: all data folders lie below one folder, on a disk. One producer, one connection, batches of one record.
//! Every ack is for the oldest record under way, and Felix's say the durability that was asked for. Latency counts from the
//! intended send time; a record that waits for the one before counts its wait.
//!
//! **Never**: a peer that answers before its sync.
//!
//! **See**: `acks.rs` (the loop), `peers/start.rs` (settings of the peers), `floors/disk.rs`.

use crate::acks::{AckLoad, AckTally, drive};
use crate::cell::{OTHERS_MAX_PERCENT, STEAL_MAX_PERCENT};
use crate::floors::{disk, quantile};
use crate::machine::{Ticks, cpu_ns, pin, rss_bytes};
use crate::party::{Party, Role, System};
use crate::peers::{JetStream, RedisStream, TcpParty, Tls};
use crate::quic_party::{QuicParty, Terms};
use crate::report::{Report, ratio};
use crate::series::{SPREAD_MAX_PERCENT, Spread};
use crate::servers::{CLIENT_CPU, Server, certificates};
use crate::wire::STREAM;
use crate::{Common, Error, Wait, lean};
use clap::ValueEnum;
use felix_protocol::frame::Start;
use felix_protocol::metadata::{Durability, StreamSpec};
use serde::{Deserialize, Serialize};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Load before the measured one.
const WARM_UP: Duration = Duration::from_millis(500);
/// Further runs in place of one that was void.
const RETRIES: usize = 2;
/// Blocks that the floor writes at most.
const FLOOR_WRITES_MAX: usize = 20_000;
/// Bytes that the floor's file has at most.
const FLOOR_BYTES_MAX: usize = 512 << 20;
/// What a frame adds to a record in the floor's write of many: what a WAL entry with its batch adds.
const RECORD_OVERHEAD_BYTES: usize = 256;
/// Bytes that a durable stream of a measurement keeps.
const RETENTION_BYTES: u64 = 8 << 30;

/// Who stores records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Store {
    /// The disk alone: O_DIRECT write + fdatasync.
    DiskFloor,
    /// Felix, a sync per record's group, never waiting.
    FelixEach,
    /// Felix, syncs shared.
    FelixGroup,
    /// Felix, synced at intervals.
    FelixInterval,
    /// Felix, on disk and not synced.
    FelixNone,
    /// Felix, in memory.
    FelixEphemeral,
    /// NATS JetStream, file store, sync always, TLS 1.3.
    JetstreamTls,
    /// NATS JetStream, file store, sync always, plain TCP.
    Jetstream,
    /// Redis Streams, appendfsync always, TLS 1.3.
    RedisStreamTls,
    /// Redis Streams, appendfsync always, plain TCP.
    RedisStream,
}

impl Store {
    /// As on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |it| it.get_name().to_string())
    }

    /// Felix's durability. None: it is not Felix.
    pub fn durability(self) -> Option<Durability> {
        match self {
            Store::FelixEach => Some(Durability::Each),
            Store::FelixGroup => Some(Durability::Group),
            Store::FelixInterval => Some(Durability::Interval),
            Store::FelixNone => Some(Durability::None),
            Store::FelixEphemeral => Some(Durability::Ephemeral),
            _ => None,
        }
    }

    /// Its server, if it is a peer.
    fn peer(self) -> Option<System> {
        match self {
            Store::JetstreamTls => Some(System::NatsTls),
            Store::Jetstream => Some(System::Nats),
            Store::RedisStreamTls => Some(System::RedisTls),
            Store::RedisStream => Some(System::Redis),
            _ => None,
        }
    }
}

/// What is run.
#[derive(Clone, Debug, clap::Args)]
pub struct DurableArgs {
    /// Who, in the order of their turns; ratios are other / first.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Store::value_variants().to_vec())]
    pub systems: Vec<Store>,
    /// Folder below which every system gets its data folder: on the disk that matters, not in memory.
    #[arg(long, default_value = ".felix-bench")]
    pub data: PathBuf,
    /// Records per second with one in flight.
    #[arg(long, default_value_t = 200)]
    pub rate: u64,
    /// Records in flight for throughput.
    #[arg(long, default_value_t = 64)]
    pub in_flight: u64,
    /// How Felix waits; `--wait` is not read.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "hybrid")]
    pub waits: Vec<Wait>,
    /// NATS server, 2.10 or later (`scripts/setup.sh durable` installs one).
    #[arg(long, default_value = "nats-server")]
    pub nats: PathBuf,
}

/// What one run gave: one line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DurableRow {
    /// Who.
    pub system: String,
    /// How Felix waits; peers sleep in the kernel.
    pub wait: String,
    /// Records per second offered; None: as many as the window lets through.
    pub rate: Option<u64>,
    /// Records in flight at most.
    pub in_flight: u64,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Microseconds from the intended send time to the ack.
    pub p50_us: f64,
    /// Microseconds.
    pub p99_us: f64,
    /// Microseconds.
    pub p999_us: f64,
    /// Microseconds.
    pub max_us: f64,
    /// Records acknowledged.
    pub acked: u64,
    /// Records acknowledged per second.
    pub acks_per_s: f64,
    /// CPU time of the server per ack.
    pub cpu_ns_per_ack: f64,
    /// The client's share of its CPU.
    pub client_busy_percent: f64,
    /// Taken by the hypervisor.
    pub steal_percent: f64,
    /// CPU time that neither server nor client used, percent of all CPUs.
    pub others_percent: f64,
    /// Memory of the server at the end.
    pub server_rss_mib: f64,
    /// Settings of the server.
    pub settings: String,
}

impl DurableRow {
    fn is_void(&self) -> bool {
        self.steal_percent > STEAL_MAX_PERCENT
    }

    fn line(&self) -> String {
        let void = if self.is_void() { "  VOID (steal)" } else { "" };
        format!(
            "{:<18} {:<7} {:>10} p50 {:>8.1} p99 {:>8.1} p99.9 {:>8.1} us  {:>8.0} acks/s  {:>7.0} ns/ack  client {:>3.0} %  \
             others {:.0} %  steal {:.1} %{void}",
            self.system,
            self.wait,
            self.load_name(),
            self.p50_us,
            self.p99_us,
            self.p999_us,
            self.acks_per_s,
            self.cpu_ns_per_ack,
            self.client_busy_percent,
            self.others_percent,
            self.steal_percent,
        )
    }

    fn load_name(&self) -> String {
        match self.rate {
            Some(rate) => format!("{rate}/s x{}", self.in_flight),
            None => format!("max x{}", self.in_flight),
        }
    }
}

/// What a system gave over all rounds: one line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DurableSummary {
    /// Facts of the last run.
    pub last: DurableRow,
    /// Rounds that counted.
    pub rounds: usize,
    /// Microseconds.
    pub p50_us: Spread,
    /// Microseconds.
    pub p99_us: Spread,
    /// Microseconds.
    pub p999_us: Spread,
    /// Acks per second.
    pub acks_per_s: Spread,
    /// CPU of the server per ack, ns.
    pub cost_ns: Spread,
    /// This one / the first, round by round; None: no round of both counted.
    pub ratio_p50: Option<Spread>,
    /// As above.
    pub ratio_p99: Option<Spread>,
    /// As above: above 1 this one is faster.
    pub ratio_rate: Option<Spread>,
    /// Others used the machine, the same thing differed too much, or too few rounds counted.
    pub void: bool,
}

/// One that runs in turn.
#[derive(Clone, Copy)]
struct Entrant {
    store: Store,
    wait: Wait,
}

/// What all do.
#[derive(Clone, Copy)]
struct Task {
    load: AckLoad,
    length: Duration,
    value_bytes: usize,
}

/// Measures and prints.
pub fn run(common: &Common, args: &DurableArgs) -> Result<(), Error> {
    if args.rate == 0 || args.in_flight == 0 || args.systems.is_empty() || args.waits.is_empty() {
        return Err("`durable` needs a rate, a window, a system and a way to wait".into());
    }
    pin(CLIENT_CPU)?;
    let data = on_a_disk(&args.data)?;
    let entrants: Vec<Entrant> = args
        .systems
        .iter()
        .flat_map(|store| {
            let waits = if store.durability().is_some() { &args.waits[..] } else { &args.waits[..1] };
            waits.iter().map(|wait| Entrant { store: *store, wait: *wait })
        })
        .collect();
    let loads = [
        // One at a time, with a disk that rests in between, and without a pause; then as many as go.
        AckLoad::Rate { per_second: args.rate },
        AckLoad::Window { records: 1 },
        AckLoad::Window { records: args.in_flight },
    ];
    let mut report = Report::of(common, entrants.len() * common.runs * loads.len())?;
    let mut machine = crate::ground::machine();
    machine["nats"] = crate::ground::version(&args.nats.to_string_lossy(), "--version").into();
    report.json("machine", &machine)?;
    let keeper = certificates(common)?;
    let length = Duration::from_secs(common.seconds).max(Duration::from_millis(500));
    for load in loads {
        let task = Task { load, length, value_bytes: common.value_bytes };
        let mut rows: Vec<Vec<Option<DurableRow>>> = vec![Vec::new(); entrants.len()];
        for _ in 0..common.runs {
            for (entrant, rows) in entrants.iter().zip(&mut rows) {
                rows.push(one(common, args, &data, entrant, &task, &keeper.target.pki, &mut report)?);
            }
        }
        let summaries: Vec<DurableSummary> = rows.iter().filter_map(|each| summarise(&rows[0], each)).collect();
        report.say(&table(&summaries));
        summaries.iter().try_for_each(|summary| report.json("durable-summary", summary))?;
    }
    Ok(())
}

/// The folder, made; an error if it lies in memory.
pub fn on_a_disk(data: &Path) -> Result<PathBuf, Error> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    std::fs::create_dir_all(data)?;
    let data = data.canonicalize()?;
    let name = std::ffi::CString::new(data.as_os_str().as_bytes())?;
    // SAFETY: a plain struct for which zeros are a value; both live through the call.
    let (result, facts) = unsafe {
        let mut facts: libc::statfs = std::mem::zeroed();
        (libc::statfs(name.as_ptr(), &raw mut facts), facts)
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    match facts.f_type == TMPFS_MAGIC {
        true => {
            Err(format!("{} lies in memory (tmpfs): a sync costs nothing there; choose another --data", data.display())
                .into())
        }
        false => Ok(data),
    }
}

fn one(
    common: &Common,
    args: &DurableArgs,
    data: &Path,
    entrant: &Entrant,
    task: &Task,
    pki: &Path,
    report: &mut Report,
) -> Result<Option<DurableRow>, Error> {
    let mut row = None;
    for _ in 0..=RETRIES {
        let made = match entrant.store {
            Store::DiskFloor => floor(data, task),
            _ => served(common, args, data, entrant, task, pki),
        };
        let made = made.map_err(|error| format!("{}: {error}", entrant.store.name()))?;
        report.say(&made.line());
        report.json("durable", &made)?;
        if !made.is_void() {
            row = Some(made);
            break;
        }
    }
    report.done();
    Ok(row)
}

fn floor(data: &Path, task: &Task) -> Result<DurableRow, Error> {
    let (records, pace) = match task.load {
        AckLoad::Rate { per_second } => (1, Some(Duration::from_secs(1) / per_second as u32)),
        AckLoad::Window { records } => (records as usize, None),
    };
    // One record fits a block; many are written together, as a group commit at its best does.
    let bytes = (records * (task.value_bytes + RECORD_OVERHEAD_BYTES)).next_multiple_of(disk::BLOCK);
    let count = FLOOR_WRITES_MAX.min(FLOOR_BYTES_MAX / bytes);
    let ticks = Ticks::now();
    let cpu = cpu_ns(std::process::id())?;
    let times = disk::write_and_sync(data, bytes, count, task.length, pace)?;
    let ours = cpu_ns(std::process::id())? - cpu;
    let (after, syncs) = (Ticks::now(), times.both.len().max(1) as u64);
    let us = |q| quantile(&times.both, q) as f64 / 1e3;
    let seconds = times.both.iter().sum::<u64>() as f64 / 1e9;
    let acked = syncs * records as u64;
    Ok(DurableRow {
        system: Store::DiskFloor.name(),
        wait: "-".into(),
        rate: match task.load {
            AckLoad::Rate { per_second } => Some(per_second),
            AckLoad::Window { .. } => None,
        },
        in_flight: records as u64,
        value_bytes: task.value_bytes,
        p50_us: us(0.5),
        p99_us: us(0.99),
        p999_us: us(0.999),
        max_us: us(1.0),
        acked,
        acks_per_s: acked as f64 / seconds.max(1e-9),
        cpu_ns_per_ack: ours as f64 / acked as f64,
        client_busy_percent: 0.0,
        steal_percent: after.steal_percent(ticks),
        others_percent: after.others_percent(ticks, ours),
        server_rss_mib: 0.0,
        settings: format!("{bytes} B O_DIRECT write, fdatasync, one after the other"),
    })
}

/// A durable stream of Felix as a measurement makes it.
pub fn spec(durability: Durability) -> StreamSpec {
    let durable = StreamSpec { durability, retention_bytes: RETENTION_BYTES, ..StreamSpec::default() };
    if durability == Durability::Ephemeral { StreamSpec::default() } else { durable }
}

fn connect(store: Store, server: &Server, task: &Task, udp_payload: usize) -> Result<Box<dyn Party>, Error> {
    let target = &server.target;
    if let Some(durability) = store.durability() {
        let mut connector = lean::connector(target, udp_payload)?;
        let terms = Terms { stream: STREAM, spec: spec(durability), acks: true, start: Start::Latest };
        let mut buffer = vec![0; 65_536];
        let role = Role::Publisher;
        return Ok(Box::new(QuicParty::connect_to(
            target,
            &mut connector,
            role,
            &terms,
            task.value_bytes,
            &mut buffer,
        )?));
    }
    let tls = if target.system.is_encrypted() { Some(Tls::load(&target.pki)?) } else { None };
    let (addr, role) = (target.addr, Role::Publisher);
    Ok(match store {
        Store::JetstreamTls | Store::Jetstream => {
            Box::new(TcpParty::connect(JetStream, addr, tls.as_ref(), role, task.value_bytes)?)
        }
        _ => Box::new(TcpParty::connect(RedisStream, addr, tls.as_ref(), role, task.value_bytes)?),
    })
}

fn served(
    common: &Common,
    args: &DurableArgs,
    data: &Path,
    entrant: &Entrant,
    task: &Task,
    pki: &Path,
) -> Result<DurableRow, Error> {
    let server = match entrant.store.peer() {
        Some(system) => Server::durable_peer(system, &args.nats, pki, data)?,
        None => Server::broker_in(&Common { wait: entrant.wait, ..common.clone() }, data)?,
    };
    let mut party = connect(entrant.store, &server, task, common.udp_payload)?;
    drive(&mut *party, task.load, WARM_UP)?;
    let (cpu, client, ticks) = (cpu_ns(server.pid())?, cpu_ns(std::process::id())?, Ticks::now());
    let tally = drive(&mut *party, task.load, task.length)?;
    let (cpu, client) = (cpu_ns(server.pid())? - cpu, cpu_ns(std::process::id())? - client);
    let after = Ticks::now();
    let AckTally { latency, acked, wall_ns, busy_ns } = &tally;
    let us = |q: f64| latency.value_at_quantile(q) as f64 / 1e3;
    let (rate, in_flight) = match task.load {
        AckLoad::Rate { per_second } => (Some(per_second), 1),
        AckLoad::Window { records } => (None, records),
    };
    Ok(DurableRow {
        system: entrant.store.name(),
        wait: if entrant.store.durability().is_some() { entrant.wait.name().into() } else { "-".into() },
        rate,
        in_flight,
        value_bytes: task.value_bytes,
        p50_us: us(0.5),
        p99_us: us(0.99),
        p999_us: us(0.999),
        max_us: latency.max() as f64 / 1e3,
        acked: *acked,
        acks_per_s: *acked as f64 / (*wall_ns as f64 / 1e9).max(1e-9),
        cpu_ns_per_ack: cpu as f64 / (*acked).max(1) as f64,
        client_busy_percent: *busy_ns as f64 / (*wall_ns).max(1) as f64 * 100.0,
        steal_percent: after.steal_percent(ticks),
        others_percent: after.others_percent(ticks, cpu + client),
        server_rss_mib: rss_bytes(server.pid())? as f64 / f64::from(1 << 20),
        settings: server.settings.clone(),
    })
}

/// `None` if no round of it counted.
pub fn summarise(first: &[Option<DurableRow>], rows: &[Option<DurableRow>]) -> Option<DurableSummary> {
    let counted: Vec<&DurableRow> = rows.iter().flatten().collect();
    let of = |what: fn(&DurableRow) -> f64| Spread::of(&counted.iter().map(|row| what(row)).collect::<Vec<_>>());
    let ratio = |what: fn(&DurableRow) -> f64| {
        let pairs = first.iter().zip(rows).filter_map(|(a, b)| Some((a.as_ref()?, b.as_ref()?)));
        let ratios: Vec<f64> = pairs.map(|(a, b)| what(b) / what(a)).collect();
        (!ratios.is_empty()).then(|| Spread::of(&ratios))
    };
    let last = (*counted.last()?).clone();
    let crowded = counted.iter().filter(|row| row.others_percent > OTHERS_MAX_PERCENT).count();
    let judged = if last.rate.is_some() { of(|row| row.p50_us) } else { of(|row| row.acks_per_s) };
    Some(DurableSummary {
        rounds: counted.len(),
        p50_us: of(|row| row.p50_us),
        p99_us: of(|row| row.p99_us),
        p999_us: of(|row| row.p999_us),
        acks_per_s: of(|row| row.acks_per_s),
        cost_ns: of(|row| row.cpu_ns_per_ack),
        ratio_p50: ratio(|row| row.p50_us),
        ratio_p99: ratio(|row| row.p99_us),
        ratio_rate: ratio(|row| row.acks_per_s),
        void: crowded * 2 > counted.len() || counted.len() * 2 <= rows.len() || judged.percent() > SPREAD_MAX_PERCENT,
        last,
    })
}

/// `0.53 [0.50..0.61]`, or nothing to compare with.
pub fn maybe_ratio(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "-".to_string(), ratio)
}

fn table(summaries: &[DurableSummary]) -> String {
    let Some(first) = summaries.first() else { return "every run was void".to_string() };
    // The floor has no rate of its own: what the others did stands in the heading.
    let last = &summaries.last().unwrap_or(first).last;
    let mut out = format!(
        "\n{} B, {}, medians of {} rounds; ratio = this / first in turn ({} here) [min..max]\n{:<18} {:<7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7}  {:<20} {:<20} {:<20}\n",
        last.value_bytes,
        last.load_name(),
        first.rounds,
        first.last.system,
        "",
        "wait",
        "p50 us",
        "p99 us",
        "p99.9",
        "acks/s",
        "ns/ack",
        "spread",
        "p50",
        "p99",
        "acks/s"
    );
    for it in summaries {
        let spread = if it.last.rate.is_some() { it.p50_us } else { it.acks_per_s };
        out += &format!(
            "{:<18} {:<7} {:>9.1} {:>9.1} {:>9.1} {:>9.0} {:>9.0} {:>6.1}%  {:<20} {:<20} {:<20}{}\n",
            it.last.system,
            it.last.wait,
            it.p50_us.median,
            it.p99_us.median,
            it.p999_us.median,
            it.acks_per_s.median,
            it.cost_ns.median,
            spread.percent(),
            maybe_ratio(it.ratio_p50),
            maybe_ratio(it.ratio_p99),
            maybe_ratio(it.ratio_rate),
            if it.void { " VOID" } else { "" },
        );
    }
    out
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A row as any other.
    pub fn row(p50_us: f64, steal_percent: f64) -> DurableRow {
        DurableRow {
            system: "x".into(),
            wait: "-".into(),
            rate: Some(200),
            in_flight: 1,
            value_bytes: 1_024,
            p50_us,
            p99_us: p50_us * 2.0,
            p999_us: p50_us * 3.0,
            max_us: p50_us * 4.0,
            acked: 100,
            acks_per_s: 1e6 / p50_us,
            cpu_ns_per_ack: 1.0,
            client_busy_percent: 1.0,
            steal_percent,
            others_percent: 0.0,
            server_rss_mib: 1.0,
            settings: String::new(),
        }
    }

    #[test]
    fn ratios_are_made_per_round_and_void_rounds_do_not_count() {
        let first = [Some(row(100.0, 0.0)), Some(row(200.0, 0.0)), Some(row(100.0, 0.0))];
        let other = [Some(row(110.0, 0.0)), None, Some(row(112.0, 0.0))];
        let summary = summarise(&first, &other).unwrap();
        assert_eq!((summary.rounds, summary.void), (2, false));
        let p50 = summary.ratio_p50.unwrap();
        assert!((p50.min - 1.1).abs() < 1e-9 && (p50.max - 1.12).abs() < 1e-9);
        assert!(summarise(&[None, None, None], &other).unwrap().ratio_p50.is_none(), "nothing to compare with");
        assert!(summarise(&first, &[None, None, None]).is_none());
        let wild = summarise(&first, &first).unwrap();
        assert!(wild.void && wild.ratio_p50.unwrap().median == 1.0, "it differs by more than 10 % from itself");
        assert!(row(1.0, 3.0).is_void());
        let lines = table(&[summary]);
        assert!(lines.contains("1.11 [1.10..1.12]"), "{lines}");
    }

    #[test]
    fn memory_is_no_disk() {
        if Path::new("/dev/shm").is_dir() {
            let folder = Path::new("/dev/shm").join(format!("felix-bench-{}", std::process::id()));
            let error = on_a_disk(&folder).unwrap_err().to_string();
            std::fs::remove_dir(&folder).unwrap();
            assert!(error.contains("tmpfs"), "{error}");
        }
    }
}
