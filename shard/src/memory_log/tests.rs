use super::*;
use crate::kit::stamped;

/// Batches of one record each, appended at these times; all equally large.
fn log(pool: &mut BatchPool, times: &[u64]) -> (MemoryLog, u64) {
    let mut log = MemoryLog::default();
    for (base, time) in times.iter().enumerate() {
        log.append(stamped(pool, base as u64, *time, 10));
        log.check();
    }
    let each = (log.bytes() / times.len().max(1)) as u64;
    (log, each)
}

fn pool() -> BatchPool {
    BatchPool::new(1 << 20)
}

#[test]
fn retention() {
    // Times of the batches, bytes kept (in batches), older than, log start afterwards.
    for (times, batches_max, older_than, expected) in [
        (&[1, 2, 3, 4][..], 4, None, 0),
        (&[1, 2, 3, 4], 3, None, 1),
        (&[1, 2, 3, 4], 1, None, 3),
        (&[1, 2, 3, 4], 0, None, 3),
        (&[1, 2, 3, 4], 4, Some(3), 2),
        (&[1, 2, 3, 4], 4, Some(5), 4),
        (&[1, 2, 3, 4], 2, Some(2), 2),
        (&[1, 1, 1, 2], 4, Some(2), 3),
    ] {
        let mut pool = pool();
        let (mut log, each) = log(&mut pool, times);
        let gone = log.retain(batches_max * each, older_than.map(Timestamp), &mut pool);
        log.check();
        assert_eq!(
            (log.log_start(), gone as u64),
            (Offset(expected), expected),
            "{times:?} {batches_max} {older_than:?}"
        );
        assert_eq!(log.log_end(), Offset(4), "the end stays, even of an empty log");
        assert!(!log.is_over(batches_max * each));
    }
}

#[test]
fn a_look_at_retention_is_bounded() {
    let mut pool = pool();
    let (mut log, _) = log(&mut pool, &[5; EVICT_BATCHES_MAX + 10]);
    assert_eq!(log.retain(1 << 30, Some(Timestamp(6)), &mut pool), EVICT_BATCHES_MAX);
    assert_eq!(log.retain(1 << 30, Some(Timestamp(6)), &mut pool), 10);
    assert_eq!(log.batch_count(), 0);
}

#[test]
fn find_and_read() {
    let mut pool = pool();
    let (mut log, each) = log(&mut pool, &[10, 20, 20, 30]);
    let read = |log: &MemoryLog, at| log.read(Offset(at)).map(|it| it.range().from.0).collect::<Vec<_>>();
    assert_eq!(read(&log, 0), [0, 1, 2, 3]);
    assert_eq!(read(&log, 2), [2, 3]);
    assert_eq!(read(&log, 3), [3]);
    assert_eq!(read(&log, 4), [0u64; 0]);
    for (time, offset) in [(0, 0), (10, 0), (11, 1), (20, 1), (21, 3), (30, 3), (31, 4)] {
        assert_eq!(log.find_time(Timestamp(time)), Offset(offset), "time {time}");
    }
    log.retain(2 * each, None, &mut pool);
    assert_eq!(read(&log, 0), [2, 3], "the first that is left");
    assert_eq!(log.find_time(Timestamp(10)), Offset(2));
    log.clear(&mut pool);
    assert_eq!((read(&log, 0).len(), log.log_start(), log.oldest_time()), (0, Offset(4), None));
}

#[test]
fn what_readers_hold_is_counted_and_taken_back() {
    let mut pool = pool();
    let (mut log, each) = log(&mut pool, &[1; 6]);
    let mut readers: Vec<_> = log.read(Offset(0)).take(4).cloned().collect();
    log.retain(each, None, &mut pool);
    log.check();
    assert_eq!(log.held_bytes() as u64, 4 * each, "four of five are read");
    log.reclaim(&mut pool, 10);
    assert_eq!(log.held_bytes() as u64, 4 * each);
    readers.drain(..2);
    log.reclaim(&mut pool, 1);
    assert_eq!(log.held_bytes() as u64, 3 * each, "the budget bounds the look");
    log.reclaim(&mut pool, 10);
    assert_eq!(log.held_bytes() as u64, 2 * each);
    log.check();
    readers.clear();
    log.reclaim(&mut pool, 10);
    assert_eq!(log.held_bytes(), 0);
}

#[test]
fn a_straggler_hides_nobody() {
    // Readers hold a window at the end; two stragglers keep very old batches for ever. What is held beyond that must
    // stay small, with one look per append.
    const WINDOW: usize = 100;
    let mut pool = pool();
    let (mut log, each) = log(&mut pool, &[]);
    let each = each.max(1);
    let mut window = VecDeque::new();
    let mut stragglers = Vec::new();
    let mut most = 0;
    for base in 0..5_000 {
        let batch = stamped(&mut pool, base, 1, 10);
        window.push_back(batch.clone());
        if base == 500 || base == 501 {
            stragglers.push(batch.clone());
        }
        log.append(batch);
        if window.len() > WINDOW {
            window.pop_front();
        }
        let gone = log.retain(each, None, &mut pool);
        log.reclaim(&mut pool, 4 + gone);
        most = most.max(log.held.len());
    }
    assert!(most <= WINDOW + 50, "{most} held for a window of {WINDOW} and two stragglers");
    assert!(pool.allocated < 300, "{} buffers", pool.allocated);
    window.clear();
    for _ in 0..200 {
        log.reclaim(&mut pool, 4);
    }
    assert_eq!(log.held.len(), 2, "all but the stragglers' come free, without any append");
    stragglers.clear();
    log.reclaim(&mut pool, 4);
    assert_eq!(log.held_bytes(), 0);
}
