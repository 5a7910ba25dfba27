"""Machines as a person writes them: ``name=desk,memory=16GiB,bandwidth=30GB/s``, or tables in a file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

from shoal.errors import UsageError
from shoal.option_values import parse_size
from shoal.planning.roofline import LINK, RTT_S, Machine
from shoal.toml_file import read_toml
from shoal.types import Format

MOST = 1000
"""Machines in one plan."""
EXAMPLE = "--machine name=desk,memory=16GiB,bandwidth=30GB/s,ops=200G,link=1Gb/s,rtt=20ms"
_NUMBER = r"\s*(\d+(?:\.\d+)?)\s*"
_RATE = re.compile(_NUMBER + r"([kMGT]?)(i?)(B|b|bit)(?:/s|ps)?\s*")
_OPS = re.compile(_NUMBER + r"([kMGTP]?)\s*(?:FLOP|OP)?s?(?:/s)?\s*", re.IGNORECASE)
_TIME = re.compile(_NUMBER + r"(us|ms|s)\s*")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


@dataclass(frozen=True, slots=True)
class Described:
    """A machine as far as it was described; what is ``None`` is to be measured."""

    name: str | None = None
    count: int = 1
    memory: int | None = None
    bandwidth: float | None = None
    ops: Mapping[Format, float] = field(default_factory=dict[Format, float])
    link: float = LINK
    rtt_s: float = RTT_S

    @property
    def complete(self) -> bool:
        """Whether nothing of it needs measuring."""
        return self.memory is not None and self.bandwidth is not None and "fp32" in self.ops


def parse_machine(text: str) -> Described:
    """Read one ``--machine``.

    Raises:
        UsageError: it is not ``key=value`` with commas between, or a value makes no sense.
    """
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key.strip() in fields:
            raise UsageError(f"--machine: cannot read {part.strip()!r}", check=f"write it as in {EXAMPLE}")
        fields[key.strip()] = value.strip()
    return _described(fields, "--machine")


def read_machines(path: Path) -> list[Described]:
    """Read the ``[[machine]]`` tables of a TOML file.

    Raises:
        UsageError: the file cannot be read, or a table of it makes no sense.
    """
    tables = read_toml(path)
    if tables is None:
        raise UsageError(f"there is no {path}", check="name a file that exists")
    machines: object = tables.get("machine")
    if set(tables) != {"machine"} or not isinstance(machines, list):
        raise UsageError(
            f"{path} must hold [[machine]] tables and nothing else",
            check="write one [[machine]] table for each machine",
        )
    found: list[Described] = []
    for number, table in enumerate(cast("list[object]", machines), 1):
        if not isinstance(table, dict):
            raise UsageError(
                f"{path}: machine {number} is not a table",
                check="write one [[machine]] table for each machine",
            )
        values = {key: str(value) for key, value in cast("dict[str, Any]", table).items()}
        found.append(_described(values, f"{path}, machine {number},"))
    return found


def _described(fields: Mapping[str, str], source: str) -> Described:
    found = Described()
    ops: dict[Format, float] = {}
    for key, text in fields.items():
        try:
            if key in get_args(Format) or key == "ops":
                value = _parsed(_OPS, text, 1000)
                ops |= {f: value for f in get_args(Format) if f == key or (key == "ops" and f not in fields)}
            elif key in READERS:
                name, read = READERS[key]
                found = replace(found, **{name: read(text)})
            else:
                known = ", ".join((*READERS, "ops", *get_args(Format)))
                raise UsageError(f"{source} has an unknown key {key[:40]!r}", check=f"use one of: {known}")
        except ValueError as error:
            raise UsageError(f"{source} has {text[:40]!r} for {key}", check=str(error)) from error
    return replace(found, ops=ops)


def _parsed(pattern: re.Pattern[str], text: str, base: int) -> float:
    match = pattern.fullmatch(text)
    if match is None or not float(match[1]) > 0:
        raise ValueError("operations in a second, for example 200G or 1.5T")
    return float(match[1]) * base ** _POWERS[match[2].lower()]


def _rate(text: str) -> float:
    match = _RATE.fullmatch(text)
    if match is None or not float(match[1]) > 0:
        raise ValueError("bytes (B) or bits (b) in a second, for example 30GB/s or 1Gb/s")
    base = 1024 if match[3] else 1000
    return float(match[1]) * base ** _POWERS[match[2].lower()] / (1 if match[4] == "B" else 8)


def _seconds(text: str) -> float:
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("a time, for example 20ms")
    return float(match[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]]


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MOST:
        raise ValueError(f"a whole number from 1 to {MOST}")
    return int(text)


def _name(text: str) -> str:
    if not text or len(text) > 40:
        raise ValueError("a name of 1 to 40 letters")
    return text


READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "name": ("name", _name),
    "count": ("count", _count),
    "memory": ("memory", parse_size),
    "bandwidth": ("bandwidth", _rate),
    "link": ("link", _rate),
    "rtt": ("rtt_s", _seconds),
}
"""By key: the field, and what reads it. ``ops`` and the formats, for one format alone, are beside these."""


def completed(described: Sequence[Described], count: int, measure: Callable[[], Machine]) -> list[Machine]:
    """The machines, each as often as it is there.

    Args:
        count: how often all of them are there.
        measure: measures this machine, which then stands in for what was not described.

    Raises:
        UsageError: there are too many.
    """
    if sum(machine.count for machine in described) * count > MOST:
        raise UsageError(
            f"there are more than {MOST} machines", check="lower --count or the counts of the machines"
        )
    here = None if all(machine.complete for machine in described) else measure()
    found: list[Machine] = []
    for number, machine in enumerate(described, 1):
        name = machine.name or (here.name if here and len(described) == 1 else f"machine {number}")
        copies = machine.count * count
        for copy in range(1, copies + 1):
            found.append(_filled(machine, f"{name} {copy}" if copies > 1 else name, here))
    return found


def _filled(machine: Described, name: str, here: Machine | None) -> Machine:
    return Machine(
        name,
        machine.memory if machine.memory is not None else (here.memory if here else 0),
        machine.bandwidth or (here.bandwidth if here else math.inf),
        machine.ops if "fp32" in machine.ops else {**(here.ops if here else {}), **machine.ops},
        machine.link,
        machine.rtt_s,
    )
