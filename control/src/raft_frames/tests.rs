use super::*;
use crate::framed::HEADER_BYTES;

fn id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId::new(term, 1), index)
}

fn head() -> LogHead {
    LogHead { writes: 9, vote: Some(Vote::new(2, 1)), committed: Some(id(1, 4)), purged: None, last: Some(id(2, 6)) }
}

/// The frame with other bytes at one place of its body, sealed anew: what a build with a bug could have written.
fn with(kind: FrameKind, frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut body = frame[HEADER_BYTES..].to_vec();
    body[at..at + bytes.len()].copy_from_slice(bytes);
    seal(kind, |out| out.put(&body)).unwrap()
}

fn with_tail(kind: FrameKind, frame: &[u8], tail: &[u8]) -> Vec<u8> {
    seal(kind, |out| {
        out.put(&frame[HEADER_BYTES..]);
        out.put(tail);
    })
    .unwrap()
}

#[test]
fn a_head_that_contradicts_itself_is_refused() {
    let frame = head().encode();
    assert_eq!(LogHead::decode(&frame), Ok(head()));
    let bad = |at, bytes: &[u8]| LogHead::decode(&with(FrameKind::LogHead, &frame, at, bytes));
    let field = |name| Err(FrameError::Body(DecodeError::BadField(name)));
    assert_eq!(bad(8, &[2]), field("vote")); // granted, but there is none
    assert_eq!(bad(8, &[4]), field("vote"));
    assert_eq!(bad(8, &[0]), field("vote")); // none, but it has a term
    assert_eq!(bad(33, &[2]), field("log id"));
    assert_eq!(bad(33, &[0]), field("log id"));
    assert_eq!(bad(34, &u64::MAX.to_le_bytes()), field("index"));
    // Committed beyond the last, purged beyond the last.
    assert_eq!(bad(42, &3u64.to_le_bytes()), field("order of log ids"));
    let purged = LogHead { purged: Some(id(2, 7)), ..head() };
    assert_eq!(LogHead::decode(&purged.encode()), field("order of log ids"));
}

#[test]
fn unknown_tlvs_are_skipped_and_mandatory_ones_refused() {
    let tlv = |kind: u16| {
        let mut out = Vec::new();
        out.put_u16(kind);
        out.put_bytes16(b"later");
        out
    };
    let mandatory = 0x55 | felix_protocol::envelope::TLV_MANDATORY;
    let refused = FrameError::Body(DecodeError::UnknownMandatoryTlv(mandatory));
    let frame = head().encode();
    assert_eq!(LogHead::decode(&with_tail(FrameKind::LogHead, &frame, &tlv(0x55))), Ok(head()));
    assert_eq!(LogHead::decode(&with_tail(FrameKind::LogHead, &frame, &tlv(mandatory))), Err(refused));
    let entry = RaftEntry { log_id: id(1, 2), payload: EntryPayload::Blank };
    let frame = encode_entry(&entry).unwrap();
    assert_eq!(decode_entry(&with_tail(FrameKind::RaftEntry, &frame, &tlv(0x55))), Ok(entry));
    assert_eq!(decode_entry(&with_tail(FrameKind::RaftEntry, &frame, &tlv(mandatory))), Err(refused));
}

#[test]
fn a_membership_is_what_openraft_can_hold() {
    let nodes =
        |count: u128| (0..count).map(|node| (node, Peer { address: format!("n{node}") })).collect::<BTreeMap<_, _>>();
    let of = |sets: Vec<BTreeSet<u128>>, count| RaftEntry {
        log_id: id(1, 0),
        payload: EntryPayload::Membership(Membership::new(sets, nodes(count))),
    };
    for entry in
        [of(vec![], 0), of(vec![BTreeSet::from([0])], 3), of(vec![BTreeSet::from([0, 1]), BTreeSet::from([2])], 32)]
    {
        assert_eq!(decode_entry(&encode_entry(&entry).unwrap()), Ok(entry));
    }
    let too_many = of(vec![BTreeSet::from([0])], 33);
    assert_eq!(encode_entry(&too_many), Err(DecodeError::TooLarge { bytes: 33, max: 32 }.into()));
    let three = of(vec![BTreeSet::from([0]), BTreeSet::from([1]), BTreeSet::from([2])], 3);
    assert_eq!(encode_entry(&three), Err(DecodeError::BadField("count of voter sets").into()));

    // Bytes at 33: count of sets, u16 count, node. A voter twice, a voter that is no node, an empty set, a wild count.
    let frame = encode_entry(&of(vec![BTreeSet::from([0, 1])], 2)).unwrap();
    let bad = |at, bytes: &[u8]| decode_entry(&with(FrameKind::RaftEntry, &frame, at, bytes)).unwrap_err();
    assert_eq!(bad(36, &[1]), DecodeError::BadField("voter set").into());
    assert_eq!(bad(36, &[9]), DecodeError::BadField("nodes").into());
    assert_eq!(bad(34, &[0, 0]), DecodeError::BadField("voter set").into());
    assert_eq!(bad(34, &[0xff, 0xff]), DecodeError::TooLarge { bytes: 0xffff, max: 32 }.into());
    assert_eq!(bad(32, &[7]), DecodeError::BadField("kind of entry").into());
}

#[test]
fn every_cut_of_a_body_is_refused() {
    let snapshot = encode_snapshot(&SnapshotHead { last: Some(id(1, 1)), ..SnapshotHead::default() }, b"").unwrap();
    for (kind, frame) in [(FrameKind::LogHead, head().encode()), (FrameKind::SnapshotFile, snapshot)] {
        for end in 0..frame.len() - HEADER_BYTES {
            let cut = seal(kind, |out| out.put(&frame[HEADER_BYTES..HEADER_BYTES + end])).unwrap();
            assert!(LogHead::decode(&cut).is_err() && decode_snapshot(&cut).is_err(), "{kind:?} cut at {end}");
        }
    }
}
