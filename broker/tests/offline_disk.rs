//! The disk of the offline tools: the suite that every executor passes, the read-only mode, and hostile folders.

#[path = "../../wal/tests/conformance/mod.rs"]
mod suite;

use felix_broker::offline_disk::{Access, OfflineDisk};
use felix_wal::disk::{BLOCK_BYTES, Disk, DiskError, DiskOk, DiskOp, FileKey, FilePath};
use std::fs;
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("offline_disk").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn path(text: &str) -> FilePath {
    FilePath(text.to_string())
}

#[test]
fn the_offline_disk_conforms() {
    suite::run(&mut OfflineDisk::new(&folder("conforms"), Access::ReadWrite));
}

/// Every operation there is, on files that exist.
fn all_ops() -> Vec<(DiskOp, bool)> {
    let file = FileKey(1);
    vec![
        (DiskOp::Open { path: path("a/f"), file }, false),
        (DiskOp::Read { file, at: 0, bytes: BLOCK_BYTES }, false),
        (DiskOp::Load { path: path("a/f"), bytes_max: 1 << 20 }, false),
        (DiskOp::List { path: path("a") }, false),
        (DiskOp::Write { file, at: 0, bytes: vec![1; BLOCK_BYTES] }, true),
        (DiskOp::Sync { file }, true),
        (DiskOp::Extend { file, bytes: 4 * BLOCK_BYTES as u64 }, true),
        (DiskOp::Create { path: path("b/g"), file: FileKey(2), bytes: BLOCK_BYTES as u64, zeroed: true }, true),
        (DiskOp::Replace { path: path("a/f"), bytes: vec![2] }, true),
        (DiskOp::Rename { from: path("a/f"), to: path("b/h") }, true),
        (DiskOp::Close { file }, false),
        (DiskOp::Remove { path: path("a/f") }, true),
    ]
}

#[test]
fn read_only_changes_nothing() {
    let folder = folder("read_only");
    fs::create_dir(folder.join("a")).unwrap();
    let content = vec![7; 2 * BLOCK_BYTES];
    fs::write(folder.join("a/f"), &content).unwrap();
    let mut disk = OfflineDisk::new(&folder, Access::ReadOnly);
    for (op, writes) in all_ops() {
        let result = disk.call(op.clone());
        match writes {
            true => assert_eq!(result, Err(DiskError::Io { errno: libc::EROFS }), "{op:?}"),
            false => assert!(result.is_ok(), "{op:?}: {result:?}"),
        }
    }
    assert_eq!(fs::read(folder.join("a/f")).unwrap(), content);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    // The same operations are fine where writing is allowed: it is the mode that refuses them.
    let mut disk = OfflineDisk::new(&folder, Access::ReadWrite);
    for (op, _) in all_ops() {
        let result = disk.call(op.clone());
        assert!(result.is_ok() || matches!(op, DiskOp::Remove { .. }), "{op:?}: {result:?}");
    }
}

#[test]
fn hostile_paths_and_files_are_errors() {
    let folder = folder("hostile");
    let mut disk = OfflineDisk::new(&folder, Access::ReadWrite);
    for bad in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/\0"] {
        let load = disk.call(DiskOp::Load { path: path(bad), bytes_max: 10 });
        assert_eq!(load, Err(DiskError::Io { errno: libc::EINVAL }), "{bad:?}");
    }
    // A pipe under a file's name does not hold the tool up.
    let made = std::process::Command::new("mkfifo").arg(folder.join("pipe")).status().unwrap();
    assert!(made.success());
    let read_only = &mut OfflineDisk::new(&folder, Access::ReadOnly);
    let load = read_only.call(DiskOp::Load { path: path("pipe"), bytes_max: 10 });
    assert_eq!(load, Err(DiskError::Io { errno: libc::EINVAL }));
    fs::create_dir(folder.join("folder")).unwrap();
    let open = read_only.call(DiskOp::Open { path: path("folder"), file: FileKey(1) });
    assert_eq!(open, Err(DiskError::Io { errno: libc::EISDIR }));
    // What is open nowhere, and what does not fit blocks or the file.
    for op in [
        DiskOp::Read { file: FileKey(9), at: 0, bytes: BLOCK_BYTES },
        DiskOp::Sync { file: FileKey(9) },
        DiskOp::Close { file: FileKey(9) },
    ] {
        assert_eq!(disk.call(op), Err(DiskError::Io { errno: libc::EBADF }));
    }
    let file = FileKey(1);
    disk.call(DiskOp::Create { path: path("f"), file, bytes: BLOCK_BYTES as u64, zeroed: false }).unwrap();
    for op in [
        DiskOp::Write { file, at: 1, bytes: vec![0; BLOCK_BYTES] },
        DiskOp::Write { file, at: 0, bytes: vec![0; 3] },
        DiskOp::Write { file, at: BLOCK_BYTES as u64, bytes: vec![0; BLOCK_BYTES] },
        DiskOp::Write { file, at: u64::MAX - 4_095, bytes: vec![0; BLOCK_BYTES] },
        DiskOp::Read { file, at: 7, bytes: BLOCK_BYTES },
    ] {
        assert_eq!(disk.call(op), Err(DiskError::Io { errno: libc::EINVAL }));
    }
    // A wish for far more than there is allocates what there is.
    let read = disk.call(DiskOp::Read { file, at: 0, bytes: usize::MAX / BLOCK_BYTES * BLOCK_BYTES });
    assert_eq!(read, Ok(DiskOk::Bytes(vec![0; BLOCK_BYTES])));
}
