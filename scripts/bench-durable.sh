#!/usr/bin/env bash
# Acknowledged records and replay, appended to bench/results.jsonl; then tables and plots of all of it. Wants the machine for
# itself. DATA is a folder on the disk that matters. RUNS, SECONDS_EACH and GIB make it shorter or longer.
set -euo pipefail
cd "$(dirname "$0")/.."
bench=target/release/felix-bench
lines=bench/results.jsonl
data=${DATA:-target/bench-data}
nats=target/nats/bin/nats-server

echo "== acknowledged records: latency with one in flight, throughput with 64"
"$bench" durable --out "$lines" --runs "${RUNS:-5}" --seconds "${SECONDS_EACH:-3}" --value-bytes 1024 --udp-payload 16383 \
    --data "$data" --nats "$nats" --waits "${WAITS:-hybrid,busy}"
echo "== replay"
"$bench" replay --out "$lines" --runs "${RUNS:-3}" --seconds "${SECONDS_EACH:-3}" --value-bytes 1024 --udp-payload 16383 \
    --wait hybrid --data "$data" --gib "${GIB:-4}"
"$bench" results "$lines" --page bench/RESULTS.md --plots "$PWD/bench/plots"
