//! **What**: a write-ahead log that lost acknowledged data: the start is refused, changes nothing, and goes on only when
//! somebody accepts the loss; then no offset that was acknowledged is given to another record.
//!
//! **Invariants**: one core over the disk in memory, no chance but its seed.
//!
//! **Never**: a damaged log removed.
//!
//! **See**: `durable_shards.rs` for starts without damage.

use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
use felix_protocol::ids::*;
use felix_protocol::metadata::Durability;
use felix_protocol::position::{Epoch, Lineage};
use felix_protocol::time::{Now, Time, Timestamp};
use felix_shard::batch_pool::CheckedBatch;
use felix_shard::effect::{Effect, Effects};
use felix_shard::event::{ChannelKey, ConnKey, Event, ShardConfig};
use felix_shard::limits::Limits;
use felix_shard::recovery::{self, LOST_OFFSETS, OnDamage, RecoveryError, RecoveryReport};
use felix_shard::store::{Store, StoreSettings};
use felix_shard::table::Shards;
use felix_wal::disk::{Disk, FilePath};
use felix_wal::format::header::{Identity, Region};
use felix_wal::log::Maker;
use felix_wal::mem_disk::MemDisk;

const ME: CoreId = CoreId(0);
const SHARDS: u64 = 2;

fn maker(session: u64) -> Maker {
    let identity = Identity { cluster: ClusterId(1), node: NodeId(2), region: Region::new("eu").unwrap() };
    Maker { identity, session: NodeSession(session) }
}

fn config(shard: u64, session: u64) -> ShardConfig {
    ShardConfig {
        shard: ShardId(shard),
        stream: StreamId(shard),
        index: ShardIndex(0),
        lineage: Lineage(1),
        epoch: Epoch(session),
        durability: Durability::Group,
        sync_interval_ms: 0,
        sealed_for: None,
        compact: false,
        tombstone_grace_ns: 0,
        retention_bytes: 1 << 30,
        retention_age_ns: None,
    }
}

/// One start of one core.
struct Life {
    shards: Shards,
    effects: Effects,
    now: Now,
}

impl Life {
    fn start(disk: &mut MemDisk, session: u64) -> Life {
        let now = Now { time: Time(1), wall: Timestamp(session * 1_000_000_000_000) };
        let mut life = Life { shards: Shards::new(Limits::default()), effects: Effects::default(), now };
        life.shards.set_store(Store::new(StoreSettings::small(), maker(session), ME, u128::from(session)));
        for shard in 1..=SHARDS {
            life.shards.handle(life.now, Event::ShardPut(config(shard, session)), &mut life.effects);
        }
        while life.shards.store().unwrap().opening_count() > 0 {
            life.turn(disk);
        }
        life
    }

    fn turn(&mut self, disk: &mut MemDisk) {
        self.now.time.0 += 50_000;
        let mut requests = Vec::new();
        self.shards.plan_disk(self.now, &mut self.effects, &mut requests);
        requests.into_iter().for_each(|request| disk.submit(request));
        if let Some(done) = disk.wait() {
            self.shards.on_disk_done(self.now, done, &mut self.effects);
        }
    }

    /// Publishes one record and returns the offset that was acknowledged.
    fn publish(&mut self, disk: &mut MemDisk, shard: u64, value: &str) -> u64 {
        let mut builder = BatchBuilder::new();
        builder.push(&RecordToPublish { value: value.as_bytes(), ..Default::default() }).unwrap();
        let mut body = Vec::new();
        builder.finish(ProducerStamp::default(), &mut body);
        let batch = CheckedBatch::check(&mut self.shards.pool, &body, 1 << 20, None).unwrap();
        let channel = ChannelKey { core: ME, conn: ConnKey(1), stream: 4 };
        let event = Event::Published { shard: ShardId(shard), channel, batch };
        self.shards.handle(self.now, event, &mut self.effects);
        for _ in 0..1_000 {
            for effect in self.effects.drain() {
                match effect {
                    Effect::Ack { ack, .. } => return ack.base_offset.0,
                    Effect::Refuse { code, .. } => panic!("refused: {code}"),
                    _ => {}
                }
            }
            self.turn(disk);
        }
        panic!("no ack");
    }
}

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
