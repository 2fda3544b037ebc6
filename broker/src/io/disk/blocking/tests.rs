use super::super::bell::Bell;
use super::super::open::open_direct;
use super::*;
use felix_wal::disk::BLOCK_BYTES;
use std::fs::{self, File};
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    let binary = std::env::current_exe().unwrap();
    binary.with_file_name(format!("blocking-{name}-{}", std::process::id()))
}

fn open(name: &str, blocks: usize) -> Arc<OpenFile> {
    let file = open_direct(&path(name), true).unwrap();
    file.as_file().set_len((blocks * BLOCK_BYTES) as u64).unwrap();
    Arc::new(file)
}

fn pattern(blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK_BYTES).map(|at| (at / 3) as u8).collect()
}

fn start(piece_bytes: usize) -> Blocking {
    Blocking::start("disk-test", piece_bytes, Places::default()).unwrap()
}

/// Sleeps as a core does.
fn wait(thread: &mut Blocking) -> Done {
    let bell = Arc::new(Bell::new().unwrap());
    let waker = Waker::from(bell.clone());
    loop {
        if let Some(done) = thread.poll() {
            return done;
        }
        if thread.prepare_sleep(&waker) {
            bell.wait();
        }
        thread.awake();
    }
}

#[test]
fn a_write_and_its_sync_are_one_job_and_the_buffer_comes_back() {
    let mut thread = start(2 * BLOCK_BYTES);
    let file = open("pair", 8);
    let bytes = pattern(3);
    let address = bytes.as_ptr();
    let write = Some((Ticket(1), BLOCK_BYTES as u64, bytes));
    thread.send(Job { key: FileKey(7), file: file.clone(), write, sync: Some(Ticket(2)) });
    let done = wait(&mut thread);
    let (ticket, written) = done.write.unwrap();
    let written = written.unwrap();
    assert_eq!((done.key, ticket, written.as_ptr()), (FileKey(7), Ticket(1), address));
    assert_eq!(done.sync, Some((Ticket(2), Ok(()))));
    let content = fs::read(path("pair")).unwrap();
    assert_eq!(&content[BLOCK_BYTES..4 * BLOCK_BYTES], pattern(3));
    fs::remove_file(path("pair")).unwrap();
}

#[test]
fn a_buffer_that_is_not_aligned_for_the_device_is_copied() {
    let mut thread = start(2 * BLOCK_BYTES);
    let mut file = open_direct(&path("staged"), true).unwrap();
    // As if the device asked for it: a `Vec` begins at 16 behind some page.
    file.memory_align = BLOCK_BYTES;
    let blocks = 5;
    file.as_file().set_len((blocks * BLOCK_BYTES) as u64).unwrap();
    let write = Some((Ticket(1), 0, pattern(blocks)));
    thread.send(Job { key: FileKey(1), file: Arc::new(file), write, sync: None });
    let done = wait(&mut thread);
    assert_eq!((done.write.unwrap().1, done.sync), (Ok(pattern(blocks)), None));
    assert_eq!(fs::read(path("staged")).unwrap(), pattern(blocks));
    fs::remove_file(path("staged")).unwrap();
}

/// The kernel's own refusals: a descriptor that cannot be written, one that cannot be synced.
#[test]
fn a_write_that_fails_is_not_synced_and_not_tried_again() {
    let mut thread = start(2 * BLOCK_BYTES);
    let read_only = Arc::new(OpenFile::of(File::open(std::env::current_exe().unwrap()).unwrap()));
    let write = Some((Ticket(1), 0, pattern(1)));
    thread.send(Job { key: FileKey(1), file: read_only, write, sync: Some(Ticket(2)) });
    let done = wait(&mut thread);
    let ebadf = DiskError::Io { errno: libc::EBADF };
    assert_eq!((done.write.unwrap().1, done.sync.unwrap().1), (Err(ebadf), Err(ebadf)), "the sync alone would succeed");
    let (pipe, _other) = std::io::pipe().unwrap();
    let pipe = Arc::new(OpenFile::of(File::from(std::os::fd::OwnedFd::from(pipe))));
    thread.send(Job { key: FileKey(1), file: pipe, write: None, sync: Some(Ticket(3)) });
    let done = wait(&mut thread);
    assert_eq!(done.sync, Some((Ticket(3), Err(DiskError::Io { errno: libc::EINVAL }))));
}

#[test]
fn jobs_keep_their_order_and_what_was_given_is_done_before_the_end() {
    let file = open("order", JOBS_UNDER_WAY);
    let mut thread = start(BLOCK_BYTES);
    for round in 0..3u64 {
        for block in 0..JOBS_UNDER_WAY as u64 {
            let bytes = vec![(round + block) as u8; BLOCK_BYTES];
            let write = Some((Ticket(block), block * BLOCK_BYTES as u64, bytes));
            thread.send(Job { key: FileKey(1), file: file.clone(), write, sync: None });
        }
        if round < 2 {
            (0..JOBS_UNDER_WAY as u64).for_each(|block| assert_eq!(wait(&mut thread).write.unwrap().0, Ticket(block)));
        }
    }
    drop(thread);
    let content = fs::read(path("order")).unwrap();
    for (block, bytes) in content.chunks(BLOCK_BYTES).enumerate() {
        assert!(bytes.iter().all(|byte| *byte == (2 + block) as u8), "block {block}");
    }
    fs::remove_file(path("order")).unwrap();
}

/// Threads inherit the pinning of the one that starts them: beside a busy core they would starve.
#[test]
fn it_runs_where_it_is_told_to() {
    let cpu = *crate::io::sys::allowed_cpus().unwrap().last().unwrap();
    let places = Places { first: vec![cpu], own: None };
    let mut thread = Blocking::start("disk-placed", BLOCK_BYTES, places).unwrap();
    // After a job it is surely there.
    thread.send(Job { key: FileKey(1), file: open("placed", 1), write: None, sync: Some(Ticket(1)) });
    assert_eq!(wait(&mut thread).sync, Some((Ticket(1), Ok(()))));
    fs::remove_file(path("placed")).unwrap();
    let statuses = fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default());
    let placed: Vec<String> = statuses.filter(|status| status.starts_with("Name:\tdisk-placed\n")).collect();
    assert_eq!(placed.len(), 1);
    assert!(placed[0].contains(&format!("Cpus_allowed_list:\t{cpu}\n")), "{}", placed[0]);
}
