"""Which span a node serves, and when it should move. Pure: who is where in, a span out.

A node takes as many blocks as fit, for a longer span is never worse. Of all such windows it takes

1. the one that leaves the fewest blocks without a peer,
2. with which the swarm carries the most tokens in a second (:mod:`shoal.routing.throughput`), or nearly,
3. the one that leaves the fewest blocks with a single peer, then the one whose weakest block is the weakest,
   each peer's speed divided over its span (the rule of Petals: Borzunov et al. 2023, section 3.2).

A node that serves moves when that covers a block that nobody serves, or raises the throughput by ``GAIN``, or
gives a single block a second peer at no cost of throughput. No move uncovers a block. In a small swarm a node
also moves when that, with one move of another node after it, raises the throughput by ``GAIN``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from shoal.routing.throughput import SLACK, Rates, ServingPeer, crowds, least_ratio
from shoal.types import Span

CLOSE = 0.02
"""Throughput that is given up for a block that would have a single peer."""
GAIN = 0.05
"""What the swarm's throughput must gain for a node to move: weights are read again, and caches are lost."""
DIP = 0.5
"""What the first of two moves must leave of the throughput."""
PAIRS = 60
"""Pairs of moves, by this node's windows and other peers, that are looked at; none where there are more."""

Windows = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Move:
    """A better place, and what it gains."""

    span: Span
    why: str


def choose_span(placed: Sequence[ServingPeer], n_blocks: int, fits: int, speed: float = 0.0) -> Span:
    """The span of at most ``fits`` blocks that a joining node should serve.

    Args:
        placed: who serves what; those that are about to move, where they will be.
        fits: how many blocks it has memory for.
        speed: blocks in a second that it computes; 0 if unknown, then what is usual here.

    Raises:
        ValueError: not one block fits.
    """
    if fits < 1:
        raise ValueError("not one block fits")
    options = _Options(placed, n_blocks, fits, speed)
    return options.span(options.best(options.holes == options.holes.min()))


def choose_move(placed: Sequence[ServingPeer], here: ServingPeer, n_blocks: int) -> Move | None:
    """Where a node that serves ``here`` should serve instead; ``None`` to stay.

    Args:
        placed: the others; those that are about to move, where they will be.
    """
    options = _Options(placed, n_blocks, here.fits, here.speed)
    now = _Options([*placed, here], n_blocks, 0, 0.0)
    holes, single, rate = int(now.holes[0]), int(now.single[0]), float(now.rate[0])
    covering = options.holes < holes
    if covering.any():
        best = options.best(covering & (options.holes == options.holes.min()))
        return Move(options.span(best), f"{holes - options.holes[best]} blocks are served by nobody")
    whole = options.holes == holes
    faster = whole & (options.rate > (1 + GAIN) * rate)
    if faster.any():
        best = options.best(faster)
        return Move(options.span(best), f"the swarm carries {options.rate[best] / rate - 1:.0%} more tokens")
    together = _two_moves(placed, here, options, rate) if rate else None
    if together is not None:
        return together
    safer = whole & (options.single < single) & (options.rate >= (1 - SLACK) * rate)
    if safer.any():
        best = options.best(safer)
        return Move(options.span(best), f"{single - options.single[best]} fewer blocks have a single peer")
    return None


def _two_moves(
    placed: Sequence[ServingPeer], here: ServingPeer, options: _Options, rate: float
) -> Move | None:
    """The first of two moves that raise the throughput together, where no move of anybody does alone."""
    if len(options.rate) * sum(peer.fits > 0 for peer in placed) > PAIRS:
        return None
    enough = (1 + GAIN) * rate
    if any(reached > enough for reached in _reached(placed, here, options.n_blocks)):
        return None  # one of them will move
    found = [
        (max(_reached(placed, replace(here, span=span), options.n_blocks), default=0.0), -span.start, span)
        for window in np.flatnonzero(options.rate >= DIP * rate)
        if (span := options.span(int(window))) != here.span
    ]
    reached, _, span = max(found, default=(0.0, 0, here.span))
    if reached <= enough:
        return None
    return Move(
        span, f"when another peer moves after it, the swarm carries {reached / rate - 1:.0%} more tokens"
    )


def _reached(placed: Sequence[ServingPeer], here: ServingPeer, n_blocks: int) -> Iterator[float]:
    """The throughput after the best move of each of the others."""
    for number, other in enumerate(placed):
        if other.fits:
            rest = [*placed[:number], *placed[number + 1 :], here]
            yield float(_Options(rest, n_blocks, other.fits, other.speed).rate.max())


class _Options:
    """What becomes of the swarm with a node in each window, by the window's first block.

    With ``fits`` 0 there is one window, and it is empty: the swarm as it is.
    """

    def __init__(self, placed: Sequence[ServingPeer], n_blocks: int, fits: int, speed: float) -> None:
        self.n_blocks = n_blocks
        self._length = min(fits, n_blocks)
        starts = np.arange(n_blocks - self._length + 1 if fits else 1)[:, None]
        blocks = np.arange(n_blocks)
        inside = (starts <= blocks) & (blocks < starts + self._length)
        serving, share = np.zeros(n_blocks, np.intp), np.zeros(n_blocks)
        for peer in placed:
            serving[peer.span.start : peer.span.end] += 1
            share[peer.span.start : peer.span.end] += peer.speed / len(peer.span)
        after = serving + inside
        self.holes = (after == 0).sum(axis=1)
        self.single = (after == 1).sum(axis=1)
        self.rate = self._rates(crowds(placed, n_blocks), inside, speed or _usual(placed))
        self._weakest = np.sort(np.where(inside, share, np.inf), axis=1).round(9).tolist()

    def _rates(self, crowd: Rates, inside: Windows, speed: float) -> Rates:
        """Of any set of blocks, either the node serves one too, or all lie outside of its window."""
        rate = least_ratio(crowd, ~inside)
        if self._length:
            rate = np.minimum(rate, least_ratio(crowd, np.ones((1, self.n_blocks), np.bool_), speed)[0])
        return rate

    def best(self, among: Windows) -> int:
        """The best window of these."""
        close = among & (self.rate >= (1 - CLOSE) * self.rate[among].max())
        return min(map(int, np.flatnonzero(close)), key=lambda w: (self.single[w], self._weakest[w], w))

    def span(self, window: int) -> Span:
        return Span(window, window + self._length)


def _usual(placed: Sequence[ServingPeer]) -> float:
    return float(np.median([peer.speed for peer in placed])) if placed else 1.0
