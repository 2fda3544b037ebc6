//! The rules of the house, checked: who may import whom, which words may stand where, how long a file may be.
//! A rule that stops being useful is changed here, with its reason, not worked around.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `crate -> what it may import of ours`, from ARCHITECTURE.md.
const IMPORTS: &[(&str, &[&str])] = &[
    ("felix-protocol", &[]),
    ("felix-wal", &["felix-protocol"]),
    ("felix-shard", &["felix-protocol", "felix-wal"]),
    ("felix-control", &["felix-protocol"]),
    ("felix-quic", &["felix-protocol"]),
    ("felix-broker", &["felix-protocol", "felix-wal", "felix-shard", "felix-control", "felix-quic"]),
    ("felix-client", &["felix-protocol", "felix-quic"]),
    ("felix-bench", &["felix-client", "felix-protocol", "felix-quic"]),
];

/// Libraries that only one crate may depend on.
const WRAPPERS: &[(&str, &[&str])] = &[
    ("glommio", &["felix-broker", "felix-bench"]),
    ("quiche", &["felix-quic", "felix-bench"]),
    ("boring", &["felix-quic"]),
    ("openraft", &["felix-control"]),
    ("raft-engine", &["felix-control"]),
    ("kube", &["felix-operator"]),
];

/// Words that may stand in code only below these folders. The measured floors of bench name the bare libraries.
const WORDS: &[(&str, &[&str])] = &[
    ("glommio", &["broker/src/io/", "bench/src/floors/"]),
    ("quiche::", &["quic/src/", "bench/src/floors/"]),
    ("boring::", &["quic/src/"]),
    ("openraft::", &["control/src/node.rs", "control/src/raft_"]),
    ("raft_engine::", &["control/src/raft_log/"]),
];

/// Words that may not stand in the code of crates without I/O.
const PURE: &[&str] = &["quic/protocol/src/", "wal/src/", "shard/src/", "control/src/"];
/// The files below those that drive I/O all the same: the durable member of `control`. Its types and bytes
/// (`raft_types.rs`, `raft_frames.rs`), state, placement and watch stay pure.
const PURE_EXCEPT: &[&str] = &[
    "control/src/node.rs",
    "control/src/raft_folder.rs",
    "control/src/raft_log.rs",
    "control/src/raft_log/",
    "control/src/raft_network.rs",
    "control/src/raft_state.rs",
];
const IMPURE_WORDS: &[&str] = &[
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "Instant",
    "SystemTime",
    "async fn",
    "Mutex",
    "RwLock",
    "RefCell",
];

/// Lines of a file beyond which it is named, and beyond which the check fails; tests below `#[cfg(test)]` not counted.
const LINES_WARN: usize = 500;
const LINES_MAX: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the broker lies in the workspace").to_path_buf()
}

fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().to_string();
            if path.is_dir() {
                if !matches!(name.as_str(), "target" | ".git" | ".venv" | ".felix" | "fuzz" | "corpus") {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") {
                let relative = path.strip_prefix(root()).unwrap().to_string_lossy().to_string();
                found.push((relative, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(found.len() > 50, "the sources were not found");
    found
}

/// Code lines with their numbers: comments and what stands below `#[cfg(test)]` left out.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(at, line)| (at + 1, line))
}

fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs") || path.contains("/examples/") || path.contains("/benches/")
}

fn fail_with(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn crates_import_only_what_the_architecture_allows() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        IMPORTS.iter().map(|(name, list)| (*name, list.iter().copied().collect())).collect();
    let mut findings = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let Some(allowed) = allowed.get(name) else {
            findings.push(format!("{name}: a crate that tidy.rs does not know; add it with its imports"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let other = dependency["name"].as_str().unwrap();
            // Dev-dependencies may point anywhere.
            if dependency["kind"].as_str() == Some("dev") {
                continue;
            }
            if other.starts_with("felix-") && !allowed.contains(other) {
                findings.push(format!("{name} imports {other}; allowed: {allowed:?}"));
            }
            for (library, owners) in WRAPPERS {
                if other == *library && !owners.contains(&name) {
                    findings.push(format!("{name} depends on {other}; only {owners:?} may"));
                }
            }
        }
    }
    fail_with(findings);
}

#[test]
fn words_stand_where_they_belong() {
    let mut findings = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| !is_test(path)) {
        for (at, line) in code(text) {
            for (word, places) in WORDS {
                if line.contains(word) && !places.iter().any(|place| path.starts_with(place)) {
                    findings.push(format!("{path}:{at}: `{word}` belongs below {places:?}"));
                }
            }
            let starts = |places: &[&str]| places.iter().any(|place| path.starts_with(place));
            if starts(PURE) && !starts(PURE_EXCEPT) {
                for word in IMPURE_WORDS.iter().filter(|word| line.contains(**word)) {
                    findings.push(format!("{path}:{at}: `{word}` in a crate without I/O"));
                }
            }
            if line.trim_start().starts_with("pub use") && line.contains("::*") {
                findings.push(format!("{path}:{at}: a glob re-export hides what is public"));
            }
        }
    }
    fail_with(findings);
}

#[test]
fn files_are_small_and_say_what_they_are() {
    let mut findings = Vec::new();
    for (path, text) in &sources() {
        let name = path.rsplit('/').next().unwrap();
        if matches!(name, "common.rs" | "util.rs" | "utils.rs" | "helpers.rs" | "impls.rs") && !is_test(path) {
            findings.push(format!("{path}: a name that says nothing"));
        }
        if is_test(path) {
            continue;
        }
        if !text.starts_with("//!") {
            findings.push(format!("{path}: does not open with `//!`"));
        }
        let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count();
        if lines > LINES_MAX {
            findings.push(format!("{path}: {lines} lines, at most {LINES_MAX}"));
        } else if lines > LINES_WARN {
            println!("{path}: {lines} lines, over {LINES_WARN}: is it one thing?");
        }
        for header in ["**What", "**Invariants", "**Never", "**See"] {
            if path.contains("/src/") && !path.contains("/bin/") && !text.contains(header) {
                findings.push(format!("{path}: its header lacks {header}**"));
            }
        }
    }
    fail_with(findings);
}
