"""The connections that a member keeps up, and the notes that it compares over them.

In a small swarm it keeps some, no matter with whom. In a large one most are with peers of its models: over
them the words of those models' topics come. A few others hold the swarm together.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Protocol

import trio

from shoal.errors import ChannelClosed, DeadlineExceeded, RemoteProtocolError, ShoalError
from shoal.net.network import Network
from shoal.swarm import gossip_rate
from shoal.swarm.announcement import Announcement
from shoal.swarm.anti_entropy import MAX_PEERS, DirectoryPart
from shoal.swarm.directory import Directory
from shoal.swarm.views.look_up import DIAL_WITHIN_S
from shoal.swarm.views.rules import COMPARED, TOLD
from shoal.swarm.views.size import SwarmSize
from shoal.types import Digest, PeerId

CONNECTIONS = 8
"""Connections that a member tries to keep, bootstrap peers among them."""
MODEL_CONNECTIONS, CONNECTIONS_MOST = 6, 24
"""With peers of each of its models, in a large swarm; and with those of all of them."""
STRANGERS = 2
"""With peers of others there."""
ABOUT_ALL = 1 / 4
"""Of the comparisons in a large swarm: how many are about other models, too."""
GREET_EVERY_S = 0.5
GREETED_AT_ONCE = 16
NEXT_AFTER_S = 0.25
"""How long one that is greeted is waited for before the next is greeted beside it. One after the other, what
the first tells is not asked for again; and who is silent holds up nobody."""


class HearFrom(Protocol):
    """Hears what a connected peer knows of a part of the swarm."""

    def __call__(
        self, peer: PeerId, part: DirectoryPart, models: Collection[Digest] = (), most: int = MAX_PEERS
    ) -> Awaitable[None]: ...


def whom_to_dial(
    by_model: Collection[Collection[PeerId]],
    others: Collection[PeerId],
    connected: Collection[PeerId],
    chance: random.Random,
) -> list[PeerId]:
    """Whom a member of a large swarm connects to. Pure.

    Args:
        by_model: of each of its models, the peers that it knows.
        others: the peers of other models that it knows.
    """
    wanted = min(MODEL_CONNECTIONS, max(STRANGERS, CONNECTIONS_MOST // max(1, len(by_model))))
    dialled: dict[PeerId, None] = {}
    for peers, enough in (*((peers, wanted) for peers in by_model), (others, STRANGERS)):
        lacking = enough - sum(peer in connected or peer in dialled for peer in peers)
        free = sorted(peer for peer in peers if peer not in connected and peer not in dialled)
        dialled.update(dict.fromkeys(chance.sample(free, max(0, min(lacking, len(free))))))
    return list(dialled)


class Neighbours:
    """What one member does about its connections. ``run`` and ``greet`` must be running.

    Args:
        join: dials the bootstrap peers.
        pull: hears what a peer knows.
    """

    def __init__(
        self,
        network: Network,
        directory: Directory,
        size: SwarmSize,
        announce_s: float,
        chance: random.Random,
        *,
        now: Callable[[], float],
        join: Callable[[], Awaitable[object]],
        pull: HearFrom,
    ) -> None:
        self._network = network
        self._directory = directory
        self._size = size
        self._announce_s = announce_s
        self._random = chance
        self._now = now
        self._join = join
        self._pull = pull

    async def run(self) -> None:
        """Keep some connections, whoever the bootstrap peers were, and compare notes with one of them."""
        while True:
            await trio.sleep(self._announce_s * self._random.uniform(0.5, 1.0))
            connected = {c.peer for c in self._network.connections()}
            if not connected:
                await self._join()
            dialled = self._strangers(connected)
            # Of two halves of a swarm that were cut from each other, each has the other for lost (as in
            # Serf).
            lost = self._directory.lost()
            dialled += self._random.sample(lost, min(1, len(lost)))
            async with trio.open_nursery() as nursery:
                for announcement in dialled:
                    nursery.start_soon(self._dial, announcement)
            if connected:
                await self._compare(self._random.choice(sorted(connected)))

    async def greet(self) -> None:
        """Compare notes with everybody with whom a connection has come about, by whoever's doing."""
        greeted: set[PeerId] = set()
        async with trio.open_nursery() as nursery:
            while True:
                connected = {c.peer for c in self._network.connections()}
                self._directory.neighbours = frozenset((*connected, self._network.peer))
                # Who has left is greeted again when it comes back.
                greeted &= connected
                waiting = sorted(connected - greeted)
                if not waiting or len(nursery.child_tasks) >= GREETED_AT_ONCE:
                    await trio.sleep(GREET_EVERY_S)
                    continue
                # By chance: nobody chooses a name that comes first.
                greeted.add(peer := self._random.choice(waiting))
                nursery.start_soon(self._greet, peer, heard := trio.Event())
                with trio.move_on_after(NEXT_AFTER_S):
                    await heard.wait()

    async def _greet(self, peer: PeerId, heard: trio.Event) -> None:
        await self._compare(peer)
        heard.set()

    def _strangers(self, connected: set[PeerId]) -> list[Announcement]:
        directory = self._directory
        known = {PeerId(a.peer): a for a in directory.alive(self._now()) if a.peer != self._network.peer}
        if not self._size.partial:
            strangers = [announcement for peer, announcement in known.items() if peer not in connected]
            self._random.shuffle(strangers)
            return strangers[: max(0, CONNECTIONS - len(connected))]
        joined = sorted(self._size.joined)
        # Not those drawn by chance: most of them may be of one with many names.
        ours = [{peer for peer in directory.unlike(digest) if peer in known} for digest in joined]
        others = {peer for peer, said in known.items() if said.served and said.served.digest not in joined}
        return [known[peer] for peer in whom_to_dial(ours, others, connected, self._random)]

    async def _compare(self, peer: PeerId) -> None:
        """Compare a part of the directory, chosen at random, with a neighbour's."""
        with suppress(ChannelClosed, DeadlineExceeded, RemoteProtocolError):
            joined = sorted(self._size.joined)
            if not joined or self._random.random() < ABOUT_ALL:
                of = gossip_rate.parts(len(self._directory))
                most = COMPARED if self._size.partial else MAX_PEERS
                await self._pull(peer, DirectoryPart(of, self._random.randrange(of)), (), most)
            else:
                # Of one model at a time. Who has just begun to ask for it wants more than a part.
                digest = self._random.choice(joined)
                known = sum(1 for _ in self._directory.serving(digest, self._now()))
                few = known < min(TOLD, self._size.of(digest))
                of = 1 if few else gossip_rate.parts(known)
                part = DirectoryPart(of, self._random.randrange(of))
                await self._pull(peer, part, (digest,), TOLD if few else COMPARED)

    async def _dial(self, announcement: Announcement) -> None:
        with suppress(ShoalError):  # a stranger that cannot be dialled is no fault of ours
            await self._network.approach(announcement.address, deadline_s=DIAL_WITHIN_S)
