//! **What**: a write-ahead log that lost acknowledged data: the start is refused, changes nothing, and goes on only when
//! somebody accepts the loss; then no offset that was acknowledged is given to another record.
//!
//! **Invariants**: one core over the disk in memory, no chance but its seed.
//!
//! **Never**: a damaged log removed.
//!
//! **See**: `durable_shards.rs` for starts without damage.

mod one_core;

use felix_protocol::time::Timestamp;
use felix_shard::recovery::{self, OnDamage, RecoveryError, RecoveryReport};
use felix_shard::store::StoreSettings;
use felix_wal::disk::FilePath;
use felix_wal::mem_disk::MemDisk;
use felix_wal::repair::LOST_OFFSETS;
use one_core::{Life, SHARDS, maker};

fn recover(disk: &mut MemDisk, session: u64, on_damage: OnDamage) -> Result<RecoveryReport, RecoveryError> {
    let now = Timestamp(session * 1_000_000_000_000);
    let ended = recovery::recover(disk, maker(session), StoreSettings::small().log, now, on_damage, &mut |_| {});
    if ended.is_err() {
        // The process of a start that is refused ends, and its files are closed.
        disk.kill();
    }
    ended
}

fn content(disk: &MemDisk) -> Vec<(FilePath, Vec<u8>)> {
    disk.paths().into_iter().map(|path| (path.clone(), disk.content(&path).unwrap())).collect()
}

#[test]
fn a_log_that_lost_acknowledged_data_is_refused_and_an_accepted_loss_gives_no_offset_twice() {
    let mut disk = MemDisk::new(7);
    recover(&mut disk, 1, OnDamage::Refuse).unwrap();
    let mut life = Life::start(&mut disk, 1);
    let mut last = [0; SHARDS as usize];
    for number in 0..20 {
        for shard in 1..=SHARDS {
            last[shard as usize - 1] = life.publish(&mut disk, shard, &format!("record {number} of shard {shard}"));
        }
    }
    drop(life);
    disk.kill();

    // One bit of the first group that was written, behind the header of the file: acknowledged long ago.
    let wal = disk.paths().into_iter().find(|path| path.0.starts_with("wal/")).unwrap();
    assert!(disk.flip_bit(&wal, (4_096 + 100) * 8));
    let before = content(&disk);
    match recover(&mut disk, 2, OnDamage::Refuse) {
        Err(error @ RecoveryError::Damaged { .. }) => {
            assert!(error.to_string().contains("--accept-wal-loss"), "{error}")
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(content(&disk), before, "a start that is refused changed something");

    let report = recover(&mut disk, 3, OnDamage::AcceptLoss).unwrap();
    assert!(!report.accepted.is_empty() && !report.was_clean, "{report:?}");
    let paths: Vec<String> = disk.paths().into_iter().map(|path| path.0).collect();
    assert!(paths.iter().all(|path| !path.starts_with("wal/")), "{paths:?}");
    assert!(paths.iter().any(|path| path.starts_with("quarantine/")), "the damaged log is gone: {paths:?}");

    let mut life = Life::start(&mut disk, 4);
    for shard in 1..=SHARDS {
        let offset = life.publish(&mut disk, shard, "after the loss");
        let acked = last[shard as usize - 1];
        assert!(offset > acked, "offset {offset} of shard {shard} was acknowledged up to {acked} before");
        assert!(offset >= LOST_OFFSETS);
    }
}

#[test]
fn entries_that_do_not_continue_the_segments_are_a_loss_too() {
    let mut disk = MemDisk::new(8);
    recover(&mut disk, 1, OnDamage::Refuse).unwrap();
    let mut life = Life::start(&mut disk, 1);
    for number in 0..5 {
        life.publish(&mut disk, 1, &format!("{number}"));
    }
    drop(life);
    disk.kill();
    let snapshot = disk.clone();
    // Somebody went on without this WAL: a start that accepted a loss, and was killed before the log was taken away.
    recovery::leave_out_lost(&mut disk, maker(2), Timestamp(1)).unwrap();
    match recover(&mut disk, 3, OnDamage::Refuse) {
        Err(error @ RecoveryError::Hole { .. }) => assert!(error.to_string().contains("--accept-wal-loss"), "{error}"),
        other => panic!("{other:?}"),
    }
    let report = recover(&mut disk, 4, OnDamage::AcceptLoss).unwrap();
    assert_eq!((report.accepted.len(), report.batches), (1, 0), "{report:?}");
    assert!(disk.paths().iter().any(|path| path.0.starts_with("quarantine/")), "what was left out is gone");
    // And without that, all of it is there.
    let mut whole = snapshot;
    assert_eq!(recover(&mut whole, 3, OnDamage::Refuse).unwrap().batches, 5);
}
