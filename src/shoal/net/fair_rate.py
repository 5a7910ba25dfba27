"""How much work a second others may cause here, divided fairly among those who cause it. Pure.

Who is under the fair share is served though others have used up everything (max-min fairness), so that one
neighbour's flood delays nobody else's word. A rate may so be passed for a while, never by more than as much
again.
"""

from __future__ import annotations

import math
from collections import Counter

from shoal.types import PeerId


class FairRate:
    """``per_s`` pieces of work a second, and ``at_once`` after a rest, by a clock that only runs forwards."""

    def __init__(self, per_s: float, at_once: float) -> None:
        self._per_s = per_s
        self._at_once = at_once
        self._left = at_once
        self._at = -math.inf
        self._began = -math.inf
        self._taken = Counter[PeerId]()
        """In this second, by who caused it; as many as we have neighbours."""

    def take(self, who: PeerId, now: float) -> bool:
        """Whether one more piece is done for ``who``."""
        self._left = min(self._at_once, self._left + (now - self._at) * self._per_s)
        self._at = now
        if now - self._began >= 1:
            self._began = now
            self._taken.clear()
        taken = self._taken[who]
        share = self._per_s / max(2, len(self._taken))
        if self._left < 1 and (taken >= share or self._left <= -self._per_s):
            return False
        self._left -= 1
        self._taken[who] = taken + 1
        return True
