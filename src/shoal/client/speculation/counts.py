"""What was guessed ahead, as it is told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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

    def shown(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"gain": round(self.gain, 2)}
