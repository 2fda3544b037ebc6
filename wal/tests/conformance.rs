//! The suite that every executor passes, on the disk in memory.

#[path = "conformance/mod.rs"]
mod suite;

use felix_wal::mem_disk::{MemDisk, MemDiskOptions};

#[test]
fn the_disk_in_memory_conforms() {
    suite::run(&mut MemDisk::new(1));
}

#[test]
fn it_conforms_in_any_order() {
    for seed in 0..50 {
        let options = MemDiskOptions { reorder: true, slow_per_mille: 100, ..MemDiskOptions::default() };
        suite::run(&mut MemDisk::with_options(seed, options));
    }
}
