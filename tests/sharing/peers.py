"""Peers in memory that give weights, honest ones and others."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from shoal.net.channel import Channel
from shoal.net.pool import ChannelPool
from shoal.progress import silent
from shoal.sharing.peer_fetcher import PeerFetcher
from shoal.sharing.pull import Pull
from shoal.sharing.share_pace import SharePace
from shoal.sharing.shared_model import SharedModel
from shoal.sharing.weight_server import WeightServer
from shoal.tasks import one_error
from shoal.testing.memory import MemoryNetwork, World
from shoal.types import PeerAddress, PeerId
from shoal.wire.fetching import Fetch
from shoal.wire.messages import Message

Answer = Callable[[Channel, Fetch], None]


@dataclass(eq=False)
class Sharer:
    """A peer that gives weights, or does something else when it is asked."""

    network: MemoryNetwork
    server: WeightServer
    pool: ChannelPool
    answer: Answer | None = None
    asked: int = 0

    async def handle(self, channel: Channel, message: Message, payload: bytes) -> None:
        self.asked += 1
        if self.answer is not None and isinstance(message, Fetch):
            self.answer(channel, message)
        else:
            await self.server.take(channel, message, payload)


async def add_sharer(
    nursery: trio.Nursery, world: World, shared: SharedModel, answer: Answer | None = None, rate: int = 0
) -> Sharer:
    """One more peer. ``answer``: instead of an honest one; ``rate``: bytes a second, 0 for no bound."""
    network, server = world.network(), WeightServer(SharePace(rate))
    server.share(shared)
    found = Sharer(network, server, None, answer)  # pyright: ignore[reportArgumentType]
    found.pool = ChannelPool(network, found.handle, lambda channel, reason: None)
    await nursery.start(server.run)
    await nursery.start(partial(found.pool.run, accept=True))
    return found


@dataclass
class Puller:
    """A peer that has nothing."""

    pull: Pull
    fetcher: PeerFetcher
    blamed: list[PeerId]


@asynccontextmanager
async def puller(world: World, shared: SharedModel, sharers: Sequence[Sharer]) -> AsyncGenerator[Puller]:
    """A pull that knows of all these peers."""
    network = world.network()
    fetcher = PeerFetcher(network, shared.model.digest)
    blamed: list[PeerId] = []

    async def find() -> list[PeerAddress]:
        return [sharer.network.address for sharer in sharers if sharer.network.peer not in blamed]

    pull = Pull(fetcher, find, blame=blamed.append, progress=silent, name="fish")
    with one_error():
        async with trio.open_nursery() as nursery:
            await nursery.start(fetcher.run)
            yield Puller(pull, fetcher, blamed)
            nursery.cancel_scope.cancel()


def tree_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
