//! **What**: whether the disk has room for what a publisher sends: a batch goes into the write-ahead log first, and later
//! needs as much room again in a segment.
//!
//! ```text
//! room left (told by the edge) - written since it was told - in memory, not flushed yet  >=  the batch     else DiskFull
//!                                                                                         >=  a new file of the log
//! a job found the disk full -> DiskFull until a job ends well, or no job waits for room any more
//! ```
//!
//! **Invariants**: what is taken can be flushed, as far as the numbers of the moment tell; so a start always finds room
//! for what the log holds. Once refused, nothing is taken until there is room for `AGAIN_BYTES`: small batches do not pass
//! where large ones are refused.
//!
//! **Never**: a refusal of reads, deletions or flushes for lack of room.
//!
//! **See**: `store.rs` (`append`), `flush.rs`; the broker's `space.rs`, which looks at the file system.

/// Room beyond what is in memory before appends are taken again.
const AGAIN_BYTES: u64 = 4 << 20;

/// Room on the disk as one core knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Bytes this core may still put on the disk; as told.
    left: u64,
    /// Flushed, and files made for the write-ahead log, since it was told.
    flushed: u64,
    is_out: bool,
    job_failed: bool,
}

impl Room {
    /// Nobody told how much there is: everything is taken until a job fails.
    pub(crate) fn unknown() -> Room {
        Room { left: u64::MAX, flushed: 0, is_out: false, job_failed: false }
    }

    /// Whether `more` bytes may be taken while `waiting` bytes are not flushed.
    pub(crate) fn takes(&mut self, waiting: usize, more: usize) -> bool {
        if self.flushed.saturating_add(waiting as u64).saturating_add(more as u64) > self.left {
            self.is_out = true;
        }
        !self.refuses()
    }

    /// `left`: bytes that this core may put on the disk beside what it has flushed.
    pub(crate) fn told(&mut self, left: u64, waiting: usize) {
        (self.left, self.flushed) = (left, 0);
        if left >= AGAIN_BYTES.saturating_add(waiting as u64) {
            self.is_out = false;
        }
    }

    /// Whether the write-ahead log may have `more` bytes of files while `waiting` bytes are not flushed: what is in memory
    /// comes first.
    pub(crate) fn may_grow(&self, waiting: usize, more: u64) -> bool {
        !self.is_out && self.flushed.saturating_add(waiting as u64).saturating_add(more) <= self.left
    }

    /// The write-ahead log makes a file of so many bytes.
    pub(crate) fn on_grown(&mut self, bytes: u64) {
        self.flushed = self.flushed.saturating_add(bytes);
    }

    /// A job found the disk full.
    pub(crate) fn on_full(&mut self) {
        self.job_failed = true;
    }

    /// A flush of `bytes` ended well.
    pub(crate) fn on_flushed(&mut self, bytes: usize) {
        self.job_failed = false;
        self.flushed = self.flushed.saturating_add(bytes as u64);
    }

    /// Nothing waits for room any more.
    pub(crate) fn on_nothing_waits(&mut self) {
        self.job_failed = false;
    }

    /// Appends are refused now.
    pub(crate) fn refuses(&self) -> bool {
        self.is_out || self.job_failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn what_is_taken_can_be_flushed() {
        let mut room = Room::unknown();
        assert!(room.takes(usize::MAX / 2, MIB));
        room.told(10 * MIB as u64, 0);
        assert!(room.takes(9 * MIB, MIB));
        // 6 of them go into segments before anybody looks again: the room is what it was, less those.
        room.on_flushed(6 * MIB);
        assert!(room.takes(3 * MIB, MIB));
        assert!(!room.takes(3 * MIB, MIB + 1));
    }

    #[test]
    fn a_new_file_of_the_log_leaves_room_for_what_is_in_memory() {
        let mut room = Room::unknown();
        assert!(room.may_grow(usize::MAX / 2, 64 << 20));
        room.told(100 * MIB as u64, 0);
        assert!(!room.may_grow(37 * MIB, 64 << 20));
        assert!(room.may_grow(36 * MIB, 64 << 20));
        room.on_grown(64 << 20);
        assert!(room.takes(30 * MIB, 6 * MIB));
        assert!(!room.takes(30 * MIB, 6 * MIB + 1), "the file has taken its part");
    }

    #[test]
    fn once_out_small_batches_do_not_pass_until_there_is_room_to_go_on() {
        let mut room = Room::unknown();
        room.told(10 * MIB as u64, 0);
        assert!(!room.takes(10 * MIB, 1));
        assert!(!room.takes(0, 1), "it was refused just now");
        room.told(5 * MIB as u64, 2 * MIB);
        assert!(room.refuses(), "3 MiB beyond what waits are not enough");
        room.told(6 * MIB as u64, 2 * MIB);
        assert!(!room.refuses());
    }

    #[test]
    fn a_job_that_found_no_room_refuses_until_one_ends_well() {
        let mut room = Room::unknown();
        room.on_full();
        assert!(!room.takes(0, 1));
        room.told(u64::MAX, 0);
        assert!(room.refuses(), "the disk said otherwise");
        room.on_flushed(1);
        assert!(room.takes(0, 1));
        room.on_full();
        room.on_nothing_waits();
        assert!(room.takes(0, 1));
    }
}
