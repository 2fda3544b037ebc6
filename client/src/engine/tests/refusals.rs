//! Publishing: whom the refusal of a shard, or of a producer, concerns.

use super::kit::*;
use crate::ack::AckFuture;
use crate::config::PublisherOptions;
use crate::error::PublishError;
use crate::session::CONTROL_STREAM;
use felix_protocol::batch_builder::RecordToPublish;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::Frame;
use felix_protocol::ids::{ProducerEpoch, ProducerId};
use felix_protocol::routing::{find_range, key_hash};
use std::time::Duration;

fn options() -> PublisherOptions {
    PublisherOptions { deadline: Duration::from_secs(10), idempotent: false, ..Default::default() }
}

fn is_rejected(future: &AckFuture, with: ErrorCode) -> bool {
    matches!(future.try_get(), Some(Err(PublishError::Rejected { code, .. })) if code == with)
}

/// Publishes with a key that goes to this one of two shards.
fn send_to(publisher: &mut Pub, world: &mut World, shard: usize) -> AckFuture {
    let starts: Vec<u64> = route(2).shards.iter().map(|it| it.range_start).collect();
    let key = (0u32..).map(|it| it.to_le_bytes()).find(|it| find_range(&starts, key_hash(it)) == Some(shard)).unwrap();
    publisher.send_record(world, &RecordToPublish { key: Some(&key), value: b"v", ..Default::default() })
}

#[test]
fn the_refusal_of_one_shard_is_not_told_to_the_others() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 2, options());
    let sick = send_to(&mut publisher, &mut world, 0);
    let sound = send_to(&mut publisher, &mut world, 1);
    let (first, second) = (world.take(), world.take());
    world.say(conn, first.stream, 0, &error(ErrorCode::StorageFailed));
    publisher.pump(&mut world);
    assert!(is_rejected(&sick, ErrorCode::StorageFailed), "{:?}", sick.try_get());
    assert_eq!(sound.try_get(), None);
    world.say(conn, second.stream, 0, &opened(0, 1));
    publisher.pump(&mut world);
    world.take();
    world.say(conn, second.stream, 0, &ack(1, &[3]));
    assert!(sound.try_get().unwrap().is_ok());
}

#[test]
fn a_refusal_concerns_what_waited_and_not_what_comes_later() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, options());
    let first = publisher.send(&mut world, "a");
    let open = world.take();
    world.say(conn, open.stream, 0, &error(ErrorCode::NotFound));
    publisher.pump(&mut world);
    assert!(is_rejected(&first, ErrorCode::NotFound));
    // Nothing waits, so nothing is asked.
    world.nothing();
    publisher.pass(&mut world, SECOND);
    world.nothing();
    let second = publisher.send(&mut world, "b");
    let open = world.take();
    assert_eq!(second.try_get(), None, "the stream may have been made meanwhile");
    // What came after the broker's word is not meant by it.
    world.say(conn, open.stream, 0, &error(ErrorCode::NotFound));
    publisher.pass(&mut world, 1);
    let third = publisher.send(&mut world, "c");
    assert!(is_rejected(&second, ErrorCode::NotFound));
    assert_eq!(third.try_get(), None);
    // A shard that refuses is asked more and more rarely.
    world.nothing();
    publisher.pass(&mut world, SECOND);
    publisher.open(&mut world, 0, 1);
    assert_eq!(world.take().values(), ["c"]);
}

#[test]
fn a_refused_producer_concerns_only_who_needs_one() {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 2, PublisherOptions { idempotent: true, ..options() });
    let sound = send_to(&mut publisher, &mut world, 0);
    let ask = world.take();
    let producer = Frame::Producer { producer: ProducerId(9), epoch: ProducerEpoch(1) };
    world.say(conn, CONTROL_STREAM, ask.id(), &producer);
    publisher.pump(&mut world);
    let first = world.take();
    let fenced = send_to(&mut publisher, &mut world, 1);
    let open = world.take();
    world.say(conn, open.stream, 0, &error(ErrorCode::ProducerFenced));
    publisher.pass(&mut world, 20 * MS);
    let ask = world.take();
    assert!(matches!(ask.frame(), Frame::GetProducer), "{:?}", ask.frame());
    world.say(conn, CONTROL_STREAM, ask.id(), &error(ErrorCode::PermissionDenied));
    publisher.pump(&mut world);
    assert!(is_rejected(&fenced, ErrorCode::PermissionDenied), "{:?}", fenced.try_get());
    assert_eq!(sound.try_get(), None, "its channel has a producer");
    world.say(conn, first.stream, 0, &opened(0, 1));
    publisher.pump(&mut world);
    world.take();
    world.say(conn, first.stream, 0, &ack(1, &[3]));
    assert!(sound.try_get().unwrap().is_ok());
    world.now += 1;
    let later = send_to(&mut publisher, &mut world, 1);
    publisher.pass(&mut world, SECOND);
    assert_eq!(later.try_get(), None, "it came after the broker's word");
    assert!(matches!(world.take().frame(), Frame::GetProducer));
}
