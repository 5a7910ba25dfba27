"""Members of a simulated swarm: they join, leave and die."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from shoal.swarm.announcement import Served
from shoal.swarm.clock import Clock
from shoal.swarm.member import Member
from shoal.testing.sim import model
from shoal.testing.sim.internet import Internet, SimNetwork
from shoal.types import PeerId, Span

BOOTSTRAP = 3
"""Peers that an invite names."""
SPAN = 8
"""Blocks that a node serves."""


@dataclass(eq=False)
class Peer:
    """One member, its network, and the life of its process."""

    network: SimNetwork
    member: Member
    clock: WallClock
    life: trio.Nursery
    """Everything that its process does."""
    joined_at: float = 0.0

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
    """What a node of the simulated model announces that has nothing to do."""
    shape = model.SHAPE
    sizes = (shape.n_blocks, shape.hidden_size, shape.context, shape.vocab_size, span.start, span.end)
    return Served(
        shape.name, shape.digest, *sizes, "fp32", 65536, 65536, 0, 8.0, numerics="n1/fp32/auto/modules"
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
    """The nodes that serve."""
    died_at: dict[PeerId, float] = field(default_factory=dict[PeerId, float])

    @classmethod
    @asynccontextmanager
    async def running(cls, chance: random.Random, *, loss: float = 0.01) -> AsyncGenerator[SimPeers]:
        """An empty swarm, until the block ends."""
        internet = Internet(chance=chance, loss=loss)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(internet.agenda.run)
            yield cls(internet, chance, nursery)
            nursery.cancel_scope.cancel()

    async def enter(self) -> Peer:
        """One more member that serves nothing; returns when it takes part."""
        network = self.internet.network()
        named = self.chance.sample(self.alive, min(BOOTSTRAP, len(self.alive)))
        wall = WallClock()
        member = Member(
            network,
            announce_s=self.announce_s,
            expiry_s=self.expiry_s,
            bootstrap=[f"/memory/{other.peer}/p2p/{other.peer}" for other in named],
            clock=Clock(trio.current_time, wall),
            chance=random.Random(self.chance.random()),
        )
        return await self.nursery.start(self._live, network, member, wall)

    async def join(self) -> Peer:
        """One more node; returns when it takes part and has announced itself."""
        peer = await self.enter()
        start = self.chance.randrange(0, model.N_BLOCKS, SPAN)
        await self.announce(peer, partial(a_served, Span(start, start + SPAN)))
        return peer

    async def announce(self, peer: Peer, served: Callable[[], Served]) -> None:
        """A member begins to serve."""
        peer.member.served = served
        peer.joined_at = trio.current_time()
        await peer.member.announce()
        self.alive.append(peer)

    async def _live(
        self, network: SimNetwork, member: Member, wall: WallClock, *, task_status: trio.TaskStatus[Peer]
    ) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(member.run)
            task_status.started(Peer(network, member, wall, nursery))

    def kill(self, peer: Peer, *, silent: bool) -> None:
        """A peer is dead; see :meth:`Internet.kill`."""
        if peer in self.alive:
            self.alive.remove(peer)
        self.died_at[peer.peer] = trio.current_time()
        self.internet.kill(peer.peer, silent=silent)
        peer.life.cancel_scope.cancel()
