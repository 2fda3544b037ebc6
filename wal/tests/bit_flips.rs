//! Bits that flip at rest in WAL files: whatever is read afterwards is right, and whatever is missing is reported.

use felix_protocol::ids::{ClusterId, CoreId, NodeId, NodeSession, ShardId, StreamId};
use felix_protocol::position::{Epoch, Lineage, Offset};
use felix_protocol::time::Time;
use felix_wal::core_wal::{CoreWal, CoreWalSettings};
use felix_wal::disk::Disk;
use felix_wal::format::entry::{Append, Entry, EntryBody};
use felix_wal::format::header::{Identity, Region};
use felix_wal::format::names::WalId;
use felix_wal::group_commit::Commit;
use felix_wal::judge::WalEnd;
use felix_wal::mem_disk::{Chance, MemDisk};
use felix_wal::recover::Recovery;

fn identity() -> Identity {
    Identity { cluster: ClusterId(1), node: NodeId(2), region: Region::new("eu").unwrap() }
}

fn settle(wal: &mut CoreWal, disk: &mut MemDisk) {
    let mut out = Vec::new();
    loop {
        wal.plan(Time(1), &mut out);
        out.drain(..).for_each(|request| disk.submit(request));
        match disk.wait() {
            Some(done) => wal.on_done(Time(1), done),
            None => return,
        }
    }
}

/// A folder with some reused files, and all entries ever written. Those that were flushed may come back if what says so is
/// damaged; the meta files say the same.
fn folder(seed: u64, clean: bool) -> (MemDisk, Entries) {
    let mut written = Entries::new();
    let mut chance = Chance::new(seed);
    let mut disk = MemDisk::new(seed);
    let id = WalId { session: NodeSession(1), core: CoreId(0) };
    let settings = CoreWalSettings {
        file_bytes: 44 << 10,
        group_bytes_max: 16 << 10,
        reserve_bytes: 8 << 10,
        ..CoreWalSettings::small()
    };
    let mut wal = CoreWal::new(settings, identity(), id, 0x1234_5678, 0);
    settle(&mut wal, &mut disk);
    for offset in 0..80 {
        let batch: Vec<u8> = (0..100 + chance.below(6_000)).map(|_| chance.bits() as u8).collect();
        let shard = ShardId(1 + chance.below(3));
        let append = Append {
            stream: StreamId(1),
            lineage: Lineage(1),
            offset_count: 1,
            epoch: Epoch(1),
            base_offset: Offset(offset),
            sealed_by: None,
            batch: &batch,
        };
        let entry = Entry::new(shard, EntryBody::Append(append));
        let lsn = wal.append(Time(1), &entry, Commit::Each).unwrap();
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        written.push((lsn.0, bytes));
        settle(&mut wal, &mut disk);
        if offset % 7 == 0 {
            let through = wal.appended();
            (1..=3).for_each(|shard| wal.flushed(Time(1), ShardId(shard), Lineage(1), Offset(offset), through));
        }
    }
    if clean {
        wal.shutdown();
        settle(&mut wal, &mut disk);
        assert!(wal.is_closed());
    }
    disk.kill();
    (disk, written)
}

type Entries = Vec<(u64, Vec<u8>)>;

struct Outcome {
    entries: Entries,
    reported: bool,
    clean: bool,
}

fn recover(disk: &mut MemDisk) -> Result<Outcome, String> {
    let mut entries = Entries::new();
    let report = Recovery::new(identity(), 9, 16 << 10)
        .run(disk, |position, entry| {
            let mut bytes = Vec::new();
            entry.encode(&mut bytes);
            entries.push((position.lsn.0, bytes));
        })
        .map_err(|error| error.to_string())?;
    let wal = &report.wals[0];
    let reported = wal.is_damaged() || matches!(wal.end, WalEnd::TornOrDamaged { .. }) || wal.bad_headers > 0;
    Ok(Outcome { entries, reported, clean: wal.end == WalEnd::Clean })
}

#[test]
fn two_hundred_bit_flips_are_each_found_or_harmless() {
    let mut found = 0;
    let mut harmless = 0;
    for case in 0..200 {
        let mut chance = Chance::new(case);
        let (mut disk, written) = folder(case % 4, case % 2 == 0);
        let before = recover(&mut disk.clone()).unwrap();
        assert!(!before.reported);
        let paths = disk.paths();
        let path = &paths[chance.below(paths.len() as u64) as usize];
        let bits = disk.content(path).unwrap().len() as u64 * 8;
        disk.flip_bit(path, chance.below(bits));
        match recover(&mut disk) {
            Err(_) => found += 1,
            Ok(after) => {
                for entry in &after.entries {
                    assert!(written.contains(entry), "case {case}: an entry that never was");
                }
                let whole = before.entries.iter().all(|entry| after.entries.contains(entry));
                if !whole && !after.reported {
                    // Only the very last group of an unsealed WAL can vanish without a trace, and such an end claims nothing.
                    let missing: Vec<_> =
                        before.entries.iter().filter(|entry| !after.entries.contains(entry)).collect();
                    let only_last = missing == [before.entries.last().unwrap()];
                    assert!(only_last && !after.clean, "case {case}: entries are missing and nothing is said");
                }
                if after.reported {
                    found += 1;
                } else {
                    harmless += 1;
                }
            }
        }
    }
    assert!(found > 60 && harmless > 10, "{found} found, {harmless} harmless");
}

#[test]
fn blocks_of_noise_and_lost_ends_are_found() {
    for case in 0..60 {
        let mut chance = Chance::new(case);
        let (mut disk, written) = folder(case % 4, true);
        let before = recover(&mut disk.clone()).unwrap();
        let paths = disk.paths();
        let path = &paths[chance.below(paths.len() as u64) as usize];
        let bytes = disk.content(path).unwrap().len() as u64;
        match case % 3 {
            0 => {
                let at = chance.below(bytes / 4_096) * 4_096;
                let noise: Vec<u8> = (0..4_096).map(|_| chance.bits() as u8).collect();
                disk.overwrite(path, at, &noise);
            }
            1 => {
                let at = chance.below(bytes / 4_096) * 4_096;
                disk.overwrite(path, at, &[0; 4_096]);
            }
            _ => disk.cut(path, chance.below(bytes / 512) * 512),
        }
        if let Ok(after) = recover(&mut disk) {
            assert!(after.entries.iter().all(|entry| written.contains(entry)), "case {case}");
            // The one thing that hides: the seal itself is gone, and then the end is not called clean.
            let whole = before.entries.iter().all(|entry| after.entries.contains(entry));
            assert!(whole || after.reported || !after.clean, "case {case}");
        }
    }
}
