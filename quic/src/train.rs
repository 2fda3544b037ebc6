//! Packets of one connection, put together for one send call.
//!
//! **What.** A train is a run of packets to one address that all have the size of the first; the last
//! may be smaller. The kernel (UDP_SEGMENT) cuts it again.
//!
//! ```text
//!   out:  [1200][1200][1200][ 640]      one send, segment 1200
//!   next packet is bigger or goes elsewhere -> it is carried over and leads the next train
//! ```
//!
//! **Invariants.** Every packet that quiche made is sent: it counts it as sent. quiche always gets room
//! for a whole packet, because with less it would record an MTU probe at a size it did not have.
//!
//! **Never.** Two carried packets: the next train starts with the carried one before quiche is asked.
//!
//! **See** `endpoint.rs` (`poll_transmit`).

use crate::conn_id::ConnId;
use crate::connection::Connection;
use crate::event::Transmit;
use crate::stateless::Path;

/// Largest UDP payload of one send call: 65,535 minus IPv4 and UDP headers.
const TRAIN_BYTES_MAX: usize = 65_507;
/// UDP_MAX_SEGMENTS of Linux.
const TRAIN_PACKETS_MAX: usize = 64;

/// A packet that did not fit the train it was made in.
#[derive(Default)]
pub(crate) struct Carried {
    owner: Option<(ConnId, Path)>,
    bytes: Vec<u8>,
}

impl Carried {
    fn store(&mut self, owner: ConnId, packet: &[u8], path: Path) {
        assert!(self.owner.is_none(), "a carried packet was not sent");
        self.bytes.clear();
        self.bytes.extend_from_slice(packet);
        self.owner = Some((owner, path));
    }

    fn take(&mut self, owner: ConnId, out: &mut [u8]) -> Option<(usize, Path)> {
        let (of, path) = self.owner?;
        if of != owner {
            return None;
        }
        self.owner = None;
        out[..self.bytes.len()].copy_from_slice(&self.bytes);
        Some((self.bytes.len(), path))
    }

    /// Whether a packet of this connection waits.
    pub(crate) fn is_of(&self, conn: ConnId) -> bool {
        self.owner.is_some_and(|(of, _)| of == conn)
    }

    /// Drops the packet of a connection that is removed.
    pub(crate) fn forget(&mut self, conn: ConnId) {
        if self.is_of(conn) {
            self.owner = None;
        }
    }
}

/// A train, and what comes after it.
pub(crate) struct Train {
    /// `None`: the connection has nothing to send.
    pub(crate) transmit: Option<Transmit>,
    pub(crate) packets: usize,
    /// Whether quiche said that it has no more.
    pub(crate) drained: bool,
    /// Whether quiche failed to build a packet; it was closed.
    pub(crate) failed: bool,
}

/// Builds the next train of a connection into `out`, which must hold at least `packet_bytes_max`.
pub(crate) fn build(
    id: ConnId,
    connection: &mut Connection,
    carried: &mut Carried,
    out: &mut [u8],
    packet_bytes_max: usize,
) -> Train {
    assert!(out.len() >= packet_bytes_max, "{} bytes cannot hold a packet of {packet_bytes_max}", out.len());
    let room = out.len().min(TRAIN_BYTES_MAX);
    let mut train = Train { transmit: None, packets: 0, drained: false, failed: false };
    let mut bytes = 0;
    let mut first: Option<(usize, Path)> = None;
    if let Some((carried_bytes, path)) = carried.take(id, out) {
        first = Some((carried_bytes, path));
        bytes = carried_bytes;
        train.packets = 1;
    }
    while train.packets < TRAIN_PACKETS_MAX && room - bytes >= packet_bytes_max && !connection.is_cut_off() {
        let (packet_bytes, info) = match connection.quic.send(&mut out[bytes..room]) {
            Ok(sent) => sent,
            Err(quiche::Error::Done) => {
                train.drained = true;
                break;
            }
            Err(_) if train.failed => {
                train.drained = true;
                break;
            }
            Err(_) => {
                // The next round sends the close.
                const INTERNAL_ERROR: u64 = 0x01;
                connection.close_transport(INTERNAL_ERROR);
                train.failed = true;
                continue;
            }
        };
        let path = Path { peer: info.to, local: info.from };
        match first {
            None => first = Some((packet_bytes, path)),
            Some((segment, to)) => {
                let elsewhere = to.peer != path.peer || to.local != path.local;
                if elsewhere || packet_bytes > segment {
                    carried.store(id, &out[bytes..bytes + packet_bytes], path);
                    break;
                }
                if packet_bytes < segment {
                    bytes += packet_bytes;
                    train.packets += 1;
                    break;
                }
            }
        }
        bytes += packet_bytes;
        train.packets += 1;
    }
    train.drained |= connection.is_cut_off();
    train.transmit = first.map(|(segment, path)| Transmit {
        bytes,
        segment_bytes: (train.packets > 1).then_some(segment),
        to: path.peer,
        from: path.local,
    });
    train
}
