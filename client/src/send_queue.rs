//! **What**: bytes that wait to be taken by QUIC, per stream.
//!
//! **Invariants**: a stream that took less than it was offered is left alone until it is writable again. The control
//! stream goes first; the others in turn.
//!
//! **Never**: a copy of a batch: it is shared with the channel that may have to send it again.
//!
//! **See**: `session.rs`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Bytes to send: a small frame of our own, or a batch that the channel keeps too.
#[derive(Clone, Debug)]
pub(crate) enum Chunk {
    Owned(Vec<u8>),
    Shared(Arc<Vec<u8>>),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Owned(bytes) => bytes,
            Chunk::Shared(bytes) => bytes,
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Chunk>,
    /// Bytes of the first chunk that are gone already.
    offset: usize,
    bytes: usize,
    fin: bool,
    blocked: bool,
    listed: bool,
}

/// What may be sent now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Offer<'a> {
    pub stream: u64,
    pub bytes: &'a [u8],
    pub fin: bool,
}

/// The queues of a connection.
#[derive(Debug, Default)]
pub(crate) struct SendQueues {
    queues: HashMap<u64, Queue>,
    ready: VecDeque<u64>,
}

impl SendQueues {
    fn queue(&mut self, stream: u64) -> &mut Queue {
        self.queues.entry(stream).or_default()
    }

    fn list(&mut self, stream: u64) {
        let queue = self.queue(stream);
        if !queue.listed && !queue.blocked {
            queue.listed = true;
            match stream {
                super::session::CONTROL_STREAM => self.ready.push_front(stream),
                _ => self.ready.push_back(stream),
            }
        }
    }

    pub(crate) fn push(&mut self, stream: u64, chunk: Chunk) {
        let queue = self.queue(stream);
        queue.bytes += chunk.bytes().len();
        queue.chunks.push_back(chunk);
        self.list(stream);
    }

    /// Nothing more follows on this stream.
    pub(crate) fn finish(&mut self, stream: u64) {
        self.queue(stream).fin = true;
        self.list(stream);
    }

    /// Drops a stream and what waits there.
    pub(crate) fn forget(&mut self, stream: u64) {
        self.queues.remove(&stream);
        self.ready.retain(|it| *it != stream);
    }

    /// Nothing waits anywhere.
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.values().all(|it| it.chunks.is_empty() && !it.fin)
    }

    /// Bytes of a stream that wait.
    pub(crate) fn waiting(&self, stream: u64) -> usize {
        self.queues.get(&stream).map_or(0, |it| it.bytes)
    }

    pub(crate) fn offer(&self) -> Option<Offer<'_>> {
        let stream = *self.ready.front()?;
        let queue = self.queues.get(&stream)?;
        let last = queue.chunks.len() <= 1;
        let bytes = queue.chunks.front().map_or(&[][..], |chunk| &chunk.bytes()[queue.offset..]);
        Some(Offer { stream, bytes, fin: queue.fin && last })
    }

    /// QUIC took `count` bytes of the offer for this stream; fewer than offered blocks it.
    pub(crate) fn taken(&mut self, stream: u64, count: usize) {
        let Some(queue) = self.queues.get_mut(&stream) else { return };
        let Some(chunk) = queue.chunks.front() else {
            // Only the end of the stream was offered.
            self.forget(stream);
            return;
        };
        let left = chunk.bytes().len() - queue.offset;
        assert!(count <= left, "QUIC took {count} of {left} bytes");
        queue.bytes -= count;
        if count < left {
            queue.offset += count;
            queue.blocked = true;
            queue.listed = false;
            self.ready.retain(|it| *it != stream);
            return;
        }
        queue.offset = 0;
        queue.chunks.pop_front();
        if queue.chunks.is_empty() {
            let fin = queue.fin;
            queue.listed = false;
            self.ready.retain(|it| *it != stream);
            if fin {
                self.queues.remove(&stream);
            }
        }
    }

    /// The stream takes bytes again.
    pub(crate) fn unblock(&mut self, stream: u64) {
        if let Some(queue) = self.queues.get_mut(&stream)
            && queue.blocked
        {
            queue.blocked = false;
            self.list(stream);
        }
    }

    /// Blocks a stream that QUIC would not open yet.
    pub(crate) fn block(&mut self, stream: u64) {
        if let Some(queue) = self.queues.get_mut(&stream) {
            queue.blocked = true;
            queue.listed = false;
            self.ready.retain(|it| *it != stream);
        }
    }

    /// Streams that are blocked, for a retry.
    pub(crate) fn blocked(&self) -> Vec<u64> {
        self.queues.iter().filter(|(_, queue)| queue.blocked).map(|(stream, _)| *stream).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_blocking_and_the_end() {
        let mut queues = SendQueues::default();
        queues.push(4, Chunk::Owned(b"abc".to_vec()));
        queues.push(4, Chunk::Shared(Arc::new(b"de".to_vec())));
        queues.push(0, Chunk::Owned(b"x".to_vec()));
        assert_eq!(queues.offer(), Some(Offer { stream: 0, bytes: b"x", fin: false }));
        queues.taken(0, 1);
        assert_eq!(queues.offer(), Some(Offer { stream: 4, bytes: b"abc", fin: false }));
        queues.taken(4, 1);
        assert_eq!((queues.offer(), queues.waiting(4)), (None, 4), "a short write blocks");
        queues.finish(4);
        assert_eq!(queues.offer(), None);
        queues.unblock(4);
        assert_eq!(queues.offer(), Some(Offer { stream: 4, bytes: b"bc", fin: false }));
        queues.taken(4, 2);
        assert_eq!(queues.offer(), Some(Offer { stream: 4, bytes: b"de", fin: true }));
        queues.taken(4, 2);
        assert_eq!((queues.offer(), queues.waiting(4)), (None, 0));
        queues.finish(8);
        assert_eq!(queues.offer(), Some(Offer { stream: 8, bytes: b"", fin: true }));
        queues.taken(8, 0);
        assert!(!queues.queues.contains_key(&8) && queues.offer().is_none());
    }
}
