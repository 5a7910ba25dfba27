"""Neighbours watch each other, so that a dead peer is gone everywhere within one expiry.

A member looks after a few of the peers that it has a connection to, whatever the size of the swarm. Who
does not answer, and cannot be dialled again, is suspected (:mod:`shoal.swarm.failure.suspicion`). In
fractions of an expiry, at worst: 1/10 until the next look, 2/6 for two attempts, 2/5 until a suspicion is
certain; the rest is gossip's.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

import trio

from shoal.errors import ShoalError
from shoal.net.network import Network
from shoal.routing.coordinates import Position, read_coordinates
from shoal.swarm.announcement import Announcement
from shoal.swarm.directory import Directory
from shoal.types import PeerId

WATCHED = 4
"""Neighbours that are looked after in each round, chosen anew where there are more: each is a neighbour of
several, so hardly a round passes without somebody who looks."""
LOOK_SHARE = 1 / 10
"""Of an expiry: from one look to the next."""
ANSWER_SHARE = 1 / 6
"""Of an expiry: how long a neighbour may take to answer."""
ANSWER_LEAST_S = 2.0
"""A machine that is busy for so long is not dead, however short the expiry."""
ATTEMPTS = 2
UNHEARD_SHARE = 10
"""Of an expiry: a peer that has refuted our suspicion lives, though not for us; it is left in peace for so
long."""

log = logging.getLogger(__name__)


class NeighbourProbe:
    """Looks after the neighbours of one member.

    Args:
        suspect: tells the swarm that a peer does not answer; whether that could be said.
    """

    def __init__(
        self,
        network: Network,
        directory: Directory,
        now: Callable[[], float],
        expiry_s: float,
        suspect: Callable[[PeerId], Awaitable[bool]],
        chance: random.Random,
    ) -> None:
        self._network = network
        self._directory = directory
        self._now = now
        self._expiry_s = expiry_s
        self._suspect = suspect
        self._neighbours: set[PeerId] = set()
        self._suspected: dict[PeerId, int] = {}
        self._in_peace: dict[PeerId, float] = {}
        self._random = chance
        self.position = Position()
        """Where this member is, by the round trips to its neighbours."""

    async def run(self) -> None:
        """Look after neighbours until cancelled."""
        while True:
            await trio.sleep(self._expiry_s * LOOK_SHARE * self._random.uniform(0.8, 1.0))
            self._settle()
            announced = self._due()
            async with trio.open_nursery() as nursery:
                for announcement in announced:
                    nursery.start_soon(self._look, announcement)

    def _due(self) -> list[Announcement]:
        """Whose turn it is: first those whose connection has ended since the last look, then some others."""
        connected = {connection.peer for connection in self._network.connections()}
        lost, self._neighbours = self._neighbours - connected, connected
        looked_after = [*sorted(lost), *self._random.sample(sorted(connected), min(WATCHED, len(connected)))]
        now = self._now()
        self._in_peace = {peer: until for peer, until in self._in_peace.items() if until > now}
        due = (peer for peer in looked_after if peer not in self._in_peace and peer not in self._suspected)
        return [announcement for peer in due if (announcement := self._directory.get(peer)) is not None]

    async def _look(self, announcement: Announcement) -> None:
        peer = PeerId(announcement.peer)
        if await self._answers(announcement) or self._directory.get(peer) != announcement:
            return  # it lives, or has said something since
        if await self._suspect(peer):
            self._suspected[peer] = announcement.sequence
        else:
            self._neighbours.add(peer)  # what it has said is too new to be suspected: it has another look

    async def _answers(self, announcement: Announcement) -> bool:
        deadline_s = max(ANSWER_LEAST_S, self._expiry_s * ANSWER_SHARE)
        peer = PeerId(announcement.peer)
        for _ in range(ATTEMPTS):
            try:
                if peer not in self._neighbours:
                    await self._network.approach(announcement.address, deadline_s=deadline_s)
                rtt_s = await self._network.ping(peer, deadline_s=deadline_s)
            except ShoalError as error:
                log.debug("%s does not answer: %s", peer, error)
            else:
                self._move(peer, rtt_s)
                return True
        return False

    def _move(self, peer: PeerId, rtt_s: float) -> None:
        said = self._directory.get(peer)
        other = read_coordinates(said.served.coordinates) if said is not None and said.served else None
        if other is not None:
            self.position.measured(other, rtt_s, self._random)

    def _settle(self) -> None:
        """See what became of those whom we suspected."""
        for peer, sequence in list(self._suspected.items()):
            newest = self._directory.get(peer)
            if newest is not None and newest.sequence == sequence:
                continue
            del self._suspected[peer]
            if newest is not None:
                self._in_peace[peer] = self._now() + self._expiry_s * UNHEARD_SHARE
