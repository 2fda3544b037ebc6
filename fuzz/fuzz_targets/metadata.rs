//! Commands and replies of the control plane, as they stand in frames and in the metadata log.
//! Golden Admin and AdminReply frames are seeds: the envelope and the idempotency key are skipped if they are there.
#![no_main]

use felix_protocol::codec::Reader;
use felix_protocol::metadata::{Command, Reply};
use libfuzzer_sys::fuzz_target;

fn command(bytes: &[u8]) {
    if let Ok(command) = Command::decode(&mut Reader::new(bytes)) {
        let mut again = Vec::new();
        command.encode(&mut again);
        let mut reader = Reader::new(&again);
        assert_eq!(Command::decode(&mut reader), Ok(command));
        reader.finish().expect("we wrote it");
    }
}

fn reply(bytes: &[u8]) {
    if let Ok(reply) = Reply::decode(&mut Reader::new(bytes)) {
        let mut again = Vec::new();
        reply.encode(&mut again);
        let mut reader = Reader::new(&again);
        assert_eq!(Reply::decode(&mut reader), Ok(reply));
        reader.finish().expect("we wrote it");
    }
}

fuzz_target!(|bytes: &[u8]| {
    command(bytes);
    reply(bytes);
    if let Some(body) = bytes.get(16..) {
        reply(body);
    }
    if let Some(body) = bytes.get(32..) {
        command(body);
    }
});
