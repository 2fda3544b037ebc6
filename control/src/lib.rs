//! **What**: the control plane's pure part: metadata as a deterministic state machine over a log of encoded commands,
//! placement of shards on cores, snapshots, the watch that feeds the cores, and who may do what.
//!
//! ```text
//! Member::propose -> command.rs (bytes) -> State::apply -> watch.rs (changes for the cores)
//!                                          |-> placement.rs    pure
//!                                          |-> idempotency.rs  first outcome of a repeated key
//!                                          `-> snapshot.rs     State <-> frozen v1 bytes
//! ```
//!
//! **Invariants**: the same entries give the same state, bit for bit, on every machine and through every snapshot.
//!
//! **Never**: a clock, thread, socket, file or randomness; an import other than `felix-protocol`, rkyv and crc32c.
//!
//! **See**: `member.rs`, where a command enters; DESIGN.md for the choices.
#![forbid(unsafe_code)]

pub mod authorise;
pub mod command;
pub mod framed;
pub mod idempotency;
pub mod invariants;
pub mod limits;
pub mod member;
pub mod node;
pub mod placement;
pub mod query;
pub mod raft_folder;
pub mod raft_frames;
pub mod raft_log;
pub mod raft_network;
pub mod raft_state;
pub mod raft_types;
pub mod replica;
pub mod snapshot;
pub mod state;
pub mod watch;
