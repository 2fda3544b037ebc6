//! **What**: whether the broker serves, as `/readyz` tells it.
//!
//! **Invariants**: starting, then serving, then draining, never back; a part that failed for good is told from then on, also
//! while the rest serves.
//!
//! **Never**: a lock: the HTTP door asks at any time.
//!
//! **See**: `control_thread.rs`, which sets it; `http.rs`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// How far the broker is, for `/readyz`.
#[derive(Debug, Default)]
pub struct Readiness {
    stage: AtomicU8,
    failure: OnceLock<String>,
}

impl Readiness {
    /// Serving.
    pub fn set_ready(&self) {
        self.stage.store(1, Ordering::Release);
    }

    /// Shutting down.
    pub fn set_draining(&self) {
        self.stage.store(2, Ordering::Release);
    }

    /// A part failed for good; the first reason counts. Serves what it still can, but should be replaced.
    pub fn set_failed(&self, why: String) {
        let _ = self.failure.set(why);
    }

    /// Ok, or why not.
    pub fn check(&self) -> Result<(), String> {
        if let Some(why) = self.failure.get() {
            return Err(why.clone());
        }
        match self.stage.load(Ordering::Acquire) {
            0 => Err("the broker is starting".to_string()),
            1 => Ok(()),
            _ => Err("the broker is draining".to_string()),
        }
    }
}
