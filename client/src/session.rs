//! **What**: one connection at the level of frames, sans-IO: bytes of QUIC streams in, events out; commands in, bytes
//! of QUIC streams out. The simulator drives it with the same calls as `link.rs`.
//!
//! ```text
//!   Connecting --on_connected: Hello--> Greeting --Welcome--> Ready --violation, close--> Over
//!
//!   stream 0        control: requests and their replies, Goaway, RouteChanged
//!   streams 4, 8 …  one publish channel each
//!   streams 3, 7 …  from the broker: Deliver and SubscriptionClosed
//!   DATAGRAM        one Deliver
//! ```
//!
//! **Invariants**: a reply is passed on only if its request is open and of its kind. After a violation nothing is
//! passed on and the connection is closed with the code of it. Memory: one unfinished frame per stream, all streams
//! together at most `UNFINISHED_BYTES_MAX`.
//!
//! **Never**: trust in an order between QUIC streams: deliveries may come before `Subscribed`.
//!
//! **See**: `engine.rs`, which owns sessions; `session/reader.rs` (frames); `send_queue.rs` (bytes out).

mod event;
mod reader;
mod reading;

use crate::send_queue::{Chunk, SendQueues};
use crate::violation::Violation;
pub use event::{Answer, Content, Delivered, End, Output, SessionEvent};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{Frame, Hello, OpenChannel, Subscribe};
use felix_protocol::ids::ClusterId;
use felix_protocol::limits::FRAME_BYTES_MAX;
use felix_protocol::version::{WireVersion, feature};
use reader::{FrameBytes, FrameReader};
use reading::Parts;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// QUIC stream id of the control stream.
pub const CONTROL_STREAM: u64 = 0;
/// Step between stream ids of one kind (RFC 9000 section 2.1).
const STREAM_STEP: u64 = 4;
/// Unfinished frames of all streams together: room for sixteen of the largest.
const UNFINISHED_BYTES_MAX: usize = 16 * FRAME_BYTES_MAX;

/// Who says Hello.
#[derive(Clone, Default)]
pub struct Identity {
    /// For the broker's logs.
    pub client_name: String,
    /// Bearer token, may be empty.
    pub token: Vec<u8>,
    /// Cluster this client has been talking to; None: any.
    pub cluster: Option<ClusterId>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("client_name", &self.client_name).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Greeting,
    Ready,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Route,
    Producer,
    Admin,
    Stats,
}

/// A subscription that was asked for and did not end.
#[derive(Clone, Copy, Debug, Default)]
struct Subscription {
    confirmed: bool,
    /// QUIC stream of its last delivery.
    stream: Option<u64>,
}

#[derive(Debug, Default)]
struct Channel {
    reader: FrameReader,
    opened: bool,
}

/// One connection.
#[derive(Debug)]
pub struct Session {
    state: State,
    identity: Identity,
    control: FrameReader,
    channels: HashMap<u64, Channel>,
    /// Channels that we ended and the broker did not yet.
    ending: HashSet<u64>,
    deliveries: HashMap<u64, FrameReader>,
    /// Without Subscribe: its answer may never come, if it is taken back before.
    requests: HashMap<u32, Expected>,
    subscriptions: HashMap<u32, Subscription>,
    next_request: u32,
    next_stream: u64,
    unfinished_bytes: usize,
    queues: SendQueues,
    abandoned: VecDeque<u64>,
    close: Option<ErrorCode>,
    events: VecDeque<SessionEvent>,
}

impl Session {
    /// A session whose connection is not established yet.
    pub fn new(identity: Identity) -> Session {
        Session {
            state: State::Connecting,
            identity,
            control: FrameReader::default(),
            channels: HashMap::new(),
            ending: HashSet::new(),
            deliveries: HashMap::new(),
            requests: HashMap::new(),
            subscriptions: HashMap::new(),
            next_request: 1,
            next_stream: CONTROL_STREAM + STREAM_STEP,
            unfinished_bytes: 0,
            queues: SendQueues::default(),
            abandoned: VecDeque::new(),
            close: None,
            events: VecDeque::new(),
        }
    }

    // ---- inputs -------------------------------------------------------------------------------------------------

    /// The QUIC handshake is complete: says Hello.
    pub fn on_connected(&mut self) {
        if self.state != State::Connecting {
            return;
        }
        self.state = State::Greeting;
        let identity = std::mem::take(&mut self.identity);
        self.send_control(
            0,
            &Frame::Hello(Hello {
                version_min: WireVersion::LOWEST.0,
                version_max: WireVersion::HIGHEST.0,
                features: feature::ALL,
                cluster: identity.cluster,
                client_name: &identity.client_name,
                token: &identity.token,
            }),
        );
    }

    /// Bytes came on a QUIC stream; `fin`: it ends after them.
    pub fn on_stream_bytes(&mut self, stream: u64, bytes: &[u8], fin: bool) {
        if self.state == State::Over {
            return;
        }
        if let Err(violation) = self.read_stream(stream, bytes, fin) {
            self.fail(violation);
        }
    }

    /// A QUIC stream takes bytes again.
    pub fn on_stream_writable(&mut self, stream: u64) {
        self.queues.unblock(stream);
    }

    /// The broker reset a stream, or does not want what we send on it.
    pub fn on_stream_failed(&mut self, stream: u64) {
        if stream == CONTROL_STREAM {
            return self.fail(Violation::ControlStreamEnded);
        }
        if let Some(reader) = self.deliveries.remove(&stream) {
            // What this stream carried is lost: its subscriptions must start again where they are.
            self.unfinished_bytes -= reader.held();
            let mut lost: Vec<u32> =
                self.subscriptions.iter().filter(|(_, it)| it.stream == Some(stream)).map(|(id, _)| *id).collect();
            lost.sort_unstable();
            for subscription in lost {
                self.unsubscribe(subscription);
                self.events.push_back(SessionEvent::SubscriptionLost { subscription });
            }
        }
        self.ending.remove(&stream);
        self.drop_channel(stream, None);
    }

    /// A DATAGRAM came.
    pub fn on_datagram(&mut self, bytes: &[u8]) {
        if self.state == State::Over {
            return;
        }
        let result = match Frame::decode(bytes) {
            Ok((envelope, Frame::Deliver(deliver))) => {
                self.deliver(envelope.request_id, FrameBytes::Borrowed(bytes), Parts::of(&deliver, bytes), None)
            }
            Ok((envelope, _)) => Err(Violation::UnexpectedFrame(envelope.frame_type)),
            Err(error) => Err(error.into()),
        };
        if let Err(violation) = result {
            self.fail(violation);
        }
    }

    /// The connection ended; what was open is forgotten.
    pub fn on_closed(&mut self) {
        self.state = State::Over;
        self.close = None;
        self.abandoned.clear();
        self.queues = SendQueues::default();
    }

    // ---- commands -----------------------------------------------------------------------------------------------

    /// Whether requests may be made.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Requests without an answer, of those that the broker counts against requests_max.
    pub fn open_requests(&self) -> usize {
        self.requests.len()
    }

    /// Channels open or opening.
    pub fn channel_count(&self) -> usize {
        self.channels.len()
    }

    /// Live subscriptions.
    pub fn subscription_count(&self) -> usize {
        self.subscriptions.len()
    }

    /// Makes a request (GetRoute, GetProducer, Admin, GetStats). Its id; None if this session is not ready or the
    /// frame is no request.
    pub fn request(&mut self, frame: &Frame<'_>) -> Option<u32> {
        let expected = match frame {
            Frame::GetRoute { .. } => Expected::Route,
            Frame::GetProducer => Expected::Producer,
            Frame::Admin(_) => Expected::Admin,
            Frame::GetStats { .. } => Expected::Stats,
            _ => return None,
        };
        let id = self.ask(frame)?;
        self.requests.insert(id, expected);
        Some(id)
    }

    fn ask(&mut self, frame: &Frame<'_>) -> Option<u32> {
        if self.state != State::Ready {
            return None;
        }
        // Ids are used once per connection: a client that makes four billion requests reconnects.
        let id = self.next_request;
        self.next_request = match id.checked_add(1) {
            Some(next) => next,
            None => {
                self.shut(ErrorCode::NoError);
                return None;
            }
        };
        self.send_control(id, frame);
        Some(id)
    }

    /// Opens a publish channel; its QUIC stream. None if not ready.
    pub fn open_channel(&mut self, open: &OpenChannel) -> Option<u64> {
        if self.state != State::Ready {
            return None;
        }
        let stream = self.next_stream;
        self.next_stream += STREAM_STEP;
        self.channels.insert(stream, Channel::default());
        let mut bytes = Vec::new();
        Frame::OpenChannel(open.clone()).encode(0, &mut bytes);
        self.queues.push(stream, Chunk::Owned(bytes));
        Some(stream)
    }

    /// Sends a whole Publish frame on an open channel.
    pub fn publish(&mut self, stream: u64, frame: Arc<Vec<u8>>) {
        if self.state == State::Ready && self.channels.contains_key(&stream) {
            self.queues.push(stream, Chunk::Shared(frame));
        }
    }

    /// Bytes of a channel that QUIC has not taken yet.
    pub fn unsent_bytes(&self, stream: u64) -> usize {
        self.queues.waiting(stream)
    }

    /// Ends a channel after what was published on it. What still comes for it is ignored.
    pub fn close_channel(&mut self, stream: u64) {
        if self.channels.remove(&stream).map(|it| self.unfinished_bytes -= it.reader.held()).is_some() {
            self.queues.finish(stream);
            self.ending.insert(stream);
        }
    }

    /// Whether everything sent is taken by QUIC, and every channel that was ended is ended by the broker too: then all
    /// that was published is answered or at least arrived.
    pub fn is_quiet(&self) -> bool {
        self.ending.is_empty() && self.queues.is_empty()
    }

    /// Starts a subscription; its id. None if not ready.
    pub fn subscribe(&mut self, subscribe: &Subscribe) -> Option<u32> {
        let id = self.ask(&Frame::Subscribe(subscribe.clone()))?;
        self.subscriptions.insert(id, Subscription::default());
        Some(id)
    }

    /// Grants a subscription bytes, counted from its start.
    pub fn credit(&mut self, subscription: u32, total_bytes: u64) {
        if self.subscriptions.contains_key(&subscription) {
            self.send_control(subscription, &Frame::Credit { total_bytes });
        }
    }

    /// Ends a subscription. What still comes for it is ignored.
    pub fn unsubscribe(&mut self, subscription: u32) {
        if self.subscriptions.remove(&subscription).is_some() {
            self.send_control(subscription, &Frame::Unsubscribe);
        }
    }

    /// Closes the connection in order.
    pub fn shut(&mut self, code: ErrorCode) {
        if self.state != State::Over {
            self.close = Some(code);
            self.state = State::Over;
        }
    }

    /// Closes the connection because of what a subscription or channel found in it.
    pub fn fail(&mut self, violation: Violation) {
        self.end(End::Violation(violation), violation.code());
    }

    fn end(&mut self, end: End, code: ErrorCode) {
        if self.state != State::Over {
            self.shut(code);
            self.events.push_back(SessionEvent::Over(end));
        }
    }

    // ---- outputs ------------------------------------------------------------------------------------------------

    /// The next thing to tell the owner.
    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }

    /// The next thing to do for this session.
    pub fn poll_output(&mut self) -> Option<Output<'_>> {
        if self.state == State::Over {
            return self.close.take().map(|code| Output::Close { code });
        }
        if let Some(stream) = self.abandoned.pop_front() {
            return Some(Output::Abandon { stream });
        }
        self.queues.offer().map(|offer| Output::Send { stream: offer.stream, bytes: offer.bytes, fin: offer.fin })
    }

    /// QUIC took `count` bytes of the last `Output::Send`; fewer than offered: it calls `on_stream_writable` later.
    pub fn on_sent(&mut self, stream: u64, count: usize) {
        self.queues.taken(stream, count);
    }

    /// QUIC cannot open that stream yet. Tried again at [`Session::retry_blocked`].
    pub fn on_stream_limit(&mut self, stream: u64) {
        self.queues.block(stream);
    }

    /// QUIC does not know that stream any more.
    pub fn forget_stream(&mut self, stream: u64) {
        self.queues.forget(stream);
    }

    /// Offers blocked streams again (after a stream limit, which has no event when it is lifted).
    pub fn retry_blocked(&mut self) {
        for stream in self.queues.blocked() {
            self.queues.unblock(stream);
        }
    }

    fn send_control(&mut self, request_id: u32, frame: &Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(request_id, &mut bytes);
        self.queues.push(CONTROL_STREAM, Chunk::Owned(bytes));
    }
}
