"""Which blocks go to which machine. Pure: a layout in, its stages out; arrays of numpy.

Stages are stretches of blocks, and each machine has at most one. A dynamic programme goes over (set of
machines, place): the least that it costs to cover the first blocks, up to that place, with those machines
in any order. The cost is the sum over the stages, or the slowest of them. Machines that are alike need no
telling apart, so a set is how many of each kind are in it. That is exact.

Where there are too many sets, the programme goes over the machines in some orders, in which each may be left
out. The best of these also bounds the exact search: what cannot become better is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from shoal.planning.layout import Layout, PipelineStage, StretchTable
from shoal.routing.shortest_path import FloatArray, IndexArray
from shoal.types import Span

MOST_WORK = 1_000_000_000
"""Stretches of blocks, over all sets and kinds of machines and all runs, that an exact answer may look at. 12
machines that all differ and 64 blocks need a tenth of it in a run, and there are ten runs."""
MOST_SETS = 1 << 16
"""Sets of machines, of each of which a row is kept."""
ORDERS = 30
"""In which machines are tried, where these are few."""
FEW = 64
"""Kinds of machines, up to which all of these orders are tried."""
HALVINGS = 6
"""Of the interval in which the best limit of the busiest machine lies."""
SLACK = 1 + 1e-9
"""Sums of floats in another order differ."""

TIE = 1e-10
"""Of ways that are as long as each other, the one on which machines are busy for less is taken."""

Stages = tuple[PipelineStage, ...]
LayoutT = TypeVar("LayoutT", bound=Layout)


def place_best(layouts: Sequence[LayoutT], work: float = MOST_WORK) -> tuple[LayoutT, Stages]:
    """Of layouts that differ in their groups the one with the shortest round, and its stages.

    Where an exact answer for each would take too long, only the best of them gets one. Raises as
    :func:`place`.
    """
    each = work / len(layouts)
    # Of rounds that are as long as each other the first is taken: it has the largest batches.
    found = [(layout, place(layout, each)) for layout in layouts]
    best, stages = min(found, key=lambda one: one[0].round_s(one[1]))
    return best, stages if is_exact(best, each) else place(best, work)


def place(layout: Layout, work: float = MOST_WORK) -> Stages:
    """The stages of the shortest round.

    A round is the larger of two times, so the way round is made as short as it can be while no machine is
    busy for longer than a limit; and the limit is searched for by halving.

    Args:
        work: as :data:`MOST_WORK`.

    Raises:
        OutOfResources: the blocks do not fit; says how much is lacking.
    """
    each = _each_run(layout, work)
    shortest = shortest_way(layout, work=each)
    if layout.groups == 1 or layout.way_round(shortest) >= layout.groups * layout.busiest(shortest):
        return shortest
    evenest = least_busy(layout, work=each)
    found = min((shortest, evenest), key=layout.round_s)
    low, high = layout.busiest(evenest), layout.round_s(found) / layout.groups
    for _ in range(HALVINGS):
        if high <= low * SLACK:
            break
        limit = (low + high) / 2
        stages = shortest_way(layout, limit, work=each)
        found = min((found, stages), key=layout.round_s)
        if layout.way_round(stages) > layout.groups * limit:
            low = limit
        else:
            high = limit
    return found


def shortest_way(layout: Layout, limit: float = math.inf, *, work: float = MOST_WORK) -> Stages:
    """The least sum over the stages, where no machine is busy for more than ``limit`` seconds.

    Raises:
        OutOfResources: the blocks do not fit, or not within that limit.
    """
    tables = [np.where(busy <= limit * SLACK, spent + TIE * busy, np.inf) for spent, busy in _both(layout)]
    return _searched(layout, _Search(tables, slowest=False), work)


def least_busy(layout: Layout, *, work: float = MOST_WORK) -> Stages:
    """The stages of which the slowest is as quick as it can be. Raises as :func:`shortest_way`."""
    tables = [np.where(np.isfinite(spent), busy, np.inf) for spent, busy in _both(layout)]
    return _searched(layout, _Search(tables, slowest=True), work)


def is_exact(layout: Layout, work: float = MOST_WORK) -> bool:
    """Whether the answer of :func:`place` is the best there is."""
    return run_work(layout) <= _each_run(layout, work)


def run_work(layout: Layout) -> float:
    """What an exact run looks at, at the most; infinite where there are too many sets of machines."""
    n = layout.n_blocks
    sets = math.prod(min(len(kind), n) + 1 for kind in layout.kinds)
    return sets * len(layout.kinds) * n * (n + 1) / 2 if sets <= MOST_SETS else math.inf


def _each_run(layout: Layout, work: float) -> float:
    return work / (1 if layout.groups == 1 else 2 + HALVINGS)


def _both(layout: Layout) -> Iterator[tuple[StretchTable, StretchTable]]:
    return zip(layout.spent, layout.busy, strict=True)


def _searched(layout: Layout, search: _Search, work: float) -> Stages:
    tried = [_by_order(search, order) for order in _orders(layout)]
    found = min(tried, key=lambda cover: cover.cost)
    if run_work(layout) <= work:
        exact = _by_sets(search, [min(len(kind), layout.n_blocks) for kind in layout.kinds], found.cost)
        found = min((found, exact), key=lambda cover: cover.cost)
        tried.append(exact)
    if math.isinf(found.cost):
        raise layout.lacking(max(cover.reach for cover in tried))
    left = [list(kind) for kind in layout.kinds]
    return tuple(PipelineStage(left[kind].pop(0), Span(begin, end)) for kind, begin, end in found.parts)


@dataclass(frozen=True, slots=True)
class _Search:
    """What a stretch costs, by kind of machine, and how these costs add up."""

    tables: Sequence[StretchTable]
    slowest: bool
    """The cost of all stages is that of the dearest, not the sum."""

    @property
    def n_blocks(self) -> int:
        return len(self.tables[0]) - 1

    def add(self, cost: FloatArray, stretch: FloatArray) -> FloatArray:
        return np.maximum(cost, stretch) if self.slowest else cost + stretch

    def rest(self) -> FloatArray:
        """By place, the least that the blocks from there on cost if every machine could be taken again."""
        n = self.n_blocks
        least = np.minimum.reduce(list(self.tables))
        rest = np.full(n + 1, np.inf)
        rest[n] = 0.0
        for begin in range(n - 1, -1, -1):
            rest[begin] = self.add(least[begin, begin + 1 :], rest[begin + 1 :]).min()
        return rest


@dataclass(frozen=True, slots=True)
class _Cover:
    """The blocks at machines: kind, first block and end of each stage."""

    cost: float
    parts: tuple[tuple[int, int, int], ...]
    reach: int
    """The most blocks that could be covered."""


def _by_order(search: _Search, order: Sequence[int]) -> _Cover:
    """The best cover by kinds of machines in this order, each of which may be left out."""
    n = search.n_blocks
    cost = np.full(n + 1, np.inf)
    cost[0] = 0.0
    came: list[IndexArray] = []
    every = np.arange(n + 1)
    for kind in order:
        total = search.add(cost[:, None], search.tables[kind])
        begin = total.argmin(axis=0)
        reached = total[begin, every]
        better = reached < cost
        came.append(np.where(better, begin, -1))
        cost = np.where(better, reached, cost)
    parts: list[tuple[int, int, int]] = []
    end = n
    for kind, begins in zip(reversed(order), reversed(came), strict=True) if np.isfinite(cost[n]) else ():
        if begins[end] >= 0:
            parts.append((kind, int(begins[end]), end))
            end = int(begins[end])
    return _Cover(float(cost[n]), tuple(reversed(parts)), int(np.flatnonzero(np.isfinite(cost))[-1]))


def _by_sets(search: _Search, most: Sequence[int], bound: float) -> _Cover:
    """The best cover there is, if it is better than ``bound``.

    Args:
        most: machines of each kind.
    """
    n = search.n_blocks
    strides = np.concatenate([[1], np.cumprod(np.array(most) + 1)])
    cost = np.full((strides[-1], n + 1), np.inf)
    cost[0, 0] = 0.0
    kinds = np.full(cost.shape, -1, np.int32)
    begins = np.zeros(cost.shape, np.int32)
    rest = search.rest()
    layer = np.zeros(1, np.intp)  # the sets of 0, 1, 2, … machines, one after another
    best, reach = (bound, -1), 0
    while len(layer):
        here = cost[layer]
        reach = max([reach, *np.flatnonzero(np.isfinite(here).any(axis=0)).tolist()])
        last = int(here[:, n].argmin())
        if here[last, n] < best[0]:
            best = (float(here[last, n]), int(layer[last]))
        here[search.add(here, rest) * SLACK >= best[0]] = np.inf
        alive = np.isfinite(here[:, :n]).any(axis=1)
        here, layer = here[alive], layer[alive]
        after: list[IndexArray] = []
        for kind, table in enumerate(search.tables):
            free = layer // strides[kind] % (most[kind] + 1) < most[kind]
            there = layer[free] + strides[kind]
            if len(there):
                after.append(there)
                _extend(search, table, here[free], (cost, kinds, begins), there, kind)
        layer = np.unique(np.concatenate(after)) if after else np.zeros(0, np.intp)
    if best[1] < 0:
        return _Cover(math.inf, (), reach)
    parts: list[tuple[int, int, int]] = []
    at, end = best[1], n
    while end:
        kind, begin = int(kinds[at, end]), int(begins[at, end])
        parts.append((kind, begin, end))
        at, end = at - int(strides[kind]), begin
    return _Cover(best[0], tuple(reversed(parts)), n)


def _extend(
    search: _Search,
    table: StretchTable,
    here: FloatArray,
    kept: tuple[FloatArray, npt.NDArray[np.int32], npt.NDArray[np.int32]],
    there: IndexArray,
    kind: int,
) -> None:
    """Add one machine of a kind to some sets: each of the sets that come of it keeps what is better."""
    cost, kinds, begins = (array[there] for array in kept)
    for begin in np.flatnonzero(np.isfinite(here[:, :-1]).any(axis=0)):
        total = search.add(here[:, begin, None], table[begin, begin + 1 :])
        better = total < cost[:, begin + 1 :]
        if better.any():
            np.copyto(cost[:, begin + 1 :], total, where=better)
            np.copyto(kinds[:, begin + 1 :], kind, where=better)
            np.copyto(begins[:, begin + 1 :], begin, where=better)
    for array, new in zip(kept, (cost, kinds, begins), strict=True):
        array[there] = new


def _orders(layout: Layout) -> Iterator[list[int]]:
    """Kinds, each as often as it has machines: as given; the fastest first, the nearest first, those first
    that hold the most; and some by chance, the same ones each time."""
    n = layout.n_blocks
    every = [kind for kind, members in enumerate(layout.kinds) for _ in range(min(len(members), n))]
    holds = [int(np.isfinite(table).sum()) for table in layout.spent]
    whole = [float(np.nanmin(np.diagonal(table, 1))) for table in layout.spent]
    busy = [float(np.nanmin(np.diagonal(table, 1))) for table in layout.busy]
    yield every
    yield sorted(every, key=lambda kind: busy[kind])
    yield sorted(every, key=lambda kind: whole[kind])
    yield sorted(every, key=lambda kind: -holds[kind])
    rng = Random(0)
    for _ in range(ORDERS - 4 if len(layout.kinds) <= FEW else 0):
        yield rng.sample(every, len(every))
