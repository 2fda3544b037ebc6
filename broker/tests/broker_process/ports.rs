//! **What**: a port for the broker of a test, its own until dropped, over all restarts.
//!
//! **Invariants**: never one that the kernel hands to sockets which ask for any: a client that comes while the broker is down
//! could get it, and the broker could not start (seen). No other test of the machine has it: a locked file says so.
//!
//! **Never**: a number written down.
//!
//! **See**: `interop/conftest.py`, which takes the same locks.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

/// One port, for UDP and TCP.
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    pub fn take() -> Port {
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let ends: Vec<u16> = range.split_whitespace().map(|it| it.parse().unwrap()).collect();
        let mut outside: Vec<u16> = (10_000..65_000).filter(|it| !(ends[0]..=ends[1]).contains(it)).collect();
        if outside.is_empty() {
            // All are handed out here: the locks must do.
            outside = (10_000..65_000).collect();
        }
        // SAFETY: it only tells.
        let folder = std::env::temp_dir().join(format!("felix-test-ports-{}", unsafe { libc::getuid() }));
        fs::create_dir_all(&folder).unwrap();
        let begin = std::process::id() as usize * 61;
        for step in 0..outside.len() {
            let number = outside[(begin + step) % outside.len()];
            let lock = File::create(folder.join(number.to_string())).unwrap();
            let address = (Ipv4Addr::LOCALHOST, number);
            if lock.try_lock().is_ok() && UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok() {
                return Port { number, _lock: lock };
            }
        }
        panic!("no port is free; those that the kernel hands out: {range}");
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}
