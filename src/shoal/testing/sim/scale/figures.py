"""What is seen while a swarm is simulated, and what is made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(slots=True)
class Seen:
    """Everything that is counted as it happens."""

    news_s: list[npt.NDArray[np.float64]] = field(default_factory=list[npt.NDArray[np.float64]])
    """For each announcement of a new place, seconds until each who needs it had it."""
    moves: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    """When, and how many blocks it left to nobody."""
    lost_blocks: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    """The same of who went or died."""
    gone_s: dict[int, float] = field(default_factory=dict[int, float])
    """For each death, seconds until the last who knew the peer took it for gone; infinite if one did not."""

    def news(self, delays: npt.NDArray[np.float64]) -> None:
        """A new place was announced."""
        self.news_s.append(delays)

    def move(self, now: float, uncovered: int) -> None:
        """A node has moved."""
        self.moves.append((now, uncovered))

    def lost(self, now: float, uncovered: int) -> None:
        """A node that served is there no more."""
        self.lost_blocks.append((now, uncovered))

    def forgotten(self, index: int, died: float, now: float) -> None:
        """Somebody took a dead peer for gone."""
        self.gone_s[index] = max(self.gone_s.get(index, 0.0), now - died)

    def unnoticed(self, index: int) -> None:
        """Somebody still takes for alive who died long ago."""
        self.gone_s[index] = math.inf


def percentile(values: Any, share: float) -> float:
    """Of any numbers; not a number where there are none."""
    found = np.asarray(values, np.float64)
    return float(np.quantile(found, share)) if len(found) else float("nan")
