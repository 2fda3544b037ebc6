use super::*;
use crate::event::{ChannelKey, ConnKey, ShardConfig};
use crate::kit::{Lab, MS, checked, config};
use felix_protocol::frame::Start;
use felix_protocol::position::Epoch;

fn put(lab: &mut Lab, id: u64, age_ms: Option<u64>) {
    lab.handle(Event::ShardPut(ShardConfig {
        shard: ShardId(id),
        retention_age_ns: age_ms.map(|ms| ms * MS),
        ..config()
    }));
}

fn publish(lab: &mut Lab, id: u64) {
    let batch = checked(&mut lab.owner.pool, &["a"], 10);
    let channel = ChannelKey { core: CoreId(0), conn: ConnKey(1), stream: 4 };
    lab.handle(Event::Published { shard: ShardId(id), channel, batch });
}

fn kept(lab: &Lab, ids: std::ops::RangeInclusive<u64>) -> usize {
    ids.filter(|id| lab.owner.get(ShardId(*id)).unwrap().retained_bytes() > 0).count()
}

#[test]
fn a_tick_looks_at_what_is_due() {
    let mut lab = Lab::new(Limits::default(), 1, config());
    assert!(!lab.owner.needs_ticks(), "an idle shard has no timer");
    let start = lab.now.wall.0;
    for id in 2..=1_001 {
        put(&mut lab, id, Some(id));
        publish(&mut lab, id);
    }
    assert_eq!(lab.owner.next_tick(), Some(Timestamp(start + 2 * MS + 1)));
    lab.handle(Event::Ticked);
    assert_eq!(kept(&lab, 2..=1_001), 1_000);
    lab.pass(11);
    lab.handle(Event::Ticked);
    assert_eq!(kept(&lab, 2..=1_001), 991, "2 to 10 aged");
    assert_eq!(lab.owner.next_tick(), Some(Timestamp(start + 11 * MS + 1)));
    lab.pass(2_000);
    lab.handle(Event::Ticked);
    assert_eq!(kept(&lab, 2..=1_001), 991 - TICKS_PER_TURN, "a turn is bounded");
    for _ in 0..3 {
        lab.handle(Event::Ticked);
    }
    assert_eq!((kept(&lab, 2..=1_001), lab.owner.needs_ticks()), (0, false));
    assert!(lab.owner.ticking.is_empty());
}

#[test]
fn shorter_retention_needs_no_publish() {
    let mut lab = Lab::new(Limits::default(), 1, config());
    put(&mut lab, 2, None);
    for _ in 0..5 {
        publish(&mut lab, 2);
    }
    assert!(!lab.owner.needs_ticks());
    let all = lab.owner.get(ShardId(2)).unwrap().retained_bytes();
    lab.handle(Event::ShardPut(ShardConfig { shard: ShardId(2), retention_bytes: all / 2, ..config() }));
    lab.handle(Event::Ticked);
    assert!(lab.owner.get(ShardId(2)).unwrap().retained_bytes() <= all / 2);
    lab.handle(Event::ShardPut(ShardConfig { shard: ShardId(2), retention_age_ns: Some(5 * MS), ..config() }));
    lab.pass(6);
    lab.handle(Event::Ticked);
    assert_eq!((kept(&lab, 2..=2), lab.owner.needs_ticks()), (0, false));
}

#[test]
fn a_shard_that_is_not_here() {
    let mut lab = Lab::new(Limits::default(), 1, config());
    let (shard, core, sub) = (ShardId(99), CoreId(0), crate::event::SubKey { slot: 0, generation: 0 });
    let channel = ChannelKey { core, conn: ConnKey(1), stream: 4 };
    let batch = checked(&mut lab.owner.pool, &["a"], 10);
    let mut answer = |event| {
        lab.owner.handle(lab.now, event, &mut lab.effects);
        let effects: Vec<_> = lab.effects.drain().collect();
        assert!(effects.len() <= 1);
        effects.into_iter().next()
    };
    let producer = Default::default();
    let opened = Event::ChannelOpened { shard, channel, producer, producer_epoch: Default::default() };
    assert!(matches!(answer(opened), Some(Effect::OpenChannel { result: Err(ErrorCode::StreamGone), .. })));
    let published = Event::Published { shard, channel, batch };
    assert!(matches!(answer(published), Some(Effect::Refuse { code: ErrorCode::StreamGone, record_count: 1, .. })));
    let attached = Event::Attached { shard, core, sub, start: Start::Latest };
    assert!(matches!(answer(attached), Some(Effect::Attach { result: Err(_), .. })));
    assert!(answer(Event::Fetched { shard, core, sub, from: Offset(0) }).is_none(), "Gone is on its way already");
    assert!(answer(Event::Detached { shard, core }).is_none());
    assert!(answer(Event::ShardRemoved { shard }).is_none());
    assert!(lab.owner.pool.idle_bytes() > 0, "the refused body's buffer is kept");
}

#[test]
fn stalls_leave_nothing_behind() {
    let mut lab = Lab::new(Limits::default(), 2, config());
    let sub = crate::event::SubKey { slot: 0, generation: 0 };
    lab.full = vec![CoreId(1)];
    for round in 1..200u64 {
        put(&mut lab, 2, None);
        for _ in 0..3 {
            lab.handle(Event::Attached { shard: ShardId(2), core: CoreId(1), sub, start: Start::Latest });
            publish(&mut lab, 2);
            lab.handle(Event::Detached { shard: ShardId(2), core: CoreId(1) });
        }
        assert_eq!(lab.owner.stalled[&CoreId(1)].len(), 1, "round {round}");
        if round % 2 == 0 {
            lab.handle(Event::ShardRemoved { shard: ShardId(2) });
            assert_eq!(lab.owner.stalled_cores().count(), 0);
        }
    }
    lab.handle(Event::MeshHasRoom { core: CoreId(1) });
    assert_eq!(lab.owner.stalled_cores().count(), 0);
}

#[test]
fn touched_shards_are_told_once() {
    let mut lab = Lab::new(Limits::default(), 1, config());
    for _ in 0..3 {
        publish(&mut lab, 1);
    }
    let mut told = Vec::new();
    lab.owner.take_touched(|shard| told.push((shard.config().shard, shard.high_watermark())));
    assert_eq!(told, [(ShardId(1), Offset(3))]);
    lab.owner.take_touched(|_| panic!("nothing new"));
}

#[test]
#[should_panic(expected = "never goes back")]
fn the_epoch_never_goes_back() {
    let mut lab = Lab::new(Limits::default(), 1, config());
    lab.handle(Event::ShardPut(ShardConfig { epoch: Epoch(0), ..config() }));
}
