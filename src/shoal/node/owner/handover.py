"""Which of a node's sessions other peers can take. Pure: sessions and offers in, sessions out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    """The hops beside this one: a session is at a peer once."""


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
        try:
            stages = choose_route(
                list(left.values()), n_blocks, held.tokens, span=held.span, avoid=held.neighbours
            )
        except (NoCoverage, Busy):
            continue
        found.append(held.session)
        for peer in {stage.peer for stage in stages}:
            left[peer] = replace(left[peer], tokens_free=left[peer].tokens_free - held.tokens)
    return found
