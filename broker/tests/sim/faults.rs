//! Seeded bugs: broken twins at the seams that the simulation holds: mesh, links, control member, frames on the way to
//! and from clients. A checker counts only if it finds each of them (DECISIONS 35).

use crate::rng::Rng;
use crate::sim::Sim;
use felix_broker::message::{FromControl, MeshMessage};
use felix_control::watch::Change;
use felix_protocol::frame::{Deliver, Delivery, Frame, PublishAck};
use felix_protocol::ids::{CoreId, ShardId};
use felix_protocol::position::{Lineage, Offset};
use felix_shard::effect::Ack;
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A stream that takes bytes again is not announced.
    LostWritable,
    /// A core's own deadline is forgotten.
    LostDeadline,
    /// A ring stays full for commits once it was full.
    FullForEver,
    /// A forwarded batch vanishes.
    PublishDropped,
    /// A forwarded batch reaches a core that does not own its shard.
    PublishToWrongCore,
    /// A forwarded batch reaches another shard of its owner.
    PublishToWrongShard,
    /// A forwarded batch vanishes and is acked.
    AckWithoutAppend,
    /// An ack is told twice.
    AckTwice,
    /// Two acks swap places.
    AcksSwapped,
    /// A subscriber's attach vanishes.
    AttachDropped,
    /// A core's leaving vanishes.
    DetachDropped,
    /// The end of a shard is not told.
    GoneDropped,
    /// History vanishes.
    FetchedDropped,
    /// A commit vanishes.
    CommitDropped,
    /// Two commits swap places.
    CommitsSwapped,
    /// The close of a connection hits the next one in its slot.
    StaleClose,
    /// A stream made anew keeps shards and lineage of the old one.
    LineageReused,
    /// A gap is told as progress.
    GapHidden,
    /// A delivery is told twice, with a fresh number.
    DeliveredTwice,
    /// A delivery is left out and the next takes its number and range.
    DeliverySkipped,
    /// An ack tells an offset one too high.
    AckOffsetWrong,
    /// A filter is ignored.
    FilterIgnored,
    /// Credit is ignored.
    CreditIgnored,
    /// A retry loses its producer id.
    DuplicateTaken,
    /// A byte of a batch changes on its way.
    ByteChanged,
}

pub const ALL: &[Bug] = &[
    Bug::LostWritable,
    Bug::LostDeadline,
    Bug::FullForEver,
    Bug::PublishDropped,
    Bug::PublishToWrongCore,
    Bug::PublishToWrongShard,
    Bug::AckWithoutAppend,
    Bug::AckTwice,
    Bug::AcksSwapped,
    Bug::AttachDropped,
    Bug::DetachDropped,
    Bug::GoneDropped,
    Bug::FetchedDropped,
    Bug::CommitDropped,
    Bug::CommitsSwapped,
    Bug::StaleClose,
    Bug::LineageReused,
    Bug::GapHidden,
    Bug::DeliveredTwice,
    Bug::DeliverySkipped,
    Bug::AckOffsetWrong,
    Bug::FilterIgnored,
    Bug::CreditIgnored,
    Bug::DuplicateTaken,
    Bug::ByteChanged,
];

/// What to do with a message.
enum Fate {
    Send,
    Drop,
    Twice(MeshMessage),
    /// It waits and goes behind the next of its kind.
    Hold,
    To(usize),
}

#[derive(Default)]
pub struct Faults {
    bug: Option<Bug>,
    /// Times it may still strike.
    left: u32,
    /// Times it struck.
    pub struck: u32,
    held: Option<(usize, usize, MeshMessage)>,
    full: Option<(usize, usize)>,
    acked: BTreeMap<ShardId, Ack>,
    shards: BTreeMap<ShardId, usize>,
    former: BTreeMap<String, Vec<(ShardId, Lineage)>>,
    skipped: BTreeMap<(usize, u32), (u64, Offset)>,
    doubled: BTreeMap<(usize, u32), u64>,
}

impl Faults {
    pub fn new(bug: Option<Bug>) -> Faults {
        Faults { bug, left: 3, ..Faults::default() }
    }

    fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn strikes(&mut self, bug: Bug, rng: &mut Rng, per_mille: u64) -> bool {
        let hit = self.bug == Some(bug) && self.left > 0 && rng.chance(per_mille);
        if hit {
            self.left -= 1;
            self.struck += 1;
        }
        hit
    }

    pub fn loses_writable(&mut self, rng: &mut Rng) -> bool {
        self.strikes(Bug::LostWritable, rng, 200)
    }

    pub fn loses_deadlines(&mut self) -> bool {
        self.struck += u32::from(self.is(Bug::LostDeadline));
        self.is(Bug::LostDeadline)
    }

    pub fn reuses_keys(&mut self) -> bool {
        self.struck += u32::from(self.is(Bug::StaleClose));
        self.is(Bug::StaleClose)
    }

    pub fn takes_duplicates(&self) -> bool {
        self.is(Bug::DuplicateTaken)
    }

    /// A frame of a client on its way to the broker.
    pub fn on_client_frame(&mut self, frame: &mut Frame<'_>) {
        if let Frame::Subscribe(subscribe) = frame {
            if self.is(Bug::FilterIgnored) && !subscribe.filter.is_empty() {
                subscribe.filter.clear();
                self.struck += 1;
            }
            if self.is(Bug::CreditIgnored) && subscribe.credit_bytes.take().is_some() {
                self.struck += 1;
            }
        }
    }

    /// A frame of the broker on its way to a client: none, one or two frames.
    pub fn on_broker_frame(&mut self, conn: usize, bytes: &[u8], rng: &mut Rng) -> Vec<Vec<u8>> {
        let Some(bug) = self.bug else { return vec![bytes.to_vec()] };
        let Ok((envelope, frame)) = Frame::decode(bytes) else { return vec![bytes.to_vec()] };
        let id = envelope.request_id;
        let again = |frame: &Frame<'_>| {
            let mut out = Vec::new();
            frame.encode(id, &mut out);
            out
        };
        match (bug, frame) {
            (Bug::GapHidden, Frame::Deliver(it)) if it.delivery == Delivery::Gap => {
                self.struck += 1;
                vec![again(&Frame::Deliver(Deliver { delivery: Delivery::Progress, ..it }))]
            }
            (Bug::DeliveredTwice, Frame::Deliver(mut it)) => {
                it.number += self.doubled.get(&(conn, id)).copied().unwrap_or(0);
                let first = again(&Frame::Deliver(it));
                if !matches!(it.delivery, Delivery::Batch(_)) || !self.strikes(bug, rng, 100) {
                    return vec![first];
                }
                *self.doubled.entry((conn, id)).or_default() += 1;
                it.number += 1;
                vec![first, again(&Frame::Deliver(it))]
            }
            (Bug::DeliverySkipped, Frame::Deliver(mut it)) => {
                let (behind, from) = self.skipped.get(&(conn, id)).copied().unwrap_or_default();
                it.number -= behind;
                if behind > 0 && from != Offset(u64::MAX) {
                    it.covered.from = from;
                    self.skipped.insert((conn, id), (behind, Offset(u64::MAX)));
                }
                if matches!(it.delivery, Delivery::Batch(_)) && self.strikes(bug, rng, 100) {
                    self.skipped.insert((conn, id), (behind + 1, it.covered.from));
                    return Vec::new();
                }
                vec![again(&Frame::Deliver(it))]
            }
            (Bug::AckOffsetWrong, Frame::PublishAck(ack)) if self.strikes(bug, rng, 100) => {
                let base_offsets = ack.base_offsets.iter().map(|it| Offset(it.0 + 1)).collect();
                vec![again(&Frame::PublishAck(PublishAck { base_offsets, ..ack }))]
            }
            (Bug::ByteChanged, Frame::Deliver(it)) if matches!(it.delivery, Delivery::Batch(_)) => {
                let mut bytes = bytes.to_vec();
                if self.strikes(bug, rng, 100) {
                    *bytes.last_mut().expect("a frame has bytes") ^= 1;
                }
                vec![bytes]
            }
            _ => vec![bytes.to_vec()],
        }
    }

    fn fate(&mut self, rng: &mut Rng, cores: usize, from: usize, to: usize, message: &mut MeshMessage) -> Fate {
        let Some(bug) = self.bug else { return Fate::Send };
        match (bug, message) {
            (Bug::PublishDropped, MeshMessage::Publish { .. }) if self.strikes(bug, rng, 30) => Fate::Drop,
            (Bug::PublishToWrongCore, MeshMessage::Publish { .. }) if cores > 2 && self.strikes(bug, rng, 30) => {
                Fate::To((0..cores).find(|it| *it != from && *it != to).expect("three cores or more"))
            }
            (Bug::PublishToWrongShard, MeshMessage::Publish { shard, .. }) => {
                let other = self.shards.iter().find(|(id, core)| **core == to && **id != *shard).map(|(id, _)| *id);
                if let Some(other) = other.filter(|_| self.strikes(bug, rng, 30)) {
                    *shard = other;
                }
                Fate::Send
            }
            (Bug::AckWithoutAppend, MeshMessage::Publish { shard, channel, batch }) => {
                let facts = *batch.facts();
                let Some(last) = self.acked.get(shard).copied() else { return Fate::Send };
                if !self.strikes(bug, rng, 30) {
                    return Fate::Send;
                }
                let base_offset = Offset(last.base_offset.0 + u64::from(last.record_count));
                let ack =
                    Ack { base_sequence: facts.base_sequence, record_count: facts.record_count, base_offset, ..last };
                self.held = Some((to, from, MeshMessage::Ack { channel: *channel, ack }));
                Fate::Drop
            }
            (Bug::AckTwice, MeshMessage::Ack { channel, ack }) if self.strikes(bug, rng, 30) => {
                Fate::Twice(MeshMessage::Ack { channel: *channel, ack: *ack })
            }
            (Bug::AcksSwapped, MeshMessage::Ack { .. }) if self.strikes(bug, rng, 100) => Fate::Hold,
            (Bug::CommitsSwapped, MeshMessage::Commit { .. }) if self.strikes(bug, rng, 100) => Fate::Hold,
            (Bug::AttachDropped, MeshMessage::Attach { .. }) if self.strikes(bug, rng, 100) => Fate::Drop,
            (Bug::DetachDropped, MeshMessage::Detach { .. }) if self.strikes(bug, rng, 300) => Fate::Drop,
            (Bug::GoneDropped, MeshMessage::Gone { .. }) if self.strikes(bug, rng, 500) => Fate::Drop,
            (Bug::FetchedDropped, MeshMessage::Fetched { .. }) if self.strikes(bug, rng, 100) => Fate::Drop,
            (Bug::CommitDropped, MeshMessage::Commit { .. }) if self.strikes(bug, rng, 30) => Fate::Drop,
            _ => Fate::Send,
        }
    }

    fn note(&mut self, message: &MeshMessage, from: usize) {
        // Answers show which core owns a shard, and where its log ends.
        match message {
            MeshMessage::ChannelOpened { result: Ok(state), .. } => {
                self.shards.insert(state.shard, from);
            }
            MeshMessage::Commit { shard, batch } => {
                let facts = Ack {
                    base_sequence: Default::default(),
                    record_count: batch.record_count(),
                    base_offset: batch.range().from,
                    lineage: batch.header().lineage,
                    epoch: batch.header().epoch,
                    durability: Default::default(),
                };
                self.acked.insert(*shard, facts);
            }
            _ => {}
        }
    }

    fn keeps_full(&mut self, from: usize, to: usize, message: &MeshMessage, was_full: bool) -> bool {
        if !self.is(Bug::FullForEver) || !matches!(message, MeshMessage::Commit { .. }) {
            return false;
        }
        if was_full && self.full.is_none() {
            self.struck += 1;
            self.full = Some((from, to));
        }
        self.full == Some((from, to))
    }

    /// What the control member sends.
    pub fn on_control(&mut self, message: &mut FromControl) {
        let FromControl::Changes { changes, .. } = message else { return };
        if !self.is(Bug::LineageReused) {
            return;
        }
        let mut list = changes.to_vec();
        for change in &mut list {
            let Change::StreamPut { stream, .. } = change else { continue };
            let name = stream.info.name.to_string();
            let now: Vec<(ShardId, Lineage)> = stream.shards.iter().map(|it| (it.shard, it.lineage)).collect();
            let former = self.former.entry(name).or_insert_with(|| now.clone());
            if *former != now && former.len() == now.len() {
                self.struck += 1;
                for (place, (shard, lineage)) in stream.shards.iter_mut().zip(former.iter()) {
                    place.shard = *shard;
                    place.lineage = *lineage;
                    place.core = CoreId(place.core.0);
                }
            }
        }
        *changes = list.into();
    }
}

/// `Links::mesh_send` with the bug's say in it.
pub fn mesh_send(sim: &mut Sim, from: usize, to: usize, mut message: MeshMessage) -> Result<(), MeshMessage> {
    let cores = sim.plan.cores;
    sim.faults.note(&message, from);
    let fate = sim.faults.fate(&mut sim.rng, cores, from, to, &mut message);
    match fate {
        Fate::Drop => {
            if let Some((from, to, forged)) = sim.faults.held.take() {
                let _ = sim.mesh_push(from, to, forged);
            }
            return Ok(());
        }
        Fate::To(other) => return sim.mesh_push(from, other, message),
        Fate::Twice(copy) => {
            sim.mesh_push(from, to, message)?;
            let _ = sim.mesh_push(from, to, copy);
            return Ok(());
        }
        Fate::Hold if sim.faults.held.is_none() => {
            sim.faults.held = Some((from, to, message));
            return Ok(());
        }
        Fate::Hold | Fate::Send => {}
    }
    if sim.faults.full == Some((from, to)) && sim.faults.keeps_full(from, to, &message, true) {
        return Err(message);
    }
    let follows = sim.faults.held.as_ref().is_some_and(|(f, t, held)| {
        (*f, *t) == (from, to) && std::mem::discriminant(held) == std::mem::discriminant(&message)
    });
    let sent = sim.mesh_push(from, to, message);
    if let Err(message) = &sent {
        sim.faults.keeps_full(from, to, message, true);
    }
    if follows
        && sent.is_ok()
        && let Some((from, to, held)) = sim.faults.held.take()
    {
        let _ = sim.mesh_push(from, to, held);
    }
    sent
}
