"""What will happen when: functions to call at a time of trio's clock, without a task for each."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

import trio


class Agenda:
    """Calls functions in the order of their times; those of one time in the order in which they were
    entered."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._sleep = trio.CancelScope()
        self._next = math.inf

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Have ``call`` called so many seconds from now. It must not raise."""
        time = trio.current_time() + seconds
        heapq.heappush(self._entries, (time, next(self._numbers), call))
        if time < self._next:
            self._next = self._sleep.deadline = time

    async def run(self) -> None:
        """Call what is due, until cancelled."""
        while True:
            now = trio.current_time()
            while self._entries and self._entries[0][0] <= now:
                heapq.heappop(self._entries)[2]()
            self._next = self._entries[0][0] if self._entries else math.inf
            self._sleep = trio.CancelScope(deadline=self._next)
            with self._sleep:
                await trio.sleep_forever()
