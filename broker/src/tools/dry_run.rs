//! **What**: a disk that lets a planner work on a data folder without changing it: what it writes is kept in memory and seen
//! by what it reads later; the steps are remembered.
//!
//! **Invariants**: nothing reaches the folder: the disk below is read-only. Names behave as on a real disk.
//!
//! **Never**: writes into open files: no repair makes any, so they are refused (EROFS) instead of imitated.
//!
//! **See**: `repair.rs`.

use crate::offline_disk::OfflineDisk;
use felix_wal::disk::{Disk, DiskDone, DiskError, DiskOk, DiskOp, DiskRequest, FileKey, FilePath, Listed};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// What a name means now.
#[derive(Clone, Debug)]
enum Meaning {
    /// Nothing.
    Gone,
    /// A file of the folder, maybe under another name there.
    Below(FilePath),
    /// What a step wrote.
    Here(Vec<u8>),
}

/// A step that would have changed the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A file gets new content, bytes.
    Replace(FilePath, usize),
    /// A file or folder gets another name.
    Move(FilePath, FilePath),
    /// A file or folder goes.
    Remove(FilePath),
}

/// The disk.
pub struct DryRunDisk {
    below: OfflineDisk,
    names: BTreeMap<FilePath, Meaning>,
    /// Open files that are not open below.
    files: HashMap<FileKey, Vec<u8>>,
    requests: VecDeque<DiskRequest>,
    /// What was done, in order.
    pub steps: Vec<Step>,
}

impl DryRunDisk {
    /// Over a disk that is read-only.
    pub fn new(below: OfflineDisk) -> DryRunDisk {
        DryRunDisk {
            below,
            names: BTreeMap::new(),
            files: HashMap::new(),
            requests: VecDeque::new(),
            steps: Vec::new(),
        }
    }

    fn meaning(&self, path: &FilePath) -> Meaning {
        if let Some(meaning) = self.names.get(path) {
            return meaning.clone();
        }
        // A folder above may have been moved.
        let mut above = path.0.as_str();
        while let Some(cut) = above.rfind('/') {
            above = &above[..cut];
            match self.names.get(&FilePath(above.to_string())) {
                Some(Meaning::Below(was)) => return Meaning::Below(FilePath(format!("{was}{}", &path.0[cut..]))),
                Some(Meaning::Gone) => return Meaning::Gone,
                _ => {}
            }
        }
        Meaning::Below(path.clone())
    }

    fn exists(&mut self, path: &FilePath) -> Result<bool, DiskError> {
        match self.meaning(path) {
            Meaning::Gone => Ok(false),
            Meaning::Here(_) => Ok(true),
            Meaning::Below(was) => {
                let (folder, name) = was.0.rsplit_once('/').unwrap_or(("", &was.0));
                match self.below.call(DiskOp::List { path: FilePath(folder.to_string()) })? {
                    DiskOk::Listed(list) => Ok(list.iter().any(|it| it.name == name)),
                    _ => Ok(false),
                }
            }
        }
    }

    fn perform(&mut self, op: DiskOp) -> Result<DiskOk, DiskError> {
        match op {
            DiskOp::Open { path, file } => match self.meaning(&path) {
                Meaning::Gone => Err(DiskError::NotFound),
                Meaning::Below(path) => self.below.call(DiskOp::Open { path, file }),
                Meaning::Here(content) => {
                    let bytes = content.len() as u64;
                    self.files.insert(file, content);
                    Ok(DiskOk::Opened { bytes })
                }
            },
            DiskOp::Read { file, at, bytes } => match self.files.get(&file) {
                None => self.below.call(DiskOp::Read { file, at, bytes }),
                Some(content) => {
                    let from = usize::try_from(at).unwrap_or(usize::MAX).min(content.len());
                    let to = from.saturating_add(bytes).min(content.len());
                    Ok(DiskOk::Bytes(content[from..to].to_vec()))
                }
            },
            DiskOp::Close { file } => match self.files.remove(&file) {
                None => self.below.call(DiskOp::Close { file }),
                Some(_) => Ok(DiskOk::Done),
            },
            DiskOp::Load { path, bytes_max } => match self.meaning(&path) {
                Meaning::Gone => Err(DiskError::NotFound),
                Meaning::Below(path) => self.below.call(DiskOp::Load { path, bytes_max }),
                Meaning::Here(content) if content.len() > bytes_max => {
                    Err(DiskError::TooLarge { bytes: content.len() as u64 })
                }
                Meaning::Here(content) => Ok(DiskOk::Bytes(content)),
            },
            DiskOp::List { path } => self.list(&path),
            DiskOp::Replace { path, bytes } => {
                self.steps.push(Step::Replace(path.clone(), bytes.len()));
                self.names.insert(path, Meaning::Here(bytes));
                Ok(DiskOk::Done)
            }
            DiskOp::Rename { from, to } => {
                if !self.exists(&from)? {
                    return Err(DiskError::NotFound);
                }
                if self.exists(&to)? {
                    return Err(DiskError::Exists);
                }
                let meaning = self.meaning(&from);
                self.steps.push(Step::Move(from.clone(), to.clone()));
                // What is known below a folder goes with it.
                let inside = format!("{from}/");
                let below: Vec<FilePath> = self.names.keys().filter(|it| it.0.starts_with(&inside)).cloned().collect();
                for name in below {
                    if let Some(meaning) = self.names.remove(&name) {
                        self.names.insert(FilePath(format!("{to}/{}", &name.0[inside.len()..])), meaning);
                    }
                }
                self.names.insert(from, Meaning::Gone);
                self.names.insert(to, meaning);
                Ok(DiskOk::Done)
            }
            DiskOp::Remove { path } => {
                if !self.exists(&path)? {
                    return Err(DiskError::NotFound);
                }
                self.steps.push(Step::Remove(path.clone()));
                self.names.insert(path, Meaning::Gone);
                Ok(DiskOk::Done)
            }
            DiskOp::Create { .. }
            | DiskOp::Extend { .. }
            | DiskOp::Write { .. }
            | DiskOp::Sync { .. }
            | DiskOp::SyncAfter { .. } => Err(DiskError::Io { errno: libc::EROFS }),
        }
    }

    fn list(&mut self, path: &FilePath) -> Result<DiskOk, DiskError> {
        let mut found: BTreeMap<String, Listed> = BTreeMap::new();
        if let Meaning::Below(was) = self.meaning(path)
            && let DiskOk::Listed(list) = self.below.call(DiskOp::List { path: was })?
        {
            found.extend(list.into_iter().map(|it| (it.name.clone(), it)));
        }
        let inside = format!("{path}/");
        let changed: Vec<(String, Meaning)> = self
            .names
            .iter()
            .filter_map(|(name, meaning)| Some((name.0.strip_prefix(&inside)?.to_string(), meaning.clone())))
            .filter(|(name, _)| !name.contains('/'))
            .collect();
        for (name, meaning) in changed {
            let listed = match meaning {
                Meaning::Gone => {
                    found.remove(&name);
                    continue;
                }
                Meaning::Here(content) => Listed { name: name.clone(), bytes: content.len() as u64, is_folder: false },
                Meaning::Below(was) => {
                    let (folder, last) = was.0.rsplit_once('/').unwrap_or(("", &was.0));
                    let list = self.below.call(DiskOp::List { path: FilePath(folder.to_string()) })?;
                    let DiskOk::Listed(list) = list else { continue };
                    let Some(it) = list.into_iter().find(|it| it.name == last) else { continue };
                    Listed { name: name.clone(), ..it }
                }
            };
            found.insert(name, listed);
        }
        Ok(DiskOk::Listed(found.into_values().collect()))
    }
}

impl Disk for DryRunDisk {
    fn submit(&mut self, request: DiskRequest) {
        self.requests.push_back(request);
    }

    fn wait(&mut self) -> Option<DiskDone> {
        let DiskRequest { ticket, op, .. } = self.requests.pop_front()?;
        Some(DiskDone { ticket, result: self.perform(op) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline_disk::Access;
    use std::fs;

    fn path(text: &str) -> FilePath {
        FilePath(text.to_string())
    }

    fn names(disk: &mut DryRunDisk, at: &str) -> Vec<String> {
        match disk.call(DiskOp::List { path: path(at) }) {
            Ok(DiskOk::Listed(list)) => list.into_iter().map(|it| it.name).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_done_is_seen_and_nothing_was_done() {
        let root = std::env::temp_dir().join(format!("felix-dry-run-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("a")).unwrap();
        fs::write(root.join("a/f"), b"old").unwrap();
        fs::write(root.join("a/g"), b"other").unwrap();
        fs::write(root.join("a/h"), b"third").unwrap();
        let mut disk = DryRunDisk::new(OfflineDisk::new(&root, Access::ReadOnly));
        let load = |disk: &mut DryRunDisk, at: &str| disk.call(DiskOp::Load { path: path(at), bytes_max: 100 });
        let bytes = |text: &[u8]| Ok(DiskOk::Bytes(text.to_vec()));
        disk.call(DiskOp::Replace { path: path("a/f"), bytes: b"new".to_vec() }).unwrap();
        assert_eq!(load(&mut disk, "a/f"), bytes(b"new"));
        let rename = |from: &str, to: &str| DiskOp::Rename { from: path(from), to: path(to) };
        assert_eq!(disk.call(rename("a/g", "a/f")), Err(DiskError::Exists));
        assert_eq!(disk.call(rename("a/x", "a/y")), Err(DiskError::NotFound));
        disk.call(rename("a/g", "q/g")).unwrap();
        assert_eq!(
            (names(&mut disk, "a"), names(&mut disk, "q")),
            (vec!["f".to_string(), "h".to_string()], vec!["g".to_string()])
        );
        assert_eq!(load(&mut disk, "a/g"), Err(DiskError::NotFound));
        assert_eq!(load(&mut disk, "q/g"), bytes(b"other"));
        disk.call(DiskOp::Open { path: path("q/g"), file: FileKey(1) }).unwrap();
        assert_eq!(disk.call(DiskOp::Read { file: FileKey(1), at: 0, bytes: 4_096 }), bytes(b"other"));
        disk.call(rename("a", "b")).unwrap();
        assert_eq!(load(&mut disk, "b/g"), Err(DiskError::NotFound), "it was moved before");
        assert_eq!((load(&mut disk, "b/f"), load(&mut disk, "a/f")), (bytes(b"new"), Err(DiskError::NotFound)));
        assert_eq!(load(&mut disk, "b/h"), bytes(b"third"), "what lies below a moved folder");
        disk.call(DiskOp::Remove { path: path("q/g") }).unwrap();
        assert_eq!(names(&mut disk, "q"), Vec::<String>::new());
        let write = DiskOp::Create { path: path("n"), file: FileKey(2), bytes: 4_096, zeroed: true };
        assert_eq!(disk.call(write), Err(DiskError::Io { errno: libc::EROFS }));
        assert_eq!(disk.steps.len(), 4);
        assert_eq!(fs::read(root.join("a/f")).unwrap(), b"old");
        assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
        fs::remove_dir_all(root).unwrap();
    }
}
