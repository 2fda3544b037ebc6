//! Folders for tests, and what a crash or a bad disk does to them.
#![allow(dead_code, reason = "each test file uses its part")]

use felix_control::node::{ControlNode, Identity, NodeSettings};
use felix_control::raft_folder::OpenError;
use felix_protocol::ids::{ClusterId, NodeId};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

pub fn identity() -> Identity {
    Identity { cluster: ClusterId(0xc1), node: NodeId(0xa1) }
}

/// A folder of its own that is gone afterwards.
pub struct TempFolder(PathBuf);

impl TempFolder {
    pub fn new(what: &str) -> TempFolder {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("felix-control-{what}-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        TempFolder(path.join("metadata"))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.parent().unwrap());
    }
}

/// What is on disk now, as a crash at this moment would leave it.
pub fn copy_folder(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let to = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            copy_folder(&item.path(), &to)
        } else {
            drop(std::fs::copy(item.path(), to))
        }
    }
}

/// On a runtime like the control thread's; everything that was spawned is dropped at the end, as in a crash.
pub fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(work)
}

/// Opens a folder in a runtime of its own, looks, and stops.
pub fn reopened<T>(folder: &Path, look: impl FnOnce(&ControlNode) -> T) -> Result<T, OpenError> {
    on_runtime(async {
        let node = ControlNode::open(folder, identity(), NodeSettings::default()).await?;
        let seen = look(&node);
        node.shutdown().await;
        Ok(seen)
    })
}
