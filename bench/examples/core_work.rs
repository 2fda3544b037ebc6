//! A fixed piece of work for one core of the broker, without sockets, clock or QUIC: one publisher, 100 subscribers, a
//! record of 256 bytes at a time. The same rounds give the same instructions, so that they can be counted.
//!
//! `core_work ROUNDS` runs and prints what was delivered and allocated. See `tests/baselines.rs`.

use felix_broker::admission::Admission;
use felix_broker::core::{Core, CoreConfig, Identity};
use felix_broker::links::{LinkError, Links, Read};
use felix_broker::message::{FromControl, MeshMessage};
use felix_control::authorise::{Principal, Roles};
use felix_control::command::Internal;
use felix_control::member::{Member, MemberSettings};
use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::envelope::{FrameType, write_frame};
use felix_protocol::frame::{CHANNEL_ACKS, DeliveryMode, Frame, Hello, OpenChannel, SlowPolicy, Start, Subscribe};
use felix_protocol::ids::{ClusterId, CoreId, NodeId, NodeSession, ProducerEpoch, ProducerId, Sequence, ShardIndex};
use felix_protocol::metadata::{Command, StreamSpec};
use felix_protocol::names::StreamName;
use felix_protocol::time::{Now, Time, Timestamp};
use felix_quic::LentBytes;
use felix_shard::event::ConnKey;
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SUBSCRIBERS: u64 = 100;
const PUBLISHER: ConnKey = ConnKey(0);
const CHANNEL: u64 = 4;
const WARM_UP: u64 = 600;

/// Connections without a network: what a client wrote waits to be read, what the core writes is counted.
#[derive(Default)]
struct Outside {
    incoming: BTreeMap<(u64, u64), Vec<u8>>,
    delivered_bytes: u64,
    closed: Option<String>,
}

impl Links for Outside {
    fn stream_recv(&mut self, conn: ConnKey, stream: u64, buffer: &mut [u8]) -> Result<Read, LinkError> {
        let waiting = self.incoming.get_mut(&(conn.0, stream)).filter(|it| !it.is_empty());
        let waiting = waiting.ok_or(LinkError::WouldBlock)?;
        let bytes = waiting.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&waiting[..bytes]);
        waiting.drain(..bytes);
        Ok(Read { bytes, fin: false })
    }
    fn stream_send(&mut self, _: ConnKey, stream: u64, bytes: &[u8], _: bool) -> Result<usize, LinkError> {
        if stream & 0b11 == 0b11 {
            self.delivered_bytes += bytes.len() as u64;
        }
        Ok(bytes.len())
    }
    fn stream_lend(&mut self, conn: ConnKey, stream: u64, bytes: LentBytes) -> Result<usize, LinkError> {
        self.stream_send(conn, stream, (*bytes).as_ref(), false)
    }
    fn stream_capacity(&mut self, _: ConnKey, _: u64) -> usize {
        1 << 20
    }
    fn stream_wait(&mut self, _: ConnKey, _: u64) -> Result<bool, LinkError> {
        Ok(true)
    }
    fn stop_reading(&mut self, _: ConnKey, _: u64, _: u16) {}
    fn reset(&mut self, _: ConnKey, _: u64, _: u16) {}
    fn open_uni(&mut self, _: ConnKey) -> Result<u64, LinkError> {
        Ok(3)
    }
    fn datagram_send(&mut self, _: ConnKey, _: &[u8]) -> Result<(), LinkError> {
        Err(LinkError::TooLarge)
    }
    fn close(&mut self, _: ConnKey, code: u16, reason: &str) {
        self.closed = Some(format!("{code} {reason}"));
    }
    fn mesh_send(&mut self, _: usize, message: MeshMessage) -> Result<(), MeshMessage> {
        // The only other member is the control thread; reports are dropped here.
        drop(message);
        Ok(())
    }
}

struct Lab {
    core: Core,
    outside: Outside,
    turns: u64,
}

impl Lab {
    /// Time goes on by a fixed step per turn.
    fn now(&self) -> Now {
        let at = self.turns * 10_000;
        Now { time: Time(at), wall: Timestamp(1_700_000_000_000_000_000 + at) }
    }

    fn new() -> Lab {
        let core = Core::new(CoreConfig {
            me: CoreId(0),
            core_count: 1,
            identity: Identity {
                cluster: ClusterId(1),
                node: NodeId(1),
                session: NodeSession(1),
                region: "local".into(),
            },
            admission: Admission::default(),
            // A short tail and little retention, so that steady state (as much goes as comes) is reached soon.
            shard_limits: felix_shard::limits::Limits { tail_batches_max: 256, ..Default::default() },
            roles: Arc::new(Roles::default()),
        });
        let mut lab = Lab { core, outside: Outside::default(), turns: 0 };
        let mut member = Member::new(MemberSettings::default());
        let now = lab.now();
        member.propose_internal(now.wall, Internal::SetCoreCount { cores: 1 });
        let command = Command::CreateStream {
            name: stream_name(),
            spec: StreamSpec { retention_bytes: 128 << 10, ..StreamSpec::default() },
            create_parents: true,
        };
        let done = member.propose(now.wall, &Principal::admin(), 1, command);
        let changes =
            FromControl::Changes { routing_version: member.state().routing_version(), changes: done.changes.into() };
        lab.core.on_mesh(now, 1, MeshMessage::FromControl(Box::new(changes)));
        lab
    }

    /// A client wrote: the core reads, and its turn ends.
    fn write(&mut self, conn: ConnKey, stream: u64, bytes: &[u8]) {
        self.turns += 1;
        let now = self.now();
        self.outside.incoming.entry((conn.0, stream)).or_default().extend_from_slice(bytes);
        self.core.on_readable(now, conn, stream, &mut self.outside);
        while self.core.end_turn(now, &mut self.outside) {}
        if let Some(reason) = &self.outside.closed {
            panic!("the core closed a connection: {reason}");
        }
    }

    fn frame(&mut self, conn: ConnKey, stream: u64, frame: &Frame) {
        let mut out = Vec::new();
        frame.encode(1, &mut out);
        self.write(conn, stream, &out);
    }
}

fn stream_name() -> StreamName {
    StreamName::parse("a/b/c").expect("a valid name")
}

fn main() {
    let rounds: u64 = std::env::args().nth(1).and_then(|it| it.parse().ok()).expect("core_work ROUNDS");
    let mut lab = Lab::new();
    let hello = Hello { version_min: 1, version_max: 1, features: 0, cluster: None, client_name: "", token: &[] };
    for conn in 0..=SUBSCRIBERS {
        let now = lab.now();
        lab.core.on_connected(now, ConnKey(conn), Some(Arc::new(Principal::admin())));
        lab.frame(ConnKey(conn), 0, &Frame::Hello(hello.clone()));
    }
    for conn in 1..=SUBSCRIBERS {
        let subscribe = Subscribe {
            stream_name: stream_name(),
            stream: None,
            shard_index: ShardIndex(0),
            start: Start::Latest,
            policy: SlowPolicy::Block,
            mode: DeliveryMode::Shared,
            credit_bytes: None,
            filter: String::new(),
        };
        lab.frame(ConnKey(conn), 0, &Frame::Subscribe(subscribe));
    }
    let open = OpenChannel {
        stream_name: stream_name(),
        stream: None,
        shard_index: ShardIndex(0),
        flags: CHANNEL_ACKS,
        producer: ProducerId(9),
        producer_epoch: ProducerEpoch(1),
    };
    lab.frame(PUBLISHER, CHANNEL, &Frame::OpenChannel(open));

    let (mut builder, mut body, mut out) = (BatchBuilder::new(), Vec::new(), Vec::new());
    let mut publish = |lab: &mut Lab, number: u64| {
        builder
            .push(&RecordToPublish { key: Some(b"XNAS.AAPL"), value: &[7; 256], ..Default::default() })
            .expect("a record within the limits");
        body.clear();
        let stamp = ProducerStamp { producer: ProducerId(9), epoch: ProducerEpoch(1), base_sequence: Sequence(number) };
        builder.finish(stamp, &mut body);
        out.clear();
        write_frame(&mut out, FrameType::Publish, 0, 0, None, |out| out.extend_from_slice(&body));
        lab.write(PUBLISHER, CHANNEL, &out);
    };
    (0..WARM_UP).for_each(|number| publish(&mut lab, number));
    let (bytes, allocations) = (lab.outside.delivered_bytes, COUNT.load(Ordering::Relaxed));
    (WARM_UP..WARM_UP + rounds).for_each(|number| publish(&mut lab, number));
    let bytes = lab.outside.delivered_bytes - bytes;
    let allocations = COUNT.load(Ordering::Relaxed) - allocations;
    let deliveries = rounds * SUBSCRIBERS;
    assert!(bytes >= deliveries * 256, "{bytes} bytes are not {deliveries} deliveries");
    println!("deliveries {deliveries} bytes {bytes} allocations {allocations}");
}
