"""What the store wants of wherever models come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shoal.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A model that a source has."""

    name: str
    """What it is to be called here."""
    origin: str
    """Where it comes from, as it is recorded: ``catalogue:…``, ``folder:…``, ``gguf:…``, ``hub:…``."""
    disk: int = 0
    """Bytes that fetching and converting it take below the store; 0 where that is not known yet."""
    exclusive: bool = False
    """Whether nothing else is called so. Any other gets a number behind its name where that is taken."""


class Source(Protocol):
    """Somewhere that models come from. From any thread; importing it takes no time."""

    local: bool
    """Whether all that it has is on this machine."""

    def identify(self, name: str) -> str | None:
        """Its own id for what ``name`` means, as an origin ends; ``None`` for a name that is none of its own.

        Nobody is asked over a network, so what it identifies need not be there.
        """
        ...

    def offer(self, id: str) -> Offer:
        """What would be fetched for an id of :meth:`identify`, as far as that is known without a network.

        Raises:
            BadWeights: it can be seen to be damaged or incomplete.
        """
        ...

    def fetch(self, offer: Offer, scratch: Path, progress: Progress) -> Path | Offer:
        """Bring what was offered.

        Args:
            scratch: an empty folder for it, gone afterwards; not used by a source that keeps what it brings.

        Returns:
            A folder that transformers loads, which is only referred to, or a GGUF file, which is converted.
            Another offer, where what was offered turns out to be a place that holds just that model.

        Raises:
            UnknownModel: there is no such model, or it cannot be had; says why, and what to try.
            BadWeights: it is not what it should be.
            OutOfResources, OSError: the disk is full.
        """
        ...
