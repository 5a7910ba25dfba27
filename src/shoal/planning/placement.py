"""Which span a node serves, and when it should move. Pure: who is where in, a span out.

A node takes as many blocks as fit, for a longer span is never worse. Of all such windows it takes

1. the one that leaves the fewest blocks without a peer,
2. with which the swarm carries the most tokens in a second (:mod:`shoal.planning.throughput`), or nearly,
3. the one that leaves the fewest blocks with a single peer, then the one whose weakest block is the weakest,
   each peer's speed divided over its span (the rule of Petals: Borzunov et al. 2023, section 3.2).

What a peer's link does not let through, as it timed it, is no speed.

A node that serves moves when that covers a block that nobody serves, or raises the throughput by ``GAIN``, or
gives a single block a second peer at no cost of throughput. No move uncovers a block. In a small swarm a node
also moves to where :mod:`shoal.planning.assign` would put it if all nodes were placed anew, when the slowest
stage would then carry ``GAIN`` more than the swarm does: others, who see the same swarm, follow.

In a large swarm no single node changes so much: there :mod:`shoal.planning.level` decides.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import numpy.typing as npt

from shoal.errors import OutOfResources
from shoal.planning.assign import least_busy
from shoal.planning.layout import Layout, StretchTable, stretches
from shoal.planning.level import MANY, believed, level_move, level_span
from shoal.planning.throughput import (
    SLACK,
    Rates,
    ServingPeer,
    bound_speed,
    crowds,
    least_ratio,
    throughput,
)
from shoal.types import Span, gaps

CLOSE = 0.02
"""Throughput that is given up for a block that would have a single peer."""
GAIN = 0.05
"""What the swarm's throughput must gain for a node to move: weights are read again, and caches are lost."""
DIP = 0.5
"""What the first of several moves must leave of the throughput."""
ANEW = 8
"""Nodes of a swarm, up to which one looks where all would be placed anew."""
ANEW_WORK = 20_000_000
"""What that may look at: as :data:`shoal.planning.assign.MOST_WORK`, and in the middle of serving."""

Windows = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Move:
    """A better place, and what it gains."""

    span: Span
    why: str


def fits_from(block_bytes: Sequence[float], room: float) -> list[int]:
    """By first block, how many blocks from there on fit into ``room`` bytes."""
    ends = np.searchsorted(held := np.cumsum([0.0, *block_bytes]), held[:-1] + room, side="right") - 1
    return [int(end) - begin for begin, end in enumerate(ends)]


def choose_span(
    placed: Sequence[ServingPeer],
    n_blocks: int,
    fits: int | Sequence[int],
    speed: float = 0.0,
    work: Sequence[float] | None = None,
    chance: Random | None = None,
) -> Span:
    """The span that a joining node should serve.

    Args:
        placed: who serves what; those that are about to move, where they will be.
        fits: how many blocks it has memory for, wherever they begin; or as :func:`fits_from` says.
        speed: blocks in a second that it computes; 0 if unknown, then what is usual here.
        work: of each block, in shares of a usual one; by default they are alike.
        chance: by which one of many that join at the same time takes its place; by default anew each time.

    Raises:
        ValueError: not one block fits.
    """
    windows = _windows(n_blocks, [fits] * n_blocks if isinstance(fits, int) else fits)
    if not windows:
        raise ValueError("not one block fits")
    if len(placed) >= MANY:
        return level_span(placed, n_blocks, windows, work, chance or Random())
    options = _Options(placed, n_blocks, windows, speed, work)
    return options.windows[options.best(options.holes == options.holes.min())]


def choose_move(
    placed: Sequence[ServingPeer],
    here: ServingPeer,
    n_blocks: int,
    work: Sequence[float] | None = None,
    chance: Random | None = None,
    *,
    peers: int = 0,
    claimed: Span | None = None,
    keeping: Sequence[ServingPeer] | None = None,
) -> Move | None:
    """Where a node that serves ``here`` should serve instead; ``None`` to stay.

    Args:
        placed: the others; those that are about to move, where they will be.
        work, chance: as in :func:`choose_span`.
        peers: that serve the model; where ``placed`` are fewer, they are taken for some of them drawn by
            chance.
        claimed: where it has said that it goes: in a large swarm, whether only that is still better.
        keeping: the others who serve now where they are to stay, to whom blocks may be left; by default all
            who are placed.
    """
    if not here.fits:
        return None
    windows = _windows(n_blocks, [here.fits] * n_blocks)
    if len(placed) < MANY:
        return _best_move(placed, here, n_blocks, windows, work, placed if keeping is None else keeping)
    windows = windows if claimed is None else [claimed]
    level = level_move(placed, here, n_blocks, windows, work, chance or Random(), peers, keeping)
    if level is None or (not level.needed and _carries_enough([*believed(placed), here], n_blocks, work)):
        return None
    return Move(level.span, level.why)


def uncovered_by(keeping: Sequence[ServingPeer], here: Span, there: Span) -> list[Span]:
    """The blocks that nobody would serve any more, if a node went from ``here`` to ``there``.

    Args:
        keeping: the others who serve now where they are to stay.
    """
    return gaps([*(peer.span for peer in keeping), there], here.end, here.start)


def _best_move(
    placed: Sequence[ServingPeer],
    here: ServingPeer,
    n_blocks: int,
    windows: Sequence[Span],
    work: Sequence[float] | None,
    keeping: Sequence[ServingPeer],
) -> Move | None:
    now = _Options([*placed, here], n_blocks, [], 0.0, work)
    holes, single, rate = int(now.holes[0]), int(now.single[0]), float(now.rate[0])
    windows = [window for window in windows if not uncovered_by(keeping, here.span, window)]
    lacking = holes or single or (1 + GAIN) * rate < _most(placed, here, now)
    if not windows or (len(placed) >= ANEW and not lacking):
        return None  # it is needed here, or there is nothing to gain anywhere
    options = _Options(placed, n_blocks, windows, here.speed, work, here.carries)
    covering = options.holes < holes
    if covering.any():
        best = options.best(covering & (options.holes == options.holes.min()))
        return Move(options.windows[best], f"{holes - options.holes[best]} blocks are served by nobody")
    whole = options.holes == holes
    faster = whole & (options.rate > (1 + GAIN) * rate)
    if faster.any():
        best = options.best(faster)
        more = options.rate[best] / rate - 1
        return Move(options.windows[best], f"the swarm carries {more:.0%} more tokens")
    anew = _move_anew(placed, here, options, whole, rate) if rate else None
    if anew is not None:
        return anew
    safer = whole & (options.single < single) & (options.rate >= (1 - SLACK) * rate)
    if safer.any():
        best = options.best(safer)
        return Move(options.windows[best], f"{single - options.single[best]} fewer blocks have a single peer")
    return None


def _carries_enough(nodes: Sequence[ServingPeer], n_blocks: int, work: Sequence[float] | None) -> bool:
    """Whether they carry all but ``GAIN`` of what they would, if each could give its speed to any block.

    Then it does not matter how even the swarm is: routes give more of each peer to where there is less.
    """
    works: Rates = np.ones(n_blocks) if work is None else np.asarray(work, np.float64)
    most = sum(node.useful_speed for node in nodes) / float(works.sum())
    return throughput(nodes, n_blocks, works) >= (1 - GAIN) * most


def _most(placed: Sequence[ServingPeer], here: ServingPeer, options: _Options) -> float:
    """Tokens in a second that all would carry if every peer could give its speed to any block."""
    mine = min(here.speed, here.carries * min(here.fits, options.n_blocks))
    return (sum(peer.useful_speed for peer in placed) + mine) / float(options.work.sum())


def _windows(n_blocks: int, fits: Sequence[int]) -> list[Span]:
    """The longest spans that fit, none of which lies in another."""
    found: list[Span] = []
    for begin, count in enumerate(fits):
        end = min(n_blocks, begin + count)
        if end > begin and (not found or end > found[-1].end):
            found.append(Span(begin, end))
    return found


class _Anew(Layout):
    """Nodes of a swarm, each free to serve any blocks that fit; those that do not move, where they are."""

    def __init__(self, nodes: Sequence[ServingPeer], n_blocks: int, work: Rates) -> None:
        super().__init__(n_blocks, len(nodes), 1)
        self._nodes = nodes
        self._work = stretches([0.0, *np.cumsum(work)])

    def alike(self, machine: int) -> Hashable:
        node = self._nodes[machine]
        return node.speed, node.carries, node.fits, None if node.fits else node.span

    def make_spent(self, machine: int) -> StretchTable:
        node = self._nodes[machine]
        begin, end = np.ogrid[: self.n_blocks + 1, : self.n_blocks + 1]
        fits = end - begin <= node.fits if node.fits else (begin >= node.span.start) & (end <= node.span.end)
        return np.where(fits, np.maximum(self._work / node.speed, 1 / node.carries), np.inf)

    make_busy = make_spent

    def lacking(self, reach: int) -> OutOfResources:
        return OutOfResources(f"the nodes hold blocks 0:{reach} of {self.n_blocks}")


def _move_anew(
    placed: Sequence[ServingPeer], here: ServingPeer, options: _Options, whole: Windows, rate: float
) -> Move | None:
    """The move to where this node would be if all were placed anew, where no move of it alone would do."""
    nodes = [*placed, here]
    if len(nodes) > ANEW or not all(node.speed for node in nodes):
        return None
    anew = _placed_anew(nodes, options)
    reached = throughput(anew, options.n_blocks, options.work)
    if reached <= (1 + GAIN) * rate or anew[-1].span == here.span:
        return None
    without = _placed_anew([*placed, replace(here, fits=0)], options)
    if reached <= (1 + GAIN) * throughput(without, options.n_blocks, options.work):
        return None  # the others do without this move
    if anew[-1].span not in options.windows:
        return None  # it is needed where it is
    window = options.windows.index(anew[-1].span)
    if not whole[window] or options.rate[window] < DIP * rate:
        return None  # others go first
    return Move(
        anew[-1].span,
        f"when others move after it, the swarm carries {reached / rate - 1:.0%} more tokens",
    )


def _placed_anew(nodes: Sequence[ServingPeer], options: _Options) -> list[ServingPeer]:
    """Where all nodes would be: those of the best stages with as many blocks as fit, then the others, each
    where it helps most."""
    n_blocks, work = options.n_blocks, options.work
    layout = _Anew(nodes, n_blocks, work)
    try:
        stages = least_busy(layout, work=ANEW_WORK)
    except OutOfResources:
        return list(nodes)
    stage_of = {stage.machine: stage.span for stage in stages}
    there = {
        number: replace(node, span=stage_of[number]) if node.fits else node
        for number, node in enumerate(nodes)
        if number in stage_of or not node.fits
    }
    order = sorted(range(len(nodes)), key=lambda number: (number not in stage_of, -nodes[number].speed))
    for number in order:
        node = nodes[number]
        if node.fits:
            others = [other for one, other in there.items() if one != number]
            windows = _windows(n_blocks, [node.fits] * n_blocks)
            found = _Options(others, n_blocks, windows, node.speed, work, node.carries)
            stage = stage_of.get(number)
            possible = np.array([stage is None or _lies_in(stage, window) for window in windows])
            there[number] = replace(node, span=windows[found.best(possible)])
    return [there[number] for number in range(len(nodes))]


def _lies_in(span: Span, window: Span) -> bool:
    return window.start <= span.start and span.end <= window.end


class _Options:
    """What becomes of the swarm with a node in each window; without windows, the swarm as it is."""

    def __init__(
        self,
        placed: Sequence[ServingPeer],
        n_blocks: int,
        windows: Sequence[Span],
        speed: float,
        work: Sequence[float] | Rates | None,
        carries: float = math.inf,
    ) -> None:
        self.n_blocks = n_blocks
        self.windows = windows
        self.work: Rates = np.ones(n_blocks) if work is None else np.asarray(work, np.float64)
        starts = np.array([window.start for window in windows] or [0])[:, None]
        ends = np.array([window.end for window in windows] or [0])[:, None]
        blocks = np.arange(n_blocks)
        inside = (starts <= blocks) & (blocks < ends)
        serving, share = np.zeros(n_blocks, np.intp), np.zeros(n_blocks)
        for peer in placed:
            serving[peer.span.start : peer.span.end] += 1
            share[peer.span.start : peer.span.end] += peer.useful_speed / len(peer.span)
        after = serving + inside
        self.holes = (after == 0).sum(axis=1)
        self.single = (after == 1).sum(axis=1)
        speed = speed or _usual(placed)
        bounds = [bound_speed(speed, carries, window) for window in windows]
        self.rate = self._rates(crowds(placed, n_blocks), inside, np.array(bounds))
        self._weakest = np.sort(np.where(inside, share, np.inf), axis=1).round(9).tolist()

    def _rates(self, crowd: Rates, inside: Windows, speeds: Rates) -> Rates:
        """Of any set of blocks, either the node serves one too, or all lie outside of its window.

        Args:
            speeds: the node's in each window.
        """
        different, of_window = np.unique(speeds, return_inverse=True)
        every = np.ones((len(different), self.n_blocks), np.bool_)
        among, more = np.concatenate([~inside, every]), np.concatenate([np.zeros(len(inside)), different])
        without, with_it = np.split(least_ratio(crowd, among, more, work=self.work), [len(inside)])
        return np.minimum(without, with_it[of_window]) if len(speeds) else without

    def best(self, among: Windows) -> int:
        """The best window of these."""
        close = among & (self.rate >= (1 - CLOSE) * self.rate[among].max())
        return min(map(int, np.flatnonzero(close)), key=lambda w: (self.single[w], self._weakest[w], w))


def _usual(placed: Sequence[ServingPeer]) -> float:
    return float(np.median([peer.speed for peer in placed])) if placed else 1.0
