"""How many samples are made at once, and when those rest: nobody who waits for an answer is to wait for them.
Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from shoal.swarm.announcement import Announcement, Served

MOST_AT_ONCE = 64
"""Sessions of one run. A forward of as many rows is bound by arithmetic on most machines: more sessions would
only make each slower."""
MOST_PAUSE_S = 60.0


def fitting_sessions(serving: Sequence[Served], n_blocks: int, tokens: int) -> int:
    """How many sessions of ``tokens`` tokens the nodes of a model have KV for, ``MOST_AT_ONCE`` at most.

    Whoever else needs the room gets it all the same (:mod:`shoal.node.fair_share`), and a node that is full
    refuses; that is no more than where to begin.
    """
    room = [0] * n_blocks
    for served in serving:
        for block in range(served.start, min(served.end, n_blocks)):
            room[block] += served.tokens
    return max(1, min(MOST_AT_ONCE, min(room, default=0) // max(1, tokens)))


def awaited_sessions(announced: Iterable[Announcement], hops: Container[str]) -> int:
    """Sessions of others that somebody waits for, at that of the run's own ``hops`` which has most of them.

    A peer's word counts only where samples are in its way, so that no stranger can have all of them rest.
    """
    own = (one.served for one in announced if one.peer in hops)
    return max((served.awaited for served in own if served is not None), default=0)


def may_go_on(place: int, places: Sequence[int], awaited: int) -> bool:
    """Whether the sample in ``place`` may have its next token: each while nobody waits for an answer of his
    own, else the first alone, so that a run ends also where a swarm is never idle."""
    return not awaited or place == min(places)


def pause_s(failures: int, asked_s: float = 0.0) -> float:
    """How long to leave work alone when the swarm could not do it so many times in a row.

    Args:
        asked_s: what the refusal has asked for.
    """
    return min(MOST_PAUSE_S, max(asked_s, 2.0 ** min(failures, 10) / 2))
