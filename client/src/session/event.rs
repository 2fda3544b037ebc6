//! **What**: what a session tells its owner, and what it asks its owner to do.
//!
//! **Invariants**: a closed list; nothing here borrows from the wire except bytes to send.
//!
//! **Never**: a frame that the protocol does not allow at that place: `session.rs` refused it.
//!
//! **See**: `session.rs`.

use crate::violation::Violation;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{
    ChannelOpened, ErrorFrame, Goaway, PublishAck, PublishRefused, Route, Stats, Subscribed, SubscriptionClosed,
    Welcome,
};
use felix_protocol::ids::{ProducerEpoch, ProducerId};
use felix_protocol::metadata::Reply;
use felix_protocol::position::OffsetRange;

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is the frame of its name")]
pub enum Answer {
    Route(Route),
    Producer { producer: ProducerId, epoch: ProducerEpoch },
    Admin(Reply),
    Stats(Stats),
}

/// A delivery as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Delivery number.
    pub number: u64,
    /// Offsets covered.
    pub covered: OffsetRange,
    /// What it carries.
    pub content: Content,
    /// Bytes of the frame: what it costs of the credit.
    pub frame_bytes: usize,
    /// It came as a DATAGRAM.
    pub datagram: bool,
}

/// What a delivery carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The whole frame, and where the batch begins in it. Not checked yet.
    Batch {
        /// The frame.
        frame: Vec<u8>,
        /// Start of the batch.
        start: usize,
    },
    /// Not delivered.
    Gap,
    /// Nothing matched.
    Progress,
}

/// What a session tells its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// The broker greeted: requests may be made.
    Ready(Welcome),
    /// A request was answered.
    Answered {
        /// Its id.
        request: u32,
        /// The answer, or the refusal.
        result: Result<Answer, ErrorFrame>,
    },
    /// A channel is open.
    ChannelOpened {
        /// Its QUIC stream.
        stream: u64,
        /// What the broker said.
        opened: ChannelOpened,
    },
    /// Batches were appended.
    Acked {
        /// The channel's QUIC stream.
        stream: u64,
        /// Which.
        ack: PublishAck,
    },
    /// A batch was refused.
    Refused {
        /// The channel's QUIC stream.
        stream: u64,
        /// Which.
        refused: PublishRefused,
    },
    /// A channel ended: refused at its start, failed later, or reset. Its stream is gone.
    ChannelFailed {
        /// The channel's QUIC stream.
        stream: u64,
        /// Why, if the broker said so.
        error: Option<ErrorFrame>,
    },
    /// A subscription is live.
    Subscribed {
        /// Its id.
        subscription: u32,
        /// What the broker said.
        subscribed: Subscribed,
    },
    /// A subscription did not start.
    SubscribeRefused {
        /// Its id.
        subscription: u32,
        /// Why.
        error: ErrorFrame,
    },
    /// A delivery, for a subscription that is live or about to be.
    Delivered {
        /// Its id.
        subscription: u32,
        /// What came.
        delivered: Delivered,
    },
    /// A subscription ended.
    SubscriptionClosed {
        /// Its id.
        subscription: u32,
        /// Why, and where to go on.
        closed: SubscriptionClosed,
    },
    /// The stream that carried a subscription was reset.
    SubscriptionLost {
        /// Its id.
        subscription: u32,
    },
    /// The routing version moved on.
    RouteChanged {
        /// To this.
        routing_version: u64,
    },
    /// The broker is going away.
    Goaway(Goaway),
    /// The session is over: the broker said so, or broke the protocol. The connection is being closed.
    Over(End),
}

/// Why a session is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// An Error frame about the connection.
    Refused(ErrorFrame),
    /// A violation.
    Violation(Violation),
}

/// What the owner must do for a session.
#[derive(Debug, PartialEq, Eq)]
pub enum Output<'a> {
    /// Write to a QUIC stream; tell with `Session::on_sent` how much it took.
    Send {
        /// QUIC stream id; the first write opens it.
        stream: u64,
        /// Bytes.
        bytes: &'a [u8],
        /// The stream ends after them.
        fin: bool,
    },
    /// Give up a QUIC stream in both directions.
    Abandon {
        /// QUIC stream id.
        stream: u64,
    },
    /// Close the connection.
    Close {
        /// Application error code.
        code: ErrorCode,
    },
}
