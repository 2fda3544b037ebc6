//! **What**: a slice with a fixed address, for memory that the kernel is given pointers into.
//!
//! A `Box` will not do: moving one claims its content exclusively, which ends the validity of pointers made before.
//!
//! **Invariants**: the content never moves and is never resized; pointers from `at` stay valid until the drop.
//!
//! **Never**: two owners.
//!
//! **See**: `udp.rs` and `transmit.rs`.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A slice that stays where it is.
pub(super) struct Fixed<V>(NonNull<[V]>);

// SAFETY: it owns its content as a box does.
unsafe impl<V: Send> Send for Fixed<V> {}

impl<V: Clone> Fixed<V> {
    /// `count` copies of `value`.
    pub fn new(value: V, count: usize) -> Self {
        Self::from_iter(std::iter::repeat_n(value, count))
    }
}

impl<V> FromIterator<V> for Fixed<V> {
    fn from_iter<I: IntoIterator<Item = V>>(values: I) -> Self {
        let boxed: Box<[V]> = values.into_iter().collect();
        Fixed(NonNull::from(Box::leak(boxed)))
    }
}

impl Fixed<u8> {
    /// Zeroed bytes. Pages that are never touched cost no memory.
    pub fn zeroed(bytes: usize) -> Self {
        Fixed(NonNull::from(Box::leak(vec![0; bytes].into_boxed_slice())))
    }
}

impl<V> Fixed<V> {
    /// A pointer to element `index`, valid until the drop and not invalidated by `Deref`.
    pub fn at(&self, index: usize) -> *mut V {
        assert!(index < self.0.len(), "{index} is outside {} elements", self.0.len());
        // SAFETY: inside the allocation (asserted).
        unsafe { self.0.as_ptr().cast::<V>().add(index) }
    }
}

impl<V> Deref for Fixed<V> {
    type Target = [V];
    fn deref(&self) -> &[V] {
        // SAFETY: alive until the drop; the borrow of self keeps writers out.
        unsafe { self.0.as_ref() }
    }
}

impl<V> DerefMut for Fixed<V> {
    fn deref_mut(&mut self) -> &mut [V] {
        // SAFETY: alive until the drop; the exclusive borrow of self keeps everybody else out.
        unsafe { self.0.as_mut() }
    }
}

impl<V> Drop for Fixed<V> {
    fn drop(&mut self) {
        // SAFETY: made by Box::leak in the constructors and dropped once.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}
