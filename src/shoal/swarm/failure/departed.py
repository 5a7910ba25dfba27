"""Peers that have gone, remembered so that their last words are not heard again. Pure.

Who was here is told to others. Who says goodbye and was never here is remembered apart, for identities cost
nothing: a flood of goodbyes pushes out none of those who were here. Nobody speaks without end, also not by
going and coming back: what a peer may still say goes with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

from shoal.swarm.announcement import CLOCK_SKEW_S, MAX_LIFETIME_S, Announcement
from shoal.types import PeerId

REMEMBERED_S = MAX_LIFETIME_S + CLOCK_SKEW_S
"""How long: no word from before could be played again after that. Halves of a swarm meet again until then."""
STRANGERS_KEPT = 1024
"""Peers that were not here when they said goodbye."""


@dataclass(frozen=True, slots=True)
class Departed:
    """A peer that is gone, or taken for gone."""

    sequence: int
    since: float
    """When its last word came."""
    words: float
    """That it may say at once, as of ``since``."""
    at: float
    """When it went."""
    key: bytes
    mark: int
    """A hash of its last word, as it was received."""
    last: Announcement | None
    """What it said when it was last heard; ``None`` if it said goodbye."""
    suspected = False
    """Nobody is any more who is gone."""

    def said(self, raw: bytes) -> bool:
        """Whether this is its last word."""
        return hash(raw) == self.mark


class DepartedPeers:
    """The last to go: ``limit`` of those who were here, and some others."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: OrderedDict[PeerId, Departed] = OrderedDict()
        """In the order in which they went, as the next."""
        self._strangers: OrderedDict[PeerId, Departed] = OrderedDict()

    def __iter__(self) -> Iterator[Departed]:
        return chain(self._known.values(), self._strangers.values())

    def get(self, peer: PeerId) -> Departed | None:
        """A peer that is gone; ``None`` if none is remembered."""
        return self._known.get(peer) or self._strangers.get(peer)

    def note(self, peer: PeerId, departed: Departed, *, was_here: bool) -> None:
        """A peer is gone, or has said goodbye once more."""
        was_here = was_here or peer in self._known
        self.forget(peer)
        if was_here:
            memory, limit = self._known, self._limit
        else:
            memory, limit = self._strangers, min(self._limit, STRANGERS_KEPT)
        memory[peer] = departed
        if len(memory) > limit:
            memory.popitem(last=False)

    def forget(self, peer: PeerId) -> None:
        """It is back."""
        self._known.pop(peer, None)
        self._strangers.pop(peer, None)

    def expire(self, now: float) -> None:
        """Forget those whose words could not be played again."""
        for memory in (self._known, self._strangers):
            while memory and next(iter(memory.values())).at + REMEMBERED_S <= now:
                memory.popitem(last=False)

    def lately(self, count: int) -> list[Departed]:
        """Who went last, of those who were here."""
        return list(islice(reversed(self._known.values()), count))

    def lost(self) -> list[Announcement]:
        """The last words of those who are gone without a goodbye."""
        return [departed.last for departed in self._known.values() if departed.last is not None]
