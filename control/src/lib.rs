//! **What**: the control plane: metadata as a deterministic state machine over a log of encoded commands, placement of
//! shards on cores, snapshots, the watch that feeds the cores, who may do what; and the durable member that keeps the
//! log on disk.
//!
//! ```text
//! pure     client_entry -> command.rs (bytes) -> Replica::apply -> State::apply -> watch.rs (changes for the cores)
//!                                                                  |-> placement.rs
//!                                                                  |-> idempotency.rs  first outcome of a key
//!                                                                  `-> snapshot.rs     State <-> frozen v1 bytes
//! members  member.rs   in memory: Replica and a list of entries
//!          node.rs     durable: Replica behind openraft; raft_log.rs, raft_state.rs, raft_folder.rs on disk
//! ```
//!
//! **Invariants**: the same entries give the same state, bit for bit, on every machine and through every snapshot.
//!
//! **Never**: a clock, thread, socket, file or randomness outside `node.rs` and the `raft_*` files that `tidy` names; an
//! import of ours other than `felix-protocol`.
//!
//! **See**: `replica.rs`, where every entry goes through; DESIGN.md for the choices.
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
