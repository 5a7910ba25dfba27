"""The cheapest way through the blocks of a model, when each peer may be asked once. Pure; arrays of numpy.

A dynamic programme over (block, peer): a step that has been through block ``b`` at peer ``p`` either stays
there for the next block, or goes to another peer. For each block only the best peer to come from is looked
for, so that p peers and n blocks take O(n × p), and with m measured ways between peers O(n × (p + m)).

The programme alone might leave a peer and come back to it, and a session is at a peer once. Where that would
be cheapest, it is forbidden in each of the ways in which it can be (branch and bound, best first).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
IndexArray: TypeAlias = npt.NDArray[np.intp]
Allowed: TypeAlias = npt.NDArray[np.bool_]
"""``[blocks, p]``: who may run which of the blocks that a path goes through."""

MOST_WORK = 1_000_000
"""Blocks × peers looked at for an exact answer. Beyond, a peer that would be asked twice runs what lies
between, too."""


@dataclass(frozen=True, slots=True)
class Ways:
    """Measured ways between peers. There may be none."""

    begin: IndexArray
    end: IndexArray
    seconds: FloatArray
    """One way, not the round trip."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What each of p peers costs one step, in seconds; arrays of p."""

    block: FloatArray
    """Each block that it runs."""
    stage: FloatArray
    """Being asked at all; above 0, so that a peer is not left without a reason."""
    near: FloatArray
    """The way from the client, and the way back."""
    leg: FloatArray
    """Its part of a way to or from another peer that nobody has measured: such a way costs both legs."""
    ways: Ways
    work: FloatArray | None = None
    """How many usual blocks each block of the model is worth; ``None`` where all are alike."""


@dataclass(frozen=True, slots=True)
class PathPart:
    """Some blocks at one peer."""

    peer: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class PeerPath:
    """A way through all the blocks that it was asked for."""

    seconds: float
    parts: tuple[PathPart, ...]


def cheapest(prices: Prices, allowed: Allowed, first: int = 0) -> PeerPath | None:
    """The cheapest path on which each peer is asked once; ``None`` when there is none.

    Args:
        first: the number of the block that ``allowed`` begins with; the path's are numbered from it.
    """
    ways = _WaysIn(prices)
    work = np.ones(len(allowed)) if prices.work is None else prices.work[first : first + len(allowed)]
    waiting: list[tuple[float, int, PeerPath, Allowed]] = []
    number = itertools.count()
    left = MOST_WORK

    def look(allowed: Allowed) -> None:
        nonlocal left
        left -= allowed.size
        path = _shortest(prices, ways, allowed, work)
        if path is not None:
            heapq.heappush(waiting, (path.seconds, next(number), path, allowed))

    look(allowed)
    while waiting:
        _, _, path, allowed = heapq.heappop(waiting)
        twice = _asked_twice(path)
        if not twice:
            return _numbered(path, first)
        for fewer in _branches(allowed, twice[0]) if left > 0 else [_merged(allowed, twice)]:
            look(fewer)
    return None


def _numbered(path: PeerPath, first: int) -> PeerPath:
    parts = tuple(PathPart(part.peer, part.start + first, part.end + first) for part in path.parts)
    return PeerPath(path.seconds, parts)


def _asked_twice(path: PeerPath) -> list[PathPart]:
    """For each peer that is left and asked again, the blocks between its first part and its last."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for part in path.parts:
        first.setdefault(part.peer, part.end)
        last[part.peer] = part.start
    return [PathPart(peer, end, last[peer]) for peer, end in first.items() if end <= last[peer]]


def _branches(allowed: Allowed, left: PathPart) -> Iterator[Allowed]:
    """All there is for a peer that is not to be left and asked again.

    It runs the block at which it was left, or only blocks before that, or only blocks after.
    """
    peer, block = left.peer, left.start
    before, after = allowed.copy(), allowed.copy()
    before[block:, peer] = False
    after[: block + 1, peer] = False
    yield from (before, after)
    if allowed[block, peer]:
        through = allowed.copy()
        through[block] = False
        through[block, peer] = True
        yield through


def _merged(allowed: Allowed, twice: Sequence[PathPart]) -> Allowed:
    """Each peer that was left stays; where it may not, it is not asked again."""
    fewer = allowed.copy()
    for part in sorted(twice, key=lambda part: part.start - part.end):
        between = slice(part.start, part.end)
        if not allowed[between, part.peer].all():
            fewer[part.end :, part.peer] = False
        elif fewer[between, part.peer].all():  # else it lies inside of one that stays
            fewer[between] = False
            fewer[between, part.peer] = True
    return fewer


def _shortest(prices: Prices, ways: _WaysIn, allowed: Allowed, work: FloatArray) -> PeerPath | None:
    """The cheapest path, on which a peer may be asked more than once."""
    n_blocks, peers = allowed.shape
    same = np.arange(peers)
    came = np.empty((n_blocks, peers), np.intp)
    cost = np.where(allowed[0], prices.near + prices.stage + prices.block * work[0], np.inf)
    for block in range(1, n_blocks):
        before, arrived = ways.enter(cost)
        arrived += prices.stage
        moved = arrived < cost
        came[block] = np.where(moved, before, same)
        cost = np.where(allowed[block], np.where(moved, arrived, cost) + prices.block * work[block], np.inf)
    cost = cost + prices.near
    peer = int(np.argmin(cost))
    seconds = float(cost[peer])
    if seconds == np.inf:
        return None
    parts: list[PathPart] = []
    end = n_blocks
    for block in range(n_blocks - 1, 0, -1):
        earlier = int(came[block, peer])
        if earlier != peer:
            parts.append(PathPart(peer, block, end))
            peer, end = earlier, block
    parts.append(PathPart(peer, 0, end))
    return PeerPath(seconds, tuple(reversed(parts)))


class _WaysIn:
    """From where it is cheapest to come to each peer."""

    def __init__(self, prices: Prices) -> None:
        self._leg = prices.leg
        peers, ways = len(prices.leg), prices.ways
        self._measured = np.zeros((peers, peers) if len(ways.begin) else (0, 0), np.bool_)
        self._measured[ways.begin, ways.end] = True
        place = places_in_group(ways.begin, peers)
        most = int(place.max(initial=0)) + 1
        self._end = np.zeros((peers, most), np.intp)
        self._end[ways.begin, place] = ways.end
        self._seconds = np.full((peers, most), np.inf)
        self._seconds[ways.begin, place] = ways.seconds

    def enter(self, cost: FloatArray) -> tuple[IndexArray, FloatArray]:
        """By peer, the best one to come from, and the cost with the way from there.

        Args:
            cost: of being at each peer.
        """
        leave = cost + self._leg
        best = int(np.argmin(leave))
        before = np.full(len(cost), best)
        arrived = leave[best] + self._leg
        if len(self._measured):
            self._exclude_measured(leave, best, before, arrived)
            self._include_measured(cost, before, arrived)
        return before, arrived

    def _exclude_measured(
        self, leave: FloatArray, best: int, before: IndexArray, arrived: FloatArray
    ) -> None:
        """Where the way from the best was measured, the next best takes its place, and so on."""
        clash = np.flatnonzero(self._measured[best])
        left = leave.copy()
        while len(clash):
            left[best] = np.inf
            best = int(np.argmin(left))
            before[clash] = best
            arrived[clash] = left[best] + self._leg[clash]
            if left[best] == np.inf:
                return
            clash = clash[self._measured[best, clash]]

    def _include_measured(self, cost: FloatArray, before: IndexArray, arrived: FloatArray) -> None:
        there = np.flatnonzero(cost < np.inf)
        end = self._end[there]
        through = cost[there, None] + self._seconds[there]
        begin, way = np.nonzero(through < arrived[end])
        found, end = through[begin, way], end[begin, way]
        last = np.argsort(found)[::-1]  # the best to each peer is written last
        before[end[last]] = there[begin[last]]
        arrived[end[last]] = found[last]


def places_in_group(group: IndexArray, groups: int) -> IndexArray:
    """For each element, how many before it are of its group; ``group`` numbers these from 0."""
    order = np.argsort(group, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=groups))])[:-1]
    place = np.empty(len(group), np.intp)
    place[order] = np.arange(len(group)) - first[group[order]]
    return place
