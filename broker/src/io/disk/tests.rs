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
    seats.pop().unwrap().open(Places::default()).unwrap()
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
fn threads_begin_where_no_core_is_if_they_can() {
    use WaitMode::{Busy, Hybrid, Park};
    let all: Vec<usize> = (0..4).collect();
    let places = |first: &[usize], own| Places { first: first.to_vec(), own };
    assert_eq!(thread_places(Busy, 0, &[0, 1], &all), places(&[2, 3], None), "it never gives way");
    assert_eq!(thread_places(Hybrid, 0, &[0, 1, 2, 3], &all), places(&[1, 2, 3], Some(0)));
    assert_eq!(thread_places(Hybrid, 1, &[0, 1], &[0, 1]), places(&[0], Some(1)));
    assert_eq!(thread_places(Busy, 5, &[5], &[5]), places(&[5], None), "one CPU is shared by all");
    assert_eq!(thread_places(Park, 0, &[0, 1], &all), places(&all, Some(0)));
}

#[test]
fn commits_start_at_once_however_much_else_waits() {
    let scratch = Scratch::new();
    let mut disk = port(&scratch);
    let file = create(&mut disk, 64);
    for number in 0..50 {
        let priority = if number % 2 == 0 { Priority::Background } else { Priority::History };
        submit(&mut disk, number, priority, DiskOp::Read { file, at: 0, bytes: BLOCK_BYTES });
    }
    disk.flush();
    assert_eq!(disk.transfers_under_way, [0, BACKGROUND.requests, HISTORY.requests]);
    submit(&mut disk, 50, Priority::Commit, DiskOp::Read { file, at: 0, bytes: BLOCK_BYTES });
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
fn large_reads_behind_commits_go_in_small_pieces() {
    let scratch = Scratch::new();
    let mut disk = port(&scratch);
    let file = create(&mut disk, 256);
    let op = write(file, 0, 256);
    let DiskOp::Write { bytes, .. } = op.clone() else { unreachable!() };
    disk.call(op).unwrap();
    for (priority, pieces) in [(Priority::Commit, 2), (Priority::Background, 8), (Priority::History, 8)] {
        let before = disk.ring.operations();
        submit(&mut disk, 1, priority, DiskOp::Read { file, at: 0, bytes: 256 * BLOCK_BYTES });
        assert_eq!(disk.wait().unwrap().result, Ok(DiskOk::Bytes(bytes.clone())));
        assert_eq!(disk.ring.operations() - before, pieces, "{priority:?}");
    }
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

/// Commits and write-behind have threads of their own: neither waits for the other's jobs.
#[test]
fn commits_do_not_queue_behind_write_behind() {
    let scratch = Scratch::new();
    let mut disk = port(&scratch);
    let file = create(&mut disk, 64);
    for number in 0..100 {
        submit(&mut disk, number, Priority::Background, write(file, number % 64, 1));
    }
    submit(&mut disk, 100, Priority::Commit, write(file, 0, 1));
    submit(&mut disk, 101, Priority::Commit, DiskOp::SyncAfter { file, write: Ticket(100) });
    assert!(disk.has_commits());
    disk.flush();
    let (mut commits, mut others) = (Vec::new(), Vec::new());
    while let Some(DiskDone { ticket, result }) = disk.wait() {
        result.unwrap();
        if ticket.0 < 100 { others.push(ticket.0) } else { commits.push(ticket.0) }
    }
    assert_eq!((commits, others), (vec![100, 101], (0..100).collect()), "in their order");
    assert!(!disk.has_commits());
}
