#!/usr/bin/env bash
# Make .venv with everything Shoal needs. Safe to run again: then it only looks whether anything changed.
#
#   make setup                    the first Python 3.11 to 3.14 found
#   make setup PYTHON=/path/to/python3
#
#   scripts/setup.sh tests        and what only the tests need: a browser; PostgreSQL; an emulator of ARM and its
#                                 compiler; and as root, for the lab of networks that only root can make,
#                                 nftables, conntrack and iproute2
#
# node and npm, for the page, pyright and the js-libp2p peer of the tests, come as a wheel into .venv.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=scripts/common.sh
. scripts/common.sh

# Install Debian packages where this user may; otherwise say what to type.
apt_updated=
debian() {
    local as=()
    has apt-get || stop "please install with your system's package manager what Debian calls: $*"
    if [ "$(id -u)" != 0 ]; then
        { has sudo && sudo -n true 2>/dev/null; } || stop "please run: sudo apt-get install -y $*"
        as=(sudo)
    fi
    say "installing Debian packages: $*"
    if [ -z "$apt_updated" ]; then
        "${as[@]}" apt-get update -q || say "apt-get update failed; trying with the package lists at hand"
        apt_updated=yes
    fi
    "${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" ||
        stop "apt-get could not install: $*"
}

python_fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; }

find_python() {
    # By path too: a version manager's shim may shadow the system's python and not work in every home.
    local candidate others="python3.11 python3.12 python3.13 python3.14 /usr/bin/python3 /usr/local/bin/python3"
    for candidate in ${PYTHON:-python3 $others}; do
        if has "$candidate" && python_fits "$candidate"; then command -v "$candidate"; return; fi
    done
    return 1
}

make_venv() {
    local python
    if ! python=$(find_python); then
        [ -z "${PYTHON:-}" ] || stop "$PYTHON is not Python 3.11 to 3.14"
        debian python3 python3-venv
        python=$(find_python) || stop "no Python 3.11 to 3.14 found; install one, or name it: make setup PYTHON=/path"
    fi
    # Debian splits venv off; its python then imports venv but cannot bring pip along.
    "$python" -c 'import ensurepip, venv' 2>/dev/null || debian python3-venv
    say "making .venv with $("$python" --version) ($python)"
    "$python" -m venv --clear .venv
}

install() {
    say "installing Shoal and what it needs into .venv (a minute the first time)"
    scripts/sync.sh .venv runtime torch build graph attest ledger postgres otel encrypted iroh development
    # Shoal itself, compiled by what is locked too.
    .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation \
        --reinstall-package shoal --editable . || stop "Shoal could not be built: the lines above say why"
    # pyright must see trio's and outcome's own types, not the outdated stubs that libp2p brings along, and need
    # not read every model of transformers.
    mkdir -p .venv/typed
    .venv/bin/python -c 'import pathlib, outcome, trio
for package in (outcome, trio):
    source = pathlib.Path(package.__file__).parent
    link = pathlib.Path(".venv/typed", source.name)
    link.unlink(missing_ok=True)
    link.symlink_to(source)'
    ln -sfn ../../typings/transformers .venv/typed/transformers
    # uv hides what a build says. Where the page was left out, this tries again and says why.
    [ -e src/shoal/gateway/page/built/index.html ] || .venv/bin/python hatch_build.py page || true
}

stamp=.venv/shoal-setup
built_from() {
    cat pyproject.toml hatch_build.py locks/*.txt scripts/*.sh src/shoal/executor/native/*.[ch] page/*.*
    find page/src page/public -type f | LC_ALL=C sort | xargs cat
}
wanted="$(built_from | cksum) $(pwd -P)"

if ! { [ -x .venv/bin/python ] && python_fits .venv/bin/python; }; then make_venv; fi
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || ! [ -d src/shoal/net/vendored ]; then
    has cc || has gcc || debian gcc libc6-dev # for the kernels
    install
    echo "$wanted" >"$stamp"
    say "ready"
else
    say "nothing to do"
fi
.venv/bin/python -m compileall -q src/shoal # quick where nothing changed
if [ "${1:-}" = tests ]; then
    has chromium || has google-chrome || debian chromium
    has initdb || [ -n "$(find /usr/lib/postgresql -name initdb 2>/dev/null)" ] || debian postgresql
    if [ "$(uname)" = Linux ] && [ "$(id -u)" = 0 ]; then
        { has nft && has conntrack && has ip; } || debian nftables conntrack iproute2
    fi
    if [ "$(uname -sm)" = "Linux x86_64" ]; then
        { has qemu-aarch64 && has aarch64-linux-gnu-gcc; } ||
            debian qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross
    fi
fi
