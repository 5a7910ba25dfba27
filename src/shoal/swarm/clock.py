"""What time it is in the swarm: a clock for how long things last, and one for what is written into words.

A wall clock jumps: it is set by hand, by NTP after a start at 1970, or wrong from the first. So nothing here
is aged by it. Announcements carry times of day, and there the others' clocks count: each peer that is asked
for its directory says what time it has, and who differs from the median of three or more of them takes that.
A liar moves the median only where most of our neighbours lie, who could hide the swarm from us anyway.

Where fewer tell, nobody can say whose clock is wrong. Then a peer's own words are read by the time that it
says it has: that changes nothing but what is believed of itself. And both sides say that they differ.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable

from shoal.swarm.names import name_of
from shoal.types import PeerId

TELLERS = 9
"""Peers whose time is remembered, the last of each."""
LEAST_TELLERS = 3
TOLERATED_S = 10.0
"""A difference as small as this is left alone: a word's way takes time, too."""
WORTH_SAYING_S = 30.0
"""A difference as large as this makes peers refuse each other's words (``announcement.CLOCK_SKEW_S``)."""


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
        # The last tellers count: a clock may have been set right since an earlier one.
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

    def wall_of(self, peer: PeerId) -> float | None:
        """What time it is by a peer's own clock, if it has lately been asked."""
        ahead = self._ahead.get(peer)
        return None if ahead is None else ahead + self.steady()

    def apart(self) -> dict[PeerId, float]:
        """How far the clocks of those who were asked are ahead of this machine's, where that is too much."""
        ours = self._wall() - self.steady()
        differences = {peer: ahead - ours for peer, ahead in self._ahead.items()}
        return {peer: by_s for peer, by_s in differences.items() if abs(by_s) > WORTH_SAYING_S}

    @property
    def ahead_s(self) -> float:
        """How far this machine's clock is ahead of the swarm's, or of the peer's that differs most."""
        others = (-by_s for by_s in self.apart().values())
        return self.wrong_by_s or max(others, key=abs, default=0.0)

    def doubts(self) -> str:
        """What a person should know of clocks that differ, in one sentence; empty when none do."""
        if abs(self.wrong_by_s) > WORTH_SAYING_S:
            return f"this machine's clock is {_off(self.wrong_by_s)} that of most peers; set it"
        apart = self.apart()
        if not apart:
            return ""
        peer, by_s = max(apart.items(), key=lambda item: abs(item[1]))
        others = f", and {len(apart) - 1} more differ" if len(apart) > 1 else ""
        return f"the clock of {name_of(peer)} is {_off(by_s)} this machine's{others}; one of them is wrong"


def _off(seconds: float) -> str:
    size, way = abs(seconds), "ahead of" if seconds > 0 else "behind"
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if size >= 2 * unit:
            return f"{size / unit:.0f} {name} {way}"
    return f"{size:.0f} s {way}"
