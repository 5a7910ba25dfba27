"""How often guesses turn out right, by what they were guessed by. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

DECAY = 0.97
"""What a guess counts for with each later one of its source: about the last thirty count."""
PRIOR = (1.0, 1.0)
"""Right and wrong guesses that a source begins with."""
DOUBT = 0.5
"""Standard errors by which an acceptance is taken for less than it was."""


@dataclass(slots=True)
class Acceptance:
    """Of one answer."""

    _counts: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def note(self, source: str, right: bool) -> None:
        """A guess of ``source`` was right, or was not."""
        good, bad = self._counts.get(source, PRIOR)
        self._counts[source] = (DECAY * good + right, DECAY * bad + (not right))

    def likely(self, source: str) -> float:
        """How likely the next guess of ``source`` is right, with some doubt where little is known."""
        good, bad = self._counts.get(source, PRIOR)
        count = good + bad
        mean = good / count
        return max(0.0, mean - DOUBT * (mean * (1 - mean) / (count + 1)) ** 0.5)
