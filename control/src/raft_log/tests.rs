use super::recover;
use super::*;
use crate::authorise::Principal;
use crate::command::{Action, Entry};
use crate::raft_folder::{Folder, OpenError};
use crate::raft_frames::Identity;
use crate::raft_types::EntryBytes;
use felix_protocol::ids::ClusterId;
use felix_protocol::metadata::Command;
use felix_protocol::names::StreamName;
use felix_protocol::time::Timestamp;
use openraft::storage::RaftLogStorageExt;
use openraft::{EntryPayload, LeaderId};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

const NODE: NodeId = NodeId(7);

pub(super) struct Place(PathBuf);

impl Place {
    pub(super) fn new() -> Place {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Place(std::env::temp_dir().join(format!("felix-raft-log-{}-{count}", std::process::id())))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn node(&self) -> NodeId {
        NODE
    }

    pub(super) fn folder(&self) -> Result<Folder, OpenError> {
        Folder::open(&self.0, Identity { cluster: ClusterId(1), node: NODE })
    }

    pub(super) fn open(&self) -> Result<Opened, OpenError> {
        let folder = self.folder()?;
        let (log, thread) = recover::open(&folder, NODE, Some(id(9, 1_000_000)))?;
        Ok(Opened { log, thread })
    }

    /// Files of the folder and its log with their bytes, without raft-engine's lock.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        for folder in [self.0.clone(), self.0.join("log")] {
            for item in std::fs::read_dir(folder).unwrap() {
                let path = item.unwrap().path();
                if path.is_file() && path.file_name().unwrap() != "LOCK" {
                    found.push((path.clone(), std::fs::read(path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }

    pub(super) fn put(&self, files: &[(PathBuf, Vec<u8>)]) {
        let _ = std::fs::remove_dir_all(&self.0);
        std::fs::create_dir_all(self.0.join("log")).unwrap();
        for (path, bytes) in files {
            std::fs::write(path, bytes).unwrap();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) struct Opened {
    pub(super) log: RaftLog,
    pub(super) thread: JoinHandle<()>,
}

impl Opened {
    pub(super) fn run<T>(&mut self, work: impl AsyncFnOnce(&mut RaftLog) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(work(&mut self.log))
    }

    pub(super) fn append(&mut self, entries: Vec<RaftEntry>) -> Result<(), StorageError> {
        self.run(async |log| log.blocking_append(entries).await)
    }

    pub(super) fn texts(&self) -> Vec<(u64, u64, String)> {
        let text = |payload: &EntryPayload<RaftTypes>| match payload {
            EntryPayload::Normal(EntryBytes(bytes)) => match Entry::decode(bytes).unwrap().action {
                Action::Client(Command::DeleteStream { name }) => name.stream().to_string(),
                _ => panic!("not what was written"),
            },
            _ => String::new(),
        };
        let entries = self.log.mirror.lock().read(..);
        entries.iter().map(|it| (it.log_id.index, it.log_id.leader_id.term, text(&it.payload))).collect()
    }

    pub(super) fn close(self) {
        drop(self.log);
        self.thread.join().unwrap();
    }
}

pub(super) fn id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId::new(term, NODE.0), index)
}

fn entry(term: u64, index: u64) -> RaftEntry {
    let name = format!("s{index}-of-{term}");
    let command = Command::DeleteStream { name: StreamName::new("t", "n", &name).unwrap() };
    let command = Entry::new(0, Timestamp(1), Principal::admin(), Action::Client(command));
    let payload = EntryPayload::Normal(EntryBytes(command.encode().unwrap()));
    RaftEntry { log_id: id(term, index), payload }
}

pub(super) fn entries(term: u64, indexes: std::ops::Range<u64>) -> Vec<RaftEntry> {
    indexes.map(|index| entry(term, index)).collect()
}

#[test]
fn an_append_with_a_hole_or_an_overlap_never_reaches_the_engine() {
    let place = Place::new();
    let mut opened = place.open().unwrap();
    opened.append(entries(1, 0..3)).unwrap();
    let head = opened.log.mirror.head();
    for (wrong, found) in [(4, 4), (2, 2), (0, 0)] {
        let error = opened.append(vec![entry(1, wrong)]).unwrap_err().to_string();
        assert!(error.contains(&format!("entry {found} does not follow the log, whose next entry is 3")), "{error}");
    }
    // Also within one append, and then nothing of it is taken.
    let error = opened.append(vec![entry(1, 3), entry(1, 5)]).unwrap_err().to_string();
    assert!(error.contains("entry 5 does not follow the log, whose next entry is 4"), "{error}");
    assert_eq!(opened.log.mirror.head(), head, "no write was made");
    opened.append(vec![entry(1, 3)]).unwrap();
    opened.close();
    let opened = place.open().unwrap();
    assert_eq!(opened.texts().len(), 4);
    opened.close();
}

#[test]
fn vote_bounds_and_entries_survive() {
    let place = Place::new();
    let mut opened = place.open().unwrap();
    assert_eq!(opened.log.mirror.head(), LogHead::default());
    opened.run(async |log| log.save_vote(&Vote::new_committed(4, NODE.0)).await).unwrap();
    opened.append(entries(4, 0..5)).unwrap();
    opened.run(async |log| log.save_committed(Some(id(4, 3))).await).unwrap();
    opened.append(entries(4, 5..6)).unwrap();
    let (head, texts) = (opened.log.mirror.head(), opened.texts());
    opened.close();
    let mut opened = place.open().unwrap();
    assert_eq!((opened.log.mirror.head(), opened.texts()), (head, texts));
    assert_eq!(head.committed, Some(id(4, 3)));
    assert_eq!(head.writes, 3);
    // Its own vote is not granted any more, another's still is.
    assert_eq!(opened.run(async |log| log.read_vote().await), Ok(Some(Vote::new(4, NODE.0))));
    opened.run(async |log| log.save_vote(&Vote::new_committed(5, 9)).await).unwrap();
    assert_eq!(opened.run(async |log| log.read_vote().await), Ok(Some(Vote::new_committed(5, 9))));
    opened.close();
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    let place = Place::new();
    let mut opened = place.open().unwrap();
    opened.append(entries(1, 0..8)).unwrap();
    opened.run(async |log| log.truncate(id(1, 4)).await).unwrap();
    assert_eq!(opened.log.mirror.head().last, Some(id(1, 3)));
    opened.close();
    let mut opened = place.open().unwrap();
    assert_eq!(opened.texts().last(), Some(&(3, 1, "s3-of-1".into())));
    opened.append(entries(2, 4..6)).unwrap();
    opened.close();
    let mut opened = place.open().unwrap();
    assert_eq!(opened.texts()[3..], [(3, 1, "s3-of-1".into()), (4, 2, "s4-of-2".into()), (5, 2, "s5-of-2".into())]);
    // All of it.
    opened.run(async |log| log.truncate(id(1, 0)).await).unwrap();
    opened.append(entries(3, 0..1)).unwrap();
    opened.close();
    let opened = place.open().unwrap();
    assert_eq!(opened.texts(), [(0, 3, "s0-of-3".into())]);
    opened.close();
}

#[test]
fn a_purge_may_reach_beyond_the_last_entry() {
    let place = Place::new();
    let mut opened = place.open().unwrap();
    opened.append(entries(1, 0..8)).unwrap();
    opened.run(async |log| log.purge(id(1, 4)).await).unwrap();
    assert_eq!(opened.texts().first(), Some(&(5, 1, "s5-of-1".into())));
    opened.close();
    let mut opened = place.open().unwrap();
    assert_eq!(opened.texts().len(), 3);
    opened.run(async |log| log.purge(id(2, 100)).await).unwrap();
    assert_eq!(opened.texts(), []);
    opened.close();
    let mut opened = place.open().unwrap();
    let state = opened.run(async |log| log.get_log_state().await).unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(2, 100)), Some(id(2, 100))));
    opened.append(entries(2, 101..103)).unwrap();
    opened.close();
    let opened = place.open().unwrap();
    assert_eq!(opened.texts().len(), 2);
    opened.close();
}

#[test]
fn old_files_go_after_a_purge() {
    let place = Place::new();
    let mut opened = place.open().unwrap();
    let long = StreamName::new("t", "n", &"x".repeat(120)).unwrap();
    let command = Action::Client(Command::DeleteStream { name: long });
    let command = Entry::new(0, Timestamp(1), Principal::admin(), command).encode().unwrap();
    let big = |index| RaftEntry { log_id: id(1, index), payload: EntryPayload::Normal(EntryBytes(command.clone())) };
    for batch in 0..32 {
        opened.append((batch * 2_048..batch * 2_048 + 2_048).map(big).collect()).unwrap();
        if batch % 8 == 7 {
            opened.run(async |log| log.purge(id(1, batch * 2_048 + 2_030)).await).unwrap();
        }
    }
    let (head, count) = (opened.log.mirror.head(), opened.texts().len());
    opened.close();
    let bytes: usize = place.files().iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(bytes < 13 << 20, "{bytes} bytes on disk, 15 MiB were written");
    let opened = place.open().unwrap();
    assert_eq!((opened.log.mirror.head(), opened.texts().len()), (head, count));
    opened.close();
}

fn last_log_file(files: &[(PathBuf, Vec<u8>)]) -> usize {
    files.iter().rposition(|(path, _)| path.extension().is_some_and(|it| it == "raftlog")).unwrap()
}

fn synced_file(files: &[(PathBuf, Vec<u8>)]) -> usize {
    files.iter().position(|(path, _)| path.ends_with("synced")).unwrap()
}

/// A folder before and after its last write, and where in the log file that write begins.
struct LastWrite {
    place: Place,
    before: Vec<(PathBuf, Vec<u8>)>,
    after: Vec<(PathBuf, Vec<u8>)>,
    log: usize,
    begins: usize,
}

fn last_write() -> LastWrite {
    let place = Place::new();
    let mut opened = place.open().unwrap();
    opened.run(async |log| log.save_vote(&Vote::new(1, NODE.0)).await).unwrap();
    opened.append(entries(1, 0..3)).unwrap();
    opened.close();
    let before = place.files();
    let mut opened = place.open().unwrap();
    opened.append(entries(1, 3..5)).unwrap();
    opened.close();
    let after = place.files();
    let log = last_log_file(&after);
    let begins = before[log].1.len();
    assert_eq!(after[log].1[..begins], before[log].1);
    assert!(after[log].1.len() > begins + 100);
    LastWrite { place, before, after, log, begins }
}

impl LastWrite {
    /// Puts a folder in place, opens it, and gives its count of entries.
    fn reopen(&self, files: &[(PathBuf, Vec<u8>)]) -> Result<usize, OpenError> {
        self.place.put(files);
        let opened = self.place.open()?;
        let count = opened.texts().len();
        opened.close();
        Ok(count)
    }

    fn refused(&self, files: &[(PathBuf, Vec<u8>)], what: &str) {
        let error = self.reopen(files).expect_err(what);
        assert!(matches!(error, OpenError::Damaged { .. }), "{what}: {error}");
        assert!(error.to_string().contains("damaged"), "{error}");
        assert_eq!(self.place.files(), files, "{what}: a refused folder stays as it is");
    }
}

#[test]
fn a_write_that_was_cut_anywhere_is_there_or_not() {
    let it = last_write();
    let whole = it.after[it.log].1.clone();
    let mut there = 0;
    for end in it.begins..=whole.len() {
        // With what a crash leaves behind the end: nothing, or the zeros of space that was reserved.
        for tail in [0, 4_096] {
            let mut files = it.before.clone();
            files[it.log].1 = whole[..end].to_vec();
            files[it.log].1.resize(end + tail, 0);
            let count = it.reopen(&files).unwrap_or_else(|error| panic!("cut at {end}: {error}"));
            assert!(count == 3 || count == 5, "cut at {end}: {count} entries");
            there += usize::from(count == 5);
        }
        // The same end, but the write was acknowledged.
        if end < whole.len() {
            let mut files = it.after.clone();
            files[it.log].1.truncate(end);
            it.refused(&files, &format!("acknowledged, cut at {end}"));
        }
    }
    assert!(there >= 2);
}

#[test]
fn a_write_with_a_flipped_bit_is_there_or_not_if_unacknowledged_and_refused_if_acknowledged() {
    let it = last_write();
    for at in it.begins..it.after[it.log].1.len() {
        let bit = 1 << (at % 8);
        let mut files = it.after.clone();
        files[it.log].1[at] ^= bit;
        it.refused(&files, &format!("acknowledged, byte {at}"));
        let synced = synced_file(&files);
        files[synced] = it.before[synced].clone();
        let count = it.reopen(&files).unwrap_or_else(|error| panic!("byte {at}: {error}"));
        assert!(count == 3 || count == 5, "byte {at}: {count} entries");
    }
}

#[test]
fn damage_in_the_middle_is_refused_and_nothing_is_cut() {
    let it = last_write();
    for at in 0..it.begins {
        let mut files = it.after.clone();
        files[it.log].1[at] ^= 1 << (at % 8);
        match it.reopen(&files) {
            Ok(count) => assert_eq!(count, 5, "byte {at} does not matter"),
            Err(_) => it.refused(&files, &format!("byte {at}")),
        }
    }
}

#[test]
fn a_log_that_is_gone_is_not_a_new_one() {
    let it = last_write();
    let mut files = it.after.clone();
    files.retain(|(path, _)| path.extension().is_none_or(|it| it != "raftlog"));
    it.refused(&files, "no log file");
    it.place.put(&files);
    std::fs::remove_dir_all(it.place.0.join("log")).unwrap();
    let error = it.place.open().err().unwrap().to_string();
    assert!(error.contains("log: it is missing"), "{error}");
    let mut files = it.after.clone();
    files.remove(synced_file(&it.after));
    it.refused(&files, "no synced");
    let mut files = it.after.clone();
    let synced = synced_file(&files);
    files[synced].1.fill(0);
    it.refused(&files, "both slots");
    // One slot: the other one tells of the write before, or of this one.
    for slot in [0, 4_096] {
        let mut files = it.after.clone();
        files[synced].1[slot] ^= 1;
        assert_eq!(it.reopen(&files).unwrap(), 5);
    }
}

#[test]
fn a_log_that_does_not_begin_where_the_snapshot_ends_is_refused() {
    let place = Place::new();
    let mut opened = place.open().unwrap();
    opened.append(entries(1, 0..8)).unwrap();
    opened.run(async |log| log.purge(id(1, 4)).await).unwrap();
    opened.close();
    let folder = Folder::open(&place.0, Identity { cluster: ClusterId(1), node: NODE }).unwrap();
    let error = |snapshot| recover::open(&folder, NODE, snapshot).err().map(|error| error.to_string());
    assert!(error(None).unwrap().contains("the log begins at entry 5, but there is no snapshot"));
    assert!(error(Some(id(1, 3))).unwrap().contains("but the newest snapshot ends at entry 3"));
    let (log, thread) = recover::open(&folder, NODE, Some(id(1, 4))).unwrap();
    Opened { log, thread }.close();
}

#[test]
fn a_folder_opens_once_at_a_time() {
    let place = Place::new();
    let opened = place.open().unwrap();
    assert!(matches!(place.open(), Err(OpenError::InUse { .. })));
    opened.close();
    place.open().unwrap().close();
}

#[test]
fn after_a_failed_write_nothing_is_written_any_more() {
    let place = Place::new();
    let mut opened = place.open().unwrap();
    opened.append(entries(1, 0..2)).unwrap();
    let before = opened.log.mirror.head().writes;
    // raft-engine refuses an entry that does not follow; here it is given one behind the guard's back, and panics.
    let (done, failed) = tokio::sync::oneshot::channel();
    let hole = encode_entry(&entry(1, 50)).unwrap();
    let head = LogHead { writes: before, ..LogHead::default() };
    opened.log.writer.send(Job { entries: vec![(50, hole)], head, compact: None, done: Done::Waiter(done) });
    let error = failed.blocking_recv().unwrap().unwrap_err().to_string();
    assert!(error.contains("panicked"), "{error}");
    let error = opened.append(entries(1, 2..3)).unwrap_err().to_string();
    assert!(error.contains("an earlier write failed"), "{error}");
    opened.close();
    // This process keeps an engine that panicked, and its lock: to close it would sync once more.
    assert!(matches!(place.open(), Err(OpenError::InUse { .. })));
    // And this is why there is a guard: the engine wrote the hole before it panicked, and never opens again.
    let copy = Place::new();
    copy_folder(&place.0, &copy.0);
    assert!(matches!(copy.open(), Err(OpenError::Damaged { .. })));
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn a_range_is_cut_to_what_is_there() {
    let mut mirror = Mirror::default();
    mirror.append(entries(1, 0..10)).unwrap();
    mirror.purge(id(1, 3));
    let indexes =
        |range: std::ops::Range<u64>| mirror.read(range).iter().map(|entry| entry.log_id.index).collect::<Vec<_>>();
    assert_eq!(indexes(0..6), [4, 5]);
    assert_eq!(indexes(8..u64::MAX), [8, 9]);
    assert_eq!(indexes(0..4), [] as [u64; 0]);
    assert_eq!(indexes(12..20), [] as [u64; 0]);
    assert_eq!(mirror.read(8..=9).len(), 2);
    assert_eq!(mirror.read(..).len(), 6);
}
