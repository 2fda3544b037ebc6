//! Requests and connections.

use super::kit::*;
use crate::engine::{Ask, Event, Lost};
use crate::error::RequestError;
use crate::session::{Answer, CONTROL_STREAM};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{Frame, Goaway, Stats};
use felix_protocol::metadata::{Command, Reply};
use felix_protocol::time::Time;

fn write() -> Ask {
    Ask::Admin(Command::DeleteStream { name: name() })
}

fn replies(world: &mut World) -> Vec<(u64, Result<Answer, RequestError>)> {
    let mut found = Vec::new();
    for event in world.events.drain(..) {
        if let Event::Replied { token, result } = event {
            found.push((token, result));
        }
    }
    found
}

#[test]
fn a_write_is_repeated_with_its_key_and_answered_once() {
    let (mut world, conn) = World::ready(1);
    world.engine.request(7, write(), Time(world.now + 5 * SECOND));
    world.run();
    let first = world.take();
    let Frame::Admin(admin) = first.frame() else { panic!("{:?}", first.frame()) };
    assert_ne!(admin.idempotency_key, 0);
    world.lose(conn, Lost::Silent);
    world.pass(20 * MS);
    let conn = world.accept(0);
    let second = world.take();
    let Frame::Admin(again) = second.frame() else { panic!("{:?}", second.frame()) };
    assert_eq!(again, admin);
    world.say(conn, CONTROL_STREAM, second.id(), &Frame::AdminReply(Reply::Done { version: 3 }));
    assert_eq!(replies(&mut world), [(7, Ok(Answer::Admin(Reply::Done { version: 3 })))]);
}

#[test]
fn a_deadline_tells_whether_a_write_may_have_happened() {
    let mut world = World::new(1, 1);
    world.run();
    world.engine.request(1, write(), Time(world.now + SECOND));
    world.pass(2 * SECOND);
    assert!(matches!(replies(&mut world)[..], [(1, Err(RequestError::TimedOut { outcome_unknown: false, .. }))]));
    world.accept(0);
    world.engine.request(2, write(), Time(world.now + SECOND));
    world.engine.request(3, Ask::Stats(None), Time(world.now + SECOND));
    world.run();
    world.pass(2 * SECOND);
    let found = replies(&mut world);
    assert!(matches!(found[0], (2, Err(RequestError::TimedOut { outcome_unknown: true, .. }))), "{found:?}");
    assert!(matches!(found[1], (3, Err(RequestError::TimedOut { outcome_unknown: false, .. }))), "{found:?}");
    // A late answer is no violation.
    let late = world.take();
    let conn = late.conn;
    world.say(conn, CONTROL_STREAM, late.id(), &Frame::AdminReply(Reply::Done { version: 3 }));
    assert_eq!((replies(&mut world).len(), world.closes.len()), (0, 0));
}

#[test]
fn requests_stay_below_the_brokers_limit() {
    let (mut world, conn) = World::ready(1);
    for token in 0..10 {
        world.engine.request(token, Ask::Stats(None), Time(world.now + SECOND));
    }
    world.run();
    let first: Vec<_> = (0..4).map(|_| world.take().id()).collect();
    world.nothing();
    world.say(conn, CONTROL_STREAM, first[2], &Frame::Stats(Stats::default()));
    assert_eq!(replies(&mut world).len(), 1);
    world.take();
    world.nothing();
}

#[test]
fn a_refusal_is_typed() {
    let (mut world, conn) = World::ready(1);
    world.engine.request(1, write(), Time(world.now + SECOND));
    world.run();
    let id = world.take().id();
    world.say(conn, CONTROL_STREAM, id, &error(ErrorCode::NotFound));
    let found = replies(&mut world);
    assert_eq!(found[0].1.as_ref().unwrap_err().code(), Some(ErrorCode::NotFound));
}

#[test]
fn retries_back_off_and_a_goaway_does_not() {
    let mut world = World::new(1, 1);
    world.run();
    let mut waits = Vec::new();
    for _ in 0..12 {
        let (conn, _) = world.connects.remove(0);
        world.lose(conn, Lost::Silent);
        let begun = world.now;
        while world.connects.is_empty() {
            let next = world.engine.next_deadline().expect("a retry is planned").0;
            assert!(next > world.now);
            world.pass(next - world.now);
        }
        waits.push(world.now - begun);
    }
    assert!(waits[0] <= 10 * MS && waits[11] >= SECOND && waits[11] <= 2 * SECOND, "{waits:?}");
    let conn = world.accept(0);
    let goaway = Goaway { code: ErrorCode::Draining, drain_ms: 1_000, detail: String::new() };
    world.say(conn, CONTROL_STREAM, 0, &Frame::Goaway(goaway));
    assert_eq!(world.connects.len(), 1, "at once");
}

#[test]
fn another_cluster_is_not_ours() {
    let (mut world, conn) = World::ready(1);
    world.lose(conn, Lost::Reset);
    assert_eq!(world.connects.len(), 1, "a reset is followed at once");
    let (conn, _) = world.connects.remove(0);
    world.engine.on_connected(world.clock(), conn);
    world.run();
    let got = world.take();
    let Frame::Hello(hello) = got.frame() else { panic!("{:?}", got.frame()) };
    assert_eq!((hello.cluster, hello.token), (Some(felix_protocol::ids::ClusterId(1)), &b"token"[..]));
    world.say(conn, CONTROL_STREAM, 0, &error(ErrorCode::WrongCluster));
    world.lose(conn, Lost::Closed);
    assert!(matches!(world.lost()[..], [Lost::Reset, Lost::Refused(ErrorCode::WrongCluster, _)]));
}

#[test]
fn a_silent_broker_is_left() {
    let mut world = World::new(1, 1);
    world.run();
    let (conn, _) = world.connects.remove(0);
    world.engine.on_connected(world.clock(), conn);
    world.pass(11 * SECOND);
    assert_eq!(world.closes.len(), 1);
}
