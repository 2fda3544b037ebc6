//! One subscriber of a client: one shard of one stream, again and again, each time from where it was told to go on.

use crate::client::{Ctx, send};
use crate::model::FILTERS;
use crate::plan::{Kind, MS};
use crate::view::{Via, View};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{
    Deliver, Delivery, DeliveryMode, Frame, SlowPolicy, Start, Subscribe, Subscribed, SubscriptionClosed,
};
use felix_protocol::ids::{ShardIndex, StreamId};
use felix_protocol::names::StreamName;
use felix_protocol::position::{Lineage, Offset, Position};
use felix_protocol::time::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Idle,
    Starting,
    Live,
    Ending,
}

#[derive(Debug)]
pub struct Sub {
    pub name: String,
    pub stream: usize,
    shard: u32,
    filter: Option<usize>,
    policy: SlowPolicy,
    pub mode: DeliveryMode,
    window: Option<u64>,
    pub reference: bool,
    pub state: State,
    pub id: u32,
    retry_at: u64,
    /// Where to go on: lineage, offset, stream.
    resume: Option<(Lineage, u64, StreamId)>,
    asked: Start,
    pub view: Option<usize>,
    /// Frames that came before Subscribed.
    early: Vec<(Vec<u8>, Via)>,
    granted: u64,
    waited: bool,
}

impl Sub {
    pub fn new(ctx: &mut Ctx<'_>, name: String) -> Sub {
        let stream = ctx.sim.rng.below(ctx.sim.plan.streams.len() as u64) as usize;
        let shards = u64::from(ctx.sim.plan.streams[stream].spec.shards);
        let rng = &mut ctx.sim.rng;
        Sub {
            name,
            stream,
            shard: rng.below(shards) as u32,
            filter: rng.chance(450).then(|| rng.below(FILTERS.len() as u64) as usize),
            policy: rng.pick(&[SlowPolicy::Block, SlowPolicy::DropOldest, SlowPolicy::Disconnect]),
            mode: rng.pick(&[
                DeliveryMode::Shared,
                DeliveryMode::Shared,
                DeliveryMode::Own,
                DeliveryMode::DatagramOrStream,
                DeliveryMode::DatagramOrGap,
            ]),
            window: rng.chance(400).then(|| rng.pick(&[1, 200, 2_000, 100_000])),
            reference: false,
            state: State::Idle,
            id: 0,
            retry_at: 0,
            resume: None,
            asked: Start::Earliest,
            view: None,
            early: Vec::new(),
            granted: 0,
            waited: false,
        }
    }

    /// The one that reads all of a shard.
    pub fn reference(name: String, stream: usize, shard: u32, own: bool) -> Sub {
        Sub {
            name,
            stream,
            shard,
            filter: None,
            policy: SlowPolicy::Block,
            mode: if own { DeliveryMode::Own } else { DeliveryMode::Shared },
            window: None,
            reference: true,
            state: State::Idle,
            id: 0,
            retry_at: 0,
            resume: None,
            asked: Start::Earliest,
            view: None,
            early: Vec::new(),
            granted: 0,
            waited: false,
        }
    }

    pub fn is_reliable(&self) -> bool {
        matches!(self.mode, DeliveryMode::Shared | DeliveryMode::Own)
    }

    /// The connection is gone: only what was told counts.
    pub fn on_lost(&mut self, ctx: &mut Ctx<'_>) {
        if let Some(view) = self.view.take() {
            let it = &ctx.model.views[view];
            self.resume = Some((it.lineage, it.told, it.stream));
        }
        self.state = State::Idle;
        self.early.clear();
    }

    /// Starts, or goes on, or ends. `id`: free for it.
    pub fn act(&mut self, ctx: &mut Ctx<'_>, conn: usize, id: u32) -> bool {
        match self.state {
            State::Idle if ctx.sim.now >= self.retry_at => {
                self.subscribe(ctx, conn, id);
                true
            }
            State::Live if !ctx.sim.healed && !self.reference && ctx.sim.rng.chance(15) => {
                self.end(ctx, conn);
                false
            }
            _ => false,
        }
    }

    pub fn end(&mut self, ctx: &mut Ctx<'_>, conn: usize) {
        send(ctx, conn, 0, self.id, Frame::Unsubscribe);
        self.state = State::Ending;
    }

    fn subscribe(&mut self, ctx: &mut Ctx<'_>, conn: usize, id: u32) {
        let wall = ctx.sim.clock().wall.0;
        let rng = &mut ctx.sim.rng;
        let other = Lineage(9_999_999);
        self.asked = match self.resume {
            _ if !self.reference && !ctx.sim.healed && rng.chance(30) => {
                Start::Position(Position { lineage: other, offset: Offset(3) })
            }
            _ if !self.reference && !ctx.sim.healed && rng.chance(30) => {
                Start::Position(Position { lineage: Lineage(0), offset: Offset(1 << 40) })
            }
            Some((lineage, offset, _)) if self.reference || rng.chance(800) => {
                ctx.sim.cover.resumes += 1;
                Start::Position(Position { lineage, offset: Offset(offset) })
            }
            _ if self.reference => Start::Earliest,
            _ => match rng.below(4) {
                0 => Start::Latest,
                1 => Start::Time(Timestamp(wall - rng.below(30 * MS))),
                2 => Start::Position(Position { lineage: Lineage(0), offset: Offset(0) }),
                _ => Start::Earliest,
            },
        };
        // The id of the stream goes with a position of it.
        let named = matches!(self.asked, Start::Position(at) if self.resume.is_some_and(|it| it.0 == at.lineage));
        let stream = self.resume.map(|it| it.2).filter(|_| named && ctx.sim.rng.chance(500));
        let window = if ctx.sim.healed { self.window.map(|_| 1 << 50) } else { self.window };
        self.granted = window.unwrap_or(0);
        self.id = id;
        let subscribe = Subscribe {
            stream_name: StreamName::parse(&ctx.sim.plan.streams[self.stream].name).expect("our own name"),
            stream,
            shard_index: ShardIndex(self.shard),
            start: self.asked,
            policy: self.policy,
            mode: self.mode,
            credit_bytes: window,
            filter: self.filter.map_or(String::new(), |it| FILTERS[it].to_string()),
        };
        send(ctx, conn, 0, id, Frame::Subscribe(subscribe));
        self.state = State::Starting;
    }

    /// More bytes, if it reads with credit.
    pub fn grant(&mut self, ctx: &mut Ctx<'_>, conn: usize) {
        let (Some(window), Some(view)) = (self.window, self.view) else { return };
        if !matches!(self.state, State::Live | State::Ending) {
            return;
        }
        let used = ctx.model.views[view].bytes;
        let total = if ctx.sim.healed { 1 << 50 } else { used + window };
        if used >= self.granted {
            ctx.sim.cover.credit_waits += u64::from(!self.waited);
            self.waited = true;
        }
        if total > self.granted && (used * 2 >= self.granted || ctx.sim.healed) {
            self.granted = total;
            self.waited = false;
            let now = ctx.sim.now;
            ctx.model.views[view].credit.get_or_insert_default().push((now, total));
            send(ctx, conn, 0, self.id, Frame::Credit { total_bytes: total });
        }
    }

    pub fn on_subscribed(&mut self, ctx: &mut Ctx<'_>, conn: usize, it: &Subscribed) {
        if !matches!(self.state, State::Starting | State::Ending) || self.view.is_some() {
            return ctx.model.fail(|| format!("{}: subscribed in state {:?}", self.name, self.state));
        }
        ctx.model.meet(it.stream, self.stream, self.shard, it.shard, it.lineage);
        let (start, end) = (it.start.0, it.high_watermark.0);
        let right = match self.asked {
            Start::Position(at) => at.offset.0 == start && (at.lineage.0 == 0 || at.lineage == it.lineage),
            Start::Latest => start == end,
            _ => true,
        };
        ctx.model.expect(right && start <= end, || format!("{}: asked for {:?}, got {it:?}", self.name, self.asked));
        let kind = ctx.model.kinds[self.stream];
        if self.asked == Start::Earliest && kind == Kind::Stable {
            ctx.model.expect(start == 0, || format!("{}: the oldest record of all is {start}", self.name));
        }
        if self.state == State::Starting {
            self.state = State::Live;
        }
        let name = format!("{} id {} on conn {conn}", self.name, self.id);
        let place = (it.stream, it.shard, it.lineage);
        let credit = self.window.map(|_| self.granted);
        let mut view = View::new(name, self.filter, self.policy, self.mode, kind, place, start, credit);
        view.reference = self.reference;
        view.round_trip = 2 * ctx.sim.conns[conn].net.delay;
        self.view = Some(ctx.model.views.len());
        ctx.model.views.push(view);
        for (frame, via) in std::mem::take(&mut self.early) {
            if let Ok((_, frame)) = Frame::decode(&frame) {
                self.on_frame(ctx, conn, frame, (&[], via));
            }
        }
        self.grant(ctx, conn);
    }

    /// A Deliver or SubscriptionClosed.
    pub fn on_frame(&mut self, ctx: &mut Ctx<'_>, conn: usize, frame: Frame<'_>, (bytes, via): (&[u8], Via)) {
        match (frame, self.view) {
            (Frame::Deliver(_), None) => self.early.push((bytes.to_vec(), via)),
            (Frame::SubscriptionClosed(it), None) if it.next.lineage.0 != 0 => self.early.push((bytes.to_vec(), via)),
            (Frame::SubscriptionClosed(it), _) => self.on_closed(ctx, &it),
            (Frame::Deliver(it), Some(view)) => {
                self.on_deliver(ctx, view, &it, via);
                self.grant(ctx, conn);
            }
            (other, _) => ctx.model.fail(|| format!("{}: {other:?} on a delivery stream", self.name)),
        }
    }

    fn on_deliver(&mut self, ctx: &mut Ctx<'_>, view: usize, it: &Deliver<'_>, via: Via) {
        let now = ctx.sim.now;
        let seen = ctx.model.deliver(view, it, via, now);
        let cover = &mut ctx.sim.cover;
        match it.delivery {
            Delivery::Batch(_) => cover.deliveries += 1,
            Delivery::Gap => cover.gaps += 1,
            Delivery::Progress => cover.progress += 1,
        }
        cover.derived += u64::from(seen.derived);
        cover.compressed_derived += u64::from(seen.compressed);
        cover.gap_too_large += u64::from(seen.gap_too_large);
    }

    fn on_closed(&mut self, ctx: &mut Ctx<'_>, it: &SubscriptionClosed) {
        let gone = match self.view {
            Some(view) => ctx.model.maybe_gone.contains(&ctx.model.views[view].stream),
            None => ctx.model.kinds[self.stream] == Kind::Mortal,
        };
        let fine = match it.code {
            ErrorCode::NoError => self.state == State::Ending,
            ErrorCode::SlowConsumer => self.policy == SlowPolicy::Disconnect && self.view.is_some(),
            ErrorCode::StreamGone => gone,
            _ => false,
        };
        ctx.model.expect(fine, || format!("{}: closed in state {:?} with {it:?}", self.name, self.state));
        ctx.sim.cover.slow_disconnects += u64::from(it.code == ErrorCode::SlowConsumer);
        ctx.sim.cover.stream_gone += u64::from(it.code == ErrorCode::StreamGone);
        if let Some(view) = self.view.take() {
            let v = &ctx.model.views[view];
            let (told, lineage, stream, reliable) = (v.told, v.lineage, v.stream, v.is_reliable());
            let next = it.next.offset.0;
            let right = it.next.lineage == lineage && if reliable { next == told } else { next >= told };
            ctx.model.expect(right, || format!("{}: told up to {told}, to go on at {:?}", self.name, it.next));
            self.resume = Some((lineage, next, stream));
        }
        if it.code == ErrorCode::StreamGone {
            self.resume = None;
        }
        self.state = State::Idle;
        self.retry_at = ctx.sim.now + MS;
        self.early.clear();
    }

    /// The request was refused.
    pub fn on_error(&mut self, ctx: &mut Ctx<'_>, code: ErrorCode) {
        let mortal = ctx.model.kinds[self.stream] == Kind::Mortal || self.resume.is_none();
        let fine = match (code, self.asked) {
            // An unsubscribe crossed the end of the subscription.
            (ErrorCode::UnknownSubscription, _) => true,
            (ErrorCode::NotFound | ErrorCode::StreamGone, _) => mortal,
            (ErrorCode::LineageReset, Start::Position(at)) => {
                let known = self.resume.is_some_and(|it| it.0 == at.lineage);
                at.lineage.0 != 0 && (!known || ctx.model.kinds[self.stream] == Kind::Mortal)
            }
            (ErrorCode::OffsetInFuture, Start::Position(at)) => at.offset.0 >= 1 << 40,
            // No stream left for it on this connection.
            (ErrorCode::TooMany, _) => true,
            (ErrorCode::Overloaded, _) => true,
            _ => false,
        };
        ctx.model.expect(fine, || format!("{}: asked for {:?}, refused with {code:?}", self.name, self.asked));
        if code == ErrorCode::UnknownSubscription {
            return;
        }
        let cover = &mut ctx.sim.cover;
        cover.lineage_resets += u64::from(code == ErrorCode::LineageReset);
        cover.future_offsets += u64::from(code == ErrorCode::OffsetInFuture);
        cover.stream_gone += u64::from(code == ErrorCode::StreamGone);
        let positioned = matches!(self.asked, Start::Position(at) if self.resume.is_some_and(|it| it.0 == at.lineage));
        if positioned && matches!(code, ErrorCode::StreamGone | ErrorCode::LineageReset) {
            self.resume = None;
        }
        self.view = None;
        self.state = State::Idle;
        self.retry_at = ctx.sim.now + MS;
        self.early.clear();
    }
}
