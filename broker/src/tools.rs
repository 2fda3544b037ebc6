//! **What**: the offline tools of `felix-broker`: `check`, `dump`, `repair` on the data folder of a stopped broker, `keyring`
//! also beside a running one, and `restore`, which makes a folder. A map, and what they share.
//!
//! ```text
//! args -> folder (lock, identity) -> check   -> felix_wal::check     read-only disk
//!                                 -> dump    -> felix_wal::dump      read-only disk
//!                                 -> repair  -> felix_wal::repair    first on dry_run, then on the folder
//! backup -> restore -> ControlNode, ShardLog   in DATA.restoring, renamed when it is whole
//!                  -> keyring_file -> keyring -> felix_wal::keyring   one file, under its own lock
//! ```
//!
//! **Invariants**: `check` and `dump` change nothing, not even a lock file. `repair` changes nothing without the words that
//! its dry run printed. Text that comes from the folder is printed with escapes.
//!
//! **Never**: a tool that needs a running broker; a decision made for the user.
//!
//! **See**: `offline_disk.rs`, and `wal/DESIGN.md` for what the findings mean.

pub mod args;
mod check;
mod dry_run;
mod dump;
mod folder;
mod keyring;
mod repair;
mod restore;
mod wal_entries;

use felix_protocol::time::Timestamp;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

pub use check::run as check;
pub use dump::run as dump;
pub use keyring::run as keyring;
pub use repair::run as repair;
pub use restore::run as restore;

/// `check` found nothing, `dump` and `repair` did what they were told.
const CLEAN: u8 = 0;
/// `check` found what is not as it should be and harms nobody; `repair` did nothing.
const HARMLESS: u8 = 1;
/// `check` found damage.
const DAMAGE: u8 = 2;
/// The folder could not be read, or a broker has it open.
const CANNOT_READ: u8 = 3;

/// Runs a tool: an error is a sentence on stderr and code 3. A reader of the output that went away is no error.
pub fn exit(tool: &str, result: Result<u8, folder::ToolError>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(folder::ToolError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(CLEAN),
        Err(error) => {
            let _ = writeln!(io::stderr(), "felix-broker {tool}: {error}");
            ExitCode::from(CANNOT_READ)
        }
    }
}

/// Text from the folder as it may be shown on a terminal.
fn shown(text: &str) -> String {
    text.chars().flat_map(|it| if it.is_control() { it.escape_default().collect() } else { vec![it] }).collect()
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
