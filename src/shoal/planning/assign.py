"""Which blocks go to which machine. Pure: a ring in, its stages out.

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
from shoal.planning.pipeline import Ring, Stage
from shoal.types import Span

MOST_WORK = 1_000_000
"""Spans tried at most in one run of the programme for an exact answer."""
HALVINGS = 6
"""Of the interval in which the best limit of the busiest machine lies."""
SLACK = 1 + 1e-9
"""Sums of floats in another order differ."""

State = tuple[int, ...]
Edges = list[tuple[State, list[tuple[int | None, State]]]]
"""Each state, those after it behind it, with the machines that may take the next blocks (``None``: no one
does) and the state after that."""


def place(ring: Ring) -> tuple[Stage, ...]:
    """The stages of the shortest round.

    A round is the larger of two times, so the way round is made as short as it can be while no machine is
    busy for longer than a limit; and the limit is searched for by halving.

    Raises:
        OutOfResources: the model does not fit; says how much memory is lacking.
    """
    shortest = _shortest(ring, math.inf)
    if ring.groups == 1 or ring.way_round(shortest) >= ring.groups * ring.busiest(shortest):
        return shortest
    evenest = _shortest(ring, _least_limit(ring) * SLACK)
    found = min((shortest, evenest), key=ring.round_s)
    low, high = ring.busiest(evenest), ring.round_s(found) / ring.groups
    for _ in range(HALVINGS):
        if high <= low * SLACK:
            break
        limit = (low + high) / 2
        stages = _shortest(ring, limit)
        found = min((found, stages), key=ring.round_s)
        if ring.way_round(stages) > ring.groups * limit:
            low = limit
        else:
            high = limit
    return found


def _shortest(ring: Ring, limit: float) -> tuple[Stage, ...]:
    """The shortest way round on which no machine is busy for more than ``limit`` seconds."""
    tables = [_Table(ring, graph, limit) for graph in _graphs(ring)]
    best = min(tables, key=lambda table: table.cost)
    if best.cost == math.inf:
        raise _lacking(ring, max(table.reach for table in tables))
    return best.stages()


def _least_limit(ring: Ring) -> float:
    """How long the busiest machine is busy at the least."""
    return min(_Table(ring, graph, math.inf, slowest=True).cost for graph in _graphs(ring))


@dataclass(slots=True)
class _Table:
    """The least cost of covering the first ``b`` blocks, for every state and ``b``."""

    ring: Ring
    edges: Edges
    limit: float
    slowest: bool = False
    """The cost is that of the busiest machine, not the sum."""
    cost: float = math.inf
    reach: int = 0
    """The most blocks that can be covered."""
    _came: dict[tuple[State, int], tuple[State, int, int | None]] = field(
        default_factory=dict[tuple[State, int], tuple[State, int, "int | None"]]
    )
    _end: State = ()

    def __post_init__(self) -> None:
        n = len(self.ring.cost.blocks)
        start = self.edges[0][0]
        costs: dict[State, list[float]] = {state: [math.inf] * (n + 1) for state, _ in self.edges}
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

    def stages(self) -> tuple[Stage, ...]:
        """The stages of the best cover."""
        found: list[Stage] = []
        at = (self._end, len(self.ring.cost.blocks))
        while at in self._came:
            state, begin, machine = self._came[at]
            if machine is not None:
                found.append(Stage(machine, Span(begin, at[1])))
            at = (state, begin)
        return tuple(reversed(found))

    def _skip(self, here: list[float], there: list[float], state: State, after: State) -> None:
        for blocks, cost in enumerate(here):
            if cost < there[blocks]:
                there[blocks] = cost
                self._came[after, blocks] = (state, blocks, None)

    def _extend(
        self, here: list[float], there: list[float], state: State, after: State, machine: int
    ) -> None:
        ring, n = self.ring, len(here) - 1
        computing, room = ring.computing[machine], ring.room(machine)
        own = 0.0 if machine else ring.head.seconds
        for begin, cost in enumerate(here[:n]):
            if cost == math.inf:
                continue
            fits = bisect_right(ring.held, ring.held[begin] + room) - 1
            for end in range(begin + 1, fits + 1):
                spent = computing[end] - computing[begin]
                link = ring.links[machine] if machine or end < n else 0.0
                busy = max(spent + own, link)
                if spent + own > self.limit:
                    break
                if link > self.limit:
                    continue
                total = max(cost, busy) if self.slowest else cost + spent + ring.way_s(machine, begin, end)
                if total < there[end]:
                    there[end] = total
                    self._came[after, end] = (state, begin, machine)


def _graphs(ring: Ring) -> list[Edges]:
    """One graph that is exact where that is cheap enough, else one for each order that is tried."""
    kinds = _kinds(ring)
    n = len(ring.cost.blocks)
    orders = _orders(ring)
    states = math.prod(min(len(kind), n) + 1 for kind in kinds)
    spans = n * (n + 1) // 2
    if states * len(kinds) * spans <= max(MOST_WORK, len(orders) * len(ring.machines) * spans):
        return [_by_counts(kinds, n)]
    return [_by_order(order) for order in orders]


def _kinds(ring: Ring) -> list[list[int]]:
    """Machines that are alike but for their names, together; the client's is a kind of its own."""
    kinds: list[list[int]] = [[0]]
    for number, machine in enumerate(ring.machines[1:], 1):
        for kind in kinds[1:]:
            other = ring.machines[kind[0]]
            if _figures(ring, kind[0]) == _figures(ring, number) and machine.memory == other.memory:
                kind.append(number)
                break
        else:
            kinds.append([number])
    return kinds


def _figures(ring: Ring, number: int) -> tuple[float, ...]:
    machine = ring.machines[number]
    return machine.bandwidth, machine.link, machine.rtt_s, ring.computing[number][-1]


def _by_counts(kinds: Sequence[Sequence[int]], n_blocks: int) -> Edges:
    used = itertools.product(*(range(min(len(kind), n_blocks) + 1) for kind in kinds))

    def following(state: State) -> Iterator[tuple[int, State]]:
        for number, kind in enumerate(kinds):
            if state[number] < min(len(kind), n_blocks):
                yield kind[state[number]], (*state[:number], state[number] + 1, *state[number + 1 :])

    return [(state, list(following(state))) for state in used]


def _by_order(order: Sequence[int]) -> Edges:
    edges: Edges = [((i,), [(machine, (i + 1,)), (None, (i + 1,))]) for i, machine in enumerate(order)]
    return [*edges, ((len(order),), [])]


def _orders(ring: Ring) -> list[list[int]]:
    """As given; the fastest first; the nearest first; the largest first."""
    machines = range(len(ring.machines))
    return [
        list(machines),
        sorted(machines, key=lambda i: ring.computing[i][-1]),
        sorted(machines, key=lambda i: (ring.way_s(i, 1, 1), ring.computing[i][-1])),
        sorted(machines, key=lambda i: -ring.room(i)),
    ]


def _lacking(ring: Ring, reach: int) -> OutOfResources:
    """What to say when only the first ``reach`` blocks find room."""
    n, load = len(ring.cost.blocks), ring.load
    if ring.room(0) < 0:
        first = ring.machines[0].name
        return OutOfResources(
            f"the ends take {(ring.cost.head.bytes if ring.cost.head else 0) / 2**30:.2f} GiB, and {first}, "
            f"which has the client, lacks {-ring.room(0) / 2**30:.2f} GiB of them",
            check="give the machine with the most memory first, or a smaller --format",
        )
    missing = ring.held[n] - ring.held[reach]
    return OutOfResources(
        f"{missing / 2**30:.2f} GiB of memory are lacking: with KV for {load.sessions} × {load.context} "
        f"tokens, blocks {reach}:{n} of {n} find no room",
        check="more machines or memory, a smaller --format, --kv int8, or fewer --sessions or --context",
    )
