"""A route chosen among some of many candidates, and among others where that pays. Pure.

Weighing hundreds of peers for each session takes a client longer than a step of it may last, and nearly all
of them are dearer than others of the same blocks. So of many candidates ``SAMPLED`` are looked at: of each part
of the model those that look cheapest there, and others by chance. The peers of the route that comes of it are
looked at again, among others, as long as that makes it cheaper by ``PAYS``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random
from statistics import median

from shoal.errors import Busy, NoCoverage
from shoal.routing.prices import HOP_S, UNMEASURED_BLOCK_S, UNMEASURED_RTT_S, Candidate
from shoal.routing.route import Stage
from shoal.types import PeerId

SAMPLED = 96
"""Candidates that are looked at, at most."""
BEST = 4
"""Of each part of the model, so many that look cheapest."""
PART_BLOCKS = 4
"""A part of the model: whoever serves its middle is compared with others who do."""
ROUNDS = 3
PAYS = 0.03
"""What another look must have saved for one more."""

Choose = Callable[[Sequence[Candidate]], list[Stage]]


def choose_among(
    candidates: Sequence[Candidate],
    choose: Choose,
    chance: Random,
    keep: Collection[PeerId] = (),
    *,
    most: int = SAMPLED,
) -> list[Stage]:
    """The route that ``choose`` makes of samples of ``candidates``; of all of them, where they are few.

    Args:
        choose: makes a route of candidates, as :func:`shoal.routing.route.choose_route` does.
        keep: peers that are always among them.
        most: candidates in a sample.

    Raises:
        NoCoverage, Busy: there is no route of all the candidates either.
    """
    if len(candidates) <= most:
        return choose(candidates)
    looks = {candidate.peer: cost for candidate, cost in zip(candidates, _looks(candidates), strict=True)}
    best = _best(candidates, looks)
    route: list[Stage] = []
    cost = float("inf")
    for _ in range(ROUNDS):
        always = {*keep, *best, *(stage.peer for stage in route)}
        try:
            found = choose(_sample(candidates, always, most, chance))
        except (NoCoverage, Busy):
            return route or choose(candidates)
        found_cost = _cost(found, looks)
        if found_cost < cost:
            route, saved, cost = found, cost - found_cost, found_cost
            if saved > PAYS * cost:
                continue
        break
    return route


def _sample(
    candidates: Sequence[Candidate], always: Collection[PeerId], most: int, chance: Random
) -> list[Candidate]:
    others = [index for index, one in enumerate(candidates) if one.peer not in always]
    count = max(0, min(len(others), most - (len(candidates) - len(others))))
    drawn = set(chance.sample(others, count))
    return [one for index, one in enumerate(candidates) if index in drawn or one.peer in always]


def _looks(candidates: Sequence[Candidate]) -> list[float]:
    """What a block seems to cost at each, in seconds: computing, and its share of the way there."""
    rtts = [one.rtt_s for one in candidates if one.rtt_s is not None]
    steps = [one.step_s / len(one.span) for one in candidates if one.step_s]
    rtt_s, block_s = (
        (median(rtts) if rtts else UNMEASURED_RTT_S),
        (median(steps) if steps else UNMEASURED_BLOCK_S),
    )
    return [
        (
            (one.step_s / len(one.span) or block_s)
            + (HOP_S + one.wait_s + one.sending_s + (rtt_s if one.rtt_s is None else one.rtt_s) / 2)
            / len(one.span)
        )
        / one.trust
        for one in candidates
    ]


def _best(candidates: Sequence[Candidate], looks: Mapping[PeerId, float]) -> set[PeerId]:
    """Of each part of the model those that look cheapest."""
    by_part: dict[int, list[tuple[float, PeerId]]] = {}
    for one in candidates:
        for part in range(one.span.start // PART_BLOCKS, -(-one.span.end // PART_BLOCKS)):
            by_part.setdefault(part, []).append((looks[one.peer], one.peer))
    return {peer for found in by_part.values() for _, peer in sorted(found)[:BEST]}


def _cost(route: Sequence[Stage], looks: Mapping[PeerId, float]) -> float:
    return sum(looks[stage.peer] * len(stage.span) for stage in route)
