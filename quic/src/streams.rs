//! Reads and writes of one connection: streams and datagrams.
//!
//! **What.** Thin calls around quiche, and the three marks that turn its edges into our events:
//! streams whose write was short, streams whose end we read while looking, datagrams announced.
//!
//! **Invariants.** A short write is always followed by `StreamWritable`, `StreamStopped` or `Closed`.
//! An end of stream is given to the reader exactly once, also if quiche already forgot the stream.
//!
//! **Never.** A peer's count as a size: the marks hold at most one entry per stream quiche knows.
//!
//! **See** `connection.rs`.

use crate::buffers::{Chunk, LentBytes};
use crate::conn_id::ConnId;
use crate::connection::{Connection, Phase};
use crate::error::{DatagramError, StreamError};
use crate::event::{Event, Recv};
use std::collections::HashSet;

/// What quiche does not remember about streams and datagrams.
pub(crate) struct StreamMarks {
    /// A set: a client may let very many streams wait.
    write_blocked: HashSet<u64>,
    ended: Vec<u64>,
    next_uni: u64,
    next_bidi: u64,
    datagrams_announced: usize,
}

impl StreamMarks {
    /// Stream ids of RFC 9000 section 2.1: bit 0 is the server's, bit 1 unidirectional.
    pub(crate) fn new(is_server: bool) -> StreamMarks {
        let side = u64::from(is_server);
        StreamMarks {
            write_blocked: HashSet::new(),
            ended: Vec::new(),
            next_uni: 0b10 | side,
            next_bidi: side,
            datagrams_announced: 0,
        }
    }

    pub(crate) fn is_write_blocked(&self) -> bool {
        !self.write_blocked.is_empty()
    }

    /// Whether more datagrams wait than the reader was told of.
    pub(crate) fn announce_datagrams(&mut self, waiting: usize) -> bool {
        let more = waiting > self.datagrams_announced;
        self.datagrams_announced = waiting;
        more
    }

    fn block(&mut self, stream: u64) {
        self.write_blocked.insert(stream);
    }

    fn unblock(&mut self, stream: u64) -> bool {
        self.write_blocked.remove(&stream)
    }
}

fn take(list: &mut Vec<u64>, stream: u64) -> bool {
    match list.iter().position(|&entry| entry == stream) {
        Some(at) => {
            list.swap_remove(at);
            true
        }
        None => false,
    }
}

impl Connection {
    /// The event of a stream that quiche calls readable: bytes, an end, or a reset.
    pub(crate) fn readable_event(&mut self, conn: ConnId, stream: u64) -> Event {
        // An empty stream is readable only for its end or its reset, and only a read tells which. (With
        // an empty buffer quiche would keep the end and call the stream readable again and again.)
        if self.quic.stream_readable_len(stream, 1) == 0 {
            match self.quic.stream_recv(stream, &mut [0]) {
                Err(quiche::Error::StreamReset(code)) => return Event::StreamReset { conn, stream, code },
                Ok((_, true)) => self.marks.ended.push(stream),
                _ => {}
            }
        }
        Event::StreamReadable { conn, stream }
    }

    /// The event of a stream that quiche calls writable, if anybody waits for it. (quiche does not name a
    /// stopped stream here that could have been written to; its writer learns it from its next send.)
    pub(crate) fn writable_event(&mut self, conn: ConnId, stream: u64) -> Option<Event> {
        let waited = self.marks.unblock(stream);
        match self.quic.stream_capacity(stream) {
            Err(quiche::Error::StreamStopped(code)) => Some(Event::StreamStopped { conn, stream, code }),
            Ok(_) if waited => Some(Event::StreamWritable { conn, stream }),
            _ => None,
        }
    }

    pub(crate) fn stream_recv(&mut self, stream: u64, buffer: &mut [u8]) -> Result<Recv, StreamError> {
        if !self.marks.ended.is_empty() && take(&mut self.marks.ended, stream) {
            return Ok(Recv { bytes: 0, fin: true });
        }
        match self.quic.stream_recv(stream, buffer) {
            Ok((bytes, fin)) => Ok(Recv { bytes, fin }),
            Err(quiche::Error::Done) => Err(StreamError::WouldBlock),
            Err(quiche::Error::StreamReset(code)) => Err(StreamError::Reset(code)),
            Err(_) => Err(StreamError::UnknownStream),
        }
    }

    /// Short counts are remembered: `StreamWritable` follows.
    pub(crate) fn stream_send(&mut self, stream: u64, bytes: &[u8], fin: bool) -> Result<usize, StreamError> {
        self.check_open()?;
        let sent = self.quic.stream_send(stream, bytes, fin);
        self.after_send(stream, bytes.len(), sent)
    }

    /// Remembers what a send of `length` bytes did not take.
    fn after_send(&mut self, stream: u64, length: usize, sent: quiche::Result<usize>) -> Result<usize, StreamError> {
        match sent {
            Ok(sent) => {
                if sent < length {
                    self.marks.block(stream);
                } else if self.marks.is_write_blocked() {
                    self.marks.unblock(stream);
                }
                Ok(sent)
            }
            // Done also means that quiche forgot the stream: then no event would ever come.
            Err(quiche::Error::Done) if length > 0 && !self.quic.stream_closed(stream) => {
                self.marks.block(stream);
                Ok(0)
            }
            Err(error) => {
                self.marks.unblock(stream);
                Err(match error {
                    quiche::Error::StreamStopped(code) => StreamError::Stopped(code),
                    quiche::Error::StreamLimit => StreamError::StreamLimit,
                    quiche::Error::FinalSize => StreamError::Finished,
                    _ => StreamError::UnknownStream,
                })
            }
        }
    }

    /// Like `stream_send`, but the bytes are lent until they are acknowledged. Those that were not taken are let go.
    pub(crate) fn stream_lend(&mut self, stream: u64, bytes: LentBytes) -> Result<usize, StreamError> {
        self.check_open()?;
        let length = (*bytes).as_ref().len();
        let sent = self.quic.stream_send_zc(stream, Chunk::lent(bytes), false).map(|(sent, _)| sent);
        self.after_send(stream, length, sent)
    }

    /// Bytes that a send would take now.
    pub(crate) fn stream_capacity(&mut self, stream: u64) -> Result<usize, StreamError> {
        self.check_open()?;
        match self.quic.stream_capacity(stream) {
            Ok(bytes) => Ok(bytes),
            Err(quiche::Error::StreamStopped(code)) => Err(StreamError::Stopped(code)),
            Err(_) => Err(StreamError::UnknownStream),
        }
    }

    /// Whether a send would take a byte now; if not, `StreamWritable` follows.
    pub(crate) fn stream_wait(&mut self, stream: u64) -> Result<bool, StreamError> {
        self.check_open()?;
        match self.quic.stream_writable(stream, 1) {
            Ok(true) => Ok(true),
            Ok(false) => {
                self.marks.block(stream);
                Ok(false)
            }
            Err(quiche::Error::StreamStopped(code)) => Err(StreamError::Stopped(code)),
            Err(_) => Err(StreamError::UnknownStream),
        }
    }

    pub(crate) fn stream_shutdown_read(&mut self, stream: u64, code: u64) -> Result<(), StreamError> {
        self.shutdown(stream, quiche::Shutdown::Read, code)
    }

    pub(crate) fn stream_reset(&mut self, stream: u64, code: u64) -> Result<(), StreamError> {
        self.marks.unblock(stream);
        self.shutdown(stream, quiche::Shutdown::Write, code)
    }

    fn shutdown(&mut self, stream: u64, side: quiche::Shutdown, code: u64) -> Result<(), StreamError> {
        self.check_open()?;
        match self.quic.stream_shutdown(stream, side, code) {
            // Done: it is already shut down, or quiche forgot it. The wish is fulfilled.
            Ok(()) | Err(quiche::Error::Done) => Ok(()),
            Err(_) => Err(StreamError::UnknownStream),
        }
    }

    pub(crate) fn open_uni(&mut self) -> Result<u64, StreamError> {
        let stream = self.marks.next_uni;
        self.open(stream)?;
        self.marks.next_uni += 4;
        Ok(stream)
    }

    pub(crate) fn open_bidi(&mut self) -> Result<u64, StreamError> {
        let stream = self.marks.next_bidi;
        self.open(stream)?;
        self.marks.next_bidi += 4;
        Ok(stream)
    }

    /// An empty write makes quiche create the stream and check the peer's limit, and sends nothing.
    fn open(&mut self, stream: u64) -> Result<(), StreamError> {
        self.check_open()?;
        match self.quic.stream_send(stream, &[], false) {
            Ok(_) | Err(quiche::Error::Done) => Ok(()),
            Err(quiche::Error::StreamLimit) => Err(StreamError::StreamLimit),
            Err(_) => Err(StreamError::UnknownStream),
        }
    }

    pub(crate) fn datagram_send(&mut self, bytes: &[u8]) -> Result<(), DatagramError> {
        if self.check_open().is_err() {
            return Err(DatagramError::Closed);
        }
        match self.quic.dgram_send(bytes) {
            Ok(()) => Ok(()),
            Err(quiche::Error::Done) => Err(DatagramError::Full),
            Err(quiche::Error::BufferTooShort) => {
                Err(DatagramError::TooLarge { max: self.datagram_max().unwrap_or(0) })
            }
            Err(_) => Err(DatagramError::Unsupported),
        }
    }

    pub(crate) fn datagram_recv(&mut self, buffer: &mut [u8]) -> Result<usize, DatagramError> {
        // quiche drops a datagram that does not fit: look first.
        match self.quic.dgram_recv_front_len() {
            None => Err(DatagramError::WouldBlock),
            Some(bytes) if bytes > buffer.len() => Err(DatagramError::BufferTooSmall { bytes }),
            Some(_) => {
                let bytes = self.quic.dgram_recv(buffer).map_err(|_| DatagramError::WouldBlock)?;
                self.marks.datagrams_announced = self.marks.datagrams_announced.saturating_sub(1);
                Ok(bytes)
            }
        }
    }

    /// Largest datagram that fits a packet now; `None` if the peer takes none.
    pub(crate) fn datagram_max(&self) -> Option<usize> {
        self.quic.dgram_max_writable_len()
    }

    fn check_open(&self) -> Result<(), StreamError> {
        let ended = self.phase() == Phase::Over || self.quic.local_error().is_some() || self.quic.is_draining();
        if ended { Err(StreamError::Closed) } else { Ok(()) }
    }
}
