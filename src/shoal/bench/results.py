"""What a benchmark found: medians with their spread, beside what the roofline allows and others reach."""

from __future__ import annotations

import math
import platform
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from statistics import median
from typing import Any

import psutil

from shoal import __version__
from shoal.config import Settings
from shoal.planning.roofline import Estimate
from shoal.progress import Progress

FILE_VERSION = 1
"""Of what ``as_json`` of a report writes."""
PARTS = ("compute", "network", "waiting")
"""What the time of a step is split into."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the roofline says of a forward."""

    estimate: Estimate
    tokens: int
    """That come out of it."""

    @property
    def rate(self) -> float:
        """Tokens in a second, at most."""
        return self.tokens / self.estimate.seconds


@dataclass(frozen=True, slots=True)
class Contender:
    """One of several things that are measured in turns."""

    name: str
    """Levels with slashes between them, for example ``executor/int8/decode/b8``."""
    unit: str
    run: Callable[[], Awaitable[float]]
    """Measures once, for a second or so."""
    expected: Callable[[], Expected] | None = None
    """What the roofline allows, asked once all rounds are over."""
    most_rounds: int | None = None
    """How many rounds it takes part in, where it takes so long that a few must do; beside the first."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """Rounds that an earlier start has measured, and what keeps the next."""

    kept: Sequence[Mapping[str, float]]
    """What each gave, by the name of the contender."""
    keep: Callable[[Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class Measurement:
    """The median of several rounds."""

    name: str
    value: float
    unit: str
    min: float
    max: float
    expected: Expected | None = None
    """For speeds in tokens a second."""
    vs: Mapping[str, float] = field(default_factory=dict[str, float])
    """The ratio to others measured in the same run, by their label: the median of the rounds' ratios, where
    both were measured in as many rounds; else that of the medians."""
    against: Mapping[str, str] = field(default_factory=dict[str, str])
    """The names of those others, by their label."""
    rounds: tuple[float, ...] = ()
    """What each round gave, in their order."""

    @property
    def predicted(self) -> float | None:
        """What the roofline allows, in the same unit."""
        return self.expected.rate if self.expected else None

    @property
    def of_roofline(self) -> float | None:
        """The part of the predicted speed that was reached."""
        return self.value / self.predicted if self.predicted else None

    def as_json(self) -> dict[str, Any]:
        """The fields that ``--json`` shows, with four significant digits."""
        return {
            "name": self.name,
            "value": significant(self.value),
            "unit": self.unit,
            "min": significant(self.min),
            "max": significant(self.max),
            "rounds": [significant(value) for value in self.rounds],
            "of_roofline": None if self.of_roofline is None else significant(self.of_roofline),
            "vs": {label: significant(ratio) for label, ratio in self.vs.items()},
            "against": dict(self.against),
        }


@dataclass(frozen=True, slots=True)
class HopSplit:
    """Where the time of a decode step went at one hop, in milliseconds: the median of many steps."""

    hop: str
    compute_ms: float
    network_ms: float
    """Of its way there from the hop before; for the last place, the client, the way back."""
    waiting_ms: float

    def parts(self) -> dict[str, float]:
        """The three times by their names in ``PARTS``."""
        return dict(zip(PARTS, (self.compute_ms, self.network_ms, self.waiting_ms), strict=True))


@dataclass(frozen=True, slots=True)
class StepSplit:
    """The time of a step, by hop, with so many sessions at once."""

    sessions: int
    hops: tuple[HopSplit, ...]


@dataclass(frozen=True, slots=True)
class BenchReport:
    """All that one run of a benchmark has to say."""

    title: str
    machine: Mapping[str, Any]
    results: tuple[Measurement, ...]
    steps: tuple[StepSplit, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences a reader of the figures must know."""
    bench: str = ""
    """The command that measured: ``executor`` of ``shoal bench executor``."""
    model: Mapping[str, str] = field(default_factory=dict[str, str])
    """What was measured: its ``name`` and ``digest``."""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of other programs that were measured."""
    conditions: Mapping[str, str] = field(default_factory=dict[str, str])
    """What else the figures depend on: how many nodes, and by which settings (:func:`measured_by`)."""

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` shows, and ``--save`` keeps for ``shoal bench compare``."""
        shown: dict[str, Any] = {
            "shoal_bench": FILE_VERSION,
            "bench": self.bench,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": dict(self.model),
            "versions": {"shoal": __version__, **self.versions},
            "machine": dict(self.machine),
            "conditions": dict(self.conditions),
            "results": [result.as_json() for result in self.results],
            "predictions": {r.name: significant(r.predicted) for r in self.results if r.predicted},
        }
        if self.steps:
            shown["steps"] = [_split_json(split) for split in self.steps]
        if self.notes:
            shown["notes"] = list(self.notes)
        return shown


def _split_json(split: StepSplit) -> dict[str, Any]:
    hops = [
        {"hop": hop.hop, **{f"{part}_ms": significant(took) for part, took in hop.parts().items()}}
        for hop in split.hops
    ]
    return {"sessions": split.sessions, "hops": hops}


def significant(value: float, digits: int = 4) -> float:
    """``value`` with so many significant digits."""
    return float(f"{value:.{digits}g}")


def of_rounds(name: str, unit: str, values: Sequence[float], expected: Expected | None = None) -> Measurement:
    """The result of a contender's rounds."""
    return Measurement(name, median(values), unit, min(values), max(values), expected, rounds=tuple(values))


def compared(results: Iterable[Measurement], pairs: Mapping[str, Mapping[str, str]]) -> list[Measurement]:
    """The results, each with its ratio to others.

    Args:
        pairs: by the name of a result, those it is divided by: the label to show, and the other's name. Names
            that were not measured are passed over.
    """
    found = list(results)
    named = {result.name: result for result in found if result.value}
    return [_divided(result, pairs.get(result.name, {}), named) for result in found]


def _divided(result: Measurement, others: Mapping[str, str], named: Mapping[str, Measurement]) -> Measurement:
    against = {label: other for label, other in others.items() if other in named}
    vs = {label: ratio(result, named[other]) for label, other in against.items()}
    return replace(result, vs=vs, against=against)


def ratio(result: Measurement, other: Measurement) -> float:
    """How a result compares with another of the same run. A machine that is slow in one round is slow for
    both, so it is the rounds that are divided."""
    if len(result.rounds) != len(other.rounds) or not other.rounds or not all(other.rounds):
        return result.value / other.value
    return median(mine / its for mine, its in zip(result.rounds, other.rounds, strict=True))


async def in_turns(
    contenders: Sequence[Contender],
    rounds: int,
    progress: Progress,
    look: Callable[[], Awaitable[None]] | None = None,
    earlier: Rounds | None = None,
) -> list[Measurement]:
    """Measure each contender once a round, in turns, so that what else the machine does falls on all alike.

    A first round warms up and is not counted, nor are turns that gave no number (NaN).

    Args:
        look: called once a round too: looks at the machine itself.
        earlier: rounds that need not be measured again, and what is called with each new one.
    """
    found: list[Mapping[str, float]] = list(earlier.kept[:rounds]) if earlier else []
    left = rounds - len(found)
    total = (left + 1) * len(contenders)
    for turn in range(left + 1 if left else 0):
        if look is not None and turn:
            progress("measuring this machine", turn * len(contenders), total)
            await look()
        values: dict[str, float] = {}
        for place, contender in enumerate(contenders):
            if contender.most_rounds is not None and len(found) >= contender.most_rounds:
                continue
            when = f"round {len(found) + 1} of {rounds}" if turn else "warming up"
            progress(f"measuring {contender.name}, {when}", turn * len(contenders) + place, total)
            value = await contender.run()
            if not math.isnan(value):
                values[contender.name] = value
        if turn:
            found.append(values)
            if earlier is not None:
                earlier.keep(values)
    return list(_results_of(contenders, found))


def _results_of(
    contenders: Sequence[Contender], rounds: Sequence[Mapping[str, float]]
) -> Iterator[Measurement]:
    for contender in contenders:
        values = [found[contender.name] for found in rounds if contender.name in found]
        if values:
            expected = contender.expected and contender.expected()
            yield of_rounds(contender.name, contender.unit, values, expected)


def measured_by(settings: Settings, nodes: int | None = None) -> dict[str, str]:
    """The settings by which nodes and clients compute, beside the formats that results name."""
    found = {name: str(getattr(settings, name)) for name in ("kv", "wire", "kernels", "fast", "parallel")}
    return found if nodes is None else found | {"nodes": str(nodes)}


def describe_machine(threads: int) -> dict[str, Any]:
    """What this machine is, as far as it can be read without measuring."""
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        "threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "shoal": __version__,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - a file of the kernel's
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
