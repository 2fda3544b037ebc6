//! **What**: the check of a backup: every file is there, has the bytes that the manifest tells, and holds whole batches in
//! order.
//!
//! **Invariants**: nothing is believed before the digest of the manifest fits; memory is bounded by one batch.
//!
//! **Never**: a change to the folder.
//!
//! **See**: `felix_protocol::backup`.

use super::{Bar, finished, sha256};
use crate::failure::{Exit, Failure};
use felix_client::protocol::backup::{BATCH_BYTES_MAX, BatchWalk, MANIFEST, MANIFEST_BYTES_MAX, Manifest, ShardFile};
use ring::digest::{Context, SHA256};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

const PIECE_BYTES: usize = 1 << 20;

fn bad(path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, format!("{}: {why}; this backup cannot be used, take another", path.display()))
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| bad(path, format_args!("it cannot be read: {error}"))
}

/// Reads and checks all of it.
pub(super) fn verify(folder: &Path, bar: &Bar) -> Result<Manifest, Failure> {
    let path = folder.join(MANIFEST);
    let file = File::open(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            let what = "has no manifest: it is no backup, or one that was interrupted";
            Failure::new(Exit::NotFound, format!("{} {what}", folder.display()))
        }
        _ => unreadable(&path)(error),
    })?;
    let mut text = Vec::new();
    file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut text).map_err(unreadable(&path))?;
    let manifest = Manifest::parse(&text, sha256).map_err(|error| bad(&path, error))?;
    let files = || manifest.streams.iter().flat_map(|stream| stream.files.iter().map(|it| (&stream.info.name, it)));
    bar.expect(files().map(|(_, it)| it.bytes).sum());
    for (name, file) in files() {
        bar.say(&name.to_string());
        shard(folder, file, bar)?;
    }
    Ok(manifest)
}

fn shard(folder: &Path, expected: &ShardFile, bar: &Bar) -> Result<(), Failure> {
    let path = folder.join(ShardFile::path(expected.shard));
    let mut file = File::open(&path).map_err(unreadable(&path))?;
    let found = file.metadata().map_err(unreadable(&path))?.len();
    if found != expected.bytes {
        return Err(bad(&path, format_args!("{found} bytes, expected {}", expected.bytes)));
    }
    let mut hash = Context::new(&SHA256);
    let mut walk = BatchWalk::new(expected);
    let mut held = Vec::with_capacity(BATCH_BYTES_MAX + PIECE_BYTES);
    loop {
        let before = held.len();
        let read = (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut held).map_err(unreadable(&path))?;
        if read == 0 {
            break;
        }
        hash.update(&held[before..]);
        bar.advance(read as u64);
        let mut at = 0;
        while let Some(batch) = walk.next(&held[at..]).map_err(|error| bad(&path, error))? {
            at += batch.len();
        }
        held.drain(..at);
    }
    if !held.is_empty() {
        return Err(bad(&path, "it ends in the middle of a batch"));
    }
    if finished(hash.finish()) != expected.sha256 {
        return Err(bad(&path, "its SHA-256 is another than the manifest says"));
    }
    if walk.batches != expected.batches {
        return Err(bad(&path, format_args!("{} batches, expected {}", walk.batches, expected.batches)));
    }
    Ok(())
}
