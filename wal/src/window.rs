//! **What**: reads a file from front to back in large pieces, one request at a time.
//!
//! **Invariants**: holds what was asked for and at most one piece more. A piece that cannot be read is read again block by
//! block, so that an unreadable block costs itself and not its neighbours; its place is filled with bytes that mean nothing.
//!
//! **Never**: a position beyond the size of the file.
//!
//! **See**: `recover.rs`.

use crate::disk::{BLOCK_BYTES, DiskError, DiskOk, DiskOp, FileKey, FilePath};

/// What stands for the bytes of a block that cannot be read: no header begins like this.
const UNREADABLE: u8 = 0xff;

#[derive(Debug)]
enum State {
    Closed,
    WantsOpen(FilePath),
    Open,
    Wants { end: u64 },
    WantsClose,
}

/// A file being read.
#[derive(Debug)]
pub(crate) struct Window {
    key: FileKey,
    piece_bytes: usize,
    state: State,
    under_way: bool,
    size: u64,
    start: u64,
    buffer: Vec<u8>,
    /// Read single blocks up to here.
    single_until: u64,
    asked: usize,
    read_bytes: u64,
    unreadable: u64,
}

impl Window {
    pub(crate) fn new(key: FileKey, piece_bytes: usize) -> Window {
        assert!(piece_bytes >= BLOCK_BYTES && piece_bytes.is_multiple_of(BLOCK_BYTES));
        Window {
            key,
            piece_bytes,
            state: State::Closed,
            under_way: false,
            size: 0,
            start: 0,
            buffer: Vec::new(),
            single_until: 0,
            asked: 0,
            read_bytes: 0,
            unreadable: 0,
        }
    }

    pub(crate) fn open(&mut self, path: FilePath) {
        assert!(matches!(self.state, State::Closed), "{:?}", self.state);
        self.state = State::WantsOpen(path);
        self.buffer.clear();
        self.start = 0;
        self.size = 0;
        self.single_until = 0;
    }

    pub(crate) fn close(&mut self) {
        if matches!(self.state, State::Open) {
            self.state = State::WantsClose;
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes read so far, of all files.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// Blocks that could not be read, of all files.
    pub(crate) fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// Bytes held.
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// True: these bytes are here, as far as the file reaches. False: they are asked for.
    pub(crate) fn need(&mut self, at: u64, bytes: usize) -> bool {
        let end = at.saturating_add(bytes as u64).min(self.size);
        let here = self.start + self.buffer.len() as u64;
        if at >= self.start && end <= here {
            return true;
        }
        if at < self.start || at > here {
            self.buffer.clear();
            self.start = at - at % BLOCK_BYTES as u64;
        } else {
            let passed = at - at % BLOCK_BYTES as u64 - self.start;
            self.buffer.drain(..passed as usize);
            self.start += passed;
        }
        if at >= self.size {
            return true;
        }
        self.state = State::Wants { end };
        false
    }

    /// Bytes that `need` found; fewer at the end of the file.
    pub(crate) fn get(&self, at: u64, bytes: usize) -> &[u8] {
        let from = at.saturating_sub(self.start) as usize;
        let to = (from + bytes).min(self.buffer.len());
        self.buffer.get(from..to).unwrap_or(&[])
    }

    /// The next operation. One at a time.
    pub(crate) fn op(&mut self) -> Option<DiskOp> {
        if self.under_way {
            return None;
        }
        let op = match &self.state {
            State::Closed | State::Open => return None,
            State::WantsOpen(path) => DiskOp::Open { path: path.clone(), file: self.key },
            State::Wants { .. } => {
                let at = self.start + self.buffer.len() as u64;
                self.asked = if at < self.single_until { BLOCK_BYTES } else { self.piece_bytes };
                DiskOp::Read { file: self.key, at, bytes: self.asked }
            }
            State::WantsClose => DiskOp::Close { file: self.key },
        };
        self.under_way = true;
        Some(op)
    }

    pub(crate) fn on_done(&mut self, result: Result<DiskOk, DiskError>) -> Result<(), DiskError> {
        self.under_way = false;
        match (&self.state, result) {
            (State::WantsOpen(_), Ok(DiskOk::Opened { bytes })) => {
                self.size = bytes;
                self.state = State::Open;
            }
            (State::Wants { end }, Ok(DiskOk::Bytes(bytes))) => {
                let end = *end;
                self.read_bytes += bytes.len() as u64;
                self.buffer.extend_from_slice(&bytes);
                let here = self.start + self.buffer.len() as u64;
                if bytes.len() < self.asked {
                    // The file is shorter than it was when it was opened.
                    self.size = self.size.min(here);
                }
                if here >= end.min(self.size) {
                    self.state = State::Open;
                }
            }
            (State::Wants { end }, Err(DiskError::Io { .. })) => {
                let end = *end;
                let at = self.start + self.buffer.len() as u64;
                if self.asked > BLOCK_BYTES {
                    self.single_until = at + self.asked as u64;
                    return Ok(());
                }
                self.unreadable += 1;
                let block = (self.size - at).min(BLOCK_BYTES as u64) as usize;
                self.read_bytes += block as u64;
                self.buffer.resize(self.buffer.len() + block, UNREADABLE);
                if at + block as u64 >= end {
                    self.state = State::Open;
                }
            }
            (State::WantsClose, _) => self.state = State::Closed,
            (_, Err(error)) => return Err(error),
            (_, Ok(_)) => return Err(DiskError::Io { errno: 0 }),
        }
        Ok(())
    }
}
