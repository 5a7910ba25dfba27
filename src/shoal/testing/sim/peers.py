"""Members of a simulated swarm: they join, leave and die."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from shoal.swarm.announcement import Served
from shoal.swarm.clock import Clock
from shoal.swarm.member import Member
from shoal.testing.sim.internet import Internet, SimNetwork
from shoal.types import Digest, PeerId, Span

DIGEST = Digest("sha256:" + "5" * 64)
N_BLOCKS = 32
BOOTSTRAP = 3
"""Peers that an invite names."""


@dataclass(eq=False)
class Peer:
    """One member, its network, and the life of its process."""

    network: SimNetwork
    member: Member
    clock: WallClock
    joined_at: float
    life: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def peer(self) -> PeerId:
        return self.network.peer


@dataclass(eq=False)
class WallClock:
    """A wall clock that can be wrong; the true one is trio's."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        return EPOCH + trio.current_time() + self.ahead_s


EPOCH = 1.8e9
"""When the simulation begins: seconds since the epoch."""


def a_served(span: Span) -> Served:
    """What a node of the simulated model announces."""
    return Served(
        "simulated", DIGEST, N_BLOCKS, 2, 4096, 512, span.start, span.end, "fp32", 65536, 65536, 0, 8.0
    )


@dataclass(eq=False)
class SimPeers:
    """All members there are."""

    internet: Internet
    chance: random.Random
    nursery: trio.Nursery
    announce_s: float = 10.0
    expiry_s: float = 30.0
    alive: list[Peer] = field(default_factory=list[Peer])

    @classmethod
    @asynccontextmanager
    async def running(cls, chance: random.Random, *, loss: float = 0.01) -> AsyncGenerator[SimPeers]:
        """An empty swarm, until the block ends."""
        internet = Internet(chance=chance, loss=loss)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(internet.agenda.run)
            yield cls(internet, chance, nursery)
            nursery.cancel_scope.cancel()

    async def join(self) -> Peer:
        """One more node; returns when it takes part and has announced itself."""
        network = self.internet.network()
        named = self.chance.sample(self.alive, min(BOOTSTRAP, len(self.alive)))
        wall = WallClock()
        member = Member(
            network,
            announce_s=self.announce_s,
            expiry_s=self.expiry_s,
            bootstrap=[f"/memory/{other.peer}/p2p/{other.peer}" for other in named],
            clock=Clock(trio.current_time, wall),
        )
        start = self.chance.randrange(0, N_BLOCKS, 8)
        peer = Peer(network, member, wall, trio.current_time())

        async def live(*, task_status: trio.TaskStatus[None]) -> None:
            with peer.life:
                await member.run(task_status=task_status)

        await self.nursery.start(live)
        served = a_served(Span(start, start + 8))
        member.served = lambda: served
        peer.joined_at = trio.current_time()
        await member.announce()
        self.alive.append(peer)
        return peer

    def kill(self, peer: Peer, *, silent: bool) -> None:
        """A peer is dead; see :meth:`Internet.kill`."""
        self.alive.remove(peer)
        self.internet.kill(peer.peer, silent=silent)
        peer.life.cancel()
