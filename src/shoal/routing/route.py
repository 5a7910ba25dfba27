"""The best route over a model's blocks. Pure: a snapshot in, a route or the missing blocks out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from shoal.errors import Busy, NoCoverage, UsageError
from shoal.routing.prices import Candidate, Objective, price
from shoal.routing.shortest_path import Allowed, PeerPath, cheapest
from shoal.types import PeerId, PrivateEnds, Span, gaps


@dataclass(frozen=True, slots=True)
class Stage:
    """One position in a route: a peer and the blocks that it is to run, inside of what it serves."""

    peer: PeerId
    span: Span


def routed_span(own: PrivateEnds, n_blocks: int) -> Span:
    """The blocks of a model that others are to run, where the client runs ``own`` itself.

    Raises:
        UsageError: none are left.
    """
    if own.first + own.last >= n_blocks:
        raise UsageError(
            f"private ends of {own} leave no block of the model's {n_blocks} to the swarm",
            check=f"keep fewer than {n_blocks} blocks; a model that one machine runs needs no swarm",
        )
    return Span(own.first, n_blocks - own.last)


def choose_route(
    candidates: Sequence[Candidate],
    n_blocks: int,
    tokens: int,
    *,
    avoid: Collection[PeerId] = (),
    span: Span | None = None,
    objective: Objective = "latency",
    pinned: Collection[PeerId] = (),
    rng: Random | None = None,
    segments: Sequence[float] | None = None,
    affinity: bytes = b"",
) -> list[Stage]:
    """The best route for a session of ``tokens`` tokens. A peer may be given a part of its span.

    Exact for the prices of :mod:`shoal.routing.prices`, by :mod:`shoal.routing.shortest_path`.

    Args:
        avoid: peers that have just refused or failed.
        span: the blocks to cover; by default all ``n_blocks`` of the model. Others the client may run itself.
        objective: what the route is to be the best for.
        pinned: peers that the user wants: where one of them serves a block, no other peer is asked for it.
        rng: with one, candidates seem up to ``prices.JITTER`` dearer by chance, so that clients who see the
            same swarm do not all take the same route. A route is then at most so much dearer than the best.
        segments, affinity: as of :func:`shoal.routing.prices.price`.

    Raises:
        NoCoverage: some blocks are served by nobody; names them.
        Busy: every block is served, but not with KV for ``tokens`` tokens.
    """
    path, roomy = search(
        candidates,
        n_blocks,
        tokens,
        avoid=avoid,
        span=span,
        objective=objective,
        pinned=pinned,
        rng=rng,
        segments=segments,
        affinity=affinity,
    )
    return stages_of(path, roomy)


def search(
    candidates: Sequence[Candidate],
    n_blocks: int,
    tokens: int,
    *,
    avoid: Collection[PeerId] = (),
    span: Span | None = None,
    objective: Objective = "latency",
    pinned: Collection[PeerId] = (),
    rng: Random | None = None,
    segments: Sequence[float] | None = None,
    affinity: bytes = b"",
) -> tuple[PeerPath, list[Candidate]]:
    """The best path, with the candidates that it counts. Arguments and errors: those of ``choose_route``."""
    usable = [c for c in candidates if c.peer not in avoid and c.span.end <= n_blocks]
    roomy = [c for c in usable if c.tokens_free >= tokens]
    span = span or Span(0, n_blocks)
    allowed = who_may(roomy, span)
    ours = np.array([c.peer in pinned for c in roomy], np.bool_)
    theirs = allowed[:, ours].any(axis=1)
    allowed[np.ix_(theirs, ~ours)] = False
    path = cheapest(price(roomy, objective, rng, segments, affinity), allowed, span.start) if roomy else None
    if path is None:
        raise no_route(usable, roomy, span, tokens, [span])
    return path, roomy


def who_may(candidates: Sequence[Candidate], span: Span) -> Allowed:
    """``[len(span), p]``: which candidate serves which block of ``span``."""
    blocks = np.arange(span.start, span.end)[:, None]
    starts = np.array([c.span.start for c in candidates], np.intp)
    ends = np.array([c.span.end for c in candidates], np.intp)
    return (starts <= blocks) & (blocks < ends)


def stages_of(path: PeerPath, candidates: Sequence[Candidate]) -> list[Stage]:
    """A path as a route."""
    return [Stage(candidates[part.peer].peer, Span(part.start, part.end)) for part in path.parts]


def no_route(
    usable: Sequence[Candidate], roomy: Sequence[Candidate], span: Span, tokens: int, asked: Sequence[Span]
) -> NoCoverage | Busy:
    """Why there is no route: blocks without a peer, peers without room, or one peer for too many things.

    Args:
        span: the blocks that the route is to cover.
        asked: those of them for which peers were looked for.
    """
    missing = _uncovered(usable, span)
    if missing:
        return NoCoverage(
            f"blocks {_listed(missing)} are served by nobody",
            missing=missing,
            check="check that the nodes that serve them are running and in this swarm",
        )
    full = _uncovered(roomy, span)
    if not full:
        return NoCoverage(
            f"blocks {_listed(asked)} are served only by peers that would be asked twice",
            missing=asked,
            check="start another node that serves them: a session uses each peer only once",
        )
    free = max(
        (c.tokens_free for c in usable if any(b in c.span for b in (s.start for s in full))), default=0
    )
    return Busy(
        f"the nodes that serve blocks {_listed(full)} have no room for {tokens} tokens of KV; "
        f"the most that one has free is {free}",
        tokens_free=free,
        retry_after_s=5.0,
        check="ask for fewer tokens, or try again when other sessions have ended",
    )


def _uncovered(candidates: Sequence[Candidate], span: Span) -> list[Span]:
    """The parts of ``span`` that no candidate serves."""
    return gaps((c.span for c in candidates), span.end, span.start)


def _listed(spans: Sequence[Span]) -> str:
    return ", ".join(map(str, spans))
