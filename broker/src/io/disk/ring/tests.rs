use super::super::open::open_direct;
use super::*;
use felix_wal::disk::BLOCK_BYTES;
use std::fs::File;

fn open(name: &str, blocks: usize) -> Arc<OpenFile> {
    let binary = std::env::current_exe().unwrap();
    let path = binary.with_file_name(format!("disk-ring-{name}-{}", std::process::id()));
    let file = open_direct(&path, true).unwrap();
    file.as_file().set_len((blocks * BLOCK_BYTES) as u64).unwrap();
    // The file lives as long as it is open.
    std::fs::remove_file(path).unwrap();
    Arc::new(file)
}

fn ring() -> (Ring, Bell) {
    let bell = Bell::new().unwrap();
    (Ring::new(&bell, None).unwrap(), bell)
}

fn transfer(file: &Arc<OpenFile>, action: Action, buffer: Vec<u8>) -> Transfer {
    let (ticket, priority, key) = (Ticket(1), Priority::Commit, FileKey(1));
    Transfer { ticket, priority, key, file: file.clone(), action, at: 0, buffer, piece_bytes: 2 * BLOCK_BYTES }
}

fn pattern(blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK_BYTES).map(|at| (at / 3) as u8).collect()
}

/// Enters and waits for the completion of the only operation, which it does not handle.
fn complete(ring: &mut Ring) -> (usize, i32) {
    ring.enter();
    ring.ring.submit_and_wait(1).unwrap();
    let completion = ring.ring.completion().next().unwrap();
    (completion.user_data() as usize, completion.result())
}

fn result(ended: Option<Ended>) -> Result<DiskOk, DiskError> {
    ended.expect("it ended").done.result
}

/// The executor's way of deciding for IOPOLL (a read of the first file) makes a core wait for the tick of the kernel's
/// clock with each write; this ring has no such mode, also when the first file is new and empty.
#[test]
fn transfers_are_never_polled_by_the_kernel() {
    let (mut ring, _bell) = ring();
    assert!(!ring.ring.params().is_setup_iopoll());
    let empty = open("first", 0);
    ring.start(transfer(&empty, Action::Read { wanted: BLOCK_BYTES }, Vec::with_capacity(BLOCK_BYTES)));
    let (slot, read) = complete(&mut ring);
    assert_eq!(result(ring.on_completion(slot, read)), Ok(DiskOk::Bytes(Vec::new())));
    ring.start(transfer(&empty, Action::Write, pattern(1)));
    let (slot, written) = complete(&mut ring);
    assert_eq!(result(ring.on_completion(slot, written)), Ok(DiskOk::Written(pattern(1))));
}

#[test]
fn a_short_write_goes_on_behind_what_was_written() {
    let (mut ring, _bell) = ring();
    let file = open("short-write", 4);
    ring.start(transfer(&file, Action::Write, pattern(2)));
    let (slot, written) = complete(&mut ring);
    assert_eq!(written as usize, 2 * BLOCK_BYTES);
    // As if the kernel had written a block only.
    assert!(ring.on_completion(slot, BLOCK_BYTES as i32).is_none());
    let (slot, written) = complete(&mut ring);
    assert_eq!(written as usize, BLOCK_BYTES, "only the rest is written");
    assert_eq!(result(ring.on_completion(slot, written)), Ok(DiskOk::Written(pattern(2))));
    assert_eq!(ring.under_way(), 0);
}

#[test]
fn a_write_of_nothing_is_an_error_not_a_loop() {
    let (mut ring, _bell) = ring();
    let file = open("nothing", 1);
    ring.start(transfer(&file, Action::Write, pattern(1)));
    let (slot, _) = complete(&mut ring);
    assert_eq!(result(ring.on_completion(slot, 0)), Err(DiskError::Io { errno: libc::EIO }));
}

#[test]
fn a_short_read_goes_on_unless_the_file_ends() {
    let (mut ring, _bell) = ring();
    let file = open("short-read", 3);
    ring.start(transfer(&file, Action::Write, pattern(2)));
    let (slot, written) = complete(&mut ring);
    assert!(ring.on_completion(slot, written).is_some());
    ring.start(transfer(&file, Action::Read { wanted: 2 * BLOCK_BYTES }, Vec::with_capacity(2 * BLOCK_BYTES)));
    let (slot, read) = complete(&mut ring);
    assert_eq!(read as usize, 2 * BLOCK_BYTES);
    assert!(ring.on_completion(slot, BLOCK_BYTES as i32).is_none(), "the file goes on");
    let (slot, read) = complete(&mut ring);
    assert_eq!(result(ring.on_completion(slot, read)), Ok(DiskOk::Bytes(pattern(2))));
    // Beyond the end.
    let mut beyond = transfer(&file, Action::Read { wanted: 2 * BLOCK_BYTES }, Vec::with_capacity(2 * BLOCK_BYTES));
    beyond.at = 2 * BLOCK_BYTES as u64;
    ring.start(beyond);
    let (slot, read) = complete(&mut ring);
    assert_eq!(read as usize, BLOCK_BYTES);
    assert_eq!(result(ring.on_completion(slot, read)), Ok(DiskOk::Bytes(vec![0; BLOCK_BYTES])));
}

#[test]
fn a_failed_transfer_is_not_tried_again() {
    let (mut ring, _bell) = ring();
    let file = open("failed", 2);
    for action in [Action::Write, Action::Sync] {
        ring.start(transfer(&file, action, pattern(1)));
        let before = ring.operations();
        let (slot, _) = complete(&mut ring);
        assert_eq!(result(ring.on_completion(slot, -libc::EIO)), Err(DiskError::Io { errno: libc::EIO }));
        assert_eq!((ring.under_way(), ring.operations()), (0, before));
    }
    // A real one: a descriptor that cannot be written.
    let path = std::env::current_exe().unwrap();
    let read_only = Arc::new(OpenFile::of(File::open(path).unwrap()));
    ring.start(transfer(&read_only, Action::Write, pattern(1)));
    let (slot, failed) = complete(&mut ring);
    assert_eq!(result(ring.on_completion(slot, failed)), Err(DiskError::Io { errno: libc::EBADF }));
}

#[test]
fn a_completion_rings_the_bell() {
    let (mut ring, bell) = ring();
    let file = open("bell", 1);
    ring.start(transfer(&file, Action::Sync, Vec::new()));
    ring.enter();
    // Returns only if it was rung.
    bell.wait();
    assert!(ring.has_something());
    assert_eq!(result(ring.reap()), Ok(DiskOk::Done));
    assert!(!ring.has_something());
}
