use super::*;

fn facts(producer: u64, epoch: u32, base: u64, count: u32, crc: u32) -> BodyFacts {
    BodyFacts {
        record_count: count,
        producer: ProducerId(producer),
        producer_epoch: ProducerEpoch(epoch),
        base_sequence: Sequence(base),
        crc,
        ttl_ms_min: None,
    }
}

fn limits() -> Limits {
    Limits { producer_expiry_ns: 100, producers_max: 2, ..Limits::default() }
}

fn judge(dedup: &mut Dedup, facts: &BodyFacts, time: u64) -> Verdict {
    dedup.judge(facts, Timestamp(time), &limits())
}

fn remember(dedup: &mut Dedup, facts: &BodyFacts, offset: u64, time: u64) {
    dedup.remember(facts, Offset(offset), Timestamp(time), &limits());
}

#[test]
fn the_table_of_verdicts() {
    let mut dedup = Dedup::default();
    assert_eq!(judge(&mut dedup, &facts(1, 1, 5, 1, 9), 0), Verdict::Refuse(ErrorCode::UnknownProducer));
    assert_eq!(judge(&mut dedup, &facts(1, 1, 0, 3, 9), 0), Verdict::New);
    remember(&mut dedup, &facts(1, 1, 0, 3, 9), 10, 0);
    remember(&mut dedup, &facts(1, 1, 3, 1, 8), 20, 1);
    assert_eq!(judge(&mut dedup, &facts(1, 1, 4, 1, 7), 2), Verdict::New);
    assert_eq!(judge(&mut dedup, &facts(1, 1, 5, 1, 7), 2), Verdict::Refuse(ErrorCode::SequenceGap));
    assert_eq!(judge(&mut dedup, &facts(1, 1, 0, 3, 9), 2), Verdict::Duplicate { base_offset: Offset(10) });
    assert_eq!(judge(&mut dedup, &facts(1, 1, 3, 1, 8), 2), Verdict::Duplicate { base_offset: Offset(20) });
    assert_eq!(judge(&mut dedup, &facts(1, 1, 3, 1, 7), 2), Verdict::Refuse(ErrorCode::DuplicateMismatch));
    assert_eq!(judge(&mut dedup, &facts(1, 1, 0, 2, 9), 2), Verdict::Refuse(ErrorCode::DuplicateMismatch));
    assert_eq!(judge(&mut dedup, &facts(1, 1, 1, 2, 9), 2), Verdict::Refuse(ErrorCode::DuplicateMismatch));
    assert_eq!(judge(&mut dedup, &facts(1, 0, 4, 1, 7), 2), Verdict::Refuse(ErrorCode::ProducerFenced));
    assert_eq!(judge(&mut dedup, &facts(1, 2, 4, 1, 7), 2), Verdict::Refuse(ErrorCode::SequenceGap));
    assert_eq!(judge(&mut dedup, &facts(1, 2, 0, 1, 7), 2), Verdict::New);
    assert_eq!(dedup.next_sequence(ProducerId(1), ProducerEpoch(1)), Some(Sequence(4)));
    assert_eq!(dedup.next_sequence(ProducerId(1), ProducerEpoch(0)), None);
    assert_eq!(dedup.next_sequence(ProducerId(9), ProducerEpoch(0)), Some(Sequence(0)));
}

#[test]
fn producers_are_bounded_and_expire_by_append_time() {
    let mut dedup = Dedup::default();
    remember(&mut dedup, &facts(1, 1, 0, 1, 1), 0, 0);
    remember(&mut dedup, &facts(2, 1, 0, 1, 1), 1, 50);
    assert_eq!(judge(&mut dedup, &facts(3, 1, 0, 1, 1), 60), Verdict::Refuse(ErrorCode::TooMany));
    remember(&mut dedup, &facts(1, 1, 1, 1, 1), 2, 120);
    assert_eq!(judge(&mut dedup, &facts(3, 1, 0, 1, 1), 160), Verdict::New, "producer 2 makes room");
    assert_eq!(judge(&mut dedup, &facts(2, 1, 1, 1, 1), 160), Verdict::Refuse(ErrorCode::UnknownProducer));
    assert_eq!(judge(&mut dedup, &facts(1, 1, 2, 1, 1), 160), Verdict::New, "producer 1 was seen again");
}

#[test]
fn a_clock_alone_expires_nobody() {
    // Replaying the log gives the same memory: only an append at a later time makes a producer old.
    let mut dedup = Dedup::default();
    remember(&mut dedup, &facts(1, 1, 0, 1, 7), 0, 0);
    assert_eq!(
        judge(&mut dedup, &facts(1, 1, 0, 1, 7), 10_000),
        Verdict::Duplicate { base_offset: Offset(0) },
        "a retry after a long silence is still known"
    );
    assert_eq!(judge(&mut dedup, &facts(1, 1, 1, 1, 7), 10_000), Verdict::New, "and so is what comes after it");
    remember(&mut dedup, &facts(0, 0, 0, 1, 1), 1, 10_000);
    assert_eq!(dedup.producer_count(), 0, "the append of an anonymous batch is an append");
    assert_eq!(judge(&mut dedup, &facts(1, 1, 1, 1, 7), 10_000), Verdict::Refuse(ErrorCode::UnknownProducer));
}

#[test]
fn a_new_epoch_starts_anew() {
    let mut dedup = Dedup::default();
    remember(&mut dedup, &facts(1, 1, 0, 2, 7), 0, 0);
    remember(&mut dedup, &facts(1, 2, 0, 1, 9), 2, 0);
    assert_eq!(judge(&mut dedup, &facts(1, 2, 0, 1, 9), 0), Verdict::Duplicate { base_offset: Offset(2) });
    assert_eq!(judge(&mut dedup, &facts(1, 2, 1, 1, 9), 0), Verdict::New);
    assert_eq!(judge(&mut dedup, &facts(1, 1, 2, 1, 9), 0), Verdict::Refuse(ErrorCode::ProducerFenced));
}

#[test]
fn the_window_is_bounded() {
    let mut dedup = Dedup::default();
    for i in 0..=DEDUP_WINDOW as u64 {
        remember(&mut dedup, &facts(1, 1, i, 1, 1), i, 0);
    }
    assert_eq!(judge(&mut dedup, &facts(1, 1, 0, 1, 1), 0), Verdict::Refuse(ErrorCode::DuplicateMismatch));
    assert_eq!(judge(&mut dedup, &facts(1, 1, 1, 1, 1), 0), Verdict::Duplicate { base_offset: Offset(1) });
}

#[test]
fn all_windows_together_are_bounded() {
    let limits = Limits { dedup_batches_max: 200, ..Limits::default() };
    let mut dedup = Dedup::default();
    let mut offset = 0;
    let mut append = |dedup: &mut Dedup, producer: u64, sequence: u64| {
        dedup.remember(&facts(producer, 1, sequence, 1, 1), Offset(offset), Timestamp(0), &limits);
        offset += 1;
    };
    let known = |dedup: &mut Dedup, producer, sequence| {
        matches!(judge(dedup, &facts(producer, 1, sequence, 1, 1), 0), Verdict::Duplicate { .. })
    };
    (0..180).for_each(|sequence| append(&mut dedup, 1, sequence));
    assert!(known(&mut dedup, 1, 0), "alone it may use all");
    (0..10).for_each(|sequence| append(&mut dedup, 2, sequence));
    (0..1_000).for_each(|sequence| append(&mut dedup, 3, sequence));
    let held = |dedup: &Dedup, producer| dedup.producers[&ProducerId(producer)].seen.len();
    assert_eq!(held(&dedup, 1), DEDUP_WINDOW_MIN, "the newest stay, however many others publish");
    assert!(known(&mut dedup, 1, 179) && known(&mut dedup, 1, 148) && !known(&mut dedup, 1, 147));
    assert!((0..10).all(|sequence| known(&mut dedup, 2, sequence)));
    assert!(dedup.producers[&ProducerId(1)].seen.capacity() < 180, "and memory is given back");
    assert!((190..=200).contains(&held(&dedup, 3)) && dedup.remembered.len() <= 200);
    // A producer whose window rolls over leaves no entries behind.
    let mut alone = Dedup::default();
    (0..5_000).for_each(|sequence| {
        alone.remember(&facts(1, 1, sequence, 1, 1), Offset(sequence), Timestamp(0), &Limits::default());
    });
    assert!(alone.remembered.len() <= DEDUP_WINDOW + 1, "{}", alone.remembered.len());
}
