"""What each of many machines should serve of one model. Pure: machines in, spans out.

One route over all machines would be slow: each hop adds a network trip to every token, and one machine that
is lost breaks it for all. So the machines are dealt to as many routes as their memory allows, and each route
is planned by itself (:mod:`shoal.planning.plan`) for its share of the sessions. For the same machines in
fewer and longer routes reads and computes as much, and waits for more trips. What a route does not use serves
too, where the fewest peers are.

Sessions are free to mix the spans of several routes; the figures are those of routes that keep to themselves.
The first machine has the gateway, and with it the ends, for all routes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

from shoal.errors import OutOfResources
from shoal.planning.assign import MOST_WORK
from shoal.planning.pipeline import Pipeline, Workload
from shoal.planning.placement import choose_span, fits_from
from shoal.planning.plan import Plan, make_plan
from shoal.planning.roofline import PIECE, Machine, SpanCost, step_time
from shoal.planning.throughput import ServingPeer
from shoal.types import Span

TRIES = 3
"""Numbers of routes that are planned to the end: the most that find room, and those below."""
WORK = MOST_WORK // 10
"""What the plans of one number of routes may look at together: as :data:`shoal.planning.assign.MOST_WORK`."""
CLOSE = 0.02
"""Speed that is given up for one more route, which makes all shorter and a loss smaller."""


@dataclass(frozen=True, slots=True)
class FleetRoute:
    """Machines that together serve every block once, and what they reach with their share of the sessions."""

    machines: tuple[int, ...]
    """Those that serve, in the order of the hops."""
    plan: Plan


@dataclass(frozen=True, slots=True)
class FleetPlace:
    """What one machine serves, and what that takes of its memory."""

    machine: int
    span: Span
    route: int | None
    """``None``: it is no part of a route, and serves these blocks beside those that are."""
    sessions: int
    weights: float
    """Bytes."""
    kv: float
    """Bytes, of all these sessions."""
    room: int
    """Bytes that the node may take: of the gateway's machine, what the ends leave."""


@dataclass(frozen=True, slots=True)
class UnplacedMachine:
    """A machine that cannot hold one block with its KV."""

    machine: int
    lacking: float
    """Bytes."""


@dataclass(frozen=True)
class FleetPlan:
    """Who serves what. Machines are told by their place among those given."""

    cost: SpanCost
    load: Workload
    """Of all routes together."""
    routes: tuple[FleetRoute, ...]
    places: tuple[FleetPlace, ...]
    left_out: tuple[UnplacedMachine, ...]
    gateway_heads: float
    """Share of the time in which the gateway's machine computes heads, for all routes; above 1 all wait."""
    gateway_serves: float
    """Share in which it would compute the blocks that it serves, if it had the time."""

    @property
    def gateway_busy(self) -> float:
        """Of the gateway's machine; above 1 its own route waits, and above that all."""
        return self.gateway_heads + self.gateway_serves

    @cached_property
    def rate(self) -> float:
        """Tokens in a second, over all routes and of no more sessions than there are."""
        own = sum(route.plan.many.rate for route in self.routes if 0 in route.machines)
        others = sum(route.plan.many.rate for route in self.routes if 0 not in route.machines)
        time_left = max(0.0, 1 - self.gateway_heads)
        if time_left < self.gateway_serves:  # the heads of all go first
            own *= time_left / self.gateway_serves
        planned = sum(route.plan.many.sessions for route in self.routes)
        used = min(1.0, self.load.sessions / planned)  # each route is planned for its share, rounded up
        return used * (own + others) / max(1.0, self.gateway_heads)

    @cached_property
    def peers(self) -> list[int]:
        """By block, how many machines serve it."""
        return [
            sum(place.span.start <= block < place.span.end for place in self.places)
            for block in range(len(self.cost.blocks))
        ]


def place_fleet(machines: Sequence[Machine], cost: SpanCost, load: Workload) -> FleetPlan:
    """Find routes over the machines, and a place for those that no route needs.

    Args:
        machines: the first has the gateway.
        cost: of the whole model.
        load: of all sessions; each route has an equal share of them.

    Raises:
        OutOfResources: they do not hold the model once; says how much memory is lacking.
    """
    Pipeline(machines[:1], cost, load, 1).check_ends()
    found: list[FleetPlan] = []
    for count in range(_most_routes(machines, cost, load), 0, -1):
        dealt = _Dealt(machines, cost, load, count)
        if count > 1 and not dealt.may_fit:
            continue
        try:
            found.append(dealt.planned())
        except OutOfResources:
            if count == 1 and not found:
                raise
        if len(found) == TRIES:
            break
    best = max(plan.rate for plan in found)
    return next(plan for plan in found if plan.rate >= (1 - CLOSE) * best)  # the most routes come first


def _most_routes(machines: Sequence[Machine], cost: SpanCost, load: Workload) -> int:
    """By memory as a whole: each route holds the weights once, and all together the KV once."""
    blocks = sum(block.bytes for block in cost.blocks)
    room = sum(machine.memory for machine in machines) - cost.client.bytes
    by_memory = (room - load.sessions * cost.kv_held(load.context)) // blocks
    return max(1, int(min(len(machines), load.sessions, by_memory)))


def _piece(prompt: int, stages: int) -> int:
    """Of a prompt, whose time is not told here."""
    return min(prompt, PIECE)


class _Dealt:
    """The machines, dealt to ``count`` routes of about as much memory."""

    def __init__(self, machines: Sequence[Machine], cost: SpanCost, load: Workload, count: int) -> None:
        self._machines = machines
        self._cost = cost
        self._whole = load
        self._load = replace(load, sessions=math.ceil(load.sessions / count))
        held = self._load.sessions
        self._held = [block.bytes + held * block.kv_held(load.context) for block in cost.blocks]
        self._rooms = [float(machine.memory) for machine in machines]
        self._rooms[0] -= cost.client.bytes
        self._fits = [fits_from(self._held, max(0.0, room)) for room in self._rooms]
        """By machine and first block, how many blocks it holds from there on."""
        self._groups: list[list[int]] = [[] for _ in range(count)]
        sizes = [0.0] * count
        for machine in sorted(range(len(machines)), key=lambda one: -self._rooms[one]):
            if max(self._fits[machine]):
                group = min(range(count), key=sizes.__getitem__)
                self._groups[group].append(machine)
                sizes[group] += self._rooms[machine]

    @property
    def may_fit(self) -> bool:
        """Whether each route has room for as many blocks as there are, whichever these are."""
        n_blocks = len(self._cost.blocks)
        return all(sum(max(self._fits[one]) for one in group) >= n_blocks for group in self._groups)

    def planned(self) -> FleetPlan:
        """Raises OutOfResources: a route finds no room."""
        plans = [self._plan(group) for group in self._groups]
        routes = tuple(route for route, _, _ in plans)
        places = [place for number, route in enumerate(routes) for place in self._placed(number, route)]
        places += self._beside(places)
        return FleetPlan(
            self._cost,
            self._whole,
            routes,
            tuple(sorted(places, key=lambda place: place.machine)),
            tuple(
                UnplacedMachine(one, min(self._held) - self._rooms[one])
                for one, fits in enumerate(self._fits)
                if not max(fits)
            ),
            sum(heads for _, heads, _ in plans),
            sum(serves for _, _, serves in plans),
        )

    def _plan(self, group: Sequence[int]) -> tuple[FleetRoute, float, float]:
        """A route, and for what share of the time the gateway's machine computes its head and its blocks."""
        ends = math.ceil(self._cost.client.bytes)
        # The gateway's machine is the client of each route. In another route than its own it serves nothing.
        first = self._machines[0] if 0 in group else replace(self._machines[0], memory=ends)
        numbers = [0, *(one for one in sorted(group) if one)]
        machines = [first, *(self._machines[one] for one in numbers[1:])]
        plan = make_plan(machines, self._cost, self._load, _piece, WORK / len(self._groups))
        pipeline = Pipeline(machines, self._cost, self._load, plan.many.groups)
        rounds = pipeline.groups / pipeline.round_s(plan.stages)
        serves = sum(pipeline.busy_s(stage) - pipeline.head_s for stage in plan.stages if stage.machine == 0)
        route = FleetRoute(tuple(numbers[stage.machine] for stage in plan.stages), plan)
        return route, rounds * pipeline.head_s, rounds * serves

    def _placed(self, number: int, route: FleetRoute) -> Iterator[FleetPlace]:
        for machine, stage in zip(route.machines, route.plan.stages, strict=True):
            yield self._place(machine, stage.span, number)

    def _place(self, machine: int, span: Span, route: int | None) -> FleetPlace:
        part, sessions = self._cost.part(span), self._load.sessions
        kv = sessions * part.kv_held(self._load.context)
        return FleetPlace(machine, span, route, sessions, part.bytes, kv, int(self._rooms[machine]))

    def _beside(self, places: Sequence[FleetPlace]) -> Iterator[FleetPlace]:
        """Those that no route uses, the fastest first, each where it helps most."""
        placed = [self._peer(place.machine, place.span) for place in places]
        used = {place.machine for place in places}
        left = [one for one, fits in enumerate(self._fits) if max(fits) and one not in used]
        n_blocks = len(self._cost.blocks)
        every = Span(0, n_blocks)
        chance = Random(0)  # the same machines have the same plan each time
        for machine in sorted(left, key=lambda one: -self._peer(one, every).speed):
            speed = self._peer(machine, every).speed
            span = choose_span(placed, n_blocks, self._fits[machine], speed, chance=chance)
            placed.append(self._peer(machine, span))
            yield self._place(machine, span, None)

    def _peer(self, machine: int, span: Span) -> ServingPeer:
        one, load = self._machines[machine], self._load
        seconds = step_time(one, self._cost.part(span), load.sessions, load.context).seconds
        return ServingPeer(
            span, load.sessions * len(span) / seconds, carries=one.link / max(load.row_bytes, 1.0)
        )
