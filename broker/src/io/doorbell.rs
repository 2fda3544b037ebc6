//! **What**: the doorbell of one mesh member: a mask of senders that left mail, and whether the member sleeps.
//!
//! ```text
//!   sender                                receiver
//!   push message                          asleep.swap(1)          (prepare_sleep)
//!   dirty.fetch_or(bit)                   dirty.fetch_or(0) == 0? (the re-check)
//!   asleep != 0 and asleep.swap(0) != 0?  yes: sleep   no: asleep = 0, go on
//!     yes: wake the receiver
//! ```
//!
//! **Invariants**: a message that was pushed before `ring` is either seen by the receiver before it sleeps, or `ring` tells
//! exactly one sender to wake it. Proof: both sides do a read-modify-write of the same `dirty` word, so one comes
//! first. If the sender's comes first, the re-check reads its bit. If the re-check comes first, the sender's
//! read-modify-write synchronises with it, so the sender sees `asleep` set. No total order of stores is needed for this;
//! the accesses are SeqCst all the same, since they are not on the path of a message between two busy cores.
//!
//! **Never**: a load in the place of the re-check's read-modify-write (it may read an old value); anything that knows of
//! queues, wakers or threads (this file runs under loom, `broker/tests/loom_mesh.rs`).
//!
//! **See**: `mesh.rs`, which puts queues behind it.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// The atomic word this file is written against, so that loom's word can stand in for the real one.
pub trait Word {
    /// A word holding `value`.
    fn new(value: u64) -> Self;
    /// Reads.
    fn load(&self) -> u64;
    /// Writes.
    fn store(&self, value: u64);
    /// Writes and returns what was there.
    fn swap(&self, value: u64) -> u64;
    /// Sets bits and returns what was there.
    fn fetch_or(&self, bits: u64) -> u64;
}

impl Word for AtomicU64 {
    fn new(value: u64) -> Self {
        AtomicU64::new(value)
    }
    fn load(&self) -> u64 {
        AtomicU64::load(self, SeqCst)
    }
    fn store(&self, value: u64) {
        AtomicU64::store(self, value, SeqCst);
    }
    fn swap(&self, value: u64) -> u64 {
        AtomicU64::swap(self, value, SeqCst)
    }
    fn fetch_or(&self, bits: u64) -> u64 {
        AtomicU64::fetch_or(self, bits, SeqCst)
    }
}

/// Senders that left mail, and whether the receiver sleeps. `WORDS` words of 64 senders each.
///
/// `RECHECK` is true in the product. The model test builds it with false, which loses wake-ups, to show that it would
/// find such a mistake.
pub struct Doorbell<W: Word = AtomicU64, const WORDS: usize = 2, const RECHECK: bool = true> {
    dirty: [W; WORDS],
    asleep: W,
}

impl<W: Word, const WORDS: usize, const RECHECK: bool> Doorbell<W, WORDS, RECHECK> {
    /// A silent doorbell of a member that is awake.
    pub fn new() -> Self {
        Doorbell { dirty: std::array::from_fn(|_| W::new(0)), asleep: W::new(0) }
    }

    /// Says that `sender` left mail. True: the receiver sleeps and this caller, no other, must wake it.
    pub fn ring(&self, sender: usize) -> bool {
        self.dirty[sender / 64].fetch_or(1 << (sender % 64));
        self.asleep.load() != 0 && self.asleep.swap(0) != 0
    }

    /// The senders of one word that left mail since the last call. Called by the receiver; costs one load when silent.
    pub fn take(&self, word: usize) -> u64 {
        if self.dirty[word].load() == 0 { 0 } else { self.dirty[word].swap(0) }
    }

    /// Whether a sender left mail that `take` has not returned. Called by the receiver.
    pub fn is_dirty(&self) -> bool {
        self.dirty.iter().any(|word| word.load() != 0)
    }

    /// Announces sleep. False: mail came in, do not sleep. The caller's waker must be in place before this call.
    pub fn prepare_sleep(&self) -> bool {
        self.asleep.swap(1);
        if RECHECK && self.dirty.iter().any(|word| word.fetch_or(0) != 0) {
            self.asleep.store(0);
            return false;
        }
        true
    }

    /// Ends sleep, however it ended. Idempotent.
    pub fn awake(&self) {
        if self.asleep.load() != 0 {
            self.asleep.store(0);
        }
    }
}

impl<W: Word, const WORDS: usize, const RECHECK: bool> Default for Doorbell<W, WORDS, RECHECK> {
    fn default() -> Self {
        Self::new()
    }
}
