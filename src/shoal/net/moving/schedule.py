"""When a channel looks for a better way, and how often it may be saved. Pure: time is an argument."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

SOON_S = (1.0, 3.0, 7.0)
"""When a better way is looked for after a channel has begun, has moved, or something has changed at either
end: a router that has just been started, or found out about, lets us through soon or not at all."""
LATER_S = 60.0
"""The first look after those; each rest is then twice as long."""
LONGEST_S = 600.0
RESCUES = 8
"""Times that a channel may lose its pipe in ``RESCUES_S``: a peer that ends it again and again has us dial no
more."""
RESCUES_S = 60.0


class MoveSchedule:
    """The looks and the rescues of one channel."""

    def __init__(self, now: float) -> None:
        self._circumstances: Hashable = None
        self._rescues: deque[float] = deque()
        self.begin_again(now)

    def begin_again(self, now: float) -> None:
        """The way is another one, so look for a better one soon."""
        self._begun = self._looked_at = now
        self._looks = 0

    def look_at(self, circumstances: Hashable, now: float) -> float:
        """When to look next.

        Args:
            circumstances: what decides which ways there may be; once it has changed, looks begin again.
        """
        if circumstances != self._circumstances:
            if self._circumstances is not None:
                self.begin_again(now)
            self._circumstances = circumstances
        if self._looks < len(SOON_S):
            return self._begun + SOON_S[self._looks]
        return self._looked_at + min(LATER_S * 2 ** (self._looks - len(SOON_S)), LONGEST_S)

    def looked(self, now: float) -> None:
        """A look has come to nothing."""
        self._looks = min(self._looks + 1, 64)
        self._looked_at = now

    def may_rescue(self, now: float) -> bool:
        """Count a pipe that was lost; whether another one is to be looked for."""
        while self._rescues and now - self._rescues[0] > RESCUES_S:
            self._rescues.popleft()
        if len(self._rescues) >= RESCUES:
            return False
        self._rescues.append(now)
        return True
