#!/usr/bin/env bash
# A broker on a small file system that a publisher fills: what is acknowledged stays, the broker lives, readers read on, and
# with room again it takes records again. Needs root and a loop device; without them it says so and passes.
#
#   scripts/enospc.sh [--debug]     binaries of target/release, or of target/debug
#   MIB=1024 BALLAST_MIB=256        size of the file system, and of what is removed from it in the middle
set -euo pipefail
cd "$(dirname "$0")/.."
bin=target/release
[ "${1:-}" != --debug ] || bin=target/debug
mib=${MIB:-1024}
ballast=${BALLAST_MIB:-256}
stream=enospc/enospc/full

skip() { echo "enospc: skipped: $*"; exit 0; }
fail() { [ -z "${KEEP:-}" ] || { df -B1 "$work/disk"; ls -lR "$data" | grep -v "^total"; }; echo "enospc: FAILED: $*" >&2; [ ! -e "$work/log" ] || tail -n 5 "$work/log" >&2; exit 1; }

[ "$(id -u)" = 0 ] || skip "needs root to mount a file system"
command -v mkfs.ext4 >/dev/null || skip "mkfs.ext4 is not there"
[ -x "$bin/felix-broker" ] && [ -x "$bin/felix" ] || skip "$bin has no felix-broker and felix; build first"

work=$(mktemp -d)
broker=
mounted=
cleanup() {
    [ -z "$broker" ] || { kill -9 "$broker" 2>/dev/null; wait "$broker" 2>/dev/null; } || true
    [ -z "$mounted" ] || umount "$work/disk" || umount -l "$work/disk" || true
    rm -rf "$work"
}
trap cleanup EXIT

mkdir "$work/disk"
truncate -s "${mib}M" "$work/image"
mkfs.ext4 -q -m 0 "$work/image"
mount -o loop "$work/image" "$work/disk" 2>"$work/mount" || skip "no loop device: $(cat "$work/mount")"
mounted=1
data=$work/disk/data
fallocate -l "${ballast}M" "$work/disk/ballast"

# Ports that are free now: the system chooses, the log tells.
start() {
    : >"$work/log"
    "$bin/felix-broker" dev --data "$data" --cores 1 --wait park --listen 127.0.0.1:0 --http 127.0.0.1:0 \
        >/dev/null 2>"$work/log" &
    broker=$!
    for _ in $(seq 200); do
        kill -0 "$broker" 2>/dev/null || fail "the broker ended at its start"
        http=$(sed -n 's/.*"message":"ready".*"http":"\([^"]*\)".*/\1/p' "$work/log")
        [ -z "$http" ] || { ready && return; }
        sleep 0.1
    done
    fail "the broker is not ready"
}
ready() { exec 3<>"/dev/tcp/${http%:*}/${http##*:}" && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && head -n 1 <&3 | grep -q ' 200 '; }
stop() { kill -TERM "$broker"; wait "$broker" || fail "the broker did not stop in order"; broker=; }
alive() { kill -0 "$broker" 2>/dev/null || fail "the broker is gone: $*"; }
felix() { "$bin/felix" --context "$data/context.toml" "$@"; }
# Records `from` to `to`, 1 KiB each, with their number in front.
records() { awk -v from="$1" -v to="$2" 'BEGIN { p = sprintf("%1010s", ""); gsub(/ /, "x", p); for (i = from; i < to; i++) printf "%012d:%s\n", i, p }'; }
count() { felix sub "$stream" --from earliest --idle-exit 5s 2>/dev/null | cut -d: -f1; }

start
felix stream create "$stream" --durability group --retention-bytes 64GiB >/dev/null 2>"$work/refused" ||
    skip "this broker takes no durable stream: $(cat "$work/refused")"

echo "== filling $mib MiB"
felix --json pub "$stream" < <(records 0 $((mib * 2048))) >"$work/pub" 2>"$work/pub.err" &&
    fail "more was acknowledged than fits"
alive "a full disk ended it"
echo "the publisher was told: $(tail -n 1 "$work/pub.err")"
grep -qiE 'space|full|storage|disk|retry' "$work/pub.err" || fail "nothing says that the disk is full"

echo "== reading while it is full"
count >"$work/read" || fail "reading failed"
first=$(wc -l <"$work/read")
[ "$first" -gt 0 ] || fail "nothing can be read"
sort -n -c "$work/read" || fail "records out of order"
[ "$(sort -u "$work/read" | wc -l)" = "$first" ] || fail "records twice"
echo "$first records are there"

echo "== killed and started again with a disk that others filled to the last block"
ls -l "$data/reserve" >/dev/null || fail "there is no reserve"
head -c 100G /dev/zero >"$work/disk/filler" 2>/dev/null || true
[ "$(stat -f -c %a "$work/disk")" = 0 ] || fail "the disk is not full"
kill -9 "$broker"; wait "$broker" 2>/dev/null || true
start
grep -q 'the reserve is used' "$work/log" || fail "the reserve was not used"
count >"$work/restarted" || fail "reading failed"
head -n "$first" "$work/restarted" | cmp -s - "$work/read" || fail "records that were there are gone"
# The logs of the run before are gone: others take that room too.
head -c 100G /dev/zero >>"$work/disk/filler" 2>/dev/null || true
sleep 3
felix --timeout 3s pub "$stream" < <(records 800000000 800000001) >/dev/null 2>"$work/pub.err" &&
    fail "it takes records though the disk is full"
alive "a full disk ended it"

echo "== with room again"
rm "$work/disk/filler"
rm "$work/disk/ballast"
sleep 3
more=1000
felix --timeout 60s pub "$stream" < <(records 900000000 $((900000000 + more))) >/dev/null 2>"$work/pub.err" ||
    fail "it does not take records again: $(tail -n 1 "$work/pub.err")"
stop

echo "== check, start again, read all"
code=0
"$bin/felix-broker" check "$data" >"$work/check" || code=$?
[ "$code" -le 1 ] || { cat "$work/check"; fail "check says $code"; }
start
count >"$work/again" || fail "reading failed"
[ -e "$data/reserve" ] || fail "the reserve was not made again"
# What was not acknowledged may be there or not; what was read before, and what was acknowledged after, must be.
head -n "$first" "$work/again" | cmp -s - "$work/read" || fail "records that were there are gone"
[ "$(awk '$1 >= 900000000' "$work/again" | sort -u | wc -l)" = "$more" ] || fail "acknowledged records are gone"
stop
echo "enospc: passed: $first records when full, $more after"
