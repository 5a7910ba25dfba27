#!/usr/bin/env bash
# Build this system's wheel into dist/, as it is released: cibuildwheel makes it in a container of an old Linux,
# has auditwheel name the oldest glibc it runs on, installs it with pip and has it answer. [tool.cibuildwheel] in
# pyproject.toml says how. On Linux it needs Docker or Podman.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

# The wheel is tried with torch's CPU build.
export CIBW_TEST_ENVIRONMENT_LINUX="PIP_EXTRA_INDEX_URL=$TORCH_CPU_INDEX"
.venv/bin/cibuildwheel --output-dir dist
