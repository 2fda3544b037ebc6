//! **What**: turns the bytes of a QUIC stream, in whatever pieces they come, into whole frames.
//!
//! **Invariants**: holds at most one frame of its type's limit plus one read; a frame that is over the limit is
//! refused at its first 16 bytes. One-byte pieces cost no more memory than whole frames.
//!
//! **Never**: copying a frame that already lies whole in the caller's buffer: `FrameStream::next` hands out slices.
//!
//! **See**: `broker/src/session.rs`, `client/src/session.rs`.

use crate::codec::DecodeError;
use crate::envelope::frame_length;

/// Reassembles frames of one stream.
#[derive(Debug, Default)]
pub struct FrameStream {
    buffer: Vec<u8>,
    start: usize,
}

impl FrameStream {
    /// An empty one; allocates nothing.
    pub fn new() -> FrameStream {
        FrameStream::default()
    }

    /// Appends received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            // Only the tail of an unfinished frame is moved, and only once per read.
            self.buffer.copy_within(self.start.., 0);
            self.buffer.truncate(self.buffer.len() - self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, envelope included. `Ok(None)`: more bytes are needed. An error is final for the stream.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, DecodeError> {
        let rest = &self.buffer[self.start..];
        match frame_length(rest)? {
            Some(length) if length <= rest.len() => {
                let from = self.start;
                self.start += length;
                Ok(Some(&self.buffer[from..from + length]))
            }
            _ => {
                if rest.is_empty() {
                    self.buffer.clear();
                    self.start = 0;
                }
                Ok(None)
            }
        }
    }

    /// Bytes held.
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Bytes of memory kept, for accounting.
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Gives memory back while idle; keeps an unfinished frame.
    pub fn shrink(&mut self) {
        if self.buffered() == 0 {
            self.buffer = Vec::new();
            self.start = 0;
        }
    }
}

/// A whole frame and the bytes that follow it.
pub type FrameAndRest<'a> = (&'a [u8], &'a [u8]);

/// Splits whole frames off the front of a slice without copying. Returns the frame and what follows it, or None if
/// the slice does not hold a whole frame (keep the slice in a [`FrameStream`] then).
pub fn split_first_frame(bytes: &[u8]) -> Result<Option<FrameAndRest<'_>>, DecodeError> {
    match frame_length(bytes)? {
        Some(length) if length <= bytes.len() => Ok(Some(bytes.split_at(length))),
        _ => Ok(None),
    }
}
