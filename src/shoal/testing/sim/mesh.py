"""Gossip over a mesh of limited degree, as gossipsub builds it.

https://github.com/libp2p/specs/blob/master/pubsub/gossipsub/gossipsub-v1.0.md: each peer keeps 6 (4 to 12) of
its connections as its mesh, passes on what it sees for the first time and finds valid, and drops what it has
seen. Some others are told that the message is there.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable

from shoal.types import PeerId

DEGREE = 6
LOW = 4
HIGH = 12
LAZY = 6


class Mesh:
    """Who passes gossip on to whom.

    Args:
        connected: the peers that one is connected to.
    """

    def __init__(self, connected: Callable[[PeerId], Iterable[PeerId]], chance: random.Random) -> None:
        self._connected = connected
        self._chance = chance
        self._neighbours: dict[PeerId, dict[PeerId, None]] = defaultdict(dict)

    def neighbours(self, peer: PeerId) -> list[PeerId]:
        """To whom ``peer`` passes on what it hears."""
        return list(self._neighbours.get(peer, ()))

    def strangers(self, peer: PeerId) -> list[PeerId]:
        """Some connections of ``peer`` outside of its mesh."""
        mesh = self._neighbours[peer]
        others = [other for other in self._connected(peer) if other not in mesh]
        return others if len(others) <= LAZY else self._chance.sample(others, LAZY)

    def linked(self, a: PeerId, b: PeerId) -> None:
        """Two peers have connected."""
        for peer in (a, b):
            if len(self._neighbours[peer]) < LOW:
                self._grow(peer)

    def unlinked(self, a: PeerId, b: PeerId) -> None:
        """``a`` is not connected to ``b`` any more."""
        self._neighbours[a].pop(b, None)
        if len(self._neighbours[a]) < LOW:
            self._grow(a)

    def left(self, peer: PeerId) -> None:
        """A peer is no more. Whoever has it in its mesh learns that with the end of the connection."""
        self._neighbours.pop(peer, None)

    def _grow(self, peer: PeerId) -> None:
        mesh = self._neighbours[peer]
        others = [other for other in self._connected(peer) if other not in mesh]
        self._chance.shuffle(others)
        for other in others[: DEGREE - len(mesh)]:
            mesh[other] = None
            self._neighbours[other][peer] = None
            if len(self._neighbours[other]) > HIGH:
                self._prune(other)

    def _prune(self, peer: PeerId) -> None:
        mesh = self._neighbours[peer]
        for other in self._chance.sample(sorted(mesh), len(mesh) - DEGREE):
            mesh.pop(other, None)
            self._neighbours[other].pop(peer, None)
