//! Decoders on bytes from nowhere: no panic, no memory that the input does not justify.

use crate::make;
use felix_protocol::batch::Compression;
use felix_protocol::batch_builder::ProducerStamp;
use felix_protocol::batch_view::{BatchView, BodyView, headers};
use felix_protocol::codec::{DecodeError, Reader};
use felix_protocol::derive::{DeriveScratch, derive};
use felix_protocol::envelope::FrameType;
use felix_protocol::frame::{Delivery, Frame};
use felix_protocol::frame_stream::FrameStream;
use felix_protocol::limits::{LIST_PAGE_MAX, SHARDS_MAX};
use felix_protocol::metadata::{Command, Reply};
use felix_protocol::names::{NamespaceName, StreamName};
use felix_protocol::pattern::Pattern;
use proptest::collection::vec;
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts what this thread asks for, so that an allocation by an announced count is seen.
struct Counting;

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + bytes));
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes asked of the allocator while `run` ran.
fn asked(run: impl FnOnce()) -> usize {
    let before = ASKED.with(Cell::get);
    run();
    ASKED.with(Cell::get) - before
}

/// Values in memory are larger than on the wire (a name of three bytes is two boxes), and vectors double as they grow.
fn justified(input: usize) -> usize {
    64 * input + 1_024
}

fn read_everything(bytes: &[u8]) {
    let _ = Frame::decode(bytes);
    for frame_type in FrameType::ALL {
        let _ = Frame::decode_body(*frame_type, bytes);
    }
    let _ = Command::decode(&mut Reader::new(bytes));
    let _ = Reply::decode(&mut Reader::new(bytes));
    read_batch(bytes);
}

fn read_batch(bytes: &[u8]) {
    if let Ok(body) = BodyView::parse(bytes) {
        let _ = body.check_publish();
        for record in body.records(body.values).flatten() {
            headers(record.headers).for_each(drop);
        }
    }
    if let Ok(view) = BatchView::parse(bytes) {
        let _ = view.check();
        let mut out = Vec::new();
        let _ = derive(&view, |entry| entry.offset_delta % 2 == 0, &mut DeriveScratch::default(), &mut out);
    }
    headers(bytes).for_each(drop);
}

fn check_asked(input: &[u8]) -> Result<(), TestCaseError> {
    for frame_type in FrameType::ALL {
        let asked = asked(|| drop(Frame::decode_body(*frame_type, input)));
        prop_assert!(asked <= justified(input.len()), "{:?}: {} bytes for {}", frame_type, asked, input.len());
    }
    let asked = asked(|| read_batch(input));
    prop_assert!(asked <= justified(input.len()), "batch: {} bytes for {}", asked, input.len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_024, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_bytes(bytes in vec(any::<u8>(), 0..300)) {
        read_everything(&bytes);
        check_asked(&bytes)?;
    }

    #[test]
    fn mutated_frames(
        frame in make::frame(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = Vec::new();
        frame.encode(1, &mut bytes);
        for (at, byte) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        read_everything(&bytes);
        let asked = asked(|| drop(Frame::decode(&bytes)));
        prop_assert!(asked <= justified(bytes.len()), "{} bytes for {}", asked, bytes.len());
        // Whatever is accepted is a value that can be written and read again.
        if let Ok((envelope, frame)) = Frame::decode(&bytes) {
            let mut again = Vec::new();
            frame.encode(envelope.request_id, &mut again);
            prop_assert_eq!(Frame::decode(&again).unwrap().1, frame);
        }
    }

    #[test]
    fn mutated_bodies(
        records in vec(make::record(), 1..6),
        compressed in any::<bool>(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let how = if compressed { Compression::Zstd } else { Compression::None };
        let mut body = make::build(&records, ProducerStamp::default(), how);
        for (at, byte) in &changes {
            let at = at.index(body.len());
            body[at] = *byte;
        }
        // A checksum that fits lets the damage through to the rules behind it.
        let crc = crc32c::crc32c(&body[4..]);
        body[..4].copy_from_slice(&crc.to_le_bytes());
        read_batch(&body);
        if let Ok(view) = BodyView::parse(&body) && view.check_publish().is_ok() {
            let batch = crate::batches::whole(&body, b"");
            let view = BatchView::parse(&batch).unwrap();
            view.check().unwrap();
            prop_assert_eq!(view.body.entries().count(), view.body.record_count as usize);
            prop_assert!(view.body.entries().all(|entry| entry.is_ok()));
            let mut out = Vec::new();
            derive(&view, |entry| entry.offset_delta % 2 == 0, &mut DeriveScratch::default(), &mut out).unwrap();
            if !out.is_empty() {
                BatchView::parse(&out).unwrap().check().unwrap();
            }
        }
    }

    #[test]
    fn names_and_patterns(text in any::<String>(), shaped in "[a-z.*>/A-]{0,40}", key in vec(any::<u8>(), 0..60)) {
        for text in [&text, &shaped] {
            if let Ok(name) = StreamName::parse(text) {
                prop_assert_eq!(&name.to_string(), text);
            }
            if let Ok(name) = NamespaceName::parse(text) {
                prop_assert_eq!(&name.to_string(), text);
            }
            if let Ok(pattern) = Pattern::parse(text) {
                prop_assert_eq!(pattern.as_str(), text);
                pattern.matches(&key);
                // A pattern without wildcards matches itself and nothing else.
                if !text.contains(['*', '>']) {
                    prop_assert!(pattern.matches(text.as_bytes()));
                    prop_assert_eq!(pattern.matches(&key), key == text.as_bytes());
                }
            }
        }
    }

    #[test]
    fn frame_stream_on_random_bytes(pieces in vec(vec(any::<u8>(), 0..60), 0..20)) {
        let mut stream = FrameStream::new();
        for piece in &pieces {
            stream.push(piece);
            loop {
                match stream.next_frame() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => return Ok(()),
                }
            }
        }
    }
}

/// The largest legal counts, with nothing behind them.
#[test]
fn announced_counts_cost_nothing() {
    let count = |value: u32| value.to_le_bytes().to_vec();
    let info = {
        let stream = felix_protocol::metadata::StreamInfo {
            id: Default::default(),
            name: StreamName::parse("a/b/c").unwrap(),
            spec: Default::default(),
            version: 0,
            created: Default::default(),
        };
        let mut bytes = Vec::new();
        Reply::Stream { stream, shards: vec![] }.encode(&mut bytes);
        bytes.truncate(bytes.len() - 4);
        bytes
    };
    for (frame_type, body) in [
        (FrameType::AdminReply, [info, count(SHARDS_MAX)].concat()),
        (FrameType::AdminReply, [vec![4], count(LIST_PAGE_MAX)].concat()),
        (FrameType::AdminReply, [vec![5], count(LIST_PAGE_MAX)].concat()),
        (FrameType::AdminReply, [vec![6], count(LIST_PAGE_MAX)].concat()),
        (FrameType::Route, [vec![0; 20], count(SHARDS_MAX)].concat()),
        (FrameType::Stats, [vec![0; 13], count(LIST_PAGE_MAX)].concat()),
        (FrameType::PublishAck, [vec![0; 21], vec![0, 4]].concat()),
    ] {
        let mut result = None;
        let asked = asked(|| result = Some(Frame::decode_body(frame_type, &body)));
        assert_eq!(result, Some(Err(DecodeError::Truncated)), "{frame_type:?}");
        assert!(asked <= 512, "{frame_type:?}: {asked} bytes for {}", body.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_truncation_is_refused(frame in make::frame()) {
        let mut bytes = Vec::new();
        frame.encode(1, &mut bytes);
        for cut in 0..bytes.len() {
            prop_assert_eq!(Frame::decode(&bytes[..cut]).unwrap_err(), DecodeError::Truncated, "cut at {}", cut);
            // The same with a length that agrees with the cut.
            if cut < 16 {
                continue;
            }
            let mut shorter = bytes[..cut].to_vec();
            shorter[..4].copy_from_slice(&(cut as u32).to_le_bytes());
            match (Frame::decode(&shorter), &frame) {
                // Their last field is all that is left.
                (Ok(_), Frame::Publish { .. }) => {}
                (Ok((_, Frame::Deliver(it))), _) => prop_assert!(matches!(it.delivery, Delivery::Batch(_))),
                (Ok((_, found)), _) => prop_assert!(false, "cut at {}: {:?}", cut, found),
                (Err(_), _) => {}
            }
        }
    }

    #[test]
    fn every_truncated_body_is_refused(records in vec(make::record(), 1..5)) {
        let body = make::build(&records, ProducerStamp::default(), Compression::None);
        let batch = crate::batches::whole(&body, b"");
        for cut in 0..body.len() {
            prop_assert!(BodyView::parse(&body[..cut]).is_err());
        }
        for cut in 0..batch.len() {
            prop_assert!(BatchView::parse(&batch[..cut]).is_err());
        }
    }
}
