//! **What**: SIGINT and SIGTERM as a flag that loops look at, so that a verb can end in order.
//!
//! **Invariants**: the first signal asks, the second ends the process at once with exit code 130.
//!
//! **Never**: work inside a signal handler.
//!
//! **See**: `publish.rs`, `subscribe.rs`, `top.rs`, which look.

use crate::failure::{Exit, Failure};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Longest time a loop may wait before it looks at the flag again: an answer to Ctrl-C that feels immediate.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Whether someone asked us to stop.
#[derive(Clone)]
pub struct Signals {
    raised: Arc<AtomicBool>,
}

impl Signals {
    /// Takes over SIGINT and SIGTERM.
    pub fn install() -> Result<Signals, Failure> {
        let raised = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Order matters: the shutdown looks at the flag before the second handler sets it.
            signal_hook::flag::register_conditional_shutdown(signal, Exit::Interrupted as i32, Arc::clone(&raised))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&raised)))
                .map_err(|error| Failure::new(Exit::Failed, format!("no signal handler: {error}; check the system")))?;
        }
        Ok(Signals { raised })
    }

    /// A signal came.
    pub fn raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// Sleeps, but not on after a signal. True: a signal came.
    pub fn sleep(&self, span: Duration) -> bool {
        let until = std::time::Instant::now() + span;
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            if self.raised() || left.is_zero() {
                return self.raised();
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        }
    }
}
