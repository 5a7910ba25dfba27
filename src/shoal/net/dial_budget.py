"""Dials that we make because another peer asked for them: so many at once, and then one in a while.

A client names the next hop of its session. Without a bound, any client could have us knock at doors all day.
"""

from __future__ import annotations

from collections import OrderedDict

from shoal.errors import Busy
from shoal.types import PeerId

BURST = 32
"""Dials that a peer may ask for at once."""
EVERY_S = 1.0
"""Seconds until it may ask for one more."""
PEERS_KEPT = 4096


class DialBudget:
    """What each peer may still ask for, as a bucket that fills with time. Pure.

    Args:
        burst: dials that a peer may ask for at once; ``BURST`` by default.
        every_s: seconds until it may ask for one more.
    """

    def __init__(self, burst: int | None = None, every_s: float = EVERY_S) -> None:
        self._burst, self._every_s = burst, every_s
        self._full_at: OrderedDict[PeerId, float] = OrderedDict()

    def ask(self, peer: PeerId, now: float) -> None:
        """Count one dial for ``peer``.

        Raises:
            Busy: it has asked for too many; says when to come back.
        """
        full_at = max(self._full_at.get(peer, now), now) + self._every_s
        burst_s = (self._burst or BURST) * self._every_s
        if full_at - now > burst_s:
            raise Busy("this peer asks for too many new connections", retry_after_s=full_at - now - burst_s)
        self._full_at[peer] = full_at
        self._full_at.move_to_end(peer)
        while len(self._full_at) > PEERS_KEPT:
            self._full_at.popitem(last=False)
