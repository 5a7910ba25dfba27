"""A swarm in memory that serves a graph: real segments in this process, a pretended network."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import trio

from shoal.client.swarm import Swarm
from shoal.config import Settings
from shoal.errors import StepFailed
from shoal.executor.graph.arrays import pack_arrays, unpack_arrays
from shoal.executor.graph.segments import LoadedSegments
from shoal.models.graph.graph_store import LocalGraph
from shoal.models.store.store import ModelStore
from shoal.node.graph.graph_node import GraphNode, start_graph_node
from shoal.tasks import one_error
from shoal.testing.memory import MemoryNetwork, World
from shoal.testing.swarm import memory_member, memory_settings
from shoal.types import Span
from shoal.wire.arrays import ArraySpec


class InProcessRunner:
    """Computes segments in this process, where starting one for each node would take a second."""

    def __init__(self, graph: LocalGraph, span: Span, *, memory: int, within_s: float) -> None:
        self.graph = graph
        self._span = span
        self._loaded: LoadedSegments | None = None

    @property
    def span(self) -> Span:
        return self._span

    def load(self) -> None:
        self._loaded = self._loaded or LoadedSegments(self.graph.folder, self._span)

    def run(
        self, span: Span, arrays: tuple[ArraySpec, ...], payload: bytes
    ) -> tuple[tuple[ArraySpec, ...], bytes]:
        assert self._loaded is not None
        try:
            return pack_arrays(self._loaded.run(span, unpack_arrays(arrays, payload)))
        except Exception as error:  # whatever the runtime raises
            raise StepFailed(f"segments {span}: {error}") from error

    def close(self) -> None:
        """Nothing to end."""


@dataclass
class GraphSwarm:
    """Nodes of one graph and a client in one :class:`World`."""

    world: World
    settings: Settings
    graph: LocalGraph
    nursery: trio.Nursery
    nodes: list[GraphNode] = field(default_factory=list[GraphNode])
    networks: list[MemoryNetwork] = field(default_factory=list[MemoryNetwork])
    """Each node's place in the world, in the same order."""
    client: Swarm = field(init=False)

    def kill(self, index: int) -> None:
        """A node is gone without a word."""
        self.world.kill(self.networks[index].peer)

    async def add_node(self, span: Span | None, graph: LocalGraph | None = None, **options: Any) -> GraphNode:
        """One more node; without a span it chooses one."""
        network = self.world.network()
        member = await memory_member(self.world, network, self.settings, self.nursery)
        started: list[GraphNode] = []

        async def live(*, task_status: trio.TaskStatus[None]) -> None:
            settings = memory_settings(self.settings.paths.data, **options)
            async with start_graph_node(
                network, member, graph or self.graph, span, settings, make_runner=InProcessRunner
            ) as node:
                started.append(node)
                task_status.started()
                await trio.sleep_forever()

        await self.nursery.start(live)
        self.nodes.append(started[0])
        self.networks.append(network)
        return started[0]

    async def add_client(self, home: Path | None = None, **options: Any) -> Swarm:
        """One more client, with a home of its own if one is given."""
        network = self.world.network()
        settings = memory_settings(home or self.settings.paths.data, **options)
        member = await memory_member(self.world, network, settings, self.nursery)
        swarm = Swarm(network, member, settings, ModelStore(settings.paths.models))
        await self.nursery.start(swarm.move_messages)
        return swarm


@asynccontextmanager
async def graph_swarm(
    home: Path, graph: LocalGraph, spans: Sequence[Span], **options: Any
) -> AsyncGenerator[GraphSwarm]:
    """Serve a graph in ``spans``, with a client whose home is that of the nodes.

    Args:
        options: fields of :class:`shoal.config.Settings`.
    """
    with one_error():
        async with trio.open_nursery() as nursery:
            swarm = GraphSwarm(World(), memory_settings(home, **options), graph, nursery)
            for span in spans:
                await swarm.add_node(span, **options)
            swarm.client = await swarm.add_client(**options)
            yield swarm
            nursery.cancel_scope.cancel()


def equal_spans(count: int, parts: int) -> list[Span]:
    """``count`` segments in so many spans of nearly one length."""
    bounds = [round(count * part / parts) for part in range(parts + 1)]
    return [Span(start, end) for start, end in pairwise(bounds)]
