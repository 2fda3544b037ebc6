//! **What**: one core's UDP socket: receives many datagrams with one `recvmmsg`, and takes merged trains (GRO) apart.
//!
//! **Invariants**:
//! - buffers are made once; a slot is free again when `recv` returns, so the pool cannot run dry however many
//!   connections there are (a call takes what fits, the rest waits in the kernel);
//! - what was cut off, empty or not from an IP address is counted and not passed on.
//!
//! **Never**: blocking; interpreting a datagram; allocating after `new`.
//!
//! **See**: `bind.rs` for how a socket is made, `transmit.rs` for the way out.

use super::addr::{CONTROL_BYTES, Control, from_storage, header, read_control};
use super::fixed::Fixed;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Bytes of a receive slot: a merged train is at most one IP packet of 65,535 bytes.
pub const SLOT_BYTES: usize = 65_536;

/// Memory and offloads of a socket.
#[derive(Clone, Copy, Debug)]
pub struct UdpOptions {
    /// Receive slots of 64 KiB: messages taken by one system call. The pages of slots that are never used cost nothing.
    pub slots: usize,
    /// Let the kernel merge datagrams of one sender into trains.
    pub gro: bool,
}

impl Default for UdpOptions {
    fn default() -> Self {
        // At 64 the cost of the call itself is below 2 % of a datagram's (STACK.md 2c: 0.53 us per datagram at 32).
        UdpOptions { slots: 64, gro: true }
    }
}

/// What a socket received and lost since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiveCounters {
    /// Calls of `recvmmsg`.
    pub calls: u64,
    /// Calls that found nothing.
    pub empty_calls: u64,
    /// Messages, each a datagram or a train.
    pub messages: u64,
    /// Datagrams passed on.
    pub datagrams: u64,
    /// Bytes of datagrams passed on.
    pub bytes: u64,
    /// Messages dropped since they did not fit into a slot.
    pub dropped_truncated: u64,
    /// Messages dropped since they were empty or had no IP address.
    pub dropped_empty: u64,
    /// Datagrams that the kernel dropped since the socket's buffer was full.
    pub dropped_by_kernel: u64,
    /// Errors of earlier sends that the kernel reported here.
    pub errors: u64,
}

/// One core's socket. Made by `SocketGroup::bind`, moved to its core, used by one thread.
pub struct UdpSocket {
    fd: OwnedFd,
    local: SocketAddr,
    gro: bool,
    counters: ReceiveCounters,
    drops_seen: u32,
    headers: Fixed<libc::mmsghdr>,
    names: Fixed<libc::sockaddr_storage>,
    /// Kept alive: the headers point into these two.
    _controls: Fixed<Control>,
    _iovecs: Fixed<libc::iovec>,
    memory: Fixed<u8>,
}

// SAFETY: the raw pointers inside `headers` and `_iovecs` point into memory that this very value owns and that does not
// move with it; nothing is shared with another thread.
unsafe impl Send for UdpSocket {}

impl UdpSocket {
    pub(super) fn new(fd: OwnedFd, local: SocketAddr, options: UdpOptions, gro: bool) -> UdpSocket {
        let slots = options.slots.max(1);
        let memory = Fixed::zeroed(slots * SLOT_BYTES);
        // SAFETY: sockaddr_storage is plain data; zero is valid.
        let names = Fixed::new(unsafe { zeroed::<libc::sockaddr_storage>() }, slots);
        let controls = Fixed::new(Control([0; CONTROL_BYTES]), slots);
        let iovecs: Fixed<libc::iovec> = (0..slots)
            .map(|slot| libc::iovec { iov_base: memory.at(slot * SLOT_BYTES).cast(), iov_len: SLOT_BYTES })
            .collect();
        let name_len = size_of::<libc::sockaddr_storage>() as u32;
        let headers = (0..slots)
            .map(|slot| header(names.at(slot), name_len, iovecs.at(slot), controls.at(slot), CONTROL_BYTES))
            .collect();
        UdpSocket {
            fd,
            local,
            gro,
            counters: ReceiveCounters::default(),
            drops_seen: 0,
            headers,
            names,
            _controls: controls,
            _iovecs: iovecs,
            memory,
        }
    }

    /// The bound address. Its IP is unspecified if the group listens on all interfaces.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Whether merged trains are received.
    pub fn gro(&self) -> bool {
        self.gro
    }

    /// Counters since the socket was made.
    pub fn counters(&self) -> ReceiveCounters {
        self.counters
    }

    /// Takes what waits, up to the number of slots, with one system call, and calls back per datagram with its bytes,
    /// the sender's address and the local address it was sent to. Returns the number of datagrams; 0: none waits.
    ///
    /// The error is one that will not go away (a bad descriptor, no memory).
    pub fn recv(&mut self, mut on_datagram: impl FnMut(&mut [u8], SocketAddr, SocketAddr)) -> io::Result<usize> {
        self.counters.calls += 1;
        // SAFETY: the headers, and all that they point to, are owned by self and live through the call; the kernel
        // writes within the lengths given. MSG_DONTWAIT: no timeout is needed.
        let got = unsafe {
            libc::recvmmsg(
                self.fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        if got < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN) => {
                    self.counters.empty_calls += 1;
                    Ok(0)
                }
                Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::EINVAL | libc::ENOMEM) => Err(error),
                // EINTR, or an error that a sent packet brought back (ECONNREFUSED and the like): ask again next turn.
                _ => {
                    self.counters.errors += 1;
                    Ok(0)
                }
            };
        }
        let mut datagrams = 0;
        for slot in 0..got as usize {
            datagrams += self.pass_on(slot, &mut on_datagram);
        }
        self.counters.datagrams += datagrams as u64;
        Ok(datagrams)
    }

    fn pass_on(&mut self, slot: usize, on_datagram: &mut impl FnMut(&mut [u8], SocketAddr, SocketAddr)) -> usize {
        let message = &mut self.headers[slot];
        let bytes = message.msg_len as usize;
        // SAFETY: the control buffer of this header belongs to self and was filled by the call before.
        let received = unsafe { read_control(&message.msg_hdr) };
        let truncated = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        // The kernel wrote lengths and flags: make the header ready for the next call.
        message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as u32;
        message.msg_hdr.msg_controllen = CONTROL_BYTES;
        message.msg_hdr.msg_flags = 0;

        self.counters.messages += 1;
        if let Some(drops) = received.drops {
            self.counters.dropped_by_kernel += u64::from(drops.wrapping_sub(self.drops_seen));
            self.drops_seen = drops;
        }
        if truncated {
            self.counters.dropped_truncated += 1;
            return 0;
        }
        let from = from_storage(&self.names[slot]);
        let (Some(from), true) = (from, bytes > 0) else {
            self.counters.dropped_empty += 1;
            return 0;
        };
        let to = match received.to {
            Some(ip) => SocketAddr::new(ip, self.local.port()),
            None => self.local,
        };
        self.counters.bytes += bytes as u64;
        let train = &mut self.memory[slot * SLOT_BYTES..][..bytes];
        let mut datagrams = 0;
        for datagram in train.chunks_mut(received.segment_bytes.unwrap_or(bytes)) {
            on_datagram(datagram, from, to);
            datagrams += 1;
        }
        datagrams
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
