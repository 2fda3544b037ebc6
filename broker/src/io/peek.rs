//! **What**: a long-lived peek of one socket: an operation in the kernel that completes when there is something to read.
//!
//! glommio 0.9 has no wait for readiness. `TcpStream::peek` on any socket comes closest: `recv` with MSG_PEEK, tried at
//! once, then given to the latency ring.
//!
//! **Invariants**: at most one operation is in the kernel; it is polled when it is made and when it completed, and never
//! else (each poll of a pending one stores one more waker in a 16-bit count); its waker marks the completion and then
//! wakes whoever armed it last.
//!
//! **Never**: a cancelled operation; a task of its own.
//!
//! **See**: `wait.rs`, which arms two of these to park.

use atomic_waker::AtomicWaker;
use glommio::net::TcpStream;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

/// Marks the completion of the operation and wakes the loop. Atomic since wakers must be; only one thread uses it.
struct Signal {
    completed: AtomicBool,
    armed_by: AtomicWaker,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.completed.store(true, SeqCst);
        self.armed_by.wake();
    }
}

type Operation = Pin<Box<dyn Future<Output = io::Result<usize>>>>;

/// A peek of one socket.
pub(super) struct Peek {
    fd: OwnedFd,
    stream: Rc<TcpStream>,
    pending: Option<Operation>,
    signal: Arc<Signal>,
    waker: Waker,
}

impl Peek {
    /// Nothing is in the kernel yet. On the core's executor only.
    pub fn new(fd: OwnedFd) -> io::Result<Peek> {
        let stream = Rc::new(dress(&fd)?);
        let signal = Arc::new(Signal { completed: AtomicBool::new(false), armed_by: AtomicWaker::new() });
        let waker = Waker::from(signal.clone());
        Ok(Peek { fd, stream, pending: None, signal, waker })
    }

    /// Ready: there is something to read now (or an error, which reading meets too). Pending: the task of `cx` will be
    /// woken when there is.
    pub fn arm(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.signal.armed_by.register(cx.waker());
        if self.pending.is_some() {
            if !self.completed() {
                return Poll::Pending;
            }
            // It completed while nobody waited, and what it saw may be read by now: look again.
            if self.poll_pending().is_pending() {
                return Poll::Pending;
            }
        }
        let stream = self.stream.clone();
        self.pending = Some(Box::pin(async move { stream.peek(&mut [0]).await.map_err(io::Error::from) }));
        self.poll_pending()
    }

    /// Throws away what can be read, if the peek saw something. For a socket whose bytes mean nothing.
    pub fn discard(&self) {
        if self.pending.is_some() && !self.completed() {
            return;
        }
        let mut buffer = [0u8; 64];
        loop {
            // SAFETY: the buffer lives through the call and has the length given.
            let got = unsafe {
                libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
            };
            if got < buffer.len() as isize {
                return;
            }
        }
    }

    /// Shuts the read side down, which completes a pending operation.
    pub fn shut_down(&self) {
        // SAFETY: plain system call on a descriptor that self owns. An unconnected socket reports ENOTCONN, and its
        // readers are woken all the same.
        unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_RD) };
    }

    /// Ready when no operation is in the kernel.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.signal.armed_by.register(cx.waker());
        match self.pending.is_none() || (self.completed() && self.poll_pending().is_ready()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Whether the operation completed since it was polled last.
    fn completed(&self) -> bool {
        self.signal.completed.load(SeqCst)
    }

    fn poll_pending(&mut self) -> Poll<()> {
        let Some(operation) = &mut self.pending else { return Poll::Ready(()) };
        self.signal.completed.store(false, SeqCst);
        let Poll::Ready(peeked) = operation.as_mut().poll(&mut Context::from_waker(&self.waker)) else {
            return Poll::Pending;
        };
        self.pending = None;
        if matches!(peeked, Ok(0)) {
            // An empty datagram. glommio takes it for the end of a stream and would report it for ever.
            if let Ok(stream) = dress(&self.fd) {
                self.stream = Rc::new(stream);
            }
        }
        Poll::Ready(())
    }
}

/// A socket of any kind dressed as a stream: `UdpSocket::peek` of glommio asks for a connected peer, this does not.
fn dress(fd: &OwnedFd) -> io::Result<TcpStream> {
    let fd = fd.try_clone()?;
    // SAFETY: the descriptor was just made and is given away here; the stream closes it.
    Ok(unsafe { TcpStream::from_raw_fd(fd.into_raw_fd()) })
}
