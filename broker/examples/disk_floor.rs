//! Measures a write and its data sync: by plain system calls, and through the disk port in the three ways to wait.
//!
//! `cargo run --release -p felix-broker --example disk_floor [folder] [rounds]`. The folder must lie on the disk in question.
//! Core on CPU 0, the disk's threads where `thread_places` puts them. Plain calls run on CPU 0 and, as a helper thread would, on
//! CPU 1. CPU per operation counts the whole process: for a core that polls it is at least the time of the operation.

use felix_broker::io::bind::{SocketBuffers, SocketGroup};
use felix_broker::io::disk::{self, DiskPort, thread_places};
use felix_broker::io::executor::{CoreSpec, spawn_core};
use felix_broker::io::mesh::{Mesh, MeshLimits, MeshPort};
use felix_broker::io::sys::allowed_cpus;
use felix_broker::io::udp::UdpSocket;
use felix_broker::io::wait::{Until, WaitMode, Waiter};
use felix_wal::disk::{DiskDone, DiskOk, DiskOp, DiskRequest, FileKey, FilePath, Priority, Ticket};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes of the file that is written round and round.
const FILE_BYTES: u64 = 16 << 20;
const WARM_UP: usize = 50;

struct Measured {
    write: Vec<Duration>,
    sync: Vec<Duration>,
    cpu: Duration,
}

fn main() {
    let folder = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from).join("felix-disk-floor");
    let rounds = std::env::args().nth(2).and_then(|text| text.parse().ok()).unwrap_or(500);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    println!(
        "bytes   how             total_us p50/p99   write_us p50/p99    sync_us p50/p99   cpu_us/op   p50 to floor"
    );
    for bytes in [4 << 10, 64 << 10] {
        // Twice, to show how much the disk itself moves.
        for _ in 0..2 {
            let floor = show(bytes, "plain cpu 0", None, plain(&folder, 0, bytes, rounds));
            show(bytes, "plain cpu 1", Some(floor), plain(&folder, 1, bytes, rounds));
            for mode in [WaitMode::Park, WaitMode::Hybrid, WaitMode::Busy] {
                show(bytes, &format!("port {mode:?}"), Some(floor), port(&folder, mode, bytes, rounds));
            }
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

fn core(cpu: usize, wait: WaitMode) -> CoreSpec {
    CoreSpec { index: 0, cpu: Some(cpu), wait, spin: Duration::from_micros(50) }
}

/// pwrite with O_DIRECT and fdatasync on a pinned thread.
fn plain(folder: &Path, cpu: usize, bytes: usize, rounds: usize) -> Measured {
    let path = folder.join("plain");
    let file = File::create(&path).unwrap();
    file.write_all_at(&vec![0; FILE_BYTES as usize], 0).unwrap();
    file.sync_all().unwrap();
    let thread = spawn_core(core(cpu, WaitMode::Park), move |_| async move {
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        let memory = vec![7u8; bytes + 4_096];
        let start = memory.as_ptr().align_offset(4_096);
        let block = &memory[start..start + bytes];
        let mut measured = Measured { write: Vec::new(), sync: Vec::new(), cpu: Duration::ZERO };
        let mut cpu = process_cpu();
        for round in 0..WARM_UP + rounds {
            if round == WARM_UP {
                cpu = process_cpu();
            }
            let begin = Instant::now();
            file.write_all_at(block, position(round, bytes)).unwrap();
            let written = Instant::now();
            file.sync_data().unwrap();
            if round >= WARM_UP {
                measured.write.push(written - begin);
                measured.sync.push(written.elapsed());
            }
        }
        measured.cpu = process_cpu() - cpu;
        measured
    });
    thread.unwrap().join().unwrap()
}

/// A core's loop and what it waits with.
struct Loop {
    socket: UdpSocket,
    mesh: MeshPort<()>,
    disk: DiskPort,
    waiter: Waiter,
}

impl Loop {
    /// One request, with the loop going round as it does in the broker until it is done.
    async fn call(&mut self, op: DiskOp) -> DiskOk {
        self.disk.submit(DiskRequest { ticket: Ticket(1), priority: Priority::Commit, op });
        self.disk.flush();
        self.waiter.worked().await;
        loop {
            self.socket.recv(|_, _, _| ()).unwrap();
            self.mesh.drain(64, |_, ()| ());
            if let Some(DiskDone { result, .. }) = self.disk.poll() {
                return result.unwrap();
            }
            self.waiter.wait_with_disk(&mut self.mesh, &mut self.disk, Until::default()).await;
        }
    }
}

fn port(folder: &Path, mode: WaitMode, bytes: usize, rounds: usize) -> Measured {
    let (helper, mut seats) = disk::start(folder, 1).unwrap();
    let seat = seats.pop().unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let mut group = SocketGroup::bind(any, 1, &folder.join("locks"), SocketBuffers::default()).unwrap();
    let socket = group.take_sockets().remove(0);
    let mesh = Mesh::ports(1, MeshLimits { capacity: 8, reserved: 1 }).remove(0);
    let places = thread_places(mode, 0, &[0], &allowed_cpus().unwrap());
    let measured = spawn_core(core(0, mode), move |handle| async move {
        let disk = seat.open(places).unwrap();
        let mut waiter = handle.waiter(&socket).unwrap();
        waiter.attach_disk(&disk).unwrap();
        let mut it = Loop { socket, mesh, disk, waiter };
        let file = FileKey(1);
        let path = FilePath("port".into());
        it.call(DiskOp::Create { path: path.clone(), file, bytes: FILE_BYTES, zeroed: true }).await;
        let mut buffer = vec![7u8; bytes];
        let mut measured = Measured { write: Vec::new(), sync: Vec::new(), cpu: Duration::ZERO };
        let mut cpu = process_cpu();
        for round in 0..WARM_UP + rounds {
            if round == WARM_UP {
                cpu = process_cpu();
            }
            let begin = Instant::now();
            let written = it.call(DiskOp::Write { file, at: position(round, bytes), bytes: buffer }).await;
            let DiskOk::Written(back) = written else { panic!("{written:?}") };
            buffer = back;
            let written = Instant::now();
            it.call(DiskOp::Sync { file }).await;
            if round >= WARM_UP {
                measured.write.push(written - begin);
                measured.sync.push(written.elapsed());
            }
        }
        measured.cpu = process_cpu() - cpu;
        it.call(DiskOp::Close { file }).await;
        it.call(DiskOp::Remove { path }).await;
        measured
    });
    let measured = measured.unwrap().join().unwrap();
    assert!(helper.join());
    measured
}

fn position(round: usize, bytes: usize) -> u64 {
    (round * bytes) as u64 % FILE_BYTES
}

/// Prints a line and returns the median.
fn show(bytes: usize, how: &str, floor: Option<Duration>, measured: Measured) -> Duration {
    let rounds = measured.sync.len() as u32;
    let total: Vec<_> = measured.write.iter().zip(&measured.sync).map(|(write, sync)| *write + *sync).collect();
    let (median, total) = percentiles(total);
    let to_floor = floor.map_or("-".into(), |floor| format!("{:.2}", median.as_secs_f64() / floor.as_secs_f64()));
    println!(
        "{bytes:6}  {how:14}  {total:>16}  {:>17}  {:>17}  {:>10.1}  {to_floor:>13}",
        percentiles(measured.write).1,
        percentiles(measured.sync).1,
        (measured.cpu / rounds).as_secs_f64() * 1e6
    );
    median
}

fn percentiles(mut times: Vec<Duration>) -> (Duration, String) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    (at(0.5), format!("{:.0}/{:.0}", at(0.5).as_secs_f64() * 1e6, at(0.99).as_secs_f64() * 1e6))
}

/// CPU time of all threads of this process, the kernel's workers for it included.
fn process_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the result lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
