"""How fast one hop of a session decodes, beside what it promised."""

from __future__ import annotations

from collections import deque
from statistics import median

from shoal.routing.slow import Seen

SLOW = 2.0
"""How much longer than it promised a hop takes that is looked at."""
STEPS = 16
"""So many steps in a row must have been slow: a hop that waits its turn now and then is no reason."""


class Pace:
    """The last decode steps of a session at one hop.

    Args:
        promised_s: what a step there was to take when the hop was chosen; 0 if nobody knew: then the first
            step is the measure.
    """

    def __init__(self, promised_s: float) -> None:
        self._promised_s = promised_s
        self._last = deque[float](maxlen=STEPS)
        self._slow_steps = 0
        self._patience = STEPS

    @property
    def slow(self) -> Seen | None:
        """What was seen, if that is slow enough to look for another."""
        if self._slow_steps < self._patience:
            return None
        return Seen(median(self._last), self._promised_s)

    def note(self, took_s: float) -> None:
        """A decode step took so long at the hop, waiting and computing."""
        self._promised_s = self._promised_s or took_s
        self._last.append(took_s)
        self._slow_steps = self._slow_steps + 1 if took_s >= SLOW * self._promised_s else 0

    def bear(self) -> None:
        """No other would be better now: look again when it has been slow for twice as long."""
        self._patience = 2 * self._slow_steps
