//! **What**: the certificates that `felix-broker dev` makes, and the context file that lets a client find them.
//!
//! ```text
//!   DATA/dev-pki/              development certificates (pki.rs)
//!   DATA/context.toml          how a client on this machine connects
//! ```
//!
//! **Invariants**: every file appears whole or not at all; keys are readable by their owner only; what exists is never
//! silently replaced (an unreadable file is an error that names it), but for development certificates that expired.
//!
//! **Never**: development certificates outside `dev`; a secret in an error or a log.
//!
//! **See**: `data_folder.rs` for everything else in DATA; `boot.rs`, which opens the folder before anything else.

mod pki;

pub use pki::{DevPki, PRINCIPAL_URI, PkiError, write_context};
