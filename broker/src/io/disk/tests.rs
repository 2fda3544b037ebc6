use super::*;
use felix_wal::disk::{DiskError, FilePath, Ticket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// A folder of its own below the target folder of this build, which lies on a real disk; removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let binary = std::env::current_exe().unwrap();
        let target = binary.ancestors().find(|folder| folder.ends_with("deps")).unwrap().parent().unwrap();
        let name = format!("disk-unit-{}-{}", std::process::id(), NUMBER.fetch_add(1, SeqCst));
        let folder = target.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Scratch(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn port(scratch: &Scratch) -> DiskPort {
    let (_, mut seats) = start(&scratch.0, 1).unwrap();
    seats.pop().unwrap().open(None).unwrap()
}

fn create(disk: &mut DiskPort, blocks: u64) -> FileKey {
    let file = FileKey(1);
    let bytes = blocks * BLOCK_BYTES as u64;
    disk.call(DiskOp::Create { path: FilePath("f".into()), file, bytes, zeroed: true }).unwrap();
    file
}

fn write(file: FileKey, block: u64, blocks: usize) -> DiskOp {
    let bytes = (0..blocks * BLOCK_BYTES).map(|at| (at / 7) as u8).collect();
    DiskOp::Write { file, at: block * BLOCK_BYTES as u64, bytes }
}

fn submit(disk: &mut DiskPort, number: u64, priority: Priority, op: DiskOp) {
    disk.submit(DiskRequest { ticket: Ticket(number), priority, op });
}

#[test]
fn workers_run_where_no_core_does_if_they_can() {
    use WaitMode::{Busy, Hybrid, Park};
    let all: Vec<usize> = (0..4).collect();
    assert_eq!(worker_cpus(Busy, 0, &[0, 1], &all), [2, 3]);
    assert_eq!(worker_cpus(Hybrid, 0, &[0, 1, 2, 3], &all), [1, 2, 3]);
    assert_eq!(worker_cpus(Hybrid, 1, &[0, 1], &[0, 1]), [0]);
    assert_eq!(worker_cpus(Busy, 5, &[5], &[5]), [5], "one CPU is shared by all");
    assert_eq!(worker_cpus(Park, 0, &[0, 1], &all), all);
}

#[test]
fn commits_start_at_once_however_much_else_waits() {
    let scratch = Scratch::new();
    let mut disk = port(&scratch);
    let file = create(&mut disk, 64);
    for number in 0..50 {
        let priority = if number % 2 == 0 { Priority::Background } else { Priority::History };
        submit(&mut disk, number, priority, write(file, number, 1));
    }
    disk.flush();
    assert_eq!(disk.transfers_under_way, [0, BACKGROUND.requests, HISTORY.requests]);
    submit(&mut disk, 50, Priority::Commit, write(file, 50, 1));
    disk.flush();
    assert_eq!(disk.transfers_under_way, [1, BACKGROUND.requests, HISTORY.requests]);
    let mut done = Vec::new();
    while let Some(DiskDone { ticket, result }) = disk.wait() {
        assert!(disk.transfers_under_way[1] <= BACKGROUND.requests && disk.transfers_under_way[2] <= HISTORY.requests);
        result.unwrap();
        done.push(ticket.0);
    }
    done.sort_unstable();
    assert_eq!(done, (0..51).collect::<Vec<_>>());
}

#[test]
fn large_background_writes_go_in_small_pieces() {
    let scratch = Scratch::new();
    let mut disk = port(&scratch);
    let file = create(&mut disk, 256);
    for (priority, pieces) in [(Priority::Commit, 2), (Priority::Background, 8), (Priority::History, 8)] {
        let before = disk.ring.operations();
        submit(&mut disk, 1, priority, write(file, 0, 256));
        assert!(matches!(disk.wait().unwrap().result, Ok(DiskOk::Written(_))));
        assert_eq!(disk.ring.operations() - before, pieces, "{priority:?}");
    }
    submit(&mut disk, 1, Priority::History, DiskOp::Read { file, at: 0, bytes: 256 * BLOCK_BYTES });
    let DiskOp::Write { bytes, .. } = write(file, 0, 256) else { unreachable!() };
    assert_eq!(disk.wait().unwrap().result, Ok(DiskOk::Bytes(bytes)));
}

#[test]
fn a_port_says_when_it_is_full() {
    let scratch = Scratch::new();
    let mut disk = port(&scratch);
    assert_eq!(disk.room(), REQUESTS_MAX);
    submit(&mut disk, 1, Priority::Background, DiskOp::List { path: FilePath("a".into()) });
    assert_eq!((disk.room(), disk.in_flight()), (REQUESTS_MAX - 1, 1));
    assert!(disk.wait().is_some());
    assert_eq!((disk.room(), disk.in_flight()), (REQUESTS_MAX, 0));
}

#[test]
fn error_numbers_are_named() {
    use super::folder::from_errno;
    let cases = [
        (libc::ENOSPC, DiskError::Full),
        (libc::EDQUOT, DiskError::Full),
        (libc::ENOENT, DiskError::NotFound),
        (libc::EEXIST, DiskError::Exists),
        (libc::EIO, DiskError::Io { errno: libc::EIO }),
        (libc::EROFS, DiskError::Io { errno: libc::EROFS }),
    ];
    for (errno, expected) in cases {
        assert_eq!(from_errno(errno), expected);
    }
}
