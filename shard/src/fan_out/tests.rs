use super::*;
use crate::event::{Event, ShardConfig};
use crate::kit::{Lab, MS, SHARD, config, spec, to_event};
use felix_protocol::frame::SlowPolicy::{self, Block, Disconnect, DropOldest};
use felix_protocol::ids::CoreId;
use felix_protocol::position::{Lineage, Position};

fn limits() -> Limits {
    Limits { tail_batches_max: 2, fetch_batches_max: 2, progress_offsets: 4, ..Limits::default() }
}

fn lab() -> Lab {
    Lab::new(limits(), 1, config())
}

fn latest(filter: &str, policy: SlowPolicy) -> SubSpec {
    spec(Start::Latest, filter, policy)
}

fn at(lineage: u32, offset: u64) -> Start {
    Start::Position(Position { lineage: Lineage(lineage), offset: Offset(offset) })
}

#[test]
fn start_positions() {
    let mut lab = Lab::new(limits(), 1, ShardConfig { retention_bytes: 450, ..config() });
    for names in [&["a", "b"][..], &["c", "d"], &["e", "f"]] {
        lab.publish(names);
        lab.pass(10);
    }
    assert_eq!(lab.owner.get(SHARD).unwrap().log_start(), Offset(2), "the first batch is gone");
    let second = Start::Time(Timestamp(1_010 * MS));
    for (start, expected) in [
        (Start::Earliest, "2-4: c d, 4-6: e f"),
        (Start::Latest, ""),
        (second, "2-4: c d, 4-6: e f"),
        (Start::Time(Timestamp(1_010 * MS + 1)), "4-6: e f"),
        (Start::Time(Timestamp(0)), "2-4: c d, 4-6: e f"),
        (Start::Time(Timestamp(9_000 * MS)), ""),
        (at(1, 2), "2-4: c d, 4-6: e f"),
        (at(1, 3), "3-4: c d, 4-6: e f"),
        (at(0, 5), "5-6: e f"),
        (at(1, 6), ""),
        (at(1, 0), "gap 0-2, 2-4: c d, 4-6: e f"),
    ] {
        let key = lab.subscribe(&spec(start, "", Block));
        assert_eq!(lab.read(key), expected, "{start:?}");
        lab.cores[0].unsubscribe(key);
    }
    for (start, code, next) in [
        (at(1, 7), ErrorCode::OffsetInFuture, 6),
        (at(2, 3), ErrorCode::LineageReset, 2),
        (at(3, 99), ErrorCode::LineageReset, 2),
    ] {
        let key = lab.cores[0].subscribe(&spec(start, "", Block));
        let request = std::iter::from_fn(|| lab.cores[0].take_request()).last().unwrap();
        lab.owner.handle(lab.now, to_event(CoreId(0), request), &mut lab.effects);
        let Some(crate::effect::Effect::Attach { result, .. }) = lab.effects.drain().next() else {
            panic!("no answer")
        };
        let refused = result.unwrap_err();
        assert_eq!((refused.code, refused.next, refused.lineage), (code, Offset(next), Lineage(1)), "{start:?}");
        lab.cores[0].unsubscribe(key);
    }
}

/// A live subscriber sleeps while 5 batches are published; the ring holds 2.
fn after_a_nap(policy: SlowPolicy, retention_bytes: u64) -> String {
    let mut lab = Lab::new(limits(), 1, ShardConfig { retention_bytes, ..config() });
    let key = lab.subscribe(&latest("", policy));
    assert_eq!(lab.read(key), "");
    for name in ["a", "b", "c", "d", "e"] {
        lab.publish(&[name]);
    }
    lab.read(key)
}

#[test]
fn policies() {
    assert_eq!(after_a_nap(Block, 1 << 20), "0-1: a, 1-2: b, 2-3: c, 3-4: d, 4-5: e");
    assert_eq!(after_a_nap(DropOldest, 1 << 20), "gap 0-3, 3-4: d, 4-5: e");
    assert_eq!(after_a_nap(Disconnect, 1 << 20), "closed SlowConsumer");
    assert_eq!(after_a_nap(Block, 500), "gap 0-2, 2-3: c, 3-4: d, 4-5: e", "retention overtook");
}

#[test]
fn a_policy_counts_only_once_the_tail_was_reached() {
    for policy in [Block, DropOldest, Disconnect] {
        let mut lab = lab();
        for name in ["a", "b", "c", "d"] {
            lab.publish(&[name]);
        }
        let key = lab.subscribe(&spec(Start::Earliest, "", policy));
        assert_eq!(lab.read(key), "0-1: a, 1-2: b, 2-3: c, 3-4: d", "{policy:?}");
    }
}

#[test]
fn idle_is_not_slow() {
    // A filter that matches nothing for long: the ring moves on, by size and by age, and nothing is held against it.
    for policy in [Block, DropOldest, Disconnect] {
        let mut lab = Lab::new(Limits { progress_offsets: 100, ..limits() }, 1, config());
        let key = lab.subscribe(&latest("x", policy));
        assert_eq!(lab.read(key), "");
        for _ in 0..5 {
            lab.publish(&["a"]);
        }
        assert_eq!(lab.cores[0].take_scheduled(), None, "nothing for it");
        lab.publish(&["x"]);
        assert_eq!(lab.read(key), "0-6: x", "{policy:?}");
        lab.publish(&["a"]);
        lab.cores[0].expire(SHARD, Timestamp(u64::MAX));
        lab.publish(&["x"]);
        assert_eq!(lab.read(key), "6-8: x", "{policy:?}");
        assert_eq!(lab.cores[0].counters.fetches, 0);
    }
}

#[test]
fn progress_of_the_idle() {
    let mut lab = lab();
    let key = lab.subscribe(&latest("x", Block));
    assert_eq!(lab.read(key), "");
    lab.publish(&["a", "b", "c"]);
    assert_eq!(lab.cores[0].take_scheduled(), None);
    lab.publish(&["a", "b"]);
    assert_eq!(lab.cores[0].take_scheduled(), Some(key), "five offsets without a match");
    assert_eq!(lab.read(key), "progress 0-5");
    // Also on the way through history.
    for _ in 0..4 {
        lab.publish(&["a", "b", "c"]);
    }
    let key = lab.subscribe(&spec(Start::Earliest, "y", Block));
    assert_eq!(lab.read(key), "progress 0-5, progress 5-17");
}

#[test]
fn credit() {
    let mut lab = lab();
    let key = lab.subscribe(&SubSpec { credit_bytes: Some(0), ..latest("", Block) });
    lab.publish(&["a"]);
    lab.publish(&["b"]);
    assert_eq!(lab.read(key), "", "no credit");
    lab.cores[0].on_credit(key, 1);
    assert_eq!(lab.cores[0].take_scheduled(), Some(key));
    assert_eq!(lab.next(0, key), "0-1: a", "a delivery may overdraw");
    assert_eq!(lab.next(0, key), "wait");
    let sent = lab.cores[0].get(key).unwrap().sent_bytes();
    lab.cores[0].on_credit(key, sent);
    assert_eq!(lab.cores[0].take_scheduled(), None, "still overdrawn");
    lab.publish(&["c"]);
    assert_eq!(lab.cores[0].take_scheduled(), None, "a commit does not wake who has no credit");
    lab.cores[0].on_credit(key, sent + 1);
    lab.cores[0].on_credit(key, 5);
    assert_eq!(lab.next(0, key), "1-2: b", "grants are cumulative, a lower one changes nothing");
    lab.cores[0].on_credit(key, u64::MAX);
    assert_eq!(lab.read(key), "2-3: c");
}

#[test]
fn records_expire() {
    let mut lab = lab();
    lab.publish(&["a!5", "b", "c!50"]);
    lab.publish(&["d!5"]);
    lab.publish(&["e"]);
    let read = |lab: &mut Lab, filter| {
        let key = lab.subscribe(&spec(Start::Earliest, filter, Block));
        let text = lab.read(key);
        lab.cores[0].unsubscribe(key);
        text
    };
    assert_eq!(read(&mut lab, ""), "0-3: a b c, 3-4: d, 4-5: e");
    lab.pass(4);
    assert_eq!(read(&mut lab, ""), "0-3: a b c, 3-4: d, 4-5: e");
    lab.pass(1);
    assert_eq!(read(&mut lab, ""), "0-3: b c, 3-5: e", "append time + TTL is the end");
    assert_eq!(read(&mut lab, "*"), "0-3: b c, 3-5: e");
    assert_eq!(read(&mut lab, "a"), "progress 0-4, progress 4-5", "told before the next fetch, and at the end");
    lab.pass(45);
    assert_eq!(read(&mut lab, "c"), "progress 0-4, progress 4-5");
    // In the ring, too.
    let key = lab.subscribe(&latest("", Block));
    assert_eq!(lab.read(key), "");
    lab.publish(&["f!5", "g"]);
    lab.pass(5);
    assert_eq!(lab.read(key), "5-7: g");
}

#[test]
fn a_filter_is_matched_once_for_all_who_share_it() {
    let mut lab = Lab::new(Limits::default(), 1, config());
    let keys: Vec<_> = (0..10).map(|_| lab.subscribe(&latest("a.*", Block))).collect();
    let other = lab.subscribe(&latest("b.*", Block));
    for _ in 0..5 {
        lab.publish(&["a.x", "b.x", "c"]);
    }
    assert_eq!(lab.cores[0].deriver.matched, 10, "two filters, five batches");
    let mut seen = std::collections::HashSet::new();
    for key in &keys {
        let Next::Batch { batch, .. } = lab.cores[0].next(lab.now, *key) else { panic!("a batch waits") };
        seen.insert(batch.bytes().as_ptr());
    }
    assert_eq!(seen.len(), 1, "one derived batch for ten");
    assert_eq!(lab.read(other), "0-3: b.x, 3-6: b.x, 6-9: b.x, 9-12: b.x, 12-15: b.x");
    assert_eq!(lab.cores[0].deriver.matched, 10);
    // A new filter costs nothing for what is in the ring already, until somebody asks.
    let late = lab.subscribe(&latest("c", Block));
    assert_eq!((lab.read(late).as_str(), lab.cores[0].deriver.matched), ("", 10));
    let early = lab.subscribe(&spec(at(1, 12), "c", Block));
    assert_eq!((lab.read(early).as_str(), lab.cores[0].deriver.matched), ("12-15: c", 11), "the one it asked for");
}

#[test]
fn a_filter_that_keeps_all_keeps_the_batch() {
    let mut lab = lab();
    let key = lab.subscribe(&latest(">", Block));
    let all = lab.subscribe(&latest("", Block));
    lab.publish(&["a", "b"]);
    let mut bytes = |key| match lab.cores[0].next(lab.now, key) {
        Next::Batch { batch, .. } => batch.bytes().as_ptr(),
        other => panic!("{other:?}"),
    };
    assert_eq!(bytes(key), bytes(all), "not even a copy");
    lab.publish(&["-"]);
    assert_eq!(lab.read(key), "", "a record without a key matches no filter");
    assert_eq!(lab.read(all), "2-3: -");
}

#[test]
fn what_ends_leaves_nothing_behind() {
    let mut lab = Lab::new(limits(), 2, config());
    for round in 0..100 {
        let keys: Vec<_> = ["", "a", "b", "a"].iter().map(|filter| lab.subscribe(&latest(filter, Block))).collect();
        lab.publish(&["a"]);
        for key in keys {
            assert!(lab.cores[0].unsubscribe(key).is_some());
            assert!(lab.cores[0].unsubscribe(key).is_none(), "a key ends once");
            assert_eq!(lab.next(0, key), "wait");
        }
        assert_eq!(lab.owner.get(SHARD).unwrap().attached().count(), 1, "until the request arrives");
        lab.pump();
        assert_eq!(lab.owner.get(SHARD).unwrap().attached().count(), 0);
        while lab.cores[0].take_scheduled().is_some() {}
        let it = &lab.cores[0];
        assert_eq!((it.count(), it.slots.len(), it.tails.len(), it.touched.len()), (0, 4, 1, 1), "round {round}");
        assert!(it.tails[0].tail.is_none() && it.requests.is_empty());
    }
    let mut reports = Vec::new();
    lab.cores[0].take_touched(|shard, it| reports.push((shard, it)));
    assert_eq!(reports, [(SHARD, None)], "told once");
    assert_eq!((lab.cores[0].free_tails.len(), lab.cores[0].tail_of.len()), (1, 0));
    lab.cores[0].take_touched(|_, _| panic!("nothing new"));
}

#[test]
fn old_keys_reach_nobody() {
    let mut lab = lab();
    let old = lab.cores[0].subscribe(&spec(Start::Earliest, "", Block));
    let attach = lab.cores[0].take_request().unwrap();
    lab.cores[0].unsubscribe(old);
    let new = lab.cores[0].subscribe(&latest("", Block));
    assert_eq!(old.slot, new.slot);
    lab.publish(&["a"]);
    lab.handle(to_event(CoreId(0), attach));
    assert_eq!(lab.cores[0].get(new).unwrap().phase, Phase::Starting, "the answer was for its predecessor");
    assert!(lab.cores[0].get(old).is_none());
    lab.cores[0].on_credit(old, 5);
    lab.cores[0].charge(old, 5);
    assert_eq!(lab.cores[0].get(new).unwrap().sent_bytes(), 0);
    lab.pump();
    lab.publish(&["b"]);
    assert_eq!(lab.read(new), "1-2: b");
}

#[test]
fn unsubscribe_during_a_fetch() {
    let mut lab = lab();
    for name in ["a", "b", "c"] {
        lab.publish(&[name]);
    }
    let key = lab.subscribe(&spec(Start::Earliest, "", Block));
    assert_eq!(lab.next(0, key), "wait");
    let fetch = lab.cores[0].take_request().unwrap();
    assert_eq!(fetch, Request::Fetch { shard: SHARD, sub: key, from: Offset(0) });
    lab.cores[0].unsubscribe(key);
    let heir = lab.cores[0].subscribe(&latest("", Block));
    lab.handle(to_event(CoreId(0), fetch));
    assert_eq!(lab.cores[0].history_bytes, 0, "nobody holds what came");
    lab.pump();
    lab.publish(&["d"]);
    assert_eq!(lab.read(heir), "3-4: d");
}

#[test]
fn a_shard_goes_with_its_subscribers() {
    let mut lab = Lab::new(limits(), 2, config());
    let keys = [lab.subscribe(&latest("", Block)), lab.subscribe(&latest("a", Block))];
    lab.publish(&["a"]);
    let asking = lab.cores[0].subscribe(&spec(Start::Earliest, "", Block));
    lab.owner.handle(lab.now, Event::ShardRemoved { shard: SHARD }, &mut lab.effects);
    lab.owner.handle(lab.now, Event::ShardPut(ShardConfig { lineage: Lineage(2), ..config() }), &mut lab.effects);
    // The request of the third reaches the next incarnation; its core still learns of the end of the last.
    let attach = lab.cores[0].take_request().unwrap();
    lab.owner.handle(lab.now, to_event(CoreId(0), attach), &mut lab.effects);
    let mut ended = Vec::new();
    for effect in lab.effects.drain().collect::<Vec<_>>() {
        match effect {
            crate::effect::Effect::Gone { shard, .. } => {
                lab.cores[0].on_gone(shard, |key, sub| ended.push((key, sub.told)))
            }
            crate::effect::Effect::Attach { sub, result, .. } => assert!(lab.cores[0].on_attach(sub, result).is_none()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ended, [(keys[0], Offset(0)), (asking, Offset(0)), (keys[1], Offset(0))]);
    assert_eq!(lab.cores[0].count(), 0);
    lab.pump();
    assert_eq!(lab.owner.get(SHARD).unwrap().attached().count(), 0, "no commits to nobody");
    lab.cores[0].on_gone(SHARD, |_, _| panic!("it is gone already"));
    let key = lab.subscribe(&spec(at(1, 0), "", Block));
    assert_eq!(lab.cores[0].get(key).unwrap().phase, Phase::Starting, "a position of the former data is refused");
}

#[test]
fn another_lineage_is_another_shard() {
    let mut lab = lab();
    let key = lab.subscribe(&latest("", Block));
    lab.publish(&["a"]);
    lab.handle(Event::ShardPut(ShardConfig {
        lineage: Lineage(2),
        epoch: felix_protocol::position::Epoch(2),
        ..config()
    }));
    assert!(lab.cores[0].get(key).is_none(), "its reader ended");
    assert_eq!(lab.owner.get(SHARD).unwrap().high_watermark(), Offset(0), "and nothing of it is left");
}

#[test]
fn fetched_history_is_bounded_for_all_together() {
    let mut lab = Lab::new(Limits { history_bytes_max: 600, fetch_batches_max: 3, ..limits() }, 1, config());
    for name in ["a", "b", "c", "d", "e"] {
        lab.publish(&[name]);
    }
    let all = "0-1: a, 1-2: b, 2-3: c, 3-4: d, 4-5: e";
    let keys: Vec<_> = (0..4).map(|_| lab.subscribe(&spec(Start::Earliest, "", Block))).collect();
    for key in &keys {
        assert_eq!(lab.next(0, *key), "wait");
        lab.pump();
    }
    assert!(lab.cores[0].history_bytes <= 600, "{}", lab.cores[0].history_bytes);
    assert_eq!(lab.cores[0].counters.histories_dropped, 3);
    for key in keys {
        assert_eq!(lab.read(key), all, "dropped history is fetched again");
    }
    assert!(lab.cores[0].fetched.len() <= 24);
}

#[test]
fn the_last_delivery_holds_nothing() {
    let mut lab = lab();
    for name in ["a", "b", "c"] {
        lab.publish(&[name]);
    }
    let key = lab.subscribe(&spec(Start::Earliest, "", Block));
    assert_eq!(lab.next(0, key), "wait");
    lab.pump();
    assert_eq!(lab.next(0, key), "0-1: a");
    assert!(lab.cores[0].single.is_some());
    while lab.cores[0].take_scheduled().is_some() {}
    assert!(lab.cores[0].single.is_none(), "let go with the next look, whoever reads or not");
}

#[test]
fn reports_are_bounded() {
    let mut lab = Lab::new(Limits::default(), 1, config());
    let many = SLOWEST_SCAN_MAX * 2;
    let slow = lab.subscribe(&latest("", Block));
    for _ in 0..many {
        lab.subscribe(&latest("", Block));
    }
    let last = lab.subscribe(&latest("a", Block));
    lab.publish(&["a"]);
    let mut cursors = Vec::new();
    while let Some(key) = lab.cores[0].take_scheduled() {
        if key != slow {
            assert_eq!(lab.next(0, key), "0-1: a");
        }
    }
    for _ in 0..4 {
        lab.cores[0].take_touched(|_, it| cursors.push(it.map(|(count, _, slowest)| (count as usize, slowest))));
    }
    assert_eq!(cursors, [Some((many + 2, Offset(0))); 3], "three reports for one walk, then none");
    assert_eq!(lab.next(0, slow), "0-1: a");
    lab.cores[0].unsubscribe(last);
    cursors.clear();
    for _ in 0..4 {
        lab.cores[0].take_touched(|_, it| cursors.push(it.map(|(count, _, slowest)| (count as usize, slowest))));
    }
    assert_eq!(cursors.last(), Some(&Some((many + 1, Offset(1)))), "a whole walk corrects it");
}

#[test]
fn a_commit_sent_again_is_ignored() {
    let mut lab = lab();
    let key = lab.subscribe(&latest("", Block));
    for name in ["a", "b"] {
        lab.publish(&[name]);
    }
    let first = lab.owner.get(SHARD).unwrap().log.read(Offset(0)).next().unwrap().clone();
    lab.cores[0].on_commit(SHARD, first);
    lab.cores[0].check();
    assert_eq!((lab.cores[0].counters.stray_commits, lab.cores[0].counters.jumps), (1, 0));
    assert_eq!(lab.read(key), "0-1: a, 1-2: b");
}

#[test]
fn who_catches_up_is_told_of_all_that_was_there() {
    let mut lab = Lab::new(Limits { progress_offsets: 100, ..limits() }, 1, config());
    lab.publish(&["a"]);
    lab.publish(&["b!5"]);
    lab.publish(&["c!5"]);
    lab.pass(10);
    let key = lab.subscribe(&spec(Start::Earliest, "", Block));
    assert_eq!(lab.read(key), "0-1: a, progress 1-3", "who waits for the end must see it");
    // From then on little that is not for it is not worth a frame.
    lab.publish(&["d!5"]);
    lab.pass(10);
    assert_eq!(lab.read(key), "");
    lab.publish(&["e"]);
    assert_eq!(lab.read(key), "3-5: e");
}
