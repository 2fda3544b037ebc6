//! Publishing: batches that may be in the log although they were refused, and what becomes of their places.

use super::kit::*;
use crate::config::PublisherOptions;
use crate::engine::Lost;
use crate::error::{PublishError, UnknownReason};
use felix_protocol::error_code::ErrorCode;
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
