"""Machines as a person writes them: ``name=desk,memory=16GiB,bandwidth=30GB/s``, or tables in a file.

The same file may say which model they are to serve, and for how many sessions: then they are a fleet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

from shoal.errors import UsageError
from shoal.option_values import parse_size
from shoal.planning.roofline import LINK, RTT_S, Machine
from shoal.toml_file import read_toml
from shoal.types import Format, Kv

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
    address: str = ""
    """Where its owner reaches it. Nothing is sent there: it is told beside what to run."""
    device: str = ""
    """What its node computes on; empty: the node chooses."""
    threads: int = 0
    """Compute threads of its node; 0: the node chooses."""

    @property
    def complete(self) -> bool:
        """Whether nothing of it needs measuring."""
        return self.memory is not None and self.bandwidth is not None and "fp32" in self.ops


@dataclass(frozen=True, slots=True)
class Fleet:
    """What a file says: machines, and what they are to serve."""

    machines: tuple[Described, ...]
    model: str = ""
    swarm: str = ""
    format: Format | None = None
    kv: Kv | None = None
    sessions: int | None = None
    context: int | None = None


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
    """The machines of a file, whatever else it says. Raises as :func:`read_fleet`."""
    return list(read_fleet(path).machines)


def read_fleet(path: Path) -> Fleet:
    """Read a TOML file with ``[[machine]]`` tables and, above them, what the machines are to serve.

    Raises:
        UsageError: the file cannot be read, or something in it makes no sense.
    """
    tables = read_toml(path)
    if tables is None:
        raise UsageError(f"there is no {path}", check="name a file that exists")
    machines = tables.pop("machine", None)
    if not isinstance(machines, list) or not machines:
        raise UsageError(
            f"{path} has no [[machine]] tables", check="write one [[machine]] table for each machine"
        )
    above = {key: _value_above(path, key, value) for key, value in tables.items()}
    found: list[Described] = []
    for number, table in enumerate(cast("list[object]", machines), 1):
        if not isinstance(table, dict):
            raise UsageError(
                f"{path}: machine {number} is not a table",
                check="write one [[machine]] table for each machine",
            )
        values = {key: str(value) for key, value in cast("dict[str, Any]", table).items()}
        found.append(_described(values, f"{path}, machine {number},"))
    return Fleet(tuple(found), **above)


def _value_above(path: Path, key: str, value: object) -> Any:
    if key not in ABOVE:
        raise UsageError(
            f"{path} has an unknown key {key[:40]!r}",
            check=f"use one of {', '.join(ABOVE)} above the [[machine]] tables",
        )
    try:
        return ABOVE[key](str(value))
    except ValueError as error:
        raise UsageError(f"{path} has {str(value)[:40]!r} for {key}", check=str(error)) from error


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


def _whole(most: int, text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:12]) <= most:
        raise ValueError(f"a whole number from 1 to {most}")
    return int(text)


def _plain(text: str, most: int = 200) -> str:
    """Goes into a command line as one word, and is no option there."""
    if not text or len(text) > most or not text.isprintable() or text.startswith("-"):
        raise ValueError(f"1 to {most} letters on one line, that begin with no dash")
    return text


def _one_of(known: Sequence[str], text: str) -> str:
    if text not in known:
        raise ValueError(f"one of {', '.join(known)}")
    return text


def _name(text: str) -> str:
    if not text or len(text) > 40:
        raise ValueError("a name of 1 to 40 letters")
    return text


READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "name": ("name", _name),
    "count": ("count", partial(_whole, MOST)),
    "memory": ("memory", parse_size),
    "bandwidth": ("bandwidth", _rate),
    "link": ("link", _rate),
    "rtt": ("rtt_s", _seconds),
    "address": ("address", _plain),
    "device": ("device", _plain),
    "threads": ("threads", partial(_whole, 4096)),
}
"""By key: the field, and what reads it. ``ops`` and the formats, for one format alone, are beside these."""
ABOVE: dict[str, Callable[[str], Any]] = {
    "model": partial(_plain, most=500),
    "swarm": _plain,
    "format": partial(_one_of, get_args(Format)),
    "kv": partial(_one_of, get_args(Kv)),
    "sessions": partial(_whole, 100_000),
    "context": partial(_whole, 1 << 30),
}
"""What may stand above the machines, and what reads it."""


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


def each_machine(described: Sequence[Described]) -> list[Described]:
    """What was said of each machine, as often as it is there; in the order of :func:`completed`."""
    return [machine for machine in described for _ in range(machine.count)]


def check_memory(described: Sequence[Described]) -> None:
    """Raises UsageError: a machine does not say what memory it has, for which no other can stand in."""
    names = [machine.name or f"machine {number}" for number, machine in enumerate(described, 1)]
    if unsaid := [name for name, machine in zip(names, described, strict=True) if machine.memory is None]:
        raise UsageError(
            f"the memory of {', '.join(unsaid[:5])}{' and others' if len(unsaid) > 5 else ''} is missing",
            check='write what a node may use there, as memory = "16GiB"',
        )


def check_distinct(described: Sequence[Described], machines: Sequence[Machine]) -> None:
    """Refuse a fleet in which a machine is there twice.

    Args:
        machines: as :func:`completed` made them of ``described``.

    Raises:
        UsageError: two have one name or one address.
    """
    if twice := _twice([machine.name for machine in machines]):
        raise UsageError(
            f"two machines are named {twice!r}",
            check="give each a name of its own; count = 2 stands for two that are alike",
        )
    if twice := _twice([machine.address for machine in each_machine(described) if machine.address]):
        raise UsageError(
            f"two machines have the address {twice!r}", check="write each machine once, with its own address"
        )


def _twice(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
