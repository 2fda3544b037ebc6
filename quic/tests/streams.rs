//! Streams and datagrams: events, backpressure, limits, ends of every kind.

mod common;

use std::time::{Duration, Instant};

use common::World;
use felix_quic::{ClientAuth, CloseReason, ConnId, DatagramError, EndpointConfig, Event, Recv, StreamError};

struct Pair {
    world: World,
    conn: ConnId,
}

/// One core, one client, handshake done and settled; earlier events dropped.
fn pair_with(config: EndpointConfig) -> Pair {
    let mut world = World::new(1, config, ClientAuth::None);
    let mut connector = world.connector();
    let (_, _, conn) = world.establish(&mut connector, None);
    world.run_for(Duration::from_millis(5));
    world.events.clear();
    world.clients[0].events.clear();
    Pair { world, conn }
}

fn pair() -> Pair {
    pair_with(EndpointConfig::default())
}

impl Pair {
    /// Runs until the network is silent.
    fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 3 {
            quiet = if self.world.step() { 0 } else { quiet + 1 };
        }
    }

    fn server_events(&mut self) -> Vec<Event> {
        self.world.events.drain(..).map(|(_, event)| event).collect()
    }

    fn client_events(&mut self) -> Vec<Event> {
        self.world.clients[0].events.drain(..).collect()
    }

    fn recv(&mut self, stream: u64, buffer: &mut [u8]) -> Result<Recv, StreamError> {
        self.world.cores[0].stream_recv(self.conn, stream, buffer)
    }
}

macro_rules! client {
    ($pair:expr) => {
        $pair.world.clients[0].conn
    };
}

#[test]
fn a_stream_is_announced_once_until_it_was_read() {
    let mut pair = pair();
    let conn = pair.conn;
    let stream = client!(pair).open_uni().unwrap();
    assert_eq!(stream & 3, 2);
    for _ in 0..5 {
        client!(pair).stream_send(stream, &[1; 2_000], false).unwrap();
        pair.settle();
    }
    assert_eq!(pair.server_events(), [Event::StreamReadable { conn, stream }]);
    let mut buffer = [0; 4_000];
    assert_eq!(pair.recv(stream, &mut buffer), Ok(Recv { bytes: 4_000, fin: false }));
    for _ in 0..2 {
        client!(pair).stream_send(stream, &[1; 1_000], false).unwrap();
        pair.settle();
    }
    assert!(pair.server_events().len() <= 1);
    // The reader comes back without any event.
    let mut total = 4_000;
    while let Ok(read) = pair.recv(stream, &mut buffer) {
        total += read.bytes;
    }
    assert_eq!(total, 12_000);
    assert_eq!(pair.recv(stream, &mut buffer), Err(StreamError::WouldBlock));
    client!(pair).stream_send(stream, b"x", true).unwrap();
    pair.settle();
    assert_eq!(pair.server_events(), [Event::StreamReadable { conn, stream }]);
    assert_eq!(pair.recv(stream, &mut buffer), Ok(Recv { bytes: 1, fin: true }));
    assert_eq!(pair.recv(stream, &mut buffer), Err(StreamError::UnknownStream));
}

#[test]
fn an_end_without_bytes_is_told_once() {
    for bidi in [false, true] {
        let mut pair = pair();
        let conn = pair.conn;
        let stream = if bidi { client!(pair).open_bidi() } else { client!(pair).open_uni() }.unwrap();
        client!(pair).stream_send(stream, b"x", false).unwrap();
        pair.settle();
        let mut buffer = [0; 10];
        assert_eq!(pair.recv(stream, &mut buffer), Ok(Recv { bytes: 1, fin: false }));
        pair.server_events();
        assert_eq!(client!(pair).stream_send(stream, b"", true), Ok(0));
        pair.settle();
        assert_eq!(pair.server_events(), [Event::StreamReadable { conn, stream }], "bidi {bidi}");
        assert_eq!(pair.recv(stream, &mut buffer), Ok(Recv { bytes: 0, fin: true }));
        let again = pair.recv(stream, &mut buffer);
        assert!(matches!(again, Err(StreamError::UnknownStream | StreamError::WouldBlock)), "{again:?}");
    }
}

#[test]
fn flow_control_shortens_a_send_and_reading_makes_it_writable() {
    let mut config = EndpointConfig::default();
    config.transport.stream_window_initial_bytes = 10_000;
    config.transport.stream_window_max_bytes = 10_000;
    let mut pair = pair_with(config);
    let stream = client!(pair).open_uni().unwrap();
    assert_eq!(client!(pair).stream_send(stream, &[5; 30_000], true), Ok(10_000));
    assert_eq!(client!(pair).stream_send(stream, &[5; 20_000], true), Ok(0));
    pair.settle();
    assert_eq!(pair.client_events(), [], "nothing was read");
    let mut buffer = [0; 20_000];
    let (mut got, mut sent, mut fin) = (0, 10_000, false);
    while !fin {
        if let Ok(read) = pair.recv(stream, &mut buffer) {
            got += read.bytes;
            fin = read.fin;
        }
        pair.settle();
        if pair.client_events().contains(&Event::StreamWritable { conn: felix_quic::ClientConnection::ID, stream }) {
            let more = client!(pair).stream_send(stream, &[5; 30_000][..30_000 - sent], true).unwrap();
            assert!(more > 0, "announced as writable");
            sent += more;
        }
        pair.settle();
    }
    assert_eq!((got, sent), (30_000, 30_000));
}

#[test]
fn only_streams_that_were_short_become_writable() {
    let mut pair = pair();
    let a = client!(pair).open_uni().unwrap();
    let b = client!(pair).open_uni().unwrap();
    assert_eq!(client!(pair).stream_send(a, b"all of it", false), Ok(9));
    assert_eq!(client!(pair).stream_send(b, b"all of it", false), Ok(9));
    pair.settle();
    assert_eq!(pair.client_events(), []);
    // Congestion window: the first flight cannot hold this.
    let huge = vec![0; 400_000];
    let sent = client!(pair).stream_send(a, &huge, false).unwrap();
    assert!(sent > 0 && sent < huge.len());
    let mut buffer = vec![0; 65_536];
    let end = Instant::now() + Duration::from_secs(5);
    let events = loop {
        assert!(Instant::now() < end);
        pair.settle();
        while pair.recv(a, &mut buffer).is_ok() {}
        let events = pair.client_events();
        if !events.is_empty() {
            break events;
        }
    };
    assert_eq!(events, [Event::StreamWritable { conn: felix_quic::ClientConnection::ID, stream: a }]);
}

#[test]
fn who_waits_for_room_without_a_send_is_told_of_it() {
    let mut pair = pair();
    let conn = pair.conn;
    let [a, b] = [(); 2].map(|()| pair.world.cores[0].open_uni(conn).unwrap());
    assert_eq!(pair.world.cores[0].stream_wait(conn, b), Ok(true), "a fresh one has room");
    // What the connection or the stream itself can take is used up: nothing was ever sent on b, all on a.
    let huge = vec![0; 64 << 20];
    assert!(pair.world.cores[0].stream_send(conn, a, &huge, false).unwrap() < huge.len());
    let mut buffer = vec![0; 65_536];
    for stream in [b, a] {
        assert_eq!(pair.world.cores[0].stream_capacity(conn, stream), Ok(0), "{stream}");
        assert_eq!(pair.world.cores[0].stream_wait(conn, stream), Ok(false), "{stream}");
    }
    let end = Instant::now() + Duration::from_secs(5);
    let mut told = Vec::new();
    while told.len() < 2 {
        assert!(Instant::now() < end, "only {told:?} may go on");
        pair.settle();
        while client!(pair).stream_recv(a, &mut buffer).is_ok() {}
        told.extend(pair.server_events());
    }
    for stream in [a, b] {
        assert!(told.contains(&Event::StreamWritable { conn, stream }), "{told:?}");
        assert_eq!(pair.world.cores[0].stream_wait(conn, stream), Ok(true));
    }
}

#[test]
fn resets_and_stops_are_told_with_their_codes() {
    let mut pair = pair();
    let conn = pair.conn;
    let stream = client!(pair).open_bidi().unwrap();
    client!(pair).stream_send(stream, b"hello", false).unwrap();
    pair.settle();
    let mut buffer = [0; 10];
    pair.recv(stream, &mut buffer).unwrap();
    pair.server_events();
    client!(pair).stream_reset(stream, 77).unwrap();
    pair.settle();
    assert_eq!(pair.server_events(), [Event::StreamReset { conn, stream, code: 77 }]);

    // A reader that left bytes learns it from its next read.
    let stream = client!(pair).open_uni().unwrap();
    client!(pair).stream_send(stream, &[1; 5_000], false).unwrap();
    pair.settle();
    assert_eq!(pair.server_events(), [Event::StreamReadable { conn, stream }]);
    client!(pair).stream_reset(stream, 78).unwrap();
    pair.settle();
    assert_eq!(pair.recv(stream, &mut buffer), Err(StreamError::Reset(78)));

    // A writer that does not wait learns of a stop from its next send (after the acknowledgement of
    // the reset that answers it, without the code) ...
    let stream = client!(pair).open_uni().unwrap();
    client!(pair).stream_send(stream, b"unwanted", false).unwrap();
    pair.settle();
    pair.world.cores[0].stream_shutdown_read(conn, stream, 79).unwrap();
    pair.settle();
    let sent = client!(pair).stream_send(stream, b"more", false);
    assert!(matches!(sent, Err(StreamError::Stopped(79) | StreamError::UnknownStream)), "{sent:?}");
    // ... and one that waits for room is told.
    let mut config = EndpointConfig::default();
    config.transport.stream_window_initial_bytes = 10_000;
    let mut pair = pair_with(config);
    let stream = client!(pair).open_uni().unwrap();
    assert_eq!(client!(pair).stream_send(stream, &[1; 20_000], false), Ok(10_000));
    pair.settle();
    assert_eq!(pair.client_events(), []);
    pair.world.cores[0].stream_shutdown_read(pair.conn, stream, 80).unwrap();
    pair.settle();
    let id = felix_quic::ClientConnection::ID;
    assert_eq!(pair.client_events(), [Event::StreamStopped { conn: id, stream, code: 80 }]);
}

#[test]
fn streams_are_counted_and_directions_checked() {
    let mut config = EndpointConfig::default();
    config.transport.streams_uni_max = 3;
    let mut pair = pair_with(config);
    let streams: Vec<u64> = (0..3).map(|_| client!(pair).open_uni().unwrap()).collect();
    assert_eq!(streams, [2, 6, 10]);
    assert_eq!(client!(pair).open_uni(), Err(StreamError::StreamLimit));
    assert_eq!(client!(pair).stream_recv(2, &mut [0]), Err(StreamError::UnknownStream));
    assert_eq!(pair.world.cores[0].stream_send(pair.conn, 2, b"x", false), Err(StreamError::UnknownStream));
    assert_eq!(client!(pair).stream_send(2, b"end", true), Ok(3));
    assert_eq!(client!(pair).stream_send(2, b"more", false), Err(StreamError::Finished));
    pair.settle();
    let mut buffer = [0; 10];
    assert_eq!(pair.recv(2, &mut buffer), Ok(Recv { bytes: 3, fin: true }));
    // The end of one lets another begin.
    for stream in [6, 10] {
        client!(pair).stream_send(stream, b"", true).unwrap();
        pair.settle();
        assert_eq!(pair.recv(stream, &mut buffer), Ok(Recv { bytes: 0, fin: true }));
    }
    pair.settle();
    assert_eq!(client!(pair).open_uni(), Ok(14));
    // And ours towards the client.
    let ours = pair.world.cores[0].open_uni(pair.conn).unwrap();
    assert_eq!(ours, 3);
    assert_eq!(pair.world.cores[0].open_bidi(pair.conn), Ok(1));
}

#[test]
fn datagrams_have_a_limit_a_queue_and_an_event() {
    let mut config = EndpointConfig::default();
    config.transport.datagrams_unsent_max = 4;
    config.transport.datagrams_received_max = 8;
    let mut pair = pair_with(config);
    let conn = pair.conn;
    let max = client!(pair).datagram_max().unwrap();
    assert!(max > 1_100 && max < 1_452, "{max}");
    assert_eq!(client!(pair).datagram_send(&vec![0; max + 1]), Err(DatagramError::TooLarge { max }));
    client!(pair).datagram_send(&vec![7; max]).unwrap();
    client!(pair).datagram_send(b"second").unwrap();
    pair.settle();
    assert_eq!(pair.server_events(), [Event::DatagramReadable { conn }]);
    let core = &mut pair.world.cores[0];
    assert_eq!(core.datagram_recv(conn, &mut [0; 5]), Err(DatagramError::BufferTooSmall { bytes: max }));
    let mut buffer = vec![0; 2_000];
    assert_eq!(core.datagram_recv(conn, &mut buffer), Ok(max));
    assert_eq!(core.datagram_recv(conn, &mut buffer), Ok(6));
    assert_eq!(core.datagram_recv(conn, &mut buffer), Err(DatagramError::WouldBlock));

    // Not read: told again when more come, and the oldest go.
    for round in 0..6u8 {
        for at in 0..4 {
            client!(pair).datagram_send(&[round * 4 + at]).unwrap();
        }
        pair.settle();
    }
    assert!(!pair.server_events().is_empty());
    let core = &mut pair.world.cores[0];
    let left: Vec<u8> = std::iter::from_fn(|| core.datagram_recv(conn, &mut buffer).ok().map(|_| buffer[0])).collect();
    assert_eq!(left, (16..24).collect::<Vec<u8>>());

    for _ in 0..4 {
        pair.world.cores[0].datagram_send(conn, b"down").unwrap();
    }
    assert_eq!(pair.world.cores[0].datagram_send(conn, b"down"), Err(DatagramError::Full));
    pair.settle();
    let downs = std::iter::from_fn(|| client!(pair).datagram_recv(&mut buffer).ok()).count();
    assert_eq!(downs, 4);
}

#[test]
fn a_close_reaches_the_other_side_with_its_code_and_what_was_sent_before() {
    let mut pair = pair();
    let conn = pair.conn;
    let stream = client!(pair).open_uni().unwrap();
    client!(pair).stream_send(stream, b"last words", true).unwrap();
    client!(pair).close(1234, b"bye");
    // Both leave in the same turn.
    pair.settle();
    let events = pair.server_events();
    let closed = Event::Closed { conn, reason: CloseReason::PeerApplication { code: 1234, reason: b"bye".to_vec() } };
    assert_eq!(events.last(), Some(&closed));
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Closed { .. })).count(), 1);
    let local = Event::Closed { conn: felix_quic::ClientConnection::ID, reason: CloseReason::Local { code: 1234 } };
    assert_eq!(pair.client_events(), [local]);
    assert_eq!(pair.world.cores[0].stream_send(conn, stream, b"x", false), Err(StreamError::Closed));
    assert_eq!(pair.world.cores[0].open_uni(conn), Err(StreamError::Closed));
    assert_eq!(pair.world.cores[0].datagram_send(conn, b"x"), Err(DatagramError::Closed));
    pair.world.run_until("forgotten", |world| world.cores[0].connection_count() == 0);
    assert_eq!(pair.world.cores[0].stream_send(conn, stream, b"x", false), Err(StreamError::UnknownConnection));
    assert_eq!(pair.server_events(), [], "once is enough");
    pair.world.run_until("drained", |world| world.clients[0].conn.is_drained());
}

#[test]
fn close_all_closes_all() {
    let mut world = World::new(1, EndpointConfig::default(), ClientAuth::None);
    let mut connector = world.connector();
    for _ in 0..10 {
        world.establish(&mut connector, None);
    }
    world.cores[0].close_all(9, b"shutdown");
    world.run_until("all told", |world| world.clients.iter().all(|client| client.closed().is_some()));
    let told = CloseReason::PeerApplication { code: 9, reason: b"shutdown".to_vec() };
    assert!(world.clients.iter().all(|client| client.closed() == Some(&told)));
    world.run_until("all forgotten", |world| world.cores[0].connection_count() == 0);
    assert_eq!(world.cores[0].counters().closed_total, 10);
}
