"""Why a route is the one it is: what each stage costs, and what there would be without it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from shoal.errors import Busy, NoCoverage
from shoal.routing.prices import Candidate, Objective, price
from shoal.routing.route import search
from shoal.routing.shortest_path import PeerPath, Prices
from shoal.types import PeerId, Span, gaps


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage, and the seconds that a decode step is expected to take for it."""

    peer: PeerId
    span: Span
    way_s: float
    """From the peer before, or from the client."""
    waiting_s: float
    """For its turn, with the work of a hop, and for its link to take what it sends on."""
    computing_s: float
    measured: bool
    """Whether its step was measured, or is taken for a usual one."""
    sessions: int
    tokens_free: int
    price: int = 0
    """What a million tokens cost over its blocks, in the smallest unit of its chain's coin."""

    @property
    def seconds(self) -> float:
        return self.way_s + self.waiting_s + self.computing_s


@dataclass(frozen=True, slots=True)
class Alternative:
    """The best route without a peer of the chosen one."""

    without: PeerId
    stages: tuple[tuple[PeerId, Span], ...]
    """Empty when there is none."""
    seconds: float
    why_none: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """A route, explained."""

    objective: Objective
    stages: tuple[StageCost, ...]
    back_s: float
    """The way from the last stage to the client."""
    alternatives: tuple[Alternative, ...]
    """One for each stage, in its order."""
    own: tuple[Span, ...] = ()
    """Blocks that the client runs itself, and of which no cost is counted here."""

    @property
    def price(self) -> int:
        """What a million tokens cost, in the smallest unit of the chain's coin."""
        return sum(stage.price for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Of a decode step, all the way round."""
        return sum(stage.seconds for stage in self.stages) + self.back_s


def explain_route(
    candidates: Sequence[Candidate],
    n_blocks: int,
    tokens: int,
    *,
    span: Span | None = None,
    objective: Objective = "latency",
    pinned: Collection[PeerId] = (),
) -> Choice:
    """The best route with its reasons. Arguments and errors are those of ``choose_route``.

    Whatever the objective, it is told how long a step takes.
    """
    find = partial(search, candidates, n_blocks, tokens, span=span, objective=objective, pinned=pinned)
    path, counted = find()
    stages, back_s = _costs(path, counted)
    alternatives: list[Alternative] = []
    for stage in stages:
        try:
            other, among = find(avoid={stage.peer})
        except (NoCoverage, Busy) as error:
            alternatives.append(Alternative(stage.peer, (), 0.0, error.message))
            continue
        costs, back = _costs(other, among)
        seconds = sum(cost.seconds for cost in costs) + back
        alternatives.append(Alternative(stage.peer, tuple((c.peer, c.span) for c in costs), seconds))
    own = gaps([span], n_blocks) if span else []
    return Choice(objective, stages, back_s, tuple(alternatives), tuple(own))


def _costs(path: PeerPath, counted: Sequence[Candidate]) -> tuple[tuple[StageCost, ...], float]:
    prices = price(counted, "latency", None)
    into = [float(prices.near[path.parts[0].peer])]
    into += [_way_s(prices, a.peer, b.peer) for a, b in pairwise(path.parts)]
    stages = tuple(
        StageCost(
            counted[part.peer].peer,
            Span(part.start, part.end),
            way_s,
            float(prices.stage[part.peer]),
            float(prices.block[part.peer]) * (part.end - part.start),
            counted[part.peer].step_s > 0,
            counted[part.peer].sessions,
            counted[part.peer].tokens_free,
            counted[part.peer].price * (part.end - part.start),
        )
        for part, way_s in zip(path.parts, into, strict=True)
    )
    return stages, float(prices.near[path.parts[-1].peer])


def _way_s(prices: Prices, begin: int, end: int) -> float:
    measured = prices.ways.seconds[(prices.ways.begin == begin) & (prices.ways.end == end)]
    return float(measured[0]) if len(measured) else float(prices.leg[begin] + prices.leg[end])
