"""What has come back of a session's steps, in the order in which they were sent, or why nothing more will."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import trio

from shoal.client.scores import TokenScore
from shoal.errors import ShoalError
from shoal.types import Codec
from shoal.wire.messages import HopTime
from shoal.wire.session import Issued


@dataclass(frozen=True, slots=True)
class Returned:
    """What one step brought back."""

    payload: bytes
    """``rows`` rows of hidden states in ``codec``."""
    codec: Codec
    rows: int
    step: Issued
    """Which it answers."""
    times: tuple[HopTime, ...]
    took_s: float
    """From when it was sent until it was back."""
    token: int | None = None
    """Which follows, where it was chosen and its step was sent when this came."""


@dataclass(frozen=True, slots=True)
class NextToken:
    """The token that follows what was appended."""

    token: int
    returned: Returned | None
    """The step that gave it; ``None`` for all but the first token of one that gave several."""
    score: TokenScore | None
    """How likely the token was, if that was asked for."""
    complete: bool
    """Whether its grammar allows nothing after it."""

    @property
    def times(self) -> tuple[HopTime, ...]:
        """Where the step's time went, by hop."""
        return self.returned.times if self.returned else ()


class Results:
    """Results that wait to be taken. All on the event loop."""

    def __init__(self) -> None:
        self._arrived: deque[Returned | ShoalError] = deque()
        self.news = trio.Event()
        """Set when something has come, and replaced: who waits takes it anew each time."""
        self.broken: ShoalError | None = None
        """Why nothing more will come."""

    def __len__(self) -> int:
        return len(self._arrived)

    def add(self, result: Returned | ShoalError) -> None:
        """A step has come back, or has failed."""
        self._arrived.append(result)
        self.wake()

    def take(self) -> Returned:
        """The oldest. There must be one. Raises what it failed with."""
        result = self._arrived.popleft()
        if isinstance(result, ShoalError):
            raise result
        return result

    def end(self, error: ShoalError) -> None:
        """Nothing more will come. The first reason stays: what follows it is most often its consequence."""
        self.broken = self.broken or error
        self.wake()

    def begin_again(self) -> None:
        """The route is to be whole again; what came over the old one is sent again."""
        self._arrived.clear()
        self.broken = None

    def cut(self, position: int) -> None:
        """Forget what came for steps from ``position`` on, and every failure."""
        self._arrived = deque(
            r for r in self._arrived if isinstance(r, Returned) and r.step.position < position
        )

    def wake(self) -> None:
        """Have whoever waits look again."""
        self.news.set()
        self.news = trio.Event()
