//! What the application calls on a connection of an endpoint.
//!
//! **What.** The calls of `streams.rs` by handle, and the mark that something may have to be sent.
//!
//! **Invariants.** A handle of a connection that is gone gives `UnknownConnection`, never another one.
//!
//! **Never.** A packet: calls only put the connection on the dirty list.
//!
//! **See** `endpoint.rs`.

use crate::buffers::LentBytes;
use crate::conn_id::ConnId;
use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::error::{DatagramError, StreamError};
use crate::event::Recv;

impl Endpoint {
    /// Reads from a stream. Works at any time, event or not.
    pub fn stream_recv(&mut self, conn: ConnId, stream: u64, buffer: &mut [u8]) -> Result<Recv, StreamError> {
        let connection = self.connection(conn)?;
        let result = connection.stream_recv(stream, buffer);
        let attention = connection.attention_after_read();
        if result.is_ok() {
            self.attend(conn, attention);
        }
        result
    }

    /// Writes to a stream. A short count (also 0) is flow or congestion control: `StreamWritable`
    /// follows. `fin` counts only if all bytes were taken.
    pub fn stream_send(&mut self, conn: ConnId, stream: u64, bytes: &[u8], fin: bool) -> Result<usize, StreamError> {
        let result = self.connection(conn)?.stream_send(stream, bytes, fin);
        self.soil(conn);
        result
    }

    /// Writes to a stream without a copy: the bytes are held until the peer acknowledged them. A short count as with
    /// `stream_send`; what was not taken is let go.
    pub fn stream_lend(&mut self, conn: ConnId, stream: u64, bytes: LentBytes) -> Result<usize, StreamError> {
        let result = self.connection(conn)?.stream_lend(stream, bytes);
        self.soil(conn);
        result
    }

    /// Bytes that `stream_send` would take now.
    pub fn stream_capacity(&mut self, conn: ConnId, stream: u64) -> Result<usize, StreamError> {
        self.connection(conn)?.stream_capacity(stream)
    }

    /// Whether a stream takes bytes now. If not, `StreamWritable` follows as after a short send.
    pub fn stream_wait(&mut self, conn: ConnId, stream: u64) -> Result<bool, StreamError> {
        let result = self.connection(conn)?.stream_wait(stream);
        self.soil(conn);
        result
    }

    /// Asks the peer to stop sending (STOP_SENDING) and drops what is unread.
    pub fn stream_shutdown_read(&mut self, conn: ConnId, stream: u64, code: u64) -> Result<(), StreamError> {
        let result = self.connection(conn)?.stream_shutdown_read(stream, code);
        self.soil(conn);
        result
    }

    /// Gives up sending on a stream (RESET_STREAM) and drops what is unsent.
    pub fn stream_reset(&mut self, conn: ConnId, stream: u64, code: u64) -> Result<(), StreamError> {
        let result = self.connection(conn)?.stream_reset(stream, code);
        self.soil(conn);
        result
    }

    /// Opens a stream that only we write.
    pub fn open_uni(&mut self, conn: ConnId) -> Result<u64, StreamError> {
        self.connection(conn)?.open_uni()
    }

    /// Opens a stream that both write.
    pub fn open_bidi(&mut self, conn: ConnId) -> Result<u64, StreamError> {
        self.connection(conn)?.open_bidi()
    }

    /// Queues an unreliable datagram.
    pub fn datagram_send(&mut self, conn: ConnId, bytes: &[u8]) -> Result<(), DatagramError> {
        let connection = self.connection(conn).map_err(|_| DatagramError::UnknownConnection)?;
        let result = connection.datagram_send(bytes);
        self.soil(conn);
        result
    }

    /// Reads one datagram; its size.
    pub fn datagram_recv(&mut self, conn: ConnId, buffer: &mut [u8]) -> Result<usize, DatagramError> {
        self.connection(conn).map_err(|_| DatagramError::UnknownConnection)?.datagram_recv(buffer)
    }

    /// Largest datagram that can be sent now; `None` if the peer takes none or is gone.
    pub fn datagram_max(&self, conn: ConnId) -> Option<usize> {
        self.served.get(conn)?.connection.datagram_max()
    }

    /// Closes a connection with an application code. `Closed` follows.
    pub fn close(&mut self, conn: ConnId, code: u64, reason: &[u8]) {
        if let Some(served) = self.served.get_mut(conn) {
            served.connection.close(code, reason);
            self.soil(conn);
            self.touch(conn);
        }
    }

    /// Closes every connection.
    pub fn close_all(&mut self, code: u64, reason: &[u8]) {
        let all: Vec<ConnId> = self.served.ids().collect();
        for conn in all {
            self.close(conn, code, reason);
        }
    }

    fn connection(&mut self, conn: ConnId) -> Result<&mut Connection, StreamError> {
        match self.served.get_mut(conn) {
            Some(served) => Ok(&mut served.connection),
            None => Err(StreamError::UnknownConnection),
        }
    }
}
