#!/usr/bin/env bash
# What CI checks is what you check: style, format, types, which part may import which, and what CI runs.
#
#   scripts/check.sh tests        and make ready what tests need, while pyright has the types checked on one core
set -euo pipefail
cd "$(dirname "$0")/.."

# pyright's wrapper keeps the checker itself here, so that an empty home costs nothing.
export PYRIGHT_PYTHON_CACHE_DIR="$PWD/.venv/pyright" PYRIGHT_PYTHON_IGNORE_WARNINGS=1
paths=(src tests examples scripts typings)

step() { echo "check: $*"; "$@"; }

# What pyright says depends on what it reads alone: over sources and packages that it has passed it is not run again.
read_by_pyright() {
    cat pyproject.toml .venv/shoal-setup
    find src typings -name '*.py' -o -name '*.pyi' | LC_ALL=C sort | xargs cksum
}
passed=.venv/pyright-passed
reads="$(read_by_pyright | cksum)"
pyright=
if [ "$(cat "$passed" 2>/dev/null)" = "$reads" ]; then
    echo "check: pyright has passed this already"
else
    # It takes one core, longer than all else together takes: what follows goes on beside it. In a group of its
    # own (set -m), so that what it starts ends with it where another check fails.
    echo "check: .venv/bin/pyright, beside what follows"
    said=$(mktemp)
    set -m
    .venv/bin/pyright >"$said" 2>&1 &
    pyright=$!
    set +m
    trap '[ -z "$pyright" ] || kill -- -"$pyright" 2>/dev/null || true; rm -f "$said"' EXIT
fi

step .venv/bin/ruff check --quiet "${paths[@]}"
step .venv/bin/ruff format --quiet --check "${paths[@]}"
step .venv/bin/lint-imports --no-logo
step .venv/bin/actionlint -shellcheck= -pyflakes= .github/workflows/*.yml
step .venv/bin/hadolint Dockerfile
# No wheel brings shellcheck to Linux on ARM.
[ ! -x .venv/bin/shellcheck ] || step .venv/bin/shellcheck --external-sources scripts/*.sh .ci/run

if [ "${1:-}" = tests ]; then
    step scripts/setup.sh tests
    # Every process that runs tests imports all of them. Here they are compiled, for all of those, once.
    echo "check: every test can be imported"
    collected=$(.venv/bin/pytest --collect-only -qq 2>&1) || { echo "$collected"; exit 1; }
fi

if [ -n "$pyright" ]; then
    wait "$pyright" || { pyright=; cat "$said"; exit 1; }
    pyright=
    tail -n 1 "$said"
    echo "$reads" >"$passed"
fi
