//! **What**: start and stop order of a broker.
//!
//! ```text
//! self-check -> data folder (lock, identity, session number) -> certificates -> sockets (all, in order) -> recovery
//!   -> mesh -> metadata (opened, table put into the rings) -> cores -> context.toml -> control thread: ready
//! stop: control thread ends, metadata closed -> cores end -> disk helper ends -> sockets close
//! ```
//!
//! **Invariants**: every failure before "ready" names what was wrong and what to do, and leaves nothing half made.
//! The session number is on disk before it is used, so that ids made from it are never given twice.
//!
//! **Never**: a default that is unsafe in production hidden here: this is `dev`.
//!
//! **See**: `core_loop.rs`, `control_thread.rs`.

use crate::admission::Admission;
use crate::config::DevArgs;
use crate::control_thread::{ControlSettings, ControlThread};
use crate::core::{Core, CoreConfig, Identity};
use crate::core_loop::{Clock, CoreLoop};
use crate::data_folder::{DataFolder, DataFolderError};
use crate::dev::{DevPki, write_context};
use crate::http::HttpState;
use crate::io::bind::{SocketBuffers, SocketGroup};
use crate::io::disk::{self, DiskSeat};
use crate::io::executor::{CoreSpec, spawn_core};
use crate::io::mesh::{Mesh, MeshLimits};
use crate::keyring_file::KeyringFile;
use crate::message::MeshMessage;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::self_check;
use crate::space::{Reserve, SpaceKeeper};
use crate::tls_files::TlsFiles;
use felix_control::authorise::Roles;
use felix_protocol::ids::{CoreId, ShardId};
use felix_protocol::time::Timestamp;
use felix_quic::{CoreSlot, Endpoint, EndpointConfig, EndpointSecrets, RetryPolicy, TransportConfig};
use felix_shard::recovery::{self, OnDamage, RecoveryError, RecoveryReport};
use felix_shard::store::{Store, StoreSettings};
use felix_wal::log::Maker;
use ring::rand::SecureRandom;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Slots of a mesh ring that requests may fill; answers have as many again.
const MESH_RING: usize = 1_024;
/// With less room than this the metadata are not opened before the reserve is given up: their log would fail.
const START_BYTES: u64 = 8 << 20;
/// Open files besides sockets without which nothing works.
const DATA_FILES: u64 = 64;

/// A start or run that failed: a sentence that says what was wrong and what to do.
pub type BootError = Box<dyn std::error::Error + Send + Sync>;

/// Checks the machine and prints findings; an error if one is fatal.
pub fn check_machine(cores: usize, cpus: Option<&[usize]>, buffers: &SocketBuffers) -> Result<Vec<usize>, BootError> {
    let wanted = self_check::Wanted {
        cores,
        cpus: cpus.map(<[usize]>::to_vec),
        receive_bytes: buffers.receive_bytes as u64,
        send_bytes: buffers.send_bytes as u64,
        data_files: DATA_FILES,
    };
    let (facts, findings) = self_check::run(&wanted)?;
    report(&findings)?;
    Ok(facts.cpus)
}

fn report(findings: &[self_check::Finding]) -> Result<(), BootError> {
    for finding in findings {
        if finding.is_fatal() {
            return Err(finding.to_string().into());
        }
        crate::log::warn("self-check", &[("finding", &finding.to_string())]);
    }
    Ok(())
}

/// Cores to run if the user did not say.
pub fn default_cores() -> u8 {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(64) as u8)
}

fn transport(args: &DevArgs, admission: &Admission) -> TransportConfig {
    TransportConfig {
        streams_bidi_max: u64::from(admission.channels_max) + 1,
        streams_uni_max: 0,
        max_udp_payload_bytes: args.udp_payload_max,
        ..TransportConfig::default()
    }
}

/// Runs `felix-broker dev` until it is told to stop.
pub fn run_dev(args: &DevArgs) -> Result<(), BootError> {
    let started = Instant::now();
    let cores = args.cores.unwrap_or_else(default_cores);
    let buffers = SocketBuffers { steering: !args.no_steering, ..SocketBuffers::default() };
    let allowed = check_machine(cores.into(), args.cpus.as_deref(), &buffers)?;
    let cpus: Vec<Option<usize>> = match &args.cpus {
        Some(list) if list.len() == usize::from(cores) => list.iter().copied().map(Some).collect(),
        Some(list) => return Err(format!("--cpus names {} CPU(s) for {cores} core(s)", list.len()).into()),
        None if allowed.len() >= usize::from(cores) => allowed.iter().copied().map(Some).take(cores.into()).collect(),
        None => vec![None; cores.into()],
    };
    if !args.http.ip().is_loopback() {
        crate::log::warn(
            "the HTTP door has no authentication and is not on loopback",
            &[("http", &args.http.to_string())],
        );
    }

    let mut data = open_data(&args.data)?;
    // Behind its lock: no other broker tries the same file.
    report(&self_check::data_folder(data.path()))?;
    let pki = DevPki::ensure(data.path(), args.listen, SystemTime::now())?;
    let mut tls_files = TlsFiles::new(pki.server_cert.clone(), pki.server_key.clone(), pki.ca.clone());
    let tls = tls_files.reload()?.ok_or("the certificates were read twice")?;
    let mut sockets = SocketGroup::bind(args.listen, cores, &std::env::temp_dir().join("felix-locks"), buffers)?;
    let listen = sockets.local_addr();
    // Bound here so that a taken port ends the start before any thread runs.
    let http = std::net::TcpListener::bind(args.http)
        .map_err(|error| format!("cannot listen on {} for HTTP: {error}; choose another --http", args.http))?;
    http.set_nonblocking(true)?;
    let http_addr = http.local_addr()?;

    let admission = Admission::default();
    let endpoint_config = EndpointConfig {
        transport: transport(args, &admission),
        connections_max: args.connections_max,
        connections_per_source_max: args.connections_max,
        retry: RetryPolicy::AboveHandshakes(args.retry_above),
        ..EndpointConfig::default()
    };
    let identity = Identity {
        cluster: data.identity().cluster,
        node: data.identity().node,
        session: data.session(),
        region: data.identity().region.to_string(),
    };
    let maker = Maker { identity: *data.identity(), session: data.session() };
    // Three seats more than cores: what earlier starts left is brought into order before any core runs, the disk may be full,
    // and what waits for a shard's files is looked at when the metadata are there.
    let (disk_helper, mut seats) = disk::start(data.path(), usize::from(cores) + 3)?;
    let last_seat = seats.pop().ok_or("no seat for what recovery left")?;
    let reserve = Reserve::new(data.path());
    let mut recovered = recover_storage(seats.split_off(cores.into()), maker, args, &reserve)?;
    if crate::io::sys::space(data.path()).is_ok_and(|space| space.available < START_BYTES) {
        give_up_reserve(&reserve)?;
    }
    let started_seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let metrics = Arc::new(Metrics::new(cores.into(), env!("CARGO_PKG_VERSION"), started_seconds));
    let limits = MeshLimits { capacity: MESH_RING, reserved: 0 };
    let mut ports = Mesh::<MeshMessage>::ports(usize::from(cores) + 1, limits);
    let control_port = ports.pop().ok_or("the mesh has no member for control")?;
    let roles = Arc::new(Roles::default());

    // The metadata before the cores: a client that comes back at once must not be told that its stream is unknown.
    let readiness = Arc::new(Readiness::default());
    let settings = ControlSettings {
        cores,
        identity: felix_control::node::Identity { cluster: identity.cluster, node: identity.node },
        session: data.session(),
        folder: data.control(),
        raise_floors: data.had_metadata_in_memory(),
        durable_streams: true,
        drain: Duration::from_millis(args.drain_ms),
        tls: tls_files,
        space: SpaceKeeper::new(data.path(), cores, metrics.clone()),
        data: data.path().to_path_buf(),
        keyring: KeyringFile::new(data.path(), args.keyring.as_deref(), data.identity().region),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let control = runtime.block_on(ControlThread::open(settings, control_port, readiness.clone()))?;
    set_aside(last_seat, maker, &mut recovered, &control.made_shards())?;
    data.finish()?;

    let mut joins = Vec::new();
    let core_cpus: Vec<usize> = cpus.iter().copied().flatten().collect();
    for (index, ((socket, port), seat)) in sockets.take_sockets().into_iter().zip(ports).zip(seats).enumerate() {
        let slot = CoreSlot { index: index as u8, count: cores };
        let secrets = EndpointSecrets::from_seed(&data.secrets().reset_key);
        let endpoint = Endpoint::new(endpoint_config.clone(), &tls, slot, secrets, started)
            .map_err(|error| format!("core {index} cannot make its QUIC endpoint: {error}"))?;
        let config = CoreConfig {
            me: CoreId(index as u8),
            core_count: cores,
            identity: identity.clone(),
            admission,
            shard_limits: felix_shard::limits::Limits::default(),
            roles: roles.clone(),
        };
        let spec =
            CoreSpec { index, cpu: cpus[index], wait: args.wait.into(), spin: Duration::from_micros(args.spin_us) };
        let block = metrics.core(index);
        let places = cpus[index].map(|own| disk::thread_places(args.wait.into(), own, &core_cpus, &allowed));
        let settings = StoreSettings { sweeps: index == 0, ..StoreSettings::default() };
        let mut store = Store::new(settings, maker, CoreId(index as u8), salt()?);
        store.set_after_crash(!recovered.was_clean);
        let join = spawn_core(spec, move |handle| async move {
            let mut core = Core::new(config);
            core.set_store(store);
            let disk = seat.open(places.unwrap_or_default())?;
            CoreLoop::new(core, endpoint, socket, port, disk, Clock::new(started), block).run(handle).await
        })?;
        joins.push(join);
    }

    write_context(&data.path().join("context.toml"), listen, &pki)?;
    greet(data.path(), listen, http_addr, cores, args);

    let (render, ready) = (metrics.clone(), readiness.clone());
    let state =
        Arc::new(HttpState { render: Box::new(move |out| render.render(out)), ready: Box::new(move || ready.check()) });
    runtime.block_on(async move {
        let http = tokio::net::TcpListener::from_std(http)?;
        control.run(http, state).await
    })?;
    for join in joins {
        join.join()??;
    }
    disk_helper.join();
    drop(sockets);
    crate::log::info("stopped", &[]);
    Ok(())
}

/// Random bits that seed the checksums of a write-ahead log.
fn salt() -> Result<u128, BootError> {
    let mut bytes = [0; 16];
    ring::rand::SystemRandom::new().fill(&mut bytes).map_err(|_| "the system gives no random bytes")?;
    Ok(u128::from_le_bytes(bytes))
}

/// Opens the data folder; with a full disk once more without the reserve.
fn open_data(path: &Path) -> Result<DataFolder, BootError> {
    match DataFolder::open(path) {
        Err(DataFolderError::File(error)) if error.source.kind() == std::io::ErrorKind::StorageFull => {
            // Only who held the lock came as far as writing.
            match give_up_reserve(&Reserve::new(path))? {
                true => Ok(DataFolder::open(path)?),
                false => Err(error.into()),
            }
        }
        opened => Ok(opened?),
    }
}

/// True: there was one.
fn give_up_reserve(reserve: &Reserve) -> Result<bool, BootError> {
    let was_there = reserve.give_up().map_err(|error| format!("the disk is full, and the reserve stays: {error}"))?;
    if was_there {
        crate::log::warn("the disk is full: the reserve is used for this start; free some space", &[]);
    }
    Ok(was_there)
}

/// Brings what the write-ahead logs of earlier starts hold into segments. One seat per try.
fn recover_storage(
    seats: Vec<DiskSeat>,
    maker: Maker,
    args: &DevArgs,
    reserve: &Reserve,
) -> Result<RecoveryReport, BootError> {
    let mut seats = seats.into_iter();
    let mut next = || seats.next().ok_or("no seat for recovery");
    let report = match try_recovery(next()?, maker, args)? {
        Err(error) if error.is_full() && give_up_reserve(reserve)? => try_recovery(next()?, maker, args)??,
        result => result?,
    };
    for lost in &report.accepted {
        crate::log::error("acknowledged data was lost, as was accepted", &[("what", lost)]);
    }
    Ok(report)
}

/// The outer error: no disk.
fn try_recovery(
    seat: DiskSeat,
    maker: Maker,
    args: &DevArgs,
) -> Result<Result<RecoveryReport, RecoveryError>, BootError> {
    let began = Instant::now();
    let mut port = seat.open(disk::Places::default())?;
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let on_damage = if args.accept_wal_loss { OnDamage::AcceptLoss } else { OnDamage::Refuse };
    let mut told = Instant::now();
    let mut progress = |it: felix_wal::recover::Progress| {
        if told.elapsed() >= Duration::from_secs(1) {
            told = Instant::now();
            let percent = it.done * 100 / it.total.max(1);
            crate::log::info("recovering", &[("percent", &percent.to_string()), ("bytes", &it.total.to_string())]);
        }
    };
    let settings = StoreSettings::default().log;
    let result = recovery::recover(&mut port, maker, settings, Timestamp(wall), on_damage, &mut progress);
    if let Ok(report) = &result
        && report.wals > 0
    {
        crate::log::info(
            "recovered",
            &[
                ("batches", &report.batches.to_string()),
                ("bytes", &report.bytes.to_string()),
                ("shards", &report.shards.to_string()),
                ("milliseconds", &began.elapsed().as_millis().to_string()),
            ],
        );
    }
    Ok(result)
}

/// What recovery left because of shards without files: kept where it is while the metadata say that files were made, since
/// then somebody took them and may put them back.
fn set_aside(
    seat: DiskSeat,
    maker: Maker,
    report: &mut RecoveryReport,
    made: &BTreeSet<ShardId>,
) -> Result<(), BootError> {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    if !report.waiting.is_empty() {
        let mut port = seat.open(disk::Places::default())?;
        recovery::set_aside(&mut port, maker, Timestamp(wall), report, |shard| made.contains(&shard))?;
    }
    for (shard, entries) in &report.orphans {
        let waits = report.waiting.iter().any(|(_, shards)| shards.contains(shard));
        let what = if waits {
            "the write-ahead log holds data of a shard whose files were taken away; it is kept until they are put back or \
             the stream is deleted"
        } else {
            "the write-ahead log holds data of a shard that has no files here; it is kept in quarantine"
        };
        crate::log::error(what, &[("shard", &shard.to_string()), ("entries", &entries.to_string())]);
    }
    Ok(())
}

/// Three lines for a newcomer on stdout, facts for the log on stderr.
fn greet(data: &Path, listen: SocketAddr, http: SocketAddr, cores: u8, args: &DevArgs) {
    let context = data.join("context.toml");
    crate::log::info(
        "ready",
        &[
            ("listen", &listen.to_string()),
            ("http", &http.to_string()),
            ("cores", &cores.to_string()),
            ("wait", &format!("{:?}", args.wait).to_lowercase()),
            ("context", &context.display().to_string()),
        ],
    );
    println!("export FELIX_CONTEXT={}", context.display());
    println!("felix stream create acme/md/quotes --shards 2 --ephemeral");
    println!("felix sub acme/md/quotes --from earliest");
}
