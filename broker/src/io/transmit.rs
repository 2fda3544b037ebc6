//! **What**: the way out of one core: an arena of packets, sent by one `sendmmsg`, trains cut by the kernel (GSO).
//!
//! **Invariants**:
//! - a packet that was pushed is sent, or stays until the socket is writable, or is dropped and counted by reason;
//!   order is kept;
//! - packets never move inside the arena; it starts again from its beginning once all are gone;
//! - no allocation after `new`.
//!
//! **Never**: blocking; a second try of a send that the kernel refused for good (QUIC sends again what matters).
//!
//! **See**: `wait.rs`, which waits for writability after `Flushed::blocked`.

use super::addr::{CONTROL_BYTES, Control, ControlWriter, header, to_storage};
use super::fixed::Fixed;
use super::udp::UdpSocket;
use std::io;
use std::mem::zeroed;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

/// Most bytes of one train: a UDP payload over IPv4, rounded down.
pub const TRAIN_BYTES_MAX: usize = 65_000;

/// Most datagrams of one train: UDP_MAX_SEGMENTS of kernels before 6.9.
pub const TRAIN_SEGMENTS_MAX: usize = 64;

/// Messages given to the kernel by one call.
const BATCH: usize = 64;

/// Memory of a transmit queue.
#[derive(Clone, Copy, Debug)]
pub struct TransmitOptions {
    /// Bytes of the arena; at least two trains.
    pub arena_bytes: usize,
    /// Packets or trains that may wait.
    pub messages: usize,
}

impl Default for TransmitOptions {
    fn default() -> Self {
        // 256 KiB: a flush of 4 full trains or 180 single packets, which stays in the core's own cache between sealing
        // and sending. With 1 MiB (twice that cache here) every byte came from farther away.
        TransmitOptions { arena_bytes: 256 << 10, messages: 1024 }
    }
}

/// A packet or train that was written into the arena.
#[derive(Clone, Copy, Debug)]
pub struct Transmit {
    /// Bytes written.
    pub bytes: usize,
    /// Set: a train of datagrams of this size, the last may be shorter. `None`: one datagram.
    pub segment_bytes: Option<usize>,
    /// Where to.
    pub to: SocketAddr,
    /// Which local address to send from; `None`, or a group bound to one address: the kernel knows.
    pub from: Option<IpAddr>,
}

/// What `push` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// A packet or train was added; there is more room.
    Added,
    /// The callback had nothing to send.
    Nothing,
    /// No room: the callback was not called. Flush, and push again when the flush was not blocked.
    Full,
}

/// What `flush` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Datagrams given to the kernel.
    pub datagrams: usize,
    /// The socket's buffer is full: the rest is kept. Wait for writability, then flush again.
    pub blocked: bool,
}

/// What a queue sent and lost since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitCounters {
    /// Calls of `sendmmsg`.
    pub calls: u64,
    /// Messages sent, each a datagram or a train.
    pub messages: u64,
    /// Datagrams sent.
    pub datagrams: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// Calls that found the socket's buffer full.
    pub blocked: u64,
    /// Messages dropped: larger than the path takes (path MTU probes end here).
    pub dropped_too_big: u64,
    /// Messages dropped: no route, refused by the other host or by a filter.
    pub dropped_unreachable: u64,
    /// Messages dropped: the kernel had no memory or the device queue was full.
    pub dropped_no_buffers: u64,
    /// Messages dropped for another reason.
    pub dropped_other: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    offset: usize,
    bytes: usize,
    /// 0: a single datagram.
    segment_bytes: usize,
    to: SocketAddr,
    from: Option<IpAddr>,
}

impl Entry {
    fn datagrams(&self) -> usize {
        if self.segment_bytes == 0 { 1 } else { self.bytes.div_ceil(self.segment_bytes) }
    }
}

/// Packets on their way out of one core. Moved to its core, used by one thread.
pub struct TransmitQueue {
    arena: Fixed<u8>,
    used: usize,
    entries: Vec<Entry>,
    messages_max: usize,
    /// Entries before this one are gone.
    head: usize,
    /// Whether the kernel cuts trains; cleared for good when a device cannot.
    gso: bool,
    counters: TransmitCounters,
    headers: Fixed<libc::mmsghdr>,
    iovecs: Fixed<libc::iovec>,
    names: Fixed<libc::sockaddr_storage>,
    controls: Fixed<Control>,
}

// SAFETY: the raw pointers inside `headers` and `iovecs` point into memory that this very value owns and that does not
// move with it; nothing is shared with another thread.
unsafe impl Send for TransmitQueue {}

impl TransmitQueue {
    /// An empty queue.
    pub fn new(options: TransmitOptions) -> TransmitQueue {
        let messages = options.messages.max(TRAIN_SEGMENTS_MAX * 16);
        // SAFETY: plain C data; zero is valid for all three types.
        let (header, iovec, name) = unsafe { (zeroed(), zeroed(), zeroed()) };
        TransmitQueue {
            arena: Fixed::zeroed(options.arena_bytes.max(2 * TRAIN_BYTES_MAX)),
            used: 0,
            entries: Vec::with_capacity(messages),
            messages_max: messages,
            head: 0,
            gso: true,
            counters: TransmitCounters::default(),
            headers: Fixed::new(header, BATCH),
            iovecs: Fixed::new(iovec, BATCH),
            names: Fixed::new(name, BATCH),
            controls: Fixed::new(Control([0; CONTROL_BYTES]), BATCH),
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.head == self.entries.len()
    }

    /// Packets and trains that wait.
    pub fn waiting(&self) -> usize {
        self.entries.len() - self.head
    }

    /// Whether the next `push` calls its callback.
    pub fn has_room(&self) -> bool {
        // A train may have to be cut into entries of TRAIN_SEGMENTS_MAX, or of one datagram when GSO is off.
        self.arena.len() - self.used >= TRAIN_BYTES_MAX && self.messages_max - self.entries.len() >= TRAIN_SEGMENTS_MAX
    }

    /// Counters since the queue was made.
    pub fn counters(&self) -> TransmitCounters {
        self.counters
    }

    /// Calls `build` with [`TRAIN_BYTES_MAX`] free bytes. It writes one packet, or a train of packets of equal size of
    /// which only the last may be shorter, and says where to send it; or `None`.
    ///
    /// # Panics
    /// If `build` claims more bytes than it was given: it would send memory it did not write.
    pub fn push(&mut self, build: impl FnOnce(&mut [u8]) -> Option<Transmit>) -> Pushed {
        if !self.has_room() {
            return Pushed::Full;
        }
        let Some(transmit) = build(&mut self.arena[self.used..][..TRAIN_BYTES_MAX]) else { return Pushed::Nothing };
        assert!(transmit.bytes <= TRAIN_BYTES_MAX, "a packet of {} bytes in {TRAIN_BYTES_MAX}", transmit.bytes);
        if transmit.bytes == 0 {
            return Pushed::Nothing;
        }
        let segment = transmit.segment_bytes.filter(|&segment| segment > 0 && segment < transmit.bytes);
        let step = match segment {
            Some(segment) if self.gso => segment * TRAIN_SEGMENTS_MAX,
            Some(segment) => segment,
            None => transmit.bytes,
        };
        let mut offset = 0;
        while offset < transmit.bytes {
            let bytes = step.min(transmit.bytes - offset);
            // A train of one is a datagram.
            let segment_bytes = segment.filter(|&segment| segment < bytes).unwrap_or(0);
            self.entries.push(Entry {
                offset: self.used + offset,
                bytes,
                segment_bytes,
                to: transmit.to,
                from: transmit.from,
            });
            offset += bytes;
        }
        self.used += transmit.bytes;
        Pushed::Added
    }

    /// Sends what waits.
    pub fn flush(&mut self, socket: &UdpSocket) -> Flushed {
        if self.is_empty() {
            return Flushed::default();
        }
        let fd = socket.as_fd().as_raw_fd();
        let wildcard = socket.local_addr().ip().is_unspecified();
        self.flush_with(wildcard, |headers| {
            // SAFETY: flush_with filled the headers with pointers into memory of self, which lives through the call.
            let sent = unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), headers.len() as u32, libc::MSG_DONTWAIT) };
            if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
        })
    }

    /// `flush` over any sender, so that tests can refuse.
    fn flush_with(
        &mut self,
        name_source: bool,
        mut send: impl FnMut(&mut [libc::mmsghdr]) -> io::Result<usize>,
    ) -> Flushed {
        let mut flushed = Flushed::default();
        while !self.is_empty() {
            let batch = self.prepare(name_source);
            self.counters.calls += 1;
            match send(&mut self.headers[..batch]) {
                Ok(sent) => {
                    for _ in 0..sent {
                        let entry = self.entries[self.head];
                        self.counters.messages += 1;
                        self.counters.datagrams += entry.datagrams() as u64;
                        self.counters.bytes += entry.bytes as u64;
                        flushed.datagrams += entry.datagrams();
                        self.head += 1;
                    }
                }
                Err(error) => {
                    if self.refused(&error) {
                        flushed.blocked = true;
                        return flushed;
                    }
                }
            }
        }
        self.entries.clear();
        self.head = 0;
        self.used = 0;
        flushed
    }

    /// Fills the headers for the next batch and returns its length.
    fn prepare(&mut self, name_source: bool) -> usize {
        let batch = BATCH.min(self.waiting());
        for slot in 0..batch {
            let entry = self.entries[self.head + slot];
            let name_len = to_storage(entry.to, &mut self.names[slot]);
            let mut control = ControlWriter::new(&mut self.controls[slot]);
            if entry.segment_bytes != 0 {
                control.segment_bytes(entry.segment_bytes as u16);
            }
            if let (true, Some(from)) = (name_source, entry.from) {
                control.from(from);
            }
            let control_len = control.finish();
            self.iovecs[slot] = libc::iovec { iov_base: self.arena.at(entry.offset).cast(), iov_len: entry.bytes };
            self.headers[slot] =
                header(self.names.at(slot), name_len, self.iovecs.at(slot), self.controls.at(slot), control_len);
        }
        batch
    }

    /// The kernel refused the first waiting message. True: try again when the socket is writable.
    fn refused(&mut self, error: &io::Error) -> bool {
        let dropped = match error.raw_os_error() {
            Some(libc::EAGAIN) => {
                self.counters.blocked += 1;
                return true;
            }
            Some(libc::EINTR) => return false,
            // A device without checksum offload cannot cut trains: cut them here, from now on.
            Some(libc::EIO) if self.entries[self.head].segment_bytes != 0 => {
                self.gso = false;
                self.cut_trains();
                return false;
            }
            Some(libc::EMSGSIZE) => &mut self.counters.dropped_too_big,
            Some(libc::ENOBUFS | libc::ENOMEM) => &mut self.counters.dropped_no_buffers,
            Some(
                libc::ECONNREFUSED
                | libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENETDOWN
                | libc::EHOSTDOWN
                | libc::EADDRNOTAVAIL
                | libc::EPERM
                | libc::EACCES,
            ) => &mut self.counters.dropped_unreachable,
            _ => &mut self.counters.dropped_other,
        };
        *dropped += 1;
        self.head += 1;
        false
    }

    /// Replaces waiting trains by their datagrams. Once in a process, so it may allocate.
    fn cut_trains(&mut self) {
        let waiting = self.entries.split_off(self.head);
        self.entries.clear();
        self.head = 0;
        for entry in waiting {
            let step = if entry.segment_bytes == 0 { entry.bytes } else { entry.segment_bytes };
            for offset in (0..entry.bytes).step_by(step) {
                let bytes = step.min(entry.bytes - offset);
                self.entries.push(Entry { offset: entry.offset + offset, bytes, segment_bytes: 0, ..entry });
            }
        }
    }
}

#[cfg(test)]
mod tests;
