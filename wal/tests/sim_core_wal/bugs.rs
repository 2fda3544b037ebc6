//! Mistakes, made on purpose between the WAL and its disk, that the simulation must find.

use std::collections::VecDeque;

use felix_wal::disk::{BLOCK_BYTES, Disk, DiskDone, DiskOk, DiskOp, DiskRequest, FilePath, Ticket};
use felix_wal::format::entry::Lsn;
use felix_wal::format::group::{GROUP_HEADER_BYTES, GroupHeader, GroupSeed, GroupSequence};
use felix_wal::format::header::HEADER_BYTES;
use felix_wal::mem_disk::{Chance, MemDisk};

use crate::world::SALT;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    None,
    /// A sync is answered and never done.
    AckBeforeSync,
    /// The last write before a sync reaches the disk after it.
    SyncMissesLastWrite,
    /// Every group write also rewrites the block in front of it.
    RewriteAckedBlock,
    /// A group is submitted before the write of the one before has completed.
    GroupOvertakes,
    /// Stale groups of a reused file pass for current ones.
    IgnoreGeneration,
    /// A checksum that does not fit is believed.
    IgnoreCrc,
    /// What is damaged is cut like a torn end.
    DamageAsTorn,
    /// A failed sync is tried again.
    RetryFailedSync,
    /// Entries are said to be flushed that are not.
    RecycleTooEarly,
    /// Originals are let go before their copies are durable.
    CopyNotDurable,
}

/// The disk with a mistake in front.
pub struct Proxy {
    pub disk: MemDisk,
    bug: Bug,
    faked: VecDeque<DiskDone>,
    /// A write that is kept back, and tickets whose completions nobody waits for.
    kept: Option<DiskRequest>,
    silent: Vec<Ticket>,
    syncs: Vec<DiskRequest>,
    /// Completions that come behind that of a write.
    after: Vec<(Ticket, DiskDone)>,
    next: u64,
    before: Vec<(u64, u64, Vec<u8>)>,
}

fn is_group_write(op: &DiskOp) -> bool {
    matches!(op, DiskOp::Write { at, .. } if *at >= HEADER_BYTES as u64)
}

impl Proxy {
    pub fn new(disk: MemDisk, bug: Bug) -> Proxy {
        Proxy {
            disk,
            bug,
            faked: VecDeque::new(),
            kept: None,
            silent: Vec::new(),
            syncs: Vec::new(),
            after: Vec::new(),
            next: 1 << 60,
            before: Vec::new(),
        }
    }

    pub fn under_way(&self) -> usize {
        self.disk.under_way() + self.faked.len()
    }

    /// What is left on the disk if power fails now.
    pub fn crashed(&self, seed: u64) -> MemDisk {
        let mut disk = self.disk.clone();
        disk.reseed(seed);
        disk.crash();
        disk
    }

    /// Hands a request on under a ticket of our own; its completion is swallowed.
    fn silently(&mut self, request: DiskRequest) {
        self.next += 1;
        let ticket = Ticket(self.next);
        self.silent.push(ticket);
        self.disk.submit(DiskRequest { ticket, ..request });
    }

    fn fake(&mut self, request: &DiskRequest) {
        let result = match &request.op {
            DiskOp::Write { bytes, .. } => Ok(DiskOk::Written(bytes.clone())),
            _ => Ok(DiskOk::Done),
        };
        self.faked.push_back(DiskDone { ticket: request.ticket, result });
    }

    pub fn submit(&mut self, mut request: DiskRequest) {
        if let DiskOp::SyncAfter { file, write } = request.op
            && !self.disk.is_under_way(write)
        {
            // The write went elsewhere: an executor with this bug knows of nothing to wait for.
            request.op = DiskOp::Sync { file };
        }
        let is_sync = matches!(request.op, DiskOp::Sync { .. } | DiskOp::SyncAfter { .. });
        match self.bug {
            Bug::AckBeforeSync if is_sync => {
                if let DiskOp::SyncAfter { write, .. } = request.op {
                    self.after.push((write, DiskDone { ticket: request.ticket, result: Ok(DiskOk::Done) }));
                    return;
                }
                return self.fake(&request);
            }
            Bug::SyncMissesLastWrite if is_group_write(&request.op) => {
                self.fake(&request);
                if let Some(kept) = self.kept.replace(request) {
                    self.silently(kept);
                }
                return;
            }
            Bug::SyncMissesLastWrite if is_sync => {
                self.disk.submit(request);
                if let Some(kept) = self.kept.take() {
                    self.silently(kept);
                }
                return;
            }
            Bug::GroupOvertakes if is_group_write(&request.op) => {
                self.fake(&request);
                return self.silently(request);
            }
            Bug::RetryFailedSync if is_sync => {
                let op = match request.op {
                    DiskOp::SyncAfter { file, .. } => DiskOp::Sync { file },
                    _ => request.op.clone(),
                };
                self.syncs.push(DiskRequest { op, ..request.clone() });
            }
            Bug::RewriteAckedBlock => {
                if let DiskOp::Write { file, at, bytes } = &mut request.op {
                    let original = bytes.clone();
                    let start = *at;
                    if let Some((_, _, last)) =
                        self.before.iter().rev().find(|(key, end, _)| *key == file.0 && *end == start)
                    {
                        *bytes = [&last[..], &original[..]].concat();
                        *at -= BLOCK_BYTES as u64;
                    }
                    let end = start + original.len() as u64;
                    let last = original[original.len() - BLOCK_BYTES..].to_vec();
                    self.before.push((file.0, end, last));
                }
            }
            _ => {}
        }
        self.disk.submit(request);
    }

    pub fn wait(&mut self) -> Option<DiskDone> {
        loop {
            if let Some(done) = self.faked.pop_front() {
                return Some(done);
            }
            let done = self.disk.wait()?;
            if let Some(at) = self.after.iter().position(|(write, _)| *write == done.ticket) {
                let (_, sync) = self.after.remove(at);
                self.faked.push_back(sync);
            }
            if self.silent.contains(&done.ticket) {
                continue;
            }
            let synced = self.syncs.iter().position(|sync| sync.ticket == done.ticket);
            if let Some(at) = synced {
                let sync = self.syncs.remove(at);
                if done.result.is_err() {
                    self.disk.submit(sync);
                    continue;
                }
            }
            return Some(done);
        }
    }
}

fn wal_files(disk: &MemDisk) -> Vec<FilePath> {
    disk.paths().into_iter().filter(|path| path.0.ends_with(".wal")).collect()
}

fn seed() -> GroupSeed {
    GroupSeed::of(SALT)
}

/// Valid groups of a file: place and header.
pub fn groups(content: &[u8]) -> Vec<(usize, GroupHeader)> {
    let mut found = Vec::new();
    let mut at = HEADER_BYTES;
    while at < content.len() {
        match GroupHeader::decode(seed(), &content[at..]) {
            Ok(header) if header.payload(seed(), &content[at..]).is_ok() => {
                found.push((at, header));
                at += header.bytes();
            }
            _ => at += BLOCK_BYTES,
        }
    }
    found
}

fn rewrite(disk: &mut MemDisk, path: &FilePath, at: usize, header: &GroupHeader, content: &[u8]) {
    let mut buffer = content[at..at + GROUP_HEADER_BYTES + header.payload_bytes as usize].to_vec();
    header.finish(seed(), &mut buffer);
    disk.overwrite(path, at as u64, &buffer);
}

/// What a reader sees that does not look at generation and sequence: stale groups behind the last one continue it.
pub fn forget_generations(disk: &mut MemDisk) {
    let mut last: Option<(FilePath, usize, GroupHeader)> = None;
    for path in wal_files(disk) {
        for (at, header) in groups(&disk.content(&path).unwrap()) {
            if last.as_ref().is_none_or(|(_, _, other)| header.sequence > other.sequence) {
                last = Some((path.clone(), at, header));
            }
        }
    }
    let Some((path, last_at, mut last)) = last else { return };
    let content = disk.content(&path).unwrap();
    let mut end = last_at + last.bytes();
    for (at, stale) in groups(&content).into_iter().filter(|(at, _)| *at > last_at) {
        if at != end {
            return;
        }
        end = at + stale.bytes();
        let header = GroupHeader {
            generation: last.generation,
            sequence: GroupSequence(last.sequence.0 + 1),
            first_lsn: Lsn(last.first_lsn.0 + u64::from(last.entry_count)),
            synced_through: last.synced_through,
            first_needed: last.first_needed,
            ..stale
        };
        rewrite(disk, &path, at, &header, &content);
        last = header;
    }
}

fn any_group(disk: &MemDisk, chance: &mut Chance) -> Option<(FilePath, usize, GroupHeader)> {
    let all: Vec<_> = wal_files(disk)
        .into_iter()
        .flat_map(|path| {
            let content = disk.content(&path).unwrap();
            groups(&content).into_iter().map(move |(at, header)| (path.clone(), at, header))
        })
        .collect();
    (!all.is_empty()).then(|| all[chance.below(all.len() as u64) as usize].clone())
}

/// One bit of an entry's last byte flips.
pub fn damage(disk: &mut MemDisk, chance: &mut Chance) {
    let Some((path, at, header)) = any_group(disk, chance) else { return };
    let last = at + GROUP_HEADER_BYTES + header.payload_bytes as usize - 1;
    disk.flip_bit(&path, last as u64 * 8);
}

/// The same, seen by a reader that does not look at checksums.
pub fn damage_and_fit_checksum(disk: &mut MemDisk, chance: &mut Chance) {
    let Some((path, at, header)) = any_group(disk, chance) else { return };
    let last = at + GROUP_HEADER_BYTES + header.payload_bytes as usize - 1;
    disk.flip_bit(&path, last as u64 * 8);
    let content = disk.content(&path).unwrap();
    rewrite(disk, &path, at, &header, &content);
}
