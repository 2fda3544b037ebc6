//! **What**: the control thread beside the cores: metadata, the watch that feeds the cores, counters for `top` and
//! `describe`, signals, certificate reload, drain, and the HTTP door. One tokio runtime, one thread.
//!
//! ```text
//! ToControl (admin, stats, reports, producers) -> Member / StatsBook -> FromControl (replies, changes, blocks)
//! SIGTERM, SIGINT -> Drain -> cores empty or time over -> Stop           SIGHUP, changed files -> ReloadTls
//! ```
//!
//! **Invariants**: every core hears of a change before the client that asked for it hears of its success, so that a
//! stream can be used as soon as its creation is answered. What a core's ring cannot take waits here, in order.
//!
//! **Never**: anything a publish or a delivery waits for.
//!
//! **See**: `stats_book.rs`, `felix_control::member`, `boot.rs` (who starts this).

use crate::http::{HttpState, serve};
use crate::io::mesh::MeshPort;
use crate::message::{FromControl, MeshMessage, ToControl};
use crate::stats_book::StatsBook;
use crate::tls_files::TlsFiles;
use felix_control::authorise::Principal;
use felix_control::command::Internal;
use felix_control::member::{Member, MemberSettings};
use felix_control::watch::Change;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::ids::{CoreId, NodeId, NodeSession};
use felix_protocol::metadata::Command;
use felix_protocol::position::Lineage;
use felix_protocol::time::Timestamp;
use felix_shard::event::ConnKey;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Producer ids a core gets at once.
const PRODUCER_BLOCK: u32 = 65_536;
/// How often certificate files are looked at, and waiting messages are tried again at the latest.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// How often a full ring is tried again.
const RETRY: Duration = Duration::from_millis(1);
/// Messages handled before other work gets its share.
const MAIL_BUDGET: usize = 1_024;

/// How far the broker is, for `/readyz`.
#[derive(Debug, Default)]
pub struct Readiness(AtomicU8);

impl Readiness {
    /// Serving.
    pub fn set_ready(&self) {
        self.0.store(1, Ordering::Release);
    }

    /// Shutting down.
    pub fn set_draining(&self) {
        self.0.store(2, Ordering::Release);
    }

    /// Ok, or why not.
    pub fn check(&self) -> Result<(), String> {
        match self.0.load(Ordering::Acquire) {
            0 => Err("the broker is starting".to_string()),
            1 => Ok(()),
            _ => Err("the broker is draining".to_string()),
        }
    }
}

/// Longest a question for numbers waits for the cores; then it is answered with what is known.
const FRESH: Duration = Duration::from_millis(200);

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
    /// This node.
    pub node: NodeId,
    /// This start of it.
    pub session: NodeSession,
    /// Time clients get to go away.
    pub drain: Duration,
    /// Certificate files to watch.
    pub tls: TlsFiles,
}

/// The control thread's state.
pub struct ControlThread {
    settings: ControlSettings,
    member: Member,
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
}

fn wall() -> Timestamp {
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64)
}

impl ControlThread {
    /// Metadata of a fresh start: ids and lineages begin above all that former starts may have given.
    pub fn new(settings: ControlSettings, port: MeshPort<MeshMessage>, readiness: Arc<Readiness>) -> ControlThread {
        let cores = usize::from(settings.cores);
        let mut control = ControlThread {
            member: Member::new(MemberSettings::default()),
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
            settings,
        };
        let session = control.settings.session.0;
        for command in [
            Internal::RaiseFloors { ids: session << 32, lineage: Lineage(session as u32) },
            Internal::SetCoreCount { cores: control.settings.cores },
            Internal::StartNode { node: control.settings.node, session: control.settings.session },
        ] {
            control.propose_internal(command);
        }
        for core in 0..control.settings.cores {
            control.allocate_producers(CoreId(core));
        }
        control
    }

    fn propose_internal(&mut self, command: Internal) {
        let committed = self.member.propose_internal(wall(), command);
        if let Err(refused) = &committed.outcome {
            crate::log::error("metadata refused a command of this broker itself", &[("why", &refused.detail)]);
        }
        self.broadcast(committed.changes);
    }

    fn allocate_producers(&mut self, core: CoreId) {
        let command = Internal::AllocateProducers { core, count: PRODUCER_BLOCK };
        let committed = self.member.propose_internal(wall(), command);
        if let Some(block) = committed.producers {
            let message = FromControl::Producers { first: block.first.0, count: u64::from(block.count) };
            self.send(core.0.into(), message);
        }
    }

    fn broadcast(&mut self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let changes: Arc<[Change]> = changes.into();
        let routing_version = self.member.state().routing_version();
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
                self.on_admin(core, conn, request_id, &principal, idempotency_key, command);
            }
            ToControl::Stats { conn, request_id, after } => {
                let uptime_ms = self.started.elapsed().as_millis() as u64;
                let connections = self.connections.iter().sum();
                let stats = self.stats.page(self.member.state(), after.as_ref(), uptime_ms, connections);
                self.send(core, FromControl::StatsReply { conn, request_id, stats });
            }
            ToControl::NeedProducers => self.allocate_producers(CoreId(core as u8)),
            ToControl::Report(report) => {
                self.connections[core] = report.connections;
                self.answered[core] = self.answered[core].max(report.ticket);
                self.stats.take(&report);
            }
        }
    }

    fn on_admin(
        &mut self,
        core: usize,
        conn: ConnKey,
        request_id: u32,
        principal: &Principal,
        idempotency_key: u128,
        command: Command,
    ) {
        let result = if command.is_write() {
            let committed = self.member.propose(wall(), principal, idempotency_key, command);
            for change in &committed.changes {
                if let Change::StreamRemoved { id, .. } = change {
                    self.stats.forget(*id);
                }
            }
            self.broadcast(committed.changes);
            committed.outcome
        } else {
            self.member.query(&command, self.stats.shard_reports())
        };
        let result = result.map_err(|refused| (refused.code, refused.detail));
        if let Err((ErrorCode::Internal, detail)) = &result {
            crate::log::error("a metadata command failed", &[("why", detail)]);
        }
        self.send(core, FromControl::AdminReply { conn, request_id, result });
    }

    /// Runs until the cores were told to stop. `http`: the bound listener of the HTTP door.
    pub async fn run(mut self, http: TcpListener, state: Arc<HttpState>) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let door = tokio::spawn(serve(http, state));
        let mut draining: Option<tokio::time::Instant> = None;
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        self.readiness.set_ready();
        loop {
            let flushed = self.flush();
            let deadline = draining.unwrap_or_else(|| tokio::time::Instant::now() + HOUSEKEEPING);
            tokio::select! {
                () = poll_fn(|cx| self.port.poll_mail(cx)) => {}
                () = tokio::time::sleep(RETRY), if !flushed => {}
                () = tokio::time::sleep(FRESH), if !self.questions.is_empty() => {}
                _ = terminate.recv(), if draining.is_none() => draining = Some(self.drain("SIGTERM")),
                _ = interrupt.recv() => match draining {
                    None => draining = Some(self.drain("SIGINT")),
                    Some(_) => break,
                },
                _ = hangup.recv() => self.reload_tls(true),
                _ = housekeeping.tick() => self.reload_tls(false),
                () = tokio::time::sleep_until(deadline), if draining.is_some() => break,
            }
            let mut mail = Vec::new();
            self.port.drain(MAIL_BUDGET, |from, message| mail.push((from, message)));
            for (from, message) in mail {
                if let MeshMessage::ToControl(message) = message {
                    self.on_message(from, *message);
                }
            }
            self.answer_questions();
            if draining.is_some() && self.everyone_left() {
                break;
            }
        }
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
        Ok(())
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
