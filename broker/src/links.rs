//! **What**: what a core can do to the world outside: streams, datagrams, the mesh.
//!
//! **Invariants**: calls never block. `stream_send` takes what flow control allows; after a short send the stream is
//! announced as writable. The real one is `core_loop.rs` over a QUIC endpoint; the simulator brings its own.
//!
//! **Never**: a file, a clock.
//!
//! **See**: `core.rs`.

use crate::message::MeshMessage;
use felix_quic::LentBytes;
use felix_shard::event::ConnKey;

/// Why a call did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkError {
    /// Nothing to read now, or no room; an event follows.
    WouldBlock,
    /// The peer ended its or our side of the stream.
    StreamClosed,
    /// The peer allows no further stream.
    StreamLimit,
    /// The connection is gone.
    Closed,
    /// A datagram that does not fit.
    TooLarge,
}

/// Bytes read from a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// How many.
    pub bytes: usize,
    /// The stream ends after them.
    pub fin: bool,
}

/// The outside of one core.
pub trait Links {
    /// Reads from a stream.
    fn stream_recv(&mut self, conn: ConnKey, stream: u64, buffer: &mut [u8]) -> Result<Read, LinkError>;
    /// Writes to a stream; returns how many bytes were taken.
    fn stream_send(&mut self, conn: ConnKey, stream: u64, bytes: &[u8], fin: bool) -> Result<usize, LinkError>;
    /// Writes to a stream without a copy: the bytes are held until the peer acknowledged them. Returns how many were taken.
    fn stream_lend(&mut self, conn: ConnKey, stream: u64, bytes: LentBytes) -> Result<usize, LinkError>;
    /// Bytes a stream would take now.
    fn stream_capacity(&mut self, conn: ConnKey, stream: u64) -> usize;
    /// Whether a stream takes bytes now. If not it is announced as writable, as after a short send.
    fn stream_wait(&mut self, conn: ConnKey, stream: u64) -> Result<bool, LinkError>;
    /// Tells the peer to stop sending on a stream.
    fn stop_reading(&mut self, conn: ConnKey, stream: u64, code: u16);
    /// Ends our side of a stream at once.
    fn reset(&mut self, conn: ConnKey, stream: u64, code: u16);
    /// Opens a stream to the peer.
    fn open_uni(&mut self, conn: ConnKey) -> Result<u64, LinkError>;
    /// Sends a datagram, at most once. `WouldBlock`: the queue is full.
    fn datagram_send(&mut self, conn: ConnKey, bytes: &[u8]) -> Result<(), LinkError>;
    /// Closes a connection.
    fn close(&mut self, conn: ConnKey, code: u16, reason: &str);
    /// Sends to another member; a full ring gives the message back.
    fn mesh_send(&mut self, to: usize, message: MeshMessage) -> Result<(), MeshMessage>;
}
