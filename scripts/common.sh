# What the scripts of this folder share; to be sourced.
# shellcheck shell=bash

# shellcheck disable=SC2034  # for those who source this
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu # PyPI's torch for Linux brings gigabytes of CUDA along

say() { echo "$(basename "$0" .sh): $*"; }
stop() { say "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }
