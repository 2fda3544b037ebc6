use super::*;
use crate::disk::Disk;
use crate::format::entry::Append;
use crate::format::header::Region;
use crate::judge::WalEnd;
use crate::mem_disk::{EIO, Fault, MemDisk, OpKind};
use crate::recover::Recovery;
use crate::retire::Retire;
use felix_protocol::ids::{ClusterId, CoreId, NodeId, NodeSession, StreamId};
use felix_protocol::position::Epoch;

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const LINEAGE: Lineage = Lineage(1);

fn identity() -> Identity {
    Identity { cluster: ClusterId(1), node: NodeId(2), region: Region::new("eu").unwrap() }
}

struct Bench {
    disk: MemDisk,
    wal: CoreWal,
    now: Time,
    out: Vec<DiskRequest>,
}

impl Bench {
    fn with(settings: CoreWalSettings) -> Bench {
        let id = WalId { session: NodeSession(1), core: CoreId(0) };
        let mut bench = Bench {
            disk: MemDisk::new(1),
            wal: CoreWal::new(settings, identity(), id, 7, 0),
            now: Time(1),
            out: Vec::new(),
        };
        bench.settle();
        bench
    }

    fn new() -> Bench {
        Bench::with(CoreWalSettings::small())
    }

    fn try_append(&mut self, shard: u64, bytes: usize, commit: Commit) -> Result<Lsn, AppendError> {
        let batch = vec![shard as u8; bytes];
        let append = Append {
            stream: StreamId(1),
            lineage: LINEAGE,
            offset_count: 1,
            epoch: Epoch(1),
            base_offset: Offset(0),
            sealed_by: None,
            batch: &batch,
        };
        self.wal.append(self.now, &Entry::new(ShardId(shard), EntryBody::Append(append)), commit)
    }

    fn append(&mut self, shard: u64, commit: Commit) -> Lsn {
        self.try_append(shard, 100, commit).unwrap()
    }

    fn promise(&mut self, shard: u64) -> Result<Lsn, AppendError> {
        let body = EntryBody::Promise { lineage: LINEAGE, epoch: Epoch(2) };
        self.wal.append(self.now, &Entry::new(ShardId(shard), body), Commit::None)
    }

    /// Ends the turn; the kinds of what was asked for.
    fn plan(&mut self) -> Vec<OpKind> {
        self.wal.plan(self.now, &mut self.out);
        let kinds = self.out.iter().map(|request| OpKind::of(&request.op)).collect();
        self.out.drain(..).for_each(|request| self.disk.submit(request));
        kinds
    }

    fn done(&mut self) -> bool {
        match self.disk.wait() {
            Some(done) => {
                self.wal.on_done(self.now, done);
                true
            }
            None => false,
        }
    }

    /// Until nothing is under way and nothing is due now.
    fn settle(&mut self) {
        loop {
            self.plan();
            if !self.done() {
                return;
            }
        }
    }

    fn pass(&mut self, ns: u64) {
        self.now = self.now.after_ns(ns);
    }
}

use OpKind::{Sync, Write};

#[test]
fn a_group_is_one_write_and_one_sync_for_200_shards() {
    let mut bench = Bench::new();
    let (writes, syncs) = (bench.disk.count(Write), bench.disk.count(Sync));
    for shard in 1..=200 {
        bench.try_append(shard, 20, Commit::Group).unwrap();
    }
    assert_eq!(bench.plan(), [Write, Sync], "the kernel goes on from one to the other by itself");
    assert_eq!(bench.wal.durable(), Lsn(0));
    bench.done();
    assert_eq!(bench.wal.durable(), Lsn(0), "written is not durable");
    assert_eq!(bench.plan(), []);
    bench.done();
    assert_eq!(bench.wal.durable(), Lsn(200));
    assert_eq!((bench.disk.count(Write), bench.disk.count(Sync)), (writes + 1, syncs + 1));
}

#[test]
fn a_ring_that_was_full_to_the_last_block_goes_on_each_time() {
    let mut bench = Bench::new();
    for round in 0..4 {
        bench.append(9, Commit::Each);
        bench.settle();
        while bench.try_append(1, 3_000, Commit::Each).is_ok() {
            bench.settle();
        }
        // What is said of flushes takes what is left.
        for _ in 0..8 {
            bench.wal.flushed(bench.now, ShardId(1), LINEAGE, Offset(1), Lsn(1));
            bench.pass(200 * MS);
            bench.settle();
        }
        let through = bench.wal.appended();
        for shard in [9, 1] {
            bench.wal.flushed(bench.now, ShardId(shard), LINEAGE, Offset(1), through);
        }
        for _ in 0..20 {
            bench.pass(200 * MS);
            bench.settle();
        }
        assert!(bench.try_append(1, 3_000, Commit::Each).is_ok(), "round {round}");
        bench.settle();
    }
}

#[test]
fn each_does_not_wait_for_a_sync_and_group_waits_up_to_its_delay() {
    let mut bench = Bench::new();
    bench.append(1, Commit::Group);
    assert_eq!(bench.plan(), [Write, Sync], "no sync is under way, so nothing is gained by waiting");
    bench.done();
    bench.append(2, Commit::Group);
    assert_eq!(bench.plan(), [], "the sync is under way");
    assert_eq!(bench.wal.next_deadline(), Some(bench.now.after_ns(MS)));
    bench.pass(MS - 1);
    assert_eq!(bench.plan(), []);
    bench.pass(1);
    assert_eq!(bench.plan(), [Write], "the longest delay");
    bench.append(3, Commit::Each);
    assert_eq!(bench.plan(), [], "one write at a time");
    bench.done();
    bench.done();
    assert_eq!(bench.wal.durable(), Lsn(1), "the sync was submitted before the second write");
    assert_eq!(bench.plan(), [Sync, Write], "written while the sync runs");
    bench.done();
    assert_eq!(bench.wal.durable(), Lsn(2));
    bench.done();
    assert_eq!(bench.plan(), [Sync]);
    bench.done();
    assert_eq!(bench.wal.durable(), Lsn(3));
}

#[test]
fn interval_is_synced_at_its_deadline_and_none_is_written_late_without_a_sync() {
    let mut bench = Bench::new();
    bench.append(1, Commit::Interval { ms: 5 });
    assert_eq!(bench.plan(), []);
    assert_eq!(bench.wal.next_deadline(), Some(bench.now.after_ns(5 * MS)));
    bench.pass(5 * MS);
    assert_eq!(bench.plan(), [Write, Sync]);
    bench.done();
    bench.done();
    assert_eq!(bench.wal.durable(), Lsn(1));
    bench.settle();
    bench.pass(MS);
    bench.settle();
    bench.append(1, Commit::None);
    assert_eq!(bench.plan(), []);
    bench.pass(100 * MS);
    assert_eq!(bench.plan(), [Write]);
    bench.done();
    assert_eq!(bench.plan(), [], "nobody asked for a sync");
    // An interval is served early by the sync of another.
    bench.append(1, Commit::Interval { ms: 50 });
    bench.append(2, Commit::Each);
    bench.settle();
    assert_eq!(bench.wal.durable(), bench.wal.appended());
}

#[test]
fn a_sync_that_comes_with_a_write_covers_what_lay_unsynced_before_it() {
    let mut bench = Bench::new();
    bench.append(1, Commit::None);
    bench.pass(100 * MS);
    assert_eq!(bench.plan(), [Write]);
    bench.done();
    bench.append(2, Commit::Each);
    assert_eq!(bench.plan(), [Write, Sync]);
    bench.done();
    assert_eq!(bench.wal.durable(), Lsn(0));
    bench.done();
    assert_eq!(bench.wal.durable(), Lsn(2));
    assert_eq!(bench.plan(), [], "nothing is left to sync");
}

#[test]
fn promises_are_synced_whatever_is_asked_for() {
    let mut bench = Bench::new();
    let lsn = bench.promise(1).unwrap();
    bench.settle();
    assert_eq!(bench.wal.durable(), lsn);
}

#[test]
fn a_pause_is_sealed_once_and_a_shutdown_for_good() {
    let mut bench = Bench::new();
    let lsn = bench.append(1, Commit::Each);
    bench.settle();
    let deadline = bench.wal.next_deadline().unwrap();
    assert_eq!(deadline, bench.now.after_ns(MS));
    bench.pass(MS - 1);
    assert_eq!(bench.plan(), []);
    bench.pass(1);
    assert_eq!(bench.plan(), [Write, Sync]);
    bench.settle();
    assert_eq!(bench.wal.durable(), Lsn(lsn.0 + 1), "the seal is synced");
    assert_eq!(bench.wal.next_deadline(), None, "an idle WAL has no timer");
    let recover = |disk: &MemDisk| Recovery::new(identity(), 9, 4_096).run(&mut disk.clone(), |_, _| {}).unwrap();
    assert_eq!(recover(&bench.disk).wals[0].end, WalEnd::Sealed);
    bench.append(1, Commit::None);
    bench.wal.shutdown();
    assert_eq!(bench.try_append(1, 1, Commit::Each), Err(AppendError::Closing));
    bench.settle();
    assert!(bench.wal.is_closed());
    let report = recover(&bench.disk);
    assert_eq!(report.wals[0].end, WalEnd::Clean);
    // After that it is retired: one durable rename, then nothing is left.
    let mut retire = Retire::remove(&report.wals[0], 5).unwrap();
    while !retire.is_done() {
        retire.plan(&mut bench.out);
        bench.out.drain(..).for_each(|request| bench.disk.submit(request));
        retire.on_done(bench.disk.wait().unwrap());
    }
    assert_eq!(retire.failed(), None);
    assert_eq!(bench.disk.paths(), []);
}

#[test]
fn a_seal_states_all_that_came_before_also_what_nobody_wanted_synced() {
    let mut bench = Bench::new();
    bench.append(1, Commit::None);
    bench.pass(100 * MS);
    bench.settle();
    assert_eq!(bench.wal.durable(), Lsn(0), "written, not synced");
    bench.pass(MS);
    bench.settle();
    bench.pass(MS);
    bench.settle();
    let report = Recovery::new(identity(), 9, 4_096).run(&mut bench.disk, |_, _| {}).unwrap();
    assert_eq!((report.wals[0].end, report.wals[0].synced), (WalEnd::Sealed, GroupSequence(1)));
}

#[test]
fn a_file_is_used_only_after_its_header_is_durable() {
    let id = WalId { session: NodeSession(1), core: CoreId(0) };
    let mut bench = Bench {
        disk: MemDisk::new(1),
        wal: CoreWal::new(CoreWalSettings::small(), identity(), id, 7, 0),
        now: Time(1),
        out: Vec::new(),
    };
    for expected in [OpKind::Create, Write, Sync] {
        assert!(!bench.wal.is_ready());
        assert_eq!(bench.promise(1), Err(AppendError::Busy));
        assert_eq!(bench.plan(), [expected]);
        bench.done();
    }
    assert!(bench.wal.is_ready());
    bench.promise(1).unwrap();
    assert_eq!(bench.plan(), [OpKind::Create, Write, Sync], "and the next one is made ahead");
}

#[test]
fn a_retirement_that_was_interrupted_is_finished_by_the_next_start() {
    let mut bench = Bench::new();
    bench.append(1, Commit::Each);
    bench.wal.shutdown();
    bench.settle();
    let report = Recovery::new(identity(), 9, 4_096).run(&mut bench.disk, |_, _| {}).unwrap();
    let mut retire = Retire::remove(&report.wals[0], 5).unwrap();
    retire.plan(&mut bench.out);
    bench.out.drain(..).for_each(|request| bench.disk.submit(request));
    retire.on_done(bench.disk.wait().unwrap());
    bench.disk.crash();
    let report = Recovery::new(identity(), 9, 4_096).run(&mut bench.disk, |_, _| panic!("retired")).unwrap();
    assert_eq!(report.wals, []);
    let (wal, numbers) = &report.retired[0];
    assert_eq!(*wal, bench.wal.id());
    let mut rest = Retire::rest(*wal, numbers, 5);
    while !rest.is_done() {
        rest.plan(&mut bench.out);
        bench.out.drain(..).for_each(|request| bench.disk.submit(request));
        rest.on_done(bench.disk.wait().unwrap());
    }
    assert_eq!(bench.disk.paths(), []);
}

#[test]
fn a_failed_write_or_sync_poisons_for_good() {
    for (kind, by) in [(Write, PoisonedBy::Write), (Sync, PoisonedBy::Sync)] {
        let mut bench = Bench::new();
        bench.append(1, Commit::Each);
        bench.settle();
        let error = DiskError::Io { errno: EIO };
        bench.disk.plan_fault(kind, 0, Fault::Error(error));
        bench.append(1, Commit::Each);
        bench.settle();
        let poison = Poison { by, error };
        assert_eq!(bench.wal.poison(), Some(poison));
        assert_eq!(bench.wal.durable(), Lsn(1));
        assert_eq!(bench.try_append(1, 1, Commit::Each), Err(AppendError::Poisoned(poison)));
        assert_eq!(bench.promise(1), Err(AppendError::Poisoned(poison)));
        let operations = bench.disk.count(Write) + bench.disk.count(Sync);
        bench.pass(1_000 * MS);
        bench.settle();
        assert_eq!(bench.disk.count(Write) + bench.disk.count(Sync), operations, "nothing is tried again");
        assert_eq!((bench.wal.durable(), bench.wal.next_deadline()), (Lsn(1), None));
    }
}

#[test]
fn a_sync_that_returns_after_a_failed_write_acks_nothing() {
    let mut bench = Bench::new();
    bench.append(1, Commit::Each);
    bench.plan();
    bench.done();
    bench.append(1, Commit::Each);
    assert_eq!(bench.plan(), [Write]);
    let sync = bench.disk.wait().unwrap();
    bench.disk.plan_fault(Write, 0, Fault::Error(DiskError::Io { errno: EIO }));
    let write = bench.disk.wait().unwrap();
    bench.wal.on_done(bench.now, write);
    bench.wal.on_done(bench.now, sync);
    assert_eq!(bench.wal.durable(), Lsn(0));
    assert_eq!(bench.wal.poison().unwrap().by, PoisonedBy::Write);
}

#[test]
fn without_room_for_more_files_it_goes_on_with_those_that_it_has() {
    let mut bench = Bench::new();
    let grown = bench.wal.grown_bytes();
    bench.wal.set_may_grow(false);
    let mut refused = None;
    for _ in 0..200 {
        if let Err(error) = bench.try_append(1, 3_000, Commit::Each) {
            refused = Some(error);
            break;
        }
        bench.settle();
    }
    assert_eq!((refused, bench.wal.grown_bytes()), (Some(AppendError::DiskFull), grown));
    // What was flushed makes room without a new file.
    let through = bench.wal.appended();
    bench.wal.flushed(bench.now, ShardId(1), LINEAGE, Offset(1_000), through);
    for _ in 0..20 {
        bench.pass(200 * MS);
        bench.settle();
    }
    bench.try_append(1, 3_000, Commit::Each).unwrap();
    bench.settle();
    assert_eq!((bench.wal.durable(), bench.wal.grown_bytes()), (bench.wal.appended(), grown));
}

#[test]
fn a_full_disk_leaves_the_reserve_and_goes_on_when_space_returns() {
    let mut bench = Bench::new();
    let settings = CoreWalSettings::small();
    // The current file and one spare, and not a byte more.
    bench.disk.options.bytes_max = Some(2 * settings.file_bytes);
    let mut refused = None;
    for _ in 0..100 {
        if let Err(error) = bench.try_append(1, 3_000, Commit::Each) {
            refused = Some(error);
            break;
        }
        bench.settle();
    }
    assert_eq!(refused, Some(AppendError::DiskFull));
    assert!(bench.wal.is_full());
    assert_eq!(bench.wal.poison(), None);
    let lsn = bench.promise(2).expect("the reserve is for this");
    bench.settle();
    assert_eq!(bench.wal.durable(), lsn);
    assert_eq!(bench.try_append(1, 3_000, Commit::Each), Err(AppendError::DiskFull));
    let creates = bench.disk.count(OpKind::Create);
    bench.pass(10 * MS);
    bench.settle();
    assert_eq!(bench.disk.count(OpKind::Create), creates, "not tried at every turn");
    bench.disk.options.bytes_max = None;
    bench.pass(1_000 * MS);
    bench.settle();
    assert!(!bench.wal.is_full());
    bench.try_append(1, 3_000, Commit::Each).unwrap();
    bench.settle();
    assert_eq!(bench.wal.durable(), bench.wal.appended());
    bench.wal.shutdown();
    bench.settle();
    assert!(bench.wal.is_closed());
}

#[test]
fn space_that_is_freed_by_flushing_ends_the_full_state_too() {
    let mut bench = Bench::new();
    bench.disk.options.bytes_max = Some(2 * CoreWalSettings::small().file_bytes);
    for _ in 0..100 {
        let _ = bench.try_append(1, 3_000, Commit::Each);
        bench.settle();
    }
    assert!(bench.wal.is_full());
    bench.wal.flushed(bench.now, ShardId(1), LINEAGE, Offset(9), bench.wal.appended());
    bench.pass(200 * MS);
    bench.settle();
    bench.pass(200 * MS);
    bench.settle();
    assert!(!bench.wal.is_full(), "a file was reused");
    bench.try_append(1, 3_000, Commit::Each).unwrap();
    bench.settle();
    assert_eq!(bench.wal.durable(), bench.wal.appended());
}

#[test]
fn a_shard_that_pins_the_oldest_file_is_named_and_holds_the_ring_until_it_flushes() {
    let mut bench = Bench::new();
    let pinned = bench.append(9, Commit::Each);
    let mut refused = None;
    for _ in 0..1_000 {
        match bench.try_append(1, 3_000, Commit::Each) {
            Ok(lsn) => {
                bench.settle();
                bench.wal.flushed(bench.now, ShardId(1), LINEAGE, Offset(1), lsn);
            }
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    assert_eq!(refused, Some(AppendError::RingFull));
    assert!(bench.wal.wants_flush());
    assert_eq!(bench.wal.pins().collect::<Vec<_>>(), [(ShardId(9), pinned)]);
    assert!(bench.promise(9).is_ok());
    // Copied forward, nothing holds the old files any more.
    let through = bench.wal.appended();
    let body = EntryBody::Promise { lineage: LINEAGE, epoch: Epoch(2) };
    let copy = Entry { shard: ShardId(9), copied_from: Some(pinned), body };
    bench.wal.append(bench.now, &copy, Commit::None).unwrap();
    bench.wal.superseded(bench.now, ShardId(9), LINEAGE, Offset(0), through).unwrap();
    assert!(bench.wal.pins().count() > 0, "not before the copy is durable");
    bench.settle();
    assert!(!bench.wal.wants_flush());
    bench.pass(200 * MS);
    bench.settle();
    bench.try_append(1, 3_000, Commit::Each).unwrap();
}

#[test]
fn files_are_reused_and_their_number_does_not_grow() {
    let mut bench = Bench::new();
    for _ in 0..500 {
        let lsn = bench.try_append(1, 3_000, Commit::Each).unwrap();
        bench.settle();
        bench.wal.flushed(bench.now, ShardId(1), LINEAGE, Offset(1), lsn);
        bench.pass(100 * US);
    }
    assert!(bench.disk.count(OpKind::Create) <= 4, "{} files", bench.disk.count(OpKind::Create));
    let mut count = 0;
    let report = Recovery::new(identity(), 9, 64 << 10).run(&mut bench.disk.clone(), |_, _| count += 1).unwrap();
    assert!(count <= 1, "all but the last were flushed: {count}");
    assert!(!report.wals[0].is_damaged());
}

#[test]
fn entries_that_do_not_fit_are_refused_and_groups_are_split() {
    let mut bench = Bench::new();
    let max = CoreWalSettings::small().group_bytes_max - GROUP_HEADER_BYTES;
    let batch_max = max - 48;
    let error = bench.try_append(1, batch_max + 1, Commit::Each).unwrap_err();
    assert_eq!(error, AppendError::TooLarge { bytes: max + 1, max });
    let writes = bench.disk.count(Write);
    bench.try_append(1, batch_max, Commit::Each).unwrap();
    bench.try_append(1, 10_000, Commit::Each).unwrap();
    bench.try_append(1, 100, Commit::Each).unwrap();
    bench.try_append(2, 10_000, Commit::Group).unwrap();
    bench.settle();
    assert_eq!(bench.disk.count(Write) - writes, 3);
    assert_eq!(bench.wal.durable(), Lsn(4));
}

#[test]
fn what_waits_for_the_disk_is_bounded() {
    let mut bench = Bench::new();
    let mut count = 0;
    let mut refused = None;
    while refused.is_none() && count < 1_000 {
        match bench.try_append(1, 1_000, Commit::Each) {
            Ok(_) => count += 1,
            Err(error) => refused = Some(error),
        }
    }
    assert_eq!(refused, Some(AppendError::Busy));
    assert!((30..60).contains(&count), "{count}");
    assert!(bench.promise(1).is_ok(), "promises do not wait behind appends");
    bench.settle();
    assert_eq!(bench.wal.durable(), bench.wal.appended());
}

#[test]
fn many_idle_shards_cost_nothing() {
    let mut bench = Bench::new();
    for shard in 1..=200 {
        bench.try_append(shard, 20, Commit::Each).unwrap();
    }
    bench.settle();
    for shard in 1..=200 {
        bench.wal.flushed(bench.now, ShardId(shard), LINEAGE, Offset(1), Lsn(shard));
    }
    let mut deadlines = 0;
    while let Some(deadline) = bench.wal.next_deadline()
        && deadlines < 100
    {
        bench.now = deadline;
        bench.settle();
        deadlines += 1;
    }
    assert!(deadlines < 6, "lazy write, its sync, the seal: {deadlines}");
    assert_eq!(bench.plan(), []);
}
