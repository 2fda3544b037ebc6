use super::*;
use felix_protocol::ids::{ClusterId, NodeId};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Place(std::env::temp_dir().join(format!("felix-raft-folder-{}-{count}", std::process::id())))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const ME: Identity = Identity { cluster: ClusterId(0xc), node: NodeId(0xa) };

#[test]
fn a_folder_knows_whose_it_is() {
    let place = Place::new();
    Folder::open(&place.0, ME).unwrap();
    Folder::open(&place.0, ME).unwrap();
    let other_node = Identity { node: NodeId(0xb), ..ME };
    let other_cluster = Identity { cluster: ClusterId(0xd), node: NodeId(0xb) };
    for (other, expected) in [
        (other_node, "belongs to node 0000000000000000000000000000000a, this is node 0000000000000000000000000000000b"),
        (
            other_cluster,
            "belongs to cluster 0000000000000000000000000000000c, this is cluster 0000000000000000000000000000000d",
        ),
    ] {
        let error = Folder::open(&place.0, other).unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }));
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn every_flip_and_cut_of_the_identity_is_refused() {
    let place = Place::new();
    Folder::open(&place.0, ME).unwrap();
    let file = place.0.join(IDENTITY);
    let whole = std::fs::read(&file).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&file, &bytes).unwrap();
        let error = Folder::open(&place.0, ME).unwrap_err();
        assert!(matches!(&error, OpenError::Damaged { path, .. } if *path == file), "bit {bit}: {error}");
        std::fs::write(&file, &whole[..bit / 8]).unwrap();
        assert!(Folder::open(&place.0, ME).is_err());
    }
}

#[test]
fn a_start_that_was_cut_off_is_made_again_and_a_lost_identity_is_not() {
    let place = Place::new();
    std::fs::create_dir_all(&place.0).unwrap();
    // Everything but the last step: what it wrote aside, and `synced`.
    std::fs::write(place.0.join("identity.tmp"), b"half").unwrap();
    std::fs::write(place.0.join("synced"), b"old").unwrap();
    let folder = Folder::open(&place.0, ME).unwrap();
    assert_eq!(folder.synced().unwrap().writes(), 0);
    std::fs::remove_file(place.0.join(IDENTITY)).unwrap();
    folder.write_snapshot(3, b"x").unwrap();
    let error = Folder::open(&place.0, ME).unwrap_err().to_string();
    assert!(error.contains("identity: it is missing"), "{error}");
}

#[test]
fn the_newer_slot_counts_and_the_other_one_is_written_next() {
    let place = Place::new();
    let folder = Folder::open(&place.0, ME).unwrap();
    let mut synced = folder.synced().unwrap();
    for writes in 1..=5 {
        synced.advance(writes).unwrap();
        assert_eq!(folder.synced().unwrap().writes(), writes);
    }
    synced.sync().unwrap();
    let file = place.0.join(SYNCED);
    let whole = std::fs::read(&file).unwrap();
    // A slot that a power cut tore: the write before it is still told.
    let mut seen = Vec::new();
    for slot in [0, 4_096] {
        let mut bytes = whole.clone();
        bytes[slot + 16] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        seen.push(folder.synced().unwrap().writes());
        // What is torn is overwritten, not what is whole.
        let mut again = folder.synced().unwrap();
        again.advance(9).unwrap();
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[slot + 16] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert!(folder.synced().unwrap().writes() >= 4);
    }
    seen.sort();
    assert_eq!(seen, [4, 5]);
    std::fs::write(&file, b"").unwrap();
    assert!(matches!(folder.synced(), Err(OpenError::Damaged { .. })));
    std::fs::remove_file(&file).unwrap();
    let error = folder.synced().unwrap_err().to_string();
    assert!(error.contains("synced: it is missing"), "{error}");
}

/// A power cut tears the slot that is being written; the other one must be the newest that is whole.
#[test]
fn a_write_never_touches_the_newest_slot_not_even_after_an_open() {
    let place = Place::new();
    let folder = Folder::open(&place.0, ME).unwrap();
    let file = place.0.join(SYNCED);
    for writes in 1..=6 {
        let mut synced = folder.synced().unwrap();
        for writes in [2 * writes - 1, 2 * writes] {
            let before = std::fs::read(&file).unwrap();
            synced.advance(writes).unwrap();
            let mut torn = std::fs::read(&file).unwrap();
            let slot = (0..2).find(|slot| torn[slot * 4_096..][..64] != before[slot * 4_096..][..64]).unwrap();
            let whole = std::mem::replace(&mut torn[slot * 4_096], 0);
            std::fs::write(&file, &torn).unwrap();
            assert_eq!(folder.synced().unwrap().writes(), writes - 1);
            torn[slot * 4_096] = whole;
            std::fs::write(&file, &torn).unwrap();
        }
    }
}

#[test]
fn the_last_two_snapshots_stay() {
    let place = Place::new();
    let folder = Folder::open(&place.0, ME).unwrap();
    assert!(folder.newest_snapshot().unwrap().is_none());
    std::fs::write(place.0.join("snapshot-00000000000000000099.tmp"), b"half").unwrap();
    for index in [9, 10, 100] {
        folder.write_snapshot(index, format!("at {index}").as_bytes()).unwrap();
        folder.remove_old_snapshots().unwrap();
        let (path, bytes) = folder.newest_snapshot().unwrap().unwrap();
        assert_eq!(bytes, format!("at {index}").into_bytes());
        assert!(path.ends_with(format!("snapshot-{index:020}")));
    }
    let indexes: Vec<u64> = folder.snapshots().unwrap().into_iter().map(|it| it.0).collect();
    assert_eq!(indexes, [10, 100]);
}
