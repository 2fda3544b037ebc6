//! **What**: the sockets of one listen address: one per core, in one SO_REUSEPORT group, steered by connection id.
//!
//! The kernel picks the socket of a group by the number that a small program returns, and numbers sockets in the order
//! of their binding. Byte 0 of a QUIC connection id is `core + k * n`, so the program is: destination connection id byte
//! 0 modulo n. A long header has it at offset 6 (after flags, version and length), a short header at offset 1.
//!
//! **Invariants**: socket i of the group is core i's, for the life of the process (the group keeps a duplicate of every
//! descriptor: closing one would renumber the others); nobody else is in the group (a lock file keeps other brokers
//! out, a trial bind without SO_REUSEPORT everybody else).
//!
//! **Never**: a bind from two threads (order would be luck); a change of n on a live group.
//!
//! **See**: `udp.rs` for what is done with a socket.

use super::addr::{from_storage, to_storage};
use super::udp::{UdpOptions, UdpSocket};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::mem::{size_of, size_of_val, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long sockets of a killed broker may outlive it (seen: some tens of milliseconds).
const LINGER: Duration = Duration::from_secs(1);

/// How often an automatically chosen port may be snatched away before the group is bound.
const PORT_TRIES: usize = 8;

/// How the sockets of a group are set up.
#[derive(Clone, Copy, Debug)]
pub struct SocketBuffers {
    /// Bytes asked for the kernel's receive buffer of each socket.
    pub receive_bytes: usize,
    /// Bytes asked for the kernel's send buffer of each socket.
    pub send_bytes: usize,
    /// Attach the steering program. Off: the kernel spreads by address hash, and packets are handed over in user space.
    pub steering: bool,
    /// Memory and offloads of each core's socket.
    pub udp: UdpOptions,
}

impl Default for SocketBuffers {
    fn default() -> Self {
        // 4 MiB hold about 3 ms of 10 Gbit/s: longer than a core's longest turn.
        SocketBuffers { receive_bytes: 4 << 20, send_bytes: 4 << 20, steering: true, udp: UdpOptions::default() }
    }
}

/// What the kernel granted, in payload bytes (it keeps the double for its own accounting).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Receive buffer of each socket.
    pub receive_bytes: usize,
    /// Send buffer of each socket.
    pub send_bytes: usize,
    /// Whether trains of datagrams are received merged.
    pub gro: bool,
}

/// Why a listen address could not be bound.
#[derive(Debug)]
pub enum BindError {
    /// The number of cores is zero.
    NoCores,
    /// Another broker holds the lock of this address.
    Locked {
        /// The address.
        addr: SocketAddr,
        /// The lock file.
        path: PathBuf,
        /// What the holder wrote into it: its process id.
        holder: String,
    },
    /// The lock file could not be made.
    LockFile {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has the port.
    InUse {
        /// The address.
        addr: SocketAddr,
    },
    /// A system call failed.
    Socket {
        /// What was being done.
        step: &'static str,
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl std::fmt::Display for BindError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BindError::NoCores => write!(f, "a listen address needs at least one core"),
            BindError::Locked { addr, path, holder } => write!(
                f,
                "address {addr} is in use by another Felix broker (process {holder}, lock {}); choose --listen or stop it",
                path.display()
            ),
            BindError::LockFile { path, source } => {
                write!(f, "cannot lock {}: {source}; choose a folder that this user can write", path.display())
            }
            BindError::InUse { addr } => {
                write!(f, "address {addr} is in use by another process; choose --listen or stop it")
            }
            BindError::Socket { step, addr, source } => write!(f, "cannot {step} for address {addr}: {source}"),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            BindError::LockFile { source, .. } | BindError::Socket { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// All sockets of one listen address. Keep it for the life of the process.
pub struct SocketGroup {
    addr: SocketAddr,
    granted: Granted,
    sockets: Vec<UdpSocket>,
    _keep: Vec<OwnedFd>,
    _lock: File,
}

impl SocketGroup {
    /// Binds `cores` sockets to `addr` (port 0: the kernel chooses one port for all) and attaches the steering program.
    /// `lock_dir` is made if missing; use the same one for every broker of the machine.
    pub fn bind(
        addr: SocketAddr,
        cores: u8,
        lock_dir: &Path,
        buffers: SocketBuffers,
    ) -> Result<SocketGroup, BindError> {
        if cores == 0 {
            return Err(BindError::NoCores);
        }
        let mut tries = 0;
        loop {
            tries += 1;
            match Self::bind_once(addr, cores, lock_dir, buffers) {
                Err(BindError::InUse { .. } | BindError::Locked { .. }) if addr.port() == 0 && tries < PORT_TRIES => {}
                result => return result,
            }
        }
    }

    fn bind_once(
        addr: SocketAddr,
        cores: u8,
        lock_dir: &Path,
        buffers: SocketBuffers,
    ) -> Result<SocketGroup, BindError> {
        let mut addr = addr;
        if addr.port() == 0 {
            addr = trial(addr)?;
        }
        let lock = lock(lock_dir, addr)?;
        patient_trial(addr)?;
        let mut keep = Vec::with_capacity(usize::from(cores));
        let mut sockets = Vec::with_capacity(usize::from(cores));
        let mut granted = None;
        for _ in 0..cores {
            let at = |step| move |source| BindError::Socket { step, addr, source };
            let fd = open(addr).map_err(at("open a socket"))?;
            set(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).map_err(at("share the port"))?;
            let now = configure(&fd, addr, buffers).map_err(at("set up a socket"))?;
            bind(&fd, addr).map_err(|source| in_use(addr, "bind", source))?;
            keep.push(fd.try_clone().map_err(at("keep a socket"))?);
            sockets.push(UdpSocket::new(fd, addr, buffers.udp, now.gro));
            granted = Some(now);
        }
        if buffers.steering {
            steer(&keep[0], cores).map_err(|source| BindError::Socket {
                step: "attach the steering program",
                addr,
                source,
            })?;
        }
        let granted = granted.ok_or(BindError::NoCores)?;
        Ok(SocketGroup { addr, granted, sockets, _keep: keep, _lock: lock })
    }

    /// The bound address, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// What the kernel granted.
    pub fn granted(&self) -> Granted {
        self.granted
    }

    /// Hands out the sockets: number i belongs to core i. Empty after the first call.
    pub fn take_sockets(&mut self) -> Vec<UdpSocket> {
        std::mem::take(&mut self.sockets)
    }
}

/// Binds without SO_REUSEPORT, which fails if anybody has the port, and lets go. Returns the real address.
fn trial(addr: SocketAddr) -> Result<SocketAddr, BindError> {
    let fd = open(addr).map_err(|source| BindError::Socket { step: "open a socket", addr, source })?;
    bind(&fd, addr).map_err(|source| in_use(addr, "bind", source))?;
    name(&fd).map_err(|source| BindError::Socket { step: "read the port", addr, source })
}

/// The lock is ours, so a broker that had the port is dead; but the kernel lets go of sockets that its io_uring requests
/// held some time after a SIGKILL. A supervisor that restarts at once must not fail for that.
fn patient_trial(addr: SocketAddr) -> Result<SocketAddr, BindError> {
    let give_up = Instant::now() + LINGER;
    loop {
        match trial(addr) {
            Err(BindError::InUse { .. }) if Instant::now() < give_up => std::thread::sleep(LINGER / 50),
            result => return result,
        }
    }
}

fn in_use(addr: SocketAddr, step: &'static str, source: io::Error) -> BindError {
    match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { addr },
        _ => BindError::Socket { step, addr, source },
    }
}

fn lock(dir: &Path, addr: SocketAddr) -> Result<File, BindError> {
    let file = format!("felix-{}-{}.lock", addr.ip().to_string().replace([':', '%'], "_"), addr.port());
    let path = dir.join(file);
    let failed = |source| BindError::LockFile { path: path.clone(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            return Err(BindError::Locked { addr, path, holder: holder.trim().to_string() });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    // The process id is for the reader of an error message; the lock is what counts.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

fn configure(fd: &OwnedFd, addr: SocketAddr, buffers: SocketBuffers) -> io::Result<Granted> {
    // The FORCE variants need CAP_NET_ADMIN; without it the kernel caps at net.core.{r,w}mem_max.
    let receive = buffers.receive_bytes.min(i32::MAX as usize / 2) as i32;
    let send = buffers.send_bytes.min(i32::MAX as usize / 2) as i32;
    if set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, receive).is_err() {
        set(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, receive)?;
    }
    if set(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, send).is_err() {
        set(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, send)?;
    }
    // Counts datagrams that found the receive buffer full; old kernels may refuse, the counter then stays 0.
    let _ = set(fd, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1);
    let wildcard = addr.ip().is_unspecified();
    if addr.is_ipv6() {
        // PROBE: DF is set, the kernel's own path MTU guess is ignored; QUIC probes for itself.
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
        if wildcard {
            set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            // A dual-stack socket also carries IPv4: the same there. May be refused if IPV6_V6ONLY is the default.
            let _ = set(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE);
        }
    } else {
        set(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
        if wildcard {
            set(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        }
    }
    let gro = buffers.udp.gro && set(fd, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
    Ok(Granted {
        receive_bytes: get(fd, libc::SOL_SOCKET, libc::SO_RCVBUF)? as usize / 2,
        send_bytes: get(fd, libc::SOL_SOCKET, libc::SO_SNDBUF)? as usize / 2,
        gro,
    })
}

/// Attaches the steering program to a group, through any of its sockets.
fn steer(fd: &OwnedFd, cores: u8) -> io::Result<()> {
    let op = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let load_byte = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    // Offset 0 is the first byte of the UDP payload. A load beyond the end returns 0: socket 0 gets the junk.
    let mut program = [
        op(load_byte, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 2, 0x80),
        op(load_byte, 0, 0, 6),
        op(libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
        op(load_byte, 0, 0, 1),
        op(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, u32::from(cores)),
        op(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, program)
}

fn open(addr: SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: plain system call; the descriptor it returns is owned by nobody else.
    unsafe {
        let fd = libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

fn bind(fd: &OwnedFd, addr: SocketAddr) -> io::Result<()> {
    // SAFETY: plain data; zero is valid.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let len = to_storage(addr, &mut storage);
    // SAFETY: storage lives through the call and holds an address of `len` bytes.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const storage).cast(), len) })
}

fn name(fd: &OwnedFd) -> io::Result<SocketAddr> {
    // SAFETY: plain data; zero is valid.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let mut len = size_of_val(&storage) as libc::socklen_t;
    // SAFETY: storage and len live through the call; the kernel writes at most `len` bytes.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut storage).cast(), &mut len) })?;
    from_storage(&storage).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn set<V: Copy>(fd: &OwnedFd, level: i32, option: i32, value: V) -> io::Result<()> {
    let len = size_of::<V>() as libc::socklen_t;
    // SAFETY: value lives through the call and has `len` bytes of plain data.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), len) })
}

fn get(fd: &OwnedFd, level: i32, option: i32) -> io::Result<i32> {
    let mut value = 0i32;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: value and len live through the call; the kernel writes at most `len` bytes.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, option, (&raw mut value).cast(), &mut len) })?;
    Ok(value)
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
