//! Measures what the three ways to wait cost: round trip of 64 bytes over loopback and CPU of an idle core.
//!
//! `cargo run --release -p felix-broker --example wait_modes [rounds]`. Server core on CPU 0; the client polls on CPU 1,
//! sending at once (spaced 0) or after a pause longer than the spin window (spaced 500), which finds hybrid parked.

use felix_broker::io::bind::{SocketBuffers, SocketGroup};
use felix_broker::io::executor::{CoreSpec, spawn_core};
use felix_broker::io::mesh::{Mesh, MeshLimits};
use felix_broker::io::transmit::{Transmit, TransmitOptions, TransmitQueue};
use felix_broker::io::wait::{Until, WaitMode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

const LIMITS: MeshLimits = MeshLimits { capacity: 64, reserved: 8 };

fn main() {
    let rounds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(20_000);
    println!(
        "mode     spin_us  idle_cpu%  rtt_us p50/p99 (spaced 0)  rtt_us p50/p99 (spaced 500 us)  mesh_us p50/p99  timer_late_us p50/p99"
    );
    floor(rounds);
    for (mode, spin_us) in [
        (WaitMode::Busy, 0),
        (WaitMode::Hybrid, 20),
        (WaitMode::Hybrid, 50),
        (WaitMode::Hybrid, 100),
        (WaitMode::Park, 0),
    ] {
        measure(mode, spin_us, rounds);
    }
}

fn measure(mode: WaitMode, spin_us: u64, rounds: usize) {
    let locks = std::env::temp_dir().join("felix-wait-modes");
    let mut group = SocketGroup::bind("127.0.0.1:0".parse().unwrap(), 1, &locks, SocketBuffers::default()).unwrap();
    let addr = group.local_addr();
    let mut socket = group.take_sockets().remove(0);
    let mut ports = Mesh::<Instant>::ports(2, LIMITS);
    let mut control = ports.pop().unwrap();
    let mut port = ports.pop().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let spec = CoreSpec { index: 0, cpu: Some(0), wait: mode, spin: Duration::from_micros(spin_us) };
    let server = spawn_core(spec, move |core| async move {
        let mut waiter = core.waiter(&socket).unwrap();
        let mut queue = TransmitQueue::new(TransmitOptions::default());
        let mut deadline = Instant::now() + Duration::from_millis(100);
        let (mut late, mut mesh) = (Vec::new(), Vec::new());
        while !stopped.load(SeqCst) {
            let mut did_work = socket
                .recv(|datagram, from, _| {
                    queue.push(|buffer| {
                        buffer[..datagram.len()].copy_from_slice(datagram);
                        Some(Transmit { bytes: datagram.len(), segment_bytes: None, to: from, from: None })
                    });
                })
                .unwrap()
                > 0;
            queue.flush(&socket);
            did_work |= port.drain(64, |_, sent: Instant| mesh.push(sent.elapsed())) > 0;
            let now = Instant::now();
            if now >= deadline {
                late.push(now - deadline);
                // Ten deadlines a second while idle CPU is measured.
                deadline = now + Duration::from_millis(if late.len() < 22 { 100 } else { 20 });
                did_work = true;
            }
            if did_work {
                waiter.worked().await;
            } else {
                waiter.wait(&mut port, Until { deadline: Some(deadline), writable: false }).await;
            }
        }
        (late, mesh)
    })
    .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let (cpu, wall) = (core_cpu(), Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let idle = core_cpu().saturating_sub(cpu).as_secs_f64() / wall.elapsed().as_secs_f64() * 100.0;
    let back_to_back = ping(addr, rounds, 0);
    let spaced = ping(addr, rounds / 10, 500);
    for _ in 0..500 {
        control.try_send(0, Instant::now()).unwrap();
        std::thread::sleep(Duration::from_micros(700));
    }
    stop.store(true, SeqCst);
    let (late, mesh) = server.join().unwrap();
    println!(
        "{:8} {spin_us:7}  {idle:9.2}  {:>26}  {:>31}  {:>15}  {:>21}",
        format!("{mode:?}"),
        percentiles(back_to_back),
        percentiles(spaced),
        percentiles(mesh),
        percentiles(late)
    );
}

/// A thread that blocks in the kernel, without any runtime: what this machine's wake-ups cost at least.
fn floor(rounds: usize) {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    let spec = CoreSpec { index: 0, cpu: Some(0), wait: WaitMode::Park, spin: Duration::ZERO };
    let server = spawn_core(spec, move |_| async move {
        let mut late = Vec::new();
        for _ in 0..100 {
            let deadline = Instant::now() + Duration::from_millis(20);
            std::thread::sleep(Duration::from_millis(20));
            late.push(deadline.elapsed());
        }
        let mut buffer = [0; 64];
        while let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..bytes], from).unwrap();
            if bytes == 1 {
                break;
            }
        }
        late
    })
    .unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    let back_to_back = ping(addr, rounds, 0);
    let spaced = ping(addr, rounds / 10, 500);
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&[0], addr).unwrap();
    let late = server.join().unwrap();
    println!(
        "{:8} {:7}  {:>9}  {:>26}  {:>31}  {:>15}  {:>21}",
        "blocking",
        "-",
        "-",
        percentiles(back_to_back),
        percentiles(spaced),
        "-",
        percentiles(late)
    );
}

fn ping(addr: SocketAddr, rounds: usize, pause_us: u64) -> Vec<Duration> {
    let spec = CoreSpec { index: 1, cpu: Some(1), wait: WaitMode::Busy, spin: Duration::ZERO };
    let client = spawn_core(spec, move |_| async move {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(addr).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut times = Vec::with_capacity(rounds);
        let mut buffer = [7u8; 64];
        for _ in 0..rounds {
            let pause = Instant::now();
            while pause.elapsed() < Duration::from_micros(pause_us) {
                std::hint::spin_loop();
            }
            let sent = Instant::now();
            socket.send(&buffer).unwrap();
            while socket.recv(&mut buffer).is_err() {
                assert!(sent.elapsed() < Duration::from_secs(5), "no answer");
            }
            times.push(sent.elapsed());
        }
        times
    })
    .unwrap();
    client.join().unwrap()
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    if times.is_empty() { "-".into() } else { format!("{:.1}/{:.1}", at(0.5), at(0.99)) }
}

/// CPU time of the threads of core 0: the core's own, and glommio's helper that inherits its name.
fn core_cpu() -> Duration {
    let mut total = Duration::ZERO;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        if name.starts_with("core-0") {
            let stat = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
            total += Duration::from_nanos(stat.split_whitespace().next().map_or(0, |text| text.parse().unwrap()));
        }
    }
    total
}
