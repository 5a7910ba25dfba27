"""One answer, timed as a user sees it come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import trio

from shoal.client.answer import Answer
from shoal.client.swarm import Swarm
from shoal.errors import DeadlineExceeded
from shoal.testing.lab.plan import LabPrompt
from shoal.types import Format, PeerId

PATIENCE_S = 120.0
"""An answer that says nothing for so long is given up: a session must never hang."""


@dataclass(frozen=True, slots=True)
class LabRequest:
    """What is asked, the same way every time."""

    model: str
    prompt: LabPrompt
    max_tokens: int
    format: Format | None


@dataclass(eq=False)
class TimedAnswer:
    """One answer. Times are seconds on trio's clock."""

    prompt: int
    """Which of the prompts it is for."""
    session: int
    answer: Answer
    began: float
    times: list[float] = field(default_factory=list[float])
    """When each token came."""
    ended: float | None = None
    error: BaseException | None = None
    hits: list[float] = field(default_factory=list[float])
    """When something was done to the nodes meanwhile."""

    @property
    def token_ids(self) -> list[int]:
        return self.answer.token_ids

    def hop(self, index: int) -> PeerId | None:
        """Who is at that place of the route now."""
        route = self.answer.route
        return route[index].peer if index < len(route) else None

    @property
    def gap_s(self) -> float:
        return longest_gap(self.hits, self.times)


def longest_gap(hits: Sequence[float], times: Sequence[float]) -> float:
    """The longest time between two tokens; the first of them is waited for from the first hit before it.

    Args:
        hits: when something was done to the nodes.
        times: when each token came.
    """
    early = [hit for hit in hits if times and hit < times[0]]
    marks = [min(early), *times] if early else list(times)
    return max((after - before for before, after in pairwise(marks)), default=0.0)


def ask(swarm: Swarm, question: LabRequest, prompt: int, session: int = 0) -> TimedAnswer:
    """A question that is about to be sent: :func:`listen` does that."""
    answer = swarm.generate(
        question.model, question.prompt, max_tokens=question.max_tokens, format=question.format
    )
    return TimedAnswer(prompt, session, answer, trio.current_time())


async def listen(asked: TimedAnswer) -> None:
    """Take the answer as it comes, to its end. What goes wrong is kept in it, never raised."""
    try:
        with trio.CancelScope(deadline=trio.current_time() + PATIENCE_S) as patience:
            async for delta in asked.answer:
                asked.times += [trio.current_time()] * len(delta.token_ids)
                patience.deadline = trio.current_time() + PATIENCE_S
        if patience.cancelled_caught:
            asked.error = DeadlineExceeded(f"the lab heard nothing for {PATIENCE_S:.0f} s and gave up")
    except Exception as error:  # noqa: BLE001  one that is no ShoalError is among what the lab looks for
        asked.error = error
    finally:
        asked.ended = trio.current_time()
