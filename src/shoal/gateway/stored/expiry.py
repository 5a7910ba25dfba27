"""How long things are kept, and the clock that says so."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

DAY_S = 86400.0
SWEEP_EVERY_S = 60.0
"""Between two looks for what has expired. Until then it is there, but nobody is given it."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """Whether things are kept at all, and until when."""

    days: int = 30
    """0 keeps nothing."""
    clock: Callable[[], float] = time.time
    """Seconds since 1970."""

    @property
    def on(self) -> bool:
        return self.days > 0

    @property
    def longest_s(self) -> float:
        """How long anything is kept at most."""
        return self.days * DAY_S
