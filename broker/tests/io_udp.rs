//! **What**: real loopback sockets: steering by connection id, trains cut and merged, a port that is taken.
//!
//! **See**: `broker/src/io/{bind,udp,transmit}.rs`.

use felix_broker::io::bind::{BindError, SocketBuffers, SocketGroup};
use felix_broker::io::transmit::{Pushed, TRAIN_BYTES_MAX, Transmit, TransmitOptions, TransmitQueue};
use felix_broker::io::udp::{UdpOptions, UdpSocket};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn lock_dir(test: &str) -> PathBuf {
    std::env::temp_dir().join(format!("felix-io-udp-{}-{test}", std::process::id()))
}

fn group(test: &str, addr: &str, cores: u8, buffers: SocketBuffers) -> SocketGroup {
    SocketGroup::bind(addr.parse().unwrap(), cores, &lock_dir(test), buffers).unwrap()
}

fn small() -> SocketBuffers {
    SocketBuffers { udp: UdpOptions { slots: 16, gro: true }, ..SocketBuffers::default() }
}

/// Receives until `count` datagrams came, or ten seconds passed.
fn receive(socket: &mut UdpSocket, count: usize) -> Vec<(Vec<u8>, SocketAddr, SocketAddr)> {
    let (mut got, start) = (Vec::new(), Instant::now());
    while got.len() < count && start.elapsed() < Duration::from_secs(10) {
        let datagrams = socket.recv(|datagram, from, to| got.push((datagram.to_vec(), from, to))).unwrap();
        if datagrams == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    got
}

fn send_one(queue: &mut TransmitQueue, bytes: &[u8], segment_bytes: Option<usize>, to: SocketAddr) -> Pushed {
    queue.push(|buffer| {
        buffer[..bytes.len()].copy_from_slice(bytes);
        Some(Transmit { bytes: bytes.len(), segment_bytes, to, from: None })
    })
}

/// A packet whose destination connection id starts with `first`; `long` picks the header form.
fn packet(first: u8, long: bool, number: u16) -> Vec<u8> {
    let mut packet = if long {
        // Form and type, version, length, id.
        let mut packet = vec![0xc0, 0, 0, 0, 1, 8];
        packet.push(first);
        packet
    } else {
        vec![0x40, first]
    };
    packet.extend([0xaa; 7]);
    packet.extend(number.to_be_bytes());
    packet
}

fn steers(test: &str, addr: &str) {
    const CORES: u8 = 4;
    const PER_SOURCE: u16 = 64;
    let mut group = group(test, addr, CORES, small());
    let target = group.local_addr();
    let mut sockets = group.take_sockets();
    let mut expected = [0usize; CORES as usize];
    for source in 0..16u16 {
        // Many sources, so that the kernel's address hash would spread them if the program did not decide.
        let client = std::net::UdpSocket::bind((target.ip(), 0)).unwrap();
        for n in 0..PER_SOURCE {
            let first = (n.wrapping_mul(37) ^ source) as u8;
            client.send_to(&packet(first, n % 2 == 0, n), target).unwrap();
            expected[usize::from(first % CORES)] += 1;
        }
    }
    for (core, socket) in sockets.iter_mut().enumerate() {
        let got = receive(socket, expected[core]);
        assert_eq!(got.len(), expected[core], "core {core}");
        for (datagram, _, to) in got {
            let first = if datagram[0] & 0x80 != 0 { datagram[6] } else { datagram[1] };
            assert_eq!(usize::from(first % CORES), core, "{datagram:?}");
            assert_eq!(to, target);
        }
        assert_eq!(socket.recv(|_, _, _| panic!("one too many")).unwrap(), 0);
    }
}

#[test]
fn steers_by_the_first_byte_of_the_connection_id() {
    steers("steer4", "127.0.0.1:0");
    steers("steer6", "[::1]:0");
}

#[test]
fn junk_goes_to_the_first_core_and_empty_datagrams_nowhere() {
    let mut group = group("junk", "127.0.0.1:0", 2, small());
    let target = group.local_addr();
    let mut sockets = group.take_sockets();
    let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(&[], target).unwrap();
    client.send_to(&[0x41], target).unwrap();
    assert_eq!(receive(&mut sockets[0], 1)[0].0, [0x41]);
    assert_eq!(sockets[0].counters().dropped_empty, 1);
    assert_eq!(sockets[1].recv(|_, _, _| panic!("junk on core 1")).unwrap(), 0);
}

#[test]
fn without_steering_the_group_still_works() {
    let mut group = group("plain", "127.0.0.1:0", 3, SocketBuffers { steering: false, ..small() });
    let target = group.local_addr();
    let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for n in 0..30 {
        client.send_to(&packet(n as u8, false, n), target).unwrap();
    }
    std::thread::sleep(Duration::from_millis(50));
    let total: usize = group.take_sockets().iter_mut().map(|socket| receive_all(socket).len()).sum();
    assert_eq!(total, 30);
}

fn receive_all(socket: &mut UdpSocket) -> Vec<Vec<u8>> {
    let mut got = Vec::new();
    while socket.recv(|datagram, _, _| got.push(datagram.to_vec())).unwrap() > 0 {}
    got
}

/// Trains of odd lengths arrive as the datagrams they were made of, whether or not the kernel merges on the way.
#[test]
fn trains_survive_the_way() {
    for (gro, addr) in [(true, "127.0.0.1:0"), (false, "127.0.0.1:0"), (true, "[::1]:0")] {
        let buffers = SocketBuffers { udp: UdpOptions { slots: 16, gro }, ..small() };
        let mut receiver = group("train-r", addr, 1, buffers);
        let mut sender = group("train-s", addr, 1, buffers);
        let (target, source) = (receiver.local_addr(), sender.local_addr());
        let (mut into, from) = (receiver.take_sockets().remove(0), sender.take_sockets().remove(0));
        let mut queue = TransmitQueue::new(TransmitOptions::default());
        // Total and segment size: single, equal segments, an odd last one, one byte over, more than the kernel cuts.
        let trains = [
            (1200, None),
            (12_000, Some(1200)),
            (5_003, Some(1000)),
            (2_401, Some(1200)),
            (7_000, Some(100)),
            (1, Some(1200)),
        ];
        let mut sent: Vec<Vec<u8>> = Vec::new();
        for (number, (bytes, segment)) in trains.into_iter().enumerate() {
            let train: Vec<u8> = (0..bytes).map(|at| (at as u8).wrapping_mul(31) ^ number as u8).collect();
            assert_eq!(send_one(&mut queue, &train, segment, target), Pushed::Added);
            sent.extend(train.chunks(segment.unwrap_or(bytes)).map(<[u8]>::to_vec));
        }
        let flushed = queue.flush(&from);
        assert_eq!((flushed.datagrams, flushed.blocked), (sent.len(), false));
        let got = receive(&mut into, sent.len());
        assert_eq!(got.len(), sent.len());
        for ((datagram, seen_from, seen_to), expected) in got.iter().zip(&sent) {
            assert_eq!(datagram, expected);
            assert_eq!((*seen_from, *seen_to), (source, target));
        }
        let counters = into.counters();
        assert_eq!(counters.datagrams as usize, sent.len());
        assert_eq!(counters.bytes as usize, sent.iter().map(Vec::len).sum::<usize>());
        if into.gro() {
            assert!(counters.messages < counters.datagrams, "merged: {counters:?}");
        }
        assert_eq!(queue.counters().calls, 1, "one system call for all");
    }
}

#[test]
fn a_packet_larger_than_the_path_is_dropped_and_counted() {
    let mut group = group("big", "127.0.0.1:0", 1, small());
    let socket = group.take_sockets().remove(0);
    let mut queue = TransmitQueue::new(TransmitOptions::default());
    // 9 kB segments inside a train fit loopback; a whole 65,508-byte payload cannot exist. 192.0.2.0/24 has no host, so
    // whatever the machine's routes say, nothing blocks and nothing is left.
    send_one(&mut queue, &vec![1; TRAIN_BYTES_MAX], None, "192.0.2.1:9".parse().unwrap());
    queue.flush(&socket);
    assert!(queue.is_empty());
    let counters = queue.counters();
    assert_eq!(
        counters.dropped_too_big + counters.dropped_unreachable + counters.dropped_other,
        1,
        "DF is set, so an Ethernet path refuses it: {counters:?}"
    );
}

#[test]
fn a_wildcard_group_answers_from_the_address_it_was_asked_at() {
    for (addr, asked_at, seen_as) in
        [("0.0.0.0:0", "127.0.0.2", "127.0.0.2"), ("[::]:0", "127.0.0.2", "::ffff:127.0.0.2")]
    {
        let mut group = group("wildcard", addr, 1, small());
        let port = group.local_addr().port();
        let mut socket = group.take_sockets().remove(0);
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // 127.0.0.2 is local too; without naming the source the kernel would answer from 127.0.0.1.
        client.send_to(b"@hello", (asked_at, port)).unwrap();
        let (datagram, from, to) = receive(&mut socket, 1).remove(0);
        assert_eq!((datagram.as_slice(), to), (b"@hello".as_slice(), SocketAddr::new(seen_as.parse().unwrap(), port)));
        let mut queue = TransmitQueue::new(TransmitOptions::default());
        queue.push(|buffer| {
            buffer[..2].copy_from_slice(b"ok");
            Some(Transmit { bytes: 2, segment_bytes: None, to: from, from: Some(to.ip()) })
        });
        queue.flush(&socket);
        let mut buffer = [0; 16];
        let (bytes, seen) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..bytes], seen), (b"ok".as_slice(), SocketAddr::new(asked_at.parse().unwrap(), port)));
    }
}

#[test]
fn a_second_broker_is_refused_with_the_reason() {
    let first = group("second", "127.0.0.1:0", 2, small());
    let addr = first.local_addr();
    // Same lock folder: the lock says who.
    let error = SocketGroup::bind(addr, 2, &lock_dir("second"), small()).err().unwrap();
    assert!(matches!(error, BindError::Locked { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&std::process::id().to_string()) && text.contains("choose --listen or stop it"), "{text}");
    // Another lock folder: the trial bind finds the sockets, although they are SO_REUSEPORT.
    let error = SocketGroup::bind(addr, 2, &lock_dir("second-elsewhere"), small()).err().unwrap();
    assert!(matches!(error, BindError::InUse { .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("address {addr} is in use by another process; choose --listen or stop it"));
    drop(first);
    SocketGroup::bind(addr, 2, &lock_dir("second"), small()).unwrap();
}

#[test]
fn a_plain_socket_on_the_port_is_found() {
    let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = SocketGroup::bind(other.local_addr().unwrap(), 1, &lock_dir("plain-port"), small()).err().unwrap();
    assert!(matches!(error, BindError::InUse { .. }), "{error:?}");
}

#[test]
fn buffers_are_granted_and_reported() {
    let group = group("granted", "127.0.0.1:0", 1, small());
    let granted = group.granted();
    assert!(granted.receive_bytes > 0 && granted.send_bytes > 0, "{granted:?}");
}

/// The kernel counts what it drops when the receive buffer is full.
#[test]
fn kernel_drops_are_counted() {
    let mut group = group("drops", "127.0.0.1:0", 1, SocketBuffers { receive_bytes: 4096, ..small() });
    let target = group.local_addr();
    let mut socket = group.take_sockets().remove(0);
    let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    const SENT: usize = 500;
    for n in 0..SENT as u16 {
        client.send_to(&[7; 1000], target).unwrap_or_else(|error| panic!("{n}: {error}"));
    }
    let first = receive_all(&mut socket).len();
    assert!(first < SENT);
    client.send_to(&[7; 1000], target).unwrap();
    assert_eq!(receive(&mut socket, 1).len(), 1);
    assert_eq!(socket.counters().dropped_by_kernel as usize, SENT - first);
}
