//! **What**: the control thread beside the cores: metadata, the watch that feeds the cores, counters for `top` and
//! `describe`, signals, certificate reload, drain, and the HTTP door. One tokio runtime, one thread.
//!
//! ```text
//! ToControl (admin, stats, reports, producers) -> ControlNode / StatsBook -> FromControl (replies, changes, blocks)
//! a write: proposal, polled beside the mail -> on disk, applied -> changes to every core -> its reply
//! a write that makes the first sealed stream of a tenant: alone -> a data key, on disk, to every core -> proposal
//! shards whose files are there (reports) -> ShardsMade, as many at once as a command holds, one command at a time
//! SIGTERM, SIGINT -> Drain -> cores empty or time over -> Stop    SIGHUP, changed files -> ReloadTls; SIGHUP -> Keys
//! ```
//!
//! **Invariants**: every core hears of a change before the client that asked for it hears of its success, so that a
//! stream can be used as soon as its creation is answered; what was answered survives any crash. What a core's ring
//! cannot take waits here, in order. Reads are answered at once from what is applied, also when the disk failed.
//!
//! **Never**: anything a publish or a delivery waits for; a second proposal for one that failed.
//!
//! **See**: `stats_book.rs`, `node_keys.rs`, `felix_control::node`, `boot.rs` (who starts this).

use crate::http::{HttpState, serve};
use crate::io::mesh::MeshPort;
use crate::keyring_file::{KeyringFile, KeyringFileError};
use crate::message::{FromControl, MeshMessage, ToControl};
use crate::node_keys::NodeKeys;
use crate::readiness::Readiness;
use crate::space::SpaceKeeper;
use crate::stats_book::StatsBook;
use crate::tls_files::TlsFiles;
use felix_control::authorise::Principal;
use felix_control::command::Internal;
use felix_control::limits::{PROPOSALS_MAX, SHARDS_MADE_MAX};
use felix_control::node::{ControlNode, Identity, NodeSettings, ProposeError};
use felix_control::replica::Watch;
use felix_control::state::{Applied, ProducerBlock, State};
use felix_control::watch::{Change, PlacedStream};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::ids::{CoreId, NodeSession, ShardId};
use felix_protocol::limits::CORES_MAX;
use felix_protocol::metadata::{Command, Reply};
use felix_protocol::position::Lineage;
use felix_protocol::time::Timestamp;
use felix_shard::event::ConnKey;
use std::collections::{BTreeSet, VecDeque};
use std::future::poll_fn;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinError, JoinSet};

/// Producer ids a core gets at once.
const PRODUCER_BLOCK: u32 = 65_536;
/// How often certificate files are looked at, and waiting messages are tried again at the latest.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// How often the disk's room is looked at.
const SPACE_LOOK: Duration = Duration::from_secs(1);
/// How often a full ring is tried again.
const RETRY: Duration = Duration::from_millis(1);
/// Messages handled before other work gets its share.
const MAIL_BUDGET: usize = 1_024;

/// Writes of clients that may wait for their commit. The rest of what the metadata take at once is for the cores, each
/// of which asks for one block of producer ids at a time, and for the made shards.
const WRITES_MAX: usize = PROPOSALS_MAX - CORES_MAX as usize - 1;

/// Longest a question for numbers waits for the cores; then it is answered with what is known.
const FRESH: Duration = Duration::from_millis(200);

/// After metadata that took no note of made shards: when they are told again.
const MADE_RETRY: Duration = Duration::from_millis(100);

/// Between two questions for the shards that a start still opens.
const OPENING: Duration = Duration::from_millis(10);

/// A question that waits until every core told its newest numbers.
struct Question {
    ticket: u64,
    asked: Instant,
    core: usize,
    message: ToControl,
}

/// What the control thread is made of.
pub struct ControlSettings {
    /// Cores of the broker.
    pub cores: u8,
    /// This node and its cluster.
    pub identity: Identity,
    /// This start of it.
    pub session: NodeSession,
    /// Folder of the metadata.
    pub folder: PathBuf,
    /// Earlier starts gave ids that the metadata do not know (`DataFolder::had_metadata_in_memory`).
    pub raise_floors: bool,
    /// The shard store runs: streams on disk may be made.
    pub durable_streams: bool,
    /// Time clients get to go away.
    pub drain: Duration,
    /// Certificate files to watch.
    pub tls: TlsFiles,
    /// Looks at the disk's room.
    pub space: SpaceKeeper,
    /// The data folder, and the keyring of its sealed data.
    pub data: PathBuf,
    /// The keyring.
    pub keyring: KeyringFile,
}

/// Who waits for a proposal.
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// A client.
    Client { core: usize, conn: ConnKey, request_id: u32 },
    /// A core that needs producer ids.
    Producers { core: usize },
    /// The first so many of the made shards.
    Made { count: usize },
}

/// A write of a client.
struct Write {
    core: usize,
    conn: ConnKey,
    request_id: u32,
    principal: Arc<Principal>,
    idempotency_key: u128,
    command: Command,
}

/// Why the control thread could not begin.
pub type ControlError = Box<dyn std::error::Error + Send + Sync>;

/// The control thread's state.
pub struct ControlThread {
    settings: ControlSettings,
    node: ControlNode,
    /// Version of the metadata that every core was told; None: nothing yet.
    told: Option<u64>,
    /// Writes under way, each with who waits for it; at most `PROPOSALS_MAX`.
    proposals: JoinSet<(Origin, Result<Applied, ProposeError>)>,
    /// How many of them are clients'.
    writes: usize,
    /// Writes that wait for those under way, in order: the first may need a data key. With these at most `WRITES_MAX`.
    held: VecDeque<Write>,
    keys: NodeKeys,
    stats: StatsBook,
    port: MeshPort<MeshMessage>,
    outboxes: Vec<VecDeque<MeshMessage>>,
    connections: Vec<u32>,
    questions: VecDeque<Question>,
    /// Last ticket given, and the last each core answered.
    ticket: u64,
    answered: Vec<u64>,
    /// The ticket that was given when the drain began.
    drain_ticket: u64,
    started: Instant,
    readiness: Arc<Readiness>,
    /// The metadata stopped, and that was said.
    failed: bool,
    /// What was said of their snapshots.
    snapshot_failure: Option<String>,
    /// Durable shards that each core has not opened yet; None: it has not said since its start.
    opening: Vec<Option<u32>>,
    /// Every core opened its shards once.
    serves: bool,
    /// Made shards that the metadata are to note: at most those that exist, each once per start.
    made: VecDeque<ShardId>,
    /// A proposal for the first of them is under way.
    made_proposed: bool,
    told_opening: Instant,
}

/// What a client is told of a proposal without an outcome.
fn code_of(error: &ProposeError) -> ErrorCode {
    match error {
        ProposeError::Busy { .. } | ProposeError::NotLeader { .. } => ErrorCode::Overloaded,
        ProposeError::Stopped { .. } => ErrorCode::Internal,
    }
}

fn wall() -> Timestamp {
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64)
}

impl ControlThread {
    /// Opens the metadata, makes them those of this start, and puts the whole table and the first producer ids into the
    /// rings of the cores: a core that starts afterwards never misses a stream that exists.
    pub async fn open(
        settings: ControlSettings,
        port: MeshPort<MeshMessage>,
        readiness: Arc<Readiness>,
    ) -> Result<ControlThread, ControlError> {
        let cores = usize::from(settings.cores);
        let node_settings = NodeSettings { durable_streams: settings.durable_streams, ..NodeSettings::default() };
        let node = ControlNode::open(&settings.folder, settings.identity, node_settings).await?;
        let sealed = |it: &&PlacedStream| it.info.spec.encrypt;
        let tenant = |it: &PlacedStream| it.info.name.tenant().to_string();
        let sealed_tenants = node.read(|state| state.streams().filter(sealed).map(tenant).collect());
        // Before anything is changed: a node that cannot read its data must not serve them.
        let keys = NodeKeys::open(&settings.data, settings.keyring.clone(), &sealed_tenants)?;
        let mut control = ControlThread {
            node,
            keys,
            told: None,
            proposals: JoinSet::new(),
            writes: 0,
            held: VecDeque::new(),
            stats: StatsBook::default(),
            port,
            outboxes: (0..cores).map(|_| VecDeque::new()).collect(),
            connections: vec![0; cores],
            questions: VecDeque::new(),
            ticket: 0,
            answered: vec![0; cores],
            drain_ticket: 0,
            started: Instant::now(),
            readiness,
            failed: false,
            snapshot_failure: None,
            opening: vec![None; cores],
            serves: false,
            made: VecDeque::new(),
            made_proposed: false,
            told_opening: Instant::now(),
            settings,
        };
        let blocks = control.begin().await?;
        control.send_keys(None);
        control.tell_cores();
        control.look_at_space();
        for block in blocks {
            control.give_producers(block);
        }
        Ok(control)
    }

    /// What each start tells the metadata.
    async fn begin(&mut self) -> Result<Vec<ProducerBlock>, ControlError> {
        let ControlSettings { cores, session, identity, raise_floors, .. } = self.settings;
        if raise_floors {
            // Former starts made their ids from their session.
            let floors = Internal::RaiseFloors { ids: session.0 << 32, lineage: Lineage(session.0 as u32) };
            self.own(floors).await?;
        }
        if self.node.read(State::cores) != cores {
            self.own(Internal::SetCoreCount { cores }).await?;
        }
        self.own(Internal::StartNode { node: identity.node, session }).await.map_err(|error| {
            let folder = self.settings.folder.display();
            format!(
                "the metadata in {folder} refuse start {session} of this node: {error}; the folder is from a later \
                 time than the file session beside it: write the number of that last start into the file"
            )
        })?;
        let mut blocks = Vec::new();
        for core in 0..cores {
            let command = Internal::AllocateProducers { core: CoreId(core), count: PRODUCER_BLOCK };
            blocks.extend(self.own(command).await?.producers);
        }
        Ok(blocks)
    }

    /// Carries out what this broker itself needs before it starts.
    async fn own(&self, command: Internal) -> Result<Applied, ControlError> {
        let applied = self.node.propose_internal(wall(), command).await?;
        match applied.outcome {
            Ok(_) => Ok(applied),
            Err(refused) => Err(refused.detail.into()),
        }
    }

    fn look_at_space(&mut self) {
        if let Some((room, is_short)) = self.settings.space.look() {
            for core in 0..usize::from(self.settings.cores) {
                self.send(core, FromControl::Space { room, is_short });
            }
        }
    }

    fn give_producers(&mut self, block: ProducerBlock) {
        let message = FromControl::Producers { first: block.first.0, count: u64::from(block.count) };
        self.send(block.core.0.into(), message);
    }

    fn allocate_producers(&mut self, core: usize) {
        let command = Internal::AllocateProducers { core: CoreId(core as u8), count: PRODUCER_BLOCK };
        let proposal = self.node.propose_internal(wall(), command);
        self.proposals.spawn(async move { (Origin::Producers { core }, proposal.await) });
    }

    /// Shards whose files the metadata know to be there.
    pub fn made_shards(&self) -> BTreeSet<ShardId> {
        let made =
            |state: &State| state.streams().flat_map(|it| &it.shards).filter(|it| it.made).map(|it| it.shard).collect();
        self.node.read(made)
    }

    fn has_made_to_tell(&self) -> bool {
        !self.made.is_empty() && !self.made_proposed && !self.failed
    }

    /// One proposal at a time, so that a start with very many shards leaves room for others.
    fn propose_made(&mut self) {
        if !self.has_made_to_tell() {
            return;
        }
        self.made_proposed = true;
        let shards: Vec<ShardId> = self.made.iter().take(SHARDS_MADE_MAX).copied().collect();
        let count = shards.len();
        let proposal = self.node.propose_internal(wall(), Internal::ShardsMade { shards });
        self.proposals.spawn(async move { (Origin::Made { count }, proposal.await) });
    }

    fn on_made_noted(&mut self, count: usize, result: Result<Applied, ProposeError>) {
        self.made_proposed = false;
        match result.map(|applied| applied.outcome) {
            // Again after a pause, see `run`.
            Err(ProposeError::Busy { .. } | ProposeError::NotLeader { .. }) => return,
            Ok(Ok(_)) => {}
            // Nothing depends on it but a warning; the next start tells them again.
            Ok(Err(refused)) => crate::log::error("made shards were not noted", &[("why", &refused.detail)]),
            Err(ProposeError::Stopped { .. }) => {}
        }
        self.made.drain(..count);
        self.propose_made();
    }

    /// Tells every core what it has missed.
    fn tell_cores(&mut self) {
        // A version that never was: whoever knows nothing gets the whole table.
        match self.node.changes_since(self.told.unwrap_or(u64::MAX)) {
            Watch::Deltas(deltas) => {
                for delta in deltas {
                    self.told = Some(delta.to_version);
                    self.broadcast(delta.changes);
                }
            }
            Watch::Snapshot(table) => {
                self.told = Some(table.version);
                self.stats.on_table(&table.streams);
                let table = Arc::new(table);
                for core in 0..usize::from(self.settings.cores) {
                    self.send(core, FromControl::Table(table.clone()));
                }
            }
        }
    }

    fn broadcast(&mut self, changes: Vec<Change>) {
        // The last change has the newest version of the routing table: nothing else moves it.
        let Some(routing_version) = changes.last().map(Change::routing_version) else { return };
        changes.iter().for_each(|change| self.stats.on_change(change));
        let changes: Arc<[Change]> = changes.into();
        for core in 0..usize::from(self.settings.cores) {
            self.send(core, FromControl::Changes { routing_version, changes: changes.clone() });
        }
    }

    fn send(&mut self, core: usize, message: FromControl) {
        self.outboxes[core].push_back(MeshMessage::FromControl(Box::new(message)));
        self.flush();
    }

    /// Sends what waits; false: some still waits.
    fn flush(&mut self) -> bool {
        let mut done = true;
        for (core, outbox) in self.outboxes.iter_mut().enumerate() {
            while let Some(message) = outbox.pop_front() {
                if let Err(full) = self.port.try_send(core, message) {
                    outbox.push_front(full.0);
                    done = false;
                    break;
                }
            }
        }
        done
    }

    /// Questions for numbers are asked of the cores first, so that who has just published finds his records counted.
    fn on_message(&mut self, core: usize, message: ToControl) {
        let wants_numbers = matches!(
            &message,
            ToControl::Stats { .. } | ToControl::Admin { command: Command::DescribeStream { .. }, .. }
        );
        if !wants_numbers {
            return self.handle(core, message);
        }
        self.ticket += 1;
        let ticket = self.ticket;
        self.questions.push_back(Question { ticket, asked: Instant::now(), core, message });
        for other in 0..usize::from(self.settings.cores) {
            self.send(other, FromControl::ReportNow { ticket });
        }
    }

    /// Answers the questions that every core has reported for, or that waited long enough.
    fn answer_questions(&mut self) {
        let everyone = self.answered.iter().copied().min().unwrap_or(u64::MAX);
        while self.questions.front().is_some_and(|it| it.ticket <= everyone || it.asked.elapsed() >= FRESH) {
            if let Some(Question { core, message, .. }) = self.questions.pop_front() {
                self.handle(core, message);
            }
        }
    }

    fn handle(&mut self, core: usize, message: ToControl) {
        match message {
            ToControl::Admin { conn, request_id, principal, idempotency_key, command } => {
                self.on_admin(Write { core, conn, request_id, principal, idempotency_key, command });
            }
            ToControl::Stats { conn, request_id, after } => {
                let uptime_ms = self.started.elapsed().as_millis() as u64;
                let connections = self.connections.iter().sum();
                let stats = self.node.read(|state| self.stats.page(state, after.as_ref(), uptime_ms, connections));
                self.send(core, FromControl::StatsReply { conn, request_id, stats });
            }
            ToControl::NeedProducers => self.allocate_producers(core),
            ToControl::Report(report) => {
                self.connections[core] = report.connections;
                self.answered[core] = self.answered[core].max(report.ticket);
                if self.answered[core] > 0 {
                    self.opening[core] = Some(report.opening);
                }
                if let Some(why) = &report.storage_failure {
                    self.readiness.set_failed(format!("storage of core {core} failed: {why}"));
                }
                self.stats.take(&report);
                self.made.extend(&report.made);
                self.propose_made();
            }
        }
    }

    /// Asks the cores how many shards they still open. They get the table of streams before the question.
    fn ask_for_opening(&mut self) {
        self.ticket += 1;
        for core in 0..usize::from(self.settings.cores) {
            self.send(core, FromControl::ReportNow { ticket: self.ticket });
        }
    }

    /// Ready once every core has opened its shards.
    fn look_at_opening(&mut self) {
        let left: u32 = self.opening.iter().flatten().sum();
        if self.opening.iter().all(Option::is_some) && left == 0 {
            self.serves = true;
            self.readiness.set_ready();
            crate::log::info("serving", &[]);
        } else if self.told_opening.elapsed() >= Duration::from_secs(1) {
            self.told_opening = Instant::now();
            crate::log::info("opening shards", &[("left", &left.to_string())]);
        }
    }

    fn on_admin(&mut self, asked: Write) {
        let Write { core, conn, request_id, ref command, .. } = asked;
        if !command.is_write() {
            let result = self.node.query(command, self.stats.shard_reports());
            let result = result.map_err(|refused| (refused.code, refused.detail));
            return self.answer(core, conn, request_id, result);
        }
        if self.writes + self.held.len() >= WRITES_MAX {
            let busy = ProposeError::Busy { max: WRITES_MAX };
            return self.answer(core, conn, request_id, Err((code_of(&busy), busy.to_string())));
        }
        self.held.push_back(asked);
        self.propose_held();
    }

    /// Proposes what need not wait.
    fn propose_held(&mut self) {
        while self.held.front().is_some_and(|first| self.writes == 0 || !self.needs_key(&first.command)) {
            let Some(write) = self.held.pop_front() else { return };
            self.propose(write);
        }
    }

    fn propose(&mut self, write: Write) {
        let Write { core, conn, request_id, principal, idempotency_key, command } = write;
        if let Err(refused) = self.prepare_keys(&command) {
            return self.answer(core, conn, request_id, Err(refused));
        }
        let proposal = self.node.propose(wall(), &principal, idempotency_key, command);
        let origin = Origin::Client { core, conn, request_id };
        self.writes += 1;
        // Tasks are first polled in the order in which they were spawned, and so are the commands in the log.
        self.proposals.spawn(async move { (origin, proposal.await) });
    }

    /// Whether a command makes a stream that is sealed at rest, for a tenant without a data key. What the metadata say to
    /// it is known for sure only when no other write is under way: one of those may make its namespace, or free its name.
    fn needs_key(&self, command: &Command) -> bool {
        let Command::CreateStream { name, spec, .. } = command else { return false };
        spec.encrypt && self.settings.durable_streams && !self.keys.has(name.tenant())
    }

    /// A stream that is sealed at rest needs a data key of its tenant: on disk, and with every core, before anybody hears
    /// of the stream. None is made for what the metadata would refuse.
    fn prepare_keys(&mut self, command: &Command) -> Result<(), (ErrorCode, String)> {
        let Command::CreateStream { name, spec, create_parents } = command else { return Ok(()) };
        if !self.needs_key(command)
            || self.node.read(|state| state.may_create_stream(name, spec, *create_parents)).is_err()
        {
            return Ok(());
        }
        match self.keys.ensure(name.tenant()) {
            Ok(()) => {
                crate::log::info("a data key was made", &[("tenant", name.tenant())]);
                self.send_keys(Some(name.tenant().into()));
                Ok(())
            }
            Err(error @ KeyringFileError::Busy(_)) => Err((ErrorCode::Overloaded, error.to_string())),
            Err(error) => {
                let why = error.to_string();
                crate::log::error("no data key for a stream that is to be sealed", &[("why", &why)]);
                Err((
                    ErrorCode::StorageFailed,
                    format!("no data key could be made for tenant {}: {why}", name.tenant()),
                ))
            }
        }
    }

    fn send_keys(&mut self, tenant: Option<Arc<str>>) {
        for core in 0..usize::from(self.settings.cores) {
            self.send(core, FromControl::Keys { keyring: self.keys.ring(), tenant: tenant.clone() });
        }
    }

    fn reload_keys(&mut self) {
        match self.keys.reload() {
            Ok(changed) => {
                crate::log::info(if changed { "keyring reloaded" } else { "the keyring did not change" }, &[]);
                // Also what was read by the way when a key was made.
                self.send_keys(None);
            }
            Err(error) => {
                crate::log::error("keyring not reloaded, the old one stays", &[("why", &error.to_string())]);
            }
        }
    }

    fn answer(&mut self, core: usize, conn: ConnKey, request_id: u32, result: Result<Reply, (ErrorCode, String)>) {
        if let Err((ErrorCode::Internal, detail)) = &result {
            crate::log::error("a metadata command failed", &[("why", detail)]);
        }
        self.send(core, FromControl::AdminReply { conn, request_id, result });
    }

    /// A proposal ended: first the cores are told, then whoever asked.
    fn on_proposal(&mut self, origin: Origin, result: Result<Applied, ProposeError>) {
        self.tell_cores();
        if let Err(ProposeError::Stopped { detail }) = &result {
            self.fail(detail);
        }
        match (origin, result) {
            (Origin::Client { core, conn, request_id }, result) => {
                let result = match result {
                    Ok(applied) => applied.outcome.map_err(|refused| (refused.code, refused.detail)),
                    Err(error) => Err((code_of(&error), error.to_string())),
                };
                self.answer(core, conn, request_id, result);
                self.writes -= 1;
                self.propose_held();
            }
            (Origin::Made { count }, result) => self.on_made_noted(count, result),
            (Origin::Producers { .. }, Ok(Applied { producers: Some(block), .. })) => self.give_producers(block),
            (Origin::Producers { core }, result) => {
                let (code, detail) = match result {
                    Ok(Applied { outcome, .. }) => {
                        (ErrorCode::Internal, outcome.err().map_or_else(String::new, |refused| refused.detail))
                    }
                    Err(error) => (code_of(&error), error.to_string()),
                };
                // Metadata that stopped were told of once, and cores ask as often as clients do.
                if !self.failed {
                    crate::log::error("a core got no producer ids", &[("core", &core.to_string()), ("why", &detail)]);
                }
                self.send(core, FromControl::NoProducers { code, detail });
            }
        }
    }

    /// The metadata stopped for good: not ready any more, and the log says it once.
    fn fail(&mut self, why: &str) {
        if !self.failed {
            self.failed = true;
            crate::log::error("the metadata stopped, only reads go on: repair the disk and restart", &[("why", why)]);
            self.readiness.set_failed(format!("the metadata stopped: {why}"));
        }
    }

    fn look_at_snapshots(&mut self) {
        let failure = self.node.snapshot_failure();
        if failure == self.snapshot_failure {
            return;
        }
        match &failure {
            Some(why) => {
                let message =
                    "a snapshot of the metadata failed, or an old one stays; changes go on, it is tried again";
                crate::log::error(message, &[("why", why)]);
            }
            None => crate::log::info("snapshots of the metadata are made again", &[]),
        }
        self.snapshot_failure = failure;
    }

    /// Runs until the cores were told to stop. `http`: the bound listener of the HTTP door.
    pub async fn run(mut self, http: TcpListener, state: Arc<HttpState>) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let door = tokio::spawn(serve(http, state));
        let mut version = self.node.version();
        let mut draining: Option<tokio::time::Instant> = None;
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        let mut space_look = tokio::time::interval(SPACE_LOOK);
        self.ask_for_opening();
        loop {
            let flushed = self.flush();
            let deadline = draining.unwrap_or_else(|| tokio::time::Instant::now() + HOUSEKEEPING);
            tokio::select! {
                () = poll_fn(|cx| self.port.poll_mail(cx)) => {}
                Some(ended) = self.proposals.join_next(), if !self.proposals.is_empty() => self.on_joined(ended),
                Ok(()) = version.changed() => self.tell_cores(),
                () = tokio::time::sleep(RETRY), if !flushed => {}
                () = tokio::time::sleep(FRESH), if !self.questions.is_empty() => {}
                () = tokio::time::sleep(OPENING), if !self.serves => self.ask_for_opening(),
                () = tokio::time::sleep(MADE_RETRY), if self.has_made_to_tell() => self.propose_made(),
                _ = terminate.recv(), if draining.is_none() => draining = Some(self.drain("SIGTERM")),
                _ = interrupt.recv() => match draining {
                    None => draining = Some(self.drain("SIGINT")),
                    Some(_) => break,
                },
                _ = hangup.recv() => {
                    self.reload_tls(true);
                    self.reload_keys();
                }
                _ = housekeeping.tick() => self.reload_tls(false),
                _ = space_look.tick() => {
                    self.look_at_space();
                    self.look_at_snapshots();
                }
                () = tokio::time::sleep_until(deadline), if draining.is_some() => break,
            }
            let mut mail = Vec::new();
            self.port.drain(MAIL_BUDGET, |from, message| mail.push((from, message)));
            for (from, message) in mail {
                if let MeshMessage::ToControl(message) = message {
                    self.on_message(from, *message);
                }
            }
            while let Some(ended) = self.proposals.try_join_next() {
                self.on_joined(ended);
            }
            self.answer_questions();
            if !self.serves && draining.is_none() {
                self.look_at_opening();
            }
            if let Some(why) = self.node.failure() {
                self.fail(&why);
            }
            if draining.is_some() && self.everyone_left() {
                break;
            }
        }
        // Who still waits would be told nothing by a connection that is gone.
        self.proposals.abort_all();
        crate::log::info("stopping", &[]);
        for core in 0..usize::from(self.settings.cores) {
            self.send(core, FromControl::Stop);
        }
        let give_up = Instant::now() + Duration::from_secs(2);
        while !self.flush() && Instant::now() < give_up {
            // The rings are emptied by the cores; what they still report is of no use any more.
            self.port.drain(MAIL_BUDGET, |_, _| {});
            tokio::time::sleep(RETRY).await;
        }
        door.abort();
        self.node.shutdown().await;
        Ok(())
    }

    fn on_joined(&mut self, ended: Result<(Origin, Result<Applied, ProposeError>), JoinError>) {
        match ended {
            Ok((origin, result)) => self.on_proposal(origin, result),
            // Nobody cancels them, and a panic ends the process before it comes here.
            Err(error) => crate::log::error("a proposal was lost", &[("why", &error.to_string())]),
        }
    }

    /// No connection is left, as told by every core after the drain began: an older report may not know the newest ones.
    fn everyone_left(&self) -> bool {
        self.answered.iter().all(|ticket| *ticket >= self.drain_ticket)
            && self.connections.iter().all(|count| *count == 0)
    }

    fn drain(&mut self, why: &str) -> tokio::time::Instant {
        let left: u32 = self.connections.iter().sum();
        crate::log::info("draining", &[("signal", why), ("connections", &left.to_string())]);
        self.readiness.set_draining();
        let drain_ms = self.settings.drain.as_millis() as u32;
        self.ticket += 1;
        self.drain_ticket = self.ticket;
        for core in 0..usize::from(self.settings.cores) {
            self.send(core, FromControl::Drain { drain_ms });
            self.send(core, FromControl::ReportNow { ticket: self.drain_ticket });
        }
        tokio::time::Instant::now() + self.settings.drain
    }

    fn reload_tls(&mut self, asked: bool) {
        match self.settings.tls.reload() {
            Ok(Some(tls)) => {
                crate::log::info("certificates reloaded", &[]);
                let tls = Arc::new(tls);
                for core in 0..usize::from(self.settings.cores) {
                    self.send(core, FromControl::ReloadTls(tls.clone()));
                }
            }
            Ok(None) if asked => crate::log::info("certificates did not change", &[]),
            Ok(None) => {}
            Err(error) => {
                crate::log::error("certificates not reloaded, the old ones stay", &[("why", &error.to_string())]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
