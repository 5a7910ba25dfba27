"""What a node of the simulation is and knows. Words are shared by all who have heard them."""

from __future__ import annotations

import itertools
from random import Random

from shoal.planning.throughput import ServingPeer
from shoal.routing.coordinates import Coordinates, Position
from shoal.swarm.announcement import Served
from shoal.testing.sim.scale import rules
from shoal.types import PeerId, Span


class HeardWord:
    """An announcement, as all who hear it share it."""

    __slots__ = (
        "absurd",
        "index",
        "model",
        "part",
        "peer",
        "placed",
        "sequence",
        "served",
        "size",
        "there",
        "until",
    )

    def __init__(
        self, index: int, peer: PeerId, model: int, served: Served, sequence: int, size: int, until: float
    ) -> None:
        self.index = index
        self.peer = peer
        self.model = model
        self.served = served
        self.sequence = sequence
        self.size = size
        self.until = until
        self.absurd = False
        """Whether it contradicts what its model is known to look like."""
        self.part = min(rules.PARTS - 1, (served.start + served.end) * rules.PARTS // (2 * served.n_blocks))
        self.placed: ServingPeer | None = None
        """Where it serves, as placement sees it; ``None`` while it does not."""
        self.there: ServingPeer | None = None
        """The same of where it is going, if it is."""


class View:
    """Whom a member keeps: at most ``limit``, and when it is full, of all parts of the model alike.

    Who goes for a newcomer is one of the newer half of those of the part that most serve.
    """

    __slots__ = ("_limit", "_parts", "words")

    def __init__(self, limit: int) -> None:
        self.words: dict[int, HeardWord] = {}
        self._limit = limit
        self._parts: list[dict[int, None]] = [{} for _ in range(rules.PARTS)]

    def take(self, word: HeardWord, chance: Random) -> None:
        """Keep a word, if there is a place for its peer."""
        known = self.words.get(word.index)
        if known is None:
            if len(self.words) >= self._limit and not self._make_room(word.part, chance):
                return
            self._parts[word.part][word.index] = None
        elif word.sequence <= known.sequence:
            return
        elif known.part != word.part:
            del self._parts[known.part][word.index]
            self._parts[word.part][word.index] = None
        self.words[word.index] = word

    def drop(self, index: int, sequence: int) -> bool:
        """Forget a peer that is gone, unless it has said something newer; whether it was there."""
        known = self.words.get(index)
        if known is None or known.sequence > sequence:
            return False
        del self.words[index]
        del self._parts[known.part][index]
        return True

    def expire(self, now: float) -> None:
        """Forget what is over."""
        for word in [word for word in self.words.values() if word.until <= now]:
            self.drop(word.index, word.sequence)

    def _make_room(self, part: int, chance: Random) -> bool:
        largest = max(self._parts, key=len)
        if len(self._parts[part]) == len(largest):
            largest = self._parts[part]
            if chance.random() < 0.5:  # by chance, or the first to come would stay for ever
                return False
        count = len(largest)
        index = next(itertools.islice(largest, count // 2 + chance.randrange(count - count // 2), None))
        del largest[index]
        del self.words[index]
        return True


class ScaleNode:
    """One machine while it takes part."""

    __slots__ = (
        "alive",
        "carries",
        "fits",
        "going",
        "heard",
        "index",
        "model",
        "moves",
        "n_blocks",
        "peer",
        "place",
        "position",
        "rests_until",
        "sequence",
        "serving",
        "sessions",
        "span",
        "speed",
        "suspects",
        "view",
    )

    def __init__(
        self, index: int, model: int, n_blocks: int, speed: float, fits: int, carries: float, *, limit: int
    ):
        self.index = index
        self.peer = PeerId(f"12D3KooW{index * 2654435761 % 2**32:010d}{index:034d}")
        self.model = model
        self.n_blocks = n_blocks
        self.speed = speed
        self.fits = fits
        self.carries = carries
        self.place = -1
        """In its topic."""
        self.view = View(limit)
        self.heard: dict[int, HeardWord] = {}
        """The last word of those who spoke last."""
        self.span = Span(0, 1)
        self.going: Span | None = None
        self.serving = False
        self.alive = True
        self.sequence = 0
        self.sessions = 0
        self.moves = 0
        self.rests_until = 0.0
        self.position = Position()

    @property
    def coordinates(self) -> Coordinates:
        """Where it takes itself to be."""
        return self.position.coordinates

    def hear(self, word: HeardWord, chance: Random) -> None:
        """A word has come."""
        if word.absurd or word.index == self.index:
            return
        heard = self.heard
        old = heard.pop(word.index, None)
        if old is not None and old.sequence > word.sequence:
            word = old
        heard[word.index] = word
        if len(heard) > rules.HEARD_PEERS:
            del heard[next(iter(heard))]
        self.view.take(word, chance)

    def drop(self, index: int, sequence: int) -> bool:
        """A peer is gone; whether it was known."""
        word = self.heard.get(index)
        if word is not None and word.sequence <= sequence:
            del self.heard[index]
        return self.view.drop(index, sequence)

    def placed(self, now: float, before: PeerId | None = None) -> list[ServingPeer]:
        """Who else serves its model, by what it heard last; those that are going, where they will be.

        Args:
            before: of those, only the ones with a smaller peer id.
        """
        model = self.model
        found: list[ServingPeer] = []
        for word in self.heard.values():
            if word.model != model or word.until <= now:
                continue
            there = word.there
            if there is not None and (before is None or word.peer < before):
                found.append(there)
            elif word.placed is not None:
                found.append(word.placed)
        return found

    def keeping(self, now: float, before: PeerId | None = None) -> list[ServingPeer]:
        """Who else serves its model now where it is to stay, by what it heard last.

        Args:
            before: of those that are going, only the ones with a smaller peer id leave.
        """
        return [
            word.placed
            for word in self.heard.values()
            if word.model == self.model
            and word.until > now
            and word.placed is not None
            and not (word.there is not None and (before is None or word.peer < before))
        ]
