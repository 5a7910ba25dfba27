"""What a node of the simulation is and knows. Words are shared by all who have heard them."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.planning.throughput import ServingPeer
from shoal.routing.coordinates import Coordinates, Position
from shoal.swarm.announcement import Served
from shoal.swarm.views.peer_sample import PeerSample, SecretRank, ViewedPeer, part_of
from shoal.swarm.views.rules import ViewRules
from shoal.types import PeerId, Span

RULES = ViewRules()


class HeardWord:
    """An announcement, as all who hear it share it."""

    __slots__ = (
        "absurd",
        "index",
        "model",
        "network",
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
        self.part = part_of(served)
        self.network = f"network {index}"
        self.placed: ServingPeer | None = None
        """Where it serves, as placement sees it; ``None`` while it does not."""
        self.there: ServingPeer | None = None
        """The same of where it is going, if it is."""


class KeptWords:
    """The words of those whom a member keeps: of all of a small swarm, of a large one by the product's rules.

    Args:
        key: of the ranks; ``None`` in a small swarm.
    """

    __slots__ = ("_rank", "view", "words")

    def __init__(self, key: bytes | None) -> None:
        self.words: dict[PeerId, HeardWord] = {}
        self._rank = SecretRank(key or b"")
        self.view = PeerSample(RULES.view_peers, RULES.drawn_peers) if key is not None else None

    @property
    def drawn(self) -> Iterable[HeardWord]:
        """The words of those by whom a member sees what its model lacks."""
        if self.view is None:
            return self.words.values()
        words = self.words
        return [words[peer] for peer in self.view.drawn]

    @property
    def peers(self) -> int:
        """How many there are, as far as was heard."""
        return len(self.words) if self.view is None else self.view.estimate

    def take(self, word: HeardWord) -> None:
        """Keep a word, if there is a place for its peer."""
        peer, view = word.peer, self.view
        known = self.words.get(peer)
        if known is not None and word.sequence <= known.sequence:
            return
        if view is not None:
            if known is None:
                for gone in view.offer(self._viewed(word)):
                    del self.words[gone]
                if peer not in view:
                    return
            elif known.part != word.part:
                view.update(self._viewed(word))
        self.words[peer] = word

    def drop(self, peer: PeerId, sequence: int) -> bool:
        """Forget a peer that is gone, unless it has said something newer; whether it was there."""
        known = self.words.get(peer)
        if known is None or known.sequence > sequence:
            return False
        del self.words[peer]
        if self.view is not None:
            self.view.remove(peer)
        return True

    def _viewed(self, word: HeardWord) -> ViewedPeer:
        return ViewedPeer(word.peer, word.part, word.network, self._rank(word.peer))


class ScaleNode:
    """One machine while it takes part."""

    __slots__ = (
        "alive",
        "carries",
        "fits",
        "going",
        "index",
        "kept",
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
    )

    def __init__(
        self, index: int, model: int, n_blocks: int, speed: float, fits: int, carries: float, *, partial: bool
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
        self.kept = KeptWords(b"%d" % index if partial else None)
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

    def hear(self, word: HeardWord) -> None:
        """A word has come."""
        if not word.absurd and word.index != self.index:
            self.kept.take(word)

    def placed(self, now: float, before: PeerId | None = None) -> list[ServingPeer]:
        """Who else serves its model, by what it heard last; those that are going, where they will be.

        Args:
            before: of those, only the ones with a smaller peer id.
        """
        model = self.model
        found: list[ServingPeer] = []
        for word in self.kept.drawn:
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
            for word in self.kept.drawn
            if word.model == self.model
            and word.until > now
            and word.placed is not None
            and not (word.there is not None and (before is None or word.peer < before))
        ]
