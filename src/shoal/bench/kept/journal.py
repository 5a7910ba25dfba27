"""What a long benchmark has measured so far, in a file: a run that was stopped goes on where it was.

A run has units, and a unit has rounds in which all that is compared takes turns. The file is written after
every round. Units that are done keep their results; of the one that was under way the whole rounds are kept,
so every ratio is still one of figures that were measured together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

import shoal
from shoal.bench.results import Measurement, Rounds

LONGEST = timedelta(hours=24)
"""From the first round to going on; after that a machine has become another."""
VERSION = 1


@dataclass(slots=True)
class KeptUnit:
    """One unit of a run."""

    rounds: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """What each whole round gave, by contender."""
    results: list[Measurement] | None = None
    """Once it is done."""
    notes: list[str] = field(default_factory=list[str])


def code_digest() -> str:
    """A digest of Shoal's own code: figures of two states of it are not of one run."""
    root = Path(shoal.__file__).parent
    found = hashlib.sha256()
    for file in sorted(file for kind in ("*.py", "*.c", "*.h", "*.so") for file in root.rglob(kind)):
        found.update(f"{file.relative_to(root)}\0{file.stat().st_size}\0".encode())
        found.update(file.read_bytes())
    return found.hexdigest()


class _File(msgspec.Struct):
    version: int
    run: dict[str, Any]
    begun: datetime
    units: dict[str, KeptUnit]


class Journal:
    """The journal of one run. Made by :func:`open_journal`."""

    def __init__(self, file: Path, kept: _File, said: str) -> None:
        self._file = file
        self._kept = kept
        self.said = said
        """A sentence on what is gone on with, or why not; empty for a new run."""

    def unit(self, name: str) -> KeptUnit:
        """A unit of the run, with what is kept of it."""
        return self._kept.units.setdefault(name, KeptUnit())

    def rounds(self, name: str) -> Rounds:
        """The whole rounds of a unit that are kept, and how the next is kept."""
        unit = self.unit(name)

        def keep(values: Mapping[str, float]) -> None:
            unit.rounds.append(dict(values))
            self._write()

        return Rounds(tuple(unit.rounds), keep)

    def done(self, name: str, results: list[Measurement], notes: list[str]) -> None:
        """Keep the results of a unit that is measured."""
        unit = self.unit(name)
        unit.results, unit.notes = results, notes
        self._write()

    def end(self) -> None:
        """The run is over: the next is a new one."""
        self._file.unlink(missing_ok=True)

    def _write(self) -> None:
        partly = self._file.with_suffix(".partial")
        partly.write_bytes(msgspec.json.encode(self._kept))
        partly.replace(self._file)


def open_journal(folder: Path, run: Mapping[str, Any], *, anew: bool, now: datetime) -> Journal:
    """The journal of ``run`` in ``folder``, with what an earlier start has kept of the same run.

    Args:
        run: all that its figures depend on; of anything else there is another journal.
        anew: throw away what is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(msgspec.json.encode(run, order="deterministic")).hexdigest()[:16]
    file = folder / f"{name}.json"
    fresh = _File(VERSION, dict(run), now, {})
    if anew or not file.exists():
        return Journal(file, fresh, "")
    try:
        kept = msgspec.json.decode(file.read_bytes(), type=_File)
    except msgspec.DecodeError as error:
        return Journal(file, fresh, f"what was kept of this run is damaged ({error}): it begins anew")
    if kept.version != VERSION or kept.run != fresh.run:
        return Journal(file, fresh, "what was kept is of another version: the run begins anew")
    if now - kept.begun > LONGEST:
        return Journal(file, fresh, "what was kept of this run is older than a day: it begins anew")
    done = sum(unit.results is not None for unit in kept.units.values())
    rounds = sum(len(unit.rounds) for unit in kept.units.values() if unit.results is None)
    begun = kept.begun.astimezone(UTC).strftime("%H:%M")
    said = f"going on with the run that began at {begun} UTC: {done} parts of it are measured"
    return Journal(file, kept, f"{said}, and {rounds} rounds of the next (--again begins anew)")
