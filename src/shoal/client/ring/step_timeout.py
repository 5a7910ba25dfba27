"""How long a step is waited for before a hop is held to keep it. Pure: the caller brings the time."""

from __future__ import annotations

from shoal.wire.session import Stuck

LOOK_S = 0.5
"""A step is looked for after this at the earliest."""
BEYOND = 4.0
"""Times as long as it should take, after which a step is looked for."""
REPLIES = 10.0
"""Looks are so many times further apart than the hops take to reply: that is how busy the machines are."""
AT_WORK_S = 2.0
"""A hop that says that it is at work on a step has this at the least."""
AT_WORK_BEYOND = 8.0
"""The same in times as long as the step should take in all."""
UNKNOWN_S = 8.0
"""The same where nobody has measured a step."""


class StepTimeout:
    """With the step that is waited for now.

    Args:
        expected_s: how long the step should take; ``None`` where nobody knows.
    """

    def __init__(self, expected_s: float | None, now: float) -> None:
        self._since = now
        self._expected_s = expected_s
        self._before: Stuck | None = None
        self.look_at = now + max(LOOK_S, BEYOND * (expected_s or 0.0))
        """When to ask where the step is."""

    def over(self, stuck: Stuck, now: float, replied_s: float) -> bool:
        """Whether a hop is to be held to keep the step.

        One look is not enough: the step may have been on its way. Two that give the same are.

        Args:
            stuck: where the step is.
            replied_s: how long the hops took to say so.
        """
        before, self._before = self._before, stuck
        self.look_at = now + max(LOOK_S / 2, REPLIES * replied_s)
        if not stuck.at_work:
            return stuck == before
        limit_s = UNKNOWN_S if self._expected_s is None else max(AT_WORK_S, AT_WORK_BEYOND * self._expected_s)
        return now - self._since >= limit_s
