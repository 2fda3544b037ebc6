//! **What**: power cuts: a file system for raft-engine that remembers what each file was at its last sync, and tests that
//! everything told done is in there.
//!
//! **Invariants**: a cut image holds nothing that was not synced; names are durable at once, which is what the folder
//! syncs of `recover.rs` are for.
//!
//! **Never**: outside tests.
//!
//! **See**: `probe.rs` for the other file system; `tests.rs` for the kit.

use super::tests::{Opened, Place, entries, id};
use super::{LogHead, recover};
use crate::raft_folder::OpenError;
use crate::raft_types::Vote;
use openraft::storage::RaftLogStorage;
use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission};
use std::collections::BTreeMap;
use std::io::Result;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

type RealHandle = <DefaultFileSystem as FileSystem>::Handle;
type Images = Arc<Mutex<BTreeMap<PathBuf, Vec<u8>>>>;

/// Writes through to the real files and keeps what a power cut would leave of them.
#[derive(Clone)]
struct CutFiles {
    images: Images,
    /// The broken twin: says that it synced, and did not.
    forgets_syncs: bool,
}

struct CutHandle {
    real: Arc<RealHandle>,
    path: PathBuf,
    files: CutFiles,
}

impl Handle for CutHandle {
    fn truncate(&self, offset: usize) -> Result<()> {
        self.real.truncate(offset)
    }

    fn file_size(&self) -> Result<usize> {
        self.real.file_size()
    }

    fn sync(&self) -> Result<()> {
        if !self.files.forgets_syncs {
            self.real.sync()?;
            let image = std::fs::read(&self.path)?;
            self.files.images.lock().unwrap().insert(self.path.clone(), image);
        }
        Ok(())
    }
}

impl CutFiles {
    fn handle(&self, path: &Path, real: RealHandle) -> CutHandle {
        CutHandle { real: Arc::new(real), path: path.to_path_buf(), files: self.clone() }
    }
}

impl FileSystem for CutFiles {
    type Handle = CutHandle;
    type Reader = <DefaultFileSystem as FileSystem>::Reader;
    type Writer = <DefaultFileSystem as FileSystem>::Writer;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<CutHandle> {
        let real = DefaultFileSystem.create(&path)?;
        self.images.lock().unwrap().insert(path.as_ref().to_path_buf(), Vec::new());
        Ok(self.handle(path.as_ref(), real))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<CutHandle> {
        let real = DefaultFileSystem.open(&path, permission)?;
        Ok(self.handle(path.as_ref(), real))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        DefaultFileSystem.delete(&path)?;
        self.images.lock().unwrap().remove(path.as_ref());
        Ok(())
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        DefaultFileSystem.rename(&from, &to)?;
        let mut images = self.images.lock().unwrap();
        if let Some(image) = images.remove(from.as_ref()) {
            images.insert(to.as_ref().to_path_buf(), image);
        }
        Ok(())
    }

    fn new_reader(&self, handle: Arc<CutHandle>) -> Result<Self::Reader> {
        DefaultFileSystem.new_reader(handle.real.clone())
    }

    fn new_writer(&self, handle: Arc<CutHandle>) -> Result<Self::Writer> {
        DefaultFileSystem.new_writer(handle.real.clone())
    }
}

/// What a power cut after a step leaves, and what had been told done by then.
struct Cut {
    files: Vec<(PathBuf, Vec<u8>)>,
    head: LogHead,
    texts: Vec<(u64, u64, String)>,
}

/// Writes of every kind, with a cut after each that was told done.
fn cuts(place: &Place, forgets_syncs: bool) -> Vec<Cut> {
    let files = CutFiles { images: Images::default(), forgets_syncs };
    let folder = place.folder().unwrap();
    let fresh = std::fs::read(place.path().join("synced")).unwrap();
    let (log, thread) = recover::open_over(&folder, place.node(), Some(id(9, 1_000_000)), files.clone()).unwrap();
    let mut opened = Opened { log, thread };
    let mut cuts = Vec::new();
    let mut cut = |opened: &Opened| {
        let identity = place.path().join("identity");
        let kept = std::fs::read(&identity).unwrap();
        let mut left: Vec<_> = files.images.lock().unwrap().clone().into_iter().collect();
        left.push((identity, kept));
        // The count beside the log is not synced with each write: it may have got there, or not.
        for synced in [std::fs::read(place.path().join("synced")).unwrap(), fresh.clone()] {
            let mut files = left.clone();
            files.push((place.path().join("synced"), synced));
            cuts.push(Cut { files, head: opened.log.mirror().head(), texts: opened.texts() });
        }
    };
    opened.run(async |log| log.save_vote(&Vote::new_committed(1, place.node().0)).await).unwrap();
    cut(&opened);
    for at in 0..4 {
        opened.append(entries(1, 3 * at..3 * at + 3)).unwrap();
        cut(&opened);
    }
    opened.run(async |log| log.truncate(id(1, 10)).await).unwrap();
    cut(&opened);
    opened.append(entries(2, 10..12)).unwrap();
    cut(&opened);
    opened.run(async |log| log.purge(id(1, 5)).await).unwrap();
    cut(&opened);
    opened.append(entries(2, 12..13)).unwrap();
    cut(&opened);
    opened.close();
    cuts
}

/// Whether a start after the cut has everything that was told done.
fn judge(cut: &Cut) -> std::result::Result<(), String> {
    let place = Place::new();
    let moved: Vec<_> = cut
        .files
        .iter()
        .map(|(path, bytes)| {
            let inside = path.parent().unwrap().file_name().is_some_and(|it| it == "log");
            let folder = if inside { place.path().join("log") } else { place.path().to_path_buf() };
            (folder.join(path.file_name().unwrap()), bytes.clone())
        })
        .collect();
    place.put(&moved);
    let opened = match place.open() {
        Ok(opened) => opened,
        Err(OpenError::Damaged { detail, .. }) => return Err(format!("damaged: {detail}")),
        Err(error) => panic!("{error}"),
    };
    let (head, texts) = (opened.log.mirror().head(), opened.texts());
    opened.close();
    if (head.writes, head.vote, head.purged, head.last)
        != (cut.head.writes, cut.head.vote, cut.head.purged, cut.head.last)
    {
        return Err(format!("lost: {:?} was told done, {head:?} is there", cut.head));
    }
    if texts != cut.texts {
        return Err(format!("lost: {:?} were told done, {texts:?} are there", cut.texts));
    }
    Ok(())
}

#[test]
fn a_power_cut_after_any_answer_loses_nothing() {
    let place = Place::new();
    for (at, cut) in cuts(&place, false).iter().enumerate() {
        judge(cut).unwrap_or_else(|why| panic!("cut {at}: {why}"));
    }
}

/// The broken twin of the test above: without the sync, every answer is a lie that is found, whether the count beside
/// the log got to the disk (damaged) or not (an older log that looks whole).
#[test]
fn a_removed_sync_is_noticed() {
    let place = Place::new();
    let verdicts: Vec<String> = cuts(&place, true).iter().map(|cut| judge(cut).unwrap_err()).collect();
    for (what, count) in [("damaged: ", verdicts.len() / 2), ("lost: ", verdicts.len() / 2)] {
        let found = verdicts.iter().filter(|it| it.starts_with(what)).count();
        assert_eq!(found, count, "{what}{verdicts:#?}");
    }
}
