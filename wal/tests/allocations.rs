//! **What**: the steady-state path of the core WAL allocates nothing: append, plan, completion, next deadline.
//!
//! **Invariants**: each thread counts its own, so that the test harness does not count.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use felix_protocol::ids::{ClusterId, CoreId, NodeId, NodeSession, ShardId, StreamId};
use felix_protocol::position::{Epoch, Lineage, Offset};
use felix_protocol::time::Time;
use felix_wal::core_wal::{CoreWal, CoreWalSettings};
use felix_wal::disk::{DiskDone, DiskOk, DiskOp, DiskRequest};
use felix_wal::format::entry::{Append, Entry, EntryBody};
use felix_wal::format::header::{Identity, Region};
use felix_wal::format::names::WalId;
use felix_wal::group_commit::Commit;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: every call goes to the system allocator unchanged; the counter has no part in it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A disk that is done at once, in order, and keeps nothing.
fn answer(requests: &mut Vec<DiskRequest>) -> Option<DiskDone> {
    if requests.is_empty() {
        return None;
    }
    let request = requests.remove(0);
    let ok = match request.op {
        DiskOp::Write { bytes, .. } => DiskOk::Written(bytes),
        _ => DiskOk::Done,
    };
    Some(DiskDone { ticket: request.ticket, result: Ok(ok) })
}

#[test]
fn appending_in_steady_state_allocates_nothing() {
    let identity = Identity { cluster: ClusterId(1), node: NodeId(2), region: Region::new("eu").unwrap() };
    let id = WalId { session: NodeSession(1), core: CoreId(0) };
    let settings = CoreWalSettings { file_bytes: 256 << 10, ..CoreWalSettings::small() };
    let mut wal = CoreWal::new(settings, identity, id, 1, 0);
    let mut out = Vec::with_capacity(16);
    let batch = vec![7; 300];
    let mut turn = |turn: u64| {
        let now = Time(turn * 10_000);
        for shard in 1..=20 {
            let append = Append {
                stream: StreamId(1),
                lineage: Lineage(1),
                offset_count: 1,
                epoch: Epoch(1),
                base_offset: Offset(turn),
                sealed_by: None,
                batch: &batch,
            };
            let commit = if shard % 2 == 0 { Commit::Each } else { Commit::Group };
            // The first turns are before the first file is there.
            let _ = wal.append(now, &Entry::new(ShardId(shard), EntryBody::Append(append)), commit);
        }
        if turn.is_multiple_of(8) {
            let through = wal.appended();
            (1..=20).for_each(|shard| wal.flushed(now, ShardId(shard), Lineage(1), Offset(turn), through));
        }
        loop {
            wal.plan(now, &mut out);
            let Some(done) = answer(&mut out) else { break };
            wal.on_done(now, done);
            while let Some(done) = answer(&mut out) {
                wal.on_done(now, done);
            }
        }
        let _ = wal.next_deadline();
        (wal.appended(), wal.durable())
    };
    // Until every buffer and every file's table has its size.
    (0..400).for_each(|at| {
        turn(at);
    });
    let before = ALLOCATIONS.get();
    let (first, _) = turn(400);
    let mut last = (first, first);
    for at in 401..800 {
        last = turn(at);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert!(last.0.0 > first.0 + 7_900, "{first} to {}: files were rolled and reused meanwhile", last.0);
    assert_eq!(last.0, last.1);
}
