#!/usr/bin/env bash
# What CI checks is what you check: style, format, types, and which part may import which.
set -euo pipefail
cd "$(dirname "$0")/.."

# pyright's wrapper keeps the checker itself here, so that an empty home costs nothing.
export PYRIGHT_PYTHON_CACHE_DIR="$PWD/.venv/pyright" PYRIGHT_PYTHON_IGNORE_WARNINGS=1
paths=(src tests examples scripts)

step() { echo "check: $*"; "$@"; }

step .venv/bin/ruff check --quiet "${paths[@]}"
step .venv/bin/ruff format --quiet --check "${paths[@]}"
step .venv/bin/lint-imports --no-logo
step .venv/bin/pyright
