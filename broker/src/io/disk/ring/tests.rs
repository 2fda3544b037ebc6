use super::super::open::open_direct;
use super::*;
use felix_wal::disk::BLOCK_BYTES;
use felix_wal::disk::DiskError;
use std::fs::File;
use std::os::unix::fs::FileExt;

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
    (Ring::new(&bell).unwrap(), bell)
}

fn transfer(file: &Arc<OpenFile>, wanted: usize) -> Transfer {
    let (ticket, priority, key) = (Ticket(1), Priority::Commit, FileKey(1));
    let buffer = Vec::with_capacity(wanted);
    Transfer { ticket, priority, key, file: file.clone(), at: 0, buffer, wanted, piece_bytes: 2 * BLOCK_BYTES }
}

fn pattern(blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK_BYTES).map(|at| (at / 3) as u8).collect()
}

/// A file with a pattern in its first blocks, written past O_DIRECT.
fn filled(name: &str, blocks: usize, used: usize) -> Arc<OpenFile> {
    let file = open(name, blocks);
    let path = format!("/proc/self/fd/{}", file.as_file().as_raw_fd());
    File::options().write(true).open(path).unwrap().write_all_at(&pattern(used), 0).unwrap();
    file
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
/// clock with each transfer; this ring has no such mode, also when the first file is new and empty.
#[test]
fn transfers_are_never_polled_by_the_kernel() {
    let (mut ring, _bell) = ring();
    assert!(!ring.ring.params().is_setup_iopoll());
    ring.start(transfer(&open("first", 0), BLOCK_BYTES));
    let (slot, read) = complete(&mut ring);
    assert_eq!(result(ring.on_completion(slot, read)), Ok(DiskOk::Bytes(Vec::new())));
}

#[test]
fn a_short_read_goes_on_unless_the_file_ends() {
    let (mut ring, _bell) = ring();
    let file = filled("short-read", 3, 2);
    ring.start(transfer(&file, 2 * BLOCK_BYTES));
    let (slot, read) = complete(&mut ring);
    assert_eq!(read as usize, 2 * BLOCK_BYTES);
    // As if the kernel had read a block only.
    assert!(ring.on_completion(slot, BLOCK_BYTES as i32).is_none(), "the file goes on");
    let (slot, read) = complete(&mut ring);
    assert_eq!(read as usize, BLOCK_BYTES, "only the rest is read");
    assert_eq!(result(ring.on_completion(slot, read)), Ok(DiskOk::Bytes(pattern(2))));
    assert_eq!(ring.under_way(), 0);
    // Beyond the end.
    let mut beyond = transfer(&file, 2 * BLOCK_BYTES);
    beyond.at = 2 * BLOCK_BYTES as u64;
    ring.start(beyond);
    let (slot, read) = complete(&mut ring);
    assert_eq!(read as usize, BLOCK_BYTES);
    assert_eq!(result(ring.on_completion(slot, read)), Ok(DiskOk::Bytes(vec![0; BLOCK_BYTES])));
}

#[test]
fn a_failed_read_is_not_tried_again() {
    let (mut ring, _bell) = ring();
    ring.start(transfer(&open("failed", 2), BLOCK_BYTES));
    let before = ring.operations();
    let (slot, _) = complete(&mut ring);
    assert_eq!(result(ring.on_completion(slot, -libc::EIO)), Err(DiskError::Io { errno: libc::EIO }));
    assert_eq!((ring.under_way(), ring.operations()), (0, before));
    // A real one: a folder cannot be read.
    let folder = Arc::new(OpenFile::of(File::open(std::env::temp_dir()).unwrap()));
    ring.start(transfer(&folder, BLOCK_BYTES));
    let (slot, failed) = complete(&mut ring);
    assert_eq!(result(ring.on_completion(slot, failed)), Err(DiskError::Io { errno: libc::EISDIR }));
}

#[test]
fn a_completion_rings_the_bell() {
    let (mut ring, bell) = ring();
    ring.start(transfer(&filled("bell", 1, 1), BLOCK_BYTES));
    ring.enter();
    // Returns only if it was rung.
    bell.wait();
    assert!(ring.has_something());
    assert_eq!(result(ring.reap()), Ok(DiskOk::Bytes(pattern(1))));
    assert!(!ring.has_something());
}
