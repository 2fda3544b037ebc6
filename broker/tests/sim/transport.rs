//! One direction of a simulated QUIC stream: a writer bounded by a window, pieces under way, a reader that reassembles.
//! Loss, doubling and disorder happen to the pieces; what comes out is the stream, late and in odd portions.

use std::collections::BTreeMap;
use std::rc::Rc;

#[derive(Debug, Default)]
pub struct Pipe {
    // Writer.
    pub sent: u64,
    pub limit: u64,
    /// The last send was short.
    pub blocked: bool,
    /// Fin or reset is out.
    pub ended: bool,
    /// The reader said stop.
    pub stopped: bool,
    /// Bytes a client wants to send beyond the window.
    pub backlog: Vec<u8>,
    pub fin_wanted: bool,
    // Reader.
    parts: BTreeMap<u64, Rc<[u8]>>,
    ready: Vec<u8>,
    ready_at: usize,
    got: u64,
    pub read: u64,
    fin_at: Option<u64>,
    pub fin_read: bool,
    pub reset: Option<u16>,
    /// The reader does not want more.
    pub discard: bool,
    /// The reader was told that bytes wait.
    pub announced: bool,
    pub window: u64,
    /// Limit the writer was told.
    pub told: u64,
}

/// What a read gave.
pub enum Got {
    Bytes(Vec<u8>, bool),
    Nothing,
}

impl Pipe {
    pub fn new(window: u64) -> Pipe {
        Pipe { limit: window, told: window, window, ..Pipe::default() }
    }

    pub fn room(&self) -> u64 {
        self.limit - self.sent
    }

    /// A piece arrived. Returns whether the reader has something new.
    pub fn arrive(&mut self, offset: u64, bytes: Rc<[u8]>, fin: bool) -> bool {
        if self.reset.is_some() || self.fin_read {
            return false;
        }
        if fin {
            self.fin_at = Some(offset + bytes.len() as u64);
        }
        if !bytes.is_empty() && offset + bytes.len() as u64 > self.got {
            let longer = self.parts.get(&offset).is_none_or(|old| old.len() < bytes.len());
            if longer {
                self.parts.insert(offset, bytes);
            }
        }
        let before = (self.got, self.is_complete());
        while let Some((offset, bytes)) = self.parts.pop_first() {
            if offset > self.got {
                self.parts.insert(offset, bytes);
                break;
            }
            let skip = (self.got - offset) as usize;
            if skip < bytes.len() {
                if !self.discard {
                    self.ready.extend_from_slice(&bytes[skip..]);
                }
                self.got += (bytes.len() - skip) as u64;
            }
        }
        if self.discard {
            self.read = self.got;
            return false;
        }
        self.got > before.0 || (fin && self.is_complete() && !before.1) || (fin && self.got == offset && !self.fin_read)
    }

    fn is_complete(&self) -> bool {
        self.fin_at == Some(self.got)
    }

    /// Whether a read would give something.
    pub fn is_readable(&self) -> bool {
        self.ready_at < self.ready.len() || (self.is_complete() && !self.fin_read)
    }

    pub fn disordered(&self) -> bool {
        !self.parts.is_empty()
    }

    pub fn recv(&mut self, max: usize) -> Got {
        if !self.is_readable() {
            return Got::Nothing;
        }
        let take = max.min(self.ready.len() - self.ready_at);
        let bytes = self.ready[self.ready_at..self.ready_at + take].to_vec();
        self.ready_at += take;
        self.read += take as u64;
        if self.ready_at == self.ready.len() {
            self.ready.clear();
            self.ready_at = 0;
        }
        let fin = self.fin_at == Some(self.read);
        self.fin_read |= fin;
        Got::Bytes(bytes, fin)
    }

    pub fn drop_unread(&mut self) {
        self.discard = true;
        self.ready.clear();
        self.ready_at = 0;
        self.read = self.got;
    }

    /// A larger limit that the writer should be told of.
    pub fn window_update(&mut self) -> Option<u64> {
        let limit = self.read + self.window;
        if limit >= self.told + self.window / 2 || (self.told == self.got && limit > self.told) {
            self.told = limit;
            return Some(limit);
        }
        None
    }
}

/// Both directions of a stream.
#[derive(Debug)]
pub struct Stream {
    /// Client to broker.
    pub up: Pipe,
    /// Broker to client.
    pub down: Pipe,
}
