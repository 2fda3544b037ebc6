//! Subscribing: checks, resume, gaps, resets, credit.

use super::kit::*;
use crate::config::{OnReset, SubscribeOptions};
use crate::engine::{Ask, ConnKey, Event, Lost, SubscriberId};
use crate::error::SubscribeError;
use crate::item::Item;
use crate::session::CONTROL_STREAM;
use felix_protocol::batch_builder::RecordToPublish;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{Delivery, DeliveryMode, Frame, Start, Subscribe, SubscriptionClosed};
use felix_protocol::position::{Lineage, Offset, Position};
use felix_protocol::time::{Time, Timestamp};

const UNI: u64 = 3;

fn position(lineage: u32, offset: u64) -> Position {
    Position { lineage: Lineage(lineage), offset: Offset(offset) }
}

/// Takes the Subscribe that waits: connection, id, frame.
fn asked(world: &mut World) -> (ConnKey, u32, Subscribe) {
    world.run();
    let got = world.take();
    let Frame::Subscribe(subscribe) = got.frame() else { panic!("{:?}", got.frame()) };
    (got.conn, got.id(), subscribe)
}

/// A live subscription that began at offset 10 of lineage 1.
fn live(options: &SubscribeOptions) -> (World, SubscriberId, ConnKey, u32) {
    let (mut world, _) = World::ready(1);
    let id = subscribe(&mut world, options);
    let (conn, wire, _) = asked(&mut world);
    world.say(conn, CONTROL_STREAM, wire, &subscribed(10, 1));
    assert!(world.events.iter().any(|it| matches!(it, Event::Live { .. })));
    (world, id, conn, wire)
}

/// What came to the application, as text.
fn items(world: &mut World) -> Vec<String> {
    let mut found = Vec::new();
    for event in world.events.drain(..) {
        match event {
            Event::Item { item: Item::Records(mut batch), .. } => {
                batch.open().unwrap();
                for record in batch.records_at(Timestamp(WALL)) {
                    let value = String::from_utf8(record.value.to_vec()).unwrap();
                    found.push(format!("{}={value}", record.position.offset));
                }
            }
            Event::Item { item: Item::Gap { covered, .. }, .. } => {
                found.push(format!("gap {}..{}", covered.from, covered.to))
            }
            Event::Item { item: Item::Progress { to, .. }, .. } => found.push(format!("progress {}", to.offset)),
            Event::Item { item: Item::Reset { old, new, .. }, .. } => {
                found.push(format!("reset {}:{} to {}:{}", old.lineage.0, old.offset, new.lineage.0, new.offset));
            }
            Event::Ended { error, .. } => found.push(format!("end {error:?}")),
            _ => {}
        }
    }
    found
}

#[test]
fn records_gaps_and_progress_come_in_order() {
    let (mut world, _, conn, wire) = live(&SubscribeOptions::default());
    let bytes = batch(8, 1, &["8", "9", "10", "11"]);
    world.say(conn, UNI, wire, &deliver(0, 10, 12, Delivery::Batch(&bytes)));
    world.say(conn, UNI, wire, &deliver(1, 12, 20, Delivery::Gap));
    world.say(conn, UNI, wire, &deliver(2, 20, 30, Delivery::Progress));
    let bytes = batch(30, 1, &["30"]);
    world.say(conn, UNI, wire, &deliver(3, 30, 31, Delivery::Batch(&bytes)));
    assert_eq!(items(&mut world), ["10=10", "11=11", "gap 12..20", "progress 30", "30=30"]);
}

#[test]
fn deliveries_may_overtake_their_confirmation() {
    let (mut world, _) = World::ready(1);
    subscribe(&mut world, &SubscribeOptions::default());
    let (conn, wire, ask) = asked(&mut world);
    assert_eq!((ask.start, ask.credit_bytes), (Start::Latest, Some(4 << 20)));
    let bytes = batch(10, 1, &["a"]);
    world.say(conn, UNI, wire, &deliver(0, 10, 11, Delivery::Batch(&bytes)));
    assert_eq!(items(&mut world), [""; 0]);
    world.say(conn, CONTROL_STREAM, wire, &subscribed(10, 1));
    assert_eq!(items(&mut world), ["10=a"]);
}

#[test]
fn a_lost_connection_resumes_at_the_exact_next() {
    let (mut world, _, conn, wire) = live(&SubscribeOptions::default());
    let bytes = batch(10, 1, &["a", "b"]);
    world.say(conn, UNI, wire, &deliver(0, 10, 12, Delivery::Batch(&bytes)));
    world.lose(conn, Lost::Silent);
    world.pass(20 * MS);
    let conn = world.accept(0);
    let (_, wire, ask) = asked(&mut world);
    assert_eq!((ask.start, ask.stream), (Start::Position(position(1, 12)), Some(STREAM)));
    world.say(conn, CONTROL_STREAM, wire, &subscribed(12, 1));
    let bytes = batch(12, 1, &["c"]);
    world.say(conn, UNI, wire, &deliver(0, 12, 13, Delivery::Batch(&bytes)));
    assert_eq!(items(&mut world), ["10=a", "11=b", "12=c"]);
}

#[test]
fn what_retention_took_meanwhile_is_a_gap() {
    let (mut world, _, conn, _) = live(&SubscribeOptions::default());
    world.lose(conn, Lost::Silent);
    world.pass(20 * MS);
    let conn = world.accept(0);
    let (_, wire, _) = asked(&mut world);
    world.say(conn, CONTROL_STREAM, wire, &subscribed(25, 1));
    assert_eq!(items(&mut world), ["gap 10..25"]);
    // The same, told by a refusal.
    world.lose(conn, Lost::Silent);
    world.pass(20 * MS);
    let conn = world.accept(0);
    let (_, wire, _) = asked(&mut world);
    world.say(conn, CONTROL_STREAM, wire, &error(ErrorCode::OffsetTooOld));
    world.pass(20 * MS);
    let (_, wire, ask) = asked(&mut world);
    assert_eq!(ask.start, Start::Earliest);
    world.say(conn, CONTROL_STREAM, wire, &subscribed(40, 1));
    assert_eq!(items(&mut world), ["gap 25..40"]);
}

#[test]
fn a_new_incarnation_is_told_and_read_from_its_start() {
    for close in [false, true] {
        let (mut world, _, conn, wire) = live(&SubscribeOptions::default());
        let conn = if close {
            let closed = SubscriptionClosed { code: ErrorCode::LineageReset, next: position(0, 0), detail: "x".into() };
            world.say(conn, UNI, wire, &Frame::SubscriptionClosed(closed));
            conn
        } else {
            world.lose(conn, Lost::Reset);
            let conn = world.accept(0);
            let (_, wire, _) = asked(&mut world);
            world.say(conn, CONTROL_STREAM, wire, &error(ErrorCode::LineageReset));
            conn
        };
        world.pass(20 * MS);
        let (_, wire, ask) = asked(&mut world);
        assert_eq!((ask.start, ask.stream), (Start::Earliest, None));
        world.say(conn, CONTROL_STREAM, wire, &subscribed(0, 2));
        let bytes = batch(0, 2, &["new"]);
        world.say(conn, UNI, wire, &deliver(0, 0, 1, Delivery::Batch(&bytes)));
        assert_eq!(items(&mut world), ["reset 1:10 to 2:0", "0=new"]);
    }
}

#[test]
fn a_reset_ends_the_subscription_if_asked() {
    let options =
        SubscribeOptions { on_reset: OnReset::Stop, start: Start::Position(position(1, 5)), ..Default::default() };
    let (mut world, _) = World::ready(1);
    subscribe(&mut world, &options);
    let (conn, wire, ask) = asked(&mut world);
    assert_eq!(ask.start, options.start);
    world.say(conn, CONTROL_STREAM, wire, &error(ErrorCode::LineageReset));
    assert!(matches!(
        world.events.last(),
        Some(Event::Ended { error: SubscribeError::Reset { old, .. }, .. }) if *old == position(1, 5)
    ));
    world.pass(SECOND);
    world.nothing();
}

#[test]
fn refusals_end_or_are_tried_again_by_their_class() {
    for (code, ends) in [
        (ErrorCode::PermissionDenied, true),
        (ErrorCode::SlowConsumer, true),
        (ErrorCode::NotFound, true),
        (ErrorCode::Overloaded, false),
        (ErrorCode::NotOwner, false),
        (ErrorCode::StreamGone, false),
    ] {
        let (mut world, _, conn, wire) = live(&SubscribeOptions::default());
        let closed = SubscriptionClosed { code, next: position(1, 10), detail: "x".into() };
        world.say(conn, CONTROL_STREAM, wire, &Frame::SubscriptionClosed(closed));
        let ended = world.events.iter().any(|it| matches!(it, Event::Ended { .. }));
        assert_eq!(ended, ends, "{code}");
        world.pass(50 * MS);
        let again = std::iter::from_fn(|| world.got_len().then(|| world.take()))
            .any(|it| matches!(it.frame(), Frame::Subscribe(_)));
        assert_eq!(again, !ends, "{code}");
    }
}

#[test]
fn holes_and_lies_are_violations() {
    let good = batch(10, 1, &["a"]);
    let other_lineage = batch(10, 2, &["a"]);
    let beyond = batch(11, 1, &["a"]);
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let cases: Vec<(&str, Frame<'_>)> = vec![
        ("number", deliver(1, 10, 11, Delivery::Batch(&good))),
        ("hole", deliver(0, 11, 12, Delivery::Batch(&beyond))),
        ("overlap", deliver(0, 9, 11, Delivery::Batch(&good))),
        ("lineage", deliver(0, 10, 11, Delivery::Batch(&other_lineage))),
        ("range", deliver(0, 10, 11, Delivery::Batch(&beyond))),
        ("damage", deliver(0, 10, 11, Delivery::Batch(&damaged))),
        ("empty", deliver(0, 10, 11, Delivery::Batch(&[]))),
    ];
    for (what, frame) in cases {
        let (mut world, _, conn, wire) = live(&SubscribeOptions::default());
        world.say(conn, UNI, wire, &frame);
        assert!(
            world.events.iter().any(|it| matches!(it, Event::Ended { error: SubscribeError::Protocol(_), .. })),
            "{what}"
        );
        assert_eq!(world.closes.len(), 1, "{what}");
        world.lose(conn, Lost::Closed);
        assert!(matches!(world.lost()[..], [Lost::Violation(_)]), "{what}");
    }
}

#[test]
fn a_start_elsewhere_is_a_violation() {
    for (start, lineage) in [(9, 1), (10, 2)] {
        let (mut world, _, conn, _) = live(&SubscribeOptions::default());
        world.lose(conn, Lost::Reset);
        let conn = world.accept(0);
        let (_, wire, _) = asked(&mut world);
        world.say(conn, CONTROL_STREAM, wire, &subscribed(start, lineage));
        assert_eq!(world.closes.len(), 1, "{start} {lineage}");
    }
}

#[test]
fn lost_datagrams_are_gaps_and_late_ones_are_dropped() {
    let options = SubscribeOptions { mode: DeliveryMode::DatagramOrStream, ..Default::default() };
    let (mut world, _, conn, wire) = live(&options);
    let (a, b, c) = (batch(10, 1, &["a"]), batch(11, 1, &["b"]), batch(12, 1, &["c"]));
    world.say_datagram(conn, wire, &deliver(0, 10, 11, Delivery::Batch(&a)));
    world.say_datagram(conn, wire, &deliver(2, 12, 13, Delivery::Batch(&c)));
    world.say(conn, UNI, wire, &deliver(1, 11, 12, Delivery::Batch(&b)));
    world.say_datagram(conn, wire, &deliver(3, 13, 14, Delivery::Progress));
    assert_eq!(items(&mut world), ["10=a", "gap 11..12", "12=c", "progress 14"]);
    assert_eq!(world.closes, []);
    // What was dropped is granted again, though the application never sees it.
    let value = "x".repeat(700_000);
    let mut dropped = 0;
    world.say_datagram(conn, wire, &deliver(6, 16, 17, Delivery::Progress));
    for (number, offset) in [(4, 14), (5, 15)] {
        let bytes = batch(offset, 1, &[&value]);
        dropped += bytes.len() as u64;
        world.say(conn, UNI, wire, &deliver(number, offset, offset + 1, Delivery::Batch(&bytes)));
    }
    let got = world.take();
    let Frame::Credit { total_bytes } = got.frame() else { panic!("{:?}", got.frame()) };
    let unread = 1_000;
    assert!(total_bytes > (4 << 20) + dropped - unread, "{total_bytes}");
    assert_eq!(items(&mut world), ["gap 14..16", "progress 17"]);
    // Nobody asked for datagrams: one of them is a violation.
    let (mut world, _, conn, wire) = live(&SubscribeOptions::default());
    world.say_datagram(conn, wire, &deliver(0, 10, 11, Delivery::Batch(&a)));
    assert_eq!(world.closes.len(), 1);
}

#[test]
fn datagrams_use_no_credit_lost_or_not() {
    let options = SubscribeOptions { mode: DeliveryMode::DatagramOrStream, ..Default::default() };
    let (mut world, id, conn, wire) = live(&options);
    let window = 4u64 << 20;
    let value = "x".repeat(1_000);
    for n in (0..12_000u64).step_by(2) {
        let bytes = batch(10 + n, 1, &[&value]);
        world.say_datagram(conn, wire, &deliver(n, 10 + n, 11 + n, Delivery::Batch(&bytes)));
        world.engine.on_consumed(id, 0, bytes.len() as u64 + 44);
    }
    world.nothing();
    assert_eq!(world.closes, [], "12 MB were sent without a credit");
    // What goes over the stream is counted from 0.
    let (value, mut sent, mut consumed, mut granted) = ("x".repeat(300_000), 0, 0, window);
    for n in 12_000..12_100u64 {
        assert!(sent < granted, "the broker may send nothing any more");
        let bytes = batch(10 + n, 1, &[&value]);
        world.say(conn, UNI, wire, &deliver(n, 10 + n, 11 + n, Delivery::Batch(&bytes)));
        sent += bytes.len() as u64 + 44;
        if n % 3 == 2 {
            world.engine.on_consumed(id, 0, sent - consumed);
            consumed = sent;
        }
        world.run();
        while world.got_len() {
            let got = world.take();
            let Frame::Credit { total_bytes } = got.frame() else { panic!("{:?}", got.frame()) };
            assert!(total_bytes > granted && total_bytes <= consumed + window, "{total_bytes}");
            granted = total_bytes;
        }
    }
    assert_eq!(world.closes, []);
}

#[test]
fn datagrams_beyond_the_window_are_dropped_and_told_as_a_gap() {
    for early in [false, true] {
        let options = SubscribeOptions { mode: DeliveryMode::DatagramOrGap, ..Default::default() };
        let (mut world, _) = World::ready(1);
        let id = subscribe(&mut world, &options);
        let (conn, wire, _) = asked(&mut world);
        if !early {
            world.say(conn, CONTROL_STREAM, wire, &subscribed(10, 1));
        }
        let value = "x".repeat(1_000);
        let cost = batch(10, 1, &[&value]).len() as u64 + 44;
        for n in 0..12_000u64 {
            let bytes = batch(10 + n, 1, &[&value]);
            world.say_datagram(conn, wire, &deliver(n, 10 + n, 11 + n, Delivery::Batch(&bytes)));
        }
        if early {
            world.say(conn, CONTROL_STREAM, wire, &subscribed(10, 1));
        }
        let kept = (4u64 << 20) / cost;
        assert_eq!(items(&mut world).len() as u64, kept);
        world.engine.on_consumed(id, 0, kept * cost);
        let bytes = batch(12_010, 1, &["last"]);
        world.say_datagram(conn, wire, &deliver(12_000, 12_010, 12_011, Delivery::Batch(&bytes)));
        assert_eq!(items(&mut world), [format!("gap {}..12010", 10 + kept), "12010=last".to_string()]);
        assert_eq!(world.closes, []);
        world.nothing();
    }
}

#[test]
fn credit_follows_consumption_and_is_enforced() {
    let (mut world, id, conn, wire) = live(&SubscribeOptions::default());
    let window = 4u64 << 20;
    let value = "x".repeat(500_000);
    let (mut offset, mut sent, mut cost) = (10, 0u64, 0);
    for number in 0..8 {
        let bytes = batch(offset, 1, &[&value]);
        world.say(conn, UNI, wire, &deliver(number, offset, offset + 1, Delivery::Batch(&bytes)));
        cost = bytes.len() as u64 + 44;
        sent += cost;
        offset += 1;
    }
    world.nothing();
    world.engine.on_consumed(id, 0, cost);
    world.nothing();
    world.engine.on_consumed(id, 0, 2 * cost);
    world.run();
    let got = world.take();
    assert_eq!((got.frame(), got.id()), (Frame::Credit { total_bytes: window + 3 * cost }, wire));
    // Up to one frame over is allowed; beyond that it is a broker that ignores credit.
    for number in 8..40 {
        let bytes = batch(offset, 1, &[&value]);
        world.say(conn, UNI, wire, &deliver(number, offset, offset + 1, Delivery::Batch(&bytes)));
        sent += cost;
        offset += 1;
        if !world.closes.is_empty() {
            break;
        }
    }
    assert!(sent > window + 3 * cost + (1 << 20));
    assert_eq!(world.closes[0].1, ErrorCode::CreditExceeded);
}

#[test]
fn a_new_start_gets_only_what_the_reader_has_room_for() {
    let (mut world, id, conn, wire) = live(&SubscribeOptions::default());
    let value = "x".repeat(1_000_000);
    let bytes = batch(10, 1, &[&value]);
    let cost = bytes.len() as u64 + 44;
    world.say(conn, UNI, wire, &deliver(0, 10, 11, Delivery::Batch(&bytes)));
    world.lose(conn, Lost::Reset);
    let conn = world.accept(0);
    let (_, wire, ask) = asked(&mut world);
    assert_eq!(ask.credit_bytes, Some((4 << 20) - cost));
    world.say(conn, CONTROL_STREAM, wire, &subscribed(11, 1));
    world.engine.on_consumed(id, 0, cost);
    world.run();
    world.nothing();
}

#[test]
fn what_was_consumed_before_the_confirmation_is_granted_with_it() {
    let (mut world, id, conn, wire) = live(&SubscribeOptions::default());
    let window = 4u64 << 20;
    let value = "x".repeat(1_000_000);
    let mut cost = 0;
    for number in 0..4 {
        let bytes = batch(10 + number, 1, &[&value]);
        cost = bytes.len() as u64 + 44;
        world.say(conn, UNI, wire, &deliver(number, 10 + number, 11 + number, Delivery::Batch(&bytes)));
    }
    world.lose(conn, Lost::Reset);
    let conn = world.accept(0);
    let (_, wire, ask) = asked(&mut world);
    assert_eq!(ask.credit_bytes, Some(window - 4 * cost), "nothing was consumed yet");
    // All of it, while the broker opens the shard; nothing else will be consumed before a credit.
    world.engine.on_consumed(id, 0, 4 * cost);
    world.run();
    world.nothing();
    world.say(conn, CONTROL_STREAM, wire, &subscribed(14, 1));
    world.run();
    let got = world.take();
    assert_eq!((got.frame(), got.id()), (Frame::Credit { total_bytes: window }, wire));
}

#[test]
fn expired_records_are_dropped_at_the_reader_by_the_brokers_clock() {
    let (mut world, _, conn, wire) = live(&SubscribeOptions::default());
    let record = |value: &'static [u8], ttl| RecordToPublish { value, ttl_ms: ttl, ..Default::default() };
    let bytes = stamped(10, 1, &[record(b"short", Some(100)), record(b"long", Some(60_000)), record(b"ever", None)]);
    world.say(conn, UNI, wire, &deliver(0, 10, 13, Delivery::Batch(&bytes)));
    let Some(Event::Item { item: Item::Records(batch), .. }) = world.events.pop() else { panic!("no batch") };
    let at = |wall: u64| batch.records_at(Timestamp(wall)).map(|it| it.value.to_vec()).collect::<Vec<_>>();
    // The broker's clock is a second ahead of ours, and the batch was appended at its start.
    assert_eq!(at(WALL), [&b"short"[..], b"long", b"ever"]);
    assert_eq!(at(WALL + 100 * MS), [&b"long"[..], b"ever"]);
    assert_eq!(at(WALL + 61 * SECOND), [&b"ever"[..]]);
}

#[test]
fn an_ended_subscription_may_still_have_deliveries_on_the_way() {
    let (mut world, id, conn, wire) = live(&SubscribeOptions::default());
    world.engine.close_subscriber(id);
    world.run();
    let got = world.take();
    assert_eq!((got.frame(), got.id()), (Frame::Unsubscribe, wire));
    let bytes = batch(10, 1, &["a"]);
    world.say(conn, UNI, wire, &deliver(0, 10, 11, Delivery::Batch(&bytes)));
    let closed = SubscriptionClosed { code: ErrorCode::NoError, next: position(1, 11), detail: String::new() };
    world.say(conn, UNI, wire, &Frame::SubscriptionClosed(closed));
    assert_eq!(items(&mut world), [""; 0]);
    assert_eq!(world.closes, []);
    // One that never was is a lie.
    world.say(conn, UNI, wire + 1, &deliver(0, 10, 11, Delivery::Batch(&bytes)));
    assert_eq!(world.closes.len(), 1);
}

/// What the broker says to an Unsubscribe before it answered Subscribe.
fn never_began() -> Frame<'static> {
    let closed = SubscriptionClosed { code: ErrorCode::NoError, next: position(0, 0), detail: String::new() };
    Frame::SubscriptionClosed(closed)
}

#[test]
fn subscriptions_given_up_before_they_began_leave_room_for_requests() {
    let (mut world, _) = World::ready(1);
    for confirmed in [false, true] {
        for _ in 0..4 {
            let id = subscribe(&mut world, &SubscribeOptions::default());
            let (conn, wire, _) = asked(&mut world);
            world.engine.close_subscriber(id);
            world.run();
            assert!(matches!(world.take().frame(), Frame::Unsubscribe));
            if confirmed {
                world.say(conn, CONTROL_STREAM, wire, &subscribed(10, 1));
            }
            world.say(conn, UNI, wire, &never_began());
        }
    }
    // Nor do those that are starting take a request's place: the broker does not count them either.
    for _ in 0..4 {
        subscribe(&mut world, &SubscribeOptions::default());
        asked(&mut world);
    }
    world.engine.request(1, Ask::Stats(None), Time(world.now + SECOND));
    world.run();
    assert!(matches!(world.take().frame(), Frame::GetStats { .. }));
    assert_eq!(world.closes, []);
}

#[test]
fn an_end_may_overtake_its_beginning() {
    let (mut world, _) = World::ready(1);
    subscribe(&mut world, &SubscribeOptions::default());
    let (conn, wire, _) = asked(&mut world);
    let closed = SubscriptionClosed { code: ErrorCode::Overloaded, next: position(1, 10), detail: String::new() };
    world.say(conn, UNI, wire, &Frame::SubscriptionClosed(closed));
    world.say(conn, CONTROL_STREAM, wire, &subscribed(10, 1));
    assert_eq!(world.closes, []);
    world.pass(SECOND);
    let (_, again, _) = asked(&mut world);
    world.say(conn, CONTROL_STREAM, again, &subscribed(10, 1));
    assert_eq!(world.closes, []);
    // Twice, for another request, or for none is a lie.
    for lie in [again, again + 1] {
        let (mut world, _) = World::ready(1);
        subscribe(&mut world, &SubscribeOptions::default());
        let (conn, wire, _) = asked(&mut world);
        world.engine.request(1, Ask::Stats(None), Time(world.now + SECOND));
        world.run();
        world.take();
        world.say(conn, CONTROL_STREAM, wire, &subscribed(10, 1));
        world.say(conn, CONTROL_STREAM, lie - again + wire, &subscribed(10, 1));
        assert_eq!(world.closes.len(), 1);
    }
}

#[test]
fn a_reset_delivery_stream_restarts_what_was_on_it() {
    let (mut world, _, conn, wire) = live(&SubscribeOptions::default());
    let bytes = batch(10, 1, &["a"]);
    world.say(conn, UNI, wire, &deliver(0, 10, 11, Delivery::Batch(&bytes)));
    let now = world.clock();
    world.engine.on_stream_failed(now, conn, UNI);
    world.pass(50 * MS);
    assert!(matches!(world.take().frame(), Frame::Unsubscribe));
    let (_, _, ask) = asked(&mut world);
    assert_eq!(ask.start, Start::Position(position(1, 11)));
}

#[test]
fn shards_spread_over_connections() {
    let mut world = World::new(2, 1);
    let first = world.accept(0);
    world.engine.add_subscriber(&name(), &std::sync::Arc::new(route(4)), &SubscribeOptions::default());
    let two = |world: &mut World| [asked(world), asked(world)].map(|it| (it.0, it.2.shard_index.0));
    assert_eq!(two(&mut world), [(first, 0), (first, 2)]);
    let second = world.accept(0);
    assert_eq!(two(&mut world), [(second, 1), (second, 3)]);
}
