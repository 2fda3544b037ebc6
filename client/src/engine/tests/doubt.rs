//! Publishing: batches that may be in the log although they were refused, and what becomes of their places.

use super::kit::*;
use crate::ack::AckFuture;
use crate::config::PublisherOptions;
use crate::engine::{ConnKey, Lost};
use crate::error::{PublishError, UnknownReason};
use crate::session::CONTROL_STREAM;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::Frame;
use felix_protocol::ids::{ProducerEpoch, ProducerId};
use std::time::Duration;

fn options() -> PublisherOptions {
    PublisherOptions { deadline: Duration::from_secs(10), ..Default::default() }
}

fn unknown(reason: UnknownReason) -> Option<Result<crate::ack::Acked, PublishError>> {
    Some(Err(PublishError::UnknownOutcome { reason }))
}

#[test]
fn a_record_that_a_failed_disk_kept_after_all_is_no_violation() {
    // The broker restarts at once, or refuses to open the shard until then.
    for refuses in [false, true] {
        let (mut world, conn) = World::ready(1);
        let mut publisher = Pub::new(&mut world, 1, options());
        let first = publisher.send(&mut world, "a");
        let (_, stream) = publisher.open(&mut world, 0, 1);
        world.take();
        world.say(conn, stream, 0, &refused(0, ErrorCode::StorageFailed));
        assert_eq!(first.try_get(), unknown(UnknownReason::StorageFailed));
        publisher.pump(&mut world);
        if refuses {
            let second = publisher.send(&mut world, "refused");
            let open = world.take();
            world.say(conn, open.stream, 0, &error(ErrorCode::StorageFailed));
            publisher.pump(&mut world);
            let rejected = matches!(second.try_get(), Some(Err(PublishError::Rejected { .. })));
            assert!(rejected, "{:?}", second.try_get());
        }
        world.lose(conn, Lost::Reset);
        let _third = publisher.send(&mut world, "b");
        world.accept(0);
        publisher.pass(&mut world, SECOND);
        publisher.open(&mut world, 1, 1);
        assert_eq!(world.closes, []);
        assert_eq!(world.take().batch(), (1, 1));
    }
}

#[test]
fn a_late_refusal_of_a_failed_disk_keeps_the_place_too() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let first = publisher.send(&mut world, "a");
    let (_, stream) = publisher.open(&mut world, 0, 1);
    world.take();
    publisher.pass(&mut world, 10 * SECOND);
    assert_eq!(first.try_get(), unknown(UnknownReason::Deadline));
    world.say(conn, stream, 0, &refused(0, ErrorCode::StorageFailed));
    world.lose(conn, Lost::Reset);
    let _second = publisher.send(&mut world, "b");
    world.accept(0);
    publisher.open(&mut world, 1, 1);
    assert_eq!(world.closes, []);
    assert_eq!(world.take().batch(), (1, 1));
}

#[test]
fn a_failed_disk_does_not_keep_a_publisher_from_ending() {
    for idempotent in [true, false] {
        let (mut world, conn) = World::ready(1);
        let mut publisher = Pub::new(&mut world, 1, PublisherOptions { idempotent, ..options() });
        let first = publisher.send(&mut world, "a");
        let (_, stream) = publisher.open(&mut world, 0, 1);
        world.take();
        world.say(conn, stream, 0, &refused(0, ErrorCode::StorageFailed));
        publisher.pump(&mut world);
        assert_eq!(first.try_get(), unknown(UnknownReason::StorageFailed));
        world.nothing();
        world.engine.close_publisher(publisher.id);
        publisher.pump(&mut world);
        assert!(!world.engine.has_publisher(publisher.id));
    }
}

/// A batch that was appended, lost its ack with the connection, and was sent again as it was.
struct Resent {
    world: World,
    conn: ConnKey,
    publisher: Pub,
    first: AckFuture,
    stream: u64,
    sent: Vec<u8>,
}

impl Resent {
    fn new() -> Resent {
        let (mut world, conn) = World::ready(1);
        let mut publisher = Pub::new(&mut world, 1, options());
        let first = publisher.send(&mut world, "a");
        publisher.open(&mut world, 0, 1);
        let sent = world.take().bytes;
        world.lose(conn, Lost::Reset);
        let conn = world.accept(0);
        let (_, stream) = publisher.open(&mut world, 1, 1);
        assert_eq!(world.take().bytes, sent);
        Resent { world, conn, publisher, first, stream, sent }
    }
}

#[test]
fn what_is_in_the_log_is_never_told_as_rejected() {
    let Resent { mut world, conn, mut publisher, first, stream, .. } = Resent::new();
    world.say(conn, stream, 0, &refused(0, ErrorCode::DuplicateMismatch));
    assert_eq!(first.try_get(), unknown(UnknownReason::ProducerForgotten));
    // The broker's number is asked for anew before anything else goes out.
    let second = publisher.send(&mut world, "b");
    let (_, stream) = publisher.open(&mut world, 1, 1);
    assert_eq!(world.take().batch(), (1, 1));
    world.say(conn, stream, 0, &ack(2, &[8]));
    assert_eq!(second.try_get().unwrap().unwrap().position.offset.0, 8);
}

#[test]
fn what_is_in_the_log_keeps_its_sequence_whatever_the_refusal() {
    for code in [ErrorCode::Overloaded, ErrorCode::NotOwner, ErrorCode::SequenceGap] {
        let Resent { mut world, conn, mut publisher, first, stream, sent } = Resent::new();
        world.say(conn, stream, 0, &refused(0, code));
        publisher.pass(&mut world, 20 * MS);
        let mut again = world.take();
        if again.stream == 0 {
            again = world.take();
        }
        if again.stream != stream {
            world.say(conn, again.stream, 0, &opened(1, 1));
            publisher.pump(&mut world);
            again = world.take();
        }
        assert_eq!(again.bytes, sent, "{code:?}: another sequence would be a second copy");
        world.say(conn, again.stream, 0, &ack(1, &[7]));
        assert_eq!(first.try_get().unwrap().unwrap().position.offset.0, 7, "{code:?}");
    }
}

#[test]
fn a_sequence_that_somebody_else_took_is_left_to_him() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let first = publisher.send(&mut world, "a");
    let (_, stream) = publisher.open(&mut world, 0, 1);
    world.take();
    let also = publisher.send(&mut world, "another");
    world.take();
    world.say(conn, stream, 0, &refused(0, ErrorCode::DuplicateMismatch));
    world.say(conn, stream, 0, &refused(1, ErrorCode::DuplicateMismatch));
    assert!(also.try_get().is_some());
    let rejected = matches!(first.try_get(), Some(Err(PublishError::Rejected { .. })));
    assert!(rejected, "the bytes in the log are not ours: {:?}", first.try_get());
    let _second = publisher.send(&mut world, "b");
    let got = world.take();
    assert!(matches!(got.frame(), Frame::GetProducer), "{:?}", got.frame());
    world.say(conn, CONTROL_STREAM, got.id(), &Frame::Producer { producer: ProducerId(10), epoch: ProducerEpoch(1) });
    publisher.open(&mut world, 0, 1);
    assert_eq!((world.take().batch(), world.closes.len()), ((0, 1), 0));
}
