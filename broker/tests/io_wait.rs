//! **What**: a core in each wait mode wakes on a datagram, on mail, on a deadline, and when a blocked sender may go on.
//!
//! No assertion on speed: a missed wake-up shows as a timeout of seconds.
//!
//! **See**: `broker/src/io/{wait,executor}.rs`.

use felix_broker::io::bind::{SocketBuffers, SocketGroup};
use felix_broker::io::executor::{CoreError, CoreHandle, CoreSpec, spawn_core};
use felix_broker::io::mesh::{Mesh, MeshLimits, MeshPort};
use felix_broker::io::udp::UdpSocket;
use felix_broker::io::wait::{Until, WaitMode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

const MODES: [WaitMode; 3] = [WaitMode::Busy, WaitMode::Hybrid, WaitMode::Park];
const LIMITS: MeshLimits = MeshLimits { capacity: 1024, reserved: 8 };
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, PartialEq)]
enum Seen {
    Datagram(Vec<u8>),
    Mail(u32),
    Deadline,
}

fn spec(index: usize, wait: WaitMode) -> CoreSpec {
    CoreSpec { index, cpu: None, wait, spin: Duration::from_micros(50) }
}

fn socket(test: &str) -> (SocketGroup, UdpSocket, SocketAddr) {
    let locks = std::env::temp_dir().join(format!("felix-io-wait-{}-{test}", std::process::id()));
    let mut group = SocketGroup::bind("127.0.0.1:0".parse().unwrap(), 1, &locks, SocketBuffers::default()).unwrap();
    let socket = group.take_sockets().remove(0);
    let addr = group.local_addr();
    (group, socket, addr)
}

/// A loop that reports what it sees, and ends on mail 0.
async fn observe(
    core: CoreHandle,
    mut socket: UdpSocket,
    mut port: MeshPort<u32>,
    mut deadlines: Vec<Duration>,
    seen: Sender<Seen>,
) -> u64 {
    let mut waiter = core.waiter(&socket).unwrap();
    let start = Instant::now();
    loop {
        let (mut did_work, mut end) = (false, false);
        did_work |= socket.recv(|datagram, _, _| seen.send(Seen::Datagram(datagram.to_vec())).unwrap()).unwrap() > 0;
        did_work |= port.drain(64, |_, mail| match mail {
            0 => end = true,
            mail => seen.send(Seen::Mail(mail)).unwrap(),
        }) > 0;
        while deadlines.first().is_some_and(|deadline| start.elapsed() >= *deadline) {
            deadlines.remove(0);
            seen.send(Seen::Deadline).unwrap();
            did_work = true;
        }
        if end {
            return waiter.counters().parks;
        }
        if did_work {
            waiter.worked().await;
        } else {
            let deadline = deadlines.first().map(|deadline| start + *deadline);
            waiter.wait(&mut port, Until { deadline, writable: false }).await;
        }
    }
}

fn next(seen: &Receiver<Seen>, what: &str) -> Seen {
    seen.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("missed: {what}"))
}

#[test]
fn wakes_on_datagrams_mail_and_deadlines() {
    for mode in MODES {
        let (_group, socket, addr) = socket(&format!("all-{mode:?}"));
        let mut ports = Mesh::ports(2, LIMITS);
        let mut control = ports.pop().unwrap();
        let port = ports.pop().unwrap();
        let (send, seen) = channel();
        let deadlines = vec![Duration::from_millis(30), Duration::from_millis(31), Duration::from_millis(90)];
        let core = spawn_core(spec(0, mode), move |core| observe(core, socket, port, deadlines, send)).unwrap();
        for _ in 0..3 {
            assert_eq!(next(&seen, "deadline"), Seen::Deadline, "{mode:?}");
        }
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        // Pauses longer than the spin window, so that hybrid is parked; mail between datagrams, so that a peek stays armed
        // across waits; empty datagrams, which must not keep the core awake or deaf.
        for n in 1..=60u32 {
            std::thread::sleep(Duration::from_micros(u64::from(n % 4) * 300));
            match n % 3 {
                0 => {
                    control.try_send(0, n).unwrap();
                    assert_eq!(next(&seen, "mail"), Seen::Mail(n), "{mode:?}");
                }
                1 => {
                    client.send_to(&n.to_be_bytes(), addr).unwrap();
                    assert_eq!(next(&seen, "datagram"), Seen::Datagram(n.to_be_bytes().to_vec()), "{mode:?}");
                }
                _ => {
                    client.send_to(&[], addr).unwrap();
                }
            }
        }
        control.try_send(0, 0).unwrap();
        let parks = core.join().unwrap();
        assert_eq!(parks == 0, mode == WaitMode::Busy, "{mode:?} parked {parks} times");
        // A wake-up that is not taken back would let the core park and wake for ever.
        assert!(parks < 5_000, "{mode:?} parked {parks} times for 60 events");
    }
}

/// Two cores that park at once hand a token to and fro through the mesh.
#[test]
fn two_parked_cores_never_miss_each_other() {
    const ROUNDS: u32 = 3_000;
    for mode in [WaitMode::Park, WaitMode::Hybrid] {
        let mut ports = Mesh::<u32>::ports(2, LIMITS);
        let cores: Vec<_> = (0..2usize)
            .rev()
            .map(|index| {
                let mut port = ports.pop().unwrap();
                let (group, mut socket, _) = socket(&format!("token-{mode:?}-{index}"));
                spawn_core(spec(index, mode), move |core| async move {
                    let _group = group;
                    let mut waiter = core.waiter(&socket).unwrap();
                    let mut seen = 0;
                    if index == 0 {
                        port.try_send(1, 1).unwrap();
                    }
                    let patience = Instant::now() + Duration::from_secs(60);
                    while seen < ROUNDS && Instant::now() < patience {
                        let mut token = None;
                        let got = socket.recv(|_, _, _| {}).unwrap() + port.drain(8, |_, mail| token = Some(mail));
                        if let Some(token) = token {
                            seen += 1;
                            port.try_send(1 - index, token + 1).unwrap();
                        }
                        if got > 0 {
                            waiter.worked().await;
                        } else {
                            let until = Until { deadline: Some(patience), writable: false };
                            waiter.wait(&mut port, until).await;
                        }
                    }
                    seen
                })
                .unwrap()
            })
            .collect();
        for core in cores {
            assert_eq!(core.join().unwrap(), ROUNDS, "{mode:?}");
        }
    }
}

#[test]
fn a_blocked_sender_is_called_back() {
    let (_group, mut socket, _) = socket("blocked");
    let mut port = Mesh::<u32>::ports(1, LIMITS).remove(0);
    let core = spawn_core(spec(0, WaitMode::Park), move |core| async move {
        let mut waiter = core.waiter(&socket).unwrap();
        for _ in 0..20 {
            assert_eq!(socket.recv(|_, _, _| {}).unwrap(), 0);
            waiter.wait(&mut port, Until { deadline: None, writable: true }).await;
        }
    })
    .unwrap();
    core.join().unwrap();
}

/// Many short waits that end early leave nothing behind and later deadlines still fire.
#[test]
fn abandoned_deadlines_do_no_harm() {
    let (_group, socket, addr) = socket("abandoned");
    let mut ports = Mesh::<u32>::ports(2, LIMITS);
    let mut control = ports.pop().unwrap();
    let mut port = ports.pop().unwrap();
    let core = spawn_core(spec(0, WaitMode::Park), move |core| async move {
        let mut socket = socket;
        let mut waiter = core.waiter(&socket).unwrap();
        let far = Instant::now() + Duration::from_secs(3600);
        let mut datagrams = 0;
        while datagrams < 2_000 {
            let got = socket.recv(|_, _, _| {}).unwrap();
            datagrams += got;
            port.drain(8, |_, _| {});
            if got == 0 {
                waiter.wait(&mut port, Until { deadline: Some(far), writable: false }).await;
            }
        }
        let soon = Instant::now() + Duration::from_millis(20);
        while Instant::now() < soon {
            waiter.wait(&mut port, Until { deadline: Some(soon), writable: false }).await;
        }
        datagrams
    })
    .unwrap();
    let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for n in 0..2_000u32 {
        client.send_to(b"@x", addr).unwrap();
        if n % 7 == 0 {
            let _ = control.try_send(0, n);
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    assert!(core.join().unwrap() >= 2_000);
}

/// glommio takes an empty datagram for the end of a stream: it must not make the core believe in readiness for ever.
#[test]
fn an_empty_datagram_does_not_keep_the_core_awake() {
    let (_group, mut socket, addr) = socket("empty");
    let mut port = Mesh::<u32>::ports(1, LIMITS).remove(0);
    let core = spawn_core(spec(0, WaitMode::Park), move |core| async move {
        let mut waiter = core.waiter(&socket).unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..3 {
            // There before the wait begins, so that it is seen without going through the ring.
            client.send_to(&[], addr).unwrap();
            waiter.wait(&mut port, Until::default()).await;
            assert_eq!(socket.recv(|_, _, _| panic!("it is empty")).unwrap(), 0);
        }
        let (end, before) = (Instant::now() + Duration::from_millis(100), waiter.counters().parks);
        while Instant::now() < end {
            waiter.wait(&mut port, Until { deadline: Some(end), writable: false }).await;
        }
        waiter.counters().parks - before
    })
    .unwrap();
    let parks = core.join().unwrap();
    assert!(parks < 20, "nothing came, and the core woke {parks} times");
}

/// A core whose CPU is taken away in between goes on. (An executor whose preempt timer fires before it has polled any
/// task takes itself for idle and sleeps with runnable tasks: glommio 0.9, `run_task_queues`.)
#[test]
fn a_core_on_a_crowded_cpu_never_stalls() {
    const SECONDS: u64 = 4;
    let over = Arc::new(AtomicBool::new(false));
    let hogs: Vec<_> = (0..2 * std::thread::available_parallelism().unwrap().get())
        .map(|_| {
            let over = over.clone();
            std::thread::spawn(move || while !over.load(SeqCst) {})
        })
        .collect();
    let cores: Vec<_> = MODES
        .into_iter()
        .enumerate()
        .map(|(index, mode)| {
            let (group, mut socket, addr) = socket(&format!("crowded-{mode:?}"));
            let mut ports = Mesh::<u32>::ports(2, LIMITS);
            let control = ports.pop().unwrap();
            let mut port = ports.pop().unwrap();
            let (turns, counted) = (Arc::new(AtomicU64::new(0)), over.clone());
            let count = turns.clone();
            let core = spawn_core(spec(index, mode), move |core| async move {
                let _group = group;
                let mut waiter = core.waiter(&socket).unwrap();
                while !counted.load(SeqCst) {
                    count.fetch_add(1, SeqCst);
                    if socket.recv(|_, _, _| {}).unwrap() + port.drain(8, |_, _| {}) > 0 {
                        waiter.worked().await;
                    } else {
                        waiter.wait(&mut port, Until::default()).await;
                    }
                }
            })
            .unwrap();
            (mode, core, addr, control, turns)
        })
        .collect();
    let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut cores = cores;
    let start = Instant::now();
    for round in 0u32.. {
        let last = start.elapsed() > Duration::from_secs(SECONDS);
        if last {
            over.store(true, SeqCst);
        }
        for (mode, _, addr, control, turns) in &mut cores {
            let before = turns.load(SeqCst);
            match round % 2 {
                0 => drop(client.send_to(b"@x", *addr).unwrap()),
                _ => control.try_send(0, round).unwrap(),
            }
            let sent = Instant::now();
            while turns.load(SeqCst) == before && !last {
                assert!(sent.elapsed() < PATIENCE, "{mode:?} stalled after {:?}", start.elapsed());
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        if last {
            break;
        }
    }
    for (_, core, ..) in cores {
        core.join().unwrap();
    }
    for hog in hogs {
        hog.join().unwrap();
    }
}

#[test]
fn a_panic_and_a_bad_cpu_are_told_apart() {
    let core = spawn_core(spec(0, WaitMode::Park), |_| async { panic!("on purpose") }).unwrap();
    assert!(matches!(core.join(), Err(CoreError::Panicked { index: 0 })));
    let nowhere = CoreSpec { cpu: Some(4095), ..spec(3, WaitMode::Park) };
    let error = spawn_core(nowhere, |_| async {}).err().unwrap();
    assert!(matches!(error, CoreError::Executor { index: 3, .. }), "{error}");
}
