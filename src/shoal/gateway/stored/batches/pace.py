"""When a batch's next request may begin: nobody who waits for an answer is to wait for a batch. Pure."""

from __future__ import annotations

AT_ONCE = 4
"""Requests of batches that are answered at once while nobody waits for an answer of his own."""
PATIENCE_S = 30.0
"""While somebody does, one request of a batch begins when none has for so long: batches end, also where
a gateway is never idle."""
MOST_PAUSE_S = 60.0


def may_begin(awaited: int, running: int, since_last_s: float) -> bool:
    """Whether one more request of a batch may begin.

    Args:
        awaited: requests that somebody waits for.
        running: requests of batches that are being answered.
        since_last_s: how long ago the last one of them began.
    """
    if awaited:
        return not running and since_last_s >= PATIENCE_S
    return running < AT_ONCE


def pause_s(failures: int, asked_s: float = 0.0) -> float:
    """How long to leave a batch alone when the swarm could not answer so many times in a row.

    Args:
        asked_s: what the refusal has asked for.
    """
    return min(MOST_PAUSE_S, max(asked_s, 2.0 ** min(failures, 10) / 2))
