//! **What**: the reading half of a session: bytes of QUIC streams to frames, frames to events.
//!
//! **Invariants**: a frame is passed on only where and when the protocol allows it; everything else is a [`Violation`].
//! What still comes for a channel or subscription that we ended is ignored, because it was under way.
//!
//! **Never**: an answer to a request that is not open.
//!
//! **See**: `session.rs` for the state, `reader.rs` for the cutting of frames.

use super::event::{Answer, Content, Delivered, End, SessionEvent};
use super::reader::{FrameBytes, FrameReader};
use super::{CONTROL_STREAM, Expected, STREAM_STEP, Session, State, UNFINISHED_BYTES_MAX};
use crate::violation::Violation;
use felix_protocol::codec::DecodeError;
use felix_protocol::envelope::FrameType;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{Deliver, Delivery, ErrorFrame, Frame, SubscriptionClosed};
use felix_protocol::position::OffsetRange;
use felix_protocol::version::WireVersion;

impl Session {
    pub(super) fn read_stream(&mut self, stream: u64, mut bytes: &[u8], fin: bool) -> Result<(), Violation> {
        let mut reader = match self.take_reader(stream)? {
            Some(reader) => reader,
            None => {
                if fin {
                    self.ending.remove(&stream);
                }
                return Ok(());
            }
        };
        let before = reader.held();
        while let Some(frame) = reader.next(&mut bytes)? {
            self.on_frame(stream, frame)?;
            if self.state == State::Over {
                return Ok(());
            }
        }
        self.unfinished_bytes = self.unfinished_bytes - before + reader.held();
        if self.unfinished_bytes > UNFINISHED_BYTES_MAX {
            return Err(Violation::TooMuchUnfinished { bytes: self.unfinished_bytes });
        }
        if fin && reader.held() > 0 {
            return Err(Violation::StreamEndedInFrame { stream });
        }
        self.put_reader(stream, reader, fin)
    }

    fn take_reader(&mut self, stream: u64) -> Result<Option<FrameReader>, Violation> {
        match stream % STREAM_STEP {
            0 if stream == CONTROL_STREAM => Ok(Some(std::mem::take(&mut self.control))),
            // A channel that we closed may still answer.
            0 if stream < self.next_stream => {
                Ok(self.channels.get_mut(&stream).map(|it| std::mem::take(&mut it.reader)))
            }
            3 => Ok(Some(self.deliveries.remove(&stream).unwrap_or_default())),
            _ => Err(Violation::UnexpectedStream { stream }),
        }
    }

    fn put_reader(&mut self, stream: u64, reader: FrameReader, fin: bool) -> Result<(), Violation> {
        if stream == CONTROL_STREAM {
            self.control = reader;
            return if fin { Err(Violation::ControlStreamEnded) } else { Ok(()) };
        }
        if stream % STREAM_STEP == 3 {
            if !fin {
                self.deliveries.insert(stream, reader);
            }
            return Ok(());
        }
        match self.channels.get_mut(&stream) {
            Some(channel) if !fin => channel.reader = reader,
            Some(_) => self.drop_channel(stream, None),
            None => self.unfinished_bytes -= reader.held(),
        }
        Ok(())
    }

    pub(super) fn drop_channel(&mut self, stream: u64, error: Option<ErrorFrame>) {
        if let Some(channel) = self.channels.remove(&stream) {
            self.unfinished_bytes -= channel.reader.held();
            self.queues.forget(stream);
            self.abandoned.push_back(stream);
            self.events.push_back(SessionEvent::ChannelFailed { stream, error });
        }
    }

    fn on_frame(&mut self, stream: u64, bytes: FrameBytes<'_>) -> Result<(), Violation> {
        let (envelope, frame) = Frame::decode(bytes.as_slice())?;
        let id = envelope.request_id;
        if self.state != State::Ready {
            return self.on_greeting(stream, envelope.frame_type, frame);
        }
        match (stream, frame) {
            (CONTROL_STREAM, frame) => self.on_control(id, envelope.frame_type, frame),
            (_, Frame::Deliver(deliver)) if stream % STREAM_STEP == 3 => {
                let parts = Parts::of(&deliver, bytes.as_slice());
                self.deliver(id, bytes, parts, Some(stream))
            }
            (_, Frame::SubscriptionClosed(closed)) if stream % STREAM_STEP == 3 => {
                self.on_subscription_closed(id, closed)
            }
            (_, frame) if stream.is_multiple_of(STREAM_STEP) => self.on_channel(stream, envelope.frame_type, frame),
            _ => Err(Violation::UnexpectedFrame(envelope.frame_type)),
        }
    }

    fn on_greeting(&mut self, stream: u64, frame_type: FrameType, frame: Frame<'_>) -> Result<(), Violation> {
        match frame {
            Frame::Welcome(welcome) if stream == CONTROL_STREAM && self.state == State::Greeting => {
                if WireVersion::negotiate(welcome.version, welcome.version).is_none() {
                    return Err(DecodeError::UnknownVersion(welcome.version).into());
                }
                self.state = State::Ready;
                self.events.push_back(SessionEvent::Ready(welcome));
                Ok(())
            }
            Frame::Error(error) if stream == CONTROL_STREAM => {
                self.end(End::Refused(error), ErrorCode::NoError);
                Ok(())
            }
            _ => Err(Violation::UnexpectedFrame(frame_type)),
        }
    }

    fn on_control(&mut self, id: u32, frame_type: FrameType, frame: Frame<'_>) -> Result<(), Violation> {
        match frame {
            Frame::Route(route) => self.answer(id, Expected::Route, Answer::Route(route)),
            Frame::Producer { producer, epoch } => {
                self.answer(id, Expected::Producer, Answer::Producer { producer, epoch })
            }
            Frame::AdminReply(reply) => self.answer(id, Expected::Admin, Answer::Admin(reply)),
            Frame::Stats(stats) => self.answer(id, Expected::Stats, Answer::Stats(stats)),
            Frame::Subscribed(subscribed) => {
                // Not known: it was given up meanwhile, or its end came first, on another stream.
                let may_have_ended = self.was_used(id) && !self.requests.contains_key(&id);
                match self.subscriptions.get_mut(&id) {
                    Some(it) if !it.confirmed => {
                        it.confirmed = true;
                        self.events.push_back(SessionEvent::Subscribed { subscription: id, subscribed });
                        Ok(())
                    }
                    None if may_have_ended => Ok(()),
                    _ => Err(Violation::WrongReply { request_id: id }),
                }
            }
            Frame::Error(error) if id == 0 => {
                self.end(End::Refused(error), ErrorCode::NoError);
                Ok(())
            }
            Frame::Error(error) if self.subscriptions.get(&id).is_some_and(|it| !it.confirmed) => {
                self.subscriptions.remove(&id);
                self.events.push_back(SessionEvent::SubscribeRefused { subscription: id, error });
                Ok(())
            }
            Frame::Error(error) => match self.take_request(id, None) {
                Ok(_) => {
                    self.events.push_back(SessionEvent::Answered { request: id, result: Err(error) });
                    Ok(())
                }
                // A refused Credit or Unsubscribe of a subscription that ended meanwhile.
                Err(_) if self.was_used(id) => Ok(()),
                Err(violation) => Err(violation),
            },
            Frame::SubscriptionClosed(closed) => self.on_subscription_closed(id, closed),
            Frame::RouteChanged { routing_version } => {
                self.events.push_back(SessionEvent::RouteChanged { routing_version });
                Ok(())
            }
            Frame::Goaway(goaway) => {
                self.events.push_back(SessionEvent::Goaway(goaway));
                Ok(())
            }
            _ => Err(Violation::UnexpectedFrame(frame_type)),
        }
    }

    fn was_used(&self, id: u32) -> bool {
        id != 0 && id < self.next_request
    }

    fn take_request(&mut self, id: u32, expected: Option<Expected>) -> Result<Expected, Violation> {
        match self.requests.remove(&id) {
            Some(found) if expected.is_none_or(|it| it == found) => Ok(found),
            _ => Err(Violation::WrongReply { request_id: id }),
        }
    }

    fn answer(&mut self, id: u32, expected: Expected, answer: Answer) -> Result<(), Violation> {
        self.take_request(id, Some(expected))?;
        self.events.push_back(SessionEvent::Answered { request: id, result: Ok(answer) });
        Ok(())
    }

    fn on_channel(&mut self, stream: u64, frame_type: FrameType, frame: Frame<'_>) -> Result<(), Violation> {
        // A channel that we closed meanwhile is ignored.
        let Some(channel) = self.channels.get_mut(&stream) else { return Ok(()) };
        let event = match frame {
            Frame::ChannelOpened(opened) if !channel.opened => {
                channel.opened = true;
                SessionEvent::ChannelOpened { stream, opened }
            }
            Frame::PublishAck(ack) if channel.opened => SessionEvent::Acked { stream, ack },
            Frame::PublishRefused(refused) if channel.opened => SessionEvent::Refused { stream, refused },
            Frame::Error(error) => {
                self.drop_channel(stream, Some(error));
                return Ok(());
            }
            _ => return Err(Violation::UnexpectedFrame(frame_type)),
        };
        self.events.push_back(event);
        Ok(())
    }

    fn on_subscription_closed(&mut self, id: u32, closed: SubscriptionClosed) -> Result<(), Violation> {
        if !self.was_used(id) {
            return Err(Violation::UnknownSubscription { subscription: id });
        }
        // It may end before it was confirmed.
        if self.subscriptions.remove(&id).is_some() {
            self.events.push_back(SessionEvent::SubscriptionClosed { subscription: id, closed });
        }
        Ok(())
    }

    pub(super) fn deliver(
        &mut self,
        id: u32,
        bytes: FrameBytes<'_>,
        parts: Parts,
        stream: Option<u64>,
    ) -> Result<(), Violation> {
        let Some(subscription) = self.subscriptions.get_mut(&id) else {
            // One that ended a moment ago still has deliveries on the way; one that never was has not.
            return match self.was_used(id) {
                true => Ok(()),
                false => Err(Violation::UnknownSubscription { subscription: id }),
            };
        };
        if stream.is_some() {
            subscription.stream = stream;
        }
        let datagram = stream.is_none();
        let frame_bytes = bytes.as_slice().len();
        let content = match parts.kind {
            Kind::Batch(start) => Content::Batch { frame: bytes.into_vec(), start },
            Kind::Gap => Content::Gap,
            Kind::Progress => Content::Progress,
        };
        let delivered = Delivered { number: parts.number, covered: parts.covered, content, frame_bytes, datagram };
        self.events.push_back(SessionEvent::Delivered { subscription: id, delivered });
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Batch(usize),
    Gap,
    Progress,
}

/// A `Deliver` without its borrow.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    number: u64,
    covered: OffsetRange,
    kind: Kind,
}

impl Parts {
    pub(super) fn of(deliver: &Deliver<'_>, frame: &[u8]) -> Parts {
        let kind = match deliver.delivery {
            // The batch is the tail of the frame.
            Delivery::Batch(batch) => Kind::Batch(frame.len() - batch.len()),
            Delivery::Gap => Kind::Gap,
            Delivery::Progress => Kind::Progress,
        };
        Parts { number: deliver.number, covered: deliver.covered, kind }
    }
}
