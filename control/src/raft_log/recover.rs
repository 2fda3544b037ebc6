//! **What**: opening the raft log: look first without touching anything, then open, then believe.
//!
//! raft-engine cuts its newest file at the first record that it cannot read, whether that is a write that was never
//! acknowledged or damage in front of a thousand that were. So the log is first opened over a file system that only
//! reads (`probe.rs`), and what would be left is held against `synced`: fewer writes than were synced, or an entry that
//! is not there, is damage, and the folder stays as it is for whoever repairs it.
//!
//! **Invariants**: a log that opens has every write that was acknowledged; one that does not was not changed.
//!
//! **Never**: a panic of raft-engine passed on; an empty log where `synced` tells of writes.
//!
//! **See**: `writer.rs` for what a batch holds.

use super::probe::ReadOnly;
use super::writer::Writer;
use super::{LogMirror, Mirror, RaftLog, caught};
use crate::command::Entry;
use crate::raft_folder::{Folder, OpenError, damaged, io_error, sync_folder};
use crate::raft_frames::{LogHead, decode_entry};
use crate::raft_types::{EntryBytes, LogId, RaftEntry};
use felix_protocol::ids::NodeId;
use openraft::EntryPayload;
use protobuf::well_known_types::BytesValue;
use raft_engine::env::FileSystem;
use raft_engine::internals::FilePipeLog;
use raft_engine::{Config, Engine, MessageExt, ReadableSize, RecoveryMode};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

/// raft-engine's name for the one log in its folder.
pub(super) const GROUP: u64 = 1;
/// Key of the log head.
pub(super) const HEAD_KEY: &[u8] = b"head";
/// A log file; at two of them the oldest goes, as soon as a snapshot covers it.
const FILE_BYTES: u64 = 4 << 20;
const INDEX_BYTES: usize = 8;

/// Tells raft-engine the index of an entry: the first 8 bytes, little-endian.
pub(super) struct Indexed;

impl MessageExt for Indexed {
    type Entry = BytesValue;

    fn index(message: &BytesValue) -> u64 {
        // Shorter is damage; the index that no entry has makes it be found.
        message.value.first_chunk::<INDEX_BYTES>().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))
    }
}

pub(super) fn wrap(index: u64, frame: &[u8]) -> BytesValue {
    let mut message = BytesValue::new();
    message.value.reserve(INDEX_BYTES + frame.len());
    message.value.extend_from_slice(&index.to_le_bytes());
    message.value.extend_from_slice(frame);
    message
}

fn config(folder: &Path) -> Result<Config, OpenError> {
    let dir = folder.to_str().ok_or_else(|| OpenError::Io {
        path: folder.to_path_buf(),
        error: std::io::Error::new(std::io::ErrorKind::InvalidInput, "the path is not UTF-8"),
    })?;
    Ok(Config {
        dir: dir.to_string(),
        recovery_mode: RecoveryMode::TolerateTailCorruption,
        recovery_threads: 1,
        // Entries are small, and bytes that are what was written are easier to examine.
        batch_compression_threshold: ReadableSize(0),
        target_file_size: ReadableSize(FILE_BYTES),
        purge_threshold: ReadableSize(2 * FILE_BYTES),
        // A recycled file begins with old records; a fresh one cannot.
        enable_log_recycle: false,
        ..Config::default()
    })
}

fn open_engine<F: FileSystem>(folder: &Path, files: F) -> Result<Engine<F, FilePipeLog<F>>, OpenError> {
    let config = config(folder)?;
    match caught(|| Engine::open_with_file_system(config, Arc::new(files))) {
        Some(Ok(engine)) => Ok(engine),
        Some(Err(raft_engine::Error::Io(error))) => Err(io_error(folder)(error)),
        Some(Err(raft_engine::Error::Other(error))) if error.to_string().contains("lock") => {
            Err(OpenError::InUse { path: folder.to_path_buf() })
        }
        Some(Err(error)) => Err(damaged(folder, error.to_string())),
        None => Err(damaged(folder, "its records contradict each other")),
    }
}

/// Reads everything that an opened engine holds.
fn load<F: FileSystem>(
    engine: &Engine<F, FilePipeLog<F>>,
    folder: &Path,
    synced_writes: u64,
) -> Result<Mirror, OpenError> {
    let head = match engine.get(GROUP, HEAD_KEY) {
        Some(bytes) => LogHead::decode(&bytes).map_err(|error| damaged(folder, format!("head of the log: {error}")))?,
        None => LogHead::default(),
    };
    if head.writes < synced_writes {
        let found = head.writes;
        let detail = format!("{synced_writes} writes were synced, but only the first {found} are readable");
        return Err(damaged(folder, detail));
    }
    let mut entries = VecDeque::new();
    for index in head.first_index()..head.next_index() {
        let entry = load_entry(engine, index).map_err(|why| damaged(folder, format!("entry {index}: {why}")))?;
        entries.push_back(entry);
    }
    let last = entries.back().map(|entry: &RaftEntry| entry.log_id).or(head.purged);
    if last != head.last {
        return Err(damaged(folder, "the last entry is not the one that the head names"));
    }
    Ok(Mirror::new(head, entries))
}

fn load_entry<F: FileSystem>(engine: &Engine<F, FilePipeLog<F>>, index: u64) -> Result<RaftEntry, String> {
    let message = match caught(|| engine.get_entry::<Indexed>(GROUP, index)) {
        Some(Ok(Some(message))) => message,
        Some(Ok(None)) => return Err("it is missing".to_string()),
        Some(Err(error)) => return Err(error.to_string()),
        None => return Err("it is not where it should be".to_string()),
    };
    let frame = message.value.get(INDEX_BYTES..).unwrap_or_default();
    let entry = decode_entry(frame).map_err(|error| error.to_string())?;
    if entry.log_id.index == index { Ok(entry) } else { Err(format!("it says it is entry {}", entry.log_id.index)) }
}

/// Whether snapshot and log together are everything, and every command in the log is one that this build reads.
fn check(mirror: &Mirror, folder: &Folder, snapshot: Option<LogId>) -> Result<(), OpenError> {
    if mirror.head.purged > snapshot {
        let ends = |last: LogId| format!("the newest snapshot ends at entry {}", last.index);
        let found = snapshot.map_or_else(|| "there is no snapshot".to_string(), ends);
        let detail = format!("the log begins at entry {}, but {found}", mirror.head.first_index());
        return Err(damaged(folder.path(), detail));
    }
    for entry in &mirror.entries {
        if let EntryPayload::Normal(EntryBytes(frame)) = &entry.payload
            && let Err(error) = Entry::decode(frame)
        {
            return Err(damaged(&folder.log(), format!("command of entry {}: {error}", entry.log_id.index)));
        }
    }
    Ok(())
}

/// Opens the log of a folder, or makes it, for this node. `snapshot`: last entry that the newest snapshot covers.
/// Blocks on the disk. The thread ends after the log was dropped.
pub fn open(folder: &Folder, node: NodeId, snapshot: Option<LogId>) -> Result<(RaftLog, JoinHandle<()>), OpenError> {
    open_over(folder, node, snapshot, raft_engine::env::DefaultFileSystem)
}

/// The same over another file system: for tests of what a power cut leaves.
pub(super) fn open_over<F: FileSystem + 'static>(
    folder: &Folder,
    node: NodeId,
    snapshot: Option<LogId>,
    files: F,
) -> Result<(RaftLog, JoinHandle<()>), OpenError> {
    let path = folder.log();
    let synced = folder.synced()?;
    if path.exists() {
        let engine = open_engine(&path, ReadOnly)?;
        check(&load(&engine, &path, synced.writes())?, folder, snapshot)?;
    } else if synced.writes() > 0 {
        return Err(damaged(&path, "it is missing"));
    }
    let engine = open_engine(&path, files)?;
    let mirror = load(&engine, &path, synced.writes())?;
    // raft-engine syncs its files, but not the name of the first one.
    for folder in [path.as_path(), folder.path()] {
        sync_folder(folder).map_err(io_error(folder))?;
    }
    let (writer, thread) = Writer::start(engine, synced).map_err(io_error(&path))?;
    Ok((RaftLog { node, mirror: LogMirror::new(mirror), writer }, thread))
}
