//! **What**: the lean QUIC client as a party, for the broker and for the bare relay.
//!
//! **Invariants**: what flow control does not take waits in one buffer; nothing is dropped.
//!
//! **Never**: a difference between broker and floor beyond the frames.
//!
//! **See**: `lean.rs`, `wire.rs`.

use crate::Error;
use crate::lean::Lean;
use crate::party::{OnRecord, Party, Role};
use crate::servers::Target;
use crate::wire::{Batcher, CHANNEL, Unbatcher, create_stream, hello, open_channel, subscribe};
use felix_protocol::frame::Start;
use felix_quic::Connector;
use std::os::fd::{AsRawFd, RawFd};

/// A QUIC connection with a role.
pub struct QuicParty {
    lean: Lean,
    batcher: Batcher,
    unbatcher: Unbatcher,
    channel: u64,
    framed: bool,
    value_bytes: usize,
    out: Vec<u8>,
    taken: usize,
    incoming: Vec<u8>,
}

impl QuicParty {
    /// Connects and takes the role.
    pub fn connect(
        target: &Target,
        connector: &mut Connector,
        role: Role,
        value_bytes: usize,
        buffer: &mut [u8],
    ) -> Result<QuicParty, Error> {
        let framed = target.is_broker();
        let mut lean = Lean::connect(target, connector)?;
        lean.finish_handshake(buffer)?;
        if framed {
            hello(&mut lean, buffer)?;
        }
        match (role, framed) {
            (Role::Publisher, true) => {
                create_stream(&mut lean, buffer)?;
                open_channel(&mut lean, false, buffer)?;
            }
            (Role::Subscriber, true) => subscribe(&mut lean, Start::Latest, buffer)?,
            (Role::Publisher, false) => lean.write_all(0, b"P", buffer)?,
            (Role::Subscriber, false) => lean.write_all(0, b"S", buffer)?,
        }
        Ok(QuicParty {
            lean,
            batcher: Batcher::new(value_bytes, framed),
            unbatcher: Unbatcher::default(),
            channel: if framed { CHANNEL } else { 0 },
            framed,
            value_bytes,
            out: Vec::new(),
            taken: 0,
            incoming: Vec::new(),
        })
    }
}

impl Party for QuicParty {
    fn fd(&self) -> RawFd {
        self.lean.socket().as_raw_fd()
    }

    fn publish(&mut self, time_ns: u64, records: u64) -> Result<(), Error> {
        self.batcher.make(time_ns, records, &mut self.out)
    }

    fn has_unsent(&self) -> bool {
        self.taken < self.out.len()
    }

    fn flush(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        if self.taken < self.out.len() {
            self.taken += self.lean.conn.stream_send(self.channel, &self.out[self.taken..], false)?;
            if self.taken == self.out.len() {
                self.out.clear();
                self.taken = 0;
            }
        }
        self.lean.send(buffer);
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8], limit: usize, on_record: &mut OnRecord) -> Result<bool, Error> {
        if !self.lean.receive(buffer)? && self.lean.readable.is_empty() {
            return Ok(false);
        }
        self.incoming.clear();
        while self.incoming.len() < limit {
            let Some(stream) = self.lean.readable.pop() else { break };
            let wanted = limit - self.incoming.len();
            if self.lean.read_at_most(stream, wanted, &mut self.incoming) == wanted {
                self.lean.readable.push(stream);
            }
        }
        self.unbatcher.take(&self.incoming, self.framed, self.value_bytes, on_record)?;
        // Acknowledgements and window updates.
        self.flush(buffer)?;
        Ok(true)
    }

    fn path_mtu(&self) -> usize {
        self.lean.conn.conn_stats().path_mtu_bytes
    }
}
