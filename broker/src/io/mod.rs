//! **What**: the edge of the broker: sockets, executors, waiting, and the mesh between cores.
//!
//! ```text
//!   addr, fixed     socket addresses, memory that the kernel points into
//!   sys             system calls of the self-check
//!   bind            one SO_REUSEPORT group per listen address, steering by connection id
//!   udp, transmit   datagrams in (recvmmsg, GRO), datagrams out (sendmmsg, GSO)
//!   doorbell, mesh  bounded rings between cores, and who must be woken
//!   disk            writes, reads and syncs of a core's files; one helper thread for what blocks
//!   executor, wait,
//!   peek            one pinned glommio executor per core, and how its loop waits
//! ```
//!
//! **Invariants**: every bound is a constant or an option; nothing here allocates per datagram or per message.
//!
//! **Never**: glommio named outside this folder; `unsafe` outside this folder; what a datagram means.
//!
//! **See**: `core_loop.rs`, the one user of all this.

mod addr;
pub mod bind;
pub mod disk;
pub mod doorbell;
pub mod executor;
mod fixed;
pub mod mesh;
mod peek;
pub mod sys;
pub mod transmit;
pub mod udp;
pub mod wait;
