#!/usr/bin/env bash
# Builds another revision's broker beside this one and runs both in turn: bench-compare.sh REVISION [options].
set -euo pipefail
cd "$(dirname "$0")/.."
revision=$(git rev-parse --verify "$1^{commit}")
shift
tree=$PWD/target/compare/$revision
broker=$tree/target/release/felix-broker
if [ ! -x "$broker" ]; then
    [ -d "$tree" ] || git worktree add --detach "$tree" "$revision" >/dev/null
    (cd "$tree" && "${CARGO:-cargo}" build --release --locked -p felix-broker)
fi
target/release/felix-bench compare "$broker" "$@"
