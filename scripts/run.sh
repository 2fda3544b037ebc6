#!/usr/bin/env bash
# `make run`: starts a single-node broker, publishes 100,000 market data records, and lets three subscribers read them.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=target/release
data=$PWD/.felix
records=${RECORDS:-100000}
listen=${LISTEN:-127.0.0.1:4433}
http=${HTTP:-127.0.0.1:8080}
stream=acme/md/quotes

scripts/stop.sh >/dev/null
mkdir -p "$data"
if [ ! -s "$data/quotes.jsonl" ] || [ "$(wc -l <"$data/quotes.jsonl")" != "$records" ]; then
    "$bin/examples/market_data" "$records" >"$data/quotes.jsonl"
fi

"$bin/felix-broker" dev --data "$data" --listen "$listen" --http "$http" >"$data/broker.out" 2>"$data/broker.log" &
echo $! >"$data/broker.pid"
ready() { exec 3<>"/dev/tcp/${http%:*}/${http##*:}" && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && grep -q ' 200 ' <&3; }
for try in $(seq 100); do
    if (ready) 2>/dev/null; then break; fi
    if ! kill -0 "$(cat "$data/broker.pid")" 2>/dev/null || [ "$try" = 100 ]; then
        echo "the broker did not start:" >&2
        tail -n 5 "$data/broker.log" >&2
        exit 1
    fi
    sleep 0.1
done
export FELIX_CONTEXT=$data/context.toml
felix() { "$bin/felix" "$@"; }

echo "broker $(cat "$data/broker.pid") serves $listen, metrics at http://$http/metrics"
# Metadata outlive the broker: a second run finds the stream, which begins empty as an ephemeral one does.
felix stream describe "$stream" >/dev/null 2>&1 || felix stream create "$stream" --shards 2 --ephemeral
xnas=$(grep -c '"symbol":"XNAS\.' "$data/quotes.jsonl")
echo
echo "publishing $records records while two subscribers listen: all of them, and XNAS.* only"
felix sub "$stream" --from latest --count "$records" --timeout 60s --quiet --latency >"$data/all.out" 2>&1 &
all=$!
felix sub "$stream" --from latest --filter 'XNAS.*' --count "$xnas" --timeout 60s --quiet --latency >"$data/xnas.out" 2>&1 &
filtered=$!
sleep 0.5
felix pub "$stream" --key-field symbol --rate "${RATE:-50000/s}" --file "$data/quotes.jsonl"
wait "$all" && wait "$filtered" || { cat "$data/all.out" "$data/xnas.out"; exit 1; }
echo
echo "all:         $(tr '\n' ' ' <"$data/all.out")"
echo "XNAS.*:      $(tr '\n' ' ' <"$data/xnas.out")"
echo "late joiner: $(felix sub "$stream" --from earliest --count "$records" --timeout 60s --quiet 2>&1 | tr '\n' ' ')"
echo
felix sub "$stream" --from earliest --filter 'XNAS.*' --count 3 --json
cat <<TXT

The broker is still running. Try:
  export FELIX_CONTEXT=$data/context.toml
  $bin/felix stream describe $stream
  $bin/felix sub $stream --from earliest --filter 'XLON.*' --count 10 --json
  $bin/felix top
  make stop
TXT
