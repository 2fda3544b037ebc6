//! **What**: socket addresses between `std::net` and the kernel's `sockaddr_storage`, and the control messages of a datagram.
//!
//! **Invariants**: a control buffer is 8-byte aligned and large enough for every message written or asked for here.
//!
//! **Never**: a pointer that outlives the call it was made for.
//!
//! **See**: `udp.rs` and `transmit.rs`, the two users.

use libc::{c_int, c_void, cmsghdr, msghdr, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t};
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Bytes for the control messages of one datagram: segment size, local address and drop counter need 80.
pub(super) const CONTROL_BYTES: usize = 128;

/// A control buffer, aligned as `cmsghdr` asks.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control(pub [u8; CONTROL_BYTES]);

/// Writes `addr` into `storage` and returns its length.
pub(super) fn to_storage(addr: SocketAddr, storage: &mut sockaddr_storage) -> socklen_t {
    match addr {
        SocketAddr::V4(addr) => {
            // SAFETY: sockaddr_storage is at least as large and as aligned as every sockaddr type.
            let raw = unsafe { &mut *(storage as *mut sockaddr_storage).cast::<sockaddr_in>() };
            raw.sin_family = libc::AF_INET as u16;
            raw.sin_port = addr.port().to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(addr.ip().octets());
            raw.sin_zero = [0; 8];
            size_of::<sockaddr_in>() as socklen_t
        }
        SocketAddr::V6(addr) => {
            // SAFETY: as above.
            let raw = unsafe { &mut *(storage as *mut sockaddr_storage).cast::<sockaddr_in6>() };
            raw.sin6_family = libc::AF_INET6 as u16;
            raw.sin6_port = addr.port().to_be();
            raw.sin6_flowinfo = addr.flowinfo();
            raw.sin6_addr.s6_addr = addr.ip().octets();
            raw.sin6_scope_id = addr.scope_id();
            size_of::<sockaddr_in6>() as socklen_t
        }
    }
}

/// Reads an address that the kernel wrote. `None` for a family that is not IP.
pub(super) fn from_storage(storage: &sockaddr_storage) -> Option<SocketAddr> {
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which type the kernel wrote; storage is large and aligned enough for it.
            let raw = unsafe { &*(storage as *const sockaddr_storage).cast::<sockaddr_in>() };
            let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(raw.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let raw = unsafe { &*(storage as *const sockaddr_storage).cast::<sockaddr_in6>() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            let port = u16::from_be(raw.sin6_port);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, port, raw.sin6_flowinfo, raw.sin6_scope_id)))
        }
        _ => None,
    }
}

/// What the control messages of a received datagram said.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Received {
    /// Segment size of a train that the kernel merged.
    pub segment_bytes: Option<usize>,
    /// The local address the datagram was sent to.
    pub to: Option<IpAddr>,
    /// The socket's drop counter, modulo 2^32.
    pub drops: Option<u32>,
}

/// Reads the control messages of a header that `recvmmsg` filled.
///
/// # Safety
/// `header.msg_control` and `msg_controllen` must describe a buffer that the kernel filled and that is alive.
pub(super) unsafe fn read_control(header: &msghdr) -> Received {
    let mut received = Received::default();
    // SAFETY: the caller vouches for the buffer; the CMSG macros stay within msg_controllen.
    let mut cmsg = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !cmsg.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a header inside the buffer.
        let (level, kind, data) = unsafe { ((*cmsg).cmsg_level, (*cmsg).cmsg_type, libc::CMSG_DATA(cmsg)) };
        // SAFETY: the kernel wrote a value of the type that level and kind name; data may be unaligned for it.
        unsafe {
            match (level, kind) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let bytes = data.cast::<c_int>().read_unaligned();
                    received.segment_bytes = usize::try_from(bytes).ok().filter(|&bytes| bytes > 0);
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    received.to = Some(IpAddr::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    received.to = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                    received.drops = Some(data.cast::<u32>().read_unaligned());
                }
                _ => {}
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        cmsg = unsafe { libc::CMSG_NXTHDR(header, cmsg) };
    }
    received
}

/// Appends control messages to a [`Control`] buffer; the result is the length to put into `msg_controllen`.
pub(super) struct ControlWriter<'a> {
    control: &'a mut Control,
    used: usize,
}

impl<'a> ControlWriter<'a> {
    /// Starts an empty list.
    pub fn new(control: &'a mut Control) -> Self {
        ControlWriter { control, used: 0 }
    }

    /// Asks the kernel to cut the payload into datagrams of this size.
    pub fn segment_bytes(&mut self, bytes: u16) {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, bytes);
    }

    /// Sends from this local address.
    pub fn from(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => {
                // SAFETY: in_pktinfo is plain data; zero means any interface.
                let mut info: libc::in_pktinfo = unsafe { zeroed() };
                info.ipi_spec_dst.s_addr = u32::from_ne_bytes(ip.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            IpAddr::V6(ip) => {
                // SAFETY: in6_pktinfo is plain data; zero means any interface.
                let mut info: libc::in6_pktinfo = unsafe { zeroed() };
                info.ipi6_addr.s6_addr = ip.octets();
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
        }
    }

    /// Bytes written.
    pub fn finish(self) -> usize {
        self.used
    }

    fn push<V: Copy>(&mut self, level: c_int, kind: c_int, value: V) {
        // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
        let (space, len) = unsafe { (libc::CMSG_SPACE(size_of::<V>() as u32), libc::CMSG_LEN(size_of::<V>() as u32)) };
        assert!(self.used + space as usize <= CONTROL_BYTES, "control buffer too small");
        let at = self.control.0[self.used..].as_mut_ptr();
        // SAFETY: `space` bytes from `at` are inside the buffer (asserted); `used` is a multiple of the alignment, so the
        // header is aligned; the value follows the header at CMSG_DATA.
        unsafe {
            let header = at.cast::<cmsghdr>();
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = len as usize;
            libc::CMSG_DATA(header).cast::<V>().write_unaligned(value);
        }
        self.used += space as usize;
    }
}

/// A header over one buffer, for `recvmmsg` and `sendmmsg`. The pointers are the caller's to keep alive.
pub(super) fn header(
    name: *mut sockaddr_storage,
    name_len: socklen_t,
    iovec: *mut libc::iovec,
    control: *mut Control,
    control_len: usize,
) -> libc::mmsghdr {
    // SAFETY: mmsghdr is plain data; zero is a valid value.
    let mut header: libc::mmsghdr = unsafe { zeroed() };
    header.msg_hdr.msg_name = name.cast::<c_void>();
    header.msg_hdr.msg_namelen = name_len;
    header.msg_hdr.msg_iov = iovec;
    header.msg_hdr.msg_iovlen = 1;
    header.msg_hdr.msg_control = if control_len == 0 { std::ptr::null_mut() } else { control.cast::<c_void>() };
    header.msg_hdr.msg_controllen = control_len;
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["127.0.0.1:4433", "0.0.0.0:0", "[::1]:1", "[fe80::1%3]:65535", "[::ffff:10.0.0.1]:9"] {
            let addr: SocketAddr = text.parse().unwrap();
            // SAFETY: plain data.
            let mut storage: sockaddr_storage = unsafe { zeroed() };
            to_storage(addr, &mut storage);
            assert_eq!(from_storage(&storage), Some(addr));
        }
    }

    #[test]
    fn control_messages_survive_the_round_trip() {
        let mut control = Control([0; CONTROL_BYTES]);
        let mut writer = ControlWriter::new(&mut control);
        writer.from("192.0.2.7".parse().unwrap());
        let used = writer.finish();
        let mut name: sockaddr_storage = from_zero();
        let header = header(&mut name, 0, std::ptr::null_mut(), &mut control, used);
        // SAFETY: the control buffer is alive and was filled above.
        let received = unsafe { read_control(&header.msg_hdr) };
        // Sending names the source in ipi_spec_dst; a received ipi_addr stays zero here.
        assert_eq!(received.to, Some("0.0.0.0".parse().unwrap()));
        assert_eq!(received.segment_bytes, None);
    }

    fn from_zero<V>() -> V {
        // SAFETY: only used with plain C data.
        unsafe { zeroed() }
    }
}
