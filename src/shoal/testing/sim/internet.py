"""A world with distances: peers are connected to some others, and everything takes its way there.

Peers lie on a map, so that latencies obey the triangle inequality, more or less as in the real world. A
peer's own line to the world has a speed. Messages on it can be lost, sides can be cut from each other, and a
peer dies with a word (its machine lives on and says so) or without one.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import trio

from shoal.errors import ChannelClosed, DeadlineExceeded, ShoalError, UsageError
from shoal.net.identity import Identity
from shoal.net.network import PeerConnection
from shoal.testing.memory import MemoryNetwork, MemoryPipe, World
from shoal.testing.sim.agenda import Agenda
from shoal.testing.sim.mesh import Mesh
from shoal.types import PeerAddress, PeerId

NEAREST_S = 0.003
ACROSS_S = 0.120
"""One way between neighbours, and from one edge of the map to the other."""
LINE_BYTES_S = 2.5e6
"""20 Mbit/s: what a home sends."""
CONNECTIONS_LIMIT = 300
"""As the libp2p host has it."""
ENVELOPE = 190
"""Bytes that gossipsub, yamux, Noise and TCP add to one gossiped message: signature, key, number, topic,
frames."""
MENTION_BYTES = 45
"""Bytes of a message's name in a list of those that there are (IHAVE)."""
HEARTBEAT_S = 1.0
"""How often gossipsub mentions messages."""
IDLE_S = 20.0
REQUEST_BYTES = 260
"""Bytes, each way, of a new stream with its protocol agreed on."""
CONNECT_BYTES = 3000
"""Bytes, each way, of TCP, the Noise handshake, muxer and identify."""
SENT_AHEAD_S = 0.2
"""So much of the line's time may be taken by what is not on its way yet; more waits, as for a full socket."""
PING_MOST = 48
OVERHEAD = 60
"""Bytes that Noise and TCP add to what is sent at once."""


@dataclass
class Internet(World):
    """All the peers there are, and the way between any two of them."""

    chance: random.Random = field(default_factory=random.Random)
    loss: float = 0.0
    """The share of gossiped messages that gets lost on each link."""
    agenda: Agenda = field(default_factory=Agenda)
    way_s: float | None = None
    """One way between any two; by default as far as they are on the map."""

    def __post_init__(self) -> None:
        self.connected: dict[PeerId, dict[PeerId, None]] = defaultdict(dict)
        self.mesh = Mesh(lambda peer: self.connected[peer], self.chance)
        self.side: dict[PeerId, int] = {}
        """On which side of a partition a peer is; 0 unless it is named."""
        self.silent: set[PeerId] = set()
        """The dead whose machines are gone, too: nothing answers there."""
        self._places: dict[PeerId, tuple[float, float]] = {}
        self._latencies: dict[tuple[PeerId, PeerId], float] = {}
        self._shown: dict[PeerId, PeerConnection] = {}

    def network(self, identity: Identity | None = None) -> SimNetwork:
        network = SimNetwork(self, identity or Identity.from_seed(self.chance.randbytes(32)))
        self.peers[network.peer] = network
        self._shown[network.peer] = PeerConnection(network.peer, f"/memory/{network.peer}", "direct")
        self._places[network.peer] = (self.chance.random(), self.chance.random())
        self.silent.discard(network.peer)
        return network

    def node(self, peer: PeerId) -> SimNetwork | None:
        """A living peer."""
        network = self.peers.get(peer)
        return network if isinstance(network, SimNetwork) else None

    def shown(self, peer: PeerId) -> PeerConnection:
        """A connection to ``peer``, as whoever has it sees it."""
        return self._shown[peer]

    def latency_s(self, a: PeerId, b: PeerId) -> float:
        """One way from ``a`` to ``b``."""
        if self.way_s is not None:
            return self.way_s
        known = self._latencies.get((a, b))
        if known is None:
            way = math.dist(self._places[a], self._places[b])
            known = self._latencies[a, b] = NEAREST_S + ACROSS_S / math.sqrt(2) * way
        return known

    def open_way(self, a: PeerId, b: PeerId) -> bool:
        """Whether what ``a`` sends can arrive at ``b``."""
        return self.side.get(a, 0) == self.side.get(b, 0) and frozenset((a, b)) not in self.cut

    def carry(self, sender: SimNetwork, to: PeerId, size: int, kind: str) -> float:
        """Put ``size`` bytes on the sender's line; seconds until they arrive."""
        now = trio.current_time()
        sender.sent[kind] += size
        sender.line_free_at = max(now, sender.line_free_at) + size / LINE_BYTES_S
        return sender.line_free_at - now + self.latency_s(sender.peer, to)

    def link(self, a: PeerId, b: PeerId) -> None:
        """Connect two peers."""
        if b not in self.connected[a]:
            self.connected[a][b] = None
            self.connected[b][a] = None
            self.mesh.linked(a, b)

    def unlink(self, a: PeerId, b: PeerId) -> None:
        """``a`` has no connection to ``b`` any more; ``b`` hears of it if it can."""
        self.connected[a].pop(b, None)
        self.mesh.unlinked(a, b)
        if a in self.connected[b] and self.open_way(a, b) and a not in self.silent:
            self.agenda.after(self.latency_s(a, b), partial(self._hung_up, b, a))

    def kill(self, peer: PeerId, *, silent: bool = False) -> None:
        """The process is gone; with ``silent`` its machine too, so that nobody is told by a closed socket."""
        network = self.node(peer)
        if network is None:
            return
        del self.peers[peer]
        if silent:
            self.silent.add(peer)
        for pipe in list(network.pipes):
            if isinstance(pipe, SimPipe):
                pipe.die(silent=silent)
        self.mesh.left(peer)
        for other in self.connected.pop(peer, {}):
            if not silent and self.open_way(peer, other):
                self.agenda.after(self.latency_s(peer, other), partial(self._hung_up, other, peer))

    def forget_idle(self) -> None:
        """Routers forget connections over which nothing but pings has gone for ``IDLE_S``.

        Real ones leave those with pings alone. But in half an hour all of a few hundred peers have met, and
        to keep up that many channels would be most of the work.
        """
        for network in self.peers.values():
            for pipe in list(network.pipes):
                if isinstance(pipe, SimPipe) and pipe.idle_s() > IDLE_S:
                    pipe.die(silent=False)

    def heal(self) -> None:
        """Every way is open again, and what waited in pipes goes on."""
        self.side.clear()
        self.cut.clear()
        for network in self.peers.values():
            for pipe in network.pipes:
                if isinstance(pipe, SimPipe):
                    pipe.flush()

    def gossip(self, sender: SimNetwork, topic: str, data: bytes) -> None:
        """Begin to spread a message."""
        message = _Gossip(topic, sender.peer, data, {sender.peer})
        for other in self.mesh.neighbours(sender.peer):
            self._pass_on(sender, other, message)

    def _pass_on(self, sender: SimNetwork, to: PeerId, message: _Gossip) -> None:
        size = len(message.data) + ENVELOPE
        delay_s = self.carry(sender, to, size, "gossip")
        if self.open_way(sender.peer, to) and self.chance.random() >= self.loss:
            self.agenda.after(delay_s, partial(self._arrive, sender.peer, to, message))

    def _arrive(self, last: PeerId, to: PeerId, message: _Gossip) -> None:
        network = self.node(to)
        if network is None:
            return
        if last not in self.connected[to]:
            self._hung_up(last, to)  # it ended while the way was cut: the sender is told now
            return
        network.received["gossip"] += len(message.data) + ENVELOPE
        if to in message.seen:
            return
        message.seen.add(to)
        if network.hear(message.topic, message.author, message.data):
            for other in self.mesh.neighbours(to):
                if other not in (last, message.author):
                    self._pass_on(network, other, message)
            self.agenda.after(self.chance.random() * HEARTBEAT_S, partial(self._mention, network, message))

    def _mention(self, network: SimNetwork, message: _Gossip) -> None:
        """Tell some who are not in the mesh that there is this message; those who lack it ask for it."""
        if self.node(network.peer) is not network:
            return
        strangers = self.mesh.strangers(network.peer)
        network.sent["gossip"] += MENTION_BYTES * len(strangers)
        for other in strangers:
            if other not in message.seen:
                self._pass_on(network, other, message)

    def _hung_up(self, peer: PeerId, other: PeerId) -> None:
        if other in self.connected.get(peer, ()):
            self.connected[peer].pop(other, None)
            self.mesh.unlinked(peer, other)


@dataclass(slots=True)
class _Gossip:
    topic: str
    author: PeerId
    data: bytes
    seen: set[PeerId]


class SimNetwork(MemoryNetwork):
    """One peer's place in an :class:`Internet`."""

    def __init__(self, world: Internet, identity: Identity) -> None:
        super().__init__(world, identity)
        self._internet = world
        self.sent = Counter[str]()
        self.received = Counter[str]()
        """Bytes by kind: gossip, requests, connects, pipes."""
        self.line_free_at = 0.0

    async def connect(self, multiaddr: str, *, deadline_s: float) -> PeerId:
        peer = PeerId(multiaddr.rpartition("/p2p/")[2])
        if not peer:
            raise UsageError(f"{multiaddr} does not end in /p2p/<peer id>")
        if peer == self.peer:
            raise ChannelClosed(f"{peer} is this peer itself")
        if peer in self._internet.connected[self.peer]:
            return peer
        try:
            other = await self._reach(peer, CONNECT_BYTES, "connects", deadline_s)
        except DeadlineExceeded as error:
            raise ChannelClosed(error.message) from error
        if len(self._internet.connected[peer]) >= CONNECTIONS_LIMIT:
            raise ChannelClosed(f"{peer} has too many connections")
        self._internet.carry(other, self.peer, CONNECT_BYTES, "connects")
        self._internet.link(self.peer, peer)
        return peer

    async def approach(self, address: PeerAddress, *, deadline_s: float) -> None:
        await self.connect(f"/p2p/{address.peer}", deadline_s=deadline_s)

    async def disconnect(self, peer: PeerId) -> None:
        self._internet.unlink(self.peer, peer)

    async def open_pipe(self, address: PeerAddress, *, deadline_s: float) -> SimPipe:
        with trio.move_on_after(deadline_s):
            with suppress(DeadlineExceeded):
                other = await self._reach(address.peer, CONNECT_BYTES, "pipes", deadline_s)
                mine, theirs = SimPipe.pair(self._internet, self, other)
                await other.take_pipe(theirs)
                return mine
        raise ChannelClosed(f"{address.peer} did not answer in time")

    async def open_direct(self, address: PeerAddress, *, deadline_s: float) -> SimPipe:
        return await self.open_pipe(address, deadline_s=deadline_s)

    async def take_pipe(self, pipe: SimPipe) -> None:
        """A pipe that another peer has opened to this one."""
        await self._inbox.send(pipe)

    async def publish(self, topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self._internet.node(self.peer) is self:
            self._internet.gossip(self, topic, data)

    def hear(self, topic: str, author: PeerId, data: bytes) -> bool:
        """A gossiped message has come: whether it is valid here, and so passed on."""
        entry = self._topics.get(topic)
        if entry is None or not entry[0](author, data):
            return False
        entry[1].send_nowait((author, data))
        return True

    async def request(self, peer: PeerId, protocol: str, body: bytes, *, deadline_s: float) -> bytes:
        with trio.move_on_after(deadline_s):
            other = await self._ask(peer, deadline_s)
            await self._travel(self, other, len(body))
            if protocol not in other._answers:
                raise ChannelClosed(f"{peer} does not speak {protocol}")
            try:
                answer = await other._answers[protocol](self.peer, body)
            except ShoalError as error:
                raise ChannelClosed(f"{peer} hung up: {error.message}") from error
            await self._travel(other, self, REQUEST_BYTES + len(answer))
            return answer
        raise DeadlineExceeded(f"{peer} did not answer within {deadline_s:.0f} s")

    async def ping(self, peer: PeerId, *, deadline_s: float) -> float:
        began = trio.current_time()
        other = await self._ask(peer, deadline_s)
        self._internet.carry(other, self.peer, REQUEST_BYTES, "requests")
        return trio.current_time() - began

    async def _ask(self, peer: PeerId, deadline_s: float) -> SimNetwork:
        """The other end of a connection that there is, for one question."""
        if peer not in self._internet.connected[self.peer]:
            raise ChannelClosed(f"{peer} cannot be reached")
        other = await self._reach(peer, REQUEST_BYTES, "requests", deadline_s)
        if self.peer not in self._internet.connected[peer]:
            await self.disconnect(peer)
            raise ChannelClosed(f"{peer} has hung up")
        return other

    def connections(self) -> Sequence[PeerConnection]:
        return [self._internet.shown(p) for p in self._internet.connected[self.peer]]

    async def _reach(self, peer: PeerId, size: int, kind: str, deadline_s: float) -> SimNetwork:
        """Go there and back once.

        Raises:
            DeadlineExceeded: there is no way, no machine, or the way is too long.
            ChannelClosed: there is a machine and no such peer on it.
        """
        world = self._internet
        delay_s = world.carry(self, peer, size, kind) + world.latency_s(self.peer, peer)
        await trio.sleep(min(delay_s, deadline_s))
        lost = (
            peer in world.silent or not world.open_way(self.peer, peer) or world.node(self.peer) is not self
        )
        if lost or delay_s > deadline_s:
            await trio.sleep(max(0.0, deadline_s - delay_s))
            raise DeadlineExceeded(f"{peer} did not answer within {deadline_s:.0f} s")
        other = world.node(peer)
        if other is None:
            raise ChannelClosed(f"{peer} cannot be reached")
        other.received[kind] += size
        return other

    async def _travel(self, sender: SimNetwork, to: SimNetwork, size: int) -> None:
        world = self._internet
        await trio.sleep(world.carry(sender, to.peer, size, "requests"))
        gone = any(world.node(network.peer) is not network for network in (sender, to))
        if gone or not world.open_way(sender.peer, to.peer):
            await trio.sleep_forever()
        to.received["requests"] += size


class SimPipe(MemoryPipe):
    """One end of a pipe: bytes arrive in order, after their way; in a partition they wait."""

    def __init__(self, world: Internet, own: SimNetwork, other: SimNetwork) -> None:
        send, receive = trio.open_memory_channel[bytes](float("inf"))
        super().__init__(other.peer, send, receive)
        self.noise_key = other.noise_key
        self._world = world
        self._own = own
        self._other_end: SimPipe | None = None
        self._stalled: deque[bytes] = deque()
        self._dead = False
        self.busy_at = trio.current_time()
        """When something longer than a ping was last sent."""
        own.pipes.append(self)

    @classmethod
    def pair(cls, world: Internet, a: SimNetwork, b: SimNetwork) -> tuple[SimPipe, SimPipe]:
        """Both ends: ``a``'s, then ``b``'s."""
        mine, theirs = cls(world, a, b), cls(world, b, a)
        mine._other_end, theirs._other_end = theirs, mine
        return mine, theirs

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.send_now(bytes(data))
        await trio.sleep(max(0.0, self._own.line_free_at - trio.current_time() - SENT_AHEAD_S))

    def send_now(self, data: bytes) -> bool:
        if self._dead:
            raise ChannelClosed("the pipe is gone")
        if len(data) > PING_MOST:
            self.busy_at = trio.current_time()
        delay_s = self._world.carry(self._own, self.peer, len(data) + OVERHEAD, "pipes")
        self._world.agenda.after(delay_s, partial(self._arrive, data))
        return True

    async def aclose(self) -> None:
        self.die(silent=False)
        await trio.lowlevel.checkpoint()

    def die(self, *, silent: bool) -> None:
        """This end is no more. Unless ``silent``, the other end is told: ``b""`` on its way."""
        if self._dead:
            return
        self._dead = True
        if self in self._own.pipes:
            self._own.pipes.remove(self)
        self._receive.close()
        if not silent:
            delay_s = self._world.carry(self._own, self.peer, OVERHEAD, "pipes")
            self._world.agenda.after(delay_s, partial(self._arrive, b""))

    def idle_s(self) -> float:
        """For how long neither end has sent anything but pings."""
        other = self._other_end
        return trio.current_time() - max(self.busy_at, other.busy_at if other else 0.0)

    def flush(self) -> None:
        """The way is open again."""
        stalled, self._stalled = self._stalled, deque()
        for data in stalled:
            self._arrive(data)

    def _arrive(self, data: bytes) -> None:
        other = self._other_end
        if other is None or other._dead:
            return
        if self._stalled or not self._world.open_way(self._own.peer, self.peer):
            self._stalled.append(data)
        elif data:
            other._send.send_nowait(data)
            other._own.received["pipes"] += len(data) + OVERHEAD
        else:
            other._send.close()
