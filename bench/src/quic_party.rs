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
use crate::wire::{Batcher, CHANNEL, STREAM, Unbatcher, create_stream_as, hello, open_channel_to, subscribe_to};
use felix_protocol::frame::Start;
use felix_protocol::metadata::StreamSpec;
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

/// Which stream of a broker, and how.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Its name.
    pub stream: &'a str,
    /// What a publisher makes it with, before anything else.
    pub spec: StreamSpec,
    /// A publisher wants acks: `receive` tells them.
    pub acks: bool,
    /// Where a subscriber begins.
    pub start: Start,
}

impl QuicParty {
    /// Reads of its socket in one `receive` at most.
    pub fn limit_reads(&mut self, reads_max: usize) {
        self.lean.reads_max = reads_max;
    }

    /// Connects and takes the role.
    pub fn connect(
        target: &Target,
        connector: &mut Connector,
        role: Role,
        value_bytes: usize,
        buffer: &mut [u8],
    ) -> Result<QuicParty, Error> {
        let terms = Terms { stream: STREAM, spec: StreamSpec::default(), acks: false, start: Start::Latest };
        QuicParty::connect_to(target, connector, role, &terms, value_bytes, buffer)
    }

    /// Connects and takes the role on a stream; the bare relay has only one.
    pub fn connect_to(
        target: &Target,
        connector: &mut Connector,
        role: Role,
        terms: &Terms,
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
                create_stream_as(&mut lean, terms.stream, terms.spec, buffer)?;
                open_channel_to(&mut lean, terms.stream, terms.acks, buffer)?;
            }
            (Role::Subscriber, true) => subscribe_to(&mut lean, terms.stream, terms.start, buffer)?,
            (Role::Publisher, false) => lean.write_all(0, b"P", buffer)?,
            (Role::Subscriber, false) => lean.write_all(0, b"S", buffer)?,
        }
        let acks = (terms.acks && role == Role::Publisher).then_some(terms.spec.durability);
        Ok(QuicParty {
            lean,
            batcher: Batcher::new(value_bytes, framed),
            unbatcher: Unbatcher::of_acks(acks),
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
