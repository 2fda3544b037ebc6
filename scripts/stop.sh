#!/usr/bin/env bash
# Stops the broker that run.sh started, by the process id that it wrote down.
set -euo pipefail
cd "$(dirname "$0")/.."
pid_file=.felix/broker.pid
[ -f "$pid_file" ] || { echo "no broker was started by make run"; exit 0; }
pid=$(cat "$pid_file")
if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = felix-broker ]; then
    kill -TERM "$pid"
    for _ in $(seq 100); do [ -d "/proc/$pid" ] || break; sleep 0.1; done
    echo "stopped broker $pid"
fi
rm -f "$pid_file"
