"""Where a node of a large swarm serves: where its blocks are served least. Pure.

With many peers one node changes what all of them carry by less than anything worth a move, and yet a thousand
that chose the same place can halve it. So what counts is how even the swarm is: the speed that each block
has, every peer's divided over its span. Who joins takes a place by chance, the more likely the more it falls
short of the rest, for others who see the same swarm choose at the same moment. Who serves moves when its
blocks have ``EVEN`` more than those that it would go to have with it. A move then makes the swarm more even,
whoever else stays, so moves come to an end.

What peers announce is their word. So none counts for more than ``BELIEVED`` times the usual one, and a node
leaves no block to others only because they say that they are fast: ``KEEPERS`` of usual speed must stay.

All of it takes O(peers + blocks), where weighing sets of blocks (:mod:`shoal.planning.throughput`) takes more
than a node should spend on every look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import numpy.typing as npt

from shoal.planning.throughput import Rates, ServingPeer, bound_speed
from shoal.types import Span

MANY = 64
"""Peers of a model from which on the swarm is a large one."""
EVEN = 0.15
"""How much more the blocks of a node must have than those that it moves to: chance makes as much of them."""
DOUBT = 3.0
"""How many times the standard error of what a part of the peers says of the rest a difference must be."""
CLOSE = 0.03
"""Of what windows are served: so close ones are alike."""
ANYWHERE = 0.1
"""How much less a block must have than the mean, in shares of that, to be twice as likely as any other."""
LOOKERS = 64
"""Peers of a model up to which each looks as often as it may; of more as many look in a minute, or all would
follow what the others have seen, too."""
HELPERS = 8
"""Peers that look at once when a block is served by nobody, at the mean; others follow if it stays so."""

BELIEVED = 4.0
"""A peer is believed to be this many times as fast as the usual one, not more. Who is so many times slower
keeps no block."""
KEEPERS = 2
"""Peers of usual speed that a block must keep for a node to leave it, except for one that nobody serves."""

Counts = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class LevelMove:
    """A place where more is lacking."""

    span: Span
    why: str
    needed: bool
    """Whether blocks are served by nobody, or by a single peer: else it only makes the swarm more even."""


def look_period_s(every_s: float, peers: int) -> float:
    """Seconds from one look of a node at its place to the next, where ``peers`` peers serve the model."""
    return every_s * max(1.0, peers / LOOKERS)


def looks_at_once(peers: int, chance: Random) -> bool:
    """Whether one of ``peers`` peers who see that a block is served by nobody is to look at once."""
    return chance.random() < HELPERS / max(1, peers)


def most_believed(placed: Sequence[ServingPeer]) -> float:
    """The blocks in a second that a peer is believed to compute at most, where these serve the model."""
    return BELIEVED * float(np.median([peer.useful_speed for peer in placed])) if placed else 0.0


def believed(placed: Sequence[ServingPeer]) -> list[ServingPeer]:
    """The peers, none faster than it is believed to be."""
    most = most_believed(placed)
    return [replace(peer, speed=most) if peer.useful_speed > most else peer for peer in placed]


class BlockLevels:
    """What each block has: peers, those of usual speed, and their speed as far as it is believed."""

    def __init__(self, placed: Sequence[ServingPeer], n_blocks: int, work: Sequence[float] | None) -> None:
        starts = np.array([peer.span.start for peer in placed], np.intp)
        ends = np.minimum(np.array([peer.span.end for peer in placed], np.intp), n_blocks)
        said = np.array([peer.useful_speed for peer in placed], np.float64)
        most = most_believed(placed)
        self.rates: Rates = np.minimum(said, most) / [len(peer.span) for peer in placed]
        """Of each peer, for each of its blocks."""
        usual = (said <= most) & (said >= most / BELIEVED**2)
        speed = np.zeros(n_blocks + 1)
        peers, keepers = np.zeros(n_blocks + 1, np.intp), np.zeros(n_blocks + 1, np.intp)
        for edges, sign in ((starts, 1), (ends, -1)):
            np.add.at(speed, edges, sign * self.rates)
            np.add.at(peers, edges, sign)
            np.add.at(keepers, edges, sign * usual)
        self.work: Rates = np.ones(n_blocks) if work is None else np.asarray(work, np.float64)
        self.peers: Counts = np.cumsum(peers)[:-1]
        self.keepers: Counts = np.cumsum(keepers)[:-1]
        """Those of usual speed."""
        # Sums of floats leave crumbs where nobody is.
        self.speed: Rates = np.where(self.peers, np.maximum(np.cumsum(speed)[:-1], 0.0), 0.0) / self.work

    def means(self, values: Rates | npt.NDArray[np.bool_], windows: Sequence[Span]) -> Rates:
        """The mean of ``values`` over each window."""
        sums = np.concatenate([[0.0], np.cumsum(values)])
        starts, ends = _edges(windows)
        return (sums[ends] - sums[starts]) / (ends - starts)

    def counts(self, wanted: npt.NDArray[np.bool_], windows: Sequence[Span]) -> Counts:
        """How many of the wanted blocks each window has."""
        sums = np.concatenate([[0], np.cumsum(wanted)])
        starts, ends = _edges(windows)
        return sums[ends] - sums[starts]


def level_span(
    placed: Sequence[ServingPeer],
    n_blocks: int,
    windows: Sequence[Span],
    work: Sequence[float] | None,
    chance: Random,
) -> Span:
    """The window that a joining node should serve, by chance of those that most blocks lack."""
    levels = BlockLevels(placed, n_blocks, work)
    holes = levels.counts(levels.peers == 0, windows)
    single = levels.counts(levels.keepers < KEEPERS, windows)
    among = np.flatnonzero(holes == holes.max()) if holes.any() else np.flatnonzero(single == single.max())
    # A block by chance, then one of the windows that have it: the first and the last are in few.
    usual = levels.speed.mean()
    short = np.maximum(0.0, usual - levels.speed) + ANYWHERE * max(usual, 1e-12)
    close = [windows[index] for index in among.tolist()]
    starts, ends = _edges(close)
    blocks = np.arange(n_blocks)
    within = (starts[:, None] <= blocks) & (blocks < ends[:, None])
    block = _draw(np.where(within.any(axis=0), short, 0.0), chance)
    lacks = levels.means(short, close)
    return close[_draw(np.where(within[:, block], lacks, 0.0), chance)]


def level_move(
    placed: Sequence[ServingPeer],
    here: ServingPeer,
    n_blocks: int,
    windows: Sequence[Span],
    work: Sequence[float] | None,
    chance: Random,
    peers: int = 0,
    keeping: Sequence[ServingPeer] | None = None,
) -> LevelMove | None:
    """Where a node should move, and why; ``None`` to stay. No block is left to less than ``KEEPERS``, nor for
    one that nobody serves to none of usual speed.

    Args:
        peers: that serve the model; where ``placed`` are fewer, they are taken for some of them drawn by
            chance.
        keeping: the others who serve now where they are to stay; by default all who are placed.
    """
    levels = BlockLevels(placed, n_blocks, work)
    left = levels if keeping is None else BlockLevels(keeping, n_blocks, work)
    inside = np.zeros(n_blocks, np.bool_)
    inside[here.span.start : here.span.end] = True
    alone = inside & (left.keepers == 0)
    allowed = levels.counts(alone, windows) == alone.sum()
    if not allowed.any():
        return None
    holes = levels.counts((levels.peers == 0) & ~inside, windows) * allowed
    if holes.any():
        best = np.flatnonzero(holes == holes.max())
        span = windows[int(best[chance.randrange(len(best))])]
        return LevelMove(span, f"{holes.max()} blocks are served by nobody", needed=True)
    speeds = np.array([bound_speed(here.speed, here.carries, window) / len(window) for window in windows])
    there = levels.means(levels.speed, windows) + speeds * levels.means(1 / levels.work, windows)
    stay = _level_with(levels, here)
    thin = inside & (left.keepers < KEEPERS)
    allowed = levels.counts(thin, windows) == thin.sum()
    if not allowed.any():
        return None
    there = np.where(allowed, there, math.inf)
    single = levels.keepers < KEEPERS
    safer = (levels.counts(single, windows) - int((single & inside).sum())) * allowed
    if safer.max() > 0:
        why = f"{safer.max()} more blocks have a peer to spare"
        return LevelMove(windows[int(safer.argmax())], why, needed=True)
    if stay >= (1 + max(EVEN, DOUBT * _error(levels, placed, peers))) * there.min():
        best = np.flatnonzero(there <= (1 + CLOSE) * there.min())
        chosen = int(best[chance.randrange(len(best))])
        why = f"its blocks are served {stay / there[chosen] - 1:.0%} more than those"
        return LevelMove(windows[chosen], why, needed=False)
    return None


def _error(levels: BlockLevels, placed: Sequence[ServingPeer], peers: int) -> float:
    """The relative standard error of a block's speed, where ``placed`` are drawn from so many peers."""
    unknown = max(0.0, 1 - len(placed) / peers) if peers else 0.0
    shares, rates = np.array([len(peer.span) for peer in placed]), levels.rates
    # Of the peers, so many serve a block at the mean, each with its rate.
    serving = float((rates * shares).sum()), float((rates**2 * shares).sum())
    blocks = max(peer.span.end for peer in placed)
    return math.sqrt(unknown * serving[1] * blocks) / max(serving[0], 1e-12)


def _level_with(levels: BlockLevels, here: ServingPeer) -> float:
    """The mean speed of the node's own blocks, with it."""
    mine = here.useful_speed / len(here.span)
    blocks = slice(here.span.start, here.span.end)
    return float((levels.speed[blocks] + mine / levels.work[blocks]).mean())


def _edges(windows: Sequence[Span]) -> tuple[Counts, Counts]:
    starts = np.array([window.start for window in windows], np.intp)
    return starts, np.array([window.end for window in windows], np.intp)


def _draw(weights: Rates, chance: Random) -> int:
    """An index, each as likely as its weight."""
    sums = np.cumsum(weights)
    return min(int(np.searchsorted(sums, chance.random() * sums[-1], side="right")), len(weights) - 1)
