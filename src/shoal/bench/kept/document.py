"""The results of a benchmark in a file: what ``--save`` wrote, or ``--json`` printed, read again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from shoal.bench.results import FILE_VERSION
from shoal.errors import UsageError

MOST_BYTES = 16 << 20
"""Of a file; one of all the benchmarks' results has some ten thousand."""


MOST_ROUNDS = 100
"""Of a result, as many as ``--rounds`` permits."""


class KeptResult(msgspec.Struct, frozen=True):
    """One line of a report."""

    name: str
    unit: str
    rounds: tuple[float, ...]
    """What each round gave."""
    against: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    """Other results of the same run that this one is divided by, by label."""


class BenchDocument(msgspec.Struct, frozen=True):
    """One run of a benchmark, as a file holds it."""

    shoal_bench: int
    """The version of the file."""
    bench: str
    made: str
    """When, in UTC."""
    machine: dict[str, Any]
    model: dict[str, str]
    versions: dict[str, str]
    results: tuple[KeptResult, ...]
    conditions: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    """What else the figures depend on; empty in a file that is older than they."""


def read_document(file: Path) -> BenchDocument:
    """The run in ``file``.

    Raises:
        UsageError: it cannot be read, or holds no results of a benchmark.
    """
    try:
        with file.open("rb") as opened:
            written = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", check="look at its path") from error
    if len(written) > MOST_BYTES:
        raise _refused(file, f"it has more than {MOST_BYTES >> 20} MiB")
    try:
        version = msgspec.json.decode(written, type=_Version).shoal_bench
        if version > FILE_VERSION:
            raise UsageError(
                f"{file} was written by a newer Shoal: it has version {version}, not {FILE_VERSION}",
                check="install the newer Shoal",
            )
        found = msgspec.json.decode(written, type=BenchDocument)
    except msgspec.DecodeError as error:
        raise _refused(file, str(error)) from error
    names = [result.name for result in found.results]
    if len(set(names)) < len(names):
        raise _refused(file, "a result is in it twice")
    if any(len(result.rounds) > MOST_ROUNDS for result in found.results):
        raise _refused(file, f"a result has more than {MOST_ROUNDS} rounds")
    if not all(0 < value < math.inf for result in found.results for value in result.rounds):
        raise _refused(file, "a result is no positive number")
    return found


class _Version(msgspec.Struct):
    shoal_bench: int


def _refused(file: Path, why: str) -> UsageError:
    return UsageError(
        f"{file} does not hold the results of a benchmark: {why}",
        check="give two files that --save wrote",
        next_command="shoal bench executor --save FILE",
    )
