//! **What**: a nonblocking TCP connection, with TLS 1.3 or without, as a party.
//!
//! **Invariants**: one read of the socket takes up to 64 KiB, also under TLS; one flush is one TLS record (while it is not
//! larger than TLS allows) and one write. TLS offers TLS_AES_128_GCM_SHA256 only, which is also what the QUIC side uses.
//!
//! **Never**: Nagle's algorithm, session resumption.
//!
//! **See**: `mod.rs`.

use super::{Piece, Protocol};
use crate::Error;
use crate::party::{OnRecord, Party, Role};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a server may take for a handshake or an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of one read.
const READ_BYTES: usize = 64 << 10;

/// TLS settings of all connections.
pub struct Tls(Arc<ClientConfig>);

impl Tls {
    /// Trusts the development authority of a broker's data folder.
    pub fn load(pki: &Path) -> Result<Tls, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pki.join("ca.crt"))?)?;
        let provider = crypto::CryptoProvider {
            cipher_suites: vec![crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256],
            ..crypto::ring::default_provider()
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Tls(Arc::new(config)))
    }
}

/// Bytes in and out, in clear on this side.
struct Wire {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    out: Vec<u8>,
    taken: usize,
    /// Bytes that came and are not parsed, from `start` on.
    incoming: Vec<u8>,
    start: usize,
}

/// A TCP connection with a role.
pub struct TcpParty<P> {
    wire: Wire,
    protocol: P,
    value: Vec<u8>,
    next: u64,
    stored: u64,
    answers: usize,
}

impl<P: Protocol> TcpParty<P> {
    /// Connects and takes the role.
    pub fn connect(
        protocol: P,
        addr: SocketAddr,
        tls: Option<&Tls>,
        role: Role,
        value_bytes: usize,
    ) -> Result<TcpParty<P>, Error> {
        let socket = TcpStream::connect(addr)?;
        socket.set_nodelay(true)?;
        if P::GREETING {
            skip_line(&socket)?;
        }
        socket.set_nonblocking(true)?;
        let tls = match tls {
            Some(tls) => {
                let mut connection = ClientConnection::new(tls.0.clone(), ServerName::try_from("localhost")?)?;
                connection.set_buffer_limit(None);
                Some(Box::new(connection))
            }
            None => None,
        };
        let wire = Wire { socket, tls, out: Vec::new(), taken: 0, incoming: Vec::new(), start: 0 };
        let value = vec![0x5a; value_bytes.max(16)];
        let mut party = TcpParty { wire, protocol, value, next: 0, stored: 0, answers: 0 };
        let mut buffer = vec![0; READ_BYTES];
        let hello = party.protocol.hello();
        party.ask(&hello, &mut buffer)?;
        if role == Role::Subscriber {
            let subscribe = party.protocol.subscribe();
            party.ask(&subscribe, &mut buffer)?;
        }
        Ok(party)
    }

    /// Sends and polls until the server answered.
    fn ask(&mut self, bytes: &[u8], buffer: &mut [u8]) -> Result<(), Error> {
        let wanted = self.answers + 1;
        self.wire.out.extend_from_slice(bytes);
        let give_up = Instant::now() + PATIENCE;
        while self.answers < wanted {
            self.flush(buffer)?;
            self.receive(buffer, usize::MAX, &mut |_, _| ())?;
            if Instant::now() > give_up {
                return Err("no answer within 10 s".into());
            }
        }
        Ok(())
    }
}

impl<P: Protocol> Party for TcpParty<P> {
    fn fd(&self) -> RawFd {
        self.wire.socket.as_raw_fd()
    }

    fn publish(&mut self, time_ns: u64, records: u64) -> Result<(), Error> {
        for _ in 0..records {
            self.value[..8].copy_from_slice(&time_ns.to_le_bytes());
            self.value[8..16].copy_from_slice(&self.next.to_le_bytes());
            self.next += 1;
            self.protocol.publish(&self.value, &mut self.wire.out);
        }
        Ok(())
    }

    fn has_unsent(&self) -> bool {
        self.wire.taken < self.wire.out.len() || self.wire.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    fn flush(&mut self, _: &mut [u8]) -> Result<(), Error> {
        self.wire.flush()
    }

    fn receive(&mut self, buffer: &mut [u8], limit: usize, on_record: &mut OnRecord) -> Result<bool, Error> {
        let mut left = limit;
        let mut any = false;
        while left > 0 {
            let wanted = buffer.len().min(left);
            let count = self.wire.read(&mut buffer[..wanted])?;
            if count == 0 {
                break;
            }
            any = true;
            left -= count;
            while let Some((length, piece)) = self.protocol.parse(&self.wire.incoming[self.wire.start..])? {
                match piece {
                    Piece::Record(value) => {
                        if value.len() != self.value.len() {
                            return Err(format!("a record of {} bytes", value.len()).into());
                        }
                        let (time, number) = crate::wire::stamp(value);
                        on_record(time, number);
                    }
                    Piece::Answer => self.answers += 1,
                    Piece::Stored(place) => {
                        if place.is_some_and(|it| it != self.stored) {
                            return Err(format!("an ack for record {place:?}, {} is due", self.stored).into());
                        }
                        on_record(0, self.stored);
                        self.stored += 1;
                    }
                    Piece::Reply(bytes) => self.wire.out.extend_from_slice(bytes),
                    Piece::Noted => {}
                }
                self.wire.start += length;
            }
        }
        if any {
            self.wire.forget_parsed();
            self.wire.flush()?;
        }
        Ok(any)
    }

    fn path_mtu(&self) -> usize {
        let (mut value, mut size) = (0i32, 4u32);
        // SAFETY: both out-parameters are ints of the size that is told, alive through the call.
        let result = unsafe {
            libc::getsockopt(self.fd(), libc::IPPROTO_TCP, libc::TCP_MAXSEG, (&raw mut value).cast(), &raw mut size)
        };
        if result == 0 { usize::try_from(value).unwrap_or(0) } else { 0 }
    }
}

impl Wire {
    fn flush(&mut self) -> Result<(), Error> {
        let waiting = &self.out[self.taken..];
        match &mut self.tls {
            None => {
                self.taken += write(&mut self.socket, waiting)?;
            }
            Some(tls) => {
                // Before the handshake is over nothing is taken: what waits goes as records of its own afterwards.
                if !tls.is_handshaking() && !waiting.is_empty() {
                    tls.writer().write_all(waiting)?;
                    self.taken = self.out.len();
                }
                while tls.wants_write() {
                    match tls.write_tls(&mut self.socket) {
                        Ok(_) => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        if self.taken == self.out.len() {
            self.out.clear();
            self.taken = 0;
        }
        Ok(())
    }

    /// Reads the socket once; returns how many bytes it gave. 0: nothing now.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let count = match self.socket.read(buffer) {
            Ok(0) => return Err("the server closed the connection".into()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let Some(tls) = &mut self.tls else {
            self.incoming.extend_from_slice(&buffer[..count]);
            return Ok(count);
        };
        let mut sealed = &buffer[..count];
        while !sealed.is_empty() {
            tls.read_tls(&mut sealed)?;
            let state = tls.process_new_packets()?;
            let (from, clear) = (self.incoming.len(), state.plaintext_bytes_to_read());
            self.incoming.resize(from + clear, 0);
            tls.reader().read_exact(&mut self.incoming[from..])?;
            if state.peer_has_closed() {
                return Err("the server closed the TLS session".into());
            }
        }
        Ok(count)
    }

    fn forget_parsed(&mut self) {
        self.incoming.copy_within(self.start.., 0);
        self.incoming.truncate(self.incoming.len() - self.start);
        self.start = 0;
    }
}

/// Writes what the socket takes.
fn write(socket: &mut TcpStream, bytes: &[u8]) -> Result<usize, Error> {
    let mut sent = 0;
    while sent < bytes.len() {
        match socket.write(&bytes[sent..]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sent)
}

/// Reads one line in clear, byte by byte, so that nothing behind it is taken.
fn skip_line(mut socket: &TcpStream) -> Result<(), Error> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0u8; 1];
    for _ in 0..super::LINE_MAX {
        socket.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return Ok(());
        }
    }
    Err("a greeting without an end".into())
}
