"""What was guessed ahead, as it is told."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class SourceCounts:
    """What one kind of drafter has guessed: ``ngram`` or ``draft``."""

    guessed: int = 0
    accepted: int = 0


@dataclass(slots=True)
class SpeculationCounts:
    """What was guessed ahead in one answer, and what came of it."""

    steps: int = 0
    """Steps that carried guesses."""
    guessed: int = 0
    """Tokens that were sent before they were known."""
    accepted: int = 0
    """Those of them that were right."""
    off: str = ""
    """Why nothing is guessed, where nothing can be."""
    gain: float = 1.0
    """How much faster tokens came while guesses were sent than they do without."""
    sources: dict[str, SourceCounts] = field(default_factory=dict[str, SourceCounts])
    """The same by what guessed."""
    draft: str = ""
    """The draft model, if one is set."""
    draft_off: str = ""
    """Why it does not guess, where it cannot."""

    def note_sent(self, source: str) -> None:
        """A guess was sent."""
        self.guessed += 1
        self._of(source).guessed += 1

    def note_right(self, source: str) -> None:
        """A guess that was sent was right."""
        self.accepted += 1
        self._of(source).accepted += 1

    def shown(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"gain": round(self.gain, 2)}

    def _of(self, source: str) -> SourceCounts:
        kind = "draft" if source == "draft" else "ngram"  # with its length, and where it was resumed
        return self.sources.setdefault(kind, SourceCounts())
