//! **What**: the verdict on a scanned WAL: which groups count, which are missing though they were durable, how it ends; and
//! which entries count for their shard.
//!
//! **Invariants**: `synced` is the greatest group that any valid group or seal states as durable. Everything from
//! `needed_from` to it must be there; what is not is damage. Behind it, groups count up to the first hole.
//!
//! **Never**: an end that is called whole without a seal.
//!
//! **See**: `recover.rs`, which scans and replays.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use felix_protocol::ids::ShardId;

use crate::format::entry::{ENTRY_PREFIX_BYTES, Entry, EntryBody, Lsn};
use crate::format::group::{GROUP_HEADER_BYTES, GroupHeader, GroupSeed, GroupSequence};
use crate::format::names::WalId;

/// Bad places of a WAL that are remembered one by one.
const BAD_SPOTS_MAX: usize = 4_096;
/// Shards that are named for one bad group.
const SUSPECTS_MAX: usize = 1_024;

/// A place in a file of a WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// File.
    pub number: u32,
    /// Byte.
    pub at: u64,
}

/// Shards that a bad group may have been about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects {
    /// As far as the entries could be followed.
    pub shards: BTreeSet<ShardId>,
    /// There may be others: any shard of the WAL.
    pub more: bool,
}

impl Suspects {
    fn unknown() -> Suspects {
        Suspects { shards: BTreeSet::new(), more: true }
    }

    /// Follows the lengths of the entries of a group whose header is good and whose rest is not. Only if the checksum of all
    /// prefixes fits is the list complete; else it is a hint.
    pub(crate) fn of(header: &GroupHeader, group: &[u8]) -> Suspects {
        let mut suspects = Suspects::unknown();
        let payload_end = GROUP_HEADER_BYTES + header.payload_bytes as usize;
        let Some(mut rest) = group.get(GROUP_HEADER_BYTES..payload_end) else { return suspects };
        let mut index_crc = 0;
        for _ in 0..header.entry_count {
            let Some(prefix) = rest.first_chunk::<ENTRY_PREFIX_BYTES>() else { return suspects };
            let bytes = u32::from_le_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]) as usize;
            let shard = u64::from_le_bytes(*prefix.last_chunk().expect("it has eight bytes"));
            if bytes < prefix.len() || bytes > rest.len() || suspects.shards.len() == SUSPECTS_MAX {
                return suspects;
            }
            if shard != 0 {
                suspects.shards.insert(ShardId(shard));
            }
            index_crc = crc32c::crc32c_append(index_crc, prefix);
            rest = &rest[bytes..];
        }
        suspects.more = !rest.is_empty() || index_crc != header.index_crc;
        suspects
    }
}

/// Something that looks like a group and is none.
#[derive(Clone, Debug)]
pub(crate) struct BadSpot {
    pub(crate) place: Place,
    /// If its header is good: which group.
    pub(crate) group: Option<(GroupSequence, Suspects)>,
}

/// What the last entry of a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sealing {
    None,
    Idle,
    Clean,
}

/// Valid groups that follow each other in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) number: u32,
    pub(crate) at: u64,
    pub(crate) end: u64,
    generation: u32,
    first: GroupSequence,
    last: GroupSequence,
    first_lsn: Lsn,
    next_lsn: Lsn,
    first_needed: GroupSequence,
    sealing: Sealing,
}

impl Run {
    pub(crate) fn of(header: &GroupHeader, at: u64, sealing: Sealing) -> Run {
        Run {
            number: header.number,
            at,
            end: at + header.bytes() as u64,
            generation: header.generation,
            first: header.sequence,
            last: header.sequence,
            first_lsn: header.first_lsn,
            next_lsn: Lsn(header.first_lsn.0 + u64::from(header.entry_count)),
            first_needed: header.first_needed,
            sealing,
        }
    }

    fn start_place(&self) -> Place {
        Place { number: self.number, at: self.at }
    }

    fn end_place(&self) -> Place {
        Place { number: self.number, at: self.end }
    }
}

/// What an entry says about other entries of its shard.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Note {
    Flushed(Lsn),
    Superseded(Lsn),
    Rehomed { incarnation: u64, from: Lsn },
}

/// Notes that are kept before those that surely count are given to the resolver.
const NOTES_KEPT: usize = 4_096;

/// What scanning a WAL gathers.
#[derive(Debug)]
pub(crate) struct WalScan {
    pub(crate) wal: WalId,
    /// Number and size.
    pub(crate) files: Vec<(u32, u64)>,
    pub(crate) found_seed: Option<GroupSeed>,
    pub(crate) seed: GroupSeed,
    pub(crate) bad_headers: u32,
    pub(crate) blank_headers: u32,
    /// There is something, and no header to read it with.
    pub(crate) has_noise: bool,
    pub(crate) runs: Vec<Run>,
    pub(crate) synced: GroupSequence,
    notes: Vec<(GroupSequence, ShardId, Note)>,
    bad: Vec<BadSpot>,
    bad_more: bool,
}

impl WalScan {
    pub(crate) fn new(wal: WalId, files: Vec<(u32, u64)>) -> WalScan {
        WalScan {
            wal,
            files,
            found_seed: None,
            seed: GroupSeed::default(),
            bad_headers: 0,
            blank_headers: 0,
            has_noise: false,
            runs: Vec::new(),
            synced: GroupSequence(0),
            notes: Vec::new(),
            bad: Vec::new(),
            bad_more: false,
        }
    }

    pub(crate) fn add_group(&mut self, group: Run) {
        match self.runs.last_mut() {
            Some(run)
                if run.number == group.number
                    && run.end == group.at
                    && run.generation == group.generation
                    && run.next_lsn == group.first_lsn
                    && run.last.0.checked_add(1) == Some(group.first.0) =>
            {
                *run = Run { at: run.at, first: run.first, first_lsn: run.first_lsn, ..group };
            }
            _ => self.runs.push(group),
        }
    }

    /// A note counts if its group does, which is known at the end, or once a later group states that it is durable.
    pub(crate) fn add_note(&mut self, group: GroupSequence, shard: ShardId, note: Note, resolver: &mut Resolver) {
        self.notes.push((group, shard, note));
        if self.notes.len().is_multiple_of(NOTES_KEPT) {
            self.resolve_notes(self.synced, resolver);
        }
    }

    fn resolve_notes(&mut self, end: GroupSequence, resolver: &mut Resolver) {
        let wal = self.wal;
        self.notes.retain(|(group, shard, note)| {
            if *group > end {
                return true;
            }
            match note {
                Note::Flushed(through) => resolver.flushed(wal, *shard, *through),
                Note::Superseded(through) => resolver.superseded(wal, *shard, *through),
                Note::Rehomed { incarnation, from } => resolver.rehomed(wal, *shard, *incarnation, *from),
            }
            false
        });
    }

    pub(crate) fn add_bad(&mut self, spot: BadSpot) {
        if self.bad.len() < BAD_SPOTS_MAX {
            self.bad.push(spot);
        } else {
            self.bad_more = true;
        }
    }
}

/// How a WAL ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalEnd {
    /// It was never used.
    Empty,
    /// Shut down, sealed, nothing follows.
    Clean,
    /// Sealed while it was idle; nothing is to be seen behind the seal.
    Sealed,
    /// Not sealed; nothing is to be seen behind the last group. A group that nobody was told about may be gone.
    Unsealed,
    /// Behind the last group that counts something is bad or out of reach: a write that was not synced, or damage to the very
    /// last groups. Nothing on disk can tell the two apart.
    TornOrDamaged {
        /// The first group that does not count.
        sequence: GroupSequence,
        /// Where it should be.
        place: Option<Place>,
        /// Valid groups behind it, which do not count either.
        dropped: u64,
    },
}

/// Groups that were durable and are not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// First one.
    pub from: GroupSequence,
    /// Last one.
    pub to: GroupSequence,
    /// Entries that were in them, as far as the neighbours tell: from this one
    pub first_lsn: Option<Lsn>,
    /// to the one before this.
    pub next_lsn: Option<Lsn>,
    /// End of the last good group before.
    pub after: Option<Place>,
    /// Start of the first good group behind.
    pub before: Option<Place>,
    /// Shards they may have been about.
    pub suspects: Suspects,
}

/// The verdict on one WAL. All WALs found are of earlier starts: each is retired once what counts in it is elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalReport {
    /// Which.
    pub wal: WalId,
    /// Its files: number and bytes.
    pub files: Vec<(u32, u64)>,
    /// First group that is still needed.
    pub needed_from: GroupSequence,
    /// Groups up to it were stated to be durable.
    pub synced: GroupSequence,
    /// Last group that counts; 0: none.
    pub end_sequence: GroupSequence,
    /// How it ends.
    pub end: WalEnd,
    /// What is missing.
    pub damage: Vec<Damage>,
    /// Files whose header block is bad.
    pub bad_headers: u32,
    /// No file has a readable header, so that nothing can be read though something was there.
    pub unreadable: bool,
}

impl WalReport {
    /// Durable data is missing: the WAL must be kept, and its shards must not be served as if they were whole.
    pub fn is_damaged(&self) -> bool {
        !self.damage.is_empty() || self.unreadable
    }
}

/// Up to where entries of a shard in a WAL count no longer.
#[derive(Clone, Copy, Debug, Default)]
struct Passed {
    /// They are in segments and meta.
    flushed: Lsn,
    /// All that matter of them were copied forward.
    superseded: Lsn,
}

/// Which entries count.
///
/// ```text
/// an entry:           lsn > flushed, lsn > superseded
/// a copy, in addition: original <= superseded (else the original counts), or the original is lost to damage
/// ```
#[derive(Debug, Default)]
pub(crate) struct Resolver {
    passed: HashMap<(WalId, ShardId), Passed>,
    homes: HashMap<ShardId, (u64, WalId, Lsn)>,
    /// Entries that are missing, by WAL: first and one past the last.
    lost: BTreeMap<WalId, Vec<(Lsn, Lsn)>>,
}

impl Resolver {
    fn flushed(&mut self, wal: WalId, shard: ShardId, through: Lsn) {
        let passed = self.passed.entry((wal, shard)).or_default();
        passed.flushed = passed.flushed.max(through);
    }

    fn superseded(&mut self, wal: WalId, shard: ShardId, through: Lsn) {
        let passed = self.passed.entry((wal, shard)).or_default();
        passed.superseded = passed.superseded.max(through);
    }

    fn rehomed(&mut self, wal: WalId, shard: ShardId, incarnation: u64, from: Lsn) {
        let home = self.homes.entry(shard).or_insert((incarnation, wal, from));
        if (incarnation, wal, from) > *home {
            *home = (incarnation, wal, from);
        }
    }

    pub(crate) fn counts(&self, wal: WalId, lsn: Lsn, entry: &Entry<'_>) -> bool {
        if matches!(entry.body, EntryBody::FlushedTo { .. } | EntryBody::Rehome { .. } | EntryBody::Seal { .. }) {
            return false;
        }
        if self.homes.get(&entry.shard).is_some_and(|(_, home, from)| *home != wal || lsn < *from) {
            return false;
        }
        let passed = self.passed.get(&(wal, entry.shard)).copied().unwrap_or_default();
        if lsn <= passed.flushed || lsn <= passed.superseded {
            return false;
        }
        let Some(original) = entry.copied_from else { return true };
        let is_lost =
            || self.lost.get(&wal).is_some_and(|list| list.iter().any(|(from, to)| (*from..*to).contains(&original)));
        original <= passed.superseded || (original > passed.flushed && is_lost())
    }
}

/// Judges a scanned WAL; leaves in `runs` what is to be replayed, in order.
pub(crate) fn judge(scan: &mut WalScan, resolver: &mut Resolver) -> WalReport {
    scan.runs.sort_by_key(|run| (run.first, run.at));
    let mut end = scan.synced;
    for run in &scan.runs {
        if run.first.0 <= end.0.saturating_add(1) && run.last > end {
            end = run.last;
        }
    }
    let last = scan.runs.iter().filter(|run| run.last <= end).max_by_key(|run| run.last).copied();
    // If not one durable group is left, what comes behind still knows since when they were needed.
    let knows = last.or_else(|| scan.runs.first().copied());
    let needed_from = knows.map_or(GroupSequence(1), |run| run.first_needed);
    let damage = damage(scan, needed_from);
    for gone in &damage {
        if let (Some(from), Some(to)) = (gone.first_lsn, gone.next_lsn) {
            resolver.lost.entry(scan.wal).or_default().push((from, to));
        }
    }
    // What was stated in groups that do not count was not stated.
    scan.resolve_notes(end, resolver);
    scan.notes.clear();
    let report = WalReport {
        wal: scan.wal,
        files: scan.files.clone(),
        needed_from,
        synced: scan.synced,
        end_sequence: end,
        end: wal_end(scan, end, last),
        damage,
        bad_headers: scan.bad_headers,
        unreadable: scan.has_noise,
    };
    scan.runs.retain(|run| run.last >= needed_from && run.first <= end);
    report
}

fn damage(scan: &WalScan, needed_from: GroupSequence) -> Vec<Damage> {
    let mut found = Vec::new();
    let mut next = needed_from;
    let mut before: Option<&Run> = None;
    let mut gap = |from: GroupSequence, to: GroupSequence, before: Option<&Run>, behind: Option<&Run>| {
        found.push(Damage {
            from,
            to,
            first_lsn: before.map(|run| run.next_lsn),
            next_lsn: behind.map(|run| run.first_lsn),
            after: before.map(Run::end_place),
            before: behind.map(Run::start_place),
            suspects: suspects(scan, from, to),
        });
    };
    for run in scan.runs.iter().filter(|run| run.last >= needed_from) {
        if run.first > next && next <= scan.synced {
            gap(next, GroupSequence(scan.synced.0.min(run.first.0 - 1)), before, Some(run));
        }
        if run.last >= next {
            next = GroupSequence(run.last.0.saturating_add(1));
            before = Some(run);
        }
    }
    if next <= scan.synced {
        gap(next, scan.synced, before, None);
    }
    found
}

/// Whom missing groups may have been about: known only if the place of each was found with a good header.
fn suspects(scan: &WalScan, from: GroupSequence, to: GroupSequence) -> Suspects {
    let mut all = Suspects::default();
    let mut seen = BTreeSet::new();
    for (sequence, suspects) in scan.bad.iter().filter_map(|spot| spot.group.as_ref()) {
        if (from..=to).contains(sequence) {
            seen.insert(*sequence);
            all.shards.extend(&suspects.shards);
            all.more |= suspects.more;
        }
    }
    all.more |= scan.bad_more || seen.len() as u64 != to.0 - from.0 + 1;
    all
}

fn wal_end(scan: &WalScan, end: GroupSequence, last: Option<Run>) -> WalEnd {
    let dropped: u64 = scan.runs.iter().filter(|run| run.first > end).map(|run| run.last.0 - run.first.0 + 1).sum();
    let place = last.map(|run| run.end_place());
    let first_of_file = crate::format::header::HEADER_BYTES as u64;
    // The first bad group is right behind the last good one, or at the start of the next file.
    let is_next = |spot: &BadSpot| match &spot.group {
        Some((sequence, _)) => *sequence > end,
        None => Some(spot.place) == place || spot.place.at == first_of_file,
    };
    let spot = scan.bad.iter().find(|spot| is_next(spot));
    if last.is_some_and(|run| run.sealing == Sealing::Clean) {
        return WalEnd::Clean;
    }
    if dropped > 0 || spot.is_some() || scan.bad_more {
        let sequence = GroupSequence(end.0.saturating_add(1));
        return WalEnd::TornOrDamaged { sequence, place: spot.map(|spot| spot.place).or(place), dropped };
    }
    match last {
        None if end.0 == 0 => WalEnd::Empty,
        Some(run) if run.sealing == Sealing::Idle && run.last == end => WalEnd::Sealed,
        _ => WalEnd::Unsealed,
    }
}
