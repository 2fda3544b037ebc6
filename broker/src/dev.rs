//! **What**: what a broker keeps about itself on its volume, and the certificates that `felix-broker dev` makes.
//!
//! ```text
//!   DATA/lock                  held for the life of the process
//!   DATA/node.toml             who this node is: cluster, node, region
//!   DATA/secrets/reset.key     32 random bytes: stateless reset tokens
//!   DATA/secrets/retry.key     32 random bytes: address validation tokens
//!   DATA/dev-pki/              development certificates (pki.rs)
//!   DATA/context.toml          how a client on this machine connects
//! ```
//!
//! **Invariants**: every file appears whole or not at all; keys are readable by their owner only; what exists is never
//! silently replaced (an unreadable file is an error that names it), but for development certificates that expired.
//!
//! **Never**: development certificates outside `dev`; a secret in an error or a log.
//!
//! **See**: `boot.rs`, which opens the folder before anything else.

mod files;
mod node;
mod pki;

pub use files::{FileError, write_number};
pub use node::{DataDir, DataDirError, Identity, Secrets};
pub use pki::{DevPki, PRINCIPAL_URI, PkiError, write_context};
