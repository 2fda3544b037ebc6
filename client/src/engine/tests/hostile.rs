//! A broker that means harm: nothing it sends may panic, and memory stays bounded.

use super::kit::*;
use crate::config::{PublisherOptions, SubscribeOptions};
use crate::engine::{Ask, ConnKey, Lost};
use crate::random::Jitter;
use crate::session::CONTROL_STREAM;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{Delivery, Frame, Stats, SubscriptionClosed};
use felix_protocol::limits::FRAME_BYTES_MAX;
use felix_protocol::position::{Lineage, Offset, Position};
use felix_protocol::time::Time;

/// A world with everything in use, and frames that would be right in it.
fn busy() -> (World, Pub, ConnKey, Vec<(u64, Vec<u8>)>) {
    let (mut world, conn) = World::ready(1);
    let mut publisher = Pub::new(&mut world, 1, PublisherOptions { idempotent: false, ..Default::default() });
    let _a = publisher.send(&mut world, "a");
    let (_, stream) = publisher.open(&mut world, 0, 1);
    let _b = publisher.send(&mut world, "b");
    let _c = publisher.send(&mut world, "c");
    subscribe(&mut world, &SubscribeOptions::default());
    world.engine.request(1, Ask::Stats(None), Time(world.now + SECOND));
    world.engine.request(2, Ask::Route(name()), Time(world.now + SECOND));
    world.run();
    let mut ids = Vec::new();
    while world.got_len() {
        ids.push(world.take().id());
    }
    let ids: Vec<u32> = ids.into_iter().filter(|it| *it != 0).collect();
    let bytes = batch(10, 1, &["one", "two"]);
    let closed = SubscriptionClosed {
        code: ErrorCode::Overloaded,
        next: Position { lineage: Lineage(1), offset: Offset(12) },
        detail: "later".into(),
    };
    let mut frames = Vec::new();
    let mut add = |stream: u64, id: u32, frame: Frame<'_>| {
        let mut out = Vec::new();
        frame.encode(id, &mut out);
        frames.push((stream, out));
    };
    for id in ids {
        add(CONTROL_STREAM, id, subscribed(10, 1));
        add(CONTROL_STREAM, id, Frame::Stats(Stats::default()));
        add(CONTROL_STREAM, id, Frame::Route(route(3)));
        add(CONTROL_STREAM, id, error(ErrorCode::NotFound));
        add(3, id, deliver(0, 10, 12, Delivery::Batch(&bytes)));
        add(3, id, deliver(1, 12, 20, Delivery::Gap));
        add(3, id, Frame::SubscriptionClosed(closed.clone()));
    }
    add(stream, 0, ack(1, &[0]));
    add(stream, 0, refused(1, ErrorCode::Overloaded));
    add(stream, 0, ack(3, &[2, 3]));
    add(stream, 0, error(ErrorCode::NotOwner));
    add(CONTROL_STREAM, 0, Frame::RouteChanged { routing_version: 9 });
    add(CONTROL_STREAM, 0, Frame::Welcome(welcome(0, 1)));
    (world, publisher, conn, frames)
}

#[test]
fn mutated_frames_never_panic() {
    for seed in 0..3_000u64 {
        let mut random = Jitter::new(seed);
        let (mut world, mut publisher, conn, frames) = busy();
        for _ in 0..random.between(1, 6) {
            let (stream, bytes) = &frames[random.between(0, frames.len() as u64 - 1) as usize];
            let mut bytes = bytes.clone();
            for _ in 0..random.between(0, 3) {
                let at = random.between(0, bytes.len() as u64 - 1) as usize;
                match random.between(0, 3) {
                    0 => bytes[at] = random.next_u64() as u8,
                    1 => bytes[at] ^= 1 << random.between(0, 7),
                    2 => bytes.truncate(at + 1),
                    _ => bytes.insert(at, random.next_u64() as u8),
                }
            }
            let stream = match random.between(0, 9) {
                0 => random.between(0, 12),
                _ => *stream,
            };
            for piece in bytes.chunks(random.between(1, 64) as usize) {
                world.say_bytes(conn, stream, piece);
            }
            if random.between(0, 9) == 0 {
                world.engine.on_datagram(world.clock(), conn, &bytes);
            }
            if random.between(0, 9) == 0 {
                world.engine.on_stream_failed(world.clock(), conn, stream);
            }
            publisher.pass(&mut world, random.between(0, 100) * MS);
        }
        world.lose(conn, Lost::Closed);
        publisher.pass(&mut world, 60 * SECOND);
        assert_eq!(publisher.intake.bytes_in_flight(), 0, "seed {seed}: every record has its outcome");
    }
}

#[test]
fn unfinished_frames_are_bounded_over_all_streams() {
    let (mut world, conn) = World::ready(1);
    let mut frame = Vec::new();
    Frame::Publish { body: &vec![0; FRAME_BYTES_MAX - 16] }.encode(0, &mut frame);
    // A Deliver of the largest size that never ends, on stream after stream.
    frame[5] = 32;
    let mut streams = 0;
    while world.closes.is_empty() {
        world.say_bytes(conn, 3 + 4 * streams, &frame[..frame.len() - 1]);
        streams += 1;
        assert!(streams < 100, "no bound");
    }
    assert_eq!((streams, world.closes[0].1), (17, ErrorCode::CreditExceeded));
}

#[test]
fn what_is_not_allowed_closes_the_connection_with_its_code() {
    let welcome = Frame::Welcome(welcome(0, 1));
    let cases: Vec<(u64, u32, Frame<'_>, ErrorCode)> = vec![
        (CONTROL_STREAM, 0, welcome, ErrorCode::UnexpectedFrame),
        (CONTROL_STREAM, 99, Frame::Stats(Stats::default()), ErrorCode::UnexpectedFrame),
        (CONTROL_STREAM, 0, Frame::GetProducer, ErrorCode::UnexpectedFrame),
        (CONTROL_STREAM, 1, deliver(0, 0, 1, Delivery::Gap), ErrorCode::UnexpectedFrame),
        (3, 0, deliver(0, 0, 1, Delivery::Gap), ErrorCode::UnexpectedFrame),
        (3, 0, ack(0, &[]), ErrorCode::UnexpectedFrame),
        (1, 0, ack(0, &[]), ErrorCode::UnexpectedFrame),
        (2, 0, ack(0, &[]), ErrorCode::UnexpectedFrame),
        (4, 0, ack(0, &[]), ErrorCode::UnexpectedFrame),
    ];
    for (stream, id, frame, code) in cases {
        let (mut world, conn) = World::ready(1);
        world.say(conn, stream, id, &frame);
        assert_eq!(world.closes, [(conn, code)], "{frame:?} on {stream}");
    }
    let (mut world, conn) = World::ready(1);
    world.say_bytes(conn, CONTROL_STREAM, b"HTTP/1.1 400 Bad Request\r\n");
    assert_eq!(world.closes.len(), 1);
    let (mut world, conn) = World::ready(1);
    let now = world.clock();
    world.engine.on_stream_bytes(now, conn, CONTROL_STREAM, &[], true);
    world.run();
    assert_eq!(world.closes.len(), 1, "the control stream must stay open");
}

#[test]
fn nothing_counts_before_the_greeting() {
    for frame in [subscribed(0, 1), ack(0, &[]), error(ErrorCode::Unauthenticated)] {
        let mut world = World::new(1, 1);
        world.run();
        let (conn, _) = world.connects.remove(0);
        world.engine.on_connected(world.clock(), conn);
        world.run();
        world.say(conn, CONTROL_STREAM, 0, &frame);
        assert_eq!(world.closes.len(), 1, "{frame:?}");
    }
}
