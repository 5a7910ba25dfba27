"""When a batch's next request may begin: nobody who waits for an answer is to wait for a batch. Pure."""

from __future__ import annotations

AT_ONCE = 4
"""Requests of batches that are answered at once while nobody waits for an answer of his own."""
PATIENCE_S = 30.0
"""While somebody does, one request of a batch begins when none has for so long: batches end, also where
a gateway is never idle."""


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
