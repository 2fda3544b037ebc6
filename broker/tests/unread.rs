//! What a core does for a client that reads slowly or not at all, beside others: the core alone, with links that keep in
//! memory what it reads and writes.

use felix_broker::admission::Admission;
use felix_broker::core::{Core, CoreConfig, Identity};
use felix_broker::links::{LinkError, Links, Read};
use felix_broker::message::{FromControl, MeshMessage};
use felix_control::authorise::{Principal, Roles};
use felix_control::command::Internal;
use felix_control::member::{Member, MemberSettings};
use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::envelope::{FrameType, write_frame};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{
    CHANNEL_ACKS, DeliveryMode, Frame, Hello, OpenChannel, SlowPolicy, Start, Subscribe, SubscriptionClosed,
};
use felix_protocol::ids::{
    ClusterId, CoreId, NodeId, NodeSession, ProducerEpoch, ProducerId, Sequence, ShardIndex, StreamId,
};
use felix_protocol::metadata::{Command, Durability, StreamSpec};
use felix_protocol::names::StreamName;
use felix_protocol::position::{Epoch, Lineage, Offset, Position};
use felix_protocol::time::{Now, Time, Timestamp};
use felix_quic::LentBytes;
use felix_shard::effect::{Ack, ChannelState};
use felix_shard::event::ConnKey;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

const CONN: ConnKey = ConnKey(1 << 32);
const NOW: Now = Now { time: Time(1), wall: Timestamp(1_700_000_000_000_000_000) };

/// Streams as lists of bytes, other members as a list of messages.
#[derive(Default)]
struct Kept {
    input: HashMap<u64, VecDeque<u8>>,
    /// Bytes a stream takes; without an entry all.
    room: HashMap<u64, usize>,
    sent: HashMap<u64, u64>,
    streams_opened: u64,
    mesh: Vec<(usize, MeshMessage)>,
}

impl Links for Kept {
    fn stream_recv(&mut self, _: ConnKey, stream: u64, buffer: &mut [u8]) -> Result<Read, LinkError> {
        let input = self.input.entry(stream).or_default();
        let bytes = input.len().min(buffer.len());
        if bytes == 0 {
            return Err(LinkError::WouldBlock);
        }
        for (to, byte) in buffer.iter_mut().zip(input.drain(..bytes)) {
            *to = byte;
        }
        Ok(Read { bytes, fin: false })
    }
    fn stream_send(&mut self, _: ConnKey, stream: u64, bytes: &[u8], _: bool) -> Result<usize, LinkError> {
        let taken = bytes.len().min(self.stream_capacity(CONN, stream));
        if let Some(room) = self.room.get_mut(&stream) {
            *room -= taken;
        }
        *self.sent.entry(stream).or_default() += taken as u64;
        Ok(taken)
    }
    fn stream_lend(&mut self, conn: ConnKey, stream: u64, bytes: LentBytes) -> Result<usize, LinkError> {
        self.stream_send(conn, stream, (*bytes).as_ref(), false)
    }
    fn stream_capacity(&mut self, _: ConnKey, stream: u64) -> usize {
        self.room.get(&stream).copied().unwrap_or(usize::MAX)
    }
    fn stream_wait(&mut self, _: ConnKey, stream: u64) -> Result<bool, LinkError> {
        Ok(self.stream_capacity(CONN, stream) > 0)
    }
    fn stop_reading(&mut self, _: ConnKey, _: u64, _: u16) {}
    fn reset(&mut self, _: ConnKey, _: u64, _: u16) {}
    fn open_uni(&mut self, _: ConnKey) -> Result<u64, LinkError> {
        self.streams_opened += 1;
        Ok(self.streams_opened * 4 - 1)
    }
    fn datagram_send(&mut self, _: ConnKey, _: &[u8]) -> Result<(), LinkError> {
        Err(LinkError::TooLarge)
    }
    fn close(&mut self, _: ConnKey, code: u16, reason: &str) {
        panic!("the core closed a connection: {code} {reason}");
    }
    fn mesh_send(&mut self, to: usize, message: MeshMessage) -> Result<(), MeshMessage> {
        self.mesh.push((to, message));
        Ok(())
    }
}

struct Lab {
    core: Core,
    links: Kept,
    /// Member that is the control thread.
    control: usize,
}

fn stream_name() -> StreamName {
    StreamName::parse("a/b/c").unwrap()
}

impl Lab {
    /// Core 0 of so many, with a session that said Hello and a stream of a shard per core.
    fn new(cores: u8, admission: Admission) -> Lab {
        let core = Core::new(CoreConfig {
            me: CoreId(0),
            core_count: cores,
            identity: Identity {
                cluster: ClusterId(1),
                node: NodeId(1),
                session: NodeSession(1),
                region: "local".into(),
            },
            admission,
            shard_limits: felix_shard::limits::Limits::default(),
            roles: Arc::new(Roles::default()),
        });
        let mut member = Member::new(MemberSettings::default());
        member.propose_internal(NOW.wall, Internal::SetCoreCount { cores });
        let spec = StreamSpec { shards: u32::from(cores), ..StreamSpec::default() };
        let command = Command::CreateStream { name: stream_name(), spec, create_parents: true };
        let done = member.propose(NOW.wall, &Principal::admin(), 1, command);
        let changes =
            FromControl::Changes { routing_version: member.state().routing_version(), changes: done.changes.into() };
        let control = usize::from(cores);
        let mut lab = Lab { core, links: Kept::default(), control };
        lab.core.on_mesh(NOW, control, MeshMessage::FromControl(Box::new(changes)));
        lab.core.on_connected(NOW, CONN, Some(Arc::new(Principal::admin())));
        let hello = Hello { version_min: 1, version_max: 1, features: 0, cluster: None, client_name: "", token: &[] };
        lab.ask(0, 0, &Frame::Hello(hello));
        lab.turn();
        lab
    }

    fn ask(&mut self, stream: u64, request_id: u32, frame: &Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(request_id, &mut bytes);
        self.write(stream, &bytes);
    }

    fn write(&mut self, stream: u64, bytes: &[u8]) {
        self.links.input.entry(stream).or_default().extend(bytes);
        self.core.on_readable(NOW, CONN, stream, &mut self.links);
    }

    /// Turns until nothing wants another one.
    fn turn(&mut self) {
        while self.core.end_turn(NOW, &mut self.links) {}
    }

    fn open_channel(&mut self, stream: u64, shard_index: u32) {
        self.ask(
            stream,
            0,
            &Frame::OpenChannel(OpenChannel {
                stream_name: stream_name(),
                stream: None,
                shard_index: ShardIndex(shard_index),
                flags: CHANNEL_ACKS,
                producer: ProducerId(stream),
                producer_epoch: ProducerEpoch(1),
            }),
        );
    }

    fn subscribe(&mut self, id: u32, mode: DeliveryMode) {
        self.subscribe_to(id, mode, "");
    }

    fn subscribe_to(&mut self, id: u32, mode: DeliveryMode, filter: &str) {
        self.ask(
            0,
            id,
            &Frame::Subscribe(Subscribe {
                stream_name: stream_name(),
                stream: None,
                shard_index: ShardIndex(0),
                start: Start::Latest,
                policy: SlowPolicy::Block,
                mode,
                credit_bytes: None,
                filter: filter.to_string(),
            }),
        );
    }

    /// Answers as the owner of shards elsewhere does. Returns how many batches of each channel it was sent.
    fn answer(&mut self) -> HashMap<u64, usize> {
        let mut batches = HashMap::new();
        for (to, message) in std::mem::take(&mut self.links.mesh) {
            let answer = match message {
                MeshMessage::OpenChannel { channel, shard, .. } => {
                    let (lineage, epoch) = (Lineage(1), Epoch(1));
                    let state = ChannelState { stream: StreamId(1), shard, lineage, epoch, next_sequence: Sequence(0) };
                    MeshMessage::ChannelOpened { channel, result: Ok(state) }
                }
                MeshMessage::Publish { channel, batch, .. } => {
                    *batches.entry(channel.stream).or_default() += 1;
                    let ack = Ack {
                        base_sequence: batch.facts().base_sequence,
                        record_count: 1,
                        base_offset: Offset(0),
                        lineage: Lineage(1),
                        epoch: Epoch(1),
                        durability: Durability::None,
                    };
                    MeshMessage::Ack { channel, ack }
                }
                _ => {
                    assert_eq!(to, self.control);
                    continue;
                }
            };
            self.core.on_mesh(NOW, to, answer);
        }
        batches
    }
}

/// Publish frames of one small record each.
fn batches(producer: u64, sequences: std::ops::Range<u64>, value: &[u8]) -> Vec<u8> {
    let (mut builder, mut frames) = (BatchBuilder::new(), Vec::new());
    for sequence in sequences {
        builder.push(&RecordToPublish { value, ..Default::default() }).unwrap();
        let mut body = Vec::new();
        let (producer, base_sequence) = (ProducerId(producer), Sequence(sequence));
        builder.finish(ProducerStamp { producer, epoch: ProducerEpoch(1), base_sequence }, &mut body);
        write_frame(&mut frames, FrameType::Publish, 0, 0, None, |out| out.extend_from_slice(&body));
    }
    frames
}

#[test]
fn channels_behind_a_loud_one_get_their_turn() {
    let (loud, quiet) = (4, 8);
    let mut lab = Lab::new(2, Admission { forwarded_max: 4, ..Admission::default() });
    let elsewhere = 1;
    lab.open_channel(loud, elsewhere);
    lab.open_channel(quiet, elsewhere);
    lab.turn();
    lab.answer();
    lab.write(loud, &batches(loud, 0..1_000, b"loud"));
    lab.write(quiet, &batches(quiet, 0..10, b"quiet"));
    let mut waited = 0;
    let mut sent = 0;
    while sent < 10 {
        // The loud one is also announced as readable, which gives it no other place.
        lab.core.on_readable(NOW, CONN, loud, &mut lab.links);
        lab.turn();
        sent += lab.answer().get(&quiet).copied().unwrap_or(0);
        waited += 1;
        assert!(waited < 20, "{sent} of 10 batches in {waited} turns");
    }
    // Nothing is lost and nothing waits for ever.
    let mut loud_sent = 0;
    for _ in 0..300 {
        lab.turn();
        loud_sent += lab.answer().get(&loud).copied().unwrap_or(0);
    }
    assert!(loud_sent > 900, "{loud_sent}");
}

#[test]
fn streams_that_are_not_read_share_what_waits_for_them() {
    let mut lab = Lab::new(1, Admission::default());
    for id in 1..=100 {
        // Half of the streams take nothing, half take a little.
        let room = if id % 2 == 0 { 1_000 } else { 0 };
        lab.links.room.insert(u64::from(id) * 4 - 1, room);
        lab.subscribe(id, DeliveryMode::Own);
        lab.turn();
    }
    lab.open_channel(4, 0);
    lab.turn();
    lab.write(4, &batches(4, 0..1, &[7; 100_000]));
    lab.turn();
    assert_eq!(lab.links.sent[&7], 1_000, "a stream is not used");
    let kept = lab.core.delivery_bytes_kept(CONN);
    assert!(kept < 1 << 20, "{kept} bytes are kept for streams that are not read");
    // All of it comes once there is room.
    for stream in (1..=100).map(|id| id * 4 - 1) {
        lab.links.room.insert(stream, usize::MAX);
        lab.core.on_writable(CONN, stream);
        lab.turn();
        assert!(lab.links.sent[&stream] > 100_000, "{} bytes on stream {stream}", lab.links.sent[&stream]);
    }
}

#[test]
fn ends_that_are_not_read_hold_further_requests() {
    let mut lab = Lab::new(1, Admission::default());
    lab.links.room.insert(3, 0);
    let pairs = 100_000;
    for id in 1..=pairs {
        lab.subscribe(id, DeliveryMode::Shared);
        lab.ask(0, id, &Frame::Unsubscribe);
        if id % 100 == 0 {
            lab.turn();
        }
    }
    let kept = lab.core.delivery_bytes_kept(CONN);
    assert!(kept < 1 << 20, "{kept} bytes of SubscriptionClosed are kept");
    // A client that reads them is served on.
    let mut turns = 0;
    while !lab.links.input[&0].is_empty() {
        lab.links.room.insert(3, 100_000);
        lab.core.on_writable(CONN, 3);
        lab.turn();
        turns += 1;
        assert!(turns < 1_000, "requests are not read any more");
    }
    lab.links.room.remove(&3);
    lab.core.on_writable(CONN, 3);
    lab.turn();
    let mut closed = Vec::new();
    let frame = SubscriptionClosed { code: ErrorCode::NoError, next: Position::default(), detail: String::new() };
    Frame::SubscriptionClosed(frame).encode(1, &mut closed);
    lab.turn();
    lab.turn();
    assert_eq!(lab.links.sent[&3], u64::from(pairs) * closed.len() as u64);
    assert_eq!(lab.core.subscription_count(), 0);
}

#[test]
fn different_filters_of_a_shard_are_bounded() {
    let mut lab = Lab::new(1, Admission::default());
    let max = felix_shard::limits::Limits::default().filters_max as u32;
    for id in 1..=max + 10 {
        lab.subscribe_to(id, DeliveryMode::Shared, &format!("key.{id}"));
    }
    lab.turn();
    assert_eq!(lab.core.subscription_count(), max as usize);
    assert_eq!(lab.core.counters.requests_refused, 10);
    // Those in use and none at all are taken further on, and a filter that goes makes room.
    lab.subscribe_to(max + 11, DeliveryMode::Shared, "key.7");
    lab.subscribe(max + 12, DeliveryMode::Shared);
    lab.turn();
    assert_eq!(lab.core.subscription_count(), max as usize + 2);
    lab.ask(0, 1, &Frame::Unsubscribe);
    lab.subscribe_to(max + 13, DeliveryMode::Shared, "key.new");
    lab.turn();
    assert_eq!(lab.core.subscription_count(), max as usize + 2);
    assert_eq!(lab.core.counters.requests_refused, 10);
}
