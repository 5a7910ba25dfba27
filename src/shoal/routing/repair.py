"""What to put in place of lost stages, the others kept. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import groupby

from shoal.routing.prices import Candidate, price
from shoal.routing.route import Stage, no_route, stages_of, who_may
from shoal.routing.shortest_path import cheapest
from shoal.types import PeerId, Span

Repair = tuple[int, int, list[Stage]]
"""The first and the last index of a run of lost stages, and the stages that take its blocks."""


def choose_repair(
    candidates: Sequence[Candidate],
    route: Sequence[Stage],
    lost: Collection[int],
    tokens: int,
    *,
    avoid: Collection[PeerId] = (),
) -> list[Repair]:
    """The cheapest stages in place of the lost ones, for a session of ``tokens`` tokens.

    Exact for all runs of lost stages together, with the ways to and from the stages that are kept. A session
    is at a peer once, so peers of stages that are kept take no more. When that is why there is no repair, a
    whole new route (``choose_route``) may still be found.

    Args:
        candidates: peers of kept stages may be among them or not: they have their room already.
        route: covers the model, or the span of it that the session needs.
        lost: indexes of stages; at least one.
        avoid: peers that are not to be asked, above all those that were lost: they are no exception here.

    Returns:
        For each run of neighbouring lost indexes, in order.

    Raises:
        NoCoverage: nobody else serves some of the lost blocks; names them.
        Busy: somebody does, but without KV for ``tokens`` tokens.
    """
    span = Span(route[0].span.start, route[-1].span.end)
    runs = _runs(lost)
    asked = [Span(route[first].span.start, route[last].span.end) for first, last in runs]
    kept = [stage for index, stage in enumerate(route) if index not in lost]
    known = {c.peer: c for c in candidates}
    staying = [_staying(stage, known.get(stage.peer), tokens) for stage in kept]
    others = known.keys() - {stage.peer for stage in kept} - set(avoid)
    usable = [*staying, *(c for c in candidates if c.peer in others)]
    roomy = [c for c in usable if c.tokens_free >= tokens]
    allowed = who_may(roomy, span)
    for number, stage in enumerate(kept):
        rows = slice(stage.span.start - span.start, stage.span.end - span.start)
        allowed[rows] = False
        allowed[rows, number] = True
    path = cheapest(price(roomy, "latency", None), allowed, span.start) if roomy else None
    if path is None:
        raise no_route(usable, roomy, span, tokens, asked)
    found = stages_of(path, roomy)
    return [
        (first, last, [s for s in found if lost_span.start <= s.span.start < lost_span.end])
        for (first, last), lost_span in zip(runs, asked, strict=True)
    ]


def _staying(stage: Stage, known: Candidate | None, tokens: int) -> Candidate:
    """A kept stage as a candidate for its own blocks alone. What it costs is the same for every repair."""
    if known is None:
        return Candidate(stage.peer, stage.span, tokens)
    step_s = known.step_s * len(stage.span) / len(known.span)
    return replace(known, span=stage.span, tokens_free=tokens, step_s=step_s)


def _runs(indexes: Collection[int]) -> list[tuple[int, int]]:
    """Neighbouring indexes together, each run by its first and its last."""
    runs: list[tuple[int, int]] = []
    for _, group in groupby(enumerate(sorted(set(indexes))), key=lambda pair: pair[1] - pair[0]):
        run = [index for _, index in group]
        runs.append((run[0], run[-1]))
    return runs
