//! Packets out: trains for the kernel to cut, nothing lost between them, MTU probes included.

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::World;
use felix_quic::{ClientAuth, ClientConfig, EndpointConfig, StreamError};

fn bulk_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.transport.initial_window_packets = 200;
    config.transport.connection_window_initial_bytes = 4 << 20;
    config.transport.stream_window_initial_bytes = 4 << 20;
    config
}

fn bulk_client() -> ClientConfig {
    let mut config = ClientConfig::default();
    config.transport.initial_window_packets = 200;
    config.transport.connection_window_initial_bytes = 4 << 20;
    config.transport.stream_window_initial_bytes = 4 << 20;
    config
}

#[test]
fn a_train_is_as_long_as_the_kernel_takes() {
    let mut config = bulk_config();
    config.transport.path_mtu_discovery = false;
    let mut world = World::new(1, config, ClientAuth::None);
    let mut connector = world.connector_with(bulk_client());
    let (_, core, conn) = world.establish(&mut connector, None);
    let stream = world.cores[core].open_uni(conn).unwrap();
    let sent = world.cores[core].stream_send(conn, stream, &vec![1; 200_000], false).unwrap();
    assert!(sent > 150_000, "{sent}");
    let mut out = vec![0; 65_536];
    let first = world.cores[core].poll_transmit(Instant::now(), &mut out).unwrap();
    assert_eq!(first.segment_bytes, Some(1_452));
    assert_eq!(first.bytes, 45 * 1_452, "as many as fit 65,507 bytes");
    // With a smaller buffer the trains are shorter, and a buffer of one packet still works.
    let mut small = vec![0; 4_400];
    let next = world.cores[core].poll_transmit(Instant::now(), &mut small).unwrap();
    assert_eq!((next.bytes, next.segment_bytes), (3 * 1_452, Some(1_452)));
    let mut single = vec![0; 1_452];
    let next = world.cores[core].poll_transmit(Instant::now(), &mut single).unwrap();
    assert_eq!((next.bytes, next.segment_bytes), (1_452, None));
}

/// Many sizes at once: full packets, small ends, datagrams, MTU probes, both ways.
#[test]
fn mixed_sizes_lose_nothing() {
    let mut world = World::new(1, bulk_config(), ClientAuth::None);
    let mut connector = world.connector_with(bulk_client());
    let sizes: Rc<RefCell<Vec<usize>>> = Rc::default();
    let seen = sizes.clone();
    world.tap = Some(Box::new(move |datagram| {
        seen.borrow_mut().push(datagram.bytes.len());
        true
    }));
    let (client, core, conn) = world.establish(&mut connector, None);
    let mut got = 0usize;
    let mut datagrams = 0usize;
    let mut buffer = vec![0; 65_536];
    let mut streams = Vec::new();
    let (mut wanted, mut datagrams_sent) = (0usize, 0usize);
    for round in 0..60usize {
        let stream = world.cores[core].open_uni(conn).unwrap();
        streams.push(stream);
        let bytes = 1 + round * 997 % 9_000;
        wanted += world.cores[core].stream_send(conn, stream, &vec![1; bytes], true).unwrap();
        for at in 0..round % 5 {
            let size = (at * 331 + round * 17) % 1_100;
            datagrams_sent += usize::from(world.cores[core].datagram_send(conn, &vec![2; size]).is_ok());
        }
        world.step();
        for &stream in &streams {
            while let Ok(read) = world.clients[client].conn.stream_recv(stream, &mut buffer) {
                got += read.bytes;
                if read.fin {
                    break;
                }
            }
        }
        while world.clients[client].conn.datagram_recv(&mut buffer).is_ok() {
            datagrams += 1;
        }
    }
    let end = Instant::now() + Duration::from_secs(5);
    while got < wanted || datagrams < datagrams_sent {
        assert!(Instant::now() < end, "{got} of {wanted} bytes, {datagrams} of {datagrams_sent} datagrams");
        world.step();
        for &stream in &streams {
            match world.clients[client].conn.stream_recv(stream, &mut buffer) {
                Ok(read) => got += read.bytes,
                Err(StreamError::WouldBlock | StreamError::UnknownStream) => {}
                Err(error) => panic!("{error}"),
            }
        }
        while world.clients[client].conn.datagram_recv(&mut buffer).is_ok() {
            datagrams += 1;
        }
    }
    world.run_for(Duration::from_millis(50));
    // A packet quiche made and we dropped would be lost on a network that loses nothing.
    assert_eq!(world.cores[core].conn_stats(conn).unwrap().packets_lost, 0);
    assert_eq!(world.clients[client].conn.conn_stats().packets_lost, 0);
    let probed = sizes.borrow().iter().copied().max().unwrap();
    assert_eq!(probed, 1_452, "the path carries the maximum, and a probe of it led a train");
    assert_eq!(world.cores[core].conn_stats(conn).unwrap().path_mtu_bytes, 1_452);
}

#[test]
fn the_mtu_is_what_the_path_carries() {
    let mut world = World::new(1, bulk_config(), ClientAuth::None);
    world.tap = Some(Box::new(|datagram| datagram.bytes.len() <= 1_350));
    let mut connector = world.connector_with(bulk_client());
    let (client, core, conn) = world.establish(&mut connector, None);
    for _ in 0..6 {
        world.assert_works(client, core, conn, 200_000);
        world.run_for(Duration::from_millis(50));
    }
    let mtu = world.clients[client].conn.conn_stats().path_mtu_bytes;
    assert!((1_200..=1_350).contains(&mtu), "{mtu}");
}

#[test]
fn the_largest_packets_work_where_the_network_carries_them() {
    let (mut config, mut client_config) = (bulk_config(), bulk_client());
    for transport in [&mut config.transport, &mut client_config.transport] {
        transport.max_udp_payload_bytes = 16_383;
        transport.path_mtu_discovery = false;
    }
    let mut world = World::new(1, config, ClientAuth::None);
    let mut connector = world.connector_with(client_config);
    let (client, core, conn) = world.establish(&mut connector, None);
    let before = world.cores[core].counters().datagrams_in;
    world.assert_works(client, core, conn, 1_000_000);
    let packets = world.cores[core].counters().datagrams_in - before;
    assert!(packets < 200, "{packets} packets for 1,000,000 bytes");
}

#[test]
fn connections_take_turns() {
    let mut world = World::new(1, bulk_config(), ClientAuth::None);
    let mut connector = world.connector_with(bulk_client());
    let mut served = Vec::new();
    for _ in 0..4 {
        let (client, core, conn) = world.establish(&mut connector, None);
        let peer = world.clients[client].public;
        let stream = world.cores[core].open_uni(conn).unwrap();
        served.push((conn, stream, peer));
    }
    world.run_for(Duration::from_millis(20));
    for &(conn, stream, _) in &served {
        world.cores[0].stream_send(conn, stream, &vec![1; 150_000], false).unwrap();
    }
    let mut out = vec![0; 20_000];
    let order: Vec<_> = (0..8).map(|_| world.cores[0].poll_transmit(Instant::now(), &mut out).unwrap().to).collect();
    for turn in order.chunks(4) {
        for (_, _, peer) in &served {
            assert!(turn.contains(peer), "{peer} is left out: {order:?}");
        }
    }
}
