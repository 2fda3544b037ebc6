//! **What**: one client connection of whatever system is measured, and the systems there are.
//!
//! **Invariants**: a party never blocks and never sleeps; every system is driven through this one trait, so the load and
//! the clock are the same code for all. A record's value begins with its intended send time and its number.
//!
//! **Never**: a shortcut that one system's party takes and the others do not.
//!
//! **See**: `load.rs` (who drives them), `quic_party.rs`, `peers/`.

use crate::Error;
use crate::peers::{Mqtt, Nats, Redis, TcpParty, Tls};
use crate::quic_party::QuicParty;
use crate::servers::Target;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// The broker.
    Felix,
    /// The bare quiche relay: what the machine and the library give.
    Floor,
    /// NATS over TLS 1.3.
    NatsTls,
    /// NATS over plain TCP.
    Nats,
    /// Redis pub/sub over TLS 1.3.
    RedisTls,
    /// Redis pub/sub over plain TCP.
    Redis,
    /// Mosquitto, MQTT 3.1.1 QoS 0 over TLS 1.3.
    MosquittoTls,
    /// Mosquitto over plain TCP.
    Mosquitto,
}

impl System {
    /// Its name in options, tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            System::Felix => "felix",
            System::Floor => "floor",
            System::NatsTls => "nats-tls",
            System::Nats => "nats",
            System::RedisTls => "redis-tls",
            System::Redis => "redis",
            System::MosquittoTls => "mosquitto-tls",
            System::Mosquitto => "mosquitto",
        }
    }

    /// It speaks QUIC.
    pub fn is_quic(self) -> bool {
        matches!(self, System::Felix | System::Floor)
    }

    /// It encrypts.
    pub fn is_encrypted(self) -> bool {
        !matches!(self, System::Nats | System::Redis | System::Mosquitto)
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It sends records.
    Publisher,
    /// It gets every record from now on.
    Subscriber,
}

/// Calls back with (intended send time, number) of a record; with (0, number) of an own record that was acknowledged.
pub type OnRecord<'a> = dyn FnMut(u64, u64) + 'a;

/// One connection, polled by its owner.
pub trait Party {
    /// Its socket, for readiness.
    fn fd(&self) -> RawFd;

    /// Queues one publish of `records` records. Numbers count up from 0 over the life of the connection.
    fn publish(&mut self, time_ns: u64, records: u64) -> Result<(), Error>;

    /// The transport did not take all that was queued yet: the next publish has to wait.
    fn has_unsent(&self) -> bool;

    /// Gives the transport and the kernel what they take now, and runs timers that are due.
    fn flush(&mut self, buffer: &mut [u8]) -> Result<(), Error>;

    /// Takes what arrived, at most about `limit` bytes of it; the rest stays, and holds the sender back. Returns whether
    /// anything came.
    fn receive(&mut self, buffer: &mut [u8], limit: usize, on_record: &mut OnRecord) -> Result<bool, Error>;

    /// Largest packet payload on its path, as far as the transport knows.
    fn path_mtu(&self) -> usize;
}

/// Makes the parties of a run: certificates and settings are loaded once.
pub struct Dialler<'a> {
    target: &'a Target,
    value_bytes: usize,
    quic: Option<felix_quic::Connector>,
    tls: Option<Tls>,
}

impl<'a> Dialler<'a> {
    /// For a running server.
    pub fn new(target: &'a Target, value_bytes: usize, udp_payload: usize) -> Result<Dialler<'a>, Error> {
        let system = target.system;
        let quic = if system.is_quic() { Some(crate::lean::connector(target, udp_payload)?) } else { None };
        let tls = if !system.is_quic() && system.is_encrypted() { Some(Tls::load(&target.pki)?) } else { None };
        Ok(Dialler { target, value_bytes, quic, tls })
    }

    /// Connects, and waits until the server confirmed the role.
    pub fn connect(&mut self, role: Role, buffer: &mut [u8]) -> Result<Box<dyn Party>, Error> {
        let (addr, tls, value_bytes) = (self.target.addr, self.tls.as_ref(), self.value_bytes);
        Ok(match self.target.system {
            System::Felix | System::Floor => {
                let connector = self.quic.as_mut().ok_or("a QUIC system without a connector")?;
                Box::new(QuicParty::connect(self.target, connector, role, value_bytes, buffer)?)
            }
            System::NatsTls | System::Nats => Box::new(TcpParty::connect(Nats, addr, tls, role, value_bytes)?),
            System::RedisTls | System::Redis => Box::new(TcpParty::connect(Redis, addr, tls, role, value_bytes)?),
            System::MosquittoTls | System::Mosquitto => {
                Box::new(TcpParty::connect(Mqtt, addr, tls, role, value_bytes)?)
            }
        })
    }
}
