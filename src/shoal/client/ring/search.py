"""What attempts to open one session have shown so far: who is left out of the next, and what time it has."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.errors import ShoalError
from shoal.types import PeerId

NEWCOMER_OPENS_S = 0.75
"""What a route has to open the session, where there are others and a hop of it has not answered before."""


@dataclass(slots=True)
class Search:
    """See the module."""

    trial: bool
    avoid: set[PeerId] = field(default_factory=set[PeerId])
    doubtful: set[PeerId] = field(default_factory=set[PeerId])
    """Of those, who had little time or is at odds with another: asked again when nobody else is left."""
    hurried: bool = True
    """Whether routes with newcomers have less time than there is."""
    newcomer_opens_s: float = NEWCOMER_OPENS_S
    refused: ShoalError | None = None
    """Why the last one was."""
    asked_others: bool = False
    """Whether those were asked what they run on who were not needed for a route at first."""
    renewed: set[PeerId] = field(default_factory=set[PeerId])
    """Who was asked that again, as it has another key than it had shown."""

    def ask_doubtful_again(self) -> bool:
        """Whether there is anybody to ask again; they then have all the time there is."""
        if not self.doubtful:
            return False
        self.avoid -= self.doubtful
        self.doubtful = set()
        self.hurried = False
        return True
