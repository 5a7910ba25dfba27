"""How many tokens in a second a swarm can carry. Pure; arrays of numpy.

A peer computes ``speed`` blocks in a second, and divides them as it likes over the blocks that it serves: a
route may give it any part of its span. A token needs every block once. So the most tokens in a second is the
most ``T`` for which there are ``x[p, b] ≥ 0`` with

    sum over p of x[p, b] = T × work[b]   for every block b
    sum over b of x[p, b] ≤ speed[p]      for every peer p, with x[p, b] = 0 outside of its span

That is a flow from peers to blocks, and by max-flow min-cut (Hall's condition) it is bound by the worst set
of blocks, all the peers of which together have too little:

    T = min over sets B of blocks of  speed of the peers that serve some block of B / work of the blocks in B

``work`` is that of a block in shares of a usual one: 1 for those of most language models.

The worst set is found exactly: for a given T by a dynamic programme over its blocks from left to right, for
spans are contiguous; and T by Dinkelbach's method (1967).

A peer's link takes so many tokens a second, through how many of its blocks they may go. So a peer counts for
no more ``speed`` than such tokens need that go through all of them. Memory for KV bounds a swarm too, and is
not in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.types import Span

Rates: TypeAlias = npt.NDArray[np.float64]

SLACK = 1e-9
"""Sums of floats in another order differ."""


@dataclass(frozen=True, slots=True)
class ServingPeer:
    """A peer at its place."""

    span: Span
    speed: float
    """Blocks in a second: tokens in a second through the span, times its blocks."""
    fits: int = 0
    """Blocks that it would serve elsewhere, if it moved; 0: it stays."""
    carries: float = math.inf
    """Tokens in a second whose hidden states its link takes; infinite where it was not timed."""

    @property
    def useful_speed(self) -> float:
        """What of its speed its link lets through."""
        return bound_speed(self.speed, self.carries, self.span)


def bound_speed(speed: float, carries: float, span: Span) -> float:
    """The blocks in a second that a peer computes in ``span``, with a link that takes ``carries`` tokens."""
    return min(speed, carries * len(span))


def throughput(placed: Sequence[ServingPeer], n_blocks: int, work: Rates | None = None) -> float:
    """Tokens in a second that these peers carry through the model; 0 while a block is served by nobody."""
    return float(least_ratio(crowds(placed, n_blocks), np.ones((1, n_blocks), np.bool_), work=work)[0])


def crowds(placed: Sequence[ServingPeer], n_blocks: int) -> Rates:
    """``[i, j]``: the speed of the peers that serve block ``j`` and none of the blocks before ``i``."""
    begins = np.zeros((n_blocks, n_blocks + 1))
    for peer in placed:
        begins[peer.span.start, min(peer.span.end, n_blocks)] += peer.useful_speed
    serving = np.cumsum(begins[:, ::-1], axis=1)[:, ::-1][:, 1:]  # by start: those that end behind block j
    serving[np.tri(n_blocks, k=-1, dtype=np.bool_)] = 0.0  # they have not begun
    return np.cumsum(serving[::-1], axis=0)[::-1]


def least_ratio(
    crowd: Rates, among: npt.NDArray[np.bool_], more: Rates | float = 0.0, *, work: Rates | None = None
) -> Rates:
    """For each row of ``among``, the least (speed + ``more``) for the work of any set of the row's blocks.

    Args:
        crowd: as :func:`crowds` makes it.
        among: ``[k, n_blocks]``.
        more: of each row, or of all.
        work: of each block; by default 1.

    Returns:
        ``[k]``; infinite for a row without blocks.
    """
    work = np.ones(among.shape[1]) if work is None else work
    more = np.broadcast_to(more, len(among))
    ratio = _least_of_runs(crowd, among, more, work)
    rows = np.flatnonzero(np.isfinite(ratio))
    while len(rows):
        lacking, count = _worst_set(crowd, among[rows], ratio[rows], more[rows], work)
        worse = lacking > SLACK * (ratio[rows] + more[rows])
        rows, lacking, count = rows[worse], lacking[worse], count[worse]
        ratio[rows] -= lacking / count
    return np.maximum(ratio, 0.0)


def _least_of_runs(crowd: Rates, among: npt.NDArray[np.bool_], more: Rates, work: Rates) -> Rates:
    """The same of sets without a gap alone, which mostly are the worst: those of some block serve it, and
    each block after it adds those who begin there."""
    begun, done = np.cumsum(np.diagonal(crowd)), np.cumsum(work)
    speed = crowd[0][:, None] + begun - begun[:, None]  # of blocks i to j
    taken = done - done[:, None] + work[:, None]
    gaps = np.cumsum(~among, axis=1)
    within = among[:, :, None] & among[:, None, :] & (gaps[:, :, None] == gaps[:, None, :])
    within &= ~np.tri(len(work), k=-1, dtype=np.bool_)
    with np.errstate(divide="ignore", invalid="ignore"):  # below the diagonal, which is left out
        ratio = (speed + more[:, None, None]) / taken
    return np.where(within, ratio, np.inf).min(axis=(1, 2))


def _worst_set(
    crowd: Rates, among: npt.NDArray[np.bool_], ratio: Rates, more: Rates, work: Rates
) -> tuple[Rates, Rates]:
    """By row, how much speed the set that lacks most lacks to reach ``ratio``, and the work of its blocks.

    ``lacks[:, j]`` is that of the set whose last block is ``j - 1``, and the first that of the empty one. A
    block adds ``ratio`` × its work to a set, less the peers that serve it and not the block before it there.
    """
    rows, n_blocks = among.shape
    every = np.arange(rows)
    lacks = np.full((rows, n_blocks + 1), -np.inf)
    count = np.zeros((rows, n_blocks + 1))
    lacks[:, 0] = -more
    for block in range(n_blocks):
        before = lacks[:, : block + 1] - crowd[: block + 1, block]
        best = np.argmax(before, axis=1)
        lacks[:, block + 1] = np.where(among[:, block], before[every, best] + ratio * work[block], -np.inf)
        count[:, block + 1] = count[every, best] + work[block]
    best = 1 + np.argmax(lacks[:, 1:], axis=1)
    return lacks[every, best], count[every, best]
