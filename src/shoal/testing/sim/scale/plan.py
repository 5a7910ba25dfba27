"""What is simulated, and when what happens."""

from __future__ import annotations

from dataclasses import dataclass

REST_S = 90.0
"""Nothing happens but that some come and go: what a node sends at rest."""
CROWD_S = 60.0
"""In so much time the crowd comes."""
AFTER_VANISH_S = 90.0
ANNOUNCE_S = 10.0
EXPIRY_S = 30.0
CROWD = 1000
"""Nodes that come at once; as many as there are, where there are fewer."""


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """One run."""

    nodes: int = 1000
    models: int = 20
    minutes: float = 10.0
    """Simulated, from the end of the crowd to the loss of a region."""
    seed: int = 1
    hostile: float = 0.2
    """Share of the identities."""
    crowd: int = CROWD
    sessions_s: float = 3.0
    """Sessions that begin in a second."""
    draws: int = 500
    """Routes, and look-ups, that are measured when the crowd has settled."""

    @property
    def newcomers(self) -> int:
        """How many nodes come with the crowd."""
        return min(self.crowd, self.nodes)

    @property
    def crowd_at(self) -> float:
        return REST_S

    @property
    def vanish_at(self) -> float:
        return REST_S + CROWD_S + 60 * self.minutes

    @property
    def ends_at(self) -> float:
        return self.vanish_at + AFTER_VANISH_S
