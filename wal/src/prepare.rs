//! **What**: makes the next file of a core WAL ahead of its use: create with zeros, write the header, sync.
//!
//! **Invariants**: one file at a time. A full disk is not a failure: what was begun is taken back, and it is tried again
//! when space returns or a while has passed. A number is never used for two files.
//!
//! **Never**: an entry in a file whose header is not durable.
//!
//! **See**: `core_wal.rs`.

use felix_protocol::time::Time;

use crate::disk::{DiskError, DiskOk, DiskOp, DiskRequest, FileKey, Priority, Ticket};
use crate::format::header::{FileHeader, HEADER_BYTES, Identity, Owner};
use crate::format::names::{Name, WalId};
use crate::ring::WalFile;

/// What a completion led to.
#[derive(Debug)]
pub(crate) enum Prepared {
    Nothing,
    File(WalFile),
    Failed(DiskError),
}

/// The step that is wanted or under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Idle,
    Create,
    Header,
    Sync,
    /// Taking back after a full disk.
    Close,
    Remove,
}

/// Makes files.
#[derive(Debug)]
pub(crate) struct Prepare {
    identity: Identity,
    wal: WalId,
    salt: u128,
    owner: u32,
    file_bytes: u64,
    number: u32,
    step: Step,
    submitted: bool,
    full_until: Option<Time>,
    header: Vec<u8>,
}

impl Prepare {
    /// Tickets of this planner have it set, those of the WAL's own have not.
    pub(crate) const TICKET_BIT: u32 = 1 << 31;

    pub(crate) fn new(identity: Identity, wal: WalId, salt: u128, owner: u32, file_bytes: u64) -> Prepare {
        Prepare {
            identity,
            wal,
            salt,
            owner,
            file_bytes,
            number: 0,
            step: Step::Idle,
            submitted: false,
            full_until: None,
            header: Vec::with_capacity(HEADER_BYTES),
        }
    }

    pub(crate) fn is_for(ticket: Ticket) -> bool {
        ticket.number() & Prepare::TICKET_BIT != 0
    }

    pub(crate) fn is_full(&self) -> bool {
        self.full_until.is_some()
    }

    /// Nothing is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.submitted
    }

    pub(crate) fn retry(&mut self) {
        if self.full_until.is_some() {
            self.full_until = Some(Time(0));
        }
    }

    pub(crate) fn retry_at(&self) -> Option<Time> {
        self.full_until.filter(|_| self.step == Step::Idle)
    }

    /// A file is wanted, if none is in the making. The full state ends only when one was made.
    pub(crate) fn start(&mut self, now: Time) -> bool {
        let starts = self.step == Step::Idle && self.full_until.is_none_or(|until| until <= now);
        if starts {
            self.number += 1;
            self.step = Step::Create;
        }
        starts
    }

    fn key(&self) -> FileKey {
        FileKey::new(self.owner, self.number)
    }

    pub(crate) fn plan(&mut self, out: &mut Vec<DiskRequest>) {
        // Every turn comes by here, and a path is an allocation.
        if self.submitted || self.step == Step::Idle {
            return;
        }
        let file = self.key();
        let path = Name::WalFile(self.wal, self.number).path();
        let op = match self.step {
            Step::Idle => return,
            Step::Create => DiskOp::Create { path, file, bytes: self.file_bytes, zeroed: true },
            Step::Header => {
                let owner = Owner::Wal { wal: self.wal, number: self.number };
                let header = FileHeader { identity: self.identity, session: self.wal.session, salt: self.salt, owner };
                let mut bytes = std::mem::take(&mut self.header);
                bytes.clear();
                header.encode(&mut bytes);
                DiskOp::Write { file, at: 0, bytes }
            }
            Step::Sync => DiskOp::Sync { file },
            Step::Close => DiskOp::Close { file },
            Step::Remove => DiskOp::Remove { path },
        };
        self.submitted = true;
        let ticket = Ticket::new(self.owner, Prepare::TICKET_BIT | self.step as u32);
        out.push(DiskRequest { ticket, priority: Priority::Background, op });
    }

    pub(crate) fn on_done(&mut self, now: Time, retry_ns: u64, result: Result<DiskOk, DiskError>) -> Prepared {
        self.submitted = false;
        let mut done = Prepared::Nothing;
        self.step = match (self.step, result) {
            (Step::Create, Ok(_)) => Step::Header,
            (Step::Header, Ok(ok)) => {
                if let DiskOk::Written(bytes) = ok {
                    self.header = bytes;
                }
                Step::Sync
            }
            (Step::Sync, Ok(_)) => {
                self.full_until = None;
                done = Prepared::File(WalFile::new(self.number, self.key()));
                Step::Idle
            }
            (Step::Create, Err(error)) if error.passes() => {
                self.full_until = Some(now.after_ns(retry_ns));
                Step::Idle
            }
            (Step::Header | Step::Sync, Err(error)) if error.passes() => {
                self.full_until = Some(now.after_ns(retry_ns));
                Step::Close
            }
            (Step::Close, _) => Step::Remove,
            (Step::Remove, _) => Step::Idle,
            (step, Err(error)) => {
                done = Prepared::Failed(error);
                step
            }
            (Step::Idle, Ok(_)) => Step::Idle,
        };
        done
    }
}
