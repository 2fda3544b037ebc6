//! **What**: a file system for raft-engine that reads and pretends to write.
//!
//! **Invariants**: no file is made, cut, written, renamed or deleted through it.
//!
//! **Never**: in use after the look: an engine over it forgets everything.
//!
//! **See**: `recover.rs`, which looks.

use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission, WriteExt};
use std::io::{Error, ErrorKind, Result, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

/// Reads through the real file system.
pub(super) struct ReadOnly;

type RealHandle = <DefaultFileSystem as FileSystem>::Handle;

/// An open file, or one that would have been made.
pub(super) struct Look(Option<Arc<RealHandle>>);

impl Handle for Look {
    fn truncate(&self, _offset: usize) -> Result<()> {
        Ok(())
    }

    fn file_size(&self) -> Result<usize> {
        self.0.as_ref().map_or(Ok(0), |file| file.file_size())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

/// Takes bytes and forgets them.
#[derive(Default)]
pub(super) struct Sink {
    offset: u64,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.offset += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Seek for Sink {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        match to {
            SeekFrom::Start(offset) => self.offset = offset,
            SeekFrom::Current(by) => self.offset = self.offset.saturating_add_signed(by),
            SeekFrom::End(_) => return Err(Error::from(ErrorKind::Unsupported)),
        }
        Ok(self.offset)
    }
}

impl WriteExt for Sink {
    fn truncate(&mut self, _offset: usize) -> Result<()> {
        Ok(())
    }

    fn allocate(&mut self, _offset: usize, _size: usize) -> Result<()> {
        Ok(())
    }
}

impl FileSystem for ReadOnly {
    type Handle = Look;
    type Reader = <DefaultFileSystem as FileSystem>::Reader;
    type Writer = Sink;

    fn create<P: AsRef<Path>>(&self, _path: P) -> Result<Look> {
        Ok(Look(None))
    }

    fn open<P: AsRef<Path>>(&self, path: P, _permission: Permission) -> Result<Look> {
        let file = DefaultFileSystem.open(path, Permission::ReadOnly)?;
        Ok(Look(Some(Arc::new(file))))
    }

    fn delete<P: AsRef<Path>>(&self, _path: P) -> Result<()> {
        Ok(())
    }

    fn rename<P: AsRef<Path>>(&self, _from: P, _to: P) -> Result<()> {
        Ok(())
    }

    fn new_reader(&self, handle: Arc<Look>) -> Result<Self::Reader> {
        let file = handle.0.clone().ok_or_else(|| Error::from(ErrorKind::NotFound))?;
        DefaultFileSystem.new_reader(file)
    }

    fn new_writer(&self, _handle: Arc<Look>) -> Result<Sink> {
        Ok(Sink::default())
    }
}
