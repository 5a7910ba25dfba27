"""The energy that the processors have taken, as Linux' powercap shows it (RAPL; Intel's and AMD's).

Each zone counts microjoules in a file, and begins again at 0 where its range ends: on a busy server after
half an hour. Since 2020 the files are root's alone (CVE-2020-8694). Where they cannot be read, nothing is
said.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ZONES = Path("/sys/class/powercap")


class Rapl:
    """Counts on where a zone's counter begins again, if it is asked at least once in each round.

    Args:
        folder: where the zones are.
    """

    def __init__(self, folder: Path = ZONES) -> None:
        self._zones = [zone for zone in map(_open_zone, sorted(_wanted(folder))) if zone is not None]

    def joules(self) -> float | None:
        """What all zones have counted since this began; ``None`` where there is none to be read."""
        if not self._zones:
            return None
        return sum(zone.microjoules() for zone in self._zones) / 1e6


class _Zone:
    """One counter."""

    def __init__(self, file: Path, last: int, range: int) -> None:
        self._file = file
        self._last = last
        self._range = range
        self._counted = 0

    def microjoules(self) -> int:
        """Since it was opened. A zone that can no longer be read stands still."""
        now = _number(self._file)
        if now is not None:
            # One that went back has come to its end and begun again.
            more = now - self._last if now >= self._last else now + self._range - self._last
            self._counted, self._last = self._counted + more, now
        return self._counted


def _wanted(folder: Path) -> Iterator[Path]:
    """The zones to be summed up: whole packages, and memory, which lies outside of them.

    Cores and graphics are inside of their package, ``psys`` is the whole machine, and ``intel-rapl-mmio`` has
    the same packages once more.
    """
    for zone in folder.glob("intel-rapl:*"):
        name = _text(zone / "name")
        if name.startswith("package-") or name == "dram":
            yield zone


def _open_zone(zone: Path) -> _Zone | None:
    file = zone / "energy_uj"
    now, range = _number(file), _number(zone / "max_energy_range_uj")
    return None if now is None or range is None else _Zone(file, now, range)


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdecimal() else None


def _text(file: Path) -> str:
    """What a file says; nothing where it is not there, or not for us to read."""
    try:
        return file.read_text("ascii", errors="replace").strip()
    except OSError:
        return ""
