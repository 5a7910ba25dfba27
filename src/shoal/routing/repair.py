"""Who takes the place of lost hops. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from shoal.errors import NoCoverage
from shoal.routing.route import Candidate, Stage, choose_route
from shoal.types import PeerId, Span


def choose_repair(
    candidates: Sequence[Candidate],
    route: Sequence[Stage],
    lost: Collection[int],
    tokens: int,
    *,
    avoid: Collection[PeerId] = (),
) -> list[tuple[int, int, list[Stage]]]:
    """For each run ``[first, last]`` of lost stages, the cheapest stages that cover its blocks."""
    kept = {stage.peer for i, stage in enumerate(route) if i not in lost}
    found: list[tuple[int, int, list[Stage]]] = []
    runs: list[list[int]] = []
    for index in sorted(lost):
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    for run in runs:
        start, end = route[run[0]].span.start, route[run[-1]].span.end
        shifted = [
            replace(c, span=Span(max(c.span.start, start) - start, min(c.span.end, end) - start))
            for c in candidates
            if c.span.start < end and c.span.end > start
        ]
        try:
            stages = choose_route(shifted, end - start, tokens, avoid={*avoid, *kept})
        except NoCoverage as error:
            error.missing = tuple(Span(s.start + start, s.end + start) for s in error.missing)
            raise
        new = [Stage(s.peer, Span(s.span.start + start, s.span.end + start)) for s in stages]
        found.append((run[0], run[-1], new))
    return found
