//! A core's outside: the `Links` of the simulation.

use crate::sim::{Ev, Sim};
use crate::transport::Got;
use felix_broker::links::{LinkError, Links, Read};
use felix_broker::message::MeshMessage;
use felix_quic::LentBytes;
use felix_shard::event::ConnKey;

pub struct Side<'a> {
    pub sim: &'a mut Sim,
    pub core: usize,
}

impl Side<'_> {
    fn conn(&self, key: ConnKey) -> Result<usize, LinkError> {
        let conn = *self.sim.ports[self.core].keys.get(&key.0).ok_or(LinkError::Closed)?;
        if self.sim.conns[conn].broker_gone { Err(LinkError::Closed) } else { Ok(conn) }
    }
}

impl Links for Side<'_> {
    fn stream_recv(&mut self, key: ConnKey, stream: u64, buffer: &mut [u8]) -> Result<Read, LinkError> {
        let conn = self.conn(key)?;
        let few = self.sim.rng.chance(100);
        let max = if few { self.sim.rng.range(1, 50) as usize } else { buffer.len() };
        let down_ended = self.sim.pipe(conn, stream, false).ended;
        let pipe = self.sim.pipe(conn, stream, true);
        if pipe.reset.is_some() || pipe.discard {
            return Err(LinkError::StreamClosed);
        }
        match pipe.recv(max.min(buffer.len())) {
            Got::Bytes(bytes, fin) => {
                buffer[..bytes.len()].copy_from_slice(&bytes);
                self.sim.announce_window(conn, stream, true);
                Ok(Read { bytes: bytes.len(), fin })
            }
            // The end is told once; afterwards the stream is empty, or forgotten if our side has ended too.
            Got::Nothing if pipe.fin_read && down_ended => Err(LinkError::StreamClosed),
            Got::Nothing => {
                pipe.announced = false;
                Err(LinkError::WouldBlock)
            }
        }
    }

    fn stream_send(&mut self, key: ConnKey, stream: u64, bytes: &[u8], fin: bool) -> Result<usize, LinkError> {
        let conn = self.conn(key)?;
        self.sim.broker_send(conn, stream, bytes, fin).ok_or(LinkError::StreamClosed)
    }

    fn stream_lend(&mut self, key: ConnKey, stream: u64, bytes: LentBytes) -> Result<usize, LinkError> {
        self.stream_send(key, stream, (*bytes).as_ref(), false)
    }

    fn stream_capacity(&mut self, key: ConnKey, stream: u64) -> usize {
        self.conn(key).map_or(0, |conn| self.sim.pipe(conn, stream, false).room() as usize)
    }

    fn stream_wait(&mut self, key: ConnKey, stream: u64) -> Result<bool, LinkError> {
        let conn = self.conn(key)?;
        let pipe = self.sim.pipe(conn, stream, false);
        if pipe.ended || pipe.stopped {
            return Err(LinkError::StreamClosed);
        }
        pipe.blocked = pipe.room() == 0;
        Ok(!pipe.blocked)
    }

    fn stop_reading(&mut self, key: ConnKey, stream: u64, _code: u16) {
        let Ok(conn) = self.conn(key) else { return };
        self.sim.pipe(conn, stream, true).drop_unread();
        let after = self.sim.conns[conn].net.delay;
        self.sim.at(after, Ev::Stop { conn, stream, up: true });
    }

    fn reset(&mut self, key: ConnKey, stream: u64, _code: u16) {
        let Ok(conn) = self.conn(key) else { return };
        self.sim.pipe(conn, stream, false).ended = true;
        let after = self.sim.conns[conn].net.delay;
        self.sim.at(after, Ev::Reset { conn, stream, up: false });
    }

    fn open_uni(&mut self, key: ConnKey) -> Result<u64, LinkError> {
        let conn = self.conn(key)?;
        self.sim.broker_open(conn).ok_or(LinkError::StreamLimit)
    }

    fn datagram_send(&mut self, key: ConnKey, bytes: &[u8]) -> Result<(), LinkError> {
        let conn = self.conn(key)?;
        self.sim.broker_datagram(conn, bytes).map_err(|too_large| match too_large {
            true => LinkError::TooLarge,
            false => LinkError::WouldBlock,
        })
    }

    fn close(&mut self, key: ConnKey, code: u16, reason: &str) {
        let Ok(conn) = self.conn(key) else { return };
        let now = self.sim.now;
        self.sim.trace.line(now, || format!("core {} closes conn {conn}: {code} {reason}", self.core));
        self.sim.broker_end(conn);
        let after = self.sim.conns[conn].net.delay;
        self.sim.at(after, Ev::ClientLearns { conn, code: Some(code) });
    }

    fn mesh_send(&mut self, to: usize, message: MeshMessage) -> Result<(), MeshMessage> {
        let now = self.sim.now;
        let core = self.core;
        self.sim.trace.line(now, || format!("mesh {core} -> {to}: {}", short(&message)));
        crate::faults::mesh_send(self.sim, core, to, message)
    }
}

fn short(message: &MeshMessage) -> String {
    let mut text = match message {
        MeshMessage::Publish { shard, channel, batch } => {
            format!("Publish {shard} {channel:?} {:?}", batch.facts().base_sequence)
        }
        MeshMessage::Commit { shard, batch } => format!("Commit {shard} {:?}", batch.range()),
        MeshMessage::Fetched { sub, batches, high_watermark } => {
            format!("Fetched {sub:?} {} batches, end {high_watermark}", batches.len())
        }
        other => format!("{other:?}"),
    };
    text.truncate(200);
    text
}
