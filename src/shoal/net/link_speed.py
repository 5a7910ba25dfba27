"""How fast the link of a channel is, from pings and from long messages. Pure: the caller brings the time.

Behind a long message goes a ping, in the same queue. Its pong comes when all that was queued up to it has
arrived; the time, less the round trip of an idle channel, is what those bytes took. What other sessions of
ours send meanwhile counts as a slower link, which for this session it is.
"""

from __future__ import annotations

from typing import NamedTuple

TIMED_BYTES = 32 << 10
"""Payload of a message that is long enough to time the link by."""
LATE_SHARE = 0.2
"""What a slower measurement counts for. A late pong may be a busy processor's; an early one is the link's, so
a faster measurement counts in full (BBR keeps the largest, too)."""
ENOUGH = 3
"""Measurements before anything is said: one late pong of a busy machine must not make a link slow."""


class _Ping(NamedTuple):
    nonce: int
    sent_at: float
    size: int


class LinkSpeed:
    """What has been measured of one link."""

    def __init__(self) -> None:
        self._idle: _Ping | None = None
        self._behind: _Ping | None = None
        self.rtt_s: float | None = None
        """The last round trip of a ping, in seconds; ``None`` before the first."""
        self._bytes_s = 0.0
        self._measured = 0

    @property
    def bytes_s(self) -> float | None:
        """Bytes a second that long messages reached, smoothed; ``None`` until enough were timed."""
        return self._bytes_s if self._measured >= ENOUGH else None

    def pinged(self, nonce: int, now: float) -> None:
        """A ping has been sent on its own. A pong that comes after the next ping tells nothing."""
        self._idle = _Ping(nonce, now, 0)

    def may_time(self, size: int) -> bool:
        """Whether to time a message with a payload of ``size`` bytes: a long one, and one at a time."""
        return size >= TIMED_BYTES and self._behind is None

    def sent_behind(self, nonce: int, size: int, now: float) -> None:
        """A ping goes behind a long message; ``size`` bytes go before it."""
        self._behind = _Ping(nonce, now, size)

    def pong(self, nonce: int, now: float) -> None:
        """Learn from a pong. One that answers no ping of ours tells nothing."""
        if self._behind is not None and nonce == self._behind.nonce:
            _, sent_at, size = self._behind
            self._behind = None
            took = now - sent_at
            # At least a tenth of the time: less a round trip that was measured under load, nothing is left.
            bytes_s = size / max(took - (self.rtt_s or 0.0), took / 10, 1e-6)
            self._bytes_s = max(bytes_s, (1 - LATE_SHARE) * self._bytes_s + LATE_SHARE * bytes_s)
            self._measured += 1
        if self._idle is not None and nonce == self._idle.nonce:
            self.rtt_s = now - self._idle.sent_at
