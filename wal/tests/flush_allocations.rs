//! **What**: packing batches into a flush allocates nothing per batch once the buffer has its size; a flush costs a fixed few.
//!
//! **Invariants**: each thread counts its own, so that the test harness does not count.

mod kit;

use felix_wal::log::Ended;
use felix_wal::mem_disk::MemDisk;
use kit::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system allocator unchanged; the counter has no part in it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's contract is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_flush_allocates_nothing_per_batch() {
    let mut world = World::new(MemDisk::new(1));
    world.settings.segment_bytes = 64 << 20;
    let mut log = world.create().unwrap();
    let mut stamper = Stamper::default();
    let mut counts = Vec::new();
    for batches in [2_000usize, 2_000, 10, 1_000] {
        let list: Vec<_> = (0..batches).map(|_| stamper.batch(&[(None, vec![7; 200], false)])).collect();
        let before = ALLOCATIONS.get();
        world.builder.begin(log.cursor());
        list.iter().for_each(|batch| world.builder.push(batch, false).unwrap());
        counts.push(ALLOCATIONS.get() - before);
        log.flush(&mut world.builder, &Default::default(), &world.settings, NOW, &mut world.queue).unwrap();
        let event = world.finish(&mut log).unwrap();
        assert_eq!(event.ended, Ended::Done);
        world.builder.reuse(event.buffer.expect("the buffer comes back"));
    }
    // The first two grow the buffers.
    assert_eq!(counts[2..], [0, 0], "{counts:?}");
}
