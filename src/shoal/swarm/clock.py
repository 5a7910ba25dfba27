"""What time it is in the swarm: a clock for how long things last, and one for what is written into words.

A wall clock jumps: it is set by hand, by NTP after a start at 1970, or wrong from the first. So nothing here
is aged by it. Announcements carry times of day, and there the others' clocks count: each peer that is asked
for its directory says what time it has, and who differs from the median of three or more of them takes that.
A liar moves the median only where most of our neighbours lie, who could hide the swarm from us anyway.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable

from shoal.types import PeerId

TELLERS = 9
"""Peers whose time is remembered, the last of each."""
LEAST_TELLERS = 3
TOLERATED_S = 10.0
"""A difference as small as this is left alone: a word's way takes time, too."""


class Clock:
    """A peer's sense of time. ``steady`` only runs forwards; ``wall`` is seconds since the epoch."""

    def __init__(
        self, steady: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self.steady = steady
        self._wall = wall
        self._ahead: OrderedDict[PeerId, float] = OrderedDict()

    def heard(self, peer: PeerId, wall: float) -> None:
        """``peer`` says that it is ``wall`` now."""
        if not math.isfinite(wall):
            return
        self._ahead[peer] = wall - self.steady()
        self._ahead.move_to_end(peer)
        if len(self._ahead) > TELLERS:
            self._ahead.popitem(last=False)

    @property
    def own(self) -> float:
        """What this machine's wall clock says; what it tells others."""
        return self._wall()

    @property
    def wrong_by_s(self) -> float:
        """How far this machine's wall clock is ahead of the swarm's; 0 while nothing says that it is."""
        if len(self._ahead) < LEAST_TELLERS:
            return 0.0
        ahead = self._wall() - self.steady() - statistics.median(self._ahead.values())
        return ahead if abs(ahead) > TOLERATED_S else 0.0

    def wall(self) -> float:
        """Seconds since the epoch, as the swarm has it."""
        return self._wall() - self.wrong_by_s
