"""A whole swarm in memory: real spans, real sessions, a pretended network."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import trio

from shoal import config
from shoal.client.connect import accounts_for
from shoal.client.paying.accounts import HopAccounts
from shoal.client.swarm import Swarm
from shoal.config import Settings
from shoal.executor.pages import PAGE, PagePool
from shoal.executor.runner import Runner
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.net.identity import Identity
from shoal.node.attestation.start import Attesting
from shoal.node.node import Node, start_node
from shoal.node.owner.machine import MachineSensors
from shoal.node.paying.payment import PaymentDesk
from shoal.node.speed import SESSIONS, Speed, measure_speed
from shoal.swarm.clock import Clock
from shoal.swarm.member import Member
from shoal.tasks import one_error
from shoal.testing.memory import MemoryNetwork, World
from shoal.trust.operator import state
from shoal.types import PeerId, Span

NodeT = TypeVar("NodeT")
Start = Callable[[MemoryNetwork, Member, Settings], AbstractAsyncContextManager[NodeT]]
"""Starts a node for as long as the block."""
_measured: dict[tuple[object, ...], Speed] = {}


def measured_once(runner: Runner, pool: PagePool) -> Speed:
    """The speed of a span as it was when the first like it was loaded, of the same blocks and format.

    To measure it takes a node longer than all else here, and nodes that are alike announce the same.
    """
    sessions = min(SESSIONS, pool.tokens_free // PAGE)
    like = (type(runner), runner.bits, runner.span, runner.width, runner.tensor_bytes, sessions)
    if like not in _measured:
        _measured[like] = measure_speed(runner, pool)
    return _measured[like]


@dataclass
class MemoryPeers(Generic[NodeT]):
    """Nodes and one client in one :class:`World`."""

    world: World
    settings: Settings
    nursery: trio.Nursery
    nodes: list[NodeT] = field(init=False, default_factory=list[NodeT])
    networks: list[MemoryNetwork] = field(init=False, default_factory=list[MemoryNetwork])
    """Each node's place in the world, in the same order."""
    client: Swarm = field(init=False)

    def kill(self, index: int) -> None:
        """A node is gone without a word."""
        self.world.kill(self.networks[index].peer)

    async def add_client(
        self,
        home: Path | None = None,
        accounts: Callable[[PeerId], HopAccounts] | None = None,
        **options: Any,
    ) -> Swarm:
        """One more client, with a home of its own if one is given, and the swarm's format and codec.

        Args:
            accounts: by which it pays, of the peer that it is; by default as the options say.
        """
        network = self.world.network()
        settings = self._settings(home, options)
        store = ModelStore(settings.paths.models)
        peer, member = network.peer, await self._member(network)
        found = await accounts_for(peer, settings) if accounts is None else accounts(peer)
        swarm = Swarm(network, member, settings, store, self._another_identity, found, self._another_member)
        await self.nursery.start(swarm.move_messages)
        return swarm

    @asynccontextmanager
    async def _another_identity(self) -> AsyncGenerator[MemoryNetwork]:
        network = self.world.network()
        try:
            yield network
        finally:
            self.world.kill(network.peer)

    @asynccontextmanager
    async def _another_member(self) -> AsyncGenerator[tuple[MemoryNetwork, Member]]:
        async with self._another_identity() as network, trio.open_nursery() as nursery:
            member = self._new_member(network)
            await nursery.start(member.run)
            yield network, member
            nursery.cancel_scope.cancel()

    async def _add(
        self,
        start: Start[NodeT],
        options: Mapping[str, Any],
        host: str | None = None,
        home: Path | None = None,
        operator: Identity | None = None,
    ) -> NodeT:
        network = self.world.network()
        network.says_at = host or f"198.18.{len(self.networks)}.1"
        member = await self._member(network, operator)
        started: list[NodeT] = []
        if home is not None:
            network.save_identity(home / "identity.key")

        async def live(*, task_status: trio.TaskStatus[None]) -> None:
            settings = self._settings(home, options)
            async with start(network, member, settings) as node:
                started.append(node)
                task_status.started()
                await trio.sleep_forever()

        await self.nursery.start(live)
        self.nodes.append(started[0])
        self.networks.append(network)
        return started[0]

    def _settings(self, home: Path | None, options: Mapping[str, Any]) -> Settings:
        """Of one more peer, which computes and sends as the others do unless it is told otherwise."""
        usual = {"format": self.settings.format, "wire": self.settings.wire}
        return memory_settings(home or self.settings.paths.data, **(usual | dict(options)))

    async def _member(self, network: MemoryNetwork, operator: Identity | None = None) -> Member:
        """A running membership; it joins through the first peer of the world."""
        member = self._new_member(network, operator)
        await self.nursery.start(member.run)
        return member

    def _new_member(self, network: MemoryNetwork, operator: Identity | None = None) -> Member:
        first, now = next(iter(self.world.peers)), trio.current_time()
        return Member(
            network,
            announce_s=self.settings.announce_s,
            expiry_s=self.settings.expiry_s,
            bootstrap=[f"/memory/{first}/p2p/{first}"] if first != network.peer else [],
            clock=Clock(trio.current_time, trio.current_time),
            operator=state(operator.peer, network.peer, now, 1, operator.sign) if operator else None,
        )


@dataclass
class MemorySwarm(MemoryPeers[Node]):
    """Nodes of one model and one client."""

    model: LocalModel

    async def add_node(
        self,
        span: Span,
        model: LocalModel | None = None,
        machine: MachineSensors | None = None,
        attesting: Attesting | None = None,
        host: str | None = None,
        home: Path | None = None,
        payments: Callable[[PeerId], PaymentDesk] | None = None,
        operator: Identity | None = None,
        **options: Any,
    ) -> Node:
        """One more node, of this model or another version of it, on this machine or a pretended one, which
        shows what it is or does not.

        Args:
            host: where it says that it is; by default on a network of its own.
            payments: what asks for payment there, of the peer that it is.
            operator: whose it announces to be.
            home: of its machine, where clients find its identity; by default it has that of the swarm.
        """

        def start(
            network: MemoryNetwork, member: Member, settings: Settings
        ) -> AbstractAsyncContextManager[Node]:
            served = model or self.model
            return start_node(
                network,
                member,
                served,
                span,
                settings,
                machine=machine,
                attesting=attesting,
                payments=payments,
                measure=measured_once,
            )

        return await self._add(start, options, host, home, operator)


@asynccontextmanager
async def memory_swarm(
    home: Path, checkpoint: Path, spans: Sequence[Span], **options: Any
) -> AsyncGenerator[MemorySwarm]:
    """Serve ``checkpoint`` in ``spans``, with a client that knows of every node.

    Args:
        home: where settings and the model's record are kept.
        checkpoint: a folder, which is described once for all swarms: what a new home is to know of it is kept
            beside it.
        options: fields of :class:`shoal.config.Settings`.
    """
    settings = memory_settings(home, **options)
    model = await trio.to_thread.run_sync(_resolve, settings.paths.models, checkpoint)
    with one_error():
        async with trio.open_nursery() as nursery:
            swarm = MemorySwarm(World(), settings, nursery, model)
            for span in spans:
                await swarm.add_node(span, **options)
            swarm.client = await swarm.add_client(**options)
            yield swarm
            nursery.cancel_scope.cancel()


def _resolve(models: Path, checkpoint: Path) -> LocalModel:
    """A checkpoint as the store in ``models`` knows it, described when the first of them asks.

    To describe a model starts two processes for its tokenizer and its template: longer than all else here.
    """
    known, fresh = checkpoint.with_name(f"{checkpoint.name}.known"), not models.exists()
    if fresh and known.is_dir():
        shutil.copytree(known, models)
    model = ModelStore(models).resolve(str(checkpoint))
    if fresh and not known.is_dir():
        shutil.copytree(models, known)
    return model


def memory_settings(home: Path, **options: Any) -> Settings:
    # What a whole model gives bit for bit, unless a test is about another format.
    return config.load({"threads": 1, "format": "fp32"} | options, {"SHOAL_HOME": str(home)})
