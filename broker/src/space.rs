//! **What**: room on the file system of the data folder: how much is left, who is told, and a reserve for the start after
//! the disk ran full.
//!
//! ```text
//! statvfs, once per second -> metrics
//!                          -> log, once per crossing of 80, 90, 95 % used
//!                          -> cores: bytes each may still write, and whether quarantine is to be emptied (from 90 %)
//! DATA/reserve   64 MiB, or 1/16 of a small file system, of allocated blocks that hold nothing: removed when a start
//!                finds the disk full, made again when there is room
//! ```
//!
//! **Invariants**: publishers are refused while a part of the disk is still free (2 %, at most 64 MiB): metas, metadata and
//! what frees space need some. The reserve is not part of what is free. Levels fall only 1 % below where they rose.
//!
//! **Never**: a reserve that takes the room that publishers need: it is made only while four times as much is free.
//!
//! **See**: `felix_shard::store` (`set_room`, `set_space_is_short`), `control_thread.rs`, which looks; `boot.rs`.

use crate::io::sys;
use crate::metrics::Metrics;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use crate::io::sys::Space;

const RESERVE_BYTES_MAX: u64 = 64 << 20;
/// The reserve is at most this part of the file system.
const RESERVE_PART: u64 = 16;
/// The reserve is made while this many times its size is free.
const RESERVE_ROOM: u64 = 4;
/// Free bytes that publishers leave alone: one part in so many, and not more than `FLOOR_BYTES_MAX`.
const FLOOR_PART: u64 = 50;
const FLOOR_BYTES_MAX: u64 = 64 << 20;
/// With more than this per core nobody counts: no core writes as much between two looks.
const PLENTY_BYTES: u64 = 64 << 30;
/// Percent used at which something is said.
const LEVELS: [u64; 3] = [80, 90, 95];
/// Percent used from which quarantine is emptied at once.
const SHORT_PERCENT: u64 = 90;

impl Space {
    /// Percent that cannot be written, rounded down.
    pub fn used_percent(&self) -> u64 {
        let used = self.total.saturating_sub(self.available);
        (u128::from(used) * 100 / u128::from(self.total.max(1))) as u64
    }

    /// Bytes that one of `cores` cores may still write; `u64::MAX`: more than it can between two looks.
    pub fn room_per_core(&self, cores: u8) -> u64 {
        let floor = (self.total / FLOOR_PART).min(FLOOR_BYTES_MAX);
        let room = self.available.saturating_sub(floor) / u64::from(cores.max(1));
        if room > PLENTY_BYTES { u64::MAX } else { room }
    }

    /// Old files should go at once.
    pub fn is_short(&self) -> bool {
        self.used_percent() >= SHORT_PERCENT
    }
}

/// Says when a level of `LEVELS` is crossed, once per crossing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Levels {
    /// Levels that are passed.
    passed: usize,
}

/// A crossing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crossing {
    /// The disk is now this full or fuller, percent.
    Rose(u64),
    /// It is emptier than this again, percent.
    Fell(u64),
}

impl Levels {
    /// Takes a look; at most one crossing per look, the outermost.
    pub fn look(&mut self, percent: u64) -> Option<Crossing> {
        let up = LEVELS.iter().filter(|level| percent >= **level).count();
        // One percent of slack, so that a disk at the edge does not fill the log too.
        let down = LEVELS.iter().filter(|level| percent + 1 >= **level).count();
        if up > self.passed {
            self.passed = up;
            return Some(Crossing::Rose(LEVELS[up - 1]));
        }
        if down < self.passed {
            self.passed = down;
            return Some(Crossing::Fell(LEVELS[down]));
        }
        None
    }
}

/// Blocks kept for the start after a full disk.
#[derive(Clone, Debug)]
pub struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// The reserve of a data folder.
    pub fn new(data: &Path) -> Reserve {
        Reserve { path: data.join("reserve") }
    }

    /// Makes it if it is not there and there is room for it. True: it was made now.
    pub fn make(&self, space: Space) -> io::Result<bool> {
        let bytes = RESERVE_BYTES_MAX.min(space.total / RESERVE_PART);
        let there = fs::metadata(&self.path).map_or(0, |found| found.len());
        if bytes == 0 || there > 0 || space.available < bytes * RESERVE_ROOM {
            return Ok(false);
        }
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&self.path)?;
        if let Err(error) = sys::allocate(&file, bytes).and_then(|()| file.sync_all()) {
            drop(file);
            let _ = fs::remove_file(&self.path);
            return Err(error);
        }
        self.sync_folder()?;
        Ok(true)
    }

    /// Removes it. True: it was there.
    pub fn give_up(&self) -> io::Result<bool> {
        match fs::remove_file(&self.path) {
            Ok(()) => self.sync_folder().map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Some file systems give blocks back only once the removal is on disk.
    fn sync_folder(&self) -> io::Result<()> {
        File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
    }
}

/// What the control thread looks with.
pub struct SpaceKeeper {
    data: PathBuf,
    cores: u8,
    metrics: Arc<Metrics>,
    levels: Levels,
    reserve: Reserve,
    told: Option<(u64, bool)>,
    complained: bool,
}

impl SpaceKeeper {
    /// Looks at the file system of `data` for `cores` cores.
    pub fn new(data: &Path, cores: u8, metrics: Arc<Metrics>) -> SpaceKeeper {
        SpaceKeeper {
            data: data.to_path_buf(),
            cores,
            metrics,
            levels: Levels::default(),
            reserve: Reserve::new(data),
            told: None,
            complained: false,
        }
    }

    /// Looks; what the cores must be told if it changed: bytes that each may still write, and whether space is short.
    pub fn look(&mut self) -> Option<(u64, bool)> {
        let space = match sys::space(&self.data) {
            Ok(space) => space,
            Err(error) => {
                self.complain("the room on the disk cannot be read", &error);
                return None;
            }
        };
        self.metrics.disk_total_bytes.set(space.total);
        self.metrics.disk_available_bytes.set(space.available);
        match self.levels.look(space.used_percent()) {
            Some(Crossing::Rose(percent)) => {
                let facts = [("percent", &*percent.to_string()), ("available_bytes", &*space.available.to_string())];
                let say = if percent >= SHORT_PERCENT { crate::log::error } else { crate::log::warn };
                say(
                    "the disk fills up: publishers of durable streams are refused before it is full; free some space",
                    &facts,
                );
            }
            Some(Crossing::Fell(percent)) => {
                let facts = [("percent", &*percent.to_string()), ("available_bytes", &*space.available.to_string())];
                crate::log::info("the disk is emptier again", &facts);
            }
            None => {}
        }
        if let Err(error) = self.reserve.make(space) {
            self.complain("no reserve could be made for a start with a full disk", &error);
        }
        let now = (space.room_per_core(self.cores), space.is_short());
        (self.told.replace(now) != Some(now)).then_some(now)
    }

    /// Said once: a file system that cannot do it never will.
    fn complain(&mut self, what: &str, error: &io::Error) {
        if !self.complained {
            self.complained = true;
            crate::log::warn(what, &[("why", &error.to_string())]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_folder::files::tests::folder;

    const MIB: u64 = 1 << 20;

    #[test]
    fn levels_are_told_once_per_crossing() {
        let mut levels = Levels::default();
        let said: Vec<_> = [10, 79, 80, 80, 79, 80, 95, 94, 89, 88, 92, 20]
            .into_iter()
            .filter_map(|percent| levels.look(percent).map(|crossing| (percent, crossing)))
            .collect();
        let expected = [
            (80, Crossing::Rose(80)),
            (95, Crossing::Rose(95)),
            (89, Crossing::Fell(95)),
            (88, Crossing::Fell(90)),
            (92, Crossing::Rose(90)),
            (20, Crossing::Fell(80)),
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn publishers_leave_a_part_of_the_disk() {
        let space = |total, available| Space { total, available };
        assert_eq!(space(1_000 * MIB, 20 * MIB).room_per_core(1), 0);
        assert_eq!(space(1_000 * MIB, 100 * MIB).room_per_core(4), 20 * MIB);
        // A large disk keeps 64 MiB, not 2 %.
        assert_eq!(space(1_000_000 * MIB, 164 * MIB).room_per_core(2), 50 * MIB);
        assert_eq!(space(1_000_000 * MIB, 500_000 * MIB).room_per_core(2), u64::MAX);
        assert_eq!(space(0, 0).room_per_core(1), 0);
        assert!(space(100, 10).is_short() && !space(100, 11).is_short());
    }

    #[test]
    fn the_reserve_has_blocks_and_is_made_only_with_room() {
        use std::os::unix::fs::MetadataExt;
        let folder = folder("reserve");
        let reserve = Reserve::new(&folder);
        let total = 64 * MIB;
        assert!(!reserve.make(Space { total, available: 15 * MIB }).unwrap(), "too little room");
        assert!(reserve.make(Space { total, available: 16 * MIB }).unwrap());
        let found = fs::metadata(folder.join("reserve")).unwrap();
        assert_eq!(found.len(), 4 * MIB);
        assert!(found.blocks() * 512 >= 4 * MIB, "it holds no blocks");
        assert!(!reserve.make(Space { total, available: total }).unwrap(), "made twice");
        assert!(reserve.give_up().unwrap());
        assert!(!reserve.give_up().unwrap());
        fs::remove_dir_all(folder).unwrap();
    }
}
