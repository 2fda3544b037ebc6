//! Bytes on their way through quiche: copied from a slice, or lent by the application.
//!
//! **What.** The buffer type of all connections. quiche keeps a buffer until the peer acknowledged it and clones it to
//! cut it; a lent one is then a reference count more, not a copy.
//!
//! **Invariants.** Lent bytes never change while anybody holds them: `Arc` gives no mutable access to shared bytes.
//!
//! **Never.** A lent buffer for a few bytes: the count costs more than the copy.
//!
//! **See** `streams.rs` (`stream_lend`).

use std::fmt;
use std::sync::Arc;

/// Bytes that an application lends to the transport until they are acknowledged.
pub type LentBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A piece of a stream that waits in quiche.
#[derive(Clone)]
pub(crate) enum Chunk {
    Copied(Arc<[u8]>),
    Lent { bytes: LentBytes, from: usize, to: usize },
}

impl Chunk {
    pub(crate) fn lent(bytes: LentBytes) -> Chunk {
        let to = (*bytes).as_ref().len();
        Chunk::Lent { bytes, from: 0, to }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        match self {
            Chunk::Copied(bytes) => bytes,
            Chunk::Lent { bytes, from, to } => &(**bytes).as_ref()[*from..*to],
        }
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({} bytes)", self.as_ref().len())
    }
}

impl quiche::BufSplit for Chunk {
    fn split_at(&mut self, at: usize) -> Chunk {
        match self {
            Chunk::Copied(bytes) => {
                let rest = Chunk::Copied(Arc::from(&bytes[at..]));
                *bytes = Arc::from(&bytes[..at]);
                rest
            }
            Chunk::Lent { bytes, from, to } => {
                let rest = Chunk::Lent { bytes: bytes.clone(), from: *from + at, to: *to };
                *to = *from + at;
                rest
            }
        }
    }
}

/// Makes the buffers of our connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chunks;

impl quiche::BufFactory for Chunks {
    type Buf = Chunk;
    type DgramBuf = Vec<u8>;

    fn buf_from_slice(bytes: &[u8]) -> Chunk {
        Chunk::Copied(Arc::from(bytes))
    }

    fn dgram_buf_from_slice(bytes: &[u8]) -> Vec<u8> {
        bytes.to_vec()
    }
}

/// quiche's connection over our buffers.
pub(crate) type QuicheConnection = quiche::Connection<Chunks>;

#[cfg(test)]
mod tests {
    use super::*;
    use quiche::BufSplit;

    #[test]
    fn a_lent_buffer_is_cut_without_a_copy() {
        let bytes: LentBytes = Arc::new(b"0123456789".to_vec());
        let at = (*bytes).as_ref().as_ptr();
        let mut head = Chunk::lent(bytes);
        let mut tail = head.split_at(4);
        let rest = tail.split_at(3);
        assert_eq!((head.as_ref(), tail.as_ref(), rest.as_ref()), (&b"0123"[..], &b"456"[..], &b"789"[..]));
        assert_eq!(rest.as_ref().as_ptr(), at.wrapping_add(7));
    }
}
