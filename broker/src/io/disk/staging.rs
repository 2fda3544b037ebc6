//! **What**: aligned memory for transfers whose own buffer is not aligned as the device asks.
//!
//! A `Vec<u8>` begins at a multiple of 16. Many NVMe devices are content with that (the file says so, see `open.rs`), others ask
//! for 512; for those a piece is copied through here.
//!
//! **Invariants**: every buffer begins at a multiple of `BLOCK_BYTES` and is a power of two long; what is kept for reuse is
//! at most `KEPT_BYTES`; steady traffic allocates nothing.
//!
//! **Never**: a buffer given back while the kernel has its address.
//!
//! **See**: `ring.rs`, the one user.

use felix_wal::disk::BLOCK_BYTES;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Largest buffer: the largest piece of a transfer.
pub(super) const STAGING_BYTES_MAX: usize = 512 << 10;

/// Bytes kept for reuse per core. Commits of a few blocks and four pieces of write-behind fit many times over.
const KEPT_BYTES: usize = 2 << 20;

/// 4 KiB to 512 KiB.
const CLASSES: usize = (STAGING_BYTES_MAX / BLOCK_BYTES).ilog2() as usize + 1;

/// A buffer whose address the kernel may be given.
pub(super) struct Aligned {
    start: NonNull<u8>,
    layout: Layout,
}

impl Aligned {
    /// Zeroed memory.
    pub fn new(bytes: usize) -> Aligned {
        let layout = Layout::from_size_align(bytes.max(BLOCK_BYTES), BLOCK_BYTES).expect("a size far below the limit");
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        Aligned { start: NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }

    /// Its address, valid until the drop.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Its content. Only while the kernel does not write to it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with this size and initialised; `self` is borrowed, so nobody writes through it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    /// Its content. Only while the kernel does not use it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: allocated with this size and initialised; `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// Buffers kept for reuse, by size.
#[derive(Default)]
pub(super) struct Staging {
    free: [Vec<Aligned>; CLASSES],
    kept_bytes: usize,
}

fn class(bytes: usize) -> usize {
    assert!((1..=STAGING_BYTES_MAX).contains(&bytes), "a piece of {bytes} bytes");
    bytes.div_ceil(BLOCK_BYTES).next_power_of_two().ilog2() as usize
}

impl Staging {
    /// A buffer of at least `bytes`; its content means nothing.
    pub fn take(&mut self, bytes: usize) -> Aligned {
        let class = class(bytes);
        match self.free[class].pop() {
            Some(buffer) => {
                self.kept_bytes -= buffer.layout.size();
                buffer
            }
            None => Aligned::new(BLOCK_BYTES << class),
        }
    }

    /// Takes a buffer back.
    pub fn give_back(&mut self, buffer: Aligned) {
        let bytes = buffer.layout.size();
        if self.kept_bytes + bytes <= KEPT_BYTES {
            self.kept_bytes += bytes;
            self.free[class(bytes)].push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_large_enough_and_used_again() {
        let mut staging = Staging::default();
        for bytes in [1, 4_096, 4_097, 100_000, STAGING_BYTES_MAX] {
            let mut buffer = staging.take(bytes);
            let address = buffer.as_mut_ptr();
            assert!(buffer.bytes().len() >= bytes && buffer.bytes().len() < 2 * bytes.max(BLOCK_BYTES));
            assert_eq!(address as usize % BLOCK_BYTES, 0);
            buffer.bytes_mut()[bytes - 1] = 7;
            staging.give_back(buffer);
            assert_eq!(staging.take(bytes).as_mut_ptr(), address);
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut staging = Staging::default();
        let buffers: Vec<_> = (0..20).map(|_| staging.take(STAGING_BYTES_MAX)).collect();
        buffers.into_iter().for_each(|buffer| staging.give_back(buffer));
        assert_eq!(staging.kept_bytes, KEPT_BYTES);
        assert_eq!(staging.free[CLASSES - 1].len(), KEPT_BYTES / STAGING_BYTES_MAX);
        (0..20).for_each(|_| drop(staging.take(STAGING_BYTES_MAX)));
        assert_eq!(staging.kept_bytes, 0);
    }
}
