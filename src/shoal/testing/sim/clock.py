"""Simulated time: it stands still while anything can run, and then goes on to when the next thing happens."""

from __future__ import annotations

import gc
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio
from trio.abc import Clock

TICK_S = 0.005
"""Time goes on in steps of this, so that what happens nearly at once happens in one turn of the loop. trio's
own ``MockClock`` stops at every deadline, which for a few hundred peers is most of what a simulation
costs."""

GARBAGE = (100_000, 50, 100)
"""How rarely to look for garbage: there are many objects, and hardly any that need looking for."""

_ResultT = TypeVar("_ResultT")


def simulate(seed: int, main: Callable[..., Awaitable[_ResultT]], *args: Any) -> _ResultT:
    """Run ``main`` in simulated time; the same seed runs tasks in the same order, which trio makes random."""
    scheduler: Any = trio._core._run  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    # What was there before is not looked over for garbage again and again: a third of a simulation's time.
    frozen = gc.get_freeze_count()
    if not frozen:
        gc.freeze()
    thresholds = gc.get_threshold()
    gc.set_threshold(*GARBAGE)
    try:
        return trio.run(main, *args, clock=SimClock())
    finally:
        gc.set_threshold(*thresholds)
        if not frozen:  # else whoever did it before wants it to stay so
            gc.unfreeze()


class SimClock(Clock):
    """For ``trio.run(…, clock=SimClock())``, where no other thread runs and nothing waits for a socket."""

    def __init__(self) -> None:
        self._now = 0.0
        self._idle = False

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Asked by the loop when no task can run: the second time in a row, it is ``deadline``."""
        if deadline <= self._now:
            return 0.0
        self._idle = not self._idle  # what another part of the loop has been told to do comes first
        if not self._idle and math.isfinite(deadline):
            self._now = max(deadline, round(math.ceil(deadline / TICK_S) * TICK_S, 6))
        return 0.0 if math.isfinite(deadline) else 1.0
