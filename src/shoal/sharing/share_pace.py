"""How fast a node gives weights away: within a rate, and a low one while sessions step. Pure: no clock.

A step of a session takes milliseconds and is waited for by somebody; a piece is 1 MiB, and whoever wants it
has a thousand more to come. So pieces go between steps, and while sessions are in use only so many that a
newcomer still gets its weights, and a step seldom waits behind one.
"""

from __future__ import annotations

BESIDE_STEPS = 8 << 20
"""Bytes a second while sessions step: what a decode notices less than its own variation."""
STEPPING_S = 0.5
"""For so long after a step, sessions count as stepping: the next token comes sooner, or nobody waits."""
BURST_S = 0.25
"""What a rate may be passed by after a rest, in seconds of it."""


class SharePace:
    """When the next piece may go."""

    def __init__(self, bytes_s: float) -> None:
        """
        Args:
            bytes_s: bytes a second at most; 0 for no bound while nobody steps.
        """
        self._bytes_s = bytes_s
        self._free_at = 0.0
        self._stepped = -STEPPING_S

    def note_step(self, now: float) -> None:
        """A step runs, or has come to its end."""
        self._stepped = now

    def wait_s(self, size: int, now: float) -> float:
        """How long a piece of ``size`` bytes has to wait; 0 when it may go, and then it counts as gone."""
        rate = self._rate(now)
        if not rate:
            return 0.0
        begin = max(self._free_at, now - BURST_S)
        if begin > now:
            return begin - now
        self._free_at = begin + size / rate
        return 0.0

    def _rate(self, now: float) -> float:
        if now - self._stepped >= STEPPING_S:
            return self._bytes_s
        return min(self._bytes_s or BESIDE_STEPS, BESIDE_STEPS)
