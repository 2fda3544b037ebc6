//! **What**: UDP ping-pong between two pinned threads: the round trip below which no datagram protocol gets.
//!
//! **Invariants**: both sides wait in the same way: polling, or asleep in the kernel.
//!
//! **Never**: anything of Felix.
//!
//! **See**: `relay.rs` for the same with QUIC.

use std::io;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// Round trips of `bytes` bytes in ns, sorted. `pin` puts the answering thread on its CPU.
pub fn round_trips(bytes: usize, count: usize, spin: bool, pin: impl FnOnce() + Send) -> io::Result<Vec<u64>> {
    let (here, there) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    here.connect(there.local_addr()?)?;
    there.connect(here.local_addr()?)?;
    for socket in [&here, &there] {
        socket.set_nonblocking(spin)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    }
    let warm_up = count / 10;
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| {
            pin();
            let mut buffer = [0u8; 65_536];
            for _ in 0..warm_up + count {
                let got = receive(&there, &mut buffer)?;
                there.send(&buffer[..got])?;
            }
            io::Result::Ok(())
        });
        let (message, mut buffer) = (vec![7u8; bytes], [0u8; 65_536]);
        let mut times = Vec::with_capacity(count);
        for index in 0..warm_up + count {
            let started = Instant::now();
            here.send(&message)?;
            receive(&here, &mut buffer)?;
            if index >= warm_up {
                times.push(started.elapsed().as_nanos() as u64);
            }
        }
        answering.join().map_err(|_| io::Error::other("the answering thread panicked"))??;
        times.sort_unstable();
        Ok(times)
    })
}

/// Receives, polling for at most two seconds if the socket does not block.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<usize> {
    let mut started = None;
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let started = started.get_or_insert_with(Instant::now);
                if started.elapsed() > Duration::from_secs(2) {
                    return Err(error);
                }
            }
            other => return other,
        }
    }
}
