//! What every executor of `felix_wal::disk` must do. One suite, run on the disk in memory here and on the real one by the
//! broker's tests. The disk must be empty and nothing may be under way.
//!
//! What only a power failure shows (durability itself) cannot be asked of an executor; the simulation asks it of the
//! planners, on the disk in memory.

use std::collections::BTreeMap;

use felix_wal::disk::{
    BLOCK_BYTES, Disk, DiskDone, DiskError, DiskOk, DiskOp, DiskRequest, FileKey, FilePath, Listed, Priority,
    TEMPORARY_SUFFIX, Ticket,
};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Runs the whole suite.
pub fn run(disk: &mut dyn Disk) {
    nothing_is_there(disk);
    a_created_file_reads_as_zeros(disk);
    a_file_exists_once(disk);
    blocks_are_read_as_written(disk);
    a_read_ends_where_the_file_does(disk);
    a_file_grows(disk);
    a_file_is_opened_again(disk);
    a_small_file_is_replaced_as_a_whole(disk);
    files_and_folders_are_renamed(disk);
    files_and_empty_folders_are_removed(disk);
    an_open_file_outlives_its_name(disk);
    many_requests_at_once_get_one_completion_each(disk);
    a_buffer_comes_back(disk);
    large_writes_are_whole(disk);
    a_sync_comes_with_its_write(disk);
    one_write_then_one_sync_over_and_over(disk);
    assert_eq!(disk.wait(), None, "nothing is under way");
}

fn path(text: &str) -> FilePath {
    FilePath(text.to_string())
}

fn create(disk: &mut dyn Disk, at: &str, file: FileKey, blocks: u64, zeroed: bool) -> Result<DiskOk, DiskError> {
    disk.call(DiskOp::Create { path: path(at), file, bytes: blocks * BLOCK, zeroed })
}

fn pattern(seed: u64, blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK_BYTES).map(|at| ((at as u64).wrapping_mul(seed * 2 + 1) >> 3) as u8).collect()
}

fn write(disk: &mut dyn Disk, file: FileKey, block: u64, bytes: Vec<u8>) {
    let expected = bytes.clone();
    assert_eq!(disk.call(DiskOp::Write { file, at: block * BLOCK, bytes }), Ok(DiskOk::Written(expected)));
}

fn read(disk: &mut dyn Disk, file: FileKey, block: u64, blocks: usize) -> Vec<u8> {
    match disk.call(DiskOp::Read { file, at: block * BLOCK, bytes: blocks * BLOCK_BYTES }) {
        Ok(DiskOk::Bytes(bytes)) => bytes,
        other => panic!("a read gave {other:?}"),
    }
}

fn done(disk: &mut dyn Disk, op: DiskOp) {
    assert_eq!(disk.call(op.clone()), Ok(DiskOk::Done), "{op:?}");
}

fn close(disk: &mut dyn Disk, file: FileKey) {
    done(disk, DiskOp::Close { file });
}

fn list(disk: &mut dyn Disk, at: &str) -> Vec<Listed> {
    match disk.call(DiskOp::List { path: path(at) }) {
        Ok(DiskOk::Listed(list)) => list,
        other => panic!("a listing gave {other:?}"),
    }
}

fn load(disk: &mut dyn Disk, at: &str, bytes_max: usize) -> Result<Vec<u8>, DiskError> {
    match disk.call(DiskOp::Load { path: path(at), bytes_max }) {
        Ok(DiskOk::Bytes(bytes)) => Ok(bytes),
        Ok(other) => panic!("a load gave {other:?}"),
        Err(error) => Err(error),
    }
}

fn file_entry(name: &str, bytes: u64) -> Listed {
    Listed { name: name.to_string(), bytes, is_folder: false }
}

fn folder_entry(name: &str) -> Listed {
    Listed { name: name.to_string(), bytes: 0, is_folder: true }
}

fn nothing_is_there(disk: &mut dyn Disk) {
    assert_eq!(disk.wait(), None);
    assert_eq!(list(disk, "none"), []);
    assert_eq!(list(disk, "none/deeper"), []);
    assert_eq!(disk.call(DiskOp::Open { path: path("none/f"), file: FileKey(1) }), Err(DiskError::NotFound));
    assert_eq!(load(disk, "none/f", 10), Err(DiskError::NotFound));
    assert_eq!(disk.call(DiskOp::Remove { path: path("none/f") }), Err(DiskError::NotFound));
    let rename = DiskOp::Rename { from: path("none/f"), to: path("none/g") };
    assert_eq!(disk.call(rename), Err(DiskError::NotFound));
}

fn a_created_file_reads_as_zeros(disk: &mut dyn Disk) {
    for (name, zeroed) in [("zeros/a", true), ("zeros/b", false)] {
        assert_eq!(create(disk, name, FileKey(1), 5, zeroed), Ok(DiskOk::Done));
        assert_eq!(read(disk, FileKey(1), 0, 5), vec![0; 5 * BLOCK_BYTES], "{name}");
        close(disk, FileKey(1));
    }
    assert_eq!(list(disk, "zeros"), [file_entry("a", 5 * BLOCK), file_entry("b", 5 * BLOCK)]);
}

fn a_file_exists_once(disk: &mut dyn Disk) {
    assert_eq!(create(disk, "once/f", FileKey(1), 1, true), Ok(DiskOk::Done));
    assert_eq!(create(disk, "once/f", FileKey(2), 1, true), Err(DiskError::Exists));
    write(disk, FileKey(1), 0, pattern(1, 1));
    assert_eq!(create(disk, "once/f", FileKey(2), 1, false), Err(DiskError::Exists));
    assert_eq!(read(disk, FileKey(1), 0, 1), pattern(1, 1), "a refused create changes nothing");
    close(disk, FileKey(1));
}

fn blocks_are_read_as_written(disk: &mut dyn Disk) {
    create(disk, "blocks/f", FileKey(1), 8, true).unwrap();
    write(disk, FileKey(1), 2, pattern(3, 3));
    write(disk, FileKey(1), 7, pattern(4, 1));
    write(disk, FileKey(1), 3, pattern(5, 1));
    let mut expected = vec![0; 8 * BLOCK_BYTES];
    expected[2 * BLOCK_BYTES..5 * BLOCK_BYTES].copy_from_slice(&pattern(3, 3));
    expected[3 * BLOCK_BYTES..4 * BLOCK_BYTES].copy_from_slice(&pattern(5, 1));
    expected[7 * BLOCK_BYTES..].copy_from_slice(&pattern(4, 1));
    assert_eq!(read(disk, FileKey(1), 0, 8), expected);
    done(disk, DiskOp::Sync { file: FileKey(1) });
    assert_eq!(read(disk, FileKey(1), 3, 2), expected[3 * BLOCK_BYTES..5 * BLOCK_BYTES]);
    close(disk, FileKey(1));
}

fn a_read_ends_where_the_file_does(disk: &mut dyn Disk) {
    create(disk, "ends/f", FileKey(1), 2, true).unwrap();
    assert_eq!(read(disk, FileKey(1), 1, 4).len(), BLOCK_BYTES);
    assert_eq!(read(disk, FileKey(1), 2, 1), [0u8; 0]);
    assert_eq!(read(disk, FileKey(1), 9, 1), [0u8; 0]);
    close(disk, FileKey(1));
    // A file that is no multiple of a block.
    done(disk, DiskOp::Replace { path: path("ends/g"), bytes: vec![7; 5_000] });
    assert_eq!(disk.call(DiskOp::Open { path: path("ends/g"), file: FileKey(2) }), Ok(DiskOk::Opened { bytes: 5_000 }));
    assert_eq!(read(disk, FileKey(2), 1, 2), vec![7; 5_000 - BLOCK_BYTES]);
    close(disk, FileKey(2));
}

fn a_file_grows(disk: &mut dyn Disk) {
    create(disk, "grows/f", FileKey(1), 1, false).unwrap();
    write(disk, FileKey(1), 0, pattern(1, 1));
    done(disk, DiskOp::Extend { file: FileKey(1), bytes: 6 * BLOCK });
    write(disk, FileKey(1), 4, pattern(2, 2));
    let mut expected = vec![0; 6 * BLOCK_BYTES];
    expected[..BLOCK_BYTES].copy_from_slice(&pattern(1, 1));
    expected[4 * BLOCK_BYTES..].copy_from_slice(&pattern(2, 2));
    assert_eq!(read(disk, FileKey(1), 0, 9), expected);
    done(disk, DiskOp::Extend { file: FileKey(1), bytes: 6 * BLOCK });
    done(disk, DiskOp::Sync { file: FileKey(1) });
    close(disk, FileKey(1));
    assert_eq!(list(disk, "grows"), [file_entry("f", 6 * BLOCK)]);
}

fn a_file_is_opened_again(disk: &mut dyn Disk) {
    create(disk, "again/f", FileKey(1), 3, true).unwrap();
    write(disk, FileKey(1), 1, pattern(9, 1));
    done(disk, DiskOp::Sync { file: FileKey(1) });
    close(disk, FileKey(1));
    let open = |file| DiskOp::Open { path: path("again/f"), file };
    assert_eq!(disk.call(open(FileKey(1))), Ok(DiskOk::Opened { bytes: 3 * BLOCK }));
    assert_eq!(disk.call(open(FileKey(u64::MAX))), Ok(DiskOk::Opened { bytes: 3 * BLOCK }), "twice at once");
    write(disk, FileKey(1), 2, pattern(8, 1));
    assert_eq!(read(disk, FileKey(u64::MAX), 1, 2), [pattern(9, 1), pattern(8, 1)].concat());
    close(disk, FileKey(1));
    close(disk, FileKey(u64::MAX));
}

fn a_small_file_is_replaced_as_a_whole(disk: &mut dyn Disk) {
    let replace = |bytes: Vec<u8>| DiskOp::Replace { path: path("small/deep/m"), bytes };
    for length in [0, 1, 4_095, 4_096, 4_097, 100_000, 3] {
        let content: Vec<u8> = pattern(7, 25)[..length].to_vec();
        done(disk, replace(content.clone()));
        assert_eq!(load(disk, "small/deep/m", 100_000), Ok(content), "{length} bytes");
    }
    assert_eq!(load(disk, "small/deep/m", 3).map(|bytes| bytes.len()), Ok(3));
    assert_eq!(load(disk, "small/deep/m", 2), Err(DiskError::TooLarge { bytes: 3 }));
    assert_eq!(list(disk, "small/deep"), [file_entry("m", 3)], "no `{TEMPORARY_SUFFIX}` is left");
    // What a crash left of an earlier Replace is in nobody's way.
    let left = format!("small/deep/n{TEMPORARY_SUFFIX}");
    create(disk, &left, FileKey(1), 2, true).unwrap();
    close(disk, FileKey(1));
    done(disk, DiskOp::Replace { path: path("small/deep/n"), bytes: vec![1] });
    assert_eq!(load(disk, "small/deep/n", 9), Ok(vec![1]));
}

fn files_and_folders_are_renamed(disk: &mut dyn Disk) {
    let rename = |from: &str, to: &str| DiskOp::Rename { from: path(from), to: path(to) };
    done(disk, DiskOp::Replace { path: path("names/a/f"), bytes: vec![1] });
    done(disk, DiskOp::Replace { path: path("names/a/g"), bytes: vec![2] });
    assert_eq!(disk.call(rename("names/a/f", "names/a/g")), Err(DiskError::Exists));
    assert_eq!(load(disk, "names/a/g", 9), Ok(vec![2]), "a refused rename changes nothing");
    done(disk, rename("names/a/f", "names/b/c/h"));
    assert_eq!(load(disk, "names/b/c/h", 9), Ok(vec![1]));
    assert_eq!(load(disk, "names/a/f", 9), Err(DiskError::NotFound));
    assert_eq!(disk.call(rename("names/a", "names/b")), Err(DiskError::Exists));
    done(disk, rename("names/a", "names/b.retired"));
    assert_eq!(load(disk, "names/b.retired/g", 9), Ok(vec![2]));
    assert_eq!(list(disk, "names"), [folder_entry("b"), folder_entry("b.retired")]);
}

fn files_and_empty_folders_are_removed(disk: &mut dyn Disk) {
    let remove = |at: &str| DiskOp::Remove { path: path(at) };
    done(disk, DiskOp::Replace { path: path("gone/a/f"), bytes: vec![1] });
    assert!(matches!(disk.call(remove("gone/a")), Err(DiskError::Io { .. })), "a folder that is not empty");
    assert_eq!(load(disk, "gone/a/f", 9), Ok(vec![1]));
    done(disk, remove("gone/a/f"));
    assert_eq!(list(disk, "gone"), [folder_entry("a")]);
    assert_eq!(disk.call(remove("gone/a/f")), Err(DiskError::NotFound));
    done(disk, remove("gone/a"));
    assert_eq!(list(disk, "gone"), []);
    assert_eq!(create(disk, "gone/a/f", FileKey(1), 1, true), Ok(DiskOk::Done), "the name is free again");
    close(disk, FileKey(1));
}

fn an_open_file_outlives_its_name(disk: &mut dyn Disk) {
    create(disk, "outlives/f", FileKey(1), 1, true).unwrap();
    write(disk, FileKey(1), 0, pattern(1, 1));
    done(disk, DiskOp::Remove { path: path("outlives/f") });
    create(disk, "outlives/f", FileKey(2), 1, true).unwrap();
    assert_eq!(read(disk, FileKey(1), 0, 1), pattern(1, 1));
    assert_eq!(read(disk, FileKey(2), 0, 1), vec![0; BLOCK_BYTES]);
    done(disk, DiskOp::Rename { from: path("outlives/f"), to: path("outlives/g") });
    write(disk, FileKey(2), 0, pattern(2, 1));
    close(disk, FileKey(1));
    close(disk, FileKey(2));
    let open = DiskOp::Open { path: path("outlives/g"), file: FileKey(3) };
    assert_eq!(disk.call(open), Ok(DiskOk::Opened { bytes: BLOCK }));
    assert_eq!(read(disk, FileKey(3), 0, 1), pattern(2, 1));
    close(disk, FileKey(3));
}

fn submit(disk: &mut dyn Disk, ticket: Ticket, priority: Priority, op: DiskOp) {
    disk.submit(DiskRequest { ticket, priority, op });
}

fn many_requests_at_once_get_one_completion_each(disk: &mut dyn Disk) {
    const FILES: u32 = 4;
    const BLOCKS: u64 = 16;
    for owner in 0..FILES {
        let file = FileKey::new(owner, 1);
        create(disk, &format!("many/{owner}"), file, BLOCKS, true).unwrap();
    }
    let priorities = [Priority::Commit, Priority::Background, Priority::History];
    let mut under_way = BTreeMap::new();
    for number in 0..BLOCKS as u32 {
        for owner in 0..FILES {
            let ticket = Ticket::new(owner, number);
            let bytes = pattern(u64::from(owner * 100 + number), 1);
            let op =
                DiskOp::Write { file: FileKey::new(owner, 1), at: u64::from(number) * BLOCK, bytes: bytes.clone() };
            submit(disk, ticket, priorities[number as usize % 3], op);
            assert_eq!(under_way.insert(ticket, bytes), None);
        }
    }
    while let Some(DiskDone { ticket, result }) = disk.wait() {
        let bytes = under_way.remove(&ticket).expect("one completion per request");
        assert_eq!(result, Ok(DiskOk::Written(bytes)));
    }
    assert!(under_way.is_empty());
    // Reads, syncs and listings of many files side by side.
    for owner in 0..FILES {
        let file = FileKey::new(owner, 1);
        submit(disk, Ticket::new(owner, 0), Priority::Commit, DiskOp::Sync { file });
        submit(disk, Ticket::new(owner, 1), Priority::History, DiskOp::Read { file, at: 0, bytes: 16 * BLOCK_BYTES });
        submit(disk, Ticket::new(owner, 2), Priority::Background, DiskOp::List { path: path("many") });
    }
    let mut count = 0;
    while let Some(DiskDone { ticket, result }) = disk.wait() {
        count += 1;
        match (ticket.number(), result) {
            (0, Ok(DiskOk::Done)) => {}
            (1, Ok(DiskOk::Bytes(found))) => {
                for (number, block) in found.chunks(BLOCK_BYTES).enumerate() {
                    assert_eq!(block, pattern(u64::from(ticket.owner() * 100 + number as u32), 1));
                }
            }
            (2, Ok(DiskOk::Listed(found))) => assert_eq!(found.len(), FILES as usize),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(count, 3 * FILES);
    (0..FILES).for_each(|owner| close(disk, FileKey::new(owner, 1)));
}

fn a_buffer_comes_back(disk: &mut dyn Disk) {
    create(disk, "buffer/f", FileKey(1), 4, true).unwrap();
    let mut bytes = Vec::with_capacity(64 * BLOCK_BYTES);
    bytes.extend_from_slice(&pattern(1, 2));
    let (address, capacity) = (bytes.as_ptr(), bytes.capacity());
    match disk.call(DiskOp::Write { file: FileKey(1), at: 0, bytes }) {
        Ok(DiskOk::Written(back)) => {
            assert_eq!((back.as_ptr(), back.capacity()), (address, capacity), "the very buffer, so that none is made");
            assert_eq!(back, pattern(1, 2));
        }
        other => panic!("a write gave {other:?}"),
    }
    close(disk, FileKey(1));
}

fn large_writes_are_whole(disk: &mut dyn Disk) {
    create(disk, "large/f", FileKey(1), 600, false).unwrap();
    write(disk, FileKey(1), 33, pattern(5, 513));
    assert_eq!(read(disk, FileKey(1), 33, 513), pattern(5, 513));
    assert_eq!(read(disk, FileKey(1), 32, 1), vec![0; BLOCK_BYTES]);
    assert_eq!(read(disk, FileKey(1), 546, 54), vec![0; 54 * BLOCK_BYTES]);
    close(disk, FileKey(1));
}

/// A sync that comes with its write completes behind it; both succeed, or neither.
fn a_sync_comes_with_its_write(disk: &mut dyn Disk) {
    create(disk, "together/f", FileKey(1), 600, true).unwrap();
    // One of many pieces, and small ones with another transfer around them.
    for (round, blocks) in [513, 1, 1, 2, 1].into_iter().enumerate() {
        let write = Ticket(10 * round as u64);
        let [sync, other] = [Ticket(write.0 + 1), Ticket(write.0 + 2)];
        let bytes = pattern(round as u64, blocks);
        submit(disk, write, Priority::Commit, DiskOp::Write { file: FileKey(1), at: BLOCK, bytes: bytes.clone() });
        submit(disk, sync, Priority::Commit, DiskOp::SyncAfter { file: FileKey(1), write });
        submit(disk, other, Priority::Commit, DiskOp::Sync { file: FileKey(1) });
        let mut ended = Vec::new();
        while let Some(DiskDone { ticket, result }) = disk.wait() {
            let expected = if ticket == write { DiskOk::Written(bytes.clone()) } else { DiskOk::Done };
            assert_eq!(result, Ok(expected));
            ended.push(ticket);
        }
        assert_eq!(ended.len(), 3, "{ended:?}");
        let place = |wanted| ended.iter().position(|ticket| *ticket == wanted);
        assert!(place(write) < place(sync), "{ended:?}");
        assert_eq!(read(disk, FileKey(1), 1, blocks), bytes);
    }
    close(disk, FileKey(1));
}

/// The rhythm of a WAL: a write, and a sync of it with the next write already under way.
fn one_write_then_one_sync_over_and_over(disk: &mut dyn Disk) {
    create(disk, "rhythm/f", FileKey(1), 33, true).unwrap();
    let op = |block: u64| DiskOp::Write { file: FileKey(1), at: block * BLOCK, bytes: pattern(block, 1) };
    write(disk, FileKey(1), 0, pattern(0, 1));
    for block in 1..33 {
        submit(disk, Ticket(1), Priority::Commit, DiskOp::Sync { file: FileKey(1) });
        submit(disk, Ticket(2), Priority::Commit, op(block));
        let mut tickets = [disk.wait(), disk.wait()].map(|done| done.expect("two are under way").ticket.0);
        tickets.sort_unstable();
        assert_eq!(tickets, [1, 2]);
    }
    for block in 0..33 {
        assert_eq!(read(disk, FileKey(1), block, 1), pattern(block, 1));
    }
    close(disk, FileKey(1));
}
