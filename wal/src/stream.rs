//! **What**: the bytes of a file from a place on, read ahead in windows, joined in order.
//!
//! **Invariants**: at most `windows_max` windows are under way or wait for an earlier one; the joined bytes grow only until
//! one chunk fits.
//!
//! **Never**: a window that is joined out of order.
//!
//! **See**: `read.rs`, its only user.

use crate::disk::{BLOCK_BYTES, DiskDone, DiskError, DiskOk, DiskOp, FileKey, Priority, Ticket};
use crate::format::segment::CHUNK_BYTES_MAX;
use crate::queue::{DiskQueue, Slot};
use crate::read::ReadSettings;
use std::collections::VecDeque;

#[derive(Debug)]
struct Window {
    ticket: Ticket,
    at: u64,
    bytes: usize,
    data: Option<Vec<u8>>,
}

/// Joined bytes and windows behind them.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    joined: Vec<u8>,
    /// Bytes of `joined` that are done with.
    used: usize,
    /// Place in the file of `joined[used]`.
    place: u64,
    windows: VecDeque<Window>,
    /// Windows whose bytes nobody wants.
    unwanted: Vec<Ticket>,
    limit: u64,
    file_bytes: u64,
    /// A read came back short: the file has no more, whatever it should have.
    ended: bool,
}

impl Stream {
    /// A file of this size was opened.
    pub(crate) fn begin(&mut self, file_bytes: u64) {
        self.file_bytes = file_bytes;
        self.limit = file_bytes;
    }

    /// Nothing beyond is wanted.
    pub(crate) fn limit(&mut self, bytes: u64) {
        self.limit = bytes.min(self.file_bytes);
    }

    /// The file holds more than before.
    pub(crate) fn grow(&mut self, bytes: u64) {
        self.file_bytes = self.file_bytes.max(bytes);
        self.limit = self.limit.max(bytes);
    }

    /// Goes on at another place.
    pub(crate) fn seek(&mut self, place: u64) {
        self.stop();
        self.place = place;
        self.ended = false;
    }

    /// Forgets what was read and what is under way.
    pub(crate) fn stop(&mut self) {
        self.joined.clear();
        self.used = 0;
        self.unwanted.extend(self.windows.drain(..).filter(|it| it.data.is_none()).map(|it| it.ticket));
    }

    /// Place in the file of the first byte.
    pub(crate) fn place(&self) -> u64 {
        self.place
    }

    /// Bytes there.
    pub(crate) fn head(&self) -> &[u8] {
        &self.joined[self.used..]
    }

    /// For `bytes_from`.
    pub(crate) fn head_position(&self) -> usize {
        self.used
    }

    /// Bytes relative to an earlier head; valid until the next `plan`.
    pub(crate) fn bytes_from(&self, position: usize, from: usize, to: usize) -> &[u8] {
        &self.joined[position + from..position + to]
    }

    /// Something is under way.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.windows.is_empty() || !self.unwanted.is_empty()
    }

    /// Steps over bytes, read or not.
    pub(crate) fn skip(&mut self, bytes: usize) {
        self.place += bytes as u64;
        self.used += bytes.min(self.joined.len() - self.used);
        if self.used == self.joined.len() {
            // Beyond what was joined: what is under way for bytes before the place is not wanted.
            while let Some(first) = self.windows.front() {
                if first.at + first.bytes as u64 > self.place {
                    break;
                }
                let first = self.windows.pop_front().expect("there is one");
                if first.data.is_none() {
                    self.unwanted.push(first.ticket);
                }
            }
        }
    }

    /// Asks for what is wanted next, and joins what came.
    pub(crate) fn plan(
        &mut self,
        slot: Slot,
        priority: Priority,
        file: FileKey,
        settings: &ReadSettings,
        queue: &mut DiskQueue,
    ) {
        self.join();
        loop {
            let joined_end = self.place + self.head().len() as u64;
            let at = self.windows.back().map_or(joined_end, |last| last.at + last.bytes as u64);
            let held = self.head().len() + self.windows.iter().map(|it| it.bytes).sum::<usize>();
            let under_way = self.windows.len() + self.unwanted.len();
            let enough = held >= CHUNK_BYTES_MAX + settings.windows_max * settings.window_bytes;
            if self.ended || at >= self.limit || under_way >= settings.windows_max || enough {
                return;
            }
            // A file that was cut may end within a block; the read comes back short then.
            let bytes = settings.window_bytes.min((self.limit - at) as usize).next_multiple_of(BLOCK_BYTES);
            let ticket = queue.push(slot, priority, DiskOp::Read { file, at, bytes });
            self.windows.push_back(Window { ticket, at, bytes, data: None });
        }
    }

    fn join(&mut self) {
        if self.used > 0 && self.windows.front().is_some_and(|first| first.data.is_some()) {
            self.joined.drain(..self.used);
            self.used = 0;
        }
        while self.windows.front().is_some_and(|first| first.data.is_some()) {
            let first = self.windows.pop_front().expect("there is one");
            let data = first.data.expect("it came");
            let end = self.place + self.head().len() as u64;
            // Bytes that were stepped over before they came.
            let skip = end.saturating_sub(first.at).min(data.len() as u64) as usize;
            self.joined.extend_from_slice(&data[skip..]);
            if data.len() < first.bytes {
                self.ended = true;
                self.unwanted.extend(self.windows.drain(..).filter(|it| it.data.is_none()).map(|it| it.ticket));
            }
        }
    }

    /// Takes a completion; an error with the place it was read at.
    pub(crate) fn handle(&mut self, done: DiskDone) -> Result<(), (u64, DiskError)> {
        if let Some(at) = self.unwanted.iter().position(|ticket| *ticket == done.ticket) {
            self.unwanted.swap_remove(at);
            return Ok(());
        }
        let Some(window) = self.windows.iter_mut().find(|it| it.ticket == done.ticket) else { return Ok(()) };
        match done.result {
            Ok(DiskOk::Bytes(bytes)) => {
                window.data = Some(bytes);
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => {
                let at = window.at;
                let ticket = window.ticket;
                self.windows.retain(|it| it.ticket != ticket);
                Err((at, error))
            }
        }
    }
}
