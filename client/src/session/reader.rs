//! **What**: the bytes of one QUIC stream to whole frames, each with at most one copy.
//!
//! **Invariants**: a frame that lies whole in the read is handed out where it lies; only a frame that spans reads is
//! collected, in a buffer that grows with what came, to the frame's own length.
//!
//! **Never**: a buffer of an announced size before the bytes are there.
//!
//! **See**: `felix_protocol::envelope::frame_length`, which bounds the length at the first 16 bytes.

use felix_protocol::codec::DecodeError;
use felix_protocol::envelope::frame_length;
use felix_protocol::frame_stream::split_first_frame;
use felix_protocol::limits::ENVELOPE_BYTES;

/// One whole frame: borrowed from the read, or collected.
#[derive(Debug)]
pub(crate) enum FrameBytes<'a> {
    Borrowed(&'a [u8]),
    Collected(Vec<u8>),
}

impl FrameBytes<'_> {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            FrameBytes::Borrowed(bytes) => bytes,
            FrameBytes::Collected(bytes) => bytes,
        }
    }

    pub(crate) fn into_vec(self) -> Vec<u8> {
        match self {
            FrameBytes::Borrowed(bytes) => bytes.to_vec(),
            FrameBytes::Collected(bytes) => bytes,
        }
    }
}

/// The unfinished frame of one stream.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    partial: Vec<u8>,
}

impl FrameReader {
    /// Bytes held.
    pub(crate) fn held(&self) -> usize {
        self.partial.len()
    }

    /// Takes the next whole frame off the front of `bytes`. None: `bytes` is used up and more is needed.
    pub(crate) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<FrameBytes<'a>>, DecodeError> {
        if self.partial.is_empty() {
            return match split_first_frame(bytes)? {
                Some((frame, rest)) => {
                    *bytes = rest;
                    Ok(Some(FrameBytes::Borrowed(frame)))
                }
                None => {
                    self.partial.extend_from_slice(bytes);
                    *bytes = &[];
                    Ok(None)
                }
            };
        }
        self.fill(bytes, ENVELOPE_BYTES);
        let Some(length) = frame_length(&self.partial)? else { return Ok(None) };
        self.fill(bytes, length);
        if self.partial.len() < length {
            return Ok(None);
        }
        Ok(Some(FrameBytes::Collected(std::mem::take(&mut self.partial))))
    }

    fn fill(&mut self, bytes: &mut &[u8], to: usize) {
        let missing = to.saturating_sub(self.partial.len()).min(bytes.len());
        let (head, tail) = bytes.split_at(missing);
        self.partial.extend_from_slice(head);
        *bytes = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use felix_protocol::frame::Frame;

    #[test]
    fn every_cut_gives_the_same_frames() {
        let mut all = Vec::new();
        let mut frames = Vec::new();
        for i in 0..5u32 {
            let start = all.len();
            Frame::Publish { body: &vec![i as u8; i as usize * 7] }.encode(i, &mut all);
            frames.push(all[start..].to_vec());
        }
        for piece in 1..=all.len() {
            let mut reader = FrameReader::default();
            let mut found = Vec::new();
            for mut bytes in all.chunks(piece) {
                while let Some(frame) = reader.next(&mut bytes).unwrap() {
                    found.push(frame.into_vec());
                }
            }
            assert_eq!((found, reader.held()), (frames.clone(), 0), "pieces of {piece}");
        }
    }

    #[test]
    fn a_stranger_is_refused_at_its_first_bytes() {
        let mut reader = FrameReader::default();
        let mut bytes = &b"GET / HTTP/1.1\r\n"[..];
        assert!(reader.next(&mut bytes).is_err());
        let mut reader = FrameReader::default();
        for byte in b"GET / HTTP/1.1\r" {
            assert!(reader.next(&mut &[*byte][..]).unwrap().is_none());
        }
        assert!(reader.next(&mut &b"\n"[..]).is_err());
    }
}
