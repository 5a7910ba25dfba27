"""Which of a node's sessions other peers can take. Pure: sessions and offers in, sessions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from shoal.errors import Busy, NoCoverage
from shoal.routing.prices import Candidate
from shoal.routing.route import choose_route
from shoal.types import PeerId, SessionId, Span


@dataclass(frozen=True, slots=True)
class HeldSession:
    """A session as far as another peer would have to take it."""

    session: SessionId
    span: Span
    tokens: int
    """KV that it reserves."""
    neighbours: frozenset[PeerId]
    """The hops beside this one."""


def takable(
    sessions: Sequence[HeldSession], candidates: Sequence[Candidate], n_blocks: int
) -> list[SessionId]:
    """Sessions for which others have room, all of these together.

    Args:
        candidates: the other peers that serve the model in this format.
    """
    left = {candidate.peer: candidate for candidate in candidates}
    found: list[SessionId] = []
    for held in sessions:
        takers = _takers(held, left, n_blocks)
        if takers:
            found.append(held.session)
        for peer in takers:
            left[peer] = replace(left[peer], tokens_free=left[peer].tokens_free - held.tokens)
    return found


def _takers(held: HeldSession, candidates: Mapping[PeerId, Candidate], n_blocks: int) -> set[PeerId]:
    """Who would take a session between them; nobody where not all of its blocks find somebody."""
    try:
        stages = choose_route(
            list(candidates.values()), n_blocks, held.tokens, span=held.span, avoid=held.neighbours
        )
        return {stage.peer for stage in stages}
    except (NoCoverage, Busy):
        # A session is at a peer once: a hop beside this one takes it only with its own blocks, in one span.
        beside = [candidates[peer] for peer in held.neighbours if peer in candidates]
        whole = (
            c.peer
            for c in beside
            if c.span.start <= held.span.start
            and held.span.end <= c.span.end
            and c.tokens_free >= held.tokens
        )
        return set(islice(whole, 1))
