//! **What**: the bare quiche floor: a server that copies what comes on any client's stream 0 to one server-opened stream
//! of every client that asked for it. No frames, no log, no checks.
//!
//! ```text
//! client stream 0: first byte 'S' = I subscribe, 'P' = I publish, the rest are messages of equal size
//! ```
//!
//! **Invariants**: one receive batch (recvmmsg), then all stream writes, then one send per connection, sendmmsg over all
//! connections and GSO within one: the same shape as the broker's loop.
//!
//! **Never**: anything of Felix.
//!
//! **See**: `../cell.rs`.

use std::collections::HashMap;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

const SLOTS: usize = 64;
const SLOT_BYTES: usize = 65_536;
const ARENA_BYTES: usize = 4 << 20;
const OUT_STREAM: u64 = 3;

struct Peer {
    conn: quiche::Connection,
    addr: SocketAddr,
    subscribes: bool,
    publishes: bool,
    dirty: bool,
    /// What flow control did not take yet.
    rest: Vec<u8>,
}

struct Train {
    at: usize,
    bytes: usize,
    segment: usize,
    to: SocketAddr,
}

/// Serves until killed.
pub fn serve(
    listen: SocketAddr,
    pki: &Path,
    spin: Duration,
    udp_payload: usize,
    report: &Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let socket = UdpSocket::bind(listen)?;
    socket.set_nonblocking(true)?;
    let listen = socket.local_addr()?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 8 << 20);
    set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 8 << 20);
    set(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
    let mut config = quiche::Config::new(quiche::PROTOCOL_VERSION)?;
    config.load_cert_chain_from_pem_file(&pki.join("server.crt").to_string_lossy())?;
    config.load_priv_key_from_pem_file(&pki.join("server.key").to_string_lossy())?;
    config.set_application_protos(&[b"felix/1"])?;
    config.set_max_idle_timeout(60_000);
    config.set_initial_max_data(128 << 10);
    config.set_initial_max_stream_data_bidi_remote(64 << 10);
    config.set_initial_max_streams_bidi(4);
    config.set_max_recv_udp_payload_size(udp_payload);
    config.set_max_send_udp_payload_size(udp_payload);
    config.discover_pmtu(true);
    config.grease(false);
    let mut peers: Vec<Peer> = Vec::new();
    let mut ids: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut slots = vec![0u8; SLOTS * SLOT_BYTES];
    let mut arena = vec![0u8; ARENA_BYTES];
    let mut messages = vec![0u8; 256 << 10];
    let mut next_timeout = Instant::now();
    let mut last_work = Instant::now();
    let (mut work_ns, mut working_since, mut reported) = (0u64, None::<Instant>, 0u64);
    loop {
        let turn = Instant::now();
        if let Some(since) = working_since.take() {
            work_ns += turn.duration_since(since).as_nanos() as u64;
        }
        let received = receive(&socket, &mut slots, |datagram, from| {
            take(datagram, from, listen, &mut config, &mut peers, &mut ids);
        });
        let now = turn;
        if received > 0 {
            working_since = Some(turn);
        } else if work_ns != reported && now >= next_timeout {
            reported = work_ns;
            std::fs::write(report, work_ns.to_string())?;
        }
        if received == 0 && now >= next_timeout {
            for peer in &mut peers {
                if peer.conn.timeout_instant().is_some_and(|at| at <= now) {
                    peer.conn.on_timeout();
                    peer.dirty = true;
                }
            }
            next_timeout = now + Duration::from_millis(5);
        }
        for peer in peers.iter_mut().filter(|peer| peer.dirty && !peer.rest.is_empty()) {
            let sent = peer.conn.stream_send(OUT_STREAM, &peer.rest, false).unwrap_or(0);
            peer.rest.drain(..sent);
        }
        let bytes = read_publishers(&mut peers, &mut messages);
        if bytes > 0 {
            for peer in peers.iter_mut().filter(|peer| peer.subscribes) {
                let messages = &messages[..bytes];
                let sent = match peer.rest.is_empty() {
                    true => peer.conn.stream_send(OUT_STREAM, messages, false).unwrap_or(0),
                    false => 0,
                };
                // The caller bounds what is under way, and so what waits here.
                peer.rest.extend_from_slice(&messages[sent..]);
                peer.dirty = true;
            }
        }
        send(&socket, &mut peers, &mut arena);
        if received > 0 {
            last_work = turn;
        } else if turn.duration_since(last_work) >= spin {
            wait(&socket, Duration::from_millis(5));
        }
    }
}

fn take(
    datagram: &mut [u8],
    from: SocketAddr,
    listen: SocketAddr,
    config: &mut quiche::Config,
    peers: &mut Vec<Peer>,
    ids: &mut HashMap<Vec<u8>, usize>,
) {
    let Ok(header) = quiche::Header::from_slice(datagram, 16) else { return };
    let index = match ids.get(&header.dcid[..]) {
        Some(index) => *index,
        None if header.ty == quiche::Type::Initial => {
            let mut id = [0u8; 16];
            id[..8].copy_from_slice(&(peers.len() as u64 + 1).to_le_bytes());
            id[8..].copy_from_slice(&header.dcid[..8]);
            let scid = quiche::ConnectionId::from_ref(&id);
            let Ok(conn) = quiche::accept(&scid, None, listen, from, config) else { return };
            ids.insert(id.to_vec(), peers.len());
            ids.insert(header.dcid.to_vec(), peers.len());
            peers.push(Peer { conn, addr: from, subscribes: false, publishes: false, dirty: true, rest: Vec::new() });
            peers.len() - 1
        }
        None => return,
    };
    let peer = &mut peers[index];
    let _ = peer.conn.recv(datagram, quiche::RecvInfo { from, to: listen });
    peer.dirty = true;
    if !peer.subscribes && !peer.publishes {
        let mut first = [0u8; 1];
        if let Ok((1, _)) = peer.conn.stream_recv(0, &mut first) {
            peer.subscribes = first[0] == b'S';
            peer.publishes = first[0] == b'P';
        }
    }
}

fn read_publishers(peers: &mut [Peer], messages: &mut [u8]) -> usize {
    let mut bytes = 0;
    for peer in peers.iter_mut().filter(|peer| peer.publishes && peer.dirty) {
        while bytes < messages.len()
            && let Ok((count, _)) = peer.conn.stream_recv(0, &mut messages[bytes..])
        {
            bytes += count;
        }
    }
    bytes
}

fn send(socket: &UdpSocket, peers: &mut [Peer], arena: &mut [u8]) {
    let mut used = 0;
    let mut trains: Vec<Train> = Vec::with_capacity(SLOTS);
    for peer in peers.iter_mut().filter(|peer| peer.dirty) {
        peer.dirty = false;
        let mut train = Train { at: used, bytes: 0, segment: 0, to: peer.addr };
        loop {
            if arena.len() - used < 20_000 {
                flush(socket, arena, &mut trains);
                used = 0;
                train = Train { at: 0, bytes: 0, segment: 0, to: peer.addr };
            }
            let Ok((count, _)) = peer.conn.send(&mut arena[used..used + 16_384]) else { break };
            let joins = train.bytes > 0 && count <= train.segment && train.bytes + count < 65_000;
            if train.bytes > 0 && !joins {
                trains.push(train);
                train = Train { at: used, bytes: 0, segment: 0, to: peer.addr };
            }
            if train.bytes == 0 {
                train.segment = count;
            }
            train.bytes += count;
            used += count;
            if count < train.segment {
                trains.push(train);
                train = Train { at: used, bytes: 0, segment: 0, to: peer.addr };
            }
        }
        if train.bytes > 0 {
            trains.push(train);
        }
    }
    flush(socket, arena, &mut trains);
}

fn flush(socket: &UdpSocket, arena: &mut [u8], trains: &mut Vec<Train>) {
    let mut at = 0;
    while at < trains.len() {
        let batch = &trains[at..trains.len().min(at + SLOTS)];
        let mut names = [unsafe_zeroed::<libc::sockaddr_in>(); SLOTS];
        let mut iovecs = [unsafe_zeroed::<libc::iovec>(); SLOTS];
        let mut controls = [[0u64; 4]; SLOTS];
        let mut headers = [unsafe_zeroed::<libc::mmsghdr>(); SLOTS];
        for (i, train) in batch.iter().enumerate() {
            names[i] = sockaddr(train.to);
            iovecs[i] = libc::iovec { iov_base: arena[train.at..].as_mut_ptr().cast(), iov_len: train.bytes };
            let header = &mut headers[i].msg_hdr;
            header.msg_name = (&raw mut names[i]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
            header.msg_iov = &raw mut iovecs[i];
            header.msg_iovlen = 1;
            if train.segment < train.bytes {
                header.msg_control = controls[i].as_mut_ptr().cast();
                // SAFETY: CMSG_SPACE and CMSG_LEN only compute; the first header lies in the buffer just set.
                unsafe {
                    header.msg_controllen = libc::CMSG_SPACE(2) as usize;
                    let cmsg = libc::CMSG_FIRSTHDR(header);
                    (*cmsg).cmsg_level = libc::SOL_UDP;
                    (*cmsg).cmsg_type = libc::UDP_SEGMENT;
                    (*cmsg).cmsg_len = libc::CMSG_LEN(2) as usize;
                    libc::CMSG_DATA(cmsg).cast::<u16>().write_unaligned(train.segment as u16);
                }
            }
        }
        // SAFETY: every pointer in the headers leads to an array above or to the arena, all alive through the call.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), batch.len() as u32, 0) };
        at += sent.max(1) as usize;
    }
    trains.clear();
}

fn receive(socket: &UdpSocket, slots: &mut [u8], mut on_datagram: impl FnMut(&mut [u8], SocketAddr)) -> usize {
    let mut names = [unsafe_zeroed::<libc::sockaddr_in>(); SLOTS];
    let mut iovecs = [unsafe_zeroed::<libc::iovec>(); SLOTS];
    let mut controls = [[0u64; 8]; SLOTS];
    let mut headers = [unsafe_zeroed::<libc::mmsghdr>(); SLOTS];
    for i in 0..SLOTS {
        iovecs[i] = libc::iovec { iov_base: slots[i * SLOT_BYTES..].as_mut_ptr().cast(), iov_len: SLOT_BYTES };
        let header = &mut headers[i].msg_hdr;
        header.msg_name = (&raw mut names[i]).cast();
        header.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
        header.msg_iov = &raw mut iovecs[i];
        header.msg_iovlen = 1;
        header.msg_control = controls[i].as_mut_ptr().cast();
        header.msg_controllen = 64;
    }
    // SAFETY: every pointer in the headers leads to an array above or to the slots, all alive through the call.
    let got = unsafe {
        libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), SLOTS as u32, libc::MSG_DONTWAIT, std::ptr::null_mut())
    };
    for i in 0..got.max(0) as usize {
        let from = SocketAddr::V4(SocketAddrV4::new(
            Ipv4Addr::from(u32::from_be(names[i].sin_addr.s_addr)),
            u16::from_be(names[i].sin_port),
        ));
        let bytes = headers[i].msg_len as usize;
        let mut segment = bytes.max(1);
        // SAFETY: the kernel filled msg_controllen; the macros walk within it.
        unsafe {
            let cmsg = libc::CMSG_FIRSTHDR(&headers[i].msg_hdr);
            if !cmsg.is_null() && (*cmsg).cmsg_level == libc::SOL_UDP && (*cmsg).cmsg_type == libc::UDP_GRO {
                segment = libc::CMSG_DATA(cmsg).cast::<i32>().read_unaligned().max(1) as usize;
            }
        }
        for datagram in slots[i * SLOT_BYTES..][..bytes].chunks_mut(segment) {
            on_datagram(datagram, from);
        }
    }
    got.max(0) as usize
}

fn wait(socket: &UdpSocket, at_most: Duration) {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, alive through the call.
    unsafe { libc::poll(&mut poll, 1, at_most.as_millis() as i32) };
}

fn set(socket: &UdpSocket, level: i32, name: i32, value: i32) {
    // SAFETY: the option value is an int, alive through the call. A refusal leaves the default.
    unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), 4) };
}

fn sockaddr(addr: SocketAddr) -> libc::sockaddr_in {
    let SocketAddr::V4(addr) = addr else { return unsafe_zeroed() };
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: addr.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*addr.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

fn unsafe_zeroed<T: Copy>() -> T {
    // SAFETY: used for C structs of integers and pointers only, for which all zeros is a value.
    unsafe { zeroed() }
}
