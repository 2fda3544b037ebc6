//! Instructions and allocations per delivery of one core, against `baselines/core.json`. Counts, not times: they are the
//! same on a busy machine. A change that is meant writes the new numbers: `make bench-baselines`.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Rounds of the shorter and of the longer run. What both share (start, warm-up) falls out of the difference.
const ROUNDS: [u64; 2] = [20, 120];

fn profile() -> &'static str {
    if cfg!(debug_assertions) { "dev" } else { "release" }
}

fn workload() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_felix-bench")).parent().expect("a binary lies in a folder");
    let path = folder.join("examples/core_work");
    assert!(path.exists(), "{} is missing: `cargo build --examples` makes it", path.display());
    path
}

/// Deliveries and allocations of a run.
fn told(text: &str) -> (u64, u64) {
    let number = |name: &str| {
        let mut words = text.split_whitespace().skip_while(|word| *word != name).skip(1);
        words.next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text:?}"))
    };
    (number("deliveries"), number("allocations"))
}

fn has_valgrind() -> bool {
    Command::new("valgrind").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Instructions and deliveries of a run under callgrind.
fn instructions(rounds: u64) -> (u64, u64) {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(workload())
        .arg(rounds.to_string())
        .output()
        .expect("valgrind starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let line = said.lines().find(|line| line.contains("Collected :")).unwrap_or_else(|| panic!("no count in {said}"));
    let count = line.rsplit(' ').next().and_then(|word| word.parse().ok()).expect("a number");
    (count, told(&String::from_utf8_lossy(&output.stdout)).0)
}

fn per_delivery(of: impl Fn(u64) -> (u64, u64)) -> f64 {
    let [(few, few_deliveries), (many, many_deliveries)] = ROUNDS.map(of);
    (many - few) as f64 / (many_deliveries - few_deliveries) as f64
}

#[test]
fn a_delivery_costs_what_it_did() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("baselines/core.json");
    let mut baseline: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let slack = baseline["slack_percent"].as_f64().unwrap();
    let output = Command::new(workload()).arg("1000").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (deliveries, allocations) = told(&String::from_utf8_lossy(&output.stdout));
    let allocations = allocations as f64 / deliveries as f64;
    let instructions = has_valgrind().then(|| per_delivery(instructions));
    let known = &mut baseline["profiles"][profile()];
    println!(
        "{}: {allocations:.5} allocations per delivery, baseline {}",
        profile(),
        known["allocations_per_delivery"]
    );
    match instructions {
        Some(count) => {
            println!("{count:.1} instructions per delivery, baseline {}", known["instructions_per_delivery"])
        }
        None => {
            println!("skipped: instructions are not counted, valgrind is not installed (scripts/setup.sh valgrind)")
        }
    }
    if std::env::var_os("FELIX_BENCH_WRITE").is_some() {
        let instructions = instructions.expect("a baseline needs valgrind");
        *known = json!({
            "instructions_per_delivery": (instructions * 10.0).round() / 10.0,
            "allocations_per_delivery": (allocations * 1e5).round() / 1e5,
        });
        std::fs::write(&file, serde_json::to_string_pretty(&baseline).unwrap() + "\n").unwrap();
        return;
    }
    let number = |name: &str| known[name].as_f64().unwrap_or_else(|| panic!("no {name} for {}", profile()));
    // One allocation in ten thousand deliveries is a list that grew once.
    let most = number("allocations_per_delivery") + 0.0001;
    assert!(allocations <= most, "{allocations} allocations per delivery, at most {most}");
    if let Some(count) = instructions {
        let most = number("instructions_per_delivery") * (1.0 + slack / 100.0);
        assert!(count <= most, "{count:.1} instructions per delivery, at most {most:.1} ({slack} % over the baseline)");
        let least = number("instructions_per_delivery") * (1.0 - slack / 100.0);
        if count < least {
            println!("better than the baseline by more than {slack} %: write it down with `make bench-baselines`");
        }
    }
}
