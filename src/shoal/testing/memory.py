"""A network in memory: the same seam as the real one, with partitions and deaths on demand.

Time is trio's clock, so a test that runs under ``trio.testing.MockClock`` decides how fast it passes.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from shoal.errors import ChannelClosed, DeadlineExceeded, UsageError
from shoal.net.identity import Identity
from shoal.net.network import PeerConnection, ReachView, RequestHandler, Validator
from shoal.types import CarrierName, PeerAddress, PeerId, Way


class MemoryPipe:
    """One end of a pipe; ``chunk`` bytes at most arrive at once, to exercise reassembly."""

    carrier: CarrierName = "memory"
    way: Way = "lan"
    host = ""
    """Set to have the other end come from an address."""
    noise_key = b""
    """The other end's."""
    lost = False
    """Set to have everything lost that is sent."""

    def __init__(
        self,
        peer: PeerId,
        send: trio.MemorySendChannel[bytes],
        receive: trio.MemoryReceiveChannel[bytes],
        bytes_s: float = math.inf,
    ) -> None:
        self.peer = peer
        self._bytes_s = bytes_s
        self._send = send
        self._receive = receive

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if math.isfinite(self._bytes_s):
            await trio.sleep(len(data) / self._bytes_s)
        try:
            if self.lost:
                await trio.lowlevel.checkpoint()
                return
            await self._send.send(bytes(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ChannelClosed("the pipe is gone") from error

    def send_now(self, data: bytes) -> bool:
        return False

    @property
    def unsent(self) -> bool:
        return False

    async def receive_some(self) -> bytes:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            return b""
        except trio.ClosedResourceError as error:
            raise ChannelClosed("the pipe is gone") from error

    async def aclose(self) -> None:
        self._send.close()
        self._receive.close()


def pipe_pair(
    a: PeerId, b: PeerId, depth: int = 16, bytes_s: float = math.inf
) -> tuple[MemoryPipe, MemoryPipe]:
    """Two ends: the first is ``a``'s (its peer is ``b``), the second ``b``'s."""
    to_b, from_a = trio.open_memory_channel[bytes](depth)
    to_a, from_b = trio.open_memory_channel[bytes](depth)
    return MemoryPipe(b, to_b, from_b, bytes_s), MemoryPipe(a, to_a, from_a, bytes_s)


@dataclass
class World:
    """All the peers there are, and what lies between them."""

    peers: dict[PeerId, MemoryNetwork] = field(default_factory=dict)
    providers: dict[bytes, set[PeerId]] = field(default_factory=lambda: defaultdict(set))
    cut: set[frozenset[PeerId]] = field(default_factory=set)
    """Pairs that cannot reach each other."""
    relayed: set[frozenset[PeerId]] = field(default_factory=set)
    """Pairs between which pipes go over a relay."""
    frozen: set[PeerId] = field(default_factory=set[PeerId])
    """Peers of which nothing arrives."""
    bytes_s: float = math.inf
    """How fast the pipes are that are opened from now on."""

    def network(self) -> MemoryNetwork:
        """A new peer."""
        network = MemoryNetwork(self, Identity.ephemeral())
        self.peers[network.peer] = network
        return network

    def reach(self, a: PeerId, b: PeerId) -> MemoryNetwork:
        if b not in self.peers or a not in self.peers or frozenset((a, b)) in self.cut:
            raise ChannelClosed(f"{b} cannot be reached")
        return self.peers[b]

    def freeze(self, peer: PeerId) -> None:
        """Nothing that the peer sends arrives any more, and nobody is told."""
        self.frozen.add(peer)
        for pipe in self.peers[peer].pipes:
            pipe.lost = True

    def break_pipes(self, a: PeerId, b: PeerId, *, silently: bool = False) -> None:
        """The pipes between two peers end, or carry nothing any more, and both peers live."""
        for network, other in ((self.peers[a], b), (self.peers[b], a)):
            for pipe in [pipe for pipe in network.pipes if pipe.peer == other]:
                pipe.lost = True
                if not silently:
                    pipe._send.close()  # pyright: ignore[reportPrivateUsage]
                    network.pipes.remove(pipe)

    def kill(self, peer: PeerId) -> None:
        """The peer is gone without a word; its pipes break."""
        network = self.peers.pop(peer)
        for pipe in network.pipes:
            pipe._send.close()  # pyright: ignore[reportPrivateUsage]
            pipe._receive.close()  # pyright: ignore[reportPrivateUsage]


class MemoryNetwork:
    """One peer's place in a :class:`World`."""

    def __init__(self, world: World, identity: Identity) -> None:
        self._world = world
        self._identity = identity
        self._inbox, self._accept = trio.open_memory_channel[MemoryPipe](64)
        self._answers: dict[str, RequestHandler] = {}
        self._topics: dict[str, tuple[Validator, trio.MemorySendChannel[tuple[PeerId, bytes]]]] = {}
        self.pipes: list[MemoryPipe] = []
        self.host = ""
        """Where others see this peer come from."""
        self.says_at = ""
        """The host at which it says that it is, if it says so."""
        self.noise_key = os.urandom(32)

    @property
    def peer(self) -> PeerId:
        return self._identity.peer

    @property
    def address(self) -> PeerAddress:
        at = (f"/ip4/{self.says_at}/tcp/1",) if self.says_at else ()
        return PeerAddress(self.peer, (f"/memory/{self.peer}", *at))

    def reach(self) -> ReachView:
        return ReachView("none", True, "", ())

    def doubt_ways(self) -> None:
        """Nobody is behind a relay here."""

    async def observe(self) -> ReachView:
        await trio.lowlevel.checkpoint()
        return self.reach()

    async def wait_moved(self) -> None:
        await trio.sleep_forever()

    def sign(self, data: bytes) -> bytes:
        return self._identity.sign(data)

    def save_identity(self, path: Path) -> None:
        """Keep its key where a machine has it. Raises FileExistsError: there is one."""
        self._identity.save(path)

    async def connect(self, multiaddr: str, *, deadline_s: float) -> PeerId:
        peer = PeerId(multiaddr.rpartition("/p2p/")[2])
        if not peer:
            raise UsageError(f"{multiaddr} does not end in /p2p/<peer id>")
        with _deadline(deadline_s):
            await trio.lowlevel.checkpoint()
            self._world.reach(self.peer, peer)
        return peer

    async def approach(self, address: PeerAddress, *, deadline_s: float) -> None:
        await self.connect(f"/memory/{address.peer}/p2p/{address.peer}", deadline_s=deadline_s)

    async def disconnect(self, peer: PeerId) -> None:
        """Here everybody who can be reached is connected."""

    async def open_pipe(self, address: PeerAddress, *, deadline_s: float) -> MemoryPipe:
        with _deadline(deadline_s):
            other = self._world.reach(self.peer, address.peer)
            mine, theirs = pipe_pair(self.peer, address.peer, bytes_s=self._world.bytes_s)
            mine.host, theirs.host = other.host, self.host
            mine.noise_key, theirs.noise_key = other.noise_key, self.noise_key
            if frozenset((self.peer, other.peer)) in self._world.relayed:
                mine.way = theirs.way = "relayed"
            mine.lost, theirs.lost = self.peer in self._world.frozen, address.peer in self._world.frozen
            self.pipes.append(mine)
            other.pipes.append(theirs)
            await other._inbox.send(theirs)
            return mine
        raise ChannelClosed(f"{address.peer} did not answer in time")

    async def open_direct(self, address: PeerAddress, *, deadline_s: float) -> MemoryPipe:
        if frozenset((self.peer, address.peer)) in self._world.relayed:
            await trio.lowlevel.checkpoint()
            raise ChannelClosed(f"{address.peer} is reached over a relay alone")
        return await self.open_pipe(address, deadline_s=deadline_s)

    async def accept_pipes(self) -> AsyncGenerator[MemoryPipe]:
        async for pipe in self._accept:
            yield pipe

    async def publish(self, topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self.peer not in self._world.peers:
            return  # killed: what its tasks still say, nobody hears
        for other in list(self._world.peers.values()):
            entry = other._topics.get(topic)
            if other is self or entry is None or frozenset((self.peer, other.peer)) in self._world.cut:
                continue
            validate, inbox = entry
            if validate(self.peer, data):
                inbox.send_nowait((self.peer, data))

    @asynccontextmanager
    async def subscribe(
        self, topic: str, validate: Validator
    ) -> AsyncGenerator[AsyncIterator[tuple[PeerId, bytes]]]:
        inbox, messages = trio.open_memory_channel[tuple[PeerId, bytes]](math.inf)
        self._topics[topic] = (validate, inbox)
        try:
            yield messages
        finally:
            del self._topics[topic]

    async def provide(self, key: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._world.providers[key].add(self.peer)

    async def find_providers(self, key: bytes, *, deadline_s: float) -> Sequence[PeerAddress]:
        with _deadline(deadline_s):
            await trio.lowlevel.checkpoint()
        return [self._world.peers[p].address for p in self._world.providers[key] if p in self._world.peers]

    async def request(self, peer: PeerId, protocol: str, body: bytes, *, deadline_s: float) -> bytes:
        other = self._world.reach(self.peer, peer)
        if protocol not in other._answers:
            raise ChannelClosed(f"{peer} does not speak {protocol}")
        with _deadline(deadline_s):
            return await other._answers[protocol](self.peer, body)
        raise DeadlineExceeded(f"{peer} did not answer in time")

    def answer(self, protocol: str, handler: RequestHandler) -> None:
        self._answers[protocol] = handler

    async def ping(self, peer: PeerId, *, deadline_s: float) -> float:
        with _deadline(deadline_s):
            await trio.lowlevel.checkpoint()
            self._world.reach(self.peer, peer)
        return 0.0

    def connections(self) -> Sequence[PeerConnection]:
        others = (p for p in self._world.peers if p != self.peer)
        reached = (p for p in others if frozenset((p, self.peer)) not in self._world.cut)
        return [PeerConnection(p, f"/memory/{p}", "direct") for p in reached]


def _deadline(seconds: float) -> trio.CancelScope:
    return trio.move_on_after(seconds)
