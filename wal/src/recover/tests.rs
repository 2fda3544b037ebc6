use super::*;
use crate::core_wal::{CoreWal, CoreWalSettings};
use crate::format::entry::{Append, Lsn};
use crate::format::group::GROUP_HEADER_BYTES;
use crate::format::header::Region;
use crate::group_commit::Commit;
use crate::judge::WalEnd;
use crate::mem_disk::{Fault, MemDisk, OpKind};
use felix_protocol::ids::{ClusterId, CoreId, NodeId, NodeSession, ShardId, StreamId};
use felix_protocol::position::{Epoch, Lineage, Offset};
use felix_protocol::time::Time;

const LINEAGE: Lineage = Lineage(1);
const SALT: u128 = 7;

fn identity() -> Identity {
    Identity { cluster: ClusterId(1), node: NodeId(2), region: Region::new("eu").unwrap() }
}

fn wal_id(session: u64, core: u8) -> WalId {
    WalId { session: NodeSession(session), core: CoreId(core) }
}

struct Writer {
    disk: MemDisk,
    wal: CoreWal,
}

impl Writer {
    fn on(mut disk: MemDisk, id: WalId) -> Writer {
        disk.kill();
        Writer { disk, wal: CoreWal::new(CoreWalSettings::small(), identity(), id, SALT, u32::from(id.core.0)) }
            .settled()
    }

    fn new() -> Writer {
        Writer::on(MemDisk::new(1), wal_id(1, 0))
    }

    fn settled(mut self) -> Writer {
        self.settle();
        self
    }

    fn settle(&mut self) {
        let mut out = Vec::new();
        loop {
            self.wal.plan(Time(1), &mut out);
            out.drain(..).for_each(|request| self.disk.submit(request));
            match self.disk.wait() {
                Some(done) => self.wal.on_done(Time(1), done),
                None => return,
            }
        }
    }

    /// One group of its own.
    fn put(&mut self, shard: u64, body: EntryBody<'_>) -> Lsn {
        let lsn = self.wal.append(Time(1), &Entry::new(ShardId(shard), body), Commit::Each).unwrap();
        self.settle();
        lsn
    }

    fn append(&mut self, shard: u64, offset: u64, bytes: usize) -> Lsn {
        let batch = vec![offset as u8; bytes];
        let append = Append {
            stream: StreamId(1),
            lineage: LINEAGE,
            offset_count: 1,
            epoch: Epoch(1),
            base_offset: Offset(offset),
            sealed_by: None,
            batch: &batch,
        };
        self.put(shard, EntryBody::Append(append))
    }
}

impl Writer {
    fn append_some(&mut self, count: u64) {
        for offset in 0..count {
            self.append(1, offset, 100);
        }
    }
}

/// (wal, lsn, shard) of what counts.
type Found = Vec<(WalId, u64, u64)>;

fn recover(disk: &mut MemDisk) -> Result<(Report, Found), RecoverError> {
    let mut found = Vec::new();
    let report = Recovery::new(identity(), 9, 8_192)
        .run(disk, |position, entry| found.push((position.wal, position.lsn.0, entry.shard.0)))?;
    Ok((report, found))
}

fn lsns(found: &Found) -> Vec<u64> {
    found.iter().map(|(_, lsn, _)| *lsn).collect()
}

fn file(number: u32) -> FilePath {
    Name::WalFile(wal_id(1, 0), number).path()
}

#[test]
fn an_empty_folder_is_recovered_at_once() {
    let (report, found) = recover(&mut MemDisk::new(1)).unwrap();
    assert_eq!((report, found), (Report::default(), vec![]));
}

#[test]
fn groups_come_in_order_with_their_numbers_across_files() {
    let mut writer = Writer::new();
    for offset in 0..60 {
        writer.append(1 + offset % 3, offset, 3_000);
    }
    let (report, found) = recover(&mut writer.disk).unwrap();
    assert_eq!(lsns(&found), (1..=60).collect::<Vec<_>>());
    let wal = &report.wals[0];
    assert!(wal.files.len() >= 4, "{:?}", wal.files);
    assert_eq!((wal.end, wal.damage.len()), (WalEnd::Unsealed, 0));
    assert_eq!(wal.synced, GroupSequence(59), "the last group says that those before it were durable");
}

#[test]
fn a_damaged_group_is_placed_and_names_its_shards() {
    let mut writer = Writer::new();
    for offset in 0..5 {
        writer.append(1 + offset, offset, 3_000);
    }
    // In the batch of the third group: its header and the prefixes of its entries still tell whose it is.
    let at = 3 * 4_096 + GROUP_HEADER_BYTES as u64 + 1_000;
    writer.disk.flip_bit(&file(1), at * 8);
    let (report, found) = recover(&mut writer.disk).unwrap();
    assert_eq!(lsns(&found), [1, 2, 4, 5], "what is whole is still there");
    let [damage] = &report.wals[0].damage[..] else { panic!("{report:?}") };
    assert_eq!((damage.from, damage.to), (GroupSequence(3), GroupSequence(3)));
    assert_eq!((damage.first_lsn, damage.next_lsn), (Some(Lsn(3)), Some(Lsn(4))));
    assert_eq!(damage.after, Some(Place { number: 1, at: 3 * 4_096 }));
    assert_eq!(damage.before, Some(Place { number: 1, at: 4 * 4_096 }));
    assert_eq!(damage.suspects.shards.iter().map(|shard| shard.0).collect::<Vec<_>>(), [3]);
    assert!(!damage.suspects.more);
    assert!(report.wals[0].is_damaged());
    assert!(crate::retire::Retire::remove(&report.wals[0], 1).is_none(), "a damaged WAL is not removed");
    // In an entry's shard id: the list cannot be trusted.
    let mut writer = Writer::new();
    writer.append_some(3);
    writer.disk.flip_bit(&file(1), (2 * 4_096 + GROUP_HEADER_BYTES as u64 + 8) * 8);
    let (report, _) = recover(&mut writer.disk).unwrap();
    assert!(report.wals[0].damage[0].suspects.more);
    // In the group's header: any shard.
    let mut writer = Writer::new();
    writer.append_some(3);
    writer.disk.flip_bit(&file(1), (2 * 4_096 + 20) * 8);
    let (report, found) = recover(&mut writer.disk).unwrap();
    assert_eq!(lsns(&found), [1, 3]);
    assert!(report.wals[0].damage[0].suspects.more);
    assert_eq!(report.wals[0].damage[0].suspects.shards.len(), 0);
}

#[test]
fn damage_to_the_last_group_is_never_called_clean() {
    let mut writer = Writer::new();
    writer.append_some(3);
    let sealed = {
        let mut disk = writer.disk.clone();
        disk.flip_bit(&file(1), (3 * 4_096 + 500) * 8);
        let (report, found) = recover(&mut disk).unwrap();
        assert_eq!(lsns(&found), [1, 2]);
        assert_eq!(report.wals[0].damage, []);
        let place = Some(Place { number: 1, at: 3 * 4_096 });
        let end = WalEnd::TornOrDamaged { sequence: GroupSequence(3), place, dropped: 0 };
        assert_eq!(report.wals[0].end, end);
        writer.wal.shutdown();
        writer.settled()
    };
    // With the seal behind it, the same is damage for sure.
    let mut disk = sealed.disk.clone();
    disk.flip_bit(&file(1), (3 * 4_096 + 500) * 8);
    let (report, found) = recover(&mut disk).unwrap();
    assert_eq!(lsns(&found), [1, 2]);
    assert_eq!(report.wals[0].damage.len(), 1);
    assert_eq!(report.wals[0].end, WalEnd::Clean);
}

#[test]
fn a_deleted_file_is_missed() {
    let mut writer = Writer::new();
    for offset in 0..60 {
        writer.append(1, offset, 3_000);
    }
    writer.disk.call(DiskOp::Remove { path: file(2) }).unwrap();
    let (report, found) = recover(&mut writer.disk).unwrap();
    let [damage] = &report.wals[0].damage[..] else { panic!("{report:?}") };
    assert_eq!((damage.from, damage.to), (GroupSequence(16), GroupSequence(30)));
    assert_eq!(found.len(), 45);
    // The oldest too: a later group says since when groups are needed.
    writer.disk.call(DiskOp::Remove { path: file(1) }).unwrap();
    let (report, _) = recover(&mut writer.disk).unwrap();
    assert_eq!(report.wals[0].damage[0].from, GroupSequence(1));
    assert_eq!(report.wals[0].damage[0].to, GroupSequence(30));
}

#[test]
fn unreadable_blocks_cost_themselves_and_not_their_neighbours() {
    let mut writer = Writer::new();
    writer.append_some(6);
    writer.disk.break_block(&file(1), 3 * 4_096);
    let (report, found) = recover(&mut writer.disk).unwrap();
    assert_eq!(lsns(&found), [1, 2, 4, 5, 6]);
    assert_eq!(report.unreadable_blocks, 1);
    assert_eq!(report.wals[0].damage.len(), 1);
}

#[test]
fn a_misdirected_write_is_missed_where_it_should_be_and_not_read_where_it_is() {
    let mut writer = Writer::new();
    writer.append(1, 0, 100);
    writer.disk.plan_fault(OpKind::Write, 0, Fault::Misdirected { blocks: 5 });
    writer.append(1, 1, 100);
    writer.append(1, 2, 100);
    let (report, found) = recover(&mut writer.disk).unwrap();
    assert_eq!(lsns(&found), [1, 3]);
    assert_eq!(report.wals[0].damage[0].from, GroupSequence(2));
}

#[test]
fn bytes_of_a_client_that_look_like_a_group_do_not_pass_for_one() {
    let mut writer = Writer::new();
    writer.append(1, 0, 100);
    // A forged group at a block boundary inside a batch, right in all but the seed, which clients do not know.
    let header = GroupHeader {
        wal: wal_id(1, 0),
        number: 1,
        generation: 0,
        block: 3,
        sequence: GroupSequence(3),
        first_lsn: Lsn(3),
        entry_count: 0,
        payload_bytes: 0,
        synced_through: GroupSequence(2),
        first_needed: GroupSequence(1),
        index_crc: 0,
    };
    let forge = |seed| {
        let mut group = vec![0; GROUP_HEADER_BYTES];
        header.finish(seed, &mut group);
        let mut batch = vec![1; 4_096 - GROUP_HEADER_BYTES - 48];
        batch.extend_from_slice(&group);
        batch
    };
    let mut with = |seed| {
        let batch = forge(seed);
        let append = Append {
            stream: StreamId(1),
            lineage: LINEAGE,
            offset_count: 1,
            epoch: Epoch(1),
            base_offset: Offset(1),
            sealed_by: None,
            batch: &batch,
        };
        writer.put(1, EntryBody::Append(append));
        let mut disk = writer.disk.clone();
        disk.flip_bit(&file(1), (2 * 4_096 + 100) * 8);
        recover(&mut disk).unwrap().0.wals[0].clone()
    };
    let report = with(GroupSeed::of(0));
    assert_eq!(report.damage, []);
    assert!(matches!(report.end, WalEnd::TornOrDamaged { dropped: 0, .. }), "{:?}", report.end);
    let mut writer = Writer::new();
    writer.append(1, 0, 100);
    let mut disk = writer.disk.clone();
    let mut group = forge(GroupSeed::of(SALT));
    group.resize(8_192 - GROUP_HEADER_BYTES - 48, 0);
    disk.overwrite(&file(1), 2 * 4_096 + GROUP_HEADER_BYTES as u64 + 48, &group);
    let (report, _) = recover(&mut disk).unwrap();
    assert!(report.wals[0].is_damaged(), "with the seed it would have passed: the check above can fail");
}

#[test]
fn files_of_others_and_of_newer_builds_are_refused() {
    let mut writer = Writer::new();
    writer.append(1, 0, 100);
    let other = Identity { node: NodeId(9), ..identity() };
    let error = Recovery::new(other, 9, 4_096).run(&mut writer.disk.clone(), |_, _| {}).unwrap_err();
    assert!(matches!(error, RecoverError::Header { error: HeaderError::OtherNode { .. }, .. }), "{error}");
    // A group of a later version: the checksum fits, so it is no damage.
    let mut disk = writer.disk.clone();
    let mut bytes = disk.content(&file(1)).unwrap()[4_096..8_192].to_vec();
    bytes[4] = 2;
    refit(&mut bytes);
    disk.overwrite(&file(1), 4_096, &bytes);
    let error = recover(&mut disk).unwrap_err();
    assert!(matches!(error, RecoverError::Group { error: GroupError::UnknownVersion(2), at: 4_096, .. }), "{error}");
    // An entry of an unknown kind.
    let mut disk = writer.disk.clone();
    let mut bytes = disk.content(&file(1)).unwrap()[4_096..8_192].to_vec();
    bytes[GROUP_HEADER_BYTES + 4] = 77;
    refit(&mut bytes);
    disk.overwrite(&file(1), 4_096, &bytes);
    let error = recover(&mut disk).unwrap_err();
    assert!(matches!(error, RecoverError::Entry { error: EntryError::UnknownKind(77), .. }), "{error}");
}

/// Sets both checksums of a group anew.
fn refit(group: &mut [u8]) {
    let seed = {
        let mut state = 0u32;
        for word in [SALT as u32, 0, 0, 0] {
            state = state.rotate_left(7) ^ word;
        }
        state
    };
    let body = crc32c::crc32c_append(seed, &group[GROUP_HEADER_BYTES..]);
    group[12..16].copy_from_slice(&body.to_le_bytes());
    let head = crc32c::crc32c_append(seed, &group[..8]);
    let head = crc32c::crc32c_append(head, &group[12..GROUP_HEADER_BYTES]);
    group[8..12].copy_from_slice(&head.to_le_bytes());
}

#[test]
fn a_damaged_file_header_does_not_hide_its_groups() {
    let mut writer = Writer::new();
    for offset in 0..20 {
        writer.append(1, offset, 3_000);
    }
    writer.disk.flip_bit(&file(1), 100 * 8);
    let (report, found) = recover(&mut writer.disk).unwrap();
    assert_eq!(found.len(), 20);
    assert_eq!((report.wals[0].bad_headers, report.wals[0].is_damaged()), (1, false));
    // All of them: nothing can be read, and that is said.
    for path in writer.disk.paths() {
        writer.disk.overwrite(&path, 0, &[0xaa; 64]);
    }
    let (report, found) = recover(&mut writer.disk).unwrap();
    assert_eq!(found.len(), 0);
    assert!(report.wals[0].unreadable && report.wals[0].is_damaged());
}

#[test]
fn shards_are_where_their_last_rehome_says() {
    // Two cores at first; then one, which takes over shard 2 and is followed by a third start.
    let mut first = Writer::new();
    first.append(1, 0, 100);
    first.append(2, 0, 100);
    let mut second = Writer::on(first.disk, wal_id(1, 1));
    second.append(3, 0, 100);
    let mut third = Writer::on(second.disk, wal_id(2, 0));
    third.append(3, 1, 100);
    let from = third.append(2, 1, 100);
    third.put(2, EntryBody::Rehome { lineage: LINEAGE, incarnation: 5, from });
    third.append(2, 2, 100);
    let (report, found) = recover(&mut third.disk).unwrap();
    assert_eq!(report.wals.iter().map(|wal| wal.wal).collect::<Vec<_>>(), [wal_id(1, 0), wal_id(1, 1), wal_id(2, 0)]);
    let (old, other, new) = (wal_id(1, 0), wal_id(1, 1), wal_id(2, 0));
    assert_eq!(found, [(old, 1, 1), (other, 1, 3), (new, 1, 3), (new, 2, 2), (new, 4, 2)]);
    // A later move back, with a greater incarnation, in whatever WAL it stands.
    let mut fourth = Writer::on(third.disk, wal_id(1, 7));
    let from = Lsn(2);
    fourth.put(2, EntryBody::Rehome { lineage: LINEAGE, incarnation: 6, from });
    fourth.append(2, 9, 100);
    let (_, found) = recover(&mut fourth.disk).unwrap();
    let of_two: Vec<_> = found.iter().filter(|(_, _, shard)| *shard == 2).collect();
    assert_eq!(of_two, [&(wal_id(1, 7), 2, 2)]);
}

#[test]
fn what_is_flushed_is_not_replayed_and_copies_stand_in_for_their_originals() {
    let mut writer = Writer::new();
    let first = writer.append(1, 0, 100);
    writer.append(1, 1, 100);
    writer.wal.flushed(Time(1), ShardId(1), LINEAGE, Offset(1), first);
    let original = writer.append(2, 0, 100);
    let through = writer.wal.appended();
    let body = EntryBody::Promise { lineage: LINEAGE, epoch: Epoch(1) };
    let copy = Entry { shard: ShardId(2), copied_from: Some(original), body };
    let copied = writer.wal.append(Time(1), &copy, Commit::None).unwrap();
    // Without the word that all was copied, the copy is nothing.
    writer.settle();
    writer.append(1, 2, 100);
    let (_, found) = recover(&mut writer.disk.clone()).unwrap();
    assert_eq!(lsns(&found), [2, original.0, 6]);
    writer.wal.superseded(Time(1), ShardId(2), LINEAGE, Offset(0), through).unwrap();
    writer.settle();
    let (_, found) = recover(&mut writer.disk.clone()).unwrap();
    assert_eq!(lsns(&found), [2, copied.0, 6]);
}

#[test]
fn a_copy_stands_in_for_an_original_that_is_lost() {
    let mut writer = Writer::new();
    writer.append(1, 0, 100);
    let original = writer.append(2, 0, 100);
    writer.append(1, 1, 100);
    let body = EntryBody::Promise { lineage: LINEAGE, epoch: Epoch(1) };
    let copy = Entry { shard: ShardId(2), copied_from: Some(original), body };
    let copied = writer.wal.append(Time(1), &copy, Commit::None).unwrap();
    writer.settle();
    let (_, found) = recover(&mut writer.disk.clone()).unwrap();
    assert_eq!(lsns(&found), [1, original.0, 3]);
    writer.disk.flip_bit(&file(1), (2 * 4_096 + 300) * 8);
    let (report, found) = recover(&mut writer.disk).unwrap();
    assert!(report.wals[0].is_damaged());
    assert_eq!(lsns(&found), [1, 3, copied.0]);
}

#[test]
fn names_of_others_are_left_alone_and_reported() {
    let mut writer = Writer::new();
    writer.append(1, 0, 100);
    for path in ["wal/notes.txt", "wal/0000000000000001-00/core.12"] {
        writer.disk.call(DiskOp::Replace { path: FilePath(path.to_string()), bytes: vec![1] }).unwrap();
    }
    let (report, found) = recover(&mut writer.disk).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(report.foreign.len(), 2);
}

#[test]
fn memory_is_a_group_and_progress_reaches_its_end() {
    let mut writer = Writer::new();
    for offset in 0..90 {
        writer.append(1, offset, 3_000);
    }
    let mut recovery = Recovery::new(identity(), 9, 4_096);
    let mut out = Vec::new();
    let mut groups = 0;
    let mut last = 0;
    while !recovery.is_done() {
        recovery.plan(&mut out);
        assert!(out.len() <= 1, "one request at a time");
        out.drain(..).for_each(|request| writer.disk.submit(request));
        assert!(recovery.window.held_bytes() <= 2 * 16_384, "{}", recovery.window.held_bytes());
        if recovery.group().is_some() {
            groups += 1;
        } else if let Some(done) = writer.disk.wait() {
            recovery.on_done(done);
        }
        let progress = recovery.progress();
        assert!(progress.done >= last && progress.done <= progress.total);
        last = progress.done;
    }
    assert_eq!(groups, 90);
    let Progress { done, total } = recovery.progress();
    assert!(done * 10 >= total * 9, "{done} of {total}");
}
