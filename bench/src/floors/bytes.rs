//! **What**: what moving and sealing bytes costs: memcpy out of cache and out of memory, AES-128-GCM.
//!
//! **Invariants**: the best of several rounds counts: the floor is what is possible, not what was disturbed.
//!
//! **Never**: anything of Felix.
//!
//! **See**: `mod.rs`.

use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 7;

/// ns to copy `bytes` bytes whose source and target lie in `span` bytes of memory each.
pub fn memcpy_ns(bytes: usize, span: usize) -> f64 {
    let source = vec![1u8; span.max(bytes)];
    let mut target = vec![2u8; span.max(bytes)];
    let places = (span / bytes).max(1);
    let copies = ((64 << 20) / bytes).max(1);
    best(copies, |index| {
        let at = index % places * bytes;
        target[at..at + bytes].copy_from_slice(black_box(&source[at..at + bytes]));
        black_box(&mut target[at..at + bytes]);
    })
}

/// ns to seal one packet of `bytes` bytes in place with AES-128-GCM. `None`: the library refuses.
pub fn seal_ns(bytes: usize) -> Option<f64> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[7; 16]).ok()?);
    let mut packet = vec![3u8; bytes];
    let mut refused = false;
    let packets = ((16 << 20) / bytes).max(1);
    let each = best(packets, |index| {
        let mut nonce = [0u8; 12];
        nonce[..8].copy_from_slice(&(index as u64).to_le_bytes());
        let sealed =
            key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&[0u8; 20]), &mut packet);
        refused |= black_box(sealed).is_err();
    });
    if refused { None } else { Some(each) }
}

fn best(count: usize, mut call: impl FnMut(usize)) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        for index in 0..count {
            call(index);
        }
        best = best.min(started.elapsed().as_nanos() as f64 / count as f64);
    }
    best
}
