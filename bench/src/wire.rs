//! **What**: the few frames a measurement needs, and the roles publisher and subscriber over broker or floor.
//!
//! **Invariants**: a record's value begins with the intended send time (ns since the run's start) and its number.
//!
//! **Never**: a check that the other side does not get too.
//!
//! **See**: `lean.rs`.

use crate::Error;
use crate::lean::Lean;
use crate::party::OnRecord;
use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::batch_view::BatchView;
use felix_protocol::envelope::{FrameType, write_frame};
use felix_protocol::frame::{
    Admin, CHANNEL_ACKS, Deliver, Delivery, DeliveryMode, Frame, Hello, OpenChannel, SlowPolicy, Start, Subscribe,
};
use felix_protocol::frame_stream::FrameStream;
use felix_protocol::ids::{ProducerEpoch, ProducerId, Sequence, ShardIndex};
use felix_protocol::metadata::{Command, Durability, StreamSpec};
use felix_protocol::names::StreamName;
use felix_protocol::position::Offset;
use felix_protocol::version::{WireVersion, feature};
use std::time::{Duration, Instant};

/// Stream of every measurement.
pub const STREAM: &str = "bench/bench/stream";
/// QUIC stream of the publish channel.
pub const CHANNEL: u64 = 4;

/// A Hello.
pub fn hello_frame() -> Vec<u8> {
    let mut out = Vec::new();
    Frame::Hello(Hello {
        version_min: WireVersion::LOWEST.0,
        version_max: WireVersion::HIGHEST.0,
        features: feature::ALL,
        cluster: None,
        client_name: "felix-bench",
        token: &[],
    })
    .encode(0, &mut out);
    out
}

/// Says Hello and waits for Welcome.
pub fn hello(lean: &mut Lean, buffer: &mut [u8]) -> Result<(), Error> {
    lean.write_all(0, &hello_frame(), buffer)?;
    await_reply(lean, 0, FrameType::Welcome, buffer)
}

/// Makes the stream of every measurement.
pub fn create_stream(lean: &mut Lean, buffer: &mut [u8]) -> Result<(), Error> {
    create_stream_as(lean, STREAM, StreamSpec::default(), buffer)
}

/// Makes a stream.
pub fn create_stream_as(lean: &mut Lean, name: &str, spec: StreamSpec, buffer: &mut [u8]) -> Result<(), Error> {
    let mut out = Vec::new();
    let command = Command::CreateStream { name: StreamName::parse(name)?, spec, create_parents: true };
    // One key per stream: the same command again is the same change.
    let idempotency_key = name.bytes().fold(1, |key: u128, byte| key.wrapping_mul(257).wrapping_add(byte.into()));
    Frame::Admin(Admin { idempotency_key, command }).encode(1, &mut out);
    lean.write_all(0, &out, buffer)?;
    await_reply(lean, 0, FrameType::AdminReply, buffer)
}

/// Subscribes to shard 0 of the stream of every measurement.
pub fn subscribe(lean: &mut Lean, start: Start, buffer: &mut [u8]) -> Result<(), Error> {
    subscribe_to(lean, STREAM, start, buffer)
}

/// Subscribes to shard 0 of a stream.
pub fn subscribe_to(lean: &mut Lean, name: &str, start: Start, buffer: &mut [u8]) -> Result<(), Error> {
    let mut out = Vec::new();
    Frame::Subscribe(Subscribe {
        stream_name: StreamName::parse(name)?,
        stream: None,
        shard_index: ShardIndex(0),
        start,
        policy: SlowPolicy::Block,
        mode: DeliveryMode::Shared,
        credit_bytes: None,
        filter: String::new(),
    })
    .encode(7, &mut out);
    lean.write_all(0, &out, buffer)?;
    await_reply(lean, 0, FrameType::Subscribed, buffer)
}

/// Opens the publish channel of the stream of every measurement.
pub fn open_channel(lean: &mut Lean, acks: bool, buffer: &mut [u8]) -> Result<(), Error> {
    open_channel_to(lean, STREAM, acks, buffer)
}

/// Opens the publish channel of shard 0 of a stream.
pub fn open_channel_to(lean: &mut Lean, name: &str, acks: bool, buffer: &mut [u8]) -> Result<(), Error> {
    let mut out = Vec::new();
    Frame::OpenChannel(OpenChannel {
        stream_name: StreamName::parse(name)?,
        stream: None,
        shard_index: ShardIndex(0),
        flags: if acks { CHANNEL_ACKS } else { 0 },
        producer: ProducerId(0),
        producer_epoch: ProducerEpoch(0),
    })
    .encode(0, &mut out);
    lean.write_all(CHANNEL, &out, buffer)?;
    await_reply(lean, CHANNEL, FrameType::ChannelOpened, buffer)
}

fn await_reply(lean: &mut Lean, stream: u64, wanted: FrameType, buffer: &mut [u8]) -> Result<(), Error> {
    let give_up = Instant::now() + Duration::from_secs(10);
    let mut frames = FrameStream::new();
    let mut bytes = Vec::new();
    loop {
        lean.send(buffer);
        lean.receive(buffer)?;
        bytes.clear();
        lean.read(stream, &mut bytes);
        frames.push(&bytes);
        if let Some(frame) = frames.next_frame()? {
            let (envelope, frame) = Frame::decode(frame)?;
            if envelope.frame_type == wanted {
                lean.send(buffer);
                return Ok(());
            }
            return Err(format!("expected {wanted:?}, got {frame:?}").into());
        }
        if Instant::now() > give_up {
            return Err(format!("no {wanted:?} within 10 s").into());
        }
    }
}

/// Makes the bytes of one publish: `records` records whose values carry time and number.
pub struct Batcher {
    builder: BatchBuilder,
    value: Vec<u8>,
    body: Vec<u8>,
    next: u64,
    framed: bool,
}

impl Batcher {
    /// For the broker (`framed`) or the floor (bare values).
    pub fn new(value_bytes: usize, framed: bool) -> Batcher {
        Batcher {
            builder: BatchBuilder::new(),
            value: vec![0x5a; value_bytes.max(16)],
            body: Vec::new(),
            next: 0,
            framed,
        }
    }

    /// Appends the bytes of `records` records with this send time.
    pub fn make(&mut self, time_ns: u64, records: u64, out: &mut Vec<u8>) -> Result<(), Error> {
        let base_sequence = Sequence(self.next);
        for _ in 0..records {
            self.value[..8].copy_from_slice(&time_ns.to_le_bytes());
            self.value[8..16].copy_from_slice(&self.next.to_le_bytes());
            self.next += 1;
            if self.framed {
                self.builder.push(&RecordToPublish { value: &self.value, ..RecordToPublish::default() })?;
            } else {
                out.extend_from_slice(&self.value);
            }
        }
        if self.framed {
            self.body.clear();
            let stamp = ProducerStamp { base_sequence, ..ProducerStamp::default() };
            self.builder.finish(stamp, &mut self.body);
            write_frame(out, FrameType::Publish, 0, 0, None, |out| out.extend_from_slice(&self.body));
        }
        Ok(())
    }
}

/// Takes records out of what a subscriber received.
#[derive(Default)]
pub struct Unbatcher {
    frames: FrameStream,
    bytes: Vec<u8>,
    delivery_number: u64,
    /// What acks must be worth, where they are expected.
    acks: Option<Durability>,
    acked: u64,
    next_offset: Offset,
}

impl Unbatcher {
    /// For a publisher whose acks must be worth this; None: it wants none.
    pub fn of_acks(acks: Option<Durability>) -> Unbatcher {
        Unbatcher { acks, ..Unbatcher::default() }
    }

    /// Calls back with (send time, number) of every whole record. Broker frames are checked for holes.
    pub fn take(
        &mut self,
        bytes: &[u8],
        framed: bool,
        value_bytes: usize,
        on_record: &mut OnRecord,
    ) -> Result<(), Error> {
        if !framed {
            self.bytes.extend_from_slice(bytes);
            let whole = self.bytes.len() / value_bytes * value_bytes;
            for value in self.bytes[..whole].chunks_exact(value_bytes) {
                let (time, number) = stamp(value);
                on_record(time, number);
            }
            self.bytes.drain(..whole);
            return Ok(());
        }
        self.frames.push(bytes);
        while let Some(frame) = self.frames.next_frame()? {
            match Frame::decode(frame)?.1 {
                Frame::Deliver(Deliver { number, delivery: Delivery::Batch(batch), .. }) => {
                    if number != self.delivery_number {
                        return Err(format!("delivery {number}, expected {}", self.delivery_number).into());
                    }
                    self.delivery_number += 1;
                    let view = BatchView::parse(batch)?;
                    for record in view.body.records(view.body.values) {
                        let (time, number) = stamp(record?.value);
                        on_record(time, number);
                    }
                }
                Frame::PublishAck(ack) if self.acks.is_some() => {
                    if self.acks != Some(ack.durability) {
                        return Err(
                            format!("acks are worth {:?}, asked was for {:?}", ack.durability, self.acks).into()
                        );
                    }
                    for offset in ack.base_offsets {
                        if offset < self.next_offset {
                            return Err(format!("an ack for offset {offset} where {} is due", self.next_offset).into());
                        }
                        self.next_offset = Offset(offset.0 + 1);
                        on_record(0, self.acked);
                        self.acked += 1;
                    }
                }
                // What a slow subscriber missed shows in the numbers of the records.
                Frame::Deliver(Deliver { number, .. }) => {
                    if number != self.delivery_number {
                        return Err(format!("delivery {number}, expected {}", self.delivery_number).into());
                    }
                    self.delivery_number += 1;
                }
                other => return Err(format!("unexpected {other:?}").into()),
            }
        }
        Ok(())
    }
}

/// Intended send time and number of a record.
pub fn stamp(value: &[u8]) -> (u64, u64) {
    let at = |from: usize| value.get(from..from + 8).and_then(|it| it.try_into().ok()).map_or(0, u64::from_le_bytes);
    (at(0), at(8))
}
