"""Fuzz one target for long, guided by coverage: ``python -m tests.fuzz.run TARGET [libFuzzer's options]``.

Needs atheris: ``pip install -e .[fuzz]``. For example, ten minutes with what was found before::

    python -m tests.fuzz.run frames corpus/ -max_total_time=600 -rss_limit_mb=1024

The msgpack reader is C and shows no coverage, so the corpus begins with honest messages to make others of.
What makes a target raise is written to ``crash-…``; give that file instead of a folder to see it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["shoal", "tests.fuzz"]):
    from tests.fuzz.targets import SEEDS, TARGETS


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"which target: {', '.join(TARGETS)}")
    name = sys.argv.pop(1)
    target = TARGETS[name]
    for folder in (Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")):
        if not folder.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            for number, seed in enumerate(SEEDS.get(name, ())):
                (folder / f"honest-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
