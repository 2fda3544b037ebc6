//! **What**: one publish channel: a QUIC stream bound once to (stream, shard, producer).
//!
//! ```text
//! bytes -> frames -> check -> route: own shard | mesh to the owner      ack <- owner, gathered per turn
//! ```
//!
//! **Invariants**: batches reach the owner in channel order: while one waits (mesh full, too many forwarded, too many
//! unsent acks) no byte behind it is read, and QUIC flow control holds the producer. Acks leave in channel order.
//!
//! **Never**: a batch dropped because something was full.
//!
//! **See**: `core.rs` (reads and retries), `felix_shard::shard` (appends).

use crate::session::OutBuffer;
use felix_protocol::envelope::{FrameType, write_frame};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{ErrorFrame, Frame, PublishRefused};
use felix_protocol::frame_stream::FrameStream;
use felix_protocol::ids::{CoreId, ProducerEpoch, ProducerId, Sequence, ShardId};
use felix_protocol::limits::ACKS_PER_FRAME_MAX;
use felix_protocol::metadata::Durability;
use felix_protocol::position::{Epoch, Lineage, Offset};
use felix_shard::batch_pool::{CheckedBatch, HashRange};
use felix_shard::effect::Ack;

/// How far a channel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelPhase {
    /// The first frame must be OpenChannel.
    AwaitOpen,
    /// The owner was asked.
    Opening,
    /// Batches may come.
    Open,
    /// Dead: a typed error was sent, what still comes is not read.
    Failed,
}

/// One publish channel.
#[derive(Debug)]
pub struct Channel {
    /// How far it is.
    pub phase: ChannelPhase,
    /// Unfinished frame.
    pub input: FrameStream,
    /// Unsent acks.
    pub out: OutBuffer,
    /// Shard it is bound to.
    pub shard: ShardId,
    /// Core that owns the shard.
    pub owner: CoreId,
    /// The client wants acks.
    pub wants_acks: bool,
    /// Keys must hash into this range.
    pub keyed: Option<HashRange>,
    /// Producer it is bound to; every batch must name it.
    pub producer: (ProducerId, ProducerEpoch),
    /// Largest body.
    pub batch_bytes_max: usize,
    /// A batch that waits for room at the owner.
    pub waiting: Option<CheckedBatch>,
    /// Not read to its end because of a bound of others; it is on the core's list.
    pub stalled: bool,
    /// Not read to its end because of its own unsent acks or opening.
    pub held: bool,
    /// Bytes may wait in the transport that no event will announce again.
    pub readable: bool,
    /// The producer's end was read, which the transport tells once; frames in front of it may still be kept.
    pub ended: bool,
    /// The producer ended its side and all that came is handed on.
    pub finished: bool,
    /// Batches handed to the shard and not answered yet.
    pub unanswered: u32,
    /// Acks gathered in this turn.
    offsets: Vec<Offset>,
    last: Option<(Lineage, Epoch, Durability)>,
    through: Sequence,
    /// It is on the core's list of channels with something to send.
    pub queued: bool,
}

impl Channel {
    /// A channel whose first frame did not come yet.
    pub fn new() -> Channel {
        Channel {
            phase: ChannelPhase::AwaitOpen,
            input: FrameStream::new(),
            out: OutBuffer::default(),
            shard: ShardId(0),
            owner: CoreId(0),
            wants_acks: false,
            keyed: None,
            producer: Default::default(),
            batch_bytes_max: 0,
            waiting: None,
            stalled: false,
            held: false,
            readable: false,
            ended: false,
            finished: false,
            unanswered: 0,
            offsets: Vec::new(),
            last: None,
            through: Sequence(0),
            queued: false,
        }
    }

    /// Gathers an ack. Acks of one frame share lineage, epoch and durability.
    pub fn on_ack(&mut self, ack: &Ack) {
        if !self.wants_acks {
            return;
        }
        let key = (ack.lineage, ack.epoch, ack.durability);
        if self.last.is_some_and(|last| last != key) || self.offsets.len() == ACKS_PER_FRAME_MAX {
            self.write_acks();
        }
        self.last = Some(key);
        self.offsets.push(ack.base_offset);
        self.through = self.through.max(Sequence(ack.base_sequence.0 + u64::from(ack.record_count)));
    }

    /// The shard refused a batch: everything up to its end is answered.
    pub fn on_refused(&mut self, base_sequence: Sequence, record_count: u32, code: ErrorCode, detail: &str) {
        self.write_refusal(base_sequence, code, detail);
        self.through = self.through.max(Sequence(base_sequence.0.saturating_add(u64::from(record_count))));
    }

    /// Writes a refusal, in order with the acks. A batch refused before it reached its shard moves nothing: batches in
    /// front of it may be unanswered yet, and its own numbers may be damaged.
    pub fn write_refusal(&mut self, base_sequence: Sequence, code: ErrorCode, detail: &str) {
        self.write_acks();
        let retry_after_ms = if code == ErrorCode::Overloaded { 10 } else { 0 };
        Frame::PublishRefused(PublishRefused { base_sequence, code, retry_after_ms, detail: detail.to_string() })
            .encode(0, self.out.buffer());
    }

    /// Writes the gathered acks as one frame. The body is written here, without a temporary list, because this is on
    /// the path of every acked publish.
    pub fn write_acks(&mut self) {
        let (Some((lineage, epoch, durability)), false) = (self.last, self.offsets.is_empty()) else { return };
        let (offsets, through) = (&self.offsets, self.through);
        write_frame(self.out.buffer(), FrameType::PublishAck, 0, 0, None, |out| {
            use felix_protocol::codec::Writer;
            out.put_u32(lineage.0);
            out.put_u64(epoch.0);
            out.put_u8(durability as u8);
            out.put_u64(through.0);
            out.put_u16(offsets.len() as u16);
            for offset in offsets {
                out.put_u64(offset.0);
            }
        });
        self.offsets.clear();
    }

    /// Ends the channel with a typed error.
    pub fn fail(&mut self, code: ErrorCode, detail: String) {
        self.write_acks();
        self.phase = ChannelPhase::Failed;
        self.waiting = None;
        self.input = FrameStream::new();
        Frame::Error(ErrorFrame { code, retry_after_ms: 0, detail }).encode(0, self.out.buffer());
    }
}

impl Default for Channel {
    fn default() -> Channel {
        Channel::new()
    }
}
