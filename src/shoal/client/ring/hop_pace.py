"""How fast one hop of a session decodes, beside what it promised."""

from __future__ import annotations

from collections import deque
from statistics import median

from shoal.routing.replace import StepTimes

SLOW = 2.0
"""How much longer than it promised a hop takes that is looked at."""
STEPS = 16
"""So many steps in a row must have been slow: a hop that waits its turn now and then is no reason."""
NEWCOMER_STEPS = 6
"""The same for a hop that has not proven itself yet."""


class HopPace:
    """The last decode steps of a session at one hop.

    Args:
        promised_s: what a step there was to take when the hop was chosen; 0 if nobody knew: then the first
            step is the measure.
        steps: in a row that must be slow.
    """

    def __init__(self, promised_s: float, steps: int = STEPS) -> None:
        self._promised_s = promised_s
        self._last = deque[float](maxlen=STEPS)
        self._slow_steps = 0
        self._patience = steps

    @property
    def slow(self) -> StepTimes | None:
        """What was seen, if that is slow enough to look for another."""
        if self._slow_steps < self._patience:
            return None
        return StepTimes(median(self._last), self._promised_s)

    @property
    def promised_s(self) -> float:
        """What a decode step was to take there, or the first one took; 0 before anybody knows."""
        return self._promised_s

    @property
    def usual_s(self) -> float | None:
        """What a step took, in the middle of the last ones; ``None`` when there were too few to say."""
        return median(self._last) if 2 * len(self._last) >= STEPS else None

    def note(self, took_s: float) -> None:
        """A decode step took so long at the hop, waiting and computing."""
        self._promised_s = self._promised_s or took_s
        self._last.append(took_s)
        self._slow_steps = self._slow_steps + 1 if took_s >= SLOW * self._promised_s else 0

    def bear(self) -> None:
        """No other would be better now: look again when it has been slow for twice as long."""
        self._patience = 2 * self._slow_steps
