#!/usr/bin/env bash
# Does Shoal work with the newest and with the oldest versions that pyproject.toml permits?
#
#   make canary                       both
#   scripts/canary.sh newest|oldest   one of them
#
# Each gets an environment of its own that is thrown away: Shoal's wheel, and around it what uv resolves. There
# the contract with transformers is tested first, then that all families are exact, then a demo answers. torch
# is the locked one in both: its CPU builds are on another index, and its range is one minor version.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export UV="$PWD/.venv/bin/uv" UV_COMPILE_BYTECODE=0 # it is thrown away

prepare() { # NAME RESOLUTION
    local folder=$scratch/$1
    "$UV" pip compile --quiet pyproject.toml --extra dev --extra graph --no-emit-package torch --resolution "$2" --upgrade \
        --python .venv/bin/python --generate-hashes --no-emit-index-url --no-header --no-annotate \
        -o "$folder.txt" >/dev/null &&
        .venv/bin/python -m venv "$folder" &&
        scripts/sync.sh "$folder" "$folder.txt" torch &&
        "$UV" pip install --quiet --python "$folder/bin/python" --no-deps "$scratch"/*.whl
}

try() { # NAME: stops at the first thing that fails
    local bin=$scratch/$1/bin
    "$bin/pytest" -q -x tests/models/seam &&
        "$bin/pytest" -q -x -n 2 tests/models/test_span_exact.py &&
        "$bin/pytest" -q -x -n 2 -m "models and not swarm" --ignore tests/models/test_span_exact.py \
            tests/models tests/executor &&
        SHOAL_HOME="$scratch/home-$1" "$bin/shoal" demo --once
}

tested() { # NAME: what pyproject.toml asks for, in the versions that are installed
    "$scratch/$1/bin/python" -c 'import re, tomllib
from importlib.metadata import version
names = [re.split("[<>=]", line)[0] for line in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]]
print(", ".join(f"{name} {version(name)}" for name in names))'
}

"$UV" build --quiet --wheel --no-build-isolation --python .venv/bin/python --out-dir "$scratch" .
failed=()
[ $# != 0 ] || set -- newest oldest
for name in "$@"; do
    case $name in
        newest) resolution=highest ;;
        oldest) resolution=lowest-direct ;;
        *) stop "newest or oldest, not $name" ;;
    esac
    say "$name"
    if ! prepare "$name" "$resolution"; then
        failed+=("$name: what it permits cannot be installed")
    elif ! try "$name"; then
        failed+=("$name: does not work with $(tested "$name")")
    else
        say "$name works: $(tested "$name")"
    fi
done
for failure in "${failed[@]}"; do say "$failure" >&2; done
[ ${#failed[@]} = 0 ]
