//! **What**: a damaged shard: what was acknowledged before stays and comes out of the WAL, the other shards of its core go on
//! for ever, and a start with entries of it goes through. A person's cut gives no offset twice.
//!
//! **Invariants**: one core over the disk in memory, no chance but its seed.
//!
//! **Never**: bytes behind a damage served as others than they were.
//!
//! **See**: `felix_wal::log::ShardLog::takes_flushes`, `felix_wal::repair`.

mod one_core;

use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::Start;
use felix_protocol::ids::ShardId;
use felix_protocol::position::{Offset, OffsetRange};
use felix_protocol::time::Timestamp;
use felix_shard::effect::Effect;
use felix_shard::event::{Event, SubKey};
use felix_shard::recovery::{self, OnDamage, RecoveryReport};
use felix_shard::store::{Alarm, StoreSettings};
use felix_wal::disk::{Disk, FilePath};
use felix_wal::format::entry::{EntryBody, WalPosition};
use felix_wal::mem_disk::MemDisk;
use felix_wal::recover::Recovery;
use felix_wal::repair::{Choice, InWal, LOST_OFFSETS, repair};
use one_core::{Life, ME, maker};

fn recover(disk: &mut MemDisk, session: u64) -> RecoveryReport {
    let now = Timestamp(session * 1_000_000_000_000);
    recovery::recover(disk, maker(session), StoreSettings::small().log, now, OnDamage::Refuse, &mut |_| {}).unwrap()
}

/// A start, `count` records to shard 1, and a kill: the next start makes one chunk of them.
fn session(disk: &mut MemDisk, session: u64, count: u64) -> u64 {
    recover(disk, session);
    let mut life = Life::start(disk, session);
    let last = (0..count).map(|number| life.publish(disk, 1, &format!("session {session} record {number}"))).last();
    drop(life);
    disk.kill();
    last.unwrap()
}

/// The first segment of shard 1.
fn segment(disk: &MemDisk) -> FilePath {
    disk.paths().into_iter().find(|path| path.0.contains("0000000000000001/") && path.0.ends_with(".seg")).unwrap()
}

fn sub() -> SubKey {
    SubKey { slot: 0, generation: 1 }
}

/// Reads shard 1 from the start to the end: ranges of the batches, and whether each holds its text.
fn read(life: &mut Life, disk: &mut MemDisk, text: &str) -> Vec<(OffsetRange, bool)> {
    let attach = Event::Attached { shard: ShardId(1), core: ME, sub: sub(), start: Start::Earliest };
    life.shards.handle(life.now, attach, &mut life.effects);
    let mut found = Vec::new();
    let mut from = 0;
    loop {
        let event = Event::Fetched { shard: ShardId(1), core: ME, sub: sub(), from: Offset(from) };
        life.shards.handle(life.now, event, &mut life.effects);
        let mut answer = None;
        for _ in 0..10_000 {
            for effect in life.effects.drain() {
                if let Effect::Fetch { batches, .. } = effect {
                    answer = Some(batches);
                }
            }
            if answer.is_some() {
                break;
            }
            life.turn(disk);
        }
        let batches = answer.expect("an answer");
        let Some(last) = batches.last() else { return found };
        from = last.range().to.0;
        for batch in &batches {
            found.push((batch.range(), batch.bytes().windows(text.len()).any(|it| it == text.as_bytes())));
        }
    }
}

/// Publishes to shard 1. The offset, or why not.
fn try_publish(life: &mut Life, disk: &mut MemDisk) -> Result<u64, ErrorCode> {
    life.send(1, "one more");
    for _ in 0..1_000 {
        for effect in life.effects.drain() {
            match effect {
                Effect::Ack { ack, .. } => return Ok(ack.base_offset.0),
                Effect::Refuse { code, .. } => return Err(code),
                _ => {}
            }
        }
        life.turn(disk);
    }
    panic!("neither ack nor refusal");
}

#[test]
fn it_does_not_keep_the_wal_of_its_core_and_what_was_acknowledged_stays() {
    let mut disk = MemDisk::new(9);
    session(&mut disk, 1, 3);
    session(&mut disk, 2, 3);
    recover(&mut disk, 3);
    let mut life = Life::start(&mut disk, 3);
    // A record of the first chunk: opening does not look at it.
    assert!(disk.flip_bit(&segment(&disk), (4_096 + 300) * 8));
    let last = life.publish(&mut disk, 1, "in the WAL alone");
    // Somebody reads it.
    let found = read(&mut life, &mut disk, "session");
    assert!(found.iter().all(|(range, _)| range.from.0 >= 3), "damaged offsets were served: {found:?}");
    let alarms: Vec<Alarm> = std::iter::from_fn(|| life.shards.take_alarm()).collect();
    assert!(alarms.iter().any(|it| matches!(it, Alarm::ShardDamaged { .. })), "{alarms:?}");
    assert_eq!(try_publish(&mut life, &mut disk), Err(ErrorCode::StorageFailed));

    // Four rings' worth to the other shard. What the WAL holds of the damaged one is oldest.
    for _ in 0..2_000 {
        life.publish(&mut disk, 2, &"x".repeat(1_000));
    }
    assert!(
        read(&mut life, &mut disk, "in the WAL alone")
            .contains(&(OffsetRange { from: Offset(last), to: Offset(last + 1) }, true))
    );
    drop(life);
    disk.kill();
    recover(&mut disk, 4);
    let mut life = Life::start(&mut disk, 4);
    assert!(
        read(&mut life, &mut disk, "in the WAL alone")
            .last()
            .is_some_and(|(range, is_it)| range.from.0 == last && *is_it)
    );
}

#[test]
fn a_start_with_entries_of_it_goes_through() {
    let mut disk = MemDisk::new(10);
    session(&mut disk, 1, 3);
    session(&mut disk, 2, 3);
    let last = session(&mut disk, 3, 4);
    // The last chunk: opening finds it.
    let path = segment(&disk);
    let used = disk.content(&path).unwrap().iter().rposition(|byte| *byte != 0).unwrap() as u64;
    assert!(disk.flip_bit(&path, used * 8));
    let report = recover(&mut disk, 4);
    assert_eq!((report.batches, report.accepted.len()), (4, 0), "{report:?}");
    assert!(disk.paths().iter().all(|path| !path.0.starts_with("wal/")), "the log was not retired");
    let mut life = Life::start(&mut disk, 4);
    let found = read(&mut life, &mut disk, "session 3 record");
    let from: Vec<u64> = found.iter().filter(|(_, is_it)| *is_it).map(|(range, _)| range.from.0).collect();
    assert_eq!(from, (last - 3..=last).collect::<Vec<_>>(), "{found:?}");
    assert!(!found.iter().any(|(range, _)| (3..6).contains(&range.from.0)), "the damaged chunk was served: {found:?}");
}

fn in_wal(disk: &mut MemDisk) -> Option<InWal> {
    let mut found: Option<InWal> = None;
    let each = |position: WalPosition, entry: &felix_wal::format::entry::Entry<'_>| {
        if let EntryBody::Append(append) = &entry.body
            && entry.shard == ShardId(1)
        {
            let end = Offset(append.base_offset.0 + u64::from(append.offset_count));
            found = Some(InWal { last: position, end });
        }
    };
    Recovery::new(maker(9).identity, u32::MAX, 1 << 20).run(disk as &mut dyn Disk, each).unwrap();
    found
}

#[test]
fn a_cut_gives_up_what_the_wal_holds_and_no_offset_is_given_twice() {
    let mut disk = MemDisk::new(11);
    session(&mut disk, 1, 3);
    session(&mut disk, 2, 3);
    let last = session(&mut disk, 3, 4);
    assert!(disk.flip_bit(&segment(&disk), (4_096 + 300) * 8));
    let held = in_wal(&mut disk);
    assert_eq!(held.unwrap().end, Offset(last + 1));
    let report = repair(&mut disk, maker(4), ShardId(1), Choice::TruncateAtDamage, held, Timestamp(7)).unwrap();
    assert_eq!(report.given_up, Some(OffsetRange { from: Offset(0), to: Offset(last + 1) }));
    assert_eq!(report.goes_on_at, Some(Offset(last + 1 + LOST_OFFSETS)));
    disk.kill();
    let report = recover(&mut disk, 5);
    assert_eq!((report.batches, report.accepted.len()), (0, 0), "{report:?}");
    let mut life = Life::start(&mut disk, 5);
    assert_eq!(try_publish(&mut life, &mut disk), Ok(last + 1 + LOST_OFFSETS));
    let found = read(&mut life, &mut disk, "one more");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].1 && found[0].0.from.0 > last);
}
