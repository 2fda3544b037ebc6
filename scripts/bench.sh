#!/usr/bin/env bash
# Runs what README.md and bench/RESULTS.md tell, into bench/results.jsonl, and makes tables and plots of it. Below fifteen
# minutes. RUNS and SECONDS_EACH make it shorter or longer.
set -euo pipefail
cd "$(dirname "$0")/.."
bench=target/release/felix-bench
lines=bench/results.jsonl
runs=${RUNS:-3}
each=${SECONDS_EACH:-1}
peers=felix,nats-tls,nats,redis-tls,mosquitto-tls
rm -f "$lines"
felix-bench() { "$bench" "$1" --out "$lines" "${@:2}"; }
part() { echo "== $1 (after $((SECONDS / 60)) min $((SECONDS % 60)) s)"; }
short=(--runs "$runs" --seconds "$each")

part "floors"
felix-bench floors "${short[@]}" --wait busy
part "latency beside the bare relay, busy"
felix-bench latency "${short[@]}" --wait busy
part "Felix, NATS, Redis, Mosquitto: 1, 10, 100 subscribers at 1,000 and 5,000 records/s"
felix-bench peers "${short[@]}" --wait hybrid --udp-payload 16383
part "as fast as it goes without loss, large packets and packets of an Ethernet"
for payload in 16383 1350; do
    felix-bench peers "${short[@]}" --wait hybrid --udp-payload "$payload" --subscribers 100 --sizes 256,1024 \
        --rate max --batch 64 --systems felix,nats-tls,nats
done
part "CPU of the server per delivery, lockstep"
felix-bench fanout "${short[@]}" --wait busy --batch 1,8
felix-bench peers "${short[@]}" --wait park --udp-payload 16383 --subscribers 100 --rate lockstep --batch 1,8 --systems felix,nats-tls,redis-tls
part "one core and two, on one CPU: two CPUs would be shared with the clients"
for cores in 1 2; do
    felix-bench fanout "${short[@]}" --wait park --cores "$cores" --one-cpu --systems felix --subscribers 100 \
        --rate lockstep --batch 8,64
done
part "one slow subscriber among a hundred"
felix-bench slow --runs "$runs" --seconds 4 --wait hybrid --udp-payload 16383 --systems felix,nats-tls
part "the knee"
felix-bench sweep --runs 1 --seconds "$each" --wait hybrid --udp-payload 16383 --systems felix,nats-tls --factor 2
part "10,000 connections, reconnect storm"
felix-bench connections --wait hybrid
part "soak, idle"
felix-bench soak --wait busy --udp-payload 1452
felix-bench idle --wait hybrid --seconds 5
"$bench" results "$lines" --page bench/RESULTS.md --plots "$PWD/bench/plots"
