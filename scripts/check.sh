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
step .venv/bin/pyright
step .venv/bin/actionlint -shellcheck= -pyflakes= .github/workflows/*.yml
step .venv/bin/hadolint Dockerfile
# No wheel brings shellcheck to Linux on ARM.
[ ! -x .venv/bin/shellcheck ] || step .venv/bin/shellcheck --external-sources scripts/*.sh .ci/run
