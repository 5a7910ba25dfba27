#!/usr/bin/env bash
# What CI checks is what you check: style, format, types, which part may import which, and what CI runs.
set -euo pipefail
cd "$(dirname "$0")/.."

# pyright's wrapper keeps the checker itself here, so that an empty home costs nothing.
export PYRIGHT_PYTHON_CACHE_DIR="$PWD/.venv/pyright" PYRIGHT_PYTHON_IGNORE_WARNINGS=1
paths=(src tests examples scripts typings)

step() { echo "check: $*"; "$@"; }

step .venv/bin/ruff check --quiet "${paths[@]}"
step .venv/bin/ruff format --quiet --check "${paths[@]}"
step .venv/bin/lint-imports --no-logo
# What pyright says depends on what it reads alone: over sources and packages that it has passed it is not run again.
read_by_pyright() {
    cat pyproject.toml .venv/shoal-setup
    find src typings -name '*.py' -o -name '*.pyi' | LC_ALL=C sort | xargs cksum
}
passed=.venv/pyright-passed
reads="$(read_by_pyright | cksum)"
if [ "$(cat "$passed" 2>/dev/null)" = "$reads" ]; then
    echo "check: pyright has passed this already"
else
    step .venv/bin/pyright
    echo "$reads" >"$passed"
fi
step .venv/bin/actionlint -shellcheck= -pyflakes= .github/workflows/*.yml
step .venv/bin/hadolint Dockerfile
# No wheel brings shellcheck to Linux on ARM.
[ ! -x .venv/bin/shellcheck ] || step .venv/bin/shellcheck --external-sources scripts/*.sh .ci/run
