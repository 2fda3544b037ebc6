//! **What**: what the lossy file system holds: now, and after a crash.
//!
//! **Invariants**: see `mod.rs`. Pages that were never written, and pages of zeros, take no memory.
//!
//! **Never**: a promise about what was not synced.
//!
//! **See**: `mod.rs`.

use super::Trouble;
use felix_wal::mem_disk::Chance;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

const PAGE: usize = 4_096;
const SECTOR: usize = 512;

/// The root folder.
pub const INO_ROOT: u64 = 1;

type Page = Arc<[u8; PAGE]>;
type Names = BTreeMap<(u64, OsString), u64>;

#[derive(Default)]
struct Data {
    pages: BTreeMap<u64, Page>,
    bytes: u64,
}

struct Node {
    is_folder: bool,
    /// A file of a write-ahead log: where trouble is.
    is_wal: bool,
    live: Data,
    durable: Data,
    /// Pages that differ, or may.
    dirty: BTreeSet<u64>,
}

/// A change of names.
enum Change {
    Add((u64, OsString), u64),
    Remove((u64, OsString)),
    Rename((u64, OsString), (u64, OsString)),
}

impl Change {
    fn touches(&self, folder: u64) -> bool {
        match self {
            Change::Add(name, _) | Change::Remove(name) => name.0 == folder,
            Change::Rename(from, to) => from.0 == folder || to.0 == folder,
        }
    }

    fn apply(&self, names: &mut Names) {
        match self {
            Change::Add(name, ino) => drop(names.insert(name.clone(), *ino)),
            Change::Remove(name) => drop(names.remove(name)),
            Change::Rename(from, to) => {
                if let Some(ino) = names.remove(from) {
                    names.insert(to.clone(), ino);
                }
            }
        }
    }
}

pub struct State {
    nodes: BTreeMap<u64, Node>,
    live: Names,
    durable: Names,
    journal: Vec<Change>,
    next: u64,
    chance: Chance,
    pub trouble: Option<Trouble>,
    pub syncs: u64,
}

fn node(is_folder: bool, is_wal: bool) -> Node {
    Node { is_folder, is_wal, live: Data::default(), durable: Data::default(), dirty: BTreeSet::new() }
}

impl State {
    pub fn new(seed: u64) -> State {
        State {
            nodes: BTreeMap::from([(INO_ROOT, node(true, false))]),
            live: Names::new(),
            durable: Names::new(),
            journal: Vec::new(),
            next: INO_ROOT,
            chance: Chance::new(seed),
            trouble: None,
            syncs: 0,
        }
    }

    /// Whether it is a folder, and its size.
    pub fn facts(&self, ino: u64) -> Option<(bool, u64)> {
        self.nodes.get(&ino).map(|node| (node.is_folder, node.live.bytes))
    }

    pub fn find(&self, parent: u64, name: &OsStr) -> Option<u64> {
        self.live.get(&(parent, name.to_owned())).copied()
    }

    pub fn list(&self, folder: u64) -> Vec<(u64, OsString)> {
        let inside = self.live.range((folder, OsString::new())..(folder + 1, OsString::new()));
        inside.map(|((_, name), ino)| (*ino, name.clone())).collect()
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.journal.push(change);
    }

    pub fn make(&mut self, parent: u64, name: &OsStr, is_folder: bool) -> Result<u64, i32> {
        if self.find(parent, name).is_some() {
            return Err(libc::EEXIST);
        }
        self.next += 1;
        let is_wal = name.to_string_lossy().ends_with(".wal");
        self.nodes.insert(self.next, node(is_folder, is_wal));
        self.change(Change::Add((parent, name.to_owned()), self.next));
        Ok(self.next)
    }

    pub fn remove(&mut self, parent: u64, name: &OsStr) -> Result<(), i32> {
        let ino = self.find(parent, name).ok_or(libc::ENOENT)?;
        if !self.list(ino).is_empty() {
            return Err(libc::ENOTEMPTY);
        }
        self.change(Change::Remove((parent, name.to_owned())));
        Ok(())
    }

    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), keeps: bool) -> Result<(), i32> {
        self.find(from.0, from.1).ok_or(libc::ENOENT)?;
        if keeps && self.find(to.0, to.1).is_some() {
            return Err(libc::EEXIST);
        }
        self.change(Change::Rename((from.0, from.1.to_owned()), (to.0, to.1.to_owned())));
        Ok(())
    }

    pub fn read(&self, ino: u64, at: u64, bytes: usize) -> Vec<u8> {
        let Some(node) = self.nodes.get(&ino) else { return Vec::new() };
        let end = node.live.bytes.min(at + bytes as u64);
        let mut out = vec![0; end.saturating_sub(at) as usize];
        let mut done = 0;
        while done < out.len() {
            let (page, inside) = place(at + done as u64);
            let length = (PAGE - inside).min(out.len() - done);
            if let Some(content) = node.live.pages.get(&page) {
                out[done..done + length].copy_from_slice(&content[inside..inside + length]);
            }
            done += length;
        }
        out
    }

    pub fn write(&mut self, ino: u64, at: u64, data: &[u8]) -> Result<(), i32> {
        let node = self.nodes.get_mut(&ino).ok_or(libc::ENOENT)?;
        // Of a group: a file that is made ready meanwhile, header and zeros, is another matter.
        let is_group = at >= PAGE as u64 && data.iter().any(|byte| *byte != 0);
        if node.is_wal && is_group && self.trouble == Some(Trouble::Write) {
            self.trouble = None;
            return Err(libc::EIO);
        }
        let mut done = 0;
        while done < data.len() {
            let (page, inside) = place(at + done as u64);
            let length = (PAGE - inside).min(data.len() - done);
            let piece = &data[done..done + length];
            node.dirty.insert(page);
            if piece.iter().all(|byte| *byte == 0) && (length == PAGE || !node.live.pages.contains_key(&page)) {
                node.live.pages.remove(&page);
            } else {
                let content = node.live.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
                Arc::make_mut(content)[inside..inside + length].copy_from_slice(piece);
            }
            done += length;
        }
        node.live.bytes = node.live.bytes.max(at + data.len() as u64);
        Ok(())
    }

    pub fn truncate(&mut self, ino: u64, bytes: u64) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        let gone: Vec<u64> = node.live.pages.range(bytes.div_ceil(PAGE as u64)..).map(|(page, _)| *page).collect();
        for page in gone {
            node.live.pages.remove(&page);
            node.dirty.insert(page);
        }
        let (page, inside) = place(bytes);
        if let Some(content) = node.live.pages.get_mut(&page) {
            Arc::make_mut(content)[inside..].fill(0);
            node.dirty.insert(page);
        }
        node.live.bytes = bytes;
    }

    /// What was written to the file is durable; its name is not.
    pub fn sync(&mut self, ino: u64) -> Result<(), i32> {
        let node = self.nodes.get_mut(&ino).ok_or(libc::ENOENT)?;
        self.syncs += 1;
        let has_group = node.dirty.iter().any(|page| *page > 0 && node.live.pages.contains_key(page));
        let fails = node.is_wal && has_group && self.trouble == Some(Trouble::Sync);
        for page in std::mem::take(&mut node.dirty) {
            // What a failed sync should have written is forgotten: the next one finds nothing to do.
            match node.live.pages.get(&page).filter(|_| !fails) {
                Some(content) => drop(node.durable.pages.insert(page, content.clone())),
                None if fails => {}
                None => drop(node.durable.pages.remove(&page)),
            }
        }
        if fails {
            self.trouble = None;
            return Err(libc::EIO);
        }
        node.durable.bytes = node.live.bytes;
        Ok(())
    }

    /// Changes of names up to the last one of this folder are durable.
    pub fn sync_folder(&mut self, folder: u64) {
        let count = self.journal.iter().rposition(|change| change.touches(folder)).map_or(0, |at| at + 1);
        self.journal.drain(..count).for_each(|change| change.apply(&mut self.durable));
    }

    pub fn crash(&mut self) {
        let kept = self.chance.below(self.journal.len() as u64 + 1) as usize;
        self.journal.drain(..).take(kept).for_each(|change| change.apply(&mut self.durable));
        self.live = self.durable.clone();
        let named: BTreeSet<u64> = self.live.values().copied().chain([INO_ROOT]).collect();
        self.nodes.retain(|ino, _| named.contains(ino));
        // Few survivors, many or all: equal odds for each sector alone would hardly ever show the extremes.
        let survives = [0, 100, 500, 900, 1_000][self.chance.below(5) as usize];
        for node in self.nodes.values_mut() {
            for page in std::mem::take(&mut node.dirty) {
                let zeros: Page = Arc::new([0; PAGE]);
                let mut content = node.durable.pages.get(&page).cloned().unwrap_or_else(|| zeros.clone());
                let new = node.live.pages.get(&page).unwrap_or(&zeros);
                for at in (0..PAGE).step_by(SECTOR) {
                    if self.chance.one_in_thousand(survives) {
                        Arc::make_mut(&mut content)[at..at + SECTOR].copy_from_slice(&new[at..at + SECTOR]);
                    }
                }
                node.durable.pages.insert(page, content);
            }
            if self.chance.one_in_thousand(survives) {
                node.durable.bytes = node.live.bytes;
            }
            let end = node.durable.bytes.div_ceil(PAGE as u64);
            node.durable.pages.retain(|page, _| *page < end);
            node.live = Data { pages: node.durable.pages.clone(), bytes: node.durable.bytes };
        }
    }
}

fn place(at: u64) -> (u64, usize) {
    (at / PAGE as u64, (at % PAGE as u64) as usize)
}
