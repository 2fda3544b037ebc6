use super::*;

fn cores(numbers: &[u8]) -> Vec<CoreId> {
    numbers.iter().copied().map(CoreId).collect()
}

/// Streams after the moves; no shard moves twice or to where it is.
fn moved(streams: &[Vec<CoreId>], before: u8, after: u8) -> (Vec<Vec<CoreId>>, usize) {
    let moves = re_place(streams, before, after);
    let mut placed = streams.to_vec();
    let mut seen = std::collections::BTreeSet::new();
    for it in &moves {
        assert!(seen.insert((it.stream, it.index)), "{it:?} moves twice");
        assert_ne!(placed[it.stream][it.index], it.to, "{it:?} moves nowhere");
        placed[it.stream][it.index] = it.to;
    }
    (placed, moves.len())
}

fn loads(streams: &[Vec<CoreId>], count: u8) -> Vec<u32> {
    owned(&streams.concat(), usize::from(count))
}

#[test]
fn least_loaded_first_ties_by_index_and_one_stream_spread() {
    for (before, shards, expected) in [
        (&[0, 0, 0][..], 1, &[0][..]),
        (&[1, 0, 0], 1, &[1]),
        (&[1, 1, 0], 2, &[2, 0]),
        (&[5, 0, 3], 3, &[1, 2, 0]),
        (&[9, 0], 4, &[1, 0, 1, 0]),
        (&[0], 3, &[0, 0, 0]),
        (&[0, 0], 0, &[]),
    ] {
        let mut after = before.to_vec();
        assert_eq!(place(&mut after, shards), cores(expected), "{before:?} {shards}");
        assert_eq!(after.iter().sum::<u32>(), before.iter().sum::<u32>() + shards);
    }
}

#[test]
fn the_same_count_moves_nothing() {
    assert_eq!(re_place(&[cores(&[0, 0, 0]), cores(&[0])], 2, 2), vec![]);
}

#[test]
fn fewer_cores_move_only_what_is_homeless() {
    let streams = [cores(&[0, 1, 2]), cores(&[2, 0]), cores(&[1])];
    let (placed, count) = moved(&streams, 3, 2);
    assert_eq!(placed, [cores(&[0, 1, 0]), cores(&[1, 0]), cores(&[1])]);
    assert_eq!(count, 2);
    let (placed, count) = moved(&streams, 3, 1);
    assert!(placed.concat().iter().all(|core| core.0 == 0));
    assert_eq!(count, 4);
}

#[test]
fn more_cores_fill_the_new_ones_with_the_fewest_moves() {
    // Six on one core, none on two others: two each, so four move.
    let (placed, count) = moved(&[cores(&[0, 0, 0]), cores(&[0, 0, 0])], 1, 3);
    assert_eq!(loads(&placed, 3), [2, 2, 2]);
    assert_eq!(count, 4);
    assert_eq!(placed, [cores(&[1, 2, 0]), cores(&[1, 2, 0])]);
    // A crowded old core is relieved, the lighter old core is left alone.
    let (placed, count) = moved(&[cores(&[1]), cores(&[0]), cores(&[0]), cores(&[0]), cores(&[0]), cores(&[1])], 2, 3);
    assert_eq!(loads(&placed, 3), [2, 2, 2]);
    assert_eq!(count, 2);
    // A difference of one is no reason to move.
    assert_eq!(moved(&[cores(&[0])], 1, 4).1, 0);
}

proptest::proptest! {
    #[test]
    fn placing_spreads_and_never_widens_the_gap(mut before in proptest::collection::vec(0u32..9, 1..9), shards in 0u32..40) {
        let gap = |loads: &[u32]| loads.iter().max().unwrap() - loads.iter().min().unwrap();
        let old = gap(&before);
        let own = owned(&place(&mut before, shards), before.len());
        assert!(gap(&own) <= 1, "{own:?}");
        assert!(gap(&before) <= old.max(1), "{before:?}");
    }

    #[test]
    fn re_placing_moves_only_what_must(
        streams in proptest::collection::vec(proptest::collection::vec(0u8..6, 1..8), 0..12),
        after in 1u8..10,
    ) {
        let before = 6;
        let streams: Vec<_> = streams.iter().map(|it| cores(it)).collect();
        let (placed, count) = moved(&streams, before, after);
        let (old, new) = (loads(&streams, before.max(after)), loads(&placed, before.max(after)));
        assert_eq!(old.iter().sum::<u32>(), new.iter().sum::<u32>());
        assert!(placed.concat().iter().all(|core| core.0 < after));
        if after <= before {
            let homeless = streams.concat().iter().filter(|core| core.0 >= after).count();
            assert_eq!(count, homeless);
        } else {
            let fresh = &new[usize::from(before)..];
            let (old_max, fresh_min) = (new.iter().take(6).max().unwrap(), fresh.iter().min().unwrap());
            assert!(*old_max <= fresh_min + 1, "{new:?}");
            // One move fewer would leave a gap: every move went onto a new core.
            assert_eq!(count as u32, fresh.iter().sum::<u32>());
            assert!(fresh.iter().max().unwrap() - fresh_min <= 1);
        }
    }
}
