"""Which blocks go to which machine. Pure: a pipeline in, its stages out.

Spans are contiguous, and each machine has at most one. A dynamic programme goes over how many machines of
each kind are used and how many blocks they cover: machines that are alike need no telling apart, so many of
them are quick. That is exact. Where too many differ, it goes over the machines in a few orders.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from shoal.errors import OutOfResources
from shoal.planning.pipeline import Pipeline, PipelineStage
from shoal.types import Span

MOST_WORK = 1_000_000
"""Spans tried at most in one run of the programme for an exact answer."""
HALVINGS = 6
"""Of the interval in which the best limit of the busiest machine lies."""
SLACK = 1 + 1e-9
"""Sums of floats in another order differ."""

AssignState = tuple[int, ...]
Edges = list[tuple[AssignState, list[tuple[int | None, AssignState]]]]
"""Each state, those after it behind it, with the machines that may take the next blocks (``None``: no one
does) and the state after that."""


def place(pipeline: Pipeline) -> tuple[PipelineStage, ...]:
    """The stages of the shortest round.

    A round is the larger of two times, so the way round is made as short as it can be while no machine is
    busy for longer than a limit; and the limit is searched for by halving.

    Raises:
        OutOfResources: the model does not fit; says how much memory is lacking.
    """
    if pipeline.room(0) < 0:  # what the client runs is placed nowhere else
        raise _lacking(pipeline, 0)
    shortest = _shortest(pipeline, math.inf)
    if pipeline.groups == 1 or pipeline.way_round(shortest) >= pipeline.groups * pipeline.busiest(shortest):
        return shortest
    evenest = _shortest(pipeline, _least_limit(pipeline) * SLACK)
    found = min((shortest, evenest), key=pipeline.round_s)
    low, high = pipeline.busiest(evenest), pipeline.round_s(found) / pipeline.groups
    for _ in range(HALVINGS):
        if high <= low * SLACK:
            break
        limit = (low + high) / 2
        stages = _shortest(pipeline, limit)
        found = min((found, stages), key=pipeline.round_s)
        if pipeline.way_round(stages) > pipeline.groups * limit:
            low = limit
        else:
            high = limit
    return found


def _shortest(pipeline: Pipeline, limit: float) -> tuple[PipelineStage, ...]:
    """The shortest way round on which no machine is busy for more than ``limit`` seconds."""
    tables = [_Table(pipeline, graph, limit) for graph in _graphs(pipeline)]
    best = min(tables, key=lambda table: table.cost)
    if best.cost == math.inf:
        raise _lacking(pipeline, max(table.reach for table in tables))
    return best.stages()


def _least_limit(pipeline: Pipeline) -> float:
    """How long the busiest machine is busy at the least."""
    return min(_Table(pipeline, graph, math.inf, slowest=True).cost for graph in _graphs(pipeline))


@dataclass(slots=True)
class _Table:
    """The least cost of covering the first ``b`` blocks, for every state and ``b``."""

    pipeline: Pipeline
    edges: Edges
    limit: float
    slowest: bool = False
    """The cost is that of the busiest machine, not the sum."""
    cost: float = math.inf
    reach: int = 0
    """The most blocks that can be covered."""
    _came: dict[tuple[AssignState, int], tuple[AssignState, int, int | None]] = field(
        default_factory=dict[tuple[AssignState, int], tuple[AssignState, int, "int | None"]]
    )
    _end: AssignState = ()

    def __post_init__(self) -> None:
        n = len(self.pipeline.cost.blocks)
        start = self.edges[0][0]
        costs: dict[AssignState, list[float]] = {state: [math.inf] * (n + 1) for state, _ in self.edges}
        costs[start][0] = 0.0
        for state, following in self.edges:
            here = costs[state]
            self.reach = max(
                self.reach, max((b for b, cost in enumerate(here) if cost < math.inf), default=0)
            )
            if here[n] < self.cost:
                self.cost, self._end = here[n], state
            for machine, after in following:
                if machine is None:
                    self._skip(here, costs[after], state, after)
                else:
                    self._extend(here, costs[after], state, after, machine)

    def stages(self) -> tuple[PipelineStage, ...]:
        """The stages of the best cover."""
        found: list[PipelineStage] = []
        at = (self._end, len(self.pipeline.cost.blocks))
        while at in self._came:
            state, begin, machine = self._came[at]
            if machine is not None:
                found.append(PipelineStage(machine, Span(begin, at[1])))
            at = (state, begin)
        return tuple(reversed(found))

    def _skip(self, here: list[float], there: list[float], state: AssignState, after: AssignState) -> None:
        for blocks, cost in enumerate(here):
            if cost < there[blocks]:
                there[blocks] = cost
                self._came[after, blocks] = (state, blocks, None)

    def _extend(
        self, here: list[float], there: list[float], state: AssignState, after: AssignState, machine: int
    ) -> None:
        pipeline, n = self.pipeline, len(here) - 1
        computing, room = pipeline.computing[machine], pipeline.room(machine)
        own = 0.0 if machine else pipeline.head.seconds
        for begin, cost in enumerate(here[:n]):
            if cost == math.inf:
                continue
            fits = bisect_right(pipeline.held, pipeline.held[begin] + room) - 1
            for end in range(begin + 1, fits + 1):
                spent = computing[end] - computing[begin]
                link = pipeline.links[machine] if machine or end < n else 0.0
                busy = max(spent + own, link)
                if spent + own > self.limit:
                    break
                if link > self.limit:
                    continue
                total = (
                    max(cost, busy) if self.slowest else cost + spent + pipeline.way_s(machine, begin, end)
                )
                if total < there[end]:
                    there[end] = total
                    self._came[after, end] = (state, begin, machine)


def _graphs(pipeline: Pipeline) -> list[Edges]:
    """One graph that is exact where that is cheap enough, else one for each order that is tried."""
    kinds = _kinds(pipeline)
    n = len(pipeline.cost.blocks)
    orders = _orders(pipeline)
    states = math.prod(min(len(kind), n) + 1 for kind in kinds)
    spans = n * (n + 1) // 2
    if states * len(kinds) * spans <= max(MOST_WORK, len(orders) * len(pipeline.machines) * spans):
        return [_by_counts(kinds, n)]
    return [_by_order(order) for order in orders]


def _kinds(pipeline: Pipeline) -> list[list[int]]:
    """Machines that are alike but for their names, together; the client's is a kind of its own."""
    kinds: list[list[int]] = [[0]]
    for number, machine in enumerate(pipeline.machines[1:], 1):
        for kind in kinds[1:]:
            other = pipeline.machines[kind[0]]
            if _figures(pipeline, kind[0]) == _figures(pipeline, number) and machine.memory == other.memory:
                kind.append(number)
                break
        else:
            kinds.append([number])
    return kinds


def _figures(pipeline: Pipeline, number: int) -> tuple[float, ...]:
    machine = pipeline.machines[number]
    return machine.bandwidth, machine.link, machine.rtt_s, pipeline.computing[number][-1]


def _by_counts(kinds: Sequence[Sequence[int]], n_blocks: int) -> Edges:
    used = itertools.product(*(range(min(len(kind), n_blocks) + 1) for kind in kinds))

    def following(state: AssignState) -> Iterator[tuple[int, AssignState]]:
        for number, kind in enumerate(kinds):
            if state[number] < min(len(kind), n_blocks):
                yield kind[state[number]], (*state[:number], state[number] + 1, *state[number + 1 :])

    return [(state, list(following(state))) for state in used]


def _by_order(order: Sequence[int]) -> Edges:
    edges: Edges = [((i,), [(machine, (i + 1,)), (None, (i + 1,))]) for i, machine in enumerate(order)]
    return [*edges, ((len(order),), [])]


def _orders(pipeline: Pipeline) -> list[list[int]]:
    """As given; the fastest first; the nearest first; the largest first."""
    machines = range(len(pipeline.machines))
    return [
        list(machines),
        sorted(machines, key=lambda i: pipeline.computing[i][-1]),
        sorted(machines, key=lambda i: (pipeline.way_s(i, 1, 1), pipeline.computing[i][-1])),
        sorted(machines, key=lambda i: -pipeline.room(i)),
    ]


def _lacking(pipeline: Pipeline, reach: int) -> OutOfResources:
    """What to say when only the first ``reach`` blocks find room."""
    n, load = len(pipeline.cost.blocks), pipeline.load
    if pipeline.room(0) < 0:
        first = pipeline.machines[0].name
        ends = pipeline.machines[0].memory - pipeline.room(0)
        return OutOfResources(
            f"the ends take {ends / 2**30:.2f} GiB, and {first}, which has the client, lacks "
            f"{-pipeline.room(0) / 2**30:.2f} GiB of them",
            check="give the machine with the most memory first, or a smaller --format",
        )
    missing = pipeline.held[n] - pipeline.held[reach]
    return OutOfResources(
        f"{missing / 2**30:.2f} GiB of memory are lacking: with KV for {load.sessions} × {load.context} "
        f"tokens, blocks {reach}:{n} of {n} find no room",
        check="add machines or memory, use a smaller --format or --kv int8, or lower --sessions or --context",
    )
