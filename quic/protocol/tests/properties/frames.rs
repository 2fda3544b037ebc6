//! Frames, commands and replies round trip; a stream of them is the same however it is split.

use crate::make;
use felix_protocol::codec::Reader;
use felix_protocol::envelope::{FrameType, write_frame};
use felix_protocol::frame::{DELIVER_PREFIX_BYTES, Deliver, Delivery, Frame, deliver_prefix};
use felix_protocol::frame_stream::{FrameStream, split_first_frame};
use felix_protocol::ids::{ShardId, StreamId, SubscriptionId};
use felix_protocol::limits::{CONTROL_FRAME_BYTES_MAX, FRAME_BYTES_MAX};
use felix_protocol::metadata::{Command, Reply};
use proptest::collection::vec;
use proptest::prelude::*;

fn encoded(frame: &Frame<'_>, id: u32) -> Vec<u8> {
    let mut out = Vec::new();
    frame.encode(id, &mut out);
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn frames_round_trip(frame in make::frame(), id in any::<u32>()) {
        let bytes = encoded(&frame, id);
        let (envelope, read) = Frame::decode(&bytes).unwrap();
        prop_assert_eq!(&read, &frame);
        prop_assert_eq!((envelope.frame_type, envelope.request_id), (frame.frame_type(), id));
        prop_assert_eq!(encoded(&read, id), bytes);
    }

    #[test]
    fn routed_frames_round_trip(frame in make::frame(), route in any::<(u64, u64)>()) {
        let mut bytes = Vec::new();
        let route = Some((StreamId(route.0), ShardId(route.1)));
        write_frame(&mut bytes, frame.frame_type(), 0, 7, route, |out| frame.encode_body(out));
        let (envelope, read) = Frame::decode(&bytes).unwrap();
        prop_assert_eq!(read, frame);
        prop_assert_eq!(envelope.route, route);
    }

    #[test]
    fn commands_round_trip(command in make::command()) {
        let mut bytes = Vec::new();
        command.encode(&mut bytes);
        let mut reader = Reader::new(&bytes);
        prop_assert_eq!(Command::decode(&mut reader).unwrap(), command);
        reader.finish().unwrap();
    }

    #[test]
    fn replies_round_trip(reply in make::reply()) {
        let mut bytes = Vec::new();
        reply.encode(&mut bytes);
        let mut reader = Reader::new(&bytes);
        prop_assert_eq!(Reply::decode(&mut reader).unwrap(), reply);
        reader.finish().unwrap();
    }

    #[test]
    fn deliver_prefix_is_what_encode_writes(frame in make::frame(), id in any::<u32>()) {
        if let Frame::Deliver(Deliver { number, covered, delivery: Delivery::Batch(batch) }) = frame {
            let prefix = deliver_prefix(SubscriptionId(id), number, covered, batch.len());
            let bytes = encoded(&frame, id);
            prop_assert_eq!(&bytes[..DELIVER_PREFIX_BYTES], &prefix[..]);
            prop_assert_eq!(&bytes[DELIVER_PREFIX_BYTES..], batch);
        }
    }

    #[test]
    fn a_split_changes_nothing(
        frames in vec(make::frame(), 1..8),
        sizes in vec(prop_oneof![Just(1usize), 1..50usize, 1..2_000usize], 1..40),
    ) {
        let frames: Vec<Vec<u8>> = frames.iter().map(|frame| encoded(frame, 3)).collect();
        let bytes = frames.concat();
        let mut stream = FrameStream::new();
        let (mut found, mut at) = (Vec::new(), 0);
        for size in sizes.iter().cycle() {
            let to = (at + size).min(bytes.len());
            stream.push(&bytes[at..to]);
            at = to;
            while let Some(frame) = stream.next_frame().unwrap() {
                found.push(frame.to_vec());
            }
            if at == bytes.len() {
                break;
            }
        }
        prop_assert_eq!(&found, &frames);
        prop_assert_eq!(stream.buffered(), 0);

        let (mut rest, mut found) = (&bytes[..], Vec::new());
        while let Some((frame, after)) = split_first_frame(rest).unwrap() {
            found.push(frame.to_vec());
            rest = after;
        }
        prop_assert_eq!(&found, &frames);
        prop_assert!(rest.is_empty());
    }
}

/// The limit holds whether frames are taken as they come or only at the end of each read.
#[test]
fn one_byte_pieces_cost_no_more_memory() {
    let body = vec![7u8; 10_000];
    let frame = encoded(&Frame::Publish { body: &body }, 0);
    let mut stream = FrameStream::new();
    for _ in 0..50 {
        for byte in &frame {
            stream.push(std::slice::from_ref(byte));
            assert!(stream.buffered() <= frame.len());
            assert!(stream.capacity() <= 2 * frame.len(), "{} bytes held", stream.capacity());
            let _ = stream.next_frame().unwrap();
        }
        assert_eq!(stream.buffered(), 0);
    }
    stream.shrink();
    assert_eq!(stream.capacity(), 0);
}

#[test]
fn a_frame_over_its_limit_is_refused_at_its_envelope() {
    for frame_type in FrameType::ALL {
        let max = match frame_type {
            FrameType::Publish | FrameType::Deliver => FRAME_BYTES_MAX,
            _ => CONTROL_FRAME_BYTES_MAX,
        };
        for (length, fits) in [(max, true), (max + 1, false)] {
            let mut head = [0u8; 16];
            head[..4].copy_from_slice(&(length as u32).to_le_bytes());
            head[4] = 1;
            head[5] = *frame_type as u8;
            let mut stream = FrameStream::new();
            stream.push(&head[..15]);
            assert_eq!(stream.next_frame(), Ok(None));
            stream.push(&head[15..]);
            assert_eq!(stream.next_frame().is_ok(), fits, "{frame_type:?}");
        }
    }
}
