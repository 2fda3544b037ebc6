//! A data folder of format 1, written once and opened ever after: sealed, open and compacted segments, indexes, a meta, a
//! log sealed at rest, and a keyring. `FELIX_GOLDEN=write cargo test -p felix-wal --test golden_segments` adds files that
//! are missing; those that are there are never edited.

mod kit;

use felix_protocol::ids::{CoreId, NodeSession};
use felix_protocol::position::{Epoch, Offset};
use felix_protocol::time::Timestamp;
use felix_wal::at_rest::{AtRestScope, Opener, Sealer};
use felix_wal::check::check;
use felix_wal::compact::{CompactSettings, CompactState, Compaction};
use felix_wal::disk::{Disk, DiskOp, FilePath};
use felix_wal::format::entry::{Lsn, WalPosition};
use felix_wal::format::header::Region;
use felix_wal::format::names::WalId;
use felix_wal::format::stored::StoredBatch;
use felix_wal::keyring::Keyring;
use felix_wal::log::{Ended, LogSettings, MetaChange};
use felix_wal::mem_disk::MemDisk;
use felix_wal::read::ReadFrom;
use kit::*;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1").join(name)
}

/// Files of a disk against a folder; what is missing there is written on request. Returns a disk with what is stored.
fn stored(name: &str, made: &MemDisk) -> MemDisk {
    let folder = folder(name);
    let write = std::env::var("FELIX_GOLDEN").is_ok_and(|it| it == "write");
    if write && !folder.exists() {
        std::fs::create_dir_all(&folder).unwrap();
        for path in made.paths().iter().filter(|path| !path.0.starts_with("quarantine/")) {
            std::fs::write(folder.join(path.0.replace('/', "+")), made.content(path).unwrap()).unwrap();
        }
    }
    let mut disk = MemDisk::new(1);
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).expect("the golden folder is there") {
        let entry = entry.unwrap();
        let path = FilePath(entry.file_name().to_string_lossy().replace('+', "/"));
        let bytes = std::fs::read(entry.path()).unwrap();
        // Today's code still makes these very bytes.
        assert!(made.content(&path).as_ref() == Some(&bytes), "{path} is made otherwise today");
        disk.call(DiskOp::Replace { path, bytes }).unwrap();
        files += 1;
    }
    assert!(files > 2, "{files}");
    disk
}

const SMALL: LogSettings =
    LogSettings { segment_bytes: 16 << 10, extent_bytes_first: 8 << 10, extent_bytes_max: 8 << 10 };

fn key(number: u8) -> Option<Vec<u8>> {
    Some(vec![b'k', number])
}

/// Flushes, an epoch, a compaction and an open segment.
fn make() -> (MemDisk, BTreeMap<u64, Rec>) {
    let mut world = World::new(MemDisk::new(1));
    world.settings = SMALL;
    let mut log = world.create().unwrap();
    let mut stamper = Stamper::default();
    let included = WalPosition { wal: WalId { session: NodeSession(5), core: CoreId(2) }, lsn: Lsn(77) };
    for number in 0..12u8 {
        stamper.time = Timestamp(1_700_000_000_000_000_000 + u64::from(number));
        stamper.epoch = Epoch(1 + u64::from(number / 6));
        let batch = stamper.batch(&[
            (key(number % 3), vec![number; 900], false),
            (key(9), vec![], number == 1),
            (None, vec![number], false),
        ]);
        world.builder.begin(log.cursor());
        world.builder.push(&batch, false).unwrap();
        let change = MetaChange {
            promised: Some(Epoch(7)),
            settings: Some(Box::from(*b"set")),
            ..MetaChange::included(included)
        };
        log.flush(&mut world.builder, &change, &SMALL, NOW, &mut world.queue).unwrap();
        assert_eq!(world.finish(&mut log).unwrap().ended, Ended::Done);
    }
    let settings = CompactSettings { map_bytes_max: 1 << 20, tombstone_grace_ns: 1, group_bytes_max: 1 << 20 };
    let limit = log.flushed_to();
    let now = Timestamp(1_700_000_001_000_000_000);
    let mut pass = Compaction::new(READER, &log, limit, now, settings, READ).unwrap();
    pass.grant(u64::MAX);
    loop {
        match pass.poll(&log, &mut world.queue, None) {
            CompactState::Working => {
                let done = world.next().unwrap().unwrap();
                pass.handle(done, &log, &mut world.queue);
            }
            CompactState::Switch(finished) => {
                log.switch(&finished, now, &mut world.queue).unwrap();
                world.finish(&mut log).unwrap();
                pass.switched(Ok(()));
            }
            CompactState::Done(_) => break,
            other => panic!("{other:?}"),
        }
    }
    for number in 20..28u8 {
        stamper.time = now;
        let batch = stamper.batch(&[(key(number), vec![number; 2_500], false)]);
        assert_eq!(world.flush(&mut log, &[batch]).unwrap().ended, Ended::Done);
    }
    let (read, ..) = world.read(&log, ReadFrom::Offset(Offset(0))).unwrap();
    (world.disk, read.iter().flat_map(|batch| records(batch)).collect())
}

#[test]
fn the_folder_of_format_1_opens() {
    let (made, wanted) = make();
    let mut world = World::new(stored("folder", &made));
    assert_eq!(check(&mut world.disk, &maker().identity).findings, []);
    let (log, report) = world.open(1).unwrap().unwrap();
    assert_eq!((report.damage, report.strays.len()), (None, 0));
    let meta = log.meta();
    assert_eq!(meta.epochs.iter().map(|it| (it.epoch.0, it.start.0)).collect::<Vec<_>>(), [(1, 0), (2, 18)]);
    assert_eq!((meta.flushed_to, meta.promised, &*meta.settings), (Offset(44), Epoch(7), &b"set"[..]));
    assert_eq!((meta.included.lsn, meta.included.wal.core), (Lsn(77), CoreId(2)));
    assert!(meta.compacted_to > Offset(0) && meta.open.is_some() && log.segments().len() > 1);
    let (read, _, error) = world.read(&log, ReadFrom::Offset(Offset(0))).unwrap();
    assert_eq!(error, None);
    let found: BTreeMap<u64, Rec> = read.iter().flat_map(|batch| records(batch)).collect();
    assert!(found == wanted);
    assert!(found.len() < 44, "compaction took something out");
}

#[test]
fn the_sealed_folder_of_format_1_opens_with_its_keyring() {
    let mut ring = Keyring::new(Region::new("eu-west").unwrap(), [1; 32]);
    ring.add_data_key("acme", [2; 32], [3; 12]).unwrap();
    ring.rotate_region([4; 32]).unwrap();
    ring.add_data_key("acme", [5; 32], [6; 12]).unwrap();
    ring.add_data_key("gone", [7; 32], [8; 12]).unwrap();
    ring.destroy("gone", 1).unwrap();
    let path = folder("keyring.txt");
    if std::env::var("FELIX_GOLDEN").is_ok_and(|it| it == "write") && !path.exists() {
        std::fs::write(&path, ring.print()).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(ring.print(), text);
    let ring = Keyring::parse(&text).unwrap();
    let scope = AtRestScope::new("eu-west", "acme");
    let mut world = World::new(MemDisk::new(1));
    world.settings = SMALL;
    let mut log = world.create().unwrap();
    let mut sealer = Sealer::new(scope, &ring.data_key("acme", 2).unwrap(), 0x1122_3344);
    let mut stamper = Stamper::default();
    let mut clear = Vec::new();
    for bytes in [10, 70_000, 500] {
        let batch = stamper.batch(&[(key(1), vec![9; bytes], false)]);
        let mut sealed = Vec::new();
        sealer.seal(&batch, &mut sealed).unwrap();
        world.flush_stored(&mut log, &[sealed], true).unwrap().unwrap();
        clear.push(batch);
    }
    let mut world = World::new(stored("folder-sealed", &world.disk));
    let (log, _) = world.open(1).unwrap().unwrap();
    let (read, _, error) = world.read(&log, ReadFrom::Offset(Offset(0))).unwrap();
    assert_eq!(error, None);
    let mut opener = Opener::new(scope, ring.data_keys("acme").unwrap());
    for (stored, clear) in read.iter().zip(&clear) {
        let mut out = Vec::new();
        opener.open(&StoredBatch::split_first(stored, true).unwrap().0, &mut out).unwrap();
        assert!(out == *clear);
    }
    assert_eq!(read.len(), clear.len());
}

/// Each with the exact reason.
#[test]
fn corrupt_twins_are_refused() {
    let (made, _) = make();
    let clean = stored("folder", &made);
    let base = |path: &FilePath| path.0.ends_with("0000.seg");
    let segment = clean.paths().into_iter().find(base).unwrap();
    let meta = clean.paths().into_iter().find(|path| path.0.ends_with("meta")).unwrap();
    for (path, byte, what) in [
        (&segment, 8, "Header(Checksum"),
        (&segment, 60, "Header(Checksum"),
        (&segment, 4_096, "Chunk(Magic"),
        (&segment, 4_096 + 40, "Chunk(HeaderChecksum"),
        (&segment, 4_096 + 200, "Chunk(PayloadChecksum"),
        (&meta, 4_096, "Meta(Magic"),
        (&meta, 4_096 + 4, "Meta(Checksum"),
        (&meta, 4_096 + 40, "Meta(Checksum"),
    ] {
        let mut disk = clean.clone();
        assert!(disk.flip_bit(path, byte * 8 + 1));
        let findings = check(&mut disk, &maker().identity).findings;
        let found = format!("{:?}", findings.iter().map(|it| &it.what).collect::<Vec<_>>());
        assert!(found.contains(what), "{path} byte {byte}: {found}");
    }
}
