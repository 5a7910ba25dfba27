"""Where a graph is cut: its order into segments of near-equal cost, at thin places. Pure.

A place is a position in the topological order. What crosses there are the values that were made before it and
are used at or after it. A graph is cut where that is least, once in each of equal shares of the cost: a
residual block is left whole where its two ends carry one tensor and its middle carries two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from shoal.models.graph.manifest import MAX_CROSSING, MAX_SEGMENTS

CLOSEST = 0.5
"""Of an equal share of the cost: two cuts that are closer are one, the thinner of the two."""
FEWEST = 5
"""Segments that a graph is cut into where it can be, however its cost is spread: else one of which a node or
two cost nearly all could not be shared."""
THINNER = 0.75
"""A cut that is as close to an end of the graph is kept where at most so much of what goes in or out there
crosses."""


@dataclass(frozen=True, slots=True)
class CutNode:
    """One node of a graph, as far as cutting it matters."""

    cost: float
    """Operations, estimated; more than 0."""
    takes: tuple[str, ...]
    """Values that are no constants."""
    makes: tuple[str, ...]


def choose_cuts(
    nodes: Sequence[CutNode],
    inputs: Sequence[str],
    outputs: Sequence[str],
    sizes: Mapping[str, int],
    most: int = MAX_SEGMENTS,
) -> list[int]:
    """The positions at which a graph is cut, in order, without its two ends.

    Args:
        sizes: bytes of each value that can travel; where another crosses, nothing is cut.
        most: segments.
    """
    weights = crossing_bytes(nodes, inputs, outputs, sizes)
    before = list(accumulate((node.cost for node in nodes), initial=0.0))
    share = before[-1] / most
    best: dict[int, int] = {}
    for position in range(1, len(nodes)):
        weight = weights[position]
        if weight is None:
            continue
        nearest = min(most - 1, max(1, round(before[position] / share)))
        other = best.get(nearest)
        if other is None or _rank(weight, before[position], nearest * share) < _rank(
            weights[other], before[other], nearest * share
        ):
            best[nearest] = position
    return _filled(_apart(sorted(best.values()), before, weights, CLOSEST * share), weights, most)


def _rank(weight: int | None, cost: float, ideal: float) -> tuple[int, float]:
    assert weight is not None
    return weight, abs(cost - ideal)


def crossing_bytes(
    nodes: Sequence[CutNode], inputs: Sequence[str], outputs: Sequence[str], sizes: Mapping[str, int]
) -> list[int | None]:
    """Bytes that cross at each position; ``None`` where what crosses cannot travel, or is too many tensors.

    Counted by what changes from position to position: values times positions would be too many to walk
    through.
    """
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        last.update(dict.fromkeys(node.takes, index))
    last.update(dict.fromkeys(outputs, len(nodes)))
    ends: list[list[str]] = [[] for _ in range(len(nodes) + 2)]
    total = fixed = count = 0
    found: list[int | None] = []

    def move(value: str, by: int) -> None:
        nonlocal total, fixed, count
        count += by
        total += by * sizes.get(value, 0)
        fixed += by * (value not in sizes)

    starting = [value for value in inputs if value in last]
    for position in range(len(nodes) + 1):
        if position:
            starting = [value for value in nodes[position - 1].makes if last.get(value, -1) >= position]
        for value in starting:
            move(value, 1)
            ends[last[value] + 1].append(value)
        for value in ends[position]:
            move(value, -1)
        found.append(None if fixed or count > MAX_CROSSING else total)
    return found


def _apart(
    cuts: Sequence[int], before: Sequence[float], weights: Sequence[int | None], least: float
) -> list[int]:
    """The cuts without those that are too close to a thinner one, or to an end of the graph.

    An end is a cut, too. One that is much thinner beside it is worth a segment without any cost: what a graph
    makes of little in its last nodes, or takes in its first, need not travel.
    """
    kept: list[int] = []
    for cut in cuts:
        ends = [end for end in (0, -1) if abs(before[cut] - before[end]) < least]
        if any((weights[cut] or 0) > THINNER * (weights[end] or 0) for end in ends):
            continue
        if kept and before[cut] - before[kept[-1]] < least:
            if (weights[cut] or 0) < (weights[kept[-1]] or 0):
                kept[-1] = cut
        else:
            kept.append(cut)
    return kept


def _filled(cuts: list[int], weights: Sequence[int | None], most: int) -> list[int]:
    """The cuts, and where those are few, more of them at the thinnest places, apart by numbers of nodes."""
    fewest, end = min(FEWEST, most), len(weights) - 1
    apart = max(1, end // (2 * FEWEST))
    if len(cuts) + 1 >= fewest:
        return cuts
    found = [0, *cuts, end]
    places = ((weight, place) for place, weight in enumerate(weights) if weight is not None)
    for _, place in sorted(places):
        if all(abs(place - other) >= apart for other in found):
            found.append(place)
        if len(found) - 1 >= fewest:
            break
    return sorted(found)[1:-1]


@dataclass(frozen=True, slots=True)
class CutSegment:
    """Nodes ``[first, end)``, and what they have to do with the others."""

    first: int
    end: int
    cost: int
    takes: tuple[str, ...]
    """Values from before, or inputs of the graph, that its nodes use."""
    gives: tuple[str, ...]
    """Values that it makes, and that are used after it or come out of the graph."""


def cut_segments(nodes: Sequence[CutNode], outputs: Sequence[str], cuts: Sequence[int]) -> list[CutSegment]:
    """The segments between the cuts."""
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        last.update(dict.fromkeys(node.takes, index))
    last.update(dict.fromkeys(outputs, len(nodes)))
    found: list[CutSegment] = []
    for first, end in pairwise([0, *cuts, len(nodes)]):
        inside = nodes[first:end]
        made = [value for node in inside for value in node.makes]
        known = set(made)
        takes = dict.fromkeys(value for node in inside for value in node.takes if value not in known)
        gives = tuple(value for value in made if last.get(value, -1) >= end)
        found.append(CutSegment(first, end, round(sum(node.cost for node in inside)), tuple(takes), gives))
    return found
