//! One producer of a client: a channel to one shard, batches in flight, retries with the same bytes.

use crate::client::{Ctx, send};
use crate::model::{BatchInfo, KEYS, Model, Rec, key};
use crate::plan::{Kind, MS};
use felix_protocol::batch::Compression;
use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::batch_view::{BatchError, BodyView};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{
    CHANNEL_ACKS, CHANNEL_KEYED, ChannelOpened, Frame, OpenChannel, PublishAck, PublishRefused,
};
use felix_protocol::ids::{ProducerEpoch, ProducerId, Sequence, ShardId, ShardIndex, StreamId};
use felix_protocol::names::StreamName;
use felix_protocol::position::Lineage;
use felix_protocol::routing::{even_range_start, find_range, key_hash};
use felix_protocol::time::Timestamp;
use std::collections::VecDeque;

#[derive(Debug)]
struct Batch {
    index: u32,
    seq: u64,
    body: Vec<u8>,
    /// What it must be refused with.
    bad: Option<ErrorCode>,
}

#[derive(Debug)]
struct Chan {
    stream: u64,
    open: bool,
    /// The end was sent.
    fin: bool,
    /// A typed error came.
    failed: bool,
    /// Batches of `unacked` that were sent on it.
    sent: usize,
    last: Option<u64>,
    next_sequence: u64,
    refused: bool,
}

#[derive(Debug)]
pub struct Publisher {
    name: String,
    stream: usize,
    shard: u32,
    keyed: bool,
    pub idempotent: bool,
    acks: bool,
    left: u64,
    window: usize,
    pub producer: Option<u64>,
    epoch: u32,
    pub asked: bool,
    chan: Option<Chan>,
    retry_at: u64,
    bound: Option<(StreamId, ShardId, Lineage)>,
    next_seq: u64,
    unacked: VecDeque<Batch>,
    group: u64,
    pub done: bool,
}

impl Publisher {
    pub fn new(ctx: &mut Ctx<'_>, name: String) -> Publisher {
        let stream = ctx.sim.rng.below(ctx.sim.plan.streams.len() as u64) as usize;
        let shards = u64::from(ctx.sim.plan.streams[stream].spec.shards);
        let rng = &mut ctx.sim.rng;
        let idempotent = rng.chance(650);
        Publisher {
            name,
            stream,
            shard: rng.below(shards) as u32,
            keyed: rng.chance(500),
            idempotent,
            acks: idempotent || rng.chance(600),
            left: rng.range(1, ctx.sim.plan.batches),
            window: rng.range(1, 16) as usize,
            producer: None,
            epoch: 1,
            asked: false,
            chan: None,
            retry_at: 0,
            bound: None,
            next_seq: 0,
            unacked: VecDeque::new(),
            group: ctx.model.group(),
            done: false,
        }
    }

    pub fn stream_of_channel(&self) -> Option<u64> {
        self.chan.as_ref().map(|it| it.stream)
    }

    pub fn owes(&self) -> String {
        format!("{} owes: {} unacked, channel {:?}", self.name, self.unacked.len(), self.chan)
    }

    /// The connection is gone.
    pub fn on_lost(&mut self, ctx: &mut Ctx<'_>) {
        self.asked = false;
        self.lose_channel(ctx, 0);
        if self.idempotent && self.producer.is_some() && !ctx.sim.healed && ctx.sim.rng.chance(150) {
            // A restarted producer that kept its id: what is unanswered stays unknown.
            self.epoch += 1;
            self.next_seq = 0;
            self.unacked.clear();
            self.group = ctx.model.group();
            ctx.sim.cover.epochs_raised += 1;
        }
    }

    fn lose_channel(&mut self, ctx: &mut Ctx<'_>, pause: u64) {
        self.chan = None;
        self.retry_at = ctx.sim.now + pause;
        if !self.idempotent {
            // Nobody can tell what became of these.
            self.unacked.clear();
            self.next_seq = 0;
            self.group = ctx.model.group();
        }
    }

    /// Whether it wants a producer id.
    pub fn wants_id(&self) -> bool {
        self.idempotent && self.producer.is_none() && !self.asked && !self.done
    }

    /// Goes on. `early`: before Welcome.
    pub fn act(&mut self, ctx: &mut Ctx<'_>, conn: usize, early: bool) {
        if self.done || (self.idempotent && self.producer.is_none()) {
            self.done |= ctx.sim.healed && self.unacked.is_empty() && self.chan.is_none();
            return;
        }
        if self.chan.is_none() {
            if ctx.sim.healed && self.unacked.is_empty() {
                self.done = true;
            } else if ctx.sim.now >= self.retry_at {
                self.open(ctx, conn);
                ctx.sim.cover.early_channels += u64::from(early);
            }
        }
        let open = self.chan.as_ref().is_some_and(|it| (it.open || !self.idempotent) && !it.fin && !it.failed);
        if open && !ctx.sim.healed {
            for _ in 0..ctx.sim.rng.range(0, 4) {
                if self.left > 0 && self.unacked.len() < self.window {
                    self.publish(ctx, conn);
                }
            }
        }
        let ends = ctx.sim.healed || (self.left == 0 && ctx.sim.rng.chance(300)) || ctx.sim.rng.chance(10);
        let resent_all = self.unacked.is_empty();
        if ends
            && let Some(chan) =
                self.chan.as_mut().filter(|it| !it.fin && !it.failed && (it.open || !self.idempotent || resent_all))
        {
            chan.fin = true;
            let stream = chan.stream;
            ctx.sim.client_send(conn, stream, &[], true);
        }
    }

    fn open(&mut self, ctx: &mut Ctx<'_>, conn: usize) {
        let stream = ctx.sim.client_open(conn);
        let id = self.bound.map(|it| it.0).filter(|_| ctx.sim.rng.chance(500));
        let stranger = ctx.sim.faults.takes_duplicates() && !self.unacked.is_empty();
        ctx.sim.faults.struck += u32::from(stranger);
        let open = OpenChannel {
            stream_name: StreamName::parse(&ctx.sim.plan.streams[self.stream].name).expect("our own name"),
            stream: id,
            shard_index: ShardIndex(self.shard),
            flags: if self.acks { CHANNEL_ACKS } else { 0 } | if self.keyed { CHANNEL_KEYED } else { 0 },
            producer: ProducerId(if stranger { 0 } else { self.producer.unwrap_or(0) }),
            producer_epoch: ProducerEpoch(if self.idempotent && !stranger { self.epoch } else { 0 }),
        };
        send(ctx, conn, stream, 0, Frame::OpenChannel(open));
        self.chan = Some(Chan {
            stream,
            open: false,
            fin: false,
            failed: false,
            sent: 0,
            last: None,
            next_sequence: 0,
            refused: false,
        });
    }

    fn publish(&mut self, ctx: &mut Ctx<'_>, conn: usize) {
        self.left -= 1;
        let batch = self.make(ctx);
        let stream = self.chan.as_ref().expect("the caller saw it").stream;
        send(ctx, conn, stream, 0, Frame::Publish { body: &batch.body });
        if self.acks {
            self.unacked.push_back(batch);
        } else {
            ctx.sim.cover.no_ack_batches += 1;
        }
        self.chan.as_mut().expect("the caller saw it").sent += 1;
    }

    fn key_for(&self, ctx: &mut Ctx<'_>, mine: bool) -> Option<u16> {
        let shards = ctx.sim.plan.streams[self.stream].spec.shards;
        let starts: Vec<u64> = (0..shards).map(|at| even_range_start(ShardIndex(at), shards)).collect();
        (0..20).find_map(|_| {
            let at = ctx.sim.rng.below(KEYS as u64) as u16;
            let shard = find_range(&starts, key_hash(key(at).as_bytes()));
            ((shard == Some(self.shard as usize)) == mine).then_some(at)
        })
    }

    fn make(&mut self, ctx: &mut Ctx<'_>) -> Batch {
        let lossy = ctx.sim.plan.streams[self.stream].kind == Kind::Lossy;
        let count = ctx.sim.rng.range(1, 6) as u32;
        let big = if lossy { 500 } else { 50 };
        let bytes =
            if ctx.sim.rng.chance(big) { ctx.sim.rng.range(400, 1_200) } else { ctx.sim.rng.range(8, 120) } as u32;
        // On stable streams every offset must be known to someone in the end.
        let with_ttl = ctx.sim.rng.chance(80) && ctx.sim.plan.streams[self.stream].kind != Kind::Stable;
        let wrong_key = self.keyed && !self.idempotent && ctx.sim.rng.chance(60);
        let corrupt = !self.idempotent && ctx.sim.rng.chance(30);
        let (first, index) = (ctx.model.recs.len() as u64, ctx.model.batches.len() as u32);
        let mut builder = BatchBuilder::new();
        let mut bad = corrupt.then_some(ErrorCode::CorruptBatch);
        for at in 0..count {
            let foreign = if wrong_key && at == count - 1 { self.key_for(ctx, false) } else { None };
            if foreign.is_some() && !corrupt {
                bad = Some(ErrorCode::WrongShard);
            }
            let keyless = ctx.sim.rng.chance(150);
            let own = if keyless { None } else { self.key_for(ctx, true) };
            let own = if self.keyed || keyless { own } else { Some(ctx.sim.rng.below(KEYS as u64) as u16) };
            let key_index = foreign.or(own);
            let name = key_index.map(key);
            let ttl_ms = (with_ttl && ctx.sim.rng.chance(500)).then(|| ctx.sim.rng.range(1, 8));
            ctx.model.any_ttl |= ttl_ms.is_some();
            let value = Model::value(first + u64::from(at), bytes);
            let record = RecordToPublish {
                key: name.as_deref().map(str::as_bytes),
                value: &value,
                ttl_ms,
                time: Timestamp(ctx.sim.clock().wall.0 + u64::from(at)),
                ..RecordToPublish::default()
            };
            builder.push(&record).expect("a small record");
            ctx.model.recs.push(Rec { key: key_index, ttl_ms, batch: index, place: None, bytes });
        }
        let stamp = ProducerStamp {
            producer: ProducerId(self.producer.unwrap_or(0)),
            epoch: ProducerEpoch(if self.idempotent { self.epoch } else { 0 }),
            base_sequence: Sequence(self.next_seq),
        };
        let mut body = Vec::new();
        let compressed = u32::from(ctx.sim.rng.chance(100)) * bytes > 8;
        if compressed {
            // Nobody but the last reader opens the values: any smaller bytes will do.
            let stored = Model::value(first, bytes.min(40) - 1);
            builder.finish_with(stamp, Compression::Lz4, &stored, &mut body);
        } else {
            builder.finish(stamp, &mut body);
        }
        let crc = u32::from_le_bytes(*body.first_chunk().expect("a body has a header"));
        if corrupt {
            *body.last_mut().expect("a body has bytes") ^= 0x55;
        }
        ctx.model.batches.push(BatchInfo {
            first,
            count,
            crc,
            bytes: body.len(),
            seq: self.next_seq,
            producer: self.producer.unwrap_or(0),
            group: self.group,
            created: ctx.sim.now,
            refused: bad.is_some(),
            compressed,
        });
        let batch = Batch { index, seq: self.next_seq, body, bad };
        self.next_seq += u64::from(count);
        batch
    }

    pub fn on_frame(&mut self, ctx: &mut Ctx<'_>, conn: usize, frame: Frame<'_>) {
        match frame {
            Frame::ChannelOpened(opened) => self.on_opened(ctx, conn, &opened),
            Frame::PublishAck(ack) => self.on_ack(ctx, &ack),
            Frame::PublishRefused(refused) => self.on_refused(ctx, conn, &refused),
            Frame::Error(error) => {
                let gone = self.bound.is_some_and(|it| ctx.model.maybe_gone.contains(&it.0));
                let fine = matches!(error.code, ErrorCode::NotFound | ErrorCode::StreamGone);
                ctx.sim.cover.stream_gone += u64::from(error.code == ErrorCode::StreamGone);
                let stable = ctx.model.kinds[self.stream] != Kind::Mortal && self.bound.is_some();
                ctx.model.expect(fine && (gone || !stable), || format!("{}: channel error {error:?}", self.name));
                if let Some(chan) = &mut self.chan {
                    chan.failed = true;
                }
            }
            other => ctx.model.fail(|| format!("{}: {other:?} on a channel", self.name)),
        }
    }

    fn on_opened(&mut self, ctx: &mut Ctx<'_>, conn: usize, opened: &ChannelOpened) {
        ctx.model.meet(opened.stream, self.stream, self.shard, opened.shard, opened.lineage);
        let Some(chan) = &mut self.chan else { return };
        if chan.open {
            return ctx.model.fail(|| format!("{}: opened twice", self.name));
        }
        chan.open = true;
        chan.next_sequence = opened.next_sequence.0;
        let bound = (opened.stream, opened.shard, opened.lineage);
        if self.bound.replace(bound).is_some_and(|old| old != bound) && self.idempotent {
            self.unacked.clear();
            self.next_seq = 0;
            self.group = ctx.model.group();
        }
        let next = opened.next_sequence.0;
        if !self.idempotent {
            return ctx.model.expect(next == 0, || format!("{}: an anonymous channel begins at {next}", self.name));
        }
        let low = self.unacked.front().map_or(self.next_seq, |it| it.seq);
        let honest = !ctx.sim.faults.takes_duplicates();
        ctx.model.expect(!honest || (low <= next && next <= self.next_seq), || {
            format!("{}: next sequence {next} is not in {low}..={}", self.name, self.next_seq)
        });
        let stranger = !honest && !self.unacked.is_empty();
        let stream = chan.stream;
        chan.sent = self.unacked.len();
        for batch in &self.unacked {
            ctx.sim.cover.resent += 1;
            let mut body = batch.body.clone();
            if stranger {
                strip_producer(&mut body);
            }
            send(ctx, conn, stream, 0, Frame::Publish { body: &body });
        }
    }

    fn on_ack(&mut self, ctx: &mut Ctx<'_>, ack: &PublishAck) {
        let Some(chan) = &mut self.chan else { return };
        let Some((_, shard, lineage)) = self.bound else {
            return ctx.model.fail(|| format!("{}: an ack before the channel was open", self.name));
        };
        ctx.model.expect(ack.lineage == lineage, || format!("{}: acks of another lineage", self.name));
        for offset in &ack.base_offsets {
            let Some(batch) = self.unacked.pop_front() else {
                return ctx.model.fail(|| format!("{}: an ack for nothing at {offset}", self.name));
            };
            let rises = chan.last.is_none_or(|last| last < offset.0);
            ctx.model.expect(rises, || format!("{}: ack {offset} behind {:?}", self.name, chan.last));
            chan.last = Some(offset.0);
            ctx.model.expect(batch.bad.is_none(), || format!("{}: a bad batch is acked: {:?}", self.name, batch.bad));
            ctx.model.acked(batch.index, shard, lineage, offset.0);
            ctx.sim.cover.batches_acked += 1;
            ctx.sim.cover.duplicate_acks += u64::from(self.idempotent && batch.seq < chan.next_sequence);
        }
    }

    fn on_refused(&mut self, ctx: &mut Ctx<'_>, conn: usize, refused: &PublishRefused) {
        ctx.sim.cover.batches_refused += 1;
        if !self.acks {
            let fine = matches!(
                refused.code,
                ErrorCode::CorruptBatch | ErrorCode::WrongShard | ErrorCode::StreamGone | ErrorCode::Overloaded
            );
            return ctx.model.expect(fine, || format!("{}: refused {refused:?}", self.name));
        }
        let found = self.unacked.iter().position(|it| it.seq == refused.base_sequence.0);
        let Some(batch) = found.and_then(|at| self.unacked.remove(at)) else {
            return ctx.model.fail(|| format!("{}: refused what was not sent: {refused:?}", self.name));
        };
        let gone = self.bound.is_some_and(|it| ctx.model.maybe_gone.contains(&it.0));
        let before = self.chan.as_ref().is_some_and(|it| it.refused);
        let fine = match refused.code {
            ErrorCode::CorruptBatch => batch.bad == Some(refused.code),
            ErrorCode::WrongShard => batch.bad == Some(refused.code),
            ErrorCode::StreamGone => gone,
            ErrorCode::Overloaded => true,
            ErrorCode::SequenceGap => before,
            _ => false,
        };
        ctx.model.expect(fine, || format!("{}: refused {refused:?}, bad for {:?}", self.name, batch.bad));
        ctx.sim.cover.corrupt_batch += u64::from(refused.code == ErrorCode::CorruptBatch);
        ctx.sim.cover.wrong_shard += u64::from(refused.code == ErrorCode::WrongShard);
        ctx.sim.cover.stream_gone += u64::from(refused.code == ErrorCode::StreamGone);
        if self.idempotent {
            // It must go before those behind it: again from here, on a new channel.
            let at = found.unwrap_or(0);
            self.unacked.insert(at, batch);
            if let Some(chan) = &mut self.chan {
                chan.refused = true;
                let stream = chan.stream;
                ctx.sim.client_reset(conn, stream);
                self.lose_channel(ctx, MS);
            }
        }
    }

    /// The broker ended the channel.
    pub fn on_end(&mut self, ctx: &mut Ctx<'_>, reset: bool) {
        let Some(chan) = &self.chan else { return };
        if !chan.failed && !reset {
            ctx.model.expect(chan.fin, || format!("{}: the broker ended a channel by itself", self.name));
            let unanswered = self.unacked.len();
            ctx.model.expect(unanswered == 0 || !chan.open, || {
                format!("{}: the channel ended with {unanswered} unanswered batches", self.name)
            });
            ctx.model.expect(chan.open, || format!("{}: the channel ended without an answer", self.name));
            ctx.sim.cover.channels_finished += 1;
        }
        self.lose_channel(ctx, 2 * MS);
    }
}

/// The body as an anonymous producer would have made it.
fn strip_producer(body: &mut [u8]) {
    body[28..40].fill(0);
    let checked = BodyView::parse(body).and_then(|view| view.check_crc());
    if let Err(BatchError::BodyChecksum { found, .. }) = checked {
        body[..4].copy_from_slice(&found.to_le_bytes());
    }
}
