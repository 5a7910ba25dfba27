"""What will happen when: one heap."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class Events:
    """Calls functions in the order of their times; those of one time in the order in which they came."""

    def __init__(self) -> None:
        self.now = 0.0
        self.count = 0
        """Events so far."""
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()

    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        """Have ``call`` called at ``time``, or now if that is over."""
        heapq.heappush(self._heap, (max(time, self.now), next(self._numbers), call, args))

    def after(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        """Have ``call`` called so many seconds from now."""
        self.at(self.now + seconds, call, *args)

    def run(self, until: float) -> None:
        """Let everything happen up to ``until``."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, call, args = heapq.heappop(heap)
            self.count += 1
            call(*args)
        self.now = until
