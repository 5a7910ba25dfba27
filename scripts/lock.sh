#!/usr/bin/env bash
# Make the locks in locks/ anew: the newest versions that pyproject.toml permits, with their hashes.
#
#   make lock             everything in its newest permitted version
#   make lock KEEP=yes    what is locked stays where it still fits: after a change of pyproject.toml alone
#
# Each lock leaves out what the ones before it name, and none names an index: a mirror serves as well.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

uv=${UV:-.venv/bin/uv}
[ -x "$uv" ] || stop "uv is not there: make setup brings it, before all that is locked"
upgrade=(--upgrade)
[ -z "${KEEP:-}" ] || upgrade=()

compile() { # LOCK ARGUMENT...: what is compiled comes by file or by standard input
    local lock=$1
    shift
    say "locks/$lock.txt"
    UV_CUSTOM_COMPILE_COMMAND="make lock" "$uv" pip compile --quiet --universal --python-version 3.11 \
        --generate-hashes --no-emit-index-url --no-annotate "${upgrade[@]}" "$@" -o "locks/$lock.txt" >/dev/null
}
beside() { # LOCK...: the same versions as these locks, and none of their packages said twice
    local lock
    for lock in "$@"; do
        echo --constraints "locks/$lock.txt"
        sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p' "locks/$lock.txt" | sort -u
    done
}
project() { # EXPRESSION: a list of pyproject.toml, one item a line
    .venv/bin/python -c "import tomllib; t = tomllib.load(open('pyproject.toml', 'rb')); print(*$1, sep='\n')"
}

echo uv | compile uv -
project '[t["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["libp2p"]]' | compile libp2p - --no-deps
compile runtime pyproject.toml --no-emit-package torch
# shellcheck disable=SC2046  # one argument a word
{
    project 't["build-system"]["requires"]' | compile build - --constraints locks/runtime.txt
    compile graph pyproject.toml --extra graph --no-emit-package torch $(beside runtime build)
    compile attest pyproject.toml --extra attest --no-emit-package torch $(beside runtime build graph)
    compile ledger pyproject.toml --extra ledger --no-emit-package torch $(beside runtime build graph attest)
    compile postgres pyproject.toml --extra postgres --no-emit-package torch \
        $(beside runtime build graph attest ledger)
    compile otel pyproject.toml --extra otel --no-emit-package torch \
        $(beside runtime build graph attest ledger postgres)
    compile encrypted pyproject.toml --extra encrypted --no-emit-package torch \
        $(beside runtime build graph attest ledger postgres otel)
    compile iroh pyproject.toml --extra iroh --no-emit-package torch \
        $(beside runtime build graph attest ledger postgres otel encrypted)
    compile development pyproject.toml --extra dev --no-emit-package torch \
        $(beside runtime build graph attest ledger postgres otel encrypted iroh)
    compile fuzz pyproject.toml --extra fuzz --no-emit-package torch \
        $(beside runtime build graph attest ledger postgres otel encrypted iroh development)
    # Without pyproject.toml's word on what torch needs, so with CUDA where PyPI's build has it.
    project '[d for d in t["project"]["dependencies"] if d.startswith("torch")]' |
        compile torch - --no-config $(beside runtime)
}
torch=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' locks/torch.txt)
if echo "torch==$torch+cpu" | compile torch-cpu.new - --no-config --no-deps --default-index "$TORCH_CPU_INDEX"; then
    mv locks/torch-cpu.new.txt locks/torch-cpu.txt
elif grep -q "^torch==$torch+cpu" locks/torch-cpu.txt; then
    say "PyTorch's index of CPU builds cannot be reached: locks/torch-cpu.txt stays as it is"
else
    stop "PyTorch's index of CPU builds cannot be reached, and locks/torch-cpu.txt is not of torch $torch"
fi
for requirements in tests/clients/*.in tests/graph/*.in tests/ledger/*.in; do
    say "${requirements%.in}.txt"
    deps=()
    [ "${requirements#tests/graph/}" = "$requirements" ] || deps=(--no-deps) # of those wheels only a file is used
    UV_CUSTOM_COMPILE_COMMAND="make lock" "$uv" pip compile --quiet --no-config --universal --python-version 3.11 \
        --generate-hashes --no-emit-index-url --no-annotate "${upgrade[@]}" "${deps[@]}" "$requirements" \
        -o "${requirements%.in}.txt" >/dev/null
done
