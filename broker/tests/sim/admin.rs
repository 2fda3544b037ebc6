//! What the administrator does over the wire: makes the streams, alters some, deletes and remakes others, reads lists.

use crate::client::Ctx;
use crate::plan::{Kind, MS};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{Admin, Frame};
use felix_protocol::ids::StreamId;
use felix_protocol::metadata::{Command, Reply, StreamChanges};
use felix_protocol::names::StreamName;
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create(usize),
    Delete(usize),
    Alter(usize),
    Describe(usize),
    List,
    Stats,
    Route(usize),
}

#[derive(Debug)]
pub struct AdminScript {
    todo: VecDeque<Step>,
    running: Option<Step>,
    ids: Vec<Option<StreamId>>,
    key: u128,
    next_at: u64,
}

impl AdminScript {
    pub fn new(ctx: &mut Ctx<'_>) -> AdminScript {
        let streams = ctx.sim.plan.streams.len();
        AdminScript {
            todo: (0..streams).map(Step::Create).collect(),
            running: None,
            ids: vec![None; streams],
            key: 0,
            next_at: 0,
        }
    }

    pub fn on_lost(&mut self) {
        if let Some(step) = self.running.take() {
            self.todo.push_front(step);
        }
    }

    pub fn is_done(&self) -> bool {
        self.todo.is_empty() && self.running.is_none()
    }

    /// The next request, if it is time for one.
    pub fn next(&mut self, ctx: &mut Ctx<'_>) -> Option<Frame<'static>> {
        if self.running.is_some() {
            return None;
        }
        if self.todo.is_empty() {
            if ctx.sim.healed || ctx.sim.now < self.next_at {
                return None;
            }
            self.next_at = ctx.sim.now + ctx.sim.rng.range(MS, 12 * MS);
            let at = ctx.sim.rng.below(self.ids.len() as u64) as usize;
            match (ctx.sim.rng.below(7), ctx.model.kinds[at]) {
                (0..=2, Kind::Mortal) => self.todo.extend([Step::Delete(at), Step::Create(at)]),
                (0..=2, Kind::Lossy) => self.todo.push_back(Step::Alter(at)),
                (3, _) => self.todo.push_back(Step::List),
                (4, _) => self.todo.push_back(Step::Stats),
                (5, _) => self.todo.push_back(Step::Route(at)),
                _ => self.todo.push_back(Step::Describe(at)),
            }
        }
        let step = self.todo.pop_front()?;
        self.running = Some(step);
        self.key += 1;
        let name = |at: usize| StreamName::parse(&ctx.sim.plan.streams[at].name).expect("our own name");
        let command = match step {
            Step::Create(at) => {
                Command::CreateStream { name: name(at), spec: ctx.sim.plan.streams[at].spec, create_parents: true }
            }
            Step::Delete(at) => {
                ctx.model.maybe_gone.extend(self.ids[at]);
                Command::DeleteStream { name: name(at) }
            }
            Step::Alter(at) => {
                let age = ctx.sim.rng.chance(500).then(|| ctx.sim.rng.range(1, 30));
                let changes = StreamChanges { retention_age_ms: Some(age), ..StreamChanges::default() };
                Command::AlterStream { name: name(at), changes, if_version: None }
            }
            Step::Describe(at) => Command::DescribeStream { name: name(at) },
            Step::List => Command::ListStreams { tenant: None, namespace: None, after: None },
            Step::Stats => return Some(Frame::GetStats { after: None }),
            Step::Route(at) => return Some(Frame::GetRoute { stream_name: name(at) }),
        };
        let idempotency_key = if command.is_write() { self.key } else { 0 };
        Some(Frame::Admin(Admin { idempotency_key, command }))
    }

    pub fn on_reply(&mut self, ctx: &mut Ctx<'_>, frame: &Frame<'_>) {
        let step = self.running.take();
        match (step, frame) {
            (Some(Step::Create(at)), Frame::AdminReply(Reply::StreamDone { stream, .. })) => {
                let old = self.ids[at].replace(stream.id);
                ctx.sim.cover.streams_remade += u64::from(old.is_some());
            }
            (Some(Step::Delete(_)), Frame::AdminReply(Reply::Done { .. }))
            | (Some(Step::Describe(_)), Frame::AdminReply(Reply::Stream { .. }))
            | (Some(Step::List), Frame::AdminReply(Reply::Streams { .. }))
            | (Some(Step::Stats), Frame::Stats(_)) => {}
            (Some(Step::Alter(_)), Frame::AdminReply(Reply::StreamDone { .. })) => ctx.sim.cover.streams_altered += 1,
            (Some(Step::Route(at)), Frame::Route(route)) => {
                for (index, row) in route.shards.iter().enumerate() {
                    ctx.model.meet(route.stream, at, index as u32, row.shard, row.lineage);
                }
            }
            (step, frame) => ctx.model.fail(|| format!("the administrator asked for {step:?} and got {frame:?}")),
        }
    }

    pub fn on_error(&mut self, ctx: &mut Ctx<'_>, code: ErrorCode, detail: &str) {
        let step = self.running.take();
        ctx.model.fail(|| format!("the administrator asked for {step:?} and got {code:?}: {detail}"));
    }
}
