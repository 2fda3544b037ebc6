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

case "${1:-build}" in
    build) build ;;
    python) python ;;
    *) echo "usage: setup.sh build|python" >&2; exit 2 ;;
esac
