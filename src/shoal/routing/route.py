"""The cheapest route over a model's blocks. Pure: a snapshot in, a route or the missing blocks out."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shoal.errors import Busy, NoCoverage
from shoal.types import PeerId, Span, gaps

UNMEASURED_STEP_S = 0.020
"""Assumed time of a decode step through a span whose node has not measured one."""
HOP_S = 0.002
"""Assumed cost of one more hop where no round trip was measured: half of it, and the work around it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A span on offer, as routing sees it."""

    peer: PeerId
    span: Span
    tokens_free: int
    step_s: float = 0.0
    """Time of one decode step through the whole span; 0 where unknown."""
    rtt_s: float | None = None

    def cost(self, blocks: int) -> float:
        """Seconds that one step is expected to take through ``blocks`` of the span, with the way there."""
        step = self.step_s or UNMEASURED_STEP_S
        way = HOP_S if self.rtt_s is None else HOP_S / 2 + self.rtt_s / 2
        return way + step * blocks / len(self.span)


@dataclass(frozen=True, slots=True)
class Stage:
    """One position in a route: a peer and the blocks that it is to run, inside of what it serves."""

    peer: PeerId
    span: Span


def choose_route(
    candidates: Sequence[Candidate],
    n_blocks: int,
    tokens: int,
    *,
    avoid: Collection[PeerId] = (),
) -> list[Stage]:
    """The route of least expected time for one step, for a session of ``tokens`` tokens.

    Exact, by dynamic programming over the blocks where a span can begin or end: with p peers that is
    O(p²). A peer may be given a part of its span.

    Args:
        avoid: peers that have just refused or failed.

    Raises:
        NoCoverage: some blocks are served by nobody; names them.
        Busy: every block is served, but not with KV for ``tokens`` tokens.
    """
    usable = [c for c in candidates if c.peer not in avoid and c.span.end <= n_blocks]
    roomy = [c for c in usable if c.tokens_free >= tokens]
    cuts = sorted({0, n_blocks, *(c.span.start for c in roomy), *(c.span.end for c in roomy)})
    best: dict[int, tuple[float, list[Stage]]] = {0: (0.0, [])}
    for begin in cuts:
        if begin not in best:
            continue
        so_far, stages = best[begin]
        for candidate in roomy:
            if begin not in candidate.span:
                continue
            for end in (cut for cut in cuts if begin < cut <= candidate.span.end):
                total = so_far + candidate.cost(end - begin)
                if total < best.get(end, (math.inf, []))[0]:
                    best[end] = (total, [*stages, Stage(candidate.peer, Span(begin, end))])
    if n_blocks in best:
        return best[n_blocks][1]
    raise _explain(usable, roomy, n_blocks, tokens)


def _explain(
    usable: Sequence[Candidate], roomy: Sequence[Candidate], n_blocks: int, tokens: int
) -> NoCoverage | Busy:
    missing = gaps((c.span for c in usable), n_blocks)
    if missing:
        named = ", ".join(str(span) for span in missing)
        return NoCoverage(
            f"blocks {named} of {n_blocks} are served by nobody",
            missing=missing,
            check="whether the nodes that serve them are up, and in this swarm",
        )
    full = gaps((c.span for c in roomy), n_blocks)
    free = max(
        (c.tokens_free for c in usable if any(b in c.span for b in (s.start for s in full))), default=0
    )
    return Busy(
        f"the nodes that serve blocks {', '.join(map(str, full))} have no room for {tokens} tokens of KV; "
        f"the most that one has free is {free}",
        tokens_free=free,
        retry_after_s=5.0,
        check="ask for fewer tokens, or come back when sessions have ended",
    )
