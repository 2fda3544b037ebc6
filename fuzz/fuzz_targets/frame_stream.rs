//! The bytes of a QUIC stream: the same frames and the same error, whatever the pieces.
//! A checksum of the input seeds the sizes of the pieces, so that golden frames are seeds as they are.
#![no_main]

use felix_protocol::codec::DecodeError;
use felix_protocol::frame_stream::{FrameStream, split_first_frame};
use libfuzzer_sys::fuzz_target;

fn at_once(mut bytes: &[u8]) -> (Vec<&[u8]>, Option<DecodeError>) {
    let mut frames = Vec::new();
    loop {
        match split_first_frame(bytes) {
            Ok(Some((frame, rest))) => {
                frames.push(frame);
                bytes = rest;
            }
            Ok(None) => return (frames, None),
            Err(error) => return (frames, Some(error)),
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let seed = crc32c::crc32c(bytes) as u8;
    let (expected, error) = at_once(bytes);
    let mut stream = FrameStream::new();
    let (mut rest, mut state, mut found) = (bytes, u32::from(seed), 0);
    while !rest.is_empty() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let size = (1 + (state >> 16) as usize % if seed < 128 { 3 } else { 300 }).min(rest.len());
        let (piece, after) = rest.split_at(size);
        rest = after;
        stream.push(piece);
        loop {
            match stream.next_frame() {
                Ok(Some(frame)) => {
                    assert_eq!(frame, expected[found]);
                    found += 1;
                }
                Ok(None) => break,
                Err(at) => {
                    assert_eq!((Some(at), found), (error, expected.len()));
                    return;
                }
            }
        }
    }
    assert_eq!((found, None), (expected.len(), error));
});
