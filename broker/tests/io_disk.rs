//! The disk of a core on a real file system: the suite that every executor passes, the three ways to wait, and the traps
//! of the disk path that were met (broker/DESIGN.md).

#[path = "../../wal/tests/conformance/mod.rs"]
mod suite;

use felix_broker::io::bind::{SocketBuffers, SocketGroup};
use felix_broker::io::disk::{self, DiskPort, Places, thread_places};
use felix_broker::io::executor::{CoreSpec, spawn_core};
use felix_broker::io::mesh::{Mesh, MeshLimits, MeshPort};
use felix_broker::io::sys::allowed_cpus;
use felix_broker::io::wait::{Until, WaitMode, Waiter};
use felix_wal::disk::{
    BLOCK_BYTES, Disk, DiskDone, DiskError, DiskOk, DiskOp, DiskRequest, FileKey, FilePath, Priority, Ticket,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// An empty folder in the target folder, on a file system that takes O_DIRECT.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("io_disk").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    if let Err(problem) = disk::try_folder(&folder) {
        panic!("these tests need a file system with O_DIRECT below the target folder: {problem}");
    }
    folder
}

/// A port on this thread, which is no core.
fn port(folder: &Path) -> DiskPort {
    let (_, mut seats) = disk::start(folder, 1).unwrap();
    seats.pop().unwrap().open(Places::default()).unwrap()
}

fn path(text: &str) -> FilePath {
    FilePath(text.to_string())
}

fn create(disk: &mut DiskPort, name: &str, file: FileKey, blocks: u64) {
    let op = DiskOp::Create { path: path(name), file, bytes: blocks * BLOCK, zeroed: true };
    assert_eq!(disk.call(op), Ok(DiskOk::Done));
}

fn submit(disk: &mut DiskPort, number: u64, priority: Priority, op: DiskOp) {
    disk.submit(DiskRequest { ticket: Ticket(number), priority, op });
}

#[test]
fn the_real_disk_conforms() {
    let folder = folder("conforms");
    let mut disk = port(&folder);
    suite::run(&mut disk);
    assert_eq!(disk.in_flight(), 0);
    let counters = disk.counters();
    assert_eq!(counters.submitted, counters.completed);
    assert!(counters.failed > 0 && counters.syncs > 30 && counters.written_bytes > 513 * BLOCK);
}

#[test]
fn the_helper_ends_with_the_last_port() {
    let folder = folder("helper_ends");
    let (helper, seats) = disk::start(&folder, 3).unwrap();
    let mut ports: Vec<DiskPort> = seats.into_iter().map(|seat| seat.open(Places::default()).unwrap()).collect();
    for (number, disk) in ports.iter_mut().enumerate() {
        create(disk, &format!("core-{number}/f"), FileKey(1), 1);
    }
    // What one port wrote, another sees, and what is under way at the end harms nobody.
    let listed = ports[0].call(DiskOp::List { path: path("core-2") });
    assert!(matches!(listed, Ok(DiskOk::Listed(list)) if list.len() == 1));
    submit(&mut ports[1], 1, Priority::Background, DiskOp::List { path: path("core-0") });
    ports[1].flush();
    drop(ports);
    assert!(helper.join());
}

#[test]
fn a_port_dropped_with_transfers_under_way_waits_for_the_kernel() {
    let folder = folder("dropped");
    for _ in 0..20 {
        let mut disk = port(&folder);
        let name = path("f");
        let _ = disk.call(DiskOp::Remove { path: name });
        create(&mut disk, "f", FileKey(1), 64);
        for block in 0..64 {
            let bytes = vec![block as u8; BLOCK_BYTES];
            submit(&mut disk, block, Priority::Commit, DiskOp::Write { file: FileKey(1), at: block * BLOCK, bytes });
        }
        submit(&mut disk, 64, Priority::Commit, DiskOp::Sync { file: FileKey(1) });
        disk.flush();
    }
}

#[test]
fn errors_are_named() {
    let folder = folder("errors");
    let mut disk = port(&folder);
    fs::write(folder.join("plain"), b"x").unwrap();
    let below_a_file = disk.call(DiskOp::Replace { path: path("plain/f"), bytes: vec![1] });
    assert!(
        matches!(below_a_file, Err(DiskError::Exists | DiskError::Io { errno: libc::ENOTDIR })),
        "{below_a_file:?}"
    );
    fs::create_dir(folder.join("sub")).unwrap();
    let folder_as_file = disk.call(DiskOp::Load { path: path("sub"), bytes_max: 1 << 20 });
    assert_eq!(folder_as_file, Err(DiskError::Io { errno: libc::EISDIR }));
    let folder_as_file = disk.call(DiskOp::Open { path: path("sub"), file: FileKey(1) });
    assert_eq!(folder_as_file, Err(DiskError::Io { errno: libc::EISDIR }));
    // Larger than any file of ext4 (16 TiB); file systems with larger ones have no such space.
    let huge = DiskOp::Create { path: path("huge"), file: FileKey(1), bytes: 1 << 60, zeroed: false };
    let huge = disk.call(huge);
    assert!(matches!(huge, Err(DiskError::Full | DiskError::Io { errno: libc::EFBIG })), "{huge:?}");
    assert!(!folder.join("huge").exists(), "what could not be made is removed");
}

// What is wrong with a request is our mistake and ends the process that makes it.

fn refused(name: &str, op: impl FnOnce(FileKey) -> DiskOp) {
    let mut disk = port(&folder(name));
    create(&mut disk, "f", FileKey(1), 4);
    submit(&mut disk, 1, Priority::Commit, op(FileKey(1)));
}

#[test]
#[should_panic = "no multiple of 4096"]
fn a_write_off_the_block_is_refused() {
    refused("off_block", |file| DiskOp::Write { file, at: 512, bytes: vec![0; BLOCK_BYTES] });
}

#[test]
#[should_panic = "no multiple of 4096"]
fn a_write_of_half_a_block_is_refused() {
    refused("half_block", |file| DiskOp::Write { file, at: 0, bytes: vec![0; BLOCK_BYTES / 2] });
}

#[test]
#[should_panic = "is not open"]
fn a_sync_of_a_file_that_is_not_open_is_refused() {
    refused("not_open", |_| DiskOp::Sync { file: FileKey(2) });
}

#[test]
#[should_panic = "is no path below the data folder"]
fn a_path_out_of_the_folder_is_refused() {
    refused("out_of_it", |_| DiskOp::Remove { path: path("../conforms") });
}

#[test]
#[should_panic = "closed with requests under way"]
fn a_close_of_a_busy_file_is_refused() {
    let mut disk = port(&folder("busy_close"));
    create(&mut disk, "f", FileKey(1), 4);
    submit(&mut disk, 1, Priority::Commit, DiskOp::Sync { file: FileKey(1) });
    submit(&mut disk, 2, Priority::Commit, DiskOp::Close { file: FileKey(1) });
}

/// What a core's loop has.
struct Loop {
    mesh: MeshPort<()>,
    disk: DiskPort,
    waiter: Waiter,
}

impl Loop {
    /// One request with the loop going round until it is done. No deadline: only the completion wakes a parked core.
    async fn call(&mut self, op: DiskOp) -> Result<DiskOk, DiskError> {
        submit(&mut self.disk, 1, Priority::Commit, op);
        loop {
            if let Some(DiskDone { result, .. }) = self.disk.poll() {
                self.waiter.worked().await;
                return result;
            }
            self.waiter.wait_with_disk(&mut self.mesh, &mut self.disk, Until::default()).await;
        }
    }
}

/// Runs `work` on a core with a disk. Fails when it takes far longer than any disk: a wake-up was lost.
fn on_a_core<F, R>(name: &str, wait: WaitMode, pinned: bool, work: impl FnOnce(Loop) -> F + Send + 'static) -> R
where
    F: Future<Output = R> + 'static,
    R: Send + 'static,
{
    let folder = folder(name);
    let (helper, mut seats) = disk::start(&folder, 1).unwrap();
    let seat = seats.pop().unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let mut group = SocketGroup::bind(any, 1, &folder.join("locks"), SocketBuffers::default()).unwrap();
    let socket = group.take_sockets().remove(0);
    let mesh = Mesh::ports(1, MeshLimits { capacity: 8, reserved: 1 }).remove(0);
    let allowed = allowed_cpus().unwrap();
    let cpu = pinned.then(|| allowed[0]);
    let places = cpu.map(|cpu| thread_places(wait, cpu, &[cpu], &allowed)).unwrap_or_default();
    let spec = CoreSpec { index: 0, cpu, wait, spin: Duration::from_micros(50) };
    let (ended, ending) = mpsc::channel();
    let core = spawn_core(spec, move |handle| async move {
        let disk = seat.open(places).unwrap();
        let mut waiter = handle.waiter(&socket).unwrap();
        waiter.attach_disk(&disk).unwrap();
        let result = work(Loop { mesh, disk, waiter }).await;
        ended.send(()).unwrap();
        result
    })
    .unwrap();
    let end = ending.recv_timeout(Duration::from_secs(50));
    assert_ne!(end, Err(mpsc::RecvTimeoutError::Timeout), "the core sleeps with a completion to take");
    let result = core.join().unwrap();
    assert!(helper.join());
    result
}

/// Transfers and jobs of the helper, one after the other and many at once.
async fn play(mut it: Loop) -> (u64, u64) {
    let file = FileKey(7);
    it.call(DiskOp::Create { path: path("wal/0"), file, bytes: 64 * BLOCK, zeroed: true }).await.unwrap();
    for round in 0..100u64 {
        let bytes = vec![round as u8; BLOCK_BYTES];
        let written = it.call(DiskOp::Write { file, at: round % 64 * BLOCK, bytes }).await;
        assert!(matches!(written, Ok(DiskOk::Written(_))), "{written:?}");
        assert_eq!(it.call(DiskOp::Sync { file }).await, Ok(DiskOk::Done));
        if round % 10 == 0 {
            let bytes = round.to_le_bytes().to_vec();
            assert_eq!(it.call(DiskOp::Replace { path: path("meta"), bytes: bytes.clone() }).await, Ok(DiskOk::Done));
            let loaded = it.call(DiskOp::Load { path: path("meta"), bytes_max: 8 }).await;
            assert_eq!(loaded, Ok(DiskOk::Bytes(bytes)));
        }
    }
    // More than fits at once, of all classes and both ways.
    for number in 0..300 {
        let priority = [Priority::Commit, Priority::Background, Priority::History][number as usize % 3];
        let op = match number % 5 {
            0 => DiskOp::List { path: path("wal") },
            1 => DiskOp::Sync { file },
            _ => DiskOp::Read { file, at: number % 64 * BLOCK, bytes: BLOCK_BYTES },
        };
        submit(&mut it.disk, number, priority, op);
    }
    let mut seen = vec![false; 300];
    while it.disk.in_flight() > 0 {
        match it.disk.poll() {
            Some(DiskDone { ticket, result }) => {
                assert!(result.is_ok(), "{ticket:?}: {result:?}");
                assert!(!std::mem::replace(&mut seen[ticket.0 as usize], true), "{ticket:?} completed twice");
            }
            None => it.waiter.wait_with_disk(&mut it.mesh, &mut it.disk, Until::default()).await,
        }
    }
    assert!(seen.iter().all(|seen| *seen));
    assert_eq!(it.call(DiskOp::Close { file }).await, Ok(DiskOk::Done));
    let counters = it.waiter.counters();
    (counters.spins, counters.parks)
}

#[test]
fn a_parked_core_is_woken_by_completions() {
    let (spins, parks) = on_a_core("park", WaitMode::Park, false, play);
    assert_eq!(spins, 0);
    assert!(parks > 100, "{parks}");
}

#[test]
fn a_core_that_spins_sees_completions_without_ever_parking() {
    let (spins, parks) = on_a_core("busy", WaitMode::Busy, false, play);
    assert_eq!(parks, 0);
    assert!(spins > 0);
}

#[test]
fn a_core_that_spins_and_then_parks_misses_nothing() {
    on_a_core("hybrid", WaitMode::Hybrid, false, play);
}

/// The stall of `io_wait.rs` (an executor that sleeps with a runnable loop), looked for with completions as the only events.
#[test]
fn a_core_on_a_crowded_cpu_misses_no_completion() {
    let over = Arc::new(AtomicBool::new(false));
    let hogs: Vec<_> = (0..2 * allowed_cpus().unwrap().len())
        .map(|_| {
            let over = over.clone();
            std::thread::spawn(move || while !over.load(SeqCst) {})
        })
        .collect();
    for (name, mode) in
        [("crowded_park", WaitMode::Park), ("crowded_hybrid", WaitMode::Hybrid), ("crowded_busy", WaitMode::Busy)]
    {
        on_a_core(name, mode, true, |mut it| async move {
            let file = FileKey(1);
            it.call(DiskOp::Create { path: path("f"), file, bytes: BLOCK, zeroed: true }).await.unwrap();
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(1) {
                it.call(DiskOp::Write { file, at: 0, bytes: vec![1; BLOCK_BYTES] }).await.unwrap();
                it.call(DiskOp::Sync { file }).await.unwrap();
                it.call(DiskOp::List { path: path("none") }).await.unwrap();
            }
        });
    }
    over.store(true, SeqCst);
    hogs.into_iter().for_each(|hog| hog.join().unwrap());
}

#[test]
fn a_core_may_end_with_its_bell_armed() {
    for mode in [WaitMode::Park, WaitMode::Hybrid] {
        on_a_core("armed", mode, false, |mut it| async move {
            it.call(DiskOp::List { path: path("none") }).await.unwrap();
            submit(&mut it.disk, 1, Priority::Commit, DiskOp::List { path: path("none") });
            let soon = Instant::now() + Duration::from_millis(1);
            let until = Until { deadline: Some(soon), writable: false };
            it.waiter.wait_with_disk(&mut it.mesh, &mut it.disk, until).await;
        });
    }
}
