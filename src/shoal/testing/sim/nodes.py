"""Nodes that serve the simulated model, and clients that use it: the product's own, but for the engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import trio

from shoal import config
from shoal.client.swarm import Swarm
from shoal.config import Settings
from shoal.executor.device.device import CPU, Device, DeviceMemory
from shoal.executor.ends import EndsEngine
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.models.text.codec import TextCodec
from shoal.net.network import Network
from shoal.node.node import LoadedSpan, Node
from shoal.node.owner.watch import OwnerWatch
from shoal.node.server import SpanServer
from shoal.node.speed import Speed
from shoal.planning.placement import choose_span
from shoal.planning.throughput import ServingPeer
from shoal.progress import Progress, silent
from shoal.sharing.peer_weights import PeerWeights
from shoal.swarm.member import Member
from shoal.testing.machine import PretendMachine
from shoal.testing.sim import model
from shoal.testing.sim.engine import LoopThread, SimEnds, SimEngine, StepCost
from shoal.testing.sim.peers import SPAN, Peer, SimPeers
from shoal.types import Format


@dataclass(eq=False)
class SimNode:
    """One node."""

    peer: Peer
    engine: SimEngine
    server: SpanServer
    node: Node

    def leftovers(self) -> str:
        """What sessions have left behind here, once all are over; empty if nothing."""
        pool = self.engine.pool
        left = {
            "sessions": self.engine.sessions,
            "hops": self.server.sessions,
            "pages": pool.taken,
            "promised tokens": pool.tokens - pool.tokens_free,
        }
        return ", ".join(f"{count} {what}" for what, count in left.items() if count)


class SimClient(Swarm):
    """A client whose ends are pretended."""

    def __init__(self, network: Network, member: Member, settings: Settings, chance: Random) -> None:
        super().__init__(network, member, settings, ModelStore(Path()), thread=LoopThread())
        self.rings.finder._random = chance  # pyright: ignore[reportPrivateUsage]
        self.script: dict[int, int] = {}
        """What the model says instead of what it would (:func:`model.script`)."""

    async def resolve(self, model: str, progress: Progress = silent) -> LocalModel:
        await trio.lowlevel.checkpoint()
        return MODEL

    async def codec(self, local: LocalModel, *, needed: bool = False) -> TextCodec | None:
        return None

    async def encodes_only(self, local: LocalModel) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    async def encoder_decoder(self, local: LocalModel) -> None:
        await trio.lowlevel.checkpoint()

    async def _load_ends(self, local: LocalModel, format: Format) -> EndsEngine:
        return SimEnds(self.script)


MODEL = model.MODEL

MACHINE = Device(CPU, "", lambda: DeviceMemory(total=16 << 30, free=8 << 30))


@dataclass(eq=False)
class SimSwarm:
    """Nodes and clients."""

    peers: SimPeers
    settings: Settings = field(default_factory=lambda: config.load({}, {"SHOAL_HOME": "/nonexistent"}))
    nodes: list[SimNode] = field(default_factory=list[SimNode])
    cost: StepCost = field(default_factory=StepCost)
    violations: list[str] = field(default_factory=list[str])
    """What an engine was asked for that cannot be."""

    async def add_node(self) -> SimNode:
        """One more node, which serves what the swarm lacks most."""
        peer = await self.peers.enter()
        member = peer.member
        spans = [a.served.span for a in member.directory.serving(model.DIGEST, member.now()) if a.served]
        span = choose_span([ServingPeer(other, 1.0) for other in spans], model.N_BLOCKS, SPAN)
        engine = SimEngine(span, self.peers.internet.agenda, self.violations, self.cost)
        loaded = LoadedSpan(span, engine, LoopThread(), speed=Speed(0.0, 0.0))
        server = SpanServer(
            peer.network, engine, digest=model.DIGEST, span=span, speed=loaded.speed, max_sessions=64
        )
        watch = OwnerWatch(server, member, MODEL.shape, "off", PretendMachine(trio.current_time))
        weights = PeerWeights(member, self.settings, ModelStore(Path()))
        served = Node(MODEL, loaded, server, member, self.settings, MACHINE, watch, weights)
        node = SimNode(peer, engine, server, served)
        await peer.life.start(server.run)
        await self.peers.announce(peer, node.node.served)
        self.nodes.append(node)
        return node

    def kill(self, node: SimNode, *, silent: bool) -> None:
        """A node dies; see :meth:`Internet.kill`."""
        self.nodes.remove(node)
        self.peers.kill(node.peer, silent=silent)

    async def drain(self, node: SimNode) -> None:
        """A node, if it is there still, takes nothing new, says so, and ends when its sessions have."""
        if node in self.nodes:
            self.nodes.remove(node)
            self.peers.alive.remove(node.peer)
            await node.node.drain()
            self.peers.kill(node.peer, silent=False)

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[SimClient]:
        """A client, until the block ends."""
        peer = await self.peers.enter()
        client = SimClient(peer.network, peer.member, self.settings, Random(self.peers.chance.random()))
        try:
            await peer.life.start(client.move_messages)
            yield client
        finally:
            self.peers.kill(peer, silent=False)
