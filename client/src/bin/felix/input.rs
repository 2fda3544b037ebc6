//! **What**: lines of stdin or a file, read ahead by a thread, so that the reader can also look at signals and know
//! when input is idle.
//!
//! ```text
//! file or stdin --> thread --> chunks, at most CHUNKS_AHEAD --> Lines::next --> one line, without its newline
//! ```
//!
//! **Invariants**: lines come in order, numbered from 1; only the one newline is taken off (a CR before it is data);
//! a last line without a newline counts. Memory is bounded: a line over the limit is told, not kept.
//!
//! **Never**: waiting for a line when a signal came.
//!
//! **See**: `publish.rs`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

/// Bytes per read: large enough that the channel costs nothing per line.
const CHUNK_BYTES: usize = 128 << 10;
/// Chunks read ahead of the publisher.
const CHUNKS_AHEAD: usize = 4;

/// One step of the input.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// A line.
    Line(&'a [u8]),
    /// A line over the limit; its bytes are gone.
    TooLong,
    /// Nothing within the time given.
    Idle,
    /// No more.
    End,
}

/// The lines of an input.
pub struct Lines {
    chunks: Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
    /// The start of a line that began in an earlier chunk.
    carry: Vec<u8>,
    /// `carry` was handed out and is to be emptied.
    carry_is_done: bool,
    too_long: bool,
    line_bytes_max: usize,
    number: u64,
    bytes_read: u64,
}

impl Lines {
    /// Reads a file, or stdin if there is none. A line has at most `line_bytes_max` bytes.
    pub fn open(file: Option<&Path>, line_bytes_max: usize) -> io::Result<Lines> {
        Ok(match file {
            Some(path) => Lines::new(File::open(path)?, line_bytes_max),
            None => Lines::new(io::stdin(), line_bytes_max),
        })
    }

    /// Reads anything.
    pub fn new(mut source: impl Read + Send + 'static, line_bytes_max: usize) -> Lines {
        let (send, chunks) = sync_channel(CHUNKS_AHEAD);
        std::thread::spawn(move || {
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let read = match source.read(&mut chunk) {
                    Ok(0) => return,
                    Ok(count) => {
                        chunk.truncate(count);
                        Ok(chunk)
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => Err(error),
                };
                let failed = read.is_err();
                if send.send(read).is_err() || failed {
                    return;
                }
            }
        });
        Lines {
            chunks,
            chunk: Vec::new(),
            at: 0,
            carry: Vec::new(),
            carry_is_done: false,
            too_long: false,
            line_bytes_max,
            number: 0,
            bytes_read: 0,
        }
    }

    /// Number of the line handed out last, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Bytes of the input that lines were made of so far; what is read ahead does not count.
    pub fn bytes_taken(&self) -> u64 {
        self.bytes_read - (self.chunk.len() - self.at) as u64
    }

    /// The next line, or what there is instead after `wait`.
    pub fn next(&mut self, wait: Duration) -> io::Result<Next<'_>> {
        if self.carry_is_done {
            self.carry.clear();
            self.carry_is_done = false;
        }
        loop {
            let rest = &self.chunk[self.at..];
            if let Some(length) = rest.iter().position(|byte| *byte == b'\n') {
                let line = self.at..self.at + length;
                self.at += length + 1;
                return Ok(self.end_line(line));
            }
            if !rest.is_empty() {
                self.keep(self.at..self.chunk.len());
                self.at = self.chunk.len();
            }
            match self.chunks.recv_timeout(wait) {
                Ok(chunk) => {
                    self.chunk = chunk?;
                    self.at = 0;
                    self.bytes_read += self.chunk.len() as u64;
                }
                Err(RecvTimeoutError::Timeout) => return Ok(Next::Idle),
                Err(RecvTimeoutError::Disconnected) if self.carry.is_empty() && !self.too_long => return Ok(Next::End),
                Err(RecvTimeoutError::Disconnected) => return Ok(self.end_line(self.at..self.at)),
            }
        }
    }

    /// Keeps a part of a line for later, up to the limit.
    fn keep(&mut self, part: std::ops::Range<usize>) {
        if self.too_long || self.carry.len() + part.len() > self.line_bytes_max {
            self.too_long = true;
            self.carry.clear();
        } else {
            self.carry.extend_from_slice(&self.chunk[part]);
        }
    }

    /// The line that ends with this part of the chunk.
    fn end_line(&mut self, part: std::ops::Range<usize>) -> Next<'_> {
        self.number += 1;
        if self.too_long || self.carry.len() + part.len() > self.line_bytes_max {
            self.too_long = false;
            self.carry.clear();
            return Next::TooLong;
        }
        if self.carry.is_empty() {
            return Next::Line(&self.chunk[part]);
        }
        self.carry.extend_from_slice(&self.chunk[part]);
        self.carry_is_done = true;
        Next::Line(&self.carry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its parts one read at a time, so that lines break anywhere.
    struct Parts(std::vec::IntoIter<Vec<u8>>);

    impl Read for Parts {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.next() {
                Some(part) if part == b"!" => Err(io::ErrorKind::InvalidData.into()),
                Some(part) => {
                    buffer[..part.len()].copy_from_slice(&part);
                    Ok(part.len())
                }
                None => Ok(0),
            }
        }
    }

    fn lines(parts: &[&[u8]], max: usize) -> Lines {
        let parts: Vec<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        Lines::new(Parts(parts.into_iter()), max)
    }

    fn all(mut lines: Lines) -> Vec<(u64, Option<Vec<u8>>)> {
        let mut found = Vec::new();
        loop {
            let line = match lines.next(Duration::from_secs(10)).unwrap() {
                Next::Line(line) => Some(line.to_vec()),
                Next::TooLong => None,
                Next::End => return found,
                Next::Idle => panic!("the input is at its end, not idle"),
            };
            found.push((lines.number(), line));
        }
    }

    #[test]
    fn lines_however_they_are_cut() {
        let text = b"one\n\ntwo\r\nthree\xff\nlast";
        let expected: Vec<&[u8]> = vec![b"one", b"", b"two\r", b"three\xff", b"last"];
        for size in 1..=text.len() {
            let parts: Vec<&[u8]> = text.chunks(size).collect();
            let found = all(lines(&parts, 100));
            assert_eq!(
                found.iter().map(|(_, line)| line.clone().unwrap()).collect::<Vec<_>>(),
                expected,
                "size {size}"
            );
            assert_eq!(found.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        }
        assert_eq!(all(lines(&[b"a\n"], 10)).len(), 1, "no line after the last newline");
        assert_eq!(all(lines(&[], 10)), []);
    }

    #[test]
    fn a_line_over_the_limit_is_told_and_the_next_is_whole() {
        let text = b"12345\n123456\n1234567890123\nabc\n123456";
        for size in [1, 3, 7, text.len()] {
            let parts: Vec<&[u8]> = text.chunks(size).collect();
            let found = all(lines(&parts, 5));
            let expected = [Some(b"12345".to_vec()), None, None, Some(b"abc".to_vec()), None];
            assert_eq!(found.into_iter().map(|(_, line)| line).collect::<Vec<_>>(), expected, "size {size}");
        }
    }

    #[test]
    fn an_error_comes_after_the_lines_before_it() {
        let mut input = lines(&[b"a\nb", b"!"], 10);
        assert_eq!(input.next(Duration::from_secs(10)).unwrap(), Next::Line(b"a"));
        assert!(input.next(Duration::from_secs(10)).is_err());
    }

    #[test]
    fn an_input_that_waits_is_idle() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut input = Lines::new(reader, 100);
        assert_eq!(input.next(Duration::from_millis(1)).unwrap(), Next::Idle);
        io::Write::write_all(&mut writer, b"x\ny").unwrap();
        assert_eq!(input.next(Duration::from_secs(10)).unwrap(), Next::Line(b"x"));
        assert_eq!(input.bytes_taken(), 2);
        assert_eq!(input.next(Duration::from_millis(1)).unwrap(), Next::Idle);
        drop(writer);
        assert_eq!(input.next(Duration::from_secs(10)).unwrap(), Next::Line(b"y"));
        assert_eq!(input.next(Duration::from_secs(10)).unwrap(), Next::End);
        assert_eq!(input.bytes_taken(), 3);
    }
}
