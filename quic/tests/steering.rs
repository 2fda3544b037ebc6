//! Connections stay on their core: through Retry, new ids, retired ids, NATs and moves.

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use common::{Spread, World};
use felix_quic::{ClientAuth, EndpointConfig, Event, RetryPolicy};

fn with_retry() -> EndpointConfig {
    EndpointConfig { retry: RetryPolicy::Always, ..EndpointConfig::default() }
}

/// The address changes: what the NAT shows, then the client's own, several times, with bytes between.
fn moves_and_stays(spread: Spread, config: EndpointConfig) {
    let mut world = World::new(4, config, ClientAuth::None);
    world.spread = spread;
    let mut connector = world.connector();
    let (client, core, conn) = world.establish(&mut connector, Some(2));
    assert_eq!(core, 2);
    world.assert_works(client, core, conn, 50_000);

    for round in 0..3 {
        world.clients[client].public = world.new_address();
        world.assert_works(client, core, conn, 20_000);
        world.run_until("the server moved with the NAT", |world| world.cores[2].counters().migrations > round);
    }
    let moved = world.cores[2].counters().migrations;
    let retired = world.cores[2].counters().ids_retired;
    let local = world.new_address();
    assert!(world.clients[client].conn.migrate(local));
    world.clients[client].local = local;
    world.clients[client].public = local;
    world.assert_works(client, core, conn, 20_000);
    world.run_until("the server moved with the client", |world| world.cores[2].counters().migrations > moved);
    world.run_until("the client gave its old id back", |world| world.cores[2].counters().ids_retired > retired);
    world.assert_works(client, core, conn, 20_000);

    assert!(world.clients[client].closed().is_none());
    for (at, core) in world.cores.iter().enumerate() {
        let counters = core.counters();
        assert_eq!(counters.dropped_wrong_core, 0);
        assert_eq!(counters.resets_sent, 0, "core {at}");
        assert_eq!(counters.connections, u64::from(at == 2));
    }
    assert_eq!(world.handed_over > 0, spread == Spread::Anyhow);
}

#[test]
fn a_moving_client_stays_behind_the_filter() {
    moves_and_stays(Spread::Filter, EndpointConfig::default());
}

#[test]
fn a_moving_client_stays_without_the_filter() {
    moves_and_stays(Spread::Anyhow, EndpointConfig::default());
}

#[test]
fn a_moving_client_stays_after_retry_behind_the_filter() {
    moves_and_stays(Spread::Filter, with_retry());
}

#[test]
fn a_moving_client_stays_after_retry_without_the_filter() {
    moves_and_stays(Spread::Anyhow, with_retry());
}

#[test]
fn ids_issued_lead_to_the_core_and_leave_the_map() {
    let mut world = World::new(3, EndpointConfig::default(), ClientAuth::None);
    let mut connector = world.connector();
    let (client, _, conn) = world.establish(&mut connector, Some(1));
    world.run_until("spare ids issued", |world| world.cores[1].counters().ids_issued >= 2);
    // Its own first id, the client's first id, two spares.
    assert_eq!(world.cores[1].id_count(), 4);
    let local = world.new_address();
    assert!(world.clients[client].conn.migrate(local));
    world.clients[client].local = local;
    world.clients[client].public = local;
    world.run_until("old id given back and replaced", |world| {
        let counters = world.cores[1].counters();
        counters.ids_retired == 1 && counters.ids_issued == 3
    });
    // The retired one is still recognised.
    assert_eq!(world.cores[1].id_count(), 5);
    world.assert_works(client, 1, conn, 1_000);
    world.cores[1].close(conn, 7, b"");
    world.run_until("forgotten", |world| world.cores[1].connection_count() == 0);
    assert!(world.cores[1].id_count() <= 2, "only ids kept for late packets: {}", world.cores[1].id_count());
}

#[test]
fn late_packets_of_a_retired_id_draw_no_reset() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::None);
    let mut connector = world.connector();
    let late: Rc<RefCell<Vec<Vec<u8>>>> = Rc::default();
    let seen = late.clone();
    let server = world.server;
    let (client, core, conn) = world.establish(&mut connector, None);
    world.tap = Some(Box::new(move |datagram| {
        if datagram.to == server && datagram.bytes[0] & 0x80 == 0 {
            seen.borrow_mut().push(datagram.bytes.clone());
        }
        true
    }));
    world.assert_works(client, core, conn, 10_000);
    world.tap = None;
    let from = world.clients[client].public;
    let local = world.new_address();
    assert!(world.clients[client].conn.migrate(local));
    world.clients[client].local = local;
    world.clients[client].public = local;
    world.run_until("given back", |world| world.cores[0].counters().ids_retired == 1);
    assert!(!late.borrow().is_empty());
    for bytes in late.borrow().iter() {
        world.inject(from, bytes);
    }
    world.run_for(Duration::from_millis(20));
    let counters = world.cores[0].counters();
    assert!(counters.dropped_retired_id > 0);
    assert_eq!((counters.resets_sent, counters.dropped_unknown_id), (0, 0));
    world.assert_works(client, core, conn, 10_000);
}

#[test]
fn duplicated_first_packets_open_one_connection() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::None);
    let mut connector = world.connector();
    let first: Rc<RefCell<Vec<Vec<u8>>>> = Rc::default();
    let seen = first.clone();
    let server = world.server;
    world.tap = Some(Box::new(move |datagram| {
        if datagram.to == server && datagram.bytes[0] & 0xb0 == 0x80 {
            seen.borrow_mut().push(datagram.bytes.clone());
        }
        true
    }));
    let (client, core, conn) = world.establish(&mut connector, None);
    world.tap = None;
    let from = world.clients[client].public;
    assert!(!first.borrow().is_empty());
    for bytes in first.borrow().iter() {
        world.inject(from, bytes);
    }
    world.run_for(Duration::from_millis(20));
    assert_eq!(world.cores[0].counters().handshakes_total, 1);
    assert_eq!(world.cores[0].connection_count(), 1);
    world.assert_works(client, core, conn, 1_000);
    let connected = |event: &&(usize, Event)| matches!(event.1, Event::Connected { .. });
    assert_eq!(world.events.iter().filter(connected).count(), 1);
}
