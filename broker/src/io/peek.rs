//! **What**: a long-lived peek of one socket: an operation in the kernel that completes when there is something to read.
//!
//! glommio 0.9 has no wait for readiness. `TcpStream::peek` on any socket comes closest: `recv` with MSG_PEEK, tried at
//! once, then given to the latency ring. An event counter (the bell of a disk) is no socket: a read of it, which takes
//! what it sees, does the same on the main ring.
//!
//! **Invariants**: at most one operation is in the kernel; it is polled when it is made and when it completed, and never
//! else (each poll of a pending one stores one more waker in a 16-bit count); its waker marks the completion and then
//! wakes whoever armed it last.
//!
//! **Never**: a cancelled operation; a task of its own.
//!
//! **See**: `wait.rs`, which arms two or three of these to park.

use super::disk::ring_fd;
use atomic_waker::AtomicWaker;
use glommio::io::BufferedFile;
use glommio::net::TcpStream;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
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

/// A counter is read as a whole.
const COUNTER_BYTES: usize = 8;

type Operation = Pin<Box<dyn Future<Output = io::Result<usize>>>>;

/// What is peeked at, as glommio sees it.
enum Target {
    Socket(Rc<TcpStream>),
    Counter(Rc<BufferedFile>),
}

/// A peek of one socket, or of one event counter.
pub(super) struct Peek {
    fd: OwnedFd,
    target: Target,
    pending: Option<Operation>,
    signal: Arc<Signal>,
    waker: Waker,
}

impl Peek {
    /// Nothing is in the kernel yet. On the core's executor only.
    pub fn new(fd: OwnedFd) -> io::Result<Peek> {
        let target = Target::Socket(Rc::new(dress(&fd)?));
        Ok(Peek::of(fd, target))
    }

    /// The same for an event counter, which must not be non-blocking.
    pub fn of_counter(fd: OwnedFd) -> io::Result<Peek> {
        let own = fd.try_clone()?.into_raw_fd();
        // SAFETY: the descriptor was just made and is given away here; `close` closes it.
        let file = unsafe { BufferedFile::from_raw_fd(own) };
        Ok(Peek::of(fd, Target::Counter(Rc::new(file))))
    }

    fn of(fd: OwnedFd, target: Target) -> Peek {
        let signal = Arc::new(Signal { completed: AtomicBool::new(false), armed_by: AtomicWaker::new() });
        let waker = Waker::from(signal.clone());
        Peek { fd, target, pending: None, signal, waker }
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
        self.pending = Some(match &self.target {
            Target::Socket(stream) => {
                let stream = stream.clone();
                Box::pin(async move { stream.peek(&mut [0]).await.map_err(io::Error::from) })
            }
            Target::Counter(file) => {
                let file = file.clone();
                Box::pin(async move { Ok(file.read_at(0, COUNTER_BYTES).await?.len()) })
            }
        });
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
        if let Target::Counter(_) = self.target {
            return ring_fd(self.fd.as_fd());
        }
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

    /// Closes what glommio would close later than never: it queues the close of a file, and the executor ends before.
    pub async fn close(self) {
        if let Target::Counter(file) = self.target
            && let Ok(file) = Rc::try_unwrap(file)
        {
            let _ = file.close().await;
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
        if let Target::Socket(stream) = &mut self.target
            && matches!(peeked, Ok(0))
        {
            // An empty datagram. glommio takes it for the end of a stream and would report it for ever.
            if let Ok(fresh) = dress(&self.fd) {
                *stream = Rc::new(fresh);
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
