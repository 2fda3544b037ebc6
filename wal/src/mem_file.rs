//! **What**: one file of `mem_disk.rs`: what it holds now, what of that is durable, and what is in between.
//!
//! **Invariants**: `live` is what reads see; `durable` is what surely survives; every write between them is kept with its
//! number until a sync that covers it, since a crash may leave any of them.
//!
//! **Never**: a promise about an unsynced block.
//!
//! **See**: `mem_disk.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::disk::BLOCK_BYTES;
use crate::mem_disk::Chance;

type Block = Arc<[u8; BLOCK_BYTES]>;

const SECTOR_BYTES: usize = 512;

/// A file.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemFile {
    live: BTreeMap<u64, Block>,
    durable: BTreeMap<u64, Block>,
    /// Unsynced versions of blocks, oldest first, with the number of the write.
    unsynced: BTreeMap<u64, Vec<(u64, Block)>>,
    live_bytes: u64,
    durable_bytes: u64,
    unsynced_bytes: Vec<(u64, u64)>,
    /// Blocks that fail when read.
    pub(crate) unreadable: BTreeSet<u64>,
}

/// How many versions of a block are older than, or the same as, the newest that a sync covers.
fn covered(versions: &[(u64, Block)], covers: u64, own: Option<u64>) -> usize {
    versions.iter().rposition(|(number, _)| *number <= covers || Some(*number) == own).map_or(0, |at| at + 1)
}

fn zeros() -> Block {
    Arc::new([0; BLOCK_BYTES])
}

impl MemFile {
    /// Zeros, durable.
    pub(crate) fn new(bytes: u64) -> MemFile {
        MemFile { live_bytes: bytes, durable_bytes: bytes, ..MemFile::default() }
    }

    /// Content, durable.
    pub(crate) fn with_content(bytes: &[u8]) -> MemFile {
        let mut file = MemFile::new(bytes.len() as u64);
        for (index, piece) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let mut block = [0; BLOCK_BYTES];
            block[..piece.len()].copy_from_slice(piece);
            file.live.insert(index as u64, Arc::new(block));
        }
        file.durable = file.live.clone();
        file
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.live_bytes
    }

    pub(crate) fn content(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.live_bytes as usize);
        for block in 0..self.live_bytes.div_ceil(BLOCK_BYTES as u64) {
            match self.live.get(&block) {
                Some(content) => out.extend_from_slice(&content[..]),
                None => out.resize(out.len() + BLOCK_BYTES, 0),
            }
        }
        out.truncate(self.live_bytes as usize);
        out
    }

    /// None: a block in the range is unreadable.
    pub(crate) fn read(&self, at: u64, bytes: usize) -> Option<Vec<u8>> {
        let end = self.live_bytes.min(at.saturating_add(bytes as u64));
        let mut out = Vec::new();
        let mut block = at / BLOCK_BYTES as u64;
        while block * (BLOCK_BYTES as u64) < end {
            if self.unreadable.contains(&block) {
                return None;
            }
            match self.live.get(&block) {
                Some(content) => out.extend_from_slice(&content[..]),
                None => out.resize(out.len() + BLOCK_BYTES, 0),
            }
            block += 1;
        }
        out.truncate(end.saturating_sub(at) as usize);
        Some(out)
    }

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8], number: u64) {
        for (index, piece) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let block = at / BLOCK_BYTES as u64 + index as u64;
            let mut content = [0; BLOCK_BYTES];
            content.copy_from_slice(piece);
            let content: Block = Arc::new(content);
            self.live.insert(block, content.clone());
            self.unsynced.entry(block).or_default().push((number, content));
            // Disks heal an unreadable block when it is written.
            self.unreadable.remove(&block);
        }
    }

    pub(crate) fn extend(&mut self, bytes: u64, number: u64) {
        self.live_bytes = bytes;
        self.unsynced_bytes.push((number, bytes));
    }

    /// Writes up to number `covers` become durable, and that of number `own`.
    pub(crate) fn sync(&mut self, covers: u64, own: Option<u64>) {
        for (block, versions) in &mut self.unsynced {
            let count = covered(versions, covers, own);
            if let Some((_, content)) = versions.drain(..count).next_back() {
                self.durable.insert(*block, content);
            }
        }
        self.unsynced.retain(|_, versions| !versions.is_empty());
        let count = self.unsynced_bytes.iter().take_while(|(number, _)| *number <= covers).count();
        if let Some((_, bytes)) = self.unsynced_bytes.drain(..count).next_back() {
            self.durable_bytes = bytes;
        }
    }

    /// A failed sync: what it covered is durable by chance, and nobody will try again.
    pub(crate) fn sync_failed(&mut self, covers: u64, own: Option<u64>, chance: &mut Chance) {
        for (block, versions) in &mut self.unsynced {
            let count = covered(versions, covers, own);
            if let Some((_, content)) = versions.drain(..count).next_back()
                && chance.coin()
            {
                self.durable.insert(*block, content);
            }
        }
        self.unsynced.retain(|_, versions| !versions.is_empty());
    }

    /// What is on the disk after power failed: of every unsynced block the durable or any later version.
    pub(crate) fn crash(&mut self, chance: &mut Chance, survives_per_mille: u64, tears_sectors: bool) {
        for (block, versions) in std::mem::take(&mut self.unsynced) {
            if !chance.one_in_thousand(survives_per_mille) {
                continue;
            }
            let (_, new) = &versions[chance.below(versions.len() as u64) as usize];
            let mut content = new.clone();
            if tears_sectors && chance.coin() {
                let old = self.durable.get(&block).cloned().unwrap_or_else(zeros);
                let mut mix = **new;
                for at in (0..BLOCK_BYTES).step_by(SECTOR_BYTES) {
                    if chance.coin() {
                        mix[at..at + SECTOR_BYTES].copy_from_slice(&old[at..at + SECTOR_BYTES]);
                    }
                }
                content = Arc::new(mix);
            }
            self.durable.insert(block, content);
        }
        for (_, bytes) in std::mem::take(&mut self.unsynced_bytes) {
            if chance.one_in_thousand(survives_per_mille) {
                self.durable_bytes = bytes;
            }
        }
        let blocks = self.durable_bytes.div_ceil(BLOCK_BYTES as u64);
        self.durable.retain(|block, _| *block < blocks);
        self.live = self.durable.clone();
        self.live_bytes = self.durable_bytes;
    }

    pub(crate) fn flip_bit(&mut self, bit: u64) -> bool {
        let at = bit / 8;
        let Some(byte) = self.read(at - at % BLOCK_BYTES as u64, BLOCK_BYTES) else { return false };
        let Some(byte) = byte.get((at % BLOCK_BYTES as u64) as usize) else { return false };
        self.overwrite(at, &[byte ^ 1 << (bit % 8)])
    }

    pub(crate) fn overwrite(&mut self, at: u64, bytes: &[u8]) -> bool {
        if at.checked_add(bytes.len() as u64).is_none_or(|end| end > self.live_bytes) {
            return false;
        }
        for map in [&mut self.live, &mut self.durable] {
            let (mut at, mut rest) = (at, bytes);
            while !rest.is_empty() {
                let from = (at % BLOCK_BYTES as u64) as usize;
                let (piece, behind) = rest.split_at(rest.len().min(BLOCK_BYTES - from));
                let block = map.entry(at / BLOCK_BYTES as u64).or_insert_with(zeros);
                Arc::make_mut(block)[from..from + piece.len()].copy_from_slice(piece);
                at += piece.len() as u64;
                rest = behind;
            }
        }
        true
    }

    pub(crate) fn cut(&mut self, bytes: u64) {
        self.live_bytes = bytes.min(self.live_bytes);
        self.durable_bytes = bytes.min(self.durable_bytes);
        self.unsynced_bytes.clear();
        let blocks = self.live_bytes.div_ceil(BLOCK_BYTES as u64);
        for map in [&mut self.live, &mut self.durable] {
            map.retain(|block, _| *block < blocks);
        }
        self.unsynced.retain(|block, _| *block < blocks);
    }
}
