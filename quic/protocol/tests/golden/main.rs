//! Golden bytes of wire version 1 and batch format 1. The files in `v1/` are written once and never edited after:
//! `FELIX_GOLDEN=write cargo test -p felix-protocol --test golden` adds the ones that are missing.
//!
//! `*.bin` are read to the exact value and written back to the same bytes; `bad-*.bin` are damaged twins, each refused
//! with its exact error; `foreign-*.bin` are legal bytes that this build reads and would not write.

mod batches;
mod corrupt;
mod documents;
mod frames;

use std::collections::BTreeSet;
use std::path::PathBuf;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

/// The stored bytes of a case. Missing files are an error unless they are to be written.
#[track_caller]
pub fn stored(name: &str, made: &[u8]) -> Vec<u8> {
    let path = directory().join(format!("{name}.bin"));
    if !path.exists() && std::env::var("FELIX_GOLDEN").is_ok_and(|it| it == "write") {
        std::fs::write(&path, made).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_file_has_a_case() {
    let mut cases = BTreeSet::new();
    for name in frames::names().into_iter().chain(batches::names()).chain(corrupt::names()) {
        assert!(cases.insert(format!("{name}.bin")), "{name} stands there twice");
    }
    let files: BTreeSet<String> = std::fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files, cases);
}
