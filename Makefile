# Felix: the front door. Every target sets up what it needs; `make help` lists them.

SHELL := /bin/bash
CARGO ?= cargo
export CARGO_TERM_COLOR ?= auto

.DEFAULT_GOAL := help
.PHONY: help setup run stop build test check fix tidy fuzz interop sim enospc bench bench-durable bench-check bench-baselines bench-compare e2e doc deny clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: ## install what the build needs (Debian packages: cmake, a C++ compiler, libclang)
	@scripts/setup.sh build

build: setup ## release binaries: target/release/felix-broker, target/release/felix
	$(CARGO) build --release --bins --examples

run: build ## start a single-node broker and watch a first publish and subscribe
	@scripts/run.sh

stop: ## stop the broker that `make run` left running
	@scripts/stop.sh

check: setup ## formatting, lints, layering and size rules, documentation; changes nothing
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) test --workspace --locked --test tidy
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

fix: setup ## format and apply what clippy can mend
	$(CARGO) fmt --all
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged

test: setup ## every test: unit, property, simulation, end to end, the independent QUIC client
	@scripts/setup.sh valgrind
	FELIX_E2E=1 $(CARGO) test --workspace --locked
	@$(MAKE) --no-print-directory interop

interop: setup ## a QUIC client that is not ours (Python, aioquic) against the real broker
	@scripts/setup.sh python
	$(CARGO) test --workspace --locked --no-run --quiet # the same build as the tests: another choice of crates would build the TLS library again
	.venv/bin/python -m pytest interop -q

sim: setup ## the simulations: make sim SEEDS=1000 (ten times as many of storage), or SEED=42 for one of the broker
	FELIX_SIM_SEEDS=$(or $(SEEDS),1000) FELIX_SIM_SEED=$(SEED) $(CARGO) test --release --workspace --test sim -- --nocapture
	FELIX_DURABLE_SEEDS=$(or $(SEEDS),1000)0 $(CARGO) test --release --workspace --test durable_shards -- --nocapture

fuzz: setup ## every decoder under the fuzzer, FUZZ_SECONDS each (default 30)
	@scripts/fuzz.sh $(or $(FUZZ_SECONDS),30)

bench: build ## reproduce the numbers: bench/RESULTS.md and bench/plots (below 15 minutes; wants the machine for itself)
	@scripts/setup.sh bench
	@scripts/bench.sh

bench-durable: build ## acks and replay beside disk, JetStream and Redis Streams, into bench/RESULTS.md (DATA=folder on the disk)
	@scripts/setup.sh durable
	@scripts/bench-durable.sh

enospc: build ## a publisher fills a small disk of a broker (root and a loop device; skips without)
	@scripts/enospc.sh

bench-check: build ## instructions, allocations and cost beside the bare relay, against bench/baselines
	@scripts/setup.sh valgrind
	$(CARGO) test --workspace --release --locked --test baselines -- --nocapture
	target/release/felix-bench check

bench-baselines: setup ## write what this build needs into bench/baselines, both profiles
	@scripts/setup.sh valgrind
	$(CARGO) build --locked --examples && $(CARGO) build --release --locked --examples
	FELIX_BENCH_WRITE=1 $(CARGO) test --workspace --locked --test baselines -- --nocapture
	FELIX_BENCH_WRITE=1 $(CARGO) test --workspace --release --locked --test baselines -- --nocapture

bench-compare: build ## this tree against another revision: make bench-compare BASE=main RUNS=8
	@scripts/bench-compare.sh $(or $(BASE),main) --runs $(or $(RUNS),8)

deny: ## licences and crate wrappers with cargo-deny (installs it; takes minutes)
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --offline check bans licenses sources

clean: ## remove build output and the demo's data
	$(CARGO) clean
	rm -rf .felix .venv
