//! **What**: which core owns a shard. Pure: counts in, cores out.
//!
//! **Invariants**: the shards of one stream differ by at most one between any two cores when they are placed; a move
//! happens only off a core that is gone, or onto a core that is new and would idle.
//!
//! **Never**: a look at traffic: placement is a function of the log alone, so every replica computes the same.
//!
//! **See**: `state.rs` (CreateStream, SetCoreCount).

use felix_protocol::ids::CoreId;

/// Cores for the shards of a new stream. `loads` has the shards of each core and is updated; it is not empty.
///
/// Each shard goes to the core with the fewest shards of this stream, then with the fewest shards, then with the lowest
/// index.
pub fn place(loads: &mut [u32], shards: u32) -> Vec<CoreId> {
    let mut own = vec![0u32; loads.len()];
    (0..shards)
        .map(|_| {
            let core = least(loads, &own, 0..loads.len());
            own[core] += 1;
            loads[core] += 1;
            core_id(core)
        })
        .collect()
}

/// A shard that changes its core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which stream, as an index into the argument.
    pub stream: usize,
    /// Which of its shards.
    pub index: usize,
    /// Where it goes.
    pub to: CoreId,
}

/// What must move when `before` cores become `after`. `streams` has the cores of each stream's shards by index.
///
/// Fewer cores: the shards of those that are gone, each as in [`place`]. More cores: as few as leave no core with two
/// shards more than a new one, taken where the stream gets a better spread.
pub fn re_place(streams: &[Vec<CoreId>], before: u8, after: u8) -> Vec<Move> {
    let (before, after) = (usize::from(before), usize::from(after));
    let mut loads = vec![0u32; before.max(after)];
    for core in streams.iter().flatten() {
        loads[usize::from(core.0)] += 1;
    }
    if after < before { evacuate(streams, &mut loads[..after]) } else { spread(streams, loads, before) }
}

fn evacuate(streams: &[Vec<CoreId>], loads: &mut [u32]) -> Vec<Move> {
    let mut moves = Vec::new();
    for (stream, cores) in streams.iter().enumerate() {
        let mut own = owned(cores, loads.len());
        for (index, core) in cores.iter().enumerate() {
            if usize::from(core.0) < loads.len() {
                continue;
            }
            let to = least(loads, &own, 0..loads.len());
            own[to] += 1;
            loads[to] += 1;
            moves.push(Move { stream, index, to: core_id(to) });
        }
    }
    moves
}

fn spread(streams: &[Vec<CoreId>], mut loads: Vec<u32>, before: usize) -> Vec<Move> {
    let count = loads.len();
    // First only the numbers: how many shards each old core gives and each new one takes.
    let (mut give, mut take) = (vec![0u32; count], vec![0u32; count]);
    let most = |loads: &[u32]| (0..before).max_by_key(|&core| (loads[core], std::cmp::Reverse(core)));
    let fewest = |loads: &[u32]| (before..count).min_by_key(|&core| (loads[core], core));
    while let (Some(from), Some(to)) = (most(&loads), fewest(&loads)) {
        if loads[from] <= loads[to] + 1 {
            break;
        }
        loads[from] -= 1;
        loads[to] += 1;
        give[from] += 1;
        take[to] += 1;
    }
    // Then which: shards whose move does not crowd their stream, and if those do not suffice, any.
    let mut placed = streams.to_vec();
    let mut moves = Vec::new();
    for any in [false, true] {
        for (stream, cores) in placed.iter_mut().enumerate() {
            let mut own = owned(cores, count);
            for (index, core) in cores.iter_mut().enumerate() {
                let from = usize::from(core.0);
                if give[from] == 0 {
                    continue;
                }
                let to = (before..count).filter(|&core| take[core] > 0).min_by_key(|&core| (own[core], core));
                let Some(to) = to else { return moves };
                if !any && own[to] >= own[from] {
                    continue;
                }
                own[from] -= 1;
                own[to] += 1;
                give[from] -= 1;
                take[to] -= 1;
                *core = core_id(to);
                moves.push(Move { stream, index, to: *core });
            }
        }
    }
    moves
}

/// Shards of one stream per core; cores beyond `count` are left out.
fn owned(cores: &[CoreId], count: usize) -> Vec<u32> {
    let mut own = vec![0u32; count];
    for core in cores {
        if let Some(number) = own.get_mut(usize::from(core.0)) {
            *number += 1;
        }
    }
    own
}

fn least(loads: &[u32], own: &[u32], cores: std::ops::Range<usize>) -> usize {
    cores.min_by_key(|&core| (own[core], loads[core], core)).expect("there is at least one core")
}

fn core_id(core: usize) -> CoreId {
    CoreId(u8::try_from(core).expect("CORES_MAX is below 256"))
}

#[cfg(test)]
mod tests;
