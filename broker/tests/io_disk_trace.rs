//! What the kernel was really asked: a sync is an fdatasync of that very file after its write completed, a created name is
//! durable, and the ring has no polling mode.
//!
//! Writes and syncs are plain calls, which strace shows. Reads are operations of an io_uring and make no system calls of
//! their own: strace shows the ring, and the absence of all else; the kernel's own trace points show the fdatasync. A tool or right that is missing skips
//! its test with a message.

use felix_broker::io::disk::{self, DiskPort, Places};
use felix_wal::disk::{BLOCK_BYTES, Disk, DiskOk, DiskOp, DiskRequest, FileKey, FilePath, Priority, Ticket};
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names the folder to work in, for the process under strace.
const TRACED: &str = "FELIX_TRACED_FOLDER";

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("io_disk_trace").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn port(folder: &Path) -> DiskPort {
    let (_, mut seats) = disk::start(folder, 1).unwrap();
    seats.pop().unwrap().open(Places::default()).unwrap()
}

fn path(text: &str) -> FilePath {
    FilePath(text.to_string())
}

fn call(disk: &mut DiskPort, op: DiskOp) -> DiskOk {
    disk.call(op).unwrap()
}

/// Not a test of its own: what the next one runs under strace.
#[test]
fn traced_process() {
    let Some(folder) = std::env::var_os(TRACED) else { return };
    let mut disk = port(Path::new(&folder));
    let file = FileKey(1);
    call(&mut disk, DiskOp::Create { path: path("new/file"), file, bytes: 2 * BLOCK_BYTES as u64, zeroed: true });
    call(&mut disk, DiskOp::Write { file, at: 0, bytes: vec![1; BLOCK_BYTES] });
    call(&mut disk, DiskOp::Sync { file });
    let (commit, write) = (Priority::Commit, Ticket(1));
    let op = DiskOp::Write { file, at: BLOCK_BYTES as u64, bytes: vec![2; BLOCK_BYTES] };
    disk.submit(DiskRequest { ticket: write, priority: commit, op });
    let op = DiskOp::SyncAfter { file, write };
    disk.submit(DiskRequest { ticket: Ticket(2), priority: commit, op });
    while let Some(done) = Disk::wait(&mut disk) {
        done.result.unwrap();
    }
    call(&mut disk, DiskOp::Replace { path: path("small"), bytes: vec![1] });
    call(&mut disk, DiskOp::Rename { from: path("new/file"), to: path("named/file") });
    call(&mut disk, DiskOp::Remove { path: path("named/file") });
}

/// The calls of a trace that returned, as `name(arguments) = result`, with descriptors of `openat` put in the place of
/// numbers: `fsync(</folder/new/file>)`.
fn calls(trace: &str, folder: &str) -> Vec<String> {
    let mut files = std::collections::HashMap::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        // "<pid> name(...) = result". Threads take turns here, so that strace cuts no call in two.
        let Some((_, call)) = line.trim_start().split_once(' ') else { continue };
        let Some((call, result)) = call.trim().rsplit_once(" = ") else { continue };
        let Some((name, arguments)) = call.split_once('(') else { continue };
        let mut text = format!("{name}({arguments}");
        if name == "openat" {
            if let Some(opened) = arguments.split('"').nth(1) {
                files.insert(result.trim().to_string(), opened.replace(folder, ""));
            }
        } else if let Some((descriptor, rest)) = arguments.split_once([',', ')'])
            && let Some(file) = files.get(descriptor)
        {
            text = format!("{name}(<{file}> {rest}");
        }
        calls.push(text.replace(folder, ""));
    }
    calls
}

/// Asserts that calls that contain these texts come in this order.
fn in_order(calls: &[String], wanted: &[&str]) {
    let mut rest = calls.iter();
    for text in wanted {
        assert!(
            rest.any(|call| call.contains(text)),
            "{text:?} is missing, or comes too early, in:\n{}",
            calls.join("\n")
        );
    }
}

#[test]
fn strace_shows_writes_and_syncs_a_plain_ring_and_durable_names() {
    let folder = folder("strace");
    let out = folder.join("trace");
    let data = folder.join("data");
    fs::create_dir(&data).unwrap();
    let traced = Command::new("strace")
        .args(["-f", "-o", out.to_str().unwrap(), "-e"])
        .arg(
            "trace=io_uring_setup,io_uring_register,openat,mkdir,fallocate,pwrite64,write,fsync,fdatasync,\
             sync_file_range,rename,renameat,renameat2,unlink,unlinkat",
        )
        .arg(std::env::current_exe().unwrap())
        .args(["traced_process", "--exact", "--test-threads", "1"])
        .env(TRACED, &data)
        .output();
    match traced {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.contains("ptrace"), "{text}{}", String::from_utf8_lossy(&output.stdout));
            eprintln!("skipped: strace may not trace here");
            return;
        }
        Err(error) => {
            eprintln!("skipped: strace is not installed ({error})");
            return;
        }
    }
    let calls = calls(&fs::read_to_string(out).unwrap(), data.to_str().unwrap());
    let count = |text: &str| calls.iter().filter(|call| call.starts_with(text)).count();
    assert_eq!(count("io_uring_setup("), 1, "{calls:#?}");
    assert!(!calls.iter().any(|call| call.contains("IORING_SETUP_")), "{calls:#?}");
    in_order(&calls, &["io_uring_setup(", "io_uring_register("]);
    // Create: the folder and its entry, extents, zeros, the file, its entry.
    in_order(
        &calls,
        &[
            "mkdir(\"/new\"",
            "fsync(<>",
            "O_DIRECT",
            "fallocate(</new/file>",
            "pwrite64(</new/file>",
            "fsync(</new/file>",
            "fsync(</new>",
        ],
    );
    // Replace: content before the name.
    in_order(
        &calls,
        &["\"/small.tmp\"", "write(</small.tmp>", "fsync(</small.tmp>", "rename(\"/small.tmp\"", "fsync(<>"],
    );
    // Rename: both folders.
    in_order(&calls, &["mkdir(\"/named\"", "renameat2(", "fsync(</named>", "fsync(</new>", "unlink", "fsync(</named>"]);
    // Write-behind, and a commit: written, then synced. Nothing else is written or synced.
    in_order(
        &calls,
        &[
            "fsync(</new/file>",
            "pwrite64(</new/file>",
            "fdatasync(</new/file>",
            "pwrite64(</new/file>",
            "fdatasync(</new/file>",
        ],
    );
    assert_eq!(count("fdatasync(") + count("sync_file_range("), 2, "{calls:#?}");
    assert_eq!(count("pwrite64("), 3, "the zeros, too: {calls:#?}");
}

/// A trace buffer of our own in the kernel, removed at the end.
struct Instance(PathBuf);

impl Instance {
    fn new(inode: u64) -> std::io::Result<Instance> {
        let instance =
            Instance(Path::new("/sys/kernel/tracing/instances").join(format!("felix-{}", std::process::id())));
        fs::create_dir(&instance.0)?;
        for event in ["ext4_sync_file_enter", "ext4_sync_file_exit"] {
            let event = instance.0.join("events/ext4").join(event);
            fs::write(event.join("filter"), format!("ino == {inode}"))?;
            fs::write(event.join("enable"), "1")?;
        }
        Ok(instance)
    }

    fn mark(&self, text: &str) {
        fs::OpenOptions::new()
            .write(true)
            .open(self.0.join("trace_marker"))
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn the_kernel_traces_an_fdatasync_of_that_file_between_write_and_completion() {
    let folder = folder("kernel");
    let mut disk = port(&folder);
    let file = FileKey(1);
    call(&mut disk, DiskOp::Create { path: path("f"), file, bytes: 8 * BLOCK_BYTES as u64, zeroed: true });
    let inode = fs::metadata(folder.join("f")).unwrap().ino();
    let instance = match Instance::new(inode) {
        Ok(instance) => instance,
        Err(error) => {
            eprintln!("skipped: the kernel's trace points of ext4 cannot be used here ({error})");
            return;
        }
    };
    const ROUNDS: usize = 8;
    for round in 0..ROUNDS {
        let at = (round * BLOCK_BYTES) as u64;
        call(&mut disk, DiskOp::Write { file, at, bytes: vec![round as u8; BLOCK_BYTES] });
        instance.mark("written");
        call(&mut disk, DiskOp::Sync { file });
        instance.mark("synced");
    }
    let trace = fs::read_to_string(instance.0.join("trace")).unwrap();
    let steps: Vec<&str> = trace
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let known = ["written", "synced", "ext4_sync_file_enter", "ext4_sync_file_exit"];
            let step = known.into_iter().find(|step| line.contains(step))?;
            match step {
                "ext4_sync_file_enter" => assert!(line.contains("datasync 1"), "{line}"),
                "ext4_sync_file_exit" => assert!(line.contains("ret 0"), "{line}"),
                _ => {}
            }
            Some(step)
        })
        .collect();
    if !steps.contains(&"ext4_sync_file_enter") && !is_ext4(&folder) {
        eprintln!("skipped: the target folder is not on ext4");
        return;
    }
    let expected = ["written", "ext4_sync_file_enter", "ext4_sync_file_exit", "synced"].repeat(ROUNDS);
    assert_eq!(steps, expected, "{trace}");
}

fn is_ext4(folder: &Path) -> bool {
    let folder = fs::canonicalize(folder).unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let longest = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|fields| fields.len() > 2 && folder.starts_with(fields[1]))
        .max_by_key(|fields| fields[1].len());
    longest.is_some_and(|fields| fields[2] == "ext4")
}
