//! **What**: the broker: one pinned executor per core, each with its connections, the shards it leads and the
//! subscribers it serves; a control thread beside them. This file is a map.
//!
//! ```text
//! main -> boot -> core_loop (one per core) -> core -> requests   control frames
//!                      |                       |  -> publish    channels, own or forwarded
//!                      |                       `  -> delivery   fan-out to subscribers
//!                      `-> io  sockets, mesh, executor, waiting: the only place that names glommio
//!         control_thread -> felix_control, stats_book, http, readiness, space, tls_files, node_keys -> keyring_file
//! main -> tools -> offline_disk         check, dump, repair, restore: without a broker
//!               -> keyring_file         keyring: beside one
//! ```
//!
//! **Invariants**: cores share nothing but immutable batches; they speak only through the mesh.
//!
//! **Never**: a lock on the path of a message; glommio outside `io`.
//!
//! **See**: ARCHITECTURE.md for the path of a message.

#![deny(unsafe_code)]

pub mod admission;
pub mod boot;
pub mod channel;
pub mod config;
pub mod control_thread;
pub mod core;
pub mod core_loop;
pub mod data_folder;
pub mod delivery;
pub mod dev;
pub mod egress;
pub mod http;
#[allow(unsafe_code, reason = "system calls of sockets and of the executor are made here and nowhere else")]
pub mod io;
pub mod keyring_file;
pub mod links;
pub mod log;
pub mod message;
pub mod metrics;
pub mod node_keys;
pub mod offline_disk;
pub mod principal;
pub mod publish;
pub mod readiness;
pub mod requests;
pub mod route;
pub mod self_check;
pub mod session;
pub mod space;
pub mod stats_book;
pub mod storage_log;
pub mod tls_files;
pub mod tools;
