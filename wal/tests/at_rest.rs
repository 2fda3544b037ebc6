//! Encryption at rest: only the right tenant opens, only in the right place, and no plaintext reaches the disk.

mod kit;

use felix_protocol::position::{Epoch, Lineage, Offset};
use felix_wal::at_rest::{AtRestError, AtRestScope, DataKey, Opener, Sealer};
use felix_wal::format::stored::{PIECE_BYTES_MAX, StoredBatch, StoredError};
use felix_wal::log::Ended;
use felix_wal::mem_disk::MemDisk;
use felix_wal::read::ReadFrom;
use kit::*;

fn scope() -> AtRestScope {
    AtRestScope::new("eu-west", "acme")
}

fn key(id: u32) -> DataKey {
    DataKey::new(id, [id as u8; 32])
}

fn sealed(sealer: &mut Sealer, batch: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    sealer.seal(batch, &mut out).unwrap();
    out
}

fn open(opener: &mut Opener, stored: &[u8]) -> Result<Vec<u8>, AtRestError> {
    let (stored, rest) = StoredBatch::split_first(stored, true).unwrap();
    assert!(rest.is_empty());
    let mut out = Vec::new();
    opener.open(&stored, &mut out).map(|()| out)
}

#[test]
fn batches_of_every_size_open_again() {
    let mut sealer = Sealer::new(scope(), &key(1), 7);
    let mut opener = Opener::new(scope(), vec![key(1)]);
    let mut stamper = Stamper::default();
    for bytes in [0, 1, 1_000, PIECE_BYTES_MAX - 200, PIECE_BYTES_MAX, 3 * PIECE_BYTES_MAX + 1, 900 << 10] {
        let batch = stamper.batch(&[(Some(b"k".to_vec()), vec![5; bytes], false)]);
        let stored = sealed(&mut sealer, &batch);
        assert_eq!(stored[..80], batch[..80], "the stamped header stays clear");
        assert_eq!(open(&mut opener, &stored), Ok(batch));
    }
}

#[test]
fn nonces_are_never_used_twice() {
    let mut sealer = Sealer::new(scope(), &key(1), 7);
    let mut stamper = Stamper::default();
    let batch = stamper.batch(&[(None, vec![5; 3 * PIECE_BYTES_MAX], false)]);
    let mut next = 0;
    for _ in 0..5 {
        let stored = sealed(&mut sealer, &batch);
        let envelope = StoredBatch::split_first(&stored, true).unwrap().0.sealed.unwrap();
        assert_eq!(envelope.counter, next);
        next += 4;
    }
    let twice = [sealed(&mut sealer, &batch), sealed(&mut sealer, &batch)];
    assert_ne!(twice[0][80 + 48..], twice[1][80 + 48..], "the same batch seals to other bytes");
}

/// Bytes moved to another place keep fitting checksums: only the key's context tells.
#[test]
fn moved_bytes_do_not_open() {
    let mut sealer = Sealer::new(scope(), &key(1), 7);
    let mut stamper = Stamper::default();
    let batch = stamper.batch(&[(Some(b"k".to_vec()), vec![5; 70_000], false)]);
    let stored = sealed(&mut sealer, &batch);
    let mut opener = Opener::new(scope(), vec![key(1)]);
    assert!(open(&mut opener, &stored).is_ok());
    let refused = Err(AtRestError::Refused { piece: 0 });
    for other in
        [AtRestScope::new("us-east", "acme"), AtRestScope::new("eu-west", "evil"), AtRestScope::new("eu-westa", "cme")]
    {
        assert_eq!(open(&mut Opener::new(other, vec![key(1)]), &stored), refused);
    }
    assert_eq!(open(&mut Opener::new(scope(), vec![DataKey::new(1, [9; 32])]), &stored), refused);
    assert_eq!(open(&mut Opener::new(scope(), vec![key(2)]), &stored), Err(AtRestError::OtherKey { key_id: 1 }));
    type Change = fn(&mut felix_protocol::batch::StampedHeader);
    let changes: [Change; 5] = [
        |it| it.stream.0 += 1,
        |it| it.shard.0 += 1,
        |it| it.lineage = Lineage(it.lineage.0 + 1),
        |it| it.epoch = Epoch(it.epoch.0 + 1),
        |it| it.base_offset = Offset(it.base_offset.0 + 1),
    ];
    for change in changes {
        let mut header = StoredBatch::split_first(&stored, true).unwrap().0.header;
        change(&mut header);
        let moved = [&header.encode()[..], &stored[80..]].concat();
        assert_eq!(open(&mut opener, &moved), refused, "{header:?}");
    }
    // The pieces of one batch in another order.
    let piece = PIECE_BYTES_MAX + 16;
    let start = 80 + 48;
    let mut swapped = stored.clone();
    swapped[start..start + 100].copy_from_slice(&stored[start + piece..start + piece + 100]);
    let crc = crc32c::crc32c(&swapped[84..]);
    swapped[80..84].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(open(&mut opener, &swapped), refused);
}

#[test]
fn every_damaged_byte_is_found_without_a_key() {
    let mut sealer = Sealer::new(scope(), &key(1), 7);
    let batch = Stamper::default().batch(&[(None, vec![5; 500], false)]);
    let stored = sealed(&mut sealer, &batch);
    for at in 0..stored.len() {
        let mut bad = stored.clone();
        bad[at] ^= 0x10;
        let error = StoredBatch::split_first(&bad, true).map(|_| ()).unwrap_err();
        let named = if at < 80 {
            matches!(error, StoredError::Batch(_))
        } else {
            matches!(error, StoredError::EnvelopeChecksum { .. })
        };
        assert!(named, "byte {at}: {error:?}");
    }
}

/// A canary in keys and values, and none of it in any file.
#[test]
fn no_plaintext_reaches_the_disk() {
    const CANARY: &[u8] = b"CANARY-4711-PLAINTEXT";
    let mut world = World::new(MemDisk::new(1));
    let mut log = world.create().unwrap();
    let mut sealer = Sealer::new(scope(), &key(1), 7);
    let mut stamper = Stamper::default();
    let mut clear = Vec::new();
    for _ in 0..60 {
        let batch = stamper.batch(&[(Some(CANARY.to_vec()), CANARY.repeat(40), false)]);
        let stored = sealed(&mut sealer, &batch);
        let event = world.flush_stored(&mut log, &[stored], true).unwrap().unwrap();
        assert_eq!(event.ended, Ended::Done);
        clear.push(batch);
    }
    assert!(log.segments().len() > 1);
    for path in world.disk.paths() {
        let content = world.disk.content(&path).unwrap();
        assert!(!content.windows(CANARY.len()).any(|window| window == CANARY), "{path}");
    }
    let (log, _) = world.open(1).unwrap().unwrap();
    let mut opener = Opener::new(scope(), vec![key(1)]);
    let (read, _, error) = world.read(&log, ReadFrom::Offset(Offset(0))).unwrap();
    assert_eq!(error, None);
    let opened: Vec<Vec<u8>> = read.iter().map(|stored| open(&mut opener, stored).unwrap()).collect();
    assert!(opened == clear);
    // The test itself would see it: the same log without sealing shows the canary.
    let mut open_world = World::new(MemDisk::new(2));
    let mut log = open_world.create().unwrap();
    open_world.flush(&mut log, &clear[..1]).unwrap();
    let shown = open_world
        .disk
        .paths()
        .iter()
        .any(|path| open_world.disk.content(path).unwrap().windows(CANARY.len()).any(|window| window == CANARY));
    assert!(shown);
}
