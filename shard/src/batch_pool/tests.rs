use super::*;
use crate::kit::{body, checked};
use felix_protocol::batch_builder::ProducerStamp;

fn check(body: &[u8], bytes_max: usize, keyed: Option<HashRange>) -> Result<BodyFacts, CheckError> {
    CheckedBatch::check(&mut BatchPool::new(0), body, bytes_max, keyed).map(|it| *it.facts())
}

#[test]
fn a_body_is_checked() {
    let stamp = ProducerStamp { producer: ProducerId(3), epoch: ProducerEpoch(2), base_sequence: Sequence(9) };
    let good = body(&["a!70", "b", "-!30"], stamp, b"x");
    let facts = check(&good, good.len(), None).unwrap();
    assert_eq!((facts.record_count, facts.producer, facts.ttl_ms_min), (3, ProducerId(3), Some(30)));
    assert_eq!((facts.producer_epoch, facts.base_sequence), (ProducerEpoch(2), Sequence(9)));
    let max = good.len() - 1;
    assert_eq!(check(&good, max, None), Err(CheckError::TooLarge { bytes: good.len(), max }));
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(matches!(check(&bad, 1 << 20, None), Err(CheckError::Batch(_))), "byte {at}");
        assert!(matches!(check(&good[..at], 1 << 20, None), Err(CheckError::Batch(_))), "cut at {at}");
    }
}

#[test]
fn keys_belong_to_the_shard() {
    let hash = key_hash(b"b");
    let range = |first, last| Some(HashRange { first, last });
    let batch = body(&["-", "b"], ProducerStamp::default(), b"");
    assert!(check(&batch, 1_000, range(hash, hash)).is_ok());
    assert!(check(&batch, 1_000, range(0, u64::MAX)).is_ok());
    assert_eq!(check(&batch, 1_000, range(hash + 1, u64::MAX)), Err(CheckError::WrongShard { record: 1 }));
    assert_eq!(check(&batch, 1_000, range(0, hash - 1)), Err(CheckError::WrongShard { record: 1 }));
    assert!(check(&body(&["-"], ProducerStamp::default(), b""), 1_000, range(1, 0)).is_ok(), "no key, no range");
}

#[test]
fn buffers_are_used_again_by_size() {
    let mut pool = BatchPool::new(1 << 20);
    // One large batch must not make the buffers of small ones large.
    for _ in 0..100 {
        let large = checked(&mut pool, &["a"], 100_000);
        let small = checked(&mut pool, &["a"], 10);
        assert!(small.inner.bytes.capacity() < 512, "{}", small.inner.bytes.capacity());
        pool.put_back(large);
        pool.put_back(small);
    }
    assert_eq!(pool.allocated, 2);
    let held = pool.idle_bytes();
    assert!((100_000..300_000).contains(&held), "{held}");
}

#[test]
fn the_pool_is_bounded_and_follows_the_load() {
    let mut pool = BatchPool::new(100_000);
    let fill = |pool: &mut BatchPool, bytes, count: usize| {
        let batches: Vec<_> = (0..count).map(|_| checked(pool, &["a"], bytes)).collect();
        batches.into_iter().for_each(|it| pool.put_back(it));
        assert!(pool.idle_bytes() <= 100_000);
    };
    fill(&mut pool, 10_000, 20);
    assert!(pool.idle_bytes() > 80_000, "filled with large ones");
    fill(&mut pool, 10, 20);
    let before = pool.allocated;
    fill(&mut pool, 10, 20);
    assert_eq!(pool.allocated, before, "the small ones found room");
    fill(&mut pool, 400_000, 2);
    assert!(pool.free.iter().flatten().all(|it| it.bytes.capacity() <= 256 << 10), "huge ones are not kept");
}

#[test]
fn who_is_shared_is_not_taken_back() {
    let mut pool = BatchPool::new(1 << 20);
    let batch = crate::kit::stamped(&mut pool, 0, 0, 10);
    let reader = batch.clone();
    let batch = pool.recycle(batch).unwrap_err();
    assert!(!batch.is_unique() && pool.idle_bytes() == 0);
    drop(reader);
    assert!(batch.is_unique() && pool.recycle(batch).is_ok() && pool.idle_bytes() > 0);
}
