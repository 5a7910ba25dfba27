"""Whether the peer of a channel is still there: when it is pinged, and how long its silence means nothing.

Pure: time is an argument.
"""

from __future__ import annotations

PING_EVERY_S = 1.0
"""So that a session hears of a silent hop after three pings (``client.ring.losses.SUSPECT_S``)."""
DEAD_AFTER_S = 7.0
"""Longer than a session bears a silent hop: with the channel, all sessions over it end."""
LATE_S = 1.5
"""How long nothing may be heard until another pipe is looked for: a ping has gone unanswered."""
LATE_IN_USE_S = 1.0
"""The same of a channel that was used in the last ``USED_LATELY_S``: it is pinged twice as often."""
USED_LATELY_S = 3.0


class Liveness:
    """When a channel last heard of its peer, and when it was last used."""

    def __init__(self, now: float) -> None:
        self.heard = now
        self.used = now
        """When the last message that is no ping came or went."""

    def silent_s(self, now: float) -> float:
        return now - self.heard

    def idle_s(self, now: float) -> float:
        return now - self.used

    def ping_every_s(self, now: float) -> float:
        """Seconds until the next ping."""
        return PING_EVERY_S / 2 if self.idle_s(now) < USED_LATELY_S else PING_EVERY_S

    def is_late(self, now: float, held_up_s: float = 0.0) -> bool:
        """Whether another pipe is to be looked for.

        Args:
            held_up_s: of the silence, what is the fault of our own loop.
        """
        late_s = LATE_IN_USE_S if self.idle_s(now) < USED_LATELY_S else LATE_S
        return self.silent_s(now) - held_up_s > late_s

    def is_dead(self, now: float, held_up_s: float = 0.0) -> bool:
        """Whether the channel ends."""
        return self.silent_s(now) - held_up_s > DEAD_AFTER_S
