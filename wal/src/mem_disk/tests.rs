use super::*;
use crate::disk::{Priority, Ticket};

fn path(text: &str) -> FilePath {
    FilePath(text.to_string())
}

fn request(ticket: u64, op: DiskOp) -> DiskRequest {
    DiskRequest { ticket: Ticket(ticket), priority: Priority::Commit, op }
}

fn with_file(seed: u64, blocks: u64) -> MemDisk {
    let mut disk = MemDisk::new(seed);
    let bytes = blocks * BLOCK_BYTES as u64;
    disk.call(DiskOp::Create { path: path("a/f"), file: FileKey(1), bytes, zeroed: true }).unwrap();
    disk
}

fn write(disk: &mut MemDisk, block: u64, value: u8, blocks: usize) {
    let bytes = vec![value; blocks * BLOCK_BYTES];
    disk.call(DiskOp::Write { file: FileKey(1), at: block * BLOCK_BYTES as u64, bytes }).unwrap();
}

/// First byte of each block.
fn blocks(disk: &MemDisk) -> Vec<u8> {
    disk.content(&path("a/f")).unwrap().chunks(BLOCK_BYTES).map(|block| block[0]).collect()
}

#[test]
fn synced_writes_survive_and_unsynced_ones_survive_by_chance_block_by_block() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let mut disk = with_file(seed, 4);
        write(&mut disk, 0, 1, 1);
        disk.call(DiskOp::Sync { file: FileKey(1) }).unwrap();
        write(&mut disk, 1, 2, 3);
        disk.crash();
        let found = blocks(&disk);
        assert_eq!(found[0], 1);
        seen.insert(found[1..].to_vec());
    }
    assert_eq!(seen.len(), 8, "every subset of three blocks: {seen:?}");
}

#[test]
fn a_sync_covers_only_what_completed_before_it_was_submitted() {
    let mut lost = 0;
    for seed in 0..100 {
        let mut disk = with_file(seed, 2);
        write(&mut disk, 0, 1, 1);
        disk.submit(request(1, DiskOp::Write { file: FileKey(1), at: 4_096, bytes: vec![2; 4_096] }));
        disk.submit(request(2, DiskOp::Sync { file: FileKey(1) }));
        while disk.wait().is_some() {}
        disk.crash();
        assert_eq!(blocks(&disk)[0], 1, "completed before");
        lost += u64::from(blocks(&disk)[1] == 0);
    }
    assert!(lost > 10, "the write that was under way was not covered");
}

#[test]
fn after_a_failed_sync_the_next_one_succeeds_and_the_data_may_be_gone() {
    let mut lost = 0;
    for seed in 0..100 {
        let mut disk = with_file(seed, 1);
        write(&mut disk, 0, 1, 1);
        disk.plan_fault(OpKind::Sync, 0, Fault::Error(DiskError::Io { errno: EIO }));
        assert!(disk.call(DiskOp::Sync { file: FileKey(1) }).is_err());
        assert_eq!(disk.call(DiskOp::Sync { file: FileKey(1) }), Ok(DiskOk::Done));
        assert_eq!(blocks(&disk), [1], "still in the cache");
        disk.crash();
        lost += u64::from(blocks(&disk) == [0]);
    }
    assert!((20..80).contains(&lost), "{lost}");
}

#[test]
fn a_replaced_file_is_old_or_new_and_a_size_needs_a_sync() {
    let mut seen = BTreeSet::new();
    let mut sizes = BTreeSet::new();
    for seed in 0..100 {
        let mut disk = with_file(seed, 1);
        disk.call(DiskOp::Replace { path: path("m"), bytes: b"old".to_vec() }).unwrap();
        disk.call(DiskOp::Extend { file: FileKey(1), bytes: 8_192 }).unwrap();
        disk.submit(request(1, DiskOp::Replace { path: path("m"), bytes: b"newer".to_vec() }));
        disk.crash();
        seen.insert(disk.content(&path("m")).unwrap());
        sizes.insert(disk.content(&path("a/f")).unwrap().len());
    }
    assert_eq!(seen, BTreeSet::from([b"old".to_vec(), b"newer".to_vec()]));
    assert_eq!(sizes, BTreeSet::from([4_096, 8_192]));
}

#[test]
fn completions_are_reordered_and_slow_ones_are_overtaken() {
    let options = MemDiskOptions { reorder: true, slow_per_mille: 200, ..MemDiskOptions::default() };
    let run = |seed| {
        let mut disk = MemDisk::with_options(seed, options.clone());
        for ticket in 0..20 {
            disk.submit(request(ticket, DiskOp::List { path: path("x") }));
        }
        let order: Vec<u64> = std::iter::from_fn(|| disk.wait()).map(|done| done.ticket.0).collect();
        (order, disk.trace())
    };
    let (order, trace) = run(1);
    assert_ne!(order, (0..20).collect::<Vec<_>>());
    assert_eq!((order, trace), run(1), "one seed, one run");
    assert_ne!(trace, run(2).1);
}

#[test]
fn space_ends_and_comes_back() {
    let mut disk = with_file(1, 2);
    disk.options.bytes_max = Some(3 * 4_096);
    let create = |key| DiskOp::Create { path: path("b"), file: FileKey(key), bytes: 8_192, zeroed: false };
    assert_eq!(disk.call(create(2)), Err(DiskError::Full));
    assert_eq!(disk.call(DiskOp::Extend { file: FileKey(1), bytes: 16_384 }), Err(DiskError::Full));
    disk.call(DiskOp::Close { file: FileKey(1) }).unwrap();
    disk.call(DiskOp::Remove { path: path("a/f") }).unwrap();
    assert_eq!(disk.call(create(3)), Ok(DiskOk::Done));
}

#[test]
fn bits_flip_and_writes_go_astray() {
    let mut disk = with_file(1, 4);
    disk.plan_fault(OpKind::Write, 1, Fault::Misdirected { blocks: 2 });
    write(&mut disk, 0, 1, 1);
    write(&mut disk, 1, 2, 1);
    assert_eq!(blocks(&disk), [1, 0, 0, 2]);
    assert!(disk.flip_bit(&path("a/f"), 1));
    assert!(!disk.flip_bit(&path("a/f"), 4 * 4_096 * 8));
    assert_eq!(blocks(&disk), [3, 0, 0, 2]);
    disk.break_block(&path("a/f"), 4_096);
    let read = |at| DiskOp::Read { file: FileKey(1), at, bytes: 4_096 };
    assert_eq!(disk.call(read(4_096)), Err(DiskError::Io { errno: EIO }));
    assert!(disk.call(read(8_192)).is_ok());
}

#[test]
fn sectors_tear_when_asked() {
    let mut torn = 0;
    for seed in 0..100 {
        let mut disk = with_file(seed, 1);
        disk.options.tears_sectors = true;
        write(&mut disk, 0, 9, 1);
        disk.crash();
        let content = disk.content(&path("a/f")).unwrap();
        torn += u64::from(content.contains(&0) && content.contains(&9));
    }
    assert!(torn > 10, "{torn}");
}

#[test]
#[should_panic(expected = "is not aligned")]
fn an_unaligned_write_panics() {
    let mut disk = with_file(1, 1);
    disk.submit(request(1, DiskOp::Write { file: FileKey(1), at: 512, bytes: vec![0; 4_096] }));
}

#[test]
#[should_panic(expected = "is under way already")]
fn one_ticket_twice_panics() {
    let mut disk = with_file(1, 1);
    disk.submit(request(1, DiskOp::Sync { file: FileKey(1) }));
    disk.submit(request(1, DiskOp::Sync { file: FileKey(1) }));
}

#[test]
#[should_panic(expected = "a write to")]
fn a_write_beyond_the_size_panics() {
    let mut disk = with_file(1, 1);
    write(&mut disk, 1, 1, 1);
}
