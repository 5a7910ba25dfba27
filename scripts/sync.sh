#!/usr/bin/env bash
# Make a virtual environment what locks say: install what they name, by its hash, and remove all else.
#
#   scripts/sync.sh FOLDER LOCK...    for example: scripts/sync.sh .venv runtime torch build graph development
#
# FOLDER is a virtual environment that has pip; uv, which does the work, comes into it by a lock of its own,
# unless UV names another. A LOCK is the name of one in locks/ or a path; `torch` is torch's CPU build on Linux
# without an NVIDIA card, else PyPI's.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

folder=$1
shift
python=$folder/bin/python
uv=${UV:-}
files=()

if [ -z "$uv" ]; then
    "$python" -m pip install --disable-pip-version-check --quiet --require-hashes --no-deps -r locks/uv.txt ||
        stop "pip could not install uv: its last lines say why. Check the network, then run again; nothing is lost"
    uv=$folder/bin/uv
    files+=(locks/uv.txt)
fi

# uv does not read what pip was told by its files or its environment, such as the address of a mirror.
pip_settings=$("$python" -m pip config list 2>/dev/null || true)
told() { sed -n "s/^\(:env:\|global\)\.$1='\(.*\)'\$/\2/p" <<<"$pip_settings" | head -n 1; }
index=$(told index-url)
[ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
certificate=$(told cert)
[ -z "$certificate" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$certificate}"

# The CPU build is in a folder that pip was told of, or in PyTorch's own index.
install_cpu_torch() {
    local install=("$uv" pip install --python "$python" --require-hashes --no-deps -r locks/torch-cpu.txt)
    local links=() link
    for link in $(told find-links); do links+=(--find-links "$link"); done
    if [ ${#links[@]} != 0 ] && "${install[@]}" --quiet --no-index "${links[@]}" 2>/dev/null; then return; fi
    "${install[@]}" --quiet --default-index "$TORCH_CPU_INDEX"
}

# Every process of a node, and of the tests, would otherwise compile what it imports where none may write it down.
export UV_COMPILE_BYTECODE=${UV_COMPILE_BYTECODE:-1}

for lock in "$@"; do
    [ "${lock%.txt}" != "$lock" ] || lock=locks/$lock.txt
    if [ "$lock" = locks/torch.txt ] && [ "$(uname -s)" = Linux ] && ! has nvidia-smi; then
        say "torch, its CPU build"
        if install_cpu_torch; then
            lock=locks/torch-cpu.txt
        else
            say "the CPU build cannot be had here: PyPI's it is, with gigabytes of CUDA that are of no use here"
        fi
    fi
    files+=("$lock")
done
# What has no wheel is built with the setuptools that is locked.
say "what is in ${files[*]}"
"$uv" pip sync --quiet --python "$python" --require-hashes --build-constraints locks/runtime.txt "${files[@]}" ||
    stop "uv could not install it: its last lines say why. Check the network, then run again; nothing is lost"
