//! `felix-broker check`, `dump` and `repair`: the real program on real data folders, whole ones and damaged ones. Whether
//! `check` tells the truth is judged by reading everything back.

#[path = "../../wal/tests/kit/mod.rs"]
mod kit;

use felix_broker::offline_disk::{Access, OfflineDisk};
use felix_protocol::ids::{CoreId, NodeSession};
use felix_protocol::position::{Lineage, Offset};
use felix_protocol::time::{Time, Timestamp};
use felix_wal::chunk_builder::{BuildError, ChunkBuilder};
use felix_wal::core_wal::{CoreWal, CoreWalSettings};
use felix_wal::disk::{Disk, DiskDone};
use felix_wal::format::entry::{Append, Entry, EntryBody};
use felix_wal::format::header::{FileHeader, Owner};
use felix_wal::format::names::WalId;
use felix_wal::group_commit::Commit;
use felix_wal::log::{Ended, MetaChange, ShardLog};
use felix_wal::log_open::Opening;
use felix_wal::mem_disk::Chance;
use felix_wal::queue::DiskQueue;
use felix_wal::read::{ReadFrom, ReadState, Reader};
use felix_wal::recover::Recovery;
use kit::{LOG, READ, READER, SETTINGS, SPEC, Stamper, maker};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SHARD: &str = "0000000000000009";
const WAL: WalId = WalId { session: NodeSession(1), core: CoreId(0) };

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_felix-broker"))
}

fn run(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("killed: {output:?}"))
}

/// Checks a folder: exit code and the JSON.
fn check(root: &Path) -> (i32, serde_json::Value) {
    let output = run(&["check", root.to_str().unwrap(), "--json"]);
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (code(&output), json)
}

/// All files below a folder.
fn content(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => drop(found.insert(path.strip_prefix(root).unwrap().to_path_buf(), fs::read(&path).unwrap())),
            }
        }
    }
    found
}

fn put(root: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) {
    let _ = fs::remove_dir_all(root);
    for (path, bytes) in files {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), bytes).unwrap();
    }
}

/// A data folder on disk, driven by the planners over the offline disk.
struct Folder {
    root: PathBuf,
    disk: OfflineDisk,
    queue: DiskQueue,
}

impl Folder {
    fn new(name: &str) -> Folder {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("offline_tools").join(name);
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("control")).unwrap();
        Folder::at(&root)
    }

    /// With what a broker keeps beside the records.
    fn of_a_broker(name: &str) -> Folder {
        let folder = Folder::new(name);
        let identity = maker().identity;
        let node = format!(
            "format = 1\ncluster_id = \"{:032x}\"\nnode_id = \"{:032x}\"\nregion = \"{}\"\n",
            identity.cluster.0, identity.node.0, identity.region
        );
        fs::write(folder.root.join("node.toml"), node).unwrap();
        fs::write(folder.root.join("session"), "1\n").unwrap();
        fs::write(folder.root.join("control/identity"), "").unwrap();
        let header = FileHeader { identity, session: NodeSession(1), salt: 1, owner: Owner::Folder };
        let mut block = Vec::new();
        header.encode(&mut block);
        fs::write(folder.root.join("format"), block).unwrap();
        folder
    }

    fn at(root: &Path) -> Folder {
        let disk = OfflineDisk::new(root, Access::ReadWrite);
        Folder { root: root.to_path_buf(), disk, queue: DiskQueue::new() }
    }

    fn next(&mut self) -> DiskDone {
        self.queue.drain().for_each(|request| self.disk.submit(request));
        self.disk.wait().expect("a request is under way")
    }

    fn open(&mut self, mut opening: Opening) -> Option<ShardLog> {
        loop {
            let done = self.next();
            if let Some(opened) = opening.handle(done, &mut self.queue) {
                return opened.ok().map(|(log, _)| log);
            }
        }
    }

    fn flush(&mut self, builder: &mut ChunkBuilder, log: &mut ShardLog, batches: &[Vec<u8>]) {
        builder.begin(log.cursor());
        for batch in batches {
            match builder.push(batch, false) {
                Ok(()) => {}
                Err(BuildError::Full) => panic!("too much for one flush"),
                Err(error) => panic!("{error}"),
            }
        }
        log.flush(builder, &MetaChange::default(), &SETTINGS, Timestamp(1), &mut self.queue).unwrap();
        loop {
            let done = self.next();
            if let Some(mut event) = log.handle(done, &mut self.queue) {
                assert_eq!(event.ended, Ended::Done);
                event.buffer.take().into_iter().for_each(|buffer| builder.reuse(buffer));
                return;
            }
        }
    }

    /// Sealed segments and an open one; returns all batches.
    fn fill_shard(&mut self) -> Vec<Vec<u8>> {
        let opening = Opening::create(LOG, maker(), SPEC, &mut self.queue);
        let mut log = self.open(opening).unwrap();
        let (mut builder, mut stamper, mut all) = (ChunkBuilder::new(), Stamper::default(), Vec::new());
        for number in 0..40u64 {
            stamper.time = Timestamp(1_000 + number);
            let batches: Vec<_> = (0..1 + number % 4)
                .map(|it| stamper.batch(&[(Some(vec![b'a' + it as u8]), vec![b'v'; 900], false)]))
                .collect();
            self.flush(&mut builder, &mut log, &batches);
            all.extend(batches);
        }
        assert!(log.segments().len() >= 2 && log.meta().open.is_some());
        all
    }

    /// A WAL with synced groups, shut down cleanly or left as a kill leaves it; returns its entries.
    fn fill_wal(&mut self, clean: bool) -> Vec<Vec<u8>> {
        let mut wal = CoreWal::new(CoreWalSettings::small(), maker().identity, WAL, 0x5a17, 0);
        let (mut now, mut requests, mut stamper) = (Time(1), Vec::new(), Stamper::default());
        let mut step = |wal: &mut CoreWal, disk: &mut OfflineDisk| {
            now = now.after_ns(1_000);
            wal.plan(now, &mut requests);
            requests.drain(..).for_each(|request| disk.submit(request));
            match disk.wait() {
                Some(done) => wal.on_done(now, done),
                None => now = wal.next_deadline().unwrap_or(now).max(now),
            }
            now
        };
        while !wal.is_ready() {
            step(&mut wal, &mut self.disk);
        }
        let mut all = Vec::new();
        for number in 0..12u64 {
            let base_offset = stamper.next;
            let batch = stamper.batch(&[(None, vec![number as u8; 300], false)]);
            let append = Append {
                stream: SPEC.stream,
                lineage: SPEC.lineage,
                offset_count: 1,
                epoch: stamper.epoch,
                base_offset,
                sealed_by: None,
                batch: &batch,
            };
            let entry = Entry::new(SPEC.shard, EntryBody::Append(append));
            let lsn = wal.append(Time(1), &entry, Commit::Each).unwrap();
            while wal.durable() < lsn {
                step(&mut wal, &mut self.disk);
            }
            let mut bytes = Vec::new();
            entry.encode(&mut bytes);
            all.push(bytes);
        }
        if clean {
            wal.shutdown();
            while !wal.is_closed() {
                step(&mut wal, &mut self.disk);
            }
        }
        all
    }

    /// Everything of the shard from the start; None: it does not open.
    fn read(&mut self) -> Option<Vec<Vec<u8>>> {
        let opening = Opening::open(LOG, maker(), SPEC.shard, Timestamp(9), Offset(0), &mut self.queue);
        let log = self.open(opening)?;
        let mut reader = Reader::new(READER, ReadFrom::Offset(Offset(0)), READ);
        let mut out = Vec::new();
        loop {
            match reader.poll(&log, &mut self.queue) {
                ReadState::Ready => out.push(reader.next_batch().unwrap().bytes.to_vec()),
                ReadState::Waiting => {
                    let done = self.next();
                    reader.handle(done, &log, &mut self.queue);
                }
                ReadState::AtEnd | ReadState::Failed(_) => break,
            }
        }
        reader.close(&mut self.queue);
        while !reader.is_closed() {
            let done = self.next();
            reader.handle(done, &log, &mut self.queue);
        }
        Some(out)
    }

    /// The entries that a start would replay; None: it would refuse.
    fn replay(&mut self) -> Option<Vec<Vec<u8>>> {
        let mut out = Vec::new();
        let report = Recovery::new(maker().identity, 1, 64 << 10).run(&mut self.disk, |_, entry| {
            if matches!(entry.body, EntryBody::Append(_)) {
                let mut bytes = Vec::new();
                entry.encode(&mut bytes);
                out.push(bytes);
            }
        });
        report.ok().filter(|it| it.wals.iter().all(|wal| !wal.is_damaged())).map(|_| out)
    }

    fn segment(&self, base: Offset) -> PathBuf {
        self.root.join(format!("shards/{SHARD}/{:08x}-{:016x}.seg", Lineage(1).0, base.0))
    }

    fn bases(&self) -> Vec<Offset> {
        let mut bases: Vec<Offset> = fs::read_dir(self.root.join(format!("shards/{SHARD}")))
            .unwrap()
            .filter_map(|entry| {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let base = name.strip_suffix(".seg")?.split_once('-')?.1.to_string();
                Some(Offset(u64::from_str_radix(&base, 16).unwrap()))
            })
            .collect();
        bases.sort();
        bases
    }

    fn data(&self) -> &str {
        self.root.to_str().unwrap()
    }
}

fn flip(path: &Path, bit: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_whole_folder_is_clean_and_unchanged() {
    let mut folder = Folder::of_a_broker("clean");
    let all = folder.fill_shard();
    folder.fill_wal(true);
    let before = content(&folder.root);
    let output = run(&["check", folder.data()]);
    let shown = text(&output.stdout);
    assert_eq!((code(&output), text(&output.stderr).as_str()), (0, ""), "{shown}");
    for expected in
        ["1 shard(s)", &format!("{} good batch(es)", all.len()), "shut down cleanly", "region eu-west", "\nclean\n"]
    {
        assert!(shown.contains(expected), "{expected:?} is not in {shown}");
    }
    let (code, json) = check(&folder.root);
    assert_eq!((code, &json["exit_code"], &json["findings"]), (0, &0.into(), &serde_json::json!([])));
    assert_eq!(json["good_batches"], all.len());
    assert_eq!(json["identity"]["region"], "eu-west");
    assert_eq!(json["wals"][0]["damaged"], false);
    assert!(content(&folder.root) == before, "check changed the folder");
    assert_eq!(folder.read().unwrap(), all);
}

/// 150 flips, cuts and lost blocks all over the files of a shard: exit code 2 if and only if a reader does not get everything.
#[test]
fn check_tells_the_truth_about_a_shard() {
    let mut folder = Folder::of_a_broker("truth_shard");
    let all = folder.fill_shard();
    let clean = content(&folder.root);
    let paths: Vec<&PathBuf> = clean.keys().filter(|path| path.starts_with("shards")).collect();
    let mut chance = Chance::new(11);
    let (mut damaged, mut harmless, mut untouched) = (0, 0, 0);
    for case in 0..150 {
        put(&folder.root, &clean);
        let path = paths[chance.below(paths.len() as u64) as usize];
        let bytes = &clean[path];
        let whole = folder.root.join(path);
        match case % 5 {
            0..=2 => flip(&whole, chance.below(bytes.len() as u64 * 8)),
            3 => fs::write(&whole, &bytes[..chance.below(bytes.len() as u64) as usize]).unwrap(),
            _ => {
                let mut bytes = bytes.clone();
                let at = chance.below(bytes.len() as u64 / 4_096) as usize * 4_096;
                bytes[at..at + 4_096].fill(0);
                fs::write(&whole, bytes).unwrap();
            }
        }
        let before = content(&folder.root);
        let (code, json) = check(&folder.root);
        assert!(content(&folder.root) == before, "case {case}: check changed the folder");
        let is_whole = Folder::at(&folder.root).read().as_ref() == Some(&all);
        assert_eq!(code == 2, !is_whole, "case {case} {}: code {code}, {json:#}", path.display());
        match (code, before == clean) {
            (2, _) => damaged += 1,
            (1, false) => harmless += 1,
            // A block of zeros over zeros.
            (0, _) => untouched += 1,
            other => panic!("case {case} {}: {other:?} {json:#}", path.display()),
        }
        if code == 2 {
            let first = &json["findings"][0];
            assert_eq!(first["severity"], "damage");
            assert!(first["path"].as_str().unwrap().starts_with("shards/"), "{first}");
            assert!(!first["do"].as_str().unwrap().is_empty() && !first["consequence"].as_str().unwrap().is_empty());
        }
    }
    assert!(damaged > 60 && harmless > 5, "{damaged} damaged, {harmless} harmless, {untouched} untouched");
}

#[test]
fn check_tells_the_truth_about_a_wal() {
    let mut folder = Folder::of_a_broker("truth_wal");
    let all = folder.fill_wal(true);
    assert_eq!(folder.replay().as_ref(), Some(&all));
    let clean = content(&folder.root);
    let first = clean.keys().find(|path| path.starts_with("wal")).unwrap().clone();
    // Where groups are: behind the header up to the zeros.
    let used = clean[&first].iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    let mut chance = Chance::new(12);
    let (mut damaged, mut harmless) = (0, 0);
    for case in 0..60 {
        put(&folder.root, &clean);
        match case % 6 {
            5 => flip(&folder.root.join(&first), chance.below(clean[&first].len() as u64 * 8)),
            _ => flip(&folder.root.join(&first), chance.below(used * 8)),
        }
        let (code, json) = check(&folder.root);
        let is_whole = Folder::at(&folder.root).replay().as_ref() == Some(&all);
        assert_eq!(code == 2, !is_whole, "case {case}: code {code}, {json:#}");
        match code {
            2 => damaged += 1,
            _ => harmless += 1,
        }
    }
    assert!(damaged > 20, "{damaged} damaged, {harmless} harmless");
    // A killed broker leaves no damage.
    let mut killed = Folder::of_a_broker("killed_wal");
    killed.fill_wal(false);
    let (code, json) = check(&killed.root);
    assert!(code <= 1, "{json:#}");
}

#[test]
fn check_says_why_it_cannot_read() {
    let folder = Folder::new("cannot");
    let missing = run(&["check", "/nowhere/felix"]);
    assert_eq!(code(&missing), 3);
    assert!(text(&missing.stderr).contains("/nowhere/felix"), "{missing:?}");
    let other = run(&["check", folder.data()]);
    assert_eq!(code(&other), 3);
    assert!(text(&other.stderr).contains("no data folder of Felix"), "{other:?}");
    // A folder of a broker that never had durable data.
    let broker = Folder::of_a_broker("cannot");
    let empty = run(&["check", broker.data()]);
    assert_eq!(code(&empty), 0, "{empty:?}");
    assert!(text(&empty.stdout).contains("no durable data"), "{empty:?}");
    // Nothing that says whose it is: damage, not silence.
    let meta = folder.root.join(format!("shards/{SHARD}/meta"));
    fs::create_dir_all(meta.parent().unwrap()).unwrap();
    fs::write(&meta, vec![1; 8_192]).unwrap();
    fs::remove_file(folder.root.join("format")).unwrap();
    let (damaged, json) = check(&folder.root);
    assert_eq!(damaged, 2);
    let whats: Vec<_> = json["findings"].as_array().unwrap().iter().map(|it| it["what"].as_str().unwrap()).collect();
    assert!(
        whats.contains(&"not a Felix file") && whats.iter().any(|it| it.contains("format is missing")),
        "{whats:?}"
    );
    // A hostile name neither reaches the terminal nor makes a line of its own.
    fs::write(folder.root.join("shards/\u{1b}[2J\nclean"), "").unwrap();
    let output = run(&["check", folder.data()]);
    let shown = text(&output.stdout);
    assert!(
        shown.contains(r"\u{1b}[2J\nclean") && !shown.contains('\u{1b}') && !shown.contains("\nclean\n"),
        "{shown}"
    );
}

#[test]
fn a_folder_in_use_is_refused() {
    let mut folder = Folder::of_a_broker("in_use");
    folder.fill_shard();
    let lock = fs::File::create(folder.root.join("lock")).unwrap();
    fs::write(folder.root.join("lock"), "4711\n").unwrap();
    lock.lock().unwrap();
    let repair = ["repair", folder.data(), "9", "--choose", "truncate-at-damage"];
    for args in [&["check", folder.data()][..], &repair] {
        let output = run(args);
        assert_eq!(code(&output), 3, "{output:?}");
        let error = text(&output.stderr);
        assert!(error.contains("4711") && error.contains("stop it first"), "{error}");
    }
    // A look at one file is allowed, and says what may be wrong with it.
    let output = run(&["dump", folder.data(), &format!("shards/{SHARD}/meta")]);
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(text(&output.stderr).contains("4711"), "{output:?}");
    drop(lock);
    assert_eq!(check(&folder.root).0, 0);
}

#[test]
fn dump_shows_segments_metas_and_wals() {
    let mut folder = Folder::of_a_broker("dump");
    let all = folder.fill_shard();
    folder.fill_wal(true);
    let bases = folder.bases();
    let first = folder.segment(bases[0]);
    let relative = first.strip_prefix(&folder.root).unwrap().to_str().unwrap().to_string();
    let output = run(&["dump", folder.data(), &relative]);
    let shown = text(&output.stdout);
    assert_eq!(code(&output), 0, "{output:?}");
    let batches = shown.lines().filter(|line| line.starts_with("  batch ")).count();
    assert_eq!(batches as u64, bases[1].0);
    assert!(shown.contains("key \"a\"") && shown.contains("value 900 bytes") && !shown.contains("vvvv"), "{shown}");
    let absolute = run(&["dump", folder.data(), first.to_str().unwrap(), "--values", "text"]);
    assert!(text(&absolute.stdout).contains(&"v".repeat(900)));
    let hex = run(&["dump", folder.data(), &relative, "--values", "hex"]);
    assert!(text(&hex.stdout).contains(&"76".repeat(900)));
    let meta = text(&run(&["dump", folder.data(), &format!("shards/{SHARD}/meta")]).stdout);
    assert!(meta.contains(&format!("offsets 0..{}", all.len())) && meta.contains("open segment at"), "{meta}");
    let wal = run(&["dump", folder.data(), "wal"]);
    let lines = text(&wal.stdout);
    assert_eq!((code(&wal), lines.lines().filter(|line| line.contains(" append ")).count()), (0, 12), "{lines}");
    for (bad, expected) in [
        ("../x", "not below"),
        ("/etc/passwd", "not below"),
        ("shards/none", "no such file"),
        ("wal/0000000000000001-00/00000001.wal", "file of a WAL"),
    ] {
        let output = run(&["dump", folder.data(), bad]);
        assert_eq!(code(&output), 3, "{bad}: {output:?}");
        assert!(text(&output.stderr).contains(expected), "{bad}: {output:?}");
    }
    flip(&first, 8 * 8_700);
    let output = run(&["dump", folder.data(), &relative, "--values", "text"]);
    assert_eq!(code(&output), 2);
    assert!(text(&output.stdout).contains("DAMAGED: "), "{output:?}");
}

/// What the dry run tells to type.
fn understood(output: &Output) -> String {
    let shown = text(&output.stdout);
    shown.split("--i-understand ").nth(1).unwrap_or_else(|| panic!("{output:?}")).trim().to_string()
}

#[test]
fn repair_changes_nothing_until_its_cost_is_understood() {
    let mut folder = Folder::of_a_broker("repair");
    let all = folder.fill_shard();
    let bases = folder.bases();
    let damaged = folder.segment(bases[1]);
    flip(&damaged, 8 * 8_700);
    let before = content(&folder.root);
    let readable = folder.read().unwrap();
    let end = all.len();
    let data = folder.data().to_string();
    let repair = |more: &[&str]| run(&[&["repair", &data, "9", "--choose", "truncate-at-damage"], more].concat());
    let dry = repair(&[]);
    assert_eq!(code(&dry), 0, "{dry:?}");
    let words = understood(&dry);
    assert_eq!(words, format!("{}..{end}", readable.len()));
    assert!(text(&dry.stdout).contains("DRY RUN") && text(&dry.stdout).contains("quarantine/"), "{dry:?}");
    for wrong in ["yes", "0..1", "nothing", ""] {
        let refused = repair(&["--i-understand", wrong]);
        assert_eq!(code(&refused), 1, "{refused:?}");
        assert!(text(&refused.stderr).contains(&words), "{refused:?}");
    }
    let mut after = content(&folder.root);
    after.remove(Path::new("lock"));
    assert!(after == before, "something was changed without consent");
    let done = repair(&["--i-understand", &words]);
    assert_eq!(code(&done), 0, "{done:?}");
    assert!(text(&done.stdout).starts_with("Done."), "{done:?}");
    assert_eq!(folder.read().unwrap(), readable);
    // What was given up is told from now on, and is no damage.
    assert_eq!(check(&folder.root).0, 1);
    // Nothing is gone: every file of before is where it was, or in quarantine.
    let now = content(&folder.root);
    for (path, bytes) in &before {
        assert!(
            now.get(path) == Some(bytes) || now.iter().any(|(at, it)| at.starts_with("quarantine") && it == bytes),
            "{path:?}"
        );
    }
    let reports: Vec<_> = now.keys().filter(|path| path.starts_with("repairs")).collect();
    assert_eq!(reports.len(), 1);
    let report: serde_json::Value = serde_json::from_slice(&now[reports[0]]).unwrap();
    assert_eq!((&report["state"], &report["given_up"]), (&"done".into(), &words.as_str().into()));
    let again = repair(&[]);
    assert_eq!(code(&again), 1);
    assert!(text(&again.stderr).contains("nothing of the shard is damaged"), "{again:?}");
}

/// Whatever the damage: the dry run changes nothing, the repair does what it said, and what is left is a prefix of what was
/// there, clean.
#[test]
fn a_cut_leaves_a_clean_prefix_whatever_the_damage() {
    let mut folder = Folder::of_a_broker("any_cut");
    let all = folder.fill_shard();
    let clean = content(&folder.root);
    let paths: Vec<&PathBuf> = clean.keys().filter(|path| path.extension().is_some_and(|it| it == "seg")).collect();
    let data = folder.data().to_string();
    let args = ["repair", &data, SHARD, "--choose", "truncate-at-damage"];
    let mut chance = Chance::new(21);
    let (mut cut, mut refused) = (0, 0);
    for case in 0..40 {
        put(&folder.root, &clean);
        let path = paths[chance.below(paths.len() as u64) as usize];
        let bytes = &clean[path];
        match case % 3 {
            0 => fs::write(folder.root.join(path), &bytes[..chance.below(bytes.len() as u64) as usize]).unwrap(),
            1 => fs::remove_file(folder.root.join(path)).unwrap(),
            _ => flip(&folder.root.join(path), chance.below(bytes.len() as u64 * 8)),
        }
        let before = content(&folder.root);
        let dry = run(&args);
        assert!(content(&folder.root) == before, "case {case}: the dry run changed the folder");
        if code(&dry) != 0 {
            assert_eq!(code(&dry), 1, "case {case}: {dry:?}");
            refused += 1;
            continue;
        }
        let words = understood(&dry);
        let done = run(&[&args[..], &["--i-understand", &words]].concat());
        assert_eq!(code(&done), 0, "case {case}: {done:?}");
        let (after, json) = check(&folder.root);
        assert!(after <= 1, "case {case} {}: {json:#}", path.display());
        let left = Folder::at(&folder.root).read().unwrap();
        assert_eq!(left, all[..left.len()], "case {case}");
        assert_eq!(words, format!("{}..{}", left.len(), all.len()), "case {case}");
        cut += 1;
    }
    assert!(cut > 20, "{cut} cut, {refused} refused");
}

#[test]
fn a_segment_may_be_given_up_and_an_index_made_again() {
    let mut folder = Folder::of_a_broker("give_up");
    let all = folder.fill_shard();
    let bases = folder.bases();
    let data = folder.data().to_string();
    let at = bases[1].0.to_string();
    // The index first: nothing is lost.
    let index = folder.segment(bases[1]).with_extension("idx");
    let good = fs::read(&index).unwrap();
    flip(&index, 8 * 4_200);
    let (harmless, json) = check(&folder.root);
    assert_eq!((harmless, &json["findings"][0]["consequence"]), (1, &"slower seeks".into()));
    let command = json["findings"][0]["do"].as_str().unwrap().replace("DATA", &data);
    let args: Vec<&str> = command.split(" makes ").next().unwrap().split(' ').skip(1).collect();
    let dry = run(&args);
    assert_eq!((code(&dry), understood(&dry).as_str()), (0, "nothing"), "the advice of check works: {args:?} {dry:?}");
    let done = run(&[&args[..], &["--i-understand", "nothing"]].concat());
    assert_eq!(code(&done), 0, "{done:?}");
    assert!(fs::read(&index).unwrap() == good);
    assert_eq!(check(&folder.root).0, 0);
    // Then a segment: its offsets become a gap, which is told from then on and is no damage.
    flip(&folder.segment(bases[1]), 8 * 8_700);
    assert_eq!(check(&folder.root).0, 2);
    let args = ["repair", &data, SHARD, "--choose", "quarantine-segment", "--at", &at];
    let words = understood(&run(&args));
    let done = run(&[&args[..], &["--i-understand", &words]].concat());
    assert_eq!(code(&done), 0, "{done:?}");
    let (known, json) = check(&folder.root);
    assert_eq!(
        (known, &json["findings"][0]["what"]),
        (1, &"offsets that a repair gave up, or that were left out after a loss".into()),
        "{json:#}"
    );
    assert_eq!(folder.read().unwrap(), all[..bases[1].0 as usize]);
    for (args, expected) in [
        (&["repair", &data, "9", "--choose", "quarantine-segment"][..], "--at"),
        (&["repair", &data, "9", "--choose", "quarantine-segment", "--at", "1"], "no segment begins at 1"),
        (&["repair", &data, "77", "--choose", "truncate-at-damage"], "nothing was done"),
        (&["repair", &data, "wal/x", "--choose", "quarantine-wal"], "SESSION-CORE"),
        (&["repair", &data, "9", "--choose", "quarantine-wal"], "wal/SESSION-CORE"),
    ] {
        let output = run(args);
        assert_ne!(code(&output), 0, "{args:?}");
        assert!(text(&output.stderr).contains(expected), "{args:?}: {output:?}");
    }
}

#[test]
fn a_damaged_wal_goes_to_quarantine_when_somebody_says_so() {
    let mut folder = Folder::of_a_broker("wal_up");
    folder.fill_wal(true);
    let data = folder.data().to_string();
    let args = ["repair", &data, "wal/0000000000000001-00", "--choose", "quarantine-wal"];
    let whole = run(&args);
    assert_eq!(code(&whole), 1);
    assert!(text(&whole.stderr).contains("is not damaged"), "{whole:?}");
    flip(&folder.root.join("wal/0000000000000001-00/00000001.wal"), 8 * 4_300);
    let (damage, json) = check(&folder.root);
    assert_eq!(damage, 2, "{json:#}");
    assert!(json["findings"][0]["what"].as_str().unwrap().contains(SHARD), "{json:#}");
    let dry = run(&args);
    assert!(text(&dry.stdout).contains("batch(es) of offsets"), "{dry:?}");
    let done = run(&[&args[..], &["--i-understand", &understood(&dry)]].concat());
    assert_eq!(code(&done), 0, "{done:?}");
    assert_eq!(check(&folder.root).0, 0);
    assert!(
        content(&folder.root)
            .keys()
            .any(|path| path.to_string_lossy().starts_with("quarantine/") && path.to_string_lossy().ends_with(".wal"))
    );
}

#[test]
fn another_folders_file_is_found() {
    let mut folder = Folder::of_a_broker("foreign");
    folder.fill_shard();
    let segment = folder.segment(folder.bases()[1]);
    let mut bytes = fs::read(&segment).unwrap();
    let mut header = FileHeader::decode(&bytes).unwrap();
    assert!(matches!(header.owner, Owner::Segment { .. }));
    header.identity.node.0 ^= 1;
    let mut block = Vec::new();
    header.encode(&mut block);
    bytes[..4_096].copy_from_slice(&block);
    fs::write(&segment, bytes).unwrap();
    let (damage, json) = check(&folder.root);
    assert_eq!(damage, 2);
    assert!(json["findings"][0]["what"].as_str().unwrap().contains("of node"), "{json:#}");
}

/// What a start would refuse is damage, in the words of the broker.
#[test]
fn a_folder_that_no_broker_would_start_on_is_damaged() {
    let mut folder = Folder::of_a_broker("parts");
    folder.fill_shard();
    let clean = content(&folder.root);
    for (file, expected) in [
        ("node.toml", "who this node is"),
        ("format", "older than any record"),
        ("session", "counts the starts"),
        ("control/identity", "holds the metadata"),
    ] {
        put(&folder.root, &clean);
        fs::remove_file(folder.root.join(file)).unwrap();
        let (code, json) = check(&folder.root);
        assert_eq!(code, 2, "{file}: {json:#}");
        assert_eq!(json["findings"][0]["consequence"], "the node does not start");
        assert!(json["findings"][0]["what"].as_str().unwrap().contains(expected), "{file}: {json:#}");
        assert_eq!(json["findings"].as_array().unwrap().len(), 1, "{file}");
    }
    put(&folder.root, &clean);
    flip(&folder.root.join("format"), 8 * 40);
    let (code, json) = check(&folder.root);
    assert_eq!((code, &json["findings"][0]["path"]), (2, &"format".into()), "{json:#}");
    put(&folder.root, &clean);
    assert_eq!(check(&folder.root).0, 0);
}

#[test]
fn help_shows_examples_and_exit_codes() {
    for tool in ["check", "dump", "repair"] {
        let help = text(&run(&[tool, "--help"]).stdout);
        assert!(help.contains("Examples:") && help.contains("Exit codes:"), "{help}");
        assert!(help.contains(&format!("felix-broker {tool} /var/lib/felix")), "{help}");
    }
}
