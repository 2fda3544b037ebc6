//! The control member of the simulation: the real metadata and the real book of counters, with the messages of
//! `control_thread.rs` and none of its threads.

use crate::sim::Sim;
use felix_broker::message::{FromControl, MeshMessage, ToControl};
use felix_broker::stats_book::StatsBook;
use felix_control::authorise::Principal;
use felix_control::command::Internal;
use felix_control::member::{Member, MemberSettings};
use felix_control::watch::Change;
use felix_protocol::ids::{CoreId, NodeId, NodeSession};
use felix_protocol::metadata::Command;
use felix_protocol::position::Lineage;
use felix_shard::event::ConnKey;
use std::collections::VecDeque;
use std::sync::Arc;

/// Producer ids of one block: few, so that blocks are asked for during a run.
const PRODUCER_BLOCK: u32 = 80;

pub struct Control {
    member: Member,
    stats: StatsBook,
    outboxes: Vec<VecDeque<MeshMessage>>,
    connections: Vec<u32>,
}

impl Control {
    pub fn new(sim: &mut Sim) -> Control {
        let cores = sim.plan.cores;
        let mut control = Control {
            member: Member::new(MemberSettings { log_entries_max: 16, ..MemberSettings::default() }),
            stats: StatsBook::default(),
            outboxes: (0..cores).map(|_| VecDeque::new()).collect(),
            connections: vec![0; cores],
        };
        for command in [
            Internal::RaiseFloors { ids: 1 << 32, lineage: Lineage(1) },
            Internal::SetCoreCount { cores: cores as u8 },
            Internal::StartNode { node: NodeId(7), session: NodeSession(1) },
        ] {
            let committed = control.member.propose_internal(sim.clock().wall, command);
            assert!(committed.outcome.is_ok(), "{:?}", committed.outcome);
            control.broadcast(sim, committed.changes);
        }
        for core in 0..cores {
            control.allocate_producers(sim, core);
        }
        control
    }

    /// Handles what has arrived and sends what waits.
    pub fn turn(&mut self, sim: &mut Sim) {
        let me = sim.plan.cores;
        for from in 0..me {
            while let Some(message) = sim.mesh_take(from, me) {
                if let MeshMessage::ToControl(message) = message {
                    self.on_message(sim, from, *message);
                }
            }
        }
        self.flush(sim);
        if self.outboxes.iter().any(|it| !it.is_empty()) {
            sim.wake_control(200_000);
        }
        if let Some(at) = sim.mesh_next(me) {
            sim.wake_control(at.saturating_sub(sim.now).max(1_000));
        }
    }

    pub fn is_idle(&self) -> bool {
        self.outboxes.iter().all(VecDeque::is_empty)
    }

    fn on_message(&mut self, sim: &mut Sim, core: usize, message: ToControl) {
        match message {
            ToControl::Admin { conn, request_id, principal, idempotency_key, command } => {
                self.on_admin(sim, core, conn, request_id, &principal, idempotency_key, command);
            }
            ToControl::Stats { conn, request_id, after } => {
                let connections = self.connections.iter().sum();
                let stats = self.stats.page(self.member.state(), after.as_ref(), sim.now / 1_000_000, connections);
                self.send(sim, core, FromControl::StatsReply { conn, request_id, stats });
            }
            ToControl::NeedProducers => self.allocate_producers(sim, core),
            ToControl::Report(report) => {
                sim.cover.reports += 1;
                self.connections[core] = report.connections;
                self.stats.take(&report);
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one message")]
    fn on_admin(
        &mut self,
        sim: &mut Sim,
        core: usize,
        conn: ConnKey,
        request_id: u32,
        principal: &Principal,
        idempotency_key: u128,
        command: Command,
    ) {
        let result = if command.is_write() {
            let committed = self.member.propose(sim.clock().wall, principal, idempotency_key, command);
            self.broadcast(sim, committed.changes);
            committed.outcome
        } else {
            self.member.query(&command, self.stats.shard_reports())
        };
        let result = result.map_err(|refused| (refused.code, refused.detail));
        self.send(sim, core, FromControl::AdminReply { conn, request_id, result });
    }

    fn allocate_producers(&mut self, sim: &mut Sim, core: usize) {
        let command = Internal::AllocateProducers { core: CoreId(core as u8), count: PRODUCER_BLOCK };
        let committed = self.member.propose_internal(sim.clock().wall, command);
        if let Some(block) = committed.producers {
            self.send(sim, core, FromControl::Producers { first: block.first.0, count: u64::from(block.count) });
        }
    }

    fn broadcast(&mut self, sim: &mut Sim, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        changes.iter().for_each(|change| self.stats.on_change(change));
        let mut message =
            FromControl::Changes { routing_version: self.member.state().routing_version(), changes: changes.into() };
        sim.faults.on_control(&mut message);
        let FromControl::Changes { routing_version, changes } = message else { return };
        let changes: Arc<[Change]> = changes;
        for core in 0..sim.plan.cores {
            self.send(sim, core, FromControl::Changes { routing_version, changes: changes.clone() });
        }
    }

    fn send(&mut self, sim: &mut Sim, core: usize, message: FromControl) {
        self.outboxes[core].push_back(MeshMessage::FromControl(Box::new(message)));
        self.flush(sim);
    }

    fn flush(&mut self, sim: &mut Sim) {
        let me = sim.plan.cores;
        for (core, outbox) in self.outboxes.iter_mut().enumerate() {
            while let Some(message) = outbox.pop_front() {
                if let Err(message) = sim.mesh_push(me, core, message) {
                    outbox.push_front(message);
                    sim.wake_control(200_000);
                    break;
                }
            }
        }
    }
}
