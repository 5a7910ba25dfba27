"""Two runs of one benchmark on one machine: what changed, and what is within the spread of the rounds.

Each result has a handful of rounds in each run. All ratios of a round of B to a round of A, sorted, give the
median ratio and, counted from both ends, an interval (Hodges and Lehmann, 1963). It is as wide as the rank
test of Mann and Whitney (1947) asks for: if nothing had changed, the interval would leave 1 out once in
``ONE_IN`` times or less. That needs no assumption on how the rounds spread. Five rounds each are just enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import comb
from statistics import median
from typing import Any, Literal, cast

from shoal.bench.kept.document import BenchDocument, KeptResult
from shoal.bench.results import significant
from shoal.errors import UsageError

ONE_IN = 100
"""Of results that did not change, how many may be called a change."""
SAME = ("cpu", "cores", "threads", "memory_bytes", "device")
"""What must be equal of two machines, as their reports name it."""
MEMORY_TOLERANCE = 0.02
"""A part of the memory that a system takes for itself, more or less from start to start."""
DRIFT = 0.1
"""How much faster or slower a machine itself may have been before a reader is told."""
LESS_IS_BETTER = ("s", "MB", "perplexity")
"""Units."""
ChangeKind = Literal["better", "worse", "noise", "too few rounds"]


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one result, or of its ratio to another of the same run."""

    name: str
    unit: str
    """Empty for a ratio."""
    a: float
    b: float
    """The medians of the two runs."""
    ratio: float
    """Of B to A, with the interval in which it lies."""
    low: float
    high: float
    verdict: ChangeKind

    def as_json(self) -> dict[str, Any]:
        """The fields that ``--json`` shows, with four significant digits."""
        numbers = {name: significant(getattr(self, name)) for name in ("a", "b", "ratio", "low", "high")}
        return {"name": self.name, "unit": self.unit, **numbers, "verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs beside each other."""

    bench: str
    changes: tuple[Change, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    """Names that one run has and the other has not."""
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` shows."""
        return {
            "bench": self.bench,
            "changes": [change.as_json() for change in self.changes],
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "notes": list(self.notes),
        }


def compare_runs(a: BenchDocument, b: BenchDocument) -> Comparison:
    """What changed from ``a`` to ``b``.

    Raises:
        UsageError: they are of two benchmarks, models or machines, or were measured by other settings.
    """
    _check_alike(a, b)
    of_a, of_b = ({result.name: result for result in run.results} for run in (a, b))
    changes: list[Change] = []
    for name, before in of_a.items():
        if (after := of_b.get(name)) is not None:
            changes += _changes(before, after, of_a, of_b)
    return Comparison(
        a.bench,
        tuple(changes),
        tuple(name for name in of_a if name not in of_b),
        tuple(name for name in of_b if name not in of_a),
        tuple(_notes(a, b)),
    )


def _changes(
    before: KeptResult,
    after: KeptResult,
    of_a: Mapping[str, KeptResult],
    of_b: Mapping[str, KeptResult],
) -> list[Change]:
    """Of a result itself, and of its ratio to each that it was divided by in both runs."""
    if before.unit != after.unit:
        raise UsageError(
            f"{before.name} is in {before.unit} in A and in {after.unit} in B",
            check="measure A again with this version of Shoal",
        )
    if not before.rounds or not after.rounds:
        return []
    less = before.unit in LESS_IS_BETTER
    found = [change_of(before.name, before.unit, before.rounds, after.rounds, less_is_better=less)]
    for label, other in before.against.items():
        if after.against.get(label) == other:
            was = _in_rounds(before, of_a.get(other))
            is_now = _in_rounds(after, of_b.get(other))
            if was and is_now:
                name = f"{before.name} : {label}"
                found.append(change_of(name, "", was, is_now, less_is_better=less))
    return found


def _in_rounds(result: KeptResult, other: KeptResult | None) -> list[float]:
    """The ratio to another in each round that both were measured in."""
    if other is None or len(other.rounds) != len(result.rounds):
        return []
    return [mine / its for mine, its in zip(result.rounds, other.rounds, strict=True)]


def change_of(
    name: str, unit: str, a: Sequence[float], b: Sequence[float], *, less_is_better: bool = False
) -> Change:
    """How the rounds ``b`` differ from the rounds ``a``; all are positive."""
    ratios = sorted(after / before for before in a for after in b)
    cut = _left_out(len(a), len(b))
    low, high = (ratios[cut], ratios[-1 - cut]) if cut is not None else (ratios[0], ratios[-1])
    verdict: ChangeKind = "noise"
    if cut is None:
        verdict = "too few rounds"
    elif not low <= 1 <= high:
        verdict = "better" if (low > 1) != less_is_better else "worse"
    return Change(name, unit, median(a), median(b), median(ratios), low, high, verdict)


@cache
def _left_out(a: int, b: int) -> int | None:
    """How many ratios are left out at each end; ``None``: so few rounds can show no change at all."""
    total, below = comb(a + b, a), 0
    for cut, orders in enumerate(_orders(a, b)):
        below += orders
        if 2 * below * ONE_IN > total:
            return cut - 1 if cut else None
    return None


def _orders(a: int, b: int) -> list[int]:
    """Of all orders of ``a`` and ``b`` values, those in which 0, 1, 2 … pairs have the smaller one in b.

    These are the coefficients of the Gaussian binomial of a + b over a.
    """
    counts = [1] + [0] * (a * b // 2)
    for i in range(1, a + 1):
        for k in range(len(counts) - 1, b + i - 1, -1):
            counts[k] -= counts[k - b - i]
        for k in range(i, len(counts)):
            counts[k] += counts[k - i]
    return counts


def _check_alike(a: BenchDocument, b: BenchDocument) -> None:
    if a.bench != b.bench:
        raise UsageError(
            f"A is of shoal bench {a.bench}, B of shoal bench {b.bench}",
            check="give two runs of one benchmark",
        )
    if a.model.get("digest") != b.model.get("digest"):
        names = [run.model.get("name", "no model") for run in (a, b)]
        raise UsageError(
            f"A measured {names[0]}, B {names[1]}, which is another model",
            check="give two runs with the same --model",
        )
    unlike = [name for name, is_now in b.conditions.items() if a.conditions.get(name, is_now) != is_now]
    if unlike:
        said = "; ".join(f"{name} {a.conditions[name]} in A, {b.conditions[name]} in B" for name in unlike)
        raise UsageError(
            f"A and B were measured by other settings: {said}",
            check="give two runs with the same settings and as many nodes",
        )
    other = [name for name in SAME if not _equal(name, a.machine.get(name), b.machine.get(name))]
    if other:
        said = "; ".join(f"{name} {a.machine.get(name)} in A, {b.machine.get(name)} in B" for name in other)
        raise UsageError(
            f"A and B are of different machines: {said}",
            check="give two runs on one machine, with the same --threads",
        )


def _equal(name: str, a: object, b: object) -> bool:
    if name == "memory_bytes" and isinstance(a, int) and isinstance(b, int):
        return abs(a - b) <= MEMORY_TOLERANCE * max(a, b)
    return a == b


def _notes(a: BenchDocument, b: BenchDocument) -> list[str]:
    said = [f"A {_said_of(a)}", f"B {_said_of(b)}"]
    speeds = dict(_machine_ratios(a.machine, b.machine))
    if speeds:
        shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in speeds.items())
        said.append(f"The machine itself in B, as a part of what it was in A: {shown}")
    if any(abs(ratio - 1) > DRIFT for ratio in speeds.values()):
        said.append(
            "The machine was not as fast in both, so look at the ratios within a run (the lines with a colon)"
        )
    return said


def _said_of(run: BenchDocument) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run.versions.items()))
    return f"was made {run.made} with {versions}"


def _machine_ratios(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Memory and products of B's machine against A's, where both runs looked at it."""
    before, after = _speeds(a), _speeds(b)
    return [(name, after[name] / speed) for name, speed in before.items() if name in after]


def _speeds(machine: Mapping[str, Any]) -> dict[str, float]:
    products: object = machine.get("ops_per_s")
    found: dict[str, object] = {"memory": machine.get("bandwidth_bytes_s")}
    if isinstance(products, dict):
        found |= {f"products in {name}": speed for name, speed in cast("dict[str, object]", products).items()}
    return {name: speed for name, speed in found.items() if isinstance(speed, (int, float)) and speed > 0}
