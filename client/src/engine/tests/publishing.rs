//! Publishing: acks, refusals, loss and resend.

use super::kit::*;
use crate::config::PublisherOptions;
use crate::engine::Lost;
use crate::error::{PublishError, UnknownReason};
use crate::session::CONTROL_STREAM;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{CHANNEL_ACKS, CHANNEL_KEYED, Frame, Goaway};
use felix_protocol::ids::{CoreId, ProducerEpoch, ProducerId};
use felix_protocol::position::Offset;
use std::time::Duration;

fn options() -> PublisherOptions {
    PublisherOptions { deadline: Duration::from_secs(10), ..Default::default() }
}

fn offset(future: &crate::ack::AckFuture) -> u64 {
    future.try_get().expect("a result").expect("an ack").position.offset.0
}

#[test]
fn a_record_goes_out_and_its_position_comes_back() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let first = publisher.send(&mut world, "a");
    let (conn_of_channel, stream) = publisher.open(&mut world, 0, 1);
    assert_eq!((conn_of_channel, stream), (conn, 4));
    let sent = world.take();
    assert_eq!((sent.stream, sent.batch(), sent.values()), (4, (0, 1), vec!["a".to_string()]));
    assert!(first.try_get().is_none());
    world.say(conn, 4, 0, &ack(1, &[100]));
    publisher.pump(&mut world);
    let acked = first.try_get().unwrap().unwrap();
    assert_eq!((acked.position.offset, acked.shard.0), (Offset(100), 0));
    assert_eq!((publisher.intake.take_report().acked, publisher.intake.bytes_in_flight()), (1, 0));
}

#[test]
fn what_waits_becomes_one_batch_and_pipelined_acks_match() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let futures: Vec<_> = ["a", "b", "c"].iter().map(|it| publisher.send(&mut world, it)).collect();
    let (_, stream) = publisher.open(&mut world, 0, 1);
    assert_eq!(world.take().values(), ["a", "b", "c"], "they waited for the channel together");
    let more: Vec<_> = ["d", "e"].iter().map(|it| publisher.send(&mut world, it)).collect();
    assert_eq!((world.take().batch(), world.take().batch()), ((3, 1), (4, 1)), "an open channel does not wait");
    world.say(conn, stream, 0, &ack(4, &[10, 20]));
    assert_eq!(futures.iter().map(offset).collect::<Vec<_>>(), [10, 11, 12]);
    assert_eq!((offset(&more[0]), more[1].try_get()), (20, None));
    world.say(conn, stream, 0, &ack(5, &[30]));
    assert_eq!(offset(&more[1]), 30);
}

#[test]
fn a_channel_names_stream_shard_producer_and_flags() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let _future = publisher.send(&mut world, "a");
    let got = world.take();
    let producer = Frame::Producer { producer: ProducerId(9), epoch: ProducerEpoch(1) };
    world.say(conn, CONTROL_STREAM, got.id(), &producer);
    publisher.pump(&mut world);
    let got = world.take();
    let Frame::OpenChannel(open) = got.frame() else { panic!("{:?}", got.frame()) };
    assert_eq!((open.stream_name.clone(), open.stream, open.shard_index.0), (name(), Some(STREAM), 0));
    assert_eq!((open.flags, open.producer), (CHANNEL_ACKS | CHANNEL_KEYED, ProducerId(9)));
}

#[test]
fn a_lost_connection_is_resolved_by_identical_bytes() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let first = publisher.send(&mut world, "a");
    let (_, stream) = publisher.open(&mut world, 0, 1);
    let second = publisher.send(&mut world, "b");
    let third = publisher.send(&mut world, "c");
    let sent = [world.take().bytes, world.take().bytes, world.take().bytes];
    world.say(conn, stream, 0, &ack(1, &[100]));
    assert_eq!(offset(&first), 100);
    world.lose(conn, Lost::Reset);
    let fourth = publisher.send(&mut world, "d");
    let conn = world.accept(0);
    // The second is in the log already, the third is not: both are sent again, and the broker tells where they are.
    let (_, stream) = publisher.open(&mut world, 2, 1);
    assert_eq!([world.take().bytes, world.take().bytes], [sent[1].clone(), sent[2].clone()]);
    assert_eq!(world.take().batch(), (3, 1));
    world.say(conn, stream, 0, &ack(4, &[101, 102, 103]));
    assert_eq!([offset(&second), offset(&third), offset(&fourth)], [101, 102, 103]);
    publisher.pump(&mut world);
    let report = publisher.intake.take_report();
    assert_eq!((report.acked, report.is_clean()), (4, true));
}

#[test]
fn without_a_producer_a_lost_connection_is_an_unknown_outcome() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, PublisherOptions { idempotent: false, ..options() });
    let first = publisher.send(&mut world, "a");
    publisher.open(&mut world, 0, 1);
    assert_eq!(world.take().batch(), (0, 1));
    world.lose(conn, Lost::Reset);
    let unknown = PublishError::UnknownOutcome { reason: UnknownReason::ConnectionLost };
    assert_eq!(first.try_get(), Some(Err(unknown)));
    let second = publisher.send(&mut world, "b");
    world.accept(0);
    publisher.open(&mut world, 0, 1);
    assert_eq!(world.take().batch(), (0, 1), "an anonymous channel counts from 0");
    assert!(second.try_get().is_none());
}

#[test]
fn a_rejected_batch_is_told_and_the_rest_keeps_its_order() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let first = publisher.send(&mut world, "a");
    let (_, stream) = publisher.open(&mut world, 0, 1);
    let bad = publisher.send(&mut world, "bad");
    let third = publisher.send(&mut world, "c");
    for _ in 0..3 {
        world.take();
    }
    world.say(conn, stream, 0, &refused(1, ErrorCode::InvalidBatch));
    assert!(matches!(bad.try_get(), Some(Err(PublishError::Rejected { code: ErrorCode::InvalidBatch, .. }))));
    let fourth = publisher.send(&mut world, "d");
    world.nothing();
    // The refusal made a hole; what was behind it is refused too, and sent again once all is answered.
    world.say(conn, stream, 0, &refused(2, ErrorCode::SequenceGap));
    world.nothing();
    world.say(conn, stream, 0, &ack(1, &[100]));
    publisher.pump(&mut world);
    let (third_again, fourth_sent) = (world.take(), world.take());
    assert_eq!((third_again.batch(), third_again.values()), ((1, 1), vec!["c".to_string()]));
    assert_eq!((fourth_sent.batch(), fourth_sent.values()), ((2, 1), vec!["d".to_string()]));
    world.say(conn, stream, 0, &ack(3, &[101, 102]));
    assert_eq!([offset(&first), offset(&third), offset(&fourth)], [100, 101, 102]);
}

#[test]
fn an_overloaded_broker_is_asked_again_in_order() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let first = publisher.send(&mut world, "a");
    let (_, stream) = publisher.open(&mut world, 0, 1);
    let second = publisher.send(&mut world, "b");
    let sent = [world.take().bytes, world.take().bytes];
    world.say(conn, stream, 0, &refused(0, ErrorCode::Overloaded));
    world.say(conn, stream, 0, &refused(1, ErrorCode::SequenceGap));
    world.nothing();
    publisher.pass(&mut world, 20 * MS);
    assert_eq!([world.take().bytes, world.take().bytes], sent);
    world.say(conn, stream, 0, &ack(2, &[5, 6]));
    assert_eq!([offset(&first), offset(&second)], [5, 6]);
}

#[test]
fn a_batch_refused_until_its_deadline_is_rejected_not_unknown() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, PublisherOptions { deadline: Duration::from_millis(25), ..options() });
    let first = publisher.send(&mut world, "a");
    let (_, stream) = publisher.open(&mut world, 0, 1);
    for _ in 0..3 {
        assert_eq!(world.take().batch(), (0, 1));
        world.say(conn, stream, 0, &refused(0, ErrorCode::Overloaded));
        publisher.pass(&mut world, 10 * MS);
        if first.try_get().is_some() {
            break;
        }
    }
    assert!(matches!(first.try_get(), Some(Err(PublishError::Rejected { code: ErrorCode::Overloaded, .. }))));
}

#[test]
fn deadlines_tell_what_is_known() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let sent = publisher.send(&mut world, "a");
    let (_, stream) = publisher.open(&mut world, 0, 1);
    world.take();
    publisher.pass(&mut world, 10 * SECOND);
    let unknown = PublishError::UnknownOutcome { reason: UnknownReason::Deadline };
    assert_eq!(sent.try_get(), Some(Err(unknown)));
    assert_eq!(publisher.intake.bytes_in_flight(), 0);
    // The late ack is still matched, and what follows is too.
    let next = publisher.send(&mut world, "b");
    world.say(conn, stream, 0, &ack(2, &[7, 8]));
    assert_eq!(offset(&next), 8);
    // Never sent: it expires.
    world.lose(conn, Lost::Silent);
    let waiting = publisher.send(&mut world, "c");
    publisher.pass(&mut world, 10 * SECOND);
    assert_eq!(waiting.try_get(), Some(Err(PublishError::Expired)));
}

#[test]
fn an_unknown_outcome_leaves_no_hole_after_a_reconnect() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let lost = publisher.send(&mut world, "a");
    publisher.open(&mut world, 0, 1);
    publisher.pass(&mut world, 9 * SECOND);
    let kept = publisher.send(&mut world, "b");
    assert_eq!((world.take().batch(), world.take().batch()), ((0, 1), (1, 1)));
    world.lose(conn, Lost::Silent);
    publisher.pass(&mut world, SECOND);
    assert!(matches!(lost.try_get(), Some(Err(PublishError::UnknownOutcome { .. }))));
    assert!(kept.try_get().is_none());
    let conn = world.accept(0);
    let (_, stream) = publisher.open(&mut world, 0, 1);
    let again = world.take();
    assert_eq!(
        (again.batch(), again.values()),
        ((0, 1), vec!["b".to_string()]),
        "numbered anew: `a` is not in the log"
    );
    world.say(conn, stream, 0, &ack(1, &[0]));
    assert_eq!(offset(&kept), 0);
}

#[test]
fn a_new_incarnation_of_the_data_is_written_from_zero() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let first = publisher.send(&mut world, "a");
    let (_, stream) = publisher.open(&mut world, 0, 1);
    world.take();
    world.say(conn, stream, 0, &ack(1, &[0]));
    assert_eq!(offset(&first), 0);
    let second = publisher.send(&mut world, "b");
    assert_eq!(world.take().batch(), (1, 1));
    world.lose(conn, Lost::Reset);
    let conn = world.accept(0);
    let (_, stream) = publisher.open(&mut world, 0, 2);
    let again = world.take();
    assert_eq!((again.batch(), again.values()), ((0, 1), vec!["b".to_string()]));
    world.say(conn, stream, 0, &ack(1, &[0]));
    assert_eq!(offset(&second), 0);
}

#[test]
fn a_forgotten_producer_is_an_unknown_outcome_never_a_duplicate() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let first = publisher.send(&mut world, "a");
    let (_, stream) = publisher.open(&mut world, 0, 1);
    world.take();
    world.say(conn, stream, 0, &ack(1, &[0]));
    assert_eq!(offset(&first), 0);
    let second = publisher.send(&mut world, "b");
    world.take();
    world.lose(conn, Lost::Reset);
    world.accept(0);
    publisher.open(&mut world, 0, 1);
    let unknown = PublishError::UnknownOutcome { reason: UnknownReason::ProducerForgotten };
    assert_eq!(second.try_get(), Some(Err(unknown)));
    let _third = publisher.send(&mut world, "c");
    assert_eq!(world.take().batch(), (0, 1));
}

#[test]
fn a_fenced_producer_takes_another_id() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let first = publisher.send(&mut world, "a");
    let got = world.take();
    world.say(conn, CONTROL_STREAM, got.id(), &Frame::Producer { producer: ProducerId(9), epoch: ProducerEpoch(1) });
    publisher.pump(&mut world);
    let open = world.take();
    world.say(conn, open.stream, 0, &error(ErrorCode::ProducerFenced));
    publisher.pass(&mut world, 20 * MS);
    let again = world.take();
    assert!(matches!(again.frame(), Frame::GetProducer));
    world.say(conn, CONTROL_STREAM, again.id(), &Frame::Producer { producer: ProducerId(10), epoch: ProducerEpoch(1) });
    let (_, stream) = publisher.open(&mut world, 0, 1);
    world.take();
    world.say(conn, stream, 0, &ack(1, &[3]));
    assert_eq!(offset(&first), 3);
}

#[test]
fn a_stream_that_is_not_there_rejects_what_waits() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, PublisherOptions { idempotent: false, ..options() });
    let first = publisher.send(&mut world, "a");
    let open = world.take();
    world.say(conn, open.stream, 0, &error(ErrorCode::NotFound));
    publisher.pump(&mut world);
    assert!(matches!(first.try_get(), Some(Err(PublishError::Rejected { code: ErrorCode::NotFound, .. }))));
    // It is tried again for what comes later.
    let second = publisher.send(&mut world, "b");
    publisher.pass(&mut world, 20 * MS);
    publisher.open(&mut world, 0, 1);
    assert_eq!(world.take().values(), ["b"]);
    assert!(second.try_get().is_none());
}

#[test]
fn a_moved_shard_is_followed_with_a_fresh_route() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let first = publisher.send(&mut world, "a");
    let (_, stream) = publisher.open(&mut world, 0, 1);
    let sent = world.take().bytes;
    world.say(conn, stream, 0, &error(ErrorCode::NotOwner));
    let got = world.take();
    assert!(matches!(got.frame(), Frame::GetRoute { .. }), "{:?}", got.frame());
    world.say(conn, CONTROL_STREAM, got.id(), &Frame::Route(route(1)));
    let (_, stream) = publisher.open(&mut world, 0, 1);
    assert_eq!(world.take().bytes, sent);
    world.say(conn, stream, 0, &ack(1, &[9]));
    assert_eq!(offset(&first), 9);
}

#[test]
fn publishers_go_to_the_owner_core_by_at_most_four_connections() {
    let (mut world, _) = World::ready(8);
    let mut publisher = Pub::new(&mut world, 8, PublisherOptions { idempotent: false, ..options() });
    for i in 0..40 {
        let key = format!("key {i}");
        let record = felix_protocol::batch_builder::RecordToPublish {
            key: Some(key.as_bytes()),
            value: b"v",
            ..Default::default()
        };
        publisher.intake.push(felix_protocol::time::Time(world.now), &record).unwrap();
    }
    publisher.pump(&mut world);
    let steered: Vec<_> = world.connects.iter().map(|it| it.1.unwrap()).collect();
    assert_eq!(steered.len(), 4, "{steered:?}");
    assert!(steered.iter().all(|it| it.core_count == 8 && it.core != CoreId(0)));
    // Shards of cores without a connection of their own wait for none: the mesh forwards.
    let mut placed = std::collections::BTreeMap::new();
    loop {
        while world.got_len() {
            let got = world.take();
            let Frame::OpenChannel(open) = got.frame() else { panic!("{:?}", got.frame()) };
            placed.insert(open.shard_index.0, got.conn);
        }
        let Some(core) = world.connects.first().map(|it| it.1.unwrap().core.0) else { break };
        world.accept(core);
        publisher.pump(&mut world);
    }
    assert_eq!(placed.len(), 8);
    for it in &steered {
        let others = placed.iter().filter(|other| *other.1 == placed[&u32::from(it.core.0)]);
        assert!(others.count() < 8 && placed[&u32::from(it.core.0)] != placed[&0], "{placed:?}");
    }
}

#[test]
fn goaway_finishes_what_is_in_flight_and_moves() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let first = publisher.send(&mut world, "a");
    let (_, stream) = publisher.open(&mut world, 0, 1);
    world.take();
    let goaway = Goaway { code: ErrorCode::Draining, drain_ms: 1_000, detail: "bye".into() };
    world.say(conn, CONTROL_STREAM, 0, &Frame::Goaway(goaway));
    let second = publisher.send(&mut world, "b");
    world.nothing();
    world.say(conn, stream, 0, &ack(1, &[0]));
    assert_eq!(offset(&first), 0);
    let new = world.accept(0);
    let (other, stream) = publisher.open(&mut world, 1, 1);
    assert_eq!(other, new);
    assert_eq!(world.take().batch(), (1, 1));
    world.say(new, stream, 0, &ack(2, &[1]));
    assert_eq!(offset(&second), 1);
    assert!(world.fins.contains(&(conn, 4)), "the old channel was ended in order");
    assert_eq!(world.closes, [], "what it carried may still be under way");
    let now = world.clock();
    world.engine.on_stream_bytes(now, conn, 4, &[], true);
    world.run();
    assert_eq!(world.closes, [(conn, ErrorCode::NoError)]);
}

#[test]
fn goaway_while_a_channel_opens_moves_it_too() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, PublisherOptions { idempotent: false, ..options() });
    let first = publisher.send(&mut world, "a");
    let open = world.take();
    let goaway = Goaway { code: ErrorCode::Draining, drain_ms: 1_000, detail: "bye".into() };
    world.say(conn, CONTROL_STREAM, 0, &Frame::Goaway(goaway));
    world.say(conn, open.stream, 0, &opened(0, 1));
    publisher.pump(&mut world);
    world.nothing();
    let new = world.accept(0);
    let (other, stream) = publisher.open(&mut world, 0, 1);
    assert_eq!(other, new);
    assert_eq!(world.take().values(), ["a"]);
    world.say(new, stream, 0, &ack(1, &[0]));
    assert_eq!(offset(&first), 0);
}

#[test]
fn a_channel_that_met_the_stream_limit_is_tried_again_without_an_event() {
    let (mut world, conn) = World::ready(1);
    publish_until_settled(&mut world);
    let before = world.engine.next_deadline().map_or(u64::MAX, |it| it.0);
    assert!(before > world.now + SECOND, "nothing is due");
    world.engine.on_stream_limit(conn, 4);
    assert!(world.engine.next_deadline().is_some_and(|it| it.0 <= world.now + 5 * MS));
}

/// A channel that opens, on a client that has nothing else to do.
fn publish_until_settled(world: &mut World) {
    let mut publisher = Pub::new(world, 1, PublisherOptions { idempotent: false, ..options() });
    let _future = publisher.send(world, "a");
    world.take();
    world.run();
}

#[test]
fn fire_and_forget_is_sent_once() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, PublisherOptions { acks: false, ..options() });
    publisher.send(&mut world, "a").try_get();
    publisher.open(&mut world, 0, 1);
    assert_eq!(world.take().values(), ["a"]);
    publisher.pump(&mut world);
    assert_eq!((publisher.intake.take_report().sent, publisher.intake.bytes_in_flight()), (1, 0));
    world.lose(conn, Lost::Reset);
    drop(publisher.send(&mut world, "b"));
    world.accept(0);
    publisher.open(&mut world, 0, 1);
    assert_eq!(world.take().values(), ["b"]);
}

#[test]
fn impossible_answers_close_the_connection() {
    for frame in [ack(1, &[1, 2]), ack(5, &[1, 2, 3]), refused(77, ErrorCode::Overloaded), opened(0, 1)] {
        let (mut world, conn) = World::ready(1);
        let mut publisher = Pub::new(&mut world, 1, options());
        let future = publisher.send(&mut world, "a");
        let (_, stream) = publisher.open(&mut world, 0, 1);
        world.say(conn, stream, 0, &frame);
        assert_eq!(world.closes.len(), 1, "{frame:?}");
        world.lose(conn, Lost::Closed);
        assert!(matches!(world.lost()[..], [Lost::Violation(_)]), "{frame:?}");
        assert!(future.try_get().is_none(), "the record outlives the connection");
    }
    // A sequence that never was.
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let _future = publisher.send(&mut world, "a");
    publisher.open(&mut world, 0, 1);
    world.take();
    world.lose(conn, Lost::Reset);
    world.accept(0);
    publisher.open(&mut world, 5, 1);
    assert_eq!(world.closes.len(), 1);
}

#[test]
fn closing_the_client_gives_every_record_an_outcome() {
    let (mut world, _) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let sent = publisher.send(&mut world, "a");
    publisher.open(&mut world, 0, 1);
    world.engine.shut_down();
    let cell = std::sync::Arc::new(crate::ack::AckCell::default());
    let record = felix_protocol::batch_builder::RecordToPublish::default();
    publisher.intake.push_with(felix_protocol::time::Time(world.now), &record, Some(cell.clone())).unwrap();
    world.engine.drain_intake(publisher.id, &mut publisher.intake);
    let unknown = PublishError::UnknownOutcome { reason: UnknownReason::Closed };
    assert_eq!(sent.try_get(), Some(Err(unknown)));
    assert_eq!(crate::ack::AckFuture { cell }.try_get(), Some(Err(PublishError::Expired)));
    assert_eq!(publisher.intake.bytes_in_flight(), 0);
}

#[test]
fn a_dropped_publisher_ends_after_its_last_answer() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let first = publisher.send(&mut world, "a");
    let (_, stream) = publisher.open(&mut world, 0, 1);
    world.engine.close_publisher(publisher.id);
    publisher.pump(&mut world);
    assert!(world.engine.has_publisher(publisher.id));
    world.say(conn, stream, 0, &ack(1, &[1]));
    publisher.pump(&mut world);
    assert_eq!((offset(&first), world.engine.has_publisher(publisher.id)), (1, false));
    assert_eq!(world.fins, [(conn, stream)]);
}
