"""Fuzz for long, guided by coverage: ``python -m tests.fuzz.run [TARGET...] [--minutes N]``.

The time is shared over the targets. Each begins with what is in ``corpus/TARGET`` and with honest input, and
goes on with what earlier runs here have found worth keeping (``build/fuzz``). What makes a target raise, hang
or grow is written to ``build/fuzz/found``; mend it, and put its file into ``corpus/TARGET``, which the tests
replay. Readers in C, as msgspec's, show no coverage, which is why honest input is there.

Needs atheris, which is in a lock of its own, since few need it and it is large::

    .venv/bin/pip install --require-hashes -r locks/fuzz.txt
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

from tests.fuzz.honest import SEEDS
from tests.fuzz.targets import SLOW, TARGETS

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
WORK = ROOT / "build/fuzz"
MEMORY_MB = 1024
"""Of the process, not of those that it starts."""
LONGEST_INPUT = 1 << 16
WITHIN_S = 5
SLOW_WITHIN_S = 90
"""For one input."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument(
        "--minutes", type=float, default=60, help="minutes for all targets together; 60 by default"
    )
    asked = parser.parse_args()
    if unknown := set(asked.targets) - TARGETS.keys():
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if importlib.util.find_spec("atheris") is None:
        sys.exit("atheris is not there: .venv/bin/pip install --require-hashes -r locks/fuzz.txt")
    targets = asked.targets or list(TARGETS)
    seconds = max(1, round(asked.minutes * 60 / len(targets)))
    failed = [target for target in targets if not _fuzz(target, seconds)]
    for target in failed:
        print(f"{target}: see {WORK}/found; again with python -m tests.fuzz.one {target} FILE")
    return 1 if failed else 0


def _fuzz(target: str, seconds: int) -> bool:
    """Whether nothing was found in the target."""
    work, found, seeds = WORK / target, WORK / "found", CORPUS / target
    for folder in (work, found, seeds):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[target]):
        (work / f"honest-{number}").write_bytes(seed)
    print(f"{target}: {seconds} s", flush=True)
    within_s = SLOW_WITHIN_S if target in SLOW else WITHIN_S
    options = (
        f"-max_total_time={seconds}",
        f"-timeout={within_s}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-max_len={LONGEST_INPUT}",
        f"-artifact_prefix={found}/{target}-",
        "-verbosity=0",
        "-print_final_stats=1",
    )
    command = [sys.executable, "-m", "tests.fuzz.one", target, str(work), str(seeds), *options]
    done = subprocess.run(command, cwd=ROOT, check=False)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
