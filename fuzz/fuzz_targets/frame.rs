//! A whole frame. What is accepted can be written, and reads back as the same value.
#![no_main]

use felix_protocol::frame::Frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((envelope, frame)) = Frame::decode(bytes) {
        let mut again = Vec::new();
        frame.encode(envelope.request_id, &mut again);
        let (_, read) = Frame::decode(&again).expect("we wrote it");
        assert_eq!(read, frame);
    }
});
