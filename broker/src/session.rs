//! **What**: the state of one connection: who it is, its control stream, its channels, its subscriptions.
//!
//! ```text
//! Connected -> AwaitHello --Hello--> Ready --Goaway sent--> Draining
//!                  |  anything else, or too late: closed with a typed error
//! ```
//!
//! **Invariants**: an idle session holds no buffers: frames are cut in the core's scratch and only an unfinished one is
//! kept. Everything unsent is bounded by `admission.rs`.
//!
//! **Never**: a copy of a large batch per subscriber: what flow control cut of one is a handle of the copy that all share;
//! of a small one the rest of the frame is kept.
//!
//! **See**: `requests.rs` (control frames), `channel.rs` (publish), `delivery.rs` (subscriptions).

use crate::channel::Channel;
use crate::links::{LinkError, Links};
use felix_control::authorise::Principal;
use felix_protocol::frame_stream::FrameStream;
use felix_protocol::ids::SubscriptionId;
use felix_protocol::time::Time;
use felix_quic::LentBytes;
use felix_shard::event::{ConnKey, SubKey};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// QUIC stream id of the control stream: the first that a client opens.
pub const CONTROL_STREAM: u64 = 0;

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Connected; only Hello is allowed.
    AwaitHello {
        /// When it is closed.
        deadline: Time,
    },
    /// Serving.
    Ready,
    /// Told to go away; serving until it is gone.
    Draining,
}

/// Bytes waiting for flow control on one stream. Its memory is at most some twice of what waits, also while that never
/// becomes nothing.
#[derive(Debug, Default)]
pub struct OutBuffer {
    bytes: Vec<u8>,
    at: usize,
    /// Comes behind `bytes`.
    lent: Option<Box<LentRest>>,
}

/// The rest of a batch that was lent to the transport: the copy that all subscribers share, not one of its own.
struct LentRest {
    batch: LentBytes,
    at: usize,
    /// What comes behind it.
    behind: Vec<u8>,
}

impl LentRest {
    fn rest(&self) -> &[u8] {
        &(*self.batch).as_ref()[self.at..]
    }
}

impl std::fmt::Debug for LentRest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LentRest").field("rest", &self.rest().len()).field("behind", &self.behind.len()).finish()
    }
}

impl OutBuffer {
    /// Bytes not sent yet.
    pub fn waiting(&self) -> usize {
        let lent = self.lent.as_ref().map_or(0, |lent| lent.rest().len() + lent.behind.len());
        self.bytes.len() - self.at + lent
    }

    /// Bytes of memory that are this buffer's own.
    pub fn own_bytes(&self) -> usize {
        self.bytes.capacity() + self.lent.as_ref().map_or(0, |lent| lent.behind.capacity())
    }

    /// The buffer to append whole frames to.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        match &mut self.lent {
            Some(lent) => &mut lent.behind,
            None => &mut self.bytes,
        }
    }

    /// Sends what flow control takes. `Ok(true)`: all is sent.
    #[inline]
    pub fn flush(&mut self, conn: ConnKey, stream: u64, links: &mut impl Links) -> Result<bool, LinkError> {
        // As nearly always.
        if self.bytes.is_empty() && self.lent.is_none() {
            return Ok(true);
        }
        self.flush_what_waits(conn, stream, links)
    }

    fn flush_what_waits(&mut self, conn: ConnKey, stream: u64, links: &mut impl Links) -> Result<bool, LinkError> {
        loop {
            while self.at < self.bytes.len() {
                let sent = links.stream_send(conn, stream, &self.bytes[self.at..], false)?;
                if sent == 0 {
                    self.let_go_of_sent();
                    return Ok(false);
                }
                self.at += sent;
            }
            self.bytes.clear();
            self.at = 0;
            if self.bytes.capacity() > 4 << 10 {
                self.bytes = Vec::new();
            }
            let Some(lent) = &mut self.lent else { return Ok(true) };
            while !lent.rest().is_empty() {
                let sent = links.stream_send(conn, stream, lent.rest(), false)?;
                if sent == 0 {
                    return Ok(false);
                }
                lent.at += sent;
            }
            self.bytes = std::mem::take(&mut lent.behind);
            self.lent = None;
        }
    }

    /// A reader that is slow but never caught up with would keep all that was ever sent. Half of the bytes at least are
    /// let go, so each byte is moved once on average.
    fn let_go_of_sent(&mut self) {
        if self.at >= 4 << 10 && self.at * 2 >= self.bytes.len() {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
    }

    /// Keeps the rest of `bytes` that was not sent.
    pub fn keep(&mut self, rest: &[u8]) {
        self.buffer().extend_from_slice(rest);
    }

    /// Keeps a lent batch from `at` on, of which not all was sent.
    pub fn keep_lent(&mut self, batch: &LentBytes, at: usize) {
        match &self.lent {
            Some(_) => self.keep(&(**batch).as_ref()[at..]),
            None => self.lent = Some(Box::new(LentRest { batch: batch.clone(), at, behind: Vec::new() })),
        }
    }
}

/// A server-opened stream that carries deliveries.
#[derive(Debug)]
pub struct DeliveryStream {
    /// QUIC stream id.
    pub stream: u64,
    /// The subscription whose own it is; None: it is shared.
    pub own: Option<SubscriptionId>,
    /// What flow control cut.
    pub out: OutBuffer,
    /// Bytes of `SubscriptionClosed` among what waits, at most.
    pub closing_bytes: usize,
    /// Subscriptions with something to send, round robin.
    pub ready: VecDeque<(SubKey, SubscriptionId)>,
    /// It is on the core's list of streams to write.
    pub queued: bool,
    /// The last send was short; the transport announces room.
    pub blocked: bool,
}

impl DeliveryStream {
    /// A fresh one.
    pub fn new(stream: u64, own: Option<SubscriptionId>) -> DeliveryStream {
        DeliveryStream {
            stream,
            own,
            out: OutBuffer::default(),
            closing_bytes: 0,
            ready: VecDeque::new(),
            queued: false,
            blocked: false,
        }
    }
}

/// A subscription of a session.
#[derive(Clone, Copy, Debug)]
pub struct SessionSub {
    /// Its place in the fan-out.
    pub key: SubKey,
    /// Stream its deliveries go on (datagrams: for what does not fit, and its end).
    pub stream: u64,
}

/// Streams that carry deliveries, by QUIC id. A client may have one per subscription; nearly all have the shared one alone, which
/// is found without a search.
#[derive(Debug, Default)]
pub struct DeliveryStreams {
    shared: Option<DeliveryStream>,
    own: BTreeMap<u64, DeliveryStream>,
}

impl DeliveryStreams {
    /// Adds one.
    pub fn insert(&mut self, delivery: DeliveryStream) {
        match delivery.own {
            None => self.shared = Some(delivery),
            Some(_) => drop(self.own.insert(delivery.stream, delivery)),
        }
    }

    /// The one with this id.
    #[inline]
    pub fn get_mut(&mut self, stream: u64) -> Option<&mut DeliveryStream> {
        match &mut self.shared {
            Some(shared) if shared.stream == stream => Some(shared),
            _ => self.own.get_mut(&stream),
        }
    }

    /// Takes the one with this id out.
    pub fn remove(&mut self, stream: u64) -> Option<DeliveryStream> {
        match self.shared.take_if(|it| it.stream == stream) {
            Some(shared) => Some(shared),
            None => self.own.remove(&stream),
        }
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = &DeliveryStream> {
        self.shared.iter().chain(self.own.values())
    }
}

/// One connection.
#[derive(Debug)]
pub struct Session {
    /// Its key.
    pub conn: ConnKey,
    /// Who the certificate says it is; None: it showed none.
    pub principal: Option<Arc<Principal>>,
    /// How far it is.
    pub state: SessionState,
    /// Features both sides have.
    pub features: u64,
    /// Unfinished control frame.
    pub control_in: FrameStream,
    /// Unsent control frames.
    pub control_out: OutBuffer,
    /// The control stream was not read to its end because of a bound.
    pub control_stalled: bool,
    /// The client's end of the control stream was read; frames in front of it may still be kept.
    pub control_ended: bool,
    /// Requests that wait for the control thread.
    pub requests: u32,
    /// Publish channels by QUIC stream.
    pub channels: HashMap<u64, Box<Channel>>,
    /// Subscriptions by number.
    pub subs: HashMap<SubscriptionId, SessionSub>,
    /// Streams that carry deliveries.
    pub delivery: DeliveryStreams,
    /// Unsent bytes of `SubscriptionClosed` on all of them: these are asked for, so they hold further requests.
    pub closing_bytes: usize,
    /// Subscriptions that send datagrams and have something to send.
    pub datagrams: VecDeque<(SubKey, SubscriptionId)>,
    /// The datagram list is on the core's list.
    pub datagrams_queued: bool,
    /// Which delivery stream is shared.
    pub shared: Option<u64>,
}

impl Session {
    /// A session that must say Hello before `deadline`.
    pub fn new(conn: ConnKey, principal: Option<Arc<Principal>>, deadline: Time) -> Session {
        Session {
            conn,
            principal,
            state: SessionState::AwaitHello { deadline },
            features: 0,
            control_in: FrameStream::new(),
            control_out: OutBuffer::default(),
            control_stalled: false,
            control_ended: false,
            requests: 0,
            channels: HashMap::new(),
            subs: HashMap::new(),
            delivery: DeliveryStreams::default(),
            closing_bytes: 0,
            datagrams: VecDeque::new(),
            datagrams_queued: false,
            shared: None,
        }
    }
}

/// The sessions of a core, by the slot in their key.
#[derive(Debug, Default)]
pub struct Sessions {
    slots: Vec<Option<Box<Session>>>,
    count: usize,
}

impl Sessions {
    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds one; an older one in the same slot is given back.
    pub fn insert(&mut self, session: Session) -> Option<Box<Session>> {
        let slot = slot(session.conn);
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        let old = self.slots[slot].replace(Box::new(session));
        self.count += usize::from(old.is_none());
        old
    }

    /// One by key.
    pub fn get(&mut self, conn: ConnKey) -> Option<&mut Session> {
        self.slots.get_mut(slot(conn))?.as_deref_mut().filter(|it| it.conn == conn)
    }

    /// Takes one out.
    pub fn remove(&mut self, conn: ConnKey) -> Option<Box<Session>> {
        self.get(conn)?;
        self.count -= 1;
        self.slots[slot(conn)].take()
    }

    /// All keys, by slot.
    pub fn keys(&self) -> Vec<ConnKey> {
        self.slots.iter().flatten().map(|it| it.conn).collect()
    }
}

/// The low half of a key is the endpoint's slot (`felix_quic::ConnId::to_u64`).
fn slot(conn: ConnKey) -> usize {
    conn.0 as u32 as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::Read;
    use crate::message::MeshMessage;

    /// A stream that takes `room` bytes, then nothing.
    struct Slow {
        room: usize,
    }

    impl Links for Slow {
        fn stream_recv(&mut self, _: ConnKey, _: u64, _: &mut [u8]) -> Result<Read, LinkError> {
            Err(LinkError::WouldBlock)
        }
        fn stream_send(&mut self, _: ConnKey, _: u64, bytes: &[u8], _: bool) -> Result<usize, LinkError> {
            let taken = bytes.len().min(self.room);
            self.room -= taken;
            Ok(taken)
        }
        fn stream_lend(&mut self, _: ConnKey, _: u64, _: LentBytes) -> Result<usize, LinkError> {
            Ok(0)
        }
        fn stream_capacity(&mut self, _: ConnKey, _: u64) -> usize {
            self.room
        }
        fn stream_wait(&mut self, _: ConnKey, _: u64) -> Result<bool, LinkError> {
            Ok(self.room > 0)
        }
        fn stop_reading(&mut self, _: ConnKey, _: u64, _: u16) {}
        fn reset(&mut self, _: ConnKey, _: u64, _: u16) {}
        fn open_uni(&mut self, _: ConnKey) -> Result<u64, LinkError> {
            Err(LinkError::StreamLimit)
        }
        fn datagram_send(&mut self, _: ConnKey, _: &[u8]) -> Result<(), LinkError> {
            Err(LinkError::TooLarge)
        }
        fn close(&mut self, _: ConnKey, _: u16, _: &str) {}
        fn mesh_send(&mut self, _: usize, message: MeshMessage) -> Result<(), MeshMessage> {
            Err(message)
        }
    }

    #[test]
    fn a_buffer_that_never_runs_empty_lets_go_of_what_was_sent() {
        let mut links = Slow { room: 0 };
        let mut out = OutBuffer::default();
        out.keep(&[7; 2_000]);
        for round in 0..10_000u32 {
            links.room = 1_000;
            out.buffer().extend_from_slice(&[round as u8; 1_000]);
            assert_eq!(out.flush(ConnKey(1), 0, &mut links), Ok(false));
        }
        assert_eq!(out.waiting(), 2_000);
        assert_eq!(out.bytes[out.at..], [[(9_998 % 256) as u8; 1_000], [(9_999 % 256) as u8; 1_000]].concat());
        assert!(out.buffer().capacity() < 1 << 16, "{} bytes", out.buffer().capacity());
    }
}
